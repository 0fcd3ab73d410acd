"""What the formats share: types of indices, and checks of arrays that a file holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.messages import fault
from onnxprune.kernels.names import VALUES

MAX_ELEMENTS = 1 << 31  # of a weight; row pointers are int32
EXPORT = "convert the dense model again"
FLOATS = tuple(dtype for name, dtype in VALUES.items() if name != "int8")  # values without a scale


Types = Sequence[np.dtype[Any]]


def storable(w: Array) -> Array:
    """The weight, if operators of ours can store it: a matrix of one of VALUES. Raises `OptionError`."""
    if w.dtype not in VALUES.values() or w.ndim != 2:
        raise OptionError(f"a sparse weight must be {' or '.join(VALUES)} of rank 2, not {w.dtype} of rank {w.ndim}")
    return w


def bits_of(w: Array) -> Array:
    """The bits of every weight, as unsigned integers."""
    return w.view(np.dtype(f"u{w.itemsize}"))


def check_size(where: str, shape: Sequence[int]) -> None:
    """Raise `ModelFileError` for a weight that is empty or has MAX_ELEMENTS or more; where: the node, for messages."""
    if min(shape) < 1 or math.prod(shape) >= MAX_ELEMENTS:
        raise fault(where, f"a shape of 1 to {MAX_ELEMENTS - 1} weights", list(shape), EXPORT)


def check_array(where: str, name: str, array: Array, types: Types, shape: tuple[int, ...]) -> None:
    """Raise `ModelFileError` where an array of a file is of another type or shape; where: the node, for messages."""
    if array.dtype not in types or array.shape != shape:
        expected = f"{name} of {' or '.join(map(str, types))} {list(shape)}"
        raise fault(where, expected, f"{array.dtype} {list(array.shape)}", EXPORT)
