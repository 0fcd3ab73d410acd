"""One run of a sparse operator: choice of the kernel, division of the work, X made ready, Y written.

The C part (`_ops.h`) owns memory and threads and knows onnxruntime; it calls `dispatch`, compiled by numba, with the
addresses of the two tables of tables.py.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from onnxprune.kernels import activations, loops
from onnxprune.kernels.checks import check
from onnxprune.kernels.emit import I16, I32, switch
from onnxprune.kernels.pack import bound, chunks_of, density, fill, panels_of, small_tile
from onnxprune.kernels.stored import depth, entries, width_of, y_zero

# isort: off
from onnxprune.kernels.loops import (
    ALONE, CODES, GATHERED, LANES, MACHINE, PANEL, ROWS, SHARING, SMALL_TILES, SQUARE_BYTES, SQUARE_ROWS, STRIDE,
    VECTORS,
)  # fmt: skip
from onnxprune.kernels.addresses import aligned, bits_of, clear, copy, f32, i32, i64, load_bytes, u8, u32
from onnxprune.kernels.tables import (
    KIND, FORMAT, M, K, GROUPS, C, KH, KW, SH, SW, PT, PL, DH, DW, N, BLOCK, ACTIVATION, RESIDUAL, LOW, HIGH, CODE,
    BIAS, NNZ, X, Y, ADDED, BATCH, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, PACK, LAYOUT, SHARED, PREPARE_TASKS, TASKS,
    SHARED_BYTES, TASK_BYTES, COLUMNS, PANELS, UNITS, RIGHT, LEFT, NM, FLOAT32, RELU, CLIP, SPMM, PERMUTE, EXPAND,
    GATHER, TILES, QUADS, LAYOUTS, CHECK, CHOOSE, BOUND, FILL, PLAN, PREPARE, DESC_FIELDS, CALL_FIELDS, QUANTIZED,
    RESULT, SIGNED, SQUARE, SQUARES, AS_FLOAT, AS_INT8,
)  # fmt: skip
# isort: on

WIDE, AMX = MACHINE.name != "portable", MACHINE.amx
FEW = {"avx512": 4, "avx2": 2, "portable": 1}[MACHINE.name]  # tokens up to which a product is bound by reading W
EXPAND_FROM = {"avx512": 0.085, "avx2": 0.25, "portable": 2.0}[MACHINE.name]  # density below which gathering reads less
TILES_WIDE_MOST = 8192  # columns whose X, for 16 tokens, leaves room in the second-level cache
TASK_FLOPS = 3_000_000.0  # 20 to 100 microseconds
TASK_BYTES_READ = 1_000_000.0
SQUARES_BLOCK = 64  # rows of W of a unit of `squares`
SQUARES_ROOM = 2 * VECTORS * SQUARE_ROWS * SQUARE_BYTES

KEPT = (1 << LAYOUTS) - 1  # layouts whose kernels are compiled, as bits; ahead.py leaves some out
COUNTS = tuple(t for t in (1, 2, 4) if t <= FEW)  # tokens that kernels for few of them are compiled for
SPMM_OF = switch(15, *(loops.spmm(v, c) for c in (ALONE, SHARING) for v in range(1, VECTORS + 1)))
QUADS_OF = switch(15, *(loops.spmm(v, c, quads=True) for c in (ALONE, SHARING) for v in range(1, VECTORS + 1)))
if AMX:
    SQUARES_OF = switch(7, *(loops.squares(v) for v in range(1, VECTORS + 1)))
    SHAPE_REGISTERS, RELEASE_REGISTERS = loops.shape_registers(), loops.release_registers()
DEQUANTIZE, REQUANTIZE = loops.requantize(False), loops.requantize(True)
GATHER_OF = switch(5, *(loops.gather(c, i) for c in CODES for i in (I16, I32)))
TILES_COUNTS = (1, 2, 4)  # tokens that `tiles` is compiled for
TILES_OF = switch(7, *(loops.tiles(c, s, t) for c in CODES for s in SMALL_TILES for t in TILES_COUNTS))
TILES_VECTORS = tuple(v for v in (1, 2) if v * LANES <= 16)  # of tokens that `tiles_wide` is compiled for
TILES_WIDE_OF = switch(6, *(loops.tiles_wide(s, v) for s in SMALL_TILES for v in TILES_VECTORS))
if WIDE:
    EXPAND_OF = switch(7, *(loops.expand(c, t) for c in CODES for t in COUNTS))
    PERMUTE_OF = switch(6, *(loops.permute(c, t, n) for c in CODES for n in (1, 2) for t in COUNTS))
TRANSPOSE_IN, TRANSPOSE_OUT = loops.transpose(True), loops.transpose(False)
COPY_ROWS = loops.copy_rows()
MOVE, CLEAR = loops.move(False), loops.move(True)
FINISH = activations.finish(LANES)


@njit
def choose(d: Any, call: Any) -> None:
    """Which packed form the run needs."""
    tokens = call[BATCH]
    call[LAYOUT] = SPMM
    if d[QUANTIZED]:
        square = AMX and KEPT & (1 << SQUARES) and d[SQUARE] and d[N] % SQUARE_ROWS == 0
        call[LAYOUT] = SQUARES if square else QUADS
        return
    r, c = small_tile(d)
    vectors = 1 if r == 1 else len(TILES_VECTORS)  # one row alone has too few sums for two
    some = tokens <= LANES * vectors and d[CODE] == FLOAT32 and d[K] <= TILES_WIDE_MOST
    if KEPT & (1 << TILES) and r * c > 1 and (tokens <= TILES_COUNTS[-1] or some):
        call[LAYOUT] = TILES
    elif d[KIND] == RIGHT and tokens <= FEW:
        if WIDE and KEPT & (1 << PERMUTE) and d[FORMAT] == NM and d[BLOCK] == 4 and d[N] <= 2 and d[KH] * d[KW] == 1:
            call[LAYOUT] = PERMUTE
        elif WIDE and KEPT & (1 << EXPAND) and density(d) >= EXPAND_FROM:
            call[LAYOUT] = EXPAND
        elif KEPT & (1 << GATHER):
            call[LAYOUT] = GATHER


@njit
def reads_panels(call: Any) -> bool:
    """Whether the run reads X in panels of many tokens."""
    return bool(call[LAYOUT] in (SPMM, QUADS, SQUARES))


@njit
def row_bytes(d: Any) -> int:
    """Bytes from one token of X to the next."""
    return d[K] if d[QUANTIZED] else 4 * d[K]


@njit
def count_of(tokens: int) -> int:
    """Which of COUNTS computes so many tokens."""
    return 0 if tokens <= 1 else (1 if tokens == 2 else 2)


@njit
def padded_tokens(tokens: int) -> int:
    """Tokens that the kernels for few of them compute."""
    return 1 << count_of(tokens)


@njit
def lanes_of(call: Any) -> int:
    """Tokens that `tiles_wide` computes."""
    return (call[BATCH] + LANES - 1) // LANES * LANES


@njit
def padded_columns(d: Any) -> int:
    """Columns of X with zeros to whole chunks of any pattern."""
    return (d[K] + 63) // 64 * 64 + 64


@njit
def is_direct(d: Any, call: Any) -> bool:
    """X is `[K][columns]` as it lies there."""
    return d[KIND] == LEFT or (
        d[KH] * d[KW] == 1 and d[SH] == 1 and d[SW] == 1 and call[HEIGHT] == call[OUT_HEIGHT]
        and call[WIDTH] == call[OUT_WIDTH]
    )  # fmt: skip


@njit
def plane_rows(d: Any, call: Any) -> int:
    """Rows of a plane: one channel, shifted for one kernel column, every SH-th row."""
    return call[OUT_HEIGHT] + (d[KH] - 1) * d[DH] // d[SH] + 1


@njit
def blocks_of_squares(d: Any) -> int:
    """Blocks of rows of `squares`."""
    return (d[M] + SQUARES_BLOCK - 1) // SQUARES_BLOCK


@njit
def plan(d: Any, call: Any) -> None:
    """How the run is divided: tasks, scratch memory."""
    pack = i64(call[PACK], 8)
    if not reads_panels(call):
        units = pack[0] if call[LAYOUT] == GATHER else panels_of(d)
        rows = GATHERED if call[LAYOUT] == GATHER else PANEL
        call[PREPARE_TASKS] = 1
        call[SHARED_BYTES] = 4 * padded_tokens(call[BATCH]) * padded_columns(d)
        call[TASK_BYTES] = 4 * rows * 4 + 64
        if call[LAYOUT] == TILES:
            call[TASK_BYTES] = 2 * 4 * PANEL * max(4, lanes_of(call)) + 64
            call[SHARED_BYTES] = max(call[SHARED_BYTES], 4 * lanes_of(call) * (d[K] + 4))
        work = float((2 + width_of(d)) * d[NNZ]) / TASK_BYTES_READ
        if call[BATCH] > TILES_COUNTS[-1]:
            work = max(work, 2.0 * d[NNZ] * lanes_of(call) / TASK_FLOPS)
        call[UNITS] = units
        call[TASKS] = max(1, min(units, int(work)))
        return
    columns = call[BATCH] if d[KIND] == RIGHT else call[OUT_HEIGHT] * call[OUT_WIDTH]
    images = 1 if d[KIND] == RIGHT else call[BATCH]
    vectors = (columns + LANES - 1) // LANES
    panels = (vectors + VECTORS - 1) // VECTORS
    call[COLUMNS], call[PANELS] = columns, panels
    units = images * panels * (blocks_of_squares(d) if call[LAYOUT] == SQUARES else pack[0])
    call[UNITS] = units
    work = 2.0 * entries(d) * columns * images / TASK_FLOPS
    call[TASKS] = max(1, min(units, int(work)))
    tile = aligned(STRIDE * ((SQUARES_BLOCK if call[LAYOUT] == SQUARES else pack[3]) + 16))
    if d[KIND] == RIGHT:
        call[SHARED_BYTES] = panels * depth(d) * STRIDE + 256
        tasks = int(columns * float(depth(d)) / 100_000.0)
        call[PREPARE_TASKS] = max(1, min(panels * max(1, depth(d) // 256), tasks))
        call[TASK_BYTES] = 2 * tile + 256 + (SQUARES_ROOM if call[LAYOUT] == SQUARES else 0)
        return
    offsets = aligned(8 * d[K] * d[GROUPS])
    call[TASK_BYTES] = aligned(STRIDE * (pack[2] + 1)) + tile + 256
    call[SHARED_BYTES] = offsets
    call[PREPARE_TASKS] = 1
    if not is_direct(d, call):
        channels = d[C] * d[GROUPS]
        planes = channels * d[KW] * min(d[SH], 1 + (d[KH] - 1) * d[DH])
        call[SHARED_BYTES] += images * planes * plane_rows(d, call) * call[OUT_WIDTH] * 4 + STRIDE
        call[PREPARE_TASKS] = max(1, min(channels * images, int(call[SHARED_BYTES] / 200_000.0)))


@njit
def prepare(d: Any, call: Any, task: int) -> None:
    """Bring X into the form that the kernels read."""
    shared = call[SHARED]
    if call[LAYOUT] == TILES and call[BATCH] > TILES_COUNTS[-1]:
        prepare_lanes(d, call)
        return
    if not reads_panels(call):
        wide, tokens = padded_columns(d), call[BATCH]
        for t in range(padded_tokens(tokens)):
            out = f32(shared + 4 * t * wide, wide)
            if t < tokens:
                MOVE((call[X] + 4 * t * d[K], shared + 4 * t * wide, d[K]))
                clear(out, d[K], wide)
            else:
                clear(out, 0, wide)
        return
    if d[KIND] == RIGHT:
        prepare_tokens(d, call, task)
        return
    if task == 0:
        prepare_offsets(d, call)
    if not is_direct(d, call):
        total = d[C] * d[GROUPS] * call[BATCH]
        for c in range(total * task // call[PREPARE_TASKS], total * (task + 1) // call[PREPARE_TASKS]):
            prepare_planes(d, call, c)


@njit
def prepare_lanes(d: Any, call: Any) -> None:
    """X as `[K][lanes_of]`, and zeros for a tile beyond the last column; the last token fills up the lanes."""
    whole, last, lanes = d[K] // LANES * LANES, call[BATCH] - 1, lanes_of(call)
    TRANSPOSE_IN((call[X], 4 * d[K], call[SHARED], 4 * lanes, lanes, whole, last))
    for k in range(whole, d[K]):
        row = f32(call[SHARED] + 4 * lanes * k, lanes)
        for t in range(lanes):
            row[t] = f32(call[X] + 4 * min(t, last) * d[K], k + 1)[k]
    clear(f32(call[SHARED], lanes * (d[K] + 4)), lanes * d[K], lanes * (d[K] + 4))


@njit
def split(call: Any, p: int) -> tuple[int, int]:
    """First vector and vectors of panel p: all alike, the first ones one wider."""
    vectors = (call[COLUMNS] + LANES - 1) // LANES
    each, more = vectors // call[PANELS], vectors % call[PANELS]
    return p * each + min(p, more), each + (1 if p < more else 0)


@njit
def flip(words: Any) -> None:
    """Four int8 of each word become uint8, 128 more."""
    for i in range(len(words)):
        words[i] ^= 0x80808080


@njit
def prepare_tokens(d: Any, call: Any, task: int) -> None:
    """Panels `[depth][STRIDE]` of tokens, a share of the columns of each; int8 becomes uint8."""
    parts, size = call[PREPARE_TASKS], row_bytes(d)
    unit = (depth(d) + LANES - 1) // LANES
    begin, end = unit * task // parts * LANES, min(depth(d), unit * (task + 1) // parts * LANES)
    whole = begin + (min(end, size // 4) - begin) // LANES * LANES
    for p in range(call[PANELS]):
        first, vectors = split(call, p)
        token, last = first * LANES, call[COLUMNS] - 1 - first * LANES
        source = call[X] + token * size
        target = call[SHARED] + p * depth(d) * STRIDE
        TRANSPOSE_IN((
            source + 4 * begin, size, target + begin * STRIDE, STRIDE, vectors * LANES, whole - begin, last,
        ))  # fmt: skip
        for k in range(whole, end):
            row = u32(target + k * STRIDE, vectors * LANES)
            for t in range(vectors * LANES):
                row[t] = load_bytes(source + min(t, last) * size + 4 * k, min(4, size - 4 * k))
        if d[SIGNED]:
            for k in range(begin, end):
                flip(u32(target + k * STRIDE, vectors * LANES))


@njit
def prepare_offsets(d: Any, call: Any) -> None:
    """Where column 0 of every row of K starts, in bytes from the image's X or planes."""
    offsets = i64(call[SHARED], d[K] * d[GROUPS])
    taps = d[KH] * d[KW]
    if is_direct(d, call):
        for k in range(d[K] * d[GROUPS]):
            offsets[k] = 4 * k * call[COLUMNS]
        return
    phases = min(d[SH], 1 + (d[KH] - 1) * d[DH])
    plane = plane_rows(d, call) * call[OUT_WIDTH]
    for k in range(d[K] * d[GROUPS]):
        c, ky, kx = k // taps, k % taps // d[KW], k % d[KW]
        phase, down = ky * d[DH] % d[SH], ky * d[DH] // d[SH]
        offsets[k] = 4 * (((c * d[KW] + kx) * phases + phase) * plane + down * call[OUT_WIDTH])


@njit
def prepare_planes(d: Any, call: Any, c: int) -> None:
    """The shifted planes of one channel of one image; zeros where the padding is."""
    phases = min(d[SH], 1 + (d[KH] - 1) * d[DH])
    rows, width = plane_rows(d, call), call[OUT_WIDTH]
    image = call[X] + 4 * c * call[HEIGHT] * call[WIDTH]
    start = call[SHARED] + aligned(8 * d[K] * d[GROUPS]) + 4 * c * d[KW] * phases * rows * width
    for kx in range(d[KW]):
        shift = kx * d[DW] - d[PL]
        low = min(width, max(0, (-shift + d[SW] - 1) // d[SW]))
        high = max(low, min(width, (call[WIDTH] - 1 - shift) // d[SW] + 1))
        for phase in range(phases):
            plane = start + 4 * (kx * phases + phase) * rows * width
            for j in range(rows):
                y, out = j * d[SH] + phase - d[PT], plane + 4 * j * width
                if y < 0 or y >= call[HEIGHT]:
                    CLEAR((out, out, width))
                    continue
                CLEAR((out, out, low))
                CLEAR((out, out + 4 * high, width - high))
                source = image + 4 * y * call[WIDTH]
                if d[SW] == 1:
                    MOVE((source + 4 * (low + shift), out + 4 * low, high - low))
                else:
                    row, pixels = f32(out, width), f32(source, call[WIDTH])
                    for x in range(low, high):
                        row[x] = pixels[x * d[SW] + shift]


@njit
def finish(d: Any, y: int, added: int, n: int) -> None:
    """Residual (0: none) and activation on n outputs side by side."""
    FINISH((y, added, n, d[ACTIVATION], d[LOW], d[HIGH]))


@njit
def run_spmm(d: Any, call: Any, begin: int, end: int, scratch: int) -> None:
    """Units (image, panel, row block) begin ... end; row blocks fastest."""
    base = call[PACK]
    head = i64(base, 8)
    row_blocks, width_count, width = head[0], head[1], head[2]
    where = i64(base + head[6], row_blocks * 4)
    right = d[KIND] == RIGHT
    clamp = 1 if (d[ACTIVATION] == RELU or d[ACTIVATION] == CLIP) and not d[RESIDUAL] else 0
    more = d[RESIDUAL] or d[ACTIVATION] > CLIP
    block = scratch
    tile = scratch if right else scratch + aligned(STRIDE * (width + 1))
    spare = tile + aligned(STRIDE * (head[3] + 16))
    direct = (not right) and is_direct(d, call)
    phases = min(d[SH], 1 + (d[KH] - 1) * d[DH])
    image_bytes = 4 * d[C] * d[GROUPS] * call[COLUMNS]
    if not right and not direct:
        image_bytes = 4 * d[C] * d[GROUPS] * d[KW] * phases * plane_rows(d, call) * call[OUT_WIDTH]
    most = depth(d)
    for unit in range(begin, end):
        i = unit % row_blocks
        p = unit // row_blocks % call[PANELS]
        image = unit // row_blocks // call[PANELS]
        first, vectors = split(call, p)
        at = first * LANES
        n = min(vectors * LANES, call[COLUMNS] - at)
        row, rows, group = where[4 * i], where[4 * i + 1], where[4 * i + 2]
        groups = (rows + ROWS - 1) // ROWS
        y = call[Y] + 4 * ((image * d[M] + row) * call[COLUMNS] + at)
        straight = not right and n == vectors * LANES and rows % ROWS == 0
        for j in range(width_count):
            columns = min(width, most - j * width)
            if right:
                x = call[SHARED] + (p * most + j * width) * STRIDE
            else:
                x = block
                origin = call[X] if direct else call[SHARED] + aligned(8 * d[K] * d[GROUPS])
                offsets = call[SHARED] + 8 * (group * d[K] + j * width)
                COPY_ROWS((origin + image * image_bytes + 4 * at, offsets, block, columns, n))
            last = j == width_count - 1
            target, stride = tile, STRIDE
            if last and straight:
                target, stride = y, 4 * call[COLUMNS]
            entry = i64(base + 64 + 32 * (i * width_count + j), 4)
            which, bias, start = head[4] * VECTORS + vectors - 1, base + head[5] + 4 * row, 1 if j == 0 else 0
            if KEPT & (1 << QUADS) and d[QUANTIZED]:
                QUADS_OF((
                    which, groups, x, base + entry[0], base + entry[1], base + entry[2], base + entry[3], tile, STRIDE,
                    target, stride, bias, start, 0, 0, 0,
                ))  # fmt: skip
            elif KEPT & (1 << SPMM):
                SPMM_OF((
                    which, groups, x, base + entry[0], base + entry[1], base + entry[2], base + entry[3], tile, STRIDE,
                    target, stride, bias, start, 1 if last and clamp else 0, d[LOW], d[HIGH],
                ))  # fmt: skip
        if right:
            write_tokens(d, call, at, vectors, row, rows, tile, spare)
        else:
            if not straight:
                for r in range(rows):
                    MOVE((tile + r * STRIDE, y + 4 * r * call[COLUMNS], n))
            if more:
                for r in range(rows):
                    skip = 4 * ((image * d[M] + row + r) * call[COLUMNS] + at)
                    finish(d, call[Y] + skip, call[ADDED] + skip if d[RESIDUAL] else 0, n)


@njit
def run_squares(d: Any, call: Any, begin: int, end: int, scratch: int) -> None:
    """Units (panel, row block) begin ... end; row blocks fastest."""
    base = call[PACK]
    head, blocks = i64(base, 8), blocks_of_squares(d)
    tile = scratch + SQUARES_ROOM
    spare = tile + aligned(STRIDE * (SQUARES_BLOCK + 16))
    if AMX:
        SHAPE_REGISTERS((scratch,))
    for unit in range(begin, end):
        row, p = unit % blocks * SQUARES_BLOCK, unit // blocks
        rows = min(SQUARES_BLOCK, d[M] - row)
        first, vectors = split(call, p)
        ends = base + head[1] + row // SQUARE_ROWS * 8
        x = call[SHARED] + p * depth(d) * STRIDE
        if AMX:
            SQUARES_OF((
                vectors - 1, (rows + SQUARE_ROWS - 1) // SQUARE_ROWS, x, ends, base + head[2], base + head[3], tile,
                scratch,
            ))  # fmt: skip
        write_tokens(d, call, first * LANES, vectors, row, rows, tile, spare)
    if AMX:
        RELEASE_REGISTERS((0,))


@njit
def write_tokens(d: Any, call: Any, at: int, vectors: int, row: int, rows: int, tile: int, spare: int) -> None:
    """Sums `[row][STRIDE]` of a tile, tokens from `at` on, as rows of Y: row ... row + rows."""
    n = min(vectors * LANES, call[COLUMNS] - at)
    if KEPT & (1 << QUADS | 1 << SQUARES) and d[QUANTIZED]:
        head, quads = i64(call[PACK], 8), (rows + 3) // 4
        bias, factors = call[PACK] + head[5] + 4 * row, call[PACK] + head[7] + 4 * row
        if d[RESULT] != AS_FLOAT:
            zero = y_zero(d)
            least = (-128 if d[RESULT] == AS_INT8 else 0) - zero
            REQUANTIZE((quads, vectors, tile, bias, factors, bits_of(least), bits_of(least + 255), zero))
            write_bytes(d, n, vectors, rows, tile, spare, call[Y] + at * d[M] + row)
            return
        DEQUANTIZE((quads, vectors, tile, bias, factors, 0, 0, 0))
    y = call[Y] + 4 * (at * d[M] + row)
    if rows % LANES == 0 and n == vectors * LANES:
        TRANSPOSE_OUT((tile, STRIDE, y, 4 * d[M], rows, n, rows))
    else:
        high = (rows + LANES - 1) // LANES * LANES
        TRANSPOSE_OUT((tile, STRIDE, spare, 4 * high, high, vectors * LANES, high))
        for t in range(n):
            MOVE((spare + 4 * t * high, y + 4 * t * d[M], rows))
    if d[RESIDUAL] or d[ACTIVATION] > CLIP:
        for t in range(n):
            skip = 4 * ((at + t) * d[M] + row)
            finish(d, call[Y] + skip, call[ADDED] + skip if d[RESIDUAL] else 0, rows)


@njit
def write_bytes(d: Any, n: int, vectors: int, rows: int, tile: int, spare: int, y: int) -> None:
    """Bytes `[four rows][STRIDE]` of a tile as rows of n tokens at y."""
    quads = (rows + 3) // 4
    if rows % (4 * LANES) == 0 and n == vectors * LANES:
        TRANSPOSE_OUT((tile, STRIDE, y, d[M], quads, n, quads))
        return
    wide = (quads + LANES - 1) // LANES * LANES
    TRANSPOSE_OUT((tile, STRIDE, spare, 4 * wide, wide, vectors * LANES, wide))
    for t in range(n):
        MOVE((spare + 4 * t * wide, y + t * d[M], rows // 4))
        copy(u8(y + t * d[M], rows), rows // 4 * 4, u8(spare + 4 * t * wide, rows), rows // 4 * 4, rows % 4)


@njit
def write_rows(d: Any, call: Any, tile: int, row: int, rows: int) -> None:
    """Rows of a tile `[token][PANEL]` with factor, bias, residual and activation to Y."""
    bias, factors = f32(d[BIAS] + 4 * row, rows), f32(call[PACK] + i64(call[PACK], 8)[7] + 4 * row, rows)
    for t in range(call[BATCH]):
        skip = 4 * (t * d[M] + row)
        out, product = f32(call[Y] + skip, rows), f32(tile + 4 * t * PANEL, rows)
        for r in range(rows):
            out[r] = product[r] * factors[r] + bias[r]
        if d[RESIDUAL] or d[ACTIVATION]:
            finish(d, call[Y] + skip, call[ADDED] + skip if d[RESIDUAL] else 0, rows)


@njit
def run_expand(d: Any, call: Any, begin: int, end: int, tile: int) -> None:
    """Panels begin ... end."""
    base = call[PACK]
    head = i64(base, 8)
    starts = i64(base + head[1], end + 1)
    wide = padded_columns(d)
    for p in range(begin, end):
        masks = base + head[2] + p * d[K] * (PANEL // 8)
        if WIDE:
            which = d[CODE] * len(COUNTS) + count_of(call[BATCH])
            EXPAND_OF((
                which, d[K], masks, base + head[3] + starts[p], call[SHARED], 4 * wide, tile, base + head[0]
            ))  # fmt: skip
        write_rows(d, call, tile, p * PANEL, min(PANEL, d[M] - p * PANEL))


@njit
def run_permute(d: Any, call: Any, begin: int, end: int, tile: int) -> None:
    """Panels begin ... end."""
    base = call[PACK]
    head = i64(base, 8)
    wide, chunks = padded_columns(d), chunks_of(d)
    for p in range(begin, end):
        at = p * chunks * PANEL
        if WIDE:
            which = (2 * d[CODE] + d[N] - 1) * len(COUNTS) + count_of(call[BATCH])
            PERMUTE_OF((
                which, chunks, base + head[0] + at * 4, base + head[1] + at * 16 * width_of(d), call[SHARED], 4 * wide,
                tile,
            ))  # fmt: skip
        write_rows(d, call, tile, p * PANEL, min(PANEL, d[M] - p * PANEL))


@njit
def run_gather(d: Any, call: Any, begin: int, end: int, tile: int) -> None:
    """Sets of rows begin ... end."""
    base = call[PACK]
    head = i64(base, 8)
    ends, order = i64(base + head[1], end + 1), i32(base + head[2], end * GATHERED)
    bias, product = f32(d[BIAS], d[M]), f32(tile, GATHERED)
    factors, width, wide = f32(base + head[7], d[M]), width_of(d), padded_columns(d)
    for s in range(begin, end):
        at = ends[s] * GATHERED
        for t in range(call[BATCH]):
            x = call[SHARED] + 4 * t * wide
            which = 2 * d[CODE] + (0 if head[5] == 2 else 1)
            GATHER_OF((
                which, ends[s + 1] - ends[s], base + head[3] + at * head[5], base + head[4] + width * at, x, tile
            ))  # fmt: skip
            for r in range(GATHERED):
                row = min(order[s * GATHERED + r], d[M] - 1)
                product[r] = product[r] * factors[row] + bias[row]
                if d[RESIDUAL]:
                    product[r] += f32(call[ADDED] + 4 * t * d[M], d[M])[row]
            finish(d, tile, 0, GATHERED)
            for r in range(GATHERED):
                row = order[s * GATHERED + r]
                if row < d[M]:
                    f32(call[Y] + 4 * t * d[M], d[M])[row] = product[r]


@njit
def run_tiles(d: Any, call: Any, begin: int, end: int, tile: int) -> None:
    """Panels begin ... end."""
    base = call[PACK]
    head = i64(base, 8)
    wide = padded_columns(d)
    r, c = small_tile(d)
    shape = 0 if r == 1 else (1 if c == 1 else 2)
    lanes = lanes_of(call)
    by_row = tile + 4 * PANEL * lanes
    for p in range(begin, end):
        rows = min(PANEL, d[M] - p * PANEL)
        sets, ends = (rows + r - 1) // r, base + head[0] + 8 * (p * PANEL // r)
        if call[BATCH] > TILES_COUNTS[-1]:
            which = shape * len(TILES_VECTORS) + lanes // LANES - 1
            TILES_WIDE_OF((which, sets, ends, base + head[1], base + head[2], call[SHARED], by_row))
            TRANSPOSE_OUT((by_row, 4 * lanes, tile, 4 * PANEL, PANEL, lanes, PANEL))
        else:
            which = (d[CODE] * len(SMALL_TILES) + shape) * len(TILES_COUNTS) + count_of(call[BATCH])
            TILES_OF((which, sets, ends, base + head[1], base + head[2], call[SHARED], 4 * wide, tile))
        write_rows(d, call, tile, p * PANEL, rows)


@njit
def run(d: Any, call: Any, task: int, scratch: int) -> None:
    """One task of the run."""
    begin, end = call[UNITS] * task // call[TASKS], call[UNITS] * (task + 1) // call[TASKS]
    if AMX and KEPT & (1 << SQUARES) and call[LAYOUT] == SQUARES:
        run_squares(d, call, begin, end, scratch)
    elif reads_panels(call):
        run_spmm(d, call, begin, end, scratch)
    elif KEPT & (1 << EXPAND) and call[LAYOUT] == EXPAND:
        run_expand(d, call, begin, end, scratch)
    elif KEPT & (1 << PERMUTE) and call[LAYOUT] == PERMUTE:
        run_permute(d, call, begin, end, scratch)
    elif KEPT & (1 << TILES) and call[LAYOUT] == TILES:
        run_tiles(d, call, begin, end, scratch)
    elif KEPT & (1 << GATHER):
        run_gather(d, call, begin, end, scratch)


@njit
def dispatch(what: int, desc: int, call: int, task: int, scratch: int) -> int:
    """All that the C part asks for.

    BOUND and FILL have the layout for `task`; FILL writes at `scratch`, where there are `call` bytes.
    """
    d = i64(desc, DESC_FIELDS)
    if what == CHECK:
        return check(d)
    if what == BOUND:
        return bound(d, task)
    if what == FILL:
        return fill(d, task, scratch, call)
    c = i64(call, CALL_FIELDS)
    if what == CHOOSE:
        choose(d, c)
    elif what == PLAN:
        plan(d, c)
    elif what == PREPARE:
        prepare(d, c, task)
    else:
        run(d, c, task, scratch)
    return 0
