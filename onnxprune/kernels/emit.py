"""Loops over vectors, written as LLVM IR and compiled by numba.

numba's own code generation keeps neither accumulators in registers nor a fixed width of vectors, both of which a sparse
product lives on. A kernel here is a Python function that emits the body of a loop nest; `kernel` makes it callable from
numba. All its arguments are int64: sizes, and addresses as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

F16, F32 = ir.HalfType(), ir.FloatType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
POINTER = ir.PointerType()
Value = Any  # an ir.Value; llvmlite is untyped


def vector(lanes: int, element: Any = F32) -> Any:
    """The type of a vector; a single lane is a vector too."""
    return ir.VectorType(element, lanes)


def constant(value: int, kind: Any = I64) -> Value:
    """An integer constant."""
    return ir.Constant(kind, value)


def lanes_of(values: Sequence[int], kind: Any = I32) -> Value:
    """A constant vector of integers."""
    return ir.Constant(vector(len(values), kind), list(values))


class Emitter:
    """An `ir.IRBuilder` with the few operations that the kernels are made of."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def pointer(self, address: Value) -> Value:
        """An int64 as a pointer."""
        return self.b.inttoptr(address, POINTER)

    def at(self, pointer: Value, offset: Value | int) -> Value:
        """The pointer `offset` bytes further on."""
        if isinstance(offset, int):
            if offset == 0:
                return pointer
            offset = constant(offset)
        return self.b.gep(pointer, [offset], inbounds=True, source_etype=I8)

    def add(self, a: Value, b: Value | int) -> Value:
        """a + b, int64."""
        return self.b.add(a, constant(b) if isinstance(b, int) else b)

    def mul(self, a: Value, b: Value | int) -> Value:
        """a * b, int64."""
        return self.b.mul(a, constant(b) if isinstance(b, int) else b)

    def load(self, pointer: Value, kind: Any, align: int = 4) -> Value:
        """The value at `pointer`, which may lie at any multiple of `align` bytes."""
        return self.b.load(pointer, align=align, typ=kind)

    def index(self, pointer: Value, kind: Any) -> Value:
        """An unsigned integer of memory, as int64."""
        loaded = self.load(pointer, kind, kind.width // 8)
        return loaded if kind is I64 else self.b.zext(loaded, I64)

    def store(self, value: Value, pointer: Value, align: int = 4) -> None:
        """Write `value` at `pointer`."""
        self.b.store(value, pointer, align=align)

    def splat(self, scalar: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        kind = vector(lanes, scalar.type)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, constant(0, I32))
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), lanes_of([0] * lanes))

    def zero(self, lanes: int, element: Any = F32) -> Value:
        """A vector of zeros."""
        return ir.Constant(vector(lanes, element), None)

    def intrinsic(self, name: str, result: Any, arguments: Sequence[Value]) -> Value:
        """Call an intrinsic of LLVM."""
        known = self.b.module.globals.get(name)
        if known is None:
            known = ir.Function(self.b.module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.b.call(known, arguments)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c: in one instruction where the CPU has it, never by a call of a library."""
        return self.intrinsic(f"llvm.fmuladd.v{a.type.count}f32", a.type, [a, b, c])

    def prefetch(self, pointer: Value) -> None:
        """Ask for the line at `pointer`, which need not exist."""
        arguments = [pointer, *(constant(v, I32) for v in (0, 3, 1))]
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), arguments)

    def when(
        self, condition: Value, then: Callable[[], list[Value]], otherwise: Callable[[], list[Value]]
    ) -> list[Value]:
        """The values of one of two branches."""
        b = self.b
        yes, no, end = (b.append_basic_block() for _ in range(3))
        b.cbranch(condition, yes, no)
        b.position_at_end(yes)
        first = then()
        from_yes = b.block
        b.branch(end)
        b.position_at_end(no)
        second = otherwise()
        from_no = b.block
        b.branch(end)
        b.position_at_end(end)
        out = []
        for x, y in zip(first, second, strict=True):
            phi = b.phi(x.type)
            phi.add_incoming(x, from_yes)
            phi.add_incoming(y, from_no)
            out.append(phi)
        return out

    def loop(
        self,
        start: Value | int,
        stop: Value | int,
        step: Value | int,
        state: Sequence[Value],
        body: Callable[[Value, list[Value]], Sequence[Value]],
    ) -> list[Value]:
        """`for i in range(start, stop, step): state = body(i, state)`; the last state."""
        b = self.b
        start, stop, step = (constant(v) if isinstance(v, int) else v for v in (start, stop, step))
        before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_signed("<", start, stop), inside, after)
        b.position_at_end(inside)
        i = b.phi(I64)
        i.add_incoming(start, before)
        current = []
        for value in state:
            phi = b.phi(value.type)
            phi.add_incoming(value, before)
            current.append(phi)
        new = list(body(i, list(current)))
        following, last = b.add(i, step), b.block
        i.add_incoming(following, last)
        for phi, value in zip(current, new, strict=True):
            phi.add_incoming(value, last)
        b.cbranch(b.icmp_signed("<", following, stop), inside, after)
        b.position_at_end(after)
        out = []
        for old, value in zip(state, new, strict=True):
            phi = b.phi(old.type)
            phi.add_incoming(old, before)
            phi.add_incoming(value, last)
            out.append(phi)
        return out

    def transpose(self, rows: list[Value]) -> list[Value]:
        """The n columns of n vectors of n lanes, n a power of two: off-diagonal squares change places, from large to
        small."""
        n = len(rows)
        size = n // 2
        while size:
            new = list(rows)
            for i in (i for i in range(n) if not i & size):
                upper = [p if not p & size else n + p - size for p in range(n)]
                lower = [p + size if not p & size else n + p for p in range(n)]
                new[i] = self.b.shuffle_vector(rows[i], rows[i + size], lanes_of(upper))
                new[i + size] = self.b.shuffle_vector(rows[i], rows[i + size], lanes_of(lower))
            rows = new
            size //= 2
        return rows


Emit = Callable[..., None]


def kernel(arguments: int, emit: Emit) -> Any:
    """A function for numba code: `kernel(n, emit)((a1, ..., an))` with int64 arguments runs what `emit` emits."""

    @intrinsic  # type: ignore[untyped-decorator]
    def call(typing_context: Any, packed: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emit(Emitter(builder), *(builder.extract_value(values[0], i) for i in range(arguments)))
            return context.get_dummy_value()

        return types.void(packed), codegen

    return call


def switch(arguments: int, *emits: Emit) -> Any:
    """One function for several kernels of the same arguments: `switch(n, ...)((which, a1, ..., an))` runs the
    `which`-th, which must exist."""

    def emit(k: Emitter, which: Value, *values: Value) -> None:
        b = k.b
        nowhere, end = b.append_basic_block(), b.append_basic_block()
        choice = b.switch(which, nowhere)
        b.position_at_end(nowhere)
        b.unreachable()
        for i, chosen in enumerate(emits):
            block = b.append_basic_block()
            choice.add_case(constant(i), block)
            b.position_at_end(block)
            chosen(k, *values)
            b.branch(end)
        b.position_at_end(end)

    return kernel(arguments + 1, emit)


__all__ = [
    "F16",
    "F32",
    "I1",
    "I8",
    "I16",
    "I32",
    "I64",
    "POINTER",
    "Emitter",
    "constant",
    "kernel",
    "lanes_of",
    "switch",
    "vector",
]
