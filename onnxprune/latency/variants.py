"""Variants of a model to measure: uniform cuts at several widths, and random ones, every group its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.io import Model
from onnxprune.importance.criterion import Scores
from onnxprune.importance.units import rounded, select
from onnxprune.importance.weights import score
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep
from onnxprune.structure.surgery import prune_model, slice_weights

UNIFORM = ((0.25, 16), (0.5, 16), (0.7, 8), (0.4, 8), (0.6, 1))  # removed of every group, widths multiples of
STEPS = (8, 1, 16, 2, 8, 4)  # multiples that the widths of random variants are
RANDOM = 18  # random variants
DEEPEST = 0.8  # removed of a group, at most
SHORTER = 3  # every so many random variants also lose blocks
BLOCKS = 0.25  # of which each goes with this probability

Kept = Mapping[str, int]  # group name -> units that stay; groups that are not named stay whole


@dataclass(frozen=True, eq=False)
class Picker:
    """Makes widths into ids: the units with the largest weights stay."""

    analysis: Analysis
    scores: Scores

    @staticmethod
    def of(analysis: Analysis) -> Picker:
        """With the scores of the weights."""
        return Picker(analysis, score(analysis, widths(analysis), importance="l2", seed=0))

    def keep(self, kept: Kept) -> Keep:
        """The ids that stay, bool `(ids,)`."""
        units: dict[str, Keep] = {}
        for g in self.analysis.groups:
            n = kept.get(g.name, g.size)
            units[g.name] = np.full(g.size, n > 0) if g.kind == "layers" else select(g, self.scores[g.name], n)
        return self.analysis.keep_ids(units)

    def model(self, kept: Kept) -> Model:
        """The model with that cut out; neither recovered nor checked, for only its time is of interest."""
        keep = self.keep(kept)
        return prune_model(self.analysis, keep, sliced=slice_weights(self.analysis, keep))


def widths(analysis: Analysis) -> list[ChannelGroup]:
    """The groups that can get narrower."""
    return [g for g in analysis.groups if g.kind != "layers"]


def variants(analysis: Analysis, seed: int) -> list[Kept]:
    """What the variants keep. The first, one in the middle and the last keep all: two sessions of one file may differ,
    and so may the one that all are compared with."""
    groups = widths(analysis)
    uniform = [{g.name: rounded(g, removed, step, max_ratio=DEEPEST) for g in groups} for removed, step in UNIFORM]
    at_random = list(random_cuts(analysis, (RANDOM // len(STEPS)) * STEPS, seed))
    return [{}, *uniform, *at_random[: RANDOM // 2], {}, *at_random[RANDOM // 2 :], {}]


def random_cuts(analysis: Analysis, steps: Sequence[int], seed: int) -> Iterator[Kept]:
    """Random cuts, every group with a ratio of its own. steps: multiples that the widths of each are."""
    rng = np.random.default_rng(seed)
    for k, step in enumerate(steps):
        kept: dict[str, int] = {}
        most = rng.uniform(0.2, DEEPEST)
        for g in analysis.groups:
            removed = float(rng.uniform(0, most))
            if g.kind != "layers":
                kept[g.name] = rounded(g, removed, step, max_ratio=DEEPEST)
            elif k % SHORTER == SHORTER - 1 and removed < BLOCKS * most:
                kept[g.name] = 0
        yield kept
