"""Linear mode connectivity: lines between models, hidden units that are matched, children of one training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import onnxprune
from conftest import ROOT
from models.nets import build, normal
from models.topologies import TOPOLOGIES
from onnxprune.cli.app import run
from onnxprune.errors import OptionError
from onnxprune.experiments.align import align
from onnxprune.experiments.connect import between, children, difference
from onnxprune.graph.io import Model, load, save
from onnxprune.pipeline.connect import draw
from onnxprune.sparsity.permute import Places, rearranged
from onnxprune.structure.groups import analyze

MLP, DIGITS = ROOT / "models" / "digits_mlp.onnx", ROOT / "models" / "digits_mlp.npz"
HELD_OUT = ROOT / "models" / "digits_heldout.npz"


def shuffled(model: Model, seed: int = 0) -> Model:
    """The model with all hidden units, also heads and what is inside them, in a random order that is exact."""
    analysis = analyze(model)
    places, rng, moved = Places(analysis), np.random.default_rng(seed), np.arange(analysis.coupling.size)
    for group in (g for g in analysis.groups if g.slices):
        order, classes = np.arange(group.size), places.classes(group)
        for c in np.unique(classes):
            own = np.flatnonzero(classes == c)
            order[own] = rng.permutation(own)
        new = places.move(group, order)
        if not places.problem(new):
            moved = moved[new]
    return rearranged(analysis, moved)


def same_weights(a: Model, b: Model) -> bool:
    return all(np.array_equal(w, b.weights[name]) for name, w in a.weights.items())


# the line


def test_points_lie_between_the_weights() -> None:
    a, b = load(MLP), shuffled(load(MLP))
    middle = between(a, b, 0.25)
    assert between(a, b, 0) is a and between(a, b, 1) is b
    for name, w in a.weights.items():
        np.testing.assert_allclose(middle.weights[name], 0.75 * w + 0.25 * b.weights[name], rtol=1e-6, atol=1e-7)


def test_the_line_has_the_scores_of_its_models() -> None:
    a, b = load(MLP), shuffled(load(MLP))
    report = onnxprune.connect(a, b, evaluate=DIGITS, points=3)
    scores = {}
    for metric in ("top1", "loss"):
        scores[metric] = [onnxprune.evaluate(between(a, b, x), DIGITS, metric=metric).value for x in (0, 0.5, 1)]
        assert [p[metric] for p in report["points"]] == pytest.approx(scores[metric], rel=1e-5)
    one, two = scores["loss"], scores["top1"]
    assert report["barriers"]["loss"] == pytest.approx(one[1] - (one[0] + one[2]) / 2, rel=1e-5)
    assert report["barriers"]["top1"] == pytest.approx((two[0] + two[2]) / 2 - two[1], abs=1e-6)
    assert report["barriers"]["top1"] > 0.1 and report["metrics"] == {"top1": "share", "loss": "nats"}


def test_statistics_are_estimated_anew_at_every_point() -> None:
    a, data = load(ROOT / "models" / "digits_resnet_bn.onnx"), dict(np.load(HELD_OUT))
    few = {name: x[:60] for name, x in data.items()}
    plain, estimated = (
        onnxprune.connect(a, shuffled(a), evaluate=few, points=3, metric="loss", train=x) for x in (None, few)
    )
    assert estimated["barriers"]["loss"] < 0.7 * plain["barriers"]["loss"]
    assert "looks worse" in plain["notes"][0] and "estimated anew" in estimated["notes"][0]


# hidden units


@pytest.mark.parametrize("name", ["mlp", "gru", "resnet_bn", "mobile_se", "vit"])
def test_a_permuted_copy_is_recovered(name: str) -> None:
    """Channels, a recurrent state, statistics, depthwise convolutions, residual streams, heads and what is in them."""
    model = load(ROOT / "models" / f"digits_{name}.onnx")
    other = shuffled(model)
    assert not same_weights(model, other)
    found = align(model, other)
    assert same_weights(model, found.model) and not found.outcome.kept
    assert found.outcome.before < 0.7 and found.outcome.after == pytest.approx(1)


@pytest.mark.parametrize(
    "name", ["shufflenet_v1", "grouped_conv_uneven", "densenet", "batchnorm_by_hand", "weight_normalised"]
)
def test_what_is_aligned_computes_the_same(name: str) -> None:
    """`align` raises where it does not."""
    a, b = load(TOPOLOGIES[name]()), load(TOPOLOGIES[name]())
    rng = np.random.default_rng(1)
    for key, w in b.weights.items():
        if w.dtype == np.float32 and w.ndim > 1:
            b.weights[key] = rng.permutation(w.ravel()).reshape(w.shape)
    found = align(a, b)
    assert found.outcome.moved and found.outcome.after > found.outcome.before
    assert found.outcome.difference < 1e-4


def test_units_stay_in_the_block_of_a_grouped_convolution() -> None:
    nodes = "a = Conv(x, wa) r = Relu(a) b = Conv<group=2>(r, wb) y = Conv(b, wc)"
    a = load(build(nodes, wa=normal(8, 3, 1, 1), wb=normal(8, 4, 1, 1, seed=1), wc=normal(2, 8, 1, 1, seed=2)))
    other = shuffled(a, 3)
    assert same_weights(a, align(a, other).model)
    assert not same_weights(a, other)


def test_an_order_that_would_change_what_is_not_trained_is_named() -> None:
    nodes = "a = Conv(x, wa) r = Where(even, a, zero) y = Conv(r, wc)"
    weights: dict[str, Any] = {
        "wa": normal(6, 3, 1, 1),
        "wc": normal(2, 6, 1, 1, seed=1),
        "zero": np.zeros(1, np.float32),
    }
    a = load(build(nodes, even=(np.arange(6) % 2 == 0).reshape(6, 1, 1), **weights))
    b = a.copy()
    b.weights["wa"], b.weights["wc"] = a.weights["wa"][::-1], a.weights["wc"][:, ::-1]
    found = align(a, b)
    assert list(found.outcome.kept.values()) == ["even, which is not trained, would change"]
    assert same_weights(b, found.model)


# children


def trainer(**more: Any) -> onnxprune.Trainer:
    return onnxprune.Trainer(MLP, DIGITS, steps="40steps", init=0, learning_rate=0.01, threads=1, **more)


def test_children_begin_alike_and_see_the_samples_in_other_orders() -> None:
    t = trainer()
    t.step(10)
    start = t.state()
    one, two = children(t, 0)
    assert t.position == 10 and all(np.array_equal(v, t.state()[k]) for k, v in start.items())
    assert not same_weights(one, two)
    again, _ = children(t, 0)
    assert same_weights(one, again)
    t.reorder(1000)  # that of the first child
    t.step(30)
    assert same_weights(one, t.export("weights"))
    t.restore(start)  # the order is part of the state
    t.step(30)
    plain = trainer()
    plain.step(40)
    assert same_weights(t.export("weights"), plain.export("weights"))


def test_barriers_vanish_from_some_step_on() -> None:
    asked: dict[str, Any] = {
        "train": DIGITS, "spawn": "0,75%", "tune": "120steps", "init": 3, "learning_rate": 0.02,
        "batch_size": 16, "points": 5, "threads": 1,
    }  # fmt: skip
    report = onnxprune.connect(MLP, **asked)
    assert [(r["step"], r["seed"]) for r in report["runs"]] == [(0, 0), (90, 0)]
    first, last = (row["loss"] for row in report["means"])
    assert first["barrier"] > 0.05 and first["barrier"] > 3 * last["barrier"]
    ends = [report["runs"][0]["points"][k]["loss"] for k in (0, -1)]
    assert first["ends"] == pytest.approx(sum(ends) / 2) and ends[0] != ends[1]
    again = onnxprune.connect(MLP, **asked)
    assert again["means"] == report["means"]
    both = onnxprune.connect(MLP, **{**asked, "spawn": 0, "align": True, "seeds": 2})
    assert [r["seed"] for r in both["runs"]] == [0, 1] and both["means"][0]["loss"]["deviation"] > 0
    assert both["runs"][0]["aligned"]["cosine_after"] > 0.5  # children of one parent have their units in one order


def test_alignment_lowers_the_barrier_of_networks_that_were_trained_apart() -> None:
    models = []
    for seed in (1, 2):
        t = onnxprune.Trainer(MLP, DIGITS, steps="200steps", init=seed, seed=seed, threads=1)
        t.step(200)
        models.append(t.export("weights"))
    apart, close = (onnxprune.connect(*models, evaluate=DIGITS, points=5, align=x) for x in (False, True))
    assert close["barriers"]["loss"] < 0.7 * apart["barriers"]["loss"]
    assert close["points"][-1] == pytest.approx(apart["points"][-1], rel=1e-4)


# the command


def test_the_command_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "b.onnx"
    save(shuffled(load(MLP)), other)
    chart, data = tmp_path / "curve.svg", tmp_path / "report.json"
    words = ["connect", str(MLP), str(other), "--evaluate", str(DIGITS), "--points", "3"]
    assert run([*words, "--align", "-o", str(chart), "--json", str(data)]) == 0
    said = capsys.readouterr().out
    assert "barrier of top1: 0.0000 share" in said and "cosine of the weights" in said and str(chart) in said
    report = json.loads(data.read_text())
    assert report["barriers"]["loss"] == 0 and report["aligned"]["units_moved"]
    marks = [g for g in ElementTree.parse(chart).iter() if g.get("class") == "point"]
    assert len(marks) == 2 * (3 + 1)  # two charts, each with three points and the key
    assert draw(report) == chart.read_text()


def test_the_command_trains_children(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "curve.svg"
    words = ["connect", str(MLP), "--train", str(DIGITS), "--spawn", "0,2", "--tune", "4steps", "--points", "3"]
    assert run([*words, "--seeds", "2", "-o", str(chart)]) == 0
    said = capsys.readouterr().out
    assert "spawned at step" in said and "4 steps in all, 2 seeds" in said and "note" not in said
    assert "mean and deviation of 2 seeds" in chart.read_text()


REFUSED: dict[str, tuple[list[str], str]] = {
    "one model": ([], "one model has no line"),
    "no data": (["B"], "--evaluate SRC"),
    "two to spawn from": (["B", "--spawn", "0", "--train", str(DIGITS)], "leave B.onnx out"),
    "nothing to train on": (["--spawn", "0"], "--spawn needs --train"),
    "a step too late": (["--spawn", "0,5", "--train", str(DIGITS), "--tune", "5steps"], "--spawn 5: a training has 5"),
    "no step": (["--spawn", "soon", "--train", str(DIGITS)], "--spawn soon: expected"),
    "a time": (["--spawn", "0", "--train", str(DIGITS), "--tune", "1min"], "give epochs or steps"),
    "training of none": (["B", "--evaluate", str(DIGITS), "--optimizer", "sgd"], "--optimizer sgd needs --spawn"),
    "statistics of none": (["B", "--evaluate", str(DIGITS), "--train", str(DIGITS)], "no BatchNormalization"),
    "two points": (["B", "--evaluate", str(DIGITS), "--points", "2"], "3 or more"),
    "labels of nothing": (["--spawn", "0", "--train", str(DIGITS), "--labels", str(DIGITS)], "--labels needs"),
    "another graph": (["GRU", "--evaluate", str(DIGITS)], "node 0 is Gemm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, why = REFUSED[case]
    named = {"B": str(MLP), "GRU": str(ROOT / "models" / "digits_gru.onnx")}
    chart = tmp_path / "curve.svg"
    assert run(["connect", str(MLP), *(named.get(w, w) for w in words), "-o", str(chart)]) == 2
    captured = capsys.readouterr()
    assert why in captured.err and len(captured.err.splitlines()) == 1 and not captured.out
    assert not list(tmp_path.iterdir())


def test_missing_labels_are_named() -> None:
    x = np.load(DIGITS)["pixels"]
    with pytest.raises(OptionError, match="labels"):
        onnxprune.connect(MLP, train=x, spawn=0)
    with pytest.raises(OptionError, match="labels"):
        onnxprune.connect(MLP, MLP, evaluate=x, metric="top1")


def _renamed(model: Model) -> None:
    model.proto.graph.node[1].output[0] = "other"
    model.proto.graph.node[2].input[0] = "other"


def _attribute(model: Model) -> None:
    model.proto.graph.node[0].attribute[0].f = 0.5


def _shape(model: Model) -> None:
    name = model.proto.graph.node[0].input[1]
    model.weights[name] = model.weights[name][:-1]


def _shorter(model: Model) -> None:
    del model.proto.graph.node[-1]


CHANGES: dict[str, tuple[Callable[[Model], None], str]] = {
    "a name": (_renamed, "node 1, .*: its outputs have other names in B, other"),
    "an attribute": (_attribute, "node 0, Gemm .*: the attribute alpha differs"),
    "a shape": (_shape, r"initializer .*weight is float32 \[256, 64\] in A and float32 \[255, 64\] in B"),
    "a node": (_shorter, "node .* is in A alone"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_first_is_named(change: str) -> None:
    a, b = load(MLP), load(MLP)
    assert difference(a, b) == ""
    edit, said = CHANGES[change]
    edit(b)
    with pytest.raises(OptionError, match=said):
        onnxprune.connect(a, b, evaluate=DIGITS)
