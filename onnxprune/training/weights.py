"""Which weights are trained, and normalisations computed on them.

Trained are the weights and biases of operators with weights (`graph.traits.TRAITS`), scales and shifts of
normalisations, and vectors that are added or multiplied. Statistics of BatchNormalization stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto, helper

from onnxprune.errors import UserError
from onnxprune.gradient.backward import OPSET
from onnxprune.graph.arrays import DTYPES, FLOAT_TYPES
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.links import makers, read_by, read_counts
from onnxprune.graph.node import Node, opsets, walk, walk_all
from onnxprune.graph.normalisation import MEAN, SCALE, SHIFT, STATISTICS, batchnorm_factor
from onnxprune.graph.protos import overridable, place
from onnxprune.graph.quantized import DEQUANTIZES
from onnxprune.graph.traits import TRAITS
from onnxprune.graph.versions import raised
from onnxprune.layers.stored import CHAIN

FLOATS = {DTYPES[t] for t in FLOAT_TYPES}


def trainable(model: Model) -> list[str]:
    """Initializers that are trained, in the order in which nodes read them: floating ones, and integers that one
    DequantizeLinear alone reads."""
    names: dict[str, None] = {}
    nodes = list(walk_all(model.proto.graph, opsets(model.proto)))
    fixed = overridable(model.proto) | {n.input(i) for n in nodes for i in STATISTICS if n.op == "BatchNormalization"}
    maker_of, readers = makers(nodes), read_by(model.proto)
    for n in nodes:
        for i in _slots(n):
            names.setdefault(_initializer(n.input(i), maker_of))
        if n.op in ("Add", "Sub", "Mul", "Div"):
            names.update(
                dict.fromkeys(i for i in n.inputs if i in model.weights and _is_vector(model.weights[i].shape))
            )
    return [
        name for name in names
        if name in model.weights and name not in fixed and model.weights[name].size
        and (model.weights[name].dtype in FLOATS or _dequantized(name, readers))
    ]  # fmt: skip


def _initializer(name: str, maker_of: Mapping[str, Node]) -> str:
    """What a tensor is made of, value by value."""
    while name in maker_of and maker_of[name].op in CHAIN:
        name = maker_of[name].input(0)
    return name


def _dequantized(name: str, readers: Mapping[str, Sequence[Node]]) -> bool:
    """Whether a node, and no other, makes numbers of these integers."""
    nodes = readers[name]
    return len(nodes) == 1 and nodes[0].op in DEQUANTIZES and nodes[0].input(0) == name


def _slots(n: Node) -> list[int]:
    """Inputs that hold weights, where they are constants."""
    if n.op.endswith("Normalization"):
        return [SCALE, SHIFT]
    trait = TRAITS.get(n.op)
    if trait is None:
        return []
    return [*trait.slots, *([] if trait.bias is None else [trait.bias])]


def _is_vector(shape: tuple[int, ...]) -> bool:
    return sum(d > 1 for d in shape) == 1


def without_normalisations(model: Model) -> Model:
    """A copy in which a BatchNormalization after a convolution is computed on the weights of that convolution.

    w' = w f and b' = (b - mean) f + shift, f = scale / sqrt(variance + epsilon): what passes through is touched once
    less, and the gradients of weights, scales and shifts are what they were.
    """
    edit = Edit(model)
    weights, graph = edit.model.weights, edit.graph
    nodes = list(walk(graph, opsets(model.proto)))
    reads, maker_of = read_counts(graph), makers(nodes)
    before: dict[str, list[NodeProto]] = {}  # convolution -> nodes that make its weights
    gone: set[str] = set()
    for norm in nodes:
        conv = maker_of.get(norm.input(0)) if norm.op == "BatchNormalization" else None
        if conv is None or conv.op != "Conv" or conv.input(1) not in weights or reads[conv.key] != 1:
            continue
        statistics = [weights.get(norm.input(i)) for i in STATISTICS]
        if any(x is None for x in statistics) or norm.attr("training_mode", 0) or len(norm.outputs) > 1:
            continue
        gone.add(norm.key)
        before[norm.input(0)] = _on_weights(edit, norm, conv, weights[conv.input(1)].ndim)
        conv.proto.output[0] = norm.outputs[0]
    kept = [n for n in nodes if n.key not in gone or n.op != "BatchNormalization"]
    place(graph, [proto for n in kept for proto in (*before.get(n.key, []), n.proto)])
    return edit.model


def _on_weights(edit: Edit, norm: Node, conv: Node, rank: int) -> list[NodeProto]:
    """Nodes that compute the weights of a convolution with its normalisation, which it reads from now on."""
    mean, variance = (edit.model.weights[norm.input(i)] for i in STATISTICS)
    nodes = []

    def op(kind: str, *inputs: str) -> str:
        name = edit.fresh(f"{norm.key}/{kind}")
        nodes.append(helper.make_node(kind, list(inputs), [name], edit.fresh_node(name)))
        return name

    r = edit.constant(f"{norm.key}/r", batchnorm_factor(norm, np.ones_like(variance), variance))
    factor = op("Mul", norm.input(SCALE), r)
    spread = op("Reshape", factor, edit.constant(f"{norm.key}/shape", np.array([-1] + [1] * (rank - 1), np.int64)))
    moved = op("Sub", edit.constant(f"{norm.key}/mean", mean), conv.input(2)) if conv.input(2) else norm.input(MEAN)
    bias = op("Sub", norm.input(SHIFT), op("Mul", moved, factor))
    conv.proto.input[:] = [conv.input(0), op("Mul", conv.input(1), spread), bias]
    return nodes


def with_batch_statistics(model: Model) -> tuple[Model, dict[str, str]]:
    """A copy whose BatchNormalizations go by the mean and variance of the batch; and by statistic of theirs the tensor
    that holds the batch's. Raises `UserError` where two share one, or nodes compute one."""
    edit, found = Edit(raised(model, OPSET)), dict[str, str]()
    for node in edit.graph.node:
        if node.op_type != "BatchNormalization" or node.domain:
            continue
        for name in set(node.input[3:5]) - set(model.weights):
            raise UserError(f"the model cannot be trained from scratch: {name}, a statistic, is computed by nodes")
        for name in found.keys() & set(node.input[3:5]):
            raise UserError(f"the model cannot be trained from scratch: normalisations share the statistics {name}")
        made = [edit.fresh(f"{name}/batch") for name in node.input[3:5]]
        found |= dict(zip(node.input[3:5], made, strict=True))
        kept = [a for a in node.attribute if a.name not in ("training_mode", "momentum")]
        del node.attribute[:], node.output[1:]
        node.attribute.extend(
            [*kept, helper.make_attribute("training_mode", 1), helper.make_attribute("momentum", 0.0)]
        )  # fmt: skip
        node.output.extend(made)
    return edit.model, found
