"""Importance by gradients: slopes against finite differences, formulas by hand, every kind of unit, what has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxprune
from kinds import analysis_of, samples
from models.forms.form import BATCH
from models.nets import Array, build, data_of, normal, run
from models.small import classifier
from onnxprune.calibration.calibration import Batches, calibrate
from onnxprune.calibration.read import read
from onnxprune.errors import NothingToPrune, OptionError, UserError
from onnxprune.graph.io import load, to_proto
from onnxprune.importance.gradients import FORMULAS, GRADIENT_CRITERIA, entry_scores, unit_scores
from onnxprune.importance.shown import Ground, Shown, ground, of_batches
from onnxprune.importance.slopes import Slopes, Units, silent, unit_slopes, weight_slopes
from onnxprune.layers.layer import sparse_layers
from onnxprune.runtime.classes import probabilities
from onnxprune.runtime.stream import Runs
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
    scores, lacking = unit_scores("synflow", analysis, analysis.groups, Ground(), silent)
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
    scores, _ = unit_scores("synflow", analysis, analysis.of_kind("layers"), Ground(), silent)
    found = np.concatenate(list(scores.values()))
    np.testing.assert_allclose(found, found[0], rtol=1e-3)
    assert len(found) == n and found[0] > 0


KINDS = ["encoder_post_norm", "multi_query", "moe_dense"]


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_every_kind_has_scores(name: str, form: str) -> None:
    analysis = analysis_of(form)
    own = ground(calibrate(read(samples(form, 4), analysis.model), analysis.model, threads=1), None)
    x = samples(form, BATCH)  # as the graph has it baked in: one sample, of many tokens
    y = run(to_proto(analysis.model), x)[0]
    labels = np.arange(y.size // y.shape[-1])[None] % y.shape[-1]
    by = replace(own, labelled=Shown(1, lambda size: [[0]], lambda indices: x, lambda indices: labels))
    scores, lacking = unit_scores(name, analysis, analysis.groups, by, silent)
    assert lacking == {} and set(scores) == {g.name for g in analysis.groups}
    for g in analysis.groups:
        s = scores[g.name]
        assert s.shape == (g.size,) and np.isfinite(s).all() and s.any(), g


# Single weights


def entries(name: str, model: ModelProto, x: Array | None, share: float = 0.5) -> dict[str, Array]:
    """Scores of the weights of all layers, by name; samples in batches of six."""
    by = Ground() if x is None else Ground(of_batches(Batches(Runs(2, lambda k: {"x": x[6 * k : 6 * k + 6]}, 6))))
    by = replace(by, labelled=None if x is None else shown({"x": x}, np.arange(len(x)) % 3))
    given = load(model)
    found, lacking = entry_scores(name, given, sparse_layers(given)[0], by, share, progress=silent)
    assert lacking == {}
    return found


def test_obd_of_weights_is_the_change_of_a_quadratic_loss() -> None:
    """A sample at a time, whose only output has one sign or the other: exact; eight at a time, on average."""
    w, x = normal(4, 1), data_of((12, 4))
    net = load(build("y = MatMul(x, w)", "float[n,4]", "float[n,1]", w=w))

    def over_change(x: Array, most: int) -> Array:
        source = Slopes(net, shown({"x": x}), memory=1e9, threads=1, most=most)
        s, _ = weight_slopes(net, {"w": w}, source, FORMULAS["obd"].each, signs=True)
        return np.asarray(s["w"] * source.loss.variances["y"] / np.square(x[:, :, None] * w).mean(0))

    np.testing.assert_allclose(over_change(x, 1), 1, rtol=1e-4)
    np.testing.assert_allclose(over_change(np.tile(x, (60, 1)), 8), 1, rtol=0.3)


def test_weights_that_are_zero_score_zero_and_no_other() -> None:
    w = normal(4, 6)
    w[1] = 0
    model = build("h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", "float[n,4]", "float[n,3]", w=w, v=normal(6, 3))
    for name in GRADIENT_CRITERIA:
        found = entries(name, model, data_of((10, 4)))
        assert ((found["w"] == 0) == (w == 0)).all() and (found["v"] > 0).all()


def test_slopes_of_a_shared_weight_are_of_all_that_read_it() -> None:
    """A layer and one behind a Transpose, in the orientation in which the first reads it, by finite differences."""
    w, x = normal(4, 5), data_of((3, 4))

    def net(w: Array) -> ModelProto:
        nodes = "h = MatMul(x, w) r = Relu(h) t = Transpose(w) k = MatMul(r, t) y = MatMul(k, u)"
        return build(nodes, "float[n,4]", "float[n,3]", w=w, u=normal(4, 3, seed=2) / 4)

    model, labels = load(net(w)), np.array([0, 2, 1])
    source = Slopes(model, shown({"x": x}, labels), memory=1e9, threads=1)
    found = weight_slopes(model, {"w": w}, source, None)[0]["w"]
    for at in [(0, 1), (3, 4)]:
        ends = []
        for s in (1, -1):
            moved = w.copy()
            moved[at] *= 1 + 0.01 * s
            p = probabilities(run(net(moved), x)[0])
            ends.append(-np.log(p[np.arange(3), labels]).mean())
        assert found[at] == pytest.approx((ends[0] - ends[1]) / 0.02, rel=0.02, abs=1e-4)


def thinned(name: str, share: float) -> tuple[ModelProto, onnxprune.Result]:
    """A chain of six layers of different sizes and weights, with so many zeros by one threshold."""
    widths = [16, 64, 64, 8, 64, 64, 4]
    nodes = "".join(f"h{k} = MatMul({f'r{k - 1}' if k else 'x'}, w{k}) r{k} = Relu(h{k}) " for k in range(6))
    weights: dict[str, Any] = {f"w{k}": normal(*widths[k : k + 2], seed=k) * (1 + 3 * (k == 2)) for k in range(6)}
    model = build(nodes + "y = Identity(r5)", "float[n,16]", "float[n,4]", **weights)
    result = onnxprune.prune(
        model, sparsity=share, solver=name, sparsity_allocate="global", format="dense", measure=False, threads=1
    )
    return onnxprune.to_proto(result.model), result


def test_synflow_keeps_every_layer_alive() -> None:
    """At 99.9% something still flows from an input to an output, where magnitudes leave layers that meet nothing."""

    def flows(model: ModelProto) -> bool:
        reach = np.ones((1, 16), bool)
        for mask in (onnx.numpy_helper.to_array(t) != 0 for t in model.graph.initializer):
            reach = np.asarray((reach.astype(int) @ mask) > 0)
        return bool(reach.any())

    kept, result = thinned("synflow", 0.999)
    assert flows(kept) and not flows(thinned("magnitude", 0.999)[0])
    sparsity = result.report.sparsity
    assert sparsity is not None and sparsity.zeros == pytest.approx(0.999 * sparsity.size, abs=2)
    assert all(layer.zeros < layer.size for layer in sparsity.layers)


# What no gradient reaches


def cut_off(both: bool = False) -> Any:
    """Two layers of six units; what reads the first (or both) goes through a sequence, which has no gradient."""
    nodes = """h = Conv(x, w) r = Relu(h) k = Conv(r, v) q = SequenceConstruct(k, k) f = SequenceAt(q, zero)
               t = Reshape(f, shape) h2 = Conv(x, w2) r2 = Relu(h2) k2 = Conv(r2, v2) s = Add(t, k2) """
    nodes += "z = SequenceConstruct(s) g = SequenceAt(z, zero) y = Reshape(g, shape)" if both else "y = Identity(s)"
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
    nodes = "h = MatMul(x, w) r = Relu(h) e = Exp(r) y = MatMul(e, v)"
    net = build(nodes, "float[n,4]", "float[n,3]", w=normal(4, 6), v=normal(6, 3))
    with pytest.raises(UserError, match=r"^importance='fisher': the gradient at MatMul\(h\) is no number"):
        onnxprune.prune(net, channels=0.5, importance="fisher", calibration=x, **QUICK)


def test_a_plan_of_zeros_by_labels_needs_them_again() -> None:
    asked: dict[str, Any] = {"train": PICTURES, "train_labels": LABELS, "measure": False, "threads": 1}
    first = onnxprune.prune(classifier(), sparsity=0.5, solver="snip", format="dense", **asked)
    with pytest.raises(OptionError, match=r"^the plan's solver='snip' needs train=SRC with labels$"):
        onnxprune.prune(classifier(), plan=first.plan, measure=False, threads=1)
    again = onnxprune.prune(classifier(), plan=first.plan, **asked)
    assert onnxprune.to_proto(again.model) == onnxprune.to_proto(first.model)


@pytest.mark.parametrize("name", ["taylor", "grasp"])
def test_what_a_step_leaves_is_scored_again_by_labels(name: str) -> None:
    asked = {**QUICK, "importance": name, "train": PICTURES, "train_labels": LABELS}
    once, often = (onnxprune.prune(classifier(), channels=0.5, steps=n, **asked).plan for n in (1, 4))
    (a,), (b,) = once.keep.values(), often.keep.values()
    assert a.sum() == b.sum() == 6
