"""What changes nothing goes first: in every combination of rows, of units and of single weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

import onnxprune
from criteria import ROWS
from models.nets import PICTURES, Array, data_of, net_of, normal, run
from onnxprune.allocation.allocators import ALLOCATORS
from onnxprune.recovery.recover import RECOVERIES
from onnxprune.solvers.masks import SOLVERS
from onnxprune.sparsity.allocate import ZERO_ALLOCATORS
from onnxprune.structure.dead import dead_units
from onnxprune.structure.groups import analyze

PLAIN: dict[str, Any] = {"measure": False, "verify": False, "threads": 1}
QUICK: dict[str, Any] = {**PLAIN, "samples": 16}
SEES = [name for name, row in ROWS.items() if not row.blind]


def emptied(w: Array, *rows: int, axis: int = 0) -> Array:
    w = w.copy()
    np.moveaxis(w, axis, 0)[list(rows)] = 0
    return w


def dead() -> ModelProto:
    """Of eight units of each of three layers nothing makes 1 and 5, and nothing reads 2, the largest of all; the others
    are small, and on data mostly silent."""
    w, u, v = (emptied(0.05 * normal(8, *s, seed=k), 1, 5) for k, s in enumerate([(3, 3, 3), (8, 3, 3), (128,)]))
    w[2], u[2], v[2] = 9, 9, 9
    nodes = """h = Conv<pads = [1, 1, 1, 1]>(x, w, b) n = BatchNormalization(h, s, o, m, d) r = Relu(n)
        p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) k = Conv<pads = [1, 1, 1, 1]>(p, u, c)
        j = BatchNormalization(k, s, o, m, d) t = Relu(j) f = Flatten(t) g = Gemm<transB = 1>(f, v, e) q = Relu(g)
        y = Gemm(q, z)"""
    return net_of(
        nodes, PICTURES, {
            "w": w, "b": emptied(normal(8, seed=1), 1, 5), "s": normal(8, seed=4), "m": emptied(normal(8), 1, 5),
            "o": emptied(normal(8, seed=5) - 1, 1, 5), "d": np.ones(8), "u": emptied(u, 2, axis=1),
            "c": emptied(normal(8, seed=13), 1, 5), "v": emptied(v, *range(32, 48), axis=1),
            "e": emptied(normal(8, seed=8) - 1, 1, 5), "z": emptied(normal(8, 4, seed=10), 2),
        },
    )  # fmt: skip


@pytest.mark.parametrize("allocate", ALLOCATORS)
@pytest.mark.parametrize("importance", SEES)
def test_units_that_change_nothing_go_first(importance: str, allocate: str) -> None:
    """For every criterion and way to allocate, with one recovery after the other."""
    proto, x = dead(), data_of(PICTURES)
    recover = [*RECOVERIES][(SEES.index(importance) + [*ALLOCATORS].index(allocate)) % len(RECOVERIES)]
    amount = {"target_params": "80%"} if ALLOCATORS[allocate].needs_target else {"channels": 0.25}
    result = onnxprune.prune(
        proto, importance=importance, allocate=allocate, recover=recover, calibration=x, round_to=1, **amount, **QUICK
    )
    assert result.report.after.parameters < 0.81 * result.report.before.parameters
    np.testing.assert_allclose(run(onnxprune.to_proto(result.model), x)[0], run(proto, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("importance", [name for name in SEES if not ROWS[name].needs_data])
def test_units_that_change_nothing_go_first_without_data(importance: str) -> None:
    proto, x = dead(), data_of(PICTURES)
    result = onnxprune.prune(proto, channels=0.25, importance=importance, recover="none", round_to=1, **PLAIN)
    np.testing.assert_allclose(run(onnxprune.to_proto(result.model), x)[0], run(proto, x)[0], rtol=1e-5, atol=1e-5)


def constant() -> ModelProto:
    """Units 0 and 5 of eight are constant, and not zero, where they are read."""
    w, v = emptied(normal(8, 3, 1, 1), 0, 5), normal(3, 8, 3, 3, seed=2)
    weights = {"w": w, "b": normal(8, seed=1), "v": v, "c": normal(3)}
    return net_of("h = Conv(x, w, b) s = Sigmoid(h) y = Conv(s, v, c)", PICTURES, weights)


@pytest.mark.parametrize("recover", [name for name in RECOVERIES if name != "batchnorm"])  # there is none
def test_constant_units_go_first_where_a_recovery_absorbs_them(recover: str) -> None:
    x = data_of(PICTURES)
    result = onnxprune.prune(
        constant(), channels=0.25, importance="activation", recover=recover, calibration=x, round_to=1, **QUICK
    )
    gone = np.flatnonzero(~result.plan.keep["Conv(h)"]).tolist()
    assert (gone == [0, 5]) == RECOVERIES[recover].absorbs
    if RECOVERIES[recover].absorbs:
        (y,), (z,) = run(onnxprune.to_proto(result.model), x), run(constant(), x)
        np.testing.assert_allclose(y, z, rtol=1e-4, atol=1e-4)


def test_a_padded_reader_does_not_absorb_a_constant() -> None:
    proto = constant()
    proto.graph.node[2].attribute.add(name="pads", type=7, ints=[1, 1, 1, 1])
    analysis = analyze(onnxprune.load(proto))
    assert not dead_units(analysis, absorbed=True)["Conv(h)"].any()


def test_of_units_that_are_silent_on_the_data_the_smaller_go_first() -> None:
    size = {2: 3.0, 3: 1.0, 6: 2.0}  # of the silent ones, of which the last two must go
    w, b = normal(8, 3, 3, 3), np.ones(8)
    for unit, factor in size.items():
        w[unit], b[unit] = factor * w[0] / 10, -100
    weights = {"w": w, "b": b, "v": np.ones((2, 8, 3, 3))}
    proto = net_of("h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)", PICTURES, weights)
    for importance in ("activation", "wanda", "variance", "apoz", "hrank", "head_loss"):
        result = onnxprune.prune(
            proto, channels=0.25, importance=importance, calibration=data_of(PICTURES), round_to=1, **QUICK
        )
        assert np.flatnonzero(~result.plan.keep["Conv(h)"]).tolist() == [3, 6], importance


def attention() -> ModelProto:
    """Nothing makes the values of head 1 of four, and nothing leaves the first feed-forward block."""
    nodes = """a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) d = Reshape(a, s) e = Reshape(b, s) f = Reshape(c, s)
        g = Transpose<perm = [0, 2, 1, 3]>(d) h = Transpose<perm = [0, 2, 3, 1]>(e)
        i = Transpose<perm = [0, 2, 1, 3]>(f) j = MatMul(g, h) l = Softmax(j) m = MatMul(l, i)
        n = Transpose<perm = [0, 2, 1, 3]>(m) o = Reshape(n, t) p = MatMul(o, w) r = Add(x, p)
        a1 = MatMul(r, u1) b1 = Relu(a1) c1 = MatMul(b1, w1) d1 = Add(r, c1)
        a2 = MatMul(d1, u2) b2 = Relu(a2) c2 = MatMul(b2, w2) y = Add(d1, c2)"""
    square = {name: normal(16, 16, seed=k) for k, name in enumerate("qkw")}
    more = {"v": emptied(normal(16, 16, seed=5), *range(4, 8), axis=1), "s": np.array([0, 0, 4, 4])}
    block = {"u1": normal(16, 8), "w1": np.zeros((8, 16)), "u2": 0.1 * normal(16, 8), "w2": 0.1 * normal(8, 16)}
    return net_of(nodes, (6, 5, 16), square | more | block | {"t": np.array([0, 0, 16])})


@pytest.mark.parametrize("amount", [{"heads": 0.25, "round_to": 1}, {"layers": 0.34}], ids=["heads", "layers"])
@pytest.mark.parametrize("recover", ["least-squares", "none"])
def test_heads_and_blocks_that_change_nothing_go_first(amount: dict[str, Any], recover: str) -> None:
    proto, x = attention(), data_of((6, 5, 16))
    result = onnxprune.prune(proto, recover=recover, calibration=x, **amount, **QUICK)
    assert result.report.after.parameters < result.report.before.parameters
    np.testing.assert_allclose(run(onnxprune.to_proto(result.model), x)[0], run(proto, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stacked", [True, False])
def test_constants_count_as_absorbed_where_biases_do_absorb_them(stacked: bool) -> None:
    """The matrices of a stack would each add numbers of their own."""
    weights = {"w": emptied(normal(6, 8), 1, 5, axis=1), "b": np.ones(8), "z": normal(*[2] * stacked, 8, 4, seed=1)}
    proto = net_of("h = MatMul(x, w) a = Add(h, b) r = Relu(a) y = MatMul(r, z)", (2, 5, 6), weights)
    dead = dead_units(analyze(onnxprune.load(proto)), absorbed=True)["MatMul(h)"]
    assert dead.sum() == 2 * (not stacked)
    result, x = onnxprune.prune(proto, channels=0.25, recover="bias", round_to=1, **PLAIN), data_of((2, 5, 6))
    near = np.allclose(run(onnxprune.to_proto(result.model), x)[0], run(proto, x)[0], rtol=1e-4, atol=1e-4)
    assert near != stacked


@pytest.mark.parametrize(("layer", "axis"), [("first", 1), ("second", 2), ("second", 1)])
def test_quantized_experts(layer: str, axis: int) -> None:
    """Inner units that nothing makes, and those that nothing reads; channels that nothing makes. Of eight bits 128 is
    zero."""
    rng = np.random.default_rng(0)
    w = {name: rng.integers(0, 255, (4, 32, 32), np.uint8) for name in ("first", "second")}
    np.moveaxis(w[layer], axis, 0)[:8] = 128
    nodes = """r = MatMul(x, wr) h = MatMul(x, w)
        m = com.microsoft.QMoE<k = 1, expert_weight_bits = 8>(h, r, first, s, , second, t) y = MatMul(m, z)"""
    more = {
        "s": np.full((4, 32), 0.01),
        "t": np.full((4, 32), 0.02),
        "wr": normal(6, 4),
        "w": normal(6, 32),
        "z": normal(32, 4),
    }
    dead = dead_units(analyze(onnxprune.load(net_of(nodes, (5, 6), w | more))))
    inner, width = dead["QMoE(m)"], dead["MatMul(h)"][32:]
    assert np.flatnonzero(width if axis == 1 and layer == "second" else inner).tolist() == [*range(8)]
    assert inner.sum() + width.sum() == 8


@pytest.mark.parametrize(
    "nodes",
    [
        "h = Conv(x, w) d = ConvTranspose<group = 8>(h, v) y = Conv(d, z)",
        """s = Constant<value = float {0.05}>() n = Constant<value = uint8 {120}>() i = Constant<value = int8 {3}>()
        h = Conv(x, w) p = QuantizeLinear(h, s, n) q = QuantizeLinear(v, s, i)
        d = QLinearConv<group = 8>(p, s, n, q, s, i, s, n) k = DequantizeLinear(d, s, n) y = Conv(k, z)""",
        """s = Constant<value = float {0.05}>() n = Constant<value = uint8 {120}>() i = Constant<value = int8 {3}>()
        h = Conv(x, w) p = QuantizeLinear(h, s, n) q = QuantizeLinear(v, s, i)
        d = ConvInteger<group = 8>(p, q, n, i) k = Cast<to = 1>(d) y = Conv(k, z)""",
    ],
    ids=["ConvTranspose", "QLinearConv", "ConvInteger"],
)
def test_what_a_depthwise_convolution_makes_of_nothing(nodes: str) -> None:
    weights = {"w": emptied(normal(8, 3, 1, 1), 1, 5), "v": normal(8, 1, 3, 3, seed=1), "z": normal(4, 8, 1, 1)}
    dead = dead_units(analyze(onnxprune.load(net_of(nodes, PICTURES, weights))))
    assert np.flatnonzero(dead["Conv(h)"]).tolist() == [1, 5]


PATTERNS: dict[str, dict[str, Any]] = {
    "": {"sparsity": 0.2}, "2:4": {"pattern": "2:4"}, "block:2x2": {"pattern": "block:2x2", "sparsity": 0.3},
    "column": {"pattern": "column", "sparsity": 0.3},
}  # fmt: skip


@pytest.mark.parametrize(("ir", "count"), [(8, 0), (3, 2)])
def test_a_weight_that_a_caller_may_override_makes_nothing_dead(ir: int, count: int) -> None:
    """Before IR version 4 initializers are listed as inputs too, and nobody can override them."""
    weights = {"w": emptied(normal(6, 8), 1, 5, axis=1), "z": normal(8, 4, seed=1)}
    proto = net_of("h = MatMul(x, w) r = Relu(h) y = MatMul(r, z)", (2, 6), weights)
    proto.ir_version = ir
    for t in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    assert dead_units(analyze(onnxprune.load(proto)))["MatMul(h)"].sum() == count


def sparse() -> ModelProto:
    """Every other pair of the inputs of each layer meets zeros alone, which is what each of the patterns wants."""

    def held(w: Array) -> Array:
        return emptied(w, *(i for i in range(w.shape[1]) if i % 4 > 1), axis=1)

    nodes = """h = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(h) k = Conv<group = 2, strides = [2, 2]>(r, u)
        t = Relu(k) f = Flatten(t) g = Gemm<transB = 1>(f, v, c) q = Relu(g) y = MatMul(q, z)"""
    return net_of(
        nodes, PICTURES, {
            "w": held(normal(8, 3, 3, 3)), "b": normal(8, seed=1), "u": held(normal(8, 4, 3, 3, seed=2)),
            "v": held(normal(16, 72, seed=3)), "c": normal(16, seed=4), "z": held(normal(4, 16, seed=5)).T,
        },
    )  # fmt: skip


TILES = [p for p in PATTERNS if p.startswith(("block", "column"))]
SOLVED = [(p, s) for p in PATTERNS for s, row in SOLVERS.items() if row.tiles or p not in TILES]


@pytest.mark.parametrize(("pattern", "solver"), SOLVED)
def test_weights_that_are_zero_go_first(pattern: str, solver: str) -> None:
    """A layer that has as many zeros as are asked for stays as it is, by any solver, with ways to allocate in turn."""
    proto, x = sparse(), data_of(PICTURES)
    labels: dict[str, Any] = {}
    if SOLVERS[solver].labels:
        labels = {"train": x, "train_labels": np.arange(len(x)) % 4}
    for allocate in (
        [*ZERO_ALLOCATORS] if pattern == "" else [name for name, row in ZERO_ALLOCATORS.items() if row.even]
    ):
        result = onnxprune.prune(
            proto, solver=solver, sparsity_allocate=allocate, calibration=x, format="dense", **PATTERNS[pattern],
            **QUICK, **labels,
        )  # fmt: skip
        before, after = onnxprune.load(proto).weights, result.model.weights
        assert all(np.array_equal(w, after[name]) for name, w in before.items()), allocate


@pytest.mark.parametrize("pattern", PATTERNS)
def test_weights_that_are_zero_go_first_without_data(pattern: str) -> None:
    proto = sparse()
    result = onnxprune.prune(proto, format="dense", recover="none", **PATTERNS[pattern], **PLAIN)
    assert all(np.array_equal(w, result.model.weights[name]) for name, w in onnxprune.load(proto).weights.items())
