"""What is said of a run, each figure of the original and of the model that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from onnxprune import __version__
from onnxprune.allocation.budget import LATENCY
from onnxprune.allocation.choose import Chooser
from onnxprune.allocation.outcome import CLOSE, Got, cut_got, ratio_got, targets_got
from onnxprune.evaluation.fidelity import Fidelity
from onnxprune.evaluation.measure import SECONDS, file_bytes, latencies, times_of_nodes, told
from onnxprune.evaluation.metrics import Drop
from onnxprune.formats.patterns import BlockPattern
from onnxprune.graph.cost import trained
from onnxprune.graph.energy import Energy
from onnxprune.graph.folds import intact
from onnxprune.graph.io import Model, unfolded
from onnxprune.graph.peak import Peak
from onnxprune.pipeline.footprint import energy_of, peak_of
from onnxprune.pipeline.layers import layers_of, levels_of
from onnxprune.pipeline.prepare import ignored
from onnxprune.pipeline.setup import Pruning, Setup, recorded_samples
from onnxprune.recovery.recover import RECOVERIES
from onnxprune.report import Cost, GroupReport, Report, worth
from onnxprune.runtime.memory import peak_of_run
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import LEAST_ROUNDS, MIN_ROUNDS, Latency
from onnxprune.solvers.masks import needs_data
from onnxprune.sparsity.outcome import Sparsity
from onnxprune.sparsity.present import present
from onnxprune.structure.analysis import Keep
from onnxprune.structure.groups import analyze


def report_of(
    setup: Setup, chooser: Chooser | None, pruning: Pruning, close: Fidelity | None, verdict: Drop | None
) -> Report:
    """Everything that is said, each figure of the original and of the model that is written."""
    o, analysis, plan, outcome = setup.options, setup.analysis, pruning.plan, pruning.sparsity
    checked = None if pruning.cut is None else pruning.cut.verification
    whole = analysis.keep_ids({})
    written = None if setup.dry else pruning.model
    times: dict[str, Latency] = {}
    calls: tuple[Mapping[str, float], Mapping[str, float]] = {}, {}
    notes = [*setup.notes, *([] if chooser is None else chooser.notes), *pruning.notes]
    pairs = [(feeds, analysis.narrow(feeds, pruning.keep)) for feeds in pruning.feeds]
    if o.check.measure and written is not None:
        setup.clock("measure")
        seconds, least = SECONDS * o.speed.repeat, LEAST_ROUNDS if o.timed else MIN_ROUNDS
        timing = partial(
            latencies, setup.original.model, written, pairs, o.check.threads, seconds=seconds, least=least
        )  # fmt: skip
        times, more = told("latency not measured", timing, notes) or ({}, [])
        notes += more
        by_node = partial(times_of_nodes, setup.original.model, written, pairs, times)
        calls = told("layers not timed", by_node, notes) or calls
    before = Cost(
        round(setup.costs.parameters(whole)) + stored_more(analysis.model), round(setup.costs.macs(whole)),
        file_bytes(setup.original.model, setup.original.model.path), times.get("before"),
        energy(setup, setup.original.model, whole, notes),
        memory(setup, setup.original.model, whole, [before for before, _ in pairs], notes),
    )  # fmt: skip
    counted = told("parameters counted as of the cut", partial(parameters_of, setup, pruning), notes)
    after = Cost(
        round(setup.costs.parameters(pruning.keep)) if counted is None else counted,
        round(setup.costs.macs(pruning.keep)),
        None if pruning.model is None else file_bytes(pruning.model, None), times.get("after"),
        energy(setup, pruning.model, pruning.keep, notes),
        memory(setup, pruning.model, pruning.keep, [after for _, after in pairs], notes),
    )  # fmt: skip
    kinds = {analysis.group(name).kind for name in plan.keep} | set(o.kinds)
    groups = [g for g in analysis.groups if g.kind in kinds]
    others = [g for g in analysis.groups if g.kind not in kinds]
    measured = shares(before, after)
    if o.speed.elsewhere:  # the times here are of no interest
        measured.pop(LATENCY, None)
    got = got_of(setup, pruning, measured, verdict)
    notes += notes_of(setup, pruning, close) + worth(before, after, cut=bool(plan.keep), sparsity=outcome)
    layers = told("layers not counted", partial(layers_of, setup.original.model, pruning, calls), notes)
    return Report(
        model=str(setup.original.model.path or ""), output="", before=before, after=after,
        groups=tuple(
            GroupReport(g.name, g.kind, g.size, int(plan.keep.get(g.name, np.ones(g.size)).sum()), g.nodes)
            for g in groups
        ),
        left_alone={k: sum(g.kind == k for g in others) for k in dict.fromkeys(g.kind for g in others)},
        pinned=analysis.pinned, verification=checked, notes=tuple(notes), seconds={}, sparsity=outcome,
        codebooks=pruning.codebooks, learning=setup.learning, tuning=pruning.tuning,
        fidelity=close, evaluation=verdict, fits=pruning.fits,
        search=pruning.tried, recipe=setup.recipe,
        calibration=None if setup.data is None else setup.data.samples.description,
        version=__version__, asked=o.asked, got=tuple(got), cache=cache_of(setup, chooser, pruning),
        layers=layers or (), levels=() if chooser is None else levels_of(chooser, plan.keep),
    )  # fmt: skip


def energy(setup: Setup, model: Model | None, keep: Keep, notes: list[str]) -> Energy | None:
    """Of one run of a model with what is kept, where that was asked for; a line more in the notes where it cannot be
    said."""
    if model is None or "energy" not in setup.options.reported:
        return None
    count = partial(energy_of, model, setup.tables.energy, setup.analysis.input_shapes(keep))
    return told("energy not counted", count, notes)


def memory(setup: Setup, model: Model | None, keep: Keep, guesses: Sequence[Feeds], notes: list[str]) -> Peak | None:
    """The peak of one run of a model with what is kept, where that was asked for: counted, and measured on the first of
    these inputs; a line more in the notes for what cannot be said."""
    if model is None or "memory" not in setup.options.reported:
        return None
    peak = told("peak memory not counted", partial(peak_of, model, setup.analysis.input_shapes(keep)), notes)
    if peak is None or setup.dry or not setup.options.check.measure or not guesses:
        return peak
    setup.clock("measure")
    measure = partial(peak_of_run, model, guesses[0], setup.options.check.threads)
    measured, note = told("peak memory not measured", measure, notes) or (None, "")
    notes += [note] if note else []
    return replace(peak, measured=measured)


def shares(before: Cost, after: Cost) -> dict[str, float]:
    """Budget -> figure of the written file over the original's, of those that are told by the file."""
    then, now = figures_of(before), figures_of(after)
    out = {name: now[name] / then[name] for name in then.keys() & now.keys()}
    return out if after.latency is None else {**out, LATENCY: after.latency.ratio}


def figures_of(cost: Cost) -> dict[str, float]:
    """Budget -> what a file uses of it, as far as the file tells."""
    figures = {
        "bytes": cost.bytes, "energy": None if cost.energy is None else cost.energy.joules,
        "memory": None if cost.memory is None else cost.memory.bytes,
    }  # fmt: skip
    return {name: x for name, x in figures.items() if x is not None}


def cache_of(setup: Setup, chooser: Chooser | None, pruning: Pruning) -> str | None:
    """What the cache was good for; None where there is none."""
    lines, outcome = [], pruning.sparsity
    if chooser is not None and chooser.cached is not None:
        lines.append("level database " + ("taken from the cache" if chooser.cached else "kept for later"))
    if setup.spec.cache is not None and outcome is not None and outcome.solved:
        lines.append(f"{len(outcome.solved)} sparse layers kept in the cache, or taken from it")
    if setup.options.data.cache is not None and pruning.tuning is not None:
        lines.append("the state of tuning kept in the cache, or taken from it")
    return "; ".join(lines) or None


def got_of(setup: Setup, pruning: Pruning, measured: Mapping[str, float], verdict: Drop | None) -> list[Got]:
    """Asked and got, side by side; measured: of the budgets what is left; verdict: of the search."""
    o, outcome = setup.options, pruning.sparsity
    whole = setup.analysis.keep_ids({})
    named = [*ignored(o, setup.analysis)[0], *(glob for glob, _ in o.cuts)]
    got = cut_got(setup.analysis, o.cut.amounts, o.cut, dict(pruning.plan.keep), named, targeted=o.targeted)
    lone = len(o.cut.targets) == 1 and o.scoring.max_drop is None and not (outcome or pruning.codebooks or o.cuts)
    lone = lone and all(amount == "auto" for amount in o.amounts.values())
    got += targets_got(o.cut, setup.meters, whole, pruning.keep, measured=measured, lone=lone)
    got += [ratio_got(setup.analysis, glob, r, dict(pruning.plan.keep)) for glob, r in o.cuts]
    if outcome is not None and o.sparse:
        got.append(zeros_got(setup, outcome, clustered=pruning.codebooks is not None))
    if verdict is not None and o.scoring.max_drop is not None:
        got.append(Got("--max-drop", o.scoring.max_drop, verdict.drop, f"of {verdict.metric} lost"))
    return got


def zeros_got(setup: Setup, outcome: Sparsity, *, clustered: bool) -> Got:
    """The row of zeros, with what holds where they are others than asked."""
    o = setup.options
    share = outcome.zeros / max(outcome.size, 1)
    pattern = o.zeros.shape
    ratio = o.zeros.sparsity if o.zeros.sparsity is not None else getattr(pattern, "ratio", None)
    names = [name for name in ("sparsity", "pattern", "quality") if getattr(o.zeros, name) is not None] or ["ratio"]
    asked = getattr(o.zeros, names[0], None) if names[0] != "ratio" else "sparsity:..."
    there, counted = {x.weight: x.zeros for x in present(setup.original.model)}, {x.weight for x in outcome.layers}
    before = sum(there.get(weight, 0) for weight in counted) / max(outcome.size, 1)
    causes = []
    if ratio == 0:
        causes.append("no weight was to become zero")
    elif ratio is not None and abs(share - float(ratio)) > CLOSE:
        if before > float(ratio):
            causes.append(f"{before:.1%} were zero already")
        if o.cut.ignore or o.spec.ratio:
            causes.append("layers that --ignore or --ratio names are others")
        if isinstance(pattern, BlockPattern):
            causes.append("tiles go as a whole")
        if clustered:
            causes.append("clustering made some of the smallest zero")
    return Got(f"--{names[0]}", asked, share, "% of the weights are zero", "; ".join(causes))


def notes_of(setup: Setup, pruning: Pruning, close: Fidelity | None) -> list[str]:
    """What a reader should know of the cut."""
    notes = []
    plan, o = pruning.plan, setup.options
    solved = needs_data((plan.sparsity or {}).get("solver", ""))
    worked = solved or o.store.cluster is not None or pruning.tuning is not None
    if setup.recorded is not None and (RECOVERIES[plan.recover].needs_data or worked):
        then = dict(setup.recorded.settings.get("calibration") or {})
        now = {} if setup.data is None else recorded_samples(setup.data, setup.recipe)
        if then.get("digest") != now.get("digest") or then.get("ridge") != now.get("ridge"):
            notes.append(
                f"the plan was made with {then.get('description', 'no data')}, now it is "
                f"{now.get('description', 'no data')}: the recovered weights differ"
            )
    if any(setup.analysis.group(name).kind == "hidden" for name in plan.keep):
        notes.append("streams became narrower: normalisations count what is left, so that the whole model changes")
    if close is not None and close.costly and not o.targeted and plan.keep:
        notes.append(
            "this cut costs much: --target-macs 70% cuts where it hurts least, and --max-drop 0.01 --evaluate SRC "
            "finds out how far one can go"
        )
    return notes


def parameters_of(setup: Setup, pruning: Pruning) -> int:
    """Trained numbers of the model that is written, biases that compensate among them."""
    analysis, recovered = setup.analysis, pruning.recovered
    if recovered is None:
        return round(setup.costs.parameters(pruning.keep))
    if any(not pruning.keep[b.gate].any() for b in analysis.blocks):
        again = analyze(recovered)  # also what several blocks shared
        return round(again.costs().parameters(again.keep_ids({}))) + stored_more(recovered)
    new = sum(w.size for n, w in recovered.weights.items() if n not in analysis.model.weights and trained(w))
    return round(setup.costs.parameters(pruning.keep)) + new + stored_more(recovered)


def folded(model: Model) -> list[str]:
    """Which weights that nodes computed of constants the file holds as constants now, since they or these changed."""
    back = intact(model.weights, model.folds)
    gone = [name for name in model.folds if name in model.weights and name not in back]
    if not gone:
        return []
    count = len({node.output[0] for name in gone for node in model.folds[name].nodes})
    what = "1 weight is a constant" if len(gone) == 1 else f"{len(gone)} weights are constants"
    some = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
    nodes = "1 node" if count == 1 else f"{count} nodes"
    return [f"{what} that {nodes} computed of others before ({some})"]


def stored_more(model: Model) -> int:
    """Trained numbers that the file stores where weights are folded, less those that it computes of them."""
    stored, folded = unfolded(model).weights, model.weights
    return sum(w.size for n, w in stored.items() if n not in folded and trained(w)) - sum(
        w.size for n, w in folded.items() if n not in stored
    )
