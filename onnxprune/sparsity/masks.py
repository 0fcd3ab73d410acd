"""Which weights of a layer stay: a solver scores them, an allocator counts how many go, a pattern says where.

Arrays in, arrays out: a solver gives a score for every weight, in the weight's own shape; the larger, the more it
matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array

Mask = npt.NDArray[np.bool_]
Scores = Mapping[str, Array]  # weight -> score of every entry
Counts = dict[str, int]  # weight -> entries that go
MAX_SPARSITY = 0.99  # of a layer, for `global`, unless more is asked for


def magnitude(w: Array) -> Array:
    """|w| (Han et al. 2015)"""
    return np.abs(w)


SOLVERS: dict[str, Callable[[Array], Array]] = {"magnitude": magnitude}


@dataclass(frozen=True)
class Pattern:
    """n of every m consecutive weights along the reduction stay."""

    n: int
    m: int

    @staticmethod
    def parse(text: str) -> Pattern:
        """`2:4`; raises `OptionError`."""
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text.strip())
        n, m = (int(x) for x in found.groups()) if found else (0, 0)
        if not (1 <= n < m <= 256):
            raise OptionError(f"--pattern {text}: expected N:M with 1 <= N < M <= 256, of which N weights stay, as 2:4")
        return Pattern(n, m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def uniform(scores: Scores, ratios: Mapping[str, float]) -> Counts:
    """the same fraction of every layer"""
    return {name: round(ratios[name] * s.size) for name, s in scores.items()}


def global_(scores: Scores, ratios: Mapping[str, float]) -> Counts:
    """one threshold over all layers with the same wanted sparsity, at most MAX_SPARSITY of a layer

    Scores are taken as they are, not normalised by layer: with `magnitude`, layers of small weights lose more.
    """
    out: Counts = {}
    for r in sorted(set(ratios.values())):
        mine = [name for name in scores if ratios[name] == r]
        everything = np.concatenate([_reachable(scores[name], max(r, MAX_SPARSITY)).ravel() for name in mine])
        gone = np.concatenate(([0], np.cumsum(~lowest_kept(everything, round(r * everything.size)))))
        ends = np.cumsum([0, *(scores[name].size for name in mine)])
        out |= {name: int(gone[b] - gone[a]) for name, a, b in zip(mine, ends, ends[1:], strict=False)}
    return {name: out[name] for name in scores}


def _reachable(scores: Array, limit: float) -> Array:
    """The scores, with infinity for those beyond the lowest `limit` of them: they go last."""
    return np.where(lowest_kept(scores, int(limit * scores.size + 1e-9)), np.inf, scores)


Allocator = Callable[[Scores, Mapping[str, float]], Counts]
ALLOCATORS: dict[str, Allocator] = {"uniform": uniform, "global": global_}


def below(weights: Mapping[str, Array], quality: float) -> Counts:
    """How many weights lie below `quality` times the standard deviation of their layer (Han et al. 2015)."""
    return {name: int((np.abs(w) < quality * float(np.std(w, dtype=np.float64))).sum()) for name, w in weights.items()}


def lowest_kept(scores: Array, count: int) -> Mask:
    """False for the `count` lowest scores, of equal ones the first; of the scores' shape."""
    flat = scores.ravel()
    if count <= 0:
        return np.ones(scores.shape, bool)
    if count >= flat.size:
        return np.zeros(scores.shape, bool)
    limit = np.partition(flat, count - 1)[count - 1]
    kept: Mask = flat > limit
    equal = np.flatnonzero(flat == limit)
    kept[equal[count - int((flat < limit).sum()) :]] = True
    return kept.reshape(scores.shape)


def n_of_m(scores: Array, pattern: Pattern) -> Mask:
    """True for the n highest of every m along the last axis of `[S, L]`, of equal ones the first.

    A last block that is shorter keeps n of what it has.
    """
    rows, length = scores.shape
    blocks = -(-length // pattern.m)
    padded: npt.NDArray[Any] = np.full((rows, blocks * pattern.m), -np.inf, np.float32)
    padded[:, :length] = scores
    order = np.argsort(-padded.reshape(rows, blocks, pattern.m), axis=2, kind="stable")
    kept = np.zeros((rows, blocks, pattern.m), bool)
    np.put_along_axis(kept, order[:, :, : pattern.n], True, axis=2)
    return kept.reshape(rows, -1)[:, :length]


__all__ = ["ALLOCATORS", "SOLVERS", "Pattern", "below", "lowest_kept", "n_of_m"]
