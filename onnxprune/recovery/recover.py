"""Making up, without training, for what a cut has lost: the stage of the recipe behind the cut."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.calibration.calibration import Calibration
from onnxprune.graph.step import Step
from onnxprune.options import HOW, choice, option
from onnxprune.progress import Progress, counting
from onnxprune.recovery.bias import bias_shifts
from onnxprune.recovery.least_squares import LayerFit, least_squares
from onnxprune.recovery.normalisation import batch_statistics
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.cut import Cutting
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import check_recovered

RECOVERIES = {
    "least-squares": "refit every layer that lost inputs, on data",
    "mean-std": "match means and deviations of layers that lost inputs, on data",
    "batchnorm": "estimate the statistics of BatchNormalization anew, on data",
    "bias": "fold the constant part of what went into biases, without data",
    "none": "instant",
}
WITH_DATA = ("least-squares", "mean-std", "batchnorm")


@dataclass(frozen=True)
class Recovery:
    """What the user says of the recovery."""

    recover: str | None = option(
        None, choice(RECOVERIES), panel=HOW, metavar="METHOD", otherwise="least-squares with data, bias without",
        needs=("no plan", "a cut or zeros"), help="How the loss is made up for.",
    )  # fmt: skip


def recover(
    analysis: Analysis,
    keep: Keep,
    cut: Step[Cutting],
    method: str,
    calibration: Calibration | None,
    *,
    ridge: float,
    progress: Progress,
) -> Step[tuple[LayerFit, ...]]:
    """The cut model after recovery, and what became of each layer that lost inputs; checked as the cut was."""
    step = _recovered(analysis, keep, cut, method, calibration, ridge=ridge, progress=progress)
    if step.model is not cut.model and cut.outcome.verification is not None:
        check_recovered(analysis, keep, step.model, cut.outcome.verification)
    return step


def _recovered(
    analysis: Analysis,
    keep: Keep,
    cut: Step[Cutting],
    method: str,
    calibration: Calibration | None,
    *,
    ridge: float,
    progress: Progress,
) -> Step[tuple[LayerFit, ...]]:
    if method == "bias":
        shifts = bias_shifts(analysis, keep)
        if not shifts:
            return Step(cut.model, ())
        note = f"bias of {len(shifts)} layers compensated for the mean of what was removed"
        return Step(prune_model(analysis, keep, shifts, sliced=cut.outcome.sliced), (), (note,))
    if method == "none" or calibration is None:
        return Step(cut.model, ())
    source = calibration.runs()
    count = counting(progress, "recover")
    if method == "batchnorm":
        narrow = [analysis.narrow(feeds, keep) for feeds in source]
        model, n = batch_statistics(
            cut.model, narrow, memory=calibration.memory, threads=calibration.threads, progress=count
        )
        return Step(model, (), (f"statistics of {n} BatchNormalization nodes estimated anew",))
    model, fits = least_squares(
        analysis, keep, cut.model, source, method=method, ridge=ridge, memory=calibration.memory,
        threads=calibration.threads, seed=calibration.seed, progress=count,
    )  # fmt: skip
    return Step(model, tuple(fits), tuple(f"{f.node} ({f.op}) was not refitted: {f.reason}" for f in fits if f.reason))
