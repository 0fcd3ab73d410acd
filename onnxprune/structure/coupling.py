"""Ids for every index of every axis, ties and pins between them, and their connected components.

Every index of every axis longer than one of every tensor gets an integer id. Rules (`structure.rules`) say
which ids live or die together (`tie`), which can never be removed (`pin`), where a removed index has to count as zero
(`consume`), and what an axis is used for (`mark`). `solve` turns that into components: a component that is not
pinned is one unit that can be removed. Where an axis is the product of heads and of the dimensions inside a head, both
are units, and what they make together stays if both stay (`Components.homes`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.graph.arrays import Array, Ids
from onnxprune.graph.io import Model
from onnxprune.graph.limits import PER_INDEX
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.shapes import Shapes
from onnxprune.structure.signs import signs_of
from onnxprune.structure.transforms import fixed_transform

Axis = Ids | None  # None: an axis of size one, or of unknown size
TIES = 4  # for every index that can be followed, at most
TOO_MANY = "tied more often than can be followed"


@dataclass(frozen=True)
class Consume:
    """Input `input` of `node` is summed over `axis`: what is removed must enter as zero (or as `zero`, a tensor; or as
    `neutral`, a number: minus infinity before a Softmax)."""

    node: Node
    input: int
    axis: int
    zero: str = ""
    neutral: float = 0.0


@dataclass(frozen=True)
class Produce:
    """`weight` makes the units of `ids`; along `axis` it has `repeat` blocks of them (gates of an LSTM)."""

    node: Node
    weight: str
    axis: int
    output: str


@dataclass(frozen=True)
class EvenRows:
    """Every row of `ids`, shape `(blocks, width)`, must keep the same number of units."""

    node: Node
    ids: Ids


@dataclass(frozen=True)
class Pin:
    """Why ids cannot be removed: the node and tensor that say so, and the reason for the user."""

    node: str
    op: str
    tensor: str
    axis: int
    reason: str


@dataclass(frozen=True)
class Norm:
    """`node` normalises over `ids`: what is removed does not count in its statistics.

    inputs, outputs: number of a tensor -> its axis that holds the ids.
    """

    node: Node
    ids: Ids
    inputs: dict[int, int]
    outputs: dict[int, int]


@dataclass(frozen=True)
class Contraction:
    """A product of `operands`: batch axes, and those that it sums over or makes; they are heads and the dimensions of a
    head where it turns out to be attention. computed: two operands at least are no constants."""

    node: Node
    operands: tuple[str, ...]
    batch: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    computed: bool


@dataclass(frozen=True)
class View:
    """One axis that is the row-major product of several factors: one of them can shrink, or heads and head_dim both."""

    node: Node
    tensor: str
    axis: int
    ids: Ids
    factors: tuple[Axis, ...]
    sizes: tuple[int, ...]
    product: tuple[int, int] = (-1, -1)  # the factors that are heads and the dimensions of a head, where both live


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
    _ties: list[tuple[Ids, Ids, str]] = field(default_factory=list)
    _pins: list[tuple[Ids, Pin]] = field(default_factory=list)
    _conditional: list[tuple[Ids, Pin, tuple[str, ...]]] = field(default_factory=list)
    _selected: list[tuple[Ids, str]] = field(default_factory=list)
    _marks: list[tuple[Ids, str]] = field(default_factory=list)
    _normalised: list[tuple[Ids, Ids, str]] = field(default_factory=list)
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
        self._ties.append((x.ravel(), y.ravel(), self.node.key if self.node else ""))

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
                self._conditional.append((ids.ravel(), pin, unless))
            else:
                self._pins.append((ids.ravel(), pin))

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
            self._selected.append((ids, indices))

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
        self._normalised.append((ids.ravel(), origin.ravel(), by))

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
        for a, b, key in self._ties:
            out.setdefault(key, []).append((a, b))
        return {k: (np.concatenate([a for a, _ in v]), np.concatenate([b for _, b in v])) for k, v in out.items()}

    def component_labels(self) -> Ids:
        """Label of the component of every id, shape `(size,)`, by the ties so far."""
        if not self._ties:
            return np.arange(self.size)
        a = np.concatenate([t[0] for t in self._ties])
        b = np.concatenate([t[1] for t in self._ties])
        graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(self.size, self.size))
        return np.asarray(connected_components(graph, directed=False)[1], np.int64)

    def solve(self) -> Components:
        """Decide the views, then label the components; afterwards no tensor gets new ids."""
        products = self._decide_views()
        self.solved = True
        labels = self.component_labels()
        n = int(labels.max()) + 1 if self.size else 0
        reason = np.full(n, -1, np.int64)
        for k in range(len(self._pins) - 1, -1, -1):
            reason[labels[self._pins[k][0]]] = k
        pins = [p for _, p in self._pins]
        homes = np.stack([np.arange(n), np.full(n, -1)], 1)
        for whole, heads, inner in (self._product(v, labels) for v in products):
            homes[whole] = np.stack([heads, inner], 1)
            pinned = reason[whole]
            for parents in (heads, inner):  # what cannot go holds both
                np.maximum.at(reason, parents[pinned >= 0], pinned[pinned >= 0])
        kinds = {kind: np.zeros(n, bool) for kind in KINDS}
        for ids, kind in self._marks:
            if kind in kinds:
                kinds[kind][labels[ids]] = True
        for ids, origin, by in self._normalised:
            both = np.intersect1d(labels[ids], labels[origin])
            kinds["hidden"][both] = True
            if both.size:
                self.statistics.add(by)
        blocks = self._block_rows(labels, reason, pins)
        derived = homes[:, 1] >= 0
        over = derived & (reason[homes] >= 0).all(1)
        reason[over] = reason[homes[over, 0]]
        return Components(labels, reason, pins, kinds, blocks, homes)

    @staticmethod
    def _product(v: View, labels: Ids) -> tuple[Ids, Ids, Ids]:
        """Components of a product view's axis, and for each those of its head and of its dimension inside the head."""
        axes = [labels[f] if f is not None else np.full(d, -1) for f, d in zip(v.factors, v.sizes, strict=True)]
        grid = np.meshgrid(*axes, indexing="ij")
        heads, inner = v.product
        return labels[v.ids], grid[heads].ravel(), grid[inner].ravel()

    def _decide_views(self) -> list[View]:
        """Choose the live factor of every split or merged axis; the others are pinned.

        A factor that is pinned elsewhere cannot live. Where several could, the axis of attention heads wins over
        the dimensions inside a head, repeated heads lose to those that are repeated, and otherwise the largest factor
        wins (the finer one: channel shuffle). Heads and the dimensions inside them can both live: such views are
        returned.
        """
        products: list[View] = []
        left = self.views
        for ids, name in self._selected:
            if self.followed[name] and all(
                self.readers[t] == self.followed[t] for t, along in self.indices.items() if along is ids
            ):
                self.mark("experts", ids)
        while True:  # an axis of attention that was split or merged first: its factors are of attention too
            while self._pair(left) or self._tie_pinned(left):
                pass
            flags = self._flags()
            labels, _, marked = flags
            split = [v for v in left if any(marked[kind][labels[v.ids]].any() for kind in ("heads", "head_dim"))]
            if not split and self._conditional:
                self._settle(labels)
                flags = self._flags()
            first = split or left
            for v in first:
                self.node = v.node
                product = self._choose(v, *flags, both=not split)
                if product is not None:
                    products.append(product)
            done = {id(v) for v in first}
            left = [v for v in left if id(v) not in done]
            if not split:
                break
        return self._consistent(products)

    def _pair(self, views: Sequence[View]) -> bool:
        """Views that split one axis into the same sizes have the same factors; whether that was news."""
        labels = self.component_labels()
        seen: dict[tuple[bytes, tuple[int, ...]], View] = {}
        moved = False
        for v in views:
            first = seen.setdefault((blake2b(labels[v.ids].tobytes()).digest(), v.sizes), v)
            for a, b in zip(first.factors, v.factors, strict=True):
                if a is not None and b is not None and (labels[a] != labels[b]).any():
                    self._ties.append((a, b, v.node.key))
                    moved = True
        return moved

    def _tie_pinned(self, views: Sequence[View]) -> bool:
        """Where an axis is pinned whole no factor can live, whichever view is decided first; whether that was news."""
        labels, pinned, _ = self._flags()
        moved = False
        for v in views:
            for k, factor in enumerate(v.factors):
                if pinned[labels[v.ids]].all() and factor is not None and not pinned[labels[factor]].all():
                    self._tie_factor(v, k)
                    moved = True
        return moved

    def _settle(self, labels: Ids) -> None:
        """Pin what is pinned unless it is of a kind, and is not."""
        kinds = {kind: np.zeros(int(labels.max(initial=-1)) + 1, bool) for kind in KINDS}
        for ids, kind in self._marks:
            if kind in kinds:
                kinds[kind][labels[ids]] = True
        settled = [
            (ids[~np.any([kinds[kind][labels[ids]] for kind in unless], axis=0)], pin)
            for ids, pin, unless in self._conditional
        ]
        self._pins = [(ids, pin) for ids, pin in settled if ids.size] + self._pins  # the nearest reason is the first
        self._conditional = []

    def _flags(self) -> tuple[Ids, Array, dict[str, Array]]:
        """Components as they are now: labels of the ids, pinned or not, marked or not."""
        labels = self.component_labels()
        n = int(labels.max(initial=-1)) + 1
        pinned = np.zeros(n, bool)
        marked = {kind: np.zeros(n, bool) for kind in ("heads", "head_dim", "repeated")}
        for ids, _ in self._pins:
            pinned[labels[ids]] = True
        for ids, kind in self._marks:
            if kind in marked:
                marked[kind][labels[ids]] = True
        return labels, pinned, marked

    def _choose(self, v: View, labels: Ids, pinned: Array, marked: dict[str, Array], *, both: bool) -> View | None:
        """Tie the axis to its live factor and pin the others; or leave two alive, and return the view that says so."""
        free = [0 if f is None else int((~pinned[labels[f]]).sum()) for f in v.factors]

        def has(kind: str) -> list[bool]:
            return [f is not None and bool(marked[kind][labels[f]].any()) for f in v.factors]

        attends, inner, repeated = has("heads"), has("head_dim"), has("repeated")
        best = max(range(len(free)), key=lambda k: (free[k] > 0, attends[k], not repeated[k], free[k], k))
        live = {best} if free[best] else set()
        within = [k for k, f in enumerate(free) if f and inner[k] and not attends[k]]
        if both and live and attends[best] and len(within) == 1 and not pinned[labels[v.ids]].any():
            live.add(within[0])
        for k, f in enumerate(v.factors):
            if k not in live:
                self.pin(f, f"a factor of axis {v.axis} of {v.tensor}, which shrinks along another factor")
                if f is not None:
                    pinned[labels[f]] = True
        if not live:
            self.pin(v.ids, "reshaped: every factor of the axis is pinned")
            pinned[labels[v.ids]] = True
            return None
        if len(live) == 2:
            return replace(v, product=(best, within[0]))
        self._tie_factor(v, best)
        return None

    def _tie_factor(self, v: View, live: int) -> None:
        factor = v.factors[live]
        assert factor is not None
        shape = [1] * len(v.sizes)
        shape[live] = -1
        self.tie(v.ids.reshape(v.sizes), factor.reshape(shape))

    def _consistent(self, products: list[View]) -> list[View]:
        """Axes that are one have one pair of factors: tie those. Where that cannot be, heads alone live."""
        even = [b.ids.ravel() for b in self.blocks]
        while products:
            labels = self.component_labels()
            parts = [self._product(v, labels) for v in products]
            whole, heads, inner = (np.concatenate(part) for part in zip(*parts, strict=True))
            nested = np.union1d(np.union1d(heads, inner), labels[np.concatenate(even)] if even else [])
            bad = [bool(np.isin(w, nested).any() or np.intersect1d(h, i).size) for w, h, i in parts]
            if any(bad):
                for v, wrong in zip(products, bad, strict=True):
                    if wrong:
                        self.node = v.node
                        self.pin(v.factors[v.product[1]], f"dimensions of a head inside axis {v.axis} of {v.tensor}")
                        self._tie_factor(v, v.product[0])
                products = [v for v, wrong in zip(products, bad, strict=True) if not wrong]
                continue
            order = np.argsort(whole, kind="stable")
            same = np.flatnonzero(np.diff(whole[order]) == 0)
            a, b = order[same], order[same + 1]
            first = _first_ids(labels)
            moved = False
            for parents in (heads, inner):
                differ = parents[a] != parents[b]
                if differ.any():
                    self._ties.append((first[parents[a[differ]]], first[parents[b[differ]]], ""))
                    moved = True
            if not moved:
                break
        return products

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


KINDS = ("layers", "experts", "heads", "head_dim", "hidden")  # where marks meet, the first names the group


@dataclass(frozen=True)
class Components:
    """labels: component of every id, `(ids,)`; reason: index into `pins` or -1, `(components,)`;
    kinds: kind -> bool `(components,)`; blocks: arrays of components `(blocks, width)`.
    homes: the units that a component needs, `(components, 2)`: itself and -1, or a head and a dimension inside it."""

    labels: Ids
    reason: Ids
    pins: list[Pin]
    kinds: dict[str, Array]
    blocks: list[Array]
    homes: Ids

    def parts(self, ids: Ids) -> Ids:
        """The units that ids need, `(..., 2)`; -1 for none."""
        return self.homes[self.labels[ids]]


class Computed(Exception):
    """A rule needs a value that is only known at run time; the walker pins what the node touches."""


def _first_ids(labels: Ids) -> Ids:
    """An id of every component."""
    first = np.zeros(int(labels.max()) + 1, np.int64)
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    return first


def _broadcastable(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether shapes fit each other, and one of them is that of both together: two axes never make a product."""
    if not all(p == q or p == 1 or q == 1 for p, q in zip(a[::-1], b[::-1], strict=False)):
        return False
    return math.prod(np.broadcast_shapes(a, b)) == max(math.prod(a), math.prod(b))


def axis_segments(xs: Sequence[int], ys: Sequence[int]) -> Iterator[tuple[range, range]]:
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


def common_factors(xs: Sequence[int], ys: Sequence[int]) -> list[int] | None:
    """Common refinement: (6, 4), (2, 12) -> [2, 3, 4]; None where none exists, as for (6, 4), (8, 3)."""
    bounds = sorted({math.prod(xs[: k + 1]) for k in range(len(xs))} | {math.prod(ys[: k + 1]) for k in range(len(ys))})
    out, last = [], 1
    for b in bounds:
        if b % last:
            return None
        out.append(b // last)
        last = b
    return [f for f in out if f > 1]
