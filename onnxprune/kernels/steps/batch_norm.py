"""The gradients of a BatchNormalization by the statistics of the batch. Inputs: X, dY, scale; outputs: dX and the
gradients of scale and shift.

With z = (x - mean) r, r = 1 / sqrt(variance + EPSILON), of a channel: dX = scale r (dY - mean(dY) - z mean(dY z)), sum
of dY z, sum of dY. A channel is a task; sums over a plane are float32, of planes float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from onnxprune.kernels.addresses import f32, float_of
from onnxprune.kernels.steps.geometry import data, dim, elements, rank, result, shape_like
from onnxprune.kernels.steps.tables import EPSILON, STEP_TASKS

SUMS = {"reassoc", "contract"}  # vectors of partial sums


@njit
def plan(t: Any) -> bool:
    """Outputs and tasks."""
    shape_like(t, 0, 0)
    shape_like(t, 2, 1)
    shape_like(t, 2, 2)
    if rank(t, 0) < 2 or rank(t, 1) != rank(t, 0) or rank(t, 2) != 1:
        return False
    for axis in range(rank(t, 0)):
        if dim(t, 0, axis) != dim(t, 1, axis):
            return False
    t[STEP_TASKS] = dim(t, 0, 1)
    return dim(t, 2, 0) == dim(t, 0, 1) and elements(t, 0) > 0


@njit
def run(t: Any, task: int) -> None:
    """One channel of all samples."""
    samples, channels = dim(t, 0, 0), dim(t, 0, 1)
    n = elements(t, 0) // (samples * channels)
    first, step = 4 * n * task, 4 * n * channels  # bytes to the first plane, and from one to the next
    x, g, out = data(t, 0) + first, data(t, 1) + first, result(t, 0) + first
    count, sum_x, sum_g = float(samples * n), 0.0, 0.0
    for s in range(samples):
        a, b = sums(f32(x + s * step, n), f32(g + s * step, n), n)
        sum_x, sum_g = sum_x + a, sum_g + b
    mean = np.float32(sum_x / count)
    square, product = 0.0, 0.0
    for s in range(samples):
        a, b = products(f32(x + s * step, n), f32(g + s * step, n), mean, n)
        square, product = square + a, product + b
    r = 1 / np.sqrt(square / count + float_of(t[EPSILON]))
    scale = f32(data(t, 2), channels)[task]
    f32(result(t, 1), channels)[task] = product * r
    f32(result(t, 2), channels)[task] = sum_g
    factor, shift, slope = np.float32(scale * r), np.float32(sum_g / count), np.float32(product / count * r * r)
    for s in range(samples):
        spread(f32(x + s * step, n), f32(g + s * step, n), f32(out + s * step, n), mean, factor, shift, slope, n)


@njit(fastmath=SUMS)
def sums(x: Any, g: Any, n: int) -> Any:
    """Of x, and of g."""
    a, b = np.float32(0), np.float32(0)
    for i in range(n):
        a += x[i]
        b += g[i]
    return a, b


@njit(fastmath=SUMS)
def products(x: Any, g: Any, mean: Any, n: int) -> Any:
    """Sums of (x - mean)^2, and of g (x - mean)."""
    a, b = np.float32(0), np.float32(0)
    for i in range(n):
        moved = x[i] - mean
        a += moved * moved
        b += g[i] * moved
    return a, b


@njit
def spread(x: Any, g: Any, out: Any, mean: Any, factor: Any, shift: Any, slope: Any, n: int) -> None:
    """factor (g - shift - slope (x - mean)), one by one."""
    for i in range(n):
        out[i] = factor * (g[i] - shift - slope * (x[i] - mean))
