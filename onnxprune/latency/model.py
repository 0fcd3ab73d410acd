"""The latency of what is left of a model, as a sum of products over its nodes, made of measurements of variants of it.

Operators by themselves miss their context: cold caches, what is fused, layouts that need widths of multiples of 8 or
16. So variants of the model itself are timed and profiled (`variants`, `measure`), all in turns with the uncut model;
what every part of them took (`table`) is fitted by what it is counted by (`parts`, `fit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnxprune import cache as stored
from onnxprune.graph.fingerprint import fingerprint
from onnxprune.graph.io import Model, to_proto
from onnxprune.graph.traits import Product
from onnxprune.latency import measure
from onnxprune.latency.fit import STEPS, cross_validated, fit
from onnxprune.latency.parts import KINDS, Part, design, named, parts_of
from onnxprune.latency.table import (
    Device,
    Row,
    Table,
    Timed,
    Variant,
    parts_of_table,
    per_part,
    refuse_noise,
    seconds_of,
    spread_of,
)
from onnxprune.latency.variants import Kept, Picker, variants
from onnxprune.progress import Progress, silent
from onnxprune.runtime.session import Feeds, session
from onnxprune.runtime.timing import cores
from onnxprune.structure.analysis import Analysis, Keep

VARIANTS = 24  # that are measured, the uncut model among them

Ratios = Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]]


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """products: their sum over the ids that survive is the seconds of a run, labels are nodes; error: relative, of
    variants that a fit had not seen, median and 95th percentile; ratios: layer -> method -> (sparsity, seconds over
    those of the dense layer); table: what it was made of."""

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

    feeds: inputs of the uncut model; threads: intra-op, 0 for all cores; cache: a folder; methods: of zeros, of which
    ratios are measured too; repeat: how often all is timed. Raises `UserError` where the machine is too noisy.
    """
    table = measured_table(
        analysis, feeds, threads=threads, cache=cache, seed=seed, methods=methods, repeat=repeat, progress=progress
    )
    return model_of(analysis, table)


def measured_table(
    analysis: Analysis,
    feeds: Feeds,
    *,
    threads: int,
    cache: Path | None,
    seed: int,
    methods: Sequence[str] = (),
    repeat: int = 1,
    progress: Progress = silent,
) -> Table:
    """The table of a model on this machine; arguments as of `latency_model`."""
    device = Device.here(threads or cores())
    mark = fingerprint(analysis.model)
    shapes = {name: np.shape(x) for name, x in feeds.items()}
    key = stored.digest("latency", mark, device, VARIANTS, seed, repeat, shapes)
    if cache is not None:
        with stored.cache_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            found = stored.read_json(cache / f"latency-{key[:16]}.json", key)
        if found is not None:
            return Table.from_json(found["table"])
    picker = Picker.of(analysis)
    kept = variants(analysis, VARIANTS, seed)
    runs = measured(analysis, picker, kept, feeds, device, repeat, progress)
    table = table_of(analysis, picker, mark, device, kept, runs)
    if cache is not None:
        with stored.cache_errors(cache):
            stored.write_json(cache / f"latency-{key[:16]}.json", key, {"table": table.to_json()})
    return table


def measured(
    analysis: Analysis,
    picker: Picker,
    kept: Sequence[Kept],
    feeds: Feeds,
    device: Device,
    repeat: int,
    progress: Progress,
) -> Sequence[Timed]:
    """What every variant takes here."""

    @lru_cache(1)  # a variant is opened twice in a row
    def variant(k: int) -> tuple[Model, Feeds]:
        return named(picker.model(kept[k])), analysis.narrow(feeds, picker.keep(kept[k]))

    def opened(k: int, profile: str = "") -> measure.Opened:
        model, inputs = variant(k)
        return opened_on(device, model, profile), inputs

    def tell(done: int, total: int) -> None:
        progress("latency", done, total)

    return measure.measure(opened, len(kept), measure.clock_of(device.threads, device.provider), repeat, progress=tell)


def opened_on(device: Device, model: Model, profile: str = "") -> ort.InferenceSession:
    """A session of this machine's, with the sparse operators where it is the CPU's. Raises UNRUNNABLE."""
    if device.provider != "CPUExecutionProvider":
        return measure.open_session(to_proto(model).SerializeToString(), device.threads, device.provider, profile)
    with session(model, threads=device.threads, profile=profile) as s:
        return s


def table_of(
    analysis: Analysis, picker: Picker, mark: str, device: Device, kept: Sequence[Kept], runs: Sequence[Timed]
) -> Table:
    """The rows of what was measured. Raises `UserError` where that was too noisy."""
    spread = spread_of(runs)
    refuse_noise(spread)
    nodes = tuple((name, op) for name, op, _ in runs[0]["nodes"])
    parts = parts_of(analysis, runs[0]["nodes"])
    seconds, whole = per_part(parts, runs), seconds_of(runs)
    rows = [
        tuple(_row(analysis, part, picker.keep(some), s) for part, s in zip(parts, seconds[:, v], strict=True) if s)
        for v, some in enumerate(kept)
    ]
    made = tuple(Variant(k, float(s), r) for k, s, r in zip(kept, whole, rows, strict=True))
    return Table(mark, device, nodes, made, spread)


def _row(analysis: Analysis, part: Part, keep: Keep, seconds: float) -> Row:
    def shape(name: str) -> tuple[int, ...]:
        c = analysis.coupling
        sizes = c.shape(name) or ()
        axes = c.axes(name) or [None] * len(sizes)
        return tuple(int(d or 0) if a is None else int(keep[a].sum()) for d, a in zip(sizes, axes, strict=True))

    return Row(part.label, part.family, tuple(map(shape, part.inputs)), tuple(map(shape, part.outputs)), float(seconds))


def model_of(analysis: Analysis, table: Table) -> LatencyModel:
    """Fit the rows of a table of this model."""
    parts, seconds = parts_of_table(analysis, table)
    picker = Picker.of(analysis)
    keeps = [picker.keep(v.kept) for v in table.variants]
    designs = {step: design(parts, keeps, step) for step in STEPS}
    families = [part.family for part in parts]
    found = fit(designs, seconds, families)
    products = tuple(
        replace(p, factor=p.factor * coefficient)
        for part, step, coefficients in zip(parts, found.steps, found.coefficients, strict=True)
        for kind, coefficient in zip(KINDS, coefficients, strict=True)
        if coefficient
        for p in part.products(kind, step)
    )
    return LatencyModel(products, cross_validated(designs, seconds, families), ratios_of(table), table)


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
