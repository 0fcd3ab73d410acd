"""The rate at each step: a linear warm-up, then half a cosine down to zero (Loshchilov and Hutter 2017).

>>> [round(rate(k, 8, 1.0), 3) for k in (0, 1, 2, 7)]
[0.5, 0.95, 0.812, 0.0]
"""

from __future__ import annotations

import math

WARM_UP = 20  # steps, at most an eighth of all


def rate(step: int, steps: int, highest: float) -> float:
    """The rate of a step, counted from 0, of so many."""
    warm = max(1, min(WARM_UP, steps // 8))
    fraction = step / max(steps - 1, 1)
    return highest * min(1.0, (step + 1) / (warm + 1)) * 0.5 * (1 + math.cos(math.pi * fraction))
