"""Where zeros may lie: n of every m, tiles, whole columns."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxprune.errors import OptionError
from onnxprune.solvers.patterns import Choice, NofM, Tiles


@dataclass(frozen=True)
class NMPattern:
    """n of every m consecutive weights along the reduction stay."""

    n: int
    m: int

    kind = "N:M"  # as --pattern names what it takes

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def ratio(self) -> float:
        """Fraction of the weights that goes."""
        return 1 - self.n / self.m

    def choice(self, rows: int, segment: int, columns: int, count: int) -> Choice:
        """What may stay of a matrix of rows x columns, in segments that the pattern does not cross."""
        return NofM(self.n, self.m, segment)


@dataclass(frozen=True)
class BlockPattern:
    """Tiles of rows (outputs) x columns (of the reduction) stay or go as a whole; rows 0: all outputs of a group."""

    rows: int
    columns: int

    ratio = None  # --sparsity says how many

    @property
    def kind(self) -> str:
        """As --pattern names what it takes."""
        return "block:RxC" if self.rows else "column"

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.columns}" if self.rows else "column"

    def choice(self, rows: int, segment: int, columns: int, count: int) -> Choice:
        """What may stay of a matrix of rows x columns, in segments that tiles do not cross; count: entries that go."""
        return Tiles(self.rows or rows, self.columns, count, segment if self.rows else columns)


Pattern = NMPattern | BlockPattern


def parse_pattern(text: str) -> Pattern:
    """`2:4`, `block:1x4` or `column`; raises `OptionError`."""
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text.strip())
    n, m = (int(x) for x in match.groups()) if match else (0, 0)
    if 1 <= n < m <= 256:
        return NMPattern(n, m)
    tile = re.fullmatch(r"block:(\d{1,3})x(\d{1,3})", text.strip())
    r, c = (int(x) for x in tile.groups()) if tile else (0, 0)
    if 1 <= r <= 64 and 1 <= c <= 64 and r * c > 1:
        return BlockPattern(r, c)
    if text.strip() == "column":
        return BlockPattern(0, 1)
    raise OptionError(
        f"--pattern {text}: expected N:M with 1 <= N < M <= 256, of which N weights stay, as 2:4; or block:RxC with R "
        "outputs by C inputs up to 64, as block:1x4; or column"
    )
