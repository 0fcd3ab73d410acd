"""Normalisations: by stored statistics, and by those of the values themselves."""

from __future__ import annotations

import numpy as np

from onnxprune.gradient import kernels
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.registry import Gradients, NoRule, gradient
from onnxprune.gradient.through import decomposed
from onnxprune.graph.node import Node


@gradient("BatchNormalization")
def batch_normalization(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """by stored statistics, y = (x - mean) r scale + shift, r = 1 / sqrt(variance + epsilon), or by the batch's"""
    if n.attr("training_mode", 0):
        return _by_batch(b, n, dy)
    assert dy[0]
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


def _by_batch(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """The statistics of the batch are differentiated through; the running ones are outputs beside it."""
    if any(dy[1:]):
        raise NoRule("gradients of running statistics")
    assert dy[0]
    rank = b.rank(n.input(0))
    spatial = list(range(1, rank - 1))
    x, scale = Tensor(b, n.input(0)), Tensor(b, b.unsqueeze(n.input(1), spatial))
    others = [0, *range(2, rank)]
    epsilon = n.attr("epsilon", 1e-5)
    parts = _of_statistics(Tensor(b, dy[0]), x, scale, others, others, epsilon)
    out = [b.reshape_like(g, name) for g, name in zip(parts, n.inputs, strict=False)]
    kernels.batch_norm(b, out, n.input(0), dy[0], n.input(1), epsilon)
    return [*out, None, None]


def _standard(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor]:
    """x less its mean over axes, over its deviation; and one over the deviation."""
    moved = x - x.mean(axes)
    r = 1 / ((moved * moved).mean(axes) + epsilon).op("Sqrt")
    return moved * r, r


def _of_statistics(g: Tensor, x: Tensor, scale: Tensor, axes: list[int], per: list[int], epsilon: float) -> list[str]:
    """Gradients of x, scale and shift of `standard(x) scale + shift`. per: axes over which scale and shift are the
    same; the sums keep them."""
    z, r = _standard(x, axes, epsilon)
    h = g * scale
    dx = r * (h - h.mean(axes) - z * (h * z).mean(axes))
    return [dx.name, (g * z).sum(per).name, g.sum(per).name]


@gradient("LayerNormalization")
def layer_normalization(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """r (h - mean(h) - z mean(h z)), h = dy * scale, z = (x - mean) r; to scale and bias the sums of dy z and dy"""
    rank = b.rank(n.input(0))
    axes = list(range(n.attr("axis", -1) % rank, rank))
    x, scale = Tensor(b, n.input(0)), Tensor(b, n.input(1))
    z, r = _standard(x, axes, n.attr("epsilon", 1e-5))
    out: Gradients = [None] * len(n.inputs)
    parts = []
    if dy[0]:
        g = Tensor(b, dy[0])
        h = g * scale
        parts.append(r * (h - h.mean(axes) - z * (h * z).mean(axes)))
        out[1] = b.unbroadcast((g * z).name, n.input(1)) if b.needs(1) else None
        if len(n.inputs) > 2 and b.needs(2):
            out[2] = b.unbroadcast(dy[0], n.input(2))
    count = Tensor(b, b.op("Cast", b.op("ReduceProd", b.size(x.name, axes), keepdims=0), to=b.code(x.name)))
    if len(dy) > 1 and dy[1]:
        parts.append(Tensor(b, b.expand_like((Tensor(b, dy[1]).cast(x) / count).name, x.name)))
    if len(dy) > 2 and dy[2]:  # dr / dx = -r^2 z / count
        parts.append(-(Tensor(b, dy[2]).cast(x) * r * r * z / count))
    out[0] = b.add([p.name for p in parts])
    return out


@gradient("RMSNormalization")
def rms_normalization(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """r (h - z mean(h z)), h = dy * scale, z = x r, r = 1 / sqrt(mean(x^2) + epsilon); to scale the sum of dy z"""
    assert dy[0]
    rank = b.rank(n.input(0))
    axes = list(range(n.attr("axis", -1) % rank, rank))
    return root_mean_square(b, dy[0], n.input(0), n.input(1), axes, n.attr("epsilon", 1e-5))


def root_mean_square(b: Backward, dy: str, x_: str, scale: str, axes: list[int], epsilon: float) -> Gradients:
    """Gradients of x and scale of a normalisation by the root of the mean of the squares."""
    g, x = Tensor(b, dy), Tensor(b, x_)
    r = 1 / ((x * x).mean(axes) + epsilon).op("Sqrt")
    z, h = x * r, g * Tensor(b, scale)
    dx = r * (h - z * (h * z).mean(axes))
    return [dx.name, b.unbroadcast((g * z).name, scale) if b.needs(1) else None]


@gradient("InstanceNormalization")
def instance_normalization(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """as LayerNormalization, over the places of a channel"""
    assert dy[0]
    rank = b.rank(n.input(0))
    axes, scale = list(range(2, rank)), Tensor(b, b.unsqueeze(n.input(1), range(1, rank - 1)))
    out = _of_statistics(Tensor(b, dy[0]), Tensor(b, n.input(0)), scale, axes, [0, *axes], n.attr("epsilon", 1e-5))
    return [b.reshape_like(g, name) for g, name in zip(out, n.inputs, strict=True)]


@decomposed("GroupNormalization")
def group_normalization(b: Backward, n: Node) -> list[str]:
    """as InstanceNormalization, over the channels of a group and their places"""
    x, scale, shift = n.inputs
    groups, channels, rank = int(n.attr("num_groups")), b.shape(x)[1], b.rank(x)
    if channels is None:
        raise NoRule("the number of its channels is not known")
    ones = [b.constant(np.full(groups, v), like=x) for v in (1, 0)]
    rows = b.op("Reshape", x, b.constant([0, groups, -1]))
    z = b.op("InstanceNormalization", rows, *ones, epsilon=n.attr("epsilon", 1e-5))
    if b.opset < 21:  # one scale per group
        repeat = b.constant(np.arange(channels) // (channels // groups))
        scale, shift = (b.op("Gather", v, repeat) for v in (scale, shift))
    scale, shift = (b.unsqueeze(v, range(1, rank - 1)) for v in (scale, shift))
    return [b.op("Add", b.op("Mul", b.reshape_like(z, x), scale), shift)]


@decomposed("LRN")
def lrn(b: Backward, n: Node) -> list[str]:
    """through x / (bias + alpha / size * sum of squares over neighbouring channels)^beta"""
    x, size = Tensor(b, n.input(0)), int(n.attr("size"))
    rows = Tensor(b, b.unsqueeze((x * x).name, [1]))  # channels become the first axis of a pool
    head, more = (size - 1) // 2, [0] * (b.rank(x.name) - 2)
    pads = [head, *more, size - 1 - head, *more]
    pooled = rows.op("AveragePool", kernel_shape=[size, *(1 for _ in more)], pads=pads, count_include_pad=1)
    mean = Tensor(b, b.squeeze(pooled.name, [1]))
    return [(x / (mean * n.attr("alpha", 1e-4) + n.attr("bias", 1.0)) ** n.attr("beta", 0.75)).name]


@decomposed("LpNormalization")
def lp_normalization(b: Backward, n: Node) -> list[str]:
    """through x over its norm"""
    x = n.input(0)
    return [b.op("Div", x, b.reduce(f"ReduceL{n.attr('p', 2)}", x, [n.attr("axis", -1)], keepdims=True))]


@decomposed("MeanVarianceNormalization")
def mean_variance_normalization(b: Backward, n: Node) -> list[str]:
    """through (x - mean) over its deviation"""
    x, axes = Tensor(b, n.input(0)), n.attr("axes", [0, 2, 3])
    moved = x - x.mean(axes)
    return [(moved / ((moved * moved).mean(axes).op("Sqrt") + 1e-9)).name]
