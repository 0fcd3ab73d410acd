"""Compressed rows: values of a matrix `(M, K)` row after row, with their columns."""

from __future__ import annotations

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.formats.arrays import (
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
