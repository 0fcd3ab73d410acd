"""QuantizeLinear, DequantizeLinear and relatives: scales and zero points follow their axis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from onnxprune.graph.arrays import Ids
from onnxprune.graph.node import Node
from onnxprune.graph.quantized import block_zeros, packed, unpacked
from onnxprune.structure.claims import Axis
from onnxprune.structure.coupling import Coupling
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


LEAST = 16  # inputs of a block of MatMulNBits
FEW = 4  # blocks; of fewer, parts of LEAST inputs go, and what is left is blocked anew


def in_parts(c: Coupling, n: Node) -> bool:
    """Whether parts of blocks can go: where blocks are few and all that a new blocking changes is stored."""
    stored = all(i in c.model.weights for i in n.inputs[1:4] if i)
    few = n.attr("K") > LEAST and n.attr("block_size") > LEAST and -(-n.attr("K") // n.attr("block_size")) < FEW
    return bool(stored and few and not n.input(4))


def resize_nbits(s: Surgeon, n: Node) -> None:
    """`N`, `K` and `block_size` follow, and what is stored in one axis for outputs and blocks, or several in a byte."""
    c = s.coupling
    x, b = c.axes(n.input(0))[-1], c.axes(n.input(1))
    if not s.shrinks(n.input(0), -1) and not s.shrinks(n.input(1), 0):
        return
    bits, size = int(n.attr("bits", 4)), int(n.attr("block_size"))
    outputs, count = int(n.attr("N")), -(-int(n.attr("K")) // size)
    rows = np.ones(1, bool) if b[0] is None else s.keep(b[0])
    old = np.arange(int(n.attr("K"))) // size  # block of every input
    kept = np.ones(len(old), bool) if x is None else s.keep(x)
    left, parts = old[kept], in_parts(c, n)
    if parts and not kept.all():
        size = new_size(left, size)
        stored = unpacked(np.asarray(c.model.weights[n.input(1)]), bits).reshape(outputs, -1)[rows, : len(old)]
        filled = np.pad(stored[:, kept], [(0, 0), (0, -len(left) % size)])
        s.set_input(n, 1, packed(filled, bits).reshape(len(filled), -1, size * bits // 8))
    s.set_attr(n, "N", int(rows.sum()))
    s.set_attr(n, "K", len(left))
    s.set_attr(n, "block_size", size)
    for slot in (2, 3):
        name = n.input(slot)
        if name not in c.model.weights or (c.shape(name) == (outputs, count) and not parts):
            continue  # computed ones are tied, or pin what they cannot follow
        step = np.asarray(c.model.weights[name])
        value = block_zeros(step, bits, outputs, count)[rows][:, left[::size]]
        if slot == 3 and step.dtype == np.uint8:
            value = packed(value, bits)
        s.set_input(n, slot, value.reshape(-1) if step.ndim == 1 else value)


def new_size(blocks: Ids, size: int) -> int:
    """The largest power of two, at most `size`, in runs of which the inputs are of one block each; the last is shorter.

    blocks: of every input.
    """
    while size > LEAST and (
        size >= 2 * len(blocks) or (blocks != np.repeat(blocks[::size], size)[: len(blocks)]).any()
    ):
        size //= 2
    return size


@rule("com.microsoft::MatMulNBits", resize=resize_nbits)
def matmul_nbits(c: Coupling, n: Node) -> None:
    """weight (outputs, blocks, bytes): outputs one by one, inputs in whole blocks, with their scales and zero points"""
    x, b, y = c.axes(n.input(0)), c.axes(n.input(1)), c.axes(n.output(0))
    c.produce(n, n.input(1), 0)
    problem = misfit(c, n)
    if problem:
        c.pin_all(n, problem)
        return
    for p, q in zip(x[:-1], y[:-1], strict=True):
        if p is not None:
            c.tie(p, q)
    if b[0] is not None:
        c.tie(b[0], y[-1])
    if n.input(5):
        c.tie(c.axes(n.input(5))[0], b[0])
    c.consume(n, 0, len(x) - 1)
    parts, ids = in_parts(c, n), x[-1]
    for slot, what in ((2, "scales"), (3, "zero points")):
        name = n.input(slot)
        axes = c.axes(name) if name else []
        if len(axes) == 2 and b[0] is not None:
            c.tie(b[0], axes[0])
        if len(axes) == 2 and c.shape(name) == (c.shape(n.input(1)) or ())[:2]:
            if b[1] is not None and not parts:
                c.tie(b[1], axes[1])
        elif name and name not in c.model.weights:
            for other in b[:2] if len(axes) == 1 else b[1:2]:
                c.pin(other, f"{what} that are not constant and do not lie by output and block")
    if n.input(4):
        c.pin(ids, "inputs that are assigned to blocks by g_idx")
    if parts and ids is not None:
        c.tie(ids, ids[np.arange(ids.size) // LEAST * LEAST])
    else:
        tie_blocks(c, ids, b[1], int(n.attr("block_size")))
    c.pin(b[2], "inside of a block")


def misfit(c: Coupling, n: Node) -> str:
    """Why a MatMulNBits cannot shrink at all, "" where it can."""
    bits, size, outputs, inputs = (int(n.attr(a, 0)) for a in ("bits", "block_size", "N", "K"))
    bits, blocks = bits or 4, -(-inputs // max(size, 1))
    if bits not in (2, 4, 8):
        return f"weights of {bits} bits"
    if n.attr("weight_prepacked", 0):
        return "weights in the order of one device"
    shape, x = c.shape(n.input(1)), c.shape(n.input(0)) or (0,)
    if shape != (outputs, blocks, size * bits // 8) or x[-1] != inputs:
        return "a weight whose shape is not what N, K, bits and block_size say"
    for slot, what in ((2, "scales"), (3, "zero points")):
        count = math.prod(d or 0 for d in c.shape(n.input(slot)) or ()) if n.input(slot) else outputs * blocks
        if count not in (outputs * blocks, outputs * -(-blocks * bits // 8)):
            return f"{what} that are not as many as outputs times blocks"
    return ""


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
