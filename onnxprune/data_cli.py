"""`onnxprune evaluate` and `onnxprune sensitivity`: the commands, and what they print."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune.allocation.levels import Levels
from onnxprune.allocation.options import Recipe
from onnxprune.allocation.spread import levels_of
from onnxprune.calibration.calibration import SYNTHETIC, calibration_of
from onnxprune.calibration.images import Preprocess
from onnxprune.calibration.samples import read, unused
from onnxprune.command import MODEL, Output, Values, shared
from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.evaluation import METRICS, Drop, Evaluator, Function, default_metric, drop, is_function
from onnxprune.graph.io import load
from onnxprune.options import DATA, OUTPUT, declared, option, path
from onnxprune.screen import check_outputs, emit, hushed, progress_bar, show_on, staged_file
from onnxprune.structure.groups import ChannelGroup, analyze

IMAGES = tuple(f.name for f in fields(Preprocess))
SOURCES = {
    **MODEL,
    "source": Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            show_default=False,
            help=".npz or .npy, a folder or zip of .npy or images, with labels (array labels, sub-folders per class, "
            "or --labels), or module:function in Python.",
        ),
    ],
}


@dataclass(frozen=True)
class Against:
    """What a model is compared with."""

    against: Path | None = option(
        None, path, panel=DATA, metavar="MODEL", help="Compare with this model, sample by sample."
    )


EVALUATE = (
    *declared(Against),
    *shared(
        "labels", "metric", "samples", *IMAGES, "threads", "input_shape", "json", "quiet",
        labels="Labels of SRC: .npy, .txt, .csv, .json.",
    ),
)  # fmt: skip
SAMPLED = ("labels", "metric", "samples", "input_shape", *IMAGES)  # what a function has no use for


def evaluate(values: Values) -> None:
    """Measure how good a model is on data: top1, top5, loss; with --against also agreement, mse.

    onnxprune evaluate small.onnx photos/ --against model.onnx says how much worse the first is, and how sure that is.
    """
    model, source, out, against = Path(values["model"]), values["source"], values.part(Output), values["against"]
    check_outputs(model, None, {"--json": out.json_file})
    _refuse_unused(values)
    with hushed(), progress_bar(out.quiet) as progress:
        progress("load")
        loaded = load(model)
        base = loaded if against is None else load(against)
        progress("evaluate")
        judge: Evaluator | Function
        described = source
        if is_function(source):
            judge = Function(source)
        else:
            data = read(
                source, base, preprocess=values.part(Preprocess), samples=values["samples"], labels=values["labels"],
                option="SRC", shapes=dict(values["input_shape"]),
            )  # fmt: skip
            if line := unused(values.part(Preprocess), data):
                raise OptionError(line)
            described = data.description
            name = values["metric"] or default_metric(base, data)
            if against is None and not METRICS[name].labelled:
                raise OptionError(f"--metric {name} compares with another model: give --against MODEL, or labels")
            if values["labels"] is not None and not METRICS[name].labelled:
                raise OptionError(f"--labels has no effect: --metric {name} compares with another model")
            judge = Evaluator(base, data, name, threads=values["threads"])
        mine = judge(loaded)
        compared = None if against is None else drop(judge(base), mine)
    result = {
        "model": str(model), "data": described, "metric": mine.metric, "value": mine.value,
        "standard_error": mine.standard_error, "samples": mine.samples,
        "against": None if compared is None else {"model": str(against), **compared.to_dict()},
    }  # fmt: skip
    emit(result, out.json)
    if not out.quiet:
        show_on(out.json, Text(f"data: {described}"))
        sure = "" if mine.standard_error is None else f" +- {mine.standard_error:.4f} (standard error)"
        count = "" if mine.samples is None else f", {mine.samples} samples"
        show_on(out.json, Text(f"{mine.metric}: {mine.value:.4f}{sure}{count}"))
        if compared is not None:
            show_on(out.json, _compared(compared, against))


def _refuse_unused(values: Values) -> None:
    """Raises `OptionError` for an option that the kind of SRC has no use for."""
    source, known = values["source"], values.options
    given = {n: v for n, v in values.given.items() if n in known and v != known[n].default}
    if is_function(source):
        for name in (n for n in given if n in SAMPLED):
            said = known[name].said(given[name])
            raise OptionError(f"{said} has no effect: SRC is a function, which says its own figure")
    elif source != SYNTHETIC and "input_shape" in given:
        said = known["input_shape"].said(given["input_shape"])
        raise OptionError(f"{said} has no effect: it is for made-up samples, SRC synthetic; others have their shapes")


def _compared(d: Drop, against: Path | None) -> RenderableType:
    sure = "" if d.bound is None else f", at most {d.bound:.4f} with 95% confidence"
    return Text(f"{against}: {d.before:.4f}; worse by {d.drop:.4f}{sure}")


PLOTS = (".png", ".svg", ".pdf", ".html")


@dataclass(frozen=True)
class Plot:
    """Where the table of sensitivities is drawn."""

    plot: Path | None = option(
        None, path, panel=OUTPUT, metavar="FILE", help=f"Draw the table: {', '.join(PLOTS)}; needs matplotlib."
    )

    def check(self) -> None:
        """Raises `OptionError` for a picture that cannot be drawn."""
        if self.plot is None:
            return
        if self.plot.suffix.lower() not in PLOTS:
            raise OptionError(f"--plot {self.plot}: expected a name that ends in {', '.join(PLOTS)}")
        if importlib.util.find_spec("matplotlib") is None:
            raise OptionError("--plot needs matplotlib: pip install 'onnxprune[plot]'")


SENSITIVITY = (
    *shared("calibration", "samples", "cache", "jobs", "memory", "seed", "threads", "input_shape", *IMAGES),
    *declared(Plot),
    *shared("json", "quiet"),
)


def sensitivity(values: Values) -> None:
    """Show what the outputs suffer when one group alone is cut, and what is left makes up for it, ratio by ratio.

    Damage is the KL divergence of a classifier's probabilities (nats), or of other models the squared error of the
    outputs over their variance, on samples that were not fitted. It needs --calibration SRC.
    """
    model, out, plot = Path(values["model"]), values.part(Output), values.part(Plot)
    if values["calibration"] is None:
        raise OptionError("sensitivity is measured on data: give --calibration SRC, or --calibration synthetic")
    check_outputs(model, None, {"--json": out.json_file, "--plot": plot.plot})
    plot.check()
    with hushed(), progress_bar(out.quiet) as progress:
        progress("load")
        loaded = load(model)
        progress("analyze")
        analysis = analyze(loaded, dict(values["input_shape"]))
        groups = [g for g in analysis.groups if g.kind != "layers"]
        if not groups:
            raise NothingToPrune(f"{model}: no group of units that can be removed; see `onnxprune inspect`")
        progress("calibration")
        costs = analysis.costs()
        data = calibration_of(
            values["calibration"], loaded, costs.macs(analysis.keep_ids({})), samples=values["samples"],
            preprocess=values.part(Preprocess), augment=False, memory=values["memory"], threads=values["threads"],
            jobs=values["jobs"], seed=values["seed"], shapes=dict(values["input_shape"]),
        )  # fmt: skip
        if line := unused(values.part(Preprocess), data.samples):
            raise OptionError(line)
        levels, _ = levels_of(
            analysis,
            groups,
            data,
            how=Recipe("obs", "kl", "least-squares", prior=0.03),
            round_to=1,
            max_ratio=0.8,
            cache=values["cache"],
            progress=progress,
        )
        shares = {g.name: macs_share(costs, analysis, g) for g in groups}
        if plot.plot is not None:
            draw(groups, levels, plot.plot)
    emit(sensitivity_dict(groups, levels, shares, data.samples.description), out.json)
    if not out.quiet:
        show_on(out.json, Text(f"data: {data.samples.description}"))
        show_on(out.json, sensitivity_table(groups, levels, shares))
        if plot.plot is not None:
            show_on(out.json, Text(f"written: {plot.plot}"))


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
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fractions = np.arange(1, 17) / 20
    values = np.array([[max(_at(levels, g, f), 1e-5) for f in fractions] for g in groups])
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.26 * len(groups)), layout="constrained")
    image = axes.imshow(np.log10(values), aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(fractions)), [f"{f:.0%}" for f in fractions], fontsize=7)
    axes.set_yticks(range(len(groups)), [f"{g.name[-48:]} ({g.size})" for g in groups], fontsize=7)
    axes.set_xlabel("removed of the group")
    figure.colorbar(image, label="damage, log10")
    kind = path.suffix.lower()
    target = io.BytesIO()
    figure.savefig(target, format="svg" if kind == ".html" else kind[1:], dpi=150)
    pyplot.close(figure)
    page = b"<!doctype html><meta charset='utf-8'><title>sensitivity</title>" if kind == ".html" else b""
    with staged_file("--plot", path, page + target.getvalue()):
        pass
