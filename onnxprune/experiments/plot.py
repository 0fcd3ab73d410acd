"""Charts as SVG text, legible on light and on dark ground: curves with error bars and bands, points of a plane with a
region of it, spans in rows, maps of cells, a small curve for a line of text; axes, a legend.

Colours are those of Okabe and Ito, which the colour-blind tell apart, without the two that are too light on white;
where they come round again the marks are others.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from onnxprune.graph.arrays import Array

WIDTH, HEIGHT = 720.0, 300.0  # of a chart of curves, and of the part within the axes
LEFT, RIGHT, TOP, BOTTOM = 80.0, 24.0, 16.0, 50.0  # around it
SIDE = LEFT + HEIGHT + RIGHT  # width of a picture that is as wide as high within the axes
ROOM = 0.04  # of what values span, between them and the ends of an axis
CELLS = 100  # of a region, along each axis
LINE = 20.0  # height of a line of text
LETTER = 6.8  # width of a letter, on average
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#808080")
MARKS = ("circle", "square", "triangle", "diamond", "cross")
STYLE = (  # of a chart alone: on a page it must not reach what stands beside it
    ".chart{color-scheme:light dark}.chart text{font:13px system-ui,sans-serif;fill:#222}"
    ".chart .title{font-size:16px;font-weight:600}.chart .ground{fill:#fff}.chart .axis{stroke:#444;fill:none}"
    ".chart .grid{stroke:#ddd}.chart .level{stroke:#666;stroke-dasharray:2 4}.chart .chosen{stroke:#111}"
    "@media(prefers-color-scheme:dark){.chart text{fill:#eee}.chart .ground{fill:#16181c}.chart .axis{stroke:#bbb}"
    ".chart .grid{stroke:#363a40}.chart .level{stroke:#aaa}.chart .chosen{stroke:#fff}}"
)
NAMED = 36  # letters of a row's name, at most
ROW = 22.0  # height of a row
DECADES = 5.0  # orders of magnitude that are told apart
Place = Callable[[float], float]  # value -> coordinate


@dataclass(frozen=True)
class Curve:
    """Points `(x, y)`, in the order in which they are joined, with `low` and `high` about y where there are several
    runs. A y that is no finite number is a gap. dashed: for controls; joined: False for points alone."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    joined: bool = True

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
    keys = list(_flowing([c.name for c in curves]))
    legend = 1 + max(row for row, _ in keys)
    frame = _Frame(title, x_label, y_label, WIDTH, legend, says=_listed(c.name for c in curves))
    left, right, top, bottom = frame.ends
    at_x, x_ticks = _axis([p[0] for p in points], (right, left) if reverse_x else (left, right), log_x)
    at_y, y_ticks = _linear([*(v for p in points for v in p[1:]), *lines.values()], (bottom, top))
    out = frame.drawn(at_x, x_ticks, at_y, y_ticks)
    for name, y in lines.items():
        out += [_line("level", left, at_y(y), right, at_y(y)), _text(right - 4, at_y(y) - 5, name, "level-name", "end")]
    for k, (curve, (row, x)) in enumerate(zip(curves, keys, strict=True)):
        look, y = _Look.of(k, curve.dashed), bottom + BOTTOM + 8 + LINE * row
        out.append(_drawn(curve, look, at_x, at_y))
        line = look.joined([(x, y), (x + 26, y)]) if curve.joined else ""
        out += [f'<g class="key">{line}{look.mark(x + 13, y, "")}',
                _text(x + 33, y + 4, curve.name, "name", "start"), "</g>"]  # fmt: skip
    return "\n".join([*out, "</svg>", ""])


def plane(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    region: Callable[[Array, Array], Array] | None,
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> str:
    """An SVG file of groups of points, and a region of their plane, which is as wide as high.

    points: name -> x and y, drawn in this order, the last one in colour; region: x and y of middles of cells, `(n,)` ->
    whether they belong to it; None for no region. Both axes go through 0. Raises `ValueError` without points.
    """
    if not any(len(x) for x, _ in points.values()):
        raise ValueError("a picture needs points")
    frame = _Frame(title, x_label, y_label, SIDE, 1, says=_listed(points))
    left, right, top, bottom = frame.ends
    reach = [max(abs(v) for x_y in points.values() for v in x_y[axis]) or 1.0 for axis in (0, 1)]
    (at_x, x_ticks), (at_y, y_ticks) = (
        _linear([-r, r], ends) for r, ends in zip(reach, ((left, right), (bottom, top)), strict=True)
    )
    out = frame.drawn(at_x, x_ticks, at_y, y_ticks)
    if region is not None:
        out.append(f'<path class="region" fill="{COLOURS[0]}" fill-opacity=".18" d="{_cells(region, reach, frame)}"/>')
    out += [_line("level", at_x(0), top, at_x(0), bottom), _line("level", left, at_y(0), right, at_y(0))]
    for (name, (xs, ys)), (_, x) in zip(points.items(), _flowing(list(points)), strict=True):
        colour = COLOURS[0] if name == list(points)[-1] else COLOURS[-1]
        look, size = f'fill="none" stroke="{colour}" stroke-linecap="round"', 'stroke-width="2.6"'
        dots = "".join(f"M{at_x(a):.1f} {at_y(b):.1f}h0" for a, b in zip(xs, ys, strict=True))
        out.append(f'<path class="points" {look} {size} d="{dots}"><title>{escape(name)}</title></path>')
        y = bottom + BOTTOM + 8
        key = (
            f'<path {look} stroke-width="8" d="M{x + 13:.2f} {y:.2f}h0"/>{_text(x + 24, y + 4, name, "name", "start")}'
        )
        out.append(f'<g class="key">{key}</g>')
    return "\n".join([*out, "</svg>", ""])


@dataclass(frozen=True)
class Span:
    """A row: where its values lie. name: what stands before it; low, middle, high: in the unit of the axis."""

    name: str
    low: float
    middle: float
    high: float


def spans(rows: Sequence[Span], *, title: str, x_label: str) -> str:
    """An SVG file of spans one below the other, from 0 on, each with its middle marked. Raises `ValueError` without
    rows."""
    if not rows:
        raise ValueError("a chart needs a row")
    frame = _in_rows([r.name for r in rows], title, x_label, _listed(f"{r.name}: {r.middle:.4g}" for r in rows))
    left, right, top, _ = frame.ends
    at_x, x_ticks = _linear([0.0, *(r.high for r in rows)], (left, right))
    names = [(float(k), _short(r.name)) for k, r in enumerate(rows)]
    out = frame.drawn(at_x, [t for t in x_ticks if t[0] >= 0], lambda k: top + (k + 0.5) * ROW, names)
    for k, r in enumerate(rows):
        y, colour = top + (k + 0.5) * ROW, COLOURS[0]
        tip = f"<title>{escape(r.name)}: {r.middle:.4g} ({r.low:.4g} to {r.high:.4g})</title>"
        out.append(
            f'<g class="span">{tip}<path stroke="{colour}" stroke-width="6" stroke-opacity=".35" '
            f'd="M{at_x(r.low):.2f} {y:.2f}H{at_x(r.high):.2f}"/>'
            f'<circle class="point" fill="{colour}" r="4.5" cx="{at_x(r.middle):.2f}" cy="{y:.2f}"/></g>'
        )
    return "\n".join([*out, "</svg>", ""])


def cells(
    rows: Mapping[str, Sequence[float]],
    columns: Sequence[str],
    *,
    title: str,
    x_label: str,
    chosen: Mapping[str, int] | None = None,
) -> str:
    """An SVG file of a table of numbers above 0 as a map: the stronger, the larger, by orders of magnitude.

    rows: name -> a number per column; chosen: name -> the column that is framed. Raises `ValueError` without rows.
    """
    if not rows:
        raise ValueError("a map needs a row")
    frame = _in_rows(list(rows), title, x_label, f"{len(rows)} rows; the table beside it has the numbers")
    left, right, top, _ = frame.ends
    wide, chosen = (right - left) / len(columns), chosen or {}
    names = [(float(k), _short(name)) for k, name in enumerate(rows)]
    every = math.ceil(LETTER * (1 + max(map(len, columns))) / wide)  # of so many names one has room
    x_ticks = [(float(k), name) for k, name in enumerate(columns) if not (k + 1) % every]
    at_x, at_y = (lambda k: left + (k + 0.5) * wide), (lambda k: top + (k + 0.5) * ROW)
    out = frame.drawn(at_x, x_ticks, at_y, names, grid=False)
    strength = _by_magnitude([v for values in rows.values() for v in values])
    for k, (name, values) in enumerate(rows.items()):
        for j, value in enumerate(values):
            tip = f"<title>{escape(name)}, {escape(columns[j])}: {value:.3g}</title>"
            x, y = left + j * wide + 1, top + k * ROW + 1
            place = f'x="{x:.2f}" y="{y:.2f}" width="{wide - 2:.2f}" height="{ROW - 2:g}"'
            colour = f'fill="{COLOURS[0]}" fill-opacity="{0.04 + 0.9 * strength(value):.3f}"'
            out.append(f'<rect class="cell" {place} {colour}>{tip}</rect>')
            if chosen.get(name) == j:
                out.append(f'<rect class="chosen" {place} fill="none" stroke-width="2"/>')
    return "\n".join([*out, "</svg>", ""])


def sparkline(
    x: Sequence[float], y: Sequence[float], beside: Sequence[float], *, title: str, mark: int | None = None
) -> str:
    """A curve as high as a line of text, without axes, as SVG: y by orders of magnitude, on the scale of all numbers
    `beside`; mark: the point that gets a dot."""
    wide, high = 112.0, 26.0
    at_x = _between(min(x), max(*x, min(x) + 1e-9), (5.0, wide - 5))
    at_y, strength = _between(0, 1, (high - 5, 5.0)), _by_magnitude(beside)
    points = [(at_x(a), at_y(strength(b))) for a, b in zip(x, y, strict=True)]
    dot = ""
    if mark is not None:
        dot = f'<circle fill="{COLOURS[1]}" r="4" cx="{points[mark][0]:.2f}" cy="{points[mark][1]:.2f}"/>'
    way = "L".join(f"{a:.2f} {b:.2f}" for a, b in points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="spark" viewBox="0 0 {wide:g} {high:g}" width="{wide:g}" '
        f'height="{high:g}" role="img"><title>{escape(title)}</title>'
        f'<path fill="none" stroke="{COLOURS[0]}" stroke-width="2" stroke-linejoin="round" d="M{way}"/>{dot}</svg>'
    )


def _by_magnitude(values: Sequence[float]) -> Callable[[float], float]:
    """Number -> its place between 0 and 1 among the values, by orders of magnitude, the lowest `DECADES` below the
    largest."""
    high = max((math.log10(v) for v in values if v > 0), default=0.0)
    low = max(min((math.log10(v) for v in values if v > 0), default=0.0), high - DECADES)
    return lambda v: 0.0 if v <= 10**low else (math.log10(v) - low) / (high - low)


def _in_rows(names: Sequence[str], title: str, x_label: str, says: str) -> _Frame:
    """The frame of a chart with names at the left and a row for each."""
    left = 24 + LETTER * max(len(_short(name)) for name in names)
    return _Frame(title, x_label, "", WIDTH, 0, left=left, height=ROW * len(names), says=says)


def _short(name: str) -> str:
    """The end of a long name, which tells it from others."""
    return name if len(name) <= NAMED else "…" + name[1 - NAMED :]


def _listed(names: Iterable[str]) -> str:
    return "; ".join(names)


def _cells(region: Callable[[Array, Array], Array], reach: Sequence[float], frame: _Frame) -> str:
    """The cells of a plane that belong to a region, those beside each other as one: the data of a path."""
    left, right, top, bottom = frame.ends
    (x, width), (y, height) = (
        ((np.arange(CELLS) + 0.5) / CELLS * 2 - 1, abs(b - a) / CELLS) for a, b in ((left, right), (top, bottom))
    )
    room = 1 + 2 * ROOM  # as the axes have it
    xs, ys = np.meshgrid(x * reach[0] * room, -y * reach[1] * room)
    inside = np.zeros((CELLS, CELLS + 2), int)
    inside[:, 1:-1] = np.reshape(region(xs.ravel(), ys.ravel()), xs.shape)
    out = []
    for k, row in enumerate(inside):
        edges = np.flatnonzero(np.diff(row))
        for a, b in edges.reshape(-1, 2):
            out.append(f"M{left + a * width:.2f} {top + k * height:.2f}h{(b - a) * width:.2f}v{height:.2f}"
                       f"h{(a - b) * width:.2f}Z")  # fmt: skip
    return "".join(out)


def stacked(charts: Sequence[str], columns: int = 1) -> str:
    """Charts one below the other, or in rows of so many, as one SVG file."""
    sizes = [[float(c.split(f' {side}="', 1)[1].split('"', 1)[0]) for side in ("width", "height")] for c in charts]
    width = max(w for w, _ in sizes)
    tops, y = [], 0.0
    for k in range(0, len(charts), columns):
        row = sizes[k : k + columns]
        tops += [y] * len(row)
        y += max(h for _, h in row)
    whole = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * columns:g}" height="{y:g}" role="img">'
    placed = (
        c.replace("<svg ", f'<svg x="{k % columns * width:g}" y="{top:g}" ', 1)
        for k, (c, top) in enumerate(zip(charts, tops, strict=True))
    )
    return "\n".join([whole, *placed, "</svg>", ""])


@dataclass(frozen=True)
class _Frame:
    """What stands around a chart. width: of the picture; rows: of the legend; left: room for what is written there;
    height: within the axes; says: what is in it, in words."""

    title: str
    x_label: str
    y_label: str
    width: float
    rows: int
    left: float = LEFT
    height: float = HEIGHT
    says: str = ""

    @property
    def heads(self) -> list[str]:
        """The title, line by line."""
        return textwrap.wrap(self.title, round((self.width - LEFT) / 9.3))

    @property
    def _described(self) -> str:
        axes = f"{self.y_label} against {self.x_label}" if self.y_label else self.x_label
        return f"{axes}: {self.says}" if self.says else axes

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """Where the axes end: left, right, top, bottom."""
        top = TOP + LINE * len(self.heads)
        return self.left, self.width - RIGHT, top, top + self.height

    def drawn(self, at_x: Place, x_ticks: Ticks, at_y: Place, y_ticks: Ticks, *, grid: bool = True) -> list[str]:
        """The beginning of the file: ground, title, axes and their labels; grid: lines at the values of y."""
        left, right, top, bottom = self.ends
        height = bottom + BOTTOM + LINE * self.rows
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {self.width:g} {height:g}" '
            f'width="{self.width:g}" height="{height:g}" role="img">',
            f"<title>{escape(self.title)}</title><desc>{escape(self._described)}</desc><style>{STYLE}</style>",
            f'<rect class="ground" width="{self.width:g}" height="{height:g}"/>',
            *(_text(min(left, LEFT), 24 + LINE * k, head, "title") for k, head in enumerate(self.heads)),
        ]
        for value, label in y_ticks:
            out += [_line("grid", left, at_y(value), right, at_y(value))] * grid
            out.append(_text(left - 8, at_y(value) + 4, label, "y", "end"))
        for value, label in x_ticks:
            out += [
                _line("axis", at_x(value), bottom, at_x(value), bottom + 5),
                _text(at_x(value), bottom + 20, label, "x"),
            ]
        return [
            *out,
            f'<path class="axis" d="M{left:g} {top:g}V{bottom:g}H{right:g}"/>',
            _text((left + right) / 2, bottom + 40, self.x_label, "label"),
            f'<g transform="translate(16 {(top + bottom) / 2:g}) rotate(-90)">{_text(0, 0, self.y_label, "label")}</g>',
        ]


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
        if curve.joined:
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
    room = ROOM * (high - low) or 0.1 * abs(high) or 1.0
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


__all__ = ["Curve", "Span", "cells", "chart", "plane", "spans", "sparkline", "stacked"]
