"""What was asked of the units, beside what was got, and the established cause where the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.allocation.budget import LATENCY, Meter
from onnxprune.allocation.kinds import flag
from onnxprune.allocation.options import Amount, Cut, limit_of
from onnxprune.allocation.select import KeptUnits, matches
from onnxprune.graph.arrays import Array
from onnxprune.importance.units import rounded
from onnxprune.structure.analysis import Analysis, ChannelGroup

AGAIN = 0.01  # by which the time of a run may differ when it is measured once more
CLOSE = 0.005  # of all units: what differs by less needs no word


@dataclass(frozen=True)
class Got:
    """What became of one option. asked: as it was given; got: the same figure as it came out, in `unit`; why: where the
    two differ, the established cause and the way to what was asked."""

    option: str
    asked: Any
    got: float
    unit: str
    why: str = ""


@dataclass(frozen=True)
class Tried:
    """What became of one way to a target.

    way: what it does; predicted: damage by the levels; damage: what the outputs suffered on samples; ratio: time of a
    run over the original's, as measured; each None where it did not come to that; why: it was left; chosen: whether it
    is what is written.
    """

    way: str
    predicted: float | None = None
    damage: float | None = None
    ratio: float | None = None
    why: str = ""
    chosen: bool = False


def cut_got(
    analysis: Analysis,
    amounts: Mapping[str, Amount],
    cut: Cut,
    keeps: KeptUnits,
    ignored: Sequence[str],
    *,
    targeted: bool,
) -> list[Got]:
    """A row per kind with a fixed ratio: the fraction of its units that went."""
    rows = []
    for kind, asked in amounts.items():
        groups = analysis.of_kind(kind)
        if asked == "auto" or not groups:
            continue
        gone = sum(int((~keeps[g.name]).sum()) for g in groups if g.name in keeps)
        got = gone / sum(g.size for g in groups)
        unit = "% of the blocks removed" if kind == "layers" else "% of the units removed"
        why = "" if targeted else _why(groups, float(asked), got, cut, ignored)
        rows.append(Got(flag(kind), asked, got, unit, why))
    return rows


def ratio_got(analysis: Analysis, glob: str, asked: float, keeps: KeptUnits) -> Got:
    """The row of one --ratio: the fraction of the units of its groups that went."""
    groups = [g for g in analysis.groups if matches(g, glob)]
    gone = sum(int((~keeps[g.name]).sum()) for g in groups if g.name in keeps)
    got = gone / max(sum(g.size for g in groups), 1)
    why = "nothing was to be removed of these" if asked == 0 else ""
    return Got("--ratio", f"{glob}={asked:g}", got, "% of the units removed", why)


def _why(groups: Sequence[ChannelGroup], asked: float, got: float, cut: Cut, ignored: Sequence[str]) -> str:
    """What made the cut another than was asked: found by leaving out one cause after the other."""
    if asked == 0:
        return "nothing was to be removed, and the model stays as it was"
    if groups[0].kind == "layers":
        if got > 0 and round(asked * len(groups)) == 0:
            return "the nearest count was none, so the least that can go went"
        return "" if abs(got - asked) <= CLOSE else f"of {len(groups)} blocks this is the nearest count that can go"
    free = [g for g in groups if not any(matches(g, glob) for glob in ignored)]
    total = sum(g.size for g in groups)

    def removed(round_to: int, most: float) -> float:
        return sum(g.size - rounded(g, asked, round_to, max_ratio=most) for g in free) / total

    most = 1.0 if cut.max_ratio is None else float(cut.max_ratio)
    exact = removed(1, most)
    if got > 0 and exact == 0:
        return "the nearest count of every group was all of its units, so the least that can go went"
    if abs(got - asked) <= CLOSE:
        return ""
    causes = []
    if len(free) < len(groups):
        causes.append("groups that --ignore or --ratio names are others")
    if most < asked:
        causes.append(f"--max-ratio {most:g} is the most of any group")
    if cut.round_to > 1 and abs(exact - asked) + 1e-9 < abs(removed(cut.round_to, most) - asked):
        causes.append(f"widths go to multiples of {cut.round_to}, or of half, a quarter of it; --round-to 1 is exact")
    if abs(exact - asked) > CLOSE and any(g.blocks for g in free):
        causes.append("blocks of a group keep as many units each")
    elif abs(exact - asked) > CLOSE and most >= asked and len(free) == len(groups):
        causes.append("groups are too small for exactly that")
    return "; ".join(causes)


def targets_got(
    cut: Cut, meters: Mapping[str, Meter], whole: Array, keep: Array, *, measured: Mapping[str, float], lone: bool
) -> list[Got]:
    """A row per target: what is left. measured: budget -> that of the file over the original's; where there is none,
    the count of the plan stands in; lone: whether nothing but the target decided how much goes."""
    rows = []
    for name, asked in cut.targets.items():
        total = meters[name](whole)
        left = measured[name] * total if name in measured else meters[name](keep)
        limit = limit_of(name, asked, total)
        why = ""
        if limit >= total:
            why = "the model meets it as it is, and nothing was removed for it"
        elif lone and name != "bytes" and name not in measured and left < limit - 0.02 * total:
            why = "units go in steps (multiples of --round-to, whole groups); the next smaller cut would miss it"
        if name == LATENCY and name in measured and left > limit * (1 + AGAIN):
            why = "measured once more at the end, it is more; ask for a little less, or give --repeat"
        rows.append(Got(f"--target-{name}", asked, left / total, f"% of the {name} left", why))
    return rows


def split_globs(
    groups: Sequence[ChannelGroup], globs: Sequence[str], layers: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Globs that leave groups alone, and those that leave layers alone; either match will do. layers: globs that match
    layers."""
    of_groups = [glob for glob in globs if any(matches(g, glob) for g in groups)]
    return of_groups + [glob for glob in globs if glob not in {*of_groups, *layers}], list(layers)
