"""Layers with columns of zeros become smaller dense layers, in plain ONNX operators.

A column of W `[M, K]` is what all outputs do with one entry of the reduction: an input of a MatMul or Gemm, an input
channel of a Conv at a kernel position. Where it is zero, nothing of the input is needed there, so the layer is a
product of fewer columns with what is left of the im2col matrix ("Fast ConvNets using group-wise brain damage",
Lebedev and Lempitsky 2016). In goes a model whose layers have such columns (`--pattern column`); out comes a copy that
computes the same and runs wherever ONNX does. Each layer takes the cheaper of two forms:

    smaller   Gather of the inputs that are read -> the same operator; a Conv reads a smaller window, its pads adapted
    columns   Pad -> for every kernel position: Gather of its channels, Slice -> Concat -> a 1x1 Conv

Columns are kept in multiples of ALIGN, some of them zero, as onnxruntime's blocked convolutions want them. What stays
dense is said in notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnxprune.formats.format import Format, Plain, no_operator
from onnxprune.graph.arrays import Array
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.links import read_counts
from onnxprune.graph.node import Node, opsets
from onnxprune.graph.protos import place
from onnxprune.graph.sizes import Sizes
from onnxprune.layers.layer import Layer, node_names
from onnxprune.solvers.patterns import Mask

ALIGN = 8  # channels of a block of onnxruntime's convolutions, with AVX2
COPY = 20.0  # multiplications in the time in which a float is copied in a run of many
STEP = 4.0  # copies in the time in which a Slice copies a float, where it leaves out every other
PICK = 300.0  # multiplications in the time in which a Gather copies a float by itself
NODE = 8e4  # the same of a node that has next to nothing to do
MIN_OPSET = 11  # Pad takes its pads as an input; from 10 on Slice does
INT_MAX = np.iinfo(np.int64).max


def shrink(
    model: Model,
    layers: Sequence[Layer],
    *,
    input_shape: Mapping[str, tuple[int, ...]] | None = None,
    least: float = 1.0,
) -> tuple[Model, list[str], list[str]]:
    """A copy of the model in which those layers are smaller, the keys of the nodes that are, and notes on the others.

    layers: of `sparse_layers(model)`, those to be rewritten; input_shape: input name -> concrete shape, for the
    shape inference that SAME padding needs; least: estimated speed-up (dense over smaller) that a layer must exceed.
    The last node of a layer keeps its name and its output.
    """
    planner = _Planner(model, layers, input_shape)
    builder = _Builder(model)
    done, notes = [], []
    for layer in planner.ordered:
        plan = planner.plan(layer)
        if isinstance(plan, str):
            notes.append(f"{layer.name}: stays dense: {plan}")
        elif plan.speedup <= least:
            notes.append(f"{layer.name}: stays dense: estimated to run {plan.speedup:.2f} times as fast without zeros")
        else:
            builder.add(plan, planner.index[layer.name])
            done.append(layer.name)
    return builder.finish() if done else builder.edit.model, done, notes


def speedups(
    model: Model, layers: Sequence[Layer], *, input_shape: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, float]:
    """Dense over smaller time of each layer that can be rewritten, roughly, from what is multiplied and copied."""
    planner = _Planner(model, layers, input_shape)
    plans = [planner.plan(layer) for layer in planner.ordered]
    return {plan.layer.name: plan.speedup for plan in plans if isinstance(plan, _Plan)}


def _write(model: Model, layers: Sequence[Layer], least: float) -> tuple[Model, list[str], list[str]]:
    return shrink(model, layers, least=least)


COLUMNS = Format(
    "columns", "smaller dense layers, with --pattern column", pattern="column",
    needs="--format columns leaves out whole columns of weights; make some with --pattern column",
    plain=Plain(write=_write, reason="no faster with fewer columns", gain="leaving out columns"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Window:
    """Attributes of a Conv, a number per spatial axis; pads may be negative: so much is cut off."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a layer becomes.

    kept: of a matrix, `[K]`; of a Conv, `[group, C/group, *kernel]`, as many in every group, and in the form `smaller`
    all combinations of some channels and some positions; window: of the Conv as it is.
    """

    layer: Layer
    form: str
    kept: Mask
    speedup: float
    axis: int = -1  # of a matrix's input, along which it is gathered
    window: _Window | None = None


class _Planner:
    """Chooses a form for each layer."""

    def __init__(
        self, model: Model, layers: Sequence[Layer], input_shape: Mapping[str, tuple[int, ...]] | None
    ) -> None:
        self.model = model
        self.opset = opsets(model.proto).get("", 1)
        self.index = {key: i for i, key in enumerate(node_names(model.proto))}
        self.ordered = sorted(layers, key=lambda layer: layer.index)
        self.sizes = Sizes(model, input_shape)
        self.reads = read_counts(model.proto.graph)

    def plan(self, layer: Layer) -> _Plan | str:
        """What a layer becomes, or why it stays dense."""
        reason = no_operator(layer)
        if reason:
            return reason
        node = Node(self.model.proto.graph.node[self.index[layer.name]], self.opset)
        if self.opset < 7:
            return f"opset {self.opset} is below 7, and broadcasts by other rules"
        if self.reads[layer.weight] > 1:
            return f"its weight {layer.weight} is shared"
        w = self.model.weights[layer.weight]
        conv = layer.op == "Conv"
        kept = _any(w.reshape(layer.group, -1, *layer.shape[1:]), 1) if conv else _any(layer.matrix(w), 0)
        if kept.all():
            return "it has no column of zeros"
        if not kept.any():
            return "all its weights are zero"
        return self.conv(layer, node, kept) if conv else self.matrix(layer, node, kept)

    def matrix(self, layer: Layer, node: Node, kept: Mask) -> _Plan | str:
        right = not layer.left
        if layer.op == "Gemm":
            axis = int(right != bool(node.attr("transA" if right else "transB", 0)))
        elif right:
            axis = -1
        else:
            rank = self.sizes.rank(node.input(1))
            if rank is None:
                return "the rank of its input is unknown"
            axis = -2 if rank > 1 else -1
        m, k, n = layer.shape[0], kept.size, int(kept.sum())
        last = axis == -1 or (layer.op == "Gemm" and axis == 1)
        cost = m * (n + COPY) + (PICK if last else COPY) * n + NODE * self.per_output(layer, node)
        return _Plan(layer, "smaller", kept, m * (k + COPY) / cost, axis)

    def conv(self, layer: Layer, node: Node, kept: Mask) -> _Plan | str:
        window = self.window(layer, node)
        if isinstance(window, str):
            return window
        m, area = layer.shape[0], float(np.prod(window.strides))  # inputs per channel and output position
        dense, fixed = m * (kept[0].size + COPY), NODE * self.per_output(layer, node)
        plans, old = [], False
        box = _box(kept)
        if not box.all():
            _, before, after = _cut(box, window)
            cuts, channels = min(before + after) < 0, _channels(box)
            cost = m * (box[0].sum() + COPY) + (cuts + (not channels.all())) * (fixed + COPY * area * channels.sum())
            old = cuts and self.opset < MIN_OPSET
            if not old:
                plans.append(_Plan(layer, "smaller", box, dense / cost, window=window))
        level = _level(kept)
        if level[0, 0].size > 1 and not level.all():
            each, every = level.sum((0, 1)), _channels(np.ones_like(level)).sum()  # channels of a position, of all
            copied = sum(min(_orders(n, every, window)) for n in each.flat) + (1 + (layer.group > 1)) * each.sum()
            cost = m * (level[0].sum() + COPY) + COPY * copied + fixed * (2 * np.count_nonzero(each) + 1)
            if max(window.before + window.after) > 0:
                cost += fixed + COPY * area * every
            old |= self.opset < MIN_OPSET
            if self.opset >= MIN_OPSET:
                plans.append(_Plan(layer, "columns", level, dense / cost, window=window))
        if not plans and old:
            return f"opset {self.opset} is below {MIN_OPSET}, and its Pad and Slice take no inputs"
        if not plans:
            return "its columns of zeros are too few to leave out"
        return max(plans, key=lambda plan: plan.speedup)

    def window(self, layer: Layer, node: Node) -> _Window | str:
        """Attributes of a Conv, automatic padding resolved, or why that cannot be done."""
        kernel, n = layer.shape[2:], len(layer.shape) - 2
        strides = tuple(node.attr("strides", [1] * n))
        dilations = tuple(node.attr("dilations", [1] * n))
        pads = tuple(node.attr("pads", [0] * 2 * n))
        if any(len(v) != n or min(v) < 1 for v in (strides, dilations)) or len(pads) != 2 * n or min(pads) < 0:
            return "its strides, pads or dilations are negative, or not as many as it has axes"
        auto = node.attr("auto_pad", "NOTSET")
        if auto == "VALID":
            pads = (0,) * 2 * n
        elif auto != "NOTSET":
            shape = self.sizes.shape(node.input(0))
            sizes = shape[2:] if shape is not None and len(shape) == n + 2 else (None,) * n
            total = []
            for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
                if auto not in ("SAME_UPPER", "SAME_LOWER") or (size is None and s > 1):
                    return f"auto_pad {auto} pads by what is known only at run time"
                past = 0 if size is None else (-(-size // s) - 1) * s + 1 - size
                total.append(max(0, past + (k - 1) * d))
            small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
            pads = small + large if auto == "SAME_UPPER" else large + small
        return _Window(strides, dilations, pads[:n], pads[n:])

    def per_output(self, layer: Layer, node: Node) -> float:
        """One over the columns of the product; a batch of unknown size counts as 1, other unknown sizes as many."""
        shape = self.sizes.shape(node.outputs[0])
        if shape is None or None in shape[1:]:
            return 0.0
        return layer.shape[0] / max(1.0, float(np.prod([size or 1 for size in shape])))


def _orders(count: int, every: int, window: _Window) -> tuple[float, float]:
    """Copies per output position that take so many of all channels: Gather before Slice, and Slice before Gather."""
    area, step = float(np.prod(window.strides)), STEP if window.strides[-1] > 1 else 1.0
    return count * (area + step), every * step + count * (count < every)


def _any(array: Array, *axes: int) -> Mask:
    """Where there is anything but zeros along those axes."""
    return np.asarray(array.any(axes))


def _channels(kept: Mask) -> Mask:
    """`[group, C/group]` from `[group, C/group, *kernel]`."""
    return _any(kept, *range(2, kept.ndim))


def _positions(kept: Mask) -> Mask:
    """`[*kernel]` from `[group, C/group, *kernel]`."""
    return _any(kept, 0, 1)


def _level(kept: Mask) -> Mask:
    """The mask with as many columns in every group, a multiple of ALIGN if there are so many.

    Columns of zeros come in, where something is kept at their position as far as that suffices.
    """
    flat = kept.reshape(len(kept), -1)
    count = min(-(-int(flat.sum(1).max()) // ALIGN) * ALIGN, flat.shape[1])
    rank = np.where(kept, 0, np.where(_positions(kept), 1, 2)).reshape(flat.shape)
    out = np.zeros_like(flat)
    np.put_along_axis(out, np.argsort(rank, axis=1, kind="stable")[:, :count], True, axis=1)
    return out.reshape(kept.shape)


def _box(kept: Mask) -> Mask:
    """The least `[group, C/group, *kernel]` around what is kept that a Conv can read: channels, as many in every group,
    by positions at equal distances on every axis."""
    spatial = kept.ndim - 2
    out = _level(_channels(kept)).reshape(kept.shape[:2] + (1,) * spatial)
    for axis, length in enumerate(kept.shape[2:], 2):
        line = np.zeros(length, bool)
        line[_spaced(kept, axis)] = True
        out = out & line.reshape(-1, *[1] * (spatial + 1 - axis))
    return out


def _spaced(kept: Mask, axis: int) -> slice:
    """Positions on an axis, at equal distances, that hold all that is kept."""
    at = np.flatnonzero(_any(kept, *(k for k in range(kept.ndim) if k != axis)))
    return slice(int(at[0]), int(at[-1]) + 1, int(np.gcd.reduce(np.diff(at))) if len(at) > 1 else 1)


def _cut(box: Mask, window: _Window) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Dilations and pads before and after of a Conv that reads only the box.

    The middle of three positions, with a pad of 1 on both sides, needs none:

    >>> _cut(np.array([[[False, True, False]]]), _Window((1,), (1,), (1,), (1,)))
    ((1,), (0,), (0,))
    """
    at = [_spaced(box, axis) for axis in range(2, box.ndim)]
    rows = list(zip(at, box.shape[2:], window.dilations, window.before, window.after, strict=True))
    return (
        tuple(s.step * d for s, _, d, _, _ in rows),
        tuple(pad - s.start * d for s, _, d, pad, _ in rows),
        tuple(pad - (k - s.stop) * d for s, k, d, _, pad in rows),
    )


class _Builder:
    """Puts planned layers into a copy of the model; layers come in the order of their nodes."""

    def __init__(self, model: Model) -> None:
        self.edit = Edit(model)
        self.nodes = [[node] for node in self.edit.graph.node]
        self.unread: set[str] = set()
        self.known: dict[Any, str] = {}  # constants, and what was computed already, which layers share

    def add(self, plan: _Plan, i: int) -> None:
        """Replace node i."""
        layer, proto = plan.layer, self.nodes[i][-1]
        w = self.edit.model.weights[layer.weight]
        slot = 1 if not layer.left else 0
        x, new = proto.input[1 - slot], NodeProto()
        new.CopyFrom(proto)
        if layer.op != "Conv":
            x = self.gather(i, layer, x, np.flatnonzero(plan.kept), plan.axis)
            w = np.compress(plan.kept, w, layer.axes[0])
        else:
            build = self.smaller if plan.form == "smaller" else self.columns
            x, w, attributes = build(plan, i, x, w)
            kept = [a for a in proto.attribute if a.name == "group"]
            del new.attribute[:]
            new.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])
        new.input[1 - slot] = x
        new.input[slot] = self.edit.constant(f"{layer.weight}_kept", w)
        self.unread.add(layer.weight)
        self.nodes[i][-1] = new

    def finish(self) -> Model:
        place(self.edit.graph, [node for group in self.nodes for node in group])
        self.edit.drop(self.unread)
        return self.edit.model

    def smaller(self, plan: _Plan, i: int, x: str, w: Array) -> tuple[str, Array, dict[str, Any]]:
        layer, box, window = plan.layer, plan.kept, plan.window
        assert window is not None
        dilations, before, after = _cut(box, window)
        channels = _channels(box)
        x = self.gather(i, layer, x, np.flatnonzero(channels), 1, channels.size)
        x = self.slice(i, layer, x, [max(0, -b) for b in before], [min(0, a) for a in after], [1] * len(after))
        grouped = w.reshape(layer.group, -1, *w.shape[1:])
        picked = np.concatenate([part[:, picked] for part, picked in zip(grouped, channels, strict=True)])
        picked = picked[(slice(None), slice(None), *(_spaced(box, axis) for axis in range(2, box.ndim)))]
        return x, picked, {
            "kernel_shape": picked.shape[2:], "strides": window.strides, "dilations": dilations,
            "pads": [max(0, p) for p in before + after],
        }  # fmt: skip

    def columns(self, plan: _Plan, i: int, x: str, w: Array) -> tuple[str, Array, dict[str, Any]]:
        layer, kept, window = plan.layer, plan.kept, plan.window
        assert window is not None
        g, c, *kernel = kept.shape
        if max(window.before + window.after) > 0:
            pads = self.ints(f"{layer.name}_pads", [0, 0, *window.before, 0, 0, *window.after])
            x = self.node(i, "Pad", [x, pads], f"{layer.name}_pad")
        parts, order = [], []
        for position in zip(*np.nonzero(_positions(kept)), strict=True):
            channels = np.flatnonzero(kept[(slice(None), slice(None), *position)])
            starts = [int(p) * d for p, d in zip(position, window.dilations, strict=True)]
            rows = zip(starts, kernel, window.dilations, strict=True)
            ends = [start - (k - 1) * d for start, k, d in rows]
            first, last = _orders(len(channels), g * c, window)
            if first < last:
                part = self.gather(i, layer, x, channels, 1)
                parts.append(self.slice(i, layer, part, starts, ends, window.strides))
            else:
                part = self.slice(i, layer, x, starts, ends, window.strides)
                parts.append(self.gather(i, layer, part, channels, 1, g * c))
            at = int(np.ravel_multi_index(position, tuple(kernel)))
            order += [(*divmod(int(channel), c), at) for channel in channels]
        out = parts[0] if len(parts) == 1 else self.node(i, "Concat", parts, f"{layer.name}_concat", axis=1)
        group, channel, at = np.array(order).T
        if g > 1:  # Concat leaves them by position, a Conv takes them by group
            by_group = np.argsort(group, kind="stable")
            out = self.gather(i, layer, out, by_group, 1, 0 if np.any(np.diff(by_group) < 0) else len(by_group))
            group, channel, at = group[by_group], channel[by_group], at[by_group]
        flat = w.reshape(g, -1, c, int(np.prod(kernel)))
        picked = np.concatenate([flat[k][:, channel[group == k], at[group == k]] for k in range(g)])
        ones = [1] * len(kernel)
        return out, picked.reshape(*picked.shape, *ones), {"kernel_shape": ones}

    def gather(self, i: int, layer: Layer, x: str, indices: Array, axis: int, size: int = 0) -> str:
        """Those of so many entries along an axis; x itself where that is all."""
        if len(indices) == size:
            return x
        at = self.ints(f"{layer.name}_indices", indices)
        return self.node(i, "Gather", [x, at], f"{layer.name}_gather", axis=axis)

    def slice(
        self, i: int, layer: Layer, x: str, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]
    ) -> str:
        """A part of every spatial axis; ends: 0 or negative, from the end; x itself where that is all."""
        rows = zip(starts, ends, steps, strict=True)
        some = [(s, e or INT_MAX, k, t) for k, (s, e, t) in enumerate(rows, 2) if (s, e, t) != (0, 0, 1)]
        if not some:
            return x
        names = ("starts", "ends", "axes", "steps")
        values = [self.ints(f"{layer.name}_{n}", v) for n, v in zip(names, zip(*some, strict=True), strict=True)]
        return self.node(i, "Slice", [x, *values], f"{layer.name}_slice")

    def ints(self, base: str, values: Sequence[int] | Array) -> str:
        """A constant, int64."""
        array = np.asarray(values, np.int64)
        key = array.tobytes()
        if key not in self.known:
            self.known[key] = self.edit.constant(base, array)
        return self.known[key]

    def node(self, i: int, op: str, inputs: Sequence[str], base: str, **attributes: int) -> str:
        """The output of a node that comes before node i, or of one that computes the same already."""
        key = op, *inputs, *attributes.items()
        if key not in self.known:
            self.known[key] = self.edit.fresh(base)
            proto = helper.make_node(op, inputs, [self.known[key]], name=self.edit.fresh_node(base))
            proto.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
            self.nodes[i].insert(-1, proto)
        return self.known[key]
