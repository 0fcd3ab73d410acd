"""Painting of leaves, compiled: what takes nearly all the time of an image."""

from __future__ import annotations

import numpy as np
from numba import njit

from onnxprune.graph.arrays import Array

ELLIPSE, RECTANGLE, TRIANGLE, FLOWER = range(4)
DEEP = 0.35  # petals of a flower, in radii


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
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
