"""Arrays as ONNX stores them: type codes, sizes, bytes, and the data of one `TensorProto`.

In memory every value of an array takes whole bytes; a file packs types of less than 8 bits (two int4 share a byte).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import InternalError
from onnxprune.graph.messages import show

Array: TypeAlias = np.ndarray[Any, Any]
Float: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]  # ids of units, see structure/coupling.py
Large: TypeAlias = list[tuple[TensorProto, Array]]  # tensors whose data are still to be written, and the data

SMALL = 1024  # bytes; a tensor up to this size keeps its data in the proto, where shape inference reads it
CHUNK = 1 << 24  # bytes copied, written and hashed at a time

_NO_DTYPE = (TensorProto.UNDEFINED, TensorProto.STRING)
DTYPES = {c: helper.tensor_dtype_to_np_dtype(c) for c in TensorProto.DataType.values() if c not in _NO_DTYPE}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_SUBBYTE = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
BITS = {c: _SUBBYTE.get(TensorProto.DataType.Name(c), 8 * d.itemsize) for c, d in DTYPES.items()}  # of one value
FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


class Taken(np.lib.mixins.NDArrayOperatorsMixin):
    """Some indices of an array, taken when they are needed: what a cut leaves of a large weight, before it is written.

    It stands where an array stands: numpy sees the values, `pieces` streams them. The source stays as it is, and is
    mapped from a file as a rule.
    """

    __array_priority__ = 1.0

    def __init__(self, source: Array, kept: Mapping[int, Array]) -> None:
        self.source, self.kept = source, dict(kept)  # axis -> indices
        self.dtype, self.ndim, self.itemsize = source.dtype, source.ndim, source.itemsize
        self.shape = tuple(len(kept[k]) if k in kept else d for k, d in enumerate(source.shape))
        self.size = math.prod(self.shape)
        self.nbytes = self.size * self.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> Array:
        """The values from index `start` to `stop` of the first axis."""
        part = self.source[self.kept[0][start:stop]] if 0 in self.kept else self.source[start:stop]
        for axis, indices in self.kept.items():
            if axis:
                part = np.take(part, indices, axis, mode="clip")
        return np.ascontiguousarray(part)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.rows(0, len(self)), dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*(np.asarray(i) if isinstance(i, Taken) else i for i in inputs), **options)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)


def type_code(name: str, array: Array) -> TensorProto.DataType:
    """ONNX type of the weight called `name`."""
    if array.dtype not in _CODES:
        raise InternalError(f"weight {show(name)} has dtype {array.dtype}, which ONNX does not know")
    code: TensorProto.DataType = _CODES[array.dtype]
    return code


def stored_bits(array: Array) -> int:
    """Bits of one value of an array in a file."""
    return BITS[_CODES[array.dtype]]


def stored_size(array: Array) -> int:
    """Bytes of an array in a file."""
    return -(-array.size * stored_bits(array) // 8)


def same(a: Array, b: Array) -> bool:
    """Whether two arrays have the same type, shape and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def pieces(array: Array) -> Iterator[memoryview]:
    """The bytes of an array as a file has them, at most CHUNK at a time, copied only where not contiguous."""
    packed = stored_bits(array) < 8
    if isinstance(array, Taken) and not packed and array.size:
        step = max(1, CHUNK // (array.nbytes // len(array)))
        for i in range(0, len(array), step):
            yield array.rows(i, i + step).reshape(-1).view(np.uint8).data
        return
    for block in _blocks(np.asarray(array)):
        yield memoryview(numpy_helper.from_array(block).raw_data) if packed else block.view(np.uint8).data


def _blocks(array: Array) -> Iterator[Array]:
    if array.flags.c_contiguous or stored_bits(array) < 8:
        flat = np.ascontiguousarray(array).reshape(-1)
        step = CHUNK // array.itemsize
        yield from (flat[i : i + step] for i in range(0, flat.size, step))
    elif array[0].nbytes > CHUNK:
        yield from chain.from_iterable(map(_blocks, array))
    else:
        step = CHUNK // array[0].nbytes
        yield from (np.ascontiguousarray(array[i : i + step]).reshape(-1) for i in range(0, len(array), step))


def clear_data(tensor: TensorProto) -> None:
    """Leave only name, type, dims and notes of a tensor."""
    for name in (*_TYPED, "raw_data", "external_data", "data_location"):
        tensor.ClearField(name)


def set_data(tensor: TensorProto, array: Array) -> None:
    """Put the data of `array`, which has the tensor's type and dims, into the proto."""
    clear_data(tensor)
    tensor.raw_data = b"".join(pieces(array))


def has_data(tensor: TensorProto) -> bool:
    """Whether the proto itself holds the data of a tensor; of one without values it always does."""
    return 0 in tensor.dims or tensor.HasField("raw_data") or any(len(getattr(tensor, name)) for name in _TYPED)


def set_tensor(name: str, tensor: TensorProto, array: Array) -> None:
    """Make a tensor describe `array`; up to SMALL bytes it holds the data too. One that does already is left alone."""
    code, small = type_code(name, array), stored_size(array) <= SMALL
    alike = tensor.data_type == code and tuple(tensor.dims) == array.shape
    if small and alike and has_data(tensor) and same(array, numpy_helper.to_array(tensor)):
        return
    del tensor.dims[:]
    tensor.dims.extend(array.shape)
    tensor.data_type = code
    if small:
        set_data(tensor, array)
    else:
        clear_data(tensor)
