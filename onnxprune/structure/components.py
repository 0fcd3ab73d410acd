"""Connected components of what is tied: which units there are, which of them are pinned, and what kind they are.

Where an axis is split or merged, one of its factors lives and the others are pinned; heads and the dimensions inside
them can both live. That is decided first, and labels follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from onnxprune.graph.arrays import Array, Ids
from onnxprune.structure.claims import Pin, View
from onnxprune.structure.coupling import Coupling

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


def solved(coupling: Coupling) -> Components:
    """The components of what the rules said; afterwards no tensor gets new ids."""
    return _Solution(coupling).components()


class _Solution:
    """Decides the views of a coupling, in place, and labels its components."""

    def __init__(self, coupling: Coupling) -> None:
        self.c = coupling

    def components(self) -> Components:
        """Decide the views, then label the components; afterwards no tensor gets new ids."""
        products = self._decide_views()
        self.c.solved = True
        labels = self.c.component_labels()
        n = int(labels.max()) + 1 if self.c.size else 0
        reason = np.full(n, -1, np.int64)
        for k in range(len(self.c.pins) - 1, -1, -1):
            reason[labels[self.c.pins[k][0]]] = k
        pins = [p for _, p in self.c.pins]
        homes = np.stack([np.arange(n), np.full(n, -1)], 1)
        for whole, heads, inner in (self._product(v, labels) for v in products):
            homes[whole] = np.stack([heads, inner], 1)
            pinned = reason[whole]
            for parents in (heads, inner):  # what cannot go holds both
                np.maximum.at(reason, parents[pinned >= 0], pinned[pinned >= 0])
        kinds = {kind: np.zeros(n, bool) for kind in KINDS}
        for ids, kind in self.c.marks:
            if kind in kinds:
                kinds[kind][labels[ids]] = True
        for ids, origin, by in self.c.normalisations:
            both = np.intersect1d(labels[ids], labels[origin])
            kinds["hidden"][both] = True
            if both.size:
                self.c.statistics.add(by)
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
        left = self.c.views
        for ids, name in self.c.selected:
            if self.c.followed[name] and all(
                self.c.readers[t] == self.c.followed[t] for t, along in self.c.indices.items() if along is ids
            ):
                self.c.mark("experts", ids)
        while True:  # an axis of attention that was split or merged first: its factors are of attention too
            while self._pair(left) or self._tie_pinned(left):
                pass
            flags = self._flags()
            labels, _, marked = flags
            split = [v for v in left if any(marked[kind][labels[v.ids]].any() for kind in ("heads", "head_dim"))]
            if not split and self.c.conditional:
                self._settle(labels)
                flags = self._flags()
            first = split or left
            for v in first:
                self.c.node = v.node
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
        labels = self.c.component_labels()
        seen: dict[tuple[bytes, tuple[int, ...]], View] = {}
        moved = False
        for v in views:
            first = seen.setdefault((blake2b(labels[v.ids].tobytes()).digest(), v.sizes), v)
            for a, b in zip(first.factors, v.factors, strict=True):
                if a is not None and b is not None and (labels[a] != labels[b]).any():
                    self.c.ties.append((a, b, v.node.key))
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
        for ids, kind in self.c.marks:
            if kind in kinds:
                kinds[kind][labels[ids]] = True
        settled = [
            (ids[~np.any([kinds[kind][labels[ids]] for kind in unless], axis=0)], pin)
            for ids, pin, unless in self.c.conditional
        ]
        self.c.pins = [(ids, pin) for ids, pin in settled if ids.size] + self.c.pins  # the nearest reason is the first
        self.c.conditional = []

    def _flags(self) -> tuple[Ids, Array, dict[str, Array]]:
        """Components as they are now: labels of the ids, pinned or not, marked or not."""
        labels = self.c.component_labels()
        n = int(labels.max(initial=-1)) + 1
        pinned = np.zeros(n, bool)
        marked = {kind: np.zeros(n, bool) for kind in ("heads", "head_dim", "repeated")}
        for ids, _ in self.c.pins:
            pinned[labels[ids]] = True
        for ids, kind in self.c.marks:
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
                self.c.pin(f, f"a factor of axis {v.axis} of {v.tensor}, which shrinks along another factor")
                if f is not None:
                    pinned[labels[f]] = True
        if not live:
            self.c.pin(v.ids, "reshaped: every factor of the axis is pinned")
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
        self.c.tie(v.ids.reshape(v.sizes), factor.reshape(shape))

    def _consistent(self, products: list[View]) -> list[View]:
        """Axes that are one have one pair of factors: tie those. Where that cannot be, heads alone live."""
        even = [b.ids.ravel() for b in self.c.blocks]
        while products:
            labels = self.c.component_labels()
            parts = [self._product(v, labels) for v in products]
            whole, heads, inner = (np.concatenate(part) for part in zip(*parts, strict=True))
            nested = np.union1d(np.union1d(heads, inner), labels[np.concatenate(even)] if even else [])
            bad = [bool(np.isin(w, nested).any() or np.intersect1d(h, i).size) for w, h, i in parts]
            if any(bad):
                for v, wrong in zip(products, bad, strict=True):
                    if wrong:
                        self.c.node = v.node
                        self.c.pin(v.factors[v.product[1]], f"dimensions of a head inside axis {v.axis} of {v.tensor}")
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
                    self.c.ties.append((first[parents[a[differ]]], first[parents[b[differ]]], ""))
                    moved = True
            if not moved:
                break
        return products

    def _block_rows(self, labels: Ids, reason: Ids, pins: list[Pin]) -> list[Array]:
        """Blocks as component labels, shape `(blocks, width)`; a constraint that cannot be kept pins."""
        rows = [(b, labels[b.ids]) for b in self.c.blocks]
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


def _first_ids(labels: Ids) -> Ids:
    """An id of every component."""
    first = np.zeros(int(labels.max()) + 1, np.int64)
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    return first
