"""`onnxprune evaluate`: the command, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from onnxprune.calibration.calibration import SYNTHETIC
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.read import read
from onnxprune.calibration.samples import unused
from onnxprune.cli.command import MODEL, CommandValues, Output, emit, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on
from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import METRICS, Drop, Evaluator, Function, drop, is_function, metric_of
from onnxprune.graph.io import load
from onnxprune.options import DATA, declared, option, path

IMAGE_OPTIONS = tuple(f.name for f in fields(Preprocess))
SOURCES = {
    **MODEL,
    "source": Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            show_default=False,
            help=".npz or .npy, a folder or zip of .npy or images, with labels (array labels, sub-folders per class, "
            "or --labels), or module:function in Python.",
        ),
    ],
}


@dataclass(frozen=True)
class Against:
    """What a model is compared with."""

    against: Path | None = option(
        None, path, panel=DATA, metavar="MODEL", help="Compare with this model, sample by sample."
    )


EVALUATE = (
    *declared(Against),
    *shared(
        "labels", "metric", "samples", *IMAGE_OPTIONS, "threads", "input_shape", "json", "html", "quiet",
        labels="Labels of SRC: .npy, .txt, .csv, .json.",
    ),
)  # fmt: skip
SAMPLED = ("labels", "metric", "samples", "input_shape", *IMAGE_OPTIONS)  # what a function has no use for


def evaluate(values: CommandValues) -> None:
    """Measure how good a model is on data, by its labels or, with --against, by the outputs of another model.

    onnxprune evaluate small.onnx photos/ --against model.onnx says how much worse the first is, and how sure that is.
    """
    model, source, out, against = Path(values["model"]), values["source"], values.part(Output), values["against"]
    check_outputs(model, None, out.reports)
    _refuse_unused(values)
    with hushed(), progress_bar(out.quiet) as progress:
        progress("load")
        loaded = load(model)
        base = loaded if against is None else load(against)
        progress("evaluate")
        evaluator: Evaluator | Function
        described = source
        if is_function(source):
            evaluator = Function(source)
        else:
            data = read(
                source, base, preprocess=values.part(Preprocess), samples=values["samples"], labels=values["labels"],
                option="SRC", shapes=dict(values["input_shape"]),
            )  # fmt: skip
            if line := unused(values.part(Preprocess), data):
                raise OptionError(line)
            described = data.description
            name = metric_of(base, data, values["metric"], values["labels"])
            if against is None and METRICS[name].reference:
                raise OptionError(f"--metric {name} compares with another model: give --against MODEL, or labels")
            evaluator = Evaluator(base, data, name, threads=values["threads"])
        score = evaluator(loaded)
        compared = None if against is None else drop(evaluator(base), score)
    result = {
        "model": str(model), "data": described, "metric": score.metric, "value": score.value,
        "standard_error": score.standard_error, "samples": score.samples,
        "against": None if compared is None else {"model": str(against), **compared.to_dict()},
    }  # fmt: skip
    emit(values, result)
    if not out.quiet:
        show_on(out.json, Text(f"data: {described}"))
        sure = "" if score.standard_error is None else f" +- {score.standard_error:.4f} (standard error)"
        count = "" if score.samples is None else f", {score.samples} samples"
        show_on(out.json, Text(f"{score.metric}: {score.value:.4f}{sure}{count}"))
        if compared is not None:
            show_on(out.json, _compared(compared, against))


def _refuse_unused(values: CommandValues) -> None:
    """Raises `OptionError` for an option that the kind of SRC has no use for."""
    source, known = values["source"], values.options
    given = {n: v for n, v in values.given.items() if n in known and v != known[n].default}
    if is_function(source):
        for name in (n for n in given if n in SAMPLED):
            shown = known[name].as_typed(given[name])
            raise OptionError(f"{shown} has no effect: SRC is a function, which says its own figure")
    elif source != SYNTHETIC and "input_shape" in given:
        shown = known["input_shape"].as_typed(given["input_shape"])
        raise OptionError(f"{shown} has no effect: it is for made-up samples, SRC synthetic; others have their shapes")


def _compared(d: Drop, against: Path | None) -> RenderableType:
    sure = "" if d.bound is None else f", at most {d.bound:.4f} with 95% confidence"
    return Text(f"{against}: {d.before:.4f}; worse by {d.drop:.4f}{sure}")
