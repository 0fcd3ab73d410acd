"""Tests of the ridge that is chosen on rows that are withheld."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.solvers import ridge as module
from onnxprune.solvers.least_squares import Moments, solve_ridge
from onnxprune.solvers.ridge import PART, Withheld

Array = np.ndarray[Any, np.dtype[Any]]
WIDE, OUT, START = 40, 3, 0.03


def problem(rows: int, noise: float, seed: int = 0, groups: int = 1) -> tuple[Array, Array, Array]:
    """Rows, targets and the weights that gave them, but for noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, rows, WIDE)).astype(np.float32)
    w = rng.standard_normal((groups, WIDE, OUT)).astype(np.float32)
    return x, (x @ w + noise * rng.standard_normal((groups, rows, OUT))).astype(np.float32), w


def chosen(x: Array, t: Array, prior: Array, parts: int = 5, **options: Any) -> tuple[float, list[Moments]]:
    moments = [Moments() for _ in x]
    withheld = Withheld(moments, **options)
    first = 0
    for a, b in zip(np.array_split(x, parts, 1), np.array_split(t, parts, 1), strict=True):
        withheld.add(a, b, a.shape[1], first)  # a row of every sample
        first += a.shape[1]
    waits = sum(w[0].shape[1] for w in withheld.waiting)
    assert waits == x.shape[1] // PART and moments[0].count == x.shape[1] - waits

    def fit(ridge: float) -> Array:
        return np.stack([solve_ridge(m, p, ridge=ridge).weight for m, p in zip(moments, prior, strict=True)])

    ridge = withheld.chosen(fit, START)
    withheld.release()
    assert all(m.count == x.shape[1] for m in moments)  # what waited is summed up
    return ridge, moments


@pytest.mark.parametrize("parts", [1, 5, 60])
def test_noisy_targets_of_few_rows_ask_for_more(parts: int) -> None:
    x, t, w = problem(80, noise=8.0)
    prior = w + 0.1
    ridge, (moments,) = chosen(x, t, prior, parts)
    assert ridge >= 0.3
    unseen = problem(2000, noise=0.0, seed=1)[0]

    def error(by: float) -> float:
        fit = solve_ridge(moments, prior[0], ridge=by)
        return float(np.square(unseen[0] @ (fit.weight - w[0]) + fit.shift).mean())

    assert error(ridge) < 0.7 * error(START)


def test_exact_targets_and_a_poor_prior_ask_for_less() -> None:
    x, t, w = problem(400, noise=0.0)
    assert chosen(x, t, np.zeros_like(w))[0] < START


def test_what_gains_nothing_stays_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    x, t, w = problem(400, noise=0.0)
    assert chosen(x, t, w)[0] == START  # the prior is right: every ridge gives it
    x, t, w = problem(80, noise=8.0)
    monkeypatch.setattr(module, "PLENTY", 1)
    assert chosen(x, t, w)[0] == START  # so many rows need no ridge


def test_all_rows_of_a_sample_wait_or_none() -> None:
    moments = Moments()
    withheld = Withheld([moments])
    x, t, _ = problem(96, noise=1.0)
    x[0, :, 0] = of = np.arange(96) // 6  # samples, of which 16 come in two batches, and again in another round
    for _ in range(2):
        for k in range(0, 96, 48):
            withheld.add(x[:, k : k + 48], t[:, k : k + 48], 8, k // 6)
    assert {int(v) for part, _ in withheld.waiting for v in part[0, :, 0]} == {3, 7, 11, 15}
    assert moments.count == 2 * int((of % PART != PART - 1).sum())


def test_one_ridge_serves_all_groups() -> None:
    x, t, w = problem(80, noise=8.0, groups=4)
    ridge, moments = chosen(x, t, w)
    assert ridge >= 0.3 and len(moments) == 4


def test_rows_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 2000.0)
    x, t, _ = problem(1000, noise=1.0)
    moments = Moments()
    withheld = Withheld([moments])
    for k in range(0, 1000, 10):
        withheld.add(x[:, k : k + 10], t[:, k : k + 10], 10, k)
    assert sum(a.nbytes + b.nbytes for a, b in withheld.waiting) < 4000


@pytest.mark.parametrize("rows", [0, 1, 2, 60])
def test_no_rows_and_few_rows(rows: int) -> None:
    x, t, w = problem(rows, noise=1.0)
    assert chosen(x, t, w, parts=1)[0] == START


def test_what_is_not_finite_chooses_nothing() -> None:
    x, t, w = problem(80, noise=1.0)
    x[0, 3, 5] = np.nan
    assert chosen(x, t, w)[0] == START


def test_weights_are_judged_as_they_will_be_stored() -> None:
    x, t, w = problem(400, noise=0.0)
    shrunk = 0.1 * w
    assert chosen(x, t, shrunk)[0] < START
    # no weight may leave the range of the prior, so that a fit that is far from it is no better
    limit = np.abs(shrunk).max()
    by, _ = chosen(x, t, shrunk, rounded=lambda m: np.clip(m, -limit, limit))
    assert by > chosen(x, t, shrunk)[0]
