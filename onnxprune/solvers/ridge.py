"""The ridge of a regression, chosen on rows that the fit has not seen.

No ridge suits all layers: of one that has hundreds of rows for every column any small one does, while one behind a
global pool has a single row of every sample, fits them exactly with a small ridge, and says little of others. One row
in four is withheld, of other samples than the rest where there are several; the ridge by which the fit predicts these
best is taken, and they are summed up with the others after that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.graph.arrays import Array, Float
from onnxprune.solvers.least_squares import Moments, Singular, solve_ridge

PART = 4  # one row in so many is withheld
ROOM = 64e6  # bytes of rows and targets that are withheld, at most
PLENTY = 300  # rows for every column, of which no ridge is worth looking for
GAIN = 1e-4  # of the targets' variance: what another ridge must gain
APART = math.sqrt(10)  # a ridge over the next smaller one
RANGE = 1e-3, 1e3  # of ridges


class Withheld:
    """Rows and targets on the way into the moments of a layer's groups, of which some wait until a ridge is chosen.

    rounded: weights `(groups, in, out)` as they will be stored.
    """

    def __init__(self, moments: Sequence[Moments], rounded: Callable[[Float], Float] = lambda weight: weight) -> None:
        self.moments, self.rounded = moments, rounded
        self.seen = self.bytes = 0
        self.waiting: list[tuple[Array, Array]] = []

    def add(self, x: Array, t: Array) -> None:
        """A batch. x: float32 `(groups, n, in)`; t: float32 `(groups, n, out)`; its last rows wait."""
        n = x.shape[1]
        last = (self.seen + n) // PART - self.seen // PART
        self.seen += n
        if self.bytes > ROOM:
            last = 0
        self.sum_up(x[:, : n - last], t[:, : n - last])
        if last:
            self.waiting.append((x[:, n - last :].copy(), t[:, n - last :].copy()))
            self.bytes += sum(part.nbytes for part in self.waiting[-1])

    def sum_up(self, x: Array, t: Array) -> None:
        """A batch of which nothing waits."""
        for g, m in enumerate(self.moments):
            m.add(x[g], t[g])

    def chosen(self, priors: Sequence[Float], ridge: float) -> float:
        """The best ridge for all groups, in mean variances of the rows, by steps downhill from the one that is given,
        which it is where nothing waits or nothing can be solved; what waits is summed up.

        priors: W0 of each group, `(in, out)`.
        """
        waiting, self.waiting, self.bytes = self.waiting, [], 0
        if not waiting:
            return ridge
        x, t = (np.concatenate(each, 1) for each in zip(*waiting, strict=True))
        rows, columns = self.moments[0].count, x.shape[2]
        best = ridge
        if 1 < rows < PLENTY * columns:
            errors = {ridge: self._error(x, t, priors, ridge)}
            least = GAIN * float(np.square(t - t.mean(1, keepdims=True), dtype=np.float64).sum())
            for step in (APART, 1 / APART):
                while RANGE[0] <= (other := best * step) <= RANGE[1] and other not in errors:
                    errors[other] = self._error(x, t, priors, other)
                    if not errors[other] < errors[best] - least:
                        break
                    best = other
                if best != ridge:
                    break
        self.sum_up(x, t)
        return best

    def _error(self, x: Array, t: Array, priors: Sequence[Float], ridge: float) -> float:
        """Squared error of a fit without the rows `(groups, n, in)` on them; NaN where there is none."""
        try:
            fits = [solve_ridge(m, prior, ridge=ridge).weight for m, prior in zip(self.moments, priors, strict=True)]
        except Singular:
            return math.nan
        total = 0.0
        for m, weight, rows, targets in zip(self.moments, self.rounded(np.stack(fits)), x, t, strict=True):
            shift = m.t_mean - m.x_mean @ weight
            rest = rows @ weight.astype(np.float32) + (shift.astype(np.float32) - targets)
            total += float(np.square(rest, dtype=np.float64).sum())
        return total


__all__ = ["Withheld"]
