"""The latency of what is left of a model, as a sum of products over its nodes, made of measurements of variants of it.

Operators by themselves miss their context: cold caches, what is fused, layouts that need widths of multiples of 8 or
16. So variants of the model itself are timed and profiled (`variants`, `making`), all in turns with the uncut model;
what every part of them took (`table`) is fitted by what it is counted by (`parts`, `fit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxprune.graph.traits import Product
from onnxprune.latency.fit import STEPS, cross_validated, fit
from onnxprune.latency.making import Measuring, measured_table
from onnxprune.latency.parts import KINDS, WHOLE, design
from onnxprune.latency.table import Device, Table, parts_of_table
from onnxprune.latency.variants import Picker
from onnxprune.layers.layer import sparse_layers
from onnxprune.progress import Progress, silent
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import cores
from onnxprune.sparsity.prepare import prepare
from onnxprune.structure.analysis import Analysis, Keep

UNCUT = 3.0  # how much an error of the uncut model counts, to which all others are compared

Ratios = Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]]


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """products: their sum over the ids that survive is the seconds of a run, labels are nodes; error: relative, of
    variants that a fit had not seen, median and 95th percentile; table: what it was made of.

    ratios: layer -> method -> (sparsity, seconds over those of the dense layer); below 0 where the operator in its
    place saves more of other nodes than it takes.
    """

    products: tuple[Product, ...]
    error: tuple[float, float]
    ratios: Ratios
    table: Table

    def seconds(self, keep: Keep) -> float:
        """Of a run of what is left where the ids that are True in `keep`, `(ids,)`, survive."""
        return sum(p(keep) for p in self.products)


def latency_model(
    analysis: Analysis,
    feeds: Feeds,
    *,
    threads: int,
    cache: Path | None,
    seed: int,
    methods: Sequence[str] = (),
    repeat: int = 1,
    progress: Progress = silent,
) -> LatencyModel:
    """Measure variants on this machine, or take what the cache has of it, and fit.

    feeds: inputs of the uncut model; threads: intra-op, 0 for all cores; cache: a folder; methods: of
    `zeros.METHODS`, of which ratios are measured too; repeat: how often all is timed. Raises `UserError` where the
    machine is too noisy.
    """
    how = Measuring(Device.here(threads or cores()), seed, repeat, tuple(methods))
    return model_of(analysis, measured_table(analysis, feeds, how, cache=cache, progress=progress))


def model_of(analysis: Analysis, table: Table) -> LatencyModel:
    """Fit the rows of a table of this model."""
    parts, seconds = parts_of_table(analysis, table)
    picker = Picker.of(analysis)
    keeps = [picker.keep(v.kept) for v in table.variants]
    designs = {step: design(parts, keeps, step) for step in STEPS}
    families = [part.family for part in parts]
    counts = np.array([1.0 if variant.kept else UNCUT for variant in table.variants])
    found = fit(designs, seconds, families, counts)
    products = tuple(
        replace(p, factor=p.factor * coefficient)
        for part, step, coefficients in zip(parts, found.steps, found.coefficients, strict=True)
        for kind, coefficient in zip(KINDS, coefficients, strict=True)
        if coefficient
        for p in part.products(kind, step)
    )
    ratios = ratios_of(table)
    if WHOLE in ratios:
        ratios = shared_out(ratios[WHOLE], products, analysis)
    return LatencyModel(products, cross_validated(designs, seconds, families, counts), ratios, table)


def shared_out(
    whole: Mapping[str, Sequence[tuple[float, float]]], products: Sequence[Product], analysis: Analysis
) -> Ratios:
    """What single layers gain from zeros where only whole sessions were timed: each the same part of its time.

    whole: method -> (sparsity, seconds over those of the dense session) with zeros in all layers.
    """
    keep, layers = analysis.keep_ids({}), {x.name for x in sparse_layers(prepare(analysis.model, functions=True)[0])[0]}
    times = [(p.label in layers, p(keep)) for p in products]
    part = sum(t for inside, t in times if inside) / sum(t for _, t in times)
    shares = {m: tuple((s, 1 - (1 - left) / part) for s, left in each) for m, each in whole.items()} if part else {}
    return dict.fromkeys(layers, shares)


def ratios_of(table: Table) -> Ratios:
    """Layer -> method -> (sparsity, seconds over those of the dense layer), by growing sparsity."""
    dense = {row.node: row.seconds for row in table.variants[0].rows}
    out: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for variant in table.sparse:
        for row in variant.rows:
            if row.method != "dense" and dense.get(row.node):
                out.setdefault(row.node, {}).setdefault(row.method, []).append(
                    (row.sparsity, row.seconds / dense[row.node])
                )
    return {node: {m: tuple(sorted(each)) for m, each in methods.items()} for node, methods in out.items()}
