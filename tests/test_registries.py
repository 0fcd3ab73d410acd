"""Registries: what a row says of itself holds, and the help of an option lists exactly the rows.

A new row is covered without a word here; where it needs a value, by one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from conftest import ROOT
from models.nets import build, normal
from onnxprune import OptionError
from onnxprune.allocation.allocators import ALLOCATORS
from onnxprune.allocation.recipe import DEFAULTS, recipe_of
from onnxprune.allocation.select import MAX_RATIO
from onnxprune.cli.command import DECLARED
from onnxprune.importance.score import CRITERIA
from onnxprune.importance.weights import WEIGHT_CRITERIA, Site
from onnxprune.recovery.recover import RECOVERIES, Recovering


def net() -> ModelProto:
    """Vectors of 6, through a layer of 8 units, a normalisation and two residual blocks, to five classes."""
    nodes = """a = Gemm(x, w0, b0) n = BatchNormalization(a, s, t, m, v) r = Relu(n)
               h = Gemm(r, w1, b1) q = Relu(h) k = Gemm(q, w2, b2) f = Add(r, k)
               i = Gemm(f, w3, b1) j = Relu(i) l = Gemm(j, w4, b3) g = Add(f, l) y = Gemm(g, w5, b4)"""
    shapes = {"w0": (6, 8), "b0": (8,), "w1": (8, 8), "b1": (8,), "w2": (8, 8), "b2": (8,), "m": (8,)}
    shapes |= {"w3": (8, 8), "w4": (8, 8), "b3": (8,), "w5": (8, 5), "b4": (5,)}
    weights: dict[str, Any] = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    norm = {"s": 1 + normal(8) * 0.1, "t": normal(8) * 0.1, "v": np.full(8, 1.5)}
    return build(nodes, "float[n,6]", "float[n,5]", **weights, **norm)  # type: ignore[no-any-return]


X = normal(80, 6, seed=9).astype(np.float32)


def prune(**options: Any) -> onnxprune.Result:
    return onnxprune.prune(net(), **{"measure": False, "threads": 1, **options})


def arrays(result: onnxprune.Result) -> list[bytes]:
    return sorted(t.SerializeToString(deterministic=True) for t in onnxprune.to_proto(result.model).graph.initializer)


def assert_listed(option: str, rows: Iterable[str], page: bool = True) -> None:
    """The option takes exactly these names, and docs/options.md has a table of them with a line each."""
    rows, o = list(rows), DECLARED[option]
    assert list(o.choices) == rows
    assert all(o.choices.values())
    text = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    table = text.partition(f"\n## {o.flag}\n")[2].partition("\n## ")[0]
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == rows


# Recoveries


def test_recoveries_are_listed() -> None:
    assert_listed("recover", RECOVERIES)
    assert {name: row.help for name, row in RECOVERIES.items()} == DECLARED["recover"].choices


@pytest.mark.parametrize("name", RECOVERIES)
def test_recovery(name: str) -> None:
    row = RECOVERIES[name]
    plain = arrays(prune(channels=0.5, importance="l2", recover="none"))
    if row.needs_data:
        with pytest.raises(OptionError, match=f"^recover='{name}' needs data: calibration=FOLDER"):
            prune(channels=0.5, importance="l2", recover=name)
        found = prune(channels=0.5, importance="l2", allocate="uniform", recover=name, calibration=X)
    else:
        found = prune(channels=0.5, importance="l2", recover=name)
    assert found.plan.recover == name
    assert (arrays(found) != plain) == row.cuts
    assert row.instant == (not row.cuts and not row.zeros)


@pytest.mark.parametrize("name", RECOVERIES)
def test_recovery_of_zeros(name: str) -> None:
    row = RECOVERIES[name]
    if row.cuts and not row.zeros:
        with pytest.raises(OptionError, match=r"makes up for units that went; for zeros choose least-squares or none$"):
            prune(sparsity=0.5, recover=name, calibration=X)
        return
    plain = arrays(prune(sparsity=0.5, solver="magnitude", recover="none", calibration=X, format="dense"))
    found = arrays(prune(sparsity=0.5, solver="magnitude", recover=name, calibration=X, format="dense"))
    assert (found != plain) == row.zeros == Recovering(name).zeros


# Criteria


def test_criteria_are_listed() -> None:
    assert_listed("importance", CRITERIA)
    assert {name: row.help for name, row in CRITERIA.items()} == DECLARED["importance"].choices


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion(name: str) -> None:
    row = CRITERIA[name]
    if row.needs_data:
        with pytest.raises(OptionError, match=f"^importance='{name}' needs data: calibration=FOLDER"):
            prune(channels=0.5, importance=name, recover="none")
    else:
        assert prune(channels=0.5, importance=name, recover="none").plan.keep
    found = prune(channels=0.5, importance=name, recover="none", calibration=X)
    assert found.plan.keep and found.plan.settings["importance"] == name
    assert (row.by == "weights") == (name in WEIGHT_CRITERIA) == (not row.needs_data)
    assert row.by == "weights" or (row.reads is None and not row.rowwise)
    assert row.by == "data" or not row.measures


@pytest.mark.parametrize("name", CRITERIA)
def test_criterion_of_blocks(name: str) -> None:
    """Residual blocks go by what they change in the stream, unless the row says that it scores them."""
    if CRITERIA[name].blocks:
        assert prune(layers=0.5, importance=name, recover="none", calibration=X).plan.keep
    else:
        with pytest.raises(OptionError, match=rf"^importance='{name}' needs units to score.* or by head_loss$"):
            prune(layers=0.5, importance=name, recover="none", calibration=X)


@pytest.mark.parametrize("name", [name for name, row in WEIGHT_CRITERIA.items() if row.rowwise])
def test_rows_by_themselves(name: str) -> None:
    row, rng = WEIGHT_CRITERIA[name], np.random.default_rng(0)
    rows, scale = normal(6, 4).astype(np.float32), normal(6, seed=1).astype(np.float32)
    for function in filter(None, (row.function, row.reads)):
        whole = function(Site("", rows, np.zeros(6, np.int64), scale), rng)
        parts = [
            function(Site("", rows[i : i + 2], np.zeros(2, np.int64), scale[i : i + 2]), rng) for i in range(0, 6, 2)
        ]
        assert np.array_equal(whole, np.concatenate(parts))


# Allocators of units


def test_allocators_are_listed() -> None:
    assert_listed("allocate", ALLOCATORS)
    assert {name: row.help for name, row in ALLOCATORS.items()} == DECLARED["allocate"].choices
    assert all(f"{name}: {row.help}" in DECLARED["allocate"].help for name, row in ALLOCATORS.items())


@pytest.mark.parametrize("name", ALLOCATORS)
def test_allocator(name: str, tmp_path: Path) -> None:
    row = ALLOCATORS[name]
    assert (row.by_ratio is None) != (row.by_levels is None)
    quick = {"recover": "none", "round_to": 1, "allocate": name}
    if row.needs_data:
        with pytest.raises(OptionError, match=f"^allocate='{name}' needs data: calibration=FOLDER"):
            prune(target_macs=0.7, **quick)
    else:
        assert prune(target_macs=0.7, **quick).plan.keep
    if row.needs_target:
        with pytest.raises(OptionError, match=f"^allocate='{name}' spreads a target: give target_macs"):
            prune(channels=0.5, calibration=X, **quick)
    else:
        assert prune(channels=0.5, calibration=X, **quick).plan.keep
    found = prune(target_macs=0.7, calibration=X, **quick)
    assert found.plan.settings["allocate"] == name and found.report.after.macs <= 0.7 * found.report.before.macs
    if row.cached:
        assert "level database kept" in str(prune(target_macs=0.7, calibration=X, cache=tmp_path, **quick).report.cache)
    else:
        with pytest.raises(OptionError, match=r"^cache=.* has no effect here: it keeps level databases"):
            prune(target_macs=0.7, calibration=X, cache=tmp_path, **quick)


@pytest.mark.parametrize("name", [name for name, row in ALLOCATORS.items() if row.by_ratio is not None])
def test_the_most_of_a_group(name: str) -> None:
    """Where scores would take all of one group and nothing of another, an allocator stops at what its row says."""
    groups = [g for g in onnxprune.analyze(net()).of_kind("channels") if g.size == 8]
    scores = {g.name: np.full(g.size, float(i > 0)) for i, g in enumerate(groups)}
    found = prune(channels=1 / len(groups), scores=scores, allocate=name, recover="none", round_to=1)
    gone = max(float((~keep).mean()) for keep in found.plan.keep.values())
    assert gone <= MAX_RATIO or not ALLOCATORS[name].capped


# Defaults


@pytest.mark.parametrize("data", DEFAULTS)
def test_defaults_are_rows(data: str) -> None:
    default = DEFAULTS[data]
    rows = CRITERIA[default.importance], ALLOCATORS[default.allocate], RECOVERIES[default.recover]
    assert [row.needs_data for row in rows] == [bool(data)] * 3
    assert recipe_of(None, None, None, data=data, targeted=True) == default
    free = recipe_of(None, None, None, data=data, targeted=False)
    assert not ALLOCATORS[free.allocate].needs_target
