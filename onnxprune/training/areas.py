"""What a learned mask closes, in the flat buffers of a `step.Step`: single weights, tiles of them, or units of channel
groups by the weights that read them.

Of a unit all weights that read it are closed, and those that make it stay: what it would add if it came back is still
computed, so that its gradient says whether it should, as that of a gate does (Michel et al. 2019).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.allocation.select import MAX_RATIO, global_, group_ratios
from onnxprune.errors import OptionError
from onnxprune.formats.patterns import BlockPattern, NMPattern, Pattern
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.importance.units import select
from onnxprune.layers.layer import Layer
from onnxprune.solvers.patterns import Mask, Tiles, lowest_kept
from onnxprune.sparsity.allocate import spread
from onnxprune.sparsity.amounts import ANY, maskable, names_of, ratios_of
from onnxprune.sparsity.options import Zeros
from onnxprune.sparsity.solve import choices, kept
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep, Slice
from onnxprune.structure.groups import analyze
from onnxprune.training.masking import Learning
from onnxprune.training.step import Layout


class Area(ABC):
    """What may be closed. inside: of the flat buffers, bool `(n,)`; number: of the score that each weight inside goes
    by, `(inside,)`, None where each has its own; count: of scores."""

    def __init__(self, inside: Mask, number: Array | None) -> None:
        self.inside, self.number = inside, number
        self.count = int(inside.sum()) if number is None else int(number.max(initial=-1)) + 1

    def gathered(self, flat: Array) -> Array:
        """The sum of a buffer's values for every score, float32 `(count,)`."""
        values = flat[self.inside]
        if self.number is None:
            return values.astype(np.float32)
        return np.bincount(self.number, values, self.count).astype(np.float32)

    def spread(self, each: Array) -> Array:
        """A value per score as one per weight inside."""
        return each if self.number is None else each[self.number]

    @abstractmethod
    def keep(self, scores: Array, share: float) -> Mask:
        """What stays of the weights inside, `(inside,)`, where the lowest scores `(count,)` go: this share of what
        shall."""

    def above(self, scores: Array, limit: float) -> Mask:
        """What stays where scores at most the limit go."""
        return np.asarray(self.spread(scores > limit))

    @abstractmethod
    def parts(self, chosen: Mask) -> dict[str, Mask]:
        """A choice among the weights inside by layer, or by group one among its units."""


class Entries(Area):
    """Single weights of layers, or tiles that a pattern makes of them."""

    def __init__(self, model: Model, layout: Layout, how: Learning) -> None:
        """Raises `OptionError` where no layer can be masked."""
        layers = maskable(model, layout.places)
        zeros = Zeros(sparsity=ANY, pattern=how.zeros.pattern) if how.row.soft else how.zeros
        ratios = ratios_of(names_of(model), layers, zeros, (), how.ignore)
        self.layers = [x for x in layers if ratios.get(x.name)]
        if not self.layers:
            raise OptionError("no layer can be masked: --ignore names them all, or none has weights that are trained")
        self.asked = {x.initializer: ratios[x.name] for x in self.layers}
        self.pattern, self.allocate = how.zeros.shape, how.allocate
        self.spans: dict[str, tuple[int, tuple[int, ...]]] = {}  # weight -> where it begins inside, its shape
        inside, at = layout.empty(np.bool_), 0
        for name, (_, shape) in layout.places.items():
            if name in self.asked:
                layout.view(inside, name)[...] = True
                self.spans[name] = at, shape
                at += int(np.prod(shape))
        super().__init__(inside, self._tiles(at))

    def _view(self, values: Array, name: str) -> Array:
        start, shape = self.spans[name]
        return values[start : start + int(np.prod(shape))].reshape(shape)

    def _tiles(self, size: int) -> Array | None:
        """The tile of every weight, None where the pattern has none."""
        if not isinstance(self.pattern, BlockPattern):
            return None
        out, first = np.zeros(size, np.int64), 0
        for layer in self.layers:
            matrices = layer.rows(np.empty(layer.array_shape, np.int8))
            each = []
            for c, m in zip(choices(layer, self.pattern, 0), matrices, strict=True):
                assert isinstance(c, Tiles), "what a pattern of tiles chooses among"
                each.append(c.numbers(*m.shape) + first)
                first = int(each[-1].max()) + 1
            self._view(out, layer.initializer)[...] = _lying(layer, layer.unrows(np.stack(each)))
        return out

    def keep(self, scores: Array, share: float) -> Mask:
        """See `Area`."""
        asked, pattern = {w: r * share for w, r in self.asked.items()}, grown(self.pattern, share)
        if pattern is None and self.allocate == "global" and len(set(asked.values())) == 1:  # as below, at once
            return lowest_kept(scores, round(next(iter(asked.values())) * scores.size))
        each = self.spread(scores)
        read = {x.initializer: _read(x, self._view(each, x.initializer)) for x in self.layers}
        counts, out = spread(read, asked, self.allocate), np.ones(each.size, bool)
        for x in self.layers:
            w = x.initializer
            self._view(out, w)[...] = _lying(x, kept(x, pattern, counts[w], read[w]))
        return out

    def parts(self, chosen: Mask) -> dict[str, Mask]:
        """See `Area`."""
        return {x.name: self._view(chosen, x.initializer).ravel() for x in self.layers}


def grown(pattern: Pattern | None, share: float) -> Pattern | None:
    """A pattern of which this share is reached: fewer of every M go."""
    if not isinstance(pattern, NMPattern):
        return pattern
    return NMPattern(pattern.m - round((pattern.m - pattern.n) * share), pattern.m)


def _perms(layer: Layer) -> list[tuple[int, ...]]:
    assert layer.stored is not None, "a weight that may hold zeros is stored somewhere"
    return [step.perm for step in layer.stored.steps if step.perm]


def _read(layer: Layer, stored: Array) -> Array:
    """An array in the shape of what is stored, as the layer reads it."""
    for perm in _perms(layer):
        stored = stored.transpose(perm)
    return stored


def _lying(layer: Layer, read: Array) -> Array:
    """The other way round."""
    for perm in reversed(_perms(layer)):
        read = read.transpose(np.argsort(perm))
    return read


class Units(Area):
    """Units of channel groups. notes: groups that cannot be learned, and why."""

    def __init__(self, model: Model, layout: Layout, how: Learning) -> None:
        """Raises `OptionError` where no group can be learned."""
        analysis = analyze(model)
        amounts = {kind: ANY if how.row.soft else amount for kind, amount in how.units}
        found = [g for g in analysis.groups if g.kind in amounts and g.size > 1]
        asked = group_ratios(found, amounts=amounts, ignore=how.ignore) if found else {}
        self.notes: list[str] = []
        self.groups, self.round_to = list[ChannelGroup](), how.round_to
        numbers, first = np.full(layout.size, -1), 0
        for g in found:
            readers = readers_of(analysis, g, layout) if asked[g.name] else []
            if isinstance(readers, str):
                self.notes.append(f"{g.name}: no mask is learned: {readers}")
                continue
            for s in readers:
                w = layout.view(numbers, s.tensor)
                units = of_entries(s, w.shape)
                np.copyto(w, units + first, where=units >= 0)
            first += g.size if readers else 0
            self.groups += [g] if readers else []
        if not self.groups:
            why = "".join(f"; {note}" for note in self.notes[:1])
            raise OptionError(f"there are no {' or '.join(amounts)} whose mask can be learned{why}")
        self.ratios = {g.name: asked[g.name] for g in self.groups}
        super().__init__(numbers >= 0, numbers[numbers >= 0])

    def keep(self, scores: Array, share: float) -> Mask:
        """See `Area`; by one threshold for all groups of a kind, but that a fifth of each stays, or what is asked."""
        ratios = {name: r * share for name, r in self.ratios.items()}
        most = max(MAX_RATIO, *self.ratios.values())
        of = self._of(scores)
        return self._mask(global_(self.groups, of, ratios, round_to=self.round_to, max_ratio=most))

    def above(self, scores: Array, limit: float) -> Mask:
        """See `Area`; as many as must stay of a group do."""
        of = self._of(scores)
        counts = {g.name: max(g.least, 1, int((of[g.name] > limit).sum())) for g in self.groups}
        return self._mask({g.name: select(g, of[g.name], counts[g.name]) for g in self.groups})

    def _of(self, each: Array) -> dict[str, Array]:
        """A value per unit, by group."""
        each, ends = each.astype(np.float64), np.cumsum([0, *(g.size for g in self.groups)])
        return {g.name: each[a:b] for g, a, b in zip(self.groups, ends, ends[1:], strict=False)}

    def _mask(self, chosen: Mapping[str, Keep]) -> Mask:
        return np.asarray(self.spread(np.concatenate([chosen[g.name] for g in self.groups])))

    def parts(self, chosen: Mask) -> dict[str, Mask]:
        """See `Area`."""
        assert self.number is not None, "units have a score together"
        each = self._of(np.bincount(self.number, chosen, self.count))
        return {name: units > 0 for name, units in each.items()}


def readers_of(analysis: Analysis, group: ChannelGroup, layout: Layout) -> list[Slice] | str:
    """The weights that are summed over the units of a group, all of which are trained; or why a mask on them would not
    be one on the units."""
    made = {(p.weight, p.axis) for p in analysis.coupling.produces}
    wide = [s for s in group.slices if s.tensor in layout.places and len(layout.places[s.tensor][1]) > 1]
    readers = {s.tensor: s for s in wide if (s.tensor, s.axis) not in made}
    for consume in analysis.coupling.consumes:
        axes = analysis.coupling.axes(consume.node.input(consume.input))
        ids = axes[consume.axis] if axes else None
        if ids is None or not np.isin(analysis.components.homes[analysis.components.labels[ids]], group.labels).any():
            continue
        if not readers.keys() & set(consume.node.inputs):
            return f"{consume.node.label} reads it by no weight that is trained"
    return list(readers.values())


def of_entries(part: Slice, shape: Sequence[int]) -> Array:
    """The unit of every entry of a weight, -1 for none, broadcast to its shape."""
    units = np.asarray(part.units)
    if units.ndim == 2:  # (groups, width): the inner axis of a grouped convolution
        units = units.repeat(shape[0] // len(units), 0)
        return units.reshape(*units.shape, *[1] * (len(shape) - 2))
    lying = [1] * len(shape)
    lying[part.axis] = -1
    return units.reshape(lying)


def area_of(model: Model, layout: Layout, how: Learning) -> Area:
    """What a mask closes, as it is asked for."""
    return Units(model, layout, how) if how.units else Entries(model, layout, how)


__all__ = ["Area", "Entries", "Units", "area_of", "readers_of"]
