"""Making up, without training, for what a cut has lost: the stage of the recipe behind the cut.

A recovery is a function from a `CutModel` to a `Step`, in a file of its own, and a row of `RECOVERIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.allocation.recipe import DEFAULTS
from onnxprune.calibration.calibration import Calibration
from onnxprune.errors import OptionError
from onnxprune.graph.step import Step
from onnxprune.options import HOW, choice, option
from onnxprune.progress import Progress, counting
from onnxprune.recovery.bias import compensate
from onnxprune.recovery.cut_model import CutModel, Recovered
from onnxprune.recovery.least_squares import refit, rescale
from onnxprune.recovery.normalisation import renormalise
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.cut import Cutting
from onnxprune.structure.verify import check_recovered


@dataclass(frozen=True)
class Recovery:
    """One way to make up for what is lost.

    recover: what it does after a cut; needs_data: calibration samples; cuts, zeros: whether it makes up for units that
    went and for weights that became zero (sparsity/solve.py does the latter); instant: takes no time; absorbs: whether
    what a constant unit gave goes into biases exactly, where it can.
    """

    help: str
    recover: Callable[[CutModel], Recovered]
    needs_data: bool
    cuts: bool = True
    zeros: bool = False
    instant: bool = False
    absorbs: bool = False


def leave(model: CutModel) -> Recovered:
    """The recovery `none`: the cut model as it is."""
    return Step(model.cut.model, ())


RECOVERIES: dict[str, Recovery] = {
    "least-squares": Recovery("refit every layer that lost inputs, on data", refit, needs_data=True, zeros=True),
    "mean-std": Recovery("match means and deviations of layers that lost inputs, on data", rescale, needs_data=True),
    "batchnorm": Recovery("estimate the statistics of BatchNormalization anew, on data", renormalise, needs_data=True),
    "bias": Recovery(
        "let biases absorb the constant part of what went, without data", compensate, needs_data=False, absorbs=True
    ),
    "none": Recovery("instant", leave, needs_data=False, cuts=False, instant=True),
}


@dataclass(frozen=True)
class Recovering:
    """What the user says of the recovery."""

    recover: str | None = option(
        None, choice({name: row.help for name, row in RECOVERIES.items()}), panel=HOW, metavar="METHOD",
        otherwise=f"{DEFAULTS['real'].recover} with data, {DEFAULTS[''].recover} without",
        needs=("no plan", "a cut or zeros"), help="How the loss is made up for.",
    )  # fmt: skip

    @property
    def zeros(self) -> bool:
        """Whether weights that stay are to make up for those that become zero, as they do where nothing is said."""
        return self.recover is None or RECOVERIES[self.recover].zeros

    def needs_data(self, *, cuts: bool, zeros: bool) -> str:
        """The option that asks for calibration data, "" for none; cuts, zeros: what there is to make up for."""
        row = None if self.recover is None else RECOVERIES[self.recover]
        needed = row is not None and row.needs_data and ((cuts and row.cuts) or (zeros and row.zeros))
        return f"--recover {self.recover}" if needed else ""

    def check(self, *, cuts: bool) -> None:
        """Raises `OptionError` for a recovery that makes up for cuts alone where there are none."""
        if cuts or self.recover is None:
            return
        row = RECOVERIES[self.recover]
        if row.cuts and not row.zeros:
            fitting = " or ".join(name for name, r in RECOVERIES.items() if r.zeros or not r.cuts)
            raise OptionError(f"--recover {self.recover} makes up for units that went; for zeros choose {fitting}")


def recover(
    analysis: Analysis,
    keep: Keep,
    cut: Step[Cutting],
    method: str,
    data: Calibration | None,
    *,
    ridge: float | None,
    progress: Progress,
) -> Recovered:
    """The cut model after recovery, and what became of each layer that lost inputs; checked as the cut was.

    method: of `RECOVERIES`; one that needs data leaves a model without any as it is.
    """
    row = RECOVERIES[method]
    if row.needs_data and data is None:
        return Step(cut.model, ())
    step = row.recover(CutModel(analysis, keep, cut, data, ridge, counting(progress, "recover")))
    if step.model is not cut.model and cut.outcome.verification is not None:
        check_recovered(analysis, keep, step.model, cut.outcome.verification)
    return step
