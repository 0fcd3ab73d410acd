"""Walking the protobuf of a model, through all nested bodies: its graphs, its tensors, its constants, its names.

In go protos, whatever is in them; out come the parts of them themselves, so that an edit of a part edits the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.graph.arrays import Array
from onnxprune.graph.node import DEFAULT_DOMAINS

_SCALARS = {"value_float": "f", "value_floats": "floats", "value_int": "i", "value_ints": "ints"}


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the attributes of a node, not those nested in them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and the bodies nested in its nodes (If, Loop, Scan), outer first."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from graphs(body)


def tensors(proto: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every constant tensor with the value it defines: initializers and `value` of `Constant`, in graph order."""
    for graph in graphs(proto.graph):
        yield from ((tensor.name, tensor) for tensor in graph.initializer if tensor.name)
        for name, _, attribute in constants(graph):
            if attribute.name == "value" and attribute.HasField("t"):
                yield name, attribute.t


def all_tensors(body: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """Every TensorProto of a graph or function and of all nested bodies, whether or not it defines a value."""
    if isinstance(body, GraphProto):
        yield from body.initializer
        for sparse in body.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in body.node:
        yield from chain.from_iterable(map(attribute_tensors, node.attribute))
        yield from chain.from_iterable(map(all_tensors, bodies(node)))


def attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    """Every TensorProto of an attribute, but for those in its graphs."""
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
    for sparse in attribute.sparse_tensors:
        yield from (sparse.values, sparse.indices)


def is_constant(node: NodeProto) -> bool:
    """Whether a node is a `Constant` of ONNX itself."""
    return node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS


def constants(graph: GraphProto) -> Iterator[tuple[str, NodeProto, AttributeProto]]:
    """Value, node and attribute of each `Constant` of one graph."""
    for node in graph.node:
        if is_constant(node) and node.output and node.output[0]:
            yield from ((node.output[0], node, attribute) for attribute in node.attribute)


def scalars(proto: ModelProto) -> Iterator[tuple[str, NodeProto, AttributeProto]]:
    """`Constant` nodes that hold their value in an attribute of its own kind: value_float, value_ints, ..."""
    for constant in chain.from_iterable(map(constants, graphs(proto.graph))):
        attribute = constant[2]
        if attribute.name in _SCALARS and not attribute.ref_attr_name:
            yield constant


def scalar(attribute: AttributeProto) -> Array:
    """The value of what `scalars` yields, read-only."""
    dtype = np.float32 if "float" in attribute.name else np.int64
    array = np.array(getattr(attribute, _SCALARS[attribute.name]), dtype)
    array.flags.writeable = False
    return array


def defined(graph: GraphProto) -> Iterator[str]:
    """Names that one graph defines: inputs, initializers that are no inputs, node outputs."""
    inputs = {value.name for value in graph.input}
    initializers = dict.fromkeys(t.name for t in graph.initializer if t.name not in inputs)
    yield from (name for name in chain((value.name for value in graph.input), initializers) if name)
    yield from (name for node in graph.node for name in node.output if name)


def overridable(proto: ModelProto) -> set[str]:
    """Initializers that are inputs as well: defaults, which a caller may override. Before IR version 4 all are listed
    as inputs, and are constants."""
    graph = proto.graph
    constant = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return {i.name for i in graph.input if i.name in constant} if proto.ir_version >= 4 else set()


def place(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Make these the nodes of a graph; they may be nodes of it."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def rename_values(graph: GraphProto, names: dict[str, str]) -> None:
    """Rename values in one graph, without the bodies nested in it."""
    for value in chain(graph.input, graph.output, graph.value_info, graph.initializer):
        if value.name in names:
            value.name = names[value.name]
    for annotation in graph.quantization_annotation:
        if annotation.tensor_name in names:
            annotation.tensor_name = names[annotation.tensor_name]
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = names.get(entry.value, entry.value)
    for node in graph.node:
        for listed in (node.input, node.output):
            for i, name in enumerate(listed):
                if name in names:
                    listed[i] = names[name]
        for spec in chain.from_iterable(c.sharding_spec for c in node.device_configurations):
            spec.tensor_name = names.get(spec.tensor_name, spec.tensor_name)
