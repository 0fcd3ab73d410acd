"""Scores against their formulas, computed by hand; the same whatever way a model stores its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from models.nets import build, normal
from onnxprune import load
from onnxprune.errors import OptionError
from onnxprune.importance.weights import DEFAULT, WEIGHT_CRITERIA, Site, score
from onnxprune.structure.groups import analyze

W = np.array([[3, -4, 0], [1, 1, 1], [0, 0, 0], [0, -5, 12]], np.float32)
NORMS = np.array([5, 3**0.5, 0, 13])
WEIGHTS_ONLY = ["l1", "l2", "linf", "fpgm", "lamp"]


def scores_of(proto: ModelProto, importance: str, keep: dict[str, np.ndarray] | None = None, seed: int = 0) -> Any:
    """Scores of the first group."""
    analysis = analyze(load(proto))
    groups = analysis.of_kind("channels")
    alive = None if keep is None else analysis.keep_ids(keep)
    return score(analysis, groups, importance=importance, keep=alive, seed=seed)[groups[0].name]


def relative(x: Any) -> np.ndarray:
    return np.asarray(x, float) / np.mean(x)


# Formulas

DISTANCES = [  # sums over the rows of W
    ((5, 0), (4 + 25 + 1, 1), (25, 1), (9 + 1 + 144, 1)),
    ((4 + 25 + 1, 1), (3, 1), (1 + 36 + 121, 1)),
    ((25, 1), (3, 1), (169, 1)),
    ((9 + 1 + 144, 1), (1 + 36 + 121, 1), (169, 1)),
]
FORMULAS = {
    "l1": [7, 3, 0, 17],
    "l2": NORMS,
    "linf": [4, 1, 0, 12],
    "lp:P": np.sqrt(np.abs(W)).mean(1) ** 2,  # P is 1/2 where none is given
    "bn_scale": NORMS,  # no BatchNormalization follows
    "fpgm": [
        30**0.5 + 5 + 154**0.5,
        30**0.5 + 3**0.5 + 158**0.5,
        5 + 3**0.5 + 13,
        154**0.5 + 158**0.5 + 13,
    ],
    "lamp": [25 / (25 + 169), 3 / (3 + 25 + 169), 0, 1],
}


def test_every_criterion_is_tested() -> None:
    assert set(WEIGHT_CRITERIA) == {*FORMULAS, "path", "random"}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str) -> None:
    """Of a Gemm's weight (4 units of 3 inputs), relative to the mean."""
    nodes = "h = Gemm<transB = 1>(x, w, b) r = Relu(h) y = Gemm(r, v)"
    proto = build(nodes, "float[n,3]", "float[n,2]", w=W, b=normal(4), v=normal(4, 2))
    assert scores_of(proto, name) == pytest.approx(relative(FORMULAS[name]), rel=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_measure(name: str) -> None:
    measure = WEIGHT_CRITERIA[name].function
    site = Site("node", W, np.arange(4), None)
    assert measure(site, np.random.default_rng(0)) == pytest.approx(np.asarray(FORMULAS[name], float), rel=1e-5)


@pytest.mark.parametrize(("name", "same"), [("lp:1", "l1"), ("lp:2", "l2"), ("lp:900", "linf"), ("lp:0.001", None)])
def test_norms_of_other_exponents(name: str, same: str | None) -> None:
    nodes = "h = Gemm<transB = 1>(x, w) r = Relu(h) y = Gemm(r, v)"
    proto = build(nodes, "float[n,5]", "float[n,2]", w=normal(4, 5), v=normal(4, 2))
    found = scores_of(proto, name)
    geometric = relative(np.exp(np.log(np.abs(normal(4, 5))).mean(1)))  # what small exponents go to
    expected = geometric if same is None else scores_of(proto, same)
    assert found == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("p", ["0", "-1", "inf", "nan", "much", "P"])
def test_exponents_that_are_none(p: str) -> None:
    with pytest.raises(OptionError, match=f"^importance='?lp:{p}'?: expected a number above 0 behind lp:, as lp:0.5$"):
        onnxprune.prune("", channels=0.5, importance=f"lp:{p}")


def test_path_is_what_makes_a_unit_times_what_reads_it() -> None:
    v = np.array([[0, 2], [1, 0], [5, 5], [0, 0]], np.float32)
    nodes = "h = Gemm<transB = 1>(x, w) r = Relu(h) y = Gemm(r, v)"
    proto = build(nodes, "float[n,3]", "float[n,2]", w=W, v=v)
    expected = relative(NORMS) * relative([2, 1, 50**0.5, 0])
    assert scores_of(proto, "path") == pytest.approx(expected, rel=1e-5)
    assert DEFAULT == "path"


def test_path_of_what_nobody_reads_is_what_makes_it() -> None:
    nodes = "h = Gemm<transB = 1>(x, w) r = Relu(h) y = ReduceSum<keepdims = 1>(r, axes)"
    proto = build(nodes, "float[n,3]", "float[n,1]", w=W, axes=np.array([1]))
    assert scores_of(proto, "path") == pytest.approx(relative(NORMS), rel=1e-5)


def test_bn_scale() -> None:
    gamma = np.array([-2, 0.5, 0, 1.5])
    nodes = "h = Conv(x, w) n = BatchNormalization(h, g, b, m, s) r = Relu(n) y = Conv(r, v)"
    proto = build(
        nodes, w=normal(4, 3, 3, 3), g=gamma, b=normal(4), m=normal(4), s=normal(4) ** 2, v=normal(2, 4, 1, 1)
    )
    assert scores_of(proto, "bn_scale") == pytest.approx(relative(np.abs(gamma)), rel=1e-6)


def test_random_follows_the_seed() -> None:
    proto = build("h = Conv(x, w) r = Relu(h) y = Conv(r, v)", w=normal(32, 3, 3, 3), v=normal(2, 32, 1, 1))
    first, again, other = (scores_of(proto, "random", seed=s) for s in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).all()
    assert len(set(first.tolist())) == 32


def test_unknown_criterion() -> None:
    proto = build("h = Conv(x, w) r = Relu(h) y = Conv(r, v)", w=normal(4, 3, 3, 3), v=normal(2, 4, 1, 1))
    with pytest.raises(OptionError, match=r"--importance magic: unknown; choose one of .*l1, l2"):
        scores_of(proto, "magic")


# Aggregation


def test_layers_of_one_group_count_alike() -> None:
    """A residual add: two convolutions make the units, one of them ten times as large."""
    a, b = normal(4, 3, 1, 1), 10 * normal(4, 3, 1, 1, seed=1)
    nodes = "p = Conv(x, a) q = Conv(x, b) s = Add(p, q) r = Relu(s) y = Conv(r, v)"
    found = scores_of(build(nodes, a=a, b=b, v=normal(2, 4, 1, 1)), "l2")
    each = [relative(np.sqrt((w**2).sum((1, 2, 3)))) for w in (a, b)]
    assert found == pytest.approx(np.mean(each, axis=0), rel=1e-5)


def test_channels_of_a_unit_are_averaged() -> None:
    """A depthwise convolution of multiplier 2: a unit is one input channel and two outputs."""
    w, d = normal(4, 3, 1, 1), normal(8, 1, 3, 3)
    nodes = "h = Conv(x, w) k = Conv<group = 4>(h, d) y = Conv(k, v)"
    found = scores_of(build(nodes, w=w, d=d, v=normal(2, 8, 1, 1)), "l1")
    first, second = relative(np.abs(w).sum((1, 2, 3))), relative(np.abs(d).sum((1, 2, 3))).reshape(4, 2)
    assert found == pytest.approx(np.column_stack([first, second]).mean(1), rel=1e-5)


def test_groups_in_one_weight_are_relative_to_themselves() -> None:
    """Channels that only the first of two readers sees; a slice splits one weight into two groups."""
    nodes = """h = Conv(x, w) p, q = Split<axis = 1>(h, sizes) r = Relu(p) y1 = Conv(r, u) t = Tanh(q) y2 = Conv(t, v)
               y = Add(y1, y2)"""
    w = normal(10, 3, 1, 1)
    proto = build(nodes, w=w, sizes=np.array([6, 4]), u=normal(2, 6, 1, 1), v=normal(2, 4, 1, 1))
    analysis = analyze(load(proto))
    groups = analysis.of_kind("channels")
    found = score(analysis, groups, importance="l1")
    magnitudes = np.abs(w).sum((1, 2, 3))
    assert [g.size for g in groups] == [6, 4]
    assert found[groups[0].name] == pytest.approx(relative(magnitudes[:6]), rel=1e-5)
    assert found[groups[1].name] == pytest.approx(relative(magnitudes[6:]), rel=1e-5)


@pytest.mark.parametrize("importance", [*WEIGHTS_ONLY, "path"])
def test_what_is_gone_counts_as_zero_in_what_reads_it(importance: str) -> None:
    """Scores of the second layer after units of the first went, against a model that never had them."""
    w, v, u = normal(6, 3, 1, 1), normal(8, 6, 1, 1, seed=1), normal(2, 8, 1, 1, seed=2)
    nodes = "h = Conv(x, w) r = Relu(h) k = Conv(r, v) s = Relu(k) y = Conv(s, u)"
    kept = np.array([1, 0, 1, 1, 0, 0], bool)

    def second(proto: ModelProto, keep: dict[str, np.ndarray] | None) -> Any:
        analysis = analyze(load(proto))
        first, last = analysis.of_kind("channels")
        alive = None if keep is None else analysis.keep_ids({first.name: keep["first"]})
        return score(analysis, [last], importance=importance, keep=alive)[last.name]

    found = second(build(nodes, w=w, v=v, u=u), {"first": kept})
    assert found == pytest.approx(second(build(nodes, w=w[kept], v=v[:, kept], u=u), None), rel=1e-5)
    assert not np.allclose(found, second(build(nodes, w=w, v=v, u=u), None))


@pytest.mark.parametrize("importance", ["l1", "l2", "linf", "path"])
def test_recurrent_units_are_scored_over_their_gates(importance: str) -> None:
    """A unit of a GRU has rows in three gates of W and of R; one whose rows are all zero is worth nothing."""
    w, r, b, v = normal(1, 12, 3), normal(1, 12, 4), normal(1, 24), normal(4, 2)
    w[:, [2, 6, 10]] = r[:, [2, 6, 10]] = 0
    nodes = "h, last = GRU<hidden_size = 4>(x, w, r, b) s = Squeeze(last, axes) y = Gemm(s, v)"
    proto = build(nodes, "float[5,n,3]", "float[n,2]", w=w, r=r, b=b, v=v, axes=np.array([0]))
    found = scores_of(proto, importance)
    assert found.shape == (4,)
    assert found[2] == 0
    assert np.delete(found, 2).min() > 0


# The same model, stored otherwise


@pytest.mark.parametrize("importance", sorted(set(WEIGHT_CRITERIA) - {"random"}))
@pytest.mark.parametrize("form", ["transB", "MatMul", "Transpose", "Reshape", "DequantizeLinear", "float16"])
def test_any_way_to_store_a_weight_scores_alike(form: str, importance: str) -> None:
    q = np.random.default_rng(0).integers(-100, 100, (6, 3)).astype(np.int8)
    w, v = q.astype(np.float32) / 64, normal(6, 2)
    plain = build("h = Gemm(x, w) r = Relu(h) y = Gemm(r, v)", "float[n,3]", "float[n,2]", w=w.T, v=v)
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "transB": ("h = Gemm<transB = 1>(x, w)", {"w": w}),
        "MatMul": ("h = MatMul(x, w)", {"w": w.T}),
        "Transpose": ("t = Transpose<perm = [1, 0]>(w) h = MatMul(x, t)", {"w": w}),
        "Reshape": ("t = Reshape(w, shape) h = MatMul(x, t)", {"w": w.T.reshape(1, 3, 6), "shape": np.array([3, 6])}),
        "DequantizeLinear": (
            "t = DequantizeLinear(w, scale) h = MatMul(x, t)",
            {"w": q.T, "scale": np.float32(1 / 64)},
        ),
        "float16": ("t = Cast<to = 1>(w) h = MatMul(x, t)", {"w": w.T.astype(np.float16)}),
    }
    nodes, weights = forms[form]
    other = build(f"{nodes} r = Relu(h) y = Gemm(r, v)", "float[n,3]", "float[n,2]", v=v, **weights)
    assert scores_of(other, importance) == pytest.approx(scores_of(plain, importance), rel=1e-5)


@pytest.mark.parametrize("importance", WEIGHTS_ONLY)
@pytest.mark.parametrize("transposed", [False, True])
def test_folded_and_unfused_batch_normalization_score_alike(importance: str, transposed: bool) -> None:
    op = "ConvTranspose" if transposed else "Conv"
    w, v = normal(3, 8, 3, 3) if transposed else normal(8, 3, 3, 3), normal(2, 8, 1, 1)
    gamma, beta, mean, variance = normal(8), normal(8), normal(8), normal(8, seed=1) ** 2 + 0.1
    nodes = f"h = {op}(x, w) n = BatchNormalization<epsilon = 0.01>(h, g, b, m, s) r = Relu(n) y = Conv(r, v)"
    unfused = build(nodes, w=w, g=gamma, b=beta, m=mean, s=variance, v=v)
    scale = gamma / np.sqrt(variance + 0.01)
    other = w * (scale[None, :, None, None] if transposed else scale[:, None, None, None])
    folded = build(f"h = {op}(x, w, b) r = Relu(h) y = Conv(r, v)", w=other, b=beta - mean * scale, v=v)
    plain = build(f"h = {op}(x, w, b) r = Relu(h) y = Conv(r, v)", w=w, b=beta - mean * scale, v=v)
    assert scores_of(unfused, importance) == pytest.approx(scores_of(folded, importance), rel=1e-4)
    assert not np.allclose(scores_of(plain, importance), scores_of(folded, importance), rtol=0.1)


@pytest.mark.parametrize("importance", sorted(set(WEIGHT_CRITERIA) - {"random"}))
@pytest.mark.parametrize("normalised", [False, True])
def test_dead_units_score_lowest(importance: str, normalised: bool) -> None:
    """Filters that are zero, and whose BatchNormalization scale is zero."""
    dead = np.array([1, 4, 5])
    w, gamma = normal(12, 3, 3, 3), normal(12, seed=1)
    w[dead] = gamma[dead] = 0
    weights: dict[str, Any] = {"w": w, "v": normal(2, 12, 1, 1)}
    if normalised:
        nodes = "h = Conv(x, w) n = BatchNormalization(h, g, b, m, s) r = Relu(n) y = Conv(r, v)"
        weights |= {"g": gamma, "b": normal(12), "m": normal(12), "s": normal(12) ** 2 + 0.1}
    else:
        nodes = "h = Conv(x, w) r = Relu(h) y = Conv(r, v)"
    found = scores_of(build(nodes, **weights), importance)
    assert np.delete(found, dead).min() > found[dead].max()
