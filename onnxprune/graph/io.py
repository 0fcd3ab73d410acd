"""ONNX files: a model in, a model out; the only place that knows protobuf files and external data.

The graph stays a `ModelProto`, so that whatever we do not touch survives; its tensors are taken out of it:

    Model.proto      a few kB: nodes, shapes, names, metadata; a tensor above SMALL bytes has dims, but no data
    Model.weights    name of the value -> read-only array, memory-mapped where the data lie outside the model file

What holds after `load`: local functions are inlined (those of the domain `onnxprune` stay), a value name is defined
once over all scopes, nodes are in topological order, and every tensor holds exactly the data that its dims claim.
The file is not trusted: lengths are checked before memory is taken, and data outside the model file are read only
from regular files inside the model's own folder. The format: onnx.ai/onnx/repo-docs/IR.html and ExternalData.html.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import math
import os
import re
import secrets
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx.inliner
from google.protobuf.message import Error as ProtobufError  # type: ignore[import-untyped]
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
    numpy_helper,
)

from onnxprune.errors import InternalError, ModelFileError

Array: TypeAlias = np.ndarray[Any, Any]
Source: TypeAlias = Any  # str | PathLike | bytes | ModelProto | Model | onnx_graphsurgeon.Graph, which has no types
Large: TypeAlias = list[tuple[TensorProto, Array]]

SMALL = 1024  # bytes; a tensor up to this size keeps its data in the proto, where shape inference reads it
INLINE_LIMIT = 2_000_000_000  # bytes; protobuf ends at 2^31 - 1, the margin is for tools that add to the file
ALIGNMENT = 4096  # bytes; a page, so that a runtime can map every tensor of a data file
CHUNK = 1 << 24  # bytes written and hashed at a time
DENSE_LIMIT = 1 << 30  # bytes; sparse tensors may unfold to this, or to DENSE_RATIO times what the file stores
DENSE_RATIO = 64
MAX_RANK = 64  # dims, as in numpy
MAX_NODES = 1 << 20  # nodes after inlining
MAX_CALLS = 100  # functions calling one another
OWN_DOMAIN = "onnxprune"  # functions of our sparse operators: never inlined

_STANDARD = ("", "ai.onnx")
_NO_DTYPE = (TensorProto.UNDEFINED, TensorProto.STRING)
_DTYPES = {c: helper.tensor_dtype_to_np_dtype(c) for c in TensorProto.DataType.values() if c not in _NO_DTYPE}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_SUBBYTE = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_BITS = {c: _SUBBYTE.get(TensorProto.DataType.Name(c), 8 * d.itemsize) for c, d in _DTYPES.items()}
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_SCALARS = {"value_float": "f", "value_floats": "floats", "value_int": "i", "value_ints": "ints"}
_FIELDS = ["f", "i", "s", "t", "g", "floats", "ints", "strings", "tensors", "graphs"]
_TYPE_OF_FIELD: dict[str, Any] = {name: number for number, name in enumerate(_FIELDS, AttributeProto.FLOAT)}
_NOT_ONNX = {
    b"version https://git-lfs": ("a git-lfs pointer", "fetch the file itself with `git lfs pull`"),
    b"PK\x03\x04": ("a zip archive", "unpack it, or export the checkpoint to ONNX"),
    b"<": ("a text or HTML page", "download the file itself"),
    b"{": ("JSON", "convert it to binary ONNX"),
}
_AGAIN = "download or export the model again"
_REPAIR = "repair what exported it"


@dataclass(eq=False)
class Model:
    """A model whose tensor data are out of the proto.

    To change a weight, put another array into `weights`: on save its shape and dtype win over the tensor in the proto.
    To add one, add an initializer with its name as well, nothing more. To remove one, remove its initializer or
    `Constant` node. Arrays are never written to, so copies share them. A memory-mapped array may be unaligned
    (`flags.aligned`).
    """

    proto: ModelProto
    weights: dict[str, Array]
    path: Path | None = None
    external: bool = False  # the input kept weights outside its file
    notes: tuple[str, ...] = ()  # what load changed
    sparse: dict[str, tuple[SparseTensorProto, Array]] = field(default_factory=dict)  # as stored, and as loaded

    def copy(self) -> Model:
        """A new proto and new dicts over the same arrays."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return Model(proto, dict(self.weights), self.path, self.external, self.notes, dict(self.sparse))

    def elem_type(self, name: str) -> int:
        """ONNX type (`TensorProto.FLOAT`, ...) of a weight."""
        return _code(name, self.weights[name])

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
    where, path, proto = _parse(source)
    try:
        return _Loader(where, path).load(proto)
    except (UnicodeError, ProtobufError) as error:
        raise _fault(where, "names in UTF-8 and a graph that protobuf can hold", _line(error), _REPAIR) from error


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and the bodies nested in its nodes (If, Loop, Scan), outer first."""
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from graphs(body)


def tensors(proto: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every constant tensor with the value it defines: initializers and `value` of `Constant`, in graph order."""
    for graph in graphs(proto.graph):
        yield from ((tensor.name, tensor) for tensor in graph.initializer if tensor.name)
        for name, _, attribute in _constants(graph):
            if attribute.name == "value" and attribute.HasField("t"):
                yield name, attribute.t


def weight_bytes(model: Model) -> int:
    """Bytes of all weights as ONNX stores them: two int4 share a byte; a sparse tensor counts as the dense one."""
    names = chain((name for name, _ in tensors(model.proto)), (name for name, _, _ in _scalars(model.proto)))
    return sum(_size(model.weights[name]) for name in names if name in model.weights)


def sync(model: Model) -> None:
    """Make dims, type and small data of the tensors in the proto follow `weights`; `save` does it, on a copy."""
    for name, tensor in tensors(model.proto):
        if name in model.weights:
            _store(name, tensor, model.weights[name])
        elif not _has_data(tensor):
            raise InternalError(f"tensor {_show(name)} has neither data nor an entry in Model.weights")
    for name, node, attribute in list(_scalars(model.proto)):
        array = model.weights.get(name)
        if array is not None and not _same(array, _scalar(attribute)):
            node.attribute.remove(attribute)
            _store(name, node.attribute.add(name="value", type=AttributeProto.TENSOR).t, array)


def to_proto(model: Model) -> ModelProto:
    """The whole model with all data inside, for onnxruntime, the checker and shape inference.

    Raises ModelFileError above INLINE_LIMIT bytes, which one protobuf cannot hold.
    """
    proto, large = _outgoing(model)
    size = proto.ByteSize() + sum(_size(array) for _, array in large)
    if size > INLINE_LIMIT:
        way = "save() the model, which writes weights beside it, and give onnxruntime the path"
        raise _fault(model.path or "model", f"at most {INLINE_LIMIT} bytes for one protobuf", f"{size} bytes", way)
    return _inline(proto, large)


def save(model: Model, path: str | os.PathLike[str], *, inline_limit: int = INLINE_LIMIT) -> None:
    """Write the model to `path`, which at any moment is either as before or complete and on disk.

    The weights go into the file if the input had them there and all fits into `inline_limit` bytes; else tensors above
    SMALL bytes are streamed to one file beside it, `<name of path>.<first 12 hex digits of its SHA-256>.data`. Files so
    named that the previous model at `path` used are deleted. The same model gives the same bytes.
    Raises ModelFileError, leaving nothing behind, where the disk is full or the place cannot be written.
    """
    path = Path(path)
    proto, large = _outgoing(model)
    made: list[Path] = []  # must not stay behind on failure
    size = sum(_size(array) for _, array in large)
    try:
        size += proto.ByteSize()
        if path.exists() and not path.is_file():
            raise _fault(path, "a place for a file", "a folder or a device", "name a file")
        data = staged = None
        if large and (model.external or size > inline_limit):
            staged = _temporary(path, made)
            data = path.with_name(f"{path.name}.{_write_data(staged, large)}.data")
            for tensor, _ in large:
                tensor.external_data[0].value = data.name
        else:
            proto = _inline(proto, large)
        target = _temporary(path, made)
        with open(target, "wb") as file:
            file.write(proto.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        stale = _own_data_files(path)
        if data and staged:
            if not data.exists():
                made.append(data)
            os.replace(staged, data)
            _sync_folder(path.parent)
        os.replace(target, path)
        made.clear()
        _sync_folder(path.parent)
        with contextlib.suppress(OSError):
            for name in stale - {data.name if data else ""}:
                path.with_name(name).unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            expected, way = f"room for {size} bytes", "free some space or save elsewhere"
        else:
            expected, way = "a place to write to", "check the folder and its permissions"
        raise _fault(path, expected, error.strerror or str(error), way) from error
    except (ValueError, ProtobufError) as error:
        way = "choose another file name, or prune more"
        raise _fault(path, "a usable file name and less than 2 GB without weights", str(error), way) from error
    finally:
        for leftover in made:
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


# Reading: from a source to a proto


def _parse(source: Source) -> tuple[str, Path | None, ModelProto]:
    """What to call the source in messages, its path if it has one, and a proto of our own."""
    path: Path | None = None
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        where, data = str(path), _read(path)
    elif isinstance(source, bytes | bytearray | memoryview):
        where, data = "bytes", bytes(source)
    elif isinstance(source, ModelProto):
        proto = ModelProto()
        proto.CopyFrom(source)
        return "ModelProto", None, proto
    elif type(source).__module__.split(".")[0] == "onnx_graphsurgeon":
        return "onnx_graphsurgeon.Graph", None, _from_graphsurgeon(source)
    else:
        what = "a path, bytes, a ModelProto, an onnx_graphsurgeon.Graph or a Model"
        raise _fault("source", what, type(source).__name__, "load the file, or pass one of these")
    try:
        proto = ModelProto.FromString(data)
    except ProtobufError:
        proto, found = ModelProto(), "data that do not parse, truncated or damaged"
    else:
        found = "a protobuf without a graph"
    if proto.graph.node or proto.graph.initializer or proto.graph.output:
        return where, path, proto
    known = next((known for magic, known in _NOT_ONNX.items() if data.startswith(magic)), (found, _AGAIN))
    if data[4:8] == b"ORTM":
        known = "a model in ORT format", "use the ONNX file that it was made from"
    raise _fault(where, "an ONNX model", *known)


def _read(path: Path) -> bytes:
    """The bytes of a model file."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise _fault(path, "an ONNX file", "a folder", "name the .onnx file in it")
        if not stat.S_ISREG(found.st_mode):
            raise _fault(path, "an ONNX file", "a device or a pipe", "write it to a file first")
        if not 0 < found.st_size < 1 << 31:
            way = "keep the weights of large models in external data" if found.st_size else _AGAIN
            raise _fault(path, "an ONNX file of up to 2 GB", f"{found.st_size} bytes", way)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        found_text = getattr(error, "strerror", None) or str(error)
        raise _fault(path, "an ONNX file", found_text, "check the path and its permissions") from error


def _from_graphsurgeon(graph: Any) -> ModelProto:
    """Export a graph; graphsurgeon adds missing domains to it on the way, which is undone."""
    owners = [graph, *graph.functions]
    imports = [None if owner.import_domains is None else list(owner.import_domains) for owner in owners]
    try:
        proto: ModelProto = sys.modules["onnx_graphsurgeon"].export_onnx(graph, do_type_check=False)
    except Exception as error:  # whatever a half-edited graph provokes in there
        raise _fault("onnx_graphsurgeon.Graph", "a graph that exports", _line(error), "repair the graph") from error
    finally:
        for owner, domains in zip(owners, imports, strict=True):
            owner.import_domains = domains
    return proto


class _Loader:
    """Turns one proto into a Model: checks its tensors, takes them out, inlines, renames, sorts.

    Inlining copies nodes about, so between taking tensors out and handing them over by name, each lies `parked`: its
    proto holds nothing but an index under a key that no file can guess.
    """

    def __init__(self, where: str, path: Path | None) -> None:
        self.where = where
        self.path = path
        self.files: dict[str, Array] = {}  # real path -> its bytes, mapped
        self.key = secrets.token_hex(8)
        self.parked: list[tuple[Array, SparseTensorProto | None]] = []
        self.left: set[int] = set()  # indices of the parked that nobody claimed
        self.dense = self.stored = 0  # bytes of sparse tensors, unfolded and in the file
        self.notes: list[str] = []

    def load(self, proto: ModelProto) -> Model:
        self.settle_versions(proto)
        for body in (proto.graph, *proto.functions):
            self.take_tensors(body)
        for info in proto.training_info:
            for tensor in chain(_all_tensors(info.initialization), _all_tensors(info.algorithm)):
                self.take(tensor, park=False)
        proto = ModelProto.FromString(proto.SerializeToString())  # memory of the old one goes with its last reference
        proto = _inline_functions(proto, self.where, self.notes)
        scope = _scope(proto.graph)
        _drop_repeated_initializers(scope, self.notes)
        _name_uniquely(scope, self.where, self.notes)
        _sort(scope, set(), self.where, self.notes)
        weights, sparse = self.hand_over(proto)
        return Model(proto, weights, self.path, bool(self.files), tuple(self.notes), sparse)

    def fault(self, expected: str, found: object, way: str = _AGAIN) -> ModelFileError:
        return _fault(self.where, expected, found, way)

    def settle_versions(self, proto: ModelProto) -> None:
        """Files from before IR version 3 name neither opset nor attribute types: write down what they mean."""
        named = any(opset.domain in _STANDARD for opset in proto.opset_import)
        if named and proto.ir_version >= 3:
            return
        nodes = [node for graph in graphs(proto.graph) for node in graph.node]
        if not named and any(node.domain in _STANDARD for node in nodes):
            if proto.ir_version >= 3:
                raise self.fault("an opset_import for ONNX's own operators", "none", "add one, or export again")
            proto.opset_import.add(domain="", version=1)
        if proto.ir_version >= 3:
            return
        for attribute in chain.from_iterable(node.attribute for node in nodes):
            fields = [_TYPE_OF_FIELD[d.name] for d, _ in attribute.ListFields() if d.name in _TYPE_OF_FIELD]
            if not attribute.type and len(fields) == 1:
                attribute.type = fields[0]
        version = max(3, helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True))
        opset = next((o.version for o in proto.opset_import if o.domain in _STANDARD), 0)
        self.notes.append(f"ir_version {proto.ir_version} read as {version}, opset {opset}")
        proto.ir_version = version

    # Tensors

    def take_tensors(self, body: GraphProto | FunctionProto) -> None:
        """Check every tensor; park those that define a value and are large, external or sparse."""
        if isinstance(body, GraphProto):
            for tensor in body.initializer:
                self.take(tensor, park=True)
            for sparse in body.sparse_initializer:
                self.densify(sparse, body.initializer.add(name=sparse.values.name))
            del body.sparse_initializer[:]
        else:
            for tensor in chain.from_iterable(map(_attribute_tensors, body.attribute_proto)):
                self.take(tensor, park=False)
        for node in body.node:
            constant = node.op_type == "Constant" and node.domain in _STANDARD
            for attribute in node.attribute:
                if attribute.name == "sparse_value" and constant:
                    attribute.name, attribute.type = "value", AttributeProto.TENSOR
                    self.densify(attribute.sparse_tensor, attribute.t)
                    attribute.ClearField("sparse_tensor")
                elif attribute.name == "value" and constant and attribute.HasField("t"):
                    self.take(attribute.t, park=True)
                else:
                    for tensor in _attribute_tensors(attribute):
                        self.take(tensor, park=False)
            for nested in _bodies(node):
                self.take_tensors(nested)

    def take(self, tensor: TensorProto, *, park: bool) -> None:
        array = self.array(tensor)
        external = tensor.data_location == TensorProto.EXTERNAL
        if array is not None and park and (external or _size(array) > SMALL):
            self.park(tensor, array, None)
        elif array is not None and external:
            _set_data(tensor, array)

    def park(self, tensor: TensorProto, array: Array, sparse: SparseTensorProto | None) -> None:
        array.flags.writeable = False
        _clear_data(tensor)
        tensor.external_data.add(key=self.key, value=str(len(self.parked)))
        self.left.add(len(self.parked))
        self.parked.append((array, sparse))

    def array(self, tensor: TensorProto) -> Array | None:
        """The checked value of a tensor, read-only; None for strings."""
        code, dims = tensor.data_type, list(tensor.dims)
        name = f"tensor {_show(tensor.name)}"
        external = tensor.data_location == TensorProto.EXTERNAL
        if min(dims, default=0) < 0 or len(dims) > MAX_RANK:
            raise self.fault(f"at most {MAX_RANK} dims of {name}, each from 0 up", dims)
        count = math.prod(dims)
        if code == TensorProto.STRING and not external and len(tensor.string_data) == count:
            return None
        if code not in _DTYPES or tensor.HasField("segment"):
            expected = f"{name} whole, of a known type, with as many values as its dims say"
            raise self.fault(expected, f"type {code}, {dims}")
        dtype, width = _DTYPES[code], _BITS[code]
        size = -(-count * width // 8)
        kind = f"{TensorProto.DataType.Name(code)} {dims}"
        expected = f"{name} of {size} bytes ({kind})"
        try:
            if external or tensor.HasField("raw_data"):
                mapped = self.external_data(tensor, size, expected) if external else None
                data = np.frombuffer(tensor.raw_data, np.uint8) if mapped is None else mapped
                if len(data) != size:
                    raise self.fault(expected, len(data))
                if width == 8 * dtype.itemsize:
                    return data.view(dtype).reshape(dims)
                tensor = TensorProto(dims=dims, data_type=code, raw_data=data.tobytes())
            else:
                entries = size if width in (2, 4) else 2 * count if dtype.kind == "c" else count
                found = len(getattr(tensor, helper.tensor_dtype_to_field(code)))
                if found != entries:
                    raise self.fault(f"{name} of {entries} entries ({kind})", found)
            array = numpy_helper.to_array(tensor)
        except ValueError as error:
            raise self.fault(f"dims of {name} that fit into memory", dims) from error
        array.flags.writeable = False
        return array

    def external_data(self, tensor: TensorProto, size: int, expected: str) -> Array:
        """The mapped bytes (uint8) of an external tensor, `size` of them."""
        entries = {entry.key: os.fsdecode(entry.value) for entry in tensor.external_data}
        location, offset = entries.get("location", ""), entries.get("offset", "0")
        length = entries.get("length", str(size))
        shown = f"external data {_show(location)} of tensor {_show(tensor.name)}"
        if self.path is None:
            raise self.fault("all data inside", f"{shown} and no folder to look in", "load the path of the model file")
        real = os.path.realpath(self.path.parent / location.replace("\0", ""))
        roots = {os.path.realpath(self.path.parent), os.path.dirname(os.path.realpath(self.path))}
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        leaves = posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts) or "\0" in location
        if leaves or not any(Path(real).is_relative_to(root) for root in roots):
            way = "put the data file beside the model, and name it so"
            raise self.fault(f"{shown} inside the model's folder", "a path that leads out of it", way)
        if not (re.fullmatch(r"[0-9]{1,18}", offset) and re.fullmatch(r"[0-9]{1,18}", length)):
            raise self.fault(f"byte counts for {shown}", f"offset {_show(offset)}, length {_show(length)}")
        if real not in self.files:
            try:
                flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
                with open(real, "rb", opener=lambda name, _: os.open(name, flags)) as file:
                    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        raise OSError(errno.EINVAL, "Not a regular file")
                    empty = os.fstat(file.fileno()).st_size == 0
                    self.files[real] = np.zeros(0, np.uint8) if empty else np.memmap(file, np.uint8, "r")
            except OSError as error:
                way = "fetch it, and put it beside the model"
                raise self.fault(shown, error.strerror or str(error), way) from error
        data, start = self.files[real], int(offset)
        if int(length) != size or start + size > len(data):
            raise self.fault(expected, f"length {length} at offset {offset} in {_show(location)} of {len(data)} bytes")
        return data[start : start + size]

    def densify(self, sparse: SparseTensorProto, tensor: TensorProto) -> None:
        """Unfold a sparse tensor into the parked `tensor`, and keep it as stored for the way back."""
        self.take(sparse.values, park=False)
        self.take(sparse.indices, park=False)
        values, indices = self.array(sparse.values), self.array(sparse.indices)
        dims, name = list(sparse.dims), _show(sparse.values.name)
        numeric = values is not None and indices is not None and indices.dtype == np.int64
        if not numeric or min(dims, default=0) < 0 or len(dims) > MAX_RANK:
            raise self.fault(f"numbers, int64 indices and sound dims in sparse tensor {name}", dims)
        assert values is not None and indices is not None
        count = math.prod(dims)
        self.dense += count * values.itemsize
        self.stored += values.nbytes + indices.nbytes
        limit = max(DENSE_LIMIT, DENSE_RATIO * self.stored)
        if self.dense > limit:
            found = f"{self.dense} with {name}"
            raise self.fault(f"sparse tensors that unfold to at most {limit} bytes", found, "make it dense")
        flat = indices
        if values.size and dims and indices.shape == (values.size, len(dims)):
            inside = bool(((indices >= 0) & (indices < dims)).all())
            flat = np.ravel_multi_index(tuple(indices.T), dims) if inside else np.array([-1])
        ordered = flat.shape == values.shape and values.ndim == 1 and bool((np.diff(flat) > 0).all())
        if not ordered or (flat.size and not 0 <= flat[0] <= flat[-1] < count):
            raise self.fault(f"one index per value of sparse tensor {name}, ascending, inside {dims}", "others")
        array = np.zeros(count, values.dtype)
        array[flat] = values
        kept = SparseTensorProto()
        kept.CopyFrom(sparse)
        tensor.dims.extend(dims)
        tensor.data_type = sparse.values.data_type
        self.park(tensor, array.reshape(dims), kept)
        self.notes.append(f"sparse tensor {name} densified")

    def hand_over(self, proto: ModelProto) -> tuple[dict[str, Array], dict[str, tuple[SparseTensorProto, Array]]]:
        """Weights by name; parked tensors that define no value get their data back."""
        weights: dict[str, Array] = {}
        sparse: dict[str, tuple[SparseTensorProto, Array]] = {}
        for name, tensor in tensors(proto):
            array, kept = self.unpark(tensor)
            if array is None:
                array = self.array(tensor)
            if array is None:
                continue
            weights[name] = array
            if kept is not None:
                sparse[name] = kept, array
            if _size(array) > SMALL:
                _clear_data(tensor)
            elif not _has_data(tensor):
                _set_data(tensor, array)
        for name, _, attribute in _scalars(proto):
            weights[name] = _scalar(attribute)
        for tensor in chain.from_iterable(map(_all_tensors, (proto.graph, *proto.functions))) if self.left else ():
            array, _ = self.unpark(tensor)
            if array is not None:
                _set_data(tensor, array)
        return weights, sparse

    def unpark(self, tensor: TensorProto) -> tuple[Array | None, SparseTensorProto | None]:
        if len(tensor.external_data) != 1 or tensor.external_data[0].key != self.key:
            return None, None
        index = int(tensor.external_data[0].value)
        self.left.discard(index)
        _clear_data(tensor)
        return self.parked[index]


# Settling the graph: no functions, unique names, topological order


def _inline_functions(proto: ModelProto, where: str, notes: list[str]) -> ModelProto:
    """Inline all local functions but our own; those that want another opset are converted, or stay."""
    own = [function for function in proto.functions if function.domain == OWN_DOMAIN]
    others = [function for function in proto.functions if function.domain != OWN_DOMAIN]
    if not others:
        return proto
    _check_calls(proto, where)
    del proto.functions[:]
    proto.functions.extend(others)
    imported = {"" if opset.domain in _STANDARD else opset.domain for opset in proto.opset_import}
    for opset in chain.from_iterable(function.opset_import for function in others):
        domain = "" if opset.domain in _STANDARD else opset.domain
        if domain not in imported:  # the inliner moves nodes into the model, but not what they import
            imported.add(domain)
            proto.opset_import.add(domain=domain, version=opset.version)
    try:
        proto = onnx.inliner.inline_local_functions(proto)
    except Exception as error:  # the C++ inliner raises several unrelated types
        raise _fault(where, "local functions that can be inlined", _line(error), _REPAIR) from error
    if proto.functions:
        with contextlib.suppress(Exception):  # no conversion: they stay, as operators that nobody knows
            proto = onnx.inliner.inline_local_functions(proto, convert_version=True)
    notes.append(f"{len(others) - len(proto.functions)} local functions inlined")
    notes.extend(f"local function {_show(f.name)} not inlined: it needs another opset" for f in proto.functions)
    proto.functions.extend(own)
    for graph in list(graphs(proto.graph))[1:]:  # the inliner renames values in bodies, but not their value_info
        defined = set(_defined(graph))
        for info in [info for info in graph.value_info if info.name not in defined]:
            graph.value_info.remove(info)
    return proto


def _check_calls(proto: ModelProto, where: str) -> None:
    """Refuse functions that call themselves, or unfold beyond reason, before they are inlined."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(body: GraphProto | FunctionProto, depth: int) -> int:
        total = 0
        for node in body.node:
            call = node.domain, node.op_type, node.overload
            if call in functions and call not in sizes:
                sizes[call] = MAX_NODES  # what a call within itself finds
                sizes[call] = size(functions[call], depth + 1) if depth < MAX_CALLS else MAX_NODES
            total += sizes.get(call, 1) + sum(size(nested, depth) for nested in _bodies(node))
        return total

    if size(proto.graph, 0) >= MAX_NODES:
        found = f"{MAX_NODES} nodes or more, or a function that calls itself"
        raise _fault(where, "local functions of reasonable size", found, _REPAIR)


class _Scope(NamedTuple):
    """A graph, and the scopes nested in its nodes: index of the node -> scopes."""

    graph: GraphProto
    bodies: dict[int, list[_Scope]]

    def inner(self) -> Iterator[_Scope]:
        return chain.from_iterable(self.bodies.values())

    def all(self) -> Iterator[_Scope]:
        yield self
        for scope in self.inner():
            yield from scope.all()


def _scope(graph: GraphProto) -> _Scope:
    bodies = ((i, [_scope(body) for body in _bodies(node)]) for i, node in enumerate(graph.node))
    return _Scope(graph, {i: found for i, found in bodies if found})


def _drop_repeated_initializers(scope: _Scope, notes: list[str]) -> None:
    """Of initializers with one name the last counts, as in onnxruntime."""
    for graph, _ in scope.all():
        last = {tensor.name: i for i, tensor in enumerate(graph.initializer) if tensor.name}
        for i in reversed(range(len(graph.initializer))):
            name = graph.initializer[i].name
            if last.get(name, i) != i:
                notes.append(f"initializer {_show(name)} occurs again: the last one counts")
                del graph.initializer[i]


def _name_uniquely(scope: _Scope, where: str, notes: list[str]) -> None:
    """Rename values in bodies whose name is defined elsewhere too; names of the main graph never change."""
    seen: set[str] = set()
    taken = set(chain.from_iterable(_defined(inner.graph) for inner in scope.all()))
    numbers: Counter[str] = Counter()
    before = len(taken)

    def visit(scope: _Scope, names: dict[str, str]) -> None:
        mine = list(_defined(scope.graph))
        wrong = next((name for name, n in Counter(mine).items() if n > 1 or isinstance(name, bytes)), None)
        if wrong is not None:
            found = f"{_show(wrong)} twice" if isinstance(wrong, str) else _show(wrong)
            raise _fault(where, "every value defined once, by a name in UTF-8", found, _REPAIR)
        for name in [name for name in mine if name in seen]:
            names[name] = name
            while names[name] in taken:
                numbers[name] += 1
                names[name] = f"{name}_{numbers[name]}"
            taken.add(names[name])
        seen.update(mine)
        if names:
            _rename(scope.graph, names)
        for inner in scope.inner():
            visit(inner, dict(names))

    visit(scope, {})
    if len(taken) > before:
        notes.append(f"{len(taken) - before} values renamed (same name in two scopes)")


def _sort(scope: _Scope, visible: set[str], where: str, notes: list[str]) -> None:
    """Stable topological order; every name in use must be `visible`, which is to say defined here or around."""
    graph, mine = scope.graph, set(_defined(scope.graph))
    visible |= mine
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs: list[set[int]] = []
    for i, node in enumerate(graph.node):
        used = set(node.input) - {""}
        if not used <= visible:
            found = f"{_show(min(used - visible, key=str))}, which is not"
            raise _fault(where, f"every input of {_label(node)} defined", found, _REPAIR)
        for body, _ in chain.from_iterable(inner.all() for inner in scope.bodies.get(i, ())):
            used.update(*(inner.input for inner in body.node), (value.name for value in body.output))
        needs.append({producer[name] for name in used if name in producer})
    order = _topological(needs)
    if len(order) < len(needs):
        stuck = graph.node[min(set(range(len(needs))) - set(order))]
        raise _fault(where, "a graph without cycles", f"one that {_label(stuck)} waits for", _REPAIR)
    if order != sorted(order):
        ranks = iter(sorted(range(len(order)), key=order.__getitem__))
        graph.node.sort(key=lambda _: next(ranks))
        notes.append("nodes sorted topologically")
    for inner in scope.inner():
        _sort(inner, visible, where, notes)
    missing = {value.name for value in graph.output} - visible - {""}
    if missing:
        raise _fault(where, "every output computed", f"{_show(min(missing, key=str))}, which is not", _REPAIR)
    visible -= mine


def _topological(needs: list[set[int]]) -> list[int]:
    """The order nearest to 0, 1, 2, ... in which each comes after all it needs; cycles are left out.

    >>> _topological([{1}, set(), {0}])
    [1, 0, 2]
    """
    if all(max(need, default=-1) < i for i, need in enumerate(needs)):
        return list(range(len(needs)))
    users: list[list[int]] = [[] for _ in needs]
    for i, need in enumerate(needs):
        for j in need:
            users[j].append(i)
    missing = [len(need) for need in needs]
    ready = [i for i, n in enumerate(missing) if n == 0]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for user in users[order[-1]]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, user)
    return order


# Walking and editing protos


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _constants(graph: GraphProto) -> Iterator[tuple[str, NodeProto, AttributeProto]]:
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in _STANDARD and node.output and node.output[0]:
            yield from ((node.output[0], node, attribute) for attribute in node.attribute)


def _scalars(proto: ModelProto) -> Iterator[tuple[str, NodeProto, AttributeProto]]:
    """`Constant` nodes that hold their value in an attribute of its own kind: value_float, value_ints, ..."""
    for found in chain.from_iterable(map(_constants, graphs(proto.graph))):
        if found[2].name in _SCALARS and not found[2].ref_attr_name:
            yield found


def _scalar(attribute: AttributeProto) -> Array:
    dtype = np.float32 if "float" in attribute.name else np.int64
    array = np.array(getattr(attribute, _SCALARS[attribute.name]), dtype)
    array.flags.writeable = False
    return array


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
    for sparse in attribute.sparse_tensors:
        yield from (sparse.values, sparse.indices)


def _all_tensors(body: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """Every TensorProto of a graph or function and of all nested bodies, whether or not it defines a value."""
    if isinstance(body, GraphProto):
        yield from body.initializer
        for sparse in body.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in body.node:
        yield from chain.from_iterable(map(_attribute_tensors, node.attribute))
        yield from chain.from_iterable(map(_all_tensors, _bodies(node)))


def _defined(graph: GraphProto) -> Iterator[str]:
    """Names that a graph defines: inputs, initializers that are no inputs, node outputs."""
    inputs = {value.name for value in graph.input}
    constants = dict.fromkeys(t.name for t in graph.initializer if t.name not in inputs)
    yield from (name for name in chain((value.name for value in graph.input), constants) if name)
    yield from (name for node in graph.node for name in node.output if name)


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Rename values in one graph, without the bodies nested in it."""
    for value in chain(graph.input, graph.output, graph.value_info, graph.initializer):
        if value.name in names:
            value.name = names[value.name]
    for annotation in graph.quantization_annotation:
        if annotation.tensor_name in names:
            annotation.tensor_name = names[annotation.tensor_name]
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = names.get(entry.value, entry.value)
    for node in graph.node:
        for listed in (node.input, node.output):
            for i, name in enumerate(listed):
                if name in names:
                    listed[i] = names[name]
        for spec in chain.from_iterable(c.sharding_spec for c in node.device_configurations):
            spec.tensor_name = names.get(spec.tensor_name, spec.tensor_name)


def _clear_data(tensor: TensorProto) -> None:
    for name in (*_TYPED, "raw_data", "external_data", "data_location"):
        tensor.ClearField(name)


def _set_data(tensor: TensorProto, array: Array) -> None:
    _clear_data(tensor)
    tensor.raw_data = b"".join(_pieces(array))


def _has_data(tensor: TensorProto) -> bool:
    return 0 in tensor.dims or tensor.HasField("raw_data") or any(len(getattr(tensor, name)) for name in _TYPED)


def _store(name: str, tensor: TensorProto, array: Array) -> None:
    """Make a tensor describe `array`; up to SMALL bytes it holds the data too. One that does already is left alone."""
    code, small = _code(name, array), _size(array) <= SMALL
    alike = tensor.data_type == code and tuple(tensor.dims) == array.shape
    if small and alike and _has_data(tensor) and _same(array, numpy_helper.to_array(tensor)):
        return
    del tensor.dims[:]
    tensor.dims.extend(array.shape)
    tensor.data_type = code
    _clear_data(tensor)
    if small:
        _set_data(tensor, array)


def _code(name: str, array: Array) -> TensorProto.DataType:
    if array.dtype not in _CODES:
        raise InternalError(f"weight {_show(name)} has dtype {array.dtype}, which ONNX does not know")
    code: TensorProto.DataType = _CODES[array.dtype]
    return code


def _size(array: Array) -> int:
    """Bytes of an array as ONNX stores it."""
    return -(-array.size * _BITS[_CODES[array.dtype]] // 8)


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# Writing


def _outgoing(model: Model) -> tuple[ModelProto, Large]:
    """A copy of the proto that follows the weights, and the tensors in it that still need their data."""
    model = model.copy()
    sync(model)
    untouched = {name: kept for name, (kept, array) in model.sparse.items() if model.weights.get(name) is array}
    for graph in graphs(model.proto.graph) if untouched else ():
        for tensor in [t for t in graph.initializer if t.name in untouched]:
            graph.initializer.remove(tensor)
            graph.sparse_initializer.add().CopyFrom(untouched[tensor.name])
            graph.sparse_initializer[-1].values.name = tensor.name
        for name, _, attribute in _constants(graph):
            if name in untouched and attribute.name == "value":
                attribute.name, attribute.type = "sparse_value", AttributeProto.SPARSE_TENSOR
                attribute.ClearField("t")
                attribute.sparse_tensor.CopyFrom(untouched[name])
    found = ((tensor, model.weights[name]) for name, tensor in tensors(model.proto) if name in model.weights)
    return model.proto, [(tensor, array) for tensor, array in found if _size(array) > SMALL]


def _inline(proto: ModelProto, large: Large) -> ModelProto:
    for tensor, array in large:
        _set_data(tensor, array)
    return proto


def _write_data(path: Path, large: Large) -> str:
    """Write tensors to a data file and their places into the protos, but for its name; 12 digits of its SHA-256.

    Arrays over the same memory (a weight stored once, used under two names) are written once.
    """
    digest, end = hashlib.sha256(), 0
    places: dict[tuple[int, int, int], int] = {}
    with open(path, "wb") as file:

        def write(piece: bytes | memoryview) -> None:
            digest.update(piece)
            file.write(piece)

        for tensor, array in large:
            key = (array.ctypes.data, array.nbytes, _BITS[_CODES[array.dtype]])
            offset = places.get(key) if array.flags.c_contiguous else None
            if offset is None:
                offset = -(-end // ALIGNMENT) * ALIGNMENT
                write(bytes(offset - end))
                for piece in _pieces(array):
                    write(piece)
                end = offset + _size(array)
                if array.flags.c_contiguous:
                    places[key] = offset
            tensor.data_location = TensorProto.EXTERNAL
            for name, value in ("location", ""), ("offset", str(offset)), ("length", str(_size(array))):
                tensor.external_data.add(key=name, value=value)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()[:12]


def _pieces(array: Array) -> Iterator[memoryview]:
    """The bytes of an array as ONNX stores them, at most CHUNK at a time, copied only where not contiguous."""
    packed = _BITS[_CODES[array.dtype]] < 8
    for block in _blocks(array):
        yield memoryview(numpy_helper.from_array(block).raw_data) if packed else block.view(np.uint8).data


def _blocks(array: Array) -> Iterator[Array]:
    if array.flags.c_contiguous or _BITS[_CODES[array.dtype]] < 8:
        flat = np.ascontiguousarray(array).reshape(-1)
        step = CHUNK // array.itemsize
        yield from (flat[i : i + step] for i in range(0, flat.size, step))
    elif array[0].nbytes > CHUNK:
        yield from chain.from_iterable(map(_blocks, array))
    else:
        step = CHUNK // array[0].nbytes
        yield from (np.ascontiguousarray(array[i : i + step]).reshape(-1) for i in range(0, len(array), step))


def _temporary(path: Path, made: list[Path]) -> Path:
    """A new, empty file beside `path`."""
    file = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    made.append(file)
    return file


def _sync_folder(folder: Path) -> None:
    """Put renames on disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _own_data_files(path: Path) -> set[str]:
    """Data files that an earlier `save` to `path` wrote and the model there uses."""
    own = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.data")
    if not any(own.fullmatch(name) for name in os.listdir(path.parent)):
        return set()
    try:
        old = ModelProto.FromString(path.read_bytes())
    except (OSError, ProtobufError):
        return set()
    entries = chain.from_iterable(tensor.external_data for tensor in _all_tensors(old.graph))
    return {entry.value for entry in entries if entry.key == "location" and own.fullmatch(entry.value)}


# Messages


def _fault(where: object, expected: str, found: object, way: str) -> ModelFileError:
    expected, found = (text if len(text) <= 400 else f"{text[:396]} ..." for text in (expected, str(found)))
    message = f"{where}: expected {expected}, found {found}; {way}"
    return ModelFileError("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def _show(name: object) -> str:
    """A name out of a file, not too long."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def _label(node: NodeProto) -> str:
    return f"{_show(node.op_type)[1:-1]} {_show(node.name)}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
