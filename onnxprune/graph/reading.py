"""Reading tensors: out of a proto that may claim anything, into arrays that hold exactly what their dims say.

In goes a parsed proto and the path that it came from; out come a settled proto, whose tensors above SMALL bytes have
dims but no data, and the read-only arrays, memory-mapped where the data lie outside the model file. Lengths are checked
before memory is taken, and data outside the model file are read only from regular files inside the model's own folder.
The format: onnx.ai/onnx/repo-docs/IR.html and ExternalData.html.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import stat
from collections.abc import Sequence
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

import numpy as np
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    SparseTensorProto,
    TensorProto,
    helper,
    numpy_helper,
)

from onnxprune.errors import ModelFileError
from onnxprune.graph.arrays import BITS, DTYPES, SMALL, Array, clear_data, has_data, set_data, stored_size
from onnxprune.graph.limits import LIMIT
from onnxprune.graph.messages import AGAIN, fault, show
from onnxprune.graph.protos import all_tensors, attribute_tensors, bodies, is_constant, scalar, scalars, tensors
from onnxprune.graph.settling import settle_graph, settle_versions

Weights: TypeAlias = dict[str, Array]
Sparse: TypeAlias = dict[str, tuple[SparseTensorProto, Array]]  # sparse tensors as stored, and as the weight loaded

DENSE_LIMIT = LIMIT  # bytes; sparse tensors may unfold to this, or to DENSE_RATIO times what the file stores
DENSE_RATIO = 64
MAX_RANK = 64  # dims, as in numpy


class TensorReader:
    """Reads one proto: checks its tensors and takes them out, while the graph is settled in between.

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

    def read(self, proto: ModelProto) -> tuple[ModelProto, Weights, Sparse]:
        """The settled proto, its weights by name, and which of them were sparse; the given proto is used up."""
        settle_versions(proto, self.where, self.notes)
        for body in (proto.graph, *proto.functions):
            self.take_tensors(body)
        for info in proto.training_info:
            for tensor in chain(all_tensors(info.initialization), all_tensors(info.algorithm)):
                self.take(tensor, park=False)
        proto = ModelProto.FromString(proto.SerializeToString())  # memory of the old one goes with its last reference
        proto = settle_graph(proto, self.where, self.notes)
        weights, sparse = self.hand_over(proto)
        return proto, weights, sparse

    def fault(self, expected: str, found: object, way: str = AGAIN) -> ModelFileError:
        """An error of this file; see `messages.fault`."""
        return fault(self.where, expected, found, way)

    def take_tensors(self, body: GraphProto | FunctionProto) -> None:
        """Check every tensor; park those that define a value and are large, external or sparse."""
        if isinstance(body, GraphProto):
            for tensor in body.initializer:
                self.take(tensor, park=True)
            for sparse in body.sparse_initializer:
                self.densify(sparse, body.initializer.add(name=sparse.values.name))
            del body.sparse_initializer[:]
        else:
            for tensor in chain.from_iterable(map(attribute_tensors, body.attribute_proto)):
                self.take(tensor, park=False)
        for node in body.node:
            constant = is_constant(node)
            for attribute in node.attribute:
                if attribute.name == "sparse_value" and constant:
                    attribute.name, attribute.type = "value", AttributeProto.TENSOR
                    self.densify(attribute.sparse_tensor, attribute.t)
                    attribute.ClearField("sparse_tensor")
                elif attribute.name == "value" and constant and attribute.HasField("t"):
                    self.take(attribute.t, park=True)
                else:
                    for tensor in attribute_tensors(attribute):
                        self.take(tensor, park=False)
            for nested in bodies(node):
                self.take_tensors(nested)

    def take(self, tensor: TensorProto, *, park: bool) -> None:
        """Check a tensor; put it aside where `park` and it is large or external, else read external data into it."""
        array = self.array(tensor)
        external = tensor.data_location == TensorProto.EXTERNAL
        if array is not None and park and (external or stored_size(array) > SMALL):
            self.park(tensor, array, None)
        elif array is not None and external:
            set_data(tensor, array)

    def park(self, tensor: TensorProto, array: Array, sparse: SparseTensorProto | None) -> None:
        """Put the value of a tensor aside, and a mark into its place."""
        array.flags.writeable = False
        clear_data(tensor)
        tensor.external_data.add(key=self.key, value=str(len(self.parked)))
        self.left.add(len(self.parked))
        self.parked.append((array, sparse))

    def array(self, tensor: TensorProto) -> Array | None:
        """The checked value of a tensor, read-only; None for strings."""
        code, dims = tensor.data_type, list(tensor.dims)
        name = f"tensor {show(tensor.name)}"
        external = tensor.data_location == TensorProto.EXTERNAL
        if not _sound(dims):
            raise self.fault(f"at most {MAX_RANK} dims of {name}, each from 0 up", dims)
        count = math.prod(dims)
        if code == TensorProto.STRING and not external and len(tensor.string_data) == count:
            return None
        if code not in DTYPES or tensor.HasField("segment"):
            expected = f"{name} whole, of a known type, with as many values as its dims say"
            raise self.fault(expected, f"type {code}, {dims}")
        dtype, width = DTYPES[code], BITS[code]
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
        shown = f"external data {show(location)} of tensor {show(tensor.name)}"
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
            raise self.fault(f"byte counts for {shown}", f"offset {show(offset)}, length {show(length)}")
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
                raise self.fault(shown, error, way) from error
        data, start = self.files[real], int(offset)
        if int(length) != size or start + size > len(data):
            raise self.fault(expected, f"length {length} at offset {offset} in {show(location)} of {len(data)} bytes")
        return data[start : start + size]

    def densify(self, sparse: SparseTensorProto, tensor: TensorProto) -> None:
        """Unfold a sparse tensor into the parked `tensor`, and keep it as stored for the way back."""
        self.take(sparse.values, park=False)
        self.take(sparse.indices, park=False)
        values, indices = self.array(sparse.values), self.array(sparse.indices)
        dims, name = list(sparse.dims), show(sparse.values.name)
        if values is None or indices is None or indices.dtype != np.int64 or not _sound(dims):
            raise self.fault(f"numbers, int64 indices and sound dims in sparse tensor {name}", dims)
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

    def hand_over(self, proto: ModelProto) -> tuple[Weights, Sparse]:
        """Weights by name; parked tensors that define no value get their data back."""
        weights: Weights = {}
        sparse: Sparse = {}
        for name, tensor in tensors(proto):
            array, kept = self.unpark(tensor)
            if array is None:
                array = self.array(tensor)
            if array is None:
                continue
            weights[name] = array
            if kept is not None:
                sparse[name] = kept, array
            if stored_size(array) > SMALL:
                clear_data(tensor)
            elif not has_data(tensor):
                set_data(tensor, array)
        for name, _, attribute in scalars(proto):
            weights[name] = scalar(attribute)
        for tensor in chain.from_iterable(map(all_tensors, (proto.graph, *proto.functions))) if self.left else ():
            array, _ = self.unpark(tensor)
            if array is not None:
                set_data(tensor, array)
        return weights, sparse

    def unpark(self, tensor: TensorProto) -> tuple[Array | None, SparseTensorProto | None]:
        """The value that was put aside, and its sparse form where it had one; the mark goes. None for no mark."""
        if len(tensor.external_data) != 1 or tensor.external_data[0].key != self.key:
            return None, None
        index = int(tensor.external_data[0].value)
        self.left.discard(index)
        clear_data(tensor)
        return self.parked[index]


def _sound(dims: Sequence[int]) -> bool:
    return len(dims) <= MAX_RANK and min(dims, default=0) >= 0
