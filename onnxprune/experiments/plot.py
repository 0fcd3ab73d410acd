"""Line charts as SVG text: curves with error bars and bands, axes, a legend, legible on light and on dark ground.

Colours are those of Okabe and Ito, which the colour-blind tell apart, without the two that are too light on white;
where they come round again the marks are others.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720.0, 300.0  # of the picture, and of the part within the axes
LEFT, RIGHT, TOP, BOTTOM = 70.0, 24.0, 16.0, 50.0  # around it
LINE = 20.0  # height of a line of text
LETTER = 6.8  # width of a letter, on average
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#808080")
MARKS = ("circle", "square", "triangle", "diamond", "cross")
STYLE = (
    "svg{color-scheme:light dark}text{font:13px system-ui,sans-serif;fill:#222}.title{font-size:16px;font-weight:600}"
    ".ground{fill:#fff}.axis{stroke:#444;fill:none}.grid{stroke:#ddd}.level{stroke:#666;stroke-dasharray:2 4}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}.ground{fill:#16181c}.axis{stroke:#bbb}.grid{stroke:#363a40}"
    ".level{stroke:#aaa}}"
)
Place = Callable[[float], float]  # value -> coordinate


@dataclass(frozen=True)
class Curve:
    """Points `(x, y)`, in the order in which they are joined, with `low` and `high` about y where there are several
    runs. A y that is no finite number is a gap. dashed: for controls."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False

    def __post_init__(self) -> None:
        given = [self.y, *(v for v in (self.low, self.high) if v is not None)]
        if any(len(v) != len(self.x) for v in given) or (self.low is None) != (self.high is None):
            raise ValueError(f"curve {self.name}: x, y, low and high are of one length, low and high come together")

    def points(self) -> Iterator[tuple[float, float, float, float]]:
        """x, y, low, high of each point; low and high are y where there are none."""
        low, high = self.low or self.y, self.high or self.y
        for x, y, a, b in zip(self.x, self.y, low, high, strict=True):
            bounds = math.isfinite(a) and math.isfinite(b)
            yield x, y, a if bounds else y, b if bounds else y


def chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    reverse_x: bool = False,
    lines: Mapping[str, float] | None = None,
) -> str:
    """An SVG file of some curves. Labels name the units, as "weights left (%)".

    log_x: a logarithmic axis, on which 0, where a curve has it, stands apart at the low end; reverse_x: from high to
    low; lines: name -> y of horizontal lines. Raises `ValueError` where no point is a finite number, or for an x below
    0 on a logarithmic axis.
    """
    lines = lines or {}
    points = [p for c in curves for p in c.points() if math.isfinite(p[1])]
    if not points:
        raise ValueError("a chart needs a point that is a finite number")
    heads = textwrap.wrap(title, 70)
    top = TOP + LINE * len(heads)
    right, bottom = WIDTH - RIGHT, top + HEIGHT
    at_x, x_ticks = _axis([p[0] for p in points], (right, LEFT) if reverse_x else (LEFT, right), log_x)
    at_y, y_ticks = _linear([*(v for p in points for v in p[1:]), *lines.values()], (bottom, top))
    keys = list(_flowing([c.name for c in curves]))
    height = bottom + BOTTOM + LINE * (1 + max(row for row, _ in keys))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" '
        f'height="{height:g}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH:g}" height="{height:g}"/>',
        *(_text(LEFT, 24 + LINE * k, head, "title") for k, head in enumerate(heads)),
    ]
    for value, label in y_ticks:
        out += [
            _line("grid", LEFT, at_y(value), right, at_y(value)),
            _text(LEFT - 8, at_y(value) + 4, label, "y", "end"),
        ]
    for value, label in x_ticks:
        out += [
            _line("axis", at_x(value), bottom, at_x(value), bottom + 5),
            _text(at_x(value), bottom + 20, label, "x"),
        ]
    out += [
        f'<path class="axis" d="M{LEFT:g} {top:g}V{bottom:g}H{right:g}"/>',
        _text((LEFT + right) / 2, bottom + 40, x_label, "label"),
        f'<g transform="translate(16 {(top + bottom) / 2:g}) rotate(-90)">{_text(0, 0, y_label, "label")}</g>',
    ]
    for name, y in lines.items():
        out += [_line("level", LEFT, at_y(y), right, at_y(y)), _text(right - 4, at_y(y) - 5, name, "level-name", "end")]
    for k, (curve, (row, x)) in enumerate(zip(curves, keys, strict=True)):
        look, y = _Look.of(k, curve.dashed), bottom + BOTTOM + 8 + LINE * row
        out.append(_drawn(curve, look, at_x, at_y))
        out += [f'<g class="key">{look.joined([(x, y), (x + 26, y)])}{look.mark(x + 13, y, "")}',
                _text(x + 33, y + 4, curve.name, "name", "start"), "</g>"]  # fmt: skip
    return "\n".join([*out, "</svg>", ""])


def stacked(charts: Sequence[str]) -> str:
    """Charts one below the other, as one SVG file."""
    heights = [float(c.split(' height="', 1)[1].split('"', 1)[0]) for c in charts]
    tops = [sum(heights[:k]) for k in range(len(charts))]
    whole = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:g}" height="{sum(heights):g}" role="img">'
    return "\n".join(
        [whole, *(c.replace("<svg ", f'<svg y="{y:g}" ', 1) for c, y in zip(charts, tops, strict=True)), "</svg>", ""]
    )


@dataclass(frozen=True)
class _Look:
    colour: str
    shape: str
    dash: str

    @staticmethod
    def of(k: int, dashed: bool) -> _Look:
        """That of curve k; marks go on once more where colours come round."""
        shape = MARKS[(k + k // len(COLOURS)) % len(MARKS)]
        return _Look(COLOURS[k % len(COLOURS)], shape, ' stroke-dasharray="7 5"' if dashed else "")

    def joined(self, points: Iterable[tuple[float, float]]) -> str:
        """A line through points."""
        way = "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
        return f'<path fill="none" stroke="{self.colour}" stroke-width="2"{self.dash} d="M{way}"/>'

    def mark(self, x: float, y: float, tip: str) -> str:
        """The mark of a point; tip: what is said where the pointer rests on it."""
        ways = {
            "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z", "square": "M-3.5 -3.5h7v7h-7Z",
            "triangle": "M0 -4.5L4.5 3.5H-4.5Z", "diamond": "M0 -5L5 0L0 5L-5 0Z",
            "cross": "M-4 -2l2 -2l2 2l2 -2l2 2l-2 2l2 2l-2 2l-2 -2l-2 2l-2 -2l2 -2Z",
        }  # fmt: skip
        said = f"<title>{escape(tip)}</title>" if tip else ""
        where = f'transform="translate({x:.2f} {y:.2f})"'
        return f'<path class="point" {where} fill="{self.colour}" d="{ways[self.shape]}">{said}</path>'


def _drawn(curve: Curve, look: _Look, at_x: Place, at_y: Place) -> str:
    """The band, the line, the bars and the marks of a curve; each run of points without a gap by itself."""
    runs: list[list[tuple[float, float, float, float]]] = [[]]
    for point in curve.points():
        if math.isfinite(point[1]):
            runs[-1].append(point)
        else:
            runs.append([])
    out = [f'<g class="curve"><title>{escape(curve.name)}</title>']
    for run in filter(None, runs):
        if curve.low is not None:
            edge = [(at_x(x), at_y(b)) for x, _, _, b in run] + [(at_x(x), at_y(a)) for x, _, a, _ in run[::-1]]
            band = "L".join(f"{x:.2f} {y:.2f}" for x, y in edge)
            bars = "".join(f"M{at_x(x):.2f} {at_y(a):.2f}V{at_y(b):.2f}" for x, _, a, b in run)
            out.append(f'<path class="band" fill="{look.colour}" fill-opacity=".15" d="M{band}Z"/>')
            out.append(f'<path class="bars" stroke="{look.colour}" stroke-width="1.3" d="{bars}"/>')
        out.append(look.joined((at_x(x), at_y(y)) for x, y, _, _ in run))
        for x, y, a, b in run:
            sure = f" ({a:.4g} to {b:.4g})" if a < b else ""
            out.append(look.mark(at_x(x), at_y(y), f"{curve.name}: {x:.6g}, {y:.4g}{sure}"))
    return "".join([*out, "</g>"])


def _flowing(names: Sequence[str]) -> Iterator[tuple[int, float]]:
    """Row and x of the entries of a legend, which go on in the next row where one is full."""
    row, x = 0, LEFT
    for name in names:
        width = 33 + LETTER * len(name) + 22
        if x > LEFT and x + width > WIDTH:
            row, x = row + 1, LEFT
        yield row, x
        x += width


def _text(x: float, y: float, text: str, kind: str, anchor: str = "") -> str:
    anchor = anchor or ("start" if kind == "title" else "middle")
    return f'<text class="{kind}" x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(kind: str, x: float, y: float, x_end: float, y_end: float) -> str:
    return f'<path class="{kind}" d="M{x:.2f} {y:.2f}L{x_end:.2f} {y_end:.2f}"/>'


# axes

Ticks = list[tuple[float, str]]  # value, and what is written there
MANY = 6  # ticks


def _axis(values: Sequence[float], ends: tuple[float, float], log: bool) -> tuple[Place, Ticks]:
    return _logarithmic(values, ends) if log else _linear(values, ends)


def _linear(values: Sequence[float], ends: tuple[float, float]) -> tuple[Place, Ticks]:
    """Where values stand between two coordinates, with a little room at both, and the ticks."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - room, high + room
    step = _step(high - low)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [(k * step, f"{k * step:,.{digits}f}") for k in range(first, last + 1)]
    return _between(low, high, ends), ticks


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten that divides a span into at most `MANY` parts.

    >>> _step(1.0), _step(0.35), _step(1200)
    (0.2, 0.1, 200.0)
    """
    power = 10.0 ** math.floor(math.log10(span / MANY))
    return next(m * power for m in (1, 2, 5, 10) if m * power * MANY >= span * (1 - 1e-9))


def _logarithmic(values: Sequence[float], ends: tuple[float, float]) -> tuple[Place, Ticks]:
    if min(values) < 0:
        raise ValueError(f"a logarithmic axis has no place for {min(values):g}")
    positive = [math.log10(v) for v in values if v > 0] or [0.0]
    low, high = min(positive), max(positive)
    apart = low - max(0.2 * (high - low), 0.2)  # the place of 0
    start = apart if min(values) == 0 else low
    room = 0.04 * (high - start) or 0.5
    place = _between(start - room, high + room, ends)
    few = (1, 2, 5) if high - low < 2.5 else (1,)
    decades = range(math.floor(low - room), math.ceil(high + room) + 1)
    shown = [(e + math.log10(m), m * 10.0**e) for e in decades for m in few]
    ticks = [(v, f"{v:,.0f}" if v >= 1 else f"{v:g}") for at, v in shown if low - room <= at <= high + room]
    if len(ticks) < 3:  # it spans less than a decade
        ticks = [(v, label) for v, label in _linear([10**low, 10**high], ends)[1] if v > 0]
    return lambda v: place(math.log10(v) if v > 0 else apart), [*([(0.0, "0")] if start < low else []), *ticks]


def _between(low: float, high: float, ends: tuple[float, float]) -> Place:
    first, last = ends
    return lambda v: first + (v - low) / (high - low) * (last - first)


__all__ = ["Curve", "chart", "stacked"]
