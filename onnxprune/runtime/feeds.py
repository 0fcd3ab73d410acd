"""Inputs that a model runs with, where nobody gives any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.node import walk_all
from onnxprune.graph.shapes import Shapes, graph_inputs
from onnxprune.runtime.session import Feeds


def random_feeds(model: Model, shapes: Shapes, inputs: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> Feeds:
    """Seeded inputs: normal floats, integers inside the axis that they index, booleans all true.

    inputs: concrete shape per input, as `concrete_inputs` gives them.
    """
    rng = np.random.default_rng(seed)
    limits, choices = _integer_ranges(model, shapes)
    feeds: Feeds = {}
    for info in graph_inputs(model):
        t = info.type.tensor_type
        shape = list(inputs.get(info.name, ()))
        dtype = helper.tensor_dtype_to_np_dtype(t.elem_type or TensorProto.FLOAT)
        free = info.name not in limits and info.name not in choices
        if free and "mask" in info.name.lower() and np.dtype(dtype).kind in "iu":
            feeds[info.name] = np.ones(shape, dtype)  # all positions count: others may be refused, or give no number
            continue
        feeds[info.name] = _values(rng, shape, np.dtype(dtype), limits.get(info.name), choices.get(info.name))
    return feeds


def _values(
    rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any], limit: int | None, choices: list[int] | None
) -> Array:
    if dtype == np.bool_:
        return np.ones(shape, dtype)
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


PASSING = {
    "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Flatten", "Slice", "Concat", "Split", "Expand",
    "Tile", "Gather", "Clip",
}  # fmt: skip


def _integer_ranges(model: Model, shapes: Shapes) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Input -> exclusive upper bound from what it indexes; input -> values that it is compared with."""
    source = {i.name: i.name for i in graph_inputs(model) if i.type.tensor_type.elem_type != TensorProto.FLOAT}
    limits: dict[str, int] = {}
    choices: dict[str, list[int]] = {}
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
        if node.op == "Equal":
            for a, b in (node.inputs, node.inputs[::-1]):
                value = shapes.known.get(b)
                if a in source and value is not None and value.size == 1:
                    choices.setdefault(source[a], []).append(int(value.ravel()[0]))
    return limits, choices
