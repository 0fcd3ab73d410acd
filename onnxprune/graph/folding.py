"""Folding: weights that a file computes of constants become constants, so that they can be cut as what they are.

Weight normalisation (`g * v / ||v||`), weight standardisation, spectral normalisation, products, sums, quotients and
concatenations of constants: once a weight is a constant, its zero filters are zero rows, and a cut of its inputs leaves
its norms what they were. What stays as it is: chains that only move or convert values (MOVING), which rules follow
index by index, and where a file often stores less than what is computed (DequantizeLinear, Cast, Expand); whatever
would make the file larger; what is beyond the model's `allowance`; what draws random numbers; and files from before IR
version 4, whose initializers are inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from onnx import GraphProto, NodeProto, TensorProto

from onnxprune.graph.arrays import FLOAT_TYPES, Array, set_tensor, stored_size
from onnxprune.graph.chance import DRAWING, trains
from onnxprune.graph.constants import Constants
from onnxprune.graph.folds import Fold, Leaf
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.limits import nbytes
from onnxprune.graph.links import read_counts
from onnxprune.graph.node import Node, walk
from onnxprune.graph.protos import constants as constant_nodes
from onnxprune.graph.shapes import Shapes

T = TypeVar("T", NodeProto, TensorProto, TensorProto | NodeProto)

LISTED = 4  # the IR version since which initializers need not be inputs
MOVING = frozenset(
    """Cast CastLike DequantizeLinear Dropout Expand Flatten Gather Identity QuantizeLinear Reshape Slice Split Squeeze
    Tile Transpose Unsqueeze com.microsoft::DequantizeLinear com.microsoft::QuantizeLinear""".split()
)


@dataclass(frozen=True, eq=False)
class _Computed:
    """A tensor that nodes of one graph compute of constants. leaves: the constants that they read."""

    name: str
    nodes: tuple[Node, ...]
    leaves: Mapping[str, Leaf]
    graph: GraphProto
    nbytes: int


def fold(shapes: Shapes) -> Model:
    """The model that `shapes` are of, with the weights folded that need it; the same model where none does.

    `Model.folds` has what was folded.
    """
    model = shapes.model
    if model.proto.ir_version < LISTED or all(name in model.weights for name in shapes.constant):
        return model
    constants = Constants(shapes)
    chosen = _no_larger(model, _computed(shapes, constants))
    values: dict[str, Array] = {}
    for name in chosen:
        value = constants(name)
        if value is not None:
            values[name] = value
    return _folded(model, [c for name, c in chosen.items() if name in values], values) if values else model


def _computed(shapes: Shapes, constants: Constants) -> dict[str, _Computed]:
    """The tensors that could be folded: computed of constants, floats, read by a node that is not, and not by moving or
    converting values alone."""
    model = shapes.model
    graph_of = {n.key: g for g in graphs(model.proto.graph) for n in walk(g, shapes.opsets)}
    ends = {o.name for g in graphs(model.proto.graph) for o in g.output}
    read = dict.fromkeys(i for n in constants.nodes if not shapes.constant.issuperset(n.outputs) for i in n.inputs)
    out: dict[str, _Computed] = {}
    for name in read:
        size = nbytes(shapes.shapes.get(name), shapes.types.get(name, 0))
        if name not in constants.at or name in ends or shapes.types.get(name) not in FLOAT_TYPES or size is None:
            continue
        nodes = constants.needed(name)
        if nodes is None or all(n.op in MOVING for n in nodes) or not shapes.vast.isdisjoint(n.key for n in nodes):
            continue
        if any(n.op in DRAWING or trains(model, n) for n in nodes):
            continue
        graph = graph_of[nodes[-1].key]
        leaves = _leaves(model, nodes, graph)
        if leaves is not None and all(graph_of[n.key] is graph for n in nodes):
            out[name] = _Computed(name, tuple(nodes), leaves, graph, size)
    return out


def _leaves(model: Model, nodes: Sequence[Node], graph: GraphProto) -> dict[str, Leaf] | None:
    """The constants that nodes of a graph read; None where one may be overridden, or lies in a graph between."""
    made = {o for n in nodes for o in n.outputs}
    names = dict.fromkeys(i for n in nodes for i in n.inputs if i and i not in made)
    main = model.proto.graph
    known: dict[str, tuple[TensorProto | NodeProto, bool]] = {t.name: (t, graph is not main) for t in main.initializer}
    known |= {t.name: (t, False) for t in graph.initializer}
    known |= {name: (node, False) for name, node, _ in constant_nodes(graph)}
    listed = {i.name for g in (main, graph) for i in g.input}
    if not known.keys() >= names.keys() or not listed.isdisjoint(names):
        return None
    return {name: Leaf(_copied(known[name][0]), model.weights[name], known[name][1]) for name in names}


def _no_larger(model: Model, computed: Mapping[str, _Computed]) -> dict[str, _Computed]:
    """Those that take no more bytes than what nothing needs any longer once they are constants."""
    chosen = dict(computed)
    while True:
        unread = _unread(model, chosen.values())
        shared = Counter(leaf for c in chosen.values() for leaf in c.leaves)
        kept = {
            name: c for name, c in chosen.items()
            if c.nbytes <= sum(stored_size(model.weights[i]) / shared[i] for i in c.leaves if i in unread)
        }  # fmt: skip
        if len(kept) == len(chosen):
            return kept
        chosen = kept


def _unread(model: Model, chosen: Collection[_Computed]) -> set[str]:
    """Outputs of nodes, and constants, that nothing reads once these tensors are constants."""
    counts = read_counts(model.proto.graph)
    made = {c.name for c in chosen}
    nodes = {n.key: n for c in chosen for n in c.nodes}
    unread: set[str] = set()
    while nodes:  # from the end: a node goes once all that read it have gone
        gone = [n for n in nodes.values() if all(not counts[o] or o in made for o in n.outputs)]
        if not gone:
            break
        for n in gone:
            unread.update(n.outputs)
            counts.subtract(i for i in n.inputs if i)
            del nodes[n.key]
    return unread | {leaf for c in chosen for leaf in c.leaves if not counts[leaf]}


def _folded(model: Model, chosen: Sequence[_Computed], values: Mapping[str, Array]) -> Model:
    """A copy with the chosen tensors as initializers, and without what nothing reads any longer."""
    unread = _unread(model, chosen)
    out = model.copy()
    copy_of = {id(g): copy for g, copy in zip(graphs(model.proto.graph), graphs(out.proto.graph), strict=True)}
    ranks = {t.name: i for g in graphs(model.proto.graph) for i, t in enumerate(g.initializer)}
    ranks |= {o: i for g in graphs(model.proto.graph) for i, n in enumerate(g.node) for o in n.output if o}
    for c in chosen:
        array = values[c.name].view()
        array.flags.writeable = False
        out.folds[c.name] = Fold(array, tuple(_copied(n.proto) for n in c.nodes), c.leaves, ranks)
        out.weights[c.name] = array
        set_tensor(c.name, copy_of[id(c.graph)].initializer.add(name=c.name), array)
    gone = unread & {leaf for c in chosen for leaf in c.leaves}
    for name in gone:
        del out.weights[name]
    for graph in graphs(out.proto.graph):
        for node in [n for n in graph.node if n.output and unread.issuperset(filter(None, n.output))]:
            graph.node.remove(node)
        for tensor in [t for t in graph.initializer if t.name in gone]:
            graph.initializer.remove(tensor)
    return out


def _copied(proto: T) -> T:
    out = type(proto)()
    out.CopyFrom(proto)
    return out
