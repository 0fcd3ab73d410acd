"""`onnxprune connect`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on, staged_file, table_on_screen
from onnxprune.errors import OptionError
from onnxprune.page.tables import line
from onnxprune.pipeline.connect import CONNECT as EXPERIMENT

PLOT = replace(shared("output", output="Write the chart here, as SVG.")[0], otherwise="no chart", metavar="SVG")
CONNECT = (*EXPERIMENT, PLOT, *shared("json", "html", "quiet"))
MODELS = {
    "model": Annotated[Path, typer.Argument(metavar="A.onnx", help="The ONNX file.", show_default=False)],
    "other": Annotated[
        Path | None,
        typer.Argument(
            metavar="[B.onnx]", show_default=False, help="Another one of the same graph; none with --spawn."
        ),
    ],
}


def connect(values: CommandValues) -> None:
    """Measure loss and accuracy on the straight line between the weights of two models of one graph, and its barrier:
    the worst point, less the mean of the ends.

    onnxprune connect a.onnx b.onnx --evaluate test.npz --align -o curve.svg. With --spawn 0,50,200 --train train.npz
    it trains pairs of children of one model, which part at these steps: from which on is there no barrier?
    """
    from onnxprune.pipeline.connect import connected, draw

    model, other, out = Path(values["model"]), values.given["other"], values.part(Output)
    files = {"-o": out.output, **out.reports}
    for path in (p for p in (model, other) if p is not None):
        check_outputs(Path(path), None, files)
    if str(out.output) == "-":
        raise OptionError("-o -: the chart needs a file, as curve.svg")
    asked = {o.name: values[o.name] for o in EXPERIMENT}
    with hushed(), progress_bar(out.quiet) as progress:
        report = connected(model, other, asked, values.part(Preprocess), progress)
    with staged_file("-o", out.output, draw(report)):
        emit(values, {**report, "chart": None if out.output is None else str(out.output)})
    if not out.quiet:
        show_on(out.json, table_on_screen(line(report)))
        show_on(out.json, Text("\n".join(lines(report, out.output))))


def lines(report: Mapping[str, Any], chart: Path | None) -> list[str]:
    """What stands below the table."""
    out = []
    if "runs" not in report:
        for name, value in report["barriers"].items():
            out.append(f"barrier of {name}: {value:.4f} {report['metrics'][name]}".rstrip())
        if how := report["aligned"]:
            out.append(
                f"aligned: {sum(how['units_moved'].values())} units of {len(how['units_moved'])} groups have another "
                f"place; cosine of the weights {how['cosine_before']:.3f} -> {how['cosine_after']:.3f}"
            )
    else:
        seeds = report["means"][0]["seeds"]
        out.append(f"{report['runs'][0]['steps']} steps in all, {seeds} seed{'s' * (seeds > 1)}")
    out += [f"note: {note}" for note in report["notes"]]
    return out if chart is None else [*out, f"written: {chart}"]


__all__ = ["CONNECT", "MODELS", "connect", "lines"]
