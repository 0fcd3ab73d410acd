"""What a plan makes of a model, stage by stage, and what the plan is chosen with.

`make` is the recipe from the cut on; every stage is one call that gives back a `Step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune.allocation.choose import Chooser, CutRequest, Subject
from onnxprune.allocation.options import limit_of
from onnxprune.allocation.select import KeptUnits
from onnxprune.calibration.calibration import Batches, solve_data
from onnxprune.calibration.files import load_npz
from onnxprune.evaluation.measure import file_bytes
from onnxprune.formats.codebook import Codebooks, find_weights, zipped_bytes
from onnxprune.formats.codebook import codebooks as with_codebooks
from onnxprune.graph.fingerprint import fingerprint
from onnxprune.graph.io import Model, unfolded
from onnxprune.graph.step import Step
from onnxprune.importance.shown import of_training
from onnxprune.pipeline.learn import parts_of, settings_of
from onnxprune.pipeline.options import OPTIONS
from onnxprune.pipeline.prepare import groups_of, ignored
from onnxprune.pipeline.reporting import folded
from onnxprune.pipeline.setup import Pruning, Setup, recorded_samples
from onnxprune.plan import Plan, stamp
from onnxprune.progress import counting, silent
from onnxprune.recovery.recover import RECOVERIES, recover
from onnxprune.runtime.feeds import likely_feeds
from onnxprune.runtime.session import Feeds
from onnxprune.sparsity.outcome import Sparsity
from onnxprune.sparsity.stage import sparsify
from onnxprune.sparsity.survey import curvatures
from onnxprune.structure.analysis import Keep
from onnxprune.structure.check import ON_FLOAT32, running
from onnxprune.structure.cut import Cutting, cut
from onnxprune.training.options import amount
from onnxprune.training.outcome import Tuning


def make(setup: Setup, plan: Plan) -> Pruning:
    """From the cut on: what a plan makes of the model, stage by stage."""
    o, analysis, clock = setup.options, setup.analysis, setup.clock
    keep = analysis.keep_ids(dict(plan.keep))
    if setup.recorded is not None and setup.data is not None:  # the plan names the samples that made this model
        plan = replace(plan, settings={**plan.settings, "calibration": recorded_samples(setup.data, setup.recipe)})
    later = setup.spec.asked or setup.clusters is not None
    if setup.dry and not later:
        return Pruning(plan, keep, None)
    cutting, method = Step(analysis.model, Cutting({}, None)), "none"
    if plan.keep or not later:
        clock("cut")
        cutting = cut(
            analysis, keep, check=o.check.verify, input_shapes=o.check.shapes, seed=o.check.seed, stage=clock
        )  # fmt: skip
        method = plan.recover
    if not RECOVERIES[method].instant:
        clock("recover")
    fits = recover(analysis, keep, cutting, method, setup.data, ridge=setup.recipe.ridge, progress=clock.progress)
    feeds = feeds_of(setup, cutting.outcome)
    narrow = [analysis.narrow(f, keep) for f in feeds]
    data = None if setup.data is None or not later else solve_data(analysis, keep, setup.data)
    labelled = None if setup.train is None else of_training(setup.train, lambda feeds: analysis.narrow(feeds, keep))
    sparse: Step[Sparsity | None] = Step(fits.model, None)
    if setup.learning is not None:
        plan = replace(plan, settings={**plan.settings, "regularize": setup.learning.to_plan()})
    tuner = Tuner(setup, keep)
    finish = tuner if o.training.tune is not None and setup.spec.asked else None
    if setup.spec.asked:
        clock("sparsify")
        zeroed = sparsify(
            fits.model, setup.spec, narrow, verify=o.check.verify, threads=o.check.threads, dry_run=setup.dry,
            data=data, labelled=labelled, finish=finish, progress=clock.progress,
        )  # fmt: skip
        sparse, plan = zeroed, replace(plan, sparsity=zeroed.outcome.to_plan())
    codebooks = clustered(setup, sparse, data, narrow)
    outcome = sparse.outcome
    if outcome is not None and codebooks.outcome is not None:
        outcome = outcome.recounted(codebooks.outcome.zeros)
    last = codebooks.outcome is not None or finish is None  # what is clustered is tuned again, as it is stored
    model = tuner(codebooks.model, clustered=codebooks.outcome is not None) if last else codebooks.model
    clusters, tuning = codebooks.outcome, tuner.outcome
    if tuning is not None:
        plan = replace(plan, settings={**plan.settings, "tune": tuning.to_plan()})
    done = stamp(unfolded(model), analysis.model, plan, analysis, outcome)
    if clusters is not None:  # measured on what is written
        original = setup.original.model
        clusters = replace(
            clusters, zipped_after=zipped_bytes(done.model), original=file_bytes(original, original.path)
        )  # fmt: skip
    notes = (*folded(model), *cutting.notes, *fits.notes, *sparse.notes, *codebooks.notes, *tuner.notes)
    return Pruning(
        plan, keep, done.model, cut=cutting.outcome, fits=fits.outcome, sparsity=outcome,
        codebooks=clusters, tuning=tuning, notes=notes, feeds=tuple(feeds), recovered=fits.model,
    )  # fmt: skip


def chooser_of(setup: Setup) -> Chooser:
    """What chooses the units, among the groups of the asked kinds."""
    o, analysis = setup.options, setup.analysis
    whole = Subject(analysis, setup.meters, setup.tables, groups_of(analysis, o), setup.data, setup.train)
    typed = [f"--target-{name} {value}" for name, value in o.cut.targets.items()]
    typed += [] if o.scoring.max_drop is None else [f"--max-drop {o.scoring.max_drop:g}"]
    request = CutRequest(o.amounts, o.cuts, ignored(o, analysis)[0], " and ".join(typed))

    def build(keeps: KeptUnits) -> Model:
        keep = analysis.keep_ids(keeps)
        plain = cut(analysis, keep, check=False, input_shapes={}, seed=0, stage=silent)
        recovered = recover(
            analysis, keep, plain, setup.recipe.recover, setup.data, ridge=setup.recipe.ridge, progress=silent
        ).model
        return Tuner(setup, keep)(recovered)  # what the next step looks at

    chosen = o.cut
    if isinstance(chosen.scores, Path):
        chosen = replace(chosen, scores=load_npz(chosen.scores, f"--scores {chosen.scores}"))
    return Chooser(
        whole, chosen, request, setup.recipe, setup.clock, build=build,
        absorbed=RECOVERIES[setup.recipe.recover].absorbs,
        cache=None if o.data.cache is None else Path(o.data.cache), seed=o.check.seed, shapes=o.check.shapes,
    )  # fmt: skip


def limits_of(setup: Setup) -> dict[str, float]:
    """Targets as absolute numbers. Raises `OptionError` for one above what the model has."""
    whole = setup.analysis.keep_ids({})
    return {k: limit_of(k, t, setup.meters[k](whole)) for k, t in setup.options.cut.targets.items()}


def plan_of(setup: Setup, keeps: KeptUnits) -> Plan:
    """The plan of what was chosen, with what it takes to replay it."""
    o, recipe = setup.options, setup.recipe
    settings: dict[str, Any] = {
        "importance": recipe.importance, "allocate": recipe.allocate, "round_to": o.cut.round_to, "steps": o.cut.steps,
        "seed": o.check.seed, "allow_io_change": o.cut.allow_io_change, "whole_layers": o.cut.whole_layers,
    }  # fmt: skip
    if setup.clusters is not None:
        own = {"weights": dict(setup.clusters)} if isinstance(setup.clusters, Mapping) else {"k": setup.clusters}
        settings["cluster"] = {**own, "per": o.store.cluster_per, "storage": o.store.cluster_storage}
    if setup.data is not None:
        settings["calibration"] = recorded_samples(setup.data, recipe)
    chosen = {x.name for x in OPTIONS if "no plan" in x.needs}
    settings["asked"] = {name: value for name, value in o.asked.items() if name in chosen and name != "scores"}
    keep = {name: kept for name, kept in keeps.items() if not kept.all()}
    return Plan(keep, recipe.recover, settings, None, fingerprint(setup.original.model))


def feeds_of(setup: Setup, cutting: Cutting | None) -> list[Feeds]:
    """Inputs of the original to try: those that the check ran with, else guesses for dynamic axes."""
    if cutting is not None and cutting.verification is not None:
        return [cutting.verification.feeds]
    check, model = setup.options.check, setup.analysis.model
    return likely_feeds(model, setup.analysis.coupling.shapes, check.shapes or None, seed=check.seed)


def clustered(
    setup: Setup, before: Step[Sparsity | None], data: Batches | None, feeds: Sequence[Feeds]
) -> Step[Codebooks | None]:
    """The model with codebooks, where some were asked for, shown to run."""
    store, o = setup.options.store, setup.options
    if setup.clusters is None:
        return Step(before.model, None)
    setup.clock("cluster")
    values = setup.clusters
    if isinstance(values, Mapping):  # of those that are left
        there, _ = find_weights(before.model)
        values = {name: k for name, k in values.items() if name in there}
    progress = counting(setup.clock.progress, "survey")
    weigh = None if data is None else curvatures(before.model, data, seed=o.check.seed, progress=progress)
    step: Step[Codebooks | None] = with_codebooks(
        before.model, values, store.cluster_per, store.cluster_storage, weigh, setup.clock.progress
    )
    if o.check.verify and step.outcome is not None:
        _, float32 = running(step.model, feeds, measured=False)
        notes = (*step.notes, *([ON_FLOAT32] if float32 else []))
        step = replace(step, outcome=replace(step.outcome, checked=True), notes=notes)
    return step


class Tuner:
    """Trains the weights of a model towards the original's outputs, where that was asked for, as often as it is called:
    by the same number of steps, at the same rate, each time.

    outcome, notes: what became of the last.
    """

    def __init__(self, setup: Setup, keep: Keep) -> None:
        self.setup, self.keep = setup, keep
        self.outcome: Tuning | None = None
        self.notes: tuple[str, ...] = ()
        self.times = 0

    def __call__(self, model: Model, *, clustered: bool = False) -> Model:
        """The tuned model; the one that comes in where nothing of the kind was asked for. clustered: whether its
        weights are codebooks by now."""
        from onnxprune.training.tune import tune  # the rules of all gradients take a while to be read

        o, analysis, data, train = self.setup.options, self.setup.analysis, self.setup.data, self.setup.train
        training, clock, stage = o.training, self.setup.clock, self.setup.clock.stage
        parts = None if training.tune is None else parts_of(self.setup)
        if parts is None:
            return model
        clock("tune")
        many, unit = amount(training.tune) if self.outcome is None else (self.outcome.steps, "steps")
        rate = training.learning_rate if self.outcome is None else self.outcome.rate
        fitted = self.setup.recipe.recover != "none" and data is not None
        done = tune(
            self.setup.original.model, model, *parts, settings_of(self.setup, many, unit, rate, fitted=fitted),
            narrow=lambda feeds: analysis.narrow(feeds, self.keep),
            cache=None if o.data.cache is None else Path(o.data.cache), progress=counting(clock.progress, "tune"),
            tell=clock.note,
        )  # fmt: skip
        self.times += 1
        what = "after every step of the zeros" + (", and as clusters" if clustered else "")
        again = [f"tuned {self.times} times, {what}"] if self.times > 1 else []
        described = "" if train is None else train.samples.description
        self.outcome, self.notes = replace(done.outcome, train=described), (*done.notes, *again)
        clock(stage)
        return done.model
