"""Layers as linear regressions: rows times matrix are what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from onnx import ModelProto

from models.nets import Array, anything, build, fixed, normal, run
from onnxprune import load
from onnxprune.layers import patches
from onnxprune.layers.layer import Layer, linear_layers
from onnxprune.layers.patches import Window
from onnxprune.layers.rows import kernel_shape, matrix, output_rows, positions, rows, weight_of
from onnxprune.layers.values import Values

IMAGE, LINE, CUBE = (2, 4, 9, 8), (3, 4, 11), (2, 2, 5, 6, 4)
W33, DECONV = (6, 4, 3, 3), (4, 6, 3, 3)

LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {  # node, shapes of x and w; bias b where it is read
    "conv": ("y = Conv(x, w, b)", IMAGE, W33),
    "conv 1x1": ("y = Conv(x, w, b)", IMAGE, (6, 4, 1, 1)),
    "conv 1x1 strided": ("y = Conv<strides = [2, 3]>(x, w)", IMAGE, (6, 4, 1, 1)),
    "conv 1x1 padded": ("y = Conv<pads = [1, 0, 0, 2]>(x, w)", IMAGE, (6, 4, 1, 1)),
    "conv 1x1 grouped": ("y = Conv<group = 2>(x, w, b)", IMAGE, (6, 2, 1, 1)),
    "conv strides": ("y = Conv<strides = [2, 3]>(x, w, b)", IMAGE, W33),
    "conv pads": ("y = Conv<pads = [1, 0, 2, 1]>(x, w)", IMAGE, W33),
    "conv dilations": ("y = Conv<dilations = [2, 3], pads = [1, 2, 3, 4]>(x, w)", IMAGE, W33),
    "conv same upper": ('y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w, b)', IMAGE, (6, 4, 4, 3)),
    "conv same lower": ('y = Conv<auto_pad = "SAME_LOWER", strides = [2, 3]>(x, w, b)', IMAGE, (6, 4, 4, 3)),
    "conv valid": ('y = Conv<auto_pad = "VALID", strides = [2, 2]>(x, w)', IMAGE, W33),
    "conv groups": ("y = Conv<group = 2, pads = [1, 1, 1, 1]>(x, w, b)", IMAGE, (6, 2, 3, 3)),
    "conv depthwise": ("y = Conv<group = 4, strides = [2, 1]>(x, w, b)", IMAGE, (8, 1, 3, 3)),
    "conv 1-D": ("y = Conv<strides = [2], pads = [2, 1], dilations = [2]>(x, w, b)", LINE, (6, 4, 3)),
    "conv 1-D same": ('y = Conv<auto_pad = "SAME_LOWER", group = 2>(x, w)', LINE, (6, 2, 4)),
    "conv 3-D": ("y = Conv<pads = [1, 0, 1, 0, 1, 1], strides = [1, 2, 1]>(x, w, b)", CUBE, (3, 2, 2, 3, 2)),
    "deconv": ("y = ConvTranspose(x, w, b)", IMAGE, DECONV),
    "deconv 1x1": ("y = ConvTranspose(x, w, b)", IMAGE, (4, 6, 1, 1)),
    "deconv strides": ("y = ConvTranspose<strides = [2, 3]>(x, w, b)", IMAGE, DECONV),
    "deconv pads": ("y = ConvTranspose<strides = [2, 2], pads = [1, 0, 2, 1]>(x, w)", IMAGE, DECONV),
    "deconv cropping": ("y = ConvTranspose<pads = [3, 3, 4, 3]>(x, w)", IMAGE, DECONV),
    "deconv cropping strided": ("y = ConvTranspose<pads = [3, 4, 4, 3], strides = [2, 2]>(x, w)", IMAGE, DECONV),
    "deconv dilations": ("y = ConvTranspose<dilations = [2, 1], strides = [1, 2]>(x, w)", IMAGE, DECONV),
    "deconv output padding": (
        "y = ConvTranspose<strides = [2, 3], output_padding = [1, 2], pads = [1, 1, 1, 1]>(x, w, b)", IMAGE, DECONV,
    ),
    "deconv output shape": ("y = ConvTranspose<strides = [2, 2], output_shape = [18, 16]>(x, w, b)", IMAGE, DECONV),
    "deconv output shape upper": (
        'y = ConvTranspose<strides = [2, 2], output_shape = [18, 16], auto_pad = "SAME_UPPER">(x, w)', IMAGE, DECONV,
    ),
    "deconv output shape even": ("y = ConvTranspose<strides = [2, 2], output_shape = [17, 15]>(x, w)", IMAGE, DECONV),
    "deconv same upper": ('y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_UPPER">(x, w)', IMAGE, DECONV),
    "deconv same lower": ('y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_LOWER">(x, w)', IMAGE, DECONV),
    "deconv same, small kernel": (
        'y = ConvTranspose<strides = [3, 3], auto_pad = "SAME_UPPER">(x, w)', IMAGE, (4, 6, 2, 2),
    ),
    "deconv valid": ('y = ConvTranspose<strides = [2, 2], auto_pad = "VALID">(x, w)', IMAGE, DECONV),
    "deconv groups": ("y = ConvTranspose<group = 2, strides = [2, 2]>(x, w, b)", IMAGE, (4, 3, 3, 2)),
    "deconv depthwise": ("y = ConvTranspose<group = 4, strides = [2, 2]>(x, w, b)", IMAGE, (4, 1, 4, 4)),
    "deconv 1-D": ("y = ConvTranspose<strides = [3], pads = [1, 2]>(x, w, b)", LINE, (4, 5, 4)),
    "deconv 3-D": ("y = ConvTranspose<strides = [1, 2, 1]>(x, w)", CUBE, (2, 3, 2, 3, 2)),
    "gemm": ("y = Gemm(x, w, b)", (7, 5), (5, 3)),
    "gemm transB": ("y = Gemm<transB = 1>(x, w, b)", (7, 5), (3, 5)),
    "gemm transA": ("y = Gemm<transA = 1>(x, w, b)", (5, 7), (5, 3)),
    "gemm alpha": ("y = Gemm<alpha = 0.5, transA = 1, transB = 1>(x, w)", (5, 7), (3, 5)),
    "gemm beta": ("y = Gemm<alpha = 3.0, beta = 0.25>(x, w, b)", (7, 5), (5, 3)),
    "matmul rank 1": ("y = MatMul(x, w)", (5,), (5, 3)),
    "matmul rank 2": ("y = MatMul(x, w)", (7, 5), (5, 3)),
    "matmul rank 3": ("y = MatMul(x, w)", (2, 7, 5), (5, 3)),
    "matmul rank 4": ("y = MatMul(x, w)", (2, 3, 4, 5), (5, 3)),
}  # fmt: skip


def only_layer(proto: ModelProto) -> tuple[Layer, Values]:
    model = load(proto)
    (layer,) = linear_layers(model)
    return layer, Values(model)


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_matrix_are_the_outputs(name: str) -> None:
    node, xs, ws = LAYERS[name]
    x, w, b = normal(*xs, seed=1).astype(np.float32), normal(*ws, seed=2), normal(24, seed=3)
    rank = len(xs) if len(xs) > 1 else 1
    proto = build(node.replace(", b)", ")"), fixed(xs), anything(rank), w=w)
    layer, values = only_layer(proto)
    m = matrix(layer, values)
    width = m.shape[0] * m.shape[2]
    bias = np.zeros(width)
    if ", b)" in node:
        proto = build(node, fixed(xs), anything(rank), w=w, b=b[:width])
        layer, values = only_layer(proto)
        bias = b[:width] * layer.node.attr("beta", 1.0)
    (y,) = run(proto, x)
    expected = output_rows(layer, y, None)
    kernel = kernel_shape(layer, values)
    assert positions(layer, x, kernel) == len(expected)
    for picked in None, np.sort(np.random.default_rng(0).choice(len(expected), max(1, len(expected) // 3), False)):
        found = rows(layer, x, kernel, picked) @ m  # (g, n, o)
        found = found.transpose(1, 0, 2).reshape(-1, width) + bias
        np.testing.assert_allclose(found, output_rows(layer, y, picked), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(weight_of(layer, m, w.shape), w, rtol=1e-6, atol=1e-6)


def axes(slices: Iterable[slice]) -> tuple[slice, ...]:
    return (slice(None), slice(None), *slices)


def windowed(x: Array, win: Window, picked: Array) -> Array:
    """What `patches.rows` gives for one group, of a padded input that was spread and of NumPy's sliding windows."""
    wide = np.zeros((*x.shape[:2], *((s - 1) * z + 1 for s, z in zip(x.shape[2:], win.spread, strict=True))), x.dtype)
    wide[axes(slice(None, None, z) for z in win.spread)] = x
    wide = wide[axes(slice(max(0, -a), s - max(0, -b)) for s, (a, b) in zip(wide.shape[2:], win.pads, strict=True))]
    wide = np.pad(wide, ((0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in win.pads)))
    spans = tuple(d * (k - 1) + 1 for k, d in zip(win.kernel, win.dilations, strict=True))
    view: Array = np.lib.stride_tricks.sliding_window_view(wide, spans, tuple(range(2, x.ndim)))
    view = view[axes(slice(None, None, t) for t in (*win.strides, *win.dilations))]
    chosen = np.moveaxis(view, 1, 1 + len(spans)).reshape(-1, x.shape[1] * np.prod(win.kernel))[picked]
    with np.errstate(over="ignore"):
        chosen = chosen.astype(np.float32)
    return np.asarray(np.where(np.isfinite(chosen), chosen, np.float32(np.nan)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rows_are_those_of_sliding_windows(rank: int, dtype: type) -> None:
    rng = np.random.default_rng(rank)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(low, high, rank).tolist())

    tried = 0
    while tried < 30:
        size, heads, tails, spread = some(3, 8), some(-2, 4), some(-2, 4), some(1, 3) if tried % 2 else (1,) * rank
        pads = tuple(zip(heads, tails, strict=True))
        win = Window(some(1, 4), some(1, 4), some(1, 3), pads, spread)
        cropped = [(s - 1) * z + 1 + min(a, 0) + min(b, 0) for s, z, (a, b) in zip(size, spread, pads, strict=True)]
        if min(*win.output(size), *cropped, 1) < 1:
            continue
        tried += 1
        x: Array = (10 * rng.normal(size=(2, 4, *size))).astype(dtype)
        if np.issubdtype(dtype, np.floating):
            x.flat[::7], x.flat[3::11] = np.inf, np.nan
        if dtype is np.float64:
            x.flat[5::13] = 1e300
        count = 2 * int(np.prod(win.output(size)))
        every, some_of = np.arange(count), np.sort(rng.choice(count, -(-count // 3), False))
        for picked, given in (every, None), (some_of, some_of):
            found = patches.rows(x, win, 2, given)
            assert found.dtype == np.float32 and found.shape[:2] == (2, len(picked))
            expected = windowed(x, win, picked)
            np.testing.assert_array_equal(found.transpose(1, 0, 2).reshape(len(picked), -1), expected)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_rows_of_a_recurrence_give_its_gates(op: str, direction: str) -> None:
    """Without recurrent weights a unit is a function of its own gates."""
    gates, size, d = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], 3, 2 if direction == "bidirectional" else 1
    x, w, r = normal(5, 2, 4).astype(np.float32), normal(d, gates * size, 4, seed=1), np.zeros((d, gates * size, size))
    node = f'y = {op}<hidden_size = 3, direction = "{direction}">(x, w, r)'
    proto = build(node, fixed(x.shape), anything(4), w=w, r=r)
    layer, values = only_layer(proto)
    m = matrix(layer, values)
    assert positions(layer, x, ()) == 10
    z = (rows(layer, x, (), None)[0] @ m[0]).reshape(5, 2, d, gates, size)
    z = z.transpose(3, 0, 2, 1, 4)  # (gate, t, d, n, h)
    if d == 2:
        z = np.stack([z[:, :, 0], z[:, ::-1, 1]], 2)
    h = c = np.zeros((d, 2, size))
    expected = []
    for t in range(5):
        g = z[:, t]
        if op == "RNN":
            h = np.tanh(g[0])
        elif op == "GRU":
            h = (1 - sigmoid(g[0])) * np.tanh(g[2]) + sigmoid(g[0]) * h
        else:
            c = sigmoid(g[2]) * c + sigmoid(g[0]) * np.tanh(g[3])
            h = sigmoid(g[1]) * np.tanh(c)
        expected.append(h)
    found = np.stack(expected)  # (t, d, n, h)
    if d == 2:
        found = np.stack([found[:, 0], found[::-1, 1]], 1)
    np.testing.assert_allclose(found, run(proto, x)[0], atol=1e-5)
    np.testing.assert_allclose(weight_of(layer, m, w.shape), w, rtol=1e-6)
