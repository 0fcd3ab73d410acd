"""N of every M weights along the rows `(S, L)`: their values, and where they stand in bits.

>>> values, positions = pack_nm(np.array([[0, 5, 0, 6]], np.float32), 2, 4)
>>> values.tolist(), positions.tolist()  # 1 + 4 * 3
([[[5.0, 6.0]]], [[13]])
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.formats.arrays import EXPORT, FLOATS, Types, bits_of, check_array, check_size, storable
from onnxprune.formats.format import Format, Packed, Storage
from onnxprune.formats.patterns import NMPattern, Pattern
from onnxprune.graph.arrays import Array
from onnxprune.graph.messages import fault
from onnxprune.graph.node import Node
from onnxprune.layers.layer import Layer, from_blocks

ARRAYS = ("values", "positions")
SIZES = (2, 4, 8, 16, 32)  # M of the patterns that are looked for
READ = (2, 4)  # the pattern that others read, too


def position_bits(m: int) -> int:
    """Bits of one position in a block of m.

    >>> [position_bits(m) for m in (2, 3, 4, 8, 256)]
    [1, 2, 2, 3, 8]
    """
    return max(1, (m - 1).bit_length())


def pack_nm(blocks: Array, n: int, m: int) -> tuple[Array, Array]:
    """Values `[S, B, n]` and positions uint8 `[S, ceil(B * n * bits / 8)]` of rows `[S, L]`, float32 or codes.

    B = ceil(L / m). A block with fewer than n weights is filled up with the first of its free places.
    Raises OptionError where n:m is no pattern, or a block holds more than n weights.
    """
    if not (1 <= n <= m and 2 <= m <= 256):
        raise OptionError(f"pattern {n}:{m}: 1 <= n <= m and 2 <= m <= 256 must hold")
    blocks = storable(blocks)
    rows, length = blocks.shape
    count = -(-length // m)
    padded = np.zeros((rows, count * m), blocks.dtype)
    padded[:, :length] = blocks
    padded = padded.reshape(rows, count, m)
    chosen = bits_of(padded) != 0
    free = n - np.count_nonzero(chosen, axis=2, keepdims=True)
    if (free < 0).any():
        row, block, _ = np.argwhere(free < 0)[0]
        filled = n - int(free[row, block, 0])
        raise OptionError(f"pattern {n}:{m}: block {block} of row {row} holds {filled} weights that are not +0.0")
    for i in range(m):  # the first `free` places without a weight
        place = chosen[:, :, i]
        free -= ~place[:, :, None]
        place |= free[:, :, 0] >= 0
    places = np.nonzero(chosen)[2].astype(np.uint8).reshape(rows, count * n, 1)
    bits = (places >> np.arange(position_bits(m), dtype=np.uint8)) & 1
    return padded[chosen].reshape(rows, count, n), np.packbits(bits.reshape(rows, -1), axis=1, bitorder="little")


def unpack_positions(positions: Array, count: int, n: int, m: int) -> Array:
    """Places uint8 `[S, B, n]` from their bits `[S, bytes]`; count: B."""
    bits = position_bits(m)
    stream = np.unpackbits(positions, axis=1, count=count * n * bits, bitorder="little")
    places = stream[:, 0::bits]
    for i in range(1, bits):
        places = places | (stream[:, i::bits] << np.uint8(i))
    return places.reshape(len(positions), count, n)


def unpack_nm(values: Array, positions: Array, m: int, length: int) -> Array:
    """Rows `[S, L]`, of the type of the values, from what `check_nm` has let through; length: L."""
    rows, count, n = values.shape
    padded = np.zeros((rows, count, m), values.dtype)
    np.put_along_axis(padded, unpack_positions(positions, count, n, m).astype(np.int64), values, axis=2)
    return padded.reshape(rows, count * m)[:, :length]


def check_nm(
    where: str, shape: tuple[int, int], n: int, m: int, values: Array, positions: Array, *, types: Types = FLOATS
) -> None:
    """Raise ModelFileError, naming `where` and the array, unless the arrays are rows `[S, L]` as n:m; shape: (S, L).

    types: that the values may have.
    """
    if not (1 <= n <= m and 2 <= m <= 256):
        raise fault(where, "a pattern n:m with 1 <= n <= m and 2 <= m <= 256", f"{n}:{m}", EXPORT)
    check_size(where, shape)
    rows, length = shape
    count = -(-length // m)
    used = count * n * position_bits(m)
    check_array(where, "values", values, types, (rows, count, n))
    check_array(where, "positions", positions, [np.dtype(np.uint8)], (rows, -(-used // 8)))
    if used % 8 and (positions[:, -1] >> np.uint8(used % 8)).any():
        raise fault(where, f"positions of {used} bits in a row, then zeros", "a bit that is set after them", EXPORT)
    places = unpack_positions(positions, count, n, m)
    if int(places.max()) >= m:
        raise fault(where, f"positions from 0 to {m - 1}", int(places.max()), EXPORT)
    wrong = places[:, :, 1:] <= places[:, :, :-1]
    if wrong.any():
        row, block, _ = np.argwhere(wrong)[0]
        found = places[row, block].tolist()
        raise fault(where, "positions that rise within a block", f"{found} in block {block} of row {row}", EXPORT)
    beyond = places[:, -1].astype(np.int64) + (count - 1) * m >= length
    if (values[:, -1][beyond] != 0).any():
        raise fault(where, f"values that are 0 beyond the {length} weights of a row", "others", EXPORT)


def patterns_of(layer: Layer, kept: Array) -> Iterator[NMPattern]:
    """Patterns that a layer's zeros hold: the least N for every M, where it is below M.

    kept: bool in the weight's own shape, where it is not zero.
    """
    blocks = layer.blocks(kept)
    rows, length = blocks.shape
    for m in SIZES:
        if m > length:
            return
        padded = np.zeros((rows, -(-length // m) * m), bool)
        padded[:, :length] = blocks
        n = max(1, int(padded.reshape(rows, -1, m).sum(2).max()))
        if n < m:
            yield NMPattern(n, m)


def _smallest(layer: Layer, kept: Array, size: int) -> tuple[int, NMPattern] | None:
    """2:4 where it holds, else the smallest."""
    candidates = []
    for pattern in patterns_of(layer, kept):
        count = -(-layer.shape[1] // pattern.m) * pattern.n
        each = count * size + -(-count * position_bits(pattern.m) // 8)
        candidates.append((math.prod(layer.shape) // layer.shape[1] * each, pattern))
    return min(candidates, key=lambda x: ((x[1].n, x[1].m) != READ, x[0]), default=None)


def _given(pattern: Pattern | None) -> dict[str, Any]:
    assert isinstance(pattern, NMPattern)
    return {"n": pattern.n, "m": pattern.m}


def _read(where: str, node: Node) -> NMPattern:
    return NMPattern(int(node.attr("n")), int(node.attr("m")))


def _pack(layer: Layer, codes: Array, pattern: Pattern | None) -> tuple[Array, ...]:
    assert isinstance(pattern, NMPattern)
    return pack_nm(layer.blocks(codes), pattern.n, pattern.m)


def _check(where: str, packed: Packed, types: Types) -> None:
    pattern, length = packed.pattern, packed.shape[1]
    assert isinstance(pattern, NMPattern)
    rows = math.prod(packed.shape) // length
    values, positions = (packed.arrays[name] for name in ARRAYS)
    check_nm(where, (rows, length), pattern.n, pattern.m, values, positions, types=types)


def _unpack(packed: Packed) -> Array:
    assert isinstance(packed.pattern, NMPattern)
    values, positions = (packed.arrays[name] for name in ARRAYS)
    return from_blocks(unpack_nm(values, positions, packed.pattern.m, packed.shape[1]), packed.shape)


# shape, n, m, values_float, positions -> rows [S, L]
BODY = """
    n = Constant <value_int: int = @n> ()
    m = Constant <value_int: int = @m> ()
    number = Constant <value_int = 1> ()
    length = Slice (shape, one, two)
    size = ReduceProd <keepdims = 1> (shape)
    rows = Div (size, length)
    up = Sub (m, number)
    room = Add (length, up)
    blocks = Div (room, m)
    powers = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    m_narrow = Cast <to = 6> (m)
    below = Less (powers, m_narrow)
    below_one = Cast <to = 7> (below)
    bits = ReduceSum <keepdims = 1> (below_one)
    stored = Mul (blocks, n)
    used = Mul (stored, bits)
    bytes = Cast <to = 6> (positions)
    split = Constant <value_ints = [0, -1, 1]> ()
    bytes_of = Reshape (bytes, split)
    shifted = Div (bytes_of, powers)
    base = Constant <value = int32 {2}> ()
    bit = Mod (shifted, base)
    any = Constant <value_ints = [-1]> ()
    by_row = Concat <axis = 0> (rows, any)
    stream_padded = Reshape (bit, by_row)
    stream = Slice (stream_padded, zero, used, one)
    stream_float = Cast <to = 1> (stream)
    by_bit = Concat <axis = 0> (any, bits)
    bit_table = Reshape (stream_float, by_bit)
    weights_of_bits = Slice (powers, zero, bits)
    weights_float = Cast <to = 1> (weights_of_bits)
    upright = Constant <value_ints = [-1, 1]> ()
    weights_upright = Reshape (weights_float, upright)
    places_float = MatMul (bit_table, weights_upright)
    places_flat = Cast <to = 7> (places_float)
    n_list = Reshape (n, any)
    m_list = Reshape (m, any)
    by_block = Concat <axis = 0> (rows, blocks, n_list)
    places = Reshape (places_flat, by_block)
    start = Constant <value_int = 0> ()
    blocks_scalar = Squeeze (blocks)
    numbers = Range (start, blocks_scalar, number)
    numbers_upright = Reshape (numbers, upright)
    block_start = Mul (numbers_upright, m)
    columns_of = Add (places, block_start)
    by_stored = Concat <axis = 0> (rows, stored)
    columns = Reshape (columns_of, by_stored)
    values_of = Reshape (values_float, by_stored)
    padded_length = Mul (blocks, m_list)
    padded_shape = Concat <axis = 0> (rows, padded_length)
    zeros = ConstantOfShape <value = float[1] {0}> (padded_shape)
    padded = ScatterElements <axis = 1> (zeros, columns, values_of)
    decoded = Slice (padded, zero, length, one)
"""

MATRIX = "decoded_all = Identity (decoded)"

CONV = """
    outputs = Slice (shape, zero, one)
    by_kernel = Concat <axis = 0> (outputs, any, length)
    kernels = Reshape (decoded, by_kernel)
    channels_first = Transpose <perm = [0, 2, 1]> (kernels)
    decoded_all = Reshape (channels_first, shape)
"""

NM = Format(
    "nm", "N of every M weights in operators of ours, for all layers", pattern="N:M", present=True,
    needs="--format nm stores N of every M weights; say which with --pattern 2:4",
    storage=Storage(
        name="Nm", version=1, arrays=ARRAYS, attributes={"n": int, "m": int}, given=_given, read=_read, pack=_pack,
        check=_check, unpack=_unpack, smallest=_smallest, none="no N:M pattern holds",
        body=lambda product: BODY + (CONV if product == "Conv" else MATRIX),
    ),
)  # fmt: skip
