"""What changes nothing goes first: in every combination of rows, of units and of single weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from models.nets import PICTURES, Array, data_of, net_of, normal, run
from onnxprune.allocation.allocators import ALLOCATORS
from onnxprune.importance.score import CRITERIA
from onnxprune.recovery.recover import RECOVERIES
from onnxprune.solvers.masks import SOLVERS
from onnxprune.sparsity.allocate import ZERO_ALLOCATORS

QUICK: dict[str, Any] = {"measure": False, "verify": False, "threads": 1, "samples": 16}
SEES = [name for name, row in CRITERIA.items() if not row.blind]


def emptied(w: Array, *rows: int, axis: int = 0) -> Array:
    w = w.copy()
    np.moveaxis(w, axis, 0)[list(rows)] = 0
    return w


def dead() -> ModelProto:
    """Of eight units of each of three layers nothing makes 1 and 5, and nothing reads 2, the largest of all; the others
    are small, and on data mostly silent."""
    w, u, v = (emptied(0.05 * normal(8, *s, seed=k), 1, 5) for k, s in enumerate([(3, 3, 3), (8, 3, 3), (128,)]))
    w[2], u[2], v[2] = 9, 9, 9
    nodes = """h = Conv<pads = [1, 1, 1, 1]>(x, w, b) n = BatchNormalization(h, s, o, m, d) r = Relu(n)
        p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) k = Conv<pads = [1, 1, 1, 1]>(p, u, c)
        j = BatchNormalization(k, s, o, m, d) t = Relu(j) f = Flatten(t) g = Gemm<transB = 1>(f, v, e) q = Relu(g)
        y = Gemm(q, z)"""
    return net_of(
        nodes, PICTURES, {
            "w": w, "b": emptied(normal(8, seed=1), 1, 5), "s": normal(8, seed=4), "m": emptied(normal(8), 1, 5),
            "o": emptied(normal(8, seed=5) - 1, 1, 5), "d": np.ones(8), "u": emptied(u, 2, axis=1),
            "c": emptied(normal(8, seed=13), 1, 5), "v": emptied(v, *range(32, 48), axis=1),
            "e": emptied(normal(8, seed=8) - 1, 1, 5), "z": emptied(normal(8, 4, seed=10), 2),
        },
    )  # fmt: skip


@pytest.mark.parametrize("allocate", ALLOCATORS)
@pytest.mark.parametrize("importance", SEES)
def test_units_that_change_nothing_go_first(importance: str, allocate: str) -> None:
    """For every criterion and way to allocate, with one recovery after the other."""
    proto, x = dead(), data_of(PICTURES)
    recover = [*RECOVERIES][(SEES.index(importance) + [*ALLOCATORS].index(allocate)) % len(RECOVERIES)]
    amount = {"target_params": "80%"} if ALLOCATORS[allocate].needs_target else {"channels": 0.25}
    result = onnxprune.prune(
        proto, importance=importance, allocate=allocate, recover=recover, calibration=x, round_to=1, **amount, **QUICK
    )
    assert result.report.after.parameters < 0.81 * result.report.before.parameters
    np.testing.assert_allclose(run(onnxprune.to_proto(result.model), x)[0], run(proto, x)[0], rtol=1e-5, atol=1e-5)


PATTERNS: dict[str, dict[str, Any]] = {
    "": {"sparsity": 0.2}, "2:4": {"pattern": "2:4"}, "block:2x2": {"pattern": "block:2x2", "sparsity": 0.3},
    "column": {"pattern": "column", "sparsity": 0.3},
}  # fmt: skip


def sparse() -> ModelProto:
    """Every other pair of the inputs of each layer meets zeros alone, which is what each of the patterns wants."""

    def held(w: Array) -> Array:
        return emptied(w, *(i for i in range(w.shape[1]) if i % 4 > 1), axis=1)

    nodes = """h = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(h) k = Conv<group = 2, strides = [2, 2]>(r, u)
        t = Relu(k) f = Flatten(t) g = Gemm<transB = 1>(f, v, c) q = Relu(g) y = MatMul(q, z)"""
    return net_of(
        nodes, PICTURES, {
            "w": held(normal(8, 3, 3, 3)), "b": normal(8, seed=1), "u": held(normal(8, 4, 3, 3, seed=2)),
            "v": held(normal(16, 72, seed=3)), "c": normal(16, seed=4), "z": held(normal(4, 16, seed=5)).T,
        },
    )  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_weights_that_are_zero_go_first(pattern: str, solver: str) -> None:
    """A layer that has as many zeros as are asked for stays as it is, by any solver, with ways to allocate in turn."""
    if pattern.startswith(("block", "column")) and not SOLVERS[solver].tiles:
        pytest.skip("the solver is not for tiles")
    proto, x = sparse(), data_of(PICTURES)
    for allocate in (
        [*ZERO_ALLOCATORS] if pattern == "" else [name for name, row in ZERO_ALLOCATORS.items() if row.even]
    ):
        result = onnxprune.prune(
            proto, solver=solver, sparsity_allocate=allocate, calibration=x, format="dense", **PATTERNS[pattern],
            **QUICK,
        )  # fmt: skip
        before, after = onnxprune.load(proto).weights, result.model.weights
        assert all(np.array_equal(w, after[name]) for name, w in before.items()), allocate


@pytest.mark.parametrize("pattern", PATTERNS)
def test_weights_that_are_zero_go_first_without_data(pattern: str) -> None:
    proto = sparse()
    result = onnxprune.prune(proto, format="dense", **PATTERNS[pattern], measure=False)
    assert all(np.array_equal(w, result.model.weights[name]) for name, w in onnxprune.load(proto).weights.items())
