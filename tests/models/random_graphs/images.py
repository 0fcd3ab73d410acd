"""Convolutional blocks, on tensors (N, C, L) and (N, C, H, W)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from models.random_graphs.any_rank import constant
from models.random_graphs.last_axis import attention, dense, ffn, layer_norm
from models.random_graphs.net import INT_MAX, LONGEST, Net, block


@block(3, 4, weight=4)
def conv(b: Net, x: str) -> str:
    c = b.shape(x)[1]
    k, stride = b.draw.pick((3, 1)), b.draw.pick((1, 1, 1, 2))
    g = b.draw.pick([1, 1, 1] + [d for d in range(2, c + 1) if c % d == 0])
    y = b.conv(x, b.width(g), k, group=g, stride=stride, pad=b.draw.pick((-1, -1, 0)))
    return b.act(y) if b.draw.chance(2) else y


@block(3, 4, weight=2)
def depthwise(b: Net, x: str) -> str:
    c = b.shape(x)[1]
    times = b.draw.pick((1, 1, 2, 3))
    return b.conv(x, c * times, 3, group=c) if b.fits(*b.shape(x)[1:2], times, *b.shape(x)[2:]) else x


@block(3, 4, weight=2)
def bottleneck(b: Net, x: str) -> str:
    """Inverted residual: expand, depthwise, project, add."""
    c = b.shape(x)[1]
    h = b.act(b.conv(x, b.width()))
    if b.draw.chance(2):
        h = b.act(b.conv(h, b.shape(h)[1], 3, group=b.shape(h)[1]))
    return b.op("Add", x, b.conv(h, c))


@block(3, 4)
def deconv(b: Net, x: str) -> str:
    _, c, *space = b.shape(x)
    if not b.fits(24, *[2 * s for s in space]):
        return x
    g = b.draw.pick([1, 1] + [d for d in range(2, c + 1) if c % d == 0])
    cout = b.width(g)
    w = b.weight(c, cout // g, *[2] * len(space), fan_in=c // g)
    return b.op("ConvTranspose", x, w, b.bias(cout), group=g, strides=[2] * len(space))


@block(2, 4, weight=2)
def batch_norm(b: Net, x: str) -> str:
    c = b.shape(x)[1]
    stats = [b.param(v) for v in (b.positive(c), b.normal(c), b.normal(c), b.positive(c))]
    return b.op("BatchNormalization", x, *stats)


@block(3, 4)
def instance_norm(b: Net, x: str) -> str:
    c = b.shape(x)[1]
    if math.prod(b.shape(x)[2:]) < 4:
        return x
    return b.op("InstanceNormalization", x, b.param(b.positive(c)), b.param(b.normal(c)))


@block(3, 4, weight=2)
def group_norm(b: Net, x: str) -> str:
    """As one operator, or as PyTorch exports it: Reshape, InstanceNormalization, Reshape, Mul, Add."""
    n, c, *space = b.shape(x)
    g = b.draw.pick([d for d in range(1, c + 1) if c % d == 0])
    if math.prod(space) * c // g < 4:
        return x
    scale, bias = b.positive(c), b.normal(c)
    if b.opset >= 21 and not b.draw.chance(3):
        return b.op("GroupNormalization", x, b.param(scale), b.param(bias), num_groups=g, shape=b.shape(x))
    y = b.reshape(x, n, g, c // g * math.prod(space))
    y = b.op("InstanceNormalization", y, b.param(np.ones(g)), b.param(np.zeros(g)))
    y = b.reshape(y, n, c, *space)
    tail = (c, *[1] * len(space))
    return b.op("Add", b.op("Mul", y, b.param(scale.reshape(tail))), b.param(bias.reshape(tail)))


@block(3, 4, weight=2)
def pool(b: Net, x: str) -> str:
    _, _, *space = b.shape(x)
    kind = b.draw.pick(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"))
    if kind.startswith("Global"):
        return b.op(kind, x)
    if min(space) < 2:
        return x
    more: dict[str, Any] = (
        {"count_include_pad": 1, "pads": [1] * 2 * len(space)} if kind == "AveragePool" and b.draw.chance(2) else {}
    )
    return b.op(kind, x, kernel_shape=[2] * len(space), strides=[b.draw.pick((2, 1))] * len(space), **more)


@block(4, 4)
def resize(b: Net, x: str) -> str:
    n, c, h, w = b.shape(x)
    if not b.fits(c, 2 * h, 2 * w):
        return x
    mode: dict[str, Any] = {"mode": b.draw.pick(("nearest", "linear")), "coordinate_transformation_mode": "asymmetric"}
    if b.dynamic or b.draw.chance(2):
        scales = np.array([1, 1, 2, b.draw.pick((2, 1))], np.float32)
        return b.op("Resize", x, np.zeros(0, np.float32) if b.opset < 13 else None, scales, **mode)
    return b.op("Resize", x, np.zeros(0, np.float32) if b.opset < 13 else None,
                np.zeros(0, np.float32) if b.opset < 13 else None, np.array([n, c, 2 * h, w]), **mode)  # fmt: skip


@block(3, 4, weight=2)
def channel_shuffle(b: Net, x: str) -> str:
    n, c, *space = b.shape(x)
    factors = [d for d in range(2, c) if c % d == 0]
    if not factors:
        return x
    g = b.draw.pick(factors)
    y = b.transpose(b.reshape(x, n, g, c // g, *space), 0, 2, 1, *range(3, 3 + len(space)))
    y = b.reshape(y, n, c, *space)
    if b.draw.chance(2):
        h = b.draw.pick([d for d in factors if c % d == 0])
        y = b.conv(y, b.width(h), group=h)
    return y


@block(4, 4, weight=2)
def pixel_shuffle(b: Net, x: str) -> str:
    n, c, h, w = b.shape(x)
    form = b.draw.pick(("DCR", "CRD", "reshape", "space", "unshuffle"))
    if form in ("space", "unshuffle"):
        if h % 2 or w % 2 or 4 * c > LONGEST:
            return x
        if form == "space":
            return b.op("SpaceToDepth", x, blocksize=2)
        y = b.transpose(b.reshape(x, n, c, h // 2, 2, w // 2, 2), 0, 1, 3, 5, 2, 4)
        return b.reshape(y, n, 4 * c, h // 2, w // 2)
    if c % 4 or not b.fits(c // 4, 2 * h, 2 * w):
        return x
    if form == "reshape":
        y = b.transpose(b.reshape(x, n, c // 4, 2, 2, h, w), 0, 1, 4, 2, 5, 3)
        return b.reshape(y, n, c // 4, 2 * h, 2 * w)
    return b.op("DepthToSpace", x, blocksize=2, mode=form)


@block(3, 4, weight=2)
def squeeze_excite(b: Net, x: str) -> str:
    n, c, *space = b.shape(x)
    form = b.draw.pick(("conv", "gemm", "hard", "channels"))
    if form == "channels":  # spatial attention
        parts = [b.reduce(k, x, [1]) for k in b.draw.pick((("Mean", "Max"), ("Mean",), ("Sum", "L2")))]
        y = parts[0] if len(parts) == 1 else b.op("Concat", *parts, axis=1)
        return b.op("Mul", x, b.op("Sigmoid", b.conv(y, 1, 3)))
    s = b.reduce("Mean", x, range(2, 2 + len(space))) if b.draw.chance(2) else b.op("GlobalAveragePool", x)
    if form == "gemm":
        h = b.dense(b.act(b.dense(b.op("Flatten", s, axis=1), b.width())), c)
        h = b.reshape(h, n, c, *[1] * len(space)) if b.draw.chance(2) else b.unsqueeze(h, *range(2, 2 + len(space)))
    else:
        h = b.conv(b.act(b.conv(s, b.width())), c)
    return b.op("Mul", x, b.op("HardSigmoid" if form == "hard" else "Sigmoid", h))


@block(3, 4)
def channels_last(b: Net, x: str) -> str:
    """Through NHWC: a dense layer or a normalisation there, and back."""
    rank = len(b.shape(x))
    y = b.transpose(x, 0, *range(2, rank), 1)
    y = b.draw.pick((dense, layer_norm, constant, ffn))(b, y)
    return b.transpose(y, 0, rank - 1, *range(1, rank - 1)) if b.draw.chance(2) else y


@block(3, 4, weight=2)
def tied(b: Net, x: str) -> str:
    """One convolution used twice or more: on its own output, on another tensor, at another size."""
    _, c, *space = b.shape(x)
    g = b.draw.pick([1, 1] + [d for d in range(2, c + 1) if c % d == 0])
    w, bias = b.weight(c, c // g, *[1] * len(space), fan_in=c // g), b.bias(c)
    y = b.op("Conv", x, w, bias, group=g)
    form = b.draw.pick(("again", "siblings", "pyramid", "two_biases"))
    if form == "again":
        return b.op("Conv", b.act(y), w, bias, group=g)
    if form == "siblings":
        return b.op("Add", y, b.op("Conv", b.act(x), w, bias, group=g))
    if form == "two_biases":
        return b.op("Sub", b.act(y), b.op("Conv", b.act(x), w, b.param(b.normal(c)), group=g))
    z = b.op("Conv", b.op("GlobalAveragePool", x), w, bias, group=g)
    return b.op("Mul", y, b.op("Sigmoid", z))


@block(3, 4, weight=2)
def shuffle_unit(b: Net, x: str) -> str:
    """ShuffleNet: grouped, shuffled, depthwise, grouped, added."""
    n, c, *space = b.shape(x)
    factors = [d for d in range(2, c) if c % d == 0]
    if not factors:
        return x
    g = b.draw.pick(factors)
    h = b.act(b.conv(x, c, group=g))
    h = b.transpose(b.reshape(h, n, g, c // g, *space), 0, 2, 1, *range(3, 3 + len(space)))
    h = b.conv(b.reshape(h, n, c, *space), c, 3, group=c)
    return b.op("Add", x, b.conv(h, c, group=b.draw.pick(factors)))


@block(3, 4)
def res2net(b: Net, x: str) -> str:
    """Parts of the channels through a chain of convolutions, joined and added."""
    c = b.shape(x)[1]
    if c % 4:
        return x
    parts = b.split(x, [c // 4] * 4, 1)
    outs, carry = [parts[0]], parts[1]
    for part in parts[2:]:
        outs.append(b.act(b.conv(carry, c // 4, 3)))
        carry = b.op("Add", part, outs[-1])
    y = b.op("Concat", *outs, b.conv(carry, c // 4), axis=1)
    return b.op("Add", b.conv(y, c), x) if b.draw.chance(2) else y


@block(3, 4)
def option_a(b: Net, x: str) -> str:
    """A shortcut that pads the channels with zeros."""
    _, c, *space = b.shape(x)
    before, after = b.draw.integer(0, 2), b.draw.integer(1, 4)
    pads = np.zeros((2, 2 + len(space)), np.int64)
    pads[:, 1] = before, after
    if b.opset >= 18 and b.draw.chance(2):
        short = b.op("Pad", x, [before, after], None, [b.draw.pick((1, 1 - 2 - len(space)))])
    else:
        short = b.op("Pad", x, pads.ravel())
    return b.op("Add", b.conv(x, before + c + after, b.draw.pick((3, 1))), short)


@block(4, 4)
def focus(b: Net, x: str) -> str:
    """Patch merging: every second row and column, joined along the channels."""
    _, c, h, w = b.shape(x)
    if h % 2 or w % 2 or 4 * c > LONGEST:
        return x
    rows = [b.slice(x, k, INT_MAX, 2, 2) for k in (0, 1)]
    return b.op("Concat", *[b.slice(r, k, INT_MAX, 3, 2) for k in (0, 1) for r in rows], axis=1)


@block(4, 4)
def windows(b: Net, x: str) -> str:
    """Attention or a dense layer inside windows of two by two, as Swin cuts them."""
    n, c, h, w = b.shape(x)
    if h % 2 or w % 2:
        return x
    y = b.transpose(b.reshape(x, n, c, h // 2, 2, w // 2, 2), 0, 2, 4, 3, 5, 1)
    y = b.reshape(y, n * h * w // 4, 4, c, batch=False)
    y = b.draw.pick((attention, ffn, layer_norm))(b, y)
    y = b.reshape(y, n, h // 2, w // 2, 2, 2, c, batch=False)
    return b.reshape(b.transpose(y, 0, 5, 1, 3, 2, 4), n, c, h, w)


@block(3, 4)
def channel_attention(b: Net, x: str) -> str:
    """Attention of channels over channels, in one head or in several."""
    n, c, *space = b.shape(x)
    size = math.prod(space)
    heads = b.draw.pick([d for d in (1, 2, 4) if c % d == 0])
    q, k, v = (b.reshape(b.conv(x, c), n, heads, c // heads, size) for _ in range(3))
    if b.draw.chance(2):
        q, k = (b.op("LpNormalization", t, axis=-1, p=2) for t in (q, k))
    y = b.op("MatMul", b.op("Softmax", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), axis=-1), v)
    return b.conv(b.reshape(y, n, c, *space), c)


@block(3, 4)
def computed_weight(b: Net, x: str) -> str:
    """A convolution whose weight is computed from another tensor."""
    _, c, *space = b.shape(x)
    if b.dynamic or b.batch > 1:
        return x
    o = b.draw.pick((4, 3))
    v = b.dense(b.op("Flatten", b.op("GlobalAveragePool", x), axis=1), o * c)
    return b.op("Conv", x, b.op("Reshape", v, np.array([o, c, *[1] * len(space)]), shape=(o, c, *[1] * len(space))))


@block(3, 5)
def maxout(b: Net, x: str) -> str:
    """An axis in two factors, one of them reduced."""
    n, *rest = b.shape(x)
    k = b.draw.integer(0, len(rest) - 1)
    factors = [f for f in range(2, rest[k]) if rest[k] % f == 0]
    if not factors:
        return x
    f = b.draw.pick(factors)
    y = b.reshape(x, n, *rest[:k], f, rest[k] // f, *rest[k + 1 :])
    return b.reduce(b.draw.pick(("Max", "Sum", "Mean", "L2")), y, [k + b.draw.pick((1, 2))], 0)


@block(4, 4)
def to_tokens(b: Net, x: str) -> str:
    n, c, h, w = b.shape(x)
    return b.transpose(b.reshape(x, n, c, h * w), 0, 2, 1) if h * w <= LONGEST else x


@block(3, 4)
def mixes_channels(b: Net, x: str) -> str:
    kind = b.draw.pick(("LRN", "LpNormalization", "MeanVarianceNormalization"))
    if kind == "LRN":
        return b.op("LRN", x, size=3, alpha=0.1) if len(b.shape(x)) == 4 else x
    if kind == "LpNormalization":
        return b.op(kind, x, axis=b.draw.pick((1, -1)), p=2)
    fits = b.opset < 13 and len(b.shape(x)) == 4 and math.prod(b.shape(x)[2:]) > 3
    return b.op(kind, x, shape=b.shape(x)) if fits else x
