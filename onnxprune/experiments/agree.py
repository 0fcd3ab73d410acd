"""How far two lists of scores order units alike: of two data sets, or of two importances.

Within a group it is what a cut of every group by the same fraction goes by; over all units together, by one threshold
(Michel et al. 2019, Are Sixteen Heads Really Better than One?, compare the heads of all layers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from onnxprune.experiments.ranks import COEFFICIENTS
from onnxprune.importance.criterion import Scores
from onnxprune.structure.analysis import ChannelGroup

FEWEST = 3  # units whose order says something


@dataclass(frozen=True)
class Within:
    """One group. coefficients: name of `COEFFICIENTS` -> value, None where all units of a list score alike."""

    group: str
    kind: str
    units: int
    coefficients: dict[str, float | None]


@dataclass(frozen=True)
class Summary:
    """One coefficient. mean, deviation: over the groups of which it is defined, None of none; 0 for one; together: over
    all units."""

    mean: float | None
    deviation: float | None
    together: float | None


@dataclass(frozen=True)
class Agreement:
    """groups: those of at least `FEWEST` units; units: that both lists score, of all groups; coefficients: name ->
    what becomes of it."""

    groups: tuple[Within, ...]
    units: int
    coefficients: dict[str, Summary]


def agreement(a: Scores, b: Scores, groups: Sequence[ChannelGroup]) -> Agreement:
    """How the scores of two lists agree, over the groups that both score."""
    both = [g for g in groups if g.name in a and g.name in b]
    within = tuple(
        Within(g.name, g.kind, g.size, {n: _defined(n, a[g.name], b[g.name]) for n in COEFFICIENTS})
        for g in both if g.size >= FEWEST
    )  # fmt: skip
    x, y = (np.concatenate([s[g.name] for g in both] or [np.zeros(0)]) for s in (a, b))
    out = {}
    for name in COEFFICIENTS:
        found = [v for w in within if (v := w.coefficients[name]) is not None]
        deviation = stdev(found) if len(found) > 1 else 0.0 if found else None
        out[name] = Summary(fmean(found) if found else None, deviation, _defined(name, x, y))
    return Agreement(within, x.size, out)


def _defined(name: str, a: np.ndarray, b: np.ndarray) -> float | None:
    value = float(COEFFICIENTS[name](a, b)) if len(a) >= FEWEST else math.nan
    return None if math.isnan(value) else value


__all__ = ["FEWEST", "Agreement", "Summary", "Within", "agreement"]
