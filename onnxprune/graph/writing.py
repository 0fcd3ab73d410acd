"""Writing a model file, and where needed a data file beside it, so that a crash at any moment leaves a whole model.

In go a proto and the arrays that its tensors stand for; out come files on disk, or a ModelFileError and no trace.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import re
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import Error as ProtobufError
from onnx import ModelProto, TensorProto

from onnxprune.graph.arrays import Large, Taken, pieces, set_data, stored_bits, stored_size
from onnxprune.graph.messages import fault
from onnxprune.graph.protos import all_tensors
from onnxprune.graph.staging import discard, flush, flush_folder, permissions, rename, sweep, temporary

ALIGNMENT = 4096  # bytes; a page, so that a runtime can map every tensor of a data file


def write(path: Path, proto: ModelProto, large: Large, inline_limit: int) -> None:
    """Write `proto` to `path` with the data of `large` inside, or in a data file if all exceeds `inline_limit` bytes.

    The proto and its tensors are changed on the way. A file that is replaced hands on its permission bits, and those of
    a model file go for a new data file too.
    """
    size = sum(stored_size(array) for _, array in large)
    try:
        size += proto.ByteSize()
        if path.exists() and not path.is_file():
            raise fault(path, "a place for a file", "a folder or a device", "name a file")
        sweep(path)
        beside = large if size > inline_limit else []
        for tensor, array in [] if beside else large:
            set_data(tensor, array)
        _replace(path, proto, beside)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            expected, way = f"room for {size} bytes", "free some space or save elsewhere"
        else:
            expected, way = "a place to write to", "check the folder and its permissions"
        raise fault(path, expected, error, way) from error
    except (ValueError, ProtobufError) as error:
        way = "choose another file name, or prune more"
        raise fault(path, "a usable file name and less than 2 GB without weights", error, way) from error


def _replace(path: Path, proto: ModelProto, beside: Large) -> None:
    """Write the data file, if anything goes into one, and the model file; rename both, the model last."""
    mode = permissions(path)
    created: list[Path] = []  # must not stay behind on failure
    with contextlib.ExitStack() as stack:
        stack.callback(discard, created)
        data = staged = None
        if beside:
            staged = stack.enter_context(temporary(path, mode))
            data = path.with_name(f"{path.name}.{_write_data(staged, beside)}.data")
            for tensor, _ in beside:
                tensor.external_data[0].value = data.name
        target = stack.enter_context(temporary(path, mode))
        target.write(proto.SerializeToString(deterministic=True))
        flush(target)
        stale = _own_data_files(path)
        if data and staged:
            stale.discard(data.name)
            kept = permissions(data)
            if kept is None:
                created.append(data)
            rename(staged, data, mode if kept is None else kept)
            flush_folder(path.parent)
        rename(target, path, mode)
        created.clear()
        flush_folder(path.parent)
        discard(path.with_name(name) for name in stale if not _used_elsewhere(path, name))


def _used_elsewhere(path: Path, name: str) -> bool:
    """True where another model of the folder names the data file: a copy of the model that is replaced, for one."""
    for other in path.parent.glob("*.onnx"):
        if other.is_file() and other.stat().st_size and not other.samefile(path):
            with other.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(name.encode()) >= 0:
                    return True
    return False


def _write_data(file: BinaryIO, large: Large) -> str:
    """Write tensors to a data file and their places into the protos, but for its name; 12 digits of its SHA-256.

    Arrays over the same memory (a weight stored once, used under two names) are written once.
    """
    digest, end = hashlib.sha256(), 0
    places: dict[tuple[int, int, int], int] = {}

    def write(piece: bytes | memoryview) -> None:
        digest.update(piece)
        file.write(piece)

    for tensor, array in large:
        whole = not isinstance(array, Taken) and array.flags.c_contiguous
        key = (array.ctypes.data, array.nbytes, stored_bits(array)) if whole else (0, 0, 0)
        offset = places.get(key) if whole else None
        if offset is None:
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            write(bytes(offset - end))
            for piece in pieces(array):
                write(piece)
            end = offset + stored_size(array)
            if whole:
                places[key] = offset
        tensor.data_location = TensorProto.EXTERNAL
        for name, value in ("location", ""), ("offset", str(offset)), ("length", str(stored_size(array))):
            tensor.external_data.add(key=name, value=value)
    flush(file)
    return digest.hexdigest()[:12]


def _own_data_files(path: Path) -> set[str]:
    """Data files that an earlier save to `path` wrote and the model there uses."""
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.data")
    if not any(pattern.fullmatch(name) for name in os.listdir(path.parent)):
        return set()
    try:
        old = ModelProto.FromString(path.read_bytes())
    except (OSError, ProtobufError):
        return set()
    entries = chain.from_iterable(tensor.external_data for tensor in all_tensors(old.graph))
    return {entry.value for entry in entries if entry.key == "location" and pattern.fullmatch(entry.value)}
