"""ONNX's own sparse tensors (COO): values, and the place of each in the flattened weight.

onnxruntime unfolds such tensors when it loads the model: they make the file smaller, and nothing faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from onnx import SparseTensorProto

from onnxprune.formats.arrays import bits_of
from onnxprune.formats.format import Format, Plain
from onnxprune.graph.arrays import set_data, stored_bits, type_code
from onnxprune.graph.io import Model
from onnxprune.layers.layer import Layer


def sparse_initializers(model: Model, layers: Iterable[Layer]) -> tuple[Model, list[str]]:
    """A copy of the model that stores the layers' weights as ONNX sparse tensors (COO), and notes.

    An entry takes a value and an int64 index, so a weight that would grow stays dense, with a note.
    """
    copy, notes = model.copy(), []
    for name in dict.fromkeys(layer.initializer for layer in layers):
        w = np.asarray(copy.weights[name])
        flat = np.ascontiguousarray(w).reshape(-1)
        indices = np.flatnonzero(bits_of(flat)).astype(np.int64)
        size = indices.size * (w.itemsize + indices.itemsize)
        if size >= w.nbytes:
            notes.append(f"{name}: stays dense: sparse, it would take {size} bytes, and not {w.nbytes}")
            continue
        sparse = SparseTensorProto(dims=w.shape)
        for tensor, array in ((sparse.values, flat[indices]), (sparse.indices, indices)):
            tensor.dims.extend(array.shape)
            tensor.data_type = type_code(name, array)
            set_data(tensor, array)
        sparse.values.name = name
        copy.sparse[name] = sparse, w
    return copy, notes


def _write(model: Model, layers: Sequence[Layer], least: float) -> tuple[Model, list[str], list[str]]:
    copy, _ = sparse_initializers(model, layers)
    return copy, [layer.name for layer in layers if layer.initializer in copy.sparse], []


def _refuses(layer: Layer) -> str:
    """Why coordinates cannot hold a layer."""
    stored = layer.stored
    if stored is not None and stored_bits(np.empty(0, stored.held)) < 8:
        return f"onnxruntime reads no sparse initializers of {stored.held}"
    if stored is not None and stored.offset:
        return "its zeros are stored as the zero point, and coordinates leave out nothing but 0"
    return ""


SPARSE_INITIALIZER = Format(
    "sparse-initializer", "ONNX's own coordinates, smaller above about 70%", present=True, refuses=_refuses,
    plain=Plain(
        write=_write, reason="as a sparse initializer it would be larger", inferred=False,
        note="onnx's checker takes sparse initializers, its full check (strict shape inference) does not",
    ),
)  # fmt: skip
