"""Codebooks of every weight as choices under a target: how many values each has, what that costs in damage, and what it
leaves of the bytes.

The error of a codebook, weighed by how large the inputs are that every entry meets, is turned into damage by the
divergence of the outputs on samples that were held out, with the codebook in the weight's place whose error is
typical: the measure of the levels of units and of zeros, so that all add up. Without such samples the error stands
as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxprune.allocation.budget import Effect, Switch
from onnxprune.allocation.switches import rising, seen
from onnxprune.cache import remembered
from onnxprune.calibration.calibration import Batches
from onnxprune.evaluation.damage import damage
from onnxprune.formats.codebook import Clusterable, Fitted, find_weights, fitted, values_of
from onnxprune.graph.arrays import Array, stored_size
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.progress import Steps
from onnxprune.runtime.classes import joined
from onnxprune.runtime.stream import Stream
from onnxprune.sparsity.survey import TYPICAL, curvatures, uncounted

VALUES = (256, 73, 40, 16, 8, 4)  # of a codebook: the most that 8, 6.4, 5.3, 4, 3.2 and 2 bits tell apart


def codebooks(
    model: Model,
    data: Batches,
    per: str,
    storage: str,
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: Steps = uncounted,
) -> list[Switch]:
    """A choice for every weight that a codebook makes smaller; the budget is `bytes`.

    per, storage: as of `codebook.cluster`; cache: folder that keeps damage and sizes.
    """

    def make() -> dict[str, list[list[float]]]:
        return {name: [list(row) for row in rows] for name, rows in _tried(model, data, per, storage, seed, progress)}

    how = () if cache is None else (*seen(model, data), per, storage, list(VALUES), seed)
    out = []
    for name, rows in remembered(cache, "codebooks", how, make).items():
        counts, hurt, left = zip(*rows, strict=True)
        found = rising(name, counts, hurt, {"bytes": (Effect(frozenset({name}), left),)})
        out += [found] if found is not None else []
    return out


def _tried(
    model: Model, data: Batches, per: str, storage: str, seed: int, progress: Steps
) -> list[tuple[str, list[tuple[float, float, float]]]]:
    """Of every weight, for falling numbers of values: these, damage, and the part of its bytes that is left."""
    weights, _ = find_weights(model)
    importance: Mapping[str, Array] = curvatures(model, data, seed=seed)
    edit = Edit(model)
    names = [o.name for o in model.proto.graph.output]
    tested = Stream(edit.model, data.held_out, limit=data.memory, threads=data.threads)
    measure = None
    if data.held_out:
        measure = damage(model, Stream(model, data.held_out, threads=data.threads).compute(names), names, data.unseen)
    read_at = {name: k for k, reads in reversed(list(enumerate(tested.reads))) for name in reads}
    out = []
    ordered = sorted((w for w in weights.values() if w.name in read_at), key=lambda w: read_at[w.name])
    for done, weight in enumerate(ordered):
        progress(done, len(ordered))
        w = np.asarray(model.weights[weight.name])
        made = _fits(weight, w, per, storage, importance.get(weight.name))
        if not made:
            continue
        errors = [x.error for _, x in made]
        factor = 1.0
        if measure is not None and max(errors) > 0:
            at = int(np.argmin(np.abs(np.log(np.maximum(errors, 1e-12) / TYPICAL))))
            tested.advance(read_at[weight.name])
            edit.model.weights[weight.name] = made[at][1].values
            factor = measure(joined(tested.compute(names), names)) / errors[at]
            edit.model.weights[weight.name] = w
        whole = stored_size(w)
        out.append((weight.name, [(k, factor * x.error, (x.bytes + x.nodes) / whole) for k, x in made]))
    progress(len(ordered), len(ordered))
    return out


def _fits(
    weight: Clusterable, w: Array, per: str, storage: str, importance: Array | None
) -> Sequence[tuple[float, Fitted]]:
    """Number of values and codebook, for every number that is allowed and makes the weight smaller."""
    counts = [k for k in VALUES if values_of(weight, k) == k]
    made = [(float(k), fitted(weight, w, k, per, storage, importance)) for k in counts]
    return [(k, x) for k, x in made if x is not None]


__all__ = ["codebooks"]
