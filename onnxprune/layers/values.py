"""Values of constants in the main graph, and which names they are."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from onnxprune.graph.io import Model
from onnxprune.graph.node import Node, opsets, reads, walk
from onnxprune.graph.shapes import Array, run_node

_OUTPUT = Node(NodeProto(op_type="GraphOutput"), 1)


class Unsuitable(Exception):
    """Why a layer is no regression that we can solve; the text goes into the report."""


def constants(model: Model) -> set[str]:
    """Names in the main graph that depend on constants alone."""
    known = set(model.weights)
    for node in walk(model.proto.graph, {}):
        if node.inputs and all(not i or i in known for i in node.inputs) and not list(node.bodies()):
            known.update(o for o in node.outputs if o)
    return known


class Values:
    """Values of constants, also of those that constant nodes compute, as they are in the model now."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.makers = {o: n for n in walk(model.proto.graph, opsets(model.proto)) for o in n.outputs if o}

    def __call__(self, name: str) -> Array:
        """Raises `Unsuitable` where it is none."""
        if name in self.model.weights:
            return np.asarray(self.model.weights[name])
        node = self.makers.get(name)
        if node is None or not node.inputs:
            raise Unsuitable(f"{name} is not constant")
        feeds = {i: self(i) for i in node.inputs if i}
        try:
            return np.asarray(run_node(node, feeds, self.model.proto)[node.outputs.index(name)])
        except RuntimeError as e:  # types that have no numpy counterpart in onnxruntime
            raise Unsuitable(f"{name} cannot be computed ({e})") from e


def read_by(model: Model) -> dict[str, list[Node]]:
    """Tensor -> nodes that read it; graph outputs and the bodies of If and Loop count as readers too."""
    out: dict[str, list[Node]] = {}
    for node in walk(model.proto.graph, opsets(model.proto)):
        for name in node.inputs:
            out.setdefault(name, []).append(node)
        for name in reads(node.proto) - set(node.inputs):
            out.setdefault(name, []).extend([node, node])
    for o in model.proto.graph.output:
        out.setdefault(o.name, []).extend([_OUTPUT] * 2)
    return out
