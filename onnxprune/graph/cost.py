"""Parameters, MACs and bytes of a model, also of one that is only planned.

A `CostModel` is made once from an analysis' ids; each question ("how many MACs if these ids survive?") is then a
few sums over booleans, so that a search over targets costs milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxprune.graph.arrays import stored_bits, stored_size
from onnxprune.graph.io import weight_bytes
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import Array, Shapes

Ids = np.ndarray[Any, np.dtype[np.int64]]
Axes = Callable[[str], list[Ids | None]]

CONVS = {
    "Conv": (0, 1),
    "com.microsoft::FusedConv": (0, 1),
    "QLinearConv": (0, 3),
    "ConvInteger": (0, 1),
    "DeformConv": (0, 1),
}
MATMULS = {"MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3), "com.microsoft::FusedMatMul": (0, 1)}
ATTENTION = {
    "Attention", "com.microsoft::Attention", "com.microsoft::MultiHeadAttention", "com.microsoft::GroupQueryAttention",
}  # fmt: skip
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, eq=False)
class Product:
    """`factor` times the number of survivors of every array of ids, each over its divisor."""

    label: str
    factor: float
    ids: tuple[Ids, ...]
    divisors: tuple[int, ...]

    def __call__(self, keep: Array) -> float:
        out = self.factor
        for ids, d in zip(self.ids, self.divisors, strict=True):
            out *= float(np.count_nonzero(keep[ids])) / d
        return out


@dataclass(frozen=True, eq=False)
class CostModel:
    """macs: multiply-accumulates of one run, per node; parameters: trained numbers, per weight; bytes: of the file, per
    weight, and `overhead` for the graph itself."""

    macs_of: tuple[Product, ...]
    parameters_of: tuple[Product, ...]
    bytes_of: tuple[Product, ...]
    overhead: float

    def macs(self, keep: Array) -> float:
        """MACs of one run if the ids that are True in `keep` survive."""
        return sum(p(keep) for p in self.macs_of)

    def parameters(self, keep: Array) -> float:
        """Trained numbers that are left."""
        return sum(p(keep) for p in self.parameters_of)

    def bytes(self, keep: Array) -> float:
        """Bytes of the file that is left, but for what nodes of the graph gain or lose."""
        return self.overhead + sum(p(keep) for p in self.bytes_of)


def cost_model(
    nodes: Iterable[Node],
    shapes: Shapes,
    axes: Axes,
    grouped: dict[str, Ids],
    gates: Mapping[str, Ids] = MappingProxyType({}),
) -> CostModel:
    """axes: name -> ids per axis (None: an axis that never shrinks); grouped: weight -> ids `(groups, width)`; gates:
    node key -> the id without which the node is gone, `(1,)`."""
    nodes = list(nodes)
    gate_of: dict[str, Ids | None] = {}  # weight -> gate that all its readers share
    for node in nodes:
        gate = gates.get(node.key)
        for name in node.inputs:
            same = name not in gate_of or (gate is not None and gate is gate_of[name])
            gate_of[name] = gate if same else None

    def product(label: str, factor: float, ids: Iterable[tuple[Ids | None, int]]) -> Product:
        arrays, divisors = [], []
        for a, d in ids:
            if a is None:
                continue
            arrays.append(a.ravel())
            divisors.append(d)
        return Product(label, factor, tuple(arrays), tuple(divisors))

    def sized(name: str, k: int) -> tuple[Ids | None, int]:
        return axes(name)[k], 1

    macs: list[Product] = []
    statistics: set[str] = set()
    for node in nodes:
        y = node.key
        counted_macs = len(macs)
        shape = shapes.shapes.get(y)
        if node.op == "BatchNormalization":
            statistics.update(node.inputs[3:5])
        if shape is None or None in shape:
            continue
        if node.op in CONVS or node.op == "ConvTranspose":
            x, w = (node.input(i) for i in CONVS.get(node.op, (0, 1)))
            kernel, source = shapes.shapes.get(w), shapes.shapes.get(x)
            if kernel is None or source is None or None in kernel or None in source:
                continue
            spatial = source[2:] if node.op == "ConvTranspose" else shape[2:]
            factor = math.prod(kernel[2:]) * math.prod(spatial) * (shape[0] or 1)  # type: ignore[arg-type]
            first, second = axes(w)[0], axes(w)[1] if len(axes(w)) > 1 else None
            if w in grouped:
                macs.append(product(node.label, factor, [(first, 1), (grouped[w], len(grouped[w]))]))
            else:
                macs.append(product(node.label, factor, [(first, 1), (second, 1)]))
        elif node.op in MATMULS or node.op in ("Gemm", "com.microsoft::FusedGemm"):
            a = node.input(MATMULS.get(node.op, (0, 1))[0])
            if not axes(a):
                continue
            k = -2 if node.attr("transA", 0) and len(axes(a)) > 1 else -1
            factor = math.prod(d for d, ids in zip(shape, axes(y), strict=True) if ids is None and d is not None)
            macs.append(product(node.label, factor, [*((i, 1) for i in axes(y)), sized(a, k)]))
        elif node.op == "Einsum" and "." not in node.attr("equation", "."):
            terms = node.attr("equation").replace(" ", "").partition("->")[0].split(",")
            labels: dict[str, Ids | None] = {}
            for name, term in zip(node.inputs, terms, strict=True):
                for label, ids in zip(term, axes(name), strict=False):
                    labels[label] = ids if ids is not None else labels.get(label)
            macs.append(product(node.label, 1.0, [(i, 1) for i in labels.values()]))
        elif node.op in ATTENTION:
            macs += _attention(node, shapes, axes, product)
        elif node.op in GATES:
            steps, batch, *_ = shapes.shapes.get(node.input(0)) or (1, 1)
            directions = (shapes.shapes.get(node.input(1)) or (1,))[0] or 1
            for w in node.inputs[1:3]:
                factor = (steps or 1) * (batch or 1) * directions
                macs.append(product(node.label, float(factor), [sized(w, 1), sized(w, 2)]))
        if y in gates:  # what this node has added since the last one
            macs[counted_macs:] = [
                Product(p.label, p.factor, (*p.ids, gates[y]), (*p.divisors, 1)) for p in macs[counted_macs:]
            ]
    parameters, stored = [], []
    for name, weight in shapes.model.weights.items():
        mine = axes(name) or [None] * weight.ndim  # no node reads it: nothing shrinks
        counted = [(a, 1) for a in (*mine, gate_of.get(name))]
        if name in grouped:
            counted.append((grouped[name], len(grouped[name])))
        held = math.prod(d for d, a in zip(weight.shape, mine, strict=True) if a is None)
        if name in grouped:
            held //= weight.shape[1]
        stored.append(product(name, held * stored_bits(weight) / 8, counted))
        if trained(weight) and name not in statistics:
            parameters.append(product(name, float(held), counted))
    model = shapes.model
    overhead = model.proto.ByteSize() + weight_bytes(model) - sum(stored_size(w) for w in model.weights.values())
    return CostModel(tuple(macs), tuple(parameters), tuple(stored), float(overhead))


def _attention(node: Node, shapes: Shapes, axes: Axes, product: Callable[..., Product]) -> list[Product]:
    """Queries times keys, probabilities times values, and the projection that com.microsoft's Attention does."""
    q, y = node.input(0), node.output(0)
    first = shapes.shapes.get(q) or (1, 1, 1)
    packed = node.op == "com.microsoft::Attention"
    keys = shapes.shapes.get(q if packed or not node.input(1) else node.input(1)) or first
    if None in first or None in keys:
        return []
    pairs = float((first[0] or 1) * (first[-2] or 1) * (keys[-2] or 1))
    out = []
    query: list[tuple[Ids | None, int]] = [(axes(q)[k], 1) for k in ((1, 3) if len(first) == 4 else (-1,))]
    if packed:
        w = axes(node.input(1))
        steps = float((first[0] or 1) * (first[1] or 1))
        out.append(product(node.label, steps, [(w[0], 1), (w[1], 1)]))
        sizes = node.attr("qkv_hidden_sizes")
        query = [(w[1][: sizes[0]] if sizes else w[1], 1 if sizes else 3)] if w[1] is not None else []
    value = [(axes(y)[k], 1) for k in ((1, 3) if len(first) == 4 else (-1,))]
    return [*out, product(node.label, pairs, query), product(node.label, pairs, value)]


def trained(weight: Array) -> bool:
    """Floats and 8-bit or narrower integers are parameters; shapes, indices and flags are not."""
    return weight.dtype.kind in "fV" or (weight.dtype.kind in "iu" and weight.dtype.itemsize == 1)
