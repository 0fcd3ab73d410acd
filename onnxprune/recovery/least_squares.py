"""Least squares on what a cut has left: every layer that lost inputs learns to give what the whole model gives.

Layers are solved in order. The rows come from the pruned model, whose layers before were solved already; the targets
from the whole model (sequential reconstruction). Where the layer's outputs are added to a residual stream, the target
also makes up for the error that the stream itself has by then: Y + S - S'. Nothing but inputs is needed, no labels.
Compare Luo et al. 2017 (ThiNet), Kurtic et al. 2023 (ZipLM) and Meng et al. 2024 (OSSCAR); the targets that know the
activation are in the spirit of Zhang et al. 2015 (Accelerating Very Deep Networks).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.calibration.layers import (
    RECURRENT,
    Linear,
    Tail,
    Unsuitable,
    Values,
    find_linear,
    find_tail,
    kernel_shape,
    like_outputs,
    matrix,
    positions,
    read_by,
    rows,
)
from onnxprune.calibration.places import Parameters, parameters
from onnxprune.calibration.stream import Stream
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.node import walk
from onnxprune.graph.runtime import Feeds
from onnxprune.graph.shapes import Array
from onnxprune.solvers.least_squares import Fit, Float, Moments, Singular, match, solve
from onnxprune.structure.coupling import Axis, Coupling
from onnxprune.structure.groups import Analysis, Keep

RIDGE = 0.03  # tools/bench_accuracy.py; three times that for synthetic data
ROWS = 30_000  # of one layer's regression, where that is
ROWS_EACH = 100  # for every column, or more; neighbouring positions are alike, so that more say little
WORK = 6e10  # multiply-adds for one layer's moments, at most, but for
ROWS_LEAST = 10  # rows for every column
REFITS = 2  # rounds of targets that know the activation
SMALLEST_SCALE = 1e-3  # channels that a normalisation shrinks below this part of the largest cannot make up for others


@dataclass(frozen=True)
class LayerFit:
    """What least squares did to one layer.

    before, after: unexplained share of the target's variance, with the weights that survived and with the new ones, on
    the data that were fitted; rows: of the regression; reason: why the layer was left as it was, "" if it was not.
    """

    node: str
    op: str
    before: float
    after: float
    rows: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Task:
    """A layer of the whole model, its pruned counterpart, and what of it survives.

    inside: bool `(groups, in)`, outside: bool `(groups, out)`.
    """

    whole: Linear
    pruned: Linear
    inside: Keep
    outside: Keep
    tail: Tail
    into: Parameters
    matrix: Float  # of the whole model, `(groups, in, out)`
    kernel: tuple[int, ...]

    def bias(self) -> Float:
        """What the layer itself adds to its outputs, `(out,)`; what the nodes behind it add is the tail's shift."""
        place = self.into.bias
        if place is None or not self.into.own:
            return np.zeros(self.outside.sum())
        return np.asarray(place.read().ravel() / self.into.factor)

    def prior(self, g: int) -> Float:
        """What survives of group g's matrix."""
        return np.asarray(self.matrix[g][np.ix_(self.inside[g], self.outside[g])])


def least_squares(
    analysis: Analysis,
    keep: Keep,
    pruned: Model,
    source: Sequence[Feeds],
    *,
    method: str = "least-squares",
    ridge: float = RIDGE,
    memory: float = 2e9,
    threads: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Model, list[LayerFit]]:
    """The pruned model with refitted layers, and what became of each layer that lost inputs.

    keep: ids that survive, bool `(ids,)`; pruned: what surgery made of it, without shifts of biases.
    source: inputs of both models, batch by batch. memory: bytes for activations.
    method: "least-squares", or "mean-std", which only scales and shifts every output.
    """
    edit = Edit(pruned)
    tasks, fits = find_tasks(analysis, keep, edit)
    whole = Stream(analysis.model, source, limit=memory / 2, threads=threads)
    narrow = [analysis.narrow(feeds, keep) for feeds in source]
    small = Stream(edit.model, narrow, limit=memory / 2, threads=threads)
    for done, task in enumerate(tasks):
        progress(done, len(tasks))
        whole.advance(task.whole.index)
        small.advance(task.pruned.index)
        moments = [Moments(intercept=task.into.bias is not None) for _ in task.inside]
        for x, t, _ in regression(task, whole, small, seed=seed):
            for g, m in enumerate(moments):
                m.add(x[g], t[g])
        try:
            solved = [
                match(m, task.prior(g)) if method == "mean-std" else solve(m, task.prior(g), ridge=ridge)
                for g, m in enumerate(moments)
            ]
        except Singular as e:
            fits.append(LayerFit(task.whole.node.label, task.whole.node.op, 0.0, 0.0, moments[0].count, str(e)))
            continue
        if method == "least-squares" and task.tail.bounds is not None:

            def fit(g: int, m: Moments, now: Fit, task: Task = task) -> Fit:
                return solve(m, task.prior(g), ridge=ridge)

            solved = activation_aware(task, whole, small, moments, solved, fit, seed=seed)
        before = np.mean([_plain_error(m, task.prior(g)) for g, m in enumerate(moments)])
        after = float(np.mean([s.error for s in solved]))
        task.into.write(np.stack([s.weight for s in solved]), np.concatenate([s.shift for s in solved]))
        fits.append(LayerFit(task.whole.node.label, task.whole.node.op, float(before), after, moments[0].count))
    progress(len(tasks), len(tasks))
    return edit.model, fits


def _plain_error(m: Moments, weight: Float) -> float:
    """Unexplained share of the variance with these weights and without another bias."""
    total = float(m.variance.sum())
    rest = float(np.einsum("do,do->", weight, m.gram @ weight) - 2 * np.einsum("do,do->", weight, m.cross)) + total
    off = m.t_mean - m.x_mean @ weight
    return (max(rest, 0.0) + float(np.square(off).sum())) / total if total > 0 else 0.0


def find_tasks(analysis: Analysis, keep: Keep, edit: Edit) -> tuple[list[Task], list[LayerFit]]:
    """Layers to solve, in order; the others that lost inputs, with the reason why they stay.

    Behind a block that is gone, layers that are added to the stream make up for it, though they lost nothing.
    """
    c = analysis.coupling
    values, small = Values(analysis.model), Values(edit.model)
    readers = read_by(edit.model)
    counterpart = {layer.key: layer for layer in find_linear(edit.model)}
    tasks, left = [], []
    closed = [b for b in analysis.blocks if not keep[b.gate].any()]
    gone, sums = {n.key for b in closed for n in b.inside}, {b.node.key for b in closed}
    nodes = enumerate(walk(analysis.model.proto.graph, {}))
    first_gone = next((i for i, n in nodes if n.key in sums), None)
    for layer in find_linear(analysis.model):
        if layer.key in gone:
            continue
        try:
            inside, outside = surviving(c, layer, keep, matrix(layer, values))
            alike = (inside == inside[:, :1]).all() and layer.groups > 1  # whole groups go: depthwise
            whole = bool(inside.all())
            if not inside.any() or not outside.any() or alike:
                continue
            if whole and (first_gone is None or layer.index < first_gone):
                continue
            other = counterpart.get(layer.key)
            if other is None:
                raise Unsuitable("it is not in the pruned model")
            tail = find_tail(other, edit.model, small, readers, int(outside.sum()), analysis.coupling.shapes.shapes)
            if whole and not tail.other:
                continue
            into = parameters(edit, other, tail, small, readers)
            kernel = kernel_shape(layer, values)
            tasks.append(Task(layer, other, inside, outside, tail, into, matrix(layer, values), kernel))
        except Unsuitable as e:
            left.append(LayerFit(layer.node.label, layer.node.op, 0.0, 0.0, 0, str(e)))
    return tasks, left


def surviving(c: Coupling, layer: Linear, keep: Keep, m: Float) -> tuple[Keep, Keep]:
    """Which columns of the rows, bool `(groups, in)`, and which outputs, bool `(groups, out)`, survive."""
    n = layer.node
    x, y = c.axes(n.input(0)), c.axes(n.key)
    if n.op in RECURRENT:
        into, out = x[2], c.axes(n.input(1))[1]
    elif n.op == "Gemm":
        into, out = x[0 if n.attr("transA", 0) else 1], y[1]
    elif n.op == "MatMul":
        into, out = x[-1], y[-1]
    else:
        into, out = x[1], y[1]

    def spread(ids: Axis, size: int) -> Keep:
        alive = np.ones(1, bool) if ids is None else keep[ids]
        if n.op in RECURRENT and ids is out:
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
        for x, t, added in regression(task, whole, small, seed=seed):
            now = scale * (np.matmul(x, weight) + shift) + offset + added
            wish = scale * t + offset + added
            free = np.where(wish <= low, np.minimum(now, low), np.where(wish >= high, np.maximum(now, high), wish))
            t = t + np.where(able, (free - wish) / np.where(able, scale, 1), 0.0)
            for g, m in enumerate(again):
                m.add(x[g], t[g])
        solved = [fit(g, m, solved[g]) for g, m in enumerate(again)]
    return solved


def regression(task: Task, whole: Stream, small: Stream, *, seed: int) -> Iterator[tuple[Array, Array, Array]]:
    """Batch by batch: rows `(groups, n, in)` of the pruned model, targets `(groups, n, out)` of the whole one, and what
    the pruned model adds to the outputs behind the layer, of the targets' shape or one that broadcasts."""
    g = len(task.matrix)
    full = task.matrix.astype(np.float32)
    other = task.tail.other
    # a stream that is made later will make up for this layer, not this layer for it
    made = whole.position(other) < task.whole.index and small.position(other) < task.pruned.index
    scale = task.tail.scale
    able = np.abs(scale) > SMALLEST_SCALE * np.abs(scale).max()
    factor = np.where(able, 1 / np.where(able, scale, 1), 0.0).astype(np.float32)
    extra = [other] if other else []
    rng = np.random.default_rng([seed, zlib.crc32(task.whole.key.encode())])
    share = None
    thin_extra = extra if made else []
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
            if made:
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
