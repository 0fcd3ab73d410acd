"""The custom operator library: where it lies, what is missing, and its kernels, compiled and kept for the next time."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime as ort

from onnxprune.errors import UserError
from onnxprune.graph.ort import ORT_ERRORS, PROVIDERS

OLDEST = (1, 20)  # onnxruntime
HERE = Path(__file__).parent
DRIVER = "onnxprune.kernels.entry"
SHARED = ("emit.py", "loops.py", "activations.py", "tables.py", "addresses.py")  # of both
_lock = threading.Lock()


@dataclass(frozen=True)
class Part:
    """What is compiled at once: the module with the entry, the files that it is made of, and what it is called."""

    driver: str
    files: tuple[str, ...]
    what: str


SPARSE = Part(DRIVER, (*SHARED, "stored.py", "checks.py", "pack.py", "driver.py", "entry.py"), "sparse kernels")
TRAINING = Part(
    "onnxprune.kernels.steps.driver",
    (*SHARED, *(f"steps/{path.name}" for path in sorted((HERE / "steps").glob("*.py")))),
    "the kernels of training",
)


class LibraryMissing(UserError):
    """Sparse operators cannot run here: what is missing, and the way out."""


@functools.cache
def packaged() -> Path | None:
    """The library of kernels that were compiled ahead of time, where the package carries one that this CPU runs and
    that is of this version; else the kernels are compiled here."""
    from onnxprune.kernels import header
    from onnxprune.kernels.ahead import PACKAGED, TARGETS, host

    path = HERE / PACKAGED / (TARGETS[host()].library if host() else "none")
    if not path.exists():
        return None
    try:
        held = ctypes.CDLL(str(path))
    except OSError:  # of another C library
        return None
    held.onnxprune_ops_stamp.restype = held.onnxprune_ops_level.restype = ctypes.c_char_p
    fits = held.onnxprune_ops_stamp() == header.stamp().encode() and held.onnxprune_ops_level()
    return path if fits else None


def available() -> str:
    """ "" where sparse operators can run; otherwise what is missing, in one sentence. Nothing is compiled."""
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version < OLDEST:
        return f"onnxruntime {ort.__version__} is too old: sparse operators need {OLDEST[0]}.{OLDEST[1]} or newer"
    return "" if packaged() else compilable()


def compilable() -> str:
    """ "" where kernels can be compiled here; otherwise what is missing. Nothing is compiled."""
    if importlib.util.find_spec("onnxprune.kernels._entry") is None:
        return (
            "the native part of onnxprune was not built: install a C compiler and reinstall onnxprune "
            "(pip install --force-reinstall --no-deps onnxprune)"
        )
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install numba"
    return ""


def get_library_path() -> str:
    """The path for `onnxruntime.SessionOptions.register_custom_ops_library`: that of the library which the package
    carries, or else of one whose kernels are compiled on the first call.

    Raises `LibraryMissing` where the native part or numba is missing, or onnxruntime is too old.
    """
    if missing := available():
        raise LibraryMissing(f"sparse operators cannot run: {missing}")
    return str(packaged() or _entry().__file__)


def register(options: ort.SessionOptions) -> None:
    """Make the sparse operators known to sessions with these options; raises `LibraryMissing`."""
    options.register_custom_ops_library(get_library_path())


def session(
    path: str | os.PathLike[str] | bytes, options: ort.SessionOptions | None = None, **arguments: Any
) -> ort.InferenceSession:
    """`onnxruntime.InferenceSession` with the sparse operators registered, on the CPU unless `providers` is given.

    Without the library the model's own functions run, if it has them: densely, with the same result. Raises
    `LibraryMissing` where it has none, or whatever onnxruntime raises where the model does not load.
    """
    options = options or ort.SessionOptions()
    arguments.setdefault("providers", PROVIDERS)
    missing = available()
    if not missing:
        register(options)
    source = path if isinstance(path, bytes) else os.fspath(path)
    try:
        return ort.InferenceSession(source, options, **arguments)
    except ORT_ERRORS as error:
        if missing and "is not a registered function/op" in str(error):
            raise LibraryMissing(
                f"{'model' if isinstance(path, bytes) else path}: its sparse operators have no functions to fall back "
                f"on, because its opset is below 12, and {missing}"
            ) from error
        raise


def loaded() -> bool:
    """Whether no kernel is compiled any more."""
    if packaged():
        return True
    module = sys.modules.get("onnxprune.kernels._entry")
    return module is not None and bool(module.connected())


def waiting_memory() -> int:
    """Bytes that the library keeps for the next run."""
    if path := packaged():
        held = ctypes.CDLL(str(path)).onnxprune_ops_memory
        held.restype = ctypes.c_size_t
        return int(held())
    return int(_entry().memory())


def _entry() -> ModuleType:
    """The native module, with the driver connected."""
    from onnxprune.kernels import header  # late, because it can be run as a program

    module = importlib.import_module("onnxprune.kernels._entry")
    if getattr(module, "STAMP", "") != header.stamp():
        raise LibraryMissing(
            f"sparse operators cannot run: {module.__file__} was built from another version of onnxprune; reinstall "
            "onnxprune (pip install --force-reinstall --no-deps onnxprune)"
        )
    with _lock:
        if not module.connected():
            driver = _compiled(SPARSE)
            # onnxruntime may call it as long as the process lives, also while the interpreter shuts down
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(driver.entry))
            module.connect(driver.entry.address)
    return module


def register_steps(options: ort.SessionOptions) -> None:
    """Make the kernels of training known to sessions with these options; they are compiled on the first call. Raises
    `LibraryMissing`."""
    if missing := compilable() or available():
        raise LibraryMissing(missing)
    from onnxprune.kernels import header

    module = importlib.import_module("onnxprune.kernels._entry")
    if getattr(module, "STEPS_STAMP", "") != header.steps_stamp():
        raise LibraryMissing(f"{module.__file__} was built from another version of onnxprune")
    with _lock:
        if not module.steps_connected():
            driver = _compiled(TRAINING)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(driver.entry))  # as below
            module.connect_steps(driver.entry.address)
    options.register_custom_ops_library(str(module.__file__))


def _compiled(part: Part) -> ModuleType:
    """The driver of a part; its machine code comes from a cache, keyed by our code, where it lies, numba, llvmlite and
    the CPU.

    A cache that cannot be read is made anew; where there is no place for one, the code is compiled for this process.
    """
    folder = _cache_folder(part)
    if folder and any(folder.rglob("*.nbc")):
        try:
            return _imported(part.driver, folder)
        except Exception:  # numba lets errors of damaged files through
            shutil.rmtree(folder, ignore_errors=True)
    announce(f"onnxprune: compiling {part.what} for this machine, once (about half a minute)")
    if folder:
        return _imported(part.driver, folder)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as temporary:
        return _imported(part.driver, Path(temporary))


def _imported(name: str, folder: Path) -> ModuleType:
    """A driver, with numba's cache in this folder."""
    from numba import config

    from onnxprune.kernels.compiled import kept_in

    before, config.DISABLE_JIT = config.DISABLE_JIT, 0
    try:
        with kept_in(folder):
            return importlib.import_module(name)
    finally:
        config.DISABLE_JIT = before


def _cache_folder(part: Part = SPARSE) -> Path | None:
    """A folder of the user's for exactly this code on this CPU; None where there can be none.

    numba's own key has the CPU too, but processes on two kinds of CPU that write one index at once may confuse it.
    """
    import llvmlite
    import llvmlite.binding as llvm
    import numba
    from numba import config

    from onnxprune.kernels import header
    from onnxprune.kernels.compiled import user_cache

    digest = hashlib.sha256()
    cpu = config.CPU_NAME or llvm.get_host_cpu_name(), config.CPU_FEATURES or llvm.get_host_cpu_features().flatten()
    driver = HERE.joinpath(*part.driver.split(".")[2:]).with_suffix(".py")
    place = str(HERE), str(driver.stat().st_mtime_ns)  # which numba compares as well
    for piece in (sys.version, numba.__version__, llvmlite.__version__, platform.machine(), *cpu, *place):
        digest.update(piece.encode() + b"\0")
    for file in part.files:
        digest.update((HERE / file).read_bytes())
    stamp = header.stamp() if part is SPARSE else header.steps_stamp()  # of numbers that come from elsewhere
    digest.update(stamp.encode())
    folder = user_cache() / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


announce: Callable[[str], None] = lambda text: print(text, file=sys.stderr)  # noqa: E731
