"""A layer with weights: the one view that recovery, importance and sparsity share.

As a regression (layers/rows.py) its outputs are rows of its source times a matrix. As a weight that may hold zeros it
is the matrix W `[M, K]` of docs/sparse-format.md: M outputs, K the length of the reduction, with the way from the
array that the node reads and back; from there to what is stored leads layers/stored.py.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from onnx import GraphProto, ModelProto

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.links import made_at, readers
from onnxprune.graph.node import Node, opsets, walk
from onnxprune.graph.protos import overridable
from onnxprune.graph.traits import LINEAR, TRAITS, Trait, einsum_axes
from onnxprune.layers.stored import CHAIN, Stored, integral, stored_weight
from onnxprune.layers.values import Values, constant_names

WEIGHTED = {op for op, t in TRAITS.items() if t.multiplies}


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with a constant weight.

    node: in `Model.proto`; index: its position among the nodes of the main graph, or that of the node whose body it is
    in; slot: its input that holds the weight; name: what plans and reports call it, see `node_names`; array_shape: of
    the weight as the node reads it, () where that is not known. Of a weight that may hold zeros, stored: how it lies in
    the file; inside: the label of the node whose body the layer is in, "" for none; turned: whether others read the
    same initializer as another matrix.
    """

    node: Node
    index: int
    slot: int
    name: str
    array_shape: tuple[int, ...] = ()
    stored: Stored | None = None
    inside: str = ""
    turned: bool = False

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
        return self.slot == self.trait.swaps

    @property
    def group(self) -> int:
        """Groups of a convolution, matrices of a stack whose outputs are apart; 1 for other layers."""
        if self.convolves:
            return int(self.node.attr("group", 1))
        return 1 if self.trait.recurs else math.prod(self.array_shape[:-2])

    # as a weight that may hold zeros

    @property
    def initializer(self) -> str:
        """The initializer that holds the weight: layers with the same one share their zeros."""
        return self.weight if self.stored is None else self.stored.name

    def read(self, model: Model) -> Array:
        """The weight float32 as the node reads it, of `array_shape`."""
        assert self.stored is not None, "a weight that may hold zeros is stored somewhere"
        return self.stored.read(model)

    def write(self, model: Model, array: Array) -> None:
        """Put a weight float32 of `array_shape` in the place of the one that the model has."""
        assert self.stored is not None, "a weight that may hold zeros is stored somewhere"
        self.stored.write(model, array)

    @property
    def convolves(self) -> bool:
        """Whether its weight has axes of a kernel."""
        return self.trait.kernel

    @property
    def axes(self) -> tuple[int, int]:
        """(reduction, outputs) of the weight, counted from 0."""
        rank = len(self.array_shape)
        reduction, outputs = self.trait.axes(self.node, self.slot)
        return (reduction % rank, outputs % rank) if rank > 1 else (0, -1)

    @property
    def transposed(self) -> bool:
        """Whether the weight is read as W itself, `[M, K]` (orientation MK); else as `[K, M]` (KM)."""
        reduction, outputs = self.axes
        return outputs < reduction

    @property
    def orientation(self) -> str:
        """The attribute `weight` of the sparse operators."""
        return "MK" if self.transposed else "KM"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of W: `(M, K)`, or `(M, C/group, *kernel)`."""
        array, (reduction, outputs) = self.array_shape, self.axes
        if not self.convolves:
            return math.prod(array) // array[reduction], array[reduction]
        if self.transposed:
            return array
        return array[outputs] * self.group, array[reduction] // self.group, *array[2:]

    def upright(self, array: Array) -> Array:
        """W of `shape` from the array that the node reads, a view wherever that is possible."""
        if self.transposed:
            return array.reshape(self.shape)
        if not self.convolves:
            return np.swapaxes(array, -1, -2).reshape(self.shape)
        turned = np.flip(array, tuple(range(2, array.ndim)))  # as a convolution of inputs that are spread
        parts = turned.reshape(self.group, -1, *array.shape[1:])  # (g, C/g, M/g, *kernel)
        return np.moveaxis(parts, 2, 1).reshape(self.shape)

    def lying(self, w: Array) -> Array:
        """The array that the node reads from W of `shape`; the inverse of `upright`."""
        array = self.array_shape
        if self.transposed:
            return w.reshape(array)
        if not self.convolves:
            return np.swapaxes(w.reshape(*array[:-2], array[-1], array[-2]), -1, -2)
        parts = w.reshape(self.group, -1, *self.shape[1:])
        return np.flip(np.moveaxis(parts, 2, 1).reshape(array), tuple(range(2, len(array))))

    def matrix(self, array: Array) -> Array:
        """W `[M, K]` from the array that the node reads, a view wherever that is possible."""
        return self.upright(array).reshape(self.shape[0], -1)

    def restore(self, matrix: Array) -> Array:
        """The array that the node reads from W `[M, K]`."""
        return self.lying(matrix.reshape(self.shape))

    def blocks(self, array: Array) -> Array:
        """The array that the node reads as `[S, L]`: N:M runs along L, the reduction of a matrix, the channels of a
        convolution.

        A Conv `[M, C/group, kh, kw]` gives `[M * kh * kw, C/group]`, a copy unless the kernel is 1x1.
        """
        w = self.upright(array)
        return to_blocks(w) if self.convolves else w

    def unblocks(self, blocks: Array) -> Array:
        """The array that the node reads from `[S, L]`."""
        return self.lying(from_blocks(blocks, self.shape) if self.convolves else blocks)

    def rows(self, array: Array) -> Array:
        """The array that the node reads as `[group, M/group, K]`, columns by kernel position, then channel.

        This is the order of patterns: what they call consecutive lies together, `segment` columns at a time.
        """
        w = self.upright(array)
        return to_rows(w, self.group) if self.convolves else w.reshape(self.group, -1, w.shape[1])

    def unrows(self, rows: Array) -> Array:
        """The array that the node reads from `rows`."""
        return self.lying(from_rows(rows, self.shape) if self.convolves else rows.reshape(self.shape))

    @property
    def segment(self) -> int:
        """Columns of `rows` that patterns do not cross: the channels of a convolution, all of a matrix."""
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


def _named(proto: ModelProto) -> Iterator[tuple[Node, int, str, str]]:
    """Every node in order, those of bodies before their owner, with its index (see `Layer`), the label of the node
    whose body it is in, and its name: as in `node_names`, in a body where no node of any graph has it, else the owner's
    label before the first output."""
    versions, every = opsets(proto), [node for graph in graphs(proto.graph) for node in graph.node]
    counts = Counter([*(node.name for node in every), *(o for node in every for o in node.output)])

    def inside(graph: GraphProto, index: int, owner: str) -> Iterator[tuple[Node, int, str, str]]:
        for node in walk(graph, versions):
            for body in node.bodies():
                yield from inside(body, index, node.label)
            name = node.proto.name
            yield node, index, owner, name if name and counts[name] == 1 else f"{owner}/{node.key}"

    for index, (node, name) in enumerate(zip(walk(proto.graph, versions), node_names(proto), strict=True)):
        for body in node.bodies():
            yield from inside(body, index, node.label)
        yield node, index, "", name


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
    """The weights that may hold zeros, in order: of every operator that multiplies with one, in any graph, stored in an
    initializer that nothing else reads; and `(node, reason)` for each that stays as it is. Which of them a file can
    store sparse is what each format says (`formats.format.Format.refuses`)."""
    layers: list[Layer] = []
    dense: list[tuple[str, str]] = []
    values = Values(model)
    for node, index, inside, name in _named(model.proto):
        find = _layers if node.op in WEIGHTED else _of_einsum if node.op == "Einsum" else None
        for result in () if find is None else find(node, index, inside, name, values):
            if isinstance(result, Layer):
                layers.append(result)
            else:
                dense.append((name, result))
    return _drop_shared(model, layers, dense)


def _of_einsum(node: Node, index: int, inside: str, name: str, values: Values) -> Iterator[Layer | str]:
    """The layer that an Einsum is, or why it is none, where it reads what is computed and a constant that has axes."""
    found = {slot: stored_weight(node, slot, values) for slot in range(len(node.inputs))}
    for slot, weight in found.items() if "" in found.values() else ():
        if isinstance(weight, str):
            yield from [weight] if weight else []
        elif weight.shape:
            yield _unfit(node, slot, weight) or Layer(node, index, slot, name, weight.shape, weight, inside)


def _layers(node: Node, index: int, inside: str, name: str, values: Values) -> Iterator[Layer | str]:
    """The layers that a node is, one per weight, or why it has none."""
    trait, weights = TRAITS[node.op], values.model.weights
    found = {slot: stored_weight(node, slot, values) for slot in trait.slots}
    reasons = [x for x in found.values() if isinstance(x, str) and x]
    stored = {slot: x for slot, x in found.items() if isinstance(x, Stored)}
    if not stored:
        constant = trait.source not in trait.slots and node.input(trait.source) in weights
        own = "its input is constant, its weight is not" if constant else "no constant weight"
        yield next(iter(reasons), own)
        return
    if trait.swaps is not None and len(stored) > 1:
        yield "both inputs are constant"
        return
    for slot, weight in stored.items():
        own = name if slot in (trait.weight, trait.swaps) else f"{name}:{slot}"
        yield _unfit(node, slot, weight) or Layer(node, index, slot, own, weight.shape, weight, inside)


def _unfit(node: Node, slot: int, weight: Stored) -> str:
    """Why a weight stays as it is."""
    trait, rank = TRAITS[node.op], len(weight.shape)
    if integral(weight.dtype) or weight.dtype.kind not in "fV":
        return f"its weights are {weight.dtype}, no numbers that are small or large"
    if 0 in weight.shape:
        return "its weight is empty"
    if trait.kernel:
        return _conv(node, weight.shape)
    if node.op == "Einsum" and einsum_axes(node, slot) is None:
        return "its labels in the Einsum are not one of inputs and one of outputs, behind those of a stack"
    if rank > 2 and node.attr("transBatchB", 0):
        return "the batch axes of its weight are transposed"
    if rank < (3 if trait.recurs else 1) or (rank == 1 and trait.swaps is None):
        return f"its weight is of rank {rank}"
    return ""


def _conv(node: Node, shape: tuple[int, ...]) -> str:
    """Why a convolution stays as it is."""
    if len(shape) < 3:
        return f"its weight is of rank {len(shape)}"
    group = int(node.attr("group", 1))
    if group < 1 or shape[0] % group:
        channels = "output" if TRAITS[node.op].outputs == 0 else "input"
        return f"group {group} does not divide its {shape[0]} {channels} channels"
    if list(node.attr("kernel_shape", shape[2:])) != list(shape[2:]):
        return f"kernel_shape is not that of its weight, {list(shape[2:])}"
    return ""


def _drop_shared(
    model: Model, layers: list[Layer], dense: list[tuple[str, str]]
) -> tuple[list[Layer], list[tuple[str, str]]]:
    """Leave out layers whose weight is not theirs alone: what one of them stores must do for all that read it."""
    sharing = defaultdict(list)
    for layer in layers:
        sharing[layer.initializer].append(layer)
    foreign = _Foreign(model, layers)
    kept = []
    for layer in layers:
        shared = sharing[layer.initializer]
        reason = foreign(layer.initializer)
        if not reason and len({other.stored.grid for other in shared if other.stored is not None}) > 1:
            reason = f"its weight {layer.initializer} is read with another scale or zero point as well"
        if reason:
            dense.append((layer.name, reason))
        else:
            views = {_view(other) for other in shared}
            kept.append(replace(layer, turned=True) if len(views) > 1 else layer)
    return kept, dense


def _view(layer: Layer) -> tuple[object, ...]:
    """How the initializer becomes W: alike for layers of which one mask does for all."""
    assert layer.stored is not None
    turns = tuple(step.perm for step in layer.stored.steps if step.perm)
    return layer.convolves, layer.transposed, layer.group, layer.array_shape, turns


class _Foreign:
    """Why an initializer is not of these layers alone."""

    def __init__(self, model: Model, layers: list[Layer]) -> None:
        graph = model.proto.graph
        self.outputs = {output.name for inner in graphs(graph) for output in inner.output}
        self.overridable = overridable(model.proto)
        every = [Node(proto, 1) for inner in graphs(graph) for proto in inner.node]
        self.readers = readers(every)
        self.uses = Counter(layer.weight for layer in layers)

    def __call__(self, initializer: str) -> str:
        if initializer in self.overridable:
            return f"its weight {initializer} is an input of the model as well, which may override it"
        pending = [initializer]
        while pending:
            name = pending.pop()
            if name in self.outputs:
                return f"its weight {name} is an output of the model"
            read = self.readers.get(name, [])
            through = [n for n in read if n.op in CHAIN and n.inputs.index(name) == 0]
            if len(read) - len(through) != self.uses[name]:
                return f"its weight {name} is read by other nodes as well"
            pending += [o for n in through for o in n.outputs if o]
        return ""
