"""The recipe: load, analyze, score, allocate, cut, recover, verify, measure; saving and showing are the caller's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.allocation import ROUND_TO, Keeps, matches
from onnxprune.calibrated import (
    ALLOCATIONS,
    IMPORTANCES,
    RECOVERIES,
    SPREADING,
    SYNTHETIC,
    WITH_DATA,
    Fidelity,
    calibration_of,
    describe,
    estimate,
    fidelity,
    needs_data,
    recipe,
    recovered,
    scarce,
    total_macs,
    wants_synthetic,
)
from onnxprune.calibration.data import Calibration
from onnxprune.calibration.images import Preprocess
from onnxprune.calibration.samples import read
from onnxprune.choosing import Amount, Builder, Target, kind_of, kinds_of, nothing_found, option, parse_target
from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.evaluation import METRICS, Drop, Evaluator, Function, default_metric, drop, is_function
from onnxprune.graph.cost import CostModel, trained
from onnxprune.graph.io import Model, load, save, weight_bytes
from onnxprune.graph.runtime import Feeds, Latency, latency, random_feeds, too_large
from onnxprune.graph.shapes import concrete_inputs, graph_inputs
from onnxprune.importance.data import MEASURES
from onnxprune.plan import Plan
from onnxprune.progress import Clock, Progress, counting, silent
from onnxprune.recovery.least_squares import LayerFit
from onnxprune.report import Cost, GroupReport, Report
from onnxprune.sparsity.check import running
from onnxprune.sparsity.cluster import Codebooks, codebooks
from onnxprune.sparsity.solve import Data as SolveData
from onnxprune.sparsity.stage import Sparsity, Wanted, layer_names, matching, sparsify
from onnxprune.sparsity.survey import curvatures
from onnxprune.structure.groups import Analysis, ChannelGroup, Keep, analyze
from onnxprune.structure.surgery import prune_model, slice_weights
from onnxprune.structure.verify import Verification, check_file, check_recovered, shrunk
from onnxprune.structure.verify import verify as check_law

MEMORY = 2e9  # bytes for activations


@dataclass(frozen=True, eq=False)
class Result:
    """model: the pruned model, None after a dry run; plan: what was kept; report: what was gained and what it cost."""

    model: Model | None
    plan: Plan
    report: Report
    analysis: Analysis

    def save(self, path: str | os.PathLike[str]) -> Report:
        """Write the pruned model, atomically; the report then names the file and its size.

        Raises `OptionError` after a dry run, `ModelFileError` where the file cannot be written.
        """
        if self.model is None:
            raise OptionError("a dry run has no model to save")
        save(self.model, path)
        after = replace(self.report.after, bytes=file_bytes(self.model, Path(path)))
        return replace(self.report, output=str(path), after=after)


def prune(
    source: Any,
    *,
    channels: Amount | None = None,
    heads: Amount | None = None,
    head_dim: Amount | None = None,
    hidden: Amount | None = None,
    layers: Amount | None = None,
    experts: Amount | None = None,
    whole_layers: bool = False,
    sparsity: float | None = None,
    pattern: str | None = None,
    quality: float | None = None,
    ratio: Mapping[str, float] | Sequence[tuple[str, float]] = (),
    ignore: Sequence[str] = (),
    format: str = "auto",
    values: str = "float32",
    cluster: int | None = None,
    cluster_per: str = "tensor",
    cluster_storage: str = "auto",
    solver: str | None = None,
    sparsity_allocate: str | None = None,
    permute: bool = True,
    importance: str | None = None,
    allocate: str | None = None,
    round_to: int = ROUND_TO,
    max_ratio: float | None = None,
    target_macs: Target | None = None,
    target_params: Target | None = None,
    target_bytes: Target | None = None,
    steps: int = 1,
    recover: str | None = None,
    calibration: Any = None,
    samples: int | None = None,
    preprocess: Preprocess | None = None,
    augment: bool = False,
    memory: float = MEMORY,
    cache: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    evaluate: Any = None,
    labels: Any = None,
    metric: str | None = None,
    max_drop: float | None = None,
    input_shape: Mapping[str, tuple[int, ...]] | None = None,
    allow_io_change: bool = False,
    plan: Plan | str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    verify: bool = True,
    measure: bool = True,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Result:
    """Remove channels, heads, streams, blocks, structurally; then make weights sparse.

    source: path, bytes, `ModelProto`, graphsurgeon `Graph` or `Model`; it is not changed.
    channels: fraction of the units of every group that is removed (channels, filters, neurons, feed-forward and
    recurrent widths); "auto": whatever a target needs. heads: attention heads; head_dim: dimensions inside them;
    hidden: width of streams that are normalised; layers: residual blocks, or with `whole_layers` attention and
    feed-forward together; experts: of mixtures.
    sparsity: fraction of the weights of every MatMul, Gemm and Conv that becomes zero; pattern: "2:4" keeps 2 of every
    4 consecutive ones; quality: weights below so many standard deviations of their layer become zero.
    solver: which weights stay, and with which values; None is the best that the data allow: "admm" with, "magnitude"
    without. sparsity_allocate: uniform, global, erk, lamp, and with data owl and error, the default there.
    permute: reorder channels so that N:M loses less.
    format: what stores them: "auto" measures, "dense", "csr", "nm" (operators of ours), "sparse-initializer".
    values: type of the values in operators of ours: float32, bfloat16, float16, or int8 with a scale per row.
    cluster: every weight becomes one of so many values, 2 to 256, stored as indices into a codebook, per "tensor" or
    "channel"; cluster_storage: "auto", "uint8", "packed", "uint4" (opset 21).
    ratio: glob -> fraction, for the groups or layers that it matches (last match wins); a prefix says which, as
    "channels:layer4*" or "sparsity:fc*", and is needed where both are asked for. ignore: globs that stay.
    target_macs, target_params, target_bytes: what is left, as a fraction, "70%" or an absolute "300M".
    steps: cut, score again, cut. max_ratio: most that is removed of a group (default 0.8 for targets and `global`).
    allow_io_change: heads in inputs and outputs (key-value caches) may shrink.
    calibration: unlabelled samples: a path, arrays by input name, an iterable of feeds, "synthetic"; None makes up
    images where the input looks like one, unless `recover` is "none" or "bias". samples, preprocess, augment: how many,
    what images become, crops and flips. memory: bytes for activations; cache: folder for the level database.
    importance, allocate, recover: None is the best that the data allow: "obs", "kl" under a target and
    "least-squares" with data, "path", "uniform" and "bias" without.
    evaluate: labelled or unlabelled samples, or "module:function"; metric: top1, top5, agreement or mse.
    max_drop: the smallest model whose metric falls by at most so much.
    plan: replay a plan; nothing else is chosen then. verify: check that pruned equals masked.
    measure: latency of both models, on `threads` intra-op threads (0: onnxruntime's default).

    Raises `OptionError`, `ModelFileError`, `NothingToPrune` (the user's side), `VerificationError` (ours).
    """
    pairs = list(ratio.items()) if isinstance(ratio, Mapping) else list(ratio)
    targets = {"macs": target_macs, "params": target_params, "bytes": target_bytes}
    targeted = any(t is not None for t in targets.values()) or max_drop is not None
    given = {
        "channels": channels, "heads": heads, "head_dim": head_dim, "hidden": hidden, "layers": layers,
        "experts": experts,
    }  # fmt: skip
    amounts: dict[str, Amount] = {kind: amount for kind, amount in given.items() if amount is not None}
    structural = bool(amounts) or targeted
    sparse = any(x is not None for x in (sparsity, pattern, quality))
    cuts, zeros = _by_mode(pairs, structural, sparse)
    structural = structural or bool(cuts)
    if targeted and not amounts:
        amounts["channels"] = "auto"
    for kind, amount in amounts.items():
        if amount != "auto" and (isinstance(amount, bool) or not isinstance(amount, Real)):
            raise OptionError(f"{option(kind)} {amount!r}: expected a fraction in [0, 1) that is removed, or auto")
    if amounts.get("layers") == "auto" and not targeted:
        raise OptionError("--layers auto needs a target: --target-macs, --target-params or --target-bytes")
    if allow_io_change and evaluate is not None and not is_function(evaluate):
        raise OptionError(
            "--evaluate scores models that take the same inputs; with --allow-io-change give module:function"
        )
    kinds = kinds_of(amounts, cuts)
    wanted = Wanted(
        sparsity, pattern, quality, zeros, (), sparsity_allocate, solver, format, values=values, permute=permute,
        cache=None if cache is None else Path(cache), seed=seed,
    )  # fmt: skip
    _check_options(
        importance, allocate, recover, round_to, max_ratio, steps, seed, threads, metric, max_drop, evaluate, jobs,
        memory,
    )  # fmt: skip
    wanted.check()
    asked = structural or wanted.asked or cluster is not None
    if plan is None and not asked:
        raise OptionError(
            "nothing to do: say how much with --channels 0.3, --heads 0.25, --layers 0.1, --target-macs 70%, "
            "--max-drop 0.01, --sparsity 0.8, --pattern 2:4, --cluster 16, --ratio or --plan"
        )
    if plan is not None and (asked or ignore or format != "auto"):
        raise OptionError("--plan replays what was chosen before; leave out --channels, --sparsity, --ratio, --ignore, "
                          "--format and targets")  # fmt: skip
    for what, value, default in (
        ("solver", solver, None), ("sparsity-allocate", sparsity_allocate, None), ("values", values, "float32"),
    ):  # fmt: skip
        if value != default and not wanted.asked:
            raise OptionError(f"--{what} {value} is for sparse weights; ask for some with --sparsity 0.8")
    if cluster is None and (cluster_per, cluster_storage) != ("tensor", "auto"):
        raise OptionError("--cluster-per and --cluster-storage need --cluster K")
    if cluster is not None and wanted.asked and plan is None:
        if values != "float32":
            raise OptionError(f"--values {values} is for sparse operators, and --cluster stores dense weights")
        if format not in ("auto", "dense"):
            raise OptionError(f"--cluster stores dense weights, zeros among them; leave out --format {format}")
        wanted = replace(wanted, format="dense")
    if format != "auto" and plan is None and not wanted.asked:
        raise OptionError(f"--format {format} stores sparse weights; ask for some with --sparsity 0.8 or --pattern 2:4")

    clock = Clock(progress)
    clock("load")
    model = load(source)
    clock("analyze")
    if plan is not None:
        then = dict(plan.settings) if isinstance(plan, Plan) else Plan.settings_in(Path(plan))
        allow_io_change = allow_io_change or bool(then.get("allow_io_change"))
        whole_layers = whole_layers or bool(then.get("whole_layers"))
    analysis = analyze(
        model, dict(input_shape) if input_shape else None, allow_io_change=allow_io_change, whole_layers=whole_layers
    )
    costs = analysis.costs()
    groups = [g for g in analysis.groups if g.kind in kinds]
    for kind in amounts:
        if not analysis.of_kind(kind):
            raise NothingToPrune(nothing_found(analysis, [kind]))
    if structural and not groups:
        raise NothingToPrune(nothing_found(analysis, kinds))
    chosen: Plan | None = None
    if plan is not None:
        chosen = plan if isinstance(plan, Plan) else Plan.load(Path(plan), analysis)
        then = dict(chosen.settings.get("cluster") or {})
        cluster, cluster_per, cluster_storage = (
            then.get("k", cluster), then.get("per", cluster_per), then.get("storage", cluster_storage)
        )  # fmt: skip
        wanted = replace(wanted, recorded=chosen.sparsity)
        importance, allocate, recover = "path", "uniform", chosen.recover
        recorded = dict(chosen.settings.get("calibration") or {})
        if calibration is None and recorded.get("synthetic"):
            calibration = SYNTHETIC
        samples = samples or recorded.get("samples")
        seed = int(chosen.settings.get("seed", seed))
    cutting = structural if chosen is None else bool(chosen.keep)
    data, notes = _data(
        analysis, costs, cutting, wanted, calibration, importance, allocate, recover, samples=samples,
        preprocess=preprocess, augment=augment, memory=memory, threads=threads, jobs=jobs, seed=seed, clock=clock,
    )  # fmt: skip
    sort = None if data is None else "synthetic" if data.synthetic else "real"
    how = recipe(importance, allocate, recover, data=sort, targeted=targeted)
    if amounts.get("layers") == "auto" and (data is None or how.allocate not in SPREADING):
        raise OptionError(
            "--layers auto weighs blocks against widths by what the outputs suffer: give --calibration SRC, and "
            "leave --allocate at kl"
        )
    if steps > 1 and how.importance in MEASURES:
        raise OptionError(f"--steps {steps}: scores again by weights; with --importance {how.importance} leave it out")
    judge = _judge(model, evaluate, labels, metric, preprocess, threads, seed) if evaluate is not None else None
    if data is not None:
        notes += scarce(data)
        seconds = estimate(analysis, data, len(groups), levels=how.allocate in SPREADING and plan is None)
        clock.note(f"{describe(data)}; about {seconds:.0f} s" + (
            "; --recover none is instant" if calibration is None else ""))  # fmt: skip

    clock("plan")
    notes += [*model.notes, *(f"shape not inferred: {n}" for n in analysis.notes[:5])]
    whole = np.ones(analysis.coupling.size, bool)
    measures = {"macs": costs.macs, "params": costs.parameters, "bytes": costs.bytes}
    limits = {k: parse_target(f"--target-{k}", t, measures[k](whole)) for k, t in targets.items() if t is not None}
    builder = Builder(
        analysis, costs, groups, how, data, clock, round_to=round_to, max_ratio=max_ratio, steps=steps, seed=seed,
        cache=None if cache is None else Path(cache),
    )  # fmt: skip
    verdict: Drop | None = None
    settings: dict[str, Any] = {
        "importance": how.importance, "allocate": how.allocate, "round_to": round_to, "steps": steps, "seed": seed,
        "allow_io_change": allow_io_change, "whole_layers": whole_layers,
    }  # fmt: skip
    if cluster is not None:
        settings["cluster"] = {"k": cluster, "per": cluster_per, "storage": cluster_storage}
    if data is not None:
        settings["calibration"] = {
            "digest": data.samples.digest, "description": data.samples.description, "samples": data.samples.count,
            "synthetic": data.synthetic, "ridge": how.ridge,
        }  # fmt: skip
    if chosen is None:
        spared, ignored = _ignored(model, groups, ignore, structural, wanted.asked)
        wanted = replace(wanted, ignore=ignored)
        keeps: Keeps = {}
        if max_drop is not None:
            assert judge is not None
            keeps, verdict = builder.within(max_drop, judge, amounts, cuts, spared, limits)
            notes.append(
                f"--max-drop {max_drop:g}: {costs.macs(analysis.keep_ids(keeps)) / costs.macs(whole):.0%} of the MACs"
            )
        elif structural:
            keeps = builder.choose(amounts, cuts, spared, limits)
        notes += builder.notes
        chosen = Plan({k: v for k, v in keeps.items() if not v.all()}, how.recover, settings)
    else:
        notes += _differs(chosen, settings)
    cut_kinds = {analysis.group(name).kind for name in chosen.keep}
    groups = [g for g in analysis.groups if g.kind in cut_kinds.union(kinds)]
    if "hidden" in cut_kinds:
        notes.append("streams became narrower: normalisations count what is left, so that the whole model changes")
    keep = analysis.keep_ids(dict(chosen.keep))
    pruned: Model | None = None
    checked: Verification | None = None
    outcome: Sparsity | None = None
    close: Fidelity | None = None
    fits: tuple[LayerFit, ...] = ()
    times: dict[str, Latency] = {}
    if not chosen.keep and (wanted.asked or cluster is not None):
        pruned = model
    elif not dry_run or wanted.asked or cluster is not None:
        clock("cut")
        sliced = slice_weights(analysis, keep)
        plain = prune_model(analysis, keep, sliced=sliced)
        why = too_large([model]) if verify else ""
        if why:
            notes.append(f"not verified: {why}; the shapes of all nodes were checked")
            notes += check_file(model, plain, allowed=lambda info: shrunk(analysis, keep, info))
        elif verify:
            clock("verify")
            checked = check_law(analysis, keep, plain, input_shapes=input_shape, seed=seed)
        if how.recover != "none":
            clock("recover")
        pruned, fits, more = recovered(
            analysis, keep, plain, sliced, how.recover, data, ridge=how.ridge, progress=clock.progress
        )
        notes += more
        if pruned is not plain and checked is not None:
            check_recovered(analysis, keep, pruned, checked)
    new = () if pruned is None else (w for n, w in pruned.weights.items() if n not in model.weights)
    added = sum(w.size for w in new if trained(w))  # biases that compensate
    known, guesses = None, [analysis.narrow(feeds, keep) for feeds in _feeds(analysis, checked, input_shape, seed)]
    if data is not None:
        known = solve_data(analysis, keep, data)
    if wanted.asked and pruned is not None:
        clock("sparsify")
        wanted = replace(wanted, recover=how.recover == "least-squares", seed=seed)
        pruned, outcome, more = sparsify(
            pruned, wanted, guesses, verify=verify, threads=threads, dry_run=dry_run, data=known, progress=progress
        )
        chosen = replace(chosen, sparsity=outcome.to_plan())
        notes += more
    books: Codebooks | None = None
    if cluster is not None and pruned is not None:
        clock("cluster")
        how_much = (
            None if known is None else curvatures(pruned, known, seed=seed, progress=counting(progress, "survey"))
        )
        pruned, books, more = codebooks(pruned, cluster, cluster_per, cluster_storage, how_much, progress)
        notes += more
        if verify:
            running(pruned, guesses, measured=False)
    if pruned is not None and not dry_run and (data is not None or judge is not None):
        clock("compare")
        if data is not None:
            close = fidelity(analysis, keep, pruned, data)
            if close.costly and not targeted and chosen.keep:
                notes.append(
                    "this cut costs much: --target-macs 70% cuts where it hurts least, and --max-drop 0.01 --evaluate "
                    "SRC finds out how far one can go"
                )
        if judge is not None and verdict is None:
            verdict = drop(judge(model), judge(pruned))
    if dry_run:
        pruned = None
    elif measure and pruned is not None:
        clock("measure")
        guesses = _feeds(analysis, checked, input_shape, seed)
        times, problem = _measure(
            analysis, pruned, [(feeds, analysis.narrow(feeds, keep)) for feeds in guesses], threads
        )
        notes += problem or _slower(times, groups, chosen, outcome)
    clock("")
    report = _report(
        analysis, groups, costs, chosen, keep, pruned, checked, outcome, added, times, notes, clock.seconds
    )
    report = replace(
        report, fidelity=close, evaluation=verdict, fits=fits, recipe=how, codebooks=books,
        calibration=None if data is None else data.samples.description,
    )  # fmt: skip
    return Result(pruned, chosen, report, analysis)


def _data(
    analysis: Analysis,
    costs: CostModel,
    cutting: bool,
    wanted: Wanted,
    calibration: Any,
    importance: str | None,
    allocate: str | None,
    recover: str | None,
    *,
    clock: Clock,
    **options: Any,
) -> tuple[Calibration | None, list[str]]:
    """The samples to calibrate on, None where none are needed or can be had; and a note."""
    model = analysis.model
    if not cutting and not wanted.asked and calibration is None:
        return None, []
    option = wanted.needs_data
    if calibration is None:
        option = needs_data(importance, allocate, recover) * cutting or option
        if not cutting or not wants_synthetic(model, importance, allocate, recover):
            if option:
                raise OptionError(
                    f"{option} needs data: --calibration FOLDER with a few hundred samples, or --calibration synthetic"
                )
            return None, []
    clock("calibration")
    known = analysis.coupling.shapes.shapes
    shapes = {
        i.name: tuple(d for d in known[i.name] if d is not None)
        for i in graph_inputs(model)
        if None not in known.get(i.name, (None,))
    }
    try:
        source = SYNTHETIC if calibration is None else calibration
        return calibration_of(source, model, total_macs(costs), shapes=shapes, **options), []
    except OptionError as e:
        if calibration is not None or option:
            raise
        return None, [f"biases alone were compensated: made-up images do not suit the model ({e})"]


def solve_data(analysis: Analysis, keep: Keep, data: Calibration) -> SolveData:
    """The samples as the model takes them after the cut, in two parts that allocators tell apart."""
    learn, away = data.held_out()
    parts = [[analysis.narrow(feeds, keep) for feeds in data.runs(which)] for which in (None, learn, away)]
    return SolveData(
        parts[0], data.memory, data.threads, data.samples.digest, learn=parts[1], held_out=parts[2], unseen=len(away)
    )


def _judge(
    model: Model, evaluate: Any, labels: Any, metric: str | None, preprocess: Preprocess | None, threads: int, seed: int
) -> Evaluator | Function:
    """What scores models on the user's data."""
    if is_function(evaluate):
        return Function(evaluate)
    samples = read(
        evaluate, model, preprocess=preprocess or Preprocess(), labels=labels, seed=seed, option="--evaluate"
    )
    return Evaluator(model, samples, metric or default_metric(model, samples), threads=threads)


def _differs(plan: Plan, settings: Mapping[str, Any]) -> list[str]:
    """One line where a plan is replayed on other data than it was made with."""
    if plan.recover not in WITH_DATA:
        return []
    then, now = (dict(s.get("calibration") or {}) for s in (plan.settings, settings))
    if then.get("digest") == now.get("digest") and then.get("ridge") == now.get("ridge"):
        return []
    return [
        f"the plan was made with {then.get('description', 'no data')}, now it is {now.get('description', 'no data')}: "
        f"the recovered weights differ"
    ]


def _check_options(
    importance: str | None,
    allocate: str | None,
    recover: str | None,
    round_to: int,
    max_ratio: float | None,
    steps: int,
    seed: int,
    threads: int,
    metric: str | None,
    max_drop: float | None,
    evaluate: Any,
    jobs: int,
    memory: float,
) -> None:
    for what, value, allowed in (
        ("importance", importance, IMPORTANCES),
        ("allocate", allocate, ALLOCATIONS),
        ("recover", recover, RECOVERIES),
        ("metric", metric, METRICS),
    ):
        if value is not None and value not in allowed:
            raise OptionError(f"--{what} {value}: unknown; choose one of {', '.join(allowed)}")
    if round_to < 1:
        raise OptionError(f"--round-to {round_to}: must be 1 (off) or more")
    if max_ratio is not None and not 0 < max_ratio < 1:
        raise OptionError(f"--max-ratio {max_ratio:g} is not a fraction in (0, 1)")
    for name, given in (("seed", seed), ("threads", threads)):
        if given < 0:
            raise OptionError(f"--{name} {given}: must be 0 or more")
    if jobs < 1 or jobs * max(threads, 1) > (os.cpu_count() or 1):
        raise OptionError(f"--jobs {jobs}: jobs times --threads must be 1 to {os.cpu_count()}, the number of cores")
    if memory <= 0:
        raise OptionError(f"--memory {memory:g}: must be above 0 bytes")
    if steps < 1:
        raise OptionError(f"--steps {steps}: must be 1 or more")
    if max_drop is not None and not 0 < max_drop < 1:
        raise OptionError(f"--max-drop {max_drop:g}: expected a fraction above 0, 0.01 is one point")
    if max_drop is not None and evaluate is None:
        raise OptionError("--max-drop needs --evaluate SRC: labelled samples, or module:function")


def _by_mode(
    pairs: Sequence[tuple[str, float]], structural: bool, sparse: bool
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Ratios for channels and for sparsity; without a prefix, those of the one mode that is on."""
    zeros = "sparsity:"
    named = [glob.startswith(zeros) for glob, _ in pairs]
    removed = structural or any(kind_of(glob) for glob, _ in pairs)
    zeroed = sparse or any(named)
    cuts, zero = [], []
    for (glob, r), of_zeros in zip(pairs, named, strict=True):
        plain = not of_zeros and not kind_of(glob)
        if plain and removed and zeroed:
            raise OptionError(
                f"--ratio {glob}={r:g}: channels are removed and weights made sparse; say which with "
                f"channels:{glob} or sparsity:{glob}"
            )
        if of_zeros or (plain and zeroed):
            zero.append((glob.removeprefix(zeros), r))
        else:
            cuts.append((glob, r))
    return cuts, zero


def _ignored(
    model: Model, groups: Sequence[ChannelGroup], ignore: Sequence[str], structural: bool, sparse: bool
) -> tuple[list[str], list[str]]:
    """Globs that spare groups and those that spare layers; where both are asked for, either match will do."""
    if not (structural and sparse):
        return list(ignore) if structural else [], list(ignore) if sparse else []
    names = layer_names(model)
    of_groups = [glob for glob in ignore if any(matches(g, glob) for g in groups)]
    of_layers = [glob for glob in ignore if matching(names, glob)]
    return of_groups + [glob for glob in ignore if glob not in {*of_groups, *of_layers}], of_layers


def _feeds(
    analysis: Analysis, checked: Verification | None, input_shape: Mapping[str, tuple[int, ...]] | None, seed: int
) -> list[Feeds]:
    """Inputs to try: those that the check ran with, else the guesses for dynamic axes."""
    if checked is not None:
        return [checked.feeds]
    original = analysis.model
    return [
        random_feeds(original, analysis.coupling.shapes, shapes, seed=seed)
        for shapes in concrete_inputs(original, input_shape)
    ]


def _measure(
    analysis: Analysis, pruned: Model, guesses: Sequence[tuple[Feeds, Feeds]], threads: int
) -> tuple[dict[str, Latency], list[str]]:
    original = analysis.model
    problem = too_large([original, pruned])
    if problem:
        return {}, [f"latency not measured: {problem}"]
    for before, after in guesses:
        try:
            models, feeds = {"before": original, "after": pruned}, {"before": before, "after": after}
            return latency(models, feeds, threads=threads), []
        except Exception as e:  # onnxruntime's exceptions share no base class
            problem = problem or " ".join(str(e).split())[:120]
    return {}, [f"latency not measured: onnxruntime cannot run the model ({problem})"]


def _slower(
    times: Mapping[str, Latency], groups: Sequence[ChannelGroup], plan: Plan, outcome: Sparsity | None
) -> list[str]:
    """A word where the smaller model is not the faster one, and the usual cause."""
    if not times or times["after"].median <= times["before"].median:
        return []
    if outcome is not None and outcome.format in ("csr", "nm"):
        return ["the sparse model is not faster here; --format auto keeps layers dense where that is faster"]
    if not plan.keep:
        return []
    odd = [g for g in groups if g.name in plan.keep and int(plan.keep[g.name].sum()) * g.width % 8]
    cause = f"; {len(odd)} groups have a width that is no multiple of 8, try a larger cut" if odd else ""
    return [f"the pruned model is not faster here{cause}"]


def file_bytes(model: Model, path: Path | None) -> int:
    """Size on disk with external data, in bytes; of what would be written where there is no file."""
    if path is None or not path.is_file():
        return int(model.proto.ByteSize()) + weight_bytes(model)
    return path.stat().st_size + (weight_bytes(model) if model.external else 0)


def _report(
    analysis: Analysis,
    mine: Sequence[ChannelGroup],
    costs: CostModel,
    plan: Plan,
    keep: Keep,
    pruned: Model | None,
    checked: Verification | None,
    outcome: Sparsity | None,
    added: int,
    times: Mapping[str, Latency],
    notes: Sequence[str],
    seconds: Mapping[str, float],
) -> Report:
    whole = np.ones(analysis.coupling.size, bool)
    model = analysis.model
    before = Cost(
        round(costs.parameters(whole)), round(costs.macs(whole)), file_bytes(model, model.path), times.get("before")
    )
    after_bytes = file_bytes(pruned, None) if pruned is not None else None
    parameters = round(costs.parameters(keep)) + added
    if pruned is not None and any(not keep[b.gate].any() for b in analysis.blocks):  # also what several blocks shared
        cut = analyze(pruned)
        parameters = round(cut.costs().parameters(np.ones(cut.coupling.size, bool)))
    after = Cost(parameters, round(costs.macs(keep)), after_bytes, times.get("after"))
    groups = tuple(
        GroupReport(g.name, g.kind, g.size, int(plan.keep[g.name].sum()) if g.name in plan.keep else g.size, g.nodes)
        for g in mine
    )
    others = [g for g in analysis.groups if g not in mine]
    left = {k: sum(g.kind == k for g in others) for k in dict.fromkeys(g.kind for g in others)}
    return Report(
        str(model.path) if model.path else "", "", before, after, groups, left, analysis.pinned, checked, tuple(notes),
        dict(seconds), outcome,
    )  # fmt: skip
