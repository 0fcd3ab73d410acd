"""Reductions, normalisations and activations."""

from __future__ import annotations

from typing import Any

import onnx

from models.builder import Builder
from models.topologies.registry import UNCHECKED, image, stem, tail, topology

# Reductions


@topology("conv_reducemean_gemm_opset13", opset=13)
@topology("conv_reducemean_gemm_opset18", opset=18)
@topology("conv_reducemean_keepdims", opset=13, keepdims=1)
def conv_reducemean_gemm(*, opset: int, keepdims: int = 0) -> onnx.ModelProto:
    """Spatial ReduceMean in place of the pooling; its axes are an attribute before opset 18."""
    b = Builder(opset)
    h = b.reduce("Mean", b.relu(b.conv(stem(b), 24)), 2, 3, keepdims=keepdims)
    return b.model(b.linear(b.flatten(h) if keepdims else h, 10))


@topology("reduce_sum_channels", kind="Sum")
@topology("reduce_sum_channels_opset11", kind="Sum", opset=11)
@topology("reduce_mean_channels", kind="Mean")
@topology("reduce_mean_channels_opset18", kind="Mean", opset=18)
@topology("reduce_l1_channels", kind="L1")
@topology("reduce_l2_channels", kind="L2")
@topology("reduce_sum_square_channels", kind="SumSquare")
@topology("reduce_max_channels", kind="Max")
@topology("reduce_min_channels", kind="Min")
@topology("reduce_prod_channels", kind="Prod")
@topology("reduce_log_sum_exp_channels", kind="LogSumExp")
def reduce_channels(*, kind: str, opset: int = 17) -> onnx.ModelProto:
    """A reduction over the channels, kept as an axis of size one, and one without it next to it."""
    b = Builder(opset)
    h = stem(b)
    y = b.relu(b.conv(h, 16))
    kept = b.reduce(kind, y, 1)
    dropped = b.unsqueeze(b.reduce(kind, b.conv(h, 12), 1, keepdims=0), 1)
    return b.model(b.concat(kept, dropped), b.head(b.mul(y, b.sigmoid(kept))))


@topology()
def argmax_channels() -> onnx.ModelProto:
    """Segmentation: ArgMax over the classes, next to an auxiliary ArgMax over hidden channels."""
    b = Builder()
    h = stem(b)
    y = b.relu(b.conv(h, 20))
    classes = b.op("ArgMax", b.conv(y, 5, 1), axis=1, keepdims=0)
    return b.model(classes, b.op("ArgMax", b.conv(h, 12), axis=1))


@topology()
def mean_over_everything() -> onnx.ModelProto:
    """A reduction over all axes, with `axes` left out."""
    b = Builder()
    h = b.conv(stem(b), 16)
    centred = b.op("Sub", h, b.op("ReduceMean", h, keepdims=1))
    return b.model(tail(b, centred))


# Normalisation


def groupnorm_decomposed(b: Builder, x: str, groups: int, *, gamma: str = "", beta: str = "") -> str:
    """PyTorch before opset 18: Reshape, InstanceNormalization with ones and zeros, Reshape, Mul, Add."""
    c = b.channels(x)
    shape = b.op("Shape", x)
    y = b.reshape(x, 0, groups, -1)
    y = b.op("InstanceNormalization", y, b.const([1.0] * groups), b.const([0.0] * groups), epsilon=1e-5)
    y = b.declare(b.op("Reshape", y, shape), b.shape(x))
    gamma = gamma or b.param(b.uniform(0.5, 1.5, c, 1, 1), "gn.weight")
    return b.add(b.mul(y, gamma), beta or b.vec(c, 1, 1))


@topology()
def groupnorm_decomposed_block() -> onnx.ModelProto:
    b = Builder()
    x = stem(b)
    y = b.silu(groupnorm_decomposed(b, b.conv(x, 24), 6))
    y = b.silu(groupnorm_decomposed(b, b.conv(y, 16), 4))
    return b.model(tail(b, b.add(x, y)))


@topology("groupnorm_opset18", opset=18, into=UNCHECKED)
@topology("groupnorm_opset21", opset=21)
def groupnorm(*, opset: int) -> onnx.ModelProto:
    """scale and bias have one entry per group at opset 18 (deprecated since) and one per channel at opset 21."""
    b = Builder(opset)
    h = stem(b)
    for width, groups in ((24, 4), (16, 8)):
        h = b.conv(h, width)
        n = groups if opset < 21 else width
        vectors = [b.param(b.uniform(0.5, 1.5, n)), b.vec(n)]
        h = b.op("GroupNormalization", h, *vectors, num_groups=groups, epsilon=1e-5)
        h = b.relu(b.declare(h, ("batch", width, 8, 8)))
    return b.model(tail(b, h))


@topology()
def instance_norm() -> onnx.ModelProto:
    b = Builder()
    h = image(b)
    for width in (16, 24):
        vectors = [b.param(b.uniform(0.5, 1.5, width)), b.vec(width)]
        h = b.relu(b.op("InstanceNormalization", b.conv(h, width), *vectors))
    return b.model(tail(b, h))


@topology("lrn", kind="LRN", size=5, alpha=0.01, beta=0.75)
@topology("softmax_over_channels", kind="Softmax", axis=1)
@topology("log_softmax_over_channels", kind="LogSoftmax", axis=1)
@topology("lp_normalization_over_channels", kind="LpNormalization", axis=1, p=2)
@topology("mean_variance_normalization", kind="MeanVarianceNormalization", axes=[0, 2, 3])
@topology("mean_variance_normalization_channels", kind="MeanVarianceNormalization", axes=[1, 2, 3])
def channel_mixer(*, kind: str, **attributes: Any) -> onnx.ModelProto:
    """An operator that mixes channels without a weight (or, over batch and space, one that does not)."""
    b = Builder()
    return b.model(tail(b, b.op(kind, stem(b), **attributes)))


@topology()
def softmax_opset11_flattens() -> onnx.ModelProto:
    """Before opset 13 Softmax(axis=1) normalises over everything from axis 1 on."""
    b = Builder(11)
    return b.model(tail(b, b.op("Softmax", stem(b), axis=1)))


@topology()
def layernorm_channels_first() -> onnx.ModelProto:
    """LayerNorm2d by hand: mean and variance over the channels of NCHW, affine (C, 1, 1)."""
    b = Builder()
    x = stem(b)
    centred = b.op("Sub", x, b.reduce("Mean", x, 1))
    variance = b.reduce("Mean", b.mul(centred, centred), 1)
    y = b.op("Div", centred, b.op("Sqrt", b.add(variance, 1e-6)))
    y = b.add(b.mul(b.param(b.uniform(0.5, 1.5, 16, 1, 1)), y), b.vec(16, 1, 1))
    return b.model(tail(b, b.conv(b.gelu(b.conv(y, 32, 1)), 16, 1)))


@topology()
def layernorm_over_image() -> onnx.ModelProto:
    """LayerNormalization(axis=1): scale and bias of shape (C, H, W)."""
    b = Builder()
    h = b.conv(stem(b), 16)
    affine = [b.param(b.uniform(0.5, 1.5, 16, 8, 8)), b.vec(16, 8, 8)]
    return b.model(tail(b, b.op("LayerNormalization", h, *affine, axis=1)))


@topology()
def batchnorm_by_hand() -> onnx.ModelProto:
    """Frozen BatchNorm (detectron): Mul and Add with (1, C, 1, 1), computed from four vectors in the graph."""
    b = Builder()
    h = b.conv(stem(b), 20, bias=False)
    gamma, var = b.param(b.uniform(0.5, 1.5, 20)), b.param(b.uniform(0.5, 1.5, 20))
    scale = b.mul(gamma, b.op("Reciprocal", b.op("Sqrt", b.add(var, 1e-5))))
    shift = b.op("Sub", b.vec(20), b.mul(b.vec(20), scale))
    h = b.add(b.mul(h, b.reshape(scale, 1, -1, 1, 1)), b.reshape(shift, 1, 20, 1, 1))
    return b.model(tail(b, b.relu(h)))


# Activations


@topology("prelu_per_channel", shape=(16, 1, 1))
@topology("prelu_shared", shape=(1,))
@topology("prelu_full", shape=(16, 8, 8))
def prelu(*, shape: tuple[int, ...]) -> onnx.ModelProto:
    b = Builder()
    h = b.op("PRelu", b.conv(stem(b), 16), b.param(b.uniform(0.1, 0.4, *shape), "prelu.weight"))
    return b.model(tail(b, h))


@topology()
def prelu_gemm() -> onnx.ModelProto:
    b = Builder()
    h = b.linear(b.input("input", ("batch", 16)), 32)
    return b.model(b.linear(b.op("PRelu", h, b.param(b.uniform(0.1, 0.4, 32), "prelu.weight")), 10))


@topology()
def activations() -> onnx.ModelProto:
    """One convolution per activation function, several of which do not map zero to zero."""
    b = Builder(20)
    h = image(b)
    h = b.op("LeakyRelu", b.conv(h, 16), alpha=0.1)
    h = b.op("HardSwish", b.conv(h, 12))
    h = b.op("Elu", b.conv(h, 16), alpha=0.5)
    h = b.op("Clip", b.conv(h, 12), -1.0, 4.0)
    h = b.op("Softplus", b.conv(h, 16))
    h = b.op("Mish", b.conv(h, 12))
    h = b.op("Gelu", b.conv(h, 16), approximate="tanh")
    h = b.op("Cos", b.conv(h, 12))
    h = b.op("HardSigmoid", b.conv(h, 16))
    return b.model(b.head(b.op("Selu", b.conv(h, 12))))


@topology()
def clip_attributes_opset10() -> onnx.ModelProto:
    """Clip with min and max as attributes, one side only in the second."""
    b = Builder(10)
    h = b.op("Clip", b.conv(image(b), 16), min=0.0, max=6.0)
    return b.model(b.head(b.op("Clip", b.conv(h, 24), min=0.1)))


@topology()
def variadic_elementwise() -> onnx.ModelProto:
    """Sum, Max, Min and Mean of several convolutions, Sub and Div among activations."""
    b = Builder()
    x = stem(b)
    a, c, d = (b.conv(x, 16) for _ in range(3))
    h = b.op("Sub", b.op("Sum", a, c, d), b.op("Mean", a, c))
    h = b.op("Div", b.op("Max", h, a, 0.1), b.op("Min", b.add(b.op("Abs", d), 1.0), b.param(b.uniform(2, 3, 16, 1, 1))))
    return b.model(tail(b, h))
