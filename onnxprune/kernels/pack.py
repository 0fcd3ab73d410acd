"""What a kernel reads of a weight: the packed forms.

Many tokens read floats with alpha and scale in them (`spmm`); few read the codes of the file, which are fewer bytes,
and multiply the sums by the factor of their row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from onnxprune.kernels.loops import GATHERED, L1, PANEL, ROWS, SHARING, SQUARE_ROWS, STRIDE, UNROLLED

# isort: off
from onnxprune.kernels.addresses import aligned, clear, copy, descending, f32, i32, i64, u8, u16, u32
from onnxprune.kernels.stored import (
    position, width_of, code, factor, unfold, depth, entries, words_of, x_zero,
)  # fmt: skip
from onnxprune.kernels.tables import (
    KIND, FORMAT, M, K, GROUPS, N, BLOCK, CODE, INDICES, BIAS, NNZ, RIGHT, BSR, FLOAT32, INT8, SPMM, PERMUTE, EXPAND,
    TILES, QUADS, SQUARES, NARROW, LINE, OVERRUN, QUANTIZED,
)  # fmt: skip
# isort: on

SHARE_FROM = 0.18  # density from which rows share columns often enough
ROW_BLOCK = 512  # rows of W whose sums stay in the second-level cache
CLASS_SETS = np.array([[*c, *[0] * (ROWS - len(c))] for c in SHARING], np.int64)
CLASS_LENGTHS = np.array([len(c) for c in SHARING], np.int64)
SETS = 1 << ROWS
BITS = np.array([bin(s).count("1") for s in range(SETS)], np.int64)


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
    width_count = max(1, (depth(d) + limit - 1) // limit)
    width = max(1, (depth(d) + width_count - 1) // width_count)
    return height, count, width, width_count


@njit
def together(d: Any) -> bool:
    """Whether the rows of a group store the same columns, because tiles are as high."""
    return bool(d[QUANTIZED] and d[N] % ROWS == 0)


@njit
def alike(counts: Any) -> None:
    """Every ROWS rows count as the longest of them, so that they stay together in order."""
    for start in range(0, len(counts), ROWS):
        most = 0
        for i in range(ROWS):
            most = max(most, counts[start + i])
        for i in range(ROWS):
            counts[start + i] = most


@njit
def sum_of(row: Any) -> int:
    """The sum of the int8 in a row of `words_of`."""
    total = 0
    for word in row:
        for i in range(4):
            byte = int(word >> np.uint32(8 * i)) & 255
            total += byte - 256 if byte > 127 else byte
    return total


@njit
def spmm_bound(d: Any) -> int:
    """Bytes that the packed weight takes at most."""
    height, count, width, width_count = blocks_of(d)
    blocks = count * d[GROUPS] * width_count
    groups = (height + ROWS - 1) // ROWS
    fixed = 0
    for c in CLASS_LENGTHS:
        fixed += 4 * c + 4 * ROWS
    head = 64 + 32 * blocks + 32 * count * d[GROUPS] + 8 * (d[M] + 2 * ROWS) + 256
    each = (groups + 1) * 8 + groups * ROWS * 4 + 8 * 16 + 256
    # a step holds at least one nonzero; a class of the fixed ones has at most as many steps as there are columns
    stream = min(float(entries(d)), float(d[M]) * depth(d)) * 8 * ROWS
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
            if i < rows and sub[i, c]:
                s |= 1 << r
        if s:
            buckets[s, counts[s]] = c
            counts[s] += 1


@njit
def spmm_fill(d: Any, base: int, room: int) -> int:
    """Write the packed weight at `base`; the bytes that it takes.

    Head: int64[8] = row blocks, blocks of K, columns of a block, rows of a block, sharing, offset of the bias, of the
    row blocks, of the factors of int8. Then per (row block, block of K) the offsets of ends, stream, order, sizes; per
    row block (first row, rows, group).
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
    sharing = density(d) >= SHARE_FROM or together(d)
    head[4] = 1 if sharing else 0
    bias = i32(base + at, d[M] + ROWS)
    copy(bias, 0, i32(d[BIAS], d[M]), 0, d[M])  # bits of float32, or int32
    clear(bias, d[M], d[M] + ROWS)
    at = aligned(at + 4 * (d[M] + 2 * ROWS))
    if d[QUANTIZED]:
        at = put_factors(d, base, at) + LINE
    dense = np.empty((height, depth(d)), np.uint32)
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
        words_of(d, group * rows_of_group + first, rows, dense)
        if d[QUANTIZED]:
            for r in range(rows):
                bias[first + r] -= x_zero(d) * sum_of(dense[r])
        groups = (rows + ROWS - 1) // ROWS
        for j in range(width_count):
            begin = j * width
            columns = min(width, depth(d) - begin)
            sub = dense[:, begin : begin + columns]
            if at + 4 * groups * ROWS + 8 * 16 + 8 * (groups + 1) + 2 * LINE > room:
                return OVERRUN
            nonzero = np.zeros(groups * ROWS, np.int64)
            for r in range(rows):
                for c in range(columns):
                    if sub[r, c]:
                        nonzero[r] += 1
            if together(d):
                alike(nonzero)
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
            fixed = 0
            for c in range(classes):
                sizes[c] = quota[c] * (4 * CLASS_LENGTHS[c] + 4 * ROWS)
                fixed += sizes[c]
            at = aligned(at + 8 * 16)
            entry[0] = at
            ends = i64(base + at, groups + 1)
            at = aligned(at + 8 * (groups + 1))
            entry[1] = at
            start = at
            ends[0] = 0
            for g in range(groups):
                fill_buckets(sub, order, g, rows, columns, buckets, counts)
                if at + fixed > room:
                    return OVERRUN
                for c in range(classes):
                    members = CLASS_LENGTHS[c]
                    for _ in range(quota[c]):
                        offsets, weights = u32(base + at, members), u32(base + at + 4 * members, ROWS)
                        w = 0
                        for part in range(members):
                            s = CLASS_SETS[c, part]
                            chosen, have = take(s, buckets, counts)
                            offsets[part] = chosen * STRIDE
                            for r in range(ROWS):
                                if (s >> r) & 1:
                                    weights[w] = 0
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
                    n = 0
                    for c in range(columns):
                        n += (left[c] >> r) & 1
                    longest = max(longest, n)
                if at + 8 * ROWS * longest > room:
                    return OVERRUN
                for r in range(ROWS):  # rows that end earlier repeat a column with weight 0
                    n, last = 0, 0
                    for c in range(columns):
                        if (left[c] >> r) & 1:
                            u32(base + at + 8 * (n * ROWS + r), 1)[0] = c * STRIDE
                            u32(base + at + 8 * (n * ROWS + r) + 4, 1)[0] = sub[order[g * ROWS + r], c]
                            n, last = n + 1, c
                    for pad in range(n, longest):
                        u32(base + at + 8 * (pad * ROWS + r), 1)[0] = last * STRIDE
                        u32(base + at + 8 * (pad * ROWS + r) + 4, 1)[0] = 0
                at += 8 * ROWS * longest
                ends[g + 1] = at - start
            at = aligned(at + 64)
    return at


@njit
def panels_of(d: Any) -> int:
    """Panels of PANEL rows."""
    return (d[M] + PANEL - 1) // PANEL


@njit
def put_codes(d: Any, address: int, i: int, bits: int) -> None:
    """Write a code as the i-th at an address."""
    if d[CODE] == FLOAT32:
        u32(address, i + 1)[i] = bits
    elif d[CODE] == INT8:
        u8(address, i + 1)[i] = bits
    else:
        u16(address, i + 1)[i] = bits


@njit
def put_factors(d: Any, base: int, at: int) -> int:
    """Write the factors of all rows at offset `at`, and that into the head; where they end."""
    i64(base, 8)[7] = at
    factors = f32(base + at, d[M])
    for r in range(d[M]):
        factors[r] = factor(d, r)
    return aligned(at + 4 * d[M])


@njit
def expand_bound(d: Any) -> int:
    """Bytes that the packed weight takes at most."""
    panels = panels_of(d)
    return 64 + 2048 + 8 * (panels + 1) + 128 + 4 * d[M] + panels * d[K] * (PANEL // 8) + width_of(d) * d[NNZ] + 1088


@njit
def expand_fill(d: Any, base: int, room: int) -> int:
    """Head: offsets of table, starts of values, masks, values, and (7) factors; the bytes that all takes."""
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
    head[2] = put_factors(d, base, aligned(head[1] + 8 * (panels + 1)))
    masks = u8(base + head[2], panels * d[K] * (PANEL // 8))
    head[3] = aligned(head[2] + panels * d[K] * (PANEL // 8))
    width = width_of(d)
    end = width * d[NNZ] + 1024
    if head[3] + end > room:
        return OVERRUN
    clear(masks, 0, len(masks))
    dense = np.empty((PANEL, d[K]), np.uint32)
    at = 0
    for p in range(panels):
        starts[p] = width * at
        rows = min(PANEL, d[M] - p * PANEL)
        unfold(d, p * PANEL, rows, dense)
        for c in range(d[K]):
            here = (p * d[K] + c) * (PANEL // 8)
            for r in range(rows):
                if dense[r, c]:
                    masks[here + (r >> 3)] |= np.uint8(1 << (r & 7))
                    put_codes(d, base + head[3], at, dense[r, c])
                    at += 1
    starts[panels] = width * at
    clear(u8(base + head[3], end), width * at, end)
    return head[3] + end


@njit
def chunks_of(d: Any) -> int:
    """Chunks of 16 stored weights of a row."""
    return ((d[K] + 3) // 4 * d[N] + 15) // 16


@njit
def permute_bound(d: Any) -> int:
    """Bytes of the packed weight."""
    return 256 + 4 * d[M] + panels_of(d) * chunks_of(d) * PANEL * (4 + 16 * width_of(d)) + 1024


@njit
def permute_fill(d: Any, base: int, room: int) -> int:
    """Head: offsets of words, values, and (7) factors; the bytes that all takes."""
    panels, chunks = panels_of(d), chunks_of(d)
    head = i64(base, 8)
    head[0] = put_factors(d, base, 64)
    head[1] = aligned(head[0] + panels * chunks * PANEL * 4)
    words = u32(base + head[0], panels * chunks * PANEL)
    end = panels * chunks * 16 * PANEL * width_of(d)
    if head[1] + end + 1024 > room:
        return OVERRUN
    clear(words, 0, len(words))
    clear(u8(base + head[1], end), 0, end)
    stored = (d[K] + 3) // 4 * d[N]
    row_bytes = (stored * 2 + 7) // 8
    for row in range(d[M]):
        places = u8(d[INDICES] + row * row_bytes, row_bytes)
        p, lane = row // PANEL, row % PANEL
        for i in range(stored):
            chunk = p * chunks + i // 16
            words[chunk * PANEL + lane] |= np.uint32(position(places, i, 2) << (2 * (i % 16)))
            put_codes(d, base + head[1], (chunk * 16 + i % 16) * PANEL + lane, code(d, row * stored + i))
    return head[1] + end + 1024


@njit
def gather_bound(d: Any) -> int:
    """Bytes that the packed weight takes at most: rows of a lockstep may all be as long as the longest."""
    sets = (d[M] + GATHERED - 1) // GATHERED
    most = min(float(sets) * GATHERED * (d[K] + 2), (float(d[NNZ]) + 2 * sets) * GATHERED)
    return int(64 + 8 * (sets + 1) + 4 * sets * GATHERED + 4 * d[M] + 640 + most * (4 + width_of(d)))


@njit
def gather_fill(d: Any, base: int, room: int) -> int:
    """Head: sets of rows, offsets of ends (in steps), order, columns, values, bytes of a column, and (7) of factors;
    the bytes that all takes."""
    sets = (d[M] + GATHERED - 1) // GATHERED
    head = i64(base, 8)
    head[0] = sets
    head[1] = 64
    ends = i64(base + head[1], sets + 1)
    head[2] = aligned(head[1] + 8 * (sets + 1))
    order = i32(base + head[2], sets * GATHERED)
    head[3] = put_factors(d, base, aligned(head[2] + 4 * sets * GATHERED))
    small = d[K] <= NARROW
    head[5] = 2 if small else 4
    dense = np.empty((1, d[K]), np.uint32)
    nonzero = np.zeros(sets * GATHERED, np.int64)
    for row in range(d[M]):
        unfold(d, row, 1, dense)
        for c in range(d[K]):
            if dense[0, c]:
                nonzero[row] += 1
    descending(nonzero, d[K], order)
    ends[0] = 0
    for s in range(sets):
        steps = nonzero[order[s * GATHERED]]
        ends[s + 1] = ends[s] + steps + (steps & 1)
    total = ends[sets] * GATHERED
    head[4] = aligned(head[3] + total * head[5] + 64)
    columns2, columns4 = u16(base + head[3], total), i32(base + head[3], total)
    end = total * width_of(d)
    if head[4] + end + 512 > room:
        return OVERRUN
    clear(u8(base + head[4], end), 0, end)
    if small:
        clear(columns2, 0, total)
    else:
        clear(columns4, 0, total)
    for i in range(sets * GATHERED):
        row = order[i]
        if row >= d[M]:
            continue
        unfold(d, row, 1, dense)
        at = ends[i // GATHERED] * GATHERED + i % GATHERED
        for c in range(d[K]):
            if dense[0, c]:
                put_codes(d, base + head[4], at, dense[0, c])
                if small:
                    columns2[at] = c
                else:
                    columns4[at] = c
                at += GATHERED
    return head[4] + end + 512


@njit
def small_tile(d: Any) -> tuple[int, int]:
    """Rows and columns of the tiles of `tiles` that make up those of the file; (1, 1) where it has none for them."""
    if d[FORMAT] != BSR or d[KIND] != RIGHT or d[K] > NARROW:
        return 1, 1
    return (4 if d[N] % 4 == 0 else 1), (4 if d[BLOCK] % 4 == 0 else 1)


@njit
def tiles_bound(d: Any) -> int:
    """Bytes that the packed weight takes at most: every set of rows may be padded."""
    r, c = small_tile(d)
    sets = (d[M] + r - 1) // r
    most = d[NNZ] // (r * c) + sets * (UNROLLED - 1)
    return 64 + 8 * (sets + 1) + 4 * d[M] + most * (2 + r * c * width_of(d)) + 2048


@njit
def tiles_fill(d: Any, base: int, room: int) -> int:
    """Head: offsets of ends (in tiles, for every set of rows), columns (in tiles), values `[tile][column][row]`, and
    (7) factors; the bytes that all takes."""
    r, c = small_tile(d)
    sets, wide = (d[M] + r - 1) // r, (d[K] + c - 1) // c
    head = i64(base, 8)
    head[0] = 64
    ends = i64(base + 64, sets + 1)
    head[1] = put_factors(d, base, aligned(64 + 8 * (sets + 1)))
    most = d[NNZ] // (r * c) + sets * (UNROLLED - 1)
    columns = u16(base + head[1], most)
    head[2] = aligned(head[1] + 2 * most)
    if head[2] + most * r * c * width_of(d) + 64 > room:
        return OVERRUN
    dense = np.empty((r, d[K]), np.uint32)
    at = 0
    ends[0] = 0
    for s in range(sets):
        rows = min(r, d[M] - s * r)
        unfold(d, s * r, rows, dense)
        last = 0
        for t in range(wide):
            columns_of, any_of = min(c, d[K] - t * c), np.uint32(0)
            for i in range(rows):
                for j in range(columns_of):
                    any_of |= dense[i, t * c + j]
            if any_of:
                last = t
                columns[at] = t
                for j in range(c):
                    for i in range(r):
                        bits = dense[i, t * c + j] if i < rows and j < columns_of else np.uint32(0)
                        put_codes(d, base + head[2], (at * c + j) * r + i, bits)
                at += 1
        while at % UNROLLED:  # tiles of zeros
            columns[at] = last
            for i in range(r * c):
                put_codes(d, base + head[2], at * r * c + i, 0)
            at += 1
        ends[s + 1] = at
    return head[2] + at * r * c * width_of(d) + 64


@njit
def squares_bound(d: Any) -> int:
    """Bytes that the packed weight takes at most: the last chunk of every set of rows may be padded."""
    sets = (d[M] + SQUARE_ROWS - 1) // SQUARE_ROWS
    chunks = d[NNZ] // (4 * SQUARE_ROWS * SQUARE_ROWS) + sets + 1
    return 64 + 8 * (sets + 1) + 8 * d[M] + 1024 + chunks * (4 * SQUARE_ROWS + 4 * SQUARE_ROWS * SQUARE_ROWS)


@njit
def squares_fill(d: Any, base: int, room: int) -> int:
    """Head: sets of rows, offsets of ends (in chunks), of the rows of X, of values, (5) of the bias, (7) of factors;
    the bytes that all takes."""
    side = SQUARE_ROWS
    sets = (d[M] + side - 1) // side
    head = i64(base, 8)
    head[0], head[1] = sets, 64
    ends = i64(base + 64, sets + 1)
    head[5] = aligned(64 + 8 * (sets + 1))
    bias = i32(base + head[5], d[M])
    copy(bias, 0, i32(d[BIAS], d[M]), 0, d[M])
    head[2] = put_factors(d, base, aligned(head[5] + 4 * d[M] + LINE)) + LINE
    most = d[NNZ] // (4 * side * side) + sets + 1  # one behind the last is read
    head[3] = head[2] + 4 * side * most
    end = head[3] + 4 * side * side * most
    if end > room:
        return OVERRUN
    offsets, values = u32(base + head[2], side * most), u32(base + head[3], side * side * most)
    clear(offsets, 0, side * most)
    clear(values, 0, side * side * most)
    dense = np.empty((side, depth(d)), np.uint32)
    at = 0  # columns
    ends[0] = 0
    for s in range(sets):
        rows = min(side, d[M] - s * side)
        words_of(d, s * side, rows, dense)
        for r in range(rows):
            bias[s * side + r] -= x_zero(d) * sum_of(dense[r])
        for c in range(depth(d)):
            any_of = np.uint32(0)
            for r in range(rows):
                any_of |= dense[r, c]
            if any_of:
                if at // side >= most - 1:
                    return OVERRUN
                offsets[at] = c * STRIDE
                for r in range(rows):
                    values[(at // side * side + r) * side + at % side] = dense[r, c]
                at += 1
        at = (at + side - 1) // side * side
        ends[s + 1] = at // side
    return end


@njit
def bound(d: Any, layout: int) -> int:
    """Bytes that a packed form takes at most."""
    if layout in (SPMM, QUADS):
        return spmm_bound(d)
    if layout == EXPAND:
        return expand_bound(d)
    if layout == PERMUTE:
        return permute_bound(d)
    if layout == TILES:
        return tiles_bound(d)
    if layout == SQUARES:
        return squares_bound(d)
    return gather_bound(d)


@njit
def fill(d: Any, layout: int, base: int, room: int) -> int:
    """Write a packed form at `base`, which starts a line of the cache; the bytes that it takes.

    room: how many there are, at least `bound`; OVERRUN instead of anything written beyond them.
    """
    if layout in (SPMM, QUADS):
        return spmm_fill(d, base, room)
    if layout == EXPAND:
        return expand_fill(d, base, room)
    if layout == PERMUTE:
        return permute_fill(d, base, room)
    if layout == TILES:
        return tiles_fill(d, base, room)
    if layout == SQUARES:
        return squares_fill(d, base, room)
    return gather_fill(d, base, room)
