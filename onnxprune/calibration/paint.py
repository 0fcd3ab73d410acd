"""Painting of leaves and strokes, compiled: what takes nearly all the time of an image."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.kernels.compiled import njit

ELLIPSE, RECTANGLE, TRIANGLE, FLOWER = range(4)
DEEP = 0.35  # petals of a flower, in radii


@njit(nogil=True)
def paint(
    image: Array, bare: Array, texture: Array, box: tuple[int, int, int, int], kind: int, numbers: Array, colour: Array
) -> None:
    """Paint those pixels of a box (left, right, top, bottom) that a leaf covers and that are bare, which they then are
    no more. numbers: of `leaves._leaf`, in its order; image, texture: float32 `(h, w, 3)`; colour: float32 `(3,)`."""
    cx, cy, cos, sin, r, short, petals, wave, height, mix, shade = numbers
    one = np.float32(1)
    for i in range(box[2], box[3]):
        y = np.float32(i) - cy
        for j in range(box[0], box[1]):
            if not bare[i, j]:
                continue
            x = np.float32(j) - cx
            u, v = x * cos + y * sin, y * cos - x * sin
            if kind == RECTANGLE:
                inside = abs(u) < r and abs(v) < short
            elif kind == TRIANGLE:
                inside = v > -short and v < r - abs(u) * np.float32(1.7)
            else:
                far = (u / r) * (u / r) + (v / short) * (v / short)
                inside = far < one
                if kind == FLOWER:
                    inside = far < np.float32(0.6 * (1 - DEEP) ** 2)
                    if not inside and far < np.float32(0.6 * (1 + DEEP) ** 2):
                        petal = one + np.float32(DEEP) * np.sin(petals * np.arctan2(v, u))
                        inside = far < np.float32(0.6) * petal * petal
            if inside:
                bare[i, j] = False
                stripe = height * np.sign(np.sin(u * wave)) if height else np.float32(0)
                light = one + shade * u
                for c in range(3):
                    image[i, j, c] = ((colour[c] + stripe) * (one - mix) + texture[i, j, c] * mix) * light


@njit(nogil=True)
def nearest(h: int, w: int, pieces: Array, reach: np.float32) -> Array:
    """Distance of every pixel to the nearest of some straight pieces, at most `reach` away, float32 `(h, w)`; a large
    number further off. pieces: x and y of both ends, float32 `(n, 4)`."""
    far = np.full((h, w), np.float32(1e9))
    for k in range(len(pieces)):
        x0, y0, x1, y1 = pieces[k]
        dx, dy = x1 - x0, y1 - y0
        length = max(dx * dx + dy * dy, np.float32(1e-6))
        for i in range(max(0, int(min(y0, y1) - reach)), min(h, int(max(y0, y1) + reach) + 1)):
            y = np.float32(i + 0.5) - y0
            for j in range(max(0, int(min(x0, x1) - reach)), min(w, int(max(x0, x1) + reach) + 1)):
                x = np.float32(j + 0.5) - x0
                along = min(max((x * dx + y * dy) / length, np.float32(0)), np.float32(1))
                u, v = x - along * dx, y - along * dy
                far[i, j] = min(far[i, j], u * u + v * v)
    return np.sqrt(far)
