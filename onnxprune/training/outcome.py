"""What became of a tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tuning:
    """What became of it. before, after: mean loss on the held-out samples; curve: (step, that loss) at every look;
    best: the step whose average of weights was taken, 0 where the model stayed as it was; rate: that was used; loss: as
    --loss has it; augment: what was done to pictures; train: what --train was, "" without; range_test: (rate, loss on
    the held-out samples) of every rate that was tried, none where it was given or the steps were few."""

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
