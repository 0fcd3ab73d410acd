"""Importance by gradients: slopes against finite differences, formulas by hand, every kind of unit, what has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import onnxprune
from kinds import analysis_of, samples
from models.nets import Array, build, data_of, normal, run
from models.small import classifier
from onnxprune.errors import NothingToPrune, UserError
from onnxprune.graph.io import load, to_proto
from onnxprune.importance.gradients import FORMULAS, GRADIENT_CRITERIA, unit_scores
from onnxprune.importance.slopes import Shown, Slopes, Units, unit_slopes
from onnxprune.runtime.classes import probabilities
from onnxprune.structure.analysis import Analysis
from onnxprune.structure.groups import analyze

QUICK: dict[str, Any] = {"measure": False, "verify": False, "threads": 1, "recover": "none", "round_to": 1}
CLASSES = analyze(load(classifier()))  # pictures of 3 x 6 x 6 to five classes
PICTURES = data_of((10, 3, 6, 6))
LABELS = np.arange(10) % 5


def shown(feeds: Mapping[str, Array], labels: Array | None = None) -> Shown:
    """Samples of arrays."""
    count = len(next(iter(feeds.values())))

    def batches(size: int) -> list[list[int]]:
        return [list(range(k, min(k + size, count))) for k in range(0, count, size)]

    def some(indices: Sequence[int]) -> dict[str, Array]:
        return {name: x[list(indices)] for name, x in feeds.items()}

    return Shown(count, batches, some, None if labels is None else lambda indices: labels[list(indices)])


def slopes(analysis: Analysis, source: Shown, most: int = 4) -> Slopes:
    return Slopes(analysis.model, source, memory=1e9, threads=1, most=most)


def cross_entropies(analysis: Analysis, gates: Mapping[str, Array]) -> Array:
    """Of every sample, with these gates open as far as that."""
    units = Units(analysis, analysis.groups, {"x": PICTURES}, 1)
    for group, value in gates.items():
        units.model.weights[units.names[group]] = value.astype(np.float32)
    p = probabilities(run(to_proto(units.model), PICTURES)[0])
    return np.asarray(-np.log(p[np.arange(len(p)), LABELS]))


def test_taylor_is_the_slope_of_every_sample() -> None:
    (group,) = CLASSES.groups
    found, lacking = unit_slopes(
        CLASSES, CLASSES.groups, slopes(CLASSES, shown({"x": PICTURES}, LABELS)), FORMULAS["taylor"].each
    )
    assert lacking == {}
    for u in (0, 7):
        e = 0.01 * np.eye(group.size)[u]
        ends = [cross_entropies(CLASSES, {group.name: 1 + s * e}) for s in (1, -1)]
        assert found[group.name][u] == pytest.approx(np.abs(ends[0] - ends[1]).mean() / 0.02, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_a_batch_gives_what_samples_give_one_by_one(name: str) -> None:
    """Ten samples in runs of four, the last of them filled up."""
    source = shown({"x": PICTURES}, LABELS)
    each = FORMULAS[name].each
    (many, _), (single, _) = (unit_slopes(CLASSES, CLASSES.groups, slopes(CLASSES, source, n), each) for n in (4, 1))
    for group, s in many.items():
        np.testing.assert_allclose(s, single[group], rtol=1e-4, atol=1e-7)


def test_snip_is_the_slope_of_the_mean_loss() -> None:
    source = shown({"x": PICTURES}, LABELS)
    (found, _) = unit_slopes(CLASSES, CLASSES.groups, slopes(CLASSES, source), None)
    parts = [
        unit_slopes(CLASSES, CLASSES.groups, slopes(CLASSES, shown({"x": PICTURES[[k]]}, LABELS[[k]])), None)[0]
        for k in range(10)
    ]
    for group, s in found.items():
        np.testing.assert_allclose(s, np.mean([p[group] for p in parts], 0), rtol=1e-4, atol=1e-6)
        assert (np.abs(s) < np.mean([np.abs(p[group]) for p in parts], 0) - 1e-6).any()


def test_grasp_multiplies_the_gradient_with_the_hessian() -> None:
    """Against differences of gradients at gates that are moved along the gradient."""
    (group,) = CLASSES.groups
    source = shown({"x": PICTURES}, LABELS)
    g = unit_slopes(CLASSES, CLASSES.groups, slopes(CLASSES, source), None)[0][group.name]
    found = unit_slopes(CLASSES, CLASSES.groups, slopes(CLASSES, source), None, second=True)[0][group.name]
    ends = []
    for s in (1, -1):
        moved = 1 + 0.05 * s * g / np.linalg.norm(g)
        e = 0.01 * np.eye(group.size)
        losses = [[cross_entropies(CLASSES, {group.name: moved + t * d}).mean() for t in (1, -1)] for d in e]
        ends.append([(a - b) / 0.02 for a, b in losses])
    expected = (np.array(ends[0]) - np.array(ends[1])) / 0.1 * np.linalg.norm(g)
    np.testing.assert_allclose(found, expected, rtol=0.03, atol=0.03 * np.abs(expected).max())


def quadratic() -> Analysis:
    """Of linear layers; the loss by its own output is a square."""
    nodes = "h = MatMul(x, w) k = Identity(h) y = MatMul(k, v)"
    return analyze(load(build(nodes, "float[n,4]", "float[n,1]", w=normal(4, 6), v=normal(6, 1, seed=1))))


@pytest.mark.parametrize("most", [1, 4])
def test_obd_is_the_change_of_a_quadratic_loss(most: int) -> None:
    analysis, x = quadratic(), data_of((10, 4))
    (group,) = analysis.groups
    w, v = (analysis.model.weights[name] for name in "wv")
    found, _ = unit_slopes(analysis, analysis.groups, slopes(analysis, shown({"x": x}), most), FORMULAS["obd"].each)
    change = np.square((x @ w) * v[:, 0]).mean(0) / (x @ w @ v).var()
    np.testing.assert_allclose(found[group.name], change, rtol=1e-4)


def test_fisher_is_that_of_the_distribution_of_the_classes() -> None:
    """Half of sum_c p_c (d log p_c)^2, by labels of one class after the other; drawn signs are right on average."""
    (group,) = CLASSES.groups
    x = PICTURES[:4]
    p = probabilities(run(classifier(), x)[0])
    exact = np.zeros(group.size)
    for c in range(5):
        for k in range(4):
            source = shown({"x": x[[k]]}, np.array([c]))
            g = unit_slopes(CLASSES, CLASSES.groups, slopes(CLASSES, source), None)[0][group.name]
            exact += p[k, c] * np.square(g) / 2 / 4
    often = shown({"x": np.repeat(x, 100, 0)})
    found, _ = unit_slopes(CLASSES, CLASSES.groups, slopes(CLASSES, often, 40), FORMULAS["fisher"].each)
    np.testing.assert_allclose(found[group.name], exact, rtol=0.25, atol=0.02 * exact.max())


def test_synflow_of_two_layers() -> None:
    w, v = normal(4, 6), normal(6, 3, seed=1)
    nodes = "h = MatMul(x, w) k = Add(h, b) r = Sigmoid(k) y = MatMul(r, v)"
    analysis = analyze(load(build(nodes, "float[n,4]", "float[n,3]", w=w, v=v, b=normal(6))))
    scores, lacking = unit_scores("synflow", analysis, analysis.groups, None, lambda done, total: None)
    expected = np.abs(w).sum(0) * np.abs(v).sum(1)
    (found,) = scores.values()
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=1e-4)
    assert lacking == {}


def test_synflow_survives_what_float32_does_not() -> None:
    """Sixty residual blocks of gain 1 + 400: a product of 10^156; each block gives as much as the whole."""
    n = 60
    nodes = "".join(f"h{k} = MatMul(s{k}, w) r{k} = Relu(h{k}) f{k} = MatMul(r{k}, w) s{k + 1} = Add(s{k}, f{k}) "
                    for k in range(1, n + 1))  # fmt: skip
    text = f"s1 = Relu(x) {nodes} y = Identity(s{n + 1})"
    analysis = analyze(load(build(text, "float[n,4]", "float[n,4]", w=np.full((4, 4), 5.0))))
    scores, _ = unit_scores("synflow", analysis, analysis.of_kind("layers"), None, lambda done, total: None)
    found = np.concatenate(list(scores.values()))
    np.testing.assert_allclose(found, found[0], rtol=1e-3)
    assert len(found) == n and found[0] > 0


KINDS = ["encoder_post_norm", "multi_query", "moe_dense"]


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_every_kind_has_scores(name: str, form: str) -> None:
    analysis = analysis_of(form)
    data = None
    if not GRADIENT_CRITERIA[name].dataless:
        data = onnxprune.calibration.calibration.calibrate(
            onnxprune.calibration.read.read(samples(form, 4), analysis.model), analysis.model, threads=1
        )
    scores, lacking = unit_scores(name, analysis, analysis.groups, data, lambda done, total: None)
    assert lacking == {} and set(scores) == {g.name for g in analysis.groups}
    for g in analysis.groups:
        s = scores[g.name]
        assert s.shape == (g.size,) and np.isfinite(s).all() and (s > 0).any(), g


# What no gradient reaches


def cut_off(both: bool = False) -> Any:
    """Two layers of six units; what reads the first (or both) goes through a sequence, which has no gradient."""
    nodes = """h = Conv(x, w) r = Relu(h) k = Conv(r, v) q = SequenceConstruct(k, k) f = SequenceAt(q, zero) t = Reshape(f, shape)
               h2 = Conv(x, w2) r2 = Relu(h2) k2 = Conv(r2, v2) s = Add(t, k2) y = Identity(s)"""
    if both:
        nodes = nodes.replace("y = Identity(s)", "z = SequenceConstruct(s) f2 = SequenceAt(z, zero) y = Reshape(f2, shape)")
    names = {"w": (6, 3, 3, 3), "v": (2, 6, 1, 1), "w2": (6, 3, 3, 3), "v2": (2, 6, 1, 1)}
    weights: dict[str, Any] = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(names.items())}
    return build(nodes, **weights, zero=np.array(0, np.int64), shape=np.array([-1, 2, 6, 6]))


@pytest.mark.parametrize("amount", [{"channels": 0.5}, {"target_macs": 0.8, "allocate": "kl"}], ids=["ratio", "levels"])
@pytest.mark.parametrize("name", ["fisher", "synflow"])
def test_groups_that_no_gradient_reaches_stay_whole(name: str, amount: dict[str, Any]) -> None:
    x = data_of((12, 3, 8, 8))
    result = onnxprune.prune(cut_off(), importance=name, calibration=x, **amount, **QUICK)
    assert list(result.plan.keep) == ["Conv(h2)"]
    (note,) = [n for n in result.report.notes if n.startswith("without a gradient")]
    assert note.startswith("without a gradient, and whole: Conv(h): Sequence") and "has no rule" in note


def test_a_model_that_no_gradient_reaches() -> None:
    words = r"^importance='fisher': no gradient reaches a unit: SequenceAt .* has no rule"
    x = data_of((12, 3, 8, 8))
    with pytest.raises(NothingToPrune, match=words):
        onnxprune.prune(cut_off(both=True), channels=0.5, importance="fisher", calibration=x, **QUICK)


def test_gradients_that_are_no_numbers() -> None:
    x = data_of((12, 4))
    x[3] = 1e15
    nodes, weights = "h = MatMul(x, w) r = Relu(h) e = Exp(r) y = MatMul(e, v)", {"w": normal(4, 6), "v": normal(6, 3)}
    net = build(nodes, "float[n,4]", "float[n,3]", **weights)
    with pytest.raises(UserError, match=r"^importance='fisher': the gradient at MatMul\(h\) is no number"):
        onnxprune.prune(net, channels=0.5, importance="fisher", calibration=x, **QUICK)
