"""Where a layer keeps its matrix and its bias, so that others can be put there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Float
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.node import Node
from onnxprune.graph.normalisation import MEAN
from onnxprune.layers.layer import Layer
from onnxprune.layers.rows import MAKERS, matrix, weight_of
from onnxprune.layers.stored import Stored, plainly, stored_weight
from onnxprune.layers.tail import Tail
from onnxprune.layers.values import Unsuitable, Values

Readers = Mapping[str, Sequence[Node]]


@dataclass(frozen=True, eq=False)
class Place:
    """A constant of a model that one node alone reads, directly or through nodes of constants (scales are kept)."""

    model: Model
    stored: Stored

    @property
    def name(self) -> str:
        """The initializer."""
        return self.stored.name

    def read(self) -> Float:
        """The value, float64, as the node reads it."""
        return self.stored.read(self.model, np.float64)

    def write(self, value: Float) -> None:
        """Put a value, of as many elements, in its place: in its type and shape, quantized with the scale that is there
        and clipped to the type's range."""
        self.stored.write(self.model, value.reshape(self.stored.shape))


def place_of(edit: Edit, node: Node, slot: int, values: Values, readers: Readers) -> Place:
    """The place of input `slot` of a node; what several nodes read, or other nodes compute, is given a place of its
    own.

    readers: tensor -> nodes that read it, of the edited model. Raises `Unsuitable` where the input is no constant.
    """
    name, model = node.input(slot), edit.model
    stored = stored_weight(node, slot, values)
    if isinstance(stored, Stored) and all(len(readers.get(link, ())) == 1 for link in stored.links):
        return Place(model, stored)
    array = values(name)
    fresh = edit.constant(f"{name}_own", array)
    node.proto.input[slot] = node.inputs[slot] = fresh
    return Place(model, plainly(fresh, array))


@dataclass(frozen=True, eq=False)
class Parameters:
    """Matrix and bias of one layer, to be read and written.

    bias: None where the layer has none and nothing behind it can take one; factor: what one added to the outputs means
    there.
    """

    layer: Layer
    weight: Place
    bias: Place | None
    factor: float = 1.0
    own_bias: bool = True  # the bias is the layer's, and not of a node behind it

    def rounded(self, m: Float) -> Float:
        """A matrix as it will be once it is in the place of the layer's, where that holds less than float32."""
        stored = self.weight.stored
        if not stored.steps and stored.held.itemsize >= 4:
            return m
        w = weight_of(self.layer, m, stored.shape).reshape(stored.shape)
        return MAKERS[self.layer.trait.rows].matrix(self.layer.node, stored.rounded(self.weight.model, w))

    def write(self, m: Float, shift: Float) -> None:
        """Put a matrix in the place of the layer's, and a shift into its bias, where there is one.

        m: `(groups, in, out)`; shift: what is added to the outputs, `(groups * out,)`.
        """
        self.weight.write(weight_of(self.layer, m, self.weight.stored.shape))
        self.move(shift)

    def move(self, shift: Float) -> None:
        """Put a shift, `(groups * out,)`, into the layer's bias, where there is one."""
        if self.bias is not None:
            old = self.bias.read()
            if self.layer.trait.recurs:  # (D, 2 * gates * H): of the input, then of the recurrence
                new = old.copy()
                new[:, : old.shape[1] // 2] += shift.reshape(len(old), -1)
            else:
                new = old + self.factor * shift.reshape(
                    [-1 if d > 1 else 1 for d in old.shape] if old.size > 1 else old.shape
                )
            self.bias.write(new)


def parameters(edit: Edit, layer: Layer, tail: Tail, values: Values, readers: Readers) -> Parameters:
    """Find, or make, the places of a layer's matrix and bias. Raises `Unsuitable` where the matrix cannot change."""
    n = layer.node
    width = matrix(layer, values).shape[0] * matrix(layer, values).shape[2]
    slot = layer.trait.bias
    if len(readers.get(layer.weight, ())) > 1:
        raise Unsuitable("it shares its weight with another layer")
    weight = place_of(edit, n, layer.trait.weight, values, readers)

    def with_bias(node: Node, slot: int, factor: float) -> Parameters:
        return Parameters(layer, weight, place_of(edit, node, slot, values, readers), factor, node is n)

    if layer.trait.recurs:
        return with_bias(n, slot, 1.0) if slot is not None and n.input(slot) else Parameters(layer, weight, None)
    beta = float(n.attr("beta", 1.0))
    if slot is not None and n.input(slot):
        if values(n.input(slot)).size == width and beta:
            return with_bias(n, slot, 1 / beta)
    elif slot is not None and tail.norm is None and beta == 1:
        zeros = np.zeros(width, weight.stored.dtype)
        name = edit.constant(f"{n.key}_bias", zeros)
        while len(n.proto.input) <= slot:
            n.proto.input.append("")
        n.proto.input[slot] = name
        n.inputs[:] = list(n.proto.input)
        return Parameters(layer, weight, Place(edit.model, plainly(name, zeros)))
    if tail.norm is not None:
        return with_bias(tail.norm, MEAN, -1.0)
    if tail.added is not None and values(tail.added[0].input(tail.added[1])).size == width:
        return with_bias(*tail.added, 1.0)
    return Parameters(layer, weight, None)
