"""Training sparse networks: masks, rewinding, tickets round by round, pruning at initialization, zeros in steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from conftest import ROOT, Cli
from onnxprune.errors import OptionError, UserError
from onnxprune.evaluation.training_set import training_set
from onnxprune.experiments.masks import Choice, choose, left, masked, shuffled
from onnxprune.experiments.rewind import point, rewind
from onnxprune.graph.io import Model, load
from onnxprune.importance.shown import by_training
from onnxprune.pipeline.thin import SCORES
from onnxprune.sparsity.options import Zeros
from onnxprune.training.initial import initial
from onnxprune.training.trainer import Trainer
from onnxprune.training.weights import trainable

MODELS = ROOT / "models"
MLP, DIGITS = MODELS / "digits_mlp.onnx", MODELS / "digits_mlp.npz"
RESNET, PICTURES = MODELS / "digits_resnet_bn.onnx", MODELS / "digits_heldout.npz"
NET = load(MLP)
FRESH = initial(NET, 3).model
DATA = training_set(NET, DIGITS).take(range(96))


def zeros(model: Model) -> dict[str, Any]:
    return {n: model.weights[n] == 0 for n in trainable(model) if model.weights[n].ndim > 1}


# parts


@pytest.mark.parametrize("importance", list(SCORES))
def test_what_is_left_is_as_much_as_was_asked(importance: str) -> None:
    how = Choice(importance, Zeros())
    masks, notes = choose(FRESH, trainable(FRESH), 0.9, how, by_training(DATA), lambda done, total: None)
    assert left(masks) == pytest.approx(0.1, abs=1e-3) and not notes
    more, _ = choose(masked(FRESH, masks), trainable(FRESH), 0.97, how, by_training(DATA), lambda done, total: None)
    assert left(more) == pytest.approx(0.03, abs=1e-3)
    assert not any((more[n] & ~masks[n]).any() for n in masks), "what is gone stays gone"


def test_masks_of_layers() -> None:
    def masks(share: float, **zeros: Any) -> Any:
        how = Choice("magnitude", Zeros(**zeros), ignore=(last,))
        return choose(FRESH, trainable(FRESH), share, how, by_training(DATA), lambda done, total: None)[0]

    last = [n for n in trainable(FRESH) if FRESH.weights[n].ndim > 1][-1]
    alike = masks(0.75, sparsity_allocate="uniform")
    assert {round(left({n: m}), 3) for n, m in alike.items()} == {0.25} and last not in alike
    each = {n: int(m.sum()) for n, m in alike.items()}
    other = shuffled(alike, 1)
    assert {n: int(m.sum()) for n, m in other.items()} == each and any((other[n] != alike[n]).any() for n in each)
    assert {round(left({n: m}), 3) for n, m in masks(0.5, pattern="2:4").items()} == {0.5}
    with pytest.raises(OptionError, match="no weight is left"):
        masks(1 - 1e-9)
    with pytest.raises(OptionError, match="needs least squares"):
        masks(0.5, sparsity_allocate="owl")


def test_rewinding() -> None:
    t = Trainer(NET, DATA, steps="12steps", init=0, batch_size=16, threads=1)
    t.step(3)
    start, weights = t.state(), {n: w.copy() for n, w in t.weights.items()}
    t.train()
    trained = t.export()
    wide = {n for n, w in t.weights.items() if w.ndim > 1}
    masks: dict[str, Any] = {n: np.random.default_rng(1).random(t.weights[n].shape) < 0.5 for n in wide}

    rewind(t, start, masks)
    assert t.position == 3
    assert all(np.array_equal(t.weights[n], weights[n] * masks.get(n, np.True_)) for n in weights)
    t.train()
    assert t.run.curve[0][0] == 3 and t.position == 12
    assert all((t.export().weights[n] == 0)[~masks[n]].all() for n in wide)

    rewind(t, start, masks, trained)
    assert t.position == 3 and t.run.optimizer.step == 0
    assert all(np.array_equal(t.weights[n], trained.weights[n] * masks.get(n, np.True_)) for n in weights)

    rewind(t, start, {})
    t.train()
    assert all(np.array_equal(t.export().weights[n], trained.weights[n]) for n in weights), "as if nothing had been"


@pytest.mark.parametrize(("said", "step"), [("0", 0), (7, 7), ("2%", 20), ("0.1 %", 1)])
def test_points(said: Any, step: int) -> None:
    assert point(said)(1000) == step


@pytest.mark.parametrize("said", ["-1", "1.5", "100%", "soon", ""])
def test_no_points(said: str) -> None:
    with pytest.raises(ValueError, match="expected a step"):
        point(said)


# tickets

ASKED: dict[str, Any] = {"rounds": 2, "rate": 0.6, "init": 0, "tune": "16steps", "batch_size": 32, "threads": 1}


def rows(report: Mapping[str, Any]) -> list[Any]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in report["rows"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("lottery") / "whole"
    return folder, onnxprune.lottery(MLP, DIGITS, DIGITS, folder, rewind="25%", **ASKED)


def test_rounds(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, report = whole
    assert [(r["round"], r["kind"]) for r in report["rows"]] == [
        (0, "dense"), *((k, kind) for k in (1, 2) for kind in ("ticket", "reinit", "random"))
    ]  # fmt: skip
    assert [m["left"] for m in report["means"]] == pytest.approx([1, 0.4, 0.4, 0.4, 0.16, 0.16, 0.16], abs=1e-3)
    start = Trainer(NET, training_set(NET, DIGITS), steps="16steps", init=0, batch_size=32, threads=1)
    start.step(4)
    ticket, trained = (load(folder / "seed-0" / f"round-02{end}.onnx") for end in (".ticket", ""))
    gone = zeros(ticket)
    assert all((zeros(trained)[n] >= gone[n]).all() for n in gone), "zeros stay"
    for name, zero in gone.items():
        assert np.array_equal(ticket.weights[name], np.where(zero, 0, start.weights[name])), "where training stood"
    score = onnxprune.evaluate(folder / "seed-0" / "round-02.onnx", DIGITS).value
    assert score == next(r["scores"]["top1"] for r in report["rows"] if (r["round"], r["kind"]) == (2, "ticket"))
    assert (folder / "curve.svg").read_text().startswith("<svg")


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, report = whole
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    book = json.loads((cut / "experiment.json").read_text())
    del book["rows"][4:]
    (cut / "experiment.json").write_text(json.dumps(book))
    (cut / "seed-0" / "round-02.onnx").unlink()
    again = onnxprune.lottery(MLP, DIGITS, DIGITS, cut, rewind="25%", **ASKED)
    assert rows(again) == rows(report)
    with pytest.raises(OptionError, match=r"other settings: rate was 0.6, and is 0.5"):
        onnxprune.lottery(MLP, DIGITS, DIGITS, cut, rewind="25%", **{**ASKED, "rate": 0.5})
    (cut / "experiment.json").write_text("{}")
    with pytest.raises(OptionError, match="no table of an experiment"):
        onnxprune.lottery(MLP, DIGITS, DIGITS, cut, **ASKED)
    with pytest.raises(OptionError, match="holds other files"):
        onnxprune.lottery(MLP, DIGITS, DIGITS, cut / "seed-0", **ASKED)


@pytest.mark.parametrize("what", ["weights", "schedule"])
def test_channels(what: str, tmp_path: Path) -> None:
    asked = {**ASKED, "rounds": 1, "rate": 0.5, "round_to": 1, "tune": "6steps", "rewind": 2, "rewind_what": what}
    report = onnxprune.lottery(RESNET, PICTURES, PICTURES, tmp_path / "t", structured=True, **asked)
    ticket = load(tmp_path / "t" / "seed-0" / "round-01.ticket.onnx")
    means = {m["kind"]: m for m in report["means"]}
    size = [sum(m.weights[n].size for n in trainable(m)) for m in (ticket, load(RESNET))]
    assert means["ticket"]["left"] == size[0] / size[1] < 0.4
    assert not any(z.any() for z in zeros(ticket).values()) and set(means) == {"dense", "ticket", "reinit", "random"}


def test_a_trained_model_is_pruned_and_its_schedule_goes_back(tmp_path: Path) -> None:
    asked = {**ASKED, "init": None, "rewind_what": "schedule", "controls": "random", "rounds": 1, "rate": 0.3}
    report = onnxprune.lottery(MLP, DIGITS, DIGITS, tmp_path / "t", **asked)
    dense, ticket, other = report["rows"]
    assert dense["steps"] == 0 and dense["scores"]["top1"] == onnxprune.evaluate(MLP, DIGITS).value
    assert ticket["scores"]["top1"] > other["scores"]["top1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--evaluate DATA --init 0", "--train SRC"),
        ("--train DATA --init 0", "--evaluate SRC"),
        ("--train DATA --evaluate DATA", "give --init FILE"),
        ("--train DATA --evaluate DATA --rewind-what schedule", "--controls reinit needs --init"),
        ("--train DATA --evaluate DATA --init 0 --rewind 50", "a training has 20 steps"),
        ("--train DATA --evaluate DATA --init 0 --rate 1", "between 0 and 1"),
        ("--train DATA --evaluate DATA --init 0 --rate 0.9 --rounds 9", "leaves none of"),
        (f"--train {MODELS / 'digits_calibration.npz'} --evaluate DATA --init 0", "--train"),
        ("--train DATA --evaluate DATA --init 0 --importance apoz", "is of units"),
        ("--train DATA --evaluate DATA --init 0 --controls all", "expected none, or some of reinit, random"),
        ("--train DATA --evaluate DATA --init 0 --structured --pattern 2:4", "is of single weights"),
        ("--train DATA --evaluate DATA --init 0 --round-to 4", "--round-to needs --structured"),
        ("--train DATA --evaluate DATA --init OTHER", "expected weights of the same graph"),
        ("--train DATA --evaluate DATA --init 0 --tune 5min", "as 500steps"),
    ],
)
def test_the_command_refuses(words: str, message: str, call: Cli, tmp_path: Path) -> None:
    shutil.copy(MLP, tmp_path / "net.onnx")
    words = words.replace("DATA", str(DIGITS)).replace("OTHER", str(RESNET))
    done = call(f"lottery {tmp_path / 'net.onnx'} {words} {'' if '--tune' in words else '--tune 20steps'}")
    assert done.code == 2 and message in done.err and "\n" not in done.err.strip()
    assert not list(tmp_path.rglob("*.onnx"))[1:], "nothing is written"


def test_the_command(call: Cli, tmp_path: Path) -> None:
    words = f"--train {DIGITS} --evaluate {DIGITS} --init 0 --rounds 1 --controls none --tune 6steps --threads 1"
    done = call(f"lottery {MLP} {words} -o {tmp_path / 'out'} --json {tmp_path / 'r.json'}")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["means"][1]["left"] == pytest.approx(0.8, abs=1e-3)
    assert f"{report['means'][1]['score']:.4f}" in done.out and f"written: {tmp_path / 'out'}" in done.out


# at initialization


@pytest.mark.parametrize(("name", "amount"), [("synflow", {"sparsity": 0.95}), ("snip", {"channels": 0.5})])
def test_pruned_before_the_first_step(name: str, amount: dict[str, float], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    asked: dict[str, Any] = {"init": 0, "at_init": name, "tune": "6steps", "round_to": 1, "threads": 1, **amount}
    if "sparsity" in amount:
        del asked["round_to"]
    done = onnxprune.train(RESNET, PICTURES, out, **asked)
    made, wide = load(out), zeros(load(out))
    if "sparsity" in amount:
        share = sum(z.sum() for z in wide.values()) / sum(z.size for z in wide.values())
        assert share == pytest.approx(0.95, abs=1e-3) and all(not z.all() for z in wide.values())
    else:
        whole = load(RESNET)
        parts = [sum(m.weights[n].size for n in trainable(m)) for m in (made, whole)]
        assert done.report["at_init"]["left"] == parts[0] / parts[1] < 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--at-init snip --sparsity 0.5", "needs --init SEED"),
        ("--init 0 --sparsity 0.5", "needs --at-init NAME"),
        ("--init 0 --at-init snip", "say how much goes"),
        ("--init 0 --at-init snip --sparsity 0.5 --channels 0.5", "one or the other"),
        ("--init 0 --at-init snip --channels 0.5 --sparsity-allocate uniform", "is of single weights"),
        ("--init 0 --at-init snip --sparsity 0.5 --round-to 4", "--round-to needs --channels"),
        ("--init 0 --at-init magic --sparsity 0.5", "unknown"),
    ],
)
def test_at_init_refuses(words: str, message: str, call: Cli, tmp_path: Path) -> None:
    done = call(f"train {MLP} --train {DIGITS} {words} -o {tmp_path / 'out.onnx'}")
    assert done.code == 2 and message in done.err and not list(tmp_path.iterdir())


# Han's loop

LOOP: dict[str, Any] = {
    "train": DIGITS, "tune": "4steps", "steps": 3, "learning_rate": 1e-3, "format": "dense", "measure": False,
    "threads": 1,
}  # fmt: skip


def test_thresholds_in_steps(tmp_path: Path) -> None:
    once = onnxprune.prune(MLP, quality=0.5, format="dense", measure=False).report.sparsity
    done = onnxprune.prune(MLP, quality=0.5, **LOOP)
    assert once is not None and done.report.sparsity is not None
    assert done.report.sparsity.zeros > 1.2 * once.zeros, "every step takes what lies below the threshold then"
    assert "tuned 3 times" in " ".join(done.report.notes)
    (tmp_path / "plan.json").write_text(done.plan.to_json())
    again = onnxprune.prune(MLP, plan=tmp_path / "plan.json", train=DIGITS, measure=False, threads=1)
    assert all(np.array_equal(w, done.model.weights[n]) for n, w in again.model.weights.items()), "a plan replays it"


def test_schedules_of_zeros() -> None:
    ways = {way: onnxprune.prune(MLP, sparsity=0.8, sparsity_schedule=way, **LOOP) for way in (None, "cubic")}
    counts = [r.report.sparsity.zeros for r in ways.values() if r.report.sparsity is not None]
    assert counts[0] == counts[1]
    one, other = (r.model for r in ways.values())
    assert any((z != zeros(other)[n]).any() for n, z in zeros(one).items()), "trained between, others are smallest"
    for wrong in ({"steps": 1}, {"sparsity": None, "quality": 0.5}, {"sparsity": None, "pattern": "2:8"}):
        with pytest.raises(UserError, match=r"sparsity_schedule='cubic' has no effect"):
            onnxprune.prune(MLP, **{**LOOP, "sparsity": 0.8, "sparsity_schedule": "cubic", **wrong})
