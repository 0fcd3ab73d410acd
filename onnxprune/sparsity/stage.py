"""The sparse stage of the recipe: prepare, permute, mask, store, verify.

In goes a model, and what is wanted of it; out comes a `Step` with the model whose weights are sparse, and what became
of every layer. Zeros are made (`Zeros`), or those that the model has are stored as they are (a format alone), or a
plan's are made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.formats.dense import DENSE
from onnxprune.formats.format import Packing
from onnxprune.formats.operators import METADATA, is_sparse
from onnxprune.formats.patterns import NMPattern, Pattern
from onnxprune.formats.registry import candidates, has_operators
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.step import Step
from onnxprune.layers.layer import Layer, node_names, sparse_layers
from onnxprune.progress import Progress, counting, silent
from onnxprune.runtime.session import Feeds
from onnxprune.sparsity.allocate import Counts, below
from onnxprune.sparsity.amounts import counts_of, layer_names, names_of, ratios_of, recorded_ratios
from onnxprune.sparsity.grow import Growing, Part
from onnxprune.sparsity.outcome import LayerSparsity, Sparsity, weights_left
from onnxprune.sparsity.prepare import prepare
from onnxprune.sparsity.spec import Spec
from onnxprune.sparsity.store import Stored, rounding, store
from onnxprune.structure.check import ON_FLOAT32, check_file, check_same, running

if TYPE_CHECKING:
    from onnxprune.calibration.calibration import Batches
    from onnxprune.importance.shown import Shown
    from onnxprune.sparsity.permute import Permuted
    from onnxprune.sparsity.solve import LayerSolve

Scored = tuple[dict[str, Array] | None, dict[str, str]]  # weight -> scores of its entries; weight -> why it has none
LONG = 10.0  # seconds that are worth a line
TOLERANCE = 1e-3  # of the largest output: other order of the same sums, which normalisations amplify
PREPARED = 1e-3  # the same, for steps that round weights


def sparsify(
    model: Model,
    spec: Spec,
    guesses: Sequence[Feeds],
    *,
    verify: bool = True,
    threads: int = 0,
    dry_run: bool = False,
    data: Batches | None = None,
    labelled: Shown | None = None,
    finish: Callable[[Model], Model] | None = None,
    progress: Progress = silent,
) -> Step[Sparsity]:
    """The sparse model, what became of its layers, and notes. The model that comes in is not changed.

    guesses: inputs to check and measure with; the first that runs is used. A dry run measures, so that its plan
    replays what the run would have made, but does not check. data: what solvers work on; None leaves magnitude.
    labelled: samples with labels, for solvers that go by them; finish: what else is done to the values before they are
    stored, and between the steps in which zeros grow; zeros stay.
    Raises `OptionError`, `NothingToPrune`, and `VerificationError` where rewriting changed the outputs.
    """
    spec.check(data is not None)
    start = _prepare(model, spec)
    check = verify and not dry_run
    feeds, float32 = running(start.model, guesses, measured=spec.measured) if check or spec.measured else ({}, False)
    ordered = _permute(start, spec, data, progress)
    masked = _mask(ordered, spec, data, labelled, finish, progress)
    masked = masked if finish is None else replace(masked, model=finish(masked.model))
    stored = store(masked.model, masked.layers, spec, feeds, threads=threads, progress=progress)
    growing = spec.growing(data is not None)
    error, notes = None, [*start.notes, *ordered.notes, *masked.notes, *stored.notes, *spec.fewer(data is not None)]
    if check:
        progress("verify")
        error, more = _verify(model, start, ordered, stored, feeds, float32=float32)
        notes += more
    outcome = Sparsity(
        spec.solver(data is not None), str(spec.pattern or ""), spec.form, _rows(ordered, masked, stored, spec),
        start.untouched, stored.speedup, stored.cpu, stored.threads, error, masked.solved, spec.values,
        rounding(masked.model, stored.plain, masked.layers), ordered.permuted, growing.steps,
        growing.growth, growing.quality,
    )  # fmt: skip
    if spec.present and not stored.formats:
        return Step(model, outcome, tuple(notes))
    if has_operators(spec.form):
        _describe(stored.model, outcome)
    return Step(stored.model, outcome, tuple(notes))


@dataclass(frozen=True, eq=False)
class _Start:
    """A model ready to be masked: its layers, those that cannot be sparse, and the fraction of zeros of the others."""

    model: Model
    layers: list[Layer]
    untouched: tuple[tuple[str, str], ...]
    ratios: Mapping[str, float]
    notes: tuple[str, ...]
    permuted: tuple[Permuted, ...] = ()

    @property
    def asked_layers(self) -> list[Layer]:
        """Layers of which anything is asked."""
        return [layer for layer in self.layers if self.ratios.get(layer.name, 0.0) > 0]


@dataclass(frozen=True, eq=False)
class _Masked:
    """The model with its zeros, the layers that were asked for (all that share a weight with one), weight -> entries
    that were to go, and what solvers say."""

    model: Model
    layers: list[Layer]
    counts: Counts
    solved: tuple[LayerSolve, ...] = ()
    notes: tuple[str, ...] = ()


def _prepare(model: Model, spec: Spec) -> _Start:
    """The model as masks and operators want it; where its own zeros are stored, weights stay as they are."""
    refuses = refusal(spec)
    prepared, notes = prepare(
        model, functions=has_operators(spec.form), fold=not spec.present, takes=lambda layer: not refuses(layer)
    )
    every, untouched = sparse_layers(prepared)
    layers = [layer for layer in every if not refuses(layer)]
    untouched += [(layer.name, refuses(layer)) for layer in every if refuses(layer)]
    more = sum(bool(refuses(layer)) and not unsuited(layer, spec.pattern) for layer in every)
    if more and layers and spec.makes_zeros and spec.measured and spec.store.format is None:
        notes.append(
            f"layers that no sparse operator takes stay as they are: {more}; --format dense makes zeros in them"
        )
    at = {name: k for k, name in enumerate(node_names(prepared.proto))}
    untouched.sort(key=lambda row: at.get(row[0], len(at)))
    if not layers:
        none = "no node multiplies with a weight that the file stores"
        if any(is_sparse(node) for node in model.proto.graph.node):
            none = "its layers are sparse already; onnxprune densify MODEL first"
        why = "; ".join(dict.fromkeys(reason for _, reason in untouched)) or none
        way = "; --format dense makes zeros in a plain file" if every and spec.makes_zeros and not spec.dense else ""
        raise NothingToPrune(f"{model.path or 'the model'}: no layer can be sparse: {why}{way}")
    if spec.recorded is not None:
        ratios = recorded_ratios(layers, spec.recorded)
    else:
        before = layer_names(model)
        known = {w: before.get(w, set()) | names for w, names in names_of(prepared).items()}
        ratios = ratios_of(known, layers, spec.zeros, spec.ratio, spec.ignore)
        if spec.present:
            ratios = {layer.name: ratios.get(layer.name, 1.0) for layer in layers}
    return _Start(prepared, layers, tuple(untouched), ratios, tuple(notes))


def refusal(spec: Spec) -> Callable[[Layer], str]:
    """Layer -> why what is wanted cannot be had of it, "" where it can: by none of the formats, or not by the
    pattern."""
    formats, pattern = candidates(spec.form, spec.pattern, present=spec.present), spec.pattern

    def why(layer: Layer) -> str:
        reasons = [row.refuses(layer) for row in formats]
        return reasons[0] if all(reasons) else unsuited(layer, pattern)

    return why


def unsuited(layer: Layer, pattern: Pattern | None) -> str:
    """Why zeros cannot lie in a layer as a pattern wants them, whatever the format."""
    if pattern is not None and layer.turned:
        return f"its weight {layer.initializer} is read in another orientation as well"
    if isinstance(pattern, NMPattern) and layer.segment == 1:
        return f"it has one input{' channel' * layer.convolves} per output, of which {pattern} can leave out none"
    return ""


def _permute(start: _Start, spec: Spec, data: Batches | None, progress: Progress) -> _Start:
    """The model with its channels in an order in which N:M costs less; what a weight costs is w^2, or with data
    w^2 / [H^-1]_jj, the error that is left when the others make up for it."""
    if not spec.permutes:
        return _Start(start.model, start.layers, start.untouched, start.ratios, ())
    from onnxprune.sparsity.permute import permute
    from onnxprune.sparsity.survey import saliencies

    model, layers, pattern = start.model, start.asked_layers, spec.pattern
    assert isinstance(pattern, NMPattern)
    known: dict[str, Array] = {}
    if data is not None:
        known = saliencies(model, layers, data, seed=spec.seed, progress=counting(progress, "survey"))

    def saliency(layer: Layer) -> Array:
        score = known.get(layer.initializer)
        return np.square(layer.read(model)) if score is None else score

    out, permuted, notes = permute(
        model, layers, pattern, saliency, seed=spec.seed, progress=counting(progress, "permute")
    )
    found = {layer.name: layer for layer in sparse_layers(out)[0]} if permuted else {}  # scales have moved as well
    ordered = [found.get(layer.name, layer) for layer in start.layers]
    return _Start(out, ordered, start.untouched, start.ratios, tuple(notes), tuple(permuted))


def _mask(
    start: _Start, spec: Spec, data: Batches | None, labelled: Shown | None,
    between: Callable[[Model], Model] | None, progress: Progress,
) -> _Masked:  # fmt: skip
    """The model with zeros where they are wanted; between: what is done to it between steps."""
    model = start.model
    by_weight = {layer.initializer: layer for layer in start.asked_layers}  # a shared weight is masked once
    chosen = [layer for layer in start.layers if layer.initializer in by_weight]
    if spec.present:
        return _Masked(
            model, chosen, {w: x.size - int(np.count_nonzero(x)) for w, x in _weights(model, chosen).items()}
        )
    for name, w in _weights(model, chosen).items():
        if not np.isfinite(w).all():
            raise OptionError(f"weight {name!r} holds NaN or infinity, which have no order; leave it out with --ignore")
    once = list(by_weight.values())
    saliency, lacking = _saliency(model, once, start.ratios, spec, data, labelled, progress)
    growing = spec.growing(data is not None)
    again = growing.quality is not None and growing.steps > 1  # a plan's counts are those after the last step
    if spec.recorded is not None and not again:
        counts = {x.initializer: int(spec.recorded["layers"][x.name]["zeros"]) for x in once}
    elif spec.quality is not None:
        counts = below(_weights(model, once), spec.quality)
    else:
        counts = counts_of(
            model, once, start.ratios, spec.zeros, data, seed=spec.seed, progress=progress, saliency=saliency
        )  # fmt: skip
    if data is None:
        parts = growing.parts(counts, {x.initializer: int(np.prod(x.shape)) for x in once}, spec.pattern)
        score = partial(
            _saliency, layers=once, ratios=start.ratios, spec=spec, data=None, labelled=labelled, progress=progress
        )  # fmt: skip
        return _by_scores(model, chosen, parts, growing, (saliency, lacking), score, between)
    from onnxprune.sparsity.solve import RIDGE, Method, solve, solver_seconds

    method = Method(spec.solver(True), spec.recover, RIDGE if data.synthetic else None, spec.seed)
    took = solver_seconds(chosen, method.solver) * growing.steps
    if took > LONG:
        progress("solve", note=f"solving {len(chosen)} layers with {method.solver}; about {took:.0f} s")
    out, solved = solve(
        model, chosen, counts, spec.pattern, data, method, saliency=saliency, growing=growing, between=between,
        cache=spec.cache, progress=counting(progress, "solve"),
    )  # fmt: skip
    counts = _zeros(out, once) if again else counts
    of = {x.name: x.initializer for x in chosen}
    notes = []
    for x in solved:
        by = method.solver if saliency is not None and of[x.node] in saliency else "magnitude"
        why = lacking.get(of[x.node], x.reason)
        notes += [f"{x.node}: masked by {by}: {why}"] if x.reason else []
    return _Masked(out, chosen, counts, tuple(solved), (*notes, *_torn(chosen, spec.pattern)))


def _saliency(
    model: Model, layers: Sequence[Layer], ratios: Mapping[str, float], spec: Spec, data: Batches | None,
    labelled: Shown | None, progress: Progress,
) -> Scored:  # fmt: skip
    """By a solver that goes by gradients; None for another."""
    if not spec.by_gradients(data is not None):
        return None, {}
    from onnxprune.importance.gradients import entry_scores
    from onnxprune.importance.shown import Ground, of_batches

    size = {x.initializer: int(np.prod(x.shape)) for x in layers}
    share = sum(ratios[x.name] * size[x.initializer] for x in layers) / max(sum(size.values()), 1)
    ground = Ground(None, labelled, seed=spec.seed)
    if data is not None:
        ground = Ground(of_batches(data), labelled, data.memory, data.threads, spec.seed)
    name = spec.solver(data is not None)
    return entry_scores(name, model, layers, ground, share, progress=counting(progress, "score"))


def _by_scores(
    model: Model, chosen: list[Layer], parts: Sequence[Part], growing: Growing, first: Scored,
    score: Callable[[Model], Scored], between: Callable[[Model], Model] | None,
) -> _Masked:  # fmt: skip
    """The smallest weights go, or those of the lowest scores; nothing makes up for them.

    first: scores of the model as it came; score: of the model before another step.
    """
    from onnxprune.sparsity.solve import by_magnitude

    once, out, (scores, lacking), gone = {x.initializer: x for x in chosen}, model, first, Counts()
    for k, (part, pattern) in enumerate(parts):
        now = out
        if k and between is not None:
            now = between(out)
            scores, lacking = score(now)
        gone = growing.counts(part, k, partial(_weights, now, chosen))
        out = now.copy()
        for w, layer in once.items():
            layer.write(out, by_magnitude(now, layer, pattern, gone[w], (scores or {}).get(w)))
    notes = [f"{x.name}: masked by magnitude: {lacking[x.initializer]}" for x in chosen if x.initializer in lacking]
    return _Masked(out, chosen, gone, notes=(*notes, *_torn(chosen, parts[-1][1])))


def _weights(model: Model, layers: Sequence[Layer]) -> dict[str, Array]:
    return {name: layer.read(model) for name, layer in {x.initializer: x for x in layers}.items()}


def _zeros(model: Model, layers: Sequence[Layer]) -> Counts:
    return {w: x.size - int(np.count_nonzero(x)) for w, x in _weights(model, layers).items()}


def _torn(layers: Sequence[Layer], pattern: Pattern | None) -> list[str]:
    """A line for the layers that a pattern does not divide."""
    if pattern is None:
        return []
    down, across = (1, pattern.m) if isinstance(pattern, NMPattern) else (pattern.rows or 1, pattern.columns)
    torn = [x.name for x in layers if x.segment % across or x.shape[0] // x.group % down]
    if not torn:
        return []
    return [f"--pattern {pattern} does not divide {len(torn)} layers, whose last block is smaller: {', '.join(torn)}"]


def _verify(
    model: Model, start: _Start, ordered: _Start, stored: Stored, feeds: Feeds, *, float32: bool
) -> tuple[float, list[str]]:
    """That each part left the outputs as they were: the largest difference by which the last one changed them, notes;
    raises `VerificationError`. float32: run copies in float32."""
    same = partial(check_same, feeds=feeds, float32=float32)
    same(model, start.model, tolerance=PREPARED, what="preparing the model for sparse weights")
    same(start.model, ordered.model, tolerance=PREPARED, what="permuting channels (--no-permute leaves them)")
    error, notes = same(stored.plain, stored.model, tolerance=TOLERANCE, what="rewriting the layers")
    return error, [*([ON_FLOAT32] if float32 else []), *notes, *check_file(ordered.model, stored.checked)]


def _rows(start: _Start, masked: _Masked, stored: Stored, spec: Spec) -> tuple[LayerSparsity, ...]:
    """What became of every layer, its zeros counted in the model that is written."""
    every = {layer.name for layer in masked.layers}
    left = weights_left(stored.model, start.layers)
    nm = isinstance(spec.pattern, NMPattern)
    rows = []
    for layer in start.layers:
        size = int(np.prod(layer.shape))
        packing = stored.formats.get(layer.name, Packing(DENSE))
        row = LayerSparsity(
            layer.name,
            layer.op,
            layer.initializer,
            layer.shape[0],
            size // layer.shape[0],
            size - left[layer.name],
            masked=layer.name in (stored.formats if spec.present else every),
            format=packing.format.name,
            reason=stored.reasons.get(layer.name, "" if layer.name in every else "not asked for"),
            asked=size - left[layer.name] if nm else masked.counts.get(layer.initializer, 0),
            pattern="" if packing.pattern in (None, spec.pattern) else str(packing.pattern),
        )
        rows.append(row)
    return tuple(rows)


def _describe(model: Model, outcome: Sparsity) -> None:
    """What was chosen, and on which CPU, in the file's own metadata."""
    kept = [p for p in model.proto.metadata_props if p.key != METADATA]
    del model.proto.metadata_props[:]
    model.proto.metadata_props.extend(kept)
    text = json.dumps(outcome.to_plan(), separators=(",", ":"))
    model.proto.metadata_props.add(key=METADATA, value=text)


__all__ = ["sparsify"]
