"""How exactly a sparse weight is stored: in float32, half of it, or as int8 with one scale for every output.

In goes W float32 `[M, ...]`, whose axis 0 is the outputs; out come codes of the same shape, and for int8 a scale
float32 `[M]`: W is about codes * scale. Whatever rounds to zero becomes +0.0, which is not stored.

    >>> codes, scale = encode(np.array([[254, 0, -1], [0, 127, 31.7]], np.float32), "int8")
    >>> codes.tolist(), scale.tolist()
    ([[127, 0, 0], [0, 127, 32]], [2.0, 1.0])
    >>> round_values(np.array([[1.001, 0, -3]], np.float32), "bfloat16").tolist()
    [[1.0, 0.0, -3.0]]
"""

from __future__ import annotations

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.messages import show
from onnxprune.kernels.names import VALUES

LARGEST = 127  # of an int8 code; -128 is not used
SMALLEST = np.finfo(np.float32).tiny  # scale of a row: below it, float32 loses digits
SPARE = np.uint32(0xFF)  # bits that a scale leaves 0, so that the product with a code is exact


def encode(w: Array, values: str) -> tuple[Array, Array | None]:
    """Codes of W float32 `[M, ...]` and, for int8, their scale float32 `[M]`, about max|row| / 127.

    Raises OptionError where `values` is none of VALUES, or a weight is beyond what it can hold.
    """
    if values not in VALUES:
        raise OptionError(f"values {show(values)} must be one of {', '.join(VALUES)}")
    if values == "float32":
        return w, None
    scale = None
    if values == "int8":
        largest = np.abs(w).reshape(len(w), -1).max(axis=1, initial=0)
        scale = np.maximum(largest / np.float32(LARGEST), SMALLEST)
        scale = (scale.view(np.uint32) & ~SPARE).view(np.float32)
        fits = np.isfinite(largest)
        w = np.rint(w / _upright(scale, w)) if fits.all() else w
    else:
        with np.errstate(over="ignore"):
            w = w.astype(VALUES[values])
        fits = np.isfinite(w).reshape(len(w), -1).all(axis=1)
    if not fits.all():
        raise OptionError(
            f"{values} cannot hold a weight of output {int(np.argmin(fits))}: it is too large, or no number"
        )
    codes = w.astype(VALUES[values])
    codes[codes == 0] = 0  # -0.0 as well
    return codes, scale


def decode(codes: Array, scale: Array | None) -> Array:
    """W float32 of the shape of the codes, `[M, ...]`."""
    w = codes.astype(np.float32, copy=False)
    return w if scale is None else w * _upright(scale, w)


def round_values(w: Array, values: str) -> Array:
    """W float32 `[M, ...]` as it is once stored in this way; rounding twice is rounding once.

    Raises OptionError as `encode` does.
    """
    return decode(*encode(w, values))


def _upright(scale: Array, w: Array) -> Array:
    return scale.reshape(-1, *[1] * (w.ndim - 1))
