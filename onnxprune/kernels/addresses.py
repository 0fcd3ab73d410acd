"""Arrays at addresses, which the C part hands over as numbers, and plain loops over arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from onnxprune.kernels.tables import LINE


def _pointer_to(dtype: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def cast(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(types.CPointer(dtype)))

        return types.CPointer(dtype)(types.int64), codegen

    return cast


_f32, _i64, _i32, _u32, _u16, _u8, _i8 = (
    _pointer_to(t)
    for t in (types.float32, types.int64, types.int32, types.uint32, types.uint16, types.uint8, types.int8)
)


@intrinsic  # type: ignore[untyped-decorator]
def float_of(typing_context: Any, bits: Any) -> Any:
    """The float32 of the low 32 bits of an int64."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.trunc(values[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _bits(typing_context: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.zext(builder.bitcast(values[0], ir.IntType(32)), ir.IntType(64))

    return types.int64(types.float32), codegen


@njit
def bits_of(value: Any) -> int:
    """The bits of a number as float32."""
    return int(_bits(np.float32(value)))


@njit
def f32(address: int, n: int) -> Any:
    """n float32 at an address."""
    return carray(_f32(address), n)


@njit
def i64(address: int, n: int) -> Any:
    """n int64 at an address."""
    return carray(_i64(address), n)


@njit
def i32(address: int, n: int) -> Any:
    """n int32 at an address."""
    return carray(_i32(address), n)


@njit
def u32(address: int, n: int) -> Any:
    """n uint32 at an address."""
    return carray(_u32(address), n)


@njit
def u16(address: int, n: int) -> Any:
    """n uint16 at an address."""
    return carray(_u16(address), n)


@njit
def load_bytes(address: int, n: int) -> int:
    """n bytes, at most 4, as an unsigned integer, the first one lowest; the address may be odd."""
    out = 0
    for i in range(n):
        out |= int(u8(address, n)[i]) << (8 * i)
    return out


@njit
def u8(address: int, n: int) -> Any:
    """n uint8 at an address."""
    return carray(_u8(address), n)


@njit
def i8(address: int, n: int) -> Any:
    """n int8 at an address."""
    return carray(_i8(address), n)


# plain loops: numba compiles slices and sorting slowly


@njit
def clear(out: Any, begin: int, end: int) -> None:
    """Zeros in out[begin:end]."""
    for i in range(begin, end):
        out[i] = 0


@njit
def copy(out: Any, begin: int, source: Any, origin: int, n: int) -> None:
    """n elements from source[origin:] to out[begin:]."""
    for i in range(n):
        out[begin + i] = source[origin + i]


@njit
def descending(keys: Any, most: int, order: Any) -> None:
    """Stable order of keys in 0 ... most, the largest first (counting sort)."""
    place = np.zeros(most + 2, np.int64)
    for key in keys:
        place[most - key + 1] += 1
    for i in range(most + 1):
        place[i + 1] += place[i]
    for i in range(len(keys)):
        order[place[most - keys[i]]] = i
        place[most - keys[i]] += 1


@njit
def aligned(n: int) -> int:
    """n rounded up to a line of the cache."""
    return (n + LINE - 1) // LINE * LINE
