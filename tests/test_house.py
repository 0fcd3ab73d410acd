"""The house: what stands where, and that imports go one way."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import onnxprune
from conftest import ROOT
from onnxprune import __version__

PACKAGE = ROOT / "onnxprune"
# a room or a module by itself imports only what stands before it
ORDER = (
    "errors", "progress", "options", "graph", "cache", "kernels", "solvers", "runtime", "gradient", "structure",
    "layers", "calibration", "evaluation", "importance", "formats", "sparsity", "latency", "allocation", "recovery",
    "training", "experiments", "plan", "page", "report", "pipeline", "cli", "__main__",
)  # fmt: skip
LOOSE = 7  # modules beside the rooms, at most


def modules() -> dict[str, Path]:
    """Dotted name without the package's -> file; a room is its `__init__`."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


FILES = modules()


def imports(name: str) -> Iterator[tuple[str, int]]:
    """Every module of ours that a module imports, wherever in it, with the line; `__init__` of the whole is left out:
    it is the version and what loads the rest late."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "onnxprune":
            assert node.level == 0
            base = (node.module or "").removeprefix("onnxprune").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                target = full if full in FILES else base
                if target:
                    yield target, node.lineno
        elif isinstance(node, ast.Import):
            yield from ((a.name.removeprefix("onnxprune."), node.lineno) for a in node.names if "onnxprune." in a.name)


INSIDE = [name for name in FILES if name]


def test_every_place_is_in_the_order() -> None:
    assert {name.partition(".")[0] for name in INSIDE} == set(ORDER)


@pytest.mark.parametrize("name", INSIDE)
def test_imports_go_one_way(name: str) -> None:
    own = ORDER.index(name.partition(".")[0])
    upward = [f"line {line}: {t}" for t, line in imports(name) if ORDER.index(t.partition(".")[0]) > own]
    assert not upward


def test_no_circles() -> None:
    graph = {name: {t for t, _ in imports(name)} - {name} for name in INSIDE}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        raise AssertionError(" -> ".join(e.args[1])) from None


def test_few_loose_modules() -> None:
    loose = [name for name, path in FILES.items() if name and "." not in name and path.name != "__init__.py"]
    assert len(loose) <= LOOSE, loose


@pytest.mark.parametrize("name", INSIDE)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8")))


def without_docstring(body: list[ast.stmt], owner: str = "") -> Iterator[str]:
    """Public functions, classes and methods of a module that have no docstring, but for functions inside functions."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from without_docstring([*node.body, *node.orelse], owner)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"line {node.lineno}: {owner}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from without_docstring(node.body, f"{owner}{node.name}.")


@pytest.mark.parametrize("name", FILES)
def test_everything_public_says_what_it_is(name: str) -> None:
    assert list(without_docstring(ast.parse(FILES[name].read_text(encoding="utf-8")).body)) == []


def test_the_version_stands_in_one_place() -> None:
    """`onnxprune.__version__`; packaging reads it from there, the changelog names every one."""
    documents = [p for p in ROOT.glob("*.*") if p.suffix in (".toml", ".py", ".md") and p.name != "CHANGELOG.md"]
    documents += [*ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md"), *(p for name, p in FILES.items() if name)]
    stated = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?![\d.])")
    assert [p.name for p in documents if stated.search(p.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("name", [name for name, path in FILES.items() if ">>> " in path.read_text(encoding="utf-8")])
def test_examples_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `>>>` of a docstring prints what stands below it."""
    monkeypatch.chdir(ROOT)
    ran = doctest.testmod(importlib.import_module(f"onnxprune.{name}".rstrip(".")), optionflags=doctest.ELLIPSIS)
    assert ran.attempted and not ran.failed


@pytest.mark.parametrize("name", onnxprune.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(onnxprune, name) is not None


@pytest.mark.parametrize("name", onnxprune.formats.__all__)
def test_public_names_of_formats_are_there(name: str) -> None:
    assert getattr(onnxprune.formats, name) is not None
