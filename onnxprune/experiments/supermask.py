"""Supermasks: networks of masks and weights that were never trained (Zhou et al. 2019, arXiv:1905.01067).

A criterion (experiments/criteria.py) says which weights are kept. Then an action says what these are, the paper's
mask-1 action, and another one what the others are, its mask-0 action. Both are functions of a `Weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight. initial, final: float64; kept: bool; all of one shape; rng: of actions at random."""

    initial: Array
    final: Array
    kept: Array
    rng: np.random.Generator


def init(w: Weight) -> Array:
    """their initial weights"""
    return w.initial


def signed_constant(w: Weight) -> Array:
    """the standard deviation of the layer's initial weights, with their signs"""
    return np.asarray(np.sign(w.initial) * np.std(w.initial))


def constant(w: Weight) -> Array:
    """the same, with the layer's signs in random order"""
    return np.asarray(_shuffled(w.rng, np.sign(w.initial)) * np.std(w.initial))


def reinit(w: Weight) -> Array:
    """the layer's initial weights in random order: others of the same distribution"""
    return _shuffled(w.rng, w.initial)


def signed_reinit(w: Weight) -> Array:
    """the same for magnitudes alone; signs stay"""
    return np.asarray(np.sign(w.initial) * np.abs(reinit(w)))


def reshuffle(w: Weight) -> Array:
    """the initial weights that are kept, in random order"""
    out = w.initial.copy()
    out[w.kept] = w.rng.permutation(out[w.kept])
    return out


def signed_reshuffle(w: Weight) -> Array:
    """the same for magnitudes alone; signs stay"""
    return np.asarray(np.sign(w.initial) * np.abs(reshuffle(w)))


def final(w: Weight) -> Array:
    """their trained weights, which is pruning; beside it, what training gave"""
    return w.final


def zero(w: Weight) -> Array:
    """zero"""
    return np.zeros_like(w.initial)


def direction(w: Weight) -> Array:
    """zero where training made a weight smaller, else its initial value"""
    return np.where(np.abs(w.final) < np.abs(w.initial), 0.0, w.initial)


def _shuffled(rng: np.random.Generator, x: Array) -> Array:
    return rng.permutation(x.ravel()).reshape(x.shape)


@dataclass(frozen=True)
class Action:
    """help: in a line; values: of all entries of a weight."""

    help: str
    values: Callable[[Weight], Array]


def _rows(*functions: Callable[[Weight], Array]) -> dict[str, Action]:
    return {f.__name__: Action((f.__doc__ or "").strip(), f) for f in functions}


KEPT = _rows(init, signed_constant, constant, reinit, signed_reinit, reshuffle, signed_reshuffle, final)
OUT = _rows(
    zero, init, direction
)  # the paper's third one, direction for kept weights too, has no mask without training


def network(
    initial: Model, trained: Model, masks: Mapping[str, Array], action: str, out: str = "zero", seed: int = 0
) -> Model:
    """The initial model with what is kept by one action of `KEPT`, and what is out by one of `OUT`.

    initial, trained: of one graph; masks: initializer -> bool, as it is stored. Biases, and all that has no mask, stay
    initial.
    """
    model = initial.copy()
    for k, (name, kept) in enumerate(masks.items()):
        old = initial.weights[name]
        w = Weight(
            old.astype(np.float64), trained.weights[name].astype(np.float64), kept, np.random.default_rng([seed, 6, k])
        )
        values = np.where(kept, KEPT[action].values(w), OUT[out].values(w)).astype(old.dtype)
        values.flags.writeable = False
        model.weights[name] = values
    return model


def cosine(initial: Model, trained: Model, names: Sequence[str]) -> float:
    """Of the angle between the weights before and after training; about 0 where one was not trained from the other."""
    pairs = [[m.weights[n].astype(np.float64).ravel() for m in (initial, trained)] for n in names]
    product, a, b = (sum(float(np.vdot(p[i], p[j])) for p in pairs) for i, j in ((0, 1), (0, 0), (1, 1)))
    return product / max(float(np.sqrt(a * b)), 1e-30)


__all__ = ["KEPT", "OUT", "Action", "Weight", "cosine", "network"]
