"""The command line: arguments -> pipeline -> report on screen."""

from __future__ import annotations

import json
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console, RenderableType
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from onnxprune import __version__, inspection
from onnxprune.allocation import ALLOCATORS, MAX_RATIO, ROUND_TO
from onnxprune.bench_cli import bench
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.graph.io import Model, load, save
from onnxprune.importance import CRITERIA, DEFAULT
from onnxprune.pipeline import RECOVERIES, prune
from onnxprune.report import render, render_inspection, show
from onnxprune.sparsity.masks import ALLOCATORS as SPARSE_ALLOCATORS
from onnxprune.sparsity.masks import SOLVERS
from onnxprune.sparsity.rewrite import densify as to_dense
from onnxprune.sparsity.stage import FORMATS
from onnxprune.structure.groups import analyze
from onnxprune.structure.rules import BARRIERS, RULES

CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="onnxprune",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)

STAGES = {
    "load": "reading the model",
    "analyze": "finding what can be removed together",
    "plan": "choosing what goes",
    "cut": "cutting",
    "verify": "checking that pruned equals masked",
    "recover": "folding constants into biases",
    "sparsify": "making weights sparse",
    "measure": "measuring latency, both models in turn",
    "save": "writing",
}
EPILOG = """[bold]Subcommands[/bold] (the first word, if it is one of these names; anything else is a MODEL to prune)

[cyan]onnxprune prune MODEL[/cyan]  the explicit form of the above

[cyan]onnxprune inspect MODEL[/cyan]  groups that can be pruned, what is pinned and why

[cyan]onnxprune bench A.onnx \\[B.onnx ...][/cyan]  latency, size, peak memory and outputs of model files, interleaved

[cyan]onnxprune densify MODEL[/cyan]  a model with sparse operators back to plain ONNX

[cyan]onnxprune ops[/cyan]  operators with a rule, and deliberate barriers

Each has its own --help."""

Choice = Enum("Choice", {name: name for name in CRITERIA}, type=str)  # type: ignore[misc]
Allocation = Enum("Allocation", {name: name for name in ALLOCATORS}, type=str)  # type: ignore[misc]
Recovery = Enum("Recovery", {name: name for name in RECOVERIES}, type=str)  # type: ignore[misc]

Format = Enum("Format", {name: name for name in FORMATS}, type=str)  # type: ignore[misc]
Solver = Enum("Solver", {name: name for name in SOLVERS}, type=str)  # type: ignore[misc]
SparseAllocation = Enum("SparseAllocation", {name: name for name in SPARSE_ALLOCATORS}, type=str)  # type: ignore[misc]

PATH, UNIFORM, BIAS = Choice(DEFAULT), Allocation("uniform"), Recovery("bias")
AUTO, MAGNITUDE, ALIKE = Format("auto"), Solver("magnitude"), SparseAllocation("uniform")

WHAT, HOW, CHECK, OUTPUT = "What to remove", "How to choose", "Checks and measurement", "Files and output"
SPARSE = "Sparse weights"

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", rich_help_panel=OUTPUT, help="Write the report as JSON; - for standard output."
    ),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME:1,3,224,224",
        rich_help_panel=CHECK,
        help="Concrete shape of a dynamic input, for the analysis, MACs and the check. Repeatable.",
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", rich_help_panel=OUTPUT, help="Name every group and everything pinned.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Print nothing but errors.")]


@app.command(name="prune", epilog=EPILOG, context_settings=CONTEXT)
def prune_command(
    model: ModelArgument,
    channels: Annotated[
        str | None,
        typer.Option(
            "--channels",
            "-c",
            metavar="R|auto",
            rich_help_panel=WHAT,
            help="Fraction of the units of every group that is [bold]removed[/bold]: channels, filters, neurons, "
            "recurrent units. auto: whatever a target needs.",
        ),
    ] = None,
    ratio: Annotated[
        list[str] | None,
        typer.Option(
            "--ratio",
            metavar="[channels:|sparsity:]GLOB=R",
            rich_help_panel=WHAT,
            help="Fraction removed from the groups, or made zero in the layers, whose name, node, weight or output "
            "matches. Repeatable, last match wins; without --channels or --sparsity only what matches is pruned. "
            "The prefix is needed where both are asked for.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore", metavar="GLOB", rich_help_panel=WHAT, help="Leave matching groups or layers alone. Repeatable."
        ),
    ] = None,
    target_macs: Annotated[
        str | None,
        typer.Option(
            "--target-macs",
            metavar="T",
            rich_help_panel=WHAT,
            help="MACs that are [bold]left[/bold]: 0.7, 70% or 300M. A fixed --channels applies first.",
        ),
    ] = None,
    target_params: Annotated[
        str | None,
        typer.Option(
            "--target-params",
            metavar="T",
            rich_help_panel=WHAT,
            help="Parameters that are [bold]left[/bold]: 0.7, 70% or 5M. Two targets must both hold.",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", rich_help_panel=WHAT, help="Replay a plan that --save-plan wrote."),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            "--sparsity",
            "-s",
            metavar="R",
            rich_help_panel=SPARSE,
            help="Fraction of the weights of MatMul, Gemm and Conv that becomes [bold]zero[/bold], after --channels.",
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            metavar="N:M",
            rich_help_panel=SPARSE,
            help="Instead: keep N of every M consecutive weights along the reduction (of Conv: input channels); 2:4 is "
            "what TensorRT takes.",
        ),
    ] = None,
    quality: Annotated[
        float | None,
        typer.Option(
            "--quality",
            metavar="Q",
            rich_help_panel=SPARSE,
            help="Instead: weights below Q standard deviations of their layer become zero.",
        ),
    ] = None,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            rich_help_panel=SPARSE,
            help="How zeros are stored. auto: sparse operators where the whole session measures faster on this machine;"
            " csr, nm: everywhere; dense: zeros in a plain file; sparse-initializer: ONNX's own, smaller above 70%.",
        ),
    ] = AUTO,
    solver: Annotated[
        Solver, typer.Option("--solver", rich_help_panel=SPARSE, help="Which weights count.")
    ] = MAGNITUDE,
    sparsity_allocate: Annotated[
        SparseAllocation,
        typer.Option(
            "--sparsity-allocate",
            rich_help_panel=SPARSE,
            help="uniform: the same fraction of every layer; global: one threshold over all layers.",
        ),
    ] = ALIKE,
    importance: Annotated[
        Choice, typer.Option("--importance", rich_help_panel=HOW, help="What makes a unit worth keeping.")
    ] = PATH,
    allocate: Annotated[
        Allocation,
        typer.Option(
            "--allocate",
            rich_help_panel=HOW,
            help="uniform: the same fraction of every group; global: one threshold over all units.",
        ),
    ] = UNIFORM,
    round_to: Annotated[
        int,
        typer.Option("--round-to", metavar="N", rich_help_panel=HOW, help="Widths become multiples of N; 1 is exact."),
    ] = ROUND_TO,
    max_ratio: Annotated[
        float | None,
        typer.Option(
            "--max-ratio",
            metavar="R",
            rich_help_panel=HOW,
            show_default=f"{MAX_RATIO} for global and targets",
            help="Most that is removed of any group.",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", rich_help_panel=HOW, help="Cut in N steps, scoring again after each.")
    ] = 1,
    recover: Annotated[
        Recovery,
        typer.Option(
            "--recover",
            rich_help_panel=HOW,
            help="bias: fold the constant part of what is removed into the consumers' biases.",
        ),
    ] = BIAS,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, rich_help_panel=HOW, help="Of random inputs and scores.")
    ] = 0,
    input_shape: ShapeOption = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            rich_help_panel=CHECK,
            help="Check file, shapes, inputs and outputs, and that pruned equals masked, before anything is written.",
        ),
    ] = True,
    measure: Annotated[
        bool, typer.Option("--latency/--no-latency", rich_help_panel=CHECK, help="Time both models in onnxruntime.")
    ] = True,
    threads: Annotated[
        int,
        typer.Option(
            "--threads",
            metavar="N",
            min=0,
            rich_help_panel=CHECK,
            show_default="all cores",
            help="onnxruntime's intra-op threads for the measurement.",
        ),
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            rich_help_panel=OUTPUT,
            show_default="MODEL.pruned.onnx",
            help="Where to write; an existing file is replaced, the input only with --force.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Allow OUT to be the input.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=OUTPUT, help="Plan and report; write no model.")
    ] = False,
    save_plan: Annotated[
        Path | None,
        typer.Option("--save-plan", metavar="FILE", rich_help_panel=OUTPUT, help="Write what is kept, as JSON."),
    ] = None,
    json_file: JsonOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make an ONNX model smaller and faster: remove channels, filters and neurons, make weights sparse, or both.

    [bold]onnxprune model.onnx --channels 0.3[/bold] removes 30% of every group and writes model.pruned.onnx;
    [bold]--sparsity 0.8[/bold] makes 80% of the weights zero and uses sparse kernels where they measure faster.
    """
    target = output or model.parent / f"{model.stem}.pruned.onnx"
    amounts = (channels, target_macs, target_params, plan, sparsity, pattern, quality)
    if not ratio and all(amount is None for amount in amounts):
        _inspect(model, input_shape, json_file, verbose, quiet)
        raise OptionError(
            "nothing to do: the above could be pruned; say how much with --channels 0.3, --target-macs 70% or "
            "--sparsity 0.8"
        )
    outputs = {
        "-o": None if dry_run else target,
        "--save-plan": save_plan,
        "--json": None if json_file in (None, "-") else Path(str(json_file)),
    }
    _check_outputs(model, plan, outputs, force=force)
    with _hushed(), _progress(quiet) as progress:
        result = prune(
            model,
            channels=_channels(channels),
            sparsity=sparsity,
            pattern=pattern,
            quality=quality,
            format=format.value,
            solver=solver.value,
            sparsity_allocate=sparsity_allocate.value,
            ratio=[_pair(r) for r in ratio or ()],
            ignore=ignore or (),
            importance=importance.value,
            allocate=allocate.value,
            round_to=round_to,
            max_ratio=max_ratio,
            target_macs=target_macs,
            target_params=target_params,
            steps=steps,
            recover=recover.value,
            input_shape=_shapes(input_shape),
            plan=plan,
            dry_run=dry_run,
            verify=verify,
            measure=measure,
            seed=seed,
            threads=threads,
            progress=progress,
        )
        _spare_data(result.analysis.model, outputs)
        with _file("--save-plan", save_plan, result.plan.to_json()):
            report = result.report
            if not dry_run:
                progress("save")
                report = result.save(target)
    try:
        _emit(report.to_dict(), json_file)
    except OptionError as e:
        raise OptionError(str(e) if dry_run else f"{e}; the model is in {target}") from e
    if not quiet:
        _show(json_file, render(report, verbose=verbose))
        if not dry_run:
            _show(json_file, Text(f"written: {target}"))


@app.command()
def densify(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            rich_help_panel=OUTPUT,
            show_default="MODEL.dense.onnx",
            help="Where to write.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Allow OUT to be the input.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Turn sparse operators back into plain ONNX: the masked weights, bit for bit."""
    target = output or model.parent / f"{model.stem}.dense.onnx"
    _check_outputs(model, None, {"-o": target}, force=force)
    with _hushed(), _progress(quiet) as progress:
        progress("load")
        loaded = load(model)
        count = sum(node.domain == "onnxprune" for node in loaded.proto.graph.node)
        if not count:
            raise OptionError(f"{model}: there is no sparse operator in it; nothing was written")
        _spare_data(loaded, {"-o": target})
        dense = to_dense(loaded)
        progress("save")
        save(dense, target)
    if not quiet:
        _show(None, Text(f"{count} sparse layers are dense now\nwritten: {target}"))


def _channels(text: str | None) -> Any:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"--channels {text}: expected a fraction in [0, 1) that is removed, or auto") from None


def _pair(text: str) -> tuple[str, float]:
    """`GLOB=R`, split at the last equals sign: names may hold some."""
    glob, _, value = text.rpartition("=")
    try:
        r = float(value)
    except ValueError:
        r = float("nan")
    if not glob or r != r:
        raise OptionError(f"--ratio {text}: expected GLOB=R, for instance 'layer1*=0.5'")
    return glob, r


def _shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """`NAME:1,3,224,224`, split at the last colon: names may hold colons."""
    out = {}
    for text in texts or ():
        name, colon, dims = text.rpartition(":")
        sizes = dims.split(",")
        if not colon or not name or not all(d.strip().isdecimal() and int(d) > 0 for d in sizes):
            raise OptionError(f"--input-shape {text}: expected NAME:1,3,224,224")
        out[name] = tuple(int(d) for d in sizes)
    return out


def _check_outputs(model: Path, plan: Path | None, outputs: Mapping[str, Path | None], *, force: bool = False) -> None:
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
            if special or not _same(path, other) or (option == "-o" and other is model and force):
                continue
            if not (option == "--save-plan" and other is plan):  # it would hold the same
                forced = ", or --force to replace it" if option == "-o" and other is model else ""
                raise OptionError(f"{option} {path} is {what}; name another file{forced}")
        taken.append((f"the file of {option}", path))


def _spare_data(model: Model, outputs: Mapping[str, Path | None]) -> None:
    """Refuse to replace a file that holds weights of the input."""
    for held in {Path(str(w.filename)) for w in model.weights.values() if isinstance(w, np.memmap) and w.filename}:
        for option, path in outputs.items():
            if path is not None and _same(path, held):
                raise OptionError(f"{option} {path} holds weights of the input; name another file")


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def _inspect(model: Path, input_shape: Sequence[str] | None, json_file: str | None, verbose: bool, quiet: bool) -> None:
    if json_file not in (None, "-"):
        _check_outputs(model, None, {"--json": Path(str(json_file))})
    with _hushed(), _progress(quiet) as progress:
        progress("load")
        loaded = load(model)
        progress("analyze")
        analysis = analyze(loaded, _shapes(input_shape))
        rows = inspection.rows(analysis)
    _emit(inspection.to_dict(analysis, rows), json_file)
    if not quiet:
        _show(json_file, render_inspection(rows, analysis, verbose=verbose))


@app.command()
def inspect(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    json_file: JsonOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the groups that can be pruned, their share of parameters and MACs, and what is pinned and why."""
    _inspect(model, input_shape, json_file, verbose, quiet)


app.command()(bench)


@app.command()
def ops(json_file: JsonOption = None, quiet: QuietOption = False) -> None:
    """List the operators with a rule, and those that deliberately pin what they touch."""
    table = Table(box=None, pad_edge=False)
    for column in ("operator", "", "what the rule says"):
        table.add_column(column, overflow="fold")
    entries = {op: ("rule", r.summary) for op, r in RULES.items()} | {op: ("barrier", b) for op, b in BARRIERS.items()}
    for op, (what, text) in sorted(entries.items(), key=lambda e: ("::" in e[0], e[0])):
        table.add_row(op, what, Text(text))
    _emit({op: {"kind": what, "text": text} for op, (what, text) in sorted(entries.items())}, json_file)
    if not quiet:
        _show(json_file, table)
        _show(json_file, Text(f"{len(RULES)} rules, {len(BARRIERS)} barriers; any other operator pins what it touches"))


# output


def _show(json_file: str | None, renderable: RenderableType) -> None:
    """Tables go to standard output, or to standard error where that carries JSON."""
    console = Console(stderr=json_file == "-", highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # a name that is cut in two cannot be searched for
    with _blamed("standard output"):
        show(console, renderable)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda stage: None
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage: bar.update(task, description=STAGES.get(stage, stage))


@contextmanager
def _hushed() -> Iterator[None]:
    """Close standard output to native code: onnx's checker prints there, into the JSON."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        saved = os.dup(1)
    except OSError:  # it is closed anyway
        yield
        return
    _silence()
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _silence() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _emit(data: Any, json_file: str | None) -> None:
    text = json.dumps(data, indent=1) + "\n"
    if json_file == "-":
        with _blamed("--json -"):
            print(text, end="", flush=True)
    elif json_file is not None:
        with _file("--json", Path(json_file), text):
            pass


@contextmanager
def _file(option: str, path: Path | None, text: str) -> Iterator[None]:
    """A file that appears, whole, once the body has succeeded."""
    if path is None:
        yield
        return
    real = Path(os.path.realpath(path))
    staged = real.with_name(f".{secrets.token_hex(8)}.tmp")
    special = os.path.exists(path) and not os.path.isfile(path)  # a device, a pipe
    try:
        if not special:
            with _blamed(f"{option} {path}"):
                staged.write_text(text, encoding="utf-8")
        yield
        with _blamed(f"{option} {path}"):
            if special:
                path.write_text(text, encoding="utf-8")
            else:
                os.replace(staged, real)
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    """What the system refuses is an error of `what`."""
    try:
        yield
    except (OSError, ValueError) as e:
        if what in ("standard output", "--json -"):  # what is left in its buffer must not fail again at exit
            _silence()
        raise OptionError(f"{what}: cannot be written ({getattr(e, 'strerror', None) or e})") from e


# entry


def _command(arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The subcommand that the first word names, if that is not an option or its value; else `prune`."""
    group: Any = typer.main.get_command(app)
    takes_value = {
        name
        for p in group.commands["prune"].params
        if p.param_type_name == "option" and not p.is_flag
        for name in (*p.opts, *p.secondary_opts)
    }
    words = iter(arguments)
    for word in words:
        if word in takes_value:
            next(words, None)
        elif not word.startswith("-") or word == "-":
            if word in group.commands:
                rest = list(arguments)
                rest.remove(word)
                return group, [word, *rest]
            break
    return group.commands["prune"], list(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 2 for the user's mistakes, 1 for ours."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if "--version" in argv:
        print(f"onnxprune {__version__}")
        raise SystemExit(0)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    command, words = _command(argv or ["--help"])
    try:
        code = command.main(args=words, prog_name="onnxprune", standalone_mode=False) or 0
    except typer.Abort:
        code = 130
    except UsageError as e:
        code = _complain(f"{e.format_message()} (see onnxprune --help)", 2)  # type: ignore[attr-defined]
    except OnnxPruneError as e:
        code = _complain(str(e), e.exit_code)
    except Exception as e:  # ours: one line for the user, the traceback for whoever asks
        if "--verbose" in argv or "-v" in argv:
            raise
        where = traceback.extract_tb(e.__traceback__)[-1]
        code = _complain(
            f"internal error, nothing was written: {type(e).__name__}: {e} (in {Path(where.filename).name}, line "
            f"{where.lineno}); please report it with the model (-v shows the traceback)",
            1,
        )
    raise SystemExit(code if argv else 2)


def _complain(message: str, code: int) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"onnxprune: {' '.join(message.split())}"))
    return code


UsageError: type[Exception] = typer.BadParameter.__bases__[
    0
]  # typer carries click along since 0.26; before, it used it


if __name__ == "__main__":
    main()
