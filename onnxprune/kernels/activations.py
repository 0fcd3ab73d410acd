"""Residual and activation over outputs that lie side by side, a vector at a time.

Every activation is a function from a vector to a vector; its number is its place in the list of the file format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from onnxprune.kernels import names
from onnxprune.kernels.emit import F32, I32, Emitter, Value, constant, kernel, lanes_of, vector


class Math:
    """Arithmetic on vectors of float32 with constants as plain numbers."""

    def __init__(self, k: Emitter, lanes: int, low: Value, high: Value) -> None:
        self.k, self.lanes, self.kind = k, lanes, vector(lanes)
        self.low, self.high = (k.splat(v, lanes) for v in (low, high))

    def number(self, value: Value | float) -> Value:
        """A constant in every lane."""
        return ir.Constant(self.kind, [value] * self.lanes) if isinstance(value, float) else value

    def add(self, a: Value, b: Value | float) -> Value:
        """a + b"""
        return self.k.b.fadd(a, self.number(b))

    def mul(self, a: Value, b: Value | float) -> Value:
        """a * b"""
        return self.k.b.fmul(a, self.number(b))

    def div(self, a: Value | float, b: Value) -> Value:
        """a / b"""
        return self.k.b.fdiv(self.number(a), b)

    def fma(self, a: Value, b: Value | float, c: Value | float) -> Value:
        """a * b + c"""
        return self.k.fma(a, self.number(b), self.number(c))

    def clamp(self, x: Value, low: Value | float, high: Value | float) -> Value:
        """x within bounds; a NaN stays one."""
        b = self.k.b
        low, high = self.number(low), self.number(high)
        x = b.select(b.fcmp_ordered("<", x, low), low, x)
        return b.select(b.fcmp_ordered(">", x, high), high, x)

    def exp(self, x: Value) -> Value:
        """e^x to 2 units in the last place: 2^n times a polynomial (Cephes)."""
        b = self.k.b
        x = self.clamp(x, -87.0, 88.0)
        n = self.k.intrinsic(f"llvm.floor.v{self.lanes}f32", self.kind, [self.fma(x, 1.44269504, 0.5)])
        r = self.fma(n, 2.12194440e-4, self.fma(n, -0.693359375, x))
        p = self.number(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = self.fma(p, r, c)
        p = self.fma(p, self.mul(r, r), self.add(r, 1.0))
        whole = b.add(b.fptosi(n, vector(self.lanes, I32)), lanes_of([127] * self.lanes))
        return self.mul(p, b.bitcast(b.shl(whole, lanes_of([23] * self.lanes)), self.kind))


def clip(m: Math, x: Value) -> Value:
    """Relu and Clip"""
    return m.clamp(x, m.low, m.high)


def hard_swish(m: Math, x: Value) -> Value:
    """x * clip(x / 6 + 1 / 2, 0, 1)"""
    return m.mul(x, m.clamp(m.fma(x, 1 / 6, 0.5), 0.0, 1.0))


def silu(m: Math, x: Value) -> Value:
    """x / (1 + e^-x)"""
    return m.div(x, m.add(m.exp(m.mul(x, -1.0)), 1.0))


def gelu(m: Math, x: Value) -> Value:
    """x * (1 + erf(x / sqrt 2)) / 2, erf by Abramowitz and Stegun 7.1.26"""
    b = m.k.b
    negative = b.fcmp_ordered("<", x, m.number(0.0))
    z = m.mul(b.select(negative, m.mul(x, -1.0), x), 0.70710678)
    t = m.div(1.0, m.fma(z, 0.3275911, 1.0))
    p = m.number(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = m.fma(p, t, c)
    tail = m.mul(m.mul(p, t), m.exp(m.mul(m.mul(z, z), -1.0)))
    return m.mul(m.mul(x, 0.5), b.select(negative, tail, m.fma(tail, -1.0, 2.0)))


def fast_gelu(m: Math, x: Value) -> Value:
    """x * (1 + tanh(u)) / 2 = x - x / (e^2u + 1), u = sqrt(2 / pi) (x + 0.044715 x^3)"""
    u = m.mul(m.mul(x, 0.7978845608), m.fma(m.mul(x, x), 0.044715, 1.0))
    return m.mul(x, m.fma(m.div(1.0, m.add(m.exp(m.mul(u, 2.0)), 1.0)), -1.0, 1.0))


FUNCTIONS: dict[str, Callable[[Math, Value], Value] | None] = {
    "": None,
    "Relu": clip,
    "Clip": clip,
    "HardSwish": hard_swish,
    "Silu": silu,
    "Gelu": gelu,
    "FastGelu": fast_gelu,
}
ACTIVATIONS = tuple(FUNCTIONS[name] for name in names.ACTIVATIONS)


def finish(lanes: int) -> Any:
    """`n` floats at y: y = activation(y + added), added 0 for none; low and high are bits of float32."""

    def emit(k: Emitter, y: Value, added: Value, n: Value, activation: Value, low: Value, high: Value) -> None:
        b = k.b
        low, high = (b.bitcast(b.trunc(v, I32), F32) for v in (low, high))
        y, added_pointer = k.pointer(y), k.pointer(added)
        whole = b.mul(b.sdiv(n, constant(lanes)), constant(lanes))
        has_added = b.icmp_signed("!=", added, constant(0))

        def loops(apply: Callable[[Math, Value], Value] | None, residual: bool) -> None:
            for width, start, stop in ((lanes, constant(0), whole), (1, whole, n)):
                m = Math(k, width, low, high)

                def body(i: Value, _: list[Value], m: Math = m) -> list[Value]:
                    here = k.at(y, k.mul(i, 4))
                    x = k.load(here, m.kind)
                    if residual:
                        x = m.add(x, k.load(k.at(added_pointer, k.mul(i, 4)), m.kind))
                    k.store(apply(m, x) if apply else x, here)
                    return []

                k.loop(start, stop, width, [], body)

        with b.if_then(has_added):
            loops(None, True)
        for apply in dict.fromkeys(a for a in ACTIVATIONS if a):
            numbers = [i for i, a in enumerate(ACTIVATIONS) if a is apply]
            first, last = constant(numbers[0]), constant(numbers[-1])
            chosen = b.and_(b.icmp_signed(">=", activation, first), b.icmp_signed("<=", activation, last))
            with b.if_then(chosen):
                loops(apply, False)

    return kernel(6, emit)
