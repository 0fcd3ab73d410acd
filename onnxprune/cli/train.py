"""`onnxprune train`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.text import Text

from onnxprune.calibration.presets import Preprocess
from onnxprune.cli.command import CommandValues, Output, shared
from onnxprune.cli.screen import check_outputs, emit_json, hushed, progress_bar, show_on
from onnxprune.options import declared
from onnxprune.pipeline.train import EPOCHS, THIN, Beginning

TRAIN = (
    *shared(
        "train", "train_labels", "evaluate", "labels", "metric", "tune",
        train="Samples to train on: any source that --calibration takes, read as it is needed, with labels (an array "
        "labels, sub-folders per class, or --train-labels); the loss is their cross entropy.",
        evaluate="Measure before and after on this: samples with labels, or module:function in Python.",
        tune=f"How much: so many epochs, or 500steps, or a time, 5min; {EPOCHS} where nobody says. An eighth of the "
        "samples, at most 512, is held out, and the average of the weights that is best on them is written.",
    ),
    *declared(Beginning),
    *THIN,
    *shared(
        "loss", "learning_rate", "batch_size", "optimizer", "momentum", "weight_decay", "schedule", "warmup", "augment",
        "cache", *(f.name for f in fields(Preprocess)), "seed", "threads", "output", "json", "quiet",
        loss="What is trained towards: names with weights, or a .onnx file that computes one number from the outputs "
        "and labels; cross-entropy where nobody says. Others than it compare with the outputs of MODEL as it came.",
        learning_rate="The highest rate, after --warmup; with --init ten times as high, where nobody says.",
        augment="Pictures as they might have been taken: alone cropped and flipped, or as the names say: flip, crop, "
        "resized-crop, mixup.",
        cache="Keep the state of the training here; a run that was stopped goes on to the same result.",
        output="Where to write.",
    ),
)  # fmt: skip


def train(values: CommandValues) -> None:
    """Train a model on labelled samples: fine-tuning, or from scratch with --init.

    onnxprune train model.onnx --train photos/ --evaluate held_out/ writes model.trained.onnx.
    """
    from onnxprune.pipeline.train import train as run

    model, out = Path(values["model"]), values.part(Output)
    target = out.output or model.parent / f"{model.stem}.trained.onnx"
    check_outputs(model, None, {"-o": target, "--json": out.json_file})
    with hushed(), progress_bar(out.quiet) as progress:
        done = run(model, target, {n: values[n] for n in values.options}, values.part(Preprocess), progress)
    emit_json(done.report, out.json)
    if not out.quiet:
        show_on(out.json, Text("\n".join(lines(done.report))))


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as a reader sees it."""
    held = report["held_out"]
    first = f"trained: {report['steps']} of {report['planned']} steps of {report['batch']} samples"
    kept = f"after {held['best']} steps" if held["best"] else "never lower: the weights stay as they were"
    out = [f"data: {report['data']}"]
    if (thin := report["at_init"]) is not None:
        done = f"pruned at initialization by {thin['importance']} in {thin['seconds']:.1f} s"
        out.append(f"{done}: {thin['left']:.2%} of the weights are left")
    out += [
        f"{first}, {report['optimizer']} at {report['learning_rate']:g}, {report['loss']}",
        f"loss on {held['samples']} held out: {held['before']:.4g} -> {held['after']:.4g}, {kept}",
    ]
    for e in report["evaluation"]:
        sure = "" if e["standard_error"] is None else f" +- {e['standard_error']:.4f} (standard error)"
        count = "" if e["samples"] is None else f", {e['samples']} samples"
        out.append(f"{e['metric']}: {e['before']:.4f} -> {e['after']:.4f}{sure}{count}")
    if not report["evaluation"]:
        out.append("accuracy: not measured (--evaluate SRC does)")
    return [*out, *(f"note: {note}" for note in report["notes"]), f"written: {report['output']}"]


__all__ = ["TRAIN", "train"]
