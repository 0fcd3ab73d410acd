"""The layer whose outputs are the scores of a classifier, and how far a fit may shrink these.

A fit by squared error varies less than its targets: what it does not know, it takes to be the mean. Of class scores
that is a temperature: the largest stays the largest, but the probabilities are too even. They are stretched, therefore,
by what makes the probabilities of rows that the fit has not seen most like the original's (temperature scaling, Guo et
al. 2017, here towards the original in place of labels), but to the variance of the targets at most: outputs that are no
scores, and only look so, lose little by that.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_softmax

from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.links import read_by
from onnxprune.layers.regression import Task
from onnxprune.layers.values import Values
from onnxprune.runtime.classes import class_rows, classifier_output
from onnxprune.runtime.session import session
from onnxprune.runtime.stream import Stream
from onnxprune.solvers.ridge import Withheld

OPERATORS = {"Conv", "Gemm", "MatMul"}
PASSING = {"Softmax", "LogSoftmax", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity"}
MOST = 1 << 22  # scores that are looked at


def gives_scores(whole: Stream, task: Task) -> bool:
    """Whether the rows of a layer, with the bias that its task knows, are the class scores of the model of a stream."""
    model, layer, tail = whole.model, task.whole, task.tail
    groups, _, width = task.matrix.shape
    plain = tail.bounds is None and not tail.other and bool((tail.scale == 1).all()) and np.isfinite(tail.shift).all()
    if layer.op not in OPERATORS or groups > 1 or width < 2 or not plain or not len(whole.source):
        return False
    if layer.op == "Gemm" and layer.node.input(2) and (task.into.bias is None or not task.into.own_bias):
        return False
    name, readers, constant = layer.key, read_by(model.proto), Values(model)
    outputs, behind = [o.name for o in model.proto.graph.output], True
    while name not in outputs:
        nodes = readers.get(name, [])
        if len(nodes) != 1:
            return False
        node = nodes[0]
        if node.op == "Add" and behind:  # a bias, which is in the tail
            other = node.inputs[1 - node.inputs.index(name)]
            if other not in model.weights or constant(other).size not in (1, width):
                return False
        elif node.op not in PASSING:
            return False
        behind, name = behind and node.op in ("Add", "Identity"), node.key
    if len(outputs) > 1:
        return False
    with session(model, threads=whole.threads) as s:
        given = np.asarray(s.run(outputs, whole.source[0])[0])
    samples = len(given) if given.ndim else 0
    return classifier_output(model, {name: given}, samples) == name and class_rows(given).shape[1] == width


def stretch(scores: Array, targets: Array) -> float:
    """What scores `(n, classes)` are multiplied by so that the divergence of the targets' probabilities from theirs is
    least. From 1 to what gives them the variance of the targets."""
    from scipy.optimize import minimize_scalar

    most = max(1, MOST // targets.shape[1])
    scores, targets = (x[:most].astype(np.float64) for x in (scores, targets))
    spread, wide = (float(np.var(x - x.mean(0))) for x in (scores, targets))
    if not 0 < spread < wide:  # also where one is no number
        return 1.0
    goal = log_softmax(targets, -1)
    p = np.exp(goal)

    def divergence(by: float) -> float:
        return float(np.sum(p * (goal - log_softmax(by * scores, -1))))

    return float(minimize_scalar(divergence, bounds=(1.0, math.sqrt(wide / spread)), method="bounded").x)


def stretched(task: Task, withheld: Withheld, weight: Float, shift: Float) -> tuple[Float, Float]:
    """Weights `(1, in, out)` and shift `(out,)` of a layer that gives class scores, which are stretched to what makes
    those of the rows that were withheld right; as they are where too few were, or where there is no room: in weights
    that are quantized, or without a bias that would have to change."""
    unseen, offset, into = withheld.unseen, task.offset(), task.into
    fixed = into.weight.stored.steps or (offset.any() if into.bias is None else into.bias.stored.steps)
    if unseen is None or fixed or not np.isfinite(offset).all():
        return weight, shift
    by = stretch(unseen[0][0] + offset, unseen[1][0] + offset)
    return (weight, shift) if by == 1 else (by * weight, by * shift + (by - 1) * offset)


__all__ = ["gives_scores", "stretched"]
