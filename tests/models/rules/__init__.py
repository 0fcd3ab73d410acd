"""A row for every rule: a tiny model in onnx's text form in which the operator stands between two layers.

It states every group that is found, with the axes of weights that shrink together, and every axis that is pinned, with
the reason; then pruned must equal masked. Weights are declared without values (`float[8,3] w1`) and filled with seeded
noise, positive for names that begin with `v`.
"""

from __future__ import annotations

import importlib
import pkgutil

from models.rules.row import ROWS, Row, build, describe, text

for module in pkgutil.iter_modules(__path__):  # each family adds its own
    importlib.import_module(f"{__name__}.{module.name}")

__all__ = ["ROWS", "Row", "build", "describe", "text"]
