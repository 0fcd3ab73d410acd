"""Solvers that choose which weights of a layer stay, and with which values.

A layer's outputs are rows of its inputs times a matrix; with the moments of the inputs all that matters is

    f(W) = tr((W - T) H (W - T)'),      H = Gram of the inputs + ridge,  `(d, d)`;  W, T: `(o, d)`, a row per output

where T is the best dense matrix (of the layer as it was, when nothing before it has changed). A solver takes such a
`Problem` and a `Choice` of what may go, and gives a mask and weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, eigh

from onnxprune.graph.arrays import Array, Float
from onnxprune.solvers.least_squares import Singular
from onnxprune.solvers.patterns import Choice, Count, Mask, NofM, lowest_kept

BATCH = 128  # columns that SparseGPT works on at once
EXACT = 6e10  # multiply-adds up to which a layer's rows are exchanged exactly: rows x columns^2 x entries
EIGEN_LIMIT = 4096  # columns up to which ADMM may change its step (an eigendecomposition)
STEPS = 20  # of ADMM with a fixed step
SCHEDULE = 15  # of them until all that shall go is gone
MOST_STEPS = 120  # of ADMM with a growing step
TOLERANCE = 1e-5  # of the residual, relative, at which conjugate gradients stop
ITERATIONS = 200
WORK = 5e12  # multiply-adds of conjugate gradients, at most, but for LEAST iterations
LEAST = 8
EXCHANGES = 0.25  # per row, of its entries, at most
TRIED = 24  # candidates of both sides of a swap


class NotPositive(Singular):
    """The Hessian is singular or not finite; the text says which."""


@dataclass(frozen=True, eq=False)
class Problem:
    """hessian: H `(d, d)`; target: T `(o, d)`; original: the layer's own weights `(o, d)`; norms: root mean square of
    every input `(d,)`; saliency: what each weight matters to the whole model `(o, d)`, for solvers that go by that."""

    hessian: Float
    target: Float
    original: Float
    norms: Float
    saliency: Float | None = None

    def error(self, weight: Float) -> float:
        """f of some weights, over that of no weights at all."""
        total = _energy(self.hessian, self.target)
        return _energy(self.hessian, weight - self.target) / total if total > 0 else 0.0

    def factor(self) -> tuple[Float, bool]:
        """Cholesky factor of H. Raises `NotPositive`."""
        if not np.isfinite(self.hessian).all():
            raise NotPositive("its inputs are not finite")
        try:
            c, lower = cho_factor(self.hessian, check_finite=False)
        except LinAlgError:
            raise NotPositive("the Gram of its inputs is singular") from None
        return np.asarray(c), bool(lower)


def _energy(hessian: Float, w: Float) -> float:
    return max(float(np.einsum("od,od->", w @ hessian, w)), 0.0)


Solution = tuple[Mask, Float]
Solve = Callable[[Problem, Choice], Solution]


def _pick(problem: Problem, choice: Choice, scores: Float) -> Solution:
    mask = choice.keep(scores)
    return mask, np.where(mask, problem.original, 0.0)


def magnitude(problem: Problem, choice: Choice) -> Solution:
    """|w| (Han et al. 2015)"""
    return _pick(problem, choice, np.abs(problem.original))


def wanda(problem: Problem, choice: Choice) -> Solution:
    """|w| times the norm of its input, within every output (Sun et al. 2024)"""
    scores = np.abs(problem.original) * problem.norms
    if not isinstance(choice, Count):
        return _pick(problem, choice, scores)
    ends = np.round(choice.count * np.arange(len(scores) + 1) / len(scores)).astype(int)
    mask = np.stack([lowest_kept(row, n) for row, n in zip(scores, np.diff(ends).tolist(), strict=True)])
    return mask, np.where(mask, problem.original, 0.0)


def ria(problem: Problem, choice: Choice) -> Solution:
    """(|w| over the sum of its input + |w| over that of its output) times the root of the input's norm (Zhang et al.
    2024, RIA)"""
    w = np.abs(problem.original)
    columns, rows = w.sum(0, keepdims=True), w.sum(1, keepdims=True)
    relative = w / np.where(columns > 0, columns, 1) + w / np.where(rows > 0, rows, 1)
    return _pick(problem, choice, relative * np.sqrt(problem.norms))


def by_saliency(problem: Problem, choice: Choice) -> Solution:
    """The highest scores that were given."""
    assert problem.saliency is not None, "a solver by gradients is given what they say"
    return _pick(problem, choice, problem.saliency)


def inverse(problem: Problem) -> Float:
    """H^-1, `(d, d)`. Raises `NotPositive`."""
    return np.asarray(cho_solve(problem.factor(), np.eye(len(problem.hessian)), check_finite=False))


def sparsegpt(problem: Problem, choice: Choice) -> Solution:
    """columns in order, each error made up for by those to its right (Frantar and Alistarh 2023)"""
    upper = np.asarray(cholesky(inverse(problem), check_finite=False))
    w = problem.target.copy()
    d = w.shape[1]
    mask = np.ones(w.shape, bool)
    diagonal = np.diag(upper)
    slabs = list(choice.slabs(d, BATCH))
    gone = 0
    while slabs:
        start = slabs[0][0]
        batch = [s for s in slabs[: BATCH + 1] if s[1] <= start + BATCH] or slabs[:1]
        slabs = slabs[len(batch) :]
        stop = batch[-1][1]
        errors = np.zeros((len(w), stop - start))
        for a, b in batch:
            mask[:, a:b] = choice.part(np.square(w[:, a:b] / diagonal[a:b]), a, gone, d)
            gone += int((~mask[:, a:b]).sum())
            for j in range(a, b):
                e = np.where(mask[:, j], 0.0, w[:, j]) / diagonal[j]
                w[:, j:stop] -= np.outer(e, upper[j, j:stop])
                errors[:, j - start] = e
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return mask, np.where(mask, w, 0.0)


def obc(problem: Problem, choice: Choice) -> Solution:
    """exact OBS row by row, the cheapest of all rows first, then exchanges (Frantar and Alistarh 2022)"""
    from onnxprune.solvers import rows

    o, d = problem.target.shape
    if not isinstance(choice, Count | NofM):
        raise NotImplementedError("obc removes entries one by one; tiles need admm or sparsegpt")
    blocks = exchange_blocks(choice, d)
    sizes = np.bincount(blocks)
    if isinstance(choice, Count):
        most, limit = sizes, min(d, math.ceil(choice.count / o * 1.5) + max(8, d // 8))
    else:
        most = np.maximum(sizes - choice.n, 0)
        limit = int(most.sum())
    order, costs = rows.obs_order(inverse(problem), problem.target, limit, blocks, most, 1e-300)
    mask = np.ones((o, d), bool)
    if isinstance(choice, Count):
        taken = np.where(order >= 0, costs, np.inf)
        going = ~lowest_kept(taken, choice.count)
    else:
        going = order >= 0
    row, step = np.nonzero(going)
    mask[row, order[row, step]] = False
    return mask, refit(problem, mask)


def exchange_blocks(choice: Choice, d: int) -> Array:
    """Block of every column; entries can only be exchanged within a block."""
    if not isinstance(choice, NofM):
        return np.zeros(d, np.int64)
    each = -(-choice.segment // choice.m)
    column = np.arange(d)
    return column // choice.segment * each + column % choice.segment // choice.m


def admm(problem: Problem, choice: Choice) -> Solution:
    """alternating directions between mask and least squares, with a growing step (Boza 2024; Meng et al. 2024)"""
    scale = np.sqrt(np.maximum(np.diag(problem.hessian), 1e-300))
    h = problem.hessian / scale[:, None] / scale
    target = problem.target * scale
    w, u = target.copy(), np.zeros_like(target)
    d = len(h)
    if d > EIGEN_LIMIT:
        rho = 1.0
        right = target @ h
        h[np.diag_indices(d)] += rho
        solver = cho_factor(h, overwrite_a=True, check_finite=False)
        for k in range(STEPS):
            share = 1 - (1 - min(1.0, (k + 1) / SCHEDULE)) ** 3
            mask = choice.keep(np.square(w + u), share)
            z = np.where(mask, w + u, 0.0)
            u += w - z
            w = cho_solve(solver, (right + rho * (z - u)).T, check_finite=False).T
        mask = choice.keep(np.square(w + u))
        return mask, np.where(mask, w / scale, 0.0)
    values, vectors = eigh(h, driver="evd", overwrite_a=True, check_finite=False)
    right = (target @ vectors) * values  # H T in the eigenbasis
    rho = 0.1
    mask = choice.keep(np.square(w), 0.0)
    changed = 0
    for k in range(MOST_STEPS):
        old = mask
        share = 1 - (1 - min(1.0, (k + 1) / SCHEDULE)) ** 3
        mask = choice.keep(np.square(w + u), share)
        z = np.where(mask, w + u, 0.0)
        u += w - z
        w = ((right + rho * ((z - u) @ vectors)) / (values + rho)) @ vectors.T
        changed = int((mask != old).sum())
        if k >= SCHEDULE:
            part = changed / mask.size
            if changed == 0:
                break
            rho *= 1.3 if part > 0.01 else 1.15 if part > 0.001 else 1.05
    return mask, np.where(mask, w / scale, 0.0)


def obc_among(problem: Problem, choice: Choice, gone: Mask) -> Solution:
    """`obc` among what is left of every row: the entries of `gone`, bool `(o, d)`, are zero already."""
    from onnxprune.solvers import rows

    assert isinstance(choice, Count | NofM)
    h, blocks = problem.hessian, exchange_blocks(choice, len(problem.hessian))
    aim = problem.target @ h
    costs = np.full(gone.shape, np.inf)
    for r in range(len(gone)):
        a = np.flatnonzero(~gone[r])
        inverse = np.linalg.inv(h[np.ix_(a, a)])
        most = np.bincount(blocks[a], minlength=int(blocks.max()) + 1)
        if isinstance(choice, NofM):
            most = np.maximum(most - choice.n, 0)
        limit = int(min(len(a), most.sum()))
        order, cost = rows.obs_order(inverse, (inverse @ aim[r, a])[None], limit, blocks[a], most, 1e-300)
        done = order[0] >= 0
        costs[r, a[order[0][done]]] = cost[0][done]
    if isinstance(choice, Count):
        mask = lowest_kept(costs, max(choice.count - int(gone.sum()), 0)) & ~gone
    else:
        mask = np.isinf(costs) & ~gone
    return mask, refit(problem, mask)


@dataclass(frozen=True)
class Solver:
    """One way to choose which weights of a layer stay, and with which values.

    needs_data: calibration samples, for the Hessian; tiles: whether weights can go in tiles (`patterns.Tiles`);
    by_original: whether it goes by the layer's own weights, so that those that are zero go first; among: the same among
    entries that are left, given those that are gone, where `solve` cannot be told of them; gradients: whether it goes
    by `Problem.saliency`, which gradients of the whole model make; labels: whether these need labels; rounds:
    whether they thin a model out in rounds, which leaves no layer empty; factor: seconds that H takes on two cores, for
    rows and columns, before what all solvers have in common.
    """

    help: str
    solve: Solve
    needs_data: bool = True
    tiles: bool = True
    by_original: bool = False
    among: Callable[[Problem, Choice, Mask], Solution] | None = None
    gradients: bool = False
    labels: bool = False
    rounds: bool = False
    factor: Callable[[int, int], float] = lambda o, d: 4e-10 * d**3


def _row(solve: Solve, help: str = "", **facts: Any) -> Solver:
    return Solver(help or (solve.__doc__ or "").strip(), solve, **facts)


GRADIENTS = {
    "taylor": "magnitude of w dL/dw of each sample (Molchanov et al. 2019); needs labels",
    "fisher": "half of (w dL/dw)^2 of each sample; without labels that of the outputs' own distribution",
    "obd": "w^2/2 times the diagonal of the Hessian, by Gauss-Newton (LeCun et al. 1990, Optimal Brain Damage)",
    "snip": "magnitude of w dL/dw of the mean loss (Lee et al. 2019, SNIP); needs labels",
    "grasp": "w (H g), what the gradient loses without it, of class scores over 200 (Wang et al. 2020); needs labels",
    "synflow": "what flows through it of ones, by the magnitudes of all weights, in 100 rounds (Tanaka et al. 2020)",
}


SOLVERS: dict[str, Solver] = {
    "magnitude": _row(magnitude, needs_data=False, by_original=True),
    "wanda": _row(wanda, by_original=True),
    "ria": _row(ria, by_original=True),
    "sparsegpt": _row(sparsegpt),
    "obc": _row(obc, tiles=False, among=obc_among, factor=lambda o, d: 4e-10 * d**3 + 2.5e-10 * o * d**3),
    "admm": _row(admm, factor=lambda o, d: (1.2e-9 if d <= EIGEN_LIMIT else 4e-10) * d**3),
    **{
        name: _row(by_saliency, text, needs_data=name in ("fisher", "obd"), gradients=True, factor=lambda o, d: 0.0,
                   labels="needs labels" in text, rounds=name == "synflow")
        for name, text in GRADIENTS.items()
    },
}  # fmt: skip


def needs_labels(name: str) -> bool:
    """Whether a name is that of a solver that needs labels."""
    return name in SOLVERS and SOLVERS[name].labels


def by_gradients(name: str) -> bool:
    """Whether a name is that of a solver that goes by gradients of the whole model."""
    return name in SOLVERS and SOLVERS[name].gradients


def needs_data(name: str) -> bool:
    """Whether a name is that of a solver that needs data; of other words, such as `present`, it is none."""
    return name in SOLVERS and SOLVERS[name].needs_data


def seconds(rows: int, columns: int, solver: Solver) -> float:
    """Roughly how long one layer takes on two cores, exchanges included."""
    o, d = rows, columns
    return solver.factor(o, d) + 8e-9 * o * d**2 + min(EXACT, 0.5 * o * d**3) * 1.5e-10 + 0.3


def refit(problem: Problem, mask: Mask, start: Float | None = None, *, iterations: int = ITERATIONS) -> Float:
    """The weights that minimise f with zeros where the mask is False: conjugate gradients on all rows at once."""
    h, target = problem.hessian, problem.target
    w = np.where(mask, target if start is None else start, 0.0)
    precondition = 1 / np.maximum(np.diag(h), 1e-300)
    residual = np.where(mask, (target - w) @ h, 0.0)
    z = residual * precondition
    p = z.copy()
    now = np.einsum("od,od->o", residual, z)
    first = np.maximum(np.einsum("od,d,od->o", target, np.diag(h), target), 1e-300)
    affordable = max(LEAST, int(WORK / (target.size * len(h))))
    for _ in range(min(iterations, affordable, 2 * len(h))):
        if (now <= TOLERANCE**2 * first).all():
            break
        hp = np.where(mask, p @ h, 0.0)
        curve = np.einsum("od,od->o", p, hp)
        alpha = np.where(curve > 0, now / np.where(curve > 0, curve, 1), 0.0)[:, None]
        w += alpha * p
        residual -= alpha * hp
        z = residual * precondition
        new = np.einsum("od,od->o", residual, z)
        p = z + np.where(now > 0, new / np.where(now > 0, now, 1), 0.0)[:, None] * p
        now = new
    return w


def exchanged_exactly(mask: Mask) -> bool:
    """Whether entries of a layer are exchanged with everything else made up for, which wide layers cannot afford."""
    d = mask.shape[1]
    return bool(len(mask) * d * d * (EXCHANGES * d + min(mask.sum(1).mean(), d)) <= EXACT)


def most_exchanges(columns: int) -> int:
    """How many exchanges a row of so many columns may make."""
    return max(1, round(EXCHANGES * columns))


def polish(problem: Problem, choice: Choice, mask: Mask, weight: Float, *, rounds: int = 3) -> Solution:
    """Exact weights for a mask, then exchanges of entries that lower the error, as long as they do.

    Narrow layers exchange exactly, everything else made up for; wide ones pairwise (SparseSwaps), then solve again.
    Tiles are not exchanged.
    """
    from onnxprune.solvers import rows

    d = mask.shape[1]
    if not isinstance(choice, Count | NofM):
        return mask, refit(problem, mask, weight)
    blocks = exchange_blocks(choice, d)
    if exchanged_exactly(mask):
        mask = mask.copy()
        exact, _ = rows.exchange(problem.hessian, problem.target, mask, blocks, most_exchanges(d))
        return mask, refit(problem, mask, exact)
    weight = refit(problem, mask, weight)
    best = problem.error(weight)
    for _ in range(rounds):
        tried, w = mask.copy(), weight.copy()
        gradient = (w - problem.target) @ problem.hessian
        swapped = rows.swaps(problem.hessian, w, gradient, tried, blocks, most_exchanges(d), TRIED)
        if not swapped.any():
            break
        w = refit(problem, tried, w)
        error = problem.error(w)
        if error >= best:
            break
        gain, best = best - error, error
        mask, weight = tried, w
        if gain < 0.01 * best:
            break
    return mask, weight
