"""What the tools share: the assets, the rival, work in processes with limits, interleaved timings, tables.

Work that may crash, hang or eat all memory runs as `python common.py MODULE:FUNCTION JSON-ARGUMENTS`, see `call`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

TOOLS = Path(__file__).resolve().parent
REPO = TOOLS.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxprune-tools"
RIVAL = ("onnxsim==0.8.1", "onnxruntime")
SAMPLE = 0.004  # seconds between two readings of a process's memory
WIDTH = 170  # columns of a table that does not go to a terminal

Feeds = Mapping[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# Command line and tables
# ---------------------------------------------------------------------------------------------------------------------


def parser(doc: str | None, *, rival: bool = False) -> argparse.ArgumentParser:
    """The options that all tools have; `doc` is the tool's docstring."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--assets", type=Path, metavar="DIR", help="the shared assets (default: shared/assets or ../shared/assets)"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON as well")
    if rival:
        what = f"a python with {RIVAL[0]} (default: a virtual environment made under {CACHE})"
        p.add_argument("--onnxsim", type=Path, metavar="PYTHON", help=what)
    return p


def assets(option: Path | None) -> Path:
    """The folder with models/, traps/ and data/."""
    for folder in [option] if option else [REPO / "shared" / "assets", REPO.parent / "shared" / "assets"]:
        if (folder / "models").is_dir():
            return folder
    raise SystemExit("no assets found; name their folder with --assets DIR")


def columns(title: str, names: str) -> Table:
    """An empty table: columns by name, separated by spaces, `_` for a space; `-` in front of a name: left-aligned."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in names.split():
        left = name.startswith("-")
        table.add_column(name.lstrip("-").replace("_", " "), justify="left" if left else "right", overflow="fold")
    return table


def emit(args: argparse.Namespace, tables: Sequence[Table | str], rows: object) -> None:
    """Print tables and lines; write `rows` to --json."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    for item in tables:
        if isinstance(item, Table) and item.title:
            console.print(item.title, style="bold", soft_wrap=True)  # as the table's own it would be wrapped
            item.title = None
        console.print(item, soft_wrap=isinstance(item, str))
        console.print()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def percent(part: float | None, whole: float | None) -> str:
    return "-" if part is None or not whole else f"{part / whole:.1%}"


# ---------------------------------------------------------------------------------------------------------------------
# Processes with limits
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A finished process; code: None where it ran out of time, negative for a signal; cpu: processor seconds of it and
    its children; peak: of RssAnon, resident: of all resident memory, in bytes."""

    code: int | None
    out: str
    err: str
    seconds: float
    cpu: float
    peak: int
    resident: int

    @property
    def problem(self) -> str:
        """In one line what went wrong, "" if nothing did."""
        if self.code is None:
            return f"timeout after {self.seconds:.0f} s"
        if self.code == 0:
            return ""
        last = (self.err.strip().splitlines() or ["no message"])[-1]
        how = f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit {self.code}"
        return f"{how}: {last}"


def memory(pid: int | str = "self") -> dict[str, int]:
    """What the kernel says of a process's memory in bytes: `RssAnon` without file mappings, `VmHWM` the peak of all."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: 1024 * int(rest.split()[0]) for name, rest in (x.split(":", 1) for x in lines) if "kB" in rest}
    return {}


def rss_anon(pid: int | str = "self") -> int:
    """Anonymous memory of a process in bytes: file mappings and page cache do not count."""
    return memory(pid).get("RssAnon", 0)


def processor_seconds() -> float:
    """What finished child processes have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: Sequence[str | Path], *, seconds: float, gigabytes: float) -> Run:
    """Run a command with a time limit and an address-space limit.

    RssAnon is sampled from outside, as a thread inside would stand still while C code holds the interpreter lock.
    """
    start, used = time.perf_counter(), processor_seconds()
    process = subprocess.Popen(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    limit = int(gigabytes * 1e9)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
    peak, resident, done = 0, 0, threading.Event()

    def sample() -> None:
        nonlocal peak, resident
        while not done.wait(SAMPLE):
            now = memory(process.pid)
            peak, resident = max(peak, now.get("RssAnon", 0)), max(resident, now.get("VmHWM", 0))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    code: int | None
    try:
        out, err = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        code = None
    finally:
        done.set()
        sampler.join()
    return Run(code, out, err, time.perf_counter() - start, processor_seconds() - used, peak, resident)


@dataclass(frozen=True)
class Answer:
    """What `call` brings back: the function's value, or a problem in one line."""

    value: Any
    problem: str
    run: Run = field(repr=False)


def _answer(done: Run) -> Answer:
    """The JSON on the last line of standard output."""
    if done.problem:
        return Answer(None, done.problem, done)
    return Answer(json.loads(done.out.strip().splitlines()[-1]), "", done)


def call(function: str, *arguments: object, seconds: float = 300, gigabytes: float = 12) -> Answer:
    """Call `module:function` of tools/ in a process of its own; arguments and value are JSON."""
    command: list[str | Path] = [sys.executable, TOOLS / "common.py", function, json.dumps(arguments, default=str)]
    return _answer(run(command, seconds=seconds, gigabytes=gigabytes))


# ---------------------------------------------------------------------------------------------------------------------
# The rival
# ---------------------------------------------------------------------------------------------------------------------


def rival_python(option: Path | None) -> Path:
    """A python that has onnxsim; without an option a virtual environment in the cache folder, made once."""
    if option:
        return option
    python = CACHE / RIVAL[0].replace("==", "-") / "bin" / "python"
    if not python.is_file():
        say(f"installing {' '.join(RIVAL)} into {python.parents[1]}")
        venv.create(python.parents[1], with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *RIVAL], check=True)
    return python


def onnxsim(
    python: Path, source: Path, out: Path, sparsity: float, *, seconds: float = 180, gigabytes: float = 16
) -> Answer:
    """Simplify and prune with onnxsim; the value has `seconds` per stage and `passes`, the functions that it ran."""
    return _answer(
        run([python, TOOLS / "onnxsim_worker.py", source, out, str(sparsity)], seconds=seconds, gigabytes=gigabytes)
    )


def counts(path: str) -> tuple[int, int]:
    """(parameters, MACs) of a file, counted as `onnxprune` counts its own."""
    from onnxprune import analyze
    from onnxprune.graph.cost import cost_model
    from onnxprune.graph.node import walk_all

    analysis = analyze(path)
    c = analysis.coupling
    model = cost_model(walk_all(analysis.model.proto.graph, c.shapes.opsets), c.shapes, c.axes, c.grouped)
    whole = np.ones(c.size, bool)
    return round(model.parameters(whole)), round(model.macs(whole))


# ---------------------------------------------------------------------------------------------------------------------
# onnxruntime
# ---------------------------------------------------------------------------------------------------------------------


def session(model: str | Path | bytes, threads: int = 0) -> ort.InferenceSession:
    """A session whose threads stop spinning after each run, so that sessions timed in turn leave each other alone."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def runs(path: str, threads: int = 0) -> str:
    """Why onnxruntime cannot load the file, in one line; "" if it can."""
    try:
        session(path, threads)
    except Exception as e:  # onnxruntime's exceptions share no base class
        return " ".join(str(e).split())[:200]
    return ""


def feeds(path: str | Path, seed: int = 0) -> dict[str, Any]:
    """Seeded random inputs for a file."""
    from onnxprune import analyze
    from onnxprune.graph.shapes import concrete_inputs
    from onnxprune.runtime.feeds import random_feeds

    analysis = analyze(path)
    s = session(path)
    for shapes in concrete_inputs(analysis.model, None):
        guess = random_feeds(analysis.model, analysis.coupling.shapes, shapes, seed=seed)
        with contextlib.suppress(Exception):  # the next guess may fit
            s.run(None, guess)
            return guess
    raise ValueError(f"{path}: no inputs found with which it runs")


def interleaved(
    jobs: Mapping[str, tuple[ort.InferenceSession, Feeds]],
    *,
    seconds: float,
    cpu: bool = False,
    least: int = 9,
    most: int = 400,
) -> dict[str, float]:
    """Median seconds of a run; all jobs run once per round, in an order that changes from round to round.

    cpu: processor time of this thread in place of real time, which is the same for sessions of one thread on an idle
    machine, and leaves out what others do on a busy one.
    """
    clock = time.thread_time if cpu else time.perf_counter
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for s, x in jobs.values():
        s.run(None, x)
        s.run(None, x)
    names, end = list(jobs), time.perf_counter() + seconds
    for done in range(most):
        if done >= least and time.perf_counter() > end:
            break
        for name in rng.permutation(names):
            s, x = jobs[name]
            start = clock()
            s.run(None, x)
            times[name].append(clock() - start)
    return {name: float(np.median(t)) for name, t in times.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


def resnet50_file(folder: Path) -> Path:
    """ResNet-50 with random weights, inline, in `folder`."""
    import onnx

    from resnet50 import resnet50

    path = folder / "resnet50.onnx"
    if not path.is_file():
        onnx.save(resnet50(), path)
    return path


def module(path: Path) -> ModuleType:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"file_{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _child(function: str, arguments: str) -> None:
    name, _, attribute = function.partition(":")
    value = getattr(importlib.import_module(name), attribute)(*json.loads(arguments))
    print(f"\n{json.dumps(value)}")


if __name__ == "__main__":
    _child(*sys.argv[1:])
