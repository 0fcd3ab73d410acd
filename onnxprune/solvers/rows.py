"""Kernels that work row by row: exact OBS, exact exchanges, and the swaps of wide rows.

All of them lower f(w) = (w - t)' H (w - t) for one row, with t its target and H the Hessian that all rows share.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from onnxprune.graph.arrays import Array
from onnxprune.kernels.compiled import njit

EPSILON = 1e-9  # of a row's energy: less than that is no gain


@njit(parallel=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def obs_order(
    inverse: Array, target: Array, limit: int, blocks: Array, most: Array, least: float
) -> tuple[Array, Array]:
    """The order in which exact OBS removes the entries of every row, and what each removal costs.

    inverse: H^-1 float64 `(d, d)`; target: float64 `(o, d)`; limit: removals per row; blocks: block of every column
    `(d,)`; most: entries of each block that go at most. order: int32 `(o, d)`, -1 where nothing more goes;
    costs: float64 `(o, d)`, never falling (Frantar and Alistarh 2022, algorithms 1 and 2).
    """
    o, d = target.shape
    order = np.full((o, d), -1, np.int32)
    costs = np.full((o, d), np.inf)
    count = blocks.max() + 1
    for r in prange(o):
        m = inverse.copy()
        w = target[r].copy()
        names = np.arange(d)
        size = d
        gone = np.zeros(count, np.int64)
        worst = 0.0
        for step in range(limit):
            best, p = np.inf, -1
            for i in range(size):
                if gone[blocks[names[i]]] < most[blocks[names[i]]]:
                    e = w[i] * w[i] / max(m[i, i], least)
                    if e < best:
                        best, p = e, i
            if p < 0:
                break
            worst = max(worst, best)
            order[r, step], costs[r, step] = names[p], worst
            gone[blocks[names[p]]] += 1
            last = size - 1
            # the entry goes to the end, and leaves
            column = m[:size, p].copy()
            pivot = max(column[p], least)
            factor = w[p] / pivot
            for i in range(size):
                w[i] -= factor * column[i]
                f = column[i] / pivot
                for j in range(size):
                    m[i, j] -= f * column[j]
            if p != last:
                names[p], w[p] = names[last], w[last]
                for j in range(size):
                    m[p, j] = m[last, j]
                for i in range(size):
                    m[i, p] = m[i, last]
            size = last
    return order, costs


@njit(fastmath={"contract", "reassoc", "nsz", "arcp"})
def _pivot(a: Array, v: Array, p: int, inside: bool) -> None:
    """One sweep of the tableau: column p goes out of the kept set (inside) or into it.

    With K the kept and R the others: a_KK = -(H_KK)^-1, a_RR = H_RR - H_RK (H_KK)^-1 H_KR, v_K = w,
    v_R = (H (t - w))_R.
    """
    d = len(v)
    at = a[p, p]
    column = a[p].copy()
    sign = -1.0 if inside else 1.0
    vp = v[p]
    for i in range(d):
        if i != p:
            f = column[i] / at
            v[i] -= f * vp
            for j in range(d):
                a[i, j] -= f * column[j]
    for i in range(d):
        a[i, p] = a[p, i] = sign * column[i] / at
    a[p, p] = -1.0 / at
    v[p] = sign * vp / at


@njit(parallel=True)
def exchange(hessian: Array, target: Array, mask: Array, blocks: Array, rounds: int) -> tuple[Array, Array]:
    """Exchange a kept entry for one that went, the best pair first, while the exact error falls.

    hessian: float64 `(d, d)`; target: float64 `(o, d)`; mask: bool `(o, d)`, changed in place; blocks: block of every
    column: both of a pair lie in one. Returns the solved weights and how many exchanges every row made.
    """
    o, d = target.shape
    out = np.zeros((o, d))
    exchanges = np.zeros(o, np.int64)
    count = blocks.max() + 1
    for r in prange(o):
        keep = mask[r]
        v = np.zeros(d)
        for i in range(d):
            for j in range(d):
                v[i] += hessian[i, j] * target[r, j]
        energy = 0.0
        for i in range(d):
            energy += v[i] * target[r, i]
        a = hessian.copy()
        for p in range(d):
            if keep[p]:
                _pivot(a, v, p, False)
        low, out_at = np.zeros(count), np.zeros(count, np.int64)
        high, in_at = np.zeros(count), np.zeros(count, np.int64)
        for _ in range(rounds):
            # the best entry of every block to come back, which then makes another one cheap to remove
            low[:], high[:] = np.inf, 0.0
            out_at[:] = -1
            in_at[:] = -1
            for i in range(d):
                b = blocks[i]
                if not keep[i] and a[i, i] > 0:
                    g = v[i] * v[i] / a[i, i]
                    if g > high[b]:
                        high[b], in_at[b] = g, i
                elif keep[i] and a[i, i] < 0:
                    c = v[i] * v[i] / -a[i, i]
                    if c < low[b]:
                        low[b], out_at[b] = c, i
            best, block = -np.inf, -1
            for b in range(count):
                if in_at[b] >= 0 and out_at[b] >= 0 and high[b] - low[b] > best:
                    best, block = high[b] - low[b], b
            if block < 0:
                break
            new = in_at[block]
            gain = high[block]
            _pivot(a, v, new, False)
            cost, old = np.inf, -1
            for i in range(d):
                if keep[i] and blocks[i] == block and a[i, i] < 0:
                    c = v[i] * v[i] / -a[i, i]
                    if c < cost:
                        cost, old = c, i
            if old < 0 or gain - cost <= EPSILON * energy:
                _pivot(a, v, new, True)
                break
            _pivot(a, v, old, True)
            keep[new], keep[old] = True, False
            exchanges[r] += 1
        for i in range(d):
            if keep[i]:
                out[r, i] = v[i]
    return out, exchanges


@njit(parallel=True)
def swaps(hessian: Array, weight: Array, gradient: Array, mask: Array, blocks: Array, rounds: int, tried: int) -> Array:
    """SparseSwaps: exchange pairs by what they alone change, with the best value for the entry that comes back.

    A pair p (kept), u (gone) of one block changes f by -2 w_p g_p + w_p^2 H_pp - (g_u - w_p H_up)^2 / H_uu, with
    g = H (w - t). weight `(o, d)`, gradient `(o, d)` and mask `(o, d)` are changed in place; tried: candidates of both
    sides, the best of which meet. Returns how many swaps every row made.
    """
    o, d = weight.shape
    swapped = np.zeros(o, np.int64)
    for r in prange(o):
        w, g, keep = weight[r], gradient[r], mask[r]
        cost = np.empty(d)
        energy = 0.0
        for i in range(d):
            energy += w[i] * w[i] * hessian[i, i]
        for _ in range(rounds):
            for i in range(d):
                h = hessian[i, i]
                cost[i] = -2 * w[i] * g[i] + w[i] * w[i] * h if keep[i] else -g[i] * g[i] / h
            order = np.argsort(cost)
            best, p, u = -EPSILON * energy, -1, -1
            ins = 0
            for k in range(d):
                a = order[k]
                if keep[a]:
                    continue
                ins += 1
                if ins > tried:
                    break
                outs = 0
                for q in range(d):
                    b = order[q]
                    if not keep[b] or blocks[a] != blocks[b]:
                        continue
                    outs += 1
                    if outs > tried:
                        break
                    left = g[a] - w[b] * hessian[a, b]
                    change = cost[b] - left * left / hessian[a, a]
                    if change < best:
                        best, p, u = change, b, a
            if p < 0:
                break
            old = w[p]
            new = -(g[u] - old * hessian[u, p]) / hessian[u, u]
            for i in range(d):
                g[i] += new * hessian[u, i] - old * hessian[p, i]
            w[p], w[u] = 0.0, new
            keep[p], keep[u] = False, True
            swapped[r] += 1
    return swapped
