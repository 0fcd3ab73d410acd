"""Sparse weights in onnxruntime: the custom operators of domain `onnxprune` (docs/sparse-format.md).

_ops.h       what onnxruntime sees: operators, memory, threads
_entry.c     the library of the Python package, whose kernels come from entry.py, compiled on this machine
_library.c   the library without Python, whose kernels ahead.py compiles ahead of time
driver.py    one run: choice of the kernel, division of work; one function, compiled by numba
stored.py    a weight as the file says it; checks.py what may be wrong with it
pack.py      the forms in which kernels read it
names.py     names of operators, types and limits
tables.py    numbers that are shared with the C part; header.py writes them for it into _tables.h
addresses.py arrays at addresses
loops.py     the inner loops; emit.py writes them as LLVM IR
library.py   which library there is; compiling, caching, and handing the driver to the C part
steps/       the kernels of training, another driver; _steps.h is their part of the C part
"""

from onnxprune.kernels.library import available, get_library_path, register, session

__all__ = ["available", "get_library_path", "register", "session"]
