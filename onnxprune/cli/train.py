"""`onnxprune train`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, shared
from onnxprune.cli.screen import check_outputs, emit_json, hushed, progress_bar, show_on
from onnxprune.pipeline.train import TRAIN as TRAINING
from onnxprune.training.outcome import judged

TRAIN = (*TRAINING, *shared("output", "json", "quiet", output="Where to write."))


def train(values: CommandValues) -> None:
    """Train a model on labelled samples: fine-tuning, or from scratch with --init.

    onnxprune train model.onnx --train photos/ --evaluate held_out/ writes model.trained.onnx.
    """
    from onnxprune.pipeline.train import trained

    model, out = Path(values["model"]), values.part(Output)
    target = out.output or model.parent / f"{model.stem}.trained.onnx"
    check_outputs(model, None, {"-o": target, "--json": out.json_file})
    with hushed(), progress_bar(out.quiet) as progress:
        done = trained(model, target, {n: values[n] for n in values.options}, values.part(Preprocess), progress)
    emit_json(done.report, out.json)
    if not out.quiet:
        show_on(out.json, Text("\n".join(lines(done.report))))


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as a reader sees it."""
    held = report["held_out"]
    first = f"trained: {report['steps']} of {report['planned']} steps of {report['batch']} samples"
    kept = f"after {held['best']} steps" if held["best"] else "never lower: the weights stay as they were"
    by = " by a range test" if report["range_test"] else ""
    out = [f"data: {report['data']}"]
    if (thin := report["at_init"]) is not None:
        done = f"pruned at initialization by {thin['importance']} in {thin['seconds']:.1f} s"
        out.append(f"{done}: {thin['left']:.2%} of the weights are left")
    if (masks := report["masks"]) is not None:
        closed = f"{masks['came_back']} of them were closed before" if masks["came_back"] else "none came back"
        out.append(f"masks learned by {masks['method']}: {masks['left']:.2%} of the {masks['of']} are left, {closed}")
        out += [f"  {row['name']}: {row['left']} of {row['size']}" for row in masks["parts"]]
    out += [
        f"{first}, {report['optimizer']} at {report['learning_rate']:g}{by}, {report['loss']}",
        f"{judged(held['samples'], held['copies'])} {held['before']:.4g} -> {held['after']:.4g}, {kept}",
    ]
    for e in report["evaluation"]:
        sure = "" if e["standard_error"] is None else f" +- {e['standard_error']:.4f} (standard error)"
        count = "" if e["samples"] is None else f", {e['samples']} samples"
        out.append(f"{e['metric']}: {e['before']:.4f} -> {e['after']:.4f}{sure}{count}")
    if not report["evaluation"]:
        out.append("accuracy: not measured (--evaluate SRC does)")
    return [*out, *(f"note: {note}" for note in report["notes"]), f"written: {report['output']}"]


__all__ = ["TRAIN", "train"]
