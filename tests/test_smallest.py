"""The search for the smallest model that keeps a bound."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.nets import Array
from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import (
    Score,
)
from onnxprune.evaluation.smallest import smallest

N = 3000
ORDER = np.random.default_rng(7).permutation(N)
HIT = (ORDER < 0.9 * N).astype(float)
BEFORE = Score("top1", 0.9, HIT)


def losing(share: float) -> Score:
    """A model that loses so many of the hits."""
    each = np.where(share * N > ORDER, 0.0, HIT)
    return Score("top1", float(each.mean()), each)


def table(rule: Callable[[int], float | None]) -> tuple[Callable[[int], Score | None], list[int]]:
    asked: list[int] = []

    def build_(left: int) -> Score | None:
        asked.append(left)
        share = rule(left)
        return None if share is None else losing(share)

    return build_, asked


RULES: dict[str, tuple[Callable[[int], float | None], int, int]] = {  # loss by MACs left; the answer lies between
    "a line": (lambda left: (100 - left) / 1000, 80, 92),
    "a step": (lambda left: 0.0 if left >= 37 else 0.5, 37, 37),
    "nothing below 60 %": (lambda left: None if left < 60 else 0.0, 60, 60),
    "always good": (lambda left: 0.0, 1, 1),
}


@pytest.mark.parametrize("name", RULES)
def test_the_smallest_model_that_is_confirmed(name: str) -> None:
    rule, low, high = RULES[name]
    build_, asked = table(rule)
    found = smallest(build_, BEFORE, 0.02, seed=1)
    assert low <= found.left <= high
    assert found.confirmed.bound is not None and found.confirmed.bound <= 0.02
    assert found.confirmed.samples == N - N // 3 and all(d.samples == N // 3 for d in found.tried.values())
    assert len(asked) == len(set(asked)) <= 12
    truth = rule(found.left)
    assert truth is not None and truth <= 0.02


def test_the_bound_of_the_search_holds_in_most_draws() -> None:
    """The confirmed model really loses at most the limit, in at least 93 % of the draws."""
    right = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        u = rng.random(400)
        before = Score("top1", 0.8, (u < 0.8).astype(float))

        def build_(left: int, u: Array = u) -> Score:
            return Score("top1", 0, ((u < 0.8) & (u >= (100 - left) / 500)).astype(float))

        try:
            found = smallest(build_, before, 0.06, seed=seed)
        except OptionError:
            continue
        right.append((100 - found.left) / 500 <= 0.06)
    assert len(right) > 100 and np.mean(right) >= 0.93


def test_a_function_of_one_number_is_taken_at_its_word() -> None:
    found = smallest(lambda left: Score("f", 0.9 - (100 - left) / 1000, None), Score("f", 0.9, None), 0.03)
    assert found.left in (70, 71) and found.confirmed.bound is None


def scores(n: int, value: float = 1.0) -> Score:
    return Score("top1", value, np.full(n, value))


REFUSED: dict[str, tuple[Callable[[int], Score | None], Score, str]] = {
    "too few samples": (lambda left: scores(20), scores(20), "20 samples cannot show so small a drop; give at least"),
    "one sample": (lambda left: scores(1), scores(1), "1 sample cannot be split"),
    "always bad": (lambda left: scores(2000, 0.0), scores(2000), "not even the smallest cut"),
    "never made": (lambda left: None, scores(2000), "leaves no choice of fewer MACs"),
    "no numbers": (lambda left: scores(2000, np.nan), scores(2000), "not even the smallest cut"),
    "no number": (lambda left: Score("f", np.nan, None), Score("f", 0.9, None), "not even the smallest cut"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_limits_that_cannot_be_held(name: str) -> None:
    build_, before, message = REFUSED[name]
    with pytest.raises(OptionError, match=message):
        smallest(build_, before, 0.01)


def test_the_number_of_samples_that_is_asked_for_is_enough() -> None:
    with pytest.raises(OptionError) as e:
        smallest(lambda left: scores(20), scores(20), 0.01)
    need = int(str(e.value).split("at least ")[1].split()[0])
    assert smallest(lambda left: scores(need), scores(need), 0.01).left == 1
