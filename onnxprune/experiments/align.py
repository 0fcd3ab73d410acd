"""Matching the hidden units of one model to those of another one of the same graph (Git Re-Basin; Ainsworth, Hayase and
Srinivasa 2022, arXiv:2209.04836, weight matching).

Two networks that were trained apart may be alike but for the order of their hidden units. Group after group the units
of B take the order in which their weights are most like A's: the largest sum of products of weights, which is a linear
assignment as long as the other groups stay as they are. That is repeated until nothing changes; the sum only grows.

What a unit is, and where it lies in all weights, the channel groups say: channels, widths of residual streams, heads,
dimensions of a head, experts. Which orders are exact is what `sparsity.permute.Places` knows, as units that occur in
different blocks of a grouped convolution do not trade places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array, Ids
from onnxprune.graph.folding import fold
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import concrete_inputs, infer
from onnxprune.graph.step import Step
from onnxprune.progress import Steps
from onnxprune.runtime.feeds import random_feeds
from onnxprune.sparsity.permute import Places, rearranged, reordered
from onnxprune.structure.analysis import Analysis, ChannelGroup, Slice
from onnxprune.structure.check import check_same, running
from onnxprune.structure.groups import analyze
from onnxprune.training.initial import statistics
from onnxprune.training.weights import FLOATS, trainable

SWEEPS = 100  # over all groups, at most
LEAST = 1e-9  # of the products of A with itself: a gain below that is rounding
TOLERANCE = 1e-4  # of the largest output, by which a permuted model may differ
Weights = dict[str, Array]


@dataclass(frozen=True)
class Alignment:
    """reference: A in the form that B has now, whose weights are constants where nodes computed them of constants;
    moved: group -> units that have another place; kept: group -> why its order stays, where it cannot change; before,
    after: cosine of the angle between the weights of A and B; sweeps: over all groups; difference: of B's outputs
    before and after, over the largest."""

    reference: Model
    moved: Mapping[str, int]
    kept: Mapping[str, str]
    before: float
    after: float
    sweeps: int
    difference: float


def align(a: Model, b: Model, *, seed: int = 0, progress: Steps = lambda done, total: None) -> Step[Alignment]:
    """B with its hidden units in the order in which they are most like A's, which computes what B computes.

    a, b: models of one graph; seed: of the order in which groups are visited. Raises `VerificationError` where the
    outputs of B change.
    """
    analysis, a = analyze(b), fold(infer(a, None))
    places, names = Places(analysis), compared(a, analysis.model)
    x: Weights = {n: a.weights[n].astype(np.float64) for n in names}
    y: Weights = {n: analysis.model.weights[n].astype(np.float64) for n in names}
    groups = [g for g in analysis.groups if g.slices]
    moved, kept = np.arange(analysis.coupling.size), dict[str, str]()
    before, least = _cosine(x, y), LEAST * sum(float(np.vdot(w, w)) for w in x.values())
    rng, sweep, changed = np.random.default_rng(seed), 0, True
    while changed and sweep < SWEEPS:
        changed = False
        for k, g in enumerate(rng.permutation(len(groups))):
            progress(k, len(groups))
            order = _matched(groups[g], places.classes(groups[g]), x, y)
            if (order == np.arange(len(order))).all():
                continue
            new = places.move(groups[g], order)
            why = places.problem(new) or _fixed(analysis, names, new)
            if why:
                kept[groups[g].name] = why
                continue
            touched = sorted(y.keys() & {s.tensor for s in groups[g].slices})  # the sum is the same every time
            other = {n: reordered(analysis.coupling, n, y[n], new) for n in touched}
            if sum(float(np.vdot(x[n], w - y[n])) for n, w in other.items()) > least:
                y |= other
                moved, changed = moved[new], True
        sweep += 1
    progress(len(groups), len(groups))
    out = rearranged(analysis, moved)
    return Step(out, Alignment(a, _places_of(places, groups, moved), kept, before, _cosine(x, y), sweep, _same(b, out)))


def compared(a: Model, b: Model) -> list[str]:
    """Weights by which units are compared: those that are trained, and others of floating types in which models differ,
    but no statistics."""
    trained = set(trainable(b))
    return [
        name for name, w in b.weights.items()
        if w.dtype in FLOATS and w.size and name in a.weights and name not in statistics(b)
        and (name in trained or not np.array_equal(a.weights[name], w))
    ]  # fmt: skip


def _matched(group: ChannelGroup, classes: Ids, x: Weights, y: Weights) -> Ids:
    """Unit of B that fits the place of each unit of A best, `(size,)`, among those of its class."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    order = np.arange(group.size)
    for c in np.unique(classes):
        own = np.flatnonzero(classes == c)
        if own.size < 2:
            continue
        alike = np.zeros((own.size, own.size))
        for s in group.slices:
            if s.tensor in x:
                for one, other in zip(_rows(s, own, x[s.tensor]), _rows(s, own, y[s.tensor]), strict=True):
                    alike += one @ other.T
        order[own] = own[linear_sum_assignment(alike, maximize=True)[1]]
    return order


def _rows(s: Slice, own: Ids, w: Array) -> Iterator[Array]:
    """The values of some units in a weight, a row per unit, `(own, values)`; each block of a grouped convolution by
    itself."""
    blocks = [(w, s.axis, s.units)]
    if s.units.ndim > 1:
        grouped = w.reshape(len(s.units), -1, *w.shape[1:])  # (g, O/g, I/g, k...)
        blocks = [(part, 1, units) for part, units in zip(grouped, s.units, strict=True)]
    for part, axis, units in blocks:
        at = np.flatnonzero(np.isin(units, own))
        if at.size:
            at = at[np.argsort(units[at], kind="stable")]
            yield np.moveaxis(np.take(part, at, axis), axis, 0).reshape(len(own), -1)


def _fixed(analysis: Analysis, names: list[str], moved: Ids) -> str:
    """Why an order would change what is the same in both models; empty where it would not."""
    model = analysis.model
    free = {*names, *statistics(model)}
    for name, w in model.weights.items():
        if name not in free:
            new = reordered(analysis.coupling, name, w, moved)
            if new is not w and not np.array_equal(new, w):
                return f"{name}, which is not trained, would change"
    return ""


def _places_of(places: Places, groups: list[ChannelGroup], moved: Ids) -> dict[str, int]:
    """Group -> units that have another place, of those where some have."""
    out = {}
    for group in groups:
        units = places.units(group)
        count = np.unique(units[(units >= 0) & (units != units[moved])]).size
        if count:
            out[group.name] = int(count)
    return out


def _cosine(x: Weights, y: Weights) -> float:
    products = [sum(float(np.vdot(p[n], q[n])) for n in x) for p, q in ((x, y), (x, x), (y, y))]
    return products[0] / max(float(np.sqrt(products[1] * products[2])), 1e-30)


def _same(b: Model, out: Model) -> float:
    """By how much outputs differ on random inputs, over the largest."""
    shapes = infer(b, None)
    guesses = [random_feeds(b, shapes, given, seed=0) for given in concrete_inputs(b, None)]
    feeds, float32 = running(b, guesses, measured=False)
    return check_same(b, out, feeds, TOLERANCE, "the new order of hidden units", float32=float32)[0]


__all__ = ["Alignment", "align"]
