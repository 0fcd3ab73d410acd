"""Blocks for tensors of any rank."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper

from models.random_graphs.net import INT_MAX, LONGEST, Net, along, block


@block(2, 5, weight=2)
def unary(b: Net, x: str) -> str:
    return b.act(x)


@block(2, 5, weight=2)
def constant(b: Net, x: str) -> str:
    """Arithmetic with a constant of some broadcast shape."""
    shape = b.shape(x)
    many = [d if b.draw.chance(2) else 1 for d in shape[1:]]
    full = b.draw.pick((tuple(many), (), (1, *many), along(shape, 1), shape[-1:]))
    if b.draw.chance(3):
        while full and full[0] == 1:
            full = full[1:]
    value = b.param(np.asarray(b.positive(*full)))
    kind = b.draw.pick(("Mul", "Add", "Sub", "Div", "Max", "Min", "Where", "Mean"))
    if kind == "Where":
        mask = np.asarray(b.rng.random(full) < 0.5)
        mask.flat[0] = True
        return b.op("Where", b.param(mask), *((x, value) if b.draw.chance(2) else (x, b.op("Neg", x))))
    swap = kind != "Div" and b.draw.chance(3)
    return b.op(kind, *((value, x) if swap else (x, value)))


@block(2, 5, weight=3)
def meet(b: Net, x: str) -> str:
    """A residual: with an older tensor, or with one computed from this one."""
    kind = b.draw.pick(("Add", "Add", "Mul", "Sub", "Max", "Sum", "greater"))
    y = b.like(x)
    if kind == "Mul":
        return b.op("Mul", x, b.op("Sigmoid", y))
    if kind == "Sum":
        return b.op("Sum", x, y, b.like(x))
    if kind == "greater":
        return b.op("Where", b.op("Greater", x, b.op("Add", y, 0.123)), x, y)
    return b.op(kind, *((y, x) if b.draw.chance(2) else (x, y)))


@block(2, 5, weight=3)
def concat(b: Net, x: str) -> str:
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    rest = (*shape[:axis], *shape[axis + 1 :])
    older = [p for p in b.pool if len(b.shape(p)) == len(shape)]
    fitting = [p for p in older if (*b.shape(p)[:axis], *b.shape(p)[axis + 1 :]) == rest]
    parts = [x]
    for _ in range(b.draw.integer(1, 2)):
        form = b.draw.pick(("older", "computed", "itself", "constant", "empty"))
        if form == "older" and fitting:
            parts.append(b.draw.pick(fitting[::-1]))
        elif form == "itself":
            parts.append(x)
        elif form == "empty":
            parts.append(b.slice(x, shape[axis] // 2, shape[axis] // 2, axis))
        elif form == "constant" and not b.dynamic:
            parts.append(b.param(b.normal(*shape)))
        else:
            parts.append(b.axis_layer(x, axis, b.draw.pick((shape[axis], b.width()))))
    if sum(b.shape(p)[axis] for p in parts) > LONGEST:
        return x
    axis -= len(shape) if b.draw.chance(4) else 0
    y = b.op("Concat", *(parts[::-1] if b.draw.chance(2) else parts), axis=axis)
    return y if b.fits(*b.shape(y)[1:]) else x


@block(2, 5, weight=2)
def split(b: Net, x: str) -> str:
    """Cut an axis, change a part, join or combine the parts."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    if shape[axis] < 2:
        return x
    if shape[axis] % 2 == 0 and b.draw.chance(2):
        one, two = b.split(x, [shape[axis] // 2] * 2, axis)
        return b.op("Mul", one, b.op("Sigmoid", two)) if b.draw.chance(2) else b.op("Add", one, two)
    at = b.draw.integer(1, shape[axis] - 1)
    parts = b.split(x, [at, shape[axis] - at], axis)
    if b.draw.chance(4):
        return parts[0]
    parts[0] = b.axis_layer(parts[0], axis, b.draw.pick((at, b.width()))) if b.draw.chance(2) else b.act(parts[0])
    y = b.op("Concat", *(parts[::-1] if b.draw.chance(2) else parts), axis=axis)
    return y if b.fits(*b.shape(y)[1:]) else x


@block(2, 5, weight=2)
def cut(b: Net, x: str) -> str:
    """Slice: some range, written with negative or huge bounds, at times with a stride or backwards."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    d = shape[axis]
    start = b.draw.integer(0, d - 1)
    end = b.draw.integer(start + 1, d)
    form = b.draw.pick(("plain", "negative", "open", "stride", "backwards", "two", "chunk"))
    if form == "negative":
        return b.slice(x, start - d, end - d if end < d else INT_MAX, axis - len(shape))
    if form == "open":
        return b.slice(x, start, INT_MAX, axis)
    if form == "stride":
        return b.slice(x, start, INT_MAX, axis, 2)
    if form == "chunk" and d % 2 == 0:  # torch.chunk, with the half computed from the shape
        half = b.op("Unsqueeze", b.op("Div", b.size(x, axis), 2), [0]) if b.opset >= 13 else [d // 2]
        part = (*shape[:axis], d // 2, *shape[axis + 1 :])
        one = b.op("Slice", x, [0], half, [axis], shape=part)
        two = b.op("Slice", x, half, [INT_MAX], [axis], shape=part)
        return b.op("Mul", one, b.op("Tanh", two)) if b.draw.chance(2) else two
    if form == "backwards":
        return b.slice(x, -1, -INT_MAX, axis, -1)
    if form == "two" and len(shape) > 2:
        other = 1 + axis % (len(shape) - 1)
        return b.op("Slice", x, [start, 0], [end, shape[other] // 2 + 1], [axis, other])
    return b.slice(x, start, end, axis)


@block(2, 5, weight=2)
def gather(b: Net, x: str) -> str:
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    d = shape[axis]
    form = b.draw.pick(("permutation", "subset", "repeated", "single", "scalar", "table", "negative"))
    if form in ("permutation", "negative"):
        indices = np.array(b.draw.permutation(d)) - (d if form == "negative" else 0)
    elif form == "subset":
        indices = np.array(b.draw.permutation(d)[: b.draw.integer(1, d)])
    elif form == "repeated":
        indices = np.array([b.draw.integer(0, d - 1) for _ in range(b.draw.integer(2, 8))])
    elif form == "single":
        indices = np.array([b.draw.integer(0, d - 1)])
    elif form == "scalar":
        if len(shape) < 3:
            return x
        indices = np.array(b.draw.integer(0, d - 1))
    else:
        if len(shape) > 4:
            return x
        indices = b.rng.integers(0, d, (2, 3))
    y = b.op("Gather", x, indices.astype(np.int64), axis=axis)
    return y if b.fits(*b.shape(y)[1:]) else x


@block(2, 5)
def pad(b: Net, x: str) -> str:
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    before, after = b.draw.integer(0, 2), b.draw.integer(0, 3)
    mode = b.draw.pick(("constant", "constant", "reflect", "edge"))
    if not b.fits(*shape[1:axis], shape[axis] + 5, *shape[axis + 1 :]) or (mode == "reflect" and shape[axis] <= 3):
        return x
    value = b.draw.pick((None, 0.7)) if mode == "constant" else None
    if mode == "constant" and shape[axis] > 2 and b.draw.chance(4):
        before, after = -1, b.draw.integer(-1, 1)
    if b.opset >= 18 and b.draw.chance(2):
        return b.op("Pad", x, [before, after], value, [axis], mode=mode)
    pads = np.zeros((2, len(shape)), np.int64)
    pads[:, axis] = before, after
    return b.op("Pad", x, pads.ravel(), value, mode=mode)


@block(2, 5, weight=2)
def transpose(b: Net, x: str) -> str:
    return b.transpose(x, 0, *[1 + k for k in b.draw.permutation(len(b.shape(x)) - 1)[::-1]])


@block(2, 5, weight=3)
def refactor(b: Net, x: str) -> str:
    """Split an axis in two, merge neighbours, or add and drop axes of size one."""
    n, *rest = b.shape(x)
    form = b.draw.pick(("merge", "split", "flatten", "unsqueeze", "squeeze", "regroup"))
    if form == "flatten":
        flat = math.prod(rest)
        if flat > 4 * LONGEST:
            return x
        return b.op("Flatten", x, axis=1) if b.draw.chance(2) else b.reshape(x, n, flat)
    if form == "unsqueeze":
        return b.unsqueeze(x, b.draw.integer(1, len(rest) + 1)) if len(rest) < 4 else x
    if form == "squeeze":
        ones = [k + 1 for k, d in enumerate(rest) if d == 1]
        return b.squeeze(x, b.draw.pick(ones)) if ones and len(rest) > 1 else x
    k = b.draw.integer(0, len(rest) - 1)
    if form == "split":
        factors = [f for f in range(2, rest[k]) if rest[k] % f == 0]
        if not factors or len(rest) > 3:
            return x
        f = b.draw.pick(factors)
        return b.reshape(x, n, *rest[:k], f, rest[k] // f, *rest[k + 1 :])
    if len(rest) < 2:
        return x
    k = min(k, len(rest) - 2)
    product = rest[k] * rest[k + 1]
    if form == "merge":
        return b.reshape(x, n, *rest[:k], product, *rest[k + 2 :]) if product <= LONGEST else x
    f = b.draw.pick([f for f in range(1, product + 1) if product % f == 0])
    return b.reshape(x, n, *rest[:k], f, product // f, *rest[k + 2 :]) if max(f, product // f) <= LONGEST else x


@block(2, 5, weight=2)
def reduce(b: Net, x: str) -> str:
    """Reduce some axes, with or without keeping them, and combine with what was reduced."""
    shape = b.shape(x)
    axes = sorted({b.draw.integer(1, len(shape) - 1) for _ in range(b.draw.integer(1, 2))})
    kind = b.draw.pick(("Mean", "Sum", "Max", "L2", "Min", "L1", "SumSquare", "LogSumExp"))
    keep = b.draw.chance(2)
    if not keep and len(shape) - len(axes) < 2:
        axes = axes[:1]
        keep = len(shape) < 3
    if b.draw.chance(4):
        axes = [a - len(shape) for a in axes]
    y = b.reduce(kind, x, axes, int(keep))
    if keep and b.draw.chance(2):
        form = b.draw.pick(("Sub", "Mul", "Div", "Add"))
        if form == "Div":
            return b.op("Div", x, b.op("Add", b.op("Abs", y), 1.0))
        return b.op("Mul", x, b.op("Sigmoid", y)) if form == "Mul" else b.op(form, x, y)
    return y


@block(2, 5)
def softmax(b: Net, x: str) -> str:
    axis = b.draw.pick((-1, 1, len(b.shape(x)) - 1))
    kind = b.draw.pick(("Softmax", "LogSoftmax", "CumSum", "TopK", "Trilu"))
    if kind == "CumSum":
        return b.op("CumSum", b.op("Mul", x, 0.3), axis)
    if kind == "TopK":
        k = (b.shape(x)[axis] + 1) // 2
        return b.ops("TopK", x, [k], n=2, axis=axis)[0]
    if kind == "Trilu" and b.opset >= 14:
        return b.op("Trilu", x)
    return b.op("Softmax" if kind == "Trilu" else kind, x, axis=axis)


@block(2, 5)
def repeat(b: Net, x: str) -> str:
    """Tile and Expand, by constants or by the shape of a tensor."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    form = b.draw.pick(("tile", "expand", "fill", "expand_like", "gate", "filled", "tile_one"))
    if form == "tile" and b.fits(*shape[1:], 2) and 2 * shape[axis] <= LONGEST:
        repeats = np.ones(len(shape), np.int64)
        repeats[axis] = 2
        return b.op("Tile", x, repeats)
    if form == "fill":
        ones = b.op("ConstantOfShape", b.op("Shape", x), shape=shape,
                    value=helper.make_tensor("value", TensorProto.FLOAT, [1], [0.5]))  # fmt: skip
        return b.op("Add", x, ones)
    if form == "gate":  # what was reduced, expanded again, to a constant shape or to that of x
        y = b.reduce("Mean", x, [axis])
        sizes = b.op("Shape", x) if b.draw.chance(2) else b.const([1, *shape[1:]])
        return b.op("Mul", x, b.op("Sigmoid", b.op("Expand", y, sizes, shape=shape)))
    if form == "tile_one":
        repeats = np.ones(len(shape), np.int64)
        repeats[axis] = shape[axis]
        return b.op("Add", x, b.op("Tile", b.reduce("Sum", b.op("Mul", x, 0.3), [axis]), repeats))
    if form == "filled":
        target = [1] * len(shape)
        target[axis] = shape[axis]
        filling = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.5])
        return b.op("Mul", x, b.op("ConstantOfShape", target, value=filling))
    if form == "expand_like":
        value = b.param(b.normal(*along(shape, axis)))
        return b.op("Mul", x, b.op("Expand", value, b.op("Shape", x), shape=shape))
    if form == "expand" and shape[axis] == 1 and b.fits(*shape[1:], 3):
        wider = np.ones(len(shape), np.int64)
        wider[axis] = 3
        return b.op("Expand", x, wider)
    return x


@block(2, 4)
def logic(b: Net, x: str) -> str:
    """Comparisons and booleans that choose between tensors."""
    low, high = b.op("Greater", x, -0.217), b.op("Less", b.like(x), 1.317)
    mask = b.op("Not", b.op(b.draw.pick(("And", "Or", "Xor")), low, high))
    return b.op("Where", mask, *((x, b.op("Neg", x)) if b.draw.chance(2) else (0.25, x)))


@block(2, 4)
def addressed(b: Net, x: str) -> str:
    """Operators that pick elements by index, and pin the axes along which they do."""
    shape = b.shape(x)
    axis = b.draw.integer(1, len(shape) - 1)
    form = b.draw.pick(("GatherElements", "OneHot", "ScatterND", "ScatterElements", "GatherND"))
    part = (*shape[:axis], b.draw.integer(1, shape[axis]), *shape[axis + 1 :])
    if form == "GatherElements" and not b.dynamic:
        return b.op(form, x, b.rng.integers(0, shape[axis], part), axis=axis)
    if form == "ScatterElements" and not b.dynamic and b.opset >= 11:
        indices = np.broadcast_to(b.rng.permutation(shape[axis])[: part[axis]].reshape(along(part, axis)), part)
        return b.op(form, x, indices, b.param(b.normal(*part)), axis=axis)
    if form == "ScatterND" and not b.dynamic:
        if b.opset >= 11 and b.draw.chance(2):
            return b.op(form, x, np.array([[0, shape[1] - 1]]), b.param(b.normal(1, *shape[2:])))
        return b.op(form, x, np.zeros((1, 1), np.int64), b.param(b.normal(1, *shape[1:])))
    if form == "GatherND" and b.opset >= 12 and not b.dynamic:
        batch = b.draw.integer(0, 1)
        sizes = (shape[0], 3) if batch else (shape[0],)
        indices = b.rng.integers(0, shape[1] if batch else shape[0], (*sizes, 1))
        y = b.op(form, x, indices, batch_dims=batch)
        return y if b.fits(*b.shape(y)[1:]) else x
    if form == "OneHot" and len(shape) < 4:
        return b.op("OneHot", b.op("ArgMax", x, axis=axis, keepdims=0), 4, np.array([0, 1], np.float32), axis=1)
    return x


@block(2, 4)
def branches(b: Net, x: str) -> str:
    """If, whose branches capture the tensor and hold a layer of their own."""
    shape = b.shape(x)
    condition = b.op("Greater", b.op("ReduceMax", x, keepdims=0), 0.5)
    bodies = []
    for _ in range(2):
        around = b.nodes, b.stored, b.aside, b.pool
        b.nodes, b.stored, b.aside = [], {}, []
        y = b.axis_layer(b.axis_layer(x, 1, b.width()), 1, shape[1])
        info = helper.make_tensor_value_info(y, TensorProto.FLOAT, [None] * len(shape))
        bodies.append(helper.make_graph(b.nodes, b.fresh("body"), [], [info]))
        b.nodes, b.stored, b.aside, b.pool = around
    return b.op("If", condition, shape=shape, then_branch=bodies[0], else_branch=bodies[1])


@block(2, 4)
def second_input(b: Net, x: str) -> str:
    """Another input: a vector that scales the channels, or more channels."""
    _, c, *rest = b.shape(x)
    if len(b.inputs) > 2:
        return x
    if b.draw.chance(2):
        v = b.dense(b.input((3,)), c)
        return b.op("Mul", x, b.unsqueeze(v, *range(2, 2 + len(rest))) if rest else v)
    return b.op("Concat", x, b.input((2, *rest)), axis=1) if c + 2 <= LONGEST else x


@block(2, 5)
def same(b: Net, x: str) -> str:
    """Operators that change nothing: Identity, Dropout, Cast, double negation."""
    form = b.draw.pick(("Identity", "Dropout", "Cast", "double"))
    if form == "double":
        y = b.op("Relu" if b.opset >= 14 else "Neg", b.op("Cast", x, to=TensorProto.DOUBLE))
        return b.op("Cast", y, to=TensorProto.FLOAT)
    return b.op("Cast", x, to=TensorProto.FLOAT) if form == "Cast" else b.op(form, x)


@block(2, 5)
def by_size(b: Net, x: str) -> str:
    """A mean written as a sum over a size that is read from the shape."""
    axis = b.draw.integer(1, len(b.shape(x)) - 1)
    size = b.op("Cast", b.size(x, axis), to=TensorProto.FLOAT)
    if b.draw.chance(2):
        return b.op("Div", x, b.op("Sqrt", size))
    return b.op("Sub", x, b.op("Div", b.reduce("Sum", x, [axis]), size))
