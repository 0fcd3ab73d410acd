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
    found: defaultdict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        for name in filter(None, node.input):
            found[name].append(i)
    return found


def read_by(proto: ModelProto) -> dict[str, list[Node]]:
    """As `readers`, of the main graph. What a body reads counts twice for the node that owns the body, and an output of
    the graph as two `OUTPUT`: a tensor with one reader is read by nothing else, and may be changed with it."""
    nodes = list(walk(proto.graph, opsets(proto)))
    found = readers(nodes)
    for node in nodes:
        for name in reads(node.proto) - set(node.inputs):
            found.setdefault(name, []).extend([node, node])
    for o in proto.graph.output:
        found.setdefault(o.name, []).extend([OUTPUT] * 2)
    return found


def read_counts(graph: GraphProto) -> Counter[str]:
    """Tensor -> how many inputs of nodes and outputs of graphs it is, those of the bodies included."""
    found: Counter[str] = Counter()
    for inner in graphs(graph):
        found.update(name for node in inner.node for name in node.input if name)
        found.update(value.name for value in inner.output)
    return found


def reads(node: NodeProto) -> set[str]:
    """Names that a node reads, also inside of its bodies."""
    names = {i for i in node.input if i}
    for body in bodies(node):
        inner = set[str]().union(*map(reads, body.node), (o.name for o in body.output))
        names |= inner - {o for n in body.node for o in n.output} - {i.name for i in body.input}
    return names
