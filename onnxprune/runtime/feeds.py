"""Inputs that a model runs with, where nobody gives any.

Values are random, and sequences of recurrent layers are whole. Of integers that index nothing and are compared with
nothing, onnxruntime may refuse those (positions, the length of a cache): then these inputs get other values, of a short
list, and the first with which it runs the model are used wherever the model is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice, product
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.messages import one_line
from onnxprune.graph.node import walk_all
from onnxprune.graph.shapes import Shapes, concrete_inputs, fixed, graph_inputs
from onnxprune.graph.traits import TRAITS
from onnxprune.runtime.session import UNRUNNABLE, Feeds, session

Sizes = Mapping[str, tuple[int, ...]]  # input -> its concrete shape
Along = tuple[str, int]  # a tensor, and one of its axes


@dataclass(frozen=True)
class Fill:
    """What an integer input holds: the sum of the sizes of some axes of inputs, and a number more; counted: and its
    place along the last axis."""

    axes: tuple[tuple[str, int], ...] = ()
    plus: int = 0
    counted: bool = False

    def values(self, shape: tuple[int, ...], sizes: Sizes) -> Array:
        """An array of int64 of this shape."""
        value = sum(sizes[name][axis] for name, axis in self.axes) + self.plus
        last = np.arange(shape[-1]) if self.counted and shape else 0
        return np.asarray(np.broadcast_to(value + last, shape), np.int64)


Fills = Mapping[str, Fill]
CONSTANT = (None, Fill(plus=1), Fill(), Fill(counted=True))  # None: as `random_feeds` has it
MOST_AXES, MOST_EACH, MOST = 12, 32, 400  # sizes that are tried, ways to give them to several inputs, tries in all


@dataclass(frozen=True, eq=False)
class Guess:
    """Inputs to try: shapes of all, what integer inputs hold beside random values, and the values."""

    sizes: Sizes
    fills: Fills
    feeds: Feeds


def guesses(
    model: Model, shapes: Shapes, input_shapes: Sizes | None, *, seed: int = 0, refill: bool = True
) -> Iterator[Guess]:
    """Inputs at the sizes with which the graph is consistent, with `refill` also with other values in the integer
    inputs that are free; then at all other sizes that come to mind, and with `refill` with other values, small first.

    shapes: of the model's tensors; input_shapes: given by the user. Raises `OptionError` where these do not fit.
    """

    def apart(sizes: Sizes) -> bool:
        known = ((shape, shapes.shapes.get(name, shape)) for name, shape in sizes.items())
        return any(d not in (None, size) for shape, dims in known for size, d in zip(shape, dims, strict=True))

    every = sorted(concrete_inputs(model, input_shapes), key=apart)
    free = free_inputs(model, shapes) if refill else []

    def other(sizes: Sizes) -> Iterator[Guess]:
        return refilled(model, free, sizes, random_feeds(model, shapes, sizes, seed=seed)) if free else iter(())

    for sizes in every:
        yield Guess(sizes, {}, random_feeds(model, shapes, sizes, seed=seed))
        if sizes is every[0]:
            yield from other(sizes)
    small = sorted(every[1:], key=lambda sizes: sum(math.prod(shape) for shape in sizes.values()))
    yield from islice(chain.from_iterable(map(other, small)), MOST)


def refilled(model: Model, free: Sequence[str], sizes: Sizes, feeds: Feeds) -> Iterator[Guess]:
    """Inputs with other values in the free ones: sizes of axes and of two axes together, which lengths are, and one
    less, which the last position is; then ones, zeros, places, which may leave much of the model without effect."""
    rungs: list[tuple[Fill | None, ...]] = [(None, Fill(a), Fill(a, plus=-1)) for a in lengths(model, sizes)]
    for rung in (*rungs, CONSTANT):
        for chosen in islice(product(rung, repeat=len(free)), 1, MOST_EACH):
            fills = {name: fill for name, fill in zip(free, chosen, strict=True) if fill is not None}
            yield Guess(sizes, fills, filled(feeds, fills, sizes))


def filled(feeds: Feeds, fills: Fills, sizes: Sizes) -> Feeds:
    """The inputs with what some of them hold instead."""
    return feeds | {n: f.values(feeds[n].shape, sizes).astype(feeds[n].dtype) for n, f in fills.items()}


def free_inputs(model: Model, shapes: Shapes) -> list[str]:
    """Inputs of integers or booleans that index nothing and are compared with nothing; bytes hold data."""
    limits, choices, _ = _integer_ranges(model, shapes)
    free = []
    for info in graph_inputs(model):
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type or TensorProto.FLOAT))
        whole = dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize > 1)
        if whole and info.name not in limits and info.name not in choices:
            free.append(info.name)
    return free


def lengths(model: Model, sizes: Sizes) -> list[tuple[tuple[str, int], ...]]:
    """Axes of inputs whose sizes a length may have, and pairs of axes whose sizes it may have together; each value
    once, dynamic axes first."""
    infos = {i.name: i.type.tensor_type.shape.dim for i in graph_inputs(model)}
    axes = [(name, k) for name, dims in infos.items() if name in sizes for k in range(min(len(dims), len(sizes[name])))]
    dynamic = [(name, k) for name, k in axes if not fixed(infos[name][k])]
    pairs = combinations(dynamic, 2)
    still = [axis for axis in axes if axis not in dynamic]
    found: dict[int, tuple[tuple[str, int], ...]] = {}
    for chosen in (*((axis,) for axis in dynamic), *pairs, *((axis,) for axis in still)):
        found.setdefault(sum(sizes[name][k] for name, k in chosen), chosen)
    return list(found.values())[:MOST_AXES]


def first_running(model: Model, tried: Iterable[Guess]) -> tuple[Guess | None, str]:
    """The first inputs with which onnxruntime runs the model; else None, and onnxruntime's reason for the first."""
    reason = ""
    try:
        with session(model, optimize=False) as s:
            for guess in tried:
                try:
                    s.run(None, guess.feeds)
                except UNRUNNABLE as e:
                    reason = reason or one_line(e)
                else:
                    return guess, ""
    except UNRUNNABLE as e:  # it does not load
        reason = reason or one_line(e)
    return None, reason


def likely_feeds(model: Model, shapes: Shapes, input_shapes: Sizes | None, *, seed: int = 0) -> list[Feeds]:
    """Inputs to try: where integer inputs are free those with which the model runs, else guesses of the sizes."""
    if free_inputs(model, shapes):
        found, _ = first_running(model, guesses(model, shapes, input_shapes, seed=seed))
        if found is not None:
            return [found.feeds]
    return [guess.feeds for guess in guesses(model, shapes, input_shapes, seed=seed, refill=False)]


def fills_at(model: Model, shapes: Shapes, sizes: Sizes, *, seed: int = 0) -> Fills:
    """What the integer inputs that are free must hold for the model to run at these sizes; {} for random values."""
    free = free_inputs(model, shapes)
    if not free:
        return {}
    feeds = random_feeds(model, shapes, sizes, seed=seed)
    found, _ = first_running(model, chain([Guess(sizes, {}, feeds)], refilled(model, free, sizes, feeds)))
    return {} if found is None else found.fills


def random_feeds(model: Model, shapes: Shapes, inputs: Sizes, *, seed: int = 0) -> Feeds:
    """Seeded inputs: normal floats, integers inside the axis that they index, lengths of whole sequences, booleans all
    true.

    inputs: concrete shape per input, as `concrete_inputs` gives them.
    """
    rng = np.random.default_rng(seed)
    limits, choices, times = _integer_ranges(model, shapes)
    feeds: Feeds = {}
    for info in graph_inputs(model):
        t = info.type.tensor_type
        shape = list(inputs.get(info.name, ()))
        dtype = helper.tensor_dtype_to_np_dtype(t.elem_type or TensorProto.FLOAT)
        free = info.name not in limits and info.name not in choices
        if free and "mask" in info.name.lower() and np.dtype(dtype).kind in "iu":
            feeds[info.name] = np.ones(shape, dtype)  # all positions count: others may be refused, or give no number
            continue
        if free and info.name in times:  # of shorter ones a recurrence may show nothing
            steps = _length(model, shapes, inputs, *times[info.name])
            feeds[info.name] = steps.values(tuple(shape), inputs).astype(dtype)
            continue
        feeds[info.name] = _values(rng, shape, np.dtype(dtype), limits.get(info.name), choices.get(info.name))
    return feeds


def _length(model: Model, shapes: Shapes, sizes: Sizes, source: str, axis: int) -> Fill:
    """The size of an axis of a tensor: that of an input's axis where one has the same, also at other sizes."""
    if source in sizes:
        return Fill(((source, axis),))
    steps = shapes.shapes[source][axis] or 0
    known = {name: shapes.shapes.get(name, ()) for name in sizes}
    whole = {name: tuple(d for d in shape if d is not None) for name, shape in known.items() if None not in shape}
    for axes in lengths(model, whole):
        if sum(whole[name][k] for name, k in axes) == steps:
            return Fill(axes)
    return Fill(plus=steps)


def _values(
    rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any], limit: int | None, choices: list[int] | None
) -> Array:
    if dtype == np.bool_:
        return np.full(shape, choices[0] if choices else True, dtype)
    if dtype.kind in "iu":
        if choices:
            return rng.choice(np.array(choices, dtype), shape)
        if limit is not None:
            return rng.integers(0, max(limit, 1), shape).astype(dtype)
        if dtype.itemsize == 1:
            info = np.iinfo(dtype)
            return rng.integers(info.min, int(info.max) + 1, shape).astype(dtype)
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "OSU":
        return np.full(shape, "a", dtype=object)
    return np.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)


RECURRENT = {op for op, trait in TRAITS.items() if trait.recurs}
LENGTHS = 4  # their input of `sequence_lens`
PASSING = {
    "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Flatten", "Slice", "Concat", "Split", "Expand",
    "Tile", "Gather", "Clip",
}  # fmt: skip


def _integer_ranges(model: Model, shapes: Shapes) -> tuple[dict[str, int], dict[str, list[int]], dict[str, Along]]:
    """Input -> exclusive upper bound from what it indexes; input -> values that it is compared with; input -> tensor
    and time axis that it holds lengths of."""
    source = {i.name: i.name for i in graph_inputs(model) if i.type.tensor_type.elem_type != TensorProto.FLOAT}
    limits: dict[str, int] = {}
    choices: dict[str, list[int]] = {}
    times: dict[str, Along] = {}
    for node in walk_all(model.proto.graph, shapes.opsets):
        first = node.input(0)
        if node.op in PASSING and first in source:
            for o in node.outputs:
                source[o] = source[first]
        bound = None
        if node.op in ("Gather", "GatherElements") and node.input(1) in source:
            data = shapes.shapes.get(first)
            bound = data[node.attr("axis", 0)] if data else None
            name = source[node.input(1)]
        elif node.op == "RoiAlign" and node.input(2) in source:
            bound, name = (shapes.shapes.get(first) or (1,))[0], source[node.input(2)]
        elif node.op == "OneHot" and first in source and node.input(1) in shapes.known:
            bound, name = int(shapes.known[node.input(1)].ravel()[0]), source[first]
        if bound:
            limits[name] = min(limits.get(name, bound), bound)
        if node.op in RECURRENT and node.input(LENGTHS) in source:
            axis = int(node.attr("layout", 0))
            if (shapes.shapes.get(first) or (None, None))[axis] is not None:
                times[source[node.input(LENGTHS)]] = first, axis
        if node.op == "Dropout" and node.input(2) in source:
            choices.setdefault(source[node.input(2)], []).append(0)  # in training mode it is random
        if node.op == "Equal":
            for a, b in (node.inputs, node.inputs[::-1]):
                value = shapes.known.get(b)
                if a in source and value is not None and value.size == 1:
                    choices.setdefault(source[a], []).append(int(value.ravel()[0]))
    return limits, choices, times
