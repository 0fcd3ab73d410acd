"""How many units of a group stay at a ratio, and which, under the group's constraints."""

from __future__ import annotations

import math

import numpy as np

from onnxprune.graph.arrays import Float
from onnxprune.importance.criterion import DEAD
from onnxprune.structure.analysis import ChannelGroup, Keep


def rounded(group: ChannelGroup, removed: float, round_to: int, *, max_ratio: float = 1.0) -> int:
    """How many units stay when `removed` (a fraction) should go, of which at most `max_ratio`.

    The width goes to the nearest multiple of `round_to`; narrow groups use half of it, a quarter, ..., down to exact
    counts, of which the nearest may be all. Groups with blocks keep the same number in every block.

    >>> from onnxprune import ChannelGroup
    >>> group = ChannelGroup("conv", "channels", 64, np.arange(64), (), (), ("conv",), ("conv",))
    >>> rounded(group, 0.3, 8), rounded(group, 0.3, 1), rounded(group, 0.004, 1)
    (48, 45, 64)
    """
    if removed <= 0 or group.size < 2:
        return group.size
    blocks = math.lcm(*(len(b) for b in group.blocks)) if group.blocks else 1
    least = max(group.least, math.ceil(group.size * (1 - max_ratio) - 1e-9))
    target = group.size * (1 - min(removed, max_ratio))
    step = max(1, round_to // math.gcd(round_to, group.width))
    while True:
        unit = math.lcm(step, blocks)
        kept = round(target / unit) * unit
        kept += unit if 0 < kept < least else 0
        if 0 < kept < group.size and abs(kept - target) <= max(0.125 * group.size, 0.5 * blocks):
            return kept
        if step == 1:
            if round(target / unit) * unit >= group.size:
                return group.size
            kept = min(max(kept, blocks, math.ceil(group.least / blocks) * blocks), group.size - blocks)
            return kept if kept >= least else group.size
        step = max(1, step // 2)


def select(group: ChannelGroup, scores: Float, kept: int) -> Keep:
    """Keep the best `kept` units under the group's constraints.

    One constraint is solved block by block; several that cross (channel shuffles of different width) exactly, as a
    mixed integer program.
    """
    keep = np.zeros(group.size, bool)
    if kept >= group.size:
        keep[:] = True
        return keep
    if not group.blocks:
        keep[np.argsort(-scores, kind="stable")[:kept]] = True
        return keep
    counts = group.blocks[0]
    if len(group.blocks) == 1 and ((counts > 0).sum(0) == 1).all() and len(np.unique(counts[counts > 0])) == 1:
        for row in counts:
            members = np.flatnonzero(row)
            keep[members[np.argsort(-scores[members], kind="stable")[: max(1, kept // len(counts))]]] = True
        return keep
    return _select_exactly(group, scores, kept)


def _select_exactly(group: ChannelGroup, scores: Float, kept: int) -> Keep:
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import, and seldom needed

    equal = np.concatenate([counts[1:] - counts[:1] for counts in group.blocks])  # every block as many as the first
    lives = scores > DEAD
    worth = np.where(lives, scores, scores[lives].min(initial=0.0) - 1.0)
    for slack in range(group.size):  # the nearest count that the constraints allow
        for count in sorted({kept - slack, kept + slack}):
            if not 0 < count < group.size:
                continue
            most = min(count, int(lives.sum()))  # of those that are worth something, so that the others go first
            for least in sorted({0, most * (not lives.all())}, reverse=True):
                result = milp(
                    -worth,
                    constraints=[
                        LinearConstraint(equal, 0, 0),
                        LinearConstraint(np.ones((1, group.size)), count, count),
                        LinearConstraint(lives[None].astype(float), least, np.inf),
                    ],
                    integrality=np.ones(group.size, np.int64),
                    bounds=Bounds(0, 1),
                )
                if result.x is not None:
                    return np.asarray(result.x > 0.5)
    return np.ones(group.size, bool)
