"""Operators that move elements and compute nothing: the gradient goes the same way back."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnxprune.gradient.backward import LAST, Backward
from onnxprune.gradient.registry import Gradients, NoRule, gradient
from onnxprune.gradient.through import through
from onnxprune.graph.node import Node

END = 10**9  # what exporters write for the end of an axis, or more


@gradient("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy in the shape of the input"""
    assert dy[0]
    return [b.reshape_like(dy[0], n.input(0))]


@gradient("Transpose")
def transpose(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy with its axes back in order"""
    assert dy[0]
    perm = n.attr("perm", list(range(b.rank(n.input(0))))[::-1])
    return [b.transpose(dy[0], np.argsort(perm).tolist())]


@gradient("Expand")
def expand(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, summed over the axes that were broadcast"""
    assert dy[0]
    return [b.unbroadcast(dy[0], n.input(0))]


@gradient("Concat")
def concat(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """each input's slice of dy"""
    assert dy[0]
    axis = n.attr("axis") % b.rank(n.output(0))
    out: Gradients = []
    start = b.constant([0])
    for i, name in enumerate(n.inputs):  # sums of sizes, that of dynamic axes at run time
        end = b.op("Add", start, b.size(name, [axis]))
        out.append(b.slice(dy[0], start, end, [axis]) if b.needs(i) else None)
        start = end
    return out


@gradient("Pad")
def pad(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy without what was added"""
    assert dy[0]
    if n.attr("mode", "constant") != "constant":
        return through(b, n, dy, _mirrored)
    out: Gradients = [None] * len(n.inputs)
    rank = b.rank(n.input(0))
    heads, tails = _pads(b, n)
    cut = [k for k in range(rank) if heads[k] > 0 or tails[k] > 0]
    ends = [-tails[k] if tails[k] > 0 else LAST for k in cut]
    g = b.slice(dy[0], [max(heads[k], 0) for k in cut], ends, cut)
    if len(n.inputs) > 2 and b.needs(2):
        out[2] = b.reshape_like(b.op("Sub", b.sum(dy[0], range(rank)), b.sum(g, range(rank))), n.input(2))
    if b.needs(0):
        out[0] = b.pad(g, [max(-h, 0) for h in heads], [max(-t, 0) for t in tails])
    return out


def _pads(b: Backward, n: Node) -> tuple[list[int], list[int]]:
    """What a Pad adds before and after every axis."""
    rank, pads = b.rank(n.input(0)), b.ints(n, "pads", 1)
    axes = [k % rank for k in b.ints(n, "axes", 3, range(rank))]
    heads, tails = [0] * rank, [0] * rank
    for k, axis in enumerate(axes):
        heads[axis], tails[axis] = pads[k], pads[k + len(axes)]
    return heads, tails


def _mirrored(b: Backward, n: Node) -> list[str]:
    """A Pad that repeats elements, as a Gather along every axis that it pads."""
    x, mode = n.input(0), n.attr("mode")
    for axis, (head, tail) in enumerate(zip(*_pads(b, n), strict=True)):
        size = b.shape(x)[axis]
        if not head and not tail:
            continue
        if size is None:
            raise NoRule(f"mode {mode} over an axis of unknown size")
        at = np.pad(np.arange(size), (max(head, 0), max(tail, 0)), mode=mode)
        x = b.op("Gather", x, b.constant(at[max(-head, 0) : len(at) + min(tail, 0)]), axis=axis)
    return [x]


@gradient("Slice")
def slice_(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy in its place among zeros"""
    assert dy[0]
    x, g = n.input(0), dy[0]
    sizes = b.shape(x)
    count = int(b.shape(n.input(1))[0] or 0)
    axes, steps = b.ints(n, "axes", 3, range(count)), b.ints(n, "steps", 4, [1] * count)
    starts, ends = b.value(n.input(1)), b.value(n.input(2))
    for k, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        axis, size = axis % len(sizes), sizes[axis]
        if size is not None and starts is not None and ends is not None:
            start, end = int(starts[k]), int(ends[k])
            at = range(size)[slice(start, None if end < -size and step < 0 else end, step)]
            g = back_to(b, g, axis, at, size)
        elif starts is not None and ends is not None and starts[k] == 0 and step == 1 and ends[k] >= END:
            continue  # the whole axis
        else:
            both = (b.op("Cast", n.input(i), to=TensorProto.INT64) for i in (1, 2))
            first, last = (b.slice(v, [k], [k + 1], [0]) for v in both)
            g = _among_zeros(b, g, x, axis, first, last, step)
    return [g, None, None, None, None][: len(n.inputs)]


def back_to(b: Backward, g: str, axis: int, at: range, size: int) -> str:
    """`g` at these indices of an axis of this size, zeros elsewhere."""
    rank, count, step = b.rank(g), len(at), at.step
    if count == size and step == 1:
        return g
    if step < 0:
        g, at, step = b.slice(g, [-1], [-LAST], [axis], [-1]), at[::-1], -step
    if step > 1 and count > 1:  # between them zeros: an axis more, padded and merged again
        g = b.unsqueeze(g, [axis + 1])
        tails = [0] * (rank + 1)
        tails[axis + 1] = step - 1
        g = b.pad(g, [0] * (rank + 1), tails)
        g = b.op("Reshape", g, _merged(b, g, axis))
        count = (count - 1) * step + 1
        g = b.slice(g, [0], [count], [axis])
    head = at.start if len(at) else 0
    heads, tails = [0] * rank, [0] * rank
    heads[axis], tails[axis] = head, size - head - count
    return b.pad(g, heads, tails)


def _merged(b: Backward, g: str, axis: int) -> str:
    """The shape of `g` with two neighbouring axes as one, int64."""
    rank = b.rank(g)
    parts = [b.size(g, range(axis))] if axis else []
    parts.append(b.op("Mul", b.size(g, [axis]), b.size(g, [axis + 1])))
    parts += [b.size(g, range(axis + 2, rank))] if axis + 2 < rank else []
    return b.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]


def _among_zeros(b: Backward, g: str, x: str, axis: int, start: str, end: str, step: int) -> str:
    """The same where sizes or indices are known at run time only: one-hot rows, summed. start, end: int64, `(1,)`."""
    every = b.op("Range", b.constant(0), b.squeeze(b.size(x, [axis]), [0]), b.constant(1))
    at = b.op("Slice", every, start, end, b.constant([0]), b.constant([step]))
    one = b.op("Equal", b.unsqueeze(every, [1]), b.unsqueeze(at, [0]))  # (size, count)
    last = [*(k for k in range(b.rank(g)) if k != axis), axis]
    placed = b.op("MatMul", b.transpose(g, last), b.transpose(b.op("Cast", one, to=b.code(g)), [1, 0]))
    return b.transpose(placed, np.argsort(last).tolist())


@gradient("Split")
def split(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """the gradients of the parts, one after the other"""
    parts = [g or b.zeros_like(o) for g, o in zip(dy, n.outputs, strict=True)]
    return [b.op("Concat", *parts, axis=n.attr("axis", 0)), None][: len(n.inputs)]


@gradient("Tile")
def tile(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, summed over the repetitions"""
    assert dy[0]
    x, rank = n.input(0), b.rank(n.input(0))
    both = b.op("Concat", b.unsqueeze(n.input(1), [1]), b.unsqueeze(b.shape_of(x), [1]), axis=1)
    apart = b.op("Reshape", dy[0], b.reshape(both, [-1]))
    return [b.reshape_like(b.sum(apart, range(0, 2 * rank, 2)), x), None]


@gradient("DepthToSpace")
def depth_to_space(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """SpaceToDepth of dy, with its channels in the order of the mode"""
    assert dy[0]
    size, channels = int(n.attr("blocksize")), b.shape(n.input(0))[1]
    g = b.op("SpaceToDepth", dy[0], blocksize=size)
    if n.attr("mode", "DCR") == "DCR":
        return [g]
    if channels is None:
        raise NoRule("the number of its channels is not known")
    order = np.arange(channels).reshape(size * size, -1).T.ravel()
    return [b.op("Gather", g, b.constant(order), axis=1)]


@gradient("SpaceToDepth")
def space_to_depth(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """DepthToSpace of dy"""
    assert dy[0]
    size, mode, channels = int(n.attr("blocksize")), n.attr("mode", "DCR"), b.shape(n.input(0))[1]
    if mode == "DCR":
        return [b.op("DepthToSpace", dy[0], blocksize=size)]
    if channels is None:
        raise NoRule("the number of its channels is not known")
    order = np.arange(channels * size * size).reshape(-1, size * size).T.ravel()
    return [b.op("DepthToSpace", b.op("Gather", dy[0], b.constant(order), axis=1), blocksize=size)]


@gradient("Trilu")
def trilu(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """the same triangle of dy"""
    assert dy[0]
    return [b.op("Trilu", dy[0], *n.inputs[1:], upper=n.attr("upper", 1)), None][: len(n.inputs)]


@gradient("ReverseSequence")
def reverse_sequence(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy, reversed in the same way"""
    assert dy[0]
    axes = {name: n.attr(name, default) for name, default in (("batch_axis", 1), ("time_axis", 0))}
    return [b.op("ReverseSequence", dy[0], n.input(1), **axes), None]


@gradient("Dropout")
def dropout(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy; while it drops, times the mask over what is kept"""
    assert dy[0]
    out: Gradients = [dy[0], None, None][: len(n.inputs)]
    training = b.value(n.input(2)) if n.input(2) else np.array(False)
    if training is not None and not training.any():
        return out
    if not n.output(1) or training is None:
        raise NoRule("training_mode without its mask as an output")
    ratio = b.op("Cast", n.input(1), to=b.code(dy[0])) if n.input(1) else b.constant(0.5, like=dy[0])
    mask = b.op("Div", b.op("Cast", n.output(1), to=b.code(dy[0])), b.op("Sub", b.constant(1, like=dy[0]), ratio))
    out[0] = b.op("Mul", dy[0], mask)
    return out
