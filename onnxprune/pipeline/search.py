"""`--max-drop`: the smallest model that scores nearly as well, `make` in a loop that scores what it made."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.allocation.budget import BUDGETS, LATENCY, left_by
from onnxprune.allocation.spread import Choice
from onnxprune.errors import NothingToPrune, OnnxPruneError, OptionError, Unreachable
from onnxprune.evaluation.metrics import Drop, Score, drop
from onnxprune.evaluation.smallest import smallest
from onnxprune.pipeline.make import limits_of, make, plan_of
from onnxprune.pipeline.setup import Pruning, Setup
from onnxprune.pipeline.ways import Way, Ways, made_of
from onnxprune.progress import Clock, silent
from onnxprune.training.options import shortened


def search(setup: Setup, ways: Ways, limit: float) -> tuple[Pruning, Drop]:
    """The smallest model whose metric falls by at most `limit`, and by how much it does: `make` in a loop."""
    assert setup.evaluator is not None and setup.score is not None
    evaluator, o, whole = setup.evaluator, setup.options, setup.analysis.keep_ids({})
    less, meter = o.minimized, setup.meters[o.minimized]
    total = meter(whole)
    brief = replace(o.training, tune=None if o.training.tune is None else shortened(o.training.tune))
    wet = replace(o, check=replace(o.check, dry_run=False), training=brief)  # scored is what would be written
    limits, quiet = limits_of(setup), replace(setup, clock=Clock(silent), options=wet)
    fixed = bool(o.cuts) or any(amount != "auto" for amount in o.amounts.values())
    later = setup.spec.asked or setup.clusters is not None
    candidates: dict[int, Pruning] = {}
    chosen_by: dict[int, tuple[Way, Choice]] = {}
    failed: list[OnnxPruneError] = []

    def build(left: int) -> Score | None:
        try:
            goal = {**limits, less: min(total * left / 100, limits.get(less, total))}
            way, choice = ways.best(goal) if left < 100 or fixed else (Way(True), Choice({}))
            chosen_by[left] = way, choice
            candidates[left] = made_of(quiet, way, choice)
        except (Unreachable, NothingToPrune) as e:  # too small a model, or none that zeros or codebooks would suit
            if left == 100:
                raise
            failed.append(e)
            return None
        model = candidates[left].model
        assert model is not None
        return evaluator(model)

    setup.clock("search")
    alone = None
    if later:  # zeros and codebooks that no cut can make good
        model = make(quiet, plan_of(setup, {})).model
        assert model is not None
        alone = evaluator(model)
    try:
        best = smallest(
            build, setup.score, limit, alone=alone, whole=later and not limits, seed=o.check.seed,
            progress=lambda done, total: setup.clock.progress("search", done, total),
        )  # fmt: skip
    except OptionError:
        if failed and not candidates:  # what every candidate stumbled over says more
            raise failed[0] from None
        raise
    chosen, (way, choice) = candidates[best.left], chosen_by[best.left]
    share = meter(chosen.keep, left_by(way.switches, choice.settings, less)) / total
    notes = [
        f"--max-drop {limit:g}: {share:.0%} of the {BUDGETS[less].unit}{' that were predicted' * (less == LATENCY)}"
    ]
    if o.training.tune is None:
        return replace(chosen, notes=(*chosen.notes, *notes)), best.confirmed
    tuned = make(way.applied(setup, choice), chosen.plan)
    assert tuned.model is not None
    now = drop(setup.score, evaluator(tuned.model), best.rest)
    if not now.holds(limit):
        notes.append(f"tuned by {brief.tune} as in the search: tuned by {o.training.tune}, the bound was not held")
        return replace(chosen, notes=(*chosen.notes, *notes)), best.confirmed
    return replace(tuned, notes=(*tuned.notes, *notes)), now
