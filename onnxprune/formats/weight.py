"""The weight of a sparse node of a file: read, checked, unpacked, as docs/sparse-format.md says.

All formats keep every weight bit for bit, in float32 or as the codes of `formats.values`: what is not stored is +0.0,
so that -0.0 and NaN are stored. `unpack` reads the weight of a node of a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.errors import OptionError
from onnxprune.formats.arrays import EXPORT, FLOATS, Types, check_array, check_size
from onnxprune.formats.format import Packed
from onnxprune.formats.int8 import ACTIVATIONS, FOURS
from onnxprune.formats.operators import DENSE, OPERATORS, Operator
from onnxprune.formats.values import decode
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, graphs, load
from onnxprune.graph.messages import fault, show
from onnxprune.graph.node import Node
from onnxprune.graph.reading import DENSE_LIMIT, DENSE_RATIO
from onnxprune.kernels.names import DOMAIN, RESULTS, VALUES


@dataclass(frozen=True)
class Weight(Packed):
    """The weight of a sparse node, checked: `dense()` is safe. where: the node, for messages."""

    where: str
    operator: Operator

    def codes(self) -> Array:
        """The values as they are stored, of `shape`."""
        return np.ascontiguousarray(self.operator.storage.unpack(self))

    def dense(self) -> Array:
        """The weight as it computes, float32 of `shape`."""
        return np.ascontiguousarray(decode(self.codes(), self.arrays.get("scale")))


def read_weight(model: Model, proto: NodeProto) -> Weight:
    """The weight of a node of domain onnxprune.

    Raises ModelFileError, one line that names node and array, where it breaks the format, or where it would unfold to
    more than 1 GiB and 64 times what is stored.
    """
    where = f"{show(proto.op_type)[1:-1]} {show(proto.name or next(iter(proto.output), ''))}"
    operator = OPERATORS.get(proto.op_type)
    if operator is None or proto.domain != DOMAIN:
        raise fault(where, f"an operator of domain {DOMAIN}", f"{show(proto.domain)}", "update onnxprune")
    node = Node(proto, 1)
    if len(node.inputs) != len(operator.inputs) or "" in node.inputs:
        raise fault(where, f"inputs {', '.join(operator.inputs)}", node.inputs, EXPORT)
    if len(node.outputs) != 1 or not node.outputs[0]:
        raise fault(where, "one output", node.outputs, EXPORT)
    for name in operator.attributes:
        _check_attribute(where, node, name, operator.storage.attributes.get(name))
    arrays = {}
    for name, value in zip(operator.inputs, node.inputs, strict=True):
        if name in ("X", "residual"):
            continue
        if value not in model.weights:
            raise fault(where, f"{name} that is constant", show(value), EXPORT)
        arrays[name] = model.weights[value]
    shape = list(node.attr("shape"))
    if len(shape) not in ((3, 4) if operator.product == "Conv" else (2,)):
        raise fault(where, "a shape of a " + ("Conv" if operator.product == "Conv" else "matrix"), shape, EXPORT)
    check_size(where, shape)
    if operator.product == "Conv":
        _check_conv(where, node, shape)
    single = [np.dtype(np.float32)]
    steps = {name: arrays.pop(name) for name in operator.steps}
    check_array(where, "bias", arrays.pop("bias"), [np.dtype(np.int32)] if steps else single, (shape[0],))
    types: Types = FLOATS
    if operator.scaled:
        types = [VALUES["int8"]]
        scale = arrays["scale"]
        check_array(where, "scale", scale, single, (shape[0],))
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise fault(where, "a scale of finite numbers above 0", "others", EXPORT)
    _check_steps(where, steps, node)
    if steps:
        _check_factors(where, node, arrays["scale"], steps)
    limit = max(DENSE_LIMIT, DENSE_RATIO * sum(array.nbytes for array in arrays.values()))
    if 4 * math.prod(shape) > limit:
        raise fault(where, f"a weight that unfolds to at most {limit} bytes", list(shape), EXPORT)
    group = int(node.attr("group")) if operator.product == "Conv" else 1
    weight = Weight(tuple(shape), arrays, operator.storage.read(where, node), group, where, operator)
    operator.storage.check(where, weight, types)
    return weight


def unpack(source: Any, node: str) -> Array:
    """The dense weight float32 of a sparse node, in the shape of its attribute `shape`.

    source: a path, bytes, a `ModelProto` or a `Model`; node: the node's name, or its first output.
    Raises OptionError where there is no such node, ModelFileError where the file breaks the format.
    """
    model = load(source)
    for graph in graphs(model.proto.graph):
        for proto in graph.node:
            if proto.domain == DOMAIN and node and node in (proto.name, *proto.output[:1]):
                return read_weight(model, proto).dense()
    raise OptionError(f"no sparse node {show(node)}")


def _check_attribute(where: str, node: Node, name: str, storage_type: type[Any] | None) -> None:
    """Type of an attribute, and the words that it may be. storage_type: of one of the storage's own attributes."""
    types = {"alpha": float, "min": float, "max": float, "group": int, "weight": str, "dense": str}
    words = {"weight": ("MK", "KM"), "dense": DENSE}
    value, kind = node.attr(name), storage_type or types.get(name, list)
    whole = kind is not list or (isinstance(value, list) and all(isinstance(v, int) for v in value))
    if not isinstance(value, kind) or not whole or value not in words.get(name, (value,)):
        expected = " or ".join(words[name]) if name in words else "integers" if kind is list else kind.__name__
        raise fault(where, f"an attribute {name} ({expected})", "none" if value is None else show(value), EXPORT)


def _check_factors(where: str, node: Node, scale: Array, steps: Mapping[str, Array]) -> None:
    """What scales and alpha make together."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        factors = np.float32(node.attr("alpha")) * steps["x_scale"] * scale / steps.get("y_scale", np.float32(1))
    if not np.isfinite(factors).all():
        raise fault(where, "alpha and scales that make a finite factor", "others", EXPORT)


def _check_steps(where: str, steps: Mapping[str, Array], node: Node) -> None:
    """How X and Y are quantized, and tiles that operators on integers can read."""
    for name, array in steps.items():
        types = [np.dtype(np.float32)] if name.endswith("scale") else list(ACTIVATIONS)
        if name == "y_zero_point":
            types = [RESULTS[OPERATORS[node.proto.op_type].result]]
        check_array(where, name, array, types, ())
        if name.endswith("scale") and not (np.isfinite(array) and array > 0):
            raise fault(where, f"{name} that is finite and above 0", array, EXPORT)
    block = node.attr("block") if steps else [0, FOURS]
    if len(block) == 2 and block[1] % FOURS:
        raise fault(where, f"a block of a multiple of {FOURS} columns", show(block), EXPORT)


def _check_conv(where: str, node: Node, shape: Sequence[int]) -> None:
    spatial, group = len(shape) - 2, node.attr("group")
    if group < 1 or shape[0] % group:
        raise fault(where, f"a group that divides {shape[0]}", group, EXPORT)
    for name, count, least in (("strides", spatial, 1), ("dilations", spatial, 1), ("pads", 2 * spatial, 0)):
        value = node.attr(name)
        if len(value) != count or min(value) < least:
            raise fault(where, f"{name}: {count} integers from {least} up", show(value), EXPORT)
