"""Tensors of one run: how large each is, how often it is read, and from which node to which it is live.

In go nodes in order, shapes, and ids per axis; each size is a `Product`, so that it is known of what a cut would leave
as well. A tensor that only looks at another's memory (Reshape), or that takes it over (Relu, where nothing else reads
what goes in), is no tensor of its own here; constants and tensors of unknown shape are none either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from onnx import TensorProto

from onnxprune.graph.arrays import BITS, Ids
from onnxprune.graph.links import read_counts
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import Shape, Shapes, graph_inputs
from onnxprune.graph.traits import Axes, Product, product

VIEWS = frozenset("Reshape Flatten Squeeze Unsqueeze Identity Dropout".split())
IN_PLACE = frozenset(
    """Abs Add BatchNormalization Cast Clip Div Elu Gelu HardSigmoid HardSwish LeakyRelu Max Min Mul Neg PRelu Pow Relu
    Selu Sigmoid Softmax Softplus Sqrt Sub Tanh com.microsoft::BiasGelu com.microsoft::FastGelu
    com.microsoft::QuickGelu""".split()
)
STRING = 128  # bits of a string's place in a tensor


@dataclass(frozen=True, eq=False)
class Activation:
    """bytes: its size; made, last: positions of the first and the last node that need it, -1 for what is there before
    and the number of nodes for what stays; writes, reads: of the whole tensor, in one run."""

    name: str
    bytes: Product
    made: int
    last: int
    writes: int = 1
    reads: int = 0


def activations(
    nodes: Iterable[Node], shapes: Shapes, axes: Axes, gates: Mapping[str, Ids] = MappingProxyType({})
) -> list[Activation]:
    """The tensors of one run, in the order in which they are made; a body of If, Loop or Scan counts as run once.

    axes: name -> ids per axis (None: an axis that never shrinks); gates: node key -> the id without which the node is
    gone, `(1,)`.
    """
    nodes, graph = list(nodes), shapes.model.proto.graph
    found: dict[str, Activation] = {}
    place: dict[str, str] = {}  # tensor -> the one whose memory it has
    read = read_counts(graph)
    alone: set[str] = set()  # tensors that nothing else shares its memory with
    for info in graph_inputs(shapes.model):
        if (size := size_of(info.name, shapes, axes)) is not None:
            found[info.name] = Activation(info.name, size, -1, -1, writes=0)
            place[info.name] = info.name
    for k, node in enumerate(nodes):
        moves = node.op not in VIEWS
        taken = {place[name] for name in node.inputs if name in place}
        for name in sorted(taken):
            a = found[name]
            found[name] = replace(a, last=max(a.last, k), reads=a.reads + moves)
        for output in filter(None, node.outputs):
            if output in shapes.constant:
                continue
            source = shared(node, output, {name for name in alone if read[name] == 1}, shapes)
            if source in place:
                home = place[output] = place[source]
                found[home] = replace(found[home], last=k, writes=found[home].writes + moves)
                alone |= {output} if source in alone and read[source] == 1 else set()
            elif (size := size_of(output, shapes, axes, gates.get(node.key))) is not None:
                place[output] = output
                found[output] = Activation(output, size, k, k)
                alone.add(output)
    for name in {o.name for o in graph.output} & place.keys():
        found[place[name]] = replace(found[place[name]], last=len(nodes))
    return list(found.values())


def shared(node: Node, output: str, free: set[str], shapes: Shapes) -> str:
    """The input whose memory an output has, "" for one of its own; free: tensors whose memory this node may take."""
    if output != node.output(0):
        return ""
    if node.op in VIEWS:
        return node.input(0)
    alike = [n for n in node.inputs if n in free and _kind(n, shapes) == _kind(output, shapes)]
    return alike[0] if alike and node.op in IN_PLACE else ""


def _kind(name: str, shapes: Shapes) -> tuple[Shape | None, int | None]:
    return shapes.shapes.get(name), shapes.types.get(name)


def size_of(name: str, shapes: Shapes, axes: Axes, gate: Ids | None = None) -> Product | None:
    """Bytes of a tensor in memory; None where a size is not known."""
    shape = shapes.shapes.get(name)
    if shape is None or None in shape:
        return None
    bits = BITS.get(shapes.types.get(name, TensorProto.FLOAT), STRING)
    ids = axes(name) or [None] * len(shape)
    fixed = math.prod(d or 0 for d, a in zip(shape, ids, strict=True) if a is None)
    return product(name, fixed * bits / 8, [*((a, 1) for a in ids), (gate, 1)])
