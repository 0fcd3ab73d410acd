"""`--target-latency`: the search holds what is measured, whatever was predicted; and `explore`, many of these."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import onnxprune
from conftest import ROOT
from onnxprune.allocation.budget import LATENCY
from onnxprune.cli import app
from onnxprune.errors import OptionError, Unreachable
from onnxprune.experiments.knees import front, knees
from onnxprune.graph.io import Model, load
from onnxprune.graph.traits import Product
from onnxprune.latency.model import LatencyModel
from onnxprune.pipeline import prepare, timely
from onnxprune.pipeline.options import Options
from onnxprune.runtime.timing import Latency
from onnxprune.structure.groups import analyze

MODEL, DATA = ROOT / "models/digits_mlp.onnx", ROOT / "models/digits_mlp.npz"
BASE = 0.3  # of the original's time that no cut saves, on the machine of these tests


def macs_of(model: Model) -> float:
    """MACs of a run, of a model with zeros those of the entries that are left."""
    analysis = analyze(model)
    return analysis.costs().macs(analysis.keep_ids({}))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine whose times are known: BASE and a part in proportion to the MACs; it is predicted by the MACs alone.

    noise: half interval of every ratio; curves: layer -> method -> times with zeros; drafts: ratios as measured.
    """
    state: dict[str, Any] = {"noise": 0.005, "curves": {}, "drafts": [], "second": 1e-3}

    def predicted(analysis: Any, *_: Any, **__: Any) -> LatencyModel:
        costs, whole = analysis.costs(), analysis.keep_ids({})
        per_mac = state["second"] / costs.macs(whole)
        products = tuple(Product(p.label, p.factor * per_mac, p.ids, p.divisors) for p in costs.macs_of)
        return LatencyModel(products, (0.0, 0.0), state["curves"], None)  # type: ignore[arg-type]

    def measured(original: Model, written: Model, *_: Any, **__: Any) -> tuple[dict[str, Latency], list[str]]:
        ratio = BASE + (1 - BASE) * macs_of(written) / macs_of(original)
        state["drafts"].append(ratio)
        around = (ratio - state["noise"], ratio + state["noise"])
        before = Latency(state["second"], state["second"], 100, 1)
        return {
            "before": before,
            "after": replace(before, median=ratio * state["second"], ratio=ratio, interval=around),
        }, []

    monkeypatch.setattr(prepare, "latency_model", predicted)
    monkeypatch.setattr(timely, "latencies", measured)
    monkeypatch.setattr("onnxprune.pipeline.reporting.latencies", measured)
    return state


def pruned(**options: Any) -> onnxprune.Result:
    return onnxprune.prune(MODEL, calibration=DATA, samples=120, threads=1, **options)


@pytest.mark.parametrize("target", [0.8, "60%", "0.5ms"])
def test_what_is_measured_holds_the_target(machine: dict[str, Any], target: Any) -> None:
    """Though the prediction knows nothing of the part that no cut saves; and not by far too much."""
    result = pruned(target_latency=target, methods="channels", round_to=1)
    limit = {0.8: 0.8, "60%": 0.6, "0.5ms": 0.5}[target]
    (row,) = [g for g in result.report.got if g.option == "--target-latency"]
    assert 0.9 * limit < row.got <= limit
    assert result.report.after.latency is not None and result.report.after.latency.ratio == row.got
    (tried,) = result.report.search
    assert (tried.way, tried.chosen) == ("units", True)
    assert tried.ratio == pytest.approx(row.got) and tried.damage is not None
    assert len(machine["drafts"]) <= timely.DRAFTS + 3


def test_a_target_that_no_cut_reaches_names_the_nearest(machine: dict[str, Any]) -> None:
    with pytest.raises(Unreachable, match=r"target_latency=0.35 cannot be reached by .* (%|time)"):
        pruned(target_latency=0.35, methods="channels")


def test_a_dry_run_measures_and_writes_nothing(machine: dict[str, Any]) -> None:
    result = pruned(target_latency=0.7, methods="channels", dry_run=True)
    assert result.written is None and result.report.after.latency is None
    assert [t.chosen for t in result.report.search] == [True] and result.plan.keep


def test_without_data_ratios_grow_until_it_is_held(machine: dict[str, Any]) -> None:
    result = onnxprune.prune(MODEL, target_latency=0.7, threads=1, round_to=1)
    assert [t.damage for t in result.report.search] == [None]
    assert result.report.after.latency is not None and result.report.after.latency.ratio <= 0.7


def test_a_machine_too_noisy_is_named(machine: dict[str, Any]) -> None:
    machine["noise"] = 0.2
    with pytest.raises(OptionError, match=r"too noisy .* repeat=2"):
        pruned(target_latency=0.7, methods="channels")


def test_zeros_that_do_not_pay_are_not_made(machine: dict[str, Any]) -> None:
    """All layers are said to be faster with zeros; in the whole model none is, so that nothing but units goes."""
    layers = [n.name for n in load(MODEL).proto.graph.node]
    machine["curves"] = {n: {"column": ((0.5, 0.9), (0.9, 0.85))} for n in layers if n}
    result = pruned(target_latency=0.8, methods="channels,column")
    assert result.report.after.latency is not None and result.report.after.latency.ratio <= 0.8
    assert [t.way for t in result.report.search if t.chosen] == ["units"]


def test_zeros_alone_that_do_not_pay_reach_nothing(machine: dict[str, Any]) -> None:
    layers = [n.name for n in load(MODEL).proto.graph.node]
    machine["curves"] = {n: {"column": ((0.5, 0.6), (0.9, 0.2))} for n in layers if n}
    with pytest.raises(Unreachable, match=r"cannot be reached by what is faster: .* 100% of the latency"):
        pruned(target_latency=0.85, methods="column", plain=True)


def test_the_bound_is_asked_of_the_model_that_holds_the_target(machine: dict[str, Any]) -> None:
    result = pruned(target_latency=0.8, methods="channels", evaluate=DATA, max_drop=0.05)
    assert result.report.evaluation is not None and result.report.evaluation.holds(0.05)
    with pytest.raises(OptionError, match=r"max_drop=0.03: the best model that holds target_latency=0.36 loses"):
        pruned(target_latency=0.36, methods="channels", evaluate=DATA, max_drop=0.03, max_ratio=0.97, recover="none")


def test_the_smallest_by_another_budget(machine: dict[str, Any]) -> None:
    small, fewer = (pruned(max_drop=0.05, evaluate=DATA, minimize=budget) for budget in ("bytes", "macs"))
    assert small.report.after.bytes is not None and fewer.report.after.bytes is not None
    assert small.report.after.bytes <= fewer.report.after.bytes
    assert "% of the bytes" in str(small.report.notes) and "% of the MACs" in str(fewer.report.notes)
    quick = pruned(max_drop=0.05, evaluate=DATA, minimize=LATENCY, methods="channels")
    assert quick.report.after.latency is not None and quick.report.after.latency.ratio < 0.8


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"target_latency": 0.7, "steps": 3}, "steps=3: a time is reached in one step"),
    "nothing measured": ({"target_latency": 0.7, "measure": False}, "measure=False measures nothing"),
    "kinds twice": ({"target_latency": 0.7, "methods": "heads", "channels": "auto"}, "and channels as well"),
    "zeros for MACs": ({"target_macs": 0.7, "methods": "nm"}, "nm can make less of bytes, energy"),
    "no data": ({"target_latency": 0.7, "methods": "unstructured", "calibration": None}, "needs data"),
    "ours, plain": ({"target_latency": 0.7, "methods": "block", "plain": True}, "which plain=True rules out"),
    "zeros twice": ({"target_latency": 0.7, "methods": "nm", "sparsity": 0.5}, "leave one out"),
    "nothing to hold": ({"channels": 0.3, "repeat": 3}, "repeat=3 needs"),
    "no bound": ({"channels": 0.3, "minimize": "bytes"}, "minimize='bytes' needs"),
    "above": ({"target_latency": "3s"}, "at most what the model has now"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(case: str, machine: dict[str, Any]) -> None:
    options, line = REFUSED[case]
    with pytest.raises(OptionError, match=line):
        onnxprune.prune(MODEL, **{"calibration": DATA, "samples": 60, "threads": 1, **options})


def test_methods_where_nobody_names_some() -> None:
    timed = Options.of({"target_latency": 0.7, "calibration": str(DATA)})
    assert {"channels", "heads", "layers"} <= set(timed.amounts) and "unstructured" in timed.weight_methods
    assert Options.of({"target_latency": 0.7, "calibration": str(DATA), "plain": True}).weight_methods == ["column"]
    assert Options.of({"target_latency": 0.7}).weight_methods == []
    assert Options.of({"target_macs": 0.7}).amounts == {"channels": "auto"}
    assert Options.of({"target_macs": 0.7, "methods": "heads,layers"}).amounts == {"heads": "auto", "layers": "auto"}


# ---------------------------------------------------------------------------------------------------------------------
# explore
# ---------------------------------------------------------------------------------------------------------------------


def test_the_front_and_its_knees() -> None:
    cost, loss = [0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0], [0.9, 0.5, 0.1, 0.3, 0.09, 0.04, 0.0]
    assert front(cost, loss) == [0, 1, 2, 4, 5, 6]  # 0.5 is beaten by 0.4
    assert knees(cost, loss) == [2]
    assert knees([0.2, 0.6, 1.0], [0.8, 0.4, 0.0]) == []  # a straight line has none
    assert knees([0.5, 1.0], [0.1, 0.0]) == []


def test_explore_goes_on_where_it_was_stopped(
    machine: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    words = ["explore", str(MODEL), "--calibration", str(DATA), "--evaluate", str(DATA), "--samples", "120",
             "--methods", "channels", "--threads", "1", "-o", str(tmp_path / "all"), "--json", str(out)]  # fmt: skip
    assert app.run([*words, "--left", "0.8,0.6"]) == 0
    first, drafts = json.loads(out.read_text()), len(machine["drafts"])
    stamps = {p["file"]: os.stat(p["file"]).st_mtime_ns for p in first["points"]}
    assert app.run([*words, "--left", "0.8,0.6,0.2", "--html", str(page), "-q"]) == 0
    again = json.loads(out.read_text())
    assert again["points"][:2] == first["points"] and again["points"][2]["file"] is None
    assert "cannot be reached" in again["points"][2]["why"]
    assert {p: os.stat(p).st_mtime_ns for p in stamps} == stamps and len(machine["drafts"]) <= drafts + timely.DRAFTS
    Path(again["points"][0]["file"]).unlink()
    assert app.run([*words, "--left", "0.8,0.6", "-q"]) == 0 and Path(again["points"][0]["file"]).is_file()
    for p in again["points"][:2]:
        assert p["cost"] <= p["left"] and p["loss"] == p["drop"] and onnxprune.load(p["file"]) is not None
    assert (tmp_path / "all/curve.svg").read_text().startswith("<svg") and "A trade-off" in page.read_text()
    assert "knee: of the curve" in capsys.readouterr().out


def test_explore_needs_points_and_data(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a curve takes 2 points"):
        onnxprune.explore(MODEL, tmp_path, calibration=DATA, left=(0.5,))
    with pytest.raises(OptionError, match="give calibration=SRC"):
        onnxprune.explore(MODEL, tmp_path)
    for times in ({"repeat": 2}, {"latency_table": tmp_path / "no.json"}):
        with pytest.raises(OptionError, match="is about times: it needs budget='latency'"):
            onnxprune.explore(MODEL, tmp_path, calibration=DATA, budget="bytes", **times)
    with pytest.raises(OptionError, match=r"latency_table=.* cannot be read"):
        onnxprune.explore(MODEL, tmp_path, calibration=DATA, latency_table=tmp_path / "no.json")
