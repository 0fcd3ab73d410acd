"""Weights and outputs that stand in several places, several inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx

from models.builder import Builder
from models.topologies.normalisation import groupnorm_decomposed
from models.topologies.registry import stem, tail, topology

# Sharing


@topology()
def shared_detection_heads() -> onnx.ModelProto:
    """One head, applied to two levels of the pyramid; the levels have one width because of it."""
    b = Builder()
    c3 = stem(b)
    c4 = b.relu(b.conv(c3, 24, stride=2))
    levels = [b.conv(c3, 16, 1), b.conv(c4, 16, 1)]
    w1, b1 = b.param(b.he(20, 16, 3, 3), "head.0.weight"), b.vec(20)
    w2, b2 = b.param(b.he(6, 20, 3, 3), "head.1.weight"), b.vec(6)
    outputs = []
    for level in levels:
        h = b.relu(b.conv(level, 20, weight=w1, bias=b1))
        outputs.append(b.reshape(b.conv(h, 6, weight=w2, bias=b2), b.size(h, 0), 6, -1))
    return b.model(b.concat(*outputs, axis=2))


@topology()
def shared_heads_two_depths() -> onnx.ModelProto:
    """The same convolution inside the backbone, before and after a downsampling stage."""
    b = Builder()
    weight = b.param(b.he(16, 16, 3, 3), "shared.weight")
    h = b.relu(b.conv(stem(b), 16, weight=weight))
    h = b.relu(b.conv(h, 16, stride=2))
    return b.model(tail(b, b.relu(b.conv(h, 16, weight=weight))))


@topology()
def groupnorm_detector() -> onnx.ModelProto:
    """FCOS: towers of Conv, decomposed GroupNorm, ReLU, shared by two levels; a learned scale per level."""
    b = Builder()
    c3 = stem(b)
    levels = [b.conv(c3, 16, 1), b.conv(b.relu(b.conv(c3, 24, stride=2)), 16, 1)]
    tower = [(b.param(b.he(16, 16, 3, 3)), b.vec(16), b.vec(16, 1, 1), b.vec(16, 1, 1)) for _ in range(2)]
    box, classes = b.param(b.he(4, 16, 3, 3)), b.param(b.he(5, 16, 3, 3))
    outputs = []
    for level in levels:
        h = level
        for weight, bias, gamma, beta in tower:
            h = b.conv(h, 16, weight=weight, bias=bias)
            h = b.relu(groupnorm_decomposed(b, h, 4, gamma=gamma, beta=beta))
        outputs.append(b.op("Exp", b.mul(b.conv(h, 4, weight=box, bias=False), b.param(np.array([0.1])))))
        outputs.append(b.sigmoid(b.conv(h, 5, weight=classes, bias=False)))
    return b.model(*outputs)


@topology()
def weight_two_producers() -> onnx.ModelProto:
    """One weight, two convolutions on different inputs: both lose the same filters."""
    b = Builder()
    x = stem(b)
    weight = b.param(b.he(20, 16, 3, 3), "shared.weight")
    left = b.relu(b.conv(x, 20, weight=weight))
    right = b.relu(b.conv(b.relu(b.conv(x, 16)), 20, weight=weight))
    return b.model(b.head(b.conv(left, 12)), b.head(b.conv(right, 8)))


@topology()
def shared_bias() -> onnx.ModelProto:
    b = Builder()
    x, bias = stem(b), b.vec(20)
    left, right = (b.relu(b.conv(x, 20, bias=bias)) for _ in range(2))
    return b.model(b.head(b.conv(left, 12)), b.head(right))


@topology()
def shared_bn_parameters() -> onnx.ModelProto:
    """Exporters deduplicate equal tensors: four BatchNormalization vectors of two layers, one shared all-ones scale."""
    b = Builder()
    ones, zeros = b.param(np.ones(16)), b.param(np.zeros(16))
    h = stem(b)
    for _ in range(2):
        h = b.relu(b.op("BatchNormalization", b.conv(h, 16, bias=False), ones, zeros, zeros, ones))
    return b.model(b.head(h))


@topology()
def weight_also_reduced() -> onnx.ModelProto:
    """A regulariser as an output: the weight is also read by ReduceSum and by Mul."""
    b = Builder()
    x = stem(b)
    weight = b.param(b.he(20, 16, 3, 3), "conv.weight")
    y = b.head(b.relu(b.conv(x, 20, weight=weight)))
    return b.model(y, b.op("ReduceSum", b.mul(weight, weight), keepdims=0))


@topology()
def weight_is_output() -> onnx.ModelProto:
    b = Builder()
    weight = b.param(b.he(24, 16), "fc.weight")
    x = b.relu(b.linear(b.input("input", ("batch", 12)), 16))
    h = b.relu(b.op("Gemm", x, weight, b.vec(24), transB=1))
    return b.model(b.linear(b.relu(b.linear(h, 20)), 10), b.op("Identity", weight))


@topology()
def shared_producer_output() -> onnx.ModelProto:
    """The same tensor feeds the next convolution and is a graph output."""
    b = Builder()
    x = stem(b)
    features = b.relu(b.conv(x, 16))
    return b.model(tail(b, features), features)


@topology()
def two_inputs_two_outputs() -> onnx.ModelProto:
    b = Builder()
    left = b.relu(b.conv(b.input("left", ("batch", 3, 8, 8)), 16))
    right = b.relu(b.conv(b.input("right", ("batch", 1, 8, 8)), 16))
    h = b.relu(b.conv(b.add(left, right), 24))
    return b.model(b.head(h), b.conv(h, 2, 1))


@topology()
def auxiliary_vector_input() -> onnx.ModelProto:
    """FiLM: a conditioning vector makes a scale and a shift per channel."""
    b = Builder()
    h = b.conv(stem(b), 16)
    film = b.linear(b.relu(b.linear(b.input("condition", ("batch", 6)), 20)), 32)
    gamma, beta = (b.unsqueeze(part, 2, 3) for part in b.split(film, [16, 16]))
    return b.model(tail(b, b.relu(b.add(b.mul(h, b.add(gamma, 1.0)), beta))))


@topology()
def dead_branch() -> onnx.ModelProto:
    """A convolution whose result nobody reads, and an initializer without any reader."""
    b = Builder()
    h = stem(b)
    b.conv(h, 8)
    b.vec(5)
    return b.model(tail(b, h))
