"""`onnxprune bench`: the command, and the tables that it prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, line_progress, show_on
from onnxprune.errors import OptionError
from onnxprune.evaluation.measure import told
from onnxprune.graph.energy import Energy, EnergyTable, table_of
from onnxprune.graph.io import load
from onnxprune.options import choice, declared, each, number, option, path, switch
from onnxprune.pipeline.footprint import energy_of
from onnxprune.runtime.benchmark import Benchmark, ModelBench, benchmark, plural
from onnxprune.runtime.loadgen import SCENARIOS, SUBMISSION, LoadTest, load_test
from onnxprune.runtime.profile import Profile

PANEL = "What to measure"


def _threads(value: object) -> tuple[int, ...]:
    """`1,2`, one thread count or several."""
    words = [word.strip() for word in str(value).split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise ValueError("expected thread counts such as 1,2")
    return tuple(int(word) for word in words)


@dataclass(frozen=True)
class BenchOptions:
    """What is measured of the models."""

    threads: tuple[tuple[int, ...], ...] = option(
        (), each(_threads), panel=PANEL, metavar="N,N", otherwise="1 and all cores",
        help="onnxruntime's intra-op threads, each measured by itself; 0 for all cores. Repeatable.",
    )  # fmt: skip
    seconds: float = option(
        10.0, number("a number of seconds above 0", 0, above=True), panel=PANEL, metavar="S", unit="seconds",
        help="Time to spend on latency, all models together.",
    )  # fmt: skip
    profile: bool = option(False, switch, panel=PANEL, help="Show time per operator; with -v per node.")
    memory: bool = option(True, switch, panel=PANEL, help="Peak memory, each model in its own process.")
    scenario: str | None = option(
        None, choice(SCENARIOS), panel=PANEL, metavar="NAME",
        help="Run MLPerf's LoadGen instead, on one model after the other, and report in its terms.",
    )  # fmt: skip
    duration: float = option(
        5.0, number("a number of seconds above 0", 0, above=True), panel=PANEL, metavar="S", unit="seconds",
        help=f"--scenario: least time of each run. MLPerf asks for {SUBMISSION} of a submission.",
    )  # fmt: skip
    inputs: Path | None = option(
        None, path, panel=PANEL, metavar="FILE.npz",
        help="Real inputs, an array per input name; --input-shape takes the first rows of them, --scenario all.",
    )  # fmt: skip

    @property
    def counts(self) -> tuple[int, ...]:
        """Thread counts; one and all cores where none is given."""
        return sum(self.threads, ()) or (1, 0)


OPTIONS = (
    *declared(BenchOptions),
    *shared(
        "input_shape", "energy_table", "seed", "json", "html", "verbose", "quiet",
        input_shape="Concrete shape of a dynamic input. Repeatable.",
        seed="Of random inputs.", verbose="With --profile, every node.",
    ),
)  # fmt: skip
ARGUMENTS = {
    "models": Annotated[
        list[Path],
        typer.Argument(
            metavar="A.onnx [B.onnx ...]", help="ONNX files of equal inputs; A is the base.", show_default=False
        ),
    ]
}


def bench(values: CommandValues) -> None:
    """Compare model files: latency, throughput, size, peak memory and outputs, runs of all interleaved.

    onnxprune bench model.onnx model.pruned.onnx says how much faster the second is, and how sure that is.
    """
    models, what, out = values["models"], values.part(BenchOptions), values.part(Output)
    for read in (*models, what.inputs):
        if read is not None:
            check_outputs(read, None, out.reports)
    refuse_idle(values, what)
    result: Benchmark | LoadTest
    with hushed(), _still(out.quiet) as progress:
        common = {
            "threads": what.counts, "input_shape": dict(values["input_shape"]), "inputs": what.inputs,
            "seed": values["seed"], "progress": progress,
        }  # fmt: skip
        if what.scenario is not None:
            result = load_test(models, what.scenario, duration=what.duration, **common)
        else:
            table = table_of(values["energy_table"])
            found = benchmark(models, seconds=what.seconds, profile=what.profile, memory=what.memory, **common)
            result = with_energy(found, table)
    for data_file in {p for m in result.models for p in m.data}:
        check_outputs(Path(data_file), None, out.reports)
    emit(values, result.to_dict())
    if not out.quiet:
        if isinstance(result, LoadTest):
            show_on(out.json, render_load_test(result))
        else:
            show_on(out.json, render_benchmark(result, verbose=out.verbose))


def refuse_idle(values: CommandValues, what: BenchOptions) -> None:
    """Raises `OptionError` for options that would have no effect, with or without LoadGen."""
    timed = ("seconds", "profile", "memory", "energy_table", "verbose")
    for name in timed if what.scenario is not None else ("duration",):
        if name in values.given:
            typed = values.options[name].as_typed(values.given[name])
            way = "needs --scenario" if what.scenario is None else f"has no effect with --scenario {what.scenario}"
            raise OptionError(f"{typed} {way}")


def with_energy(bench: Benchmark, table: EnergyTable) -> Benchmark:
    """The same with the energy of a run by a model, of each file; a note where it cannot be said."""
    notes, shapes = list(bench.notes), {name: shape for name, (_, shape) in bench.inputs.items()}

    def counted(m: ModelBench) -> Energy | None:
        return told(f"{m.label}: energy not counted", lambda: energy_of(load(m.path), table, shapes), notes)

    rows = [replace(m, energy=counted(m)) for m in bench.models]
    return replace(bench, models=tuple(rows), notes=tuple(notes), energy_table=table.source)


@contextmanager
def _still(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Progress that is drawn once per stage: a spinner takes core and interpreter lock from what is timed."""
    console = Console(stderr=True)
    if quiet:
        yield lambda stage: None
        return
    if not console.is_terminal:
        with line_progress() as tell:
            yield tell
        return
    with Progress(TextColumn("{task.description}"), console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage: bar.update(task, description=stage, refresh=True)


# tables


def render_benchmark(bench: Benchmark, *, verbose: bool = False) -> RenderableType:
    """Latency per thread count, then size, memory and outputs, then time per operator (verbose: also per node)."""
    parts: list[RenderableType] = [_latency_table(bench), Text(), _file_table(bench), Text()]
    for n in bench.threads:
        profiles = [next((p for p in m.profiles if p.threads == n), None) for m in bench.models]
        if any(profiles):
            parts += [_operator_table(bench, profiles, n), Text()]
            if verbose:
                parts += [_node_table(bench, profiles, n), Text()]
    runs = ", ".join(f"{t.runs} on {plural(t.threads, 'thread')}" for t in bench.models[0].timings)
    machine = f"{bench.cpu}, {plural(bench.cores, 'core')}, onnxruntime {bench.onnxruntime}"
    if len(bench.models) > 1:
        parts.append(Text(f"runs of each model: {runs}, one of each in turn; {machine}"))
        parts.append(Text("intervals cover noise between runs; two sessions of one file may differ by 1% as well"))
    else:
        parts.append(Text(f"runs: {runs}; {machine}"))
    shown = ", ".join(f"{n} {t} {'x'.join(map(str, shape)) or 'scalar'}" for n, (t, shape) in bench.inputs.items())
    first = plural(bench.threads[0], "thread")
    parts.append(Text(f"inputs: {shown or 'none'} ({bench.source}); outputs and memory are of {first}"))
    counters = "" if any(m.joules for m in bench.models) else "; this system offers no counters that can be read"
    parts.append(Text(f"energy of a run by a model: {bench.energy_table}{counters}"))
    parts += [Text(f"note: {note}", style="yellow") for note in bench.notes]
    return Group(*parts)


def render_load_test(test: LoadTest) -> RenderableType:
    """LoadGen's result of every model and thread count, in its terms, and under which conditions."""
    single = test.scenario == "single-stream"
    latencies = ["90th percentile latency, ms", "early stopping estimate, ms", "50th, ms", "99th, ms"]
    columns = latencies if single else ["samples per second"]
    columns = ["threads", *columns, "result is", "queries", "samples"]
    table = _table(f"MLPerf LoadGen, {test.scenario}", ["model"], columns)
    for m in test.models:
        for r in m.runs:
            times = [r.latency.get("90"), r.early_stopping, r.latency.get("50"), r.latency.get("99")]
            cells = [_ms(t) for t in times] if single else [f"{r.samples_per_second:.4g}"]
            verdict = "VALID" if r.valid else "INVALID"
            table.add_row(Text(m.label), str(r.threads), *cells, verdict, str(r.queries), str(r.samples))
    shown = ", ".join(f"{n} {'x'.join(map(str, shape)) or 'scalar'}" for n, shape in test.inputs.items())
    lines = [
        f"min duration {test.duration:g} s; LoadGen {test.loadgen}; {test.cpu}, {plural(test.cores, 'core')}, "
        f"onnxruntime {test.onnxruntime}",
        f"a sample: {shown}; {test.samples} samples to choose from ({test.source})",
    ]
    failed = {
        "min duration": "min_duration_met", "min queries": "min_queries_met", "early stopping": "early_stopping_met",
    }  # fmt: skip
    for m in test.models:
        for r in m.runs:
            missed = [what for what, name in failed.items() if not getattr(r, name)]
            lines += [f"{m.label}, {plural(r.threads, 'thread')}: {what} not satisfied" for what in missed]
            lines += [f"{m.label}: LoadGen: {said}" for said in (*r.errors, *r.warnings)]
    notes = [Text(f"note: {note}", style="yellow") for note in test.notes]
    return Group(table, Text(), *map(Text, lines), *notes)


def _table(title: str | None, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in left:
        table.add_column(Text(column), overflow="fold")
    for column in right:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table


def _latency_table(bench: Benchmark) -> Table:
    many, batched = len(bench.models) > 1, bench.batch != 1
    columns = ["threads", "median, ms", "p10, ms", "p90, ms", "p99, ms", "runs/s"]
    columns += [f"samples/s (batch {bench.batch})"] * batched + ["speed-up (90% interval)"] * many
    table = _table(None, ["model"], columns)
    for k, n in enumerate(bench.threads):
        for m in bench.models:
            t = m.timings[k]
            cells = [str(n), *(_ms(x) for x in (t.median, t.p10, t.p90, t.p99)), f"{t.runs_per_second:.4g}"]
            cells += [f"{t.samples_per_second:.4g}"] * batched
            if many:
                interval = "" if t.interval is None else f" ({t.interval[0]:.3f} to {t.interval[1]:.3f})"
                cells.append("1" if m is bench.models[0] else f"{t.speedup:.3f}{interval}")
            table.add_row(Text(m.label), *cells, end_section=m is bench.models[-1])
    return table


def _file_table(bench: Benchmark) -> Table:
    many = len(bench.models) > 1
    counted = any(m.joules is not None for m in bench.models)
    columns = ["file, MB", "peak memory, MB", "energy, uJ (model)"] + ["energy, uJ (counters)"] * counted
    columns += ["largest output difference", "relative to largest output"] * many
    table = _table(None, ["model"], columns)
    for m in bench.models:
        joules = [None if m.energy is None else m.energy.joules, *([m.joules] * counted)]
        cells = [f"{m.bytes / 1e6:.4g}", "-" if m.peak_memory is None else f"{m.peak_memory / 1e6:.4g}"]
        cells += ["-" if x is None else f"{x / 1e-6:.4g}" for x in joules]
        if many:
            d = m.difference
            cells += ["-", "-"] if d is None else [f"{d.absolute:.2g}", f"{d.relative:.2g}"]
        table.add_row(Text(m.label), *cells)
    return table


def _operator_table(bench: Benchmark, profiles: Sequence[Profile | None], threads: int) -> Table:
    runs = max(p.runs for p in profiles if p)
    title = f"time per operator, {plural(threads, 'thread')}, mean of {runs} runs that the profiler slows"
    columns = [c for m in bench.models for c in (f"{m.label}, ms/run", "share, %", "calls/run")]
    table = _table(title, ["operator"], columns)
    sides = [{} if p is None else p.operators for p in profiles]
    for op in sorted({op for s in sides for op in s}, key=lambda op: -max(s.get(op, (0.0,))[0] for s in sides)):
        cells = []
        for p, s in zip(profiles, sides, strict=True):
            cells += _cells(s.get(op), p)
        table.add_row(Text(op), *cells)
    for what in ("outside operators", "whole run"):
        cells = []
        for p, s in zip(profiles, sides, strict=True):
            inside = sum(seconds for seconds, _ in s.values())
            total = 0.0 if p is None else p.seconds
            cells += _cells((total if what == "whole run" else max(0.0, total - inside), 0.0), p)
        table.add_row(Text(what, style="dim"), *cells)
    return table


def _cells(entry: tuple[float, float] | None, profile: Profile | None) -> list[str]:
    if entry is None or profile is None:
        return ["-", "-", "-"]
    seconds, calls = entry
    share = f"{seconds / profile.seconds:.1%}".rstrip("%") if profile.seconds else "-"
    return [_ms(seconds), share, f"{calls:.4g}" if calls else ""]


def _node_table(bench: Benchmark, profiles: Sequence[Profile | None], threads: int) -> Table:
    title = f"time per node, {plural(threads, 'thread')}"
    table = _table(title, ["node", "operator"], [f"{m.label}, ms/run" for m in bench.models])
    sides = [{(n.name, n.op): n.seconds for n in p.nodes} if p else {} for p in profiles]
    for node in sorted({node for s in sides for node in s}, key=lambda node: -max(s.get(node, 0.0) for s in sides)):
        table.add_row(*map(Text, node), *(_ms(s.get(node)) for s in sides))
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.4g}"
