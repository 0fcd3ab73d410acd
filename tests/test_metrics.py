"""Figures of language models: loss and labels per token, damage per position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import onnxprune
from kinds import kl, proto, samples
from models.forms.form import BATCH, TIME, VOCAB
from models.nets import Array, run
from onnxprune import OptionError, Score
from onnxprune.calibration.read import read
from onnxprune.evaluation.damage import damage
from onnxprune.evaluation.metrics import Evaluator
from onnxprune.graph.io import load

SPOKEN, LENGTH = "llama_dynamic", 2  # of `feeds`


def scored(labels: Array, metric: str) -> Score:
    model = load(proto(SPOKEN))
    found = read(samples(SPOKEN, 8), model, preprocess=None, option="data")
    return Evaluator(model, replace(found, labels=labels), metric)(model)


def test_the_loss_is_that_of_the_tokens() -> None:
    inputs, rng = samples(SPOKEN, 8), np.random.default_rng(5)
    labels = rng.integers(0, VOCAB, (8, LENGTH))
    labels[:, 0] = -100
    logits = run(proto(SPOKEN), inputs)[0].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(logs, np.where(labels < 0, 0, labels)[..., None], -1)[..., 0]
    found = scored(labels, "loss")
    assert (found.metric, found.better, found.samples) == ("loss", -1, 8)
    assert found.value == pytest.approx(-own[labels >= 0].mean(), rel=1e-5)
    hits = (logits.argmax(-1) == labels)[labels >= 0]
    assert scored(labels, "top1").value == pytest.approx(hits.mean())
    labels[labels >= 0] = logits.argmax(-1)[labels >= 0]
    assert scored(labels, "top1").value == 1


@pytest.mark.parametrize("apart", [False, True])
def test_labels_of_tokens_can_be_given(apart: bool) -> None:
    inputs, labels = samples(SPOKEN, 8), np.zeros((8, LENGTH), int)
    source = inputs if apart else {**inputs, "labels": labels}
    found = onnxprune.evaluate(proto(SPOKEN), source, labels=labels if apart else None)
    assert found.metric == "loss"


@pytest.mark.parametrize("shape", [(8,), (8, LENGTH + 1), (8, LENGTH, 2)])
def test_labels_that_do_not_count_the_tokens(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"for 16 rows of class scores; give one label per sample, or per token"):
        scored(np.zeros(shape, int), "loss")


def test_labels_outside_the_vocabulary() -> None:
    with pytest.raises(OptionError, match="labels go from 20 to 20"):
        scored(np.full((8, LENGTH), VOCAB), "loss")


def test_the_damage_of_a_language_model_is_per_position() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, BATCH, TIME, VOCAB)).astype(np.float32)
    model = load(proto(SPOKEN))
    name = model.proto.graph.output[0].name
    measure = damage(model, [{name: a}], [name], BATCH)
    assert measure.classes == name
    assert measure({name: a}) == pytest.approx(0, abs=1e-12)
    assert measure({name: b}) == pytest.approx(kl(a, b), rel=1e-6)
    one = a.copy()
    one[0, 0] = b[0, 0]  # a twelfth of the positions
    assert measure({name: one}) == pytest.approx(kl(a[0, 0], b[0, 0]) / (BATCH * TIME), rel=1e-6)
