"""What was gained and what it cost, as data (JSON) and as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxprune.allocation.outcome import Got, Tried
from onnxprune.allocation.recipe import Recipe
from onnxprune.evaluation.fidelity import Fidelity
from onnxprune.evaluation.metrics import CONFIDENCE, Drop
from onnxprune.formats.codebook import Codebooks
from onnxprune.graph.energy import Energy
from onnxprune.graph.peak import Peak
from onnxprune.options import record, shown
from onnxprune.page.pages import notebook
from onnxprune.page.units import show_bytes, show_joules, show_number
from onnxprune.recovery.cut_model import LayerFit
from onnxprune.runtime.timing import Latency
from onnxprune.sparsity.outcome import Sparsity
from onnxprune.structure.analysis import Analysis, Pinned
from onnxprune.structure.verify import Verification
from onnxprune.training.outcome import SparseLearning, Tuning, judged

SCHEMA = 1  # of the JSON


@dataclass(frozen=True)
class Cost:
    """parameters: trained numbers; macs: multiply-accumulates of one run at the analysed input shape;
    bytes: file size with external data, None where no model was made; latency: None where not measured; energy: of one
    run, and memory: the peak of one, by models, None where not asked for."""

    parameters: int
    macs: int
    bytes: int | None
    latency: Latency | None
    energy: Energy | None = None
    memory: Peak | None = None


@dataclass(frozen=True)
class GroupReport:
    """A group and how many of its units stay."""

    name: str
    kind: str
    size: int
    kept: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Extent:
    """A layer's weight as a matrix of rows (outputs) x columns, how many of its entries are zero, and seconds of a call
    in onnxruntime, None where not measured."""

    rows: int
    columns: int
    zeros: int
    seconds: float | None


@dataclass(frozen=True)
class LayerReport:
    """A layer with a weight, in the original and in the model that is written; after: None where it went."""

    node: str
    op: str
    weight: str
    before: Extent
    after: Extent | None


@dataclass(frozen=True)
class LevelsReport:
    """What a group costs at each level of the level database: units kept, damage; chosen: units that stay."""

    name: str
    size: int
    kept: tuple[int, ...]
    damage: tuple[float, ...]
    chosen: int


@dataclass(frozen=True)
class Report:
    """Everything that one pruning says; `to_dict` is what `--json` writes.

    seconds: per stage; expected: seconds that the work on data was announced to take.
    """

    model: str
    output: str
    before: Cost
    after: Cost
    groups: tuple[GroupReport, ...]
    left_alone: Mapping[str, int]
    pinned: tuple[Pinned, ...]
    verification: Verification | None
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    sparsity: Sparsity | None = None
    codebooks: Codebooks | None = None
    learning: SparseLearning | None = None
    tuning: Tuning | None = None
    fidelity: Fidelity | None = None
    evaluation: Drop | None = None
    fits: tuple[LayerFit, ...] = ()
    search: tuple[Tried, ...] = ()
    recipe: Recipe | None = None
    calibration: str | None = None
    version: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)
    got: tuple[Got, ...] = ()
    cache: str | None = None
    layers: tuple[LayerReport, ...] = ()
    levels: tuple[LevelsReport, ...] = ()
    expected: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data: counts, bytes and seconds."""

        def cost(c: Cost) -> dict[str, Any]:
            return {
                "parameters": c.parameters,
                "macs": c.macs,
                "bytes": c.bytes,
                "latency_seconds": None if c.latency is None else c.latency.median,
                "latency_fastest_seconds": None if c.latency is None else c.latency.fastest,
                "latency_runs": None if c.latency is None else c.latency.runs,
                "threads": None if c.latency is None else c.latency.threads,
                "latency_ratio": None if c.latency is None else c.latency.ratio,
                "latency_ratio_interval": None if c.latency is None else c.latency.interval,
                "energy": None if c.energy is None else c.energy.to_dict(),
                "memory": None if c.memory is None else c.memory.to_dict(),
            }

        v = self.verification
        return {
            "schema": SCHEMA,
            "onnxprune": self.version,
            "asked": dict(self.asked),
            "got": [{**asdict(g), "asked": record(g.asked)} for g in self.got],
            "model": self.model,
            "output": self.output,
            "before": cost(self.before),
            "after": cost(self.after),
            "groups": [
                {"name": g.name, "kind": g.kind, "size": g.size, "kept": g.kept, "nodes": list(g.nodes)}
                for g in self.groups
            ],
            "left_alone": dict(self.left_alone),
            "pinned": [pinned_dict(p) for p in self.pinned],
            "verification": None
            if v is None
            else {"error": v.error, "tolerance": v.tolerance, "runs": v.runs, "notes": list(v.notes)},
            "sparsity": None if self.sparsity is None else self.sparsity.to_dict(),
            "codebooks": None if self.codebooks is None else self.codebooks.to_dict(),
            "regularization": None if self.learning is None else self.learning.to_dict(),
            "tuning": None if self.tuning is None else self.tuning.to_dict(),
            "calibration": self.calibration,
            "cache": self.cache,
            "recipe": None if self.recipe is None else asdict(self.recipe),
            "fidelity": None if self.fidelity is None else self.fidelity.to_dict(),
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
            "search": [asdict(t) for t in self.search] or None,
            "refitted": [asdict(f) for f in self.fits],
            "layers": [asdict(x) for x in self.layers],
            "levels": [{**asdict(x), "kept": list(x.kept), "damage": list(x.damage)} for x in self.levels],
            "notes": list(self.notes),
            "seconds": {**self.seconds, **({} if self.expected is None else {"expected": self.expected})},
        }

    def __str__(self) -> str:
        """The tables, as text."""
        console = Console(width=10_000, file=StringIO(), highlight=False, color_system=None)
        console.print(render(self), soft_wrap=True)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        """The page of --html, for a notebook."""
        return notebook("prune", self.to_dict())


def pinned_dict(p: Pinned) -> dict[str, Any]:
    """A pinned axis as plain data."""
    return {"tensor": p.tensor, "axis": p.axis, "size": p.size, "node": p.node, "op": p.op, "reason": p.reason}


def render(report: Report, *, verbose: bool = False) -> RenderableType:
    """The tables of one pruning; verbose: also every group, layer and pinned axis, and the seconds of the stages."""
    b, a = report.before, report.after
    table = Table(title=None, show_edge=False, pad_edge=False, box=None)
    for column in ("", "before", "after", "left"):
        table.add_column(column, justify="left" if not column else "right")

    def row(label: str, x: float | None, y: float | None, show: Any) -> None:
        if x is not None:
            share = "" if y is None or not x else f"{y / x:.1%}"
            table.add_row(label, show(x), "-" if y is None else show(y), share)

    row("parameters", b.parameters, a.parameters, show_number)
    row("MACs per run", b.macs, a.macs, show_number)
    row("file", b.bytes, a.bytes, show_bytes)
    if b.latency and a.latency:
        label = f"latency, {b.latency.threads} thread{'s' * (b.latency.threads > 1)} (median of {b.latency.runs})"
        row(label, b.latency.median * 1e3, a.latency.median * 1e3, lambda ms: f"{ms:.3g} ms")
    if b.energy:
        row("energy of a run (a model)", b.energy.joules, None if a.energy is None else a.energy.joules, show_joules)
    if b.memory:
        row("peak memory (a model)", b.memory.bytes, None if a.memory is None else a.memory.bytes, show_bytes)
        row("peak memory (measured)", b.memory.measured, None if a.memory is None else a.memory.measured, show_bytes)
    parts: list[RenderableType] = [table, Text(), *(Text(_asked(g)) for g in report.got)]
    if a.latency:
        parts.append(Text(_speed(a.latency)))
    cut = [g for g in report.groups if g.kept < g.size]
    s = report.sparsity
    if s is not None:
        parts += [_sparse(s), *([_sparse_layers(s)] if verbose else [])]
    if report.codebooks is not None:
        parts += [_clustered(report.codebooks), *([_clustered_weights(report.codebooks)] if verbose else [])]
    if cut or (s is None and report.codebooks is None):
        for kind in dict.fromkeys(g.kind for g in report.groups):
            members = [g for g in report.groups if g.kind == kind]
            gone = [g for g in members if g.kept < g.size]
            units = sum(g.size - g.kept for g in gone)
            what = "blocks removed" if kind == "layers" else "groups pruned"
            more = "" if kind == "layers" else f", {units} of {sum(g.size for g in members)} units"
            parts.append(Text(f"{what}: {len(gone)} of {len(members)} of kind {kind}{more}"))
        for kind, count in report.left_alone.items():
            parts.append(Text(f"left alone: kind {kind} ({count} group{'s' * (count > 1)})"))
    v = report.verification
    if v is not None:
        parts.append(
            Text(f"verified: pruned equals masked to {v.error:.1e} (allowed {v.tolerance:.0e}, {v.runs} run(s))")
        )
    if s is not None and s.error is not None:
        parts.append(Text(f"verified: sparse equals masked to {s.error:.1e} of the largest output"))
    c = report.codebooks
    if c is not None and c.checked:
        parts.append(Text("verified: the clustered model runs"))
    if v is None and (s is None or s.error is None) and (c is None or not c.checked):
        parts.append(Text("not verified"))
    parts += [Text(f"searched: {_tried(t)}") for t in report.search]
    parts += [Text(line) for line in _quality(report)]
    if report.pinned and (cut or s is None):
        parts.append(Text(f"pinned: {len(report.pinned)} weights {'' if verbose else '(-v names them)'}"))
        parts.append(_reasons(report.pinned))
    for note in dict.fromkeys((*report.notes, *(v.notes if v else ()))):
        parts.append(Text(f"note: {note}", style="yellow"))
    if verbose:
        parts += [Text(), _groups(report.groups), Text(), *([_fits(report.fits), Text()] if report.fits else [])]
        parts.append(render_pinned(report.pinned))
        took = ", ".join(f"{k} {s:.2f} s" for k, s in report.seconds.items())
        parts.append(Text(f"time: {took}"))
    return Group(*parts)


def _tried(t: Tried) -> str:
    """One way to a target, and what became of it."""
    parts = [
        *([] if t.predicted is None else [f"damage {t.predicted:.3g} predicted"]),
        *([] if t.damage is None else [f"{t.damage:.3g} on the samples"]),
        *([] if t.ratio is None else [f"{t.ratio:.1%} of the time"]),
        *([t.why] if t.why else []), *["written"] * t.chosen,
    ]  # fmt: skip
    return f"{t.way}: {', '.join(parts)}"


def _asked(g: Got) -> str:
    """Asked and got, side by side."""
    share = f"{g.got:.1%}" if g.unit.startswith("%") else show_number(g.got)
    return f"{g.option} {shown(g.asked)}: {share} {g.unit.removeprefix('%').strip()}" + (f"; {g.why}" if g.why else "")


def _speed(t: Latency) -> str:
    """Latency of the written model over the original's, and how sure that is."""
    if t.interval is None:
        return f"time of a run: {t.ratio:.2f} of the original's; {t.runs} runs are too few for an interval"
    low, high = t.interval
    verdict = {True: "faster", False: "slower", None: "no difference that these runs could tell"}[t.faster]
    return f"time of a run: {t.ratio:.2f} of the original's (90% interval {low:.2f} to {high:.2f}): {verdict}"


def _quality(report: Report) -> list[str]:
    """What is known of how good the model still is."""
    lines = []
    if report.calibration:
        lines.append(f"calibration: {report.calibration}")
    done = [f for f in report.fits if not f.reason]
    if report.recipe is not None and report.fits:
        before, after = (sum(getattr(f, k) for f in done) / max(len(done), 1) for k in ("before", "after"))
        lines.append(
            f"recovered: {report.recipe.recover}, {len(done)} of {len(report.fits)} layers that lost inputs; "
            f"unexplained variance of their outputs {before:.1%} -> {after:.1%} on average"
        )
    if report.learning is not None:
        lines.append(_learned(report.learning))
    if report.tuning is not None:
        lines.append(_tuned(report.tuning))
    f = report.fidelity
    if f is not None:
        agree = "" if f.agreement is None else f"the same class for {f.agreement:.1%}, "
        name = "squared error over variance" if f.agreement is None else "KL divergence"
        kind = (
            "made-up samples" if f.synthetic else "samples that calibrated it" if f.seen else "samples it has not seen"
        )
        lines.append(f"outputs against the original's: {agree}{name} {f.kl:.3g} ({f.samples} {kind})")
    e = report.evaluation
    if e is None:
        lines.append("accuracy: not measured" + ("" if "evaluate" in report.asked else " (--evaluate SRC does)"))
    else:
        sure = "" if e.bound is None else f", at most {e.bound:.4f} with {CONFIDENCE:.0%} confidence"
        count = "" if e.samples is None else f" on {e.samples} samples"
        lines.append(f"{e.metric}: {e.before:.4f} -> {e.after:.4f}{count}; worse by {e.drop:.4f}{sure}")
    return lines


def _learned(x: SparseLearning) -> str:
    """What the training before the cut did to the units, and to the loss on samples that it did not see."""
    by = " by a range test" if x.range_test else ""
    return (
        f"regularized by {x.method}, strength {x.strength:g}: {x.steps} steps of {x.batch} samples at {x.rate:g}{by}; "
        f"{x.small_before:.1%} -> {x.small_after:.1%} of {x.units} units are below a hundredth of the largest, all "
        f"norms together at {x.norms:.1%}; {judged(x.held_out, x.copies)} {x.before:.4g} -> {x.after:.4g}"
    )


def _tuned(t: Tuning) -> str:
    """What tuning did to the loss on samples that it did not see."""
    by = " by a range test" if t.range_test else ""
    how = f"{t.steps} steps of {t.batch} samples, {t.optimizer} at {t.rate:g}{by}; {judged(t.held_out, t.copies)}"
    if not t.best:
        return f"tuned: {how} {t.before:.4g} was never lower: the model stays as it was"
    return f"tuned: {how} {t.before:.4g} -> {t.after:.4g}, after {t.best} steps"


def _sparse(s: Sparsity) -> RenderableType:
    """Weights that are zero, and how they are stored."""
    dense = [x for x in s.layers if x.format == "dense"]
    pattern = f"pattern {s.pattern}" if s.pattern else "unstructured"
    lines = [
        f"sparse: {s.zeros / max(s.size, 1):.1%} of {show_number(s.size)} weights in {len(s.layers)} layers are zero "
        f"({pattern}, {s.solver}); {show_number(s.size - s.zeros)} left"
    ]
    done = [x for x in s.solved if not x.reason]
    if done:
        plain, error = (sum(getattr(x, k) for x in done) / len(done) for k in ("plain", "error"))
        lines.append(
            f"solved: {len(done)} layers; unexplained variance of their outputs {error:.1%} on average, by magnitude "
            f"{plain:.1%}"
        )
    kinds = Counter(x.format for x in s.layers)
    lines.append(f"format {s.format}: " + ", ".join(f"{n} layers {kind}" for kind, n in kinds.most_common()))
    if s.permuted:
        before, after = (sum(getattr(x, k) for x in s.permuted) / len(s.permuted) for k in ("before", "after"))
        lines.append(
            f"permuted: channels of {len(s.permuted)} groups; the pattern loses {1 - after:.1%} of the saliency of "
            f"their layers instead of {1 - before:.1%}, on average"
        )
    if s.values != "float32":
        lines.append(f"values stored as {s.values}: relative squared error of the weights {s.rounding:.2g}")
    if s.speedup is not None:
        threads = f"{s.threads} threads" if s.threads else "all cores"
        lines.append(f"whole session {s.speedup:.2f} times as fast as dense on {s.cpu} ({threads})")
    for reason, n in Counter(x.reason for x in dense if x.reason).most_common(4):
        lines.append(f"  {n}x dense: {reason}")
    for reason, n in Counter(reason for _, reason in s.untouched).most_common(4):
        lines.append(f"  {n}x untouched: {reason}")
    return Text("\n".join(lines))


def _clustered(c: Codebooks) -> RenderableType:
    """Weights that are indices into codebooks."""
    stored = ", ".join(f"{n} {name}" for name, n in Counter(r.storage for r in c.rows).most_common())
    error = sum(r.error * r.size for r in c.rows) / sum(r.size for r in c.rows)
    count, before, after = sum(r.size for r in c.rows), show_bytes(c.zipped_before), show_bytes(c.zipped_after)
    return Text(
        f"clustered: {show_number(count)} weights in {len(c.rows)} tensors are one of {c.values} values "
        f"per {c.per} ({stored}); {c.bits_per_weight:.2f} bits per weight, relative squared error {error:.2g}\n"
        f"zipped: {before} -> {after}, the original file over {c.ratio:.1f}; the runtime unfolds codebooks when it "
        "loads the model: the file is smaller, the memory is not"
    )


def _clustered_weights(c: Codebooks) -> RenderableType:
    table = Table(title="clustered weights", title_justify="left", box=None, pad_edge=False)
    for column in ("weight", "values", "per", "storage", "bits per weight", "relative error"):
        text = column in ("weight", "per", "storage")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    for r in c.rows:
        table.add_row(Text(r.weight), str(r.k), r.per, r.storage, f"{r.bits_per_weight:.2f}", f"{r.error:.2g}")
    return table


def _sparse_layers(s: Sparsity) -> RenderableType:
    table = Table(title="sparse layers", title_justify="left", box=None, pad_edge=False)
    errors = {x.node: "-" if x.reason else f"{x.error:.2%}" for x in s.solved}
    for column in ("node", "operator", "rows x columns", "zeros", "unexplained", "format", "why dense"):
        numeric = column in ("rows x columns", "zeros", "unexplained")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for x in s.layers:
        shape, share = f"{x.rows} x {x.columns}", f"{x.zeros / max(x.size, 1):.1%}"
        table.add_row(Text(x.node), x.op, shape, share, errors.get(x.node, "-"), x.format, Text(x.reason))
    return table


def _reasons(pinned: Sequence[Pinned]) -> RenderableType:
    counts = Counter(p.reason if p.op == "graph" else f"{p.reason} ({p.op})" for p in pinned)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for reason, count in counts.most_common(6):
        table.add_row(f"  {count}x", Text(reason))
    if len(counts) > 6:
        table.add_row("", Text(f"and {len(counts) - 6} more reasons"))
    return table


def _groups(groups: Sequence[GroupReport]) -> RenderableType:
    table = Table(title="groups", title_justify="left", box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    table.add_column("kind")
    for column in ("units", "kept", "removed"):
        table.add_column(column, justify="right")
    for g in groups:
        table.add_row(Text(g.name), g.kind, str(g.size), str(g.kept), f"{1 - g.kept / g.size:.0%}")
    return table


def _fits(fits: Sequence[LayerFit]) -> RenderableType:
    """Layers that lost inputs: the part of their outputs' variance that is not explained."""
    table = Table(title="refitted layers", title_justify="left", box=None, pad_edge=False)
    for column in ("node", "operator", "unexplained before", "after", "rows", "left as it was because"):
        numeric = column in ("unexplained before", "after", "rows")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for f in fits:
        shown = ("-", "-") if f.reason else (f"{f.before:.2%}", f"{f.after:.2%}")
        table.add_row(Text(f.node), f.op, *shown, show_number(f.rows), Text(f.reason))
    return table


def render_pinned(pinned: Sequence[Pinned]) -> RenderableType:
    """Every pinned weight axis with operator, node and reason."""
    table = Table(title="pinned", title_justify="left", box=None, pad_edge=False)
    for column in ("weight", "axis", "size", "operator", "node", "reason"):
        table.add_column(column, justify="right" if column in ("axis", "size") else "left", overflow="fold")
    for p in pinned:
        table.add_row(Text(p.tensor), str(p.axis), str(p.size), p.op, Text(p.node), Text(p.reason))
    return table


def render_inspection(rows: Sequence[Mapping[str, Any]], analysis: Analysis, *, verbose: bool) -> RenderableType:
    """The groups of a model with their shares, then what is pinned."""
    table = Table(box=None, pad_edge=False)
    table.add_column("group", overflow="fold")
    table.add_column("kind")
    for column in ("units", "parameters", "MACs"):
        table.add_column(column, justify="right")
    table.add_column("constraint", overflow="fold")
    for r in rows:
        table.add_row(
            Text(r["name"]), r["kind"], str(r["size"]), f"{r['parameters_share']:.1%}", f"{r['macs_share']:.1%}",
            Text(r["constraint"]),
        )  # fmt: skip
    parts: list[RenderableType] = [table, Text()]
    parts.append(Text(f"{len(rows)} groups; {len(analysis.pinned)} pinned weight axes"))
    if analysis.model.folds:
        named = ", ".join(sorted(analysis.model.folds)[:5]) + (", ..." if len(analysis.model.folds) > 5 else "")
        parts.append(
            Text(f"{len(analysis.model.folds)} weights that nodes compute of constants count as such: {named}")
        )
    parts.append(render_pinned(analysis.pinned) if verbose else _reasons(analysis.pinned))
    if verbose:
        for r in rows:
            parts.append(Text(f"\n{r['name']} ({r['kind']}, {r['size']} units)", style="bold"))
            parts.append(Text("  made by  " + ", ".join(r["nodes"])))
            parts.append(Text("  weights  " + ", ".join(f"{m['tensor']}[axis {m['axis']}]" for m in r["members"])))
    return Group(*parts)


def print_on(console: Console, renderable: RenderableType) -> None:
    """Print without cutting lines off when piped."""
    console.print(renderable, soft_wrap=not console.is_terminal)


SMALLER = 0.995  # of the bytes: what is above is no smaller


def worth(before: Cost, after: Cost, *, cut: bool, sparsity: Sparsity | None) -> list[str]:
    """A line where the result is neither smaller nor shown to be faster, with the option that would make it so."""
    if after.bytes is None or before.bytes is None or after.bytes < SMALLER * before.bytes:
        return []
    if after.latency is not None and after.latency.faster:
        return []
    measured = "" if after.latency is not None else " (latency was not measured)"
    if sparsity is not None and sparsity.layers:
        share = sparsity.zeros / max(sparsity.size, 1)
        way = "--format csr stores the zeros in fewer bytes" if share > 0.55 else (
            "more zeros (--sparsity 0.8 with --format csr), or --pattern 2:4 with --format nm, may be"
        )  # fmt: skip
        if sparsity.format == "csr":
            way = "more zeros may be, or --channels 0.3"
        elif sparsity.format == "dense" and all(x.reason for x in sparsity.layers):
            way = "a runtime with kernels for zeros may be, as TensorRT is with 2:4"
    elif cut:
        way = "a larger cut may be"
    else:
        way = "--channels 0.3 or --sparsity 0.8 --format csr may be"
    return [f"the result is neither smaller nor faster than the original{measured}; {way}"]
