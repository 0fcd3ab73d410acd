"""How long a part takes, by what it is counted by: non-negative least squares in three stages.

The parts of one family share coefficients; every part then gets its own, held near those of its family; and whole
families are scaled, and all parts cost more by what they are counted by, so that the sums are the times of whole
sessions, which were measured by themselves: of nodes that take a microsecond the profile tells little.
Errors count relative to the time of the whole variant: that is what is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.arrays import Float, Ids
from onnxprune.latency.parts import EXACT, Steps

STEPS: tuple[Steps, ...] = (EXACT, (4, 4), (8, 1), (8, 8), (16, 1), (16, 16))  # what kernels may work in
CLEARLY = 0.98  # of the error with smaller steps, below which larger ones are taken
OWN = 0.05  # what holds a part's coefficients near its family's, per variant
WHOLE = 0.0003  # what holds the scale of a family near 1, per variant
MORE = 0.001  # what holds near 0 what all parts cost more, per variant

Designs = Mapping[Steps, Float]  # steps -> what parts are counted by, `(parts, variants, kinds)`


@dataclass(frozen=True, eq=False)
class Fit:
    """coefficients: seconds by kind, `(parts, kinds)`; steps: of every part."""

    coefficients: Float
    steps: Sequence[Steps]

    def seconds(self, designs: Designs) -> Float:
        """Of every part, `(parts, variants)`."""
        return np.stack([designs[s][k] @ c for k, (s, c) in enumerate(zip(self.steps, self.coefficients, strict=True))])


def fit(designs: Designs, seconds: Float, families: Sequence[str], counts: Float) -> Fit:
    """Coefficients by the time of every part in every variant, `(parts, variants)`, whose sums are those of sessions.

    families: of the parts; counts: how much an error of each variant counts, `(variants,)`.
    """
    weights = counts / seconds.sum(0)
    coefficients = np.zeros((len(families), next(iter(designs.values())).shape[2]))
    steps = [EXACT] * len(families)
    members = [np.flatnonzero(np.array(families) == f) for f in dict.fromkeys(families)]
    for each in members:
        best, shared = _family(designs, seconds, each, weights)
        for part in each:
            steps[part] = best
            coefficients[part] = _near(designs[best][part], seconds[part], shared, weights)
    parts = Fit(coefficients, steps).seconds(designs)
    totals = np.stack([designs[s][k] for k, s in enumerate(steps)]).sum(0).T
    scales, more = _whole(np.stack([parts[each].sum(0) for each in members]), totals, seconds.sum(0), weights)
    for each, scale in zip(members, scales, strict=True):
        coefficients[each] *= scale
    coefficients += more
    return Fit(coefficients, steps)


def cross_validated(designs: Designs, seconds: Float, families: Sequence[str], counts: Float) -> tuple[float, float]:
    """Relative error of the time of whole variants that a fit has not seen: median and 95th percentile of leaving each
    of them out."""
    errors = []
    for v in range(seconds.shape[1]):
        seen = np.arange(seconds.shape[1]) != v
        found = fit({s: d[:, seen] for s, d in designs.items()}, seconds[:, seen], families, counts[seen])
        predicted = found.seconds({s: d[:, ~seen] for s, d in designs.items()}).sum()
        errors.append(abs(predicted / seconds[:, v].sum() - 1))
    return float(np.median(errors)), float(np.quantile(errors, 0.95))


def _family(designs: Designs, seconds: Float, parts: Ids, weights: Float) -> tuple[Steps, Float]:
    """The steps of a family and the coefficients that its parts share; all steps have as many, so that the error of the
    fit tells which are best."""
    y = seconds[parts].ravel()
    w = np.tile(weights, len(parts))
    best: tuple[float, Steps, Float] | None = None
    for steps, design in designs.items():
        x = design[parts].reshape(len(y), -1)
        found = _solve(x, y, w)
        error = float(np.square((x @ found - y) * w).sum())
        if best is None or error < CLEARLY * best[0]:
            best = error, steps, found
    assert best is not None
    return best[1:]


def _near(design: Float, y: Float, shared: Float, weights: Float) -> Float:
    """Coefficients of one part, `(kinds,)`, near those of its family. design: `(variants, kinds)`."""
    held = np.diag(design.mean(0))
    strength = np.full(len(held), np.sqrt(OWN * len(y)) * weights.mean())
    x = np.vstack([design, held])
    return _solve(x, np.concatenate([y, held @ shared]), np.concatenate([weights, strength]))


def _whole(sums: Float, totals: Float, seconds: Float, weights: Float) -> tuple[Float, Float]:
    """What each family is scaled with, `(families,)`, and what all parts cost more by kind, `(kinds,)`.

    sums: seconds of families, `(families, variants)`; totals: what all parts are counted by, `(kinds, variants)`;
    seconds: of whole variants.
    """
    share = sums.sum(1) / sums.sum()
    mean = totals.mean(1)
    unit = np.where(mean > 0, seconds.mean() / np.where(mean > 0, mean, 1.0), 0.0)  # a kind that took all the time
    x = np.vstack([np.hstack([sums.T, (totals * unit[:, None]).T]), np.eye(len(sums) + len(totals))])
    y = np.concatenate([seconds, np.ones(len(sums)), np.zeros(len(totals))])
    held = np.sqrt(len(seconds) * np.concatenate([WHOLE * share, np.full(len(totals), MORE)]))
    found = _solve(x, y, np.concatenate([weights, held]))
    return found[: len(sums)], found[len(sums) :] * unit


def _solve(x: Float, y: Float, weights: Float) -> Float:
    """The non-negative coefficients of columns, which have units of their own."""
    from scipy.optimize import nnls  # slow to import, and seldom needed

    x = x * weights[:, None]
    size = np.abs(x).max(0)
    size[size == 0] = 1.0
    return np.asarray(nnls(x / size, y * weights)[0] / size)
