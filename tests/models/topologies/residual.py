"""Residual streams, dense connections and branches."""

from __future__ import annotations

import numpy as np
import onnx

from models.builder import INT_MAX, Builder
from models.topologies.registry import image, stem, tail, topology

# Dense and residual streams


@topology()
@topology("densenet_small_growth", growth=8, layers=4)
def densenet(*, growth: int = 12, layers: int = 3) -> onnx.ModelProto:
    """Pre-activation BatchNormalization on a growing concatenation: it cannot fuse, and each layer has its own."""
    b = Builder()
    h = b.conv(image(b), 16, bias=False)
    for _ in range(2):
        for _ in range(layers):
            bottleneck = b.conv(b.relu(b.bn(h)), 4 * growth, 1, bias=False)
            h = b.concat(h, b.conv(b.relu(b.bn(bottleneck)), growth, bias=False))
        h = b.conv(b.relu(b.bn(h)), b.channels(h) // 2, 1, bias=False)
        h = b.op("AveragePool", h, kernel_shape=[2, 2], strides=[2, 2])
    return b.model(b.head(b.relu(b.bn(h))))


@topology()
@topology("resnet_opset9", opset=9)
def resnet(*, opset: int = 17) -> onnx.ModelProto:
    """Basic blocks; the second stage has a 1x1 downsample; pooling, flatten and Gemm end the stream."""
    b = Builder(opset)
    h = b.relu(b.bn(b.conv(image(b), 16, bias=False)))
    for width, stride in ((16, 1), (24, 2), (24, 1)):
        y = b.relu(b.bn(b.conv(h, width, stride=stride, bias=False)))
        y = b.bn(b.conv(y, width, bias=False))
        skip = h if stride == 1 else b.bn(b.conv(h, width, 1, stride=2, pad=0, bias=False))
        h = b.relu(b.add(y, skip))
    return b.model(b.head(h))


@topology()
def resnet_bottleneck() -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.bn(b.conv(image(b), 16, bias=False)))
    for stride in (1, 2):
        y = b.relu(b.bn(b.conv(h, 8, 1, bias=False)))
        y = b.relu(b.bn(b.conv(y, 8, stride=stride, bias=False)))
        y = b.bn(b.conv(y, 32, 1, bias=False))
        h = b.relu(b.add(y, b.bn(b.conv(h, 32, 1, stride=stride, pad=0, bias=False))))
    return b.model(b.head(h))


@topology()
def resnet_preactivation() -> onnx.ModelProto:
    b = Builder()
    h = b.conv(image(b), 16, bias=False)
    for _ in range(2):
        y = b.conv(b.relu(b.bn(h)), 12, bias=False)
        h = b.add(h, b.conv(b.relu(b.bn(y)), 16, bias=False))
    return b.model(b.head(b.relu(b.bn(h))))


@topology()
def resnet_option_a() -> onnx.ModelProto:
    """CIFAR ResNet: the shortcut takes every second pixel and pads zero channels on both sides."""
    b = Builder()
    h = b.relu(b.bn(b.conv(image(b), 16, bias=False)))
    for width, stride in ((16, 1), (32, 2), (32, 1)):
        y = b.relu(b.bn(b.conv(h, width, stride=stride, bias=False)))
        y = b.bn(b.conv(y, width, bias=False))
        if stride == 2:
            h = b.op("Slice", h, [0, 0], [INT_MAX, INT_MAX], [2, 3], [2, 2])
            h = b.op("Pad", h, [0, 8, 0, 0, 0, 8, 0, 0], 0.0, mode="constant")
        h = b.relu(b.add(y, h))
    return b.model(b.head(h))


@topology()
def mobilenet_v2() -> onnx.ModelProto:
    """Inverted residuals: expand, depthwise, linear projection; ReLU6 as Clip."""
    b = Builder()
    h = b.op("Clip", b.bn(b.conv(image(b), 12, bias=False)), 0.0, 6.0)
    for width, stride in ((12, 1), (16, 2), (16, 1)):
        y = b.op("Clip", b.bn(b.conv(h, 24, 1, bias=False)), 0.0, 6.0)
        y = b.op("Clip", b.bn(b.conv(y, 24, group=24, stride=stride, bias=False)), 0.0, 6.0)
        y = b.bn(b.conv(y, width, 1, bias=False))
        h = b.add(h, y) if stride == 1 else y
    return b.model(b.head(b.op("Clip", b.bn(b.conv(h, 32, 1, bias=False)), 0.0, 6.0)))


@topology()
def repvgg_training() -> onnx.ModelProto:
    """Three parallel branches before re-parametrisation: 3x3, 1x1 and a BatchNormalization alone."""
    b = Builder()
    h = b.relu(b.conv(image(b), 16))
    for _ in range(2):
        branches = [b.bn(b.conv(h, 16, bias=False)), b.bn(b.conv(h, 16, 1, bias=False)), b.bn(h)]
        h = b.relu(b.op("Sum", *branches))
    return b.model(b.head(h))


@topology()
def res2net() -> onnx.ModelProto:
    """A chunked hierarchy inside a block: each quarter adds the one before it."""
    b = Builder()
    x = b.relu(b.conv(image(b), 24))
    parts = b.split(b.relu(b.bn(b.conv(x, 32, 1))), [8, 8, 8, 8])
    done = [parts[0], b.relu(b.conv(parts[1], 8))]
    for part in parts[2:]:
        done.append(b.relu(b.conv(b.add(part, done[-1]), 8)))
    y = b.bn(b.conv(b.concat(*done), 24, 1))
    return b.model(b.head(b.relu(b.add(x, y))))


@topology()
def ghostnet() -> onnx.ModelProto:
    """Half of the channels are made by a depthwise convolution of the other half; a Slice takes off the surplus."""
    b = Builder()
    x = b.relu(b.conv(image(b), 16))
    primary = b.relu(b.bn(b.conv(x, 12, 1)))
    cheap = b.relu(b.bn(b.conv(primary, 12, group=12)))
    return b.model(tail(b, b.slice(b.concat(primary, cheap), 0, 20, 1)))


@topology()
def layer_scale_residual() -> onnx.ModelProto:
    b = Builder()
    x = stem(b)
    scale = b.param(b.uniform(0.05, 0.2, 16, 1, 1), "layer_scale")
    y = b.mul(scale, b.conv(b.gelu(b.conv(x, 32, 1)), 16, 1))
    return b.model(tail(b, b.add(x, y)))


# Branches


@topology()
def inception() -> onnx.ModelProto:
    b = Builder()
    x = stem(b)
    pool = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    branches = [
        b.conv(x, 8, 1),
        b.conv(b.relu(b.conv(x, 12, 1)), 16),
        b.conv(b.relu(b.conv(x, 8, 1)), 12, 5),
        b.conv(pool, 8, 1),
    ]
    return b.model(tail(b, b.concat(*[b.relu(b.bn(y)) for y in branches])))


@topology()
def squeezenet_fire() -> onnx.ModelProto:
    """Fire modules; the classifier is a convolution with pooling after it."""
    b = Builder()
    h = b.relu(b.conv(image(b), 16))
    for squeeze, expand in ((8, 12), (10, 16)):
        s = b.relu(b.conv(h, squeeze, 1))
        h = b.concat(b.relu(b.conv(s, expand, 1)), b.relu(b.conv(s, expand)))
    return b.model(b.flatten(b.gap(b.relu(b.conv(h, 10, 1)))))


@topology()
def concat_nested() -> onnx.ModelProto:
    """A Concat of Concats, added to a single convolution of the same width."""
    b = Builder()
    x = stem(b)
    h = b.concat(b.concat(b.conv(x, 8), b.conv(x, 6)), b.conv(x, 10))
    return b.model(tail(b, b.relu(b.add(h, b.conv(x, 24, 1)))))


@topology()
def concat_with_constant() -> onnx.ModelProto:
    """CoordConv: two constant coordinate channels, expanded over the batch, are concatenated to hidden channels."""
    b = Builder()
    h = stem(b)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 8)))[None]
    coordinates = b.op("Expand", b.param(grid), b.dims(b.size(h, 0), 2, 8, 8))
    return b.model(tail(b, b.concat(h, b.declare(coordinates, ("batch", 2, 8, 8)))))
