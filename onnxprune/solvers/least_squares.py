"""Least squares of targets on rows that arrive in batches.

Moments of rows x `(n, d)` and targets t `(n, o)` are summed up; the solution minimises

    mean ||x W + b - t||^2 + ridge * mean(diag G) * ||W - W0||^2,       G = covariance of x

so that what the data do not tell stays as in W0. Sums are kept in float64 about the mean of the first batch; products
within a batch are float32, where those hold them. Moments of what is not finite are NaN, and have no solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.blas import dger

from onnxprune.graph.arrays import Array, Float

SCALES = (0.2, 5.0)  # by which `match` may scale an output


TOGETHER = 1024  # rows that are summed up at once, or twice the columns
TRIES = (1.0, 10.0, 100.0)  # ridges, until one leaves the normal equations positive definite
KEPT = 4096  # columns up to which covariance and factor are kept beside the sums


def _summable(x: Array) -> Array:
    """Rows as they are, float64 where sums of their squares leave float32; what is not finite becomes NaN."""
    if not x.size or max(float(x.max()), -float(x.min())) < 1e18 / np.sqrt(len(x)):  # also False for NaN
        return x
    return np.where(np.isfinite(x), x, np.nan).astype(np.float64)


def _column_sums(x: Array) -> Float:
    return np.asarray(np.ones(len(x), x.dtype) @ x, np.float64)


class Moments:
    """Running first and second moments of rows and targets.

    intercept: whether a constant is fitted too; without one, moments are taken about zero.
    """

    def __init__(self, *, intercept: bool = True) -> None:
        self.intercept = intercept
        self.count = self.settled = 0  # rows, and those that are summed up
        self._waiting: list[tuple[Array, Array]] = []
        self.xx = np.zeros((0, 0))
        self._known: Moments | None = None
        self._gram: tuple[int, Float] = (-1, self.xx)  # of how many rows
        self._factor: tuple[tuple[int, float], tuple[Any, float]] | None = None  # of how many rows, and which ridge

    def like(self) -> Moments:
        """Moments of the same rows, which need not be summed up again, and of other targets."""
        other = Moments(intercept=self.intercept)
        other._known = self
        return other

    def add(self, x: Array, t: Array | None = None) -> None:
        """Sum up a batch. x: float32 `(n, d)`; t: float32 `(n, o)`, or None where only the rows matter."""
        if len(x):
            self._waiting.append((x, np.zeros((len(x), 0), np.float32) if t is None else t))
            self.count += len(x)
            if sum(len(x) for x, _ in self._waiting) >= max(TOGETHER, 2 * x.shape[1]):
                self._settle()

    def _settle(self) -> None:
        """Sum up the batches that wait: products of many rows at once are quicker than of few."""
        if not self._waiting:
            return
        x, t = (np.concatenate(each) if len(each) > 1 else each[0] for each in zip(*self._waiting, strict=True))
        self._waiting.clear()
        x, t = _summable(x), _summable(t)
        if not self.settled:
            d, o = x.shape[1], t.shape[1]
            self.x0 = x.mean(0) if self.intercept else np.zeros(d, np.float32)
            self.t0 = t.mean(0) if self.intercept else np.zeros(o, np.float32)
            self.xx, self.xt = np.zeros((d, d)) if self._known is None else self._known.xx, np.zeros((d, o))
            self.sx, self.st, self.tt = np.zeros(d), np.zeros(o), np.zeros(o)
        x, t = x - self.x0, t - self.t0
        if self._known is None:
            self.xx += x.T @ x
        self.xt += x.T @ t
        self.sx += _column_sums(x)
        self.st += _column_sums(t)
        self.tt += np.einsum("no,no->o", t, t)
        self.settled += len(x)

    @property
    def x_mean(self) -> Float:
        """Mean of the rows, `(d,)`; zeros without intercept."""
        self._settle()
        return np.asarray(self.x0 + (self.sx / self.count if self.intercept else 0.0))

    @property
    def t_mean(self) -> Float:
        """Mean of the targets, `(o,)`; zeros without intercept."""
        self._settle()
        return np.asarray(self.t0 + (self.st / self.count if self.intercept else 0.0))

    @property
    def gram(self) -> Float:
        """Covariance of the rows, `(d, d)`; second moments without intercept."""
        if self._known is not None and self._known.count == self.count:
            return self._known.gram
        if self._gram[0] == self.count:
            return self._gram[1]
        gram = self.covariance()
        if len(gram) <= KEPT:
            gram.flags.writeable = False
            self._gram = self.count, gram
        return gram

    def covariance(self) -> Float:
        """`gram` in an array of its own."""
        rows = self if self._known is None else self._known
        rows._settle()
        return rows._centred(rows.xx, rows.sx, rows.sx)

    def factor(self, ridge: float) -> tuple[Any, float]:
        """Cholesky factor of the covariance with `damping` on its diagonal, for `cho_solve`, and the damping: tenfold
        where rounding leaves nothing positive definite. Raises LinAlgError where that does not help."""
        if self._known is not None and self._known.count == self.count:
            return self._known.factor(ridge)
        if self._factor is not None and self._factor[0] == (self.count, ridge):
            return self._factor[1]
        for harder in TRIES:
            damped = self.covariance()
            lam = damping(damped, ridge * harder)
            damped[np.diag_indices_from(damped)] += lam
            try:
                factor = cho_factor(damped, overwrite_a=True, check_finite=False), lam
            except LinAlgError:
                if harder == TRIES[-1]:
                    raise
                continue
            break
        if len(damped) <= KEPT:
            self._factor = (self.count, ridge), factor
        return factor

    @property
    def cross(self) -> Float:
        """Covariance of rows and targets, `(d, o)`."""
        self._settle()
        return self._centred(self.xt, self.sx, self.st)

    @property
    def variance(self) -> Float:
        """Variance of the targets, `(o,)`; second moments without intercept."""
        self._settle()
        mean = self.st / self.count if self.intercept else 0.0
        return np.maximum(self.tt / self.count - np.square(mean), 0.0)

    def _centred(self, total: Float, a: Float, b: Float) -> Float:
        out = total / self.count
        if self.intercept and out.size:  # in place: these are the largest arrays that there are
            dger(-1.0, b / self.count, a / self.count, a=out.T, overwrite_a=1)
        return out


@dataclass(frozen=True, eq=False)
class Fit:
    """weight: `(d, o)`; shift: `(o,)`; error: unexplained variance of the targets over their variance."""

    weight: Float
    shift: Float
    error: float


class Singular(Exception):
    """No solution: the text says why."""


def damping(gram: Float, ridge: float) -> float:
    """What is added to the diagonal of a Gram matrix `(d, d)`: the ridge times the rows' mean variance, above 0."""
    return ridge * float(np.mean(np.diag(gram))) + 1e-12


def solve_ridge(moments: Moments, prior: Float, *, ridge: float, cross: Float | None = None) -> Fit:
    """The W and b that minimise the module's formula, by Cholesky of the normal equations in float64.

    prior: W0 `(d, o)`; ridge: of the formula; cross: instead of the moments' own, `(d, o)`, with the same rows.

    Raises `Singular` where there are no rows, where they do not vary, or where the numbers are not finite.
    """
    if not moments.count:
        raise Singular("no data reached it")
    gram, target = moments.gram, moments.cross if cross is None else cross
    if not (np.isfinite(gram).all() and np.isfinite(target).all()):
        raise Singular("its inputs are not finite")
    if not np.diag(gram).any():
        raise Singular("its inputs are constant")
    try:
        factor, lam = moments.factor(ridge)
    except LinAlgError:
        raise Singular("the normal equations are singular") from None
    weight = cho_solve(factor, target + lam * prior, check_finite=False)
    return Fit(weight, moments.t_mean - moments.x_mean @ weight, error(moments, weight))


def match(moments: Moments, prior: Float) -> Fit:
    """The prior `(d, o)`, each output scaled, by SCALES at most, and shifted to the mean and the standard deviation of
    its target. Raises `Singular` as `solve_ridge`."""
    if not moments.count:
        raise Singular("no data reached it")
    if not (np.isfinite(moments.gram).all() and np.isfinite(moments.variance).all()):
        raise Singular("its inputs are not finite")
    if not np.diag(moments.gram).any():
        raise Singular("its inputs are constant")
    spread, goal = np.einsum("do,do->o", prior, moments.gram @ prior), moments.variance
    varies = np.minimum(spread, goal) > 1e-12 * max(float(spread.max(initial=0.0)), float(goal.max(initial=0.0)))
    scale = np.sqrt(np.where(varies, goal / np.where(varies, spread, 1.0), 1.0))
    weight = prior * np.clip(scale, *SCALES)
    return Fit(weight, moments.t_mean - moments.x_mean @ weight, error(moments, weight))


def error(moments: Moments, weight: Float) -> float:
    """Unexplained variance of the targets over their variance, with the best shift; 0 where they do not vary."""
    total = float(moments.variance.sum())
    explained = 2 * np.einsum("do,do->", weight, moments.cross) - np.einsum("do,do->", weight, moments.gram @ weight)
    return max(total - float(explained), 0.0) / total if total > 0 else 0.0
