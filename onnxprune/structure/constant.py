"""What is constant along an index of an axis: a channel that nothing makes is zero, or what its bias tells.

The graph is walked in order. A weight whose rows are zero makes what its bias says; from there operators carry
constants on: activations map them, products with zero are zero, views and pools move them. What is not known is NaN.
All that is known holds for any input; a guess, where one is given, fills in what a layer makes on average
(recovery/bias.py): then the graph is walked a second time, with what is known.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from onnxprune.graph.arrays import FLOAT_TYPES, Array, Float
from onnxprune.graph.constants import Constants
from onnxprune.graph.node import Node, walk_all
from onnxprune.graph.normalisation import batchnorm_factor
from onnxprune.graph.ort import ORT_ERRORS
from onnxprune.graph.quantized import DEQUANTIZES, QUANTIZES, Value, numbers
from onnxprune.graph.shapes import run_node
from onnxprune.graph.traits import TRAITS, Trait, einsum_labels
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.claims import Axis
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.rules.attention import EXPERTS
from onnxprune.structure.rules.elementwise import BROADCAST, FIRST_ONLY, UNARY
from onnxprune.structure.segments import axis_segments, common_factors

BYTES = (TensorProto.UINT8, TensorProto.INT8)
VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
MOVING = {
    "Transpose", "Concat", "Split", "Slice", "Gather", "GatherND", "GatherElements", "Expand", "Tile", "DepthToSpace",
    "SpaceToDepth", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceMin",
}  # fmt: skip
# carry zeros, other constants only about: at borders, or in sums
ZEROS = {
    "AveragePool", "LpPool", "GlobalLpPool", "Resize", "Upsample", "Pad", "ReduceSum", "ReduceL1", "ReduceL2",
    "ReduceSumSquare", "CumSum", "Trilu", *FIRST_ONLY,
}  # fmt: skip
GUESSED = {"AveragePool", "Resize", "Upsample", *FIRST_ONLY}  # of these, guesses go through as well
SCATTERS = {"ScatterND", "ScatterElements", "Scatter"}
PRODUCTS = {"MatMul", "com.microsoft::FusedMatMul"}

Guess = Callable[["Known", Node], Float | None]  # a layer -> what its outputs are on average `(out,)`; None: unknown


class Known:
    """value: the constant that all elements of an index of an axis are, float64 `(ids,)`; NaN where none is known.

    asked: ids that are asked for, bool `(ids,)`, no others are looked at; guess: for layers of which nothing is known.
    """

    def __init__(self, analysis: Analysis, asked: Keep, guess: Guess | None = None) -> None:
        self.analysis, self.asked, self.guess = analysis, asked, guess
        self.c: Coupling = analysis.coupling
        self.value: Float = np.full(self.c.size, np.nan)
        exact = None if guess is None else Known(analysis, asked).value
        constants = Constants(self.c.shapes)
        overridable = self.c.shapes.overridable if guess is None else set()  # a guess goes by the defaults
        self.weights: Value = lambda name: None if name in overridable else constants(name)
        self._loaded: set[str] = set()
        self._ties = self.c.ties_of()
        for node in walk_all(analysis.model.proto.graph, self.c.shapes.opsets):
            if any(self._is_asked(ids) for o in node.outputs if o for ids in self.c.axes(o)):
                self._step(node)
                if exact is not None:  # no guess where something is known
                    for ids in (ids for o in node.outputs for ids in self.c.axes(o)):
                        self._set(ids, exact[ids])

    def _is_asked(self, ids: Axis) -> bool:
        return ids is not None and bool(self.asked[ids].any())

    def of(self, name: str, axis: int) -> Float | None:
        """Constants along an axis of a tensor, `(size,)`; None where it has no ids there."""
        axes = self.c.axes(name)
        if not -len(axes) <= axis < len(axes):
            return None
        ids = axes[axis]
        if ids is not None and self.c.is_constant(name):
            self._load(name)
        return None if ids is None else self.value[ids]

    def vector(self, name: str) -> Float | None:
        """A constant of one number, or of one along a single axis, float64; None for what is none."""
        w = self.weights(name) if name else None
        if w is None or w.dtype.kind not in "fiuV" or w.size != max(w.shape, default=1):
            return None
        return np.asarray(w, np.float64).ravel()

    def zero_slices(self, node: Node, name: str, axis: int) -> Keep | None:
        """Where a weight of the node is zero along an axis, of integers equal to their zero point, bool `(size,)`; None
        where it is not known."""
        rank = len(self.c.axes(name))
        w = numbers(node, name, self.weights) if self.c.is_constant(name) and -rank <= axis < rank else None
        if w is None or w.ndim < rank:
            return None
        return np.asarray(~w.any(tuple(k for k in range(w.ndim) if k != axis % rank)))

    def zero_of_output(self, node: Node) -> float | None:
        """What zero is in the output of the node: of integers its zero point; None where it is not known."""
        types = self.c.shapes.types
        kind = types.get(node.key, 1)
        if kind not in BYTES:
            return 0.0
        alike = [i for i in node.inputs if i and types.get(i) == kind]
        zero = self.vector(alike[-1]) if alike else None  # the last of them
        return float(zero[0]) if zero is not None and zero.size == 1 else None

    # the walk

    def _load(self, name: str) -> None:
        """Constants along the axes of a constant tensor."""
        if name in self._loaded:
            return
        self._loaded.add(name)
        axes = self.c.axes(name)
        w = self.weights(name) if any(self._is_asked(ids) for ids in axes) else None
        if w is None or w.dtype.kind not in "fiuV" or not w.size:
            return
        for k, ids in enumerate(axes):
            if ids is not None and self._is_asked(ids):
                rest = tuple(j for j in range(w.ndim) if j != k)
                first = w[tuple(slice(None) if j == k else slice(1) for j in range(w.ndim))]
                self._set(ids, np.where((w == first).all(rest), first.ravel().astype(np.float64), np.nan))

    def _set(self, ids: Axis, constant: Float | None) -> None:
        if ids is None or constant is None:
            return
        fresh = self.asked[ids] & ~np.isnan(np.broadcast_to(constant, ids.shape))
        self.value[ids[fresh]] = np.broadcast_to(constant, ids.shape)[fresh]

    def _step(self, node: Node) -> None:
        trait = TRAITS.get(node.op)
        if self.c.is_constant(node.key):
            return
        if trait is not None and trait.recurs:
            self._recurrent(node, trait)
        elif trait is not None and trait.weights and trait.affine:
            self._layer(node, trait)
        elif node.op in EXPERTS:
            self._experts(node)
        elif node.op in ("BatchNormalization", "InstanceNormalization"):
            self._normalised(node)
        elif node.op in QUANTIZES or node.op in DEQUANTIZES:
            self._quantized(node)
        elif node.op in UNARY or node.op in BROADCAST:
            self._elementwise(node)
        elif node.op in VIEWS:
            self._viewed(node)
        elif node.op == "Einsum":
            self._einsum(node)
        elif node.op in SCATTERS:
            self._scattered(node)
        elif node.op in MOVING or node.op in ZEROS:
            self._moved(node)

    def _layer(self, node: Node, trait: Trait) -> None:
        """A layer makes its bias where the rows of its weight are zero, or where a depthwise one reads zeros."""
        y = self.c.axes(node.key)
        ids = y[trait.channels(node, len(y))] if y else None
        if ids is not None and self._is_asked(ids):
            self._set(ids, self._made(node, trait, ids.size) if self.guess is None else self.guess(self, node))
        if node.op in PRODUCTS:
            self._tied(node, node.inputs[:2], each=True)

    def _made(self, node: Node, trait: Trait, size: int) -> Float:
        made: Float = np.full(size, np.nan)
        bias, activation = self._bias(node, trait, size), node.attr("activation", "")
        if bias is None or activation not in ("", "Relu"):
            return made
        rows = self.zero_slices(node, node.input(trait.weight), trait.axes(node, trait.weight)[1])
        if rows is not None and rows.size == size:
            made = np.where(rows, bias, np.nan)
        if trait.kernel:
            self._depthwise(node, trait, made, bias)
        return np.maximum(made, 0.0) if activation == "Relu" else made

    def _bias(self, node: Node, trait: Trait, size: int) -> Float | None:
        """What a layer adds to its outputs, before an activation, `(size,)`; None where it is not one number each."""
        zero = self.zero_of_output(node)
        if zero is None or any(node.input(i) for i in trait.added):
            return None
        bias: Float = np.full(size, zero)
        if trait.bias is not None and node.input(trait.bias):
            b = self.weights(node.input(trait.bias))
            if b is None or b.dtype.kind not in "fiuV":
                return None
            rows = np.asarray(b, np.float64).reshape(-1, b.shape[-1] if b.ndim else 1)
            if b.dtype.kind in "iu":  # in steps of its own: of these zero alone is known
                rows = np.where((rows == 0).all(0, keepdims=True), 0.0, np.nan)
            if (rows[1:] != rows[:-1]).any() or rows.shape[1] not in (1, size):
                return None
            bias = bias + rows[0] * float(node.attr("beta", 1.0))
        return bias

    def _depthwise(self, node: Node, trait: Trait, made: Float, bias: Float) -> None:
        """A depthwise convolution makes its bias of zeros, of other constants these times the sum of its taps."""
        name, zero = node.input(trait.source), trait.zero_of_source(node)
        source = self.of(name, trait.channels(node, len(self.c.axes(name))))
        nothing = self.vector(zero) if zero else np.zeros(1)
        if source is None or nothing is None or nothing.size != 1 or node.attr("group", 1) != source.size:
            return
        source = np.repeat(source, made.size // source.size)
        made[source == nothing] = bias[source == nothing]
        known = np.isnan(made) & ~np.isnan(source)
        w = self.weights(node.input(trait.weight)) if known.any() and trait.rows == "patches" else None
        if w is not None and not padded(node):
            made[known] = (np.asarray(w, np.float64).reshape(made.size, -1).sum(1) * source + bias)[known]

    def _experts(self, node: Node) -> None:
        """A mixture of experts makes zero where its last layer does, in all of them: what each counts is not known."""
        weight, _, bias, _ = EXPERTS[node.op][1]
        zero = self.zero_slices(node, node.input(weight), 1)
        added = self.zero_slices(node, node.input(bias), -1) if node.input(bias) else np.ones(1, bool)
        if zero is not None and added is not None:
            self._set(self.c.axes(node.key)[-1], np.where(zero & added, 0.0, np.nan))

    def _recurrent(self, node: Node, trait: Trait) -> None:
        """A unit whose gates are all made of nothing, and that starts at zero, stays there: tanh and relu keep it."""
        weight = node.input(trait.weight)
        size = (self.c.shape(weight) or (0, 0))[1] or 0
        if node.attr("activations") is not None or node.attr("hidden_size", 0) * trait.gates != size:
            return
        hidden = size // trait.gates
        empty = np.ones(hidden, bool)
        for name in filter(None, (node.input(i) for i in (*trait.weights, trait.bias or 0))):
            rows = self.zero_slices(node, name, 1)
            empty &= False if rows is None else rows.reshape(-1, hidden).all(0)
        for state in filter(None, (node.input(5), node.input(6))):
            start = self.of(state, -1)
            empty &= False if start is None else start == 0
        for o in filter(None, node.outputs):
            self._set(self.c.axes(o)[-1], np.where(empty, 0.0, np.nan))

    def _normalised(self, node: Node) -> None:
        """Recorded statistics map a constant; those of the channel itself make it zero before the shift."""
        source, y = self.of(node.input(0), 1), self.c.axes(node.key)
        parts = [self.vector(i) for i in node.inputs[1:5]]
        if source is None or any(p is None for p in parts) or node.attr("training_mode", 0):
            return
        scale, shift = (np.asarray(p, np.float64) for p in parts[:2])
        if node.op == "InstanceNormalization":
            constant = np.isfinite(source) | (scale == 0) | (self.guess is not None)
            self._set(y[1], np.where(constant, shift, np.nan))
            return
        mean, variance = (np.asarray(p, np.float64) for p in parts[2:])
        factor = batchnorm_factor(node, scale, variance)
        self._set(y[1], np.where(factor == 0, shift, (source - mean) * factor + shift))

    def _quantized(self, node: Node) -> None:
        """Zero becomes the zero point, and the zero point zero."""
        zero, scale = self.vector(node.input(2)), self.vector(node.input(1))
        if node.input(2) and zero is None:
            return
        zero = np.zeros(1) if zero is None else zero
        for k, ids in enumerate(self.c.axes(node.key)):
            x = self.of(node.input(0), k)
            if ids is None or x is None or zero.size not in (1, x.size):
                continue
            if node.op in QUANTIZES:
                self._set(ids, np.where(x == 0, zero, np.nan))
            else:
                exact = scale if scale is not None and scale.size in (1, x.size) else np.full(1, np.nan)
                self._set(ids, np.where(x == zero, 0.0, (x - zero) * exact))

    def _elementwise(self, node: Node) -> None:
        """Apply the operator to the constants of its inputs."""
        y = self.c.axes(node.key)
        for axis, ids in enumerate(y):
            if ids is None or not self._is_asked(ids):
                continue
            columns = [self._column(i, axis - len(y), ids.size) for i in node.inputs if i]
            result: Float = np.full(ids.size, np.nan)
            known = ~np.isnan(columns).any(0)
            if known.any():
                result[known] = self._run(node, [column[known] for column in columns])
            zeros = columns if node.op == "Mul" else columns[:1] if node.op in ("Div", "PRelu") else []
            for column in zeros:
                result[column == 0] = 0.0
            self._set(ids, result)

    def _column(self, name: str, axis: int, size: int) -> Float:
        """Constants of one input along an axis counted from the right, `(size,)`; NaN where it varies."""
        if self.c.is_constant(name):
            single = self.vector(name)
            if single is not None and single.size == 1:
                return np.full(size, single[0])
        column = self.of(name, axis)
        return np.full(size, np.nan) if column is None else column

    def _run(self, node: Node, columns: list[Float]) -> Float:
        """The operator on vectors, NaN where it does not give finite numbers."""
        nothing: Float = np.full(len(columns[0]), np.nan)
        names = [i for i in node.inputs if i]
        types = [self.c.shapes.types.get(name, 1) for name in (*names, node.key)]
        if node.op in ("Cast", "CastLike"):
            return columns[0] if all(t in FLOAT_TYPES for t in types) else np.where(columns[0] == 0, 0.0, np.nan)
        if not all(t in FLOAT_TYPES for t in types):
            return nothing
        feeds: dict[str, Array] = {n: np.asarray(x, np.float32) for n, x in zip(names, columns, strict=True)}
        scalars = {n for n in names if not self.c.axes(n)}  # bounds of Clip
        try:
            result = run_node(
                node, {n: x[0] if n in scalars else x for n, x in feeds.items()}, self.analysis.model.proto
            )[0]
        except ORT_ERRORS:  # types that the operator does not take
            return nothing
        result = np.broadcast_to(np.asarray(result, np.float64), nothing.shape)
        return np.where(np.isfinite(result), result, np.nan)

    def _viewed(self, node: Node) -> None:
        """An axis is split into factors and merged of factors: an index of a factor is constant where all of it is,
        and an index of a product where one of its factors is."""
        x, y = node.input(0), node.output(0)
        xs, ys = self.c.shape(x), self.c.shape(y)
        if not self.c.complete(x) or not self.c.complete(y) or 0 in xs:  # type: ignore[operator]
            return
        for i, j in axis_segments(xs, ys):  # type: ignore[arg-type]
            xa, ya = [k for k in i if xs[k] > 1], [k for k in j if ys[k] > 1]  # type: ignore[index, operator]
            sizes = common_factors([xs[k] for k in xa], [ys[k] for k in ya])  # type: ignore[index, misc]
            if sizes is None:
                continue
            parts: list[Float] = []
            for k in xa:
                whole = self.of(x, k)
                whole = np.full(xs[k], np.nan) if whole is None else whole  # type: ignore[index]
                parts += split(whole, sizes[len(parts) :])
            at = 0
            for k in ya:
                merged = parts[at]
                at += 1
                while merged.size < ys[k]:  # type: ignore[index, operator]
                    outer, inner = np.broadcast_arrays(merged[:, None], parts[at])
                    merged = np.where(np.isnan(outer), inner, outer).ravel()
                    at += 1
                self._set(self.c.axes(y)[k], merged)

    def _einsum(self, node: Node) -> None:
        """Zero along a label of any operand is zero along it in the output."""
        terms, right = einsum_labels(node.attr("equation", ""), [len(self.c.axes(i)) for i in node.inputs])
        y = self.c.axes(node.key)
        for name, term in zip(node.inputs, terms, strict=True):
            for k, label in enumerate(term):
                zero = self.of(name, k) if label in right and len(right) == len(y) else None
                ids = None if zero is None else y[right.index(label)]
                if zero is not None and ids is not None and ids.size == zero.size:
                    self._set(ids, np.where(zero == 0, 0.0, np.nan))

    def _scattered(self, node: Node) -> None:
        """Zeros among zeros stay zeros, along axes that the indices do not address."""
        y, indices = self.c.axes(node.key), self.c.shape(node.input(1)) or ()
        for k, ids in enumerate(y):
            if node.op == "ScatterND":
                free, axis = bool(indices) and k >= (indices[-1] or len(y)), k - len(y)
            else:
                free, axis = k != node.attr("axis", 0) % len(y), k
            below, above = (self.of(node.input(i), axis) if free else None for i in (0, 2))
            if below is not None and above is not None and below.size >= above.size:
                zero = below == 0
                zero[: above.size] &= above == 0
                self._set(ids, np.where(zero, 0.0, np.nan))

    def _moved(self, node: Node) -> None:
        if node.op == "Resize" and node.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize":
            return
        if node.op == "Pad" and not self._pads_zeros(node):
            return
        along = self.weights(node.input(1)) if node.op == "CumSum" else None
        if node.op == "CumSum" and along is None:
            return
        every = node.op in MOVING or (self.guess is not None and node.op in GUESSED)
        inputs = node.inputs if node.op == "Concat" else node.inputs[:1]
        self._tied(node, inputs, zeros=not every, but=None if along is None else int(along.ravel()[0]))

    def _pads_zeros(self, node: Node) -> bool:
        fill = self.vector(node.input(2)) if node.input(2) else np.full(1, float(node.attr("value", 0.0)))
        return node.attr("mode", "constant") == "constant" and fill is not None and not fill.any()

    def _tied(
        self, node: Node, inputs: list[str], *, zeros: bool = False, each: bool = False, but: int | None = None
    ) -> None:
        """Constants go from inputs to the first output, of Split to all, by the ties of the node: where all that meet
        in an index are the same.

        zeros: only zeros do; each: a zero in one of them is enough; but: an axis of the output along which none do.
        """
        if node.key not in self._ties:
            return
        role = np.zeros(self.c.size, np.int8)
        outputs = node.outputs if node.op == "Split" else node.outputs[:1]  # else they are indices, or a mask
        for t, names in ((1, inputs), (2, outputs)):
            for name in filter(None, names):
                if t == 1 and self.c.is_constant(name):
                    self._load(name)
                for ids in self.c.axes(name):
                    if ids is not None:
                        role[ids] = t
        y = self.c.axes(node.key)
        if but is not None and y[but] is not None:
            role[y[but]] = 0
        a, b = self._ties[node.key]
        source, target = np.concatenate([a, b]), np.concatenate([b, a])
        pairs = (role[source] == 1) & (role[target] == 2) & self.asked[target]
        source, target = source[pairs], target[pairs]
        found = self.value[source]
        if each:
            self.value[target[found == 0]] = 0.0
            return
        found = np.where(found == 0, 0.0, np.nan) if zeros else found
        low, high = np.full(self.c.size, np.inf), np.full(self.c.size, -np.inf)
        with np.errstate(invalid="ignore"):
            np.minimum.at(low, target, found)
            np.maximum.at(high, target, found)
        same = np.unique(target[low[target] == high[target]])
        self.value[same] = low[same]


def split(whole: Float, sizes: list[int]) -> list[Float]:
    """Constants along the first factors of an axis, whose sizes are the first that make it up."""
    count = 1
    while int(np.prod(sizes[:count])) < whole.size:
        count += 1
    grid = whole.reshape(sizes[:count])
    out = []
    for k in range(count):
        rows = np.moveaxis(grid, k, 0).reshape(sizes[k], -1)
        out.append(np.where((rows == rows[:, :1]).all(1), rows[:, 0], np.nan))
    return out


def padded(node: Node) -> bool:
    """Whether a convolution may read zeros around its input."""
    return any(node.attr("pads", [])) or node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


__all__ = ["Guess", "Known", "padded"]
