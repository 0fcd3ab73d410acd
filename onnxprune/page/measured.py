"""The pages of what only measures: `sensitivity`, `bench`, `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxprune.page.charts import latencies
from onnxprune.page.content import Chart, Page, Table, Tile, lines_of, section, tiles_of
from onnxprune.page.prune import changed_section, sensitivity_section
from onnxprune.page.units import show_bytes, show_seconds, show_share

Report = Mapping[str, Any]
DAMAGE = (
    "KL divergence of a classifier's probabilities in nats, or of other models the squared error of the outputs over "
    "their variance, when one group alone is cut and what is left makes up for it."
)


def sensitivity(report: Report) -> Page:
    """The page of `onnxprune sensitivity`."""
    return Page(f"{Path(report['model']).name}: what each group costs", f"Measured on {report['data']}", (
        sensitivity_section(report["groups"], "Damage", DAMAGE),
    ))  # fmt: skip


def evaluate(report: Report) -> Page:
    """The page of `onnxprune evaluate`."""
    count = "" if report["samples"] is None else f"{report['samples']} samples"
    error = report["standard_error"]
    tiles = [Tile(report["metric"], f"{report['value']:.4f}", count)]
    if error is not None:
        tiles.append(Tile("Standard error", f"{error:.4f}"))
    against = report["against"]
    if against is not None:
        sure = "" if against["bound"] is None else (
            f"at most {against['bound']:.4f} with {against['confidence']:.0%} confidence"
        )  # fmt: skip
        tiles += [
            Tile(Path(against["model"]).name, f"{against['before']:.4f}", against["metric"]),
            Tile("Worse by", f"{against['drop']:.4f}", sure),
        ]
    return Page(f"{Path(report['model']).name}, evaluated", f"On {report['data']}", (
        section("In short", tiles_of(tiles)), changed_section(against),
    ))  # fmt: skip


def bench(report: Report) -> Page:
    """The page of `onnxprune bench`."""
    names = [m["label"] for m in report["models"]]
    cores = f"{report['cores']} core{'s' * (report['cores'] != 1)}"
    lead = f"{report['cpu']}, {cores}, onnxruntime {report['onnxruntime']}"
    charts = (Chart(f"Latency, {n} threads", latencies(report, k)) for k, n in enumerate(report["threads"]))
    inputs = ", ".join(
        f"{name} {i['type']} {'×'.join(map(str, i['shape'])) or 'scalar'}" for name, i in report["inputs"].items()
    )
    return Page(" and ".join(names) if len(names) < 3 else f"{len(names)} models, side by side", lead, (
        section("Latency", *charts, _latencies(report)),
        section("Size and outputs", _sizes(report)),
        section("Operators", *_operators(report), lead="Mean of runs that the profiler slows."),
        section("Notes", lines_of([f"Inputs: {inputs or 'none'} ({report['source']}).", *report["notes"]])),
    ))  # fmt: skip


def _latencies(report: Report) -> Table:
    many, batched = len(report["models"]) > 1, report["batch"] != 1
    rows = []
    for k, n in enumerate(report["threads"]):
        for m in report["models"]:
            t = m["timings"][k]
            cells = [str(n), *(_ms(t[p]) for p in ("median", "p10", "p90", "p99")), f"{t['runs_per_second']:.4g}"]
            cells += [f"{t['samples_per_second']:.4g}"] * batched
            interval = "-" if t["interval"] is None else "{:.3f} to {:.3f}".format(*t["interval"])
            cells += [f"{t['speedup']:.3f}", interval] * many
            rows.append((m["label"], *cells, str(t["runs"])))
    names = ["threads", "median, ms", "p10, ms", "p90, ms", "p99, ms", "runs/s"]
    names += [f"samples/s (batch {report['batch']})"] * batched + ["speed-up", "90% interval"] * many
    return Table.of("Latency of every model, runs of all in turn", ("model",), (*names, "runs"), rows)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.4g}"


def _sizes(report: Report) -> Table:
    many = len(report["models"]) > 1
    rows = []
    for m in report["models"]:
        d = m["difference"] or {"absolute": None, "relative": None}
        apart = ["-" if d[k] is None else f"{d[k]:.2g}" for k in ("absolute", "relative")]
        memory = "-" if m["peak_memory"] is None else show_bytes(m["peak_memory"])
        rows.append((m["label"], show_bytes(m["bytes"]), memory, *(apart if many else [])))
    names = ["file", "peak memory", *["largest output difference", "over the largest output"] * many]
    return Table.of("Bytes, and outputs against those of the first model", ("model",), names, rows)


def _operators(report: Report) -> Iterator[Table]:
    for m in report["models"]:
        for p in m["profiles"]:
            rows = [
                (op, show_seconds(x["seconds"]), show_share(x["seconds"] / p["seconds"]), f"{x['calls']:.4g}")
                for op, x in sorted(p["operators"].items(), key=lambda item: -item[1]["seconds"])
            ]
            caption = f"{m['label']}, {p['threads']} thread{'s' * (p['threads'] != 1)}: time per operator"
            yield Table.of(caption, ("operator",), ("per run", "share", "calls per run"), rows)


__all__ = ["bench", "evaluate", "sensitivity"]
