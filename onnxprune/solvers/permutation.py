"""Which input channels stand together in the stripes of N:M, so that more of the weights survives.

N:M keeps the n largest of every m consecutive weights of a row. All rows share the order of the columns, and that order
is free where the layers before can follow it (Pool and Yu 2021, "Channel permutations for N:M sparsity"). They try all
splits of 8 or 12 columns; this is simulated annealing on swaps of two columns, which one number per entry makes cheap.
With t_a = the n-th largest of the *other* columns in the stripe of a, putting b in the place of a changes what the
stripe retains by

    sum over rows of  max(t_a, s_b) - max(t_a, s_a)

so a proposal reads four columns, and an accepted one renews t in two stripes. Windows of many stripes are annealed side
by side and dealt anew every round; of few columns several chains run, and the best wins.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.kernels.compiled import njit

CHAINS = 2  # of them the best is taken, where one window holds all columns
WINDOW = 96  # columns of a window
ROUNDS = 24  # how often windows are dealt; the temperature falls from round to round
PROPOSALS = 100_000  # per column, in all; fewer where they would be more than WORK
WORK = 3e9  # entries that proposals read
ROWS = 4096  # entries of a column that proposals read; of more rows a sample is taken
HOT, COLD = 0.3, 0.06  # temperature at first and at last, in standard deviations of a swap
CHUNK = 512  # rows that are sorted or summed at a time


def best_order(saliency: Array, n: int, m: int, *, seed: int = 0, classes: Array | None = None) -> Array:
    """Order of the columns, int64 `(C,)`, with much saliency among the n largest of every m; new column j is old column
    `order[j]`.

    saliency: float32 `(R, C)`, not negative. classes: int `(C,)`; columns trade places within their class alone. The
    columns of a last stripe that is shorter than m stay. The result is never worse than the identity, and depends on
    the arguments alone, not on the number of threads. Of more than ROWS rows a sample drawn with `seed` is annealed,
    and fewer proposals are made where all would read more than WORK entries; all rows decide whether it is better.
    """
    rows, columns = saliency.shape
    stripes = columns // m
    best = np.arange(columns)
    if stripes < 2 or not rows:
        return best
    kind = np.zeros(columns, np.int64) if classes is None else np.unique(classes, return_inverse=True)[1].ravel()
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(rows, ROWS, replace=False)) if rows > ROWS else slice(None)
    s = np.ascontiguousarray(saliency[sample].T, np.float32)  # (C, R)
    s /= max(float(s.max()), 1e-37)
    most = retained(saliency, n, m)
    for order in _orders(s, n, m, kind, rng):
        now = retained(saliency[:, order], n, m)
        if now > most:
            best, most = order, now
    return best


def retained(saliency: Array, n: int, m: int) -> float:
    """Sum over rows of the n largest of every m consecutive entries, of a shorter last stripe too."""
    rows, columns = saliency.shape
    total = 0.0
    step = max(1, (1 << 22) // max(columns, 1))
    for begin in range(0, rows, step):
        s = np.zeros((columns + -columns % m, min(step, rows - begin)), np.float32)  # (C, R)
        s[:columns] = saliency[begin : begin + step].T
        top = [s[j::m] for j in range(m)]
        for k in range(n):  # bubbles: the k-th largest comes to place k
            for j in range(m - 1, k, -1):
                top[j - 1], top[j] = np.maximum(top[j - 1], top[j]), np.minimum(top[j - 1], top[j])
            total += float(top[k].sum(dtype=np.float64))
    return total


def _orders(s: Array, n: int, m: int, kind: Array, rng: np.random.Generator) -> list[Array]:
    """Orders that annealing finds."""
    columns, rows = s.shape
    stripes = columns // m
    parts = -(-stripes // max(2, WINDOW // m))
    chains, rounds = (CHAINS, 1) if parts == 1 else (1, ROUNDS)
    orders = [np.arange(columns) for _ in range(chains)]
    steps = int(min(PROPOSALS * columns, WORK / (2 * rows)) / (rounds * parts * chains))
    heat = np.geomspace(HOT, COLD, rounds + 1) * _spread(s, n, m, kind, rng)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for hot, cold in pairwise(heat.tolist()):
            dealt = rng.permutation(stripes)
            dealt = dealt[np.argsort(kind[dealt * m], kind="stable")]  # those that can trade meet
            seeds = rng.integers(1, 1 << 62, (parts, chains)).tolist()
            jobs = []
            for window, chain_seeds in zip(np.array_split(dealt, parts), seeds, strict=True):
                slots, peers, bounds = _places(window, m, kind)
                for order, seed in zip(orders, chain_seeds, strict=True):
                    task: tuple[Any, ...] = s, n, m, order, slots, peers, bounds, seed, hot, cold, max(1, steps)
                    jobs.append(pool.submit(_anneal, *task))
            for job in jobs:
                job.result()
    return orders


def _places(window: Array, m: int, kind: Array) -> tuple[Array, Array, Array]:
    """Places in the stripes of a window, `(size,)`, and with whom each can trade: places `peers[first : last]`,
    `(size, 2)`."""
    slots = (window[:, None] * m + np.arange(m)).ravel()
    peers = np.argsort(kind[slots], kind="stable")
    kinds = kind[slots][peers]
    return slots, peers, np.stack([np.searchsorted(kinds, kind[slots], side) for side in ("left", "right")], 1)


def _spread(s: Array, n: int, m: int, kind: Array, rng: np.random.Generator) -> float:
    """What a swap changes, typically."""
    pairs = rng.integers(0, len(s) // m * m, (512, 2))
    pairs = pairs[(kind[pairs[:, 0]] == kind[pairs[:, 1]]) & (pairs[:, 0] // m != pairs[:, 1] // m)]
    gains = _gains(s, n, m, pairs) if len(pairs) else np.zeros(1)
    return float(np.sqrt(np.mean(np.square(gains)))) + 1e-12


# s is (C, R) below: an entry for every row


@njit(fastmath=True, nogil=True)
def _larger(t: Array, s: Array, p: int, c: int) -> Any:
    """Sum of max(t, s) over rows, for a place and a column."""
    total = 0.0
    for begin in range(0, s.shape[1], CHUNK):
        part = np.float32(0)
        for i in range(begin, min(begin + CHUNK, s.shape[1])):
            part += max(t[p, i], s[c, i])
        total += float(part)
    return total


@njit(fastmath=True, nogil=True)
def _renew(
    s: Array, n: int, m: int, order: Array, slots: Array, stripe: int, t: Array, sums: Array, top: Array
) -> None:
    """t `(places, R)` of every place in a stripe, and sums `(places,)` of max(t, s); top: room `(m, CHUNK)`."""
    for p in range(stripe * m, stripe * m + m):
        sums[p] = 0
    for begin in range(0, s.shape[1], CHUNK):
        size = min(CHUNK, s.shape[1] - begin)
        for j in range(m):
            c = order[slots[stripe * m + j]]
            for i in range(size):
                top[j, i] = s[c, begin + i]
        for k in range(n + 1):  # bubbles: the k-th largest comes to place k
            for j in range(m - 1, k, -1):
                for i in range(size):
                    a, b = top[j - 1, i], top[j, i]
                    top[j - 1, i] = max(a, b)
                    top[j, i] = min(a, b)
        for p in range(stripe * m, stripe * m + m):
            c = order[slots[p]]
            part = np.float32(0)
            for i in range(size):
                x = s[c, begin + i]
                other = top[n, i] if x >= top[n - 1, i] else top[n - 1, i]
                t[p, begin + i] = other
                part += max(other, x)
            sums[p] += part


@njit(nogil=True)
def _random(state: Array) -> Any:
    """63 random bits (xorshift64*)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return np.int64((x * np.uint64(2685821657736338717)) >> np.uint64(1))


@njit(nogil=True)
def _anneal(
    s: Array, n: int, m: int, order: Array, slots: Array, peers: Array, bounds: Array, seed: int, hot: float,
    cold: float, steps: int,
) -> None:  # fmt: skip
    """Swap columns between the stripes of a window, in place; see `_places`."""
    size, rows = len(slots), s.shape[1]
    t, sums, top = np.empty((size, rows), np.float32), np.empty(size), np.empty((m, CHUNK), np.float32)
    for k in range(size // m):
        _renew(s, n, m, order, slots, k, t, sums, top)
    state = np.full(1, seed, np.uint64)
    heat, cooling = hot, (cold / hot) ** (64 / steps)
    for step in range(steps):
        if step % 64 == 0:
            heat *= cooling
        a = _random(state) % size
        b = peers[bounds[a, 0] + _random(state) % (bounds[a, 1] - bounds[a, 0])]
        if a // m == b // m:
            continue
        x, y = order[slots[a]], order[slots[b]]
        gain = _larger(t, s, a, y) + _larger(t, s, b, x) - sums[a] - sums[b]
        if gain > 0 or gain > heat * np.log((_random(state) + 1.0) / 2.0**63):
            order[slots[a]], order[slots[b]] = y, x
            _renew(s, n, m, order, slots, a // m, t, sums, top)
            _renew(s, n, m, order, slots, b // m, t, sums, top)


@njit(nogil=True)
def _gains(s: Array, n: int, m: int, pairs: Array) -> Array:
    """What each swap of two columns in different stripes changes, from the identity."""
    slots, order = np.empty(2 * m, np.int64), np.arange(len(s))
    t, sums, top = np.empty((2 * m, s.shape[1]), np.float32), np.empty(2 * m), np.empty((m, CHUNK), np.float32)
    gains = np.empty(len(pairs))
    for i in range(len(pairs)):
        a, b = pairs[i]
        for j in range(m):
            slots[j], slots[m + j] = a // m * m + j, b // m * m + j
        _renew(s, n, m, order, slots, 0, t, sums, top)
        _renew(s, n, m, order, slots, 1, t, sums, top)
        j, k = a % m, m + b % m
        gains[i] = _larger(t, s, j, b) + _larger(t, s, k, a) - sums[j] - sums[k]
    return gains


__all__ = ["best_order", "retained"]
