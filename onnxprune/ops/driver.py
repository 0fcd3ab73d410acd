"""What runs between onnxruntime and the kernels: checks, packing, division of work; compiled by numba into one entry.

The C part (`_entry.c`) owns memory and threads and knows onnxruntime; it calls `entry` with the addresses of two tables
of int64: `desc` describes a layer and lives as long as its session, `call` describes one run. The numbers of their
fields are those of the enums in `_entry.c`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from onnxprune.ops import activations, kernels
from onnxprune.ops.emit import I16, I32
from onnxprune.ops.kernels import ALONE, GATHERED, L1, LANES, MACHINE, PANEL, ROWS, SHARING, STRIDE, VECTORS

# fields of desc
(
    KIND, FORMAT, M, K, GROUPS, C, KH, KW, SH, SW, PT, PL, DH, DW, N, BLOCK, ACTIVATION, RESIDUAL, ALPHA, LOW, HIGH,
    VALUES, INDICES, INDPTR, BIAS, NNZ, INDEX_BYTES, DETAIL,
) = range(28)  # fmt: skip
# fields of call
(
    X, Y, ADDED, BATCH, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, PACK, LAYOUT, SHARED, PREPARE_TASKS, TASKS, SHARED_BYTES,
    TASK_BYTES, COLUMNS, PANELS, UNITS,
) = range(18)  # fmt: skip
RIGHT, LEFT, CONV = range(3)  # KIND
CSR, NM = range(2)  # FORMAT
NOTHING, RELU, CLIP = range(3)  # ACTIVATION; more are in activations.py
SPMM, PERMUTE, EXPAND, GATHER = range(4)  # LAYOUT
CHECK, CHOOSE, BOUND, FILL, PLAN, PREPARE, RUN = range(7)  # what the entry is asked for

WIDE = MACHINE.name != "portable"
FEW = {"avx512": 4, "avx2": 2, "portable": 1}[MACHINE.name]  # tokens up to which a product is bound by reading W
EXPAND_FROM = {"avx512": 0.085, "avx2": 0.25, "portable": 2.0}[MACHINE.name]  # density below which gathering reads less
SHARE_FROM = 0.18  # density from which rows share columns often enough
ROW_BLOCK = 512  # rows of W whose sums stay in the second-level cache
TASK_FLOPS = 3_000_000.0  # 20 to 100 microseconds
TASK_BYTES_READ = 1_000_000.0

_WIDTHS = [min(v, VECTORS) for v in range(1, 7)]
S1, S2, S3, S4, S5, S6 = (kernels.spmm(v, SHARING) for v in _WIDTHS)
A1, A2, A3, A4, A5, A6 = (kernels.spmm(v, ALONE) for v in _WIDTHS)
if WIDE:
    EXPAND_1, EXPAND_2, EXPAND_4 = kernels.expand(1), kernels.expand(2), kernels.expand(min(FEW, 4))
    P11, P12, P14 = kernels.permute(1, 1), kernels.permute(2, 1), kernels.permute(min(FEW, 4), 1)
    P21, P22, P24 = kernels.permute(1, 2), kernels.permute(2, 2), kernels.permute(min(FEW, 4), 2)
GATHER_16, GATHER_32 = kernels.gather(I16), kernels.gather(I32)
TRANSPOSE_IN, TRANSPOSE_OUT = kernels.transpose(True), kernels.transpose(False)
COPY_ROWS = kernels.copy_rows()
MOVE, CLEAR = kernels.move(False), kernels.move(True)
FINISH = activations.finish(LANES)

CLASS_SETS = np.array([[*c, *[0] * (ROWS - len(c))] for c in SHARING], np.int64)
CLASS_LENGTHS = np.array([len(c) for c in SHARING], np.int64)
SETS = 1 << ROWS
BITS = np.array([bin(s).count("1") for s in range(SETS)], np.int64)
ZERO = np.float32(0)


def _pointer_to(dtype: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def cast(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(types.CPointer(dtype)))

        return types.CPointer(dtype)(types.int64), codegen

    return cast


_f32, _i64, _i32, _u32, _u16, _u8 = (
    _pointer_to(t) for t in (types.float32, types.int64, types.int32, types.uint32, types.uint16, types.uint8)
)


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typing_context: Any, bits: Any) -> Any:
    """int32 -> float32 with the same bits."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit
def f32(address: int, n: int) -> Any:
    """n float32 at an address."""
    return carray(_f32(address), n)


@njit
def i64(address: int, n: int) -> Any:
    """n int64 at an address."""
    return carray(_i64(address), n)


@njit
def i32(address: int, n: int) -> Any:
    """n int32 at an address."""
    return carray(_i32(address), n)


@njit
def u32(address: int, n: int) -> Any:
    """n uint32 at an address."""
    return carray(_u32(address), n)


@njit
def u16(address: int, n: int) -> Any:
    """n uint16 at an address."""
    return carray(_u16(address), n)


@njit
def u8(address: int, n: int) -> Any:
    """n uint8 at an address."""
    return carray(_u8(address), n)


# plain loops: numba compiles slices and sorting slowly


@njit
def clear(out: Any, begin: int, end: int) -> None:
    """Zeros in out[begin:end]."""
    for i in range(begin, end):
        out[i] = 0


@njit
def copy(out: Any, begin: int, source: Any, origin: int, n: int) -> None:
    """n elements from source[origin:] to out[begin:]."""
    for i in range(n):
        out[begin + i] = source[origin + i]


@njit
def descending(keys: Any, most: int, order: Any) -> None:
    """Stable order of keys in 0 ... most, the largest first (counting sort)."""
    place = np.zeros(most + 2, np.int64)
    for key in keys:
        place[most - key + 1] += 1
    for i in range(most + 1):
        place[i + 1] += place[i]
    for i in range(len(keys)):
        order[place[most - keys[i]]] = i
        place[most - keys[i]] += 1


@njit
def aligned(n: int) -> int:
    """n rounded up to a line of the cache."""
    return (n + 63) // 64 * 64


@njit
def position_bits(m: int) -> int:
    """Bits of a position in a block of m."""
    b = 1
    while (1 << b) < m:
        b += 1
    return b


# ---- what the file says -------------------------------------------------------------------------------------------


@njit
def column(d: Any, i: int) -> int:
    """Column i of a CSR weight."""
    if d[INDEX_BYTES] == 2:
        return int(u16(d[INDICES], i + 1)[i])
    return int(i32(d[INDICES], i + 1)[i])


@njit
def position(row: Any, i: int, bits: int) -> int:
    """Position i of a row's stream of bits."""
    out = 0
    for b in range(bits):
        at = i * bits + b
        out |= ((row[at >> 3] >> (at & 7)) & 1) << b
    return out


@njit
def check(d: Any) -> int:
    """0, or what is wrong (the list is in `_entry.c`); desc[DETAIL] says where."""
    for i in range(d[NNZ]):
        if not np.isfinite(f32(d[VALUES], d[NNZ])[i]):
            d[DETAIL] = i
            return 1
    bias = f32(d[BIAS], d[M])
    for i in range(d[M]):
        if not np.isfinite(bias[i]):
            d[DETAIL] = i
            return 2
    if d[FORMAT] == CSR:
        indptr = i32(d[INDPTR], d[M] + 1)
        if indptr[0] != 0:
            return 3
        for r in range(d[M]):
            d[DETAIL] = r
            if indptr[r + 1] < indptr[r]:
                return 4
            if indptr[r + 1] > d[NNZ]:
                return 5
        if indptr[d[M]] != d[NNZ]:
            return 6
        for r in range(d[M]):
            before = -1
            for i in range(indptr[r], indptr[r + 1]):
                d[DETAIL] = i
                c = column(d, i)
                if c < 0 or c >= d[K]:
                    return 7
                if c <= before:
                    return 8
                before = c
        return 0
    n, m, taps = d[N], d[BLOCK], d[KH] * d[KW]
    length = d[C]
    blocks = (length + m - 1) // m
    bits = position_bits(m)
    row_bytes = (blocks * n * bits + 7) // 8
    values = f32(d[VALUES], d[NNZ])
    for s in range(d[M] * taps):
        row = u8(d[INDICES] + s * row_bytes, row_bytes)
        d[DETAIL] = s
        for b in range(blocks):
            before = -1
            for i in range(n):
                p = position(row, b * n + i, bits)
                if p >= m:
                    return 9
                if p <= before:
                    return 10
                if b * m + p >= length and values[(s * blocks + b) * n + i] != 0:
                    return 11
                before = p
        for at in range(blocks * n * bits, row_bytes * 8):
            if (row[at >> 3] >> (at & 7)) & 1:
                return 12
    return 0


@njit
def decode(d: Any, first: int, rows: int, out: Any) -> None:
    """Dense rows first ... first + rows of W as `[rows, K]`, times alpha."""
    for r in range(rows):
        clear(out[r], 0, d[K])
    alpha = float_of(np.int32(d[ALPHA]))
    values = f32(d[VALUES], d[NNZ])
    if d[FORMAT] == CSR:
        indptr = i32(d[INDPTR], d[M] + 1)
        for r in range(rows):
            for i in range(indptr[first + r], indptr[first + r + 1]):
                out[r, column(d, i)] = values[i] * alpha
        return
    n, m, taps = d[N], d[BLOCK], d[KH] * d[KW]
    length = d[C]
    blocks = (length + m - 1) // m
    bits = position_bits(m)
    row_bytes = (blocks * n * bits + 7) // 8
    for r in range(rows):
        for tap in range(taps):
            s = (first + r) * taps + tap
            row = u8(d[INDICES] + s * row_bytes, row_bytes)
            for b in range(blocks):
                for i in range(n):
                    at = b * m + position(row, b * n + i, bits)
                    if at < length:
                        out[r, at * taps + tap] = values[(s * blocks + b) * n + i] * alpha


@njit
def density(d: Any) -> float:
    """Share of weights that are stored."""
    return d[NNZ] / max(1.0, float(d[M]) * d[K])


# ---- packing: what the file says -> what a kernel reads -----------------------------------------------------------


@njit
def blocks_of(d: Any) -> tuple[int, int, int, int]:
    """Rows of a row block, row blocks of a group, columns of a block of K, blocks of K."""
    rows = d[M] // d[GROUPS]
    count = (rows + ROW_BLOCK - 1) // ROW_BLOCK
    if d[KIND] == RIGHT:
        count = max(count, min(4, rows // 128))
    count = max(count, 1)
    height = (rows + count - 1) // count
    unit = 16
    height = (height + unit - 1) // unit * unit
    count = (rows + height - 1) // height
    limit = L1 // STRIDE
    if density(d) < 0.15:
        limit = limit * 3 // 2
    width_count = max(1, (d[K] + limit - 1) // limit)
    width = max(1, (d[K] + width_count - 1) // width_count)
    return height, count, width, width_count


@njit
def spmm_bound(d: Any) -> int:
    """Bytes that the packed weight takes at most."""
    height, count, width, width_count = blocks_of(d)
    blocks = count * d[GROUPS] * width_count
    groups = (height + ROWS - 1) // ROWS
    fixed = 0
    for c in CLASS_LENGTHS:
        fixed += 4 * c + 4 * ROWS
    head = 64 + 32 * blocks + 32 * count * d[GROUPS] + 4 * (d[M] + 2 * ROWS) + 256
    each = (groups + 1) * 8 + groups * ROWS * 4 + 8 * 16 + 256
    # a step holds at least one nonzero; a class of the fixed ones has at most as many steps as there are columns
    stream = min(float(d[NNZ]), float(d[M]) * d[K]) * 8 * ROWS
    most = float(blocks) * groups * width * (8 * ROWS + 4)
    return int(head + blocks * each + min(stream * 2 + blocks * groups * fixed * 2, most * 2) + 4096)


@njit
def take(wanted: int, buckets: Any, counts: Any) -> tuple[int, int]:
    """A column where all rows of the set `wanted` have a nonzero, else one where some have; which have."""
    if counts[wanted] > 0:
        counts[wanted] -= 1
        return buckets[wanted, counts[wanted]], wanted
    best = -1
    for s in range(1, SETS):
        if (s & wanted) == wanted and counts[s] > 0 and (best < 0 or BITS[s] < BITS[best]):
            best = s
    if best < 0:
        score = 0
        for s in range(1, SETS):
            shared = BITS[s & wanted] * 16 - BITS[s]
            if (s & wanted) and counts[s] > 0 and (best < 0 or shared > score):
                best, score = s, shared
        if best < 0:
            return 0, 0
    counts[best] -= 1
    c = buckets[best, counts[best]]
    rest = best & ~wanted
    if rest:
        buckets[rest, counts[rest]] = c
        counts[rest] += 1
    return c, best & wanted


@njit
def fill_buckets(sub: Any, order: Any, g: int, rows: int, width: int, buckets: Any, counts: Any) -> None:
    """Columns of a group of rows by the set of rows that have a nonzero there."""
    clear(counts, 0, SETS)
    for c in range(width):
        s = 0
        for r in range(ROWS):
            i = order[g * ROWS + r]
            if i < rows and sub[i, c] != ZERO:
                s |= 1 << r
        if s:
            buckets[s, counts[s]] = c
            counts[s] += 1


@njit
def spmm_fill(d: Any, base: int) -> int:
    """Write the packed weight at `base`; the bytes that it takes.

    Head: int64[8] = row blocks, blocks of K, columns of a block, rows of a block, sharing, offset of the bias, of the
    row blocks. Then per (row block, block of K) the offsets of ends, stream, order, sizes; per row block (first row,
    rows, group).
    """
    height, count, width, width_count = blocks_of(d)
    row_blocks = count * d[GROUPS]
    rows_of_group = d[M] // d[GROUPS]
    head = i64(base, 8)
    at = 64 + row_blocks * width_count * 32
    head[6] = at
    where = i64(base + at, row_blocks * 4)
    at = aligned(at + row_blocks * 32)
    head[0], head[1], head[2], head[3], head[5] = row_blocks, width_count, width, height, at
    sharing = density(d) >= SHARE_FROM
    head[4] = 1 if sharing else 0
    bias = f32(base + at, d[M] + ROWS)
    copy(bias, 0, f32(d[BIAS], d[M]), 0, d[M])
    clear(bias, d[M], d[M] + ROWS)
    at = aligned(at + 4 * (d[M] + 2 * ROWS))
    dense = np.empty((height, d[K]), np.float32)
    groups = (height + ROWS - 1) // ROWS
    buckets = np.empty((SETS, width + 1), np.int64)
    counts = np.empty(SETS, np.int64)
    total = np.empty(SETS, np.float64)
    left = np.empty(width, np.int64)
    classes = len(CLASS_LENGTHS) - 1 if sharing else 0
    quota = np.zeros(len(CLASS_LENGTHS), np.int64)
    for i in range(row_blocks):
        group, inside = i // count, i % count
        first = inside * height
        rows = min(height, rows_of_group - first)
        where[4 * i], where[4 * i + 1], where[4 * i + 2] = group * rows_of_group + first, rows, group
        decode(d, group * rows_of_group + first, rows, dense)
        groups = (rows + ROWS - 1) // ROWS
        for j in range(width_count):
            begin = j * width
            columns = min(width, d[K] - begin)
            sub = dense[:, begin : begin + columns]
            nonzero = np.zeros(groups * ROWS, np.int64)
            for r in range(rows):
                for c in range(columns):
                    if sub[r, c] != ZERO:
                        nonzero[r] += 1
            entry = i64(base + 64 + 32 * (i * width_count + j), 4)
            entry[2] = at
            order = i32(base + at, groups * ROWS)
            descending(nonzero, columns, order)
            at = aligned(at + 4 * groups * ROWS)
            entry[3] = at
            sizes = i64(base + at, 16)
            clear(quota, 0, len(CLASS_LENGTHS))
            if sharing:  # as many steps of every class as nearly every group can fill
                clear(total, 0, SETS)
                for g in range(groups):
                    fill_buckets(sub, order, g, rows, columns, buckets, counts)
                    for s in range(SETS):
                        total[s] += counts[s]
                for c in range(classes):
                    usual = 1e30
                    for part in range(CLASS_LENGTHS[c]):
                        s = CLASS_SETS[c, part]
                        if BITS[s] > 1 or CLASS_LENGTHS[c] == 1:
                            usual = min(usual, total[s] / groups)
                    quota[c] = max(0, int(usual - 0.7 * np.sqrt(usual)))
            for c in range(classes):
                sizes[c] = quota[c] * (4 * CLASS_LENGTHS[c] + 4 * ROWS)
            at = aligned(at + 8 * 16)
            entry[0] = at
            ends = i64(base + at, groups + 1)
            at = aligned(at + 8 * (groups + 1))
            entry[1] = at
            start = at
            ends[0] = 0
            for g in range(groups):
                fill_buckets(sub, order, g, rows, columns, buckets, counts)
                for c in range(classes):
                    members = CLASS_LENGTHS[c]
                    for _ in range(quota[c]):
                        offsets, weights = u32(base + at, members), f32(base + at + 4 * members, ROWS)
                        w = 0
                        for part in range(members):
                            s = CLASS_SETS[c, part]
                            chosen, have = take(s, buckets, counts)
                            offsets[part] = chosen * STRIDE
                            for r in range(ROWS):
                                if (s >> r) & 1:
                                    weights[w] = ZERO
                                    if (have >> r) & 1:
                                        weights[w] = sub[order[g * ROWS + r], chosen]
                                    w += 1
                        at += 4 * members + 4 * ROWS
                clear(left, 0, columns)
                for s in range(1, SETS):
                    for n in range(counts[s]):
                        left[buckets[s, n]] |= s
                longest = 0
                for r in range(ROWS):
                    n, last = 0, 0
                    for c in range(columns):
                        if (left[c] >> r) & 1:
                            u32(base + at + 8 * (n * ROWS + r), 1)[0] = c * STRIDE
                            f32(base + at + 8 * (n * ROWS + r) + 4, 1)[0] = sub[order[g * ROWS + r], c]
                            n, last = n + 1, c
                    longest = max(longest, n)
                for r in range(ROWS):  # rows that end earlier repeat a column with weight 0
                    n, last = 0, 0
                    for c in range(columns):
                        if (left[c] >> r) & 1:
                            n, last = n + 1, c
                    for pad in range(n, longest):
                        u32(base + at + 8 * (pad * ROWS + r), 1)[0] = last * STRIDE
                        f32(base + at + 8 * (pad * ROWS + r) + 4, 1)[0] = ZERO
                at += 8 * ROWS * longest
                ends[g + 1] = at - start
            at = aligned(at + 64)
    return at


@njit
def panels_of(d: Any) -> int:
    """Panels of PANEL rows."""
    return (d[M] + PANEL - 1) // PANEL


@njit
def expand_bound(d: Any) -> int:
    """Bytes that the packed weight takes at most."""
    panels = panels_of(d)
    return 64 + 2048 + 8 * (panels + 1) + 128 + panels * d[K] * (PANEL // 8) + 4 * d[NNZ] + 1024


@njit
def expand_fill(d: Any, base: int) -> int:
    """Head: offsets of table, starts of values, masks, values; the bytes that all takes."""
    panels = panels_of(d)
    head = i64(base, 8)
    head[0] = 64
    table = u8(base + 64, 2048)
    for mask in range(256):
        n = 0
        for lane in range(8):
            table[8 * mask + lane] = 0
            if (mask >> lane) & 1:
                table[8 * mask + lane] = 0x80 | n
                n += 1
    head[1] = 64 + 2048
    starts = i64(base + head[1], panels + 1)
    head[2] = aligned(head[1] + 8 * (panels + 1))
    masks = u8(base + head[2], panels * d[K] * (PANEL // 8))
    head[3] = aligned(head[2] + panels * d[K] * (PANEL // 8))
    clear(masks, 0, len(masks))
    values = f32(base + head[3], d[NNZ] + 16)
    dense = np.empty((PANEL, d[K]), np.float32)
    at = 0
    for p in range(panels):
        starts[p] = 4 * at
        rows = min(PANEL, d[M] - p * PANEL)
        decode(d, p * PANEL, rows, dense)
        for c in range(d[K]):
            here = (p * d[K] + c) * (PANEL // 8)
            for r in range(rows):
                if dense[r, c] != ZERO:
                    masks[here + (r >> 3)] |= np.uint8(1 << (r & 7))
                    values[at] = dense[r, c]
                    at += 1
    starts[panels] = 4 * at
    clear(values, at, d[NNZ] + 16)
    return head[3] + 4 * d[NNZ] + 1024


@njit
def chunks_of(d: Any) -> int:
    """Chunks of 16 stored weights of a row."""
    return ((d[K] + 3) // 4 * d[N] + 15) // 16


@njit
def permute_bound(d: Any) -> int:
    """Bytes of the packed weight."""
    return 128 + panels_of(d) * chunks_of(d) * PANEL * 68 + 1024


@njit
def permute_fill(d: Any, base: int) -> int:
    """Head: offsets of words, values; the bytes that all takes."""
    panels, chunks = panels_of(d), chunks_of(d)
    head = i64(base, 8)
    head[0] = 64
    head[1] = aligned(64 + panels * chunks * PANEL * 4)
    words = u32(base + head[0], panels * chunks * PANEL)
    values = f32(base + head[1], panels * chunks * 16 * PANEL)
    clear(words, 0, len(words))
    clear(values, 0, len(values))
    stored = (d[K] + 3) // 4 * d[N]
    row_bytes = (stored * 2 + 7) // 8
    source = f32(d[VALUES], d[NNZ])
    alpha = float_of(np.int32(d[ALPHA]))
    for row in range(d[M]):
        places = u8(d[INDICES] + row * row_bytes, row_bytes)
        p, lane = row // PANEL, row % PANEL
        for i in range(stored):
            chunk = p * chunks + i // 16
            words[chunk * PANEL + lane] |= np.uint32(position(places, i, 2) << (2 * (i % 16)))
            values[(chunk * 16 + i % 16) * PANEL + lane] = source[row * stored + i] * alpha
    return head[1] + panels * chunks * PANEL * 64 + 1024


@njit
def gather_bound(d: Any) -> int:
    """Bytes that the packed weight takes at most: rows of a lockstep may all be as long as the longest."""
    sets = (d[M] + GATHERED - 1) // GATHERED
    most = min(float(sets) * GATHERED * (d[K] + 2), (float(d[NNZ]) + 2 * sets) * GATHERED)
    return int(64 + 8 * (sets + 1) + 4 * sets * GATHERED + 512 + most * 8)


@njit
def gather_fill(d: Any, base: int) -> int:
    """Head: sets of rows, offsets of ends (in steps), order, columns, values, bytes of a column; all bytes."""
    sets = (d[M] + GATHERED - 1) // GATHERED
    head = i64(base, 8)
    head[0] = sets
    head[1] = 64
    ends = i64(base + head[1], sets + 1)
    head[2] = aligned(head[1] + 8 * (sets + 1))
    order = i32(base + head[2], sets * GATHERED)
    head[3] = aligned(head[2] + 4 * sets * GATHERED)
    small = d[K] <= 65536
    head[5] = 2 if small else 4
    dense = np.empty((1, d[K]), np.float32)
    nonzero = np.zeros(sets * GATHERED, np.int64)
    for row in range(d[M]):
        decode(d, row, 1, dense)
        for c in range(d[K]):
            if dense[0, c] != ZERO:
                nonzero[row] += 1
    descending(nonzero, d[K], order)
    ends[0] = 0
    for s in range(sets):
        steps = nonzero[order[s * GATHERED]]
        ends[s + 1] = ends[s] + steps + (steps & 1)
    total = ends[sets] * GATHERED
    head[4] = aligned(head[3] + total * head[5] + 64)
    columns2, columns4 = u16(base + head[3], total), i32(base + head[3], total)
    values = f32(base + head[4], total)
    clear(values, 0, total)
    if small:
        clear(columns2, 0, total)
    else:
        clear(columns4, 0, total)
    for i in range(sets * GATHERED):
        row = order[i]
        if row >= d[M]:
            continue
        decode(d, row, 1, dense)
        at = ends[i // GATHERED] * GATHERED + i % GATHERED
        for c in range(d[K]):
            if dense[0, c] != ZERO:
                values[at] = dense[0, c]
                if small:
                    columns2[at] = c
                else:
                    columns4[at] = c
                at += GATHERED
    return head[4] + 4 * total + 512


# ---- one run ------------------------------------------------------------------------------------------------------


@njit
def choose(d: Any, call: Any) -> None:
    """Which packed form the run needs."""
    tokens = call[BATCH]
    call[LAYOUT] = SPMM
    if d[KIND] == RIGHT and tokens <= FEW:
        if WIDE and d[FORMAT] == NM and d[BLOCK] == 4 and d[N] <= 2 and d[KH] * d[KW] == 1:
            call[LAYOUT] = PERMUTE
        elif WIDE and density(d) >= EXPAND_FROM:
            call[LAYOUT] = EXPAND
        else:
            call[LAYOUT] = GATHER


@njit
def padded_tokens(tokens: int) -> int:
    """Tokens that the kernels for few of them compute."""
    return 1 if tokens <= 1 else (2 if tokens == 2 else 4)


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
def plan(d: Any, call: Any) -> None:
    """How the run is divided: tasks, scratch memory."""
    pack = i64(call[PACK], 8)
    if call[LAYOUT] != SPMM:
        units = pack[0] if call[LAYOUT] == GATHER else panels_of(d)
        rows = GATHERED if call[LAYOUT] == GATHER else PANEL
        call[PREPARE_TASKS] = 1
        call[SHARED_BYTES] = 4 * padded_tokens(call[BATCH]) * padded_columns(d)
        call[TASK_BYTES] = 4 * rows * 4 + 64
        work = (6.0 * d[NNZ]) / TASK_BYTES_READ
        call[UNITS] = units
        call[TASKS] = max(1, min(units, int(work)))
        return
    columns = call[BATCH] if d[KIND] == RIGHT else call[OUT_HEIGHT] * call[OUT_WIDTH]
    images = 1 if d[KIND] == RIGHT else call[BATCH]
    vectors = (columns + LANES - 1) // LANES
    panels = (vectors + VECTORS - 1) // VECTORS
    call[COLUMNS], call[PANELS] = columns, panels
    units = images * panels * pack[0]
    call[UNITS] = units
    work = 2.0 * d[NNZ] * columns * images / TASK_FLOPS
    call[TASKS] = max(1, min(units, int(work)))
    tile = aligned(STRIDE * (pack[3] + 16))
    if d[KIND] == RIGHT:
        call[SHARED_BYTES] = panels * d[K] * STRIDE + 256
        call[PREPARE_TASKS] = max(1, min(panels * max(1, d[K] // 256), int(columns * float(d[K]) / 100_000.0)))
        call[TASK_BYTES] = 2 * tile + 256
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
    if call[LAYOUT] != SPMM:
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
def split(call: Any, p: int) -> tuple[int, int]:
    """First vector and vectors of panel p: all alike, the first ones one wider."""
    vectors = (call[COLUMNS] + LANES - 1) // LANES
    each, more = vectors // call[PANELS], vectors % call[PANELS]
    return p * each + min(p, more), each + (1 if p < more else 0)


@njit
def prepare_tokens(d: Any, call: Any, task: int) -> None:
    """Panels `[K][STRIDE]` of tokens, a share of the columns of K of each."""
    parts = call[PREPARE_TASKS]
    unit = (d[K] + LANES - 1) // LANES
    begin, end = unit * task // parts * LANES, min(d[K], unit * (task + 1) // parts * LANES)
    whole = begin + (end - begin) // LANES * LANES
    for p in range(call[PANELS]):
        first, vectors = split(call, p)
        token, last = first * LANES, call[COLUMNS] - 1 - first * LANES
        source = call[X] + 4 * token * d[K]
        target = call[SHARED] + p * d[K] * STRIDE
        TRANSPOSE_IN((
            source + 4 * begin, 4 * d[K], target + begin * STRIDE, STRIDE, vectors * LANES, whole - begin, last,
        ))  # fmt: skip
        for k in range(whole, end):
            row = f32(target + k * STRIDE, vectors * LANES)
            for t in range(vectors * LANES):
                row[t] = f32(source + 4 * min(t, last) * d[K], k + 1)[k]


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
def multiply(
    sharing: int, vectors: int, groups: int, x: int, base: int, entry: Any, source: int, target: int, stride: int,
    bias: int, first: int, clamp: int, low: int, high: int,
) -> None:  # fmt: skip
    """The kernel of this width."""
    a = (
        groups, x, base + entry[0], base + entry[1], base + entry[2], base + entry[3], source, STRIDE, target, stride,
        bias, first, clamp, low, high,
    )  # fmt: skip
    if sharing:
        if vectors == 1:
            S1(a)
        elif vectors == 2:
            S2(a)
        elif vectors == 3:
            S3(a)
        elif vectors == 4:
            S4(a)
        elif vectors == 5:
            S5(a)
        else:
            S6(a)
    elif vectors == 1:
        A1(a)
    elif vectors == 2:
        A2(a)
    elif vectors == 3:
        A3(a)
    elif vectors == 4:
        A4(a)
    elif vectors == 5:
        A5(a)
    else:
        A6(a)


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
            columns = min(width, d[K] - j * width)
            if right:
                x = call[SHARED] + (p * d[K] + j * width) * STRIDE
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
            multiply(
                head[4], vectors, groups, x, base, entry, tile, target, stride, base + head[5] + 4 * row,
                1 if j == 0 else 0, 1 if last and clamp else 0, d[LOW], d[HIGH],
            )  # fmt: skip
        if right:
            y = call[Y] + 4 * (at * d[M] + row)
            if rows % LANES == 0 and n == vectors * LANES:
                TRANSPOSE_OUT((tile, STRIDE, y, 4 * d[M], rows, n, rows))
            else:
                high = (rows + LANES - 1) // LANES * LANES
                TRANSPOSE_OUT((tile, STRIDE, spare, 4 * high, high, vectors * LANES, high))
                for t in range(n):
                    MOVE((spare + 4 * t * high, y + 4 * t * d[M], rows))
            if more:
                for t in range(n):
                    skip = 4 * ((at + t) * d[M] + row)
                    finish(d, call[Y] + skip, call[ADDED] + skip if d[RESIDUAL] else 0, rows)
        else:
            if not straight:
                for r in range(rows):
                    MOVE((tile + r * STRIDE, y + 4 * r * call[COLUMNS], n))
            if more:
                for r in range(rows):
                    skip = 4 * ((image * d[M] + row + r) * call[COLUMNS] + at)
                    finish(d, call[Y] + skip, call[ADDED] + skip if d[RESIDUAL] else 0, n)


@njit
def write_rows(d: Any, call: Any, tile: int, row: int, rows: int) -> None:
    """Rows of a tile `[token][PANEL]` with bias, residual and activation to Y."""
    bias = f32(d[BIAS] + 4 * row, rows)
    for t in range(call[BATCH]):
        skip = 4 * (t * d[M] + row)
        out, product = f32(call[Y] + skip, rows), f32(tile + 4 * t * PANEL, rows)
        for r in range(rows):
            out[r] = product[r] + bias[r]
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
        a = (d[K], masks, base + head[3] + starts[p], call[SHARED], 4 * wide, tile, base + head[0])
        if WIDE:
            if call[BATCH] <= 1:
                EXPAND_1(a)
            elif call[BATCH] == 2:
                EXPAND_2(a)
            else:
                EXPAND_4(a)
        write_rows(d, call, tile, p * PANEL, min(PANEL, d[M] - p * PANEL))


@njit
def run_permute(d: Any, call: Any, begin: int, end: int, tile: int) -> None:
    """Panels begin ... end."""
    base = call[PACK]
    head = i64(base, 8)
    wide, chunks = padded_columns(d), chunks_of(d)
    for p in range(begin, end):
        words, values = base + head[0] + p * chunks * PANEL * 4, base + head[1] + p * chunks * PANEL * 64
        a = (chunks, words, values, call[SHARED], 4 * wide, tile)
        if WIDE:
            if d[N] == 1:
                if call[BATCH] <= 1:
                    P11(a)
                elif call[BATCH] == 2:
                    P12(a)
                else:
                    P14(a)
            elif call[BATCH] <= 1:
                P21(a)
            elif call[BATCH] == 2:
                P22(a)
            else:
                P24(a)
        write_rows(d, call, tile, p * PANEL, min(PANEL, d[M] - p * PANEL))


@njit
def run_gather(d: Any, call: Any, begin: int, end: int, tile: int) -> None:
    """Sets of rows begin ... end."""
    base = call[PACK]
    head = i64(base, 8)
    ends, order = i64(base + head[1], end + 1), i32(base + head[2], end * GATHERED)
    bias, product = f32(d[BIAS], d[M]), f32(tile, GATHERED)
    wide = padded_columns(d)
    for s in range(begin, end):
        at = ends[s] * GATHERED
        for t in range(call[BATCH]):
            x = call[SHARED] + 4 * t * wide
            a = (ends[s + 1] - ends[s], base + head[3] + at * head[5], base + head[4] + 4 * at, x, tile)
            if head[5] == 2:
                GATHER_16(a)
            else:
                GATHER_32(a)
            for r in range(GATHERED):
                row = min(order[s * GATHERED + r], d[M] - 1)
                product[r] += bias[row]
                if d[RESIDUAL]:
                    product[r] += f32(call[ADDED] + 4 * t * d[M], d[M])[row]
            finish(d, tile, 0, GATHERED)
            for r in range(GATHERED):
                row = order[s * GATHERED + r]
                if row < d[M]:
                    f32(call[Y] + 4 * t * d[M], d[M])[row] = product[r]


@njit
def run(d: Any, call: Any, task: int, scratch: int) -> None:
    """One task of the run."""
    begin, end = call[UNITS] * task // call[TASKS], call[UNITS] * (task + 1) // call[TASKS]
    if call[LAYOUT] == SPMM:
        run_spmm(d, call, begin, end, scratch)
    elif call[LAYOUT] == EXPAND:
        run_expand(d, call, begin, end, scratch)
    elif call[LAYOUT] == PERMUTE:
        run_permute(d, call, begin, end, scratch)
    else:
        run_gather(d, call, begin, end, scratch)


@njit
def bound(d: Any, layout: int) -> int:
    """Bytes that a packed form takes at most."""
    if layout == SPMM:
        return spmm_bound(d)
    if layout == EXPAND:
        return expand_bound(d)
    if layout == PERMUTE:
        return permute_bound(d)
    return gather_bound(d)


@njit
def fill(d: Any, layout: int, base: int) -> int:
    """Write a packed form at `base`, which starts a line of the cache; the bytes that it takes."""
    if layout == SPMM:
        return spmm_fill(d, base)
    if layout == EXPAND:
        return expand_fill(d, base)
    if layout == PERMUTE:
        return permute_fill(d, base)
    return gather_fill(d, base)


@cfunc(types.int64(types.int64, types.int64, types.int64, types.int64, types.int64), cache=True)
def entry(what: int, desc: int, call: int, task: int, scratch: int) -> int:
    """All that the C part calls."""
    d = i64(desc, 28)
    if what == CHECK:
        return check(d)
    if what == BOUND:
        return bound(d, task)
    if what == FILL:
        return fill(d, task, scratch)
    c = i64(call, 18)
    if what == CHOOSE:
        choose(d, c)
    elif what == PLAN:
        plan(d, c)
    elif what == PREPARE:
        prepare(d, c, task)
    else:
        run(d, c, task, scratch)
    return 0
