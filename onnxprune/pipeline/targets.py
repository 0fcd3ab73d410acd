"""A target that methods compete for: of every kind of plan the best is made, and what its outputs suffer decides.

Which ways of making a model smaller or faster go together is no matter of prediction alone: the levels say what each
choice costs by itself. Where units and zeros together hurt much more than that, as in layers that lose inputs and
weights, they are chosen once more with zeros that cost so much more; where several kinds of units do, as blocks with
channels of those that stay, without one kind each.
"""

from __future__ import annotations

from dataclasses import replace

from onnxprune.allocation.budget import LATENCY
from onnxprune.allocation.outcome import Tried
from onnxprune.allocation.spread import Choice
from onnxprune.errors import NothingToPrune, OptionError, Unreachable, UserError
from onnxprune.evaluation.fidelity import fidelity
from onnxprune.evaluation.metrics import CONFIDENCE, Drop, drop
from onnxprune.pipeline.counted import Counted
from onnxprune.pipeline.make import limits_of
from onnxprune.pipeline.setup import Pruning, Setup
from onnxprune.pipeline.timely import Timely
from onnxprune.pipeline.ways import Way, Ways, idle

MORE = 1.5  # times what the levels add up to, that is worth another try


def held(setup: Setup, ways: Ways) -> tuple[Pruning, Drop | None]:
    """The model of least damage that holds the targets, as measured, and what it lost where that is bounded.

    Raises `Unreachable`, and `OptionError` where it loses more than --max-drop.
    """
    made, limit = best(setup, ways), setup.options.scoring.max_drop
    if limit is None or setup.evaluator is None or setup.score is None or made.model is None:
        return made, None
    lost = drop(setup.score, setup.evaluator(made.model))  # on samples that the search never saw
    if not lost.holds(float(limit)):
        bound = "" if lost.bound is None else f" (at most {lost.bound:.4f} with {CONFIDENCE:.0%} confidence)"
        asked = " and ".join(f"--target-{name} {value}" for name, value in setup.options.cut.targets.items())
        raise OptionError(
            f"--max-drop {limit:g}: the best model that holds {asked} loses {lost.drop:.4f} of {lost.metric}{bound}; "
            "allow more of it, or a larger drop; nothing was written"
        )
    return made, lost


def best(setup: Setup, ways: Ways) -> Pruning:
    """The model of the way that hurts least, with what became of all ways; where two hurt the same, the one that uses
    less."""
    o = setup.options
    wet = replace(setup, options=replace(o, check=replace(o.check, dry_run=False)))  # measured is what would be written
    timed = LATENCY in o.cut.targets
    make = Timely(wet, ways) if timed else Counted(wet, ways)
    chosen: tuple[float, float, int, Pruning] | None = None
    problems: list[UserError] = []
    tried: list[Tried] = []
    limits = limits_of(setup)
    queue = ways.ranked(limits)
    for way, choice in queue:
        try:
            made, used = make(way)
        except (Unreachable, NothingToPrune) as e:
            tried.append(Tried(str(way), choice.damage, why=str(e)))
            problems.append(e)
            continue
        changed = made.sparsity is not None or made.codebooks is not None
        done = way if changed else replace(way, method="", weighed=False)  # no zeros may have paid
        hurt = suffered(wet, made)
        if chosen is None or (hurt or 0.0, used) < chosen[:2]:
            chosen = hurt or 0.0, used, len(tried), made
        tried.append(Tried(str(done), choice.damage, hurt, used if timed else None))
        for again in otherwise(ways, way, choice, hurt):
            try:
                other = ways.choose(again, limits)
            except (Unreachable, NothingToPrune) as e:
                tried.append(Tried(str(again), why=str(e)))
                continue
            if nothing := idle(again, other):
                tried.append(Tried(str(again), other.damage, why=f"no {nothing} are worth what they cost"))
            else:
                queue.append((again, other))
    if chosen is None:
        raise problems[0]
    _, _, k, made = chosen
    tried[k] = replace(tried[k], chosen=True)
    return replace(made, tried=(*tried, *ways.left, *ways.idle))


def otherwise(ways: Ways, way: Way, choice: Choice, hurt: float | None) -> list[Way]:
    """What to try where a choice hurts much more than the levels add up to: units and zeros with more damage of these,
    kinds of units without one of them each."""
    if way.weighed or way.spared or not way.units or not hurt or not choice.damage or hurt < MORE * choice.damage:
        return []
    if way.method:
        return [way.weighing((hurt / choice.damage) ** 0.5)]  # units may be what costs more
    groups = ways.chooser.whole.groups
    kinds = {g.kind for g in groups if g.name in choice.keeps and not choice.keeps[g.name].all()}
    return [replace(way, spared=frozenset({kind})) for kind in sorted(kinds)] if len(kinds) > 1 else []


def suffered(setup: Setup, made: Pruning) -> float | None:
    """What the outputs suffer, on the samples; None without any, where there is but one way."""
    if setup.data is None or made.model is None:
        return None
    return fidelity(setup.original, made.keep, made.model, setup.data).kl
