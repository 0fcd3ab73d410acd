"""Residual blocks y = x + f(x), each a unit that can be removed whole: the stream x goes on in its place.

A block is a sum of a stream and of a branch that starts at the stream, holds a layer with weights, and holds no other
block. Nothing but the graph says so. The unit is a gate on the branch where it enters the sum: zero in the masked
model; in the pruned one the sum is the stream, and what the branch alone needed is gone. A normalisation after the sum
stays.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnxprune.graph.arrays import Ids
from onnxprune.graph.links import made_at, read_at
from onnxprune.graph.node import Node, walk
from onnxprune.graph.shapes import graph_inputs
from onnxprune.graph.traits import TRAITS
from onnxprune.structure.coupling import Coupling

SKIPS = ("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization")


@dataclass(frozen=True, eq=False)
class Block:
    """node: the sum; stream, branch: numbers of its inputs; inside: nodes that the branch alone needs, in order;
    gate: id of its unit, `(1,)`; attends: whether activations are multiplied with activations in it."""

    node: Node
    stream: int
    branch: int
    inside: tuple[Node, ...]
    gate: Ids
    attends: bool

    @property
    def source(self) -> str:
        """The stream that goes in."""
        return self.node.input(self.stream)


def find_blocks(c: Coupling, *, whole_layers: bool = False) -> list[Block]:
    """The residual blocks of the main graph, in order; makes an id for each and notes what it gates.

    whole_layers: attention and the feed-forward block after it are one unit.
    """
    nodes = list(walk(c.model.proto.graph, c.shapes.opsets))
    at = made_at(c.model.proto.graph.node)
    readers = read_at(c.model.proto.graph.node)
    for info in c.model.proto.graph.output:
        readers[info.name].append(len(nodes))
    makers = {p.node.key for p in c.produces}
    entrances = {i.name for i in graph_inputs(c.model)}
    candidates: list[tuple[int, int, int, list[int]]] = []
    streams: dict[str, set[str]] = {}  # output of a sum -> the stream that went in, and before that
    for i, n in enumerate(nodes):
        if n.op != "Add" and n.op not in SKIPS:
            continue
        shape = c.shape(n.input(0))
        if shape is None or shape != c.shape(n.input(1)) or shape != c.shape(n.output(0)):
            continue
        for stream, branch in ((0, 1), (1, 0)):
            source = n.input(stream)
            if n.input(branch) not in at or (source not in at and source not in entrances):
                continue
            maker = nodes[at[source]] if source in at else None
            twins = maker.outputs if maker is not None and maker.op in SKIPS else ()
            same = {source, *twins, *streams.get(source, ())} - {""}
            if _depends(nodes, at, n.input(branch), same, c.shapes.known):
                inside = _alone(nodes, at, readers, n.input(branch), i)
                if any(nodes[k].key in makers for k in inside):
                    candidates.append((i, stream, branch, inside))
                    streams.update({o: same for o in n.outputs if o})
                break
    sums = {i for i, *_ in candidates}
    blocks = []
    for i, stream, branch, inside in candidates:
        if sums.intersection(inside):
            continue
        alone = tuple(nodes[k] for k in inside)
        path = _path(nodes, at, nodes[i].input(branch), nodes[i].input(stream))
        attends = any(_attends(c, n) for n in path)
        blocks.append(Block(nodes[i], stream, branch, alone, c.fresh(1), attends))
    for first, second in pairwise(blocks):
        if whole_layers and first.attends and not second.attends:
            c.tie(first.gate, second.gate)
    for block in blocks:
        c.mark("layers", block.gate)
        for n in block.inside:
            c.gates[n.key] = block.gate
    return blocks


def _attends(c: Coupling, n: Node) -> bool:
    """Whether a node is attention, or a product of it."""
    return n.key in c.attention or (n.op in TRAITS and TRAITS[n.op].attends == "fused")


def _depends(
    nodes: Sequence[Node], at: Mapping[str, int], name: str, on: Collection[str], known: Container[str]
) -> bool:
    """Whether a tensor is computed of any of others, but for shapes (`known`)."""
    first = min(at.get(o, -1) for o in on)
    seen, todo = {name}, [name]
    while todo:
        for i in nodes[at[todo.pop()]].inputs:
            if i in on:
                return True
            if at.get(i, -1) > first and i not in seen and i not in known:
                seen.add(i)
                todo.append(i)
    return False


def _path(nodes: Sequence[Node], at: Mapping[str, int], name: str, on: str) -> list[Node]:
    """Nodes that a tensor is computed by since the stream `on` was made."""
    first = at.get(on, -1)
    passed, todo = {at[name]}, [at[name]]
    while todo:
        for i in nodes[todo.pop()].inputs:
            if at.get(i, -1) > first and at[i] not in passed:
                passed.add(at[i])
                todo.append(at[i])
    return [nodes[i] for i in sorted(passed)]


def _alone(
    nodes: Sequence[Node], at: Mapping[str, int], readers: Mapping[str, Sequence[int]], name: str, reader: int
) -> list[int]:
    """Nodes that nothing but `reader` needs, and it for the tensor `name` alone."""
    inside: set[int] = {reader}
    todo = [-at[name]]
    queued = set(todo)
    while todo:  # later nodes first: the readers of a node are decided before it
        i = -heapq.heappop(todo)
        if any(k not in inside for o in nodes[i].outputs for k in readers.get(o, ())):
            continue
        if any(o != name and reader in readers.get(o, ()) for o in nodes[i].outputs):
            continue
        inside.add(i)
        for source in nodes[i].inputs:
            if source in at and -at[source] not in queued:
                queued.add(-at[source])
                heapq.heappush(todo, -at[source])
    return sorted(inside - {reader})
