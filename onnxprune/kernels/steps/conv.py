"""Convolutions whose weights are inputs, where they are narrow or depthwise; with TURNED the gradient of the input of
one, whose weights are read turned round, and UP puts zeros between what its stride left out.

Inputs: X, W, and a bias or not; output: Y, between LOW and HIGH (a Relu, or Clip). A tile is ROWS filters by up to
VECTORS vectors of places; weights are packed so that a step of the reduction reads ROWS of them in a row.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from onnxprune.kernels.addresses import aligned, f32, i64
from onnxprune.kernels.emit import F32, I32, I64, Emitter, Value, switch, vector
from onnxprune.kernels.loops import LANES, MACHINE
from onnxprune.kernels.steps.geometry import MOVE, build, data, dim, measure, place, planes, rank, result
from onnxprune.kernels.steps.tables import (
    BAND,
    BATCH,
    GROUPS,
    HIGH,
    KH,
    KW,
    LOW,
    OH,
    OUTS,
    OW,
    PARTS,
    STEP_DIMS,
    STEP_INPUTS,
    STEP_OUTPUTS_AT,
    STEP_PREPARE_TASKS,
    STEP_RANK,
    STEP_SHARED,
    STEP_SHARED_BYTES,
    STEP_TASK_BYTES,
    STEP_TASKS,
    TURNED,
    C,
    H,
    W,
)  # fmt: skip

ROWS, VECTORS = {"avx512": (8, 3), "avx2": (4, 3), "portable": (4, 2)}[MACHINE.name]
MANY = 8  # vectors of a tile of one filter
SCRATCH = 700_000  # bytes of planes of a task
SOME = 16  # tasks, about, where there are as many samples


def tile(rows: int, vectors: int) -> Any:
    """`rows` filters at `vectors` vectors of places. w: (count, rows); offsets: count of int64, bytes from x."""

    def emit(
        k: Emitter, count: Value, w: Value, bias: Value, x: Value, offsets: Value, target: Value, stride: Value,
        low: Value, high: Value,
    ) -> None:  # fmt: skip
        b, kind = k.b, vector(LANES)
        w, bias, x, offsets, target = (k.pointer(p) for p in (w, bias, x, offsets, target))
        ends = [k.splat(b.bitcast(b.trunc(v, I32), F32), LANES) for v in (low, high)]
        acc = [k.splat(k.load(k.at(bias, 4 * r), F32), LANES) for r in range(rows) for _ in range(vectors)]

        def step(i: Value, acc: list[Value]) -> list[Value]:
            at = k.at(x, k.load(k.at(offsets, k.mul(i, 8)), I64, 8))
            xs = [k.load(k.at(at, 4 * LANES * v), kind) for v in range(vectors)]
            ws = k.at(w, k.mul(i, 4 * rows))
            new = []
            for r in range(rows):
                factor = k.splat(k.load(k.at(ws, 4 * r), F32), LANES)
                new += [k.fma(factor, xs[v], acc[r * vectors + v]) for v in range(vectors)]
            return new

        acc = k.loop(0, count, 1, acc, step)
        for r in range(rows):
            for v in range(vectors):
                y = acc[r * vectors + v]
                y = b.select(b.fcmp_ordered("<", y, ends[0]), ends[0], y)
                y = b.select(b.fcmp_ordered(">", y, ends[1]), ends[1], y)
                k.store(y, k.at(target, 4 * LANES * v))
            if r + 1 < rows:
                target = k.at(target, stride)

    return emit


TILE = switch(
    9, *(tile(ROWS, v) for v in range(1, VECTORS + 1)), *(tile(1, v) for v in range(1, MANY + 1))
)  # fmt: skip


@njit
def rows_of(t: Any) -> int:
    """Filters of a tile."""
    return 1 if t[OUTS] // t[GROUPS] == 1 else ROWS


@njit
def plan(t: Any) -> bool:
    """Output, tasks and memory."""
    axes = rank(t, 0)
    if not measure(t) or rank(t, 1) != axes or t[C] % t[GROUPS] != 0:
        return False
    t[OUTS] = dim(t, 1, 1) * t[GROUPS] if t[TURNED] == 1 else dim(t, 1, 0)
    inner = t[C] // t[GROUPS]
    if t[OUTS] % t[GROUPS] != 0 or (dim(t, 1, 0) != t[C] if t[TURNED] == 1 else dim(t, 1, 1) != inner):
        return False
    t[STEP_OUTPUTS_AT + STEP_RANK] = axes
    t[STEP_OUTPUTS_AT + STEP_DIMS], t[STEP_OUTPUTS_AT + STEP_DIMS + 1] = t[BATCH], t[OUTS]
    t[STEP_OUTPUTS_AT + STEP_DIMS + 2] = t[OH] if axes == 4 else t[OW]
    t[STEP_OUTPUTS_AT + STEP_DIMS + axes - 1] = t[OW]
    if t[BATCH] == 0:
        t[STEP_TASKS] = 0
        return True
    t[BAND] = t[OH]
    while t[BAND] > 4 and 4 * inner * planes(t, t[BAND]) > SCRATCH:
        t[BAND] = (t[BAND] + 1) // 2
    # a task is a share of the groups of a sample
    t[PARTS] = max(1, min(t[GROUPS], (SOME + t[BATCH] - 1) // t[BATCH]))
    t[STEP_TASKS] = t[BATCH] * t[PARTS]
    t[STEP_TASK_BYTES] = 4 * inner * planes(t, t[BAND]) + aligned(8 * inner * t[KH] * t[KW]) + tile_bytes() + 256
    t[STEP_PREPARE_TASKS] = 1
    t[STEP_SHARED_BYTES] = packed_floats(t) * 4
    return True


@njit
def tile_bytes() -> int:
    """Of a tile beside its place in Y."""
    return 4 * LANES * max(ROWS * VECTORS, MANY)


@njit
def packed_floats(t: Any) -> int:
    """Weights and biases as `prepare` leaves them: every block of a group has its biases first."""
    rows, outs = rows_of(t), t[OUTS] // t[GROUPS]
    return t[GROUPS] * ((outs + rows - 1) // rows) * rows * (1 + t[C] // t[GROUPS] * t[KH] * t[KW])


@njit
def prepare(t: Any) -> None:
    """Pack weights and biases."""
    rows, outs, inner, taps = rows_of(t), t[OUTS] // t[GROUPS], t[C] // t[GROUPS], t[KH] * t[KW]
    blocks, count = (outs + rows - 1) // rows, inner * taps
    packed = f32(t[STEP_SHARED], packed_floats(t))
    w = f32(data(t, 1), t[OUTS] * count)
    bias = f32(data(t, 2 if t[STEP_INPUTS] > 2 else 1), t[OUTS])
    for group in range(t[GROUPS]):
        for block in range(blocks):
            at = (group * blocks + block) * rows * (1 + count)
            for r in range(rows):
                o = min(block * rows + r, outs - 1)
                packed[at + r] = bias[group * outs + o] if t[STEP_INPUTS] > 2 else 0.0
                for c in range(inner):
                    for k in range(taps):
                        if t[TURNED] == 1:
                            value = w[((group * inner + c) * outs + o) * taps + taps - 1 - k]
                        else:
                            value = w[((group * outs + o) * inner + c) * taps + k]
                        packed[at + (1 + c * taps + k) * rows + r] = value


@njit
def run(t: Any, task: int, scratch: int) -> None:
    """A share of the groups of a sample."""
    rows, outs, inner, taps = rows_of(t), t[OUTS] // t[GROUPS], t[C] // t[GROUPS], t[KH] * t[KW]
    blocks, count, size, places = (outs + rows - 1) // rows, inner * taps, t[H] * t[W], t[OH] * t[OW]
    image, part = task // t[PARTS], task % t[PARTS]
    offsets_at = scratch
    tile_at = offsets_at + aligned(8 * count)
    held = tile_at + tile_bytes()
    offsets = i64(offsets_at, count)
    kind, most = (0, VECTORS) if rows == ROWS else (VECTORS, MANY)
    for first in range(0, t[OH], t[BAND]):
        band = min(t[BAND], t[OH] - first)
        for c in range(inner):
            for k in range(taps):
                offsets[c * taps + k] = 4 * place(t, band, c, k // t[KW], k % t[KW])
        width = band * t[OW]
        vectors = (width + LANES - 1) // LANES
        for group in range(t[GROUPS] * part // t[PARTS], t[GROUPS] * (part + 1) // t[PARTS]):
            for c in range(inner):
                x = data(t, 0) + 4 * ((image * t[C] + group * inner + c) * size)
                build(t, x, held + 4 * c * planes(t, band), first, band)
            y = result(t, 0) + 4 * ((image * t[OUTS] + group * outs) * places + first * t[OW])
            for at in range(0, vectors, most):
                wide = min(most, vectors - at)
                n = min(wide * LANES, width - at * LANES)
                for block in range(blocks):
                    w = t[STEP_SHARED] + 4 * (group * blocks + block) * rows * (1 + count)
                    few = min(rows, outs - block * rows)
                    out = y + 4 * (block * rows * places + at * LANES)
                    target, stride = out, 4 * places
                    if few < rows or n < wide * LANES:
                        target, stride = tile_at, 4 * LANES * most
                    TILE((
                        kind + wide - 1, count, w + 4 * rows, w, held + 4 * at * LANES, offsets_at, target, stride,
                        t[LOW], t[HIGH],
                    ))  # fmt: skip
                    if target != out:
                        for r in range(few):
                            MOVE((tile_at + r * stride, out + 4 * r * places, n))
