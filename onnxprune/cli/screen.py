"""What the command line shows and writes: progress, tables, JSON; and what it refuses to overwrite."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress
import rich.table
from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from onnxprune.cli.process import interruption
from onnxprune.errors import OptionError, blamed
from onnxprune.graph.io import Model
from onnxprune.graph.staging import staged
from onnxprune.page.content import Table
from onnxprune.progress import Progress, silent
from onnxprune.report import print_on

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
    "regularize": "training under a penalty, before the cut",
    "tune": "training what is left towards the original's outputs",
    "compare": "comparing outputs with the original's",
    "evaluate": "evaluating",
    "sparsify": "making weights sparse",
    "survey": "measuring what each layer's weights are worth",
    "permute": "reordering channels so that less is lost",
    "solve": "solving for the weights that stay",
    "cluster": "clustering weights",
    "measure": "measuring latency, both models in turn",
    "latency": "measuring variants, in turns with the whole model",
    "align": "matching hidden units",
    "line": "scoring the points of the line",
    "save": "writing",
}


def check_outputs(model: Path, plan: Path | None, outputs: Mapping[str, Path | None], *, force: bool = False) -> None:
    """Refuse, before the work, what cannot be written, or what would replace a file that is read or written too."""
    written = {option: path for option, path in outputs.items() if path is not None}
    taken = [("the input", model), *([("the plan that is replayed", plan)] if plan else [])]
    for option, path in written.items():
        if not model.is_file():  # reading says what is wrong with the model
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
    interruption.will_write(*written.values())


def spare_data(model: Model, outputs: Mapping[str, Path | None]) -> None:
    """Refuse to replace a file that holds weights of the input."""
    for data_file in {Path(str(w.filename)) for w in model.weights.values() if isinstance(w, np.memmap) and w.filename}:
        for option, path in outputs.items():
            if path is not None and same_file(path, data_file):
                raise OptionError(f"{option} {path} holds weights of the input; name another file")


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to one file, which need not be there."""
    try:
        return a.samefile(b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def write_out(data: bytes) -> None:
    """Write a model to standard output. Raises `OptionError` where the system refuses."""
    with printing():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def show_on(carried: str | None, renderable: RenderableType) -> None:
    """Tables go to standard output, or to standard error where that carries (`-`) JSON or the model."""
    console = Console(stderr=carried == "-", highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a name that is cut in two cannot be searched for
    with printing():
        print_on(console, renderable)


def table_on_screen(table: Table, *, caption: bool = False) -> rich.table.Table:
    """A table of a page for a terminal; caption: below it."""
    out = rich.table.Table(box=None, pad_edge=False, caption=table.caption if caption else None)
    for column in table.columns:
        out.add_column(Text(column.name), justify="right" if column.numeric else "left", overflow="fold")
    for row in table.rows:
        out.add_row(*(Text(cell.text) for cell in row))
    return out


@contextmanager
def progress_bar(quiet: bool, *, still: bool = False) -> Iterator[Progress]:
    """A bar with an estimate where steps are counted, notes above it; into a pipe, a line for what takes long.

    still: it is drawn once per step: what moves takes core and interpreter lock from what is timed."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield silent
        return
    if not console.is_terminal:
        with line_progress() as tell:
            yield tell
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with rich.progress.Progress(*columns, console=console, transient=True, auto_refresh=not still) as bar:
        task = bar.add_task("", total=None)

        def show(stage: str, done: int = 0, total: int = 0, *, note: str = "") -> None:
            what = STAGES.get(stage, stage)
            bar.update(task, description=what, completed=done, total=total or None, refresh=still)
            if note:
                bar.console.print(Text(note))

        yield show


SLOW = 2.0  # seconds from which on a stage is worth a line in a log


class _Lines:
    """A line on standard error for every stage that takes `SLOW` seconds, once, with the notes that came before."""

    def __init__(self) -> None:
        self.stage = ""
        self.began: dict[str, float] = {}
        self.told: set[str] = set()
        self.notes: list[str] = []
        self.timer: threading.Timer | None = None
        self.lock = threading.Lock()

    def __call__(self, stage: str, done: int = 0, total: int = 0, *, note: str = "") -> None:
        if note:
            self.notes.append(note)
        began = self.began.setdefault(stage, time.monotonic())
        if stage != self.stage:
            self.stop()
            self.stage = stage
            self.timer = threading.Timer(SLOW, self.tell, (stage,))
            self.timer.daemon = True
            self.timer.start()
        if time.monotonic() - began >= SLOW:
            self.tell(stage)

    def tell(self, stage: str) -> None:
        with self.lock:
            begins = stage not in self.told
            if stage and (begins or self.notes) and sys.stderr is not None:
                self.told.add(stage)
                words = [*self.notes, *([STAGES.get(stage, stage)] if begins else [])]
                self.notes.clear()
                with suppress(OSError, ValueError):  # nobody reads them
                    sys.stderr.write("".join(f"onnxprune: {w}\n" for w in words))
                    sys.stderr.flush()

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


@contextmanager
def line_progress() -> Iterator[_Lines]:
    """Progress for logs and pipes."""
    tell = _Lines()
    try:
        yield tell
    finally:
        tell.stop()


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
    """Whatever goes to standard output from now on goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def emit_json(data: Any, json_file: str | None) -> None:
    """Write a report as JSON, to a file or to standard output."""
    text = json.dumps(data, indent=1) + "\n"
    if json_file == "-":
        with printing("--json -"):
            print(text, end="", flush=True)
    elif json_file is not None:
        with staged_file("--json", Path(json_file), text):
            pass


@contextmanager
def staged_file(option: str, path: Path | None, content: str | bytes) -> Iterator[None]:
    """A file that appears, whole, once the body has succeeded. A device or a pipe is written to after the body.

    option: that named it, for errors; path: None where no file is wanted. Raises OptionError where the system refuses.
    """
    if path is None:
        yield
        return
    data = content.encode() if isinstance(content, str) else content
    special = os.path.exists(path) and not os.path.isfile(path)
    with ExitStack() as stack:
        with blamed(f"{option} {path}"):
            put = partial(path.write_bytes, data) if special else stack.enter_context(staged(_real(path), data))
        yield
        with blamed(f"{option} {path}"):
            put()


def _real(path: Path) -> Path:
    """Where a link leads, so that it stays one."""
    return Path(os.path.realpath(path))


@contextmanager
def printing(what: str = "standard output") -> Iterator[None]:
    """Where standard output is written to inside, what the system refuses is an error of `what`."""
    with blamed(what):
        try:
            yield
        except (OSError, ValueError):
            silence()  # what is left in its buffer must not fail again at exit
            raise
