"""How far the outputs of several models are from those of the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Difference:
    """Largest difference to the first model's outputs; relative: to the largest magnitude in that output.

    absolute and relative are each the worst of all outputs; infinite where NaN or infinity meets another value.
    """

    absolute: float
    relative: float


def differences(
    labels: Sequence[str], names: Sequence[Sequence[str]], outputs: Sequence[Sequence[Any]]
) -> tuple[list[Difference | None], list[str]]:
    """Difference of every model to the first, None where outputs do not compare, and notes on what figures cannot tell.

    labels: what models are called; names, outputs: of each model, in its order; they are paired by name, or by
    position where the names differ.
    """
    out: list[Difference | None] = []
    notes = []
    for label, own_names, values in zip(labels, names, outputs, strict=True):
        if set(own_names) == set(names[0]):
            by_name = dict(zip(own_names, values, strict=True))
            values = [by_name[n] for n in names[0]]
        difference, problem = None, "it has other outputs"
        if len(values) == len(names[0]):
            difference, problem = _difference(dict(zip(names[0], outputs[0], strict=True)), values)
        if problem:
            notes.append(f"{label}: outputs not compared, {problem}")
        elif difference and not math.isfinite(difference.absolute):
            notes.append(f"{label}: outputs hold NaN or infinity where {labels[0]} has other values, or it does")
        out.append(difference)
    return out, notes


def _difference(first: Mapping[str, Any], values: Sequence[Any]) -> tuple[Difference | None, str]:
    """The largest difference, or what forbids one."""
    worst = Difference(0.0, 0.0)
    for (name, a), b in zip(first.items(), values, strict=True):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return None, f"{name!r} is no tensor"
        if a.shape != b.shape:
            return None, f"{name!r} has shape {b.shape} and not {a.shape}"
        try:
            x, y = a.astype(np.float64), b.astype(np.float64)
        except (TypeError, ValueError):
            return None, f"{name!r} holds no numbers"
        if not x.size:
            continue
        with np.errstate(invalid="ignore"):
            gap = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
        absolute = float(np.nan_to_num(gap, nan=math.inf, posinf=math.inf).max())
        largest = float(np.abs(x[np.isfinite(x)]).max(initial=0.0))
        relative = 0.0 if not absolute else absolute / largest if largest else math.inf
        worst = Difference(max(worst.absolute, absolute), max(worst.relative, relative))
    return worst, ""
