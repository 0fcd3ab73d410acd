"""`onnxprune agree`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on
from onnxprune.experiments.ranks import COEFFICIENTS
from onnxprune.page.experiments import compares
from onnxprune.page.units import show_rank
from onnxprune.pipeline.agree import AGREE as EXPERIMENT

AGREE = (*EXPERIMENT, *shared("json", "html", "verbose", "quiet", verbose="Every group by itself."))


def agree(values: CommandValues) -> None:
    """Say how stable an importance is: rank correlations of the units' scores between two data sets, or two halves of
    one, and between importances.

    onnxprune agree model.onnx --calibration a.npz --calibration b.npz --importance fisher --kind heads
    """
    from onnxprune.pipeline.agree import compared

    model, out = Path(values["model"]), values.part(Output)
    check_outputs(model, None, out.reports)
    asked = {o.name: values[o.name] for o in EXPERIMENT}
    with hushed(), progress_bar(out.quiet) as progress:
        report = compared(model, asked, values.part(Preprocess), progress)
    emit(values, report)
    if not out.quiet:
        show_on(out.json, table_of(report))
        for row in report["comparisons"] if out.verbose else ():
            show_on(out.json, Text(f"\n{compares(row)}"))
            show_on(out.json, group_table(row))
        show_on(out.json, Text("\n".join(f"note: {note}" for note in report["notes"])))


def table_of(report: Mapping[str, Any]) -> Table:
    """A row per comparison: means over groups with their spread, and all units together."""
    table = Table(box=None, pad_edge=False, caption="mean of the groups, its deviation, and all units together")
    table.add_column("scores", overflow="fold")
    for column in ("groups", "units", *(c for name in COEFFICIENTS for c in (name.capitalize(), "±", "together"))):
        table.add_column(column, justify="right")
    for row in report["comparisons"]:
        cells = [row[name][what] for name in COEFFICIENTS for what in ("mean", "deviation", "together")]
        table.add_row(Text(compares(row)), str(len(row["groups"])), str(row["units"]), *map(show_rank, cells))
    return table


def group_table(row: Mapping[str, Any]) -> Table:
    """The groups of a comparison."""
    table = Table(box=None, pad_edge=False)
    table.add_column("group", overflow="fold")
    for column in ("units", *(name.capitalize() for name in COEFFICIENTS)):
        table.add_column(column, justify="right")
    for g in row["groups"]:
        table.add_row(Text(g["name"]), str(g["units"]), *(show_rank(g[name]) for name in COEFFICIENTS))
    return table


__all__ = ["AGREE", "agree", "table_of"]
