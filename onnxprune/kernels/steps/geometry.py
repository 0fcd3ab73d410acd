"""Sizes of a convolution, and its input as planes: per channel, column of the kernel and phase of the stride, every
`stride`-th row, shifted so that the window of every output stands at the output's own place; zeros where padding is.

What a position of the kernel meets is then `count * OW` floats in a row.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from onnxprune.kernels import loops
from onnxprune.kernels.addresses import f32
from onnxprune.kernels.emit import Emitter, Value, constant, kernel, lanes_of, vector
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
FEW = 4  # lanes, where a row is shorter than a vector


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


def copy_rows(stride: int) -> Any:
    """Copy `count` rows of `n` floats, every `stride`-th (1 or 2) of the source; *_step: bytes from a row to the next.
    The last vector of a row ends with it, and writes again what the one before wrote."""

    def emit(
        k: Emitter, source: Value, target: Value, count: Value, n: Value, source_step: Value, target_step: Value
    ) -> None:
        b = k.b
        source, target = k.pointer(source), k.pointer(target)
        wide, some = (b.icmp_signed(">=", n, constant(lanes)) for lanes in (LANES, FEW))
        none = constant(0)
        for lanes, rows in (
            (LANES, b.select(wide, count, none)),
            (FEW, b.select(wide, none, b.select(some, count, none))),
            (1, b.select(some, none, count)),
        ):
            odd = [0 + 2 * i for i in range(lanes // 2)] + [lanes + 1 + 2 * i for i in range(lanes // 2)]

            def read(at: Value, lanes: int = lanes, odd: list[int] = odd) -> Value:
                first = k.load(at, vector(lanes))
                if stride == 1 or lanes == 1:
                    return first
                # the second vector begins with the last element of the first: nothing beyond is read
                return b.shuffle_vector(first, k.load(k.at(at, 4 * (lanes - 1)), vector(lanes)), lanes_of(odd))

            def row(i: Value, _: list[Value], lanes: int = lanes, read: Any = read) -> list[Value]:
                start, end = k.at(source, b.mul(i, source_step)), k.at(target, b.mul(i, target_step))
                last = k.add(n, -lanes)

                def step(x: Value, _: list[Value]) -> list[Value]:
                    k.store(read(k.at(start, k.mul(x, 4 * stride))), k.at(end, k.mul(x, 4)))
                    return []

                k.loop(0, last, lanes, [], step)
                any_ = b.select(b.icmp_signed(">", n, none), constant(1), none)
                k.loop(0, any_, 1, [], lambda _, s: step(last, s))
                return []

            k.loop(0, rows, 1, [], row)

    return kernel(6, emit)


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
            row, to = source + 4 * (y + begin * t[SH]) * width, out + 4 * begin * columns
            if t[SW] == 1:
                COPY((
                    row + 4 * (low + shift), to + 4 * low, end - begin, high - low, 4 * t[SH] * width, 4 * columns
                ))  # fmt: skip
            if t[SW] == 2:
                COPY_EVERY_SECOND((
                    row + 4 * (2 * low + shift), to + 4 * low, end - begin, high - low, 4 * t[SH] * width, 4 * columns
                ))  # fmt: skip
            cells = f32(to, (end - begin) * columns)
            for j in range(end - begin):
                at = j * columns
                for x in range(low):
                    cells[at + x] = 0.0
                for x in range(high, columns):
                    cells[at + x] = 0.0
                if t[SW] > 2:
                    pixels = f32(row + 4 * j * t[SH] * width, width)
                    for x in range(low, high):
                        cells[at + x] = pixels[x * t[SW] + shift]


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
