"""A layer with weights: the one view that recovery, importance and sparsity share.

As a regression (layers/rows.py) its outputs are rows of its source times a matrix. As a weight that may hold zeros it
is the matrix W `[M, K]` of docs/sparse-format.md: M outputs, K the length of the reduction, with the way from the
initializer's array and back.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.links import made_at, read_counts
from onnxprune.graph.node import Node, opsets, walk
from onnxprune.graph.traits import LINEAR, TRAITS, Trait
from onnxprune.layers.values import constant_names

SPARSE = tuple(op for op, t in TRAITS.items() if t.sparse)


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with a constant weight.

    node: in `Model.proto`; index: its position among the nodes of the main graph; slot: its input that holds the
    weight; name: what plans and reports call it, see `node_names`; array_shape: of the weight's initializer, () where
    nodes compute the weight.
    """

    node: Node
    index: int
    slot: int
    name: str
    array_shape: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """The same in a model and in its pruned copy."""
        return self.node.key

    @property
    def op(self) -> str:
        """The operator's name, with the domain in front where it is not ONNX's own."""
        return self.node.op

    @property
    def trait(self) -> Trait:
        """What is known of the operator."""
        return TRAITS[self.node.op]

    @property
    def source(self) -> str:
        """The tensor that is multiplied with the weight."""
        return self.node.input(self.trait.weight if self.left else self.trait.source)

    @property
    def weight(self) -> str:
        """The tensor of the weight, which several layers may share; in `Model.weights` unless nodes compute it."""
        return self.node.input(self.slot)

    @property
    def left(self) -> bool:
        """Whether the weight is the left operand: W X instead of X W."""
        return self.slot != self.trait.weight

    @property
    def group(self) -> int:
        """Groups of a convolution; 1 for other layers."""
        return int(self.node.attr("group", 1)) if self.trait.convolves else 1

    # as a weight that may hold zeros

    @property
    def convolves(self) -> bool:
        """Whether its weight has axes of a kernel."""
        return self.trait.convolves

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as W itself, `[M, K]` (orientation MK); else as `[K, M]` (KM)."""
        return self.convolves or self.trait.axes(self.node, self.slot)[1] == -2

    @property
    def orientation(self) -> str:
        """The attribute `weight` of the sparse operators."""
        return "MK" if self.transposed else "KM"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of W: `(M, K)`, `(M, C/group, kw)` or `(M, C/group, kh, kw)`."""
        return self.array_shape if self.transposed else self.array_shape[::-1]

    def matrix(self, array: Array) -> Array:
        """W `[M, K]` from the initializer's array, a view wherever that is possible."""
        if self.convolves:
            return array.reshape(self.shape[0], -1)
        return array if self.transposed else array.T

    def restore(self, matrix: Array) -> Array:
        """The initializer's array from W `[M, K]`."""
        if self.convolves:
            return matrix.reshape(self.shape)
        return matrix if self.transposed else matrix.T

    def blocks(self, array: Array) -> Array:
        """The initializer's array as `[S, L]`: N:M runs along L, the reduction of a matrix, the channels of a Conv.

        A Conv `[M, C/group, kh, kw]` gives `[M * kh * kw, C/group]`, a copy unless the kernel is 1x1.
        """
        if self.convolves:
            return to_blocks(array.reshape(self.shape))
        return self.matrix(array)

    def unblocks(self, blocks: Array) -> Array:
        """The initializer's array from `[S, L]`."""
        return from_blocks(blocks, self.shape) if self.convolves else self.restore(blocks)

    def rows(self, array: Array) -> Array:
        """The initializer's array as `[group, M/group, K]`, columns by kernel position, then channel.

        This is the order of patterns: what they call consecutive lies together, `segment` columns at a time.
        """
        if not self.convolves:
            return self.matrix(array)[None]
        return to_rows(array.reshape(self.shape), self.group)

    def unrows(self, rows: Array) -> Array:
        """The initializer's array from `rows`."""
        if not self.convolves:
            return self.restore(rows[0])
        return from_rows(rows, self.shape)

    @property
    def segment(self) -> int:
        """Columns of `rows` that patterns do not cross: the channels of a Conv, all of a matrix."""
        return self.shape[1]


def to_blocks(w: Array) -> Array:
    """The rows along which N:M runs: `[S, L]` from `[M, K]`, `[M, C, kw]` or `[M, C, kh, kw]`."""
    return np.moveaxis(w, 1, -1).reshape(-1, w.shape[1])


def from_blocks(blocks: Array, shape: tuple[int, ...]) -> Array:
    """The weight of `shape` from its rows `[S, L]`; the inverse of `to_blocks`."""
    return np.moveaxis(blocks.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def to_rows(w: Array, group: int) -> Array:
    """`[group, M/group, K]`, columns by kernel position, then channel, of w as in `to_blocks`."""
    parts = w.reshape(group, w.shape[0] // group, w.shape[1], -1)
    return np.ascontiguousarray(np.moveaxis(parts, 2, 3)).reshape(group, parts.shape[1], -1)


def from_rows(rows: Array, shape: tuple[int, ...]) -> Array:
    """The weight of `shape` from its rows; the inverse of `to_rows`."""
    parts = rows.reshape(*rows.shape[:2], -1, shape[1])
    return np.ascontiguousarray(np.moveaxis(parts, 3, 2)).reshape(shape)


def node_names(proto: ModelProto) -> list[str]:
    """A name for each node of the main graph, by which it is found again in copies of the model.

    The node's name where it has one that no other node has, nor any other node's output; else its first output.
    """
    graph = proto.graph
    names = Counter(node.name for node in graph.node)
    at = made_at(graph.node)
    unique_names = []
    for i, node in enumerate(graph.node):
        unique = names[node.name] == 1 and at.get(node.name, i) == i
        unique_names.append(node.name if node.name and unique else next((o for o in node.output if o), ""))
    return unique_names


def linear_layers(model: Model) -> list[Layer]:
    """The layers of the main graph that are regressions, in order: a constant weight, and a source that is not."""
    constant, names = constant_names(model), node_names(model.proto)
    layers = []
    for index, node in enumerate(walk(model.proto.graph, opsets(model.proto))):
        if node.op in LINEAR:
            slot = TRAITS[node.op].weight
            layer = Layer(
                node, index, slot, names[index], tuple(getattr(model.weights.get(node.input(slot)), "shape", ()))
            )
            if layer.weight in constant and layer.source not in constant:
                layers.append(layer)
    return layers


def sparse_layers(model: Model) -> tuple[list[Layer], list[tuple[str, str]]]:
    """The layers of the main graph whose weight can be sparse, in order: MatMul, Gemm and Conv with a float32 weight of
    their own; and `(node, reason)` for each that stays dense."""
    graph = model.proto.graph
    versions = opsets(model.proto)
    names = node_names(model.proto)
    layers: list[Layer] = []
    dense: list[tuple[str, str]] = []
    for index, (node, name) in enumerate(zip(walk(graph, versions), names, strict=True)):
        for body in node.bodies():
            dense += [(inner, f"inside the {node.op} {node.label}") for inner in _products(body, versions)]
        if node.op in SPARSE:
            result = _layer(model, node, index, name)
            if isinstance(result, Layer):
                layers.append(result)
            else:
                dense.append((name, result))
    return _drop_shared(model, layers, dense)


def _products(body: GraphProto, versions: dict[str, int]) -> Iterator[str]:
    for graph in graphs(body):
        yield from (node.label for node in walk(graph, versions) if node.op in SPARSE)


def _layer(model: Model, node: Node, index: int, name: str) -> Layer | str:
    """The layer that a node is, or why it stays dense."""
    weights = model.weights
    constant = [node.input(i) in weights for i in (0, 1)]
    if not any(constant):
        return "no constant weight"
    if all(constant):
        return "both inputs are constant"
    if node.op == "Conv" and constant[0]:
        return "its input is constant, its weight is not"
    slot = 1 if constant[1] else 0
    weight = node.input(slot)
    w = weights[weight]
    if w.dtype != np.float32:
        return f"{w.dtype} weights stay dense; convert to float32 first"
    if w.size == 0:
        return "its weight is empty"
    reason = _conv(node, w) if node.op == "Conv" else "" if w.ndim == 2 else f"its weight is of rank {w.ndim}, not 2"
    return reason or Layer(node, index, slot, name, tuple(w.shape))


def _conv(node: Node, w: Array) -> str:
    """Why a convolution stays dense."""
    if w.ndim not in (3, 4):
        return f"convolution in {max(w.ndim - 2, 0)} dimensions stays dense"
    group = int(node.attr("group", 1))
    if group < 1 or w.shape[0] % group:
        return f"group {group} does not divide its {w.shape[0]} output channels"
    if w.shape[1] == 1:
        return "depthwise convolution stays dense" if group > 1 else "convolution of one channel stays dense"
    if list(node.attr("kernel_shape", w.shape[2:])) != list(w.shape[2:]):
        return f"kernel_shape is not that of its weight, {list(w.shape[2:])}"
    return ""


def _drop_shared(
    model: Model, layers: list[Layer], dense: list[tuple[str, str]]
) -> tuple[list[Layer], list[tuple[str, str]]]:
    """Leave out layers whose weight is not theirs alone: what one of them stores must do for all that read it."""
    by_weight = defaultdict(list)
    for layer in layers:
        by_weight[layer.weight].append(layer)
    reads = read_counts(model.proto.graph)
    outputs = {output.name for graph in graphs(model.proto.graph) for output in graph.output}
    overridable = {i.name for i in model.proto.graph.input} if model.proto.ir_version >= 4 else set()
    kept = []
    for layer in layers:
        shared = by_weight[layer.weight]
        reason = ""
        if layer.weight in outputs:
            reason = f"its weight {layer.weight} is an output of the model"
        elif layer.weight in overridable:
            reason = f"its weight {layer.weight} is an input of the model as well, which may override it"
        elif len({(other.convolves, other.transposed, other.group) for other in shared}) > 1:
            reason = f"its weight {layer.weight} is read in another orientation as well"
        elif reads[layer.weight] != len(shared):
            reason = f"its weight {layer.weight} is read by other nodes as well"
        if reason:
            dense.append((layer.name, reason))
        else:
            kept.append(layer)
    return kept, dense
