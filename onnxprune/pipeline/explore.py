"""The trade-off of a model: what is lost for less time, bytes, energy or work, with a file at every point.
`onnxprune explore`.

Every point is one `prune` with a target, and is measured on its own file; points are jobs (runtime/jobs.py), and a
folder keeps what they gave, so that a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from onnxprune import __version__, cache
from onnxprune.allocation.budget import BUDGETS, LATENCY
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.read import read
from onnxprune.errors import OptionError, Unreachable, blamed
from onnxprune.experiments.knees import front, knees
from onnxprune.graph.io import Model, load
from onnxprune.latency.table import Table
from onnxprune.options import WHAT, choice, declared, listed, number, option, record, shared, shown
from onnxprune.page import charts
from onnxprune.pipeline.options import OPTIONS, Options, called
from onnxprune.pipeline.parts import identity
from onnxprune.pipeline.recipe import run as pruned
from onnxprune.progress import Clock, Progress, counting, silent
from onnxprune.runtime.jobs import Job, Where, run, threads_of

LEFT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the budget, where nobody says
FEWEST = 2


@dataclass(frozen=True)
class Exploring:
    """What is traded for accuracy, and where."""

    budget: str = option(
        "latency", choice({name: row.help for name, row in BUDGETS.items()}), panel=WHAT, metavar="NAME",
        help=f"What is made less of: {', '.join(BUDGETS)}.",
    )  # fmt: skip
    left: tuple[float, ...] = option(
        LEFT, listed(number("fractions above 0 and below 1, as 0.8,0.6,0.4", 0, 1, above=True, below=True)),
        panel=WHAT, metavar="F,...", unit="fractions left", help="The points: what is left of the budget at each.",
    )  # fmt: skip


PRUNING = (
    "methods", "plain", "repeat", "latency_table", "elsewhere", "importance", "round_to", "max_ratio", "ignore",
    "recover", "tune", "train", "train_labels", "learning_rate", "batch_size", "calibration", "samples", "evaluate",
    "labels", "metric", *(f.name for f in fields(Preprocess)), "cache", "jobs", "memory", "seed", "threads",
    "input_shape",
)  # fmt: skip
TIMES = ("repeat", "latency_table", "elsewhere")
EXPLORE = (*declared(Exploring), *shared(OPTIONS, PRUNING, {}))


def explore(source: Any, folder: Any, *, progress: Progress = silent, **options: Any) -> dict[str, Any]:
    """What is lost at every part of a budget that is left, and where the curve bends.

    source: path of an ONNX file; folder: for models, table and curve; options: as of `onnxprune explore`. The report is
    plain data, as of --json. Raises `UserError`, and `TypeError` for an unknown option.
    """
    with called("explore", EXPLORE, options) as (values, preprocess):
        return explored(Path(source), Path(folder), values, preprocess, progress)


def explored(
    model: Path, folder: Path, values: Mapping[str, Any], preprocess: Preprocess, progress: Progress
) -> dict[str, Any]:
    """The report, in the words of the command line. values: all options of `EXPLORE` by name."""
    if values["calibration"] is None:
        raise OptionError("explore weighs parts of a model by what its outputs suffer: give --calibration SRC")
    if len(values["left"]) < FEWEST:
        raise OptionError(f"--left {shown(values['left'])}: a curve takes {FEWEST} points or more")
    for o in EXPLORE:
        if o.name in TIMES and values[o.name] != o.default and values["budget"] != LATENCY:
            raise OptionError(f"{o.as_typed(values[o.name])} is about times: it needs --budget {LATENCY}")
    clock = Clock(progress)
    clock("load")
    loaded = load(model)
    seen = [
        samples_of(loaded, values[name], labels, values, preprocess)
        for name, labels in (("calibration", None), ("evaluate", values["labels"]), ("train", values["train_labels"]))
    ]
    asked = {name: values[name] for name in PRUNING if name not in ("jobs", "cache")}
    asked = {name: value for name, value in asked.items() if value != _default(name)}
    at: Where = values["jobs"] or Where()
    asked["threads"] = threads_of(at, values["threads"])
    with blamed(f"-o {folder}", refusals=(OSError,)):
        folder.mkdir(parents=True, exist_ok=True)
    shares = sorted(set(values["left"]), reverse=True)
    levels = values["cache"] or folder / "cache"
    table = values["latency_table"]
    measured = None if table is None else asdict(Table.load(table))  # and refused where it is none
    of = (identity(loaded), seen, record(asked), measured, values["budget"], str(folder.resolve()))
    jobs = [
        Job(
            cache.digest("explore", *of, left), point,
            (str(model), asked, values["budget"], left, str(folder), str(levels)),
        )
        for left in shares
    ]  # fmt: skip
    rows: dict[int, dict[str, Any]] = {}
    steps = counting(progress, "explore")

    def done(k: int, row: Mapping[str, Any]) -> None:
        gone = row["file"] is not None and not Path(row["file"]).is_file()
        rows[k] = dict(point(*jobs[k].arguments) if gone else row)
        steps(len(rows), len(jobs))
        clock.note(told(row))

    clock("explore")
    run(jobs, at, Path(levels), done, option="-o")
    clock("")
    return report_of(model, folder, values, [rows[k] for k in sorted(rows)], dict(clock.seconds))


def samples_of(model: Model, source: Any, labels: Any, values: Mapping[str, Any], preprocess: Preprocess) -> Any:
    """What results depend on of a source and its labels, "" for none."""
    if source is None or callable(source):
        return ""
    return identity(read(source, model, preprocess=preprocess, labels=labels, seed=values["seed"]))


def point(
    model: str, asked: Mapping[str, Any], budget: str, left: float, folder: str, levels: str
) -> Mapping[str, Any]:  # fmt: skip
    """One point: the model that is written for a part of the budget, and what is measured on it."""
    options = Options.of({**asked, f"target_{budget}": left, "cache": levels})
    try:
        result = pruned(model, options)
    except Unreachable as e:
        return {"left": left, "file": None, "why": str(e)}
    file = Path(folder) / f"{Path(model).stem}-{100 * left:g}.onnx"
    report = result.save(file).to_dict()
    return {"left": left, "file": str(file), "why": "", "report": report}


def report_of(
    model: Path, folder: Path, values: Mapping[str, Any], rows: list[dict[str, Any]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Plain data: every point with what it costs and what it loses, the front and the knees; and the plot."""
    points = [summary(row, values["budget"]) for row in rows]
    there = [p for p in points if p["file"] is not None]
    cost, loss = [p["cost"] for p in there], [p["loss"] for p in there]
    # the original costs everything and loses nothing
    best = {k for k in front([*cost, 1.0], [*loss, 0.0]) if k < len(there)}
    bends = {k for k in knees([*cost, 1.0], [*loss, 0.0]) if k < len(there)}
    for k, p in enumerate(there):
        p["front"], p["knee"] = k in best, k in bends
    files = {"curve": str(folder / "curve.svg")} if there else {}
    report: dict[str, Any] = {
        "version": __version__, "model": str(model), "folder": str(folder), "budget": values["budget"],
        "measure": there[0]["measure"] if there else "",
        "settings": {o.name: record(values[o.name]) for o in EXPLORE}, "points": points, "files": files,
        "seconds": dict(seconds),
        "notes": [f"{p['left']:.0%} left: {p['why']}" for p in points if p["why"]],
    }  # fmt: skip
    if there:
        with blamed(f"-o {folder}", refusals=(OSError,)):
            cache.replace(folder / "curve.svg", charts.trade_off(report).encode())
    return report


def summary(row: Mapping[str, Any], budget: str) -> dict[str, Any]:
    """A point: cost, the part of the budget that is left, as it was measured; loss: what the metric lost, or without
    samples to score what the outputs suffer."""
    out: dict[str, Any] = {"left": row["left"], "file": row["file"], "why": row["why"], "front": False, "knee": False}
    if row["file"] is None:
        return out
    report = row["report"]
    before, after = report["before"], report["after"]
    got = next(g["got"] for g in report["got"] if g["option"] == f"--target-{budget}")
    scored, close = report["evaluation"], report["fidelity"]
    tried = [t for t in report["search"] if t["chosen"]] if report["search"] else []
    return {
        **out, "cost": got,
        "loss": scored["drop"] if scored else close["kl"] if close else 0.0,
        "measure": f"{scored['metric']} lost" if scored else "divergence of the outputs",
        "score": scored["after"] if scored else None, "drop": scored["drop"] if scored else None,
        "divergence": close["kl"] if close else None,
        "latency_seconds": after["latency_seconds"], "latency_ratio": after["latency_ratio"],
        "latency_ratio_interval": after["latency_ratio_interval"],
        **{name: after[name] / before[name] for name in ("macs", "parameters", "bytes") if before[name]},
        "way": tried[0]["way"] if tried else "units",
    }  # fmt: skip


def told(row: Mapping[str, Any]) -> str:
    """A point in one line."""
    if row["file"] is None:
        return f"{row['left']:.0%} left: {row['why']}"
    return f"{row['left']:.0%} left: {row['file']}"


def _default(name: str) -> Any:
    return next(o.default for o in OPTIONS if o.name == name)


__all__ = ["EXPLORE", "explore", "explored"]
