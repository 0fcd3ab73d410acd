"""Sparse learning before the cut: the network is trained under a penalty that drives whole units towards zero, then
units are chosen on that network, cut and tuned as ever.

The amount of --tune is for both: `SHARE` of its steps are for the sparse learning, the others for tuning after the cut.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.allocation.budget import meters_of
from onnxprune.allocation.select import KeptUnits, matches
from onnxprune.evaluation.training_set import TrainingSet, unlabelled
from onnxprune.pipeline.options import Options
from onnxprune.pipeline.prepare import groups_of, ignored
from onnxprune.pipeline.setup import Setup
from onnxprune.progress import counting
from onnxprune.structure.analysis import Analysis, ChannelGroup
from onnxprune.structure.groups import analyze
from onnxprune.training.options import amount
from onnxprune.training.regularize import REGULARIZERS, penalised

if TYPE_CHECKING:
    from onnxprune.training.tune import Settings

SHARE = 0.5  # of the steps of --tune that come before the cut


def learned(setup: Setup, kept: KeptUnits) -> Setup:
    """The same with the network that was trained under the penalty in the place of the one that came, and fewer steps
    to tune it with; as it is where no penalty was asked for, or no model.

    kept: units that will stay, for penalties that need to know. Raises `OptionError` where there is nothing to pull at.
    """
    from onnxprune.training.tune import Pressure, learn  # the rules of all gradients take a while to be read

    o, analysis, clock = setup.options, setup.analysis, setup.clock
    name = o.training.regularize
    if name is None or setup.dry:
        return setup
    row, then = REGULARIZERS[name], dict({} if setup.recorded is None else setup.recorded.settings["regularize"])
    groups = [g for g in analysis.groups if g.name in then["groups"]] if then else groups_cut(analysis, o)
    gone = {g.name: ~kept[g.name] if g.name in kept else np.zeros(g.size, bool) for g in groups}
    units = penalised(analysis, groups, name, gone)
    strength = row.strength if o.training.regularize_strength is None else o.training.regularize_strength
    parts = parts_of(setup)
    assert parts is not None
    many, unit = amount(f"{then['steps']}steps" if then else o.training.tune)
    rate = then.get("learning_rate", o.training.learning_rate)
    clock("regularize")
    done = learn(
        setup.original.model, analysis.model, *parts, settings_of(setup, many, unit, rate, fitted=False),
        Pressure(name, strength, units), share=1.0 if then else SHARE,
        cache=None if o.data.cache is None else Path(o.data.cache), progress=counting(clock.progress, "regularize"),
        tell=clock.note,
    )  # fmt: skip
    again = analyze(
        done.model, o.check.shapes or None, allow_io_change=o.cut.allow_io_change, whole_layers=o.cut.whole_layers
    )  # fmt: skip
    missed = len(groups) - len(units.groups)
    notes = [f"--regularize {name}: {missed} of {len(groups)} groups have no such scale, and no pull"] if missed else []
    training = o.training if then else replace(o.training, tune=f"{done.outcome.left}steps")
    return replace(
        setup, analysis=again, costs=again.costs(), meters=meters_of(again, setup.tables, setup.meters),
        options=replace(o, training=training), learning=done.outcome, notes=(*setup.notes, *notes, *done.notes),
    )  # fmt: skip


def chosen_first(setup: Setup) -> bool:
    """Whether the penalty is on units that are chosen before."""
    name = setup.options.training.regularize
    return name is not None and REGULARIZERS[name].chosen


def groups_cut(analysis: Analysis, options: Options) -> list[ChannelGroup]:
    """The groups that may lose units: of the kinds that are asked for, or that a glob names, and not left alone."""
    left, named = ignored(options, analysis)[0], [glob for glob, ratio in options.cuts if ratio > 0]
    amounts = options.amounts
    return [
        g for g in groups_of(analysis, options)
        if (amounts.get(g.kind, 0) or any(matches(g, glob) for glob in named)) and not any(matches(g, i) for i in left)
    ]  # fmt: skip


def parts_of(setup: Setup) -> tuple[TrainingSet, TrainingSet] | None:
    """Samples to train on, and those that are held out; None where there are none."""
    data, train = setup.data, setup.train
    if train is not None:
        return train.split()
    if data is None or data.aside is None:
        return None
    seen, unseen = (unlabelled(x, 1 if data.batch == 1 else 0) for x in (data.samples, data.aside))
    return seen, unseen


def settings_of(setup: Setup, many: float, unit: str, rate: float | None, *, fitted: bool) -> Settings:
    """How to train, as the options say; many, unit, rate, fitted: as of `Settings`."""
    from onnxprune.training.tune import Settings

    o = setup.options
    training = o.training
    pictures: Any = o.data.augment or None
    if pictures is True and setup.train is None:  # of the images that calibrate
        pictures = None
    return Settings(
        many, unit, batch=training.batch_size, rate=rate, optimizer=training.optimizer, momentum=training.momentum,
        decay=training.weight_decay, schedule=training.schedule, warmup=training.warmup, loss=training.loss,
        augment=pictures, seed=o.check.seed, threads=o.check.threads, memory=float(o.data.memory), fitted=fitted,
    )  # fmt: skip
