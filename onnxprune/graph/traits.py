"""Facts about operators with weights, one row each: where weight, bias and reduction stand, how rows are made of what
they read, and what they cost. Everything that asks such a thing of a node asks here.

A new operator with weights is its row here and its coupling rule (structure/rules/); where its rows are made like those
of no other, `rows` names a new maker (layers/rows.py).

    >>> TRAITS["Conv"].bias, TRAITS["MatMul"].bias, TRAITS["LSTM"].gates
    (2, None, 4)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.graph.arrays import Array, Ids
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import Shapes

Axes = Callable[[str], list[Ids | None]]


@dataclass(frozen=True, eq=False)
class Product:
    """`factor` times the number of survivors of every array of ids, each over its divisor.

    steps: what each of these counts is rounded up to a multiple of; none where they count as they are. uneven: the
    product is 0 where each count is a multiple of its number here; none where that does not matter.
    """

    label: str
    factor: float
    ids: tuple[Ids, ...]
    divisors: tuple[int, ...]
    steps: tuple[int, ...] = ()
    uneven: tuple[int, ...] = ()

    def __call__(self, keep: Array) -> float:
        return float(self.at(self.counts(keep)))

    def counts(self, keep: Array) -> list[float]:
        """The survivors of every array of ids, over its divisor."""
        return [np.count_nonzero(keep[ids]) / d for ids, d in zip(self.ids, self.divisors, strict=True)]

    def at(self, counts: Sequence[Any]) -> Any:
        """The product at such counts, numbers or arrays."""
        whole = map(stepped, counts, self.steps) if self.steps else counts
        out = math.prod(whole, start=self.factor)
        return out * (sum(map(uneven, counts, self.uneven)) > 0) if self.uneven else out


def stepped(count: Any, step: Any) -> Any:
    """Counts rounded up to a multiple of a step; as they are where the step is 1, for a share need not be whole.

    >>> float(stepped(9.0, 8)), float(stepped(8.0, 8)), float(stepped(2.5, 1))
    (16.0, 8.0, 2.5)
    """
    return np.where(np.equal(step, 1), count, step * np.ceil(np.divide(count, step) - 1e-9))


def uneven(count: Any, multiple: Any) -> Any:
    """Whether counts are no multiple."""
    parts = np.divide(count, multiple)
    return np.abs(parts - np.rint(parts)) > 1e-9


def product(label: str, factor: float, ids: Iterable[tuple[Ids | None, int]]) -> Product:
    """A `Product` of a factor and of axes, each given as its ids and their divisor; None for an axis that never
    shrinks, which the factor counts."""
    known = [(a.ravel(), d) for a, d in ids if a is not None]
    return Product(label, factor, tuple(a for a, _ in known), tuple(d for _, d in known))


@dataclass(frozen=True, eq=False)
class CostInputs:
    """What costs are counted from. axes: name -> ids per axis (None: an axis that never shrinks); grouped: weight ->
    ids `(groups, width)` of the inner axis of a grouped convolution."""

    shapes: Shapes
    axes: Axes
    grouped: Mapping[str, Ids]

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Shape of a tensor, None for an axis that is not known; None where not even its rank is."""
        return self.shapes.shapes.get(name)


Macs = Callable[[Node, "Trait", CostInputs], list[Product]]  # multiply-accumulates of one run, for a known output shape


def no_macs(n: Node, t: Trait, s: CostInputs) -> list[Product]:
    """MACs of tables and normalisations: nothing that counts."""
    return []


def convolution_macs(n: Node, t: Trait, s: CostInputs) -> list[Product]:
    """MACs of a convolution: weights of one output position times the positions, which are those of the output, of a
    ConvTranspose those of the input."""
    x, w = n.input(t.source), n.input(t.weight)
    kernel, source, shape = s.shape(w), s.shape(x), s.shape(n.key)
    if kernel is None or source is None or shape is None or None in kernel or None in source:
        return []
    sizes = source if t.rows == "spread patches" else shape
    spatial = [d for k, d in enumerate(sizes) if k not in (0, t.channels(n, len(sizes)))]
    factor = math.prod(kernel[2:]) * math.prod(spatial) * (shape[0] or 1)  # type: ignore[arg-type]
    axes = s.axes(w)
    inner = (s.grouped[w], len(s.grouped[w])) if w in s.grouped else (axes[1] if len(axes) > 1 else None, 1)
    return [product(n.label, factor, [(axes[0], 1), inner])]


def product_macs(n: Node, t: Trait, s: CostInputs) -> list[Product]:
    """MACs of a matrix product: entries of the output times the length of the sum."""
    a, shape = n.input(t.source), s.shape(n.key)
    if not s.axes(a) or shape is None:
        return []
    k = -2 if n.attr("transA", 0) and len(s.axes(a)) > 1 else -1
    y = s.axes(n.key)
    factor = math.prod(d for d, ids in zip(shape, y, strict=True) if ids is None and d is not None)
    return [product(n.label, factor, [*((i, 1) for i in y), (s.axes(a)[k], 1)])]


def einsum_macs(n: Node, t: Trait, s: CostInputs) -> list[Product]:
    """MACs of an Einsum: one for every combination of labels."""
    terms, _ = einsum_labels(n.attr("equation", ""), [len(s.axes(name)) for name in n.inputs])
    labels: dict[str, Ids | None] = {}
    for name, term in zip(n.inputs, terms, strict=True):
        for label, ids in zip(term, s.axes(name), strict=False):
            labels[label] = ids if ids is not None else labels.get(label)
    return [product(n.label, 1.0, [(i, 1) for i in labels.values()])]


def einsum_labels(equation: str, ranks: Sequence[int]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Labels of the axes of every input, whose ranks are given, and of the output; the axes of an ellipsis are aligned
    from the right.

    >>> einsum_labels("...c,cd", (3, 2))
    ([('.1', '.0', 'c'), ('c', 'd')], ('.1', '.0', 'd'))
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        right = "".join(sorted(ch for ch in set(left) if ch.isalpha() and left.count(ch) == 1))
        right = ("..." if "..." in left else "") + right

    def spread(term: str, covered: int) -> tuple[str, ...]:
        before, dots, after = term.partition("...")
        return (*before, *(f".{k}" for k in reversed(range(covered if dots else 0))), *after)

    covered = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    most = max((k for term, k in zip(terms, covered, strict=True) if "..." in term), default=0)
    return [spread(term, k) for term, k in zip(terms, covered, strict=True)], spread(right, most)


def einsum_axes(n: Node, slot: int) -> tuple[int, int] | None:
    """(reduction, outputs) of the operand at an input of an Einsum of two, as a weight; None where its labels are not
    these two behind those of a stack."""
    equation = n.attr("equation", "").replace(" ", "")
    given = equation.partition("->")[0].split(",")
    if len(given) != 2 or "." in given[slot]:
        return None
    terms, result = einsum_labels(equation, [len(term.replace("...", "")) for term in given])  # an ellipsis of no axis
    other = terms[1 - slot]
    of = [(label in other, label in result) for label in terms[slot]]  # (True, True): of a stack
    if len(set(terms[slot])) != len(of) or not all(map(all, of[:-2])):
        return None
    if sorted(of[-2:]) != [(False, True), (True, False)]:
        return None
    return (-2, -1) if of[-1] == (False, True) else (-1, -2)


def recurrent_macs(n: Node, t: Trait, s: CostInputs) -> list[Product]:
    """MACs of a recurrent layer: weights of the input and of the recurrence, at every step, for every sample and
    direction."""
    steps, batch, *_ = s.shape(n.input(t.source)) or (1, 1)
    directions = (s.shape(n.input(t.weight)) or (1,))[0] or 1
    factor = float((steps or 1) * (batch or 1) * directions)
    return [product(n.label, factor, [(s.axes(w)[1], 1), (s.axes(w)[2], 1)]) for w in n.inputs[1:3]]


def attention_macs(n: Node, t: Trait, s: CostInputs) -> list[Product]:
    """MACs of attention: queries times keys, probabilities times values, and the projection of an operator that has its
    weights."""
    q, y = n.input(t.source), n.output(0)
    first = s.shape(q) or (1, 1, 1)
    packed = bool(t.weights)
    keys = s.shape(q if packed or not n.input(1) else n.input(1)) or first
    if None in first or None in keys:
        return []
    pairs = float((first[0] or 1) * (first[-2] or 1) * (keys[-2] or 1))
    out = []
    query: list[tuple[Ids | None, int]] = [(s.axes(q)[k], 1) for k in ((1, 3) if len(first) == 4 else (-1,))]
    if packed:
        w = s.axes(n.input(t.weight))
        steps = float((first[0] or 1) * (first[1] or 1))
        out.append(product(n.label, steps, [(w[0], 1), (w[1], 1)]))
        sizes = n.attr("qkv_hidden_sizes")
        query = [(w[1][: sizes[0]] if sizes else w[1], 1 if sizes else 3)] if w[1] is not None else []
    value = [(s.axes(y)[k], 1) for k in ((1, 3) if len(first) == 4 else (-1,))]
    return [*out, product(n.label, pairs, query), product(n.label, pairs, value)]


@dataclass(frozen=True)
class Trait:
    """One row. Axes of a weight are those of its initializer; `transA` and `transB` turn the operands' two axes.

    macs:      what one run costs
    source:    the input that is multiplied with the weight
    weights:   inputs that hold weights; the first is multiplied with the source
    bias:      input that is added to every output channel, None where the operator has none
    scales:    inputs that hold the scales of `weights`, one for each, scalars or vectors over its outputs
    zeros:     the same for zero points
    zero:      input that holds the zero point of the source, None where it has none
    affine:    whether its outputs are the source times the first weight, plus the bias (and no layers lie between)
    reduction: axis of the weight that is summed over (of a convolution, within a group)
    outputs:   axis of the weight that makes the output channels (of ConvTranspose, within a group)
    last:      channels are the last axis of source and output, else axis 1
    rows:      how its rows are made (layers/rows.py), "" for what is no regression that we solve
    gates:     of a recurrent layer, along the outputs of its weights
    added:     inputs that are added to the result, element by element, before the activation of a fused operator
    swaps:     input that may be the weight instead of the first, with the source on the right of it; None for none
    sparse:    whether operators of ours replace it where its weight is sparse
    clustered: whether its weights can be codebooks
    attends:   multiplies activations with activations: always ("fused"), or where both operands are some ("product")
    """

    macs: Macs
    source: int = 0
    weights: tuple[int, ...] = (1,)
    bias: int | None = 2
    scales: tuple[int, ...] = ()
    zeros: tuple[int, ...] = ()
    zero: int | None = None
    affine: bool = True
    reduction: int = 0
    outputs: int = 1
    last: bool = False
    rows: str = ""
    gates: int = 1
    added: tuple[int, ...] = ()
    swaps: int | None = None
    sparse: bool = False
    clustered: bool = False
    attends: str = ""

    @property
    def weight(self) -> int:
        """The input whose weight is multiplied with the source."""
        return self.weights[0]

    @property
    def slots(self) -> tuple[int, ...]:
        """Every input that may hold a weight."""
        return self.weights if self.swaps is None else (*self.weights, self.swaps)

    @property
    def multiplies(self) -> bool:
        """Whether what costs is a product with its weights."""
        return bool(self.weights) and self.macs is not no_macs

    @property
    def kernel(self) -> bool:
        """Whether its weight has axes of a kernel."""
        return self.macs is convolution_macs

    @property
    def convolves(self) -> bool:
        """Whether its rows are patches of the source."""
        return self.rows.endswith("patches")

    @property
    def recurs(self) -> bool:
        """Whether its outputs come in again at the next step."""
        return self.rows == "steps"

    @property
    def steps(self) -> tuple[int, ...]:
        """Every input that says what the integers of a weight mean."""
        return (*self.scales, *self.zeros)

    def zero_of_source(self, n: Node) -> str:
        """The tensor that holds the zero point of the source; "" where zero is zero."""
        return "" if self.zero is None else n.input(self.zero)

    def inner(self, n: Node, rank: int) -> int:
        """Axis of the source, of this rank, that holds what is multiplied with the rows of the weight."""
        if n.attr("transA", 0):
            return rank - 2
        return rank - 1 if self.last else 1

    def outer(self, rank: int) -> int:
        """Axis of the output, of this rank, that holds its channels."""
        return rank - 1 if self.last else 1

    def channels(self, n: Node, rank: int) -> int:
        """Axis of the channels of source and output of a convolution, of this rank."""
        return rank - 1 if self.last or n.attr("channels_last", 0) else 1

    def axes(self, n: Node, slot: int) -> tuple[int, int]:
        """(reduction, outputs) of the weight at an input; negative axes count from its end."""
        if self.macs is einsum_macs:
            return einsum_axes(n, slot) or (self.reduction, self.outputs)
        if slot == self.swaps:
            reduction, outputs = self.outputs, self.reduction
            flipped = n.attr("transA", 0)
        else:
            reduction, outputs = self.reduction, self.outputs
            flipped = n.attr("transB", 0)
        return (outputs, reduction) if flipped else (reduction, outputs)


CONVOLUTION = Trait(convolution_macs, reduction=1, outputs=0)
MATRIX = Trait(product_macs, reduction=-2, outputs=-1, last=True)
RECURRENT = Trait(recurrent_macs, weights=(1, 2), bias=3, affine=False, reduction=2, outputs=1, last=True, rows="steps")
TRAITS: dict[str, Trait] = {
    "Conv": replace(CONVOLUTION, rows="patches", sparse=True, clustered=True),
    "com.microsoft::FusedConv": replace(CONVOLUTION, rows="patches", added=(3,)),
    "ConvTranspose": Trait(convolution_macs, rows="spread patches", clustered=True),
    "ConvInteger": replace(CONVOLUTION, bias=None, zeros=(3,), zero=2),
    "QLinearConv": replace(CONVOLUTION, weights=(3,), bias=8, scales=(4,), zeros=(5,), zero=2),
    "com.microsoft::QLinearConv": replace(CONVOLUTION, weights=(3,), bias=8, scales=(4,), zeros=(5,), zero=2),
    "DeformConv": replace(CONVOLUTION, bias=3),
    "Gemm": replace(MATRIX, rows="vectors", swaps=0, sparse=True, clustered=True),
    "com.microsoft::FusedGemm": MATRIX,
    "MatMul": replace(MATRIX, bias=None, rows="vectors", swaps=0, sparse=True, clustered=True, attends="product"),
    "com.microsoft::FusedMatMul": replace(MATRIX, bias=None, attends="product"),
    "MatMulInteger": replace(MATRIX, bias=None, zeros=(3,), zero=2),
    "QLinearMatMul": replace(MATRIX, weights=(3,), bias=None, scales=(4,), zeros=(5,), zero=2),
    "com.microsoft::QGemm": replace(MATRIX, weights=(3,), bias=6, scales=(4,), zeros=(5,), zero=2),
    "com.microsoft::DynamicQuantizeMatMul": replace(MATRIX, bias=4, scales=(2,), zeros=(3,)),
    "com.microsoft::MatMulIntegerToFloat": replace(MATRIX, bias=6, scales=(3,), zeros=(5,), zero=4),
    "com.microsoft::MatMulNBits": Trait(
        product_macs, bias=5, scales=(2,), zeros=(3,), reduction=1, outputs=0, last=True
    ),
    "com.microsoft::QMoE": Trait(  # how many experts run depends on the data
        no_macs,
        weights=(2, 5, 8),
        bias=None,
        scales=(3, 6, 9),
        zeros=(11, 12, 13),
        affine=False,
        reduction=2,
        outputs=1,
        last=True,
    ),
    "Einsum": Trait(einsum_macs, weights=(), bias=None, attends="product"),  # weights anywhere
    "LSTM": replace(RECURRENT, gates=4, clustered=True),
    "com.microsoft::DynamicQuantizeLSTM": replace(
        RECURRENT, gates=4, scales=(8, 10), zeros=(9, 11), reduction=1, outputs=2, rows=""
    ),
    "GRU": replace(RECURRENT, gates=3, clustered=True),
    "RNN": replace(RECURRENT, clustered=True),
    "Gather": Trait(
        no_macs, source=1, weights=(0,), bias=None, affine=False, reduction=0, outputs=-1, last=True, clustered=True
    ),
    "com.microsoft::GatherBlockQuantized": Trait(
        no_macs,
        source=1,
        weights=(0,),
        bias=None,
        scales=(2,),
        zeros=(3,),
        affine=False,
        reduction=0,
        outputs=-1,
        last=True,
    ),
    "com.microsoft::QEmbedLayerNormalization": Trait(
        no_macs,
        weights=(2, 3, 4),
        bias=None,
        scales=(8, 9, 10),
        zeros=(13, 14, 15),
        affine=False,
        outputs=-1,
        last=True,
    ),
    "Attention": Trait(attention_macs, weights=(), bias=None, attends="fused"),
    "com.microsoft::Attention": Trait(attention_macs, affine=False, attends="fused"),
    "com.microsoft::QAttention": Trait(attention_macs, scales=(4,), zeros=(7,), affine=False, attends="fused"),
    "com.microsoft::MultiHeadAttention": Trait(attention_macs, weights=(), bias=None, attends="fused"),
    "com.microsoft::GroupQueryAttention": Trait(attention_macs, weights=(), bias=None, attends="fused"),
}
LINEAR = {op for op, t in TRAITS.items() if t.rows}  # outputs = rows @ matrix + bias
