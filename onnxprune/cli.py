"""The command line: arguments -> pipeline -> report on screen."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune import __version__, inspection
from onnxprune.allocation import MAX_RATIO, ROUND_TO
from onnxprune.bench_cli import bench
from onnxprune.calibrated import ALLOCATIONS, IMPORTANCES
from onnxprune.data_cli import evaluate as evaluate_command
from onnxprune.data_cli import sensitivity
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.graph.io import load, save
from onnxprune.options import (
    AUTO,
    CHECK,
    DATA,
    FLOAT32,
    HOW,
    OUTPUT,
    SPARSE,
    WHAT,
    Allocation,
    CalibrationOption,
    Choice,
    CropOption,
    Format,
    Indices,
    JsonOption,
    LabelsOption,
    Layout,
    LayoutOption,
    MeanOption,
    MemoryOption,
    MetricOption,
    ModelArgument,
    Order,
    OrderOption,
    Per,
    PresetOption,
    QuietOption,
    Recovery,
    SamplesOption,
    ScaleOption,
    ShapeOption,
    SizeOption,
    Solver,
    SparseAllocation,
    StdOption,
    Values,
    VerboseOption,
    input_shapes,
    pair,
    preprocess,
    ratio_or_auto,
)
from onnxprune.pipeline import MEMORY, prune
from onnxprune.report import render, render_inspection
from onnxprune.screen import (
    check_outputs,
    emit,
    hushed,
    progress_bar,
    show_on,
    spare_data,
    staged_file,
)
from onnxprune.solvers.sparse import SOLVERS
from onnxprune.sparsity.masks import ALLOCATORS, DATA_ALLOCATORS
from onnxprune.sparsity.rewrite import densify as to_dense
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

EPILOG = """[bold]Subcommands[/bold] (the first word, if it is one of these names; anything else is a MODEL to prune)

[cyan]onnxprune prune MODEL[/cyan]  the explicit form of the above

[cyan]onnxprune inspect MODEL[/cyan]  groups that can be pruned, what is pinned and why

[cyan]onnxprune evaluate MODEL SRC[/cyan]  how good a model is on data

[cyan]onnxprune sensitivity MODEL --calibration SRC[/cyan]  what each group costs at each ratio

[cyan]onnxprune bench A.onnx \\[B.onnx ...][/cyan]  latency, size, peak memory and outputs of model files, interleaved

[cyan]onnxprune densify MODEL[/cyan]  a model with sparse operators back to plain ONNX

[cyan]onnxprune ops[/cyan]  operators with a rule, and deliberate barriers

Each has its own --help."""


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
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads",
            metavar="R|auto",
            rich_help_panel=WHAT,
            help="Attention heads, through q, k, v and the output; shared keys and values go with their queries.",
        ),
    ] = None,
    head_dim: Annotated[
        str | None,
        typer.Option(
            "--head-dim",
            metavar="R|auto",
            rich_help_panel=WHAT,
            help="Dimensions inside of heads: q with k, v with the output projection; rotary pairs together.",
        ),
    ] = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            "--hidden",
            metavar="R|auto",
            rich_help_panel=WHAT,
            help="Width of residual streams that are normalised (transformers, Swin, ConvNeXt), through everything.",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="R|auto",
            rich_help_panel=WHAT,
            help="Residual blocks, of transformers and of CNNs: those that change the stream least.",
        ),
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option("--experts", metavar="R|auto", rich_help_panel=WHAT, help="Experts of mixtures of experts."),
    ] = None,
    whole_layers: Annotated[
        bool,
        typer.Option(
            "--whole-layers",
            rich_help_panel=WHAT,
            help="--layers: attention goes with the feed-forward block after it.",
        ),
    ] = False,
    allow_io_change: Annotated[
        bool,
        typer.Option(
            "--allow-io-change",
            rich_help_panel=WHAT,
            help="Inputs and outputs that hold heads (key-value caches, masks per head) may shrink with them.",
        ),
    ] = False,
    ratio: Annotated[
        list[str] | None,
        typer.Option(
            "--ratio",
            metavar="[KIND:]GLOB=R",
            rich_help_panel=WHAT,
            help="Fraction removed from the groups, or made zero in the layers, whose name, node, weight or output "
            "matches. Repeatable, last match wins; without --channels, --heads, ... only what matches is pruned. KIND "
            "(channels, heads, head_dim, hidden, layers, experts, sparsity) says which, where the glob does not.",
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
    target_bytes: Annotated[
        str | None,
        typer.Option(
            "--target-bytes",
            metavar="T",
            rich_help_panel=WHAT,
            help="Size of the file that is [bold]left[/bold]: 0.7, 70% or 5M bytes.",
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
            metavar="N:M|block:RxC|column",
            rich_help_panel=SPARSE,
            help="2:4 keeps 2 of every 4 consecutive weights along the reduction (of Conv: input channels), as "
            "TensorRT wants them. With --sparsity: block:RxC, tiles of R outputs by C inputs go as a whole; column, "
            "inputs of a layer (of Conv: at a kernel position) go for all its outputs, and dense kernels do less.",
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
            " csr, nm, bsr (tiles): everywhere; columns: smaller dense layers of --pattern column; dense: zeros in a "
            "plain file; sparse-initializer: ONNX's own, smaller above 70%.",
        ),
    ] = AUTO,
    values: Annotated[
        Values,
        typer.Option(
            "--values",
            rich_help_panel=SPARSE,
            help="Type of the values that csr and nm store; int8 has a scale per row. What it costs is in the report.",
        ),
    ] = FLOAT32,
    permute: Annotated[
        bool,
        typer.Option(
            "--permute/--no-permute",
            rich_help_panel=SPARSE,
            help="With --pattern N:M, reorder channels through the whole graph so that less is lost.",
        ),
    ] = True,
    cluster: Annotated[
        int | None,
        typer.Option(
            "--cluster",
            metavar="K",
            min=2,
            max=256,
            rich_help_panel=SPARSE,
            help="Every weight becomes one of K values, stored as indices into a codebook in plain ONNX: a smaller "
            "file, the same memory and speed. Comes last, after --channels and --sparsity.",
        ),
    ] = None,
    cluster_per: Annotated[
        Per, typer.Option("--cluster-per", rich_help_panel=SPARSE, help="One codebook for every tensor or channel.")
    ] = Per("tensor"),  # noqa: B008
    cluster_storage: Annotated[
        Indices,
        typer.Option(
            "--cluster-storage",
            rich_help_panel=SPARSE,
            help="How indices are stored. uint8, packed: every runtime from opset 7; uint4: opset 21 and onnxruntime "
            "1.23; auto: the smaller of the first two.",
        ),
    ] = Indices("auto"),  # noqa: B008
    solver: Annotated[
        Solver | None,
        typer.Option(
            "--solver",
            rich_help_panel=SPARSE,
            show_default="admm with --calibration, magnitude without",
            help="Which weights stay, and with which values; all but magnitude need --calibration. "
            + "; ".join(f"{k}: {(f.__doc__ or '').strip()}" for k, f in SOLVERS.items())
            + ".",
        ),
    ] = None,
    sparsity_allocate: Annotated[
        SparseAllocation | None,
        typer.Option(
            "--sparsity-allocate",
            rich_help_panel=SPARSE,
            show_default="error with --calibration, uniform without",
            help="Where the zeros go. "
            + "; ".join(f"{k}: {(f.__doc__ or '').strip()}" for k, f in (*ALLOCATORS.items(), *DATA_ALLOCATORS.items()))
            + ".",
        ),
    ] = None,
    importance: Annotated[
        Choice | None,
        typer.Option(
            "--importance",
            rich_help_panel=HOW,
            show_default="obs with data, path without",
            help="What makes a unit worth keeping; list explains them.",
        ),
    ] = None,
    allocate: Annotated[
        Allocation | None,
        typer.Option(
            "--allocate",
            rich_help_panel=HOW,
            show_default="kl with data and a target, uniform else",
            help="; ".join(f"{k}: {v}" for k, v in ALLOCATIONS.items()) + ".",
        ),
    ] = None,
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
        Recovery | None,
        typer.Option(
            "--recover",
            rich_help_panel=HOW,
            show_default="least-squares with data, bias without",
            help="How the loss is made up for. least-squares: refit every layer that lost inputs; mean-std, batchnorm: "
            "statistics only; bias: fold the constant part of what went into biases, without data; none: instant.",
        ),
    ] = None,
    calibration: CalibrationOption = None,
    samples: SamplesOption = None,
    augment: Annotated[
        bool, typer.Option("--augment", rich_help_panel=DATA, help="Random crops and flips of calibration images.")
    ] = False,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="SRC",
            rich_help_panel=DATA,
            help="Measure before and after on this: any source that --calibration takes, with labels (an array labels, "
            "sub-folders per class, or --labels), or module:function in Python, which gets the path of a model.",
        ),
    ] = None,
    labels: LabelsOption = None,
    metric: MetricOption = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="D",
            rich_help_panel=WHAT,
            help="The smallest model whose metric on --evaluate falls by at most D; 0.01 is one point. Searched on a "
            "third of the samples, confirmed on the rest.",
        ),
    ] = None,
    preset: PresetOption = None,
    image_size: SizeOption = None,
    crop: CropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    scale: ScaleOption = None,
    layout: LayoutOption = Layout("auto"),  # noqa: B008
    channel_order: OrderOption = Order("auto"),  # noqa: B008
    memory: MemoryOption = MEMORY / 1e9,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            rich_help_panel=DATA,
            help="Keep the level database here; other targets for the same model, data and options then take seconds.",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=1, rich_help_panel=DATA, help="Solves in parallel.")
    ] = 1,
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
    amounts = (
        channels,
        heads,
        head_dim,
        hidden,
        layers,
        experts,
        target_macs,
        target_params,
        target_bytes,
        max_drop,
        plan,
        sparsity,
        pattern,
        quality,
        cluster,
    )
    if not ratio and all(amount is None for amount in amounts):
        _inspect(model, input_shape, json_file, verbose, quiet, allow_io_change=allow_io_change)
        raise OptionError(
            "nothing to do: the above could be pruned; say how much with --channels 0.3, --heads 0.25, "
            "--target-macs 70% or --sparsity 0.8"
        )
    outputs = {
        "-o": None if dry_run else target,
        "--save-plan": save_plan,
        "--json": None if json_file in (None, "-") else Path(str(json_file)),
    }
    check_outputs(model, plan, outputs, force=force)
    with hushed(), progress_bar(quiet) as progress:
        result = prune(
            model,
            channels=ratio_or_auto(channels),
            heads=ratio_or_auto(heads, "--heads"),
            head_dim=ratio_or_auto(head_dim, "--head-dim"),
            hidden=ratio_or_auto(hidden, "--hidden"),
            layers=ratio_or_auto(layers, "--layers"),
            experts=ratio_or_auto(experts, "--experts"),
            whole_layers=whole_layers,
            allow_io_change=allow_io_change,
            sparsity=sparsity,
            pattern=pattern,
            quality=quality,
            format=format.value,
            values=values.value,
            permute=permute,
            cluster=cluster,
            cluster_per=cluster_per.value,
            cluster_storage=cluster_storage.value,
            solver=solver and solver.value,
            sparsity_allocate=sparsity_allocate and sparsity_allocate.value,
            ratio=[pair(r) for r in ratio or ()],
            ignore=ignore or (),
            importance=importance and importance.value,
            allocate=allocate and allocate.value,
            round_to=round_to,
            max_ratio=max_ratio,
            target_macs=target_macs,
            target_params=target_params,
            target_bytes=target_bytes,
            steps=steps,
            recover=recover and recover.value,
            calibration=calibration,
            samples=samples,
            preprocess=preprocess(preset, image_size, crop, mean, std, scale, layout, channel_order),
            augment=augment,
            memory=memory * 1e9,
            cache=cache,
            jobs=jobs,
            evaluate=evaluate,
            labels=labels,
            metric=metric and metric.value,
            max_drop=max_drop,
            input_shape=input_shapes(input_shape),
            plan=plan,
            dry_run=dry_run,
            verify=verify,
            measure=measure,
            seed=seed,
            threads=threads,
            progress=progress,
        )
        spare_data(result.analysis.model, outputs)
        with staged_file("--save-plan", save_plan, result.plan.to_json()):
            report = result.report
            if not dry_run:
                progress("save")
                report = result.save(target)
    try:
        emit(report.to_dict(), json_file)
    except OptionError as e:
        raise OptionError(str(e) if dry_run else f"{e}; the model is in {target}") from e
    if not quiet:
        show_on(json_file, render(report, verbose=verbose))
        if not dry_run:
            show_on(json_file, Text(f"written: {target}"))


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
    check_outputs(model, None, {"-o": target}, force=force)
    with hushed(), progress_bar(quiet) as progress:
        progress("load")
        loaded = load(model)
        count = sum(node.domain == "onnxprune" for node in loaded.proto.graph.node)
        if not count:
            raise OptionError(f"{model}: there is no sparse operator in it; nothing was written")
        spare_data(loaded, {"-o": target})
        dense = to_dense(loaded)
        progress("save")
        save(dense, target)
    if not quiet:
        show_on(None, Text(f"{count} sparse layers are dense now\nwritten: {target}"))


def _criteria() -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for column in ("importance", "what it measures, and where it comes from"):
        table.add_column(column, overflow="fold")
    for name, summary in IMPORTANCES.items():
        table.add_row(name, Text(summary))
    return table


def _inspect(
    model: Path,
    input_shape: Sequence[str] | None,
    json_file: str | None,
    verbose: bool,
    quiet: bool,
    *,
    allow_io_change: bool,
) -> None:
    if json_file not in (None, "-"):
        check_outputs(model, None, {"--json": Path(str(json_file))})
    with hushed(), progress_bar(quiet) as progress:
        progress("load")
        loaded = load(model)
        progress("analyze")
        analysis = analyze(loaded, input_shapes(input_shape), allow_io_change=allow_io_change)
        rows = inspection.rows(analysis)
    emit(inspection.to_dict(analysis, rows), json_file)
    if not quiet:
        show_on(json_file, render_inspection(rows, analysis, verbose=verbose))


@app.command()
def inspect(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    json_file: JsonOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    allow_io_change: Annotated[
        bool,
        typer.Option("--allow-io-change", help="As if heads in inputs and outputs (key-value caches) could shrink."),
    ] = False,
) -> None:
    """Show the groups that can be pruned, their share of parameters and MACs, and what is pinned and why."""
    _inspect(model, input_shape, json_file, verbose, quiet, allow_io_change=allow_io_change)


app.command()(bench)
app.command(name="evaluate")(evaluate_command)
app.command()(sensitivity)


@app.command()
def ops(json_file: JsonOption = None, quiet: QuietOption = False) -> None:
    """List the operators with a rule, and those that deliberately pin what they touch."""
    table = Table(box=None, pad_edge=False)
    for column in ("operator", "", "what the rule says"):
        table.add_column(column, overflow="fold")
    entries = {op: ("rule", r.summary) for op, r in RULES.items()} | {op: ("barrier", b) for op, b in BARRIERS.items()}
    for op, (what, text) in sorted(entries.items(), key=lambda e: ("::" in e[0], e[0])):
        table.add_row(op, what, Text(text))
    emit({op: {"kind": what, "text": text} for op, (what, text) in sorted(entries.items())}, json_file)
    if not quiet:
        show_on(json_file, table)
        show_on(
            json_file, Text(f"{len(RULES)} rules, {len(BARRIERS)} barriers; any other operator pins what it touches")
        )


# output


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
    if "--importance=list" in argv or ("--importance", "list") in pairwise(argv):
        show_on(None, _criteria())
        raise SystemExit(0)
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
