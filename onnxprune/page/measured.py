"""The pages of what only measures: `sensitivity`, `bench`, `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxprune.page.charts import latencies
from onnxprune.page.content import Cell, Chart, Page, Table, Tile, lines_of, section, tiles_of
from onnxprune.page.prune import changed_section, sensitivity_section
from onnxprune.page.units import show_bytes, show_joules, show_seconds, show_share

Report = Mapping[str, Any]
CONDITIONS = {  # of a run of LoadGen: key -> what it says of it
    "min_duration_met": "min duration", "min_queries_met": "min queries", "early_stopping_met": "early stopping",
}  # fmt: skip
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
    """The page of `onnxprune bench`, with --scenario that of LoadGen's figures."""
    names = [m["label"] for m in report["models"]]
    title = " and ".join(names) if len(names) < 3 else f"{len(names)} models, side by side"
    cores = f"{report['cores']} core{'s' * (report['cores'] != 1)}"
    lead = f"{report['cpu']}, {cores}, onnxruntime {report['onnxruntime']}"
    return (_load_test if "scenario" in report else _side_by_side)(report, title, lead)


def _load_test(report: Report, title: str, lead: str) -> Page:
    shapes = ", ".join(f"{name} {'×'.join(map(str, s)) or 'scalar'}" for name, s in report["inputs"].items())
    notes = [f"A sample: {shapes}; {report['samples']} samples to choose from ({report['source']})."]
    for m in report["models"]:
        for r in m["runs"]:
            missed = [what for key, what in CONDITIONS.items() if not r[key]]
            notes += [f"{m['label']}, {_on(r['threads'])}: {what} not satisfied." for what in missed]
            notes += [f"{m['label']}: LoadGen: {said}" for said in (*r["errors"], *r["warnings"])]
    lead += f", LoadGen {report['loadgen']}, {report['duration']:g} s at least"
    return Page(title, lead, (
        section("MLPerf LoadGen", _loads(report)), section("Notes", lines_of([*notes, *report["notes"]])),
    ))  # fmt: skip


def _loads(report: Report) -> Table:
    single = report["scenario"] == "single-stream"
    rows = []
    for m in report["models"]:
        for r in m["runs"]:
            times = [r["latency"].get("90"), r["early_stopping"], r["latency"].get("50"), r["latency"].get("99")]
            result = [_ms(t) for t in times] if single else [f"{r['samples_per_second']:.4g}"]
            verdict = Cell("VALID", tone="good") if r["valid"] else Cell("INVALID", tone="bad")
            rows.append((m["label"], str(r["threads"]), *result, verdict, str(r["queries"]), str(r["samples"])))
    latencies = ["90th percentile latency, ms", "early stopping estimate, ms", "50th, ms", "99th, ms"]
    names = ["threads", *(latencies if single else ["samples per second"]), "result is", "queries", "samples"]
    return Table.of(f"Scenario {report['scenario']}", ("model",), names, rows)


def _side_by_side(report: Report, title: str, lead: str) -> Page:
    charts = (Chart(f"Latency, {_on(n)}", latencies(report, k)) for k, n in enumerate(report["threads"]))
    inputs = ", ".join(
        f"{name} {i['type']} {'×'.join(map(str, i['shape'])) or 'scalar'}" for name, i in report["inputs"].items()
    )
    return Page(title, lead, (
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


def _on(threads: int) -> str:
    return f"{threads} thread{'s' * (threads != 1)}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.4g}"


def _sizes(report: Report) -> Table:
    many = len(report["models"]) > 1
    counted = any(m["joules"] is not None for m in report["models"])
    rows = []
    for m in report["models"]:
        d = m["difference"] or {"absolute": None, "relative": None}
        apart = ["-" if d[k] is None else f"{d[k]:.2g}" for k in ("absolute", "relative")]
        memory = "-" if m["peak_memory"] is None else show_bytes(m["peak_memory"])
        joules = [None if m["energy"] is None else m["energy"]["joules"], *[m["joules"]] * counted]
        energy = ("-" if x is None else show_joules(x) for x in joules)
        rows.append((m["label"], show_bytes(m["bytes"]), memory, *energy, *(apart if many else [])))
    names = ["file", "peak memory", "energy, by a model", *["energy, by counters"] * counted]
    names += [*["largest output difference", "over the largest output"] * many]
    return Table.of("Bytes, energy of a run, and outputs against those of the first model", ("model",), names, rows)


def _operators(report: Report) -> Iterator[Table]:
    for m in report["models"]:
        for p in m["profiles"]:
            rows = [
                (op, show_seconds(x["seconds"]), show_share(x["seconds"] / p["seconds"]), f"{x['calls']:.4g}")
                for op, x in sorted(p["operators"].items(), key=lambda item: -item[1]["seconds"])
            ]
            caption = f"{m['label']}, {_on(p['threads'])}: time per operator"
            yield Table.of(caption, ("operator",), ("per run", "share", "calls per run"), rows)


__all__ = ["bench", "evaluate", "sensitivity"]
