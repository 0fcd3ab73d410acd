"""What a format says of itself: a row of `registry.FORMATS`, and all that the rest of the package asks.

A format is a value of `--format`, and one file: `csr.py`, `nm.py`, `bsr.py` hold weights in operators of ours
(`Storage`), `columns.py` and `initializer.py` in ONNX's own (`Plain`), `dense.py` leaves them as they are. A new one is
one more file, and one more row.

W is the weight of a layer as docs/sparse-format.md has it; *codes* are its values in the type in which they are stored
(`formats.values`), in the layout of the initializer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.formats.arrays import Types
from onnxprune.formats.patterns import Pattern
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.node import Node
from onnxprune.kernels.names import STORAGES
from onnxprune.layers.layer import Layer


@dataclass(frozen=True)
class Packed:
    """A weight as an operator of ours holds it.

    shape: of W, `(M, K)`, `(M, C/group, kh, kw)` or `(M, C/group, kw)`; arrays: by name, those of `Storage.arrays`, and
    `scale` float32 `(M,)` where values are int8; pattern: what the operator's own attributes say; group: of a Conv, 1
    elsewhere.
    """

    shape: tuple[int, ...]
    arrays: Mapping[str, Array] = field(repr=False)
    pattern: Pattern | None
    group: int

    @property
    def stored(self) -> int:
        """Bytes of the arrays in the file."""
        return sum(array.nbytes for array in self.arrays.values())


def no_attributes(pattern: Pattern | None) -> dict[str, Any]:
    """Of an operator whose arrays say all."""
    return {}


def no_pattern(where: str, node: Node) -> None:
    """Of an operator without own attributes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Storage:
    """How operators of ours hold a weight.

    name: with which their names begin; where `kernels.names.STORAGES` does not have it, their functions alone compute
        them. version: of the domain, the first that has them.
    arrays: inputs that hold the weight, `values` first. attributes: of their own, name -> type (int or list).
    pack: layer, codes, pattern -> arrays; raises `OptionError` where the codes do not conform to the pattern.
    check: raises `ModelFileError`, naming `where` and the array, unless the arrays hold a weight; values may be of
        `types`.
    unpack: codes of `Packed.shape`, from what `check` has let through.
    smallest: of a layer whose weight is not zero where `kept` (bool, the initializer's layout), with values of so many
        bytes: bytes and pattern of the smallest way to hold it, None where there is none, for the reason `none`.
    body: product -> the nodes of a function, as text, from `values_float`, the other arrays and the attributes to
        `decoded_all`, W without its scale. It finds the constants of `functions.function`, and takes no name that the
        rest of the function has.
    quantizes: whether there are operators on uint8 and int8 as well.
    given: pattern -> the own attributes. read: node -> the pattern; raises `ModelFileError`, naming `where`.
    """

    name: str
    version: int
    arrays: tuple[str, ...]
    pack: Callable[[Layer, Array, Pattern | None], tuple[Array, ...]]
    check: Callable[[str, Packed, Types], None]
    unpack: Callable[[Packed], Array]
    smallest: Callable[[Layer, Array, int], tuple[int, Pattern | None] | None]
    body: Callable[[str], str]
    none: str = ""
    quantizes: bool = False
    attributes: Mapping[str, type[Any]] = field(default_factory=dict)
    given: Callable[[Pattern | None], dict[str, Any]] = no_attributes
    read: Callable[[str, Node], Pattern | None] = no_pattern


@dataclass(frozen=True, eq=False, kw_only=True)
class Plain:
    """How ONNX's own operators hold weights.

    write: model, layers, least estimated speed-up -> a copy of the model, nodes of the layers that it holds so, notes.
    reason: why the other layers are dense. gain: what makes the model faster, so that `auto` tries it, "" for nothing.
    note: what the user should know of the file; inferred: whether onnx's shape inference reads it.
    """

    write: Callable[[Model, Sequence[Layer], float], tuple[Model, list[str], list[str]]]
    reason: str
    gain: str = ""
    note: str = ""
    inferred: bool = True


def no_operator(layer: Layer) -> str:
    """Why no operator of ours, nor any that takes its place, stands for a layer; "" where one does."""
    rank, trait = len(layer.array_shape), layer.trait
    if layer.inside:
        return f"inside the {layer.inside}"
    if not trait.sparse:
        return f"no sparse operator stands for {layer.op}"
    if layer.stored is not None and layer.stored.dtype != np.float32:
        return f"no sparse operator takes {layer.stored.dtype} weights"
    if layer.stored is not None and layer.stored.steps:
        return f"its weight comes through {', '.join(step.op for step in layer.stored.steps)}"
    if layer.turned:
        return f"its weight {layer.initializer} is read in another orientation as well"
    if not trait.kernel:
        return "" if rank == 2 else f"its weight is of rank {rank}, not 2"
    if rank > 4:
        return f"convolution in {rank - 2} dimensions stays dense"
    if layer.segment == 1:
        return f"{'depthwise convolution' if layer.group > 1 else 'convolution of one channel'} stays dense"
    return ""


@dataclass(frozen=True, eq=False)
class Format:
    """A row of FORMATS.

    name, help: as `--format` has them. pattern: the kind (`NMPattern.kind`) of the patterns by which its zeros lie, ""
    for any. present: whether it stores zeros that a model has, too. needs: the line that refuses it where zeros are
    made by another pattern, or not made and not `present`. advice: what the user should know who asks for it,
    instead: and what to ask for where operators of ours take a layer.
    refuses: why it cannot store a layer, "" where it can. storage, plain: how it holds weights; dense has neither.
    """

    name: str
    help: str
    pattern: str = ""
    present: bool = False
    needs: str = ""
    advice: str = ""
    instead: str = ""
    refuses: Callable[[Layer], str] = no_operator
    storage: Storage | None = None
    plain: Plain | None = None

    @property
    def dense(self) -> bool:
        """Whether weights lie in the file as in any other."""
        return self.storage is None and self.plain is None

    @property
    def faster(self) -> bool:
        """Whether the model may become faster, so that `auto` tries it: a format with kernels, or less work."""
        if self.storage is not None:
            return self.storage.name in STORAGES
        return self.plain is not None and bool(self.plain.gain)

    def serves(self, pattern: Pattern | None) -> bool:
        """Whether it stores zeros that were made by this pattern."""
        return not self.pattern or (pattern is not None and pattern.kind == self.pattern)

    def packing(self, pattern: Pattern | None) -> Packing:
        """A layer in this format; the pattern goes along where the format stores by it."""
        return Packing(self, pattern if self.storage is not None and self.pattern else None)


@dataclass(frozen=True)
class Packing:
    """The format of one layer, and the pattern that it is stored by, None for those that need none.

    >>> from onnxprune.formats.patterns import NMPattern
    >>> from onnxprune.formats.registry import FORMATS
    >>> str(Packing(FORMATS["csr"])), str(FORMATS["nm"].packing(NMPattern(2, 4)))
    ('csr', 'nm 2:4')
    """

    format: Format
    pattern: Pattern | None = None

    def __str__(self) -> str:
        return self.format.name if self.pattern is None else f"{self.format.name} {self.pattern}"

    @property
    def storage(self) -> Storage:
        """Of a format with operators of ours."""
        assert self.format.storage is not None, self
        return self.format.storage
