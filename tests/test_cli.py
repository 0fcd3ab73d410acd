"""The command line: what its words do, what it writes and prints, and one line for every mistake."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from conftest import Cli, Outcome, in_child
from models.nets import build, normal
from models.small import BRACKETS, ODD_INPUT, ODD_TENSOR, odd_names
from models.topologies import TOPOLOGIES, UNRUNNABLE
from onnxprune import OptionError, VerificationError
from onnxprune.cli import app as cli
from onnxprune.cli import screen
from onnxprune.cli.command import DECLARED
from onnxprune.structure import cut


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of progress, however slow the machine is."""
    monkeypatch.setattr(screen, "SLOW", 600.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with net.onnx in it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    onnx.save(odd_names(), "net.onnx")
    return tmp_path / "work"


def contents(folder: Path) -> dict[str, Any]:
    """Every name below a folder with the bytes of the file, or the target of the link."""
    found = sorted(folder.rglob("*"))
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in found
    }


def assert_refused(result: Outcome, *words: str, code: int = 2) -> None:
    """One line on standard error, nothing on standard output."""
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.startswith("onnxprune: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    for word in words:
        assert word in result.err


REPLAY = "-q --no-latency"
QUICK = f"{REPLAY} --recover bias"
CUT = f"--channels 0.3 {QUICK}"


def widths(path: str = "net.pruned.onnx") -> list[int]:
    return [t.dims[0] for t in onnx.load(path).graph.initializer if len(t.dims) == 4]


# What the words do


def test_the_headline_command(call: Cli, folder: Path) -> None:
    before = (folder / "net.onnx").read_bytes()
    result = call("net.onnx --channels 0.3")
    assert result.code == 0
    assert result.err == ""
    assert sorted(contents(folder)) == ["net.onnx", "net.pruned.onnx"]
    assert (folder / "net.onnx").read_bytes() == before
    onnx.checker.check_model("net.pruned.onnx", full_check=True)
    assert widths() == [12, 16, 2]
    for words in ("parameters", "MACs per run", "file", "latency", "groups pruned: 2 of 2 of kind channels",
                  "verified: pruned equals masked", "pinned: 1 weights", "written: net.pruned.onnx"):  # fmt: skip
        assert words in result.out


@pytest.mark.parametrize(
    "words",
    [
        f"net.onnx {CUT} -o out.onnx",
        f"{CUT} -o out.onnx net.onnx",
        f"-o out.onnx net.onnx {CUT}",
        f"prune net.onnx {CUT} -o out.onnx",
        f"prune {CUT} -o out.onnx net.onnx",
        f"{CUT} prune -o out.onnx net.onnx",
        f"net.onnx -c 0.3 --output=out.onnx {QUICK}",
        f"{CUT} -oout.onnx -- net.onnx",
        f"./net.onnx --channels=0.3 -o ./out.onnx {QUICK}",
    ],
)
def test_options_may_stand_anywhere(words: str, call: Cli, folder: Path) -> None:
    assert call(words) == Outcome(0, "", "")
    assert sorted(contents(folder)) == ["net.onnx", "out.onnx"]
    assert widths("out.onnx") == [12, 16, 2]


def test_the_first_word_decides(call: Cli, folder: Path) -> None:
    assert "2 groups" in call("inspect net.onnx").out
    assert "2 groups" in call("-v inspect net.onnx").out
    assert "Conv" in call("ops").out
    listed = call("ops --gradients --json -").report
    assert listed["Relu"]["kind"] == "gradient" and listed["ArgMax"] == {"kind": "none", "text": "it gives indices"}
    assert "barrier" not in {row["kind"] for row in listed.values()}
    os.rename("net.onnx", "inspect")
    assert call(f"./inspect {CUT} -o ops").code == 0  # a value is no word
    assert call(f"-o prune ./inspect {CUT}").code == 0
    assert sorted(contents(folder)) == ["inspect", "ops", "prune"]
    assert_refused(call(f"{CUT} inspect ./inspect"), "No such option: --channels")


def test_out_lies_beside_the_input_and_is_replaced(call: Cli, folder: Path) -> None:
    (folder / "deep").mkdir()
    shutil.move("net.onnx", "deep/a.b.onnx")
    Path("deep/a.b.pruned.onnx").write_text("old")
    assert call(f"deep/a.b.onnx {CUT}").code == 0
    assert widths("deep/a.b.pruned.onnx") == [12, 16, 2]
    shutil.copy("deep/a.b.onnx", "no extension")
    assert call(["no extension", *CUT.split()]).code == 0
    assert widths("no extension.pruned.onnx") == [12, 16, 2]


def test_versions_are_kept(call: Cli, folder: Path) -> None:
    proto = odd_names()
    proto.ir_version = 7
    proto.opset_import[0].version = 13
    proto.opset_import.append(helper.make_opsetid("com.example", 2))
    onnx.save(proto, "net.onnx")
    assert call(f"net.onnx {CUT}").code == 0
    pruned = onnx.load("net.pruned.onnx")
    assert pruned.ir_version == 7
    assert pruned.opset_import == proto.opset_import


def test_nothing_to_do(call: Cli, folder: Path) -> None:
    before = contents(folder)
    result = call("net.onnx")
    assert result.code == 2
    assert "stem conv" in result.out
    assert result.err.startswith("onnxprune: nothing to do")
    assert result.err.count("\n") == 1
    assert_refused(call("net.onnx -q"), "--channels 0.3", "--target-macs 70%")
    assert_refused(call("net.onnx -q --ignore body"), "nothing to do")
    assert_refused(call("net.onnx -q --sparsity 0 --magic"), "No such option")
    listed = call("net.onnx --json -")
    assert [g["size"] for g in listed.report["groups"]] == [16, 24]
    assert contents(folder) == before


def test_without_a_word(call: Cli) -> None:
    result = call([])
    assert result == Outcome(2, call("--help").out, "")
    assert result.out.startswith("Usage: onnxprune MODEL [OPTIONS]")


@pytest.mark.parametrize("words", ["-h", "net.onnx --help", "prune -h", "--channels 0.3 -h", "help"])
def test_help(words: str, call: Cli) -> None:
    assert call(words) == call("--help") == Outcome(0, call("--help").out, "")


def test_help_of_subcommands(call: Cli) -> None:
    for words in ("inspect --help", "--help inspect", "inspect -h", "help inspect", "inspect --help-all"):
        result = call(words)
        assert result.code == 0
        assert result.out.startswith("Usage: onnxprune inspect MODEL [OPTIONS]\n")
        assert "--input-shape" in result.out
        assert "--channels" not in result.out
    assert_refused(call("help magic"), "help magic: no such subcommand; there are prune, ")


def test_version(call: Cli) -> None:
    assert call("--version") == Outcome(0, f"onnxprune {onnxprune.__version__}\n", "")


def test_inspect(call: Cli, folder: Path) -> None:
    plain, verbose, quiet = (call(f"inspect net.onnx {v}") for v in ("", "-v", "-q"))
    assert "2 groups; 1 pinned weight axes" in plain.out
    assert "axis of the graph output y" in plain.out
    assert "made by  stem conv" in verbose.out
    assert "stem[axis 0], b[axis 0], body[axis 1]" in verbose.out
    assert quiet == Outcome(0, "", "")
    row = call("inspect net.onnx -q --json -").report["groups"][1]
    assert (row["name"], row["kind"], row["size"]) == (BRACKETS, "channels", 24)
    assert {"body", "k", BRACKETS} <= set(row["names"])
    assert 0 < row["parameters_share"] < 1


def test_other_kinds_are_listed_as_left_alone(call: Cli, folder: Path) -> None:
    nodes = """h = MatMul(x, w) n = LayerNormalization(h, g, b) p = MatMul(n, u) q = Relu(p) r = MatMul(q, d)
               s = Add(h, r) y = MatMul(s, v)"""
    weights: dict[str, Any] = {
        "w": normal(6, 16),
        "g": normal(16),
        "b": normal(16),
        "u": normal(16, 32),
        "d": normal(32, 16),
    }
    onnx.save(build(nodes, "float[n,5,6]", "float[n,5,3]", **weights, v=normal(16, 3)), "stream.onnx")
    result = call("stream.onnx --channels 0.3 --no-latency -v")
    assert result.code == 0
    assert "left alone: kind hidden (1 group)" in result.out
    assert "hidden" not in result.out.split("pinned:")[1]
    listed = call(f"stream.onnx {CUT} --json -").report
    assert listed["left_alone"] == {"hidden": 1, "layers": 1}
    assert [(g["kind"], g["size"]) for g in listed["groups"]] == [("channels", 32)]


# Names


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--ratio stem=0.5", [8, 24]),  # a weight
        (f"--ratio {ODD_TENSOR}=0.5", [8, 24]),  # an output
        ("--ratio 'onnx::*=0.5'", [8, 24]),
        ("--ratio 'stem conv=0.5'", [8, 24]),  # a node, a group
        (f"--ratio '{BRACKETS}=0.5'", [16, 12]),  # a bracket and an equals sign, literally
        ("--ratio 'block[[]0]*=0.5'", [16, 12]),
        ("--ratio '*=0.25' --ratio body=0.5", [12, 12]),  # the last match wins
        ("--ratio body=0.5 --ratio '*=0.25'", [12, 18]),
        ("--channels 0.25 --ratio body=0.5", [12, 12]),
        ("--channels 0.25 --ratio body=0", [12, 24]),
        (f"--channels 0.25 --ignore '{BRACKETS}'", [12, 24]),
        ("--channels 0.25 --ignore 'st*' --ignore relu --ratio stem=0.5", None),  # relu makes no units
        ("--channels 0.25 --ignore 'st*' --ratio stem=0.5", [16, 18]),
    ],
)
def test_globs(words: str, expected: list[int] | None, call: Cli, folder: Path) -> None:
    result = call(f"net.onnx {words} --round-to 1 {QUICK}")
    if expected is None:
        assert_refused(result, "--ignore 'relu' matches no group")
    else:
        assert result == Outcome(0, "", "")
        assert widths()[:2] == expected


def test_input_shapes_are_split_at_the_last_colon(call: Cli, folder: Path) -> None:
    onnx.save(odd_names("float[n,3,h,w]"), "net.onnx")
    small, large = (
        call(f"net.onnx {CUT} --input-shape {ODD_INPUT}:1,3,{n},{n} --json -").report["before"]["macs"] for n in (4, 10)
    )
    assert large == 16 * small  # (n - 2)^2 pixels each


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (f"{ODD_INPUT}:1,3,8", "does not fit the model's n,3,8,8"),
        (f"{ODD_INPUT}:1,3,9,9", "does not fit the model's n,3,8,8"),
        ("serving_default_input_2:1,3,8,8", f"no such input; the model has {ODD_INPUT}"),
        (ODD_INPUT, "no such input"),  # :0 is a shape here, of size 0
        ("1,3,8,8", "expected NAME:1,3,224,224"),
        (f"{ODD_INPUT}:", "expected NAME:1,3,224,224"),
        (f"{ODD_INPUT}:1,3,-1,8", "expected NAME:1,3,224,224"),
        (f"{ODD_INPUT}:1,3,8.0,8", "expected NAME:1,3,224,224"),
        (":1,3,8,8", "expected NAME:1,3,224,224"),
    ],
)
def test_input_shapes_that_do_not_fit(shape: str, words: str, call: Cli, folder: Path) -> None:
    before = contents(folder)
    words = "expected NAME:1,3,224,224" if shape == ODD_INPUT else words
    for command in (f"net.onnx {CUT}", "inspect net.onnx -q"):
        assert_refused(call([*command.split(), "--input-shape", shape]), f"--input-shape {shape.split(':')[0]}", words)
    assert contents(folder) == before


def test_an_input_shape_with_which_the_model_does_not_run(call: Cli, folder: Path) -> None:
    """Declared dynamic, but a Gemm after Flatten fixes it."""
    nodes = "h = Conv(x, w) r = Relu(h) k = Conv(r, u) t = Relu(k) f = Flatten(t) y = Gemm(f, v)"
    weights: dict[str, Any] = {"w": normal(8, 3, 3, 3), "u": normal(8, 8, 1, 1), "v": normal(8 * 36, 5)}
    onnx.save(build(nodes, "float[n,3,h,w]", "float[n,5]", **weights), "flat.onnx")
    before = contents(folder)
    result = call(f"flat.onnx {CUT} --input-shape x:1,3,10,10")
    assert_refused(result, "flat.onnx", "--input-shape")
    assert contents(folder) == before
    assert call(f"flat.onnx {CUT} --input-shape x:1,3,8,8").code == 0


# Mistakes in the options

FRACTION = "expected a fraction in [0, 1) that is removed, as 0.3 or 30%, or auto"
PART = "expected a fraction in [0, 1) after the glob, for instance 'layer1*=0.5'"
PAIR = "expected [KIND:]GLOB=R, for instance 'layer1*=0.5'"
MISTAKES = {
    "--channels 1": f"--channels 1: {FRACTION}",
    "--channels 30": f"--channels 30: {FRACTION}",
    "--channels 100%": f"--channels 100%: {FRACTION}",
    "--channels -0.3": f"--channels -0.3: {FRACTION}",
    "--channels=nan": f"--channels nan: {FRACTION}",
    "--channels some": f"--channels some: {FRACTION}",
    "--channels ''": f"--channels : {FRACTION}",
    "--channels auto": "--channels auto needs a target",
    "--ratio stem": f"--ratio stem: {PAIR}",
    "--ratio =0.3": f"--ratio =0.3: {PAIR}",
    "--ratio stem=": f"--ratio stem=: {PART}",
    "--ratio stem=nan": f"--ratio stem=nan: {PART}",
    "--ratio stem=1": f"--ratio stem=1: {PART}",
    "--ratio body=0.5 --ratio stem=-0.1": f"--ratio stem=-0.1: {PART}",
    "--ratio 'conv*=0.3'": "--ratio 'conv*' matches no group, node, weight or output that can be pruned",
    "--channels 0.3 --ignore 'conv*'": "--ignore 'conv*' matches no group",
    "--channels 0.3 --importance magic": "--importance magic: unknown; choose one of path, l1",
    "--channels 0.3 --allocate magic": "--allocate magic: unknown; choose one of uniform",
    "--channels 0.3 --recover magic": "--recover magic: unknown; choose one of least-squares",
    "--channels 0.3 --metric magic": "--metric magic: unknown; choose one of top1",
    "--channels 0.3 --round-to 0": "--round-to 0: expected a whole number, 1 (off) or more",
    "--channels 0.3 --round-to 1.5": "--round-to 1.5: expected a whole number",
    "--channels 0.3 --max-ratio 1": "--max-ratio 1: expected a fraction in (0, 1)",
    "--channels 0.3 --max-ratio nan": "--max-ratio nan: expected a fraction in (0, 1)",
    "--channels 0.3 --steps 0": "--steps 0: expected a whole number from 1 to 1000",
    "--channels 0.3 --steps some": "--steps some: expected",
    "--channels 0.3 --threads -1": "--threads -1: expected a whole number, 0 (all cores) or more",
    "--channels 0.3 --seed -1": "--seed -1: expected a whole number, 0 or more",
    "--channels 0.3 --memory none": "--memory none: expected an amount of memory above 0, as 2 (GB) or 500MB",
    "--channels 0.3 --cluster 1": "--cluster 1: expected a whole number from 2 to 256",
    "--target-macs 0": "--target-macs 0: must be above 0",
    "--target-macs -1": "--target-macs -1: must be above 0",
    "--target-macs 120%": "--target-macs 120%: must be above 0 and at most what the model has now",
    "--target-macs 99G": "--target-macs 99G: must be above 0 and at most",
    "--target-macs abc": "--target-macs abc: expected what is left, a fraction (0.7, 70%) or a number (300M)",
    "--target-params nan": "--target-params nan: must be",
    "--target-params 0.001": "cannot be reached",
    "--plan missing.json --channels 0.3": "--plan replays what was chosen before",
    "--plan missing.json --target-macs 0.3": "--plan replays what was chosen before",
    "--channels 0.3 --magic": "No such option: --magic",
    "--channels 0.3 other.onnx": "unexpected extra argument",
    "--channels 0.3 -v": "--quiet and --verbose",
    "--channels 0.3 -o - --json -": "-o - and --json - both write to standard output",
    "--channels 0.3 --whole-layers": "--whole-layers",
    "--channels": "--channels",
}
PLANS = {
    "missing.json": "--plan missing.json: cannot be read (No such file or directory)",
    "net.onnx": "--plan net.onnx",
    ".": "--plan .: cannot be read (Is a directory)",
}


@pytest.mark.parametrize("name", PLANS)
def test_plans_that_cannot_be_read(name: str, call: Cli, folder: Path) -> None:
    before = contents(folder)
    assert_refused(call(f"net.onnx {REPLAY} --plan {name}"), PLANS[name])
    assert contents(folder) == before


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_in_options(words: str, call: Cli, folder: Path) -> None:
    before = contents(folder)
    Path("net.pruned.onnx").write_text("an older result")
    assert_refused(call(f"net.onnx {QUICK} {words}"), MISTAKES[words])
    assert contents(folder) == before | {"net.pruned.onnx": b"an older result"}


@pytest.mark.parametrize("words", ["inspect", "prune", "inspect net.onnx other.onnx", "ops net.onnx", "ops --magic"])
def test_mistakes_in_subcommands(words: str, call: Cli, folder: Path) -> None:
    assert_refused(call(words), "(see onnxprune --help)")


# Bad input


def external(folder: Path) -> Path:
    onnx.save(odd_names(), folder / "ext.onnx", save_as_external_data=True, location="ext.bin", size_threshold=0)
    return folder / "ext.onnx"


def lead_to(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = location
    path.write_bytes(proto.SerializeToString())


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


BAD_INPUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "not ONNX": (lambda p: p.write_bytes(b"MZ\x90\x00" * 100), "expected an ONNX model"),
    "text": (lambda p: p.write_text("<!DOCTYPE html>"), "a text or HTML page; download the file itself"),
    "zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(100)), "a zip archive"),
    "empty": (lambda p: p.write_bytes(b""), "expected an ONNX"),
    "truncated": (truncated, "download or export the model again"),
    "missing": (Path.unlink, "No such file or directory"),
    "directory": (lambda p: p.unlink() or p.mkdir(), "a folder"),  # type: ignore[func-returns-value]
    "external data missing": (lambda p: (p.parent / "ext.bin").unlink(), "external data 'ext.bin'"),
    "external data short": (lambda p: os.truncate(p.parent / "ext.bin", 1000), "of 1000 bytes"),
    "external data escaping": (lambda p: lead_to(p, "../../../../etc/passwd"), "leads out of it"),
    "external data absolute": (lambda p: lead_to(p, "/etc/passwd"), "leads out of it"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(name: str, call: Cli, folder: Path) -> None:
    spoil, words = BAD_INPUT[name]
    path = external(folder) if "external" in name else folder / "net.onnx"
    spoil(path)
    before = contents(folder)
    for command in ([str(path), *CUT.split()], ["inspect", str(path)], [str(path)]):
        assert_refused(call(command), str(path), words)
    assert contents(folder) == before


def test_folders_as_input(call: Cli, folder: Path) -> None:
    for name in (".", "..", "/", ""):
        assert_refused(call([name, *CUT.split()]), "a folder")


def test_an_operator_that_does_not_run(call: Cli, folder: Path) -> None:
    onnx.save(UNRUNNABLE["unknown_operator"](), "mystery.onnx")
    before = contents(folder)
    assert_refused(call(f"mystery.onnx {CUT}"), "mystery.onnx", "cannot be verified", "Mystery", "--no-verify")
    assert contents(folder) == before
    result = call("mystery.onnx --channels 0.3 --no-verify --recover bias")
    assert (result.code, result.err) == (0, "")
    assert "not verified" in result.out
    assert "latency not measured" in result.out
    assert Path("mystery.pruned.onnx").stat().st_size < Path("mystery.onnx").stat().st_size


def test_a_mistake_of_ours_says_what_was_written(call: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("onnxprune.cli.app.render", fail)
    result = call("net.onnx --channels 0.3 --recover none --no-latency")
    assert (result.code, Path("net.pruned.onnx").exists()) == (1, True)
    assert "onnxprune: internal error; written: net.pruned.onnx: KeyError" in result.err


def test_nothing_that_can_be_pruned(call: Cli, folder: Path) -> None:
    onnx.save(TOPOLOGIES["nothing_hidden_is_output"](), "all.onnx")
    assert_refused(call(f"all.onnx {CUT}"), "all.onnx: nothing can be pruned", "axis of the graph output", "Gemm_")
    onnx.save(TOPOLOGIES["nothing_stored"](), "none.onnx")
    assert_refused(call(f"none.onnx {CUT}"), "none.onnx: nothing can be pruned: it has no weights")
    nodes = "h = MatMul(x, w) n = LayerNormalization(h, g, b) y = MatMul(n, v)"
    weights: dict[str, Any] = {"w": normal(6, 16), "g": normal(16), "b": normal(16), "v": normal(16, 3)}
    onnx.save(build(nodes, "float[n,5,6]", "float[n,5,3]", **weights), "stream.onnx")
    words = "stream.onnx: no group of kind channels; there are 1 of kind hidden, which --channels leaves alone"
    assert_refused(call(f"stream.onnx {CUT}"), words)
    assert not list(folder.glob("*.pruned.onnx"))


# Where to write


def test_the_input_is_replaced_only_by_force(call: Cli, folder: Path) -> None:
    (folder / "sub").mkdir()
    os.symlink("net.onnx", "soft.onnx")
    os.link("net.onnx", "hard.onnx")
    before = contents(folder)
    for out in ("net.onnx", "./net.onnx", "sub/../net.onnx", str(folder / "net.onnx"), "soft.onnx", "hard.onnx"):
        assert_refused(call(f"net.onnx {CUT} -o {out}"), f"{Path(out)} is the input", "--force")
    assert_refused(call(f"soft.onnx {CUT} -o net.onnx"), "net.onnx is the input", "--force")
    assert contents(folder) == before
    assert call(f"net.onnx {CUT} -o net.onnx --force") == Outcome(0, "", "")
    assert widths("net.onnx") == [12, 16, 2]
    assert widths("hard.onnx") == [16, 24, 2]  # another name of the old file


def test_force_with_external_data(call: Cli, folder: Path) -> None:
    path = external(folder)
    assert call(f"{path} {CUT} -o {path} --force") == Outcome(0, "", "")
    assert widths("ext.onnx") == [12, 16, 2]
    assert Path("ext.bin").is_file()


def test_a_link_to_another_file_is_no_input(call: Cli, folder: Path) -> None:
    shutil.copy("net.onnx", "other.onnx")
    os.symlink("other.onnx", "soft.onnx")
    before = Path("other.onnx").read_bytes()
    assert call(f"net.onnx {CUT} -o soft.onnx").code == 0
    assert widths("soft.onnx") == [12, 16, 2]
    assert Path("other.onnx").read_bytes() == before


def unwritable() -> Path:
    """A folder that even root cannot write to."""
    for place in (Path("/proc/self/fdinfo"), Path("/sys")):
        if place.is_dir():
            return place
    pytest.skip("no such folder")


PLACES = ["-o", "--save-plan", "--json"]


@pytest.mark.parametrize("option", PLACES)
def test_places_that_cannot_be_written(option: str, call: Cli, folder: Path) -> None:
    (folder / "sub").mkdir()
    shutil.copy("net.onnx", "plain")
    before = contents(folder)
    start = f"net.onnx {CUT} {option}" if option == "-o" else f"net.onnx {CUT} -o out.onnx {option}"
    assert_refused(call(f"{start} sub"), f"{option} sub is a directory; name a file")
    assert_refused(call(f"{start} missing/file"), f"{option} missing/file: there is no folder missing")
    assert_refused(call(f"{start} plain/file"), f"{option} plain/file: there is no folder plain")
    assert_refused(call(f"{start} {unwritable() / 'file'}"), f"{unwritable()}/file")
    assert_refused(call(f"{start} {'x' * 300}"), "xxx", "File name too long")
    assert contents(folder) == before | ({} if option == "-o" else written(before, folder))


def written(before: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Some places show only when they are written to, and then the model may be there already: whole."""
    new = {name: data for name, data in contents(folder).items() if name not in before}
    assert set(new) <= {"out.onnx"}
    for name in new:
        onnx.checker.check_model(name)
    return new


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
@pytest.mark.parametrize("option", PLACES)
def test_read_only_folder(option: str, call: Cli, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert_refused(call(f"net.onnx {CUT} {option} sub/file"), f"{option} sub/file: cannot be written")
    assert sorted(contents(folder)) == ["net.onnx", "sub"]


@pytest.mark.parametrize("option", ["--save-plan", "--json"])
@pytest.mark.parametrize("target", ["net.onnx", "./net.onnx", "soft.onnx", "net.pruned.onnx", "both"])
def test_files_never_share_a_name(option: str, target: str, call: Cli, folder: Path) -> None:
    os.symlink("net.onnx", "soft.onnx")
    before = contents(folder)
    other = {"--save-plan": "--json", "--json": "--save-plan"}[option]
    extra = f"{other} both" if target == "both" else ""
    assert_refused(call(f"net.onnx {CUT} {option} {target} {extra}"), f"{Path(target)} is the ")
    assert contents(folder) == before


def test_weights_of_the_input_are_never_replaced(call: Cli, folder: Path) -> None:
    path = external(folder)
    before = contents(folder)
    for option in PLACES:
        assert_refused(call(f"{path} {CUT} --force {option} ext.bin"), f"{option} ext.bin holds weights of the input")
    assert contents(folder) == before


def test_inspect_never_writes_over_its_input(call: Cli, folder: Path) -> None:
    before = contents(folder)
    for words in ("inspect net.onnx -q --json net.onnx", "net.onnx -q --json ./net.onnx"):
        assert_refused(call(words), "net.onnx is the input")
    assert_refused(call("inspect net.onnx -q --json missing/file"), "there is no folder missing")
    assert contents(folder) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_devices(call: Cli, folder: Path) -> None:
    before = contents(folder)
    assert_refused(call(f"net.onnx {CUT} -o /dev/full"), "/dev/full", "a folder or a device")
    assert_refused(call("inspect net.onnx -q --json /dev/full"), "--json /dev/full", "No space left on device")
    assert_refused(call("ops -q --json /dev/full"), "--json /dev/full", "No space left on device")
    assert contents(folder) == before
    result = call(f"net.onnx {CUT} --json /dev/full")
    assert_refused(result, "--json /dev/full", "No space left on device", "the model is in net.pruned.onnx")


@pytest.mark.parametrize("words", ["-o out.onnx", "-o net.onnx --force", "--save-plan plan.json --json report.json"])
def test_a_full_disk_leaves_everything_as_it_was(words: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files stands in for a full disk."""
    Path("out.onnx").write_bytes(b"an older result")
    Path("plan.json").write_bytes(b"an older plan")
    before = contents(folder)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        cli.main(f"net.onnx {CUT} {words}".split())

    assert in_child(work) == 2
    assert contents(folder) == before
    printed = capfd.readouterr()
    assert_refused(Outcome(2, printed.out, printed.err), "free some space or save elsewhere")


@pytest.mark.parametrize(
    "words",
    [f"net.onnx {CUT} -o out.onnx", f"net.onnx {CUT} -o net.onnx --force", "inspect net.onnx -q --json report.json"],
)
def test_killed_in_the_middle_of_a_save(words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the new file takes its place; what is half written keeps a name of its own."""
    Path("report.json").write_text("an older report")
    before = contents(folder)
    monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert in_child(lambda: cli.main(words.split())) == -signal.SIGKILL
    after = contents(folder)
    assert after | before == after
    assert all(name.endswith(".tmp") for name in after.keys() - before.keys())


def test_nothing_is_written_when_the_check_fails(call: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise VerificationError("pruned and masked model\ndiffer by 1.0e+00")

    monkeypatch.setattr(cut, "verify", fail)
    before = contents(folder)
    result = call(f"net.onnx {CUT} --save-plan plan.json --json report.json")
    assert_refused(result, "pruned and masked model differ by", code=1)
    assert contents(folder) == before


def test_our_own_mistakes(call: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("one line\nand another")

    monkeypatch.setattr(cli, "recipe", fail)
    before = contents(folder)
    assert_refused(call(f"net.onnx {CUT}"), "internal error, nothing was written: RuntimeError: one line and", code=1)
    with pytest.raises(RuntimeError):
        cli.main("net.onnx --channels 0.3 -v".split())
    assert contents(folder) == before

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "recipe", interrupt)
    assert_refused(call(f"net.onnx {CUT}"), "interrupted, nothing was written", code=130)


# Plans and reports


@pytest.mark.parametrize("words", ["", "--recover none", "--steps 3", "--importance random --seed 5", "--round-to 1"])
def test_a_plan_replays_to_the_same_bytes(words: str, call: Cli, folder: Path) -> None:
    assert call(f"net.onnx {CUT} {words} -o first.onnx --save-plan plan.json").code == 0
    assert call(f"net.onnx --plan plan.json {REPLAY} -o second.onnx --save-plan again.json").code == 0
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()
    assert Path("plan.json").read_bytes() == Path("again.json").read_bytes()
    assert Path("first.onnx").stat().st_size < Path("net.onnx").stat().st_size


def test_a_plan_may_be_saved_over_itself_but_not_a_report(call: Cli, folder: Path) -> None:
    assert call(f"net.onnx {CUT} --save-plan plan.json").code == 0
    before = contents(folder)
    assert call(f"net.onnx --plan plan.json --save-plan plan.json {REPLAY}").code == 0
    for option in ("--json", "-o"):
        assert_refused(call(f"net.onnx --plan plan.json {REPLAY} {option} plan.json"), "is the plan that is replayed")
    assert contents(folder) == before


def test_plans_of_other_models(call: Cli, folder: Path) -> None:
    assert call(f"net.onnx {CUT} --save-plan plan.json").code == 0
    onnx.save(TOPOLOGIES["mobilenet_v2"](), "other.onnx")
    assert_refused(call(f"other.onnx --plan plan.json {REPLAY}"), "--plan plan.json was made for another model")
    forced = call(f"other.onnx --plan plan.json --plan-for-another-model {REPLAY}")
    assert_refused(forced, "--plan plan.json: group", "no such group")
    plan = json.loads(Path("plan.json").read_text())
    plan["groups"]["stem conv"]["kept"] = [3, 3]
    Path("plan.json").write_text(json.dumps(plan))
    assert_refused(call(f"net.onnx --plan plan.json {REPLAY}"), "--plan plan.json: group 'stem conv' must keep 1 to 16")


def test_a_dry_run_writes_no_model(call: Cli, folder: Path) -> None:
    os.mkdir("out")
    result = call("net.onnx --channels 0.3 --recover bias --dry-run -o out --save-plan plan.json --json report.json")
    assert (result.code, result.err) == (0, "")
    assert "not verified" in result.out
    assert "written" not in result.out
    assert sorted(contents(folder)) == ["net.onnx", "out", "plan.json", "report.json"]
    assert call(f"net.onnx {CUT} --save-plan wet.json").code == 0
    assert Path("plan.json").read_bytes() == Path("wet.json").read_bytes()
    dry = json.loads(Path("report.json").read_text())
    assert dry["output"] == ""
    assert dry["after"]["bytes"] is None
    assert dry["after"]["parameters"] < dry["before"]["parameters"]


@pytest.mark.parametrize("words", ["net.onnx --channels 0.3 --no-latency --recover bias", "inspect net.onnx", "ops"])
def test_json(words: str, call: Cli, folder: Path) -> None:
    """On standard output it parses, and the tables go to standard error; in a file it is the same."""
    tables = call(words).out
    piped = call(f"{words} --json -")
    assert piped.code == 0
    assert piped.err.splitlines()[0].split() == tables.splitlines()[0].split()
    assert call(f"{words} --json - -q").err == ""
    filed = call(f"{words} --json report.json -q")
    assert filed == Outcome(0, "", "")
    assert without_times(json.loads(Path("report.json").read_text())) == without_times(piped.report)


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in report.items() if k != "seconds"}


def test_the_model_on_standard_output(call: Cli, folder: Path) -> None:
    assert call(f"net.onnx {CUT}").code == 0
    result = shell("net.onnx --channels 0.3 --no-latency --recover bias -o -", text=False)
    assert result.returncode == 0
    assert result.stdout == Path("net.pruned.onnx").read_bytes()
    assert b"written: standard output" in result.stderr


@pytest.mark.parametrize(
    "words", ["--importance list", "net.onnx --recover=LIST", "evaluate --metric list", "--format list"]
)
def test_lists_of_choices(words: str, call: Cli, folder: Path) -> None:
    result = call(words)
    assert (result.code, result.err) == (0, "")
    assert "what it is" in result.out
    flag = next(w for w in words.replace("=", " ").split() if w.startswith("--"))
    for name, what in DECLARED[flag.removeprefix("--")].choices.items():
        assert any(line.startswith(name) and what in line for line in result.out.splitlines())


@pytest.mark.parametrize(
    ("words", "expected"),
    [("ins", {"inspect"}), ("net.onnx --sparsity-a", {"--sparsity-allocate"}), ("--head-", {"--head-dim"}),
     ("net.onnx --recover b", {"batchnorm", "bias"}), ("inspect --js", {"--json"}), ("help den", {"densify"})],
)  # fmt: skip
def test_completion(words: str, expected: set[str], call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ONNXPRUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"onnxprune {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    assert set(call([]).out.split()) == expected


def test_plots_are_checked_before_the_work(call: Cli, folder: Path) -> None:
    start = "sensitivity net.onnx --calibration missing"
    assert_refused(call(f"{start} --plot a.png"), "--plot a.png: expected a name that ends in .svg")
    assert_refused(call(f"{start} --plot missing/a.svg"), "--plot missing/a.svg: there is no folder missing")
    assert_refused(call("sensitivity net.onnx"), "give --calibration SRC")


def test_zeros_of_layers_are_listed(call: Cli, folder: Path) -> None:
    assert "3 layers have no zeros" in call("inspect net.onnx").out
    assert call(f"net.onnx --pattern 2:4 --format dense {REPLAY} -o zeros.onnx").code == 0
    assert "2:4" in call("inspect zeros.onnx").out


def test_units_mean_the_same_everywhere(call: Cli, folder: Path) -> None:
    for words in ("--channels 30%", "--channels .3", "--channels 0.3 --importance PATH --memory 500MB"):
        assert call(f"net.onnx {QUICK} {words} -o out.onnx") == Outcome(0, "", "")
        assert widths("out.onnx") == [12, 16, 2]


def test_what_the_report_says(call: Cli, folder: Path) -> None:
    report = call(f"net.onnx {CUT} --json -").report
    assert report["model"] == "net.onnx"
    assert report["output"] == "net.pruned.onnx"
    assert report["before"]["parameters"] == 16 * 27 + 16 + 24 * 16 + 2 * 24
    assert report["after"]["parameters"] in range(12 * 27 + 12 + 16 * 12 + 2 * 16, 560 + 16 + 2 + 1)  # new biases
    assert report["after"]["bytes"] == Path("net.pruned.onnx").stat().st_size
    assert report["groups"][0] == {
        "name": "stem conv", "kind": "channels", "size": 16, "kept": 12, "nodes": ["stem conv"]
    }  # fmt: skip
    assert report["pinned"][0]["reason"] == "axis of the graph output y"
    assert report["verification"]["error"] <= report["verification"]["tolerance"]
    unverified = call(f"net.onnx {CUT} --no-verify --json -").report
    assert unverified["verification"] is None
    timed = call("net.onnx --channels 0.3 --recover bias -q --threads 1 --json -").report
    assert timed["after"]["threads"] == 1
    assert timed["after"]["latency_seconds"] > 0


def test_verbose_names_everything(call: Cli, folder: Path) -> None:
    result = call("net.onnx --channels 0.3 --no-latency --recover bias -v")
    assert result.code == 0
    for text in ("groups", "stem conv", BRACKETS, "pinned", "head", "axis of the graph output y", "time: load"):
        assert text in result.out


def test_names_are_not_cut_in_two_when_piped(call: Cli, folder: Path) -> None:
    proto = odd_names()
    name = "a/very/long/scope" * 20
    proto.graph.node[0].name = name
    onnx.save(proto, "net.onnx")
    for words in ("inspect net.onnx", "net.onnx --channels 0.3 --no-latency --recover bias -v", "net.onnx --json -"):
        result = call(words)
        assert name in result.out
        assert name in (result.out + result.err).replace(result.out, "", "--json" in words)


# Out of this process


def shell(words: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    return subprocess.run(
        [sys.executable, "-m", "onnxprune", *shlex.split(words)], check=False, timeout=120,
        **({"capture_output": True, "text": True} | options),
    )  # fmt: skip


def test_piped_output_is_plain(folder: Path) -> None:
    result = shell("net.onnx --channels 0.3 --recover bias")
    assert result.returncode == 0
    assert all(line.startswith("onnxprune: ") for line in result.stderr.splitlines())  # of a slow machine
    assert "\x1b" not in result.stdout
    assert "\r" not in result.stdout
    assert "written: net.pruned.onnx" in result.stdout


def test_what_native_code_prints_stays_out_of_the_json(
    call: Cli, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """onnx's checker prints a warning about experimental operators on standard output."""
    nodes = "s = ImageScaler<scale = 0.5, bias = [0.1, 0.2, 0.3]>(x) h = Conv(s, w) r = Relu(h) y = Conv(r, v)"
    onnx.save(build(nodes, opset=8, w=normal(8, 3, 3, 3), v=normal(2, 8, 1, 1)), "old.onnx")
    onnx.checker.check_model("old.onnx")
    assert "experimental" in capfd.readouterr().out
    result = call("old.onnx --channels 0.3 --no-latency -q --json -")
    assert (result.code, result.err) == (0, "")
    assert result.report["after"]["parameters"] > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_standard_output_that_is_full(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        result = shell(f"net.onnx {CUT} --json -", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert_refused(
        Outcome(result.returncode, "", result.stderr), "--json -: cannot be written (No space left on device)"
    )


def test_a_name_that_is_no_text(folder: Path) -> None:
    name = os.fsdecode(b"\xff\xe9.onnx")
    os.rename("net.onnx", name)
    result = subprocess.run(
        [sys.executable, "-m", "onnxprune", name, *"-c 0.3 --no-latency --recover bias --json report.json".split()],
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0
    assert b"written: " in result.stdout
    assert Path(os.fsdecode(b"\xff\xe9.pruned.onnx")).is_file()
    assert json.loads(Path("report.json").read_text())["model"] == name


def test_progress_is_a_bar_on_a_terminal(folder: Path) -> None:
    pty = pytest.importorskip("pty")
    main, terminal = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                shown.append(os.read(main, 1 << 16))
            except OSError:  # the other side is closed
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    result = shell(
        f"net.onnx --channels 0.3 {QUICK[3:]}", capture_output=False, stdout=subprocess.PIPE, stderr=terminal
    )
    os.close(terminal)
    reader.join(5)
    assert result.returncode == 0
    assert b"\x1b" in b"".join(shown)
    assert "\x1b" not in result.stdout


def test_progress_is_a_line_per_long_stage_when_piped(call: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, progress: Any, **__: Any) -> None:
        progress("load")
        progress("score", note="some 3 minutes")
        time.sleep(0.3)
        progress("score", 1, 2)
        progress("plan")
        raise OptionError("enough")

    monkeypatch.setattr(screen, "SLOW", 0.1)
    monkeypatch.setattr(cli, "recipe", slow)
    told = "onnxprune: some 3 minutes\nonnxprune: scoring units on the data\n"
    assert call("net.onnx --channels 0.3").err == told + "onnxprune: enough\n"
    assert call("net.onnx --channels 0.3 -q").err == "onnxprune: enough\n"


def test_errors_from_python_name_the_keyword() -> None:
    with pytest.raises(OptionError, match=r"^channels=3: expected a fraction in \[0, 1\)"):
        onnxprune.prune(odd_names(), channels=3)


def test_float16_and_unusual_types_through_the_command_line(call: Cli, folder: Path) -> None:
    proto = odd_names("float16[n,3,8,8]")
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    onnx.save(proto, "half.onnx")
    assert call(f"half.onnx {CUT}") == Outcome(0, "", "")
    assert {t.data_type for t in onnx.load("half.pruned.onnx").graph.initializer} == {TensorProto.FLOAT16}
