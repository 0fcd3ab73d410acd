"""Tests of class scores that are stretched to what makes their probabilities right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxprune
from models.nets import build, normal, run
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model, load
from onnxprune.layers.layer import linear_layers
from onnxprune.layers.scores import gives_scores, stretch
from onnxprune.runtime.stream import Stream
from onnxprune.sparsity.solve import jobs_of

Array = np.ndarray[Any, np.dtype[Any]]
WEIGHTS: dict[str, Any] = {"w": normal(24, 16), "b": normal(16), "v": 0.4 * normal(16, 5, seed=1), "c": normal(5)}
HIDDEN = "h = MatMul(x, w) k = Add(h, b) r = Relu(k) "
TAILS = {
    "scores": ("s = MatMul(r, v) y = Add(s, c)", True),
    "gemm": ("y = Gemm(r, v, c)", True),
    "softmax": ("s = MatMul(r, v) z = Add(s, c) y = Softmax<axis = 1>(z)", True),
    "sigmoid": ("s = MatMul(r, v) z = Add(s, c) y = Sigmoid(z)", False),
    "a second reader": ("s = MatMul(r, v) z = Add(s, c) t = Sigmoid(z) y = Mul(z, t)", False),
    "a bias behind a view": ("s = MatMul(r, v) f = Flatten(s) y = Add(f, c)", False),
    "scaled": ("s = MatMul(r, v) z = Mul(s, two) y = Add(z, c)", False),
    "masked classes": ("s = MatMul(r, v) y = Add(s, gone)", False),
    "other rows": ("s = MatMul(r, v) y = Reshape(s, wide)", False),
}


@pytest.mark.parametrize("name", TAILS)
def test_which_layer_gives_scores(name: str) -> None:
    tail, expected = TAILS[name]
    more: dict[str, Any] = {
        "two": np.float32(2),
        "gone": np.array([0, 1, -np.inf, 0, 0], np.float32),
        "wide": np.array([-1, 15]),
    }
    model = load(build(HIDDEN + tail, "float[n,24]", "float[n,k]", **WEIGHTS, **more))
    assert scores_of(model, normal(6, 24)) == {"w": False, "v": expected}


PICTURES: dict[str, Any] = {"v": normal(6, 8, 1, 1), "c": normal(6), "u": normal(6, 4, 1, 1)}


def test_grouped_layers_and_single_outputs_give_no_scores() -> None:
    """The rows of each group are scores of other classes; those of one output are none."""
    head = "h = Conv(x, v, c) r = Relu(h) s = {} y = Flatten(s)"
    for conv, shape in (("Conv<group = 2>(r, t)", (10, 3, 1, 1)), ("Conv(r, t)", (1, 6, 1, 1))):
        model = load(build(head.format(conv), "float[n,8,1,1]", "float[n,k]", **PICTURES, t=normal(*shape)))
        assert not any(scores_of(model, normal(6, 8, 1, 1)).values())


def scores_of(model: Model, x: Array) -> dict[str, bool]:
    """Weight -> whether its layer gives the class scores."""
    layers = linear_layers(model)
    jobs, _ = jobs_of(model, Edit(model), layers, dict.fromkeys((layer.initializer for layer in layers), 1))
    stream = Stream(model, [{"x": x.astype(np.float32)}])
    return {job.layer.initializer: gives_scores(stream, job.tasks[0]) for job in jobs}


def test_shrunk_scores_are_stretched_back() -> None:
    targets = 3 * normal(400, 10)
    assert stretch(0.5 * targets, targets) == pytest.approx(2, rel=1e-3)
    assert stretch(2 * targets, targets) == pytest.approx(1, rel=1e-3)  # never shrunk
    assert stretch(0.5 * normal(100, 10), np.full((100, 10), np.nan)) == 1
    unlike = stretch(normal(400, 10, seed=1), targets)
    assert unlike == pytest.approx(1, rel=1e-2)  # what knows nothing stays even


@pytest.mark.parametrize("tail", [n for n, (_, scores) in TAILS.items() if scores])
@pytest.mark.parametrize("options", [{"channels": 0.5, "round_to": 1}, {"sparsity": 0.7}], ids=["cut", "zeros"])
def test_weights_and_bias_are_stretched(options: dict[str, Any], tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = build(HIDDEN + TAILS[tail][0], "float[n,24]", "float[n,5]", **WEIGHTS)
    x = {"x": normal(120, 24, seed=2).astype(np.float32)}

    def scores(by: float) -> Array:
        monkeypatch.setattr("onnxprune.layers.scores.stretch", lambda scores, targets: by)
        result = onnxprune.prune(proto, calibration=x, measure=False, **options)
        assert result.model is not None
        y = run(onnxprune.to_proto(result.model), x)[0].astype(np.float64)
        return np.log(y) if tail == "softmax" else y

    once, twice = scores(1), scores(2)
    if tail == "softmax":  # up to a constant of each sample
        once, twice = (y - y.mean(1, keepdims=True) for y in (once, twice))
    assert np.allclose(twice, 2 * once, rtol=1e-3, atol=1e-3)


def test_a_regression_is_not_stretched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of the shape of the inputs are no scores; those of another shape are taken for some."""
    asked = list[int]()

    def one(scores: Array, targets: Array) -> float:
        asked.append(len(scores))
        return 1.0

    monkeypatch.setattr("onnxprune.layers.scores.stretch", one)
    for width, times in ((24, 0), (20, 2)):
        proto = build(HIDDEN + "y = MatMul(r, u)", "float[n,24]", f"float[n,{width}]", **WEIGHTS, u=normal(16, width))
        kinds: list[dict[str, Any]] = [{"sparsity": 0.5}, {"channels": 0.5, "round_to": 1}]
        for options in kinds:
            onnxprune.prune(proto, calibration=normal(120, 24).astype(np.float32), measure=False, **options)
        assert asked == [30] * times
