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

from onnxprune.errors import UserError
from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import infer
from onnxprune.importance.criterion import Criterion, Scores
from onnxprune.importance.shown import Ground
from onnxprune.layers.layer import Layer
from onnxprune.progress import Steps
from onnxprune.solvers.patterns import lowest_kept
from onnxprune.structure.analysis import Analysis, ChannelGroup

if TYPE_CHECKING:
    from onnxprune.importance.slopes import Each

Lacking = dict[str, str]  # what has no score -> why
FEW = 8  # samples whose weights' slopes have random signs together
ROUNDS = 100  # of SynFlow, as Tanaka et al. 2020 have them


@dataclass(frozen=True)
class Formula:
    """each: of the slope at a sample, None where it is that of the mean loss; whole: of the mean over samples; second:
    whether the gradient is multiplied with the Hessian; squares: whether `each` is a square; labels: as of `Ground.by`;
    temperature: as of `Loss`.
    """

    help: str
    each: Each | None = None
    whole: Each = np.asarray
    second: bool = False
    squares: bool = False
    labels: bool | None = True
    temperature: float = 1.0


def half_square(slope: Float) -> Float:
    """Of OBD: what the loss gains when x goes, where its second derivative is the square of the slope."""
    return np.square(slope) / 2


FORMULAS = {
    "taylor": Formula(
        "magnitude of x dL/dx of each sample, x the weight or the gate of a unit (Molchanov et al. 2019); needs labels",
        np.abs,
    ),
    "fisher": Formula(
        "half of (x dL/dx)^2 of each sample (Theis et al. 2018); without labels that of the outputs' own distribution",
        half_square, squares=True, labels=None,
    ),
    "obd": Formula(
        "x^2/2 times the diagonal of the Hessian, by Gauss-Newton, without labels (LeCun et al. 1990, Optimal Brain "
        "Damage)", half_square, squares=True, labels=False,
    ),
    "snip": Formula("magnitude of x dL/dx of the mean loss (Lee et al. 2019, SNIP); needs labels", whole=np.abs),
    "grasp": Formula(
        "x (H g), what the gradient loses without it, of class scores over 200 (Wang et al. 2020, GraSP); needs labels",
        second=True, temperature=200.0,
    ),
}  # fmt: skip
SYNFLOW = "what flows through it, of ones through the magnitudes of all weights (Tanaka et al. 2020, SynFlow)"


def unit_scores(
    name: str, analysis: Analysis, groups: Sequence[ChannelGroup], by: Ground, progress: Steps
) -> tuple[Scores, Lacking]:
    """Scores of the units by a criterion, `(size,)` per group; and the groups that have none, with the operator that
    cuts them off. Raises `UserError` where gradients are no numbers, `OptionError` where samples or labels lack."""
    from onnxprune.importance import slopes

    if name == "synflow":
        return _unit_flow(analysis, groups)
    formula = FORMULAS[name]
    shown = by.by(formula.labels, f"--importance {name}")
    runs = slopes.Slopes(
        analysis.model, shown, memory=by.memory, threads=by.threads, seed=by.seed, temperature=formula.temperature
    )
    found, lacking = slopes.unit_slopes(
        analysis, groups, runs, formula.each, second=formula.second, progress=progress
    )  # fmt: skip
    scores = {group: formula.whole(v) for group, v in found.items()}
    _check(name, scores)
    return {g.name: scores[g.name] for g in groups if g.name in scores}, lacking


def _check(name: str, scores: Mapping[str, Array], option: str = "--importance") -> None:
    """Raise `UserError` for scores that are no numbers."""
    wrong = next((key for key, s in scores.items() if not np.isfinite(s).all()), None)
    if wrong is not None:
        raise UserError(f"{option} {name}: the gradient at {wrong} is no number; scale the data, or choose another")


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


# Single weights


def entry_scores(
    name: str, model: Model, layers: Sequence[Layer], by: Ground, share: float, *, progress: Steps
) -> tuple[dict[str, Array], Lacking]:
    """Scores of the entries of every layer's weight as the layer reads it, float64, by initializer; and those that have
    none, with the reason. None is below zero, and weights that are zero score zero.

    layers: with a weight each; share: of all these weights that is to go. Raises as `unit_scores`.
    """
    if name == "synflow":
        found, lacking = _entry_flow(model, layers, share, progress)
    else:
        found, lacking = _entry_slopes(name, model, layers, by, progress)
    _check(name, found, option="--solver")
    least = min((float(s.min()) for s in found.values()), default=0.0)
    for layer in layers:
        if layer.initializer in found:
            s, w = found[layer.initializer], layer.read(model)
            found[layer.initializer] = np.where(w == 0, 0.0, s - min(least, 0.0) + np.finfo(np.float64).tiny)
    return found, lacking


def _entry_slopes(
    name: str, model: Model, layers: Sequence[Layer], by: Ground, progress: Steps
) -> tuple[dict[str, Array], Lacking]:
    from onnxprune.importance.slopes import MOST, Slopes, weight_slopes

    formula = FORMULAS[name]
    most = MOST if formula.each is None else FEW if formula.squares else 1
    shown = by.by(formula.labels, f"--solver {name}")
    runs = Slopes(
        model, shown, memory=by.memory, threads=by.threads, most=most, seed=by.seed, temperature=formula.temperature
    )
    found, lacking = weight_slopes(
        model, weights_of(model, layers), runs, formula.each, second=formula.second, signs=formula.squares,
        progress=progress,
    )  # fmt: skip
    scores, why = {}, {}
    for layer in layers:
        tensor = _tensor(layer)
        if tensor in found:
            s = formula.whole(found[tensor])
            for step in layer.stored.steps if tensor == layer.initializer and layer.stored is not None else ():
                s = s.transpose(step.perm) if step.perm else s
            scores[layer.initializer] = s
        else:
            why[layer.initializer] = lacking.get(tensor, "no gradient reaches it")
    return scores, why


def weights_of(model: Model, layers: Sequence[Layer]) -> dict[str, Array]:
    """What the weights of layers are differentiated by, with its values."""
    read = {_tensor(layer): layer.read(model) for layer in layers}
    return read | {_tensor(x): model.weights[x.initializer] for x in layers if _tensor(x) == x.initializer}


def _tensor(layer: Layer) -> str:
    """What a layer's weight is differentiated by: the initializer, which all that read it count for, where it holds
    numbers as they are; else what the layer reads."""
    stored = layer.stored
    assert stored is not None
    plain = stored.held.kind == "f" and all(step.perm or step.op == "Cast" for step in stored.steps)
    return layer.initializer if plain else layer.weight


def _entry_flow(
    model: Model, layers: Sequence[Layer], share: float, progress: Steps
) -> tuple[dict[str, Array], Lacking]:
    """SynFlow of weights: the round in which each goes, of as many as it takes until this share is gone, and within a
    round what flows through it; a layer thins out as what flows through it does, and none goes whole."""
    from onnxprune.importance.slopes import differentiated
    from onnxprune.importance.synflow import Flow
    from onnxprune.runtime.session import session

    flow = Flow(model, infer(model))
    lacking = {x.initializer: "nothing that flows meets it" for x in layers if x.weight not in flow.weights}
    of = {x.initializer: x for x in layers if x.initializer not in lacking}
    inputs = {w: flow.weights[x.weight].name for w, x in of.items()}
    graph = differentiated(flow.model, flow.loss, list(inputs.values()), {n: x.shape for n, x in flow.ones.items()})
    lacking |= {w: graph.blocked[name] for w, name in inputs.items() if name in graph.blocked}
    of = {w: x for w, x in of.items() if w not in lacking}
    alive = {w: np.abs(x.read(model)) for w, x in of.items()}
    total = sum(a.size for a in alive.values())
    out = {w: np.full(a.shape, np.inf) for w, a in alive.items()}
    ends = np.cumsum([0, *(a.size for a in alive.values())])
    with session(graph.model) as s:
        given = {i.name for i in s.get_inputs()}
        for k in range(1, ROUNDS + 2):
            progress(k - 1, ROUNDS + 1)
            feeds = {**flow.ones, **flow.values_of({of[w].weight: a for w, a in alive.items()})}
            values = s.run([graph.names[inputs[w]] for w in of], {n: x for n, x in feeds.items() if n in given})
            flows = {w: np.abs(feeds[inputs[w]] * np.asarray(g, np.float64)) for w, g in zip(of, values, strict=True)}
            top = max((float(f.max(initial=0.0)) for f in flows.values()), default=0.0) or 1.0
            left = round(total * (1 - share) ** (k / ROUNDS)) if k <= ROUNDS else 0
            every = np.concatenate([np.where(out[w] < np.inf, -1.0, f).ravel() for w, f in flows.items()])
            gone = ~lowest_kept(every, total - left)
            for w, a, b in zip(of, ends, ends[1:], strict=False):
                goes = gone[a:b].reshape(out[w].shape) & (out[w] == np.inf)
                out[w][goes] = k + flows[w][goes] / (2 * top)
                alive[w] = np.where(out[w] < np.inf, 0, alive[w]).astype(alive[w].dtype)
    progress(ROUNDS + 1, ROUNDS + 1)
    return dict(out), lacking


def _row(name: str, help: str, labels: bool | None) -> Criterion:
    needy = labels is True
    dataless = needy or name == "synflow"
    return Criterion(help, "gradients", partial(unit_scores, name), blocks=True, dataless=dataless, labels=needy)


GRADIENT_CRITERIA: dict[str, Criterion] = {
    **{name: _row(name, row.help, row.labels) for name, row in FORMULAS.items()},
    "synflow": _row("synflow", SYNFLOW, None),
}

__all__ = ["FORMULAS", "GRADIENT_CRITERIA", "Formula", "unit_scores", "weights_of"]
