"""Weights as they are, zeros among them."""

from __future__ import annotations

from onnxprune.formats.format import Format
from onnxprune.layers.layer import Layer


def _takes_all(layer: Layer) -> str:
    """A zero is a value like any other."""
    return ""


DENSE = Format(
    "dense", "zeros in a plain file",
    needs="--format dense changes nothing by itself; make zeros with --sparsity 0.8 or --pattern 2:4, or turn sparse "
    "operators back with onnxprune densify",
    advice="zeros alone do not make a dense file faster or smaller", instead="--format auto, csr or nm does",
    refuses=_takes_all,
)  # fmt: skip
