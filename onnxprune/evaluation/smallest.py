"""The smallest of a family of models that scores nearly as well, with a bound that holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import CONFIDENCE, Drop, Score, drop
from onnxprune.graph.arrays import Array
from onnxprune.progress import Steps

SEARCHED = 1 / 3  # part of the samples that the search sees; the rest confirms
STEPS_BACK = (0.75, 0.5, 0.25, 0.1, 0.0)  # of the way from the smallest candidate to the original, safest first


@dataclass(frozen=True)
class Smallest:
    """left: the part of the MACs, in percent, that the smallest good model has; tried: left -> drop on the searched
    part; confirmed: drop on the rest, whose samples `rest` are, None for all."""

    left: int
    tried: dict[int, Drop]
    confirmed: Drop
    rest: Array | None = None


def smallest(
    build: Callable[[int], Score | None],
    before: Score,
    limit: float,
    *,
    alone: Score | None = None,
    whole: bool = False,
    seed: int = 0,
    progress: Steps = lambda done, total: None,
) -> Smallest:
    """The smallest model whose metric falls by at most `limit`.

    build: percent of the MACs that are left -> the score of that model, None where it cannot be made. alone: the score
    of zeros and codebooks without any cut, where some are asked for: if it breaks the bound, so does every cut. whole:
    whether 100% may be the result as well.
    Bisection on a third of the samples; on the rest, candidates are confirmed from the safest to the smallest and the
    last one before the first failure is taken (a fixed sequence, so that one confidence level covers all tests).
    Raises `OptionError` where not even the safest candidate is good enough.
    """
    scores: dict[int, Score | None] = {}
    n = before.samples
    if n is not None and n < 2:
        raise OptionError(f"--max-drop {limit:g}: {n} sample cannot be split; give a few hundred; nothing was written")
    order = np.random.default_rng(seed).permutation(n) if n else None
    first = None if order is None else order[: max(1, round(len(order) * SEARCHED))]
    rest = None if order is None or first is None else order[len(first) :]
    least = drop(before, before, rest).bound
    if least is not None and least > limit:
        need = math.ceil(math.sqrt(2) * float(ndtri(CONFIDENCE)) / limit / (1 - SEARCHED)) if limit > 0 else 0
        way = f"give at least {need} samples" if need else "a drop of nothing cannot be shown"
        raise OptionError(f"--max-drop {limit:g}: {n} samples cannot show so small a drop; {way}; nothing was written")
    tried: dict[int, Drop] = {}

    def score(left: int) -> Score | None:
        if left not in scores:
            progress(len(scores), 12)
            scores[left] = build(left)
        return scores[left]

    def good(left: int) -> bool:
        after = score(left)
        if after is None:
            return False
        tried[left] = drop(before, after, first)
        return tried[left].drop <= limit

    if alone is not None and not drop(before, alone, first).drop <= limit:
        raise OptionError(_broken(limit, drop(before, alone, first)))
    low, high = 0, 100  # low is too small, high is good enough
    while high - low > 1:
        middle = (low + high) // 2
        if good(middle):
            high = middle
        else:
            low = middle
    best: tuple[int, Drop] | None = None
    safest = [100] if whole else []
    for left in dict.fromkeys([*safest, *(min(99, high + round((100 - high) * back)) for back in STEPS_BACK)]):
        after = score(left)
        if after is None:
            continue
        now = drop(before, after, rest)
        if not now.holds(limit):
            break
        best = left, now
    if best is None and not any(scores.values()):
        raise OptionError(
            f"--max-drop {limit:g}: what was asked for leaves no choice of fewer MACs; leave out fixed amounts such as "
            f"--layers 0.5, or give one without --max-drop; nothing was written"
        )
    if best is None and alone is not None:
        lost = drop(before, alone, rest)
        if not lost.holds(limit):
            raise OptionError(_broken(limit, lost))
    if best is None:
        raise OptionError(
            f"--max-drop {limit:g}: not even the smallest cut that was tried holds it for sure; allow a larger drop, "
            f"or give more samples to --calibration and --evaluate; nothing was written"
        )
    return Smallest(best[0], tried, best[1], rest)


def _broken(limit: float, lost: Drop) -> str:
    """The line for zeros or codebooks that break the bound before anything was cut."""
    cost = f"cost {lost.drop:.4f} of {lost.metric}"
    if lost.bound is not None:
        cost += f" (at most {lost.bound:.4f} with {CONFIDENCE:.0%} confidence)"
    return (
        f"--max-drop {limit:g}: the zeros or clusters alone {cost}, so that no cut can hold it; ask for less "
        f"--sparsity, more values of --cluster, or allow more; nothing was written"
    )
