"""Arrays of float32 in which whatever is not finite is NaN."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array


def finite(x: Array) -> Array:
    """The array in float32, NaN for what is not finite: products of infinities with 0 and their differences are NaN
    anyhow, but warn."""
    is_finite = np.isfinite(x) if x.dtype.itemsize <= 4 else np.abs(x) <= np.finfo(np.float32).max
    return np.asarray(x if is_finite.all() else np.where(is_finite, x, np.nan), np.float32)
