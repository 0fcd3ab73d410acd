"""What stands on a page: sections of tables, charts, lines; plain text but for charts, which are SVG of ours."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

Tone = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Cell:
    """Of a table. share: between 0 and 1, drawn as a bar below the text; svg: a small curve, in place of text."""

    text: str = ""
    share: float | None = None
    tone: Tone = ""
    svg: str = ""


@dataclass(frozen=True)
class Column:
    """numeric: its cells stand at the right."""

    name: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """rows: as many cells as there are columns, the first of each names the row."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @staticmethod
    def of(caption: str, text: Iterable[str], numeric: Iterable[str], rows: Iterable[Iterable[Cell | str]]) -> Table:
        """Of columns of text, then of numbers; a text is a cell."""
        text = tuple(text)
        return Table.mixed(caption, (*text, *numeric), rows, text=text)

    @staticmethod
    def mixed(
        caption: str, names: Iterable[str], rows: Iterable[Iterable[Cell | str]], *, text: Collection[str]
    ) -> Table:
        """Of columns in any order; text: those that hold no numbers."""
        columns = tuple(Column(name, numeric=name not in text) for name in names)
        return Table(caption, columns, tuple(tuple(map(_cell, row)) for row in rows))


@dataclass(frozen=True)
class Tile:
    """A figure that one sees first. share: of the original, drawn as a bar."""

    label: str
    value: str
    detail: str = ""
    share: float | None = None
    tone: Tone = ""


@dataclass(frozen=True)
class Tiles:
    """Figures side by side."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Lines:
    """Sentences, as a list."""

    kind: ClassVar[str] = "lines"
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """An SVG of `experiments.plot`. name: of the region that it may be scrolled in."""

    kind: ClassVar[str] = "chart"
    name: str
    svg: str


@dataclass(frozen=True)
class Code:
    """A command."""

    kind: ClassVar[str] = "code"
    text: str


Part = Table | Tiles | Lines | Chart | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; lead: a sentence before it."""

    heading: str
    parts: tuple[Part, ...]
    lead: str = ""

    @property
    def anchor(self) -> str:
        """By which a link leads to it."""
        return self.heading.lower().replace(" ", "-")


@dataclass(frozen=True)
class Page:
    """title: what was done to what; lead: one line below; sections: those without parts are left out."""

    title: str
    lead: str
    sections: tuple[Section, ...]

    def with_command(self, words: str) -> Page:
        """The same, with the command that repeats it at the end."""
        last = Section("Repeat it", (Code(words),), "The command that made this page:")
        return Page(self.title, self.lead, (*self.sections, last))


def section(heading: str, *parts: Part | None, lead: str = "") -> Section:
    """A section of those parts that there are."""
    return Section(heading, tuple(p for p in parts if p is not None), lead)


def tiles_of(tiles: Iterable[Tile]) -> Tiles | None:
    """Figures side by side; None without."""
    found = tuple(tiles)
    return Tiles(found) if found else None


def lines_of(lines: Iterable[str]) -> Lines | None:
    """Sentences, each once; None without."""
    found = tuple(dict.fromkeys(lines))
    return Lines(found) if found else None


def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


__all__ = [
    "Cell", "Chart", "Code", "Column", "Lines", "Page", "Section", "Table", "Tile", "Tiles", "lines_of", "section",
    "tiles_of",
]  # fmt: skip
