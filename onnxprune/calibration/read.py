"""Samples of a model from whatever the user gives: files, images, arrays, or made up."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx

from onnxprune.calibration.arrays import (
    describe_arrays,
    digest_of,
    from_arrays,
    from_python,
    taker_of,
    uses_of_arrays,
)
from onnxprune.calibration.files import (
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    File,
    Like,
    files_in,
    load_npy,
    load_npz,
    usable,
)
from onnxprune.calibration.images import CACHED, ImageFormat, decode_image, image_format, sizing
from onnxprune.calibration.labels import (
    LABELS,
    classes_of,
    labelled,
    labelled_by_rows,
)
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.samples import (
    MADE_UP,
    Samples,
    shape_of,
    spread,
    stackable,
    uses_of,
)
from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import graph_inputs
from onnxprune.runtime.session import Feeds


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
    flag: str = "--labels",
) -> Samples:
    """Samples for a model.

    source: "synthetic", the path of a .npz, .npy, folder or .zip of .npy or images; in Python also arrays by input
    name, one array, an iterable of feeds, or `Samples`. samples: at most so many, evenly spread. labels: a file or an
    array. augment: random crops and flips of images. shapes: of made-up inputs, by name. option, flag: what messages
    call the source and the labels.
    Feeds of equal shapes whose first axis is the batch are taken apart into their rows; others are one sample each.
    Arrays of uint8 that feed a floating image input are pixels, normalised as those of images in files; any other array
    is taken as it is. Raises `OptionError` naming what does not fit; options without a use are for `unused` to refuse.
    """
    if samples is not None and samples < 1:
        raise OptionError(f"--samples {samples}: must be 1 or more")
    inputs = graph_inputs(model)
    if not inputs:
        raise OptionError(f"{option}: the model has no inputs to feed")
    preprocess = preprocess or Preprocess()
    if isinstance(source, Samples):
        data = source
    elif isinstance(source, str) and source == "synthetic":
        from onnxprune.calibration.synthetic import synthetic  # which makes samples

        data = synthetic(model, shapes or {}, preprocess, samples or MADE_UP, seed)
    elif isinstance(source, (str, os.PathLike)):
        data = _from_path(Path(source), model, inputs, preprocess, augment, seed, samples, option)
    else:
        data = from_python(source, model, inputs, preprocess, option)
    if augment and not data.augmented:
        raise OptionError(f"--augment crops and flips images in files; {data.holds or f'{option} holds none'}")
    if not data.count:
        shown = f" {source}" if isinstance(source, (str, os.PathLike)) else ""
        raise OptionError(f"{option}{shown}: there is no sample in it")
    if labels is not None:
        data = labelled(data, labels, option, flag)
    if samples is None or samples >= data.count:
        return data
    out = data.take(spread(data.count, samples))
    return replace(out, description=f"{out.count} of {data.description}")


def _from_path(
    path: Path, model: Model, inputs: Sequence[onnx.ValueInfoProto], preprocess: Preprocess, augment: bool, seed: int,
    samples: int | None, option: str,
) -> Samples:  # fmt: skip
    what, shown = f"{option} {path}", str(path)
    if not path.exists():
        raise OptionError(f"{what}: there is no such file or folder")
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".npz":
        return from_arrays(load_npz(path, what), model, inputs, preprocess, what, shown, option)
    if path.is_file() and suffix == ".npy":
        if len(inputs) > 1:
            raise OptionError(f"{what}: one array, but the model has {len(inputs)} inputs; give a .npz")
        arrays = {inputs[0].name: np.asarray(load_npy(path, what))}
        return from_arrays(arrays, model, inputs, preprocess, what, shown, option)
    if path.is_file() and suffix in TEXT_SUFFIXES:
        ids = ", ".join(i.name for i in inputs)
        raise OptionError(
            f"{what}: text is for the tokenizer of the model, which onnxprune lacks; give what it makes of the text, "
            f"a .npz with one array of token ids per input ({ids})"
        )
    files = files_in(path, what)
    if any(PurePosixPath(f.path).suffix.lower() in TEXT_SUFFIXES for f in files) and not any(map(usable, files)):
        raise OptionError(f"{what}: holds text; tokenize it, and give token ids as .npz with one array per input")
    images = [f for f in files if PurePosixPath(f.path).suffix.lower() in IMAGE_SUFFIXES]
    tables = [f for f in files if f.path.lower().endswith(".npy")]
    if images and tables:
        raise OptionError(f"{what}: holds images and .npy files; keep one kind")
    if images:
        return _from_images(images, model, inputs, preprocess, augment, seed, samples, what, shown, option)
    if tables:
        return _from_npys(tables, model, inputs, preprocess, what, shown, option)
    raise OptionError(f"{what}: holds no image ({', '.join(IMAGE_SUFFIXES)}) and no .npy file")


def _from_npys(
    files: Sequence[File], model: Model, inputs: Sequence[onnx.ValueInfoProto], preprocess: Preprocess, what: str,
    shown: str, option: str,
) -> Samples:  # fmt: skip
    """One file per sample; of several inputs in a sub-folder each, labels in one of their own."""
    by_input: dict[str, list[File]] = {}
    known = {i.name for i in inputs}
    of_labels = [f for f in files if PurePosixPath(f.path).parent.name in {*LABELS} - known]
    if len(of_labels) == len(files):
        of_labels = []
    for f in (f for f in files if f not in of_labels):
        name = PurePosixPath(f.path).parent.name if len(inputs) > 1 else inputs[0].name
        by_input.setdefault(name, []).append(f)
    names = [i.name for i in inputs]
    if set(by_input) != set(names):
        folders = ", ".join(name or "no sub-folder" for name in by_input)
        raise OptionError(f"{what}: expected a sub-folder of .npy per input ({', '.join(names)}), found {folders}")
    counts = {name: len(by_input[name]) for name in names}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise OptionError(f"{what}: inputs have different numbers of samples: {each}; give as many files of each")
    columns = [by_input[name] for name in names]
    likes = [[f.like() for f in fs] for fs in columns]
    takers = [taker_of(model, info, preprocess, each, what) for info, each in zip(inputs, likes, strict=True)]

    def load(i: int) -> Feeds:
        return {
            t.info.name: t.one(np.asarray(load_npy(io.BytesIO(fs[i].read()), fs[i].shown)), fs[i].shown)
            for t, fs in zip(takers, columns, strict=True)
        }

    count = len(columns[0])
    uses, holds = uses_of_arrays(takers, (dtype for each in likes for _, dtype in each), option)
    samples = Samples(
        load, tuple(range(count)), describe_arrays(takers, count, shown), lambda i: digest_of(load(i)), None,
        stackable(inputs) and all(_single(each, info) for each, info in zip(likes, inputs, strict=True)), count,
        tuple(f.path for f in columns[0]), uses=uses, holds=holds,
    )  # fmt: skip
    return labelled_by_rows(samples, (np.asarray(load_npy(io.BytesIO(f.read()), f.shown)) for f in of_labels), what)


def _single(files: Sequence[Like], info: onnx.ValueInfoProto) -> bool:
    """Whether every file holds one row, all of the same shape."""
    expected = shape_of(info) or []
    rows = {shape[1:] if len(shape) == len(expected) and shape[0] == 1 else shape for shape, _ in files}
    return len(rows) == 1 and {len(r) for r in rows} == {len(expected) - 1}


class _Images:
    """Decodes images on demand, of several threads too, and keeps some."""

    def __init__(self, files: Sequence[File], name: str, form: ImageFormat, augment: bool, seed: int) -> None:
        self.files, self.name, self.form, self.augment, self.seed = files, name, form, augment, seed
        self.kept: dict[int, Array] = {}
        self.bytes, self.lock = 0, threading.Lock()

    def __call__(self, i: int) -> Feeds:
        batch = self.form.batch
        return {self.name: np.concatenate([self.image(k) for k in range(i * batch, (i + 1) * batch)])
                if batch > 1 else self.image(i)}  # fmt: skip

    def image(self, i: int) -> Array:
        pixels = self.kept.get(i)
        if pixels is None:
            f = self.files[i % len(self.files)]
            rng = np.random.default_rng([self.seed, i]) if self.augment else None
            pixels = decode_image(f.read(), f.shown, self.form, rng)
            with self.lock:
                if i not in self.kept and self.bytes + pixels.nbytes <= CACHED:
                    self.kept[i] = pixels
                    self.bytes += pixels.nbytes
        return self.form.normalise(pixels)

    def fingerprint(self, i: int) -> bytes:
        """Of the files of one sample and of what is done to them."""
        treatment = f"{self.form.fitting} {self.form.description} {(self.seed, i) if self.augment else ''}"
        digest = hashlib.sha256(treatment.encode())
        for k in range(i * self.form.batch, (i + 1) * self.form.batch):
            digest.update(hashlib.sha256(self.files[k % len(self.files)].read()).digest())
        return digest.digest()


def _from_images(
    files: Sequence[File], model: Model, inputs: Sequence[onnx.ValueInfoProto], preprocess: Preprocess, augment: bool,
    seed: int, samples: int | None, what: str, shown: str, option: str,
) -> Samples:  # fmt: skip
    if len(inputs) != 1:
        raise OptionError(f"{what}: images are for models of one input, this one has {len(inputs)}; give a .npz")
    form = image_format(model, inputs[0], preprocess)
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
    classes = classes_of([f.path for f in repeated]) if form.batch == 1 else None
    labels = None if classes is None else np.array(classes, np.int64)
    sizes = sizing(inputs[0], preprocess) if augment else ("image_size", "crop")
    kind = "images" if form.dtype.kind not in "iu" else f"images for an input of {form.dtype}, which takes pixels"
    return Samples(
        load, tuple(range(count)), description, load.fingerprint, labels, form.batched and stackable(inputs), count,
        names, augment, uses_of(form, sizes) | ({"augment"} if augment else set()),
        f"{option} holds {kind}{', cut at random' if augment else ''}{', in grey' if form.channels < 3 else ''}",
    )  # fmt: skip
