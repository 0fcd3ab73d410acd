"""What an analysis gives: groups of units, pinned axes, and the model that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.graph.arrays import Array, Ids
from onnxprune.graph.cost import CostModel, cost_model
from onnxprune.graph.energy import EnergyModel, EnergyTable, energy_model
from onnxprune.graph.io import Model
from onnxprune.graph.node import walk_all
from onnxprune.graph.peak import PeakModel, peak_model
from onnxprune.graph.shapes import graph_inputs
from onnxprune.structure.components import Components
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.depth import Block

Keep = np.ndarray[Any, np.dtype[np.bool_]]  # True for what stays: of all ids `(ids,)`, or of a group's units `(size,)`
Dead = Mapping[str, Keep]  # group name -> units that change nothing, `(size,)`


@dataclass(frozen=True, eq=False)
class Slice:
    """Along `axis` of weight `tensor`, index i belongs to unit `units[i]` of the group (-1: to none).

    The inner axis of a grouped convolution's weight has `units` of shape `(groups, width)`.
    """

    tensor: str
    axis: int
    units: Ids


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that can be removed one by one, each through the whole graph.

    kind:   channels, heads, head_dim, hidden, layers or experts.
    labels: component of every unit, `(size,)`.
    blocks: constraints of equal survivors: how often a unit occurs in each block, `(blocks, size)`; what is kept must
            have the same sum in every block.
    """

    name: str
    kind: str
    size: int
    labels: Ids
    slices: tuple[Slice, ...]
    blocks: tuple[Ids, ...]
    nodes: tuple[str, ...]  # nodes that make the units
    names: tuple[str, ...]  # what globs match: group, nodes, weights, output tensors
    width: int = 1  # channels that one unit stands for (a GroupNormalization group, a block of DepthToSpace)
    least: int = 1  # units that must stay

    def __repr__(self) -> str:
        return f"ChannelGroup({self.name!r}, {self.kind}, size={self.size})"


@dataclass(frozen=True)
class Pinned:
    """An axis of a weight that cannot shrink, with the nearest reason."""

    tensor: str
    axis: int
    size: int
    node: str
    op: str
    reason: str


@dataclass(eq=False)
class Analysis:
    """The result of `analyze`; pure, and valid for the model that it was made of.

    dead: units that change nothing, as `structure.dead.dead_units` finds them, once each: without and with those whose
    constant biases absorb.
    """

    model: Model
    coupling: Coupling
    components: Components
    groups: tuple[ChannelGroup, ...]
    pinned: tuple[Pinned, ...]
    notes: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    dead: dict[bool, Dead] = field(default_factory=dict)

    def group(self, name: str) -> ChannelGroup:
        """Group by name; raises `KeyError`."""
        return next(g for g in self.groups if g.name == name)

    def of_kind(self, kind: str) -> list[ChannelGroup]:
        """The groups of one kind, in graph order."""
        return [g for g in self.groups if g.kind == kind]

    def costs(self) -> CostModel:
        """MACs of one run, parameters and bytes, as functions of the ids that stay."""
        c = self.coupling
        nodes = walk_all(self.model.proto.graph, c.shapes.opsets)
        return cost_model(nodes, c.shapes, c.axes, c.grouped, c.gates)

    def energy(self, table: EnergyTable) -> EnergyModel:
        """Joules of one run by a table, as a function of the ids that stay."""
        c = self.coupling
        nodes = walk_all(self.model.proto.graph, c.shapes.opsets)
        return energy_model(table, self.costs(), nodes, c.shapes, c.axes, c.gates)

    def peak(self) -> PeakModel:
        """Bytes at the peak of one run, as a function of the ids that stay."""
        c = self.coupling
        nodes = walk_all(self.model.proto.graph, c.shapes.opsets)
        return peak_model(self.costs(), nodes, c.shapes, c.axes, c.gates)

    def keep_ids(self, keep: dict[str, Keep]) -> Keep:
        """Group name -> bool `(size,)` becomes a bool per id, `(ids,)`; ids outside the named groups stay."""
        alive = np.ones(len(self.components.reason) + 1, bool)  # the last: of no component
        for g in self.groups:
            if g.name in keep:
                alive[g.labels] = keep[g.name]
        if not self.coupling.size:
            return np.zeros(0, bool)
        heads, inner = self.components.homes.T
        return np.asarray((alive[heads] & alive[inner])[self.components.labels])

    def narrowed(self, name: str, value: Array, keep: Keep) -> Array:
        """The value of an input or output of the whole model as the pruned one takes or gives it."""
        for axis, ids in enumerate(self.coupling.axes(name)):
            if ids is not None and not keep[ids].all():
                value = np.take(value, np.flatnonzero(keep[ids]), axis)
        return value

    def input_shapes(self, keep: Keep) -> dict[str, tuple[int, ...]]:
        """Input name -> concrete shape as the pruned model takes it, as far as shapes are known."""
        known = self.coupling.shapes.shapes
        return {
            i.name: tuple(
                (d or 0) if ids is None else int(keep[ids].sum())
                for d, ids in zip(known[i.name], self.coupling.axes(i.name), strict=True)
            )
            for i in graph_inputs(self.model)
            if None not in known.get(i.name, (None,))
        }

    def narrow(self, values: Mapping[str, Array], keep: Keep) -> dict[str, Array]:
        """Inputs or outputs by name, each `narrowed`."""
        return {name: self.narrowed(name, value, keep) for name, value in values.items()}

    def units(self, group: ChannelGroup) -> Ids:
        """Unit of the group that every component belongs to, -1 for none, `(components + 1,)`; the last is -1."""
        unit_of = np.full(len(self.components.reason) + 1, -1)
        unit_of[group.labels] = np.arange(group.size)
        unit_of[:-1] = unit_of[self.components.homes].max(1)
        return unit_of

    def owners(self, groups: Sequence[ChannelGroup]) -> Ids:
        """Numbers of the groups that every component belongs to, -1 for none, `(components + 1, 2)`: a channel inside
        a head belongs to the group of heads and to that of the dimensions of a head."""
        group_of = np.full(len(self.components.reason) + 1, -1)
        for k, g in enumerate(groups):
            group_of[g.labels] = k
        return np.concatenate([group_of[self.components.homes], [[-1, -1]]])


def weight_axes(c: Coupling, name: str) -> list[tuple[int, Ids]]:
    """(axis, ids) of a weight; the inner axis of a grouped convolution is `(groups, width)`."""
    out = [(k, ids) for k, ids in enumerate(c.axes(name)) if ids is not None]
    if name in c.grouped:
        out.append((1, c.grouped[name]))
    return out
