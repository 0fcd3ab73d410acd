"""What rules say of axes and of nodes, beside ties and pins: see structure/coupling.py."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.graph.arrays import Ids
from onnxprune.graph.node import Node

Axis = Ids | None  # None: an axis of size one, or of unknown size


@dataclass(frozen=True)
class Consume:
    """Input `input` of `node` is summed over `axis`: what is removed must enter as zero (or as `zero`, a tensor; or as
    `neutral`, a number: minus infinity before a Softmax)."""

    node: Node
    input: int
    axis: int
    zero: str = ""
    neutral: float = 0.0


@dataclass(frozen=True)
class Produce:
    """`weight` makes the units of `ids`; along `axis` it has `repeat` blocks of them (gates of an LSTM)."""

    node: Node
    weight: str
    axis: int
    output: str


@dataclass(frozen=True)
class EvenRows:
    """Every row of `ids`, shape `(blocks, width)`, must keep the same number of units."""

    node: Node
    ids: Ids


@dataclass(frozen=True)
class Pin:
    """Why ids cannot be removed: the node and tensor that say so, and the reason for the user."""

    node: str
    op: str
    tensor: str
    axis: int
    reason: str


@dataclass(frozen=True)
class Norm:
    """`node` normalises over `ids`: what is removed does not count in its statistics.

    inputs, outputs: number of a tensor -> its axis that holds the ids.
    """

    node: Node
    ids: Ids
    inputs: dict[int, int]
    outputs: dict[int, int]


@dataclass(frozen=True)
class Contraction:
    """A product of `operands`: batch axes, and those that it sums over or makes; they are heads and the dimensions of a
    head where it turns out to be attention. computed: two operands at least are no constants."""

    node: Node
    operands: tuple[str, ...]
    batch: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    computed: bool


@dataclass(frozen=True)
class View:
    """One axis that is the row-major product of several factors: one of them can shrink, or heads and head_dim both."""

    node: Node
    tensor: str
    axis: int
    ids: Ids
    factors: tuple[Axis, ...]
    sizes: tuple[int, ...]
    product: tuple[int, int] = (-1, -1)  # the factors that are heads and the dimensions of a head, where both live
