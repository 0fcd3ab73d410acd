"""Softmax and its logarithm (one axis, as of opset 13)."""

from __future__ import annotations

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.registry import Gradients, gradient
from onnxprune.graph.node import Node


@gradient("Softmax")
def softmax(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """y (dy - sum(dy * y))"""
    assert dy[0]
    g, y = dy[0], n.output(0)
    mean = b.sum(b.op("Mul", g, y), [n.attr("axis", -1)], keepdims=True)
    return [b.op("Mul", y, b.op("Sub", g, mean))]


@gradient("LogSoftmax")
def log_softmax(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy - softmax(x) * sum(dy)"""
    assert dy[0]
    total = b.sum(dy[0], [n.attr("axis", -1)], keepdims=True)
    return [b.op("Sub", dy[0], b.op("Mul", b.op("Exp", n.output(0)), total))]
