"""Losses as ONNX nodes: in go an output of the model and what it is compared with, out comes one number.

kullback_leibler   classifiers and token by token: targets are logarithms of probabilities
cross_entropy      labels, int64
squared_error      everything else, over the variance of the target
"""

from __future__ import annotations

from onnxprune.gradient.backward import Backward
from onnxprune.graph.links import made_at


def log_probabilities(b: Backward, output: str) -> str:
    """The logarithms of the probabilities that an output stands for, along its last axis: of scores, or of the
    probabilities that a Softmax made of them."""
    nodes = b.edit.graph.node
    at = made_at(nodes).get(output)
    if at is not None and nodes[at].op_type == "LogSoftmax":
        return output
    if at is not None and nodes[at].op_type == "Softmax":
        return b.op("LogSoftmax", nodes[at].input[0], axis=-1)
    return b.op("LogSoftmax", output, axis=-1)


def kullback_leibler(b: Backward, output: str, target: str) -> str:
    """Mean over samples (and tokens) of sum p (log p - log q), in nats; target: log p, of the shape of the output."""
    q = log_probabilities(b, output)
    parts = b.op("Mul", b.op("Exp", target), b.op("Sub", target, q))
    return mean_over_rows(b, parts)


def cross_entropy(b: Backward, output: str, target: str) -> str:
    """Mean over samples (and tokens) of -log q of the label, in nats; target: int64, as the output without its last
    axis."""
    q = log_probabilities(b, output)
    classes = b.size(q, [b.rank(q) - 1])
    every = b.op("Range", b.constant(0), b.squeeze(classes, [0]), b.constant(1))
    one = b.op("Equal", b.unsqueeze(target, [b.rank(q) - 1]), every)
    return mean_over_rows(b, b.where(one, b.op("Neg", q), b.constant(0, like=q)))


def squared_error(b: Backward, output: str, target: str, variance: float = 1.0) -> str:
    """Mean of (y - t)^2 over the variance of the target."""
    d = b.op("Sub", output, target)
    return b.scale(b.reduce("ReduceMean", b.op("Mul", d, d), range(b.rank(d))), 1 / variance)


def mean_over_rows(b: Backward, parts: str) -> str:
    """The sum over the last axis, and the mean over all others."""
    rank = b.rank(parts)
    summed = b.sum(parts, [rank - 1])
    return b.reduce("ReduceMean", summed, range(rank - 1))
