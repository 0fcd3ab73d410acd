"""Metrics by hand, bounds by simulation, the search for the smallest model, and the commands around them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxprune
from conftest import Cli
from models.nets import Array, build, normal, run
from models.small import classifier
from onnxprune import load
from onnxprune.calibration.read import read
from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import (
    CONFIDENCE,
    METRICS,
    Evaluator,
    Function,
    Score,
    default_metric,
    drop,
    is_function,
)
from onnxprune.evaluation.smallest import smallest

# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------

SCORES = np.array(
    [[9, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 5, 0, 0, 9], [2, 1, 0, 0, 0, 0, 0]], np.float32
)
LABELS = np.array([0, 2, 3, 1])
OTHER = SCORES[:, ::-1].copy()
OTHER[3] = SCORES[3] + 1


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("top1", [1, 0, 0, 0]),
        ("top5", [1, 1, 1, 1]),
        ("agreement", [0, 0, 0, 1]),
        ("mse", np.square(SCORES - OTHER).mean(1) / OTHER.astype(float).var()),
    ],
)
def test_metrics_by_hand(metric: str, expected: Any) -> None:
    found = METRICS[metric].per_sample({"y": SCORES}, LABELS, {"y": OTHER}, "y")
    np.testing.assert_allclose(found, np.asarray(expected, float), rtol=1e-6)


def test_top5_misses_the_sixth() -> None:
    found = METRICS["top5"].per_sample({"y": SCORES}, np.array([5, 1, 6, 0]), {"y": SCORES}, "y")
    np.testing.assert_array_equal(found, [0, 0, 1, 1])


USELESS = {"no numbers": np.full((4, 7), np.nan, np.float32), "all alike": np.zeros((4, 7), np.float32)}


@pytest.mark.parametrize("name", USELESS)
@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_a_model_that_says_nothing_hits_nothing_but_by_chance(metric: str, name: str) -> None:
    found = METRICS[metric].per_sample({"y": USELESS[name]}, np.array([6, 5, 6, 5]), {"y": SCORES}, "y")
    assert not found.any()


def linear(w: Array) -> ModelProto:
    return build("y = MatMul(x, w)", f"float[n,{w.shape[0]}]", f"float[n,{w.shape[1]}]", w=w)


def judge(proto: ModelProto, source: Any, metric: str, **options: Any) -> Evaluator:
    model = load(proto)
    return Evaluator(model, read(source, model, option="--evaluate", **options), metric)


X = normal(50, 4, seed=1).astype(np.float32)
W = normal(4, 6)


def test_an_evaluator_compares_with_labels_and_with_the_original() -> None:
    original, other = linear(W), linear(W + 0.3 * normal(4, 6, seed=2))
    best, now = (run(m, X)[0].argmax(1) for m in (original, other))
    labels = np.where(np.arange(50) % 5, best, (best + 1) % 6)
    assert judge(original, X, "top1", labels=labels)(load(original)).value == pytest.approx(0.8)
    top1, agreement = judge(original, X, "top1", labels=labels), judge(original, X, "agreement")
    assert top1(load(other)).value == pytest.approx((now == labels).mean())
    assert agreement(load(other)).value == pytest.approx((now == best).mean())
    assert agreement(load(original)).value == 1
    score = top1(load(other))
    assert score.samples == 50 and score.standard_error == pytest.approx((now == labels).std(ddof=1) / 50**0.5)


def test_what_a_model_is_judged_by() -> None:
    classes, image = linear(W), build("y = Relu(x)", "float[n,3,4,4]", "float[n,3,4,4]")
    assert default_metric(load(classes), read(X, load(classes))) == "agreement"
    labelled = read({"x": X, "labels": np.zeros(50, int)}, load(classes))
    assert default_metric(load(classes), labelled) == "top1"
    assert default_metric(load(image), read(normal(3, 3, 4, 4).astype(np.float32), load(image))) == "mse"


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        ("top1", None, "no labels"),
        ("top1", np.full(50, 6), "labels go from 6 to 6, the model has 6 classes"),
        ("top5", np.full(50, -1), "labels: expected whole numbers that count classes from 0, found -1"),
    ],
)
def test_labels_that_do_not_fit(metric: str, labels: Array | None, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        judge(linear(W), X, metric, labels=labels)


def test_a_metric_of_classes_needs_classes() -> None:
    image = build("y = Relu(x)", "float[n,3,4,4]", "float[n,3,4,4]")
    with pytest.raises(OptionError, match="use mse"):
        judge(image, normal(3, 3, 4, 4).astype(np.float32), "agreement")


@pytest.mark.parametrize(("background", "classes"), [(1, 1001), (0, 1001), (0, 1000)])
def test_labels_of_models_with_a_background_class(background: int, classes: int) -> None:
    w = normal(4, classes)
    best = (X @ w.astype(np.float32)).argmax(1)
    keep = (best >= background) & (best < 1000)
    found = judge(linear(w), X[keep], "top1", labels=best[keep] - background)
    assert found.offset == background
    assert found(load(linear(w))).value == 1


# ---------------------------------------------------------------------------------------------------------------------
# Bounds
# ---------------------------------------------------------------------------------------------------------------------

HITS = {  # probabilities that a hit is lost and gained, samples
    "few changes": (0.02, 0.01, 200),
    "losses alone": (0.03, 0.0, 300),
    "few samples": (0.05, 0.02, 40),
}


@pytest.mark.parametrize("name", HITS)
def test_bounds_of_shares_cover_the_truth(name: str) -> None:
    lost, gained, n = HITS[name]
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        u = rng.random(n)
        before = (u < 0.75).astype(float)  # losses happen among hits
        after = np.where(u < lost, 0.0, np.where(u > 1 - gained, 1.0, before))
        bound = drop(Score("top1", 0, before), Score("top1", 0, after)).bound
        assert bound is not None
        covered.append(bound >= lost - gained)
    assert np.mean(covered) >= 0.93


def test_bounds_of_means_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for better in [1, -1] * 1000:
        before = rng.normal(size=80)
        after = before - better * (0.3 + rng.normal(size=80))
        d = drop(Score("m", before.mean(), before, better), Score("m", after.mean(), after, better))
        covered.append(d.bound is not None and d.bound >= 0.3)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_a_drop_by_hand() -> None:
    a, b = np.array([1.0, 1, 1, 0, 1, 0, 1, 1]), np.array([1.0, 0, 1, 1, 0, 0, 1, 1])
    d = drop(Score("top1", a.mean(), a), Score("top1", b.mean(), b))
    worse, better, z = 3 / 10, 2 / 10, 1.6448536
    assert d.drop == pytest.approx(1 / 8) and d.samples == 8
    assert d.bound == pytest.approx(worse - better + z * ((worse + better - (worse - better) ** 2) / 10) ** 0.5)
    assert json.loads(json.dumps(d.to_dict()))["confidence"] == CONFIDENCE
    part = drop(Score("top1", a.mean(), a), Score("top1", b.mean(), b), np.array([1, 4]))
    assert part.drop == 1 and part.samples == 2
    alone = drop(Score("f", 0.9, None), Score("f", 0.8, None))
    assert alone.drop == pytest.approx(0.1) and alone.bound is None and alone.samples is None


# ---------------------------------------------------------------------------------------------------------------------
# The smallest model
# ---------------------------------------------------------------------------------------------------------------------

N = 3000
ORDER = np.random.default_rng(7).permutation(N)
HIT = (ORDER < 0.9 * N).astype(float)
BEFORE = Score("top1", 0.9, HIT)


def losing(share: float) -> Score:
    """A model that loses so many of the hits."""
    each = np.where(share * N > ORDER, 0.0, HIT)
    return Score("top1", float(each.mean()), each)


def table(rule: Callable[[int], float | None]) -> tuple[Callable[[int], Score | None], list[int]]:
    asked: list[int] = []

    def build_(left: int) -> Score | None:
        asked.append(left)
        share = rule(left)
        return None if share is None else losing(share)

    return build_, asked


RULES: dict[str, tuple[Callable[[int], float | None], int, int]] = {  # loss by MACs left; the answer lies between
    "a line": (lambda left: (100 - left) / 1000, 80, 92),
    "a step": (lambda left: 0.0 if left >= 37 else 0.5, 37, 37),
    "nothing below 60 %": (lambda left: None if left < 60 else 0.0, 60, 60),
    "always good": (lambda left: 0.0, 1, 1),
}


@pytest.mark.parametrize("name", RULES)
def test_the_smallest_model_that_is_confirmed(name: str) -> None:
    rule, low, high = RULES[name]
    build_, asked = table(rule)
    found = smallest(build_, BEFORE, 0.02, seed=1)
    assert low <= found.left <= high
    assert found.confirmed.bound is not None and found.confirmed.bound <= 0.02
    assert found.confirmed.samples == N - N // 3 and all(d.samples == N // 3 for d in found.tried.values())
    assert len(asked) == len(set(asked)) <= 12
    truth = rule(found.left)
    assert truth is not None and truth <= 0.02


def test_the_bound_of_the_search_holds_in_most_draws() -> None:
    """The confirmed model really loses at most the limit, in at least 93 % of the draws."""
    right = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        u = rng.random(400)
        before = Score("top1", 0.8, (u < 0.8).astype(float))

        def build_(left: int, u: Array = u) -> Score:
            return Score("top1", 0, ((u < 0.8) & (u >= (100 - left) / 500)).astype(float))

        try:
            found = smallest(build_, before, 0.06, seed=seed)
        except OptionError:
            continue
        right.append((100 - found.left) / 500 <= 0.06)
    assert len(right) > 100 and np.mean(right) >= 0.93


def test_a_function_of_one_number_is_taken_at_its_word() -> None:
    found = smallest(lambda left: Score("f", 0.9 - (100 - left) / 1000, None), Score("f", 0.9, None), 0.03)
    assert found.left in (70, 71) and found.confirmed.bound is None


def scores(n: int, value: float = 1.0) -> Score:
    return Score("top1", value, np.full(n, value))


REFUSED: dict[str, tuple[Callable[[int], Score | None], Score, str]] = {
    "too few samples": (lambda left: scores(20), scores(20), "20 samples cannot show so small a drop; give at least"),
    "one sample": (lambda left: scores(1), scores(1), "1 sample cannot be split"),
    "always bad": (lambda left: scores(2000, 0.0), scores(2000), "not even the smallest cut"),
    "never made": (lambda left: None, scores(2000), "leaves no choice of fewer MACs"),
    "no numbers": (lambda left: scores(2000, np.nan), scores(2000), "not even the smallest cut"),
    "no number": (lambda left: Score("f", np.nan, None), Score("f", 0.9, None), "not even the smallest cut"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_limits_that_cannot_be_held(name: str) -> None:
    build_, before, message = REFUSED[name]
    with pytest.raises(OptionError, match=message):
        smallest(build_, before, 0.01)


def test_the_number_of_samples_that_is_asked_for_is_enough() -> None:
    with pytest.raises(OptionError) as e:
        smallest(lambda left: scores(20), scores(20), 0.01)
    need = int(str(e.value).split("at least ")[1].split()[0])
    assert smallest(lambda left: scores(need), scores(need), 0.01).left == 1


# ---------------------------------------------------------------------------------------------------------------------
# Functions of the user's
# ---------------------------------------------------------------------------------------------------------------------

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


# ---------------------------------------------------------------------------------------------------------------------
# Through prune and the command line
# ---------------------------------------------------------------------------------------------------------------------


def test_max_drop_keeps_its_word(folder: Path) -> None:
    result = onnxprune.prune(
        classifier(), max_drop=0.2, evaluate="data.npz", calibration=IMAGES, round_to=1, verify=False, measure=False
    )
    verdict = result.report.evaluation
    assert verdict is not None and verdict.bound is not None and verdict.bound <= 0.2 and verdict.metric == "top1"
    assert result.report.after.macs < result.report.before.macs
    json.dumps(result.report.to_dict())


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
