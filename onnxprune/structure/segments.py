"""Which runs of axes a reshape makes of which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


def axis_segments(xs: Sequence[int], ys: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Shortest runs of axes with equal products: (2, 12, 5), (2, 3, 4, 5) -> 0|0, 1|1:3, 2|3."""
    i = j = 0
    while i < len(xs) or j < len(ys):
        i0, j0 = i, j
        p = q = 1
        if i < len(xs):
            p, i = xs[i], i + 1
        if j < len(ys):
            q, j = ys[j], j + 1
        while p != q:
            if p < q:
                p, i = p * xs[i], i + 1
            else:
                q, j = q * ys[j], j + 1
        yield range(i0, i), range(j0, j)


def common_factors(xs: Sequence[int], ys: Sequence[int]) -> list[int] | None:
    """Common refinement: (6, 4), (2, 12) -> [2, 3, 4]; None where none exists, as for (6, 4), (8, 3)."""
    bounds = sorted({math.prod(xs[: k + 1]) for k in range(len(xs))} | {math.prod(ys[: k + 1]) for k in range(len(ys))})
    out, last = [], 1
    for b in bounds:
        if b % last:
            return None
        out.append(b // last)
        last = b
    return [f for f in out if f > 1]
