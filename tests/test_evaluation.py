"""Functions of the user's that judge, and the commands around metrics."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxprune
from conftest import Cli
from models.nets import Array, normal, run
from models.small import classifier
from onnxprune import load
from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import (
    METRICS,
    Function,
    Score,
    drop,
    is_function,
)

LABELS = np.array([0, 2, 3, 1])

# Functions of the user's

MODULE = """
import numpy as np
import onnx

def size(path):
    return float(sum(np.prod(t.dims) for t in onnx.load(path).graph.initializer)) / 1000

def each(path):
    return [1.0, 0.0, 1.0]

def broken(path):
    raise RuntimeError("no such luck")

def text(path):
    return "good"

def table(path):
    return [[1.0], [2.0]]

def nan(path):
    return float("nan")

def nothing(path):
    return None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module, two models and data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge_of_tests.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "judge_of_tests", raising=False)
    onnx.save(classifier(), "net.onnx")
    onnx.save(classifier(0.02), "other.onnx")
    best = run_net(classifier()).argmax(1)
    np.savez("data.npz", x=IMAGES, labels=np.where(np.arange(80) % 4, best, (best + 1) % 5))
    np.save("plain.npy", IMAGES)
    np.save("labels.npy", np.zeros(80, int))
    return tmp_path


IMAGES = normal(80, 3, 6, 6, seed=4).astype(np.float32)


def run_net(proto: ModelProto) -> Array:
    return run(proto, IMAGES)[0]


def test_functions_judge_models(folder: Path) -> None:
    model = load(classifier())
    assert Function("judge_of_tests:size")(model).value == pytest.approx((12 * 27 + 60) / 1000)
    score = Function("judge_of_tests:each")(model)
    assert score.samples == 3 and score.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "judge_of_tests:broken: the function raised RuntimeError: no such luck"),
        ("text", "judge_of_tests:text: the function raised ValueError"),
        ("table", "judge_of_tests:table: expected one finite number"),
        ("nan", "judge_of_tests:nan: expected one finite number"),
        ("nothing", "judge_of_tests:nothing: "),
    ],
)
def test_functions_that_go_wrong_are_named(folder: Path, name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Function(f"judge_of_tests:{name}")(load(classifier()))


@pytest.mark.parametrize("name", ["judge_of_tests:absent", "no_such_module_anywhere:f"])
def test_functions_that_are_not_there(folder: Path, name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}: cannot be imported"):
        Function(name)


@pytest.mark.parametrize(
    ("source", "expected"),
    [("a.b:c", True), ("a:b", True), ("C:\\data", False), ("data.npz", False), ("a:b:c", False), (b"a:b", False)],
)
def test_what_is_a_function(source: object, expected: bool) -> None:
    assert is_function(source) is expected


def test_models_that_are_judged_on_different_samples_are_refused() -> None:
    with pytest.raises(OptionError):
        drop(Score("f", 1.0, np.ones(3)), Score("f", 1.0, np.ones(4)))


# Through prune and the command line


def test_max_drop_keeps_its_word(folder: Path) -> None:
    result = onnxprune.prune(
        classifier(), max_drop=0.2, evaluate="data.npz", calibration=IMAGES, round_to=1, verify=False, measure=False
    )
    verdict = result.report.evaluation
    assert verdict is not None and verdict.bound is not None and verdict.bound <= 0.2 and verdict.metric == "top1"
    assert result.report.after.macs < result.report.before.macs
    json.dumps(result.report.to_dict())


def test_max_drop_tunes_briefly_while_it_searches_and_confirms_the_tuned_file(folder: Path) -> None:
    done = onnxprune.prune(
        classifier(), max_drop=0.2, evaluate="data.npz", calibration=IMAGES, round_to=1, verify=False, measure=False,
        tune="20steps", learning_rate=0.01, batch_size=8,
    )  # fmt: skip
    verdict, tuning = done.report.evaluation, done.report.tuning
    assert verdict is not None and verdict.bound is not None and verdict.bound <= 0.2
    assert tuning is not None and tuning.steps in (2, 20)
    short = [note for note in done.report.notes if "tuned by 2steps as in the search" in note]
    assert bool(short) == (tuning.steps == 2)


def test_max_drop_of_a_function(folder: Path) -> None:
    result = onnxprune.prune(
        classifier(), max_drop=0.15, evaluate="judge_of_tests:size", recover="none", importance="l2", round_to=1,
        verify=False, measure=False,
    )  # fmt: skip
    verdict = result.report.evaluation
    assert verdict is not None and 0.1 < verdict.drop <= 0.15 and verdict.bound is None


@pytest.mark.parametrize(
    ("words", "metric", "value"),
    [
        ("net.onnx data.npz", "top1", 0.75),
        ("net.onnx data.npz --metric top5", "top5", 1.0),
        ("net.onnx plain.npy --against net.onnx", "agreement", 1.0),
        ("net.onnx data.npz --metric mse --against net.onnx", "mse", 0.0),
        ("net.onnx data.npz --samples 20", "top1", None),
        ("net.onnx judge_of_tests:size --against other.onnx", "judge_of_tests:size", 0.384),
    ],
)
def test_evaluate(folder: Path, call: Cli, words: str, metric: str, value: float | None) -> None:
    found = call(f"evaluate {words} --json -")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert report["metric"] == metric and (value is None or report["value"] == pytest.approx(value))
    assert (report["against"] is not None) == ("--against" in words)
    if "--samples" in words:
        assert report["samples"] == 20
    assert f"{metric}: " in found.err
    plain = call(f"evaluate {words} --json out.json")
    assert plain.code == 0 and f"{metric}: " in plain.out and json.loads(Path("out.json").read_text()) == report
    assert not call(f"evaluate {words} --quiet").out


def test_evaluate_compares_in_pairs(folder: Path, call: Cli) -> None:
    report = json.loads(call("evaluate other.onnx data.npz --against net.onnx --json - -q").out)
    hits = [run_net(p).argmax(1) == np.load("data.npz")["labels"] for p in (classifier(), classifier(0.02))]
    assert report["against"]["drop"] == pytest.approx(hits[0].mean() - hits[1].mean())
    assert report["against"]["bound"] > report["against"]["drop"] and report["against"]["model"] == "net.onnx"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate net.onnx plain.npy", "compares with another model: give --against MODEL, or labels"),
        ("evaluate net.onnx plain.npy --metric top1", "there are no labels"),
        ("evaluate net.onnx absent.npz", "absent.npz"),
        ("evaluate net.onnx judge_of_tests:broken", "judge_of_tests:broken: the function raised"),
        ("evaluate absent.onnx data.npz", "absent.onnx"),
        ("evaluate net.onnx data.npz --json net.onnx", "net.onnx"),
        ("evaluate net.onnx data.npz --preset imagenet", "--preset imagenet: SRC holds arrays of float32"),
        ("evaluate net.onnx data.npz --crop 7", "--crop 7: SRC holds arrays of float32"),
        ("evaluate net.onnx data.npz --input-shape x:1,3,6,6", "--input-shape x:1,3,6,6 has no effect: it is for made"),
        ("evaluate net.onnx plain.npy --against net.onnx --metric mse --labels labels.npy", "--labels has no effect"),
        *(
            (f"evaluate net.onnx judge_of_tests:size {words}", f"{words} has no effect: SRC is a function")
            for words in (
                "--metric top5",
                "--labels labels.npy",
                "--samples 3",
                "--mean 1,2,3",
                "--layout NHWC",
                "--input-shape x:1,3,6,6",
            )
        ),
        ("sensitivity net.onnx --calibration plain.npy --crop 7", "--crop 7: --calibration holds arrays of float32"),
        (
            "net.onnx -o small.onnx --channels 0.3 --evaluate plain.npy --labels labels.npy --metric mse",
            "--labels has no effect: --metric mse",
        ),
        ("sensitivity net.onnx", "--calibration"),
        ("sensitivity net.onnx --calibration absent", "absent"),
        ("sensitivity net.onnx --calibration plain.npy --plot p.txt", "expected a name that ends in"),
        ("net.onnx -o small.onnx --max-drop 0.01", "--max-drop 0.01 needs --evaluate SRC"),
        ("net.onnx -o small.onnx --max-drop 2 --evaluate data.npz", "--max-drop 2"),
        ("net.onnx -o small.onnx --max-drop 0.001 --evaluate data.npz", "cannot show so small a drop"),
    ],
)
def test_mistakes_are_one_line_and_code_2(folder: Path, call: Cli, words: str, message: str) -> None:
    found = call(words)
    assert found.code == 2
    assert message in " ".join(found.err.split()) and "Traceback" not in found.err
    assert not Path("small.onnx").exists()


def test_evaluate_in_python(folder: Path) -> None:
    def size(path: str) -> float:
        return float(Path(path).stat().st_size)

    assert onnxprune.evaluate("net.onnx", "data.npz").value == pytest.approx(0.75)
    assert onnxprune.evaluate("net.onnx", "data.npz", metric="TOP5").metric == "top5"
    assert onnxprune.evaluate("net.onnx", "plain.npy", against="net.onnx").value == 1
    found = onnxprune.evaluate("net.onnx", size)
    assert found.metric == "size" and found.value > 1000
    assert onnxprune.evaluate("net.onnx", "judge_of_tests:size").value == pytest.approx(0.384)


def wrong(path: str) -> str:
    return "good"


FUNCTION = "has no effect: data is a function, which says its own figure"


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("data.npz", {"metric": "magic"}, f"metric='magic': unknown; choose one of {', '.join(METRICS)}"),
        ("data.npz", {"preprocess": onnxprune.Preprocess(crop=7)}, "crop=7: data holds arrays of float32"),
        ("data.npz", {"preprocess": onnxprune.Preprocess(preset="magic")}, "preset='magic': unknown"),
        ("data.npz", {"against": "net.onnx"}, "against has no effect: metric='top1' compares with labels"),
        ("plain.npy", {}, "metric='agreement' compares with another model: give against=MODEL, or labels"),
        ("plain.npy", {"metric": "top1"}, "metric='top1': there are no labels; give an array `labels`, sub-folders"),
        ("plain.npy", {"metric": "mse", "against": "net.onnx", "labels": LABELS}, "labels has no effect: metric='mse'"),
        ("absent:f", {}, "data='absent:f': cannot be imported"),
        (wrong, {}, "data='wrong': the function raised ValueError"),
        (wrong, {"metric": "top1"}, f"metric {FUNCTION}"),
        (wrong, {"labels": LABELS}, f"labels {FUNCTION}"),
        (wrong, {"preprocess": onnxprune.Preprocess()}, f"preprocess {FUNCTION}"),
        ("judge_of_tests:size", {"against": "other.onnx"}, f"against {FUNCTION}"),
    ],
)
def test_mistakes_in_python(folder: Path, data: Any, options: dict[str, Any], message: str) -> None:
    labels = {"labels": np.zeros(80, int)} if "labels" in options else {}
    with pytest.raises(OptionError) as e:
        onnxprune.evaluate("net.onnx", data, **(options | labels))
    assert str(e.value).startswith(message) and "--" not in str(e.value)


def test_other_functions_speak_of_arguments(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"^recover='mean-std' makes up for units"):
        onnxprune.sparsify("net.onnx", 0.5, recover="mean-std")
    with pytest.raises(OptionError, match=r"^input_shape='zz': no such input"):
        onnxprune.analyze("net.onnx", input_shape={"zz": (1, 3)})


def test_sensitivity(folder: Path, call: Cli) -> None:
    found = call("sensitivity net.onnx --calibration plain.npy --json -")
    assert found.code == 0, found.err
    (group,) = json.loads(found.out)["groups"]
    assert group["size"] == 12 and group["kept"][0] == 12 and group["damage"][0] == 0
    assert group["damage"] == sorted(group["damage"]) and group["macs_share"] == pytest.approx(1.0)
    assert group["name"] in found.err and "-50%" in found.err
    again = call("sensitivity net.onnx --calibration plain.npy --json out.json")
    assert again.code == 0 and group["name"] in again.out
    assert json.loads(Path("out.json").read_text()) == json.loads(found.out)


def test_max_drop_by_the_command(folder: Path, call: Cli) -> None:
    words = "--max-drop 0.25 --evaluate data.npz --calibration plain.npy --round-to 1 --json -"
    found = call(f"net.onnx -o small.onnx {words}")
    assert found.code == 0, found.err
    report = json.loads(found.out)
    assert report["evaluation"]["bound"] <= 0.25 and Path("small.onnx").exists()
    seen = json.loads(call("evaluate small.onnx data.npz --against net.onnx --json - -q").out)
    assert seen["against"]["before"] == pytest.approx(0.75)
