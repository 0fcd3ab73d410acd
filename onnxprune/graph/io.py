"""ONNX files: a model in, a model out; the way to them for all code outside this folder.

The graph stays a `ModelProto`, so that whatever we do not touch survives; its tensors are taken out of it:

    Model.proto      a few kB: nodes, shapes, names, metadata; a tensor above SMALL bytes has dims, but no data
    Model.weights    name of the value -> read-only array, memory-mapped where the data lie outside the model file

What holds after `load`: local functions are inlined (those of the domain `onnxprune` stay), a value name is defined
once over all scopes, nodes are in topological order, and every tensor holds exactly the data that its dims claim.

    load      sources.py (a proto from anything) -> reading.py (its tensors, checked) with settling.py (its graph)
    save      writing.py (files that are whole or not there)
    beneath   protos.py (walking a proto), arrays.py (arrays as ONNX stores them), messages.py (the line for the user)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from google.protobuf.message import Error as ProtobufError
from onnx import AttributeProto, ModelProto

from onnxprune.errors import InternalError
from onnxprune.graph.arrays import SMALL, Large, has_data, same, set_data, set_tensor, stored_size, type_code
from onnxprune.graph.folds import Folds, unfold
from onnxprune.graph.messages import REPAIR, fault, show
from onnxprune.graph.protos import constants, graphs, scalar, scalars, tensors
from onnxprune.graph.reading import Sparse, TensorReader, Weights
from onnxprune.graph.sources import Source, parse
from onnxprune.graph.writing import write

__all__ = [
    "INLINE_LIMIT",
    "SMALL",
    "Model",
    "graphs",
    "load",
    "save",
    "stored_bytes",
    "sync",
    "tensors",
    "to_proto",
    "unfolded",
    "weight_bytes",
]

COUNTED = 1 << 30  # bytes of weights up to which a size is counted on the message itself
INLINE_LIMIT = 2_000_000_000  # bytes; protobuf ends at 2^31 - 1, the margin is for tools that add to the file


@dataclass(eq=False)
class Model:
    """A model whose tensor data are out of the proto.

    To change a weight, put another array into `weights`: on save its shape and dtype win over the tensor in the proto.
    To add one, add an initializer with its name as well, nothing more. To remove one, remove its initializer or
    `Constant` node. Arrays are never written to, so copies share them. A memory-mapped array may be unaligned
    (`flags.aligned`).
    """

    proto: ModelProto
    weights: Weights
    path: Path | None = None
    external: bool = False  # the input kept weights outside its file
    notes: tuple[str, ...] = ()  # what load changed
    sparse: Sparse = field(default_factory=dict)  # as stored, and as loaded
    folds: Folds = field(default_factory=dict)  # weights that the file computes of constants (folding.py)

    def copy(self) -> Model:
        """A new proto and new dicts over the same arrays."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return Model(
            proto, dict(self.weights), self.path, self.external, self.notes, dict(self.sparse), dict(self.folds)
        )

    def elem_type(self, name: str) -> int:
        """ONNX type (`TensorProto.FLOAT`, ...) of a weight."""
        return type_code(name, self.weights[name])

    def __repr__(self) -> str:
        nodes = sum(len(graph.node) for graph in graphs(self.proto.graph))
        return f"Model({self.proto.graph.name!r}, {nodes} nodes, {weight_bytes(self)} bytes of weights)"


def load(source: Source) -> Model:
    """Read a model from a path, bytes, a `ModelProto` or a graphsurgeon `Graph`; the source is never changed.

    Weights in external data are memory-mapped, not read (types of less than 8 bits are unpacked, one byte each).
    Raises ModelFileError, one line with the way out, where the file is not a model or must not be trusted.
    """
    if isinstance(source, Model):
        return source.copy()
    where, path, proto = parse(source)
    reader = TensorReader(where, path)
    try:
        proto, weights, sparse = reader.read(proto)
        for text in (t for g in graphs(proto.graph) for n in g.node for t in (n.name, n.doc_string)):
            if isinstance(text, bytes):  # what protobuf gives for a text that is none
                text.decode()
    except (UnicodeError, ProtobufError) as error:
        raise fault(where, "names in UTF-8 and a graph that protobuf can hold", error, REPAIR) from error
    return Model(proto, weights, path, bool(reader.files), tuple(reader.notes), sparse)


def weight_bytes(model: Model) -> int:
    """Bytes of all weights as ONNX stores them: two int4 share a byte; a sparse tensor counts as the dense one."""
    names = chain((name for name, _ in tensors(model.proto)), (name for name, _, _ in scalars(model.proto)))
    return sum(stored_size(model.weights[name]) for name in names if name in model.weights)


def sync(model: Model) -> None:
    """Make dims, type and small data of the tensors in the proto follow `weights`; `save` does it, on a copy."""
    for name, tensor in tensors(model.proto):
        if name in model.weights:
            set_tensor(name, tensor, model.weights[name])
        elif not has_data(tensor):
            raise InternalError(f"tensor {show(name)} has neither data nor an entry in Model.weights")
    for name, node, attribute in list(scalars(model.proto)):
        array = model.weights.get(name)
        if array is not None and not same(array, scalar(attribute)):
            node.attribute.remove(attribute)
            set_tensor(name, node.attribute.add(name="value", type=AttributeProto.TENSOR).t, array)


def to_proto(model: Model | Source) -> ModelProto:
    """The whole model with all data inside, for onnxruntime, the checker and shape inference; of any source of `load`.

    Raises ModelFileError above INLINE_LIMIT bytes, which one protobuf cannot hold.
    """
    model = model if isinstance(model, Model) else load(model)
    proto, large = _outgoing(model)
    size = proto.ByteSize() + sum(stored_size(array) for _, array in large)
    if size > INLINE_LIMIT:
        way = "save() the model, which writes weights beside it, and give onnxruntime the path"
        raise fault(model.path or "model", f"at most {INLINE_LIMIT} bytes for one protobuf", f"{size} bytes", way)
    for tensor, array in large:
        set_data(tensor, array)
    return proto


def unfolded(model: Model) -> Model:
    """The model in the form of its file: what was folded and is as it was is computed by nodes again."""
    if not model.folds:
        return model
    out = model.copy()
    unfold(out.proto, out.weights, out.folds)
    out.folds = {}
    return out


def stored_bytes(model: Model) -> int:
    """Bytes that `save` would write; above a gigabyte, and for weights in a file of their own, without the few bytes
    per tensor that separate them."""
    if not model.external and weight_bytes(model) <= COUNTED:
        return int(to_proto(model).ByteSize())
    proto, large = _outgoing(model)
    return int(proto.ByteSize()) + sum(stored_size(array) for _, array in large)


def save(model: Model, path: str | os.PathLike[str], *, inline_limit: int = INLINE_LIMIT) -> None:
    """Write the model to `path`, which at any moment is either as before or complete and on disk.

    The weights go into the file if the input had them there and all fits into `inline_limit` bytes; else tensors above
    SMALL bytes are streamed to one file beside it, `<name of path>.<first 12 hex digits of its SHA-256>.data`. Files so
    named that the previous model at `path` used are deleted, and so are temporary files that a killed save to `path`
    left there. A file that is replaced keeps its permission bits. The same model gives the same bytes.
    Raises ModelFileError, leaving nothing behind, where the disk is full or the place cannot be written.
    """
    proto, large = _outgoing(model)
    write(Path(path), proto, large, inline_limit=0 if model.external else inline_limit)


def _outgoing(model: Model) -> tuple[ModelProto, Large]:
    """A copy of the proto that follows the weights, and the tensors in it that still need their data."""
    model = unfolded(model).copy()
    sync(model)
    untouched = {name: kept for name, (kept, array) in model.sparse.items() if model.weights.get(name) is array}
    for graph in graphs(model.proto.graph) if untouched else ():
        for tensor in [t for t in graph.initializer if t.name in untouched]:
            graph.initializer.remove(tensor)
            graph.sparse_initializer.add().CopyFrom(untouched[tensor.name])
            graph.sparse_initializer[-1].values.name = tensor.name
        for name, _, attribute in constants(graph):
            if name in untouched and attribute.name == "value":
                attribute.name, attribute.type = "sparse_value", AttributeProto.SPARSE_TENSOR
                attribute.ClearField("t")
                attribute.sparse_tensor.CopyFrom(untouched[name])
    entries = ((tensor, model.weights[name]) for name, tensor in tensors(model.proto) if name in model.weights)
    return model.proto, [(tensor, array) for tensor, array in entries if stored_size(array) > SMALL]
