"""Rows of matrix products and recurrent layers: the vectors of the source along its last axis, one after the other.

A recurrent layer has a row per time step and sample; its outputs are the gates' shares of the input.
"""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.node import Node
from onnxprune.layers.finite import finite
from onnxprune.layers.values import Unsuitable


def matrix(n: Node, w: Float) -> Float:
    """float64 `(1, in, out)` of a weight `(in, out)`, of Gemm with its factor and either way round.

    Raises `Unsuitable` for stacks of matrices.
    """
    if w.ndim != 2:
        raise Unsuitable("the weight has batch axes")
    w = (w.T if n.attr("transB", 0) else w) * float(n.attr("alpha", 1.0))
    return np.ascontiguousarray(w[None])


def weight_of(n: Node, m: Float, shape: tuple[int, ...]) -> Float:
    """The inverse of `matrix`: the weight `(in, out)`, either way round."""
    w = m[0] / float(n.attr("alpha", 1.0))
    return np.asarray(w.T if n.attr("transB", 0) else w)


def step_matrix(n: Node, w: Float) -> Float:
    """float64 `(1, in, directions * gates * hidden)` of a weight `(directions, gates * hidden, in)`."""
    return np.ascontiguousarray(w.reshape(-1, w.shape[2]).T[None])


def step_weight_of(n: Node, m: Float, shape: tuple[int, ...]) -> Float:
    """The inverse of `step_matrix`, of the weight's shape."""
    return np.asarray(m[0].T.reshape(shape))


def rows(n: Node, x: Array, picked: Array | None) -> Array:
    """float32 `(1, n, in)`: the vectors at `picked`, all where None."""
    flat = x.T if n.attr("transA", 0) else x.reshape(-1, x.shape[-1])
    return finite(flat if picked is None else flat[picked])[None]


def output_rows(y: Array, picked: Array | None) -> Array:
    """float32 `(n, channels)` of a tensor of the shape of the output."""
    flat = y.reshape(-1, y.shape[-1])
    return finite(flat if picked is None else flat[picked])
