"""A weight as the file says it: entries, codes, factors, and dense rows of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# isort: off
from onnxprune.kernels.addresses import clear, f32, float_of, i8, i32, u8, u16, u32
from onnxprune.kernels.tables import (
    FORMAT, M, K, GROUPS, C, KH, KW, N, BLOCK, ALPHA, VALUES, CODE, SCALE, INDICES, INDPTR, INDEX_BYTES, NNZ, CSR, BSR,
    FLOAT32, BFLOAT16, FLOAT16, INT8, QUANTIZED, RESULT, SIGNED, X_SCALE, X_ZERO, Y_SCALE, Y_ZERO, AS_FLOAT, AS_INT8,
)  # fmt: skip
# isort: on


@njit
def position_bits(m: int) -> int:
    """Bits of a position in a block of m."""
    b = 1
    while (1 << b) < m:
        b += 1
    return b


@njit
def column(d: Any, i: int) -> int:
    """Column i of a CSR weight, or column of tiles of a BSR weight."""
    if d[INDEX_BYTES] == 2:
        return int(u16(d[INDICES], i + 1)[i])
    return int(i32(d[INDICES], i + 1)[i])


@njit
def tiles_down(d: Any) -> int:
    """Rows of tiles of a group of a BSR weight."""
    return (d[M] // d[GROUPS] + d[N] - 1) // d[N]


@njit
def tiles_across(d: Any) -> int:
    """Columns of tiles of a BSR weight at one kernel position."""
    return (d[C] + d[BLOCK] - 1) // d[BLOCK]


@njit
def position(row: Any, i: int, bits: int) -> int:
    """Position i of a row's stream of bits."""
    out = 0
    for b in range(bits):
        at = i * bits + b
        out |= int((row[at >> 3] >> (at & 7)) & 1) << b
    return out


@njit
def width_of(d: Any) -> int:
    """Bytes of a stored value."""
    return 4 if d[CODE] == FLOAT32 else (1 if d[CODE] == INT8 else 2)


@njit
def code(d: Any, i: int) -> int:
    """The bits of stored value i."""
    if d[CODE] == FLOAT32:
        return int(u32(d[VALUES], i + 1)[i])
    if d[CODE] == INT8:
        return int(u8(d[VALUES], i + 1)[i])
    return int(u16(d[VALUES], i + 1)[i])


@njit
def number(d: Any, bits: int) -> Any:
    """A stored value as float32, without its scale."""
    if d[CODE] == INT8:
        return np.float32(bits - 256 if bits > 127 else bits)
    if d[CODE] == BFLOAT16:
        bits <<= 16
    elif d[CODE] == FLOAT16:
        if bits & 0x7C00 == 0x7C00:
            return np.float32(np.inf)  # or NaN
        size = float_of((bits & 0x7FFF) << 13) * np.float32(2.0**112)
        return -size if bits & 0x8000 else size
    return float_of(bits)


@njit
def factor(d: Any, row: int) -> float:
    """What the values of a row of W are to be multiplied with: alpha, and their scale."""
    out = float_of(d[ALPHA])
    if d[QUANTIZED]:  # in the order of onnxruntime
        out *= f32(d[X_SCALE], 1)[0]
    if d[SCALE]:
        out *= f32(d[SCALE], row + 1)[row]
    return out / f32(d[Y_SCALE], 1)[0] if d[RESULT] != AS_FLOAT else out


@njit
def x_zero(d: Any) -> int:
    """The zero point of X as uint8; int8 is shifted by 128."""
    return int(np.int64(i8(d[X_ZERO], 1)[0])) + 128 if d[SIGNED] else int(np.int64(u8(d[X_ZERO], 1)[0]))


@njit
def y_zero(d: Any) -> int:
    """The zero point of Y."""
    return int(np.int64(i8(d[Y_ZERO], 1)[0] if d[RESULT] == AS_INT8 else u8(d[Y_ZERO], 1)[0]))


@njit
def depth(d: Any) -> int:
    """Rows of X, and columns of W, as `spmm` reads them: K, or fours of them."""
    return (d[K] + 3) // 4 if d[QUANTIZED] else d[K]


@njit
def entries(d: Any) -> int:
    """Weights that are stored, or fours of them."""
    return d[NNZ] // 4 if d[QUANTIZED] else d[NNZ]


@njit
def unfold(d: Any, first: int, rows: int, out: Any) -> None:
    """Dense rows first ... first + rows of W as `[rows, K]`, the bits of the stored values."""
    for r in range(rows):
        clear(out[r], 0, d[K])
    if d[FORMAT] == CSR:
        indptr = i32(d[INDPTR], d[M] + 1)
        for r in range(rows):
            for i in range(indptr[first + r], indptr[first + r + 1]):
                out[r, column(d, i)] = code(d, i)
        return
    if d[FORMAT] == BSR:
        down, across, taps = tiles_down(d), tiles_across(d), d[KH] * d[KW]
        indptr = i32(d[INDPTR], d[GROUPS] * down + 1)
        for r in range(rows):
            group, inside = (first + r) // (d[M] // d[GROUPS]), (first + r) % (d[M] // d[GROUPS])
            line = group * down + inside // d[N]
            for i in range(indptr[line], indptr[line + 1]):
                tap, begin = column(d, i) // across, column(d, i) % across * d[BLOCK]
                for j in range(min(d[BLOCK], d[C] - begin)):
                    out[r, (begin + j) * taps + tap] = code(d, (i * d[N] + inside % d[N]) * d[BLOCK] + j)
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
                        out[r, at * taps + tap] = code(d, (s * blocks + b) * n + i)


@njit
def decode(d: Any, first: int, rows: int, out: Any) -> None:
    """Dense rows first ... first + rows of W as float32 `[rows, K]`, times their factors."""
    bits = out.view(np.uint32)
    unfold(d, first, rows, bits)
    for r in range(rows):
        times = factor(d, first + r)
        for c in range(d[K]):
            out[r, c] = number(d, int(bits[r, c])) * times


@njit
def words_of(d: Any, first: int, rows: int, out: Any) -> None:
    """Dense rows first ... first + rows of W as `spmm` reads them, uint32 `[rows, depth]`: the bits of float32 times
    the factors, or four int8; 0 where nothing is stored."""
    if not d[QUANTIZED]:
        decode(d, first, rows, out.view(np.float32))
        for r in range(rows):
            for c in range(d[K]):
                if out[r, c] == 1 << 31:  # -0.0
                    out[r, c] = 0
        return
    row = np.empty((1, d[K]), np.uint32)
    for r in range(rows):
        unfold(d, first + r, 1, row)
        clear(out[r], 0, depth(d))
        for c in range(d[K]):
            out[r, c >> 2] |= row[0, c] << np.uint32(8 * (c & 3))
