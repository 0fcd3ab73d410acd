"""What nothing is removed from: deliberate barriers, and models without a hidden width."""

from __future__ import annotations

import numpy as np
import onnx

from models.builder import Builder
from models.topologies.registry import UNRUNNABLE, image, stem, tail, topology

# Barriers


@topology()
def topk_barrier() -> onnx.ModelProto:
    """TopK over hidden channels: values and indices would change their meaning."""
    b = Builder()
    h = b.flatten(b.gap(b.relu(b.conv(stem(b), 24))))
    values, indices = b.ops("TopK", h, [5], n=2, axis=1)
    return b.model(b.linear(b.declare(values, ("batch", 5)), 10), indices)


@topology()
def onehot_barrier() -> onnx.ModelProto:
    """Hard routing: ArgMax and OneHot of hidden features are the mask of those features."""
    b = Builder()
    h = b.relu(b.linear(b.relu(b.linear(b.input("input", ("batch", 16)), 32)), 8))
    hot = b.op("OneHot", b.op("ArgMax", h, axis=1, keepdims=0), 8, [0.0, 1.0], axis=-1)
    return b.model(b.linear(b.mul(h, b.declare(hot, ("batch", 8))), 10))


@topology()
def scatternd_barrier() -> onnx.ModelProto:
    """x[:, 3] is overwritten by ScatterND on the transposed tensor, as in in-place PyTorch code."""
    b = Builder()
    h = b.transpose(b.relu(b.linear(b.relu(b.linear(b.input("input", (2, 16)), 32)), 12)), 1, 0)
    h = b.op("ScatterND", h, b.param(np.array([[3], [7]])), b.param(b.normal(2, 2)))
    return b.model(b.linear(b.transpose(h, 1, 0), 10))


@topology()
def scatter_gather_elements() -> onnx.ModelProto:
    """GatherElements and ScatterElements with constant indices, CumSum and ReverseSequence over hidden features."""
    b = Builder()
    h = b.relu(b.linear(b.relu(b.linear(b.input("input", (2, 16)), 32)), 12))
    order = b.rng.permutation(12)[None].repeat(2, axis=0)
    h = b.op("GatherElements", h, b.param(order), axis=1)
    h = b.op("ScatterElements", h, b.param(order[:, :5]), b.param(b.normal(2, 5)), axis=1)
    h = b.op("ReverseSequence", b.op("CumSum", h, 1), b.param(np.array([12, 5])), batch_axis=0, time_axis=1)
    return b.model(b.linear(b.declare(h, (2, 12)), 10))


@topology()
def nms_barrier() -> onnx.ModelProto:
    """The end of a detector: NonMaxSuppression and GatherND after prunable convolutions."""
    b = Builder()
    x = b.relu(b.conv(b.relu(b.conv(b.input("input", (1, 3, 8, 8)), 12)), 16))
    boxes = b.transpose(b.reshape(b.sigmoid(b.conv(x, 4)), 1, 4, 64), 0, 2, 1)
    scores = b.reshape(b.sigmoid(b.conv(b.relu(b.conv(x, 20)), 3)), 1, 3, 64)
    picked = b.op("NonMaxSuppression", boxes, scores, 10, [0.5], [0.3])
    return b.model(picked, b.op("GatherND", scores, picked))


@topology()
def sequence_barrier() -> onnx.ModelProto:
    """SplitToSequence, SequenceAt, ConcatFromSequence: tensors pass through a sequence."""
    b = Builder()
    parts = b.op("SplitToSequence", stem(b), 8, axis=1)
    first = b.op("SequenceAt", parts, 0)
    joined = b.op("ConcatFromSequence", b.op("SequenceInsert", parts, first), axis=1)
    return b.model(tail(b, b.declare(joined, ("batch", 24, 8, 8))))


@topology()
def nonzero_barrier() -> onnx.ModelProto:
    """Boolean indexing: NonZero on a hidden mask, GatherND; the output's length depends on the data."""
    b = Builder()
    h = b.relu(b.linear(b.relu(b.linear(b.input("input", ("batch", 16)), 32)), 12))
    where = b.transpose(b.op("NonZero", b.op("Greater", h, 0.1)), 1, 0)
    return b.model(b.linear(h, 10), b.op("GatherND", h, where))


@topology(into=UNRUNNABLE)
def unknown_operator() -> onnx.ModelProto:
    """An operator of a domain that nobody knows, between two prunable convolutions."""
    b = Builder()
    y = b.op("Mystery", stem(b), b.vec(16), domain="com.example", strength=0.5)
    return b.model(tail(b, b.relu(b.conv(b.declare(y, ("batch", 16, 8, 8)), 20))))


# Nothing to remove


@topology(prunes=False)
def nothing_single_gemm() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.softmax(b.linear(b.input("input", ("batch", 16)), 10)))


@topology(prunes=False)
def nothing_single_conv() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.relu(b.conv(image(b), 8)))


@topology(prunes=False)
def nothing_depthwise() -> onnx.ModelProto:
    """Only depthwise layers, coupled to the input's channels."""
    b = Builder()
    return b.model(b.conv(b.relu(b.bn(b.conv(image(b), 3, group=3))), 3, group=3))


@topology(prunes=False)
def nothing_stored() -> onnx.ModelProto:
    """No weights at all: pre-processing."""
    b = Builder()
    x = b.op("Div", b.op("Sub", image(b), 0.5), 0.25)
    return b.model(b.transpose(x, 0, 2, 3, 1))


@topology(prunes=False)
def nothing_hidden_is_output() -> onnx.ModelProto:
    """Every hidden layer is a graph output."""
    b = Builder()
    first = b.relu(b.linear(b.input("input", ("batch", 16)), 24))
    second = b.relu(b.linear(first, 20))
    return b.model(first, second, b.linear(second, 10))
