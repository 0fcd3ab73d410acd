"""Running a model in onnxruntime: sessions, seeded random inputs, interleaved latency."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state

from onnxprune.graph.io import Model, graphs, save, to_proto, weight_bytes
from onnxprune.graph.shapes import Array

INLINE = 1 << 30  # bytes; larger models go to onnxruntime through a temporary folder
Feeds = dict[str, Array]


@contextmanager
def session(
    model: Model, *, threads: int = 0, optimize: bool = True, profile: str = ""
) -> Iterator[ort.InferenceSession]:
    """An onnxruntime session on the CPU.

    threads: intra-op threads, 0 for onnxruntime's default; optimize: graph optimisations (off for comparisons);
    profile: how the file starts that the session's `end_profiling` writes. Sparse operators run through the library
    where it is available, else through their functions. Raises whatever onnxruntime raises where the model does not
    load.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # sessions are timed in turn: threads of the one that rests must not spin on the cores of the other
    options.add_session_config_entry("session.force_spinning_stop", "1")
    levels = ort.GraphOptimizationLevel
    level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if not optimize and _integer_kernels(model):
        # without VNNI, int8 products saturate in pairs, so that a sum depends on its neighbours; an extended
        # optimisation replaces them by exact ones
        options.add_session_config_entry("session.x64quantprecision", "1")
        level = levels.ORT_ENABLE_EXTENDED
    options.graph_optimization_level = level
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if any(opset.domain == "onnxprune" for opset in model.proto.opset_import):
        from onnxprune import kernels  # loads numba

        if not kernels.available():
            kernels.register(options)
    providers = ["CPUExecutionProvider"]
    if weight_bytes(model) <= INLINE:
        yield ort.InferenceSession(to_proto(model).SerializeToString(), options, providers=providers)
        return
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        yield ort.InferenceSession(os.fspath(path), options, providers=providers)


SESSION = 2.2  # bytes of memory that a session takes for every byte of weights: the file's pages and its own copy


def too_large(models: Sequence[Model]) -> str:
    """Why sessions of all these models at a time do not fit into the memory that is free; "" where they do."""
    need = SESSION * sum(weight_bytes(m) for m in models)
    free = free_memory()
    if need <= INLINE or free is None or need <= free:
        return ""
    return f"that would need about {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"


def free_memory() -> float | None:
    """Bytes that processes can have without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _integer_kernels(model: Model) -> bool:
    ops = {node.op_type for graph in graphs(model.proto.graph) for node in graph.node}
    return any(op.startswith("QLinear") or op.endswith("Integer") for op in ops)


def as_float32(model: Model) -> Model:
    """A copy in float32, for models whose own type onnxruntime has no kernels for (float64 Conv, bfloat16)."""
    wide = (TensorProto.DOUBLE, TensorProto.BFLOAT16)
    out = model.copy()

    def convert(t: onnx.TypeProto) -> None:
        if t.tensor_type.elem_type in wide:
            t.tensor_type.elem_type = TensorProto.FLOAT

    for name, w in model.weights.items():
        if helper.np_dtype_to_tensor_dtype(w.dtype) in wide:
            out.weights[name] = w.astype(np.float32)

    def visit(graph: onnx.GraphProto) -> None:
        for v in (*graph.input, *graph.output, *graph.value_info):
            convert(v.type)
        for node in graph.node:
            for a in node.attribute:
                if a.name in ("to", "dtype") and a.i in wide:
                    a.i = TensorProto.FLOAT
                if a.type == onnx.AttributeProto.GRAPH:
                    visit(a.g)
                elif (
                    a.type == onnx.AttributeProto.TENSOR and a.t.data_type in wide and node.output[0] not in out.weights
                ):
                    a.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(a.t).astype(np.float32), a.t.name))

    visit(out.proto.graph)
    return out


ORT_ERRORS = tuple(
    v for v in vars(onnxruntime_pybind11_state).values() if isinstance(v, type) and issubclass(v, Exception)
)  # they share no base class
