"""Scores of models, as accuracies that were measured elsewhere, from a table: .csv of names and numbers, .json of an
object, in Python also a mapping, or one number per model."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from onnxprune.errors import OptionError, blamed

FEWEST = 5  # models that a correlation says something of
OPTION = "--scores"


def scores_of(table: Any, names: Sequence[str]) -> tuple[list[float], list[str]]:
    """The score of every model, and the names in the table that are of none. names: of the models, as they were given.

    A row is of the model whose path, file name, or file name without .onnx it has. Raises `OptionError` where a model
    has no score, or two, where all scores are alike, and for fewer than `FEWEST` models.
    """
    if len(names) < FEWEST:
        raise OptionError(
            f"{OPTION}: a correlation over {len(names)} model{'s' * (len(names) > 1)} means nothing; give {FEWEST} or "
            "more, or leave the scores out"
        )
    if isinstance(table, Mapping) or not isinstance(table, Sequence) or isinstance(table, str):
        rows = dict(table) if isinstance(table, Mapping) else read(Path(table))
        owners = {row: [k for k, name in enumerate(names) if is_named(name, row)] for row in rows}
        given = [[rows[row] for row, of in owners.items() if k in of] for k in range(len(names))]
        unknown = [row for row, of in owners.items() if not of]
        twice = next((row for row, of in owners.items() if len(of) > 1), None)
        if twice is not None:
            raise OptionError(f"{OPTION}: {twice!r} is the name of several models; write their paths into the table")
    else:
        given, unknown = [[value] for value in table], []
        if len(given) != len(names):
            raise OptionError(f"{OPTION}: {len(given)} for {len(names)} models; give one each")
    for name, found in zip(names, given, strict=True):
        if len(found) != 1:
            what = "no score" if not found else f"{len(found)} scores"
            raise OptionError(
                f"{OPTION}: {name} has {what} in the table; expected a row with its file name and a number"
            )
    values = [_number(found[0], name) for found, name in zip(given, names, strict=True)]
    if len(set(values)) < 2:
        raise OptionError(f"{OPTION}: all models have the score {values[0]:g}; nothing is correlated with it")
    return values, unknown


def is_named(model: str, row: str) -> bool:
    """Whether a row's name is that of a model: its path, or the end of it, with the suffix or without.

    >>> is_named("nets/a.onnx", "a"), is_named("nets/a.onnx", "nets/a.onnx"), is_named("nets/a.onnx", "b.onnx")
    (True, True, False)
    """
    path, name = PurePath(model), PurePath(row)
    ends = (path.parts[-len(name.parts) :], path.with_suffix("").parts[-len(name.parts) :]) if name.parts else ()
    return name.parts in ends


def read(path: Path) -> dict[str, Any]:
    """Name -> what stands behind it. Raises `OptionError` for a file that is no such table."""
    with blamed(f"{OPTION} {path}", "cannot be read", refusals=(OSError, UnicodeDecodeError)):
        text = path.read_text(encoding="utf-8-sig")
    expected = f"{OPTION} {path}: expected rows `name,score`, or a JSON object of names and numbers"
    if path.suffix.lower() == ".json":
        try:
            data = json.loads(text)
        except ValueError as e:
            raise OptionError(f"{expected} ({e})") from None
        if not isinstance(data, dict):
            raise OptionError(expected)
        return data
    separator = next((s for s in "\t;" if s in text), ",")
    lines = csv.reader(text.splitlines(), delimiter=separator)
    rows = [[c.strip() for c in r] for r in lines if any(map(str.strip, r))]
    if rows and not is_number(rows[0][-1]):
        del rows[0]  # a header
    if not rows or any(len(r) != 2 for r in rows):
        raise OptionError(expected)
    twice = next((name for k, (name, _) in enumerate(rows) if name in (r[0] for r in rows[:k])), None)
    if twice is not None:
        raise OptionError(f"{OPTION} {path}: {twice!r} has two rows")
    return {name: value for name, value in rows}


def is_number(value: Any) -> bool:
    """Whether it is one, or its text, and finite."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _number(value: Any, name: str) -> float:
    if not is_number(value):
        raise OptionError(f"{OPTION}: the score of {name} is no number: {value!r:.40}")
    return float(value)


__all__ = ["FEWEST", "is_named", "scores_of"]
