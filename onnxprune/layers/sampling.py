"""How many rows of a layer's regression are used, and of how many samples.

A least-squares fit on n rows of d columns is worse than the best one by about d / n of the error that is left: rows are
taken until that is small. Neighbouring positions of a sample are alike, so that a sample gives a part of its positions;
of layers with many positions the first samples alone are asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array

ROWS_EACH = 20  # for every column, to begin with
MOST_EACH = 100  # and at most
ROWS = 10_000  # of one layer at least, where they are
EXCESS = 2e-3  # of the variance of the targets: what too few rows may cost
WORK = 6e10  # multiply-adds for one layer's moments, at most, but for
ROWS_LEAST = 10  # rows for every column
SAMPLES = 32  # that are asked at least
INDEPENDENT = 64  # positions of a sample that tell something new, or the root of so many times those that there are


@dataclass(frozen=True)
class Sampling:
    """batches: how many of the first are asked; share: of the positions of each that become rows."""

    batches: int
    share: float

    def rows(self, positions: int) -> int:
        """How many of a batch's positions become rows: one at least, where there are any."""
        return min(positions, max(1, round(positions * self.share)))

    def picked(self, positions: int, rng: np.random.Generator) -> Array | None:
        """Positions of a batch that become rows, in rising order; None for all."""
        count = self.rows(positions)
        return None if count == positions else np.sort(rng.choice(positions, count, replace=False))


def rows_needed(width: int, groups: int, each: float) -> float:
    """Rows for a layer of so many columns, of which every group has as many; each: for every column."""
    most = max(WORK / (width * width * groups), ROWS_LEAST * width)
    return min(max(ROWS, each * width), most)


def each_for(error: float) -> float:
    """Rows for every column that a fit of this unexplained share of the variance needs."""
    return min(max(error / EXCESS, ROWS_EACH), MOST_EACH)


def useful(positions: float) -> float:
    """Of so many positions of a sample those that tell something new."""
    return min(positions, max(INDEPENDENT, math.sqrt(INDEPENDENT * positions)))


def sampling(needed: float, positions: int, batches: int, samples: int) -> Sampling:
    """Where so many rows come from. positions: of one batch; batches: that there are, of `samples` each."""
    positions = max(positions, 1)
    asked = max(math.ceil(needed / useful(positions / samples)), SAMPLES)
    taken = min(batches, math.ceil(asked / samples))
    return Sampling(taken, min(1.0, needed / (taken * positions)))
