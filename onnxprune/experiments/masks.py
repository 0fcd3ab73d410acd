"""Masks: which weights of a network are left, as the experiments choose, shuffle and count them.

A mask is a bool array in the shape in which its weight is stored, False for what is gone. What is gone stays gone: a
weight that is zero scores lowest. Criteria of experiments/criteria.py compare the network with the one it was trained
from.

>>> kept = {"w": np.array([True, False, True, False])}
>>> left(kept), [int(m.sum()) for m in shuffled(kept, seed=0).values()]
(0.5, [2])
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.experiments.criteria import CRITERIA, RANDOM, compared
from onnxprune.formats.patterns import NMPattern
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.importance.gradients import entry_scores
from onnxprune.importance.shown import Ground
from onnxprune.layers.layer import Layer
from onnxprune.progress import Steps
from onnxprune.solvers.masks import by_gradients
from onnxprune.sparsity.allocate import ZERO_ALLOCATORS, spread
from onnxprune.sparsity.amounts import maskable, names_of, ratios_of
from onnxprune.sparsity.options import PLAIN_SOLVER, Zeros
from onnxprune.sparsity.solve import by_magnitude

Masks = dict[str, Array]  # initializer -> bool in its shape, False for a weight that is gone


@dataclass(frozen=True)
class Choice:
    """How weights are chosen. importance: magnitude, a solver by gradients, or a row of `CRITERIA`; zeros: pattern and
    allocation; ignore: globs, as the sparse stage has them."""

    importance: str
    zeros: Zeros
    ignore: tuple[str, ...] = ()
    seed: int = 0

    @property
    def allocate(self) -> str:
        """The row of `ZERO_ALLOCATORS`; every layer alike where a pattern says what goes, one threshold elsewhere."""
        return self.zeros.sparsity_allocate or ("uniform" if isinstance(self.zeros.shape, NMPattern) else "global")

    def check(self) -> None:
        """Raise `OptionError` for what cannot be chosen by."""
        if ZERO_ALLOCATORS[self.allocate].needs_data:
            free = ", ".join(name for name, row in ZERO_ALLOCATORS.items() if not row.needs_data)
            raise OptionError(f"--sparsity-allocate {self.allocate} needs least squares; here there are {free}")
        if self.allocate == "lamp" and self.importance in CRITERIA:
            raise OptionError(f"--sparsity-allocate lamp goes by magnitudes, which {self.importance} does not")


def choose(
    model: Model, names: Collection[str], share: float, how: Choice, by: Ground,
    progress: Steps = lambda done, total: None, start: Model | None = None,
) -> tuple[Masks, list[str]]:  # fmt: skip
    """What is left where so much of the weights of all layers goes; and what the user should know.

    names: initializers that may be masked, those that are trained; share: of the weights, 0 to 1, with those that are
    zero already; an N:M pattern says it itself; start: what the model was trained from, for criteria that compare both.
    Raises `OptionError` where no layer can be masked, or none is left.
    """
    how.check()
    pattern = how.zeros.shape
    share = pattern.ratio if isinstance(pattern, NMPattern) else share
    layers = maskable(model, names)
    ratios = ratios_of(names_of(model), layers, _zeros(how.zeros, share), (), how.ignore)
    layers = [layer for layer in layers if ratios.get(layer.name)]
    if not layers:
        raise OptionError("no layer can be masked: --ignore names them all, or none has weights that are trained")
    scores, lacking = _scores(model, layers, share, how, by, progress, start or model)
    asked = {layer.initializer: ratios[layer.name] for layer in layers}
    sound = {w: scores[w] for w in asked if w in scores}
    counts = spread(sound, {w: asked[w] for w in sound}, how.allocate)
    counts |= {w: round(r * int(model.weights[w].size)) for w, r in asked.items() if w not in counts}
    masks = {
        layer.initializer: _stored(model, layer, by_magnitude(
            model, layer, pattern, counts[layer.initializer], scores.get(layer.initializer)
        ) != 0)
        for layer in layers
    }  # fmt: skip
    notes = [f"{x.name}: masked by magnitude: {lacking[x.initializer]}" for x in layers if x.initializer in lacking]
    empty = [x.name for x in layers if not masks[x.initializer].any()]
    if len(empty) == len(layers):
        raise OptionError(f"of {share:.4%} zeros no weight is left; choose fewer")
    notes += [f"no weight is left of {', '.join(empty[:3])}{', ...' * (len(empty) > 3)}"] if empty else []
    return masks, notes


def left(masks: Mapping[str, Array]) -> float:
    """The share of the weights that is left, of layers that have a mask."""
    return sum(int(m.sum()) for m in masks.values()) / max(sum(m.size for m in masks.values()), 1)


def shuffled(masks: Mapping[str, Array], seed: int) -> Masks:
    """Masks of the same number of weights in every layer, at random places."""
    rng = np.random.default_rng([seed, 3])
    return {name: rng.permutation(m.ravel()).reshape(m.shape) for name, m in masks.items()}


def masked(model: Model, masks: Mapping[str, Array]) -> Model:
    """A copy of a model with zeros where they are asked for."""
    out = model.copy()
    for name, kept in masks.items():
        out.weights[name] = np.where(kept, out.weights[name], np.zeros((), out.weights[name].dtype))
        out.weights[name].flags.writeable = False
    return out


def _zeros(zeros: Zeros, share: float) -> Zeros:
    """Of so many zeros."""
    return zeros if isinstance(zeros.shape, NMPattern) else Zeros(sparsity=share, pattern=zeros.pattern)


def _scores(
    model: Model, layers: Sequence[Layer], share: float, how: Choice, by: Ground, progress: Steps, start: Model
) -> tuple[dict[str, Array], dict[str, str]]:
    """Scores of the entries of every layer's weight as it reads it; and why some have none."""
    if by_gradients(how.importance):
        return entry_scores(how.importance, model, layers, by, share, progress=progress)
    if how.importance in CRITERIA:
        return compared(how.importance, {x.initializer: (x.read(start), x.read(model)) for x in layers}, how.seed), {}
    if how.importance != PLAIN_SOLVER:
        raise OptionError(f"--importance {how.importance} does not score single weights")
    return {x.initializer: np.abs(x.read(model)) for x in layers}, {}


def _stored(model: Model, layer: Layer, kept: Array) -> Array:
    """A mask of a weight as the layer reads it, as one of what is stored."""
    assert layer.stored is not None, "a weight that may hold zeros is stored somewhere"
    return np.asarray(layer.stored.encoded(model, kept.astype(np.float32)) != 0)


__all__ = ["RANDOM", "Choice", "Masks", "choose", "left", "masked", "shuffled"]
