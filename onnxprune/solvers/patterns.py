"""Which entries of a matrix may stay: by count, N of every M, or in tiles.

Matrices are `[rows, columns]`, a row per output of the layer, its columns ordered so that what a pattern calls
consecutive lies together; a segment is a run of columns that patterns do not cross (a kernel position of a Conv).
Scores have the matrix's shape; the larger, the more an entry matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.graph.arrays import Array

Mask = npt.NDArray[np.bool_]


def lowest_kept(scores: Array, count: int) -> Mask:
    """False for the `count` lowest scores, of equal ones the first; of the scores' shape."""
    flat = scores.ravel()
    if count <= 0:
        return np.ones(scores.shape, bool)
    if count >= flat.size:
        return np.zeros(scores.shape, bool)
    limit = np.partition(flat, count - 1)[count - 1]
    kept: Mask = flat > limit
    equal = np.flatnonzero(flat == limit)
    kept[equal[count - int((flat < limit).sum()) :]] = True
    return kept.reshape(scores.shape)


def n_of_m(scores: Array, n: int, m: int) -> Mask:
    """True for the n highest of every m along the last axis of `[S, L]`, of equal ones the first.

    A last block that is shorter keeps n of what it has.
    """
    rows, length = scores.shape
    blocks = -(-length // m)
    padded: npt.NDArray[Any] = np.full((rows, blocks * m), -np.inf, scores.dtype)
    padded[:, :length] = scores
    order = np.argsort(-padded.reshape(rows, blocks, m), axis=2, kind="stable")
    kept = np.zeros((rows, blocks, m), bool)
    np.put_along_axis(kept, order[:, :, :n], True, axis=2)
    return kept.reshape(rows, -1)[:, :length]


class Choice(Protocol):
    """What may stay of a matrix `[rows, columns]`: how many entries, and where."""

    def keep(self, scores: Array, share: float = 1.0) -> Mask:
        """The entries that stay, bool of the scores' shape; share: of those that shall go, only so many go yet."""

    def slabs(self, columns: int, width: int) -> Iterator[tuple[int, int]]:
        """Runs of columns, about `width` wide, in which entries can be chosen by themselves."""

    def part(self, scores: Array, start: int, gone: int, columns: int) -> Mask:
        """`keep` for a slab that starts at a column of so many, when `gone` entries went in the slabs before."""


@dataclass(frozen=True)
class Count:
    """So many entries go, wherever they are."""

    count: int

    def keep(self, scores: Array, share: float = 1.0) -> Mask:
        """All but the lowest scores; see `Choice.keep`."""
        return lowest_kept(scores, round(self.count * share))

    def slabs(self, columns: int, width: int) -> Iterator[tuple[int, int]]:
        """Runs of `width` columns; see `Choice.slabs`."""
        yield from ((k, min(k + width, columns)) for k in range(0, columns, width))

    def part(self, scores: Array, start: int, gone: int, columns: int) -> Mask:
        """All but the lowest scores of the slab, so that with those before an even share goes; see `Choice.part`."""
        return lowest_kept(scores, round(self.count * (start + scores.shape[1]) / columns) - gone)


@dataclass(frozen=True)
class NofM:
    """n of every m consecutive columns of a segment stay, in every row."""

    n: int
    m: int
    segment: int

    def keep(self, scores: Array, share: float = 1.0) -> Mask:
        """The highest scores of every m; share: of the m - n of a block, rounded; see `Choice.keep`."""
        stay = self.m - round((self.m - self.n) * share)
        return n_of_m(scores.reshape(-1, self.segment), stay, self.m).reshape(scores.shape)

    def slabs(self, columns: int, width: int) -> Iterator[tuple[int, int]]:
        """One block of m columns after the other; see `Choice.slabs`."""
        for s in range(0, columns, self.segment):
            yield from ((s + k, s + min(k + self.m, self.segment)) for k in range(0, self.segment, self.m))

    def part(self, scores: Array, start: int, gone: int, columns: int) -> Mask:
        """The n highest scores of every row of the block; see `Choice.part`."""
        return n_of_m(scores, self.n, self.m)


@dataclass(frozen=True)
class Tiles:
    """Tiles of rows x columns stay or go as a whole, tiles at the edges being smaller; `count` entries go, or the next
    more that whole tiles make."""

    rows: int
    columns: int
    count: int
    segment: int

    def keep(self, scores: Array, share: float = 1.0) -> Mask:
        """All but the tiles of the lowest mean score; see `Choice.keep`."""
        return self._lowest(scores, round(self.count * share), min(self.segment, scores.shape[1]))

    def _lowest(self, scores: Array, count: int, segment: int) -> Mask:
        o, d = scores.shape
        down, across = -(-o // self.rows), -(-segment // self.columns)
        padded = np.zeros((down * self.rows, d // segment, across * self.columns))
        padded[:o, :, :segment] = scores.reshape(o, -1, segment)
        tiles = padded.reshape(down, self.rows, -1, self.columns)
        sums = tiles.sum((1, 3))
        sizes = np.outer(
            np.minimum(self.rows, o - self.rows * np.arange(down)),
            np.tile(np.minimum(self.columns, segment - self.columns * np.arange(across)), d // segment),
        )
        order = np.argsort(sums / sizes, axis=None, kind="stable")
        total = np.cumsum(sizes.ravel()[order])
        kept = np.ones(sums.size, bool)
        kept[order[: int(np.searchsorted(total, count, "left")) + 1 if count > 0 else 0]] = False
        spread = np.repeat(np.repeat(kept.reshape(sums.shape), self.rows, 0), self.columns, 1)
        return np.asarray(spread.reshape(down * self.rows, -1, across * self.columns)[:o, :, :segment].reshape(o, d))

    def numbers(self, rows: int, columns: int) -> Array:
        """The number of the tile that every entry of a matrix lies in."""
        segment, column = min(self.segment, columns), np.arange(columns)
        across = -(-segment // self.columns)
        tile = column // segment * across + column % segment // self.columns
        return np.arange(rows)[:, None] // self.rows * (columns // segment * across) + tile

    def slabs(self, columns: int, width: int) -> Iterator[tuple[int, int]]:
        """Runs of whole tiles, about `width` columns wide; see `Choice.slabs`."""
        step = max(1, width // self.columns) * self.columns
        for s in range(0, columns, self.segment):
            yield from ((s + k, s + min(k + step, self.segment)) for k in range(0, self.segment, step))

    def part(self, scores: Array, start: int, gone: int, columns: int) -> Mask:
        """All but the tiles of the lowest mean score of the slab; see `Choice.part`."""
        count = round(self.count * (start + scores.shape[1]) / columns) - gone
        return self._lowest(scores, count, scores.shape[1])
