"""How much of each group of units goes: a row per way, and what all ways have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxprune.allocation.levels import Levels
from onnxprune.allocation.select import KeptUnits, Ratios, depth, global_, uniform
from onnxprune.allocation.spread import levels_by_error, levels_by_outputs
from onnxprune.importance.criterion import Scores
from onnxprune.structure.analysis import ChannelGroup

ByRatio = Callable[..., KeptUnits]  # groups, scores, ratios, round_to, max_ratio; see `select.uniform`
ByLevels = Callable[..., tuple[Levels, bool | None]]  # see `spread.levels_by_outputs`


@dataclass(frozen=True)
class Allocator:
    """One way to say how much of each group goes: by a ratio for every group, or by what each of its levels costs.

    by_ratio: groups, their scores and ratios -> the units that stay; None where levels decide, and the least damage
    under a target is searched (allocation/budget.py); by_levels: the level database, None where ratios decide;
    needs_target: for the whole model; needs_data: calibration samples; capped: at most `MAX_RATIO` of a group goes,
    also without a target; at_outputs: the levels are measured at the outputs, which takes so long that they are kept in
    the folder of --cache.
    """

    help: str
    by_ratio: ByRatio | None = None
    by_levels: ByLevels | None = None
    needs_target: bool = False
    needs_data: bool = False
    capped: bool = False
    at_outputs: bool = False


ALLOCATORS: dict[str, Allocator] = {
    "uniform": Allocator("the same fraction of every group", uniform),
    "global": Allocator("one threshold over all units", global_, capped=True),
    "kl": Allocator(
        "what the outputs suffer least from, measured on data (needs a target)", by_levels=levels_by_outputs,
        needs_target=True, needs_data=True, at_outputs=True,
    ),
    "error": Allocator(
        "what the layers that read the units suffer least from; quick, and better than kl on made-up data (as kl)",
        by_levels=levels_by_error, needs_target=True, needs_data=True,
    ),
}  # fmt: skip


def allocated(
    by_ratio: ByRatio,
    groups: Sequence[ChannelGroup],
    scores: Scores,
    ratios: Ratios,
    *,
    round_to: int,
    max_ratio: float,
) -> KeptUnits:
    """What stays of every group: residual blocks by rank among themselves, units by an allocator's `by_ratio`."""
    blocks = [g for g in groups if g.kind == "layers"]
    units = [g for g in groups if g.kind != "layers"]
    kept = by_ratio(units, scores, ratios, round_to=round_to, max_ratio=max_ratio)
    kept |= depth(blocks, scores, ratios)
    return {g.name: kept[g.name] for g in groups}


__all__ = ["ALLOCATORS", "Allocator", "allocated"]
