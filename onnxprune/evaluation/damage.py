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
from onnxprune.runtime.classes import classifier_output, joined, probabilities
from onnxprune.runtime.session import Feeds

TINY = 1e-12
AT_ONCE = 1 << 20  # elements that are compared in double precision


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
