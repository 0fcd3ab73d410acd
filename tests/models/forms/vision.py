"""Vision and speech."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from models.builder import INT_MAX, Array
from models.forms.form import BATCH, FFN, HEAD, LABELS, LAYERS, TIME, WIDTH, form
from models.forms.net import Net

# Vision and speech


@form(heads=(4, 4, 8), head_dim=(6, 6, 6), hidden=(24, 48), channels=(FFN, FFN, 64), blocks=6)
def swin() -> ModelProto:
    """Windows by Reshape and Transpose, a bias table per block, a shifted window with its mask, patch merging."""
    b = Net()
    window = 4

    def attention(x: str, heads: int, mask: Array | None) -> str:
        windows, n, width = b.shape(x)
        qkv = b.reshape(b.dense(x, 3 * int(width)), windows, n, 3, heads, int(width) // heads)
        q, k, v = (b.op("Gather", b.transpose(qkv, 2, 0, 3, 1, 4), i, axis=0) for i in range(3))
        grid = np.stack(np.meshgrid(range(window), range(window), indexing="ij")).reshape(2, -1)
        near = grid[:, :, None] - grid[:, None] + window - 1
        side = 2 * window - 1
        table = b.param(b.normal(side * side, heads, scale=0.7), "relative_position_bias_table")
        bias = b.reshape(b.op("Gather", table, (near[0] * side + near[1]).ravel(), axis=0), n, n, -1)
        scores = b.add(b.scores(q, k, scale="q"), b.unsqueeze(b.transpose(bias, 2, 0, 1), 0))
        if mask is not None:
            apart = b.reshape(scores, BATCH, len(mask), heads, n, n)
            scores = b.reshape(b.add(apart, mask[None, :, None]), -1, heads, n, n)
        mixed = b.transpose(b.matmul(b.softmax(scores), v), 0, 2, 1, 3)
        return b.dense(b.reshape(mixed, windows, n, width), int(width))

    def roll(x: str, by: int) -> str:
        for axis in (1, 2):
            x = b.concat(b.slice(x, -by, INT_MAX, axis), b.slice(x, 0, -by, axis), axis=axis)
        return x

    def block(x: str, size: int, heads: int, hidden: int, shift: int = 0) -> str:
        width, count = b.channels(x, -1), size // window
        y = b.reshape(b.layernorm(x), BATCH, size, size, width)
        y = roll(y, -shift) if shift else y
        y = b.transpose(b.reshape(y, BATCH, count, window, count, window, width), 0, 1, 3, 2, 4, 5)
        y = b.reshape(b.reshape(y, -1, window, window, width), -1, window * window, width)
        y = attention(y, heads, shift_mask(size, window, shift) if shift else None)
        y = b.reshape(y, -1, window, window, width)
        y = b.transpose(b.reshape(y, BATCH, count, count, window, window, -1), 0, 1, 3, 2, 4, 5)
        y = b.reshape(y, BATCH, size, size, -1)
        x = b.add(x, b.reshape(roll(y, shift) if shift else y, BATCH, size * size, width))
        return b.add(x, b.ffn(b.layernorm(x), hidden))

    x = b.conv(b.input("pixels", (BATCH, 3, 16, 16)), 24, 2, stride=2, pad=0)
    x = b.layernorm(b.transpose(b.reshape(x, BATCH, 24, 64), 0, 2, 1))
    x = block(block(x, 8, 4, FFN), 8, 4, FFN, shift=2)
    x = b.reshape(x, BATCH, 8, 8, 24)
    quarters = [b.slice(b.slice(x, i, INT_MAX, 1, 2), j, INT_MAX, 2, 2) for j in (0, 1) for i in (0, 1)]
    x = b.dense(b.layernorm(b.reshape(b.concat(*quarters, axis=-1), BATCH, -1, 96)), 48, bias=False)
    x = b.transpose(b.layernorm(block(x, 4, 8, 64)), 0, 2, 1)
    return b.model(b.linear(b.flatten(b.gap(x)), LABELS))


def shift_mask(size: int, window: int, shift: int) -> Array:
    """(windows, n, n): -100 between positions of a shifted window that are not neighbours in the image."""
    part = np.searchsorted([size - window, size - shift], np.arange(size), side="right")
    squares = (3 * part[:, None] + part[None]).reshape(size // window, window, size // window, window)
    region = squares.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(region[:, :, None] == region[:, None], 0.0, -100.0).astype(np.float32)


@form(channels=(FFN, 28, FFN) * LAYERS, blocks=4 * LAYERS)
def conformer() -> ModelProto:
    """Half-step feed-forward layers, attention, and convolution: pointwise, GLU, depthwise, BatchNorm, Swish."""
    b = Net()
    x = b.dense(b.input("features", (BATCH, TIME, 21)), WIDTH)

    def half_ffn(x: str) -> str:
        return b.add(x, b.mul(b.dense(b.silu(b.dense(b.layernorm(x), FFN)), WIDTH), 0.5))

    def convolution(x: str, inner: int = 28) -> str:
        y = b.conv(b.transpose(b.layernorm(x), 0, 2, 1), 2 * inner, 1)
        value, gate = b.split(y, [inner, inner], axis=1)
        y = b.conv(b.mul(value, b.sigmoid(gate)), inner, 3, group=inner)
        return b.transpose(b.conv(b.silu(b.bn(y)), WIDTH, 1), 0, 2, 1)

    for _ in range(LAYERS):
        x = half_ffn(x)
        x = b.add(x, b.mha(b.layernorm(x)))
        x = b.add(x, convolution(x))
        x = b.layernorm(half_ffn(x))
    return b.language_model(x)


@form(channels=(16, 20, FFN, FFN, 18, 26), head_dim=(HEAD,) * 4)
def mobilevit() -> ModelProto:
    """Convolutions, patches unfolded by Reshape and Transpose over a merged batch and channel axis, folded back."""
    b = Net()

    def conv(x: str, width: int, k: int = 3) -> str:
        return b.silu(b.bn(b.conv(x, width, k, bias=False)))

    stem = b.silu(b.bn(b.conv(b.input("pixels", (BATCH, 3, 8, 12)), 16, 3, stride=2, bias=False)))  # 4 x 6
    x = b.conv(conv(stem, 20), WIDTH, 1, bias=False)
    x = b.transpose(b.reshape(x, BATCH * WIDTH * 2, 2, 3, 2), 0, 2, 1, 3)  # rows of patches, 2 x 2 each
    x = b.transpose(b.reshape(x, BATCH, WIDTH, 6, 4), 0, 3, 2, 1)
    x = b.pre_norm(b.reshape(x, BATCH * 4, 6, WIDTH), b.mha)
    x = b.transpose(b.reshape(x, BATCH, 4, 6, WIDTH), 0, 3, 2, 1)
    x = b.transpose(b.reshape(x, BATCH * WIDTH * 2, 3, 2, 2), 0, 2, 1, 3)
    x = conv(b.reshape(x, BATCH, WIDTH, 4, 6), 18, 1)
    return b.model(b.head(conv(b.concat(stem, x), 26), LABELS))


@form(heads=(), head_dim=(), hidden=(), channels=(16, 12, 14, 18), blocks=3)
def resnet_depth() -> ModelProto:
    """Three residual blocks of equal shape, relu(x + f(x)): depth without a normalisation that crosses channels."""
    b = Net()
    x = b.relu(b.bn(b.conv(b.input("pixels", (BATCH, 3, 8, 8)), 16, bias=False)))
    for inner in (12, 14, 18):
        y = b.relu(b.bn(b.conv(x, inner, bias=False)))
        x = b.relu(b.add(b.bn(b.conv(y, 16, bias=False)), x))
    return b.model(b.head(x, LABELS))
