"""The one maker of sessions for whole models: in memory or in a file, with the sparse operators where there are any."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnxprune import kernels
from onnxprune.errors import ModelFileError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, graphs, save, to_proto, weight_bytes
from onnxprune.graph.messages import fault
from onnxprune.graph.ort import ORT_ERRORS, base_options, open_session
from onnxprune.kernels.library import LibraryMissing
from onnxprune.kernels.names import DOMAIN

# why a model does not run: ours are a temporary folder without room, and a library of another version
UNRUNNABLE: tuple[type[Exception], ...] = (*ORT_ERRORS, ModelFileError, LibraryMissing)
INLINE = 1 << 30  # bytes; larger models go to onnxruntime through a temporary folder
Feeds = dict[str, Array]


@dataclass(frozen=True)
class ModelFile:
    """What a session needs to know of a model file; sparse: it holds operators of our own domain; nodes: how many."""

    path: str
    sparse: bool
    nodes: int


def model_file(path: str, model: Model) -> ModelFile:
    """The file at `path`, which holds `model`."""
    nodes = [node for graph in graphs(model.proto.graph) for node in graph.node]
    return ModelFile(path, any(node.domain == DOMAIN for node in nodes), len(nodes))


def session_options(
    threads: int = 0, *, optimize: bool = True, exact: bool = False, profile: str = "", sparse: bool = False
) -> ort.SessionOptions:
    """Options of a session; the library of the sparse operators is registered where `sparse` and available.

    threads: intra-op threads, 0 for onnxruntime's default; optimize: graph optimisations; exact: without them,
    integers are added exactly all the same; profile: how the file starts that `end_profiling` writes.
    """
    levels = ort.GraphOptimizationLevel
    level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_ENABLE_EXTENDED if exact else levels.ORT_DISABLE_ALL
    out = base_options(threads, level)
    if exact and not optimize:
        # without VNNI, int8 products saturate in pairs, so that a sum depends on its neighbours; an extended
        # optimisation replaces them by exact ones
        out.add_session_config_entry("session.x64quantprecision", "1")
    if profile:
        out.enable_profiling, out.profile_file_prefix = True, profile
    if sparse and not kernels.available():
        kernels.register(out)
    return out


@contextmanager
def session(
    model: Model, *, threads: int = 0, optimize: bool = True, profile: str = ""
) -> Iterator[ort.InferenceSession]:
    """An onnxruntime session on the CPU.

    threads: intra-op threads, 0 for onnxruntime's default; optimize: graph optimisations (off for comparisons);
    profile: how the file starts that the session's `end_profiling` writes. Sparse operators run through the library
    where it is available, else through their functions. Raises UNRUNNABLE where the model does not load.
    """
    sparse = any(opset.domain == DOMAIN for opset in model.proto.opset_import)
    options = session_options(threads, optimize=optimize, exact=_integer_kernels(model), profile=profile, sparse=sparse)
    if weight_bytes(model) <= INLINE:
        yield open_session(to_proto(model).SerializeToString(), options)
        return
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        yield open_session(os.fspath(path), options)


def file_session(file: ModelFile, threads: int, *, profile: str = "") -> ort.InferenceSession:
    """A session of a file, with all graph optimisations; threads, profile: as of `session`.

    Raises ModelFileError where onnxruntime does not load it.
    """
    options = session_options(threads, profile=profile, sparse=file.sparse)
    try:
        return open_session(file.path, options)
    except ORT_ERRORS as e:
        why = kernels.available() if file.sparse else ""
        way = f"its operators need our library, and {why}" if why else "see whether it loads in onnxruntime alone"
        raise fault(file.path, "a model that onnxruntime loads", e, way) from e


@contextmanager
def running(
    model: Model, inner: Iterable[str] = (), *, optimize: bool = True
) -> Iterator[Callable[[Feeds], dict[str, Array]]]:
    """What computes the outputs by name, and the tensors `inner` of the main graph, in one session. Both that and the
    call raise UNRUNNABLE."""
    probed = model.copy()
    present = {o.name for o in model.proto.graph.output}
    for name in dict.fromkeys(inner):
        if name not in present:
            probed.proto.graph.output.add(name=name)
    with session(probed, optimize=optimize) as s:
        names = [o.name for o in s.get_outputs()]
        yield lambda feeds: dict(zip(names, map(np.asarray, s.run(None, feeds)), strict=True))


def run(
    model: Model, feeds: Feeds, inner: Iterable[str] = (), *, optimize: bool = True, times: int = 1
) -> dict[str, Array]:
    """Outputs of one run by name, the last of so many in one session, and the tensors `inner` of the main graph.

    Raises UNRUNNABLE.
    """
    with running(model, inner, optimize=optimize) as compute:
        for _ in range(times):
            values = compute(feeds)
        return values


def _integer_kernels(model: Model) -> bool:
    ops = {node.op_type for graph in graphs(model.proto.graph) for node in graph.node}
    return any(op.startswith("QLinear") or op.endswith("Integer") for op in ops)
