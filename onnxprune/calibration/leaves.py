"""Dead leaves: images made of opaque shapes of all sizes."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.graph.arrays import Array

TEXTURES = 24
FINE, FINEST = 64, 4  # pixels of a side below which images are painted finer, and by what factor at most
COLOURS = np.array([[0.56, 0.56, 0.56], [0.7, 0.0, -0.7], [0.4, -0.8, 0.4]])  # luminance, then two differences
DECAY = np.array([1.0, 0.35, 0.2])  # of their deviations
UP_TO = (0.4, 0.7, 0.85)  # chances of an ellipse, a rectangle, a triangle, a flower, added up
REACH = 1.55  # of the triangle's corners, in radii


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
    from onnxprune.calibration.paint import paint  # loads numba

    h, w = shape
    side = float(max(h, w))
    ground = textures[int(rng.integers(len(textures)))]
    count = int(rng.integers(8, 120))
    if rng.random() < 0.5:  # radii with density r^-3, so that no size stands out
        radii = np.sort(rng.uniform((side * 0.6) ** -2, (side * 0.03) ** -2, count) ** -0.5)[::-1]
    else:
        radii = rng.uniform(side * 0.03, side * 0.4, count)
    image = np.empty((h, w, 3), np.float32)
    bare = np.ones((h, w), np.bool_)
    leaves = [leaf for r in radii.tolist() if (leaf := _leaf(shape, r, rng, len(textures)))]
    for texture, *leaf in reversed(leaves):  # what lies on top first, so that a pixel is painted once
        paint(image, bare, textures[texture], *leaf)
    np.copyto(image, ground, where=bare[:, :, None])
    noise = rng.standard_normal(image.shape, np.float32)
    noise *= np.float32(rng.uniform(0, 6))
    image *= np.float32(rng.uniform(0.6, 1.1))
    image += np.float32(rng.normal(0, 10))
    image += noise
    return np.clip(image, 0, 255, out=image)


def _leaf(shape: tuple[int, int], r: float, rng: np.random.Generator, textures: int) -> tuple[Any, ...] | None:
    """Index of a texture and the other arguments of `paint` for a leaf at random; None outside the image."""
    h, w = shape
    cx, cy = rng.uniform(0, w), rng.uniform(0, h)
    x0, x1 = int(max(0, cx - REACH * r)), int(min(w, cx + REACH * r + 1))
    y0, y1 = int(max(0, cy - REACH * r)), int(min(h, cy + REACH * r + 1))
    if x1 <= x0 or y1 <= y0:
        return None
    angle = rng.uniform(0, np.pi)
    flat, chance = rng.uniform(0.3, 1), rng.random()
    kind = bisect.bisect(UP_TO, chance)
    petals = float(rng.integers(3, 9)) if kind == len(UP_TO) else 0.0
    colour = rng.uniform(0, 255, 3) if rng.random() < 0.6 else rng.uniform(0, 255) + rng.normal(0, 15, 3)
    wave, height = (2 * np.pi / rng.uniform(2.5, 16), rng.uniform(10, 70)) if rng.random() < 0.25 else (0.0, 0.0)
    mix = rng.uniform(0, 0.8)
    texture = int(rng.integers(textures))
    shade = rng.uniform(0, 0.35) / r
    numbers = (cx, cy, math.cos(angle), math.sin(angle), r, r * flat, petals, wave, height, mix, shade)
    return texture, (x0, x1, y0, y1), kind, np.array(numbers, np.float32), np.asarray(colour, np.float32)


def fineness(shape: tuple[int, int]) -> int:
    """Pixels that are painted per side of a pixel: small images are aliased, unlike photographs, if it is one."""
    return min(FINEST, max(1, math.ceil(FINE / min(shape))))


def averaged(x: Array, fine: int) -> Array:
    """Means of blocks of `(fine, fine)` pixels of an image `(h, w, channels)`."""
    h, w, channels = x.shape
    return np.asarray(x.reshape(h // fine, fine, w // fine, fine, channels).mean((1, 3))) if fine > 1 else x
