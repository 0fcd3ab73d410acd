"""Inputs of a model read from files, arrays or an iterable; nothing of a folder is decoded before it is asked for."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibration.images import Preprocess, decode, image_format
from onnxprune.calibration.synthetic import synthetic
from onnxprune.errors import OptionError
from onnxprune.graph.io import Model
from onnxprune.graph.runtime import Feeds
from onnxprune.graph.shapes import Array, fixed, graph_inputs

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MEMBER = 2 << 30  # bytes of one file in an archive
CACHED = 256 << 20  # bytes of decoded images that are kept
LABELS = ("labels", "y", "label")


@dataclass(frozen=True, eq=False)
class Samples:
    """load: index -> inputs of one run; chosen: which of the source's samples these are.

    description: for the report; fingerprint: bytes that stand for the source; labels: int64 `(count,)` or None;
    stackable: whether samples can be joined along axis 0 of every input; total: samples that the source has.
    """

    load: Callable[[int], Feeds]
    chosen: tuple[int, ...]
    description: str
    fingerprint: Callable[[int], bytes]
    labels: Array | None
    stackable: bool
    total: int

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.chosen)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the samples are made of."""
        digest = hashlib.sha256(self.description.encode())
        for i in self.chosen:
            digest.update(self.fingerprint(i))
        return digest.hexdigest()

    def feeds(self, indices: Sequence[int]) -> Feeds:
        """Inputs of one run: the samples, joined along axis 0."""
        each = [self.load(self.chosen[i]) for i in indices]
        if len(each) == 1:
            return each[0]
        assert self.stackable
        return {name: np.concatenate([e[name] for e in each]) for name in each[0]}

    def batches(self, size: int) -> Iterator[Feeds]:
        """Inputs of one run after the other, `size` samples each."""
        size = size if self.stackable else 1
        for start in range(0, self.count, size):
            yield self.feeds(range(start, min(start + size, self.count)))

    def take(self, indices: Sequence[int]) -> Samples:
        """Some of the samples."""
        where = tuple(self.chosen[i] for i in indices)
        labels = None if self.labels is None else self.labels[list(indices)]
        return Samples(self.load, where, self.description, self.fingerprint, labels, self.stackable, self.total)

    def spare(self, count: int) -> Samples | None:
        """At most `count` of the source's other samples, evenly spread, without labels; None where there are none."""
        other = sorted(set(range(self.total)) - set(self.chosen))
        if not other:
            return None
        where = tuple(other[i] for i in spread(len(other), count))
        return Samples(self.load, where, self.description, self.fingerprint, None, self.stackable, self.total)


def spread(total: int, count: int | None) -> list[int]:
    """At most `count` indices below `total`, evenly spread."""
    if count is None or count >= total:
        return list(range(total))
    return np.unique(np.linspace(0, total - 1, count).round().astype(int)).tolist()


def read(
    source: Any,
    model: Model,
    *,
    preprocess: Preprocess | None = None,
    samples: int | None = None,
    labels: Any = None,
    augment: bool = False,
    seed: int = 0,
    option: str = "--calibration",
) -> Samples:
    """Samples for a model.

    source: "synthetic", the path of a .npz, .npy, folder or .zip of .npy or images; in Python also arrays by input
    name, one array, an iterable of feeds, or `Samples`. samples: at most so many, evenly spread. labels: a file or an
    array. augment: random crops and flips of images. option: what messages name.
    Raises `OptionError` naming what does not fit.
    """
    if samples is not None and samples < 1:
        raise OptionError(f"--samples {samples}: must be 1 or more")
    inputs = graph_inputs(model)
    how = preprocess or Preprocess()
    if isinstance(source, Samples):
        found = source
    elif isinstance(source, str) and source == "synthetic":
        count = samples or 256
        load, description = synthetic(model, inputs, how, seed)
        fingerprint = f"{description} {seed}".encode()
        found = Samples(load, tuple(range(count)), f"{count} {description}", lambda i: fingerprint, None,
                        _stackable(inputs), count)  # fmt: skip
    elif isinstance(source, (str, os.PathLike)):
        found = _from_path(Path(source), model, inputs, how, augment, seed, samples, option)
    else:
        found = _from_arrays(_collect(source, inputs, option), inputs, f"{option}: the array", option)
    if augment and not getattr(found.load, "augments", False):
        raise OptionError(f"--augment crops and flips images; {option} holds none")
    if not found.count:
        raise OptionError(f"{option} {source}: there is no sample in it")
    if labels is not None:
        found = _labelled(found, labels, option)
    indices = spread(found.count, samples)
    out = found.take(indices)
    if out.count < found.count:
        note = f"{out.count} of {found.description}"
        out = Samples(out.load, out.chosen, note, out.fingerprint, out.labels, out.stackable, out.total)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------------------


def _shape(info: onnx.ValueInfoProto) -> list[int | None] | None:
    t = info.type.tensor_type
    return [d.dim_value if fixed(d) else None for d in t.shape.dim] if t.HasField("shape") else None


def _stackable(inputs: Sequence[onnx.ValueInfoProto]) -> bool:
    return all((shape := _shape(i)) is not None and len(shape) > 0 and shape[0] is None for i in inputs)


def _shown(shape: Iterable[int | None]) -> str:
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"


def _cast(x: Array, info: onnx.ValueInfoProto, what: str) -> Array:
    """The values in the input's type, if nothing is lost that matters."""
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    if x.dtype.kind in "fc" and not np.isfinite(x).all():
        raise OptionError(f"{what}: holds values that are not finite (NaN or infinity)")
    if x.dtype == wanted:
        return x
    if x.dtype.kind in "fiub" and (wanted.kind in "fV" or (wanted.kind in "iu" and x.dtype.kind in "iub")):
        out = x.astype(wanted)
        if wanted.kind in "fV" or np.array_equal(out, x):
            return out
    elif x.dtype.kind == "f" and wanted.kind in "iu" and np.array_equal(x.astype(wanted), x):
        return x.astype(wanted)
    raise OptionError(f"{what}: input {info.name} expects {wanted}, found {x.dtype} whose values do not fit")


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or w == s for s, w in zip(shape, wanted, strict=True))


def _pieces(x: Array, info: onnx.ValueInfoProto, what: str) -> tuple[int, Callable[[int], Array]]:
    """How many samples an array holds along its first axis, and one of them as the input takes it."""
    wanted = _shape(info)
    if wanted is None or (x.ndim and len(wanted) == x.ndim - 1 and _fits(x.shape[1:], wanted)):
        return len(x), lambda i: x[i]
    if x.ndim and len(wanted) == x.ndim and wanted and _fits(x.shape[1:], wanted[1:]):
        step = wanted[0] or 1
        if len(x) >= step:
            return len(x) // step, lambda i: x[i * step : (i + 1) * step]
    if not wanted and x.ndim == 0:
        return 1, lambda i: x
    raise OptionError(
        f"{what}: input {info.name} expects {_shown(wanted)}, with samples along the first axis, found {_shown(x.shape)}"
    )


def _from_arrays(arrays: Mapping[str, Array], inputs: Sequence[onnx.ValueInfoProto], what: str, option: str) -> Samples:
    named = dict(arrays)
    labels = next((named.pop(k) for k in LABELS if k in named and k not in {i.name for i in inputs}), None)
    if len(inputs) == 1 and len(named) == 1 and inputs[0].name not in named:
        named = {inputs[0].name: next(iter(named.values()))}
    for info in inputs:
        if info.name not in named:
            raise OptionError(f"{what}: no array for input {info.name}; found {', '.join(named) or 'none'}")
    for name in named:
        if name not in {i.name for i in inputs}:
            raise OptionError(f"{what}: the model has no input {name}; it has {', '.join(i.name for i in inputs)}")
    parts, counts = {}, {}
    for info in inputs:
        x = _cast(np.asarray(named[info.name]), info, what)
        counts[info.name], parts[info.name] = _pieces(x, info, what)
    if len(set(counts.values())) > 1:
        raise OptionError(f"{what}: inputs have different numbers of samples: {counts}")
    count = next(iter(counts.values()))

    def load(i: int) -> Feeds:
        return {name: np.ascontiguousarray(part(i)) for name, part in parts.items()}

    def fingerprint(i: int) -> bytes:
        feeds = load(i)
        return hashlib.sha256(
            b"".join(f"{n} {v.dtype} {v.shape}".encode() + v.tobytes() for n, v in sorted(feeds.items()))
        ).digest()

    made = Samples(
        load, tuple(range(count)), f"{count} samples of {what}", fingerprint, None, _stackable(inputs), count
    )
    return made if labels is None else _labelled(made, labels, option)


def _collect(source: Any, inputs: Sequence[onnx.ValueInfoProto], option: str) -> dict[str, Array]:
    """Arrays by input name from a mapping, an array, or an iterable of feeds."""
    if isinstance(source, Mapping):
        return {str(k): np.asarray(v) for k, v in source.items()}
    if isinstance(source, np.ndarray):
        return {inputs[0].name: source}
    try:
        runs = list(source)
    except TypeError:
        raise OptionError(
            f"{option}: expected a path, arrays or an iterable of feeds, found {type(source).__name__}"
        ) from None
    feeds = [r if isinstance(r, Mapping) else {inputs[0].name: r} for r in runs]
    if not feeds:
        raise OptionError(f"{option}: the iterable is empty")
    out = {}
    for name in feeds[0]:
        try:
            arrays = [np.asarray(f[name]) for f in feeds]
        except KeyError:
            raise OptionError(f"{option}: a feed has no array for input {name}") from None
        info = next((i for i in inputs if i.name == name), None)
        shape = None if info is None else _shape(info)
        batched = shape is not None and shape and shape[0] is None and all(a.ndim == len(shape) for a in arrays)
        if len({a.shape[1:] if batched else a.shape for a in arrays}) > 1:
            raise OptionError(f"{option}: feeds of input {name} have different shapes; give equal ones")
        out[name] = np.concatenate(arrays) if batched else np.stack(arrays)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file of a folder or an archive. path: relative, with slashes."""

    path: str
    read: Callable[[], bytes]


def _files(path: Path, option: str) -> list[_File]:
    """Files that are no junk, sorted."""
    if path.is_dir():
        found = [_File(p.relative_to(path).as_posix(), p.read_bytes) for p in path.rglob("*") if p.is_file()]
    else:
        archive = zipfile.ZipFile(path)
        found = []
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.file_size > MEMBER:
                raise OptionError(f"{option} {path}: {info.filename} would take {info.file_size} bytes, limit {MEMBER}")
            found.append(_File(info.filename, lambda info=info: archive.read(info)))  # type: ignore[misc]
    good = [f for f in found if not any(p.startswith((".", "__MACOSX")) for p in PurePosixPath(f.path).parts)]
    return sorted(good, key=lambda f: f.path)


def _load_npy(data: Any, name: str) -> Any:
    try:
        return np.load(data, allow_pickle=False)
    except Exception as e:  # whatever a broken file makes numpy raise
        raise OptionError(f"{name}: cannot be read as a numpy file ({e})") from e


def _from_path(
    path: Path, model: Model, inputs: Sequence[onnx.ValueInfoProto], how: Preprocess, augment: bool, seed: int,
    samples: int | None, option: str,
) -> Samples:  # fmt: skip
    what = f"{option} {path}"
    if not path.exists():
        raise OptionError(f"{what}: there is no such file or folder")
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".npz":
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else _bad(what, "a .npz archive") as archive:
            large = next((i for i in archive.infolist() if i.file_size > 4 * MEMBER), None)
        if large is not None:
            raise OptionError(f"{what}: {large.filename} would take {large.file_size} bytes")
        with _load_npy(path, what) as arrays:
            try:
                named = {k: arrays[k] for k in arrays.files}
            except ValueError as e:
                raise OptionError(f"{what}: {e}") from e
        return _from_arrays(named, inputs, what, option)
    if path.is_file() and suffix == ".npy":
        return _from_arrays({inputs[0].name: _load_npy(path, what)}, inputs, what, option)
    if path.is_file() and not zipfile.is_zipfile(path):
        raise OptionError(f"{what}: expected .npz, .npy, a folder or a .zip of .npy or images")
    files = _files(path, option)
    images = [f for f in files if PurePosixPath(f.path).suffix.lower() in IMAGES]
    arrays_ = [f for f in files if f.path.lower().endswith(".npy")]
    if images and arrays_:
        raise OptionError(f"{what}: holds images and .npy files; keep one kind")
    if not images and not arrays_:
        raise OptionError(f"{what}: holds no image ({', '.join(IMAGES)}) and no .npy file")
    return (
        _from_images(images, model, inputs, how, augment, seed, samples, what)
        if images
        else _from_npys(arrays_, inputs, what)
    )


def _bad(what: str, expected: str) -> Any:
    raise OptionError(f"{what}: is not {expected}")


def _from_npys(files: Sequence[_File], inputs: Sequence[onnx.ValueInfoProto], what: str) -> Samples:
    """One file per sample; of several inputs in a sub-folder each."""
    by_input: dict[str, list[_File]] = {}
    for f in files:
        parts = PurePosixPath(f.path).parts
        folder = parts[-2] if len(parts) > 1 else ""
        by_input.setdefault(folder if len(inputs) > 1 else inputs[0].name, []).append(f)
    for info in inputs:
        if len(by_input.get(info.name, ())) != len(by_input[next(iter(by_input))]):
            raise OptionError(f"{what}: expected a sub-folder {info.name} with as many .npy files as the others")

    def load(i: int) -> Feeds:
        feeds = {}
        for info in inputs:
            f = by_input[info.name][i]
            x = _cast(np.asarray(_load_npy(io.BytesIO(f.read()), f"{what}/{f.path}")), info, f"{what}/{f.path}")
            wanted = _shape(info)
            if (
                wanted is not None
                and len(wanted) == x.ndim + 1
                and wanted[0] in (None, 1)
                and _fits(x.shape, wanted[1:])
            ):
                x = x[None]
            if wanted is not None and not _fits(x.shape, wanted):
                raise OptionError(
                    f"{what}/{f.path}: input {info.name} expects {_shown(wanted)}, found {_shown(x.shape)}"
                )
            feeds[info.name] = x
        return feeds

    count = len(by_input[inputs[0].name])
    names = [by_input[i.name] for i in inputs]
    return Samples(
        load, tuple(range(count)), f"{count} samples of {what}",
        lambda i: b"".join(hashlib.sha256(fs[i].read()).digest() for fs in names), None, _stackable(inputs), count,
    )  # fmt: skip


class _Images:
    """Decodes images on demand and keeps some."""

    def __init__(self, files: Sequence[_File], name: str, form: Any, augment: bool, seed: int, what: str) -> None:
        self.files, self.name, self.form, self.augments, self.seed, self.what = files, name, form, augment, seed, what
        self.kept: dict[int, Array] = {}
        self.bytes = 0

    def __call__(self, i: int) -> Feeds:
        if i not in self.kept:
            f = self.files[i % len(self.files)]
            rng = np.random.default_rng([self.seed, i]) if self.augments else None
            pixels = decode(f.read(), f"{self.what}/{f.path}", self.form, rng)
            if self.bytes + pixels.nbytes > CACHED:
                return {self.name: self.form.normalise(pixels)}
            self.kept[i] = pixels
            self.bytes += pixels.nbytes
        return {self.name: self.form.normalise(self.kept[i])}


def _from_images(
    files: Sequence[_File], model: Model, inputs: Sequence[onnx.ValueInfoProto], how: Preprocess, augment: bool,
    seed: int, samples: int | None, what: str,
) -> Samples:  # fmt: skip
    if len(inputs) != 1:
        raise OptionError(f"{what}: images are for models of one input, this one has {len(inputs)}; give a .npz")
    form = image_format(model, inputs[0], how)
    count = max(len(files), samples or 0) if augment else len(files)
    load = _Images(files, inputs[0].name, form, augment, seed, what)
    kind = "crops of images" if augment else "images"
    description = f"{count} {kind} of {what}: {form.description}"
    found = Samples(
        load, tuple(range(count)), description,
        lambda i: hashlib.sha256(files[i % len(files)].read()).digest() + str(seed * augment).encode(), None,
        form.batched and _stackable(inputs), count,
    )  # fmt: skip
    load.paths = [f.path for f in files]  # type: ignore[attr-defined]
    parents = [PurePosixPath(f.path).parent.name for f in files]
    classes = sorted(set(parents))
    if augment or "" in classes or len(classes) < 2:
        return found
    numbers = [int(c) if c.isdecimal() else None for c in classes]
    value = dict(zip(classes, numbers if None not in numbers else range(len(classes)), strict=True))
    labels = np.array([value[p] for p in parents], np.int64)
    return Samples(load, found.chosen, description, found.fingerprint, labels, found.stackable, count)


# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------


def _labelled(found: Samples, labels: Any, option: str) -> Samples:
    """The same samples with labels from a file or an array."""
    named: dict[str, int] | None = None
    what = f"--labels {labels}" if isinstance(labels, (str, os.PathLike)) else f"{option}: the labels"
    if isinstance(labels, (str, os.PathLike)):
        values, named = _read_labels(Path(labels), what)
    else:
        values = np.asarray(labels)
    if named is not None:
        paths = getattr(found.load, "paths", None)
        if paths is None:
            raise OptionError(f"{what}: names files, but {option} holds arrays; give one label per line")
        missing = [p for p in paths if p not in named and PurePosixPath(p).name not in named]
        if missing:
            raise OptionError(
                f"{what}: no label for {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1))
            )
        values = np.array([named.get(p, named.get(PurePosixPath(p).name)) for p in paths])
    values = np.asarray(values).reshape(-1) if np.size(values) == found.count else np.asarray(values)
    if values.shape != (found.count,):
        raise OptionError(f"{what}: expected {found.count} labels, one per sample, found {_shown(values.shape)}")
    if not np.array_equal(values, values.astype(np.int64)):
        raise OptionError(f"{what}: expected whole numbers that count classes from 0")
    return Samples(found.load, found.chosen, found.description, found.fingerprint, values.astype(np.int64),
                   found.stackable, found.total)  # fmt: skip


def _read_labels(path: Path, what: str) -> tuple[Array, dict[str, int] | None]:
    """An array of labels, or labels by file name."""
    try:
        if path.suffix == ".npy":
            return np.asarray(_load_npy(path, what)), None
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            data = json.loads(text)
            return (
                (np.zeros(0), {str(k): int(v) for k, v in data.items()})
                if isinstance(data, dict)
                else (np.array(data), None)
            )
        separator = next((s for s in ("\t", ",", ";", " ") if s in text), ",")
        lines = [[c.strip() for c in r if c.strip()] for r in csv.reader(text.splitlines(), delimiter=separator)]
        lines = [r for r in lines if r]
        if all(len(r) == 1 for r in lines):
            return np.array([int(r[0]) for r in lines]), None
        if not lines[0][-1].lstrip("-").isdecimal():
            lines = lines[1:]  # a header
        return np.zeros(0), {r[0]: int(r[-1]) for r in lines}
    except (OSError, UnicodeDecodeError) as e:
        raise OptionError(f"{what}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise OptionError(f"{what}: expected one whole number per line, or `file,label` lines ({e})") from e
