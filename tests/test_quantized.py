"""Quantized weights: what their integers stand for, and that units without weight are the first to go."""

from __future__ import annotations

import numpy as np
import pytest

from law import cut
from models.rules.row import build, text
from onnxprune.graph.io import Model, load
from onnxprune.graph.node import walk_all
from onnxprune.graph.quantized import numbers, packed, unpacked
from onnxprune.importance.gates import Gated
from onnxprune.runtime.session import run
from onnxprune.structure.groups import analyze
from onnxprune.structure.masked import masked_model
from onnxprune.structure.verify import DEFAULT_TOLERANCE, QUANTIZED_TOLERANCE, tolerance

Q8 = "s = Constant<value = float {0.02}>() z = Constant<value = uint8 {120}>()"
INT8 = "int8[4,8] w1, float[8] v1, int8[8] z1 = {90,-92,93,-94,95,-96,97,-98}, int8[8,3] w2, float s2 = {0.01}"
UNITS = {  # two layers, of w1's eight units along axis 1
    "DynamicQuantizeMatMul": (
        "h = com.microsoft.DynamicQuantizeMatMul(x, w1, v1, z1) r = Relu(h) "
        "y = com.microsoft.DynamicQuantizeMatMul(r, w2, s2)"
    ),
    "QGemm": (
        f"{Q8} q = QuantizeLinear(x, s, z) h = com.microsoft.QGemm(q, s, z, w1, v1, z1, b, s, z) "
        "y = com.microsoft.QGemm(h, s, z, w2, s2, z2)"
    ),
    "MatMulIntegerToFloat": (
        f"{Q8} q = QuantizeLinear(x, s, z) h = com.microsoft.MatMulIntegerToFloat(q, w1, s, v1, z, z1) "
        "p = QuantizeLinear(h, s, z) y = com.microsoft.MatMulIntegerToFloat(p, w2, s, s2, z)"
    ),
    "QLinearMatMul": (
        f"{Q8} q = QuantizeLinear(x, s, z) h = QLinearMatMul(q, s, z, w1, v1, z1, s, z) "
        "p = QLinearMatMul(h, s, z, w2, s2, z2, s, z) y = DequantizeLinear(p, s, z)"
    ),
}


def outputs(model: Model) -> list[np.ndarray]:
    """What a model gives for one input."""
    return [
        *run(model, {"x": np.random.default_rng(3).standard_normal((5, 4), np.float32)}, (), optimize=False).values()
    ]


@pytest.mark.parametrize("op", UNITS)
def test_units_that_are_their_zero_point_go_first(op: str) -> None:
    model = load(build(text("float[5,4] x", f"{INT8}, int32[8] b = {{0,0,0,0,0,0,0,0}}, int8 z2 = {{0}}", UNITS[op])))
    w, dead = model.weights["w1"].copy(), [1, 2, 5, 7]
    w[:, dead] = model.weights["z1"][dead]
    model.weights["w1"] = w
    result = cut(model, 0.5, importance="path")
    assert result.pruned.weights["w2"].shape == (4, 3)
    for before, after in zip(outputs(model), outputs(result.pruned), strict=True):
        assert np.ptp(before) > 0
        np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("op", UNITS)
def test_closed_gates_read_the_zero_point(op: str) -> None:
    model = load(build(text("float[5,4] x", f"{INT8}, int32[8] b = {{9,8,7,6,5,4,3,2}}, int8 z2 = {{0}}", UNITS[op])))
    analysis = analyze(model)
    (group,) = analysis.groups
    gated, keep = Gated(analysis, [group]), {group.name: np.arange(8) % 3 > 0}
    open_outputs = outputs(gated.model)
    gated.set(keep)
    masked = masked_model(analysis, analysis.keep_ids(keep))
    for before, still, closed, expected in zip(
        outputs(model), open_outputs, outputs(gated.model), outputs(masked), strict=True
    ):
        np.testing.assert_array_equal(still, before)
        np.testing.assert_allclose(closed, expected, rtol=1e-6)
        assert np.abs(closed - before).max() > 0


@pytest.mark.parametrize(
    ("weights", "inputs", "attributes"),
    [
        ("uint8[6,4,8] w, float[6,4] v, uint8[6,2] z", "v, z", "bits = 4, K = 64"),
        ("uint8[6,3,4] w, float[6,3] v, uint8[6,1] z", "v, z", "bits = 2, K = 48"),
        ("uint8[6,3,8] w, float[18] v", "v", "bits = 4, K = 40"),
        ("uint8[6,2,8] w, float[6,2] v, float[6,2] z", "v, z", "bits = 4, K = 32"),
        ("uint8[6,2,16] w, float[6,2] v, uint8[6,2] z", "v, z", "bits = 8, K = 32"),
    ],
)
def test_what_the_blocks_of_a_product_stand_for(weights: str, inputs: str, attributes: str) -> None:
    k = int(attributes.split()[-1])
    nodes = f"y = com.microsoft.MatMulNBits<N = 6, block_size = 16, {attributes}>(x, w, {inputs})"
    model = load(build(text(f"float[{k},{k}] x", weights, nodes)))
    (node,) = walk_all(model.proto.graph, {})
    found = numbers(node, "w", model.weights.get)
    assert found is not None and found.shape[:3] == model.weights["w"].shape
    (expected,) = run(model, {"x": np.eye(k, dtype=np.float32)}, (), optimize=False).values()
    rows = found.reshape(6, -1)
    np.testing.assert_allclose(rows[:, :k].T, expected, rtol=1e-6)
    assert not rows[:, k:].any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_in_bytes_come_back(bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (3, 2, 7), np.uint8)
    np.testing.assert_array_equal(unpacked(packed(values, bits), bits).reshape(3, 2, -1)[..., :7], values)


@pytest.mark.parametrize(
    ("weights", "inputs", "more"),
    [
        ("uint8[2,32,16] w1, float[2,32] v1, uint8[2,32,16] w2, float[2,32] v2, uint8[2,16] z", ", , , , , z, z", ""),
        ("uint8[2,32,8] w1, float[2,32,2] v1, uint8[2,32,8] w2, float[2,32,2] v2, uint8[2,32,1] z", ", , , , , z, z",
         ", block_size = 16, expert_weight_bits = 2"),
    ],
)  # fmt: skip
def test_what_the_weights_of_experts_stand_for(weights: str, inputs: str, more: str) -> None:
    nodes = f'y = com.microsoft.QMoE<k = 1, activation_type = "identity"{more}>(x, r, w1, v1, , w2, v2{inputs})'
    model = load(build(text("float[32,32] x, float[32,2] r", weights, nodes)))
    (node,) = walk_all(model.proto.graph, {})
    first, second = (numbers(node, w, model.weights.get) for w in ("w1", "w2"))
    assert first is not None and second is not None
    router = np.tile(np.array([0.0, 50.0], np.float32), (32, 1))  # the second expert, alone
    (found,) = run(model, {"x": np.eye(32, dtype=np.float32), "r": router}, (), optimize=False).values()
    expected = first[1].reshape(32, 32).T @ second[1].reshape(32, 32).T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("attributes", "coarse"), [("", False), (", accuracy_level = 1", False), (", accuracy_level = 4", True)]
)
def test_what_rounds_its_inputs_may_differ_by_a_step(attributes: str, coarse: bool) -> None:
    nodes = f"y = com.microsoft.MatMulNBits<N = 6, K = 32, bits = 4, block_size = 16{attributes}>(x, w, v)"
    model = load(build(text("float[5,32] x", "uint8[6,2,8] w, float[6,2] v", nodes)))
    assert tolerance(analyze(model)) == (QUANTIZED_TOLERANCE if coarse else DEFAULT_TOLERANCE)
