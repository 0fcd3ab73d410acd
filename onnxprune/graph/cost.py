"""Parameters, MACs and bytes of a model, also of one that is only planned.

A `CostModel` is made once from an analysis' ids; each question ("how many MACs if these ids survive?") is then a
few sums over booleans, so that a search over targets costs milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onnxprune.graph.arrays import Array, Ids, stored_bits, stored_size
from onnxprune.graph.io import weight_bytes
from onnxprune.graph.node import Node
from onnxprune.graph.normalisation import STATISTICS
from onnxprune.graph.shapes import Shapes
from onnxprune.graph.traits import TRAITS, Axes, CostInputs, Product, product


@dataclass(frozen=True, eq=False)
class CostModel:
    """macs: multiply-accumulates of one run, per node; parameters: trained numbers, per weight; bytes: of the file, per
    weight, and `overhead` for the graph itself."""

    macs_of: tuple[Product, ...]
    parameters_of: tuple[Product, ...]
    bytes_of: tuple[Product, ...]
    overhead: float

    def macs(self, keep: Array) -> float:
        """MACs of one run if the ids that are True in `keep`, `(ids,)`, survive."""
        return sum(p(keep) for p in self.macs_of)

    def parameters(self, keep: Array) -> float:
        """Trained numbers that are left."""
        return sum(p(keep) for p in self.parameters_of)

    def bytes(self, keep: Array) -> float:
        """Bytes of the file that is left, but for what nodes of the graph gain or lose."""
        return self.overhead + sum(p(keep) for p in self.bytes_of)


def cost_model(
    nodes: Iterable[Node],
    shapes: Shapes,
    axes: Axes,
    grouped: dict[str, Ids],
    gates: Mapping[str, Ids] = MappingProxyType({}),
) -> CostModel:
    """The costs of a model whose nodes these are, as functions of the ids that survive; a node without a row in
    `traits.TRAITS`, or of unknown shape, costs no MACs.

    axes: name -> ids per axis (None: an axis that never shrinks); grouped: weight -> ids `(groups, width)`; gates: node
    key -> the id without which the node is gone, `(1,)`.
    """
    nodes = list(nodes)
    gate_of: dict[str, Ids | None] = {}  # weight -> gate that all its readers share
    for node in nodes:
        gate = gates.get(node.key)
        for name in node.inputs:
            same = name not in gate_of or (gate is not None and gate is gate_of[name])
            gate_of[name] = gate if same else None

    inputs = CostInputs(shapes, axes, grouped)
    macs: list[Product] = []
    statistics: set[str] = set()
    for node in nodes:
        if node.op == "BatchNormalization":
            statistics.update(node.inputs[i] for i in STATISTICS if i < len(node.inputs))
        trait, shape = TRAITS.get(node.op), shapes.shapes.get(node.key)
        if trait is None or shape is None or None in shape:
            continue
        terms = trait.macs(node, trait, inputs)
        if node.key in gates:
            terms = [Product(p.label, p.factor, (*p.ids, gates[node.key]), (*p.divisors, 1)) for p in terms]
        macs += terms
    parameters, stored = [], []
    for name, weight in shapes.model.weights.items():
        axis_ids = axes(name) or [None] * weight.ndim  # no node reads it: nothing shrinks
        counted = [(a, 1) for a in (*axis_ids, gate_of.get(name))]
        if name in grouped:
            counted.append((grouped[name], len(grouped[name])))
        fixed = math.prod(d for d, a in zip(weight.shape, axis_ids, strict=True) if a is None)
        if name in grouped:
            fixed //= weight.shape[1]
        stored.append(product(name, fixed * stored_bits(weight) / 8, counted))
        if trained(weight) and name not in statistics:
            parameters.append(product(name, float(fixed), counted))
    model = shapes.model
    overhead = model.proto.ByteSize() + weight_bytes(model) - sum(stored_size(w) for w in model.weights.values())
    return CostModel(tuple(macs), tuple(parameters), tuple(stored), float(overhead))


def trained(weight: Array) -> bool:
    """Whether a constant is of trained numbers: floats, and integers of 8 bits or fewer; shapes, indices and flags are
    not."""
    return weight.dtype.kind in "fV" or (weight.dtype.kind in "iu" and weight.dtype.itemsize == 1)
