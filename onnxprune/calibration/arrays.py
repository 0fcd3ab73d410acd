"""Samples from arrays and iterables, held against what the inputs take."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibration.files import Like
from onnxprune.calibration.images import Format, image_format
from onnxprune.calibration.labels import (
    LABELS,
    fitting_labels,
)
from onnxprune.calibration.presets import Preprocess, image_axes
from onnxprune.calibration.samples import (
    LARGEST,
    Samples,
    shape_of,
    shown_shape,
    squares,
    stackable,
    too_large,
    uses_of,
)
from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.runtime.session import Feeds


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
        raise OptionError(f"{what}: {too_large(name, out)}")
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
class Taker:
    """How one input takes arrays: as they are, or, with a `form`, as pixels in its own layout or with channels last.

    sizes: of the pixels that it was made for.
    """

    info: onnx.ValueInfoProto
    form: Format | None = None
    sizes: frozenset[tuple[int, int]] = frozenset()

    @property
    def shapes(self) -> list[list[int | None] | None]:
        """That an array may have for one run: the input's own, of pixels also with channels last."""
        own = shape_of(self.info)
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
        wanted = " or ".join(shown_shape(s) for s in self.shapes if s is not None)
        return OptionError(
            f"{what}: {name or f'input {self.info.name}'} expects {wanted}, {how}found {shown_shape(x.shape)}"
        )

    @property
    def description(self) -> str:
        """Of the pixels, for the report."""
        assert self.form is not None
        text = self.form.description
        size = f"{self.form.height}x{self.form.width}"
        return text if len(self.sizes) == 1 else f"sizes of their own{text.removeprefix(size)}"


def taker_of(model: Model, info: onnx.ValueInfoProto, how: Preprocess, arrays: Iterable[Like], what: str) -> Taker:
    """How an input takes arrays of these shapes and types. Raises `OptionError` where pixels are mixed with others."""
    arrays = list(arrays)
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    axes = image_axes(info, how.layout)
    kinds = sorted({str(dtype) for _, dtype in arrays})
    if "uint8" not in kinds or wanted.kind != "f" or axes is None:
        return Taker(info)
    if len(kinds) > 1:
        found = " and ".join(kinds)
        raise OptionError(f"{what}: input {info.name}: found {found}; give pixels (uint8) or numbers, not both")
    channels = axes[1]
    first = axes[0].endswith("CHW")
    own = [shape[-2:] if first and shape[-3] == channels else shape[-3:-1] for shape, _ in arrays if len(shape) > 2]
    sizes = frozenset((h, w) for h, w in own)
    size = next(iter(sizes), None)
    return Taker(info, image_format(model, info, replace(how, image_size=None, crop=None), size), sizes)


def told(takers: Sequence[Taker], count: int, shown: str) -> str:
    """Samples of arrays, for the report."""
    pixels = [t for t in takers if t.form is not None]
    if not pixels:
        return f"{count} samples of {shown}"
    if len(takers) == 1 and (form := pixels[0].form) is not None:
        return f"{count * form.batch} images of {shown}: {pixels[0].description}"
    return f"{count} samples of {shown}: " + "; ".join(f"{t.info.name}: {t.description}" for t in pixels)


def held(takers: Sequence[Taker], dtypes: Iterable[Any], option: str) -> tuple[frozenset[str], str]:
    """`uses` and `holds` of arrays of such types."""
    forms = [t.form for t in takers if t.form is not None]
    if forms:
        colour = "in grey" if all(f.channels < 3 for f in forms) else "in colour"
        return frozenset[str]().union(
            *map(uses_of, forms)
        ), f"{option} holds uint8 pixels {colour}, of the size they go in"
    kinds = sorted({str(d) for d in dtypes})
    return frozenset(), f"{option} holds arrays of {' and '.join(kinds)}, which are taken as they are"


def from_arrays(
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
    takers = [taker_of(model, i, how, [(named[i.name].shape, named[i.name].dtype)], what) for i in inputs]
    parts, counts = {}, {}
    for taker in takers:
        name = taker.info.name
        counts[name], parts[name] = taker.pieces(named[name], what, called[name])
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise OptionError(f"{what}: inputs have different numbers of samples: {each}; give as many of each")
    count = next(iter(counts.values()))
    uses, holds = held(takers, (x.dtype for x in named.values()), option)

    def load(i: int) -> Feeds:
        return {name: np.ascontiguousarray(part(i)) for name, part in parts.items()}

    found = Samples(
        load, tuple(range(count)), told(takers, count, shown), lambda i: hashed(load(i)), None, stackable(inputs),
        count, uses=uses, holds=holds,
    )  # fmt: skip
    if key is None or not count:
        return found
    labels = np.asarray(labels)
    fitting = fitting_labels(labels, found)
    if not isinstance(fitting, str):
        return replace(found, labels=fitting)
    wrong = f"{what}: {'labels' if key == 'labels' else f'labels ({key})'}: {fitting}"
    rows = {count, *(len(named[name]) for name in names if named[name].ndim)}  # of a fixed batch many are one sample
    if labels.size != count and (not labels.ndim or len(labels) not in rows):
        raise OptionError(wrong)
    note = f", without its labels of shape {shown_shape(labels.shape)}"  # of pixels, boxes, or of rows of a fixed batch
    return replace(found, description=found.description + note, misfit=wrong)


def hashed(feeds: Feeds) -> bytes:
    digest = hashlib.sha256()
    for name, x in sorted(feeds.items()):
        digest.update(f"{name} {x.dtype} {x.shape} ".encode())
        digest.update(repr(x.tolist()).encode() if x.dtype.kind == "O" else x.tobytes())
    return digest.digest()


def from_python(
    source: Any, model: Model, inputs: Sequence[onnx.ValueInfoProto], how: Preprocess, option: str
) -> Samples:
    """Samples from a mapping, an array, or an iterable of feeds."""
    if isinstance(source, Mapping):
        arrays = {str(k): np.asarray(v) for k, v in source.items()}
        return from_arrays(arrays, model, inputs, how, option, "arrays", option)
    if isinstance(source, np.ndarray):
        return from_arrays({inputs[0].name: source}, model, inputs, how, option, "an array", option)
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
    takers = [taker_of(model, i, how, ((f[i.name].shape, f[i.name].dtype) for f in feeds), option) for i in inputs]
    if not all(_alike([f[i.name] for f in feeds], i) for i in inputs):
        each = [
            {t.info.name: t.one(f[t.info.name], f"{option}: feed {k}") for t in takers} for k, f in enumerate(feeds)
        ]
        uses, holds = held(takers, (x.dtype for f in feeds for x in f.values()), option)
        return Samples(
            lambda i: each[i], tuple(range(len(each))), told(takers, len(each), "an iterable"),
            lambda i: hashed(each[i]), None, False, len(each), uses=uses, holds=holds,
        )  # fmt: skip
    rows = {i.name: _in_rows(feeds[0][i.name], i) for i in inputs}
    joined = {n: (np.concatenate if rows[n] else np.stack)([f[n] for f in feeds]) for n in names}
    return from_arrays(joined, model, inputs, how, option, "an iterable", option)


def _in_rows(x: Array, info: onnx.ValueInfoProto) -> bool:
    """Whether the array has the input's own axes, the first of them a batch of any size."""
    shape = shape_of(info)
    return shape is not None and shape[:1] == [None] and x.ndim == len(shape)


def _alike(arrays: Sequence[Array], info: onnx.ValueInfoProto) -> bool:
    skip = int(all(_in_rows(x, info) for x in arrays))
    return len({x.shape[skip:] for x in arrays}) == 1
