"""Slopes of a loss at gates of units, or at weights: x dL/dx of every sample, or x (H g), for all of a model at once.

The gates of a unit, wherever it is read, are one number: a vector for each group, from which the gates of its readers
are computed (`Units`). So one run backwards serves all groups. Vectors have a batch axis, where the tensors that gates
are multiplied with have one: a run then gives the slopes of each of its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from onnxprune.errors import UserError
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.walk import Derivatives, differentiate
from onnxprune.graph.arrays import Array, Float
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.protos import place
from onnxprune.graph.shapes import Shapes, infer
from onnxprune.importance.gates import Gated
from onnxprune.importance.losses import Loss
from onnxprune.importance.shown import Shown
from onnxprune.progress import Steps
from onnxprune.runtime.classes import class_rows
from onnxprune.runtime.session import Feeds, run, session
from onnxprune.structure.analysis import Analysis, ChannelGroup

MOST = 64  # samples of a run
KINDS = 4  # shapes of samples, for each of which a graph is built; one more serves all others
FIRST = 64  # samples whose outputs say what the loss is


def silent(done: int, total: int) -> None:
    """`Steps` that tell nobody."""


Sizes = dict[str, tuple[int, ...]]
Each = Callable[[Float], Float]  # of the slopes of a sample, elementwise


@dataclass(frozen=True, eq=False)
class Graph:
    """A model that computes gradients. names: what is differentiated by -> the output that holds its gradient; vectors:
    the same -> the input that its Hessian is multiplied with, none for first derivatives; blocked: the same -> why it
    has no gradient."""

    model: Model
    names: Mapping[str, str]
    vectors: Mapping[str, str]
    blocked: Mapping[str, str]


def differentiated(
    model: Model, loss: Callable[[Backward], str], wrt: Sequence[str], shapes: Sizes | None, *, second: bool = False
) -> Graph:
    """The model that gives dL/dw for each of `wrt`, or H v. shapes: of the inputs, None where they vary."""
    b = Backward(model, shapes)
    found = differentiate(b, loss(b), wrt)
    blocked = {**found.blocked, **dict.fromkeys(found.unread, "the loss does not depend on it")}
    if not found.of or not second:
        return Graph(_finished(b, found.of), found.of, {}, blocked)
    vectors = {w: b.input_like(f"{w}:vector", w) for w in found.of}
    parts = [b.sum(b.op("Mul", g, vectors[w]), range(b.rank(g))) for w, g in found.of.items()]
    again: Derivatives = differentiate(b, b.add(parts), list(found.of))
    of = {w: again.of.get(w) or b.zeros_like(w) for w in found.of if w not in again.blocked}
    return Graph(_finished(b, of), of, vectors, {**blocked, **again.blocked})


def _finished(b: Backward, of: Mapping[str, str]) -> Model:
    return b.finished(list(dict.fromkeys(of.values())))


class Units:
    """A model whose units have a number each, one where they are open.

    names: group -> its vector; lacking: group -> why it has none; batched: whether vectors have a batch axis.
    """

    def __init__(
        self, analysis: Analysis, groups: Sequence[ChannelGroup], feeds: Feeds, batch: int, *, multiplied: bool = False
    ) -> None:
        """feeds: inputs of a run of so many samples; with a batch of one there is no batch axis; multiplied: whether
        gates that are added are multiplied, too."""
        statistics = analysis.coupling.statistics  # what is normalised by counts those that are left
        gated = Gated(analysis, groups, only=lambda key: key not in statistics)
        self.edit, weights = gated.edit, gated.model.weights
        whole = {gate: weights[gate].dtype for gate in gated.exact if weights[gate].dtype.kind != "f"}
        self.lacking: dict[str, str] = {}
        for g in groups:
            if not gated.names[g.name]:
                self.lacking[g.name] = "nothing that sums over its units can be gated"
            elif any(gate in whole for gate in gated.names[g.name]):
                self.lacking[g.name] = "what reads its units computes with integers"
        axes = batch_axes(gated, feeds, batch) if batch > 1 else {}
        self.batched = batch > 1 and all(gate in axes for gate in gated.exact)
        scored = [g for g in groups if g.name not in self.lacking]
        self.names = {
            g.name: self.edit.constant(f"{g.name}:units", np.ones((batch, g.size)[not self.batched :], np.float32))
            for g in scored
        }
        self._before: list[onnx.NodeProto] = []
        units = {g.name: analysis.units(g) for g in scored}
        for gate, (ids, shape, added) in gated.exact.items():
            if gate in whole:
                continue
            owners = [g for g in scored if gate in gated.names[g.name]]
            of = [(self.names[g.name], units[g.name][analysis.components.labels[ids]], g.size) for g in owners]
            dims = [1 if d == 1 else -1 for d in shape.tolist()]
            if self.batched:
                dims = dims or [1] * (axes[gate][1])
                dims[axes[gate][0]] = batch
            made = self._gate(gate, of, dims, added and not multiplied, weights[gate].dtype)
            for node in (node for graph in graphs(self.edit.graph) for node in graph.node if gate in node.input):
                node.input[:] = [made if i == gate else i for i in node.input]
                node.op_type = "Mul" if multiplied else node.op_type
        place(self.edit.graph, [*self._before, *self.edit.graph.node])
        self.edit.drop([gate for gate in gated.exact if gate not in whole])

    @property
    def model(self) -> Model:
        """The model; its unit vectors are initializers."""
        return self.edit.model

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = self.edit.fresh(f"units/{kind}")
        self._before.append(helper.make_node(kind, list(inputs), [name], self.edit.fresh_node(name), **attributes))
        return name

    def _gate(
        self, gate: str, of: Sequence[tuple[str, Array, int]], dims: list[int], added: bool, dtype: np.dtype[np.generic]
    ) -> str:
        """A gate of the numbers of its units. of: vector, unit of every index (-1 for none), units; of no index the
        whole vector."""
        parts = []
        for vector, units, size in of:
            if units.size and not np.array_equal(units, np.arange(size)):
                if (units < 0).any():
                    one = self.edit.constant("units/one", np.ones_like(self.model.weights[vector][..., :1]))
                    vector, units = self._op("Concat", vector, one, axis=-1), np.where(units < 0, size, units)
                vector = self._op("Gather", vector, self.edit.constant("units/at", units), axis=-1)
            parts.append(vector)
        if not parts:
            return gate
        out = parts[0]
        for part in parts[1:]:
            out = self._op("Mul", out, part)
        out = self._op("Log", out) if added else out
        out = self._op("Reshape", out, self.edit.constant("units/dims", np.array(dims, np.int64)))
        return out if dtype == np.float32 else self._op("Cast", out, to=helper.np_dtype_to_tensor_dtype(dtype))


def batch_axes(gated: Gated, feeds: Feeds, batch: int) -> dict[str, tuple[int, int]]:
    """Gate -> the axis of the tensor that it is multiplied with that is the samples, and the tensor's rank; of tensors
    that have exactly one: as long as the batch, whatever that is."""
    both = [infer(gated.model, {n: (b, *x.shape[1:]) for n, x in feeds.items()}) for b in (batch, batch + 1)]
    out = {}
    for graph in graphs(gated.model.proto.graph):
        for node in graph.node:
            for gate in gated.exact.keys() & set(node.input):
                shapes = [s.shapes.get(node.input[0], ()) for s in both]
                axes = [k for k, sizes in enumerate(zip(*shapes, strict=False)) if sizes == (batch, batch + 1)]
                _, shape, _ = gated.exact[gate]
                free = [k for k in axes if not shape.size or shape[k] == 1]
                same = len(shapes[0]) == len(shapes[1]) and len(axes) == 1
                if same and free:
                    out[gate] = free[0], len(shapes[0])
    return out


def sample_bytes(shapes: Shapes) -> float:
    """Bytes of all tensors that a run makes."""
    computed = [s for name, s in shapes.shapes.items() if name not in shapes.constant]
    return 4.0 * sum(math.prod(d or 1 for d in s) for s in computed)


class Slopes:
    """Runs of graphs that give slopes, over samples. batch: samples of a run, the last of them filled up."""

    def __init__(
        self, model: Model, shown: Shown, *, memory: float, threads: int = 0, most: int = MOST, seed: int = 0,
        temperature: float = 1.0,
    ) -> None:  # fmt: skip
        """memory: bytes for activations; most: samples of a run, at most; temperature: as of `Loss`."""
        self.model, self.shown, self.threads, self.seed = model, shown, threads, seed
        one = shown.feeds(shown.batches(1)[0])
        each = sample_bytes(infer(model, {n: x.shape for n, x in one.items()}))
        limit = int(np.clip(memory / max(2 * each, 1), 1, most))
        self.batch = max(map(len, shown.batches(limit)))
        first = shown.batches(FIRST)[0]
        few = shown.feeds(first)
        outputs = run(model, few)
        labels = None if shown.labels_of is None else shown.labels_of(first)
        tokens = 0 if labels is None or labels.ndim < 2 else labels.shape[1]
        self.loss = replace(Loss.of(model, outputs, len(next(iter(few.values()))), tokens), temperature=temperature)
        self.classes = class_rows(outputs[self.loss.classes]).shape[1] if self.loss.classes else 0
        if shown.labels_of is not None and not self.loss.classes:
            raise UserError("labels are of classes, and the model has no output with a row of class scores")

    def first(self) -> Feeds:
        """Inputs of the first run."""
        return self._filled(self.shown.batches(self.batch)[0])

    def _filled(self, indices: Sequence[int]) -> Feeds:
        return self.shown.feeds([*indices, *[indices[-1]] * (self.batch - len(indices))])

    def __call__(
        self, build: Callable[[Sizes | None], Graph], *, vectors: Feeds | None = None, signs: bool = False,
        progress: Steps = lambda done, total: None,
    ) -> Iterator[tuple[Feeds, int]]:  # fmt: skip
        """What a graph gives for every run, by what it is differentiated by, and how many samples count in it.

        build: the graph for inputs of some sizes; vectors: what Hessians are multiplied with; signs: whether the losses
        of the samples of a run have random signs, so that the square of their slopes is on average that of each.
        """
        rng, labels_of = np.random.default_rng(self.seed), self.shown.labels_of
        graphs_of: dict[str, tuple[Graph, ort.InferenceSession]] = {}
        parts = self.shown.batches(self.batch)
        with ExitStack() as stack:
            forward = None if labels_of else stack.enter_context(session(self.model, threads=self.threads))
            for k, indices in enumerate(parts):
                progress(k, len(parts))
                feeds = self._filled(indices)
                sizes: Sizes | None = {n: x.shape for n, x in feeds.items()}
                if str(sizes) not in graphs_of and len(graphs_of) >= KINDS:
                    sizes = None
                if str(sizes) not in graphs_of:
                    graph = build(sizes)
                    graphs_of[str(sizes)] = graph, stack.enter_context(session(graph.model, threads=self.threads))
                if labels_of is not None:
                    factors = 2.0 * rng.integers(0, 2, len(indices)) - 1 if signs else np.ones(len(indices))
                    c = self.loss.of_labels(labels_of(indices), self.classes, self.batch, factors)
                else:
                    assert forward is not None
                    outputs = dict(zip((o.name for o in forward.get_outputs()), forward.run(None, feeds), strict=True))
                    c = self.loss.drawn(outputs, self.batch, len(indices), rng)
                graph, s = graphs_of[str(sizes)]
                given = {graph.vectors[w]: v for w, v in (vectors or {}).items() if w in graph.vectors}
                values = s.run(list(graph.names.values()), {**feeds, **c, **given}) if graph.names else []
                yield dict(zip(graph.names, values, strict=True)), len(indices)
        progress(len(parts), len(parts))


def mean(runs: Iterable[tuple[Feeds, int]], each: Each | None = None, *, batched: bool = False) -> dict[str, Float]:
    """Mean over the samples of `each` of what runs give, None for the value itself, of those that all runs give.

    batched: whether axis 0 is of the samples; else what a run gives is of its samples together.
    """
    total: dict[str, Float] = {}
    samples, found = 0, None
    for values, count in runs:
        found = set(values) if found is None else found & set(values)
        samples += count
        for name, g in values.items():
            value = np.asarray(g, np.float64)
            value = value if each is None else each(value)
            total[name] = total.get(name, 0.0) + (value[:count].sum(0) if batched else value)
    return {name: t / samples for name, t in total.items() if name in (found or ())}


def unit_slopes(
    analysis: Analysis, groups: Sequence[ChannelGroup], slopes: Slopes, each: Each | None, *, second: bool = False,
    progress: Steps = silent,
) -> tuple[dict[str, Float], dict[str, str]]:  # fmt: skip
    """Group -> mean of `each` of the slopes at its units, `(size,)`; and group -> why it has none.

    second: slopes are (H g) of the mean loss in place of g; without `each` they are of the mean loss as well.
    """
    units = Units(analysis, groups, slopes.first(), slopes.batch if each is not None else 1)
    if each is not None and not units.batched:
        slopes.batch = 1
    lacking, wrt = dict(units.lacking), list(units.names.values())
    group_of = {vector: group for group, vector in units.names.items()}

    def build(sizes: Sizes | None, *, second: bool = False) -> Graph:
        graph = differentiated(units.model, slopes.loss.build, wrt, sizes, second=second)
        lacking.update({group_of[w]: why for w, why in graph.blocked.items()})
        return graph

    found = mean(slopes(build, progress=progress), None if second else each, batched=units.batched)
    if second:
        vectors = {w: v.astype(np.float32) for w, v in found.items()}
        found = mean(slopes(partial(build, second=True), vectors=vectors, progress=progress))
    return {group_of[w]: v for w, v in found.items() if group_of[w] not in lacking}, lacking


def weight_slopes(
    model: Model, weights: Mapping[str, Array], slopes: Slopes, each: Each | None, *, second: bool = False,
    signs: bool = False, progress: Steps = silent,
) -> tuple[dict[str, Float], dict[str, str]]:  # fmt: skip
    """Tensor -> mean of `each` of w dL/dw of every run, in its own shape; and tensor -> why it has none.

    weights: the values w of tensors of the model; second: as of `unit_slopes`; signs: as of `Slopes.__call__`.
    """
    lacking: dict[str, str] = {}

    def build(sizes: Sizes | None, *, second: bool = False) -> Graph:
        graph = differentiated(model, slopes.loss.build, list(weights), sizes, second=second)
        lacking.update(graph.blocked)
        return graph

    def times(runs: Iterable[tuple[Feeds, int]]) -> Iterator[tuple[Feeds, int]]:
        for values, count in runs:
            yield {w: weights[w] * np.asarray(g, np.float64) for w, g in values.items()}, count

    if second:
        first = mean(slopes(build, progress=progress))
        vectors = {w: v.astype(weights[w].dtype) for w, v in first.items()}
        found = mean(times(slopes(partial(build, second=True), vectors=vectors, progress=progress)))
    else:
        found = mean(times(slopes(build, signs=signs, progress=progress)), each)
    return {w: v for w, v in found.items() if w not in lacking}, lacking
