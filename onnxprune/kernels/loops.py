"""The inner loops of sparse products, for AVX-512, AVX2 and any other CPU; sums are float32.

spmm      many columns: rows of W in groups of `Machine.rows`, X in panels `[K][panel]`; one step of the stream is one
          nonzero of each row of the group. Accumulators stay in registers, X in the first-level cache. Of int8 a column
          is four of K: an entry is four weights, a lane of X four of uint8; sums are int32.
expand    few tokens, moderate sparsity: for every column of W a bit mask over PANEL rows and the nonzeros among them
permute   few tokens, n:4 patterns: lanes are rows, a position picks one of four x values
gather    few tokens, high sparsity: rows of W in lockstep, x gathered by column

tiles     few tokens, tiles of 4 rows or 4 columns: contiguous loads of x and W, one index for four or sixteen weights
These read the codes of the file (float32, bfloat16, float16 or int8) and leave alpha and scale to the caller:
a product of one token takes as long as reading W.

squares   as spmm of int8, in tiles of 16 rows, by matrix registers

transpose_in, transpose_out: between `[tokens][K]` and panels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config

from onnxprune.kernels.emit import (
    F16,
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    POINTER,
    Emitter,
    Value,
    constant,
    kernel,
    lanes_of,
    vector,
)
from onnxprune.kernels.tables import BFLOAT16, FLOAT16, FLOAT32, INT8

Emit = Callable[..., None]
PREFETCH = 4096  # bytes ahead in a stream that stays in the caches; FAR: in one that comes from memory
FAR = 8192


@dataclass(frozen=True)
class Machine:
    """name; lanes of a float32 vector; rows of W and vectors of X of the accumulators of `spmm`; vnni: whether there
    are products of uint8 with int8 that are exact; amx: and of squares of them, where the system lets the process."""

    name: str
    lanes: int
    rows: int
    vectors: int
    vnni: bool = False
    amx: bool = False


MACHINES = {
    "amx": Machine("avx512", 16, 4, 4, vnni=True, amx=True),
    "avx512_vnni": Machine("avx512", 16, 4, 4, vnni=True),
    "avx512": Machine("avx512", 16, 4, 4),
    "avx2": Machine("avx2", 8, 2, 6),
    "portable": Machine("portable", 4, 2, 4),
}


def detect() -> Machine:
    """The machine that numba compiles for: the host, or what NUMBA_CPU_NAME says."""
    name, features = config.CPU_NAME, config.CPU_FEATURES
    if name and name != llvm.get_host_cpu_name():
        vnni = ("icelake", "sapphirerapids", "znver4", "znver5")
        wide = ("x86-64-v4", "skylake-avx512")
        middle = ("x86-64-v3", "haswell", "broadwell", "skylake", "alderlake", "znver")
        if name.startswith(vnni) or "+avx512vnni" in (features or ""):
            return MACHINES["avx512_vnni"]
        if name.startswith(wide) or "+avx512vl" in (features or ""):
            return MACHINES["avx512"]
        return MACHINES["avx2" if name.startswith(middle) or "+avx2" in (features or "") else "portable"]
    found = llvm.get_host_cpu_features()
    if all(found.get(f) for f in ("avx512f", "avx512vl", "avx512bw", "fma", "f16c")):
        if all(found.get(f) for f in ("avx512vnni", "amx-tile", "amx-int8")):
            return MACHINES["amx"]
        return MACHINES["avx512_vnni" if found.get("avx512vnni") else "avx512"]
    return MACHINES["avx2" if all(found.get(f) for f in ("avx2", "fma", "f16c")) else "portable"]


MACHINE = detect()
LANES, ROWS, VECTORS = MACHINE.lanes, MACHINE.rows, MACHINE.vectors
STRIDE = 4 * LANES * VECTORS  # bytes from one row of a panel of X to the next
PANEL = 4 * LANES  # rows of a panel of `expand` and `permute`
L1 = 32 * 1024  # bytes of X that a block of the reduction may take

# A step takes one nonzero of each row of the group; classes of steps say which rows share a column (as bit sets),
# because a shared column is loaded once. Their counts are fixed in a block of W: loops have constant trip counts.
CLASSES: dict[int, tuple[tuple[int, ...], ...]] = {
    4: ((15,), (7, 8), (11, 4), (13, 2), (14, 1), (3, 12), (5, 10), (9, 6), (1, 2, 4, 8)),
    2: ((3,), (1, 2)),
}
SHARING = CLASSES[ROWS]
ALONE = SHARING[-1:]


CODES = tuple(code for _, code in sorted({FLOAT32: F32, BFLOAT16: I16, FLOAT16: F16, INT8: I8}.items()))  # in memory


def widened(k: Emitter, codes: Value) -> Value:
    """A vector of one of CODES as float32."""
    b, (element, lanes) = k.b, (codes.type.element, codes.type.count)
    if element is F32:
        return codes
    if element is I16:
        return b.bitcast(b.shl(b.zext(codes, vector(lanes, I32)), lanes_of([16] * lanes)), vector(lanes))
    if element is I8:
        return b.sitofp(b.sext(codes, vector(lanes, I32)), vector(lanes))
    if MACHINE.name != "portable":
        return b.fpext(codes, vector(lanes))
    # the exponent and fraction in their places, and the difference of the biases as a factor: no call of a library
    bits = b.zext(b.bitcast(codes, vector(lanes, I16)), vector(lanes, I32))
    size = b.bitcast(b.shl(b.and_(bits, lanes_of([0x7FFF] * lanes)), lanes_of([13] * lanes)), vector(lanes))
    size = b.bitcast(b.fmul(size, ir.Constant(vector(lanes), [2.0**112] * lanes)), vector(lanes, I32))
    sign = b.shl(b.and_(bits, lanes_of([0x8000] * lanes)), lanes_of([16] * lanes))
    return b.bitcast(b.or_(size, sign), vector(lanes))


def width_of(code: Any) -> int:
    """Bytes of one of CODES."""
    return {F32: 4, I16: 2, F16: 2, I8: 1}[code]


def dot(k: Emitter, sums: Value, x: Value, w: Value) -> Value:
    """sums int32 + the products of four uint8 of x with four int8 of w, lane by lane, exactly."""
    b, lanes = k.b, sums.type.count
    if MACHINE.vnni:
        bytes_of = vector(4 * lanes, I8)
        operands = [sums, b.bitcast(x, bytes_of), b.bitcast(w, bytes_of)]
        return k.intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", sums.type, operands)
    if MACHINE.name == "portable":
        for i in range(4):
            byte = b.and_(b.lshr(x, lanes_of([8 * i] * lanes)), lanes_of([255] * lanes))
            weight = b.ashr(b.shl(w, lanes_of([24 - 8 * i] * lanes)), lanes_of([24] * lanes))
            sums = b.add(sums, b.mul(byte, weight))
        return sums
    # the even and the odd bytes, widened to int16: products of uint8 with int8 added in int16 would saturate
    halves, pairs = vector(2 * lanes, I16), lanes_of([8] * 2 * lanes, I16)
    x, w = b.bitcast(x, halves), b.bitcast(w, halves)
    name = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"
    even = [b.and_(x, lanes_of([255] * 2 * lanes, I16)), b.ashr(b.shl(w, pairs), pairs)]
    odd = [b.lshr(x, pairs), b.ashr(w, pairs)]
    return b.add(b.add(sums, k.intrinsic(name, sums.type, even)), k.intrinsic(name, sums.type, odd))


def spmm(vectors: int, classes: tuple[tuple[int, ...], ...], quads: bool = False) -> Emit:
    """`groups` groups of ROWS rows of W times one block of K of a panel of X of `vectors` vectors.

    ends: byte offset of each group in the stream; order: row of the tile for each row of a group; sizes: bytes of all
    classes but the last; first: start from the bias of the row instead of from `source`; clamp: limit to [low, high]
    at the end (bits of float32). Rows of source and target are `*_stride` bytes apart. quads: of int8, without bias and
    limits.
    """
    step_bytes = [4 * len(c) + 4 * ROWS for c in classes]
    element = I32 if quads else F32
    multiply = (lambda k, w, x, sums: dot(k, sums, x, w)) if quads else Emitter.fma

    def emit(
        k: Emitter, groups: Value, x: Value, ends: Value, stream: Value, order: Value, sizes: Value, source: Value,
        source_stride: Value, target: Value, target_stride: Value, bias: Value, first: Value, clamp: Value, low: Value,
        high: Value,
    ) -> None:  # fmt: skip
        b = k.b
        x, ends, stream, order, sizes = (k.pointer(p) for p in (x, ends, stream, order, sizes))
        source, target, bias = (k.pointer(p) for p in (source, target, bias))
        fixed = [k.index(k.at(sizes, 8 * i), I64) for i in range(len(classes) - 1)]
        is_first, is_clamped = (b.icmp_signed("!=", flag, constant(0)) for flag in (first, clamp))
        low, high = (k.splat(b.bitcast(b.trunc(v, I32), F32), LANES) for v in (low, high))
        kind = vector(LANES, element)

        def group(g: Value, state: list[Value]) -> list[Value]:
            (at,) = state
            end_of_group = k.index(k.at(ends, k.add(k.mul(g, 8), 8)), I64)
            rows = [k.index(k.at(order, k.add(k.mul(g, 4 * ROWS), 4 * r)), I32) for r in range(ROWS)]

            def from_bias() -> list[Value]:
                if quads:
                    return [k.zero(LANES, I32)] * (ROWS * vectors)
                values = [k.splat(k.load(k.at(bias, k.mul(row, 4)), F32), LANES) for row in rows]
                return [value for value in values for _ in range(vectors)]

            def from_source() -> list[Value]:
                starts = [k.at(source, k.mul(row, source_stride)) for row in rows]
                return [k.load(k.at(s, 4 * LANES * v), kind) for s in starts for v in range(vectors)]

            sums = k.when(is_first, from_bias, from_source)
            for c, members in enumerate(classes):
                end = k.add(at, fixed[c]) if c < len(classes) - 1 else end_of_group

                def step(i: Value, sums: list[Value], members: tuple[int, ...] = members) -> list[Value]:
                    here = k.at(stream, i)
                    k.prefetch(k.at(here, PREFETCH))
                    weight = 4 * len(members)
                    for n, member in enumerate(members):
                        mine = [r for r in range(ROWS) if member >> r & 1]
                        if len(members) == ROWS:  # offset and weight side by side: one load for both
                            both = k.load(k.at(here, 8 * n), I64)
                            column = k.at(x, b.and_(both, constant(0xFFFFFFFF)))
                            weights = [b.bitcast(b.trunc(b.lshr(both, constant(32)), I32), element)]
                        else:
                            column = k.at(x, k.index(k.at(here, 4 * n), I32))
                            weights = [k.load(k.at(here, weight + 4 * i), element) for i in range(len(mine))]
                            weight += 4 * len(mine)
                        wide = [k.splat(w, LANES) for w in weights]
                        for v in range(vectors):
                            loaded = k.load(k.at(column, 4 * LANES * v), kind)
                            for r, w in zip(mine, wide, strict=True):
                                sums[r * vectors + v] = multiply(k, w, loaded, sums[r * vectors + v])
                    return sums

                sums = k.loop(at, end, step_bytes[c], sums, step)
                at = end

            def clamped() -> list[Value]:  # a NaN passes both comparisons
                up = [b.select(b.fcmp_ordered("<", s, low), low, s) for s in sums]
                return [b.select(b.fcmp_ordered(">", s, high), high, s) for s in up]

            sums = sums if quads else k.when(is_clamped, clamped, lambda: sums)
            for r, row in enumerate(rows):
                start = k.at(target, k.mul(row, target_stride))
                for v in range(vectors):
                    k.store(sums[r * vectors + v], k.at(start, 4 * LANES * v))
            return [end_of_group]

        k.loop(0, groups, 1, [k.index(ends, I64)], group)

    return emit


def expand(code: Any, tokens: int) -> Emit:
    """One panel of PANEL rows times `tokens` rows of X: `tile[token][PANEL]`.

    masks: PANEL bits per column, bit r for row r; values: the nonzeros, by column, then row. table: 8 bytes for each of
    256 masks of 8 rows: which value goes to the lane, and 0x80 where there is one (read without AVX-512 only).
    """
    parts, width = PANEL // LANES, width_of(code)

    def emit(
        k: Emitter, columns: Value, masks: Value, values: Value, x: Value, x_stride: Value, tile: Value, table: Value
    ) -> None:
        b = k.b
        masks, values, x, tile, table = (k.pointer(p) for p in (masks, values, x, tile, table))
        tokens_of_x = [k.at(x, k.mul(x_stride, t)) if t else x for t in range(tokens)]
        kind = vector(LANES)

        def spread(pointer: Value, bits: Value) -> Value:
            loaded = widened(k, k.load(pointer, vector(LANES, code), width))
            if MACHINE.name == "avx512":
                mask = b.bitcast(b.trunc(bits, I16), vector(16, I1))
                return k.intrinsic("llvm.x86.avx512.mask.expand.v16f32", kind, [loaded, k.zero(16), mask])
            entry = k.load(k.at(table, k.mul(b.and_(bits, constant(255)), 8)), vector(8, I8), 8)
            lanes = b.sext(entry, vector(8, I32))
            moved = k.intrinsic("llvm.x86.avx2.permps", kind, [loaded, lanes])
            return k.intrinsic("llvm.x86.avx.blendv.ps.256", kind, [k.zero(8), moved, b.bitcast(lanes, kind)])

        def column(i: Value, state: list[Value]) -> list[Value]:
            at, *sums = state
            bits = k.index(k.at(masks, k.mul(i, PANEL // 8)), ir.IntType(PANEL))
            for line in range(max(1, PANEL * width // 128)):
                k.prefetch(k.at(at, FAR + 64 * line))
            xs = [k.splat(k.load(k.at(p, k.mul(i, 4)), F32), LANES) for p in tokens_of_x]
            for part in range(parts):
                below = b.and_(bits, constant((1 << part * LANES) - 1))
                pointer = k.at(at, k.mul(k.intrinsic("llvm.ctpop.i64", I64, [below]), width)) if part else at
                w = spread(pointer, b.lshr(bits, constant(part * LANES)) if part else bits)
                for t in range(tokens):
                    sums[t * parts + part] = k.fma(w, xs[t], sums[t * parts + part])
            return [k.at(at, k.mul(k.intrinsic("llvm.ctpop.i64", I64, [bits]), width)), *sums]

        sums = k.loop(0, columns, 1, [values, *[k.zero(LANES)] * (parts * tokens)], column)[1:]
        for t in range(tokens):
            for part in range(parts):
                k.store(sums[t * parts + part], k.at(tile, 4 * (t * PANEL + part * LANES)))

    return emit


def permute(code: Any, tokens: int, stored: int) -> Emit:
    """One panel of PANEL rows of a stored:4 pattern times `tokens` rows of X: `tile[token][PANEL]`.

    A word holds 16 positions, 2 bits each, the lowest first, of one row; words: `[chunk][row]`; values:
    `[chunk][16][row]`. A chunk is 16 / stored blocks of 4 columns. Rows of X are padded with zeros to whole chunks.
    """
    parts, width = PANEL // LANES, width_of(code)
    blocks = 16 // stored

    def emit(k: Emitter, chunks: Value, words: Value, values: Value, x: Value, x_stride: Value, tile: Value) -> None:
        b = k.b
        words, values, x, tile = (k.pointer(p) for p in (words, values, x, tile))
        tokens_of_x = [k.at(x, k.mul(x_stride, t)) if t else x for t in range(tokens)]
        kind = vector(LANES)
        pick = "llvm.x86.avx512.vpermilvar.ps.512" if LANES == 16 else "llvm.x86.avx.vpermilvar.ps.256"

        def chunk(i: Value, sums: list[Value]) -> list[Value]:
            places = k.at(words, k.mul(i, 4 * PANEL))
            weights = k.at(values, k.mul(i, 16 * width * PANEL))
            bits = [k.load(k.at(places, 4 * LANES * part), vector(LANES, I32)) for part in range(parts)]
            for block in range(blocks):
                quads = []
                for p in tokens_of_x:
                    four = k.load(k.at(p, k.add(k.mul(i, 16 * blocks), 16 * block)), vector(4))
                    quads.append(b.shuffle_vector(four, four, lanes_of([0, 1, 2, 3] * (LANES // 4))))
                for s in range(stored):
                    n = block * stored + s
                    for part in range(parts):
                        place = b.lshr(bits[part], lanes_of([2 * n] * LANES)) if n else bits[part]
                        offset = width * (n * PANEL + part * LANES)
                        here = k.at(weights, offset)
                        if offset % 64 == 0:
                            k.prefetch(k.at(here, FAR))
                        w = widened(k, k.load(here, vector(LANES, code), width))
                        for t in range(tokens):
                            at = t * parts + part
                            sums[at] = k.fma(w, k.intrinsic(pick, kind, [quads[t], place]), sums[at])
            return sums

        sums = k.loop(0, chunks, 1, [k.zero(LANES)] * (parts * tokens), chunk)
        for t in range(tokens):
            for part in range(parts):
                k.store(sums[t * parts + part], k.at(tile, 4 * (t * PANEL + part * LANES)))

    return emit


GATHERED = 16  # rows in lockstep of `gather`


def gather(code: Any, index: Any) -> Emit:
    """GATHERED rows of W in lockstep times one row of X: `tile[GATHERED]`.

    columns, values: `[step][GATHERED]`, columns of type `index`; an even number of steps.
    """
    parts, width = GATHERED // LANES, width_of(code)
    wide = index.width // 8

    def emit(k: Emitter, steps: Value, columns: Value, values: Value, x: Value, tile: Value) -> None:
        b = k.b
        columns, values, x, tile = (k.pointer(p) for p in (columns, values, x, tile))
        kind = vector(LANES)
        ones = ir.Constant(vector(LANES, I1), [1] * LANES)
        mask_type = f"v{LANES}"

        def pair(i: Value, sums: list[Value]) -> list[Value]:
            for odd in (0, 1):
                at = k.add(i, odd)
                values_here, columns_here = (k.mul(at, size * GATHERED) for size in (width, wide))
                k.prefetch(k.at(values, k.add(values_here, PREFETCH)))
                if not odd:
                    k.prefetch(k.at(columns, k.add(columns_here, PREFETCH)))
                for part in range(parts):
                    where = k.at(k.at(columns, columns_here), wide * LANES * part)
                    places = k.load(where, vector(LANES, index), wide)
                    places = b.zext(places, vector(LANES, I64))
                    pointers = b.gep(x, [places], inbounds=True, source_etype=F32)
                    pointers.type = vector(LANES, POINTER)
                    found = k.intrinsic(
                        f"llvm.masked.gather.{mask_type}f32.{mask_type}p0",
                        kind,
                        [pointers, constant(4, I32), ones, k.zero(LANES)],
                    )
                    codes = k.load(k.at(k.at(values, values_here), width * LANES * part), vector(LANES, code), width)
                    weights = widened(k, codes)
                    sums[odd * parts + part] = k.fma(weights, found, sums[odd * parts + part])
            return sums

        sums = k.loop(0, steps, 2, [k.zero(LANES)] * (2 * parts), pair)
        for part in range(parts):
            k.store(b.fadd(sums[part], sums[parts + part]), k.at(tile, 4 * LANES * part))

    return emit


UNROLLED = 4  # tiles of a step of `tiles` and `tiles_wide`
SMALL_TILES = ((1, 4), (4, 1), (4, 4))  # rows, columns


def tiles(code: Any, tile_of: tuple[int, int], tokens: int) -> Emit:
    """Sets of rows of W in small tiles times `tokens` rows of X: `tile[token][PANEL]`.

    ends: of every set, in tiles; columns: of every tile, in tiles; values: `[tile][column][row]`. A row is summed in
    four lanes, four rows in as many as fit the columns of a tile.
    """
    rows, cols = tile_of
    width = width_of(code)
    across = min(cols, LANES // 4) if rows == 4 else 4  # columns of one load of values
    lanes = across * rows
    loads = rows * cols // lanes
    chains = 4 if tokens < 4 else 2  # sums of a token, which do not wait for each other

    def emit(
        k: Emitter, sets: Value, ends: Value, columns: Value, values: Value, x: Value, x_stride: Value, tile: Value
    ) -> None:
        b = k.b
        ends, columns, values, x, tile = (k.pointer(p) for p in (ends, columns, values, x, tile))
        tokens_of_x = [k.at(x, k.mul(x_stride, t)) if t else x for t in range(tokens)]

        def fitting(pointer: Value) -> Value:
            """The x values of a load of values, each in the lanes of its column."""
            if rows == 1:
                return k.load(pointer, vector(4))
            if across == 1:
                return k.splat(k.load(pointer, F32), 4)
            some = k.load(pointer, vector(across))
            return b.shuffle_vector(some, some, lanes_of([i // 4 for i in range(lanes)]))

        def quarter(v: Value, i: int) -> Value:
            return v if lanes == 4 else b.shuffle_vector(v, v, lanes_of(range(4 * i, 4 * i + 4)))

        def one_set(s: Value, _: list[Value]) -> list[Value]:
            begin, end = (k.index(k.at(ends, k.add(k.mul(s, 8), 8 * i)), I64) for i in (0, 1))

            def step(i: Value, sums: list[Value]) -> list[Value]:
                for u in range(UNROLLED):
                    at = k.add(i, u)
                    here = k.at(values, k.mul(at, width * rows * cols))
                    if u * width * rows * cols % 64 == 0:
                        k.prefetch(k.at(here, FAR))
                    place = k.mul(k.index(k.at(columns, k.mul(at, 2)), I16), 4 * cols)
                    for part in range(loads):
                        w = widened(k, k.load(k.at(here, width * lanes * part), vector(lanes, code), width))
                        for t in range(tokens):
                            n = t * chains + (u * loads + part) % chains
                            found = fitting(k.at(k.at(tokens_of_x[t], place), 4 * across * part))
                            sums[n] = k.fma(w, found, sums[n])
                return sums

            sums = k.loop(begin, end, UNROLLED, [k.zero(lanes)] * (tokens * chains), step)
            for t in range(tokens):
                v = sums[t * chains]
                for other in sums[t * chains + 1 : (t + 1) * chains]:
                    v = b.fadd(v, other)
                total = quarter(v, 0)
                for i in range(1, lanes // 4):
                    total = b.fadd(total, quarter(v, i))
                if rows == 1:
                    for by in (2, 1):
                        total = b.fadd(total, b.shuffle_vector(total, total, lanes_of([i ^ by for i in range(4)])))
                    total = b.extract_element(total, constant(0, I32))
                k.store(total, k.at(k.at(tile, 4 * t * PANEL), k.mul(s, 4 * rows)))
            return []

        k.loop(0, sets, 1, [], one_set)

    return emit


def tiles_wide(tile_of: tuple[int, int], vectors: int) -> Emit:
    """Sets of rows of W in small tiles, float32, times n = vectors * LANES tokens: `tile[row][n]`; X is `[K][n]`."""
    rows, cols = tile_of
    chains = 2 // vectors if rows == 4 else 4  # sums of a row
    stride = 4 * LANES * vectors

    def emit(k: Emitter, sets: Value, ends: Value, columns: Value, values: Value, x: Value, tile: Value) -> None:
        ends, columns, values, x, tile = (k.pointer(p) for p in (ends, columns, values, x, tile))

        def one_set(s: Value, _: list[Value]) -> list[Value]:
            begin, end = (k.index(k.at(ends, k.add(k.mul(s, 8), 8 * i)), I64) for i in (0, 1))

            def step(i: Value, sums: list[Value]) -> list[Value]:
                for u in range(UNROLLED):
                    at = k.add(i, u)
                    here = k.at(values, k.mul(at, 4 * rows * cols))
                    if 4 * u * rows * cols % 64 == 0:
                        k.prefetch(k.at(here, PREFETCH))
                    place = k.at(x, k.mul(k.index(k.at(columns, k.mul(at, 2)), I16), stride * cols))
                    for j in range(cols):
                        chain = (u * cols + j) % chains
                        start = k.at(place, stride * j)
                        found = [k.load(k.at(start, 4 * LANES * v), vector(LANES)) for v in range(vectors)]
                        for r in range(rows):
                            w = k.splat(k.load(k.at(here, 4 * (j * rows + r)), F32), LANES)
                            for v in range(vectors):
                                n = (r * vectors + v) * chains + chain
                                sums[n] = k.fma(w, found[v], sums[n])
                return sums

            sums = k.loop(begin, end, UNROLLED, [k.zero(LANES)] * (rows * vectors * chains), step)
            for r in range(rows):
                out = k.at(tile, k.mul(k.add(k.mul(s, rows), r), stride))
                for v in range(vectors):
                    n = (r * vectors + v) * chains
                    total = sums[n]
                    for other in sums[n + 1 : n + chains]:
                        total = k.b.fadd(total, other)
                    k.store(total, k.at(out, 4 * LANES * v))
            return []

        k.loop(0, sets, 1, [], one_set)

    return emit


MAGIC = 1.5 * 2**23  # added to a float32 of at most 2^22, it rounds to nearest, ties to even, in the lowest bits


def requantize(as_bytes: bool) -> Any:
    """The sums of `groups` times four rows, `[row][STRIDE]` of `vectors` vectors of int32, plus bias, times the factor
    of their row: float32 in their place, or bytes `[group][STRIDE]`, four rows side by side: rounded, between low and
    high (bits of float32), plus zero."""

    def emit(
        k: Emitter, groups: Value, vectors: Value, tile: Value, bias: Value, factors: Value, low: Value, high: Value,
        zero: Value,
    ) -> None:  # fmt: skip
        b, kind, whole = k.b, vector(LANES), vector(LANES, I32)
        tile, bias, factors = (k.pointer(p) for p in (tile, bias, factors))
        low, high = (k.splat(b.bitcast(b.trunc(v, I32), F32), LANES) for v in (low, high))
        magic_bits = int(np.float32(MAGIC).view(np.int32))
        shift = k.splat(b.sub(b.trunc(zero, I32), constant(magic_bits, I32)), LANES)
        magic = ir.Constant(kind, [MAGIC] * LANES)

        def group(g: Value, _: list[Value]) -> list[Value]:
            scales, biases = (
                [k.splat(k.load(k.at(p, k.add(k.mul(g, 16), 4 * r)), element), LANES) for r in range(4)]
                for p, element in ((factors, F32), (bias, I32))
            )
            start, end = k.at(tile, k.mul(g, 4 * STRIDE)), k.at(tile, k.mul(g, STRIDE))

            def columns(v: Value, _: list[Value]) -> list[Value]:
                at, packed = k.mul(v, 4 * LANES), None
                for r in range(4):
                    here = k.at(k.at(start, at), r * STRIDE)
                    x = b.fmul(b.sitofp(b.add(k.load(here, whole), biases[r]), kind), scales[r])
                    if not as_bytes:
                        k.store(x, here)
                        continue
                    x = b.select(b.fcmp_ordered("<", x, low), low, x)
                    x = b.select(b.fcmp_ordered(">", x, high), high, x)
                    byte = b.add(b.bitcast(b.fadd(x, magic), whole), shift)
                    byte = b.shl(b.and_(byte, lanes_of([255] * LANES)), lanes_of([8 * r] * LANES))
                    packed = byte if packed is None else b.or_(packed, byte)
                if as_bytes:
                    k.store(packed, k.at(end, at))
                return []

            k.loop(0, vectors, 1, [], columns)
            return []

        k.loop(0, groups, 1, [], group)

    return kernel(8, emit)


SQUARE_ROWS, SQUARE_BYTES = 16, 64  # of a matrix register


def squares(vectors: int) -> Emit:
    """Sets of 16 rows of W times a panel of X of `vectors` vectors, in matrix registers: `tile[row][STRIDE]` of int32.

    ends: of every set, in chunks of 16 columns (of four); offsets: of their rows in the panel, `[chunk][16]`; values:
    `[chunk][16 rows][16 columns]`. The rows of X of a chunk are brought together in one of two parts of `room`, a chunk
    ahead, as a register is not loaded before they are written.
    """
    part = SQUARE_ROWS * SQUARE_BYTES
    weights, columns = 4, 5  # registers; those before hold sums

    def emit(
        k: Emitter, sets: Value, x: Value, ends: Value, offsets: Value, values: Value, tile: Value, room: Value
    ) -> None:
        b = k.b
        x, ends, offsets, values, tile, room = (k.pointer(p) for p in (x, ends, offsets, values, tile, room))
        none, wide = ir.VoidType(), constant(SQUARE_BYTES)

        def register(i: int) -> Value:
            return constant(i, I8)

        def together(chunk: Value) -> None:
            where = k.at(offsets, k.mul(chunk, 4 * SQUARE_ROWS))
            out = k.at(room, k.mul(b.and_(chunk, constant(1)), vectors * part))
            for r in range(SQUARE_ROWS):
                row = k.at(x, k.index(k.at(where, 4 * r), I32))
                for v in range(vectors):
                    loaded = k.load(k.at(row, SQUARE_BYTES * v), vector(LANES, I32))
                    k.store(loaded, k.at(out, v * part + SQUARE_BYTES * r), SQUARE_BYTES)

        def one_set(s: Value, _: list[Value]) -> list[Value]:
            begin, end = (k.index(k.at(ends, k.add(k.mul(s, 8), 8 * i)), I64) for i in (0, 1))
            for v in range(vectors):
                k.intrinsic("llvm.x86.tilezero", none, [register(v)])
            together(begin)

            def step(i: Value, _: list[Value]) -> list[Value]:
                together(k.add(i, 1))
                mine = k.at(values, k.mul(i, part))
                k.prefetch(k.at(mine, PREFETCH))
                k.intrinsic("llvm.x86.tileloadd64", none, [register(weights), mine, wide])
                here = k.at(room, k.mul(b.and_(i, constant(1)), vectors * part))
                for v in range(vectors):
                    held = register(columns + v % 3)
                    k.intrinsic("llvm.x86.tileloadd64", none, [held, k.at(here, v * part), wide])
                    k.intrinsic("llvm.x86.tdpbsud", none, [register(v), register(weights), held])
                return []

            k.loop(begin, end, 1, [], step)
            out = k.at(tile, k.mul(s, SQUARE_ROWS * STRIDE))
            for v in range(vectors):
                target = k.at(out, SQUARE_BYTES * v)
                k.intrinsic("llvm.x86.tilestored64", none, [register(v), target, constant(STRIDE)])
            return []

        k.loop(0, sets, 1, [], one_set)

    return emit


def shape_registers() -> Any:
    """Every matrix register gets 16 rows of 64 bytes; room: 64 bytes."""

    def emit(k: Emitter, room: Value) -> None:
        at = k.pointer(room)
        k.store(k.zero(64, I8), at, 1)
        k.store(constant(1, I8), at, 1)  # the palette
        for i in range(8):
            k.store(constant(SQUARE_BYTES, I16), k.at(at, 16 + 2 * i), 1)
            k.store(constant(SQUARE_ROWS, I8), k.at(at, 48 + i), 1)
        k.intrinsic("llvm.x86.ldtilecfg", ir.VoidType(), [at])

    return kernel(1, emit)


def release_registers() -> Any:
    """The matrix registers are of no use any more, so that nobody needs to keep them."""

    def emit(k: Emitter, unused: Value) -> None:
        k.intrinsic("llvm.x86.tilerelease", ir.VoidType(), [])

    return kernel(1, emit)


def transpose(rows_first: bool) -> Any:
    """`rows` x `columns` floats, or fours of bytes, both multiples of LANES, to their transpose; strides in bytes.

    rows_first: which loop is outside; the target should be written along its rows.
    last: rows beyond it are read as the last one, so that a ragged end needs no copy.
    """

    def emit(
        k: Emitter, source: Value, source_stride: Value, target: Value, target_stride: Value, rows: Value,
        columns: Value, last: Value,
    ) -> None:  # fmt: skip
        b = k.b
        source, target = k.pointer(source), k.pointer(target)

        def square(i: Value, j: Value) -> None:
            read = []
            for r in range(LANES):
                row = k.add(i, r)
                row = b.select(b.icmp_signed("<", row, last), row, last)
                read.append(k.load(k.at(k.at(source, k.mul(row, source_stride)), k.mul(j, 4)), vector(LANES), 1))
            start = k.at(k.at(target, k.mul(j, target_stride)), k.mul(i, 4))
            for c, value in enumerate(k.transpose(read)):
                k.store(value, k.at(start, k.mul(target_stride, c)), 1)

        def outer(a: Value, _: list[Value]) -> list[Value]:
            def inner(c: Value, _: list[Value]) -> list[Value]:
                square(*((a, c) if rows_first else (c, a)))
                return []

            k.loop(0, columns if rows_first else rows, LANES, [], inner)
            return []

        k.loop(0, rows if rows_first else columns, LANES, [], outer)

    return kernel(7, emit)


def copy_rows() -> Any:
    """`rows` rows of `floats` floats, from `source + offsets[row]` to `target + row * STRIDE`; zeros fill a vector."""

    def emit(k: Emitter, source: Value, offsets: Value, target: Value, rows: Value, floats: Value) -> None:
        b = k.b
        source, offsets, target = k.pointer(source), k.pointer(offsets), k.pointer(target)
        whole = b.mul(b.sdiv(floats, constant(LANES)), constant(LANES))
        ragged = b.icmp_signed("<", whole, floats)

        def row(r: Value, _: list[Value]) -> list[Value]:
            begin = k.at(source, k.index(k.at(offsets, k.mul(r, 8)), I64))
            end = k.at(target, k.mul(r, STRIDE))

            def full(i: Value, _: list[Value]) -> list[Value]:
                k.store(k.load(k.at(begin, k.mul(i, 4)), vector(LANES)), k.at(end, k.mul(i, 4)))
                return []

            def single(i: Value, _: list[Value]) -> list[Value]:
                k.store(k.load(k.at(begin, k.mul(i, 4)), F32), k.at(end, k.mul(i, 4)))
                return []

            k.loop(0, whole, LANES, [], full)
            with b.if_then(ragged):
                k.store(k.zero(LANES), k.at(end, k.mul(whole, 4)))
            k.loop(whole, floats, 1, [], single)
            return []

        k.loop(0, rows, 1, [], row)

    return kernel(5, emit)


def move(fill: bool) -> Any:
    """`floats` floats from source to target, which do not overlap; fill: zeros instead of a source."""

    def emit(k: Emitter, source: Value, target: Value, floats: Value) -> None:
        b = k.b
        source, target = k.pointer(source), k.pointer(target)
        whole = b.mul(b.sdiv(floats, constant(LANES)), constant(LANES))
        for lanes, start, stop in ((LANES, constant(0), whole), (1, whole, floats)):

            def step(i: Value, _: list[Value], lanes: int = lanes) -> list[Value]:
                at = k.mul(i, 4)
                k.store(k.zero(lanes) if fill else k.load(k.at(source, at), vector(lanes), 1), k.at(target, at), 1)
                return []

            k.loop(start, stop, lanes, [], step)

    return kernel(3, emit)
