"""Decoders, with their caches, and biases, masks and gates per head."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from models.builder import INT_MAX, Array, Dim
from models.forms.form import BATCH, FFN, HEAD, HEADS, LAYERS, LOWEST, TABLE, TIME, TOTAL, VOCAB, WIDE, WIDTH, form
from models.forms.net import Module, Net

# Decoders


def causal(b: Net, scores: str, *, query: str, key: str) -> str:
    """Where on a constant triangle, sliced to [keys - queries : keys, : keys] as in GPT-2."""
    triangle = b.const(np.tril(np.ones((1, 1, 24, 24), np.bool_)))
    q, k = (b.op("Gather", b.op("Shape", t), -2, axis=0) for t in (query, key))
    start, end = b.unsqueeze(b.op("Sub", k, q), 0), b.unsqueeze(k, 0)
    mask = b.op("Slice", b.op("Slice", triangle, start, end, [2]), [0], end, [3])
    return b.op("Where", mask, scores, LOWEST)


@form()
@form(
    "decoder_kv_cache",
    fixed={"cache": True},
    io=True,
    note="The same with past and present keys and values per layer, (batch, heads, past, d), joined by Concat.",
)
def decoder_pre_norm(*, cache: bool = False) -> ModelProto:
    """GPT-2: q, k and v from one Gemm and a Split, causal mask by Where, tanh GELU; batch and sequence are dynamic."""
    b = Net()
    presents: list[str] = []
    x = b.embed(batch="batch", time="sequence")
    where = b.input("position_ids", ("batch", "sequence"), np.int64) if cache else b.op("Range", 0, b.size(x, 1), 1)
    x = b.add(x, b.op("Gather", b.param(b.normal(TABLE, WIDTH, scale=0.5), "position.weight"), where, axis=0))
    b.declare(x, ("batch", "sequence", WIDTH))

    def attention(x: str) -> str:
        q, k, v = (b.heads(part, HEADS) for part in b.split(b.conv1d(x, 3 * WIDTH), [WIDTH] * 3, axis=2))
        if cache:
            layer, shape = len(presents) // 2, ("batch", HEADS, "past_sequence", HEAD)
            pasts = [b.input(f"past_{t}_{layer}", shape) for t in ("key", "value")]
            k, v = (
                b.declare(b.concat(past, t, axis=2), ("batch", HEADS, TOTAL, HEAD))
                for past, t in zip(pasts, (k, v), strict=True)
            )
            presents.extend((k, v))
        scores = causal(b, b.op("Div", b.matmul(q, b.transpose(k, 0, 1, 3, 2)), math.sqrt(HEAD)), query=q, key=k)
        mixed = b.declare(b.matmul(b.softmax(scores), v), ("batch", HEADS, "sequence", HEAD))
        return b.conv1d(b.unheads(mixed, WIDTH), WIDTH)

    y = b.pre_norm(x, attention, lambda y: b.conv1d(b.gelu_tanh(b.conv1d(y, FFN)), WIDTH))
    return b.language_model(y, *presents)


def angles(half: int = HEAD // 2) -> Array:
    return np.outer(np.arange(TABLE), 1.0 / 100 ** (np.arange(half) / half)).astype(np.float32)


def rotary(b: Net, where: str, *, interleaved: bool = False) -> Module:
    """Rotation of (batch, heads, time, d) by tables gathered at `where`, the same tables for all layers."""
    tables = [f(angles()) if interleaved else np.concatenate([f(angles())] * 2, -1) for f in (np.cos, np.sin)]
    cos, sin = (b.unsqueeze(b.op("Gather", b.param(t, "rope"), where, axis=0), 1) for t in tables)

    def halves(t: str) -> str:
        turned = b.concat(b.op("Neg", b.slice(t, HEAD // 2, INT_MAX, 3)), b.slice(t, 0, HEAD // 2, 3), axis=-1)
        return b.add(b.mul(t, cos), b.mul(turned, sin))

    def pairs(t: str) -> str:
        even, odd = b.slice(t, 0, INT_MAX, 3, 2), b.slice(t, 1, INT_MAX, 3, 2)
        first = b.op("Sub", b.mul(even, cos), b.mul(odd, sin))
        second = b.add(b.mul(odd, cos), b.mul(even, sin))
        stacked = b.concat(b.unsqueeze(first, -1), b.unsqueeze(second, -1), axis=-1)
        return b.reshape(stacked, *[b.size(t, i) for i in range(4)])

    return pairs if interleaved else halves


def repeat_kv(b: Net, t: str, times: int) -> str:
    """(batch, kv heads, time, d) to (batch, heads, time, d) as Tensor.expand and reshape are exported."""
    batch, kv, time, d = (b.size(t, i) for i in range(4))
    sizes = b.dims(batch, kv, times, time, d)
    if any(isinstance(s, str) for s in (batch, time)):  # -1 would mean "as it is"; the exporter cannot know
        ones = b.op("ConstantOfShape", b.op("Shape", sizes), value=helper.make_tensor("one", 7, [1], [1]))
        sizes = b.op("Where", b.op("Equal", sizes, b.mul(ones, -1)), ones, sizes)
    wide = b.op("Expand", b.unsqueeze(t, 2), sizes)
    return b.reshape(wide, batch, int(kv) * times, time, d)


LLAMA: dict[str, Any] = {"heads": (2, 2), "head_dim": (HEAD // 2, HEAD, HEAD), "hidden": (WIDE,)}


@form(**LLAMA)
@form("llama_dynamic", fixed={"batch": "batch", "time": "sequence"}, **LLAMA, note="The same, batch and time dynamic.")
@form("llama_tied", fixed={"tied": True}, **LLAMA, note="The head is the transposed embedding.")
@form(
    "llama_interleaved_rotary", fixed={"interleaved": True}, **LLAMA, note="Pairs by Slices of step 2, stacked again."
)
def llama(*, batch: Dim = BATCH, time: Dim = TIME, tied: bool = False, interleaved: bool = False) -> ModelProto:
    """RMSNorm, rotary halves, four query heads on two kv heads by Unsqueeze, Expand, Reshape, SwiGLU, no biases."""
    b = Net()
    x = b.embed(WIDE, batch=batch, time=time)
    table = b.nodes[-1].input[0]
    rotate = rotary(b, b.input("position_ids", (batch, time), np.int64), interleaved=interleaved)

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, n * HEAD, bias=False), n) for n in (HEADS, 2, 2))
        k, v = (repeat_kv(b, t, 2) for t in (rotate(k), v))
        scores = causal(b, b.scores(rotate(q), k, scale="both"), query=q, key=k)
        return b.out(b.declare(b.matmul(b.softmax(scores), v), (batch, HEADS, time, HEAD)), WIDE, bias=False)

    x = b.pre_norm(x, attention, b.swiglu, b.rmsnorm)
    return b.model(b.matmul(x, b.transpose(table, 1, 0))) if tied else b.language_model(x)


@form()
def multi_query() -> ModelProto:
    """GPT-BigCode: one key-value head that broadcasts over the query heads, which are the units."""
    b = Net()
    x = b.positions(b.embed())

    def attention(x: str) -> str:
        q, kv = b.split(b.dense(x, WIDTH + 2 * HEAD), [WIDTH, 2 * HEAD], axis=2)
        k, v = (b.unsqueeze(t, 1) for t in b.split(kv, [HEAD, HEAD], axis=-1))
        return b.out(b.attend(b.heads(q, HEADS), k, v, mask=triangle(TIME)), WIDTH)

    return b.language_model(b.pre_norm(x, attention))


def triangle(time: int) -> Array:
    """The additive causal mask."""
    return np.triu(np.full((1, 1, time, time), -10000.0, np.float32), 1)


# Biases, masks and gates per head


@form(heads=(HEADS,), note="The slopes are one constant for both layers, so their heads go together.")
def alibi() -> ModelProto:
    """BLOOM: slopes (heads, 1, 1) times positions, added to the scores of both layers."""
    b = Net()
    x = b.embed()
    slopes = b.param((2.0 ** -np.arange(2, 2 + HEADS))[:, None, None], "slopes")
    bias = b.mul(slopes, np.arange(TIME, dtype=np.float32)[None, None])

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, WIDTH), HEADS) for _ in range(3))
        scores = b.add(b.add(bias, b.scores(q, k, scale="mul")), triangle(TIME))
        return b.out(b.matmul(b.softmax(scores), v), WIDTH)

    return b.language_model(b.pre_norm(x, attention))


@form()
def per_head_mask() -> ModelProto:
    """A gate per head (1, heads, 1, 1) on the probabilities, as Hugging Face's head_mask; a constant per layer."""
    b = Net()

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, WIDTH), HEADS) for _ in range(3))
        gate = b.param(b.uniform(0.3, 1.2, 1, HEADS, 1, 1), "head_mask")
        return b.out(b.matmul(b.mul(b.softmax(b.scores(q, k)), gate), v), WIDTH)

    return b.classify(b.post_norm(b.positions(b.embed()), attention))


@form(heads=(HEADS,), io=True)
def external_bias() -> ModelProto:
    """An input (1, heads, time, time) added to the scores of both layers: heads go together, if that input may change.

    The dimensions of the heads are free.
    """
    b = Net()
    x = b.positions(b.embed())
    bias = b.input("attention_bias", (1, HEADS, TIME, TIME))
    return b.classify(b.pre_norm(x, lambda y: b.mha(y, mask=bias, scale="both")))


@form(heads=(HEADS,) * 4, head_dim=(HEAD,) * 12, hidden=(WIDE,), channels=(FFN,) * 4, blocks=10)
def t5() -> ModelProto:
    """Encoder and decoder on one embedding, which is the head too; a table of relative position biases per stack.

    The table (buckets, heads) serves both layers of its stack, so the heads of two self-attentions are one group;
    cross attention has no bias. RMSNorm, no scale, no biases, ReLU.
    """
    b = Net()
    table = b.param(b.normal(VOCAB, WIDE, scale=1.0), "shared.weight")

    def stack(name: str, time: int, memory: str = "") -> str:
        x = b.op("Gather", table, b.input(name, (BATCH, time), np.int64), axis=0)
        near = np.arange(time)[None] - np.arange(time)[:, None]
        buckets = np.where(near > 0, 0, -near) if memory else np.where(near > 0, 4, 0) + np.minimum(abs(near), 3)
        bias = b.op("Gather", b.param(b.normal(8, HEADS, scale=1.0), "relative_attention_bias"), buckets, axis=0)
        bias = b.unsqueeze(b.transpose(bias, 2, 0, 1), 0)
        if memory:
            bias = b.add(bias, triangle(time))

        plain: dict[str, Any] = {"scale": "none", "bias": False}
        for _ in range(LAYERS):
            x = b.add(x, b.mha(b.rmsnorm(x), mask=bias, **plain))
            if memory:
                x = b.add(x, b.mha(b.rmsnorm(x), source=memory, **plain))
            x = b.add(x, b.dense(b.relu(b.dense(b.rmsnorm(x), FFN, bias=False)), WIDE, bias=False))
        return b.rmsnorm(x)

    x = stack("decoder_input_ids", 5, stack("input_ids", TIME))
    return b.model(b.matmul(b.mul(x, WIDE**-0.5), b.transpose(table, 1, 0)))
