"""What one run of a model file takes, by models of energy and memory: of the file as it is written, sparse or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.formats.densify import densify
from onnxprune.graph.arrays import Array, Ids
from onnxprune.graph.cost import CostModel, cost_model
from onnxprune.graph.energy import Energy, EnergyTable, energy_model
from onnxprune.graph.io import Model, weight_bytes
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.peak import Peak, peak_model
from onnxprune.graph.shapes import Shapes, infer
from onnxprune.graph.traits import Axes, product


def axes_of(shapes: Shapes) -> Axes:
    """Ids for every axis of known size, the same for all: of a model of which nothing goes."""

    def axes(name: str) -> list[Ids | None]:
        return [None if d is None or d < 2 else np.arange(d) for d in shapes.shapes.get(name, ())]

    return axes


@dataclass(frozen=True, eq=False)
class Counted:
    """What models of a run are counted from; whole: of the ids, all of which stay, bool `(ids,)`."""

    costs: CostModel
    nodes: Sequence[Node]
    shapes: Shapes
    axes: Axes
    whole: Array


def counted(model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None) -> Counted:
    """Nodes, shapes and costs of a file. Sparse operators multiply only what is not zero, and need what the file stores
    of a weight. input_shapes: input name -> concrete shape."""
    dense = densify(model)
    shapes = infer(dense, input_shapes)
    nodes, axes = list(walk_all(dense.proto.graph, shapes.opsets)), axes_of(shapes)
    filled = {n: np.count_nonzero(w) / w.size for n, w in dense.weights.items() if n not in model.weights and w.size}
    share = {node.label: filled[name] for node in nodes for name in node.inputs if name in filled}
    costs = cost_model(nodes, shapes, axes, {})
    costs = replace(costs, macs_of=tuple(replace(p, factor=p.factor * share.get(p.label, 1.0)) for p in costs.macs_of))
    if filled:
        costs = replace(costs, bytes_of=(product("weights", weight_bytes(model), ()),))
    sizes = [d for shape in shapes.shapes.values() for d in shape if d is not None]
    return Counted(costs, nodes, shapes, axes, np.ones(max(sizes, default=1), bool))


def energy_of(model: Model, table: EnergyTable, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Energy:
    """Energy of one run; input_shapes: input name -> concrete shape."""
    c = counted(model, input_shapes)
    return energy_model(table, c.costs, c.nodes, c.shapes, c.axes).of(c.whole)


def peak_of(model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Peak:
    """Peak memory of one run; input_shapes: input name -> concrete shape."""
    c = counted(model, input_shapes)
    return peak_model(c.costs, c.nodes, c.shapes, c.axes).of(c.whole)
