"""Small models as `onnx.parser` text with arrays for weights, and a run in onnxruntime."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnxprune

Array = np.ndarray[Any, np.dtype[Any]]
PICTURES, VECTORS, SERIES = (24, 3, 8, 8), (200, 5), (6, 20, 5)  # shapes of samples; SERIES is (time, batch, features)


def build(nodes: str, x: str = "float[n,3,8,8]", y: str = "float[n,2,h,w]", *, opset: int = 17, **weights: Any) -> Any:
    """A model of one input `x` and one output `y`; weights in float64 become float32."""
    imports = f'"" : {opset}' + (', "com.microsoft" : 1' if "com.microsoft." in nodes else "")
    proto = onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{imports}]> g ({x} x) => ({y} y) {{ {nodes} }}")
    for name, value in weights.items():
        w = np.asarray(value)
        proto.graph.initializer.append(numpy_helper.from_array(w.astype(np.float32) if w.dtype == float else w, name))
    return proto


def anything(rank: int) -> str:
    """A float tensor whose every axis is dynamic, as text."""
    return f"float[{','.join(f'd{i}' for i in range(rank))}]"


def fixed(shape: tuple[int, ...]) -> str:
    """A float tensor of this shape, as text."""
    return f"float[{','.join(map(str, shape))}]"


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def noise(*shape: int, seed: int = 0) -> Array:
    """float32 at once, other numbers than those of `normal`."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def of_nodes(
    nodes: Sequence[NodeProto], weights: Mapping[str, Array], x: Sequence[Any], opset: int = 17, *, ir: int = 8,
    inputs: Collection[str] = (),
) -> ModelProto:  # fmt: skip
    """A model of nodes from `x` of a shape to `y`; inputs: weights that are graph inputs as well, all before IR 4."""
    listed = [n for n in weights if n in inputs or ir < 4]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    infos += [helper.make_tensor_value_info(n, TensorProto.FLOAT, weights[n].shape) for n in listed]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(w, n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "g", infos, [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def run(source: Any, *feeds: Array | dict[str, Array], optimise: bool = False) -> list[Array]:
    """The outputs for inputs in order or by name, without graph optimisations unless asked for."""
    proto = source if isinstance(source, ModelProto) else onnxprune.to_proto(onnxprune.load(source))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    first = feeds[0] if feeds else {}
    named = first if isinstance(first, dict) else dict(zip((i.name for i in session.get_inputs()), feeds, strict=True))
    return [np.asarray(o) for o in session.run(None, named)]


def data_of(shape: tuple[int, ...], seed: int = 1) -> Array:
    """Samples that are not centred."""
    return (normal(*shape, seed=seed) + 0.3).astype(np.float32)


def net_of(nodes: str, shape: tuple[int, ...], weights: Mapping[str, Any], **options: Any) -> ModelProto:
    """A model of one input with samples of this shape, the batch dynamic: axis 0, of recurrences axis 1."""
    batch = 1 if "LSTM" in nodes or "GRU" in nodes else 0
    x = [str(s) if i != batch else "n" for i, s in enumerate(shape)]
    rank = 4 if batch else len(shape)
    return build(nodes, f"float[{','.join(x)}]", anything(rank), **options, **weights)
