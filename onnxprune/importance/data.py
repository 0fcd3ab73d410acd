"""How much every unit matters, from what its readers see on calibration data.

A `Reading` is one layer that reads units: moments of its rows (see layers/rows.py) on the whole model, its
matrix, and the unit of every row. A criterion maps what the readers of one group see to a score per unit `(size,)`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.calibration.options import MEMORY
from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.cost import CostModel
from onnxprune.graph.energy import HOROWITZ, PICO
from onnxprune.graph.ort import release_memory
from onnxprune.importance.criterion import Criterion, Scores, summary
from onnxprune.importance.weights import score as weight_scores
from onnxprune.layers.layer import Layer, linear_layers
from onnxprune.layers.rows import kernel_shape, matrix, positions, rows
from onnxprune.layers.sampling import ROWS_EACH, Sampling, rows_needed, sampling
from onnxprune.layers.values import Unsuitable, Values
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.stream import Stop, Stream, samples_in
from onnxprune.solvers.lasso import inner_products, removal_order
from onnxprune.solvers.least_squares import Moments
from onnxprune.solvers.obs import Reader, removal_costs
from onnxprune.solvers.threads import Beside
from onnxprune.structure.analysis import Analysis, ChannelGroup

RIDGE = 0.03
# operations for ranks of feature maps, of a layer and batch, and for one map at least; and samples: few of large maps,
# hundreds of small ones, by which units are told apart (Lin et al. 2020 take 500)
RANK_EFFORT, LEAST_EFFORT, FEWEST_MAPS = 100_000_000, 256, 8


@dataclass(eq=False)
class Statistics:
    """Of rows that layers may share. moments: of the rows; magnitude, square, zeros: mean magnitude, mean square and
    share of zeros of every row's entries, `(d,)`, where they are measured."""

    moments: Moments = field(default_factory=Moments)
    magnitude: Float = field(default_factory=lambda: np.zeros(0))
    square: Float = field(default_factory=lambda: np.zeros(0))
    zeros: Float = field(default_factory=lambda: np.zeros(0))

    def add(self, x: Array, *, magnitudes: bool) -> None:
        """Sum up a batch, `(n, d)`."""
        self.moments.add(x)
        if not magnitudes:
            return
        if not self.zeros.size:
            self.magnitude, self.square, self.zeros = (np.zeros(x.shape[1]) for _ in range(3))
        share = len(x) / max(self.moments.count, 1)
        of_x = ((self.magnitude, np.abs(x)), (self.square, np.square(x, dtype=np.float64)), (self.zeros, x <= 0))
        for total, now in of_x:
            total += share * (now.mean(0, dtype=np.float64) - total)


@dataclass(eq=False)
class Reading:
    """One layer, or one group of a grouped convolution.

    weight: `(d, o)`; components: of every row's channel, `(d,)`; seen: statistics of the rows; rank: mean rank of its
    feature maps.
    """

    layer: Layer
    group: int
    weight: Float
    components: Array
    seen: Statistics = field(default_factory=Statistics)
    rank: Float = field(default_factory=lambda: np.zeros(0))

    @property
    def moments(self) -> Moments:
        """Of the rows."""
        return self.seen.moments

    def forget(self) -> None:
        """Give the memory of the statistics back."""
        self.seen, self.rank = Statistics(), np.zeros(0)


def row_components(analysis: Analysis, layer: Layer, m: Float) -> Array:
    """Component of what every column of the layer's rows holds, -1 for an axis without ids, `(groups, in)`."""
    axes = analysis.coupling.axes(layer.source)
    ids = axes[layer.trait.inner(layer.node, len(axes))] if axes else None
    g, d, _ = m.shape
    if ids is None:
        return np.full((g, d), -1)
    return np.repeat(analysis.components.labels[ids], g * d // ids.size).reshape(g, d)


def find_readings(analysis: Analysis, groups: Sequence[ChannelGroup]) -> dict[str, list[Reading]]:
    """Group name -> the layers that read its units, in order; without moments."""
    values = Values(analysis.model)
    owner = analysis.owners(groups)
    out: dict[str, list[Reading]] = {g.name: [] for g in groups}
    for layer in linear_layers(analysis.model):
        try:
            m = matrix(layer, values)
        except Unsuitable:
            continue
        components = row_components(analysis, layer, m)
        if layer.group > 1 and (components == components[:, :1]).all():
            continue  # depthwise: it goes with its channels
        for part, (weight, channels) in enumerate(zip(m, components, strict=True)):
            reading = Reading(layer, part, weight, channels)
            for k in np.unique(owner[channels]):
                if k >= 0:
                    out[groups[k].name].append(reading)
    return out


def gather_moments(
    analysis: Analysis,
    readings: Sequence[Reading],
    source: Sequence[Feeds],
    *,
    measures: Collection[str] = (),
    threads: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fill in the moments of the readings in one pass over what the original model computes; layers that read the same
    rows share them.

    source: its inputs, batch by batch; measures: what else is measured, "magnitudes" and "ranks".
    """
    if not len(source):
        return
    values = Values(analysis.model)
    stream = Stream(analysis.model, source, threads=threads)
    views = _views(readings, values)
    stops = [Stop(v.layer.index, (v.layer.source,)) for v in views]
    plans: dict[int, Sampling] = {}
    for i, k, found in stream.walk(stops, [0]):  # which says how many positions there are
        view, x = views[k], found[views[k].layer.source]
        width = len(view.readings[0].weight)
        needed = rows_needed(width, len({r.group for r in view.readings}), ROWS_EACH)
        plans[k] = sampling(needed, positions(view.layer, x, view.kernel), len(source), samples_in(source))
        view.look(i, x, plans[k], measures, seed)
    asked = [replace(stop, batches=plans[k].batches) for k, stop in enumerate(stops)]
    total = max((p.batches for p in plans.values()), default=1)
    with Beside() as beside:
        for i, k, found in stream.walk(asked, range(1, total)):
            progress(i, total)
            beside(views[k].look, i, found[views[k].layer.source], plans[k], measures, seed)
    release_memory()
    progress(total, total)


@dataclass(frozen=True, eq=False)
class _View:
    """Rows that layers share; layer: the first of them; readings: of all, one per group first."""

    layer: Layer
    kernel: tuple[int, ...]
    readings: list[Reading]

    def look(self, batch: int, x: Array, plan: Sampling, measures: Collection[str], seed: int) -> None:
        """Add a batch of the source to the moments."""
        rng = np.random.default_rng([seed, zlib.crc32(self.layer.key.encode()), batch])
        by_group = rows(self.layer, x, self.kernel, plan.picked(positions(self.layer, x, self.kernel), rng))
        for group, seen in {r.group: r.seen for r in self.readings}.items():
            seen.add(by_group[group], magnitudes="magnitudes" in measures)
        if "ranks" in measures:
            for r in self.readings:
                _rank(r, x, self.layer.group)


SEEN = ("strides", "dilations", "pads", "auto_pad", "output_padding", "output_shape", "transA")  # attributes of rows


def _views(readings: Sequence[Reading], values: Values) -> list[_View]:
    """The readings by the rows that they read, in order; those that read the same share their statistics."""
    views: dict[str, _View] = {}
    for r in sorted(dict.fromkeys(readings), key=lambda r: r.layer.index):
        layer, kernel = r.layer, kernel_shape(r.layer, values)
        attributes = [layer.node.attr(name) for name in SEEN]
        view = views.setdefault(repr((layer.source, layer.trait.rows, layer.group, kernel, attributes)),
                                _View(layer, kernel, []))  # fmt: skip
        r.seen = next((other.seen for other in view.readings if other.group == r.group), r.seen)
        view.readings.append(r)
    return list(views.values())


def _rank(r: Reading, x: Array, groups: int) -> None:
    """Rank of every channel's map; of vectors whether they are not zero."""
    if r.layer.trait.convolves:
        maps = x.reshape(x.shape[0], x.shape[1], x.shape[2], -1)
    else:
        last = x.T if r.layer.node.attr("transA", 0) else x
        maps = last.reshape(-1, 1, 1, last.shape[-1]).transpose(0, 3, 1, 2)
    each = max(maps.shape[2] * maps.shape[3] * min(maps.shape[2:]), LEAST_EFFORT)
    maps = maps[: max(FEWEST_MAPS, RANK_EFFORT // (maps.shape[1] * each))]
    channels = np.array_split(np.arange(maps.shape[1]), groups)[r.group]
    shown = maps[:, channels].astype(np.float32)
    finite = np.asarray(np.isfinite(shown).all((-2, -1)))  # of what is no number, no rank
    mean_ranks = np.where(finite, np.linalg.matrix_rank(np.where(finite[..., None, None], shown, 0)), 0).mean(0)
    ranks = np.repeat(mean_ranks, len(r.weight) // len(channels))
    r.rank = ranks if not len(r.rank) else r.rank + ranks


# ---------------------------------------------------------------------------------------------------------------------
# Criteria
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Seen:
    """What one group's readers see. units: per reading the unit of every row, -1 for none of this group."""

    group: ChannelGroup
    readings: Sequence[Reading]
    units: Sequence[Array]
    energy: float = 0.0  # of one unit, joules
    ridge: float = RIDGE

    def mean(self, of: Callable[[Reading], Float]) -> Float:
        """A figure per row, averaged per unit within a reading, relative to its mean, then over the readings."""
        total = np.zeros(self.group.size)
        for r, units in zip(self.readings, self.units, strict=True):
            known = units >= 0
            total_of = np.bincount(units[known], of(r)[known], self.group.size)
            raw = total_of / np.maximum(np.bincount(units[known], minlength=self.group.size), 1)
            total += raw / max(float(raw.mean()), 1e-30)
        return np.asarray(total / max(len(self.readings), 1))


def activation(seen: Seen) -> Float:
    """mean magnitude of the activations (Molchanov et al. 2017, Pruning CNNs for Resource Efficient Inference)"""
    return seen.mean(lambda r: r.seen.magnitude)


def variance(seen: Seen) -> Float:
    """variance of the activations"""
    return seen.mean(lambda r: np.diag(r.moments.gram))


def apoz(seen: Seen) -> Float:
    """share of activations that are above zero (Hu et al. 2016, Network Trimming)"""
    return seen.mean(lambda r: 1 - r.seen.zeros)


def hrank(seen: Seen) -> Float:
    """mean rank of the feature maps (Lin et al. 2020, HRank)"""
    return seen.mean(lambda r: r.rank)


def wanda(seen: Seen) -> Float:
    """magnitude of the weights that read a unit times the norm of what they read (Sun et al. 2023, Wanda)"""
    return seen.mean(lambda r: np.abs(r.weight).sum(1) * np.sqrt(r.seen.square))


def energy(seen: Seen) -> Float:
    """wanda per joule that the unit costs, of arithmetic and of memory (Yang et al. 2017, Energy-Aware Pruning)"""
    return wanda(seen) / max(seen.energy, 1e-30)


def obs(seen: Seen) -> Float:
    """error of the readers' outputs when the units that are left make up for it (group OBS)"""
    readers = [Reader(r.moments.gram, r.weight, units) for r, units in zip(seen.readings, seen.units, strict=True)]
    return removal_costs(readers, seen.group.size, ridge=seen.ridge)


def regression(seen: Seen) -> Float:
    """penalty under which LASSO on the readers' outputs gives a unit up (He et al. 2017, Channel Pruning)"""
    total = np.zeros((seen.group.size, seen.group.size))
    for r, units in zip(seen.readings, seen.units, strict=True):
        share = inner_products(r.moments.gram, r.weight, units, seen.group.size)
        total += share / max(float(np.trace(share)), 1e-30)
    return removal_order(total)


DATA_CRITERIA: dict[str, Criterion] = {
    "activation": Criterion(summary(activation), "data", activation, measures=("magnitudes",)),
    "variance": Criterion(summary(variance), "data", variance),
    "apoz": Criterion(summary(apoz), "data", apoz, measures=("magnitudes",)),
    "hrank": Criterion(summary(hrank), "data", hrank, measures=("ranks",)),
    "wanda": Criterion(summary(wanda), "data", wanda, measures=("magnitudes",)),
    "energy": Criterion(summary(energy), "data", energy, measures=("magnitudes", "energy")),
    **{f.__name__: Criterion(summary(f), "data", f) for f in (obs, regression)},
}


def see(
    analysis: Analysis, group: ChannelGroup, readings: Sequence[Reading], *, energy: float = 0.0, ridge: float = RIDGE
) -> Seen:
    """The readings of one group with the units of their rows."""
    unit = analysis.units(group)
    known = [r for r in readings if r.moments.count]
    return Seen(group, known, [unit[r.components] for r in known], energy, ridge)


def measured(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    readings: Mapping[str, Sequence[Reading]],
    importance: str,
    *,
    ridge: float,
    jobs: int = 1,
) -> Scores:
    """Scores of groups whose readings have their moments, `(size,)` each; importance: of DATA_CRITERIA; ridge: in mean
    variances; jobs: groups at a time."""
    criterion = DATA_CRITERIA[importance]
    costs = analysis.costs() if "energy" in criterion.measures else None

    def one(group: ChannelGroup) -> Float:
        if not any(r.moments.count for r in readings[group.name]):  # no layer reads it: queries and keys inside a head
            return weight_scores(analysis, [group])[group.name]
        used = unit_energy(analysis, costs, group) if costs else 0.0
        seen = see(analysis, group, readings[group.name], energy=used, ridge=ridge)
        return np.asarray(criterion.function(seen))

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip((g.name for g in groups), pool.map(one, groups), strict=True))


def unit_energy(analysis: Analysis, costs: CostModel, group: ChannelGroup) -> float:
    """Joules of one run that a unit takes, in float32 and with weights from DRAM, by the figures of Horowitz (2014)."""
    whole, without = analysis.keep_ids({}), np.ones(group.size, bool)
    without[0] = False
    left = analysis.keep_ids({group.name: without})
    macs, weights = costs.macs(whole) - costs.macs(left), costs.bytes(whole) - costs.bytes(left)
    return PICO * (HOROWITZ.mac("float32") * macs + float(HOROWITZ.per_byte(np.array(np.inf))) * weights)


def group_batches(readings: dict[str, list[Reading]], memory: float) -> Iterator[list[str]]:
    """Names of groups, so many at a time that the moments of their readings fit into `memory` bytes."""
    names: list[str] = []
    taken: dict[int, int] = {}
    for name, group_readings in readings.items():
        added = {id(r): 16 * len(r.weight) ** 2 for r in group_readings}
        if names and sum((taken | added).values()) > memory:
            yield names
            names, taken = [], {}
        names.append(name)
        taken |= added
    if names:
        yield names


def score(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    source: Sequence[Feeds],
    *,
    importance: str,
    ridge: float = RIDGE,
    jobs: int = 1,
    memory: float = MEMORY,
    threads: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """A score for every unit by calibration data, `(size,)` per group; larger is more important.

    importance: of DATA_CRITERIA; source: inputs, batch by batch; ridge: in mean variances; jobs: groups at a time;
    memory: bytes for activations and moments.
    """
    readings = find_readings(analysis, groups)
    out: Scores = {}
    by_name = {g.name: g for g in groups}
    for names in group_batches(readings, memory):
        chosen = [r for name in names for r in readings[name]]
        gather_moments(
            analysis, chosen, source, measures=DATA_CRITERIA[importance].measures, threads=threads, seed=seed,
            progress=progress,
        )  # fmt: skip
        out |= measured(analysis, [by_name[n] for n in names], readings, importance, ridge=ridge, jobs=jobs)
        for r in chosen:
            r.forget()
    return {g.name: out[g.name] for g in groups}


__all__ = ["DATA_CRITERIA", "Reading", "gather_moments", "measured", "score"]
