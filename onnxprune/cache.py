"""A folder of finished work that runs may share, at the same time too: no run reads what another has half written, or
what was made of other data.

An entry is a file that is whole or not there, with the key of what it was made of and a checksum inside. `digest` makes
keys: of the kind of the entry, of the versions of onnxprune and of this format, and of all that the content depends on.
What does not fit is made anew, with a line in the log.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onnxprune import __version__
from onnxprune.errors import blamed
from onnxprune.graph.arrays import Array
from onnxprune.graph.staging import staged

FORMAT = 3  # grows when files, or what is meant by them, change
STALE = 86400  # seconds after which a temporary file is of a run that was killed
Content = TypeVar("Content", bound=Mapping[str, Any])
LOG = logging.getLogger(__name__)
UNFIT = "%s is damaged, or of something else: made anew"


def digest(kind: str, *parts: object) -> str:
    """The key of an entry, 64 hex digits. parts: all that its content depends on."""
    text = json.dumps([kind, version(), FORMAT, parts], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def version() -> str:
    """The version of onnxprune, which is a part of every key."""
    return __version__


def _plain(value: object) -> object:
    """What stands for a value that JSON does not have; never a shortened text of an array."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, asdict(value)]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return repr(value)


def cache_errors(folder: Path) -> AbstractContextManager[None]:
    """What the system refuses of the cache's files inside is an error of the option."""
    return blamed(f"--cache {folder}", "cannot be used", "; name another folder", refusals=(OSError,))


def write_json(path: Path, key: str, content: Mapping[str, Any]) -> None:
    """Write an entry of what JSON has; raises OSError."""
    text = json.dumps({"entry": {"key": key, "sum": _sum(key, json.dumps(content).encode())}, **content})
    replace(path, text.encode())


def read_json(path: Path, key: str) -> dict[str, Any] | None:
    """The content of an entry; None where there is none of this key. Raises OSError."""
    data = _read(path)
    if data is None:
        return None
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(data)
        entry = content.pop("entry")
        if entry == {"key": key, "sum": _sum(key, json.dumps(content).encode())}:
            return dict(content)
    LOG.warning(UNFIT, path)
    return None


def remembered(folder: Path | None, kind: str, of: Sequence[object], make: Callable[[], Content]) -> Content:
    """What the folder has of what depends on `of`, else what is made now and kept there, as JSON has it; folder: None
    for none.

    Raises `OptionError` where the folder cannot be used.
    """
    if folder is None:
        return make()
    key = digest(kind, *of)
    path = folder / f"{kind}-{key[:24]}.json"
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        found = read_json(path, key)
    if found is not None:
        return found  # type: ignore[return-value]
    made = make()
    with cache_errors(folder):
        write_json(path, key, made)
    return made


def write_arrays(path: Path, key: str, content: Mapping[str, Any]) -> None:
    """Write an entry of arrays, numbers and texts; raises OSError."""
    arrays = {name: np.asarray(value) for name, value in content.items()}
    file = io.BytesIO()
    np.savez(file, entry=np.array([key, _sum_of(key, arrays)]), **arrays)  # type: ignore[arg-type]
    replace(path, file.getbuffer())


def read_arrays(path: Path, key: str) -> dict[str, Array] | None:
    """The content of an entry; None where there is none of this key. Raises OSError."""
    data = _read(path)
    if data is None:
        return None
    broken = (ValueError, KeyError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
    with suppress(*broken), np.load(io.BytesIO(data), allow_pickle=False) as z:
        arrays = {name: z[name] for name in z.files}
        entry = arrays.pop("entry").tolist()
        if entry == [key, _sum_of(key, arrays)]:
            return arrays
    LOG.warning(UNFIT, path)
    return None


def replace(path: Path, data: bytes | memoryview) -> None:
    """Write a file that at any moment is either as before or complete and on disk; raises OSError."""
    with staged(path, data, age=STALE) as put:
        put()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _sum(key: str, data: bytes) -> str:
    return hashlib.sha256(key.encode() + data).hexdigest()


def _sum_of(key: str, arrays: Mapping[str, Array]) -> str:
    checksum = hashlib.sha256(key.encode())
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        checksum.update(f"{name} {a.dtype.str} {arrays[name].shape};".encode())
        checksum.update(a.tobytes())
    return checksum.hexdigest()
