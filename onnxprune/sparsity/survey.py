"""What calibration data say of the layers of a dense model, before anything is cut.

`survey` goes through the layers with the moments of their inputs; the rest is what permutations, allocators and
codebooks want to know of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.calibration.calibration import Batches
from onnxprune.evaluation.damage import damage
from onnxprune.formats.patterns import Pattern
from onnxprune.formats.values import round_values
from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.layers.layer import Layer, sparse_layers
from onnxprune.layers.regression import source_rows
from onnxprune.layers.rows import kernel_shape, matrix
from onnxprune.layers.sampling import MOST_EACH
from onnxprune.layers.values import Values, constant_names
from onnxprune.progress import Steps
from onnxprune.runtime.classes import joined
from onnxprune.runtime.stream import Stream
from onnxprune.solvers.least_squares import Moments
from onnxprune.solvers.masks import NotPositive, Problem, inverse, refit
from onnxprune.solvers.patterns import Choice
from onnxprune.sparsity.allocate import LEVELS, Facts
from onnxprune.sparsity.solve import RIDGE, choices, columns_of, enough_zeros, jobs_of, problem_of, unsolvable, varying

OUTLIER = 5.0  # times the mean of |w| ||x|| (OWL)
TYPICAL = 0.03  # error of a layer at which its damage to the outputs is measured: what is small is in proportion
QUICK = 12  # iterations of the weights that errors are measured with


def uncounted(done: int, total: int) -> None:
    """`Steps` that tell nobody."""


@dataclass(frozen=True, eq=False)
class Surveyed:
    """A layer with the moments of the inputs of each of its groups, and its problems; order: of their columns; varies:
    whether the inputs of each group do."""

    layer: Layer
    moments: list[Moments]
    problems: list[Problem]
    order: Array
    varies: list[bool]


def survey(
    model: Model,
    layers: Sequence[Layer],
    data: Batches,
    *,
    ridge: float = RIDGE,
    seed: int = 0,
    progress: Steps = uncounted,
) -> Iterator[Surveyed]:
    """The layers that are regressions, in order; those without data, or with constant inputs, are left out."""
    values, constant = Values(model), constant_names(model)
    stream = Stream(model, data.source, limit=data.memory, threads=data.threads)
    rng = np.random.default_rng(seed)
    for done, layer in enumerate(sorted(layers, key=lambda x: x.index)):
        progress(done, len(layers))
        if unsolvable(layer, constant):
            continue
        m, kernel = matrix(layer, values), kernel_shape(layer, values)
        g, d, _ = m.shape
        moments = [Moments() for _ in range(g)]
        for by_group in source_rows(stream, layer, kernel, (g, d), MOST_EACH, rng):
            for k, part in enumerate(by_group):
                moments[k].add(part)
        with suppress(NotPositive):
            order = columns_of(layer, d)
            varies = varying(moments)
            some = g > 1 and any(varies)
            problems = [problem_of(moments[k], m[k], order, ridge, targets=False, constant=some) for k in range(g)]
            yield Surveyed(layer, moments, problems, order, varies)
    progress(len(layers), len(layers))


def saliencies(
    model: Model, layers: Sequence[Layer], data: Batches, *, seed: int = 0, progress: Steps = uncounted
) -> dict[str, Array]:
    """Initializer -> w^2 / [H^-1]_jj float32 in the weight's own shape, where data reach it: the error that losing a
    weight leaves when the others of its row make up for it (Hassibi and Stork 1993)."""
    out = {}
    for surveyed in survey(model, layers, data, seed=seed, progress=progress):
        with suppress(NotPositive):
            scores = [np.square(p.original) / np.diag(inverse(p)) for p in surveyed.problems]
            out[surveyed.layer.initializer] = surveyed.layer.unrows(np.stack(scores).astype(np.float32))
    return out


def curvatures(model: Model, data: Batches, *, seed: int = 0, progress: Steps = uncounted) -> dict[str, Array]:
    """Initializer -> mean square of the input that every entry meets, in the weight's own shape: the diagonal of the
    Hessian of the layer's error, where data reach it."""
    out = {}
    for surveyed in survey(model, sparse_layers(model)[0], data, seed=seed, progress=progress):
        square = [np.broadcast_to(np.square(p.norms), p.original.shape) for p in surveyed.problems]
        out[surveyed.layer.initializer] = surveyed.layer.unrows(np.stack(square))
    return out


def facts(
    model: Model,
    layers: Sequence[Layer],
    pattern: Pattern | None,
    data: Batches,
    *,
    errors: bool,
    levels: Sequence[float] = LEVELS,
    values: str = "float32",
    seed: int = 0,
    progress: Steps = uncounted,
) -> dict[str, Facts]:
    """Initializer -> what allocators want to know.

    errors: also the error at every one of the levels (sparsities), of a quick solver, in units of the damage that the
    layer alone does to the outputs on samples that were held out, measured where the error is typical (without such
    samples relative to the layer's own outputs); values: type in which what is left is stored.
    """
    out: dict[str, Facts] = {}
    edit = Edit(model)
    jobs, _ = jobs_of(model, edit, layers, dict.fromkeys((x.initializer for x in layers), 0))
    into = {j.layer.initializer: j for j in jobs}
    names = [o.name for o in model.proto.graph.output]
    tested = Stream(edit.model, data.held_out, limit=data.memory, threads=data.threads)
    measure = None
    if errors and data.held_out:
        whole = Stream(model, data.held_out, threads=data.threads)
        measure = damage(model, whole.compute(names), names, data.unseen)
    learned = replace(data, source=data.learn or data.source)
    for surveyed in survey(model, layers, learned, seed=seed, progress=progress):
        weight, problems = surveyed.layer.initializer, surveyed.problems
        size = sum(p.target.size for p in problems)
        scores = np.concatenate([np.abs(p.original) * p.norms for p in problems])
        outliers = float((scores > OUTLIER * scores.mean()).mean())
        if not errors:
            out[weight] = Facts(size, outliers, ())
            continue
        try:
            saliency = [np.square(p.original) / np.diag(inverse(p)) for p in problems]
        except NotPositive:
            continue
        own = matrix(surveyed.layer, Values(model))
        free = 1 - np.count_nonzero(own) / size if pattern is None else 0.0
        curve: list[float] = []
        tried: list[list[Float]] = []
        for level in levels:
            count = round(level * size)
            part = choices(surveyed.layer, pattern, count)
            if enough_zeros(surveyed.layer, own, pattern, count):
                free = max(free, level)
                tried.append([p.original for p in problems])
            else:
                tried.append([_quick(p, c, s) for p, c, s in zip(problems, part, saliency, strict=True)])
            if values != "float32":
                tried[-1] = [round_values(w.astype(np.float32), values) for w in tried[-1]]
            lost = [p.error(w) if v else 0.0 for p, w, v in zip(problems, tried[-1], surveyed.varies, strict=True)]
            curve.append(float(np.mean(lost)))
        job = into.get(weight)
        factor = 1.0
        if measure is not None and job is not None and max(curve) > 0:
            at = int(np.argmin(np.abs(np.log(np.maximum(curve, 1e-12) / TYPICAL))))
            place = job.tasks[0].into
            old = {p.name: edit.model.weights[p.name] for p in (place.weight, place.bias) if p is not None}
            new = np.zeros_like(job.tasks[0].matrix)
            for g, w in enumerate(tried[at]):
                new[g][surveyed.order] = w.T
            missing = [m.x_mean @ (job.tasks[0].matrix[g] - new[g]) for g, m in enumerate(surveyed.moments)]
            place.write(new, np.concatenate(missing))
            tested.advance(job.first)
            factor = measure(joined(tested.compute(names), names)) / curve[at]
            edit.model.weights.update(old)
        out[weight] = Facts(size, outliers, tuple(e * factor for e in curve), free)
    progress(len(layers), len(layers))
    return out


def _quick(problem: Problem, choice: Choice, saliency: Float) -> Float:
    """Weights for a mask by saliency, nearly exact."""
    return refit(problem, choice.keep(saliency), iterations=QUICK)
