"""ONNX's own sparse tensors (COO): values, and the place of each in the flattened weight.

onnxruntime unfolds such tensors when it loads the model: they make the file smaller, and nothing faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from onnx import SparseTensorProto, TensorProto

from onnxprune.formats.format import Format, Plain
from onnxprune.graph.arrays import set_data
from onnxprune.graph.io import Model
from onnxprune.layers.layer import Layer


def sparse_initializers(model: Model, layers: Iterable[Layer]) -> tuple[Model, list[str]]:
    """A copy of the model that stores the layers' weights as ONNX sparse tensors (COO), and notes.

    An entry takes 12 bytes (value and int64 index), so a weight that would grow stays dense, with a note.
    """
    copy, notes = model.copy(), []
    for name in dict.fromkeys(layer.weight for layer in layers):
        w = copy.weights[name]
        flat = np.ascontiguousarray(w).reshape(-1)
        indices = np.flatnonzero(flat.view(np.uint32)).astype(np.int64)
        if indices.size * 12 >= w.nbytes:
            notes.append(f"{name}: stays dense: sparse, it would take {indices.size * 12} bytes, and not {w.nbytes}")
            continue
        sparse = SparseTensorProto(dims=w.shape)
        for tensor, array in ((sparse.values, flat[indices]), (sparse.indices, indices)):
            tensor.dims.extend(array.shape)
            tensor.data_type = TensorProto.FLOAT if array.dtype == np.float32 else TensorProto.INT64
            set_data(tensor, array)
        sparse.values.name = name
        copy.sparse[name] = sparse, w
    return copy, notes


def _write(model: Model, layers: Sequence[Layer], least: float) -> tuple[Model, list[str], list[str]]:
    copy, _ = sparse_initializers(model, layers)
    return copy, [layer.name for layer in layers if layer.weight in copy.sparse], []


SPARSE_INITIALIZER = Format(
    "sparse-initializer", "ONNX's own coordinates, smaller above about 70%", present=True,
    plain=Plain(
        write=_write, reason="as a sparse initializer it would be larger", inferred=False,
        note="onnx's checker takes sparse initializers, its full check (strict shape inference) does not",
    ),
)  # fmt: skip
