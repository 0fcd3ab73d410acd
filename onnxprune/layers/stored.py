"""A weight and the initializer that holds it: through Cast, QuantizeLinear, DequantizeLinear, Transpose and Identity of
constants, and through the scale and zero point that an operator on integers reads with its weight.

In goes an input of a node; out comes a `Stored`, which reads the weight in float and writes another one: what did not
change keeps its bits, a zero becomes the zero point, all else is rounded to what the initializer can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from onnxprune.graph.arrays import DTYPES, Array
from onnxprune.graph.io import Model
from onnxprune.graph.node import Node
from onnxprune.graph.quantized import DEQUANTIZES, LAYOUTS, QUANTIZES, along
from onnxprune.graph.traits import TRAITS
from onnxprune.layers.values import Unsuitable, Values

CHAIN = ("Cast", "Identity", "Transpose", *QUANTIZES, *DEQUANTIZES)  # they move or scale values one by one


@dataclass(frozen=True, eq=False)
class Step:
    """What a node does to every value x. perm: of a Transpose. quantizes: (x / scale + zero), else (x - zero) * scale;
    both broadcast against the values, None for none. dtype: of the result, to which it is rounded."""

    op: str
    dtype: np.dtype[Any]
    perm: tuple[int, ...] = ()
    scale: Array | None = None
    zero: Array | None = None

    @property
    def quantizes(self) -> bool:
        """Whether integers come out of numbers."""
        return self.op in QUANTIZES

    def forth(self, x: Array) -> Array:
        """What the node makes of its input, in the type of x, which may be wider."""
        if self.perm:
            return np.asarray(x.transpose(self.perm))
        x = self._divided(x) if self.quantizes else self._multiplied(x)
        return x if self.dtype == x.dtype else fitted(x, self.dtype).astype(x.dtype)

    def back(self, y: Array) -> Array:
        """An input of which the node makes about y, in the type of y."""
        if self.perm:
            return y.transpose(np.argsort(self.perm))
        y = fitted(y, self.dtype).astype(y.dtype) if self.quantizes else y
        return self._multiplied(y) if self.quantizes else self._divided(y)

    def _multiplied(self, x: Array) -> Array:
        x = x if self.zero is None else x - self.zero.astype(x.dtype)
        return x if self.scale is None else x * self.scale.astype(x.dtype)

    def _divided(self, x: Array) -> Array:
        if self.scale is not None:
            scale = self.scale.astype(np.float64)
            x = x / np.where(scale == 0, np.inf, scale)
        if self.zero is None:
            return x
        whole = np.rint(x) if integral(self.zero.dtype) else x
        return np.asarray(whole + self.zero.astype(x.dtype))


@dataclass(frozen=True, eq=False)
class Stored:
    """name, held: of the initializer, and its type; shape, dtype: of the weight as the node reads it; steps: from one
    to the other; links: the tensors on the way, the initializer first."""

    name: str
    held: np.dtype[Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    steps: tuple[Step, ...] = ()
    links: tuple[str, ...] = ()

    @property
    def offset(self) -> bool:
        """Whether a zero is stored as something else than zero, somewhere."""
        x: Array = np.zeros([1] * len(self.shape))
        for step in reversed(self.steps):
            x = step.back(x)
        return bool(fitted(x, self.held).astype(np.float64).any())

    @property
    def grid(self) -> tuple[bytes, ...]:
        """What zeros and other values are stored as: alike for weights that can share an initializer."""
        return tuple(
            np.asarray(v, np.float64).tobytes() for s in self.steps for v in (s.scale, s.zero) if v is not None
        )

    def read(self, model: Model, dtype: Any = np.float32) -> Array:
        """The weight, of `shape`; the initializer's own array where that is of the type."""
        x = np.asarray(model.weights[self.name]).astype(dtype, copy=False)
        for step in self.steps:
            x = step.forth(x)
        return x

    def write(self, model: Model, weight: Array) -> None:
        """Make the initializer hold a weight of `shape`; what has not changed keeps its bits."""
        new = self.encoded(model, weight)
        new.flags.writeable = False
        model.weights[self.name] = new

    def rounded(self, model: Model, weight: Array) -> Array:
        """The weight as it is once it was written."""
        other = Model(model.proto, {self.name: self.encoded(model, weight)})
        return self.read(other, weight.dtype)

    def encoded(self, model: Model, weight: Array) -> Array:
        """The initializer's array for a weight."""
        old = np.asarray(model.weights[self.name])
        if not self.steps and old.dtype == weight.dtype:
            return np.ascontiguousarray(weight.reshape(old.shape)).view()
        changed = self.read(model, weight.dtype) != weight
        before = np.signbit(weight) if np.issubdtype(weight.dtype, np.floating) else False
        changed |= (weight == 0) & ~before  # -0.0 becomes 0
        x = weight
        for step in reversed(self.steps):
            x = step.back(x)
            changed = changed.transpose(np.argsort(step.perm)) if step.perm else changed
        out = np.array(old)
        out[changed] = fitted(x, old.dtype)[changed]
        return out


def fitted(x: Array, dtype: np.dtype[Any]) -> Array:
    """The nearest values of a type; what is beyond its range becomes the last of it."""
    if dtype == x.dtype:
        return x
    whole = integral(dtype)
    limits: Any = ml_dtypes.iinfo(dtype) if whole else ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    low, high = float(limits.min), float(limits.max)
    if whole or high < float(np.finfo(x.dtype).max):
        x = np.clip(np.rint(x) if whole else x, low, high)  # NaN stays
    return x.astype(dtype)


def integral(dtype: np.dtype[Any]) -> bool:
    """Whether values of a type are whole numbers, those of 4 bits too."""
    return "int" in dtype.name


def stored_weight(node: Node, slot: int, values: Values) -> Stored | str:
    """Where the weight at an input of a node lies, or why zeros cannot be put there; "" where it is no constant.

    values: of the model, whose nodes it finds. An initializer that other nodes read as well is for the caller to see.
    """
    model, chain = values.model, list[Node]()
    name = node.input(slot)
    while name not in model.weights:
        maker = values.makers.get(name)
        if maker is None or maker.op not in CHAIN:
            return ""
        chain.insert(0, maker)
        name = maker.input(0)
    array = model.weights[name]
    shape, dtype, steps = tuple(array.shape), array.dtype, list[Step]()
    try:
        for maker in chain:
            step = step_of(maker, shape, dtype, values)
            if step is not None:
                steps.append(step)
                shape, dtype = tuple(shape[k] for k in step.perm) or shape, step.dtype
        own = _own(node, slot, len(shape), values)
    except Unsuitable as e:
        return str(e)
    if own is not None:
        steps, dtype = [*steps, own], own.dtype
    return Stored(name, array.dtype, shape, dtype, tuple(steps), (name, *(maker.output(0) for maker in chain)))


def plainly(name: str, array: Array) -> Stored:
    """An initializer that a node reads as it is."""
    return Stored(name, array.dtype, array.shape, array.dtype, links=(name,))


def step_of(n: Node, shape: Sequence[int], dtype: np.dtype[Any], values: Values) -> Step | None:
    """What a node of a chain does to values of a shape and type; None for nothing. Raises `Unsuitable`."""
    if n.op == "Identity":
        return None
    if n.op == "Cast":
        to = DTYPES.get(n.attr("to"), np.dtype(bool))
        if to.kind == "b" or integral(to):
            raise Unsuitable(f"{n.label} makes {to} of its weight")
        return Step(n.op, to)
    if n.op == "Transpose":
        return Step(n.op, dtype, tuple(n.attr("perm", range(len(shape))[::-1])))
    scale = _constant(n, 1, "scale", values)
    zero = _constant(n, 2, "zero point", values) if n.input(2) else None
    made = scale.dtype
    if n.attr("output_dtype", 0):
        made = DTYPES[n.attr("output_dtype")]
    elif n.op in QUANTIZES:
        made = np.dtype(np.uint8) if zero is None else zero.dtype
    spread = _spread(scale, shape, n)
    return Step(n.op, made, (), spread, None if zero is None else _spread(zero, shape, n))


def _spread(value: Array, shape: Sequence[int], n: Node) -> Array:
    """A scale or zero point, shaped to broadcast against values of a shape: for all, per channel, or per block."""
    axis = int(n.attr("axis", 1))
    block = int(n.attr("block_size", 0))
    if block and value.ndim == len(shape):
        return np.repeat(value, block, axis).take(range(shape[axis]), axis)
    return along(value, len(shape), axis)


def _own(n: Node, slot: int, rank: int, values: Values) -> Step | None:
    """What the scale and the zero point mean that an operator on integers has for a weight; None where it has none.
    Raises `Unsuitable`."""
    trait = TRAITS.get(n.op)
    if trait is None or slot not in trait.weights or not trait.steps:
        return None
    if n.op in LAYOUTS:
        raise Unsuitable(f"{n.op} packs the values of its weight in a way of its own")
    k, outputs = trait.weights.index(slot), trait.axes(n, slot)[1]
    found = []
    for slots, what in ((trait.scales, "scale"), (trait.zeros, "zero point")):
        there = k < len(slots) and n.input(slots[k])
        found.append(along(_constant(n, slots[k], what, values), rank, outputs) if there else None)
    return Step(n.op, np.dtype(np.float32), (), *found)


def _constant(n: Node, slot: int, what: str, values: Values) -> Array:
    try:
        return values(n.input(slot))
    except Unsuitable as e:
        raise Unsuitable(f"the {what} of {n.label}, {n.input(slot)}, is not constant") from e


__all__ = ["CHAIN", "Step", "Stored", "fitted", "integral", "plainly", "step_of", "stored_weight"]
