"""The rate at each step: a linear warm-up times a row of `SCHEDULES`, which go by the share of the steps that is done.

>>> [round(rate(k, 8, 1.0), 3) for k in (0, 1, 2, 7)]
[0.5, 0.95, 0.812, 0.0]
>>> [rate(k, 8, 1.0, "step", 0) for k in (0, 3, 4, 6)]
[1.0, 1.0, 0.1, 0.01]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP = 20  # steps, at most an eighth of all


@dataclass(frozen=True)
class Schedule:
    """help: for the user; factor: of the highest rate, at the share of the steps that is done, 0 to 1."""

    help: str
    factor: Callable[[float], float]


SCHEDULES: dict[str, Schedule] = {
    "cosine": Schedule(
        "half a cosine down to zero (Loshchilov and Hutter 2017)", lambda x: 0.5 * (1 + math.cos(math.pi * x))
    ),
    "linear": Schedule("a line down to zero", lambda x: 1 - x),
    "step": Schedule(
        "a tenth after half of the steps, a hundredth after three quarters",
        lambda x: 1.0 if x < 0.5 else 0.1 if x < 0.75 else 0.01,
    ),
    "constant": Schedule("the same at every step", lambda x: 1.0),
}  # fmt: skip


def rate(step: int, steps: int, highest: float, schedule: str = "cosine", warmup: int | None = None) -> float:
    """The rate of a step, counted from 0, of so many. warmup: steps in which it rises."""
    warm = max(1, min(WARM_UP, steps // 8)) if warmup is None else warmup
    fraction = min(step / max(steps - 1, 1), 1.0)
    return highest * min(1.0, (step + 1) / (warm + 1)) * SCHEDULES[schedule].factor(fraction)
