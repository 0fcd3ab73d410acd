"""Functions that numba compiles when they are first called, and where it keeps what it made: in a folder of the user's.

Beside the modules, where numba would put it, it outlives an uninstall, and the folder that is left hides an
installation in place.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import config

from onnxprune import __version__

Function = TypeVar("Function", bound=Callable[..., Any])
_lock = threading.RLock()


def njit(**options: Any) -> Callable[[Function], Function]:
    """`numba.njit` with these options, and a cache in `compiled_folder`, or where NUMBA_CACHE_DIR says."""

    def compiled(function: Function) -> Function:
        with kept_in(config.CACHE_DIR or compiled_folder()):
            out: Function = numba.njit(cache=True, **options)(function)
            return out

    return compiled


@contextmanager
def kept_in(folder: str | Path) -> Iterator[None]:
    """What is declared inside has its cache in this folder; numba takes another place where it cannot write there."""
    with _lock:
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        try:
            yield
        finally:
            config.CACHE_DIR = before


def compiled_folder() -> Path:
    """Of these versions; places of modules and CPUs are told apart by numba."""
    versions = (__version__, numba.__version__, sys.implementation.cache_tag)
    return user_cache() / f"numba-{'-'.join(map(str, versions))}"


def user_cache() -> Path:
    """The folder of the user's for what is compiled once: ONNXPRUNE_CACHE_DIR, or a part of the system's cache."""
    own = os.environ.get("ONNXPRUNE_CACHE_DIR")
    if own:
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("LOCALAPPDATA", home) if os.name == "nt" else home) / "onnxprune"
