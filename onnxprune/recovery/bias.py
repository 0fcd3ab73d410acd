"""Recover what was lost without data: fold what a removed channel contributed on average into its consumers' biases.

A removed channel is not zero but, to first order, a constant: what its BatchNormalization recorded as its mean, or
what its bias tells (all of it where the channel has no weights, less the larger they are), sent through the
activations. That constant times the consumer's weights is added to the consumer's bias. It is exact where the channel
really is constant and the consumer does not pad (constant channels are common in trained MobileNets), and an
approximation elsewhere.
"""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array, Float, Ids
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.normalisation import MEAN, batchnorm_factor
from onnxprune.graph.ort import ORT_ERRORS
from onnxprune.graph.shapes import run_node
from onnxprune.graph.step import Step
from onnxprune.graph.traits import TRAITS
from onnxprune.importance.weights import WeightValues
from onnxprune.recovery.cut_model import CutModel, Recovered
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.coupling import Axis, Coupling, Produce
from onnxprune.structure.rules.elementwise import BROADCAST, FIRST_ONLY, UNARY
from onnxprune.structure.surgery import prune_model

PASSING = {
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather", "GatherND",
    "GatherElements", "Expand", "Tile", "Resize", "Upsample", "DepthToSpace", "SpaceToDepth", "AveragePool", "MaxPool",
    "GlobalAveragePool", "GlobalMaxPool", *FIRST_ONLY,
}  # fmt: skip
REDUCING = {"ReduceMean", "ReduceMax", "ReduceMin"}
FOLDING = {op for op, t in TRAITS.items() if t.rows and not t.recurs}  # whose biases can take what went


def compensate(model: CutModel) -> Recovered:
    """The recovery `bias`; see the module."""
    shifts = bias_shifts(model.analysis, model.keep)
    if not shifts:
        return Step(model.cut.model, ())
    out = prune_model(model.analysis, model.keep, shifts, sliced=model.cut.outcome.sliced)
    return Step(out, (), (f"bias of {len(shifts)} layers compensated for the mean of what was removed",))


def bias_shifts(analysis: Analysis, keep: Keep) -> dict[str, Float]:
    """Node key -> what its bias gains, float64 `(out channels of the original,)`.

    keep: ids that survive, `(ids,)`. Nodes whose bias would not change are left out.
    """
    c = analysis.coupling
    constants = constant_channels(analysis, keep)
    weights = WeightValues(analysis)
    shifts: dict[str, Float] = {}
    for node in walk_all(analysis.model.proto.graph, c.shapes.opsets):
        if node.op not in FOLDING or not all(c.axes(node.input(i)) for i in (0, 1)):
            continue
        x = c.axes(node.input(0))
        ids = x[TRAITS[node.op].inner(node, len(x))]
        if ids is None or keep[ids].all() or not c.is_constant(node.input(1)):
            continue
        value = np.where(keep[ids], 0.0, np.nan_to_num(constants[ids]))
        if not value.any() or not _takes_bias(analysis, node):
            continue
        w = weights.value(node.input(1))
        shift = None if w is None else _contribution(node, np.asarray(w, np.float64), value)
        out = outer(c, node)
        if shift is not None and shift[slice(None) if out is None else keep[out]].any():
            shifts[node.key] = shift
    return shifts


def outer(c: Coupling, node: Node) -> Axis:
    """Ids of the output channels of a node with a trait."""
    y = c.axes(node.key)
    return y[TRAITS[node.op].outer(len(y))]


def _takes_bias(analysis: Analysis, node: Node) -> bool:
    """True where a stored bias can grow, or a new one be added."""
    slot, beta = TRAITS[node.op].bias, float(node.attr("beta", 1.0))
    if slot is None:
        return True  # an Add behind it
    bias = node.input(slot)
    return bias in analysis.model.weights and beta != 0 if bias else beta == 1


def _contribution(node: Node, w: Float, value: Float) -> Float | None:
    """What inputs with constant `value` `(in,)` add to every output channel."""
    rows = TRAITS[node.op].rows
    if rows == "vectors":
        if w.ndim != 2:
            return None
        w = w.T if node.attr("transB", 0) else w
        return np.asarray(value @ w) * float(node.attr("alpha", 1.0))
    g = int(node.attr("group", 1))
    if rows == "spread patches":  # every output sees 1/stride of the taps
        stride = float(np.prod(node.attr("strides", [1])))
        return None if g > 1 else np.asarray(value @ w.sum(tuple(range(2, w.ndim)))) / stride
    taps = w.sum(tuple(range(2, w.ndim)))  # (O, I/g)
    taps = taps.reshape(g, -1, taps.shape[1])
    return np.asarray(np.einsum("goi,gi->go", taps, value.reshape(g, -1)).ravel())


def constant_channels(analysis: Analysis, keep: Keep) -> Float:
    """The constant that stands for every removed id, float64 `(ids,)`; NaN where none is known."""
    c = analysis.coupling
    value: Float = np.full(c.size, np.nan)
    weights = WeightValues(analysis)
    ties = c.ties_of()
    produced = {p.node.key: p for p in c.produces}
    means = _running_means(analysis, weights)
    touched = {n for n, axes in c.base.items() if any(ids is not None and not keep[ids].all() for ids in axes)}
    for node in walk_all(analysis.model.proto.graph, c.shapes.opsets):
        if not any(o in touched for o in node.outputs):
            continue
        if node.key in produced and node.op in FOLDING:
            produce, ids = produced[node.key], outer(c, node)
            rows = c.axes(produce.weight)[
                produce.axis
            ]  # not so where the weight is on the left, or holds outputs per group
            if produce.weight == node.input(1) and ids is not None and rows is not None and ids.size == rows.size:
                _set(value, keep, ids, _producer(produce, weights, c, value, means))
        elif node.op == "BatchNormalization":
            axes = c.axes(node.key)
            parts = [weights.value(i) for i in node.inputs[1:5]]
            x = c.axes(node.input(0))[1]
            if len(axes) > 1 and x is not None and all(p is not None for p in parts):
                gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parts)
                _set(value, keep, axes[1], (value[x] - mean) * batchnorm_factor(node, gamma, variance) + beta)
        elif node.op == "InstanceNormalization":  # a constant is normalised to zero
            bias = weights.value(node.input(2))
            if bias is not None:
                _set(value, keep, c.axes(node.key)[1], np.asarray(bias, np.float64))
        elif node.op in UNARY or node.op in BROADCAST:
            _elementwise(analysis, node, value, keep, weights)
        elif (node.op in PASSING or node.op in REDUCING) and node.key in ties:
            a, b = ties[node.key]
            for _ in range(2):  # a view goes through the ids of its factors
                for source, target in ((a, b), (b, a)):
                    fresh = np.isnan(value[target]) & ~np.isnan(value[source]) & ~keep[target]
                    value[target[fresh]] = value[source[fresh]]
    return value


def _set(value: Float, keep: Keep, ids: Ids | None, constant: Float | None) -> None:
    if ids is not None and constant is not None:
        gone = ~keep[ids]
        value[ids[gone]] = np.broadcast_to(constant, ids.shape)[gone]


def _running_means(analysis: Analysis, weights: WeightValues) -> dict[str, Float]:
    """Tensor -> mean that the BatchNormalization behind it has recorded."""
    out: dict[str, Float] = {}
    for node in walk_all(analysis.model.proto.graph, {}):
        if node.op == "BatchNormalization":
            mean = weights.value(node.input(MEAN))
            if mean is not None:
                out[node.input(0)] = np.asarray(mean, np.float64)
    return out


def _producer(p: Produce, weights: WeightValues, c: Coupling, value: Float, means: dict[str, Float]) -> Float | None:
    """What is known of the mean of a layer's outputs: recorded by BatchNormalization, or told by the bias."""
    node, taps = p.node, weights.value(p.weight)
    if taps is None or TRAITS[node.op].added:
        return None
    rows = np.moveaxis(np.asarray(taps, np.float64), p.axis, 0).reshape(taps.shape[p.axis], -1)
    bias: Float = np.zeros(len(rows))
    slot = TRAITS[node.op].bias
    if slot is not None and node.input(slot):
        b = weights.value(node.input(slot))
        if b is None:
            return None
        # Gemm: (N), (1, N), or another one for every row
        b = np.asarray(b, np.float64).reshape(-1, b.shape[-1] if b.ndim else 1).mean(0)
        bias = bias + b * float(node.attr("beta", 1.0))
    mean = means.get(node.key)
    if mean is not None and len(mean) == len(rows):
        return np.where(rows.any(1), mean, bias)
    ids = c.axes(node.input(0))[1] if TRAITS[node.op].rows == "patches" else None
    if ids is not None and node.attr("group", 1) == ids.size and c.axes(p.weight)[1] is None:
        source = np.repeat(value[ids], len(rows) // ids.size)
        if not np.isnan(source).all():  # depthwise: a constant channel stays constant
            return np.asarray(rows.sum(1) * np.nan_to_num(source) + bias)
    # of a channel with large weights the bias says little: it counts as far as the weights are small
    return np.asarray(bias / (1 + np.square(rows).sum(1)))


def _elementwise(analysis: Analysis, node: Node, value: Float, keep: Keep, weights: WeightValues) -> None:
    """Apply the operator to the constants of its inputs."""
    c = analysis.coupling
    y = c.axes(node.key)
    for axis, ids in enumerate(y):
        if ids is None or keep[ids].all():
            continue
        gone = np.flatnonzero(~keep[ids])
        feeds: dict[str, Array] = {}
        for name in dict.fromkeys(i for i in node.inputs if i):
            column = _column(c, name, axis - len(y), gone, value, weights)
            if column is None:
                break
            dtype = np.float32 if c.shapes.types.get(name, 1) != 9 else np.bool_
            feeds[name] = np.asarray(column).astype(dtype)
        else:
            known = np.ones(len(gone), bool)
            for column in feeds.values():
                if column.dtype != np.bool_:
                    known &= ~np.isnan(np.broadcast_to(column, gone.shape))
            if node.op in ("Cast", "CastLike"):
                result = next(iter(feeds.values()))
            else:
                try:
                    result = run_node(node, {k: v.astype(np.float32) for k, v in feeds.items()}, analysis.model.proto)[
                        0
                    ]
                except ORT_ERRORS:  # types that the operator does not take: nothing is known, nothing is folded
                    continue
            result = np.broadcast_to(np.asarray(result, np.float64), gone.shape)
            known &= np.isfinite(result)
            value[ids[gone[known]]] = result[known]


def _column(c: Coupling, name: str, axis: int, gone: Ids, value: Float, weights: WeightValues) -> Array | None:
    """Values of one input at the removed places of an axis counted from the right; None where it varies."""
    if c.is_constant(name):
        w = weights.value(name)
        if w is None:
            return None
        if w.size == 1:
            return np.asarray(w).reshape(())
        if w.ndim >= -axis and w.size == w.shape[axis]:
            return np.asarray(w).reshape(-1)[gone]
        return None
    axes = c.axes(name)
    if len(axes) < -axis:
        return None
    ids = axes[axis]
    return None if ids is None else value[ids][gone]


__all__ = ["bias_shifts", "constant_channels"]
