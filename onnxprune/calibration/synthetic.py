"""Made-up inputs, for where there are no data: dead leaves for images, coloured noise for everything else.

Dead leaves are opaque shapes of all sizes that cover each other, as objects do (Lee, Mumford and Huang 2001); with
textures, shading, stripes and noise their statistics come near enough to photographs for a network's second moments
(compare Baradad et al. 2021, Learning to See by Looking at Noise).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.calibration.images import Preprocess, image_format, looks_like_image
from onnxprune.graph.io import Model
from onnxprune.graph.runtime import Feeds, random_feeds
from onnxprune.graph.shapes import Array, concrete_inputs, infer

TEXTURES = 24
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
    return np.clip(c + rng.normal(120, 35) + rng.normal(0, 12, 3), 0, 255).astype(np.float32)


def dead_leaves(shape: tuple[int, int], rng: np.random.Generator, textures: Sequence[Array]) -> Array:
    """One image, 0 to 255, float32 `(h, w, 3)`."""
    h, w = shape
    side = float(max(h, w))
    image = textures[rng.integers(len(textures))].copy()
    count = int(rng.integers(8, 120))
    if rng.random() < 0.5:  # radii with density r^-3, so that no size stands out
        radii = np.sort(rng.uniform((side * 0.6) ** -2, (side * 0.03) ** -2, count) ** -0.5)[::-1]
    else:
        radii = rng.uniform(side * 0.03, side * 0.4, count)
    for r in radii:
        cx, cy = rng.uniform(0, w), rng.uniform(0, h)
        x0, x1 = int(max(0, cx - 2 * r)), int(min(w, cx + 2 * r + 1))
        y0, y1 = int(max(0, cy - 2 * r)), int(min(h, cy + 2 * r + 1))
        if x1 <= x0 or y1 <= y0:
            continue
        x = np.arange(x0, x1, dtype=np.float32)[None] - np.float32(cx)
        y = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(cy)
        angle = rng.uniform(0, np.pi)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        inside = _leaf(u, v, r, rng)
        colour = rng.uniform(0, 255, 3) if rng.random() < 0.6 else rng.uniform(0, 255) + rng.normal(0, 15, 3)
        paint: Array = np.asarray(colour, np.float32)
        if rng.random() < 0.25:
            wave = np.sign(np.sin(u * np.float32(2 * np.pi / rng.uniform(2.5, 16))))
            paint = paint + np.float32(rng.uniform(10, 70)) * wave[:, :, None]
        mix = np.float32(rng.uniform(0, 0.8))
        texture = textures[rng.integers(len(textures))][y0:y1, x0:x1]
        shade = 1 + np.float32(rng.uniform(0, 0.35) / r) * u[:, :, None]
        np.copyto(image[y0:y1, x0:x1], (paint * (1 - mix) + texture * mix) * shade, where=inside[:, :, None])
    noise = rng.normal(0, rng.uniform(0, 6), image.shape).astype(np.float32)
    return np.clip(image * np.float32(rng.uniform(0.6, 1.1)) + np.float32(rng.normal(0, 10)) + noise, 0, 255)


def _leaf(u: Array, v: Array, r: float, rng: np.random.Generator) -> Array:
    """Which pixels a shape covers: an ellipse, a rectangle, a triangle or a flower."""
    flat, kind = rng.uniform(0.3, 1), rng.random()
    if kind < 0.4:
        return np.asarray((u / r) ** 2 + (v / (r * flat)) ** 2 < 1)
    if kind < 0.7:
        return np.asarray((abs(u) < r) & (abs(v) < r * flat))
    if kind < 0.85:
        return np.asarray((v > -r * flat) & (v < r - abs(u) * 1.7))
    petals = 1 + 0.35 * np.sin(rng.integers(3, 9) * np.arctan2(v, u))
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
    model: Model, inputs: Sequence[onnx.ValueInfoProto], how: Preprocess, seed: int
) -> tuple[Callable[[int], Feeds], str]:
    """Index -> made-up inputs of one run, the same for the same seed; and what they are."""
    if len(inputs) == 1 and looks_like_image(inputs[0]):
        form = image_format(model, inputs[0], how)
        shape = (form.height, form.width)
        textures = [pink(shape, np.random.default_rng([seed, 1, k])) for k in range(TEXTURES)]
        kept: dict[int, Array] = {}

        def image(i: int) -> Feeds:
            if i not in kept:
                pixels = dead_leaves(shape, np.random.default_rng([seed, 2, i]), textures)
                if form.channels == 1:
                    pixels = pixels.mean(2, keepdims=True)
                elif form.channels == 4:
                    pixels = np.concatenate([pixels, np.full((*shape, 1), 255, np.float32)], 2)
                kept[i] = np.rint(pixels).astype(np.uint8)
            return {inputs[0].name: form.normalise(kept[i])}

        return image, f"made-up images (dead leaves), {form.description}"
    shapes = infer(model)
    concrete = next(iter(concrete_inputs(model)))
    floats = {i.name for i in inputs if i.type.tensor_type.elem_type in FLOATS}

    def sequences(i: int) -> Feeds:
        feeds = random_feeds(model, shapes, concrete, seed=seed + i)
        rng = np.random.default_rng([seed, 3, i])
        for info in inputs:
            if info.name in floats:
                dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
                feeds[info.name] = coloured(feeds[info.name].shape, rng).astype(dtype)
        return feeds

    return sequences, "made-up inputs (coloured noise)"


FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
