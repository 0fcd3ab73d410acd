"""Small networks of the literature as ONNX models with random weights, which `onnxprune train --init SEED` trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8


class Network:
    """Nodes and initializers of a graph as it grows."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.rng = np.random.default_rng(seed)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; its output."""
        self.nodes.append(helper.make_node(op, inputs, [f"{op}{len(self.nodes)}"], **attributes))
        return str(self.nodes[-1].output[0])

    def value(self, name: str, value: Any) -> str:
        """Append an initializer of float32; its name."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def weights(self, name: str, *shape: int) -> str:
        """Append weights, `(outputs, inputs, *kernel)`, normal with variance 2 / fan-in."""
        return self.value(name, self.rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])))

    def gemm(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """A fully connected layer."""
        w, b = self.weights(f"{name}.w", outputs, inputs), self.value(f"{name}.b", np.zeros(outputs))
        return self.node("Gemm", x, w, b, transB=1)

    def conv(self, x: str, name: str, inputs: int, outputs: int, kernel: int, pad: int) -> str:
        """A convolution with a bias."""
        w = self.weights(f"{name}.w", outputs, inputs, kernel, kernel)
        b = self.value(f"{name}.b", np.zeros(outputs))
        return self.node("Conv", x, w, b, kernel_shape=[kernel] * 2, pads=[pad] * 4)

    def conv_norm(self, x: str, name: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> str:
        """A convolution without a bias, and its normalisation."""
        w = self.weights(f"{name}.w", outputs, inputs, kernel, kernel)
        x = self.node("Conv", x, w, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, strides=[stride] * 2)
        statistics = [
            self.value(f"{name}.{what}", np.full(outputs, v))
            for what, v in (("scale", 1), ("shift", 0), ("mean", 0), ("variance", 1))
        ]
        return self.node("BatchNormalization", x, *statistics)

    def model(self, x: Sequence[Any], y: str, classes: int = 10, name: str = "x") -> ModelProto:
        """The model. x: shape of its input; y: what is its output, class scores."""
        return made(self.nodes, self.initializers, (name, list(x)), (y, ["batch", classes]))


def lenet_300_100() -> ModelProto:
    """LeCun et al. 1998: 784-300-100-10 with Relu; 266,200 weights beside the biases."""
    net = Network()
    x = net.node("Flatten", "x")
    x = net.node("Relu", net.gemm(x, "f1", 784, 300))
    x = net.node("Relu", net.gemm(x, "f2", 300, 100))
    return net.model(["batch", 1, 28, 28], net.gemm(x, "f3", 100, 10))


def lenet_5_caffe() -> ModelProto:
    """The LeNet-5 that pruning is measured on (Han et al. 2015): 20 and 50 filters, 500 neurons; 430,500 weights."""
    net = Network()
    x = "x"
    for name, inputs, outputs in (("c1", 1, 20), ("c2", 20, 50)):
        x = net.node("MaxPool", net.conv(x, name, inputs, outputs, 5, 0), kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Relu", net.gemm(net.node("Flatten", x), "f1", 800, 500))
    return net.model(["batch", 1, 28, 28], net.gemm(x, "f2", 500, 10))


def resnet(depth: int = 20, widths: Sequence[int] = (16, 32, 64)) -> ModelProto:
    """He et al. 2016 for CIFAR-10, with standing normalisations and 1x1 convolutions where widths change."""
    net = Network()
    x = net.node("Relu", net.conv_norm("x", "stem", 3, widths[0]))
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range((depth - 2) // 6):
            name, stride = f"s{stage}.b{block}", 2 if stage and not block else 1
            y = net.node("Relu", net.conv_norm(x, f"{name}.1", before, width, stride=stride))
            y = net.conv_norm(y, f"{name}.2", width, width)
            if stride > 1 or before != width:
                x = net.conv_norm(x, f"{name}.skip", before, width, 1, stride)
            x, before = net.node("Relu", net.node("Add", y, x)), width
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    return net.model(["batch", 3, 32, 32], net.gemm(x, "head", before, 10))


def plain(widths: Sequence[int] = (16, 32, 64)) -> ModelProto:
    """Pairs of normalised convolutions with maxima between, for pictures of MNIST."""
    net = Network()
    x, before = "x", 1
    for stage, width in enumerate(widths):
        for k in range(2):
            x, before = net.node("Relu", net.conv_norm(x, f"s{stage}.{k}", before, width)), width
        if stage < len(widths) - 1:
            x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    return net.model(["batch", 1, 28, 28], net.gemm(x, "head", before, 10))


def lenet() -> ModelProto:
    """LeNet-5 of LeCun et al. 1998, with Relu and maxima."""
    net = Network()
    x = "x"
    for name, inputs, outputs, pad in (("c1", 1, 6, 2), ("c2", 6, 16, 0)):
        x = net.node("Relu", net.conv(x, name, inputs, outputs, 5, pad))
        x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Flatten", x)
    for name, inputs, outputs in (("f1", 400, 120), ("f2", 120, 84)):
        x = net.node("Relu", net.gemm(x, name, inputs, outputs))
    return net.model(["batch", 1, 28, 28], net.gemm(x, "f3", 84, 10))


def plain_or_residual(depth: int, width: int, kernel: int, skip: bool, norm: bool, size: int = 14) -> ModelProto:
    """A stem and so many convolutions of one width, with skip connections, with normalisations or not; maxima of 2x2
    after the first. For square pictures of one channel."""
    net = Network()

    def convolved(x: str, name: str, inputs: int) -> str:
        if norm:
            return net.conv_norm(x, name, inputs, width, kernel)
        return net.conv(x, name, inputs, width, kernel, kernel // 2)

    x = net.node("Relu", convolved("x", "stem", 1))
    for k in range(depth):
        y = convolved(x, f"c{k}", width)
        x = net.node("Relu", net.node("Add", x, y) if skip else y)
        x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if not k else x
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    return net.model(["batch", 1, size, size], net.gemm(x, "head", width, 10))


def small_networks(count: int, seed: int = 0) -> dict[str, ModelProto]:
    """Some of the 288 networks of `plain_or_residual` with these depths, widths and kernels, by name."""
    every = [
        (depth, width, kernel, skip, norm)
        for depth in (1, 2, 3, 5) for width in (3, 4, 6, 8, 12, 16) for kernel in (1, 3, 5)
        for skip in (False, True) for norm in (False, True)
    ]  # fmt: skip
    drawn = np.random.default_rng(seed).permutation(len(every))[:count]
    return {
        f"d{d}-w{w}-k{k}{'-skip' * s}{'-norm' * n}": plain_or_residual(d, w, k, s, n)
        for d, w, k, s, n in (every[i] for i in sorted(drawn))
    }


def lstm(width: int = 128) -> ModelProto:
    """The last state of an LSTM over steps of as many numbers, and ten classes of it; random weights."""
    rng = np.random.default_rng(0)
    shapes = {
        "w": (1, 4 * width, width),
        "r": (1, 4 * width, width),
        "b": (1, 8 * width),
        "f.w": (10, width),
        "f.b": (10,),
    }
    values = {n: rng.uniform(-1, 1, s).astype(np.float32) / np.float32(np.sqrt(width)) for n, s in shapes.items()}
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "h"], hidden_size=width),
        helper.make_node("Squeeze", ["h", "axes"], ["last"]),
        helper.make_node("Gemm", ["last", "f.w", "f.b"], ["y"], transB=1),
    ]
    init = [numpy_helper.from_array(w, n) for n, w in values.items()]
    init.append(numpy_helper.from_array(np.array([0]), "axes"))
    return made(nodes, init, ("x", ["steps", "batch", width]), ("y", ["batch", 10]))


def made(nodes: Sequence[Any], init: Sequence[Any], x: tuple[str, Any], y: tuple[str, Any]) -> ModelProto:
    """A float model of one input and output."""
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in (x, y)]
    graph = helper.make_graph(nodes, "graph", ends[0], ends[1], init)
    return helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
