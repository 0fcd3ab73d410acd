"""Block rows: tiles of a matrix, or of each group of a Conv `(G, N, K)`, that hold anything."""

from __future__ import annotations

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.formats.arrays import (
    EXPORT,
    FLOATS,
    MAX_ELEMENTS,
    Types,
    bits_of,
    check_array,
    check_columns,
    check_size,
    index_type,
    storable,
)
from onnxprune.graph.arrays import Array
from onnxprune.graph.messages import fault
from onnxprune.kernels.names import MAX_TILE


def pack_bsr(rows: Array, r: int, c: int, segment: int) -> tuple[Array, Array, Array]:
    """Values `[nblocks, r, c]`, indices uint16 or int32 `[nblocks]`, indptr int32 `[G * ceil(N / r) + 1]` of rows
    `[G, N, K]`, float32 or codes; tiles do not cross a multiple of `segment` columns.

    Raises OptionError where r x c is no tile, or more tiles are left than int32 can count.
    """
    if not (1 <= r <= MAX_TILE and 1 <= c <= MAX_TILE):
        raise OptionError(f"block {r}x{c}: tiles have 1 to {MAX_TILE} rows and columns")
    group, n, k = rows.shape
    storable(rows[0])
    down, across = -(-n // r), -(-segment // c)
    padded = np.zeros((group, down * r, k // segment, across * c), rows.dtype)
    padded[:, :n, :, :segment] = rows.reshape(group, n, -1, segment)
    tiles = padded.reshape(group * down, r, -1, c).transpose(0, 2, 1, 3)  # [block rows, block columns, r, c]
    kept = (bits_of(tiles) != 0).any(axis=(2, 3))
    indptr = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(np.count_nonzero(kept, axis=1), out=indptr[1:])
    if indptr[-1] >= MAX_ELEMENTS:
        raise OptionError(f"bsr: {indptr[-1]} tiles of one matrix are left, it can hold {MAX_ELEMENTS - 1}")
    columns = np.nonzero(kept)[1].astype(index_type(kept.shape[1]))
    return tiles[kept], columns, indptr.astype(np.int32)


def unpack_bsr(values: Array, indices: Array, indptr: Array, shape: tuple[int, int, int], segment: int) -> Array:
    """Rows `[G, N, K]`, of the type of the values, from what `check_bsr` has let through."""
    group, n, k = shape
    _, r, c = values.shape
    down, across = -(-n // r), -(-segment // c)
    out = np.zeros((group, n, k // segment, segment), values.dtype)
    g, top = np.divmod(np.repeat(np.arange(group * down), np.diff(indptr)), down)
    part, left = np.divmod(indices.astype(np.int64), across)
    for i, j in np.ndindex(r, c):
        y, x = top * r + i, left * c + j
        inside = (y < n) & (x < segment)
        out[g[inside], y[inside], part[inside], x[inside]] = values[inside, i, j]
    return out.reshape(shape)


def check_bsr(
    where: str, shape: tuple[int, int, int], r: int, c: int, segment: int, values: Array, indices: Array,
    indptr: Array, *, types: Types = FLOATS,
) -> None:  # fmt: skip
    """Raise ModelFileError, naming `where` and the array, unless the arrays are rows `[G, N, K]` in tiles of r x c.

    types: that the values may have.
    """
    if not (1 <= r <= MAX_TILE and 1 <= c <= MAX_TILE):
        raise fault(where, f"a block of 1 to {MAX_TILE} by 1 to {MAX_TILE}", f"{r} by {c}", EXPORT)
    check_size(where, shape)
    group, n, k = shape
    down, across = -(-n // r), -(-segment // c)
    count = len(values) if values.ndim else 0
    check_array(where, "values", values, types, (count, r, c))
    check_columns(where, (group * down, k // segment * across), count, indices, indptr)
    lowest = np.repeat(np.arange(group * down) % down == down - 1, np.diff(indptr))
    below, right = values[lowest, n - (down - 1) * r :], values[indices.astype(np.int64) % across == across - 1]
    if (below != 0).any() or (right[:, :, segment - (across - 1) * c :] != 0).any():
        raise fault(where, "values that are 0 beyond the edges of the weight", "others", EXPORT)
