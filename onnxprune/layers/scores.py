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
from onnxprune.layers.layer import Layer
from onnxprune.layers.regression import Task
from onnxprune.layers.values import constant_names
from onnxprune.runtime.classes import classifier_output
from onnxprune.runtime.session import session
from onnxprune.runtime.stream import Stream
from onnxprune.solvers.ridge import Withheld

PASSING = {"Softmax", "LogSoftmax", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Add"}
FEW = 16  # rows that are withheld, of which nothing is told
MOST = 1 << 22  # scores that are looked at


def gives_scores(whole: Stream, layer: Layer) -> bool:
    """Whether the outputs of a layer, with a bias, are the class scores of the model of a stream."""
    model = whole.model
    if layer.trait.recurs or not len(whole.source):
        return False
    name, readers, constant = layer.key, read_by(model.proto), constant_names(model)
    outputs = [o.name for o in model.proto.graph.output]
    while name not in outputs:
        nodes = readers.get(name, [])
        if len(nodes) != 1 or nodes[0].op not in PASSING:
            return False
        node = nodes[0]
        if node.op == "Add" and not any(i in constant for i in node.inputs):
            return False
        name = node.key
    first = whole.source[0]
    with session(model, threads=whole.threads) as s:
        given = dict(zip(outputs, s.run(outputs, first), strict=True))
    return classifier_output(model, given, len(next(iter(first.values())))) == name


def stretch(scores: Array, targets: Array) -> float:
    """What scores `(n, classes)` are multiplied by so that the divergence of the targets' probabilities from theirs is
    least. From 1 to what gives them the variance of the targets."""
    from scipy.optimize import minimize_scalar

    most = max(1, MOST // targets.shape[1])
    scores, targets = (x[:most].astype(np.float64) for x in (scores, targets))
    spread, wide = (float(np.var(x - x.mean(0))) for x in (scores, targets))
    if not 0 < spread < wide:
        return 1.0
    goal = log_softmax(targets, -1)
    p = np.exp(goal)

    def divergence(by: float) -> float:
        return float(np.sum(p * (goal - log_softmax(by * scores, -1))))

    return float(minimize_scalar(divergence, bounds=(1.0, math.sqrt(wide / spread)), method="bounded").x)


def stretched(task: Task, withheld: Withheld, weight: Float, shift: Float) -> tuple[Float, Float]:
    """Weights `(1, in, out)` and shift `(out,)` of a layer that gives class scores, which are stretched to what makes
    those of the rows that were withheld right; as they are where too few were, or the weights are quantized."""
    unseen, offset = withheld.unseen, task.bias() + task.tail.shift
    lacking = task.into.bias is None and bool(offset.any())
    if unseen is None or unseen[0].shape[1] < FEW or lacking or task.into.weight.stored.steps:
        return weight, shift
    by = stretch(unseen[0][0] + offset, unseen[1][0] + offset)
    return by * weight, by * shift + (by - 1) * offset


__all__ = ["gives_scores", "stretched"]
