"""Layers as linear regressions: rows, streams, moments, group OBS, and what least squares recovers of a cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import onnxprune
from models.nets import Array, build, normal, run
from onnxprune import Plan, load
from onnxprune.errors import OptionError
from onnxprune.importance.data import MEASURES, score
from onnxprune.importance.score import IMPORTANCES
from onnxprune.importance.weights import CRITERIA
from onnxprune.importance.weights import score as weight_score
from onnxprune.layers.rows import (
    Linear,
    Values,
    find_linear,
    kernel_shape,
    matrix,
    output_rows,
    positions,
    rows,
    stored,
)
from onnxprune.recovery.least_squares import least_squares
from onnxprune.runtime.stream import Stream
from onnxprune.solvers.least_squares import Moments, Singular, match, solve
from onnxprune.solvers.obs import Reader, removal_costs
from onnxprune.structure.groups import analyze
from onnxprune.structure.surgery import prune_model

Weights = Mapping[str, Any]
QUICK: dict[str, Any] = {"measure": False, "verify": False, "threads": 1}
RNG = np.random.default_rng(0)


def anything(rank: int) -> str:
    return f"float[{','.join(f'd{i}' for i in range(rank))}]"


def fixed(shape: tuple[int, ...]) -> str:
    return f"float[{','.join(map(str, shape))}]"


# ---------------------------------------------------------------------------------------------------------------------
# The law: rows @ matrix + bias is what onnxruntime computes
# ---------------------------------------------------------------------------------------------------------------------

IMAGE, LINE, CUBE = (2, 4, 9, 8), (3, 4, 11), (2, 2, 5, 6, 4)
W33, DECONV = (6, 4, 3, 3), (4, 6, 3, 3)

LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {  # node, shapes of x and w; bias b where it is read
    "conv": ("y = Conv(x, w, b)", IMAGE, W33),
    "conv 1x1": ("y = Conv(x, w, b)", IMAGE, (6, 4, 1, 1)),
    "conv 1x1 strided": ("y = Conv<strides = [2, 3]>(x, w)", IMAGE, (6, 4, 1, 1)),
    "conv 1x1 padded": ("y = Conv<pads = [1, 0, 0, 2]>(x, w)", IMAGE, (6, 4, 1, 1)),
    "conv 1x1 grouped": ("y = Conv<group = 2>(x, w, b)", IMAGE, (6, 2, 1, 1)),
    "conv strides": ("y = Conv<strides = [2, 3]>(x, w, b)", IMAGE, W33),
    "conv pads": ("y = Conv<pads = [1, 0, 2, 1]>(x, w)", IMAGE, W33),
    "conv dilations": ("y = Conv<dilations = [2, 3], pads = [1, 2, 3, 4]>(x, w)", IMAGE, W33),
    "conv same upper": ('y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w, b)', IMAGE, (6, 4, 4, 3)),
    "conv same lower": ('y = Conv<auto_pad = "SAME_LOWER", strides = [2, 3]>(x, w, b)', IMAGE, (6, 4, 4, 3)),
    "conv valid": ('y = Conv<auto_pad = "VALID", strides = [2, 2]>(x, w)', IMAGE, W33),
    "conv groups": ("y = Conv<group = 2, pads = [1, 1, 1, 1]>(x, w, b)", IMAGE, (6, 2, 3, 3)),
    "conv depthwise": ("y = Conv<group = 4, strides = [2, 1]>(x, w, b)", IMAGE, (8, 1, 3, 3)),
    "conv 1-D": ("y = Conv<strides = [2], pads = [2, 1], dilations = [2]>(x, w, b)", LINE, (6, 4, 3)),
    "conv 1-D same": ('y = Conv<auto_pad = "SAME_LOWER", group = 2>(x, w)', LINE, (6, 2, 4)),
    "conv 3-D": ("y = Conv<pads = [1, 0, 1, 0, 1, 1], strides = [1, 2, 1]>(x, w, b)", CUBE, (3, 2, 2, 3, 2)),
    "deconv": ("y = ConvTranspose(x, w, b)", IMAGE, DECONV),
    "deconv 1x1": ("y = ConvTranspose(x, w, b)", IMAGE, (4, 6, 1, 1)),
    "deconv strides": ("y = ConvTranspose<strides = [2, 3]>(x, w, b)", IMAGE, DECONV),
    "deconv pads": ("y = ConvTranspose<strides = [2, 2], pads = [1, 0, 2, 1]>(x, w)", IMAGE, DECONV),
    "deconv cropping": ("y = ConvTranspose<pads = [3, 3, 4, 3]>(x, w)", IMAGE, DECONV),
    "deconv cropping strided": ("y = ConvTranspose<pads = [3, 4, 4, 3], strides = [2, 2]>(x, w)", IMAGE, DECONV),
    "deconv dilations": ("y = ConvTranspose<dilations = [2, 1], strides = [1, 2]>(x, w)", IMAGE, DECONV),
    "deconv output padding": (
        "y = ConvTranspose<strides = [2, 3], output_padding = [1, 2], pads = [1, 1, 1, 1]>(x, w, b)", IMAGE, DECONV,
    ),
    "deconv output shape": ("y = ConvTranspose<strides = [2, 2], output_shape = [18, 16]>(x, w, b)", IMAGE, DECONV),
    "deconv output shape upper": (
        'y = ConvTranspose<strides = [2, 2], output_shape = [18, 16], auto_pad = "SAME_UPPER">(x, w)', IMAGE, DECONV,
    ),
    "deconv output shape even": ("y = ConvTranspose<strides = [2, 2], output_shape = [17, 15]>(x, w)", IMAGE, DECONV),
    "deconv same upper": ('y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_UPPER">(x, w)', IMAGE, DECONV),
    "deconv same lower": ('y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_LOWER">(x, w)', IMAGE, DECONV),
    "deconv same, small kernel": (
        'y = ConvTranspose<strides = [3, 3], auto_pad = "SAME_UPPER">(x, w)', IMAGE, (4, 6, 2, 2),
    ),
    "deconv valid": ('y = ConvTranspose<strides = [2, 2], auto_pad = "VALID">(x, w)', IMAGE, DECONV),
    "deconv groups": ("y = ConvTranspose<group = 2, strides = [2, 2]>(x, w, b)", IMAGE, (4, 3, 3, 2)),
    "deconv depthwise": ("y = ConvTranspose<group = 4, strides = [2, 2]>(x, w, b)", IMAGE, (4, 1, 4, 4)),
    "deconv 1-D": ("y = ConvTranspose<strides = [3], pads = [1, 2]>(x, w, b)", LINE, (4, 5, 4)),
    "deconv 3-D": ("y = ConvTranspose<strides = [1, 2, 1]>(x, w)", CUBE, (2, 3, 2, 3, 2)),
    "gemm": ("y = Gemm(x, w, b)", (7, 5), (5, 3)),
    "gemm transB": ("y = Gemm<transB = 1>(x, w, b)", (7, 5), (3, 5)),
    "gemm transA": ("y = Gemm<transA = 1>(x, w, b)", (5, 7), (5, 3)),
    "gemm alpha": ("y = Gemm<alpha = 0.5, transA = 1, transB = 1>(x, w)", (5, 7), (3, 5)),
    "gemm beta": ("y = Gemm<alpha = 3.0, beta = 0.25>(x, w, b)", (7, 5), (5, 3)),
    "matmul rank 1": ("y = MatMul(x, w)", (5,), (5, 3)),
    "matmul rank 2": ("y = MatMul(x, w)", (7, 5), (5, 3)),
    "matmul rank 3": ("y = MatMul(x, w)", (2, 7, 5), (5, 3)),
    "matmul rank 4": ("y = MatMul(x, w)", (2, 3, 4, 5), (5, 3)),
}  # fmt: skip


def only_layer(proto: ModelProto) -> tuple[Linear, Values]:
    model = load(proto)
    (layer,) = find_linear(model)
    return layer, Values(model)


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_matrix_are_the_outputs(name: str) -> None:
    node, xs, ws = LAYERS[name]
    x, w, b = normal(*xs, seed=1).astype(np.float32), normal(*ws, seed=2), normal(24, seed=3)
    rank = len(xs) if len(xs) > 1 else 1
    proto = build(node.replace(", b)", ")"), fixed(xs), anything(rank), w=w)
    layer, values = only_layer(proto)
    m = matrix(layer, values)
    width = m.shape[0] * m.shape[2]
    bias = np.zeros(width)
    if ", b)" in node:
        proto = build(node, fixed(xs), anything(rank), w=w, b=b[:width])
        layer, values = only_layer(proto)
        bias = b[:width] * layer.node.attr("beta", 1.0)
    (y,) = run(proto, x)
    expected = output_rows(layer, y, None)
    kernel = kernel_shape(layer, values)
    assert positions(layer, x, kernel) == len(expected)
    for picked in None, np.sort(np.random.default_rng(0).choice(len(expected), max(1, len(expected) // 3), False)):
        found = rows(layer, x, kernel, picked) @ m  # (g, n, o)
        found = found.transpose(1, 0, 2).reshape(-1, width) + bias
        np.testing.assert_allclose(found, output_rows(layer, y, picked), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stored(layer, m, w.shape), w, rtol=1e-6, atol=1e-6)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_rows_of_a_recurrence_give_its_gates(op: str, direction: str) -> None:
    """Without recurrent weights a unit is a function of its own gates."""
    gates, size, d = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], 3, 2 if direction == "bidirectional" else 1
    x, w, r = normal(5, 2, 4).astype(np.float32), normal(d, gates * size, 4, seed=1), np.zeros((d, gates * size, size))
    node = f'y = {op}<hidden_size = 3, direction = "{direction}">(x, w, r)'
    proto = build(node, fixed(x.shape), anything(4), w=w, r=r)
    layer, values = only_layer(proto)
    m = matrix(layer, values)
    assert positions(layer, x, ()) == 10
    z = (rows(layer, x, (), None)[0] @ m[0]).reshape(5, 2, d, gates, size)
    z = z.transpose(3, 0, 2, 1, 4)  # (gate, t, d, n, h)
    if d == 2:
        z = np.stack([z[:, :, 0], z[:, ::-1, 1]], 2)
    h = c = np.zeros((d, 2, size))
    expected = []
    for t in range(5):
        g = z[:, t]
        if op == "RNN":
            h = np.tanh(g[0])
        elif op == "GRU":
            h = (1 - sigmoid(g[0])) * np.tanh(g[2]) + sigmoid(g[0]) * h
        else:
            c = sigmoid(g[2]) * c + sigmoid(g[0]) * np.tanh(g[3])
            h = sigmoid(g[1]) * np.tanh(c)
        expected.append(h)
    found = np.stack(expected)  # (t, d, n, h)
    if d == 2:
        found = np.stack([found[:, 0], found[::-1, 1]], 1)
    np.testing.assert_allclose(found, run(proto, x)[0], atol=1e-5)
    np.testing.assert_allclose(stored(layer, m, w.shape), w, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------------------------------------

IF = """c = ReduceMax<keepdims = 0>(x) p = Greater(c, zero)
    k = If(p) <then_branch = t () => (float[n,4,6,6] u) { a0 = Add(r, own) u = Conv(a0, v) },
              else_branch = e () => (float[n,4,6,6] o) { q0 = Relu(h) o = Identity(q0) }>"""
OWN = "<float[1] own = {2}>"

STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "chain": ("h = Conv(x, w) r = Relu(h) y = Conv(r, v)", {"v": normal(2, 4, 1, 1)}),
    "residual": ("h = Conv(x, w) r = Relu(h) k = Conv(r, v) s = Add(k, h) y = Relu(s)", {"v": normal(4, 4, 1, 1)}),
    "input read late": (
        "h = Conv(x, w) g = GlobalAveragePool(h) k = Conv(x, w) y = Mul(k, g)", {},
    ),
    "shared weight": ("h = Conv(x, w) m = Neg(x) k = Conv(m, w) y = Sub(h, k)", {}),
    "constants": (
        "h = Conv(x, w) c = Constant<value_float = 2.0>() d = Mul(c, c) k = Mul(h, d) y = Add(k, c)", {},
    ),
    "an if that reads outer tensors": (
        f"h = Conv(x, w) r = Relu(h) {IF} y = Add(k, h)",
        {"v": normal(4, 4, 1, 1), "zero": np.float32(3.0), "own": np.array([2.0])},
    ),
    "an if with constants of its own": (
        f"h = Conv(x, w) r = Relu(h) {IF.replace('t () => (float[n,4,6,6] u)', 't () => (float[n,4,6,6] u) ' + OWN)} "
        "y = Add(k, h)",
        {"v": normal(4, 4, 1, 1), "zero": np.float32(3.0)},
    ),
    "several outputs": ("h = Conv(x, w) a, b = Split<axis = 1>(h) r = Relu(b) y = Concat<axis = 1>(r, a)", {}),
    "a sequence": (
        "h = Conv(x, w) s = SplitToSequence<axis = 1>(h) r = Relu(h) e = SequenceAt(s, one) y = Add(r, e)",
        {"one": np.int64(1)},
    ),
    "integers and shapes": (
        "h = Conv(x, w) s = Shape(h) r = Relu(h) t = Transpose<perm = [0, 2, 3, 1]>(r) y = Reshape(t, s)", {},
    ),
}  # fmt: skip
BATCHES = [{"x": normal(n, 3, 8, 8, seed=n).astype(np.float32)} for n in (2, 1, 2)]


def streamed(name: str) -> ModelProto:
    nodes, weights = STREAMS[name]
    return build(nodes, y=anything(4), **{"w": normal(4, 3, 3, 3), **weights})


def full_run(proto: ModelProto, names: list[str]) -> list[dict[str, Array]]:
    """Every tensor of the main graph, batch by batch."""
    proto = ModelProto.FromString(proto.SerializeToString())
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n != "y")
    order = ["y", *(n for n in names if n != "y")]
    return [dict(zip(order, run(proto, b["x"]), strict=True)) for b in BATCHES]


@pytest.mark.parametrize("limit", [float("inf"), 12_000, 0])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_gives_what_a_full_run_gives(name: str, limit: float) -> None:
    model = load(streamed(name))
    nodes = model.proto.graph.node
    names = [o for n in nodes for o in n.output if n.op_type not in ("SplitToSequence", "SequenceEmpty")]
    expected = full_run(onnxprune.to_proto(model), names)
    stream = Stream(model, BATCHES, limit=limit)
    for at in range(len(nodes) + 1):
        stream.advance(at)
        assert stream.cut <= at and (limit != 0 or stream.cut == 0)
        assert limit < 1e9 or stream.cut == at or name == "a sequence"  # which does not cross a cut
        wanted = [o for n in list(nodes)[at:] for o in n.output if o in names][:3]
        if not wanted:
            continue
        for found, right in zip(stream.compute([*wanted, "y"]), expected, strict=True):
            for n in (*wanted, "y"):
                np.testing.assert_allclose(found[n], right[n], rtol=1e-5, atol=1e-5)
    assert [v["y"].shape[0] for v in stream.compute(["y"])] == [2, 1, 2]
    assert sum(len(v["y"]) for v in stream.compute(["y"])) == 5


def test_a_stream_holds_only_what_is_read_behind_the_cut() -> None:
    stream = Stream(load(streamed("residual")), BATCHES)
    held = []
    for at in range(6):
        stream.advance(at)
        held.append(sorted(stream.state[0]))
    assert held == [["x"], ["h"], ["h", "r"], ["h", "k"], ["s"], ["y"]]


def test_a_stream_sees_weights_that_changed_behind_the_cut_alone() -> None:
    model = load(streamed("chain"))
    stream = Stream(model, BATCHES)
    (first, *_) = stream.compute(["y"])
    stream.advance(2)
    model.weights["v"] = 3 * np.asarray(model.weights["v"])
    model.weights["w"] = 5 * np.asarray(model.weights["w"])
    (second, *_) = stream.compute(["y"])
    np.testing.assert_allclose(second["y"], 3 * first["y"], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Moments and solutions
# ---------------------------------------------------------------------------------------------------------------------

X = (1e4 + RNG.normal(size=(3000, 6)) @ RNG.normal(size=(6, 6))).astype(np.float32)
T = ((X - 1e4) @ RNG.normal(size=(6, 3)) + 1e4 + RNG.normal(size=(3000, 3))).astype(np.float32)


def moments(x: Array = X, t: Array = T, *, intercept: bool = True, parts: int = 7) -> Moments:
    m = Moments(intercept=intercept)
    for a, b in zip(np.array_split(x, parts), np.array_split(t, parts), strict=True):
        m.add(a, b)
    return m


def test_moments_are_covariances() -> None:
    m = moments()
    both = np.cov(np.hstack([X, T]).astype(np.float64).T, bias=True)
    np.testing.assert_allclose(m.gram, both[:6, :6], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(m.cross, both[:6, 6:], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(m.variance, np.diag(both)[6:], rtol=1e-3)
    np.testing.assert_allclose(m.x_mean, X.mean(0, dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose(m.t_mean, T.mean(0, dtype=np.float64), rtol=1e-7)
    assert m.count == 3000


def test_moments_without_an_intercept_are_about_zero() -> None:
    x, t = X - 1e4, T - 1e4
    m = moments(x, t, intercept=False)
    np.testing.assert_allclose(m.gram, x.T @ x / len(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(m.cross, x.T @ t / len(x), rtol=1e-4, atol=1e-4)
    assert not m.x_mean.any() and not m.t_mean.any()


def test_moments_of_other_targets_share_the_rows() -> None:
    first = moments()
    other = first.like()
    for a, b in zip(np.array_split(X, 7), np.array_split(-T, 7), strict=True):
        other.add(a, b)
    np.testing.assert_array_equal(other.gram, first.gram)
    np.testing.assert_allclose(other.cross, -first.cross, rtol=1e-6)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_solution_is_least_squares(intercept: bool) -> None:
    x, t = (X, T) if intercept else (X - 1e4, T - 1e4)
    fit = solve(moments(x, t, intercept=intercept), np.zeros((6, 3)), ridge=1e-9)
    a, b = x.astype(np.float64), t.astype(np.float64)
    right = np.linalg.lstsq(np.hstack([a, np.ones((len(a), 1))]) if intercept else a, b, rcond=None)[0]
    np.testing.assert_allclose(fit.weight, right[:6], rtol=1e-3, atol=1e-3)
    residual = b - a @ right[:6] - (right[6] if intercept else 0)
    np.testing.assert_allclose(fit.error, np.square(residual).mean(0).sum() / b.var(0).sum(), rtol=0.02, atol=1e-6)
    if intercept:
        np.testing.assert_allclose(a @ fit.weight + fit.shift, b - residual, atol=0.05)
    else:
        assert not fit.shift.any()


def test_a_large_ridge_keeps_the_prior() -> None:
    prior = RNG.normal(size=(6, 3))
    np.testing.assert_allclose(solve(moments(), prior, ridge=1e6).weight, prior, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.zeros((0, 6), np.float32), "no data"),
        (np.full((50, 6), 2, np.float32), "constant"),
        (np.full((50, 6), np.nan, np.float32), "not finite"),
    ],
)
def test_what_cannot_be_solved_says_why(x: Array, reason: str) -> None:
    with pytest.raises(Singular, match=reason):
        solve(moments(x, np.zeros((len(x), 3), np.float32), parts=1), np.ones((6, 3)), ridge=0.1)


def test_match_gives_mean_and_deviation_of_the_targets() -> None:
    fit = match(moments(), RNG.normal(size=(6, 3)) + np.eye(6, 3))
    y = X.astype(np.float64) @ fit.weight + fit.shift
    np.testing.assert_allclose(y.mean(0), T.mean(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(y.std(0), T.std(0, dtype=np.float64), rtol=1e-2)


def test_match_leaves_an_output_that_does_not_vary_as_it_is() -> None:
    """Its scale says nothing; only its mean can be matched."""
    prior = RNG.normal(size=(6, 3))
    fit = match(moments(X, np.full((len(X), 3), 4, np.float32)), prior)
    np.testing.assert_allclose(fit.weight, prior)
    np.testing.assert_allclose(X.astype(np.float64).mean(0) @ fit.weight + fit.shift, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Group OBS
# ---------------------------------------------------------------------------------------------------------------------


def readers_of(size: int, block: int, count: int, seed: int) -> list[Reader]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        d = size * block
        a = rng.normal(size=(4 * d, d)) @ (np.eye(d) + 0.5 * rng.normal(size=(d, d)))
        units = rng.permutation(np.repeat(np.arange(size), block))
        out.append(Reader(np.cov(a.T, bias=True), rng.normal(size=(d, 3)), units))
    return out


def exact_error(readers: list[Reader], gone: tuple[int, ...]) -> float:
    """Least error of the outputs over their energy, when the rows of some units are away."""
    total = 0.0
    for r in readers:
        stays = ~np.isin(r.units, gone)
        g, w = r.gram, r.weight
        best = np.zeros_like(w)
        best[stays] = np.linalg.solve(g[np.ix_(stays, stays)], g[stays] @ w)
        total += np.einsum("do,do->", w - best, g @ (w - best)) / r.energy
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("block", [1, 4])
def test_units_go_in_the_order_of_the_exact_error(block: int, count: int, seed: int) -> None:
    readers = readers_of(6, block, count, seed)
    costs = removal_costs(readers, 6, ridge=1e-10)
    order = np.argsort(costs)
    for k in range(5):
        gone = tuple(order[:k].tolist())
        left = [u for u in range(6) if u not in gone]
        errors = {u: exact_error(readers, (*gone, u)) for u in left}
        assert order[k] == min(errors, key=errors.__getitem__)
        np.testing.assert_allclose(costs[order[k]], errors[order[k]], rtol=1e-3)
    assert costs[order[5]] > costs[order[4]]


def test_units_that_nothing_reads_go_first() -> None:
    (reader,) = readers_of(5, 2, 1, 0)
    weight = reader.weight.copy()
    units = np.where(reader.units == 3, -1, reader.units)
    weight[reader.units == 3] = 0
    costs = removal_costs([Reader(reader.gram, weight, units)], 5, ridge=0.03)
    assert np.argmin(costs) == 3 and costs[3] == 0 and (np.delete(costs, 3) > 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Recovery: nets whose units 4 and 5 are combinations of the others
# ---------------------------------------------------------------------------------------------------------------------

MIX = normal(2, 4, seed=9)  # units 4 and 5 of the units 0 to 3


def mixed(*shape: int, axis: int = 0, seed: int = 0, within: bool = False) -> Array:
    """Weights with six units along `axis`, two of them combinations; within: each of those of its own half."""
    w = np.moveaxis(normal(*shape, seed=seed), axis, 0).copy()
    if within:
        w[2], w[5] = w[0] - 0.5 * w[1], 2 * w[3] + w[4]
    else:
        w[4:] = np.tensordot(MIX, w[:4], 1)
    return np.moveaxis(w, 0, axis)


def doubled(*shape: int, seed: int = 0) -> Array:
    """Weights with six units, two of them multiples of others, which an activation does not change."""
    w = normal(*shape, seed=seed).copy()
    w[4], w[5] = 2 * w[0], 0.5 * w[1]
    return w


CONV = "h = Conv<pads = [1, 1, 1, 1]>(x, w, b)"
PAIR = {"w": mixed(6, 3, 3, 3), "b": mixed(6, seed=1)}
READ = normal(2, 6, 3, 3, seed=2)
BN = {k: normal(2, seed=s) for k, s in (("g", 3), ("o", 4), ("m", 5))} | {"s": normal(2, seed=6) ** 2 + 0.2}
PICTURES, VECTORS, SERIES = (24, 3, 8, 8), (200, 5), (6, 20, 5)
LINES = {"w": mixed(5, 6, axis=1), "b": mixed(6, seed=1)}


def quantised(w: Array) -> dict[str, Array]:
    scale = np.abs(w).max(axis=(1, 2, 3)) / 127
    return {"q": np.rint(w / scale[:, None, None, None]).astype(np.int8), "qs": scale, "qz": np.zeros(len(w), np.int8)}


EXACT: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "conv": (f"{CONV} y = Conv(h, v, c)", PICTURES, PAIR | {"v": READ, "c": normal(2)}),
    "conv without bias": (f"{CONV} y = Conv(h, v)", PICTURES, PAIR | {"v": READ}),
    "conv padded": (f"{CONV} y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(h, v)", PICTURES, PAIR | {"v": READ}),
    "activation between": (
        f"{CONV} r = Relu(h) y = Conv(r, v, c)", PICTURES,
        {"w": doubled(6, 3, 3, 3), "b": doubled(6, seed=1), "v": READ, "c": normal(2)},
    ),
    "activation behind": (f"{CONV} k = Conv(h, v, c) y = Relu(k)", PICTURES, PAIR | {"v": READ, "c": normal(2)}),
    "clip behind": (
        f"{CONV} k = Conv(h, v, c) y = Clip(k, lo, hi)", PICTURES,
        PAIR | {"v": READ, "c": normal(2), "lo": np.float32(-1), "hi": np.float32(2)},
    ),
    "grouped conv": (
        f"{CONV} y = Conv<group = 2>(h, v, c)", PICTURES,
        {"w": mixed(6, 3, 3, 3, within=True), "b": mixed(6, within=True, seed=1), "v": normal(4, 3, 3, 3, seed=2),
         "c": normal(4)},
    ),
    "deconv": (
        f"{CONV} y = ConvTranspose<strides = [2, 2], pads = [1, 1, 0, 0]>(h, v, c)", PICTURES,
        PAIR | {"v": normal(6, 2, 3, 3, seed=2), "c": normal(2)},
    ),
    "conv 1-D": (
        "h = Conv(x, w, b) y = Conv(h, v)", (24, 3, 16),
        {"w": mixed(6, 3, 3), "b": mixed(6, seed=1), "v": normal(2, 6, 3, seed=2)},
    ),
    "gemm": (
        "h = Gemm(x, w, b) y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(h, v, c)", VECTORS,
        LINES | {"v": normal(3, 6), "c": normal(3)},
    ),
    "gemm without bias": ("h = Gemm(x, w, b) y = Gemm(h, v)", VECTORS, LINES | {"v": normal(6, 3)}),
    "gemm with a scalar bias": (
        "h = Gemm(x, w, b) y = Gemm(h, v, c)", VECTORS, LINES | {"v": normal(6, 3), "c": np.array([0.7])},
    ),
    "matmul": (
        "h = MatMul(x, w) r = Add(h, b) k = MatMul(r, v) y = Add(k, c)", SERIES,
        LINES | {"v": normal(6, 3), "c": normal(3)},
    ),
    "matmul without bias": ("h = MatMul(x, w) y = MatMul(h, v)", SERIES, {"w": LINES["w"], "v": normal(6, 3)}),
    "residual add": (
        f"{CONV} k = Conv(x, u) s = Add(h, k) y = Conv(s, v)", PICTURES,
        PAIR | {"u": mixed(6, 3, 1, 1, seed=7), "v": READ},
    ),
    "added to a residual stream": (
        f"{CONV} k = Conv(x, u) j = Conv(h, v) y = Add(k, j)", PICTURES,
        PAIR | {"u": normal(2, 3, 1, 1, seed=7), "v": READ[:, :, 1:2, 1:2]},
    ),
    "concat": (
        f"{CONV} i = Concat<axis = 1>(x, h) y = Conv(i, v)", PICTURES, PAIR | {"v": normal(2, 9, 3, 3, seed=2)},
    ),
    "batch norm behind": (
        f"{CONV} k = Conv(h, v) y = BatchNormalization(k, g, o, m, s)", PICTURES, PAIR | {"v": READ} | BN,
    ),
    "batch norm and activation behind": (
        f"{CONV} k = Conv(h, v) n = BatchNormalization(k, g, o, m, s) y = Relu(n)", PICTURES, PAIR | {"v": READ} | BN,
    ),
    "shared bias": (
        f"{CONV} k = Conv(h, v, c) j = Conv(x, u, c) y = Add(k, j)", PICTURES,
        PAIR | {"v": READ, "u": normal(2, 3, 3, 3), "c": normal(2)},
    ),
    "constant behind": (
        f"{CONV} k = Conv(h, v) j = Add(k, c) y = Mul(j, c)", PICTURES, PAIR | {"v": READ, "c": normal(1, 2, 1, 1)},
    ),
    "weights in constant nodes": (
        f"{CONV} f = Constant<value = float[2,6,1,1] {{1,2,3,4,5,6,-1,2,-3,4,-5,6}}>() y = Conv(h, f)", PICTURES, PAIR,
    ),
    "weights that are computed": (
        f"{CONV} t = Transpose<perm = [1, 0, 2, 3]>(v) y = Conv(h, t)", PICTURES,
        PAIR | {"v": READ.transpose(1, 0, 2, 3)},
    ),
    "lstm": (
        "h = MatMul(x, w) y = LSTM<hidden_size = 3>(h, u, r, c)", (6, 30, 5),
        {"w": LINES["w"], "u": normal(1, 12, 6), "r": normal(1, 12, 3), "c": normal(1, 24)},
    ),
    "gru": (
        'h = MatMul(x, w) y = GRU<hidden_size = 3, direction = "bidirectional">(h, u, r)', (6, 30, 5),
        {"w": LINES["w"], "u": normal(2, 9, 6), "r": normal(2, 9, 3)},
    ),
}  # fmt: skip


def data_of(shape: tuple[int, ...], seed: int = 1) -> Array:
    return (normal(*shape, seed=seed) + 0.3).astype(np.float32)


def net_of(nodes: str, shape: tuple[int, ...], weights: Weights, **options: Any) -> ModelProto:
    batch = 1 if "LSTM" in nodes or "GRU" in nodes else 0
    x = [str(s) if i != batch else "n" for i, s in enumerate(shape)]
    rank = 4 if batch else len(shape)
    return build(nodes, f"float[{','.join(x)}]", anything(rank), **options, **weights)


def feeds_of(x: Array, batch: int) -> list[dict[str, Array]]:
    """Single samples, so that an input that is not batched along axis 0 can be calibrated on too."""
    return [{"x": np.ascontiguousarray(x.take([i], batch))} for i in range(x.shape[batch])]


def distance(a: ModelProto, b: ModelProto, x: Array) -> float:
    """Error of the outputs, relative to their spread."""
    p, q = (run(m, x)[0].astype(np.float64) for m in (a, b))
    return float(np.sqrt(np.square(p - q).mean() / p.var()))


def cut(proto: ModelProto, x: Array, recover: str, gone: tuple[int, ...], **options: Any) -> Any:
    """The result without the units `gone` of the first group."""
    group = onnxprune.analyze(proto).of_kind("channels")[0]
    keep = {group.name: ~np.isin(np.arange(group.size), gone)}
    return onnxprune.prune(proto, plan=Plan(keep, recover), calibration=x, **QUICK, **options)


def cut_error(proto: ModelProto, x: Array, recover: str, gone: tuple[int, ...] = (4, 5)) -> float:
    return distance(proto, onnxprune.to_proto(cut(proto, x, recover, gone).model), x)


@pytest.mark.parametrize("name", EXACT)
def test_combinations_of_what_stays_are_restored(name: str) -> None:
    nodes, shape, weights = EXACT[name]
    proto, x = net_of(nodes, shape, weights), data_of(shape)
    batch = 1 if "LSTM" in nodes or "GRU" in nodes else 0
    source = feeds_of(x, batch) if batch else x
    options: dict[str, Any] = {"channels": 1 / 3, "round_to": 1, "calibration": source} | QUICK
    result = onnxprune.prune(proto, **options)
    assert result.report.fits and not [f for f in result.report.fits if f.reason]
    json.dumps(result.report.to_dict())
    assert result.model is not None
    analysis = analyze(load(proto))
    keep = analysis.keep_ids(dict(result.plan.keep))
    plain = prune_model(analysis, keep)
    recovered, left = (distance(proto, onnxprune.to_proto(m), x) for m in (result.model, plain))
    assert recovered < 0.5 * left
    batches = feeds_of(x, batch)
    model, fits = least_squares(analysis, keep, plain, batches, ridge=1e-9)
    assert distance(proto, onnxprune.to_proto(model), data_of(shape, 5)) < 1e-3  # on data that it has not seen
    assert all(f.after < 1e-5 <= f.before and f.rows for f in fits)


QUANTISED: dict[str, dict[str, Any]] = {
    "int8": quantised(READ),
    "uint8 with a zero": {
        "q": np.clip(np.rint(READ / 0.03) + 120, 0, 255).astype(np.uint8), "qs": np.float32(0.03), "qz": np.uint8(120),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_refitted_within_their_grid(name: str) -> None:
    nodes = f"{CONV} v = DequantizeLinear<axis = 0>(q, qs, qz) y = Conv(h, v, c)"
    proto = net_of(nodes, PICTURES, PAIR | {"c": normal(2)} | QUANTISED[name])
    x = data_of(PICTURES)
    assert cut_error(proto, x, "least-squares") < 0.3 * cut_error(proto, x, "none")
    result = cut(proto, x, "least-squares", (4, 5))
    assert any(np.asarray(w).dtype == QUANTISED[name]["q"].dtype and w.ndim == 4 for w in result.model.weights.values())


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.FLOAT8E4M3FN])
def test_weights_of_odd_types_are_refitted_or_left(kind: int) -> None:
    nodes = f"{CONV} v = DequantizeLinear<axis = 0>(q, qs) y = Conv(h, v, c)"
    proto = net_of(nodes, PICTURES, PAIR | {"c": normal(2), "qs": np.full(2, 0.3)}, opset=21)
    proto.ir_version = 10
    values = np.clip(READ / 0.3, -7, 7)
    q = helper.make_tensor("q", kind, READ.shape, (np.rint(values) if kind == TensorProto.INT4 else values).ravel())
    proto.graph.initializer.append(q)
    x = data_of(PICTURES)
    assert cut_error(proto, x, "least-squares") <= cut_error(proto, x, "none")


def test_half_precision_is_refitted() -> None:
    half = {k: np.asarray(v).astype(np.float16) for k, v in (PAIR | {"v": READ, "c": normal(2)}).items()}
    proto = build(f"{CONV} y = Conv(h, v, c)", "float16[n,3,8,8]", "float16[n,2,h,w]", **half)
    x = data_of(PICTURES).astype(np.float16)
    assert cut_error(proto, x, "least-squares") < 0.3 * cut_error(proto, x, "none")


# Units that nothing can replace: the fit must still be nearer to the original than the plain cut.

LOSSY = {
    "w": normal(6, 3, 3, 3), "b": normal(6, seed=1), "v": normal(4, 6, 3, 3, seed=2), "u": normal(4, 6, 3, 3, seed=3),
}  # fmt: skip
SAME = "<pads = [1, 1, 1, 1]>"
GATED = f"{CONV} r = Relu(h)"

STREAMED: dict[str, str] = {
    "added to a stream made before": f"{GATED} k = Conv{SAME}(r, v) j = Conv{SAME}(r, u) y = Add(k, j)",
    "added, then an activation": f"{GATED} k = Conv{SAME}(r, v) j = Conv{SAME}(r, u) s = Add(k, j) y = Relu(s)",
    "added the other way round": f"{GATED} k = Conv{SAME}(r, v) j = Conv{SAME}(r, u) s = Add(j, k) y = Relu(s)",
    "a stream less the layer": f"{GATED} k = Conv{SAME}(r, v) j = Conv{SAME}(r, u) y = Sub(k, j)",
    "the layer less a stream": f"{GATED} k = Conv{SAME}(r, v) j = Conv{SAME}(r, u) y = Sub(j, k)",
    "a stream less the layer, then an activation": (
        f"{GATED} k = Conv{SAME}(r, v) j = Conv{SAME}(r, u) s = Sub(k, j) y = Relu(s)"
    ),
    "a vector per sample made before": (
        f"{GATED} g = GlobalAveragePool(r) t = Conv(g, f) k = Conv{SAME}(r, v) y = Add(k, t)"
    ),
    "a map of one channel made before": f"{GATED} t = Conv{SAME}(r, e) k = Conv{SAME}(r, v) y = Add(k, t)",
    "a larger stream made before": (
        f"{GATED} t = Conv{SAME}(r, v) g = GlobalAveragePool(r) k = Conv(g, f) y = Add(t, k)"
    ),
}
EXTRA = {"f": normal(4, 6, 1, 1, seed=4), "e": normal(1, 6, 3, 3, seed=5)}


def lossy(nodes: str) -> ModelProto:
    return net_of(nodes, PICTURES, LOSSY | {k: v for k, v in EXTRA.items() if f"{k})" in nodes})


@pytest.mark.parametrize(("method", "part"), [("least-squares", 0.97), ("mean-std", 1.1)])
@pytest.mark.parametrize("name", STREAMED)
def test_a_fit_behind_which_something_is_added_is_nearer(name: str, method: str, part: float) -> None:
    proto, x = lossy(STREAMED[name]), data_of(PICTURES)
    assert cut_error(proto, x, method, (0, 3)) < part * cut_error(proto, x, "none", (0, 3))


@pytest.mark.parametrize("tail", ["y = {}(k, j)", "s = {}(k, j) y = Relu(s)"])
def test_subtracting_is_adding_the_negative(tail: str) -> None:
    """What the stream k lacks, the wider layer j makes up for."""
    nodes, x = f"{GATED} k = Conv(r, v) j = Conv{SAME}(r, u) {tail}", data_of(PICTURES)
    weights = LOSSY | {"v": normal(4, 6, 1, 1, seed=2)}
    plus = net_of(nodes.format("Add"), PICTURES, weights)
    minus = net_of(nodes.format("Sub"), PICTURES, weights | {"u": -LOSSY["u"]})
    errors = [cut_error(p, x, "least-squares", (0, 3)) for p in (plus, minus)]
    np.testing.assert_allclose(*errors, rtol=1e-3)


def test_a_stream_that_is_made_later_tells_where_the_activation_is_flat() -> None:
    """One that loses nothing, so that the order of the two nodes cannot matter."""
    k, j, x = f"k = Conv{SAME}(r, v)", "j = Conv(x, u)", data_of(PICTURES)
    weights = LOSSY | {"u": 8 * normal(4, 3, 1, 1, seed=3)}
    nets = [net_of(f"{GATED} {a} {b} s = Add(k, j) y = Relu(s)", PICTURES, weights) for a, b in ((k, j), (j, k))]
    np.testing.assert_allclose(*(cut_error(p, x, "least-squares", (0, 3)) for p in nets), rtol=1e-3)


@pytest.mark.parametrize(("recover", "part"), [("least-squares", 0.9), ("mean-std", 1.05), ("bias", 1.05)])
def test_a_long_net_is_nearer_than_the_plain_cut(recover: str, part: float) -> None:
    nodes = f"{GATED} k = Conv{SAME}(r, v) t = Relu(k) j = Conv{SAME}(t, p) s = Relu(j) y = Conv(s, q)"
    proto = net_of(nodes, PICTURES, LOSSY | {"p": normal(8, 4, 3, 3, seed=7), "q": normal(3, 8, 1, 1, seed=8)})
    x = data_of(PICTURES)
    options: dict[str, Any] = {"channels": 0.25, "round_to": 1, "importance": "obs", "calibration": x, **QUICK}
    found = {r: onnxprune.prune(proto, recover=r, **options).model for r in (recover, "none")}
    errors = {r: distance(proto, onnxprune.to_proto(m), x) for r, m in found.items() if m is not None}
    assert errors[recover] < part * errors["none"]


def test_mean_and_deviation_are_those_of_the_whole_model() -> None:
    proto, x = lossy(f"{GATED} y = Conv(r, v)"), data_of(PICTURES)
    small = onnxprune.to_proto(cut(proto, x, "mean-std", (0, 3)).model)
    (p,), (q,) = run(proto, x), run(small, x)
    for figure in np.mean, np.std:
        np.testing.assert_allclose(figure(q, (0, 2, 3)), figure(p, (0, 2, 3)), rtol=2e-3, atol=2e-3)


def test_statistics_of_normalisations_are_those_of_the_data() -> None:
    norm = {"g": normal(4, seed=3), "o": normal(4, seed=4), "m": normal(4, seed=5), "s": normal(4, seed=6) ** 2 + 0.2}
    nodes = f"{GATED} k = Conv(r, v) y = BatchNormalization<epsilon = 0.0001>(k, g, o, m, s)"
    proto, x = net_of(nodes, PICTURES, LOSSY | norm), data_of(PICTURES)
    result = cut(proto, x, "batchnorm", (0, 3))
    (y,) = run(onnxprune.to_proto(result.model), x)
    np.testing.assert_allclose(y.mean((0, 2, 3)), norm["o"], atol=1e-3)
    np.testing.assert_allclose(y.std((0, 2, 3)), np.abs(norm["g"]), rtol=1e-3)
    assert "statistics of 1 BatchNormalization" in " ".join(result.report.notes)
    with pytest.raises(OptionError, match="no BatchNormalization"):
        cut(lossy(f"{GATED} y = Conv(r, v)"), x, "batchnorm", (0, 3))


CONSTANT = {"zero": -100.0, "a constant": 0.3}  # what the units that stay are, before the activation


@pytest.mark.parametrize("method", ["least-squares", "mean-std"])
@pytest.mark.parametrize("name", CONSTANT)
def test_a_layer_whose_inputs_are_constant_falls_back(name: str, method: str) -> None:
    """What stays is constant, what goes is not: weights stay as they were, and the report says why."""
    w, b = normal(6, 3, 3, 3), np.full(6, CONSTANT[name])
    w[:4] = 0
    proto, x = net_of(f"{GATED} y = Conv(r, v)", PICTURES, {"w": w, "b": b, "v": READ}), data_of(PICTURES)
    result = cut(proto, x, method, (4, 5))
    (fit,) = result.report.fits
    assert fit.reason and fit.node in " ".join(result.report.notes)
    (plain,) = (w for n, w in cut(proto, x, "none", (4, 5)).model.weights.items() if w.shape == (2, 4, 3, 3))
    assert any(np.array_equal(w, plain) for w in result.model.weights.values())
    json.dumps(result.report.to_dict())


def test_a_layer_that_shares_its_weight_is_named() -> None:
    proto = net_of(f"{GATED} k = Conv(r, v) n = Neg(r) j = Conv(n, v) y = Add(k, j)", PICTURES, LOSSY)
    result = cut(proto, data_of(PICTURES), "least-squares", (0, 3))
    assert [f.reason for f in result.report.fits] == ["it shares its weight with another layer"] * 2
    assert sum("was not refitted" in n for n in result.report.notes) == 2


def test_little_memory_gives_the_same_weights() -> None:
    nodes, shape, weights = EXACT["activation between"]
    proto, x = net_of(nodes, shape, weights), data_of(shape)
    a, b = (cut(proto, x, "least-squares", (4, 5), memory=m).model.weights for m in (2e9, 1.0))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Importances
# ---------------------------------------------------------------------------------------------------------------------

SIGNAL = 2  # the one unit of six that sees the input, and that its reader listens to


def loud(w: Array, axis: int = 0, rest: float = 1e-3) -> Array:
    w = np.moveaxis(w.copy(), axis, 0)
    w[[u for u in range(6) if u != SIGNAL]] *= rest
    return np.moveaxis(w, 0, axis)


QUIET = np.where(np.arange(6) == SIGNAL, 0.5, -5.0)
SIGNALS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "conv": (
        "h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)", PICTURES,
        {"w": loud(normal(6, 3, 3, 3)), "v": loud(normal(2, 6, 3, 3), 1)},
    ),
    "grouped conv": (
        "h = Conv(x, w, b) r = Relu(h) y = Conv<group = 2>(r, v)", PICTURES,
        {"w": loud(normal(6, 3, 3, 3)), "v": normal(4, 3, 3, 3)},
    ),
    "conv 1-D": (
        "h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)", (24, 3, 16),
        {"w": loud(normal(6, 3, 3)), "v": loud(normal(2, 6, 3), 1)},
    ),
    "conv 3-D": (
        "h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)", (6, 2, 5, 5, 5),
        {"w": loud(normal(6, 2, 2, 2, 2)), "v": loud(normal(2, 6, 2, 2, 2), 1)},
    ),
    "gemm": (
        "h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, v)", VECTORS, {"w": loud(normal(5, 6), 1), "v": loud(normal(6, 3))},
    ),
    "matmul rank 3": (
        "h = MatMul(x, w) k = Add(h, b) r = Relu(k) y = MatMul(r, v)", SERIES,
        {"w": loud(normal(5, 6), 1), "v": loud(normal(6, 3))},
    ),
    "matmul rank 4": (
        "h = MatMul(x, w) k = Add(h, b) r = Relu(k) y = MatMul(r, v)", (6, 4, 3, 5),
        {"w": loud(normal(5, 6), 1), "v": loud(normal(6, 3))},
    ),
}  # fmt: skip


def scores_of(proto: ModelProto, x: Array, importance: str) -> dict[str, Array]:
    analysis = analyze(load(proto))
    groups = analysis.of_kind("channels")
    if importance in CRITERIA:
        return weight_score(analysis, groups, importance=importance)
    return score(analysis, groups, [{"x": part} for part in np.array_split(x, 3)], importance=importance)


@pytest.mark.parametrize(
    ("importance", "kind"),
    [
        *((i, "conv") for i in IMPORTANCES if i != "head_loss"),
        *((i, kind) for i in MEASURES for kind in SIGNALS if kind != "conv"),
    ],
)
def test_the_unit_that_carries_the_signal_stays(importance: str, kind: str) -> None:
    nodes, shape, weights = SIGNALS[kind]
    (scores,) = scores_of(net_of(nodes, shape, weights | {"b": QUIET}), data_of(shape), importance).values()
    assert scores.shape == (6,) and np.isfinite(scores).all()
    if importance not in ("random", "fpgm"):
        assert scores[SIGNAL] == scores.max() > np.delete(scores, SIGNAL).max()


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_prunes(importance: str) -> None:
    nodes, shape, weights = SIGNALS["conv"]
    proto = net_of(nodes, shape, weights | {"b": QUIET})
    result = onnxprune.prune(
        proto, channels=0.5, round_to=1, importance=importance, recover="none", calibration=data_of(shape), **QUICK
    )
    (keep,) = result.plan.keep.values()
    assert keep.sum() == 3 and (keep[SIGNAL] or importance == "random")


def test_energy_divides_by_what_a_unit_costs() -> None:
    """Two groups with alike activations: a unit of the one whose maps are four times as large scores less."""
    pool = "p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)"
    nodes = f"h = Conv(x, w) r = Relu(h) {pool} k = Conv(p, v) y = Conv(k, u)"
    weights = {"w": normal(6, 3, 1, 1), "v": normal(6, 6, 1, 1), "u": normal(2, 6, 1, 1)}
    wanda, energy = (scores_of(net_of(nodes, PICTURES, weights), data_of(PICTURES), i) for i in ("wanda", "energy"))
    ratios = [float((energy[name] / wanda[name]).mean()) for name in wanda]
    assert max(ratios) > 1.2 * min(ratios)
