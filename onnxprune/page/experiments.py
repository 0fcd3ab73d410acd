"""The pages of experiments: `explore`, `lottery`, `connect`, `proxies`, `agree`, `supermask`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxprune.page import charts, tables
from onnxprune.page.content import Chart, Page, Section, Tile, lines_of, section, tiles_of

Report = Mapping[str, Any]


def lottery(report: Report) -> Page:
    """The page of `onnxprune lottery`."""
    return Page("Lottery tickets", f"In {report['folder']}", (
        section("Curve", Chart(f"{report['metric']} against weights left", charts.tickets(report))),
        section("Rounds", tables.rounds(report)),
        *_end(report),
    ))  # fmt: skip


def explore(report: Report) -> Page:
    """The page of `onnxprune explore`."""
    budget, measure, there = report["budget"], report["measure"], any(p["file"] for p in report["points"])
    return Page("A trade-off", f"What {Path(report['model']).name} loses for less {budget}", (
        section("Curve", Chart(f"{measure} against {budget} left", charts.trade_off(report)) if there else None),
        section("Points", tables.points(report) if there else None, lead="Each measured on its own file."),
        *_end(report),
    ))  # fmt: skip


def connect(report: Report) -> Page:
    """The page of `onnxprune connect`."""
    spawned, names = "runs" in report, [Path(m).name for m in report["models"]]
    title = f"Children of {names[0]}" if spawned else f"From {names[0]} to {names[1]}"
    return Page(title, "Loss and accuracy on the straight line between the weights of two models of one graph.", (
        section("In short", None if spawned else tiles_of(_barriers(report))),
        section("Chart", *(Chart(f"{m} on the line", charts.line_of(report, m)) for m in report["metrics"])),
        section("Spawned" if spawned else "Points", tables.line(report)),
        *_end(report),
    ))  # fmt: skip


def _barriers(report: Report) -> Iterator[Tile]:
    for name, value in report["barriers"].items():
        yield Tile(f"Barrier of {name}", f"{value:.4f}", report["metrics"][name])
    if (how := report["aligned"]) is not None:
        moved = sum(how["units_moved"].values())
        cosine = f"cosine of the weights {how['cosine_before']:.3f} → {how['cosine_after']:.3f}"
        yield Tile("Units with another place", str(moved), cosine)


def proxies(report: Report) -> Page:
    """The page of `onnxprune proxies`."""
    found = report["correlations"]
    lead = f"Asked on {report['data']}" if report["data"] else "Of networks before training"
    return Page("Zero-cost proxies", lead, (
        section("Networks", tables.networks(report)),
        section("Correlations", tables.correlations(found) if found else None),
        *_end(report),
    ))  # fmt: skip


def agree(report: Report) -> Page:
    """The page of `onnxprune agree`."""
    return Page("How far scores agree", report["model"], (
        section("Comparisons", tables.comparisons(report)),
        section("Groups", *map(tables.groups, report["comparisons"])),
        *_end(report),
    ))  # fmt: skip


def supermask(report: Report) -> Page:
    """The page of `onnxprune supermask`."""
    ends = (
        Tile(f"{metric}, {what}", f"{value:.4f}")
        for what, scores in report["ends"].items() for metric, value in scores.items()
    )  # fmt: skip
    names = " and ".join(Path(str(m)).name for m in report["models"].values())
    return Page("Networks that were never trained", names, (
        section("In short", tiles_of(ends)),
        section("Masks", tables.masks(report) if report["rows"] else None),
        *_end(report),
    ))  # fmt: skip


def _end(report: Report) -> tuple[Section, ...]:
    """What stands at the end of every experiment."""
    return (section("Notes", lines_of(report["notes"])),)


__all__ = ["agree", "connect", "explore", "lottery", "proxies", "supermask"]
