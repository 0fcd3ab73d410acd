"""Made-up inputs, for where there are no data: images, and coloured noise for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibration.images import image_format, sizing
from onnxprune.calibration.pictures import Pictures, suited
from onnxprune.calibration.presets import Preprocess, image_axes, looks_like_image
from onnxprune.calibration.samples import Samples, stackable, uses_of
from onnxprune.graph.arrays import FLOAT_TYPES, Array
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import graph_inputs, infer
from onnxprune.runtime.feeds import filled, fills_at, random_feeds
from onnxprune.runtime.session import Feeds

APART = 1_000_003  # between the seeds of two inputs


def coloured(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Noise of falling power along the longest axis with some tones, of mean zero and about unit variance, float32."""
    axis = int(np.argmax(shape)) if shape else 0
    n = int(shape[axis]) if shape else 1
    if n < MIN_SEQUENCE:
        return np.asarray(rng.standard_normal(tuple(shape)), np.float32)
    rest = [d for k, d in enumerate(shape) if k != axis]
    f = np.arange(n // 2 + 1, dtype=np.float64)
    f[0] = 1.0
    spectrum = rng.normal(size=(*rest, len(f))) + 1j * rng.normal(size=(*rest, len(f)))
    x = np.fft.irfft(spectrum / f ** rng.uniform(0.0, 1.0), n)
    x /= np.maximum(x.std(-1, keepdims=True), 1e-9)
    t = np.arange(n)
    for _ in range(int(rng.integers(0, 4))):
        x = x + rng.uniform(0, 1.5) * np.sin(2 * np.pi * rng.uniform(0.5, n / 4) * t / n + rng.uniform(0, 6.3))
    x *= rng.uniform(0.3, 1.5) / max(float(x.std()), 1e-9)
    return np.ascontiguousarray(np.moveaxis(x, -1, axis), np.float32)


MIN_SEQUENCE = 16


def synthetic(
    model: Model, shapes_by_input: Mapping[str, tuple[int, ...]], preprocess: Preprocess, count: int, seed: int
) -> Samples:
    """Made-up samples, the same for the same seed: images where an input takes them, else coloured noise.

    shapes_by_input: of one run; what is left out is inferred. Integers stay in the range that they index.
    """
    inputs = graph_inputs(model)
    pictures = {
        i.name: Pictures(image_format(model, i, preprocess, _size(i, preprocess, shapes_by_input)), seed + k * APART)
        for k, i in enumerate(inputs)
        if looks_like_image(i)
    }
    formats = [p.form for p in pictures.values()]
    others = [i for i in inputs if i.name not in pictures]
    noise = _noise(model, others, shapes_by_input, seed) if others else lambda i: {}

    def feeds_of(i: int, image: Callable[[Pictures], Array]) -> Feeds:
        feeds = {**noise(i), **{name: image(p) for name, p in pictures.items()}}
        return {info.name: feeds[info.name] for info in inputs}

    def load(i: int) -> Feeds:
        return feeds_of(i, lambda p: p(i))

    if len(pictures) == 1:
        [one] = pictures.values()
        one.choose(suited(model, one, lambda family, i: feeds_of(i, lambda p: p.of(family, i))))
    kinds = [p.description for p in pictures.values()]
    description = "; ".join(kinds + ["made-up inputs (coloured noise)"] * bool(others))
    fingerprint = f"{description} {sorted(shapes_by_input.items())} {seed}".encode()
    sizes = {name for i in inputs if i.name in pictures for name in sizing(i, preprocess)}
    kind = f"images of {' and '.join(sorted({str(f.dtype) for f in formats}))}" if formats else "noise, no images"
    return Samples(
        load, tuple(range(count)), f"{count} {description}", lambda i: fingerprint + str(i).encode(), None,
        stackable(inputs), count, uses=frozenset[str]().union(*(uses_of(form, sizes) for form in formats)),
        holds=f"the samples are made up, {kind}",
    )  # fmt: skip


def _size(
    info: onnx.ValueInfoProto, preprocess: Preprocess, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int] | None:
    """(height, width) of the shape asked for, if there is one."""
    axes, shape = image_axes(info, preprocess.layout), shapes.get(info.name)
    if axes is None or shape is None:
        return None
    return (shape[-2], shape[-1]) if axes[0].endswith("CHW") else (shape[-3], shape[-2])


def _noise(
    model: Model, inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, tuple[int, ...]], seed: int
) -> Callable[[int], Feeds]:
    """Index -> coloured noise for floats, and for the rest what `random_feeds` makes."""
    shapes = infer(model, given or None)
    concrete = {
        i.name: tuple(1 if d is None else d for d in shapes.shapes.get(i.name, ())) for i in graph_inputs(model)
    }

    fills = fills_at(model, shapes, concrete, seed=seed)

    def load(i: int) -> Feeds:
        feeds = filled(random_feeds(model, shapes, concrete, seed=seed + i), fills, concrete)
        rng = np.random.default_rng([seed, 3, i])
        for info in inputs:
            if info.type.tensor_type.elem_type in FLOAT_TYPES:
                dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
                feeds[info.name] = coloured(feeds[info.name].shape, rng).astype(dtype)
        return feeds

    return load
