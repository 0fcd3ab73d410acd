"""Where weights come from: computed, shared out of one, stored sparse."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.builder import Builder
from models.topologies.registry import UNCHECKED, image, stem, tail, topology

# Where weights come from


@topology()
def weight_constant_of_shape() -> onnx.ModelProto:
    """A box filter and a bias made by ConstantOfShape."""
    b = Builder()

    def filled(value: float, *shape: int) -> str:
        return b.op("ConstantOfShape", list(shape), value=numpy_helper.from_array(np.full(1, value, np.float32)))

    h = b.conv(stem(b), 16, group=16, weight=filled(1 / 9, 16, 1, 3, 3), bias=filled(0.1, 16))
    h = b.relu(b.conv(h, 12, weight=filled(0.01, 12, 16, 3, 3)))
    return b.model(tail(b, h))


@topology()
def weight_reshaped() -> onnx.ModelProto:
    """CNTK's MNIST: the dense weight is stored (channels, H, W, classes) and reshaped in the graph."""
    b = Builder(8, weights="input")
    h = b.relu(b.add(b.conv(image(b, 1), 12, 5, bias=False), b.vec(12, 1, 1)))
    h = b.relu(b.add(b.conv(h, 16, 5, bias=False), b.vec(16, 1, 1)))
    h = b.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2])
    flat = b.declare(b.op("Reshape", h, b.const([-1, 256])), ("batch", 256))
    weight = b.op("Reshape", b.param(b.he(16, 4, 4, 10, fan_in=256)), b.const([256, 10]))
    return b.model(b.add(b.matmul(flat, weight), b.vec(1, 10)))


@topology()
def weight_transposed() -> onnx.ModelProto:
    """Dense weights stored (out, in) and transposed in the graph; a Conv weight stored HWIO, as TensorFlow does."""
    b = Builder()
    weight = b.transpose(b.param(b.he(3, 3, 3, 16, fan_in=27)), 3, 2, 0, 1)
    h = b.flatten(b.gap(b.relu(b.conv(image(b), 16, weight=weight))))
    for width in (24, 10):
        h = b.add(b.matmul(h, b.transpose(b.param(b.he(width, b.channels(h))), 1, 0)), b.vec(width))
        h = b.relu(h) if width == 24 else h
    return b.model(h)


@topology()
def weight_normalised() -> onnx.ModelProto:
    """Weight norm: g * v / ||v||, the norm per filter by ReduceL2."""
    b = Builder()
    h = stem(b)
    v, g = b.param(b.he(20, 16, 3, 3), "weight_v"), b.param(b.uniform(0.5, 2, 20, 1, 1, 1), "weight_g")
    weight = b.mul(v, b.op("Div", g, b.reduce("L2", v, 1, 2, 3)))
    return b.model(tail(b, b.relu(b.conv(h, 20, weight=weight))))


@topology()
def weight_standardised() -> onnx.ModelProto:
    """BiT: the mean and the deviation of each filter are taken off in the graph; input channels are mixed by it."""
    b = Builder()
    h = stem(b)
    w = b.param(b.he(20, 16, 3, 3))
    centred = b.op("Sub", w, b.reduce("Mean", w, 1, 2, 3))
    deviation = b.op("Sqrt", b.add(b.reduce("Mean", b.mul(centred, centred), 1, 2, 3), 1e-5))
    weight = b.mul(b.op("Div", centred, deviation), 0.1)
    return b.model(tail(b, b.relu(b.conv(h, 20, weight=weight))))


@topology()
def weight_cast_float16() -> onnx.ModelProto:
    """Weights stored in half precision and cast in the graph."""
    b = Builder()
    h = b.input("input", ("batch", 16))
    for width in (32, 10):
        stored = b.param(b.he(width, b.channels(h)).astype(np.float16))
        h = b.op("Gemm", h, b.op("Cast", stored, to=onnx.TensorProto.FLOAT), b.vec(width), transB=1)
        h = b.relu(h) if width == 32 else h
    return b.model(h)


@topology()
def weight_concatenated() -> onnx.ModelProto:
    """A fused projection whose weight is a Concat of two stored halves."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    weight = b.concat(b.param(b.he(16, 12, fan_in=16)), b.param(b.he(16, 20, fan_in=16)), axis=1)
    h = b.relu(b.add(b.matmul(x, weight), b.concat(b.vec(12), b.vec(20), axis=0)))
    return b.model(b.dense(h, 10))


@topology()
def weight_modulated() -> onnx.ModelProto:
    """StyleGAN2 (batch 1): the style scales the weight's input channels, then each filter is demodulated."""
    b = Builder()
    x = b.relu(b.conv(b.relu(b.conv(b.input("input", (1, 3, 8, 8)), 12)), 16))
    style = b.linear(b.relu(b.linear(b.input("style", (1, 8)), 20)), 16)
    w = b.mul(b.param(b.he(20, 16, 3, 3)), b.reshape(style, 1, 16, 1, 1))
    norm = b.op("Sqrt", b.add(b.reduce("Sum", b.mul(w, w), 1, 2, 3), 1e-8))
    return b.model(b.head(b.relu(b.conv(x, 20, weight=b.op("Div", w, norm)))))


@topology("weight_sparse_constant", constant=True, into=UNCHECKED)
@topology("weight_sparse_initializer", constant=False, into=UNCHECKED)
def weight_sparse(*, constant: bool) -> onnx.ModelProto:
    """A dense layer whose weight is stored in coordinate format; onnxruntime saves the indices as int16."""
    b = Builder()
    dense = b.he(24, 20, fan_in=12) * (b.rng.random((24, 20)) < 0.5)
    index = np.flatnonzero(dense)
    values = numpy_helper.from_array(dense.reshape(-1)[index].astype(np.float32), "sparse.weight")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(index, "sparse.index"), dense.shape)
    h = b.relu(b.linear(b.relu(b.linear(b.input("input", ("batch", 16)), 32)), 24))
    weight = b.op("Constant", sparse_value=sparse) if constant else "sparse.weight"
    h = b.relu(b.declare(b.matmul(h, weight), ("batch", 20)))
    model = b.model(b.linear(h, 10))
    if not constant:
        model.graph.sparse_initializer.append(sparse)
    return model
