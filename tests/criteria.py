"""The criteria by names that an option takes: `lp:0.5` for the row of `lp:P`; those that need labels apart."""

from __future__ import annotations

from onnxprune.importance.score import CRITERIA

LABELLED = {name: row for name, row in CRITERIA.items() if row.labels}
ROWS = {"lp:0.5" if name == "lp:P" else name: row for name, row in CRITERIA.items() if not row.labels}
