"""The pages of experiments: `explore`, `lottery`, `connect`, `proxies`, `agree`, `supermask`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.page.charts import line_of, tickets, trade_off
from onnxprune.page.content import Chart, Page, Section, Table, Tile, lines_of, section, tiles_of
from onnxprune.page.units import show_any, show_rank, show_share

Report = Mapping[str, Any]


def lottery(report: Report) -> Page:
    """The page of `onnxprune lottery`."""
    means, metric = report["means"], report["metric"]
    several = means[0]["seeds"] > 1
    rows = [
        (
            m["kind"], str(m["round"]), f"{m['left']:.2%}", f"{m['score']:.4f}",
            *[f"{m['deviation']:.4f}"] * several, f"{m['loss']:.4g}", f"{m['best']:.0f}", f"{m['seconds']:.1f} s",
        )
        for m in means
    ]  # fmt: skip
    names = ["round", "weights left", metric, *["±"] * several, "held-out loss", "steps to it", "training"]
    caption = f"Means of {means[0]['seeds']} seeds" if several else "Trainings"
    return Page("Lottery tickets", f"In {report['folder']}", (
        section("Curve", Chart(f"{metric} against weights left", tickets(report))),
        section("Rounds", Table.of(caption, ("network",), names, rows)),
        *_end(report),
    ))  # fmt: skip


def explore(report: Report) -> Page:
    """The page of `onnxprune explore`."""
    points = [p for p in report["points"] if p["file"] is not None]
    scored = bool(points) and points[0]["score"] is not None
    rows = [
        (
            f"{p['left']:.0%}", "knee" if p["knee"] else "best" if p["front"] else "beaten", f"{p['cost']:.1%}",
            "-" if p["latency_seconds"] is None else f"{1e3 * p['latency_seconds']:.3g} ms",
            *([f"{p['score']:.4f}", f"{p['drop']:.4f}"] if scored else []), f"{p['loss']:.4g}",
            show_share(p["macs"]), show_share(p["bytes"]), p["way"],
        )
        for p in points
    ]  # fmt: skip
    names = [
        "",
        f"{report['budget']} left",
        "a run",
        *["score", "lost"] * scored,
        report["measure"],
        "MACs",
        "file",
        "by",
    ]
    shown = Chart(f"{report['measure']} against {report['budget']} left", trade_off(report)) if points else None
    lead = f"What {Path(report['model']).name} loses for less {report['budget']}"
    return Page("A trade-off", lead, (
        section("Curve", shown),
        section("Points", Table.of("Each measured on its own file", ("asked",), names, rows) if points else None),
        *_end(report),
    ))  # fmt: skip


def connect(report: Report) -> Page:
    """The page of `onnxprune connect`."""
    charts = (Chart(f"{metric} on the line", line_of(report, metric)) for metric in report["metrics"])
    units = {name: f"{name} ({unit})" if unit else name for name, unit in report["metrics"].items()}
    spawned = "runs" in report
    names = [Path(m).name for m in report["models"]]
    title = f"Children of {names[0]}" if spawned else f"From {names[0]} to {names[1]}"
    return Page(title, "Loss and accuracy on the straight line between the weights of two models of one graph.", (
        section("In short", None if spawned else tiles_of(_barriers(report))),
        section("Chart", *charts),
        section("Spawned" if spawned else "Points", (_spawned if spawned else _points)(report, units)),
        *_end(report),
    ))  # fmt: skip


def _barriers(report: Report) -> Iterator[Tile]:
    for name, value in report["barriers"].items():
        yield Tile(f"Barrier of {name}", f"{value:.4f}", report["metrics"][name])
    if (how := report["aligned"]) is not None:
        moved = sum(how["units_moved"].values())
        cosine = f"cosine of the weights {how['cosine_before']:.3f} → {how['cosine_after']:.3f}"
        yield Tile("Units with another place", str(moved), cosine)


def _points(report: Report, units: Mapping[str, str]) -> Table:
    rows = [(f"{p['share']:.3g}", *(f"{p[name]:.4f}" for name in units)) for p in report["points"]]
    return Table.of("Points of the line", (), ("share of the way", *units.values()), rows)


def _spawned(report: Report, units: Mapping[str, str]) -> Table:
    several = report["means"][0]["seeds"] > 1
    names, rows = ["spawned at step"], []
    for said in units.values():
        names += [f"barrier of {said}", *["±"] * several, "mean of the ends"]
    for m in report["means"]:
        cells = [str(m["step"])]
        for name in units:
            of = m[name]
            cells += [f"{of['barrier']:.4f}", *[f"{of['deviation']:.4f}"] * several, f"{of['ends']:.4f}"]
        rows.append(cells)
    return Table.of(f"{report['runs'][0]['steps']} steps in all", (), names, rows)


def proxies(report: Report) -> Page:
    """The page of `onnxprune proxies`."""
    scored = report["correlations"] is not None
    names = [*["score"] * scored, *report["models"][0]["proxies"]]
    rows = [
        (m["model"], *[show_any(m["score"])] * scored, *map(show_any, m["proxies"].values())) for m in report["models"]
    ]
    lead = f"Asked on {report['data']}" if report["data"] else "Zero-cost proxies of networks before training"
    return Page("Zero-cost proxies", lead, (
        section("Networks", Table.of("What each proxy says of each network", ("network",), names, rows)),
        section("Correlations", _correlations(report["correlations"])),
        *_end(report),
    ))  # fmt: skip


def _correlations(found: Sequence[Report] | None) -> Table | None:
    if not found:
        return None
    rows = []
    for r in found:
        cells = [r["proxy"], str(r["models"])]
        for of in (r["spearman"], r["kendall"]):
            cells += ["-", "-"] if of is None else [f"{of['value']:.2f}", f"{of['low']:.2f} to {of['high']:.2f}"]
        rows.append(cells)
    names = ("networks", "Spearman", "95% interval", "Kendall", "95% interval")
    return Table.of("Rank correlation with the scores", ("proxy",), names, rows)


def agree(report: Report) -> Page:
    """The page of `onnxprune agree`."""
    rows = []
    for c in report["comparisons"]:
        cells = (
            show_rank(c[name][key]) for name in ("spearman", "kendall") for key in ("mean", "deviation", "together")
        )
        rows.append((compares(c), str(len(c["groups"])), str(c["units"]), *cells))
    names = ["groups", "units", "Spearman", "±", "together", "Kendall", "±", "together"]
    caption = "Rank correlations: mean of the groups, its deviation, and all units together"
    return Page("How far scores agree", report["model"], (
        section("Comparisons", Table.of(caption, ("scores",), names, rows)),
        section("Groups", *map(_groups, report["comparisons"])),
        *_end(report),
    ))  # fmt: skip


def compares(c: Report) -> str:
    """What a comparison compares, in words."""
    (a, b), (first, second) = c["importances"], c["sets"]
    return f"{a}: {first} and {second}" if a == b else f"{a} and {b}: {first}"


def _groups(c: Report) -> Table:
    rows = ((g["name"], str(g["units"]), show_rank(g["spearman"]), show_rank(g["kendall"])) for g in c["groups"])
    return Table.of(compares(c), ("group",), ("units", "Spearman", "Kendall"), rows)


def supermask(report: Report) -> Page:
    """The page of `onnxprune supermask`."""
    metric, actions = next(iter(report["metrics"]), ""), report["settings"]["action"]
    cells: dict[tuple[float, str], dict[str, Report]] = {}
    for r in report["rows"]:
        cells.setdefault((r["sparsity"], r["criterion"]), {})[r["action"]] = r
    rows = [
        (
            name, show_share(share), f"{row[actions[0]]['left']:.2%}",
            *(f"{row[a]['scores'][metric]:.4f}" for a in actions),
        )
        for (share, name), row in cells.items()
    ]  # fmt: skip
    caption, columns = f"{metric}, by what is done to weights that stay", ("sparsity", "left", *actions)
    ends = (Tile(f"{metric}, {what}", f"{of[metric]:.4f}") for what, of in report["ends"].items() if metric in of)
    names = " and ".join(Path(str(m)).name for m in report["models"].values())
    return Page("Networks that were never trained", names, (
        section("In short", tiles_of(ends)),
        section("Masks", Table.of(caption, ("criterion",), columns, rows) if rows else None),
        *_end(report),
    ))  # fmt: skip


def _end(report: Report) -> tuple[Section, ...]:
    """What stands at the end of every experiment."""
    return (section("Notes", lines_of(report["notes"])),)


__all__ = ["agree", "compares", "connect", "lottery", "proxies", "supermask"]
