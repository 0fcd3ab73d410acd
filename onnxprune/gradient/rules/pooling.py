"""Pools."""

from __future__ import annotations

import numpy as np

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.registry import Gradients, NoRule, gradient
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
