"""Zeros that a search chooses, layer by layer: the choices, and a setup that makes those that were taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onnxprune.allocation.budget import LATENCY, Settings, Switch
from onnxprune.allocation.switches import Curve, switches
from onnxprune.calibration.calibration import solve_data
from onnxprune.formats.dense import DENSE
from onnxprune.formats.patterns import NMPattern
from onnxprune.formats.registry import AUTO, candidates
from onnxprune.latency.zeros import METHODS
from onnxprune.layers.layer import sparse_layers
from onnxprune.pipeline.setup import Setup
from onnxprune.progress import counting
from onnxprune.sparsity.amounts import ZEROS
from onnxprune.sparsity.options import EVEN_ALLOCATION, Zeros
from onnxprune.sparsity.prepare import prepare
from onnxprune.sparsity.spec import Spec
from onnxprune.sparsity.stage import refusal


def choices(setup: Setup, method: str, curves: Mapping[str, Curve]) -> Sequence[Switch]:
    """How sparse each layer may become by one of `latency.zeros.METHODS`; curves: layer -> what that leaves of its
    time, where that is bounded."""
    assert setup.data is not None
    analysis, clock, o = setup.analysis, setup.clock, setup.options
    refuses = refusal(spec_of(setup, {}, method))
    clock("levels")
    model, _ = prepare(analysis.model, functions=True, takes=lambda layer: not refuses(layer))
    layers = [layer for layer in sparse_layers(model)[0] if not refuses(layer)]
    return switches(
        model, layers, METHODS[method], setup.meters.keys(), curves,
        solve_data(analysis, analysis.keep_ids({}), setup.data), seed=o.check.seed,
        cache=None if o.data.cache is None else Path(o.data.cache),
        progress=counting(clock.progress, f"levels of {method} zeros"),
    )  # fmt: skip


def spec_of(setup: Setup, settings: Settings, method: str) -> Spec:
    """What is asked of the weights: of each of these layers that part becomes zero. Where no time is bounded, zeros
    are stored so that the file is smaller, whether or not that is faster."""
    row = METHODS[method]
    ratios = [(f"{ZEROS}{layer}", part) for layer, part in settings.items()]
    if isinstance(row.pattern, NMPattern):  # which every layer has that no ratio names
        ratios.insert(0, (f"{ZEROS}*", 0.0))
    of = Zeros(pattern=None if row.pattern is None else str(row.pattern), sparsity_allocate=EVEN_ALLOCATION)
    form = None if LATENCY in setup.meters else candidates(AUTO, row.pattern, present=False)[0].name
    form = DENSE.name if row.dense else form
    stored = replace(setup.spec.store, values=row.values, format=form)
    return replace(setup.spec, zeros=of, store=stored, ratio=tuple(ratios))
