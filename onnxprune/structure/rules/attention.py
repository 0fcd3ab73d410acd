"""Attention as one operator, rotary embeddings and mixtures of experts as one operator.

Where heads are packed into one axis, the axis is the product of heads and of the dimensions inside a head, and both are
units (`Coupling.heads`). Numbers of heads are attributes that follow; a scale that the operator would take from the
size of a head is written down before that size changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph.node import Node
from onnxprune.graph.quantized import expert_bits, packed, unpacked
from onnxprune.graph.traits import TRAITS
from onnxprune.structure.claims import Axis
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.rules.linear import tie_per_channel
from onnxprune.structure.rules.quantized import tie_blocks
from onnxprune.structure.rules.registry import rule

if TYPE_CHECKING:
    from onnxprune.structure.surgeon import Surgeon

SEQUENCE = "batch and sequence of attention"
SCALED = "inside of a head, as its scale sees it"  # not an attribute: the ids that the default scale depends on


def resize_heads(s: Surgeon, n: Node) -> None:
    """Numbers of heads follow; the scale stays what it was."""
    for (key, attribute), ids in s.coupling.counted.items():
        if key != n.key:
            continue
        if attribute != SCALED:
            if attribute in n.attributes and n.attr(attribute) > 0:
                s.set_attr(n, attribute, n.attr(attribute) * s.count(ids) // ids.size)
        elif s.count(ids) < ids.size and not n.attr("scale", 0.0):
            s.set_attr(n, "scale", 1 / math.sqrt(ids.size))


def repeat(c: Coupling, heads: Axis, shared: Axis) -> None:
    """Query heads go with the key and value head that they share."""
    if heads is None or shared is None or heads.size % shared.size:
        c.pin(heads, "all heads share one")
        c.pin(shared, "heads are shared unevenly")
    else:
        c.tie(heads.reshape(shared.size, -1), shared[:, None])


def pin_axes(c: Coupling, n: Node, inputs: Sequence[int], reason: str = SEQUENCE) -> None:
    """All axes of the inputs stay."""
    for i in inputs:
        for ids in c.axes(n.input(i)) if n.input(i) else []:
            c.pin(ids, reason)


def cache(c: Coupling, name: str, heads: Axis, inner: Axis) -> None:
    """Keys or values of earlier steps, (batch, heads, sequence, dimensions of a head), with leading axes."""
    axes = c.axes(name) if name else []
    if len(axes) < 4:
        for ids in axes:
            c.pin(ids, "a cache of unknown shape")
        return
    for ids in (*axes[:-3], axes[-2]):
        c.pin(ids, SEQUENCE)
    for p, q in ((axes[-3], heads), (axes[-1], inner)):
        if p is not None:
            c.tie(p, q)


def mask(c: Coupling, name: str, heads: Axis) -> None:
    """A mask or bias that broadcasts to (batch, heads, queries, keys)."""
    axes = c.axes(name) if name else []
    for k, ids in enumerate(axes[::-1]):
        if k == 2 and ids is not None:
            c.tie(ids, heads)
        else:
            c.pin(ids, SEQUENCE)


def project(c: Coupling, n: Node, name: str, count: int, *, ids: Axis = None) -> tuple[Axis, Axis]:
    """Heads and dimensions of (batch, sequence, heads * dimensions); the other axes are pinned."""
    axes = c.axes(name)
    for other in axes[:-1]:
        c.pin(other, SEQUENCE)
    return c.heads(n, name, len(axes) - 1, count, ids)


@rule("com.microsoft::MultiHeadAttention", resize=resize_heads)
def multi_head_attention(c: Coupling, n: Node) -> None:
    """query, key and value as (batch, sequence, heads * dimensions): heads go through all, dimensions of q with k"""
    names = [n.input(i) for i in range(3)]
    count = int(n.attr("num_heads", 0))
    if any(len(c.axes(t)) != 3 for t in names):
        c.pin_all(n, "packed or cross-attention caches as keys and values")
        return
    (h, dq), (hk, dk), (hv, dv) = (project(c, n, t, count) for t in names)
    for other in (hk, hv):
        if other is not None:
            c.tie(other, h)
    c.tie(dk, dq)
    ho, do = project(c, n, n.output(0), count)
    c.tie(ho, h)
    c.tie(do, dv)
    bias = c.axes(n.input(3))[0] if n.input(3) else None
    at = 0
    for t in names if bias is not None else ():
        axis = c.axes(t)[-1]
        size = 1 if axis is None else axis.size
        c.tie(bias[at : at + size] if bias is not None else None, axis)
        at += size
    if bias is not None:
        c.consume(n, 3, 0)
    pin_axes(c, n, (4, 8, 9))
    mask(c, n.input(5), h)
    for name, inner in ((n.input(6), dq), (n.input(7), dv), (n.output(1), dq), (n.output(2), dv)):
        cache(c, name, h, inner)
    if n.output(3):
        mask(c, n.output(3), h)
    count_heads(c, n, {"num_heads": h}, dq)
    c.consume(n, 0, 2)


def count_heads(c: Coupling, n: Node, attributes: dict[str, Axis], inner: Axis) -> None:
    """Attributes that hold numbers of heads; the default scale comes from `inner`."""
    for attribute, ids in attributes.items():
        if ids is not None:
            c.counted[n.key, attribute] = ids
    if inner is not None:
        c.counted[n.key, SCALED] = inner


def resize_packed(s: Surgeon, n: Node) -> None:
    """As `resize_heads`; sizes of q, k and v are written down where they were or begin to differ."""
    resize_heads(s, n)
    sizes = [s.count(s.coupling.counted[n.key, f"{part} of the packed weight"]) for part in "qkv"]
    if "qkv_hidden_sizes" in n.attributes or len(set(sizes)) > 1:
        s.set_attr(n, "qkv_hidden_sizes", sizes)


@rule("com.microsoft::Attention", resize=resize_packed)
def packed_attention(c: Coupling, n: Node) -> None:
    """input (batch, sequence, width), weight (width, q + k + v): heads go through q, k and v of weight and bias"""
    pin_axes(c, n, (3, 6))
    h, dq, dv = couple_packed(c, n)
    mask(c, n.input(5), h)
    for name in (n.input(4), n.output(1)):
        cache(c, name, h, dq)
        if name and len(c.axes(name)) == 5:
            c.tie(dv, dq)


@rule("com.microsoft::QAttention", resize=resize_heads)
def quantized_attention(c: Coupling, n: Node) -> None:
    """as com.microsoft Attention; q, k and v have one width, so that dimensions of a head go through all three"""
    pin_axes(c, n, (5,))
    h, dq, dv = couple_packed(c, n, n.input(6), n.input(7))
    c.tie(dv, dq)
    for slot in TRAITS[n.op].steps:
        tie_per_channel(c, n, slot, c.axes(n.input(1))[-1])
    for name in (n.input(8), n.output(1)):
        cache(c, name, h, dq)


def couple_packed(c: Coupling, n: Node, zero: str = "", weight_zero: str = "") -> tuple[Axis, Axis, Axis]:
    """Tie input, weight, bias and output; heads, and dimensions of a head of queries and keys, and of values.

    zero, weight_zero: the zero points of input and weight.
    """
    x, w = c.axes(n.input(0)), c.axes(n.input(1))
    count = int(n.attr("num_heads", 0))
    if len(x) != 3 or len(w) != 2 or w[1] is None or n.attr("do_rotary", 0):
        c.pin_all(n, "an Attention of unknown shape or with rotary embedding")
        return None, None, None
    sizes = [int(d) for d in n.attr("qkv_hidden_sizes", [])] or [w[1].size // 3] * 3
    if sum(sizes) != w[1].size:
        c.pin_all(n, "sizes of q, k and v that are not those of the weight")
        return None, None, None
    for ids in x[:2]:
        c.pin(ids, SEQUENCE)
    c.tie(x[2], w[0])
    c.consume(n, 0, 2, zero)
    c.consume(n, 1, 1, weight_zero)  # the product of queries and keys is inside
    c.produce(n, n.input(1), 1)
    if n.input(2):
        c.tie(c.axes(n.input(2))[0], w[1])
        c.consume(n, 2, 0)
    bounds = (0, sizes[0], sizes[0] + sizes[1], w[1].size)
    parts = [w[1][a:b] for a, b in pairwise(bounds)]
    for part, ids in zip("qkv", parts, strict=True):
        c.counted[n.key, f"{part} of the packed weight"] = ids
    (h, dq), (hk, dk), (hv, dv) = (c.heads(n, n.input(1), 1, count, ids) for ids in parts)
    ho, do = project(c, n, n.output(0), count)
    for other in (hk, hv, ho):
        if other is not None:
            c.tie(other, h)
    c.tie(dk, dq)
    c.tie(do, dv)
    count_heads(c, n, {"num_heads": h}, dq)
    return h, dq, dv


@rule("com.microsoft::GroupQueryAttention", resize=resize_heads)
def group_query_attention(c: Coupling, n: Node) -> None:
    """heads of keys and values go with the heads of queries that share them; the size of a head is pinned"""
    q, k, v = n.input(0), n.input(1), n.input(2)
    many, few = int(n.attr("num_heads", 0)), int(n.attr("kv_num_heads", 0))
    if len(c.axes(q)) != 3 or not many or not few:
        c.pin_all(n, "a GroupQueryAttention of unknown shape")
        return
    if k:
        factors = [project(c, n, q, many), project(c, n, k, few), project(c, n, v, few)]
    else:  # packed: queries, keys, values
        ids = c.axes(q)[2]
        if ids is None or ids.size % (many + 2 * few):
            c.pin_all(n, "a packed width that is no multiple of the heads")
            return
        d = ids.size // (many + 2 * few)
        a, b = many * d, (many + few) * d
        factors = [project(c, n, q, many, ids=ids[:a])]
        factors += [project(c, n, q, few, ids=part) for part in (ids[a:b], ids[b:])]
    (h, dq), (g, dk), (gv, dv) = factors
    if g is not None:
        c.tie(g, gv)
    repeat(c, h, g)
    ho, do = project(c, n, n.output(0), many)
    if ho is not None:
        c.tie(ho, h)
    for inner in (dq, dk, dv, do):
        c.pin(inner, "the size of a head of GroupQueryAttention")
    for name in (n.input(3), n.input(4), n.output(1), n.output(2)):
        cache(c, name, g, dk)
    pin_axes(c, n, (5, 6, 7, 8, 9))
    mask(c, n.input(10), h)
    pin_axes(c, n, range(11, len(n.inputs)))
    count_heads(c, n, {"num_heads": h, "kv_num_heads": g}, None)


@rule("Attention", resize=resize_heads)
def attention(c: Coupling, n: Node) -> None:
    """(batch, heads, sequence, dimensions) or (batch, sequence, heads * dimensions); shared keys and values repeat"""
    q, k, v, y = n.input(0), n.input(1), n.input(2), n.output(0)
    ranks = {len(c.axes(t)) for t in (q, k, v, y)}
    if ranks == {3}:
        many, few = int(n.attr("q_num_heads", 0)), int(n.attr("kv_num_heads", 0))
        (h, dq), (g, dk) = project(c, n, q, many), project(c, n, k, few)
        (gv, dv), (ho, do) = project(c, n, v, few), project(c, n, y, many)
    elif ranks == {4}:
        for t in (q, k, v, y):
            for ids in (c.axes(t)[0], c.axes(t)[2]):
                c.pin(ids, SEQUENCE)
        (h, dq), (g, dk), (gv, dv), (ho, do) = ((c.axes(t)[1], c.axes(t)[3]) for t in (q, k, v, y))
        for ids, kind in ((h, "heads"), (g, "heads"), (dq, "head_dim"), (dv, "head_dim")):
            c.mark(kind, ids)
    else:
        c.pin_all(n, "an Attention of unknown rank")
        return
    if ho is not None:
        c.tie(ho, h)
    if g is not None:
        c.tie(g, gv)
    repeat(c, h, g)
    c.tie(dk, dq)
    c.tie(do, dv)
    mask(c, n.input(3), h)
    for name, inner in ((n.input(4), dk), (n.input(5), dv), (n.output(1), dk), (n.output(2), dv)):
        cache(c, name, g, inner)
    mask(c, n.output(3), h)
    pin_axes(c, n, range(6, len(n.inputs)))
    count_heads(c, n, {"q_num_heads": h, "kv_num_heads": g}, dq)
    c.consume(n, 0, len(c.axes(q)) - 1)


@rule("RotaryEmbedding", "com.microsoft::RotaryEmbedding", resize=resize_heads)
def rotary_embedding(c: Coupling, n: Node) -> None:
    """dimensions that are rotated together go together, with their column of cosines and sines"""
    ms = n.op.startswith("com.microsoft")
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    cos, sin = (n.input(2), n.input(3)) if ms else (n.input(1), n.input(2))
    angles = c.axes(cos)[-1] if c.axes(cos) else None
    width = (c.shape(cos) or (0,))[-1] or 0
    for p, q in zip(x, y, strict=False):
        if p is not None:
            c.tie(p, q)
    for name in {n.input(1), n.input(3), cos, sin} - {""}:
        for ids in c.axes(name)[:-1]:
            c.pin(ids, SEQUENCE)
    position = n.input(1) if ms else n.input(3)
    for ids in c.axes(position) if position else []:
        c.pin(ids, SEQUENCE)
    partial = int(n.attr("rotary_embedding_dim", 0))
    heads: Axis = None
    if len(x) == 4:
        inner = x[3]
        c.mark("heads", x[1])
    elif len(x) == 3 and x[2] is not None:
        count = int(n.attr("num_heads", 0)) or (x[2].size // (2 * width) if width else 0)
        heads, inner = project(c, n, n.input(0), count)
    else:
        c.pin_all(n, "a RotaryEmbedding of unknown shape")
        return
    c.mark("head_dim", inner)
    if heads is not None:
        c.counted[n.key, "num_heads"] = heads
    if inner is None or angles is None or partial or inner.size != 2 * width:
        for ids in (inner, angles):
            c.pin(ids, "rotated dimensions of a head")
    elif n.attr("interleaved", 0):
        c.tie(inner.reshape(-1, 2), angles[:, None])
    else:
        c.tie(inner.reshape(2, -1), angles[None])
    if c.axes(sin) and angles is not None:
        c.tie(c.axes(sin)[-1], angles)


EXPERTS = {  # weight, scale, bias and zero point of the three layers of all experts; no input where they have none
    "com.microsoft::MoE": ((2, -1, 3, -1), (4, -1, 5, -1), (6, -1, 7, -1)),
    "com.microsoft::QMoE": ((2, 3, 4, 11), (5, 6, 7, 12), (8, 9, 10, 13)),
}


@rule("com.microsoft::MoE")
def mixture_of_experts(c: Coupling, n: Node) -> None:
    """weights (experts, out, in): experts go with their column of the router, inner widths are those of all experts"""
    couple_experts(c, n)


def resize_experts(s: Surgeon, n: Node) -> None:
    """Zero points that share bytes are packed anew."""
    for k, (w, _, _, zero) in enumerate(EXPERTS[n.op]):
        name, bits = n.input(zero), expert_bits(n, k)
        if name not in s.coupling.model.weights or bits == 8 or not any(s.shrinks(n.input(w), k) for k in range(3)):
            continue
        experts, out, _ = s.coupling.axes(n.input(w))
        old = np.asarray(s.coupling.model.weights[name])
        size = s.coupling.shapes.shapes[n.input(w)][1] or 0
        values = unpacked(old, bits).reshape(*old.shape[:-1], -1)
        along: list[Axis] = [experts, out]
        if old.ndim == 3:
            blocks = s.coupling.axes(n.input(w + 1))[2]
            values, along = values[..., : 1 if blocks is None else blocks.size], [*along, blocks]
        else:
            values = values[:, :size]
        kept = [np.ones(d, bool) if a is None else s.keep(a) for d, a in zip(values.shape, along, strict=True)]
        s.set_input(n, zero, packed(values[np.ix_(*kept)], bits))


@rule("com.microsoft::QMoE", resize=resize_experts)
def quantized_experts(c: Coupling, n: Node) -> None:
    """as MoE; widths that are summed over go in whole bytes and whole blocks, with scales and zero points"""
    kind, bits = str(n.attr("quant_type", "int")), [expert_bits(n, k) for k in range(3)]
    for w, *_ in EXPERTS[n.op]:
        if n.input(w):
            c.produce(n, n.input(w), 0)
    if kind != "int" or any(n.inputs[15:]) or n.attr("weights_prepacked", -1) == 1 or not {2, 4, 8}.issuperset(bits):
        c.pin_all(n, f"experts of type {kind} and {bits[0]} bits, or in the order of one device")
        return
    if any(n.input(w) and not n.input(scale) for w, scale, *_ in EXPERTS[n.op]):
        c.pin_all(n, "experts without scales")
        return
    computed = [i for w, _, _, i in EXPERTS[n.op] if n.input(i) and n.input(i) not in c.model.weights]
    if computed:
        c.pin_all(n, "zero points that are not constant")
        return
    couple_experts(c, n)


def couple_experts(c: Coupling, n: Node) -> None:
    """Layers from the input's width to the inner one and back; the third, where there is one, is the gate's."""
    x, router = c.axes(n.input(0)), c.axes(n.input(1))
    experts = router[-1] if router else None
    y = c.axes(n.output(0))
    if experts is None or not x or len(y) != len(x) or int(n.attr("use_sparse_mixer", 0)):
        c.pin_all(n, "a mixture of one expert or with a sparse mixer")
        return
    for ids in (*x[:-1], *y[:-1], *router[:-1]):
        c.pin(ids, "batch and sequence")
    layers = EXPERTS[n.op]
    first, gated = layers[0][0], "glu" in str(n.attr("activation_type", "relu"))
    form = int(n.attr("swiglu_fusion", 0)) if gated else 0
    inner = c.fresh(((c.shape(n.input(first)) or (0, 0))[1] or 0) // (2 if form else 1))
    if gated and not form and not n.input(layers[2][0]):
        c.pin(c.axes(n.input(first))[1], "gate and value lie in one axis, and swiglu_fusion does not say how")
    made = {0: inner, 1: np.repeat(inner, 2), 2: np.tile(inner, 2)}[form]
    for k, (outs, ins) in enumerate(((made, x[-1]), (y[-1], inner), (inner, x[-1]))):
        couple_expert_layer(c, n, k, experts, outs, ins)
    if x[-1] is not None and y[-1] is not None:
        c.even(n, np.stack([x[-1], y[-1]]))  # both are the width of the model
    c.mark("experts", experts)
    c.least(experts, int(n.attr("k", 1)))
    c.consume(n, 0, len(x) - 1)
    c.consume(n, 1, len(router) - 1, neutral=-math.inf)
    if n.input(14):
        c.tie(c.axes(n.input(14))[-1], experts)
    # the inner width counts as zero where it is read; of bytes, where it is made: activations of zero are zero
    if n.op.endswith("::MoE"):
        c.consume(n, layers[1][0], 2)
        return
    for slot in (i for _, scale, bias, _ in layers[::2] for i in (scale, bias)):
        if n.input(slot):
            c.consume(n, slot, 1)


def couple_expert_layer(c: Coupling, n: Node, k: int, experts: Axis, outs: Axis, ins: Axis) -> None:
    """One layer of all experts, (experts, outs, ins), with what belongs to it."""
    weight, scale, bias, zero = EXPERTS[n.op][k]
    if not n.input(weight):
        return
    w = c.axes(n.input(weight))
    for slot in (weight, scale, bias, zero):
        axes = c.axes(n.input(slot)) if slot >= 0 and n.input(slot) else []
        packs = slot == zero and expert_bits(n, k) < 8
        for at, (p, q) in enumerate(zip(axes, (experts, outs), strict=False)):
            if p is not None and not (packs and at == len(axes) - 1):
                c.tie(p, q, "a width that a mixture of experts does not expect")
    for axis in (0, 1):
        c.produce(n, n.input(weight), axis)
    if scale < 0:
        c.tie(w[2], ins, "a width that a mixture of experts does not expect")
        return
    tie_blocks(c, ins, w[2], 8 // expert_bits(n, k))
    size = int(n.attr("block_size", 0))
    for slot in (scale, zero) if size > 0 else ():
        axes = c.axes(n.input(slot)) if n.input(slot) else []
        if len(axes) == 3 and not (slot == zero and expert_bits(n, k) < 8):
            tie_blocks(c, ins, axes[2], size)
