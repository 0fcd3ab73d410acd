"""Operators that move, cut, join or repeat elements without changing them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph.node import Node
from onnxprune.structure.claims import Axis
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.rules.registry import Couple, Resize, rule

if TYPE_CHECKING:
    from onnxprune.structure.surgeon import Surgeon


def pin_partial(c: Coupling, x: Axis, y: Axis, reason: str) -> None:
    """Pin both sides of an axis whose correspondence is not one to one."""
    c.pin(x, reason)
    c.pin(y, reason)


# Reshape and relatives


def resize_shape(slot: int) -> Resize:
    """The shape input `slot` must name the new sizes."""

    def resize(s: Surgeon, n: Node) -> None:
        s.set_shape_input(n, slot)

    return resize


def resize_reshape(s: Surgeon, n: Node) -> None:
    """The target shape, as input (opset 5) or attribute."""
    if n.input(1):
        s.set_shape_input(n, 1)
        return
    shape = list(n.attr("shape", []))
    y = s.coupling.axes(n.output(0))
    s.set_attr(n, "shape", [s.count(ids) if d > 0 and ids is not None else d for d, ids in zip(shape, y, strict=True)])


@rule("Reshape", resize=resize_reshape)
def reshape(c: Coupling, n: Node) -> None:
    """axes are split and merged by common factors; at most one factor of an axis can shrink"""
    c.view(n, n.input(0), n.output(0))


def resize_squeeze(s: Surgeon, n: Node) -> None:
    """Without axes every axis of size one goes: name them where one comes down to that."""
    if n.op != "Squeeze" or n.attr("axes") is not None or n.input(1):
        return
    x = n.input(0)
    if any(s.shrinks(x, k) and s.new_size(x, k) == 1 for k in range(len(s.coupling.axes(x)))):
        ones = [k for k, d in enumerate(s.coupling.shape(x) or ()) if d == 1]
        if n.opset < 13:
            s.set_attr(n, "axes", ones)
        else:
            s.set_input(n, 1, np.array(ones, np.int64))


@rule("Flatten", "Squeeze", "Unsqueeze", resize=resize_squeeze)
def view(c: Coupling, n: Node) -> None:
    """as Reshape; the sizes follow by themselves"""
    c.view(n, n.input(0), n.output(0))


@rule("Transpose")
def transpose(c: Coupling, n: Node) -> None:
    """axes are permuted"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    for i, p in enumerate(n.attr("perm", list(range(len(x)))[::-1])):
        if x and x[p] is not None:
            c.tie(x[p], y[i])


@rule("DepthToSpace")
def depth_to_space(c: Coupling, n: Node) -> None:
    """DCR or CRD: the b*b channels that make one output channel go together"""
    x, y, b = c.axes(n.input(0)), c.axes(n.output(0)), int(n.attr("blocksize", 1))
    blocks_of_channels(c, x, y, b, crd=n.attr("mode", "DCR") == "CRD")


@rule("SpaceToDepth")
def space_to_depth(c: Coupling, n: Node) -> None:
    """the b*b channels that come from one input channel go together"""
    x, y, b = c.axes(n.input(0)), c.axes(n.output(0)), int(n.attr("blocksize", 1))
    blocks_of_channels(c, y, x, b, crd=False)


def blocks_of_channels(c: Coupling, deep: list[Axis], wide: list[Axis], b: int, *, crd: bool) -> None:
    """`deep` has b*b channels for each channel of `wide`."""
    if len(deep) != 4 or len(wide) != 4:
        return
    c.tie(deep[0], wide[0])
    for ids in (*deep[2:], *wide[2:]):
        c.pin(ids, "a spatial axis of DepthToSpace or SpaceToDepth")
    if wide[1] is None or deep[1] is None:
        pin_partial(c, deep[1], wide[1], "blocks of a single channel")
    elif crd:
        c.tie(deep[1].reshape(-1, b * b), wide[1][:, None])
    else:
        c.tie(deep[1].reshape(b * b, -1), wide[1][None])


# Concat, Split, Slice, Gather, Pad


def couple_concat(c: Coupling, inputs: list[str], output: str, axis: int) -> None:
    """Tie every input to its slice of the output."""
    y = c.axes(output)
    if not y or any(not c.axes(i) for i in inputs):
        for t in (*inputs, output):
            for ids in c.axes(t):
                c.pin(ids, "joined with a tensor of unknown rank")
        return
    at = 0
    for name in inputs:
        for k, ids in enumerate(c.axes(name)):
            out = y[k]
            if k != axis % len(y):
                if ids is not None:
                    c.tie(ids, out)
            elif out is not None:
                size = (c.shape(name) or ())[k]
                if size is None:
                    c.pin(out, "joined with an axis of unknown size")
                    continue
                c.tie(ids, out[at : at + size], "an axis of size one among those joined")
                at += size


@rule("Concat")
def concat(c: Coupling, n: Node) -> None:
    """every input is tied to its slice of the output"""
    couple_concat(c, n.inputs, n.output(0), n.attr("axis", 1))


def resize_split(s: Surgeon, n: Node) -> None:
    """The sizes of the parts, as attribute (before opset 13) or input."""
    rank = len(s.coupling.axes(n.input(0)))
    axis = n.attr("axis", 0) % rank
    parts = [s.new_size(o, axis) for o in n.outputs]
    if not s.shrinks(n.input(0), axis):
        return
    if n.opset < 13:
        s.set_attr(n, "split", parts)
    else:
        s.set_attr(n, "num_outputs", None)
        s.set_input(n, 1, np.array(parts, np.int64))


@rule("Split", resize=resize_split)
def split(c: Coupling, n: Node) -> None:
    """every output is tied to its slice of the input; parts may become uneven"""
    x = c.axes(n.input(0))
    if not x:
        c.pin_all(n, "rank is unknown")
        return
    axis = n.attr("axis", 0) % len(x)
    at = 0
    for o in n.outputs:
        y = c.axes(o) if o else []
        size = (c.shape(o) or [None] * len(x))[axis] if o else None
        if size is None:
            c.pin(x[axis], "split into parts of unknown size")
            for ids in y:
                c.pin(ids, "split into parts of unknown size")
            continue
        for k, (p, q) in enumerate(zip(x, y, strict=True)):
            if k == axis and p is not None:
                c.tie(p[at : at + size], q, "split into a part of size one")
            elif k != axis and p is not None:
                c.tie(p, q)
        at += size


def slices(c: Coupling, n: Node, rank: int) -> dict[int, slice]:
    """Axis -> Python slice."""
    starts, ends = c.ints(n, "starts", 1) or [], c.ints(n, "ends", 2) or []
    axes = c.ints(n, "axes", 3) or list(range(len(starts)))
    steps = c.ints(n, "steps", 4) or [1] * len(starts)
    out = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop: int | None = end
        if step < 0 and end < -(1 << 30):
            stop = None
        out[axis % rank] = slice(start, stop, step)
    return out


def resize_slice(s: Surgeon, n: Node) -> None:
    """Starts and ends, counted in surviving indices."""
    c = s.coupling
    x = c.axes(n.input(0))
    if not any(s.shrinks(n.input(0), k) for k in range(len(x))):  # nothing, or computed at run time and pinned
        return
    starts, ends = {}, {}
    for i, (k, cut) in enumerate(slices(c, n, len(x)).items()):
        ids = x[k]
        if ids is not None and s.shrinks(n.input(0), k):
            start, stop, step = cut.indices(ids.size)
            keep = s.keep(ids)
            starts[i] = int(keep[:start].sum()) if step == 1 else start
            ends[i] = int(keep[: max(stop, start)].sum()) if step == 1 else int(keep.sum())
            if not ids[cut].size:
                starts[i] = ends[i] = 0
    s.patch(n, "starts", 1, starts)
    s.patch(n, "ends", 2, ends)


@rule("Slice", resize=resize_slice)
def slice_(c: Coupling, n: Node) -> None:
    """a slice is tied to its place; a strided axis is pinned"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    if not x or len(x) != len(y):
        c.pin_all(n, "rank is unknown")
        return
    cuts = slices(c, n, len(x))
    for k, (p, q) in enumerate(zip(x, y, strict=True)):
        if k not in cuts or p is None:
            if p is not None:
                c.tie(p, q)
            continue
        part, step = p[cuts[k]], cuts[k].step
        start, stop, _ = cuts[k].indices(p.size)
        whole = step > 1 and p.size % step == 0 and start < step and stop > p.size - step + start and q is not None
        if not part.size:  # nothing of the axis is left, so nothing is tied
            continue
        if step != 1 and not whole:
            pin_partial(c, p, q, "sliced with a stride")
        elif step != 1:  # neighbours go together, so that the stride still hits the same one of them
            c.tie(p.reshape(-1, step), p.reshape(-1, step)[:, :1])
            c.tie(part, q)
        elif part.size == 1:
            c.pin(part, "sliced to a single index")
        elif q is None or part.size != q.size:
            pin_partial(c, p, q, "sliced to an unknown size")
        else:
            c.tie(part, q)


def resize_gather(s: Surgeon, n: Node) -> None:
    """Indices, renumbered among the survivors."""
    c = s.coupling
    x = c.axes(n.input(0))
    axis = n.attr("axis", 0) % len(x)
    indices, ids = c.known(n.input(1)), x[axis]
    if indices is None or ids is None or not s.shrinks(n.input(0), axis):
        return
    keep = s.keep(ids)
    place = np.cumsum(keep) - 1
    flat = np.where(indices < 0, indices + ids.size, indices)
    if indices.ndim == 1 and indices.size > 1:
        flat = flat[keep[flat]]
    s.set_input(n, 1, place[flat].astype(indices.dtype))


@rule("Gather", resize=resize_gather)
def gather(c: Coupling, n: Node) -> None:
    """constant indices: a selection of ids; computed indices (embedding): the axis is pinned, the others are tied"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    indices, shape = c.known(n.input(1)), c.shape(n.input(1))
    if not x or shape is None:
        c.pin_all(n, "rank is unknown")
        return
    axis, r = n.attr("axis", 0) % len(x), len(shape)
    for k, ids in enumerate(x):
        if k != axis and ids is not None:
            c.tie(ids, y[k if k < axis else k + r - 1])
            if c.is_constant(n.input(0)) and not c.is_constant(n.input(1)):
                c.produce(n, n.input(0), k, table=True)
    ids = x[axis]
    new = y[axis : axis + r]
    if indices is None or ids is None:
        chosen = c.follow(n.input(1)) if ids is not None else None
        if chosen is not None and ids is not None and chosen.size == ids.size:
            c.tie(ids, chosen)
            if c.is_constant(n.input(0)):
                c.produce(n, n.input(0), axis)
        else:
            c.pin(ids, "looked up with computed indices")
        for k, out in enumerate(new):  # the indices' own axes
            p = c.axes(n.input(1))[k]
            if p is not None:
                c.tie(p, out)
    elif r == 1 and indices.size > 1:
        c.tie(ids[indices], new[0])
    else:
        c.pin(ids[indices.ravel()], "a single index that is picked out")
        for out in new:
            c.pin(out, "picked by a table of indices")


def resize_pad(s: Surgeon, n: Node) -> None:
    """Padded channels that go are padded no more."""
    c = s.coupling
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    if not any(s.shrinks(n.output(0), k) for k in range(len(y))):  # nothing, or computed at run time and pinned
        return
    before, after = pads(c, n, len(x))
    order = [a % len(x) for a in c.ints(n, "", 3) or range(len(x))]
    changed = {}
    for i, k in enumerate(order):
        ids = y[k]
        if ids is not None and s.shrinks(n.output(0), k) and (before[k] or after[k]):
            changed[i] = s.count(ids[: before[k]])
            changed[i + len(order)] = s.count(ids[ids.size - after[k] :])
    s.patch(n, "pads" if "pads" in n.attributes else "paddings", 1, changed)


def pads(c: Coupling, n: Node, rank: int) -> tuple[list[int], list[int]]:
    """Pads before and after every axis."""
    flat = c.ints(n, "pads", 1) or c.ints(n, "paddings") or []
    axes = c.ints(n, "", 3) or list(range(rank))
    before, after = [0] * rank, [0] * rank
    for i, k in enumerate(axes):
        before[k % rank], after[k % rank] = flat[i], flat[i + len(axes)]
    return before, after


@rule("Pad", resize=resize_pad)
def pad(c: Coupling, n: Node) -> None:
    """constant padding of an axis inserts ids of its own; reflected or wrapped axes are pinned"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    if not x or len(x) != len(y):
        c.pin_all(n, "rank is unknown")
        return
    before, after = pads(c, n, len(x))
    for k, (p, q) in enumerate(zip(x, y, strict=True)):
        b, a = before[k], after[k]
        if b == 0 and a == 0:
            if p is not None:
                c.tie(p, q)
        elif b < 0 or a < 0 or n.attr("mode", "constant") != "constant" or p is None or q is None:
            pin_partial(c, p, q, "padded by repetition or cropped")
        else:
            c.tie(p, q[b : b + p.size])


# elements that are addressed by indices

BY_INDEX = "addresses elements by index"


@rule("GatherElements", "ScatterElements", "Scatter")
def elements(c: Coupling, n: Node) -> None:
    """the axis of the indices is pinned, but for experts that they choose from; the others are tied to theirs"""
    data, y = c.axes(n.input(0)), c.axes(n.output(0))
    scatter = n.op != "GatherElements"
    addressing = n.inputs[1:] if scatter else [n.input(1), n.output(0)]  # tensors of the shape of the indices
    chosen = c.follow(n.input(1))
    axis = n.attr("axis", 0) % max(len(data), 1)
    for k, p in enumerate(data):
        sides = [c.axes(name)[k] for name in addressing]
        if scatter and p is not None:
            c.tie(y[k], p)
        if k != axis:
            if p is not None:  # the indices may address a part, the first of them
                part = p[: (c.shape(n.input(1)) or ())[k]]
                for other in sides:
                    c.tie(part, other, BY_INDEX)
            continue
        if not scatter and sides[0] is not None:
            c.tie(sides[0], sides[1])
        for other in sides if scatter else ():
            c.pin(other, BY_INDEX)
        if chosen is not None and p is not None:
            c.tie(p, chosen)
        else:
            c.pin(p, BY_INDEX)


@rule("GatherND")
def gather_nd(c: Coupling, n: Node) -> None:
    """axes that the indices address are pinned; those of the batch, of the indices and the trailing ones are tied"""
    data, indices, y = c.axes(n.input(0)), c.axes(n.input(1)), c.axes(n.output(0))
    batch, depth = int(n.attr("batch_dims", 0)), (c.shape(n.input(1)) or (0,))[-1] or 0
    c.pin(indices[-1], BY_INDEX)
    for k, p in enumerate(data):
        if batch <= k < batch + depth:
            c.pin(p, BY_INDEX)
        elif p is not None:
            c.tie(p, y[k if k < batch else len(indices) - 1 + k - batch - depth])
    for p, q in zip(indices[:-1], y, strict=False):
        if p is not None:
            c.tie(p, q)


@rule("ScatterND")
def scatter_nd(c: Coupling, n: Node) -> None:
    """axes that the indices address are pinned, the trailing ones of data, updates and output are tied"""
    data, indices, updates, y = (c.axes(name) for name in (*n.inputs[:3], n.output(0)))
    depth = (c.shape(n.input(1)) or (0,))[-1] or 0
    for ids in (*indices, *updates[: len(indices) - 1], *data[:depth], *y[:depth]):
        c.pin(ids, BY_INDEX)
    for p, u, q in zip(data[depth:], updates[len(indices) - 1 :], y[depth:], strict=True):
        if p is not None:
            c.tie(p, u)
            c.tie(p, q)


@rule("TensorScatter")
def tensor_scatter(c: Coupling, n: Node) -> None:
    """the axis that is written at an index is pinned, the others of cache, update and output are tied"""
    cache, update, y = c.axes(n.input(0)), c.axes(n.input(1)), c.axes(n.output(0))
    for k, sides in enumerate(zip(cache, update, y, strict=True)):
        if k == n.attr("axis", -2) % len(cache):
            for ids in sides:
                c.pin(ids, BY_INDEX)
        elif sides[0] is not None:
            c.tie(sides[0], sides[1])
            c.tie(sides[0], sides[2])
    if n.input(2) and cache[0] is not None:
        c.tie(cache[0], c.axes(n.input(2))[0])


def resize_one_hot(s: Surgeon, n: Node) -> None:
    """The depth is the number of those that are left."""
    axis = n.attr("axis", -1) % len(s.coupling.axes(n.output(0)))
    if s.shrinks(n.output(0), axis):
        depth = s.coupling.known(n.input(1))
        assert depth is not None, "a computed depth was pinned"
        s.set_input(n, 1, np.full_like(depth, s.new_size(n.output(0), axis)))


@rule("OneHot", resize=resize_one_hot)
def one_hot(c: Coupling, n: Node) -> None:
    """everything is pinned, but the axis of experts that the indices choose from"""
    y = c.axes(n.output(0))
    ids = c.follow(n.input(0)) if y and c.known(n.input(1)) is not None else None
    axis = n.attr("axis", -1) % max(len(y), 1)
    for other in c.axes(n.input(0)):
        c.pin(other, BY_INDEX)
    for k, q in enumerate(y):
        if k == axis and ids is not None and q is not None and q.size == ids.size:
            c.tie(q, ids)
        else:
            c.pin(q, BY_INDEX)


# sizes that are computed or repeated


@rule("Expand", resize=resize_shape(1))
def expand(c: Coupling, n: Node) -> None:
    """axes are aligned from the right; axes of size one are repeated"""
    if c.known(n.input(1)) is None:
        c.pin_all(n, "a shape that is computed at run time")
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    for p, q in zip(x[::-1], y[::-1], strict=False):
        if p is not None:
            c.tie(p, q)
    for k, q in enumerate(y[::-1], 1):
        if q is not None and (k > len(x) or x[-k] is None):
            c.mark("repeated", q)
            for origin, by in c.reduced[n.input(0)][-k] if len(c.reduced.get(n.input(0), ())) >= k else []:
                c.normalised(q, origin, by)


@rule("ConstantOfShape", resize=resize_shape(0))
def constant_of_shape(c: Coupling, n: Node) -> None:
    """a constant tensor whose axes can shrink"""
    if c.known(n.input(0)) is None:
        c.pin_all(n, "a shape that is computed at run time")


@rule("Tile")
def tile(c: Coupling, n: Node) -> None:
    """whole axes are repeated"""
    repeats = c.known(n.input(1))
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    if repeats is None or not x:
        c.pin_all(n, "repeats that are computed at run time")
        return
    for p, q in zip(x, y, strict=True):
        if p is not None and q is not None:
            c.tie(q.reshape(-1, p.size), p[None])
        else:
            c.pin(q, "a single index that is repeated")


def resize_resize(s: Surgeon, n: Node) -> None:
    """`sizes` holds the channels; scales that were computed of shapes stay one."""
    rank = len(s.coupling.axes(n.output(0)))
    axes = n.attr("axes", list(range(rank)))
    shrunk = {i: s.new_size(n.output(0), k % rank) for i, k in enumerate(axes) if s.shrinks(n.output(0), k)}
    if n.input(3):
        s.patch(n, "", 3, shrunk)
        return
    slot = 1 if n.op == "Upsample" or n.opset < 11 else 2
    if s.coupling.known(n.input(slot)) is not None:
        s.patch(n, "", slot, dict.fromkeys(shrunk, 1))


@rule("Resize", "Upsample", resize=resize_resize)
def resize(c: Coupling, n: Node) -> None:
    """axes of unchanged size are tied, resized ones pinned"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    xs, ys = c.shape(n.input(0)), c.shape(n.output(0))
    if xs is None or ys is None:
        c.pin_all(n, "rank is unknown")
        return
    cropped = n.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    for k, (p, q) in enumerate(zip(x, y, strict=True)):
        channel = k < 2 or (k == len(x) - 1 and xs[1] != ys[1])  # channels first, or last where axis 1 is resized
        if channel and xs[k] == ys[k] and not cropped:
            c.tie(p, q)
        else:
            pin_partial(c, p, q, "resized")


def first_axes(count: int, reason: str) -> Couple:
    """The first axes of input and output are tied, everything else that the node touches is pinned."""

    def couple(c: Coupling, n: Node) -> None:
        x, y = c.axes(n.input(0)), c.axes(n.output(0))
        if len(x) < count or len(y) < count:
            c.pin_all(n, "rank is unknown")
            return
        for p, q in zip(x[:count], y[:count], strict=True):
            c.tie(p, q)
        for grid in n.inputs[1:]:
            for ids in c.axes(grid):
                c.pin(ids, reason)
            c.tie(x[0], c.axes(grid)[0])
        for ids in (*x[count:], *y[count:]):
            c.pin(ids, reason)

    couple.__doc__ = f"the first {count} axes are tied, the others pinned"
    return couple


@rule("CenterCropPad")
def center_crop_pad(c: Coupling, n: Node) -> None:
    """named axes are pinned, the others tied"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    axes = [a % len(x) for a in n.attr("axes", list(range(len(x))))]
    for k, (p, q) in enumerate(zip(x, y, strict=True)):
        if k in axes:
            pin_partial(c, p, q, "cropped or padded")
        elif p is not None:
            c.tie(p, q)


rule("GridSample", "Crop")(first_axes(2, "sampled on a grid"))


@rule("RoiAlign", "MaxRoiPool")
def roi_pool(c: Coupling, n: Node) -> None:
    """channels are tied, everything else pinned"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    for name in n.inputs[1:]:
        for ids in c.axes(name) if name else []:
            c.pin(ids, "regions of interest")
    for k, ids in enumerate((*x, *y)):
        if k not in (1, len(x) + 1):
            c.pin(ids, "regions of interest")
    if len(x) > 1 and len(y) > 1:
        c.tie(x[1], y[1])


@rule("Col2Im")
def col2im(c: Coupling, n: Node) -> None:
    """the entries of a kernel window go with their channel"""
    x, y = c.axes(n.input(0)), c.axes(n.output(0))
    if len(x) != 3 or len(y) < 3 or x[1] is None or y[1] is None:
        c.pin_all(n, "rank is unknown")
        return
    c.tie(x[0], y[0])
    c.tie(x[1].reshape(y[1].size, -1), y[1][:, None])
    for ids in (x[2], *y[2:]):
        c.pin(ids, "a spatial axis of Col2Im")


@rule("Shape", "Size", "Constant")
def nothing(c: Coupling, n: Node) -> None:
    """reads no elements"""
