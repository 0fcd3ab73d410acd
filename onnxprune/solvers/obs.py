"""Group OBS: which units of a layer's input can go with the least error, when the others make up for them.

With H = covariance of the rows + lam I and W the weights, removing the rows S of a unit costs

    e_S = tr(W_S' ([H^-1]_SS)^-1 W_S) = tr(B^-1 F),    B = [H^-1]_SS = C C', F = [W W']_SS

and the best answer of the others is W -= H^-1[:,S] B^-1 W_S, H^-1 -= H^-1[:,S] B^-1 H^-1[S,:] (Hassibi and Stork 1993;
for groups ZipLM, Kurtic et al. 2023). The cheapest unit goes, again and again. Where several layers read the units,
their costs are added, each relative to the energy of its outputs.

Of the weights W W' is enough. With q = C^-1 H^-1[S,:] and z = C^-1 [W W'][S,:] - (C^-1 F C'^-1) q / 2 a removal is

    H^-1 -= q' q,    W W' -= q' z + z' q

B and F of every unit follow at once; the large matrices are behind by up to LATE removed rows, and catch up by two
products of matrices: as the lazy updates of GPTQ (Frantar et al. 2023), in an order that is found on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dsyr2k, dsyrk
from scipy.linalg.lapack import dpotrf, dpotri

from onnxprune.graph.arrays import Array, Float
from onnxprune.kernels.compiled import njit
from onnxprune.solvers.least_squares import damping

LATE = 64  # removed rows that the large matrices may be behind


@dataclass(frozen=True, eq=False)
class Reader:
    """One layer that reads the units.

    gram: covariance of its rows `(d, d)`; weight: `(d, o)`; units: the unit of every row, -1 for none, `(d,)`.
    """

    gram: Float
    weight: Float
    units: Array

    @property
    def energy(self) -> float:
        """Variance of the outputs, summed over them."""
        return float(np.einsum("do,do->", self.weight, self.gram @ self.weight))


def removal_costs(readers: Sequence[Reader], size: int, *, ridge: float) -> Float:
    """Cost of every unit, `(size,)`: the relative error of the outputs by the time it goes; larger is more important.

    The unit that goes last has the largest cost. Units that nothing reads cost nothing. Takes about 2 d^3 multiply-adds
    and two float64 `(d, d)` per reader beside its own.
    """
    states = [_State(r, size, ridge, energy) for r in readers if 0 < (energy := r.energy) < np.inf]
    gone = np.zeros(size)  # inf: it went
    cost = np.zeros(size)
    error = 0.0
    for _ in range(size - 1):
        e = sum((s.scale * s.costs for s in states), start=gone)
        u = int(np.argmin(e))
        error += max(float(e[u]), 0.0)
        cost[u], gone[u] = error, np.inf
        for s in states:
            s.remove(u)
    cost[gone == 0] = error + float(np.finfo(np.float64).tiny) if not error else 2 * error
    return cost


class _State:
    """One reader while units go; its rows are sorted by unit.

    start, count: where a unit's rows begin, and how many they are, `(size,)`.
    b, f: B and F of every unit, flat, those of a unit from block on, `(size,)`; always up to date.
    costs: of every unit, `(size,)`, also up to date; times scale they are relative to the energy.
    inverse, outer: H^-1 and W W', `(d, d)`, the upper triangles of what they were `behind` removed rows ago.
    late: q and z of those rows, side by side, `(LATE, 2 d)`.
    """

    def __init__(self, reader: Reader, size: int, ridge: float, energy: float) -> None:
        order = np.argsort(reader.units, kind="stable")
        self.count = np.bincount(reader.units[reader.units >= 0], minlength=size)
        self.start = len(order) - np.cumsum(self.count[::-1])[::-1]
        self.living = np.ones(len(order), bool)
        self.inverse, self.floor = _inverse(reader.gram, order, damping(reader.gram, ridge))
        w = reader.weight[order]
        self.outer = w @ w.T
        self.late = np.empty((max(LATE, int(self.count.max())), 2 * len(order)))
        self.behind = 0
        self.block = np.cumsum(self.count**2) - self.count**2
        self.b, self.f = self._blocks(self.inverse), self._blocks(self.outer)
        self.c, self.g = np.empty((2, self.count.max(), self.count.max()))
        self.costs, self.scale = np.zeros(size), 1 / energy
        self._follow(self.late[:0])

    def _blocks(self, whole: Float) -> Float:
        """A unit's own rows and columns, for every unit, flat."""
        parts = [np.triu(whole[s : s + k, s : s + k]) for s, k in zip(self.start, self.count, strict=True)]
        return np.concatenate([(p + np.triu(p, 1).T).ravel() for p in parts])

    def _follow(self, late: Float) -> None:
        """B, F and the costs of the units, after a removal whose q and z these are."""
        kept = self.b, self.f, self.floor, self.c, self.g
        _follow(late, self.start, self.count, self.block, *kept, self.costs)

    def remove(self, u: int) -> None:
        """Remove a unit, and bring B, F and the costs of the others up to date."""
        k = int(self.count[u])
        if not k:
            return
        if self.behind + k > len(self.late):
            self._catch_up()
        s, late = int(self.start[u]), self.late[self.behind : self.behind + k]
        _whiten(self.b, self.f, self.block[u], k, self.floor, self.c, self.g)
        _remove(self.inverse, self.outer, self.late[: self.behind], s, self.c, self.g, late)
        self.behind += k
        self.living[s : s + k] = False
        self.count[u] = 0
        self._follow(late)

    def _catch_up(self) -> None:
        """Bring the matrices up to date, without the rows that went, where they are many: smaller is faster."""
        q, z = np.split(self.late[: self.behind], 2, axis=1)
        self.inverse = dsyrk(-1.0, q.T, 1.0, self.inverse.T, lower=1, overwrite_c=1).T
        self.outer = dsyr2k(-1.0, q.T, z.T, 1.0, self.outer.T, lower=1, overwrite_c=1).T
        self.behind = 0
        if self.living.mean() < 0.85:
            rows = np.flatnonzero(self.living)
            self.inverse, self.outer = _crop(self.inverse, rows), _crop(self.outer, rows)
            self.start = np.searchsorted(rows, self.start)
            self.living = np.ones(len(rows), bool)
            self.late = np.empty((len(self.late), 2 * len(rows)))


def _inverse(gram: Float, order: Array, lam: float) -> tuple[Float, float]:
    """The upper triangle of (G + lam I)^-1 with its rows in this order, and what none of its pivots is below.

    Where rounding leaves nothing positive definite, lam grows.
    """
    while True:
        h = gram[np.ix_(order, order)]
        h.flat[:: len(h) + 1] += lam
        floor = 1 / float(np.trace(h))  # no eigenvalue of the inverse is smaller
        factor, failed = dpotrf(h.T, lower=1, clean=0, overwrite_a=1)
        if not failed:
            return dpotri(factor, lower=1, overwrite_c=1)[0].T, floor
        lam *= 10


def _crop(x: Float, rows: Array) -> Float:
    """Some rows and columns of a square matrix, ascending, written over its beginning."""
    flat, n = x.reshape(-1), len(rows)
    for i, row in enumerate(rows):
        flat[i * n : (i + 1) * n] = x[row, rows]
    return flat[: n * n].reshape(n, n)


@njit(nogil=True, error_model="numpy")
def _forward(c: Array, k: int, x: Array) -> None:
    """The first k rows of x become C^-1 times them; c: the lower C, `(k, k)`."""
    for i in range(k):
        for m in range(i):
            for j in range(x.shape[1]):
                x[i, j] -= c[i, m] * x[m, j]
        for j in range(x.shape[1]):
            x[i, j] /= c[i, i]


@njit(nogil=True, error_model="numpy")
def _whiten(b: Array, f: Array, at: int, k: int, floor: float, c: Array, g: Array) -> None:
    """Fill in c, the lower C with C C' = B, and g = C^-1 F C'^-1; pivots are at least floor, as without rounding."""
    for i in range(k):
        for j in range(i + 1):
            total = b[at + i * k + j]
            for m in range(j):
                total -= c[i, m] * c[j, m]
            c[i, j] = np.sqrt(max(total, floor)) if i == j else total / c[j, j]
    for i in range(k):
        for j in range(k):
            g[i, j] = f[at + i * k + j]
    _forward(c, k, g)
    for i in range(k):
        for j in range(i):
            g[i, j], g[j, i] = g[j, i], g[i, j]
    _forward(c, k, g)


@njit(nogil=True, error_model="numpy")
def _remove(inverse: Array, outer: Array, before: Array, s: int, c: Array, g: Array, late: Array) -> None:
    """Write q and z of the rows from s on into late, `(k, 2 d)`; before: those that the matrices are behind; c, g: of
    `_whiten` for these rows."""
    d, k = len(inverse), len(late)
    for i in range(k):
        row = s + i
        for j in range(row):
            late[i, j], late[i, d + j] = inverse[j, row], outer[j, row]
        for j in range(row, d):
            late[i, j], late[i, d + j] = inverse[row, j], outer[row, j]
        for r in range(len(before)):
            q, z = before[r, row], before[r, d + row]
            for j in range(d):
                late[i, j] -= q * before[r, j]
                late[i, d + j] -= z * before[r, j] + q * before[r, d + j]
    _forward(c, k, late)
    for i in range(k):
        for m in range(k):
            for j in range(d):
                late[i, d + j] -= g[i, m] / 2 * late[m, j]


@njit(nogil=True, error_model="numpy")
def _follow(
    late: Array,
    start: Array,
    count: Array,
    block: Array,
    b: Array,
    f: Array,
    floor: float,
    c: Array,
    g: Array,
    costs: Array,
) -> None:
    """B, F and the costs of all units that have rows, after a removal whose q and z are late, `(k, 2 d)`."""
    d = late.shape[1] // 2
    for u in range(len(count)):
        k, s, at = count[u], start[u], block[u]
        for r in range(len(late)):
            for i in range(k):
                q, z = late[r, s + i], late[r, d + s + i]
                for j in range(k):
                    b[at + i * k + j] -= q * late[r, s + j]
                    f[at + i * k + j] -= z * late[r, s + j] + q * late[r, d + s + j]
        _whiten(b, f, at, k, floor, c, g)
        costs[u] = 0.0
        for i in range(k):
            costs[u] += g[i, i]
