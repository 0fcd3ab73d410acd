"""QuantizeLinear, DequantizeLinear and relatives: scales and zero points follow their axis."""

from __future__ import annotations

from onnxprune.graph.node import Node
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.rules.elementwise import broadcast_together
from onnxprune.structure.rules.layout import couple_concat
from onnxprune.structure.rules.registry import rule


@rule("QuantizeLinear", "DequantizeLinear", "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear")
def quantize(c: Coupling, n: Node) -> None:
    """per tensor, per axis (scale and zero point follow the axis) or blocked (the blocked axis is pinned)"""
    broadcast_together(c, [n.input(0)], [n.output(0)])
    x = c.axes(n.input(0))
    axis = n.attr("axis", 1)
    for i in (1, 2):
        if not n.input(i):
            continue
        scale = c.axes(n.input(i))
        if len(scale) == 1 and scale[0] is not None:
            c.tie(scale[0], x[axis])
        elif len(scale) == len(x) and len(x) > 1:
            for k, (p, q) in enumerate(zip(scale, x, strict=True)):
                if k == axis % len(x):
                    c.pin(p, "a blocked quantisation axis")
                    c.pin(q, "a blocked quantisation axis")
                elif p is not None:
                    c.tie(p, q)


@rule("DynamicQuantizeLinear")
def dynamic_quantize(c: Coupling, n: Node) -> None:
    """the range includes zero, so what is removed enters as zero"""
    broadcast_together(c, [n.input(0)], [n.output(0)])
    for k, ids in enumerate(c.axes(n.input(0))):
        if ids is not None:
            c.consume(n, 0, k)


@rule("com.microsoft::QLinearAdd", "com.microsoft::QLinearMul")
def qlinear_binary(c: Coupling, n: Node) -> None:
    """inputs 0 and 3 are aligned from the right; scales are scalars"""
    broadcast_together(c, [n.input(0), n.input(3)], [n.output(0)])


@rule("com.microsoft::QLinearSigmoid", "com.microsoft::QLinearLeakyRelu")
def qlinear_unary(c: Coupling, n: Node) -> None:
    """every axis of the first input is tied to the output's"""
    broadcast_together(c, [n.input(0)], [n.output(0)])


@rule("com.microsoft::QLinearGlobalAveragePool", "com.microsoft::QLinearAveragePool")
def qlinear_pool(c: Coupling, n: Node) -> None:
    """batch and channels are tied (also channels last), spatial axes pinned"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    channel = len(x) - 1 if n.attr("channels_last", 0) else 1
    for k, (p, q) in enumerate(zip(x, y, strict=False)):
        if k in (0, channel):
            c.tie(p, q)
        else:
            c.pin(p, "a spatial axis of a pooling")
            c.pin(q, "a spatial axis of a pooling")


@rule("com.microsoft::QLinearConcat")
def qlinear_concat(c: Coupling, n: Node) -> None:
    """as Concat over inputs 2, 5, 8, ..."""
    couple_concat(c, n.inputs[2::3], n.output(0), n.attr("axis", 0))
