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
        goal, good, nearest = limits_of(self.setup), None, float("inf")
        tried: set[str] = set()
        for _ in range(DRAFTS):
            try:
                choice = self.ways.choose(way, goal)
            except Unreachable:
                if nearest == float("inf"):
                    raise
                break
            if (seen := mark(choice)) in tried:
                break
            tried.add(seen)
            over = self.over(draft_of(self.setup, way, choice))
            most = max(over.values())
            nearest = min(nearest, most)
            if most <= 1 and (good is None or most > good[1]):
                good = choice, most
            if CLOSE <= most <= 1:
                break
            goal = {name: min(goal[name] / over[name] * SLACK, self.whole[name]) for name in goal}
        if good is not None:
            made = made_of(self.setup, way, good[0])
            most = max(self.over(made).values())
            if most <= 1:
                return made, most
            nearest = most
        asked = " and ".join(f"--target-{name} {value}" for name, value in self.setup.options.cut.targets.items())
        raise Unreachable(
            f"{asked} cannot be reached by {way}: the smallest file that was made uses {nearest:.1%} of what it may; "
            "ask for less, or allow more with --max-ratio"
        )

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
