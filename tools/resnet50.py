"""ResNet-50 v1.5 and a large MLP as ONNX files with seeded random weights, for timings and for memory tests.

    python tools/resnet50.py OUT.onnx              25,557,032 parameters, named as torchvision's
    python tools/resnet50.py OUT.onnx --folded-bn  BatchNormalization folded into the convolutions
    python tools/resnet50.py OUT.onnx --mlp 1.0    Linear layers of 4096 x 4096, 1 GB of external data

Architecture: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385; v1.5 has the stride in the
3x3 convolution. Initialisation: He et al., arXiv 1502.01852.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[np.float32]

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride of the first block
EXPANSION = 4
BN_EPSILON = 1e-5
OPSET = 17
ALIGNMENT = 4096  # bytes; external tensors start at page boundaries, so that they can be memory-mapped


class _Graph:
    """Nodes and initializers of a ResNet; tensor names follow torchvision's modules."""

    def __init__(self, seed: int, folded_bn: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.folded_bn = folded_bn
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def param(self, name: str, array: Array) -> str:
        self.initializers.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, scope: str, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node named like `/layer1/0/conv1/Conv`, as PyTorch's exporter names it."""
        name = f"{scope}/{kind}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def conv_bn(self, x: str, conv: str, bn: str, cin: int, cout: int, k: int, stride: int, gamma: float = 1.0) -> str:
        """Convolution without bias and BatchNormalization, or the one convolution that both make."""
        w = self.rng.standard_normal((cout, cin, k, k), np.float32) * np.float32(math.sqrt(2.0 / (cin * k * k)))
        scale = gamma * self.rng.uniform(0.5, 1.5, cout).astype(np.float32)
        bias = self.rng.normal(0.0, 0.1, cout).astype(np.float32)
        mean = self.rng.normal(0.0, 0.1, cout).astype(np.float32)
        var = self.rng.uniform(0.5, 1.5, cout).astype(np.float32)
        sizes = {"kernel_shape": [k, k], "strides": [stride] * 2, "pads": [k // 2] * 4, "dilations": [1, 1], "group": 1}
        scope = "/" + conv.replace(".", "/")
        if self.folded_bn:
            factor = scale / np.sqrt(var + BN_EPSILON)
            weight = self.param(f"{conv}.weight", w * factor[:, None, None, None])
            return self.node(scope, "Conv", x, weight, self.param(f"{conv}.bias", bias - mean * factor), **sizes)
        y = self.node(scope, "Conv", x, self.param(f"{conv}.weight", w), **sizes)
        stats = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
        names = [self.param(f"{bn}.{key}", vector) for key, vector in stats.items()]
        scope = "/" + bn.replace(".", "/")
        return self.node(scope, "BatchNormalization", y, *names, epsilon=BN_EPSILON, momentum=0.9)

    def bottleneck(self, x: str, name: str, cin: int, width: int, stride: int) -> str:
        scope, cout = "/" + name.replace(".", "/"), EXPANSION * width
        y = self.conv_bn(x, f"{name}.conv1", f"{name}.bn1", cin, width, 1, 1)
        y = self.node(f"{scope}/relu", "Relu", y)
        y = self.conv_bn(y, f"{name}.conv2", f"{name}.bn2", width, width, 3, stride)
        y = self.node(f"{scope}/relu_1", "Relu", y)
        y = self.conv_bn(y, f"{name}.conv3", f"{name}.bn3", width, cout, 1, 1, gamma=0.3)
        if cin != cout:
            x = self.conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", cin, cout, 1, stride)
        return self.node(f"{scope}/relu_2", "Relu", self.node(scope, "Add", y, x))


def resnet50(seed: int = 0, *, folded_bn: bool = False, batch: int | str = "batch") -> onnx.ModelProto:
    """ResNet-50 v1.5 on `input` (batch, 3, 224, 224) to `output` (batch, 1000), float32, random weights.

    25,557,032 parameters: convolutions, BatchNormalization scale and bias, classifier. The last scale of every block is
    smaller than the others, which keeps the residual stream from growing.
    """
    g = _Graph(seed, folded_bn)
    x = g.node("/relu", "Relu", g.conv_bn("input", "conv1", "bn1", 3, 64, 7, 2))
    x = g.node("/maxpool", "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    cin = 64
    for stage, (width, blocks, first_stride) in enumerate(STAGES, start=1):
        for block in range(blocks):
            x = g.bottleneck(x, f"layer{stage}.{block}", cin, width, first_stride if block == 0 else 1)
            cin = EXPANSION * width
    x = g.node("/Flatten", "Flatten", g.node("/avgpool", "GlobalAveragePool", x), axis=1)
    weight = g.param("fc.weight", g.rng.standard_normal((1000, cin), np.float32) * np.float32(math.sqrt(1 / cin)))
    bias = g.param("fc.bias", g.rng.normal(0.0, 0.01, 1000).astype(np.float32))
    g.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["output"], name="/fc/Gemm", transB=1))
    inputs = [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [batch, 3, 224, 224])]
    outputs = [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [batch, 1000])]
    return _model(helper.make_graph(g.nodes, "resnet50", inputs, outputs, g.initializers))


def big_mlp(path: str | Path, gigabytes: float = 1.0, *, width: int = 4096, seed: int = 0) -> onnx.ModelProto:
    """Write an MLP of `width` x `width` Linear layers with ReLU to `path`, and its weights to `path`.data next to it.

    The layers hold about `gigabytes` (1e9 bytes) of float32. One tensor is in memory at a time, so the peak is
    4 * width**2 bytes. Returns the model without its weights, as it was written: 1 GB gives 15 layers of 67 MB.
    """
    path, rng = Path(path), np.random.default_rng(seed)
    layers = max(2, round(gigabytes * 1e9 / (4 * width * (width + 1))))
    deviation = np.float32(math.sqrt(2.0 / width))
    nodes, initializers, x = [], [], "input"
    with open(f"{path}.data", "wb") as data:
        for i in range(layers):
            w = rng.standard_normal((width, width), np.float32)
            w *= deviation
            bias = rng.standard_normal(width, np.float32) * np.float32(0.01)
            initializers += [_append(data, f"layers.{i}.weight", w), _append(data, f"layers.{i}.bias", bias)]
            y = "output" if i == layers - 1 else f"/layers.{i}/Gemm_output_0"
            gemm = [x, f"layers.{i}.weight", f"layers.{i}.bias"]
            nodes.append(helper.make_node("Gemm", gemm, [y], name=f"/layers.{i}/Gemm", transB=1))
            if y != "output":
                x = f"/layers.{i}/Relu_output_0"
                nodes.append(helper.make_node("Relu", [y], [x], name=f"/layers.{i}/Relu"))
    inputs, outputs = (
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])] for name in ("input", "output")
    )
    model = _model(helper.make_graph(nodes, "big_mlp", inputs, outputs, initializers))
    path.write_bytes(model.SerializeToString())
    return model


def _append(data: Any, name: str, array: Array) -> onnx.TensorProto:
    """Write `array` at the next page boundary of the open file; return the tensor that points to it."""
    offset = -(-data.tell() // ALIGNMENT) * ALIGNMENT
    data.seek(offset)
    array.tofile(data)
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", Path(data.name).name), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="onnxprune.tools"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write ResNet-50, or with --mlp a large MLP, with random weights.")
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folded-bn", action="store_true", help="fold BatchNormalization into the convolutions")
    parser.add_argument("--batch", type=int, help="a fixed batch size in place of the dynamic one")
    parser.add_argument("--mlp", type=float, metavar="GB", help="write an MLP with this much external data instead")
    args = parser.parse_args()
    if args.mlp is not None:
        big_mlp(args.out, args.mlp, seed=args.seed)
    else:
        onnx.save(resnet50(args.seed, folded_bn=args.folded_bn, batch=args.batch or "batch"), args.out)


if __name__ == "__main__":
    main()
