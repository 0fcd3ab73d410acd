"""Files that appear whole or not at all: written and flushed under a temporary name beside their place, then renamed.

Temporary names are `.<name of the file>.<8 hex digits>.tmp`. They are locked while they are written, so that the next
write to the same place can tell, and delete, those of a run that was killed. OSError comes out wherever the system
refuses something.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

LONGEST = 240  # bytes of a name; file systems take 255, with a dot, digits and .tmp


@contextlib.contextmanager
def staged(path: Path, data: bytes | memoryview, *, age: float = 0.0) -> Iterator[Callable[[], None]]:
    """Write `data` beside `path`; what is yielded puts it in its place, where without it no trace stays behind.

    It gets the permission bits that new files get. age: of leftovers that are swept, in seconds.
    """
    with contextlib.suppress(OSError):  # a folder that may be written and not listed
        sweep(path, age=age)
    with temporary(path, None) as file:
        file.write(data)
        flush(file)
        yield lambda: rename(file, path, None)


@contextlib.contextmanager
def temporary(path: Path, mode: int | None) -> Iterator[BinaryIO]:
    """A new file beside `path`, open and locked; deleted at the end where it still has its temporary name.

    mode: permission bits of what it replaces, so that nobody else can read it before; None where it replaces nothing.
    """
    bits = 0o666 if mode is None else 0o600
    created: list[Path] = []
    try:
        while True:
            name = path.with_name(f".{_stem(path)}.{secrets.token_hex(4)}.tmp")
            with open(name, "xb", opener=lambda new, flags: os.open(new, flags, bits)) as file:
                created.append(name)
                if sys.platform != "win32":
                    with contextlib.suppress(OSError):  # a file system without locks, where nothing is swept either
                        fcntl.flock(file, fcntl.LOCK_EX)
                if name.exists():  # not swept before it was locked
                    yield file
                    return
    finally:
        discard(created)


def sweep(path: Path, *, age: float = 0.0) -> None:
    """Delete the temporary files of killed writes to `path`, and none of one that runs.

    age: in seconds; younger ones stay, for a folder of several machines, where a lock may not tell.
    """
    pattern = re.compile(re.escape(f".{_stem(path)}.") + r"([0-9a-f]{8}){1,2}\.tmp")  # 16 digits: of version 0.6
    for name in filter(pattern.fullmatch, os.listdir(path.parent)):
        with contextlib.suppress(OSError), open(path.with_name(name), "r+b") as file:
            if age and time.time() - os.fstat(file.fileno()).st_mtime <= age:
                continue
            if sys.platform == "win32":
                file.close()  # no open file is deleted there, and so none that another write has open
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.with_name(name).unlink()


def _stem(path: Path) -> str:
    """As much of a file's name as leaves room for the rest of a temporary one."""
    name = path.name
    while len(os.fsencode(name)) > LONGEST:
        name = name[:-1]
    return name


def permissions(path: Path) -> int | None:
    """Permission bits of a file; None where there is none."""
    return path.stat().st_mode & 0o777 if path.exists() else None


def rename(file: BinaryIO, target: Path, mode: int | None) -> None:
    """Put a temporary file in its place, with these permission bits; None: with those that new files get."""
    bits = os.fstat(file.fileno()).st_mode & 0o777
    if sys.platform == "win32":
        file.close()  # no open file is renamed there
    if mode is not None and mode != bits:  # a file system that knows no permissions may refuse to set them
        os.chmod(file.name, mode)
    os.replace(file.name, target)


def flush(file: BinaryIO) -> None:
    """Put a file's data on disk, past the caches of Python and the system."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Put renames inside a folder on disk, where the system has a way to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def discard(files: Iterable[Path]) -> None:
    """Delete the files that can be deleted; what the system refuses is left."""
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
