"""Layers with weights as linear regressions: outputs = rows @ matrix + bias.

How rows are made is a fact about the operator (`Trait.rows`), and a row of `MAKERS`:

    patches, spread patches   convolutions: a row per output position (layers/patches.py)
    vectors                   Gemm, MatMul: a row per vector of the source (layers/vectors.py)
    steps                     LSTM, GRU, RNN: a row per time step and sample

All positions are counted on the layer's output, so that two models of the same layer can be sampled alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.node import Node
from onnxprune.layers import patches, vectors
from onnxprune.layers.layer import Layer
from onnxprune.layers.values import Values

Kernel = tuple[int, ...]  # spatial shape of a convolution's kernel, () for others


@dataclass(frozen=True)
class Maker:
    """How rows are made of what a kind of layer reads.

    matrix:   node, weight float64 -> `(groups, in, out)`; raises `Unsuitable`
    weight:   node, matrix, shape of the weight -> the weight; the inverse of `matrix`
    window:   of convolutions: node, kernel, spatial size of the input -> how it is read
    """

    matrix: Callable[[Node, Float], Float]
    weight: Callable[[Node, Float, tuple[int, ...]], Float]
    window: Callable[[Node, Kernel, tuple[int, ...]], patches.Window] | None = None


MAKERS = {
    "patches": Maker(patches.matrix, patches.weight_of, patches.window),
    "spread patches": Maker(patches.spread_matrix, patches.spread_weight_of, patches.spread_window),
    "vectors": Maker(vectors.matrix, vectors.weight_of),
    "steps": Maker(vectors.step_matrix, vectors.step_weight_of),
}


def window(layer: Layer, kernel: Kernel, size: tuple[int, ...]) -> patches.Window:
    """How a convolution reads inputs of the spatial size `size`."""
    read = MAKERS[layer.trait.rows].window
    assert read is not None
    return read(layer.node, kernel, size)


def matrix(layer: Layer, values: Values) -> Float:
    """float64 `(groups, in, out)`: columns of a row times outputs. Raises `Unsuitable` where there is none."""
    return MAKERS[layer.trait.rows].matrix(layer.node, values(layer.weight).astype(np.float64))


def weight_of(layer: Layer, m: Float, shape: tuple[int, ...]) -> Float:
    """The inverse of `matrix`: the weight, of the shape that the node's weight has."""
    return MAKERS[layer.trait.rows].weight(layer.node, m, shape)


def kernel_shape(layer: Layer, values: Values) -> Kernel:
    """Spatial shape of a convolution's kernel; () for the other layers."""
    return tuple(values(layer.weight).shape[2:]) if layer.trait.convolves else ()


def positions(layer: Layer, x: Array, kernel: Kernel) -> int:
    """How many rows one batch of inputs has."""
    if layer.trait.convolves:
        return int(x.shape[0] * math.prod(window(layer, kernel, x.shape[2:]).output(x.shape[2:])))
    return int(math.prod(x.shape[:-1])) if not layer.node.attr("transA", 0) else int(x.shape[1])


def rows(layer: Layer, x: Array, kernel: Kernel, picked: Array | None) -> Array:
    """float32 `(groups, n, in)`: the rows at `picked` (all where None), counted over batch and output positions.

    x: the layer's source, of one batch. What is not finite is NaN.
    """
    if layer.trait.convolves:
        return patches.rows(x, window(layer, kernel, x.shape[2:]), layer.group, picked)
    return vectors.rows(layer.node, x, picked)


def output_rows(layer: Layer, y: Array, picked: Array | None) -> Array:
    """float32 `(n, channels)`: a tensor of the shape of the layer's output at the same places; NaN as in `rows`."""
    return patches.output_rows(y, picked) if layer.trait.convolves else vectors.output_rows(y, picked)


def like_outputs(layer: Layer, other: Array, x: Array, kernel: Kernel, width: int, picked: Array | None) -> Array:
    """`output_rows` of a tensor that is added to the layer's outputs for the input x, broadcast to their shape."""
    if layer.trait.convolves:
        shape: tuple[int, ...] = (x.shape[0], width, *window(layer, kernel, x.shape[2:]).output(x.shape[2:]))
    elif layer.node.attr("transA", 0):
        shape = (x.shape[1], width)
    else:
        shape = (*x.shape[:-1], width)
    return output_rows(layer, other if other.shape == shape else np.broadcast_to(other, shape), picked)
