"""What became of a tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def judged(samples: int, copies: int) -> str:
    """Of what the loss is that is said."""
    if copies == 1:
        return f"loss on {samples} held out"
    return f"judged on {copies} copies of {samples} samples held out: loss"


@dataclass(frozen=True)
class SparseLearning:
    """What became of a training under a penalty, before the cut. method, strength: of `REGULARIZERS`; units: that it
    pulled at; before, after: mean loss on the samples held out, without the penalty; small_before, small_after: share
    of the units whose norm is at most a hundredth of what that of the largest of its group was at first; norms: sum of
    the units' norms over what it was; groups: of the units; left: steps for what follows the cut; range_test, copies:
    as of `Tuning`."""

    method: str
    strength: float
    steps: int
    batch: int
    rate: float
    units: int
    held_out: int
    before: float
    after: float
    small_before: float
    small_after: float
    norms: float
    groups: tuple[str, ...] = ()
    left: int = 0
    range_test: tuple[tuple[float, float], ...] = ()
    copies: int = 1

    def to_plan(self) -> dict[str, Any]:
        """What it takes to do it again, beside what the plan says of tuning."""
        return {
            "method": self.method, "strength": self.strength, "steps": self.steps, "learning_rate": self.rate,
            "groups": list(self.groups),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {**vars(self), "range_test": [list(point) for point in self.range_test]}


@dataclass(frozen=True)
class Tuning:
    """What became of it. before, after: mean loss on the held-out samples; curve: (step, that loss) at every look;
    best: the step whose average of weights was taken, 0 where the model stayed as it was; rate: that was used; loss: as
    --loss has it; augment: what was done to pictures; train: what --train was, "" without; range_test: (rate, loss on
    the held-out samples) of every rate that was tried, none where it was given or the steps were few; copies: in which
    every sample was held out, 1 for as it came."""

    steps: int
    batch: int
    rate: float
    optimizer: str
    held_out: int
    trained: int
    before: float
    after: float
    best: int
    curve: tuple[tuple[int, float], ...] = ()
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int | None = None
    loss: str = "kl"
    augment: tuple[str, ...] = ()
    train: str = ""
    range_test: tuple[tuple[float, float], ...] = ()
    copies: int = 1

    def to_plan(self) -> dict[str, Any]:
        """What it takes to do it again, by option."""
        return {
            "steps": self.steps, "batch_size": self.batch, "learning_rate": self.rate, "optimizer": self.optimizer,
            "momentum": self.momentum, "weight_decay": self.weight_decay, "schedule": self.schedule,
            "warmup": self.warmup, "loss": self.loss, "augment": list(self.augment), "train": self.train,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        lists = {"curve": self.curve, "range_test": self.range_test}
        return {**vars(self), **{name: [list(point) for point in points] for name, points in lists.items()}}
