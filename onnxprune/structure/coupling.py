"""Ids for every index of every axis, and what rules say of them: ties, pins, marks.

Every index of every axis longer than one of every tensor gets an integer id. Rules (`structure.rules`) say
which ids live or die together (`tie`), which can never be removed (`pin`), where a removed index has to count as zero
(`consume`), and what an axis is used for (`mark`). components.py turns that into components: one that is not
pinned is one unit that can be removed. Where an axis is the product of heads and of the dimensions inside a head, both
are units, and what they make together stays if both stay (`Components.homes`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.graph.arrays import Array, Ids
from onnxprune.graph.io import Model
from onnxprune.graph.limits import PER_INDEX
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.shapes import Shapes
from onnxprune.structure.claims import Axis, Consume, Contraction, EvenRows, Norm, Pin, Produce, View
from onnxprune.structure.segments import axis_segments, common_factors
from onnxprune.structure.signs import signs_of
from onnxprune.structure.transforms import fixed_transform

TIES = 4  # for every index that can be followed, at most
TOO_MANY = "tied more often than can be followed"


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
    blocks: list[EvenRows] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    # size-one axes: what they were reduced from, and the output of the reduction
    reduced: dict[str, list[list[tuple[Ids, str]]]] = field(default_factory=dict)
    means: dict[str, list[Ids]] = field(default_factory=dict)  # output of ReduceMean -> ids that it averages
    statistics: set[str] = field(default_factory=set)  # of these, the means that normalise what they are means of
    counted: dict[tuple[str, str], Ids] = field(default_factory=dict)  # (node key, attribute) -> ids that it counts
    indices: dict[str, Ids] = field(default_factory=dict)  # tensor that holds indices along an axis -> its ids
    followed: Counter[str] = field(default_factory=Counter)  # such a tensor -> readers that follow the axis
    leasts: list[tuple[Ids, int]] = field(default_factory=list)  # ids of which so many must survive
    gates: dict[str, Ids] = field(default_factory=dict)  # node key -> id of the residual block that alone needs it
    contractions: dict[str, Contraction] = field(default_factory=dict)  # node key -> a product that may be attention
    attention: set[str] = field(default_factory=set)  # node keys of those that are
    ties: list[tuple[Ids, Ids, str]] = field(default_factory=list)
    pins: list[tuple[Ids, Pin]] = field(default_factory=list)
    conditional: list[tuple[Ids, Pin, tuple[str, ...]]] = field(default_factory=list)
    selected: list[tuple[Ids, str]] = field(default_factory=list)
    marks: list[tuple[Ids, str]] = field(default_factory=list)
    normalisations: list[tuple[Ids, Ids, str]] = field(default_factory=list)
    _owners: list[tuple[int, str, int]] = field(default_factory=list)
    _tied: int = 0  # pairs

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

    @cached_property
    def signs(self) -> dict[str, int]:
        """Tensor -> whether it is never negative, or never positive (`structure.signs`)."""
        return signs_of(walk_all(self.model.proto.graph, self.shapes.opsets), self.shapes)

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
        if not self._afford(max(a.size, b.size)):
            self.pin(a, TOO_MANY)
            self.pin(b, TOO_MANY)
            return
        x, y = np.broadcast_arrays(a, b)
        self.ties.append((x.ravel(), y.ravel(), self.node.key if self.node else ""))

    def _afford(self, pairs: int) -> bool:
        """Whether so many more ties can be held; a tensor may have many readers."""
        self._tied += pairs
        return self._tied * PER_INDEX <= TIES * self.shapes.allowance

    def pin(self, ids: Axis, reason: str, *, unless: tuple[str, ...] = ()) -> None:
        """The ids can never be removed; unless: but where they turn out to be marked as one of these kinds."""
        if ids is not None and ids.size:
            op = self.node.op if self.node else "graph"
            tensor, axis = self.owner(int(ids.flat[0]))
            pin = Pin(self.node.label if self.node else "", op, tensor, axis, reason)
            if unless:
                self.conditional.append((ids.ravel(), pin, unless))
            else:
                self.pins.append((ids.ravel(), pin))

    def pin_all(self, node: Node, reason: str) -> None:
        """Everything that the node touches stays."""
        for name in (*node.inputs, *node.outputs):
            if name:
                for ids in self.axes(name):
                    self.pin(ids, reason)

    def mark(self, kind: str, ids: Axis) -> None:
        """The axis serves as `heads`, `head_dim` or `hidden`; groups take their kind from it."""
        if ids is not None:
            self.marks.append((ids.ravel(), kind))

    def consume(self, node: Node, input: int, axis: int, zero: str = "", neutral: float = 0.0) -> None:
        """Input `input` of the node is summed over `axis`, negative from the end; see `Consume`."""
        rank = len(self.axes(node.input(input)))
        self.consumes.append(Consume(node, input, axis % rank if rank else axis, zero, neutral))

    def heads(self, node: Node, tensor: str, axis: int, count: int, ids: Axis = None) -> tuple[Axis, Axis]:
        """An axis of `count` heads times the dimensions of a head, for operators that split it themselves; the ids of
        both factors. ids: a part of the axis."""
        ids = self.axes(tensor)[axis] if ids is None else ids
        if ids is None or count < 1 or ids.size % count:
            self.pin(ids, "the width is no multiple of the number of heads")
            return None, None
        if not self._afford(ids.size):
            self.pin(ids, TOO_MANY)
            return None, None
        sizes = (count, ids.size // count)
        parts = (self.fresh(count) if count > 1 else None, self.fresh(sizes[1]) if sizes[1] > 1 else None)
        self.views.append(View(node, tensor, axis, ids, parts, sizes))
        self.mark("heads", parts[0])
        self.mark("head_dim", parts[1])
        return parts

    def produce(self, node: Node, weight: str, axis: int, *, table: bool = False) -> None:
        """The weight makes units along `axis`, negative from the end; see `Produce`. An axis of what turns out to be a
        fixed transform is pinned. table: rows are looked up, as those of an embedding or of sines of positions."""
        rank = len(self.axes(weight))
        if not rank:
            return
        axis %= rank
        self.produces.append(Produce(node, weight, axis, node.output(0)))
        if not table and weight in self.model.weights and self.axes(weight)[axis] is not None:
            transform = fixed_transform(self.model.weights[weight], axis)
            if transform:
                self.pin(self.axes(weight)[axis], f"{transform}, not trained weights")

    def contract(self, node: Node, operands: Sequence[str], batch: Sequence[Axis], inner: Sequence[Axis]) -> None:
        """The node multiplies the operands; see `Contraction`. With one that is no constant, batch axes must be there:
        what has none is a layer."""
        computed = sum(not self.is_constant(name) for name in operands) > 1
        if computed or any(ids is not None for ids in batch):
            contraction = Contraction(node, tuple(operands), tuple(batch), tuple(inner), computed)
            self.contractions[node.key] = contraction

    def even(self, node: Node, rows: Ids) -> None:
        """Every row of `rows`, shape `(blocks, width)`, must keep the same number of units."""
        if self._afford(rows.size):
            self.blocks.append(EvenRows(node, rows))
        else:
            self.pin(rows, TOO_MANY)

    def least(self, ids: Axis, count: int) -> None:
        """At least `count` of the ids must survive (TopK)."""
        if ids is not None:
            self.leasts.append((ids, count))

    def select(self, ids: Axis, indices: str) -> None:
        """`indices` (of a TopK) count along `ids`, which are experts if every reader follows them (`follow`)."""
        if ids is not None:
            self.indices[indices] = ids
            self.selected.append((ids, indices))

    def follow(self, name: str, to: str = "") -> Ids | None:
        """The ids that the tensor `name` holds indices of, None where it does not: for a reader whose axis is theirs,
        or that passes the indices on as the tensor `to`."""
        ids = self.indices.get(name)
        if ids is not None:
            self.followed[name] += 1
            if to:
                self.indices[to] = ids
        return ids

    def normalised(self, ids: Ids, origin: Ids, by: str) -> None:
        """The statistic `by` over `origin` scales or shifts `ids`: where both are one axis, it is normalised over."""
        self.normalisations.append((ids.ravel(), origin.ravel(), by))

    def norm(self, node: Node, ids: Axis, inputs: dict[int, int], outputs: dict[int, int]) -> None:
        """The node normalises over `ids`, whose group is of kind hidden; see `Norm`.

        inputs, outputs: number of a tensor -> its axis; those that are absent or do not have the axis are left out.
        """
        if ids is None:
            return
        self.mark("hidden", ids)

        def holding(names: Sequence[str], places: dict[int, int]) -> dict[int, int]:
            present = {}
            for i, axis in places.items():
                axes = self.axes(names[i]) if i < len(names) and names[i] else []
                if axes and -len(axes) <= axis < len(axes):
                    other = axes[axis]
                    if other is not None and other.size == ids.size:
                        present[i] = axis % len(axes)
            return present

        self.norms.append(Norm(node, ids, holding(node.inputs, inputs), holding(node.outputs, outputs)))

    def view(self, node: Node, x: str, y: str) -> None:
        """`y` is `x` in row-major order under another shape: axes are tied, or split into common factors (`View`)."""
        xs, ys = self.shape(x), self.shape(y)
        if xs is not None and ys is not None and xs.count(0) == ys.count(0) == 1:  # of no elements: as if of one there
            xs, ys = tuple(1 if d == 0 else d for d in xs), tuple(1 if d == 0 else d for d in ys)
        if xs is None or ys is None or None in xs or None in ys or 0 in xs or math.prod(xs) != math.prod(ys):  # type: ignore[arg-type]
            for name in (x, y):
                for ids in self.axes(name):
                    self.pin(ids, "reshaped to a shape that is not known")
            return
        for tensor_x, tensor_y in axis_segments(xs, ys):  # type: ignore[arg-type]
            self._segment(node, x, y, tensor_x, tensor_y)

    def _segment(self, node: Node, x: str, y: str, i: range, j: range) -> None:
        """Axes `i` of `x` and `j` of `y` hold the same elements: split both into common factors."""
        xa, ya = [k for k in i if self.axes(x)[k] is not None], [k for k in j if self.axes(y)[k] is not None]
        if len(xa) == 1 and len(ya) == 1:
            self.tie(self.axes(x)[xa[0]], self.axes(y)[ya[0]])
            return
        sizes_x, sizes_y = [self.shapes.shapes[x][k] for k in xa], [self.shapes.shapes[y][k] for k in ya]
        factors = common_factors(sizes_x, sizes_y)  # type: ignore[arg-type]
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
                elif not self._afford(axis.size):
                    for other in (axis, *ids[first:at]):
                        self.pin(other, TOO_MANY)
                else:
                    self.views.append(View(node, name, k, axis, tuple(ids[first:at]), tuple(factors[first:at])))

    # solving

    def owner(self, id: int) -> tuple[str, int]:
        """Tensor and axis that an id belongs to."""
        return self._owners[bisect_right(self._owners, id, key=lambda o: o[0]) - 1][1:]

    def ties_of(self) -> dict[str, tuple[Ids, Ids]]:
        """Node key -> the pairs of ids that its rule tied."""
        out: dict[str, list[tuple[Ids, Ids]]] = {}
        for a, b, key in self.ties:
            out.setdefault(key, []).append((a, b))
        return {k: (np.concatenate([a for a, _ in v]), np.concatenate([b for _, b in v])) for k, v in out.items()}

    def component_labels(self) -> Ids:
        """Label of the component of every id, shape `(size,)`, by the ties so far."""
        if not self.ties:
            return np.arange(self.size)
        a = np.concatenate([t[0] for t in self.ties])
        b = np.concatenate([t[1] for t in self.ties])
        graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(self.size, self.size))
        return np.asarray(connected_components(graph, directed=False)[1], np.int64)


class Computed(Exception):
    """A rule needs a value that is only known at run time; the walker pins what the node touches."""


def _broadcastable(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether shapes fit each other, and one of them is that of both together: two axes never make a product."""
    if not all(p == q or p == 1 or q == 1 for p, q in zip(a[::-1], b[::-1], strict=False)):
        return False
    return math.prod(np.broadcast_shapes(a, b)) == max(math.prod(a), math.prod(b))
