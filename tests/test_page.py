"""Pages of reports: they stand alone, hold what the JSON holds, escape what a model may be called, and a browser shows
them without a complaint; files that we write open in Netron."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import browser
import onnxprune
from conftest import ROOT, Cli
from models.nets import build, normal
from onnxprune.cli import app
from onnxprune.evaluation.changes import Answers, Change, changes
from onnxprune.page.pages import PAGES, page_of
from onnxprune.page.units import show_bytes, show_joules, show_number
from onnxprune.pipeline.layers import with_fused
from onnxprune.runtime.loadgen import Load, LoadedModel, LoadTest

# what one may be called that writes a model: none of it is markup
HOSTILE = (
    '<script>alert("1")</script>',
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</title><b>é</b>",
)
VOID = {"meta", "link", "br", "img", "hr", "input"}
MLP, DIGITS = ROOT / "models/digits_mlp.onnx", ROOT / "models/digits_mlp.npz"


@dataclass
class Element:
    """Of a page, as it was parsed."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None
    children: list[Element] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def all(self, *tags: str) -> Iterator[Element]:
        """The elements below, of these kinds, in order."""
        for child in self.children:
            if not tags or child.tag in tags:
                yield child
            yield from child.all(*tags)

    @property
    def text(self) -> str:
        return " ".join(" ".join([*self.words, *(c.text for c in self.children)]).split())


class Parser(HTMLParser):
    """Builds the elements of a page, and fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.at = self.root = Element("", {}, None)
        self.feed(html)
        self.close()
        assert self.at is self.root, f"<{self.at.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        element = Element(tag, {k: v or "" for k, v in attrs}, self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Element(tag, {k: v or "" for k, v in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag and self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.words.append(data)


@dataclass(frozen=True)
class Made:
    """A page that a command wrote, with the JSON of the same run."""

    path: Path
    html: str
    root: Element
    report: Any

    def section(self, heading: str) -> Element:
        (found,) = [s for s in self.root.all("section") if s.attributes["aria-label"] == heading]
        return found

    def cells(self, heading: str, caption: str) -> list[list[str]]:
        """The rows of a table."""
        (table,) = [t for t in self.section(heading).all("table") if next(t.all("caption")).text.startswith(caption)]
        return [[c.text for c in row.all("th", "td")] for row in next(table.all("tbody")).all("tr")]


def hostile_net() -> onnx.ModelProto:
    net = build(
        "h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Relu(k) u = MatMul(s, c) y = Identity(u)",
        "float[n,16]", "float[n,8]", a=normal(16, 32), b=normal(32, 32), c=normal(32, 8),
    )  # fmt: skip
    for node, name in zip([n for n in net.graph.node if n.op_type == "MatMul"], HOSTILE, strict=False):
        net.graph.initializer[["a", "b", "c"].index(node.input[1])].name = node.input[1] = f"w {name}"
        node.name = name
    net.producer_name = HOSTILE[3]
    return net


FROM_SCRATCH = "MLP --train DIGITS --evaluate DIGITS --init 0 --tune 2steps"
COMMANDS = {
    "prune": "MODEL --target-macs 60% --energy --calibration DATA --evaluate DATA -o OUT/small.onnx",
    "sensitivity": "sensitivity MODEL --calibration DATA --plot OUT/map.svg",
    "bench": "bench MODEL MODEL --seconds 0.1 --threads 1 --profile --no-memory",
    "evaluate": "evaluate MODEL DATA --against OTHER --metric agreement",
    "explore": "explore MODEL --calibration DATA --evaluate DATA --budget macs --left 0.8,0.6 -o OUT/explored",
    "lottery": f"lottery {FROM_SCRATCH} --rounds 1 --controls random -o OUT/lottery",
    "connect": "connect MODEL OTHER --evaluate DATA --points 3 -o OUT/line.svg",
    "proxies": "proxies MLP --calibration DIGITS --samples 4",
    "agree": "agree MODEL --calibration DATA --importance fisher",
    "supermask": "supermask MLP --init 0 --evaluate DIGITS --criterion movement,random",
}
SECTIONS = {
    "prune": ["In short", "Asked and got", "Before and after", "Checks", "Layers", "Sensitivity", "Changed answers",
              "Pinned", "Time"],
    "sensitivity": ["Damage"], "bench": ["Latency", "Size and outputs", "Operators", "Notes"],
    "evaluate": ["In short", "Changed answers"], "explore": ["Curve", "Points"], "lottery": ["Curve", "Rounds"],
    "connect": ["In short", "Chart", "Points"], "proxies": ["Networks"], "agree": ["Comparisons", "Groups"],
    "supermask": ["In short", "Masks"],
}  # fmt: skip


@functools.cache
def folder() -> Path:
    """Where models, data and pages of this process lie."""
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="onnxprune-page-"))
    net = hostile_net()
    (path / "net <i>&amp;.onnx").write_bytes(net.SerializeToString())
    rng = np.random.default_rng(0)
    for w in net.graph.initializer:
        values = onnx.numpy_helper.to_array(w)
        w.CopyFrom(onnx.numpy_helper.from_array((values + rng.normal(size=values.shape) * 0.1).astype("f"), w.name))
    (path / "other.onnx").write_bytes(net.SerializeToString())
    np.savez(path / "data.npz", x=rng.normal(size=(60, 16)).astype("f"), labels=np.arange(60) % 8)
    return path


def words_of(command: str) -> list[str]:
    places = {"MODEL": "net <i>&amp;.onnx", "OTHER": "other.onnx", "DATA": "data.npz"}
    known = {"MLP": str(MLP), "DIGITS": str(DIGITS), **{k: str(folder() / v) for k, v in places.items()}}
    return [known.get(w, w.replace("OUT", str(folder()))) for w in COMMANDS[command].split()]


@functools.cache
def made(command: str) -> Made:
    """A page, made once in a process."""
    page, data = folder() / f"{command}.html", folder() / f"{command}.json"
    assert app.run([*words_of(command), "--html", str(page), "--json", str(data), "-q"]) == 0
    html = page.read_text(encoding="utf-8")
    return Made(page, html, Parser(html).root, json.loads(data.read_text()))


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxprune.evaluation.measure.SECONDS", 0.2)
        yield
    made.cache_clear()
    shutil.rmtree(folder())
    folder.cache_clear()


def test_every_page_is_tried() -> None:
    assert set(COMMANDS) == set(SECTIONS) == set(PAGES)


# ---------------------------------------------------------------------------------------------------------------------
# What a page is
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_stands_alone(command: str) -> None:
    """No script, nothing from elsewhere, one language, one title, room for a phone."""
    page = made(command)
    everything = list(page.root.all())
    ids = [e.attributes["id"] for e in everything if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for e in everything:
        assert e.tag not in ("script", "iframe", "object", "img", "base")
        assert not [name for name in e.attributes if name.startswith("on") or name in ("src", "xlink:href")]
        link = e.attributes.get("href", "#" + ids[0])
        assert link == "data:," or link[1:] in ids
    styles = " ".join(e.text for e in page.root.all("style"))
    assert "url(" not in styles and "@import" not in styles
    (html,) = page.root.children
    assert html.attributes["lang"] == "en" and len(list(html.all("title", "h1"))) >= 2
    named = {e.attributes["name"]: e.attributes["content"] for e in page.root.all("meta") if "name" in e.attributes}
    assert "width=device-width" in named["viewport"]
    assert "prefers-color-scheme: dark" in styles and "@media print" in styles


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_can_be_read_by_ear(command: str) -> None:
    """Landmarks, headings in order, tables with captions and headers, charts with a title, regions with a name."""
    root = made(command).root
    for tag in ("header", "main", "footer", "h1"):
        assert len(list(root.all(tag))) == 1, tag
    levels = [int(e.tag[1]) for e in root.all("h1", "h2", "h3")]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    for table in root.all("table"):
        assert table.children[0].tag == "caption" and table.children[0].text
        head, body = next(table.all("thead")), next(table.all("tbody"))
        assert {e.attributes["scope"] for e in head.all("th")} == {"col"}
        assert all(row.children[0].attributes.get("scope") == "row" for row in body.all("tr"))
        assert {len(row.children) for row in body.all("tr")} == {len(list(head.all("th")))}
    for svg in root.all("svg"):
        assert svg.attributes["role"] == "img" and svg.children[0].tag == "title" and svg.children[0].text
        assert svg.attributes["class"] == "spark" or svg.children[1].tag == "desc"
    for e in root.all():
        if "scroll" in e.attributes.get("class", "").split():
            assert e.attributes["tabindex"] == "0" and e.attributes["role"] == "region" and e.attributes["aria-label"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_says_everything(command: str) -> None:
    page = made(command)
    found = [s.attributes["aria-label"] for s in page.root.all("section") if s.attributes["aria-label"] != "Notes"]
    assert found == [*(s for s in SECTIONS[command] if s != "Notes"), "Repeat it"]
    for note in page.report.get("notes", ()):
        assert note in page.section("Notes").text
    for section in page.root.all("section"):
        assert section.children[0].tag == "h2" and len(section.children) > 1


def test_names_are_no_markup() -> None:
    """Whatever names a model has, they are text, and they are there."""
    for command in ("prune", "sensitivity", "agree"):
        page = made(command)
        for name in HOSTILE[:2]:
            assert name in page.root.text, command
    assert "net <i>&amp;.onnx" in made("prune").root.text
    shown = onnxprune.prune(hostile_net(), channels=0.3, recover="none", measure=False)._repr_html_()
    assert "<script" not in shown and "<img" not in shown and HOSTILE[0] in Parser(shown).root.text


# ---------------------------------------------------------------------------------------------------------------------
# What stands on it
# ---------------------------------------------------------------------------------------------------------------------


def test_figures_of_a_pruning_are_those_of_the_json() -> None:
    page = made("prune")
    report = page.report
    rows = {cells[0].split(",")[0]: cells[1:] for cells in page.cells("Before and after", "The original")}
    for label, key, show in (("Parameters", "parameters", show_number), ("File", "bytes", show_bytes)):
        a, b = (report[side][key] for side in ("before", "after"))
        assert rows[label] == [show(a), show(b), f"{b / a:.1%}"]
    a, b = (report[side]["energy"]["joules"] for side in ("before", "after"))
    assert rows["Energy of a run (model)"] == [show_joules(a), show_joules(b), f"{b / a:.1%}"]
    low, high = report["after"]["latency_ratio_interval"]
    assert rows["Time of a run over the original's"][1] == f"{low:.2f} to {high:.2f}"
    layers = page.cells("Layers", "Layers with weights")
    assert len(layers) == len(report["layers"]) == 3
    for cells, layer in zip(layers, report["layers"], strict=True):
        a, b = layer["before"], layer["after"]
        assert cells[0] == layer["node"] and cells[2] == (
            f"{a['rows']} → {b['rows']}" if b["rows"] < a["rows"] else str(a["rows"])
        )
    changed = report["evaluation"]["changed"]
    assert changed["count"] == changed["lost"] + changed["gained"] + sum(
        c["before"] != c["label"] != c["after"] for c in changed["first"]
    )  # of fewer than 50
    assert len(page.cells("Changed answers", "Samples")) == changed["count"] > 0
    chosen = {g["name"]: g["chosen"] for g in report["levels"]}
    assert chosen == {g["name"]: g["kept"] for g in report["groups"]}
    assert len(page.cells("Sensitivity", "Damage")) == len(chosen)
    (pinned,) = page.cells("Pinned", "Pinned axes")
    assert pinned[3] == report["pinned"][0]["reason"]


def test_the_page_of_a_load_test() -> None:
    """LoadGen's figures by its terms, and what it finds wrong."""
    bad = Load(
        2, False, True, False, True, 100, 100, {"50": 0.001, "90": 0.002, "99": 0.01}, None, None, ("w <b>",), ()
    )
    test = LoadTest("single-stream", 1.0, (LoadedModel(HOSTILE[0], "a.onnx", (), (bad,)),), 16, "random, seed 0",
                    {"x": (1, 4)}, "6.0", "a CPU", 2, "1.2", ())  # fmt: skip
    root = Parser(page_of("bench", test.to_dict(), "onnxprune bench a.onnx")).root
    ((row,),) = [[[c.text for c in r.all("th", "td")] for r in t.all("tr")][1:] for t in root.all("table")]
    assert row == [HOSTILE[0], "2", "2", "-", "1", "10", "INVALID", "100", "100"]
    said = [e.text for e in root.all("li")]
    assert f"{HOSTILE[0]}, 2 threads: min queries not satisfied." in said
    assert f"{HOSTILE[0]}: LoadGen: w <b>" in said and not [s for s in said if "min duration" in s]


def test_the_command_repeats_it(tmp_path: Path) -> None:
    """Typed once more, it writes the same model."""
    page = made("prune")
    typed = next(page.section("Repeat it").all("code")).text
    first = (folder() / "small.onnx").read_bytes()
    words = shlex.split(typed)
    assert words[0] == "onnxprune" and str(page.path) in words
    again = [w.replace(str(folder() / "small.onnx"), str(tmp_path / "again.onnx")) for w in words[1:]]
    assert app.run(again) == 0
    assert (tmp_path / "again.onnx").read_bytes() == first


def test_a_result_shows_the_same_in_a_notebook() -> None:
    """What the page says, in a style that reaches nothing else."""
    result = onnxprune.prune(hostile_net(), channels=0.3, recover="none", measure=False)
    shown = Parser(result._repr_html_()).root
    assert result.report._repr_html_() == result._repr_html_()
    found = [s.attributes["aria-label"] for s in shown.all("section")]
    assert {"In short", "Before and after", "Layers", "Pinned"} <= set(found)
    assert not [e for e in shown.all() if "id" in e.attributes or e.tag in ("html", "body", "main", "header")]
    style = re.sub(r"/\*.*?\*/", "", " ".join(e.text for e in shown.all("style")))
    selectors = re.findall(r"([^{};]+)\{", re.sub(r"@media[^{]*\{", "", style))
    assert len(selectors) > 30
    for selector in ",".join(selectors).split(","):
        assert selector.strip().startswith((".onnxprune", ".chart")), selector


def test_templates_are_packed() -> None:
    """What setuptools packs has every file of the package that is no module."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["onnxprune"]
    templates = [p.relative_to(ROOT / "onnxprune").as_posix() for p in (ROOT / "onnxprune/page/templates").iterdir()]
    assert len(templates) == 5
    assert [t for t in templates if not any(fnmatch(t, pattern) for pattern in data)] == []


WRONG = {
    "--html MODEL": "is the input; name another file",
    "--html absent/a.html": "there is no folder absent; create it, or name another",
    "--html .": "is a directory; name a file",
    "--html -": "the page needs a file, as report.html",
    "--html a.x --json a.x": "is the file of --json",
}


@pytest.mark.parametrize("words", WRONG)
@pytest.mark.parametrize("command", ["prune", "evaluate"])
def test_where_a_page_cannot_go(
    command: str, words: str, call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, before the work, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    given = words.replace("MODEL", shlex.quote(words_of(command)[command == "evaluate"]))
    start = "MODEL --channels 0.3" if command == "prune" else "evaluate MODEL DATA"
    start = start.replace("MODEL", shlex.quote(str(folder() / "net <i>&amp;.onnx"))).replace(
        "DATA", str(folder() / "data.npz")
    )
    result = call(f"{start} {given}")
    assert result.code == 2 and len(result.err.strip().splitlines()) == 1
    assert WRONG[words] in result.err and "--html" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise onnxprune.OptionError("--json: disk full")

    monkeypatch.setattr("onnxprune.cli.command.emit_json", fail)
    page = tmp_path / "page.html"
    page.write_text("before")
    words = ["evaluate", str(folder() / "other.onnx"), str(folder() / "data.npz"), "--html", str(page), "-q"]
    assert app.run(words) == 2
    assert page.read_text() == "before" and list(tmp_path.iterdir()) == [page]


# ---------------------------------------------------------------------------------------------------------------------
# What reports keep for it
# ---------------------------------------------------------------------------------------------------------------------


def test_changed_answers_by_hand() -> None:
    labels = np.array([1, 1, 2, 0])
    a, b = (Answers.of([(np.arange(4), np.array(x), labels)], 4) for x in ([1, 0, 2, 1], [1, 1, 0, 2]))
    found = changes(a, b)
    assert found is not None and (found.answers, found.count, found.lost, found.gained) == (4, 3, 1, 1)
    assert found.first[1] == Change(2, None, 2, 2, 0)
    part = changes(a, b, np.array([0, 3]))
    assert part is not None and (part.answers, part.count, part.first[0].sample) == (2, 1, 3)
    assert changes(a, None) is None and changes(a, Answers.of([(np.arange(2), np.zeros(2), None)], 2)) is None


def test_changed_answers_of_tokens() -> None:
    """A position per token; those whose label does not count are left out."""
    labels = np.array([3, -100, 1, 1])
    a, b = (Answers.of([(np.arange(2), np.array(x), labels)], 2) for x in ([3, 3, 1, 0], [3, 0, 0, 0]))
    found = changes(a, b)
    assert found is not None and found.first == (Change(1, 0, 1, 1, 0),)
    assert (found.answers, found.count, found.lost, found.gained) == (3, 1, 1, 0)


def test_times_of_fused_nodes_belong_to_the_first() -> None:
    net = build("h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) y = Identity(k)", "float[n,4]", "float[n,2]",
                a=normal(4, 4), b=normal(4, 2))  # fmt: skip
    for node, name in zip(net.graph.node, "pqst", strict=True):
        node.name = name
    found = with_fused(onnxprune.load(net), {"r": 2e-6, "s": 3e-6})
    assert found["p"] == 2e-6 and found["s"] == 3e-6 and "q" in found


def test_layers_say_what_became_of_them() -> None:
    """Widths after a cut, zeros as the written file has them, whatever operator it became."""
    x = normal(32, 16).astype("f")
    report = onnxprune.prune(
        hostile_net(), channels=0.5, sparsity=0.5, format="dense", calibration={"x": x}, recover="none", measure=False
    ).report
    first, second, last = report.layers
    assert first.after is not None and last.after is not None and second.after is not None
    assert (first.before.rows, first.after.rows, second.after.columns, last.after.rows) == (32, 16, 16, 8)
    zeros = sum(x.after.zeros for x in report.layers if x.after is not None)
    assert report.sparsity is not None and zeros == report.sparsity.zeros > 0
    assert first.before.zeros == 0 and first.after.seconds is None


# ---------------------------------------------------------------------------------------------------------------------
# In a browser
# ---------------------------------------------------------------------------------------------------------------------

RULES = "wcag2a wcag2aa wcag21a wcag21aa wcag22aa best-practice".split()
FOCUS = "(e => e === document.body ? '' : e.getAttribute('aria-label') || e.textContent)(document.activeElement)"


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Tab]:
    if why := browser.missing():
        pytest.skip(why)
    with browser.browser() as opened:
        yield opened


def complaints(tab: browser.Tab) -> list[Any]:
    """What axe-core finds wrong with what a tab shows."""
    tab.run(browser.axe())
    options = json.dumps({"runOnly": RULES, "resultTypes": ["violations"]})
    broken = "r.violations.map(v => [v.id, v.nodes.map(n => n.html)])"
    return list(tab.run(f"axe.run(document, {options}).then(r => {broken})"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_browser_shows_it(command: str, tab: browser.Tab) -> None:
    """In both colour schemes, on a wide screen and on a phone: nothing on the console, nothing from the network,
    nothing that axe-core finds, nothing wider than the window."""
    page = made(command)
    for scheme, width in (("light", 1200), ("dark", 360)):
        tab.open(page.path, scheme=scheme, width=width)
        assert tab.messages == [] and tab.requested == [page.path.as_uri()]
        assert tab.run("document.documentElement.scrollWidth") <= width
        dark = tab.run("getComputedStyle(document.body).backgroundColor") != "rgb(247, 247, 245)"
        assert dark == (scheme == "dark")
        assert complaints(tab) == []


def test_the_keyboard_reaches_and_scrolls_everything(tab: browser.Tab) -> None:
    page = made("prune")
    tab.open(page.path, width=360)
    reachable = [e for e in page.root.all() if e.tag == "a" or e.attributes.get("tabindex") == "0"]
    reached, scrolled = [], 0
    for _ in reachable:
        tab.press("Tab")
        reached.append(tab.run(FOCUS))
        assert tab.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if tab.run("document.activeElement.scrollWidth > document.activeElement.clientWidth"):
            tab.press("ArrowRight")
            scrolled += tab.run(
                "new Promise(r => setTimeout(r, 200)).then(() => document.activeElement.scrollLeft > 0)"
            )
    assert reached == [e.attributes.get("aria-label", e.text) for e in reachable]
    assert scrolled > 0


def test_paper_has_all_of_it(tab: browser.Tab) -> None:
    """Printed, nothing is hidden in a box that scrolls."""
    tab.open(made("prune").path, width=720)
    hidden = (
        "[...document.querySelectorAll('.scroll')].filter(e => getComputedStyle(e).overflowY !== 'visible' "
        "|| getComputedStyle(e).maxHeight !== 'none').length"
    )
    assert tab.run(hidden) > 0
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.run(hidden) == 0 and tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.call("Emulation.setEmulatedMedia", media="")


def test_the_browser_and_axe_do_complain(tab: browser.Tab, tmp_path: Path) -> None:
    """Of a page that breaks what the others keep."""
    page = tmp_path / "bad.html"
    pale = "<p style='color:#ccc;background:#fff'>pale</p>"
    page.write_text(f"<!doctype html><title>x</title>{pale}<script>throw 1</script>")
    tab.open(page)
    assert tab.messages
    assert {"html-has-lang", "color-contrast"} <= {name for name, _ in complaints(tab)}


# ---------------------------------------------------------------------------------------------------------------------
# In Netron
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def netron() -> Path:
    """A copy of the files of Netron's Python package, which Node takes as modules."""
    found = find_spec("netron")
    for what, absent in (("netron", found is None), ("node", shutil.which("node") is None)):
        if absent:
            pytest.skip(f"not installed here: {what}")
    assert found is not None and found.origin is not None
    copy = folder() / "netron"
    patterns = (
        "base.js",
        "view.js",
        "grapher.js",
        "onnx*",
        "protobuf.js",
        "text.js",
        "json.js",
        "dagre.js",
        "flatbuffers.js",
    )
    copy.mkdir()
    for pattern in patterns:
        for file in Path(found.origin).parent.glob(pattern):
            shutil.copy(file, copy)
    (copy / "package.json").write_text('{"type": "module"}')
    return copy


FILES: dict[str, dict[str, Any]] = {
    "cut": {"channels": 0.3, "recover": "none"},
    "zeros in operators": {"sparsity": 0.8, "format": "csr"},
    "clustered": {"cluster": 4},
}


@pytest.mark.parametrize("name", FILES)
def test_netron_opens_what_we_write(name: str, tmp_path: Path) -> None:
    """Its own loader finds every node, by its name and operator, and the weights of it."""
    place = netron()
    path = tmp_path / "out.onnx"
    onnxprune.prune(hostile_net(), measure=False, **FILES[name]).save(path)
    words = ["node", str(Path(__file__).parent / "netron_nodes.mjs"), str(place), str(path)]
    ran = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    graph = onnx.load(path).graph
    stored = {w.name for w in graph.initializer}
    assert found["format"].startswith("ONNX")
    assert [(n["name"], n["type"], n["domain"]) for n in found["nodes"]] == [
        (n.name, n.op_type, n.domain or "ai.onnx") for n in graph.node
    ]
    assert [n["weights"] for n in found["nodes"]] == [[i for i in n.input if i in stored] for n in graph.node]
    ours = {n.op_type for n in graph.node if n.domain == "onnxprune"}
    assert ours <= set(found["functions"]) and bool(ours) == (name == "zeros in operators")
