"""What a BatchNormalization does to a channel: y = factor * x + (shift - mean * factor)."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.graph.node import Node

SCALE, SHIFT, MEAN, VARIANCE = 1, 2, 3, 4  # inputs
STATISTICS = (MEAN, VARIANCE)


def batchnorm_factor(n: Node, scale: Array, variance: Array) -> Array:
    """scale / sqrt(variance + epsilon) per channel, in the type of the arrays, `(channels,)` each."""
    return np.asarray(scale / np.sqrt(variance + n.attr("epsilon", 1e-5)))
