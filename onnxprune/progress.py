"""What long work tells its caller while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Steps = Callable[[int, int], None]  # done, of how many


class Progress(Protocol):
    """stage: a key or a line of text; done, total: steps, where they are counted; note: a line for the user."""

    def __call__(self, stage: str, done: int = 0, total: int = 0, *, note: str = "") -> None: ...


def silent(stage: str, done: int = 0, total: int = 0, *, note: str = "") -> None:
    """A `Progress` that tells nobody."""


def counting(progress: Progress, stage: str) -> Steps:
    """The `Steps` of one stage, told to the caller's progress."""
    return lambda done, total: progress(stage, done, total)


class Stop:
    """What Ctrl-C means for work that may end early with what it has. inside: such work runs; taken: it was stopped."""

    inside = taken = False


@contextmanager
def stoppable() -> Iterator[None]:
    """The work inside catches a `KeyboardInterrupt`, and goes on with what it has."""
    before, Stop.inside = Stop.inside, True
    try:
        yield
    except KeyboardInterrupt:
        Stop.taken = True
        raise
    finally:
        Stop.inside = before


class Clock:
    """Seconds per stage, and the caller's progress."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.stage, self.start = "", time.perf_counter()
        self.expected: float | None = None  # seconds that the work on data was said to take

    def note(self, text: str) -> None:
        """Tell the caller a line of text, without a step."""
        self.progress(self.stage, note=text)

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        if self.stage:
            self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.start
        self.stage, self.start = stage, now
        if stage:
            self.progress(stage)
