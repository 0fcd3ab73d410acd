"""How weights lie in the file: the options."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.errors import OptionError
from onnxprune.formats.codebook import PER, STORAGES
from onnxprune.formats.patterns import Blocks, Pattern
from onnxprune.kernels.names import VALUES
from onnxprune.options import STORE, choice, integer, option

FORMATS = {
    "auto": "sparse operators for those layers with which the whole session measures faster on this machine",
    "dense": "zeros in a plain file",
    "csr": "compressed rows in operators of ours, for all layers",
    "nm": "N of every M weights in operators of ours, for all layers",
    "bsr": "tiles in operators of ours, for all layers",
    "columns": "smaller dense layers, with --pattern column",
    "sparse-initializer": "ONNX's own coordinates, smaller above about 70%",
}
OPERATORS = ("auto", "csr", "nm", "bsr")  # formats with operators of ours


def rows_of(rows: dict[str, str]) -> str:
    return "; ".join(f"{k}: {v}" for k, v in rows.items()) + "."


@dataclass(frozen=True)
class Store:
    """How weights lie in the file."""

    format: str | None = option(
        None, choice(FORMATS), panel=STORE, metavar="NAME", otherwise="auto where weights are made zero",
        needs=("no plan",), main=True,
        help="How zeros are stored, those that are made or, without --sparsity, those that the model has. "
        + rows_of(FORMATS),
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
        "auto", choice({v: "" for v in STORAGES}), panel=STORE, metavar="TYPE", needs=("no plan", "a cluster"),
        help="How indices are stored. uint8, packed: every runtime from opset 7; uint4: opset 21 and onnxruntime 1.23; "
        "auto: the smaller of the first two.",
    )  # fmt: skip

    def check(self, pattern: Pattern | Blocks | None, *, made: bool) -> None:
        """Raises `OptionError` where pattern, format and values do not go together; made: whether weights become
        zero."""
        form = self.format or "auto"
        columns = isinstance(pattern, Blocks) and not pattern.rows
        if form == "bsr" and made and not (isinstance(pattern, Blocks) and pattern.rows):
            raise OptionError("--format bsr stores tiles of weights; make some with --pattern block:4x4 --sparsity 0.7")
        if form == "columns" and not columns:
            raise OptionError("--format columns leaves out whole columns of weights; make some with --pattern column")
        if form == "dense" and not made and self.cluster is None:
            raise OptionError(
                "--format dense changes nothing by itself; make zeros with --sparsity 0.8 or --pattern 2:4, or turn "
                "sparse operators back with onnxprune densify"
            )
        if form == "nm" and made and not isinstance(pattern, Pattern):
            raise OptionError("--format nm stores N of every M weights; say which with --pattern 2:4")
        if self.cluster is not None:
            if self.values != "float32":
                raise OptionError(f"--values {self.values} is for sparse operators, and --cluster stores dense weights")
            if form not in ("auto", "dense"):
                raise OptionError(f"--cluster stores dense weights, zeros among them; leave out --format {form}")
        if columns and self.values != "float32" and form == "auto":
            raise OptionError(f"--values {self.values}: --pattern column runs dense kernels; or choose --format csr")
        if self.values != "float32" and form not in OPERATORS:
            raise OptionError(f"--values {self.values} is for sparse operators; choose --format auto, csr or nm")
