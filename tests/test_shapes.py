"""Shapes: arithmetic that is evaluated, bodies, operators that nobody knows, sizes of dynamic axes."""

from __future__ import annotations

import onnx
import pytest

from law import cut
from models.rules import build, describe, text
from onnxprune.errors import OptionError
from onnxprune.graph.io import load
from onnxprune.graph.shapes import Shapes, concrete_inputs, infer


def shapes(
    weights: str, nodes: str, inputs: str = "float[N,3,6,6] x", given: dict[str, tuple[int, ...]] | None = None
) -> Shapes:
    return infer(load(build(text(inputs, weights, nodes))), given)


CHAIN = """h = Conv(x, w1) t = Shape(h) n = Gather(t, zero) c = Gather(t, one) m = Unsqueeze(n, axis)
    d = Unsqueeze(c, axis) u = Mul(d, size) s = Concat<axis = 0>(m, u) k = Reshape(h, s) y = Gemm(k, w2)"""
CHAIN_WEIGHTS = """float[8,3,1,1] w1, float[288,4] w2, int64 zero = {0}, int64 one = {1}, int64[1] axis = {0},
    int64[1] size = {36}"""


def test_shape_arithmetic_of_an_unsimplified_export_is_evaluated() -> None:
    found = shapes(CHAIN_WEIGHTS, CHAIN, given={"x": (5, 3, 6, 6)})
    assert {t: found.known[t].tolist() for t in "tncus"} == {
        "t": [5, 8, 6, 6], "n": 5, "c": 8, "u": [288], "s": [5, 288],
    }  # fmt: skip
    assert (found.shapes["k"], found.shapes["y"], found.problems) == ((5, 288), (5, 4), [])
    assert "h" not in found.known and "s" not in found.constant and "axis" in found.constant


def test_shape_arithmetic_follows_the_channels_by_itself() -> None:
    result = cut(build(text("float[N,3,6,6] x", CHAIN_WEIGHTS, CHAIN)), 0.5)
    assert describe(result.analysis) == ("8 channels: w1:0 w2:0x36",)
    assert result.error <= 1e-5 and result.removed > 0
    assert [n.op_type for n in result.pruned.proto.graph.node] == [
        n.op_type for n in result.analysis.model.proto.graph.node
    ]


def test_bodies_are_inferred_and_what_differs_between_branches_is_unknown() -> None:
    nodes = """h = Conv(x, w1)
        same = If<then_branch = d () => (float[] p) { p = Relu(h) },
                  else_branch = e () => (float[] q) { q = Neg(h) }>(c)
        mixed = If<then_branch = f () => (float[] r) { r = Relu(h) },
                   else_branch = g () => (float[] s) { s = ReduceSum(h, a) }>(c)
        last, all = Loop<body = b (int64 i, bool ci, float[] v) => (bool co, float[] vo, float[] sum) {
            vo = Relu(v) sum = ReduceSum<keepdims = 0>(v, a) co = Identity(ci) }>(n, c, h)
        y = Neg(same)"""
    inputs = "float[2,3,6,6] x, bool c, int64 n"
    found = shapes("float[8,3,1,1] w1, int64[1] a = {1}", nodes, inputs).shapes
    assert [found[t] for t in ("p", "q", "same", "v", "vo", "last")] == [(2, 8, 6, 6)] * 6
    assert [found[t] for t in ("r", "s", "mixed")] == [(2, 8, 6, 6), (2, 1, 6, 6), (2, None, 6, 6)]
    assert [found[t] for t in ("sum", "all")] == [(2, 6, 6), (None, 2, 6, 6)]
    assert (found["i"], found["ci"]) == ((), ())


def test_an_operator_without_a_schema_is_inferred_by_running_it() -> None:
    found = shapes(
        "float[8,3,1,1] w1, float s = {0.1}, uint8 z = {128}, float[8,6] w",
        """h = Conv(x, w1) q = QuantizeLinear(h, s, z) y = com.microsoft.QLinearConcat<axis = 1>(s, z, q, s, z, q, s, z)
        t = Transpose<perm = [0,2,3,1]>(h) u = com.microsoft.FusedMatMul<alpha = 2.0>(t, w)""",
        "float[2,3,6,6] x",
    )
    assert (found.shapes["y"], found.types["y"]) == ((2, 16, 6, 6), onnx.TensorProto.UINT8)
    assert (found.shapes["u"], found.types["u"]) == ((2, 6, 6, 6), onnx.TensorProto.FLOAT)
    assert found.problems == []


def test_an_operator_that_nobody_can_run_leaves_its_shape_unknown() -> None:
    found = shapes("float[8,3,1,1] w1", "h = Conv(x, w1) k = elsewhere.Magic(h) y = Relu(h)")
    assert "k" not in found.shapes
    assert [p.partition(" (")[0] for p in found.problems] == ["Magic(k): onnxruntime cannot run elsewhere::Magic"]


def test_dynamic_axes_get_sizes_with_which_the_graph_is_consistent() -> None:
    found = shapes("float[8,3,1,1] w1, float[8,32,32] p", "h = Conv(x, w1) y = Add(h, p)", "float[N,3,H,W] x")
    assert (found.shapes["x"], found.shapes["y"], found.problems) == ((1, 3, 32, 32), (1, 8, 32, 32), [])


SHARED = "float[T,B,8] x, int32[B] lengths, float[2,?,?] state"


def test_a_symbol_has_one_size_in_all_inputs() -> None:
    model = load(build(text(SHARED, "float[8,4] w", "y = MatMul(x, w)")))
    assert next(concrete_inputs(model)) == {"x": (1, 24, 8), "lengths": (24,), "state": (2, 1, 24)}
    sizes = next(concrete_inputs(model, {"x": (5, 2, 8)}))
    assert sizes["lengths"] == (2,)
    assert {"x": (1, 24, 8), "lengths": (1,), "state": (2, 1, 24)} in list(concrete_inputs(model))  # of no symbols
    with pytest.raises(OptionError, match=r"x:5,2,8 and --input-shape lengths:3: the axis B would have 2 and 3"):
        next(concrete_inputs(model, {"x": (5, 2, 8), "lengths": (3,)}))


def test_lengths_of_a_cache_that_are_given_are_kept() -> None:
    inputs = "int64[1,S] ids, float[1,2,P,8] past, int64[1,T] mask"
    model = load(build(text(inputs, "float[9,4] w", "y = Gather(w, ids)")))
    assert next(concrete_inputs(model)) == {"ids": (1, 24), "past": (1, 2, 7, 8), "mask": (1, 31)}
    assert next(concrete_inputs(model, {"past": (1, 2, 3, 8)}))["mask"] == (1, 27)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": (2, 3, 6)}, r"--input-shape x:2,3,6 does not fit the model's N,3,6,6"),
        ({"x": (2, 4, 6, 6)}, r"--input-shape x:2,4,6,6 does not fit the model's N,3,6,6"),
        ({"image": (2, 3, 6, 6)}, r"--input-shape image: no such input; the model has x"),
        ({"w1": (8, 3, 1, 1)}, r"--input-shape w1: no such input; the model has x"),
    ],
)
def test_an_input_shape_that_does_not_fit_is_an_error(given: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}$"):
        shapes("float[8,3,1,1] w1", "y = Conv(x, w1)", given=given)
