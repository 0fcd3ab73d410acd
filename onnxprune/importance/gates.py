"""Gates: numbers from one to zero in the graph, by which units count less where they are read, without a cut.

The gates of a group are one vector, a weight of the gated model that can be exchanged while a session's inputs stay: so
that one graph serves all units of all groups. Where a unit enters a consumer it is multiplied by its gate (of experts:
the router's column is added the gate's logarithm), and a residual block's branch where it enters the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibration.options import MEMORY
from onnxprune.evaluation.damage import Damage
from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.node import Node
from onnxprune.importance.criterion import Criterion, Scores
from onnxprune.progress import Steps
from onnxprune.runtime.classes import joined
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.stream import Stream
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep
from onnxprune.structure.claims import Consume

CLOSED = -1e4  # what a router's column is added for an expert that is gone; float16 can hold it


class Gated:
    """A model with gates, all open.

    only: keys of nodes that get gates, None for all consumers.
    """

    def __init__(
        self, analysis: Analysis, groups: Sequence[ChannelGroup], *, only: Callable[[str], bool] = lambda key: True
    ) -> None:
        self.analysis = analysis
        self.edit = Edit(analysis.model)
        self.names: dict[str, list[str]] = {g.name: [] for g in groups}  # group -> its gates
        self.exact: dict[str, tuple[Array, Array, bool]] = {}  # gate -> its ids, its shape, whether it is added
        owners = analysis.owners(groups)
        gated: dict[str, list[tuple[Consume, list[str]]]] = {}
        for consume in analysis.coupling.consumes:
            axes = analysis.coupling.axes(consume.node.input(consume.input))
            ids = axes[consume.axis] if axes else None
            if ids is None or not only(consume.node.key):
                continue
            owned = np.unique(owners[analysis.components.labels[ids]])
            names = [groups[k].name for k in owned if k >= 0]
            if names:
                gated.setdefault(consume.node.key, []).append((consume, names))
        layers = {int(g.labels[0]): g.name for g in groups if g.kind == "layers"}
        blocks = {}
        for b in analysis.blocks:
            name = layers.get(int(analysis.components.labels[b.gate[0]]))
            if name is not None:
                blocks[b.node.key] = (b, name)
        for graph in graphs(self.edit.model.proto.graph):
            placed: list[onnx.NodeProto] = []
            for proto in graph.node:
                key = next((o for o in proto.output if o), "")
                for consume, names in gated.get(key, []):
                    placed += self._gate(proto, consume, names)
                if key in blocks:
                    block, name = blocks[key]
                    for slot in (block.branch, *([4] if block.node.input(4) else [])):
                        placed += self._door(proto, block.node, slot, name)
                placed.append(proto)
            copies = [onnx.NodeProto.FromString(p.SerializeToString()) for p in placed]
            del graph.node[:]
            graph.node.extend(copies)

    @property
    def model(self) -> Model:
        """The gated model; its weights change with `set`."""
        return self.edit.model

    def _dtype(self, name: str) -> np.dtype[np.generic]:
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.analysis.coupling.shapes.types[name]))

    def _gate(self, proto: onnx.NodeProto, consume: Consume, names: Sequence[str]) -> list[onnx.NodeProto]:
        tensor = consume.node.input(consume.input)
        ids = self.analysis.coupling.axes(tensor)[consume.axis]
        assert ids is not None
        dtype = self._dtype(tensor)
        if dtype.kind not in "fiu":
            return []
        shape = [1] * len(self.analysis.coupling.axes(tensor))
        shape[consume.axis] = -1
        added = consume.neutral != 0
        kind = dtype if dtype.kind == "f" else np.dtype(bool)
        gate = self.edit.constant(f"{proto.output[0]}:gate", np.full(ids.size, not added, kind).reshape(shape))
        self.exact[gate] = (ids, np.array(shape), added)
        for name in names:
            self.names[name].append(gate)
        out = self.edit.fresh(f"{gate}:out")
        if dtype.kind != "f":
            return self._choose(proto, consume, gate, out)
        node = helper.make_node("Add" if added else "Mul", [proto.input[consume.input], gate], [out])
        proto.input[consume.input] = out
        return [node]

    def _choose(self, proto: onnx.NodeProto, consume: Consume, gate: str, out: str) -> list[onnx.NodeProto]:
        """Integers are what they are where the gate is open, else the zero point."""
        read, proto.input[consume.input] = proto.input[consume.input], out
        zero = consume.zero or self.edit.constant(f"{gate}:zero", np.zeros((), np.int32))
        wide = [(read, self.edit.fresh(f"{gate}:wide")), (zero, self.edit.fresh(f"{gate}:wide_zero"))]
        casts = [helper.make_node("Cast", [a], [b], to=onnx.TensorProto.INT32) for a, b in wide]
        chosen = self.edit.fresh(f"{gate}:chosen")
        kind = self.analysis.coupling.shapes.types[consume.node.input(consume.input)]
        return [
            *casts,
            helper.make_node("Where", [gate, wide[0][1], wide[1][1]], [chosen]),
            helper.make_node("Cast", [chosen], [out], to=kind),
        ]

    def _door(self, proto: onnx.NodeProto, block: Node, slot: int, name: str) -> list[onnx.NodeProto]:
        gate = self.edit.constant(f"{proto.output[0]}:door", np.ones((), self._dtype(block.input(slot))))
        self.exact[gate] = (np.zeros(0, np.int64), np.zeros(0, np.int64), False)
        self.names[name].append(gate)
        out = self.edit.fresh(f"{gate}:out")
        node = helper.make_node("Mul", [proto.input[slot], gate], [out])
        proto.input[slot] = out
        return [node]

    def set(self, keep: Mapping[str, Keep]) -> dict[str, Array]:
        """Close the gates of units that are False, by group; all others are as they were. The old arrays by name."""
        alive = self.analysis.keep_ids(dict(keep))
        old: dict[str, Array] = {}
        for group, kept in keep.items():
            for gate in self.names[group]:
                ids, shape, added = self.exact[gate]
                was = old.setdefault(gate, self.model.weights[gate])
                if not ids.size:
                    value: Array = np.full((), bool(np.asarray(kept).all()))
                else:
                    value = (np.where(alive[ids], 0.0, CLOSED) if added else alive[ids]).reshape(shape)
                self.model.weights[gate] = np.asarray(value, was.dtype)
        return old

    def first(self, group: str, stream: Stream) -> int:
        """Position of the first gate of a group among the nodes of the stream."""
        readers = {n: i for i, node in enumerate(stream.nodes) for n in node.input}
        return min((readers[g] for g in self.names[group] if g in readers), default=0)


def gate_losses(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    source: Sequence[Feeds],
    measure: Damage,
    *,
    gone: Mapping[str, Keep] | None = None,
    memory: float = MEMORY,
    threads: int = 0,
    progress: Steps = lambda done, total: None,
) -> Scores:
    """Change of the outputs when the gate of one unit goes from one to zero, mean over the samples.

    After Michel et al. 2019, "Are Sixteen Heads Really Better than One?", by differences in place of gradients: no
    labels are needed. measure: how far outputs are from the original's; gone: units that are closed already.
    """
    gated = Gated(analysis, groups)
    names = [o.name for o in analysis.model.proto.graph.output]
    closed = dict(gone or {})
    gated.set(closed)
    stream = Stream(gated.model, source, limit=memory, threads=threads)
    base = measure(joined(stream.compute(names), names)) if closed else 0.0
    total, done = sum(g.size for g in groups), 0
    out: dict[str, Float] = {}
    for group in sorted(groups, key=lambda g: gated.first(g.name, stream)):
        stream.advance(gated.first(group.name, stream))
        kept = closed.get(group.name, np.ones(group.size, bool))
        out[group.name] = np.zeros(group.size)
        for u in range(group.size):
            progress(done, total)
            done += 1
            if not kept[u]:
                continue
            without = kept.copy()
            without[u] = False
            old = gated.set({**closed, group.name: without})
            out[group.name][u] = abs(measure(joined(stream.compute(names), names)) - base)
            gated.model.weights.update(old)
    progress(total, total)
    return {g.name: out[g.name] for g in groups}


GATE_CRITERIA: dict[str, Criterion] = {
    "head_loss": Criterion(
        "change of the outputs when a gate on the unit is closed (Michel et al. 2019), for heads above all", "gates",
        gate_losses, blocks=True,
    ),
}  # fmt: skip

__all__ = ["GATE_CRITERIA", "Gated", "gate_losses"]
