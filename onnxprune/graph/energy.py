"""Energy of one run, by a model: what is multiplied and added, and what is moved at each level of memory.

    E = sum over nodes of MACs * (multiply + add)  +  weights * w  +  sum over tensors of bytes * (writes + reads) * a

Weights are read once, from the smallest memory that holds all of them; a tensor is written and read in the smallest
that holds it. The figures are published ones for one process (`HOROWITZ`), or of a file: joules of another chip are
others, and the model says how two networks compare, not what a meter would show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.graph.activations import activations
from onnxprune.graph.arrays import BITS, FLOAT_TYPES, Array, Float, Ids
from onnxprune.graph.cost import CostModel
from onnxprune.graph.links import makers
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import Shapes
from onnxprune.graph.traits import TRAITS, Axes, Product, Trait, no_macs

WORD = 8  # bytes of one access
PICO = 1e-12
TYPES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Arithmetic:
    """Picojoules of one multiplication, and of one addition to its sum."""

    multiply: float
    add: float


@dataclass(frozen=True)
class Level:
    """A memory: how many bytes it holds, and picojoules of an access of 64 bits."""

    name: str
    bytes: float
    access: float


@dataclass(frozen=True)
class EnergyTable:
    """arithmetic: of `TYPES`; levels: from the smallest memory to the one that holds everything."""

    source: str
    arithmetic: Mapping[str, Arithmetic]
    levels: tuple[Level, ...]

    def mac(self, type_: str) -> float:
        """Picojoules of a multiplication with its addition."""
        row = self.arithmetic[type_]
        return row.multiply + row.add

    def level(self, size: float) -> Level:
        """The smallest memory that holds so many bytes."""
        return next(level for level in self.levels if size <= level.bytes)

    def per_byte(self, sizes: Float) -> Float:
        """Picojoules to move one byte of something that has so many: `(...)` to `(...)`."""
        holds = np.array([level.bytes for level in self.levels])
        access = np.array([level.access for level in self.levels])
        return np.asarray(access[np.searchsorted(holds, sizes)] / WORD)

    def __str__(self) -> str:
        done = [f"{t}: multiply {a.multiply:g}, add {a.add:g}" for t, a in self.arithmetic.items()]
        moved = [f"{level.name} {level.access:g}" for level in self.levels]
        return f"{self.source}. Picojoules of {'; '.join(done)}; of 64 bits from {', '.join(moved)}"


# Of int8 the sum is of 32 bits. A cache's figure stands for all up to its size; memory: the lower end of 1.3 to 2.6 nJ.
HOROWITZ = EnergyTable(
    "Horowitz, Computing's energy problem, ISSCC 2014, 45 nm at 0.9 V",
    {"float32": Arithmetic(3.7, 0.9), "float16": Arithmetic(1.1, 0.4), "int8": Arithmetic(0.2, 0.1)},
    (Level("8 KiB cache", 8 << 10, 10), Level("32 KiB cache", 32 << 10, 20), Level("1 MiB cache", 1 << 20, 100),
     Level("DRAM", math.inf, 1300)),
)  # fmt: skip
TABLES = {"horowitz": HOROWITZ}


@dataclass(frozen=True)
class Energy:
    """Joules of one run: of arithmetic, of reading weights from `weights_from`, and of writing and reading tensors."""

    arithmetic: float
    weights: float
    activations: float
    weights_from: str

    @property
    def joules(self) -> float:
        """All together."""
        return self.arithmetic + self.weights + self.activations

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in joules."""
        return {"joules": self.joules, **asdict(self)}


@dataclass(frozen=True, eq=False)
class EnergyModel:
    """What the energy of a run is counted from; `amounts` is all of it, in this order.

    macs: multiply-accumulates, each at `price` picojoules; weights: bytes that are stored, of which the run reads the
    `read` ones; looked_up: bytes of rows that are read of tables; moved: bytes of tensors, each written or read so many
    `times`.
    """

    table: EnergyTable
    macs: tuple[Product, ...]
    price: Float
    weights: tuple[Product, ...]
    read: Float
    looked_up: tuple[Product, ...]
    moved: tuple[Product, ...]
    times: Float

    @property
    def amounts(self) -> tuple[Product, ...]:
        """Everything that is counted."""
        return (*self.macs, *self.weights, *self.looked_up, *self.moved)

    def parts(self, amounts: Float) -> tuple[Float, Float, Float, Float]:
        """Joules of arithmetic, weights and tensors, and bytes of all weights: `(amounts, ...)` to `(...)` each."""
        macs, weights, rows, moved = np.split(
            amounts, np.cumsum([len(self.macs), len(self.weights), len(self.looked_up)])
        )  # fmt: skip
        stored = weights.sum(0)
        read = np.tensordot(self.read, weights, 1) + rows.sum(0)
        return (
            PICO * np.tensordot(self.price, macs, 1), PICO * read * self.table.per_byte(stored),
            PICO * np.tensordot(self.times, moved * self.table.per_byte(moved), 1), stored,
        )  # fmt: skip

    def total(self, amounts: Float) -> Float:
        """Joules of one run, `(amounts, ...)` to `(...)`."""
        arithmetic, weights, moved, _ = self.parts(amounts)
        return np.asarray(arithmetic + weights + moved)

    def of(self, keep: Array) -> Energy:
        """The energy if the ids survive that are True in `keep`, `(ids,)`."""
        arithmetic, weights, moved, stored = map(float, self.parts(np.array([p(keep) for p in self.amounts])))
        return Energy(arithmetic, weights, moved, self.table.level(stored).name)


def energy_model(
    table: EnergyTable,
    costs: CostModel,
    nodes: Iterable[Node],
    shapes: Shapes,
    axes: Axes,
    gates: Mapping[str, Ids] = MappingProxyType({}),
) -> EnergyModel:
    """The energy of a model whose nodes and costs these are, as a function of the ids that survive; the other arguments
    are those of `cost_model`. What costs no MACs there, activation functions and normalisations, does no arithmetic."""
    nodes = list(nodes)
    made = makers(nodes)
    types = {node.label: arithmetic_type(node, TRAITS[node.op], made, shapes) for node in nodes if node.op in TRAITS}
    tables = {node.key: node for node in nodes if looks_up(node, TRAITS.get(node.op))}
    rows = {name for node in tables.values() for name in node.inputs}
    whole = {name for node in nodes if node.key not in tables for name in node.inputs}
    tensors = activations(nodes, shapes, axes, gates)
    return EnergyModel(
        table,
        costs.macs_of, np.array([table.mac(types[p.label]) for p in costs.macs_of]),
        costs.bytes_of, np.array([float(p.label in whole or p.label not in rows) for p in costs.bytes_of]),
        tuple(a.bytes for a in tensors if a.name in tables),
        tuple(a.bytes for a in tensors), np.array([float(a.writes + a.reads) for a in tensors]),
    )  # fmt: skip


def looks_up(node: Node, trait: Trait | None) -> bool:
    """Whether a node reads rows of its weight, as many as it puts out, and not all of it."""
    return trait is not None and trait.macs is no_macs and node.op.endswith(("Gather", "GatherBlockQuantized"))


def arithmetic_type(node: Node, trait: Trait, made: Mapping[str, Node], shapes: Shapes) -> str:
    """The one of `TYPES` in which a node multiplies: the wider of its operands', behind their DequantizeLinear.

    float64 counts as float32, bfloat16 and narrower floats as float16.
    """
    operands = [node.input(i) for i in (trait.source, *trait.slots)] if trait.weights else node.inputs[:2]
    stored = [made[n].input(0) if n in made and made[n].op == "DequantizeLinear" else n for n in operands if n]
    codes = [shapes.types[n] for n in stored if n in shapes.types]
    if codes and all(BITS.get(c, 32) <= 8 for c in codes):
        return "int8"
    floats = [c for c in codes if c in FLOAT_TYPES]
    return "float16" if floats and all(BITS[c] <= 16 for c in floats) else "float32"


def table_of(name: str | Path) -> EnergyTable:
    """The table of this name, or of a JSON file as docs/energy.md has it; raises `OptionError` in a line that names the
    key."""
    if name in TABLES:
        return TABLES[str(name)]
    path = Path(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        listed = _at(content, "levels", list, "memories, from the smallest on")
        table = EnergyTable(
            _at(content, "source", str, "whose figures these are, as text"),
            {t: Arithmetic(*(_number(content, f"arithmetic.{t}.{key}") for key in ("multiply", "add"))) for t in TYPES},
            tuple(
                Level(
                    _at(content, f"levels.{k}.name", str, "a text"),
                    math.inf if k == len(listed) - 1 else _number(content, f"levels.{k}.bytes"),
                    _number(content, f"levels.{k}.access"),
                )
                for k in range(len(listed))
            ),
        )
        sizes = [level.bytes for level in table.levels]
        if not sizes or sizes != sorted(set(sizes)):
            raise ValueError("levels: expected at least one memory, each of more bytes than the one before it")
    except OSError as e:
        raise OptionError(f"--energy-table {path}: {e.strerror or e}") from None
    except ValueError as e:
        raise OptionError(f"--energy-table {path}: {e}; docs/energy.md has an example") from None
    return table


def _at(content: Any, where: str, kind: type | tuple[type, ...], expected: str) -> Any:
    """What stands at a dotted place; raises `ValueError` where it is not of the kind."""
    value = content
    for key in where.split("."):
        value = value[int(key)] if isinstance(value, list) else value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: expected {expected}")
    return value


def _number(content: Any, where: str) -> float:
    """A number, 0 or more."""
    x = float(_at(content, where, (int, float), "a number, 0 or more"))
    if not 0 <= x < math.inf:
        raise ValueError(f"{where}: expected a number, 0 or more")
    return x
