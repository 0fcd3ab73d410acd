"""Weights as they are before any training.

Kaiming by fan-in (He et al. 2015): weights of products are normal with variance 2 / fan-in before a rectifier, else
1 / fan-in; of recurrences and tables 1 / fan-in. Biases and shifts are zero, scales one, statistics those of a standard
distribution.
"""

from __future__ import annotations

import math

import numpy as np

from onnxprune.errors import UserError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.links import read_by
from onnxprune.graph.node import Node, opsets, walk_all
from onnxprune.graph.normalisation import SCALE, STATISTICS
from onnxprune.graph.step import Step
from onnxprune.graph.traits import TRAITS
from onnxprune.training.weights import trainable

DEEP = 8  # layers from which on a network without normalisations may not train
PASSING = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "Add")
RECTIFIERS = (
    "Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSwish", "Swish", "Gelu",
    "Mish", "Softplus", "Sigmoid", "Erf",
)  # fmt: skip


def initial(model: Model, seed: int) -> Step[int]:
    """The model with new weights, and how many tensors got some; notes say what is not as it should be."""
    names, rng, out = set(trainable(model)), np.random.default_rng([seed, 2]), model.copy()
    nodes = list(walk_all(model.proto.graph, opsets(model.proto)))
    readers = read_by(model.proto)
    layers, done = 0, dict[str, Array]()
    for n in nodes:
        trait = TRAITS.get(n.op)
        for i, name in enumerate(n.inputs):
            if name not in model.weights or name in done or (name not in names and not _statistic(n, i)):
                continue
            w = model.weights[name]
            if w.dtype.kind != "f":
                continue
            if trait is not None and i in trait.slots and w.ndim > 1:
                fan = w.shape[-1 if n.op == "Gather" else trait.axes(n, i)[0]]
                fan *= math.prod(w.shape[2:]) if trait.kernel else 1
                gain = 2.0 if trait.multiplies and not trait.recurs and _rectified(n, readers) else 1.0
                layers += trait.multiplies
                done[name] = np.asarray(rng.standard_normal(w.shape) * math.sqrt(gain / max(fan, 1)))
            else:
                one = i == SCALE if n.op.endswith("Normalization") and i < STATISTICS[0] else n.op in ("Mul", "Div")
                done[name] = np.full(w.shape, float(one or _variance(n, i)))
    for name, value in done.items():
        out.weights[name] = value.astype(model.weights[name].dtype)
        out.weights[name].flags.writeable = False
    notes = []
    normal = any(n.op.endswith("Normalization") or n.op == "Sqrt" for n in nodes)  # by name, or written out
    if layers > DEEP and not normal:
        notes.append(
            f"{layers} layers without normalisations, or with theirs folded into them: from scratch the model may not "
            "train"
        )
    kept = [name for name in names if name not in done]
    if kept:
        notes.append(f"{len(kept)} weights keep their values ({', '.join(sorted(kept)[:3])})")
    return Step(out, len(done), tuple(notes))


def with_weights(model: Model, source: Model) -> Model:
    """A copy of a model with the weights of another one of the same graph. Raises `UserError` where they do not fit."""
    out = model.copy()
    for name in (*trainable(model), *statistics(model)):
        w = source.weights.get(name)
        if w is None or (w.shape, w.dtype) != (model.weights[name].shape, model.weights[name].dtype):
            there, own = "none" if w is None else f"{w.dtype} {list(w.shape)}", model.weights[name]
            raise UserError(
                f"{source.path or 'the other model'}: expected weights of the same graph; it has {there} for "
                f"{name!r}, {own.dtype} {list(own.shape)}"
            )
        out.weights[name] = w
    return out


def statistics(model: Model) -> list[str]:
    """Initializers that are means and variances of normalisations."""
    nodes = walk_all(model.proto.graph, opsets(model.proto))
    found = (n.input(i) for n in nodes if n.op == "BatchNormalization" for i in STATISTICS)
    return [name for name in dict.fromkeys(found) if name in model.weights]


def _statistic(n: Node, i: int) -> bool:
    return n.op == "BatchNormalization" and i in STATISTICS


def _variance(n: Node, i: int) -> bool:
    return n.op == "BatchNormalization" and i == STATISTICS[1]


def _rectified(n: Node, readers: dict[str, list[Node]]) -> bool:
    """Whether a rectifier reads the output of a node, behind normalisations and sums."""
    if "relu" in str(n.attr("activation", b"")).lower():
        return True
    for _ in range(len(PASSING)):
        following = readers.get(n.key, [])
        if any(r.op in RECTIFIERS for r in following):
            return True
        passed = [r for r in following if r.op in PASSING]
        if not passed:
            return False
        n = passed[0]
    return False
