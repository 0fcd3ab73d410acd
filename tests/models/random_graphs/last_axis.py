"""Blocks over the last axis, and for tokens (N, L, C)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto

from models.random_graphs.net import INT_MAX, LARGEST, LONGEST, Net, Operand, block


@block(2, 4, weight=3)
def dense(b: Net, x: str) -> str:
    y = b.dense(x, b.width())
    return b.act(y) if b.draw.chance(2) else y


@block(2, 4, weight=2)
def layer_norm(b: Net, x: str) -> str:
    """LayerNormalization or RMSNormalization, as one operator or as many."""
    c = b.shape(x)[-1]
    if c < 3:
        return x
    form = b.draw.pick(("whole", "decomposed", "rms", "plain"))
    scale = b.param(b.positive(c))
    if form == "whole" and b.opset >= 17:
        return b.op("LayerNormalization", x, scale, b.bias(c), epsilon=1e-2)
    centred = x if form == "rms" else b.op("Sub", x, b.reduce("Mean", x, [-1]))
    variance = b.reduce("Mean", b.op("Pow", centred, 2.0) if b.draw.chance(2) else b.op("Mul", centred, centred), [-1])
    y = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, 1e-2)))
    return y if form == "plain" else b.op("Mul", y, scale)


@block(2, 4, weight=2)
def ffn(b: Net, x: str) -> str:
    """A feed-forward block, plain or gated, with the gate in a layer of its own or in the same one."""
    c, h = b.shape(x)[-1], b.width()
    form = b.draw.pick(("plain", "gated", "split", "slice", "chunk"))
    if form == "plain":
        y = b.act(b.dense(x, h))
    elif form == "gated":
        y = b.op("Mul", b.act(b.dense(x, h)), b.dense(x, h))
    else:
        axis = len(b.shape(x)) - 1
        both = b.dense(x, 2 * h)
        if form == "slice":
            parts = [b.slice(both, 0, h, axis), b.slice(both, h, INT_MAX, axis)]
        elif form == "split":
            parts = b.split(both, [h, h], axis)
        else:
            parts = [b.op("Gather", both, np.arange(i * h, i * h + h), axis=axis) for i in (0, 1)]
        y = b.op("Mul", b.act(parts[0]), parts[1])
    y = b.dense(y, c)
    return b.op("Add", *((x, y) if b.draw.chance(2) else (y, x)))


@block(3, 3, weight=3)
def attention(b: Net, x: str) -> str:
    """Multi-head attention; where query, key and value come from is a choice."""
    n, t, c = b.shape(x)
    h, d = b.draw.pick((2, 3, 4)), b.draw.pick((4, 2, 3))
    inner = h * d
    form = b.draw.pick(("separate", "gather", "split", "grouped", "einsum", "cross", "linear", "single", "split_heads"))
    source = x
    if form == "cross":
        others = [p for p in b.pool if len(b.shape(p)) == 3]
        source = b.draw.pick(others) if others else x
    u = b.shape(source)[1]

    def heads(y: str, length: int, count: int = h) -> str:
        return b.transpose(b.reshape(y, n, length, count, d), 0, 2, 1, 3)

    if form in ("gather", "split"):
        y = b.transpose(b.reshape(b.dense(x, 3 * inner), n, t, 3, h, d), 2, 0, 3, 1, 4)
        if form == "gather":
            q, k, v = (b.op("Gather", y, i, axis=0) for i in range(3))
        else:
            q, k, v = (b.squeeze(part, 0) for part in b.split(y, [1, 1, 1], 0))
    elif form == "split_heads":
        q, k, v = (heads(part, t) for part in b.split(b.dense(x, 3 * inner), [inner] * 3, 2))
    elif form == "grouped":  # one key and value for all heads, or for two
        q = heads(b.dense(x, inner), t)
        kv = h // 2 if h % 2 == 0 else 1
        k, v = (heads(b.dense(x, kv * d), t, kv) for _ in range(2))
        if kv > 1:
            k, v = (b.reshape(b.op("Concat", *[b.unsqueeze(z, 2)] * 2, axis=2), n, h, t, d) for z in (k, v))
    elif form == "single":
        q, k, v = (b.dense(y, inner) for y in (x, source, source))
    else:
        q, k, v = (heads(b.dense(y, inner), m) for y, m in ((x, t), (source, u), (source, u)))
    rank = len(b.shape(q))
    swap = (0, 2, 1) if rank == 3 else (0, 1, 3, 2)
    if form == "linear":
        y = b.op("MatMul", b.op("Softmax", q, axis=-1), b.op("MatMul", b.transpose(k, *swap), v))
    elif form == "einsum" and b.opset >= 12:
        y = b.op("Softmax", b.op("Einsum", q, k, equation="bhqd,bhkd->bhqk"), axis=-1)
        y = b.op("Einsum", y, v, equation=b.draw.pick(("bhqk,bhkd->bhqd", "bhqk,bhkd->bqhd")))
    else:
        scores = b.op("MatMul", q, b.transpose(k, *swap))
        scale = b.draw.pick(("constant", "none", "computed"))
        if scale == "constant":
            scores = b.op("Div", scores, float(math.sqrt(d)))
        elif scale == "computed":
            width = b.op("Cast", b.size(q, rank - 1), to=TensorProto.FLOAT)
            scores = b.op("Div", scores, b.op("Sqrt", width))
        if b.draw.chance(4):
            scores = b.op("Add", scores, b.normal(*b.shape(scores)[-2:]).astype(np.float32))
        y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    if b.shape(y) == (n, h, t, d) and rank == 4 and not (form == "einsum" and h == t):
        y = b.transpose(y, 0, 2, 1, 3)
    if rank == 4:
        y = b.reshape(y, n, t, inner)
    y = b.dense(y, c)
    return b.op("Add", x, y) if b.draw.chance(2) else y


@block(3, 3, weight=2)
def recurrent(b: Net, x: str) -> str:
    """LSTM, GRU or RNN over the middle axis; all steps or the last state."""
    n, t, c = b.shape(x)
    cell = b.draw.pick(("LSTM", "GRU", "RNN"))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    hidden, ways = b.draw.pick((4, 6, 3, 8)), b.draw.pick((1, 2))
    w = b.param(b.normal(ways, gates * hidden, c))
    r = b.param(b.normal(ways, gates * hidden, hidden))
    bias = None if b.draw.chance(3) else b.param(b.normal(ways, 2 * gates * hidden))
    more: dict[str, Any] = {"direction": "bidirectional" if ways == 2 else b.draw.pick(("forward", "reverse"))}
    if cell == "GRU" and b.draw.chance(2):
        more["linear_before_reset"] = 1
    steps = b.transpose(x, 1, 0, 2)
    state = peepholes = None
    if b.draw.chance(3):
        if b.draw.chance(2):
            sizes = b.dims(ways, b.size(x, 0), hidden)
            state = b.op("Expand", b.param(b.normal(ways, 1, hidden)), sizes, shape=(ways, n, hidden))
        else:
            state = b.op("ConstantOfShape", b.dims(ways, b.size(steps, 1), hidden), shape=(ways, n, hidden))
    if cell == "LSTM" and b.draw.chance(4):
        peepholes = b.param(b.normal(ways, 3 * hidden))
    extra = (None, state, state, peepholes) if cell == "LSTM" else (None, state)
    out = b.ops(cell, steps, w, r, bias, *extra, n=2, hidden_size=hidden, **more)
    if b.draw.chance(3):
        return b.reshape(b.transpose(out[1], 1, 0, 2), n, ways * hidden)
    if ways == 1 and b.draw.chance(2):
        return b.transpose(b.squeeze(out[0], 1), 1, 0, 2)
    return b.reshape(b.transpose(out[0], 2, 0, 1, 3), n, t, ways * hidden)


@block(3, 3)
def class_token(b: Net, x: str) -> str:
    """A learned token in front, and at times only this one afterwards."""
    n, t, c = b.shape(x)
    sizes: Operand = b.dims(b.size(x, 0), 1, c)
    if b.draw.chance(3):
        sizes = b.op("Where", b.op("Equal", sizes, [-1, -1, -1]), [1, 1, 1], sizes)
    token = b.op("Expand", b.param(b.normal(1, 1, c)), sizes, shape=(n, 1, c))
    y = b.op("Add", b.op("Concat", token, x, axis=1), b.param(b.normal(1, t + 1, c)))
    y = b.draw.pick((attention, ffn, dense))(b, y)
    return b.op("Gather", y, 0, axis=1) if b.draw.chance(2) else y


@block(3, 3)
def gemm_over_tokens(b: Net, x: str) -> str:
    """(N, L, C) as a matrix (N * L, C), through Gemm and back."""
    n, t, c = b.shape(x)
    y = b.dense(b.reshape(x, n * t, c, batch=False), b.width())
    return b.reshape(y, n, t, b.shape(y)[-1], batch=False)


@block(3, 4)
def mixer(b: Net, x: str) -> str:
    """A layer over some axis, with the length that it had or another."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    n = b.draw.pick((shape[axis], b.width()))
    return b.axis_layer(x, axis, n) if b.fits(*shape[1:axis], n, *shape[axis + 1 :]) else x


@block(3, 3)
def products(b: Net, x: str) -> str:
    """Products of activations: Gram matrices, bilinear forms, outer products."""
    _, t, c = b.shape(x)
    form = b.draw.pick(("gram", "einsum", "outer", "mix"))
    if form == "gram":
        return b.op("MatMul", b.op("Mul", x, 0.3), b.transpose(b.like(x), 0, 2, 1))
    if form == "mix":
        return b.op("MatMul", b.op("Softmax", b.axis_layer(x, 2, t), axis=-1), x)
    if b.opset < 12 or c * c > LONGEST * 4:
        return x
    if form == "einsum":
        return b.op("Einsum", b.op("Mul", x, 0.3), b.like(x), equation=b.draw.pick(("ntc,nuc->ntu", "ntc,ntd->ncd")))
    return b.op("Einsum", x, b.weight(c, 3, fan_in=1), equation="ntc,cd->ntcd") if b.fits(t, c, 3) else x


@block(2, 2, weight=2)
def from_vector(b: Net, x: str) -> str:
    """(N, C) through Gemm to an image or to tokens."""
    n = b.shape(x)[0]
    c, h, w = b.draw.pick(((4, 2, 2), (3, 4, 2), (6, 3, 1)))
    y = b.dense(x, c * h * w)
    return b.reshape(y, n, *b.draw.pick(((c, h, w), (c, h * w), (h * w, c))))


@block(2, 2)
def odd_gemm(b: Net, x: str) -> str:
    """Gemm with the weight as its first matrix, or with the activation transposed."""
    c = b.shape(x)[1]
    o = b.width()
    if b.draw.chance(2):
        return b.op("Gemm", b.transpose(x, 1, 0), b.weight(c, o, fan_in=c), b.bias(o), transA=1)
    return b.transpose(b.op("Gemm", b.weight(o, c, fan_in=c), x, transB=1), 1, 0)


@block(2, 4)
def autoencoder(b: Net, x: str) -> str:
    """A layer and its transpose, with the same weight."""
    c, h = b.shape(x)[-1], b.width()
    w = b.weight(c, h, fan_in=c)
    y = b.op("MatMul", b.act(b.op("MatMul", x, w)), b.transpose(w, 1, 0))
    return b.op("Add", x, y) if b.draw.chance(2) else y


@block(3, 4)
def with_vector(b: Net, x: str) -> str:
    """A product with a vector, which takes an axis away."""
    shape = b.shape(x)
    if b.draw.chance(2):
        return b.op("MatMul", x, b.param(b.normal(shape[-1])))
    return b.op("MatMul", b.param(b.normal(shape[-2])), x)


@block(4, 4, weight=2)
def per_head(b: Net, x: str) -> str:
    """A weight of its own for every index of an axis: batched MatMul, or Einsum in several ways."""
    _, h, t, c = b.shape(x)
    o = b.width()
    if not b.fits(h, t, o) or max(h, t) * c * o > 4 * LARGEST:
        return x
    form = b.draw.pick(("matmul", "bhtc,hco->bhto", "bhtc,hco->btho", "bhtc,hco->bto", "bhtc,tco->bho", "bhtc,hc->bht"))
    if form == "matmul" or b.opset < 12:
        return b.op("MatMul", x, b.weight(h, c, o, fan_in=c))
    sizes = {"h": h, "t": t, "c": c, "o": o}
    w = b.weight(*[sizes[label] for label in form[5:].split("-")[0]], fan_in=c)
    return b.op("Einsum", x, w, equation=form)


@block(2, 4)
def blockwise(b: Net, x: str) -> str:
    """A layer whose weight is stored in blocks of its inputs, of two to eight bits each."""
    inner, n, bits = b.draw.pick((32, 48, 40)), b.width(), b.draw.pick((4, 4, 8, 2))
    if b.shape(x)[-1] < 17 and not b.fits(*b.shape(x)[1:-1], inner):
        return x
    x = x if b.shape(x)[-1] > 16 else b.dense(x, inner)
    size = b.draw.pick((16, 16, 32, 64))
    k, count = b.shape(x)[-1], -(-b.shape(x)[-1] // size)
    w = b.param(b.rng.integers(0, 256, (n, count, size * bits // 8)).astype(np.uint8))
    scale = b.positive(*((n, count) if b.draw.chance(2) else (n * count,))) / (1 << bits)
    zeros = (n, -(-count * bits // 8)) if b.draw.chance(2) else (n * -(-count * bits // 8),)
    zero = b.param(b.rng.integers(0, 256, zeros).astype(np.uint8)) if b.draw.chance(2) else None
    b.add_domain("com.microsoft")
    return b.op(
        "MatMulNBits", x, w, b.param(scale), zero, None, b.bias(n), shape=(*b.shape(x)[:-1], n),
        domain="com.microsoft", N=n, K=k, bits=bits, block_size=size,
    )  # fmt: skip
