"""What became of a tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tuning:
    """What became of it. before, after: mean loss on the held-out samples; curve: (step, that loss) at every look;
    best: the step whose average of weights was taken, 0 where the model stayed as it was; rate: that was used."""

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

    def to_plan(self) -> dict[str, Any]:
        """What it takes to do it again, by option."""
        return {
            "steps": self.steps, "batch_size": self.batch, "learning_rate": self.rate, "optimizer": self.optimizer
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {**vars(self), "curve": [list(point) for point in self.curve]}
