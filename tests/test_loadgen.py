"""`onnxprune bench --scenario`: MLPerf's LoadGen asks, onnxruntime answers, its log is read back."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from conftest import ROOT, Cli
from models.nets import build, normal
from onnxprune.graph.io import load
from onnxprune.runtime.loadgen import Load, load_test, read, samples_of
from test_docs import compare

MLP, HELDOUT = str(ROOT / "models" / "digits_mlp.onnx"), str(ROOT / "models" / "digits_mlp.npz")
needs_loadgen = pytest.mark.usefixtures("loadgen")


@pytest.fixture
def loadgen() -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")


@needs_loadgen
def test_single_stream_asks_one_after_the_other() -> None:
    result = load_test([MLP, MLP], "single-stream", duration=0.1, threads=(1,))
    assert [m.label for m in result.models] == ["digits_mlp.onnx", "digits_mlp.onnx (2)"]
    for (run,) in (m.runs for m in result.models):
        assert run.queries == run.samples > 64
        assert 0 < run.latency["50"] <= run.latency["90"] <= run.latency["99"]
        assert run.early_stopping is not None and run.early_stopping >= run.latency["90"]
        assert run.queries * run.latency["50"] < 1 and run.samples_per_second is None
        assert run.valid and run.min_duration_met and not run.errors
    assert result.notes == ("a run of 0.1 s is no valid submission to MLPerf, which asks for 600 s",)


@needs_loadgen
def test_offline_asks_for_all_at_once(tmp_path: Path) -> None:
    result = load_test([MLP], "offline", duration=0.1, threads=(1, 2), inputs=HELDOUT)
    assert result.samples == len(np.load(HELDOUT)["labels"])
    assert [r.threads for r in result.models[0].runs] == [1, 2]
    for run in result.models[0].runs:
        assert run.queries == 1 < run.samples
        assert run.samples_per_second is not None and run.samples_per_second > 0 and run.latency == {}


@needs_loadgen
@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_what_is_printed_and_written(call: Cli, scenario: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = f"bench {MLP} --scenario {scenario} --duration 0.05 --threads 1"
    shown = call(words)
    assert shown.code == 0, shown.err
    result = {"single-stream": "90th percentile latency, ms", "offline": "samples per second"}[scenario]
    assert result in shown.out and "VALID" in shown.out and "no valid submission" in shown.out
    data = json.loads(call(f"{words} --json - -q").out)
    assert list(tmp_path.iterdir()) == []  # logs are gone
    both = [data, json.loads(call(f"bench {MLP} --scenario single-stream --duration 0.05 --json - -q").out)]
    compare("docs/report.md", "`onnxprune bench --scenario`", both)


def test_rows_of_a_file_are_samples(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.savez(tmp_path / "x.npz", x=x)
    for declared, rows in (("n", 1), ("1", 1), ("3", 3)):
        model = load(build("y = MatMul(x, w)", f"float[{declared},4]", w=normal(4, 2)))
        samples, notes = samples_of(model, str(tmp_path / "x.npz"), None, 0)
        assert np.array_equal(np.concatenate([s[0]["x"] for s in samples]), x)
        assert len(samples) == 6 // rows and not notes


def test_what_the_log_says() -> None:
    log: dict[str, list[Any]] = {f"result_{p}.00_percentile_latency_ns": [1_000_000 * p] for p in (50, 90, 99)} | {
        "result_validity": ["INVALID"], "result_min_duration_met": [False], "result_min_queries_met": [True],
        "early_stopping_met": [False], "result_query_count": [7], "error": ["late"],
    }  # fmt: skip
    found = read(log, 2, "single-stream", 7)
    assert found.latency == pytest.approx({"50": 0.05, "90": 0.09, "99": 0.099})
    assert found == Load(2, False, False, True, False, 7, 7, found.latency, None, None, (), ("late",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--duration 3", "--duration 3 needs --scenario"),
        ("--scenario offline --seconds 3", "--seconds 3 has no effect with --scenario offline"),
        ("--scenario offline --no-memory", "--no-memory has no effect with --scenario offline"),
        ("--scenario offline --profile", "--profile has no effect"),
        ("--scenario server", "choose one of single-stream, offline"),
        ("--scenario offline --duration 0", "expected a number of seconds above 0"),
    ],
)
def test_what_is_refused(call: Cli, words: str, message: str) -> None:
    done = call(f"bench {MLP} {words}")
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1 and not done.out


def test_without_loadgen(call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    done = call(f"bench {MLP} --scenario offline")
    assert done.code == 2 and done.err.count("\n") == 1 and "pip install 'onnxprune[loadgen]'" in done.err


@needs_loadgen
def test_a_model_that_does_not_run_on_random_inputs(call: Cli, tmp_path: Path) -> None:
    onnx.save(build("y = Gather(w, x)", "int64[3]", w=normal(2, 8)), tmp_path / "g.onnx")
    np.savez(tmp_path / "x.npz", x=np.full((3,), 7))
    done = call(f"bench {tmp_path / 'g.onnx'} --scenario offline --inputs {tmp_path / 'x.npz'}")
    assert done.code == 2 and "a model that runs on the inputs x 3" in done.err
