"""`onnxprune proxies`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on
from onnxprune.page.units import show_any
from onnxprune.pipeline.proxies import PROXY_OPTIONS

PROXIES = (*PROXY_OPTIONS, *shared("json", "html", "quiet"))
MODELS = {
    "models": Annotated[
        list[Path], typer.Argument(metavar="A.onnx [B.onnx ...]", help="ONNX files.", show_default=False)
    ]
}


def proxies(values: CommandValues) -> None:
    """Ask zero-cost proxies of networks: what each may be worth once it is trained, before it is; beside the number of
    its parameters and MACs.

    onnxprune proxies nets/*.onnx --calibration train.npz. With --scores accuracies.csv it says how well each proxy
    orders the networks, and how sure that is.
    """
    from onnxprune.pipeline.proxies import asked

    models, out = values["models"], values.part(Output)
    for model in models:
        check_outputs(model, None, out.reports)
    options = {o.name: values[o.name] for o in PROXY_OPTIONS}
    with hushed(), progress_bar(out.quiet) as progress:
        report = asked(models, options, values.part(Preprocess), progress)
    emit(values, report)
    if not out.quiet:
        show_on(out.json, table_of(report))
        if report["correlations"] is not None:
            show_on(out.json, Text())
            show_on(out.json, correlation_table(report))
        show_on(out.json, Text("\n".join(f"note: {note}" for note in report["notes"])))


def table_of(report: Mapping[str, Any]) -> Table:
    """A row per network, a column per proxy."""
    asked, scored = list(report["models"][0]["proxies"]), report["correlations"] is not None
    table = Table(box=None, pad_edge=False)
    table.add_column("network", overflow="fold")
    for column in (*["score"] * scored, *asked):
        table.add_column(column, justify="right")
    for m in report["models"]:
        cells = [*[m["score"]] * scored, *(m["proxies"][p] for p in asked)]
        table.add_row(Text(m["model"]), *map(show_any, cells))
    return table


def correlation_table(report: Mapping[str, Any]) -> Table:
    """A row per proxy: rank correlations with the scores, and their intervals."""
    table = Table(box=None, pad_edge=False, caption="rank correlation with the scores, and 95% intervals by bootstrap")
    table.add_column("proxy")
    for column in ("networks", "Spearman", "interval", "Kendall", "interval"):
        table.add_column(column, justify="right")
    for row in report["correlations"]:
        cells = []
        for of in (row["spearman"], row["kendall"]):
            cells += ["-", "-"] if of is None else [f"{of['value']:.2f}", f"{of['low']:.2f} to {of['high']:.2f}"]
        table.add_row(row["proxy"], str(row["models"]), *cells)
    return table


__all__ = ["MODELS", "PROXIES", "correlation_table", "proxies", "table_of"]
