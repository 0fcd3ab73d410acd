"""Scores of units by any importance: from weights, from data, by gates, or by a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.calibration.calibration import Calibration
from onnxprune.errors import OptionError
from onnxprune.evaluation.damage import damage
from onnxprune.importance.criterion import DEAD, Criterion, Scores
from onnxprune.importance.data import DATA_CRITERIA
from onnxprune.importance.data import score as score_by_data
from onnxprune.importance.depth import closeness, gains
from onnxprune.importance.gates import GATE_CRITERIA
from onnxprune.importance.gradients import GRADIENT_CRITERIA
from onnxprune.importance.shown import Ground
from onnxprune.importance.weights import WEIGHT_CRITERIA, weight_criterion
from onnxprune.importance.weights import score as score_by_weights
from onnxprune.progress import Progress, counting
from onnxprune.runtime.stream import Stream
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep
from onnxprune.structure.dead import dead_units

CRITERIA: dict[str, Criterion] = {
    **WEIGHT_CRITERIA, **DATA_CRITERIA, **GATE_CRITERIA, **GRADIENT_CRITERIA,
}  # fmt: skip
Scorer = Callable[[ChannelGroup], Any]  # a function of the caller's: group -> one score per unit, larger matters more


def criterion_of(name: str) -> Criterion | None:
    """The row of a criterion, also of `lp:0.5`; None for a name that has none, such as that of given scores."""
    return weight_criterion(name) or CRITERIA.get(name)


def given_scores(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Any] | Scorer, option: str, known: Collection[str]
) -> Scores:
    """Scores that the caller gives, by name of group or from a function of the group: float64 `(size,)` each.

    known: names of all groups of the model, of which those that are not cut need no scores but may have some.

    Raises `OptionError` for a group without scores, for scores of another length or that have no order, and for what
    the function raises.
    """
    out: Scores = {}
    for g in groups:
        if callable(scores):
            try:
                values = scores(g)
            except Exception as e:  # the user's code
                name = getattr(scores, "__name__", type(scores).__name__)
                raise OptionError(f"{option} {name}: the function raised {type(e).__name__}: {e}") from e
        elif g.name in scores:
            values = scores[g.name]
        else:
            raise OptionError(
                f"{option}: there are no scores for group {g.name!r} of {g.size} units; give an array for every group "
                f"that is cut, or leave it out with --ignore"
            )
        try:
            array = np.array(values, np.float64)
        except (TypeError, ValueError) as e:
            raise OptionError(f"{option}: the scores of group {g.name!r} are no numbers ({e})") from e
        if array.shape != (g.size,) or np.isnan(array).any():
            what = "hold NaN" if array.shape == (g.size,) else f"have the shape {array.shape}"
            raise OptionError(
                f"{option}: the scores of group {g.name!r} {what}; expected {g.size} numbers, one per unit"
            )
        out[g.name] = array
    if not callable(scores):
        unknown = sorted(set(scores) - set(known))
        if unknown:
            some = ", ".join(g.name for g in groups[:3])
            raise OptionError(f"{option}: {unknown[0]!r} is no group of the model; there are {some}, ...")
    return out


def ordered(analysis: Analysis, scores: Scores, importance: str, *, absorbed: bool = False, seed: int = 0) -> Scores:
    """Scores by a criterion in the order in which units go: first those that change nothing, and of those that data or
    gates cannot tell apart (all that are silent on them) the smaller weights.

    absorbed: whether the biases of readers absorb constants exactly, so that constant units change nothing either.
    """
    criterion = criterion_of(importance)
    assert criterion is not None
    if criterion.blind:
        return scores
    if criterion.by != "weights":
        units = [g for g in analysis.groups if g.name in scores and g.kind != "layers"]
        scores = by_weights_where_equal(scores, lambda: score_by_weights(analysis, units, seed=seed))
    return dead_first(analysis, scores, absorbed=absorbed)


def dead_first(analysis: Analysis, scores: Scores, *, absorbed: bool = False) -> Scores:
    """The scores, with `DEAD` for every unit that changes nothing."""
    dead = dead_units(analysis, absorbed=absorbed)
    return {name: np.where(dead[name], DEAD, s) if name in dead else s for name, s in scores.items()}


def by_weights_where_equal(scores: Scores, weights: Callable[[], Scores]) -> Scores:
    """The scores, equal ones of a group in the order of the weights: they differ in the last digits.

    weights: makes the scores by weights, where they are needed.
    """
    tied = {name: s for name, s in scores.items() if np.unique(s).size < s.size}
    if not tied:
        return scores
    by = weights()
    out = dict(scores)
    for name, s in tied.items():
        if name in by:
            order = np.lexsort((by[name], s))
            ordered = s[order]
            for k in range(1, len(ordered)):
                if ordered[k] <= ordered[k - 1]:
                    ordered[k] = np.nextafter(ordered[k - 1], np.inf)
            out[name] = np.empty_like(s)
            out[name][order] = ordered
    return out


def scores_of_weights(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    importance: str,
    *,
    keep: Keep | None = None,
    absorbed: bool = False,
    seed: int = 0,
) -> Scores:
    """Scores without data; of residual blocks the gains of their weights. absorbed: see `ordered`."""
    units = [g for g in groups if g.kind != "layers"]
    scores = score_by_weights(analysis, units, importance=importance, keep=keep, seed=seed) if units else {}
    scores |= gains(analysis, [g for g in groups if g.kind == "layers"])
    return ordered(analysis, scores, importance, absorbed=absorbed)


def gradient_scores(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    by: Ground,
    importance: str,
    progress: Progress,
    *,
    absorbed: bool = False,
) -> tuple[Scores, dict[str, str]]:
    """Scores by a criterion of gradients, and the groups that have none, with the reason.

    by: the samples; absorbed: see `ordered`.
    """
    scores, lacking = CRITERIA[importance].function(analysis, groups, by, counting(progress, "score"))
    return ordered(analysis, scores, importance, absorbed=absorbed, seed=by.seed), lacking


def scores_alone(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    data: Calibration,
    by: Ground,
    importance: str,
    prior: float,
    progress: Progress,
) -> tuple[Scores, dict[str, str]]:
    """Scores by any criterion as it gives them, in no other order, and the groups that have none, with the reason.

    by: the same samples for gradients; prior: as of `data_scores`.
    """
    criterion = criterion_of(importance)
    assert criterion is not None
    if criterion.by == "gradients":
        found: tuple[Scores, dict[str, str]] = criterion.function(analysis, groups, by, counting(progress, "score"))
        return found
    return _scores_alone(analysis, groups, data, importance, prior, progress), {}


def data_scores(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    data: Calibration,
    importance: str,
    prior: float,
    progress: Progress,
    *,
    absorbed: bool = False,
) -> Scores:
    """Scores of the units by any criterion, where there are data; of residual blocks what they change in the stream,
    unless the criterion scores them. prior: ridge, in mean variances; absorbed: see `ordered`. Not by gradients, see
    `gradient_scores`."""
    scores = _scores_alone(analysis, groups, data, importance, prior, progress)
    return ordered(analysis, scores, importance, absorbed=absorbed, seed=data.seed)


def _scores_alone(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    data: Calibration,
    importance: str,
    prior: float,
    progress: Progress,
) -> Scores:
    count = counting(progress, "score")
    blocks = [g for g in groups if g.kind == "layers"]
    criterion = criterion_of(importance)
    assert criterion is not None
    if criterion.by == "gates":
        return _losses_of_gates(analysis, groups, data, importance, {}, progress)
    scores = closeness(analysis, blocks, data.runs(), memory=data.memory, threads=data.threads) if blocks else {}
    units = [g for g in groups if g.kind != "layers"]
    if criterion.by == "weights":
        scores |= score_by_weights(analysis, units, importance=importance, seed=data.seed)
    else:
        scores |= score_by_data(
            analysis, units, data.runs(), importance=importance, ridge=prior, jobs=data.jobs, memory=data.memory,
            threads=data.threads, seed=data.seed, progress=count,
        )  # fmt: skip
    return scores


def losses_of_gates(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    data: Calibration,
    importance: str,
    *,
    gone: Mapping[str, Keep] | None = None,
    absorbed: bool = False,
    progress: Progress,
) -> Scores:
    """Scores by a criterion that closes gates, on a part of the data; of widths of streams, which have no gate, obs.

    gone: group -> units that are closed already; absorbed: see `ordered`.
    """
    scores = _losses_of_gates(analysis, groups, data, importance, gone or {}, progress)
    return ordered(analysis, scores, importance, absorbed=absorbed, seed=data.seed)


def _losses_of_gates(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    data: Calibration,
    importance: str,
    gone: Mapping[str, Keep],
    progress: Progress,
) -> Scores:
    streams = [g for g in groups if g.kind == "hidden"]
    gated = [g for g in groups if g.kind != "hidden"]
    _, held_out = data.split()
    source = data.runs(held_out)
    names = [o.name for o in analysis.model.proto.graph.output]
    whole = Stream(analysis.model, source, threads=data.threads)
    measure = damage(analysis.model, whole.compute(names), names, len(held_out))
    count = counting(progress, "score")
    by_gates = CRITERIA[importance].function
    scores: Scores = by_gates(
        analysis, gated, source, measure, gone=gone, memory=data.memory, threads=data.threads, progress=count
    )
    if streams:
        scores |= score_by_data(
            analysis, streams, data.runs(), importance="obs", memory=data.memory, threads=data.threads
        )
    return scores
