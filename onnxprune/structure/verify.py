"""The law that tests surgery: the pruned model equals the original with the removed units masked.

Masked means multiplied by zero where they enter each consumer. Before anything is written, the pruned
model also passes onnx's checker and full shape inference, and its inputs and outputs are those of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import helper

from onnxprune.errors import OptionError, VerificationError
from onnxprune.graph.arrays import FLOAT_TYPES, Array
from onnxprune.graph.edit import as_float32, float32_feeds
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.messages import one_line
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import concrete_inputs, fixed, graph_inputs
from onnxprune.runtime.feeds import Guess, filled, first_running, guesses, random_feeds
from onnxprune.runtime.session import UNRUNNABLE, Feeds, running
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.check import ON_FLOAT32, before_last_step, check_file, compare, refuse_random
from onnxprune.structure.masked import masked_model

TOLERANCE = {"float16": 3e-2, "bfloat16": 1e-1}
DEFAULT_TOLERANCE = 1e-3
QUANTIZED_TOLERANCE = 1e-1  # a sum that falls on the other side of a rounding boundary moves by a whole step
ROUNDING = ("QuantizeLinear", "DynamicQuantize", "QLinear", "QGemm", "QAttention")  # whose names begin so round sums
Outputs = dict[str, Array]


@dataclass(frozen=True)
class Verification:
    """error: largest difference of an output element between pruned and masked model, over the largest
    magnitude of that output; tolerance: what was allowed; notes: what the figure cannot tell."""

    error: float
    tolerance: float
    runs: int
    notes: tuple[str, ...] = ()
    feeds: Feeds = field(default_factory=dict)  # inputs with which the model runs
    float32: bool = False  # run as a float32 copy
    finite: bool = True  # all outputs of the masked model were finite
    pruned_feeds: Feeds = field(default_factory=dict)  # the same inputs as the pruned model takes them


def verify(
    analysis: Analysis,
    keep: Keep,
    pruned: Model,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> Verification:
    """Check the file and the law; see the module's docstring.

    keep: `(ids,)`, True for what `pruned` has; input_shapes: input name -> concrete shape; seed: of random inputs.
    Raises `OptionError` where onnxruntime cannot run the original, `VerificationError` where the law is broken.
    """
    original = analysis.model
    notes = check_file(original, pruned, allowed=lambda info: shrunk(analysis, keep, info))
    inner = probes(analysis, keep)
    masked, guess, float32, more = _run_masked(analysis, keep, inner, input_shapes, seed)
    notes += [ON_FLOAT32] if float32 else more
    small = [analysis.narrow(feeds, keep) for feeds, _ in masked]
    actual = _run_pruned(as_float32(pruned) if float32 else pruned, small, inner)
    pairs = [(analysis.narrow(outputs, keep), y) for (_, outputs), y in zip(masked, actual, strict=True)]
    limit = tolerance(analysis)
    try:
        error, more = _worst(original, pairs, inner, limit)
    except VerificationError:
        refuse_random(as_float32(original) if float32 else original, guess.feeds, limit)
        raise
    notes += more
    finite = all(map(_finite, pairs[-1][0].values()))
    return Verification(error, limit, len(pairs), tuple(notes), guess.feeds, float32, finite, small[0])


def _worst(
    original: Model,
    pairs: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]],
    inner: Mapping[str, str],
    limit: float,
) -> tuple[float, list[str]]:
    """Largest difference between masked and pruned outputs, over all runs, and what it cannot tell.

    Raises `VerificationError` where it is above the limit.
    """
    found = [compare(original, expected, actual, inner) for expected, actual in pairs]
    error = max(e for e, _ in found)
    if not all(e <= limit for e, _ in found):
        raise VerificationError(
            f"pruned and masked model differ by {error:.1e} (allowed {limit:.0e}); nothing was written; "
            f"please report this with the plan (--save-plan) and the model"
        )
    return error, found[0][1]


def check_recovered(analysis: Analysis, keep: Keep, recovered: Model, checked: Verification) -> None:
    """After recovery the law no longer holds; what is left to check is the file, and that it runs and stays finite.

    keep: `(ids,)`, True for what is left; checked: what `verify` said before. Raises `VerificationError`.
    """
    check_file(analysis.model, recovered, allowed=lambda info: shrunk(analysis, keep, info))
    (outputs,) = _run_pruned(as_float32(recovered) if checked.float32 else recovered, [checked.pruned_feeds], {})
    if checked.finite and not all(_finite(v) for v in outputs.values()):
        raise VerificationError("an output is not finite after recovery; try --recover none; nothing was written")


def _finite(x: Array) -> bool:
    return x.dtype.kind not in "fV" or bool(np.isfinite(x.astype(np.float64)).all())


def _larger(
    model: Model, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]] | None
) -> dict[str, tuple[int, ...]]:
    """The same shapes with a batch of two."""
    ones, twos = next(concrete_inputs(model, given)), next(concrete_inputs(model, given, batch=2))
    return {
        name: tuple(2 if ones[name][k] != twos[name][k] else size for k, size in enumerate(shape))
        for name, shape in shapes.items()
    }


def _dynamic_batch(info: onnx.ValueInfoProto) -> bool:
    dims = info.type.tensor_type.shape.dim
    return bool(dims) and not fixed(dims[0])


def _two(analysis: Analysis, guess: Guess, given: Mapping[str, tuple[int, ...]] | None, seed: int) -> Feeds | None:
    """Other inputs than those of the guess, with two samples; None where the batch is fixed."""
    model = analysis.model
    if not any(_dynamic_batch(i) for i in graph_inputs(model)):
        return None
    larger = _larger(model, guess.sizes, given)
    return filled(random_feeds(model, analysis.coupling.shapes, larger, seed=seed + 1), guess.fills, larger)


def _samples(
    masked: Model, feeds: Feeds, more: Feeds | None, inner: Mapping[str, str]
) -> tuple[list[tuple[Feeds, Outputs]], list[str]]:
    """Inputs and outputs of the runs with both, and what is to be said where only the first of them runs.

    Raises UNRUNNABLE where that does not."""
    notes: list[str] = []
    with running(masked, inner.values(), optimize=False) as compute:
        done = [(feeds, compute(feeds))]
        if more is not None:
            try:
                done.append((more, compute(more)))
            except UNRUNNABLE as e:
                why = one_line(e, 80)
                notes.append(f"the original does not run with a batch of 2, so one sample was verified ({why})")
    return done, notes


def _run_masked(
    analysis: Analysis,
    keep: Keep,
    inner: Mapping[str, str],
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    seed: int,
) -> tuple[list[tuple[Feeds, Outputs]], Guess, bool, list[str]]:
    """Inputs and outputs of the masked model, with the first inputs with which it runs and, where its batch is dynamic,
    with two samples; those first inputs; whether a float32 copy was run, with one sample; and what is to be noted."""
    original, masked, shapes = analysis.model, masked_model(analysis, keep), analysis.coupling.shapes
    likely = next(guesses(original, shapes, input_shapes, seed=seed))
    more = _two(analysis, likely, input_shapes, seed)
    try:
        done, notes = _samples(masked, likely.feeds, more, inner)
        return done, likely, False, notes
    except UNRUNNABLE:
        reason = ""  # of the original, which is asked now
    for float32 in (False, True):
        tried = guesses(original, shapes, input_shapes, seed=seed)
        whole, zeroed = (as_float32(original), as_float32(masked)) if float32 else (original, masked)
        found, why = first_running(whole, map(_small, tried) if float32 else tried)
        reason = reason or why
        if found is not None:
            more = None if float32 else _two(analysis, found, input_shapes, seed)
            try:
                done, notes = _samples(zeroed, found.feeds, more, inner)
                return done, found, float32, notes
            except UNRUNNABLE as e:
                raise VerificationError(f"the masked model does not run: {one_line(e)}; nothing was written") from e
    raise OptionError(
        f"{original.path or 'the model'}: onnxruntime cannot run the original, so the result cannot be verified "
        f"({reason}); pass --no-verify to write it unverified, or --input-shape if the guessed shapes are at fault"
    )


def _small(guess: Guess) -> Guess:
    """The inputs as a float32 copy takes them."""
    return replace(guess, feeds=float32_feeds(guess.feeds))


def tolerance(analysis: Analysis) -> float:
    """Largest error that the model's types allow, as `compare` gives it."""
    if any(_rounds(Node(p, 1)) for g in graphs(analysis.model.proto.graph) for p in g.node):
        return QUANTIZED_TOLERANCE
    dtypes = {helper.tensor_dtype_to_np_dtype(t).name for t in analysis.coupling.shapes.types.values() if t}
    return max((TOLERANCE[d] for d in dtypes if d in TOLERANCE), default=DEFAULT_TOLERANCE)


def _rounds(n: Node) -> bool:
    """Whether a node rounds what it computes to eight bits, or what it multiplies with its weight."""
    blocks_of_bytes = n.op.endswith("::QMoE") and n.attr("block_size", 0) > 0 and n.attr("expert_weight_bits", 4) == 8
    return n.proto.op_type.startswith(ROUNDING) or n.attr("accuracy_level", 0) == 4 or blocks_of_bytes


def _run_pruned(pruned: Model, several: Sequence[Feeds], probes: Mapping[str, str]) -> list[Outputs]:
    """Outputs and probes by name, for each of the inputs; VerificationError where it does not run."""
    try:
        with running(pruned, probes.values(), optimize=False) as compute:
            return [compute(feeds) for feeds in several]
    except UNRUNNABLE as e:
        raise VerificationError(f"the pruned model does not run: {one_line(e)}; nothing was written") from e


def probes(analysis: Analysis, keep: Keep) -> dict[str, str]:
    """Output -> the tensor before its last Sigmoid, Softmax, ArgMax, ..., where no id of that is removed."""
    c = analysis.coupling

    def usable(name: str) -> bool:
        whole = all(ids is None or bool(keep[ids].all()) for ids in c.axes(name))
        return whole and c.shapes.types.get(name) in FLOAT_TYPES

    return before_last_step(analysis.model, usable)


def shrunk(analysis: Analysis, keep: Keep, info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """An input or output of the original as the pruned model declares it."""
    out = onnx.ValueInfoProto()
    out.CopyFrom(info)
    for d, ids in zip(out.type.tensor_type.shape.dim, analysis.coupling.axes(info.name), strict=False):
        if ids is not None and d.HasField("dim_value") and not keep[ids].all():
            d.dim_value = int(keep[ids].sum())
    return out
