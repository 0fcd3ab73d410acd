"""Models as files: chains of weights inline and outside, all that a file can hold, tensors that are odd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import ModelProto, TensorProto, helper, numpy_helper


def parse(text: str, opset: str = '"" : 18', ir: int = 10) -> ModelProto:
    return onnx.parser.parse_model(f"<ir_version: {ir}, opset_import: [{opset}]> {text}")


def chain_model(size: int = 1024, count: int = 3) -> ModelProto:
    """x + w0 + w1 + ...; each w is float32 (size,), filled with its number."""
    nodes = [helper.make_node("Add", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(count)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name in ("v0", f"v{count}")]
    weights = [numpy_helper.from_array(np.full(size, i, np.float32), f"w{i}") for i in range(count)]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def external_model(folder: Path, size: int = 1024, count: int = 3) -> Path:
    """The same with its weights in `w.bin`."""
    path = folder / "m.onnx"
    onnx.save(chain_model(size, count), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def one_tensor(tensor: TensorProto) -> ModelProto:
    value = helper.make_tensor_value_info("y", tensor.data_type, None)
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [value], [tensor])
    return helper.make_model(graph, ir_version=13, opset_imports=[helper.make_opsetid("", 24)])


def rich_model() -> ModelProto:
    """One of everything that an ONNX file can hold beside nodes and weights."""
    proto = parse("""
        g (float[N, 2] x, float[2] w) => (float[N, 2] y) <float[2] w = {1, 2}, float[N, 2] t>
        { [first] t = Add(x, w)  [second] y = Relu(t) }""")
    proto.producer_name, proto.producer_version, proto.domain = "p", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "model doc"
    proto.metadata_props.add(key="k", value="v")
    proto.opset_import.add(domain="com.microsoft", version=1)
    graph = proto.graph
    graph.doc_string = "graph doc"
    graph.metadata_props.add(key="gk", value="gv")
    graph.node[0].doc_string = "node doc"
    graph.node[0].metadata_props.add(key="nk", value="nv")
    graph.node[0].device_configurations.add(configuration_id="c").sharding_spec.add(tensor_name="t")
    graph.input[0].doc_string = "input doc"
    graph.initializer[0].doc_string = "tensor doc"
    graph.initializer[0].metadata_props.add(key="tk", value="tv")
    annotation = graph.quantization_annotation.add(tensor_name="t")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"\xff"]))  # type: ignore[list-item]
    graph.initializer.append(numpy_helper.from_array(np.ones(500, np.float32), "large"))
    proto.configuration.add(name="c", num_devices=2)
    training = proto.training_info.add()
    training.algorithm.initializer.append(numpy_helper.from_array(np.ones(500, np.float32), "lr"))
    proto.MergeFromString(b"\xfa\x3f\x03abc")  # field 1023, unknown to ONNX
    graph.node[1].MergeFromString(b"\xfa\x3f\x03def")
    return proto


IF = """
    g (bool c, float[2] x) => (float[2] y) <float[2] w = {5, 5}> {
        y = If (c) <
            then_branch = a () => (float[2] o) <float[2] w = {1, 2}> { t = Add(x, w)  o = Neg(t) },
            else_branch = b () => (float[2] o) <float[2] w = {3, 4}> {
                t = Mul(x, w)
                o = If (c) <then_branch = i () => (float[2] o) { o = Add(t, w) },
                            else_branch = j () => (float[2] o) { t = Sub(x, w)  o = Identity(t) }>
            }>
    }"""
CALLS = """
    g (float[N] x) => (float[N] y) <float[1] w = {7}> { t = l.f(x)  u = l.f(t)  v = Mul(u, w)  y = onnxprune.k(v) }
    <domain: "l", opset_import: ["" : 18, "l" : 1, "other" : 2]>
    f (a) => (b) { [n] c = Constant <value_float = 1.0> ()  d = l.h(a)  b = Add(c, d) }
    <domain: "l", opset_import: ["" : 18]> h (a) => (b) { c = Constant <value = float[1] {2.0}> ()  b = Mul(a, c) }
    <domain: "onnxprune", opset_import: ["" : 18]>
    k (a) => (b) { c = Constant <value = float[1] {2.0}> ()  b = Mul(a, c) }
"""


def called() -> ModelProto:
    proto = parse(CALLS, '"" : 18, "l" : 1, "onnxprune" : 1')
    proto.metadata_props.add(key="k", value="v")
    for function in proto.functions[1:]:  # above SMALL bytes
        function.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.full(500, 2, np.float32)))
    return proto


# Sparse


def sparse_model(indices: Any = (0, 3, 5), dims: Any = (2, 3), values: Any = (1, 2, 3)) -> ModelProto:
    proto = parse("g (float[2] x) => (float[2, 3] y) { y = Identity(w) }")
    sparse = proto.graph.sparse_initializer.add(dims=dims)
    sparse.values.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64).reshape(np.shape(indices)), "i"))
    return proto


# Hostile and broken files


def tensor_edit(**fields: Any) -> TensorProto:
    """A float32 tensor `w` of (2, 2), with some fields set otherwise."""
    tensor = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    for name, value in fields.items():
        tensor.ClearField(name)
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        elif value is not None:
            setattr(tensor, name, value)
    return tensor
