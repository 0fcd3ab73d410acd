"""Zero-cost proxies: what a network may be worth once it is trained, asked before it is, of its weights and a few
samples (Abdelfattah et al. 2021, Zero-Cost Proxies for Lightweight NAS, arXiv:2101.08134).

A proxy maps a `Network` to a number: larger is better, NaN or infinite where float32 overflows. Weights are those of
layers, without biases and normalisations; the loss is the mean cross entropy of a batch. A proxy raises `Lacking` where
it says nothing of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

from onnxprune.calibration.options import MEMORY
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.walk import differentiate
from onnxprune.graph.arrays import FLOAT_TYPES, Array, Float
from onnxprune.graph.cost import CostModel
from onnxprune.graph.io import Model
from onnxprune.graph.node import Node, opsets, walk
from onnxprune.graph.shapes import graph_inputs, infer
from onnxprune.importance.gradients import weights_of
from onnxprune.importance.losses import Sum
from onnxprune.importance.shown import Shown, by_training
from onnxprune.importance.slopes import Graph, Sizes, Slopes, differentiated, mean, weight_slopes
from onnxprune.importance.synflow import Flow
from onnxprune.layers.layer import Layer, sparse_layers
from onnxprune.layers.values import Unsuitable, Values
from onnxprune.runtime.session import Feeds, running, session
from onnxprune.sparsity.amounts import maskable
from onnxprune.structure.groups import analyze
from onnxprune.training.weights import trainable

BATCH = 64  # samples whose mean loss gives one gradient
RECTIFIERS = ("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip")


class Lacking(Exception):
    """What a proxy raises for a network that it says nothing of; the text says why."""


@dataclass(frozen=True)
class Gradients:
    """Of weights by name, over batches. mean: of the gradients; magnitude: of their magnitudes; deviation: theirs."""

    mean: Mapping[str, Float]
    magnitude: Mapping[str, Float]
    deviation: Mapping[str, Float]


@dataclass(frozen=True, eq=False)
class Network:
    """An untrained network as proxies ask it; what several go by is computed once.

    model: with standing statistics of the samples; fresh: the same as it was before it saw any; data: samples, whole
    batches of `batch`, None where no proxy goes by them; missed: what had no gradient -> why.
    """

    model: Model
    fresh: Model
    data: TrainingSet | None = None
    batch: int = BATCH
    memory: float = MEMORY
    threads: int = 0
    seed: int = 0
    missed: dict[str, str] = field(default_factory=dict)

    @cached_property
    def costs(self) -> tuple[CostModel, Array]:
        """Costs of one sample, and the ids of all units."""
        feeds = {} if self.data is None else self.data.feeds([0])
        analysis = analyze(self.fresh, {name: x.shape for name, x in feeds.items()} or None)
        return analysis.costs(), analysis.keep_ids({})

    @cached_property
    def layers(self) -> list[Layer]:
        """Layers whose weights are trained, one per weight."""
        return maskable(self.model, trainable(self.model))

    @cached_property
    def weights(self) -> dict[str, Array]:
        """Weights of the layers, by the tensor that they are differentiated by."""
        return weights_of(self.model, self.layers)

    def shown(self, labels: bool | None, proxy: str) -> Shown:
        """The samples with labels (True), without (False), or with labels where there are some (None)."""
        assert self.data is not None
        return by_training(self.data, self.threads, self.seed).by(labels, f"--proxy {proxy}")

    def slopes(self, shown: Shown, most: int = 0) -> Slopes:
        """Runs over samples, of at most so many, that make whole batches together."""
        out = Slopes(
            self.model, shown, memory=self.memory, threads=self.threads, most=most or self.batch, seed=self.seed
        )
        out.batch = max(b for b in range(1, out.batch + 1) if self.batch % b == 0)
        return out

    @cached_property
    def gradients(self) -> Gradients:
        """Of the loss by labels, batch by batch."""
        shown = self.shown(True, "by labels")
        slopes = self.slopes(shown)
        graph: list[Graph] = []

        def build(sizes: Sizes | None) -> Graph:
            graph.append(differentiated(self.model, slopes.loss.build, list(self.weights), sizes))
            return graph[-1]

        batches = by_batch(slopes(build), [len(part) for part in shown.batches(self.batch)])
        out = _moments(batches)
        self.missed.update(kv for g in graph for kv in g.blocked.items())
        return out


def by_batch(runs: Iterable[tuple[Feeds, int]], sizes: Sequence[int]) -> Iterator[dict[str, Float]]:
    """Mean gradients of every batch, of runs of parts of them. runs: sums over samples, and how many; sizes: samples of
    the batches."""
    rest, total, done = list(sizes), dict[str, Float](), 0
    for values, count in runs:
        total = {w: total.get(w, 0.0) + np.asarray(g, np.float64) for w, g in values.items()}
        done += count
        if done == rest[0]:
            yield {w: g / done for w, g in total.items()}
            rest, total, done = rest[1:], {}, 0
    assert not rest, "runs fill whole batches"


def _moments(batches: Iterable[Mapping[str, Float]]) -> Gradients:
    """Mean, mean magnitude and standard deviation, the last exactly zero where all batches agree (Welford 1962)."""
    mean_, magnitude, squares = dict[str, Float](), dict[str, Float](), dict[str, Float]()
    n = 0
    for n, gradients in enumerate(batches, 1):
        for w, g in gradients.items():
            before = mean_.get(w, np.zeros(g.shape))
            mean_[w] = before + (g - before) / n
            squares[w] = squares.get(w, 0.0) + (g - before) * (g - mean_[w])
            magnitude[w] = magnitude.get(w, 0.0) + (np.abs(g) - magnitude.get(w, 0.0)) / n
    return Gradients(mean_, magnitude, {w: np.sqrt(s / n) for w, s in squares.items()})


# ---------------------------------------------------------------------------------------------------------------------
# Size
# ---------------------------------------------------------------------------------------------------------------------


def parameters(net: Network) -> float:
    """trained numbers; few proxies say more (Abdelfattah et al. 2021; White et al. 2022)"""
    costs, every = net.costs
    return costs.parameters(every)


def macs(net: Network) -> float:
    """multiply-accumulates of one sample"""
    costs, every = net.costs
    return costs.macs(every)


# ---------------------------------------------------------------------------------------------------------------------
# By gradients of the weights
# ---------------------------------------------------------------------------------------------------------------------


def grad_norm(net: Network) -> float:
    """sum over layers of the norm of dL/dw (Abdelfattah et al. 2021); needs labels"""
    return _summed(float(np.linalg.norm(g)) for g in net.gradients.mean.values())


def snip(net: Network) -> float:
    """sum of |w dL/dw| (Lee et al. 2019, SNIP); needs labels"""
    return _summed(float(np.abs(net.weights[w] * g).sum()) for w, g in net.gradients.mean.items())


def grasp(net: Network) -> float:
    """-sum of w (H g), g the gradient and H the Hessian of the loss (Wang et al. 2020, GraSP); needs labels"""
    found, lacking = weight_slopes(
        net.model, net.weights, net.slopes(net.shown(True, "grasp")), None, second=True
    )  # fmt: skip
    net.missed.update(lacking)
    return -_summed(float(s.sum()) for s in found.values())


def zico(net: Network) -> float:
    """sum over layers of log sum E|dL/dw| / std(dL/dw) over batches (Li et al. 2023, ZiCo); needs labels"""
    steady = []
    for w, deviation in net.gradients.deviation.items():
        moving = deviation > 0
        if moving.any():
            steady.append(math.log(float((net.gradients.magnitude[w][moving] / deviation[moving]).sum())))
    return _summed(steady, "the gradients of all batches are the same")


def synflow(net: Network) -> float:
    """log of the sum of w dR/dw, R what flows of ones through magnitudes of weights (Tanaka et al. 2020, SynFlow)"""
    flow = Flow(net.fresh, infer(net.fresh))
    inputs = {flow.weights[x.weight].name for x in net.layers if x.weight in flow.weights}
    graph = differentiated(flow.model, flow.loss, sorted(inputs), {n: x.shape for n, x in flow.ones.items()})
    values, exponent = flow.scaled({})
    feeds = {**flow.ones, **values}
    with session(graph.model, threads=net.threads) as s:
        given = {i.name for i in s.get_inputs()}
        found = s.run(list(graph.names.values()), {n: x for n, x in feeds.items() if n in given}) if inputs else []
    total = _summed(
        float(np.abs(feeds[w] * np.asarray(g, np.float64)).sum()) for w, g in zip(graph.names, found, strict=True)
    )
    if not total > 0:
        raise Lacking("nothing flows through it")
    return math.log(total) + exponent * math.log(2)


def _summed(parts: Iterable[float], none: str = "no gradient reaches its weights") -> float:
    """The sum. Raises `Lacking` of no parts."""
    found = list(parts)
    if not found:
        raise Lacking(none)
    return float(sum(found))


# ---------------------------------------------------------------------------------------------------------------------
# By activations, and by gradients of the inputs
# ---------------------------------------------------------------------------------------------------------------------


def fisher(net: Network) -> float:
    """sum over channels of E (a dL/da)^2 / 2, a dL/da summed over positions (Theis et al. 2018; Turner et al. 2020);
    without labels by the outputs' own distribution"""
    slopes = net.slopes(net.shown(None, "fisher"), most=1)  # so that an output is that of one sample
    axes = {x.key: _outputs(x) for x in sparse_layers(net.model)[0] if not x.inside}

    def build(sizes: Sizes | None) -> Graph:
        b = Backward(net.model, sizes)
        found = differentiate(b, slopes.loss.build(b), list(axes))
        net.missed.update(found.blocked)
        of = {}
        for y, g in found.of.items():
            rank = b.rank(y)
            of[y] = b.sum(b.op("Mul", y, g), [k for k in range(rank) if k != axes[y] % rank])
        return Graph(b.finished(list(of.values())), of, {}, found.blocked)

    found = mean(slopes(build), np.square)
    return _summed(float(v.sum()) / 2 for v in found.values())


def _outputs(layer: Layer) -> int:
    """The axis of a layer's output that counts its channels."""
    return 1 if layer.convolves else -2 if layer.left else -1


def jacob_cov(net: Network) -> float:
    """-sum of log(v + k) + 1 / (v + k), v the eigenvalues of the correlation matrix of the samples' Jacobians, of the
    sum of class scores by the input, k 1e-5 (Mellor et al. 2020, arXiv:2006.04647v1)"""
    names = [i.name for i in graph_inputs(net.model) if i.type.tensor_type.elem_type in FLOAT_TYPES]
    slopes = net.slopes(net.shown(False, "jacob_cov"))
    slopes.loss = Sum(**{f.name: getattr(slopes.loss, f.name) for f in fields(slopes.loss)})

    def build(sizes: Sizes | None) -> Graph:
        graph = differentiated(net.model, slopes.loss.build, names, sizes)
        net.missed.update(graph.blocked)
        return graph

    rows = []
    for values, count in slopes(build) if names else ():
        rows += [np.concatenate([np.ravel(g[i]) for g in values.values()]) for i in range(count) if values]
    if not rows:
        raise Lacking("no gradient reaches an input" if names else "no input is of a floating-point type")
    if len({r.size for r in rows}) > 1:
        raise Lacking("samples are of several shapes")
    jacobians = np.array(rows, np.float64)
    if not np.isfinite(jacobians).all():
        return math.nan
    if not (np.ptp(jacobians, axis=1) > 0).all():
        raise Lacking("a sample has the same gradient at every input")
    v = np.linalg.eigvalsh(np.corrcoef(jacobians)) + 1e-5
    return -float((np.log(v) + 1 / v).sum())


def naswot(net: Network) -> float:
    """log of the determinant of the kernel of the samples' activation patterns: for each two, how many rectifiers are
    open, or shut, for both (Mellor et al. 2021, Neural Architecture Search without Training)"""
    assert net.data is not None
    values = Values(net.model)
    names = [n.key for n in walk(net.model.proto.graph, opsets(net.model.proto)) if _rectifies(n, values)]
    if not names:
        raise Lacking("it has no rectifier")
    codes, open_ = list[Array](), 0
    with running(net.model, names) as compute:
        for i in range(net.data.count):  # one by one: whatever axis samples are on, an output is that of one
            found = compute(net.data.feeds([i]))
            signs = np.concatenate([np.ravel(found[name] > 0) for name in names])
            codes.append(np.packbits(signs))
            open_ = open_ or signs.size
            if signs.size != open_:
                raise Lacking("samples are of several shapes")
    every = np.array(codes)
    apart = np.array([np.bitwise_count(every ^ code).sum(1, dtype=np.int64) for code in every])
    v = np.linalg.eigvalsh((open_ - apart).astype(np.float64))
    if v[0] <= v[-1] * len(v) * np.finfo(np.float64).eps:
        raise Lacking(f"{open_} rectifiers do not tell {len(v)} samples apart; give fewer --samples")
    return float(np.log(v).sum())


def _rectifies(n: Node, values: Values) -> bool:
    """Whether an output above zero says that a rectifier is open."""
    if n.op != "Clip":
        return n.op in RECTIFIERS or "relu" in str(n.attr("activation", b"")).lower()
    try:
        least = values(n.input(1)) if n.input(1) else n.attr("min", -math.inf)
    except Unsuitable:
        return False
    return float(least) == 0.0


@dataclass(frozen=True)
class Proxy:
    """function: network -> a number, larger is better, or `Lacking` is raised; samples, labels: what it needs."""

    help: str
    function: Callable[[Network], float]
    samples: bool = True
    labels: bool = False


def _row(function: Callable[[Network], float], *, samples: bool = True, labels: bool = False) -> Proxy:
    return Proxy(" ".join((function.__doc__ or "").split()), function, samples or labels, labels)


PROXIES: dict[str, Proxy] = {
    "parameters": _row(parameters, samples=False),
    "macs": _row(macs, samples=False),
    "grad_norm": _row(grad_norm, labels=True),
    "snip": _row(snip, labels=True),
    "grasp": _row(grasp, labels=True),
    "fisher": _row(fisher),
    "synflow": _row(synflow, samples=False),
    "jacob_cov": _row(jacob_cov),
    "naswot": _row(naswot),
    "zico": _row(zico, labels=True),
}


def whole_batches(count: int) -> tuple[int, int]:
    """How many of so many samples make batches of one size, two at least and of `BATCH` at most; and that size.

    >>> whole_batches(128), whole_batches(150), whole_batches(5)
    ((128, 64), (150, 50), (4, 2))
    """
    batches = max(2, -(-count // BATCH))
    return count // batches * batches, count // batches


__all__ = ["PROXIES", "Lacking", "Network", "Proxy", "whole_batches"]
