"""How many units stay, and which: rounding, ratios and globs, uniform and global, the search for a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.allocation.select import depth, global_, group_ratios, matches, search, uniform
from onnxprune.errors import OptionError
from onnxprune.importance.units import rounded, select
from onnxprune.structure.analysis import ChannelGroup, Keep


def group(
    size: int, name: str = "conv", *, blocks: Sequence[Any] = (), width: int = 1, names: Any = ()
) -> ChannelGroup:
    """blocks: for every constraint, the block of every unit, `(size,)`."""
    counts = tuple(np.stack([np.asarray(b) == k for k in range(max(b) + 1)]).astype(int) for b in blocks)
    return ChannelGroup(name, "channels", size, np.arange(size), (), counts, (name,), (name, *names), width)


def halves(size: int, count: int = 2) -> np.ndarray:
    return np.repeat(np.arange(count), size // count)


def kept(keeps: dict[str, Keep]) -> dict[str, list[int]]:
    return {name: np.flatnonzero(keep).tolist() for name, keep in keeps.items()}


# rounded


@pytest.mark.parametrize(
    ("size", "removed", "round_to", "stay"),
    [
        (64, 0.3, 8, 48),  # 44.8: to the nearest multiple, up
        (64, 0.35, 8, 40),  # 41.6: down
        (64, 0.3, 1, 45),
        (64, 0.3, 32, 48),  # 32 and 64 are further away than an eighth: a multiple of 16
        (64, 0.95, 8, 4),  # 0 is no width: a multiple of 4
        (64, 0.0, 8, 64),
        (16, 0.3, 8, 12),  # 8 or 16 would be far off: a multiple of 4
        (8, 0.3, 8, 6),
        (3, 0.3, 8, 2),
        (2, 0.01, 8, 2),  # the nearest count is all of them
        (64, 0.001, 8, 64),
        (64, 0.01, 8, 63),  # 63.36
        (64, 0.999, 8, 1),  # and never everything
        (1, 0.5, 8, 1),
        (100, 0.5, 7, 49),
    ],
)
def test_rounded(size: int, removed: float, round_to: int, stay: int) -> None:
    assert rounded(group(size), removed, round_to) == stay


def test_rounded_counts_channels_not_units() -> None:
    """A unit of 4 channels: a multiple of 8 channels is an even number of units."""
    assert rounded(group(32, width=4), 0.34, 8) == 22
    assert rounded(group(32, width=8), 0.34, 8) == 21
    assert rounded(group(32), 0.34, 8) == 24


def test_rounded_keeps_blocks_even() -> None:
    assert rounded(group(24, blocks=[halves(24, 3)]), 0.3, 1) == 18  # 16.8: multiples of 3, at the nearest
    assert rounded(group(24, blocks=[halves(24, 3)]), 0.3, 8) == 18  # 24 would be nothing: multiples of 12, 6
    assert rounded(group(6, blocks=[halves(6, 2), halves(6, 3)]), 0.5, 1) == 6  # 6 blocks of one: nothing can go
    assert rounded(group(4, blocks=[halves(4, 2)]), 0.9, 1) == 2  # one per block stays


@pytest.mark.parametrize(("size", "removed", "most"), [(20, 0.5, 0.5), (64, 0.35, 0.35), (10, 0.9, 0.4), (3, 0.3, 0.3)])
@pytest.mark.parametrize("round_to", [1, 8, 32])
def test_rounding_never_removes_more_than_the_most(size: int, removed: float, most: float, round_to: int) -> None:
    stay = rounded(group(size), removed, round_to, max_ratio=most)
    assert size - stay <= most * size + 1e-9
    assert stay < size or size * most < 1


@settings(deadline=None)
@given(
    size=st.integers(2, 300),
    count=st.sampled_from([1, 1, 2, 3, 4]),
    width=st.sampled_from([1, 1, 2, 3, 8]),
    round_to=st.sampled_from([1, 4, 8, 12, 32]),
    ratio=st.tuples(st.floats(0.001, 0.999), st.floats(0.001, 0.999)),
)
def test_rounded_laws(size: int, count: int, width: int, round_to: int, ratio: tuple[float, float]) -> None:
    """Something stays, blocks stay even, near the request, and more removed never means more kept."""
    blocks = [halves(size * count, count)] if count > 1 else []
    g = group(size * count, blocks=blocks, width=width)
    less, more = (rounded(g, r, round_to) for r in sorted(ratio))
    for stay, r in ((less, min(ratio)), (more, max(ratio))):
        assert 0 < stay <= g.size
        assert stay < g.size or g.size * r <= 0.5 * count + 1e-9  # nothing goes only where that is the nearest count
        assert stay % count == 0
        assert abs(stay - g.size * (1 - r)) <= max(0.125 * g.size, count)
    assert more <= less


# select


def test_select_keeps_the_best() -> None:
    assert kept({"g": select(group(5), np.array([3, 1, 5, 4, 2.0]), 3)}) == {"g": [0, 2, 3]}
    assert kept({"g": select(group(4), np.ones(4), 2)}) == {"g": [0, 1]}  # of equals the first
    assert select(group(4), np.ones(4), 4).all()


def test_select_block_by_block() -> None:
    g = group(6, blocks=[halves(6, 2)])
    assert kept({"g": select(g, np.array([9, 8, 7, 1, 3, 2.0]), 2)}) == {"g": [0, 4]}
    interleaved = group(6, blocks=[[0, 1, 0, 1, 0, 1]])
    assert kept({"g": select(interleaved, np.array([9, 1, 8, 3, 7, 2.0]), 4)}) == {"g": [0, 2, 3, 5]}


def test_select_under_crossing_constraints_is_the_best_there_is() -> None:
    """Two constraints that cross, against all subsets."""
    rng = np.random.default_rng(0)
    g = group(8, blocks=[[0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1]])
    masks = (np.arange(256)[:, None] >> np.arange(8)) & 1
    fits = np.all([(masks @ b.T == (masks @ b.T)[:, :1]).all(1) for b in g.blocks], 0)
    for _ in range(10):
        scores = rng.random(8)
        for count in (2, 4, 6):
            keep = select(g, scores, count)
            best = max(masks[fits & (masks.sum(1) == count)] @ scores)
            assert keep.sum() == count
            assert all(len(set((b @ keep).tolist())) == 1 for b in g.blocks)
            assert scores[keep].sum() == pytest.approx(best)


def test_select_takes_the_nearest_count_that_the_constraints_allow() -> None:
    g = group(8, blocks=[halves(8, 2), halves(8, 4)])
    assert select(g, np.arange(8.0), 5).sum() == 4


# ratios and globs

ODD = group(16, "serving_default_input_2:0", names=["onnx::Relu_0", "block[0].conv", "a=b"])
GROUPS = [group(8, "layer1.conv", names=["layer1.weight"]), group(8, "layer2.conv", names=["layer2.weight"]), ODD]


@pytest.mark.parametrize(
    ("glob", "hit"),
    [
        ("serving_default_input_2:0", True),
        ("onnx::Relu_0", True),
        ("onnx::*", True),
        ("block[0].conv", True),  # the plain name counts before the glob
        ("block?0?.*", True),
        ("block[[]0].conv", True),
        ("a=b", True),
        ("Onnx::Relu_0", False),
        ("Relu_0", False),
        ("block0.conv", False),
    ],
)
def test_matches(glob: str, hit: bool) -> None:
    assert matches(ODD, glob) == hit


def test_a_glob_with_a_set_matches_as_glob() -> None:
    assert matches(group(4, "block0.conv"), "block[0].conv")
    assert not matches(group(4, "block1.conv"), "block[0].conv")


def test_ratios() -> None:
    assert group_ratios(GROUPS, amounts={"channels": 0.3}) == {g.name: 0.3 for g in GROUPS}
    assert group_ratios(GROUPS, amounts={}, ratio=[("layer1*", 0.5)]) == {"layer1.conv": 0.5}
    last = group_ratios(GROUPS, amounts={"channels": 0.3}, ratio=[("*", 0.1), ("layer*", 0.2), ("layer1.weight", 0.4)])
    assert list(last.values()) == [0.4, 0.2, 0.1]
    last_wins = [("layer1.weight", 0.4), ("*", 0.1)]
    assert list(group_ratios(GROUPS, amounts={"channels": 0.3}, ratio=last_wins).values()) == [0.1] * 3
    ignored = group_ratios(GROUPS, amounts={"channels": 0.3}, ratio=[("layer2*", 0.5)], ignore=["layer2.conv", "a=b"])
    assert list(ignored.values()) == [0.3, 0.0, 0.0]


@pytest.mark.parametrize("r", [1.0, -0.1, 2, float("nan"), float("inf")])
def test_ratios_outside_are_refused(r: float) -> None:
    with pytest.raises(OptionError, match=r"--channels.*not a fraction in \[0, 1\)"):
        group_ratios(GROUPS, amounts={"channels": r})
    with pytest.raises(OptionError, match=r"--ratio layer1\*.*not a fraction in \[0, 1\)"):
        group_ratios(GROUPS, amounts={"channels": 0.3}, ratio=[("layer1*", r)])


def test_globs_that_match_nothing_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--ratio 'head\*' matches no .*layer1\.conv.*inspect"):
        group_ratios(GROUPS, amounts={}, ratio=[("head*", 0.5)])
    with pytest.raises(OptionError, match=r"--ignore 'head\*' matches no"):
        group_ratios(GROUPS, amounts={"channels": 0.3}, ignore=["layer1*", "head*"])


# uniform and global


def test_uniform() -> None:
    groups = [group(4, "a"), group(8, "b"), group(4, "c")]
    scores = {"a": np.array([4, 1, 3, 2.0]), "b": np.arange(8.0), "c": np.ones(4)}
    keeps = uniform(groups, scores, {"a": 0.5, "b": 0.75}, round_to=1, max_ratio=1.0)
    assert kept(keeps) == {"a": [0, 2], "b": [6, 7], "c": [0, 1, 2, 3]}
    keeps = uniform(groups, scores, {"a": 0.5, "b": 0.75}, round_to=1, max_ratio=0.5)
    assert kept(keeps) == {"a": [0, 2], "b": [4, 5, 6, 7], "c": [0, 1, 2, 3]}


def test_global_is_one_threshold() -> None:
    groups = [group(4, "a"), group(6, "b")]
    scores = {"a": np.array([0.1, 0.2, 0.9, 0.8]), "b": np.array([0.3, 0.7, 0.6, 0.5, 0.15, 1.0])}
    keeps = global_(groups, scores, {"a": 0.4, "b": 0.4}, round_to=1, max_ratio=0.8)
    assert kept(keeps) == {"a": [2, 3], "b": [1, 2, 3, 5]}  # .1 .15 .2 .3 go
    threshold = min(scores[g.name][keeps[g.name]].min() for g in groups)
    assert all((scores[g.name][~keeps[g.name]] < threshold).all() for g in groups)


def test_global_counts_all_units_even_where_scores_are_equal() -> None:
    groups = [group(10, "a"), group(30, "b")]
    keeps = global_(groups, {"a": np.ones(10), "b": np.ones(30)}, {"a": 0.25, "b": 0.25}, round_to=1, max_ratio=0.8)
    assert sum(k.sum() for k in keeps.values()) == 30


@settings(deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=6), st.floats(0.0, 0.7), st.integers(0, 99))
def test_global_removes_the_fraction_of_all_units(sizes: list[int], r: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [group(n, f"g{i}") for i, n in enumerate(sizes)]
    scores = {g.name: rng.random(g.size) for g in groups}
    keeps = global_(groups, scores, {g.name: r for g in groups}, round_to=1, max_ratio=0.8)
    gone = {g.name: int((~keeps[g.name]).sum()) for g in groups}
    reach = sum(int(0.8 * g.size + 1e-9) for g in groups)
    assert sum(gone.values()) == min(round(r * sum(sizes)), reach)
    assert all(gone[g.name] <= 0.8 * g.size for g in groups)


def test_global_spares_what_stands_out_but_takes_at_most_the_most() -> None:
    """A group of low scores would go as a whole."""
    groups = [group(10, "low"), group(10, "high")]
    scores = {"low": np.linspace(0.01, 0.1, 10), "high": np.linspace(1, 2, 10)}
    keeps = global_(groups, scores, {"low": 0.5, "high": 0.5}, round_to=1, max_ratio=0.8)
    assert kept(keeps) == {"low": [8, 9], "high": list(range(2, 10))}
    keeps = global_(groups, scores, {"low": 0.2, "high": 0.0}, round_to=1, max_ratio=0.8)  # its own ratio, its own pool
    assert kept(keeps) == {"low": list(range(2, 10)), "high": list(range(10))}


# depth


@pytest.mark.parametrize(
    ("blocks", "r", "goes"),
    [(4, 0.01, 0), (4, 0.12, 0), (4, 0.125, 1), (4, 0.3, 1), (5, 0.5, 2), (4, 0.99, 3), (1, 0.9, 0)],
)
def test_of_blocks_the_nearest_number_goes(blocks: int, r: float, goes: int) -> None:
    groups = [replace(group(1, f"b{i}"), kind="layers") for i in range(blocks)]
    scores = {g.name: np.array([float(i)]) for i, g in enumerate(groups)}
    keeps = depth(groups, scores, {g.name: r for g in groups})
    assert [bool(keeps[g.name][0]) for g in groups] == [i >= goes for i in range(blocks)]


def test_half_of_one_block_is_the_block() -> None:
    groups = [replace(group(1, name), kind="layers") for name in "ab"]
    keeps = depth(groups, {"a": np.ones(1), "b": np.ones(1)}, {"b": 0.5})
    assert kept(keeps) == {"a": [0], "b": []}


# search


def test_search_finds_the_smallest_ratio() -> None:
    def allocate(r: float) -> dict[str, Keep]:
        return {"g": np.arange(1000) >= round(1000 * r)}

    found = search(allocate, lambda keeps: keeps["g"].sum() <= 620, low=0.0, high=0.9)
    assert found is not None
    assert found[0]["g"].sum() == 620
    assert found[1] == pytest.approx(0.38, abs=1e-3)
    assert search(allocate, lambda keeps: keeps["g"].sum() <= 99, low=0.0, high=0.9) is None
    already = search(allocate, lambda keeps: keeps["g"].sum() <= 2000, low=0.1, high=0.9)
    assert already is not None
    assert already[1] == 0.1
