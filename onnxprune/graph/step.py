"""What a stage of the recipe gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from onnxprune.graph.io import Model

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Step(Generic[T_co]):
    """model: after the stage, the one that went in where nothing changed; outcome: what became of it, None where the
    stage had nothing to do; notes: lines for the report."""

    model: Model
    outcome: T_co
    notes: tuple[str, ...] = ()
