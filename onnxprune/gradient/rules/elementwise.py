"""Operators on single elements, with broadcasting where they have two inputs."""

from __future__ import annotations

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.registry import Gradients, gradient
from onnxprune.graph.node import Node


@gradient("Add", "Sum")
def add(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy for every term, summed over the axes that were broadcast"""
    assert dy[0]
    return [b.unbroadcast(dy[0], x) if b.needs(i) else None for i, x in enumerate(n.inputs)]


@gradient("Sub")
def sub(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, and -dy"""
    assert dy[0]
    x = b.unbroadcast(dy[0], n.input(0)) if b.needs(0) else None
    y = b.op("Neg", b.unbroadcast(dy[0], n.input(1))) if b.needs(1) else None
    return [x, y]


@gradient("Mul")
def mul(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy times the other factor"""
    assert dy[0]
    return [
        b.unbroadcast(b.op("Mul", dy[0], n.input(1 - i)), n.input(i)) if b.needs(i) else None for i in (0, 1)
    ]  # fmt: skip


@gradient("Div")
def div(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy / y, and -dy * x / y^2"""
    assert dy[0]
    x, y = n.inputs
    g = b.op("Div", dy[0], y)
    by_y = b.op("Neg", b.op("Mul", g, n.output(0))) if b.needs(1) else g
    return [b.unbroadcast(g, x) if b.needs(0) else None, b.unbroadcast(by_y, y) if b.needs(1) else None]


@gradient("Neg")
def neg(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """-dy"""
    assert dy[0]
    return [b.op("Neg", dy[0])]


@gradient("Identity")
def identity(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy"""
    return [dy[0]]


@gradient("Cast")
def cast(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy in the type of the input"""
    assert dy[0]
    return [b.op("Cast", dy[0], to=b.code(n.input(0)))]


@gradient("Exp")
def exp(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy * exp(x)"""
    assert dy[0]
    return [b.op("Mul", dy[0], n.output(0))]


@gradient("Log")
def log(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy / x"""
    assert dy[0]
    return [b.op("Div", dy[0], n.input(0))]


@gradient("Sqrt")
def sqrt(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy / (2 sqrt(x))"""
    assert dy[0]
    return [b.op("Div", b.scale(dy[0], 0.5), n.output(0))]


@gradient("Reciprocal")
def reciprocal(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """-dy / x^2"""
    assert dy[0]
    y = n.output(0)
    return [b.op("Neg", b.op("Mul", dy[0], b.op("Mul", y, y)))]


@gradient("Relu")
def relu(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy where x > 0"""
    assert dy[0]
    zero = b.constant(0, like=dy[0])
    return [b.where(b.op("Greater", n.output(0), zero), dy[0], zero)]


@gradient("Sigmoid")
def sigmoid(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy * y (1 - y)"""
    assert dy[0]
    y = n.output(0)
    return [b.op("Mul", dy[0], b.op("Mul", y, b.op("Sub", b.constant(1, like=y), y)))]


@gradient("Tanh")
def tanh(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy (1 - y^2)"""
    assert dy[0]
    y = n.output(0)
    return [b.op("Mul", dy[0], b.op("Sub", b.constant(1, like=y), b.op("Mul", y, y)))]


@gradient("Where")
def where(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy where the condition holds, and where it does not"""
    assert dy[0]
    condition, x, y = n.inputs
    zero = b.constant(0, like=dy[0])
    return [
        None,
        b.unbroadcast(b.where(condition, dy[0], zero), x) if b.needs(1) else None,
        b.unbroadcast(b.where(condition, zero, dy[0]), y) if b.needs(2) else None,
    ]
