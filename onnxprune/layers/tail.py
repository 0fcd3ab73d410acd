"""What follows a layer channel by channel, so that its regression sees the activation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.io import Model
from onnxprune.graph.node import Node
from onnxprune.graph.normalisation import batchnorm_factor
from onnxprune.layers.layer import Layer
from onnxprune.layers.values import Values, constant_names


@dataclass(frozen=True, eq=False)
class Tail:
    """What happens to a layer's outputs: z = scale * y + shift, then perhaps + other, then perhaps an activation.

    scale, shift: `(out,)`; other: the tensor that is added (a residual stream), "" for none; bounds: between them the
    activation passes z, and it is flat outside; None where there is no such activation.
    """

    scale: Float
    shift: Float
    other: str = ""
    sign: int = 1  # of the other
    bounds: tuple[float, float] | None = None
    norm: Node | None = None  # BatchNormalization whose mean takes a bias
    added: tuple[Node, int] | None = None  # Add right behind the layer with a constant


def find_tail(
    layer: Layer,
    model: Model,
    values: Values,
    readers: Mapping[str, Sequence[Node]],
    width: int,
    shapes: Mapping[str, Sequence[int | None]],
) -> Tail:
    """Follow the only reader of the layer's output while it is an affine map per channel.

    readers: tensor -> nodes that read it (a graph output counts as one more); shapes: of the whole model's tensors.
    """

    def broadcasts(second: str) -> bool:
        """Whether adding it leaves the outputs' shape as it is."""
        a, b = shapes.get(layer.node.key), shapes.get(second)
        if a is None or b is None or len(b) > len(a):
            return False
        return all(q in (1, p) for p, q in zip(reversed(a), reversed(b), strict=False))

    scale, shift = np.ones(width), np.zeros(width)
    name, other, sign, norm, added, bounds = layer.node.key, "", 1, None, None, None
    constant = constant_names(model)
    trait = layer.trait
    right = values(layer.weight).ndim - 1 if trait.convolves else 1
    if trait.recurs:
        return Tail(scale, shift)
    if trait.added:
        bounds = {"Relu": (0.0, math.inf)}.get(layer.node.attr("activation", ""))
        return Tail(scale, shift, layer.node.input(trait.added[0]), bounds=bounds)
    first = True
    while len(readers.get(name, [])) == 1:
        n = readers[name][0]
        if (
            n.op == "BatchNormalization"
            and trait.convolves
            and not other
            and n.input(0) == name
            and all(i in constant for i in n.inputs[1:5])
        ):
            gamma, beta, mean, variance = (values(i).astype(np.float64) for i in n.inputs[1:5])
            factor = batchnorm_factor(n, gamma, variance)
            scale, shift = scale * factor, (shift - mean) * factor + beta
            norm = n if first else norm
        elif n.op in ("Add", "Mul", "Sub", "Div", "Sum") and len(n.inputs) == 2:
            slot = n.inputs.index(name)
            second = n.inputs[1 - slot]
            if second == name:
                break
            if second not in constant:
                if n.op not in ("Add", "Sum", "Sub") or other or not broadcasts(second):
                    break
                other = second
                if n.op == "Sub" and slot == 0:
                    sign = -1
                elif n.op == "Sub":
                    scale, shift = -scale, -shift
            else:
                if other or (n.op in ("Sub", "Div") and slot == 1):
                    break
                vector = _per_channel(values(second), width, right)
                if vector is None:
                    break
                if n.op in ("Add", "Sum", "Sub"):
                    shift = shift + vector * (-1 if n.op == "Sub" else 1)
                    added = (n, 1 - slot) if first and n.op == "Add" else added
                else:
                    factor = 1 / vector if n.op == "Div" else vector
                    scale, shift = scale * factor, shift * factor
        elif n.op in ("QuantizeLinear", "DequantizeLinear", "Identity", "Dropout") and n.input(0) == name:
            pass  # the value, rounded
        elif n.op == "Relu":
            bounds = (0.0, math.inf)
            break
        elif n.op == "Clip":
            ends = [
                n.attr("min", values(n.input(1)) if n.input(1) in constant else -math.inf),
                n.attr("max", values(n.input(2)) if n.input(2) in constant else math.inf),
            ]
            bounds = (float(np.asarray(ends[0]).item()), float(np.asarray(ends[1]).item()))
            break
        else:
            break
        first = False
        name = n.key
    return Tail(scale, shift, other, sign, bounds, norm, added)


def _per_channel(value: Array, width: int, right: int) -> Float | None:
    """A constant that varies along the channels alone, axis `-right`, as `(width,)`; None for any other."""
    v = value.astype(np.float64)
    if v.size == 1:
        return np.full(width, v.item())
    if v.size != width:
        return None
    axis = [k for k, d in enumerate(v.shape) if d == width]
    return v.reshape(-1) if v.ndim - axis[0] == right else None
