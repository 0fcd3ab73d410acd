"""Group OBS: which units of a layer's input can go with the least error, when the others make up for them.

With H = covariance of the rows + lam I and W the weights, removing the rows S of a unit costs

    e_S = tr(W_S' ([H^-1]_SS)^-1 W_S)

and the best answer of the others is W -= H^-1[:,S] ([H^-1]_SS)^-1 W_S, H^-1 -= H^-1[:,S] ([H^-1]_SS)^-1 H^-1[S,:]
(Hassibi and Stork 1993; for groups ZipLM, Kurtic et al. 2023). The cheapest unit goes, again and again. Where several
layers read the units, their costs are added, each relative to the energy of its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import inv
from scipy.linalg.blas import dgemm

from onnxprune.graph.arrays import Array, Float
from onnxprune.solvers.least_squares import damping

AT_ONCE = 5e8  # units are removed one by one while remaining units times d^2 stay below this


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

    The unit that goes last has the largest cost. Units that nothing reads cost nothing.
    """
    states = [_State(r, size, ridge) for r in readers if r.energy > 0]
    alive = np.ones(size, bool)
    cost = np.zeros(size)
    error = 0.0
    while alive.sum() > 1:
        e = np.zeros(size)
        for s in states:
            e += s.costs()
        e[~alive] = np.inf
        work = max((len(s.inverse) ** 2 for s in states), default=0) * alive.sum()
        gone = np.argsort(e, kind="stable")[: min(max(1, int(work / AT_ONCE)), int(alive.sum()) - 1)]
        for u in gone:
            error = max(error, error + float(e[u]))
            cost[u] = error
        alive[gone] = False
        for s in states:
            s.remove(gone)
    cost[alive] = error + float(np.finfo(np.float64).tiny) if not error else 2 * error
    return cost


class _State:
    """Inverse and weights of one reader, while units go."""

    def __init__(self, reader: Reader, size: int, ridge: float) -> None:
        self.size, self.scale = size, 1 / reader.energy
        h = reader.gram + damping(reader.gram, ridge) * np.eye(len(reader.gram))
        self.inverse = np.asfortranarray(inv(h, overwrite_a=True, check_finite=False))
        self.weight = np.array(reader.weight)
        self.units = np.array(reader.units)
        self.dead = np.zeros(len(self.units), bool)
        self._index()

    def _index(self) -> None:
        """Rows of the living units, those with equally many rows together: [(units, rows (units, k))]."""
        order = np.argsort(self.units, kind="stable")
        units, first, count = np.unique(self.units[order], return_index=True, return_counts=True)
        self.blocks = []
        for k in np.unique(count[units >= 0]):
            chosen = (count == k) & (units >= 0)
            self.blocks.append((units[chosen], order[first[chosen][:, None] + np.arange(k)]))

    def costs(self) -> Float:
        out = np.zeros(self.size)
        for units, at in self.blocks:
            w = self.weight[at]  # (units, k, o)
            if at.shape[1] == 1:
                diagonal = self.inverse[at[:, 0], at[:, 0]]
                out[units] = np.square(w[:, 0]).sum(1) / np.maximum(diagonal, 1e-30)
            else:
                block = self.inverse[at[:, :, None], at[:, None, :]]
                out[units] = np.einsum("uko,uko->u", w, np.linalg.solve(block, w))
        return out * self.scale

    def remove(self, gone: Array) -> None:
        s = np.flatnonzero(np.isin(self.units, gone))
        if not len(s):
            return
        rows = np.asfortranarray(self.inverse[s])
        left = np.asfortranarray(np.linalg.solve(rows[:, s], rows).T)  # H^-1[:,S] ([H^-1]_SS)^-1
        self.weight -= left @ self.weight[s]
        self.inverse = dgemm(-1.0, left, rows, 1.0, self.inverse, overwrite_c=True)
        self.dead[s] = True
        self.units[s] = -1
        if self.dead.mean() > 0.25:  # smaller arrays are faster ones
            living = ~self.dead
            self.inverse = np.asfortranarray(self.inverse[np.ix_(living, living)])
            self.weight, self.units, self.dead = self.weight[living], self.units[living], self.dead[living]
        self._index()
