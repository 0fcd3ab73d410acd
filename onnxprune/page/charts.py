"""The charts of reports, of the data of `--json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.experiments.plot import Curve, Span, cells, chart, spans, sparkline, stacked

REMOVED = tuple(k / 20 for k in range(1, 17))  # fractions of a group, the columns of a map of damage
Report = Mapping[str, Any]


def tickets(report: Report) -> str:
    """The score of lottery tickets against the weights that are left, a curve per kind; controls are dashed."""
    metric, rows = report["metric"], report["means"]
    dense = [m for m in rows if m["round"] == 0]
    kinds = list(dict.fromkeys(m["kind"] for m in rows if m["round"]))
    seeds = rows[0]["seeds"]
    curves = []
    for kind in kinds:
        of = [*dense, *(m for m in rows if m["kind"] == kind)]
        low, high = ([m["score"] + sign * m["deviation"] for m in of] if seeds > 1 else None for sign in (-1, 1))
        x, y = [100 * m["left"] for m in of], [m["score"] for m in of]
        curves.append(Curve(kind, x, y, low, high, dashed=kind != kinds[0]))
    return chart(
        curves, title=f"{metric} against weights left" + f", mean and deviation of {seeds} seeds" * (seeds > 1),
        x_label="weights left (%)", y_label=metric, log_x=True, reverse_x=True,
        lines={dense[0]["kind"]: dense[0]["score"]},
    )  # fmt: skip


def trade_off(report: Report) -> str:
    """What is lost against what is left of a budget, the points that no other beats joined, and the knees of that."""
    points, budget, measure = report["points"], report["budget"], report["measure"]
    there = [p for p in points if p["file"] is not None]
    best = sorted([(100 * p["cost"], p["loss"]) for p in there if p["front"]] + [(100.0, 0.0)])
    of = {
        "best of all": best,
        "knee": sorted((100 * p["cost"], p["loss"]) for p in there if p["knee"]),
        "beaten": sorted((100 * p["cost"], p["loss"]) for p in there if not p["front"]),
    }
    curves = [
        Curve(name, [x for x, _ in at], [y for _, y in at], joined=name == "best of all")
        for name, at in of.items()
        if at
    ]
    return chart(
        curves, title=f"{measure} against {budget} left", x_label=f"{budget} left (%)", y_label=measure, reverse_x=True
    )


def line(report: Report) -> str:
    """A part for each metric, against the place on the line between two models, or the step of --spawn."""
    return stacked([line_of(report, metric) for metric in report["metrics"]])


def line_of(report: Report, metric: str) -> str:
    """That of one metric."""
    unit = report["metrics"][metric]
    return (_barriers if "runs" in report else _between)(report, metric, f" ({unit})" if unit else "")


def _between(report: Report, metric: str, unit: str) -> str:
    points, how = report["points"], " (aligned)" if report["aligned"] else ""
    return chart(
        [Curve(metric, [p["share"] for p in points], [p[metric] for p in points])],
        title=f"{metric} from {Path(report['models'][0]).name} to {Path(report['models'][1]).name}{how}: barrier "
        f"{report['barriers'][metric]:.4g}",
        x_label="share of the way between the weights", y_label=f"{metric}{unit}",
        lines={"mean of the ends": (points[0][metric] + points[-1][metric]) / 2},
    )  # fmt: skip


def _barriers(report: Report, metric: str, unit: str) -> str:
    rows, seeds = report["means"], report["means"][0]["seeds"]
    y, by = ([r[metric][what] for r in rows] for what in ("barrier", "deviation"))
    low, high = ([v + sign * e for v, e in zip(y, by, strict=True)] if seeds > 1 else None for sign in (-1, 1))
    name = f"{metric}, mean and deviation of {seeds} seeds" if seeds > 1 else metric
    return chart(
        [Curve(name, [r["step"] for r in rows], y, low, high)],
        title=f"Barrier of {metric} between two children of one training", x_label="step from which both were trained",
        y_label=f"barrier{unit}", log_x=True, lines={"no barrier": 0.0},
    )  # fmt: skip


def damage_at(group: Report, removed: float) -> float:
    """Damage of a group at the level nearest to a fraction that is removed."""
    gone = 1 - np.array(group["kept"]) / group["size"]
    return float(group["damage"][int(np.abs(gone - removed).argmin())])


def damage_map(groups: Sequence[Report]) -> str:
    """What each group costs at each fraction, with what was chosen framed, where something was."""
    rows = {f"{g['name']} ({g['size']})": [damage_at(g, f) for f in REMOVED] for g in groups}
    chosen = {}
    for name, g in zip(rows, groups, strict=True):
        if (gone := 1 - g.get("chosen", g["size"]) / g["size"]) > 0:
            chosen[name] = int(np.abs(np.array(REMOVED) - gone).argmin())
    return cells(
        rows, [f"{f:.0%}" for f in REMOVED], title="Damage at the outputs when one group alone is cut",
        x_label="removed of the group; the stronger, the more it costs, by orders of magnitude", chosen=chosen,
    )  # fmt: skip


def damage_curves(groups: Sequence[Report]) -> list[str]:
    """A small curve per group, all on one scale; a dot where what was chosen lies."""
    beside = [d for g in groups for d in g["damage"]]
    out = []
    for g in groups:
        gone = [1 - k / g["size"] for k in g["kept"]]
        at = 1 - g.get("chosen", g["size"]) / g["size"]
        mark = int(np.abs(np.array(gone) - at).argmin()) if "chosen" in g else None
        said = f"damage of {g['name']}: up to {max(g['damage']):.2g}, where {max(gone):.0%} is removed"
        out.append(sparkline(gone, g["damage"], beside, title=said, mark=mark))
    return out


def latencies(report: Report, k: int) -> str:
    """Median and 10% to 90% of the runs of every model, on the k-th count of threads."""
    rows = []
    for m in report["models"]:
        t = m["timings"][k]
        rows.append(Span(m["label"], *(1e3 * t[p] for p in ("p10", "median", "p90"))))
    n = report["threads"][k]
    title = f"Latency on {n} thread{'s' * (n != 1)}: median, and 10% to 90% of the runs"
    return spans(rows, title=title, x_label="ms per run")


__all__ = ["damage_at", "damage_curves", "damage_map", "latencies", "line", "line_of", "tickets"]
