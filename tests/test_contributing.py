"""CONTRIBUTING.md to the letter: its blocks are applied to a copy of the package, and its commands run there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

COPIED = ("onnxprune", "tests", "tools/generate.py", "pyproject.toml", "docs/options.md", "models/digits_mlp.onnx",
          "models/digits_mlp.npz", "models/digits_resnet_bn.onnx", "models/digits_vit.onnx",
          "models/digits_heldout.npz")  # fmt: skip
# what numba has compiled goes along; kernels would be compiled anew where they lie, and functions do without them
LEFT = shutil.ignore_patterns("test_contributing.py", "_entry*.so", "_entry*.pyd")


def sections() -> dict[str, list[tuple[str, str]]]:
    """Heading -> language and text of every block below it."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = [part.partition("\n") for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]]
    return {head: re.findall(r"^```(\w+)\n(.*?)^```", body, re.DOTALL | re.MULTILINE) for head, _, body in parts}


SECTIONS = {head: blocks for head, blocks in sections().items() if blocks}


def commands(head: str) -> list[tuple[list[str], str]]:
    """Words of every command of a section, and what it must print."""
    text = "".join(text for language, text in SECTIONS[head] if language == "sh").replace("\\\n", "")
    lines = text.splitlines()
    return [(shlex.split(line, comments=True), line.partition("  # ")[2]) for line in lines]


OURS = {head: [(words, said) for words, said in commands(head) if words[0] == "onnxprune"] for head in SECTIONS}
TESTS = [words[3:] for head in SECTIONS for words, _ in commands(head) if words[:3] == ["python3", "-m", "pytest"]]


def apply(tree: Path, language: str, block: str) -> Path:
    """A block becomes part of a file: a `python` block is one, a `diff` block finds its lines exactly once."""
    first, _, body = block.partition("\n")
    path = tree / first.removeprefix("# ")
    if language == "python":
        assert not path.exists(), f"{path} is there already"
        path.write_text(body, encoding="utf-8")
        return path
    lines = body.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{first} has these lines {text.count(before)} times:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")
    return path


def run(tree: Path, *words: str) -> str:
    """What a command prints that must succeed, in the copy."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "",
    }  # so the next one starts sooner
    done = subprocess.run(
        [sys.executable, *words], check=False, cwd=tree, env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with every example of the page in it."""
    tree = tmp_path_factory.mktemp("contributing")
    for name in COPIED:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=LEFT)
        else:
            shutil.copy(ROOT / name, tree / name)
    blocks = [block for blocks in SECTIONS.values() for block in blocks if block[0] in ("python", "diff")]
    changed = {str(apply(tree, language, block)) for language, block in blocks}
    run(tree, "tools/generate.py")
    run(tree, "-m", "ruff", "check", "-q", *changed)
    run(tree, "-m", "ruff", "format", "--check", "-q", *changed)
    return tree


@pytest.mark.parametrize("head", [head for head, ours in OURS.items() if ours])
def test_commands(tree: Path, head: str) -> None:
    """A section's commands in their order: one may read what the one before wrote."""
    for words, said in OURS[head]:
        assert said and said in run(tree, "-m", *words)


def test_rows_of_tests(tree: Path) -> None:
    """All of them in one process, and each chooses something."""
    chosen = " or ".join(f"({words[words.index('-k') + 1]})" for words in TESTS)
    files = dict.fromkeys(word for words in TESTS for word in words if word.startswith("tests/"))
    said = run(tree, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-v", *files, "-k", chosen)
    for words in TESTS:
        names = re.findall(r"\b\w+", words[words.index("-k") + 1])
        assert any(name in line for line in said.splitlines() if "PASSED" in line for name in names), words
