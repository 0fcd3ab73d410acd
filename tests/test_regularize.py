"""Sparse learning before a cut: penalties against differences, what they do to units, what a plan replays, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from conftest import ROOT, Cli
from models.small import grouped, residual_pictures
from onnxprune import OptionError, Plan
from onnxprune.evaluation.training_set import training_set
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, load
from onnxprune.structure.analysis import Analysis
from onnxprune.structure.groups import analyze
from onnxprune.training.form import form_of
from onnxprune.training.outcome import SparseLearning
from onnxprune.training.regularize import REGULARIZERS, Penalty, Units, penalised, units_of
from onnxprune.training.step import Layout
from onnxprune.training.tune import Pressure, Settings, learn

PICTURES = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
LABELS = np.arange(40) % 5
DIGITS = np.load(ROOT / "models" / "digits_heldout.npz")
NETS: dict[str, tuple[Any, Array, Array]] = {  # a network, its samples and their labels
    "channels": (residual_pictures(), PICTURES, LABELS),
    "heads": (ROOT / "models" / "digits_vit.onnx", DIGITS["image"][:48], DIGITS["labels"][:48]),
}


def every(analysis: Analysis, kind: str) -> dict[str, Any]:
    """Half of the units of every group of a kind."""
    return {g.name: np.arange(g.size) % 2 == 0 for g in analysis.of_kind(kind)}


def on(name: str, model: Model, units: Units, strength: float) -> tuple[Penalty, Array]:
    """A penalty without a session, and the weights that it starts from."""
    form = form_of(model)
    layout = Layout.of({n: form.model.weights[n] for n in form.places})
    weights = layout.filled(form.model.weights)
    step: Any = SimpleNamespace(form=form, trained=list(form.places), layout=layout, weights=weights)
    return Penalty(name, strength, units, step), weights


def learned(name: str, kind: str, strength: float, **options: Any) -> SparseLearning:
    source, x, labels = NETS[kind]
    analysis = analyze(load(source))
    units = penalised(analysis, analysis.of_kind(kind), name, every(analysis, kind))
    seen, unseen = training_set(analysis.model, x, labels).split()
    settings = Settings(8, batch=16, threads=1, rate=5e-3)
    pressure = Pressure(name, strength, units)
    return learn(analysis.model, analysis.model, seen, unseen, settings, pressure, **options).outcome


# penalties


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_pull_is_the_gradient_of_its_penalty(name: str) -> None:
    analysis = analyze(load(residual_pictures()))
    chosen, strength = every(analysis, "channels") | every(analysis, "layers"), 0.03
    penalty, weights = on(name, analysis.model, penalised(analysis, analysis.groups, name, chosen), strength)
    rng = np.random.default_rng(1)
    weights += (0.1 * rng.standard_normal(weights.size)).astype(np.float32)  # not where it began
    before, gradients = weights.copy(), np.zeros_like(weights)
    penalty(weights, gradients, 2, 9)
    pace = penalty.row.pace(penalty, 2, 9)  # either the optimizer gets the gradient, or weights go along it
    assert gradients.any() != (weights != before).any()
    pull = gradients.astype(np.float64) + (before - weights).astype(np.float64) / pace
    kink = name != "growing"

    def value(w: Array) -> float:
        return penalty.value(w) if kink else penalty.row.total(penalty, w)

    for _ in range(3):
        v = rng.standard_normal(weights.size).astype(np.float32)
        h = 1e-3
        measured = (value(before + h * v) - value(before - h * v)) / (2 * h)
        assert measured == pytest.approx(float(pull @ v), abs=3e-3 * float(np.linalg.norm(pull)))


def test_a_growing_penalty_takes_nearly_all() -> None:
    analysis = analyze(load(residual_pictures()))
    chosen = every(analysis, "channels") | every(analysis, "layers")
    penalty, weights = on("growing", analysis.model, penalised(analysis, analysis.groups, "growing", chosen), 7.0)
    for steps in (4, 50, 1000):
        parts = np.array([penalty.row.pace(penalty, k, steps) for k in range(steps)])
        assert (np.diff(parts) >= 0).all() and np.prod(1 - parts) <= np.exp(-7)
    for k in range(50):
        penalty(weights, np.zeros_like(weights), k, 50)
    assert penalty.small(weights) == 1.0


def test_scales_that_the_loss_does_not_hold_become_zero_and_others_stay() -> None:
    analysis = analyze(load(residual_pictures()))
    penalty, weights = on("bn", analysis.model, penalised(analysis, analysis.of_kind("channels"), "bn"), 0.5)
    scale, before = penalty.layout.view(weights, "s"), analysis.model.weights["s"]
    pull = 0.5 / float(np.abs(before).sum())
    slope = np.array([-3, -1.5, 0.5, 0.5, 0.4, 0.4, 0.5, 0.3]) * pull  # the pull alone brings the mean to zero
    for k in range(20):
        gradients = np.zeros_like(weights)
        penalty.layout.view(gradients, "s")[...] = slope
        penalty(weights, gradients, k, 20)
        assert not gradients.any()  # the optimizer leaves them
    assert (scale[:2] > before[:2]).all() and (scale[2:] == 0).all() and penalty.small(weights) == 6 / 8


def test_a_unit_is_all_of_its_weights_wherever_they_lie() -> None:
    model = load(grouped())
    w, b, v = (model.weights[n].astype(np.float64) for n in "wbv")
    analysis = analyze(model)
    group = next(g for g in analysis.groups if g.size == 16)
    penalty, weights = on("group", analysis.model, units_of(analysis, [group]), 1.0)
    read = [v[6 * (u // 8) : 6 * (u // 8) + 6, u % 8] for u in range(16)]  # by one group of the second convolution
    norms = [np.sqrt((w[u] ** 2).sum() + b[u] ** 2 + (read[u] ** 2).sum()) for u in range(16)]
    np.testing.assert_allclose(penalty.norms(weights), norms, rtol=1e-5)
    np.testing.assert_array_equal(penalty.sizes, 8 * 9 + 1 + 6)
    assert penalty.value(weights) == pytest.approx(1.0)


def test_a_residual_block_is_what_its_nodes_read() -> None:
    analysis = analyze(load(residual_pictures()))
    blocks = analysis.of_kind("layers")
    penalty, weights = on("group", analysis.model, units_of(analysis, blocks), 1.0)
    inside = [("w1", "b1", "w2", "b2"), ("w5", "b5", "w6", "b6")]
    norms = [np.sqrt(sum((analysis.model.weights[n].astype(np.float64) ** 2).sum() for n in ns)) for ns in inside]
    np.testing.assert_allclose(penalty.norms(weights), norms, rtol=1e-5)


def test_there_is_nothing_to_pull_at() -> None:
    model = load(residual_pictures())
    model.weights["s"] = np.zeros_like(model.weights["s"])
    analysis = analyze(model)
    with pytest.raises(OptionError, match="are zero already"):
        on("bn", analysis.model, penalised(analysis, analysis.of_kind("channels"), "bn"), 1.0)


# what they do


@pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n in REGULARIZERS for k in NETS if not (REGULARIZERS[n].scales and k == "heads")]
)
def test_units_get_smaller_than_without(name: str, kind: str) -> None:
    pulled, free = (learned(name, kind, strength) for strength in (REGULARIZERS[name].strength * 3, 1e-6))
    assert pulled.norms < 0.99 * free.norms and pulled.units == free.units


def test_what_the_cache_keeps_is_of_one_penalty(tmp_path: Path) -> None:
    first = learned("group", "channels", 1.0, cache=tmp_path)
    other = learned("group", "channels", 20.0, cache=tmp_path)
    again = learned("group", "channels", 1.0, cache=tmp_path)  # from its last state
    assert other.norms < first.norms and again == first


# the command


def written(path: Path) -> bytes:
    model = onnx.load(path)
    del model.metadata_props[:]
    return model.SerializeToString(deterministic=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    onnx.save(residual_pictures(), tmp_path / "net.onnx")
    np.savez(tmp_path / "train.npz", x=PICTURES, labels=LABELS)
    np.savez(tmp_path / "alone.npz", x=PICTURES)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "samples"),
    [(name, ("--train train.npz", "--calibration alone.npz")[k % 2]) for k, name in enumerate(REGULARIZERS)],
)
def test_a_plan_replays_it_and_the_total_is_what_was_asked_for(
    name: str, samples: str, data: Path, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    base = f"net.onnx {samples} --threads 1 --no-latency"
    done = call(
        f"{base} --channels 0.5 --tune 7 --batch-size 16 --learning-rate 0.01 --regularize {name} --recover none "
        "-o a.onnx --save-plan p.json --json a.json"
    )
    assert done.code == 0, done.err
    report = json.loads((data / "a.json").read_text())
    x, tuning = report["regularization"], report["tuning"]
    assert (
        x["steps"] + tuning["steps"] == round(7 * 35 / 16) and abs(x["steps"] - tuning["steps"]) <= 1
    )  # of 40, 5 are held out
    assert f"regularized by {name}" in done.out and x["norms"] < 1 and x["units"] >= 8
    assert report["recipe"]["importance"] == ("bn_scale" if name == "bn" else report["recipe"]["importance"])
    assert json.loads((data / "p.json").read_text())["settings"]["regularize"] == {
        "method": name, "strength": REGULARIZERS[name].strength, "steps": x["steps"], "learning_rate": 0.01,
        "groups": x["groups"],
    }  # fmt: skip
    again = call(f"{base} --plan p.json -o b.onnx")
    assert again.code == 0, again.err
    assert written(data / "a.onnx") == written(data / "b.onnx")


def test_a_plan_that_says_too_little_is_refused(data: Path) -> None:
    plan = Plan({}, "none", {"regularize": {"method": "bn"}, "tune": {"steps": 2}})
    with pytest.raises(OptionError, match="the plan says nothing of regularize"):
        onnxprune.prune(data / "net.onnx", plan=plan, measure=False)


def test_units_are_chosen_on_the_network_that_learned(data: Path) -> None:
    """Scales that the penalty alone moves decide: those that it leaves smallest go."""
    options: dict[str, Any] = {
        "channels": 0.5, "train": data / "train.npz", "tune": "60steps", "batch_size": 16, "learning_rate": 0.1,
        "recover": "none", "measure": False, "threads": 1, "importance": "bn_scale", "ignore": ["w1", "w3", "w5"],
        "round_to": 1,
    }  # fmt: skip
    plain = onnxprune.prune(data / "net.onnx", **options)
    sparse = onnxprune.prune(data / "net.onnx", **options, regularize="bn", regularize_strength=20.0)
    assert any((plain.plan.keep[n] != sparse.plan.keep[n]).any() for n in plain.plan.keep)
    assert sparse.report.learning is not None and sparse.report.learning.small_after > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--channels 0.3 --regularize bn", "--regularize bn needs --tune 10"),
        ("--sparsity 0.5 --train train.npz --tune 4steps --regularize group", "needs something to remove"),
        ("--channels 0.3 --train train.npz --tune 4steps --regularize-strength 1", "needs --regularize bn"),
        ("--channels 0.3 --train train.npz --tune 4steps --regularize bn --regularize-strength 0", "a number above 0"),
        ("--channels 0.3 --train train.npz --tune 1steps --regularize bn", "give 2steps or more"),
        ("--channels 0.3 --train train.npz --tune 4steps --regularize bn --steps 2", "goes before one cut"),
        ("--layers 0.5 --train train.npz --tune 4steps --regularize bn", "no BatchNormalization has a scale per unit"),
        ("--channels 0 --train train.npz --tune 4steps --regularize growing", "no unit was chosen to go"),
        (
            "--max-drop 0.5 --evaluate train.npz --train train.npz --tune 4steps --regularize growing",
            "--max-drop chooses again and again",
        ),
    ],
)
def test_refused(words: str, message: str, data: Path, call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    done = call(f"net.onnx {words} -o out.onnx")
    assert done.code == 2 and message in done.err.splitlines()[-1], done.err
    assert not (data / "out.onnx").exists()
