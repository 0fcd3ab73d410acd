"""How sparse weights lie in a file: packing, checking and unpacking, as docs/sparse-format.md says.

CSR takes a matrix W `[M, K]`; N:M takes rows `[S, L]` that are cut into blocks of m; BSR takes rows `[G, N, K]` that
are cut into tiles (all of a matrix, G = 1, or each group of a Conv). All keep every weight bit for
bit, in float32 or as the codes of `formats.values`: what is not stored is +0.0, so that -0.0 and NaN are stored.
`unpack` reads the weight of a node of a file.

    >>> import numpy as np
    >>> from onnxprune.formats import pack_bsr, pack_csr, pack_nm
    >>> values, indices, indptr = pack_csr(np.array([[0, 2, 0], [0, 0, 0], [3, 0, 4]], np.float32))
    >>> values.tolist(), indices.tolist(), indptr.tolist()
    ([2.0, 3.0, 4.0], [1, 0, 2], [0, 1, 1, 3])
    >>> values, positions = pack_nm(np.array([[0, 5, 0, 6]], np.float32), 2, 4)
    >>> values.tolist(), positions.tolist()  # 1 + 4 * 3
    ([[[5.0, 6.0]]], [[13]])
    >>> values, indices, indptr = pack_bsr(np.array([[[0, 0, 5], [0, 0, 6], [7, 0, 0]]], np.float32), 2, 2, 3)
    >>> values.tolist(), indices.tolist(), indptr.tolist()  # tiles at the edges are filled up with zeros
    ([[[5.0, 0.0], [6.0, 0.0]], [[7.0, 0.0], [0.0, 0.0]]], [1, 0], [0, 1, 2])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto

from onnxprune.errors import OptionError
from onnxprune.formats.arrays import (
    EXPORT,
    FLOATS,
    Types,
    check_array,
    check_size,
    matrix_of,
    rows_of,
)
from onnxprune.formats.bsr import check_bsr, unpack_bsr
from onnxprune.formats.csr import check_csr, unpack_csr
from onnxprune.formats.nm import check_nm, unpack_nm
from onnxprune.formats.operators import DENSE, OPERATORS, Operator
from onnxprune.formats.values import decode
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, graphs, load
from onnxprune.graph.messages import fault, show
from onnxprune.graph.node import Node
from onnxprune.graph.reading import DENSE_LIMIT, DENSE_RATIO
from onnxprune.kernels.names import DOMAIN, VALUES
from onnxprune.layers.layer import from_blocks, from_rows


@dataclass(frozen=True)
class Weight:
    """The weight of a sparse node, checked: `dense()` is safe.

    shape: of W, as in the attribute. arrays: values, indices, indptr, for Bsr with group; or values, positions, with n
    and m; and scale.
    """

    where: str
    operator: Operator
    shape: tuple[int, ...]
    arrays: Mapping[str, Array] = field(repr=False)
    n: int = 0
    m: int = 0
    group: int = 1

    @property
    def stored(self) -> int:
        """Bytes in the file."""
        return sum(array.nbytes for array in self.arrays.values())

    def dense(self) -> Array:
        """W float32 of `shape`."""
        a = self.arrays
        if self.operator.storage == "Csr":
            codes = unpack_csr(a["values"], a["indices"], a["indptr"], matrix_of(self.shape)).reshape(self.shape)
        elif self.operator.storage == "Bsr":
            shape = rows_of(self.shape, self.group)
            codes = from_rows(unpack_bsr(a["values"], a["indices"], a["indptr"], shape, self.shape[1]), self.shape)
        else:
            codes = from_blocks(unpack_nm(a["values"], a["positions"], self.m, self.shape[1]), self.shape)
        return np.ascontiguousarray(decode(codes, a.get("scale")))


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
        _check_attribute(where, node, name)
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
    check_array(where, "bias", arrays.pop("bias"), single, (shape[0],))
    types: Types = FLOATS
    if operator.scaled:
        types = [VALUES["int8"]]
        scale = arrays["scale"]
        check_array(where, "scale", scale, single, (shape[0],))
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise fault(where, "a scale of finite numbers above 0", "others", EXPORT)
    weight = Weight(where, operator, tuple(shape), arrays)
    limit = max(DENSE_LIMIT, DENSE_RATIO * weight.stored)
    if 4 * math.prod(shape) > limit:
        raise fault(where, f"a weight that unfolds to at most {limit} bytes", list(shape), EXPORT)
    if operator.storage == "Csr":
        check_csr(where, matrix_of(weight.shape), arrays["values"], arrays["indices"], arrays["indptr"], types=types)
        return weight
    if operator.storage == "Bsr":
        group = int(node.attr("group")) if operator.product == "Conv" else 1
        block = node.attr("block")
        if len(block) != 2:
            raise fault(where, "a block of two integers", show(block), EXPORT)
        r, c = block
        found = arrays["values"], arrays["indices"], arrays["indptr"]
        check_bsr(where, rows_of(weight.shape, group), r, c, weight.shape[1], *found, types=types)
        return Weight(where, operator, weight.shape, arrays, group=group)
    n, m = int(node.attr("n")), int(node.attr("m"))
    rows = math.prod(shape) // shape[1]
    check_nm(where, (rows, shape[1]), n, m, arrays["values"], arrays["positions"], types=types)
    return Weight(where, operator, weight.shape, arrays, n, m)


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


def _check_attribute(where: str, node: Node, name: str) -> None:
    """Type of an attribute, and the words that it may be."""
    types = {"alpha": float, "min": float, "max": float, "n": int, "m": int, "group": int, "weight": str, "dense": str}
    words = {"weight": ("MK", "KM"), "dense": DENSE}
    value, kind = node.attr(name), types.get(name, list)
    whole = kind is not list or (isinstance(value, list) and all(isinstance(v, int) for v in value))
    if not isinstance(value, kind) or not whole or value not in words.get(name, (value,)):
        expected = " or ".join(words[name]) if name in words else "integers" if kind is list else kind.__name__
        raise fault(where, f"an attribute {name} ({expected})", "none" if value is None else show(value), EXPORT)


def _check_conv(where: str, node: Node, shape: Sequence[int]) -> None:
    spatial, group = len(shape) - 2, node.attr("group")
    if group < 1 or shape[0] % group:
        raise fault(where, f"a group that divides {shape[0]}", group, EXPORT)
    for name, count, least in (("strides", spatial, 1), ("dilations", spatial, 1), ("pads", 2 * spatial, 0)):
        value = node.attr(name)
        if len(value) != count or min(value) < least:
            raise fault(where, f"{name}: {count} integers from {least} up", show(value), EXPORT)
