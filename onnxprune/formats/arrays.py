"""What the formats share: types of indices, and checks of arrays that a file holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.messages import fault
from onnxprune.kernels.names import VALUES, WIDE

MAX_ELEMENTS = 1 << 31  # of a weight; row pointers are int32
EXPORT = "convert the dense model again"
FLOATS = tuple(dtype for name, dtype in VALUES.items() if name != "int8")  # values without a scale


def index_type(k: int) -> np.dtype[Any]:
    """Type of the column indices of a matrix with k columns."""
    return np.dtype(np.uint16 if k <= WIDE else np.int32)


Types = Sequence[np.dtype[Any]]


def check_columns(where: str, shape: tuple[int, int], nnz: int, indices: Array, indptr: Array) -> None:
    """Row pointers and columns of nnz entries of a matrix of this shape."""
    rows, columns = shape
    check_array(where, "indices", indices, [index_type(columns)], (nnz,))
    check_array(where, "indptr", indptr, [np.dtype(np.int32)], (rows + 1,))
    if indptr[0] != 0 or indptr[-1] != nnz:
        raise fault(where, f"indptr from 0 to {nnz}", f"{indptr[0]} to {indptr[-1]}", EXPORT)
    counts = np.diff(indptr.astype(np.int64))
    if (counts < 0).any():
        raise fault(where, "indptr that never falls", f"a fall at row {int(np.argmax(counts < 0))}", EXPORT)
    if nnz == 0:
        return
    if indices.max() >= columns or indices.min() < 0:
        raise fault(where, f"indices from 0 to {columns - 1}", f"{indices.min()} to {indices.max()}", EXPORT)
    rising = np.diff(indices.astype(np.int32)) > 0
    first = indptr[1:-1]  # where a row starts, the next index may be lower
    rising[first[(first > 0) & (first < nnz)] - 1] = True
    if not rising.all():
        at = int(np.argmin(rising)) + 1
        row = int(np.searchsorted(indptr, at, "right")) - 1
        raise fault(
            where, "indices that rise within a row", f"{indices[at]} after {indices[at - 1]}, row {row}", EXPORT
        )


def storable(w: Array) -> Array:
    if w.dtype not in VALUES.values() or w.ndim != 2:
        raise OptionError(f"a sparse weight must be {' or '.join(VALUES)} of rank 2, not {w.dtype} of rank {w.ndim}")
    return w


def bits_of(w: Array) -> Array:
    """The bits of every weight, as unsigned integers."""
    return w.view(np.dtype(f"u{w.itemsize}"))


def check_size(where: str, shape: Sequence[int]) -> None:
    if min(shape) < 1 or math.prod(shape) >= MAX_ELEMENTS:
        raise fault(where, f"a shape of 1 to {MAX_ELEMENTS - 1} weights", list(shape), EXPORT)


def check_array(where: str, name: str, array: Array, types: Types, shape: tuple[int, ...]) -> None:
    if array.dtype not in types or array.shape != shape:
        expected = f"{name} of {' or '.join(map(str, types))} {list(shape)}"
        raise fault(where, expected, f"{array.dtype} {list(array.shape)}", EXPORT)


def matrix_of(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def rows_of(shape: Sequence[int], group: int) -> tuple[int, int, int]:
    """Of `to_rows`."""
    return group, shape[0] // group, math.prod(shape[1:])
