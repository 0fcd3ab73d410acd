"""Labels that come with samples."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from onnxprune.calibration.files import (
    load_npy,
    reason_of,
)
from onnxprune.calibration.samples import (
    Samples,
    shown_shape,
)
from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.runtime.classes import IGNORED

LABELS = ("labels", "y", "label")


def classes_of(paths: Sequence[str]) -> list[int] | None:
    """Labels from the folders that the files lie in, below the folder that holds them all."""
    folders = [PurePosixPath(p).parent.parts for p in paths]
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
    shared = len(list(levels))
    if any(len(f) == shared for f in folders):
        return None
    classes = sorted({f[-1] for f in folders})
    if len(classes) < 2:
        return None
    numbered = all(c.isdecimal() for c in classes)
    value = {c: int(c) if numbered else k for k, c in enumerate(classes)}
    return [value[f[-1]] for f in folders]


def labelled(samples: Samples, labels: Any, option: str, flag: str = "--labels") -> Samples:
    """The same samples with labels from a file or an array; option, flag: what samples and labels were given as, for
    messages.

    Raises `OptionError` where a label is missing or they do not fit.
    """
    if isinstance(labels, (str, os.PathLike)):
        what = f"{flag} {labels}"
        values, named = _read_labels(Path(labels), what)
    else:
        what, values, named = f"{option}: labels", np.asarray(labels), None
    if named is not None:
        if not samples.names:
            raise OptionError(f"{what}: names files, but {option} holds none; give one label per line")
        paths = [samples.names[i] for i in samples.chosen]
        each = [named.get(p, named.get(PurePosixPath(p).name)) for p in paths]
        missing = [p for p, v in zip(paths, each, strict=True) if v is None]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise OptionError(f"{what}: no label for {', '.join(missing[:3])}{more}")
        values = np.array(each)
    files = len(set(samples.names))
    if samples.augmented and values.shape == (files,):
        values = values[[i % files for i in samples.chosen]]  # images repeat with other crops
    fitting = fitting_labels(values, samples)
    if isinstance(fitting, str):
        raise OptionError(f"{what}: {fitting}")
    return replace(samples, labels=fitting, misfit="")


def fitting_labels(values: Array, samples: Samples) -> Array | str:
    """int64 labels of the samples, `(count,)` or of tokens `(count, tokens)`; or what is wrong with them."""
    count, shape = samples.count, values.shape
    tokens = _token_shape(samples, shape) if len(shape) == 2 and values.dtype.kind in "iu" else None
    if values.size == count:
        values = values.reshape(-1)
    elif not shape or shape[0] != count:
        return f"{shape[0] if shape else 1} for {count} samples; give one per sample"
    elif shape != tokens:
        way = "; of one-hot labels argmax(1) makes it" if len(shape) == 2 else ""
        other = f", or {shown_shape(tokens)}, one per token" if tokens else ""
        return f"shape {shown_shape(shape)} for {count} samples; expected one class per sample, ({count}){other}{way}"
    if values.dtype.kind not in "iufb":
        return f"expected whole numbers that count classes from 0, found {values.dtype}"
    wrong = ~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values.astype(np.float64)) >= 2**53)
    wrong |= (values < 0) & (values != IGNORED if shape == tokens else True)
    if wrong.any():
        at = tuple(int(k) for k in np.argwhere(wrong)[0])
        way = f" ({IGNORED} for tokens that do not count)" if shape == tokens else ""
        return f"expected whole numbers that count classes from 0{way}, found {values[at]:g} (sample {at[0]})"
    return values.astype(np.int64)


def _token_shape(samples: Samples, shape: Sequence[int]) -> tuple[int, int] | None:
    """(samples, tokens) of an integer input, of one with such a shape if there is one; None where there is no other."""
    widths = [v.shape[-1] for v in samples.feeds([0]).values() if v.dtype.kind in "iu" and v.ndim and v.shape[-1] > 1]
    width = shape[1] if shape[1] in widths else next(iter(widths), None)
    return None if width is None else (samples.count, width)


def _read_labels(path: Path, what: str) -> tuple[Array, dict[str, Any] | None]:
    """An array of labels, or labels by file name."""
    none: Array = np.zeros(0, np.int64)
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(load_npy(path, what)), None
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            data = json.loads(text)
            if isinstance(data, dict):
                return none, {str(k): v for k, v in data.items()}
            return np.array(data), None
        separator = next((s for s in "\t,; " if s in text), ",")
        lines = [[c.strip() for c in r if c.strip()] for r in csv.reader(text.splitlines(), delimiter=separator)]
        lines = [r for r in lines if r]
        if len(lines) > 1 and not _whole(lines[0][-1]) and _whole(lines[1][-1]):
            del lines[0]  # a header
        if all(len(r) == 1 for r in lines):
            return np.array([int(r[0]) for r in lines], np.int64), None
        return none, {separator.join(r[:-1]) if separator == " " else r[0]: int(r[-1]) for r in lines}
    except (OSError, UnicodeDecodeError) as e:
        raise OptionError(f"{what}: cannot be read ({reason_of(e)})") from e
    except (ValueError, TypeError, AttributeError, csv.Error) as e:
        expected = "expected one whole number per line, or `file,label` lines"
        raise OptionError(f"{what}: {expected} ({reason_of(e)})") from e


def _whole(text: str) -> bool:
    return text.lstrip("-").isdecimal()
