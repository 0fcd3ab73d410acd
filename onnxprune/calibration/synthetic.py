"""Made-up inputs, for where there are no data: dead leaves for images, coloured noise for everything else.

Dead leaves are opaque shapes of all sizes that cover each other, as objects do (Lee, Mumford and Huang 2001); with
textures, shading, stripes and noise their statistics come near enough to photographs for a network's second moments
(compare Baradad et al. 2021, Learning to See by Looking at Noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.calibration.images import (
    CACHED,
    Format,
    Preprocess,
    image_axes,
    image_format,
    looks_like_image,
    sizing,
)
from onnxprune.calibration.samples import Samples, stackable, uses_of
from onnxprune.graph.io import Model
from onnxprune.graph.runtime import Feeds, random_feeds
from onnxprune.graph.shapes import Array, graph_inputs, infer

TEXTURES = 24
FINE, FINEST = 64, 4  # pixels of a side below which images are painted finer, and by what factor at most
APART = 1_000_003  # between the seeds of two inputs
COLOURS = np.array([[0.56, 0.56, 0.56], [0.7, 0.0, -0.7], [0.4, -0.8, 0.4]])  # luminance, then two differences
DECAY = np.array([1.0, 0.35, 0.2])  # of their deviations


def pink(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """An image of 1/f^a noise in correlated colours, 0 to 255, float32 `(h, w, 3)`."""
    h, w = shape
    f = np.hypot(np.fft.fftfreq(h)[:, None] * h, np.fft.rfftfreq(w)[None] * w)
    f[0, 0] = 1.0
    spectrum = rng.normal(size=(3, h, f.shape[1])) + 1j * rng.normal(size=(3, h, f.shape[1]))
    z = np.fft.irfft2(spectrum / f ** rng.uniform(0.7, 1.6), s=shape)
    z = (z - z.mean((1, 2), keepdims=True)) / np.maximum(z.std((1, 2), keepdims=True), 1e-9)
    c = (z.transpose(1, 2, 0) * DECAY) @ COLOURS
    c *= rng.uniform(40, 75) / max(float(c.std()), 1e-9)
    return np.asarray(np.clip(c + rng.normal(120, 35) + rng.normal(0, 12, 3), 0, 255), np.float32)


def dead_leaves(shape: tuple[int, int], rng: np.random.Generator, textures: Sequence[Array]) -> Array:
    """One image, 0 to 255, float32 `(h, w, 3)`."""
    h, w = shape
    side = float(max(h, w))
    image = textures[int(rng.integers(len(textures)))].copy()
    count = int(rng.integers(8, 120))
    if rng.random() < 0.5:  # radii with density r^-3, so that no size stands out
        radii = np.sort(rng.uniform((side * 0.6) ** -2, (side * 0.03) ** -2, count) ** -0.5)[::-1]
    else:
        radii = rng.uniform(side * 0.03, side * 0.4, count)
    for r in radii.tolist():  # plain floats keep the arrays in float32
        cx, cy = rng.uniform(0, w), rng.uniform(0, h)
        reach = 1.55 * r  # of the triangle's corners
        x0, x1 = int(max(0, cx - reach)), int(min(w, cx + reach + 1))
        y0, y1 = int(max(0, cy - reach)), int(min(h, cy + reach + 1))
        if x1 <= x0 or y1 <= y0:
            continue
        x = np.arange(x0, x1, dtype=np.float32)[None] - np.float32(cx)
        y = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(cy)
        angle = rng.uniform(0, np.pi)
        cos, sin = math.cos(angle), math.sin(angle)
        u, v = x * cos + y * sin, y * cos - x * sin
        inside = _leaf(u, v, r, rng)
        colour = rng.uniform(0, 255, 3) if rng.random() < 0.6 else rng.uniform(0, 255) + rng.normal(0, 15, 3)
        paint: Array = np.asarray(colour, np.float32)
        if rng.random() < 0.25:
            wave = np.sign(np.sin(u * np.float32(2 * np.pi / rng.uniform(2.5, 16))))
            paint = paint + np.float32(rng.uniform(10, 70)) * wave[:, :, None]
        mix = np.float32(rng.uniform(0, 0.8))
        texture = textures[int(rng.integers(len(textures)))][y0:y1, x0:x1]
        shade = 1 + np.float32(rng.uniform(0, 0.35) / r) * u[:, :, None]
        np.copyto(image[y0:y1, x0:x1], (paint * (1 - mix) + texture * mix) * shade, where=inside[:, :, None])
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 6))
    return np.asarray(np.clip(image * rng.uniform(0.6, 1.1) + rng.normal(0, 10) + noise, 0, 255), np.float32)


def fineness(shape: tuple[int, int]) -> int:
    """Pixels that are painted per side of a pixel: small images are aliased, unlike photographs, if it is one."""
    return min(FINEST, max(1, math.ceil(FINE / min(shape))))


def averaged(x: Array, fine: int) -> Array:
    """Means of blocks of `(fine, fine)` pixels of an image `(h, w, channels)`."""
    h, w, channels = x.shape
    return np.asarray(x.reshape(h // fine, fine, w // fine, fine, channels).mean((1, 3))) if fine > 1 else x


def _leaf(u: Array, v: Array, r: float, rng: np.random.Generator) -> Array:
    """Which pixels a shape covers: an ellipse, a rectangle, a triangle or a flower."""
    flat, kind = rng.uniform(0.3, 1), rng.random()
    if kind < 0.4:
        return np.asarray((u / r) ** 2 + (v / (r * flat)) ** 2 < 1)
    if kind < 0.7:
        return np.asarray((abs(u) < r) & (abs(v) < r * flat))
    if kind < 0.85:
        return np.asarray((v > -r * flat) & (v < r - abs(u) * 1.7))
    petals = 1 + 0.35 * np.sin(float(rng.integers(3, 9)) * np.arctan2(v, u))
    return np.asarray((u / r) ** 2 + (v / (r * flat)) ** 2 < 0.6 * petals**2)


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
    """Made-up samples, the same for the same seed: dead leaves where an input takes images, else coloured noise.

    shapes_by_input: of one run; what is left out is inferred. Integers stay in the range that they index.
    """
    inputs = graph_inputs(model)
    pictures = {
        i.name: _pictures(image_format(model, i, preprocess, _size(i, preprocess, shapes_by_input)), seed + k * APART)
        for k, i in enumerate(inputs)
        if looks_like_image(i)
    }
    formats = [form for form, _ in pictures.values()]
    others = [i for i in inputs if i.name not in pictures]
    noise = _noise(model, others, shapes_by_input, seed) if others else lambda i: {}

    def load(i: int) -> Feeds:
        feeds = noise(i)
        feeds.update({name: picture(i) for name, (_, picture) in pictures.items()})
        return {info.name: feeds[info.name] for info in inputs}

    kinds = [f"made-up images (dead leaves), {form.description}" for form in formats]
    description = "; ".join(kinds + ["made-up inputs (coloured noise)"] * bool(others))
    fingerprint = f"{description} {sorted(shapes_by_input.items())} {seed}".encode()
    said = {name for i in inputs if i.name in pictures for name in sizing(i, preprocess)}
    kind = f"images of {' and '.join(sorted({str(f.dtype) for f in formats}))}" if formats else "noise, no images"
    return Samples(
        load, tuple(range(count)), f"{count} {description}", lambda i: fingerprint + str(i).encode(), None,
        stackable(inputs), count, uses=frozenset[str]().union(*(uses_of(form, said) for form in formats)),
        holds=f"the samples are made up, {kind}",
    )  # fmt: skip


def _size(info: onnx.ValueInfoProto, how: Preprocess, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(height, width) of the shape asked for, if there is one."""
    axes, shape = image_axes(info, how.layout), shapes.get(info.name)
    if axes is None or shape is None:
        return None
    return (shape[-2], shape[-1]) if axes[0].endswith("CHW") else (shape[-3], shape[-2])


def _pictures(form: Format, seed: int) -> tuple[Format, Callable[[int], Array]]:
    """Index -> the images of one run, normalised."""
    fine = fineness((form.height, form.width))
    shape = (form.height * fine, form.width * fine)
    textures: list[Array] = []
    kept: dict[int, Array] = {}

    def pixels(i: int) -> Array:
        if not textures:
            textures.extend(pink(shape, np.random.default_rng([seed, 1, k])) for k in range(TEXTURES))
        x = averaged(dead_leaves(shape, np.random.default_rng([seed, 2, i]), textures), fine)
        if form.channels == 1:
            x = x.mean(2, keepdims=True)
        elif form.channels == 4:
            x = np.concatenate([x, np.full((form.height, form.width, 1), 255, np.float32)], 2)
        return np.asarray(np.rint(x), np.uint8)

    def picture(i: int) -> Array:
        found = kept.get(i)
        if found is None:
            found = np.stack([pixels(i * form.batch + k) for k in range(form.batch)])
            if (len(kept) + 1) * found.nbytes <= CACHED:
                kept[i] = found
        return np.concatenate([form.normalise(x) for x in found])

    return form, picture


def _noise(
    model: Model, inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, tuple[int, ...]], seed: int
) -> Callable[[int], Feeds]:
    """Index -> coloured noise for floats, and for the rest what `random_feeds` makes."""
    shapes = infer(model, given or None)
    concrete = {
        i.name: tuple(1 if d is None else d for d in shapes.shapes.get(i.name, ())) for i in graph_inputs(model)
    }

    def load(i: int) -> Feeds:
        feeds = random_feeds(model, shapes, concrete, seed=seed + i)
        rng = np.random.default_rng([seed, 3, i])
        for info in inputs:
            if info.type.tensor_type.elem_type in FLOATS:
                dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
                feeds[info.name] = coloured(feeds[info.name].shape, rng).astype(dtype)
        return feeds

    return load


FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)

__all__ = ["coloured", "dead_leaves", "looks_like_image", "pink", "synthetic"]
