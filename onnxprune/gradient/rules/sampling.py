"""Operators that read an image between its pixels: weighted sums of its neighbours, which are gathered.

So the image gets what is scattered back, and the places get the slopes of the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.registry import NoRule
from onnxprune.gradient.through import decomposed
from onnxprune.graph.node import Node

Tap = tuple[Tensor, Tensor]  # index along an axis, int64, and weight
LOWEST = float(np.finfo(np.float32).min)


def _number(b: Backward, size: str, like: str) -> Tensor:
    """A size, int64 of one element, as a number of the type of a tensor."""
    return Tensor(b, b.op("Cast", b.squeeze(size, [0]), to=b.code(like)))


def _rows(b: Backward, x: str) -> str:
    """An image `(samples, channels, ...)` as `(samples, pixels, channels)`."""
    return b.transpose(b.op("Reshape", x, b.constant([0, 0, -1])), [0, 2, 1])


def _flat(b: Backward, x: str, taps: Sequence[Tap]) -> Tensor:
    """The number of a pixel from its indices along all spatial axes."""
    at = taps[0][0]
    for axis, (index, _) in enumerate(taps[1:], 3):
        at = at * Tensor(b, b.squeeze(b.size(x, [axis]), [0])) + index
    return at


# GridSample


@decomposed("GridSample")
def grid_sample(b: Backward, n: Node) -> list[str]:
    """through Gather and the weights of the neighbours, which depend on the grid"""
    x, grid = n.input(0), n.input(1)
    axes = b.rank(x) - 2
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(m := n.attr("mode", "linear"), m)
    parts = b.ops("Split", grid, b.constant([1] * axes), outputs=axes, axis=-1)
    places = [Tensor(b, b.op("Reshape", p, b.constant([0, -1]))) for p in parts[::-1]]  # (samples, points)
    taps = [_axis(b, n, p, b.size(x, [k]), mode) for k, p in enumerate(places, 2)]
    rows, total = Tensor(b, _rows(b, x)), None
    for chosen in itertools.product(*taps):
        at = b.unsqueeze(_flat(b, x, chosen).name, [2])
        weight = chosen[0][1]
        for _, other in chosen[1:]:
            weight = weight * other
        part = rows.op("GatherND", Tensor(b, at), batch_dims=1) * Tensor(b, b.unsqueeze(weight.name, [2]))
        total = part if total is None else total + part
    assert total is not None
    shape = b.op("Concat", b.size(x, [0, 1]), b.size(grid, range(1, axes + 1)), axis=0)
    return [b.op("Reshape", b.transpose(total.name, [0, 2, 1]), shape)]


def _axis(b: Backward, n: Node, place: Tensor, size: str, mode: str) -> list[Tap]:
    """The neighbours of places in [-1, 1] along one axis."""
    count, whole = _number(b, size, place.name), Tensor(b, b.squeeze(size, [0]))
    aligned = bool(n.attr("align_corners", 0))
    at = (place + 1) * 0.5 * (count - 1) if aligned else ((place + 1) * count - 1) * 0.5
    if mode == "nearest":
        near = at.op("Round")
        return [_bounded(b, n, near, near * 0 + 1, whole, aligned)]
    first = at.op("Floor")
    t = at - first
    if mode == "linear":
        weights = [1 - t, t]
    else:
        weights = [_cubic(t + 1, far=True), _cubic(t), _cubic(1 - t), _cubic(2 - t, far=True)]
    start = 0 if mode == "linear" else -1
    return [_bounded(b, n, first + float(k), w, whole, aligned) for k, w in enumerate(weights, start)]


def _cubic(t: Tensor, *, far: bool = False, a: float = -0.75) -> Tensor:
    """The weight of a neighbour at distance t, in [0, 1], or in [1, 2] where it is far."""
    if far:
        return ((t * a - 5 * a) * t + 8 * a) * t - 4 * a
    return (t * (a + 2) - (a + 3)) * t * t + 1


def _bounded(b: Backward, n: Node, at: Tensor, weight: Tensor, size: Tensor, aligned: bool) -> Tap:
    """A neighbour that may lie outside, by the padding mode: weight 0, or an index inside."""
    index, last = at.op("Cast", to=7), size - 1
    mode = n.attr("padding_mode", "zeros")
    if mode == "zeros":
        inside = (index >= 0).op("And", index < size)
        weight = inside.where(weight, 0, weight)
    if mode == "reflection":
        period = (last * 2).op("Max", 1) if aligned else size * 2
        turn = last * 2 if aligned else size * 2 - 1
        index = index.op("Mod", period)
        index = index.op("Min", turn - index)
    return index.op("Max", 0).op("Min", last), weight


# RoiAlign


@decomposed("RoiAlign")
def roi_align(b: Backward, n: Node) -> list[str]:
    """through Gather and the weights of the neighbours, which depend on the regions"""
    x, rois, samples = n.input(0), n.input(1), n.input(2)
    ratio, outs = int(n.attr("sampling_ratio", 0)), [int(n.attr(f"output_{k}", 1)) for k in ("height", "width")]
    half = n.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel" and b.opset >= 16
    corners = Tensor(b, rois) * float(n.attr("spatial_scale", 1.0)) - (0.5 if half else 0.0)
    left, top, right, bottom = (
        Tensor(b, v) for v in b.ops("Split", corners.name, b.constant([1] * 4), outputs=4, axis=1)
    )
    taps, grids = [], []
    for start, end, out, axis in ((top, bottom, outs[0], 2), (left, right, outs[1], 3)):
        length = end - start if half else (end - start).op("Max", 1)
        grid = _grid(b, out, ratio, length)
        taps.append(_edges(b, start + length * grid.places, b.size(x, [axis])))
        grids.append(grid)
    rows = Tensor(b, _rows(b, x))
    owner = b.unsqueeze(samples, [1, 2])  # (regions, 1, 1)
    parts = []
    for (i, u), (j, v) in itertools.product(*taps):
        row, column = Tensor(b, b.unsqueeze(i.name, [2])), Tensor(b, b.unsqueeze(j.name, [1]))
        pixel = row * Tensor(b, b.squeeze(b.size(x, [3]), [0])) + column  # (regions, rows, columns)
        which = Tensor(b, b.op("Expand", owner, b.shape_of(pixel.name)))
        at = b.op("Concat", b.unsqueeze(which.name, [3]), b.unsqueeze(pixel.name, [3]), axis=3)
        weight = Tensor(b, b.unsqueeze(u.name, [2])) * Tensor(b, b.unsqueeze(v.name, [1]))
        parts.append(rows.op("GatherND", Tensor(b, at)) * Tensor(b, b.unsqueeze(weight.name, [3])))
    largest = n.attr("mode", "avg") == "max"  # of weighted neighbours, as ONNX has it
    names = [p.name for p in parts]
    each = Tensor(b, b.op("Max", *names) if largest else b.add(names))  # (regions, rows, columns, channels)
    if ratio <= 0:
        rows_inside, columns_inside = (b.unsqueeze(g.inside.name, [a, 3]) for g, a in zip(grids, (2, 1), strict=True))
        inside = Tensor(b, b.op("And", rows_inside, columns_inside))
        each = inside.where(each, LOWEST if largest else 0, each)
    sizes = [size for g, k in zip(grids, outs, strict=True) for size in (b.constant([k]), g.most)]
    shaped = b.op("Reshape", each.name, b.op("Concat", b.constant([0]), *sizes, b.size(x, [1]), axis=0))
    kind = "ReduceMax" if largest else "ReduceMean" if ratio > 0 else "ReduceSum"
    y = Tensor(b, b.reduce(kind, shaped, [2, 4]))  # (regions, rows, columns, channels)
    if ratio <= 0:
        count = Tensor(b, b.unsqueeze((grids[0].count * grids[1].count).name, [2, 3]))
        y = (count > 0).where(y, 0, y) if largest else y / count.op("Max", 1)
    return [b.transpose(y.name, [0, 3, 1, 2])]


@dataclass(frozen=True)
class Grid:
    """Samples of regions along an axis. places: from 0 to 1 along a region, `(bins * most,)`, or `(regions, bins *
    most)`; most: samples of a bin, int64 `(1,)`; count: that its region has, `(regions, 1)`; inside: which of them
    these are, bool `(regions, bins * most)`."""

    places: Tensor
    most: str
    count: Tensor
    inside: Tensor


def _grid(b: Backward, bins: int, ratio: int, length: Tensor) -> Grid:
    """So many samples in each bin, or, where `ratio` is 0, as many as a bin of the region is long, rounded up: then all
    regions have as many as the longest needs, and of the others those behind are not inside."""
    if ratio > 0:
        places = Tensor(b, b.constant((np.arange(bins * ratio) + 0.5) / (bins * ratio), like=length.name))
        return Grid(places, b.constant([ratio]), length.of(ratio), places >= 0)
    count = (length / bins).op("Ceil").op("Max", 0)
    longest = b.op("Cast", b.op("Concat", count.name, b.constant([[1]], like=length.name), axis=0), to=7)
    most = b.op("Reshape", b.reduce("ReduceMax", longest, [0, 1]), b.constant([1]))
    steps = b.op("Range", b.constant(0), b.squeeze(most, [0]), b.constant(1))
    step = Tensor(b, b.op("Cast", steps, to=b.code(length.name)))  # (most,)
    each = Tensor(b, b.unsqueeze(count.name, [2]))  # (regions, 1, 1)
    bin_ = Tensor(b, b.constant(np.arange(bins).reshape(-1, 1), like=length.name))
    places = (bin_ + (step + 0.5) / each.op("Max", 1)) / bins  # (regions, bins, most)
    inside = bin_ * 0 + step < each
    return Grid(places.op("Flatten", axis=1), most, count, inside.op("Flatten", axis=1))


def _edges(b: Backward, at: Tensor, size: str) -> list[Tap]:
    """The two neighbours of places along an axis; beyond the edge they are the edge, one pixel further nothing."""
    count, last = _number(b, size, at.name), Tensor(b, b.squeeze(size, [0])) - 1
    outside = (at < -1).op("Or", at > count)
    inner = at.op("Max", 0).op("Min", count - 1)
    first = inner.op("Floor")
    t = inner - first
    low = first.op("Cast", to=7)
    return [
        (index, outside.where(0, weight, weight))
        for index, weight in ((low, 1 - t), ((low + 1).op("Min", last), t))
    ]  # fmt: skip


# DeformConv


@decomposed("DeformConv")
def deform_conv(b: Backward, n: Node) -> list[str]:
    """through Gather and the weights of the neighbours, and a product for every position of the kernel"""
    x, w, offset, bias, mask = (n.input(i) for i in range(5))
    if b.rank(x) != 4:
        raise NoRule("other than two spatial axes")
    (outs, inner, *kernel), (_, channels, *_) = b.shape(w), b.shape(x)
    made = b.shape(n.output(0))[2:]
    if None in (outs, inner, channels, *kernel, *made):
        raise NoRule("an axis of unknown size")
    group, parts = int(n.attr("group", 1)), int(n.attr("offset_group", 1))
    strides, dilations = (n.attr(k) or [1, 1] for k in ("strides", "dilations"))
    pads = n.attr("pads") or [0] * 4
    places = [int(d or 0) for d in made]
    shape = b.constant([0, parts, int(kernel[0] or 0) * int(kernel[1] or 0), 2, *places])
    moved = b.op("Reshape", offset, shape)
    columns = []
    for k, (i, j) in enumerate(itertools.product(*(range(int(d or 0)) for d in kernel))):
        pair = b.op("Gather", moved, b.constant(k), axis=2)  # (samples, parts, 2, rows, columns)
        base = [
            np.arange(p) * s - pad + o * d
            for p, s, pad, o, d in zip(places, strides, pads, (i, j), dilations, strict=False)
        ]
        at = [
            Tensor(b, b.op("Gather", pair, b.constant(d), axis=2))
            + Tensor(b, b.constant(base[d].reshape((-1, 1) if d == 0 else (1, -1)), like=x))
            for d in (0, 1)
        ]
        value = _bilinear(b, x, at, parts, places)
        if mask:
            shares = b.op("Reshape", mask, b.constant([0, parts, -1, 1, *places]))
            value = value * Tensor(b, b.op("Gather", shares, b.constant(k), axis=2))
        columns.append(b.op("Reshape", value.name, b.constant([0, group, int(channels or 0) // group, 1, -1])))
    whole = b.op("Reshape", b.op("Concat", *columns, axis=3), b.constant([0, group, -1, places[0] * places[1]]))
    weights = b.op("Reshape", w, b.constant([1, group, int(outs or 0) // group, -1]))
    y = b.op("Reshape", b.op("MatMul", weights, whole), b.constant([0, int(outs or 0), *places]))
    return [b.op("Add", y, b.unsqueeze(bias, [1, 2])) if bias else y]


def _bilinear(b: Backward, x: str, at: Sequence[Tensor], parts: int, places: list[int]) -> Tensor:
    """Values at places `(samples, parts, rows, columns)`, of which each holds for its share of the channels:
    `(samples, parts, channels / parts, rows, columns)`; nothing lies outside."""
    size = [b.squeeze(b.size(x, [k]), [0]) for k in (2, 3)]
    shape = b.op("Concat", b.size(x, [0]), b.constant([parts, -1]), b.op("Mul", b.size(x, [2]), b.size(x, [3])), axis=0)
    rows = Tensor(b, b.transpose(b.op("Reshape", x, shape), [0, 1, 3, 2]))  # (samples, parts, pixels, channels)
    taps: list[list[Tap]] = []
    for place, length in zip(at, size, strict=True):
        first = place.op("Floor")
        t = place - first
        near: list[Tap] = []
        for k, weight in ((0.0, 1 - t), (1.0, t)):
            index = (first + k).op("Cast", to=7)
            inside = (index >= 0).op("And", index < Tensor(b, length))
            near.append((index.op("Max", 0).op("Min", Tensor(b, length) - 1), inside.where(weight, 0, weight)))
        taps.append(near)
    total: Tensor | None = None
    for (i, u), (j, v) in itertools.product(*taps):
        pixel = b.op("Reshape", (i * Tensor(b, size[1]) + j).name, b.constant([0, parts, -1, 1]))
        value = rows.op("GatherND", Tensor(b, pixel), batch_dims=2)  # (samples, parts, places, channels)
        part = value * Tensor(b, b.op("Reshape", (u * v).name, b.constant([0, parts, -1, 1])))
        total = part if total is None else total + part
    assert total is not None
    turned = b.transpose(total.name, [0, 1, 3, 2])
    return Tensor(b, b.op("Reshape", turned, b.constant([0, parts, -1, *places])))


@decomposed("AffineGrid")
def affine_grid(b: Backward, n: Node) -> list[str]:
    """through the product of the places of a grid and theta"""
    sizes, aligned = b.ints(n, "size", 1)[2:], bool(n.attr("align_corners", 0))
    lines = [np.linspace(-1, 1, k) if aligned else (2 * np.arange(k) + 1) / k - 1 for k in sizes]
    axes = [axis.ravel() for axis in np.meshgrid(*lines, indexing="ij")][::-1]
    places = np.stack([*axes, np.ones(int(np.prod(sizes)))], 1)  # (points, axes + 1)
    turned = b.transpose(n.input(0), [0, 2, 1])
    grid = b.op("MatMul", b.constant(places, like=turned), turned)
    return [b.op("Reshape", grid, b.constant([0, *sizes, len(sizes)]))]
