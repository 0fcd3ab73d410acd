"""Sizes of a convolution, and its input as planes: per channel, column of the kernel and phase of the stride, every
`stride`-th row, shifted so that the window of every output stands at the output's own place; zeros where padding is.

What a position of the kernel meets is then `count * OW` floats in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import njit

from onnxprune.kernels import loops
from onnxprune.kernels.addresses import clear, f32
from onnxprune.kernels.emit import F32, I1, I32, Emitter, Value, constant, kernel, lanes_of, vector
from onnxprune.kernels.loops import LANES
from onnxprune.kernels.steps.tables import (
    BATCH,
    DH,
    DW,
    KH,
    KW,
    OH,
    OW,
    PB,
    PHASES,
    PL,
    PR,
    PT,
    SH,
    STEP_ADDRESS,
    STEP_DIMS,
    STEP_INPUTS_AT,
    STEP_OUTPUTS_AT,
    STEP_RANK,
    STEP_ROW,
    SW,
    UP_H,
    UP_W,
    C,
    H,
    W,
)  # fmt: skip

MOVE, CLEAR = loops.move(False), loops.move(True)


@njit
def dim(t: Any, i: int, axis: int) -> int:
    """A size of input i."""
    return t[STEP_INPUTS_AT + i * STEP_ROW + STEP_DIMS + axis]


@njit
def rank(t: Any, i: int) -> int:
    """Axes of input i."""
    return t[STEP_INPUTS_AT + i * STEP_ROW + STEP_RANK]


@njit
def data(t: Any, i: int) -> int:
    """The address of input i."""
    return t[STEP_INPUTS_AT + i * STEP_ROW + STEP_ADDRESS]


@njit
def result(t: Any, i: int) -> int:
    """The address of output i."""
    return t[STEP_OUTPUTS_AT + i * STEP_ROW + STEP_ADDRESS]


@njit
def shape_like(t: Any, i: int, k: int) -> None:
    """Output k has the shape of input i."""
    a, b = STEP_INPUTS_AT + i * STEP_ROW, STEP_OUTPUTS_AT + k * STEP_ROW
    t[b + STEP_RANK] = t[a + STEP_RANK]
    for axis in range(t[a + STEP_RANK]):
        t[b + STEP_DIMS + axis] = t[a + STEP_DIMS + axis]


@njit
def elements(t: Any, i: int) -> int:
    """Numbers in input i."""
    n = 1
    for axis in range(rank(t, i)):
        n *= dim(t, i, axis)
    return n


@njit
def measure(t: Any) -> bool:
    """Fill in what follows from the shape of input 0, `(samples, channels, [rows,] columns)`; whether it has one."""
    axes = rank(t, 0)
    if axes != 3 and axes != 4:
        return False
    t[BATCH], t[C], t[W] = dim(t, 0, 0), dim(t, 0, 1), dim(t, 0, axes - 1)
    t[H] = dim(t, 0, 2) if axes == 4 else 1
    t[OH] = ((t[H] - 1) * t[UP_H] + t[PT] + t[PB] - (t[KH] - 1) * t[DH]) // t[SH] + 1
    t[OW] = ((t[W] - 1) * t[UP_W] + t[PL] + t[PR] - (t[KW] - 1) * t[DW]) // t[SW] + 1
    t[PHASES] = min(t[SH], 1 + (t[KH] - 1) * t[DH])
    return t[H] > 0 and t[W] > 0 and t[OH] > 0 and t[OW] > 0


@njit
def plane(t: Any, count: int) -> int:
    """Floats of one plane for so many rows of the output."""
    return (count + (t[KH] - 1) * t[DH] // t[SH]) * t[OW]


@njit
def planes(t: Any, count: int) -> int:
    """Floats of all planes of a channel."""
    return t[KW] * t[PHASES] * plane(t, count)


@njit
def place(t: Any, count: int, channel: int, ky: int, kx: int) -> int:
    """Where a position of the kernel begins in the planes of channels, in floats."""
    down = ky * t[DH]
    return channel * planes(t, count) + (kx * t[PHASES] + down % t[SH]) * plane(t, count) + down // t[SH] * t[OW]


@dataclass(frozen=True)
class Masked:
    """Loads and stores of those of LANES elements whose bit is set."""

    k: Emitter
    mask: Value

    @staticmethod
    def first(k: Emitter, n: Value) -> Masked:
        """Of the first n."""
        return Masked(k, k.b.icmp_signed("<", lanes_of(range(LANES)), k.splat(k.b.trunc(n, I32), LANES)))

    def load(self, at: Value, element: Any = F32) -> Value:
        """Zeros where nothing is loaded."""
        kind = vector(LANES, element)
        name = f"llvm.masked.load.v{LANES}{'i32' if element is I32 else 'f32'}.p0"
        return self.k.intrinsic(name, kind, [at, constant(4, I32), self.mask, self.k.zero(LANES, element)])

    def store(self, value: Value, at: Value, element: Any = F32) -> None:
        """Leave the others."""
        name = f"llvm.masked.store.v{LANES}{'i32' if element is I32 else 'f32'}.p0"
        self.k.intrinsic(name, ir.VoidType(), [value, at, constant(4, I32), self.mask])


def copy_rows(stride: int) -> Any:
    """`count` rows of `columns` floats: those from `low` to `high` are every `stride`-th (1 or 2) of the source, the
    others zeros. *_step: bytes from a row to the next. The last vector of a row ends with it, where it has a whole one.
    """

    def emit(
        k: Emitter, source: Value, target: Value, count: Value, low: Value, high: Value, columns: Value,
        source_step: Value, target_step: Value,
    ) -> None:  # fmt: skip
        b = k.b
        evens = lanes_of([2 * i for i in range(LANES)])
        # of a vector that ends with the last element: nothing beyond is read
        odd = [2 * i if i < LANES // 2 else 2 * i + 1 for i in range(LANES)]
        most = k.add(columns, -LANES)
        most = b.select(b.icmp_signed("<", most, constant(0)), constant(0), most)

        def plain(at: Value) -> Value:
            first = k.load(at, vector(LANES))
            if stride == 1:
                return first
            return b.shuffle_vector(first, k.load(k.at(at, 4 * (LANES - 1)), vector(LANES)), lanes_of(odd))

        def within(x: Value, part: int) -> Masked:
            """Of the elements of a vector, those that are wanted."""
            places = [(part * LANES + i) // stride for i in range(LANES)]
            column = b.add(lanes_of(places), k.splat(b.trunc(x, I32), LANES))
            ends = [k.splat(b.trunc(v, I32), LANES) for v in (low, high)]
            mask = b.and_(b.icmp_signed(">=", column, ends[0]), b.icmp_signed("<", column, ends[1]))
            if stride == 2:
                mask = b.and_(mask, ir.Constant(vector(LANES, I1), [i % 2 == 0 for i in range(LANES)]))
            return Masked(k, mask)

        def some(x: Value, _: list[Value]) -> list[Value]:
            x = b.select(b.icmp_signed("<", x, most), x, most)
            start, end = k.add(source, k.mul(x, 4 * stride)), k.add(target, k.mul(x, 4))
            whole = b.and_(b.icmp_signed("<=", low, x), b.icmp_signed("<=", k.add(x, LANES), high))
            parts, stored = [within(x, part) for part in range(stride)], Masked.first(k, b.sub(columns, x))

            def all_(i: Value, _: list[Value]) -> list[Value]:
                value = plain(k.pointer(k.add(start, b.mul(i, source_step))))
                k.store(value, k.pointer(k.add(end, b.mul(i, target_step))))
                return []

            def few(i: Value, _: list[Value]) -> list[Value]:
                at = k.add(start, b.mul(i, source_step))
                met = [m.load(k.pointer(k.add(at, constant(4 * LANES * p)))) for p, m in enumerate(parts)]
                value = met[0] if stride == 1 else b.shuffle_vector(met[0], met[1], evens)
                stored.store(value, k.pointer(k.add(end, b.mul(i, target_step))))
                return []

            k.loop(0, b.select(whole, count, constant(0)), 1, [], all_)
            k.loop(0, b.select(whole, constant(0), count), 1, [], few)
            return []

        k.loop(0, columns, LANES, [], some)

    return kernel(8, emit)


COPY, COPY_EVERY_SECOND = copy_rows(1), copy_rows(2)


@njit
def build(t: Any, source: int, target: int, first: int, count: int) -> None:
    """The planes of one channel at `source` for `count` rows of the output from `first` on."""
    width, columns, rows = t[W], t[OW], plane(t, count) // t[OW]
    if t[UP_H] > 1 or t[UP_W] > 1:
        spread(t, source, target, first, rows)
        return
    for kx in range(t[KW]):
        shift = kx * t[DW] - t[PL]
        low = min(columns, max(0, (-shift + t[SW] - 1) // t[SW]))
        high = max(low, min(columns, (width - 1 - shift) // t[SW] + 1))
        for phase in range(t[PHASES]):
            y = first * t[SH] + phase - t[PT]  # of row 0
            begin = min(rows, max(0, (-y + t[SH] - 1) // t[SH]))
            end = max(begin, min(rows, (t[H] - 1 - y) // t[SH] + 1))
            out = target + 4 * (kx * t[PHASES] + phase) * rows * columns
            CLEAR((out, out, begin * columns))
            CLEAR((out, out + 4 * end * columns, (rows - end) * columns))
            row, to = source + 4 * ((y + begin * t[SH]) * width + shift), out + 4 * begin * columns
            rows_of = (row, to, end - begin, low, high, columns, 4 * t[SH] * width, 4 * columns)
            if t[SW] == 1:
                COPY(rows_of)
            elif t[SW] == 2:
                COPY_EVERY_SECOND(rows_of)
            else:
                for j in range(end - begin):
                    pixels = f32(row + 4 * (j * t[SH] * width + low * t[SW]), width)
                    cells = f32(to + 4 * j * columns, columns)
                    clear(cells, 0, columns)
                    for x in range(low, high):
                        cells[x] = pixels[(x - low) * t[SW]]


@njit
def spread(t: Any, source: int, target: int, first: int, rows: int) -> None:
    """As `build`, with zeros between the elements of the input; strides of one."""
    columns, up = t[OW], t[UP_W]
    CLEAR((target, target, t[KW] * rows * columns))
    for kx in range(t[KW]):
        shift = kx * t[DW] - t[PL]
        low = max(0, (shift + up - 1) // up)
        high = min(t[W], (columns - 1 + shift) // up + 1)
        for y in range(t[H]):
            j = y * t[UP_H] + t[PT] - first
            if 0 <= j < rows:
                pixels, cells = f32(source + 4 * y * t[W], t[W]), f32(target + 4 * (kx * rows + j) * columns, columns)
                for x in range(low, high):
                    cells[x * up - shift] = pixels[x]
