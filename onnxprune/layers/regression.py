"""A layer as a linear regression towards the outputs of the original."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array, Float
from onnxprune.layers.layer import Layer
from onnxprune.layers.places import Parameters
from onnxprune.layers.rows import like_outputs, positions, rows
from onnxprune.layers.sampling import Sampling, rows_needed, sampling
from onnxprune.layers.tail import Tail
from onnxprune.runtime.stream import Stream, samples_in
from onnxprune.solvers.least_squares import Fit, Moments
from onnxprune.solvers.threads import Beside
from onnxprune.structure.analysis import Keep
from onnxprune.structure.claims import Axis
from onnxprune.structure.coupling import Coupling

SPARE = 8  # positions for every row, where samples whose values do not fit into memory are left out
HELD = 64e6  # bytes of rows that are kept for another look; where there are more, they are made again
REFITS = 2  # rounds of targets that know the activation
SMALLEST_SCALE = 1e-3  # channels that a normalisation shrinks below this part of the largest cannot make up for others


@dataclass(frozen=True, eq=False)
class Task:
    """A layer of the whole model, its pruned counterpart, and what of it survives.

    inside: bool `(groups, in)`, outside: bool `(groups, out)`.
    """

    whole: Layer
    pruned: Layer
    inside: Keep
    outside: Keep
    tail: Tail
    into: Parameters
    matrix: Float  # of the whole model, `(groups, in, out)`
    kernel: tuple[int, ...]

    def bias(self) -> Float:
        """What the layer itself adds to its outputs, `(out,)`; what the nodes behind it add is the tail's shift."""
        place = self.into.bias
        if place is None or not self.into.own_bias:
            return np.zeros(self.outside.sum())
        return np.asarray(place.read().ravel() / self.into.factor)

    def offset(self) -> Float:
        """What the layer and the affine nodes behind it add to its scaled products, `(out,)`."""
        return np.asarray(self.tail.scale * self.bias() + self.tail.shift)

    def prior(self, g: int) -> Float:
        """What survives of group g's matrix."""
        return np.asarray(self.matrix[g][np.ix_(self.inside[g], self.outside[g])])


def surviving(c: Coupling, layer: Layer, keep: Keep, m: Float) -> tuple[Keep, Keep]:
    """Which columns of the rows, bool `(groups, in)`, and which outputs, bool `(groups, out)`, survive."""
    trait = layer.trait
    x, y = c.axes(layer.source), c.axes(layer.key)
    into = x[trait.inner(layer.node, len(x))]
    # outputs of a recurrent layer are those of its gates
    out = c.axes(layer.weight)[trait.outputs] if trait.recurs else y[trait.outer(len(y))]

    def spread(ids: Axis, size: int) -> Keep:
        alive = np.ones(1, bool) if ids is None else keep[ids]
        if trait.recurs and ids is out:
            alive = np.tile(alive, size // len(alive))  # directions
        return np.repeat(alive, size // len(alive))

    g, d, o = m.shape
    return spread(into, g * d).reshape(g, d), spread(out, g * o).reshape(g, o)


Part = tuple[Array, Array, Array]  # rows, targets and what is added to the outputs, of one batch
Pick = Callable[[int, int], Array | None]  # batch and its positions -> those that are used, None for all


class Rows:
    """The regression of a task in parts: rows `(groups, n, in)` of the pruned model, targets `(groups, n, out)` of the
    whole one, and what the pruned model adds to the outputs behind the layer, of the targets' shape or one that
    broadcasts. There are none until `extend` asks for some; what it gave can be looked at again.
    """

    def __init__(self, task: Task, whole: Stream, small: Stream, *, seed: int) -> None:
        self.task, self.whole, self.small = task, whole, small
        self.rng = np.random.default_rng([seed, zlib.crc32(task.whole.key.encode())])
        self.counts: dict[int, int] = {}  # positions of batches that were looked at
        self.picked: dict[int, Array] = {}  # those that are used
        self.parts: list[Part] | None = []  # None where they are too many to be held
        self.complete = False  # whether there are no more rows
        self.batch = 0  # of the rows that came last
        scale = task.tail.scale
        able = np.abs(scale) > SMALLEST_SCALE * np.abs(scale).max()
        self.factor = np.where(able, 1 / np.where(able, scale, 1), 0.0).astype(np.float32)
        self.matrix = task.matrix.astype(np.float32)

    def __iter__(self) -> Iterator[Part]:
        if self.parts is not None:
            return iter(self.parts)
        return self._made(sorted(self.picked), self._again)

    def extend(self, each: float) -> Iterator[Part]:
        """What is missing to so many rows for every column."""
        task, total = self.task, len(self.whole)
        if not total:
            return
        if not self.counts:
            self._advance(1)
            self.counts[0] = first_positions(self.whole, task.whole, task.kernel)
        needed = rows_needed(int(task.inside[0].sum()), len(task.matrix), each)
        plan = sampling(needed, self.counts[0], total, samples_in(self.whole.source))
        self._advance(plan.batches)
        fitting = min(self.whole.advanced(task.whole.index), self.small.advanced(task.pruned.index))
        there = max(fitting, 1) * max(self.counts[0], 1)
        if fitting < plan.batches and needed * SPARE < there:
            plan = Sampling(max(fitting, 1), needed / there)
        self.complete = plan.batches == total and plan.share >= 1
        short = [i for i in range(plan.batches) if i not in self.picked or self._missing(i, self.counts[i], plan) > 0]
        held = sum(v.nbytes for part in self.parts or () for v in part)
        for part in self._made(short, lambda i, count: self._pick(i, count, plan)):
            held += sum(v.nbytes for v in part)
            if self.parts is not None:
                self.parts.append(part)
                self.parts = self.parts if held <= HELD else None
            yield part

    @property
    def samples(self) -> tuple[int, int]:
        """How many samples the rows are of that came last, and how many there are before them."""
        each = samples_in(self.whole.source)
        return max(1, round(each * self.counts[self.batch] / max(self.counts[0], 1))), self.batch * each

    def _advance(self, batches: int) -> None:
        self.whole.advance(self.task.whole.index, batches)
        self.small.advance(self.task.pruned.index, batches)

    def _missing(self, batch: int, count: int, plan: Sampling) -> int:
        """Rows that a batch of so many positions lacks."""
        return plan.rows(count) - len(self.picked.get(batch, ()))

    def _pick(self, batch: int, count: int, plan: Sampling) -> Array | None:
        """Positions that were not used before."""
        self.counts[batch] = count
        before, missing = self.picked.get(batch), self._missing(batch, count, plan)
        left = np.arange(count) if before is None else np.setdiff1d(np.arange(count), before, assume_unique=True)
        new = left if missing >= len(left) else np.sort(self.rng.choice(left, max(missing, 0), replace=False))
        self.picked[batch] = new if before is None else np.union1d(before, new)
        return None if len(new) == count else new

    def _again(self, batch: int, count: int) -> Array | None:
        """Positions that are used."""
        return None if len(self.picked[batch]) == count else self.picked[batch]

    def _made(self, batches: Sequence[int], pick: Pick) -> Iterator[Part]:
        task, whole, small = self.task, self.whole, self.small
        g, other = len(task.matrix), task.tail.other
        # a stream that is made later will make up for this layer, not this layer for it
        earlier = whole.position(other) < task.whole.index and small.position(other) < task.pruned.index
        extra = [other] if other else []
        denses = whole.compute([task.whole.source, *extra], batches)
        thins = small.compute([task.pruned.source, *(extra if earlier else [])], batches)
        for i, dense, thin in zip(batches, denses, thins, strict=True):
            x, self.batch = dense[task.whole.source], i
            picked = pick(i, positions(task.whole, x, task.kernel))
            target = np.matmul(rows(task.whole, x, task.kernel, picked), self.matrix)  # (g, n, out)
            target = np.stack([target[k][:, task.outside[k]] for k in range(g)])
            added = np.zeros((g, 1, 1), np.float32)
            if other:
                original = like_outputs(task.whole, dense[other], x, task.kernel, task.outside.size, picked)
                original = original[:, task.outside.ravel()]
                stream = original
                if earlier:
                    narrow = thin[task.pruned.source]
                    stream = like_outputs(task.pruned, thin[other], narrow, task.kernel, original.shape[1], picked)
                    missing = (original - stream) * self.factor * task.tail.sign
                    target = target + missing.reshape(len(missing), g, -1).transpose(1, 0, 2)
                added = task.tail.sign * stream.reshape(len(stream), g, -1).transpose(1, 0, 2)
            yield rows(task.pruned, thin[task.pruned.source], task.kernel, picked), target, added


def activation_aware(
    rows: Iterable[Part],
    task: Task,
    moments: list[Moments],
    solved: list[Fit],
    fit: Callable[[int, Moments, Fit], Fit],
) -> list[Fit]:
    """Solve again with targets that may be anything where the activation is flat, as long as it stays so.

    rows: of the task, as they were summed up.
    fit: group, moments with the new targets and what was solved before -> the new solution. Where the whole model is
    below the lower end, any value below it will do, and alike above: the target is what the layer gives now, or the end
    itself.
    """
    assert task.tail.bounds is not None
    low, high = task.tail.bounds
    scale = task.tail.scale.reshape(len(moments), 1, -1).astype(np.float32)
    able = np.abs(scale) > SMALLEST_SCALE * np.abs(scale).max()
    offset = task.offset().reshape(scale.shape).astype(np.float32)
    for _ in range(REFITS):
        again = [m.like() for m in moments]
        weight = np.stack([s.weight for s in solved]).astype(np.float32)
        shift = np.stack([s.shift for s in solved]).astype(np.float32)[:, None]

        def freed(part: Part, weight: Array = weight, shift: Array = shift) -> tuple[Array, Array]:
            x, t, added = part
            now = scale * (np.matmul(x, weight) + shift) + offset + added
            wish = scale * t + offset + added
            free = np.where(wish <= low, np.minimum(now, low), np.where(wish >= high, np.maximum(now, high), wish))
            return x, t + np.where(able, (free - wish) / np.where(able, scale, 1), 0.0)

        with Beside() as beside:
            for part in rows:
                x, t = freed(part)
                for g, m in enumerate(again):
                    beside(m.add, x[g], t[g])
        solved = [fit(g, m, solved[g]) for g, m in enumerate(again)]
    return solved


def source_rows(
    stream: Stream, layer: Layer, kernel: tuple[int, ...], shape: tuple[int, int], each: float, rng: np.random.Generator
) -> Iterator[Array]:
    """Rows of what a layer reads in one model, `(groups, n, in)` of every batch that is asked; shape: groups, columns;
    each: rows for every column."""
    if not len(stream):
        return
    stream.advance(layer.index, 1)
    count = first_positions(stream, layer, kernel)
    plan = sampling(rows_needed(shape[1], shape[0], each), count, len(stream), samples_in(stream.source))
    stream.advance(layer.index, plan.batches)
    for batch in stream.compute([layer.source], range(plan.batches)):
        x = batch[layer.source]
        yield rows(layer, x, kernel, plan.picked(positions(layer, x, kernel), rng))


def first_positions(stream: Stream, layer: Layer, kernel: tuple[int, ...]) -> int:
    """Rows that the first batch has, which says how many batches are asked."""
    (first,) = stream.compute([layer.source], [0])
    return positions(layer, first[layer.source], kernel)
