"""`onnxprune lottery`: the command, and what it prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.process import interruption
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on, table_on_screen
from onnxprune.experiments.book import NAME
from onnxprune.page.tables import rounds
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
        show_on(out.json, table_on_screen(rounds(report), caption=report["means"][0]["seeds"] > 1))
        notes = [*(f"note: {n}" for n in report["notes"]), f"written: {report['folder']}"]
        show_on(out.json, Text("\n".join(notes)))


__all__ = ["LOTTERY", "lottery"]
