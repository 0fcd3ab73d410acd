"""The driver as the C part calls it, compiled for this machine when this module is read."""

from __future__ import annotations

from numba import cfunc, types

from onnxprune.kernels.driver import dispatch


@cfunc(types.int64(types.int64, types.int64, types.int64, types.int64, types.int64), cache=True)
def entry(what: int, desc: int, call: int, task: int, scratch: int) -> int:
    """See `dispatch`."""
    return int(dispatch(what, desc, call, task, scratch))
