"""Pools."""

from __future__ import annotations

import numpy as np

from onnxprune.gradient import kernels
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.registry import Gradients, NoRule, gradient
from onnxprune.gradient.through import decomposed
from onnxprune.gradient.windows import Windows, windows
from onnxprune.graph.arrays import Array
from onnxprune.graph.node import Node


@gradient("GlobalAveragePool")
def global_average_pool(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy over the number of places, broadcast"""
    assert dy[0]
    x = n.input(0)
    places = b.op("ReduceProd", b.size(x, range(2, b.rank(x))), keepdims=0)
    return [b.expand_like(b.op("Div", dy[0], b.op("Cast", places, to=b.code(x))), x)]


@gradient("AveragePool")
def average_pool(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy over the number of elements of its window, added to each of them"""
    assert dy[0]
    x = n.input(0)
    at, sizes, made = windows(b, n, n.attr("kernel_shape")), b.shape(x), b.shape(dy[0])
    if None in sizes[1:] or None in made[2:]:
        raise NoRule("an axis of unknown size")
    channels, *lengths = (int(d or 0) for d in sizes[1:])
    counts = [int(d or 0) for d in made[2:]]
    share = _shares(at, lengths, counts, padded=bool(n.attr("count_include_pad", 0)))
    same = bool((share == share.flat[0]).all())
    g = b.op("Mul", dy[0], b.constant(share.flat[0] if same else share, like=dy[0]))
    tiled = at.kernel == at.strides and set(at.dilations) == {1} and not any(at.heads + at.tails)
    if tiled and all(k * c == size for k, c, size in zip(at.kernel, counts, lengths, strict=True)):
        return [_tile(b, g, x, at.kernel)]
    spans = [(c - 1) * s + r for c, s, r in zip(counts, at.strides, at.reach, strict=True)]  # without padding
    ones = b.constant(np.ones((channels, 1, *at.kernel)), like=g)
    whole = b.op(
        "ConvTranspose", g, ones, group=channels, kernel_shape=list(at.kernel), strides=list(at.strides),
        dilations=list(at.dilations),
    )  # fmt: skip
    tails = [max(h + size - span, 0) for h, size, span in zip(at.heads, lengths, spans, strict=True)]
    whole = b.pad(whole, [0] * len(sizes), [0, 0, *tails])
    ends = [h + size for h, size in zip(at.heads, lengths, strict=True)]
    return [b.slice(whole, at.heads, ends, range(2, len(sizes)))]


@gradient("MaxPool")
def max_pool(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy where the largest element of the window stands; among equal ones, where windows do not overlap, shared"""
    assert dy[0]
    x = n.input(0)
    at, sizes, made = windows(b, n, n.attr("kernel_shape")), b.shape(x), b.shape(n.output(0))
    tiled = at.kernel == at.strides and set(at.dilations) == {1} and not any(at.heads + at.tails)
    if tiled and [k * (c or 0) for k, c in zip(at.kernel, made[2:], strict=True)] == list(sizes[2:]):
        has = Tensor(b, x).op("Equal", Tensor(b, _tile(b, n.output(0), x, at.kernel))).cast(Tensor(b, x))
        few = has.op("AveragePool", kernel_shape=list(at.kernel), strides=list(at.kernel)) * float(np.prod(at.kernel))
        share = Tensor(b, dy[0]) / few
        out = (has * Tensor(b, _tile(b, share.name, x, at.kernel))).name
    else:
        given = {name: n.attr(name) for name in n.attributes if name != "storage_order"}
        places = b.ops("MaxPool", x, outputs=2, **given)[1]  # counted over the whole tensor
        flat = [b.reshape(v, [-1]) for v in (b.zeros_like(x), places, dy[0])]
        out = b.reshape_like(b.op("ScatterElements", *flat, axis=0, reduction="add"), x)
    kernels.max_pool(b, out, x, n.output(0), dy[0], at)
    return [out]


@gradient("MaxUnpool")
def max_unpool(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy from where the elements went"""
    assert dy[0]
    flat = b.op("GatherElements", *(b.reshape(v, [-1]) for v in (dy[0], n.input(1))), axis=0)
    return [b.reshape_like(flat, n.input(0)), None, None][: len(n.inputs)]


@decomposed("GlobalMaxPool")
def global_max_pool(b: Backward, n: Node) -> list[str]:
    """as ReduceMax over all places"""
    return [b.reduce("ReduceMax", n.input(0), range(2, b.rank(n.input(0))), keepdims=True)]


@decomposed("GlobalLpPool")
def global_lp_pool(b: Backward, n: Node) -> list[str]:
    """through the sum of |x|^p over all places"""
    x, p = Tensor(b, n.input(0)), int(n.attr("p", 2))
    return [((x.op("Abs") ** p).sum(range(2, b.rank(x.name))) ** (1 / p)).name]


@decomposed("LpPool")
def lp_pool(b: Backward, n: Node) -> list[str]:
    """through the sum of |x|^p over a window"""
    x, p = Tensor(b, n.input(0)), int(n.attr("p", 2))
    given = {name: n.attr(name) for name in n.attributes if name not in ("p", "ceil_mode")}
    if n.attr("ceil_mode", 0):  # where the last windows end beyond the padding, zeros are added
        at, sizes, made = windows(b, n, n.attr("kernel_shape")), b.shape(x.name)[2:], b.shape(n.output(0))[2:]
        if None in sizes or None in made:
            raise NoRule("ceil_mode over an axis of unknown size")
        ends = [(int(c or 0) - 1) * s + r for c, s, r in zip(made, at.strides, at.reach, strict=True)]
        tails = [max(end - h - int(d or 0), 0) for end, h, d in zip(ends, at.heads, sizes, strict=True)]
        given |= {"pads": [*at.heads, *tails], "auto_pad": "NOTSET"}
    mean = (x.op("Abs") ** p).op("AveragePool", count_include_pad=1, **given)
    return [((mean * float(np.prod(n.attr("kernel_shape")))) ** (1 / p)).name]


def _shares(at: Windows, lengths: list[int], counts: list[int], *, padded: bool) -> Array:
    """One over the number of elements that each window counts, `(counts...)`; padded: zeros around count as well."""
    share = np.ones([1] * len(counts))
    for k, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        inside = np.zeros(at.heads[k] + length + at.tails[k] + at.reach[k] + at.strides[k])  # beyond: ceil_mode
        start = 0 if padded else at.heads[k]
        inside[start : at.heads[k] + length + (at.tails[k] if padded else 0)] = 1
        first = np.arange(count)[:, None] * at.strides[k] + np.arange(at.kernel[k]) * at.dilations[k]
        shape = [1] * len(counts)
        shape[k] = count
        share = share / inside[first].sum(1).reshape(shape)
    return share


def _tile(b: Backward, g: str, x: str, kernel: tuple[int, ...]) -> str:
    """Every element of `g` repeated over its window, where windows neither overlap nor leave anything out."""
    rank = len(kernel)
    g = b.unsqueeze(g, [3 + 2 * k for k in range(rank)])
    ones = [1] * (2 + 2 * rank)
    for k, size in enumerate(kernel):
        ones[3 + 2 * k] = size
    return b.reshape_like(b.op("Expand", g, b.constant(np.array(ones, np.int64))), x)
