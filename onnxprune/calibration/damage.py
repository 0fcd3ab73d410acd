"""How far outputs are from those of the original, as one number that is 0 for equal ones.

Of a classifier: the KL divergence of its class probabilities, mean over samples. Of anything else: the squared error of
every output over its variance, mean over outputs. Labels are not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.io import Model
from onnxprune.graph.runtime import Feeds
from onnxprune.graph.shapes import Array, graph_inputs

TINY = 1e-12


def probabilities(y: Array) -> Array:
    """Rows of scores or of probabilities as probabilities, float64 `(n, classes)`."""
    y = y.reshape(len(y), -1).astype(np.float64)
    if (y >= 0).all() and np.allclose(y.sum(1), 1, atol=1e-3):
        return y
    e = np.exp(y - y.max(1, keepdims=True))
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
            a, b = y.astype(np.float64), outputs[name].astype(np.float64)
            finite = np.isfinite(a)
            if a.shape != b.shape or not np.isfinite(b[finite]).all():
                return np.inf
            spread = float(np.square(a[finite] - a[finite].mean()).sum()) if finite.any() else 0.0
            errors.append(float(np.square(a[finite] - b[finite]).sum()) / max(spread, TINY))
        return float(np.mean(errors)) if errors else 0.0


def classifier_output(model: Model, outputs: dict[str, Array], samples: int) -> str:
    """The one float output that holds a row of classes per sample; "" where the model is no classifier."""
    floats = [n for n, y in outputs.items() if y.dtype.kind == "f"]
    if len(floats) != 1:
        return ""
    y = outputs[floats[0]]
    flat = y.shape[0] == samples and y.ndim >= 2 and y.size == samples * max(y.shape[1:]) and y.size > samples
    inputs = {tuple(d.dim_value for d in i.type.tensor_type.shape.dim)[1:] for i in graph_inputs(model)}
    return floats[0] if flat and y.shape[1:] not in inputs else ""  # shaped as an input: a reconstruction


def joined(batches: Iterable[Feeds], names: Sequence[str]) -> dict[str, Array]:
    """Outputs of all batches, joined along axis 0."""
    found: dict[str, list[Array]] = {n: [] for n in names}
    for batch in batches:
        for n in names:
            found[n].append(np.atleast_1d(batch[n]))
    return {n: _join(parts) for n, parts in found.items()}


def _join(parts: Sequence[Array]) -> Array:
    if len({p.shape[1:] for p in parts}) == 1:
        return np.concatenate(parts)
    return np.concatenate([p.ravel() for p in parts])  # of another size for every sample


def damage(model: Model, batches: Iterable[Feeds], names: Sequence[str], samples: int) -> Damage:
    """The measure for a model, of its outputs on the samples that count."""
    reference = joined(batches, names)
    return Damage(reference, classifier_output(model, reference, samples))
