"""What least squares, and its relatives, recover of a cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import onnxprune
from models.nets import PICTURES, SERIES, VECTORS, Array, build, data_of, net_of, normal, run
from onnxprune import Plan, load
from onnxprune.errors import OptionError
from onnxprune.recovery.least_squares import least_squares
from onnxprune.structure.groups import analyze
from onnxprune.structure.surgery import prune_model

Weights = Mapping[str, Any]
QUICK: dict[str, Any] = {"measure": False, "verify": False, "threads": 1}
# Nets whose units 4 and 5 are combinations of the others

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
    half: dict[str, Any] = {
        k: np.asarray(v).astype(np.float16) for k, v in (PAIR | {"v": READ, "c": normal(2)}).items()
    }
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
    first, second = (cut_error(p, x, "least-squares", (0, 3)) for p in (plus, minus))
    np.testing.assert_allclose(first, second, rtol=1e-3)


def test_a_stream_that_is_made_later_tells_where_the_activation_is_flat() -> None:
    """One that loses nothing, so that the order of the two nodes cannot matter."""
    k, j, x = f"k = Conv{SAME}(r, v)", "j = Conv(x, u)", data_of(PICTURES)
    weights = LOSSY | {"u": 8 * normal(4, 3, 1, 1, seed=3)}
    nets = [net_of(f"{GATED} {a} {b} s = Add(k, j) y = Relu(s)", PICTURES, weights) for a, b in ((k, j), (j, k))]
    first, second = (cut_error(p, x, "least-squares", (0, 3)) for p in nets)
    np.testing.assert_allclose(first, second, rtol=1e-3)


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


def test_a_cut_that_leaves_nothing_to_fit_says_so() -> None:
    """What went fed a sum over channels, and no layer."""
    model = build("h = MatMul(x, w) r = Relu(h) y = ReduceSum<keepdims = 1>(r, last)", "float[n,4]", "float[n,1]",
                  w=normal(4, 16), last=np.array([1]))  # fmt: skip
    data = normal(80, 4, seed=1).astype(np.float32)
    notes = onnxprune.prune(model, channels=0.5, calibration=data, recover="least-squares", **QUICK).report.notes
    assert any("had nothing to fit" in note for note in notes)
