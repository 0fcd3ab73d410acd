"""Ids for every index of every axis, ties and pins between them, and their connected components.

Every index of every axis longer than one of every tensor gets an integer id. Rules (`structure.rules`) say
which ids live or die together (`tie`), which can never be removed (`pin`), where a removed index has to count as zero
(`consume`), and what an axis is used for (`mark`). `solve` turns that into components: a component that is not
pinned is one unit that can be removed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.graph.io import Model
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import Array, Shapes
from onnxprune.structure.transforms import fixed_transform

Ids = np.ndarray[Any, np.dtype[np.int64]]
Axis = Ids | None  # None: an axis of size one, or of unknown size


@dataclass(frozen=True)
class Consume:
    """Input `input` of `node` is summed over `axis`: what is removed must enter as zero (or as `zero`, a tensor)."""

    node: Node
    input: int
    axis: int
    zero: str = ""


@dataclass(frozen=True)
class Produce:
    """`weight` makes the units of `ids`; along `axis` it has `repeat` blocks of them (gates of an LSTM)."""

    node: Node
    weight: str
    axis: int
    output: str


@dataclass(frozen=True)
class Blocks:
    """Every row of `ids`, shape `(blocks, width)`, must keep the same number of units."""

    node: Node
    ids: Ids


@dataclass(frozen=True)
class Pin:
    """Why ids cannot be removed."""

    node: str
    op: str
    tensor: str
    axis: int
    reason: str


@dataclass(frozen=True)
class View:
    """One axis that is the row-major product of several factors: at most one of them can shrink."""

    node: Node
    tensor: str
    axis: int
    ids: Ids
    factors: tuple[Axis, ...]
    sizes: tuple[int, ...]


@dataclass
class Coupling:
    """Collects what the rules say; see the module's docstring."""

    model: Model
    shapes: Shapes
    readers: Counter[str]  # how many node inputs and graph outputs read a tensor
    node: Node | None = None
    size: int = 0
    solved: bool = False
    base: dict[str, list[Axis]] = field(default_factory=dict)
    grouped: dict[str, Ids] = field(default_factory=dict)  # weight -> ids (groups, width) of its axis 1
    consumes: list[Consume] = field(default_factory=list)
    produces: list[Produce] = field(default_factory=list)
    blocks: list[Blocks] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    reduced: dict[str, list[list[Ids]]] = field(default_factory=dict)  # size-one axes: what they were reduced from
    means: dict[str, list[Ids]] = field(default_factory=dict)  # output of ReduceMean -> ids that it averages
    _ties: list[tuple[Ids, Ids, str]] = field(default_factory=list)
    _pins: list[tuple[Ids, Pin]] = field(default_factory=list)
    _marks: list[tuple[Ids, str]] = field(default_factory=list)
    _normalised: list[tuple[Ids, Ids]] = field(default_factory=list)
    _owners: list[tuple[int, str, int]] = field(default_factory=list)

    # what rules read

    def axes(self, name: str) -> list[Axis]:
        """Ids of every axis of a tensor, made on first use; an empty list for unknown rank, and for what is new
        since `solve`."""
        if name not in self.base and self.solved:
            return []
        if name not in self.base:
            axes: list[Axis] = []
            for k, d in enumerate(self.shapes.shapes.get(name, ())):
                if d is None or d <= 1:
                    axes.append(None)
                else:
                    axes.append(np.arange(self.size, self.size + d))
                    self._owners.append((self.size, name, k))
                    self.size += d
            self.base[name] = axes
        return self.base[name]

    def fresh(self, n: int) -> Ids:
        """`n` new ids that belong to no tensor."""
        ids = np.arange(self.size, self.size + n)
        self._owners.append((self.size, "", -1))
        self.size += n
        return ids

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Concrete shape, `None` where the rank is unknown."""
        return self.shapes.shapes.get(name)

    def complete(self, name: str) -> bool:
        """True where rank and all sizes are known."""
        shape = self.shapes.shapes.get(name)
        return shape is not None and None not in shape

    def known(self, name: str) -> Array | None:
        """Value of a small constant or of evaluated shape arithmetic."""
        return self.shapes.known.get(name)

    def is_constant(self, name: str) -> bool:
        """True where the tensor depends on constants alone."""
        return name in self.shapes.constant

    def ints(self, node: Node, attribute: str, input: int | None = None) -> list[int] | None:
        """A list that moved from attribute to input over the opsets; `None` where absent, raises where computed."""
        value = node.attr(attribute)
        if value is not None:
            return [int(v) for v in value]
        if input is None or not node.input(input):
            return None
        known = self.known(node.input(input))
        if known is None:
            raise Computed(f"{attribute} is computed at run time")
        return [int(v) for v in known.ravel()]

    # what rules say

    def tie(self, a: Axis, b: Axis, reason: str = "meets an axis of other size") -> None:
        """The ids of `a` and `b`, broadcast against each other, live or die together."""
        if a is None or b is None or not _broadcastable(a.shape, b.shape):
            self.pin(a, reason)
            self.pin(b, reason)
            return
        x, y = np.broadcast_arrays(a, b)
        self._ties.append((x.ravel(), y.ravel(), self.node.key if self.node else ""))

    def pin(self, ids: Axis, reason: str) -> None:
        """The ids can never be removed."""
        if ids is not None and ids.size:
            op = self.node.op if self.node else "graph"
            tensor, axis = self.owner(int(ids.flat[0]))
            self._pins.append((ids.ravel(), Pin(self.node.label if self.node else "", op, tensor, axis, reason)))

    def pin_all(self, node: Node, reason: str) -> None:
        """Everything that the node touches stays."""
        for name in (*node.inputs, *node.outputs):
            if name:
                for ids in self.axes(name):
                    self.pin(ids, reason)

    def mark(self, kind: str, ids: Axis) -> None:
        """The axis serves as `heads`, `head_dim` or `hidden`; groups take their kind from it."""
        if ids is not None:
            self._marks.append((ids.ravel(), kind))

    def consume(self, node: Node, input: int, axis: int, zero: str = "") -> None:
        """See `Consume`."""
        rank = len(self.axes(node.input(input)))
        self.consumes.append(Consume(node, input, axis % rank if rank else axis, zero))

    def produce(self, node: Node, weight: str, axis: int) -> None:
        """See `Produce`."""
        rank = len(self.axes(weight))
        if not rank:
            return
        axis %= rank
        self.produces.append(Produce(node, weight, axis, node.output(0)))
        if weight in self.model.weights and self.axes(weight)[axis] is not None:
            transform = fixed_transform(self.model.weights[weight], axis)
            if transform:
                self.pin(self.axes(weight)[axis], f"{transform}, not trained weights")

    def even(self, node: Node, rows: Ids) -> None:
        """Every row of `rows`, shape `(blocks, width)`, must keep the same number of units."""
        self.blocks.append(Blocks(node, rows))

    def normalised(self, ids: Ids, origin: Ids) -> None:
        """A statistic over `origin` scales or shifts `ids`: where both are one axis, it is normalised over."""
        self._normalised.append((ids.ravel(), origin.ravel()))

    def view(self, node: Node, x: str, y: str) -> None:
        """`y` is `x` in row-major order under another shape."""
        xs, ys = self.shape(x), self.shape(y)
        if xs is None or ys is None or None in xs or None in ys or 0 in xs or math.prod(xs) != math.prod(ys):  # type: ignore[arg-type]
            for name in (x, y):
                for ids in self.axes(name):
                    self.pin(ids, "reshaped to a shape that is not known")
            return
        for tensor_x, tensor_y in _segments(xs, ys):  # type: ignore[arg-type]
            self._segment(node, x, y, tensor_x, tensor_y)

    def _segment(self, node: Node, x: str, y: str, i: range, j: range) -> None:
        """Axes `i` of `x` and `j` of `y` hold the same elements: split both into common factors."""
        xa, ya = [k for k in i if self.axes(x)[k] is not None], [k for k in j if self.axes(y)[k] is not None]
        if len(xa) == 1 and len(ya) == 1:
            self.tie(self.axes(x)[xa[0]], self.axes(y)[ya[0]])
            return
        sizes_x, sizes_y = [self.shapes.shapes[x][k] for k in xa], [self.shapes.shapes[y][k] for k in ya]
        factors = _factors(sizes_x, sizes_y)  # type: ignore[arg-type]
        if factors is None:
            for name, axes in ((x, xa), (y, ya)):
                for k in axes:
                    self.pin(self.axes(name)[k], "reshaped across the boundaries of the axes")
            return
        ids: list[Axis] = [self.fresh(f) for f in factors]
        for name, axes, sizes in ((x, xa, sizes_x), (y, ya, sizes_y)):
            at = 0
            for k, size in zip(axes, sizes, strict=True):
                first, product = at, 1
                while product < size:  # type: ignore[operator]
                    product *= factors[at]
                    at += 1
                axis = self.axes(name)[k]
                assert axis is not None
                if at - first == 1:
                    self.tie(axis, ids[first])
                else:
                    self.views.append(View(node, name, k, axis, tuple(ids[first:at]), tuple(factors[first:at])))

    # solving

    def owner(self, id: int) -> tuple[str, int]:
        """Tensor and axis that an id belongs to."""
        return self._owners[bisect_right(self._owners, id, key=lambda o: o[0]) - 1][1:]

    def ties_of(self) -> dict[str, tuple[Ids, Ids]]:
        """Node key -> the pairs of ids that its rule tied."""
        out: dict[str, list[tuple[Ids, Ids]]] = {}
        for a, b, key in self._ties:
            out.setdefault(key, []).append((a, b))
        return {k: (np.concatenate([a for a, _ in v]), np.concatenate([b for _, b in v])) for k, v in out.items()}

    def components(self) -> Ids:
        """Component label of every id, shape `(size,)`."""
        if not self._ties:
            return np.arange(self.size)
        a = np.concatenate([t[0] for t in self._ties])
        b = np.concatenate([t[1] for t in self._ties])
        graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(self.size, self.size))
        return np.asarray(connected_components(graph, directed=False)[1], np.int64)

    def solve(self) -> Solution:
        """Decide the views, then label the components."""
        self._decide_views()
        self.solved = True
        labels = self.components()
        n = int(labels.max()) + 1 if self.size else 0
        reason = np.full(n, -1, np.int64)
        for k in range(len(self._pins) - 1, -1, -1):
            reason[labels[self._pins[k][0]]] = k
        pins = [p for _, p in self._pins]
        kinds = {kind: np.zeros(n, bool) for kind in KINDS}
        for ids, kind in self._marks:
            kinds[kind][labels[ids]] = True
        for ids, origin in self._normalised:
            both = np.intersect1d(labels[ids], labels[origin])
            kinds["hidden"][both] = True
        blocks = self._block_rows(labels, reason, pins)
        return Solution(labels, reason, pins, kinds, blocks)

    def _decide_views(self) -> None:
        """Choose the live factor of every split or merged axis; the others are pinned.

        A factor that is pinned elsewhere cannot live. Where several could, the axis of attention heads wins over
        the dimensions inside a head, and otherwise the largest factor (the finer one: channel shuffle).
        """
        if not self.views:
            return
        labels = self.components()
        n = int(labels.max()) + 1
        pinned, heads = np.zeros(n, bool), np.zeros(n, bool)
        for ids, _ in self._pins:
            pinned[labels[ids]] = True
        for ids, kind in self._marks:
            if kind == "heads":
                heads[labels[ids]] = True
        for v in self.views:
            self.node = v.node
            free = [0 if f is None else int((~pinned[labels[f]]).sum()) for f in v.factors]
            attends = [f is not None and bool(heads[labels[f]].any()) for f in v.factors]
            best = max(range(len(free)), key=lambda k: (free[k] > 0, attends[k], free[k], k))
            live = best if free[best] else None
            for k, f in enumerate(v.factors):
                if k != live:
                    self.pin(f, f"a factor of axis {v.axis} of {v.tensor}, which shrinks along another factor")
                    if f is not None:
                        pinned[labels[f]] = True
            if live is None:
                self.pin(v.ids, "reshaped: every factor of the axis is pinned")
                pinned[labels[v.ids]] = True
            else:
                factor = v.factors[live]
                assert factor is not None
                shape = [1] * len(v.sizes)
                shape[live] = -1
                self.tie(v.ids.reshape(v.sizes), factor.reshape(shape))

    def _block_rows(self, labels: Ids, reason: Ids, pins: list[Pin]) -> list[Array]:
        """Blocks as component labels, shape `(blocks, width)`; a constraint that cannot be kept pins."""
        rows = [(b, labels[b.ids]) for b in self.blocks]
        changed = True
        while changed:
            changed = False
            for b, r in rows:
                pinned = reason[r] >= 0
                if pinned.any() and not pinned.all():
                    pins.append(
                        Pin(b.node.label, b.node.op, "", 1, "a group that must shrink evenly is pinned in part")
                    )
                    reason[r[~pinned]] = len(pins) - 1
                    changed = True
        return [r for _, r in rows if (reason[r] < 0).all()]


KINDS = ("heads", "head_dim", "hidden", "experts")


@dataclass(frozen=True)
class Solution:
    """labels: component of every id, `(ids,)`; reason: index into `pins` or -1, `(components,)`;
    kinds: kind -> bool `(components,)`; blocks: arrays of components `(blocks, width)`."""

    labels: Ids
    reason: Ids
    pins: list[Pin]
    kinds: dict[str, Array]
    blocks: list[Array]


class Computed(Exception):
    """A rule needs a value that is only known at run time; the walker pins what the node touches."""


def _broadcastable(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(p == q or p == 1 or q == 1 for p, q in zip(a[::-1], b[::-1], strict=False))


def _segments(xs: Sequence[int], ys: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Shortest runs of axes with equal products: (2, 12, 5), (2, 3, 4, 5) -> 0|0, 1|1:3, 2|3."""
    i = j = 0
    while i < len(xs) or j < len(ys):
        i0, j0 = i, j
        p = q = 1
        if i < len(xs):
            p, i = xs[i], i + 1
        if j < len(ys):
            q, j = ys[j], j + 1
        while p != q:
            if p < q:
                p, i = p * xs[i], i + 1
            else:
                q, j = q * ys[j], j + 1
        yield range(i0, i), range(j0, j)


def _factors(xs: Sequence[int], ys: Sequence[int]) -> list[int] | None:
    """Common refinement: (6, 4), (2, 12) -> [2, 3, 4]; None where none exists, as for (6, 4), (8, 3)."""
    bounds = sorted({math.prod(xs[: k + 1]) for k in range(len(xs))} | {math.prod(ys[: k + 1]) for k in range(len(ys))})
    out, last = [], 1
    for b in bounds:
        if b % last:
            return None
        out.append(b // last)
        last = b
    return [f for f in out if f > 1]
