"""`onnxprune explore`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on
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
        show_on(out.json, table_of(report))
        notes = [*(f"note: {n}" for n in report["notes"]), f"written: {report['folder']}"]
        show_on(out.json, Text("\n".join(notes)))


def table_of(report: Mapping[str, Any]) -> Table:
    """A row per point, the front and its knees marked."""
    points = [p for p in report["points"] if p["file"] is not None]
    scored = bool(points) and points[0]["score"] is not None
    table = Table(box=None, pad_edge=False, caption="* no other point beats it, ** a knee of the curve")
    for column in ("", "asked", f"{report['budget']} left", "ms", "time", *["score", "lost"] * scored, "divergence",
                   "MACs", "file", "by"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("", "by") else "right")
    for p in points:
        table.add_row(
            "**" if p["knee"] else "*" if p["front"] else "", f"{p['left']:.0%}", f"{p['cost']:.1%}",
            _shown(p["latency_seconds"], lambda s: f"{1e3 * s:.3g}"), _shown(p["latency_ratio"], "{:.1%}".format),
            *([f"{p['score']:.4f}", f"{p['drop']:.4f}"] if scored else []),
            _shown(p["divergence"], "{:.4g}".format), _shown(p.get("macs"), "{:.0%}".format),
            _shown(p.get("bytes"), "{:.0%}".format), p["way"],
        )  # fmt: skip
    return table


def _shown(value: float | None, form: Any) -> str:
    return "-" if value is None else form(value)


__all__ = ["EXPLORE", "explore", "table_of"]
