"""Order the channels of a model so that N:M keeps more of it (Pool and Yu 2021), at no cost when it runs.

The inputs of a layer may stand in any order if what makes them stands in the same. A channel group says where its units
are in every weight, also across a residual stream: all layers that read the group share one order, which
`solvers.permutation` finds on their stacked saliency, each layer divided by its total.

When is the new order exact? Every index of every axis has an id, and rules tie the ids of the elements that meet. A
unit gives its place to another one, occurrence by occurrence along each axis: a permutation of ids. The model computes
the same if the permutation maps the ties of every node onto ties of this node, and every block of a grouped
convolution onto itself: what met before still meets. Along an axis that is a product (flattened, split into groups,
shuffled) a unit depends on one factor alone, so occurrences in order have the same other coordinates. What rules do not
tie is checked as well: numbers computed of shapes, lists in attributes, weights that a caller may replace. Units trade
places where they occur equally often along every axis and in every block. What is not certain stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.formats.patterns import NMPattern
from onnxprune.graph.arrays import Array, Ids
from onnxprune.graph.io import Model
from onnxprune.graph.node import walk_all
from onnxprune.layers.layer import Layer
from onnxprune.progress import Steps
from onnxprune.solvers.patterns import n_of_m
from onnxprune.solvers.permutation import best_order, retained
from onnxprune.structure.analysis import Analysis, ChannelGroup
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.groups import analyze

PERMUTED_KINDS = ("channels", "hidden")
UNTIED = {"Shape", "Size", "ImageScaler"}  # what they make or hold per index is no weight
ENTRIES = 1 << 26  # of stacked saliency; of more rows a sample


@dataclass(frozen=True)
class Permuted:
    """A group in its new order. before, after: share of the saliency of `layers` that N:M keeps, a mean in 0 to 1."""

    group: str
    layers: tuple[str, ...]
    before: float
    after: float


@dataclass(frozen=True)
class _Reader:
    """A layer that reads units of a group. units: along the axis of N:M, -1 for none, for every group of a grouped
    convolution, `(groups, L)`; ids: of the same."""

    layer: Layer
    ids: Ids
    units: Ids

    def runs(self, m: int) -> list[Ids] | None:
        """The units of every group in order; None where they repeat, are torn, or begin inside a stripe."""
        out = []
        for row in self.units:
            at = np.flatnonzero(row >= 0)
            run = row[at]
            if at.size and (at[0] % m or at[-1] - at[0] + 1 != at.size or np.unique(run).size != run.size):
                return None
            out.append(run)
        return out


def permute(
    model: Model,
    layers: Sequence[Layer],
    pattern: NMPattern,
    saliency: Callable[[Layer], Array],
    *,
    input_shapes: dict[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    progress: Steps = lambda done, total: None,
) -> tuple[Model, list[Permuted], list[str]]:
    """The model with its channels in an order in which `pattern` keeps more, what was permuted, and notes.

    saliency: of a layer's weight in this model, in the weight's own shape, not negative. The model that comes in is not
    changed; the result computes the same up to the order of sums. A group that would not gain stays as it is.
    """
    analysis = analyze(model, input_shapes)
    places = Places(analysis)
    groups = [g for g in analysis.groups if g.kind in PERMUTED_KINDS]
    once = list({layer.initializer: layer for layer in layers if not layer.inside and not layer.turned}.values())
    moved = np.arange(analysis.coupling.size)  # id -> the id whose elements take its place
    done: list[Permuted] = []
    notes: list[str] = []

    def lossless(readers: Sequence[_Reader]) -> bool:
        """Whether the pattern holds as it is."""
        blocks = (r.layer.blocks(saliency(r.layer)) for r in readers)
        return not any(b[~n_of_m(b, pattern.n, pattern.m)].any() for b in blocks)

    for k, group in enumerate(groups):
        progress(k, len(groups))
        readers = places.readers(group, once)
        order = (
            None if lossless(readers) else _order(readers, group.size, places.classes(group), pattern, saliency, seed)
        )
        if order is None or (order == np.arange(group.size)).all():
            continue
        new = places.move(group, order)
        problem = places.problem(new)
        if problem:
            notes.append(f"{group.name}: its channels keep their order: {problem}")
            continue
        before, after = _shares(readers, new, pattern, saliency)
        if after > before:
            moved = np.where(new != np.arange(len(new)), new, moved)
            done.append(Permuted(group.name, tuple(r.layer.name for r in readers), before, after))
    progress(len(groups), len(groups))
    return rearranged(analysis, moved) if done else model, done, notes


def rearranged(analysis: Analysis, moved: Ids) -> Model:
    """The model with the elements of id `moved[i]` in the place of id i, `(ids,)`, in all weights."""
    out = analysis.model.copy()
    for name, w in analysis.model.weights.items():
        new = reordered(analysis.coupling, name, w, moved)
        if new is not w:
            new.flags.writeable = False
            out.weights[name] = new
    return out


def reordered(c: Coupling, name: str, w: Array, moved: Ids) -> Array:
    """A weight with the elements of id `moved[i]` in the place of id i, `(ids,)`; itself where nothing moves."""
    new = w
    for axis, ids in enumerate(c.base.get(name, ())):
        if ids is not None and (moved[ids] != ids).any():
            new = np.take(new, moved[ids] - ids[0], axis)
    inner = c.grouped.get(name)
    if inner is not None and (moved[inner] != inner).any():
        grouped = new.reshape(len(inner), -1, *new.shape[1:])  # (g, O/g, I/g, k...)
        new = np.concatenate([np.take(g, i, 1) for g, i in zip(grouped, _inner(moved, inner), strict=True)])
    return new


def _inner(moved: Ids, ids: Ids) -> Ids:
    """Indices along every row of ids, `(groups, width)`."""
    return moved[ids] - ids[:, :1]


def _order(
    readers: Sequence[_Reader], size: int, classes: Ids, pattern: NMPattern, saliency: Callable[[Layer], Array],
    seed: int,
) -> Ids | None:  # fmt: skip
    """New unit u is old unit `order[u]`, `(size,)`; None where no layer could gain."""
    n, m = pattern.n, pattern.m
    columns: list[int] = []  # units in the order in which layers read them: the columns of the search
    place = np.full(size, -1)
    fit: list[tuple[_Reader, list[Ids]]] = []
    for r in sorted(readers, key=lambda r: -np.prod(r.layer.shape)):
        runs = r.runs(m)
        if runs is None:
            continue
        old, old_place = list(columns), place.copy()
        for run in filter(len, runs):
            if (place[run] < 0).all() and len(columns) % m == 0:
                place[run] = len(columns) + np.arange(run.size)
                columns += run.tolist()
            first, last = place[run[0]], place[run[0]] + run.size
            if first % m or (place[run] != np.arange(first, last)).any() or (run.size % m and last < len(columns)):
                columns, place = old, old_place
                break
        else:
            fit.append((r, runs))
    if len(columns) < 2 * m:
        return None
    rng = np.random.default_rng(seed)
    rows = sum(int(np.prod(r.layer.shape)) // r.units.shape[1] // len(runs) for r, runs in fit)
    share = min(1.0, ENTRIES / len(columns) / rows)
    stack = np.concatenate([_stacked(r, runs, place, len(columns), share, saliency, rng) for r, runs in fit])
    units = np.array(columns)
    order = np.arange(size)
    order[units] = units[best_order(stack, n, m, seed=seed, classes=classes[units])]
    return order


def _stacked(
    r: _Reader, runs: Sequence[Ids], place: Ids, width: int, share: float, saliency: Callable[[Layer], Array],
    rng: np.random.Generator,
) -> Array:  # fmt: skip
    """Saliency of one layer with a column for every unit, `(rows, width)`; groups with other units stand side by side,
    as stripes do not reach from one into another."""
    b = r.layer.blocks(saliency(r.layer))
    total = float(b.sum(dtype=np.float64)) or 1.0
    b = b.reshape(len(runs), -1, b.shape[1])  # (groups, rows, L)
    if share < 1:
        kept = max(1, round(share * b.shape[1]))
        total *= kept / b.shape[1]
        b = b[:, np.sort(rng.choice(b.shape[1], kept, replace=False))]
    parts: list[Array] = []
    filled = np.ones(width, bool)
    for rows, units, run in zip(b, r.units, runs, strict=True):
        if run.size:
            if filled[place[run]].any():
                parts.append(np.zeros((len(rows), width), np.float32))
                filled[:] = False
            parts[-1][:, place[run]] = rows[:, units >= 0] / total
            filled[place[run]] = True
    return np.concatenate(parts)


def _shares(
    readers: Sequence[_Reader], moved: Ids, pattern: NMPattern, saliency: Callable[[Layer], Array]
) -> tuple[float, float]:
    """What N:M keeps of the layers, before and after: means of shares."""
    shares = []
    for r in readers:
        b = r.layer.blocks(saliency(r.layer))
        total = float(b.sum(dtype=np.float64)) or 1.0
        grouped = b.reshape(len(r.ids), -1, b.shape[1])
        after = sum(
            retained(rows[:, at], pattern.n, pattern.m)
            for rows, at in zip(grouped, _inner(moved, r.ids), strict=True)
        )  # fmt: skip
        shares.append((retained(b, pattern.n, pattern.m) / total, after / total))
    before, now = np.mean(shares, 0)
    return float(before), float(now)


class Places:
    """Ids of an analysis, seen as places of the units of a group."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        c = self.c = analysis.coupling
        self.starts = np.array([start for start, _, _ in c._owners], np.int64)  # of axes, in the ids
        ties = [(a, b) for a, b in c.ties_of().values()]
        self.a, self.b = (np.concatenate([t[k] for t in ties] or [np.zeros(0, np.int64)]) for k in (0, 1))
        self.node = np.repeat(np.arange(len(ties)), [len(a) for a, _ in ties])
        self.untied: list[tuple[str, str]] = []  # tensors whose elements are no weights, and why
        for node in walk_all(analysis.model.proto.graph, c.shapes.opsets):
            if node.op in UNTIED or (node.op == "Constant" and node.output(0) not in analysis.model.weights):
                self.untied += [(o, f"{node.label} ({node.op}) counts them") for o in node.outputs if o]
        if analysis.model.proto.ir_version >= 4:
            given = [i.name for i in analysis.model.proto.graph.input if i.name in analysis.model.weights]
            self.untied += [(name, f"weight {name} is an input of the model as well") for name in given]

    def units(self, group: ChannelGroup) -> Ids:
        """Unit of every id, -1 for none."""
        return self.analysis.units(group)[self.analysis.components.labels]

    def readers(self, group: ChannelGroup, layers: Sequence[Layer]) -> list[_Reader]:
        """The layers with units of the group along their reduction."""
        units = self.units(group)
        tensors = {t.tensor for t in group.slices}
        out = []
        for layer in layers:
            if layer.initializer not in tensors:
                continue
            ids = self.c.grouped.get(layer.weight) if layer.transposed else None
            if ids is None:
                axis = self.c.axes(layer.weight)[layer.axes[0]]
                groups = 1 if layer.transposed or not layer.convolves else layer.group
                ids = None if axis is None else axis.reshape(groups, -1)
            if ids is not None and (units[ids] >= 0).any():
                out.append(_Reader(layer, ids, units[ids]))
        return out

    def classes(self, group: ChannelGroup) -> Ids:
        """Units of one class occur equally often along every axis and in every block, `(size,)`."""
        units = self.units(group)
        rng = np.random.default_rng(0)
        signature = np.zeros(group.size, np.uint64)
        ids = np.flatnonzero(units >= 0)
        number = rng.integers(1, 1 << 63, len(self.starts), dtype=np.uint64)
        np.add.at(signature, units[ids], number[self.axis_of(ids)])
        for block in self.c.blocks:
            for row in block.ids:
                row_units = units[row]
                np.add.at(signature, row_units[row_units >= 0], rng.integers(1, 1 << 63, dtype=np.uint64))
        return np.asarray(np.unique(signature, return_inverse=True)[1].ravel())

    def axis_of(self, ids: Ids) -> Ids:
        """Number of the axis that an id belongs to."""
        return np.asarray(np.searchsorted(self.starts, ids, "right") - 1)

    def move(self, group: ChannelGroup, order: Ids) -> Ids:
        """The id that comes to every id's place when unit u becomes unit `order[u]`, occurrence by occurrence."""
        units = self.units(group)
        ids = np.flatnonzero(units >= 0)
        key = self.axis_of(ids) * group.size + units[ids]
        by_key = np.argsort(key, kind="stable")
        ids, key = ids[by_key], key[by_key]
        target = key - key % group.size + order[key % group.size]
        at = np.searchsorted(key, target) + np.arange(len(key)) - np.searchsorted(key, key)
        moved = np.arange(self.c.size)
        assert (key[np.minimum(at, len(key) - 1)] == target).all(), "units of one class occur equally often"
        moved[ids] = ids[at]
        return moved

    def problem(self, moved: Ids) -> str:
        """Why the new order would not be exact; empty where it is."""
        same = moved == np.arange(len(moved))
        for name, why in self.untied:
            if any(ids is not None and not same[ids].all() for ids in self.c.axes(name)):
                return why
        for block in self.c.blocks:
            if (np.sort(moved[block.ids], 1) != np.sort(block.ids, 1)).any():
                return f"{block.node.label} ({block.node.op}) has groups that they would leave"
        hit = ~(same[self.a] & same[self.b])
        node, a, b = self.node[hit], self.a[hit], self.b[hit]
        before, after = np.lexsort((b, a, node)), np.lexsort((moved[b], moved[a], node))
        if (a[before] != moved[a][after]).any() or (b[before] != moved[b][after]).any():
            return "places that meet would not meet any more"
        return ""


__all__ = ["Permuted", "Places", "permute", "rearranged", "reordered"]
