"""Metrics by hand, bounds by simulation, and figures of language models per token."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import onnxprune
from kinds import kl, proto, samples
from models.forms.form import BATCH, TIME, VOCAB
from models.nets import Array, build, normal, run
from onnxprune.calibration.read import read
from onnxprune.errors import OptionError
from onnxprune.evaluation.changes import NONE, changes
from onnxprune.evaluation.damage import damage
from onnxprune.evaluation.metrics import (
    CONFIDENCE,
    METRICS,
    Evaluator,
    Score,
    default_metric,
    drop,
)
from onnxprune.graph.io import load
from onnxprune.runtime.classes import IGNORED

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


def by_token(shift: int = 0) -> ModelProto:
    """Class scores of every token, by the token alone; shift: of the tokens' rows."""
    table = np.roll(normal(VOCAB, VOCAB), shift, 0)
    model: ModelProto = build("y = Gather<axis = 0>(table, x)", "int64[n,t]", f"float[n,t,{VOCAB}]", table=table)
    return model


def ragged() -> tuple[list[dict[str, Array]], list[Array], list[Array]]:
    """Sequences of two and of three tokens in turns, labels, and the class scores of each."""
    rng = np.random.default_rng(7)
    source = [{"x": rng.integers(0, VOCAB, (1, 2 + k % 2))} for k in range(6)]
    scores = [run(by_token(), feeds)[0].astype(np.float64)[0] for feeds in source]
    return source, [rng.integers(0, VOCAB, len(s)) for s in scores], scores


def test_sequences_of_different_lengths_are_scored_one_by_one() -> None:
    source, labels, scores = ragged()
    labels[1][0] = IGNORED
    hits = [(s.argmax(-1) == y)[y != IGNORED].mean() for s, y in zip(scores, labels, strict=True)]
    model = load(by_token())
    evaluator = Evaluator(model, read(source, model, preprocess=None, labels=labels, option="data"), "top1")
    found = evaluator(model)
    assert found.each is not None and found.each == pytest.approx(hits)
    assert found.answers is not None and found.answers.labels is not None
    assert found.answers.classes.tolist() == [[*s.argmax(-1), *[NONE] * (3 - len(s))] for s in scores]
    assert found.answers.labels.tolist() == [[*y, *[IGNORED] * (3 - len(y))] for y in labels]
    loss = onnxprune.evaluate(by_token(), source, labels=labels)
    assert loss.metric == "loss" and loss.samples == 6


def test_answers_of_sequences_of_different_lengths_are_compared() -> None:
    source, _, scores = ragged()
    model = load(by_token())
    evaluator = Evaluator(model, read(source, model, preprocess=None, option="data"), "agreement")
    before, after = evaluator(model), evaluator(load(by_token(shift=1)))
    answers = [run(by_token(shift=1), feeds)[0][0].argmax(-1) for feeds in source]
    same = [(s.argmax(-1) == a).mean() for s, a in zip(scores, answers, strict=True)]
    assert before.value == 1 and after.each == pytest.approx(same) and after.value < 1
    changed = changes(before.answers, after.answers)
    assert changed is not None and changed.answers == sum(len(s) for s in scores)
    assert changed.count == sum(int((s.argmax(-1) != a).sum()) for s, a in zip(scores, answers, strict=True))


@pytest.mark.parametrize("lengths", [(3, 4, 3, 4, 2), (3, 4, 3, 4, 1)])
def test_squared_errors_go_by_the_variance_of_all_samples(lengths: tuple[int, ...]) -> None:
    def model(factor: float) -> ModelProto:
        net: ModelProto = build("y = Mul(x, f)", "float[n,t,1]", "float[n,t,1]", f=np.float32(factor))
        return net

    source = [{"x": normal(1, t, 1, seed=k).astype(np.float32)} for k, t in enumerate(lengths)]
    found = onnxprune.evaluate(model(1.1), source, metric="mse", against=model(1))
    every = np.concatenate([s["x"].ravel() for s in source])
    each = [np.square(0.1 * s["x"]).mean() / every.var() for s in source]
    assert found.each == pytest.approx(each, rel=1e-4)


def test_outputs_whose_size_depends_on_the_data_disturb_nothing() -> None:
    def model(shift: float) -> ModelProto:
        nodes = "h = MatMul(x, w) y = Add(h, s) r = Relu(y) z = NonZero(r)"
        net: ModelProto = build(nodes, "float[n,6]", "float[n,5]", w=normal(6, 5), s=np.full(5, shift, np.float32))
        net.graph.output.append(helper.make_tensor_value_info("z", TensorProto.INT64, [2, None]))
        return net

    source = [{"x": normal(1, 6, seed=k).astype(np.float32)} for k in range(7)]
    found = onnxprune.evaluate(model(0.4), source, metric="agreement", against=model(0))
    assert found.samples == 7 and found.value == 1


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


SCORES = np.array(
    [[9, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 5, 0, 0, 9], [2, 1, 0, 0, 0, 0, 0]], np.float32
)
LABELS = np.array([0, 2, 3, 1])
OTHER = SCORES[:, ::-1].copy()
OTHER[3] = SCORES[3] + 1


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("top1", [1, 0, 0, 0]),
        ("top5", [1, 1, 1, 1]),
        ("agreement", [0, 0, 0, 1]),
        ("mse", np.square(SCORES - OTHER).mean(1) / OTHER.astype(float).var()),
    ],
)
def test_metrics_by_hand(metric: str, expected: Any) -> None:
    more = [{"y": float(OTHER.astype(float).var())}] if metric == "mse" else []
    found = METRICS[metric].per_sample({"y": SCORES}, LABELS, {"y": OTHER}, "y", *more)
    np.testing.assert_allclose(found, np.asarray(expected, float), rtol=1e-6)


def test_top5_misses_the_sixth() -> None:
    found = METRICS["top5"].per_sample({"y": SCORES}, np.array([5, 1, 6, 0]), {"y": SCORES}, "y")
    np.testing.assert_array_equal(found, [0, 0, 1, 1])


USELESS = {"no numbers": np.full((4, 7), np.nan, np.float32), "all alike": np.zeros((4, 7), np.float32)}


@pytest.mark.parametrize("name", USELESS)
@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_a_model_that_says_nothing_hits_nothing_but_by_chance(metric: str, name: str) -> None:
    found = METRICS[metric].per_sample({"y": USELESS[name]}, np.array([6, 5, 6, 5]), {"y": SCORES}, "y")
    assert not found.any()


def linear(w: Array) -> ModelProto:
    return build("y = MatMul(x, w)", f"float[n,{w.shape[0]}]", f"float[n,{w.shape[1]}]", w=w)


def judge(proto: ModelProto, source: Any, metric: str, **options: Any) -> Evaluator:
    model = load(proto)
    return Evaluator(model, read(source, model, option="--evaluate", **options), metric)


X = normal(50, 4, seed=1).astype(np.float32)
W = normal(4, 6)


def test_an_evaluator_compares_with_labels_and_with_the_original() -> None:
    original, other = linear(W), linear(W + 0.3 * normal(4, 6, seed=2))
    best, now = (run(m, X)[0].argmax(1) for m in (original, other))
    labels = np.where(np.arange(50) % 5, best, (best + 1) % 6)
    assert judge(original, X, "top1", labels=labels)(load(original)).value == pytest.approx(0.8)
    top1, agreement = judge(original, X, "top1", labels=labels), judge(original, X, "agreement")
    assert top1(load(other)).value == pytest.approx((now == labels).mean())
    assert agreement(load(other)).value == pytest.approx((now == best).mean())
    assert agreement(load(original)).value == 1
    score = top1(load(other))
    assert score.samples == 50 and score.standard_error == pytest.approx((now == labels).std(ddof=1) / 50**0.5)


def test_what_a_model_is_judged_by() -> None:
    classes, image = linear(W), build("y = Relu(x)", "float[n,3,4,4]", "float[n,3,4,4]")
    assert default_metric(load(classes), read(X, load(classes))) == "agreement"
    labelled = read({"x": X, "labels": np.zeros(50, int)}, load(classes))
    assert default_metric(load(classes), labelled) == "top1"
    assert default_metric(load(image), read(normal(3, 3, 4, 4).astype(np.float32), load(image))) == "mse"


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        ("top1", None, "no labels"),
        ("top1", np.full(50, 6), "labels go from 6 to 6, the model has 6 classes"),
        ("top5", np.full(50, -1), "labels: expected whole numbers that count classes from 0, found -1"),
    ],
)
def test_labels_that_do_not_fit(metric: str, labels: Array | None, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        judge(linear(W), X, metric, labels=labels)


def test_a_metric_of_classes_needs_classes() -> None:
    image = build("y = Relu(x)", "float[n,3,4,4]", "float[n,3,4,4]")
    with pytest.raises(OptionError, match="use mse"):
        judge(image, normal(3, 3, 4, 4).astype(np.float32), "agreement")


@pytest.mark.parametrize(("background", "classes"), [(1, 1001), (0, 1001), (0, 1000)])
def test_labels_of_models_with_a_background_class(background: int, classes: int) -> None:
    w = normal(4, classes)
    best = (X @ w.astype(np.float32)).argmax(1)
    keep = (best >= background) & (best < 1000)
    found = judge(linear(w), X[keep], "top1", labels=best[keep] - background)
    assert found.offset == background
    assert found(load(linear(w))).value == 1


HITS = {  # probabilities that a hit is lost and gained, samples
    "few changes": (0.02, 0.01, 200),
    "losses alone": (0.03, 0.0, 300),
    "few samples": (0.05, 0.02, 40),
}


@pytest.mark.parametrize("name", HITS)
def test_bounds_of_shares_cover_the_truth(name: str) -> None:
    lost, gained, n = HITS[name]
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        u = rng.random(n)
        before = (u < 0.75).astype(float)  # losses happen among hits
        after = np.where(u < lost, 0.0, np.where(u > 1 - gained, 1.0, before))
        bound = drop(Score("top1", 0, before), Score("top1", 0, after)).bound
        assert bound is not None
        covered.append(bound >= lost - gained)
    assert np.mean(covered) >= 0.93


def test_bounds_of_means_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for better in [1, -1] * 1000:
        before = rng.normal(size=80)
        after = before - better * (0.3 + rng.normal(size=80))
        d = drop(Score("m", before.mean(), before, better), Score("m", after.mean(), after, better))
        covered.append(d.bound is not None and d.bound >= 0.3)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_a_drop_by_hand() -> None:
    a, b = np.array([1.0, 1, 1, 0, 1, 0, 1, 1]), np.array([1.0, 0, 1, 1, 0, 0, 1, 1])
    d = drop(Score("top1", a.mean(), a), Score("top1", b.mean(), b))
    worse, better, z = 3 / 10, 2 / 10, 1.6448536
    assert d.drop == pytest.approx(1 / 8) and d.samples == 8
    assert d.bound == pytest.approx(worse - better + z * ((worse + better - (worse - better) ** 2) / 10) ** 0.5)
    assert json.loads(json.dumps(d.to_dict()))["confidence"] == CONFIDENCE
    part = drop(Score("top1", a.mean(), a), Score("top1", b.mean(), b), np.array([1, 4]))
    assert part.drop == 1 and part.samples == 2
    alone = drop(Score("f", 0.9, None), Score("f", 0.8, None))
    assert alone.drop == pytest.approx(0.1) and alone.bound is None and alone.samples is None
