"""Attention as one operator: onnxruntime's and opset 23's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from models.builder import MICROSOFT, Dim
from models.forms.decoders import angles
from models.forms.form import BATCH, FFN, HEAD, HEADS, LAYERS, TABLE, TIME, TOTAL, VOCAB, WIDE, WIDTH, form
from models.forms.net import Net

# The operators of onnxruntime


def skip_norm(b: Net, x: str, y: str, kind: str = "SkipLayerNormalization", *, total: bool = False) -> tuple[str, str]:
    """norm(x + y [+ bias]), and with `total` the sum itself, as onnxruntime fuses both."""
    width = b.channels(x, -1)
    extra = [b.vec(width), b.vec(width)] if kind == "SkipLayerNormalization" else []
    made = b.ops(kind, x, y, b.gain(width), *extra, n=4 if total else 1, domain=MICROSOFT, epsilon=1e-5)
    for unused in (1, 2) if total else ():
        b.nodes[-1].output[unused] = ""
    return b.declare(made[0], b.shape(x)), b.declare(made[-1], b.shape(x))


@form()
@form("ms_attention_qkv_sizes", fixed={"wide": True}, head_dim=(6, 8, 6, 8), note="The same, v wider than q and k.")
def ms_attention(*, wide: bool = False) -> ModelProto:
    """BERT after fusion: EmbedLayerNormalization, Attention with mask lengths, SkipLayerNormalization, BiasGelu."""
    b = Net()
    ids, types, mask = (
        b.input(name, (BATCH, TIME), np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")
    )
    tables = [b.param(b.normal(n, WIDTH, scale=0.7), "embedding") for n in (VOCAB, TABLE, 2)]
    x, lengths = b.ops(
        "EmbedLayerNormalization", ids, types, *tables, b.gain(WIDTH), b.vec(WIDTH), mask, n=2, domain=MICROSOFT,
        epsilon=1e-5, mask_index_type=1,
    )  # fmt: skip
    b.declare(x, (BATCH, TIME, WIDTH))
    sizes = [24, 24, WIDTH] if wide else [WIDTH] * 3
    for _ in range(LAYERS):
        weight = b.param(b.he(WIDTH, sum(sizes), fan_in=WIDTH), "qkv.weight")
        chosen = {"qkv_hidden_sizes": sizes} if wide else {}
        operands = (x, weight, b.vec(sum(sizes)), lengths)
        y = b.ms("Attention", *operands, num_heads=HEADS, shape=(BATCH, TIME, WIDTH), **chosen)
        x = skip_norm(b, b.dense(y, WIDTH), x)[0]
        h = b.ms("BiasGelu", b.dense(x, FFN, bias=False), b.vec(FFN), shape=(BATCH, TIME, FFN))
        x = skip_norm(b, b.dense(h, WIDTH), x)[0]
    return b.classify(x)


@form(hidden=(WIDE,))
@form("ms_rotary", fixed={"rotate": True}, head_dim=(4, 8, 8), hidden=(WIDE,), note="RotaryEmbedding before it.")
def ms_mha(*, rotate: bool = False) -> ModelProto:
    """com.microsoft MultiHeadAttention: q, k, v (batch, time, heads * d) without biases, one bias for the three."""
    b = Net()
    x = b.embed(WIDE)
    if rotate:
        tables = [b.input("position_ids", (BATCH, TIME), np.int64), *(b.param(f(angles())) for f in (np.cos, np.sin))]

    def attention(x: str) -> str:
        shape = (BATCH, TIME, HEADS * HEAD)
        q, k, v = (b.dense(x, HEADS * HEAD, bias=rotate) for _ in range(3))
        if rotate:
            q, k = (b.ms("RotaryEmbedding", t, *tables, shape=shape) for t in (q, k))
        bias = None if rotate else b.vec(3 * HEADS * HEAD)
        return b.dense(b.ms("MultiHeadAttention", q, k, v, bias, num_heads=HEADS, shape=shape), WIDE)

    return b.classify(b.pre_norm(x if rotate else b.positions(x), attention))


GQA_HEAD = 16
GQA: dict[str, Any] = {"heads": (2, 2), "head_dim": (), "hidden": (WIDE,), "io": True}


@form(**GQA)
@form(
    "ms_gqa_packed",
    fixed={"packed": True},
    **GQA,
    checked=False,
    note="onnxruntime-genai: q, k, v packed in one input, lengths from attention_mask, SimplifiedLayerNormalization "
    "in the ONNX domain, which the checker does not know.",
)
def ms_gqa(*, packed: bool = False) -> ModelProto:
    """com.microsoft GroupQueryAttention and SkipSimplifiedLayerNormalization; q, k, v share one head size.

    Rotation happens inside, for head sizes that are multiples of 16 alone; the caches of angles hold half of it.
    """
    b = Net(23)
    batch = 1  # onnxruntime takes several new positions after a past for one sequence alone
    new, old = 5, 3
    time: Dim = "sequence" if packed else new
    past: Dim = "past_sequence" if packed else old
    presents: list[str] = []
    x = b.embed(WIDE, batch=batch, time=time)
    cos, sin = b.param(np.cos(angles(GQA_HEAD // 2)), "cos_cache"), b.param(np.sin(angles(GQA_HEAD // 2)), "sin_cache")
    if packed:
        mask = b.input("attention_mask", (batch, TOTAL), np.int64)
        last = b.op("Cast", b.op("Sub", b.reduce("Sum", mask, 1, keepdims=0), 1), to=onnx.TensorProto.INT32)
        total = b.op("Cast", b.size(mask, 1), to=onnx.TensorProto.INT32)
    else:
        last, total = b.param(np.full(batch, old + new - 1, np.int32)), b.param(np.array(old + new, np.int32))
    y = b.op("SimplifiedLayerNormalization" if packed else "RMSNormalization", x, b.gain(WIDE), axis=-1, epsilon=1e-5)
    b.declare(y, (batch, time, WIDE))
    for layer in range(LAYERS):
        cache = [b.input(f"past_key_values.{layer}.{t}", (batch, 2, past, GQA_HEAD)) for t in ("key", "value")]
        if packed:
            qkv = [b.dense(y, (HEADS + 4) * GQA_HEAD, bias=False), "", ""]
        else:
            qkv = [b.dense(y, n * GQA_HEAD, bias=False) for n in (HEADS, 2, 2)]
        counts: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": 2, "do_rotary": 1, "scale": GQA_HEAD**-0.5}
        mixed, *present = b.ops(
            "GroupQueryAttention", *qkv, *cache, last, total, cos, sin, n=3, domain=MICROSOFT, **counts
        )
        grown: Dim = TOTAL if packed else old + new
        presents.extend(b.declare(p, (batch, 2, grown, GQA_HEAD)) for p in present)
        y = b.dense(b.declare(mixed, (batch, time, HEADS * GQA_HEAD)), WIDE, bias=False)
        y, x = skip_norm(b, x, y, "SkipSimplifiedLayerNormalization", total=True)
        y, x = skip_norm(b, x, b.swiglu(y), "SkipSimplifiedLayerNormalization", total=True)
    return b.language_model(y, *presents)


# The operators of opset 23


@form(head_dim=(4, 8, 8), hidden=(WIDE,))
def onnx_attention_4d() -> ModelProto:
    """Attention, RotaryEmbedding (tables per position, batch first) and RMSNormalization on (batch, heads, time, d)."""
    b = Net(23)
    x = b.embed(WIDE)
    tables = [b.param(np.repeat(f(angles())[None, :TIME], BATCH, 0), "rope") for f in (np.cos, np.sin)]

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, HEADS * HEAD), HEADS) for _ in range(3))
        q, k = (b.op("RotaryEmbedding", t, *tables) for t in (q, k))
        return b.out(b.op("Attention", q, k, v, is_causal=1), WIDE)

    return b.language_model(b.pre_norm(x, attention, b.swiglu, lambda y: rms_operator(b, y)))


def rms_operator(b: Net, x: str) -> str:
    return b.op("RMSNormalization", x, b.gain(b.channels(x, -1)), axis=-1, epsilon=1e-5)


@form(heads=(2, 2), head_dim=(4, 8, 8), hidden=(WIDE,))
@form(
    "onnx_attention_gqa_cache",
    fixed={"cache": True},
    heads=(2, 2),
    head_dim=(4, 8, 8),
    hidden=(WIDE,),
    io=True,
    note="The same with past_key, past_value and the present outputs.",
)
def onnx_attention_3d(*, cache: bool = False) -> ModelProto:
    """Attention and RotaryEmbedding on (batch, time, heads * d), counts as attributes, grouped queries."""
    b = Net(23)
    presents: list[str] = []
    x = b.embed(WIDE)
    tables = [b.param(f(angles()), "rope") for f in (np.cos, np.sin)]
    where = b.input("position_ids", (BATCH, TIME), np.int64)

    def attention(x: str) -> str:
        q, k, v = (b.dense(x, n * HEAD) for n in (HEADS, 2, 2))
        q, k = (b.op("RotaryEmbedding", t, *tables, where, num_heads=n) for t, n in ((q, HEADS), (k, 2)))
        counts: dict[str, Any] = {"q_num_heads": HEADS, "kv_num_heads": 2, "is_causal": 1}
        if cache:
            layer = len(presents) // 2
            pasts = [b.input(f"past_{t}_{layer}", (BATCH, 2, 3, HEAD)) for t in ("key", "value")]
            mixed, *present = b.ops("Attention", q, k, v, None, *pasts, n=3, **counts)
            presents.extend(b.declare(p, (BATCH, 2, 3 + TIME, HEAD)) for p in present)
        else:
            mixed = b.op("Attention", q, k, v, **counts)
        return b.dense(b.declare(mixed, (BATCH, TIME, HEADS * HEAD)), WIDE)

    return b.language_model(b.pre_norm(x, attention, b.swiglu, lambda y: rms_operator(b, y)), *presents)
