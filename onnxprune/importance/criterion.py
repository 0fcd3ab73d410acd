"""What every criterion says of itself; weights.py, data.py, gates.py and gradients.py define them, score.py has them
all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxprune.graph.arrays import Float

Scores = dict[str, Float]  # group name -> float64 (size,); larger matters more
DEAD = -1e300  # score of a unit that changes nothing (structure/dead.py)
GONE = -np.inf  # of one that went already


@dataclass(frozen=True)
class Criterion:
    """One way to say how much a unit matters.

    by: what it looks at: "weights" alone, "data" as the readers of a unit see them, "gates" that close a unit, and
    what the outputs on data suffer then, or "gradients" of a loss by gates.
    function: by weights, (`weights.Site` that makes units, generator) -> a score per row `(n,)`; by data, `data.Seen`
    -> a score per unit `(size,)`; by gates, `gates.gate_losses`; by gradients, `gradients.unit_scores`.
    reads: by weights, the same of the sites that read the units, by which the first is multiplied; None for neither.
    rowwise: by weights, whether the score of a row depends on that row alone.
    measures: by data, what is measured beside the moments: "magnitudes" of activations, "ranks" of feature maps,
    "energy" of a unit.
    blocks: whether it scores residual blocks, too, which else go by what they change in the stream.
    blind: whether it does not look at units, so that those that change nothing do not go first.
    dataless: by gradients, whether it does without calibration samples all the same; labels: whether it needs labels,
    which come with samples to train on.
    """

    help: str
    by: Literal["weights", "data", "gates", "gradients"]
    function: Callable[..., Any]
    reads: Callable[..., Float] | None = None
    rowwise: bool = False
    measures: tuple[str, ...] = ()
    blocks: bool = False
    blind: bool = False
    dataless: bool = False
    labels: bool = False

    @property
    def needs_data(self) -> bool:
        """Whether it cannot do without calibration samples."""
        return self.by != "weights" and not self.dataless


def summary(function: Callable[..., Any]) -> str:
    """The docstring of a function that is a criterion, as its help."""
    return (function.__doc__ or "").strip()


__all__ = ["DEAD", "GONE", "Criterion", "Scores", "summary"]
