"""Moments, their solutions, and group OBS."""

from __future__ import annotations

import numpy as np
import pytest

from models.nets import Array
from onnxprune.solvers.least_squares import Moments, Singular, damping, match, solve_ridge
from onnxprune.solvers.obs import Reader, removal_costs

RNG = np.random.default_rng(0)
X = (1e4 + RNG.normal(size=(3000, 6)) @ RNG.normal(size=(6, 6))).astype(np.float32)
T = ((X - 1e4) @ RNG.normal(size=(6, 3)) + 1e4 + RNG.normal(size=(3000, 3))).astype(np.float32)


def moments(x: Array = X, t: Array = T, *, intercept: bool = True, parts: int = 7) -> Moments:
    m = Moments(intercept=intercept)
    for a, b in zip(np.array_split(x, parts), np.array_split(t, parts), strict=True):
        m.add(a, b)
    return m


def test_moments_are_covariances() -> None:
    m = moments()
    both = np.cov(np.hstack([X, T]).astype(np.float64).T, bias=True)
    np.testing.assert_allclose(m.gram, both[:6, :6], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(m.cross, both[:6, 6:], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(m.variance, np.diag(both)[6:], rtol=1e-3)
    np.testing.assert_allclose(m.x_mean, X.mean(0, dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose(m.t_mean, T.mean(0, dtype=np.float64), rtol=1e-7)
    assert m.count == 3000


def test_moments_without_an_intercept_are_about_zero() -> None:
    x, t = X - 1e4, T - 1e4
    m = moments(x, t, intercept=False)
    np.testing.assert_allclose(m.gram, x.T @ x / len(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(m.cross, x.T @ t / len(x), rtol=1e-4, atol=1e-4)
    assert not m.x_mean.any() and not m.t_mean.any()


def test_moments_of_other_targets_share_the_rows() -> None:
    first = moments()
    other = first.like()
    for a, b in zip(np.array_split(X, 7), np.array_split(-T, 7), strict=True):
        other.add(a, b)
    np.testing.assert_array_equal(other.gram, first.gram)
    np.testing.assert_allclose(other.cross, -first.cross, rtol=1e-6)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_solution_is_least_squares(intercept: bool) -> None:
    x, t = (X, T) if intercept else (X - 1e4, T - 1e4)
    fit = solve_ridge(moments(x, t, intercept=intercept), np.zeros((6, 3)), ridge=1e-9)
    a, b = x.astype(np.float64), t.astype(np.float64)
    right = np.linalg.lstsq(np.hstack([a, np.ones((len(a), 1))]) if intercept else a, b, rcond=None)[0]
    np.testing.assert_allclose(fit.weight, right[:6], rtol=1e-3, atol=1e-3)
    residual = b - a @ right[:6] - (right[6] if intercept else 0)
    np.testing.assert_allclose(fit.error, np.square(residual).mean(0).sum() / b.var(0).sum(), rtol=0.02, atol=1e-6)
    if intercept:
        np.testing.assert_allclose(a @ fit.weight + fit.shift, b - residual, atol=0.05)
    else:
        assert not fit.shift.any()


def test_a_large_ridge_keeps_the_prior() -> None:
    prior = RNG.normal(size=(6, 3))
    np.testing.assert_allclose(solve_ridge(moments(), prior, ridge=1e6).weight, prior, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.zeros((0, 6), np.float32), "no data"),
        (np.full((50, 6), 2, np.float32), "constant"),
        (np.full((50, 6), np.nan, np.float32), "not finite"),
    ],
)
def test_what_cannot_be_solved_says_why(x: Array, reason: str) -> None:
    with pytest.raises(Singular, match=reason):
        solve_ridge(moments(x, np.zeros((len(x), 3), np.float32), parts=1), np.ones((6, 3)), ridge=0.1)


def test_match_gives_mean_and_deviation_of_the_targets() -> None:
    fit = match(moments(), RNG.normal(size=(6, 3)) + np.eye(6, 3))
    y = X.astype(np.float64) @ fit.weight + fit.shift
    np.testing.assert_allclose(y.mean(0), T.mean(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(y.std(0), T.std(0, dtype=np.float64), rtol=1e-2)


def test_match_leaves_an_output_that_does_not_vary_as_it_is() -> None:
    """Its scale says nothing; only its mean can be matched."""
    prior = RNG.normal(size=(6, 3))
    fit = match(moments(X, np.full((len(X), 3), 4, np.float32)), prior)
    np.testing.assert_allclose(fit.weight, prior)
    np.testing.assert_allclose(X.astype(np.float64).mean(0) @ fit.weight + fit.shift, 4)


# Group OBS


def readers_of(size: int, block: int, count: int, seed: int) -> list[Reader]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        d = size * block
        a = rng.normal(size=(4 * d, d)) @ (np.eye(d) + 0.5 * rng.normal(size=(d, d)))
        units = rng.permutation(np.repeat(np.arange(size), block))
        out.append(Reader(np.cov(a.T, bias=True), rng.normal(size=(d, 3)), units))
    return out


def exact_error(readers: list[Reader], gone: tuple[int, ...]) -> float:
    """Least error of the outputs over their energy, when the rows of some units are away."""
    total = 0.0
    for r in readers:
        stays = ~np.isin(r.units, gone)
        g, w = r.gram, r.weight
        best = np.zeros_like(w)
        best[stays] = np.linalg.solve(g[np.ix_(stays, stays)], g[stays] @ w)
        total += np.einsum("do,do->", w - best, g @ (w - best)) / r.energy
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("block", [1, 4])
def test_units_go_in_the_order_of_the_exact_error(block: int, count: int, seed: int) -> None:
    readers = readers_of(6, block, count, seed)
    costs = removal_costs(readers, 6, ridge=1e-10)
    order = np.argsort(costs)
    for k in range(5):
        gone = tuple(order[:k].tolist())
        left = [u for u in range(6) if u not in gone]
        errors = {u: exact_error(readers, (*gone, u)) for u in left}
        assert order[k] == min(errors, key=errors.__getitem__)
        np.testing.assert_allclose(costs[order[k]], errors[order[k]], rtol=1e-3)
    assert costs[order[5]] > costs[order[4]]


def test_units_that_nothing_reads_go_first() -> None:
    (reader,) = readers_of(5, 2, 1, 0)
    weight = reader.weight.copy()
    units = np.where(reader.units == 3, -1, reader.units)
    weight[reader.units == 3] = 0
    costs = removal_costs([Reader(reader.gram, weight, units)], 5, ridge=0.03)
    assert np.argmin(costs) == 3 and costs[3] == 0 and (np.delete(costs, 3) > 0).all()


def costs_by_inverting(readers: list[Reader], size: int, ridge: float) -> Array:
    """What `removal_costs` gives, with every inverse and every best answer computed anew."""
    left, costs, error = list(range(size)), np.zeros(size), 0.0
    while len(left) > 1:
        e = np.zeros(size)
        for r in readers:
            rows = np.isin(r.units, [*left, -1])
            h = r.gram[np.ix_(rows, rows)] + damping(r.gram, ridge) * np.eye(rows.sum())
            cross = (r.gram + damping(r.gram, ridge) * np.eye(len(rows)))[rows] @ r.weight
            inverse, best, units = np.linalg.inv(h), np.linalg.solve(h, cross), r.units[rows]
            for u in left:
                s = np.flatnonzero(units == u)
                e[u] += np.sum(best[s] * np.linalg.solve(inverse[np.ix_(s, s)], best[s])) / r.energy
        u = min(left, key=lambda u: e[u])
        left.remove(u)
        error += e[u]
        costs[u] = error
    costs[left] = 2 * error
    return costs


ROWS_OF_UNITS = {  # per reader: units of its rows, before they are shuffled
    "a row each": [np.arange(100)],
    "kernels": [np.repeat(np.arange(16), 9)],
    "large kernels": [np.repeat(np.arange(4), 70)],
    "two readers": [np.arange(70), np.repeat(np.arange(70), 2)],
    "rows of no unit": [np.r_[np.repeat(np.arange(12), 9), np.full(30, -1)]],
    "groups": [np.repeat(np.arange(20), 4), np.repeat(np.arange(20, 40), 4)],
    "uneven": [np.repeat(np.arange(30), np.arange(30) % 7), np.arange(30)],
    "rows of no unit alone": [np.arange(8), np.full(5, -1)],
}


@pytest.mark.parametrize("name", ROWS_OF_UNITS)
def test_costs_are_those_of_inverses_made_anew(name: str) -> None:
    """Through several blocks of removed rows, and with rows that were dropped."""
    rng = np.random.default_rng(0)
    readers = []
    for units in ROWS_OF_UNITS[name]:
        d = len(units)
        a = rng.normal(size=(3 * d, d)) @ (np.eye(d) + rng.normal(size=(d, d)) / np.sqrt(d))
        readers.append(Reader(np.cov(a.T, bias=True), rng.normal(size=(d, 5)), rng.permutation(units)))
    size = 1 + max(int(r.units.max()) for r in readers)
    expected = costs_by_inverting(readers, size, 0.01)
    np.testing.assert_allclose(removal_costs(readers, size, ridge=0.01), expected, rtol=1e-8)


def test_units_go_also_where_inputs_repeat() -> None:
    """A Gram matrix of rank one: what goes first costs next to nothing, and every cost is finite."""
    x = np.random.default_rng(0).normal(size=(50, 1)) @ np.ones((1, 90))
    costs = removal_costs([Reader(x.T @ x / 50, np.ones((90, 2)), np.arange(90))], 90, ridge=0.0)
    assert np.isfinite(costs).all() and np.sort(costs)[-2] < 1e-3 and (costs >= 0).all()
