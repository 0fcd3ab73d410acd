"""QuantizeLinear, DequantizeLinear and relatives: scales and zero points follow their axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph.node import Node
from onnxprune.graph.quantized import block_zeros, packed
from onnxprune.structure.coupling import Axis, Coupling
from onnxprune.structure.rules.elementwise import broadcast_together
from onnxprune.structure.rules.layout import couple_concat
from onnxprune.structure.rules.registry import rule

if TYPE_CHECKING:
    from onnxprune.structure.surgeon import Surgeon


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


def tie_blocks(c: Coupling, ids: Axis, blocks: Axis, size: int) -> None:
    """The `ids` that are quantized in one block of `size` live or die together; the last block may be shorter."""
    if blocks is None:
        c.pin(ids, "all of it is quantized in one block")
    elif ids is not None and -(-ids.size // size) == blocks.size:
        c.tie(ids, blocks[np.arange(ids.size) // size])
    else:
        for axis in (ids, blocks):
            c.pin(axis, "blocks of the quantization that do not divide the axis")


def resize_nbits(s: Surgeon, n: Node) -> None:
    """`N` and `K` follow, and what is stored in one axis for outputs and blocks, or several in a byte."""
    b = s.coupling.axes(n.input(1))
    bits, (outputs, count, _) = int(n.attr("bits", 4)), s.coupling.shapes.shapes[n.input(1)]
    s.set_attr(n, "N", s.count(b[0]))
    s.set_attr(n, "K", s.new_size(n.input(0), -1))
    assert outputs is not None and count is not None
    kept = np.ix_(*(np.ones(1, bool) if ids is None else s.keep(ids) for ids in b[:2]))
    for slot in (2, 3):
        name = n.input(slot)
        if name not in s.coupling.model.weights or s.coupling.shape(name) == (outputs, count):
            continue  # computed ones are tied, or pin what they cannot follow
        old = np.asarray(s.coupling.model.weights[name])
        value = block_zeros(old, bits, outputs, count)[kept]
        if slot == 3 and old.dtype == np.uint8:
            value = packed(value, bits)
        s.set_input(n, slot, value.reshape(-1) if old.ndim == 1 else value)


@rule("com.microsoft::MatMulNBits", resize=resize_nbits)
def matmul_nbits(c: Coupling, n: Node) -> None:
    """weight (outputs, blocks, bytes): outputs one by one, inputs in whole blocks, with their scales and zero points"""
    x, b, y = c.axes(n.input(0)), c.axes(n.input(1)), c.axes(n.output(0))
    shape, bits, size = c.shape(n.input(1)) or (), int(n.attr("bits", 4)), int(n.attr("block_size", 0))
    c.produce(n, n.input(1), 0)
    if bits not in (2, 4, 8) or n.attr("weight_prepacked", 0):
        c.pin_all(n, f"weights of {bits} bits" if bits not in (2, 4, 8) else "weights in the order of one device")
        return
    if len(shape) != 3 or shape[:1] != (n.attr("N"),) or shape[2] != size * bits // 8 or not x or len(x) != len(y):
        c.pin_all(n, "a weight whose shape is not what N, K, bits and block_size say")
        return
    for p, q in zip(x[:-1], y[:-1], strict=True):
        if p is not None:
            c.tie(p, q)
    for slot in (2, 3):
        name = n.input(slot)
        if not name:
            continue
        stored = c.shape(name) or ()
        if len(stored) == 2 and b[0] is not None:
            c.tie(b[0], c.axes(name)[0])
        if stored == shape[:2]:
            if b[1] is not None:
                c.tie(b[1], c.axes(name)[1])
        elif name not in c.model.weights:
            what = "scales" if slot == 2 else "zero points"
            for ids in b[:2] if len(stored) == 1 else b[1:2]:
                c.pin(ids, f"{what} that are computed and do not lie by output and block")
    if b[0] is not None:
        c.tie(b[0], y[-1])
    if n.input(5):
        c.tie(c.axes(n.input(5))[0], b[0])
    if n.input(4):
        c.pin(x[-1], "inputs that are assigned to blocks by g_idx")
    tie_blocks(c, x[-1], b[1], size)
    c.pin(b[2], "inside of a block")
    c.consume(n, 0, len(x) - 1)
