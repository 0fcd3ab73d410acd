"""What may be wrong with a weight that a file says: nothing of it is believed before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# isort: off
from onnxprune.kernels.addresses import f32, i32, u8
from onnxprune.kernels.stored import (
    position_bits, column, tiles_down, tiles_across, position, code, number, factor,
)  # fmt: skip
from onnxprune.kernels.tables import (
    FORMAT, M, K, GROUPS, C, KH, KW, N, BLOCK, SCALE, INDICES, INDPTR, BIAS, NNZ, DETAIL, CSR, BSR, NO_FAULT,
    BAD_VALUE, BAD_BIAS, BAD_START, BAD_ORDER, BAD_COUNT, BAD_END, BAD_INDEX, BAD_INDEX_ORDER, BAD_POSITION,
    BAD_POSITION_ORDER, VALUE_BEYOND_ROW, BAD_REST, BAD_SCALE, VALUE_BEYOND_EDGE, BAD_X_SCALE, BAD_Y_SCALE, BAD_FACTOR,
    QUANTIZED, RESULT, X_SCALE, Y_SCALE, AS_FLOAT,
)  # fmt: skip
# isort: on


@njit
def check_columns(d: Any, rows: int, columns: int, count: int) -> int:
    """NO_FAULT, or what is wrong with row pointers and columns of `count` entries."""
    indptr = i32(d[INDPTR], rows + 1)
    if indptr[0] != 0:
        return BAD_START
    for r in range(rows):
        d[DETAIL] = r
        if indptr[r + 1] < indptr[r]:
            return BAD_ORDER
        if indptr[r + 1] > count:
            return BAD_COUNT
    if indptr[rows] != count:
        return BAD_END
    for r in range(rows):
        before = -1
        for i in range(indptr[r], indptr[r + 1]):
            d[DETAIL] = i
            c = column(d, i)
            if c < 0 or c >= columns:
                return BAD_INDEX
            if c <= before:
                return BAD_INDEX_ORDER
            before = c
    return NO_FAULT


@njit
def check_edges(d: Any) -> int:
    """NO_FAULT, or VALUE_BEYOND_EDGE where a tile holds something beyond the last row or channel."""
    down, across, stored = tiles_down(d), tiles_across(d), d[N] * d[BLOCK]
    indptr = i32(d[INDPTR], d[GROUPS] * down + 1)
    for line in range(d[GROUPS] * down):
        for i in range(indptr[line], indptr[line + 1]):
            rows = d[M] // d[GROUPS] - line % down * d[N]
            columns = d[C] - column(d, i) % across * d[BLOCK]
            if rows >= d[N] and columns >= d[BLOCK]:
                continue
            d[DETAIL] = i
            for at in range(stored):
                if (at // d[BLOCK] >= rows or at % d[BLOCK] >= columns) and number(d, code(d, i * stored + at)) != 0:
                    return VALUE_BEYOND_EDGE
    return NO_FAULT


@njit
def positive(address: int) -> bool:
    """Whether a float32 is finite and above 0."""
    x = f32(address, 1)[0]
    return bool(x > 0 and np.isfinite(x))


@njit
def check_factors(d: Any) -> int:
    """NO_FAULT, or what is wrong with the scales of X and Y, and with what they make with those of W."""
    if not positive(d[X_SCALE]):
        return BAD_X_SCALE
    if d[RESULT] != AS_FLOAT and not positive(d[Y_SCALE]):
        return BAD_Y_SCALE
    for r in range(d[M]):
        if not np.isfinite(factor(d, r)):
            d[DETAIL] = r
            return BAD_FACTOR
    return NO_FAULT


@njit
def check(d: Any) -> int:
    """NO_FAULT, or what is wrong (FAULTS); desc[DETAIL] says where."""
    for i in range(d[NNZ]):
        if not np.isfinite(number(d, code(d, i))):
            d[DETAIL] = i
            return BAD_VALUE
    if d[SCALE]:
        scale = f32(d[SCALE], d[M])
        for r in range(d[M]):
            if not (scale[r] > 0 and np.isfinite(scale[r])):
                d[DETAIL] = r
                return BAD_SCALE
    if d[QUANTIZED]:
        fault = check_factors(d)
        if fault != NO_FAULT:
            return fault
    else:
        bias = f32(d[BIAS], d[M])
        for i in range(d[M]):
            if not np.isfinite(bias[i]):
                d[DETAIL] = i
                return BAD_BIAS
    if d[FORMAT] == CSR:
        return check_columns(d, d[M], d[K], d[NNZ])
    if d[FORMAT] == BSR:
        rows, columns = d[GROUPS] * tiles_down(d), d[KH] * d[KW] * tiles_across(d)
        fault = check_columns(d, rows, columns, d[NNZ] // (d[N] * d[BLOCK]))
        return check_edges(d) if fault == NO_FAULT else fault
    n, m, taps = d[N], d[BLOCK], d[KH] * d[KW]
    length = d[C]
    blocks = (length + m - 1) // m
    bits = position_bits(m)
    row_bytes = (blocks * n * bits + 7) // 8
    for s in range(d[M] * taps):
        row = u8(d[INDICES] + s * row_bytes, row_bytes)
        d[DETAIL] = s
        for b in range(blocks):
            before = -1
            for i in range(n):
                p = position(row, b * n + i, bits)
                if p >= m:
                    return BAD_POSITION
                if p <= before:
                    return BAD_POSITION_ORDER
                if b * m + p >= length and number(d, code(d, (s * blocks + b) * n + i)) != 0:
                    return VALUE_BEYOND_ROW
                before = p
        for at in range(blocks * n * bits, row_bytes * 8):
            if (row[at >> 3] >> (at & 7)) & 1:
                return BAD_REST
    return NO_FAULT
