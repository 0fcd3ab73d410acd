"""How weights lie in the file: the options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.errors import OptionError
from onnxprune.formats.codebook import INDEX_TYPES, PER
from onnxprune.formats.patterns import Pattern
from onnxprune.formats.registry import AUTO, CHOICES, FORMATS, candidates
from onnxprune.kernels.names import VALUES
from onnxprune.options import STORE, choice, integer, option


def _lines(rows: Mapping[str, str]) -> str:
    return "; ".join(f"{k}: {v}" for k, v in rows.items()) + "."


@dataclass(frozen=True)
class Store:
    """How weights lie in the file."""

    format: str | None = option(
        None, choice(CHOICES), panel=STORE, metavar="NAME", otherwise="auto where weights are made zero",
        needs=("no plan",), main=True,
        help="How zeros are stored, those that are made or, without --sparsity, those that the model has. "
        + _lines(CHOICES),
    )  # fmt: skip
    values: str = option(
        "float32", choice({v: "" for v in VALUES}), panel=STORE, metavar="TYPE", needs=("no plan", "zeros or a format"),
        help="Type of the values that sparse operators store: " + ", ".join(VALUES) + "; int8 has a scale per row. "
        "What it costs is in the report.",
    )  # fmt: skip
    cluster: int | None = option(
        None, integer("a whole number from 2 to 256", 2, 256), panel=STORE, metavar="K", needs=("no plan",), main=True,
        help="Every weight becomes one of K values, stored as indices into a codebook in plain ONNX: a smaller file, "
        "the same memory and speed. Comes last, after --channels and --sparsity.",
    )  # fmt: skip
    cluster_per: str = option(
        "tensor", choice({v: "" for v in PER}), panel=STORE, metavar="tensor|channel", needs=("no plan", "a cluster"),
        help="One codebook for every tensor or channel.",
    )  # fmt: skip
    cluster_storage: str = option(
        "auto", choice({v: "" for v in INDEX_TYPES}), panel=STORE, metavar="TYPE", needs=("no plan", "a cluster"),
        help="How indices are stored. uint8, packed: every runtime from opset 7; uint4: opset 21 and onnxruntime 1.23; "
        "auto: the smaller of the first two.",
    )  # fmt: skip

    def check(self, pattern: Pattern | None, *, zeros: bool) -> None:
        """Raises `OptionError` where pattern, format and values do not go together; zeros: whether weights become
        zero."""
        row = FORMATS.get(self.format or AUTO)
        if row is not None:
            clustered = row.dense and self.cluster is not None
            if not (row.serves(pattern) if zeros else row.present or clustered):
                raise OptionError(row.needs)
        if self.cluster is not None:
            if self.values != "float32":
                raise OptionError(f"--values {self.values} is for sparse operators, and --cluster stores dense weights")
            if row is not None and not row.dense:
                raise OptionError(f"--cluster stores dense weights, zeros among them; leave out --format {row.name}")
        tried = candidates(self.format or AUTO, pattern, present=not zeros)
        if self.values == "float32" or any(f.storage is not None for f in tried):
            return
        if row is None:
            raise OptionError(f"--values {self.values}: --pattern {pattern} runs dense kernels; or choose --format csr")
        raise OptionError(f"--values {self.values} is for sparse operators; choose --format auto, csr or nm")
