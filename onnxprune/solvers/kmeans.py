"""k-means of numbers: the k values that stand for many with the least squared error.

Deep Compression (Han et al. 2016) runs Lloyd's iterations from evenly spaced values, and ends in a local optimum: at
k = 256 its error is 3 to 20 times the least possible one. On a line the optimum can be found. Clusters are intervals
of the sorted values, so with D[c, j] the most that c clusters of the first j values gain,

    D[c, j] = max_i  D[c-1, i] + gain(i, j),      gain(i, j) = (sum w x)^2 / (sum w)   over the values i .. j-1

(the squared error is the sum of w x^2 less the gain). gain is two differences of prefix sums, and the best i grows with
j, so that a row of D takes O(n log n): the way of Ckmeans.1d.dp (Wang and Song 2011; Gronlund et al. 2017).

More than POINTS values per codeword are grouped first, evenly in the integral of density^(1/3), which is how an optimal
quantiser spends its values (Panter and Dite 1951). Lloyd's iterations on all values then mend what the grouping cost:
within 0.1% of the optimum as measured. Above EXACT values those that agree in their leading 20
bits (11 of the mantissa) are one, which needs no sorting.

Weights make an error count more where it matters: with the diagonal of the Hessian of the loss they give the
Hessian-weighted k-means of Choi et al. (2017). A value that must stay as it is, zero, is an infinitely heavy one: its
cluster has itself as the mean, and so gains nothing.

    >>> kmeans(np.float32([1, 2, 9, 0, 11]), 3, keep_zero=True)
    (array([ 0. ,  1.5, 10. ], dtype=float32), array([1, 1, 2, 0, 2], dtype=uint8))
"""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.kernels.compiled import njit

LARGEST = 256  # codewords, for indices of a byte
POINTS = 32  # points per codeword of the dynamic program, and at least LEAST in all
LEAST = 1024
EXACT = 1 << 20  # values that are sorted
BITS = 20  # of a float32, that tell values apart above EXACT
SWEEPS = 100
FLOOR = 1e-9  # least weight, of the mean weight: what counts for nothing still gets the nearest codeword


def kmeans(values: Array, k: int, weights: Array | None = None, *, keep_zero: bool = False) -> tuple[Array, Array]:
    """The codebook float32 `(k,)`, ascending, and the index of every value in it, uint8 `(n,)`.

    weights: `(n,)`, at least 0; keep_zero: zeros among the values stay zero, others may become zero. Where there are
    fewer than k distinct values the codebook holds them all, and its end repeats the largest. Values must be finite.
    """
    x, w = _checked(values, k, weights, 1)
    if x.size <= EXACT:
        order = None if w is None else np.argsort(x, kind="stable")
        points, sums, mass = _merged(np.sort(x) if order is None else x[order], w if w is None else w[order])
    else:
        points, sums, mass = _binned(x, w)
    codebook = _fit(points, sums, mass, k, keep_zero).astype(np.float32)
    return codebook, _assign(x, codebook)


def kmeans_rows(values: Array, k: int, weights: Array | None = None, *, keep_zero: bool = False) -> tuple[Array, Array]:
    """`kmeans` of every row: codebooks float32 `(r, k)` and indices uint8 `(r, n)`, from values `(r, n)`."""
    x, w = _checked(values, k, weights, 2)
    codebooks, indices = np.empty((len(x), k), np.float32), np.empty(x.shape, np.uint8)
    for r, row in enumerate(x):
        codebooks[r], indices[r] = kmeans(row, k, None if w is None else w[r], keep_zero=keep_zero)
    return codebooks, indices


def _checked(values: Array, k: int, weights: Array | None, ndim: int) -> tuple[Array, Array | None]:
    assert 1 <= k <= LARGEST, f"expected 1 to {LARGEST} codewords, found {k}"
    x = np.ascontiguousarray(values, np.float32) + np.float32(0)  # no -0.0
    assert x.ndim == ndim and x.size, f"expected values of rank {ndim}, found shape {x.shape}"
    if weights is None:
        return x, None
    w = np.broadcast_to(np.asarray(weights, np.float64), x.shape)
    mean = float(w.mean())
    return (x, np.maximum(w, FLOOR * mean)) if mean > 0 else (x, None)


def _merged(x: Array, w: Array | None) -> tuple[Array, Array, Array]:
    """Distinct values of sorted ones, and the sum of weight times value and of weight at each."""
    starts = np.flatnonzero(np.concatenate(([True], x[1:] != x[:-1])))
    points = x[starts].astype(np.float64)
    mass = np.add.reduceat(np.ones(x.size) if w is None else w, starts)
    return points, points * mass, mass


def _binned(x: Array, w: Array | None) -> tuple[Array, Array, Array]:
    """The same of unsorted values, those that agree in their leading bits taken together."""
    sums, mass = _histogram(x.view(np.uint32), x, np.empty(0) if w is None else w)
    filled = np.flatnonzero(mass)
    sums, mass = sums[filled], mass[filled]
    return sums / mass, sums, mass


def _fit(points: Array, sums: Array, mass: Array, k: int, keep_zero: bool) -> Array:
    """Codebook `(k,)` of distinct points in order; sums: mass times point."""
    n = len(points)
    if n <= k:
        return np.concatenate((points, np.repeat(points[-1:], k - n)))
    zero = int(np.searchsorted(points, 0.0)) if keep_zero else n
    zero = zero if zero < n and points[zero] == 0 else -1
    shift = sums.sum() / mass.sum() if zero < 0 else 0.0  # sums of centred values are more exact
    points, total = points - shift, np.concatenate(([0.0], np.cumsum(mass)))
    moment = np.concatenate(([0.0], np.cumsum(sums - shift * mass)))
    limit = max(LEAST, POINTS * k)
    groups = _groups(points, mass, limit, zero) if n > limit else np.arange(n + 1)
    inside = int(np.searchsorted(groups, zero)) if zero >= 0 else -1
    edges = groups[_partition(moment[groups], total[groups], k, inside)]
    return np.asarray(_lloyd(points, moment, total, edges, zero) + shift)


def _groups(points: Array, mass: Array, limit: int, zero: int) -> Array:
    """Where groups of points start, and n: about `limit`, each with the same share of density^(1/3)."""
    gaps = np.diff(points, prepend=points[0])
    level = np.cumsum(np.cbrt(mass) * np.cbrt(gaps) ** 2)
    label = np.floor(level * (limit / level[-1])).astype(np.int64)
    new = np.concatenate(([True], label[1:] != label[:-1]))
    if zero >= 0:
        new[zero : zero + 2] = True
    return np.append(np.flatnonzero(new), len(points))


@njit()
def _partition(moment: Array, total: Array, k: int, zero: int) -> Array:
    """Edges `(k+1,)` of the k intervals that gain most. moment, total: prefix sums `(n+1,)`; zero: a point or -1."""
    n = len(total) - 1
    before, now = np.zeros(n + 1), np.zeros(n + 1)
    best = np.zeros((k, n + 1), np.int32)  # start of the last interval
    for j in range(1, n + 1):
        before[j] = 0.0 if 0 <= zero < j else moment[j] ** 2 / total[j]
    top = 1
    while 2 * top <= n:
        top *= 2
    for c in range(1, k):
        step = top
        while step:  # j between two that are known already, whose starts are bounds for its own
            for j in range(step, n + 1, 2 * step):
                low, high = best[c, j - step], j - 1
                if j + step <= n:
                    high = min(high, best[c, j + step])
                most, where = -1.0, low
                for i in range(low, high + 1):
                    gain = before[i]
                    if not i <= zero < j:
                        gain += (moment[j] - moment[i]) ** 2 / (total[j] - total[i])
                    if gain > most:
                        most, where = gain, i
                now[j], best[c, j] = most, where
            step //= 2
        before, now = now, before
    edges = np.full(k + 1, n)
    for c in range(k - 1, -1, -1):
        edges[c] = best[c, edges[c + 1]]
    return edges


@njit()
def _lloyd(points: Array, moment: Array, total: Array, edges: Array, zero: int) -> Array:
    """Codebook after Lloyd's iterations; edges `(k+1,)`: the first intervals, none empty."""
    k = len(edges) - 1
    codebook, edges = np.zeros(k), edges.copy()
    for _ in range(SWEEPS):
        for c in range(k):
            a, b = edges[c], edges[c + 1]
            if a <= zero < b:
                codebook[c] = 0.0
            elif a < b:
                codebook[c] = (moment[b] - moment[a]) / (total[b] - total[a])
        moved = False
        for c in range(1, k):
            at = np.searchsorted(points, (codebook[c - 1] + codebook[c]) / 2)
            moved |= at != edges[c]
            edges[c] = at
        if not moved:
            break
    return codebook


@njit()
def _histogram(bits: Array, x: Array, w: Array) -> tuple[Array, Array]:
    """Sums of weight times value and of weight, by the leading BITS of the values in their order; w: may be empty."""
    sums, mass = np.zeros(1 << BITS), np.zeros(1 << BITS)
    for i in range(len(x)):
        b = np.int64(bits[i])
        key = (b ^ 0xFFFFFFFF if b >> 31 else b | 0x80000000) >> (32 - BITS)
        weight = w[i] if len(w) else 1.0
        sums[key] += weight * x[i]
        mass[key] += weight
    return sums, mass


@njit()
def _assign(x: Array, codebook: Array) -> Array:
    """Index of the nearest codeword, the lower of two."""
    k = len(codebook)
    bounds = np.empty(k - 1, np.float64)
    for c in range(k - 1):
        bounds[c] = (np.float64(codebook[c]) + np.float64(codebook[c + 1])) / 2
    indices = np.empty(len(x), np.uint8)
    for i in range(len(x)):
        low, count = 0, k - 1
        while count > 1:  # without branches that depend on the value
            half = count // 2
            low += half * (x[i] > bounds[low + half - 1])
            count -= half
        indices[i] = low + (count > 0 and x[i] > bounds[low])
    return indices
