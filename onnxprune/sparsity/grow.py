"""Zeros that grow in steps from none to the target, each step from the weights of the one before.

Zhu and Gupta 2017 ("To prune, or not to prune") let a sparsity rise while a network trains; here every step solves all
layers anew, on the inputs that the step's own sparse layers give, towards the outputs of the dense model. What is zero
stays zero: a solver chooses only among the weights that are left (`Left`), and exchanges never bring one back.

    >>> [shares(3, growth) for growth in (linear, cubic)]
    [(0.333..., 0.666..., 1.0), (0.703..., 0.962..., 1.0)]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.formats.patterns import Blocks, Pattern
from onnxprune.solvers.masks import EXACT, EXCHANGES, SOLVERS, TRIED, Array, Float, Problem, Solution, _blocks, refit
from onnxprune.solvers.patterns import Choice, Count, Mask, NofM, lowest_kept
from onnxprune.sparsity.allocate import Counts

CHOOSING = ("admm", "sparsegpt")  # solvers that choose by other things than the weights that they start from


def linear(part: float) -> float:
    """As much in every step."""
    return part


def cubic(part: float) -> float:
    """Much at first, little at the end (Zhu and Gupta 2017, equation 1)."""
    return 1 - (1 - part) ** 3


Growth = Callable[[float], float]


def shares(steps: int, growth: Growth) -> tuple[float, ...]:
    """Shares of the zeros after each step, the last 1."""
    return tuple(growth(k / steps) for k in range(1, steps + 1))


def schedule(
    counts: Counts, pattern: Pattern | Blocks | None, steps: int, growth: Growth
) -> list[tuple[Counts, Pattern | Blocks | None]]:
    """Counts and pattern of every step; an N:M pattern loses whole weights of every M, in M - N steps at most, so that
    as many steps as it has (`taken`) give it again."""
    if isinstance(pattern, Pattern):
        steps = min(steps, pattern.m - pattern.n)
    out: list[tuple[Counts, Pattern | Blocks | None]] = []
    for share in shares(steps, growth):
        mine: Pattern | Blocks | None = pattern
        if isinstance(pattern, Pattern):
            n = pattern.m - round((pattern.m - pattern.n) * share)
            if n == pattern.m or (out and out[-1][1] == Pattern(n, pattern.m)):
                continue
            mine = Pattern(n, pattern.m)
        out.append(({name: round(count * share) for name, count in counts.items()}, mine))
    return out


def taken(pattern: Pattern | Blocks | None, steps: int) -> int:
    """How many steps the zeros grow in where so many are asked for.

    >>> taken(Pattern(2, 8), 10), taken(Pattern(3, 4), 10), taken(None, 10)
    (6, 1, 10)
    """
    return len(schedule({}, pattern, steps, GROWTH))


@dataclass(frozen=True, eq=False)
class Left:
    """A choice among what is left. gone: bool `[rows, columns]`, entries that are zero already."""

    choice: Choice
    gone: Mask

    def keep(self, scores: Array, share: float = 1.0) -> Mask:
        return np.asarray(self.choice.keep(np.where(self.gone, -1.0, scores), share) & ~self.gone)

    def slabs(self, columns: int, width: int) -> Iterator[tuple[int, int]]:
        yield from self.choice.slabs(columns, width)

    def part(self, scores: Array, start: int, gone: int, columns: int) -> Mask:
        mine = self.gone[:, start : start + scores.shape[1]]
        return np.asarray(self.choice.part(np.where(mine, -1.0, scores), start, gone, columns) & ~mine)


def grown(problem: Problem, choice: Choice, before: Float, solver: str, *, recover: bool) -> Solution:
    """Mask and weights of a step. before: the layer's weights after the step before, `(o, d)`, 0 where they went."""
    gone = before == 0
    left = Left(choice, gone)
    if solver == "obc":
        mask, w = _obc(problem, choice, gone)
    else:
        start = replace(problem, original=before)
        mask, w = SOLVERS[solver](start, left if solver in CHOOSING else choice)
    # as many as the choice wants, whatever rounding the solver did: what it keeps counts more than what it gave up
    mask = left.keep(np.where(mask, 1.0 + np.square(w), 0.0))
    w = np.where(mask, w, 0.0)
    return _polish(problem, choice, mask, w, gone) if recover else (mask, w)


def _obc(problem: Problem, choice: Choice, gone: Mask) -> Solution:
    """Exact OBS of what is left of every row, the cheapest of all rows first."""
    from onnxprune.solvers import rows

    assert isinstance(choice, Count | NofM)
    h, blocks = problem.hessian, _blocks(choice, len(problem.hessian))
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


def _polish(problem: Problem, choice: Choice, mask: Mask, weight: Float, gone: Mask) -> Solution:
    """`solvers.sparse.polish`, with exchanges among the weights that were left before this step."""
    from onnxprune.solvers import rows

    weight = refit(problem, mask, weight)
    if not isinstance(choice, Count | NofM):
        return mask, weight
    d = mask.shape[1]
    rounds = max(1, round(EXCHANGES * d))
    exact = len(mask) * d * d * (EXCHANGES * d + min(mask.sum(1).mean(), d)) <= EXACT
    tried, w = mask.copy(), weight.copy()
    gradient = (w - problem.target) @ problem.hessian
    for r in range(len(mask)):
        blocks = _blocks(choice, d).copy()
        # an entry that is gone has a block of its own, in which nothing is there to be exchanged for it
        blocks[gone[r]] = int(blocks.max()) + 1 + np.arange(int(gone[r].sum()))
        if exact:
            w[r : r + 1], _ = rows.exchange(
                problem.hessian, problem.target[r : r + 1], tried[r : r + 1], blocks, rounds
            )
        else:
            gradient[r, gone[r]] = 0.0  # no candidate
            rows.swaps(problem.hessian, w[r : r + 1], gradient[r : r + 1], tried[r : r + 1], blocks, rounds, TRIED)
    w = refit(problem, tried, w)
    return (tried, w) if problem.error(w) <= problem.error(weight) else (mask, weight)


GROWTH = linear  # closer outputs than cubic, on digits_vit, digits_mobile_se at 90% in four steps

__all__ = ["GROWTH", "cubic", "grown", "linear", "schedule", "shares", "taken"]
