"""Memory that sessions take: what is free, whether they fit, and the peak of one, measured in a process of its own."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from onnxprune import kernels
from onnxprune.graph.io import Model, save, weight_bytes
from onnxprune.graph.ort import open_session
from onnxprune.runtime.session import INLINE, Feeds, ModelFile, model_file, session_options

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


def peak_of_run(model: Model, feeds: Feeds, threads: int) -> tuple[int | None, str]:
    """As `peak_memory`, of a model that is written to a temporary folder for it."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = os.path.join(folder, "model.onnx")
        save(model, path)
        return peak_memory(model_file(path, model), feeds, threads)


def peak_memory(file: ModelFile, feeds: Feeds, threads: int) -> tuple[int | None, str]:
    """Bytes that loading and one run take at most, and a note; None off Linux, or with a note where it fails."""
    if not os.path.exists("/proc/self/status"):
        return None, ""
    command = [sys.executable, "-P", "-c", "from onnxprune.runtime.memory import _process; _process()"]
    done = subprocess.run(command, input=pickle.dumps((file, feeds, threads)), capture_output=True, check=False)
    try:
        peak, library = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, TypeError, IndexError):
        why = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return None, f"peak memory not measured ({why[:200]})"
    note = f"peak memory is without the operator library, which takes {library / 1e6:.0f} MB once" if library else ""
    return int(peak), note


def _process() -> None:
    """Reads what to run from standard input, prints its peak memory and that of the operator library, in bytes."""
    file, feeds, threads = pickle.load(sys.stdin.buffer)
    start = _resident("VmRSS")
    options = session_options(threads, sparse=file.sparse)
    base = _resident("VmRSS")
    library = base - start if file.sparse and not kernels.available() else 0
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    except OSError:
        base = _resident("VmHWM")
    open_session(file.path, options).run(None, feeds)
    print(json.dumps([max(0, _resident("VmHWM") - base), library]), flush=True)


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes; unlike getrusage's, these do not begin with the parent's."""
    line = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if line is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(line[1]) * 1024
