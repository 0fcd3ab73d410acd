"""The formats: values of `--format`, a row each. `auto` is a choice among them."""

from __future__ import annotations

from onnxprune.formats.bsr import BSR
from onnxprune.formats.columns import COLUMNS
from onnxprune.formats.csr import CSR
from onnxprune.formats.dense import DENSE
from onnxprune.formats.format import Format, Storage
from onnxprune.formats.initializer import SPARSE_INITIALIZER
from onnxprune.formats.nm import NM
from onnxprune.formats.patterns import Pattern
from onnxprune.layers.layer import Layer

FORMATS: dict[str, Format] = {f.name: f for f in (DENSE, CSR, NM, BSR, COLUMNS, SPARSE_INITIALIZER)}

AUTO = "auto"
CHOICES: dict[str, str] = {  # of --format: name -> help
    AUTO: "sparse operators for those layers with which the whole session measures faster on this machine",
    **{name: row.help for name, row in FORMATS.items()},
}


def storages() -> list[Storage]:
    """The ways in which operators of ours hold weights."""
    return [row.storage for row in FORMATS.values() if row.storage is not None]


def untaken(layer: Layer) -> str:
    """Why no operator of ours takes a layer; "" where one does."""
    reasons = [row.refuses(layer) for row in FORMATS.values() if row.storage is not None]
    return reasons[0] if all(reasons) else ""


def has_operators(name: str) -> bool:
    """Whether a choice of --format may store weights in operators of ours."""
    return name == AUTO or FORMATS[name].storage is not None


def candidates(name: str, pattern: Pattern | None, *, present: bool) -> list[Format]:
    """The formats that a choice of --format stands for, in the order of FORMATS.

    pattern: by which zeros are made, None for none; present: the model's own zeros are stored, and none made.
    """
    if name != AUTO:
        return [FORMATS[name]]
    faster = [row for row in FORMATS.values() if row.faster]
    if present:
        return [row for row in faster if row.present]
    kind = "" if pattern is None else pattern.kind
    return [row for row in faster if row.pattern == kind]
