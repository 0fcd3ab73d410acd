"""One step of a recurrent layer for one sample, forwards and back, over its hidden units; W x + R h is there already.

Arrays of several gates have them one after the other, each `n` floats; z', ... are gradients before the activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from onnxprune.kernels.activations import Math
from onnxprune.kernels.emit import F32, Emitter, Value, constant, kernel
from onnxprune.kernels.loops import LANES

# of x^13 ... x and x^6 ... 1: the tanh of Eigen (MathFunctionsImpl.h)
UPPER = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
    6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
LOWER = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def sigmoid(m: Math, x: Value) -> Value:
    """1 / (1 + e^-x)"""
    return m.div(1.0, m.add(m.exp(m.mul(x, -1.0)), 1.0))


def tanh(m: Math, x: Value) -> Value:
    """tanh x to a few units in the last place."""
    x = m.clamp(x, -9.0, 9.0)
    square = m.mul(x, x)
    above, below = (m.number(values[0]) for values in (UPPER, LOWER))
    for c in UPPER[1:]:
        above = m.fma(above, square, c)
    for c in LOWER[1:]:
        below = m.fma(below, square, c)
    return m.div(m.mul(x, above), below)


def sub(m: Math, a: Value | float, b: Value) -> Value:
    """a - b"""
    return m.fma(b, -1.0, a)


class Row:
    """The units that a turn of the loop is at, of the arrays of one sample."""

    def __init__(self, k: Emitter, m: Math, n: Value, i: Value) -> None:
        self.k, self.m, self.n, self.i = k, m, n, i

    def _at(self, array: Value, gate: int) -> Value:
        return self.k.at(array, self.k.mul(self.k.add(self.i, self.k.mul(self.n, gate)), 4))

    def read(self, array: Value, *gates: int) -> list[Value]:
        """Of these gates."""
        return [self.k.load(self._at(array, gate), self.m.kind) for gate in gates]

    def write(self, array: Value, *values: Value, first: int = 0) -> None:
        """Of gates from `first` on."""
        for gate, value in enumerate(values, first):
            self.k.store(value, self._at(array, gate))


def cell(arrays: int, step: Callable[..., None]) -> Any:
    """A function for numba code of the addresses of arrays, and n."""

    def emit(k: Emitter, *given: Value) -> None:
        *addresses, n = given
        pointers = [k.pointer(a) for a in addresses]
        whole = k.mul(k.b.sdiv(n, constant(LANES)), LANES)
        none = ir.Constant(F32, 0.0)
        for lanes, start, stop in ((LANES, constant(0), whole), (1, whole, n)):
            m = Math(k, lanes, none, none)

            def body(i: Value, _: list[Value], m: Math = m) -> list[Value]:
                step(m, Row(k, m, n, i), *pointers)
                return []

            k.loop(start, stop, lanes, [], body)

    return kernel(arrays + 1, emit)


def lstm(m: Math, at: Row, kept: Value, before: Value, y: Value) -> None:
    """kept: sums of i, o, f, g, which become what they are after their activations, and c; before: c of the step
    before."""
    i, o, f, g = at.read(kept, 0, 1, 2, 3)
    i, o, f, g = sigmoid(m, i), sigmoid(m, o), sigmoid(m, f), tanh(m, g)
    c = m.fma(f, at.read(before, 0)[0], m.mul(i, g))
    at.write(kept, i, o, f, g, c)
    at.write(y, m.mul(o, tanh(m, c)))


def lstm_back(m: Math, at: Row, kept: Value, before: Value, dh: Value, dc: Value, out: Value) -> None:
    """dc: of this step, then of the one before; out: i', o', f', g'."""
    i, o, f, g, c = at.read(kept, 0, 1, 2, 3, 4)
    (above,), (cell,) = at.read(dh, 0), at.read(dc, 0)
    t = tanh(m, c)
    cell = m.fma(m.mul(above, o), sub(m, 1.0, m.mul(t, t)), cell)
    gates = [
        m.mul(m.mul(m.mul(cell, g), i), sub(m, 1.0, i)),
        m.mul(m.mul(m.mul(above, t), o), sub(m, 1.0, o)),
        m.mul(m.mul(m.mul(cell, at.read(before, 0)[0]), f), sub(m, 1.0, f)),
        m.mul(m.mul(cell, i), sub(m, 1.0, m.mul(g, g))),
    ]
    at.write(out, *gates)
    at.write(dc, m.mul(cell, f))


def gru(m: Math, at: Row, kept: Value, x: Value, before: Value, y: Value) -> None:
    """h = (1 - z) g + z h, g = tanh(x + r inner). kept: sums of z, r, and inner, which become z, r, inner, g; x: W x of
    all three; before: h."""
    z, r, inner = at.read(kept, 0, 1, 2)
    z, r = sigmoid(m, z), sigmoid(m, r)
    g = tanh(m, m.fma(r, inner, at.read(x, 2)[0]))
    at.write(kept, z, r, inner, g)
    at.write(y, m.fma(z, sub(m, at.read(before, 0)[0], g), g))


def gru_back(
    m: Math, at: Row, kept: Value, before: Value, dh: Value, coming: Value, out: Value, inside: Value, carry: Value
) -> None:
    """out: z', r', g'; inside: z', r', and that of inner; carry: what reaches h past R, with what comes to it."""
    z, r, inner, g = at.read(kept, 0, 1, 2, 3)
    (above,), (h,) = at.read(dh, 0), at.read(before, 0)
    own = m.mul(m.mul(above, sub(m, 1.0, z)), sub(m, 1.0, m.mul(g, g)))
    of_z = m.mul(m.mul(m.mul(above, sub(m, h, g)), z), sub(m, 1.0, z))
    of_r = m.mul(m.mul(m.mul(own, inner), r), sub(m, 1.0, r))
    at.write(out, of_z, of_r, own)
    at.write(inside, of_z, of_r, m.mul(own, r))
    at.write(carry, m.fma(above, z, at.read(coming, 0)[0]))


def rnn_tanh(m: Math, at: Row, y: Value) -> None:
    """y: sums, then outputs."""
    at.write(y, tanh(m, at.read(y, 0)[0]))


def rnn_relu(m: Math, at: Row, y: Value) -> None:
    """As `rnn_tanh`."""
    at.write(y, positive(m, at.read(y, 0)[0], at.read(y, 0)[0]))


def rnn_tanh_back(m: Math, at: Row, y: Value, dh: Value, out: Value) -> None:
    """out: h'."""
    (h,) = at.read(y, 0)
    at.write(out, m.mul(at.read(dh, 0)[0], sub(m, 1.0, m.mul(h, h))))


def rnn_relu_back(m: Math, at: Row, y: Value, dh: Value, out: Value) -> None:
    """out: h'."""
    at.write(out, positive(m, at.read(y, 0)[0], at.read(dh, 0)[0]))


def positive(m: Math, x: Value, value: Value) -> Value:
    """A value where x is above zero, else zero."""
    return m.k.b.select(m.k.b.fcmp_ordered(">", x, m.number(0.0)), value, m.number(0.0))


LSTM_CELL, LSTM_CELL_BACK = cell(3, lstm), cell(5, lstm_back)
GRU_CELL, GRU_CELL_BACK = cell(4, gru), cell(7, gru_back)
TANH_CELL, TANH_CELL_BACK = cell(1, rnn_tanh), cell(3, rnn_tanh_back)
RELU_CELL, RELU_CELL_BACK = cell(1, rnn_relu), cell(3, rnn_relu_back)
