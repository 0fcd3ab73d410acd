"""Pictures as they might have been taken: flipped, and shifted by some pixels. For inputs that look like images."""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array

PAD = 8  # a shift is at most one in so many pixels of the height and width


def spatial_axes(x: Array) -> tuple[int, int] | None:
    """The axes of height and width of a batch of pictures; None for what is none."""
    if x.ndim != 4 or x.dtype.kind != "f":
        return None
    if x.shape[1] in (1, 3, 4) and min(x.shape[2:]) >= PAD:
        return 2, 3
    return (1, 2) if x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) >= PAD else None


def flip_and_crop(x: Array, rng: np.random.Generator) -> Array:
    """Every picture of a batch flipped from left to right or not, and shifted; zeros where nothing was taken."""
    axes = spatial_axes(x)
    assert axes is not None
    height, width = axes
    room = max(x.shape[height] // PAD, 1), max(x.shape[width] // PAD, 1)
    pads = [(0, 0)] * 4
    pads[height], pads[width] = (room[0],) * 2, (room[1],) * 2
    padded, out = np.pad(x, pads, "constant"), np.empty_like(x)
    for k in range(len(x)):
        i, j = rng.integers(0, 2 * room[0] + 1), rng.integers(0, 2 * room[1] + 1)
        rows, columns = slice(i, i + x.shape[height]), slice(j, j + x.shape[width])
        one = padded[k, :, rows, columns] if height == 2 else padded[k, rows, columns]
        out[k] = np.flip(one, width - 1) if rng.random() < 0.5 else one
    return out
