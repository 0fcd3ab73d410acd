"""What follows a cut: sizes that stay dynamic, numbers computed of shapes, and shapes of odd files."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from law import cut
from models.rules import build, text
from onnxprune.graph.io import load
from onnxprune.importance.weights import score
from onnxprune.structure.groups import analyze
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import verify

CONV = "float[8,3,1,1] w1, float[4,8,1,1] w2"
LINEAR = "float[3,8] w1, float[8,4] w2"
NUMBERS = "int64 i0 = {0}, int64 i1 = {1}, int64[1] j0 = {0}, int64[1] j1 = {1}, int64[1] j2 = {2}, int64[1] c = {8}"

DYNAMIC = {
    "a divisor of channels and dynamic sizes": (
        "float[N,3,H,W] x", CONV, """h = Conv(x, w1) s = Shape(h) part = Slice(s, j1, j4)
        n = ReduceProd<keepdims = 0>(part) f = Cast<to = 1>(n) k = Div(h, f) y = Conv(k, w2)""", (3, 3, 5, 7),
    ),
    "Shape from its second axis on": (
        "float[N,S,3] x", LINEAR, """h = MatMul(x, w1) s = Shape<start = 1>(h) f = Cast<to = 1>(s)
        n = ReduceProd<keepdims = 0>(f) k = Div(h, n) y = MatMul(k, w2)""", (2, 5, 3),
    ),
    "Size": (
        "float[N,S,3] x", LINEAR, "h = MatMul(x, w1) s = Size(h) f = Cast<to = 1>(s) k = Div(h, f) y = MatMul(k, w2)",
        (2, 5, 3),
    ),
    "a target of a dynamic size times a width": (
        "float[N,S,3] x", LINEAR, """h = MatMul(x, w1) s = Shape(h) n = Gather(s, j0) t = Gather(s, j1) tc = Mul(t, c)
        to = Concat<axis = 0>(n, tc) f = Reshape(h, to) r = Relu(f) back = Concat<axis = 0>(n, t, c)
        g = Reshape(r, back) y = MatMul(g, w2)""", (2, 5, 3),
    ),
    "inside a body": (
        "float[N,3,6,6] x", CONV + ", bool yes = {1}", """h = Conv(x, w1) y = If(yes)<
        then_branch = a () => (float[N,4,6,6] u) {
            s = Shape(h) n = Gather(s, i0) m = Gather(s, i1) p = Mul(n, m) f = Cast<to = 1>(p) d = Div(h, f)
            u = Conv(d, w2)
        }, else_branch = b () => (float[N,4,6,6] v) { v = Conv(h, w2) }>""", (3, 3, 6, 6),
    ),
}  # fmt: skip

STATIC = {
    "Shape as output": ("h = Conv(x, w1) s = Shape(h) y = Conv(h, w2)", "float[] y, int64[4] s"),
    "Range over the channels": (
        "h = Conv(x, w1) s = Shape(h) m = Gather(s, i1) r = Range(i0, m, i1) f = Cast<to = 1>(r) "
        "q = ReduceSum<keepdims = 0>(f, j0) k = Conv(h, w2) y = Add(k, q)", "float[] y",
    ),
    "rows of a table, one per channel": (
        "h = Conv(x, w1) s = Shape(h) m = Gather(s, i1) r = Range(i0, m, i1) e = Gather(table, r) "
        "q = ReduceSum<keepdims = 0>(e, j0) k = Conv(h, w2) y = Add(k, q)", "float[] y",
    ),
    "turns of a loop": (
        "h = Conv(x, w1) s = Shape(h) m = Gather(s, i1) k = Conv(h, w2) v = Loop(m, yes, one)<body = b (int64 i, "
        "bool go, float[1] a) => (bool on, float[1] z) {on = Identity(go) z = Add(a, one)}> y = Add(k, v)", "float[] y",
    ),
    "scales computed of shapes": (
        'h = Conv(x, w1) s = Shape(h) f = Cast<to = 1>(s) scales = Div(sizes, f) k = Resize(h, , scales) '
        "y = Conv(k, w2)", "float[] y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DYNAMIC)
def test_what_depends_on_dynamic_sizes_stays_dynamic(name: str) -> None:
    inputs, weights, nodes, shape = DYNAMIC[name]
    analysis = analyze(load(build(text(inputs, f"{weights}, {NUMBERS}, int64[1] j4 = {{4}}", nodes))))
    (group,) = analysis.groups
    for seed in range(3):
        scores = score(analysis, [group], importance="random", seed=seed)[group.name]
        keep = analysis.keep_ids({group.name: scores > sorted(scores)[2 + seed]})
        pruned = prune_model(analysis, keep)
        assert verify(analysis, keep, pruned).error <= 1e-5
        assert verify(analysis, keep, pruned, input_shapes={"x": shape}).error <= 1e-5


@pytest.mark.parametrize("name", STATIC)
def test_numbers_computed_of_shapes_stay(name: str) -> None:
    nodes, outputs = STATIC[name]
    more = "float[8,1] table, float[4] sizes = {2,8,12,12}, bool yes = {1}, float[1] one = {1}"
    result = cut(build(text("float[2,3,6,6] x", f"{CONV}, {NUMBERS}, {more}", nodes, outputs=outputs)))
    assert result.removed > 0
    assert result.error <= 1e-5


def test_squeeze_of_all_axes_keeps_one_that_comes_down_to_one() -> None:
    for opset in (11, 21):
        weights = "float[2,3,1,1] w1, float[2,4] w2"
        nodes = "h = Conv(x, w1) k = Squeeze(h) y = MatMul(k, w2)"
        result = cut(build(text("float[5,3,1,1] x", weights, nodes, opset=opset)), 0.5)
        assert result.pruned.weights["w1"].shape == (1, 3, 1, 1)
        assert result.error <= 1e-5


@pytest.mark.parametrize("version", [3, 8])
def test_a_shape_used_twice_before_opset_9(version: int) -> None:
    """A Constant holds floats only then, and before IR version 4 every initializer is an input."""
    nodes = """h = Conv(x, w1) a = Reshape(h, flat) r = Relu(h) b = Reshape(r, flat) s = Add(a, b) k = Reshape(s, back)
        y = Conv(k, w2)"""
    weights = CONV + ", int64[3] flat = {2,8,36}, int64[4] back = {2,8,6,6}"
    model = build(text("float[2,3,6,6] x", weights, nodes, opset=8))
    model.ir_version = version
    if version < 4:
        for t in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    result = cut(model)
    assert result.removed > 0
    assert result.error <= 1e-5


@pytest.mark.parametrize("node", ["Conv(u, w3)", "ConvTranspose(u, w3)", "Split(u)", "Gather(u, i)", "LSTM(u, w4, w4)"])
def test_an_operator_on_a_tensor_of_unknown_rank(node: str) -> None:
    weights = CONV + ", float[4,4,1,1] w3, float[1,16,4] w4, int64[2] i = {0,1}"
    nodes = f"h = Conv(x, w1) y = Conv(h, w2) u = elsewhere.Unheard(y) z = {node}"
    model = build(text("float[2,3,6,6] x", weights, nodes, outputs="float[] y, float[] z"))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2, 4, 6, 6]))
    assert cut(model, check=False).removed > 0
