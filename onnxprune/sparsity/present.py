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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.formats.arrays import index_type
from onnxprune.formats.nm import position_bits
from onnxprune.formats.rewrite import Format
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.kernels.names import VALUES
from onnxprune.layers.layer import Layer, sparse_layers
from onnxprune.sparsity.prepare import free_weights

BLOCKS = (2, 4, 8, 16, 32)  # M of the patterns that are looked for
TILES = ((8, 8), (4, 4), (8, 1), (1, 8), (4, 1), (1, 4))  # outputs x inputs
EMPTY = 0.5  # share of a layer's tiles that are zero, from which on a tile size is named
NODE = 300  # bytes that a sparse node takes beyond the dense one, about: attributes and names of its arrays


@dataclass(frozen=True)
class Present:
    """Zeros of a layer: rows x columns of its weight as a matrix; share: of them that are zero, 0 to 1; patterns: N:M
    that hold, none that follows from another; tiles: sizes with the share of them that is zero, above `EMPTY`."""

    node: str
    op: str
    weight: str
    rows: int
    columns: int
    zeros: int
    patterns: tuple[str, ...]
    tiles: tuple[tuple[str, float], ...]

    @property
    def share(self) -> float:
        """Zeros per weight."""
        return self.zeros / max(self.rows * self.columns, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        tiles = [{"tile": tile, "empty": empty} for tile, empty in self.tiles]
        return {**vars(self), "share": self.share, "patterns": list(self.patterns), "tiles": tiles}


def present(model: Model) -> list[Present]:
    """A row for every MatMul, Gemm and Conv of which `sparse_layers` finds the weight, in order."""
    model, _ = free_weights(model)
    known: dict[Any, tuple[int, tuple[str, ...], tuple[tuple[str, float], ...]]] = {}
    out = []
    for layer in sparse_layers(model)[0]:
        key = layer.weight, layer.op, layer.transposed, layer.group
        w = model.weights[layer.weight]
        if key not in known:
            zeros = w.size - int(np.count_nonzero(w))
            known[key] = zeros, *(_found(layer, w) if 4 * zeros >= w.size else ((), ()))
        rows = layer.shape[0]
        out.append(Present(layer.name, layer.op, layer.weight, rows, w.size // rows, *known[key]))
    return out


def _found(layer: Layer, w: Array) -> tuple[tuple[str, ...], tuple[tuple[str, float], ...]]:
    """Patterns that hold, the denser ones first, and tile sizes that are mostly zero."""
    kept = w != 0
    found: list[tuple[int, int]] = []
    for n, m in _patterns(layer, kept):
        if n / m <= EMPTY and all(n / m < a / b for a, b in found):
            found = [*((a, b) for a, b in found if a < n), (n, m)]  # N of more than M is N of M as well
    tiles = [(f"{r}x{c}", 1 - float(_tiles(layer, kept, r, c).mean())) for r, c in TILES]
    return tuple(f"{n}:{m}" for n, m in found), tuple((tile, empty) for tile, empty in tiles if empty > EMPTY)


def forms(layer: Layer, w: Array, form: str, values: str) -> list[Format] | str:
    """The ways to store a layer's zeros in operators of ours, the smallest first, or why it stays dense.

    form: "csr", "nm" or "bsr", of which the smallest is taken if it is smaller than the dense weight; "auto": all that
    hold, for time to choose among. values: type of the stored values; the dense weight is counted in the same type.
    """
    kept = w != 0
    if kept.all():
        return "it has no zeros"
    v = VALUES[values].itemsize
    found: list[tuple[int, Format]] = []
    if form in ("csr", "auto"):
        k = w.size // layer.shape[0]
        stored = int(kept.sum()) * (v + index_type(k).itemsize) + 4 * (layer.shape[0] + 1)
        found.append((stored, "csr"))
    if form in ("nm", "auto"):
        for n, m in _patterns(layer, kept):
            count = -(-layer.shape[1] // m)
            each = count * n * v + -(-count * n * position_bits(m) // 8)
            found.append((w.size // layer.shape[1] * each, (n, m)))
    if form in ("bsr", "auto"):
        for r, c in TILES:
            tiles = _tiles(layer, kept, r, c)
            if not tiles.all():
                stored = int(tiles.sum()) * (r * c * v + index_type(tiles.shape[1]).itemsize) + 4 * (len(tiles) + 1)
                found.append((stored, ("bsr", r, c)))
    best = _one_each(found)
    share = 1 - int(kept.sum()) / w.size
    if not best:
        return f"no {'N:M pattern holds' if form == 'nm' else 'tile is zero'}; {share:.0%} of its weights are zero"
    if form != "auto" and best[0][0] + NODE >= w.size * v:
        return f"as {form} it would be no smaller: {share:.0%} of its weights are zero"
    return [found for _, found in best]


def _one_each(found: list[tuple[int, Format]]) -> list[tuple[int, Format]]:
    """The smallest of csr, of N:M (2:4 where it holds, which others read too) and of tiles, with their bytes."""
    best: dict[object, tuple[int, Format]] = {}
    for stored, form in found:
        kind = form if isinstance(form, str) else len(form)
        if kind not in best or form == (2, 4) or (stored < best[kind][0] and best[kind][1] != (2, 4)):
            best[kind] = stored, form
    return sorted(best.values(), key=lambda x: x[0])


def _patterns(layer: Layer, kept: Array) -> Iterator[tuple[int, int]]:
    """The least N for every M, where it is below M. kept: bool in the weight's own shape."""
    blocks = layer.blocks(kept)
    rows, length = blocks.shape
    for m in BLOCKS:
        if m > length:
            return
        padded = np.zeros((rows, -(-length // m) * m), bool)
        padded[:, :length] = blocks
        n = max(1, int(padded.reshape(rows, -1, m).sum(2).max()))
        if n < m:
            yield n, m


def _tiles(layer: Layer, kept: Array, r: int, c: int) -> Array:
    """Which tiles hold anything, bool `[block rows, block columns]`, cut as `formats.pack_bsr` cuts them."""
    rows = layer.rows(kept)
    group, n, k = rows.shape
    down, across = -(-n // r), -(-layer.segment // c)
    padded = np.zeros((group, down * r, k // layer.segment, across * c), bool)
    padded[:, :n, :, : layer.segment] = rows.reshape(group, n, -1, layer.segment)
    return np.asarray(padded.reshape(group * down, r, -1, c).any(axis=(1, 3)))


__all__ = ["Present", "forms", "present"]
