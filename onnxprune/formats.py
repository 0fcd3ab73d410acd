"""How sparse weights lie in a file: packing, checking and unpacking, as docs/sparse-format.md says.

CSR takes a matrix W `[M, K]`; N:M takes rows `[S, L]` that are cut into blocks of m; BSR takes rows `[G, N, K]` that
are cut into tiles (all of a matrix, G = 1, or each group of a Conv). All keep every weight bit for
bit, in float32 or as the codes of `sparsity.values`: what is not stored is +0.0, so that -0.0 and NaN are stored.
`unpack` reads the weight of a node of a file.

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
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, graphs, load
from onnxprune.graph.messages import fault, show
from onnxprune.graph.node import Node
from onnxprune.graph.reading import DENSE_LIMIT, DENSE_RATIO
from onnxprune.sparsity.layers import from_blocks, from_rows
from onnxprune.sparsity.operators import DENSE, DOMAIN, OPERATORS, Operator
from onnxprune.sparsity.values import VALUES, decode, encode, round_values

__all__ = [
    "Weight",
    "check_bsr",
    "check_csr",
    "check_nm",
    "decode",
    "encode",
    "index_type",
    "pack_bsr",
    "pack_csr",
    "pack_nm",
    "position_bits",
    "read_weight",
    "round_values",
    "unpack",
    "unpack_bsr",
    "unpack_csr",
    "unpack_nm",
]

MAX_ELEMENTS = 1 << 31  # of a weight; row pointers are int32
WIDE = 1 << 16  # columns that uint16 can tell apart
EXPORT = "convert the dense model again"
MAX_TILE = 64  # rows or columns of a tile
FLOATS = tuple(dtype for name, dtype in VALUES.items() if name != "int8")  # values without a scale


def index_type(k: int) -> np.dtype[Any]:
    """Type of the column indices of a matrix with k columns."""
    return np.dtype(np.uint16 if k <= WIDE else np.int32)


def position_bits(m: int) -> int:
    """Bits of one position in a block of m.

    >>> [position_bits(m) for m in (2, 3, 4, 8, 256)]
    [1, 2, 2, 3, 8]
    """
    return max(1, (m - 1).bit_length())


def pack_csr(w: Array) -> tuple[Array, Array, Array]:
    """Values `[nnz]`, indices uint16 or int32 `[nnz]`, indptr int32 `[M + 1]` of W `[M, K]`, float32 or codes.

    Raises OptionError where more weights are left than int32 can count.
    """
    w = np.ascontiguousarray(_storable(w))
    kept = _bits(w) != 0
    indptr = np.zeros(len(w) + 1, np.int64)
    np.cumsum(np.count_nonzero(kept, axis=1), out=indptr[1:])
    if indptr[-1] >= MAX_ELEMENTS:
        raise OptionError(f"csr: {indptr[-1]} weights of one matrix are left, it can hold {MAX_ELEMENTS - 1}")
    columns = np.nonzero(kept)[1].astype(index_type(w.shape[1]))
    return w[kept], columns, indptr.astype(np.int32)


def unpack_csr(values: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> Array:
    """W `[M, K]`, of the type of the values, from what `check_csr` has let through."""
    w = np.zeros(shape, values.dtype)
    w[np.repeat(np.arange(shape[0]), np.diff(indptr)), indices] = values
    return w


def pack_nm(blocks: Array, n: int, m: int) -> tuple[Array, Array]:
    """Values `[S, B, n]` and positions uint8 `[S, ceil(B * n * bits / 8)]` of rows `[S, L]`, float32 or codes.

    B = ceil(L / m). A block with fewer than n weights is filled up with the first of its free places.
    Raises OptionError where n:m is no pattern, or a block holds more than n weights.
    """
    if not (1 <= n <= m and 2 <= m <= 256):
        raise OptionError(f"pattern {n}:{m}: 1 <= n <= m and 2 <= m <= 256 must hold")
    blocks = _storable(blocks)
    rows, length = blocks.shape
    count = -(-length // m)
    padded = np.zeros((rows, count * m), blocks.dtype)
    padded[:, :length] = blocks
    padded = padded.reshape(rows, count, m)
    chosen = _bits(padded) != 0
    free = n - np.count_nonzero(chosen, axis=2, keepdims=True)
    if (free < 0).any():
        row, block, _ = np.argwhere(free < 0)[0]
        found = n - int(free[row, block, 0])
        raise OptionError(f"pattern {n}:{m}: block {block} of row {row} holds {found} weights that are not +0.0")
    for i in range(m):  # the first `free` places without a weight
        place = chosen[:, :, i]
        free -= ~place[:, :, None]
        place |= free[:, :, 0] >= 0
    places = np.nonzero(chosen)[2].astype(np.uint8).reshape(rows, count * n, 1)
    bits = (places >> np.arange(position_bits(m), dtype=np.uint8)) & 1
    return padded[chosen].reshape(rows, count, n), np.packbits(bits.reshape(rows, -1), axis=1, bitorder="little")


def unpack_positions(positions: Array, count: int, n: int, m: int) -> Array:
    """Places uint8 `[S, B, n]` from their bits `[S, bytes]`; count: B."""
    bits = position_bits(m)
    stream = np.unpackbits(positions, axis=1, count=count * n * bits, bitorder="little")
    places = stream[:, 0::bits]
    for i in range(1, bits):
        places = places | (stream[:, i::bits] << np.uint8(i))
    return places.reshape(len(positions), count, n)


def unpack_nm(values: Array, positions: Array, m: int, length: int) -> Array:
    """Rows `[S, L]`, of the type of the values, from what `check_nm` has let through; length: L."""
    rows, count, n = values.shape
    padded = np.zeros((rows, count, m), values.dtype)
    np.put_along_axis(padded, unpack_positions(positions, count, n, m).astype(np.int64), values, axis=2)
    return padded.reshape(rows, count * m)[:, :length]


def pack_bsr(rows: Array, r: int, c: int, segment: int) -> tuple[Array, Array, Array]:
    """Values `[nblocks, r, c]`, indices uint16 or int32 `[nblocks]`, indptr int32 `[G * ceil(N / r) + 1]` of rows
    `[G, N, K]`, float32 or codes; tiles do not cross a multiple of `segment` columns.

    Raises OptionError where r x c is no tile, or more tiles are left than int32 can count.
    """
    if not (1 <= r <= MAX_TILE and 1 <= c <= MAX_TILE):
        raise OptionError(f"block {r}x{c}: tiles have 1 to {MAX_TILE} rows and columns")
    group, n, k = rows.shape
    _storable(rows[0])
    down, across = -(-n // r), -(-segment // c)
    padded = np.zeros((group, down * r, k // segment, across * c), rows.dtype)
    padded[:, :n, :, :segment] = rows.reshape(group, n, -1, segment)
    tiles = padded.reshape(group * down, r, -1, c).transpose(0, 2, 1, 3)  # [block rows, block columns, r, c]
    kept = (_bits(tiles) != 0).any(axis=(2, 3))
    indptr = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(np.count_nonzero(kept, axis=1), out=indptr[1:])
    if indptr[-1] >= MAX_ELEMENTS:
        raise OptionError(f"bsr: {indptr[-1]} tiles of one matrix are left, it can hold {MAX_ELEMENTS - 1}")
    columns = np.nonzero(kept)[1].astype(index_type(kept.shape[1]))
    return tiles[kept], columns, indptr.astype(np.int32)


def unpack_bsr(values: Array, indices: Array, indptr: Array, shape: tuple[int, int, int], segment: int) -> Array:
    """Rows `[G, N, K]`, of the type of the values, from what `check_bsr` has let through."""
    group, n, k = shape
    _, r, c = values.shape
    down, across = -(-n // r), -(-segment // c)
    out = np.zeros((group, n, k // segment, segment), values.dtype)
    g, top = np.divmod(np.repeat(np.arange(group * down), np.diff(indptr)), down)
    part, left = np.divmod(indices.astype(np.int64), across)
    for i, j in np.ndindex(r, c):
        y, x = top * r + i, left * c + j
        inside = (y < n) & (x < segment)
        out[g[inside], y[inside], part[inside], x[inside]] = values[inside, i, j]
    return out.reshape(shape)


Types = Sequence[np.dtype[Any]]


def check_csr(
    where: str, shape: tuple[int, int], values: Array, indices: Array, indptr: Array, *, types: Types = FLOATS
) -> None:
    """Raise ModelFileError, naming `where` and the array, unless the arrays are W `[M, K]` as CSR.

    types: that the values may have.
    """
    _check_size(where, shape)
    rows, columns = shape
    nnz = values.size
    _check_array(where, "values", values, types, (nnz,))
    _check_columns(where, (rows, columns), nnz, indices, indptr)


def check_bsr(
    where: str, shape: tuple[int, int, int], r: int, c: int, segment: int, values: Array, indices: Array,
    indptr: Array, *, types: Types = FLOATS,
) -> None:  # fmt: skip
    """Raise ModelFileError, naming `where` and the array, unless the arrays are rows `[G, N, K]` in tiles of r x c.

    types: that the values may have.
    """
    if not (1 <= r <= MAX_TILE and 1 <= c <= MAX_TILE):
        raise fault(where, f"a block of 1 to {MAX_TILE} by 1 to {MAX_TILE}", f"{r} by {c}", EXPORT)
    _check_size(where, shape)
    group, n, k = shape
    down, across = -(-n // r), -(-segment // c)
    count = len(values) if values.ndim else 0
    _check_array(where, "values", values, types, (count, r, c))
    _check_columns(where, (group * down, k // segment * across), count, indices, indptr)
    lowest = np.repeat(np.arange(group * down) % down == down - 1, np.diff(indptr))
    below, right = values[lowest, n - (down - 1) * r :], values[indices.astype(np.int64) % across == across - 1]
    if (below != 0).any() or (right[:, :, segment - (across - 1) * c :] != 0).any():
        raise fault(where, "values that are 0 beyond the edges of the weight", "others", EXPORT)


def _check_columns(where: str, shape: tuple[int, int], nnz: int, indices: Array, indptr: Array) -> None:
    """Row pointers and columns of nnz entries of a matrix of this shape."""
    rows, columns = shape
    _check_array(where, "indices", indices, [index_type(columns)], (nnz,))
    _check_array(where, "indptr", indptr, [np.dtype(np.int32)], (rows + 1,))
    if indptr[0] != 0 or indptr[-1] != nnz:
        raise fault(where, f"indptr from 0 to {nnz}", f"{indptr[0]} to {indptr[-1]}", EXPORT)
    counts = np.diff(indptr.astype(np.int64))
    if (counts < 0).any():
        raise fault(where, "indptr that never falls", f"a fall at row {int(np.argmax(counts < 0))}", EXPORT)
    if nnz == 0:
        return
    if indices.max() >= columns or indices.min() < 0:
        raise fault(where, f"indices from 0 to {columns - 1}", f"{indices.min()} to {indices.max()}", EXPORT)
    rising = np.diff(indices.astype(np.int32)) > 0
    first = indptr[1:-1]  # where a row starts, the next index may be lower
    rising[first[(first > 0) & (first < nnz)] - 1] = True
    if not rising.all():
        at = int(np.argmin(rising)) + 1
        row = int(np.searchsorted(indptr, at, "right")) - 1
        raise fault(
            where, "indices that rise within a row", f"{indices[at]} after {indices[at - 1]}, row {row}", EXPORT
        )


def check_nm(
    where: str, shape: tuple[int, int], n: int, m: int, values: Array, positions: Array, *, types: Types = FLOATS
) -> None:
    """Raise ModelFileError, naming `where` and the array, unless the arrays are rows `[S, L]` as n:m; shape: (S, L).

    types: that the values may have.
    """
    if not (1 <= n <= m and 2 <= m <= 256):
        raise fault(where, "a pattern n:m with 1 <= n <= m and 2 <= m <= 256", f"{n}:{m}", EXPORT)
    _check_size(where, shape)
    rows, length = shape
    count = -(-length // m)
    used = count * n * position_bits(m)
    _check_array(where, "values", values, types, (rows, count, n))
    _check_array(where, "positions", positions, [np.dtype(np.uint8)], (rows, -(-used // 8)))
    if used % 8 and (positions[:, -1] >> np.uint8(used % 8)).any():
        raise fault(where, f"positions of {used} bits in a row, then zeros", "a bit that is set after them", EXPORT)
    places = unpack_positions(positions, count, n, m)
    if int(places.max()) >= m:
        raise fault(where, f"positions from 0 to {m - 1}", int(places.max()), EXPORT)
    wrong = places[:, :, 1:] <= places[:, :, :-1]
    if wrong.any():
        row, block, _ = np.argwhere(wrong)[0]
        found = places[row, block].tolist()
        raise fault(where, "positions that rise within a block", f"{found} in block {block} of row {row}", EXPORT)
    beyond = places[:, -1].astype(np.int64) + (count - 1) * m >= length
    if (values[:, -1][beyond] != 0).any():
        raise fault(where, f"values that are 0 beyond the {length} weights of a row", "others", EXPORT)


def _storable(w: Array) -> Array:
    if w.dtype not in VALUES.values() or w.ndim != 2:
        raise OptionError(f"a sparse weight must be {' or '.join(VALUES)} of rank 2, not {w.dtype} of rank {w.ndim}")
    return w


def _bits(w: Array) -> Array:
    """The bits of every weight, as unsigned integers."""
    return w.view(np.dtype(f"u{w.itemsize}"))


def _check_size(where: str, shape: Sequence[int]) -> None:
    if min(shape) < 1 or math.prod(shape) >= MAX_ELEMENTS:
        raise fault(where, f"a shape of 1 to {MAX_ELEMENTS - 1} weights", list(shape), EXPORT)


def _check_array(where: str, name: str, array: Array, types: Types, shape: tuple[int, ...]) -> None:
    if array.dtype not in types or array.shape != shape:
        expected = f"{name} of {' or '.join(map(str, types))} {list(shape)}"
        raise fault(where, expected, f"{array.dtype} {list(array.shape)}", EXPORT)


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
            codes = unpack_csr(a["values"], a["indices"], a["indptr"], _matrix(self.shape)).reshape(self.shape)
        elif self.operator.storage == "Bsr":
            shape = _rows(self.shape, self.group)
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
    _check_size(where, shape)
    if operator.product == "Conv":
        _check_conv(where, node, shape)
    single = [np.dtype(np.float32)]
    _check_array(where, "bias", arrays.pop("bias"), single, (shape[0],))
    types: Types = FLOATS
    if operator.scaled:
        types = [VALUES["int8"]]
        scale = arrays["scale"]
        _check_array(where, "scale", scale, single, (shape[0],))
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise fault(where, "a scale of finite numbers above 0", "others", EXPORT)
    weight = Weight(where, operator, tuple(shape), arrays)
    limit = max(DENSE_LIMIT, DENSE_RATIO * weight.stored)
    if 4 * math.prod(shape) > limit:
        raise fault(where, f"a weight that unfolds to at most {limit} bytes", list(shape), EXPORT)
    if operator.storage == "Csr":
        check_csr(where, _matrix(weight.shape), arrays["values"], arrays["indices"], arrays["indptr"], types=types)
        return weight
    if operator.storage == "Bsr":
        group = int(node.attr("group")) if operator.product == "Conv" else 1
        block = node.attr("block")
        if len(block) != 2:
            raise fault(where, "a block of two integers", show(block), EXPORT)
        r, c = block
        found = arrays["values"], arrays["indices"], arrays["indptr"]
        check_bsr(where, _rows(weight.shape, group), r, c, weight.shape[1], *found, types=types)
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


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _rows(shape: Sequence[int], group: int) -> tuple[int, int, int]:
    """Of `to_rows`."""
    return group, shape[0] // group, math.prod(shape[1:])


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
