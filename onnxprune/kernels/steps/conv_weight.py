"""The gradient of the weights of a convolution: for every filter, channel and position of the kernel the sum over
samples and places of dY times what that position meets.

Lanes are places: a tile of ROWS filters by COLUMNS (channel, position) keeps its sums in registers over some samples.
Inputs: X, dY; output: dW. Depthwise convolutions have tiles of one filter by all positions.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from onnxprune.kernels.addresses import aligned, clear, f32, i64
from onnxprune.kernels.emit import I32, I64, Emitter, Value, constant, lanes_of, switch, vector
from onnxprune.kernels.loops import LANES, MACHINE
from onnxprune.kernels.steps.geometry import build, data, dim, measure, place, planes, rank, result
from onnxprune.kernels.steps.tables import (
    BATCH,
    CHANNELS,
    DIRECT,
    GROUPS,
    IMAGES,
    KH,
    KW,
    OH,
    OUTS,
    OW,
    PARTS,
    PL,
    PT,
    ROWS_OF_PARTS,
    SH,
    STEP_DIMS,
    STEP_OUTPUTS_AT,
    STEP_RANK,
    STEP_TASK_BYTES,
    STEP_TASKS,
    SW,
    UP_H,
    C,
    H,
    W,
)  # fmt: skip

ROWS, COLUMNS = {"avx512": (4, 6), "avx2": (3, 4), "portable": (2, 4)}[MACHINE.name]
ALONE = 9  # positions of a depthwise tile
PLACES = 1024  # of a tile before its sums leave the registers, about
SCRATCH = 600_000  # bytes of planes of a task


def tile(rows: int, columns: int) -> Any:
    """Sums of a tile over `images`, `(rows, columns)` floats at `out`. places: LANES or more; offsets: of columns, in
    bytes from `x`; *_stride, *_image: bytes from a row, or an image, to the next."""

    def emit(
        k: Emitter, places: Value, images: Value, g: Value, g_stride: Value, g_image: Value, x: Value, offsets: Value,
        x_image: Value, out: Value,
    ) -> None:  # fmt: skip
        b, kind = k.b, vector(LANES)
        offsets, out = k.pointer(offsets), k.pointer(out)
        shifts = [k.load(k.at(offsets, 8 * q), I64, 8) for q in range(columns)]
        whole = b.sdiv(places, constant(LANES))
        rest = b.srem(places, constant(LANES))
        last = k.mul(k.add(places, -LANES), 4)  # where the last vector begins that is whole
        # of it only the lanes count that no vector before had
        lane = lanes_of(range(LANES))
        first = b.trunc(b.sub(constant(LANES), rest), I32)
        fresh = b.icmp_signed(">=", lane, k.splat(first, LANES))

        def sums(at: Value, gs: list[Value], xs: list[Value], acc: list[Value], masked: bool) -> list[Value]:
            left = [k.load(k.at(p, at), kind) for p in gs]
            if masked:
                left = [b.select(fresh, v, k.zero(LANES)) for v in left]
            new = list(acc)
            for q, p in enumerate(xs):
                right = k.load(k.at(p, at), kind)
                for r in range(rows):
                    new[r * columns + q] = k.fma(left[r], right, new[r * columns + q])
            return new

        def image(i: Value, acc: list[Value]) -> list[Value]:
            base = k.pointer(k.add(g, b.mul(i, g_image)))
            gs = [base]
            for _ in range(rows - 1):
                gs.append(k.at(gs[-1], g_stride))
            start = k.pointer(k.add(x, b.mul(i, x_image)))
            xs = [k.at(start, s) for s in shifts]
            acc = k.loop(0, whole, 1, acc, lambda v, a: sums(k.mul(v, 4 * LANES), gs, xs, a, False))
            some = b.select(b.icmp_signed(">", rest, constant(0)), constant(1), constant(0))
            return k.loop(0, some, 1, acc, lambda _, a: sums(last, gs, xs, a, True))

        done = k.loop(0, images, 1, [k.zero(LANES)] * (rows * columns), image)
        for j, total in enumerate(done):
            lanes = LANES
            while lanes > 1:
                lanes //= 2
                halves = [b.shuffle_vector(total, total, lanes_of(range(h, h + lanes))) for h in (0, lanes)]
                total = b.fadd(*halves)
            k.store(b.extract_element(total, constant(0, I32)), k.at(out, 4 * j))

    return emit


TILE = switch(9, tile(ROWS, COLUMNS), tile(1, ALONE))


@njit
def plan(t: Any) -> bool:
    """Output, tasks and memory."""
    if not measure(t):
        return False
    axes = rank(t, 0)
    t[OUTS] = dim(t, 1, 1)
    inner, outs = t[C] // t[GROUPS], t[OUTS] // t[GROUPS]
    t[STEP_OUTPUTS_AT + STEP_RANK] = axes
    t[STEP_OUTPUTS_AT + STEP_DIMS], t[STEP_OUTPUTS_AT + STEP_DIMS + 1] = t[OUTS], inner
    t[STEP_OUTPUTS_AT + STEP_DIMS + 2] = t[KH] if axes == 4 else t[KW]
    t[STEP_OUTPUTS_AT + STEP_DIMS + axes - 1] = t[KW]
    fits = rank(t, 1) == axes and dim(t, 1, 0) == t[BATCH] and dim(t, 1, axes - 1) == t[OW]
    if axes == 4:
        fits = fits and dim(t, 1, 2) == t[OH]
    if not fits or t[OH] * t[OW] < LANES or t[C] % t[GROUPS] != 0 or t[OUTS] % t[GROUPS] != 0:
        return False
    unit = t[KH] * t[KW] == 1 and t[SH] == 1 and t[SW] == 1 and t[PT] == 0 and t[PL] == 0
    t[DIRECT] = 1 if unit and t[UP_H] == 1 and t[H] == t[OH] and t[W] == t[OW] else 0
    places = t[OH] * t[OW]
    t[IMAGES] = max(1, min(t[BATCH], (PLACES + places - 1) // places))
    bytes_of = 4 * t[IMAGES] * planes(t, t[OH])
    if is_depthwise(t):
        t[CHANNELS] = 1
        t[PARTS], t[ROWS_OF_PARTS] = 1, 1
        t[STEP_TASKS] = t[C]
    else:
        most = inner if t[DIRECT] == 1 else max(1, SCRATCH // bytes_of)
        t[CHANNELS] = min(inner, max(2, min(most, (inner + 7) // 8)))
        t[PARTS] = (inner + t[CHANNELS] - 1) // t[CHANNELS]
        blocks = (outs + ROWS - 1) // ROWS
        t[ROWS_OF_PARTS] = max(1, min(blocks, 4 // (t[GROUPS] * t[PARTS])))  # shares of the filters
        t[STEP_TASKS] = t[GROUPS] * t[PARTS] * t[ROWS_OF_PARTS]
    t[STEP_TASK_BYTES] = offsets_of(t) + 256 + (0 if t[DIRECT] == 1 else t[CHANNELS] * bytes_of + 256)
    return True


@njit
def is_depthwise(t: Any) -> bool:
    """One channel to a filter, and few positions."""
    return t[GROUPS] == t[C] and t[GROUPS] == t[OUTS] and t[C] > 1


@njit
def offsets_of(t: Any) -> int:
    """Bytes of the table of columns."""
    return aligned(8 * (t[CHANNELS] * t[KH] * t[KW] + max(COLUMNS, ALONE)))


@njit
def run(t: Any, task: int, scratch: int) -> None:
    """Some channels of a group, and a share of its filters."""
    inner, outs, taps, places = t[C] // t[GROUPS], t[OUTS] // t[GROUPS], t[KH] * t[KW], t[OH] * t[OW]
    share = task % t[ROWS_OF_PARTS]
    part = task // t[ROWS_OF_PARTS] % t[PARTS]
    group = task // t[ROWS_OF_PARTS] // t[PARTS]
    first = part * t[CHANNELS]
    channels = min(t[CHANNELS], inner - first)
    alone = is_depthwise(t)
    rows, columns = (1, ALONE) if alone else (ROWS, COLUMNS)
    blocks = (outs + rows - 1) // rows
    begin, end = blocks * share // t[ROWS_OF_PARTS] * rows, min(outs, blocks * (share + 1) // t[ROWS_OF_PARTS] * rows)
    size, sums = t[H] * t[W], scratch + offsets_of(t)
    held = sums + 256
    count = channels * taps
    offsets = i64(scratch, count + columns)
    for q in range(count + columns):  # what is beyond the last repeats it
        at = min(q, count - 1)
        c, k = at // taps, at % taps
        offsets[q] = 4 * (c * size if t[DIRECT] == 1 else place(t, t[OH], c, k // t[KW], k % t[KW]))
    out = f32(result(t, 0), t[OUTS] * inner * taps)
    for o in range(begin, end):
        at = ((group * outs + o) * inner + first) * taps
        clear(out, at, at + count)
    tile_sums = f32(sums, rows * columns)
    g, x = data(t, 1), data(t, 0)
    for n in range(0, t[BATCH], t[IMAGES]):
        images = min(t[IMAGES], t[BATCH] - n)
        start = x + 4 * (n * t[C] + group * inner + first) * size
        x_image = 4 * t[C] * size
        if t[DIRECT] == 0:
            for i in range(images):
                for c in range(channels):
                    to = held + 4 * (i * channels + c) * planes(t, t[OH])
                    build(t, start + i * x_image + 4 * c * size, to, 0, t[OH])
            start, x_image = held, 4 * channels * planes(t, t[OH])
        few_rows = end - begin < rows  # then one at a time
        for o in range(begin, end, 1 if few_rows else rows):
            # a last block that is not whole begins earlier: its first rows are not added again
            low = o if few_rows else min(o, end - rows)
            stride = 0 if few_rows else 4 * places
            rows_at = g + 4 * ((n * t[OUTS] + group * outs + low) * places)
            for q in range(0, count, columns):
                TILE((
                    1 if alone else 0, places, images, rows_at, stride, 4 * t[OUTS] * places, start, scratch + 8 * q,
                    x_image, sums,
                ))  # fmt: skip
                few = min(columns, count - q)
                for r in range(o - low, 1 if few_rows else rows):
                    at = ((group * outs + low + r) * inner + first) * taps + q
                    for j in range(few):
                        out[at + j] += tile_sums[r * columns + j]
