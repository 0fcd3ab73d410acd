"""Operators that sum, average, normalise or select along axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnx import helper

from onnxprune.graph.arrays import Ids
from onnxprune.graph.node import Node
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.rules.elementwise import broadcast_together
from onnxprune.structure.rules.registry import rule
from onnxprune.structure.signs import NEVER_NEGATIVE, NEVER_POSITIVE

if TYPE_CHECKING:
    from onnxprune.structure.surgeon import Surgeon


def couple_reduce(c: Coupling, n: Node) -> list[int]:
    """Tie what is kept; return the axes that are reduced and hold ids."""
    x = c.axes(n.input(0))
    rank = len(x)
    axes = c.ints(n, "axes", 1)
    if not axes:
        axes = [] if axes == [] and n.attr("noop_with_empty_axes", 0) else list(range(rank))
        if not axes or (n.attr("noop_with_empty_axes", 0)):
            broadcast_together(c, [n.input(0)], [n.output(0)])
            return []
    gone = sorted({a % rank for a in axes}) if rank else []
    return reduce_axes(c, n, gone, keepdims=bool(n.attr("keepdims", 1)))


def reduce_axes(c: Coupling, n: Node, gone: list[int], *, keepdims: bool) -> list[int]:
    """Tie what is kept; return the axes among `gone` that hold ids."""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    rank = len(x)
    kept = [k for k in range(rank) if k not in gone]
    for k, out in zip(kept, kept if keepdims else range(len(kept)), strict=True):
        if x[k] is not None and out < len(y):
            c.tie(x[k], y[out])
    if keepdims and len(y) == rank:
        origins: list[list[tuple[Ids, str]]] = [[] for _ in range(rank)]
        for k in gone:
            ids = x[k]
            if ids is not None:
                origins[k] = [(ids, n.output(0))]
        c.reduced[n.output(0)] = origins
    return [k for k in gone if x[k] is not None]


@rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
def reduce_sum(c: Coupling, n: Node) -> None:
    """reduced axes are consumers: what is removed counts as zero"""
    for k in couple_reduce(c, n):
        c.consume(n, 0, k)


def resize_mean(s: Surgeon, n: Node) -> None:
    """Keep dividing by the original count: multiply by kept over original. Not where the mean normalises what it is
    the mean of: it is that of the survivors then."""
    if n.output(0) in s.coupling.statistics:
        return
    axes = s.coupling.means.get(n.output(0), [])
    factor = 1.0
    for ids in axes:
        factor *= s.count(ids) / ids.size
    if factor != 1.0:
        s.scale_output(n, factor)


@rule("ReduceMean", resize=resize_mean)
def reduce_mean(c: Coupling, n: Node) -> None:
    """reduced axes are consumers; the mean keeps its original divisor"""
    mean_of(c, n, couple_reduce(c, n))


def mean_over(c: Coupling, n: Node, gone: list[int]) -> None:
    """A mean that keeps the axes `gone`, of size one."""
    mean_of(c, n, reduce_axes(c, n, gone, keepdims=True))


def mean_of(c: Coupling, n: Node, axes: list[int]) -> None:
    """Consume the axes of a mean, and note what it averages."""
    x = c.axes(n.input(0))
    if helper.tensor_dtype_to_np_dtype(c.shapes.types.get(n.input(0), 1)).kind in "iu":
        for k in axes:
            c.pin(x[k], "a mean of integers, which cannot keep its divisor")
        return
    c.means[n.output(0)] = [ids for k in axes if (ids := x[k]) is not None]
    for k in axes:
        c.consume(n, 0, k)


def zero_is_neutral(c: Coupling, n: Node) -> bool:
    """Whether a maximum is over values that are never negative, or a minimum over values that are never positive."""
    return bool(c.signs.get(n.input(0), 0) & (NEVER_POSITIVE if n.op == "ReduceMin" else NEVER_NEGATIVE))


@rule("ReduceMax", "ReduceMin")
def reduce_extreme(c: Coupling, n: Node) -> None:
    """reduced axes are consumers of values that are never negative (ReduceMin: never positive), else pinned"""
    axes = couple_reduce(c, n)
    if axes and zero_is_neutral(c, n):
        for k in axes:
            c.consume(n, 0, k)
    else:
        pin_reduced(c, n, axes)


@rule("ReduceProd", "ReduceLogSumExp")
def reduce_other(c: Coupling, n: Node) -> None:
    """reduced axes are pinned: zero is not neutral"""
    pin_reduced(c, n, couple_reduce(c, n))


def pin_reduced(c: Coupling, n: Node, axes: list[int]) -> None:
    """Pin axes that a reduction takes away."""
    for k in axes:
        c.pin(c.axes(n.input(0))[k], f"reduced by {n.op}, for which zero is not neutral")


def along(c: Coupling, n: Node, axes: list[int], reason: str, *, unless: tuple[str, ...] = ()) -> None:
    """Tie everything; pin the named axes."""
    broadcast_together(c, [n.input(0)], [o for o in n.outputs if o])
    x = c.axes(n.input(0))
    for k in axes:
        if x:
            c.pin(x[k % len(x)], reason, unless=unless)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(c: Coupling, n: Node) -> None:
    """the axis is mixed and pinned (before opset 13: it and all that follow), but that of experts to choose from"""
    rank = len(c.axes(n.input(0)))
    old = n.opset < 13
    axis = n.attr("axis", 1 if old else -1)
    axes = list(range(axis % rank, rank)) if old and rank else [axis]
    along(c, n, axes, f"mixed by {n.op}", unless=("experts",) if n.op == "Softmax" and len(axes) == 1 else ())
    if n.op == "Softmax" and rank:
        c.consume(n, 0, axes[-1], neutral=-math.inf)


@rule("CumSum", "CumProd")
def cumulative(c: Coupling, n: Node) -> None:
    """the axis is pinned"""
    axis = c.known(n.input(1))
    along(c, n, list(range(len(c.axes(n.input(0))))) if axis is None else [int(axis.ravel()[0])], "accumulated along")


@rule("LRN")
def lrn(c: Coupling, n: Node) -> None:
    """channels are mixed and pinned"""
    along(c, n, [1], "mixed by LRN")


@rule("Trilu")
def trilu(c: Coupling, n: Node) -> None:
    """the last two axes are pinned"""
    along(c, n, [-1, -2], "cut along a diagonal")


@rule("ReverseSequence")
def reverse_sequence(c: Coupling, n: Node) -> None:
    """time and batch are pinned"""
    along(c, n, [0, 1], "reversed in time")


@rule("LpNormalization")
def lp_normalization(c: Coupling, n: Node) -> None:
    """normalised over an axis: its group is of kind hidden"""
    broadcast_together(c, [n.input(0)], [n.output(0)])
    c.mark("hidden", c.axes(n.input(0))[n.attr("axis", -1)] if c.axes(n.input(0)) else None)
    c.consume(n, 0, n.attr("axis", -1))


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(c: Coupling, n: Node) -> None:
    """normalised over the last axes: their groups are of kind hidden; scale and bias follow"""
    outs = [n.output(0)]
    broadcast_together(c, [i for i in n.inputs if i], outs)
    x = c.axes(n.input(0))
    first = n.attr("axis", -1) % len(x) - len(x) if x else 0
    for k in range(first, 0):
        c.norm(n, x[k], {0: k, 1: k, 2: k}, {0: k})
    for o in n.outputs[1:]:  # mean and inverse deviation
        if o:
            for p, q in zip(x, c.axes(o), strict=False):
                if q is not None:
                    c.tie(p, q)


@rule("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization")
def skip_layer_normalization(c: Coupling, n: Node) -> None:
    """as LayerNormalization over the sum of input, skip and bias"""
    outs = [o for k, o in enumerate(n.outputs) if o and k in (0, 3)]
    broadcast_together(c, [i for i in n.inputs if i], outs)
    if c.axes(n.input(0)):
        c.norm(n, c.axes(n.input(0))[-1], dict.fromkeys(range(5), -1), {0: -1, 3: -1})


@rule("com.microsoft::EmbedLayerNormalization", "com.microsoft::QEmbedLayerNormalization")
def embed_layer_normalization(c: Coupling, n: Node) -> None:
    """tables of words, positions and segments, summed and normalised: their widths are tied, their rows pinned"""
    y = c.axes(n.output(0))
    if len(y) != 3:
        c.pin_all(n, "rank is unknown")
        return
    for i in (*range(2), *range(7, len(n.inputs))):
        for ids in c.axes(n.input(i)) if n.input(i) else []:
            c.pin(ids, "token ids and positions")
    for i in range(2, 7):
        axes = c.axes(n.input(i)) if n.input(i) else []
        if axes:
            c.tie(axes[-1], y[-1])
            c.pin(axes[0] if len(axes) > 1 else None, "looked up with computed indices")
            if len(axes) > 1:
                c.produce(n, n.input(i), -1, table=True)
    for ids in y[:-1]:
        c.pin(ids, "batch and sequence")
    for k, o in enumerate(n.outputs[1:], 1):
        for p, q in zip(c.axes(o) if o else [], y if k == 2 else [None] * 9, strict=False):
            if q is None:
                c.pin(p, "token ids and positions")
            elif p is not None:
                c.tie(p, q)
    c.norm(n, y[-1], dict.fromkeys(range(2, 7), -1), {0: -1, 2: -1})


def tie_channels(c: Coupling, n: Node, first: int = 1) -> None:
    """Vectors of length C among the inputs follow axis 1."""
    x = c.axes(n.input(0))
    for i in n.inputs[first:]:
        if i and c.axes(i) and len(x) > 1:
            c.tie(c.axes(i)[0], x[1])


@rule("BatchNormalization")
def batch_normalization(c: Coupling, n: Node) -> None:
    """per channel: scale, bias, mean and variance follow axis 1"""
    broadcast_together(c, [n.input(0)], [n.output(0)])
    tie_channels(c, n)
    for o in n.outputs[1:]:
        if o and c.axes(o):
            c.tie(c.axes(o)[0], c.axes(n.input(0))[1])


@rule("InstanceNormalization")
def instance_normalization(c: Coupling, n: Node) -> None:
    """per channel; the axes that are normalised over are pinned"""
    x = c.axes(n.input(0))
    along(c, n, list(range(2, len(x))), "normalised over by InstanceNormalization")
    tie_channels(c, n)


@rule("MeanVarianceNormalization")
def mean_variance_normalization(c: Coupling, n: Node) -> None:
    """the axes that are normalised over are pinned"""
    along(c, n, n.attr("axes", [0, 2, 3]), "normalised over")


def resize_groups(s: Surgeon, n: Node) -> None:
    """Whole groups go: `num_groups` shrinks with the channels."""
    x = s.coupling.axes(n.input(0))[1]
    groups = n.attr("num_groups", n.attr("groups", 1))
    if x is not None and groups > 1:
        s.set_attr(n, "num_groups", groups * s.count(x) // x.size)


@rule("GroupNormalization", resize=resize_groups)
def group_normalization(c: Coupling, n: Node) -> None:
    """whole groups go, which is exact; with a single group the channels are of kind hidden"""
    x, groups = c.axes(n.input(0)), int(n.attr("num_groups", 1))
    along(c, n, list(range(2, len(x))), "normalised over by GroupNormalization")
    if len(x) < 2 or x[1] is None:
        return
    if groups == 1:
        c.norm(n, x[1], {0: 1, 1: 0, 2: 0}, {0: 1})
    else:
        rows = x[1].reshape(groups, -1)
        c.tie(rows, rows[:, :1])
    for i in (1, 2):
        ids = c.axes(n.input(i))[0]
        if ids is not None and ids.size == x[1].size:
            c.tie(ids, x[1])
        elif ids is not None:
            c.tie(ids[:, None], x[1].reshape(groups, -1))


@rule("GlobalAveragePool", resize=resize_mean)
def global_average_pool(c: Coupling, n: Node) -> None:
    """a mean over all axes but the first two: as ReduceMean"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    if len(x) < 3 or len(y) != len(x):
        c.pin_all(n, "rank is unknown")
        return
    mean_over(c, n, list(range(2, len(x))))


POOLS = ["AveragePool", "MaxPool", "LpPool", "GlobalMaxPool", "GlobalLpPool"]


def whole_axes(c: Coupling, n: Node) -> list[int]:
    """Axes that a pooling takes as a whole, where what is removed can count as zero."""
    rank = len(c.axes(n.input(0)))
    if n.op in ("MaxPool", "GlobalMaxPool") and (c.readers[n.output(1)] or not zero_is_neutral(c, n)):
        return []
    if n.op.startswith("Global"):
        return list(range(2, rank))
    kernel, plain = n.attr("kernel_shape", []), n.attr("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if not plain or any(n.attr("pads", [])) or any(d != 1 for d in n.attr("dilations", [])):
        return []
    return [k for k, d in enumerate(kernel, 2) if d == (c.shape(n.input(0)) or ())[k]]


def resize_pool(s: Surgeon, n: Node) -> None:
    """The window is as long as an axis that it takes as a whole; a mean keeps its divisor."""
    if "kernel_shape" in n.attributes:
        x = n.input(0)
        kernel = [s.new_size(x, k) if s.shrinks(x, k) else d for k, d in enumerate(n.attr("kernel_shape"), 2)]
        s.set_attr(n, "kernel_shape", kernel)
    resize_mean(s, n)


@rule(*POOLS, resize=resize_pool)
def pool(c: Coupling, n: Node) -> None:
    """batch and channels are tied, spatial axes pinned; one that is pooled as a whole is a consumer, as when reduced"""
    x = c.axes(n.input(0))
    whole = [k for k in whole_axes(c, n) if x[k] is not None]
    for o in n.outputs:
        y = c.axes(o) if o else []
        if not o:
            continue
        if len(x) < 3 or len(y) != len(x):
            c.pin_all(n, "rank is unknown")
            return
        c.tie(x[0], y[0])
        c.tie(x[1], y[1])
        for k in range(2, len(x)):
            if k not in whole:
                c.pin(x[k], "a spatial axis of a convolution or pooling")
                c.pin(y[k], "a spatial axis of a convolution or pooling")
    if n.op == "AveragePool":
        mean_of(c, n, whole)
    else:
        for k in whole:
            c.consume(n, 0, k)
    if n.op == "MaxPool" and c.readers[n.output(1)]:
        c.pin(x[1], "MaxPool indices count across channels")


@rule("ArgMax", "ArgMin")
def arg(c: Coupling, n: Node) -> None:
    """the axis is pinned: indices would change their meaning"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    axis = n.attr("axis", 0) % max(len(x), 1)
    if not x:
        return
    c.pin(x[axis], f"{n.op} returns indices of this axis")
    kept = [k for k in range(len(x)) if k != axis]
    for k, out in zip(kept, kept if n.attr("keepdims", 1) else range(len(kept)), strict=True):
        if x[k] is not None:
            c.tie(x[k], y[out])


@rule("TopK")
def topk(c: Coupling, n: Node) -> None:
    """the axis is pinned: indices would change their meaning; but where they choose among experts alone"""
    x = c.axes(n.input(0))
    axis = n.attr("axis", -1) % max(len(x), 1)
    for o in n.outputs:
        for k, (p, q) in enumerate(zip(x, c.axes(o) if o else [], strict=False)):
            if k == axis:
                c.pin(p, "TopK returns indices of this axis", unless=("experts",))
                c.pin(q, "TopK returns indices of this axis")
            else:
                c.tie(p, q)
    chosen = c.known(n.input(1))
    if x and n.output(1) and chosen is not None and n.attr("largest", 1):
        c.select(x[axis], n.output(1))
        c.least(x[axis], int(chosen.ravel()[0]))
        c.consume(n, 0, axis, neutral=-math.inf)
