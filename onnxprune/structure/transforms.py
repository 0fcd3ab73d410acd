"""Fixed transforms that look like dense layers: Fourier and cosine bases, filter banks.

Audio models often carry their front end as weights of a MatMul or a Conv. Nobody trained them, their rows have equal
norms, and a missing row is a missing frequency: they are recognised by what they are and pinned.
"""

from __future__ import annotations

import numpy as np

from onnxprune.graph.arrays import Array

SAMPLE = 24  # rows that are looked at
LARGEST = 1 << 24  # values; a front end has fewer, and looking at a large weight means reading it
SHORTEST = 16  # shorter rows are no evidence
TONE_ENERGY = 0.9  # of a row, in five neighbouring frequencies
CONSTANT_ROWS = 3  # rows that may be no tone (zero frequency and its sine)


def fixed_transform(weight: Array, axis: int) -> str:
    """Name of the transform whose outputs lie along `axis`; the empty string for anything that could be trained.

    weight: any shape, float; the rows along `axis` are flattened over the other axes, in order.
    """
    n = weight.shape[axis]
    length = weight.size // max(n, 1)
    if n < SHORTEST or length < SHORTEST or weight.dtype.kind != "f" or weight.size > LARGEST:
        return ""
    picked = np.unique(np.linspace(0, n - 1, SAMPLE).astype(int))
    rows = np.moveaxis(np.take(weight, picked, axis), axis, 0).reshape(len(picked), length).astype(np.float64)
    if _tones(rows):
        return "a Fourier or cosine transform"
    if _filter_bank(rows):
        return "a filter bank"
    return ""


def _tones(rows: Array) -> bool:
    """Each row is one frequency, perhaps under a window."""
    power = np.square(np.abs(np.fft.rfft(rows, axis=1)))
    total = power.sum(1)
    near = np.stack([np.roll(power, k, 1) for k in range(-2, 3)]).sum(0)  # energy of five neighbouring frequencies
    pure = near.max(1) >= TONE_ENERGY * np.maximum(total, 1e-30)
    wide = rows.shape[1] >= 4 * 5  # five frequencies of very few say nothing
    return wide and int((~pure).sum()) <= CONSTANT_ROWS and bool((total > 0).sum() > len(rows) / 2)


def _filter_bank(rows: Array) -> bool:
    """No negative weight, and each row one bump on less than half of the inputs."""
    if (rows < 0).any():
        return False
    support = rows > 0
    width = support.sum(1)
    runs = (np.diff(support.astype(int), axis=1, prepend=0) == 1).sum(1)
    peaks = rows.argmax(1)
    rising = [
        (np.diff(r[: p + 1]) >= -1e-12).all() and (np.diff(r[p:]) <= 1e-12).all()
        for r, p in zip(rows, peaks, strict=True)
    ]
    return bool((width < rows.shape[1] / 2).all() and (runs <= 1).all() and all(rising) and width.any())
