"""The recipe: load, analyze, score, allocate, cut, recover, verify, measure; saving and showing are the caller's."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxprune.allocation import ALLOCATORS, MAX_RATIO, ROUND_TO, Keeps, matches, ratios, search
from onnxprune.allocation.levels import Levels
from onnxprune.calibrated import (
    ALLOCATIONS,
    IMPORTANCES,
    RECOVERIES,
    SPREADING,
    SYNTHETIC,
    WITH_DATA,
    Fidelity,
    Recipe,
    calibration_of,
    coarsest,
    data_scores,
    describe,
    estimate,
    fidelity,
    keeps_for,
    levels_of,
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
from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.evaluation import METRICS, Drop, Evaluator, Function, Score, default_metric, drop, is_function, smallest
from onnxprune.graph.cost import CostModel, trained
from onnxprune.graph.io import Model, load, save, weight_bytes
from onnxprune.graph.runtime import Feeds, Latency, latency, random_feeds
from onnxprune.graph.shapes import concrete_inputs, graph_inputs
from onnxprune.importance import Scores, score
from onnxprune.importance.data import MEASURES
from onnxprune.plan import Plan
from onnxprune.progress import Progress, silent
from onnxprune.recovery.least_squares import LayerFit
from onnxprune.report import Cost, GroupReport, Report
from onnxprune.sparsity.stage import Sparsity, Wanted, layer_names, matching, sparsify
from onnxprune.structure.groups import Analysis, ChannelGroup, Keep, analyze
from onnxprune.structure.surgery import prune_model, slice_weights
from onnxprune.structure.verify import Verification, check_recovered
from onnxprune.structure.verify import verify as check_law

KIND = "channels"
MEMORY = 2e9  # bytes for activations
Target = float | str


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
    channels: float | Literal["auto"] | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    quality: float | None = None,
    ratio: Mapping[str, float] | Sequence[tuple[str, float]] = (),
    ignore: Sequence[str] = (),
    format: str = "auto",
    solver: str = "magnitude",
    sparsity_allocate: str = "uniform",
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
    plan: Plan | str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    verify: bool = True,
    measure: bool = True,
    seed: int = 0,
    threads: int = 0,
    progress: Progress = silent,
) -> Result:
    """Remove channels, filters, neurons and recurrent units, structurally; then make weights sparse.

    source: path, bytes, `ModelProto`, graphsurgeon `Graph` or `Model`; it is not changed.
    channels: fraction of the units of every group that is removed; "auto": whatever a target needs.
    sparsity: fraction of the weights of every MatMul, Gemm and Conv that becomes zero; pattern: "2:4" keeps 2 of every
    4 consecutive ones; quality: weights below so many standard deviations of their layer become zero.
    format: what stores them: "auto" measures, "dense", "csr", "nm" (operators of ours), "sparse-initializer".
    ratio: glob -> fraction, for the groups or layers that it matches (last match wins); a prefix says which, as
    "channels:layer4*" or "sparsity:fc*", and is needed where both are asked for. ignore: globs that stay.
    target_macs, target_params, target_bytes: what is left, as a fraction, "70%" or an absolute "300M".
    steps: cut, score again, cut. max_ratio: most that is removed of a group (default 0.8 for targets and `global`).
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
    structural = channels is not None or targeted
    sparse = any(x is not None for x in (sparsity, pattern, quality))
    cuts, zeros = _by_mode(pairs, structural, sparse)
    structural = structural or bool(cuts)
    wanted = Wanted(sparsity, pattern, quality, zeros, (), sparsity_allocate, solver, format)
    _check_options(
        importance, allocate, recover, round_to, max_ratio, steps, seed, threads, metric, max_drop, evaluate, jobs,
        memory,
    )  # fmt: skip
    wanted.check()
    asked = structural or wanted.asked
    if plan is None and not asked:
        raise OptionError(
            "nothing to do: say how much with --channels 0.3, --target-macs 70%, --max-drop 0.01, --sparsity 0.8, "
            "--pattern 2:4, --ratio or --plan"
        )
    if plan is not None and (asked or ignore or format != "auto"):
        raise OptionError("--plan replays what was chosen before; leave out --channels, --sparsity, --ratio, --ignore, "
                          "--format and targets")  # fmt: skip
    if format != "auto" and plan is None and not wanted.asked:
        raise OptionError(f"--format {format} stores sparse weights; ask for some with --sparsity 0.8 or --pattern 2:4")

    clock = _Clock(progress)
    clock("load")
    model = load(source)
    clock("analyze")
    analysis = analyze(model, dict(input_shape) if input_shape else None)
    costs = analysis.costs()
    groups = analysis.of_kind(KIND)
    if structural and not groups:
        raise NothingToPrune(_nothing(analysis))
    chosen: Plan | None = None
    if plan is not None:
        chosen = plan if isinstance(plan, Plan) else Plan.load(Path(plan), analysis)
        wanted = replace(wanted, recorded=chosen.sparsity)
        importance, allocate, recover = "path", "uniform", chosen.recover
        recorded = dict(chosen.settings.get("calibration") or {})
        if calibration is None and recorded.get("synthetic"):
            calibration = SYNTHETIC
        samples = samples or recorded.get("samples")
        seed = int(chosen.settings.get("seed", seed))
    cutting = structural if chosen is None else bool(chosen.keep)
    data, notes = _data(
        analysis, costs, cutting, calibration, importance, allocate, recover, samples=samples, preprocess=preprocess,
        augment=augment, memory=memory, threads=threads, jobs=jobs, seed=seed, clock=clock,
    )  # fmt: skip
    kind = None if data is None else "synthetic" if data.synthetic else "real"
    how = recipe(importance, allocate, recover, data=kind, targeted=targeted)
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
    builder = _Builder(
        analysis, costs, groups, how, data, clock, round_to=round_to, max_ratio=max_ratio, steps=steps, seed=seed,
        cache=None if cache is None else Path(cache),
    )  # fmt: skip
    verdict: Drop | None = None
    settings: dict[str, Any] = {
        "importance": how.importance, "allocate": how.allocate, "round_to": round_to, "steps": steps, "seed": seed,
    }  # fmt: skip
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
            keeps, verdict = builder.within(max_drop, judge, channels, cuts, spared, limits)
            notes.append(
                f"--max-drop {max_drop:g}: {costs.macs(analysis.keep_ids(keeps)) / costs.macs(whole):.0%} of the MACs"
            )
        elif structural:
            keeps = builder.choose(channels, cuts, spared, limits)
        notes += builder.notes
        chosen = Plan({k: v for k, v in keeps.items() if not v.all()}, how.recover, settings)
    else:
        notes += _differs(chosen, settings)
    for name in chosen.keep:
        if analysis.group(name).kind != KIND:
            raise OptionError(
                f"the plan cuts group {name!r} of kind {analysis.group(name).kind}; only channels are pruned"
            )
    keep = analysis.keep_ids(dict(chosen.keep))
    pruned: Model | None = None
    checked: Verification | None = None
    outcome: Sparsity | None = None
    close: Fidelity | None = None
    fits: tuple[LayerFit, ...] = ()
    times: dict[str, Latency] = {}
    if not chosen.keep and wanted.asked:
        pruned = model
    elif not dry_run or wanted.asked:
        clock("cut")
        sliced = slice_weights(analysis, keep)
        plain = prune_model(analysis, keep, sliced=sliced)
        if verify:
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
    if wanted.asked and pruned is not None:
        clock("sparsify")
        guesses = _feeds(analysis, checked, input_shape, seed)
        pruned, outcome, more = sparsify(
            pruned, wanted, guesses, verify=verify, threads=threads, dry_run=dry_run, progress=progress
        )
        chosen = replace(chosen, sparsity=outcome.to_plan())
        notes += more
    if pruned is not None and not dry_run and (data is not None or judge is not None):
        clock("compare")
        if data is not None:
            close = fidelity(model, pruned, data)
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
        times, problem = _measure(analysis, pruned, _feeds(analysis, checked, input_shape, seed), threads)
        notes += problem or _slower(times, groups, chosen, outcome)
    clock("")
    report = _report(analysis, costs, chosen, keep, pruned, checked, outcome, added, times, notes, clock.seconds)
    report = replace(
        report, fidelity=close, evaluation=verdict, fits=fits, recipe=how,
        calibration=None if data is None else data.samples.description,
    )  # fmt: skip
    return Result(pruned, chosen, report, analysis)


def _data(
    analysis: Analysis,
    costs: CostModel,
    cutting: bool,
    calibration: Any,
    importance: str | None,
    allocate: str | None,
    recover: str | None,
    *,
    clock: _Clock,
    **options: Any,
) -> tuple[Calibration | None, list[str]]:
    """The samples to calibrate on, None where none are needed or can be had; and a note."""
    model = analysis.model
    if not cutting:
        return None, []
    if calibration is None:
        option = needs_data(importance, allocate, recover)
        if not wants_synthetic(model, importance, allocate, recover):
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


class _Builder:
    """Chooses what stays, for one target or for many; the level database is made once."""

    def __init__(
        self,
        analysis: Analysis,
        costs: CostModel,
        groups: Sequence[ChannelGroup],
        how: Recipe,
        data: Calibration | None,
        clock: _Clock,
        *,
        round_to: int,
        max_ratio: float | None,
        steps: int,
        seed: int,
        cache: Path | None,
    ) -> None:
        self.analysis, self.costs, self.groups, self.how, self.data = analysis, costs, groups, how, data
        self.clock, self.round_to, self.max_ratio, self.steps, self.seed = clock, round_to, max_ratio, steps, seed
        self.cache = cache
        self.scores: Any = None
        self.levels: dict[tuple[str, ...], Levels] = {}
        self.notes: list[str] = []

    def choose(
        self,
        channels: float | Literal["auto"] | None,
        pairs: Sequence[tuple[str, float]],
        ignore: Sequence[str],
        limits: Mapping[str, float],
    ) -> Keeps:
        """What stays of every group. Raises `OptionError` where the targets cannot be reached."""
        how = self.how
        if how.allocate in SPREADING:
            return self._by_levels(channels, pairs, ignore, limits)
        if how.importance in MEASURES and self.scores is None:
            assert self.data is not None
            self.scores = data_scores(self.analysis, self.groups, self.data, how, self.clock.progress)
        return _choose(
            self.analysis, self.costs, self.groups, channels, pairs, ignore, limits, importance=how.importance,
            allocate=how.allocate, round_to=self.round_to, max_ratio=self.max_ratio, steps=self.steps, seed=self.seed,
            scores=self.scores,
        )  # fmt: skip

    def _by_levels(
        self,
        channels: float | Literal["auto"] | None,
        pairs: Sequence[tuple[str, float]],
        ignore: Sequence[str],
        limits: Mapping[str, float],
    ) -> Keeps:
        assert self.data is not None
        if not limits:
            targets = "--target-macs, --target-params or --target-bytes"
            raise OptionError(f"--allocate {self.how.allocate} spreads a target: give {targets}")
        if channels not in (None, "auto"):
            raise OptionError(
                f"--allocate {self.how.allocate} chooses every ratio; leave out --channels, or use uniform or global"
            )
        held = ratios(self.groups, channels=None, ratio=pairs, ignore=ignore)
        free = [g for g in self.groups if g.name not in held]
        cap = MAX_RATIO if self.max_ratio is None else self.max_ratio
        fixed: Keeps = {}
        if any(held.values()):
            mine = [g for g in self.groups if g.name in held]
            scores = data_scores(self.analysis, mine, self.data, self.how, self.clock.progress)
            fixed = ALLOCATORS["uniform"](mine, scores, held, round_to=self.round_to, max_ratio=1.0)
        key = tuple(g.name for g in free)
        if key not in self.levels:
            self.clock("levels")
            self.levels[key], was = levels_of(
                self.analysis, free, self.data, how=self.how, round_to=self.round_to, max_ratio=cap,
                cache=self.cache, progress=self.clock.progress,
            )  # fmt: skip
            if was:
                self.notes.append("level database taken from the cache")
            self.clock("plan")
        levels = self.levels[key]
        keeps = None
        if self.data.synthetic:  # as long as the target can be reached without them
            spared = coarsest(self.analysis, free)
            keeps = keeps_for(self.analysis, self.costs, free, levels.without(spared), limits, fixed)
        if keeps is None:
            keeps = keeps_for(self.analysis, self.costs, free, levels, limits, fixed)
        if keeps is None:
            raise OptionError(
                f"the target cannot be reached with --max-ratio {cap:g} of every group; raise --max-ratio, the "
                f"target, or see what is pinned with `onnxprune inspect`"
            )
        return {**fixed, **keeps}

    def within(
        self,
        limit: float,
        judge: Evaluator | Function,
        channels: float | Literal["auto"] | None,
        pairs: Sequence[tuple[str, float]],
        ignore: Sequence[str],
        limits: Mapping[str, float],
    ) -> tuple[Keeps, Drop]:
        """The plan of the smallest model whose metric falls by at most `limit`, and by how much it does."""
        macs = total_macs(self.costs)
        made: dict[int, Keeps] = {}

        def build(left: int) -> Score | None:
            try:
                made[left] = self.choose(channels, pairs, ignore, {**limits, "macs": macs * left / 100})
            except OptionError:
                return None
            keep = self.analysis.keep_ids(made[left])
            sliced = slice_weights(self.analysis, keep)
            plain = prune_model(self.analysis, keep, sliced=sliced)
            model, _, _ = recovered(
                self.analysis, keep, plain, sliced, self.how.recover, self.data, ridge=self.how.ridge, progress=silent
            )
            return judge(model)

        self.clock("search")
        before = judge(self.analysis.model)
        found = smallest(
            build, before, limit, seed=self.seed,
            progress=lambda done, total: self.clock.progress("search", done, total),
        )  # fmt: skip
        return made[found.left], found.confirmed


class _Clock:
    """Seconds per stage, and the caller's progress."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.stage, self.start = "", time.perf_counter()

    def note(self, text: str) -> None:
        """Tell the caller a line."""
        self.progress(self.stage, note=text)

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        if self.stage:
            self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.start
        self.stage, self.start = stage, now
        if stage:
            self.progress(stage)


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
    for option, value, allowed in (
        ("importance", importance, IMPORTANCES),
        ("allocate", allocate, ALLOCATIONS),
        ("recover", recover, RECOVERIES),
        ("metric", metric, METRICS),
    ):
        if value is not None and value not in allowed:
            raise OptionError(f"--{option} {value}: unknown; choose one of {', '.join(allowed)}")
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


def _nothing(analysis: Analysis) -> str:
    where = analysis.model.path or "the model"
    kinds = {g.kind for g in analysis.groups}
    if kinds:
        names = ", ".join(f"{len(analysis.of_kind(k))} of kind {k}" for k in sorted(kinds))
        return f"{where}: no group of kind channels; there are {names}, which --channels leaves alone"
    why = dict.fromkeys(f"{p.tensor} by {p.op} {p.node} ({p.reason})" for p in analysis.pinned)
    if not why:
        why = dict.fromkeys(f"{p.op} {p.node} ({p.reason})" for p in analysis.solution.pins if p.op != "graph")
    held = "; ".join(list(why)[:4]) or "it has no weights that make channels"
    more = f"; and {len(why) - 4} more" if len(why) > 4 else ""
    return f"{where}: nothing can be pruned: {held}{more}"


def parse_target(option: str, text: Target, total: float) -> float:
    """`0.7`, `70%` (of what there is) or `300M`, `1.2G` (absolute) as an absolute number."""
    raw = str(text).strip()
    units = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
    try:
        if raw.endswith("%"):
            value = float(raw[:-1]) / 100 * total
        elif raw[-1:].upper() in units:
            value = float(raw[:-1]) * units[raw[-1:].upper()]
        else:
            value = float(raw)
            value = value * total if value <= 1 else value
    except ValueError:
        raise OptionError(f"{option} {raw}: expected a fraction (0.7, 70%) or a number (300M) that is left") from None
    if not 0 < value <= total:
        raise OptionError(f"{option} {raw}: must be above 0 and at most what the model has now ({total:.4g})")
    return value


def _choose(
    analysis: Analysis,
    costs: CostModel,
    groups: Sequence[ChannelGroup],
    channels: float | Literal["auto"] | None,
    pairs: Sequence[tuple[str, float]],
    ignore: Sequence[str],
    limits: Mapping[str, float],
    *,
    importance: str,
    allocate: str,
    round_to: int,
    max_ratio: float | None,
    steps: int,
    seed: int,
    scores: Scores | None,
) -> Keeps:
    """Ratios first, then as much more as the targets need, over all steps; scores: None to score by weights."""
    whole = np.ones(analysis.coupling.size, bool)
    measures = {"macs": costs.macs, "params": costs.parameters, "bytes": costs.bytes}
    known = scores
    if channels == "auto" and not limits:
        raise OptionError("--channels auto needs a target: --target-macs, --target-params or --target-bytes")
    fixed = None if channels == "auto" else channels
    wanted = ratios(groups, channels=fixed, ratio=pairs, ignore=ignore)
    held = {g.name for g in groups if any(matches(g, glob) for glob, _ in pairs) or any(matches(g, i) for i in ignore)}
    asked = max(wanted.values(), default=0.0)  # what was asked for is no surprise
    default = max(MAX_RATIO, asked) if limits or allocate == "global" else 1.0
    cap = default if max_ratio is None else max_ratio
    keeps: Keeps = {g.name: np.ones(g.size, bool) for g in groups}
    for step in range(1, steps + 1):
        share = step / steps
        alive = analysis.keep_ids(keeps)
        scores = known or score(analysis, groups, importance=importance, keep=alive, seed=seed)
        for name, kept in keeps.items():
            scores[name][~kept] = -1.0  # what is gone stays gone

        def at(r: float, share: float = share, scores: Scores = scores) -> Keeps:
            goal = {
                g.name: wanted.get(g.name, 0.0) * share
                if g.name in held or not limits
                else max(wanted.get(g.name, 0.0) * share, r)
                for g in groups
            }
            return ALLOCATORS[allocate](groups, scores, goal, round_to=round_to, max_ratio=cap)

        if not limits:
            keeps = at(0.0)
            continue
        goals = {k: measures[k](whole) - (measures[k](whole) - limit) * share for k, limit in limits.items()}

        def satisfied(plan: Keeps, goals: Mapping[str, float] = goals) -> bool:
            ids = analysis.keep_ids(plan)
            return all(measures[k](ids) <= goal for k, goal in goals.items())

        found = search(at, satisfied, low=0.0, high=cap)
        if found is None:
            ids = analysis.keep_ids(at(cap))
            left = "; ".join(f"{measures[k](ids) / measures[k](whole):.0%} of {k}" for k in goals)
            raise OptionError(
                f"the target cannot be reached: with --max-ratio {cap:g} of every group {left} are left; "
                f"raise --max-ratio, the target, or see what is pinned with `onnxprune inspect`"
            )
        keeps = found[0]
    return keeps


def _by_mode(
    pairs: Sequence[tuple[str, float]], structural: bool, sparse: bool
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Ratios for channels and for sparsity; without a prefix, those of the one mode that is on."""
    prefixes = ("channels:", "sparsity:")
    named = {p for glob, _ in pairs for p in prefixes if glob.startswith(p)}
    removed, zeroed = structural or prefixes[0] in named, sparse or prefixes[1] in named
    out: dict[str, list[tuple[str, float]]] = {p: [] for p in prefixes}
    for glob, r in pairs:
        prefix = next((p for p in prefixes if glob.startswith(p)), "")
        if not prefix and removed and zeroed:
            raise OptionError(
                f"--ratio {glob}={r:g}: channels are removed and weights made sparse; say which with "
                f"channels:{glob} or sparsity:{glob}"
            )
        out[prefix or prefixes[zeroed]].append((glob.removeprefix(prefix), r))
    return out[prefixes[0]], out[prefixes[1]]


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
    analysis: Analysis, pruned: Model, guesses: Sequence[Feeds], threads: int
) -> tuple[dict[str, Latency], list[str]]:
    original = analysis.model
    problem = ""
    for feeds in guesses:
        try:
            both = {"before": original, "after": pruned}
            return latency(both, dict.fromkeys(both, feeds), threads=threads), []
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
    after = Cost(parameters, round(costs.macs(keep)), after_bytes, times.get("after"))
    groups = tuple(
        GroupReport(g.name, g.kind, g.size, int(plan.keep[g.name].sum()) if g.name in plan.keep else g.size, g.nodes)
        for g in analysis.of_kind(KIND)
    )
    others = [g for g in analysis.groups if g.kind != KIND]
    left = {k: sum(g.kind == k for g in others) for k in dict.fromkeys(g.kind for g in others)}
    return Report(
        str(model.path) if model.path else "", "", before, after, groups, left, analysis.pinned, checked, tuple(notes),
        dict(seconds), outcome,
    )  # fmt: skip
