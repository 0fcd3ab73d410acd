"""What moves channels along with shapes: Reshape, Flatten, Slice, Gather, Split, Concat, Squeeze, Pad, Expand."""

from __future__ import annotations

import numpy as np
import onnx

from models.builder import INT_MAX, Builder, Dim
from models.topologies.registry import image, pooled, stem, tail, topology

# Shapes: Reshape, Flatten, Slice, Gather, Split, Concat, Squeeze


@topology()
def channel_slice() -> onnx.ModelProto:
    """Two overlapping channel ranges of one convolution, one with a negative start and INT_MAX as its end."""
    b = Builder()
    h = stem(b, 24)
    first, last = b.slice(h, 0, 16, 1), b.slice(h, -12, INT_MAX, 1)
    return b.model(tail(b, b.concat(b.relu(b.conv(first, 8)), last)))


@topology()
def channel_slice_steps() -> onnx.ModelProto:
    """Even and odd channels, and all of them backwards."""
    b = Builder()
    h = stem(b)
    even, odd = b.slice(h, 0, INT_MAX, 1, 2), b.slice(h, 1, INT_MAX, 1, 2)
    backwards = b.slice(h, -1, -INT_MAX, 1, -1)
    return b.model(tail(b, b.concat(b.mul(even, b.sigmoid(odd)), backwards)))


@topology()
def channel_slice_opset9() -> onnx.ModelProto:
    """starts, ends and axes are attributes."""
    b = Builder(9)
    h = stem(b)
    return b.model(tail(b, b.add(b.slice(h, 0, 8, 1), b.slice(h, -8, INT_MAX, 1))))


@topology()
def shape_gather_channels() -> onnx.ModelProto:
    """The channel count itself is computed: Shape, Gather(1), Mul, Reshape."""
    b = Builder()
    h = b.relu(b.conv(stem(b), 24))
    features = b.mul(b.mul(b.size(h, 1), b.size(h, 2)), b.size(h, 3))
    flat = b.declare(b.reshape(h, b.size(h, 0), features), ("batch", 24 * 64))
    return b.model(b.linear(flat, 10))


@topology("flatten_reshape_constant", shape=(-1, 16 * 64))
@topology("flatten_reshape_zero", shape=(0, -1))
@topology("flatten_reshape_baked_batch", shape=(1, 16 * 64), batch=1)
@topology("flatten_reshape_baked_batch_minus_one", shape=(1, -1), batch=1)
@topology("flatten_allowzero", shape=(-1, 16 * 64), allowzero=1)
def flatten_reshape(*, shape: tuple[int, int], batch: Dim = "batch", allowzero: int | None = None) -> onnx.ModelProto:
    """A constant Reshape flattens C*H*W into the features of a Gemm."""
    b = Builder()
    h = b.relu(b.conv(b.input("input", (batch, 3, 8, 8)), 12))
    h = b.relu(b.conv(h, 16))
    flat = b.declare(b.op("Reshape", h, list(shape), allowzero=allowzero), (batch, 1024))
    return b.model(b.linear(b.relu(b.linear(flat, 24)), 10))


@topology("flatten_spatial_constant", shape=(-1, 16, 64))
@topology("flatten_spatial_zero", shape=(0, 0, -1))
@topology("flatten_spatial_baked_batch", shape=(1, 16, -1), batch=1)
def flatten_spatial(*, shape: tuple[int, int, int], batch: Dim = "batch") -> onnx.ModelProto:
    """(N, C, H, W) to (N, C, H*W) to (N, H*W, C), then dense layers on the channels."""
    b = Builder()
    h = b.relu(b.conv(b.relu(b.conv(b.input("input", (batch, 3, 8, 8)), 12)), 16))
    flat = b.declare(b.op("Reshape", h, list(shape)), (batch, 16, 64))
    return b.model(pooled(b, b.relu(b.dense(b.transpose(flat, 0, 2, 1), 24))))


@topology()
def flatten_axis2() -> onnx.ModelProto:
    """Flatten(axis=2) merges batch and channels into the rows; the dense layer works on space."""
    b = Builder()
    h = b.relu(b.conv(stem(b), 16))
    rows = b.linear(b.declare(b.op("Flatten", h, axis=2), (None, 64)), 12)
    back = b.reshape(rows, -1, 16, 12)
    return b.model(b.linear(b.declare(b.flatten(back), ("batch", 192)), 10))


@topology()
def flatten_nhwc() -> onnx.ModelProto:
    """Transposed to channels-last before flattening: the channels are the fast axis of the features."""
    b = Builder()
    h = b.transpose(b.relu(b.conv(stem(b), 16)), 0, 2, 3, 1)
    return b.model(b.linear(b.flatten(h), 10))


@topology()
def bn_after_flatten() -> onnx.ModelProto:
    b = Builder()
    h = b.flatten(b.op("MaxPool", stem(b), kernel_shape=[4, 4], strides=[4, 4]))
    return b.model(b.linear(b.relu(b.bn(b.linear(b.bn(h), 24))), 10))


@topology()
def bn_after_concat() -> onnx.ModelProto:
    b = Builder()
    x = stem(b)
    h = b.concat(b.conv(x, 12), b.conv(x, 16, 1), x)
    return b.model(tail(b, b.relu(b.bn(h))))


@topology()
def channels_equal_space() -> onnx.ModelProto:
    """C = H = W = 8: only the axes say which is which, and a constant (8,) is along W, not along C."""
    b = Builder()
    h = b.relu(b.conv(image(b), 8))
    h = b.add(h, b.vec(8))
    h = b.add(b.mul(h, b.param(b.uniform(0.5, 1.5, 8, 1, 1))), b.vec(8, 1))
    h = b.transpose(b.relu(b.conv(h, 8)), 0, 1, 3, 2)
    return b.model(tail(b, b.dense(h, 8)))


@topology()
def broadcast_constants() -> onnx.ModelProto:
    """Constants in every shape: scalar, (1,), (C, 1, 1), (1, C, 1, 1), (C, H, W), (1, C, H, W), (1, 1, H, W)."""
    b = Builder()
    h = stem(b)
    for shape in ((), (1,), (16, 1, 1), (1, 16, 1, 1), (16, 8, 8), (1, 16, 8, 8), (1, 1, 8, 8)):
        h = b.relu(b.add(h, b.param(b.normal(*shape) + 0.05)))
    return b.model(tail(b, h))


@topology()
def squeeze_unsqueeze() -> onnx.ModelProto:
    """GlobalAveragePool, Squeeze, Unsqueeze to a sequence, 1-D convolution over it, and back."""
    b = Builder()
    h = b.squeeze(b.gap(b.relu(b.conv(stem(b), 24))), 2, 3)
    h = b.relu(b.conv(b.unsqueeze(h, -1), 16, 1))
    return b.model(b.linear(b.squeeze(h, 2), 10))


@topology()
def identity_cast_dropout() -> onnx.ModelProto:
    """Nodes that do nothing to the channels, and an initializer read through Identity."""
    b = Builder()
    h = b.op("Identity", stem(b))
    h = b.op("Cast", b.op("Cast", h, to=onnx.TensorProto.DOUBLE), to=onnx.TensorProto.FLOAT)
    weight = b.op("Identity", b.param(b.he(20, 16, 3, 3)))
    h = b.op("Dropout", b.relu(b.conv(h, 20, weight=weight)))
    return b.model(b.head(h))


@topology()
def concat_with_itself() -> onnx.ModelProto:
    """Concat(x, x), x + x and x * x."""
    b = Builder()
    h = stem(b)
    return b.model(tail(b, b.concat(b.add(h, h), b.mul(h, h), h)))


@topology()
def gram_matrix() -> onnx.ModelProto:
    """Style loss: features times their own transpose, both axes are the channels."""
    b = Builder()
    f = b.reshape(stem(b, 12), -1, 12, 64)
    gram = b.mul(b.matmul(f, b.transpose(f, 0, 2, 1)), 1 / 64)
    return b.model(b.linear(b.reshape(gram, -1, 144), 10))


@topology("split_uneven_opset11", opset=11)
@topology("split_uneven_opset13", opset=13)
@topology("split_num_outputs_opset18", opset=18)
def split_uneven(*, opset: int) -> onnx.ModelProto:
    """Sizes as attribute, sizes as input, and `num_outputs`, whose last part is smaller."""
    b = Builder(opset)
    h = stem(b, 20)
    parts = b.split(h, [4, 10, 6]) if opset < 18 else b.ops("Split", h, n=3, axis=1, num_outputs=3)
    parts = [b.relu(b.conv(part, 8)) for part in parts]
    return b.model(tail(b, b.concat(*parts)))


@topology("split_equal_opset11", opset=11)
@topology("split_equal_opset17", opset=17)
def split_equal(*, opset: int) -> onnx.ModelProto:
    """Neither sizes nor num_outputs: as many equal parts as there are outputs."""
    b = Builder(opset)
    first, second = b.ops("Split", stem(b), n=2, axis=1)
    return b.model(tail(b, b.add(first, b.sigmoid(second))))


@topology()
def gather_permutation() -> onnx.ModelProto:
    """Gather along the channels as a permutation, and one that repeats and drops channels."""
    b = Builder()
    order = b.rng.permutation(16)
    h = b.op("Gather", stem(b), b.param(order), axis=1)
    h = b.relu(b.conv(h, 12))
    return b.model(tail(b, b.op("Gather", h, [0, 3, 3, -1, 7, 5], axis=1)))


@topology()
def gather_single_channel() -> onnx.ModelProto:
    """x[:, 0] and x[:, 3] with scalar indices, stacked again (mean and RGB2BGR code in exported models)."""
    b = Builder()
    h = stem(b)
    picked = [b.unsqueeze(b.op("Gather", h, i, axis=1), 1) for i in (3, 0, 2)]
    return b.model(tail(b, b.concat(*picked, h)))


@topology()
def pad_channels() -> onnx.ModelProto:
    """Pads along channels and space; the padded channels are constants of value 0.5."""
    b = Builder()
    h = b.op("Pad", stem(b), [0, 3, 1, 1, 0, 5, 1, 1], 0.5, mode="constant")
    return b.model(tail(b, h))


@topology("pad_opset10", opset=10)
@topology("pad_reflect", mode="reflect")
@topology("pad_edge", mode="edge")
def pad_spatial(*, opset: int = 17, mode: str = "constant") -> onnx.ModelProto:
    b = Builder(opset)
    h, pads = stem(b), [0, 0, 1, 1, 0, 0, 1, 1]
    h = b.op("Pad", h, pads=pads, mode=mode) if opset < 11 else b.op("Pad", h, pads, mode=mode)
    return b.model(b.head(b.relu(b.conv(h, 16, pad=0))))


@topology()
def expand_channel_vector() -> onnx.ModelProto:
    """A (1, C, 1, 1) constant and a pooled activation are expanded to the whole map before they are added."""
    b = Builder()
    h = stem(b)
    shape = b.op("Shape", h)
    bias = b.op("Expand", b.vec(1, 16, 1, 1), shape)
    h = b.concat(b.add(h, bias), b.op("Expand", b.conv(b.gap(h), 8, 1), b.const([1, 1, 8, 8])))
    return b.model(tail(b, h))


@topology()
def tile_space_and_channels() -> onnx.ModelProto:
    b = Builder()
    h = stem(b, 8)
    wide = b.op("Tile", h, [1, 2, 1, 1])
    context = b.op("Tile", b.gap(h), [1, 1, 8, 8])
    return b.model(tail(b, b.concat(wide, context)))


@topology()
def where_mask() -> onnx.ModelProto:
    """Where with a spatial mask, and one with a constant channel mask."""
    b = Builder()
    mask = b.input("mask", ("batch", 1, 8, 8), np.bool_)
    h = b.op("Where", mask, stem(b), b.vec(16, 1, 1))
    keep = b.param((np.arange(16) % 3 > 0).reshape(1, 16, 1, 1))
    return b.model(tail(b, b.op("Where", keep, h, 0.25)))


@topology()
def greater_mask() -> onnx.ModelProto:
    """Greater, Cast, Mul: a hand-written ReLU, and a learned threshold per channel."""
    b = Builder()
    h = b.conv(stem(b), 16)
    mask = b.op("Cast", b.op("Greater", h, b.vec(16, 1, 1)), to=onnx.TensorProto.FLOAT)
    return b.model(tail(b, b.mul(h, mask)))


@topology()
def yolo_head() -> onnx.ModelProto:
    """(N, anchors * (5 + classes), H, W) to (N, anchors, H, W, 5 + classes), grid constants, Concat."""
    b = Builder()
    x = stem(b)
    outputs = []
    for h in (x, b.relu(b.conv(x, 24, stride=2))):
        size = b.channels(h, 2)
        y = b.reshape(b.conv(b.relu(b.conv(h, 16)), 3 * 7, 1), b.size(h, 0), 3, 7, size, size)
        y = b.sigmoid(b.declare(b.transpose(y, 0, 1, 3, 4, 2), ("batch", 3, size, size, 7)))
        xy, wh, rest = b.split(y, [2, 2, 3], axis=4)
        xy = b.add(b.mul(xy, 2.0), b.param(b.uniform(0, size, 1, 3, size, size, 2)))
        wh = b.mul(b.op("Pow", b.mul(wh, 2.0), 2.0), b.param(b.uniform(1, 4, 1, 3, 1, 1, 2)))
        outputs.append(b.reshape(b.concat(xy, wh, rest, axis=4), b.size(h, 0), 3 * size * size, 7))
    return b.model(b.concat(*outputs))


@topology()
def ssd_head() -> onnx.ModelProto:
    """Per level: convolution to anchors * classes, NHWC, Reshape to (N, -1, classes), Concat, Softmax."""
    b = Builder()
    levels = [stem(b)]
    levels.append(b.relu(b.conv(levels[0], 24, stride=2)))

    def collect(per_anchor: int) -> str:
        maps = [b.transpose(b.conv(h, 4 * per_anchor), 0, 2, 3, 1) for h in levels]
        return b.concat(*[b.reshape(m, b.size(m, 0), -1, per_anchor) for m in maps])

    return b.model(collect(4), b.softmax(collect(6)))


@topology()
def dfl_head() -> onnx.ModelProto:
    """YOLOv8: boxes as distributions, (N, 4 * bins, A) to (N, 4, bins, A), Softmax, a fixed 1x1 convolution."""
    b = Builder()
    x = stem(b)
    box = b.conv(b.silu(b.conv(x, 16)), 4 * 8, 1)
    scores = b.conv(b.silu(b.conv(x, 12)), 5, 1)
    flat = b.reshape(b.concat(box, scores), -1, 37, 64)
    box, scores = b.split(flat, [32, 5])
    bins = b.softmax(b.transpose(b.reshape(box, -1, 4, 8, 64), 0, 2, 1, 3), axis=1)
    weight = b.param(np.arange(8.0).reshape(1, 8, 1, 1), "dfl.weight")
    distance = b.reshape(b.conv(bins, 1, 1, weight=weight, bias=False), -1, 4, 64)
    return b.model(b.concat(distance, b.sigmoid(scores)))
