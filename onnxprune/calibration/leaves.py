"""Dead leaves: images made of opaque shapes of all sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxprune.graph.arrays import Array

TEXTURES = 24
FINE, FINEST = 64, 4  # pixels of a side below which images are painted finer, and by what factor at most
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
