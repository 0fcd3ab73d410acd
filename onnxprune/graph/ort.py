"""onnxruntime as every room uses it: sessions on the CPU, their options, and what it raises."""

from __future__ import annotations

import functools
from contextlib import suppress

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

PROVIDERS = ["CPUExecutionProvider"]
# its own exceptions share no base class; its bindings raise the rest, for inputs that are missing or of a type that
# they do not know, and where memory runs out
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(v for v in vars(onnxruntime_pybind11_state).values() if isinstance(v, type) and issubclass(v, Exception)),
    RuntimeError, ValueError, TypeError, MemoryError,
)  # fmt: skip


@functools.cache
def _share_memory() -> None:
    """Let all sessions take their memory from one arena, where what one gives back serves the next; it grows by what is
    asked for, not by powers of two."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with suppress(RuntimeError):  # the program that we are a part of may have registered one, which serves as well
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def base_options(
    threads: int = 0, level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
) -> ort.SessionOptions:
    """Options of a session that says nothing and rests while others run.

    threads: intra-op threads, 0 for onnxruntime's default; level: of the graph optimisations.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = level
    _share_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # sessions are timed in turn: threads of the one that rests must not spin on the cores of the other
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def open_session(source: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session on the CPU. source: path of a file, or a serialized model. Raises ORT_ERRORS where it does not load."""
    return ort.InferenceSession(source, options, providers=PROVIDERS)
