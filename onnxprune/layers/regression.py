"""A layer as a linear regression towards the outputs of the original."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Array, Float
from onnxprune.layers.layer import Layer
from onnxprune.layers.places import Parameters
from onnxprune.layers.rows import like_outputs, positions, rows
from onnxprune.layers.tail import Tail
from onnxprune.runtime.stream import Stream
from onnxprune.solvers.least_squares import Fit, Moments
from onnxprune.structure.analysis import Keep
from onnxprune.structure.coupling import Axis, Coupling

ROWS = 30_000  # of one layer's regression, where that is
ROWS_EACH = 100  # for every column, or more; neighbouring positions are alike, so that more say little
WORK = 6e10  # multiply-adds for one layer's moments, at most, but for
ROWS_LEAST = 10  # rows for every column
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


def activation_aware(
    task: Task,
    whole: Stream,
    small: Stream,
    moments: list[Moments],
    solved: list[Fit],
    fit: Callable[[int, Moments, Fit], Fit],
    *,
    seed: int,
) -> list[Fit]:
    """Solve again with targets that may be anything where the activation is flat, as long as it stays so.

    fit: group, moments with the new targets and what was solved before -> the new solution. Where the whole model is
    below the lower end, any value below it will do, and alike above: the target is what the layer gives now, or the end
    itself.
    """
    assert task.tail.bounds is not None
    low, high = task.tail.bounds
    scale = task.tail.scale.reshape(len(moments), 1, -1).astype(np.float32)
    able = np.abs(scale) > SMALLEST_SCALE * np.abs(scale).max()
    offset = (task.tail.scale * task.bias() + task.tail.shift).reshape(scale.shape).astype(np.float32)
    for _ in range(REFITS):
        again = [m.like() for m in moments]
        weight = np.stack([s.weight for s in solved]).astype(np.float32)
        shift = np.stack([s.shift for s in solved]).astype(np.float32)[:, None]
        for x, t, added in regression_batches(task, whole, small, seed=seed):
            now = scale * (np.matmul(x, weight) + shift) + offset + added
            wish = scale * t + offset + added
            free = np.where(wish <= low, np.minimum(now, low), np.where(wish >= high, np.maximum(now, high), wish))
            t = t + np.where(able, (free - wish) / np.where(able, scale, 1), 0.0)
            for g, m in enumerate(again):
                m.add(x[g], t[g])
        solved = [fit(g, m, solved[g]) for g, m in enumerate(again)]
    return solved


def regression_batches(task: Task, whole: Stream, small: Stream, *, seed: int) -> Iterator[tuple[Array, Array, Array]]:
    """Batch by batch: rows `(groups, n, in)` of the pruned model, targets `(groups, n, out)` of the whole one, and what
    the pruned model adds to the outputs behind the layer, of the targets' shape or one that broadcasts."""
    g = len(task.matrix)
    full = task.matrix.astype(np.float32)
    other = task.tail.other
    # a stream that is made later will make up for this layer, not this layer for it
    earlier = whole.position(other) < task.whole.index and small.position(other) < task.pruned.index
    scale = task.tail.scale
    able = np.abs(scale) > SMALLEST_SCALE * np.abs(scale).max()
    factor = np.where(able, 1 / np.where(able, scale, 1), 0.0).astype(np.float32)
    extra = [other] if other else []
    rng = np.random.default_rng([seed, zlib.crc32(task.whole.key.encode())])
    share = None
    thin_extra = extra if earlier else []
    pairs = zip(
        whole.compute([task.whole.source, *extra]), small.compute([task.pruned.source, *thin_extra]), strict=True
    )
    for dense, thin in pairs:
        x = dense[task.whole.source]
        count = positions(task.whole, x, task.kernel)
        if share is None:
            share = sampled_share(count * len(whole.state), int(task.inside[0].sum()), g)
        picked = None if share >= 1 else np.sort(rng.choice(count, max(1, round(count * share)), replace=False))
        target = np.matmul(rows(task.whole, x, task.kernel, picked), full)  # (g, n, out)
        target = np.stack([target[k][:, task.outside[k]] for k in range(g)])
        added = np.zeros((g, 1, 1), np.float32)
        if other:
            original = like_outputs(task.whole, dense[other], x, task.kernel, task.outside.size, picked)
            original = original[:, task.outside.ravel()]
            stream = original
            if earlier:
                narrow = thin[task.pruned.source]
                stream = like_outputs(task.pruned, thin[other], narrow, task.kernel, original.shape[1], picked)
                missing = (original - stream) * factor * task.tail.sign
                target = target + missing.reshape(len(missing), g, -1).transpose(1, 0, 2)
            added = task.tail.sign * stream.reshape(len(stream), g, -1).transpose(1, 0, 2)
        yield rows(task.pruned, thin[task.pruned.source], task.kernel, picked), target, added


def sampled_share(total: int, width: int, groups: int) -> float:
    """Part of all rows that are used: enough for the width, bounded in number and in work."""
    limit = max(min(max(ROWS, ROWS_EACH * width), WORK / (width * width * groups)), ROWS_LEAST * width)
    return limit / max(total, 1)
