"""Formulas as they are written: `dy * (1 - y * y)` makes nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from onnxprune.gradient.backward import Backward

Factor: TypeAlias = "Tensor | float"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor in a formula; numbers beside it have its type."""

    b: Backward
    name: str

    def op(self, kind: str, *others: Factor, **attributes: Any) -> Tensor:
        """A node of one output that reads this tensor first."""
        return Tensor(self.b, self.b.op(kind, self.name, *map(self._of, others), **attributes))

    def _of(self, other: Factor) -> str:
        return other.name if isinstance(other, Tensor) else self.b.constant(other, like=self.name)

    def of(self, value: float) -> Tensor:
        """A number of the type of this tensor."""
        return Tensor(self.b, self._of(value))

    def where(self, x: Factor, y: Factor, like: Tensor) -> Tensor:
        """x where this condition holds, else y; numbers are of the type of `like`."""
        return self.op("Where", *(v if isinstance(v, Tensor) else like.of(v) for v in (x, y)))

    def cast(self, like: Tensor) -> Tensor:
        """In the type of another."""
        code = self.b.code(like.name)
        return self if code == self.b.code(self.name) else self.op("Cast", to=code)

    def sum(self, axes: Iterable[int]) -> Tensor:
        """The sum over axes, which stay."""
        return Tensor(self.b, self.b.sum(self.name, axes, keepdims=True))

    def mean(self, axes: Iterable[int]) -> Tensor:
        """The mean over axes, which stay."""
        return Tensor(self.b, self.b.reduce("ReduceMean", self.name, axes, keepdims=True))

    def __add__(self, other: Factor) -> Tensor:
        return self if other == 0 else self.op("Add", other)

    def __sub__(self, other: Factor) -> Tensor:
        return self if other == 0 else self.op("Sub", other)

    def __mul__(self, other: Factor) -> Tensor:
        return self if other == 1 else self.op("Mul", other)

    def __truediv__(self, other: Factor) -> Tensor:
        return self if other == 1 else self.op("Div", other)

    def __pow__(self, other: Factor) -> Tensor:
        if other == 1:
            return self
        return self * self if other == 2 else self.op("Pow", other)

    def __radd__(self, other: float) -> Tensor:
        return self + other

    def __rsub__(self, other: float) -> Tensor:
        return self.of(other) - self

    def __rmul__(self, other: float) -> Tensor:
        return self * other

    def __rtruediv__(self, other: float) -> Tensor:
        return self.op("Reciprocal") if other == 1 else self.of(other) / self

    def __neg__(self) -> Tensor:
        return self.op("Neg")

    def __gt__(self, other: Factor) -> Tensor:
        return self.op("Greater", other)

    def __lt__(self, other: Factor) -> Tensor:
        return self.op("Less", other)

    def __ge__(self, other: Factor) -> Tensor:
        return self.op("GreaterOrEqual", other)
