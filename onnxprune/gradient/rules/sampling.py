"""Operators that read an image between its pixels: weighted sums of its neighbours, which are gathered.

So the image gets what is scattered back, and the places get the slopes of the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.registry import NoRule
from onnxprune.gradient.through import decomposed
from onnxprune.graph.node import Node

Tap = tuple[Tensor, Tensor]  # index along an axis, int64, and weight


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
    if ratio <= 0:
        raise NoRule("a number of samples that depends on the regions (sampling_ratio 0)")
    half = n.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel" and b.opset >= 16
    corners = Tensor(b, rois) * float(n.attr("spatial_scale", 1.0)) - (0.5 if half else 0.0)
    left, top, right, bottom = (
        Tensor(b, v) for v in b.ops("Split", corners.name, b.constant([1] * 4), outputs=4, axis=1)
    )
    taps = []
    for start, end, out, axis in ((top, bottom, outs[0], 2), (left, right, outs[1], 3)):
        length = end - start if half else (end - start).op("Max", 1)
        steps = (np.arange(out * ratio) + 0.5) / (out * ratio)
        taps.append(_edges(b, start + length * Tensor(b, b.constant(steps, like=rois)), b.size(x, [axis])))
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
    shape = b.constant([0, outs[0], ratio, outs[1], ratio, -1])
    if n.attr("mode", "avg") == "max":  # of weighted neighbours, as ONNX has it
        y = b.reduce("ReduceMax", b.op("Reshape", b.op("Max", *(p.name for p in parts)), shape), [2, 4])
    else:
        y = b.reduce("ReduceMean", b.op("Reshape", b.add([p.name for p in parts]), shape), [2, 4])
    return [b.transpose(y, [0, 3, 1, 2])]


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
