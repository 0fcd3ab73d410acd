"""`onnxprune bench`: what it measures, what it prints, and one line for every mistake. No time is asserted."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from conftest import ROOT, Cli
from models.nets import build, normal
from onnxprune import ModelFileError, OptionError, kernels
from onnxprune.runtime import benchmark
from onnxprune.runtime.benchmark import Benchmark
from onnxprune.runtime.differences import Difference
from onnxprune.runtime.profile import read_profile
from onnxprune.runtime.timing import cores, ratio_interval

MODELS = ROOT / "models"
MLP, HELDOUT = str(MODELS / "digits_mlp.onnx"), str(MODELS / "digits_heldout.npz")
RESNET, FOLDED = str(MODELS / "digits_resnet_bn.onnx"), str(MODELS / "digits_resnet_folded.onnx")
LINUX = os.path.exists("/proc/self/clear_refs")


def run(*paths: str | Path, seconds: float = 0.05, **options: Any) -> Benchmark:
    return benchmark.benchmark(paths, seconds=seconds, **{"memory": False, **options})


def linear(x: str = "float[n,8]", scale: float = 1.0, name: str = "x") -> ModelProto:
    proto = build("y = MatMul(x, w)", x, w=scale * normal(8, 4))
    proto.graph.input[0].name = proto.graph.node[0].input[0] = name
    return proto


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(linear(), "a.onnx")
    onnx.save(linear(scale=1.5), "b.onnx")
    return tmp_path


@pytest.fixture
def call(call: Cli) -> Cli:
    """`onnxprune bench` with these words."""
    return lambda words: call(f"bench {words}")


# what is measured


def test_two_models() -> None:
    result = run(RESNET, FOLDED, threads=(1, 2, 1), seconds=0.2)
    first, second = result.models
    assert [m.label for m in result.models] == ["digits_resnet_bn.onnx", "digits_resnet_folded.onnx"]
    assert result.threads == (1, 2)
    assert [t.threads for t in second.timings] == [1, 2]
    for m in result.models:
        assert m.bytes == os.path.getsize(m.path)
        for t in m.timings:
            assert 0 < t.p10 <= t.median <= t.p90
            assert t.runs >= 5
            assert t.runs_per_second == t.samples_per_second > 0
            assert (t.p99 is None) == (t.runs < 100)
            assert t.speedup > 0
    assert all(t.speedup == 1 and t.interval is None for t in first.timings)
    assert all(low <= high for t in second.timings if t.interval for low, high in [t.interval])
    assert first.difference == Difference(0.0, 0.0)
    assert second.difference is not None
    assert second.difference.relative < 1e-5
    assert result.inputs == {"image": ("float", (1, 1, 16, 16))}
    assert json.loads(json.dumps(result.to_dict()))["models"][1]["timings"][0]["runs"] == second.timings[0].runs


def test_the_same_file_twice_has_two_labels() -> None:
    result = run(MLP, MLP)
    assert [m.label for m in result.models] == ["digits_mlp.onnx", "digits_mlp.onnx (2)"]


def test_equal_names_are_told_apart_by_their_folders(folder: Path) -> None:
    (folder / "other").mkdir()
    onnx.save(linear(), "other/a.onnx")
    assert [m.label for m in run("a.onnx", "other/a.onnx").models] == ["a.onnx", "other/a.onnx"]


def test_differences_are_those_of_the_outputs(folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    y = x @ normal(8, 4)
    found = run("a.onnx", "b.onnx", inputs={"x": x}).models[1].difference
    assert found is not None
    assert found.absolute == pytest.approx(np.abs(0.5 * y).max(), rel=1e-4)
    assert found.relative == pytest.approx(0.5, rel=1e-4)


def test_infinite_differences_and_other_outputs_are_notes(folder: Path) -> None:
    onnx.save(linear(scale=np.nan), "nan.onnx")
    onnx.save(build("y = Transpose(x)", "float[n,8]"), "turned.onnx")
    onnx.save(linear(), "same.onnx")
    result = run("a.onnx", "nan.onnx", "turned.onnx", "same.onnx")
    assert [m.difference and m.difference.absolute for m in result.models] == [0.0, np.inf, None, 0.0]
    assert result.to_dict()["models"][1]["difference"] == {"absolute": None, "relative": None}
    assert [n.split(":")[0] for n in result.notes] == ["nan.onnx", "turned.onnx"]


def test_batch_counts_samples(folder: Path) -> None:
    result = run("a.onnx", input_shape={"x": (16, 8)})
    assert result.batch == 16
    timing = result.models[0].timings[0]
    assert timing.samples_per_second == pytest.approx(16 * timing.runs_per_second)


def test_axes_that_one_model_fixes_are_fixed_for_all(folder: Path) -> None:
    onnx.save(linear("float[5,8]"), "five.onnx")
    for paths in (("a.onnx", "five.onnx"), ("five.onnx", "a.onnx")):
        assert run(*paths).inputs["x"][1] == (5, 8)


def test_real_inputs_are_cut_to_the_rows_asked_for() -> None:
    result = run(RESNET, inputs=HELDOUT, input_shape={"image": (2, 1, 16, 16)})
    assert result.inputs["image"][1] == (2, 1, 16, 16)
    assert result.source == HELDOUT
    assert any("first 2 of 450 rows" in n for n in result.notes)
    assert any("'labels' not used" in n for n in result.notes)


def test_external_data_count(folder: Path) -> None:
    onnx.save(onnx.load(MLP), "outside.onnx", save_as_external_data=True, location="w.data", size_threshold=1024)
    model = run("outside.onnx").models[0]
    assert model.bytes == os.path.getsize("outside.onnx") + os.path.getsize("w.data")
    assert [Path(p).name for p in model.data] == ["w.data"]


@pytest.mark.skipif(not LINUX, reason="peak memory is read from /proc")
def test_peak_memory_sees_the_weights(folder: Path) -> None:
    onnx.save(build("y = MatMul(x, w)", "float[1,2048]", w=normal(2048, 4096)), "large.onnx")
    small, large = (run(p, memory=True).models[0].peak_memory for p in ("a.onnx", "large.onnx"))
    assert small is not None
    assert large is not None
    assert large - small > 4 * 2048 * 4096


def test_a_process_that_fails_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    result = run("a.onnx", memory=True)
    assert result.models[0].peak_memory is None
    assert not LINUX or any("peak memory not measured" in n for n in result.notes)


# time per operator


def event(name: str, ts: int, dur: int, op: str | None = None) -> dict[str, Any]:
    kind = {"cat": "Session", "args": {}} if op is None else {"cat": "Node", "args": {"op_name": op}}
    return {"name": name, "ts": ts, "dur": dur, "tid": 1, **kind}


def test_self_time_is_without_bodies() -> None:
    events = [
        event("warm_kernel_time", 1, 50, "Conv"),
        event("model_run", 0, 60),
        event("c_kernel_time", 102, 8, "Conv"),
        event("d_kernel_time", 110, 1, "Conv"),
        event("i_kernel_time", 101, 10, "If"),
        event("model_run", 100, 20),
        event("c_kernel_time", 201, 6, "Conv"),
        event("i_kernel_time", 201, 6, "If"),
        event("model_run", 200, 10),
    ]
    profile = read_profile(events, runs=2, threads=1)
    assert profile is not None
    assert profile.runs == 2
    assert profile.seconds == pytest.approx(15e-6)
    assert {n.name: round(n.seconds * 1e6, 6) for n in profile.nodes} == {"c": 7.0, "d": 0.5, "i": 0.5}
    assert profile.operators["Conv"] == pytest.approx((7.5e-6, 1.5))
    assert read_profile(events[:1], runs=1, threads=1) is None


def test_profile_adds_up() -> None:
    profile = run(RESNET, profile=True).models[0].profiles[0]
    assert {"Conv", "Gemm"} & set(profile.operators)
    assert 0 < sum(s for s, _ in profile.operators.values()) <= profile.seconds


def test_profiles_leave_no_files(folder: Path) -> None:
    run("a.onnx", profile=True)
    assert sorted(os.listdir()) == ["a.onnx", "b.onnx"]


# intervals


def test_intervals_hold_the_ratio_and_narrow_with_rounds() -> None:
    rng = np.random.default_rng(0)
    a, b = 2 + 0.1 * rng.random(2000), 1 + 0.1 * rng.random(2000)
    low, high = ratio_interval(a, b)
    assert low <= np.median(a) / np.median(b) <= high
    wide_low, wide_high = ratio_interval(a[:50], b[:50])
    assert high - low < wide_high - wide_low
    assert ratio_interval(a, b) == (low, high)
    assert ratio_interval(a, a) == (1, 1)


# operators of our own domain


def sparse(path: str) -> None:
    """A model with an operator of the domain `onnxprune`, and the function that stands in for it."""
    proto = linear()
    node = helper.make_node("Twin", ["x", "w"], ["y"], domain="onnxprune")
    proto.graph.node[0].CopyFrom(node)
    body = [helper.make_node("MatMul", ["p", "q"], ["r"])]
    imports = [helper.make_opsetid("", proto.opset_import[0].version)]
    proto.functions.append(helper.make_function("onnxprune", "Twin", ["p", "q"], ["r"], body, imports))
    proto.opset_import.append(helper.make_opsetid("onnxprune", 1))
    proto.ir_version = max(proto.ir_version, 8)
    onnx.save(proto, path)


def test_without_the_library_functions_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: "no C compiler")
    sparse("s.onnx")
    result = run("a.onnx", "s.onnx")
    assert result.models[1].difference == Difference(0.0, 0.0)
    assert "s.onnx runs through its functions: no C compiler" in result.notes


def test_the_library_is_registered_for_models_that_need_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[ort.SessionOptions] = []
    monkeypatch.setattr(kernels, "available", lambda: "")
    monkeypatch.setattr(kernels, "register", registered.append)
    sparse("s.onnx")
    assert run("a.onnx").notes == ()
    assert not registered
    assert run("a.onnx", "s.onnx").notes == ()
    assert len(registered) == 1


# the command


def test_the_command(call: Cli, folder: Path) -> None:
    result = call("a.onnx b.onnx --seconds 0.1 --threads 1,2 --no-memory --profile -v --json out.json")
    assert result.code == 0, result.err
    assert result.err == ""
    words = ("median, ms", "p99, ms", "runs/s", "speed-up", "file, MB", "peak memory, MB", "largest output difference",
             "time per operator, 1 thread", "time per node, 2 threads", "MatMul", "whole run",
             f"onnxruntime {ort.__version__}", "inputs: x float 1x8 (random, seed 0)")  # fmt: skip
    for word in words:
        assert word in result.out
    assert json.loads(Path("out.json").read_text())["threads"] == [1, 2]


def test_json_to_standard_output(call: Cli, folder: Path) -> None:
    result = call("a.onnx --seconds 0.02 --threads 1 --threads 0 --no-memory --json - -q")
    assert result.code == 0, result.err
    assert result.err == ""
    data = json.loads(result.out)
    assert data["threads"][0] == 1
    assert data["units"] == {"time": "seconds", "memory": "bytes", "energy": "joules"}
    assert data["models"][0]["peak_memory"] is None


def test_brackets_in_names_are_no_markup(call: Cli, folder: Path) -> None:
    os.rename("a.onnx", "[red]a.onnx")
    assert "[red]a.onnx" in call("'[red]a.onnx' --seconds 0.02 --threads 1 --no-memory --profile").out


def test_many_threads_are_a_note(folder: Path) -> None:
    assert any(f"more than the {cores()} cores" in n for n in run("a.onnx", threads=(cores() + 1,)).notes)


REFUSED = [
    ("missing.onnx", ["missing.onnx"]),
    ("text.onnx", ["text.onnx", "expected an ONNX model"]),
    (".", ["a folder"]),
    ("a.onnx other.onnx", ["other.onnx has no input 'x' as a.onnx has"]),
    ("other.onnx a.onnx", ["other.onnx has no input 'x' as a.onnx has"]),
    ("a.onnx wide.onnx", ["wide.onnx: input 'x' is float n,9", "float n,8"]),
    ("a.onnx rank.onnx", ["rank.onnx: input 'x' is float n,8,1"]),
    ("a.onnx double.onnx", ["double.onnx: input 'x' is double"]),
    ("a.onnx unknown.onnx", ["unknown.onnx: expected a model that onnxruntime loads", "Nonsense"]),
    ("a.onnx --input-shape y:1,8", ["a.onnx: --input-shape y: no such input"]),
    ("a.onnx --input-shape x:1,7", ["a.onnx: --input-shape x:1,7 does not fit"]),
    ("a.onnx --input-shape x", ["expected NAME:1,3,224,224"]),
    ("a.onnx --inputs none.npz", ["--inputs none.npz", "No such file"]),
    ("a.onnx --inputs a.onnx", ["--inputs a.onnx: expected a file of numpy.savez"]),
    ("a.onnx --inputs single.npy", ["a single array"]),
    ("a.onnx --inputs objects.npz", ["--inputs objects.npz"]),
    ("a.onnx --inputs keys.npz", ["no array 'x'", "'z'"]),
    ("a.onnx --inputs shape.npz", ["'x' is float32 2,9", "float n,8"]),
    ("a.onnx --inputs type.npz", ["'x' is float64 2,8"]),
    ("five.onnx --inputs short.npz", ["'x' is float32 2,8", "float 5,8"]),
    ("a.onnx --threads two", ["--threads two: expected thread counts such as 1,2"]),
    ("a.onnx --threads 1,", ["--threads 1,"]),
    ("a.onnx --threads=-1", ["--threads -1"]),
    ("a.onnx --threads 100000", ["--threads 100000: expected 1 to 256"]),
    ("a.onnx --seconds 0", ["--seconds 0"]),
    ("a.onnx --seconds nan", ["--seconds nan"]),
    ("a.onnx --json a.onnx", ["--json a.onnx is the input"]),
    ("a.onnx --inputs short.npz --json short.npz", ["--json short.npz is the input"]),
    ("a.onnx --json no/where.json", ["there is no folder no"]),
    ("", ["Missing argument"]),
    ("reshape.onnx", ["reshape.onnx: expected a model that runs on the inputs x 1x", "--input-shape"]),
]


@pytest.mark.parametrize(("words", "expected"), REFUSED, ids=[words for words, _ in REFUSED])
def test_refused_in_one_line(call: Cli, folder: Path, words: str, expected: list[str]) -> None:
    Path("text.onnx").write_text("<html>")
    onnx.save(linear(name="z"), "other.onnx")
    onnx.save(build("y = Relu(x)", "float[n,9]"), "wide.onnx")
    onnx.save(build("y = Relu(x)", "float[n,8,1]"), "rank.onnx")
    onnx.save(build("y = Relu(x)", "double[n,8]"), "double.onnx")
    onnx.save(linear("float[5,8]"), "five.onnx")
    reshape = build("y = Reshape(x, s)", "float[n,k]")
    reshape.graph.initializer.append(numpy_helper.from_array(np.array([7, 11, 13]), "s"))
    onnx.save(reshape, "reshape.onnx")
    unknown = linear()
    unknown.graph.node[0].op_type = "Nonsense"
    onnx.save(unknown, "unknown.onnx")
    x = np.zeros((2, 8), np.float32)
    np.savez("keys.npz", z=x)
    np.savez("shape.npz", x=np.zeros((2, 9), np.float32))
    np.savez("type.npz", x=x.astype(np.float64))
    np.savez("short.npz", x=x)
    np.savez("objects.npz", x=np.array([None]))
    np.save("single.npy", x)
    result = call(f"{words} {'' if '--seconds' in words else '--seconds 0.02'} --no-memory")
    assert result.code == 2, result.err
    assert result.out == ""
    assert result.err.startswith("onnxprune: ")
    assert result.err.count("\n") == 1
    for word in expected:
        assert word in result.err


def test_errors_of_the_api(folder: Path) -> None:
    for options in ({"threads": ()}, {"seconds": float("inf")}, {"inputs": {"x": np.zeros(3)}}):
        with pytest.raises(OptionError):
            run("a.onnx", **options)
    with pytest.raises(OptionError, match="no model is given"):
        run()
    with pytest.raises(ModelFileError):
        run("a.onnx", "missing.onnx")


def test_strings_and_scalars_run(folder: Path) -> None:
    proto = build("y = Identity(x)", "float[]")
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(proto, "words.onnx")
    result = run("words.onnx", "words.onnx")
    assert result.inputs == {"x": ("string", ())}
    assert all("holds no numbers" in n for n in result.notes)
