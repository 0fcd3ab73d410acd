"""The criteria by names that an option takes: `lp:0.5` for the row of `lp:P`."""

from __future__ import annotations

from onnxprune.importance.score import CRITERIA

ROWS = {"lp:0.5" if name == "lp:P" else name: row for name, row in CRITERIA.items()}
