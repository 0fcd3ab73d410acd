"""Which units of a group stay where its blocks must keep equally many."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from law import cut
from models.rules import build, text
from onnxprune.importance.units import select
from onnxprune.structure.analysis import ChannelGroup


def group(*partitions: list[list[int]]) -> ChannelGroup:
    """A group whose blocks are given as members."""
    size = 1 + max(i for p in partitions for members in p for i in members)
    blocks = tuple(np.stack([np.bincount(m, minlength=size) for m in p]) for p in partitions)
    return ChannelGroup("g", "channels", size, np.arange(size), (), blocks, (), ("g",))


HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]
PARITY = [[0, 2, 4, 6], [1, 3, 5, 7]]
CROSSED = [[0, 1, 6, 7], [2, 3, 4, 5]]
QUARTERS = [[0, 1], [2, 3], [4, 5], [6, 7]]


def best(g: ChannelGroup, scores: np.ndarray[Any, Any], kept: int) -> float:
    """Largest score of `kept` units under the constraints, by trying all."""
    sums = [-np.inf]
    for chosen in itertools.combinations(range(g.size), kept):
        keep = np.isin(np.arange(g.size), chosen)
        if all(len(set((b @ keep).tolist())) == 1 for b in g.blocks):
            sums.append(float(scores[keep].sum()))
    return max(sums)


@pytest.mark.parametrize(
    "partitions", [(HALVES,), (PARITY,), (QUARTERS,), (HALVES, PARITY), (HALVES, QUARTERS), (HALVES, PARITY, CROSSED)]
)
def test_blocks_keep_equal_survivors_and_the_best_of_them(partitions: tuple[list[list[int]], ...]) -> None:
    g = group(*partitions)
    scores = np.random.default_rng(0).random(8)
    for kept in (4, len(partitions[-1])):
        keep = select(g, scores, kept)
        assert keep.sum() == kept
        assert all(len(set((b @ keep).tolist())) == 1 for b in g.blocks)
        assert scores[keep].sum() == pytest.approx(best(g, scores, kept))


def test_a_count_that_the_blocks_forbid_becomes_the_nearest_one() -> None:
    keep = select(group(HALVES, QUARTERS), np.arange(8.0), 6)
    assert keep.sum() in (4, 8)
    keep = select(group(HALVES, PARITY), np.arange(8.0), 5)
    assert keep.sum() in (4, 6)
    assert (keep[:4].sum(), keep[::2].sum()) == (keep[4:].sum(), keep[1::2].sum())


def test_partitions_that_cross_are_solved_in_a_model() -> None:
    weights = """float[8,3,1,1] w1, float[8,4,1,1] w2, float[8,4,1,1] w3, float[4,8,1,1] w4,
        int64[8] i = {0,2,4,6,1,3,5,7}"""
    nodes = """h = Conv(x, w1) g = Conv<group = 2>(h, w2) p = Gather<axis = 1>(h, i) q = Conv<group = 2>(p, w3)
        s = Add(g, q) y = Conv(s, w4)"""
    model = build(text("float[2,3,6,6] x", weights, nodes))
    result = cut(model, 0.5)
    first = result.analysis.groups[0]
    assert [b.tolist() for b in first.blocks] == [
        [[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]],
        [[1, 0, 1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1, 0, 1]],
    ]
    assert result.error <= 1e-5
    assert result.pruned.weights["w1"].shape[0] == 4
