"""`onnxprune agree`: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on, table_on_screen
from onnxprune.page.tables import comparisons, groups
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
        show_on(out.json, table_on_screen(comparisons(report), caption=True))
        for row in report["comparisons"] if out.verbose else ():
            table = groups(row)
            show_on(out.json, Text(f"\n{table.caption}"))
            show_on(out.json, table_on_screen(table))
        show_on(out.json, Text("\n".join(f"note: {note}" for note in report["notes"])))


__all__ = ["AGREE", "agree"]
