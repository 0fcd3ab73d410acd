"""Weights that are trained: the step against the gradients of the model, optimizers by hand, what tuning keeps and when
it gives the model back as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxprune
from conftest import ROOT, Cli
from models.files import parse
from models.nets import build, normal
from onnxprune.allocation.choose import Chooser, Subject
from onnxprune.calibration.augment import augmented, channels_first, mixed, usual
from onnxprune.calibration.calibration import calibrate
from onnxprune.calibration.read import read
from onnxprune.errors import OptionError, UserError
from onnxprune.evaluation.training_set import TrainingSet, training_set
from onnxprune.formats.codebook import zipped_bytes
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, load
from onnxprune.importance.criterion import Scores
from onnxprune.report import _tuned
from onnxprune.runtime.classes import probabilities
from onnxprune.runtime.session import Feeds, run
from onnxprune.training.losses import LOSSES, Objective, Target
from onnxprune.training.optimizers import OPTIMIZERS, Optimizer, follow
from onnxprune.training.options import amount
from onnxprune.training.quiz import MOST, Question, Quiz
from onnxprune.training.schedule import rate
from onnxprune.training.step import Layout, Step, part_of
from onnxprune.training.tune import HARM, LOOKING, RATE, SHARE, TRIAL, TRIALS, Run, Settings, tune
from onnxprune.training.weights import trainable, without_normalisations

DIGITS = load(ROOT / "models" / "digits_resnet_bn.onnx")
IMAGES = np.load(ROOT / "models" / "digits_calibration.npz")
PICTURES: Array = next(iter(IMAGES.values()))[:64].astype(np.float32)
NAME = next(i.name for i in DIGITS.proto.graph.input)
FEW = Settings(6, batch=16, threads=1, rate=1e-3)


SEEN, UNSEEN = training_set(DIGITS, PICTURES[:56]), training_set(DIGITS, PICTURES[56:])


def samples(indices: Sequence[int]) -> Feeds:
    return SEEN.feeds(indices)


def worse(model: Model, share: float = 0.6) -> Model:
    """A copy in which the smallest weights of every convolution are zero."""
    out = model.copy()
    for name, w in model.weights.items():
        if w.ndim == 4:
            out.weights[name] = np.where(np.abs(w) < np.quantile(np.abs(w), share), np.float32(0), w)
            out.weights[name].flags.writeable = False
    return out


# optimizers and schedule


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_their_formulas(name: str) -> None:
    rng = np.random.default_rng(0)
    w, keep = rng.standard_normal(5).astype(np.float32), np.array([True, True, False, True, True])
    expected, m, v = w.astype(np.float64), np.zeros(5), np.zeros(5)
    o, start = Optimizer(name, 5, momentum=0.8, decay=0.1), w.copy()
    for k in range(1, 4):
        g = rng.standard_normal(5).astype(np.float32)
        o.update(w, g, keep, 0.01)
        if name == "sgd":
            m = 0.8 * m + g + 0.1 * expected
            expected = expected - 0.01 * m
        else:
            x = g + (0.1 * expected if name == "adam" else 0)
            m, v = 0.9 * m + 0.1 * x, 0.999 * v + 0.001 * x * x
            if name == "adamw":
                expected = expected * (1 - 0.01 * 0.1)
            expected = expected - 0.01 * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
    assert np.allclose(w[keep], expected[keep], rtol=1e-5)
    assert w[2] == start[2]


def test_average() -> None:
    average, w = np.zeros(2, np.float32), np.array([1, 2], np.float32)
    follow(average, w, 0.25)
    assert average.tolist() == [0.25, 0.5]


def test_schedule_warms_up_and_ends_at_zero() -> None:
    rates = [rate(k, 100, 1.0) for k in range(100)]
    assert rates[0] < 0.1 and max(rates) > 0.9
    assert rates[-1] == pytest.approx(0) and all(a > b for a, b in pairwise(rates[20:]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("10", (10, "epochs")), (2.5, (2.5, "epochs")), ("500steps", (500, "steps")), ("5min", (300, "seconds")),
     ("1 step", (1, "steps")), (".5h", (1800, "seconds"))],
)  # fmt: skip
def test_amounts(given: Any, expected: tuple[float, str]) -> None:
    assert amount(given) == expected


@pytest.mark.parametrize("given", ["0", "-1", "much", "5 parsecs", "1.5steps", True, None])
def test_no_amounts(given: Any) -> None:
    with pytest.raises(ValueError, match="expected epochs, steps or a time above 0"):
        amount(given)


# the step


@pytest.mark.parametrize("loss", ["kl", "cross-entropy", "squared-error", "absolute-error"])
def test_what_is_held_out_need_not_fill_a_batch(loss: str) -> None:
    """A step whose batches have one shape, of scores of tokens, tells the loss of fewer samples and of more."""
    nodes = "y = MatMul(x, w)"
    model = load(build(nodes, "float[n,3,4]", "float[n,3,5]", w=normal(4, 5)))
    x = normal(9, 3, 4).astype(np.float32)
    y = (x @ model.weights["w"] + 0.1 * normal(9, 3, 5, seed=1)).astype(np.float32)
    target = Target("y", loss)
    given = np.arange(27).reshape(9, 3) % 5 if LOSSES[loss].labels else LOSSES[loss].target(y)
    step = Step(model, Objective((target,)), {"x": x[:4]}, fixed=True, threads=1)
    losses = [step.loss({"x": x[k]}, {target.keys[0]: given[k]}) for k in (slice(4), slice(4, 5), slice(9))]
    rest = step.loss({"x": x[5:]}, {target.keys[0]: given[5:]})
    assert losses[2] == pytest.approx((4 * losses[0] + losses[1] + 4 * rest) / 9, rel=1e-5)


def test_statistics_and_constants_are_not_trained() -> None:
    model = load(
        parse(
            "g (float[n,3,4,4] x) => (float[n,2,4,4] y) <float[2,3,1,1] w = {1,2,3,4,5,6}, float[2] s = {1,2}, "
            "float[2] b = {1,2}, float[2] m = {1,2}, float[2] v = {1,2}, float half = {0.5}, float[2,1,1] c = {3,4}> "
            "{ a = Mul(x, half) h = Conv(a, w) k = BatchNormalization(h, s, b, m, v) y = Add(k, c) }"
        )
    )
    assert trainable(model) == ["w", "s", "b", "c"]


def test_a_normalisation_on_the_weights_computes_the_same() -> None:
    plain = without_normalisations(DIGITS)
    assert not any(n.op_type == "BatchNormalization" for n in plain.proto.graph.node)
    feeds = samples(range(4))
    for a, b in zip(run(DIGITS, feeds).values(), run(plain, feeds).values(), strict=True):
        assert np.allclose(a, b, atol=1e-4)


def test_a_step_gives_the_gradients_of_the_model() -> None:
    output = DIGITS.proto.graph.output[0].name
    names, feeds = trainable(DIGITS), samples(range(8))
    step = Step(DIGITS, Objective((Target(output, "kl"),)), feeds, threads=1)
    logits = np.random.default_rng(0).standard_normal((8, 10))
    target = np.log(probabilities(logits)).astype(np.float32)
    loss = step.train(feeds, {output: target})

    def divergence(b: Any) -> str:
        from onnxprune.gradient.losses import kullback_leibler

        return kullback_leibler(b, output, b.input_like("t", output))

    found = run(load(onnxprune.gradients(DIGITS, divergence, names)), {**feeds, "t": target})
    assert loss == pytest.approx(step.loss(feeds, {output: target}), rel=1e-5)
    assert set(step.layout.places) == set(names)
    for name in names:
        g, scale = found[f"{name}_gradient"], np.abs(found[f"{name}_gradient"]).max()
        assert np.allclose(step.layout.view(step.gradients, name), g, atol=1e-4 * scale + 1e-6), name


def test_a_batch_in_parts_has_the_same_gradients_in_less_memory() -> None:
    output, feeds = DIGITS.proto.graph.output[0].name, samples(range(12))
    target = {output: np.log(probabilities(np.random.default_rng(0).standard_normal((12, 10)))).astype(np.float32)}
    parts = (part_of(DIGITS, feeds, [output], memory) for memory in (1, 3.5e6, math.inf))
    assert list(parts) == [1, 4, 12]
    kl = Objective((Target(output, "kl"),))
    whole, split = (Step(DIGITS, kl, feeds, memory=m, threads=1) for m in (math.inf, 3.5e6))
    assert (whole.part, split.part) == (12, 4)
    assert whole.train(feeds, target) == pytest.approx(split.train(feeds, target), rel=1e-5)
    assert np.allclose(whole.gradients, split.gradients, atol=1e-5 * np.abs(whole.gradients).max())


def test_a_layout_keeps_weights_apart() -> None:
    weights = {"a": np.arange(5, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
    layout = Layout.of(weights)
    flat = layout.filled(weights)
    assert all(np.array_equal(layout.view(flat, name), w) for name, w in weights.items())
    assert flat.ctypes.data % 64 == 0 and flat.sum() == 16


# what the file stores otherwise

STORED = {
    "float16": (
        "g (float16[n,3] x) => (float16[n,4] y) <float16[3,4] w = {0,0,0,0,0,0,0,0,0,0,0,0}, float16[4] b = "
        "{0,0,0,0}> { h = MatMul(x, w) k = Tanh(h) y = Add(k, b) }"
    ),
    "stored as float16": (
        "g (float[n,3] x) => (float[n,4] y) <float16[3,4] w = {0,0,0,0,0,0,0,0,0,0,0,0}> "
        "{ c = Cast<to = 1>(w) h = MatMul(x, c) y = Tanh(h) }"
    ),
    "int8 for every output, int32 bias": (
        "g (float[n,3] x) => (float[n,4] y) <int8[4,3] w = {1,3,40,5,-100,3,90,-5,-4,3,2,7}, "
        "float[4] s = {0.01,0.02,0.03,0.02}, int8[4] z = {3,3,-5,7}, int32[4] b = {100,200,300,-400}, "
        "float t = {0.001}> { q = DequantizeLinear<axis = 0>(w, s, z) c = DequantizeLinear(b, t) "
        "y = Gemm<transB = 1>(x, q, c) }"
    ),
    "int8 without a zero point, turned": (
        "g (float[n,3] x) => (float[n,4] y) <int8[4,3] w = {1,3,40,5,-100,3,90,0,-4,3,0,7}, float s = {0.02}> "
        "{ q = DequantizeLinear(w, s) c = Transpose(q) y = MatMul(x, c) }"
    ),
    "float32 that is quantized when it runs": (
        "g (float[n,3] x) => (float[n,2] y) <float[3,2] w = {1,3,4,5,-2,0}, float s = {0.1}, int8 z = {0}> "
        "{ q = QuantizeLinear(w, s, z) c = DequantizeLinear(q, s, z) y = MatMul(x, c) }"
    ),
    "values that many share": (
        "g (float[n,3] x) => (float[n,4] y) <uint8[3,4] i = {0,1,2,3,3,2,1,0,1,1,2,0}, float[4] t = {0,0.5,-1,2}> "
        "{ j = Cast<to = 6>(i) w = Gather(t, j) y = MatMul(x, w) }"
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", STORED.values(), ids=STORED)
def test_weights_are_trained_as_the_file_will_hold_them(text: str) -> None:
    model = load(parse(text))
    for name, w in model.weights.items():
        if w.dtype == np.float16:  # the text has integers alone for them
            model.weights[name] = np.linspace(-1, 1, w.size).round(1).astype(w.dtype).reshape(w.shape) % np.float16(0.7)
    kind = model.proto.graph.input[0].type.tensor_type.elem_type
    x = np.random.default_rng(0).standard_normal((32, 3)).astype(helper.tensor_dtype_to_np_dtype(kind))
    y = run(model, {"x": x})["y"].astype(np.float32)
    target = {"y": np.float32(0.7) * y + np.float32(0.1)}
    step = Step(model, Objective((Target("y", "squared-error"),)), {"x": x}, threads=1)
    optimizer, start = Optimizer("adam", step.layout.size), step.loss({"x": x}, target)
    assert start == pytest.approx(np.square(y - target["y"]).mean(), rel=1e-2)
    for _ in range(60):
        step.train({"x": x}, target)
        optimizer.update(step.weights, step.gradients, step.free, 0.01)
    out = step.written(model, step.weights)
    after = np.square(run(out, {"x": x})["y"].astype(np.float32) - target["y"]).mean()
    assert after < 0.8 * start
    assert step.loss({"x": x}, target) == pytest.approx(after, rel=0.02)  # what is trained is what is written
    assert out.proto == model.proto and {n: w.dtype for n, w in out.weights.items()} == {
        n: w.dtype for n, w in model.weights.items()
    }
    before, now = (weight_of(m) for m in (model, out))
    assert not now[before == 0].any() and (now != before).any()
    assert len(np.unique(now)) <= len(np.unique(before)) or "t" not in model.weights


def weight_of(model: Model) -> Array:
    """The weight as the product reads it: its other operand is the unit matrix, less what is added."""
    kind = model.proto.graph.input[0].type.tensor_type.elem_type
    unit = np.vstack([np.eye(3), np.zeros((1, 3))]).astype(helper.tensor_dtype_to_np_dtype(kind))
    nodes = [n for n in model.proto.graph.node if n.op_type in ("MatMul", "Gemm")]
    copy = model.copy()
    copy.proto.graph.output.append(onnx.ValueInfoProto(name=nodes[0].output[0]))
    y = np.asarray(run(copy, {"x": unit})[nodes[0].output[0]], np.float64)
    return np.round(y[:-1] - y[-1], 6)


# tuning


def test_tuning_keeps_zeros_and_lowers_the_loss_on_what_it_has_not_seen() -> None:
    pruned = worse(DIGITS)
    done = tune(DIGITS, pruned, SEEN, UNSEEN, replace(FEW, amount=12))
    assert 0 < done.outcome.best <= 12 == done.outcome.steps
    assert done.outcome.after < 0.9 * done.outcome.before
    for name, w in pruned.weights.items():
        if w.ndim == 4:
            assert not done.model.weights[name][w == 0].any()
            assert not np.array_equal(done.model.weights[name], w)
    assert [n.op_type for n in done.model.proto.graph.node] == [n.op_type for n in pruned.proto.graph.node]


def test_tuning_is_the_same_each_time_and_other_for_another_seed() -> None:
    pruned = worse(DIGITS)
    first, again, other = (tune(DIGITS, pruned, SEEN, UNSEEN, replace(FEW, seed=s)) for s in (1, 1, 2))
    assert first.outcome == again.outcome != other.outcome
    assert all(np.array_equal(w, again.model.weights[name]) for name, w in first.model.weights.items())


def test_a_model_that_is_not_better_stays_as_it_was() -> None:
    done = tune(DIGITS, DIGITS, SEEN, UNSEEN, replace(FEW, rate=0.3))
    assert done.model is DIGITS
    assert done.outcome.best == 0 and done.outcome.after == done.outcome.before < min(
        loss for _, loss in done.outcome.curve[1:]
    )


def test_what_keeps_kernels_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.training.step.missing", lambda options: "no compiler")
    done = tune(DIGITS, DIGITS, SEEN, UNSEEN, replace(FEW, amount=1))
    assert done.notes == ("tuning: a step takes longer, without the kernels of training: no compiler",)


def test_losses_that_are_no_numbers_halve_the_rate_and_then_name_the_way_out() -> None:
    with pytest.raises(UserError, match=r"does not converge: the gradient of .* a lower --learning-rate than 1e\+30"):
        tune(DIGITS, worse(DIGITS), SEEN, UNSEEN, replace(FEW, amount=40, rate=1e30))


def regression() -> Model:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Tanh", ["h"], ["k"]),
        helper.make_node("MatMul", ["k", "b"], ["y"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 6]) for name in "xy"]
    shapes = {"a": (6, 5), "b": (5, 6)}
    weights = [numpy_helper.from_array(rng.standard_normal(d).astype(np.float32), name) for name, d in shapes.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


def halved() -> tuple[Model, Model, TrainingSet, TrainingSet]:
    """A regression, the same with outputs of half the size, and samples of it."""
    model = regression()
    other = model.copy()
    other.weights["b"] = np.asarray(model.weights["b"] * np.float32(0.5))
    x = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    return model, other, training_set(model, x[:35]), training_set(model, x[35:])


def test_outputs_that_are_no_classes_are_compared_by_their_values() -> None:
    done = tune(*halved(), Settings(60, batch=8, rate=0.02, threads=1))
    assert done.outcome.before == pytest.approx(0.25, rel=0.5)  # half of every output is missing
    assert done.outcome.after < 0.05


@pytest.mark.parametrize("axes", [(2, 3), (1, 2)])
def test_pictures_are_flipped_and_shifted(axes: tuple[int, int]) -> None:
    x = np.arange(1, 4 * 64 + 1, dtype=np.float32).reshape((4, 1, 8, 8) if axes == (2, 3) else (4, 8, 8, 1))
    assert channels_first(x) is (axes == (2, 3))
    out = augmented(np.repeat(x, 8, 0), usual(x), np.random.default_rng(0)).reshape(32, 8, 8)
    flipped = {bool(one[4, 4] < one[4, 3]) for one in out}
    assert flipped == {True, False} and len({one.tobytes() for one in out}) > 24
    whole = out[:, 1:-1, 1:-1].astype(int)
    steps = np.abs(np.diff(whole, axis=2))
    assert (steps == 1).all()  # neighbours stay neighbours


@pytest.mark.parametrize("shape", [(5, 3, 128, 96), (5, 128, 96, 3)])
def test_large_pictures_are_cropped_at_many_scales_and_mixed(shape: tuple[int, ...]) -> None:
    assert usual(np.zeros(shape, np.float32)) == ("flip", "resized-crop", "mixup")
    axis = shape.index(128)
    ramp = np.broadcast_to(np.arange(128, dtype=np.float32).reshape([-1 if k == axis else 1 for k in range(4)]), shape)
    out = augmented(ramp, ["resized-crop"], np.random.default_rng(0))
    assert out.shape == shape and out.min() > -1e-3 and out.max() < 127.001
    inner = np.diff(np.take(out, range(4, 124), axis), axis=axis)
    assert ((inner > 0.5) & (inner < 1.01)).all()  # a part of the height, stretched: steps are smaller
    two, other, share = mixed(np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1), np.random.default_rng(0), 1.0)
    assert np.allclose(two.ravel(), share * np.arange(5) + (1 - share) * other) and (share >= 0.5).all()
    some = mixed(np.zeros((200, 1), np.float32), np.random.default_rng(0), 1.0, 0.5)[2]
    assert 60 < (some < 1).sum() < 140


def test_what_is_no_picture_is_left_alone() -> None:
    for x in (np.zeros((2, 3, 4), np.float32), np.zeros((2, 64, 8, 8), np.float32), np.zeros((2, 3, 8, 8), np.int64)):
        assert channels_first(x) is None and augmented(x, ["flip"], np.random.default_rng(0)) is x


# what judges it


def held_out(augment: Sequence[str], samples: TrainingSet = UNSEEN) -> Quiz:
    def answer(feeds: Feeds, labels: Array | None) -> tuple[Feeds, Feeds]:
        return feeds, run(DIGITS, feeds)

    return Quiz(samples, 5, answer, augment, 7)


def all_of(quiz: Quiz, which: Callable[[Question], bool] = lambda q: True) -> list[Array]:
    """Inputs and targets of the questions, in their order."""
    return [x for q in quiz if which(q) for of in (q.inputs, q.targets) for x in of.values()]


def test_pictures_that_training_changes_judge_it_in_copies() -> None:
    quiz, plain = held_out(("crop", "flip", "mixup")), held_out(("mixup",))
    assert (quiz.copies, quiz.count) == (MOST, MOST * UNSEEN.count) and (plain.copies, plain.count) == (1, UNSEEN.count)
    for a, b in ((quiz, quiz), (quiz, held_out(("crop", "flip")))):  # the same each time, and for all that is compared
        assert all(map(np.array_equal, all_of(a), all_of(b)))
    assert all(map(np.array_equal, all_of(quiz, lambda q: q.plain), all_of(plain)))
    for q in quiz:
        assert all(np.array_equal(y, run(DIGITS, q.inputs)[name]) for name, y in q.targets.items())
    assert len({x.tobytes() for q in quiz for x in q.inputs.values()}) == MOST * len(quiz.parts)


def test_as_many_pictures_judge_as_the_bound_says(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = all_of(held_out(("crop",)))
    monkeypatch.setattr("onnxprune.training.quiz.KEPT", 1e4)
    small = held_out(("crop",))
    assert all(map(np.array_equal, whole, all_of(small)))
    kept = sum(x.nbytes for q in small.kept.values() for of in (q.inputs, q.targets) for x in of.values())
    assert 0 < len(small.kept) < len(list(small)) and kept <= 1e4
    monkeypatch.setattr("onnxprune.training.quiz.PICTURES", 3 * UNSEEN.count + 1)
    assert held_out(("crop",)).copies == 3


def test_copies_that_judge_are_looked_at_seldom() -> None:
    done = tune(DIGITS, worse(DIGITS), SEEN, UNSEEN, replace(FEW, amount=12, augment=("crop",)))
    outcome = done.outcome
    assert outcome.copies == MOST and f"judged on {MOST} copies of {UNSEEN.count} samples held out" in _tuned(outcome)
    looked = outcome.copies * outcome.held_out * (len(outcome.curve) - 1)
    assert outcome.batch * 12 * LOOKING / 2 <= looked <= outcome.batch * 12 * LOOKING
    alone = tune(DIGITS, worse(DIGITS), SEEN, UNSEEN, replace(FEW, amount=12, augment=()))
    assert (
        alone.outcome.copies == 1 and len(alone.outcome.curve) == 13 and "loss on 8 held out" in _tuned(alone.outcome)
    )


# what cannot be tuned


def test_one_sample_is_too_few(call: Cli) -> None:
    done = call(f"{ROOT / 'models' / 'digits_mlp.onnx'} --channels 0.3 --tune 3 --calibration synthetic --samples 1")
    assert done.code == 2 and "two samples or more" in done.err


def test_what_is_held_out_no_stage_has_seen() -> None:
    read_from = read(PICTURES, DIGITS, option="--calibration")
    data = calibrate(read_from, DIGITS).set_aside()
    assert data.aside is not None and (data.samples.count, data.aside.count) == (56, 8)
    assert set(data.samples.chosen).isdisjoint(data.aside.chosen)
    with pytest.raises(OptionError, match="two samples or more"):
        calibrate(read_from.take([0]), DIGITS).set_aside()


def test_a_time_below_one_step() -> None:
    with pytest.raises(OptionError, match="less than one step"):
        tune(DIGITS, DIGITS, SEEN, UNSEEN, replace(FEW, amount=1e-9, unit="seconds"))


def test_a_model_without_weights_is_refused() -> None:
    text = "g (float[n,4] x) => (float[n,4] y) { y = Tanh(x) }"
    with pytest.raises(UserError, match="no weights of floating types"):
        Step(load(parse(text)), Objective((Target("y", "squared-error"),)), {"x": np.ones((2, 4), np.float32)})


def test_an_operator_without_a_rule_is_named() -> None:
    text = "g (float[n,4] x) => (float[n,4] y) <float[4] w = {1,2,3,4}> { h = Mul(x, w) y = com.microsoft.Trilu(h) }"
    x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    model = load(parse(text))
    some = training_set(model, x)
    with pytest.raises(UserError, match=r"cannot be trained: com.microsoft::Trilu \(.*\) has no rule"):
        tune(model, model, some, some, FEW)


# the command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--channels 0.3 --tune much", "expected epochs, steps or a time"),
        ("--tune 3", "nothing to do"),
        ("--channels 0.3 --tune 3 --dry-run", "--dry-run makes no model"),
        ("--channels 0.3 --optimizer sgd", "needs --tune"),
        ("--sparsity 0.5 --tune 3", "--tune 3 needs data"),
    ],
)
def test_refused(words: str, message: str, call: Cli) -> None:
    done = call(f"{ROOT / 'models' / 'digits_mlp.onnx'} {words}")
    assert done.code == 2 and message in done.err


def test_clusters_stay_clusters_and_the_file_is_measured_after(call: Cli, tmp_path: Any) -> None:
    np.savez(tmp_path / "x.npz", pixels=PICTURES[:, 0, ::2, ::2].reshape(64, 64))
    data = f"--calibration {tmp_path / 'x.npz'} --threads 1 --no-latency"
    base = f"{ROOT / 'models' / 'digits_mlp.onnx'} --sparsity 0.6 --cluster 4 {data}"
    for name, more in (("a", ""), ("b", "--tune 30steps --batch-size 16 --learning-rate 0.01")):
        done = call(f"{base} {more} -o {tmp_path / name}.onnx --json {tmp_path / name}.json")
        assert done.code == 0, done.err
    a, b = (load(tmp_path / f"{name}.onnx") for name in "ab")
    tables = [n for n in a.weights if n.endswith("_codebook")]
    assert tables and all(a.weights[n].shape == b.weights[n].shape for n in tables)
    assert any(not np.array_equal(a.weights[n], b.weights[n]) for n in tables)
    assert all(np.array_equal(a.weights[n] == 0, b.weights[n] == 0) and (a.weights[n] == 0).any() for n in tables)
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["tuning"]["after"] < report["tuning"]["before"]
    assert report["codebooks"]["zipped_after"] == zipped_bytes(b)


def test_zeros_are_stored_after_they_were_tuned(call: Cli, tmp_path: Any) -> None:
    np.savez(tmp_path / "x.npz", pixels=PICTURES[:, 0, ::2, ::2].reshape(64, 64))
    data = f"--calibration {tmp_path / 'x.npz'} --threads 1 --no-latency"
    done = call(
        f"{ROOT / 'models' / 'digits_mlp.onnx'} --sparsity 0.9 --format csr --recover none --tune 60steps "
        f"--batch-size 16 --learning-rate 0.001 {data} -o {tmp_path / 'a.onnx'} --json {tmp_path / 'a.json'}"
    )
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["tuning"]["best"] > 0 and report["sparsity"]["zeros"] >= 0.89 * report["sparsity"]["weights"]
    kinds = [n.op_type for n in onnx.load(tmp_path / "a.onnx").graph.node]
    assert any("Sparse" in k or "CSR" in k.upper() for k in kinds), kinds


def test_zeros_that_grow_are_tuned_after_every_step(call: Cli, tmp_path: Any) -> None:
    np.savez(tmp_path / "x.npz", pixels=PICTURES[:, 0, ::2, ::2].reshape(64, 64))
    base = f"{ROOT / 'models' / 'digits_mlp.onnx'} --calibration {tmp_path / 'x.npz'} --threads 1 --no-latency"
    words = f"{base} --format dense --sparsity 0.9 --solver magnitude --recover none --tune 20steps --batch-size 16"
    masks = []
    for name, more in (("one", ""), ("three", f"--steps 3 --save-plan {tmp_path / 'plan.json'}")):
        done = call(f"{words} --learning-rate 0.003 {more} -o {tmp_path / name}.onnx")
        assert done.code == 0, done.err
        masks.append({n: w == 0 for n, w in load(tmp_path / f"{name}.onnx").weights.items() if w.ndim == 2})
    assert "tuned 3 times, after every step of the zeros" in done.out
    one, three = masks  # what is smallest changes as the others learn
    assert sum(m.sum() for m in three.values()) == pytest.approx(0.9 * sum(m.size for m in three.values()), rel=0.01)
    assert any(not np.array_equal(one[n], three[n]) for n in one)
    again = call(f"{base} --plan {tmp_path / 'plan.json'} -o {tmp_path / 'again.onnx'}")
    assert again.code == 0, again.err
    first, second = (load(tmp_path / f"{name}.onnx").weights for name in ("three", "again"))
    assert all(np.array_equal(w, second[n]) for n, w in first.items())


def test_a_step_of_a_cut_looks_at_the_tuned_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Model] = []
    choose = Chooser._of

    def looked(self: Chooser, subject: Subject) -> Scores:
        seen.append(subject.analysis.model)
        return choose(self, subject)

    monkeypatch.setattr(Chooser, "_of", looked)
    mlp, pixels = ROOT / "models" / "digits_mlp.onnx", PICTURES[:, 0, ::2, ::2].reshape(64, 64)
    options: dict[str, Any] = {
        "channels": 0.4, "steps": 2, "calibration": pixels, "measure": False, "importance": "wanda",
        "allocate": "uniform",
    }  # fmt: skip
    assert onnxprune.prune(mlp, **options).report.tuning is None
    assert onnxprune.prune(mlp, **options, tune="8steps", learning_rate=0.01, batch_size=16).report.tuning is not None
    plain, tuned = ({n: w for n, w in m.weights.items() if w.ndim == 2} for m in (seen[1], seen[3]))  # of step 2
    assert any(w.shape != tuned[n].shape or not np.array_equal(w, tuned[n]) for n, w in plain.items())
    assert sum(w.size for w in tuned.values()) < sum(w.size for w in load(mlp).weights.values())


def test_a_cut_in_steps_is_made_of_the_original_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tuned between the steps only chooses, so that a plan replays without it, to the same bytes."""
    trained: list[int] = []
    training = Run.train

    def counted(self: Run, steps: int, *others: Any) -> int:
        trained.append(steps)
        return training(self, steps, *others)

    monkeypatch.setattr(Run, "train", counted)
    mlp, pixels = ROOT / "models" / "digits_mlp.onnx", PICTURES[:, 0, ::2, ::2].reshape(64, 64)
    data: dict[str, Any] = {"calibration": pixels, "measure": False, "threads": 1}
    first = onnxprune.prune(
        mlp, **data, channels=0.4, steps=2, importance="wanda", allocate="uniform", tune="8steps", learning_rate=0.01,
        batch_size=16,
    )  # fmt: skip
    assert trained == [8, 8]
    again = onnxprune.prune(mlp, **data, plan=first.plan)
    assert trained == [8, 8, 8] and first.report.tuning == again.report.tuning
    a, b = (onnxprune.load(r.model).weights for r in (first, again))
    assert a.keys() == b.keys() and all(np.array_equal(w, b[n]) for n, w in a.items())


def test_the_command_tunes_and_a_plan_replays_it(call: Cli, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = f"--calibration {ROOT / 'models' / 'digits_calibration.npz'} --samples 64 --threads 1 --no-latency"
    first = call(
        f"{ROOT / 'models' / 'digits_resnet_bn.onnx'} --sparsity 0.99 --recover none --tune 2 --batch-size 16 "
        f"--learning-rate 0.001 {data} -o a.onnx --save-plan p.json --json a.json"
    )
    assert first.code == 0 and "tuned: 7 steps of 16 samples, adam at 0.001" in first.out
    tuning = json.loads((tmp_path / "a.json").read_text())["tuning"]
    assert tuning["after"] < tuning["before"] and tuning["best"] > 0 and math.isfinite(tuning["after"])
    assert json.loads((tmp_path / "p.json").read_text())["settings"]["tune"] == {
        "steps": 7, "batch_size": 16, "learning_rate": 0.001, "optimizer": "adam", "momentum": 0.9,
        "weight_decay": 0.0, "schedule": "cosine", "warmup": None, "loss": "kl", "augment": ["crop", "flip"],
        "train": "",
    }  # fmt: skip
    again = call(f"{ROOT / 'models' / 'digits_resnet_bn.onnx'} --plan p.json {data} -o b.onnx")
    assert again.code == 0, again.err
    a, b = (onnx.load(tmp_path / f"{name}.onnx") for name in "ab")
    for model in (a, b):
        del model.metadata_props[:]
    assert a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)


def test_tuning_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, pixels = ROOT / "models" / "digits_mlp.onnx", PICTURES[:, 0, ::2, ::2].reshape(64, 64)
    options: dict[str, Any] = {
        "sparsity": 0.9, "solver": "magnitude", "recover": "none", "format": "dense", "calibration": pixels,
        "tune": "160steps", "batch_size": 16, "threads": 1, "measure": False, "steps": 2,
    }  # fmt: skip
    whole = onnxprune.prune(mlp, **options, cache=tmp_path / "a")
    assert len(list(tmp_path.glob("a/training-*.npz"))) == 2  # after each step of the zeros
    assert "the state of tuning" in str(whole.report.cache)
    steps, most, advance = list[int](), 190, Run.advance

    def counted(run: Run, count: int) -> float:
        steps.append(run.position)
        if len(steps) == most:
            raise RuntimeError("killed")
        return advance(run, count)

    monkeypatch.setattr(Run, "advance", counted)
    with pytest.raises(RuntimeError, match="killed"):
        onnxprune.prune(mlp, **options, cache=tmp_path / "b")
    steps, most = [], 0
    again = onnxprune.prune(mlp, **options, cache=tmp_path / "b")
    assert steps == list(range(28, 160))  # what was kept is not done again
    first, second = (onnxprune.to_proto(r.model).SerializeToString(deterministic=True) for r in (whole, again))
    assert first == second and whole.report.tuning == again.report.tuning


# the range test


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_rate_is_the_largest_that_does_little_harm(optimizer: str) -> None:
    settings = Settings(160, batch=8, threads=1, optimizer=optimizer)
    done = tune(*halved(), settings)
    tried, rate, before = dict(done.outcome.range_test), done.outcome.rate, done.outcome.before
    assert 2 <= len(tried) <= TRIALS and RATE[optimizer] in tried
    assert rate == max(r for r, loss in tried.items() if loss <= (1 + HARM) * before)
    given = tune(*halved(), replace(settings, rate=rate))  # the test leaves no trace
    assert given.outcome == replace(done.outcome, range_test=())
    assert all(np.array_equal(w, given.model.weights[n]) for n, w in done.model.weights.items())


def test_few_steps_are_worth_no_range_test() -> None:
    outcome = tune(*halved(), Settings(TRIAL * TRIALS * SHARE - 1, batch=8, threads=1)).outcome
    assert outcome.range_test == () and outcome.rate == RATE["adam"]


def test_rates_are_tried_downwards_where_the_first_does_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RATE, "adam", 10.0)
    outcome = tune(*halved(), Settings(160, batch=8, threads=1)).outcome
    rates = [r for r, _ in outcome.range_test]
    assert rates == [10, 3, 1, 0.3][: len(rates)] and len(rates) > 1 and outcome.rate == rates[-1]


def test_a_rate_that_makes_nothing_better_gives_way_to_the_next_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RATE, "adam", 3.0)
    monkeypatch.setattr("onnxprune.training.tune.HARM", math.inf)
    settings, said = Settings(160, batch=8, threads=1), list[str]()
    done = tune(*halved(), settings, tell=said.append)
    assert [r for r, _ in done.outcome.range_test] == [3, 9, 30, 90] and done.outcome.rate == 30
    assert "tuning: a third of the steps at a higher rate made it no better: begun again at 30" in done.notes
    assert [s for s in said if s.startswith("no better")] == [
        "no better after a third of the steps: from the first step again, at 30"
    ]
    given = tune(*halved(), replace(settings, rate=30))
    assert given.outcome == replace(done.outcome, range_test=()) and given.outcome.curve[-1][0] == 160


def test_what_is_better_for_a_while_and_then_worse_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By made-up losses: better at first and worse after a third of the steps, but at the next lower rate."""

    def measured(run: Run, weights: Array) -> tuple[float, list[float]]:
        late = run.position > 30 and not run.again
        return 1.0 + (0.5 if late else -0.1 if run.position else 0.0), []

    monkeypatch.setattr(Run, "measured", measured)
    done = tune(*halved(), Settings(160, batch=8, threads=1))
    assert done.outcome.rate < max(r for r, _ in done.outcome.range_test)
    assert {loss for at, loss in done.outcome.curve if at} == {0.9} and done.outcome.curve[-1][0] == 160
    given = tune(*halved(), Settings(160, batch=8, threads=1, rate=done.outcome.rate))
    assert all(np.array_equal(w, given.model.weights[n]) for n, w in done.model.weights.items())


def test_a_plan_replays_the_rate_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, pixels = ROOT / "models" / "digits_mlp.onnx", PICTURES[:, 0, ::2, ::2].reshape(64, 64)
    data: dict[str, Any] = {"calibration": pixels, "threads": 1, "measure": False}
    first = onnxprune.prune(mlp, channels=0.5, tune="160steps", batch_size=16, **data)
    found = first.report.tuning
    assert found is not None and found.range_test and f"adam at {found.rate:g} by a range test" in str(first.report)
    assert first.plan.settings["tune"]["learning_rate"] == found.rate
    again = onnxprune.prune(mlp, plan=first.plan, **data)
    assert again.report.tuning == replace(found, range_test=())
    a, b = (onnxprune.load(r.model).weights for r in (first, again))
    assert all(np.array_equal(w, b[n]) for n, w in a.items())
