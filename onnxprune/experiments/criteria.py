"""Criteria of masks that compare a weight before training with the same weight after it (Zhou et al. 2019,
Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask, arXiv:1905.01067).

A criterion is a function of a `Pair`: the larger, the more a weight matters. w_i is the initial weight, w_f the final.

>>> w = Pair(np.array([-3.0, 1.0, 2.0]), np.array([2.0, 4.0, 2.5]))
>>> {name: CRITERIA[name].score(w).tolist() for name in ("magnitude_increase", "movement", "large_final_same_sign")}
{'magnitude_increase': [-1.0, 3.0, 0.5], 'movement': [5.0, 3.0, 0.5], 'large_final_same_sign': [-2.0, 4.0, 2.5]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.graph.arrays import Array

RANDOM = "random"


@dataclass(frozen=True, eq=False)
class Pair:
    """Weights before and after training. initial, final: of one shape, float; layer: the whole weight, where these are
    other points (of a picture); rng: of criteria at random."""

    initial: Array
    final: Array
    layer: Pair | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def initial_share(self) -> Array:
        """Share of the layer's weights whose initial magnitude is smaller."""
        return _share(self.initial, (self.layer or self).initial)

    @property
    def final_share(self) -> Array:
        """Share of the layer's weights whose final magnitude is smaller."""
        return _share(self.final, (self.layer or self).final)


def _share(x: Array, layer: Array) -> Array:
    return np.asarray(np.searchsorted(np.sort(np.abs(layer), axis=None), np.abs(x)) / layer.size)


def large_final(w: Pair) -> Array:
    """|w_f|: those that are large in the end"""
    return np.abs(w.final)


def small_final(w: Pair) -> Array:
    """-|w_f|: those that are small in the end"""
    return -np.abs(w.final)


def large_init(w: Pair) -> Array:
    """|w_i|: those that were large before"""
    return np.abs(w.initial)


def small_init(w: Pair) -> Array:
    """-|w_i|: those that were small before"""
    return -np.abs(w.initial)


def large_init_large_final(w: Pair) -> Array:
    """min(a |w_f|, |w_i|): those that were large and are

    The paper scales |w_f| so that both thresholds are the same percentile of the layer; that is the order of the lower
    of the two ranks.
    """
    return np.minimum(w.initial_share, w.final_share)


def small_init_small_final(w: Pair) -> Array:
    """-max(a |w_f|, |w_i|): those that were small and are"""
    return -np.maximum(w.initial_share, w.final_share)


def magnitude_increase(w: Pair) -> Array:
    """|w_f| - |w_i|: those that grew most"""
    return np.abs(w.final) - np.abs(w.initial)


def movement(w: Pair) -> Array:
    """|w_f - w_i|: those that moved furthest"""
    return np.asarray(np.abs(w.final - w.initial))


def large_final_same_sign(w: Pair) -> Array:
    """sign(w_i) w_f: large_final of those whose sign stayed

    The paper cuts it at 0, and draws lots among those of the other sign; here the largest of these go first.
    """
    return np.asarray(np.sign(w.initial) * w.final)


def large_final_diff_sign(w: Pair) -> Array:
    """-sign(w_i) w_f: large_final of those whose sign changed; a control"""
    return np.asarray(-np.sign(w.initial) * w.final)


def magnitude_increase_same_sign(w: Pair) -> Array:
    """sign(w_i) (w_f - w_i): magnitude_increase of those whose sign stayed"""
    return np.asarray(np.sign(w.initial) * (w.final - w.initial))


def magnitude_increase_diff_sign(w: Pair) -> Array:
    """-sign(w_i) (w_f + w_i): magnitude_increase of those whose sign changed; a control"""
    return np.asarray(-np.sign(w.initial) * (w.final + w.initial))


def random(w: Pair) -> Array:
    """at random"""
    return np.asarray(1.0 - w.rng.random(w.final.shape))


@dataclass(frozen=True)
class Criterion:
    """help: in a line; score: of every weight, the larger, the more it matters; plane: whether initial and final weight
    say it, so that what is kept is a region of their plane."""

    help: str
    score: Callable[[Pair], Array]
    plane: bool = True


def _row(score: Callable[[Pair], Array], **facts: bool) -> Criterion:
    return Criterion((score.__doc__ or "").strip().splitlines()[0], score, **facts)


CRITERIA: dict[str, Criterion] = {
    "large_final": _row(large_final),
    "small_final": _row(small_final),
    "large_init": _row(large_init),
    "small_init": _row(small_init),
    "large_init_large_final": _row(large_init_large_final),
    "small_init_small_final": _row(small_init_small_final),
    "magnitude_increase": _row(magnitude_increase),
    "movement": _row(movement),
    "large_final_same_sign": _row(large_final_same_sign),
    "large_final_diff_sign": _row(large_final_diff_sign),
    "magnitude_increase_same_sign": _row(magnitude_increase_same_sign),
    "magnitude_increase_diff_sign": _row(magnitude_increase_diff_sign),
    RANDOM: _row(random, plane=False),
}


def compared(name: str, weights: Mapping[str, tuple[Array, Array]], seed: int) -> dict[str, Array]:
    """Scores of the entries of weights, above 0, in one order for all of them; 0 for what is zero in the end, which is
    gone.

    weights: initializer -> before and after.
    """
    rng = np.random.default_rng([seed, 4])
    scores = {w: CRITERIA[name].score(Pair(*both, rng=rng)).astype(np.float64) for w, both in weights.items()}
    least = min((float(s.min()) for s in scores.values()), default=0.0)
    return {w: np.where(weights[w][1] == 0, 0.0, s - least + 1.0) for w, s in scores.items()}


def region(name: str, layer: Pair, kept: Array) -> Callable[[Array, Array], Array] | None:
    """Whether a criterion keeps a weight of a layer that has this mask, by its initial and final value; None where
    that is not a question of these.

    layer, kept: the whole weight, and its mask.
    """
    row = CRITERIA[name]
    if not row.plane or not kept.any():
        return None
    threshold = row.score(layer)[kept].min()
    return lambda initial, final: np.asarray(row.score(Pair(initial, final, layer)) >= threshold)


__all__ = ["CRITERIA", "RANDOM", "Criterion", "Pair", "compared", "region"]
