"""What the command line shows and writes: progress, tables, JSON; and what it refuses to overwrite."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from onnxprune.errors import OptionError
from onnxprune.graph.io import Model
from onnxprune.progress import Progress as Report
from onnxprune.progress import silent
from onnxprune.report import show

STAGES = {
    "load": "reading the model",
    "analyze": "finding what can be removed together",
    "plan": "choosing what goes",
    "cut": "cutting",
    "verify": "checking that pruned equals masked",
    "calibration": "reading the calibration data",
    "levels": "measuring what each group costs at each level",
    "score": "scoring units on the data",
    "search": "looking for the smallest model that is good enough",
    "recover": "making up for what went",
    "compare": "comparing outputs with the original's",
    "evaluate": "evaluating",
    "sparsify": "making weights sparse",
    "measure": "measuring latency, both models in turn",
    "save": "writing",
}


def check_outputs(model: Path, plan: Path | None, outputs: Mapping[str, Path | None], *, force: bool = False) -> None:
    """Refuse, before the work, what cannot be written, or what would replace a file that is read or written too."""
    taken = [("the input", model), *([("the plan that is replayed", plan)] if plan else [])]
    for option, path in outputs.items():
        if path is None or not model.is_file():  # reading says what is wrong with the model
            continue
        if os.path.isdir(path):
            raise OptionError(f"{option} {path} is a directory; name a file")
        if not os.path.isdir(path.parent):
            raise OptionError(f"{option} {path}: there is no folder {path.parent}; create it, or name another")
        special = os.path.exists(path) and not os.path.isfile(path)
        if not os.access(path if special else path.parent, os.W_OK):
            raise OptionError(f"{option} {path}: cannot be written; check the permissions, or name another place")
        for what, other in taken:
            if special or not same_file(path, other) or (option == "-o" and other is model and force):
                continue
            if not (option == "--save-plan" and other is plan):  # it would hold the same
                forced = ", or --force to replace it" if option == "-o" and other is model else ""
                raise OptionError(f"{option} {path} is {what}; name another file{forced}")
        taken.append((f"the file of {option}", path))


def spare_data(model: Model, outputs: Mapping[str, Path | None]) -> None:
    """Refuse to replace a file that holds weights of the input."""
    for held in {Path(str(w.filename)) for w in model.weights.values() if isinstance(w, np.memmap) and w.filename}:
        for option, path in outputs.items():
            if path is not None and same_file(path, held):
                raise OptionError(f"{option} {path} holds weights of the input; name another file")


def same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def show_on(json_file: str | None, renderable: RenderableType) -> None:
    """Tables go to standard output, or to standard error where that carries JSON."""
    console = Console(stderr=json_file == "-", highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a name that is cut in two cannot be searched for
    with blamed("standard output"):
        show(console, renderable)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Report]:
    """A bar with an estimate where steps are counted; notes go above it, also into a pipe's standard error."""
    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        yield silent
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(stage: str, done: int = 0, total: int = 0, *, note: str = "") -> None:
            bar.update(task, description=STAGES.get(stage, stage), completed=done, total=total or None)
            if note:
                bar.console.print(Text(note))

        yield show


@contextmanager
def hushed() -> Iterator[None]:
    """Close standard output to native code: onnx's checker prints there, into the JSON."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        saved = os.dup(1)
    except OSError:  # it is closed anyway
        yield
        return
    silence()
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def silence() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def emit(data: Any, json_file: str | None) -> None:
    text = json.dumps(data, indent=1) + "\n"
    if json_file == "-":
        with blamed("--json -"):
            print(text, end="", flush=True)
    elif json_file is not None:
        with staged_file("--json", Path(json_file), text):
            pass


@contextmanager
def staged_file(option: str, path: Path | None, text: str) -> Iterator[None]:
    """A file that appears, whole, once the body has succeeded."""
    if path is None:
        yield
        return
    real = Path(os.path.realpath(path))
    staged = real.with_name(f".{secrets.token_hex(8)}.tmp")
    special = os.path.exists(path) and not os.path.isfile(path)  # a device, a pipe
    try:
        if not special:
            with blamed(f"{option} {path}"):
                staged.write_text(text, encoding="utf-8")
        yield
        with blamed(f"{option} {path}"):
            if special:
                path.write_text(text, encoding="utf-8")
            else:
                os.replace(staged, real)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """What the system refuses is an error of `what`."""
    try:
        yield
    except (OSError, ValueError) as e:
        if what in ("standard output", "--json -"):  # what is left in its buffer must not fail again at exit
            silence()
        raise OptionError(f"{what}: cannot be written ({getattr(e, 'strerror', None) or e})") from e
