"""Which units stay: scores and a ratio per group, or a target for the whole model, become a plan."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.allocation.kinds import flag, split_kind
from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Float
from onnxprune.importance.criterion import DEAD, Scores
from onnxprune.structure.analysis import ChannelGroup, Keep

ROUND_TO = 8  # tools/bench_round.py: what onnxruntime's kernels like
MAX_STEPS = 1000  # of an option or a plan; more would be a mistake or worse
MAX_RATIO = 0.8  # of a group, for `global` and for targets

Ratios = Mapping[str, float]  # group name -> fraction that is removed
KeptUnits = dict[str, Keep]  # group name -> the units that stay, bool (size,)


def matches(group: ChannelGroup, glob: str) -> bool:
    """True where the glob, or the plain text (names may hold `[`), matches one of the group's names.

    A kind before the glob, as in `heads:GLOB`, is that of the group.
    """
    kind, rest = split_kind(glob)
    if kind:
        return group.kind == kind and matches(group, rest)
    return any(n == glob or fnmatch.fnmatchcase(n, glob) for n in group.names)


def group_ratios(
    groups: Sequence[ChannelGroup],
    *,
    amounts: Mapping[str, float],
    ratio: Sequence[tuple[str, float]] = (),
    ignore: Sequence[str] = (),
) -> dict[str, float]:
    """Removed fraction per group; of several globs the last match wins, and `ignore` wins over all.

    Raises `OptionError` for a ratio outside [0, 1) and for a glob that matches nothing.
    """
    for option, r in [*((flag(kind), r) for kind, r in amounts.items()), *((f"--ratio {g}", r) for g, r in ratio)]:
        if not 0 <= r < 1:
            raise OptionError(f"{option}: {r:g} is not a fraction in [0, 1); 0.3 removes 30%")
    out = {g.name: amounts[g.kind] for g in groups if g.kind in amounts}
    for option, globs in (("--ratio", ratio), ("--ignore", [(glob, 0.0) for glob in ignore])):
        for glob, r in globs:
            matching = [g.name for g in groups if matches(g, glob)]
            if not matching:
                raise OptionError(_unmatched(option, glob, groups))
            out.update(dict.fromkeys(matching, r))
    return out


def _unmatched(option: str, glob: str, groups: Sequence[ChannelGroup]) -> str:
    some = ", ".join(g.name for g in groups[:3])
    return f"{option} {glob!r} matches no group, node, weight or output that can be pruned; there are {some}, ..." + (
        " (onnxprune inspect MODEL lists them)"
    )


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


def counted(group: ChannelGroup, scores: Float, removed: float, round_to: int, *, max_ratio: float = 1.0) -> int:
    """As `rounded`, but that not more go than change nothing, where these are as many as are asked for."""
    kept = rounded(group, removed, round_to, max_ratio=max_ratio)
    dead = int((scores <= DEAD).sum())
    if group.size - kept <= dead or dead < group.size * removed - 0.5:
        return kept
    return without_loss(group, dead, round_to, max_ratio=max_ratio) or kept


def without_loss(group: ChannelGroup, dead: int, round_to: int, *, max_ratio: float) -> int | None:
    """The fewest units that may stay where `dead` change nothing and no others go; None where all stay."""
    for n in range(dead, 0, -1):
        if rounded(group, n / group.size, round_to, max_ratio=max_ratio) == group.size - n:
            return group.size - n
    return None


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


def uniform(
    groups: Sequence[ChannelGroup], scores: Scores, ratios: Ratios, *, round_to: int, max_ratio: float
) -> KeptUnits:
    """the same fraction of every group"""
    return {
        g.name: select(
            g, scores[g.name], counted(g, scores[g.name], ratios.get(g.name, 0.0), round_to, max_ratio=max_ratio)
        )
        for g in groups
    }


def global_(
    groups: Sequence[ChannelGroup], scores: Scores, ratios: Ratios, *, round_to: int, max_ratio: float
) -> KeptUnits:
    """one threshold over all groups of a kind with the same ratio, at most `max_ratio` of a group"""
    out: KeptUnits = {}
    for kind, r in sorted({(g.kind, ratios.get(g.name, 0.0)) for g in groups}):
        alike = [g for g in groups if (g.kind, ratios.get(g.name, 0.0)) == (kind, r)]
        # a group's lowest scores can go, the others are out of reach
        offers = [np.sort(scores[g.name])[: int(max_ratio * g.size + 1e-9)] for g in alike]
        owner = np.repeat(np.arange(len(alike)), [len(o) for o in offers])
        goal = round(r * sum(g.size for g in alike))
        lowest = np.argsort(np.concatenate(offers), kind="stable")[:goal]
        for g, gone in zip(alike, np.bincount(owner[lowest], minlength=len(alike)), strict=True):
            kept = counted(g, scores[g.name], gone / g.size, round_to, max_ratio=max_ratio)
            out[g.name] = select(g, scores[g.name], kept)
    return {g.name: out[g.name] for g in groups}


def depth(groups: Sequence[ChannelGroup], scores: Scores, ratios: Ratios) -> KeptUnits:
    """Of residual blocks with the same ratio, so many go that matter least: the nearest number, of half a block
    the whole, and never all."""
    out: KeptUnits = {g.name: np.ones(g.size, bool) for g in groups}
    left = len(groups) - 1
    for r in sorted({ratios.get(g.name, 0.0) for g in groups} - {0.0}):
        alike = sorted((g for g in groups if ratios.get(g.name, 0.0) == r), key=lambda g: float(scores[g.name][0]))
        count = r * len(alike)
        going = alike[: min(max(round(count), int(count >= 0.5)), left)]
        left -= len(going)
        for g in going:
            out[g.name][:] = False
    return out


def search(
    allocate: Callable[[float], KeptUnits], satisfied: Callable[[KeptUnits], bool], *, low: float, high: float
) -> tuple[KeptUnits, float] | None:
    """The smallest ratio in [low, high] whose plan satisfies the targets; None where even `high` does not."""
    if satisfied(allocate(low)):
        return allocate(low), low
    if not satisfied(allocate(high)):
        return None
    for _ in range(24):
        middle = (low + high) / 2
        if satisfied(allocate(middle)):
            high = middle
        else:
            low = middle
    return allocate(high), high
