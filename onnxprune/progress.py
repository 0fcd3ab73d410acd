"""What long work tells its caller while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Count = Callable[[int, int], None]  # done, of how many


class Progress(Protocol):
    """stage: a key or a line of text; done, total: steps, where they are counted; note: a line for the user."""

    def __call__(self, stage: str, done: int = 0, total: int = 0, *, note: str = "") -> None: ...


def silent(stage: str, done: int = 0, total: int = 0, *, note: str = "") -> None:
    """Tells nobody."""


def counting(progress: Progress, stage: str) -> Count:
    """Steps of one stage."""
    return lambda done, total: progress(stage, done, total)
