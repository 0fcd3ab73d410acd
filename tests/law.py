"""The law as a function: cut a fraction of every group of some kinds, and compare with the masked model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import Result
from onnxprune.allocation.select import uniform
from onnxprune.graph.io import Model, load, to_proto
from onnxprune.importance.weights import score
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.groups import analyze
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import Verification, verify


@dataclass
class Cut:
    analysis: Analysis
    pruned: Model
    verification: Verification | None
    removed: int  # elements of all weights

    @property
    def error(self) -> float:
        assert self.verification is not None
        return self.verification.error


def cut(
    source: Any,
    ratio: float = 0.35,
    *,
    importance: str = "random",
    check: bool = True,
    kinds: Sequence[str] = ("channels",),
    allow_io_change: bool = False,
) -> Cut:
    """Remove `ratio` of every group of the kinds. source: a model, or the analysis of one."""
    analysis = source if isinstance(source, Analysis) else analyze(load(source), allow_io_change=allow_io_change)
    model = analysis.model
    groups = [g for g in analysis.groups if g.kind in kinds]
    scores = score(analysis, groups, importance=importance)
    keeps = uniform(groups, scores, {g.name: ratio for g in groups}, round_to=1, max_ratio=1.0)
    keep = analysis.keep_ids(keeps)
    pruned = prune_model(analysis, keep)
    removed = sum(w.size for w in model.weights.values()) - sum(w.size for w in pruned.weights.values())
    return Cut(analysis, pruned, verify(analysis, keep, pruned) if check else None, removed)


def same_weights(a: Model, b: Model) -> bool:
    """True where two models hold the same arrays under the same names."""
    return a.weights.keys() == b.weights.keys() and all(
        np.array_equal(w.view(np.uint8) if w.dtype.kind == "V" else w, b.weights[n]) for n, w in a.weights.items()
    )


def shrink(analysis: Analysis, kinds: Iterable[str], ratio: float = 0.4) -> Keep:
    """What stays when `ratio` of every group of the kinds goes, bool per id."""
    groups = [g for g in analysis.groups if g.kind in kinds]
    scores = score(analysis, groups, importance="random")
    keeps = uniform(groups, scores, dict.fromkeys((g.name for g in groups), ratio), round_to=1, max_ratio=1.0)
    return analysis.keep_ids(keeps)


def proto_of(result: Result) -> ModelProto:
    assert result.model is not None
    return to_proto(result.model)


def data(result: Result) -> bytes:
    return bytes(proto_of(result).SerializeToString(deterministic=True))
