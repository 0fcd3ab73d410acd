"""Zeros of every layer as choices under a target: what each level costs in damage, and what it leaves of the time.

Damage is that of `survey.facts`: the error of a quick solver in units of what the layer alone does to the outputs on
samples that were held out, the measure of the level database of units (allocation/levels.py), so that both add up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import cache as entries
from onnxprune.allocation.budget import Switch
from onnxprune.calibration.calibration import Batches
from onnxprune.formats.patterns import NMPattern, Pattern
from onnxprune.graph.io import Model, to_proto
from onnxprune.layers.layer import Layer
from onnxprune.progress import Steps
from onnxprune.sparsity.allocate import LEVELS
from onnxprune.sparsity.survey import facts, uncounted

LEAST = 0.5  # sparsity below which no kernel pays
Curve = Sequence[tuple[float, float]]  # sparsity, seconds over those of the dense layer; rising sparsity


def switches(
    model: Model,
    layers: Sequence[Layer],
    pattern: Pattern | None,
    curves: Mapping[str, Curve],
    data: Batches,
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: Steps = uncounted,
) -> list[Switch]:
    """A choice for every layer that is faster with zeros of the pattern; the budget is `latency`.

    model: prepared (sparsity/prepare.py), and its layers; curves: layer -> measured times; cache: folder that keeps the
    damage.
    """
    levels = levels_of(pattern)
    timed = [x for x in layers if any(left < 1 for _, left in curves.get(x.name, ()))]
    hurt = damages(model, timed, pattern, levels, data, seed=seed, cache=cache, progress=progress)
    out = []
    for layer in timed:
        if layer.initializer not in hurt:
            continue
        known = curves[layer.name]
        at, parts = (np.array(row) for row in zip(*known, strict=True))
        left = [float(np.interp(level, at, parts)) for level in levels]
        rows = sorted(zip(levels, hurt[layer.initializer], left, strict=True))
        chosen = [(0.0, 0.0, 1.0)]
        for sparsity, damage, part in rows:  # more zeros for more speed, or not at all
            if part < chosen[-1][2] and np.isfinite(damage):
                chosen.append((sparsity, max(damage, chosen[-1][1]), part))
        if len(chosen) > 1:
            sparsity_, damage_, left_ = zip(*chosen, strict=True)
            out.append(Switch(layer.name, sparsity_, damage_, {"latency": (frozenset({layer.name}), left_)}))
    return out


def levels_of(pattern: Pattern | None) -> tuple[float, ...]:
    """Sparsities that a layer may have with a pattern."""
    if isinstance(pattern, NMPattern):
        return (pattern.ratio,)
    return tuple(level for level in LEVELS if level >= LEAST)


def damages(
    model: Model,
    layers: Sequence[Layer],
    pattern: Pattern | None,
    levels: Sequence[float],
    data: Batches,
    *,
    seed: int,
    cache: Path | None,
    progress: Steps,
) -> dict[str, list[float]]:
    """Weight -> damage at every level, where data reach it; arguments are those of `switches`."""
    key, path = "", None
    if cache is not None:
        digest = hashlib.sha256(to_proto(model).SerializeToString(deterministic=True)).hexdigest()
        weights = [x.initializer for x in layers]
        key = entries.digest("switches", digest, data.digest, str(pattern), list(levels), weights, data.unseen, seed)
        path = cache / f"switches-{key[:24]}.json"
        with entries.cache_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            there: dict[str, Any] | None = entries.read_json(path, key)
        if there is not None:
            return {name: list(errors) for name, errors in there.items()}
    once = list({x.initializer: x for x in layers}.values())
    found = facts(model, once, pattern, data, errors=True, levels=levels, seed=seed, progress=progress)
    out = {name: list(f.errors) for name, f in found.items()}
    if cache is not None and path is not None:
        with entries.cache_errors(cache):
            entries.write_json(path, key, out)
    return out


__all__ = ["Curve", "damages", "levels_of", "switches"]
