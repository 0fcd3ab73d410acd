"""What a trade-off is made of: the points that no other beats, and the knees of their curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KNEE = 0.02  # of the whole range, that a point must lie below the line through its neighbours


def front(cost: Sequence[float], loss: Sequence[float]) -> list[int]:
    """The points that no other beats in cost and in loss, by rising cost.

    >>> front([1.0, 2.0, 2.5, 3.0], [0.9, 0.2, 0.4, 0.0])
    [0, 1, 3]
    """
    order = sorted(range(len(cost)), key=lambda k: (cost[k], loss[k]))
    out: list[int] = []
    for k in order:
        if np.isfinite(loss[k]) and (not out or loss[k] < loss[out[-1]]):
            out.append(k)
    return out


def knees(cost: Sequence[float], loss: Sequence[float]) -> list[int]:
    """The points of the front where the curve bends: those on its lower convex hull, but for its ends, that lie below
    the line through their neighbours on the hull by more than KNEE, both axes scaled to the front's own range. Beyond
    a knee a little less cost takes much more loss than before it.

    >>> knees([0.2, 0.4, 0.6, 0.8, 1.0], [0.9, 0.1, 0.08, 0.04, 0.0])
    [1]
    """
    points = front(cost, loss)
    if len(points) < 3:
        return []
    x, y = (np.array([values[k] for k in points], float) for values in (cost, loss))
    x, y = (x - x[0]) / (x[-1] - x[0]), (y - y[-1]) / (y[0] - y[-1])
    hull: list[int] = []
    for k in range(len(points)):
        while len(hull) > 1 and _turn(x, y, hull[-2], hull[-1], k) <= 0:
            hull.pop()
        hull.append(k)
    out = []
    for before, k, after in zip(hull, hull[1:], hull[2:], strict=False):
        share = (x[k] - x[before]) / (x[after] - x[before])
        if y[before] + share * (y[after] - y[before]) - y[k] > KNEE:
            out.append(points[k])
    return out


def _turn(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> float:
    """Above 0 where the way from a over b to c turns to the left."""
    return float((x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]))
