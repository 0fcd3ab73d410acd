"""Normalisations."""

from __future__ import annotations

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.registry import Gradients, NoRule, gradient
from onnxprune.graph.node import Node


@gradient("BatchNormalization")
def batch_normalization(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """by stored statistics, y = (x - mean) r scale + shift, r = 1 / sqrt(variance + epsilon), per channel"""
    assert dy[0]
    if n.attr("training_mode", 0):
        raise NoRule("training_mode")
    g, (x, scale, _, mean, variance) = dy[0], n.inputs
    rank = b.rank(x)
    others, spatial = [0, *range(2, rank)], list(range(1, rank - 1))
    epsilon = b.constant(n.attr("epsilon", 1e-5), like=variance)
    r = b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, epsilon)))
    factor = b.op("Mul", scale, r)
    out: Gradients = [None] * 5
    if b.needs(0):
        out[0] = b.op("Mul", g, b.unsqueeze(factor, spatial))
    if b.needs(1) or b.needs(4):
        moved = b.op("Sub", x, b.unsqueeze(mean, spatial))
        out[1] = by_scale = b.op("Mul", b.sum(b.op("Mul", g, moved), others), r)
        if b.needs(4):  # dr / dvariance = -r^3 / 2
            out[4] = b.scale(b.op("Mul", b.op("Mul", by_scale, factor), r), -0.5)
    if b.needs(2) or b.needs(3):
        out[2] = shift = b.sum(g, others)
        if b.needs(3):
            out[3] = b.op("Neg", b.op("Mul", shift, factor))
    return out
