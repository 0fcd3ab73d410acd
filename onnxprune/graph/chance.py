"""Operators that draw other random numbers whenever they run."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.graph.io import Model
from onnxprune.graph.node import Node, opsets, walk_all

DRAWING = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def drawing(model: Model) -> Iterator[tuple[str, str]]:
    """What draws random numbers without a seed, or others for every width, in words that name the node; and the way
    out."""
    for node in walk_all(model.proto.graph, opsets(model.proto)):
        if node.op in DRAWING and "seed" not in node.attributes:
            yield f"{node.op} {node.label!r} draws random numbers", "give it a seed"
        elif trains(model, node):
            yield f"{node.op} {node.label!r} has training_mode true and drops at random", "export it for inference"


def trains(model: Model, node: Node) -> bool:
    """Whether a Dropout drops: its training_mode is true, and its ratio is not 0."""
    if node.op != "Dropout" or not node.input(2):
        return False
    ratio, mode = (model.weights.get(node.input(k)) for k in (1, 2))
    return mode is not None and bool(mode.any()) and (ratio is None or bool(ratio.any()))
