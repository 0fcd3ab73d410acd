"""The documents against reality: every key of a plan and a report, the README's commands, links between pages."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shlex
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from conftest import ROOT
from models.nets import build, normal
from onnxprune.cli import app
from onnxprune.cli.latency_table import LATENCY_TABLE
from onnxprune.pipeline.agree import AGREE
from onnxprune.pipeline.connect import CONNECT
from onnxprune.pipeline.lottery import LOTTERY
from onnxprune.pipeline.options import OPTIONS
from onnxprune.pipeline.proxies import PROXY_OPTIONS
from onnxprune.pipeline.supermask import SUPERMASK
from onnxprune.pipeline.train import TRAIN
from test_house import ORDER

Path_ = tuple[str, ...]  # of a key: names, "[]" for the elements of an array, "*" for any name
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md")])


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def keys(data: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every key in JSON."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*path, key)
            yield from keys(value, (*path, key))
    elif isinstance(data, list):
        for value in data:
            yield from keys(value, (*path, "[]"))


def described(page: str, heading: str) -> dict[Path_, bool]:
    """Path -> whether it is optional, of every key in the tables below a heading."""
    part = text(page).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    out = {}
    for row in re.findall(r"^\| (`.*)$", part, re.MULTILINE):
        cells = row.split(" | ")
        for key in re.findall(r"`([^`]+)`", cells[0]):
            out[tuple(key.replace("[]", ".[]").split("."))] = "optional" in cells[1]
    return out


def names(pattern: Path_, path: Path_) -> bool:
    return len(pattern) == len(path) and all(p in (k, "*") for p, k in zip(pattern, path, strict=True))


def compare(page: str, heading: str, real: list[Any]) -> None:
    """Every key is named in the page, and every key that is named occurs, or is marked as optional."""
    known, found = described(page, heading), {path for data in real for path in keys(data)}
    assert sorted(".".join(p) for p in found if not any(names(k, p) for k in known)) == []
    absent = (k for k, optional in known.items() if not optional and not any(names(k, p) for p in found))
    assert sorted(map(".".join, absent)) == []


# ---------------------------------------------------------------------------------------------------------------------
# Plans and reports
# ---------------------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
LABELS = np.arange(40) % 8
NET = "h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Relu(k) u = MatMul(s, c) y = Identity(u)"


def net() -> Any:
    return build(NET, "float[n,16]", "float[n,8]", a=normal(16, 32), b=normal(32, 32), c=normal(32, 8))


RUNS: dict[str, dict[str, Any]] = {
    "cut": {"channels": 0.3, "recover": "bias", "energy": True},
    "cut and zeros": {"channels": 0.25, "pattern": "2:4", "format": "dense", "calibration": {"x": X}},
    "evaluated": {
        "target_macs": "80%",
        "target_memory": "95%",
        "allocate": "error",
        "calibration": {"x": X},
        "evaluate": {"x": X},
    },
    "tiles": {"sparsity": 0.5, "pattern": "block:4x4", "format": "bsr"},
    "clustered": {"cluster": 16},
    "tuned": {"channels": 0.3, "calibration": {"x": X}, "tune": "2steps"},
    "regularized": {"channels": 0.3, "calibration": {"x": X}, "tune": "4steps", "regularize": "group"},
    "growing": {"sparsity": 0.8, "steps": 2, "calibration": {"x": X}, "format": "dense"},
}


@pytest.fixture(scope="module")
def results() -> list[onnxprune.Result]:
    sources: list[Any] = [net() for _ in RUNS]
    sources[3] = build(
        "h = Conv <group = 16, pads = [1, 1, 1, 1]> (x, w) k = Conv(h, a) y = Conv(k, b)",
        "float[n,16,8,8]", "float[n,8,h,w]", w=normal(16, 1, 3, 3), a=normal(16, 16, 1, 1), b=normal(8, 16, 1, 1),
    )  # fmt: skip
    return [
        onnxprune.prune(source, measure=name == "cut", **options)
        for source, (name, options) in zip(sources, RUNS.items(), strict=True)
    ]


def test_plan(results: list[onnxprune.Result]) -> None:
    compare("docs/plan.md", "Keys", [json.loads(r.plan.to_json()) for r in results])


def test_report(results: list[onnxprune.Result]) -> None:
    compare("docs/report.md", "`onnxprune MODEL`", [json.loads(json.dumps(r.report.to_dict())) for r in results])


def test_every_report_has_a_page(results: list[onnxprune.Result]) -> None:
    """Whatever was asked for: notes, and as many layers as the data has."""
    for r in results:
        page, said = r._repr_html_(), r.report.to_dict()
        assert all(escape(note) in page for note in said["notes"])
        assert all(page.count(f">{escape(x['node'])}<") >= 1 for x in said["layers"])


def test_example_of_a_plan_is_one() -> None:
    """Its keys are those of the page, and a plan of its layout is read."""
    example = json.loads(re.findall(r"```json\n(.*?)```", text("docs/plan.md"), re.DOTALL)[0])
    known = described("docs/plan.md", "Keys")
    assert [p for p in keys(example) if not any(names(k, p) for k in known)] == []
    analysis = onnxprune.analyze(net())
    assert onnxprune.Plan.from_json(json.dumps(example | {"groups": {}, "model": ""}), analysis).recover == "bias"


FROM_SCRATCH = ["MLP", "--train", "DIGITS", "--evaluate", "DIGITS", "--init", "0", "--tune", "2steps", "-o", "OUTPUT"]
SUBCOMMANDS: dict[str, list[list[str]]] = {
    "inspect": [["MODEL"]],
    "evaluate": [["MODEL", "DATA", "--against", "MODEL", "--metric", "agreement"]],
    "sensitivity": [["MODEL", "--calibration", "DATA"]],
    "bench": [["MODEL", "MODEL", "--seconds", "0.1", "--threads", "1", "--profile", "--no-memory"]],
    "proxies": [["MLP", "--calibration", "DIGITS", "--samples", "4"]],
    "agree": [["MODEL", "--calibration", "DATA", "--importance", "fisher"]],
    "train": [
        FROM_SCRATCH,
        [*FROM_SCRATCH, "--at-init", "magnitude", "--sparsity", "0.5"],
        [*FROM_SCRATCH, "--learn-masks", "movement", "--sparsity", "0.5"],
    ],
    "explore": [["MODEL", "--calibration", "DATA", "--budget", "macs", "--left", "0.8,0.6", "-o", "OUTPUT"]],
    "lottery": [[*FROM_SCRATCH, "--rounds", "1", "--controls", "random"]],
    "supermask": [["MLP", "--init", "0", "--evaluate", "DIGITS", "--criterion", "movement,random"]],
}


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_report_of_subcommands(command: str, tmp_path: Path) -> None:
    model, data, out = tmp_path / "net.onnx", tmp_path / "x.npz", tmp_path / "out.json"
    proto = net()
    proto.graph.initializer[1].CopyFrom(half(proto.graph.initializer[1]))
    model.write_bytes(proto.SerializeToString())
    np.savez(data, x=X)
    real = []
    for words in SUBCOMMANDS[command]:
        places = {"MODEL": str(model), "DATA": str(data), "OUTPUT": str(tmp_path / f"output-{command}")}
        places |= {"MLP": str(ROOT / "models/digits_mlp.onnx"), "DIGITS": str(ROOT / "models/digits_mlp.npz")}
        assert app.run([command, *(places.get(w, w) for w in words), "--json", str(out), "-q"]) == 0
        real.append(json.loads(out.read_text()))
    compare("docs/report.md", f"`onnxprune {command}`", real)


def half(tensor: Any) -> Any:
    """The same with its lower half zero, so that there are tiles of zeros."""
    w = onnx.numpy_helper.to_array(tensor).copy()
    w[8:] = 0
    return onnx.numpy_helper.from_array(w, tensor.name)


# ---------------------------------------------------------------------------------------------------------------------
# The README and the other pages
# ---------------------------------------------------------------------------------------------------------------------


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """The words of every command of ours in the `sh` blocks of a page."""
    lines = [line for block in blocks(page, "sh(?: setup)?") for line in block.splitlines()]
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words[1:] for words in parts if words[:1] == ["onnxprune"]]


def test_the_set_up_comes_first_and_is_two_commands() -> None:
    language, first = re.findall(r"^```([^\n]*)\n(.*?)^```", text("README.md"), re.DOTALL | re.MULTILINE)[0]
    run, test = first.splitlines()
    assert language == "sh setup"
    assert " models/" in run and test.endswith("python3 -m pytest")


FLAGS = {f for o in OPTIONS for f in (o.flag, o.off, o.short) if f}
OF_SUBCOMMANDS = {"--against", "--plot", "--json", "--html", "--save-plan", "-o", "--quiet"} | {
    o.flag for o in (*TRAIN, *LOTTERY, *CONNECT, *PROXY_OPTIONS, *AGREE, *SUPERMASK, *LATENCY_TABLE)
}


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/plan.md"])
def test_flags_exist(page: str) -> None:
    assert {w for words in commands(page) for w in words if re.match("--?[a-z]", w)} <= FLAGS | OF_SUBCOMMANDS


def test_commands_of_the_readme_name_files_that_exist() -> None:
    named = [w for words in commands("README.md") for w in words if w.startswith("models/")]
    files = {re.sub(r"\.(pruned|trained)", "", w) for w in named}
    assert len(commands("README.md")) == 22 and [f for f in files if not (ROOT / f).is_file()] == []


def test_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    for block in blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "digits_mlp.pruned.onnx").is_file() and " -> " in capsys.readouterr().out


def test_the_changelog_has_this_version() -> None:
    versions = re.findall(r"^## (.*)$", text("CHANGELOG.md"), re.MULTILINE)
    assert next(v for v in versions if v != "Unreleased") == onnxprune.__version__


def test_rooms_of_the_architecture() -> None:
    """The picture has every room and module in the order of imports."""
    picture = next(b for b in blocks("docs/architecture.md", "") if b.startswith("errors "))
    assert tuple(line.split()[0] for line in picture.splitlines()) == ORDER


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_names_exist(page: str) -> None:
    """Every `room.module.name` and every file of ours that a page names is there."""
    named = re.findall(r"`([\w./]+)`", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL))
    dotted = [
        n for n in named if re.fullmatch(r"\w+(\.\w+)+", n) and n.partition(".")[0] in ORDER and not n.endswith(".py")
    ]
    assert [n for n in dotted if not resolves(n)] == []
    files = [n for n in named if re.match(r"(onnxprune|tests|tools|docs|models|\.ci)/", n)]
    assert [n for n in files if not (ROOT / n).exists()] == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of ours, or a name in one."""
    module, _, attribute = f"onnxprune.{name}".rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return hasattr(found, attribute) or (
        hasattr(found, "__path__") and bool(importlib.util.find_spec(f"onnxprune.{name}"))
    )


def test_table_of_the_models() -> None:
    """A row per model, with its size and its float32 values."""
    rows = re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| ([\d,]+) \| ([\d,]+) \|", text("models/README.md"), re.MULTILINE)
    assert {name for name, _, _ in rows} == {p.stem for p in ROOT.glob("models/*.onnx") if ".pruned" not in p.name}
    for name, parameters, size in rows:
        path = ROOT / "models" / f"{name}.onnx"
        weights = (t.dims for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
        found = sum(math.prod(dims) for dims in weights), path.stat().st_size
        assert found == tuple(int(n.replace(",", "")) for n in (parameters, size))


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            name, _, part = target.partition("#")
            there = page.parent / name if name else page
            assert there.is_file(), target
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE) if part else []
            assert not part or part in map(anchor, headings), target
