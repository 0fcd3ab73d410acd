"""Layers of quantized models: products between DequantizeLinear and QuantizeLinear, which an operator of ours on
integers takes whole (docs/sparse-format.md).

In goes a layer whose weight is int8; out comes what it reads and writes in integers, or why it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.formats.format import no_operator
from onnxprune.graph.arrays import Array
from onnxprune.graph.node import Node
from onnxprune.kernels.names import RESULTS
from onnxprune.layers.layer import Layer

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PRODUCTS = ("MatMul", "Gemm")
ACTIVATIONS = tuple(dtype for dtype in RESULTS.values() if dtype.kind in "iu")
EXACT = 1e-5  # by which the scale of a bias may differ from the product of those that it stands for
FOURS = 4  # columns of a tile are multiples of it


@dataclass(frozen=True, eq=False)
class Grid:
    """How a tensor is quantized: scale float32 `()`, zero point uint8 or int8 `()`; names: of the constants."""

    scale: Array
    zero: Array
    names: tuple[str, str]


@dataclass(frozen=True, eq=False)
class Integers:
    """A product in integers. x: the tensor that it reads, on grid; scale: float32 `(M,)`, of the weight; bias: int32
    `(M,)`, in steps of alpha times both scales."""

    x: str
    grid: Grid
    scale: Array
    bias: Array
    alpha: float


def is_quantized(layer: Layer) -> bool:
    """Whether a layer's weight are integers that DequantizeLinear reads."""
    stored = layer.stored
    return stored is not None and [step.op for step in stored.steps] == [DEQUANTIZE]


def no_int8_operator(layer: Layer) -> str:
    """Why no operator of ours, on floats or on integers, stands for a layer; "" where one does."""
    if not is_quantized(layer) or layer.inside or layer.turned:
        return no_operator(layer)
    stored = layer.stored
    assert stored is not None
    zero = stored.steps[0].zero
    if layer.op not in PRODUCTS or layer.left or len(layer.array_shape) != 2:
        return f"no sparse operator on integers stands for {layer.op}{' with the weight on the left' * layer.left}"
    if stored.held != np.int8 or (zero is not None and zero.any()):
        return f"its weight is {stored.held}{' with a zero point' * (stored.held == np.int8)}, not int8 around 0"
    if stored.dtype != np.float32 or scale_of(layer) is None:
        return "its weight has no scale float32 for all, or for every output"
    return ""


def scale_of(layer: Layer) -> Array | None:
    """The scale of every output, float32 `(M,)`; None where it differs along the reduction."""
    assert layer.stored is not None
    scale = layer.stored.steps[0].scale
    rows = layer.matrix(np.broadcast_to(np.float32(1) if scale is None else scale, layer.array_shape))
    return np.ascontiguousarray(rows[:, 0]) if (rows == rows[:, :1]).all() else None


Find = Callable[[str], Any]  # by the name of a tensor


def integers_of(layer: Layer, node: Node, maker: Find, constant: Find) -> Integers | str:
    """What a layer computes in integers, or why it does not. maker: tensor -> the node that makes it, None for none;
    constant: tensor -> its array, None where it is not constant."""
    if node.attr("transA", 0):
        return "its input is transposed"
    source = maker(node.input(0))
    if source is None or source.op != DEQUANTIZE:
        return "its input is not quantized"
    grid = grid_of(source, constant)
    if grid is None:
        return "its input has no scale and zero point of uint8 or int8 for all"
    scale, alpha = scale_of(layer), float(node.attr("alpha", 1.0))
    assert scale is not None
    bias = _bias(node, maker, constant, np.float32(alpha) * grid.scale * scale)
    if bias is None:
        return "its bias is not int32 in steps of the scales of input and weight"
    return Integers(source.input(0), grid, scale, bias, alpha)


def grid_of(node: Node, constant: Find) -> Grid | None:
    """How a QuantizeLinear or DequantizeLinear reads or writes a tensor of uint8 or int8; None for any other way."""
    scale, zero = constant(node.input(1)), constant(node.input(2)) if node.input(2) else None
    if scale is None or zero is None or scale.dtype != np.float32 or zero.dtype not in ACTIVATIONS:
        return None
    if scale.size != 1 or zero.size != 1 or not (np.isfinite(scale).all() and (scale > 0).all()):
        return None
    return Grid(scale.reshape(()), zero.reshape(()), (node.input(1), node.input(2)))


def _bias(node: Node, maker: Find, constant: Find, steps: Array) -> Array | None:
    """Gemm's C as int32 in these steps `(M,)`; None where it is none."""
    beta = float(node.attr("beta", 1.0))
    if not node.input(2) or beta == 0:
        return np.zeros(steps.shape, np.int32)
    made = maker(node.input(2))
    if made is None or made.op != DEQUANTIZE:
        return None
    bias, scale = constant(made.input(0)), constant(made.input(1))
    zero = constant(made.input(2)) if made.input(2) else None
    if bias is None or scale is None or bias.dtype != np.int32 or bias.shape != steps.shape:
        return None
    if scale.size not in (1, steps.size) or (made.input(2) and (zero is None or zero.any())):
        return None
    return bias if np.allclose(beta * scale.reshape(-1), steps, rtol=EXACT, atol=0) else None
