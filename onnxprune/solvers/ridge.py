"""The ridge of a regression, chosen on rows that the fit has not seen.

No ridge suits all layers: of one that has hundreds of rows for every column any small one does, while one behind a
global pool has a single row of every sample, fits them exactly with a small ridge, and says little of others. The rows
of every fourth sample are withheld; the ridge by which the fit predicts these best is taken, and they are summed up
with the others after that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.graph.arrays import Array, Float
from onnxprune.solvers.least_squares import Moments, Singular

PART = 4  # the rows of one sample in so many are withheld
FEW = 16  # rows, of which nothing is told
ROOM = 64e6  # bytes of rows and targets that are withheld, at most
PLENTY = 300  # rows for every column, of which no ridge is worth looking for
GAIN = 1e-4  # of the targets' variance: what another ridge must gain
APART = math.sqrt(10)  # a ridge over the next smaller one
RANGE = 1e-3, 1e3  # of ridges


class Withheld:
    """Rows and targets on the way into the moments of a layer's groups, of which some wait until a ridge is chosen.

    rounded: weights `(groups, in, out)` as they will be stored; choose: whether any wait; scores: whether what is
    predicted of rows that the fit has not seen is kept beside their targets, as `unseen`.
    """

    def __init__(
        self, moments: Sequence[Moments], rounded: Callable[[Float], Float] = lambda weight: weight, *,
        choose: bool = True, scores: bool = False,
    ) -> None:  # fmt: skip
        self.moments, self.rounded, self.choose, self.scores = moments, rounded, choose, scores
        self.bytes = 0
        self.waiting: list[tuple[Array, Array]] = []
        self.unseen: tuple[Array, Array] | None = None

    def add(self, x: Array, t: Array, samples: int = 1, first: int = 0) -> None:
        """Rows of a batch, those of a sample one after the other. x: float32 `(groups, n, in)`; t: float32 `(groups, n,
        out)`; samples: that the rows are of, about as many of each; first: how many came before them."""
        of = first + np.arange(x.shape[1]) * samples // max(x.shape[1], 1)
        waits = of % PART == PART - 1
        if not self.choose or self.bytes > ROOM or not waits.any():
            self.sum_up(x, t)
            return
        self.sum_up(x[:, ~waits], t[:, ~waits])
        self.waiting.append((x[:, waits], t[:, waits]))
        self.bytes += sum(part.nbytes for part in self.waiting[-1])

    def sum_up(self, x: Array, t: Array) -> None:
        """A batch of which nothing waits."""
        for g, m in enumerate(self.moments):
            m.add(x[g], t[g])

    def chosen(self, fit: Callable[[float], Float], ridge: float) -> float:
        """The best ridge for all groups, in mean variances of the rows, by steps downhill from the one that is given,
        which it is where too few rows wait or nothing can be solved.

        fit: weights `(groups, in, out)` with a ridge, of what is summed up; may raise `Singular`.
        """
        if sum(x.shape[1] for x, _ in self.waiting) < FEW:
            return ridge
        x, t = (np.concatenate(each, 1) for each in zip(*self.waiting, strict=True))
        rows, best = self.moments[0].count, ridge
        search = 1 < rows < PLENTY * x.shape[2]
        if search or self.scores:
            known = self._predicted(x, fit, ridge)
            error, least = _off(known, t), GAIN * float(np.square(t - t.mean(1, keepdims=True), dtype=np.float64).sum())
            for step in (APART, 1 / APART) if search else ():
                while RANGE[0] <= (other := float(f"{best * step:.1g}")) <= RANGE[1]:
                    tried = self._predicted(x, fit, other)
                    if not _off(tried, t) < error - least:
                        break
                    best, known, error = other, tried, _off(tried, t)
                if best != ridge:
                    break
            if self.scores and known is not None:
                self.unseen = known, t
        return best

    def release(self) -> None:
        """Sum up what waits."""
        for x, t in self.waiting:
            self.sum_up(x, t)
        self.waiting, self.bytes = [], 0

    def _predicted(self, x: Array, fit: Callable[[float], Float], ridge: float) -> Array | None:
        """Targets of rows `(groups, n, in)` by a fit that has not seen them, float32 `(groups, n, out)`; None where
        there is none."""
        try:
            weights = self.rounded(fit(ridge))
        except Singular:
            return None
        shifts = np.stack([m.t_mean - m.x_mean @ w for m, w in zip(self.moments, weights, strict=True)])
        return np.asarray(np.matmul(x, weights.astype(np.float32)) + shifts[:, None].astype(np.float32))


def _off(predicted: Array | None, t: Array) -> float:
    """Squared error; NaN without a prediction."""
    return math.nan if predicted is None else float(np.square(predicted - t, dtype=np.float64).sum())


__all__ = ["Withheld"]
