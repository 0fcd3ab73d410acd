"""LSTM, GRU (with linear_before_reset) and RNN over all steps, and back, with the activations that they usually have.

They read W x with its biases for all steps, so that the large products are outside; so is the gradient of R, which is
one product over all steps. R is packed once, in blocks of columns, of which a step of the reduction reads VECTORS
vectors in a row; a tile of ROWS samples at most keeps its sums in registers. Samples do not meet: a task is some of
them, over all steps.

forward: W x `(steps, samples, gates * hidden)`, R^T `(hidden, gates * hidden)`, h before, then c of an LSTM, or the
    bias of what a GRU resets -> h of all steps `(steps, samples, hidden)`, h before each `(steps * samples, hidden)`,
    and but for an RNN what the way back needs of every step; the last c of an LSTM
back: that of every step (h of an RNN), R^T, then c before of an LSTM, or h before each step of a GRU, then the
    gradients that arrive -> those of W x, of h, then of c of an LSTM, or of R h of a GRU `(steps * samples, ...)`
"""

from __future__ import annotations

from typing import Any

from numba import njit

from onnxprune.kernels.addresses import clear, f32
from onnxprune.kernels.emit import F32, Emitter, Value, constant, switch, vector
from onnxprune.kernels.loops import LANES, MACHINE
from onnxprune.kernels.steps.cells import (
    GRU_CELL,
    GRU_CELL_BACK,
    LSTM_CELL,
    LSTM_CELL_BACK,
    RELU_CELL,
    RELU_CELL_BACK,
    TANH_CELL,
    TANH_CELL_BACK,
)
from onnxprune.kernels.steps.geometry import CLEAR, MOVE, data, dim, rank, result
from onnxprune.kernels.steps.tables import (
    COMING,
    EVERY_STEP,
    GATES,
    GRU,
    GRU_BACK,
    HIDDEN,
    LAST_CELL,
    LAST_STATE,
    LSTM,
    LSTM_BACK,
    RELU,
    RNN_BACK,
    SAMPLES,
    SPAN,
    STEP_DIMS,
    STEP_INPUTS,
    STEP_KERNEL,
    STEP_OUTPUTS_AT,
    STEP_PREPARE_TASKS,
    STEP_RANK,
    STEP_ROW,
    STEP_SHARED,
    STEP_SHARED_BYTES,
    STEP_TASK_BYTES,
    STEP_TASKS,
    TEAMS,
)  # fmt: skip

ROWS, VECTORS = 6, {"avx512": 4, "avx2": 2, "portable": 2}[MACHINE.name]
LARGE = 1 << 20  # bytes of R above which a task has several teams, to read it less often
MOST = 4  # teams of a task then


def tile(rows: int, vectors: int) -> Any:
    """`rows` samples at `vectors` vectors of columns: what is at `start`, and a times w, to `target`. w: (count,
    vectors, LANES); *_step: bytes from a sample to the next; last: bytes from the first column to the last vector."""

    def emit(
        k: Emitter, count: Value, a: Value, a_step: Value, w: Value, start: Value, start_step: Value, target: Value,
        target_step: Value, last: Value,
    ) -> None:  # fmt: skip
        w, kind = k.pointer(w), vector(LANES)
        each = [(k.pointer(at), step) for at, step in ((a, a_step), (start, start_step), (target, target_step))]
        of_a, starts, targets = ([k.at(at, k.mul(step, r)) for r in range(rows)] for at, step in each)
        columns = [*(constant(4 * LANES * v) for v in range(vectors - 1)), last]
        acc = [k.load(k.at(starts[r], column), kind) for r in range(rows) for column in columns]

        def step(i: Value, acc: list[Value]) -> list[Value]:
            ws = k.at(w, k.mul(i, 4 * LANES * vectors))
            right = [k.load(k.at(ws, 4 * LANES * v), kind) for v in range(vectors)]
            new = []
            for r in range(rows):
                left = k.splat(k.load(k.at(of_a[r], k.mul(i, 4)), F32), LANES)
                new += [k.fma(left, right[v], acc[r * vectors + v]) for v in range(vectors)]
            return new

        acc = k.loop(0, count, 1, acc, step)
        for r in range(rows):
            for v, column in enumerate(columns):
                k.store(acc[r * vectors + v], k.at(targets[r], column))

    return emit


TILE = switch(9, *(tile(rows, vectors) for rows in range(1, ROWS + 1) for vectors in range(1, VECTORS + 1)))


@njit
def is_back(t: Any) -> bool:
    """Whether a kernel goes back."""
    return t[STEP_KERNEL] >= LSTM_BACK


@njit
def inner(t: Any) -> int:
    """What the product with R sums over."""
    return t[HIDDEN] * t[GATES] if is_back(t) else t[HIDDEN]


@njit
def outer(t: Any) -> int:
    """Columns of the product with R."""
    return t[HIDDEN] if is_back(t) else t[HIDDEN] * t[GATES]


@njit
def kept(t: Any) -> int:
    """Floats that the way back needs of a step and sample."""
    return (t[GATES] + 1 if t[GATES] > 1 else 1) * t[HIDDEN]


@njit
def put_shape(t: Any, k: int, axes: int, a: int, b: int, c: int) -> None:
    """Of output k, which has two axes or three."""
    row = STEP_OUTPUTS_AT + k * STEP_ROW
    t[row + STEP_RANK] = axes
    t[row + STEP_DIMS], t[row + STEP_DIMS + 1] = a, b
    if axes == 3:
        t[row + STEP_DIMS + 2] = c


@njit
def plan(t: Any) -> bool:
    """Outputs, tasks and memory."""
    kernel = t[STEP_KERNEL]
    gates = 4 if kernel in (LSTM, LSTM_BACK) else (3 if kernel in (GRU, GRU_BACK) else 1)
    if rank(t, 0) != 3 or rank(t, 1) != 2 or dim(t, 0, 0) < 1:
        return False
    steps, samples, hidden = dim(t, 0, 0), dim(t, 0, 1), dim(t, 1, 0)
    t[SAMPLES], t[HIDDEN], t[GATES] = samples, hidden, gates
    first = kept(t) if is_back(t) else gates * hidden
    if dim(t, 1, 1) != gates * hidden or dim(t, 0, 2) != first or hidden < LANES:
        return False
    if is_back(t):
        put_shape(t, 0, 3, steps, samples, gates * hidden)
        put_shape(t, 1, 2, samples, hidden, 0)
        if gates == 4:
            put_shape(t, 2, 2, samples, hidden, 0)
        if gates == 3:
            put_shape(t, 2, 2, steps * samples, gates * hidden, 0)
    else:
        put_shape(t, 0, 3, steps, samples, hidden)
        put_shape(t, 1, 2, steps * samples, hidden, 0)
        if gates > 1:
            put_shape(t, 2, 3, steps, samples, kept(t))
        if gates == 4:
            put_shape(t, 3, 2, samples, hidden, 0)
    t[TEAMS] = (samples + ROWS - 1) // ROWS
    t[SPAN] = MOST if 4 * gates * hidden * hidden > LARGE else 1
    t[STEP_TASKS] = (t[TEAMS] + t[SPAN] - 1) // t[SPAN]
    t[STEP_TASK_BYTES] = 4 * hidden * (3 * ROWS * t[SPAN] + 1)
    t[STEP_SHARED_BYTES] = 4 * inner(t) * vectors(t) * LANES
    t[STEP_PREPARE_TASKS] = blocks(t) if samples > 0 else 0
    return True


@njit
def vectors(t: Any) -> int:
    """Vectors of columns; the last one ends with them, and has some that the one before has as well."""
    return (outer(t) + LANES - 1) // LANES


@njit
def blocks(t: Any) -> int:
    """Blocks of columns."""
    return (vectors(t) + VECTORS - 1) // VECTORS


@njit
def prepare(t: Any, block: int) -> None:
    """Pack a block of R."""
    count, columns, width = inner(t), outer(t), t[GATES] * t[HIDDEN]
    begin, end = vectors(t) * block // blocks(t), vectors(t) * (block + 1) // blocks(t)
    r = f32(data(t, 1), count * columns)
    packed = f32(t[STEP_SHARED] + 4 * count * begin * LANES, count * (end - begin) * LANES)
    for v in range(begin, end):
        column = min(v * LANES, columns - LANES)
        for i in range(count):
            at = (i * (end - begin) + v - begin) * LANES
            for lane in range(LANES):
                packed[at + lane] = r[(column + lane) * width + i] if is_back(t) else r[i * width + column + lane]


@njit
def first_row(t: Any, team: int) -> int:
    """The first sample of a team."""
    return t[SAMPLES] * min(team, t[TEAMS]) // t[TEAMS]


@njit
def product(t: Any, task: int, a: int, a_step: int, start: int, start_step: int, target: int, target_step: int) -> None:
    """What is at `start`, and a times R, to `target`, for the samples of a task. Addresses are those of sample 0, steps
    floats from a sample to the next."""
    count, columns, all_ = inner(t), outer(t), blocks(t)
    for block in range(all_):
        begin, end = vectors(t) * block // all_, vectors(t) * (block + 1) // all_
        w, column = t[STEP_SHARED] + 4 * count * begin * LANES, begin * LANES
        last = min((end - 1) * LANES, columns - LANES) - column
        for team in range(task * t[SPAN], min(t[TEAMS], (task + 1) * t[SPAN])):
            n = first_row(t, team)
            rows = first_row(t, team + 1) - n
            TILE((
                (rows - 1) * VECTORS + end - begin - 1, count, a + 4 * n * a_step, 4 * a_step, w,
                start + 4 * (n * start_step + column), 4 * start_step, target + 4 * (n * target_step + column),
                4 * target_step, 4 * last,
            ))  # fmt: skip


@njit
def run(t: Any, task: int, scratch: int) -> None:
    """Some samples over all steps."""
    kernel = t[STEP_KERNEL]
    if is_back(t):
        back(t, task, scratch)
    elif kernel == GRU:
        forward_gru(t, task, scratch)
    else:
        forward(t, task)


@njit
def forward(t: Any, task: int) -> None:
    """The steps of an LSTM or RNN."""
    first, end = first_row(t, task * t[SPAN]), first_row(t, (task + 1) * t[SPAN])
    hidden, samples, steps, width = t[HIDDEN], t[SAMPLES], dim(t, 0, 0), kept(t)
    lstm = t[STEP_KERNEL] == LSTM
    before = data(t, 2)
    cell, cell_step = data(t, 3 if lstm else 2), hidden
    for s in range(steps):
        x = data(t, 0) + 4 * s * samples * t[GATES] * hidden
        y = result(t, 0) + 4 * s * samples * hidden
        states = result(t, 1) + 4 * s * samples * hidden
        here = result(t, 2) + 4 * s * samples * width if lstm else y
        MOVE((before + 4 * first * hidden, states + 4 * first * hidden, (end - first) * hidden))
        product(t, task, before, hidden, x, t[GATES] * hidden, here, width)
        for n in range(first, end):
            if lstm:
                LSTM_CELL((here + 4 * n * width, cell + 4 * n * cell_step, y + 4 * n * hidden, hidden))
            elif t[RELU] == 1:
                RELU_CELL((y + 4 * n * hidden, hidden))
            else:
                TANH_CELL((y + 4 * n * hidden, hidden))
        before = y
        cell, cell_step = here + 16 * hidden, width
    if lstm:
        for n in range(first, end):
            MOVE((cell + 4 * n * cell_step, result(t, 3) + 4 * n * hidden, hidden))


@njit
def forward_gru(t: Any, task: int, scratch: int) -> None:
    """The steps of a GRU."""
    first, end = first_row(t, task * t[SPAN]), first_row(t, (task + 1) * t[SPAN])
    hidden, samples, width = t[HIDDEN], t[SAMPLES], kept(t)
    starts = scratch - 4 * first * 3 * hidden  # of the sums: x of z and r, and the bias of what is reset
    before = data(t, 2)
    for n in range(first, end):
        at = starts + 4 * (n * 3 + 2) * hidden
        if t[STEP_INPUTS] > 3:
            MOVE((data(t, 3), at, hidden))
        else:
            CLEAR((at, at, hidden))
    for s in range(dim(t, 0, 0)):
        x = data(t, 0) + 4 * s * samples * 3 * hidden
        y = result(t, 0) + 4 * s * samples * hidden
        states = result(t, 1) + 4 * s * samples * hidden
        here = result(t, 2) + 4 * s * samples * width
        MOVE((before + 4 * first * hidden, states + 4 * first * hidden, (end - first) * hidden))
        for n in range(first, end):
            MOVE((x + 12 * n * hidden, starts + 12 * n * hidden, 2 * hidden))
        product(t, task, before, hidden, starts, 3 * hidden, here, width)
        for n in range(first, end):
            GRU_CELL((
                here + 4 * n * width, x + 12 * n * hidden, before + 4 * n * hidden, y + 4 * n * hidden, hidden
            ))  # fmt: skip
        before = y


@njit
def coming(t: Any, bit: int) -> int:
    """The address of a gradient that arrives; 0 for none."""
    if t[COMING] & bit == 0:
        return 0
    at = 2 if t[STEP_KERNEL] == RNN_BACK else 3
    for other in (EVERY_STEP, LAST_STATE, LAST_CELL):
        if other < bit and t[COMING] & other:
            at += 1
    return data(t, at)


@njit
def begin_with(target: int, a: int, b: int, n: int) -> None:
    """The sum of two arrays, either of which may be missing (0)."""
    out = f32(target, n)
    clear(out, 0, n)
    for source in (a, b):
        if source:
            values = f32(source, n)
            for i in range(n):
                out[i] += values[i]


@njit
def back(t: Any, task: int, scratch: int) -> None:
    """The steps from the last to the first."""
    first, end = first_row(t, task * t[SPAN]), first_row(t, (task + 1) * t[SPAN])
    kernel, hidden, samples, steps = t[STEP_KERNEL], t[HIDDEN], t[SAMPLES], dim(t, 0, 0)
    gates, width, size, row = t[GATES] * t[HIDDEN], kept(t), 4 * samples * t[HIDDEN], 4 * t[HIDDEN]
    offset = 4 * first * hidden
    dh, carry = scratch - offset, scratch + (end - first) * row - offset
    dc, zeros = result(t, 2), scratch + 2 * (end - first) * row
    CLEAR((zeros, zeros, hidden))
    every, last, last_cell = coming(t, EVERY_STEP), coming(t, LAST_STATE), coming(t, LAST_CELL)
    many = (end - first) * hidden
    begin_with(
        dh + offset, every + (steps - 1) * size + offset if every else 0, last + offset if last else 0, many
    )  # fmt: skip
    if kernel == LSTM_BACK:
        begin_with(dc + offset, last_cell + offset if last_cell else 0, 0, many)
    for s in range(steps - 1, -1, -1):
        here = data(t, 0) + 4 * s * samples * width
        out = result(t, 0) + 4 * s * samples * gates
        start, start_step = (every + (s - 1) * size, hidden) if every and s else (zeros, 0)
        inside, target = out, dh if s else result(t, 1)
        if kernel == GRU_BACK:
            inside = result(t, 2) + 4 * s * samples * gates
        for n in range(first, end):
            above = dh + n * row
            if kernel == LSTM_BACK:
                before = here - 4 * samples * width + 4 * (n * width + 4 * hidden) if s else data(t, 2) + n * row
                LSTM_CELL_BACK((here + 4 * n * width, before, above, dc + n * row, out + 4 * n * gates, hidden))
            elif kernel == GRU_BACK:
                GRU_CELL_BACK((
                    here + 4 * n * width, data(t, 2) + s * size + n * row, above, start + 4 * n * start_step,
                    out + 4 * n * gates, inside + 4 * n * gates, carry + n * row, hidden,
                ))  # fmt: skip
            elif t[RELU] == 1:
                RELU_CELL_BACK((here + n * row, above, out + 4 * n * gates, hidden))
            else:
                TANH_CELL_BACK((here + n * row, above, out + 4 * n * gates, hidden))
        if kernel == GRU_BACK:
            start, start_step = carry, hidden
        product(t, task, inside, gates, start, start_step, target, hidden)
