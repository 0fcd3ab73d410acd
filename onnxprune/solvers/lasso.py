"""Channel selection by LASSO (He et al. 2017, Channel Pruning for Accelerating Very Deep Neural Networks).

A layer's output is the sum of what its units give, y = sum_u z_u. With a factor per unit,

    minimise  beta' A beta / 2 - b' beta + penalty * |beta|_1,      A_uv = <z_u, z_v>,  b_u = <z_u, y>

factors go to zero one after the other while the penalty grows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.graph.arrays import Float

PENALTIES = 60
SWEEPS = 50


def inner_products(gram: Float, weight: Float, units: np.ndarray[Any, Any], size: int) -> Float:
    """A of one layer, `(size, size)`. gram: `(d, d)`; weight: `(d, o)`; units: of every row, -1 for none."""
    known = units >= 0
    products = gram[np.ix_(known, known)] * (weight[known] @ weight[known].T)
    spread = np.zeros((int(known.sum()), size))
    spread[np.arange(len(spread)), units[known]] = 1.0
    return np.asarray(spread.T @ products @ spread)


def removal_order(a: Float) -> Float:
    """For every unit the largest penalty under which its factor is not zero, `(size,)`; larger is more important.

    a: inner products of the units' shares, with the diagonal above zero where a unit gives anything.
    """
    b = a.sum(1)
    diagonal = np.diag(a)
    alive = diagonal > 1e-12 * max(float(diagonal.max(initial=0.0)), 1e-30)
    last = np.zeros(len(a))
    if not alive.any():
        return last
    beta = np.where(alive, 1.0, 0.0)
    for penalty in np.geomspace(1e-4, 1.0, PENALTIES) * float(np.abs(b).max()):
        for _ in range(SWEEPS):
            before = beta.copy()
            for u in np.flatnonzero(alive):
                rest = b[u] - a[u] @ beta + diagonal[u] * beta[u]
                beta[u] = np.sign(rest) * max(abs(rest) - penalty, 0.0) / diagonal[u]
            if np.abs(beta - before).max() < 1e-4:
                break
        last[np.abs(beta) > 1e-8] = penalty
    # units that go at the same penalty: those that give least first
    return last + 1e-9 * float(last.max()) * diagonal / float(diagonal.max())
