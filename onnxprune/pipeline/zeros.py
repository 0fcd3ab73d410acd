"""Zeros that a search chooses, layer by layer: the choices, and a setup that makes those that were taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onnxprune.allocation.budget import Switch
from onnxprune.allocation.switches import Curve, switches
from onnxprune.calibration.calibration import solve_data
from onnxprune.formats.patterns import NMPattern, Pattern
from onnxprune.latency.zeros import METHODS
from onnxprune.layers.layer import sparse_layers
from onnxprune.pipeline.setup import Setup
from onnxprune.progress import counting
from onnxprune.sparsity.amounts import ZEROS
from onnxprune.sparsity.options import EVEN_ALLOCATION, Zeros
from onnxprune.sparsity.prepare import prepare
from onnxprune.sparsity.spec import Spec
from onnxprune.sparsity.stage import refusal


def pattern_of(method: str) -> Pattern | None:
    """Where a method's zeros lie; None for anywhere."""
    return METHODS[method].pattern


def choices(setup: Setup, method: str, curves: Mapping[str, Curve]) -> Sequence[Switch]:
    """How sparse each layer may become by a method; curves: layer -> what that leaves of its time."""
    assert setup.data is not None
    analysis, clock, o = setup.analysis, setup.clock, setup.options
    refuses = refusal(spec_of(setup, {}, method))
    clock("levels")
    model, _ = prepare(analysis.model, functions=True, takes=lambda layer: not refuses(layer))
    layers = [layer for layer in sparse_layers(model)[0] if not refuses(layer)]
    return switches(
        model, layers, pattern_of(method), curves, solve_data(analysis, analysis.keep_ids({}), setup.data),
        seed=o.check.seed, cache=None if o.data.cache is None else Path(o.data.cache),
        progress=counting(clock.progress, f"levels of {method} zeros"),
    )  # fmt: skip


def spec_of(setup: Setup, zeros: Mapping[str, float], method: str) -> Spec:
    """What is asked of the weights: of each of these layers that part becomes zero."""
    pattern = pattern_of(method)
    ratios = [(f"{ZEROS}{layer}", part) for layer, part in zeros.items()]
    if isinstance(pattern, NMPattern):  # which every layer has that no ratio names
        ratios.insert(0, (f"{ZEROS}*", 0.0))
    of = Zeros(pattern=None if pattern is None else str(pattern), sparsity_allocate=EVEN_ALLOCATION)
    return replace(setup.spec, zeros=of, ratio=tuple(ratios))


def with_zeros(setup: Setup, zeros: Mapping[str, float], method: str) -> Setup:
    """The setup of a model with those zeros; as it was where there are none."""
    return replace(setup, spec=spec_of(setup, zeros, method)) if zeros else setup
