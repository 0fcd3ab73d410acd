"""The command line: words -> options -> pipeline -> report on screen."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from onnxprune import __version__
from onnxprune.cli import (
    agree,
    bench,
    connect,
    evaluate,
    explore,
    export_library,
    latency_table,
    lottery,
    operators,
    proxies,
    sensitivity,
    supermask,
    train,
)
from onnxprune.cli import help as screens
from onnxprune.cli import inspect as inspection
from onnxprune.cli.command import CommandValues, Output, command, emit, shared
from onnxprune.cli.process import INTERRUPTED, Interrupted, interruption
from onnxprune.cli.screen import (
    check_outputs,
    emit_json,
    hushed,
    printing,
    progress_bar,
    show_on,
    spare_data,
    staged_file,
    write_out,
)
from onnxprune.errors import NothingAsked, OnnxPruneError, OptionError
from onnxprune.evaluation.measure import told
from onnxprune.formats.densify import densify as to_dense
from onnxprune.formats.operators import is_sparse
from onnxprune.graph.energy import table_of
from onnxprune.graph.io import INLINE_LIMIT, Model, load, save, to_proto, weight_bytes
from onnxprune.options import Option, declared
from onnxprune.pipeline.footprint import energy_of, peak_of
from onnxprune.pipeline.options import OPTIONS, Options
from onnxprune.pipeline.recipe import Result
from onnxprune.pipeline.recipe import run as recipe
from onnxprune.report import Report, render, render_inspection
from onnxprune.structure.groups import analyze

NAMES = {o.name for o in OPTIONS}


class Main(TyperGroup):
    """The first word may name a subcommand; anything else is a model to prune."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words that are left once options of the app were read, the subcommand first."""
        options = {name for p in self.params for name in p.opts} - {"--help", "-h"}
        args = spelled_out(args, [o for c in self.commands.values() for o in getattr(c, "declared", ())])
        return super().parse_args(ctx, args if not args or args[0].partition("=")[0] in options else self.routed(args))

    def routed(self, arguments: Sequence[str]) -> list[str]:
        """The subcommand that the first word names, if that is not an option or its value, else `prune`; the rest."""
        takes_value = {
            name
            for p in self.commands["prune"].params
            if p.param_type_name == "option" and not getattr(p, "is_flag", False)
            for name in (*p.opts, *p.secondary_opts)
        }
        words = iter(arguments)
        for word in words:
            if word in takes_value:
                next(words, None)
            elif not word.startswith("-") or word == "-":
                if word in self.commands:
                    rest = list(arguments)
                    rest.remove(word)
                    return [word, *rest]
                break
        return ["prune", *arguments]

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Subcommands, and the options of `prune`."""
        completions = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            prune = self.commands["prune"]
            completions += prune.shell_complete(
                prune.make_context("prune", [], parent=ctx, resilient_parsing=True), incomplete
            )
        return completions


def spelled_out(words: Sequence[str], options: Sequence[Option]) -> list[str]:
    """The words, with what a flag stands for that may go without a value and has none."""
    alone, out = {o.flag: o for o in options if o.alone}, list[str]()
    for k, word in enumerate(words):
        out.append(word)
        if word in alone:
            try:
                alone[word].parse(words[k + 1] if k + 1 < len(words) else "")
            except ValueError:
                out.append(alone[word].alone)
    return out


app = typer.Typer(
    name="onnxprune", cls=Main, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@command(app, (*OPTIONS, *declared(Output)))
def prune(values: CommandValues) -> None:
    """Make an ONNX model smaller and faster: remove channels, filters and neurons, make weights sparse, or both.

    onnxprune model.onnx --channels 0.3 removes 30% of every group and writes model.pruned.onnx; --sparsity 0.8 makes
    80% of the weights zero and uses sparse kernels where they measure faster.
    """
    model, out = Path(values["model"]), values.part(Output)
    piped = str(out.output) == "-"
    carried = "-" if piped else out.json
    refuse_streams(out)
    options = asked(values, out)
    dry = options.check.dry_run
    target = out.output or model.parent / f"{model.stem}.pruned.onnx"
    plan = options.cut.plan
    outputs = {"-o": None if dry or piped else target, "--save-plan": out.save_plan, **out.reports}
    check_outputs(model, None if plan is None else Path(plan), outputs, force=out.force)
    data = b""
    with hushed(), progress_bar(out.quiet) as progress:
        result = recipe(model, options, progress=progress)
        spare_data(result.analysis.model, outputs)
        report = result.report
        if piped and result.written is not None:
            data, report = as_bytes(result.written, report)
        with staged_file("--save-plan", out.save_plan, result.plan.to_json()):
            if not dry and not piped:
                progress("save")
                report = result.save(target)
    if data:
        write_out(data)
    try:
        emit(values, report.to_dict())
    except OptionError as e:
        raise OptionError(str(e) if dry else f"{e}; the model is in {target}") from e
    if not out.quiet:
        show_on(carried, render(report, verbose=out.verbose))
        if not dry:
            show_on(carried, Text(f"written: {'standard output' if piped else target}"))


def refuse_streams(out: Output) -> None:
    """Raise `OptionError` where more than one thing would go to standard output, or a model to a terminal."""
    if str(out.output) != "-":
        return
    if out.json == "-":
        raise OptionError("-o - and --json - both write to standard output; give one of them a file")
    if sys.stdout is None or sys.stdout.isatty():
        raise OptionError("-o - writes the model to standard output, which is a terminal; redirect it, or give a file")


def asked(values: CommandValues, out: Output) -> Options:
    """The options of the recipe; where nothing is asked for, what could be is shown first."""
    given = {name: value for name, value in values.given.items() if name in NAMES}
    try:
        return Options.of(given)
    except OptionError as e:
        if isinstance(e, NothingAsked) and not given.keys() - {"input_shape", "allow_io_change"}:
            show_groups(values, out)
            above = "" if out.quiet else " the above could be pruned;"
            raise OptionError(str(e).replace("nothing to do:", f"nothing to do:{above}")) from None
        raise


def as_bytes(model: Model, report: Report) -> tuple[bytes, Report]:
    """A model as one piece of data, and its report; raises `OptionError` where it needs a second file."""
    size = weight_bytes(model)
    if size > INLINE_LIMIT:
        raise OptionError(
            f"-o -: the model has {size / 1e9:.1f} GB, and more than {INLINE_LIMIT / 1e9:.0f} GB lie in a file beside "
            "it; give -o a name"
        )
    data = to_proto(model).SerializeToString(deterministic=True)
    return data, replace(report, output="-", after=replace(report.after, bytes=len(data)))


OUT, *DENSIFY = shared("output", "force", "quiet", output="Where to write.")


@command(app, (replace(OUT, otherwise="MODEL.dense.onnx"), *DENSIFY))
def densify(values: CommandValues) -> None:
    """Turn sparse operators back into plain ONNX: the masked weights, bit for bit."""
    model = Path(values["model"])
    target = values["output"] or model.parent / f"{model.stem}.dense.onnx"
    check_outputs(model, None, {"-o": target}, force=values["force"])
    with hushed(), progress_bar(values["quiet"]) as progress:
        progress("load")
        loaded = load(model)
        count = sum(is_sparse(node) for node in loaded.proto.graph.node)
        if not count:
            raise OptionError(f"{model}: there is no sparse operator in it; nothing was written")
        spare_data(loaded, {"-o": target})
        dense = to_dense(loaded)
        progress("save")
        save(dense, target)
    if not values["quiet"]:
        show_on(None, Text(f"{count} sparse layers are dense now\nwritten: {target}"))


@command(
    app,
    shared(
        "input_shape", "allow_io_change", "energy_table", "json", "verbose", "quiet",
        allow_io_change="As if heads in inputs and outputs (key-value caches) could shrink.",
    ),
)  # fmt: skip
def inspect(values: CommandValues) -> None:
    """Show the groups that can be pruned, their share of parameters and MACs, and what is pinned and why.

    Then every layer with its sparsity, and which N:M patterns hold in it.
    """
    show_groups(values, values.part(Output))


def show_groups(values: CommandValues, out: Output) -> None:
    """Print, or write as JSON, what `inspect` shows: groups, what is pinned, layers with zeros."""
    model = Path(values["model"])
    check_outputs(model, None, {"--json": out.json_file})
    with hushed(), progress_bar(out.quiet) as progress:
        progress("load")
        loaded = load(model)
        progress("analyze")
        analysis = analyze(loaded, dict(values["input_shape"]), allow_io_change=values["allow_io_change"])
        rows, layers = inspection.group_rows(analysis), inspection.layer_rows(analysis)
        table = table_of(values["energy_table"])
        shapes, failed = analysis.input_shapes(analysis.keep_ids({})), list[str]()
        takes = told("energy not counted", lambda: energy_of(loaded, table, shapes), failed)
        peak = told("peak memory not counted", lambda: peak_of(loaded, shapes), failed)
    if out.json is not None:
        found = inspection.to_dict(analysis, rows)
        found["energy"] = None if takes is None else takes.to_dict()
        found["memory"] = None if peak is None else peak.to_dict()
        found["notes"] += failed
        emit_json(found, out.json)
    if not out.quiet:
        show_on(out.json, render_inspection(rows, analysis, verbose=out.verbose))
        zeros = inspection.layer_table(layers)
        show_on(out.json, Text())
        show_on(
            out.json,
            zeros if zeros.row_count else Text(str(zeros.caption or "no layer whose zeros --format can store")),
        )
        lines = [] if takes is None else [inspection.energy_line(takes, table)]
        lines += [] if peak is None else [inspection.peak_line(peak)]
        show_on(out.json, Text("\n".join([*lines, *failed])))


command(app, operators.OPERATORS, {})(operators.ops)
command(app, bench.OPTIONS, bench.ARGUMENTS)(bench.bench)
command(app, evaluate.EVALUATE, evaluate.SOURCES)(evaluate.evaluate)
command(app, train.TRAIN)(train.train)
command(app, explore.EXPLORE)(explore.explore)
command(app, lottery.LOTTERY)(lottery.lottery)
command(app, connect.CONNECT, connect.MODELS)(connect.connect)
command(app, proxies.PROXIES, proxies.MODELS)(proxies.proxies)
command(app, agree.AGREE)(agree.agree)
command(app, supermask.SUPERMASK, supermask.MODELS)(supermask.supermask)
command(app, sensitivity.SENSITIVITY)(sensitivity.sensitivity)
command(app, latency_table.LATENCY_TABLE, name="latency-table")(latency_table.latency_table)
command(app, export_library.EXPORT, {}, name="export-library")(export_library.export_library)


def _subcommands(incomplete: str) -> list[str]:
    return [name for name in group().commands if name.startswith(incomplete)]


@app.command(name="help")
def help_(
    subcommand: Annotated[str, typer.Argument(metavar="[SUBCOMMAND]", autocompletion=_subcommands)] = "",
) -> None:
    """Show the main options, or those of a subcommand."""
    if not subcommand:
        _print(screens.main_screen(group().commands["prune"].declared))
    elif isinstance(chosen := group().commands.get(subcommand), screens.HelpCommand):
        _print(chosen.all_options())
    else:
        raise OptionError(f"help {subcommand}: no such subcommand; there are {', '.join(group().commands)}")


def _print(text: str) -> None:
    with printing():
        typer.echo(text, nl=False)
        sys.stdout.flush()


# entry


@functools.cache
def group() -> Any:
    """The command line, as typer made it."""
    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; its exit code."""
    argv = list(arguments)
    interruption.outputs.clear()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        if "--version" in argv:
            _print(f"onnxprune {__version__}\n")
            return 0
        if "--help-all" in argv:
            argv = ["--help" if word == "--help-all" else word for word in argv]
            if group().routed(argv)[0] == "prune":
                _print(screens.all_options(group().commands["prune"].declared))
                return 0
        code = group().main(args=argv or ["--help"], prog_name="onnxprune", standalone_mode=False) or 0
        return int(code) if argv else 2
    except SystemExit as e:  # of shell completion
        return int(e.code or 0)
    except (Interrupted, KeyboardInterrupt, typer.Abort):
        return _complain(interruption.line(), INTERRUPTED)
    except UsageError as e:
        return _complain(f"{e.format_message()} (see onnxprune --help)", 2)  # type: ignore[attr-defined]
    except OnnxPruneError as e:
        return _complain(str(e), e.exit_code)
    except Exception as e:  # ours: one line for the user, the traceback for whoever asks
        if interruption.stopped:  # native code that a signal came into may raise anything
            return _complain(interruption.line(), INTERRUPTED)
        if "--verbose" in argv or "-v" in argv:
            raise
        where = traceback.extract_tb(e.__traceback__)[-1]
        return _complain(
            f"internal error{interruption.written()}: {type(e).__name__}: {e} (in {Path(where.filename).name}, line "
            f"{where.lineno}); please report it with the model (-v shows the traceback)",
            1,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    raise SystemExit(run(sys.argv[1:] if arguments is None else arguments))


def _complain(message: str, code: int) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"onnxprune: {' '.join(message.split())}"))
    return code


UsageError: type[Exception] = typer.BadParameter.__bases__[
    0
]  # typer carries click along since 0.26; before, it used it

__all__ = ["Result", "app", "main", "run"]
