"""`onnxprune explore`: the command, and what it prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on, table_on_screen
from onnxprune.page.tables import points
from onnxprune.pipeline.explore import EXPLORE as EXPERIMENT

WHERE = "The folder that gets a model per point and the curve, and from which a run that was stopped goes on."
FOLDER = replace(shared("output", output=WHERE)[0], otherwise="MODEL.explored", metavar="DIR")
EXPLORE = (*EXPERIMENT, FOLDER, *shared("json", "html", "quiet"))


def explore(values: CommandValues) -> None:
    """Draw what a model loses for less time, bytes, energy or work, with a file at every point, and name the knees.

    onnxprune explore model.onnx --calibration images/ --evaluate val/ writes model.explored/: model-80.onnx and so on,
    curve.svg. Each point is pruned for its own target, and measured on its own file.
    """
    from onnxprune.pipeline.explore import explored

    model, out = Path(values["model"]), values.part(Output)
    folder = out.output or model.parent / f"{model.stem}.explored"
    check_outputs(model, None, out.reports)
    asked = {o.name: values[o.name] for o in EXPERIMENT}
    with hushed(), progress_bar(out.quiet) as progress:
        report = explored(model, folder, asked, values.part(Preprocess), progress)
    emit(values, report)
    if not out.quiet:
        show_on(out.json, table_on_screen(points(report), caption=True))
        notes = [*(f"note: {n}" for n in report["notes"]), f"written: {report['folder']}"]
        show_on(out.json, Text("\n".join(notes)))


__all__ = ["EXPLORE", "explore"]
