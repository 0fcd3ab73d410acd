"""The command line says what Python says, and refuses bad words in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Cli
from kinds import KINDS, proto, prune
from law import data, same_weights
from models.forms import TRANSFORMERS
from onnxprune.graph.io import load


@pytest.fixture
def call(call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """In a folder with m.onnx (a BERT), moe.onnx and cache.onnx."""
    monkeypatch.chdir(tmp_path)
    for file, name in (("m", "encoder_post_norm"), ("moe", "moe_dense"), ("cache", "onnx_attention_gqa_cache")):
        Path(f"{file}.onnx").write_bytes(proto(name).SerializeToString())
    return call


QUICK = "-q --no-latency --recover none"


@pytest.mark.parametrize(
    ("words", "name", "options"),
    [
        ("m.onnx --heads 0.5 --hidden 0.25 --layers 0.25", "encoder_post_norm",
         {"heads": 0.5, "hidden": 0.25, "layers": 0.25}),
        ("m.onnx --head-dim 0.5 --layers 0.5 --whole-layers", "encoder_post_norm",
         {"head_dim": 0.5, "layers": 0.5, "whole_layers": True}),
        ("moe.onnx --experts 0.5 --ratio heads:*=0.5", "moe_dense", {"experts": 0.5, "ratio": {"heads:*": 0.5}}),
        ("cache.onnx --heads 0.5 --allow-io-change", "onnx_attention_gqa_cache",
         {"heads": 0.5, "allow_io_change": True}),
    ],
)  # fmt: skip
def test_the_command_line_says_the_same(words: str, name: str, options: dict[str, Any], call: Cli) -> None:
    code, out, err = call(f"{words} {QUICK} -o out.onnx --save-plan plan.json")
    assert (code, out, err) == (0, "", "")
    written = Path("out.onnx").read_bytes()
    assert same_weights(load(written), load(data(prune(name, **options))))
    file = words.split()[0]
    assert call(f"{file} --plan plan.json -q --no-latency -o again.onnx")[0] == 0
    assert Path("again.onnx").read_bytes() == written
    assert call(f"{words} {QUICK} --dry-run -o dry.onnx")[0] == 0
    assert not Path("dry.onnx").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("m.onnx --heads x", "--heads x"),
        ("m.onnx --heads 1.0", "--heads"),
        ("m.onnx --heads -0.1", "--heads"),
        ("m.onnx --head-dim nan", "--head-dim"),
        ("m.onnx --layers 2", "--layers"),
        ("m.onnx --hidden 150%", "--hidden 150%: expected a fraction"),
        ("m.onnx --heads 0.95", "give at most 0.75"),
        ("m.onnx --heads auto", "--heads auto needs a target"),
        ("m.onnx --experts 0.5", "nothing of kind experts"),
        ("moe.onnx --experts 0.9", "at least 2 must stay"),
        ("m.onnx --ratio heads:none*=0.5", "matches no group"),
        ("m.onnx --ratio heads:*=2", "expected a fraction"),
        ("m.onnx --layers auto --target-macs 70%", "--calibration"),
        ("m.onnx --heads 0.5 --importance head_loss", "needs data"),
        ("cache.onnx --heads 0.5", "--allow-io-change"),
    ],
)
def test_bad_words_are_refused_in_one_line(words: str, text: str, call: Cli) -> None:
    code, out, err = call(f"{words} --no-latency")
    assert (code, out) == (2, ""), err
    assert err.startswith("onnxprune: ")
    assert err.count("\n") == 1
    assert text in err
    assert sorted(p.name for p in Path().iterdir()) == ["cache.onnx", "m.onnx", "moe.onnx"]


def test_inspect_names_the_kinds(call: Cli) -> None:
    code, out, _ = call("inspect moe.onnx --json moe.json")
    assert code == 0
    for kind in KINDS:
        assert kind in out
    rows = json.loads(Path("moe.json").read_text())["groups"]
    form = TRANSFORMERS["moe_dense"]
    sizes = {kind: sorted(r["size"] for r in rows if r["kind"] == kind) for kind in KINDS}
    assert sizes == {kind: sorted(getattr(form, kind)) for kind in KINDS if kind != "layers"} | {"layers": [1] * 4}
    for row in rows:
        assert 0 < row["parameters_share"] < 1, row["name"]
        assert row["kind"] == "layers" or row["members"], row["name"]
    layers = [r for r in rows if r["kind"] == "layers"]
    assert 0.5 < sum(r["macs_share"] for r in layers) < 1
    closed = json.loads(call("inspect cache.onnx --json - -q")[1])
    assert not [r for r in closed["groups"] if r["kind"] == "heads"]
    opened = json.loads(call("inspect cache.onnx --allow-io-change --json - -q")[1])
    assert len([r for r in opened["groups"] if r["kind"] == "heads"]) == 2


def test_the_report_names_the_kinds(call: Cli) -> None:
    code, out, err = call("m.onnx --heads 0.5 --layers 0.5 --no-latency --recover none --json report.json")
    assert code == 0, err
    report = json.loads(Path("report.json").read_text())
    assert {g["kind"] for g in report["groups"]} == {"heads", "layers"}
    assert "heads" in out
    assert "layers" in out
