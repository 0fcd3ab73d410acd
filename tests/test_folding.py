"""Weights that a file computes of constants: folded before the analysis, computed again where nothing of them went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx
import pytest

from models.builder import Builder, random_feeds
from onnxprune import prune
from onnxprune.graph.io import graphs, load, to_proto
from onnxprune.runtime.session import run
from onnxprune.structure.groups import analyze

DEAD = 8  # of 24 filters


def dead(b: Builder, *shape: int) -> np.ndarray:
    """A weight whose first filters are zero."""
    w = b.he(*shape)
    w[:DEAD] = 0
    return w


def gain(b: Builder, *shape: int) -> np.ndarray:
    g = b.uniform(0.5, 2, *shape)
    g[:DEAD] = 0
    return g


def weight_norm(b: Builder, *shape: int) -> str:
    ones = [1] * (len(shape) - 1)
    v, g = b.param(b.he(*shape)), b.param(gain(b, shape[0], *ones))
    return b.op("Div", b.mul(g, v), b.reduce("L2", v, *range(1, len(shape))))


def standardised(b: Builder, *shape: int) -> str:
    axes = range(1, len(shape))
    w = b.param(dead(b, *shape))
    centred = b.op("Sub", w, b.reduce("Mean", w, *axes))
    deviation = b.op("Sqrt", b.add(b.reduce("Mean", b.mul(centred, centred), *axes), 1e-5))
    return b.mul(b.op("Div", centred, deviation), 0.5)


def spectral(b: Builder, *shape: int) -> str:
    w = b.param(dead(b, *shape))
    u, v = b.param(b.normal(shape[0])), b.param(b.normal(int(np.prod(shape[1:]))))
    return b.op("Div", w, b.matmul(u, b.matmul(b.reshape(w, shape[0], -1), v)))


def joined(b: Builder, *shape: int) -> str:
    half = shape[0] // 2, *shape[1:]
    parts = b.op("Concat", b.param(dead(b, *half)), b.param(b.he(*half)), axis=0)
    perm = range(len(shape))[::-1]
    stored = b.transpose(b.op("Div", parts, b.param(np.array(3, np.float32))), *perm)
    return b.transpose(stored, *perm)


def scaled(b: Builder, *shape: int) -> str:
    half = b.op("Cast", b.param(dead(b, *shape).astype(np.float16)), to=onnx.TensorProto.FLOAT)
    return b.mul(half, b.param(b.uniform(0.5, 2, *shape)))


FORMS: list[Callable[..., str]] = [weight_norm, standardised, spectral, joined, scaled]


def chain(
    form: Callable[..., str], *, opset: int = 17, weights: Literal["initializer", "constant"] = "initializer"
) -> onnx.ModelProto:
    """Two convolutions with weights of the form, one with a plain weight; the filters DEAD of the first are zero."""
    b = Builder(opset, weights=weights)
    h = b.input("input", (1, 3, 8, 8))
    for channels, cin in ((24, 3), (16, 24)):
        h = b.relu(b.conv(h, channels, weight=form(b, channels, cin, 3, 3), bias=False))
    return b.model(b.conv(h, 4, bias=False))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_what_is_zero_goes_and_nothing_else_changes(form: Callable[..., str]) -> None:
    model = load(chain(form))
    result = prune(model, channels=1 / 3, round_to=1, recover="none", measure=False)
    feeds = random_feeds(to_proto(model), batch=1)
    before, after = (run(m, feeds) for m in (model, result.model))
    assert not {n.op_type for n in result.model.proto.graph.node} - {"Conv", "Relu"}
    assert max(len(w) for w in result.model.weights.values()) == 16
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-5 * np.abs(value).max())
    assert any("computed of others" in note for note in result.report.notes)
    stored = [
        sum(w.size for w in m.weights.values() if w.dtype.kind == "f" and w.size > 1) for m in (model, result.model)
    ]
    assert [result.report.before.parameters, result.report.after.parameters] == pytest.approx(stored, abs=8)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_where_nothing_was_cut_the_file_keeps_its_form(form: Callable[..., str]) -> None:
    model = load(chain(form))
    analysis = analyze(model)
    assert len(analysis.model.folds) == 2
    assert to_proto(analysis.model) == to_proto(model)
    last = next(g for g in analysis.groups if g.size == 16)  # only what makes and reads these 16 is cut
    result = prune(model, ratio={last.name: 0.25}, round_to=1, recover="none", measure=False)
    stored = {t.name for t in result.model.proto.graph.initializer}
    assert len(stored & analysis.model.folds.keys()) == 1, "of two folded weights one was cut"


def test_in_bodies_of_if() -> None:
    b = Builder()
    x = b.input("input", (1, 8))
    shared = b.param(b.uniform(0.5, 2, 1, 16))
    branches = []
    for k in range(2):
        body = b.child()
        v = body.param(body.he(8, 16))
        weight = body.mul(body.op("Div", v, body.reduce("L2", v, 0)), shared)
        branches.append(
            body.graph(f"branch_{k}", body.matmul(body.relu(body.matmul(x, weight)), body.param(body.he(16, 4))))
        )
    test = b.op("Greater", b.reduce("Sum", x, 0, 1, keepdims=0), np.float32(0))
    out = b.declare(b.op("If", test, then_branch=branches[0], else_branch=branches[1]), (1, 4))
    model = load(b.model(out))
    analysis = analyze(model)
    assert len(analysis.model.folds) == 2
    assert to_proto(analysis.model) == to_proto(model)
    pruned = prune(model, channels=0.5, round_to=1, recover="none", measure=False).model
    inner = [{n.op_type for n in g.node} for g in graphs(pruned.proto.graph)][1:]
    assert inner == [{"MatMul", "Relu"}] * 2


def shared_vector() -> onnx.ModelProto:
    """A bias that is also scaled and another layer's; four units that go are constant, and biases change for them."""
    b = Builder()
    x, shared = b.input("input", (1, 8, 4, 4)), b.param(b.normal(8))
    h = b.relu(b.conv(x, 8, 1, bias=b.mul(shared, b.param(b.normal(8)))))
    w = b.he(8, 8, 1, 1)
    w[:4] = 0
    h = b.relu(b.conv(h, 8, 1, weight=b.param(w), bias=b.param(np.ones(8))))
    h = b.relu(b.conv(h, 8, 1, bias=shared))
    return b.model(b.conv(h, 8, 1))


def shared_weight() -> onnx.ModelProto:
    """The weight of one convolution, masked, is that of another; the other is cut."""
    b = Builder()
    x, v = b.input("input", (1, 8, 4, 4)), b.param(b.he(8, 8, 1, 1))
    masked = b.mul(v, b.param(b.uniform(0, 2, 8, 8, 1, 1).round()))
    h = b.relu(b.conv(x, 8, 1, weight=masked))
    h = b.relu(b.conv(b.relu(b.conv(h, 8, 1)), 8, 1, weight=v))
    return b.model(b.conv(h, 8, 1))


def test_what_shares_a_leaf_that_changes_stays_a_constant() -> None:
    model = load(shared_vector())
    first, _, third = (g.name for g in analyze(model).groups)
    result = prune(model, channels=0.5, recover="bias", ignore=(first, third), round_to=1, measure=False)
    feeds = random_feeds(to_proto(model), batch=1)
    expected = run(model, feeds)
    for name, value in run(result.model, feeds).items():  # biases make up for constants exactly
        np.testing.assert_allclose(value, expected[name], atol=1e-4 * np.abs(expected[name]).max())


@pytest.mark.parametrize("kind", ["channels", "sparsity"])
def test_a_leaf_may_be_another_layers_weight(kind: str) -> None:
    model = load(shared_weight())
    first = analyze(model).groups[0].name
    if kind == "channels":
        result = prune(model, channels=0.5, ignore=(first,), recover="none", round_to=1, measure=False)
    else:
        result = prune(model, sparsity=0.5, format="dense", measure=False)
    assert {n.op_type for n in result.model.proto.graph.node} == {"Conv", "Relu"}
    assert any("1 node computed" in note for note in result.report.notes)


def test_random_weights_and_old_files_are_not_folded() -> None:
    b = Builder()
    drawn = b.op("Dropout", b.param(b.he(8, 16)), np.array(0.5, np.float32), np.array(True))
    x = b.input("input", (1, 8))
    proto = b.model(b.matmul(b.relu(b.matmul(x, b.mul(drawn, b.param(b.normal(8, 16))))), b.param(b.he(16, 4))))
    assert not analyze(load(proto)).model.folds
    old = chain(weight_norm, opset=9, weights="constant")
    old.ir_version = 3
    assert not analyze(load(old)).model.folds
    assert prune(old, channels=0.5, recover="none", round_to=1, measure=False).report.verification is not None


def normed_twice(b: Builder, x: str) -> str:
    v = b.param(b.he(8, 16))
    return b.add(b.matmul(x, b.op("Div", v, b.reduce("L2", v, 0))), b.matmul(x, v))


def from_float16(b: Builder, x: str) -> str:
    return b.matmul(x, b.op("Cast", b.param(b.he(8, 16).astype(np.float16)), to=onnx.TensorProto.FLOAT))


def of_outer_sums(b: Builder, x: str) -> str:
    weight = b.add(b.param(b.he(8, 1)), b.param(b.he(1, 16)))
    return b.matmul(x, weight)


@pytest.mark.parametrize("product", [normed_twice, from_float16, of_outer_sums], ids=lambda f: f.__name__)
def test_nothing_is_folded_that_would_make_the_file_larger(product: Callable[..., str]) -> None:
    b = Builder()
    x = b.relu(b.matmul(b.input("input", (1, 6)), b.param(b.he(6, 8))))
    model = load(b.model(b.matmul(b.relu(product(b, x)), b.param(b.he(16, 4)))))
    analysis = analyze(model)
    assert analysis.model is model
    assert not model.folds
    norms = [p for p in analysis.pinned if "not folded" in p.reason]
    assert len(norms) == (product is normed_twice), "a norm over units that are cut would change the weight"


def test_a_fold_beyond_the_bound_stays_and_is_pinned() -> None:
    b = Builder()
    x = b.input("input", (1, 8))
    vast = b.add(b.add(b.param(np.ones((1200, 1, 1))), b.param(np.ones((1, 1200, 1)))), b.param(np.ones((1, 1, 1200))))
    weight = b.mul(b.param(b.he(8, 16)), b.reduce("Mean", vast, 0, 1, 2, keepdims=0))
    analysis = analyze(load(b.model(b.matmul(b.relu(b.matmul(x, weight)), b.param(b.he(16, 4))))))
    assert not analysis.model.folds
    assert any("too large" in p.reason for p in analysis.pinned)
