"""Tests of class scores that are stretched to what makes their probabilities right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxprune
from models.nets import build, normal, run
from onnxprune.graph.io import load
from onnxprune.layers.layer import linear_layers
from onnxprune.layers.scores import gives_scores, stretch
from onnxprune.runtime.stream import Stream

Array = np.ndarray[Any, np.dtype[Any]]
WEIGHTS: dict[str, Any] = {"w": normal(24, 16), "b": normal(16), "v": 0.4 * normal(16, 5, seed=1), "c": normal(5)}
HIDDEN = "h = MatMul(x, w) k = Add(h, b) r = Relu(k) "
TAILS = {
    "scores": ("s = MatMul(r, v) y = Add(s, c)", True),
    "gemm": ("y = Gemm(r, v, c)", True),
    "softmax": ("s = MatMul(r, v) z = Add(s, c) y = Softmax<axis = 1>(z)", True),
    "sigmoid": ("s = MatMul(r, v) z = Add(s, c) y = Sigmoid(z)", False),
    "a second reader": ("s = MatMul(r, v) z = Add(s, c) t = Sigmoid(z) y = Mul(z, t)", False),
}


@pytest.mark.parametrize("name", TAILS)
def test_which_layer_gives_scores(name: str) -> None:
    tail, expected = TAILS[name]
    model = load(build(HIDDEN + tail, "float[n,24]", "float[n,5]", **WEIGHTS))
    stream = Stream(model, [{"x": normal(6, 24).astype(np.float32)}])
    found = {layer.initializer: gives_scores(stream, layer) for layer in linear_layers(model)}
    assert found == {"w": False, "v": expected}


def test_shrunk_scores_are_stretched_back() -> None:
    targets = 3 * normal(400, 10)
    assert stretch(0.5 * targets, targets) == pytest.approx(2, rel=1e-3)
    assert stretch(2 * targets, targets) == pytest.approx(1, rel=1e-3)  # never shrunk
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
    """Outputs of the shape of the inputs are no scores."""
    monkeypatch.setattr("onnxprune.layers.scores.stretch", lambda scores, targets: 1 / 0)
    proto = build(HIDDEN + "y = MatMul(r, u)", "float[n,24]", "float[n,24]", **WEIGHTS, u=normal(16, 24))
    onnxprune.prune(proto, calibration=normal(60, 24).astype(np.float32), sparsity=0.5, measure=False)
