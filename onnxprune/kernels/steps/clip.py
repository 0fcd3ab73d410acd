"""The gradients of Relu and Clip: dY where Y lies between LOW and HIGH, strictly. Inputs: Y, dY; output: dX."""

from __future__ import annotations

from typing import Any

from numba import njit

from onnxprune.kernels.addresses import f32, float_of
from onnxprune.kernels.steps.geometry import data, elements, result, shape_like
from onnxprune.kernels.steps.tables import HIGH, LOW, STEP_TASKS

SHARE = 1 << 16  # elements of a task


@njit
def plan(t: Any) -> bool:
    """Output and tasks."""
    shape_like(t, 1, 0)
    n = elements(t, 1)
    t[STEP_TASKS] = (n + SHARE - 1) // SHARE
    return elements(t, 0) == n


@njit
def run(t: Any, task: int) -> None:
    """A share of the elements."""
    begin = task * SHARE
    n = min(SHARE, elements(t, 1) - begin)
    y, g, out = f32(data(t, 0) + 4 * begin, n), f32(data(t, 1) + 4 * begin, n), f32(result(t, 0) + 4 * begin, n)
    low, high = float_of(t[LOW]), float_of(t[HIGH])
    for i in range(n):
        inside = (y[i] > low) & (y[i] < high)
        out[i] = g[i] if inside else float_of(0)
