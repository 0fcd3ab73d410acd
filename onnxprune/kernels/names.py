"""Names, types and limits of the custom operators, on which formats, compiled code and C agree."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from onnxprune.graph.node import OWN_DOMAIN

DOMAIN = OWN_DOMAIN

# {Csr|Nm|Bsr}[Scaled]{MatMul|LeftMatMul|Conv}[Add][Relu|Clip|HardSwish|Silu|Gelu|FastGelu]
STORAGES = ("Csr", "Nm", "Bsr")  # that have kernels; rows of formats.registry.FORMATS say what they hold
PRODUCTS = ("MatMul", "LeftMatMul", "Conv")
ACTIVATIONS = ("", "Relu", "Clip", "HardSwish", "Silu", "Gelu", "FastGelu")

# BsrQuantizedMatMul[Uint8|Int8]
RESULTS: dict[str, np.dtype[Any]] = {"": np.dtype(np.float32), "Uint8": np.dtype(np.uint8), "Int8": np.dtype(np.int8)}

VALUES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}
WIDE = 1 << 16  # columns that uint16 can tell apart
MAX_TILE = 64  # rows or columns of a tile
