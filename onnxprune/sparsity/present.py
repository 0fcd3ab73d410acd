"""The zeros that a model has, layer by layer: how many, which N:M patterns and tiles hold, what storing them takes.

    >>> from onnxprune import load
    >>> model = load("models/digits_mlp.onnx")
    >>> model.weights["0.weight"] = model.weights["0.weight"] * np.tile(np.float32([0, 0, 1, 1]), 16)
    >>> row = present(model)[0]
    >>> row.node, row.share, row.patterns, row.tiles
    ('/0/Gemm', 0.5, ('2:4',), ())

A zero is +0.0 or -0.0, of which a product with a mask leaves many: both compute the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.formats.bsr import SIZES, tiles_of
from onnxprune.formats.format import Format, Packing
from onnxprune.formats.nm import patterns_of
from onnxprune.formats.registry import untaken
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.kernels.names import VALUES
from onnxprune.layers.layer import Layer, sparse_layers
from onnxprune.sparsity.prepare import free_weights

EMPTY = 0.5  # share of a layer's tiles that are zero, from which on a tile size is named
NODE = 300  # bytes that a sparse node takes beyond the dense one, about: attributes and names of its arrays


@dataclass(frozen=True)
class LayerZeros:
    """A layer, and how many of the rows x columns entries of its weight as a matrix are zero."""

    node: str
    op: str
    weight: str
    rows: int
    columns: int
    zeros: int

    @property
    def size(self) -> int:
        """Weights of the layer."""
        return self.rows * self.columns

    @property
    def share(self) -> float:
        """Zeros per weight."""
        return self.zeros / max(self.size, 1)


@dataclass(frozen=True)
class Present(LayerZeros):
    """Zeros that a layer has. patterns: N:M that hold, none that follows from another; tiles: sizes with the share of
    them that is zero, above `EMPTY`; reason: why no sparse operator takes the layer."""

    patterns: tuple[str, ...]
    tiles: tuple[tuple[str, float], ...]
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        tiles = [{"tile": tile, "empty": empty} for tile, empty in self.tiles]
        return {**vars(self), "share": self.share, "patterns": list(self.patterns), "tiles": tiles}


def zeros_of(model: Model) -> list[LayerZeros]:
    """A row for every layer of which `sparse_layers` finds the weight, in order, without what holds in it."""
    model, _ = free_weights(model)
    out = []
    for layer in sparse_layers(model)[0]:
        w = layer.read(model)
        rows = layer.shape[0]
        zeros = w.size - int(np.count_nonzero(w))
        out.append(LayerZeros(layer.name, layer.op, layer.initializer, rows, w.size // rows, zeros))
    return out


def present(model: Model) -> list[Present]:
    """A row for every layer of which `sparse_layers` finds the weight, in order."""
    model, _ = free_weights(model)
    known: dict[Any, tuple[int, tuple[str, ...], tuple[tuple[str, float], ...]]] = {}
    out = []
    for layer in sparse_layers(model)[0]:
        key = layer.initializer, layer.op, layer.transposed, layer.group
        w = layer.read(model)
        if key not in known:
            zeros = w.size - int(np.count_nonzero(w))
            known[key] = zeros, *(_patterns_and_tiles(layer, w) if 4 * zeros >= w.size else ((), ()))
        rows = layer.shape[0]
        reason = untaken(layer)
        out.append(Present(layer.name, layer.op, layer.initializer, rows, w.size // rows, *known[key], reason))
    return out


def _patterns_and_tiles(layer: Layer, w: Array) -> tuple[tuple[str, ...], tuple[tuple[str, float], ...]]:
    """Patterns that hold, the denser ones first, and tile sizes that are mostly zero."""
    kept = w != 0
    patterns: list[tuple[int, int]] = []
    for n, m in ((p.n, p.m) for p in patterns_of(layer, kept)):
        if n / m <= EMPTY and all(n / m < a / b for a, b in patterns):
            patterns = [*((a, b) for a, b in patterns if a < n), (n, m)]  # N of more than M is N of M as well
    tiles = [(f"{r}x{c}", 1 - float(tiles_of(layer, kept, r, c).mean())) for r, c in SIZES]
    return tuple(f"{n}:{m}" for n, m in patterns), tuple((tile, empty) for tile, empty in tiles if empty > EMPTY)


def packings(layer: Layer, w: Array, formats: Sequence[Format], values: str) -> list[Packing] | str:
    """The ways to store a layer's zeros in operators of ours, the smallest first, or why it stays dense.

    w: float32, as the layer reads it; formats: those that may be used, one way of each; a single one must be smaller
    than the dense weight, of several time is to choose. values: type of the stored values; the dense weight is counted
    in the same type.
    """
    kept = w != 0
    if kept.all():
        return "it has no zeros"
    size = VALUES[values].itemsize
    storages = [(row, row.storage) for row in formats if row.storage is not None]
    ways = [(row, storage.smallest(layer, kept, size)) for row, storage in storages]
    ranked = sorted(((*way, row) for row, way in ways if way is not None), key=lambda x: x[0])
    share = 1 - int(kept.sum()) / w.size
    if not ranked:
        return f"{storages[0][1].none}; {share:.0%} of its weights are zero"
    if len(formats) == 1 and ranked[0][0] + NODE >= w.size * size:
        return f"as {formats[0].name} it would be no smaller: {share:.0%} of its weights are zero"
    return [row.packing(pattern) for _, pattern, row in ranked]


__all__ = ["Present", "packings", "present", "zeros_of"]
