"""Who makes a tensor and who reads it: where names of tensors become links between nodes.

In go nodes, in order; the empty name, of what is left out, is no tensor.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from onnx import GraphProto, ModelProto, NodeProto

from onnxprune.graph.node import Node, opsets, walk
from onnxprune.graph.protos import bodies, graphs

OUTPUT = Node(NodeProto(op_type="GraphOutput"), 1)  # stands for a reader outside of the graph


def makers(nodes: Iterable[Node]) -> dict[str, Node]:
    """Tensor -> the node that makes it."""
    return {o: node for node in nodes for o in node.outputs if o}


def made_at(nodes: Iterable[NodeProto]) -> dict[str, int]:
    """Tensor -> index of the node that makes it."""
    return {o: i for i, node in enumerate(nodes) for o in node.output if o}


def readers(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Tensor -> the nodes that have it as an input, in order, each as often as it has."""
    return {name: [nodes[i] for i in at] for name, at in read_at(node.proto for node in nodes).items()}


def read_at(nodes: Iterable[NodeProto]) -> defaultdict[str, list[int]]:
    """Tensor -> indices of the nodes that have it as an input, in order, each as often as it has."""
    out: defaultdict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        for name in filter(None, node.input):
            out[name].append(i)
    return out


def read_by(proto: ModelProto) -> dict[str, list[Node]]:
    """As `readers`, of the main graph. What a body reads counts twice for the node that owns the body, and an output of
    the graph as two `OUTPUT`: a tensor with one reader is read by nothing else, and may be changed with it."""
    nodes = list(walk(proto.graph, opsets(proto)))
    out = readers(nodes)
    for node in nodes:
        for name in reads(node.proto) - set(node.inputs):
            out.setdefault(name, []).extend([node, node])
    for o in proto.graph.output:
        out.setdefault(o.name, []).extend([OUTPUT] * 2)
    return out


def read_counts(graph: GraphProto) -> Counter[str]:
    """Tensor -> how many inputs of nodes and outputs of graphs it is, those of the bodies included."""
    counts: Counter[str] = Counter()
    for inner in graphs(graph):
        counts.update(name for node in inner.node for name in node.input if name)
        counts.update(value.name for value in inner.output)
    return counts


def reads(node: NodeProto) -> set[str]:
    """Names that a node reads, also inside of its bodies."""
    names = {i for i in node.input if i}
    for body in bodies(node):
        inner = set[str]().union(*map(reads, body.node), (o.name for o in body.output))
        names |= inner - {o for n in body.node for o in n.output} - {i.name for i in body.input}
    return names
