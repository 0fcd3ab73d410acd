"""Supermasks: criteria and actions by hand, the picture, the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import onnxprune
from conftest import ROOT
from models.nets import build
from onnxprune.cli.app import run
from onnxprune.errors import OptionError
from onnxprune.experiments.criteria import CRITERIA, Pair, compared, region
from onnxprune.experiments.supermask import KEPT, OUT, Weight, network
from onnxprune.graph.io import Model, load, save

MLP, DIGITS = ROOT / "models" / "digits_mlp.onnx", ROOT / "models" / "digits_mlp.npz"
SVG = "{http://www.w3.org/2000/svg}"
BEFORE = np.array([[-3.0, 1.0, 2.0, -0.5], [0.2, -1.5, 4.0, 2.5]])
AFTER = np.array([[-2.5, 3.0, -1.0, -0.4], [-2.8, -1.6, 3.5, 0.1]])
# what each criterion keeps of the weight above at 5/8 zeros: three of its eight entries
MASKS: dict[str, list[list[int]]] = {
    "large_final": [[0, 1, 0, 0], [1, 0, 1, 0]],
    "small_final": [[0, 0, 1, 1], [0, 0, 0, 1]],
    "large_init": [[1, 0, 0, 0], [0, 0, 1, 1]],
    "small_init": [[0, 1, 0, 1], [1, 0, 0, 0]],
    "large_init_large_final": [[1, 0, 0, 0], [0, 1, 1, 0]],
    "small_init_small_final": [[0, 0, 1, 1], [0, 1, 0, 0]],
    "magnitude_increase": [[0, 1, 0, 0], [1, 1, 0, 0]],
    "movement": [[0, 0, 1, 0], [1, 0, 0, 1]],
    "large_final_same_sign": [[1, 1, 0, 0], [0, 0, 1, 0]],
    "large_final_diff_sign": [[0, 0, 1, 0], [1, 0, 0, 1]],
    "magnitude_increase_same_sign": [[0, 1, 0, 1], [0, 1, 0, 0]],
    "magnitude_increase_diff_sign": [[0, 0, 1, 1], [1, 0, 0, 0]],
}
STD = float(np.std(BEFORE))
KEEP = np.array([[1, 1, 0, 0], [0, 0, 1, 0]], bool)  # -3, 1 and 4
FIXED: dict[str, list[float]] = {"init": [-3, 1, 4], "signed_constant": [-STD, STD, STD], "final": [-2.5, 3, 3.5]}


def small(w: Any) -> Model:
    return load(build("y = MatMul(x, w)", "float[n,4]", "float[n,2]", w=np.ascontiguousarray(w.T, np.float32)))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a network before and after training; the seed of the weights is 3."""
    folder = tmp_path_factory.mktemp("pair")
    t = onnxprune.Trainer(MLP, DIGITS, steps="40steps", init=3, learning_rate=0.01, threads=1)
    files = folder / "round-00.ticket.onnx", folder / "round-00.onnx"
    save(t.export("weights"), files[0])
    t.step(40)
    save(t.export("weights"), files[1])
    return files


# criteria


@pytest.mark.parametrize("name", [n for n in CRITERIA if n != "random"])
def test_a_criterion_keeps_what_it_says(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = onnxprune.supermask(
        small(BEFORE), small(AFTER), out, criterion=name, action="init", sparsity=5 / 8, threads=1
    )
    kept = np.array(MASKS[name], bool)
    assert np.array_equal(load(out).weights["w"].T, np.where(kept, BEFORE, 0).astype(np.float32))
    assert report["rows"] == [] and report["output"] == str(out)
    plane = region(name, Pair(BEFORE, AFTER), kept)
    assert plane is not None and np.array_equal(plane(BEFORE.ravel(), AFTER.ravel()), kept.ravel())


def test_at_random() -> None:
    weights = {"a": (BEFORE, AFTER), "b": (BEFORE, np.where(KEEP, AFTER, 0))}
    one, again, other = (compared("random", weights, seed) for seed in (0, 0, 1))
    assert np.array_equal(one["a"], again["a"]) and not np.array_equal(one["a"], other["a"])
    assert np.unique([*one["a"].ravel(), *one["b"][KEEP]]).size == 8 + 3
    assert region("random", Pair(BEFORE, AFTER), KEEP) is None


@pytest.mark.parametrize("name", CRITERIA)
def test_what_is_gone_stays_gone(name: str) -> None:
    scores = compared(name, {"w": (BEFORE, np.where(KEEP, AFTER, 0))}, 0)["w"]
    assert (scores[~KEEP] == 0).all() and (scores[KEEP] > 0).all()


def test_layers_are_masked_alike_or_by_one_threshold(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shares = {}
    for name in ("uniform", "global", "erk"):
        onnxprune.supermask(
            *pair, tmp_path / "out.onnx", criterion="large_init", action="init", sparsity=0.7, sparsity_allocate=name
        )
        weights = load(tmp_path / "out.onnx").weights
        shares[name] = {n: float((w == 0).mean()) for n, w in weights.items() if w.ndim == 2}
        zeros = sum(int((w == 0).sum()) for w in weights.values() if w.ndim == 2)
        assert zeros / sum(w.size for w in weights.values() if w.ndim == 2) == pytest.approx(0.7, abs=1e-3)
    assert list(shares["uniform"].values()) == pytest.approx([0.7] * len(shares["uniform"]), abs=1e-3)
    assert np.ptp(list(shares["global"].values())) > 0.2 and np.ptp(list(shares["erk"].values())) > 0.2


# actions


@pytest.mark.parametrize("name", KEPT)
def test_an_action_gives_what_is_kept_its_values(name: str) -> None:
    out = network(small(BEFORE), small(AFTER), {"w": KEEP.T}, name, seed=1).weights["w"].T
    assert not out[~KEEP].any()
    values, signs = out[KEEP].astype(np.float64), np.sign(BEFORE[KEEP])
    if name in FIXED:
        assert values == pytest.approx(FIXED[name])
        return
    assert np.array_equal(np.sign(values), signs) == name.startswith("signed"), "some change under this seed"
    again = network(small(BEFORE), small(AFTER), {"w": KEEP.T}, name, seed=1).weights["w"].T
    other = network(small(BEFORE), small(AFTER), {"w": KEEP.T}, name, seed=2).weights["w"].T
    assert np.array_equal(out, again) and not np.array_equal(out, other)
    if name == "constant":
        assert np.abs(values) == pytest.approx(STD)
    elif name.endswith("reshuffle"):
        assert sorted(np.abs(values)) == [1, 3, 4]
    else:
        assert set(np.round(np.abs(values), 6)) <= set(np.round(np.abs(BEFORE).ravel(), 6))


def test_signs_in_random_order_are_as_many() -> None:
    every = Weight(BEFORE, AFTER, np.ones(BEFORE.shape, bool), np.random.default_rng(0))
    for name in ("constant", "reinit", "reshuffle"):
        values = KEPT[name].values(every)
        assert (values > 0).sum() == (BEFORE > 0).sum() and not np.array_equal(values > 0, BEFORE > 0)


@pytest.mark.parametrize("name", OUT)
def test_what_is_out_becomes(name: str) -> None:
    shrank = {"zero": BEFORE * 0, "init": BEFORE, "direction": np.where([[0, 0, 1, 1], [0, 0, 0, 1]], 0, BEFORE)}
    out = network(small(BEFORE), small(AFTER), {"w": KEEP.T}, "final", name).weights["w"].T
    assert np.array_equal(out, np.where(KEEP, AFTER, shrank[name]).astype(np.float32))


# the experiment


def test_the_table_has_the_scores_of_the_networks(pair: tuple[Path, Path], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"evaluate": DIGITS, "threads": 1}
    report = onnxprune.supermask(
        *pair, criterion=("large_final_same_sign", "random"), sparsity=(0.5, 0.8), action="init,final", **asked
    )
    assert [(r["sparsity"], r["criterion"], r["action"]) for r in report["rows"]] == [
        (share, name, action) for share in (0.5, 0.8) for name in ("large_final_same_sign", "random")
        for action in ("init", "final")
    ]  # fmt: skip
    row = report["rows"][0]
    out = tmp_path / "out.onnx"
    again = onnxprune.supermask(*pair, out, criterion=row["criterion"], sparsity=0.5, action="init", **asked)
    assert again["rows"] == [row] and row["left"] == pytest.approx(0.5, abs=1e-3)
    assert row["scores"]["top1"] == onnxprune.evaluate(out, DIGITS).value > 0.4 > report["rows"][2]["scores"]["top1"]
    assert report["ends"]["trained"]["top1"] == onnxprune.evaluate(pair[1], DIGITS).value
    assert report["cosine"] > 0.5 and not report["notes"]
    written, start = load(out), load(pair[0])
    for name, w in written.weights.items():
        assert np.array_equal(w, np.where(w == 0, 0, start.weights[name])), "weights that were never trained"


def test_a_seed_gives_the_weights_that_training_began_from(pair: tuple[Path, Path]) -> None:
    asked: dict[str, Any] = {"evaluate": DIGITS, "criterion": "movement", "action": "init", "threads": 1}
    named, drawn, wrong = (
        onnxprune.supermask(*pair, **asked),
        onnxprune.supermask(pair[1], init=3, **asked),
        onnxprune.supermask(pair[1], init=4, **asked),
    )
    assert named["rows"] == drawn["rows"] and not drawn["notes"]
    assert abs(wrong["cosine"]) < 0.05 and "was the training begun from these?" in wrong["notes"][0]


def test_statistics_are_estimated_anew() -> None:
    a, data = load(ROOT / "models" / "digits_resnet_bn.onnx"), dict(np.load(ROOT / "models" / "digits_heldout.npz"))
    few = {name: x[:100] for name, x in data.items()}
    asked: dict[str, Any] = {"evaluate": few, "criterion": "large_final", "sparsity": 0.7, "action": "init"}
    plain, estimated = (onnxprune.supermask(a, a, train=source, **asked) for source in (None, few))
    assert estimated["rows"][0]["scores"]["top1"] > plain["rows"][0]["scores"]["top1"] + 0.1
    assert "which masks change" in plain["notes"][0] and "estimated anew" in estimated["notes"][0]


def test_the_criteria_are_importances_of_tickets(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """What a ticket keeps after a round is what the supermask of its start and its trained network keeps."""
    onnxprune.lottery(
        MLP, DIGITS, DIGITS, tmp_path / "t", init=0, importance="large_init", rounds=1, rate=0.7, tune="4steps",
        controls="none", sparsity_allocate="uniform", threads=1,
    )  # fmt: skip
    start, dense, ticket = (tmp_path / "t" / "seed-0" / f"round-{n}.onnx" for n in ("00.ticket", "00", "01.ticket"))
    out = tmp_path / "out.onnx"
    onnxprune.supermask(start, dense, out, criterion="large_init", sparsity=0.7, action="init", threads=1)
    for name, w in load(out).weights.items():
        assert np.array_equal(w, load(ticket).weights[name])


# the command


def test_the_command_writes_what_it_says(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / n for n in ("out.onnx", "picture.svg", "report.json")]
    words = ["supermask", *map(str, pair), "--evaluate", str(DIGITS), "--criterion", "large_final", "-s", "0.75"]
    words += ["--action", "signed_constant", "-o", str(files[0]), "--picture", str(files[1]), "--json", str(files[2])]
    assert run([*words, "--threads", "1"]) == 0
    said = capsys.readouterr().out
    report = json.loads(files[2].read_text())
    (row,) = report["rows"]
    assert f"{row['scores']['top1']:.4f}" in said and "25.00%" in said and str(files[0]) in said
    values = [np.unique(np.abs(w)) for w in load(files[0]).weights.values() if w.ndim == 2]
    assert all(len(v) == 2 and v[0] == 0 for v in values), "zero and one constant of each layer"
    assert run(["supermask", "x.onnx", "--criterion", "list"]) == 0
    assert "those that moved furthest" in capsys.readouterr().out


def test_the_picture(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pages = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for page in pages:
        onnxprune.supermask(*pair, criterion="large_final_same_sign,random", sparsity=0.9, picture=page)
    assert pages[0].read_bytes() == pages[1].read_bytes() and pages[0].stat().st_size < 400_000
    panels = [svg for svg in ElementTree.parse(pages[0]).iter(f"{SVG}svg") if svg.get("viewBox")]
    assert len(panels) == 2 * 4 and len({(p.get("x"), p.get("y")) for p in panels}) == 8
    for k, panel in enumerate(panels):  # a row of four layers for each criterion
        marks = [p.attrib["d"] for p in panel.iter(f"{SVG}path") if p.get("class") == "points"]
        out, kept = (np.array(re.findall(r"M([\d.]+) ([\d.]+)h0", d), float) for d in marks)
        assert len(out) + len(kept) in (960, 1000) and 50 < len(kept) < 150, "the last layer has 960 weights"
        regions = [p.attrib["d"] for p in panel.iter(f"{SVG}path") if p.get("class") == "region"]
        assert len(regions) == (k < 4)
        for d in regions:
            cells = np.array(re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)", d), float)
            assert within(kept, cells, 3.1).all(), "in the region, but for the width of a cell"
            assert within(out, cells, 0).mean() < 0.05


def within(points: Any, cells: Any, by: float) -> Any:
    """Which points lie in a cell (x, y, width, height), or so close to one."""
    x, y, w, h = cells.T
    px, py = points.T[:, :, None]
    return ((x - by <= px) & (px <= x + w + by) & (y - by <= py) & (py <= y + h + by)).any(1)


REFUSED: dict[str, tuple[list[str], str]] = {
    "one file": (["A", "--evaluate", str(DIGITS)], "name INITIAL.onnx and TRAINED.onnx"),
    "a seed too many": (["A", "B", "--init", "0", "--evaluate", str(DIGITS)], "leave INITIAL.onnx out"),
    "no data": (["A", "B"], "--evaluate SRC"),
    "another graph": (["A", "GRU", "--evaluate", str(DIGITS)], "node 0 is Gemm"),
    "no such criterion": (["A", "B", "--criterion", "large"], "--criterion large: unknown; choose one of large_final,"),
    "no such action": (["A", "B", "--action", "init,zero"], "--action init,zero: unknown; choose one of init,"),
    "all of it": (["A", "B", "--sparsity", "1"], "--sparsity 1: expected a fraction between 0 and 1"),
    "nothing is left": (["A", "B", "-s", "0.99999", "--evaluate", str(DIGITS)], "no weight is left; choose fewer"),
    "many networks": (["A", "B", "-o", "OUT", "-s", "0.5"], "is of one --criterion, and there are 13; name one"),
    "many planes": (["A", "B", "--picture", "OUT", "-s", "0.5,0.8"], "is of one --sparsity, and there are 2"),
    "layers by data": (["A", "B", "--evaluate", str(DIGITS), "--sparsity-allocate", "owl"], "needs least squares"),
    "by magnitude": (["A", "B", "--evaluate", str(DIGITS), "--sparsity-allocate", "lamp"], "lamp goes by magnitudes"),
    "statistics of none": (["A", "B", "--evaluate", str(DIGITS), "--train", str(DIGITS)], "no BatchNormalization"),
    "a metric of nothing": (["A", "B", "--picture", "OUT", "--metric", "top1"], "--metric needs --evaluate"),
    "nothing to mask": (["A", "B", "--evaluate", str(DIGITS), "--ignore", "*"], "no layer can be masked"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(
    case: str, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, why = REFUSED[case]
    named = {"A": pair[0], "B": pair[1], "GRU": ROOT / "models" / "digits_gru.onnx", "OUT": tmp_path / "out"}
    assert run(["supermask", *(str(named.get(w, w)) for w in words)]) == 2
    captured = capsys.readouterr()
    assert why in captured.err and len(captured.err.splitlines()) == 1 and not captured.out
    assert not list(tmp_path.iterdir())


def test_missing_labels_are_named(pair: tuple[Path, Path]) -> None:
    with pytest.raises(OptionError, match="labels"):
        onnxprune.supermask(*pair, evaluate=np.load(DIGITS)["pixels"], metric="top1")
