"""Penalties on whole units, under which a network learns to do without them before a cut.

A unit's values lie in many weights, along one axis of each: `Units` says where, for all groups that are cut at once. A
row of `REGULARIZERS` pulls at them, at every step, on the flat buffers of a training (`training.step`).

The penalties with a kink at zero (bn, group) are a share of what they were at first, so that a strength means the same
for every network: `strength * P(w) / P(w at the first step)`, in units of the loss.

What works with Adam, whose steps are about as long as its rate, however small or large the gradient:

- group: the gradient of the penalty is added to that of the loss, before the optimizer. Where Adam stands still then,
  the loss with its penalty does; a step towards zero after Adam's would pull at a weight whose loss is steep no less
  than at one whose loss is flat. Adam's rates add up to what weights are, so they get far enough.
- bn: scales are about one, which Adam's rates never reach. They take proximal gradient steps of their own (Daubechies
  et al. 2004), so long that the pull alone takes a scale to zero, and the optimizer leaves them.
- growing: what will go has no say. The weights become a part smaller at every step, whatever their gradient, as decay
  is decoupled in AdamW (Loshchilov and Hutter 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array, Float, Ids
from onnxprune.graph.node import walk_all
from onnxprune.graph.normalisation import SCALE
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep

if TYPE_CHECKING:
    from onnxprune.training.step import Step

REACH = 1.0  # times that the pull alone takes a scale to zero
HOLD = 8.0  # of the pull: no more of the gradient of the loss counts in a step
SMALL = 0.01  # of the largest unit of a group: below it a unit counts as nearly zero


@dataclass(frozen=True, eq=False)
class Part:
    """Where units lie in one weight of the model. shape: in which it is seen; axes: of these, along which units lie;
    units: numbers in the order of all penalised units, -1 for none, in the shape of these axes."""

    tensor: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    units: Ids

    def sums(self, values: Array, count: int) -> Float:
        """Sums of values, in the shape of the weight, per unit: `(count,)`."""
        x = values.reshape(self.shape)
        others = tuple(k for k in range(x.ndim) if k not in self.axes)
        each = x.sum(others, dtype=np.float64).ravel()
        inside = self.units.ravel() >= 0
        return np.bincount(self.units.ravel()[inside], each[inside].astype(np.float64), count).astype(np.float64)

    def spread(self, per_unit: Float) -> Array:
        """A number per unit where its values are, 0 elsewhere: float32, to be broadcast against `shape`."""
        values = np.append(per_unit, 0.0)[self.units].astype(np.float32)
        return values.reshape([d if k in self.axes else 1 for k, d in enumerate(self.shape)])


@dataclass(frozen=True, eq=False)
class Units:
    """Units of some groups, one after the other. groups: their names; spans: first unit of every group, and the end;
    parts: where their values lie."""

    groups: tuple[str, ...]
    spans: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """How many."""
        return self.spans[-1]


def units_of(analysis: Analysis, groups: Sequence[ChannelGroup], chosen: Mapping[str, Keep] | None = None) -> Units:
    """The units of groups with all their weights; of a residual block, all that its nodes read.

    chosen: group -> units that are meant, all by default.
    """
    spans, parts = [0], list[Part]()
    weights, readers = analysis.model.weights, _readers(analysis)
    for g in groups:
        meant = np.ones(g.size, bool) if chosen is None else chosen[g.name]
        number = np.append(np.where(meant, spans[-1] + np.cumsum(meant) - 1, -1), -1)
        for s in g.slices:
            shape, axes = _seen(weights[s.tensor].shape, s.axis, s.units)
            parts.append(Part(s.tensor, shape, axes, number[s.units]))
        for b in analysis.blocks if g.kind == "layers" else ():
            unit = np.flatnonzero(g.labels == analysis.components.labels[b.gate[0]])
            inside = {n.key for n in b.inside}
            for name in dict.fromkeys(i for n in b.inside for i in n.inputs) if unit.size else ():
                if name in weights and readers[name] <= inside:
                    parts.append(Part(name, (1, weights[name].size), (0,), number[unit]))
        spans.append(spans[-1] + int(meant.sum()))
    return Units(tuple(g.name for g in groups), tuple(spans), tuple(p for p in parts if (p.units >= 0).any()))


def _seen(shape: tuple[int, ...], axis: int, units: Ids) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape of a weight, and its axes along which the units of a slice lie."""
    if units.ndim > 1:  # the inner axis of a grouped convolution: groups, their outputs, inputs, kernel
        blocks, width = units.shape
        return (blocks, shape[0] // blocks, width, math.prod(shape[2:])), (0, 2)
    axis %= len(shape)
    return (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])), (1,)


def _readers(analysis: Analysis) -> Mapping[str, set[str]]:
    """Tensor -> keys of the nodes that read it."""
    found: dict[str, set[str]] = {}
    for n in walk_all(analysis.model.proto.graph, analysis.coupling.shapes.opsets):
        for name in n.inputs:
            found.setdefault(name, set()).add(n.key)
    return found


class Penalty:
    """A row of `REGULARIZERS` at work on one training. start: the sum that it goes by, at the first step; before,
    small_at_first: norms of the units then, and what `small` says; count: of the units."""

    def __init__(self, name: str, strength: float, units: Units, step: Step) -> None:
        """Raises `OptionError` where none of the units' weights is trained, or all are zero."""
        self.row, self.strength, self.layout, self.count = REGULARIZERS[name], strength, step.layout, units.count
        parameter = {stored.name: p for p, stored in step.form.places.items() if p in step.trained}
        known = [(parameter[p.tensor], p) for p in units.parts if p.tensor in parameter]
        self.parts = [(n, p) for n, p in known if math.prod(self.layout.places[n][1]) == math.prod(p.shape)]
        if not self.parts:
            raise OptionError(f"--regularize {name} has no effect: no weight of the units that are cut is trained")
        self.spans, self.start = units.spans, self.row.total(self, step.weights)
        if not self.start > 0:
            raise OptionError(f"--regularize {name} has no effect: the weights that it would pull at are zero already")
        self.before = self.norms(step.weights)
        self.small_at_first = self.small(step.weights)

    def __call__(self, weights: Array, gradients: Array, position: int, steps: int) -> None:
        """Before an optimizer's step, in place: step `position`, counted from 0, of so many."""
        self.row.pull(self, weights, gradients, self.row.pace(self, position, steps))

    def value(self, weights: Array) -> float:
        """What kinks add to the loss: a share of the first value, times the strength."""
        return self.strength * self.row.total(self, weights) / self.start

    @cached_property
    def sizes(self) -> Float:
        """How many weights every unit has, `(count,)`."""
        return sum(
            (p.sums(np.ones(p.shape, np.float32), self.count) for _, p in self.parts), start=np.zeros(self.count)
        )  # fmt: skip

    def norms(self, weights: Array) -> Float:
        """Euclidean norms of the units' weights, `(count,)`."""
        squares = (p.sums(np.square(self.layout.view(weights, n)), self.count) for n, p in self.parts)
        return np.asarray(np.sqrt(sum(squares, start=np.zeros(self.count))))

    def small(self, weights: Array) -> float:
        """Share of the units whose norm is at most `SMALL` times what that of the largest of its group was at first."""
        largest = [self.before[a:b].max(initial=0.0) for a, b in pairwise(self.spans)]
        bound = SMALL * np.repeat(largest, np.diff(self.spans))
        return float((self.norms(weights) <= bound).mean())


def _magnitudes(p: Penalty, weights: Array) -> float:
    """Sum of all magnitudes."""
    return sum(float(part.sums(np.abs(p.layout.view(weights, n)), p.count).sum()) for n, part in p.parts)


def _pace_of_scales(p: Penalty, position: int, steps: int) -> float:
    """How far a scale goes for a gradient of one: a line to zero, with which the pull alone takes a scale of the mean
    size to zero `REACH` times in all steps."""
    count = sum(int(part.sums(np.ones(part.shape), p.count).sum()) for _, part in p.parts)
    return REACH * (p.start / count) * 2 * (steps - position) / (steps * (steps + 1)) / (p.strength / p.start)


def _step_of_scales(p: Penalty, weights: Array, gradients: Array, pace: float) -> None:
    """A proximal step: along the gradient of the loss, of which no more counts than `HOLD` times the pull, and then
    towards zero, where a scale stays that would change its sign."""
    pull = p.strength / p.start
    for name, part in p.parts:
        w, g = (p.layout.view(x, name).reshape(part.shape) for x in (weights, gradients))
        ours = part.spread(np.ones(p.count)) > 0
        moved = w - np.float32(pace) * np.clip(g, -HOLD * pull, HOLD * pull)
        shrunk = np.sign(moved) * np.maximum(np.abs(moved) - np.float32(pace * pull), 0)
        w[...], g[...] = np.where(ours, shrunk, w), np.where(ours, 0, g)


def _norms(p: Penalty, weights: Array) -> float:
    """Sum of the units' norms, each times the root of how many weights it has (Yuan and Lin 2006)."""
    return float(np.sqrt(p.sizes) @ p.norms(weights))


def _through_the_optimizer(p: Penalty, position: int, steps: int) -> float:
    """The length of a step is for the optimizer to say."""
    return 1.0


def _pull_norms(p: Penalty, weights: Array, gradients: Array, pace: float) -> None:
    """d |w| / d w = w / |w| of every unit, beside the gradient of the loss; nothing of one that is zero."""
    norms = p.norms(weights)
    pull = np.divide(np.sqrt(p.sizes) * p.strength / p.start, norms, out=np.zeros(p.count), where=norms > 0)
    for name, part in p.parts:
        w, g = (p.layout.view(x, name).reshape(part.shape) for x in (weights, gradients))
        g += part.spread(pull) * w


def _squares(p: Penalty, weights: Array) -> float:
    """Half the sum of squares."""
    return 0.5 * float(np.square(p.norms(weights)).sum())


def _growing_pace(p: Penalty, position: int, steps: int) -> float:
    """What a step takes of what is left: a line from zero, whose sum over all steps is the strength, at most all."""
    return min(1.0, p.strength * 2 * (position + 1) / (steps * (steps + 1)))


def _shrink(p: Penalty, weights: Array, gradients: Array, pace: float) -> None:
    """The weights of all units become a part smaller."""
    pull = np.full(p.count, pace)
    for name, part in p.parts:
        w = p.layout.view(weights, name).reshape(part.shape)
        w -= part.spread(pull) * w


@dataclass(frozen=True)
class Regularizer:
    """help: for the user; strength: where nobody says; total: what is to become small; pull: what is done to weights
    and gradients before a step of the optimizer, of the length that `pace` says; scales: only scales of
    BatchNormalizations are pulled at; chosen: the units that go are chosen before; importance: by which units are
    chosen where nobody says, "" for what else is usual."""

    help: str
    strength: float
    total: Callable[[Penalty, Array], float]
    pull: Callable[[Penalty, Array, Array, float], None]
    pace: Callable[[Penalty, int, int], float]
    scales: bool = False
    chosen: bool = False
    importance: str = ""


REGULARIZERS: dict[str, Regularizer] = {
    "bn": Regularizer(
        "magnitudes of BatchNormalization scales (Liu et al. 2017, Network Slimming), by which units are chosen then",
        1.0, _magnitudes, _step_of_scales, _pace_of_scales, scales=True, importance="bn_scale",
    ),
    "group": Regularizer(
        "the norm of all weights of each unit that may go, times the root of their number (group lasso; Wen et al. "
        "2016)", 1.0, _norms, _pull_norms, _through_the_optimizer,
    ),
    "growing": Regularizer(
        "squares of the weights of the units that will go, chosen first, more from step to step (Wang et al. 2021)",
        7.0, _squares, _shrink, _growing_pace, chosen=True,
    ),
}  # fmt: skip


def penalised(
    analysis: Analysis, groups: Sequence[ChannelGroup], name: str, chosen: Mapping[str, Keep] | None = None
) -> Units:
    """The units that a regulariser pulls at, of groups that are cut. chosen: group -> those that go, where it needs
    that.

    Raises `OptionError` where there are none.
    """
    row = REGULARIZERS[name]
    units = units_of(analysis, groups, chosen if row.chosen else None)
    if row.scales:
        nodes = walk_all(analysis.model.proto.graph, analysis.coupling.shapes.opsets)
        scales = {n.input(SCALE) for n in nodes if n.op == "BatchNormalization"}
        have = [g for g in groups if any(s.tensor in scales for s in g.slices)]
        units = units_of(analysis, have)
        units = replace(units, parts=tuple(p for p in units.parts if p.tensor in scales))
        if not units.parts:
            raise OptionError(
                f"--regularize {name}: no BatchNormalization has a scale per unit of what is cut (one that was folded "
                f"into its layer has none any more); --regularize group pulls at the weights themselves"
            )
    if not units.count:
        raise OptionError(f"--regularize {name} has no effect: no unit was chosen to go")
    return units


__all__ = ["REGULARIZERS", "Part", "Penalty", "Regularizer", "Units", "penalised", "units_of"]
