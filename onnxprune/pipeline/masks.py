"""What becomes of masks that were learned: units that are closed are cut out, and the report says what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.graph.io import Model
from onnxprune.pipeline.thin import size, without
from onnxprune.runtime.session import Feeds
from onnxprune.structure.check import check_same
from onnxprune.structure.verify import DEFAULT_TOLERANCE
from onnxprune.training.keeper import Keeper


def finished(masks: Keeper | None, model: Model, feeds: Feeds, seed: int) -> tuple[Model, dict[str, Any] | None]:
    """A trained model, without the units that its mask closes, and what is to be said of the mask; the model and None
    without one.

    feeds: inputs on which the smaller model must compute what the trained one does. Raises `VerificationError` where it
    does not.
    """
    if masks is None:
        return model, None
    counts, out = masks.counts(), model
    if units := masks.units():
        out = without(model, units, seed)
        check_same(model, out, feeds, DEFAULT_TOLERANCE, "the cut")
    return out, {
        "method": masks.how.method, "of": " and ".join(kind for kind, _ in masks.how.units) or "weights",
        "left": _sum(counts, "left") / _sum(counts, "size"), "came_back": _sum(counts, "came_back"),
        "parameters": size(out) / size(model), "parts": [{"name": n, **row} for n, row in counts.items()],
    }  # fmt: skip


def _sum(counts: Mapping[str, Mapping[str, int]], what: str) -> int:
    return sum(row[what] for row in counts.values())
