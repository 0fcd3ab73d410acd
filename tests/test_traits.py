"""The table of facts about operators with weights: its rows hold, and go with the coupling rules."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from conftest import ROOT
from onnxprune.graph.io import load
from onnxprune.graph.traits import LINEAR, TRAITS, recurrent_macs
from onnxprune.layers.layer import linear_layers
from onnxprune.layers.rows import MAKERS, kernel_shape, matrix, output_rows, rows, weight_of
from onnxprune.layers.values import Values
from onnxprune.runtime.session import session
from onnxprune.structure.groups import analyze
from onnxprune.structure.rules import RULES

RNG = np.random.default_rng(0)

# operators whose rule says that a weight makes units, without a row in TRAITS
NO_TRAIT = {
    "com.microsoft::MoE": "how many experts run depends on the data, so that its MACs are not counted",
    "com.microsoft::EmbedLayerNormalization": "tables of embeddings, which cost nothing and are not refitted",
}
# operators with a row whose rule names no weight
NO_WEIGHT = {
    "Attention": "multiplies activations alone",
    "com.microsoft::MultiHeadAttention": "multiplies activations alone",
    "com.microsoft::GroupQueryAttention": "multiplies activations alone",
}


def producing() -> set[str]:
    """Operators whose coupling rule calls `produce`, itself or through a helper."""
    functions: dict[str, ast.FunctionDef] = {}
    for path in sorted((ROOT / "onnxprune" / "structure" / "rules").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                functions[node.name] = node

    def makes(name: str, seen: frozenset[str] = frozenset()) -> bool:
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
                if called == "produce":
                    return True
                if called in functions and called not in seen | {name} and makes(called, seen | {name}):
                    return True
        return False

    ops: set[str] = set()
    for name, node in functions.items():
        for d in node.decorator_list:
            if isinstance(d, ast.Call) and getattr(d.func, "id", "") == "rule" and makes(name):
                ops |= {str(ast.literal_eval(a)) for a in d.args}
    return ops


def test_every_operator_with_weights_has_its_row_and_its_rule() -> None:
    made = producing()
    assert {"Conv", "MatMul", "LSTM"} <= made
    assert made - set(TRAITS) == set(NO_TRAIT)
    assert set(TRAITS) - made == set(NO_WEIGHT)
    assert set(TRAITS) <= set(RULES)


@pytest.mark.parametrize("op", TRAITS)
def test_facts_go_together(op: str) -> None:
    t = TRAITS[op]
    assert not t.rows or t.rows in MAKERS
    slots = [*t.slots, *t.steps, *t.added, *([] if t.bias is None else [t.bias]), t.source]
    assert len(set(slots)) == len(slots) - (t.swaps == t.source)
    assert not t.sparse or t.rows
    assert t.attends in ("", "fused", "product")
    assert t.gates == 1 or t.macs is recurrent_macs


# operator -> shape of the source, shape of the weight, length of the bias, attributes: one row for each with `rows`
ONES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = {
    "Conv": ((2, 4, 7, 6), (6, 2, 3, 2), 6, {"group": 2, "strides": [2, 1], "auto_pad": "SAME_LOWER"}),
    "com.microsoft::FusedConv": ((2, 4, 5), (6, 4, 3), 6, {"pads": [1, 0], "dilations": [2]}),
    "ConvTranspose": ((2, 4, 5, 4), (4, 3, 3, 2), 6, {"group": 2, "strides": [2, 3], "pads": [1, 0, 0, 1]}),
    "Gemm": ((5, 4), (3, 5), 3, {"transA": 1, "transB": 1, "alpha": 0.5}),
    "MatMul": ((2, 5, 4), (4, 3), 0, {}),
    "LSTM": ((5, 2, 4), (2, 12, 4), 0, {"hidden_size": 3, "direction": "bidirectional"}),
    "GRU": ((5, 2, 4), (1, 9, 4), 0, {"hidden_size": 3}),
    "RNN": ((5, 2, 4), (1, 3, 4), 0, {"hidden_size": 3}),
}


def single(op: str) -> onnx.ModelProto:
    """A model of one node."""
    shape, w, bias, attributes = ONES[op]
    domain, _, kind = op.rpartition("::")
    weights = {"w": RNG.standard_normal(w, np.float32)}
    if bias:
        weights["b"] = RNG.standard_normal(bias, np.float32)
    inputs = ["x", *weights]
    if TRAITS[op].recurs:
        weights["r"] = RNG.standard_normal((*w[:2], attributes["hidden_size"]), np.float32)
        inputs.append("r")
    node = helper.make_node(kind, inputs, ["y"], domain=domain, **attributes)
    return helper.make_model(
        helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", 1, shape)], [helper.make_tensor_value_info("y", 1, None)],
            [numpy_helper.from_array(v, k) for k, v in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8,
    )  # fmt: skip


def test_every_regression_has_its_row() -> None:
    assert set(ONES) == LINEAR


@pytest.mark.parametrize("op", ONES)
def test_outputs_are_rows_times_matrix(op: str) -> None:
    model = load(single(op))
    values, t = Values(model), TRAITS[op]
    (layer,) = linear_layers(model)
    m = matrix(layer, values)
    np.testing.assert_allclose(weight_of(layer, m, ONES[op][1]), values("w"), rtol=1e-6)
    x = RNG.standard_normal(ONES[op][0], np.float32)
    kernel = kernel_shape(layer, values)
    found = np.matmul(rows(layer, x, kernel, None), m)  # (groups, n, out)
    found = found.transpose(1, 0, 2).reshape(found.shape[1], -1)
    some = np.array([0, len(found) - 1])
    np.testing.assert_allclose(
        np.matmul(rows(layer, x, kernel, some), m).transpose(1, 0, 2).reshape(2, -1), found[some], rtol=1e-5, atol=1e-5
    )
    if t.recurs:  # the gates' shares stay inside the node
        np.testing.assert_allclose(found, np.einsum("sbi,dgi->sbdg", x, values("w")).reshape(len(found), -1), rtol=1e-4)
        return
    with session(model) as s:
        y = output_rows(layer, s.run(None, {"x": x})[0], None)
    bias = values("b") if ONES[op][2] else 0.0
    np.testing.assert_allclose(y, found + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", ONES)
def test_costs_count_multiply_accumulates(op: str) -> None:
    model = load(single(op))
    analysis = analyze(model)
    (layer,) = linear_layers(model)
    values = Values(model)
    x = np.zeros(ONES[op][0], np.float32)
    g, n, d = rows(layer, x, kernel_shape(layer, values), None).shape
    out = matrix(layer, values).shape[2]
    expected = g * n * d * out
    if op == "ConvTranspose":  # every input meets every weight, also what falls outside
        expected = x[:, 0].size * values("w").size
    elif TRAITS[op].recurs:
        expected += n * values("r").size
    assert analysis.costs().macs(analysis.keep_ids({})) == expected
