"""How many weights of each layer become zero.

Scores are arrays in the weight's own shape; the larger, the more a weight matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.solvers.patterns import lowest_kept

EntryScores = Mapping[str, Array]  # weight -> score of every entry
Counts = dict[str, int]  # weight -> entries that go
MAX_SPARSITY = 0.99  # of a layer, for `global`, unless more is asked for


def uniform(scores: EntryScores, ratios: Mapping[str, float]) -> Counts:
    """the same fraction of every layer"""
    return {name: round(ratios[name] * s.size) for name, s in scores.items()}


def global_(scores: EntryScores, ratios: Mapping[str, float]) -> Counts:
    """one threshold over all layers with the same wanted sparsity, at most MAX_SPARSITY of a layer

    Scores are magnitudes, or those of a solver by gradients. They are taken as they are, not normalised by layer: with
    magnitudes, layers of small weights lose more.
    """
    return by_threshold(scores, ratios, MAX_SPARSITY)


def by_threshold(scores: EntryScores, ratios: Mapping[str, float], most: float) -> Counts:
    """`global_`, with at most that of a layer; 1 for scores that leave no layer empty by themselves."""
    out: Counts = {}
    for r in sorted(set(ratios.values())):
        alike = [name for name in scores if ratios[name] == r]
        everything = np.concatenate([_reachable(scores[name], max(r, most)).ravel() for name in alike])
        gone = np.concatenate(([0], np.cumsum(~lowest_kept(everything, round(r * everything.size)))))
        ends = np.cumsum([0, *(scores[name].size for name in alike)])
        out |= {name: int(gone[b] - gone[a]) for name, a, b in zip(alike, ends, ends[1:], strict=False)}
    return {name: out[name] for name in scores}


def _reachable(scores: Array, limit: float) -> Array:
    """The scores, with infinity for those beyond the lowest `limit` of them: they go last."""
    return np.where(lowest_kept(scores, int(limit * scores.size + 1e-9)), np.inf, scores)


def erk(scores: EntryScores, ratios: Mapping[str, float]) -> Counts:
    """weights in proportion to a layer's inputs plus outputs plus kernel (Erdos-Renyi kernel; Evci et al. 2020)"""
    return _by_ratio(
        ratios, lambda names, r: _spread({n: sum(scores[n].shape) / scores[n].size for n in names}, scores, r)
    )


def lamp(scores: EntryScores, ratios: Mapping[str, float]) -> Counts:
    """one threshold over w^2 divided by the sum of those that are as large or larger (Lee et al. 2021)"""
    return global_({name: _lamp(s) for name, s in scores.items()}, ratios)


def _lamp(scores: Array) -> Array:
    flat = np.square(scores.ravel(), dtype=np.float64)
    order = np.argsort(flat, kind="stable")
    after = np.cumsum(flat[order][::-1])[::-1]
    out = np.empty_like(flat)
    out[order] = flat[order] / np.where(after > 0, after, 1)
    return out.reshape(scores.shape)


def _by_ratio(ratios: Mapping[str, float], count: Callable[[list[str], float], Counts]) -> Counts:
    """Layers of the same sparsity share a budget."""
    parts = [count([n for n in ratios if ratios[n] == r], r) for r in sorted(set(ratios.values()))]
    return {name: n for part in parts for name, n in part.items()}


def _spread(densities: Mapping[str, float], sizes: Mapping[str, Array], r: float) -> Counts:
    """Counts of the layers whose density is proportional to `densities`, none above 1, r of all weights going."""
    size = np.array([sizes[n].size for n in densities], float)
    raw = np.array(list(densities.values()))
    left, full = (1 - r) * size.sum(), np.zeros(len(raw), bool)
    for _ in raw:
        factor = max(left - size[full].sum(), 0.0) / max(float((raw * size)[~full].sum()), 1e-300)
        over = ~full & (raw * factor > 1)
        if not over.any():
            break
        full |= over
    density = np.where(full, 1.0, raw * factor)
    return {n: round((1 - d) * s) for n, d, s in zip(densities, density, size, strict=True)}


@dataclass(frozen=True)
class Facts:
    """What the data say of a layer: outliers: share of |w| ||x|| above five times its mean; errors: error of a quick
    solver at every one of LEVELS, relative to the energy of the outputs; free: share of the weights that can go as they
    are zero already."""

    size: int
    outliers: float
    errors: tuple[float, ...]
    free: float = 0.0


LEVELS = (0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.87, 0.93, 0.96, 0.98, 0.99, 0.995)  # sparsities of `Facts.errors`
SPREAD = 3.0  # by which `by_error` may divide a layer's density
OWL = 0.08  # how far densities may differ from the mean


def owl(facts: Mapping[str, Facts], ratios: Mapping[str, float]) -> Counts:
    """more for layers with many outliers of |w| ||x||, at most 8 points more (Yin et al. 2024)"""

    def counts(names: list[str], r: float) -> Counts:
        share, size = np.array([facts[n].outliers for n in names]), np.array([facts[n].size for n in names], float)
        spread, most = float(np.ptp(share)), min(OWL, (1 - r) / 2)
        density = 2 * most * (share - share.min()) / spread if spread > 0 else np.zeros(len(share))
        density += (1 - r) - np.average(density, weights=size)
        low, high = -1.0, 1.0  # what is added to all, so that the total holds after clipping
        for _ in range(60):
            middle = (low + high) / 2
            clipped = np.clip(density + middle, (1 - r) / 4, 1.0)
            low, high = (middle, high) if float(clipped @ size) < (1 - r) * size.sum() else (low, middle)
        density = clipped
        return {n: int(np.clip(round((1 - d) * s), 0, s)) for n, d, s in zip(names, density, size, strict=True)}

    return _by_ratio(ratios, counts)


def by_error(facts: Mapping[str, Facts], ratios: Mapping[str, float]) -> Counts:
    """the least sum of the layers' errors, each relative to its outputs"""

    def counts(names: list[str], r: float) -> Counts:
        steps: list[tuple[float, str, float]] = []  # error per weight, layer, weights
        for n in names:
            most = 1 - (1 - r) / SPREAD
            curve = dict(zip(LEVELS, facts[n].errors, strict=True)) | {facts[n].free: 0.0}
            at = sorted(level for level, error in curve.items() if np.isfinite(error) and level <= most)
            while len(at) > 1:  # to the next level on the lower convex hull
                a, rest = at[0], at[1:]
                slope = [(curve[k] - curve[a]) / (k - a) for k in rest]
                best = int(np.argmin(slope))
                weights = (rest[best] - a) * facts[n].size
                steps.append((slope[best] / facts[n].size, n, weights))
                at = rest[best:]
        left = r * sum(facts[n].size for n in names)
        out = dict.fromkeys(names, 0.0)
        for _, n, weights in sorted(steps, key=lambda s: s[0]):
            taken = min(weights, left)
            out[n] += taken
            left -= taken
        room = {n: facts[n].size - out[n] for n in names}  # beyond the last level, from what is left of each
        for n in names:
            out[n] += left * room[n] / max(sum(room.values()), 1e-9)
        return {n: round(c) for n, c in out.items()}

    return _by_ratio(ratios, counts)


@dataclass(frozen=True)
class ZeroAllocator:
    """One way to spread zeros over layers.

    allocate: scores of all entries by weight, or `Facts` of it where data are needed, and weight -> sparsity -> entries
    that go; needs_data: calibration samples; errors: whether it needs the errors of `Facts`; even: whether every layer
    gets what is asked for, so that it goes with patterns and thresholds; scored: whether it goes by the scores of a
    solver by gradients, in place of magnitudes.
    """

    help: str
    allocate: Callable[[Mapping[str, Any], Mapping[str, float]], Counts]
    needs_data: bool = False
    errors: bool = False
    even: bool = False
    scored: bool = False


def _row(allocate: Callable[[Any, Mapping[str, float]], Counts], **facts: bool) -> ZeroAllocator:
    return ZeroAllocator((allocate.__doc__ or "").strip().splitlines()[0], allocate, **facts)


ZERO_ALLOCATORS: dict[str, ZeroAllocator] = {
    "uniform": _row(uniform, even=True),
    "global": _row(global_, scored=True),
    "erk": _row(erk),
    "lamp": _row(lamp),
    "owl": _row(owl, needs_data=True),
    "error": _row(by_error, needs_data=True, errors=True),
}


def spread(scores: EntryScores, ratios: Mapping[str, float], allocate: str) -> Counts:
    """What a row of `ZERO_ALLOCATORS` that needs no data gives, `global` without a limit for a layer."""
    if allocate == "global":
        return by_threshold(scores, ratios, 1.0) if scores else {}
    return ZERO_ALLOCATORS[allocate].allocate(scores, ratios)


def below(weights: Mapping[str, Array], quality: float) -> Counts:
    """How many weights lie below `quality` times the standard deviation of those of their layer that are not zero (Han
    et al. 2015)."""
    return {name: int((np.abs(w) < quality * _deviation(w)).sum()) for name, w in weights.items()}


def _deviation(w: Array) -> float:
    left = w[w != 0]
    return float(np.std(left, dtype=np.float64)) if left.size else 0.0
