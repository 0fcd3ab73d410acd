"""How much every unit of a group matters, from the weights alone.

A score of rows maps one weight, as rows `(n, m)` with a row per index of the axis that makes (or reads) the units, to a
number per row `(n,)`. Scores of the weights of one group are divided by their mean, so that no layer outweighs another,
and averaged per unit. Where a BatchNormalization follows, its scale is folded into the rows first: a model scores the
same whether or not it was folded. A criterion scores the weights that make the units, or multiplies that with a score
of those that read them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.constants import Constants
from onnxprune.graph.limits import LIMIT
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.normalisation import SCALE, VARIANCE, batchnorm_factor
from onnxprune.graph.quantized import numbers
from onnxprune.graph.traits import TRAITS
from onnxprune.importance.criterion import Criterion, Scores, summary
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep


@dataclass(frozen=True, eq=False)
class Site:
    """One weight: rows `(n, m)` float32, component of every row `(n,)`, BN scale of every row `(n,)` or None."""

    node: str
    rows: Array
    units: Array
    bn_scale: Array | None


RowScore = Callable[[Site, np.random.Generator], Float]


def l1(site: Site, rng: np.random.Generator) -> Float:
    """sum of magnitudes (Li et al. 2017, Pruning Filters for Efficient ConvNets)"""
    return np.asarray(np.abs(site.rows).sum(1, dtype=np.float64))


def l2(site: Site, rng: np.random.Generator) -> Float:
    """Euclidean norm"""
    return np.asarray(np.sqrt(np.square(site.rows, dtype=np.float64).sum(1)))


def linf(site: Site, rng: np.random.Generator) -> Float:
    """largest magnitude"""
    return np.asarray(np.abs(site.rows).max(1), np.float64)


def lp(site: Site, rng: np.random.Generator, p: float = 0.5) -> Float:
    """norm of any exponent P above 0, as lp:0.5; lp:1 and lp:2 are l1 and l2"""
    w = np.abs(site.rows, dtype=np.float64)
    top = w.max(1, keepdims=True, initial=0.0)
    # of the mean in place of the sum: a factor, the same for all rows, that small exponents would let overflow
    mean = np.power(w / np.where(top > 0, top, 1), p).mean(1) if w.shape[1] else np.zeros(len(w))
    return np.asarray(top[:, 0] * np.power(mean, 1 / p))


def bn_scale(site: Site, rng: np.random.Generator) -> Float:
    """magnitude of the BatchNormalization scale (Liu et al. 2017, Network Slimming); l2 where none follows"""
    return l2(site, rng) if site.bn_scale is None else np.abs(site.bn_scale).astype(np.float64)


def fpgm(site: Site, rng: np.random.Generator) -> Float:
    """sum of distances to the other filters (He et al. 2019, Filter Pruning via Geometric Median)"""
    w = site.rows.astype(np.float64)
    square = np.square(w).sum(1)
    out = np.empty(len(w))
    step = max(1, LIMIT // (32 * max(len(w), 1)))
    for i in range(0, len(w), step):  # rows at a time: there are as many distances as rows, squared
        part = slice(i, i + step)
        distance = np.sqrt(np.maximum(square[part, None] + square[None] - 2 * (w[part] @ w.T), 0))
        out[part] = distance.sum(1)
    return out


def lamp(site: Site, rng: np.random.Generator) -> Float:
    """squared norm over the sum of those at least as large (Lee et al. 2021, LAMP)"""
    square = np.square(site.rows, dtype=np.float64).sum(1)
    order = np.argsort(square)
    tail = np.cumsum(square[order][::-1])[::-1]
    out = np.empty_like(square)
    out[order] = square[order] / np.maximum(tail, 1e-30)
    return np.asarray(out)


def random(site: Site, rng: np.random.Generator) -> Float:
    """uniform noise; a baseline"""
    return rng.random(len(site.rows))


WEIGHT_CRITERIA: dict[str, Criterion] = {
    "path": Criterion(
        "what makes a unit (bn_scale, or l2) times the l2 norm of what reads it: its share of the path norm",
        "weights", bn_scale, reads=l2, rowwise=True,
    ),
    **{f.__name__: Criterion(summary(f), "weights", f, rowwise=True) for f in (l1, l2, linf)},
    "lp:P": Criterion(summary(lp), "weights", lp, rowwise=True),
    "bn_scale": Criterion(summary(bn_scale), "weights", bn_scale, rowwise=True),
    **{f.__name__: Criterion(summary(f), "weights", f) for f in (fpgm, lamp)},
    "random": Criterion(summary(random), "weights", random, blind=True),
}  # fmt: skip
DEFAULT = "path"  # tools/accuracy.py: without data it keeps most


def exponent(name: str) -> float | None:
    """P of `lp:P`; None for another name. Raises `ValueError` for no number above 0."""
    kind, mark, text = name.partition(":")
    if kind != "lp" or not mark:
        return None
    p = float(text)
    if not 0 < p < np.inf:
        raise ValueError(text)
    return p


def weight_criterion(name: str) -> Criterion | None:
    """The criterion of a name, None for one that does not go by weights."""
    known = WEIGHT_CRITERIA.get(name)
    p = None if known else exponent(name)
    return known if p is None else replace(WEIGHT_CRITERIA["lp:P"], function=partial(lp, p=p))


def score(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    *,
    importance: str = DEFAULT,
    keep: Keep | None = None,
    seed: int = 0,
) -> Scores:
    """A score for every unit by the weights, `(size,)` per group; larger is more important.

    keep: ids that are still alive, `(ids,)`; what is gone counts as zero in the weights that read it.
    Raises `OptionError` for an unknown criterion.
    """
    criterion = weight_criterion(importance)
    if criterion is None:
        raise OptionError(f"--importance {importance}: unknown; choose one of {', '.join(WEIGHT_CRITERIA)}")
    owners, unit = analysis.owners(groups), np.zeros(len(analysis.components.reason) + 1, np.int64)
    for g in groups:
        unit[g.labels] = np.arange(g.size)
    place = np.stack([owners, np.concatenate([unit[analysis.components.homes], [[0, 0]]])])  # (2, components + 1, 2)
    rng = np.random.default_rng(seed)
    weights = WeightValues(analysis)

    def scored(units: Array) -> bool:
        return bool((owners[units] >= 0).any())

    scores = _aggregate(weights.makers(keep, scored), criterion, criterion.function, groups, place, rng)
    if criterion.reads is None:
        return scores
    read = _aggregate(weights.readers(keep, scored), criterion, criterion.reads, groups, place, rng)
    return {name: s * read[name] if read[name].any() else s for name, s in scores.items()}


def _aggregate(
    sites: Iterator[Site],
    criterion: Criterion,
    function: RowScore,
    groups: Sequence[ChannelGroup],
    place: Array,
    rng: np.random.Generator,
) -> Scores:
    """Mean over the sites of every unit, each site relative to its own mean."""
    total = [np.zeros(g.size) for g in groups]
    count = [np.zeros(g.size) for g in groups]
    for site in sites:
        owners, unit = place[:, site.units]  # (n, 2)
        hit = np.unique(owners)
        scores = _by_blocks(function, site, rng) if criterion.rowwise else function(site, rng)
        for k in hit[hit >= 0]:
            row, which = np.nonzero(owners == k)
            units, raw = unit[row, which], scores[row]
            total[k] += np.bincount(units, raw / max(float(raw.mean()), 1e-30), groups[k].size)
            count[k] += np.bincount(units, minlength=groups[k].size)
    return {g.name: t / np.maximum(n, 1) for g, t, n in zip(groups, total, count, strict=True)}


BLOCK = 1 << 24  # values of a weight that are scored at a time, where rows do not depend on each other


def _by_blocks(function: RowScore, site: Site, rng: np.random.Generator) -> Float:
    """The scores of rows that do not depend on each other, some rows at a time."""
    if site.rows.size <= BLOCK:
        return function(site, rng)
    step = max(1, BLOCK // site.rows.shape[1])
    parts = []
    for i in range(0, len(site.rows), step):
        scale = None if site.bn_scale is None else site.bn_scale[i : i + step]
        parts.append(function(Site(site.node, site.rows[i : i + step], site.units[i : i + step], scale), rng))
    return np.concatenate(parts)


def _same(rows: Array, read: Array) -> bool:
    """Whether the rows of a weight are what is read, one for each or in blocks of several."""
    return np.array_equal(rows, read) or np.array_equal(rows, read[np.flatnonzero(np.diff(read, prepend=-1))])


class WeightValues:
    """Values of weights, also of those that constant nodes compute (Reshape, Transpose, DequantizeLinear)."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.model = analysis.model
        self.coupling = analysis.coupling
        self._constants = Constants(self.coupling.shapes)
        self._batch_norm: dict[str, Node] = {}
        readers: dict[str, int] = defaultdict(int)
        for node in walk_all(self.model.proto.graph, self.coupling.shapes.opsets):
            for i in node.inputs:
                readers[i] += 1
            if node.op == "BatchNormalization":
                self._batch_norm[node.input(0)] = node
        self._batch_norm = {k: v for k, v in self._batch_norm.items() if readers[k] == 1}

    def value(self, name: str) -> Array | None:
        """The constant's value, evaluated where nodes compute it; None where it is not constant, or too large."""
        return self._constants(name)

    def makers(self, keep: Keep | None, scored: Callable[[Array], bool]) -> Iterator[Site]:
        """Every weight along the axis that makes units, where any of the components is to be scored."""
        labels = self.analysis.components.labels
        for p in self.coupling.produces:
            axes = self.coupling.axes(p.weight)
            ids = axes[p.axis] if axes else None
            w = None if ids is None or not scored(labels[ids]) else self._alive(p.node, p.weight, p.axis, keep)
            if w is None or ids is None:
                continue
            rows = np.moveaxis(w, p.axis, 0).reshape(w.shape[p.axis], -1)
            scale = None
            bn = self._batch_norm.get(p.output)
            if bn is not None:
                gamma, variance = self.value(bn.input(SCALE)), self.value(bn.input(VARIANCE))
                if gamma is not None and variance is not None and gamma.size == len(rows):
                    scale = gamma.astype(np.float32)
                    rows = rows * batchnorm_factor(bn, scale, variance.astype(np.float32))[:, None]
            yield Site(p.node.label, rows, labels[ids], scale)

    def readers(self, keep: Keep | None, scored: Callable[[Array], bool]) -> Iterator[Site]:
        """Every weight along the axis that is summed over the units, where any of the components is to be scored."""
        labels = self.analysis.components.labels
        for consume in self.coupling.consumes:
            axes = self.coupling.axes(consume.node.input(consume.input))
            ids = axes[consume.axis] if axes else None
            for name in consume.node.inputs if ids is not None and scored(labels[ids]) else ():
                if not name or name not in self.coupling.shapes.constant or len(self.coupling.axes(name)) < 2:
                    continue
                if consume.node.op in TRAITS and consume.node.inputs.index(name) in TRAITS[consume.node.op].steps:
                    continue
                grouped = self.coupling.grouped.get(name)
                if grouped is not None:
                    w = self._alive(consume.node, name, 1, keep)
                    if w is not None:  # (O, I/g, ...) -> one row per group and inner index
                        rows = np.moveaxis(w.reshape(len(grouped), -1, *w.shape[1:]), 2, 1)
                        yield Site(consume.node.label, rows.reshape(grouped.size, -1), labels[grouped.ravel()], None)
                    continue
                for axis, other in enumerate(self.coupling.axes(name)):
                    if other is not None and ids is not None and _same(labels[other], labels[ids]):
                        w = self._alive(consume.node, name, axis, keep)
                        if w is not None:
                            rows = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
                            yield Site(consume.node.label, rows, labels[other], None)
                        break

    def _alive(self, node: Node, name: str, axis: int, keep: Keep | None) -> Array | None:
        """The weight of a node in float32; what is gone along its other axes counts as zero."""
        w = numbers(node, name, self.value)
        if w is not None and keep is not None:
            for k, ids in enumerate(self.coupling.axes(name)):
                if ids is not None and k != axis and not keep[ids].all():
                    shape = [1] * w.ndim
                    shape[k] = -1
                    w = w * keep[ids].reshape(shape)
        return w
