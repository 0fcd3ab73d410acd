"""Inputs of a model read from files, arrays or an iterable; nothing of a folder is decoded before it is asked for."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibration.images import CACHED, Format, Preprocess, decode, image_axes, image_format, sizing
from onnxprune.errors import OptionError
from onnxprune.graph.io import Model
from onnxprune.graph.runtime import Feeds
from onnxprune.graph.shapes import Array, fixed, graph_inputs

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MEMBER = 2 << 30  # bytes of one file in an archive
MADE_UP = 256  # samples where nobody says how many
LABELS = ("labels", "y", "label")
IGNORED = -100  # label of a token that does not count
LARGEST = float(np.finfo(np.float32).max)


class _Watch:
    """Sums of the squares of every input, over the samples that were loaded."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.sums: dict[str, float] = {}

    def look(self, i: int, feeds: Feeds, what: str) -> None:
        """Raise `OptionError` by the sample with which the sum of an input leaves float32."""
        if i in self.seen:
            return
        for name, x in feeds.items():
            self.sums[name] = self.sums.get(name, 0.0) + squares(x)
            if self.sums[name] > LARGEST:
                raise OptionError(f"{what}: sample {i}: {_too_large(f'input {name}', x)}")
        self.seen.add(i)


@dataclass(frozen=True, eq=False)
class Samples:
    """load: index -> inputs of one run; chosen: which of the source's samples these are.

    description: for the report; fingerprint: bytes that stand for one of the source's samples; labels: int64
    `(count,)`, of tokens `(count, tokens)`, or None; stackable: whether samples can be joined along axis 0 of every
    input; total: samples that the source has; names: files of all of them, none of arrays; augmented: whether they are
    random crops; uses: fields of `Preprocess` that had a say in them, and "augment"; holds: what the source is, for
    messages; misfit: what is wrong with labels that came with them, for whoever would need them.
    """

    load: Callable[[int], Feeds]
    chosen: tuple[int, ...]
    description: str
    fingerprint: Callable[[int], bytes]
    labels: Array | None
    stackable: bool
    total: int
    names: tuple[str, ...] = ()
    augmented: bool = False
    uses: frozenset[str] = frozenset()
    holds: str = ""
    misfit: str = ""
    watch: _Watch = field(default_factory=_Watch, repr=False)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.chosen)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the samples are made of, wherever it lies."""
        digest = hashlib.sha256()
        for i in self.chosen:
            digest.update(self.fingerprint(i))
        return digest.hexdigest()

    def feeds(self, indices: Sequence[int]) -> Feeds:
        """Inputs of one run: the samples, joined along axis 0 where they are stackable, else exactly one.

        Raises `OptionError` where the squares of what was loaded so far overflow float32.
        """
        each = [self.load(self.chosen[i]) for i in indices]
        for i, feeds in zip(indices, each, strict=True):
            self.watch.look(self.chosen[i], feeds, self.holds or self.description)
        if len(each) == 1:
            return each[0]
        assert each and self.stackable
        return {name: np.concatenate([e[name] for e in each]) for name in each[0]}

    def batches(self, size: int) -> Iterator[Feeds]:
        """Inputs of one run after the other, `size` samples each, one where they are not stackable."""
        size = size if self.stackable else 1
        for start in range(0, self.count, size):
            yield self.feeds(range(start, min(start + size, self.count)))

    def take(self, indices: Sequence[int]) -> Samples:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[list(indices)]
        return replace(self, chosen=tuple(self.chosen[i] for i in indices), labels=labels)

    def spare(self, count: int) -> Samples | None:
        """At most `count` of the source's other samples, evenly spread, without labels; None where there are none."""
        other = sorted(set(range(self.total)) - set(self.chosen))
        if not other:
            return None
        return replace(self, chosen=tuple(other[i] for i in spread(len(other), count)), labels=None)


def spread(total: int, count: int | None) -> list[int]:
    """At most `count` indices below `total`, evenly spread: `spread(5, 3)` is `[0, 2, 4]`."""
    if count is None or count >= total:
        return list(range(total))
    return [int(i) for i in np.unique(np.linspace(0, total - 1, count).round())]


def read(
    source: Any,
    model: Model,
    *,
    preprocess: Preprocess | None = None,
    samples: int | None = None,
    labels: Any = None,
    augment: bool = False,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    option: str = "--calibration",
) -> Samples:
    """Samples for a model.

    source: "synthetic", the path of a .npz, .npy, folder or .zip of .npy or images; in Python also arrays by input
    name, one array, an iterable of feeds, or `Samples`. samples: at most so many, evenly spread. labels: a file or an
    array. augment: random crops and flips of images. shapes: of made-up inputs, by name. option: what messages name.
    Feeds of equal shapes whose first axis is the batch are taken apart into their rows; others are one sample each.
    Arrays of uint8 that feed a floating image input are pixels, normalised as those of images in files; any other array
    is taken as it is. Raises `OptionError` naming what does not fit; options without a use are for `unused` to refuse.
    """
    if samples is not None and samples < 1:
        raise OptionError(f"--samples {samples}: must be 1 or more")
    inputs = graph_inputs(model)
    if not inputs:
        raise OptionError(f"{option}: the model has no inputs to feed")
    how = preprocess or Preprocess()
    if isinstance(source, Samples):
        found = source
    elif isinstance(source, str) and source == "synthetic":
        from onnxprune.calibration.synthetic import synthetic  # which makes samples

        found = synthetic(model, shapes or {}, how, samples or MADE_UP, seed)
    elif isinstance(source, (str, os.PathLike)):
        found = _from_path(Path(source), model, inputs, how, augment, seed, samples, option)
    else:
        found = _from_python(source, model, inputs, how, option)
    if augment and not found.augmented:
        raise OptionError(f"--augment crops and flips images in files; {found.holds or f'{option} holds none'}")
    if not found.count:
        shown = f" {source}" if isinstance(source, (str, os.PathLike)) else ""
        raise OptionError(f"{option}{shown}: there is no sample in it")
    if labels is not None:
        found = _labelled(found, labels, option)
    if samples is None or samples >= found.count:
        return found
    out = found.take(spread(found.count, samples))
    return replace(out, description=f"{out.count} of {found.description}")


# ---------------------------------------------------------------------------------------------------------------------
# Options that say how images are read
# ---------------------------------------------------------------------------------------------------------------------

VALUES = ("preset", "mean", "std", "scale")  # how pixels become numbers
PURPOSES = {
    **dict.fromkeys(VALUES, "it is for images in files and uint8 pixels that a floating input takes"),
    "channel_order": "it is for images in files and uint8 pixels in colour",
    "layout": "it says which axes of an input are those of an image, for images in files and uint8 pixels",
    "image_size": "it is for images in files of another size than the input",
    "crop": "it is for images in files of another size than the input",
}


def uses_of(form: Format, sizes: Iterable[str] = ()) -> frozenset[str]:
    """Fields of `Preprocess` that have a say in images of a format; sizes: those of them that say the size."""
    values = () if form.dtype.kind in "iu" else VALUES
    order = ("channel_order",) if form.channels >= 3 else ()
    return frozenset(("layout", *values, *order, *sizes))


def unused(how: Preprocess, *sources: Samples | None) -> str:
    """One line on an option of images that none of the sources has a use for; "" where there is no such option.

    sources: everything that was read with these options.
    """
    read_from = [s for s in sources if s is not None]
    known = frozenset[str]().union(*(s.uses for s in read_from))
    for f in fields(how):
        value = getattr(how, f.name)
        if f.name in PURPOSES and f.name not in known and value != f.default:
            held = dict.fromkeys(s.holds or s.description for s in read_from)
            shown = ",".join(f"{v:g}" for v in value) if isinstance(value, (tuple, list)) else value
            option = f"--{f.name.replace('_', '-')} {shown}"
            return f"{option}: {'; '.join(held) or 'no samples are read'}; {PURPOSES[f.name]}"
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------------------


def _shape(info: onnx.ValueInfoProto) -> list[int | None] | None:
    t = info.type.tensor_type
    return [d.dim_value if fixed(d) else None for d in t.shape.dim] if t.HasField("shape") else None


def stackable(inputs: Sequence[onnx.ValueInfoProto]) -> bool:
    """Whether samples can be joined along axis 0 of every input."""
    return all((shape := _shape(i)) is not None and len(shape) > 0 and shape[0] is None for i in inputs)


def _tuple(shape: Iterable[int | None]) -> str:
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ")"


def squares(x: Array) -> float:
    """Sum of the squares of the values of an array of a floating type, infinite where they leave float32; else 0."""
    if x.dtype.kind not in "fV" or not x.size:
        return 0.0
    largest = _largest(x)
    if not largest < 1e19:
        return math.inf
    if largest * largest * x.size < 1e30:
        return largest * largest * x.size  # far from the bound, where the sum itself is of no interest
    return float(np.square(x.astype(np.float64)).sum())


def _largest(x: Array) -> float:
    return max(float(x.max()), -float(x.min()))


def _too_large(name: str, x: Array) -> str:
    way = "scale the data, or leave such samples out"
    return f"{name} holds values up to {_largest(x):.3g}, whose squares overflow float32; {way}"


def _cast(x: Array, info: onnx.ValueInfoProto, what: str, name: str = "") -> Array:
    """The values in the input's type, if nothing is lost that matters. name: of the array, for messages."""
    name = name or f"input {info.name}"
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    if x.dtype.kind in "fc" and not np.isfinite(x).all():
        raise OptionError(f"{what}: {name} holds values that are not finite (NaN or infinity)")
    out = x
    if x.dtype != wanted:
        floating, same = wanted.kind in "fV", False  # V: bfloat16
        if x.dtype.kind in "fiub" and (floating or wanted.kind in "iu"):
            with np.errstate(all="ignore"):
                out = x.astype(wanted)
                same = bool(np.isfinite(out.astype(np.float64)).all()) if floating else np.array_equal(out, x)
        elif x.dtype.kind in "US" and wanted.kind == "O":
            return x.astype(object)
        if not same:
            found = f"{x.dtype} whose values do not fit"
            raise OptionError(f"{what}: {name} expects {wanted}, found {found}; convert it")
    if squares(out) > LARGEST:
        raise OptionError(f"{what}: {_too_large(name, out)}")
    return out


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or w == s for s, w in zip(shape, wanted, strict=True))


def _pieces(x: Array, wanted: Sequence[int | None] | None) -> tuple[int, Callable[[int], Array]] | None:
    """How many samples an array holds along its first axis, and one of them as an input of a shape takes it.

    None where the shapes do not fit.
    """
    if wanted is None or (x.ndim and len(wanted) == x.ndim - 1 and _fits(x.shape[1:], wanted)):
        return len(x), lambda i: x[i]
    if x.ndim and len(wanted) == x.ndim and wanted and _fits(x.shape[1:], wanted[1:]):
        step = wanted[0] or 1
        if len(x) >= step or not len(x):
            return len(x) // step, lambda i: x[i * step : (i + 1) * step]
    if not wanted and x.ndim == 0:
        return 1, lambda i: x
    return None


def _lifted(x: Array, wanted: Sequence[int | None]) -> Array:
    """With a batch axis of one, if that is all that lacks."""
    lacks = len(wanted) == x.ndim + 1 and wanted[0] in (None, 1) and _fits(x.shape, wanted[1:])
    return x[None] if lacks else x


@dataclass(frozen=True)
class _Taker:
    """How one input takes arrays: as they are, or, with a `form`, as pixels in its own layout or with channels last.

    sizes: of the pixels that it was made for.
    """

    info: onnx.ValueInfoProto
    form: Format | None = None
    sizes: frozenset[tuple[int, int]] = frozenset()

    @property
    def shapes(self) -> list[list[int | None] | None]:
        """That an array may have for one run: the input's own, of pixels also with channels last."""
        own = _shape(self.info)
        if self.form is None or own is None:
            return [own]
        axis = len(own) + (-3 if self.form.layout.endswith("CHW") else -1)
        own[axis] = self.form.channels
        last = [*own[:axis], *own[axis + 1 :], own[axis]]
        return [own] if last == own else [own, last]

    def run(self, x: Array, place: int) -> Array:
        """What the input takes of an array of the shape `shapes[place]`."""
        if self.form is None:
            return x
        x = x if self.form.batched else x[None]
        if not place and self.form.layout.endswith("CHW"):
            x = np.moveaxis(x, 1, -1)
        each = [self.form.normalise(pixels) for pixels in x]
        return np.concatenate(each) if self.form.batched else each[0]

    def pieces(self, x: Array, what: str, name: str = "") -> tuple[int, Callable[[int], Array]]:
        """How many samples an array holds along its first axis, and one of them as the input takes it."""
        x = x if self.form is not None else _cast(x, self.info, what, name)
        for place, wanted in enumerate(self.shapes):
            found = _pieces(x, wanted)
            if found is not None:
                return found[0], functools.partial(self._piece, found[1], place)
        raise self._misfit(x, what, name, "with samples along the first axis, ")

    def _piece(self, part: Callable[[int], Array], place: int, i: int) -> Array:
        return self.run(part(i), place)

    def one(self, x: Array, what: str) -> Array:
        """An array that is one sample, as the input takes it and with its batch axis."""
        x = x if self.form is not None else _cast(x, self.info, what)
        for place, wanted in enumerate(self.shapes):
            if wanted is None:
                return x
            lifted = _lifted(x, wanted)
            if _fits(lifted.shape, wanted):
                return self.run(lifted, place)
        raise self._misfit(x, what, "", "")

    def _misfit(self, x: Array, what: str, name: str, how: str) -> OptionError:
        wanted = " or ".join(_tuple(s) for s in self.shapes if s is not None)
        return OptionError(
            f"{what}: {name or f'input {self.info.name}'} expects {wanted}, {how}found {_tuple(x.shape)}"
        )

    @property
    def description(self) -> str:
        """Of the pixels, for the report."""
        assert self.form is not None
        text = self.form.description
        size = f"{self.form.height}x{self.form.width}"
        return text if len(self.sizes) == 1 else f"sizes of their own{text.removeprefix(size)}"


Like = tuple[tuple[int, ...], np.dtype[Any]]  # shape and type of an array


def _taker(model: Model, info: onnx.ValueInfoProto, how: Preprocess, arrays: Iterable[Like], what: str) -> _Taker:
    """How an input takes arrays of these shapes and types. Raises `OptionError` where pixels are mixed with others."""
    arrays = list(arrays)
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    axes = image_axes(info, how.layout)
    kinds = sorted({str(dtype) for _, dtype in arrays})
    if "uint8" not in kinds or wanted.kind != "f" or axes is None:
        return _Taker(info)
    if len(kinds) > 1:
        found = " and ".join(kinds)
        raise OptionError(f"{what}: input {info.name}: found {found}; give pixels (uint8) or numbers, not both")
    channels = axes[1]
    first = axes[0].endswith("CHW")
    own = [shape[-2:] if first and shape[-3] == channels else shape[-3:-1] for shape, _ in arrays if len(shape) > 2]
    sizes = frozenset((h, w) for h, w in own)
    size = next(iter(sizes), None)
    return _Taker(info, image_format(model, info, replace(how, image_size=None, crop=None), size), sizes)


def _told(takers: Sequence[_Taker], count: int, shown: str) -> str:
    """Samples of arrays, for the report."""
    pixels = [t for t in takers if t.form is not None]
    if not pixels:
        return f"{count} samples of {shown}"
    if len(takers) == 1 and (form := pixels[0].form) is not None:
        return f"{count * form.batch} images of {shown}: {pixels[0].description}"
    return f"{count} samples of {shown}: " + "; ".join(f"{t.info.name}: {t.description}" for t in pixels)


def _held(takers: Sequence[_Taker], dtypes: Iterable[Any], option: str) -> tuple[frozenset[str], str]:
    """`uses` and `holds` of arrays of such types."""
    forms = [t.form for t in takers if t.form is not None]
    if forms:
        colour = "in grey" if all(f.channels < 3 for f in forms) else "in colour"
        return frozenset[str]().union(
            *map(uses_of, forms)
        ), f"{option} holds uint8 pixels {colour}, of the size they go in"
    kinds = sorted({str(d) for d in dtypes})
    return frozenset(), f"{option} holds arrays of {' and '.join(kinds)}, which are taken as they are"


def _from_arrays(
    arrays: Mapping[str, Array], model: Model, inputs: Sequence[onnx.ValueInfoProto], how: Preprocess, what: str,
    shown: str, option: str,
) -> Samples:  # fmt: skip
    """what: names the source in messages; shown: in the report."""
    named = dict(arrays)
    names = [i.name for i in inputs]
    key = next((k for k in LABELS if k in named and k not in names and len(named) > 1), None)
    labels = None if key is None else named.pop(key)
    called = {name: f"input {name}" for name in names}
    if len(inputs) == 1 and len(named) == 1 and inputs[0].name not in named:
        called = {inputs[0].name: f"array {next(iter(named))} for input {inputs[0].name}"}
        named = {inputs[0].name: next(iter(named.values()))}
    for name in names:
        if name not in named:
            raise OptionError(f"{what}: no array for input {name}; found {', '.join(named) or 'none'}")
    for name in named:
        if name not in names:
            raise OptionError(f"{what}: the model has no input {name}; it has {', '.join(names)}")
    takers = [_taker(model, i, how, [(named[i.name].shape, named[i.name].dtype)], what) for i in inputs]
    parts, counts = {}, {}
    for taker in takers:
        name = taker.info.name
        counts[name], parts[name] = taker.pieces(named[name], what, called[name])
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise OptionError(f"{what}: inputs have different numbers of samples: {each}; give as many of each")
    count = next(iter(counts.values()))
    uses, holds = _held(takers, (x.dtype for x in named.values()), option)

    def load(i: int) -> Feeds:
        return {name: np.ascontiguousarray(part(i)) for name, part in parts.items()}

    found = Samples(
        load, tuple(range(count)), _told(takers, count, shown), lambda i: _hash(load(i)), None, stackable(inputs),
        count, uses=uses, holds=holds,
    )  # fmt: skip
    if key is None or not count:
        return found
    labels = np.asarray(labels)
    fitting = _fitting_labels(labels, found)
    if not isinstance(fitting, str):
        return replace(found, labels=fitting)
    wrong = f"{what}: {'labels' if key == 'labels' else f'labels ({key})'}: {fitting}"
    rows = {count, *(len(named[name]) for name in names if named[name].ndim)}  # of a fixed batch many are one sample
    if labels.size != count and (not labels.ndim or len(labels) not in rows):
        raise OptionError(wrong)
    note = f", without its labels of shape {_tuple(labels.shape)}"  # of pixels, boxes, or of rows of a fixed batch
    return replace(found, description=found.description + note, misfit=wrong)


def _hash(feeds: Feeds) -> bytes:
    digest = hashlib.sha256()
    for name, x in sorted(feeds.items()):
        digest.update(f"{name} {x.dtype} {x.shape} ".encode())
        digest.update(repr(x.tolist()).encode() if x.dtype.kind == "O" else x.tobytes())
    return digest.digest()


def _from_python(
    source: Any, model: Model, inputs: Sequence[onnx.ValueInfoProto], how: Preprocess, option: str
) -> Samples:
    """Samples from a mapping, an array, or an iterable of feeds."""
    if isinstance(source, Mapping):
        arrays = {str(k): np.asarray(v) for k, v in source.items()}
        return _from_arrays(arrays, model, inputs, how, option, "arrays", option)
    if isinstance(source, np.ndarray):
        return _from_arrays({inputs[0].name: source}, model, inputs, how, option, "an array", option)
    try:
        runs = list(source)
    except TypeError:
        kind = type(source).__name__
        raise OptionError(f"{option}: expected a path, arrays or an iterable of feeds, found {kind}") from None
    if not runs:
        raise OptionError(f"{option}: the iterable is empty")
    feeds = [
        {k: np.asarray(v) for k, v in (r if isinstance(r, Mapping) else {inputs[0].name: r}).items()} for r in runs
    ]
    names = [i.name for i in inputs]
    for k, f in enumerate(feeds):
        for name in [n for n in names if n not in f]:
            raise OptionError(f"{option}: feed {k} has no array for input {name}")
        for name in [n for n in f if n not in names]:
            raise OptionError(f"{option}: feed {k}: the model has no input {name}; it has {', '.join(names)}")
    takers = [_taker(model, i, how, ((f[i.name].shape, f[i.name].dtype) for f in feeds), option) for i in inputs]
    if not all(_alike([f[i.name] for f in feeds], i) for i in inputs):
        each = [
            {t.info.name: t.one(f[t.info.name], f"{option}: feed {k}") for t in takers} for k, f in enumerate(feeds)
        ]
        uses, holds = _held(takers, (x.dtype for f in feeds for x in f.values()), option)
        return Samples(
            lambda i: each[i], tuple(range(len(each))), _told(takers, len(each), "an iterable"),
            lambda i: _hash(each[i]), None, False, len(each), uses=uses, holds=holds,
        )  # fmt: skip
    rows = {i.name: _in_rows(feeds[0][i.name], i) for i in inputs}
    joined = {n: (np.concatenate if rows[n] else np.stack)([f[n] for f in feeds]) for n in names}
    return _from_arrays(joined, model, inputs, how, option, "an iterable", option)


def _in_rows(x: Array, info: onnx.ValueInfoProto) -> bool:
    """Whether the array has the input's own axes, the first of them a batch of any size."""
    shape = _shape(info)
    return shape is not None and shape[:1] == [None] and x.ndim == len(shape)


def _alike(arrays: Sequence[Array], info: onnx.ValueInfoProto) -> bool:
    skip = int(all(_in_rows(x, info) for x in arrays))
    return len({x.shape[skip:] for x in arrays}) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
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
            raise OptionError(f"{self.shown}: cannot be read ({_reason(e)})") from e

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
            raise OptionError(f"{self.shown}: cannot be read as a numpy file ({_reason(e)})") from e


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _files(path: Path, what: str) -> list[_File]:
    """Files that are no junk, sorted."""
    if path.is_dir():
        found = []
        for p in path.rglob("*"):
            if p.is_file():
                name = p.relative_to(path).as_posix()
                found.append(_File(name, f"{what}/{name}", functools.partial(_open, p)))
    else:
        archive = _archive(path, what, "a folder or a .zip of .npy or images, .npz or .npy")
        found = [
            _File(info.filename, f"{what}/{info.filename}", functools.partial(archive.open, info))
            for info in archive.infolist()
            if not info.is_dir()
        ]
    good = [f for f in found if not any(p.startswith((".", "__MACOSX")) for p in PurePosixPath(f.path).parts)]
    return sorted(good, key=lambda f: f.path)


def _archive(path: Path, what: str, expected: str) -> zipfile.ZipFile:
    """An archive none of whose files is a bomb."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as e:
        raise OptionError(f"{what}: expected {expected} ({_reason(e)})") from e
    for info in archive.infolist():
        if info.file_size > MEMBER:
            archive.close()
            size = f"would take {info.file_size} bytes, more than {MEMBER}"
            raise OptionError(f"{what}: {info.filename} {size}; give it as .npy outside of an archive")
    return archive


def _load_npy(data: Any, what: str) -> Any:
    try:
        return np.load(data, allow_pickle=False)
    except Exception as e:  # whatever a broken file makes numpy raise
        raise OptionError(f"{what}: cannot be read as a numpy file ({_reason(e)})") from e


def load_npz(path: Path, what: str) -> dict[str, Array]:
    """The arrays of an archive by name; raises `OptionError` naming `what`."""
    _archive(path, what, "a .npz archive").close()
    with _load_npy(path, what) as arrays:
        try:
            return {k: np.asarray(arrays[k]) for k in arrays.files}
        except Exception as e:  # of numpy, zipfile or zlib
            raise OptionError(f"{what}: cannot be read as a numpy archive ({_reason(e)})") from e


TEXT = (".txt", ".tsv", ".csv", ".json", ".jsonl", ".md")


def _usable(file: _File) -> bool:
    return file.path.lower().endswith((".npy", *IMAGES))


def _from_path(
    path: Path, model: Model, inputs: Sequence[onnx.ValueInfoProto], how: Preprocess, augment: bool, seed: int,
    samples: int | None, option: str,
) -> Samples:  # fmt: skip
    what, shown = f"{option} {path}", str(path)
    if not path.exists():
        raise OptionError(f"{what}: there is no such file or folder")
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".npz":
        return _from_arrays(load_npz(path, what), model, inputs, how, what, shown, option)
    if path.is_file() and suffix == ".npy":
        if len(inputs) > 1:
            raise OptionError(f"{what}: one array, but the model has {len(inputs)} inputs; give a .npz")
        arrays = {inputs[0].name: np.asarray(_load_npy(path, what))}
        return _from_arrays(arrays, model, inputs, how, what, shown, option)
    if path.is_file() and suffix in TEXT:
        ids = ", ".join(i.name for i in inputs)
        raise OptionError(
            f"{what}: text is for the tokenizer of the model, which onnxprune lacks; give what it makes of the text, "
            f"a .npz with one array of token ids per input ({ids})"
        )
    files = _files(path, what)
    if any(PurePosixPath(f.path).suffix.lower() in TEXT for f in files) and not any(map(_usable, files)):
        raise OptionError(f"{what}: holds text; tokenize it, and give token ids as .npz with one array per input")
    images = [f for f in files if PurePosixPath(f.path).suffix.lower() in IMAGES]
    tables = [f for f in files if f.path.lower().endswith(".npy")]
    if images and tables:
        raise OptionError(f"{what}: holds images and .npy files; keep one kind")
    if images:
        return _from_images(images, model, inputs, how, augment, seed, samples, what, shown, option)
    if tables:
        return _from_npys(tables, model, inputs, how, what, shown, option)
    raise OptionError(f"{what}: holds no image ({', '.join(IMAGES)}) and no .npy file")


def _from_npys(
    files: Sequence[_File], model: Model, inputs: Sequence[onnx.ValueInfoProto], how: Preprocess, what: str, shown: str,
    option: str,
) -> Samples:  # fmt: skip
    """One file per sample; of several inputs in a sub-folder each."""
    by_input: dict[str, list[_File]] = {}
    for f in files:
        name = PurePosixPath(f.path).parent.name if len(inputs) > 1 else inputs[0].name
        by_input.setdefault(name, []).append(f)
    names = [i.name for i in inputs]
    if set(by_input) != set(names):
        found = ", ".join(name or "no sub-folder" for name in by_input)
        raise OptionError(f"{what}: expected a sub-folder of .npy per input ({', '.join(names)}), found {found}")
    counts = {name: len(by_input[name]) for name in names}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise OptionError(f"{what}: inputs have different numbers of samples: {each}; give as many files of each")
    columns = [by_input[name] for name in names]
    likes = [[f.like() for f in fs] for fs in columns]
    takers = [_taker(model, info, how, each, what) for info, each in zip(inputs, likes, strict=True)]

    def load(i: int) -> Feeds:
        return {
            t.info.name: t.one(np.asarray(_load_npy(io.BytesIO(fs[i].read()), fs[i].shown)), fs[i].shown)
            for t, fs in zip(takers, columns, strict=True)
        }

    count = len(columns[0])
    uses, holds = _held(takers, (dtype for each in likes for _, dtype in each), option)
    return Samples(
        load, tuple(range(count)), _told(takers, count, shown), lambda i: _hash(load(i)), None,
        stackable(inputs) and all(_single(each, info) for each, info in zip(likes, inputs, strict=True)), count,
        tuple(f.path for f in columns[0]), uses=uses, holds=holds,
    )  # fmt: skip


def _single(files: Sequence[Like], info: onnx.ValueInfoProto) -> bool:
    """Whether every file holds one row, all of the same shape."""
    wanted = _shape(info) or []
    rows = {shape[1:] if len(shape) == len(wanted) and shape[0] == 1 else shape for shape, _ in files}
    return len(rows) == 1 and {len(r) for r in rows} == {len(wanted) - 1}


class _Images:
    """Decodes images on demand and keeps some."""

    def __init__(self, files: Sequence[_File], name: str, form: Format, augment: bool, seed: int) -> None:
        self.files, self.name, self.form, self.augment, self.seed = files, name, form, augment, seed
        self.kept: dict[int, Array] = {}
        self.bytes = 0

    def __call__(self, i: int) -> Feeds:
        batch = self.form.batch
        return {self.name: np.concatenate([self.image(k) for k in range(i * batch, (i + 1) * batch)])
                if batch > 1 else self.image(i)}  # fmt: skip

    def image(self, i: int) -> Array:
        pixels = self.kept.get(i)
        if pixels is None:
            f = self.files[i % len(self.files)]
            rng = np.random.default_rng([self.seed, i]) if self.augment else None
            pixels = decode(f.read(), f.shown, self.form, rng)
            if self.bytes + pixels.nbytes <= CACHED:
                self.kept[i] = pixels
                self.bytes += pixels.nbytes
        return self.form.normalise(pixels)

    def fingerprint(self, i: int) -> bytes:
        """Of the files of one sample and of what is done to them."""
        how = f"{self.form.fitting} {self.form.description} {(self.seed, i) if self.augment else ''}"
        digest = hashlib.sha256(how.encode())
        for k in range(i * self.form.batch, (i + 1) * self.form.batch):
            digest.update(hashlib.sha256(self.files[k % len(self.files)].read()).digest())
        return digest.digest()


def _from_images(
    files: Sequence[_File], model: Model, inputs: Sequence[onnx.ValueInfoProto], how: Preprocess, augment: bool,
    seed: int, samples: int | None, what: str, shown: str, option: str,
) -> Samples:  # fmt: skip
    if len(inputs) != 1:
        raise OptionError(f"{what}: images are for models of one input, this one has {len(inputs)}; give a .npz")
    form = image_format(model, inputs[0], how)
    load = _Images(files, inputs[0].name, form, augment, seed)
    count = len(files) // form.batch
    if augment:
        count = max(count, samples or 0)
    if not count:
        raise OptionError(f"{what}: {len(files)} images, but the model takes {form.batch} at once; give more")
    fitting = "random crops and flips" if augment else form.fitting
    description = f"{count * form.batch} images of {shown}: {fitting}, {form.description}"
    repeated = [files[i % len(files)] for i in range(count)]
    names = tuple(f.path for f in repeated) if form.batch == 1 else ()
    classes = _classes([f.path for f in repeated]) if form.batch == 1 else None
    labels = None if classes is None else np.array(classes, np.int64)
    said = sizing(inputs[0], how) if augment else ("image_size", "crop")
    kind = "images" if form.dtype.kind not in "iu" else f"images for an input of {form.dtype}, which takes pixels"
    return Samples(
        load, tuple(range(count)), description, load.fingerprint, labels, form.batched and stackable(inputs), count,
        names, augment, uses_of(form, said) | ({"augment"} if augment else set()),
        f"{option} holds {kind}{', cut at random' if augment else ''}{', in grey' if form.channels < 3 else ''}",
    )  # fmt: skip


def _classes(paths: Sequence[str]) -> list[int] | None:
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


# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------


def _labelled(found: Samples, labels: Any, option: str) -> Samples:
    """The same samples with labels from a file or an array."""
    if isinstance(labels, (str, os.PathLike)):
        what = f"--labels {labels}"
        values, named = _read_labels(Path(labels), what)
    else:
        what, values, named = f"{option}: labels", np.asarray(labels), None
    if named is not None:
        if not found.names:
            raise OptionError(f"{what}: names files, but {option} holds none; give one label per line")
        paths = [found.names[i] for i in found.chosen]
        each = [named.get(p, named.get(PurePosixPath(p).name)) for p in paths]
        missing = [p for p, v in zip(paths, each, strict=True) if v is None]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise OptionError(f"{what}: no label for {', '.join(missing[:3])}{more}")
        values = np.array(each)
    files = len(set(found.names))
    if found.augmented and values.shape == (files,):
        values = values[[i % files for i in found.chosen]]  # images repeat with other crops
    fitting = _fitting_labels(values, found)
    if isinstance(fitting, str):
        raise OptionError(f"{what}: {fitting}")
    return replace(found, labels=fitting, misfit="")


def _fitting_labels(values: Array, found: Samples) -> Array | str:
    """int64 labels of the samples, `(count,)` or of tokens `(count, tokens)`; or what is wrong with them."""
    count, shape = found.count, values.shape
    tokens = _token_shape(found, shape) if len(shape) == 2 and values.dtype.kind in "iu" else None
    if values.size == count:
        values = values.reshape(-1)
    elif not shape or shape[0] != count:
        return f"{shape[0] if shape else 1} for {count} samples; give one per sample"
    elif shape != tokens:
        way = "; of one-hot labels argmax(1) makes it" if len(shape) == 2 else ""
        other = f", or {_tuple(tokens)}, one per token" if tokens else ""
        return f"shape {_tuple(shape)} for {count} samples; expected one class per sample, ({count}){other}{way}"
    if values.dtype.kind not in "iufb":
        return f"expected whole numbers that count classes from 0, found {values.dtype}"
    wrong = ~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values.astype(np.float64)) >= 2**53)
    wrong |= (values < 0) & (values != IGNORED if shape == tokens else True)
    if wrong.any():
        at = tuple(int(k) for k in np.argwhere(wrong)[0])
        way = f" ({IGNORED} for tokens that do not count)" if shape == tokens else ""
        return f"expected whole numbers that count classes from 0{way}, found {values[at]:g} (sample {at[0]})"
    return values.astype(np.int64)


def _token_shape(found: Samples, shape: Sequence[int]) -> tuple[int, int] | None:
    """(samples, tokens) of an integer input, of one with such a shape if there is one; None where there is no other."""
    widths = [v.shape[-1] for v in found.feeds([0]).values() if v.dtype.kind in "iu" and v.ndim and v.shape[-1] > 1]
    width = shape[1] if shape[1] in widths else next(iter(widths), None)
    return None if width is None else (found.count, width)


def _read_labels(path: Path, what: str) -> tuple[Array, dict[str, Any] | None]:
    """An array of labels, or labels by file name."""
    none: Array = np.zeros(0, np.int64)
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(_load_npy(path, what)), None
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
        raise OptionError(f"{what}: cannot be read ({_reason(e)})") from e
    except (ValueError, TypeError, AttributeError, csv.Error) as e:
        expected = "expected one whole number per line, or `file,label` lines"
        raise OptionError(f"{what}: {expected} ({_reason(e)})") from e


def _whole(text: str) -> bool:
    return text.lstrip("-").isdecimal()
