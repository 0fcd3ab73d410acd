"""Labels that come with samples."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
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
LACKING = int(np.iinfo(np.int64).min)  # behind rows of labels that are shorter than others, until these are looked at


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
        what, values, named = f"{option}: labels", rows_of(labels), None
    if named is not None:
        if not samples.names:
            raise OptionError(f"{what}: names files, but {option} holds none; give one label per line")
        paths = [samples.names[i] for i in samples.chosen]
        each = [named.get(p, named.get(PurePosixPath(p).name)) for p in paths]
        missing = [p for p, v in zip(paths, each, strict=True) if v is None]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise OptionError(f"{what}: no label for {', '.join(missing[:3])}{more}")
        values = rows_of(each)
    files = len(set(samples.names))
    if samples.augmented and values.shape == (files,):
        values = values[[i % files for i in samples.chosen]]  # images repeat with other crops
    fitting = fitting_labels(values, samples)
    if isinstance(fitting, str):
        raise OptionError(f"{what}: {fitting}")
    return replace(samples, labels=fitting, misfit="")


def labelled_by_rows(samples: Samples, rows: Iterable[Array], option: str) -> Samples:
    """The same samples with the labels of each of them, a number or one for each of its tokens; as they are without
    any. Raises `OptionError` where they do not fit."""
    flat = [np.reshape(r, -1) for r in rows]
    if not flat:
        return samples
    return labelled(samples, np.concatenate(flat) if all(r.size == 1 for r in flat) else flat, option)


def rows_of(values: Any) -> Array:
    """Labels as an array; of rows of different lengths `(rows, longest)`, LACKING behind the shorter ones."""
    rows = [np.asarray(v) for v in values] if isinstance(values, Sequence) and not isinstance(values, str) else []
    lengths = {len(r) for r in rows if r.ndim == 1}
    if len(lengths) < 2 or any(r.ndim != 1 or (r.size and r.dtype.kind not in "iu") for r in rows):
        return np.asarray(values)
    out = np.full((len(rows), max(lengths)), LACKING, np.int64)
    for k, r in enumerate(rows):
        out[k, : len(r)] = r
    return out


def fitting_labels(values: Array, samples: Samples) -> Array | str:
    """int64 labels of the samples, `(count,)` or of tokens `(count, tokens)`, where samples differ in length `(count,
    longest)` with IGNORED behind; or what is wrong with them."""
    count, shape = samples.count, values.shape
    lengths = token_lengths(samples, shape[1]) if len(shape) == 2 and values.dtype.kind in "iu" else None
    tokens = None if lengths is None else (count, int(lengths.max()))
    if lengths is not None and lengths.min() < lengths.max() and len(values) == count:
        fitted = _trimmed(values, lengths)
        if isinstance(fitted, str):
            return fitted
        values, shape = fitted, fitted.shape
    if values.size == count:
        values = values.reshape(-1)
    elif not shape or shape[0] != count:
        return f"{shape[0] if shape else 1} for {count} samples; give one per sample"
    elif shape != tokens or (values == LACKING).any():
        way = "; of one-hot labels argmax(1) makes it" if len(shape) == 2 else ""
        other = f", or {shown_shape(tokens)}, one per token" if tokens else ""
        found = "rows of different lengths" if (values == LACKING).any() else f"shape {shown_shape(shape)}"
        return f"{found} for {count} samples; expected one class per sample, ({count}){other}{way}"
    if values.dtype.kind not in "iufb":
        return f"expected whole numbers that count classes from 0, found {values.dtype}"
    wrong = ~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values.astype(np.float64)) >= 2**53)
    wrong |= (values < 0) & (values != IGNORED if shape == tokens else True)
    if wrong.any():
        at = tuple(int(k) for k in np.argwhere(wrong)[0])
        way = f" ({IGNORED} for tokens that do not count)" if shape == tokens else ""
        return f"expected whole numbers that count classes from 0{way}, found {values[at]:g} (sample {at[0]})"
    return values.astype(np.int64)


def _trimmed(values: Array, lengths: Array) -> Array | str:
    """Labels of tokens as wide as the longest sample, IGNORED behind the end of the others; or what is wrong."""
    longest = int(lengths.max())
    if values.shape[1] < longest:
        return (
            f"shape {shown_shape(values.shape)} for samples of {lengths.min()} to {longest} tokens; expected one class "
            f"per token, {shown_shape((len(values), longest))}, {IGNORED} behind shorter samples"
        )
    behind = np.arange(values.shape[1]) >= lengths[:, None]
    off = np.where(behind, (values != LACKING) & (values != IGNORED), values == LACKING).any(1)
    if off.any():
        k = int(off.argmax())
        given = np.flatnonzero((values[k] != LACKING) & ~(behind[k] & (values[k] == IGNORED)))
        count = given[-1] + 1 if given.size else 0
        return f"sample {k} has {lengths[k]} tokens and {count} labels; give one per token, {IGNORED} behind them"
    return np.where(behind, IGNORED, values)[:, :longest]


def token_lengths(samples: Samples, width: int) -> Array | None:
    """Tokens of every sample, int64 `(count,)`, of the integer input whose longest has `width`, if there is one, else
    of the first; None without such an input. All samples are loaded where they may differ."""
    each = [
        {n: x.shape[-1] for n, x in samples.feeds([i]).items() if x.dtype.kind in "iu" and x.ndim}
        for i in range(1 if samples.stackable else samples.count)
    ]
    found = {name: np.array([sizes[name] for sizes in each], np.int64) for name in each[0]}
    found = {name: lengths for name, lengths in found.items() if lengths.max() > 1}
    chosen = next((x for x in found.values() if x.max() == width), next(iter(found.values()), None))
    return chosen if chosen is None or len(chosen) == samples.count else np.repeat(chosen, samples.count)


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
            return rows_of(data), None
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
