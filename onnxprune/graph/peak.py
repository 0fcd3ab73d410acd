"""Peak memory of one run, by a model: weights, and the tensors that are live at the same time.

    M = bytes of all weights + max over nodes of the bytes of tensors that are live at the node

A tensor is live from the node that makes it to the last one that reads it; outputs of the graph stay to the end, and
weights are there all the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxprune.graph.activations import activations
from onnxprune.graph.arrays import Array, Float, Ids
from onnxprune.graph.cost import CostModel
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import Shapes
from onnxprune.graph.traits import Axes, Product

NORM = 16.0  # of the moments, for a search: near the largest, and with a slope for every one that is near it


@dataclass(frozen=True)
class Peak:
    """Bytes at the moment of a run when most are needed: of all weights, and of the tensors that are live then.

    node: where that is; measured: bytes that loading and one run took at most in onnxruntime, in a process of its own,
    None where not measured.
    """

    weights: float
    tensors: float
    node: str
    measured: int | None = None

    @property
    def bytes(self) -> float:
        """Weights and tensors together."""
        return self.weights + self.tensors

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in bytes."""
        return {"bytes": self.bytes, **asdict(self)}


@dataclass(frozen=True, eq=False)
class PeakModel:
    """What the peak is counted from; `amounts` is all of it, in this order.

    weights, tensors: bytes; live: 1 for the tensors that are live at each of the `nodes`, `(nodes, tensors)`.
    """

    weights: tuple[Product, ...]
    tensors: tuple[Product, ...]
    live: Float
    nodes: tuple[str, ...]

    @property
    def amounts(self) -> tuple[Product, ...]:
        """Everything that is counted."""
        return (*self.weights, *self.tensors)

    def moments(self, amounts: Float) -> Float:
        """Bytes of weights and of live tensors at every node: `(amounts, ...)` to `(nodes, ...)`."""
        weights, tensors = np.split(amounts, [len(self.weights)])
        return np.asarray(weights.sum(0) + np.tensordot(self.live, tensors, 1))

    def total(self, amounts: Float) -> Float:
        """Bytes at the peak, `(amounts, ...)` to `(...)`."""
        return np.asarray(self.moments(amounts).max(0))

    def eased(self, amounts: Float) -> Float:
        """The same as a norm of all moments, for a search: it falls with every moment that is near the largest."""
        moments = self.moments(amounts)
        largest = np.maximum(moments.max(0), 1e-9)
        return np.asarray(largest * ((moments / largest) ** NORM).sum(0) ** (1 / NORM))

    def of(self, keep: Array) -> Peak:
        """The peak if the ids survive that are True in `keep`, `(ids,)`."""
        amounts = np.array([p(keep) for p in self.amounts])
        moments, weights = self.moments(amounts), float(amounts[: len(self.weights)].sum())
        k = int(moments.argmax())
        return Peak(weights, float(moments[k]) - weights, self.nodes[k])


def peak_model(
    costs: CostModel,
    nodes: Iterable[Node],
    shapes: Shapes,
    axes: Axes,
    gates: Mapping[str, Ids] = MappingProxyType({}),
) -> PeakModel:
    """The peak memory of a model whose nodes and costs these are, as a function of the ids that survive; the other
    arguments are those of `cost_model`."""
    nodes = list(nodes)
    tensors = activations(nodes, shapes, axes, gates)
    spans = np.array([(t.made, t.last) for t in tensors], np.int64).reshape(-1, 2)
    at = np.arange(max(len(nodes), 1))[:, None]
    live = (spans[:, 0] <= at) & (at <= spans[:, 1])  # (nodes, tensors)
    apart = _largest(live)
    names = [node.label for node in nodes] or [""]
    return PeakModel(
        costs.bytes_of, tuple(t.bytes for t in tensors), live[apart].astype(float), tuple(names[k] for k in apart)
    )


def _largest(live: Array) -> list[int]:
    """Moments that are no part of another one: where others are live beside all that is live in them."""
    kept: list[int] = []
    for k in range(len(live)):
        near = [j for j in (k - 1, k + 1) if 0 <= j < len(live)]  # a tensor is live in one piece
        inside = [j for j in near if (live[j] | ~live[k]).all()]
        if not any((live[j] != live[k]).any() or j < k for j in inside):
            kept.append(k)
    return kept
