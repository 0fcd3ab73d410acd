"""Every gradient against finite differences, first and second order, in float64; in float32 through onnxruntime.

A row is a small model as text (`tests/models/gradients/`, one file per family as the rules), `double` throughout; all
its inputs of that type are differentiated by. The loss is a sum of squares of the outputs with fixed weights, so that
there are second derivatives for linear operators, too.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import onnxprune
from models.files import parse
from models.gradients import ROWS, Row
from onnxprune.errors import UserError
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.losses import cross_entropy, kullback_leibler, squared_error
from onnxprune.gradient.rules import GRADIENTS, NO_GRADIENTS, NOT_YET
from onnxprune.graph.arrays import Array

STEP = 1e-5
IDS = [f"{row.op}-{row.form}" for row in ROWS]
Values = dict[str, Array]
Run = Callable[[Values], Values]


def feeds_of(row: Row, model: ModelProto) -> Values:
    """What the row gives, and for the rest numbers between 0.4 and 1.6 that are far from each other and from 1."""
    out: Values = {}
    for info in model.graph.input:
        dims = [row.sizes.get(d.dim_param, d.dim_value) for d in info.type.tensor_type.shape.dim]
        rng = np.random.default_rng(zlib.crc32(f"{row.op}{info.name}".encode()))
        count = int(np.prod(dims))
        spread = rng.permutation(np.linspace(row.low, row.high, max(count, 1))[:count]) if count else np.zeros(0)
        out[info.name] = row.feeds.get(info.name, spread.reshape(dims))
        kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        out[info.name] = np.asarray(out[info.name], kind)
    return out


def squares(b: Backward) -> str:
    """Sum over the outputs of c * (y^2 + y), c fixed numbers."""
    parts = []
    for k, o in enumerate([o.name for o in b.edit.graph.output]):
        c = b.constant(0.5 + k, like=o)
        y = b.op("Mul", c, b.op("Add", b.op("Mul", o, o), o))
        shift = b.op("Mul", y, b.op("Add", y, c)) if k else y  # outputs that multiply one another
        parts.append(b.sum(shift, range(b.rank(o))))
    return b.add(parts)


def unknown(model: ModelProto) -> set[str]:
    """Operators without a rule, but for those that compute sizes."""
    codes = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    whole = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    nodes = [n for n in model.graph.node if any(codes.get(o) not in whole for o in n.output)]
    ops = {f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in nodes}
    return ops - set(GRADIENTS) - set(NO_GRADIENTS)


def runner(row: Row, model: ModelProto) -> Run:
    """What computes the outputs, by name: onnx's evaluator, or onnxruntime where the row says so."""
    reference = row.runtime == "reference"
    made: Any = ReferenceEvaluator(model, new_ops=[Erf, Gelu]) if reference else session(model)
    names = [o.name for o in model.graph.output]
    return lambda feeds: dict(zip(names, map(np.asarray, made.run(None, feeds)), strict=True))


class Erf(OpRun):
    """In float64; onnx's own rounds to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """Likewise."""

    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            return (x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (x / 2 * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x * math.sqrt(0.5))),)


def session(model: ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def differences(row: Row, run: Run, feeds: Values, wrt: list[str], of: list[str], step: float) -> dict[str, Values]:
    """By name of each of `wrt`: d outputs / d (along a random direction of it), by central differences. In float32 by
    four points, so that the step may be large."""
    points = {1: 1 / 2, -1: -1 / 2} if row.runtime != "float32" else {1: 2 / 3, -1: -2 / 3, 2: -1 / 12, -2: 1 / 12}
    out = {}
    for w in wrt:
        v = direction(feeds[w])
        moved = {s: np.asarray(feeds[w] + s * step * v, feeds[w].dtype) for s in points}
        ends = {s: run({**feeds, w: x}) for s, x in moved.items()}
        out[w] = {o: np.sum([c * ends[s][o].astype(np.float64) for s, c in points.items()], 0) / step for o in of}
    return out


def direction(x: Array) -> Array:
    return np.asarray(np.random.default_rng(x.size).standard_normal(x.shape))


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_gradient(row: Row) -> None:
    kind = "float" if row.runtime == "float32" else "double"
    model = row.model(kind)
    feeds = feeds_of(row, model)
    wrt = [n for n in feeds if feeds[n].dtype.kind == "f" and n not in row.fixed]
    shapes = row.input_shape
    first = onnxprune.gradients(model, squares, wrt, input_shape=shapes)
    assert unknown(first) == set()
    loss = first.graph.output[len(model.graph.output)].name
    compute = runner(row, first)
    found = compute(feeds)
    step, tolerance = (row.step, 2e-3) if row.runtime == "float32" else (STEP, 1e-6)
    slopes = differences(row, compute, feeds, wrt, [loss, *(f"{w}_gradient" for w in wrt)], step)
    for w, slope in slopes.items():
        g = found[f"{w}_gradient"]
        assert g.shape == feeds[w].shape
        close((g * direction(feeds[w])).sum(), slope[loss], tolerance, f"d loss / d {w}")
    if row.second:
        second(row, model, feeds, slopes, tolerance)
    if row.single:
        single(row, wrt, feeds, found)


def second(row: Row, model: ModelProto, feeds: Values, slopes: dict[str, Values], tolerance: float) -> None:
    """H v against differences of gradients, `slopes`, by what is moved."""
    product = onnxprune.hessian_vector_product(model, squares, list(slopes), input_shape=row.input_shape)
    if row.checked:
        onnx.shape_inference.infer_shapes(product, strict_mode=True, check_type=True)
    compute = runner(row, product)
    for v, column in slopes.items():
        vectors = {f"{w}_vector": np.asarray(direction(feeds[w]) * (w == v), feeds[w].dtype) for w in slopes}
        hv = compute({**feeds, **vectors})
        for w in slopes:
            close(hv[f"{w}_hessian_vector"], column[f"{w}_gradient"], tolerance * 10, f"d^2 loss / d {w} d {v}")


def single(row: Row, wrt: list[str], feeds: Values, expected: Values) -> None:
    """In float32, onnxruntime gives the same gradients."""
    small = onnxprune.gradients(row.model("float"), squares, wrt, input_shape=row.input_shape)
    as_float = {n: x.astype(np.float32) if x.dtype == np.float64 else x for n, x in feeds.items()}
    values = session(small).run([f"{w}_gradient" for w in wrt], as_float)
    for w, g in zip(wrt, values, strict=True):
        close(g, expected[f"{w}_gradient"], 1e-4, f"{w} in float32")


def close(found: Array, expected: Array, tolerance: float, what: str) -> None:
    assert np.shape(found) == np.shape(expected) or np.size(expected) == 1, what
    scale = max(np.abs(expected).max(), 1.0) if np.size(expected) else 1.0
    assert np.abs(found - expected).max(initial=0.0) <= tolerance * scale, what


def test_every_rule_has_a_row() -> None:
    assert {row.op for row in ROWS} == set(GRADIENTS)
    assert len(set(IDS)) == len(IDS)


def test_every_operator_of_the_standard_is_listed() -> None:
    rows = [set(GRADIENTS), set(NO_GRADIENTS), set(NOT_YET)]
    assert sum(map(len, rows)) == len(set().union(*rows))
    newest: dict[str, onnx.defs.OpSchema] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version >= getattr(newest.get(schema.name), "since_version", 0):
            newest[schema.name] = schema
    current = {name for name, schema in newest.items() if not schema.deprecated}
    assert current <= set().union(*rows)


# losses


def test_losses_are_what_they_say() -> None:
    model = parse("g (double[3,4] y) => (double[3,4] z) { z = Identity(y) }")
    rng = np.random.default_rng(0)
    y, t = rng.standard_normal((2, 3, 4))

    def log_softmax(x: Array) -> Array:
        return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)))

    labels = np.array([0, 3, 1])
    p, q = log_softmax(t), log_softmax(y)
    expected: dict[Any, Any] = {
        kullback_leibler: (p, (np.exp(p) * (p - q)).sum(1).mean()),
        cross_entropy: (labels, -q[range(3), labels].mean()),
        squared_error: (t, ((y - t) ** 2).mean()),
    }
    hot = (log_softmax(t / 4), log_softmax(y / 4))
    warm = partial(kullback_leibler, temperature=4.0)
    expected |= {warm: (p, 16 * (np.exp(hot[0]) * (hot[0] - hot[1])).sum(1).mean())}
    for loss, (target, value) in expected.items():
        b = Backward(onnxprune.load(model))
        code, shape = (onnx.TensorProto.INT64, [3]) if target is labels else (onnx.TensorProto.DOUBLE, [3, 4])
        name = loss(b, "z", b.input("target", code, shape))
        out = onnxprune.to_proto(b.finished([name]))
        found = ReferenceEvaluator(out).run([name], {"y": y, "target": target})
        assert np.allclose(found[0], value)  # type: ignore[index]


def test_softmax_at_the_end_is_not_applied_twice() -> None:
    b = Backward(onnxprune.load(parse("g (float[3,4] y) => (float[3,4] z) { z = Softmax(y) }")))
    kullback_leibler(b, "z", b.input_like("target", "z"))
    assert [n.input[0] for n in b.edit.graph.node if n.op_type == "LogSoftmax"] == ["y"]


# what onnxruntime wrote


def test_operators_that_onnx_does_not_know_keep_no_model_at_its_opset() -> None:
    text = "g (float[2,4] x) => (float[2,4] y) <float[4] w = {1,2,3,4}> { y = SimplifiedLayerNormalization(x, w) }"
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    old, new = (onnxprune.gradients(parse(text, f'"" : {k}'), squares, ["w"]) for k in (11, 18))
    a, b = (session(m).run(None, {"x": x})[-1] for m in (old, new))
    assert np.allclose(a, b) and np.abs(a).max() > 0.1
    assert [n.domain for n in old.graph.node if n.op_type == "SimplifiedLayerNormalization"] == [""]
    assert {o.domain for o in old.opset_import} == {o.domain for o in new.opset_import}


def test_names_of_a_fusion_may_be_there_before() -> None:
    text = (
        "g (float[2,6] x) => (float[2,1,1,2] y) <int64[3] gemm_input_shape = {2,1,6}, float[1,2,6] w = "
        "{1,2,0,1,2,1,1,0,1,2,1,2}, float[1,2,2] r = {1,0,1,1}, float[1,4] b = {1,2,1,0}> "
        "{ h = Reshape(x, gemm_input_shape) y = RNN<hidden_size = 2>(h, w, r, b) }"
    )
    found = session(onnxprune.gradients(parse(text), squares, ["w"])).run(None, {"x": np.ones((2, 6), np.float32)})
    assert found[-1].shape == (1, 2, 6)


# what cannot be had


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            "h = Mul(x, w) k = com.microsoft.Trilu(h) y = ReduceSum<keepdims = 0>(k)",
            "no gradient for 'w': com.microsoft::Trilu .* has no rule",
        ),
        ("h = Mul(x, w) k = Sign(h) y = ReduceSum<keepdims = 0>(k)", "no gradient for 'w': the loss does not depend"),
        (
            "h = Mul(x, w) k = com.microsoft.Trilu(h) m = Add(h, k) y = ReduceSum<keepdims = 0>(m)",
            "com.microsoft::Trilu .* has no rule",
        ),
        ("y = Mul(x, w)", "the loss must be one number; 'y' has the shape .3, 4."),
    ],
    ids=["no-rule", "cut", "a-part-of-it", "no-number"],
)
def test_no_gradient(nodes: str, message: str) -> None:
    model = parse(f"g (float[3,4] x, float[4] w) => (float y) {{ {nodes} }}")
    with pytest.raises(UserError, match=message):
        onnxprune.gradients(model, "y", ["w"])


def test_weights_that_are_reached_have_gradients_beside_those_that_are_not() -> None:
    model = parse(
        "g (float[3,4] x) => (float y) <float[4] w = {1,2,3,4}, float[4] v = {1,2,3,4}> "
        "{ h = Mul(x, w) k = com.microsoft.Trilu(h) m = Mul(k, v) y = ReduceSum<keepdims = 0>(m) }"
    )
    assert [o.name for o in onnxprune.gradients(model, "y").graph.output] == ["y", "v_gradient"]


def test_a_loss_that_is_not_there() -> None:
    model = parse("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }")
    with pytest.raises(UserError, match="'l' is not computed by the model"):
        onnxprune.gradients(model, "l", ["x"])
