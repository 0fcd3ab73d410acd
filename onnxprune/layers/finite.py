"""Arrays of float32 in which whatever is not finite is NaN."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array


def finite(x: Array) -> Array:
    """NaN for what is not finite: products of infinities with 0 and their differences are NaN anyhow, but warn."""
    held = np.isfinite(x) if x.dtype.itemsize <= 4 else np.abs(x) <= np.finfo(np.float32).max
    return np.asarray(x if held.all() else np.where(held, x, np.nan), np.float32)
