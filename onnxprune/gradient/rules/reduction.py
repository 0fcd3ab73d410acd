"""Reductions over axes, and sums that run along one."""

from __future__ import annotations

import numpy as np

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.registry import Gradients, gradient
from onnxprune.graph.node import Node


def axes_of(b: Backward, n: Node) -> list[int]:
    """The axes of a reduction, from 0; all where it names none. Raises `NoRule` where they are not known."""
    rank = b.rank(n.input(0))
    axes = b.ints(n, "axes", 1)
    if not axes:
        return [] if n.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(k % rank for k in axes)


def kept(b: Backward, n: Node, y: str) -> Tensor:
    """What has the shape of the output of a reduction, with the axes that it dropped as axes of one."""
    return Tensor(b, y if n.attr("keepdims", 1) else b.unsqueeze(y, axes_of(b, n)))


def spread(b: Backward, n: Node, g: str) -> str:
    """What belongs to the output of a reduction, broadcast to the shape of its input."""
    return b.expand_like(kept(b, n, g).name, n.input(0))


def count(b: Backward, n: Node, axes: list[int]) -> str:
    """How many elements one result was made of, a tensor of one number."""
    return b.op("Cast", b.op("ReduceProd", b.size(n.input(0), axes), keepdims=0), to=b.code(n.input(0)))


@gradient("ReduceSum")
def reduce_sum(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, broadcast"""
    assert dy[0]
    return [spread(b, n, dy[0])]


@gradient("ReduceMean")
def reduce_mean(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy over the number of elements, broadcast"""
    assert dy[0]
    axes = axes_of(b, n)
    return [spread(b, n, b.op("Div", dy[0], count(b, n, axes)) if axes else dy[0])]


def both(b: Backward, n: Node, dy: Gradients) -> tuple[Tensor, Tensor, Tensor]:
    """x; y and dy with all axes of x."""
    assert dy[0]
    return Tensor(b, n.input(0)), kept(b, n, n.output(0)), kept(b, n, dy[0])


@gradient("ReduceMax", "ReduceMin")
def reduce_max(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, shared equally by the elements that have the value"""
    x, y, g = both(b, n, dy)
    has = x.op("Equal", y).cast(x)
    return [(has * (g / has.sum(axes_of(b, n)))).name]


@gradient("ReduceSumSquare")
def reduce_sum_square(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """2 x dy"""
    x, _, g = both(b, n, dy)
    return [(x * (g * 2)).name]


@gradient("ReduceL1")
def reduce_l1(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """sign(x) dy"""
    x, _, g = both(b, n, dy)
    return [(x.op("Sign") * g).name]


@gradient("ReduceL2")
def reduce_l2(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """x dy / y, 0 where all x are 0"""
    x, y, g = both(b, n, dy)
    return [(x * (g / (y > 0).where(y, 1, y))).name]


@gradient("ReduceLogSum")
def reduce_log_sum(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy / exp(y), broadcast"""
    _, y, g = both(b, n, dy)
    return [b.expand_like((g * (-y).op("Exp")).name, n.input(0))]


@gradient("ReduceLogSumExp")
def reduce_log_sum_exp(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """exp(x - y) dy"""
    x, y, g = both(b, n, dy)
    return [((x - y).op("Exp") * g).name]


@gradient("ReduceProd")
def reduce_prod(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy times the product of the others, each product made by itself, so that zeros do no harm"""
    x, _, g = both(b, n, dy)
    rank, axes = b.rank(x.name), axes_of(b, n)
    order = [*(k for k in range(rank) if k not in axes), *axes]
    turned = Tensor(b, b.transpose(x.name, order))
    free = rank - len(axes)
    shape = b.op("Concat", b.size(turned.name, range(free)), b.constant([1, -1]), axis=0)
    rows = turned.op("Reshape", Tensor(b, shape))  # (..., 1, elements)
    size = b.squeeze(b.size(rows.name, [free + 1]), [0])
    every = Tensor(b, b.op("Range", b.constant(0), size, b.constant(1)))
    own = Tensor(b, b.unsqueeze(every.name, [1])).op("Equal", every)  # (elements, elements)
    others = b.reduce("ReduceProd", own.where(1, rows, rows).name, [free + 1])
    others = b.transpose(b.reshape_like(others, turned.name), np.argsort(order).tolist())
    return [(Tensor(b, others) * g).name]


@gradient("CumSum")
def cum_sum(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """the sum of dy that runs the other way"""
    assert dy[0]
    way = {"exclusive": n.attr("exclusive", 0), "reverse": 1 - n.attr("reverse", 0)}
    return [b.op("CumSum", dy[0], n.input(1), **way), None]


@gradient("CumProd")
def cum_prod(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """the sum of dy * y that runs the other way, over x (which must not be 0)"""
    assert dy[0]
    way = {"exclusive": n.attr("exclusive", 0), "reverse": 1 - n.attr("reverse", 0)}
    return [b.op("Div", b.op("CumSum", b.op("Mul", dy[0], n.output(0)), n.input(1), **way), n.input(0)), None]
