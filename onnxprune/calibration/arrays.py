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
from onnxprune.calibration.images import ImageFormat, image_format
from onnxprune.calibration.labels import (
    LABELS,
    fitting_labels,
    labelled_by_rows,
)
from onnxprune.calibration.presets import Preprocess, image_axes
from onnxprune.calibration.samples import (
    MAX_SQUARES,
    Samples,
    overflow_message,
    shape_of,
    shown_shape,
    squares,
    stackable,
    uses_of,
)
from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.runtime.session import Feeds


def _cast(x: Array, info: onnx.ValueInfoProto, what: str, name: str = "") -> Array:
    """The values in the input's type, if nothing is lost that matters. name: of the array, for messages."""
    name = name or f"input {info.name}"
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    if x.dtype.kind in "fc" and not np.isfinite(x).all():
        raise OptionError(f"{what}: {name} holds values that are not finite (NaN or infinity)")
    out = x
    if x.dtype != dtype:
        floating, same = dtype.kind in "fV", False  # V: bfloat16
        if x.dtype.kind in "fiub" and (floating or dtype.kind in "iu"):
            with np.errstate(all="ignore"):
                out = x.astype(dtype)
                same = bool(np.isfinite(out.astype(np.float64)).all()) if floating else np.array_equal(out, x)
        elif x.dtype.kind in "US" and dtype.kind == "O":
            return x.astype(object)
        if not same:
            mismatch = f"{x.dtype} whose values do not fit"
            raise OptionError(f"{what}: {name} expects {dtype}, found {mismatch}; convert it")
    if squares(out) > MAX_SQUARES:
        raise OptionError(f"{what}: {overflow_message(name, out)}")
    return out


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(w is None or w == s for s, w in zip(shape, expected, strict=True))


def _pieces(x: Array, expected: Sequence[int | None] | None) -> tuple[int, Callable[[int], Array]] | None:
    """How many samples an array holds along its first axis, and one of them as an input of a shape takes it.

    None where the shapes do not fit.
    """
    if expected is None or (x.ndim and len(expected) == x.ndim - 1 and _fits(x.shape[1:], expected)):
        return len(x), lambda i: x[i]
    if x.ndim and len(expected) == x.ndim and expected and _fits(x.shape[1:], expected[1:]):
        step = expected[0] or 1
        if len(x) >= step or not len(x):
            return len(x) // step, lambda i: x[i * step : (i + 1) * step]
    if not expected and x.ndim == 0:
        return 1, lambda i: x
    return None


def _lifted(x: Array, expected: Sequence[int | None]) -> Array:
    """With a batch axis of one, if that is all that lacks."""
    lacks = len(expected) == x.ndim + 1 and expected[0] in (None, 1) and _fits(x.shape, expected[1:])
    return x[None] if lacks else x


@dataclass(frozen=True)
class Taker:
    """How one input takes arrays: as they are, or, with a `form`, as pixels in its own layout or with channels last.

    sizes: of the pixels that it was made for.
    """

    info: onnx.ValueInfoProto
    form: ImageFormat | None = None
    sizes: frozenset[tuple[int, int]] = frozenset()

    @property
    def shapes(self) -> list[list[int | None] | None]:
        """Shapes that an array may have for one run: the input's own, of pixels also with channels last."""
        shape = shape_of(self.info)
        if self.form is None or shape is None:
            return [shape]
        axis = len(shape) + (-3 if self.form.layout.endswith("CHW") else -1)
        shape[axis] = self.form.channels
        last = [*shape[:axis], *shape[axis + 1 :], shape[axis]]
        return [shape] if last == shape else [shape, last]

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
        for place, expected in enumerate(self.shapes):
            pieces = _pieces(x, expected)
            if pieces is not None:
                return pieces[0], functools.partial(self._piece, pieces[1], place)
        raise self._misfit(x, what, name, "with samples along the first axis, ")

    def _piece(self, part: Callable[[int], Array], place: int, i: int) -> Array:
        return self.run(part(i), place)

    def one(self, x: Array, what: str) -> Array:
        """An array that is one sample, as the input takes it and with its batch axis."""
        x = x if self.form is not None else _cast(x, self.info, what)
        for place, expected in enumerate(self.shapes):
            if expected is None:
                return x
            lifted = _lifted(x, expected)
            if _fits(lifted.shape, expected):
                return self.run(lifted, place)
        raise self._misfit(x, what, "", "")

    def _misfit(self, x: Array, what: str, name: str, along: str) -> OptionError:
        expected = " or ".join(shown_shape(s) for s in self.shapes if s is not None)
        return OptionError(
            f"{what}: {name or f'input {self.info.name}'} expects {expected}, {along}found {shown_shape(x.shape)}"
        )

    @property
    def description(self) -> str:
        """What is done to the pixels, for the report: size, order of colours, layout, normalisation."""
        assert self.form is not None
        text = self.form.description
        size = f"{self.form.height}x{self.form.width}"
        return text if len(self.sizes) == 1 else f"sizes of their own{text.removeprefix(size)}"


def taker_of(
    model: Model, info: onnx.ValueInfoProto, preprocess: Preprocess, arrays: Iterable[Like], what: str
) -> Taker:
    """How an input takes arrays of these shapes and types; what: the source in messages.

    Raises `OptionError` where pixels are mixed with others.
    """
    arrays = list(arrays)
    target = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    axes = image_axes(info, preprocess.layout)
    kinds = sorted({str(dtype) for _, dtype in arrays})
    if "uint8" not in kinds or target.kind != "f" or axes is None:
        return Taker(info)
    if len(kinds) > 1:
        both = " and ".join(kinds)
        raise OptionError(f"{what}: input {info.name}: found {both}; give pixels (uint8) or numbers, not both")
    channels = axes[1]
    first = axes[0].endswith("CHW")
    pairs = [shape[-2:] if first and shape[-3] == channels else shape[-3:-1] for shape, _ in arrays if len(shape) > 2]
    sizes = frozenset((h, w) for h, w in pairs)
    size = next(iter(sizes), None)
    return Taker(info, image_format(model, info, replace(preprocess, image_size=None, crop=None), size), sizes)


def describe_arrays(takers: Sequence[Taker], count: int, shown: str) -> str:
    """`count` samples of arrays in one line, for the report."""
    pixels = [t for t in takers if t.form is not None]
    if not pixels:
        return f"{count} samples of {shown}"
    if len(takers) == 1 and (form := pixels[0].form) is not None:
        return f"{count * form.batch} images of {shown}: {pixels[0].description}"
    return f"{count} samples of {shown}: " + "; ".join(f"{t.info.name}: {t.description}" for t in pixels)


def uses_of_arrays(takers: Sequence[Taker], dtypes: Iterable[Any], option: str) -> tuple[frozenset[str], str]:
    """`uses` and `holds` of `Samples` that are arrays of such types. option: that names them in messages."""
    forms = [t.form for t in takers if t.form is not None]
    if forms:
        colour = "in grey" if all(f.channels < 3 for f in forms) else "in colour"
        return frozenset[str]().union(
            *map(uses_of, forms)
        ), f"{option} holds uint8 pixels {colour}, of the size they go in"
    kinds = sorted({str(d) for d in dtypes})
    return frozenset(), f"{option} holds arrays of {' and '.join(kinds)}, which are taken as they are"


def from_arrays(
    arrays: Mapping[str, Array], model: Model, inputs: Sequence[onnx.ValueInfoProto], preprocess: Preprocess, what: str,
    shown: str, option: str,
) -> Samples:  # fmt: skip
    """Samples from arrays by input name, and labels where one of LABELS is among them.

    what: names the source in messages; shown: in the report; option: names what it was given as. Raises `OptionError`
    where an array is missing, is one too many or does not fit its input.
    """
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
    takers = [taker_of(model, i, preprocess, [(named[i.name].shape, named[i.name].dtype)], what) for i in inputs]
    parts, counts = {}, {}
    for taker in takers:
        name = taker.info.name
        counts[name], parts[name] = taker.pieces(named[name], what, called[name])
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise OptionError(f"{what}: inputs have different numbers of samples: {each}; give as many of each")
    count = next(iter(counts.values()))
    uses, holds = uses_of_arrays(takers, (x.dtype for x in named.values()), option)

    def load(i: int) -> Feeds:
        return {name: np.ascontiguousarray(part(i)) for name, part in parts.items()}

    samples = Samples(
        load, tuple(range(count)), describe_arrays(takers, count, shown), lambda i: digest_of(load(i)), None,
        stackable(inputs), count, uses=uses, holds=holds,
    )  # fmt: skip
    if key is None or not count:
        return samples
    labels = np.asarray(labels)
    fitting = fitting_labels(labels, samples)
    if not isinstance(fitting, str):
        return replace(samples, labels=fitting)
    wrong = f"{what}: {'labels' if key == 'labels' else f'labels ({key})'}: {fitting}"
    rows = {count, *(len(named[name]) for name in names if named[name].ndim)}  # of a fixed batch many are one sample
    if labels.size != count and (not labels.ndim or len(labels) not in rows):
        raise OptionError(wrong)
    note = f", without its labels of shape {shown_shape(labels.shape)}"  # of pixels, boxes, or of rows of a fixed batch
    return replace(samples, description=samples.description + note, misfit=wrong)


def digest_of(feeds: Feeds) -> bytes:
    """SHA-256 of the inputs of one run: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, x in sorted(feeds.items()):
        digest.update(f"{name} {x.dtype} {x.shape} ".encode())
        digest.update(repr(x.tolist()).encode() if x.dtype.kind == "O" else x.tobytes())
    return digest.digest()


def from_python(
    source: Any, model: Model, inputs: Sequence[onnx.ValueInfoProto], preprocess: Preprocess, option: str
) -> Samples:
    """Samples from a mapping, an array, or an iterable of feeds. Raises `OptionError` where they do not fit."""
    if isinstance(source, Mapping):
        arrays = {str(k): np.asarray(v) for k, v in source.items()}
        return from_arrays(arrays, model, inputs, preprocess, option, "arrays", option)
    if isinstance(source, np.ndarray):
        return from_arrays({inputs[0].name: source}, model, inputs, preprocess, option, "an array", option)
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
    key = next((k for k in LABELS if k not in names and all(k in f for f in feeds)), None)
    labels = [] if key is None else [f.pop(key) for f in feeds]
    for k, f in enumerate(feeds):
        for name in [n for n in names if n not in f]:
            raise OptionError(f"{option}: feed {k} has no array for input {name}")
        for name in [n for n in f if n not in names]:
            raise OptionError(f"{option}: feed {k}: the model has no input {name}; it has {', '.join(names)}")
    takers = [
        taker_of(model, i, preprocess, ((f[i.name].shape, f[i.name].dtype) for f in feeds), option) for i in inputs
    ]
    if not all(_alike([f[i.name] for f in feeds], i) for i in inputs):
        each = [
            {t.info.name: t.one(f[t.info.name], f"{option}: feed {k}") for t in takers} for k, f in enumerate(feeds)
        ]
        uses, holds = uses_of_arrays(takers, (x.dtype for f in feeds for x in f.values()), option)
        samples = Samples(
            lambda i: each[i], tuple(range(len(each))), describe_arrays(takers, len(each), "an iterable"),
            lambda i: digest_of(each[i]), None, False, len(each), uses=uses, holds=holds,
        )  # fmt: skip
        return labelled_by_rows(samples, labels, option)
    rows = {i.name: _in_rows(feeds[0][i.name], i) for i in inputs}
    joined = {n: (np.concatenate if rows[n] else np.stack)([f[n] for f in feeds]) for n in names}
    if key is not None:
        joined[key] = (np.concatenate if all(rows.values()) else np.stack)([np.atleast_1d(v) for v in labels])
    return from_arrays(joined, model, inputs, preprocess, option, "an iterable", option)


def _in_rows(x: Array, info: onnx.ValueInfoProto) -> bool:
    """Whether the array has the input's own axes, the first of them a batch of any size."""
    shape = shape_of(info)
    return shape is not None and shape[:1] == [None] and x.ndim == len(shape)


def _alike(arrays: Sequence[Array], info: onnx.ValueInfoProto) -> bool:
    skip = int(all(_in_rows(x, info) for x in arrays))
    return len({x.shape[skip:] for x in arrays}) == 1
