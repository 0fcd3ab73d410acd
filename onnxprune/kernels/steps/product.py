"""A product with a weight most of whose entries are zero, and stay so; and the gradient of its other factor.

Inputs: X `(..., inner)`, W in the order in which it is stored, then int32: begin `(outs + 1)` of the entries of every
output, a multiple of PAIR; which column of X an entry meets `(padded)`; where the entries are in W, ascending `(kept)`,
and the place of each among the padded ones `(kept)`; and a bias `(outs)` or not. Output: Y `(..., outs)`.

Rows of X are taken CHUNK at a time, turned so that an entry meets a vector of rows.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from onnxprune.kernels.addresses import clear, f32, i32
from onnxprune.kernels.emit import F32, I32, Emitter, Value, switch, vector
from onnxprune.kernels.loops import LANES, transpose
from onnxprune.kernels.steps.geometry import data, dim, elements, rank, result
from onnxprune.kernels.steps.tables import (
    CHUNKS,
    INNER,
    OUTPUTS,
    SHARES,
    STEP_DIMS,
    STEP_INPUTS,
    STEP_OUTPUTS_AT,
    STEP_PREPARE_TASKS,
    STEP_RANK,
    STEP_SHARED,
    STEP_SHARED_BYTES,
    STEP_TASK_BYTES,
    STEP_TASKS,
)

VECTORS = 4
CHUNK = VECTORS * LANES  # rows
PAIR = 2  # entries of a step of the loop, each with its own sums
SOME = 8  # tasks, about, where there are few rows


def row(vectors: int) -> Any:
    """One output for `vectors` vectors of rows. w, at: count of them; x: `(inner, CHUNK)`."""

    def emit(k: Emitter, count: Value, w: Value, at: Value, x: Value, bias: Value, target: Value) -> None:
        w, at, x, bias, target = (k.pointer(p) for p in (w, at, x, bias, target))
        first = [k.splat(k.load(bias, F32), LANES)] * vectors

        def pair(i: Value, acc: list[Value]) -> list[Value]:
            new, here = [], k.mul(i, 4)
            for u in range(PAIR):
                column = k.mul(k.index(k.at(at, k.add(here, 4 * u)), I32), 4 * CHUNK)
                factor = k.splat(k.load(k.at(w, k.add(here, 4 * u)), F32), LANES)
                rows = k.at(x, column)
                new += [
                    k.fma(factor, k.load(k.at(rows, 4 * LANES * v), vector(LANES)), acc[u * vectors + v])
                    for v in range(vectors)
                ]
            return new

        acc = k.loop(0, count, PAIR, [*first, *[k.zero(LANES)] * (vectors * (PAIR - 1))], pair)
        for v in range(vectors):
            k.store(k.b.fadd(acc[v], acc[vectors + v]), k.at(target, 4 * LANES * v))

    return emit


ROW = switch(6, *(row(v) for v in range(1, VECTORS + 1)))
TURN = transpose(True)


@njit
def plan(t: Any) -> bool:
    """Output, tasks and memory."""
    axes = rank(t, 0)
    if axes < 1:
        return False
    t[INNER], t[OUTPUTS] = dim(t, 0, axes - 1), dim(t, 2, 0) - 1
    t[STEP_OUTPUTS_AT + STEP_RANK] = axes
    for axis in range(axes - 1):
        t[STEP_OUTPUTS_AT + STEP_DIMS + axis] = dim(t, 0, axis)
    t[STEP_OUTPUTS_AT + STEP_DIMS + axes - 1] = t[OUTPUTS]
    t[CHUNKS] = (rows_of(t) + CHUNK - 1) // CHUNK
    groups = (t[OUTPUTS] + LANES - 1) // LANES
    t[SHARES] = 1 if t[CHUNKS] == 0 else max(1, min(groups, (SOME + t[CHUNKS] - 1) // t[CHUNKS]))
    t[STEP_TASKS] = t[CHUNKS] * t[SHARES]
    t[STEP_PREPARE_TASKS] = t[CHUNKS] + 1
    t[STEP_SHARED_BYTES] = 4 * (t[CHUNKS] * t[INNER] * CHUNK + dim(t, 3, 0))
    t[STEP_TASK_BYTES] = 4 * (LANES * CHUNK + 1)
    return t[INNER] > 0 and t[INNER] * t[OUTPUTS] == elements(t, 1) and dim(t, 4, 0) == dim(t, 5, 0)


@njit
def rows_of(t: Any) -> int:
    """Rows of X."""
    return elements(t, 0) // t[INNER]


@njit
def prepare(t: Any, task: int) -> None:
    """Turn a chunk of rows; the last task gathers the entries of W."""
    chunk_bytes = 4 * t[INNER] * CHUNK
    if task == t[CHUNKS]:
        kept, size = dim(t, 4, 0), elements(t, 1)
        w, where, to = f32(data(t, 1), size), i32(data(t, 4), kept), i32(data(t, 5), kept)
        packed = f32(t[STEP_SHARED] + t[CHUNKS] * chunk_bytes, dim(t, 3, 0))
        clear(packed, 0, dim(t, 3, 0))
        for j in range(kept):
            packed[to[j]] = w[where[j]]
        return
    inner = t[INNER]
    n = min(CHUNK, rows_of(t) - task * CHUNK)
    up, whole = (n + LANES - 1) // LANES * LANES, inner // LANES * LANES
    source, target = data(t, 0) + 4 * task * CHUNK * inner, t[STEP_SHARED] + task * chunk_bytes
    TURN((source, 4 * inner, target, 4 * CHUNK, up, whole, n - 1))
    x, turned = f32(source, n * inner), f32(target, inner * CHUNK)
    for r in range(up):
        for k in range(whole, inner):
            turned[k * CHUNK + r] = x[min(r, n - 1) * inner + k]


@njit
def run(t: Any, task: int, scratch: int) -> None:
    """A share of the outputs of a chunk of rows."""
    chunk, share, outs = task // t[SHARES], task % t[SHARES], t[OUTPUTS]
    n = min(CHUNK, rows_of(t) - chunk * CHUNK)
    vectors, whole = (n + LANES - 1) // LANES, n // LANES * LANES
    x = t[STEP_SHARED] + 4 * chunk * t[INNER] * CHUNK
    packed = t[STEP_SHARED] + 4 * t[CHUNKS] * t[INNER] * CHUNK
    begin, at, y = i32(data(t, 2), outs + 1), data(t, 3), result(t, 0) + 4 * chunk * CHUNK * outs
    tile, out, groups = f32(scratch, LANES * CHUNK + 1), f32(y, n * outs), (outs + LANES - 1) // LANES
    tile[LANES * CHUNK] = 0
    for group in range(groups * share // t[SHARES], groups * (share + 1) // t[SHARES]):
        first = group * LANES
        few = min(LANES, outs - first)
        for i in range(few):
            o = first + i
            bias = data(t, 6) + 4 * o if t[STEP_INPUTS] > 6 else scratch + 4 * LANES * CHUNK
            ROW((
                vectors - 1, begin[o + 1] - begin[o], packed + 4 * begin[o], at + 4 * begin[o], x, bias,
                scratch + 4 * i * CHUNK,
            ))  # fmt: skip
        done = 0
        if few == LANES:
            TURN((scratch, 4 * CHUNK, y + 4 * first, 4 * outs, LANES, whole, LANES - 1))
            done = whole
        for r in range(done, n):
            for i in range(few):
                out[r * outs + first + i] = tile[i * CHUNK + r]
