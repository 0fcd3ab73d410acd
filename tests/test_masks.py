"""Masks that are learned while training: a row per rule; tiles, heads, and what was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, Cli
from onnxprune.errors import OptionError
from onnxprune.evaluation.training_set import training_set
from onnxprune.graph.io import load
from onnxprune.pipeline.masks import finished
from onnxprune.pipeline.thin import size
from onnxprune.runtime.session import run
from onnxprune.structure.groups import analyze
from onnxprune.training.masking import MASKING
from onnxprune.training.trainer import Trainer

MODELS = ROOT / "models"
MLP, DIGITS = MODELS / "digits_mlp.onnx", MODELS / "digits_mlp.npz"
VIT, PICTURES = MODELS / "digits_vit.onnx", MODELS / "digits_heldout.npz"
NET = load(MLP)
DATA = training_set(NET, DIGITS).take(range(128))
PLACES = [n for n, w in NET.weights.items() if w.ndim > 1]
HOW: dict[str, dict[str, Any]] = {
    "movement": {"sparsity": 0.8}, "soft-movement": {"mask_penalty": 30.0, "mask_rate": 0.2},
    "magnitude": {"sparsity": 0.8}, "gradual-magnitude": {"sparsity": 0.8}, "edge-popup": {"sparsity": 0.5},
}  # fmt: skip


def trainer(method: str, steps: int = 40, data: Any = DATA, **options: Any) -> Trainer:
    return Trainer(MLP, data, steps=f"{steps}steps", init=1, threads=1, learn_masks=method, **HOW[method] | options)


def zeros(model: Any) -> dict[str, Any]:
    return {n: model.weights[n] == 0 for n in PLACES}


def share(model: Any) -> float:
    return float(np.concatenate([z.ravel() for z in zeros(model).values()]).mean())


def test_every_rule_has_a_row() -> None:
    assert HOW.keys() == MASKING.keys()


@pytest.mark.parametrize("method", MASKING)
def test_a_mask_is_learned(method: str) -> None:
    t = trainer(method)
    before = t.evaluate()["loss"]
    t.step(10)
    first, steps = zeros(t.export("weights")), 10
    while not t.run.masks.frozen and steps < 40:  # type: ignore[union-attr]
        t.step()
        steps += 1
    moved = zeros(t.export("weights"))
    assert any((z != first[n]).any() for n, z in moved.items()), "the mask follows the scores"
    t.train()
    assert all(np.array_equal(z, moved[n]) for n, z in zeros(t.export("weights")).items()), "and is frozen at last"
    best, counts = t.export(), t.masks
    assert all((z == moved[n]).all() for n, z in zeros(best).items()), "averages have its zeros"
    assert t.evaluate("best")["loss"] < before
    left, count = (sum(row[k] for row in counts.values()) for k in ("left", "size"))
    assert left == round((1 - share(best)) * count)
    if "sparsity" in HOW[method]:
        assert left == pytest.approx((1 - HOW[method]["sparsity"]) * count, abs=2)
    else:
        assert 0.02 < left / count < 0.9
    back = sum(row["came_back"] for row in counts.values())
    assert (back > 0) == MASKING[method].returns


def test_weights_are_never_trained_by_edge_popup() -> None:
    t = trainer("edge-popup", pattern="2:4", sparsity=None)
    masks, view = t.run.masks, t.run.step.layout.view
    assert masks is not None
    start = {n: view(masks.raw, n).copy() for n in PLACES}
    t.train()
    out = t.export()
    for name in PLACES:
        w, z = out.weights[name], zeros(out)[name]
        assert np.array_equal(w[~z], start[name][~z]) and len(np.unique(np.abs(w[~z]))) == 1
        assert (z.reshape(len(z), -1, 4).sum(2) == 2).all(), "two of every four"
    assert all(not w.any() for n, w in out.weights.items() if w.ndim == 1), "biases are as they were: zero"


@pytest.mark.parametrize("method", ["movement", "soft-movement"])
def test_tiles_share_a_score(method: str) -> None:
    t = trainer(method, pattern="block:2x2")
    t.train()
    for z in zeros(t.export()).values():
        tiles = z.reshape(len(z) // 2, 2, -1, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
        assert (tiles.all(1) | ~tiles.any(1)).all() and 0 < z.mean() < 1


@pytest.mark.parametrize("method", MASKING)
def test_a_resumed_training_gives_the_same_bytes(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": DATA, "steps": 20, "cache": tmp_path / "cache"}
    whole = trainer(method, steps=20)
    whole.train()
    first = trainer(method, **options)

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    first.train(stop)
    assert "before all zeros" in str(first.run.masks.said()) or method == "edge-popup"  # type: ignore[union-attr]
    again = trainer(method, **options)
    assert again.resumed and 0 < again.position <= 9
    again.train()
    assert again.masks == whole.masks and again.evaluate("best") == whole.evaluate("best")
    assert all(np.array_equal(w, whole.export().weights[n]) for n, w in again.export().weights.items())


def test_losses_that_are_no_numbers_are_undone() -> None:
    t = trainer("movement")
    t.step(20)
    masks, before = t.run.masks, t.run.before.copy()
    assert masks is not None
    feeds, targets = t.run.draw(0)
    t.run.take({n: x * np.nan for n, x in feeds.items()}, targets, 1e-3)
    assert np.array_equal(t.run.step.weights, before) and t.run.halved == 1
    assert not t.run.step.weights[~masks.open].any() and np.array_equal(masks.raw[masks.open], before[masks.open])
    assert np.isfinite(t.step(3))


def test_heads_and_channels_are_cut_and_equal_the_masked_model() -> None:
    amount: dict[str, Any] = {"heads": 0.5, "channels": 0.25}
    t = Trainer(VIT, PICTURES, steps="5steps", batch_size=8, threads=1, learn_masks="movement", **amount)
    t.train()
    feeds = t.unseen.feeds(range(8))
    small, said = finished(t.run.masks, t.export(), feeds, 0)
    assert said is not None
    parts = {row["name"]: (row["left"], row["size"]) for row in said["parts"]}
    for of, part in (("heads", 0.5), ("MatMul", 0.75)):
        left, count = (sum(v[k] for n, v in parts.items() if n.endswith("heads") == (of == "heads")) for k in (0, 1))
        assert left == round(part * count)
    made = {g.name: g.size for g in analyze(small).groups}
    assert all(made[n] == left for n, (left, _) in parts.items() if left > 1), "they are gone, and not zero alone"
    masked, cut, whole = (run(m, feeds)["logits"] for m in (t.export(), small, load(VIT)))
    assert np.allclose(masked, cut, atol=1e-4) and not np.allclose(masked, whole, atol=1e-2)


REFUSED = [
    ("--learn-masks movement", "say how much goes"),
    ("--learn-masks movement --sparsity 0", "say how much goes"),
    ("--learn-masks movement --sparsity 0.5 --mask-penalty 3", "--mask-penalty 3 has no effect"),
    ("--learn-masks magnitude --sparsity 0.5 --mask-rate 0.1", "--mask-rate 0.1 has no effect"),
    ("--learn-masks edge-popup --sparsity 0.5", "needs --init SEED"),
    ("--learn-masks edge-popup --sparsity 0.5 --init 0 --learning-rate 0.1", "weights are not trained"),
    ("--learn-masks edge-popup --sparsity 0.5 --init 0 --sparsity-schedule linear", "from the first step on"),
    ("--learn-masks soft-movement", "needs --mask-penalty"),
    ("--learn-masks soft-movement --mask-penalty 1 --sparsity 0.5", "--sparsity 0.5 has no effect"),
    ("--learn-masks soft-movement --mask-penalty 1 --pattern 2:4", "--pattern 2:4 has no effect"),
    ("--learn-masks soft-movement --mask-penalty 1 --channels 0.5", "give auto"),
    ("--learn-masks movement --channels auto", "give a part"),
    ("--learn-masks movement --channels 0.5 --sparsity 0.5", "leave it out with --channels"),
    ("--learn-masks movement --sparsity 0.5 --round-to 4", "single weights have no width"),
    ("--learn-masks movement --heads 0.5", "there are no heads"),
    ("--learn-masks movement --sparsity 0.5 --sparsity-allocate lamp", "choose global, uniform, erk"),
    ("--learn-masks movement --sparsity 0.5 --ignore *", "no layer can be masked"),
    ("--learn-masks movement --sparsity 0.5 --init 0 --at-init snip", "one or the other"),
    ("--mask-rate 0.1", "needs --learn-masks"),
    ("--heads 0.5", "needs --learn-masks"),
    ("--sparsity-schedule cubic", "needs --learn-masks"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_is_refused(words: str, message: str, call: Cli, tmp_path: Path) -> None:
    done = call(f"train {MLP} --train {DIGITS} {words} --tune 4steps --threads 1 -o {tmp_path / 'out.onnx'}")
    assert done.code == 2 and message in done.err and not list(tmp_path.iterdir())


def test_what_a_mask_makes_meaningless() -> None:
    t = trainer("movement", steps=4)
    for call in (t.settle, lambda: t.begin(NET), lambda: t.mask({})):
        with pytest.raises(OptionError, match="no meaning with learn_masks"):
            call()
    with pytest.raises(OptionError, match="needs learn_masks="):
        Trainer(MLP, DATA, sparsity=0.5)


AMOUNTS = [("--sparsity 0.9", "10.00% of the weights are left"), ("--channels 0.5", "50.00% of the channels are left")]


@pytest.mark.parametrize(("amount", "said"), AMOUNTS)
def test_the_command(amount: str, said: str, call: Cli, tmp_path: Path) -> None:
    words = f"--train {DIGITS} --learn-masks movement {amount} --tune 12steps --threads 1"
    done = call(f"train {MLP} {words} -o {tmp_path / 'out.onnx'} --json {tmp_path / 'r.json'}")
    assert done.code == 0, done.err
    masks, out = json.loads((tmp_path / "r.json").read_text())["masks"], load(tmp_path / "out.onnx")
    assert f"masks learned by movement: {said}" in done.out
    left = 1 - share(out) if masks["of"] == "weights" else sum(out.weights[n].shape[0] for n in PLACES[:3]) / 544
    assert masks["left"] == pytest.approx(left, abs=1e-9) and masks["parameters"] == size(out) / size(NET)
