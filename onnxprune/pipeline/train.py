"""Training alone: a model and samples in, the trained model out, with what it was worth before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune import __version__
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.read import read
from onnxprune.calibration.samples import unused
from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import METRICS, Evaluator, Function, Score, is_function, metric_of
from onnxprune.evaluation.training_set import training_set
from onnxprune.graph.io import Model, load, save
from onnxprune.options import TUNE, declared, integer, option, record
from onnxprune.progress import Clock, Progress, counting
from onnxprune.structure.check import check_file, running
from onnxprune.training.options import OWN, Training

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


@dataclass(frozen=True, eq=False)
class Trained:
    """model: as written; report: plain data."""

    model: Model
    report: Mapping[str, Any]


def train(source: Path, target: Path, values: Mapping[str, Any], preprocess: Preprocess, progress: Progress) -> Trained:
    """Train a model and write it. values: options by name, those that were not given with their defaults.

    Raises `UserError` where it cannot be trained; then nothing is written.
    """
    from onnxprune.training.trainer import Trainer  # the rules of all gradients take a while to be read

    refuse_unused(values)
    clock = Clock(progress)
    clock("load")
    given = load(source)
    loss = values["loss"]
    clock("calibration")
    data = training_set(
        given, values["train"], values["train_labels"], preprocess=preprocess, seed=values["seed"],
        any_labels=callable(loss) or isinstance(loss, Path),
    )  # fmt: skip
    judges = judges_of(given, values, preprocess)
    seen = [data.samples, *(j.samples for j in judges if isinstance(j, Evaluator))]
    if line := unused(preprocess, *seen):
        raise OptionError(line)
    clock("tune")
    asked = {name: values[name] for name in OWN if values[name] is not None}
    trainer = Trainer(
        given, data, steps=values["tune"] or EPOCHS, init=values["init"], augment=values["augment"],
        cache=values["cache"], seed=values["seed"], threads=values["threads"], **asked,
    )  # fmt: skip
    if trainer.resumed:
        clock.note(f"going on after {trainer.position} of {trainer.steps} steps, which {values['cache']} holds")
    trainer.train(counting(progress, "tune"), clock.note)
    out = trainer.export()
    before = [judge(trainer.model) for judge in judges]
    check_file(given, out)
    running(out, [data.feeds([0])], measured=False)
    clock("save")
    save(out, target)
    clock("evaluate")
    written = load(target)
    after = [judge(written) for judge in judges]
    clock("")
    return Trained(written, _report(source, target, data.samples.description, trainer, values, before, after, clock))


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
    source: Path, target: Path, data: str, trainer: Trainer, values: Mapping[str, Any], before: list[Score],
    after: list[Score], clock: Clock,
) -> dict[str, Any]:  # fmt: skip
    run, first, last = trainer.run, dict(trainer.run.curve)[0], dict(trainer.run.curve)[trainer.run.best]
    return {
        "version": __version__, "model": str(source), "output": str(target), "data": data, "init": values["init"],
        "steps": run.position, "planned": trainer.steps, "batch": run.batch, "learning_rate": run.rate,
        "loss": run.objective.description, "augment": list(run.augment),
        **{n: record(values[n]) for n in OWN if n not in ("loss", "learning_rate", "batch_size")},
        "held_out": {
            "samples": trainer.unseen.count, "before": first, "after": last, "best": run.best,
            "curve": [list(point) for point in run.curve], "accuracy": run.shares,
        },
        "evaluation": [
            {
                "metric": b.metric, "before": b.value, "after": a.value, "standard_error": a.standard_error,
                "samples": a.samples,
            }
            for b, a in zip(before, after, strict=True)
        ],
        "notes": [*trainer.notes, *run.notes], "seconds": dict(clock.seconds),
    }  # fmt: skip
