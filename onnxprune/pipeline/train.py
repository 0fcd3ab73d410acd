"""Training alone: a model and samples in, the trained model out, with what it was worth before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune import __version__
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.read import read
from onnxprune.calibration.samples import unused
from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import METRICS, Evaluator, Function, Score, is_function, metric_of, scored
from onnxprune.evaluation.training_set import TrainingSet, training_set
from onnxprune.experiments.masks import choose, masked
from onnxprune.experiments.masks import left as left_of
from onnxprune.graph.io import Model, load, save
from onnxprune.importance.shown import by_training
from onnxprune.options import TUNE, choice, declared, integer, option, record, shared, shown
from onnxprune.pipeline.masks import finished
from onnxprune.pipeline.options import OPTIONS, called
from onnxprune.pipeline.thin import SCORES, choice_of, fewer_channels, refuse_idle, size
from onnxprune.progress import Clock, Progress, counting, silent
from onnxprune.solvers.masks import SOLVERS, by_gradients
from onnxprune.sparsity.options import Zeros
from onnxprune.structure.check import check_file, running
from onnxprune.training.initial import initial
from onnxprune.training.losses import NO_LABELS
from onnxprune.training.masking import GROWTH, Masked, learning_of
from onnxprune.training.masking import OPTIONS as MASKS
from onnxprune.training.options import OWN, Training, amount
from onnxprune.training.weights import trainable

if TYPE_CHECKING:
    from onnxprune.training.trainer import Trainer

EPOCHS = 10


@dataclass(frozen=True)
class Beginning:
    """What the weights are before the first step."""

    init: int | None = option(
        None, integer("a whole number, 0 or more", 0), panel=TUNE, metavar="SEED", otherwise="the weights of the file",
        help="Train from scratch: new weights (Kaiming by fan-in; scales one, shifts zero), and normalisations by the "
        "statistics of the batch, which the file's follow.",
    )  # fmt: skip
    at_init: str | None = option(
        None, choice(SCORES), panel=TUNE, metavar="NAME", otherwise="nothing is pruned",
        help="Prune before the first step, --sparsity of the weights or --channels, by this.",
    )  # fmt: skip


THIN = shared(
    OPTIONS, ("sparsity", "channels", "pattern", "sparsity_allocate", "ignore", "round_to"),
    {
        "sparsity": "With --at-init: fraction of the weights that is zero from the first step on; with --learn-masks: "
        "that is zero at the end.",
        "channels": "With --at-init: fraction of the channels that is cut out before the first step; with "
        "--learn-masks: of those that are masked, and cut out at the end.",
        "pattern": "With --at-init or --learn-masks: how the zeros lie.",
        "sparsity_allocate": "With --at-init or --learn-masks: where the zeros go; by one threshold (global) where "
        "nobody says, but for edge-popup.",
    },
)  # fmt: skip
LEARNED = (
    *declared(Masked),
    *shared(
        OPTIONS, ("heads", "sparsity_schedule"),
        {
            "heads": "With --learn-masks: fraction of the attention heads that is masked, and cut out at the end.",
            "sparsity_schedule": f"With --learn-masks: how zeros grow; {GROWTH} where nobody says.",
        },
    ),
)  # fmt: skip


TRAIN = (
    *shared(
        OPTIONS, ("train", "train_labels", "evaluate", "labels", "metric", "tune"),
        {
            "train": "Samples to train on: any source that --calibration takes, read as it is needed, with labels (an "
            "array labels, sub-folders per class, or --train-labels); the loss is their cross entropy.",
            "evaluate": "Measure before and after on this: samples with labels, or module:function in Python.",
            "tune": f"How much: so many epochs, or 500steps, or a time, 5min; {EPOCHS} where nobody says. An eighth of "
            "the samples, at most 512, is held out, and the average of the weights that is best on them is written.",
        },
    ),
    *declared(Beginning),
    *THIN,
    *LEARNED,
    *shared(
        OPTIONS, (*OWN, "augment", "cache", *(f.name for f in fields(Preprocess)), "seed", "threads"),
        {
            "loss": "What is trained towards: names with weights, or a .onnx file that computes one number from the "
            "outputs and labels; cross-entropy where nobody says. Others than it compare with the outputs of MODEL as "
            "it came.",
            "learning_rate": "The highest rate, after --warmup; with --init 0.001, of sgd 0.05, where nobody says.",
            "augment": "Pictures as they might have been taken: alone cropped and flipped, or as the names say: flip, "
            "crop, resized-crop, mixup.",
            "cache": "Keep the state of the training here; a run that was stopped goes on to the same result.",
        },
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trained:
    """model: as written; report: plain data."""

    model: Model
    report: Mapping[str, Any]


def train(source: Any, train: Any, output: Path | str, *, progress: Progress = silent, **options: Any) -> Trained:
    """Train a model on labelled samples and write it, as `onnxprune train` does.

    source: path of an ONNX file, or what `load` takes; train, options: as of the command. Raises `UserError`, and
    `TypeError` for an unknown option.
    """
    with called("train", TRAIN, {"train": train, **options}) as (values, preprocess):
        return trained(source, Path(output), values, preprocess, progress)


def trained(
    source: Any, target: Path, values: Mapping[str, Any], preprocess: Preprocess, progress: Progress
) -> Trained:
    """Train a model and write it. values: options by name, those that were not given with their defaults.

    Raises `UserError` where it cannot be trained; then nothing is written.
    """
    from onnxprune.training.trainer import Trainer  # the rules of all gradients take a while to be read

    refuse_unused(values)
    refuse_thin(values)
    refuse_masks(values)
    clock = Clock(progress)
    clock("load")
    given = load(source)
    clock("calibration")
    data = samples_of(given, values, preprocess)
    judges = judges_of(given, values, preprocess)
    seen = [data.samples, *(j.samples for j in judges if isinstance(j, Evaluator))]
    if line := unused(preprocess, *seen):
        raise OptionError(line)
    start, pruned = thinned(given, data, values, clock)
    clock("tune")
    words = OWN if values["learn_masks"] is None else (*OWN, *(o.name for o in MASKS))
    asked = {name: values[name] for name in words if values[name] is not None}
    trainer = Trainer(
        start, data, steps=values["tune"] or EPOCHS, init=values["init"] if pruned is None else start,
        augment=values["augment"], cache=values["cache"], seed=values["seed"], threads=values["threads"], **asked,
    )  # fmt: skip
    if trainer.resumed:
        clock.note(f"going on after {trainer.position} of {trainer.steps} steps, which {values['cache']} holds")
    trainer.train(counting(progress, "tune"), clock.note)
    out, learned = finished(trainer.run.masks, trainer.export(), data.feeds([0]), values["seed"])
    before = scored(judges, trainer.model)
    if learned is None:
        check_file(start, out)
    running(out, [data.feeds([0])], measured=False)
    clock("save")
    save(out, target)
    clock("evaluate")
    written = load(target)
    after = scored(judges, written)
    clock("")
    report = _report(source, target, data.samples.description, trainer, values, before, after, clock)
    notes = [*(() if pruned is None else pruned.pop("notes")), *report["notes"]]
    return Trained(written, {**report, "at_init": pruned, "masks": learned, "notes": notes})


def thinned(
    given: Model, data: TrainingSet, values: Mapping[str, Any], clock: Clock
) -> tuple[Model, dict[str, Any] | None]:
    """The model with new weights and without those that --at-init leaves out, and what is to be said of that; the model
    as it came, and None, without the option.

    Statistics of normalisations follow those of some batches first, where samples say what goes.
    """
    from onnxprune.training.trainer import Trainer

    name = values["at_init"]
    if name is None:
        return given, None
    clock("score")
    steps, start = counting(clock.progress, "score"), initial(given, values["init"])
    began, notes, model = time.perf_counter(), list(start.notes), start.model
    if by_gradients(name) and not SOLVERS[name].rounds:
        settling = Trainer(given, data, steps="1steps", init=model, seed=values["seed"], threads=values["threads"])
        settling.settle()
        model = settling.export("weights")
    if values["channels"] is not None:
        thin = fewer_channels(model, values["channels"], name, values, values["seed"]).model
        left = size(thin) / size(given)
    else:
        how, by = choice_of(name, values), by_training(data, values["threads"], values["seed"])
        share = float(values["sparsity"] or 0.0)
        masks, more = choose(model, trainable(model), share, how, by, steps)
        thin, left = masked(start.model, masks), left_of(masks)
        notes += more
    return thin, {"importance": name, "left": left, "seconds": time.perf_counter() - began, "notes": notes}


def samples_of(model: Model, values: Mapping[str, Any], preprocess: Preprocess) -> TrainingSet:
    """The samples of --train. Raises `OptionError` where they do not fit, or lack labels."""
    loss = values["loss"]
    data = training_set(
        model, values["train"], values["train_labels"], preprocess=preprocess, seed=values["seed"],
        any_labels=callable(loss) or isinstance(loss, Path),
    )  # fmt: skip
    if data.labels is None and loss is None:
        raise OptionError(NO_LABELS)
    return data


def refuse_time(values: Mapping[str, Any]) -> None:
    """Raises `OptionError` for a time, where several trainings are compared: each takes as many steps."""
    if amount(values["tune"] or EPOCHS)[1] == "seconds":
        raise OptionError(f"--tune {values['tune']}: give epochs or steps, as 500steps; all take as many")


def judges_of(model: Model, values: Mapping[str, Any], preprocess: Preprocess) -> list[Evaluator | Function]:
    """What scores models on --evaluate: by the metric and, of a classifier with labels, by the loss too."""
    asked = values["evaluate"]
    if asked is None:
        return []
    if is_function(asked):
        return [Function(asked)]
    samples = read(asked, model, preprocess=preprocess, labels=values["labels"], option="--evaluate")
    metric = metric_of(model, samples, values["metric"], values["labels"])
    names = dict.fromkeys([metric, "loss"] if METRICS[metric].labels else [metric])
    return [Evaluator(model, samples, name, threads=values["threads"]) for name in names]


def refuse_thin(values: Mapping[str, Any]) -> None:
    """Raises `OptionError` for an option of --at-init that lacks another, or has no effect."""
    amounts = [n for n in ("sparsity", "channels", "pattern") if values[n] is not None]
    if values["learn_masks"] is not None:
        if values["at_init"] is not None:
            both = f"--at-init {values['at_init']} and --learn-masks {values['learn_masks']}"
            raise OptionError(f"{both}: one or the other; leave one of them out")
        return
    if values["at_init"] is None:
        idle = [o.name for o in THIN if values[o.name] != o.default]
        if idle:
            flag = f"--{idle[0].replace('_', '-')}"
            way = f"a trained model is pruned by onnxprune MODEL {flag}"
            raise OptionError(f"{flag} needs --at-init NAME or --learn-masks NAME here; {way}")
        return
    if values["init"] is None:
        raise OptionError(f"--at-init {values['at_init']} needs --init SEED: it chooses among weights never trained")
    if not amounts:
        raise OptionError(f"--at-init {values['at_init']}: say how much goes, with --sparsity 0.98 or --channels 0.5")
    if values["channels"] is not None and len(amounts) > 1:
        raise OptionError(f"--channels and --{amounts[0]}: with --at-init one or the other; leave one of them out")
    refuse_idle(values, values["channels"] is not None, "--channels")
    Zeros(**{n: values[n] for n in ("sparsity", "pattern", "sparsity_allocate")}).check(False)


def refuse_masks(values: Mapping[str, Any]) -> None:
    """Raises `OptionError` for an option of --learn-masks that lacks another, or has no effect."""
    of_others = {o.name for o in THIN} if values["learn_masks"] is None else set()
    own = {n: v for n, v in values.items() if n not in of_others}
    learning_of(own, values["optimizer"], values["init"] is not None)


def refuse_unused(values: Mapping[str, Any]) -> None:
    """Raises `OptionError` for an option that another one leaves without effect, or that lacks."""
    if values["train"] is None:
        raise OptionError("train: on what is for --train SRC to say: a folder, a zip, .npz or .npy, with labels")
    known = {o.name: o for o in declared(Training)}
    if values["momentum"] != known["momentum"].default and values["optimizer"] != "sgd":
        raise OptionError(f"{known['momentum'].as_typed(values['momentum'])} needs --optimizer sgd")
    for name in ("labels", "metric"):
        if values[name] is not None and (values["evaluate"] is None or is_function(values["evaluate"])):
            raise OptionError(f"--{name} needs --evaluate SRC, samples and no function")


def _report(
    source: Any, target: Path, data: str, trainer: Trainer, values: Mapping[str, Any], before: list[Score],
    after: list[Score], clock: Clock,
) -> dict[str, Any]:  # fmt: skip
    run, first, last = trainer.run, dict(trainer.run.curve)[0], dict(trainer.run.curve)[trainer.run.best]
    return {
        "version": __version__, "model": shown(source), "output": str(target), "data": data, "init": values["init"],
        "steps": run.position, "planned": trainer.steps, "batch": run.batch, "learning_rate": run.rate,
        "range_test": [list(pair) for pair in run.tried],
        "loss": run.objective.description, "augment": list(run.augment),
        **{n: record(values[n]) for n in OWN if n not in ("loss", "learning_rate", "batch_size")},
        "held_out": {
            "samples": trainer.unseen.count, "copies": run.quiz.copies, "before": first, "after": last,
            "best": run.best, "curve": [list(point) for point in run.curve], "accuracy": run.shares,
        },
        "evaluation": [
            {
                "metric": b.metric, "before": b.value, "after": a.value, "standard_error": a.standard_error,
                "samples": a.samples,
            }
            for b, a in zip(before, after, strict=True)
        ],
        "notes": [*trainer.notes, *run.notes, *([] if run.masks is None else run.masks.said())],
        "seconds": dict(clock.seconds),
    }  # fmt: skip
