"""Strokes of a pen: images as those of digits, letters and drawings, lines on a plain ground."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array

STRAIGHT, ROUND = 0.35, 0.2  # chances of a line and of an ellipse; the rest are cubic Bezier curves
JOINED = 0.6  # chance that a stroke starts where the last one ended
PARTS = 12  # straight pieces of a curve


def strokes(shape: tuple[int, int], rng: np.random.Generator, *, dark: bool) -> Array:
    """One image in grey, 0 to 255, float32 `(h, w, 3)`: one to four strokes, of one width and sharpness, in the middle.

    dark: on bright ground, else bright ones on dark ground.
    """
    from onnxprune.calibration.paint import nearest  # loads numba

    h, w = shape
    side = min(h, w)
    half, edge = side * rng.uniform(0.03, 0.13), max(0.5, side * rng.uniform(0, 0.12))
    middle = np.array([w, h]) * rng.uniform(0.4, 0.6, 2)
    reach = side * rng.uniform(0.3, 0.5) * np.array([rng.uniform(0.6, 1), 1])
    curves: list[Array] = []
    for _ in range(int(rng.integers(1, 5))):
        start = curves[-1][-1] if curves and rng.random() < JOINED else None
        curves.append(_curve(middle, reach, start, rng))
    pieces = np.concatenate([np.concatenate([c[:-1], c[1:]], 1) for c in curves]).astype(np.float32)
    far = nearest(h, w, pieces, np.float32(half + edge))
    ink = np.clip((half + edge / 2 - far) / edge, 0, 1)
    ground, pen = rng.uniform(0, 0.2), rng.uniform(0.6, 1)
    grey = 255 * (ground + (pen - ground) * ink) + rng.standard_normal((h, w)) * rng.uniform(0, 6)
    x = np.clip(255 - grey if dark else grey, 0, 255)
    return np.repeat(np.asarray(x, np.float32)[:, :, None], 3, 2)


def _curve(middle: Array, reach: Array, start: Array | None, rng: np.random.Generator) -> Array:
    """Points of a stroke `(PARTS + 1, 2)`, x and y; start: where it begins, None for anywhere."""
    t = np.linspace(0, 1, PARTS + 1)[:, None]
    kind = rng.random()
    if kind < ROUND:
        turn = 2 * np.pi * t + rng.uniform(0, 2 * np.pi)
        radii = reach * rng.uniform(0.3, 1, 2)
        return np.asarray(
            middle + reach * rng.uniform(-0.4, 0.4, 2) + radii * np.concatenate([np.cos(turn), np.sin(turn)], 1)
        )
    a, b, c, d = middle + reach * rng.uniform(-1, 1, (4, 2))
    a = a if start is None else start
    if kind < ROUND + STRAIGHT:
        return np.asarray(a + t * (d - a))
    return np.asarray((1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d)
