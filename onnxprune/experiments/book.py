"""The book of an experiment: its settings and the rows that are done, in one file of its folder.

A run reads it first, and goes on behind the last row; one of other settings is refused, so that no table mixes two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from onnxprune import cache
from onnxprune.errors import OptionError, blamed

NAME = "experiment.json"


@dataclass(frozen=True)
class Row:
    """One training. round: 0 for the dense network; kind: what was trained; left: share of the weights; loss: lowest
    mean loss on the samples held out, at step `best` of `steps`; scores: metric -> value on what --evaluate names;
    seconds: of training."""

    seed: int
    round: int
    kind: str
    left: float
    loss: float
    best: int
    steps: int
    scores: Mapping[str, float]
    seconds: float
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(data: Mapping[str, Any]) -> Row:
        """A row of plain data, as `asdict` made it. Raises `TypeError` and `KeyError` for other data."""
        return Row(**{**data, "notes": tuple(data["notes"])})


@dataclass(eq=False)
class Book:
    """folder: where it lies; settings: all that rows depend on, as JSON has it; rows: those that are done."""

    folder: Path
    settings: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / NAME

    def open(self) -> None:
        """Read what is there. Raises `OptionError` where it is of other settings, or cannot be read or written."""
        with _errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else None
        if text is None:
            if any(self.folder.iterdir()):
                raise OptionError(f"-o {self.folder}: the folder holds other files; name a new one, or an empty one")
            self._write()
            return
        try:
            read = json.loads(text)
            before, rows = read["settings"], [Row.of(r) for r in read["rows"]]
        except (ValueError, KeyError, TypeError):
            raise OptionError(f"{self.path}: this is no table of an experiment; name another folder with -o") from None
        for name in sorted({*before, *self.settings}):
            was, now = before.get(name), json.loads(json.dumps(self.settings.get(name)))
            if was != now:
                raise OptionError(
                    f"-o {self.folder} holds an experiment of other settings: {name} was {_short(was)}, and is "
                    f"{_short(now)}; name another folder, or give the same"
                )
        self.rows[:] = rows

    def of(self, seed: int, round: int, kind: str) -> Row | None:
        """The row of a training, None where it is not done."""
        return next((r for r in self.rows if (r.seed, r.round, r.kind) == (seed, round, kind)), None)

    def add(self, row: Row) -> None:
        """Write a row."""
        self.rows.append(row)
        self._write()

    def _write(self) -> None:
        content = {"settings": self.settings, "rows": [asdict(r) for r in self.rows]}
        with _errors(self.folder):
            cache.replace(self.path, (json.dumps(content, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Mean:
    """What several seeds gave. left, score, best, seconds: means; deviation: of the scores, 0 for one seed."""

    round: int
    kind: str
    seeds: int
    left: float
    score: float
    deviation: float
    loss: float
    best: float
    seconds: float


def means(rows: Sequence[Row], metric: str) -> list[Mean]:
    """Means over seeds, by round and kind, in the order of the first row of each.

    metric: of `Row.scores`; "" for the loss.
    """
    by: dict[tuple[int, str], list[Row]] = {}
    for r in rows:
        by.setdefault((r.round, r.kind), []).append(r)
    out = []
    for (round, kind), of in sorted(by.items(), key=lambda item: item[0][0]):
        values = [r.scores[metric] if metric else r.loss for r in of]
        out.append(
            Mean(
                round, kind, len(of), fmean(r.left for r in of), fmean(values), stdev(values) if len(of) > 1 else 0.0,
                fmean(r.loss for r in of), fmean(r.best for r in of), fmean(r.seconds for r in of),
            )
        )  # fmt: skip
    return out


def _errors(folder: Path) -> AbstractContextManager[None]:
    return blamed(f"-o {folder}", "cannot be used", "; name another folder", refusals=(OSError,))


def _short(value: Any) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


__all__ = ["Book", "Mean", "Row", "means"]
