"""Sums and means over axes."""

from __future__ import annotations

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.registry import Gradients, gradient
from onnxprune.graph.node import Node


def axes_of(b: Backward, n: Node) -> list[int]:
    """The axes of a reduction, from 0; all where it names none. Raises `NoRule` where they are not known."""
    rank = b.rank(n.input(0))
    axes = b.ints(n, "axes", 1)
    if not axes:
        return [] if n.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(k % rank for k in axes)


def spread(b: Backward, n: Node, g: str) -> str:
    """What belongs to the output of a reduction, broadcast to the shape of its input."""
    if not n.attr("keepdims", 1):
        g = b.unsqueeze(g, axes_of(b, n))
    return b.expand_like(g, n.input(0))


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
