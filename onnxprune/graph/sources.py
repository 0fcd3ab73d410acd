"""From whatever a user may hand over, a path, bytes or a graph, to a `ModelProto` of our own, or one line of refusal.

The source is never changed. The proto is not checked: its tensors, names and order may be anything.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf.message import Error as ProtobufError
from onnx import ModelProto

from onnxprune.graph.messages import AGAIN, fault

Source: TypeAlias = Any  # str | PathLike | bytes | ModelProto | Model | onnx_graphsurgeon.Graph, which has no types

_NOT_ONNX = {
    b"version https://git-lfs": ("a git-lfs pointer", "fetch the file itself with `git lfs pull`"),
    b"PK\x03\x04": ("a zip archive", "unpack it, or export the checkpoint to ONNX"),
    b"<": ("a text or HTML page", "download the file itself"),
    b"{": ("JSON", "convert it to binary ONNX"),
}


def parse(source: Source) -> tuple[str, Path | None, ModelProto]:
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
        raise fault("source", what, type(source).__name__, "load the file, or pass one of these")
    try:
        proto = ModelProto.FromString(data)
    except ProtobufError:
        proto, found = ModelProto(), "data that do not parse, truncated or damaged"
    else:
        found = "a protobuf without a graph"
    if proto.graph.node or proto.graph.initializer or proto.graph.output:
        return where, path, proto
    known = next((known for magic, known in _NOT_ONNX.items() if data.startswith(magic)), (found, AGAIN))
    if data[4:8] == b"ORTM":
        known = "a model in ORT format", "use the ONNX file that it was made from"
    raise fault(where, "an ONNX model", *known)


def _read(path: Path) -> bytes:
    """The bytes of a model file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise fault(path, "an ONNX file", "a folder", "name the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise fault(path, "an ONNX file", "a device or a pipe", "write it to a file first")
        if not 0 < status.st_size < 1 << 31:
            way = "keep the weights of large models in external data" if status.st_size else AGAIN
            raise fault(path, "an ONNX file of up to 2 GB", f"{status.st_size} bytes", way)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise fault(path, "an ONNX file", error, "check the path and its permissions") from error


def _from_graphsurgeon(graph: Any) -> ModelProto:
    """Export a graph; graphsurgeon adds missing domains to it on the way, which is undone."""
    owners = [graph, *graph.functions]
    imports = [None if owner.import_domains is None else list(owner.import_domains) for owner in owners]
    try:
        proto: ModelProto = sys.modules["onnx_graphsurgeon"].export_onnx(graph, do_type_check=False)
    except Exception as error:  # whatever a half-edited graph provokes in there
        raise fault("onnx_graphsurgeon.Graph", "a graph that exports", error, "repair the graph") from error
    finally:
        for owner, domains in zip(owners, imports, strict=True):
            owner.import_domains = domains
    return proto
