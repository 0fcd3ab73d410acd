"""How much every unit of a group matters, from the weights alone.

A criterion maps one weight, as rows `(n, m)` with a row per index of the axis that makes the units, to a score per row
`(n,)`. Scores of the weights that make one group are divided by their mean, so that no layer outweighs another, and
averaged per unit. Where a BatchNormalization follows, its scale is folded into the rows first: a model scores the same
whether or not it was folded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.shapes import Array, run_node
from onnxprune.structure.coupling import Produce
from onnxprune.structure.groups import Analysis, ChannelGroup, Keep

Float = np.ndarray[Any, np.dtype[np.float64]]
Scores = dict[str, Float]  # group name -> float64 (size,)


@dataclass(frozen=True, eq=False)
class Site:
    """One weight that makes units: rows `(n, m)` float32, unit of every row `(n,)` (-1: none), BN scale `(n,)`."""

    node: str
    rows: Array
    units: Array
    bn_scale: Array | None


Criterion = Callable[[Site, np.random.Generator], Float]


def l1(site: Site, rng: np.random.Generator) -> Float:
    """sum of magnitudes (Li et al. 2017, Pruning Filters for Efficient ConvNets)"""
    return np.asarray(np.abs(site.rows).sum(1, dtype=np.float64))


def l2(site: Site, rng: np.random.Generator) -> Float:
    """Euclidean norm"""
    return np.asarray(np.sqrt(np.square(site.rows, dtype=np.float64).sum(1)))


def linf(site: Site, rng: np.random.Generator) -> Float:
    """largest magnitude"""
    return np.asarray(np.abs(site.rows).max(1), np.float64)


def bn_scale(site: Site, rng: np.random.Generator) -> Float:
    """magnitude of the BatchNormalization scale (Liu et al. 2017, Network Slimming); l2 where none follows"""
    return l2(site, rng) if site.bn_scale is None else np.abs(site.bn_scale).astype(np.float64)


def fpgm(site: Site, rng: np.random.Generator) -> Float:
    """sum of distances to the other filters (He et al. 2019, Filter Pruning via Geometric Median)"""
    w = site.rows.astype(np.float64)
    square = np.square(w).sum(1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * (w @ w.T), 0))
    return np.asarray(distance.sum(1), np.float64)


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


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "linf": linf,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "lamp": lamp,
    "random": random,
}


def score(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    *,
    importance: str = "l2",
    keep: Keep | None = None,
    seed: int = 0,
) -> Scores:
    """Score every unit; larger is more important.

    keep: ids that are still alive, `(ids,)`; what is gone counts as zero in the weights that read it.
    Raises `OptionError` for an unknown criterion.
    """
    if importance not in CRITERIA:
        raise OptionError(f"--importance {importance}: unknown; choose one of {', '.join(CRITERIA)}")
    criterion = CRITERIA[importance]
    place = np.full((len(analysis.solution.reason), 2), -1)  # component -> group, unit
    for k, g in enumerate(groups):
        place[g.labels, 0] = k
        place[g.labels, 1] = np.arange(g.size)
    total = [np.zeros(g.size) for g in groups]
    count = [np.zeros(g.size) for g in groups]
    rng = np.random.default_rng(seed)
    weights = Weights(analysis)
    for p in analysis.coupling.produces:
        axes = analysis.coupling.axes(p.weight)
        ids = axes[p.axis] if axes else None
        if ids is None:
            continue
        where = place[analysis.solution.labels[ids]]
        for k in np.unique(where[:, 0][where[:, 0] >= 0]):
            site = weights.site(p, np.where(where[:, 0] == k, where[:, 1], -1), keep)
            if site is None:
                continue
            mine = site.units >= 0
            units = site.units[mine]
            raw = criterion(site, rng)[mine]
            raw = raw / max(float(raw.mean()), 1e-30)
            total[k] += np.bincount(units, raw, groups[k].size)
            count[k] += np.bincount(units, minlength=groups[k].size)
    return {g.name: t / np.maximum(n, 1) for g, t, n in zip(groups, total, count, strict=True)}


class Weights:
    """Values of weights, also of those that constant nodes compute (Reshape, Transpose, DequantizeLinear)."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.model = analysis.model
        self.coupling = analysis.coupling
        self._maker: dict[str, Node] = {}
        self._batch_norm: dict[str, Node] = {}
        readers: dict[str, int] = defaultdict(int)
        for node in walk_all(self.model.proto.graph, self.coupling.shapes.opsets):
            for o in node.outputs:
                if o in self.coupling.shapes.constant:
                    self._maker[o] = node
            for i in node.inputs:
                readers[i] += 1
            if node.op == "BatchNormalization":
                self._batch_norm[node.input(0)] = node
        self._batch_norm = {k: v for k, v in self._batch_norm.items() if readers[k] == 1}

    def value(self, name: str) -> Array | None:
        """The constant's value, evaluated where nodes compute it; None where it is not constant."""
        if name in self.model.weights:
            return self.model.weights[name]
        node = self._maker.get(name)
        if node is None:
            return None
        feeds = {}
        for i in node.inputs:
            if i:
                value = self.value(i)
                if value is None:
                    return None
                feeds[i] = value
        values = run_node(node, feeds, self.model.proto)
        return values[node.outputs.index(name)]

    def site(self, p: Produce, units: Array, keep: Keep | None) -> Site | None:
        """The weight's rows along the axis that makes units."""
        w = self.value(p.weight)
        if w is None:
            return None
        w = np.asarray(w).astype(np.float32)
        if keep is not None:
            for axis, ids in enumerate(self.coupling.axes(p.weight)):
                if ids is not None and axis != p.axis and not keep[ids].all():
                    shape = [1] * w.ndim
                    shape[axis] = -1
                    w = w * keep[ids].reshape(shape)
        rows = np.moveaxis(w, p.axis, 0).reshape(w.shape[p.axis], -1)
        scale = None
        bn = self._batch_norm.get(p.output)
        if bn is not None:
            gamma, variance = self.value(bn.input(1)), self.value(bn.input(4))
            if gamma is not None and variance is not None and gamma.size == len(rows):
                scale = gamma.astype(np.float32)
                deviation = np.sqrt(variance.astype(np.float32) + bn.attr("epsilon", 1e-5))
                rows = rows * (scale / deviation)[:, None]
        return Site(p.node.label, rows, units, scale)


def describe() -> Iterator[tuple[str, str]]:
    """Name and one line of every criterion."""
    for name, f in CRITERIA.items():
        yield name, (f.__doc__ or "").strip()
