"""Options are declared once: what every declaration says, and what is made of it."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from conftest import ROOT
from onnxprune.cli import app as cli
from onnxprune.cli import bench as bench_cli
from onnxprune.cli import evaluate, sensitivity, train
from onnxprune.cli import help as screens
from onnxprune.cli.command import DECLARED
from onnxprune.options import PANELS, Option, in_python
from onnxprune.pipeline.options import CONDITIONS, OPTIONS

EVERY = (*DECLARED.values(), *bench_cli.OPTIONS, *evaluate.EVALUATE, *sensitivity.SENSITIVITY, *train.TRAIN)
ONES = {f"{o.name} {o.panel}": o for o in EVERY}


@pytest.mark.parametrize("name", ONES)
def test_declarations(name: str) -> None:
    o = ONES[name]
    assert o.panel in (*PANELS, bench_cli.PANEL)
    assert o.help.endswith(".") and "  " not in o.help
    assert o.switch or o.metavar
    assert o.flag.startswith("--")
    assert all(need in CONDITIONS for need in o.needs)
    assert o.read(None) == o.default
    if o.default not in (None, ()):
        assert o.read(o.default) == o.default
        words = o.default if o.switch else str(o.default)
        assert o.name == "memory" or o.read(words) == o.default
    for choice in (c.replace(":P", ":3") for c in o.choices):  # lp:P stands for every exponent
        assert o.read(choice.upper()) == o.read(choice) == ((choice,) if o.many else choice)
    if o.choices:
        with pytest.raises(ValueError, match=rf"^{o.flag} magic: unknown; choose one of {next(iter(o.choices))}"):
            o.read("magic")


def test_names_and_flags_are_unique() -> None:
    for names in ([o.name for o in OPTIONS], [w for o in OPTIONS for w in (o.flag, o.off, o.short) if w]):
        assert len(names) == len(set(names))


def test_memory_is_in_gigabytes_on_the_command_line() -> None:
    memory = DECLARED["memory"]
    assert memory.read("2") == memory.read("2GB") == memory.read("2000MB") == memory.read(2e9)
    assert memory.read(memory.otherwise) == memory.default


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("--channels 30: expected a fraction", "channels=30: expected a fraction"),
        ("--pattern 2:4: no", "pattern='2:4': no"),
        ("--layers auto needs a target: --target-macs, --target-params",
         "layers='auto' needs a target: target_macs, target_params"),
        ("--no-verify, or --whole-layers", "verify=False, or whole_layers=True"),
        ("give --calibration SRC", "give calibration=SRC"),
        ("needs --evaluate SRC, samples and no function", "needs evaluate=SRC, samples and no function"),
        ("--evaluate and --calibration take", "evaluate and calibration take"),
        ("or --calibration synthetic", "or calibration='synthetic'"),
        ("--calibration synthetic: no", "calibration='synthetic': no"),
        ("--evaluate judge:size has", "evaluate='judge:size' has"),
        ("--pattern column, or --pattern and --layout NCHW", "pattern='column', or pattern and layout='NCHW'"),
        ("give --cluster K or --cluster 16.", "give cluster=K or cluster=16."),
        ("give --input-shape NAME:1,3,224,224", "give input_shape={'NAME': (1, 3, 224, 224)}"),
        ("--input-shape x:0,3: expected", "input_shape='x:0,3': expected"),
        ("--ratio a*=0.5: no, or `--ratio b=0.5`", "ratio={'a*': 0.5}: no, or `ratio={'b': 0.5}`"),
        ("--ignore head*, please", "ignore='head*', please"),
        ("--mean 0.5,0.25 or --mean 0.5", "mean=(0.5, 0.25) or mean=0.5"),
        ("a --flag of others", "a --flag of others"),
    ],
)  # fmt: skip
def test_messages_in_python(message: str, expected: str) -> None:
    assert in_python(message, OPTIONS) == expected


def test_values_of_python_in_messages() -> None:
    for value in ({"x": (0, 3), "y": [2]}, (("x", (0, 3)), ("y", (2,)))):
        assert DECLARED["input_shape"].as_typed(value) == "--input-shape x:0,3 y:2"
    assert DECLARED["ratio"].as_typed((("a*", 0.5), ("b", 0.25))) == "--ratio a*=0.5 b=0.25"
    assert DECLARED["scores"].as_typed({"group": [0.5, 0.25]}) == "--scores arrays"
    assert DECLARED["mean"].as_typed((0.5, 0.25)) == "--mean 0.5,0.25"


def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "tools" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_up_to_date() -> None:
    assert generate().stale() == []


# Screens of help


def screen(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(words.split()) == 0
    return capsys.readouterr().out.splitlines()


def test_help_is_one_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = screen("--help", monkeypatch, capsys)
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80
    commands = lines.index("Subcommands (any other first word is the MODEL to prune)")
    assert commands < lines.index("What to remove") < lines.index("Files and output")
    text = "\n".join(lines)
    for o in OPTIONS:
        assert (f"  {screens.flags_of(o, metavar=True)}" in text) == o.main
    for words in ("--help-all", "help SUBCOMMAND", "Exit codes: 0 ", "130 interrupted"):
        assert words in text


@pytest.mark.parametrize("words", ["--help-all", *(f"help {name}" for name in ("bench", "evaluate", "sensitivity"))])
def test_names_are_whole(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, tuple[Option, ...]] = {
        "--help-all": tuple(DECLARED.values()), "help bench": bench_cli.OPTIONS, "help evaluate": evaluate.EVALUATE,
        "help sensitivity": sensitivity.SENSITIVITY,
    }  # fmt: skip
    lines = screen(words, monkeypatch, capsys)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for o in options[words]:
        assert any(line.startswith(f"  {screens.flags_of(o, metavar=True)}") for line in lines)
        assert o.help in text
    assert "Exit codes: 0 " in text
    if words == "--help-all":
        assert lines.index("What to remove") > next(i for i, line in enumerate(lines) if line.startswith("Subcommands"))
        assert all(f"  {name}" in "\n".join(lines) for name in screens.SUBCOMMANDS)


def test_every_subcommand_is_on_the_screens() -> None:
    assert {name.split()[0] for name in screens.SUBCOMMANDS} == set(cli.group().commands)
