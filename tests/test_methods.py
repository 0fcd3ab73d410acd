"""Targets that methods compete for: bytes, energy and memory by units, zeros, smaller values and codebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from conftest import ROOT
from onnxprune.allocation.budget import BUDGETS, Effect
from onnxprune.allocation.codebooks import VALUES, codebooks
from onnxprune.allocation.methods import ANY, METHODS
from onnxprune.allocation.switches import rising
from onnxprune.calibration.calibration import Batches
from onnxprune.errors import OptionError, Unreachable
from onnxprune.formats.codebook import cluster
from onnxprune.graph.io import load, to_proto
from onnxprune.pipeline import targets
from onnxprune.pipeline.setup import Pruning
from onnxprune.runtime.session import session

MODEL, DATA = ROOT / "models/digits_mlp.onnx", ROOT / "models/digits_mlp.npz"


def pruned(**options: Any) -> onnxprune.Result:
    return onnxprune.prune(MODEL, **{"calibration": DATA, "samples": 120, "threads": 1, "measure": False, **options})


def got(result: onnxprune.Result, target: str) -> float:
    (row,) = [g for g in result.report.got if g.option == f"--target-{target}"]
    return row.got


def test_every_budget_is_served_by_units() -> None:
    assert set(BUDGETS) == ANY
    assert all(row.serves == ANY for row in METHODS.values() if row.kind)


HELD = {
    "codebooks": ("bytes", "20%", "cluster", "codebooks"),
    "small values": ("bytes", "30%", "unstructured,values", "unstructured zeros, int8 values"),
    "few weights": ("energy", "35%", "unstructured", "unstructured zeros"),
    "inputs": ("memory", "60%", "column", "column zeros"),
}


@pytest.mark.parametrize("case", HELD)
def test_a_target_is_held_by_the_file(case: str, tmp_path: Path) -> None:
    """By what is told of the file that is written, and not by far too much; by zeros or codebooks alone, layer by
    layer."""
    budget, target, methods, way = HELD[case]
    result = pruned(methods=methods, **{f"target_{budget}": target})
    held, limit = got(result, budget), float(target.rstrip("%")) / 100
    assert 0.9 * limit < held <= limit
    (tried,) = [t for t in result.report.search if t.chosen]
    assert tried.way == way and tried.predicted is not None and tried.damage is not None and not result.plan.keep
    result.save(tmp_path / "small.onnx")
    if budget == "bytes":
        assert (tmp_path / "small.onnx").stat().st_size / MODEL.stat().st_size == pytest.approx(held)
    (x,) = [v for v in np.load(DATA).values() if v.dtype == np.float32]
    with session(load(tmp_path / "small.onnx"), threads=1) as s:
        assert np.isfinite(s.run(None, {s.get_inputs()[0].name: x[:4]})[0]).all()


def test_of_all_ways_the_one_that_hurts_least_is_kept() -> None:
    result = pruned(methods="channels,unstructured,values,cluster", target_bytes="20%")
    made = [t for t in result.report.search if t.damage is not None]
    assert len(made) >= 3 and got(result, "bytes") <= 0.2
    (chosen,) = [t for t in made if t.chosen]
    assert chosen.damage == min(t.damage for t in made if t.damage is not None)
    assert result.report.fidelity is not None and result.report.fidelity.kl == pytest.approx(chosen.damage)
    ways = [t.way for t in result.report.search]
    assert len(set(ways)) == len(ways) and sum(", by the damage" not in way for way in ways) == 9


def test_what_hurts_more_together_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where units and zeros together hurt many times as much as by themselves, more units go and fewer weights."""
    seen: list[Pruning] = []

    def suffered(setup: Any, made: Pruning) -> float:
        if made.sparsity is None or not made.plan.keep:
            return 1.0
        seen.append(made)
        return 1e-3 / len(seen)

    monkeypatch.setattr(targets, "suffered", suffered)
    result = pruned(methods="channels,unstructured", target_bytes="40%")
    (chosen,) = [t for t in result.report.search if t.chosen]
    assert chosen.way == "units and unstructured zeros, by the damage of both together" and len(seen) == 2
    zeros = [made.sparsity.zeros / made.sparsity.size for made in seen if made.sparsity is not None]
    assert zeros[1] < zeros[0] and got(result, "bytes") <= 0.4


def test_kinds_of_units_that_hurt_more_together_are_tried_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where blocks and channels that go hurt far more than the levels add up to, models without either are made."""

    def suffered(setup: Any, made: Pruning) -> float:
        kinds = {g.kind for g in setup.analysis.groups if not made.plan.keep.get(g.name, np.ones(1)).all()}
        return 1e3 if made.sparsity is not None or len(kinds) > 1 else 500.0

    monkeypatch.setattr(targets, "suffered", suffered)
    result = onnxprune.prune(
        ROOT / "models/digits_vit.onnx", methods="channels,layers,column", target_bytes="30%", threads=1,
        measure=False, samples=60, calibration=ROOT / "models/digits_calibration.npz",
    )  # fmt: skip
    ways = {t.way: t for t in result.report.search}
    assert ways["units without channels"].chosen and got(result, "bytes") <= 0.3
    assert "cannot be reached" in ways["units without layers"].why
    assert all(name.endswith(":layers") for name, keep in result.plan.keep.items() if not keep.all())


def test_two_targets_hold_together() -> None:
    result = pruned(methods="channels,unstructured", target_bytes="50%", target_macs="60%")
    assert got(result, "bytes") <= 0.5 and got(result, "macs") <= 0.6


def test_a_plan_makes_the_same_codebooks(tmp_path: Path) -> None:
    result = pruned(methods="channels,cluster", target_bytes="12%")
    assert result.report.codebooks is not None and len({row.k for row in result.report.codebooks.rows}) > 1
    (tmp_path / "plan.json").write_text(result.plan.to_json())
    again = onnxprune.prune(MODEL, plan=tmp_path / "plan.json", calibration=DATA, threads=1, measure=False, samples=120)
    assert to_proto(again.model).SerializeToString() == to_proto(result.model).SerializeToString()


def test_the_bound_and_the_least_bytes() -> None:
    result = pruned(methods="cluster", max_drop=0.02, minimize="bytes", evaluate=DATA)
    assert result.report.evaluation is not None and result.report.evaluation.holds(0.02)
    assert result.report.after.bytes is not None and result.report.before.bytes is not None
    assert result.report.after.bytes < 0.3 * result.report.before.bytes


def test_damage_of_codebooks_is_that_of_the_outputs() -> None:
    """The one that is measured, of the error that is typical, is what the outputs of the clustered model suffer."""
    model = load(MODEL)
    x = np.load(DATA)["pixels"][:96]
    (name,) = [i.name for i in model.proto.graph.input]
    data = Batches([{name: x[:64]}], held_out=[{name: x[64:]}], learn=[{name: x[:64]}], unseen=32)
    switches = codebooks(model, data, "tensor", "auto")
    assert {s.name for s in switches} <= set(model.weights) and len(switches) >= 3
    for switch in switches:
        assert switch.settings[0] == 0 and set(switch.settings[1:]) <= set(map(float, VALUES))
        assert list(switch.damage) == sorted(switch.damage)
        (effect,) = switch.of("bytes")
        assert list(effect.left) == sorted(effect.left, reverse=True) and effect.labels == {switch.name}
        _, rows, _ = cluster(model, k={switch.name: int(switch.settings[-1])})
        nodes = effect.left[-1] * rows[0].before_bytes - rows[0].after_bytes
        assert 0 < nodes < 1000


def test_a_switch_leaves_less_and_hurts_more() -> None:
    effects = {"bytes": (Effect(frozenset("a"), (0.9, 0.95, 0.5, 0.4)),)}
    made = rising("a", (1.0, 2.0, 3.0, 4.0), (0.2, 0.1, 0.1, np.inf), effects)
    assert made is not None and made.settings == (0.0, 1.0, 3.0) and made.damage == (0.0, 0.2, 0.2)
    assert rising("a", (1.0,), (0.1,), {"bytes": (Effect(frozenset("a"), (1.0,)),)}) is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no use": ({"target_macs": 0.7, "methods": "channels,cluster"}, "cluster can make less of bytes alone"),
    "nothing stored": ({"target_bytes": 0.5, "methods": "channels,values"}, "add unstructured, nm or block"),
    "codebooks twice": ({"target_bytes": 0.5, "methods": "cluster", "cluster": 16}, "so does cluster=16"),
    "stored twice": ({"target_bytes": 0.5, "methods": "nm", "format": "csr"}, "and format='csr' says how"),
    "steps": ({"target_bytes": 0.5, "methods": "cluster", "steps": 2}, "steps=2: what methods='cluster' chooses"),
    "no data": ({"target_bytes": 0.5, "methods": "cluster", "calibration": None}, "methods='cluster' needs data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(case: str) -> None:
    options, line = REFUSED[case]
    with pytest.raises(OptionError, match=line):
        pruned(**options)


def test_what_cannot_be_reached_names_the_nearest() -> None:
    with pytest.raises(Unreachable, match=r"target_bytes='1%' cannot be reached by .* of the bytes are left"):
        pruned(methods="cluster", target_bytes="1%")
