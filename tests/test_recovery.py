"""Compensation is exact where a removed channel is constant and nobody pads; elsewhere it is a mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxprune
from law import cut
from models.nets import Array, build, normal, run
from models.rules import ROWS, Row
from models.rules import build as from_text
from onnxprune import Plan
from onnxprune.importance.weights import score
from onnxprune.recovery.bias import bias_shifts
from onnxprune.structure.check import check_file
from onnxprune.structure.surgery import prune_model

DEAD = (1, 4)
X = normal(2, 3, 8, 8).astype(np.float32)
FLAT = normal(5, 3).astype(np.float32)


def dead(w: Array, axis: int = 0) -> Array:
    """The same weight, zero in what makes the units `DEAD`."""
    w = np.array(w)
    np.moveaxis(w, axis, 0)[list(DEAD)] = 0
    return w


def prune(proto: ModelProto, recover: str, gone: tuple[int, ...] = DEAD) -> ModelProto:
    """Without the units `gone` of the first group."""
    group = onnxprune.analyze(proto).of_kind("channels")[0]
    keep = {group.name: ~np.isin(np.arange(group.size), gone)}
    model = onnxprune.prune(proto, plan=Plan(keep, recover), measure=False).model
    assert model is not None
    return onnxprune.to_proto(model)


def errors(proto: ModelProto, x: Array, gone: tuple[int, ...] = DEAD) -> tuple[float, float]:
    """Largest difference to the original, with compensation and without."""
    (expected,) = run(proto, x)
    with_bias, without = (np.abs(run(prune(proto, how, gone), x)[0] - expected).max() for how in ("bias", "none"))
    return float(with_bias), float(without)


def assert_exact(proto: ModelProto, x: Array, gone: tuple[int, ...] = DEAD) -> None:
    with_bias, without = errors(proto, x, gone)
    assert with_bias <= 1e-5 * max(1.0, float(np.abs(run(proto, x)[0]).max()))
    assert without > 1e-2


# Chains in which the units DEAD of the first group are constant. `w` makes six units, `b` is their bias.

W, B = dead(normal(6, 3, 3, 3)), normal(6, seed=1)
V, C = normal(2, 6, 3, 3, seed=2), normal(2, seed=3)
BN = {"g": normal(6, seed=4), "o": normal(6, seed=5), "m": normal(6, seed=6), "s": normal(6, seed=7) ** 2 + 0.1}
FIRST = "h = Conv(x, w, b)"

IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": (f"{FIRST} r = Relu(h) y = Conv(r, v, c)", {}),
    "consumer without bias": (f"{FIRST} r = Relu(h) y = Conv(r, v)", {}),
    "strides and dilations": (f"{FIRST} r = Relu(h) y = Conv<strides = [2, 2], dilations = [2, 2]>(r, v, c)", {}),
    "sigmoid of a producer without bias": ("h = Conv(x, w) r = Sigmoid(h) y = Conv(r, v, c)", {}),
    "bn": (f"{FIRST} n = BatchNormalization(h, g, o, m, s) r = Relu(n) y = Conv(r, v, c)", BN),
    "bn behind a producer without bias": (
        "h = Conv(x, w) n = BatchNormalization<epsilon = 0.01>(h, g, o, m, s) r = Sigmoid(n) y = Conv(r, v)",
        BN,
    ),
    "bn whose scale is zero": (
        f"{FIRST} n = BatchNormalization(h, g, o, m, s) r = Sigmoid(n) y = Conv(r, v, c)",
        BN | {"w": normal(6, 3, 3, 3), "g": dead(BN["g"])},
    ),
    "bn last": (f"{FIRST} r = Relu(h) k = Conv(r, v, c) y = BatchNormalization(k, c, c, c, q)", {"q": C**2}),
    "depthwise": (
        f"{FIRST} r = Relu(h) d = Conv<group = 6>(r, k, j) t = Relu(d) y = Conv(t, v, c)",
        {"k": normal(6, 1, 3, 3, seed=8), "j": normal(6, seed=9)},
    ),
    "depthwise with multiplier": (
        f"{FIRST} r = Sigmoid(h) d = Conv<group = 6>(r, k) t = Tanh(d) y = Conv(t, v, c)",
        {"k": normal(12, 1, 3, 3, seed=8), "v": normal(2, 12, 1, 1, seed=2)},
    ),
    "grouped consumer": (
        f"{FIRST} r = Sigmoid(h) d = Conv<group = 2>(r, k, j) y = Conv(d, v, c)",
        {"k": normal(4, 3, 1, 1, seed=8), "j": normal(4, seed=9), "v": normal(2, 4, 1, 1, seed=2)},
    ),
    "concat": (
        f"{FIRST} a = Relu(h) e = Conv(x, u) z = Tanh(e) r = Concat<axis = 1>(z, a) y = Conv(r, v, c)",
        {"u": normal(2, 3, 3, 3, seed=8), "v": normal(2, 8, 3, 3, seed=2)},
    ),
    "two consumers": (f"{FIRST} r = Relu(h) p = Conv(r, v, c) q = Conv(r, k) y = Sub(p, q)", {"k": normal(2, 6, 3, 3)}),
    "two consumers, one bias": (
        f"{FIRST} r = Relu(h) p = Conv(r, v, c) q = Conv(r, k, c) y = Sub(p, q)",
        {"k": normal(2, 6, 3, 3)},
    ),
    "residual": (
        f"{FIRST} r = Relu(h) e = Conv(x, u, f) a = Add(r, e) t = Relu(a) y = Conv(t, v, c)",
        {"u": dead(normal(6, 3, 3, 3, seed=8)), "f": normal(6, seed=9)},
    ),
    "residual of a block": (
        f"{FIRST} r = Relu(h) e = Conv(r, u, f) a = Add(r, e) t = Relu(a) y = Conv(t, v, c)",
        {"u": dead(normal(6, 6, 1, 1, seed=8)), "f": normal(6, seed=9)},
    ),
    "transposed producer": (
        "h = ConvTranspose<strides = [2, 2]>(x, w, b) r = Relu(h) y = Conv(r, v, c)",
        {"w": dead(normal(3, 6, 2, 2), 1)},
    ),
    "transposed consumer that does not pad": (
        f"{FIRST} r = Relu(h) y = ConvTranspose<pads = [2, 2, 2, 2]>(r, v, c)",
        {"v": normal(6, 2, 3, 3, seed=2)},
    ),
    "pooling": (
        f"{FIRST} r = MaxPool<kernel_shape = [2, 2]>(h) p = AveragePool<kernel_shape = [2, 2]>(r) y = Conv(p, v, c)",
        {"v": normal(2, 6, 1, 1, seed=2)},
    ),
    "global pooling and Gemm": (
        f"{FIRST} r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) l = Gemm(f, v, c) y = Reshape(l, to)",
        {"v": normal(6, 2, seed=2), "to": np.array([-1, 2, 1, 1])},
    ),
    "flattened with its space": (
        f"{FIRST} r = Relu(h) f = Flatten(r) l = Gemm<transB = 1>(f, v, c) y = Reshape(l, to)",
        {"v": normal(2, 6 * 36, seed=2), "to": np.array([-1, 2, 1, 1])},
    ),
    "transposed to NHWC": (
        f"{FIRST} r = Relu(h) t = Transpose<perm = [0, 2, 3, 1]>(r) l = MatMul(t, v) a = Add(l, c) "
        "y = Transpose<perm = [0, 3, 1, 2]>(a)",
        {"v": normal(6, 2, seed=2)},
    ),
    "split": (
        f"{FIRST} r = Relu(h) p, q = Split<axis = 1>(r, sizes) y = Conv(p, v, c)",
        {"sizes": np.array([5, 1]), "v": normal(2, 5, 3, 3, seed=2)},
    ),
    "resized": (
        f'{FIRST} r = Relu(h) z = Resize<mode = "nearest">(r, , scales) y = Conv(z, v, c)',
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "constants": (
        f"{FIRST} a = Mul(h, k) e = Add(a, j) d = Sub(one, e) r = Max(d, one) y = Conv(r, v, c)",
        {"k": normal(1, 6, 1, 1, seed=8), "j": normal(6, 1, 1, seed=9), "one": np.array(0.25)},
    ),
    "prelu": (f"{FIRST} r = PRelu(h, k) y = Conv(r, v, c)", {"k": normal(6, 1, 1, seed=8)}),
    "clip": (f"{FIRST} r = Clip(h, low, high) y = Conv(r, v, c)", {"low": np.array(-0.3), "high": np.array(0.7)}),
    "silu": (f"{FIRST} z = Sigmoid(h) r = Mul(h, z) y = Conv(r, v, c)", {}),
    **{
        op: (f"{FIRST} r = {op}(h) y = Conv(r, v, c)", {})
        for op in ["Tanh", "LeakyRelu<alpha = 0.3>", "HardSwish", "Elu", "Softplus", "Exp", "Abs", "Neg", "Identity"]
    },
}


@pytest.mark.parametrize("name", IMAGES)
def test_exact_on_images(name: str) -> None:
    nodes, weights = IMAGES[name]
    used: dict[str, Any] = {"w": W, "b": B, "v": V, "c": C} | weights
    assert_exact(build(nodes, **{k: a for k, a in used.items() if f"{k})" in nodes or f"{k}," in nodes}), X)


def test_depthwise_whose_statistics_are_those_of_its_channels() -> None:
    """Behind a depthwise layer the recorded mean counts; for a constant channel that is the constant."""
    k = normal(6, 1, 3, 3, seed=8)
    stats: dict[str, Any] = {n: np.array(a) for n, a in BN.items()}
    stats["m"][list(DEAD)] = (k.sum((1, 2, 3)) * np.maximum(B, 0))[list(DEAD)]
    nodes = f"{FIRST} r = Relu(h) d = Conv<group = 6>(r, k) n = BatchNormalization(d, g, o, m, s) t = Sigmoid(n) "
    assert_exact(build(f"{nodes} y = Conv(t, v, c)", w=W, b=B, k=k, v=V, c=C, **stats), X)


LW, LV = dead(normal(6, 3)), normal(6, 2, seed=2)
MATRICES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemm": ("h = Gemm<transB = 1>(x, w, b) r = Relu(h) y = Gemm(r, v, c)", {}),
    "gemm without bias": ("h = Gemm<transB = 1>(x, w, b) r = Relu(h) y = Gemm(r, v)", {}),
    "gemm with factors": (
        "h = Gemm<transB = 1, beta = 2.0>(x, w, b) r = Relu(h) y = Gemm<alpha = 0.5, beta = 3.0>(r, v, c)",
        {},
    ),
    "gemm with a bias of rank two": (
        "h = Gemm<transB = 1>(x, w, b) r = Relu(h) y = Gemm(r, v, c)",
        {"b": B[None], "c": C[None]},
    ),
    "gemm with a bias for every row": (
        "h = Gemm<transB = 1>(x, w, b) r = Sigmoid(h) y = Gemm(r, v, c)",
        {"b": np.tile(B, (5, 1)), "c": normal(5, 1, seed=3)},
    ),
    "gemm with a scalar bias": ("h = Gemm<transB = 1>(x, w, b) r = Sigmoid(h) y = Gemm(r, v)", {"b": np.array(0.3)}),
    "three layers": (
        "h = Gemm<transB = 1>(x, w, b) r = Relu(h) k = Gemm(r, u, j) s = Relu(k) y = Gemm(s, v, c)",
        {"u": normal(6, 7, seed=8), "j": normal(7, seed=9), "v": normal(7, 2, seed=2)},
    ),
    "matmul": ("h = MatMul(x, w) a = Add(b, h) r = Relu(a) y = MatMul(r, v)", {"w": LW.T}),
    "matmul, then add": ("h = MatMul(x, w) a = Add(b, h) r = Relu(a) l = MatMul(r, v) y = Add(l, c)", {"w": LW.T}),
    "gelu": (
        "h = MatMul(x, w) a = Add(h, b) d = Div(a, q) e = Erf(d) f = Add(e, one) p = Mul(a, f) r = Mul(p, half) "
        "l = MatMul(r, v) y = Add(l, c)",
        {"w": LW.T, "q": np.array(2**0.5), "one": np.array(1.0), "half": np.array(0.5)},
    ),
}


@pytest.mark.parametrize("name", MATRICES)
def test_exact_on_matrices(name: str) -> None:
    nodes, weights = MATRICES[name]
    used = {"w": LW, "b": B, "v": LV, "c": C} | weights
    used = {k: a for k, a in used.items() if f"{k})" in nodes or f"{k}," in nodes or f"({k}" in nodes}
    assert_exact(build(nodes, "float[5,3]", "float[5,2]", **used), FLAT)


def test_dead_units_go_first_and_cost_nothing() -> None:
    """The whole way, without a plan: a third of the units is constant, and a third is asked for."""
    proto = build(f"{FIRST} r = Relu(h) y = Conv(r, v, c)", w=W, b=B, v=V, c=C)
    result = onnxprune.prune(proto, channels=1 / 3, round_to=1, measure=False, recover="bias")
    assert result.report.after.parameters < result.report.before.parameters
    assert result.model is not None
    (a,), (b,) = run(proto, X), run(onnxprune.to_proto(result.model), X)
    assert np.abs(a - b).max() <= 1e-5
    assert any("bias of 1 layers" in note for note in result.report.notes)


# Where it is an approximation


def test_padded_borders_are_approximate_and_the_interior_exact() -> None:
    proto = build(f"{FIRST} r = Relu(h) y = Conv<pads = [1, 1, 1, 1]>(r, v, c)", w=W, b=np.abs(B), v=V, c=C)
    (a,), (b,) = run(proto, X), run(prune(proto, "bias"), X)
    difference = np.abs(a - b).max((0, 1))
    assert difference.shape == (6, 6)
    assert difference[1:-1, 1:-1].max() <= 1e-5
    border = np.pad(np.zeros((4, 4), bool), 1, constant_values=True)
    assert difference[border].min() > 1e-3


def test_padded_depthwise_chain() -> None:
    nodes = f"{FIRST} r = Relu(h) d = Conv<group = 6, pads = [1, 1, 1, 1]>(r, k, j) t = Relu(d) y = Conv(t, v, c)"
    proto = build(nodes, w=W, b=np.abs(B), k=np.abs(normal(6, 1, 3, 3)), j=np.abs(normal(6)), v=normal(2, 6, 1, 1), c=C)
    (a,), (b,) = run(proto, X), run(prune(proto, "bias"), X)
    difference = np.abs(a - b).max((0, 1))
    assert difference[1:-1, 1:-1].max() <= 1e-5
    assert difference[0].max() > 1e-3


def test_a_transposed_consumer_is_right_on_average() -> None:
    """Of the taps of a 2x2 kernel with stride 2 every output sees another one; their mean goes into the bias."""
    proto = build(
        f"{FIRST} r = Relu(h) y = ConvTranspose<strides = [2, 2]>(r, v, c)",
        w=W, b=np.abs(B), v=normal(6, 2, 2, 2, seed=2), c=C,
    )  # fmt: skip
    (a,) = run(proto, X)
    with_bias, without = (run(prune(proto, how), X)[0] - a for how in ("bias", "none"))
    assert np.abs(with_bias.mean((0, 2, 3))).max() <= 1e-5
    assert np.abs(without.mean((0, 2, 3))).max() > 1e-2


def test_channels_that_vary_are_replaced_by_their_mean() -> None:
    """Statistics of the data in BatchNormalization: the mean of the output stays where it was."""
    w, v = normal(6, 3, 3, 3), normal(2, 6, 1, 1, seed=2)
    (h,) = run(build("y = Conv(x, w)", y="float[n,6,h,w]", w=w), X)
    mean, variance = h.mean((0, 2, 3)), h.var((0, 2, 3))
    nodes = "h = Conv(x, w) n = BatchNormalization(h, g, o, m, s) r = LeakyRelu<alpha = 1.0>(n) y = Conv(r, v, c)"
    proto = build(nodes, w=w, v=v, c=C, g=BN["g"], o=BN["o"], m=mean, s=variance)
    (a,) = run(proto, X)
    with_bias, without = (run(prune(proto, how), X)[0] - a for how in ("bias", "none"))
    assert np.abs(with_bias.mean((0, 2, 3))).max() <= 1e-4
    assert np.abs(without.mean((0, 2, 3))).max() > 1e-2
    assert np.square(with_bias).mean() < np.square(without).mean()


# Where nothing is known, nothing is added


@pytest.mark.parametrize("op", ["Log", "Reciprocal"])
def test_no_constant_that_is_not_finite(op: str) -> None:
    """The bias of the removed units is zero, where these have a pole; their inputs never are."""
    nodes = f"h = Conv(x, w) a = Abs(h) r = {op}(a) y = Conv(r, v, c)"
    proto = build(nodes, w=normal(6, 3, 3, 3), v=V, c=C)
    (a,), (b,) = (run(prune(proto, how), X) for how in ("bias", "none"))
    assert np.isfinite(a).all()
    assert np.array_equal(a, b)


def test_a_gate_that_depends_on_the_input() -> None:
    """Squeeze and excite: the gate varies, so its value at its bias is a guess; the result is finite and bounded."""
    nodes = f"""{FIRST} r = Relu(h) p = GlobalAveragePool(r) q = Conv(p, k) z = Sigmoid(q) s = Mul(r, z)
                y = Conv(s, v, c)"""
    proto = build(nodes, w=W, b=np.abs(B), k=normal(6, 6, 1, 1, seed=8), v=V, c=C)
    with_bias, without = errors(proto, X)
    assert with_bias < without


def test_only_biases_that_change_are_counted() -> None:
    """A depthwise layer shrinks with its input: nothing is left that its bias would have to make up for."""
    nodes = f"{FIRST} r = Relu(h) d = Conv<group = 6>(r, k) t = Relu(d) y = Conv(t, v, c)"
    proto = build(nodes, w=W, b=np.abs(B), k=np.abs(normal(6, 1, 3, 3)), v=V, c=C)
    pruned = prune(proto, "bias")
    depthwise = next(n for n in pruned.graph.node if n.output[0] == "d")
    assert len(depthwise.input) == 2


def test_a_computed_bias_is_left_alone() -> None:
    """QDQ: an int32 bias behind DequantizeLinear is not a stored float."""
    nodes = f"{FIRST} r = Relu(h) f = DequantizeLinear(c, scale) y = Conv(r, v, f)"
    proto = build(nodes, w=W, b=np.abs(B), v=V, c=np.array([3, 4], np.int32), scale=np.float32(0.1))
    result = onnxprune.prune(proto, channels=1 / 3, round_to=1, measure=False, recover="bias")
    assert not any("compensated" in note for note in result.report.notes)


def test_recurrent_consumers_are_left_alone() -> None:
    """Constant features into a GRU: its input weights shrink, its bias stays."""
    nodes = """h = MatMul(x, w) a = Add(h, b) r = Relu(a) s, last = GRU<hidden_size = 4>(r, k, q)
               f = Squeeze(last, axes) y = Gemm(f, v)"""
    weights: dict[str, Any] = {"k": normal(1, 12, 6), "q": normal(1, 12, 4), "v": normal(4, 2), "axes": np.array([0])}
    proto = build(nodes, "float[5,n,3]", "float[n,2]", w=LW.T, b=B, **weights)
    x = normal(5, 2, 3).astype(np.float32)
    (a,), (b,) = (run(prune(proto, how), x) for how in ("bias", "none"))
    assert np.array_equal(a, b)


def test_the_input_is_not_changed() -> None:
    proto = build(f"{FIRST} r = Relu(h) y = Conv(r, v, c)", w=W, b=B, v=V, c=C)
    before = proto.SerializeToString(deterministic=True)
    prune(proto, "bias")
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.op} {r.form}")
def test_biases_can_be_compensated_after_every_rule(row: Row) -> None:
    result = cut(from_text(row.text), check=False)
    analysis = result.analysis
    groups = analysis.of_kind("channels")
    scores = score(analysis, groups, importance="random")
    keeps = {g.name: scores[g.name] >= scores[g.name].mean() for g in groups if not g.blocks}
    keep = analysis.keep_ids(keeps)
    check_file(analysis.model, prune_model(analysis, keep, bias_shifts(analysis, keep)))


def test_biases_of_layers_in_a_body_are_initializers_of_the_model() -> None:
    nodes = """h = Conv(x, w, b) r = Relu(h) m = ReduceMax<keepdims = 0>(x) c = Greater(m, t)
        y = If (c) <then_branch = one () => (float[N,2,A,B] p) { p = Conv(r, v) },
                    else_branch = other () => (float[N,2,A,B] q) { q = Conv(r, u) }>"""
    v, u = normal(2, 6, 1, 1, seed=2), normal(2, 6, 1, 1, seed=3)
    proto = build(nodes, w=W, b=np.abs(B), v=v, u=u, t=np.float32(0.1))
    assert_exact(proto, X)
    pruned = prune(proto, "bias")
    onnx.checker.check_model(pruned, full_check=True)
    assert {"p_pruned", "q_pruned"} <= {t.name for t in pruned.graph.initializer}
    bodies = [a.g for node in pruned.graph.node if node.op_type == "If" for a in node.attribute]
    assert all([n.op_type for n in body.node] == ["Conv"] and not body.initializer for body in bodies)
