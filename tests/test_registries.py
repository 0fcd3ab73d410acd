"""Registries: what a row says of itself holds, and the help of an option lists exactly the rows.

A new row is covered without a word here; where it needs a value, by one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from conftest import ROOT
from criteria import LABELLED, ROWS
from models.nets import build, normal
from models.small import residual_vectors
from onnxprune import OptionError, Plan
from onnxprune.allocation.allocators import ALLOCATORS
from onnxprune.allocation.recipe import DEFAULTS, recipe_of
from onnxprune.allocation.select import MAX_RATIO
from onnxprune.cli.command import DECLARED
from onnxprune.evaluation.metrics import DEFAULT_METRICS, METRICS
from onnxprune.importance.gradients import GRADIENT_CRITERIA
from onnxprune.importance.score import CRITERIA
from onnxprune.importance.weights import WEIGHT_CRITERIA, Site
from onnxprune.recovery.recover import RECOVERIES, Recovering
from onnxprune.solvers.masks import SOLVERS, Problem, seconds
from onnxprune.solvers.patterns import Count
from onnxprune.sparsity.allocate import ZERO_ALLOCATORS
from onnxprune.sparsity.grow import grown
from onnxprune.sparsity.options import BEST_ALLOCATION, BEST_SOLVER, EVEN_ALLOCATION, PLAIN_SOLVER

X = normal(80, 6, seed=9).astype(np.float32)


def prune(**options: Any) -> onnxprune.Result:
    return onnxprune.prune(residual_vectors(), **{"measure": False, "threads": 1, **options})


def arrays(result: onnxprune.Result) -> list[bytes]:
    return sorted(t.SerializeToString(deterministic=True) for t in onnxprune.to_proto(result.model).graph.initializer)


def zeros(result: onnxprune.Result) -> float:
    """Share of the weights that are zero."""
    sparsity = result.report.sparsity
    assert sparsity is not None
    return sparsity.zeros / sparsity.size


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


@pytest.mark.parametrize("name", ROWS)
def test_criterion(name: str) -> None:
    row = ROWS[name]
    if row.needs_data:
        with pytest.raises(OptionError, match=f"^importance='{name}' needs data: calibration=FOLDER"):
            prune(channels=0.5, importance=name, recover="none")
    else:
        assert prune(channels=0.5, importance=name, recover="none").plan.keep
    found = prune(channels=0.5, importance=name, recover="none", calibration=X)
    assert found.plan.keep and found.plan.settings["importance"] == name
    assert (row.by == "weights") == (row in WEIGHT_CRITERIA.values()) and row.needs_data != (
        row.by == "weights" or row.dataless
    )
    assert row.by == "weights" or (row.reads is None and not row.rowwise)
    assert row.by == "data" or not row.measures


@pytest.mark.parametrize("name", LABELLED)
def test_criterion_that_needs_labels(name: str) -> None:
    """Of samples to train on: calibration samples have none."""
    for data in ({}, {"calibration": X}):
        with pytest.raises(OptionError, match=f"^importance='{name}' needs labels.* give train=SRC with labels, or "):
            prune(channels=0.5, importance=name, recover="none", **data)
    with pytest.raises(OptionError, match=f"^importance='{name}' needs labels"):
        prune(channels=0.5, importance=name, recover="none", train=X)
    kept = [
        prune(channels=0.125, round_to=1, importance=name, recover="none", train=X, train_labels=labels).plan.keep
        for labels in (np.zeros(80, np.int64), np.full(80, 3))
    ]
    assert kept[0] and {k: v.tolist() for k, v in kept[0].items()} != {k: v.tolist() for k, v in kept[1].items()}
    assert prune(layers=0.5, importance=name, recover="none", train=X, train_labels=CLASSES).plan.keep


def test_labels_make_another_fisher() -> None:
    asked: dict[str, Any] = {"channels": 0.5, "importance": "fisher", "recover": "none", "calibration": X}
    own, empirical = prune(**asked), prune(**asked, train=X, train_labels=CLASSES)
    assert {k: v.tolist() for k, v in own.plan.keep.items()} != {k: v.tolist() for k, v in empirical.plan.keep.items()}


@pytest.mark.parametrize("name", ROWS)
def test_criterion_of_blocks(name: str) -> None:
    """Residual blocks go by what they change in the stream, unless the row says that it scores them."""
    if ROWS[name].blocks:
        assert prune(layers=0.5, importance=name, recover="none", calibration=X).plan.keep
    else:
        with pytest.raises(OptionError, match=rf"^importance='{name}' needs units to score.* or by head_loss or "):
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
    if row.at_outputs:
        assert "level database kept" in str(prune(target_macs=0.7, calibration=X, cache=tmp_path, **quick).report.cache)
    else:
        with pytest.raises(OptionError, match=r"^cache=.* has no effect here: it keeps level databases"):
            prune(target_macs=0.7, calibration=X, cache=tmp_path, **quick)


@pytest.mark.parametrize("name", [name for name, row in ALLOCATORS.items() if row.by_ratio is not None])
def test_the_most_of_a_group(name: str) -> None:
    """Where scores would take all of one group and nothing of another, an allocator stops at what its row says."""
    groups = [g for g in onnxprune.analyze(residual_vectors()).of_kind("channels") if g.size == 8]
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


# Solvers


PATTERNS = {"tiles": "block:4x4", "columns": "column", "N:M": "2:4"}


def test_solvers_are_listed() -> None:
    assert_listed("solver", SOLVERS)
    assert {name: row.help for name, row in SOLVERS.items()} == DECLARED["solver"].choices
    free = [name for name, row in SOLVERS.items() if not row.needs_data]
    assert free[0] == PLAIN_SOLVER and f"all but {' and '.join(free)} need --calibration" in DECLARED["solver"].help
    assert [name for name, row in SOLVERS.items() if row.gradients] == list(GRADIENT_CRITERIA)


LABELS: dict[str, Any] = {"train": X, "train_labels": (np.arange(80) % 5).astype(np.int64)}


@pytest.mark.parametrize("name", SOLVERS)
def test_solver(name: str) -> None:
    asked: dict[str, Any] = {"sparsity": 0.5, "solver": name, "format": "dense"}
    if SOLVERS[name].labels:
        with pytest.raises(OptionError, match=f"^solver='{name}' needs labels.* give train=SRC with labels, or "):
            prune(**asked, calibration=X)
        asked |= LABELS
        assert zeros(prune(**asked)) == pytest.approx(0.5, abs=0.02)
    elif SOLVERS[name].needs_data:
        with pytest.raises(OptionError, match=f"^solver='{name}' needs data: calibration=FOLDER"):
            prune(**asked)
    else:
        assert zeros(prune(**asked)) == pytest.approx(0.5, abs=0.02)
    assert zeros(prune(**asked, calibration=X)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("name", SOLVERS)
def test_patterns_of_a_solver(name: str, kind: str) -> None:
    asked: dict[str, Any] = {"pattern": PATTERNS[kind], "solver": name, "format": "dense", "calibration": X}
    asked |= {} if kind == "N:M" else {"sparsity": 0.5}
    asked |= LABELS if SOLVERS[name].labels else {}
    if kind == "N:M" or SOLVERS[name].tiles:
        assert zeros(prune(**asked)) >= 0.4
    else:
        with pytest.raises(
            OptionError, match=f"^solver='{name}' removes weights one by one; with .* choose {BEST_SOLVER}$"
        ):
            prune(**asked)


@pytest.mark.parametrize("name", SOLVERS)
def test_zeros_grow(name: str) -> None:
    """What is zero after a step stays zero, whether the solver is told of it, goes by it, or has a way of its own."""
    row, rng = SOLVERS[name], np.random.default_rng(1)
    x = rng.normal(size=(40, 8))
    w = rng.normal(size=(6, 8))
    p = Problem(x.T @ x / 40 + 0.01 * np.eye(8), w, w, np.sqrt(np.square(x).mean(0)), np.abs(w))
    mask, first = row.solve(p, Count(12))
    after, second = grown(p, Count(24), np.where(mask, first, 0.0), name, recover=False)
    assert (~after).sum() == 24 and not second[~after].any() and not after[first == 0].any()
    assert row.among is None or not row.by_original
    assert seconds(6, 8, row) > 0


# Allocators of zeros


def test_allocators_of_zeros_are_listed() -> None:
    assert_listed("sparsity_allocate", ZERO_ALLOCATORS)
    assert {name: row.help for name, row in ZERO_ALLOCATORS.items()} == DECLARED["sparsity_allocate"].choices
    assert ZERO_ALLOCATORS[EVEN_ALLOCATION].even and ZERO_ALLOCATORS[BEST_ALLOCATION].needs_data


@pytest.mark.parametrize("name", ZERO_ALLOCATORS)
def test_allocator_of_zeros(name: str) -> None:
    row = ZERO_ALLOCATORS[name]
    asked = {"sparsity": 0.5, "sparsity_allocate": name, "format": "dense"}
    if row.needs_data:
        with pytest.raises(OptionError, match=f"^sparsity_allocate='{name}' needs data: calibration=FOLDER"):
            prune(**asked)
    else:
        assert zeros(prune(**asked)) == pytest.approx(0.5, abs=0.02)
    found = prune(**asked, calibration=X, solver="magnitude")
    assert zeros(found) == pytest.approx(0.5, abs=0.02)
    sparsity = found.report.sparsity
    assert sparsity is not None
    shares = {round(layer.zeros / layer.size, 2) for layer in sparsity.layers}
    assert (shares == {0.5}) == row.even
    assert row.needs_data or not row.errors


@pytest.mark.parametrize("name", ZERO_ALLOCATORS)
def test_allocator_of_zeros_with_a_pattern(name: str) -> None:
    asked = {"pattern": "2:4", "sparsity_allocate": name, "format": "dense", "calibration": X, "solver": "magnitude"}
    if ZERO_ALLOCATORS[name].even:
        assert zeros(prune(**asked)) == pytest.approx(0.5, abs=0.05)
    else:
        with pytest.raises(OptionError, match=f"^sparsity_allocate='{name}' spreads sparsity over the layers"):
            prune(**asked)


# Metrics


def test_metrics_are_listed() -> None:
    assert_listed("metric", METRICS)
    assert {name: row.help for name, row in METRICS.items()} == DECLARED["metric"].choices
    assert all(f"{name}: {row.help}" in DECLARED["metric"].help for name, row in METRICS.items())


CLASSES = (np.arange(80) % 5).astype(np.int64)


@pytest.mark.parametrize("name", METRICS)
def test_metric(name: str) -> None:
    row = METRICS[name]
    if row.labels:
        with pytest.raises(OptionError, match=f"^metric='{name}': there are no labels"):
            prune(channels=0.5, recover="none", evaluate=X, metric=name)
    source = {"x": X, "labels": CLASSES} if row.labels else X
    found = prune(channels=0.5, recover="none", evaluate=source, metric=name).report.evaluation
    assert found is not None and found.metric == name
    assert found.drop == pytest.approx((found.before - found.after) * row.better)
    assert row.unit != "share" or (0 <= found.after <= 1 and row.better == 1)
    assert row.labels != row.reference
    if row.reference:  # the original is as good as can be
        assert found.before == (1.0 if row.better == 1 else 0.0) and found.drop > 0
        with pytest.raises(OptionError, match=f"^metric='{name}' compares with another model"):
            onnxprune.evaluate(residual_vectors(), X, metric=name)
        assert onnxprune.evaluate(residual_vectors(), X, metric=name, against=residual_vectors()).value == found.before
        with pytest.raises(OptionError, match=r"^labels has no effect"):
            onnxprune.evaluate(residual_vectors(), X, metric=name, labels=CLASSES, against=residual_vectors())
    else:
        assert onnxprune.evaluate(residual_vectors(), X, metric=name, labels=CLASSES).value == pytest.approx(
            found.before
        )
        with pytest.raises(OptionError, match=r"^against has no effect"):
            onnxprune.evaluate(residual_vectors(), X, metric=name, labels=CLASSES, against=residual_vectors())


@pytest.mark.parametrize("name", METRICS)
def test_metric_without_classes(name: str) -> None:
    """Of a model whose output is a picture, as its input is."""
    picture = build("y = Relu(x)", "float[n,3,4,4]", "float[n,3,4,4]")
    x = normal(20, 3, 4, 4).astype(np.float32)
    source = {"x": x, "labels": CLASSES[:20]} if METRICS[name].labels else x
    if METRICS[name].classes:
        with pytest.raises(OptionError, match=f"^metric='{name}': .* no output with a row of class scores; use mse$"):
            onnxprune.evaluate(picture, source, metric=name, against=None if METRICS[name].labels else picture)
    else:
        assert onnxprune.evaluate(picture, source, metric=name, against=picture).value == 0


def test_every_case_has_a_metric() -> None:
    cases = [row.default for row in METRICS.values() if row.default]
    assert sorted(cases) == sorted(DEFAULT_METRICS) == ["classes", "labels", "labels of tokens", "outputs"]


def test_a_plan_names_a_recovery_that_is_there() -> None:
    (group, *_) = onnxprune.analyze(residual_vectors()).of_kind("channels")
    with pytest.raises(OptionError, match=r"^the plan: recovery 'magic' is unknown; it is one of least-squares, "):
        prune(plan=Plan({group.name: np.arange(group.size) > 1}, "magic"))
