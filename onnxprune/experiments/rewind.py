"""Rewinding: what goes back to a step of the first training before a thinner network is trained.

>>> point("200")(1000), point("2%")(1000), point("0")(1000)
(200, 20, 0)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model

if TYPE_CHECKING:
    from onnxprune.training.trainer import Trainer

WHAT = {
    "weights": "weights and schedule (Frankle et al. 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis)",
    "schedule": "the schedule alone; weights stay as they were trained (Renda et al. 2020, learning-rate rewinding)",
}
Point = Callable[[int], int]  # steps of a training -> the step that it goes back to


def point(value: Any) -> Point:
    """Where --rewind goes back to: a step, or a percentage of the steps. Raises `ValueError`."""
    text = str(value).strip()
    number = text.removesuffix("%").strip()
    try:
        x = float(number)
    except ValueError:
        x = -1.0
    if not 0 <= x < float("inf") or (number != text and x >= 100) or (number == text and x != int(x)):
        raise ValueError("expected a step, as 200, or a percentage of the steps below 100, as 2%")
    return (lambda steps: round(steps * x / 100)) if number != text else (lambda steps: int(x))


def rewind(
    trainer: Trainer, start: Mapping[str, Array], masks: Mapping[str, Array], trained: Model | None = None
) -> None:
    """Let a training stand where it stood in `start`, but for weights that are gone. trained: a model whose weights
    stay, in place of those of `start`; what the optimizer knew of these goes then."""
    trainer.restore(start)
    trainer.run.forget()
    if trained is not None:
        trainer.begin(trained)
    trainer.mask(masks)
