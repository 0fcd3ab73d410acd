"""How much every unit, or every weight, matters by gradients of a loss: the formulas, and how they are asked.

A formula maps the slope of a loss at something, x dL/dx, to a score. Of a unit x is its gate, which is one, of a weight
the weight itself. What computes slopes (importance/slopes.py, importance/synflow.py) reads the rules of all gradients,
which takes a while: it is loaded where something is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.calibration.calibration import Calibration
from onnxprune.errors import UserError
from onnxprune.graph.arrays import Array, Float
from onnxprune.importance.criterion import Criterion, Scores
from onnxprune.progress import Steps
from onnxprune.structure.analysis import Analysis, ChannelGroup

if TYPE_CHECKING:
    from onnxprune.importance.slopes import Each, Shown

Lacking = dict[str, str]  # what has no score -> why


@dataclass(frozen=True)
class Formula:
    """each: of the slope at a sample, None where it is that of the mean loss; whole: of the mean over samples; second:
    whether the gradient is multiplied with the Hessian; squares: whether `each` is a square."""

    help: str
    each: Each | None = None
    whole: Each = np.asarray
    second: bool = False
    squares: bool = False


def half_square(slope: Float) -> Float:
    """Of OBD: what the loss gains when x goes, where its second derivative is the square of the slope."""
    return np.square(slope) / 2


FORMULAS = {
    "taylor": Formula(
        "magnitude of x dL/dx of each sample, x the weight or the gate of a unit (Molchanov et al. 2019)", np.abs
    ),
    "fisher": Formula(
        "half of (x dL/dx)^2 of each sample (Theis et al. 2018); without labels that of the outputs' own distribution",
        half_square, squares=True,
    ),
    "obd": Formula(
        "x^2/2 times the diagonal of the Hessian, by Gauss-Newton, without labels (LeCun et al. 1990, Optimal Brain "
        "Damage)", half_square, squares=True,
    ),
    "snip": Formula("magnitude of x dL/dx of the mean loss (Lee et al. 2019, SNIP)", whole=np.abs),
    "grasp": Formula("x (H g), what the gradient loses without it (Wang et al. 2020, GraSP)", second=True),
}  # fmt: skip
SYNFLOW = "what flows through it, of ones through the magnitudes of all weights (Tanaka et al. 2020, SynFlow)"
OWN = ("fisher", "obd")  # those that can do without labels


def calibrated(data: Calibration) -> Shown:
    """Samples without labels as they are run."""
    from onnxprune.importance.slopes import Shown

    samples, most = data.samples, data.batch if data.samples.stackable else 1

    def batches(size: int) -> list[list[int]]:
        size = min(size, most)
        return [list(range(k, min(k + size, samples.count))) for k in range(0, samples.count, size)]

    return Shown(samples.count, batches, samples.feeds)


def unit_scores(
    name: str, analysis: Analysis, groups: Sequence[ChannelGroup], data: Calibration | None, progress: Steps
) -> tuple[Scores, Lacking]:
    """Scores of the units by a criterion, `(size,)` per group; and the groups that have none, with the operator that
    cuts them off. data: None for `synflow`. Raises `UserError` where gradients are no numbers."""
    from onnxprune.importance import slopes

    if name == "synflow":
        return _unit_flow(analysis, groups)
    assert data is not None
    formula = FORMULAS[name]
    shown = slopes.Slopes(
        analysis.model, calibrated(data), memory=data.memory, threads=data.threads, seed=data.seed
    )  # fmt: skip
    found, lacking = slopes.unit_slopes(
        analysis, groups, shown, formula.each, second=formula.second, progress=progress
    )  # fmt: skip
    scores = {group: formula.whole(v) for group, v in found.items()}
    _check(name, scores)
    return {g.name: scores[g.name] for g in groups if g.name in scores}, lacking


def _check(name: str, scores: Mapping[str, Array]) -> None:
    """Raise `UserError` for scores that are no numbers."""
    wrong = next((key for key, s in scores.items() if not np.isfinite(s).all()), None)
    if wrong is not None:
        raise UserError(
            f"--importance {name}: the gradient at {wrong} is no number; scale the data, or choose another importance"
        )


def _unit_flow(analysis: Analysis, groups: Sequence[ChannelGroup]) -> tuple[Scores, Lacking]:
    """SynFlow of units: what flows through their gates."""
    from onnxprune.importance.slopes import Units, differentiated
    from onnxprune.importance.synflow import Flow
    from onnxprune.runtime.session import session

    flow = Flow(analysis.model, analysis.coupling.shapes)
    units = Units(replace(analysis, model=flow.model), groups, flow.ones, 1, multiplied=True)
    graph = differentiated(
        units.model, flow.loss, list(units.names.values()), {n: x.shape for n, x in flow.ones.items()}
    )  # fmt: skip
    group_of = {vector: group for group, vector in units.names.items()}
    with session(graph.model) as s:
        given = {i.name for i in s.get_inputs()}
        feeds = {n: x for n, x in {**flow.ones, **flow.values_of({})}.items() if n in given}
        values = s.run(list(graph.names.values()), feeds) if graph.names else []
    scores = {group_of[v]: np.abs(np.asarray(g, np.float64)) for v, g in zip(graph.names, values, strict=True)}
    _check("synflow", scores)
    lacking = units.lacking | {group_of[v]: why for v, why in graph.blocked.items()}
    return {g.name: scores[g.name] for g in groups if g.name in scores}, lacking


GRADIENT_CRITERIA: dict[str, Criterion] = {
    **{name: Criterion(FORMULAS[name].help, "gradients", partial(unit_scores, name), blocks=True) for name in OWN},
    "synflow": Criterion(SYNFLOW, "gradients", partial(unit_scores, "synflow"), blocks=True, dataless=True),
}

__all__ = ["FORMULAS", "GRADIENT_CRITERIA", "Formula", "unit_scores"]
