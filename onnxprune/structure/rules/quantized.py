"""QuantizeLinear, DequantizeLinear and relatives: scales and zero points follow their axis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from onnxprune.graph.node import Node
from onnxprune.graph.quantized import block_zeros, packed, unpacked
from onnxprune.structure.coupling import Axis, Coupling
from onnxprune.structure.rules.elementwise import broadcast_together
from onnxprune.structure.rules.layout import couple_concat
from onnxprune.structure.rules.reduction import along
from onnxprune.structure.rules.registry import barrier, rule

if TYPE_CHECKING:
    from onnxprune.structure.surgeon import Surgeon


def tie_blocks(c: Coupling, ids: Axis, blocks: Axis, size: int) -> None:
    """The `ids` that are quantized in one block of `size` live or die together; the last block may be shorter."""
    if blocks is None:
        c.pin(ids, "all of it is quantized in one block")
    elif ids is not None and -(-ids.size // size) == blocks.size:
        c.tie(ids, blocks[np.arange(ids.size) // size])
    else:
        for axis in (ids, blocks):
            c.pin(axis, "blocks of the quantization that do not divide the axis")


@rule("QuantizeLinear", "DequantizeLinear", "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear")
def quantize(c: Coupling, n: Node) -> None:
    """per tensor, per axis (scale and zero point follow the axis) or in blocks, which go whole"""
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
                    tie_blocks(c, q, p, int(n.attr("block_size", 0)) or (q.size if q is not None else 1))
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


@rule("com.microsoft::QLinearWhere")
def qlinear_where(c: Coupling, n: Node) -> None:
    """inputs 0, 1 and 4 are aligned from the right; scales are scalars"""
    broadcast_together(c, [n.input(i) for i in (0, 1, 4)], [n.output(0)])


@rule("com.microsoft::QLinearSoftmax")
def qlinear_softmax(c: Coupling, n: Node) -> None:
    """the axis is mixed and pinned (of `opset` 12 and older: it and all that follow)"""
    rank, old = len(c.axes(n.input(0))), int(n.attr("opset", 13)) < 13
    axis = n.attr("axis", 1 if old else -1) % max(rank, 1)
    along(c, n, list(range(axis, rank)) if old else [axis], "mixed by QLinearSoftmax")


@rule("com.microsoft::QLinearGlobalAveragePool", "com.microsoft::QLinearAveragePool", "com.microsoft::NhwcMaxPool")
def qlinear_pool(c: Coupling, n: Node) -> None:
    """batch and channels are tied (also channels last), spatial axes pinned"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    channel = len(x) - 1 if n.attr("channels_last", n.op.endswith("::NhwcMaxPool")) else 1
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


def resize_nbits(s: Surgeon, n: Node) -> None:
    """`N` and `K` follow, and what is stored in one axis for outputs and blocks, or several in a byte."""
    b = s.coupling.axes(n.input(1))
    if not any(s.shrinks(n.input(1), k) for k in range(len(b))):
        return
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
    blocks = -(-int(n.attr("K", 0)) // max(size, 1))
    outputs = int(n.attr("N", 0))
    expected = (outputs, blocks, size * bits // 8)
    if len(shape) != 3 or shape != expected or (c.shape(n.input(0)) or (0,))[-1] != n.attr("K") or len(x) != len(y):
        c.pin_all(n, "a weight whose shape is not what N, K, bits and block_size say")
        return
    for p, q in zip(x[:-1], y[:-1], strict=True):
        if p is not None:
            c.tie(p, q)
    for slot in (2, 3):
        name = n.input(slot)
        if not name:
            continue
        what, stored = "scales" if slot == 2 else "zero points", c.shape(name) or ()
        if math.prod(d or 0 for d in stored) not in (outputs * blocks, outputs * -(-blocks * bits // 8)):
            c.pin_all(n, f"{what} that are not as many as outputs times blocks")
            return
        if len(stored) == 2 and b[0] is not None:
            c.tie(b[0], c.axes(name)[0])
        if stored == shape[:2]:
            if b[1] is not None:
                c.tie(b[1], c.axes(name)[1])
        elif name not in c.model.weights:
            for ids in b[:2] if len(stored) == 1 else b[1:2]:
                c.pin(ids, f"{what} that are not constant and do not lie by output and block")
    if b[0] is not None:
        c.tie(b[0], y[-1])
    if n.input(5):
        c.tie(c.axes(n.input(5))[0], b[0])
    if n.input(4):
        c.pin(x[-1], "inputs that are assigned to blocks by g_idx")
    tie_blocks(c, x[-1], b[1], size)
    c.pin(b[2], "inside of a block")
    c.consume(n, 0, len(x) - 1)


def resize_table(s: Surgeon, n: Node) -> None:
    """Zero points that share bytes are packed anew."""
    name, bits = n.input(3), int(n.attr("bits", 4))
    if packs(s.coupling, n) and name in s.coupling.model.weights and s.shrinks(n.input(2), -1):
        blocks = s.coupling.axes(n.input(2))[-1]
        old = np.asarray(s.coupling.model.weights[name])
        values = unpacked(old, bits).reshape(len(old), -1)
        assert blocks is not None
        s.set_input(n, 3, packed(values[:, : blocks.size][:, s.keep(blocks)], bits))


def packs(c: Coupling, n: Node) -> bool:
    """Whether a byte of GatherBlockQuantized's table holds several values."""
    return c.shapes.types.get(n.input(0)) == TensorProto.UINT8 and int(n.attr("bits", 4)) < 8


@rule("com.microsoft::GatherBlockQuantized", resize=resize_table)
def gather_blocks(c: Coupling, n: Node) -> None:
    """a table (rows, width) in blocks along the width, which go whole; the rows are pinned"""
    x, y, scale, zero = c.axes(n.input(0)), c.axes(n.output(0)), c.axes(n.input(2)), n.input(3)
    size = int(n.attr("block_size", 128))
    if len(x) != 2 or n.attr("gather_axis", 0) % 2 or n.attr("quantize_axis", 1) % 2 != 1 or not size or not y:
        c.pin_all(n, "a table that is not in blocks along its width")
        return
    for ids in (x[0], scale[0], *y[:-1], *c.axes(n.input(1))):
        c.pin(ids, "looked up with computed indices")
    c.produce(n, n.input(0), 1, table=True)
    if packs(c, n):
        tie_blocks(c, y[-1], x[1], 8 // int(n.attr("bits", 4)))
    else:
        c.tie(y[-1], x[1])
    tie_blocks(c, y[-1], scale[1], size)
    if zero and not packs(c, n):
        tie_blocks(c, y[-1], c.axes(zero)[1], size)
    elif zero and zero not in c.model.weights:
        c.pin(y[-1], "zero points that are not constant")


barrier("its blocks of values run through the whole weight", "com.microsoft::MatMulBnb4")
barrier("its weight is in the order of one machine", "com.microsoft::MatMulFpQ4")
