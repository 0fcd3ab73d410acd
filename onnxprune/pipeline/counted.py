"""Targets of what is counted on a file (bytes, energy, memory, MACs): a model of one kind that holds them.

What zeros and codebooks leave of a file is known beforehand but for names, nodes and rounding, so a draft says whether
the targets hold, and what the choice is asked for is corrected by what the draft has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnxprune.allocation.options import limit_of
from onnxprune.allocation.spread import Choice
from onnxprune.errors import Unreachable
from onnxprune.evaluation.measure import file_bytes
from onnxprune.graph.io import Model
from onnxprune.pipeline.footprint import energy_of, peak_of
from onnxprune.pipeline.make import limits_of
from onnxprune.pipeline.setup import Pruning, Setup
from onnxprune.pipeline.ways import Way, Ways, draft_of, made_of
from onnxprune.structure.analysis import Keep

DRAFTS = 6
AGAIN = 2  # times that a model is made anew whose draft held the targets, where it does not itself
CLOSE = 0.98  # of a target: what takes less was cut too much, unless no choice lies between
SLACK = 0.999


class Counted:
    """Models that hold the targets, a way each."""

    def __init__(self, setup: Setup, ways: Ways) -> None:
        self.setup, self.ways = setup, ways
        everything = setup.analysis.keep_ids({})
        targets = setup.options.cut.targets
        self.whole = {name: setup.meters[name](everything) for name in targets}  # as choices count it
        original = setup.original.model
        used = {name: self.used(name, original, everything, original.path) for name in targets}
        self.limits = {name: limit_of(name, target, used[name]) for name, target in targets.items()}

    def __call__(self, way: Way) -> tuple[Pruning, float]:
        """The whole model of a way that holds the targets, and the largest part of what it was given that it uses;
        raises `Unreachable`."""
        room, nearest = 1.0, float("inf")
        for _ in range(AGAIN + 1):
            good, least = self.settled(way, room)
            nearest = min(nearest, least)
            if good is None:
                break
            made = made_of(self.setup, way, good)
            nearest = max(self.over(made).values())
            if nearest <= 1:
                return made, nearest
            room *= SLACK / nearest  # the draft was a little smaller
        asked = " and ".join(f"--target-{name} {value}" for name, value in self.setup.options.cut.targets.items())
        raise Unreachable(
            f"{asked} cannot be reached by {way}: the smallest file that was made uses {nearest:.1%} of what it may; "
            "ask for less, or allow more with --max-ratio"
        )

    def settled(self, way: Way, room: float) -> tuple[Choice | None, float]:
        """The choice of a way whose draft holds this part of the targets most narrowly, None where none does, and the
        least part of what it may that a draft used. Raises `Unreachable`."""
        goal = {name: room * limit for name, limit in limits_of(self.setup).items()}
        good, nearest = None, float("inf")
        tried: set[str] = set()
        for _ in range(DRAFTS):
            try:
                choice = self.ways.choose(way, goal)
            except Unreachable:
                if not tried:
                    raise
                break
            if (seen := mark(choice)) in tried:
                break
            tried.add(seen)
            over = {name: x / room for name, x in self.over(draft_of(self.setup, way, choice)).items()}
            most = max(over.values())
            nearest = min(nearest, room * most)
            if most <= 1 and (good is None or most > good[1]):
                good = choice, most
            if CLOSE <= most <= 1:
                break
            goal = {name: min(goal[name] / over[name] * SLACK, self.whole[name]) for name in goal}
        return (None if good is None else good[0]), nearest

    def over(self, made: Pruning) -> dict[str, float]:
        """Budget -> what a model uses of it, over what it may."""
        assert made.model is not None
        return {name: self.used(name, made.model, made.keep) / limit for name, limit in self.limits.items()}

    def used(self, budget: str, model: Model, keep: Keep, path: Path | None = None) -> float:
        """What a model with what is kept uses of a budget, told by its file, where it has one, if that is possible."""
        shapes = self.setup.analysis.input_shapes(keep)
        if budget == "bytes":
            return file_bytes(model, path)
        if budget == "energy":
            return energy_of(model, self.setup.tables.energy, shapes).joules
        if budget == "memory":
            return peak_of(model, shapes).bytes
        return self.setup.meters[budget](keep)


def mark(choice: Choice) -> str:
    """What tells choices apart."""
    kept: Mapping[str, str] = {name: keep.tobytes().hex() for name, keep in sorted(choice.keeps.items())}
    return repr((kept, sorted(choice.settings.items())))
