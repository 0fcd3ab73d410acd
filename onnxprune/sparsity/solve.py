"""Masks and weights of all layers from calibration data, layer after layer.

Every layer is a regression (layers/rows.py): its rows come from the model whose layers before are sparse
already, its targets from the dense model (sequential reconstruction), as in recovery/least_squares.py, of which this is
the counterpart for layers that lose weights instead of inputs. A solver (solvers/masks.py) chooses mask and weights,
`polish` makes the weights exact and exchanges what is better exchanged. sparsity/survey.py looks at the dense model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import cho_solve

from onnxprune import cache as entries
from onnxprune.calibration.calibration import Batches
from onnxprune.formats.patterns import Pattern
from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.edit import Edit
from onnxprune.graph.fingerprint import exact_digest
from onnxprune.graph.io import Model
from onnxprune.graph.links import read_by
from onnxprune.graph.shapes import infer
from onnxprune.layers.layer import Layer, linear_layers
from onnxprune.layers.places import Parameters, Place, parameters
from onnxprune.layers.regression import Rows, Task, activation_aware
from onnxprune.layers.rows import kernel_shape, matrix
from onnxprune.layers.sampling import MOST_EACH
from onnxprune.layers.scores import gives_scores, stretched
from onnxprune.layers.tail import find_tail
from onnxprune.layers.values import Unsuitable, Values, constant_names
from onnxprune.progress import Steps
from onnxprune.runtime.stream import Stream
from onnxprune.solvers.least_squares import Fit, Moments, damping
from onnxprune.solvers.masks import SOLVERS, NotPositive, Problem, polish, refit, seconds
from onnxprune.solvers.patterns import Choice, Count, Mask
from onnxprune.solvers.ridge import Withheld
from onnxprune.solvers.threads import blas_for
from onnxprune.sparsity.grow import Growing, grown

RIDGE = 0.01  # of the mean variance of a layer's inputs: where the search for the ridge of a layer begins
ENOUGH = "as many of its weights are zero already"


@dataclass(frozen=True)
class LayerSolve:
    """What became of one layer.

    plain, error: unexplained share of the variance of its outputs, on the data that it was solved with: of magnitude
    at the same sparsity, and of what was made; rows: of the regression; reason: why it was masked by magnitude alone;
    ridge: in mean variances of the inputs.
    """

    node: str
    plain: float
    error: float
    rows: int
    reason: str = ""
    ridge: float = 0.0


@dataclass(frozen=True)
class Method:
    """solver: of `SOLVERS`; recover: exact weights for the mask, and exchanges; ridge: in mean variances, None for one
    of every layer, chosen on rows that are withheld, where weights are recovered."""

    solver: str
    recover: bool = True
    ridge: float | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Job:
    """A weight, the layers that read it, and what goes of it; before: the matrix `(groups, in, out)` after the step
    before, of which zeros stay."""

    layer: Layer
    tasks: list[Task]
    nodes: list[str]
    count: int
    before: Float | None = None

    @property
    def first(self) -> int:
        """Index of the first of its layers among the nodes of the main graph."""
        return min(t.whole.index for t in self.tasks)


def solve(
    model: Model,
    layers: Sequence[Layer],
    counts: Mapping[str, int],
    pattern: Pattern | None,
    data: Batches,
    method: Method,
    *,
    saliency: Mapping[str, Array] | None = None,
    growing: Growing = Growing(),  # noqa: B008  (frozen)
    between: Callable[[Model], Model] | None = None,
    cache: Path | None = None,
    progress: Steps = lambda done, total: None,
) -> tuple[Model, list[LayerSolve]]:
    """The model with zeros, and what became of each layer.

    layers: those that become sparse; counts: weight -> entries that go; saliency: weight -> scores of its entries, for
    solvers by gradients, where there are some; growing: the steps in which the zeros come (sparsity/grow.py); between:
    what is done to the weights after every step but the last. A layer that no regression can be made of, or that no
    data reach, is masked by these scores, else by magnitude, with the reason. cache: folder in which finished layers
    are kept, of the first step alone where something is done between.
    """
    scored = dict(saliency or {})
    seen: list[Any] = [str(pattern), sorted(counts.items()), vars(method)]
    seen += [sorted((w, hashlib.sha256(s.tobytes()).hexdigest()) for w, s in scored.items())] if scored else []
    if growing.steps == 1:
        return _pass(model, None, layers, counts, pattern, data, method, scored, _Kept.open(cache, model, data, seen),
                     progress, {})  # fmt: skip
    sizes = {layer.initializer: int(np.prod(layer.shape)) for layer in layers}
    out: Model | None = None
    outcomes: list[LayerSolve] = []
    offsets: dict[str, Float] = {}
    plan = growing.parts(dict(counts), sizes, pattern)
    for k, (part, reached) in enumerate(plan):
        if out is not None and between is not None:
            out, cache = between(out), None
        part = growing.counts(part, k, partial(_weights, out or model, layers))
        folder = None if cache is None else cache / f"step-{k + 1}"
        kept = _Kept.open(folder, model, data, [*seen, vars(growing), k])
        counted = partial(_counted, progress, k, len(plan))
        out, outcomes = _pass(model, out, layers, part, reached, data, method, scored, kept, counted, offsets)
    assert out is not None, "a schedule has a last step"
    return out, outcomes


def _weights(model: Model, layers: Sequence[Layer]) -> dict[str, Array]:
    return {x.initializer: x.read(model) for x in layers}


def _counted(progress: Steps, k: int, steps: int, done: int, total: int) -> None:
    """What a step has done, of all steps."""
    progress(k * total + done, steps * total)


def _pass(
    model: Model,
    before: Model | None,
    layers: Sequence[Layer],
    counts: Mapping[str, int],
    pattern: Pattern | None,
    data: Batches,
    method: Method,
    saliency: Mapping[str, Array],
    kept: _Kept,
    progress: Steps,
    offsets: dict[str, Float],
) -> tuple[Model, list[LayerSolve]]:
    """`solve` in one step. before: the model after the step before, whose zeros stay; offsets: what the original adds
    to the outputs of each weight's layer, which the first step leaves behind for the others."""
    edit = Edit(model if before is None else before)
    jobs, outcomes = jobs_of(model, edit, layers, counts)
    for layer in layers:
        if layer.name in outcomes:
            start, scores = model if before is None else before, saliency.get(layer.initializer)
            layer.write(edit.model, by_magnitude(start, layer, pattern, counts[layer.initializer], scores))
    whole = Stream(model, data.source, limit=data.memory / 2, threads=data.threads)
    small = Stream(edit.model, data.source, limit=data.memory / 2, threads=data.threads)
    work = np.cumsum([0.0, *(_work(j) for j in jobs)])
    exact = not outcomes  # whether all layers so far are as they were
    for k, job in enumerate(jobs):
        progress(int(1000 * work[k] / work[-1]), 1000)
        now = job.tasks[0].matrix if before is None else matrix(job.tasks[0].pruned, Values(edit.model))
        if (job.count or exact) and enough_zeros(job.layer, now, pattern, job.count):
            outcomes |= {node: LayerSolve(node, 0.0, 0.0, 0, ENOUGH) for node in job.nodes}
            continue
        exact = False
        if len(job.tasks) == 1:
            offset = offsets.setdefault(job.layer.initializer, _offset(job.tasks[0]))
            job = replace(job, tasks=[_moved_back(job.tasks[0], offset)])
        if before is not None:
            job = replace(job, before=now)
        result = kept.read(job)
        if result is None:
            with blas_for(job.tasks[0].matrix.shape[1]):
                result = _solve(job, pattern, whole, small, method, saliency.get(job.layer.initializer))
            kept.write(job, result)
        weight, shift, outcome = result
        if outcome.reason:
            start, scores = model if before is None else before, saliency.get(job.layer.initializer)
            job.layer.write(edit.model, by_magnitude(start, job.layer, pattern, job.count, scores))
        else:
            job.tasks[0].into.write(weight, shift)
        outcomes |= {node: replace(outcome, node=node) for node in job.nodes}
    progress(1000, 1000)
    return edit.model, [outcomes[key] for key in outcomes]


def _offset(task: Task) -> Float:
    """What is added to the products of a layer, `(groups * out,)`: its bias, and that of the nodes behind it."""
    place = task.into.bias
    if task.whole.trait.recurs:
        both = np.zeros((1, 0)) if place is None else place.read()  # (D, 2 * gates * H), of the input first
        return np.asarray(both[:, : both.shape[1] // 2].ravel())
    return task.offset() / np.where(task.tail.scale == 0, 1, task.tail.scale)


def _moved_back(task: Task, offset: Float) -> Task:
    """The task after its layer has got back what the original adds: targets are the original's, and the shift that an
    earlier step has put into the bias must not be counted again."""
    drift = _offset(task) - offset
    if task.into.bias is None or not drift.any():
        return task
    task.into.move(-drift)
    if task.into.own_bias:
        return task
    return replace(task, tail=replace(task.tail, shift=task.tail.shift - task.tail.scale * drift))


def solver_seconds(layers: Sequence[Layer], solver: str) -> float:
    """Roughly how long the solver takes on two cores, in seconds; what runs the model comes on top."""
    once = {x.initializer: x for x in layers}.values()
    return sum(x.group * seconds(x.shape[0] // x.group, int(np.prod(x.shape[1:])), SOLVERS[solver]) for x in once)


def by_magnitude(model: Model, layer: Layer, pattern: Pattern | None, count: int, scores: Array | None = None) -> Array:
    """The weight float32, as the layer reads it, with zeros where |w| is smallest, or other scores of its shape."""
    w = layer.read(model)
    mask = kept(layer, pattern, count, np.abs(w) if scores is None else np.where(w == 0, 0, scores))
    return np.ascontiguousarray(np.where(mask & (w != 0), w, np.float32(0)))  # +0.0, also instead of -0.0


def kept(layer: Layer, pattern: Pattern | None, count: int, scores: Array) -> Mask:
    """The entries that stay where `count` of the lowest scores go, bool; scores: of a weight as the layer reads it."""
    if pattern is None:
        return Count(count).keep(scores)
    rows = zip(choices(layer, pattern, count), layer.rows(scores), strict=True)
    return np.asarray(layer.unrows(np.stack([c.keep(s) for c, s in rows])))


def enough_zeros(layer: Layer, weight: Float, pattern: Pattern | None, count: int) -> bool:
    """Whether as many entries as are to go are zero already, where the pattern wants zeros; weight: the matrix
    `(groups, in, out)`."""
    if pattern is None:
        return weight.size - int(np.count_nonzero(weight)) >= count
    order = columns_of(layer, weight.shape[1])
    each = zip(choices(layer, pattern, count), (w[order].T != 0 for w in weight), strict=True)
    return not any(filled[~c.keep(filled.astype(np.float64))].any() for c, filled in each)


def choices(layer: Layer, pattern: Pattern | None, count: int) -> list[Choice]:
    """What may stay of every group of a layer, where `count` entries of the weight are to go."""
    g, o = layer.group, layer.shape[0] // layer.group
    d = int(np.prod(layer.shape[1:]))
    ends = np.round(count * np.arange(g + 1) / g).astype(int)
    each = np.diff(ends).tolist()
    if pattern is None:
        return [Count(n) for n in each]
    return [pattern.choice(o, layer.segment, d, n) for n in each]


def jobs_of(
    model: Model, edit: Edit, layers: Sequence[Layer], counts: Mapping[str, int]
) -> tuple[list[Job], dict[str, LayerSolve]]:
    """Jobs in order, and the outcome of layers that are no regression."""
    constant = constant_names(model)
    reasons = {layer.name: unsolvable(layer, constant) for layer in layers}
    counterpart = {layer.key: layer for layer in linear_layers(edit.model)}
    values, pruned_values = Values(model), Values(edit.model)
    readers = read_by(edit.model.proto)
    shapes = infer(model).shapes
    tasks: dict[str, list[Task]] = {}
    outcomes: dict[str, LayerSolve] = {}
    by_weight: dict[str, list[Layer]] = {}
    for layer in layers:
        by_weight.setdefault(layer.initializer, []).append(layer)
    for weight, sharing in by_weight.items():
        try:
            for layer in sharing:
                if reasons[layer.name]:
                    raise Unsuitable(reasons[layer.name])
                small = counterpart[layer.key]
                task = _task(edit, layer, small, values, pruned_values, readers, shapes, len(sharing) > 1)
                tasks.setdefault(weight, []).append(task)
        except Unsuitable as e:
            tasks.pop(weight, None)
            outcomes.update((layer.name, LayerSolve(layer.name, 0.0, 0.0, 0, str(e))) for layer in sharing)
    jobs = [
        Job(by_weight[w][0], sharing_tasks, [x.name for x in by_weight[w]], counts[w])
        for w, sharing_tasks in tasks.items()
    ]
    return sorted(jobs, key=lambda j: j.first), outcomes


def unsolvable(layer: Layer, constant: Container[str]) -> str:
    """Why outputs are not rows of inputs times the weight, "" where they are; constant: names that no input reaches."""
    if layer.inside:
        return f"it is inside the {layer.inside}, where no data are seen"
    if not layer.trait.rows:
        return f"{layer.op} is no regression that is solved"
    if layer.slot not in (layer.trait.weight, layer.trait.swaps):
        return f"it multiplies what {layer.op} gave a step before"
    if layer.turned:
        return f"its weight {layer.initializer} is read in another orientation as well"
    if layer.left:
        return "its weight is the left operand"
    if not layer.convolves and not layer.trait.recurs and len(layer.array_shape) != 2:
        return "its weight is no matrix"
    if layer.source in constant:
        return "its input is constant"
    return "" if float(layer.node.attr("alpha", 1.0)) else "alpha is 0, so that its weight does nothing"


def _task(
    edit: Edit, whole: Layer, small: Layer, values: Values, current: Values, readers: Any, shapes: Any, shared: bool
) -> Task:
    m = matrix(whole, values)
    g, d, o = m.shape
    tail = find_tail(small, edit.model, current, readers, g * o, shapes)
    if shared:
        assert whole.stored is not None, "it may hold zeros"
        into = Parameters(small, Place(edit.model, whole.stored), None)
    else:
        into = parameters(edit, small, tail, current, readers)
    return Task(whole, small, np.ones((g, d), bool), np.ones((g, o), bool), tail, into, m, kernel_shape(whole, values))


def _work(job: Job) -> int:
    g, d, o = job.tasks[0].matrix.shape
    return int(g * d * d * (20 * d + 200 * o + 2000))


def columns_of(layer: Layer, columns: int) -> Array:
    """The columns of a regression (channel, then kernel position) in the order of `Layer.rows`."""
    if not layer.convolves:
        return np.arange(columns)
    return np.arange(columns).reshape(layer.segment, -1).T.ravel()


Solved = tuple[Float, Float, LayerSolve]


def _solve(
    job: Job, pattern: Pattern | None, whole: Stream, small: Stream, method: Method, saliency: Array | None
) -> Solved:
    """Matrix `(groups, in, out)`, shift `(groups * out,)`, and what became of the layer.

    saliency: scores of its weights, for a solver that goes by them.
    """
    if saliency is None and SOLVERS[method.solver].gradients:
        reason = "no gradient reaches it"
        return np.zeros(0), np.zeros(0), LayerSolve(job.layer.name, 0.0, 0.0, 0, reason)
    scores = None if saliency is None else job.layer.rows(saliency)
    first = job.tasks[0]
    g, d, o = first.matrix.shape
    moments = [Moments(intercept=first.into.bias is not None) for _ in range(g)]
    regressions = [Rows(task, whole, small, seed=method.seed) for task in job.tasks]
    choose = method.recover and method.ridge is None
    final = choose and len(job.tasks) == 1 and gives_scores(whole, first)
    withheld = Withheld(moments, first.into.rounded, choose=choose, scores=final)
    for rows in regressions:
        for x, t, _ in rows.extend(MOST_EACH):
            withheld.add(x, t, *rows.samples)
    order = columns_of(job.layer, d)
    allowed = choices(job.layer, pattern, job.count)

    def magnitude(ridge: float) -> Float:
        """Weights where magnitude, in the scale of the inputs, leaves some."""
        fitted = np.zeros((g, d, o))
        for k, choice in enumerate(allowed):
            problem = problem_of(moments[k], first.prior(k), order, ridge, constant=True)
            fitted[k][order] = refit(problem, choice.keep(np.abs(problem.original) * problem.norms)).T
        return fitted

    by = withheld.chosen(magnitude, RIDGE if method.ridge is None else method.ridge)
    withheld.release()
    new, shift = np.zeros((g, d, o)), np.zeros((g, o))
    plain = error = 0.0
    masks = []
    some = len(moments) > 1 and any(varying(moments))
    for k, choice in enumerate(allowed):
        try:
            problem = problem_of(moments[k], first.prior(k), order, by, constant=some)
            problem = problem if scores is None else replace(problem, saliency=scores[k])
            if job.before is not None:
                start = np.ascontiguousarray(job.before[k][order].T)
                mask, w = grown(problem, choice, start, method.solver, recover=method.recover)
            else:
                mask, w = SOLVERS[method.solver].solve(problem, choice)
                if method.recover:
                    mask, w = polish(problem, choice, mask, w)
        except NotPositive as e:
            return new, shift.ravel(), LayerSolve(job.layer.name, 0.0, 0.0, moments[0].count, str(e))
        masks.append(mask)
        new[k][order] = np.where(mask, w, 0.0).T
        kept = choice.keep(np.abs(problem.original))
        base = np.zeros((d, o))
        base[order] = np.where(kept, problem.original, 0.0).T
        plain += unexplained(moments[k], base) / g
    new = first.into.rounded(new)
    for k, m in enumerate(moments):
        shift[k] = m.t_mean - m.x_mean @ new[k] if m.intercept else 0.0
        error += unexplained(m, new[k]) / g
    if method.recover and first.tail.bounds is not None and len(job.tasks) == 1:

        def fit(k: int, m: Moments, now: Fit) -> Fit:
            problem = problem_of(m, first.prior(k), order, by, constant=some)
            w = refit(problem, masks[k], np.ascontiguousarray(now.weight[order].T))
            weight = np.zeros((d, o))
            weight[order] = w.T
            return Fit(weight, m.t_mean - m.x_mean @ weight if m.intercept else np.zeros(o), 0.0)

        fits = [Fit(new[k], shift[k], 0.0) for k in range(g)]
        fits = activation_aware(regressions[0], first, moments, fits, fit)
        new, shift = np.stack([f.weight for f in fits]), np.stack([f.shift for f in fits])
    shifts = shift.ravel()
    if final:
        new, shifts = stretched(first, withheld, new, shifts)
        error = unexplained(moments[0], new[0])
    return new, shifts, LayerSolve(job.layer.name, plain, error, moments[0].count, ridge=by)


def unexplained(moments: Moments, weight: Float) -> float:
    """Share of the targets' variance that the outputs with these weights, and the best shift, do not explain."""
    total = float(moments.variance.sum())
    rest = total - 2 * float(np.einsum("do,do->", weight, moments.cross))
    rest += float(np.einsum("do,do->", weight, moments.gram @ weight))
    return max(rest, 0.0) / total if total > 0 else 0.0


def varying(moments: Sequence[Moments]) -> list[bool]:
    """Whether the inputs of each group vary; of a single group it is taken to be so, and its problem looks."""
    return [len(moments) == 1 or (m.count > 0 and bool(np.diag(m.gram).any())) for m in moments]


def problem_of(
    moments: Moments, prior: Float, order: Array, ridge: float, *, targets: bool = True, constant: bool = False
) -> Problem:
    """The regression as a solver takes it; prior: `(in, out)`, the layer's own weights.

    targets: False where the layer's own outputs on its own inputs are the targets. constant: whether inputs that do not
    vary are a problem, too, of a group among others whose inputs do: all its weights are alike to it, the smallest go.
    Raises `NotPositive`.
    """
    if not moments.count:
        raise NotPositive("no data reached it")
    gram = moments.covariance()
    if not np.isfinite(gram).all():
        raise NotPositive("its inputs are not finite")
    if not constant and not np.diag(gram).any():
        raise NotPositive("its inputs are constant")
    norms = np.sqrt(np.diag(gram) + np.square(moments.x_mean))[order]
    lam = damping(gram, ridge)
    cross = moments.cross + lam * prior if targets else None
    if (order[1:] < order[:-1]).any():
        gram = gram[np.ix_(order, order)]
    gram[np.diag_indices_from(gram)] += lam
    original = np.ascontiguousarray(prior.T[:, order])
    problem = Problem(gram, original, original, norms)
    if cross is None:
        return problem
    target = cho_solve(problem.factor(), cross[order], overwrite_b=True, check_finite=False).T
    return replace(problem, target=np.ascontiguousarray(target))


@dataclass(frozen=True)
class _Kept:
    """Finished layers in a folder, so that work that was stopped goes on where it was; key: of all of them."""

    folder: Path | None
    key: str = ""

    @staticmethod
    def open(folder: Path | None, model: Model, data: Batches, options: Any) -> _Kept:
        """The layers of one model, its samples and options, among others that the folder may hold. Raises `OptionError`
        where the folder cannot be made."""
        if folder is None:
            return _Kept(None)
        batches = [{name: x.shape for name, x in feeds.items()} for feeds in data.source]
        with entries.cache_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return _Kept(folder, entries.digest("layers", exact_digest(model), data.digest, batches, options))

    def _entry(self, job: Job) -> tuple[Path, str]:
        """File and key of a layer."""
        assert self.folder is not None
        key = entries.digest("layer", self.key, job.layer.name, job.nodes, job.count, job.tasks[0].matrix.shape)
        return self.folder / f"sparse-{key[:24]}.npz", key

    def read(self, job: Job) -> Solved | None:
        if self.folder is None:
            return None
        with entries.cache_errors(self.folder):
            z = entries.read_arrays(*self._entry(job))
        if z is None:
            return None
        plain, error, ridge = z["errors"].tolist()
        outcome = LayerSolve(job.layer.name, plain, error, int(z["rows"]), str(z["reason"]), ridge)
        return z["weight"], z["shift"], outcome

    def write(self, job: Job, result: Solved) -> None:
        if self.folder is None:
            return
        weight, shift, outcome = result
        errors = [outcome.plain, outcome.error, outcome.ridge]
        content = {"weight": weight, "shift": shift, "errors": errors, "rows": outcome.rows, "reason": outcome.reason}
        with entries.cache_errors(self.folder):
            entries.write_arrays(*self._entry(job), content)
