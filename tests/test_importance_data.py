"""Importances measured on data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from criteria import ROWS
from models.nets import PICTURES, SERIES, VECTORS, Array, data_of, net_of, normal
from onnxprune import load
from onnxprune.importance.data import DATA_CRITERIA, score
from onnxprune.importance.weights import score as weight_score
from onnxprune.structure.groups import analyze

QUICK: dict[str, Any] = {"measure": False, "verify": False, "threads": 1}
SIGNAL = 2  # the one unit of six that sees the input, and that its reader listens to


def loud(w: Array, axis: int = 0, rest: float = 1e-3) -> Array:
    w = np.moveaxis(w.copy(), axis, 0)
    w[[u for u in range(6) if u != SIGNAL]] *= rest
    return np.moveaxis(w, 0, axis)


QUIET = np.where(np.arange(6) == SIGNAL, 0.5, -5.0)
SIGNALS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "conv": (
        "h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)", PICTURES,
        {"w": loud(normal(6, 3, 3, 3)), "v": loud(normal(2, 6, 3, 3), 1)},
    ),
    "grouped conv": (
        "h = Conv(x, w, b) r = Relu(h) y = Conv<group = 2>(r, v)", PICTURES,
        {"w": loud(normal(6, 3, 3, 3)), "v": normal(4, 3, 3, 3)},
    ),
    "conv 1-D": (
        "h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)", (24, 3, 16),
        {"w": loud(normal(6, 3, 3)), "v": loud(normal(2, 6, 3), 1)},
    ),
    "conv 3-D": (
        "h = Conv(x, w, b) r = Relu(h) y = Conv(r, v)", (6, 2, 5, 5, 5),
        {"w": loud(normal(6, 2, 2, 2, 2)), "v": loud(normal(2, 6, 2, 2, 2), 1)},
    ),
    "gemm": (
        "h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, v)", VECTORS, {"w": loud(normal(5, 6), 1), "v": loud(normal(6, 3))},
    ),
    "matmul rank 3": (
        "h = MatMul(x, w) k = Add(h, b) r = Relu(k) y = MatMul(r, v)", SERIES,
        {"w": loud(normal(5, 6), 1), "v": loud(normal(6, 3))},
    ),
    "matmul rank 4": (
        "h = MatMul(x, w) k = Add(h, b) r = Relu(k) y = MatMul(r, v)", (6, 4, 3, 5),
        {"w": loud(normal(5, 6), 1), "v": loud(normal(6, 3))},
    ),
}  # fmt: skip


def scores_of(proto: ModelProto, x: Array, importance: str) -> dict[str, Array]:
    analysis = analyze(load(proto))
    groups = analysis.of_kind("channels")
    if not ROWS[importance].needs_data:
        return weight_score(analysis, groups, importance=importance)
    return score(analysis, groups, [{"x": part} for part in np.array_split(x, 3)], importance=importance)


@pytest.mark.parametrize(
    ("importance", "kind"),
    [
        *((i, "conv") for i, row in ROWS.items() if row.by in ("weights", "data")),
        *((i, kind) for i in DATA_CRITERIA for kind in SIGNALS if kind != "conv"),
    ],
)
def test_the_unit_that_carries_the_signal_stays(importance: str, kind: str) -> None:
    nodes, shape, weights = SIGNALS[kind]
    (scores,) = scores_of(net_of(nodes, shape, weights | {"b": QUIET}), data_of(shape), importance).values()
    assert scores.shape == (6,) and np.isfinite(scores).all()
    if importance not in ("random", "fpgm"):
        assert scores[SIGNAL] == scores.max() > np.delete(scores, SIGNAL).max()


@pytest.mark.parametrize("importance", ROWS)
def test_every_importance_prunes(importance: str) -> None:
    nodes, shape, weights = SIGNALS["conv"]
    proto = net_of(nodes, shape, weights | {"b": QUIET})
    result = onnxprune.prune(
        proto, channels=0.5, round_to=1, importance=importance, recover="none", calibration=data_of(shape), **QUICK
    )
    (keep,) = result.plan.keep.values()
    assert keep.sum() == 3 and (keep[SIGNAL] or importance == "random")


def test_energy_divides_by_what_a_unit_costs() -> None:
    """Two groups with alike activations: a unit of the one whose maps are four times as large scores less."""
    pool = "p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)"
    nodes = f"h = Conv(x, w) r = Relu(h) {pool} k = Conv(p, v) y = Conv(k, u)"
    weights = {"w": normal(6, 3, 1, 1), "v": normal(6, 6, 1, 1), "u": normal(2, 6, 1, 1)}
    wanda, energy = (scores_of(net_of(nodes, PICTURES, weights), data_of(PICTURES), i) for i in ("wanda", "energy"))
    ratios = [float((energy[name] / wanda[name]).mean()) for name in wanda]
    assert max(ratios) > 1.2 * min(ratios)


def test_ranks_are_those_of_all_small_maps() -> None:
    """The first eight samples of a batch would say the opposite of all twenty."""
    rng = np.random.default_rng(0)
    x = rng.random((20, 2, 6, 6))  # of rank 6
    x[:8, 0], x[:, 1] = 1.0, rng.random((20, 6, 2)) @ rng.random((20, 2, 6))  # of rank 1 and 2
    weights = {"w": np.eye(2).reshape(2, 2, 1, 1), "v": normal(3, 2, 1, 1)}
    net = net_of("h = Conv(x, w) y = Conv(h, v)", (20, 2, 6, 6), weights)
    analysis = analyze(load(net))
    (found,) = score(analysis, analysis.groups, [{"x": x.astype(np.float32)}], importance="hrank").values()
    assert found[0] / found[1] == pytest.approx((8 * 1 + 12 * 6) / 20 / 2)
