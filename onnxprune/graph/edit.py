"""A model under change: names that nothing has, new constants, and the removal of what nothing reads any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

from onnxprune.graph import folds
from onnxprune.graph.arrays import DTYPES, Array, set_tensor
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.links import read_counts
from onnxprune.graph.protos import is_constant

WIDE = (TensorProto.DOUBLE, TensorProto.BFLOAT16)  # types that onnxruntime has few kernels for


class Edit:
    """A copy of a model; the original and its arrays are never written to."""

    def __init__(self, model: Model) -> None:
        self.model = model.copy()
        self.names = set(model.weights) | folds.names(model.folds)
        self.node_names: set[str] = set()
        for graph in graphs(model.proto.graph):
            self.names.update(value.name for value in (*graph.input, *graph.output))
            for node in graph.node:
                self.node_names.add(node.name)
                self.names.update(node.input, node.output)
        self._zeros: dict[int, str] = {}

    @property
    def graph(self) -> GraphProto:
        """The main graph."""
        return self.model.proto.graph

    def fresh(self, base: str) -> str:
        """A name for a value that no value of the model has, `base` or `base_1`, ...; it is taken from now on."""
        return _fresh(base, self.names)

    def fresh_node(self, base: str) -> str:
        """A name for a node that no node of the model has; it is taken from now on."""
        return _fresh(base, self.node_names)

    def constant(self, base: str, array: Array) -> str:
        """Add an initializer to the main graph; its name."""
        name = self.fresh(base)
        add_initializer(self.model, name, array)
        return name

    def zeros(self, count: int) -> str:
        """An initializer of so many zeros, float32, shared by all that ask."""
        if count not in self._zeros:
            self._zeros[count] = self.constant(f"zeros_{count}", np.zeros(count, np.float32))
        return self._zeros[count]

    def drop(self, names: Iterable[str]) -> None:
        """Remove those of the constants that nothing reads, and what is said of values that are gone."""
        proto = self.model.proto
        unread = set(names) & set(self.model.weights) - set(read_counts(proto.graph))
        for graph in graphs(proto.graph):
            for name in unread:
                self.model.weights.pop(name, None)
                self.model.sparse.pop(name, None)
            _keep(graph.initializer, [t for t in graph.initializer if t.name not in unread])
            _keep(graph.input, [i for i in graph.input if i.name not in unread])
            nodes = [n for n in graph.node if not (is_constant(n) and n.output[0] in unread)]
            _keep(graph.node, nodes)
            known = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
            known.update(output for node in graph.node for output in node.output)
            _keep(graph.value_info, [i for i in graph.value_info if i.name in known])


def add_initializer(model: Model, name: str, array: Array) -> None:
    """Add an initializer of a new name to the main graph, where bodies can read it too. No `Constant` node: tools that
    quantize look for biases among the initializers."""
    array = np.asarray(array)
    if not array.flags.c_contiguous:  # ascontiguousarray makes a vector of a scalar
        array = np.ascontiguousarray(array)
    array = array.view()
    array.flags.writeable = False
    model.weights[name] = array
    set_tensor(name, model.proto.graph.initializer.add(name=name), array)
    if model.proto.ir_version < 4:  # there an initializer must be listed
        kind = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        model.proto.graph.input.add(name=name, type=kind)


def as_float32(model: Model, types: Collection[int] = WIDE) -> Model:
    """A copy in which values of some types are float32; by default of those that onnxruntime lacks kernels for (float64
    Conv, bfloat16)."""
    out = model.copy()
    for name, w in model.weights.items():
        if helper.np_dtype_to_tensor_dtype(w.dtype) in types:
            out.weights[name] = w.astype(np.float32)
    for graph in graphs(out.proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in types:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for a in node.attribute:
                if a.name in ("to", "dtype") and a.i in types:
                    a.i = TensorProto.FLOAT
                if a.type == AttributeProto.TENSOR and a.t.data_type in types and node.output[0] not in out.weights:
                    a.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(a.t).astype(np.float32), a.t.name))
    return out


def float32_feeds(feeds: Mapping[str, Array], types: Collection[int] = WIDE) -> dict[str, Array]:
    """Inputs of a model as its `as_float32` takes them."""
    wide = {DTYPES[t] for t in types}
    return {name: x.astype(np.float32) if x.dtype in wide else x for name, x in feeds.items()}


def _keep(field: object, kept: list[object]) -> None:
    if len(kept) != len(field):  # type: ignore[arg-type]
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in kept]  # type: ignore[attr-defined]
        del field[:]  # type: ignore[attr-defined]
        field.extend(copies)  # type: ignore[attr-defined]


def _fresh(base: str, taken: set[str]) -> str:
    name, k = base, 1
    while name in taken:
        name, k = f"{base}_{k}", k + 1
    taken.add(name)
    return name
