"""Operators of com.microsoft that onnxruntime fuses, through those that they were."""

from __future__ import annotations

import math

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.registry import Gradients, NoRule, gradient
from onnxprune.gradient.rules.functions import erf_gelu, tanh_gelu
from onnxprune.gradient.rules.normalisation import root_mean_square
from onnxprune.gradient.rules.products import turned
from onnxprune.gradient.through import decomposed
from onnxprune.graph.node import Node

MS = "com.microsoft::"


def _kept(n: Node, *names: str) -> dict[str, object]:
    """Attributes of a node, by name, where it has them."""
    return {name: n.attr(name) for name in names if name in n.attributes}


def _activated(b: Backward, y: str, op: str, params: list[float]) -> str:
    """What a fused activation makes of `y`. params: alpha and beta, or the bounds of Clip."""
    if not op:
        return y
    if op == "Clip":
        return b.op("Clip", y, *(b.constant(v, like=y) for v in params))
    names = {
        "LeakyRelu": ("alpha",),
        "HardSigmoid": ("alpha", "beta"),
        "Elu": ("alpha",),
        "ThresholdedRelu": ("alpha",),
    }
    return b.op(op, y, **dict(zip(names.get(op, ()), params, strict=False)))


@decomposed(MS + "FusedConv")
def fused_conv(b: Backward, n: Node) -> list[str]:
    """through Conv, Add and its activation"""
    given = _kept(n, "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    y = b.op("Conv", *n.inputs[:3], **given)
    if n.input(3):
        y = b.op("Add", y, n.input(3))
    return [_activated(b, y, n.attr("activation", ""), n.attr("activation_params") or [])]


@decomposed(MS + "FusedGemm")
def fused_gemm(b: Backward, n: Node) -> list[str]:
    """through Gemm and its activation"""
    y = b.op("Gemm", *n.inputs, **_kept(n, "alpha", "beta", "transA", "transB"))
    params = [n.attr(f"activation_{name}") for name in ("alpha", "beta", "gamma")]
    return [_activated(b, y, n.attr("activation", ""), [float(v) for v in params if v is not None])]


@decomposed(MS + "FusedMatMul")
def fused_matmul(b: Backward, n: Node) -> list[str]:
    """through Transpose, MatMul and a factor"""
    if n.attr("transBatchA", 0) or n.attr("transBatchB", 0):
        raise NoRule("transBatch")
    x, y = (turned(b, v) if n.attr(f"trans{k}", 0) else v for v, k in zip(n.inputs, "AB", strict=True))
    return [b.scale(b.op("MatMul", x, y), float(n.attr("alpha", 1.0)))]


@gradient(MS + "Gelu")
def gelu(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """as Gelu"""
    assert dy[0]
    return [(Tensor(b, dy[0]) * erf_gelu(Tensor(b, n.input(0)))).name]


@gradient(MS + "BiasGelu")
def bias_gelu(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """as Add and Gelu"""
    assert dy[0]
    x = Tensor(b, b.op("Add", *n.inputs))
    g = (Tensor(b, dy[0]) * erf_gelu(x)).name
    return [g, b.unbroadcast(g, n.input(1)) if b.needs(1) else None]


@gradient(MS + "FastGelu")
def fast_gelu(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """as Add and Gelu in its approximation by tanh"""
    assert dy[0]
    x = Tensor(b, b.op("Add", *n.inputs) if n.input(1) else n.input(0))
    g = (Tensor(b, dy[0]) * tanh_gelu(x)).name
    return [g, b.unbroadcast(g, n.input(1)) if n.input(1) and b.needs(1) else None][: len(n.inputs)]


@decomposed(MS + "QuickGelu")
def quick_gelu(b: Backward, n: Node) -> list[str]:
    """through x sigmoid(alpha x)"""
    x = Tensor(b, n.input(0))
    return [(x * (x * float(n.attr("alpha", 1.702))).op("Sigmoid")).name]


@gradient("SimplifiedLayerNormalization")
def simplified_layer_normalization(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """as RMSNormalization"""
    if any(dy[1:]) or not dy[0]:
        raise NoRule("gradients of statistics")
    rank = b.rank(n.input(0))
    axes = list(range(n.attr("axis", -1) % rank, rank))
    return root_mean_square(b, dy[0], n.input(0), n.input(1), axes, n.attr("epsilon", 1e-5))


def _skipped(b: Backward, n: Node, bias: int) -> str:
    """The sum of input, skip and bias."""
    total = b.op("Add", n.input(0), n.input(1))
    return b.op("Add", total, n.input(bias)) if n.input(bias) else total


@decomposed(MS + "SkipLayerNormalization")
def skip_layer_normalization(b: Backward, n: Node) -> list[str]:
    """through Add and LayerNormalization"""
    total = _skipped(b, n, 4)
    shift = [n.input(3)] if n.input(3) else []
    y = b.op("LayerNormalization", total, n.input(2), *shift, axis=-1, epsilon=n.attr("epsilon", 1e-12))
    return [y, "", "", total][: len(n.outputs)]


@decomposed(MS + "SkipSimplifiedLayerNormalization")
def skip_simplified_layer_normalization(b: Backward, n: Node) -> list[str]:
    """through Add and the root of the mean of squares"""
    total = _skipped(b, n, 3)
    x = Tensor(b, total)
    r = 1 / ((x * x).mean([b.rank(total) - 1]) + n.attr("epsilon", 1e-12)).op("Sqrt")
    return [(x * r * Tensor(b, n.input(2))).name, "", "", total][: len(n.outputs)]


@decomposed(MS + "EmbedLayerNormalization")
def embed_layer_normalization(b: Backward, n: Node) -> list[str]:
    """through Gather, Add and LayerNormalization"""
    words, segments, word, position, segment, scale, shift, _, at = (n.input(i) for i in range(9))
    length = b.squeeze(b.size(words, [1]), [0])
    places = at or b.op("Range", b.constant(0), length, b.constant(1))
    total = b.op("Add", b.op("Gather", word, words), b.op("Gather", position, places))
    if segment:
        total = b.op("Add", total, b.op("Gather", segment, segments))
    y = b.op("LayerNormalization", total, scale, shift, axis=-1, epsilon=n.attr("epsilon", 1e-12))
    return [y, "", total][: len(n.outputs)]


def _heads(b: Backward, x: str, heads: int) -> str:
    """`(samples, tokens, heads * width)` as `(samples, heads, tokens, width)`."""
    return b.transpose(b.op("Reshape", x, b.constant([0, 0, heads, -1])), [0, 2, 1, 3])


def _attended(b: Backward, n: Node, q: str, k: str, v: str, masks: list[str], *, causal: bool) -> str:
    """softmax(q k^T scale + masks) v, of tensors `(samples, heads, tokens, width)`, with the heads side by side."""
    width = b.shape(q)[3]
    scale = n.attr("scale", 0.0) or (1 / math.sqrt(width) if width else 0)
    if not scale:
        raise NoRule("the width of its heads is not known")
    scores = b.op("MatMul", b.scale(q, scale), b.transpose(k, [0, 1, 3, 2]))
    for mask in masks:
        scores = b.op("Add", scores, mask)
    if causal:
        rows, columns = (b.squeeze(b.size(x, [2]), [0]) for x in (q, k))
        row, column = (b.op("Range", b.constant(0), size, b.constant(1)) for size in (rows, columns))
        late = b.op("Sub", columns, rows)
        later = b.op("Greater", b.unsqueeze(column, [0]), b.op("Add", b.unsqueeze(row, [1]), late))
        scores = b.where(later, b.constant(n.attr("mask_filter_value", -10000.0), like=scores), scores)
    y = b.transpose(b.op("MatMul", b.op("Softmax", scores, axis=-1), v), [0, 2, 1, 3])
    return b.op("Reshape", y, b.constant([0, 0, -1]))


def _masked(b: Backward, n: Node, mask: str, like: str) -> list[str]:
    """A mask of integers, 1 where a key may be read, as what is added to the scores."""
    if not mask:
        return []
    rank = b.rank(mask)
    if rank not in (2, 3, 4):
        raise NoRule("a mask of lengths")
    wide = b.unsqueeze(mask, {2: [1, 2], 3: [1], 4: []}[rank])
    hidden = b.op("Cast", b.op("Sub", b.constant(1, like=mask), wide), to=b.code(like))
    return [b.scale(hidden, n.attr("mask_filter_value", -10000.0))]


@decomposed(MS + "Attention")
def attention(b: Backward, n: Node) -> list[str]:
    """through MatMul, Softmax and MatMul"""
    if n.input(4) or n.attr("do_rotary", 0):
        raise NoRule("past keys and values, or rotary embeddings")
    x, w, heads = n.input(0), n.input(1), int(n.attr("num_heads"))
    whole = b.op("MatMul", x, w)
    if n.input(2):
        whole = b.op("Add", whole, n.input(2))
    last = b.shape(w)[1]
    if last is None:
        raise NoRule("the width of its heads is not known")
    sizes = b.constant(n.attr("qkv_hidden_sizes") or [last // 3] * 3)
    q, k, v = (_heads(b, part, heads) for part in b.ops("Split", whole, sizes, outputs=3, axis=-1))
    masks = _masked(b, n, n.input(3), x) + ([n.input(5)] if n.input(5) else [])
    y = _attended(b, n, q, k, v, masks, causal=bool(n.attr("unidirectional", 0)))
    both = b.op("Concat", b.unsqueeze(k, [0]), b.unsqueeze(v, [0]), axis=0)
    return [y, both][: len(n.outputs)]


@decomposed(MS + "MultiHeadAttention")
def multi_head_attention(b: Backward, n: Node) -> list[str]:
    """through MatMul, Softmax and MatMul"""
    heads, parts = int(n.attr("num_heads")), list(n.inputs[:3])
    if len(parts) < 3 or not all(parts) or any(b.rank(p) != 3 for p in parts) or any(n.input(i) for i in (6, 7)):
        raise NoRule("packed queries, or past keys and values")
    if n.input(3):
        widths = [b.shape(p)[2] for p in parts]
        if None in widths:
            raise NoRule("the width of its heads is not known")
        biases = b.ops("Split", n.input(3), b.constant(widths), outputs=3, axis=0)
        parts = [b.op("Add", p, bias) for p, bias in zip(parts, biases, strict=True)]
    q, k, v = (_heads(b, p, heads) for p in parts)
    masks = _masked(b, n, n.input(4), n.input(0)) + ([n.input(5)] if n.input(5) else [])
    return [_attended(b, n, q, k, v, masks, causal=bool(n.attr("unidirectional", 0))), k, v][: len(n.outputs)]


@gradient(MS + "MatMulNBits")
def matmul_nbits(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy W, with W as the operator itself gives it for the identity; its integers have none"""
    assert dy[0]
    if n.input(4):
        raise NoRule("g_idx")
    given = _kept(n, "K", "N", "bits", "block_size", "accuracy_level")
    every = b.op("Range", b.constant(0), b.constant(int(n.attr("K"))), b.constant(1))
    one = b.op("Cast", b.op("Equal", b.unsqueeze(every, [0]), b.unsqueeze(every, [1])), to=b.code(dy[0]))
    w = b.op(MS + "MatMulNBits", one, *n.inputs[1:4], **given)
    if any(b.needs(i) for i in range(1, len(n.inputs)) if i != 5):
        raise NoRule("gradients of its scales")
    bias = b.sum(dy[0], range(b.rank(dy[0]) - 1)) if n.input(5) and b.needs(5) else None
    return [b.op("MatMul", dy[0], turned(b, w)), None, None, None, None, bias][: len(n.inputs)]


@gradient(MS + "Inverse")
def inverse(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """-Y^T dY Y^T"""
    assert dy[0]
    y = turned(b, n.output(0))
    return [b.op("Neg", b.op("MatMul", b.op("MatMul", y, dy[0]), y))]
