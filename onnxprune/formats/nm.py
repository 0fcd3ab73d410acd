"""N of every M weights along the rows `(S, L)`: their values, and where they stand in bits."""

from __future__ import annotations

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.formats.arrays import (
    EXPORT,
    FLOATS,
    Types,
    bits_of,
    check_array,
    check_size,
    storable,
)
from onnxprune.graph.arrays import Array
from onnxprune.graph.messages import fault


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
        found = n - int(free[row, block, 0])
        raise OptionError(f"pattern {n}:{m}: block {block} of row {row} holds {found} weights that are not +0.0")
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
