"""Compressed rows: values of a matrix `(M, K)` row after row, with their columns.

>>> values, indices, indptr = pack_csr(np.array([[0, 2, 0], [0, 0, 0], [3, 0, 4]], np.float32))
>>> values.tolist(), indices.tolist(), indptr.tolist()
([2.0, 3.0, 4.0], [1, 0, 2], [0, 1, 1, 3])
"""

from __future__ import annotations

import math

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.formats.arrays import FLOATS, MAX_ELEMENTS, Types, bits_of, check_array, check_size, storable
from onnxprune.formats.format import Format, Packed, Storage
from onnxprune.formats.patterns import Pattern
from onnxprune.formats.pointers import ARRAYS, SOURCES, check_columns, index_type
from onnxprune.graph.arrays import Array
from onnxprune.layers.layer import Layer


def pack_csr(w: Array) -> tuple[Array, Array, Array]:
    """Values `[nnz]`, indices uint16 or int32 `[nnz]`, indptr int32 `[M + 1]` of W `[M, K]`, float32 or codes.

    Raises OptionError where more weights are left than int32 can count.
    """
    w = np.ascontiguousarray(storable(w))
    kept = bits_of(w) != 0
    indptr = np.zeros(len(w) + 1, np.int64)
    np.cumsum(np.count_nonzero(kept, axis=1), out=indptr[1:])
    if indptr[-1] >= MAX_ELEMENTS:
        raise OptionError(f"csr: {indptr[-1]} weights of one matrix are left, it can hold {MAX_ELEMENTS - 1}")
    columns = np.nonzero(kept)[1].astype(index_type(w.shape[1]))
    return w[kept], columns, indptr.astype(np.int32)


def unpack_csr(values: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> Array:
    """W `[M, K]`, of the type of the values, from what `check_csr` has let through."""
    w = np.zeros(shape, values.dtype)
    w[np.repeat(np.arange(shape[0]), np.diff(indptr)), indices] = values
    return w


def check_csr(
    where: str, shape: tuple[int, int], values: Array, indices: Array, indptr: Array, *, types: Types = FLOATS
) -> None:
    """Raise ModelFileError, naming `where` and the array, unless the arrays are W `[M, K]` as CSR.

    types: that the values may have.
    """
    check_size(where, shape)
    rows, columns = shape
    nnz = values.size
    check_array(where, "values", values, types, (nnz,))
    check_columns(where, (rows, columns), nnz, indices, indptr)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """`(M, K)`."""
    return shape[0], math.prod(shape[1:])


def _pack(layer: Layer, codes: Array, pattern: Pattern | None) -> tuple[Array, ...]:
    return pack_csr(layer.matrix(codes))


def _check(where: str, packed: Packed, types: Types) -> None:
    check_csr(where, _matrix(packed.shape), *(packed.arrays[name] for name in ARRAYS), types=types)


def _unpack(packed: Packed) -> Array:
    values, indices, indptr = (packed.arrays[name] for name in ARRAYS)
    return unpack_csr(values, indices, indptr, _matrix(packed.shape)).reshape(packed.shape)


def _smallest(layer: Layer, kept: Array, size: int) -> tuple[int, None]:
    rows, columns = _matrix(layer.shape)
    return int(kept.sum()) * (size + index_type(columns).itemsize) + 4 * (rows + 1), None


# shape, values_float, indices, indptr -> W; every row is padded to the longest, with zeros behind the matrix
BODY = f"""
    rest = Slice (shape, one, far)
    columns = ReduceProd <keepdims = 1> (rest)
    outputs = Slice (shape, zero, one)
    {SOURCES}
    no_value = Constant <value = float[1] {{0}}> ()
    values_safe = Concat <axis = 0> (values_float, no_value)
    values_all = Gather (values_safe, sources)
    zero_value = Constant <value = float {{0}}> ()
    stored = Where (used, values_all, zero_value)
    zeros = ConstantOfShape <value = float[1] {{0}}> (padded_shape)
    padded = ScatterElements <axis = 1> (zeros, targets, stored)
    decoded = Slice (padded, zero, columns, one)
    decoded_all = Reshape (decoded, shape)
"""

CSR = Format(
    "csr", "compressed rows in operators of ours, for all layers", present=True,
    storage=Storage(
        name="Csr", version=1, arrays=ARRAYS, pack=_pack, check=_check, unpack=_unpack, smallest=_smallest,
        body=lambda product: BODY,
    ),
)  # fmt: skip
