"""Channels that are shuffled, split and joined."""

from __future__ import annotations

import onnx

from models.builder import INT_MAX, Builder
from models.topologies.registry import stem, tail, topology

# Channel rearrangement


def shuffle(b: Builder, x: str, groups: int) -> str:
    """ShuffleNet's channel shuffle: (g, C/g) to (C/g, g)."""
    c, h, w = (b.channels(x, axis) for axis in (1, 2, 3))
    y = b.transpose(b.reshape(x, b.size(x, 0), groups, c // groups, h, w), 0, 2, 1, 3, 4)
    return b.reshape(y, b.size(x, 0), c, h, w)


@topology()
def shufflenet_v1() -> onnx.ModelProto:
    """Grouped 1x1, shuffle, depthwise, grouped 1x1, residual."""
    b = Builder()
    x = stem(b, 24)
    y = shuffle(b, b.relu(b.bn(b.conv(x, 12, 1, group=3))), 3)
    y = b.bn(b.conv(y, 12, group=12, bias=False))
    y = b.bn(b.conv(y, 24, 1, group=3, bias=False))
    return b.model(b.head(b.relu(b.add(x, y))))


@topology()
def shufflenet_v2() -> onnx.ModelProto:
    """Split in halves, transform one, Concat, shuffle."""
    b = Builder()
    h = stem(b)
    for _ in range(2):
        left, right = b.split(h, [8, 8])
        right = b.relu(b.bn(b.conv(right, 8, 1, bias=False)))
        right = b.bn(b.conv(right, 8, group=8, bias=False))
        right = b.relu(b.bn(b.conv(right, 8, 1, bias=False)))
        h = shuffle(b, b.concat(left, right), 2)
    return b.model(tail(b, h))


@topology()
def swin_patch_merging() -> onnx.ModelProto:
    """Four strided slices, Concat along the channels, LayerNormalization, bias-free linear."""
    b = Builder()
    x = b.dense(b.relu(b.dense(b.input("input", ("batch", 8, 8, 3)), 20)), 12)
    parts = []
    for column in (0, 1):
        for row in (0, 1):
            parts.append(b.slice(b.slice(x, row, INT_MAX, 1, 2), column, INT_MAX, 2, 2))
    x = b.layernorm(b.concat(*parts, axis=-1))
    x = b.reduce("Mean", b.ffn(b.dense(x, 24, bias=False), 32), 1, 2, keepdims=0)
    return b.model(b.linear(x, 10))


@topology()
def swin_windows() -> onnx.ModelProto:
    """Cyclic shift by Slice and Concat, window partition, attention inside the windows, window reverse."""
    b = Builder()
    x = b.dense(b.input("input", ("batch", 8, 8, 3)), 16)
    y = b.layernorm(x)
    for axis in (1, 2):
        y = b.concat(b.slice(y, 2, INT_MAX, axis), b.slice(y, 0, 2, axis), axis=axis)
    y = b.transpose(b.reshape(y, b.size(y, 0), 2, 4, 2, 4, 16), 0, 1, 3, 2, 4, 5)
    windows = b.reshape(y, -1, 16, 16)
    qkv = b.reshape(b.dense(windows, 48), -1, 16, 3, 4, 4)
    q, k, v = (b.op("Gather", b.transpose(qkv, 2, 0, 3, 1, 4), i, axis=0) for i in range(3))
    windows = b.dense(b.declare(b.unheads(b.attend(q, k, v), 16), (None, 16, 16)), 16)
    y = b.transpose(b.reshape(windows, -1, 2, 2, 4, 4, 16), 0, 1, 3, 2, 4, 5)
    y = b.reshape(y, -1, 8, 8, 16)
    for axis in (1, 2):
        y = b.concat(b.slice(y, -2, INT_MAX, axis), b.slice(y, 0, -2, axis), axis=axis)
    x = b.add(x, y)
    x = b.add(x, b.ffn(b.layernorm(x), 32))
    return b.model(b.linear(b.reduce("Mean", x, 1, 2, keepdims=0), 10))


@topology()
@topology("c2f_slice", sliced=True)
def c2f(*, sliced: bool = False) -> onnx.ModelProto:
    """YOLOv8: split in halves, bottlenecks on the last part, all parts concatenated."""
    b = Builder()
    h = b.silu(b.conv(stem(b), 24, 1))
    parts = [b.slice(h, 0, 12, 1), b.slice(h, 12, 24, 1)] if sliced else b.split(h, [12, 12])
    for _ in range(2):
        y = b.silu(b.conv(b.silu(b.conv(parts[-1], 8)), 12))
        parts.append(b.add(parts[-1], y))
    return b.model(b.head(b.silu(b.conv(b.concat(*parts), 20, 1))))


@topology()
def elan_spp() -> onnx.ModelProto:
    """YOLOv7 layer aggregation and the SPPF chain of max pools."""
    b = Builder()
    x = stem(b)
    parts = [b.silu(b.conv(x, 12, 1)), b.silu(b.conv(x, 12, 1))]
    for _ in range(2):
        parts.append(b.silu(b.conv(parts[-1], 12)))
    pools = [b.silu(b.conv(b.concat(*reversed(parts)), 16, 1))]
    for _ in range(3):
        pools.append(b.op("MaxPool", pools[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 2]))
    return b.model(b.head(b.silu(b.conv(b.concat(*pools), 20, 1))))


@topology()
def depthwise_chunk_gate() -> onnx.ModelProto:
    """NAFNet: 1x1 to twice the width, depthwise, SimpleGate (Split and Mul), channel attention, 1x1."""
    b = Builder()
    x = stem(b)
    y = b.conv(b.conv(x, 32, 1), 32, group=32)
    first, second = b.split(y, [16, 16])
    y = b.mul(first, second)
    y = b.conv(b.mul(y, b.conv(b.gap(y), 16, 1)), 16, 1)
    x = b.add(x, b.mul(y, b.param(b.uniform(0.1, 0.5, 1, 16, 1, 1), "beta")))
    return b.model(tail(b, x))


@topology()
def gated_conv_glu() -> onnx.ModelProto:
    """GLU along the channels: Split, Sigmoid, Mul, then a depthwise 1-D convolution (Conformer)."""
    b = Builder()
    h = b.relu(b.conv(b.input("input", ("batch", 8, 16)), 12))
    value, gate = b.split(b.conv(h, 32, 1), [16, 16])
    h = b.mul(value, b.sigmoid(gate))
    h = b.silu(b.bn(b.conv(h, 16, 5, group=16)))
    return b.model(b.linear(b.flatten(b.gap(b.conv(h, 20, 1))), 10))


@topology()
def maxout() -> onnx.ModelProto:
    """LightCNN's max-feature-map: the elementwise maximum of two halves."""
    b = Builder()
    h = stem(b)
    for width in (24, 16):
        h = b.op("Max", *b.split(b.conv(h, 2 * width), [width, width]))
    return b.model(b.head(h))


@topology()
def grouped_max_reshape() -> onnx.ModelProto:
    """Maxout by Reshape: (N, C * k, H, W) to (N, C, k, H, W), ReduceMax over k."""
    b = Builder()
    h = b.reshape(b.conv(stem(b), 36), -1, 12, 3, 8, 8)
    return b.model(tail(b, b.declare(b.reduce("Max", h, 2, keepdims=0), ("batch", 12, 8, 8))))
