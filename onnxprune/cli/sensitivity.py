"""`onnxprune sensitivity`: what each group costs at each ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune.allocation.levels import Levels
from onnxprune.allocation.recipe import Recipe
from onnxprune.allocation.spread import levels_by_outputs
from onnxprune.calibration.calibration import calibration_of
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.samples import unused
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.evaluate import IMAGE_OPTIONS
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on, staged_file
from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.graph.io import load
from onnxprune.options import OUTPUT, declared, option, path
from onnxprune.page.charts import damage_map
from onnxprune.structure.analysis import ChannelGroup
from onnxprune.structure.groups import analyze


def picture(value: Any) -> Path:
    """A path of a picture; raises `ValueError` for one that is no SVG."""
    named = path(value)
    if named.suffix.lower() != ".svg":
        raise ValueError("expected a name that ends in .svg; --html FILE makes a page")
    return named


@dataclass(frozen=True)
class Plot:
    """Where the table of sensitivities is drawn."""

    plot: Path | None = option(None, picture, panel=OUTPUT, metavar="FILE.svg", help="Draw the table, as SVG.")


SENSITIVITY = (
    *shared("calibration", "samples", "cache", "jobs", "memory", "seed", "threads", "input_shape", *IMAGE_OPTIONS),
    *declared(Plot),
    *shared("json", "html", "quiet"),
)


def sensitivity(values: CommandValues) -> None:
    """Show what the outputs suffer when one group alone is cut, and what is left makes up for it, ratio by ratio.

    Damage is the KL divergence of a classifier's probabilities (nats), or of other models the squared error of the
    outputs over their variance, on samples that were not fitted. It needs --calibration SRC.
    """
    model, out, plot = Path(values["model"]), values.part(Output), values.part(Plot)
    if values["calibration"] is None:
        raise OptionError("sensitivity is measured on data: give --calibration SRC, or --calibration synthetic")
    check_outputs(model, None, {**out.reports, "--plot": plot.plot})
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
        levels, _ = levels_by_outputs(
            analysis,
            groups,
            data,
            recipe=Recipe("obs", "kl", "least-squares", prior=0.03),
            round_to=1,
            max_ratio=0.8,
            cache=values["cache"],
            progress=progress,
        )
        shares = {g.name: macs_share(costs, analysis, g) for g in groups}
        report = sensitivity_dict(model, groups, levels, shares, data.samples.description)
    with staged_file("--plot", plot.plot, "" if plot.plot is None else damage_map(report["groups"])):
        emit(values, report)
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
    model: Path, groups: list[ChannelGroup], levels: Levels, shares: Mapping[str, float], described: str
) -> dict[str, Any]:
    """Plain data: per group the units kept and the damage at every level."""
    return {
        "model": str(model), "data": described,
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
