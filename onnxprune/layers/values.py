"""Values of constants in the main graph, and which names they are."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.links import makers
from onnxprune.graph.node import opsets, walk, walk_all
from onnxprune.graph.ort import ORT_ERRORS
from onnxprune.graph.shapes import run_node


class Unsuitable(Exception):
    """Why a layer is no regression that we can solve; the text goes into the report."""


def constant_names(model: Model) -> set[str]:
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
        self.makers = makers(walk_all(model.proto.graph, opsets(model.proto)))

    def __call__(self, name: str) -> Array:
        """The value of a tensor. Raises `Unsuitable` where it is no constant, or cannot be computed."""
        if name in self.model.weights:
            return np.asarray(self.model.weights[name])
        node = self.makers.get(name)
        if node is None or not node.inputs:
            raise Unsuitable(f"{name} is not constant")
        feeds = {i: self(i) for i in node.inputs if i}
        try:
            return np.asarray(run_node(node, feeds, self.model.proto)[node.outputs.index(name)])
        except ORT_ERRORS as e:  # types that have no numpy counterpart in onnxruntime
            raise Unsuitable(f"{name} cannot be computed ({e})") from e
