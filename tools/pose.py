"""A pose estimator of MoveNet's kind with random weights, for timings: 192x192 pictures, a batch of one baked in.

    python tools/pose.py OUT.onnx

A MobileNetV2 backbone (Sandler et al. 2018) on uint8 pixels in NHWC, a feature pyramid of depthwise separable
convolutions, and four heads at a quarter of the resolution, as `onnxruntime` gets it from a converted TFLite file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, JOINTS = 192, 17
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 3, 2), (6, 96, 2, 1), (6, 160, 1, 2))
WIDTH = 64  # of the pyramid
HEADS = {"centers": 1, "joints": JOINTS, "regression": 2 * JOINTS, "offsets": 2 * JOINTS}


def pose(seed: int = 0) -> onnx.ModelProto:
    """Input `input` uint8 `[1, 192, 192, 3]`; four outputs `[1, 48, 48, channels]`."""
    rng = np.random.default_rng(seed)
    nodes: list[Any] = []
    arrays: dict[str, np.ndarray] = {
        "scale": np.array(1 / 127.5, np.float32),
        "one": np.array(1, np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "twice": np.array([1, 1, 2, 2], np.float32),
    }

    def node(op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{op.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{len(nodes)}", **attributes))
        return output

    def conv(x: str, wide: int, out: int, k: int = 1, stride: int = 1, group: int = 1, act: bool = True) -> str:
        name = f"w{len(nodes)}"
        fan = wide // group * k * k
        arrays[name] = rng.standard_normal((out, wide // group, k, k), np.float32) * np.float32((2 / fan) ** 0.5)
        arrays[f"{name}.b"] = rng.standard_normal(out, np.float32) * np.float32(0.1)
        y = node(
            "Conv", x, name, f"{name}.b", strides=[stride] * 2, auto_pad="SAME_UPPER", group=group, kernel_shape=[k, k]
        )
        return node("Clip", y, "low", "high") if act else y

    def separable(x: str, wide: int, out: int) -> str:
        return conv(conv(x, wide, wide, 3, group=wide), wide, out)

    x = node("Sub", node("Mul", node("Cast", "input", to=TensorProto.FLOAT), "scale"), "one")
    x, wide = conv(node("Transpose", x, perm=[0, 3, 1, 2]), 3, 32, 3, 2), 32
    levels: list[tuple[str, int]] = []
    for factor, out, times, stride in STAGES:
        if stride == 2:
            levels.append((x, wide))
        for k in range(times):
            inner = wide * factor
            y = conv(x, wide, inner) if factor > 1 else x
            y = conv(conv(y, inner, inner, 3, stride if k == 0 else 1, inner), inner, out, act=False)
            x, wide = (node("Add", x, y) if k and wide == out else y), out
    p = conv(x, wide, WIDTH)
    for skip, width in reversed(levels[1:]):
        p = node("Add", node("Resize", p, "", "twice", mode="nearest"), conv(skip, width, WIDTH))
        p = separable(p, WIDTH, WIDTH)
    for name, channels in HEADS.items():
        y = conv(separable(p, WIDTH, 96), 96, channels, act=False)
        node("Transpose", y, perm=[0, 2, 3, 1], output=name)
    side = SIDE // 4
    graph = helper.make_graph(
        nodes, "pose",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, side, side, c]) for n, c in HEADS.items()],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    onnx.save(pose(), Path(sys.argv[1]))
