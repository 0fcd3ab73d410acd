"""Losses as ONNX nodes: in go an output of the model and what it is compared with, out comes one number.

kullback_leibler   classifiers and token by token: targets are logarithms of probabilities
cross_entropy      labels, int64; of two labels for each sample `mixed_entropy`
squared_error      everything else, over the variance of the target; `absolute_error` over its square root
"""

from __future__ import annotations

import numpy as np

from onnxprune.gradient.backward import Backward, NoRule
from onnxprune.graph.links import made_at
from onnxprune.graph.node import Node
from onnxprune.runtime.classes import IGNORED

LEAST = 1e-12  # of a probability whose logarithm is taken


def log_probabilities(b: Backward, output: str, *, probabilities: bool = False) -> str:
    """The logarithms of the probabilities that an output stands for, `(rows, classes)`, along its only axis but the
    first that is not 1, else along its last: of scores, or of the probabilities that a Softmax made of them.

    probabilities: it holds some, whatever made them.
    """
    classes, softmax = _classes(b, output)
    if softmax is not None:
        axis = softmax.attr("axis", -1)
        logs = output if softmax.op == "LogSoftmax" else b.op("LogSoftmax", softmax.input(0), axis=axis)
        return rows_of(b, logs, classes)
    rows = rows_of(b, output, classes)
    if probabilities:
        return b.op("Log", b.op("Add", rows, b.constant(LEAST, like=rows)))
    return b.op("LogSoftmax", rows, axis=-1)


def class_scores(b: Backward, output: str) -> str:
    """The scores that a Softmax made an output of; the output itself where none did."""
    _, softmax = _classes(b, output)
    return output if softmax is None else softmax.input(0)


def _classes(b: Backward, output: str) -> tuple[int, Node | None]:
    """How many classes an output has, and the Softmax over them that made it."""
    shape = b.shape(output)
    wide = [d for d in shape[1:] if d != 1]
    classes = wide[0] if len(wide) == 1 else shape[-1]
    if classes is None:
        raise NoRule(f"the number of classes of {output} is not known")
    nodes = b.edit.graph.node
    at = made_at(nodes).get(output)
    node = None if at is None else Node(nodes[at], b.opset)
    if node is None or node.op not in ("Softmax", "LogSoftmax") or shape[node.attr("axis", -1)] != classes:
        return classes, None
    return classes, node


def rows_of(b: Backward, x: str, classes: int) -> str:
    """A tensor as rows of classes."""
    return x if b.rank(x) == 2 and b.shape(x)[1] == classes else b.reshape(x, [-1, classes])


def kullback_leibler(
    b: Backward, output: str, target: str, labels: str = "", *, probabilities: bool = False, temperature: float = 1.0
) -> str:
    """Mean over rows (samples, or tokens) of sum p (log p - log q), in nats; target: log p, of as many elements as the
    output; labels: int64, one for each row, of which those whose label is IGNORED do not count, "" where all count;
    probabilities: as of `log_probabilities`.

    temperature: T that the scores are divided by; the loss is times T^2, so that its gradients stay about as large
    (Hinton et al. 2015). Improbable classes then say more of what the original knows.
    """
    q = log_probabilities(b, output, probabilities=probabilities)
    p = rows_of(b, target, _classes(b, output)[0])
    if temperature != 1:
        p, q = (b.op("LogSoftmax", b.scale(x, 1 / temperature), axis=-1) for x in (p, q))
    parts = b.op("Mul", b.op("Exp", p), b.op("Sub", p, q))
    mean = mean_of_counted(b, b.sum(parts, [1]), labels) if labels else mean_over_rows(b, parts)
    return b.scale(mean, temperature**2)


def cross_entropy(b: Backward, output: str, target: str, *, probabilities: bool = False) -> str:
    """Mean over rows (samples, or tokens) of -log q of the label, in nats; target: int64, one for each row; of rows
    whose label is IGNORED there is nothing to lose, and they do not count."""
    return mean_of_counted(b, label_losses(b, output, target, probabilities=probabilities), target)


def mixed_entropy(
    b: Backward, output: str, target: str, other: str, share: str, *, probabilities: bool = False
) -> str:  # fmt: skip
    """Mean over samples of the cross entropy where each is of a share of one label and for the rest of another (Zhang
    et al. 2018). share: `(n,)` of the type of the output."""
    a, c = (label_losses(b, output, labels, probabilities=probabilities) for labels in (target, other))
    each = b.op("Add", c, b.op("Mul", share, b.op("Sub", a, c)))
    return b.reduce("ReduceMean", each, [0])


def label_losses(b: Backward, output: str, target: str, *, probabilities: bool = False) -> str:
    """-log q of the label of every row, `(rows,)`, 0 where it is none of the classes."""
    q = log_probabilities(b, output, probabilities=probabilities)
    every = b.op("Range", b.constant(0), b.squeeze(b.size(q, [1]), [0]), b.constant(1))
    one = b.op("Equal", b.reshape(target, [-1, 1]), every)
    return b.sum(b.where(one, b.op("Neg", q), b.constant(0, like=q)), [1])


def squared_error(b: Backward, output: str, target: str, variance: float = 1.0) -> str:
    """Mean of (y - t)^2 over the variance of the target."""
    d = b.op("Sub", output, target)
    return b.scale(b.reduce("ReduceMean", b.op("Mul", d, d), range(b.rank(d))), 1 / variance)


def absolute_error(b: Backward, output: str, target: str, variance: float = 1.0) -> str:
    """Mean of |y - t| over the square root of the variance of the target."""
    d = b.op("Abs", b.op("Sub", output, target))
    return b.scale(b.reduce("ReduceMean", d, range(b.rank(d))), variance**-0.5)


def mean_of_counted(b: Backward, each: str, labels: str) -> str:
    """The mean of what rows lose, `(rows,)`, over those whose label is not IGNORED; 0 where there is none."""
    ignored = b.op("Equal", b.reshape(labels, [-1]), b.constant(np.full(1, IGNORED, np.int64)))
    counted = b.op("Sub", b.constant(1, like=each), b.op("Cast", ignored, to=b.code(each)))
    counts = b.op("Max", b.sum(counted, [0]), b.constant(1, like=each))
    return b.op("Div", b.sum(b.op("Mul", each, counted), [0]), counts)


def mean_over_rows(b: Backward, parts: str) -> str:
    """The sum over the last axis, and the mean over all others."""
    rank = b.rank(parts)
    summed = b.sum(parts, [rank - 1])
    return b.reduce("ReduceMean", summed, range(rank - 1))
