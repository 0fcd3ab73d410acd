"""Which units stay: scores and a ratio per group, or a target for the whole model, become a plan."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.allocation.kinds import flag, split_kind
from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Float
from onnxprune.importance.criterion import DEAD, Scores
from onnxprune.importance.units import rounded, select
from onnxprune.structure.analysis import ChannelGroup, Keep

ROUND_TO = 8  # tools/bench_round.py: what onnxruntime's kernels like
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
