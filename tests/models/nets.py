"""Small models as `onnx.parser` text with arrays for weights, and a run in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
from onnx import ModelProto, numpy_helper

import onnxprune

Array = np.ndarray[Any, np.dtype[Any]]
PICTURES, VECTORS, SERIES = (24, 3, 8, 8), (200, 5), (6, 20, 5)  # shapes of samples; SERIES is (time, batch, features)


def build(nodes: str, x: str = "float[n,3,8,8]", y: str = "float[n,2,h,w]", *, opset: int = 17, **weights: Any) -> Any:
    """A model of one input `x` and one output `y`; weights in float64 become float32."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g ({x} x) => ({y} y) {{ {nodes} }}')
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
