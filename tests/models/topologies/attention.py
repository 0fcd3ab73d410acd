"""Attention and transformers, written out and as operators."""

from __future__ import annotations

import math

import numpy as np
import onnx

from models.builder import INT_MAX, MICROSOFT, Builder
from models.topologies.registry import image, pooled, stem, tail, tokens, topology

# Attention and transformers


@topology()
def attention_separate_qkv() -> onnx.ModelProto:
    b = Builder()
    x = b.input("input", ("batch", "time", 16))
    x = b.layernorm(b.add(x, b.attention(x, 4)))
    return b.model(pooled(b, b.add(x, b.ffn(x, 32))))


@topology()
def attention_constant_reshape() -> onnx.ModelProto:
    """The folded form: head splits are constants with 0 and -1; the scale is a Mul on q."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    q, k, v = (b.reshape(b.dense(x, 32), 0, 6, 4, 8) for _ in range(3))
    scores = b.softmax(b.matmul(b.transpose(b.mul(q, 1 / math.sqrt(8)), 0, 2, 1, 3), b.transpose(k, 0, 2, 3, 1)))
    mixed = b.transpose(b.matmul(scores, b.transpose(v, 0, 2, 1, 3)), 0, 2, 1, 3)
    y = b.dense(b.reshape(mixed, -1, 6, 32), 16)
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology("attention_fused_qkv_gather", form="gather")
@topology("attention_fused_qkv_split", form="split")
@topology("attention_fused_qkv_split_first", form="split_first")
@topology("attention_fused_qkv_slice", form="slice")
@topology("attention_fused_qkv_interleaved", form="interleaved")
def attention_fused_qkv(*, form: str) -> onnx.ModelProto:
    """One projection to 3 * width; q, k and v are told apart in one of the ways that models use."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    qkv = b.dense(b.layernorm(x), 48)
    if form in ("gather", "split"):  # timm: (batch, time, 3, heads, d) to (3, batch, heads, time, d)
        split = b.transpose(b.reshape(qkv, b.size(x, 0), b.size(x, 1), 3, 4, 4), 2, 0, 3, 1, 4)
        if form == "gather":
            q, k, v = (b.op("Gather", split, i, axis=0) for i in range(3))
        else:
            q, k, v = (b.squeeze(part, 0) for part in b.split(split, [1, 1, 1], axis=0))
    elif form == "interleaved":  # GPT-NeoX: every head holds its own q, k, v
        split = b.transpose(b.reshape(qkv, b.size(x, 0), b.size(x, 1), 4, 12), 0, 2, 1, 3)
        q, k, v = b.split(split, [4, 4, 4], axis=3)
    elif form == "split_first":  # GPT-2
        q, k, v = (b.heads(part, 4) for part in b.split(qkv, [16, 16, 16], axis=2))
    else:
        q, k, v = (b.heads(b.slice(qkv, 16 * i, 16 * (i + 1), -1), 4) for i in range(3))
    x = b.add(x, b.dense(b.unheads(b.attend(q, k, v), 16), 16))
    return b.model(pooled(b, b.add(x, b.ffn(b.layernorm(x), 32))))


@topology()
def nonlocal_attention() -> onnx.ModelProto:
    """1x1 convolutions, flattened space, MatMul, Softmax, MatMul, back to an image, 1x1 convolution, residual."""
    b = Builder()
    x = stem(b)
    theta, phi, g = (b.reshape(b.conv(x, 8, 1), b.size(x, 0), 8, -1) for _ in range(3))
    weights = b.softmax(b.matmul(b.transpose(theta, 0, 2, 1), phi))
    y = b.transpose(b.matmul(weights, b.transpose(g, 0, 2, 1)), 0, 2, 1)
    y = b.reshape(y, b.size(x, 0), 8, b.size(x, 2), b.size(x, 3))
    b.declare(y, ("batch", 8, 8, 8))
    return b.model(tail(b, b.add(b.conv(y, 16, 1), x)))


@topology()
def linear_attention() -> onnx.ModelProto:
    """EfficientViT: k^T v first, channels against channels, then q; the heads are channel groups."""
    b = Builder()
    x = stem(b)
    qkv = b.reshape(b.conv(x, 48, 1, bias=False), b.size(x, 0), 2, 24, -1)
    q, k, v = b.split(qkv, [8, 8, 8], axis=2)
    mixed = b.matmul(b.matmul(v, b.transpose(b.relu(k), 0, 1, 3, 2)), b.relu(q))
    y = b.reshape(mixed, b.size(x, 0), -1, 8, 8)
    return b.model(tail(b, b.add(x, b.bn(b.conv(b.mul(y, 1 / 64), 16, 1)))))


@topology()
def cross_attention() -> onnx.ModelProto:
    b = Builder()
    x, context = b.input("query", ("batch", "time", 16)), b.input("context", ("batch", "source", 16))
    x = b.layernorm(b.add(x, b.attention(x, 4, context=b.dense(context, 24))))
    return b.model(pooled(b, b.add(x, b.ffn(x, 32))))


@topology("transformer_layernorm", decomposed=False)
@topology("transformer_layernorm_decomposed", decomposed=True)
@topology("transformer_opset11", decomposed=True, opset=11)
def transformer(*, decomposed: bool, opset: int = 17) -> onnx.ModelProto:
    """BERT-like: embeddings of tokens and positions, one post-norm block, head tied to the embedding."""
    b = Builder(opset)
    norm = b.layernorm_decomposed if decomposed else b.layernorm
    ids = b.input("input_ids", ("batch", 6), np.int64)
    table = b.param(b.normal(20, 16, scale=0.5), "embedding.weight")
    x = b.add(b.op("Gather", table, ids, axis=0), b.param(b.normal(1, 6, 16), "position"))
    x = norm(b.add(x, b.attention(norm(x), 4)))
    x = norm(b.add(x, b.ffn(x, 32)))
    return b.model(b.add(b.matmul(x, b.transpose(table, 1, 0)), b.vec(20)))


@topology()
def gpt2_causal() -> onnx.ModelProto:
    """Causal mask by Where on a sliced triangle; Conv1D layers as Gemm between Reshapes; tanh GELU."""
    b = Builder()

    def conv1d(x: str, n: int) -> str:
        flat = b.reshape(x, -1, b.channels(x, 2))
        y = b.linear(flat, n, trans_b=0)
        return b.reshape(y, b.size(x, 0), b.size(x, 1), n)

    x = tokens(b)
    q, k, v = (b.heads(part, 4) for part in b.split(conv1d(b.layernorm(x), 48), [16, 16, 16], axis=2))
    scores = b.op("Div", b.matmul(q, b.transpose(k, 0, 1, 3, 2)), 2.0)
    triangle = b.param(np.tril(np.ones((1, 1, 16, 16), np.bool_)), "mask")
    length = b.unsqueeze(b.size(x, 1), 0)
    mask = b.op("Slice", b.op("Slice", triangle, [0], length, [2]), [0], length, [3])
    scores = b.op("Where", mask, scores, float(np.finfo(np.float32).min))
    x = b.add(x, conv1d(b.unheads(b.matmul(b.softmax(scores), v), 16), 16))
    h = conv1d(b.layernorm(x), 32)
    inner = b.mul(b.add(h, b.mul(b.op("Pow", h, 3.0), 0.044715)), math.sqrt(2 / math.pi))
    x = b.add(x, conv1d(b.mul(b.mul(h, 0.5), b.add(b.op("Tanh", inner), 1.0)), 16))
    return b.model(b.dense(b.layernorm(x), 20, bias=False))


@topology()
def rmsnorm_swiglu() -> onnx.ModelProto:
    b = Builder()
    x = tokens(b)
    y = b.rmsnorm(x)
    gated = b.mul(b.silu(b.dense(y, 32, bias=False)), b.dense(y, 32, bias=False))
    x = b.add(x, b.dense(gated, 16, bias=False))
    return b.model(b.dense(b.rmsnorm(x), 20, bias=False))


@topology()
def swiglu_fused_gate_up() -> onnx.ModelProto:
    """gate and up in one projection, told apart by a Split."""
    b = Builder()
    x = tokens(b)
    gate, up = b.split(b.dense(b.rmsnorm(x), 64, bias=False), [32, 32], axis=-1)
    x = b.add(x, b.dense(b.mul(b.silu(gate), up), 16, bias=False))
    return b.model(b.dense(b.rmsnorm(x), 20, bias=False))


@topology()
@topology("llama_kv_cache", cache=True)
def llama(*, cache: bool = False) -> onnx.ModelProto:
    """Rotary halves, grouped queries (four query heads on two kv heads by Expand), SwiGLU, optional kv cache."""
    b = Builder()
    ids = b.input("input_ids", ("batch", 6), np.int64)
    x = b.op("Gather", b.param(b.normal(20, 32, scale=0.5), "embedding.weight"), ids, axis=0)
    angles = np.outer(np.arange(6), 1.0 / 100 ** (np.arange(0, 8, 2) / 8)).astype(np.float32)
    cos, sin = (b.param(np.concatenate([f(angles)] * 2, -1), "rope") for f in (np.cos, np.sin))

    def rotate(t: str) -> str:
        half = b.concat(b.op("Neg", b.slice(t, 4, INT_MAX, 3)), b.slice(t, 0, 4, 3), axis=-1)
        return b.add(b.mul(t, cos), b.mul(half, sin))

    y, outputs = b.rmsnorm(x), []
    q = rotate(b.heads(b.dense(y, 32, bias=False), 4))
    k = rotate(b.heads(b.dense(y, 16, bias=False), 2))
    v = b.heads(b.dense(y, 16, bias=False), 2)
    if cache:
        k = b.concat(b.input("past_key", ("batch", 2, "past", 8)), k, axis=2)
        v = b.concat(b.input("past_value", ("batch", 2, "past", 8)), v, axis=2)
        outputs = [k, v]

    def repeat(t: str) -> str:
        batch, time = b.size(t, 0), b.size(t, 2)
        wide = b.op("Expand", b.unsqueeze(t, 2), b.dims(batch, 2, 2, time, 8))
        return b.reshape(wide, batch, 4, time, 8)

    x = b.add(x, b.dense(b.unheads(b.attend(q, repeat(k), repeat(v)), 32), 32, bias=False))
    y = b.rmsnorm(x)
    gated = b.mul(b.silu(b.dense(y, 48, bias=False)), b.dense(y, 48, bias=False))
    x = b.rmsnorm(b.add(x, b.dense(gated, 32, bias=False)))
    return b.model(b.dense(x, 20, bias=False), *outputs)


@topology()
def relative_position_bias() -> onnx.ModelProto:
    """Swin and T5: a table (distances, heads) is gathered, reshaped and added to the scores."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    index = np.arange(6)[:, None] - np.arange(6)[None, :] + 5
    bias = b.op("Gather", b.param(b.normal(11, 4), "relative"), index.reshape(-1), axis=0)
    bias = b.unsqueeze(b.transpose(b.reshape(bias, 6, 6, 4), 2, 0, 1), 0)
    q, k, v = (b.heads(b.dense(x, 16), 4) for _ in range(3))
    x = b.add(x, b.dense(b.unheads(b.attend(q, k, v, mask=bias), 16), 16))
    return b.model(pooled(b, b.add(x, b.ffn(x, 32))))


@topology()
def vit() -> onnx.ModelProto:
    """Patch embedding, class token by Expand and Concat, position embedding, the class token picked by Gather."""
    b = Builder()
    patches = b.conv(image(b, size=16), 16, 4, stride=4, pad=0)
    x = b.transpose(b.reshape(patches, b.size(patches, 0), 16, -1), 0, 2, 1)
    b.declare(x, ("batch", 16, 16))
    cls = b.op("Expand", b.param(b.normal(1, 1, 16), "cls_token"), b.dims(b.size(x, 0), 1, 16))
    x = b.add(b.concat(cls, x), b.param(b.normal(1, 17, 16), "pos_embed"))
    x = b.add(x, b.attention(b.layernorm(x), 4))
    x = b.add(x, b.ffn(b.layernorm(x), 32))
    return b.model(b.linear(b.op("Gather", b.layernorm(x), 0, axis=1), 10))


@topology()
def weight_shared_layers() -> onnx.ModelProto:
    """ALBERT: the same feed-forward weights at two depths."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    up, down = b.param(b.he(16, 32, fan_in=16)), b.param(b.he(32, 16, fan_in=32))
    bias = b.vec(32)
    for _ in range(2):
        x = b.layernorm(b.add(x, b.matmul(b.relu(b.add(b.matmul(x, up), bias)), down)))
    return b.model(pooled(b, x))


@topology()
def mixture_of_experts() -> onnx.ModelProto:
    """Soft routing: every expert runs, batched over a leading axis; a Softmax over experts weighs them."""
    b = Builder()
    x = b.input("input", ("batch", 16))
    gate = b.unsqueeze(b.transpose(b.softmax(b.linear(x, 4)), 1, 0), 2)
    h = b.relu(b.add(b.matmul(x, b.param(b.he(4, 16, 24, fan_in=16))), b.vec(4, 1, 24)))
    experts = b.add(b.matmul(h, b.param(b.he(4, 24, 12, fan_in=24))), b.vec(4, 1, 12))
    return b.model(b.linear(b.relu(b.reduce("Sum", b.mul(experts, gate), 0, keepdims=0)), 10))


@topology()
def onnx_attention() -> onnx.ModelProto:
    """The operators of opset 23: Attention on rank 3 with head counts as attributes, RMSNormalization."""
    b = Builder(23)
    x = b.input("input", ("batch", 6, 16))
    y = b.op("RMSNormalization", x, b.param(b.uniform(0.5, 1.5, 16)), axis=-1, epsilon=1e-5)
    q, k, v = b.dense(y, 32), b.dense(y, 16), b.dense(y, 16)
    mixed = b.declare(b.op("Attention", q, k, v, q_num_heads=4, kv_num_heads=2), ("batch", 6, 32))
    x = b.add(x, b.dense(mixed, 16))
    return b.model(pooled(b, b.add(x, b.ffn(x, 32))))


@topology()
def onnx_attention_rank4() -> onnx.ModelProto:
    """Attention on (batch, heads, time, d), RotaryEmbedding and Gelu as operators."""
    b = Builder(23)
    x = b.input("input", ("batch", 6, 16))
    q, k, v = (b.heads(b.dense(x, 16), 2) for _ in range(3))
    positions = np.outer(np.arange(6), 1.0 / 100 ** (np.arange(4) / 4))
    caches = [b.unsqueeze(b.param(f(positions)), 0) for f in (np.cos, np.sin)]
    batch = b.unsqueeze(b.size(x, 0), 0)
    caches = [b.op("Expand", c, b.concat(batch, b.const([1, 1]), axis=0)) for c in caches]
    q, k = (b.declare(b.op("RotaryEmbedding", t, *caches), ("batch", 2, 6, 8)) for t in (q, k))
    mixed = b.declare(b.op("Attention", q, k, v, is_causal=1), ("batch", 2, 6, 8))
    x = b.add(x, b.dense(b.unheads(mixed, 16), 16))
    return b.model(pooled(b, b.dense(b.op("Gelu", b.dense(x, 32)), 16)))


@topology()
def microsoft_attention() -> onnx.ModelProto:
    """com.microsoft Attention: one (in, 3 * width) weight and bias, the number of heads is an attribute."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    weight = b.param(b.he(16, 48, fan_in=16))
    y = b.declare(b.op("Attention", x, weight, b.vec(48), num_heads=4, domain=MICROSOFT), ("batch", 6, 16))
    return b.model(pooled(b, b.ffn(b.add(x, b.dense(y, 16)), 32)))


@topology()
def microsoft_attention_qkv_sizes() -> onnx.ModelProto:
    """com.microsoft Attention whose v is narrower than q and k."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    sizes = {"num_heads": 4, "qkv_hidden_sizes": [16, 16, 8]}
    y = b.op("Attention", x, b.param(b.he(16, 40, fan_in=16)), b.vec(40), domain=MICROSOFT, **sizes)
    y = b.dense(b.declare(y, ("batch", 6, 8)), 16)
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology()
def microsoft_multi_head_attention() -> onnx.ModelProto:
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    q, k, v = (b.dense(x, 16, bias=False) for _ in range(3))
    y = b.op("MultiHeadAttention", q, k, v, b.vec(48), num_heads=4, domain=MICROSOFT)
    y = b.dense(b.declare(y, ("batch", 6, 16)), 16)
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology()
def microsoft_group_query_attention() -> onnx.ModelProto:
    """com.microsoft GroupQueryAttention: head counts as attributes, present keys and values as outputs."""
    b = Builder()
    x = b.input("input", (2, 6, 16))
    q, k, v = b.dense(x, 32), b.dense(x, 16), b.dense(x, 16)
    last, total = b.param(np.full(2, 5, np.int32)), b.param(np.array(6, np.int32))
    inputs = [q, k, v, "", "", last, total]
    y, *_ = b.ops("GroupQueryAttention", *inputs, n=3, num_heads=4, kv_num_heads=2, domain=MICROSOFT)
    y = b.dense(b.declare(y, (2, 6, 32)), 16)
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology()
def microsoft_bert() -> onnx.ModelProto:
    """EmbedLayerNormalization, Attention, SkipLayerNormalization, BiasGelu, FastGelu: BERT after fusion."""
    b = Builder()
    ids = b.input("input_ids", ("batch", 6), np.int32)
    tables = [b.param(b.normal(n, 16, scale=0.5), "embedding") for n in (20, 6)]
    norm = [b.param(b.uniform(0.5, 1.5, 16)), b.vec(16)]
    x, _ = b.ops("EmbedLayerNormalization", ids, "", *tables, "", *norm, n=2, domain=MICROSOFT)
    b.declare(x, ("batch", 6, 16))
    y = b.op("Attention", x, b.param(b.he(16, 48, fan_in=16)), b.vec(48), num_heads=4, domain=MICROSOFT)
    y = b.dense(b.declare(y, ("batch", 6, 16)), 16, bias=False)
    skip = [b.param(b.uniform(0.5, 1.5, 16)), b.vec(16), b.vec(16)]
    x = b.declare(b.op("SkipLayerNormalization", x, y, *skip, domain=MICROSOFT), ("batch", 6, 16))
    for kind in ("BiasGelu", "FastGelu"):
        h = b.op(kind, b.dense(x, 32, bias=False), b.vec(32), domain=MICROSOFT)
        x = b.add(x, b.dense(b.declare(h, ("batch", 6, 32)), 16))
    return b.model(pooled(b, x))
