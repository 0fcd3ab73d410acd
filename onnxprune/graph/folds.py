"""Constants that a file computes of others, once they are folded: their values, and the way back to the file's form.

In a `Model` a folded constant is an initializer like any other. When the model is written, a constant that nothing
changed, nor any of what it is computed of, is computed by the file's own nodes again (`io.unfolded`); the others stay
initializers.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import TypeAlias

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.graph.arrays import Array
from onnxprune.graph.links import reads
from onnxprune.graph.protos import defined, graphs, place


@dataclass(frozen=True, eq=False)
class Leaf:
    """A constant that a folded one is computed of: its initializer or Constant node, without data, and its array."""

    proto: TensorProto | NodeProto
    array: Array
    outer: bool  # an initializer of the main graph, for nodes of a body


@dataclass(frozen=True, eq=False)
class Fold:
    """array: the value that was computed; nodes: what computes it in the file, in order; leaves: of which constants;
    ranks: the places of initializers and nodes in the file, by tensor."""

    array: Array
    nodes: tuple[NodeProto, ...]
    leaves: Mapping[str, Leaf]
    ranks: Mapping[str, int]


Folds: TypeAlias = dict[str, Fold]  # name of the value -> what it was


def intact(weights: Mapping[str, Array], folds: Mapping[str, Fold]) -> Folds:
    """Of what was folded, that whose nodes still compute the array that folding made: neither it nor a leaf changed."""
    return {
        name: fold
        for name, fold in folds.items()
        if weights.get(name) is fold.array
        and all(weights.get(k, leaf.array) is leaf.array for k, leaf in fold.leaves.items())
    }


def names(folds: Mapping[str, Fold]) -> set[str]:
    """Of tensors that come back where something is unfolded, and that nothing else may be called."""
    return {o for fold in folds.values() for node in fold.nodes for o in node.output} | {
        leaf for fold in folds.values() for leaf in fold.leaves
    }


def unfold(proto: ModelProto, weights: MutableMapping[str, Array], folds: Mapping[str, Fold]) -> None:
    """Give what is `intact` of what was folded its nodes back; proto and weights are changed in place."""
    back = intact(weights, folds)
    for graph in graphs(proto.graph):
        here = {t.name: back[t.name] for t in graph.initializer if t.name in back}
        if here:
            _compute(graph, proto.graph, weights, here)
        for changed in (graph, proto.graph) if here else ():
            _sort(changed, next(iter(here.values())).ranks)
    inner = {o for fold in folds.values() for node in fold.nodes for o in node.output}
    for graph in graphs(proto.graph):
        gone = inner.difference(defined(graph))
        for info in [info for info in graph.value_info if info.name in gone]:
            graph.value_info.remove(info)


def _compute(
    graph: GraphProto, main: GraphProto, weights: MutableMapping[str, Array], folds: Mapping[str, Fold]
) -> None:
    """Put nodes and leaves in the place of initializers of one graph, where they were."""
    for tensor in [t for t in graph.initializer if t.name in folds]:
        graph.initializer.remove(tensor)
        del weights[tensor.name]
    ranks = next(iter(folds.values())).ranks
    first: dict[str, int] = {}  # tensor -> its first reader
    for i in reversed(range(len(graph.node))):
        first.update(dict.fromkeys(reads(graph.node[i]), i))
    order = [max((ranks.get(o, -1) for o in node.output), default=-1) for node in graph.node]  # -1: a new node
    present = set(defined(graph)) | set(defined(main))
    places: dict[str, tuple[int, int]] = {}  # of nodes, by output: in front of which one, and in which order
    back: dict[str, NodeProto] = {}

    def put(key: str, node: NodeProto, before: int) -> None:
        if key not in present:
            back[key], rank = node, ranks[key]
            later = (i for i, other in enumerate(order) if other > rank)
            places[key] = min(before, next(later, before), places.get(key, (before, rank))[0]), rank

    for name, fold in folds.items():
        before = first.get(name, len(graph.node))
        for node in fold.nodes:
            put(next(filter(None, node.output)), node, before)
        for key, leaf in fold.leaves.items():
            if isinstance(leaf.proto, NodeProto):
                put(key, leaf.proto, before)
            elif key not in present:
                (main if leaf.outer else graph).initializer.add().CopyFrom(leaf.proto)
            weights[key] = weights.get(key, leaf.array)
        present.update(key for key, leaf in fold.leaves.items() if isinstance(leaf.proto, TensorProto))
    merged = [((i, len(ranks)), node) for i, node in enumerate(graph.node)]
    merged = sorted([*((places[key], node) for key, node in back.items()), *merged], key=lambda entry: entry[0])
    place(graph, (node for _, node in merged))


def _sort(graph: GraphProto, ranks: Mapping[str, int]) -> None:
    """Put the initializers in their order in the file; those that are new come last."""
    ordered = sorted(graph.initializer, key=lambda tensor: ranks.get(tensor.name, len(ranks)))
    copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in ordered]
    del graph.initializer[:]
    graph.initializer.extend(copies)
