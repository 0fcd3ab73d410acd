"""Running a model in onnxruntime: sessions, seeded random inputs, interleaved latency."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.io import Model, graphs, save, to_proto, weight_bytes
from onnxprune.graph.node import walk_all
from onnxprune.graph.shapes import Array, Shapes, graph_inputs

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
        from onnxprune import ops  # loads numba

        if not ops.available():
            ops.register(options)
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


def random_feeds(model: Model, shapes: Shapes, inputs: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> Feeds:
    """Seeded inputs: normal floats, integers inside the axis that they index, booleans all true.

    inputs: concrete shape per input, as `concrete_inputs` gives them.
    """
    rng = np.random.default_rng(seed)
    limits, choices = _integer_ranges(model, shapes)
    feeds: Feeds = {}
    for info in graph_inputs(model):
        t = info.type.tensor_type
        shape = list(inputs.get(info.name, ()))
        dtype = helper.tensor_dtype_to_np_dtype(t.elem_type or TensorProto.FLOAT)
        free = info.name not in limits and info.name not in choices
        if free and "mask" in info.name.lower() and np.dtype(dtype).kind in "iu":
            feeds[info.name] = np.ones(shape, dtype)  # all positions count: others may be refused, or give no number
            continue
        feeds[info.name] = _values(rng, shape, np.dtype(dtype), limits.get(info.name), choices.get(info.name))
    return feeds


def _values(
    rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any], limit: int | None, choices: list[int] | None
) -> Array:
    if dtype == np.bool_:
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        if choices:
            return rng.choice(np.array(choices, dtype), shape)
        if limit is not None:
            return rng.integers(0, max(limit, 1), shape).astype(dtype)
        if dtype.itemsize == 1:
            info = np.iinfo(dtype)
            return rng.integers(info.min, int(info.max) + 1, shape).astype(dtype)
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "OSU":
        return np.full(shape, "a", dtype=object)
    return np.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)


PASSING = {
    "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Flatten", "Slice", "Concat", "Split", "Expand",
    "Tile", "Gather", "Clip",
}  # fmt: skip


def _integer_ranges(model: Model, shapes: Shapes) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Input -> exclusive upper bound from what it indexes; input -> values that it is compared with."""
    source = {i.name: i.name for i in graph_inputs(model) if i.type.tensor_type.elem_type != TensorProto.FLOAT}
    limits: dict[str, int] = {}
    choices: dict[str, list[int]] = {}
    for node in walk_all(model.proto.graph, shapes.opsets):
        first = node.input(0)
        if node.op in PASSING and first in source:
            for o in node.outputs:
                source[o] = source[first]
        bound = None
        if node.op in ("Gather", "GatherElements") and node.input(1) in source:
            data = shapes.shapes.get(first)
            bound = data[node.attr("axis", 0)] if data else None
            name = source[node.input(1)]
        elif node.op == "RoiAlign" and node.input(2) in source:
            bound, name = (shapes.shapes.get(first) or (1,))[0], source[node.input(2)]
        elif node.op == "OneHot" and first in source and node.input(1) in shapes.known:
            bound, name = int(shapes.known[node.input(1)].ravel()[0]), source[first]
        if bound:
            limits[name] = min(limits.get(name, bound), bound)
        if node.op == "Equal":
            for a, b in (node.inputs, node.inputs[::-1]):
                value = shapes.known.get(b)
                if a in source and value is not None and value.size == 1:
                    choices.setdefault(source[a], []).append(int(value.ravel()[0]))
    return limits, choices


MIN_ROUNDS, MAX_ROUNDS = 5, 10_000
RESAMPLES = 500  # of the bootstrap
SESSIONS = 0.01  # by which sessions of one file may differ
LEAST_ROUNDS = 10  # below which no interval is given


@dataclass(frozen=True)
class Latency:
    """median and fastest run, in seconds; runs: how many were timed; threads: intra-op threads; ratio: this median over
    the first model's; interval: 90% interval of the ratio, None for the first model and below LEAST_ROUNDS runs."""

    median: float
    fastest: float
    runs: int
    threads: int
    ratio: float = 1.0
    interval: tuple[float, float] | None = None

    @property
    def faster(self) -> bool | None:
        """Than the first model: whether the whole interval says so, beyond what two sessions of one file may differ by;
        None where it does not tell."""
        if self.interval is None:
            return None
        low, high = self.interval
        return True if high < 1 - SESSIONS else False if low > 1 + SESSIONS else None


def timed(sessions: Sequence[ort.InferenceSession], feeds: Sequence[Feeds], seconds: float) -> Array:
    """Seconds of every run, `(rounds, models)`: each round runs every model once, the next begins one model later, so
    that whatever else the machine does hits all alike."""
    start = time.perf_counter()
    warm = 0
    while warm < 2 or time.perf_counter() - start < seconds / 10:
        for s, f in zip(sessions, feeds, strict=True):
            s.run(None, f)
        warm += 1
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < MIN_ROUNDS or (time.perf_counter() < end and len(rounds) < MAX_ROUNDS):
        row = [0.0] * len(sessions)
        for k in range(len(sessions)):
            m = (k + len(rounds)) % len(sessions)
            before = time.perf_counter()
            sessions[m].run(None, feeds[m])
            row[m] = time.perf_counter() - before
        rounds.append(row)
    return np.array(rounds)


def ratio_interval(a: Array, b: Array, *, level: float = 0.9, seed: int = 0) -> tuple[float, float]:
    """Where median(a) / median(b) lies, for a and b of shape `(rounds,)` that were timed side by side.

    Bootstrap over rounds, both of a pair together, in circular blocks of sqrt(rounds), for noise lasts longer than one
    round (Politis and Romano, A circular block-resampling procedure for stationary data, 1992).
    """
    rng = np.random.default_rng(seed)
    n = len(a)
    block = max(1, math.isqrt(n))
    ratios = []
    for _ in range(RESAMPLES):
        starts = rng.integers(0, n, -(-n // block))
        rows = ((starts[:, None] + np.arange(block)) % n).ravel()[:n]
        ratios.append(float(np.median(a[rows]) / np.median(b[rows])))
    low, high = np.quantile(ratios, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def latency(
    models: Mapping[str, Model], feeds: Mapping[str, Feeds], *, threads: int = 0, seconds: float = 2.0
) -> dict[str, Latency]:
    """Time the models one run each in turn; the first is what the others are compared with.

    seconds: time budget for all of them together, at least five runs each after two to warm up.
    """
    used = threads or os.cpu_count() or 1
    with ExitStack() as stack:
        sessions = [stack.enter_context(session(model, threads=threads)) for model in models.values()]
        times = timed(sessions, [feeds[name] for name in models], seconds)
    first = times[:, 0]
    out = {}
    for k, name in enumerate(models):
        t = times[:, k]
        median = float(np.median(t))
        sure = ratio_interval(t, first) if k and len(t) >= LEAST_ROUNDS else None
        out[name] = Latency(median, float(t.min()), len(t), used, median / float(np.median(first)), sure)
    return out


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
