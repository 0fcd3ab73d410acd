"""Linear mode connectivity: how good models are on the straight line between the weights of two of one graph (Frankle
et al. 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis, arXiv:1912.05671).

The barrier is the highest loss (or error) on the line minus the mean of that of the ends: 0 where both lie in one basin
that is convex along the line. `children` trains pairs from one point with two orders of the samples: from which step on
does the order not matter any more (instability analysis)?

>>> barrier([0.1, 0.7, 0.3], better=-1), barrier([0.9, 0.5, 0.8], better=1)
(0.5, 0.35)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto

from onnxprune.calibration.samples import spread
from onnxprune.evaluation.metrics import Evaluator, Function, scored
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.protos import is_constant
from onnxprune.progress import Steps
from onnxprune.recovery.normalisation import batch_statistics, normalisations
from onnxprune.training.weights import FLOATS

if TYPE_CHECKING:
    from onnxprune.training.trainer import Trainer

SAMPLES = 1024  # that statistics are estimated on, at most
BATCH = 64
ORDERS = 1000  # between the seed of a parent's order of samples and those of its children


@dataclass(frozen=True)
class Line:
    """shares: how far from A, 0 to 1; scores: metric -> its value at each; better: metric -> 1 where larger is better,
    else -1."""

    shares: tuple[float, ...]
    scores: dict[str, tuple[float, ...]]
    better: dict[str, int]

    @property
    def barriers(self) -> dict[str, float]:
        """Metric -> how much worse the worst point is than the mean of the ends."""
        return {name: barrier(values, self.better[name]) for name, values in self.scores.items()}


def barrier(values: Sequence[float], better: int) -> float:
    """Highest loss along a line minus the mean of the ends, in the metric's unit; of a metric that is better where it
    is larger, the mean of the ends minus the lowest. 0 or more."""
    ends = (values[0] + values[-1]) / 2
    worst = min(values) if better > 0 else max(values)
    return float(round(max(0.0, (ends - worst) * better), 12))


def line(
    a: Model,
    b: Model,
    points: int,
    judges: Sequence[Evaluator | Function],
    settle: Callable[[Model], Model] = lambda model: model,
    progress: Steps = lambda done, total: None,
) -> Line:
    """Scores at so many points, evenly spread, the ends among them. settle: what is done to the model of a point."""
    shares = tuple(k / (points - 1) for k in range(points))
    scores: dict[str, list[float]] = {}
    better: dict[str, int] = {}
    for k, share in enumerate(shares):
        progress(k, points)
        model = settle(between(a, b, share))
        for score in scored(judges, model):
            scores.setdefault(score.metric, []).append(score.value)
            better[score.metric] = score.better
    progress(points, points)
    return Line(shares, {name: tuple(values) for name, values in scores.items()}, better)


def between(a: Model, b: Model, share: float) -> Model:
    """The model with weights `(1 - share) * A + share * B`: all initializers of floating types, statistics too."""
    if share in (0.0, 1.0):
        return b if share else a
    out = a.copy()
    for name, w in a.weights.items():
        if w.dtype in FLOATS and b.weights[name] is not w:
            v = (1 - share) * w.astype(np.float64) + share * b.weights[name].astype(np.float64)
            out.weights[name] = v.astype(w.dtype)
            out.weights[name].flags.writeable = False
    return out


def difference(a: Model, b: Model) -> str:
    """What two graphs differ in first, but for values of floating types; empty where nothing stands in the way of a
    line between them."""
    for k, (m, n) in enumerate(zip_longest(_nodes(a), _nodes(b))):
        if m is None or n is None:
            return f"node {k}, {_shown(m or n)}, is in {'B' if m is None else 'A'} alone"
        if (m.op_type, m.domain) != (n.op_type, n.domain):
            return f"node {k} is {_shown(m)} in A and {_shown(n)} in B"
        for what in ("input", "output"):
            if list(getattr(m, what)) != list(getattr(n, what)):
                return f"node {k}, {_shown(m)}: its {what}s have other names in B, {', '.join(getattr(n, what))}"
        mine, other = ({x.name: x.SerializeToString(deterministic=True) for x in of.attribute} for of in (m, n))
        for name in sorted({*mine, *other}):
            if mine.get(name) != other.get(name):
                return f"node {k}, {_shown(m)}: the attribute {name} differs"
    for name in (*a.weights, *b.weights):
        if name not in a.weights or name not in b.weights:
            return f"initializer {name} is in {'A' if name in a.weights else 'B'} alone"
        v, w = a.weights[name], b.weights[name]
        if (v.shape, v.dtype) != (w.shape, w.dtype):
            return f"initializer {name} is {v.dtype} {list(v.shape)} in A and {w.dtype} {list(w.shape)} in B"
        if v.dtype not in FLOATS and not np.array_equal(v, w):
            return f"initializer {name} holds other {v.dtype} values in B, and only floating types have values between"
    for what in ("input", "output"):
        if [i.name for i in getattr(a.proto.graph, what)] != [i.name for i in getattr(b.proto.graph, what)]:
            return f"the graph's {what}s have other names"
    return ""


def _nodes(model: Model) -> Iterator[NodeProto]:
    """All nodes, without what they say to readers and what `weights` holds; those of bodies come behind."""
    for graph in graphs(model.proto.graph):
        for node in graph.node:
            out = NodeProto()
            out.CopyFrom(node)
            out.ClearField("doc_string")
            out.ClearField("metadata_props")
            held = is_constant(out) and out.output[0] in model.weights
            for x in [x for x in out.attribute if held or x.HasField("g")]:
                out.attribute.remove(x)
            yield out


def _shown(node: NodeProto | None) -> str:
    assert node is not None
    return f"{node.op_type} ({node.name or node.output[0]})"


def settling(seen: TrainingSet, *, threads: int = 0) -> Callable[[Model], Model]:
    """What estimates the statistics of every BatchNormalization anew, on at most `SAMPLES` samples: those of a point
    between two models are not what lies between theirs (Jordan et al. 2022, REPAIR, arXiv:2211.08403)."""
    feeds = [seen.feeds(part) for part in seen.take(spread(seen.count, SAMPLES)).batches(BATCH)]
    return lambda model: batch_statistics(model, feeds, threads=threads)[0] if normalisations(model) else model


def children(trainer: Trainer, seed: int, step: Callable[[], None] = lambda: None) -> tuple[Model, Model]:
    """Two models that are trained to the end from where a training stands, each with its own order of the samples; the
    training stands there again afterwards. seed: of the parent's order; step: called after every step."""
    start = trainer.state()
    out = []
    for k in (1, 2):
        trainer.restore(start)
        trainer.reorder(seed + k * ORDERS)
        while trainer.position < trainer.steps:
            trainer.step()
            step()
        out.append(trainer.export("weights"))
    trainer.restore(start)
    return out[0], out[1]


__all__ = ["Line", "barrier", "between", "children", "difference", "line", "settling"]
