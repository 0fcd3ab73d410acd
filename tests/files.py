"""What tests of files compare and expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelFileError
from onnxprune.graph import arrays, io


def same(a: io.Model, b: io.Model) -> None:
    assert a.proto.SerializeToString(deterministic=True) == b.proto.SerializeToString(deterministic=True)
    assert list(a.weights) == list(b.weights)
    for name, w in a.weights.items():
        assert (w.dtype, w.shape) == (b.weights[name].dtype, b.weights[name].shape)
        assert w.tobytes() == b.weights[name].tobytes()


def refused(source: Any, *words: str) -> str:
    with pytest.raises(ModelFileError) as caught:
        io.load(source)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 2000
    assert ": expected " in text
    assert ", found " in text
    assert "; " in text
    for word in words:
        assert word in text
    return text


def bits(name: str, count: int) -> np.ndarray:
    """Every bit pattern of a type in turn, as (count,) values of that type."""
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, name))
    if name == "BOOL":
        return np.arange(count) % 2 == 0
    width = {2: 0x03, 4: 0x0F, 6: 0x3F}.get(arrays.BITS[getattr(TensorProto, name)], 0xFF)
    raw = np.random.default_rng(0).integers(0, 256, count * dtype.itemsize, np.uint8) & width
    return raw.astype(np.uint8).view(dtype)
