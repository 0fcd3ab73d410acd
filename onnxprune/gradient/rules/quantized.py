"""Quantizers, straight through: rounding counts as nothing, clipping as it is. The gradient of integers that a
QuantizeLinear made is that of what they stand for, times the scale."""

from __future__ import annotations

from onnx import TensorProto

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.registry import Gradients, NoRule, gradient, no_gradient
from onnxprune.graph.node import Node

_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127), TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767), TensorProto.UINT4: (0, 15), TensorProto.INT4: (-8, 7),
}  # fmt: skip


def _along(b: Backward, n: Node, x: str, value: str) -> str:
    """A scale or zero point in a shape that broadcasts against `x`, whose blocks are apart."""
    rank = b.rank(x)
    if n.attr("block_size", 0):
        return b.unsqueeze(value, [n.attr("axis", 1) % (rank - 1) + 1])
    axis = n.attr("axis", 1) % max(rank, 1)
    return value if b.rank(value) == 0 or rank == 0 else b.unsqueeze(value, [k for k in range(rank) if k != axis])


def _apart(b: Backward, n: Node, x: str) -> str:
    """What is quantized, or its gradient; where it is in blocks, they have an axis: `(..., blocks, size, ...)`."""
    block = n.attr("block_size", 0)
    if not block:
        return x
    sizes, axis = b.shape(n.input(0)), n.attr("axis", 1) % b.rank(n.input(0))
    known = [d for d in sizes if d is not None]
    if len(known) < len(sizes) or known[axis] % block:
        raise NoRule("blocks that are not full, or of an axis of unknown size")
    return b.reshape(x, [*known[:axis], known[axis] // block, block, *known[axis + 1 :]])


@gradient("DequantizeLinear", "com.microsoft::DequantizeLinear")
def dequantize(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy * scale to what was quantized, the sum of dy (x - zero point) to the scale"""
    assert dy[0]
    x, scale = _apart(b, n, n.input(0)), n.input(1)
    g, wide = Tensor(b, _apart(b, n, dy[0])), Tensor(b, _along(b, n, x, scale))
    out: Gradients = [None] * len(n.inputs)
    if b.needs(0):
        out[0] = b.reshape_like((g * wide.cast(g)).name, dy[0])
    if b.needs(1):
        q = Tensor(b, x).cast(wide)
        if n.input(2):
            q = q - Tensor(b, _along(b, n, x, n.input(2))).cast(wide)
        out[1] = b.reshape_like(b.unbroadcast((g.cast(wide) * q).name, wide.name), scale)
    return out


@gradient("QuantizeLinear", "com.microsoft::QuantizeLinear")
def quantize(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy / scale where nothing was clipped; to the scale, -dy x / scale^2"""
    assert dy[0]
    x, code = Tensor(b, _apart(b, n, n.input(0))), b.code(n.output(0))
    if code not in _RANGES:
        raise NoRule("its type")
    scale = Tensor(b, _along(b, n, x.name, n.input(1))).cast(x)
    low, high = _RANGES[code]
    q = x / scale
    place = q + Tensor(b, _along(b, n, x.name, n.input(2))).cast(x) if n.input(2) else q
    inside = (place > low - 0.5).op("And", place < high + 0.5)
    g = Tensor(b, _apart(b, n, dy[0])).cast(x)
    g = inside.where(g, 0, g) / scale
    out: Gradients = [b.reshape_like(g.name, n.input(0)) if b.needs(0) else None, None, None][: len(n.inputs)]
    if b.needs(1):
        part = b.unbroadcast((-(g * q)).name, scale.name)
        out[1] = b.reshape_like(b.op("Cast", part, to=b.code(n.input(1))), n.input(1))
    return out


no_gradient(
    "it computes with integers; quantize after training", "ConvInteger", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "DynamicQuantizeLinear",
    *(f"com.microsoft::{op}" for op in """QLinearAdd QLinearMul QLinearConv QLinearAveragePool QLinearGlobalAveragePool
      QLinearConcat QLinearLeakyRelu QLinearSigmoid QLinearSoftmax QLinearWhere QGemm QAttention
      QEmbedLayerNormalization MatMulIntegerToFloat DynamicQuantizeMatMul DynamicQuantizeLSTM NhwcMaxPool""".split()),
)  # fmt: skip
