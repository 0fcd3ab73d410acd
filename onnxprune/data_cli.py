"""`onnxprune evaluate` and `onnxprune sensitivity`: the commands, and what they print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune.allocation.levels import Levels
from onnxprune.calibrated import Recipe, calibration_of, levels_of, total_macs
from onnxprune.calibration.samples import read
from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.evaluation import METRICS, Drop, Evaluator, Function, default_metric, drop, is_function
from onnxprune.graph.io import load
from onnxprune.options import (
    DATA,
    OUTPUT,
    CropOption,
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
    PresetOption,
    QuietOption,
    SamplesOption,
    ScaleOption,
    SizeOption,
    StdOption,
    preprocess,
)
from onnxprune.screen import check_outputs, emit, hushed, progress_bar, show_on
from onnxprune.structure.groups import ChannelGroup, analyze


def evaluate(
    model: ModelArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            show_default=False,
            help=".npz or .npy, a folder or zip of .npy or images, with labels (array labels, sub-folders per class, "
            "or --labels), or module:function in Python.",
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="MODEL", rich_help_panel=DATA, help="Compare with this model, sample by sample."
        ),
    ] = None,
    labels: LabelsOption = None,
    metric: MetricOption = None,
    samples: SamplesOption = None,
    preset: PresetOption = None,
    image_size: SizeOption = None,
    crop: CropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    scale: ScaleOption = None,
    layout: LayoutOption = Layout("auto"),  # noqa: B008
    channel_order: OrderOption = Order("auto"),  # noqa: B008
    json_file: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure how good a model is on data: top1, top5, agreement with another model, or mse.

    [bold]onnxprune evaluate small.onnx photos/ --against model.onnx[/bold] says how much worse the first is, and how
    sure that is.
    """
    target = None if json_file in (None, "-") else Path(str(json_file))
    check_outputs(model, None, {"--json": target})
    with hushed(), progress_bar(quiet) as progress:
        progress("load")
        loaded = load(model)
        base = loaded if against is None else load(against)
        progress("evaluate")
        judge: Evaluator | Function
        described = source
        if is_function(source):
            judge = Function(source)
        else:
            how = preprocess(preset, image_size, crop, mean, std, scale, layout, channel_order)
            data = read(source, base, preprocess=how, samples=samples, labels=labels, option="SRC")
            described = data.description
            name = metric.value if metric else default_metric(base, data)
            if against is None and not METRICS[name].labelled:
                raise OptionError(f"--metric {name} compares with another model: give --against MODEL, or labels")
            judge = Evaluator(base, data, name)
        mine = judge(loaded)
        compared = None if against is None else drop(judge(base), mine)
    result = {
        "model": str(model), "data": described, "metric": mine.metric, "value": mine.value,
        "standard_error": mine.standard_error, "samples": mine.samples,
        "against": None if compared is None else {"model": str(against), **compared.to_dict()},
    }  # fmt: skip
    emit(result, json_file)
    if not quiet:
        show_on(json_file, Text(f"data: {described}"))
        sure = "" if mine.standard_error is None else f" +- {mine.standard_error:.4f} (standard error)"
        count = "" if mine.samples is None else f", {mine.samples} samples"
        show_on(json_file, Text(f"{mine.metric}: {mine.value:.4f}{sure}{count}"))
        if compared is not None:
            show_on(json_file, _compared(compared, against))


def _compared(d: Drop, against: Path | None) -> RenderableType:
    sure = "" if d.bound is None else f", at most {d.bound:.4f} with 95% confidence"
    return Text(f"{against}: {d.before:.4f}; worse by {d.drop:.4f}{sure}")


def sensitivity(
    model: ModelArgument,
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration", metavar="SRC", rich_help_panel=DATA, help="Unlabelled samples, or the word synthetic."
        ),
    ],
    samples: SamplesOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", rich_help_panel=OUTPUT, help="Draw the table: .png, .svg, .pdf or .html."
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
    memory: MemoryOption = 2.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of what is sampled.")] = 0,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Show what the outputs suffer when one group alone is cut, and what is left makes up for it, ratio by ratio.

    Damage is the KL divergence of a classifier's probabilities (nats), or of other models the squared error of the
    outputs over their variance, on samples that were not fitted.
    """
    written = {"--json": None if json_file in (None, "-") else Path(str(json_file)), "--plot": plot}
    check_outputs(model, None, written)
    if plot is not None and plot.suffix not in PLOTS:
        raise OptionError(f"--plot {plot}: expected a name that ends in {', '.join(PLOTS)}")
    with hushed(), progress_bar(quiet) as progress:
        progress("load")
        loaded = load(model)
        progress("analyze")
        analysis = analyze(loaded)
        groups = [g for g in analysis.groups if g.kind != "layers"]
        if not groups:
            raise NothingToPrune(f"{model}: no group of units that can be removed; see `onnxprune inspect`")
        progress("calibration")
        costs = analysis.costs()
        how = preprocess(preset, image_size, crop, mean, std, scale, layout, channel_order)
        data = calibration_of(
            calibration, loaded, total_macs(costs), samples=samples, preprocess=how, augment=False,
            memory=memory * 1e9, threads=0, jobs=1, seed=seed,
        )  # fmt: skip
        levels, _ = levels_of(
            analysis,
            groups,
            data,
            how=Recipe("obs", "kl", "least-squares", prior=0.03),
            round_to=1,
            max_ratio=0.8,
            cache=None,
            progress=progress,
        )
    shares = {g.name: macs_share(costs, analysis, g) for g in groups}
    emit(sensitivity_dict(groups, levels, shares, data.samples.description), json_file)
    if plot is not None:
        draw(groups, levels, plot)
    if not quiet:
        show_on(json_file, Text(f"data: {data.samples.description}"))
        show_on(json_file, sensitivity_table(groups, levels, shares))
        if plot is not None:
            show_on(json_file, Text(f"written: {plot}"))


PLOTS = (".png", ".svg", ".pdf", ".html")
COLUMNS = (0.1, 0.2, 0.3, 0.5, 0.7)  # removed fractions in the table


def macs_share(costs: Any, analysis: Any, group: ChannelGroup) -> float:
    """Part of the MACs that goes with a tenth of the group, times ten."""
    keep = np.ones(group.size, bool)
    keep[: max(1, group.size // 10)] = False
    whole = costs.macs(analysis.keep_ids({}))
    gone = 1 - costs.macs(analysis.keep_ids({group.name: keep})) / whole
    return float(gone * group.size / (~keep).sum())


def sensitivity_dict(
    groups: list[ChannelGroup], levels: Levels, shares: Mapping[str, float], described: str
) -> dict[str, Any]:
    """Plain data: per group the units kept and the damage at every level."""
    return {
        "data": described,
        "groups": [
            {"name": g.name, "size": g.size, "macs_share": shares[g.name], "kept": levels.kept[g.name],
             "damage": levels.damage[g.name]}
            for g in groups
        ],
    }  # fmt: skip


def _at(levels: Levels, group: ChannelGroup, removed: float) -> float:
    """Damage at the level nearest to a fraction."""
    kept = np.array(levels.kept[group.name])
    return levels.damage[group.name][int(np.abs(1 - kept / group.size - removed).argmin())]


def sensitivity_table(groups: list[ChannelGroup], levels: Levels, shares: Mapping[str, float]) -> RenderableType:
    """A row per group: its part of the MACs, and the damage at some fractions."""
    table = Table(box=None, pad_edge=False, caption="damage at the outputs when so much of one group alone is removed")
    table.add_column("group", overflow="fold")
    for column in ("units", "MACs", *(f"-{c:.0%}" for c in COLUMNS)):
        table.add_column(column, justify="right")
    for g in groups:
        shown = (f"{_at(levels, g, c):.4f}" for c in COLUMNS)
        table.add_row(Text(g.name), str(g.size), f"{shares[g.name]:.1%}", *shown)
    return table


def draw(groups: list[ChannelGroup], levels: Levels, path: Path) -> None:
    """A heat map of groups and ratios, as a picture or as a page around one."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise OptionError("--plot needs matplotlib: pip install 'onnxprune[plot]'") from None
    import io

    fractions = np.arange(1, 17) / 20
    values = np.array([[max(_at(levels, g, f), 1e-5) for f in fractions] for g in groups])
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.26 * len(groups)), layout="constrained")
    image = axes.imshow(np.log10(values), aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(fractions)), [f"{f:.0%}" for f in fractions], fontsize=7)
    axes.set_yticks(range(len(groups)), [f"{g.name[-48:]} ({g.size})" for g in groups], fontsize=7)
    axes.set_xlabel("removed of the group")
    figure.colorbar(image, label="damage, log10")
    target = io.StringIO() if path.suffix == ".html" else path
    figure.savefig(target, format="svg" if path.suffix == ".html" else path.suffix[1:], dpi=150)
    pyplot.close(figure)
    if isinstance(target, io.StringIO):
        page = f"<!doctype html><meta charset='utf-8'><title>sensitivity</title>{target.getvalue()}"
        path.write_text(page, encoding="utf-8")
