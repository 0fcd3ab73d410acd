"""Block rows: tiles of a matrix, or of each group of a Conv `(G, N, K)`, that hold anything.

>>> values, indices, indptr = pack_bsr(np.array([[[0, 0, 5], [0, 0, 6], [7, 0, 0]]], np.float32), 2, 2, 3)
>>> values.tolist(), indices.tolist(), indptr.tolist()  # tiles at the edges are filled up with zeros
([[[5.0, 0.0], [6.0, 0.0]], [[7.0, 0.0], [0.0, 0.0]]], [1, 0], [0, 1, 2])
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.formats.arrays import EXPORT, FLOATS, MAX_ELEMENTS, Types, bits_of, check_array, check_size, storable
from onnxprune.formats.format import Format, Packed, Storage
from onnxprune.formats.int8 import FOURS, is_quantized, no_int8_operator
from onnxprune.formats.patterns import BlockPattern, Pattern
from onnxprune.formats.pointers import ARRAYS, SOURCES, check_columns, index_type
from onnxprune.graph.arrays import Array
from onnxprune.graph.messages import fault, show
from onnxprune.graph.node import Node
from onnxprune.kernels.names import MAX_TILE
from onnxprune.layers.layer import Layer, from_rows

SIZES = ((8, 8), (4, 4), (8, 1), (1, 8), (4, 1), (1, 4))  # tiles that are looked for, outputs x inputs
INT8_SIZES = ((16, 16), (16, 4), *(size for size in SIZES if size[1] % FOURS == 0))  # in layers that compute in int8


def pack_bsr(rows: Array, r: int, c: int, segment: int) -> tuple[Array, Array, Array]:
    """Values `[nblocks, r, c]`, indices uint16 or int32 `[nblocks]`, indptr int32 `[G * ceil(N / r) + 1]` of rows
    `[G, N, K]`, float32 or codes; tiles do not cross a multiple of `segment` columns.

    Raises OptionError where r x c is no tile, or more tiles are left than int32 can count.
    """
    if not (1 <= r <= MAX_TILE and 1 <= c <= MAX_TILE):
        raise OptionError(f"block {r}x{c}: tiles have 1 to {MAX_TILE} rows and columns")
    storable(rows[0])
    tiles = _tiles(rows, r, c, segment).transpose(0, 2, 1, 3)  # [block rows, block columns, r, c]
    kept = (bits_of(tiles) != 0).any(axis=(2, 3))
    indptr = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(np.count_nonzero(kept, axis=1), out=indptr[1:])
    if indptr[-1] >= MAX_ELEMENTS:
        raise OptionError(f"bsr: {indptr[-1]} tiles of one matrix are left, it can hold {MAX_ELEMENTS - 1}")
    columns = np.nonzero(kept)[1].astype(index_type(kept.shape[1]))
    return tiles[kept], columns, indptr.astype(np.int32)


def _tiles(rows: Array, r: int, c: int, segment: int) -> Array:
    """`[block rows, r, block columns, c]` of rows `[G, N, K]`, filled up with zeros at the edges."""
    group, n, k = rows.shape
    down, across = -(-n // r), -(-segment // c)
    padded = np.zeros((group, down * r, k // segment, across * c), rows.dtype)
    padded[:, :n, :, :segment] = rows.reshape(group, n, -1, segment)
    return padded.reshape(group * down, r, -1, c)


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


def tiles_of(layer: Layer, kept: Array, r: int, c: int) -> Array:
    """Which tiles of a layer hold anything, bool `[block rows, block columns]`.

    kept: bool in the weight's own shape, where it is not zero.
    """
    return np.asarray(_tiles(layer.rows(kept), r, c, layer.segment).any(axis=(1, 3)))


def _smallest(layer: Layer, kept: Array, size: int) -> tuple[int, BlockPattern] | None:
    candidates = []
    for r, c in INT8_SIZES if is_quantized(layer) else SIZES:
        tiles = tiles_of(layer, kept, r, c)
        if not tiles.all():
            each = r * c * size + index_type(tiles.shape[1]).itemsize
            candidates.append((int(tiles.sum()) * each + 4 * (len(tiles) + 1), BlockPattern(r, c)))
    return min(candidates, key=lambda x: x[0], default=None)


def _given(pattern: Pattern | None) -> dict[str, Any]:
    assert isinstance(pattern, BlockPattern)
    return {"block": [pattern.rows, pattern.columns]}


def _read(where: str, node: Node) -> BlockPattern:
    block = node.attr("block")
    if len(block) != 2:
        raise fault(where, "a block of two integers", show(block), EXPORT)
    return BlockPattern(*block)


def _rows(packed: Packed) -> tuple[int, int, int]:
    """Shape of the rows `(G, N, K)`."""
    return packed.group, packed.shape[0] // packed.group, math.prod(packed.shape[1:])


def _pack(layer: Layer, codes: Array, pattern: Pattern | None) -> tuple[Array, ...]:
    assert isinstance(pattern, BlockPattern)
    return pack_bsr(layer.rows(codes), pattern.rows, pattern.columns, layer.segment)


def _check(where: str, packed: Packed, types: Types) -> None:
    pattern = packed.pattern
    assert isinstance(pattern, BlockPattern)
    arrays = (packed.arrays[name] for name in ARRAYS)
    check_bsr(where, _rows(packed), pattern.rows, pattern.columns, packed.shape[1], *arrays, types=types)


def _unpack(packed: Packed) -> Array:
    values, indices, indptr = (packed.arrays[name] for name in ARRAYS)
    return from_rows(unpack_bsr(values, indices, indptr, _rows(packed), packed.shape[1]), packed.shape)


# shape, group, block, values_float, indices, indptr -> W: a table `[block rows, block columns]` of the number of the
# tile, or of one of zeros behind the others, fetches the tiles
BODY = f"""
    block = Constant <value_ints: ints = @block> ()
    tall = Slice (block, zero, one)
    wide = Slice (block, one, two)
    filters = Slice (shape, zero, one)
    length = Slice (shape, one, two)
    size = ReduceProd <keepdims = 1> (shape)
    per_filter = Div (size, filters)
    taps = Div (per_filter, length)
    rows = Div (filters, group)
    tall_less = Sub (tall, one)
    rows_up = Add (rows, tall_less)
    down = Div (rows_up, tall)
    wide_less = Sub (wide, one)
    length_up = Add (length, wide_less)
    across = Div (length_up, wide)
    columns = Mul (taps, across)
    outputs = Mul (group, down)
    {SOURCES}
    dims = Shape (values_float)
    none = Slice (dims, zero, one)
    sources_wide = Cast <to = 7> (sources)
    numbers = Where (used, sources_wide, none)
    zeros = ConstantOfShape <value = int64[1] {{0}}> (padded_shape)
    blank = Add (zeros, none)
    padded = ScatterElements <axis = 1> (blank, targets, numbers)
    table = Slice (padded, zero, columns, one)
    tile_shape = Concat <axis = 0> (one, block)
    no_tile = ConstantOfShape <value = float[1] {{0}}> (tile_shape)
    tiles_safe = Concat <axis = 0> (values_float, no_tile)
    tiles = Gather <axis = 0> (tiles_safe, table)
    any = Constant <value_ints = [-1]> ()
    by_tile = Concat <axis = 0> (any, taps, across, block)
    tiles_of = Reshape (tiles, by_tile)
    in_rows = Transpose <perm = [0, 3, 1, 2, 4]> (tiles_of)
    tall_all = Mul (down, tall)
    wide_all = Mul (across, wide)
    by_row = Concat <axis = 0> (group, tall_all, taps, wide_all)
    rows_padded = Reshape (in_rows, by_row)
    ends = Concat <axis = 0> (rows, length)
    starts = Constant <value_ints = [0, 0]> ()
    cut = Constant <value_ints = [1, 3]> ()
    rows_of = Slice (rows_padded, starts, ends, cut)
    channels_first = Transpose <perm = [0, 1, 3, 2]> (rows_of)
    decoded_all = Reshape (channels_first, shape)
"""

MATRIX = "group = Constant <value_ints = [1]> ()"

CONV = """
    group_scalar = Constant <value_int: int = @group> ()
    group_shape = Constant <value_ints = [-1]> ()
    group = Reshape (group_scalar, group_shape)
"""

BSR = Format(
    "bsr", "tiles in operators of ours, for all layers", pattern="block:RxC", present=True, refuses=no_int8_operator,
    needs="--format bsr stores tiles of weights; make some with --pattern block:4x4 --sparsity 0.7",
    storage=Storage(
        name="Bsr", version=3, arrays=ARRAYS, attributes={"block": list}, given=_given, read=_read, pack=_pack,
        check=_check, unpack=_unpack, smallest=_smallest, none="no tile is zero", quantizes=True,
        body=lambda product: (CONV if product == "Conv" else MATRIX) + BODY,
    ),
)  # fmt: skip
