"""A BERT-base-sized encoder with random weights: 12 layers, width 768, 12 heads, feed-forward 3072, one sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EPSILON = 1e-5


def bert(seed: int = 0, *, layers: int = 12, width: int = 768, heads: int = 12, inner: int = 3072, tokens: int = 128):
    """Input `x` float32 `[1, tokens, width]`, output `y` of the same shape; post-norm, Gelu as exporters write it."""
    rng = np.random.default_rng(seed)
    nodes: list[Any] = []
    arrays: dict[str, np.ndarray] = {
        "split": np.array([1, tokens, heads, width // heads], np.int64),
        "join": np.array([1, tokens, width], np.int64),
        "scale": np.array((width // heads) ** -0.5, np.float32),
        "half": np.array(0.5, np.float32),
        "one": np.array(1, np.float32),
        "root": np.array(2**0.5, np.float32),
    }

    def node(op: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{len(nodes)}", **attributes))
        return output

    def linear(x: str, name: str, rows: int, columns: int) -> str:
        arrays[f"{name}.w"] = rng.standard_normal((rows, columns), np.float32) * np.float32(rows**-0.5)
        arrays[f"{name}.b"] = rng.standard_normal(columns, np.float32) * np.float32(0.02)
        return node("Add", node("MatMul", x, f"{name}.w"), f"{name}.b")

    def norm(x: str, name: str) -> str:
        arrays[f"{name}.scale"], arrays[f"{name}.shift"] = np.ones(width, np.float32), np.zeros(width, np.float32)
        return node("LayerNormalization", x, f"{name}.scale", f"{name}.shift", epsilon=EPSILON)

    x = "x"
    for i in range(layers):
        q, k, v = (
            node("Transpose", node("Reshape", linear(x, f"{i}.{part}", width, width), "split"), perm=perm)
            for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
        )
        weights = node("Softmax", node("Mul", node("MatMul", q, k), "scale"), axis=-1)
        mixed = node("Reshape", node("Transpose", node("MatMul", weights, v), perm=[0, 2, 1, 3]), "join")
        x = norm(node("Add", linear(mixed, f"{i}.out", width, width), x), f"{i}.norm1")
        h = linear(x, f"{i}.up", width, inner)
        h = node("Mul", node("Mul", h, node("Add", node("Erf", node("Div", h, "root")), "one")), "half")
        x = norm(node("Add", linear(h, f"{i}.down", inner, width), x), f"{i}.norm2")
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    shape = [1, tokens, width]
    graph = helper.make_graph(
        nodes, "bert",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
