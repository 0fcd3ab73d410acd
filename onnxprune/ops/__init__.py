"""Sparse weights in onnxruntime: the custom operators of domain `onnxprune` (docs/sparse-format.md).

_entry.c     what onnxruntime sees: operators, memory, threads
driver.py    checks, packing, division of work; one function, compiled by numba
kernels.py   the inner loops; emit.py writes them as LLVM IR
library.py   compiling, caching, and handing the driver to the C part
"""

from onnxprune.ops.library import available, get_library_path, register, session

__all__ = ["available", "get_library_path", "register", "session"]
