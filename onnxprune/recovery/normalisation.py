"""Normalisation statistics of a pruned model, estimated anew on data, layer after layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.calibration.options import MEMORY
from onnxprune.errors import OptionError
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.links import read_by
from onnxprune.graph.node import Node, opsets, walk
from onnxprune.graph.normalisation import MEAN, STATISTICS, VARIANCE
from onnxprune.graph.step import Step
from onnxprune.layers.places import place_of
from onnxprune.layers.values import Values, constant_names
from onnxprune.progress import Steps
from onnxprune.recovery.cut_model import CutModel, Recovered
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.stream import Stream, mapped
from onnxprune.structure.dead import without_dead


def renormalise(model: CutModel) -> Recovered:
    """The recovery `batchnorm`; statistics stay where all that went changes nothing. Raises `OptionError` where the
    model has no BatchNormalization."""
    data = model.data
    assert data is not None
    if normalisations(model.cut.model) and without_dead(model.analysis, model.keep).all():
        return Step(model.cut.model, ())
    narrow = mapped(data.runs(), lambda feeds: model.analysis.narrow(feeds, model.keep))
    out, count = batch_statistics(
        model.cut.model, narrow, memory=data.memory, threads=data.threads, progress=model.progress
    )
    return Step(out, (), (f"statistics of {count} BatchNormalization nodes estimated anew",))


def normalisations(model: Model) -> list[tuple[int, Node]]:
    """The BatchNormalization nodes with recorded statistics, each with its index among the nodes of the main graph."""
    constant = constant_names(model)
    return [
        (i, n)
        for i, n in enumerate(walk(model.proto.graph, opsets(model.proto)))
        if n.op == "BatchNormalization" and all(n.input(k) in constant for k in STATISTICS)
    ]


def batch_statistics(
    pruned: Model,
    source: Sequence[Feeds],
    *,
    memory: float = MEMORY,
    threads: int = 0,
    progress: Steps = lambda done, total: None,
) -> tuple[Model, int]:
    """The model with running mean and variance of every BatchNormalization as on the data; how many there are.

    Raises `OptionError` where the model has none (exporters fold them into convolutions).
    """
    edit = Edit(pruned)
    values, readers, norms = Values(edit.model), read_by(edit.model.proto), normalisations(edit.model)
    if not norms:
        raise OptionError(
            "--recover batchnorm: the model has no BatchNormalization, exporters fold it into convolutions; "
            "use mean-std or least-squares"
        )
    places = [
        (i, n, place_of(edit, n, MEAN, values, readers), place_of(edit, n, VARIANCE, values, readers)) for i, n in norms
    ]
    stream = Stream(edit.model, source, limit=memory, threads=threads)
    for done, (index, node, mean, variance) in enumerate(places):
        progress(done, len(places))
        stream.advance(index)
        count, total, square = 0, 0.0, 0.0
        offset = mean.read()
        for batch in stream.compute([node.input(0)]):
            x = np.moveaxis(batch[node.input(0)], 1, 0).reshape(len(offset), -1).astype(np.float64) - offset[:, None]
            count += x.shape[1]
            total = total + x.sum(1)
            square = square + np.square(x).sum(1)
        mean.write(offset + total / count)
        variance.write(np.maximum(square / count - np.square(total / count), 0.0))
    progress(len(places), len(places))
    return edit.model, len(places)
