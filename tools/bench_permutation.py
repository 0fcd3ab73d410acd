"""Channel permutation for 2:4 beside the published stripe search, interleaved: what is retained, medians of time.

    bench_permutation.py [--runs N] [--windows 8 12]

The reference is a small implementation of Pool and Yu 2021 in NumPy: the best split of the columns of every pair (or,
for windows of 12, triple) of stripes, the best of them that do not touch applied, those that were touched renewed, and
from a state that cannot be improved a swap at random, 100 times; the best state counts. It looks up the sum of every
four columns instead of sorting the matrix for every split, and so is much faster than the published program; with
windows of 12 it does not escape.
"""

from __future__ import annotations

import itertools
import time
from functools import cache
from typing import Any

import numpy as np

import common
from onnxprune.solvers.permutation import best_order, retained

Array = np.ndarray[Any, Any]
ESCAPES = {8: 100, 12: 0}  # by window


@cache
def fours(window: int) -> tuple[Array, Array]:
    """All four of `window` columns `(k, 4)`, and all splits into such fours `(splits, window / 4)`."""
    sets = list(itertools.combinations(range(window), 4))
    number = {s: i for i, s in enumerate(sets)}

    def split(left: tuple[int, ...]) -> Any:
        if not left:
            yield ()
        for rest in itertools.combinations(left[1:], 3) if left else ():
            four = (left[0], *rest)
            for others in split(tuple(c for c in left if c not in four)):
                yield (number[four], *others)

    return np.array(sets), np.array(list(split(tuple(range(window)))))


def best_split(s: Array) -> tuple[float, Array]:
    """Gain and order of the best split of the columns of s, `(R, window)`."""
    sets, splits = fours(s.shape[1])
    x = s.T[sets]  # (k, 4, R)
    a, b = np.maximum(x[:, 0], x[:, 1]), np.minimum(x[:, 0], x[:, 1])
    c, d = np.maximum(x[:, 2], x[:, 3]), np.minimum(x[:, 2], x[:, 3])
    kept = (np.maximum(a, c) + np.maximum(np.minimum(a, c), np.maximum(b, d))).sum(1, dtype=np.float64)
    sums = kept[splits].sum(1)
    best = int(sums.argmax())
    return float(sums[best] - sums[0]), sets[splits[best]].ravel()


def stripe_search(saliency: Array, window: int = 8, *, escapes: int | None = None, seed: int = 0) -> Array:
    """Order of the columns `(C,)` by the published search for 2:4."""
    rng = np.random.default_rng(seed)
    left = ESCAPES.get(window, 0) if escapes is None else escapes
    order = np.arange(saliency.shape[1]).reshape(-1, 4)
    groups = np.array(list(itertools.combinations(range(len(order)), window // 4)))
    gains, splits = np.zeros(len(groups)), np.zeros((len(groups), window), int)
    touched = np.ones(len(order), bool)
    best, most = order.copy(), retained(saliency, 2, 4)
    while True:
        for i in np.flatnonzero(touched[groups].any(1)):
            gains[i], splits[i] = best_split(saliency[:, order[groups[i]].ravel()])
        touched[:] = False
        for i in np.argsort(-gains):
            if gains[i] > 1e-4 and not touched[groups[i]].any():
                order[groups[i]] = order[groups[i]].ravel()[splits[i]].reshape(-1, 4)
                touched[groups[i]] = True
        if not touched.any():
            now = retained(saliency[:, order.ravel()], 2, 4)
            if now > most:
                best, most = order.copy(), now
            if not left:
                return best.ravel()
            left -= 1
            (i, j), (a, b) = rng.choice(len(order), 2, replace=False), rng.integers(0, 4, 2)
            order[i, a], order[j, b] = order[j, b], order[i, a]
            touched[[i, j]] = True


def main() -> None:
    """See the module's docstring."""
    p = common.parser(__doc__)
    p.add_argument("--runs", type=int, default=3, help="matrices of every kind (default: 3)")
    p.add_argument("--windows", type=int, nargs="+", default=[8, 12], help="of the reference (default: 8 12)")
    args = p.parse_args()
    best_order(np.ones((8, 16), np.float32), 2, 4)  # compiles
    table = common.columns("64 columns, 128 rows, 2:4", "-matrix -search before retained gain seconds")
    rows: list[dict[str, Any]] = []
    kinds = {
        "normal": lambda rng: np.abs(rng.standard_normal((128, 64), np.float32)),
        "uniform": lambda rng: rng.random((128, 64), np.float32),
    }
    ways: dict[str, Any] = {"ours": lambda s: best_order(s, 2, 4)}
    for w in args.windows:
        ways[f"windows of {w}"] = lambda s, w=w: stripe_search(s, w)
    for kind, make in kinds.items():
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for run in range(args.runs):
            s = make(np.random.default_rng(run))
            for name, way in ways.items():
                start = time.perf_counter()
                order = way(s)
                seconds = time.perf_counter() - start
                found[name].append((retained(s, 2, 4), retained(s[:, order], 2, 4), seconds))
        for name, values in found.items():
            before, after, seconds = np.median(values, 0)
            gain = float(np.median([b / a - 1 for a, b, _ in values]))
            table.add_row(kind, name, f"{before:.1f}", f"{after:.2f}", f"{gain:+.3%}", f"{seconds:.2f}")
            rows.append(
                {"matrix": kind, "search": name, "before": before, "after": after, "gain": gain, "seconds": seconds}
            )
    common.emit(args, [table], rows)


if __name__ == "__main__":
    main()
