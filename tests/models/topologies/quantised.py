"""Quantised networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from models.builder import Array, Builder
from models.topologies.registry import image, topology

# Quantised networks


def scale_of(array: Array, axis: int | None = None) -> Array:
    """Symmetric int8 scales, over all of the array or per index of `axis`."""
    rest = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    return np.asarray(np.abs(array).max(rest) / 127.0).astype(np.float32)


def quantised(array: Array, scale: Array, axis: int | None = None) -> Array:
    shape = [-1 if i == axis else 1 for i in range(array.ndim)] if axis is not None else []
    return np.clip(np.rint(array / scale.reshape(shape)), -127, 127).astype(np.int8)


def qdq(b: Builder, x: str, scale: float = 0.05) -> str:
    """QuantizeLinear and DequantizeLinear on an activation: uint8, zero point 128."""
    pair = [b.param(np.array(scale, np.float32), "scale"), b.param(np.array(128, np.uint8), "zero_point")]
    return b.op("DequantizeLinear", b.op("QuantizeLinear", x, *pair), *pair)


def stored_int8(b: Builder, array: Array, axis: int | None) -> tuple[str, Array]:
    """An int8 weight behind DequantizeLinear, per channel when `axis` is given; also its scales."""
    scale = scale_of(array, axis)
    weight = b.param(quantised(array, scale, axis), "weight_int8")
    pair = [b.param(scale, "scale"), b.param(np.zeros(scale.shape, np.int8), "zero_point")]
    return b.op("DequantizeLinear", weight, *pair, axis=axis), scale


@topology("qdq_conv_per_channel", axis=0)
@topology("qdq_conv_per_tensor", axis=None)
def qdq_conv(*, axis: int | None) -> onnx.ModelProto:
    """Activations, int8 weights and int32 biases behind DequantizeLinear, residual add between quantised tensors."""
    b = Builder()

    def layer(x: str, width: int) -> str:
        weight, scale = stored_int8(b, b.he(width, b.channels(x), 3, 3), axis)
        bias_scale = (0.05 * scale).astype(np.float32)
        bias = b.param(np.rint(b.normal(width) / bias_scale).astype(np.int32), "bias_int32")
        zero = b.param(np.zeros(bias_scale.shape, np.int32), "zero_point")
        bias = b.op("DequantizeLinear", bias, b.param(bias_scale, "scale"), zero, axis=axis)
        return qdq(b, b.relu(b.conv(x, width, weight=weight, bias=bias)))

    h = layer(layer(qdq(b, image(b)), 12), 16)
    h = qdq(b, b.add(h, layer(layer(h, 20), 16)))
    return b.model(b.head(h))


@topology("qdq_gemm_per_channel", axis=0)
@topology("qdq_gemm_per_tensor", axis=None)
@topology("qdq_gemm_trans_b0", axis=1, trans_b=0)
def qdq_gemm(*, axis: int | None, trans_b: int = 1) -> onnx.ModelProto:
    b = Builder()
    h = qdq(b, b.input("input", ("batch", 16)))
    for width in (32, 24, 10):
        w = b.he(width, b.channels(h))
        weight, _ = stored_int8(b, w if trans_b else w.T, axis)
        h = b.op("Gemm", h, weight, b.vec(width), transB=trans_b)
        h = qdq(b, b.relu(h)) if width != 10 else h
    return b.model(h)


@topology()
def qdq_float_weights() -> onnx.ModelProto:
    """Fake quantisation: the weights are stored as floats and pass through QuantizeLinear per channel."""
    b = Builder()
    h = image(b)
    for width in (16, 24):
        w = b.he(width, b.channels(h), 3, 3)
        scale = scale_of(w, 0)
        pair = [b.param(scale, "scale"), b.param(np.zeros(width, np.int8), "zero_point")]
        weight = b.op("DequantizeLinear", b.op("QuantizeLinear", b.param(w), *pair, axis=0), *pair, axis=0)
        h = b.relu(b.conv(qdq(b, h), width, weight=weight))
    return b.model(b.head(h))


@topology()
def dequantize_blocked() -> onnx.ModelProto:
    """Weight-only quantisation of opset 21: int8 weights (in, out) with one scale per block of eight inputs."""
    b = Builder(21)
    h = b.dense(b.relu(b.dense(b.input("input", ("batch", 6, 16)), 24)), 16)
    for width in (32, 10):
        w = b.he(b.channels(h, -1), width, fan_in=b.channels(h, -1))
        scale = (np.abs(w.reshape(-1, 8, width)).max(1) / 127.0).astype(np.float32)
        stored = np.rint(w / np.repeat(scale, 8, axis=0)).astype(np.int8)
        weight = b.op("DequantizeLinear", b.param(stored), b.param(scale), axis=0, block_size=8)
        h = b.add(b.matmul(h, weight), b.vec(width))
        h = b.relu(h) if width == 32 else h
    return b.model(h)


@topology()
def qlinear_conv() -> onnx.ModelProto:
    """The operator form: QLinearConv with scales and zero points per channel, QLinearMatMul per column at the end."""
    b = Builder()
    activation = [b.param(np.array(0.05, np.float32)), b.param(np.array(128, np.uint8))]
    h, width = b.op("QuantizeLinear", image(b), *activation), 3
    for cout in (12, 16, 20):
        w = b.he(cout, width, 3, 3)
        scale, width = scale_of(w, 0), cout
        weight = [b.param(quantised(w, scale, 0)), b.param(scale), b.param(np.zeros(cout, np.int8))]
        bias = b.param(np.rint(b.normal(cout) / (0.05 * scale)).astype(np.int32))
        sizes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        h = b.op("QLinearConv", h, *activation, *weight, *activation, bias, **sizes)
    flat = b.flatten(b.gap(b.op("DequantizeLinear", h, *activation)))
    w = b.he(20, 10, fan_in=20)
    scale = scale_of(w, 1)
    weight = [b.param(quantised(w, scale, 1)), b.param(scale), b.param(np.zeros(10, np.int8))]
    y = b.op("QLinearMatMul", b.op("QuantizeLinear", flat, *activation), *activation, *weight, *activation)
    return b.model(b.op("DequantizeLinear", y, *activation))


@topology()
def qlinear_matmul() -> onnx.ModelProto:
    b = Builder()
    activation = [b.param(np.array(0.05, np.float32)), b.param(np.array(128, np.uint8))]
    h, width = b.op("QuantizeLinear", b.input("input", ("batch", 16)), *activation), 16
    for n in (32, 24, 10):
        w = b.he(width, n, fan_in=width)
        scale, width = scale_of(w, 1), n
        weight = [b.param(quantised(w, scale, 1)), b.param(scale), b.param(np.zeros(n, np.int8))]
        h = b.op("QLinearMatMul", h, *activation, *weight, *activation)
    return b.model(b.op("DequantizeLinear", h, *activation))


@topology()
def matmul_integer() -> onnx.ModelProto:
    """Dynamic quantisation: DynamicQuantizeLinear, MatMulInteger, Cast, Mul with the scales, Add."""
    b = Builder()
    h = b.input("input", ("batch", 16))
    for width in (32, 24, 10):
        w = b.he(b.channels(h), width, fan_in=b.channels(h))
        scale = scale_of(w, 1)
        q, s, z = b.ops("DynamicQuantizeLinear", h, n=3)
        y = b.op("MatMulInteger", q, b.param(quantised(w, scale, 1)), z, b.param(np.zeros(width, np.int8)))
        y = b.op("Cast", y, to=onnx.TensorProto.FLOAT)
        y = b.add(b.mul(y, b.mul(s, b.param(scale))), b.vec(width))
        h = b.relu(y) if width != 10 else y
    return b.model(h)


@topology()
def conv_integer() -> onnx.ModelProto:
    """The same with ConvInteger; uint8 weights with one zero point, as onnxruntime's dynamic quantiser writes them."""
    b = Builder()
    h = image(b)
    for width in (16, 24):
        w = b.he(width, b.channels(h), 3, 3)
        scale = scale_of(w)
        stored = b.param((quantised(w, scale).astype(np.int16) + 128).astype(np.uint8))
        q, s, z = b.ops("DynamicQuantizeLinear", h, n=3)
        sizes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        y = b.op("ConvInteger", q, stored, z, b.param(np.array(128, np.uint8)), **sizes)
        y = b.mul(b.op("Cast", y, to=onnx.TensorProto.FLOAT), b.mul(s, b.param(scale)))
        h = b.relu(b.add(y, b.vec(1, width, 1, 1)))
    return b.model(b.head(h))
