"""The tables of experiments, of the data of `--json`: a page has them, and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxprune.experiments.ranks import COEFFICIENTS
from onnxprune.page.content import Table
from onnxprune.page.units import show_any, show_rank, show_share

Report = Mapping[str, Any]


def points(report: Report) -> Table:
    """Of `explore`: a row per point that has a file."""
    found = [p for p in report["points"] if p["file"] is not None]
    scored = bool(found) and found[0]["score"] is not None
    rows = [
        (
            f"{p['left']:.0%}", "knee" if p["knee"] else "best" if p["front"] else "beaten", p["way"],
            f"{p['cost']:.1%}", _or_none(p["latency_seconds"], lambda s: f"{1e3 * s:.3g}"),
            _or_none(p["latency_ratio"], show_share), *([f"{p['score']:.4f}", f"{p['drop']:.4f}"] if scored else []),
            _or_none(p["divergence"], "{:.4g}".format), _or_none(p.get("macs"), show_share),
            _or_none(p.get("bytes"), show_share),
        )
        for p in found
    ]  # fmt: skip
    names = (f"{report['budget']} left", "ms", "time", *["score", "lost"] * scored, "divergence", "MACs", "file")
    caption = "best: no other point beats it; knee: of the curve of these"
    return Table.mixed(caption, ("asked", "point", "by", *names), rows, text=("point", "by"))


def _or_none(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


def rounds(report: Report) -> Table:
    """Of `lottery`: means over seeds, a row per round and kind."""
    means = report["means"]
    several = means[0]["seeds"] > 1
    rows = [
        (
            str(m["round"]), m["kind"], f"{m['left']:.2%}", f"{m['score']:.4f}",
            *[f"{m['deviation']:.4f}"] * several, f"{m['loss']:.4g}", f"{m['best']:.0f}", f"{m['seconds']:.1f}",
        )
        for m in means
    ]  # fmt: skip
    names = ["weights left", report["metric"], *["±"] * several, "held-out loss", "steps to it", "training, s"]
    caption = f"Means of {means[0]['seeds']} seeds" if several else "One seed"
    return Table.mixed(caption, ("round", "network", *names), rows, text=("network",))


def line(report: Report) -> Table:
    """Of `connect`: a row per point of the line, or per step of --spawn."""
    units = {name: f"{name} ({unit})" if unit else name for name, unit in report["metrics"].items()}
    if "runs" not in report:
        points = ((f"{p['share']:.3g}", *(f"{p[name]:.4f}" for name in units)) for p in report["points"])
        return Table.of("Points of the line", (), ("share of the way", *units.values()), points)
    seeds = report["means"][0]["seeds"]
    several = seeds > 1
    names, rows = ["spawned at step"], []
    for said in units.values():
        names += [f"barrier of {said}", *["±"] * several, "mean of the ends"]
    for m in report["means"]:
        cells = [str(m["step"])]
        for of in (m[name] for name in units):
            cells += [f"{of['barrier']:.4f}", *[f"{of['deviation']:.4f}"] * several, f"{of['ends']:.4f}"]
        rows.append(cells)
    return Table.of(f"{report['runs'][0]['steps']} steps in all, {seeds} seed{'s' * several}", (), names, rows)


def networks(report: Report) -> Table:
    """Of `proxies`: a row per network, a column per proxy."""
    scored = report["correlations"] is not None
    rows = [
        (m["model"], *[show_any(m["score"])] * scored, *map(show_any, m["proxies"].values())) for m in report["models"]
    ]
    names = (*["score"] * scored, *report["models"][0]["proxies"])
    return Table.of("What each proxy says of each network", ("network",), names, rows)


def correlations(found: Sequence[Report]) -> Table:
    """Of `proxies --scores`: a row per proxy."""
    rows = []
    for r in found:
        cells = [r["proxy"], str(r["models"])]
        for of in (r["spearman"], r["kendall"]):
            cells += ["-", "-"] if of is None else [f"{of['value']:.2f}", f"{of['low']:.2f} to {of['high']:.2f}"]
        rows.append(cells)
    names = ("networks", "Spearman", "interval", "Kendall", "interval")
    return Table.of("Rank correlation with the scores, and 95% intervals by bootstrap", ("proxy",), names, rows)


def comparisons(report: Report) -> Table:
    """Of `agree`: a row per comparison."""
    rows = []
    for c in report["comparisons"]:
        found = (c[name][what] for name in COEFFICIENTS for what in ("mean", "deviation", "together"))
        rows.append((_compares(c), str(len(c["groups"])), str(c["units"]), *map(show_rank, found)))
    names = ("groups", "units", *(c for name in COEFFICIENTS for c in (name.capitalize(), "±", "together")))
    return Table.of("Mean of the groups, its deviation, and all units together", ("scores",), names, rows)


def groups(c: Report) -> Table:
    """Of `agree`: the groups of one comparison."""
    rows = ((g["name"], str(g["units"]), *(show_rank(g[name]) for name in COEFFICIENTS)) for g in c["groups"])
    return Table.of(_compares(c), ("group",), ("units", *(name.capitalize() for name in COEFFICIENTS)), rows)


def _compares(c: Report) -> str:
    """What a comparison compares, in words."""
    (a, b), (first, second) = c["importances"], c["sets"]
    return f"{a}: {first} and {second}" if a == b else f"{a} and {b}: {first}"


def masks(report: Report) -> Table:
    """Of `supermask`: a row per sparsity and criterion, a column per action; of the first metric."""
    metric, actions = next(iter(report["metrics"])), report["settings"]["action"]
    cells: dict[tuple[float, str], dict[str, Report]] = {}
    for r in report["rows"]:
        cells.setdefault((r["sparsity"], r["criterion"]), {})[r["action"]] = r
    rows = [
        (
            f"{share:.2%}", name, f"{row[actions[0]]['left']:.2%}",
            *(f"{row[a]['scores'][metric]:.4f}" for a in actions),
        )
        for (share, name), row in cells.items()
    ]  # fmt: skip
    names = ("sparsity", "criterion", "weights left", *actions)
    return Table.mixed(f"{metric}, without any training of these weights", names, rows, text=("criterion",))


__all__ = ["comparisons", "correlations", "groups", "line", "masks", "networks", "points", "rounds"]
