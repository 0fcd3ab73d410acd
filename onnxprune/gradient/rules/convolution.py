"""Convolutions and their transposes.

dX is the transposed convolution of dY; at stride 1 a convolution with the weights turned round, which runs faster. dW
is, for every position of the kernel, the product of dY with the input shifted to that position: one matrix product over
samples and places.
"""

from __future__ import annotations

import itertools

from onnxprune.gradient import kernels
from onnxprune.gradient.backward import LAST, Backward
from onnxprune.gradient.registry import Gradients, NoRule, gradient
from onnxprune.gradient.windows import Windows, windows
from onnxprune.graph.node import Node


@gradient("Conv")
def conv(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dX: ConvTranspose of dY; dW: products of dY and shifted X; dB: sum of dY"""
    assert dy[0]
    x, w, g = n.input(0), n.input(1), dy[0]
    at, group = windows(b, n, b.shape(w)[2:]), int(n.attr("group", 1))
    out: Gradients = [None] * len(n.inputs)
    if b.needs(0):
        out[0] = input_gradient(b, x, w, g, at, group)
    if b.needs(1):
        out[1] = of_w = weight_gradient(b, x, w, g, at, group)
        kernels.conv_weight(b, of_w, x, w, g, at, group)
    if len(n.inputs) > 2 and b.needs(2):
        out[2] = b.sum(g, [0, *range(2, b.rank(g))])
    return out


@gradient("ConvTranspose")
def conv_transpose(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dX: Conv of dY; dW: products of X and shifted dY; dB: sum of dY"""
    assert dy[0]
    x, w, g = n.input(0), n.input(1), dy[0]
    at, group = windows(b, n, b.shape(w)[2:]), int(n.attr("group", 1))
    out: Gradients = [None] * len(n.inputs)
    if b.needs(0):
        out[0] = b.op("Conv", g, w, group=group, **at.attributes)
    if b.needs(1):
        out[1] = weight_gradient(b, g, w, x, at, group)
    if len(n.inputs) > 2 and b.needs(2):
        out[2] = b.sum(g, [0, *range(2, b.rank(g))])
    return out


def input_gradient(b: Backward, x: str, w: str, g: str, at: Windows, group: int) -> str:
    """The gradient of the input of a convolution, in the shape of `x`; g: that of its output."""
    heads = [r - 1 - p for r, p in zip(at.reach, at.heads, strict=True)]
    tails = [r - 1 - p for r, p in zip(at.reach, at.tails, strict=True)]
    outs, inner = b.shape(w)[:2]
    if set(at.strides) == {1} and min(heads + tails) >= 0 and outs is not None and inner is not None:
        turned = _turned(b, w, outs, inner, at, group)
        made = b.op(
            "Conv", g, turned, group=group, kernel_shape=list(at.kernel), dilations=list(at.dilations),
            pads=heads + tails,
        )  # fmt: skip
        kernels.conv_input(b, made, w, g, at, group, heads, tails)
        return made
    sizes, counts, spare = b.shape(x)[2:], b.shape(g)[2:], []
    for k, stride in enumerate(at.strides):
        length, count = sizes[k], counts[k]
        if length is None or count is None:
            spare.append(stride - 1)
        else:
            spare.append(length - ((count - 1) * stride + at.reach[k] - at.heads[k] - at.tails[k]))
    out = b.op("ConvTranspose", g, w, group=group, output_padding=spare, **at.attributes)
    loose = [k + 2 for k in range(len(spare)) if spare[k] and (sizes[k] is None or counts[k] is None)]
    if not loose:
        kernels.conv_input(b, out, w, g, at, group, heads, [t + s for t, s in zip(tails, spare, strict=True)])
    return b.slice(out, [0] * len(loose), b.size(x, loose), loose) if loose else out


def _turned(b: Backward, w: str, outs: int, inner: int, at: Windows, group: int) -> str:
    """W `(outs, inner, ...)` as the weights `(group * inner, outs / group, ...)` of the way back, turned round."""
    spatial = [k for k, size in enumerate(at.kernel) if size > 1]
    axes = [k + 2 for k in spatial]
    w = b.slice(w, [-1] * len(axes), [-LAST] * len(axes), axes, [-1] * len(axes))
    rank = len(at.kernel)
    if group == 1:
        return b.transpose(w, [1, 0, *range(2, 2 + rank)])
    if inner == 1 and outs == group:
        return w
    w = b.reshape(w, [group, outs // group, inner, *at.kernel])
    w = b.transpose(w, [0, 2, 1, *range(3, 3 + rank)])
    return b.reshape(w, [group * inner, outs // group, *at.kernel])


def weight_gradient(b: Backward, x: str, w: str, g: str, at: Windows, group: int) -> str:
    """The gradient of the weights of a convolution, in the shape of `w`; g: that of its output."""
    outs, inner, *_ = b.shape(w)
    if outs is None or inner is None:
        raise NoRule("the number of its channels is not known")
    rank = len(at.kernel)
    depthwise = inner == 1 and outs == group
    if not depthwise:  # (samples, spatial, channels); grouped: (channels, samples, spatial)
        x = b.transpose(x, [0, *range(2, 2 + rank), 1] if group == 1 else [1, 0, *range(2, 2 + rank)])
    first = 2 if depthwise or group > 1 else 1
    around = [0] * first, [0] * (2 - first)
    x = b.pad(x, [*around[0], *at.heads, *around[1]], [*around[0], *at.tails, *around[1]])
    rows = g
    if not depthwise:
        rows = b.reshape(b.transpose(g, [1, 0, *range(2, 2 + rank)]), [*_groups(group), outs // group, -1])
    parts = []
    for offset in itertools.product(*map(range, at.kernel)):
        shifted = _shifted(b, x, g, at, offset, first)
        if depthwise:
            part = b.reshape(b.sum(b.op("Mul", shifted, rows), [0, *range(2, 2 + rank)]), [1, outs])
        elif group == 1:
            part = b.reshape(b.op("MatMul", rows, b.reshape(shifted, [-1, inner])), [1, outs, inner])
        else:
            columns = b.transpose(b.reshape(shifted, [group, inner, -1]), [0, 2, 1])
            part = b.reshape(b.op("MatMul", rows, columns), [1, outs, inner])
        parts.append(part)
    whole = b.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
    whole = b.transpose(whole, [1, 0] if depthwise else [1, 2, 0])
    return b.reshape(whole, [outs, inner, *at.kernel])


def _groups(group: int) -> list[int]:
    return [group] if group > 1 else []


def _shifted(b: Backward, x: str, g: str, at: Windows, offset: tuple[int, ...], first: int) -> str:
    """What one position of the kernel meets: every `stride`-th element from there, as many as there are outputs.

    first: the first spatial axis of `x`, which is padded.
    """
    rank = len(offset)
    starts = [o * d for o, d in zip(offset, at.dilations, strict=True)]
    made, axes = b.shape(g)[2:], list(range(first, first + rank))
    cut = [k for k in range(rank) if at.strides[k] > 1 or at.reach[k] > 1 or b.shape(x)[first + k] != made[k]]
    known = [made[k] for k in cut]
    strides = [at.strides[k] for k in cut]
    if all(count is not None for count in known):
        spans = [(int(count or 0) - 1) * s + 1 for count, s in zip(known, strides, strict=True)]
        ends: list[int] | str = [starts[k] + span for k, span in zip(cut, spans, strict=True)]
    else:
        count = b.op("Sub", b.size(g, [k + 2 for k in cut]), b.constant([1]))
        ends = b.op("Add", b.op("Mul", count, b.constant(strides)), b.constant([starts[k] + 1 for k in cut]))
    return b.slice(x, [starts[k] for k in cut], ends, [axes[k] for k in cut], strides)
