"""Weights as indices into a codebook: clustering, the second step of Deep Compression (Han et al. 2016).

In goes a model; out comes a copy in which a weight is one of k values everywhere, found by `solvers.kmeans`, stored as
an index per value and unfolded by ONNX's own operators. onnxruntime does that once, when it loads the model (constant
folding, at any level of optimisation but none): files shrink, and a run takes the memory and the time that it took.
Loading takes more of both, for a weight of 67 MB 1.7 times the peak of the dense one as uint8, 2.8 to 3.7 as packed.
Zeros stay exactly zero, as one of the k values, so that pruning, clustering and then zip, in the place of Deep
Compression's Huffman codes, add up. The weight keeps its name: it is the output of the Gather now.

Cluster last: a weight that is computed cannot be made sparse, and few of its channels can be cut.

storage   in the file                                               unfolded by                            needs
uint8     a byte per index                                          Cast, Gather                           opset 7
packed    as many digits to the base k as a byte, uint16 or int32   Cast, Div, Mod, Reshape (Slice),       opset 7
          holds: 4 bits for k up to 16, 5.3 to 40, 6.4 to 73        Gather; below opset 10 Div, Mul, Sub
                                                                    in the place of Mod
uint4     UINT4, k up to 16                                         Cast, Gather                           opset 21
auto      packed where that is smaller, else uint8

A codebook per output channel is one long codebook, and an Add of the channel's start before the Gather.

Depthwise convolutions have codebooks of 256 values whatever k: they are few weights, and cannot do with less. (2% of
mobilenetv2: with k = 16 for them alone its top-1 falls from 0.87 to 0, with 256 it stays.)

Which runtimes load what, as tried with models of opset 7 to 23 on the CPU: uint8 and packed run and are folded in every
onnxruntime that knows the model's opset (1.16, 1.18, 1.19, 1.20, 1.22, 1.23, 1.31). UINT4 came with opset 21 and IR 10;
onnxruntime can Cast it from 1.23 on. (DequantizeLinear takes it from 1.19 on, but is never folded.) uint4 is therefore
never chosen by itself: packed is as small. OpenVINO 2026.4 and onnx's reference evaluator run all of them. Gather takes
indices of int32 or int64 only, hence the Cast.

    >>> from onnxprune import load
    >>> clustered, rows, notes = cluster(load("models/digits_mlp.onnx"), k=16)
    >>> rows[0].before_bytes, rows[0].after_bytes
    (65536, 8256)
"""

from __future__ import annotations

import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.graph.arrays import Array, stored_size
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model, save
from onnxprune.graph.node import opsets, walk
from onnxprune.graph.protos import all_tensors, constants, is_constant, overridable, place
from onnxprune.graph.step import Step
from onnxprune.graph.traits import TRAITS
from onnxprune.progress import Progress
from onnxprune.solvers.kmeans import LARGEST, kmeans, kmeans_rows
from onnxprune.structure.check import check_file

CLUSTERED = {op: t for op, t in TRAITS.items() if t.clustered}
PER = ("tensor", "channel")
INDEX_TYPES = ("auto", "uint8", "uint4", "packed")
MIN_OPSET = 7
UINT4 = {"opset": 21, "ir_version": 10, "k": 16}
CONTAINERS = ((np.uint8, 1 << 8), (np.uint16, 1 << 16), (np.int32, 1 << 31))  # of digits: type, numbers from 0 on
CHUNK = 1 << 20


@dataclass(frozen=True)
class Clusterable:
    """A weight that can be clustered. op: operator that reads it first; axis: of its output channels, which for a
    table that Gather reads are the columns; depthwise: a convolution with one input channel per output."""

    name: str
    op: str
    axis: int
    shape: tuple[int, ...]
    depthwise: bool


@dataclass(frozen=True)
class Clustered:
    """What became of a weight.

    k: values in its codebook, the largest of all channels'; storage: uint8, uint4 or packed; before_bytes, after_bytes:
    of its arrays in the file, codebook included; error: sum of m (w - q)^2 over that of m w^2, m its importance or 1;
    zeros: values that are 0 now.
    """

    weight: str
    k: int
    per: str
    storage: str
    size: int
    before_bytes: int
    after_bytes: int
    error: float
    zeros: int

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file for one value of the weight, its share of the codebook included."""
        return 8 * self.after_bytes / self.size


@dataclass(frozen=True, eq=False)
class Fitted:
    """A weight as indices. codebook: float32 `(1 or channels, values)`; indices: uint8, in the weight's shape; per,
    storage: as they pay; error: as of `Clustered`."""

    weight: Clusterable
    codebook: Array
    indices: Array
    per: str
    storage: str
    error: float

    @property
    def bytes(self) -> int:
        """Of indices and codebook in the file."""
        return _bytes(self.storage, self.codebook.shape, self.indices.size)

    @property
    def nodes(self) -> int:
        """Bytes of the nodes that unfold them, about."""
        return _nodes(self.storage, self.per)

    @property
    def values(self) -> Array:
        """The weight that a runtime unfolds, float32."""
        return np.asarray(self.codebook[_channels(self.weight) if len(self.codebook) > 1 else 0, self.indices])


def values_of(weight: Clusterable, k: int) -> int:
    """Values of a codebook where k are asked for."""
    return LARGEST if weight.depthwise else k


def fitted(
    weight: Clusterable, w: Array, k: int, per: str = "tensor", storage: str = "auto", importance: Array | None = None
) -> Fitted | None:
    """A weight with the least error that k values allow; None where nothing makes it smaller. Arguments are those of
    `cluster`."""
    count = values_of(weight, k)
    cheapest = _cheapest(weight, count, per, storage)
    if cheapest is None:
        return None
    m = None if importance is None else _importance(weight.name, w.shape, importance)
    codebook, indices = _fit(w, weight.axis, count, cheapest[0], m)
    made = Fitted(weight, codebook, indices, *cheapest, 0.0)
    return replace(made, error=_error(w, made.values, m))


def cluster(
    model: Model,
    weights: Iterable[str] | None = None,
    k: int | Mapping[str, int] = 16,
    *,
    per: str = "tensor",
    storage: str = "auto",
    importance: Mapping[str, Array] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Model, list[Clustered], list[str]]:
    """A copy of the model with clustered weights, what became of each, and why others stay dense.

    weights: names, all of `find_weights` if left out; k: values per codebook, 2 to 256, or weight -> these; per: one
    codebook per weight, or per output channel where that pays; importance: weight -> how much an error of each value
    matters, at least 0, in a shape that broadcasts to the weight's, as the diagonal of the Hessian. The opset of the
    model stays as it is.
    Raises OptionError for what cannot be meant or stored, NothingToPrune where no weight becomes smaller.
    """
    clusterable, dense = find_weights(model)
    reasons, every = dict(dense), weights is None and not isinstance(k, Mapping)
    asked = dict(k) if isinstance(k, Mapping) else dict.fromkeys(clusterable if weights is None else weights, k)
    for most in sorted({*asked.values()}) or ([] if isinstance(k, Mapping) else [k]):
        _check(model, most, per, storage)
    for name in asked:
        if name not in clusterable:
            raise OptionError(f"weight {name!r} cannot be clustered: {reasons.get(name, 'no layer reads it')}")
    notes = [f"{name}: stays dense: {reason}" for name, reason in dense] if every else []
    unfolding = _Unfolding(model)
    rows = []
    for name, count in asked.items():
        weight = clusterable[name]
        progress(f"cluster {name}")
        made = fitted(weight, np.asarray(model.weights[name]), count, per, storage, (importance or {}).get(name))
        if made is None:
            notes.append(f"{name}: stays dense: a codebook, indices and their nodes would be no smaller")
            continue
        if values_of(weight, count) > count:
            notes.append(f"{name}: {LARGEST} values: a depthwise convolution cannot do with {count}")
        elif made.per != per:
            notes.append(
                f"{name}: one codebook for the whole weight: one per channel would be no smaller than the weight"
            )
        unfolding.add(made)
        q = made.values
        rows.append(
            Clustered(
                name, made.codebook.shape[1], made.per, made.storage, q.size, stored_size(model.weights[name]),
                made.bytes, made.error, q.size - int(np.count_nonzero(q)),
            )
        )  # fmt: skip
    if not rows:
        why = "; ".join(dict.fromkeys(note.split(": ", 1)[1] for note in notes)) or "no layer has one"
        raise NothingToPrune(f"{model.path or 'the model'}: no weight can be clustered: {why}")
    return unfolding.finish(), rows, notes


@dataclass(frozen=True)
class Codebooks:
    """What clustering a model made: its weights, and bytes of the deflated file before and after; original: of the file
    that came in, as it lies there, before anything was done to it."""

    k: int
    per: str
    storage: str
    rows: tuple[Clustered, ...]
    zipped_before: int
    zipped_after: int
    checked: bool = False  # the model was run
    original: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Of all clustered weights, codebooks included."""
        return 8 * sum(r.after_bytes for r in self.rows) / sum(r.size for r in self.rows)

    @property
    def ratio(self) -> float:
        """How many times smaller than the original the deflated file is (Han et al. 2016, Deep Compression)."""
        return self.original / self.zipped_after

    @property
    def zeros(self) -> dict[str, int]:
        """Weight -> values that are 0, for `Sparsity.recounted`."""
        return {r.weight: r.zeros for r in self.rows}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        rows = [{**vars(r), "bits_per_weight": r.bits_per_weight} for r in self.rows]
        own = {k: v for k, v in vars(self).items() if k != "rows"}
        said = {"ratio": self.ratio, "bits_per_weight": self.bits_per_weight, "values": self.values}
        return own | said | {"weights": rows}

    @property
    def values(self) -> str:
        """How many values weights have, in a message: `16`, or `4 to 256` where they differ."""
        few, most = (f(r.k for r in self.rows) for f in (min, max))
        return str(few) if few == most else f"{few} to {most}"


def codebooks(
    model: Model,
    k: int | Mapping[str, int],
    per: str,
    storage: str,
    importance: Mapping[str, Array] | None,
    progress: Progress,
) -> Step[Codebooks]:
    """`cluster` the weights of a model, checked against what onnx says of it, with its sizes."""
    out, rows, notes = cluster(model, k=k, per=per, storage=storage, importance=importance, progress=progress)
    notes += check_file(model, out)
    progress("zip")
    most = max(k.values()) if isinstance(k, Mapping) else k
    outcome = Codebooks(most, per, storage, tuple(rows), zipped_bytes(model), zipped_bytes(out))
    return Step(out, outcome, tuple(notes))


def find_weights(model: Model) -> tuple[dict[str, Clusterable], list[tuple[str, str]]]:
    """Weights of MatMul, Gemm, Conv, ConvTranspose, recurrent layers, and tables of Gather: float32, of rank 2 or more,
    in the main graph; and `(name, reason)` for those that cannot be clustered."""
    proto = model.proto
    initializers = {t.name for t in proto.graph.initializer} | {name for name, _, _ in constants(proto.graph)}
    outputs, defaults = {o.name for o in proto.graph.output}, overridable(proto)
    clusterable: dict[str, Clusterable] = {}
    dense: dict[str, str] = {}
    for node in walk(proto.graph, opsets(proto)):
        trait = CLUSTERED.get(node.op)
        for slot in sorted(trait.slots) if trait is not None else ():
            name = node.input(slot)
            w = model.weights.get(name)
            if (
                w is None
                or w.ndim < 2
                or w.dtype.kind in "iub"
                or name in clusterable
                or name in dense
                or name not in initializers
            ):
                continue
            if w.dtype != np.float32:
                dense[name] = f"{w.dtype} weights are not clustered; convert to float32 first"
            elif name in defaults:
                dense[name] = "it is an input of the model as well, which may override it"
            elif name in outputs:
                dense[name] = "it is an output of the model as well"
            elif not w.size or not np.isfinite(w).all():
                dense[name] = "it is empty, or holds NaN or infinity"
            else:
                depthwise = node.op == "Conv" and w.shape[1] == 1 and node.attr("group", 1) > 1
                assert trait is not None
                clusterable[name] = Clusterable(name, node.op, trait.axes(node, slot)[1] % w.ndim, w.shape, depthwise)
    return clusterable, list(dense.items())


def _check(model: Model, k: int, per: str, storage: str) -> None:
    for option, value, allowed in (("per", per, PER), ("storage", storage, INDEX_TYPES)):
        if value not in allowed:
            raise OptionError(f"--cluster-{option} {value}: unknown; choose one of {', '.join(allowed)}")
    if not 2 <= k <= LARGEST:
        raise OptionError(f"--cluster {k}: expected 2 to {LARGEST} values per codebook, as 16")
    opset, ir = opsets(model.proto).get("", 1), model.proto.ir_version
    if opset < MIN_OPSET:
        raise OptionError(f"opset {opset} is below {MIN_OPSET}, which clustered weights need; convert the model first")
    if storage == "uint4" and k > UINT4["k"]:
        raise OptionError(f"--cluster-storage uint4 holds {UINT4['k']} values; lower --cluster {k}, or use packed")
    if storage == "uint4" and (opset < UINT4["opset"] or ir < UINT4["ir_version"]):
        raise OptionError(
            f"--cluster-storage uint4 needs opset {UINT4['opset']} and IR version {UINT4['ir_version']}, the model has "
            f"{opset} and {ir}; packed is as small and needs opset {MIN_OPSET}"
        )


def _importance(name: str, shape: Sequence[int], m: Array) -> Array:
    try:
        m = np.broadcast_to(np.asarray(m, np.float64), shape)
    except ValueError as error:
        raise OptionError(f"importance of {name!r} has shape {np.shape(m)}, its weight {tuple(shape)}") from error
    if not np.isfinite(m).all() or m.min() < 0:
        raise OptionError(f"importance of {name!r} holds values that are negative or not finite")
    return m


def _fit(w: Array, axis: int, k: int, per: str, m: Array | None) -> tuple[Array, Array]:
    """Codebooks `(1 or channels, k)`, less what nothing uses at their ends, and indices in the weight's shape."""
    if per == "tensor":
        codebook, index = kmeans(w.reshape(-1), k, None if m is None else m.reshape(-1), keep_zero=True)
        codebook, index, shape = codebook[None], index[None], w.shape
    else:
        shape = np.moveaxis(w, axis, 0).shape
        rows = None if m is None else np.moveaxis(m, axis, 0).reshape(shape[0], -1)
        codebook, index = kmeans_rows(np.moveaxis(w, axis, 0).reshape(shape[0], -1), k, rows, keep_zero=True)
    order = np.argsort(codebook != 0, axis=1, kind="stable")  # zero has index 0 in all channels, which zips well
    codebook = np.take_along_axis(codebook, order, 1)
    index = np.take_along_axis(np.argsort(order, axis=1).astype(np.uint8), index, 1).reshape(shape)
    index = index if per == "tensor" else np.ascontiguousarray(np.moveaxis(index, 0, axis))
    return codebook[:, : int(index.max()) + 1], index


def _channels(weight: Clusterable) -> Array:
    """The number of the output channel, in a shape that broadcasts to the weight's."""
    shape = [-1 if axis == weight.axis else 1 for axis in range(len(weight.shape))]
    return np.arange(weight.shape[weight.axis], dtype=np.int32).reshape(shape)


def _error(w: Array, q: Array, m: Array | None) -> float:
    lost, energy = (np.square(x, dtype=np.float64) for x in (w - q, w))
    if m is not None:
        lost, energy = lost * m, energy * m
    return float(lost.sum()) / max(float(energy.sum()), 1e-300)


def _digits(k: int) -> tuple[Any, int]:
    """Type of the numbers that hold indices below k as digits, and digits in each, for the fewest bits per index.

    >>> [(kind.__name__, digits) for kind, digits in map(_digits, (16, 8, 32, 256))]
    [('uint8', 2), ('uint16', 5), ('uint16', 3), ('uint8', 1)]
    """
    base = max(k, 2)
    counts = [(dtype, max(d for d in range(1, 32) if base**d <= most)) for dtype, most in CONTAINERS]
    return min(counts, key=lambda x: np.dtype(x[0]).itemsize / x[1])


def _cheapest(weight: Clusterable, k: int, per: str, storage: str) -> tuple[str, str] | None:
    """`per` and storage, `tensor` where codebooks per channel take too much; None where nothing makes it smaller."""
    size = math.prod(weight.shape)
    storages = [storage] if storage != "auto" else ["uint8", "packed"]
    if k > UINT4["k"]:
        storages = ["uint8" if s == "uint4" or _digits(k) == (np.uint8, 1) else s for s in storages]
    for scope in dict.fromkeys((per, "tensor")):
        shape = (weight.shape[weight.axis] if scope == "channel" else 1, k)
        cost, cheapest = min((_bytes(s, shape, size) + _nodes(s, scope), s) for s in storages)
        if cost < 4 * size:
            return scope, cheapest
    return None


def _bytes(storage: str, codebook: tuple[int, ...], size: int) -> int:
    """Bytes in the file of codebooks of shape `(1 or channels, k)`, indices, and the starts of the channels."""
    dtype, digits = _digits(codebook[1])
    indices = {"uint8": size, "uint4": -(-size // 2), "packed": -(-size // digits) * np.dtype(dtype).itemsize}[storage]
    return int(indices + 4 * math.prod(codebook) + (4 * codebook[0] if codebook[0] > 1 else 0))


def _nodes(storage: str, per: str) -> int:
    """Bytes that nodes and names of one weight take, about."""
    return (700 if storage == "packed" else 300) + (150 if per == "channel" else 0)


class _Unfolding:
    """Puts indices, codebooks and the nodes that unfold them into a copy of the model."""

    def __init__(self, model: Model) -> None:
        self.edit = Edit(model)
        self.opset = opsets(model.proto).get("", 1)
        self.nodes: list[NodeProto] = []
        self.done: list[Clusterable] = []
        self.shared: dict[tuple[object, ...], str] = {}

    def add(self, made: Fitted) -> None:
        """Make a weight the output of a Gather."""
        weight, codebook, indices, storage = made.weight, made.codebook, made.indices, made.storage
        k = codebook.shape[1]
        if storage == "packed":
            index = self.unpacked(weight, indices, k)
        else:
            array = indices.astype(ml_dtypes.uint4) if storage == "uint4" else indices
            index = self.cast(weight, self.edit.constant(f"{weight.name}_indices", array))
        if len(codebook) > 1:
            start = self.edit.constant(f"{weight.name}_starts", _channels(weight) * np.int32(k))
            index = self.node("Add", weight, "index", index, start)
        table = self.edit.constant(f"{weight.name}_codebook", codebook.reshape(-1))
        self.node("Gather", weight, "", table, index)
        self.done.append(weight)

    def unpacked(self, weight: Clusterable, indices: Array, k: int) -> str:
        """The indices from numbers `(n, 1)` whose digits to the base k they are, the last digit first."""
        dtype, digits = _digits(k)
        places = k ** np.arange(digits, dtype=np.int32)
        padded = np.zeros(-(-indices.size // digits) * digits, np.uint8)
        padded[: indices.size] = indices.reshape(-1)
        numbers = sum(
            column.astype(dtype) * dtype(p) for column, p in zip(padded.reshape(-1, digits).T, places, strict=True)
        )
        number = self.edit.constant(f"{weight.name}_packed", numbers[:, None])
        if dtype != np.int32:
            number = self.cast(weight, number)
        base = self.common(f"base_{k}", np.array(k, np.int32))
        shifted = self.node("Div", weight, "shifted", number, self.common(f"places_{k}", places[None]))
        if self.opset >= 10:
            digit = self.node("Mod", weight, "digits", shifted, base)
        else:
            above = self.node("Div", weight, "above", shifted, base)
            digit = self.node("Sub", weight, "digits", shifted, self.node("Mul", weight, "without", above, base))
        if padded.size != indices.size:
            flat = self.node("Reshape", weight, "flat", digit, self.common("flat", np.array([-1], np.int64)))
            digit = self.cut(weight, flat, indices.size)
        shape = self.common("shape_" + "x".join(map(str, weight.shape)), np.array(weight.shape, np.int64))
        return self.node("Reshape", weight, "unpacked", digit, shape)

    def cut(self, weight: Clusterable, flat: str, size: int) -> str:
        """The first `size` values."""
        if self.opset < 10:
            return self.node("Slice", weight, "cut", flat, axes=[0], starts=[0], ends=[size])
        start = self.common("start", np.array([0], np.int64))
        return self.node("Slice", weight, "cut", flat, start, self.common(f"size_{size}", np.array([size], np.int64)))

    def cast(self, weight: Clusterable, name: str) -> str:
        return self.node("Cast", weight, "int32", name, to=TensorProto.INT32)

    def node(self, op: str, weight: Clusterable, suffix: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; its output, which is the weight itself without a suffix."""
        output = self.edit.fresh(f"{weight.name}_{suffix}") if suffix else weight.name
        name = self.edit.fresh_node(f"{weight.name}_{suffix or 'cluster'}")
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def common(self, name: str, array: Array) -> str:
        """A small constant that all weights share."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.shared:
            self.shared[key] = self.edit.constant(f"cluster_{name}", array)
        return self.shared[key]

    def finish(self) -> Model:
        """The model, with the dense arrays gone and the nodes in front of those that read them."""
        model, graph = self.edit.model, self.edit.graph
        gone = {weight.name for weight in self.done}
        for field in (graph.initializer, graph.input, graph.value_info):
            for entry in [x for x in field if x.name in gone]:
                field.remove(entry)
        for weight in self.done:
            del model.weights[weight.name]
            model.sparse.pop(weight.name, None)
            info = helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, weight.shape)
            graph.value_info.append(info)
        kept = [node for node in graph.node if not (is_constant(node) and node.output[0] in gone)]
        place(graph, [*self.nodes, *kept])
        return model


def zipped_bytes(source: Model | str | os.PathLike[str]) -> int:
    """Bytes of a model after deflate (zlib level 6), as a zip archive or HTTP would hold it; its external data too."""
    if isinstance(source, Model):
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            save(source, Path(folder) / "model.onnx")
            return sum(map(_deflated, Path(folder).iterdir()))
    path = Path(source)
    proto = onnx.load(path, load_external_data=False)
    entries = (e for t in all_tensors(proto.graph) for e in t.external_data if e.key == "location")
    return sum(map(_deflated, {path, *(path.parent / entry.value for entry in entries)}))


def _deflated(path: Path) -> int:
    packer, size = zlib.compressobj(6), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())
