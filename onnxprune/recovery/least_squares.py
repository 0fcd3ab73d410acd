"""Least squares on what a cut has left: every layer that lost inputs learns to give what the whole model gives.

Layers are solved in order. The rows come from the pruned model, whose layers before were solved already; the targets
from the whole model (sequential reconstruction). Where the layer's outputs are added to a residual stream, the target
also makes up for the error that the stream itself has by then: Y + S - S'. Nothing but inputs is needed, no labels.
Compare Luo et al. 2017 (ThiNet), Kurtic et al. 2023 (ZipLM) and Meng et al. 2024 (OSSCAR); the targets that know the
activation are in the spirit of Zhang et al. 2015 (Accelerating Very Deep Networks).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.calibration.options import MEMORY
from onnxprune.graph.arrays import Float
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.links import read_by
from onnxprune.graph.node import walk
from onnxprune.graph.ort import release_memory
from onnxprune.graph.step import Step
from onnxprune.layers.layer import linear_layers
from onnxprune.layers.places import parameters
from onnxprune.layers.regression import Rows, Task, activation_aware, surviving
from onnxprune.layers.rows import kernel_shape, matrix
from onnxprune.layers.sampling import ROWS_EACH, each_for
from onnxprune.layers.scores import gives_scores, stretched
from onnxprune.layers.tail import find_tail
from onnxprune.layers.values import Unsuitable, Values
from onnxprune.progress import Steps
from onnxprune.recovery.cut_model import CutModel, LayerFit, Recovered
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.stream import Stream, mapped
from onnxprune.solvers.least_squares import Fit, Moments, Singular, error, match, solve_ridge
from onnxprune.solvers.ridge import Withheld
from onnxprune.solvers.threads import Beside
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.dead import without_dead

ENOUGH = 1.2  # times the rows that there are: less more is not worth another look
RIDGE = 0.03  # of the mean variance of a layer's inputs: where the search for the ridge of a layer begins


def refit(model: CutModel) -> Recovered:
    """The recovery `least-squares`; see the module."""
    return _fitted(model, "least-squares")


def rescale(model: CutModel) -> Recovered:
    """The recovery `mean-std`: every output is only scaled and shifted."""
    return _fitted(model, "mean-std")


def _fitted(model: CutModel, method: str) -> Recovered:
    data = model.data
    assert data is not None
    fitted, fits = least_squares(
        model.analysis, model.keep, model.cut.model, data.runs(), method=method, ridge=model.ridge,
        memory=data.memory, threads=data.threads, seed=data.seed, progress=model.progress,
    )  # fmt: skip
    release_memory()  # of the streams
    notes = [f"{f.node} ({f.op}) was not refitted: {f.reason}" for f in fits if f.reason]
    if not fits and not model.keep.all():
        notes.append(f"--recover {method} had nothing to fit: no layer that stays misses what went")
    return Step(fitted, tuple(fits), tuple(notes))


def least_squares(
    analysis: Analysis,
    keep: Keep,
    pruned: Model,
    source: Sequence[Feeds],
    *,
    method: str = "least-squares",
    ridge: float | None = None,
    memory: float = MEMORY,
    threads: int = 0,
    seed: int = 0,
    progress: Steps = lambda done, total: None,
) -> tuple[Model, list[LayerFit]]:
    """The pruned model with refitted layers, and what became of each layer that lost inputs.

    keep: ids that survive, bool `(ids,)`; pruned: what surgery made of it, without shifts of biases. A layer that lost
    nothing but units that change nothing stays as it is.
    source: inputs of both models, batch by batch. memory: bytes for activations.
    ridge: in mean variances of a layer's inputs; None for one of every layer, chosen on rows that are withheld.
    method: "least-squares", or "mean-std", which only scales and shifts every output.
    """
    edit = Edit(pruned)
    tasks, fits = find_tasks(analysis, keep, without_dead(analysis, keep), edit)
    whole = Stream(analysis.model, source, limit=memory / 2, threads=threads)
    narrow = mapped(source, lambda feeds: analysis.narrow(feeds, keep))
    small = Stream(edit.model, narrow, limit=memory / 2, threads=threads)
    for done, task in enumerate(tasks):
        progress(done, len(tasks))
        rows = Rows(task, whole, small, seed=seed)
        moments = [Moments(intercept=task.into.bias is not None) for _ in task.inside]
        try:
            choose = ridge is None and method == "least-squares"
            scores = choose and gives_scores(whole, task)
            withheld = Withheld(moments, task.into.rounded, choose=choose, scores=scores)
            solved, by = _solved(task, rows, withheld, method, ridge)
        except Singular as e:
            fits.append(LayerFit(task.whole.node.label, task.whole.node.op, 0.0, 0.0, moments[0].count, reason=str(e)))
            continue
        if method == "least-squares" and task.tail.bounds is not None:

            def fit(g: int, m: Moments, now: Fit, task: Task = task, by: float = by) -> Fit:
                return solve_ridge(m, task.prior(g), ridge=by)

            solved = activation_aware(rows, task, moments, solved, fit)
        before = np.mean([_plain_error(m, task.prior(g)) for g, m in enumerate(moments)])
        after = float(np.mean([s.error for s in solved]))
        weight, shift = np.stack([s.weight for s in solved]), np.concatenate([s.shift for s in solved])
        if scores:
            weight, shift = stretched(task, withheld, weight, shift)
            after = error(moments[0], weight[0])
        task.into.write(weight, shift)
        fits.append(LayerFit(task.whole.node.label, task.whole.node.op, float(before), after, moments[0].count, by))
    progress(len(tasks), len(tasks))
    return edit.model, fits


def _solved(task: Task, rows: Rows, withheld: Withheld, method: str, ridge: float | None) -> tuple[list[Fit], float]:
    """A fit per group of the moments, of as many rows as its error asks for, and the ridge, 0 for a method that has
    none. Raises `Singular`."""
    each, moments = float(ROWS_EACH), withheld.moments
    priors = [task.prior(g) for g in range(len(moments))]

    def fits(ridge: float) -> list[Fit]:
        return [solve_ridge(m, prior, ridge=ridge) for m, prior in zip(moments, priors, strict=True)]

    by = RIDGE if ridge is None else ridge
    while True:
        with Beside() as beside:
            for x, t, _ in rows.extend(each):
                beside(withheld.add, x, t, *rows.samples)
        if method == "mean-std":
            solved, by = [match(m, prior) for m, prior in zip(moments, priors, strict=True)], 0.0
        else:
            by = withheld.chosen(lambda ridge: np.stack([f.weight for f in fits(ridge)]), by)
            solved = fits(by)
        more = each_for(float(np.mean([s.error for s in solved])))
        if rows.complete or more <= ENOUGH * each:
            break
        each = more
    if withheld.waiting:
        withheld.release()
        solved = fits(by)
    return solved, by


def _plain_error(m: Moments, weight: Float) -> float:
    """Unexplained share of the variance with these weights and without another bias."""
    total = float(m.variance.sum())
    rest = float(np.einsum("do,do->", weight, m.gram @ weight) - 2 * np.einsum("do,do->", weight, m.cross)) + total
    off = m.t_mean - m.x_mean @ weight
    return (max(rest, 0.0) + float(np.square(off).sum())) / total if total > 0 else 0.0


def find_tasks(analysis: Analysis, keep: Keep, worth: Keep, edit: Edit) -> tuple[list[Task], list[LayerFit]]:
    """Layers to solve, in order; the others that lost inputs, with the reason why they stay.

    worth: ids that survive, or whose loss changes nothing.

    Behind a block that is gone, layers that are added to the stream make up for it, though they lost nothing.
    """
    c = analysis.coupling
    values, small = Values(analysis.model), Values(edit.model)
    readers = read_by(edit.model.proto)
    counterpart = {layer.key: layer for layer in linear_layers(edit.model)}
    tasks, left = [], []
    closed = [b for b in analysis.blocks if not keep[b.gate].any()]
    gone, sums = {n.key for b in closed for n in b.inside}, {b.node.key for b in closed if not worth[b.gate].any()}
    nodes = enumerate(walk(analysis.model.proto.graph, {}))
    first_gone = next((i for i, n in nodes if n.key in sums), None)
    for layer in linear_layers(analysis.model):
        if layer.key in gone:
            continue
        try:
            inside, outside = surviving(c, layer, keep, matrix(layer, values))
            alike = (inside == inside[:, :1]).all() and layer.group > 1  # whole groups go: depthwise
            whole = bool(surviving(c, layer, worth, matrix(layer, values))[0].all())
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
            left.append(LayerFit(layer.node.label, layer.node.op, 0.0, 0.0, 0, reason=str(e)))
    return tasks, left
