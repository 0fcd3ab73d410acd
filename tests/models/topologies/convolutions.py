"""Chains of convolutions, channels last, and groups."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from models.builder import Builder
from models.topologies.registry import image, stem, tail, topology

# Chains of convolutions


@topology()
@topology("conv_chain_value_info", value_info=True)
@topology("conv_chain_valid_padding", pad=0)
@topology("conv_chain_stride2", stride=2)
@topology("conv_chain_dilated", dilation=2)
@topology("conv_chain_no_bias", bias=False)
@topology("conv_chain_opset7", opset=7)
@topology("conv_chain_opset8", opset=8)
@topology("conv_chain_opset21", opset=21)
@topology("conv_chain_inputs_ir3", opset=7, weights="input")
@topology("conv_chain_inputs_ir8", weights="input")
@topology("conv_chain_constant_nodes", weights="constant")
@topology("conv_chain_float16", dtype=np.float16)
def conv_chain(
    *,
    opset: int = 17,
    dtype: npt.DTypeLike = np.float32,
    weights: Literal["initializer", "constant", "input"] = "initializer",
    value_info: bool = False,
    **conv: Any,
) -> onnx.ModelProto:
    b = Builder(opset, dtype=dtype, weights=weights)
    h = image(b, size=12)
    for width in (16, 24, 32):
        h = b.relu(b.bn(b.conv(h, width, **conv)))
    return b.model(b.head(h), value_info=value_info)


@topology("conv1d_chain", rank=1)
@topology("conv3d_chain", rank=3)
def conv_rank(*, rank: int) -> onnx.ModelProto:
    b = Builder()
    h = b.input("input", ("batch", 3, *[6] * rank))
    for width in (16, 24):
        h = b.relu(b.bn(b.conv(h, width)))
    return b.model(b.head(h))


@topology("conv_auto_pad_same_upper", auto_pad="SAME_UPPER")
@topology("conv_auto_pad_same_lower", auto_pad="SAME_LOWER")
@topology("conv_auto_pad_valid", auto_pad="VALID")
def conv_auto_pad(*, auto_pad: str) -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.conv(image(b, size=9), 16, auto_pad=auto_pad))
    return b.model(b.head(b.relu(b.conv(h, 24, stride=2, auto_pad=auto_pad))))


@topology()
def conv_output() -> onnx.ModelProto:
    """Fully convolutional: the last Conv is the graph output, its filters are not to be touched."""
    b = Builder()
    return b.model(b.conv(stem(b), 3))


@topology()
def conv_bn_affine_after_relu() -> onnx.ModelProto:
    """ReLU before BatchNormalization: what a removed channel contributed is a constant, and nothing fuses it."""
    b = Builder()
    h = image(b)
    for width in (16, 24):
        h = b.bn(b.relu(b.conv(h, width, pad=0)))
    return b.model(b.head(h))


@topology()
def conv_dynamic_spatial() -> onnx.ModelProto:
    b = Builder()
    h = b.input("input", ("batch", 3, "height", "width"))
    for width in (16, 24):
        h = b.relu(b.bn(b.conv(h, width, stride=2)))
    return b.model(b.head(h))


@topology()
def vgg_flatten() -> onnx.ModelProto:
    """Conv, MaxPool, Flatten with spatial extent, Gemm."""
    b = Builder()
    h = b.relu(b.conv(image(b), 16))
    h = b.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    h = b.op("MaxPool", b.relu(b.conv(h, 24)), kernel_shape=[2, 2], strides=[2, 2])
    h = b.op("Dropout", b.relu(b.linear(b.flatten(h), 32)), 0.5)
    return b.model(b.linear(h, 10))


# Channels last


def nhwc_conv(b: Builder, x: str, cout: int, **conv: Any) -> str:
    """tf2onnx before its transpose optimiser: every Conv between two Transposes, the bias added channels-last."""
    y = b.conv(b.transpose(x, 0, 3, 1, 2), cout, bias=False, **conv)
    return b.add(b.transpose(y, 0, 2, 3, 1), b.vec(cout))


@topology()
def nhwc_transposes() -> onnx.ModelProto:
    b = Builder()
    x = b.relu(nhwc_conv(b, b.input("input", ("batch", 8, 8, 3)), 16))
    y = b.relu(nhwc_conv(b, x, 24))
    y = b.concat(x, y, axis=3)
    y = b.relu(nhwc_conv(b, y, 20, stride=2))
    return b.model(b.dense(b.reduce("Mean", y, 1, 2, keepdims=0), 10))


@topology()
def nhwc_flatten_dense() -> onnx.ModelProto:
    """Keras CNN: pooling, Reshape to (-1, H * W * C) in channels-last order, MatMul and Add."""
    b = Builder(13)
    x = b.relu(nhwc_conv(b, b.input("input", ("batch", 8, 8, 3)), 16))
    x = b.op("MaxPool", b.transpose(x, 0, 3, 1, 2), kernel_shape=[2, 2], strides=[2, 2])
    x = b.reshape(b.transpose(x, 0, 2, 3, 1), -1, 256)
    return b.model(b.softmax(b.dense(b.relu(b.dense(x, 24)), 10)))


@topology()
def nhwc_separable() -> onnx.ModelProto:
    """Keras SeparableConv: depthwise with a weight that a Reshape makes, pointwise, BatchNormalization, ReLU6."""
    b = Builder()
    x = b.transpose(b.input("input", ("batch", 8, 8, 3)), 0, 3, 1, 2)
    x = b.relu(b.conv(x, 12))
    weight = b.reshape(b.transpose(b.param(b.he(3, 3, 12, 1, fan_in=9)), 3, 2, 0, 1), 12, 1, 3, 3)
    x = b.op("Clip", b.bn(b.conv(x, 12, group=12, weight=weight, bias=False)), 0.0, 6.0)
    x = b.op("Clip", b.bn(b.conv(x, 24, 1, bias=False)), 0.0, 6.0)
    return b.model(b.dense(b.squeeze(b.gap(x), 2, 3), 10))


@topology()
def nhwc_depth_to_space() -> onnx.ModelProto:
    b = Builder()
    x = b.relu(nhwc_conv(b, b.input("input", ("batch", 8, 8, 3)), 16))
    y = b.op("DepthToSpace", b.transpose(nhwc_conv(b, x, 12), 0, 3, 1, 2), blocksize=2)
    return b.model(b.transpose(y, 0, 2, 3, 1))


# Groups


@topology()
def resnext() -> onnx.ModelProto:
    """Four groups of several channels, in a bottleneck."""
    b = Builder()
    x = b.relu(b.bn(b.conv(image(b), 24, bias=False)))
    for _ in range(2):
        y = b.relu(b.bn(b.conv(x, 16, 1, bias=False)))
        y = b.relu(b.bn(b.conv(y, 16, group=4, bias=False)))
        x = b.relu(b.add(x, b.bn(b.conv(y, 24, 1, bias=False))))
    return b.model(b.head(x))


@topology()
def grouped_conv_uneven() -> onnx.ModelProto:
    """Groups with more outputs than inputs, followed by other group counts: 2 groups, then 3."""
    b = Builder()
    h = b.relu(b.conv(stem(b, 12), 24, group=2))
    return b.model(tail(b, b.relu(b.conv(h, 18, group=3))))


@topology("depthwise", multiplier=1)
@topology("depthwise_multiplier2", multiplier=2)
def depthwise(*, multiplier: int) -> onnx.ModelProto:
    b = Builder()
    h = image(b)
    for width in (16, 24):
        h = b.relu(b.bn(b.conv(h, width, 1, bias=False)))
        h = b.relu(b.bn(b.conv(h, width * multiplier, group=width, bias=False)))
    return b.model(b.head(h))


@topology()
def depthwise_on_input() -> onnx.ModelProto:
    """The first layer is depthwise with a multiplier: the three input channels must stay."""
    b = Builder()
    h = b.relu(b.conv(image(b), 12, group=3))
    return b.model(tail(b, b.relu(b.conv(h, 20, 1))))
