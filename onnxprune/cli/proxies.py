"""`onnxprune proxies`: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on, table_on_screen
from onnxprune.page.tables import correlations, networks
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
        show_on(out.json, table_on_screen(networks(report)))
        if report["correlations"] is not None:
            show_on(out.json, Text())
            show_on(out.json, table_on_screen(correlations(report["correlations"]), caption=True))
        show_on(out.json, Text("\n".join(f"note: {note}" for note in report["notes"])))


__all__ = ["MODELS", "PROXIES", "proxies"]
