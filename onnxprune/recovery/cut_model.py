"""What every recovery takes and gives: a model that was cut goes in, one that makes up for the loss comes out."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.calibration.calibration import Calibration
from onnxprune.graph.step import Step
from onnxprune.progress import Steps
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.cut import Cutting


@dataclass(frozen=True, eq=False)
class CutModel:
    """A model that was cut, and what a recovery may use.

    analysis: of the original; keep: ids that survive, bool `(ids,)`; cut: the model and the arrays that were sliced;
    data: samples as the original takes them, None where there are none; ridge: of fits, in mean variances of a layer's
    inputs, None for one of every layer; progress: told of the steps.
    """

    analysis: Analysis
    keep: Keep
    cut: Step[Cutting]
    data: Calibration | None
    ridge: float | None
    progress: Steps


@dataclass(frozen=True)
class LayerFit:
    """What a recovery did to one layer.

    before, after: unexplained share of the target's variance, with the weights that survived and with the new ones, on
    the data that were fitted; rows: of the regression; ridge: in mean variances of the inputs, 0 without one; reason:
    why the layer was left as it was, "" if it was not.
    """

    node: str
    op: str
    before: float
    after: float
    rows: int
    ridge: float = 0.0
    reason: str = ""


Recovered = Step[tuple[LayerFit, ...]]  # the outcome: what became of each layer that lost inputs, where it is fitted

__all__ = ["CutModel", "LayerFit", "Recovered"]
