"""Channel attention, selection of kernels, and networks that mix channels with space."""

from __future__ import annotations

import numpy as np
import onnx

from models.builder import Builder
from models.topologies.registry import image, stem, tail, topology

# Channel attention and selection


@topology("squeeze_excite_conv", form="conv")
@topology("squeeze_excite_gemm", form="gemm")
@topology("squeeze_excite_hard", form="hard")
@topology("squeeze_excite_nhwc", form="nhwc")
def squeeze_excite(*, form: str) -> onnx.ModelProto:
    """GAP, two small layers, a gate per channel; as 1x1 convolutions, as Gemms with Reshape back, as Keras does."""
    b = Builder()
    x = b.relu(b.bn(b.conv(stem(b), 24)))
    if form == "gemm":
        s = b.reshape(b.gap(x), b.size(x, 0), 24)
        s = b.sigmoid(b.linear(b.relu(b.linear(s, 8)), 24))
        gate = b.reshape(s, b.size(x, 0), 24, 1, 1)
    elif form == "nhwc":
        s = b.reshape(b.reduce("Mean", x, 2, 3, keepdims=0), -1, 1, 1, 24)
        gate = b.transpose(b.sigmoid(b.dense(b.silu(b.dense(s, 8)), 24)), 0, 3, 1, 2)
    else:
        s = b.conv(b.relu(b.conv(b.gap(x), 8, 1)), 24, 1)
        gate = b.op("HardSigmoid", s, alpha=1 / 6, beta=0.5) if form == "hard" else b.sigmoid(s)
    return b.model(b.head(b.relu(b.conv(b.mul(x, gate), 16, 1))))


@topology()
def efficient_channel_attention() -> onnx.ModelProto:
    """ECA: a 1-D convolution slides along the channels, so their order and number matter."""
    b = Builder()
    x = stem(b)
    s = b.transpose(b.squeeze(b.gap(x), -1), 0, 2, 1)
    s = b.unsqueeze(b.transpose(b.conv(s, 1, 3, bias=False), 0, 2, 1), -1)
    return b.model(tail(b, b.mul(x, b.sigmoid(s))))


@topology()
def cbam() -> onnx.ModelProto:
    """Channel gate from average and maximum through one shared MLP; spatial gate from ReduceMean and ReduceMax."""
    b = Builder()
    x = b.relu(b.conv(stem(b), 24))
    w1, w2 = b.param(b.he(6, 24, 1, 1)), b.param(b.he(24, 6, 1, 1))

    def excite(s: str) -> str:
        return b.conv(b.relu(b.conv(s, 6, 1, weight=w1, bias=False)), 24, 1, weight=w2, bias=False)

    x = b.mul(x, b.sigmoid(b.add(excite(b.gap(x)), excite(b.op("GlobalMaxPool", x)))))
    space = b.concat(b.reduce("Mean", x, 1), b.reduce("Max", x, 1))
    return b.model(tail(b, b.mul(x, b.sigmoid(b.conv(space, 1, 7, bias=False)))))


@topology()
def selective_kernel() -> onnx.ModelProto:
    """SKNet: branches are stacked on a new axis, weighed by a Softmax over the branches, and summed."""
    b = Builder()
    x = stem(b)
    branches = [b.relu(b.bn(b.conv(x, 16, dilation=d, bias=False))) for d in (1, 2)]
    z = b.relu(b.conv(b.gap(b.add(*branches)), 8, 1))
    weights = b.softmax(b.concat(*[b.unsqueeze(b.conv(z, 16, 1), 1) for _ in branches]), axis=1)
    stacked = b.concat(*[b.unsqueeze(y, 1) for y in branches])
    return b.model(tail(b, b.reduce("Sum", b.mul(stacked, weights), 1, keepdims=0)))


@topology()
def split_attention() -> onnx.ModelProto:
    """ResNeSt: the radix lies in the channels; Reshape, ReduceSum, grouped 1x1, Softmax over the radix."""
    b = Builder()
    u = b.relu(b.bn(b.conv(stem(b), 32, group=2, bias=False)))
    parts = b.reshape(u, -1, 2, 16, 8, 8)
    z = b.gap(b.declare(b.reduce("Sum", parts, 1, keepdims=0), ("batch", 16, 8, 8)))
    scores = b.reshape(b.conv(b.relu(b.conv(z, 8, 1)), 32, 1), -1, 1, 2, 16)
    gate = b.reshape(b.softmax(b.transpose(scores, 0, 2, 1, 3), axis=1), -1, 2, 16, 1, 1)
    y = b.declare(b.reduce("Sum", b.mul(parts, gate), 1, keepdims=0), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


@topology()
def coordinate_attention() -> onnx.ModelProto:
    """Pools along each spatial axis, joined, one 1x1 convolution, split again into two gates."""
    b = Builder()
    x = stem(b)
    rows = b.reduce("Mean", x, 3)
    columns = b.transpose(b.reduce("Mean", x, 2), 0, 1, 3, 2)
    y = b.op("HardSwish", b.bn(b.conv(b.concat(rows, columns, axis=2), 8, 1)))
    rows, columns = b.split(y, [8, 8], axis=2)
    gates = [b.sigmoid(b.conv(t, 16, 1)) for t in (rows, b.transpose(columns, 0, 1, 3, 2))]
    return b.model(tail(b, b.mul(b.mul(x, gates[0]), gates[1])))


@topology()
def channel_cross_attention() -> onnx.ModelProto:
    """XCiT, Restormer: channels attend to channels, with L2-normalised queries and keys."""
    b = Builder()
    x = stem(b)
    qkv = b.conv(b.conv(x, 48, 1), 48, group=48)
    q, k, v = (b.reshape(part, -1, 2, 8, 64) for part in b.split(qkv, [16, 16, 16]))
    q, k = (b.op("Div", t, b.op("Clip", b.reduce("L2", t, -1), 1e-6)) for t in (q, k))
    scores = b.softmax(b.mul(b.matmul(q, b.transpose(k, 0, 1, 3, 2)), b.param(b.uniform(0.5, 1.5, 2, 1, 1))))
    y = b.reshape(b.matmul(scores, v), -1, 16, 8, 8)
    return b.model(tail(b, b.add(x, b.conv(y, 16, 1))))


@topology()
def aspp() -> onnx.ModelProto:
    """DeepLab: dilated branches, image pooling resized to the map's size as read from Shape, Concat."""
    b = Builder()
    x = b.relu(b.conv(stem(b), 16))
    branches = [b.relu(b.bn(b.conv(x, 12, 1)))]
    branches += [b.relu(b.bn(b.conv(x, 12, dilation=d))) for d in (2, 3)]
    pool = b.relu(b.bn(b.conv(b.gap(x), 12, 1)))
    space = b.op("Slice", b.op("Shape", x), [2], [4], [0])
    sizes = b.concat(b.op("Slice", b.op("Shape", pool), [0], [2], [0]), space, axis=0)
    pool = b.op("Resize", pool, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    branches.append(b.declare(pool, ("batch", 12, 8, 8)))
    y = b.relu(b.bn(b.conv(b.concat(*branches), 20, 1)))
    return b.model(b.op("Resize", b.conv(y, 5, 1), "", [1.0, 1.0, 2.0, 2.0], mode="linear"))


@topology()
def convnext() -> onnx.ModelProto:
    """Depthwise 7x7, NHWC LayerNormalization, two linears, layer scale, back to NCHW; a 2x2 downsampling in between."""
    b = Builder()
    x = b.conv(image(b, size=16), 16, 2, stride=2, pad=0)
    for width in (16, 24):
        if width != b.channels(x):
            x = b.transpose(b.layernorm(b.transpose(x, 0, 2, 3, 1)), 0, 3, 1, 2)
            x = b.conv(x, width, 2, stride=2, pad=0)
        y = b.layernorm(b.transpose(b.conv(x, width, 7, group=width), 0, 2, 3, 1))
        y = b.mul(b.param(b.uniform(0.1, 0.5, width), "gamma"), b.ffn(y, 2 * width))
        x = b.add(x, b.transpose(y, 0, 3, 1, 2))
    return b.model(b.linear(b.layernorm(b.flatten(b.gap(x))), 10))


@topology()
def convnext_v2_grn() -> onnx.ModelProto:
    """Global response normalisation: each hidden channel is divided by the mean norm over all of them."""
    b = Builder()
    x = stem(b)
    y = b.layernorm(b.transpose(b.conv(x, 16, 7, group=16), 0, 2, 3, 1))
    y = b.gelu(b.dense(y, 32))
    norm = b.reduce("L2", y, 1, 2)
    norm = b.op("Div", norm, b.add(b.reduce("Mean", norm, -1), 1e-6))
    y = b.add(b.add(b.mul(b.vec(1, 1, 1, 32), b.mul(y, norm)), b.vec(1, 1, 1, 32)), y)
    return b.model(tail(b, b.add(x, b.transpose(b.dense(y, 16), 0, 3, 1, 2))))


@topology()
def mobilevit() -> onnx.ModelProto:
    """Unfold into 2x2 patches, a transformer over the patches, fold; Concat with the input."""
    b = Builder()
    x = stem(b)
    y = b.conv(b.silu(b.conv(x, 16)), 12, 1, bias=False)
    y = b.transpose(b.reshape(y, -1, 2, 4, 2), 0, 2, 1, 3)
    y = b.reshape(y, -1, 12, 16, 4)
    y = b.reshape(b.transpose(y, 0, 3, 2, 1), -1, 16, 12)
    y = b.declare(y, (None, 16, 12))
    y = b.add(y, b.attention(b.layernorm(y), 2))
    y = b.layernorm(b.add(y, b.ffn(b.layernorm(y), 24)))
    y = b.transpose(b.reshape(y, -1, 4, 16, 12), 0, 3, 2, 1)
    y = b.transpose(b.reshape(y, -1, 4, 2, 2), 0, 2, 1, 3)
    y = b.reshape(y, -1, 12, 8, 8)
    return b.model(tail(b, b.concat(x, b.silu(b.conv(y, 16, 1)))))


@topology()
def pointnet() -> onnx.ModelProto:
    """Shared MLP on points, a predicted 8x8 feature transform, maximum over the points."""
    b = Builder()
    h = b.relu(b.bn(b.conv(b.input("points", ("batch", 3, 32)), 8, 1)))
    t = b.reduce("Max", b.relu(b.conv(h, 16, 1)), 2, keepdims=0)
    t = b.reshape(b.add(b.linear(b.relu(b.linear(t, 12)), 64), b.param(np.eye(8).reshape(-1))), -1, 8, 8)
    h = b.transpose(b.matmul(b.transpose(h, 0, 2, 1), t), 0, 2, 1)
    h = b.reduce("Max", b.bn(b.conv(b.declare(h, ("batch", 8, 32)), 24, 1)), 2, keepdims=0)
    return b.model(b.linear(b.relu(b.linear(h, 16)), 10))


@topology()
def siamese_correlation() -> onnx.ModelProto:
    """SiamFC: the template's features are the Conv weight for the search's features; one backbone for both."""
    b = Builder()
    template, search = b.input("template", (1, 3, 6, 6)), b.input("search", (1, 3, 12, 12))
    w1, w2 = b.param(b.he(16, 3, 3, 3)), b.param(b.he(12, 16, 3, 3))

    def embed(x: str) -> str:
        return b.conv(b.relu(b.conv(x, 16, weight=w1)), 12, weight=w2, bias=False)

    return b.model(b.op("Conv", embed(search), embed(template), kernel_shape=[6, 6]))
