"""Charts: what stands where in the picture, read back from its XML."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from onnxprune.experiments.plot import Curve, Span, cells, chart, spans, sparkline

SVG = "{http://www.w3.org/2000/svg}"
Point = tuple[float, float]


def ticks(root: ElementTree.Element, axis: str) -> dict[float, float]:
    """Value -> coordinate, of the ticks of an axis."""
    found = [t for t in root.iter(f"{SVG}text") if t.get("class") == axis]
    shift = 4 if axis == "y" else 0  # text stands a little lower than its line
    return {float((t.text or "").replace(",", "")): float(t.attrib[axis]) - shift for t in found}


def points(root: ElementTree.Element) -> list[list[Point]]:
    """Coordinates of the marks of each curve."""
    curves = [g for g in root.iter(f"{SVG}g") if g.get("class") == "curve"]
    marks = [[m.attrib["transform"] for m in g.iter(f"{SVG}path") if m.get("class") == "point"] for g in curves]
    return [[(float(x), float(y)) for m in of for x, y in [re.findall(r"-?[\d.]+", m)]] for of in marks]


def read_at(places: dict[float, float], coordinate: float, log: bool = False) -> float:
    """The value that stands at a coordinate, by two ticks that are not 0."""
    (a, at_a), (b, at_b) = [(v, at) for v, at in places.items() if v or not log][-2:]
    share = (coordinate - at_a) / (at_b - at_a)
    return a * (b / a) ** share if log else a + (b - a) * share


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_points_stand_where_the_ticks_say(log: bool, reverse: bool) -> None:
    x, y, z = [100.0, 50.0, 20.0, 5.0, 1.0], [0.98, 0.981, 0.979, math.nan, 0.3], [0.9, 0.8, 0.7, 0.6, 0.1]
    drawn = chart(
        [Curve("tickets", x, y, [v - 0.01 for v in y], [v + 0.01 for v in y]), Curve("random", x, z, dashed=True)],
        title="a <title> & more", x_label="weights left (%)", y_label="accuracy (share)", log_x=log, reverse_x=reverse,
        lines={"dense": 0.985},
    )  # fmt: skip
    root = ElementTree.fromstring(drawn)
    at_x, at_y = ticks(root, "x"), ticks(root, "y")
    assert len(at_x) >= 4 and len(at_y) >= 4
    assert (at_x[max(at_x)] < at_x[min(at_x)]) == reverse and at_y[max(at_y)] < at_y[min(at_y)]
    finite = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    for found, expected in zip(points(root), [finite, list(zip(x, z, strict=True))], strict=True):
        assert len(found) == len(expected)
        for (px, py), (vx, vy) in zip(found, expected, strict=True):
            assert read_at(at_x, px, log) == pytest.approx(vx, rel=2e-3, abs=0.0 if log else 0.1)
            assert read_at(at_y, py) == pytest.approx(vy, abs=1e-3)
    (level,) = [p for p in root.iter(f"{SVG}path") if p.get("class") == "level"]
    assert read_at(at_y, float(level.attrib["d"].split()[-1])) == pytest.approx(0.985, abs=1e-3)
    bars = [p.attrib["d"] for p in root.iter(f"{SVG}path") if p.get("class") == "bars"]
    low, high = map(float, re.findall(r"[\d.]+", bars[0])[1:3])
    assert read_at(at_y, low) == pytest.approx(0.97, abs=1e-3) and read_at(at_y, high) == pytest.approx(0.99, abs=1e-3)
    assert root.findtext(f"{SVG}title") == "a <title> & more"
    names = [t.text for t in root.iter(f"{SVG}text") if t.get("class") == "name"]
    assert names == ["tickets", "random"] and drawn.count("stroke-dasharray") == 2 + 1  # line and key; the style's


def test_zero_stands_apart_on_a_logarithmic_axis() -> None:
    drawn = chart([Curve("a", [0, 10, 1000], [3, 2, 1])], title="", x_label="step", y_label="error", log_x=True)
    root = ElementTree.fromstring(drawn)
    at, (found,) = ticks(root, "x"), points(root)
    assert found[0][0] == pytest.approx(at[0.0], abs=0.01) and at[0.0] < at[10.0] - 20
    assert [read_at(at, x, log=True) for x, _ in found[1:]] == pytest.approx([10, 1000], rel=1e-3)


def test_what_has_no_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="no place for -1"):
        chart([Curve("a", [-1, 1], [0, 1])], title="", x_label="", y_label="", log_x=True)
    with pytest.raises(ValueError, match="finite"):
        chart([Curve("a", [1], [math.nan])], title="", x_label="", y_label="")
    with pytest.raises(ValueError, match="one length"):
        Curve("a", [1, 2], [1, 2], low=[0], high=[2])


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-7, 2e-7], [-3e6, 4e6]])
def test_ticks_of_any_span(values: list[float]) -> None:
    x = [float(k) for k in range(len(values))]
    root = ElementTree.fromstring(chart([Curve("a", x, values)], title="", x_label="", y_label=""))
    at = ticks(root, "y")
    assert 3 <= len(at) <= 8
    assert [read_at(at, y) for _, y in points(root)[0]] == pytest.approx(values, abs=1e-3 * (max(at) - min(at)))


def test_points_alone() -> None:
    """Marks without a line between them, nor in the legend."""
    curves = [Curve("a", [0, 1], [0, 1]), Curve("b", [0, 1], [1, 0], joined=False)]
    root = ElementTree.fromstring(chart(curves, title="t", x_label="x", y_label="y"))
    drawn = [g for g in root.iter(f"{SVG}g") if g.get("class") in ("curve", "key")]
    lines = [sum(p.get("fill") == "none" for p in g.iter(f"{SVG}path")) for g in drawn]
    assert lines == [1, 1, 0, 0] and [len(p) for p in points(root)] == [2, 2]


def test_spans_stand_where_the_ticks_say() -> None:
    """From the lowest to the highest value, the middle marked, the rows in order."""
    rows = [Span("a <b>", 1.0, 2.0, 4.0), Span("x" * 60, 0.5, 0.7, 3.0)]
    root = ElementTree.fromstring(spans(rows, title="times", x_label="ms"))
    at_x = ticks(root, "x")
    assert min(at_x) == 0
    drawn = [g for g in root.iter(f"{SVG}g") if g.get("class") == "span"]
    heights = []
    for g, row in zip(drawn, rows, strict=True):
        line, dot = g[1], g[2]
        low, y, high = map(float, re.findall(r"[\d.]+", line.attrib["d"]))
        found = [read_at(at_x, x) for x in (low, float(dot.attrib["cx"]), high)]
        assert found == pytest.approx([row.low, row.middle, row.high], abs=0.02)
        assert float(dot.attrib["cy"]) == y
        heights.append(y)
    names = [t.text for t in root.iter(f"{SVG}text") if t.get("class") == "y"]
    assert heights == sorted(heights) and names == ["a <b>", "…" + "x" * 35]
    with pytest.raises(ValueError, match="needs a row"):
        spans([], title="", x_label="")


def test_cells_are_as_strong_as_their_numbers() -> None:
    """By orders of magnitude; one of them framed."""
    rows = {"a": [0.0, 1e-3, 1e-2], "b": [1e-2, 1e-1, 1e-1]}
    root = ElementTree.fromstring(cells(rows, ["1", "2", "3"], title="map", x_label="x", chosen={"b": 1}))
    drawn = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "cell"]
    strength = [float(r.attrib["fill-opacity"]) for r in drawn]
    assert strength[0] == strength[1] < strength[2] == strength[3] < strength[4] == strength[5]
    assert strength[2] - strength[1] == pytest.approx(strength[4] - strength[2], abs=2e-3)
    (framed,) = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "chosen"]
    assert [framed.attrib[k] for k in "xy"] == [drawn[4].attrib[k] for k in "xy"]
    assert drawn[4][0].text == "b, 2: 0.1"
    with pytest.raises(ValueError, match="needs a row"):
        cells({}, ["1"], title="", x_label="")


def test_small_curves_share_a_scale() -> None:
    """What lies `beside` says how high a point stands; a dot marks one."""

    def heights(y: list[float], mark: int | None) -> tuple[list[float], list[str]]:
        root = ElementTree.fromstring(sparkline([0, 0.5, 1], y, [0, 1e-3, 1e-1], title="a & b", mark=mark))
        (path,) = root.iter(f"{SVG}path")
        assert root[0].text == "a & b"
        dots = [c.attrib["cy"] for c in root.iter(f"{SVG}circle")]
        return [float(v) for v in re.findall(r"[\d.]+", path.attrib["d"])][1::2], dots

    (none, low, middle), dots = heights([0, 1e-3, 1e-2], 1)
    assert none == low > middle and dots == [f"{low:.2f}"]
    (_, middle_again, high), dots = heights([0, 1e-2, 1e-1], None)
    assert middle_again == middle > high and middle - high == pytest.approx(low - middle, abs=0.02) and dots == []
