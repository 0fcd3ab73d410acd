"""Recover what was lost without data: the biases of consumers absorb what a removed channel contributed on average.

A removed channel is not zero but, to first order, a constant: what its BatchNormalization recorded as its mean, or
what its bias tells (all of it where the channel has no weights, less the larger they are), sent through the
activations. That constant times the consumer's weights is added to the consumer's bias. It is exact where the channel
really is constant and the consumer does not pad (constant channels are common in trained MobileNets), and an
approximation elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.graph.arrays import Float
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.normalisation import MEAN
from onnxprune.graph.step import Step
from onnxprune.graph.traits import TRAITS
from onnxprune.importance.weights import WeightValues
from onnxprune.recovery.cut_model import CutModel, Recovered
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.claims import Axis
from onnxprune.structure.constant import Guess, Known
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.dead import ABSORBING, absorbs
from onnxprune.structure.surgery import prune_model


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
    constants = Known(analysis, ~keep, guesses(analysis)).value
    weights = WeightValues(analysis)
    shifts: dict[str, Float] = {}
    for node in walk_all(analysis.model.proto.graph, c.shapes.opsets):
        if not absorbs(analysis, node):
            continue
        x = c.axes(node.input(0))
        ids = x[TRAITS[node.op].inner(node, len(x))]
        if ids is None or keep[ids].all():
            continue
        value = np.where(keep[ids], 0.0, np.nan_to_num(constants[ids]))
        w = weights.value(node.input(1)) if value.any() else None
        shift = None if w is None else _contribution(node, np.asarray(w, np.float64), value)
        out = outer(c, node)
        if shift is not None and shift[slice(None) if out is None else keep[out]].any():
            shifts[node.key] = shift
    return shifts


def outer(c: Coupling, node: Node) -> Axis:
    """Ids of the output channels of a node with a trait."""
    y = c.axes(node.key)
    return y[TRAITS[node.op].outer(len(y))]


def _contribution(node: Node, w: Float, value: Float) -> Float:
    """What inputs with constant `value` `(in,)` add to every output channel."""
    rows = TRAITS[node.op].rows
    if rows == "vectors":
        w = w.T if node.attr("transB", 0) else w
        return np.asarray(value @ w) * float(node.attr("alpha", 1.0))
    g = int(node.attr("group", 1))
    if rows == "spread patches":  # every output sees 1/stride of the taps
        stride = float(np.prod(node.attr("strides", [1])))
        return np.asarray(value @ w.sum(tuple(range(2, w.ndim)))) / stride
    taps = w.sum(tuple(range(2, w.ndim)))  # (O, I/g)
    taps = taps.reshape(g, -1, taps.shape[1])
    return np.asarray(np.einsum("goi,gi->go", taps, value.reshape(g, -1)).ravel())


def _running_means(analysis: Analysis) -> dict[str, Float]:
    """Tensor -> mean that the BatchNormalization behind it has recorded."""
    weights = WeightValues(analysis)
    out: dict[str, Float] = {}
    for node in walk_all(analysis.model.proto.graph, {}):
        if node.op == "BatchNormalization":
            mean = weights.value(node.input(MEAN))
            if mean is not None:
                out[node.input(0)] = np.asarray(mean, np.float64)
    return out


def guesses(analysis: Analysis) -> Guess:
    """What is known of the mean of a layer's outputs: recorded by BatchNormalization, or told by the bias."""
    means = _running_means(analysis)
    produced = {p.node.key: p for p in analysis.coupling.produces}

    def guess(known: Known, node: Node) -> Float | None:
        p = produced.get(node.key)
        # not so where the weight is on the left, or holds outputs per group
        if p is None or node.op not in ABSORBING or p.weight != node.input(1) or TRAITS[node.op].added:
            return None
        ids, axes = outer(known.c, node), known.c.axes(p.weight)
        rows, taps = axes[p.axis], known.weights(p.weight)
        if ids is None or rows is None or ids.size != rows.size or taps is None:
            return None
        made = _mean(known, node, np.moveaxis(np.asarray(taps, np.float64), p.axis, 0).reshape(ids.size, -1), means)
        return made

    return guess


def _mean(known: Known, node: Node, rows: Float, means: Mapping[str, Float]) -> Float | None:
    """The same; rows: of the weight, `(out, d)`."""
    bias: Float = np.zeros(len(rows))
    slot = TRAITS[node.op].bias
    if slot is not None and node.input(slot):
        b = known.weights(node.input(slot))
        if b is None:
            return None
        # Gemm: (N), (1, N), or another one for every row
        b = np.asarray(b, np.float64).reshape(-1, b.shape[-1] if b.ndim else 1).mean(0)
        bias = bias + b * float(node.attr("beta", 1.0))
    mean = means.get(node.key)
    if mean is not None and len(mean) == len(rows):
        return np.where(rows.any(1), mean, bias)
    source = known.of(node.input(0), 1) if TRAITS[node.op].rows == "patches" else None
    if source is not None and node.attr("group", 1) == source.size and known.c.axes(node.input(1))[1] is None:
        source = np.repeat(source, len(rows) // source.size)
        if not np.isnan(source).all():  # depthwise: a constant channel stays constant
            return np.asarray(rows.sum(1) * np.nan_to_num(source) + bias)
    # of a channel with large weights the bias says little: it counts as far as the weights are small
    return np.asarray(bias / (1 + np.square(rows).sum(1)))


__all__ = ["bias_shifts"]
