"""Rank correlations, and how sure they are.

Spearman's rho is the correlation of ranks, equal values with their mean rank; Kendall's tau-b counts the pairs that two
lists order alike, less those that they order otherwise, over the geometric mean of how many each has that are not tied
(Kendall 1945, The Treatment of Ties in Ranking Problems). Both are from -1 to 1, and no number where all of one list is
equal.

>>> a, b = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])
>>> round(float(spearman(a, b)), 3), round(float(kendall(a, b)), 3)
(0.8, 0.667)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Float

RESAMPLES = 1000
PAIRS = 1_000_000  # of the resamples that are looked at together
CONFIDENCE = 0.95


def spearman(a: Float, b: Float) -> Float:
    """Spearman's rho of lists `(..., n)`, `(...)`; NaN where it is not defined."""
    from scipy.stats import rankdata  # slow to import

    ranks = [rankdata(x, axis=-1) for x in (a, b)]
    return _cosine(*(r - r.mean(-1, keepdims=True) for r in ranks))


def kendall(a: Float, b: Float) -> Float:
    """Kendall's tau-b of lists `(..., n)`, `(...)`; NaN where it is not defined."""
    signs = [np.sign(x[..., :, None] - x[..., None, :]) for x in (a, b)]
    return _cosine(*(s.reshape(*s.shape[:-2], -1) for s in signs))


def _cosine(a: Float, b: Float) -> Float:
    norm = np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
    return np.asarray((a * b).sum(-1) / np.where(norm > 0, norm, np.nan))


COEFFICIENTS: dict[str, Callable[[Float, Float], Float]] = {"spearman": spearman, "kendall": kendall}


@dataclass(frozen=True)
class Correlation:
    """value: of the lists; low, high: the interval that `CONFIDENCE` of the resamples fall in."""

    value: float
    low: float
    high: float


def bootstrap(of: Callable[[Float, Float], Float], a: Float, b: Float, seed: int) -> Correlation:
    """A coefficient with its percentile interval over `RESAMPLES` draws of the pairs with replacement (Efron 1979);
    draws of which it is not defined do not count."""
    rng = np.random.default_rng([seed, 5])
    draws = rng.integers(0, len(a), (RESAMPLES, len(a)))
    parts = np.array_split(draws, min(RESAMPLES, -(-RESAMPLES * len(a) ** 2 // PAIRS)))
    drawn = np.concatenate([of(a[at], b[at]) for at in parts])
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Correlation(float(of(a, b)), float(low), float(high))


__all__ = ["COEFFICIENTS", "CONFIDENCE", "RESAMPLES", "Correlation", "bootstrap", "kendall", "spearman"]
