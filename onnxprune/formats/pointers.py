"""What formats with row pointers share: entries row after row, the column of each, and where every row starts.

values `[nnz, ...]`, indices uint16 or int32 `[nnz]`, strictly rising within a row, indptr int32 `[rows + 1]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.formats.arrays import EXPORT, check_array
from onnxprune.graph.arrays import Array
from onnxprune.graph.messages import fault
from onnxprune.kernels.names import WIDE

ARRAYS = ("values", "indices", "indptr")


def index_type(k: int) -> np.dtype[Any]:
    """Type of the column indices of a matrix with k columns."""
    return np.dtype(np.uint16 if k <= WIDE else np.int32)


def check_columns(where: str, shape: tuple[int, int], nnz: int, indices: Array, indptr: Array) -> None:
    """Row pointers and columns of nnz entries of a matrix of this shape; raises `ModelFileError`."""
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


# in a function: indices, indptr, columns, outputs -> of every row, padded to the longest: `sources` among the entries,
# `targets` among the columns, which of them are `used`; `padded_shape` of the matrix with room for the others.
# onnxruntime does not fold operators such as NonZero, whose output has a shape that depends on values.
SOURCES = """
    row_starts = Slice (indptr, zero, last)
    row_ends = Slice (indptr, one, far)
    counts = Sub (row_ends, row_starts)
    longest = ReduceMax <keepdims = 0> (counts)
    start = Constant <value = int32 {0}> ()
    step = Constant <value = int32 {1}> ()
    places = Range (start, longest, step)
    upright = Constant <value_ints = [-1, 1]> ()
    counts_upright = Reshape (counts, upright)
    used = Less (places, counts_upright)
    starts_upright = Reshape (row_starts, upright)
    sources_all = Add (starts_upright, places)
    sources = Where (used, sources_all, start)
    no_index = Constant <value = int64[1] {0}> ()
    indices_wide = Cast <to = 7> (indices)
    indices_safe = Concat <axis = 0> (indices_wide, no_index)
    indices_all = Gather (indices_safe, sources)
    places_wide = Cast <to = 7> (places)
    behind = Add (places_wide, columns)
    targets = Where (used, indices_all, behind)
    longest_wide = Cast <to = 7> (longest)
    width = Add (columns, longest_wide)
    padded_shape = Concat <axis = 0> (outputs, width)
"""
