"""The loss that importances by gradients follow: an inner product of what a model gives with coefficients.

Of a classifier what it gives are the logarithms of its probabilities, of anything else the values of its outputs. The
coefficients say which loss it is, and are inputs, so that one graph serves all:

labels           -1 at the label's class: cross entropy
none             random, such that E[(J'c)(J'c)'] is J'FJ, J the Jacobian of what the model gives and F the Fisher
                 information of its own distribution: of classes with probabilities p diag(p) - pp', of values with a
                 variance the identity over it. That is the Gauss-Newton matrix of the divergence from its own outputs,
                 whose gradient is zero (Martens 2020, New Insights and Perspectives on the Natural Gradient Method).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.errors import UserError
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.losses import class_scores, log_probabilities
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.runtime.classes import IGNORED, are_probabilities, class_rows, classifier_output, probabilities
from onnxprune.runtime.session import Feeds


@dataclass(frozen=True)
class Loss:
    """classes: the output that holds a row of classes per sample or token, "" for none; given: whether these are
    probabilities; variances: output -> its variance, where there are no classes; temperature: that class scores are
    divided by."""

    classes: str
    given: bool
    variances: dict[str, float]
    temperature: float = 1.0

    @staticmethod
    def of(model: Model, outputs: Feeds, samples: int, tokens: int = 0) -> Loss:
        """By what the model gives for some samples; tokens: labels that each of these has.

        Raises `UserError` where no output is a number.
        """
        classes = classifier_output(model, outputs, samples, tokens)
        if classes:
            return Loss(classes, are_probabilities(class_rows(outputs[classes])), {})
        floats = {name: y for name, y in outputs.items() if y.dtype.kind == "f" and y.size}
        if not floats:
            raise UserError("importance by gradients needs an output of a floating-point type, and the model has none")
        return Loss("", False, {name: float(np.var(y, dtype=np.float64)) or 1.0 for name, y in floats.items()})

    def build(self, b: Backward) -> str:
        """Add the nodes of the loss; its name. Its coefficients are inputs named as `coefficients` has them."""
        if self.classes:
            logs = log_probabilities(b, self.classes, probabilities=self.given)
            if self.temperature != 1:
                cooler = b.op("Mul", logs, b.constant(1 / self.temperature, like=logs))
                logs = b.op("LogSoftmax", cooler, axis=-1)
            return _product(b, logs, _name(self.classes))
        return b.add([_product(b, name, _name(name)) for name in self.variances])

    def of_labels(self, labels: Array, classes: int, samples: int, signs: Array) -> Feeds:
        """Coefficients of a run of so many samples: of the cross entropy of each one's labels, mean over its tokens.

        labels: int64 of the first of them, `(n,)` or `(n, tokens)`; classes: how many there are; signs: factors of
        their losses, `(n,)`.
        """
        rows = labels.reshape(len(labels), -1)
        counted = rows != IGNORED
        c = np.zeros((samples, rows.shape[1], classes))
        weight = counted * (signs / np.maximum(counted.sum(1), 1))[:, None]
        np.put_along_axis(c[: len(rows)], np.where(counted, rows, 0)[..., None], -weight[..., None], 2)
        return {_name(self.classes): c.reshape(-1, classes).astype(np.float32)}

    def drawn(self, outputs: Feeds, samples: int, count: int, rng: np.random.Generator) -> Feeds:
        """Coefficients of a run by its outputs for `samples` samples, of which `count` count; see the module."""
        if self.classes:
            p = probabilities(outputs[self.classes])
            root = np.sqrt(p)
            signs = _signs(p.shape, rng)
            c = root * signs - p * (root * signs).sum(1, keepdims=True)
            return {_name(self.classes): _counting(c / np.sqrt(len(p) / samples), samples, count)}
        out: Feeds = {}
        for name, variance in self.variances.items():
            y = outputs[name]
            # the loss is the mean of (y - t)^2 / variance, over the outputs too: its second derivative is twice that
            size = np.sqrt(2 / (variance * max(y.size / samples, 1) * len(self.variances)))
            out[_name(name)] = _counting(_signs(y.shape, rng) * size, samples, count).astype(y.dtype)
        return out


@dataclass(frozen=True)
class Sum(Loss):
    """In place of a loss the sum of the class scores, or of all outputs where there are no classes."""

    def build(self, b: Backward) -> str:
        """Add the nodes; the name of the sum."""
        if self.classes:
            return _product(b, class_scores(b, self.classes), _name(self.classes))
        return super().build(b)

    def drawn(self, outputs: Feeds, samples: int, count: int, rng: np.random.Generator) -> Feeds:
        """One for every output of the samples that count."""
        names = [self.classes] if self.classes else list(self.variances)
        return {_name(name): _counting(np.ones(outputs[name].shape), samples, count) for name in names}


def _name(output: str) -> str:
    return f"{output}:coefficients"


def _product(b: Backward, of: str, name: str) -> str:
    c = b.input_like(name, of)
    return b.sum(b.op("Mul", of, c), range(b.rank(of)))


def _signs(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """-1 or 1 each, float64."""
    return 2.0 * rng.integers(0, 2, shape) - 1


def _counting(c: Array, samples: int, count: int) -> Array:
    """Coefficients, those of samples behind the first `count` zero; float32."""
    if count < samples and c.ndim:
        c[count * (len(c) // samples) :] = 0
    return c.astype(np.float32)


__all__ = ["Loss", "Sum"]
