"""The gradient of MaxPool: dY where the first of the largest elements of a window stands. Inputs: X, Y, dY; output: dX.

Position after position of the window, over a row of outputs at once: what equals Y and is the first is it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from onnxprune.kernels.addresses import clear, f32, i32
from onnxprune.kernels.steps.geometry import data, dim, measure, rank, result, shape_like
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
        y, g = f32(data(t, 1) + begin, columns), f32(data(t, 2) + begin, columns)
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
                if high > low:
                    at = 4 * (iy * t[W] + low * t[SW] + shift)
                    row(x + at, out + at, y, g, free, low, high, t[SW])


@njit
def row(x_at: int, out_at: int, y: Any, g: Any, free: Any, low: int, high: int, step: int) -> None:
    """One position of the window for outputs low ... high, the first of which meets the element at `x_at`."""
    n, zero = (high - low - 1) * step + 1, np.float32(0)
    x, out = f32(x_at, n), f32(out_at, n)
    for ox in range(low, high):
        at = (ox - low) * step
        hit = (x[at] == y[ox]) & (free[ox] != 0)
        out[at] += g[ox] if hit else zero
        free[ox] = 0 if hit else free[ox]
