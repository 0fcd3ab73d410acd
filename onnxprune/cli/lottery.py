"""`onnxprune lottery`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.process import interruption
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on
from onnxprune.experiments.book import NAME
from onnxprune.pipeline.lottery import LOTTERY as EXPERIMENT

WHERE = "The folder that gets tickets, table and plot, and from which a run that was stopped goes on."
FOLDER = replace(shared("output", output=WHERE)[0], otherwise="MODEL.lottery", metavar="DIR")
LOTTERY = (*EXPERIMENT, FOLDER, *shared("json", "html", "quiet"))


def lottery(values: CommandValues) -> None:
    """Search lottery tickets: train, prune, rewind, again; beside controls, over several seeds.

    onnxprune lottery model.onnx --train train.npz --evaluate test.npz --init 0 --rounds 10 writes model.lottery/:
    round-NN.ticket.onnx, what a round begins from, round-NN.onnx, trained, a table and a plot.
    """
    from onnxprune.pipeline.lottery import tickets

    model, out = Path(values["model"]), values.part(Output)
    folder = out.output or model.parent / f"{model.stem}.lottery"
    check_outputs(model, None, out.reports)
    interruption.will_write(folder / NAME)
    asked = {o.name: values[o.name] for o in EXPERIMENT}
    with hushed(), progress_bar(out.quiet) as progress:
        report = tickets(model, folder, asked, values.part(Preprocess), progress)
    emit(values, report)
    if not out.quiet:
        show_on(out.json, table_of(report))
        notes = [*(f"note: {n}" for n in report["notes"]), f"written: {report['folder']}"]
        show_on(out.json, Text("\n".join(notes)))


def table_of(report: Mapping[str, Any]) -> Table:
    """Means over seeds, a row per round and kind."""
    several = max(m["seeds"] for m in report["means"]) > 1
    table = Table(box=None, pad_edge=False, caption=f"means of {report['means'][0]['seeds']} seeds" * several or None)
    columns = [
        "round",
        "network",
        "weights left",
        report["metric"],
        *["±"] * several,
        "held-out loss",
        "steps to it",
        "s",
    ]
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right")
    for m in report["means"]:
        table.add_row(
            str(m["round"]), m["kind"], f"{m['left']:.2%}", f"{m['score']:.4f}", *[f"{m['deviation']:.4f}"] * several,
            f"{m['loss']:.4g}", f"{m['best']:.0f}", f"{m['seconds']:.1f}",
        )  # fmt: skip
    return table


__all__ = ["LOTTERY", "lottery", "table_of"]
