"""The recipe, and all options together.

    load -> analyze -> calibrate -> plan -> cut (+ law) -> recover -> sparsify -> cluster -> stamp -> measure -> report

`run` reads top to bottom; `make` is the part from the cut on, whose every stage is one call that gives back a `Step`.
Searches are loops around it: a target chooses the plan (allocation/choose.py), `--steps` chooses anew on what `make`
left, and `--max-drop` scores what `make` made, which is what gets written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune import __version__
from onnxprune.allocation.choose import Chooser, Request, Stage, nothing_found
from onnxprune.allocation.options import (
    SPREADING,
    Amount,
    Cut,
    Recipe,
    by_mode,
    kinds_of,
    parse_limit,
    recipe,
)
from onnxprune.allocation.outcome import CLOSE, Got, cut_got, ratio_got, split_globs, targets_got
from onnxprune.allocation.select import Keeps
from onnxprune.calibration.calibration import (
    SYNTHETIC,
    calibration_of,
    describe,
    estimate,
    scarce,
    solve_data,
    takes_images,
)
from onnxprune.calibration.data import Calibration
from onnxprune.calibration.images import Preprocess
from onnxprune.calibration.options import Data
from onnxprune.calibration.samples import load_npz, read, unused
from onnxprune.errors import NothingAsked, NothingToPrune, OnnxPruneError, OptionError, Unreachable
from onnxprune.evaluation import Drop, Evaluator, Function, Score, Scoring, default_metric, drop, is_function, smallest
from onnxprune.fidelity import Fidelity, fidelity
from onnxprune.graph.cost import CostModel, trained
from onnxprune.graph.io import Model, load, save, to_proto
from onnxprune.graph.runtime import Feeds, Latency, random_feeds
from onnxprune.graph.shapes import concrete_inputs, graph_inputs
from onnxprune.graph.step import Step
from onnxprune.importance.depth import blocks_of
from onnxprune.importance.score import HEAD_LOSS, MEASURED
from onnxprune.measure import Check, file_bytes, latencies, worth
from onnxprune.options import Option, closest, declared, in_python, record
from onnxprune.plan import Plan, fingerprint, stamp
from onnxprune.progress import Clock, Progress, counting, silent
from onnxprune.recovery.least_squares import LayerFit
from onnxprune.recovery.recover import WITH_DATA, Recovery, recover
from onnxprune.report import Cost, GroupReport, Report
from onnxprune.sparsity.check import running
from onnxprune.sparsity.cluster import Codebooks, codebooks
from onnxprune.sparsity.masks import Blocks
from onnxprune.sparsity.options import Store, Zeros
from onnxprune.sparsity.outcome import Sparsity
from onnxprune.sparsity.solve import Data as SolveData
from onnxprune.sparsity.stage import Spec, layer_names, matching, sparsify
from onnxprune.sparsity.survey import curvatures
from onnxprune.structure.cut import Cutting, cut
from onnxprune.structure.groups import Analysis, ChannelGroup, Keep, analyze

if TYPE_CHECKING:
    from typing import Unpack

    from onnxprune.keywords import Keywords

PARTS: dict[str, type[Any]] = {
    "cut": Cut, "zeros": Zeros, "store": Store, "recovery": Recovery, "data": Data, "images": Preprocess,
    "scoring": Scoring, "check": Check,
}  # fmt: skip
OPTIONS: tuple[Option, ...] = tuple(o for part in PARTS.values() for o in declared(part))


@dataclass(frozen=True)
class Options:
    """All options of all stages; `given` are those that differ from their defaults, as they were read."""

    cut: Cut = field(default_factory=Cut)
    zeros: Zeros = field(default_factory=Zeros)
    store: Store = field(default_factory=Store)
    recovery: Recovery = field(default_factory=Recovery)
    data: Data = field(default_factory=Data)
    images: Preprocess = field(default_factory=Preprocess)
    scoring: Scoring = field(default_factory=Scoring)
    check: Check = field(default_factory=Check)
    given: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(keywords: Mapping[str, Any]) -> Options:
        """Read and check options by keyword; raises `OptionError` for values and for combinations of which one would
        have no effect, in the words of the command line, and `TypeError` for an unknown keyword."""
        known = {o.name: o for o in OPTIONS}
        keywords = dict(keywords)
        images = keywords.pop("preprocess", None)
        if images is not None and not isinstance(images, Preprocess):
            raise OptionError(f"preprocess={images!r:.40}: expected onnxprune.Preprocess, or its fields as keywords")
        if images is not None:
            keywords = {f.name: getattr(images, f.name) for f in fields(images)} | keywords
        values: dict[str, Any] = {}
        for name, value in keywords.items():
            if name not in known:
                near = " or ".join(closest(name, OPTIONS))
                raise TypeError(f"prune() takes no option {name!r}" + (f"; did you mean {near}?" if near else ""))
            try:
                values[name] = known[name].read(value)
            except ValueError as e:
                raise OptionError(str(e)) from None
        parts = {
            part: cls(**{o.name: values[o.name] for o in declared(cls) if o.name in values})
            for part, cls in PARTS.items()
        }
        given = {
            o.name: values[o.name] for o in OPTIONS
            if o.name in values and (type(values[o.name]) is not type(o.default) or values[o.name] != o.default)
        }  # fmt: skip
        options = Options(**parts, given=given)
        options.check_all()
        return options

    @cached_property
    def _pairs(self) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]:
        return by_mode(self.cut.pairs, bool(self.cut.amounts) or self.targeted, self.zeros.asked)

    @property
    def targeted(self) -> bool:
        """Whether how much goes is up to a target."""
        return bool(self.cut.targets) or self.scoring.max_drop is not None

    @property
    def amounts(self) -> dict[str, Amount]:
        """Kind -> how much of it goes; under a target channels, where no kind is named."""
        return self.cut.amounts or ({"channels": "auto"} if self.targeted else {})

    @property
    def cuts(self) -> tuple[tuple[str, float], ...]:
        """Ratios of groups."""
        return self._pairs[0]

    @property
    def structural(self) -> bool:
        """Whether units are to be removed."""
        return bool(self.amounts or self.cuts)

    @property
    def kinds(self) -> list[str]:
        """Kinds of which units are to be removed."""
        return kinds_of(self.amounts, self.cuts) if self.structural else []

    @property
    def sparse(self) -> bool:
        """Whether weights are to become zero."""
        return self.zeros.asked or bool(self._pairs[1])

    @property
    def spec(self) -> Spec:
        """What is asked of the weights."""
        return Spec(
            self.zeros, self.store if self.store.cluster is None else replace(self.store, format=self.dense_format),
            self._pairs[1], (), None, self.recovery.recover in (None, "least-squares"),
            None if self.data.cache is None else Path(self.data.cache), self.check.seed,
            self.cut.steps if self.sparse else 1, not self.structural,
        )  # fmt: skip

    @property
    def dense_format(self) -> str | None:
        """Of zeros that are clustered: they stay in a dense weight."""
        return "dense" if self.sparse else None

    @property
    def asked(self) -> dict[str, Any]:
        """What was given, as plain data."""
        return {name: record(value) for name, value in self.given.items()}

    @property
    def data_option(self) -> str:
        """The option that asks for calibration data, "" for none."""
        chosen = self.cut.importance
        if self.structural and not self.cut.own and chosen in MEASURED:
            return f"--importance {chosen}"
        if self.structural and self.cut.allocate in SPREADING:
            return f"--allocate {self.cut.allocate}"
        if self.structural and self.recovery.recover in WITH_DATA:
            return f"--recover {self.recovery.recover}"
        if self.sparse and self.recovery.recover == "least-squares":
            return "--recover least-squares"
        return self.zeros.needs_data() if self.sparse else ""

    @property
    def may_make_up(self) -> bool:
        """Whether samples may be made up, where images go in: nothing that was said forbids the work."""
        quick = self.recovery.recover in ("none", "bias") and not self.data_option
        return self.structural and not quick

    def check_all(self) -> None:
        """Raises `OptionError` where nothing is asked for, or an option would have no effect."""
        known = {o.name: o for o in OPTIONS}
        something = self.structural or self.spec.asked or self.store.cluster is not None or self.cut.plan is not None
        if not something:
            raise NothingAsked(
                "nothing to do: say how much with --channels 0.3, --heads 0.25, --layers 0.1, --target-macs 70%, "
                "--max-drop 0.01, --sparsity 0.8, --pattern 2:4, --cluster 16, --format csr, --ratio or --plan"
            )
        for name, value in self.given.items():
            for need in known[name].needs:
                if not CONDITIONS[need].holds(self):
                    raise OptionError(without_effect(known[name], value, need))
        self.cut.check()
        self.zeros.check(bool(self._pairs[1]))
        self.store.check(self.zeros, bool(self._pairs[1]))
        self.data.check(self.check.threads)
        if self.amounts.get("layers") == "auto" and not self.targeted:
            raise OptionError("--layers auto needs a target: --target-macs, --target-params or --target-bytes")
        if self.cut.allow_io_change and self.scoring.evaluate is not None and not is_function(self.scoring.evaluate):
            raise OptionError(
                "--evaluate scores models that take the same inputs; with --allow-io-change give module:function"
            )
        if not self.structural and self.recovery.recover in ("mean-std", "batchnorm", "bias"):
            raise OptionError(
                f"--recover {self.recovery.recover} makes up for units that went; for zeros choose least-squares or "
                f"none"
            )
        if self.check.dry_run and self.scoring.evaluate is not None and self.scoring.max_drop is None:
            raise OptionError("--evaluate has no effect here: --dry-run makes no model that could be scored")


@dataclass(frozen=True)
class Condition:
    """Without which an option has no effect. holds: for these options; way: how to make it hold."""

    holds: Callable[[Options], bool]
    way: str


def _scored(o: Options) -> bool:
    return o.scoring.evaluate is not None and not is_function(o.scoring.evaluate)


def _units(o: Options) -> bool:
    return any(kind != "layers" for kind in o.kinds)


def _data(o: Options) -> bool:
    return o.data.calibration is not None or o.may_make_up or o.cut.plan is not None


SOMETHING = "something to remove: --channels 0.3, --heads 0.25, --layers 0.1, --target-macs 70% or --ratio"
ZEROS = "zeros: --sparsity 0.8, --pattern 2:4 or --quality 0.5"
CONDITIONS: dict[str, Condition] = {
    "no plan": Condition(
        lambda o: o.cut.plan is None,
        "has no effect: --plan replays what was chosen before, what is kept, which weights are zero and how they are "
        "stored; leave one of the two out",
    ),
    "a plan": Condition(lambda o: o.cut.plan is not None, "needs --plan FILE"),
    "layers": Condition(lambda o: "layers" in o.kinds, "needs --layers 0.1"),
    "a cut": Condition(lambda o: o.structural, f"needs {SOMETHING}"),
    "a cut or zeros": Condition(lambda o: o.structural or o.spec.asked, f"needs {SOMETHING}, or {ZEROS}"),
    "a cut or zeros by data": Condition(
        lambda o: o.structural or (o.sparse and o.data.calibration is not None),
        f"needs {SOMETHING}, or {ZEROS}, solved for with --calibration SRC",
    ),
    "units to choose": Condition(_units, "needs units to choose from: --channels 0.3, --heads 0.25 or a target; "
                                         "blocks go by what they change in the stream"),
    "units or blocks to score": Condition(
        lambda o: _units(o) or (o.structural and (o.cut.own or o.cut.importance == HEAD_LOSS)),
        "needs units to score: --channels 0.3, --heads 0.25 or a target; blocks go by what they change in the "
        "stream, or by head_loss",
    ),
    "zeros": Condition(lambda o: o.sparse, f"needs {ZEROS}"),
    "an N:M pattern": Condition(
        lambda o: o.zeros.pattern is not None and ":" in o.zeros.pattern and "block" not in o.zeros.pattern,
        "needs --pattern N:M",
    ),
    "zeros or a format": Condition(
        lambda o: o.sparse or o.store.format is not None, f"needs {ZEROS}, or --format csr for those that are there"
    ),
    "a cluster": Condition(lambda o: o.store.cluster is not None, "needs --cluster K"),
    "data": Condition(_data, "needs --calibration SRC"),
    "data or samples to score": Condition(
        lambda o: _data(o) or _scored(o), "needs --calibration SRC or --evaluate SRC, with pictures"
    ),
    "samples to score": Condition(_scored, "needs --evaluate SRC, samples and no function"),
    "samples or a function to score": Condition(
        lambda o: o.scoring.evaluate is not None, "needs --evaluate SRC: labelled samples, or module:function"
    ),
    "levels or zeros by data": Condition(
        lambda o: (o.targeted and _data(o) and o.cut.allocate in (None, "kl"))
        or (o.sparse and o.data.calibration is not None)
        or o.cut.plan is not None,
        "has no effect here: it keeps level databases (a target with --allocate kl and --calibration SRC) and sparse "
        "layers that were solved for (--sparsity 0.8 with --calibration SRC)",
    ),
}  # fmt: skip


def without_effect(option: Option, value: Any, need: str) -> str:
    """The line that refuses an option."""
    return f"{option.said(value)} {CONDITIONS[need].way}"


@dataclass(frozen=True, eq=False)
class Job:
    """What the stages work on: what was asked, the analysed model, and what choosing and recovering rest on.

    recorded: the plan that is replayed; data, judge: None without samples; how: what goes, as far as it is decided.
    """

    options: Options
    analysis: Analysis
    costs: CostModel
    recorded: Plan | None
    spec: Spec
    data: Calibration | None
    judge: Evaluator | Function | None
    how: Recipe
    clock: Clock
    notes: tuple[str, ...]

    @property
    def dry(self) -> bool:
        """Whether no model is asked for."""
        return self.options.check.dry_run


@dataclass(frozen=True, eq=False)
class Made:
    """What a plan made of the model: the last stage's model, and every stage's outcome; model: None after a dry run."""

    plan: Plan
    keep: Keep
    model: Model | None
    cut: Cutting | None = None
    fits: tuple[LayerFit, ...] = ()
    sparsity: Sparsity | None = None
    codebooks: Codebooks | None = None
    notes: tuple[str, ...] = ()
    feeds: tuple[Feeds, ...] = ()  # inputs of the original with which the check ran, or guesses
    recovered: Model | None = None  # before zeros and codebooks


@dataclass(frozen=True, eq=False)
class Result:
    """model: the pruned model (a graphsurgeon `Graph` where one came in), None after a dry run; plan: what was kept;
    report: what was gained and what it cost."""

    model: Any
    plan: Plan
    report: Report
    analysis: Analysis
    written: Model | None

    def save(self, path: str | os.PathLike[str]) -> Report:
        """Write the pruned model, atomically; the report then names the file and its size.

        Raises `OptionError` after a dry run, `ModelFileError` where the file cannot be written.
        """
        if self.written is None:
            raise OptionError("a dry run has no model to save")
        save(self.written, path)
        after = replace(self.report.after, bytes=file_bytes(self.written, Path(path)))
        return replace(self.report, output=str(path), after=after)

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def prune(source: Any, *, progress: Progress = silent, **options: Unpack[Keywords]) -> Result:
    """Remove channels, heads, streams, blocks, structurally; then make weights sparse, cluster them, store them.

    source: path, bytes, `ModelProto`, graphsurgeon `Graph` or `Model`; it is not changed. The options are those of the
    command line, docs/options.md has them all: `prune("model.onnx", channels=0.3, calibration="images/")`.
    progress: told of the stages.

    Raises `OptionError`, `ModelFileError`, `NothingToPrune` (the user's side), `VerificationError` (ours), `TypeError`
    for an unknown option.
    """
    try:
        return run(source, Options.of(options), progress=progress)
    except OnnxPruneError as e:
        raise type(e)(in_python(str(e), OPTIONS)) from e


def run(source: Any, options: Options, *, progress: Progress = silent) -> Result:
    """The whole recipe, in the words of the command line; see the module's docstring."""
    clock = Clock(progress)
    clock("load")
    model = load(source)
    clock("analyze")
    analysis, recorded = analyzed(model, options)
    job = calibrated(analysis, recorded, options, clock)
    clock("plan")
    verdict: Drop | None = None
    chooser = None if job.recorded is not None or not options.structural else chooser_of(job)
    if options.scoring.max_drop is not None and chooser is not None:
        made, verdict = search(job, chooser, float(options.scoring.max_drop))
    else:
        made = make(job, job.recorded or plan_of(job, {} if chooser is None else chooser.choose(limits_of(job))))
    close, verdict = compared(job, made, verdict)
    report = report_of(job, chooser, made, close, verdict)
    clock("")
    report = replace(report, seconds=dict(clock.seconds))
    written = None if job.dry else made.model
    return Result(as_given(source, written), made.plan, report, analysis, written)


def make(job: Job, plan: Plan) -> Made:
    """From the cut on: what a plan makes of the model, stage by stage."""
    o, analysis, clock = job.options, job.analysis, job.clock
    keep = analysis.keep_ids(dict(plan.keep))
    if job.recorded is not None and job.data is not None:  # what a plan says of samples is of those that made the model
        plan = replace(plan, settings={**plan.settings, "calibration": recorded_samples(job.data, job.how)})
    later = job.spec.asked or job.options.store.cluster is not None
    if job.dry and not later:
        return Made(plan, keep, None)
    cutting, method = Step(analysis.model, Cutting({}, None)), "none"
    if plan.keep or not later:
        clock("cut")
        cutting = cut(
            analysis, keep, check=o.check.verify, input_shapes=o.check.shapes, seed=o.check.seed, stage=clock
        )  # fmt: skip
        method = plan.recover
    if method != "none":
        clock("recover")
    fits = recover(analysis, keep, cutting, method, job.data, ridge=job.how.ridge, progress=clock.progress)
    feeds = feeds_of(job, cutting.outcome)
    narrow = [analysis.narrow(f, keep) for f in feeds]
    data = None if job.data is None or not later else solve_data(analysis, keep, job.data)
    sparse: Step[Sparsity | None] = Step(fits.model, None)
    if job.spec.asked:
        clock("sparsify")
        zeroed = sparsify(
            fits.model, job.spec, narrow, verify=o.check.verify, threads=o.check.threads, dry_run=job.dry, data=data,
            progress=clock.progress,
        )  # fmt: skip
        sparse, plan = zeroed, replace(plan, sparsity=zeroed.outcome.to_plan())
    books = clustered(job, sparse, data, narrow)
    outcome = sparse.outcome
    if outcome is not None and books.outcome is not None:
        outcome = outcome.recounted(books.outcome.zeros)
    done = stamp(books.model, analysis.model, plan, analysis, outcome)
    notes = (*cutting.notes, *fits.notes, *sparse.notes, *books.notes)
    return Made(
        plan, keep, done.model, cutting.outcome, fits.outcome, outcome, books.outcome, notes, tuple(feeds), fits.model
    )


def search(job: Job, chooser: Chooser, limit: float) -> tuple[Made, Drop]:
    """The smallest model whose metric falls by at most `limit`, and by how much it does: `make` in a loop."""
    assert job.judge is not None
    judge, o, total = job.judge, job.options, job.costs.macs(job.analysis.keep_ids({}))
    wet = replace(o, check=replace(o.check, dry_run=False))  # what is scored is what would be written
    limits, quiet = limits_of(job), replace(job, clock=Clock(silent), options=wet)
    fixed = bool(o.cuts) or any(amount != "auto" for amount in o.amounts.values())
    later = job.spec.asked or o.store.cluster is not None
    made: dict[int, Made] = {}
    failed: list[OnnxPruneError] = []

    def build(left: int) -> Score | None:
        try:
            goal = {**limits, "macs": min(total * left / 100, limits.get("macs", total))}
            made[left] = make(quiet, plan_of(job, chooser.choose(goal) if left < 100 or fixed else {}))
        except (Unreachable, NothingToPrune) as e:  # too small a model, or none that zeros or codebooks would suit
            if left == 100:
                raise
            failed.append(e)
            return None
        model = made[left].model
        assert model is not None
        return judge(model)

    job.clock("search")
    alone = None
    if later:  # zeros and codebooks that no cut can make good
        model = make(quiet, plan_of(job, {})).model
        assert model is not None
        alone = judge(model)
    try:
        found = smallest(
            build, judge(job.analysis.model), limit, alone=alone, whole=later and not limits, seed=o.check.seed,
            progress=lambda done, total: job.clock.progress("search", done, total),
        )  # fmt: skip
    except OptionError:
        if failed and not made:  # what every candidate stumbled over says more
            raise failed[0] from None
        raise
    best = made[found.left]
    whole = job.analysis.keep_ids({})
    note = f"--max-drop {limit:g}: {job.costs.macs(best.keep) / job.costs.macs(whole):.0%} of the MACs"
    return replace(best, notes=(*best.notes, note)), found.confirmed


# ---------------------------------------------------------------------------------------------------------------------
# What the recipe is made of
# ---------------------------------------------------------------------------------------------------------------------


def analyzed(model: Model, options: Options) -> tuple[Analysis, Plan | None]:
    """The analysis, and the plan that is replayed; raises `NothingToPrune` where no group of an asked kind is there."""
    given = options.cut.plan
    then: Mapping[str, Any] = {}
    if given is not None:
        then = given.settings if isinstance(given, Plan) else Plan.settings_in(Path(given))
    analysis = analyze(
        model, options.check.shapes or None,
        allow_io_change=options.cut.allow_io_change or bool(then.get("allow_io_change")),
        whole_layers=options.cut.whole_layers or bool(then.get("whole_layers")),
    )  # fmt: skip
    for kind in options.cut.amounts:
        if not analysis.of_kind(kind):
            raise NothingToPrune(nothing_found(analysis, [kind]))
    later = options.sparse or options.store.cluster is not None
    if options.structural and not groups_of(analysis, options) and not (later and not options.cut.amounts):
        raise NothingToPrune(nothing_found(analysis, options.kinds))
    if given is None:
        refuse_idle(analysis, options)
        return analysis, None
    another = options.cut.plan_for_another_model
    if isinstance(given, Plan):
        return analysis, given.checked(analysis, "the plan", another=another)
    return analysis, Plan.load(Path(given), analysis, another=another)


def refuse_idle(analysis: Analysis, options: Options) -> None:
    """Raises `OptionError` for options of the analysis that change nothing of this model."""
    none = analysis.keep_ids({g.name: np.zeros(g.size, bool) for g in analysis.groups})
    ends = [i.name for i in (*graph_inputs(analysis.model), *analysis.model.proto.graph.output)]
    axes = [ids for name in ends for ids in analysis.coupling.axes(name) if ids is not None]
    if options.cut.allow_io_change and all(none[ids].all() for ids in axes):
        raise OptionError("--allow-io-change has no effect here: no input or output holds heads that could go")
    if options.cut.whole_layers and all(len(blocks_of(analysis, g)) < 2 for g in analysis.of_kind("layers")):
        raise OptionError(
            "--whole-layers has no effect here: no attention block is followed by a feed-forward block; leave it out"
        )


def groups_of(analysis: Analysis, options: Options) -> list[ChannelGroup]:
    """The groups of the kinds that are asked for."""
    return [g for g in analysis.groups if g.kind in options.kinds]


def calibrated(analysis: Analysis, recorded: Plan | None, options: Options, clock: Clock) -> Job:
    """What choosing, recovering and scoring rest on: samples, what scores models, and what the user did not say."""
    model, notes = analysis.model, [*analysis.model.notes, *(f"shape not inferred: {n}" for n in analysis.notes[:5])]
    spec = spec_of(options, analysis, recorded)
    if recorded is not None:
        where = "the plan" if isinstance(options.cut.plan, Plan) else f"--plan {options.cut.plan}"
        mark = fingerprint(model)
        notes += recorded.belongs(mark, another=options.cut.plan_for_another_model, where=where)
        options, recorded = replayed(options, recorded), replace(recorded, fingerprint=mark)
    data, more = samples_of(analysis, recorded, spec, options, clock)
    notes += more
    judge = None
    if options.scoring.evaluate is not None:
        judge = judge_of(model, options)
    sort = None if data is None else "synthetic" if data.synthetic else "real"
    if recorded is None:
        free = options.targeted and any(a == "auto" for a in options.amounts.values())
        how = recipe(options.cut, options.recovery.recover, data=sort, targeted=free)
        if not options.structural and not options.sparse:
            how = replace(how, recover="none")
    else:
        how = recipe(Cut(importance="path", allocate="uniform"), recorded.recover, data=sort, targeted=False)
    spec = replace(spec, recover=how.recover == "least-squares")
    if spec.asked:
        spec.check(data is not None)
    refuse_unused(options, recorded, spec, how, data, judge)
    if options.amounts.get("layers") == "auto" and (data is None or how.allocate not in SPREADING):
        raise OptionError(
            "--layers auto weighs blocks against widths by what the outputs suffer: give --calibration SRC, and "
            "leave --allocate at kl"
        )
    if options.cut.steps > 1 and options.cut.scores is not None:
        raise OptionError(
            f"--steps {options.cut.steps} has no effect here: --scores stay what they are; give --importance instead"
        )
    if data is not None:
        notes += scarce(data)
        levels = how.allocate in SPREADING and recorded is None
        seconds = estimate(analysis, data, len(groups_of(analysis, options)), levels=levels)
        instant = "; --recover none is instant" if options.data.calibration is None else ""
        clock.note(f"{describe(data)}; about {seconds:.0f} s{instant}")
    return Job(options, analysis, analysis.costs(), recorded, spec, data, judge, how, clock, tuple(notes))


def replayed(options: Options, plan: Plan) -> Options:
    """The options with what the plan says of samples, seed and clusters."""
    then = dict(plan.settings.get("calibration") or {})
    books = dict(plan.settings.get("cluster") or {})
    data = options.data
    if data.calibration is None and then.get("synthetic"):
        data = replace(data, calibration=SYNTHETIC)
    data = replace(data, samples=data.samples or then.get("samples"))
    store = options.store
    if books:
        store = replace(
            store, cluster=books["k"], cluster_per=books.get("per", "tensor"),
            cluster_storage=books.get("storage", "auto"),
        )  # fmt: skip
    cut = replace(
        options.cut, allow_io_change=bool(plan.settings.get("allow_io_change")),
        whole_layers=bool(plan.settings.get("whole_layers")),
    )  # fmt: skip
    seed = int(plan.settings.get("seed", options.check.seed))
    return replace(options, data=data, store=store, cut=cut, check=replace(options.check, seed=seed))


def spec_of(options: Options, analysis: Analysis, recorded: Plan | None) -> Spec:
    """What is asked of the weights; globs of --ignore go to the layers that they match."""
    if recorded is not None:
        seed = int(recorded.settings.get("seed", options.check.seed))
        return replace(options.spec, recorded=recorded.sparsity, recover=recorded.recover == "least-squares", seed=seed)
    return replace(options.spec, ignore=tuple(spared(options, analysis)[1]))


def spared(options: Options, analysis: Analysis) -> tuple[list[str], list[str]]:
    """Globs of --ignore that spare groups, and those that spare layers."""
    globs = list(options.cut.ignore)
    if not globs or not options.spec.asked:
        return globs, []
    if not options.structural:
        return [], globs
    names = layer_names(analysis.model)
    return split_globs(groups_of(analysis, options), globs, [glob for glob in globs if matching(names, glob)])


def samples_of(
    analysis: Analysis, recorded: Plan | None, spec: Spec, options: Options, clock: Clock
) -> tuple[Calibration | None, list[str]]:
    """The samples to calibrate on, None where none are needed or can be had; and a note.

    Raises `OptionError` where an option needs some and there are none.
    """
    model, source = analysis.model, options.data.calibration
    cutting = options.structural if recorded is None else bool(recorded.keep)
    needed = options.data_option if recorded is None else spec.needs_data
    if recorded is not None and cutting and recorded.recover in WITH_DATA:
        needed = needed or f"the plan's --recover {recorded.recover}"
    made_up = source is None and cutting and takes_images(model)
    made_up = made_up and (options.may_make_up if recorded is None else recorded.recover in WITH_DATA)
    if source is None and not made_up:
        if needed:
            raise OptionError(
                f"{needed} needs data: --calibration FOLDER with a few hundred samples, or --calibration synthetic"
            )
        return None, []
    clock("calibration")
    known = analysis.coupling.shapes.shapes
    shapes = {
        i.name: tuple(d for d in known[i.name] if d is not None)
        for i in graph_inputs(model)
        if None not in known.get(i.name, (None,))
    }
    macs = analysis.costs().macs(analysis.keep_ids({}))
    try:
        return calibration_of(
            SYNTHETIC if source is None else source, model, macs, samples=options.data.samples,
            preprocess=options.images, augment=options.data.augment, memory=float(options.data.memory),
            threads=options.check.threads, jobs=options.data.jobs, seed=options.check.seed, shapes=shapes,
        ), []  # fmt: skip
    except OptionError as e:
        if source is not None or needed:
            raise
        return None, [f"biases alone were compensated: made-up images do not suit the model ({e})"]


def judge_of(model: Model, options: Options) -> Evaluator | Function:
    """What scores models on the user's data."""
    asked = options.scoring
    if is_function(asked.evaluate):
        return Function(asked.evaluate)
    samples = read(
        asked.evaluate, model, preprocess=options.images, labels=asked.labels, seed=options.check.seed,
        option="--evaluate",
    )  # fmt: skip
    return Evaluator(model, samples, asked.metric or default_metric(model, samples), threads=options.check.threads)


def refuse_unused(
    options: Options,
    recorded: Plan | None,
    spec: Spec,
    how: Recipe,
    data: Calibration | None,
    judge: Evaluator | Function | None,
) -> None:
    """Raises `OptionError` for options of samples where there are none in the end, and of images where none are."""
    known = {o.name: o for o in OPTIONS}
    scored = judge.samples if isinstance(judge, Evaluator) else None
    for name, value in options.given.items():
        for need in known[name].needs:
            lacks = need == "data" and data is None
            if lacks or (need == "data or samples to score" and data is None and scored is None):
                raise OptionError(without_effect(known[name], value, need))
    kept = (how.allocate == "kl" and options.targeted and recorded is None) or (spec.asked and data is not None)
    if options.data.cache is not None and not kept:
        raise OptionError(without_effect(known["cache"], options.data.cache, "levels or zeros by data"))
    read_from = [s for s in (None if data is None else data.samples, scored) if s is not None]
    line = unused(options.images, *read_from) if read_from else ""
    if line:
        raise OptionError(line)


def chooser_of(job: Job) -> Chooser:
    """What chooses the units, among the groups of the asked kinds."""
    o, analysis = job.options, job.analysis
    whole = Stage(analysis, job.costs, groups_of(analysis, o), job.data)
    typed = [f"--target-{name} {value}" for name, value in o.cut.targets.items()]
    typed += [] if o.scoring.max_drop is None else [f"--max-drop {o.scoring.max_drop:g}"]
    request = Request(o.amounts, o.cuts, spared(o, analysis)[0], " and ".join(typed))

    def build(keeps: Keeps) -> Model:
        keep = analysis.keep_ids(keeps)
        plain = cut(analysis, keep, check=False, input_shapes={}, seed=0, stage=silent)
        return recover(analysis, keep, plain, job.how.recover, job.data, ridge=job.how.ridge, progress=silent).model

    chosen = o.cut
    if isinstance(chosen.scores, Path):
        chosen = replace(chosen, scores=load_npz(chosen.scores, f"--scores {chosen.scores}"))
    return Chooser(
        whole, chosen, request, job.how, job.clock, build=build,
        cache=None if o.data.cache is None else Path(o.data.cache), seed=o.check.seed, shapes=o.check.shapes,
    )  # fmt: skip


def limits_of(job: Job) -> dict[str, float]:
    """Targets as absolute numbers. Raises `OptionError` for one above what the model has."""
    whole = job.analysis.keep_ids({})
    measures = {"macs": job.costs.macs, "params": job.costs.parameters, "bytes": job.costs.bytes}
    return {k: parse_limit(f"--target-{k}", t, measures[k](whole)) for k, t in job.options.cut.targets.items()}


def plan_of(job: Job, keeps: Keeps) -> Plan:
    """The plan of what was chosen, with what it takes to replay it."""
    o, how = job.options, job.how
    settings: dict[str, Any] = {
        "importance": how.importance, "allocate": how.allocate, "round_to": o.cut.round_to, "steps": o.cut.steps,
        "seed": o.check.seed, "allow_io_change": o.cut.allow_io_change, "whole_layers": o.cut.whole_layers,
    }  # fmt: skip
    if o.store.cluster is not None:
        settings["cluster"] = {"k": o.store.cluster, "per": o.store.cluster_per, "storage": o.store.cluster_storage}
    if job.data is not None:
        settings["calibration"] = recorded_samples(job.data, how)
    chosen = {x.name for x in OPTIONS if "no plan" in x.needs}
    settings["asked"] = {name: value for name, value in o.asked.items() if name in chosen and name != "scores"}
    keep = {name: kept for name, kept in keeps.items() if not kept.all()}
    return Plan(keep, how.recover, settings, None, fingerprint(job.analysis.model))


def recorded_samples(data: Calibration, how: Recipe) -> dict[str, Any]:
    """The samples as a plan names them."""
    return {
        "digest": data.samples.digest, "description": data.samples.description, "samples": data.samples.count,
        "synthetic": data.synthetic, "ridge": how.ridge,
    }  # fmt: skip


def feeds_of(job: Job, cutting: Cutting | None) -> list[Feeds]:
    """Inputs of the original to try: those that the check ran with, else guesses for dynamic axes."""
    if cutting is not None and cutting.verification is not None:
        return [cutting.verification.feeds]
    check, model = job.options.check, job.analysis.model
    return [
        random_feeds(model, job.analysis.coupling.shapes, shapes, seed=check.seed)
        for shapes in concrete_inputs(model, check.shapes or None)
    ]


def clustered(
    job: Job, before: Step[Sparsity | None], data: SolveData | None, feeds: Sequence[Feeds]
) -> Step[Codebooks | None]:
    """The model with codebooks, where some were asked for, shown to run."""
    store, o = job.options.store, job.options
    if store.cluster is None:
        return Step(before.model, None)
    job.clock("cluster")
    progress = counting(job.clock.progress, "survey")
    weigh = None if data is None else curvatures(before.model, data, seed=o.check.seed, progress=progress)
    step: Step[Codebooks | None] = codebooks(before.model, store, weigh, job.clock.progress)
    if o.check.verify and step.outcome is not None:
        running(step.model, feeds, measured=False)
        step = replace(step, outcome=replace(step.outcome, checked=True))
    return step


def compared(job: Job, made: Made, verdict: Drop | None) -> tuple[Fidelity | None, Drop | None]:
    """How close the outputs of the model that is written are to the original's on the samples, and how it scores."""
    if made.model is None or job.dry or (job.data is None and job.judge is None):
        return None, verdict
    job.clock("compare")
    close = None if job.data is None else fidelity(job.analysis, made.keep, made.model, job.data)
    if verdict is None and job.judge is not None:
        verdict = drop(job.judge(job.analysis.model), job.judge(made.model))
    return close, verdict


def as_given(source: Any, model: Model | None) -> Any:
    """The model in the form that came in: a graphsurgeon `Graph` for one, else `Model`."""
    if model is None or not type(source).__module__.startswith("onnx_graphsurgeon"):
        return model
    import onnx_graphsurgeon as gs

    return gs.import_onnx(to_proto(model))


def report_of(job: Job, chooser: Chooser | None, made: Made, close: Fidelity | None, verdict: Drop | None) -> Report:
    """Everything that is said, each figure of the original and of the model that is written."""
    o, analysis, plan, outcome = job.options, job.analysis, made.plan, made.sparsity
    checked = None if made.cut is None else made.cut.verification
    whole = analysis.keep_ids({})
    written = None if job.dry else made.model
    times: dict[str, Latency] = {}
    notes = [*job.notes, *([] if chooser is None else chooser.notes), *made.notes]
    if o.check.measure and written is not None:
        job.clock("measure")
        pairs = [(feeds, analysis.narrow(feeds, made.keep)) for feeds in made.feeds]
        times, more = latencies(analysis.model, written, pairs, o.check.threads)
        notes += more
    before = Cost(
        round(job.costs.parameters(whole)), round(job.costs.macs(whole)),
        file_bytes(analysis.model, analysis.model.path), times.get("before"),
    )  # fmt: skip
    after = Cost(
        parameters_of(job, made), round(job.costs.macs(made.keep)),
        None if made.model is None else file_bytes(made.model, None), times.get("after"),
    )  # fmt: skip
    kinds = {analysis.group(name).kind for name in plan.keep} | set(o.kinds)
    groups = [g for g in analysis.groups if g.kind in kinds]
    others = [g for g in analysis.groups if g.kind not in kinds]
    share = None if after.bytes is None or before.bytes is None else after.bytes / before.bytes
    got = got_of(job, made, share, verdict)
    notes += notes_of(job, made, close) + worth(before, after, cut=bool(plan.keep), sparsity=outcome, asked=o.asked)
    return Report(
        model=str(analysis.model.path or ""), output="", before=before, after=after,
        groups=tuple(
            GroupReport(g.name, g.kind, g.size, int(plan.keep.get(g.name, np.ones(g.size)).sum()), g.nodes)
            for g in groups
        ),
        left_alone={k: sum(g.kind == k for g in others) for k in dict.fromkeys(g.kind for g in others)},
        pinned=analysis.pinned, verification=checked, notes=tuple(notes), seconds={}, sparsity=outcome,
        codebooks=made.codebooks, fidelity=close, evaluation=verdict, fits=made.fits, recipe=job.how,
        calibration=None if job.data is None else job.data.samples.description, version=__version__, asked=o.asked,
        got=tuple(got), cache=cache_of(job, chooser, outcome),
    )  # fmt: skip


def cache_of(job: Job, chooser: Chooser | None, outcome: Sparsity | None) -> str | None:
    """What the cache was good for; None where there is none."""
    said = []
    if chooser is not None and chooser.cached is not None:
        said.append("level database " + ("taken from the cache" if chooser.cached else "kept for later"))
    if job.spec.cache is not None and outcome is not None and outcome.solved:
        said.append(f"{len(outcome.solved)} sparse layers kept in the cache, or taken from it")
    return "; ".join(said) or None


def got_of(job: Job, made: Made, share: float | None, verdict: Drop | None) -> list[Got]:
    """Asked and got, side by side; share: bytes that are written over the original's; verdict: of the search."""
    o, outcome = job.options, made.sparsity
    whole = job.analysis.keep_ids({})
    named = [*spared(o, job.analysis)[0], *(glob for glob, _ in o.cuts)]
    got = cut_got(job.analysis, o.cut.amounts, o.cut, dict(made.plan.keep), named, targeted=o.targeted)
    lone = len(o.cut.targets) == 1 and o.scoring.max_drop is None and not (outcome or made.codebooks or o.cuts)
    lone = lone and all(amount == "auto" for amount in o.amounts.values())
    got += targets_got(o.cut, job.costs, whole, made.keep, share=share, lone=lone)
    got += [ratio_got(job.analysis, glob, r, dict(made.plan.keep)) for glob, r in o.cuts]
    if outcome is not None and o.sparse:
        got.append(zeros_got(job, outcome, clustered=made.codebooks is not None))
    if verdict is not None and o.scoring.max_drop is not None:
        got.append(Got("--max-drop", o.scoring.max_drop, verdict.drop, f"of {verdict.metric} lost"))
    return got


def zeros_got(job: Job, outcome: Sparsity, *, clustered: bool) -> Got:
    """The row of zeros, with what holds where they are others than asked."""
    o = job.options
    share = outcome.zeros / max(outcome.size, 1)
    pattern = o.zeros.shape
    ratio = o.zeros.sparsity if o.zeros.sparsity is not None else getattr(pattern, "ratio", None)
    names = [name for name in ("sparsity", "pattern", "quality") if getattr(o.zeros, name) is not None] or ["ratio"]
    asked = getattr(o.zeros, names[0], None) if names[0] != "ratio" else "sparsity:..."
    weights = {x.weight: job.analysis.model.weights.get(x.weight) for x in outcome.layers}
    before = sum(int(w.size - np.count_nonzero(w)) for w in weights.values() if w is not None) / max(outcome.size, 1)
    causes = []
    if ratio == 0:
        causes.append("no weight was to become zero")
    elif ratio is not None and abs(share - float(ratio)) > CLOSE:
        if before > float(ratio):
            causes.append(f"{before:.1%} were zero already")
        if o.cut.ignore or o.spec.ratio:
            causes.append("layers that --ignore or --ratio names are others")
        if isinstance(pattern, Blocks):
            causes.append("tiles go as a whole")
        if clustered:
            causes.append("clustering made some of the smallest zero")
    return Got(f"--{names[0]}", asked, share, "% of the weights are zero", "; ".join(causes))


def notes_of(job: Job, made: Made, close: Fidelity | None) -> list[str]:
    """What a reader should know of the cut."""
    notes = []
    plan, o = made.plan, job.options
    solved = (plan.sparsity or {}).get("solver") not in (None, "magnitude", "present")
    if job.recorded is not None and (plan.recover in WITH_DATA or solved or o.store.cluster is not None):
        then = dict(job.recorded.settings.get("calibration") or {})
        now = {} if job.data is None else recorded_samples(job.data, job.how)
        if then.get("digest") != now.get("digest") or then.get("ridge") != now.get("ridge"):
            notes.append(
                f"the plan was made with {then.get('description', 'no data')}, now it is "
                f"{now.get('description', 'no data')}: the recovered weights differ"
            )
    if any(job.analysis.group(name).kind == "hidden" for name in plan.keep):
        notes.append("streams became narrower: normalisations count what is left, so that the whole model changes")
    if close is not None and close.costly and not o.targeted and plan.keep:
        notes.append(
            "this cut costs much: --target-macs 70% cuts where it hurts least, and --max-drop 0.01 --evaluate SRC "
            "finds out how far one can go"
        )
    return notes


def parameters_of(job: Job, made: Made) -> int:
    """Trained numbers of the model that is written, biases that compensate among them."""
    analysis = job.analysis
    if made.recovered is not None and any(not made.keep[b.gate].any() for b in analysis.blocks):
        again = analyze(made.recovered)  # also what several blocks shared
        return round(again.costs().parameters(again.keep_ids({})))
    new = (
        ()
        if made.recovered is None
        else (w for n, w in made.recovered.weights.items() if n not in analysis.model.weights)
    )
    return round(job.costs.parameters(made.keep)) + sum(w.size for w in new if trained(w))
