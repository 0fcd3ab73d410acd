"""`onnxprune latency-table`: the command, and what it prints."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from onnxprune.cli.command import CommandValues, shared
from onnxprune.cli.screen import check_outputs, hushed, progress_bar, show_on, staged_file
from onnxprune.errors import OptionError
from onnxprune.graph.io import load
from onnxprune.latency.making import CPU, Measuring, measured_table, table_of_kit, write_kit
from onnxprune.latency.model import LatencyModel, model_of
from onnxprune.latency.options import Making
from onnxprune.latency.table import Device
from onnxprune.latency.zeros import METHODS
from onnxprune.options import declared
from onnxprune.runtime.feeds import likely_feeds
from onnxprune.structure.groups import analyze

LATENCY_TABLE = (
    *declared(Making),
    replace(shared("output", output="The table.")[0], otherwise="MODEL.latency.json"),
    *shared(
        "force", "cache", "input_shape", "seed", "quiet",
        cache="Keep what was measured on this machine here, and take it from there.",
        input_shape="Concrete shape of a dynamic input, at which all is measured. Repeatable.",
        seed="Of the random variants and inputs.",
    ),
)  # fmt: skip
SHOWN = 12  # operators


def latency_table(values: CommandValues) -> None:
    """Measure what every node of a model takes at several widths, in the model, for a search by latency.

    onnxprune latency-table model.onnx -o device.json measures this machine; --kit DIR writes what measures another one.
    """
    model, making = Path(values["model"]), values.part(Making)
    refuse(values, making)
    target = values["output"] or model.parent / f"{model.stem}.latency.json"
    check_outputs(model, None, {"-o": None if making.kit else target}, force=values["force"])
    with hushed(), progress_bar(values["quiet"], still=True) as progress:
        progress("analyze")
        analysis = analyze(load(model), dict(values["input_shape"]) or None)
        if making.measured is not None:
            table = table_of_kit(analysis, making.measured)
        else:
            shapes = analysis.coupling.shapes
            feeds = likely_feeds(analysis.model, shapes, dict(values["input_shape"]) or None, seed=values["seed"])[0]
            if making.kit is not None:
                write_kit(analysis, feeds, making.kit, values["seed"], making.methods, progress)
                show_on(None, Text(f"written: {making.kit}; on the device: python3 measure.py --threads 1"))
                return
            device = Device.here(making.threads, making.provider)
            how = Measuring(device, values["seed"], making.repeat, making.methods)
            cache = None if values["cache"] is None else Path(values["cache"])
            table = measured_table(analysis, feeds, how, cache=cache, progress=progress)
        fitted = model_of(analysis, table)
        with staged_file("-o", target, table.to_json()):
            pass
    if not values["quiet"]:
        show_on(None, rendered(fitted))
        show_on(None, Text(f"written: {target}"))


def refuse(values: CommandValues, making: Making) -> None:
    """Raises `OptionError` for options that would have no effect."""
    measures = ("threads", "provider", "repeat", "cache")
    for name, more in (("kit", ("output",)), ("measured", ("seed", "methods"))):
        if getattr(making, name) is not None:
            idle = [n for n in (*measures, *more) if n in values.given]
            if idle:
                flag = values.options[idle[0]].flag
                raise OptionError(f"{flag} has no effect with --{name}, which measures nothing here; leave it out")
    if making.kit is not None and making.measured is not None:
        raise OptionError("--kit and --measured: one writes what measures, the other reads what it wrote; give one")
    ours = [name for name in making.methods if not METHODS[name].plain]
    if ours and (making.kit is not None or making.provider != CPU):
        plain = ", ".join(name for name, row in METHODS.items() if row.plain)
        place = f"--provider {making.provider}" if making.kit is None else "--kit"
        raise OptionError(
            f"--methods {ours[0]}: our sparse kernels run on this CPU, and not with {place}, which takes {plain}"
        )


def rendered(model: LatencyModel) -> RenderableType:
    """Device and error, and what kinds of nodes take, and gain from zeros."""
    table, (median, high) = model.table, model.error
    lines = [
        f"{table.device}, onnxruntime {table.device.onnxruntime}",
        f"the uncut model takes {1e3 * table.uncut:.3g} ms; meanwhile that moved by {table.spread:.0%}",
        f"{len(table.variants)} variants; error of the latency of one that was left out: median {median:.1%}, "
        f"95th percentile {high:.1%}",
    ]
    taken: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for row in table.variants[0].rows:
        taken[row.operator] += row.seconds
        count[row.operator] += 1
    grid = Grid(box=None, pad_edge=False)
    for name in ("nodes", "number", "time, µs", "share"):
        grid.add_column(name, justify="left" if name == "nodes" else "right", overflow="fold")
    for operator in sorted(taken, key=lambda name: -taken[name])[:SHOWN]:
        share = taken[operator] / table.uncut
        grid.add_row(Text(operator), str(count[operator]), f"{1e6 * taken[operator]:.1f}", f"{share:.1%}")
    zeros = [
        f"zeros in all layers, {row.method} {row.sparsity:.0%}: {v.seconds / table.uncut:.2f} of the time"
        for v in table.sparse
        for row in v.rows[:1]
    ]
    return Group(*map(Text, lines), grid, *map(Text, zeros))
