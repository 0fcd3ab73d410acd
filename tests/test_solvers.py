"""One-shot sparsity on matrices: what may stay, which weights stay and with which values, and how many go of a layer.

The oracles are numpy's dense solvers, one row at a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune import OptionError
from onnxprune.formats.patterns import BlockPattern, NMPattern, Pattern, parse_pattern
from onnxprune.solvers import masks as sparse
from onnxprune.solvers import rows
from onnxprune.solvers.masks import SOLVERS, NotPositive, Problem, inverse, obc, polish, refit, sparsegpt
from onnxprune.solvers.patterns import Choice, Count, NofM, Tiles, lowest_kept
from onnxprune.sparsity.allocate import LEVELS, ZERO_ALLOCATORS, Facts, by_error, lamp, owl

Array = np.ndarray[Any, np.dtype[Any]]
LAW = settings(max_examples=40, deadline=None)


def problem(o: int = 6, d: int = 16, seed: int = 0, *, ridge: float = 0.01, rank: int = 0) -> Problem:
    """Correlated inputs, of `rank` samples (0: four for every column), and random weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rank or 4 * d, d)) @ rng.normal(size=(d, d)) / np.sqrt(d * (rank or 4 * d))
    gram = x.T @ x
    original = rng.normal(size=(o, d))
    target = original + 0.1 * rng.normal(size=(o, d))
    hessian = gram + ridge * np.trace(gram) / d * np.eye(d)
    return Problem(hessian, target, original, np.sqrt(np.diag(gram)), np.abs(original))


def energy(p: Problem, w: Array, row: int) -> float:
    """f of one row."""
    e = w - p.target[row]
    return float(e @ p.hessian @ e)


def exact(p: Problem, mask: Array) -> Array:
    """The weights that minimise f with zeros where the mask is False, row by row."""
    w = np.zeros_like(p.target)
    for k, keep in enumerate(mask):
        at = np.flatnonzero(keep)
        w[k, at] = np.linalg.solve(p.hessian[np.ix_(at, at)], p.hessian[at] @ p.target[k])
    return w


def whole_tiles(mask: Array, rows_: int, columns: int, segment: int) -> bool:
    """Whether every tile stays or goes as a whole."""
    for s in range(0, mask.shape[1], segment):
        part = mask[:, s : s + segment]
        for i in range(0, len(part), rows_):
            for j in range(0, segment, columns):
                tile = part[i : i + rows_, j : j + columns]
                if tile.any() != tile.all():
                    return False
    return True


def n_of_every_m(mask: Array, choice: NofM) -> bool:
    """Whether every block keeps n, or all of what a short one has."""
    for s in range(0, mask.shape[1], choice.segment):
        for k in range(0, choice.segment, choice.m):
            block = mask[:, s + k : s + min(k + choice.m, choice.segment)]
            if (block.sum(1) != min(choice.n, block.shape[1])).any():
                return False
    return True


def holds(choice: Choice, mask: Array) -> None:
    """Asserts that a mask is what the choice allows."""
    gone = int((~mask).sum())
    if isinstance(choice, Count):
        assert gone == choice.count
    elif isinstance(choice, NofM):
        assert n_of_every_m(mask, choice)
    else:
        assert isinstance(choice, Tiles)
        assert whole_tiles(mask, choice.rows, choice.columns, choice.segment)
        assert choice.count <= gone < choice.count + choice.rows * choice.columns


@st.composite
def choices(draw: st.DrawFn, kinds: str = "count nm tiles") -> tuple[int, int, Choice]:
    """Rows, columns and a choice."""
    o, segment, segments = draw(st.integers(1, 9)), draw(st.integers(1, 13)), draw(st.integers(1, 4))
    d = segment * segments
    kind = draw(st.sampled_from(kinds.split()))
    if kind == "count":
        return o, d, Count(draw(st.integers(0, o * d)))
    if kind == "nm":
        m = draw(st.integers(2, 8))
        return o, d, NofM(draw(st.integers(1, m - 1)), m, segment)
    r, c = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return o, d, Tiles(r, c, draw(st.integers(0, o * d)), segment)


# Choices


@LAW
@given(choices(), st.integers(0, 99))
def test_a_choice_keeps_what_it_says(case: tuple[int, int, Choice], seed: int) -> None:
    o, d, choice = case
    scores = np.random.default_rng(seed).random((o, d))
    mask = choice.keep(scores)
    holds(choice, mask)
    if isinstance(choice, Count) and 0 < choice.count < mask.size:
        assert scores[~mask].max() <= scores[mask].min()


@LAW
@given(choices(), st.integers(0, 99))
def test_a_schedule_removes_more_and_more(case: tuple[int, int, Choice], seed: int) -> None:
    o, d, choice = case
    scores = np.random.default_rng(seed).random((o, d))
    kept = [choice.keep(scores, share) for share in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert kept[0].all() and (kept[-1] == choice.keep(scores)).all()
    for a, b in pairwise(kept):
        assert not (b & ~a).any()  # what went stays away


@LAW
@given(choices(), st.integers(1, 20), st.integers(0, 99))
def test_slabs_cover_the_columns_and_add_up(case: tuple[int, int, Choice], width: int, seed: int) -> None:
    o, d, choice = case
    rng = np.random.default_rng(seed)
    slabs = list(choice.slabs(d, width))
    assert [a for a, _ in slabs] + [d] == [0] + [b for _, b in slabs]
    mask, gone = np.ones((o, d), bool), 0
    for a, b in slabs:
        mask[:, a:b] = choice.part(rng.random((o, b - a)), a, gone, d)
        gone += int((~mask[:, a:b]).sum())
    holds(choice, mask)


def test_tiles_go_by_their_mean() -> None:
    scores = np.array([[1.0, 1, 9, 9, 0.5], [1, 1, 9, 9, 0.5]])
    assert (~Tiles(2, 2, 1, 5).keep(scores)).sum(0).tolist() == [0, 0, 0, 0, 2]  # the edge is smaller
    assert (~Tiles(2, 2, 3, 5).keep(scores)).sum(0).tolist() == [2, 2, 0, 0, 2]
    assert Tiles(2, 2, 0, 5).keep(scores).all() and not Tiles(2, 2, 10, 5).keep(scores).any()


# Solvers


@LAW
@given(choices(), st.sampled_from(list(SOLVERS)), st.integers(0, 99), st.booleans())
def test_solvers_and_polish_do_what_the_choice_says(
    case: tuple[int, int, Choice], solver: str, seed: int, poor: bool
) -> None:
    o, d, choice = case
    if isinstance(choice, Tiles) and not SOLVERS[solver].tiles:
        with pytest.raises(NotImplementedError):
            obc(problem(o, d), choice)
        return
    p = problem(o, d, seed, rank=max(1, d // 3) if poor else 0)
    mask, w = SOLVERS[solver].solve(p, choice)
    holds(choice, mask)
    assert np.isfinite(w).all() and not w[~mask].any()
    before = p.error(w)
    mask, w = polish(p, choice, mask, w)
    holds(choice, mask)
    assert np.isfinite(w).all() and not w[~mask].any()
    assert p.error(w) <= before + 1e-8


@LAW
@given(choices("count nm"), st.integers(0, 99))
def test_pairwise_swaps_do_too(case: tuple[int, int, Choice], seed: int) -> None:
    """`polish` of layers that are too wide for exact exchanges."""
    o, d, choice = case
    p = problem(o, d, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "EXACT", 0)
        mask, w = SOLVERS["magnitude"].solve(p, choice)
        before = p.error(w)
        mask, w = polish(p, choice, mask, w)
    holds(choice, mask)
    assert not w[~mask].any() and p.error(w) <= before + 1e-8


def test_few_removals_of_narrow_layers() -> None:
    for d, count in ((7, 3), (4, 1), (3, 2)):
        holds(Count(count), obc(problem(10, d), Count(count))[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("segment", [3, 6, 7])
def test_short_blocks(segment: int, seed: int) -> None:
    holds(NofM(2, 4, segment), obc(problem(4, 2 * segment, seed), NofM(2, 4, segment))[0])


def test_scores() -> None:
    p = problem(5, 12)
    w = np.abs(p.original)
    choice = Count(25)
    for solver, score in (
        ("magnitude", w),
        ("ria", (w / w.sum(0) + w / w.sum(1)[:, None]) * np.sqrt(p.norms)),
    ):
        mask, found = SOLVERS[solver].solve(p, choice)
        assert (mask == lowest_kept(score, 25)).all(), solver
        assert (found == np.where(mask, p.original, 0)).all(), solver
    score = w * p.norms
    mask, found = SOLVERS["wanda"].solve(p, choice)
    assert (~mask).sum(1).tolist() == [5] * 5  # of every row
    assert (found == np.where(mask, p.original, 0)).all()
    for row, keep in zip(score, mask, strict=True):
        assert row[~keep].max() < row[keep].min()
    assert sorted((~SOLVERS["wanda"].solve(p, Count(23))[0]).sum(1)) == [4, 4, 5, 5, 5]
    assert (SOLVERS["wanda"].solve(p, NofM(2, 4, 12))[0] == NofM(2, 4, 12).keep(score)).all()


def test_dead_weights_have_scores() -> None:
    p = problem(4, 8)
    p.original[:, 2] = 0
    p.original[1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask, _ = SOLVERS["ria"].solve(p, Count(11))
    assert not mask[:, 2].any() and not mask[1].any()


@pytest.mark.parametrize("choice", [Count(40), NofM(2, 4, 12), NofM(1, 4, 6), Tiles(2, 2, 30, 12)])
def test_sparsegpt_is_what_the_paper_says(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Column by column with the inverse of what is left of H, the mask chosen a slab at a time."""
    monkeypatch.setattr(sparse, "BATCH", 4)
    p = problem(6, 12)
    mask, found = sparsegpt(p, choice)
    w, expected, gone = p.target.copy(), np.ones((6, 12), bool), 0
    left = [np.linalg.inv(p.hessian[j:, j:]) for j in range(12)]
    for a, b in choice.slabs(12, 4):
        score = np.square(w[:, a:b]) / np.array([left[j][0, 0] for j in range(a, b)])
        expected[:, a:b] = choice.part(score, a, gone, 12)
        gone += int((~expected[:, a:b]).sum())
        for j in range(a, b):
            for r in np.flatnonzero(~expected[:, j]):
                w[r, j:] -= w[r, j] / left[j][0, 0] * left[j][0]
    assert (mask == expected).all()
    np.testing.assert_allclose(found, np.where(expected, w, 0), atol=1e-10)


def test_sparsegpt_in_batches_is_the_same_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    p, choice = problem(6, 24), NofM(2, 4, 24)
    whole = sparsegpt(p, choice)
    monkeypatch.setattr(sparse, "BATCH", 8)
    parts = sparsegpt(p, choice)
    assert (whole[0] == parts[0]).all()
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-10)


def removals(p: Problem, row: int, block: Array, most: int, steps: int) -> tuple[list[int], list[float]]:
    """OBS with an inverse of its own for every step: the order, and what f rises by."""
    alive = np.ones(p.target.shape[1], bool)
    order: list[int] = []
    costs: list[float] = []
    gone = np.zeros(block.max() + 1, int)
    for _ in range(steps):
        w = exact(p, np.tile(alive, (len(p.target), 1)))[row]
        rise = np.full(len(alive), np.inf)
        for i in np.flatnonzero(alive & (gone[block] < most)):
            less = alive.copy()
            less[i] = False
            at = np.flatnonzero(less)
            v = np.zeros_like(w)
            v[at] = np.linalg.solve(p.hessian[np.ix_(at, at)], p.hessian[at] @ p.target[row])
            rise[i] = energy(p, v, row) - energy(p, w, row)
        best = int(np.argmin(rise))
        if rise[best] == np.inf:
            break
        order.append(best)
        costs.append(max(float(rise[best]), costs[-1] if costs else 0.0))
        alive[best] = False
        gone[block[best]] += 1
    return order, costs


@pytest.mark.parametrize(("block", "most"), [([0] * 8, 8), ([0] * 4 + [1] * 4, 2)])
def test_obs_removes_in_the_right_order_at_the_right_cost(block: list[int], most: int) -> None:
    for seed in range(5):
        p = problem(3, 8, seed)
        order, costs = rows.obs_order(inverse(p), p.target, 6, np.array(block), np.full(max(block) + 1, most), 1e-300)
        for r in range(3):
            expected, rise = removals(p, r, np.array(block), most, 6)
            assert order[r, : len(expected)].tolist() == expected
            assert (order[r, len(expected) :] == -1).all()
            np.testing.assert_allclose(costs[r, : len(rise)], rise, rtol=1e-6, atol=1e-12)


def test_obc_removes_the_cheapest_of_all_rows() -> None:
    p, count = problem(4, 8), 12
    found = [removals(p, r, np.zeros(8, int), 8, 7) for r in range(4)]
    expected = np.ones((4, 8), bool)
    for _, r, i in sorted((c, r, i) for r, (order, costs) in enumerate(found)
                          for i, c in zip(order, costs, strict=True))[:count]:  # fmt: skip
        expected[r, i] = False
    assert (obc(p, Count(count))[0] == expected).all()


@pytest.mark.parametrize("rank", [0, 5])
def test_refit_is_exact(rank: int) -> None:
    for seed in range(4):
        p = problem(6, 20, seed, rank=rank)
        mask = np.random.default_rng(seed).random((6, 20)) < 0.6
        mask[0], mask[1] = False, True
        best = exact(p, mask)
        for start in (None, np.random.default_rng(9).normal(size=(6, 20))):
            w = refit(p, mask, start)
            assert not w[~mask].any()
            assert p.error(w - best + p.target) < 1e-9  # conjugate gradients stop at 1e-5 of the energy's root
            assert p.error(w) <= p.error(best) + 1e-9


def test_polish_of_narrow_layers_gives_exact_weights() -> None:
    for choice in (Count(70), NofM(2, 4, 20)):
        p = problem(6, 20)
        mask, w = polish(p, choice, *SOLVERS["magnitude"].solve(p, choice))
        np.testing.assert_allclose(w, exact(p, mask), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block", [np.zeros(12, np.int64), np.repeat(np.arange(3), 4)])
def test_exchange_stops_where_no_exchange_helps(block: Array) -> None:
    """The entry whose return gains most over the cheapest of its block comes back, the cheapest then goes."""
    for seed in range(6):
        p = problem(4, 12, seed)
        first = NofM(2, 4, 12).keep(np.abs(p.original))
        mask = first.copy()
        w, made = rows.exchange(p.hessian, p.target, mask, block, 200)
        np.testing.assert_allclose(w, exact(p, mask), rtol=1e-7, atol=1e-7)
        for r in range(4):
            assert np.bincount(block[mask[r]]).tolist() == np.bincount(block[first[r]]).tolist()
            assert (mask[r] == first[r]).all() or made[r]
            assert energy(p, w[r], r) <= energy(p, exact(p, first)[r], r) + 1e-12

            def least(keep: Array, row: int = r, p: Problem = p) -> float:
                at = np.flatnonzero(keep)
                v = np.zeros(len(keep))
                v[at] = np.linalg.solve(p.hessian[np.ix_(at, at)], p.hessian[at] @ p.target[row])
                return energy(p, v, row)

            def flipped(keep: Array, i: int) -> Array:
                other = keep.copy()
                other[i] ^= True
                return other

            now = least(mask[r])
            change = np.array([abs(least(flipped(mask[r], i)) - now) for i in range(12)])
            gains = []
            for b in range(block.max() + 1):
                back, out = np.flatnonzero((block == b) & ~mask[r]), np.flatnonzero((block == b) & mask[r])
                gains.append((change[back].max() - change[out].min(), back[np.argmax(change[back])], b))
            _, new, b = max(gains)
            more = flipped(mask[r], int(new))
            others = [least(flipped(more, int(i))) for i in np.flatnonzero((block == b) & more)]
            assert min(others) >= now - 1e-7 * now


@pytest.mark.parametrize("choice", [Count(384), NofM(2, 4, 48)])
def test_better_solvers_are_better(choice: Choice) -> None:
    """Means over several problems; `polish` makes all of them better."""
    f: dict[str, list[float]] = {name: [] for name in SOLVERS}
    polished = {name: list(f[name]) for name in SOLVERS}
    for seed in range(5):
        p = problem(16, 48, seed)
        for name, row in SOLVERS.items():
            mask, w = row.solve(p, choice)
            f[name].append(p.error(w))
            polished[name].append(p.error(polish(p, choice, mask, w)[1]))
    raw, done = ({k: np.mean(v) for k, v in found.items()} for found in (f, polished))
    assert done["admm"] <= raw["sparsegpt"] <= raw["wanda"]
    assert done["admm"] <= min(done.values()) + 1e-12
    assert raw["obc"] < raw["sparsegpt"] and raw["admm"] < raw["sparsegpt"]
    assert all(done[k] < raw[k] for k in SOLVERS)


@pytest.mark.parametrize("r", [0.5, 0.7])
@pytest.mark.parametrize("tile", [(1, 4), (4, 1), (3, 5), (12, 1)])
def test_admm_chooses_better_tiles_than_magnitude(tile: tuple[int, int], r: float) -> None:
    a, b = [], []
    for seed in range(8):
        p, choice = problem(12, 24, seed), Tiles(*tile, round(r * 12 * 24), 24)
        a.append(p.error(polish(p, choice, *SOLVERS["admm"].solve(p, choice))[1]))
        b.append(p.error(polish(p, choice, *SOLVERS["magnitude"].solve(p, choice))[1]))
    assert np.mean(a) < np.mean(b)


def test_admm_with_a_fixed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What layers of more than EIGEN_LIMIT columns get."""
    monkeypatch.setattr(sparse, "EIGEN_LIMIT", 8)
    p = problem(12, 32)
    for choice in (Count(200), NofM(2, 4, 32), Tiles(1, 4, 200, 32)):
        mask, w = SOLVERS["admm"].solve(p, choice)
        holds(choice, mask)
        assert p.error(polish(p, choice, mask, w)[1]) < p.error(SOLVERS["magnitude"].solve(p, choice)[1])


def test_solvers_leave_the_problem_as_it_was() -> None:
    p, q = problem(), problem()
    for choice in (Count(50), NofM(2, 4, 16)):
        for row in SOLVERS.values():
            polish(p, choice, *row.solve(p, choice))
    for a, b in zip(vars(p).values(), vars(q).values(), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("solver", ["sparsegpt", "obc"])
def test_a_singular_hessian_is_said(solver: str) -> None:
    p = problem(4, 12, ridge=0.0, rank=3)
    p.hessian[:, 0] = p.hessian[0] = 0
    with pytest.raises(NotPositive, match="singular"):
        SOLVERS[solver].solve(p, Count(10))
    p.hessian[0, 0] = np.nan
    with pytest.raises(NotPositive, match="not finite"):
        SOLVERS[solver].solve(p, Count(10))


# Allocation


SIZES = {"a": (40, 30), "b": (64, 16, 3, 3), "c": (10, 100), "d": (5, 5)}


def scores(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {n: (k + 1) * np.abs(rng.normal(size=s)).astype(np.float32) for k, (n, s) in enumerate(SIZES.items())}


@pytest.mark.parametrize("r", [0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("name", [name for name, row in ZERO_ALLOCATORS.items() if not row.needs_data])
def test_allocators_remove_what_is_wanted(name: str, r: float) -> None:
    s = scores()
    counts = ZERO_ALLOCATORS[name].allocate(s, dict.fromkeys(s, r))
    total = sum(x.size for x in s.values())
    assert abs(sum(counts.values()) - r * total) <= len(s)
    assert all(0 <= counts[n] <= s[n].size for n in s)
    mixed = ZERO_ALLOCATORS[name].allocate(s, {"a": 0.2, "b": r, "c": r, "d": 0.2})
    assert list(mixed) == list(s) or set(mixed) == set(s)
    both = s["b"].size + s["c"].size
    assert abs(mixed["b"] + mixed["c"] - r * both) <= 2
    assert abs(mixed["a"] + mixed["d"] - 0.2 * (total - both)) <= 2


def facts(seed: int, sizes: list[int], power: list[float]) -> dict[str, Facts]:
    rng = np.random.default_rng(seed)
    pairs = enumerate(zip(sizes, power, strict=True))
    return {f"{k}": Facts(n, float(rng.random()), tuple(np.array(LEVELS) ** p)) for k, (n, p) in pairs}


@pytest.mark.parametrize("r", [0.01, 0.05, 0.3, 0.7, 0.95, 0.99, 0.998])
@pytest.mark.parametrize("allocate", [owl, by_error])
def test_allocators_with_data_remove_what_is_wanted(allocate: Any, r: float) -> None:
    for seed in range(3):
        f = facts(seed, [1000, 5000, 300, 2000], [1.0, 3.0, 0.5, 2.0])
        counts = allocate(f, dict.fromkeys(f, r))
        total = sum(x.size for x in f.values())
        assert all(0 <= counts[n] <= f[n].size for n in f)
        assert abs(sum(counts.values()) - r * total) <= 2 + len(f)


def test_by_error_takes_from_what_hurts_least() -> None:
    levels = np.array(LEVELS)
    f = {"flat": Facts(1000, 0.0, tuple(0.01 * levels**3)), "steep": Facts(1000, 0.0, tuple(levels))}
    counts = by_error(f, dict.fromkeys(f, 0.4))
    assert counts == {"flat": 800, "steep": 0}
    assert by_error({"x": Facts(100, 0.0, tuple(np.full(len(LEVELS), np.nan)))}, {"x": 0.5})["x"] <= 50


def test_owl_keeps_more_where_outliers_are() -> None:
    f = {n: Facts(1000, o, ()) for n, o in zip("abc", (0.0, 0.1, 0.2), strict=True)}
    assert owl(f, dict.fromkeys(f, 0.7)) == {"a": 780, "b": 700, "c": 620}
    assert owl({n: Facts(1000, 0.1, ()) for n in "ab"}, dict.fromkeys("ab", 0.7)) == {"a": 700, "b": 700}


def test_erk_is_in_proportion_to_inputs_plus_outputs() -> None:
    s = {"a": np.zeros((100, 100)), "b": np.zeros((50, 50, 3, 3)), "c": np.zeros((4, 4))}
    counts = ZERO_ALLOCATORS["erk"].allocate(s, dict.fromkeys(s, 0.8))
    kept = {n: (s[n].size - counts[n]) / sum(s[n].shape) for n in s}
    assert counts["c"] == 0 and abs(kept["a"] / kept["b"] - 1) < 0.02  # a small layer stays dense


def test_lamp_is_one_threshold_over_its_scores() -> None:
    s = scores(3)
    counts = lamp(s, dict.fromkeys(s, 0.6))
    found: list[tuple[float, str]] = []
    for n, x in s.items():
        w = sorted(float(v) ** 2 for v in x.ravel())
        found += [(w[k] / sum(w[k:]), n) for k in range(len(w))] if len(w) < 2000 else [
            (a / b, n) for a, b in zip(w, np.cumsum(w[::-1])[::-1], strict=True)
        ]  # fmt: skip
    gone = [n for _, n in sorted(found)[: round(0.6 * len(found))]]
    assert counts == {n: gone.count(n) for n in s}


# Patterns


@pytest.mark.parametrize(
    ("text", "found"),
    [("2:4", NMPattern(2, 4)), (" 1:16 ", NMPattern(1, 16)), ("255:256", NMPattern(255, 256)),
     ("block:1x4", BlockPattern(1, 4)), ("block:64x64", BlockPattern(64, 64)), ("column", BlockPattern(0, 1))],
)  # fmt: skip
def test_patterns(text: str, found: Pattern) -> None:
    assert parse_pattern(text) == found
    assert str(found) == text.strip()


@pytest.mark.parametrize("text", [
    "", "2", "4:4", "4:2", "0:4", "2:257", "-1:4", "2:4:8", "2.0:4", "block:0x4", "block:4x0", "block:1x1",
    "block:65x1", "block:4", "block:4x4x4", "block:-1x4", "block: 1x4", "columns", "COLUMN", "row",
])  # fmt: skip
def test_bad_patterns(text: str) -> None:
    with pytest.raises(OptionError, match="--pattern") as found:
        parse_pattern(text)
    assert "\n" not in str(found.value)


def test_numba_keeps_its_cache_with_the_user(tmp_path: Path) -> None:
    code = (
        "import numba.core.config as c; before = c.CACHE_DIR; from onnxprune.layers import patches as p; "
        "assert before == c.CACHE_DIR; print(p._gather._cache._impl.locator.get_cache_path())"
    )
    for name in ("ONNXPRUNE_CACHE_DIR", "NUMBA_CACHE_DIR"):
        chosen = tmp_path / name
        kept = {k: v for k, v in os.environ.items() if k not in ("ONNXPRUNE_CACHE_DIR", "NUMBA_CACHE_DIR")}
        told = subprocess.check_output([sys.executable, "-c", code], env=kept | {name: str(chosen)}, text=True)
        assert chosen in Path(told.strip()).parents
