"""Resize: along every axis a product with a fixed matrix, of which the gradient is the product with its transpose.

Whole factors by the nearest neighbour are sums over blocks, whatever the size of the axis.
"""

from __future__ import annotations

import numpy as np

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.registry import Gradients, NoRule, gradient
from onnxprune.graph.arrays import Array
from onnxprune.graph.node import Node


@gradient("Resize")
def resize(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """along every axis, dy times the transpose of the matrix of its interpolation"""
    assert dy[0]
    if n.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoRule(f"keep_aspect_ratio_policy {n.attr('keep_aspect_ratio_policy')}")
    x, g, rank = n.input(0), dy[0], b.rank(n.input(0))
    axes = [k % rank for k in n.attr("axes") or range(rank)]
    scales = b.value(n.input(2)) if n.input(2) else None
    for i, axis in reversed(list(enumerate(axes))):
        sizes = [(s[axis], o[axis]) for s, o in zip(b.sizes(x), b.sizes(n.output(0)), strict=True)]
        factor = float(scales[i]) if scales is not None and scales.size else None
        if all(size == out for size, out in sizes) and factor in (None, 1.0):
            continue
        matrices = [_matrix(b, n, size, out, factor, (i, len(axes))) for size, out in sizes]
        if len(set(sizes)) == 1 or all(_block(m) == _block(matrices[0]) != 0 for m in matrices):
            g = _back(b, g, x, axis, matrices[0])
        else:
            raise NoRule("an axis of unknown size")
    return [g, None, None, None][: len(n.inputs)]


def _block(m: Array) -> int:
    """How many neighbouring outputs each input is copied to, if every one is to the same number; else 0."""
    count = m.shape[0] // max(m.shape[1], 1)
    same = count * m.shape[1] == m.shape[0] and np.array_equal(m, np.repeat(np.eye(m.shape[1]), count, 0))
    return count if same else 0


def _back(b: Backward, g: str, x: str, axis: int, m: Array) -> str:
    """The product of an axis of `g` with the transpose of `m` `(outputs, inputs)`."""
    rank, block = b.rank(g), _block(m)
    if block:
        before, after = b.size(g, range(axis)), b.size(g, range(axis + 1, rank))
        apart = b.op("Concat", before, b.size(x, [axis]), b.constant([block]), after, axis=0)
        return b.sum(b.op("Reshape", g, apart), [axis + 1])
    if axis == rank - 1:
        return b.op("MatMul", g, b.constant(m, like=g))
    if axis == rank - 2:
        return b.op("MatMul", b.constant(m.T, like=g), g)
    order = [*(k for k in range(rank) if k != axis), axis]
    product = b.op("MatMul", b.transpose(g, order), b.constant(m, like=g))
    return b.transpose(product, np.argsort(order).tolist())


def _matrix(
    b: Backward, n: Node, size: int | None, out: int | None, factor: float | None, at: tuple[int, int]
) -> Array:
    """The matrix `(out, size)` of an axis. at: which of how many axes of the roi it is. Raises `NoRule`."""
    if size is None or out is None:
        raise NoRule("an axis of unknown size")
    scale, mode = factor or out / size, n.attr("mode", "nearest")
    place = _places(b, n, size, out, scale, at)
    if mode == "nearest":
        taps, weights = _nearest(place, n.attr("nearest_mode", "round_prefer_floor"))[:, None], np.ones((out, 1))
    else:
        taps, weights = _interpolated(place, n, scale)
        if n.attr("exclude_outside", 0):
            weights = weights * ((taps >= 0) & (taps < size))
            weights = weights / weights.sum(1, keepdims=True)
    m = np.zeros((out, size))
    np.add.at(m, (np.arange(out)[:, None], np.clip(taps, 0, size - 1)), weights)
    if n.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        m[(place < 0) | (place > size - 1)] = 0  # there the extrapolation value stands
    return m


def _places(b: Backward, n: Node, size: int, out: int, scale: float, at: tuple[int, int]) -> Array:
    """Where the elements of the output lie along the input, `(out,)`."""
    k, kind = np.arange(out, dtype=np.float64), n.attr("coordinate_transformation_mode", "half_pixel")
    if kind == "asymmetric":
        return k / scale
    if kind == "align_corners":
        return k * (size - 1) / max(out - 1, 1)
    if kind == "tf_half_pixel_for_nn":
        return (k + 0.5) / scale
    if kind == "tf_crop_and_resize":
        roi = b.value(n.input(1))
        if roi is None:
            raise NoRule("a roi that is computed")
        start, end = float(roi.ravel()[at[0]]), float(roi.ravel()[at[0] + at[1]])
        if out == 1:
            return np.array([0.5 * (start + end) * (size - 1)])
        return (start + k * (end - start) / (out - 1)) * (size - 1)
    if kind == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    shift = size / 2 * (1 - out / (scale * size)) if kind == "half_pixel_symmetric" else 0.0
    return np.asarray(shift + (k + 0.5) / scale - 0.5)


def _nearest(place: Array, how: str) -> Array:
    rounded = {
        "round_prefer_floor": np.ceil(place - 0.5), "round_prefer_ceil": np.floor(place + 0.5),
        "floor": np.floor(place), "ceil": np.ceil(place),
    }  # fmt: skip
    return np.asarray(rounded[how].astype(np.int64))


def _interpolated(place: Array, n: Node, scale: float) -> tuple[Array, Array]:
    """Which inputs an output is made of, and their weights, `(out, taps)` each."""
    cubic, smooth = n.attr("mode") == "cubic", bool(n.attr("antialias", 0)) and scale < 1
    shrink = scale if smooth else 1.0
    reach = int(np.ceil((2 if cubic else 1) / shrink))
    first = np.floor(place)
    offsets = np.arange(1 - reach, reach + 1)
    t = np.abs((offsets - (place - first)[:, None]) * shrink)
    if cubic:
        a = float(n.attr("cubic_coeff_a", -0.75))
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        weights = np.where(t <= 1, near, np.where(t < 2, far, 0))
    else:
        weights = np.maximum(1 - t, 0)
    return (first[:, None] + offsets).astype(np.int64), weights / weights.sum(1, keepdims=True)
