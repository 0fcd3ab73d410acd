"""`onnxprune supermask`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on, table_on_screen
from onnxprune.errors import OptionError
from onnxprune.page.tables import masks
from onnxprune.pipeline.supermask import SUPERMASK as EXPERIMENT

WHERE = "Write the network of one criterion, action and sparsity here, as plain ONNX."
NETWORK = replace(shared("output", output=WHERE)[0], otherwise="no network", metavar="FILE")
SUPERMASK = (*EXPERIMENT, NETWORK, *shared("json", "html", "quiet"))
MODELS = {
    "model": Annotated[
        Path, typer.Argument(metavar="INITIAL.onnx", help="The file before training.", show_default=False)
    ],
    "other": Annotated[
        Path | None,
        typer.Argument(metavar="[TRAINED.onnx]", show_default=False, help="After it; alone with --init SEED."),
    ],
}


def supermask(values: CommandValues) -> None:
    """Score networks whose weights were never trained: masks that compare initial with trained weights (supermasks).

    onnxprune supermask initial.onnx trained.onnx --evaluate test.npz -s 0.5,0.8,0.9 prints a table of criteria and
    actions; with one of each -o FILE writes the network, --picture SVG draws what is kept.
    """
    from onnxprune.pipeline.supermask import compared

    model, other, out = Path(values["model"]), values.given["other"], values.part(Output)
    if str(out.output) == "-":
        raise OptionError("-o -: the network needs a file, as supermask.onnx")
    files = {"-o": out.output, "--picture": values["picture"], **out.reports}
    for path in (p for p in (model, other) if p is not None):
        check_outputs(Path(path), None, files)
    asked = {o.name: values[o.name] for o in EXPERIMENT}
    with hushed(), progress_bar(out.quiet) as progress:
        report = compared(model, other, out.output, asked, values.part(Preprocess), progress)
    emit(values, report)
    if not out.quiet:
        if report["rows"]:
            show_on(out.json, table_on_screen(masks(report), caption=True))
        show_on(out.json, Text("\n".join(lines(report))))


def lines(report: Mapping[str, Any]) -> list[str]:
    """What stands below the table."""
    out = [
        f"{what}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items())
        for what, scores in report["ends"].items() if scores
    ]  # fmt: skip
    out += [f"note: {note}" for note in report["notes"]]
    return [*out, *(f"written: {path}" for path in (report["output"], report["settings"]["picture"]) if path)]


__all__ = ["MODELS", "SUPERMASK", "lines", "supermask"]
