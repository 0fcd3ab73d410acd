"""How long a part takes, by what it is counted by: non-negative least squares in relative errors, in three stages.

The parts of one family share coefficients; every part then gets its own, held near those of its family; and whole
families are scaled so that the sums are the times of whole sessions, which were measured by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from onnxprune.graph.arrays import Array, Float

STEPS = (1, 4, 8, 16)  # that widths are rounded up to a multiple of: what kernels work in
CLEARLY = 0.98  # of the error with smaller steps, above which those are taken
OWN = 0.02  # what holds a part's coefficients near its family's, per variant
WHOLE = 0.0003  # what holds the scale of a family near 1, per variant
UNCUT = 3.0  # weight of the uncut model, by which all others were measured


@dataclass(frozen=True, eq=False)
class Fit:
    """coefficients: seconds by kind, `(parts, kinds)`; steps: what widths are rounded up to, `(parts,)`."""

    coefficients: Float
    steps: Array

    def seconds(self, designs: Mapping[int, Float]) -> Float:
        """Of whole variants, `(variants,)`. designs: step -> counts, `(parts, variants, kinds)`."""
        return np.asarray(sum(self._of(d[self.steps == s], self.steps == s) for s, d in designs.items()))

    def _of(self, design: Float, which: Array) -> Float:
        return np.asarray(np.einsum("pvk,pk->v", design, self.coefficients[which]))


def fit(designs: Mapping[int, Float], seconds: Float, families: Sequence[str]) -> Fit:
    """Coefficients by the time of every part in every variant, `(parts, variants)`, whose sums are those of sessions.

    designs: step -> what parts are counted by in every variant, `(parts, variants, kinds)`; families: of the parts.
    The first variant is the uncut model.
    """
    coefficients = np.zeros((len(families), next(iter(designs.values())).shape[2]))
    steps = np.ones(len(families), int)
    members = {f: np.flatnonzero(np.array(families) == f) for f in dict.fromkeys(families)}
    for each in members.values():
        step, shared = _family(designs, seconds, each)
        steps[each] = step
        for part in each:
            coefficients[part] = _near(designs[step][part], seconds[part], shared)
    whole = Fit(coefficients, steps)
    sums = np.array([_summed(whole, designs, each) for each in members.values()])  # (families, variants)
    for each, scale in zip(members.values(), _scales(sums, seconds.sum(0)), strict=True):
        coefficients[each] *= scale
    return whole


def cross_validated(designs: Mapping[int, Float], seconds: Float, families: Sequence[str]) -> tuple[float, float]:
    """Relative error of the time of whole variants that a fit has not seen: median and 95th percentile of leaving each
    of them out, but for the uncut one, by which everything is measured."""
    errors = []
    for v in range(1, seconds.shape[1]):
        seen = np.arange(seconds.shape[1]) != v
        found = fit({s: d[:, seen] for s, d in designs.items()}, seconds[:, seen], families)
        predicted = found.seconds({s: d[:, ~seen] for s, d in designs.items()})
        errors.append(abs(float(predicted[0]) / float(seconds[:, v].sum()) - 1))
    return float(np.median(errors)), float(np.quantile(errors, 0.95))


def _family(designs: Mapping[int, Float], seconds: Float, parts: Array) -> tuple[int, Float]:
    """The step of a family and the coefficients that its parts share; each step has as many, so that the error of the
    fit tells which is best."""
    y = seconds[parts].ravel()
    weights = 1 / (y + y.mean())
    best: tuple[float, int, Float] | None = None
    for step, design in designs.items():
        x = design[parts].reshape(len(y), -1)
        found = _solve(x, y, weights)
        error = float(np.square((x @ found - y) * weights).sum())
        if best is None or error < CLEARLY * best[0]:
            best = error, step, found
    assert best is not None
    return best[1:]


def _near(design: Float, y: Float, shared: Float) -> Float:
    """Coefficients of one part, `(kinds,)`, near those of its family. design: `(variants, kinds)`."""
    weights = 1 / (y + y.mean() + np.finfo(float).tiny)
    held = np.diag(design.mean(0)) * np.sqrt(OWN * len(y)) * weights.mean()
    return _solve(
        np.vstack([design * weights[:, None], held]),
        np.concatenate([y * weights, held @ shared]),
        np.ones(len(y) + len(held)),
    )


def _summed(whole: Fit, designs: Mapping[int, Float], parts: Array) -> Float:
    """Seconds of a family in every variant."""
    step = int(whole.steps[parts[0]])
    return np.asarray(np.einsum("pvk,pk->v", designs[step][parts], whole.coefficients[parts]))


def _scales(sums: Float, seconds: Float) -> Float:
    """What each family is scaled with. sums: `(families, variants)`; seconds: of whole variants."""
    weights = 1 / seconds
    weights[0] *= UNCUT
    share = sums.sum(1) / sums.sum()
    held = np.sqrt(WHOLE * len(seconds) * share)
    return _solve(
        np.vstack([sums.T * weights[:, None], np.diag(held)]),
        np.concatenate([seconds * weights, held]),
        np.ones(len(seconds) + len(held)),
    )


def _solve(x: Float, y: Float, weights: Float) -> Float:
    """The non-negative coefficients of columns, which have units of their own."""
    x = x * weights[:, None]
    size = np.abs(x).max(0)
    size[size == 0] = 1.0
    return np.asarray(nnls(x / size, y * weights)[0] / size)
