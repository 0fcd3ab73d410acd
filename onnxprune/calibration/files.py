"""Files of folders and archives, opened when they are asked for and within bounds."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
Like = tuple[tuple[int, ...], np.dtype[Any]]  # shape and type of an array
MEMBER = 2 << 30  # bytes of one file in an archive


@dataclass(frozen=True)
class File:
    """A file of a folder or an archive. path: relative, with slashes; shown: for messages."""

    path: str
    shown: str
    open: Callable[[], IO[bytes]]

    def read(self) -> bytes:
        """Its bytes. Raises `OptionError` where they cannot be had."""
        try:
            with self.open() as stream:
                return stream.read()
        except Exception as e:  # of the disk, or whatever a broken or encrypted archive makes zipfile raise
            raise OptionError(f"{self.shown}: cannot be read ({reason_of(e)})") from e

    def like(self) -> Like:
        """Shape and type of the array of a .npy, without reading it."""
        try:
            with self.open() as stream:
                version = np.lib.format.read_magic(stream)
                header = np.lib.format.read_array_header_1_0 if version == (1, 0) else (
                    np.lib.format.read_array_header_2_0
                )  # fmt: skip
                shape, _, dtype = header(stream)
                return tuple(shape), dtype
        except Exception as e:
            raise OptionError(f"{self.shown}: cannot be read as a numpy file ({reason_of(e)})") from e


def reason_of(error: Exception) -> str:
    """What an exception says, in one line of at most 200 characters."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def files_in(path: Path, what: str) -> list[File]:
    """The files of a folder or an archive, sorted, without hidden ones and what macOS adds.

    what: names it in messages. Raises `OptionError` where it is neither, or a file of it would unfold beyond MEMBER.
    """
    if path.is_dir():
        files = []
        for p in path.rglob("*"):
            if p.is_file():
                name = p.relative_to(path).as_posix()
                files.append(File(name, f"{what}/{name}", functools.partial(_open, p)))
    else:
        archive = _archive(path, what, "a folder or a .zip of .npy or images, .npz or .npy")
        files = [
            File(info.filename, f"{what}/{info.filename}", functools.partial(archive.open, info))
            for info in archive.infolist()
            if not info.is_dir()
        ]
    good = [f for f in files if not any(p.startswith((".", "__MACOSX")) for p in PurePosixPath(f.path).parts)]
    return sorted(good, key=lambda f: f.path)


def _archive(path: Path, what: str, expected: str) -> zipfile.ZipFile:
    """An archive none of whose files is a bomb."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as e:
        raise OptionError(f"{what}: expected {expected} ({reason_of(e)})") from e
    for info in archive.infolist():
        if info.file_size > MEMBER:
            archive.close()
            size = f"would take {info.file_size} bytes, more than {MEMBER}"
            raise OptionError(f"{what}: {info.filename} {size}; give it as .npy outside of an archive")
    return archive


def load_npy(data: Any, what: str) -> Any:
    """What `np.load` gives for a path or an open file, without objects. Raises `OptionError` naming `what`."""
    try:
        return np.load(data, allow_pickle=False)
    except Exception as e:  # whatever a broken file makes numpy raise
        raise OptionError(f"{what}: cannot be read as a numpy file ({reason_of(e)})") from e


def load_npz(path: Path, what: str) -> dict[str, Array]:
    """The arrays of an archive by name; raises `OptionError` naming `what`."""
    _archive(path, what, "a .npz archive").close()
    with load_npy(path, what) as arrays:
        try:
            return {k: np.asarray(arrays[k]) for k in arrays.files}
        except Exception as e:  # of numpy, zipfile or zlib
            raise OptionError(f"{what}: cannot be read as a numpy archive ({reason_of(e)})") from e


TEXT_SUFFIXES = (".txt", ".tsv", ".csv", ".json", ".jsonl", ".md")


def usable(file: File) -> bool:
    """Whether a file can be a sample by its suffix: an image, or a .npy."""
    return file.path.lower().endswith((".npy", *IMAGE_SUFFIXES))
