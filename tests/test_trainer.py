"""Training alone: new weights, labels, state that goes back, what a stopped run goes on with, rows of losses, schedules
and augmentations, and the command."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from conftest import ROOT, Cli
from models.files import parse
from onnxprune.calibration.augment import AUGMENTATIONS, augmented, mixed
from onnxprune.errors import UserError
from onnxprune.evaluation.training_set import TrainingSet, training_set
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import load
from onnxprune.runtime.session import run
from onnxprune.training.initial import initial
from onnxprune.training.losses import LOSSES
from onnxprune.training.schedule import SCHEDULES, rate
from onnxprune.training.trainer import Trainer
from onnxprune.training.tune import Run

MODELS = ROOT / "models"
MLP = load(MODELS / "digits_mlp.onnx")
DATA = training_set(MLP, MODELS / "digits_mlp.npz")
RESNET = load(MODELS / "digits_resnet_bn.onnx")
PICTURES = training_set(RESNET, MODELS / "digits_heldout.npz").take(list(range(48)))


def trainer(steps: str = "12steps", data: TrainingSet = DATA, **options: Any) -> Trainer:
    return Trainer(MLP, data, steps=steps, threads=1, **{"init": 1, **options})


def weights(t: Trainer) -> bytes:
    return t.run.step.weights.tobytes()


# from scratch


def test_digits_from_scratch() -> None:
    t = trainer("90steps")
    assert t.evaluate()["accuracy"] < 0.3
    t.train()
    assert t.evaluate("best")["accuracy"] > 0.8 and t.position == 90
    with np.load(MODELS / "digits_mlp.npz") as z:
        assert onnxprune.evaluate(t.export(), {"pixels": z["pixels"]}, labels=z["labels"]).value > 0.85


def test_what_is_held_out_need_not_fill_its_batches() -> None:
    t = Trainer(MLP, DATA, steps="2steps", batch_size=9, threads=1)
    assert t.unseen.count % 9
    every = range(t.unseen.count)
    scores = next(iter(run(MLP, t.unseen.feeds(every)).values()))
    share = float((scores.argmax(1) == t.unseen.labels_of(every)).mean())
    assert t.evaluate()["accuracy"] == pytest.approx(share) == t.evaluate()["accuracy"]


def test_statistics_of_normalisations_follow_those_of_the_batches() -> None:
    t = Trainer(RESNET, PICTURES, steps="12steps", init=0, batch_size=16, threads=1)
    names = list(t.run.step.statistics)
    assert names and t.run.step.layout.view(t.run.step.weights, names[0]).max() == 0  # means of a new network
    before = t.run.step.loss(*t.run.draw(0))
    for _ in range(12):
        t.step()
    written = t.export("weights")
    for name in names:
        assert np.array_equal(written.weights[name], t.run.step.layout.view(t.run.step.weights, name))
        assert np.abs(written.weights[name]).max() > 0
    assert t.run.step.loss(*t.run.draw(0)) < before


def test_new_weights_are_kaiming() -> None:
    fresh = initial(RESNET, 3)
    assert all(
        np.isclose(w.std(), (2 / np.prod(w.shape[1:])) ** 0.5, rtol=0.2)
        for w in fresh.model.weights.values() if w.ndim == 4 and w.size > 1000
    )  # fmt: skip
    norms = [n for n in RESNET.proto.graph.node if n.op_type == "BatchNormalization"]
    for n in norms:
        for name, value in zip(n.input[1:], (1, 0, 0, 1), strict=True):
            assert name not in fresh.model.weights or (fresh.model.weights[name] == value).all()  # else it is tied
    again, other = initial(RESNET, 3).model.weights, initial(RESNET, 4).model.weights
    name = next(name for name, w in again.items() if w.ndim == 4)
    assert np.array_equal(again[name], fresh.model.weights[name]) and not np.array_equal(again[name], other[name])


def test_a_deep_network_whose_normalisations_are_folded_says_so() -> None:
    assert any("may not train" in n for n in initial(load(MODELS / "digits_resnet_folded.onnx"), 0).notes)
    assert not initial(RESNET, 0).notes


# state


def test_the_same_seed_gives_the_same_bytes() -> None:
    runs = [trainer(seed=s) for s in (0, 0, 1)]
    for t in runs:
        t.train()
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_state_goes_back(optimizer: str) -> None:
    t = trainer(optimizer=optimizer)
    t.step(4)
    state = t.state()
    t.step(8)
    end = weights(t)
    t.restore(state)
    assert t.position == 4 and weights(t) != end
    t.step(8)
    assert weights(t) == end
    with pytest.raises(UserError, match="of another training"):
        trainer(optimizer="adamw" if optimizer == "sgd" else "sgd").restore(state)


def test_masks_stay() -> None:
    t = trainer()
    name = next(name for name, w in t.weights.items() if w.ndim == 2)
    kept: Array = np.asarray(np.random.default_rng(0).random(t.weights[name].shape) < 0.5)
    t.mask({name: kept})
    t.train()
    for which in ("best", "average", "weights"):
        assert not t.export(which).weights[name][~kept].any() and t.export(which).weights[name][kept].all()


def test_masks_stay_where_training_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By made-up losses, which grow at the first rate."""
    monkeypatch.setattr(Run, "measured", lambda run, weights: (1.0 + run.position * (not run.again), []))
    t = trainer("160steps", init=None)
    t.step()
    name = next(name for name, w in t.weights.items() if w.ndim == 2)
    kept: Array = np.asarray(np.random.default_rng(0).random(t.weights[name].shape) < 0.5)
    t.mask({name: kept})
    t.train()
    assert t.run.again and t.position == 160
    for which in ("best", "average", "weights"):
        assert not t.export(which).weights[name][~kept].any() and t.export(which).weights[name][kept].all()


def test_what_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole, cut = trainer(cache=tmp_path / "a"), trainer(cache=tmp_path / "b")
    whole.train()

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    cut.train(stop)
    assert cut.position == 7 and "stopped after 7 of 12 steps: the best so far is kept" in cut.run.notes
    resumed = trainer(cache=tmp_path / "b")
    assert resumed.resumed and 0 < resumed.position <= 7
    resumed.train()
    assert weights(resumed) == weights(whole) and resumed.run.curve == whole.run.curve
    assert not trainer(cache=tmp_path / "b", seed=5).resumed


# rows


@pytest.mark.parametrize("name", [*LOSSES, "kl:0.5,cross-entropy:2"])
def test_every_loss_falls(name: str) -> None:
    t = trainer(original=MLP, loss=name, steps="24steps")
    t.train()
    assert t.run.curve[-1][1] < 0.9 * t.run.curve[0][1]


def test_losses_of_the_user(tmp_path: Path) -> None:
    text = "g (float[n,10] scores, int64[n] labels) => (float loss) { loss = SoftmaxCrossEntropyLoss(scores, labels) }"
    onnx.save(parse(text), tmp_path / "loss.onnx")

    def own(b: Any, outputs: Any, labels: str) -> str:
        from onnxprune.gradient.losses import cross_entropy

        return cross_entropy(b, outputs[0], labels)

    plain, file, function = (trainer(**o) for o in ({}, {"loss": tmp_path / "loss.onnx"}, {"loss": own}))
    for t in (plain, file, function):
        t.step(3)
    for t in (file, function):
        assert np.allclose(t.run.step.weights, plain.run.step.weights, atol=1e-5)
    assert function.run.objective.description == "function own"


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    rates = [rate(k, 100, 1.0, name, 0) for k in range(100)]
    ends = {"cosine": 0.0, "linear": 0.0, "step": 0.01, "constant": 1.0}
    assert rates[0] == 1 and rates[-1] == pytest.approx(ends[name], abs=1e-9)
    assert all(a >= b for a, b in pairwise(rates))
    assert rate(0, 100, 1.0, name, 9) == pytest.approx(0.1)


def dots() -> Array:
    x = np.zeros((64, 3, 16, 16), np.float32)
    x[:, :, 4, 5] = 1
    return x


@pytest.mark.parametrize("name", [n for n, row in AUGMENTATIONS.items() if not row.mixes])
def test_augmentations(name: str) -> None:
    x = dots()
    out, again = (augmented(x, [name], np.random.default_rng(0)) for _ in range(2))
    assert out.shape == x.shape and out.dtype == x.dtype and np.array_equal(out, again)
    places = {int(one[0].argmax()) for one in out}
    assert len(places) == 2 if name == "flip" else len(places) > 8
    assert np.array_equal(augmented(np.ones_like(x), [name], np.random.default_rng(0))[:, :, 4:12, 4:12],
                          np.ones((64, 3, 8, 8), np.float32)) or name == "resized-crop"  # fmt: skip


def test_mixtures_and_their_labels() -> None:
    x = np.eye(8, dtype=np.float32)
    out, other, share = mixed(x, np.random.default_rng(0))
    assert np.allclose(out, share[:, None] * x + (1 - share[:, None]) * x[other]) and (share >= 0.5).all()
    t = Trainer(RESNET, PICTURES, steps="2steps", augment="mixup", batch_size=16, threads=1)
    assert t.run.objective.terms[0].mixed and np.isfinite(t.step(2))


# what does not go


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "kl:x"}, "loss"),
        ({"data": DATA.samples, "init": None}, "there are no labels"),
        ({"augment": "flip"}, "no pictures go in"),
        ({"steps": "much"}, "epochs, steps or a time"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    options = dict(options)
    data = options.pop("data", DATA)
    if data is not DATA:
        with np.load(MODELS / "digits_mlp.npz") as z:
            data = {"pixels": z["pixels"][:20]}
    with pytest.raises((UserError, ValueError), match=message):
        trainer(data=data, **options)
    with pytest.raises(TypeError, match="takes no option 'rat'"):
        trainer(rat=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--train SRC"),
        ("--train DATA --momentum 0.5", "needs --optimizer sgd"),
        ("--train DATA -o MODEL", "is the input"),
        ("--train DATA --metric top1", "--metric needs --evaluate"),
        ("--train DATA --train-labels none.npy", "--train-labels none.npy: cannot be read"),
        ("--train DATA --loss magic", "unknown; choose one of cross-entropy"),
    ],
)
def test_the_command_refuses(words: str, message: str, call: Cli, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes((MODELS / "digits_mlp.onnx").read_bytes())
    done = call(f"train {model} {words.replace('DATA', str(MODELS / 'digits_mlp.npz')).replace('MODEL', str(model))}")
    assert done.code == 2 and message in done.err and "\n" not in done.err.strip()
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_the_command(call: Cli, tmp_path: Path) -> None:
    data, out = MODELS / "digits_mlp.npz", tmp_path / "out.onnx"
    words = f"train {MODELS / 'digits_mlp.onnx'} --train {data} --evaluate {data} --init 0 --tune 20steps --threads 1"
    done = call(f"{words} -o {out} --json {tmp_path / 'r.json'}")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "r.json").read_text())
    top1, loss = report["evaluation"]
    assert top1["after"] > top1["before"] and loss["after"] < loss["before"]
    assert onnxprune.evaluate(out, data).value == top1["after"]
    assert f"top1: {top1['before']:.4f} -> {top1['after']:.4f}" in done.out and f"written: {out}" in done.out
