"""onnxruntime as every room uses it: sessions on the CPU, their options, and what it raises."""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state

PROVIDERS = ["CPUExecutionProvider"]
# its own exceptions share no base class; its bindings raise the rest, for inputs that are missing or of a type that
# they do not know, and where memory runs out
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(v for v in vars(onnxruntime_pybind11_state).values() if isinstance(v, type) and issubclass(v, Exception)),
    RuntimeError, ValueError, TypeError, MemoryError,
)  # fmt: skip
SPARE = 100e6  # bytes that may lie unused before they are given back
_left = [-math.inf]  # what was resident after the last time
NOTHING = {"x": np.zeros(1, np.float32)}  # what goes into the session that does nothing


@functools.cache
def _arena() -> ort.InferenceSession:
    """Let all sessions take their memory from one arena, where what one gives back serves the next; it grows by what is
    asked for, not by powers of two. Returned is a session that does nothing in it."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # a version that refuses a second allocator raises where the program that we are a part of has registered one, which
    # serves as well; what runs compute does not depend on it
    with suppress(RuntimeError):
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", declared[:1], declared[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    session = open_session(model.SerializeToString(), _options(1))
    session.run(None, NOTHING)  # the arena never gives its first region back: let that be a small one
    return session


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def base_options(
    threads: int = 0, level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
) -> ort.SessionOptions:
    """Options of a session that says nothing and rests while others run.

    threads: intra-op threads, 0 for onnxruntime's default; level: of the graph optimisations.
    """
    _arena()
    options = _options(threads)
    options.graph_optimization_level = level
    # sessions are timed in turn: threads of the one that rests must not spin on the cores of the other
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def open_session(source: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session on the CPU. source: path of a file, or a serialized model. Raises ORT_ERRORS where it does not load."""
    return ort.InferenceSession(source, options, providers=PROVIDERS)


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    """glibc's function that gives free pages back wherever they lie; of other C libraries one that does nothing."""
    trim: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
    return trim


def release_memory() -> None:
    """Give back to the system what the arena of all sessions and the C library hold and do not use, where the process
    has grown by SPARE since it did so last: pages that go have to be made again. Between two pieces of work that take
    memory of different kinds; outputs of runs lie in the arena, and hold a part of it back."""
    if resident_memory() < _left[0] + SPARE:
        return
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    nothing = _arena()
    # "no arena based allocator registered": that of the program that we are a part of may be none, and holds nothing
    with suppress(onnxruntime_pybind11_state.InvalidArgument):
        nothing.run(None, NOTHING, options)
    _malloc_trim()(0)
    _left[0] = resident_memory()


def resident_memory() -> float:
    """Bytes of this process that are in memory; infinite where the system does not say."""
    try:
        return float(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        return math.inf
