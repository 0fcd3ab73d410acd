"""Operators on single elements, with broadcasting where they have two inputs."""

from __future__ import annotations

import functools

from onnxprune.gradient import kernels
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
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


@gradient("Cast", "CastLike")
def cast(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy in the type of the input; integers that a quantizer made have one of a floating-point type"""
    assert dy[0]
    g = b.op("Cast", dy[0], to=b.code(n.input(0))) if b.is_float(n.input(0)) else dy[0]
    return [g, None][: len(n.inputs)]


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


@gradient("Pow")
def pow_(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy * y x^(y - 1), and dy * x^y log(x) where x > 0"""
    assert dy[0]
    x, g, power = Tensor(b, n.input(0)), Tensor(b, dy[0]), b.value(n.input(1))
    exponent = Tensor(b, n.input(1)).cast(x) if b.code(n.input(1)) != b.code(x.name) else Tensor(b, n.input(1))
    out: Gradients = [None, None]
    if b.needs(0):
        if power is not None and power.size == 1:
            c = float(power.ravel()[0])
            whole = g * c if c == 1 else g * c * (x ** (c - 1))
        else:
            whole = g * exponent * x.op("Pow", exponent - 1)
        out[0] = b.unbroadcast(whole.name, n.input(0))
    if b.needs(1):
        positive = x > 0
        log = positive.where(x, 1, x).op("Log")
        part = g * Tensor(b, n.output(0)) * log
        part = positive.where(part, 0, g)
        out[1] = b.unbroadcast(b.op("Cast", part.name, to=b.code(n.input(1))), n.input(1))
    return out


@gradient("Max", "Min")
def max_(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy to the first input that has the value"""
    assert dy[0]
    y, g = Tensor(b, n.output(0)), Tensor(b, dy[0])
    out: Gradients = []
    free: Tensor | None = None  # where no input before has it
    for i, name in enumerate(n.inputs):
        has = Tensor(b, name).op("Equal", y)
        mine = has if free is None else free.op("And", has)
        out.append(b.unbroadcast(mine.where(g, 0, g).name, name) if b.needs(i) else None)
        if i < len(n.inputs) - 1:
            free = has.op("Not") if free is None else free.op("And", has.op("Not"))
    return out


@gradient("Mean")
def mean(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy over the number of inputs, summed over the axes that were broadcast"""
    assert dy[0]
    g = b.scale(dy[0], 1 / len(n.inputs))
    return [b.unbroadcast(g, x) if b.needs(i) else None for i, x in enumerate(n.inputs)]


@gradient("Mod")
def mod(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, and -dy times the whole quotient"""
    assert dy[0]
    x, y = n.inputs
    out: Gradients = [b.unbroadcast(dy[0], x) if b.needs(0) else None, None]
    if b.needs(1):
        q = Tensor(b, x) / Tensor(b, y)
        whole = q.op("Sign") * q.op("Abs").op("Floor") if n.attr("fmod", 0) else q.op("Floor")
        out[1] = b.unbroadcast((-(Tensor(b, dy[0]) * whole)).name, y)
    return out


@gradient("PRelu")
def prelu(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy where x > 0, else dy * slope; and dy * x where x < 0"""
    assert dy[0]
    x, slope, g = Tensor(b, n.input(0)), Tensor(b, n.input(1)), Tensor(b, dy[0])
    below = x < 0
    out: Gradients = [below.where(g * slope, g, g).name if b.needs(0) else None, None]
    if b.needs(1):
        out[1] = b.unbroadcast(below.where(g * x, 0, g).name, slope.name)
    return out


@gradient("Clip")
def clip(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy where y lies between the bounds; to a bound, the sum where x lies beyond it"""
    assert dy[0]
    x, y, g = Tensor(b, n.input(0)), Tensor(b, n.output(0)), Tensor(b, dy[0])
    out: Gradients = [None] * len(n.inputs)
    if b.needs(0):
        # a product of y, as for Relu
        inside = [y.op(op, Tensor(b, n.input(i))) for i, op in ((1, "Greater"), (2, "Less")) if n.input(i)]
        whole = functools.reduce(lambda one, other: one.op("And", other), inside) if inside else None
        dx = g * whole.cast(g) if whole else g
        bounds = kernels.bounds_of(b, n)
        if whole and bounds:
            kernels.clip(b, dx.name, y.name, g.name, *bounds)
        out[0] = dx.name
    for i, kind in ((1, "Less"), (2, "Greater")):
        if i < len(n.inputs) and n.input(i) and b.needs(i):
            out[i] = b.unbroadcast(x.op(kind, Tensor(b, n.input(i))).where(g, 0, g).name, n.input(i))
    return out
