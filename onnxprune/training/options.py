"""What the user says of tuning."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Any

from onnxprune.options import TUNE, anything, choice, integer, number, option
from onnxprune.training import losses
from onnxprune.training.optimizers import OPTIMIZERS
from onnxprune.training.regularize import REGULARIZERS
from onnxprune.training.schedule import SCHEDULES

# of how weights follow gradients, wherever something is trained
OWN = ("loss", "learning_rate", "batch_size", "optimizer", "momentum", "weight_decay", "schedule", "warmup")
SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
_AMOUNT = re.compile(r"(\d+\.?\d*|\.\d+)\s*(epochs?|steps?|s|sec|min|h)?", re.IGNORECASE)


def amount(value: Any) -> tuple[float, str]:
    """How much tuning: `10` is (10, "epochs"), `500steps` (500, "steps"), `5min` (300, "seconds").

    Raises `ValueError` for anything else.
    """
    text = str(value) if isinstance(value, Real) and not isinstance(value, bool) else value
    match = _AMOUNT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError("expected epochs, steps or a time above 0, as 10, 500steps or 5min")
    x, unit = float(match.group(1)), (match.group(2) or "epochs").lower()
    kind = "seconds" if unit in SECONDS else "steps" if unit.startswith("step") else "epochs"
    x *= SECONDS.get(unit, 1.0)
    if not x > 0 or not math.isfinite(x) or (kind == "steps" and x != int(x)):
        raise ValueError("expected epochs, steps or a time above 0, as 10, 500steps or 5min")
    return x, kind


SHORT = 10  # parts of the tuning that a candidate of a search gets


def shortened(value: Any) -> str:
    """A tenth of an amount, one step at least.

    >>> shortened("500steps"), shortened(10), shortened("5min")
    ('50steps', '1', '30s')
    """
    x, kind = amount(value)
    x = max(1, round(x / SHORT)) if kind == "steps" else x / SHORT
    return f"{x:g}" + {"steps": "steps", "epochs": "", "seconds": "s"}[kind]


def _read(value: Any) -> Any:
    """The amount as it was given, which `amount` can read."""
    amount(value)
    return value


@dataclass(frozen=True)
class Training:
    """What the user says of the last stage that changes values."""

    tune: str | float | None = option(
        None, _read, panel=TUNE, metavar="AMOUNT", needs=("no plan", "a cut, zeros or clusters"),
        otherwise="no tuning",
        help="Train the weights that are left towards the original's outputs, on the calibration samples without "
        "labels, or on --train: so many epochs, or 500steps, or a time, 5min, which the plan records as steps. An "
        "eighth of the samples is held out; where they do not fare better, the model stays as it was.",
    )  # fmt: skip
    train: Any = option(
        None, anything, panel=TUNE, metavar="SRC", needs=("tuning or a plan",), otherwise="the calibration samples",
        help="Samples of --tune, and of what goes by labels, as --importance taylor: any source that --calibration "
        "takes, read as it is needed. With labels (an array labels, sub-folders per class, or --train-labels) the loss "
        "is cross entropy, for --tune mixed with distillation.",
    )  # fmt: skip
    train_labels: Any = option(
        None, anything, panel=TUNE, metavar="FILE", needs=("training samples",),
        help="Labels of --train: .npy, .txt, .csv, .json.",
    )  # fmt: skip
    loss: Any = option(
        None, losses.parse, panel=TUNE, metavar="NAME", needs=("tuning",),
        otherwise="cross-entropy:0.5,kl:0.5 with labels, else kl of a classifier, squared-error of other models",
        help="What is trained towards: names with weights, or a .onnx file that computes one number from the outputs "
        "and labels. In Python also a function that adds its nodes. "
        + "; ".join(f"{name}: {row.help}" for name, row in losses.LOSSES.items()) + ".",
    )  # fmt: skip
    learning_rate: float | None = option(
        None, number("a number above 0", 0, above=True), panel=TUNE, metavar="X", needs=("tuning",),
        otherwise="by a short range test; below 160 steps 0.0001, of sgd 0.01, ten times that where nothing made up "
        "for what went",
        help="The highest rate, after --warmup; it falls by --schedule.",
    )  # fmt: skip
    batch_size: int = option(
        64, integer("a whole number, 1 or more", 1), panel=TUNE, metavar="N", unit="samples", needs=("tuning",),
        help="Samples of one step; 1 where the model takes one at a time.",
    )  # fmt: skip
    optimizer: str = option(
        "adam", choice({name: row.help for name, row in OPTIMIZERS.items()}), panel=TUNE, metavar="NAME",
        needs=("tuning",), help="How weights follow gradients.",
    )  # fmt: skip
    momentum: float = option(
        0.9, number("a number from 0, below 1", 0, 1, below=True), panel=TUNE, metavar="X", needs=("tuning", "sgd"),
        help="Of sgd: the part of a step that the next one repeats.",
    )  # fmt: skip
    weight_decay: float = option(
        0.0, number("a number, 0 or more", 0), panel=TUNE, metavar="X", needs=("tuning",),
        help="The part of every weight, per step and unit of the rate, that it is pulled towards zero.",
    )  # fmt: skip
    schedule: str = option(
        "cosine", choice({name: row.help for name, row in SCHEDULES.items()}), panel=TUNE, metavar="NAME",
        needs=("tuning",), help="How the rate falls.",
    )  # fmt: skip
    regularize: str | None = option(
        None, choice({name: row.help for name, row in REGULARIZERS.items()}), panel=TUNE, metavar="NAME",
        needs=("no plan", "a cut", "tuning"), otherwise="no sparse learning",
        help="Before the cut, train the network for half of the steps of --tune under a penalty that drives whole "
        "units towards zero, and choose on what came out; the other half tunes after the cut.",
    )  # fmt: skip
    regularize_strength: float | None = option(
        None, number("a number above 0", 0, above=True), panel=TUNE, metavar="X", needs=("no plan", "a regularizer"),
        otherwise=", ".join(f"{row.strength:g} of {name}" for name, row in REGULARIZERS.items()),
        help="What the penalty adds to the loss at the first step; of growing the sum over all steps of the part that "
        "each takes of the weights.",
    )  # fmt: skip
    warmup: int | None = option(
        None, integer("a whole number of steps, 0 or more", 0), panel=TUNE, metavar="N", unit="steps",
        needs=("tuning",), otherwise="20, at most an eighth of all",
        help="Steps in which the rate rises to its height.",
    )  # fmt: skip
