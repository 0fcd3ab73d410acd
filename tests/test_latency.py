"""Latency tables and the model of what is left: sums, steps, tables that are refused, kits. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, Cli
from kinds import analysis_of
from onnxprune import OptionError, kernels
from onnxprune.allocation.budget import Usage, added
from onnxprune.errors import UserError
from onnxprune.graph.fingerprint import fingerprint
from onnxprune.graph.io import load
from onnxprune.graph.traits import Product
from onnxprune.latency import making, measure, table, zeros
from onnxprune.latency.fit import STEPS, cross_validated, fit
from onnxprune.latency.making import Measuring, measured_table
from onnxprune.latency.model import LatencyModel, latency_model, model_of
from onnxprune.latency.parts import EXACT, KINDS, design, owners, parts_of
from onnxprune.latency.table import Device, Table, per_part, refuse_noise, spread_of
from onnxprune.latency.variants import Picker, random_cuts, variants, widths
from onnxprune.runtime.feeds import likely_feeds
from onnxprune.structure.analysis import Analysis
from onnxprune.structure.groups import analyze

MLP, SE = ROOT / "models/digits_mlp.onnx", ROOT / "models/digits_mobile_se.onnx"
DATA = ROOT / "models/digits_mlp.npz"


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Little time for each variant, on a machine that may do anything else meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SECONDS", 0.002)
        patch.setattr(measure, "ROUNDS", (3, 20))
        patch.setattr(measure, "PROFILED", (2, 4))
        patch.setattr(table, "SPREAD", 1e9)
        yield


@pytest.fixture(scope="module")
def mlp() -> Analysis:
    return analyze(load(MLP))


def feeds_of(analysis: Analysis) -> dict[str, Any]:
    return likely_feeds(analysis.model, analysis.coupling.shapes, None)[0]


@cache
def mobile() -> Analysis:
    return analyze(load(SE))


def unfused(analysis: Analysis) -> list[tuple[str, str, float]]:
    """The nodes of a profile in which every node of the model is one."""
    return [(n.output[0], n.op_type, 0.0) for n in analysis.model.proto.graph.node]


@pytest.fixture(scope="module")
def model(mlp: Analysis) -> LatencyModel:
    return latency_model(mlp, feeds_of(mlp), threads=1, cache=None, seed=0)


# ---------------------------------------------------------------------------------------------------------------------
# What is left, as seconds
# ---------------------------------------------------------------------------------------------------------------------


def test_rows_sum_to_the_times_of_sessions(model: LatencyModel) -> None:
    for variant in model.table.variants:
        assert variant.seconds > 0
        assert sum(row.seconds for row in variant.rows) == pytest.approx(variant.seconds)
    first = model.table.variants[0].rows[0]
    assert (first.node, first.operator) == ("/0/Gemm", "Gemm weights Relu")
    assert (first.inputs, first.outputs) == (((1, 64), (256, 64), (256,)), ((1, 256),))


def test_less_takes_no_longer(model: LatencyModel, mlp: Analysis) -> None:
    """Where widths are multiples of blocks."""
    picker = Picker.of(mlp)
    at = [model.seconds(picker.keep({g.name: n for g in mlp.groups})) for n in (128, 96, 64, 32, 16)]
    assert at == sorted(at, reverse=True)
    assert at[-1] > 0
    assert model.seconds(picker.keep({})) == pytest.approx(sum(p(picker.keep({})) for p in model.products))
    assert {p.label for p in model.products} <= {row.node for row in model.table.variants[0].rows}


def test_a_table_makes_the_same_model(model: LatencyModel, mlp: Analysis) -> None:
    again = Table.from_json(model.table.to_json())
    assert again == model.table
    same = model_of(mlp, again)
    keep = Picker.of(mlp).keep({g.name: 24 for g in mlp.groups})
    assert (same.seconds(keep), same.error) == (model.seconds(keep), model.error)


def test_counts_that_are_rounded_up() -> None:
    a, b = np.arange(20), np.arange(20, 50)
    keep = np.ones(50, bool)
    keep[[0, 1, 20]] = False  # 18 and 29 are left
    assert Product("n", 2.0, (a, b), (1, 1))(keep) == 2 * 18 * 29
    assert Product("n", 2.0, (a, b), (1, 1), (16, 8))(keep) == 2 * 32 * 32
    assert Product("n", 2.0, (a, b), (1, 1), (1, 1), (1, 4))(keep) == 2 * 18 * 29
    assert Product("n", 2.0, (a, b), (1, 1), (), (2, 1))(keep) == 0


@pytest.mark.parametrize("name", ["encoder_post_norm", "digits_mobile_se"])
@pytest.mark.parametrize("steps", [EXACT, (8, 1), (16, 16)])
def test_a_search_counts_as_the_model_does(name: str, steps: tuple[int, int]) -> None:
    """Widths of heads are products of two groups; those of convolutions count in blocks."""
    analysis = mobile() if name == "digits_mobile_se" else analysis_of(name)
    parts = parts_of(analysis, unfused(analysis))
    products = [p for part in parts for kind in KINDS for p in part.products(kind, steps)]
    groups = widths(analysis)
    picker = Picker.of(analysis)
    usage = Usage(added(tuple(products)), analysis, groups, analysis.keep_ids({}))
    for kept in random_cuts(analysis, (1, 2, 8), seed=3):
        kept = {g.name: kept[g.name] for g in groups}
        at = np.array([kept[g.name] for g in groups], float)
        assert usage(at) == pytest.approx(sum(p(picker.keep(kept)) for p in products))
        fewer = at.copy()
        fewer[0] = 1
        choices = usage.at(at).along(0, np.array([[at[0]], [1.0]]))
        assert choices[1] - choices[0] == pytest.approx(usage(fewer) - usage(at))


def test_blocks_that_go_take_their_time_with_them() -> None:
    analysis = analyze(load(ROOT / "models/digits_resnet_bn.onnx"))
    block = analysis.of_kind("layers")[0]
    keeps = [Picker.of(analysis).keep(kept) for kept in ({}, {block.name: 0})]
    there = design(parts_of(analysis, unfused(analysis)), keeps, EXACT)[:, :, KINDS.index("node")]
    assert there[:, 0].all()
    assert 0 < there[:, 1].sum() < there[:, 0].sum()


def test_the_fit_finds_what_made_the_times() -> None:
    analysis = mobile()
    parts = parts_of(analysis, unfused(analysis))
    picker = Picker.of(analysis)
    keeps = [picker.keep(kept) for kept in variants(analysis, 0)]
    unseen = [picker.keep(kept) for kept in random_cuts(analysis, (1, 4, 8, 16), seed=9)]
    costs = np.zeros(len(KINDS))
    costs[[KINDS.index("node"), KINDS.index("macs"), KINDS.index("macs off 4")]] = 1e-6, 1e-9, 5e-10
    seconds = design(parts, keeps, (16, 16)) @ costs
    designs = {steps: design(parts, keeps, steps) for steps in STEPS}
    families = [part.family for part in parts]
    found = (
        fit(designs, seconds, families, np.ones(len(keeps)))
        .seconds({s: design(parts, unseen, s) for s in STEPS})
        .sum(0)
    )
    assert found == pytest.approx((design(parts, unseen, (16, 16)) @ costs).sum(0), rel=0.02)
    median, high = cross_validated(designs, seconds, families, np.ones(len(keeps)))
    assert median <= high < 0.02


# ---------------------------------------------------------------------------------------------------------------------
# Profiles
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("a", "a"),
        ("a_nchwc", "a"),
        ("fused a", "a"),
        ("a/MatMulScaleFusion/", "a"),
        ("x/y_token_3", "x/y"),
        ("ReorderOutput", "before"),  # a name of its own: with the one before
    ],
)
def test_whose_a_fused_node_is(name: str, owner: str) -> None:
    assert owners([("before", "Conv", 0.0), (name, "Conv", 0.0)], ["a", "x/y", "before"])[1] == owner


def test_a_profile_counts_bodies_with_the_node_that_holds_them() -> None:
    def event(name: str, begin: float, length: float) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": begin, "dur": length, "args": {"op_name": "Op"}}

    events = [{"name": "model_run", "ts": 0, "dur": 50}, event("if", 1, 20), event("inner", 2, 5), event("next", 30, 4)]
    assert [(name, round(1e6 * s)) for name, _, s in measure.read_events(events, 1)] == [("if", 20), ("next", 4)]
    assert measure.read_events([], 1) == []


def test_what_the_profiler_adds_is_taken_off(mlp: Analysis) -> None:
    keys = [n.output[0] for n in mlp.model.proto.graph.node]
    nodes = [(key, "Gemm", 3e-6) for key in keys[:2]] + [(key, "Gemm", 6e-6) for key in keys[2:4]]
    runs = [{"base": [1e-5], "seconds": [1e-5], "nodes": nodes}]  # 18 us in the profile, 10 without it: 2 a node
    seconds = per_part(parts_of(mlp, nodes), runs)[:, 0]
    assert seconds.sum() == pytest.approx(1e-5)
    assert sorted(seconds[seconds > 0]) == pytest.approx([2e-6, 8e-6])


@pytest.mark.parametrize("nodes", [[], [("Subgraph_0", "Subgraph", 1e-6)]])
def test_sessions_whose_nodes_are_hidden(nodes: list[Any], mlp: Analysis) -> None:
    """An execution provider that runs all as one node: the whole is fitted."""
    picker = Picker.of(mlp)
    kept = variants(mlp, 0)
    costs = mlp.costs()
    runs = [{"base": [1e-5], "seconds": [1e-6 + 1e-10 * costs.macs(picker.keep(k))], "nodes": nodes} for k in kept]
    found = model_of(mlp, making.table_of(mlp, picker, Device("cpu", 1), kept, runs))
    assert found.error[0] < 0.01
    half = picker.keep({g.name: g.size // 2 for g in mlp.groups})
    assert found.seconds(half) == pytest.approx(1e-6 + 1e-10 * costs.macs(half), rel=0.02)


# ---------------------------------------------------------------------------------------------------------------------
# Zeros
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(kernels.available()), reason="not installed here: the library of sparse operators")
def test_what_layers_gain_from_zeros(mlp: Analysis, model: LatencyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: replace(row, sparsities=row.sparsities[:1]) for name, row in zeros.METHODS.items()}
    monkeypatch.setattr(zeros, "METHODS", few)
    methods = ("unstructured", "block", "column")
    monkeypatch.setattr(making, "_table", lambda *rest: model.table)
    how = Measuring(model.table.device, methods=methods)
    ratios = model_of(mlp, measured_table(mlp, feeds_of(mlp), how)).ratios
    assert set(ratios) == {"/0/Gemm", "/3/Gemm", "/6/Gemm", "/9/Gemm"}
    for of in ratios.values():
        assert set(of) == set(methods)
        assert all(sparsity == 0.5 and np.isfinite(ratio) for each in of.values() for sparsity, ratio in each)


@pytest.mark.parametrize(("left", "measured"), [(0.8, {0.5, 0.95}), (1.1, {0.95})])
def test_fewer_zeros_are_measured_where_most_pay(
    mlp: Analysis, model: LatencyModel, monkeypatch: pytest.MonkeyPatch, left: float, measured: set[float]
) -> None:
    row = replace(zeros.METHODS["column"], sparsities=(0.5, 0.95))
    monkeypatch.setattr(zeros, "METHODS", {"column": row})
    monkeypatch.setattr(making, "_table", lambda *rest: model.table)
    monkeypatch.setattr(making, "_ratios", lambda parts, *rest: {part.label: left for part in parts})
    made = measured_table(mlp, feeds_of(mlp), Measuring(model.table.device, methods=("column",)))
    assert {row.sparsity for variant in made.sparse for row in variant.rows} == measured


# ---------------------------------------------------------------------------------------------------------------------
# Tables of others, and machines that are too noisy
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fingerprint": "0123456789abcdef"}, "made for another model .*onnxprune latency-table"),
        ({"cpu": "Z80"}, "cpu 'Z80', here it is .*--elsewhere"),
        ({"threads": 7}, "threads 7, here it is 1"),
        ({"onnxruntime": "1.0"}, "onnxruntime '1.0'"),
        ({"provider": "OpenVINOExecutionProvider"}, "provider 'OpenVINOExecutionProvider'"),
    ],
)
def test_tables_of_others(changes: dict[str, Any], words: str, model: LatencyModel, mlp: Analysis) -> None:
    of_model, of_device = {k: v for k, v in changes.items() if k == "fingerprint"}, dict(changes)
    of_device.pop("fingerprint", None)
    other = replace(model.table, device=replace(model.table.device, **of_device), **of_model)
    with pytest.raises(OptionError, match=words):
        other.check(fingerprint(mlp.model), Device.here(1))
    if of_device:
        other.check(fingerprint(mlp.model), Device.here(1), elsewhere=True)


def test_a_table_of_this_machine_is_not_of_another(model: LatencyModel, mlp: Analysis) -> None:
    model.table.check(fingerprint(mlp.model), Device.here(1))
    with pytest.raises(OptionError, match="--elsewhere has no effect"):
        model.table.check(fingerprint(mlp.model), Device.here(1), elsewhere=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"onnxprune_latency_table": 99}', '{"onnxprune_latency_table": 1}'])
def test_what_is_no_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(OptionError, match=r"--latency-table .*x\.json: expected a table of"):
        Table.load(tmp_path / "x.json")
    with pytest.raises(OptionError, match="cannot be read"):
        Table.load(tmp_path / "y.json")


def test_a_machine_that_is_too_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "SPREAD", 0.5)
    runs = [{"base": [b], "seconds": [1.0], "nodes": []} for b in (1.0, 1.1, 1.0, 3.0, 3.0)]
    with pytest.raises(UserError, match=r"too noisy .*differ by 182% \(at most 50%\).*--repeat N"):
        refuse_noise(spread_of(runs))
    refuse_noise(spread_of([{**run, "base": [*run["base"], 1.0, 1.0]} for run in runs]))


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def test_a_table_from_the_command_line(call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "device.json"
    words = f"latency-table {MLP} -o {out} --cache {tmp_path / 'cache'} --force"
    first = call(words)
    assert first.code == 0
    assert "error of the latency of one that was left out: median" in first.out
    assert Table.load(out).fingerprint == fingerprint(load(MLP))
    monkeypatch.setattr(measure, "measure", None)  # it is taken from the cache
    assert call(words).out == first.out


def test_a_kit_measures_elsewhere(call: Cli, tmp_path: Path) -> None:
    """A process that has onnxruntime and numpy alone; then its times become a table."""
    kit, out = tmp_path / "kit", tmp_path / "device.json"
    assert call(f"latency-table {MLP} --kit {kit}").code == 0
    alone = "import runpy, sys; sys.modules |= {'onnxprune': None, 'onnx': None, 'scipy': None}; "
    script = alone + f"runpy.run_path({str(kit / 'measure.py')!r}, run_name='__main__')"
    words = [sys.executable, "-I", "-c", script, "--seconds", "0.001"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = kit / "measured.json"
    assert done.stdout.strip() == str(measured)
    assert call(f"latency-table {MLP} --measured {measured} -o {out}").code == 0
    assert Table.load(out).device.threads == 1
    asked = f"{MLP} --target-latency 80% --latency-table {out} --elsewhere --calibration {DATA} --methods nm"
    lacking = call(f"{asked} -o {tmp_path / 'no.onnx'}")
    assert (lacking.code, lacking.err.count("\n")) == (2, 1) and not (tmp_path / "no.onnx").exists()
    assert "has no times of nm:dense zeros; make one with onnxprune latency-table --methods nm:dense" in lacking.err
    other = call(f"latency-table {SE} --measured {measured} -o {out} --force")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "made for another model" in other.err
    measured.write_text(json.dumps({"fingerprint": "x"}))
    assert "expected what the measure.py of a kit has written" in call(f"latency-table {MLP} --measured {measured}").err


@pytest.mark.parametrize("hidden", [False, True], ids=["nodes", "hidden nodes"])
def test_zeros_that_another_device_makes_use_of(hidden: bool, call: Cli, tmp_path: Path) -> None:
    """A kit holds 2:4 in dense weights; where these are faster by its table, layers get them, in plain ONNX."""
    kit, out, pruned = tmp_path / "kit", tmp_path / "device.json", tmp_path / "pruned.onnx"
    assert call(f"latency-table {MLP} --kit {kit} --methods nm:dense --methods column").code == 0
    told = json.loads((kit / "kit.json").read_text())
    zeros_of = [v.get("zeros") for v in told["variants"]]
    assert [z["method"] for z in zeros_of if z] == ["nm:dense", *["column"] * 5]
    layers = load(kit / "zeros_nm_dense_50.onnx").weights
    assert all(
        np.count_nonzero(np.asarray(w).reshape(-1, 4), axis=1).max() <= 2 for w in layers.values() if w.ndim == 2
    )  # every layer reads its inputs along its rows
    measure.main([f"--folder={kit}", "--seconds=0.001"])
    measured = json.loads((kit / "measured.json").read_text())
    for run, of in zip(measured["runs"], zeros_of, strict=True):  # a device as this is none: 2:4 takes half of the time
        faster = 0.5 if of and of["method"] == "nm:dense" else 1.0
        first = measured["runs"][0]
        if of:
            run["base"], run["seconds"] = first["base"], [faster * s for s in first["base"]]
            run["nodes"] = [(name, op, s * (faster if op == "Gemm" else 1.0)) for name, op, s in first["nodes"]]
    for run in measured["runs"] if hidden else ():
        run["nodes"] = []
    (kit / "measured.json").write_text(json.dumps(measured))
    assert call(f"latency-table {MLP} --measured {kit / 'measured.json'} -o {out}").code == 0
    ratios = model_of(analyze(load(MLP)), Table.load(out)).ratios
    assert set(ratios) == {"/0/Gemm", "/3/Gemm", "/6/Gemm", "/9/Gemm"}
    assert all(of["nm:dense"][0][1] < 0.8 for of in ratios.values())
    words = f"{MLP} --target-latency 80% --latency-table {out} --elsewhere --calibration {DATA} -o {pruned}"
    done = call(f"{words} --methods nm --json {tmp_path / 'report.json'}")
    assert done.code == 0, done.err
    assert {n.domain for n in load(pruned).proto.graph.node} == {""}
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["way"] for row in report["search"] if row["chosen"]] == ["nm zeros in dense weights"]
    sparse = [w for w in load(pruned).weights.values() if w.ndim == 2 and np.mean(np.asarray(w) == 0) >= 0.5]
    assert sparse
    refused = call(f"{words} --methods block")
    assert (refused.code, "block" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--kit K --methods nm", "--methods nm: our sparse kernels run on this CPU, and not with --kit"),
        ("--measured M --methods nm", "--methods has no effect with --measured"),
        ("--kit K --threads 1", "--threads has no effect with --kit"),
        ("--kit K -o x.json", "--output has no effect with --kit"),
        ("--measured M --seed 1", "--seed has no effect with --measured"),
        ("--measured M --kit K", "give one"),
        ("--measured M", "--measured M: cannot be read"),
        ("--provider NoSuchProvider", "--provider NoSuchProvider: this onnxruntime has "),
        (
            "--provider NoSuchProvider --methods nm",
            "--methods nm: our sparse kernels run on this CPU, and not with",
        ),
        ("--methods dense", "unknown; choose one of unstructured"),
        ("--repeat 0", "expected a whole number from 1 to 100"),
    ],
)
def test_refused(words: str, line: str, call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(f"latency-table {MLP} {words}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert line in done.err
    assert list(tmp_path.iterdir()) == []
