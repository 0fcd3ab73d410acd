"""The gradient of MaxPool: dY where the first of the largest elements of a window stands. Inputs: X, Y, dY; output: dX.

Position after position of the window, over a row of outputs at once: what equals Y and is the first is it. Where the
windows are one or two columns apart, which is nearly always, a vector of outputs at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from onnxprune.kernels.addresses import clear, f32, i32
from onnxprune.kernels.emit import F32, I32, Emitter, Value, kernel, lanes_of
from onnxprune.kernels.loops import LANES
from onnxprune.kernels.steps.geometry import Masked, data, dim, measure, rank, result, shape_like
from onnxprune.kernels.steps.tables import (
    BATCH,
    DH,
    DW,
    KH,
    KW,
    OH,
    OW,
    PL,
    PT,
    SH,
    STEP_TASK_BYTES,
    STEP_TASKS,
    SW,
    C,
    H,
    W,
)  # fmt: skip


def row_of(stride: int) -> Any:
    """As `row`, which see, for windows that are `stride` columns apart (1 or 2)."""

    def emit(k: Emitter, x: Value, out: Value, y: Value, g: Value, free: Value, count: Value) -> None:
        b = k.b
        x, out, y, g, free = (k.pointer(p) for p in (x, out, y, g, free))
        none, lanes = k.zero(LANES), range(LANES)
        evens = lanes_of([2 * i for i in lanes])

        def some(i: Value, _: list[Value]) -> list[Value]:
            at, left = k.mul(i, 4), b.sub(count, i)
            here = Masked.first(k, left)
            first = k.mul(i, 4 * stride)
            spans = []  # of the elements that are met: so many vectors, the last of which ends with the last of them
            for part in range(stride):
                rest = k.add(k.mul(left, stride), 1 - stride - part * LANES)
                spans.append((Masked.first(k, rest), k.add(first, 4 * LANES * part)))
            met = [m.load(k.at(x, place), F32) for m, place in spans]
            values = met[0] if stride == 1 else b.shuffle_vector(met[0], met[1], evens)
            open_ = here.load(k.at(free, at), I32)
            hit = b.fcmp_ordered("==", values, here.load(k.at(y, at), F32))
            hit = b.and_(hit, b.icmp_signed("!=", open_, k.zero(LANES, I32)))
            here.store(b.select(hit, k.zero(LANES, I32), open_), k.at(free, at), I32)
            gained = b.select(hit, here.load(k.at(g, at), F32), none)
            for part, (m, place) in enumerate(spans):
                spread = gained
                if stride == 2:  # zeros between
                    order = [part * LANES // 2 + i // 2 if i % 2 == 0 else LANES for i in lanes]
                    spread = b.shuffle_vector(gained, none, lanes_of(order))
                m.store(b.fadd(m.load(k.at(out, place), F32), spread), k.at(out, place), F32)
            return []

        k.loop(0, count, LANES, [], some)

    return kernel(6, emit)


ROW, ROW_OF_EVERY_SECOND = row_of(1), row_of(2)


@njit
def plan(t: Any) -> bool:
    """Output and tasks; dY may have a window more than whole ones fit (ceil_mode)."""
    axes = rank(t, 0)
    shape_like(t, 0, 0)
    if not measure(t) or rank(t, 1) != axes or rank(t, 2) != axes:
        return False
    t[OW] = dim(t, 1, axes - 1)
    t[OH] = dim(t, 1, 2) if axes == 4 else 1
    t[STEP_TASKS] = t[BATCH] * t[C]
    t[STEP_TASK_BYTES] = 4 * t[OW]
    for axis in range(axes):
        if dim(t, 1, axis) != dim(t, 2, axis):
            return False
    return dim(t, 1, 0) == t[BATCH] and dim(t, 1, 1) == t[C]


@njit
def run(t: Any, task: int, scratch: int) -> None:
    """One channel of a sample."""
    size, places, columns = t[H] * t[W], t[OH] * t[OW], t[OW]
    x, out = data(t, 0) + 4 * task * size, result(t, 0) + 4 * task * size
    clear(f32(out, size), 0, size)
    free = i32(scratch, columns)  # 1 where the largest is not found yet
    for oy in range(t[OH]):
        begin = 4 * (task * places + oy * columns)
        y, g = data(t, 1) + begin, data(t, 2) + begin
        for ox in range(columns):
            free[ox] = 1
        for ky in range(t[KH]):
            iy = oy * t[SH] - t[PT] + ky * t[DH]
            if iy < 0 or iy >= t[H]:
                continue
            for kx in range(t[KW]):
                shift = kx * t[DW] - t[PL]
                low = max(0, (-shift + t[SW] - 1) // t[SW])
                high = min(columns, (t[W] - 1 - shift) // t[SW] + 1)
                if high <= low:
                    continue
                at = 4 * (iy * t[W] + low * t[SW] + shift)
                addresses = (x + at, out + at, y + 4 * low, g + 4 * low, scratch + 4 * low, high - low)
                if t[SW] == 1:
                    ROW(addresses)
                elif t[SW] == 2:
                    ROW_OF_EVERY_SECOND(addresses)
                else:
                    row(x + at, out + at, y + 4 * low, g + 4 * low, scratch + 4 * low, high - low, t[SW])


@njit
def row(x_at: int, out_at: int, y_at: int, g_at: int, free_at: int, count: int, step: int) -> None:
    """One position of the window for `count` outputs, the first of which meets the element at `x_at`."""
    n, zero = (count - 1) * step + 1, np.float32(0)
    x, out = f32(x_at, n), f32(out_at, n)
    y, g, free = f32(y_at, count), f32(g_at, count), i32(free_at, count)
    for i in range(count):
        hit = (x[i * step] == y[i]) & (free[i] != 0)
        out[i * step] += g[i] if hit else zero
        free[i] = 0 if hit else free[i]
