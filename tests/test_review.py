"""What a review found: sizes that stay dynamic after a cut, numbers computed of shapes, and shapes of odd files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from law import cut
from onnxprune.graph.cost import cost_model
from onnxprune.graph.io import load
from onnxprune.graph.node import walk_all
from onnxprune.importance.weights import score
from onnxprune.recovery import bias_shifts
from onnxprune.structure.groups import analyze
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import check_file, verify
from test_rules import ROWS, Row, build, describe, text

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


def test_einsum_masks_an_operand_that_is_not_broadcast() -> None:
    weights = "float[3,1] w0, float[3,8] w1, float[8,4] w2, int64[1] last = {2}"
    nodes = """a = MatMul(x, w0) h = MatMul(x, w1) q = Einsum<equation = "btc,btc->bt">(a, h) s = Unsqueeze(q, last)
        g = MatMul(h, w2) y = Add(g, s)"""
    analysis = analyze(load(build(text("float[2,5,3] x", weights, nodes))))
    keep = analysis.keep_ids({g.name: score(analysis, [g], importance="random")[g.name] > 0.4 for g in analysis.groups})
    assert not keep.all()
    assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5


def test_a_mean_of_integers_is_pinned() -> None:
    nodes = """h = Conv(x, w1) b = Mul(h, twenty) i = Cast<to = 6>(b) m = ReduceMean(i, j1) f = Cast<to = 1>(m)
        g = Conv(h, w2) y = Add(f, g)"""
    result = cut(build(text("float[2,3,6,6] x", f"{CONV}, {NUMBERS}, float twenty = {{20}}", nodes)))
    assert describe(result.analysis) == ("w1:0 pinned: a mean of integers, which cannot keep its divisor",)
    assert result.error == 0


SPECIAL = ("left", "group", "depthwise", "made by a layer")


@pytest.mark.parametrize(
    "row",
    [r for k, r in enumerate(ROWS) if k % 4 == 0 or any(s in r.form for s in SPECIAL)],
    ids=lambda r: f"{r.op} {r.form}",
)
def test_biases_can_be_compensated_after_every_rule(row: Row) -> None:
    result = cut(build(row.text), check=False)
    analysis = result.analysis
    groups = analysis.of_kind("channels")
    scores = score(analysis, groups, importance="random")
    keeps = {g.name: scores[g.name] >= scores[g.name].mean() for g in groups if not g.blocks}
    keep = analysis.keep_ids(keeps)
    check_file(analysis.model, prune_model(analysis, keep, bias_shifts(analysis, keep)))


def macs(source: str) -> float:
    analysis = analyze(load(build(source)))
    c = analysis.coupling
    nodes = walk_all(analysis.model.proto.graph, c.shapes.opsets)
    return cost_model(nodes, c.shapes, c.axes, c.grouped).macs(analysis.keep_ids({}))


def test_macs_of_an_lstm_do_not_depend_on_the_output_that_is_read() -> None:
    weights = "float[1,32,3] w1, float[1,32,8] r1"
    expected = 6 * 2 * 32 * (3 + 8)
    for outputs in ("y", ", y", ", , y"):
        assert macs(text("float[6,2,3] x", weights, f"{outputs} = LSTM<hidden_size = 8>(x, w1, r1)")) == expected


def test_macs_of_a_product_with_its_left_side_transposed() -> None:
    nodes = "y = com.microsoft.FusedMatMul<transA = 1>(x, w1)"
    assert macs(text("float[2,3,5] x", "float[3,8] w1", nodes)) == 2 * 5 * 3 * 8


def test_a_removed_channel_may_be_no_number() -> None:
    """The square root of a negative channel: it goes, and its NaN with it."""
    weights = "float[8,3,1,1] w1, float[4,8,1,1] w2, float[8,1,1] sign = {1,-1,1,-1,1,-1,1,-1}"
    nodes = "h = Conv(x, w1) a = Abs(h) b = Mul(a, sign) k = Sqrt(b) y = Conv(k, w2)"
    model = build(text("float[2,3,6,6] x", weights, nodes))
    analysis = analyze(load(model))
    keep = analysis.keep_ids({g.name: np.arange(8) % 2 == 0 for g in analysis.groups})
    assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5
