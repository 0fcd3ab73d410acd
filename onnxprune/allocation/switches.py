"""Zeros of every layer as choices under a target: what each level costs in damage, and what it leaves of the budgets.

Damage is that of `survey.facts`: the error of a quick solver in units of what the layer alone does to the outputs on
samples that were held out, the measure of the level database of units (allocation/levels.py), so that both add up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.allocation.budget import LATENCY, Effect, Switch
from onnxprune.cache import remembered
from onnxprune.calibration.calibration import Batches
from onnxprune.formats.patterns import NMPattern, Pattern
from onnxprune.formats.registry import AUTO, candidates
from onnxprune.graph.fingerprint import exact_digest
from onnxprune.graph.io import Model
from onnxprune.kernels.names import VALUES
from onnxprune.latency.zeros import Method
from onnxprune.layers.layer import Layer
from onnxprune.progress import Steps
from onnxprune.sparsity.allocate import LEVELS
from onnxprune.sparsity.present import NODE
from onnxprune.sparsity.solve import by_magnitude
from onnxprune.sparsity.survey import facts, uncounted

LEAST = 0.5  # sparsity below which no kernel pays
Curve = Sequence[tuple[float, float]]  # sparsity, seconds over those of the dense layer; rising sparsity


@dataclass(frozen=True, eq=False)
class Stored:
    """A layer with zeros at every level. density: of its weights; bytes: of them in the file, over those of the dense
    weight; seconds: over those of the dense layer, None where these are not measured, `(levels,)` each."""

    layer: Layer
    density: tuple[float, ...]
    bytes: tuple[float, ...]
    seconds: tuple[float, ...] | None

    @property
    def weight(self) -> Effect:
        """What is left of the bytes of the weight."""
        return Effect(frozenset({self.layer.initializer}), self.bytes)


def _time(x: Stored) -> tuple[Effect, ...]:
    return () if x.seconds is None else (Effect(frozenset({x.layer.name}), x.seconds),)


# Budget -> what becomes cheaper of it.
EFFECTS: Mapping[str, Callable[[Stored], tuple[Effect, ...]]] = {
    LATENCY: _time,
    "bytes": lambda x: (x.weight,),
    "memory": lambda x: (x.weight,),
    "energy": lambda x: (Effect(frozenset({x.layer.name}), x.density), x.weight),
}


def switches(
    model: Model,
    layers: Sequence[Layer],
    method: Method,
    budgets: Collection[str],
    curves: Mapping[str, Curve],
    data: Batches,
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: Steps = uncounted,
) -> list[Switch]:
    """A choice for every layer of which zeros of the method leave less of a budget.

    model: prepared (sparsity/prepare.py), and its layers; budgets: that are bounded; curves: layer -> measured times,
    where time is one of them: a layer that is no faster then stays dense; cache: folder that keeps the damage.
    """
    levels = levels_of(method.pattern)
    timed = LATENCY in budgets
    able = [x for x in layers if any(left < 1 for _, left in curves.get(x.name, ()))]
    if not timed:  # a weight that several layers share is stored once
        able = list({x.initializer: x for x in layers}.values())
    hurt = damages(model, able, method, levels, data, seed=seed, cache=cache, progress=progress)
    out = []
    for layer in able:
        if layer.initializer not in hurt:
            continue
        stored = _stored(model, layer, method, levels, curves[layer.name] if timed else None)
        effects = {b: EFFECTS[b](stored) for b in EFFECTS if b in budgets}
        found = rising(layer.name, levels, hurt[layer.initializer], effects)
        if found is not None:
            out.append(found)
    return out


def rising(
    name: str, settings: Sequence[float], damage: Sequence[float], effects: Mapping[str, tuple[Effect, ...]]
) -> Switch | None:
    """The switch of those settings that leave less than all before them, and hurt as much at least; None without any.

    effects: at every setting, without the first of a switch, which changes nothing; time, where it is one, has to
    become less at every step.
    """
    chosen, lowest, worst = [], {b: [1.0] * len(each) for b, each in effects.items()}, 0.0
    for k in range(len(settings)):
        now = {b: [e.left[k] for e in each] for b, each in effects.items()}
        less = {b: any(x < y for x, y in zip(now[b], lowest[b], strict=True)) for b in effects}
        if np.isfinite(damage[k]) and (less[LATENCY] if LATENCY in less else any(less.values())):
            lowest, worst = now, max(worst, damage[k])
            chosen.append((k, worst))
    if not chosen:
        return None
    at = [k for k, _ in chosen]
    return Switch(
        name, (0.0, *(settings[k] for k in at)), (0.0, *(d for _, d in chosen)),
        {b: tuple(Effect(e.labels, (1.0, *(e.left[k] for k in at))) for e in each) for b, each in effects.items()},
    )  # fmt: skip


def levels_of(pattern: Pattern | None) -> tuple[float, ...]:
    """Sparsities that a layer may have with a pattern."""
    if isinstance(pattern, NMPattern):
        return (pattern.ratio,)
    return tuple(level for level in LEVELS if level >= LEAST)


def _stored(model: Model, layer: Layer, method: Method, levels: Sequence[float], curve: Curve | None) -> Stored:
    """What becomes of a layer at every level; zeros lie by magnitude, which is as good as any for their number."""
    size = int(np.prod(layer.shape))
    storage = candidates(AUTO, method.pattern, present=False)[0].storage
    density, left = [], []
    for level in levels:
        kept = by_magnitude(model, layer, method.pattern, round(level * size)) != 0
        density.append(float(kept.mean()))
        smallest = None if storage is None else storage.smallest(layer, kept, VALUES[method.values].itemsize)
        taken = density[-1] if smallest is None else (smallest[0] + NODE) / (VALUES["float32"].itemsize * size)
        left.append(1.0 if method.dense else taken)
    seconds = None
    if curve is not None:
        at, parts = (np.array(row) for row in zip(*curve, strict=True))
        seconds = tuple(float(np.interp(level, at, parts)) for level in levels)
    return Stored(layer, tuple(density), tuple(left), seconds)


def damages(
    model: Model,
    layers: Sequence[Layer],
    method: Method,
    levels: Sequence[float],
    data: Batches,
    *,
    seed: int,
    cache: Path | None,
    progress: Steps,
) -> dict[str, list[float]]:
    """Weight -> damage at every level, where data reach it; arguments are those of `switches`."""
    once = list({x.initializer: x for x in layers}.values())

    def make() -> dict[str, list[float]]:
        found = facts(
            model, once, method.pattern, data, errors=True, levels=levels, values=method.values, seed=seed,
            progress=progress,
        )  # fmt: skip
        return {name: list(f.errors) for name, f in found.items()}

    how = (str(method.pattern), method.values, list(levels), [x.initializer for x in once], seed)
    return remembered(cache, "switches", () if cache is None else (*seen(model, data), *how), make)


def seen(model: Model, data: Batches) -> tuple[object, ...]:
    """What damage depends on."""
    return exact_digest(model), data.digest, data.unseen


__all__ = ["Curve", "damages", "levels_of", "rising", "seen", "switches"]
