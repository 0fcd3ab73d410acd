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

from onnxprune.formats.patterns import NMPattern, Pattern
from onnxprune.graph.arrays import Array, Float
from onnxprune.solvers.masks import (
    SOLVERS,
    TRIED,
    Problem,
    Solution,
    exchange_blocks,
    exchanged_exactly,
    most_exchanges,
    refit,
)
from onnxprune.solvers.patterns import Choice, Count, Mask, NofM
from onnxprune.sparsity.allocate import Counts


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
    counts: Counts, pattern: Pattern | None, steps: int, growth: Growth
) -> list[tuple[Counts, Pattern | None]]:
    """Counts and pattern of every step; an N:M pattern loses whole weights of every M, in M - N steps at most, so that
    as many steps as it has (`taken`) give it again."""
    if isinstance(pattern, NMPattern):
        steps = min(steps, pattern.m - pattern.n)
    out: list[tuple[Counts, Pattern | None]] = []
    for share in shares(steps, growth):
        part: Pattern | None = pattern
        if isinstance(pattern, NMPattern):
            n = pattern.m - round((pattern.m - pattern.n) * share)
            if n == pattern.m or (out and out[-1][1] == NMPattern(n, pattern.m)):
                continue
            part = NMPattern(n, pattern.m)
        out.append(({name: round(count * share) for name, count in counts.items()}, part))
    return out


def taken(pattern: Pattern | None, steps: int) -> int:
    """How many steps the zeros grow in where so many are asked for.

    >>> taken(NMPattern(2, 8), 10), taken(NMPattern(3, 4), 10), taken(None, 10)
    (6, 1, 10)
    """
    return len(schedule({}, pattern, steps, GROWTH))


@dataclass(frozen=True, eq=False)
class Left:
    """A choice among what is left. gone: bool `[rows, columns]`, entries that are zero already."""

    choice: Choice
    gone: Mask

    def keep(self, scores: Array, share: float = 1.0) -> Mask:
        """See `Choice.keep`: what is gone goes first, and stays gone."""
        return np.asarray(self.choice.keep(np.where(self.gone, -1.0, scores), share) & ~self.gone)

    def slabs(self, columns: int, width: int) -> Iterator[tuple[int, int]]:
        """Those of `choice`; see `Choice.slabs`."""
        yield from self.choice.slabs(columns, width)

    def part(self, scores: Array, start: int, gone: int, columns: int) -> Mask:
        """See `Choice.part`; what is gone already is among the `gone` that are counted."""
        before = self.gone[:, start : start + scores.shape[1]]
        return np.asarray(self.choice.part(np.where(before, -1.0, scores), start, gone, columns) & ~before)


def grown(problem: Problem, choice: Choice, before: Float, solver: str, *, recover: bool) -> Solution:
    """Mask and weights of a step. before: the layer's weights after the step before, `(o, d)`, 0 where they went."""
    gone, row = before == 0, SOLVERS[solver]
    left = Left(choice, gone)
    if row.among is not None:
        mask, w = row.among(problem, choice, gone)
    else:
        mask, w = row.solve(replace(problem, original=before), choice if row.by_original else left)
    # as many as the choice wants, whatever rounding the solver did: what it keeps counts more than what it gave up
    mask = left.keep(np.where(mask, 1.0 + np.square(w), 0.0))
    w = np.where(mask, w, 0.0)
    return _polish(problem, choice, mask, w, gone) if recover else (mask, w)


def _polish(problem: Problem, choice: Choice, mask: Mask, weight: Float, gone: Mask) -> Solution:
    """`solvers.masks.polish`, with exchanges among the weights that were left before this step."""
    from onnxprune.solvers import rows

    weight = refit(problem, mask, weight)
    if not isinstance(choice, Count | NofM):
        return mask, weight
    d = mask.shape[1]
    rounds, exact = most_exchanges(d), exchanged_exactly(mask)
    tried, w = mask.copy(), weight.copy()
    gradient = (w - problem.target) @ problem.hessian
    for r in range(len(mask)):
        blocks = exchange_blocks(choice, d).copy()
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
