"""Zeros that grow in steps from none to the target, each step from the weights of the one before.

Zhu and Gupta 2017 ("To prune, or not to prune") let a sparsity rise while a network trains; here every step solves all
layers anew, on the inputs that the step's own sparse layers give, towards the outputs of the dense model. What is zero
stays zero: a solver chooses only among the weights that are left (`Left`), and exchanges never bring one back. With a
threshold (Han et al. 2015) every step takes what is below it then, of the weights that training has left.

    >>> [[round(x, 2) for x in shares(3, name, 0.973)] for name in GROWTHS]
    [[0.33, 0.67, 1.0], [0.7, 0.96, 1.0], [0.72, 0.94, 1.0]]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from onnxprune.sparsity.allocate import Counts, below

Part = tuple[Counts, Pattern | None]  # weight -> entries that are gone after a step, and how they lie


@dataclass(frozen=True)
class Growth:
    """help: for the user; share: of the zeros, by the part of the steps that is done and the sparsity at the end."""

    help: str
    share: Callable[[float, float], float]


GROWTHS = {
    "linear": Growth("as many zeros in every step", lambda part, end: part),
    "cubic": Growth(
        "many at first, few at the end (Zhu and Gupta 2017, equation 1)", lambda part, end: 1 - (1 - part) ** 3
    ),
    "geometric": Growth(
        "in every step the same fraction of what is left, as lottery tickets lose it",
        lambda part, end: (1 - (1 - end) ** part) / end if 0 < end < 1 else part,
    ),
}  # fmt: skip
GROWTH = "linear"  # closer outputs than cubic, on digits_vit, digits_mobile_se at 90% in four steps


@dataclass(frozen=True)
class Growing:
    """How zeros come: in steps, by a row of `GROWTHS` or by a threshold. quality: standard deviations of the weights of
    a layer that are left, below which a weight goes in every step; None for as many as are asked for."""

    steps: int = 1
    growth: str = GROWTH
    quality: float | None = None

    def parts(self, counts: Counts, sizes: Mapping[str, int], pattern: Pattern | None) -> list[Part]:
        """Counts and pattern of every step; of a threshold those of the first."""
        if self.quality is not None:
            return [(counts, pattern)] * self.steps
        end = sum(counts.values()) / max(sum(sizes[w] for w in counts), 1)
        return schedule(counts, pattern, self.steps, self.growth, end)

    def counts(self, part: Counts, step: int, weights: Callable[[], Mapping[str, Array]]) -> Counts:
        """How many entries go in a step, counted from 0; weights: as they are before it."""
        return part if self.quality is None or not step else below(weights(), self.quality)


def shares(steps: int, growth: str, end: float) -> tuple[float, ...]:
    """Shares of the zeros after each step, the last 1; end: the sparsity there."""
    return tuple(GROWTHS[growth].share(k / steps, end) for k in range(1, steps + 1))


def schedule(counts: Counts, pattern: Pattern | None, steps: int, growth: str = GROWTH, end: float = 0.0) -> list[Part]:
    """Counts and pattern of every step; an N:M pattern loses whole weights of every M, as many in every step, in M - N
    steps at most, so that as many steps as it has (`taken`) give it again. end: the sparsity after the last one.
    """
    if isinstance(pattern, NMPattern):
        steps, growth = min(steps, pattern.m - pattern.n), GROWTH
    out: list[Part] = []
    for share in shares(steps, growth, end):
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
    return len(schedule({}, pattern, steps))


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


__all__ = ["GROWTH", "GROWTHS", "Growing", "grown", "schedule", "shares", "taken"]
