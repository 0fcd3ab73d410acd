"""Operators that pick elements by indices, and their opposites: what was picked goes back where it came from, summed
where an element was picked several times."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.registry import Gradients, gradient
from onnxprune.gradient.rules.views import back_to
from onnxprune.graph.node import Node


@gradient("Gather")
def gather(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, added at its indices among zeros"""
    assert dy[0]
    x, at = n.inputs
    axis = n.attr("axis", 0) % b.rank(x)
    known, size = b.value(at), b.shape(x)[axis]
    if known is not None and size is not None and known.ndim < 2 and known.size:
        where = known.ravel() % size
        step = int(where[1] - where[0]) if len(where) > 1 else 1
        if step and (np.diff(where) == step).all():
            g = b.unsqueeze(dy[0], [axis]) if known.ndim == 0 else dy[0]
            return [
                back_to(b, g, axis, range(int(where[0]), int(where[-1]) + (1 if step > 0 else -1), step), size),
                None,
            ]
    return [_added(b, x, axis, at, dy[0]), None]


def _added(b: Backward, x: str, axis: int, at: str, g: str) -> str:
    """Zeros in the shape of `x` to which `g` is added at indices `at` of an axis; g: the axes of `x` with those of `at`
    in place of that one."""
    at = at if b.code(at) == TensorProto.INT64 else b.op("Cast", at, to=TensorProto.INT64)
    more, rank = b.rank(at), b.rank(g)
    first = [*range(axis, axis + more), *(k for k in range(rank) if not axis <= k < axis + more)]
    order = [axis, *(k for k in range(b.rank(x)) if k != axis)]
    zeros = b.op("Expand", b.constant(0, like=g), b.size(x, order))
    whole = b.op("ScatterND", zeros, b.unsqueeze(at, [more]), b.transpose(g, first), reduction="add")
    return b.transpose(whole, np.argsort(order).tolist())


@gradient("Compress")
def compress(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy at the places that were kept, zeros elsewhere"""
    assert dy[0]
    x, condition = n.inputs
    at = b.reshape(b.op("NonZero", condition), [-1])
    if "axis" in n.attributes:
        return [_added(b, x, n.attr("axis") % b.rank(x), at, dy[0]), None]
    zeros = b.reshape(b.zeros_like(x), [-1])
    return [b.reshape_like(b.op("ScatterElements", zeros, at, dy[0], axis=0), x), None]


@gradient("Unique")
def unique(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy at the first occurrence of every value, zeros elsewhere"""
    x, g = n.input(0), dy[0]
    if g is None:
        return [None]
    given = {name: n.attr(name) for name in ("axis", "sorted") if name in n.attributes}
    at = b.ops("Unique", x, outputs=2, **given)[1]
    if "axis" in given:
        return [_added(b, x, given["axis"] % b.rank(x), at, g)]
    zeros = b.reshape(b.zeros_like(x), [-1])
    return [b.reshape_like(b.op("ScatterElements", zeros, at, g, axis=0), x)]


@gradient("GatherElements")
def gather_elements(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, added at its indices among zeros"""
    assert dy[0]
    x, at = n.inputs
    return [
        b.op("ScatterElements", b.zeros_like(x), at, dy[0], axis=n.attr("axis", 0) % b.rank(x), reduction="add"),
        None,
    ]


@gradient("TopK")
def top_k(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy where the values came from, zeros elsewhere"""
    assert dy[0]
    x, axis = n.input(0), n.attr("axis", -1) % b.rank(n.input(0))
    return [b.op("ScatterElements", b.zeros_like(x), n.output(1), dy[0], axis=axis), None]


@gradient("GatherND")
def gather_nd(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, added at its indices among zeros"""
    assert dy[0]
    x, at = n.inputs
    for k in reversed(range(n.attr("batch_dims", 0))):  # the index of the sample in front of the others
        rank = b.rank(at)
        every = b.op("Range", b.constant(0), b.squeeze(b.size(at, [k]), [0]), b.constant(1))
        every = b.unsqueeze(every, [j for j in range(rank) if j != k])
        shape = b.op("Concat", b.size(at, range(rank - 1)), b.constant([1]), axis=0)
        at = b.op("Concat", b.op("Expand", every, shape), at, axis=rank - 1)
    return [b.op("ScatterND", b.zeros_like(x), at, dy[0], reduction="add"), None]


@gradient("ScatterElements")
def scatter_elements(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """to the data, dy with zeros where something was written; to what was written, dy from there"""
    axis = n.attr("axis", 0) % b.rank(n.input(0))
    return _scatter(b, n, dy, "ScatterElements", "GatherElements", {"axis": axis})


@gradient("ScatterND")
def scatter_nd(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """to the data, dy with zeros where something was written; to what was written, dy from there"""
    return _scatter(b, n, dy, "ScatterND", "GatherND", {})


def _scatter(b: Backward, n: Node, dy: Gradients, put: str, take: str, how: dict[str, Any]) -> Gradients:
    assert dy[0]
    (x, at, new), g, kind = n.inputs, Tensor(b, dy[0]), n.attr("reduction", "none")
    index, y = Tensor(b, at), Tensor(b, n.output(0))
    back, there = g, g.op(take, index, **how)
    if kind == "none":
        back = g.op(put, index, Tensor(b, b.zeros_like(new)), **how)
    elif kind == "mul":
        back = g.op(put, index, Tensor(b, new), reduction="mul", **how)
        there = (g * y).op(take, index, **how) / Tensor(b, new)
    elif kind in ("max", "min"):
        back = y.op("Equal", Tensor(b, x)).where(g, 0, g)
        there = y.op(take, index, **how).op("Equal", Tensor(b, new)).where(there, 0, g)
    return [back.name if b.needs(0) else None, None, there.name if b.needs(2) else None]


@gradient("OneHot")
def one_hot(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """to the two values, the sums of dy where each of them stands"""
    assert dy[0]
    indices, depth, values = n.inputs
    ends = b.constant([0, 1], like=values)
    on = b.op("OneHot", indices, depth, ends, axis=n.attr("axis", -1))
    every = range(b.rank(dy[0]))
    hot, whole = b.sum(b.op("Mul", on, dy[0]), every), b.sum(dy[0], every)
    return [None, None, b.op("Concat", *(b.unsqueeze(v, [0]) for v in (b.op("Sub", whole, hot), hot)), axis=0)]


@gradient("TensorScatter")
def tensor_scatter(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """to the cache, dy with zeros where it was written; to what was written, dy from there"""
    assert dy[0]
    cache, update = n.input(0), n.input(1)
    given = {name: n.attr(name) for name in ("axis", "mode") if name in n.attributes}
    back = b.op("TensorScatter", dy[0], b.zeros_like(update), *n.inputs[2:], **given)
    rank = b.rank(cache)
    axis = n.attr("axis", -2) % rank
    length, every = b.size(cache, [axis]), b.squeeze(b.size(update, [axis]), [0])
    at = b.op("Range", b.constant(0), every, b.constant(1))
    at = b.unsqueeze(at, [k for k in range(rank) if k != axis])
    if n.input(2):
        at = b.op("Add", at, b.unsqueeze(n.input(2), range(1, rank)))
    if n.attr("mode", "linear") == "circular":
        at = b.op("Mod", at, length)
    there = b.op("GatherElements", dy[0], b.op("Expand", at, b.shape_of(update)), axis=axis)
    return [back if b.needs(0) else None, there if b.needs(1) else None, None][: len(n.inputs)]
