"""How far outputs are from those of the original, as one number that is 0 for equal ones.

Of a classifier: the KL divergence of its class probabilities, mean over samples; of a language model that of its next
tokens, mean over positions. Of anything else: the squared error of
every output over its variance, mean over outputs. Labels are not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import graph_inputs
from onnxprune.runtime.session import Feeds

TINY = 1e-12
AT_ONCE = 1 << 20  # elements that are compared in double precision


def class_rows(y: Array) -> Array:
    """Scores of classes, `(n, classes)`: a row per sample or, of `(samples, positions, classes)`, per position."""
    widest = max(y.shape[1:], default=1)
    return y.reshape(-1, widest if y.size == len(y) * widest else y.shape[-1])


def probabilities(y: Array) -> Array:
    """Rows of scores or of probabilities as probabilities, float64 `(n, classes)`."""
    y = class_rows(y).astype(np.float64)
    if (y >= 0).all() and np.allclose(y.sum(1), 1, atol=1e-3):
        return y
    top = y.max(1, keepdims=True)
    e = np.exp(y - np.where(np.isfinite(top), top, np.nan))  # of what is no number, no number
    return np.asarray(e / e.sum(1, keepdims=True))


def divergence(p: Array, q: Array) -> Array:
    """KL(p || q) of every row, `(n,)`."""
    return np.asarray((p * (np.log(p + TINY) - np.log(q + TINY))).sum(1))


@dataclass(frozen=True, eq=False)
class Damage:
    """reference: the original's outputs over all samples, by name; classes: which of them is a classifier's, or ""."""

    reference: dict[str, Array]
    classes: str

    def __call__(self, outputs: dict[str, Array]) -> float:
        if self.classes:
            p, q = (probabilities(o[self.classes]) for o in (self.reference, outputs))
            return float(divergence(p, q).mean()) if np.isfinite(q).all() else np.inf
        errors = []
        for name, y in self.reference.items():
            if y.dtype.kind != "f" or not y.size:
                continue
            if y.shape != outputs[name].shape:
                return np.inf
            errors.append(relative_error(y, outputs[name]))
        return float(np.mean(errors)) if errors else 0.0


def classifier_output(model: Model, outputs: dict[str, Array], samples: int) -> str:
    """The one float output that holds a row of classes per sample or per token; "" where the model is no classifier."""
    floats = [n for n, y in outputs.items() if y.dtype.kind == "f"]
    tables = {w.shape[0] for w in model.weights.values() if w.ndim == 2 and w.dtype.kind in "fV"}
    tokens = {i.name for i in graph_inputs(model) if i.type.tensor_type.elem_type in (6, 7)}
    spoken = [n for n in floats if outputs[n].ndim == 3 and min(outputs[n].shape[1:]) > 1]
    words = [n for n in spoken if tokens and outputs[n].shape[2] in tables and len(outputs[n]) == samples]
    if len(words) == 1 and outputs[words[0]].shape[2] not in _widths(model):
        return words[0]
    if len(floats) != 1:
        return ""
    y = outputs[floats[0]]
    flat = y.shape[0] == samples and y.ndim >= 2 and y.size == samples * max(y.shape[1:]) and y.size > samples
    inputs = {tuple(d.dim_value for d in i.type.tensor_type.shape.dim)[1:] for i in graph_inputs(model)}
    return floats[0] if flat and y.shape[1:] not in inputs else ""  # shaped as an input: a reconstruction


def _widths(model: Model) -> set[int]:
    """Lengths of the vectors that normalisations scale by: widths of hidden states."""
    norms = {i for n in model.proto.graph.node if n.op_type.endswith("Normalization") for i in n.input[1:3]}
    return {w.shape[-1] for name, w in model.weights.items() if name in norms and w.ndim == 1}


def joined(batches: Iterable[Feeds], names: Sequence[str]) -> dict[str, Array]:
    """Outputs of all batches, joined along axis 0."""
    parts: dict[str, list[Array]] = {n: [] for n in names}
    for batch in batches:
        for n in names:
            parts[n].append(np.atleast_1d(batch[n]))
    return {n: _join(each) for n, each in parts.items()}


def _join(parts: Sequence[Array]) -> Array:
    if len({p.shape[1:] for p in parts}) == 1:
        return np.concatenate(parts)
    return np.concatenate([p.ravel() for p in parts])  # of another size for every sample


def relative_error(y: Array, other: Array) -> float:
    """Squared error over the variance of y, of what is finite there; inf where the other is not finite then."""
    count, total, spread, error = 0, 0.0, 0.0, 0.0
    y, other = np.atleast_1d(y), np.atleast_1d(other)
    step = max(1, AT_ONCE * len(y) // max(y.size, 1))
    chunks = [(y[i : i + step], other[i : i + step]) for i in range(0, len(y), step)]
    for chunk, _ in chunks:
        a = chunk.astype(np.float64)
        finite = np.isfinite(a)
        count, total = count + int(finite.sum()), total + float(a[finite].sum())
    mean = total / max(count, 1)
    for chunk, against in chunks:
        a, b = chunk.astype(np.float64), against.astype(np.float64)
        finite = np.isfinite(a)
        if not np.isfinite(b[finite]).all():
            return np.inf
        spread += float(np.square(a[finite] - mean).sum())
        error += float(np.square(a[finite] - b[finite]).sum())
    return error / max(spread, TINY)


def damage(model: Model, batches: Iterable[Feeds], names: Sequence[str], samples: int) -> Damage:
    """The measure for a model, of its outputs on the samples that count."""
    reference = joined(batches, names)
    return Damage(reference, classifier_output(model, reference, samples))
