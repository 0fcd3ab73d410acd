"""From what the user said to what the stages work on: analysis, samples, what scores models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.allocation.allocators import ALLOCATORS
from onnxprune.allocation.budget import Tables, meters_of
from onnxprune.allocation.choose import nothing_found
from onnxprune.allocation.outcome import split_globs
from onnxprune.allocation.recipe import DEFAULTS, UNTARGETED, Recipe, recipe_of
from onnxprune.calibration import augment
from onnxprune.calibration.calibration import (
    SYNTHETIC,
    Calibration,
    calibration_of,
    describe,
    scarce,
    takes_images,
)
from onnxprune.calibration.effort import effort, largest_tensor, made_up_samples, measured, nominal_run
from onnxprune.calibration.read import read
from onnxprune.calibration.samples import MADE_UP, unused
from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.evaluation.measure import told
from onnxprune.evaluation.metrics import Evaluator, Function, is_function, metric_of
from onnxprune.evaluation.training_set import TrainingSet, training_set
from onnxprune.graph.energy import table_of
from onnxprune.graph.fingerprint import fingerprint
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import graph_inputs
from onnxprune.importance.depth import group_blocks
from onnxprune.latency.model import LatencyModel, latency_model, model_of
from onnxprune.latency.table import OPTION, Device, Table
from onnxprune.latency.zeros import METHODS
from onnxprune.options import declared, shown
from onnxprune.pipeline.options import OPTIONS, Options, without_effect
from onnxprune.pipeline.setup import Setup
from onnxprune.plan import Plan
from onnxprune.progress import Clock
from onnxprune.recovery.recover import RECOVERIES
from onnxprune.runtime.feeds import likely_feeds
from onnxprune.runtime.timing import cores
from onnxprune.solvers.masks import needs_labels
from onnxprune.sparsity.amounts import layer_names, matching
from onnxprune.sparsity.spec import Spec
from onnxprune.structure.analysis import Analysis, ChannelGroup
from onnxprune.structure.check import running
from onnxprune.structure.groups import analyze
from onnxprune.training.options import Training
from onnxprune.training.regularize import REGULARIZERS

BUDGET = 35.0  # seconds that made-up samples may take where nobody says how many there are
LOOKING = 240.0  # seconds that levels are looked at on samples that are held out, of which there are fewer else
FEWEST_HELD_OUT = 24


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
    later = later or bool(options.weight_methods)
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
    if options.cut.whole_layers and all(len(group_blocks(analysis, g)) < 2 for g in analysis.of_kind("layers")):
        raise OptionError(
            "--whole-layers has no effect here: no attention block is followed by a feed-forward block; leave it out"
        )


def groups_of(analysis: Analysis, options: Options) -> list[ChannelGroup]:
    """The groups of the kinds that are asked for."""
    return [g for g in analysis.groups if g.kind in options.kinds]


def prepared(analysis: Analysis, recorded: Plan | None, options: Options, clock: Clock) -> Setup:
    """What the stages work on: samples, what scores models, and a recipe with all that the user did not say.

    Raises `OptionError` for an option that turns out to have no effect on this model and these samples.
    """
    tables = Tables(table_of(options.check.energy_table))
    notes = [*analysis.model.notes, *(f"shape not inferred: {n}" for n in analysis.notes[:5])]
    spec = spec_of(options, analysis, recorded)
    if recorded is not None:
        where = "the plan" if isinstance(options.cut.plan, Plan) else f"--plan {options.cut.plan}"
        mark = fingerprint(analysis.model)
        notes += recorded.belongs(mark, another=options.cut.plan_for_another_model, where=where)
        options, recorded = replayed(options, recorded), replace(recorded, fingerprint=mark)
    data, more = samples_of(analysis, recorded, spec, options, clock)
    notes += more
    train = training_set_of(analysis.model, options, recorded)
    if data is not None and options.training.tune is not None and train is None:
        data = data.set_aside()
    evaluator = None if options.scoring.evaluate is None else evaluator_of(analysis.model, options)
    recipe = chosen_recipe(options, recorded, data)
    spec = replace(spec, recover=RECOVERIES[recipe.recover].zeros)
    if spec.asked:
        spec.check(data is not None)
    refuse_unused(options, recorded, spec, recipe, data, evaluator, train)
    scored = evaluator is not None and (not options.check.dry_run or options.scoring.max_drop is not None)
    score = evaluator(analysis.model) if evaluator is not None and scored else None  # what does not fit is refused now
    if data is not None:
        data, seconds, more = timely(analysis, data, recorded, recipe, options)
        notes += [*more, *(scarce(data) if options.data.samples or not data.synthetic else [])]
        about = "" if seconds is None else f"; about {seconds:.0f} s{instead(options)}"
        clock.note(describe(data) + about)
        clock.expected = seconds
    speed = None if recorded is not None or not options.timed else speed_of(analysis, options, clock)
    tables = replace(tables, latency=() if speed is None else speed.products)
    return Setup(
        options, analysis, analysis.costs(), meters_of(analysis, tables, options.limited), tables, recorded, spec,
        data, evaluator, score, recipe, clock, tuple(notes), train, analysis, speed,
        clusters=clusters_of(options, recorded),
    )  # fmt: skip


def clusters_of(options: Options, recorded: Plan | None) -> int | dict[str, int] | None:
    """Values of codebooks: of every one as asked, of each weight as a plan says, None for none."""
    own = {} if recorded is None else dict(recorded.settings.get("cluster") or {})
    chosen: dict[str, int] | None = own.get("weights")
    return options.store.cluster if chosen is None else chosen


def speed_of(analysis: Analysis, options: Options, clock: Clock) -> LatencyModel:
    """What a run of what is left of the model takes, on this machine or by a table. Raises `OptionError` where it does
    not run, or the table is of something else."""
    check, given = options.check, options.speed.latency_table
    clock("latency")
    if given is not None:
        table = Table.load(given)
        here = Device.here(check.threads or cores())
        table.check(fingerprint(analysis.model), here, elsewhere=options.speed.elsewhere, where=f"{OPTION} {given}")
        there = {row.method for variant in table.sparse for row in variant.rows}
        absent = [m for m in options.weight_methods if m in METHODS and m not in there]
        if options.cut.methods and absent:
            raise OptionError(
                f"{OPTION} {given} has no times of {', '.join(absent)} zeros; make one with onnxprune latency-table "
                f"--methods {absent[0]}"
            )
        return model_of(analysis, table)
    guesses = likely_feeds(analysis.model, analysis.coupling.shapes, check.shapes or None, seed=check.seed)
    feeds, _ = running(analysis.model, guesses, measured=True)
    speed = latency_model(
        analysis, feeds, threads=check.threads, cache=None if options.data.cache is None else Path(options.data.cache),
        seed=check.seed, methods=[m for m in options.weight_methods if m in METHODS], repeat=options.speed.repeat,
        progress=clock.progress,
    )  # fmt: skip
    clock.note("times of parts of the model are predicted within {:.0%} (median; 95%: {:.0%})".format(*speed.error))
    return speed


def timely(
    analysis: Analysis, data: Calibration, recorded: Plan | None, recipe: Recipe, options: Options
) -> tuple[Calibration, float | None, list[str]]:
    """The samples, with fewer held out where looking at them would take long nominally and nobody said how many there
    are; the seconds that the work takes, None where that cannot be said; and notes."""
    levels = ALLOCATORS[recipe.allocate].at_outputs and recorded is None
    notes: list[str] = []
    groups = len(groups_of(analysis, options))
    if levels and options.data.samples is None:
        looks = effort(analysis, data.samples.count, data.batch, nominal_run(analysis), 1.0, groups, levels=True)
        data = replace(data, held_out=min(data.held_out, max(FEWEST_HELD_OUT, looks.affordable_looks(LOOKING))))
    takes = told("the time was not estimated", partial(measured, analysis, data, groups, levels=levels), notes)
    held_out = len(data.split()[1])
    return data, None if takes is None else takes.seconds(data.samples.count, held_out), notes


def chosen_recipe(options: Options, recorded: Plan | None, data: Calibration | None) -> Recipe:
    """How units are scored, what goes of each group and how the loss is made up for; of a plan the last alone."""
    kind = "" if data is None else "synthetic" if data.synthetic else "real"
    if recorded is not None:
        return recipe_of(DEFAULTS[""].importance, UNTARGETED, recorded.recover, data=kind, targeted=False)
    cut = options.cut
    free = bool(options.weight_methods) or any(amount == "auto" for amount in options.amounts.values())
    penalty = options.training.regularize
    usual = None if penalty is None else REGULARIZERS[penalty].importance or None
    recipe = recipe_of(
        cut.criterion or usual, cut.allocate, options.recovery.recover, data=kind, targeted=options.targeted and free
    )
    return recipe if options.structural or options.sparse else replace(recipe, recover="none")


def instead(options: Options) -> str:
    """What takes no time, where the samples were not asked for."""
    instant = " or ".join(name for name, row in RECOVERIES.items() if row.instant)
    return f"; --recover {instant} is instant" if options.data.calibration is None else ""


def replayed(options: Options, plan: Plan) -> Options:
    """The options with what the plan says of samples, seed and clusters."""
    samples = dict(plan.settings.get("calibration") or {})
    cluster = dict(plan.settings.get("cluster") or {})
    data = options.data
    if data.calibration is None and samples.get("synthetic"):
        data = replace(data, calibration=SYNTHETIC)
    data = replace(data, samples=data.samples or samples.get("samples"))
    store = options.store
    if cluster:
        store = replace(
            store, cluster=cluster.get("k"), cluster_per=cluster.get("per", "tensor"),
            cluster_storage=cluster.get("storage", "auto"),
        )  # fmt: skip
    cut = replace(
        options.cut, allow_io_change=bool(plan.settings.get("allow_io_change")),
        whole_layers=bool(plan.settings.get("whole_layers")),
    )  # fmt: skip
    seed = int(plan.settings.get("seed", options.check.seed))
    training = options.training
    if then := {**recorded_tuning(plan), **recorded_learning(plan)}:
        pictures = tuple(then.pop("augment", ()))
        if pictures and data.augment is False:
            data = replace(data, augment=augment.parse(pictures))
        known = {o.name: o for o in declared(Training)}
        try:
            training = replace(training, **{name: known[name].read(value) for name, value in then.items()})
        except ValueError as e:
            raise OptionError(f"the plan's {e}") from None
    return replace(options, data=data, store=store, cut=cut, training=training, check=replace(options.check, seed=seed))


def recorded_tuning(plan: Plan) -> dict[str, Any]:
    """The options with which a plan tuned, by keyword; none where it did not."""
    then = dict(plan.settings.get("tune") or {})
    then.pop("train", None)
    return {"tune": f"{then.pop('steps')}steps", **then} if then else {}


def recorded_learning(plan: Plan) -> dict[str, Any]:
    """The options with which a plan learned before its cut, by keyword; none where it did not."""
    then = dict(plan.settings.get("regularize") or {})
    if then and (lacks := sorted({"method", "strength", "steps", "learning_rate", "groups"} - then.keys())):
        raise OptionError(f"the plan says nothing of regularize.{lacks[0]}; it is not what onnxprune wrote")
    return {"regularize": then.get("method"), "regularize_strength": then.get("strength")} if then else {}


def training_set_of(model: Model, options: Options, recorded: Plan | None) -> TrainingSet | None:
    """The samples of --train; None where there are none. Raises `OptionError` where a plan tuned on other ones."""
    asked = options.training
    if recorded is not None:
        then = dict(recorded.settings.get("tune") or {}).get("train")
        solver = str((recorded.sparsity or {}).get("solver", ""))
        if asked.train is None and needs_labels(solver):
            raise OptionError(f"the plan's --solver {solver} needs --train SRC with labels")
        if asked.train is not None and not then and not (needs_labels(solver) or solver == "fisher"):
            raise OptionError(f"--train {shown(asked.train)} has no effect: the plan does not tune on such samples")
        if asked.train is None and then:
            raise OptionError(f"the plan tunes on {then}: it needs --train SRC")
    if asked.train is None:
        return None
    own = callable(asked.loss) or isinstance(asked.loss, Path)
    return training_set(
        model, asked.train, asked.train_labels, preprocess=options.images, seed=options.check.seed, any_labels=own
    )  # fmt: skip


def spec_of(options: Options, analysis: Analysis, recorded: Plan | None) -> Spec:
    """What is asked of the weights; globs of --ignore go to the layers that they match."""
    if recorded is not None:
        seed = int(recorded.settings.get("seed", options.check.seed))
        return replace(
            options.spec, recorded=recorded.sparsity, recover=RECOVERIES[recorded.recover].zeros, seed=seed,
            tuned=bool(recorded_tuning(recorded)),
        )  # fmt: skip
    return replace(options.spec, ignore=tuple(ignored(options, analysis)[1]))


def ignored(options: Options, analysis: Analysis) -> tuple[list[str], list[str]]:
    """Globs of --ignore that leave groups alone, and those that leave layers alone."""
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
    if recorded is not None and cutting and RECOVERIES[recorded.recover].needs_data:
        needed = needed or f"the plan's --recover {recorded.recover}"
    tunes = recorded is not None and recorded_tuning(recorded) and options.training.train is None
    if tunes:
        needed = needed or "the plan's --tune"
    made_up = source is None and cutting and takes_images(model)
    by_data = recorded is not None and (RECOVERIES[recorded.recover].needs_data or bool(tunes))
    made_up = made_up and (options.may_make_up if recorded is None else by_data)
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
    count, notes = options.data.samples, list[str]()
    if count is None and (source is None or (isinstance(source, str) and source == SYNTHETIC)):
        count, fewer = made_up_samples(analysis, BUDGET, MADE_UP)
        notes = [fewer] if fewer else []
    try:
        return calibration_of(
            SYNTHETIC if source is None else source, model, macs, samples=count, preprocess=options.images,
            augment=options.data.augment is True and options.training.train is None,
            memory=float(options.data.memory), threads=options.check.threads,
            jobs=options.data.at, seed=options.check.seed, shapes=shapes, largest=largest_tensor(analysis),
        ), notes  # fmt: skip
    except OptionError as e:
        if source is not None or needed:
            raise
        return None, [f"biases alone were compensated: made-up images do not suit the model ({e})"]


def evaluator_of(model: Model, options: Options) -> Evaluator | Function:
    """What scores models on the user's data."""
    asked = options.scoring
    if is_function(asked.evaluate):
        return Function(asked.evaluate)
    samples = read(
        asked.evaluate, model, preprocess=options.images, labels=asked.labels, seed=options.check.seed,
        option="--evaluate",
    )  # fmt: skip
    metric = metric_of(model, samples, asked.metric, asked.labels)
    return Evaluator(model, samples, metric, threads=options.check.threads)


def refuse_unused(
    options: Options,
    recorded: Plan | None,
    spec: Spec,
    recipe: Recipe,
    data: Calibration | None,
    evaluator: Evaluator | Function | None,
    train: TrainingSet | None,
) -> None:
    """Raises `OptionError` for options of samples where there are none in the end, of images where none are, and for
    what the recipe has no use for."""
    known, cut = {o.name: o for o in OPTIONS}, options.cut
    scored = evaluator.samples if isinstance(evaluator, Evaluator) else None
    for name, value in options.given.items():
        for need in known[name].needs:
            lacks = data is None and (need == "data" or (need == "data or training samples" and train is None))
            if lacks or (need == "data or samples to score" and data is None and scored is None and train is None):
                raise OptionError(without_effect(known[name], value, need))
    allocator = ALLOCATORS[recipe.allocate]
    cached = allocator.at_outputs and options.targeted and recorded is None
    worked = cached or options.timed or options.training.tune is not None or (spec.asked and data is not None)
    if options.data.cache is not None and not worked:
        raise OptionError(without_effect(known["cache"], options.data.cache, "levels, zeros by data or tuning"))
    trained = None if train is None else train.samples
    sources = [s for s in (None if data is None else data.samples, scored, trained) if s is not None]
    line = unused(options.images, *sources) if sources else ""
    if line:
        raise OptionError(line)
    if options.amounts.get("layers") == "auto" and (data is None or allocator.by_levels is None):
        asked = "--methods layers" if options.methods else "--layers auto"
        raise OptionError(
            f"{asked} weighs blocks against widths by what the outputs suffer: give --calibration SRC, and "
            "leave --allocate at kl"
        )
    if cut.steps > 1 and cut.scores is not None:
        raise OptionError(
            f"--steps {cut.steps} has no effect here: --scores stay what they are; give --importance instead"
        )
