"""Making a latency table: here, or of what the script of a kit has measured on another device.

A kit is a folder: `measure.py`, `kit.json`, the inputs and the variants as plain ONNX files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxprune import cache as stored
from onnxprune.errors import OptionError, blamed
from onnxprune.graph.arrays import Float
from onnxprune.graph.fingerprint import fingerprint
from onnxprune.graph.io import Model, save, to_proto
from onnxprune.graph.messages import one_line
from onnxprune.graph.ort import ORT_ERRORS
from onnxprune.latency import measure
from onnxprune.latency.parts import Part, named, parts_of, shown
from onnxprune.latency.table import (
    Device,
    Row,
    Table,
    Timed,
    Variant,
    per_part,
    refuse_another,
    refuse_noise,
    seconds_of,
    spread_of,
    variant_of,
)
from onnxprune.latency.variants import Kept, Picker, variants
from onnxprune.latency.zeros import Zeros, with_zeros
from onnxprune.progress import Progress, silent
from onnxprune.runtime.session import Feeds, session
from onnxprune.structure.analysis import Analysis, Keep

CPU = "CPUExecutionProvider"
INPUTS = "inputs.npz"


@dataclass(frozen=True)
class Measuring:
    """What is measured, and how. seed: of the random variants; repeat: how often all is timed; methods: of zeros."""

    device: Device
    seed: int = 0
    repeat: int = 1
    methods: tuple[str, ...] = ()


def measured_table(
    analysis: Analysis, feeds: Feeds, how: Measuring, *, cache: Path | None = None, progress: Progress = silent
) -> Table:
    """The table of a model on this machine, as far as the cache has it from there.

    feeds: inputs of the uncut model. Raises `UserError` where the machine is too noisy, `OptionError` where the
    execution provider is not there or does not run the model.
    """
    available = ort.get_available_providers()
    if how.device.provider not in available:
        raise OptionError(f"--provider {how.device.provider}: this onnxruntime has {', '.join(available)}")
    shapes = {name: np.shape(x) for name, x in feeds.items()}
    of = (fingerprint(analysis.model), how.device, how.seed, how.repeat, shapes)
    made = stored.remembered(cache, "latency", of, lambda: asdict(_table(analysis, feeds, how, progress)))
    table = Table.from_dict(made)
    sparse: list[Variant] = []
    for method in how.methods:
        measure_zeros = partial(_sparse, analysis, feeds, table, method, progress)
        found = stored.remembered(cache, "latency", (*of, method), measure_zeros)
        sparse += [variant_of(v) for v in found["variants"]]
    return table.with_sparse(sparse)


def _table(analysis: Analysis, feeds: Feeds, how: Measuring, progress: Progress) -> Table:
    """What every variant takes here."""
    picker = Picker.of(analysis)
    kept = variants(analysis, how.seed)

    @lru_cache(1)  # a variant is opened twice in a row
    def variant(k: int) -> tuple[Model, Feeds]:
        return named(picker.model(kept[k])), analysis.narrow(feeds, picker.keep(kept[k]))

    def opened(k: int, profile: str = "") -> measure.Opened:
        model, inputs = variant(k)
        return opened_on(how.device, model, profile), inputs

    def tell(done: int, total: int) -> None:
        progress("latency", done, total)

    clock = measure.clock_of(how.device.threads, how.device.provider)
    try:
        runs = measure.measure(opened, len(kept), clock, how.repeat, measure.SECONDS, tell)
    except ORT_ERRORS as e:
        raise OptionError(
            f"--provider {how.device.provider}: does not run a variant of this model ({one_line(e)}); use {CPU}"
        ) from e
    return table_of(analysis, picker, how.device, kept, runs)


def opened_on(device: Device, model: Model, profile: str = "") -> ort.InferenceSession:
    """A session of this machine's, with the sparse operators where it is the CPU's."""
    if device.provider != CPU:
        return measure.open_session(to_proto(model).SerializeToString(), device.threads, device.provider, profile)
    with session(model, threads=device.threads, profile=profile) as s:
        return s


def table_of(analysis: Analysis, picker: Picker, device: Device, kept: Sequence[Kept], runs: Sequence[Timed]) -> Table:
    """The rows of what was measured. Raises `UserError` where that was too noisy."""
    spread = spread_of(runs)
    refuse_noise(spread)
    runs = [_seen(analysis, runs[0]), *runs[1:]]
    parts = parts_of(analysis, runs[0]["nodes"])
    seconds, whole = per_part(parts, runs), seconds_of(runs)
    made = []
    for v, some in enumerate(kept):
        keep = picker.keep(some)
        rows = tuple(_row(analysis, part, keep, s) for part, s in zip(parts, seconds[:, v], strict=True) if s)
        made.append(Variant(some, float(whole[v]), rows))
    nodes = tuple((name, op) for name, op, _ in runs[0]["nodes"])
    return Table(fingerprint(analysis.model), device, nodes, tuple(made), spread)


def _row(
    analysis: Analysis, part: Part, keep: Keep, seconds: float, method: str = "dense", sparsity: float = 0.0
) -> Row:
    def shape(name: str) -> tuple[int, ...]:
        c = analysis.coupling
        sizes = c.shape(name) or ()
        axes = c.axes(name) or [None] * len(sizes)
        return tuple(int(d or 0) if a is None else int(keep[a].sum()) for d, a in zip(sizes, axes, strict=True))

    inputs, outputs = tuple(map(shape, part.inputs)), tuple(map(shape, part.outputs))
    return Row(part.label, part.family, inputs, outputs, float(seconds), method, sparsity)


def _sparse(analysis: Analysis, feeds: Feeds, table: Table, method: str, progress: Progress) -> dict[str, Any]:
    """The uncut model with zeros by one method: rows of the layers that hold them. Their times are those of the table,
    times the ratio of sparse and dense in sessions in turns."""
    device = table.device
    clock = measure.clock_of(device.threads, device.provider)
    base = opened_on(device, named(analysis.model)), feeds

    def beside(model: Model) -> Timed:
        def opened(k: int, profile: str = "") -> measure.Opened:
            return opened_on(device, named(model), profile), feeds

        pairs = measure.beside(base, opened, 0, clock, measure.SECONDS)
        nodes = measure.node_seconds(opened, 0, measure.SECONDS)
        return {"base": [a for a, _ in pairs], "seconds": [b for _, b in pairs], "nodes": nodes}

    first = _seen(analysis, beside(analysis.model))
    parts, out = parts_of(analysis, first["nodes"]), []
    for zeros, model in with_zeros(analysis.model, [method], feeds, device.threads):
        progress("latency", note=f"zeros: {method}, {zeros.sparsity:.0%}")
        variant, gains = _sparse_variant(analysis, table, parts, zeros, [first, beside(model)])
        out.append(asdict(variant))
        if not gains:  # nor with fewer zeros
            break
    return {"variants": out}


def _sparse_variant(
    analysis: Analysis, table: Table, parts: Sequence[Part], zeros: Zeros, runs: Sequence[Timed]
) -> tuple[Variant, bool]:
    """The uncut model with zeros, and whether any layer is faster. runs: of the uncut one, of the other."""
    keep = analysis.keep_ids({})
    dense = {row.node: row.seconds for row in table.variants[0].rows}
    (before, now), whole = per_part(parts, runs).T, seconds_of(runs)
    ratios = _ratios(parts, zeros, before, now)
    rows = tuple(
        _row(analysis, part, keep, dense[part.label] * ratios[part.label], zeros.method, zeros.sparsity)
        for part in parts
        if part.label in ratios and part.label in dense
    )
    return Variant({}, table.uncut * float(whole[1] / whole[0]), rows), any(ratio < 1 for ratio in ratios.values())


def _seen(analysis: Analysis, first: Timed) -> Timed:
    """The run of the uncut model, without nodes where the execution provider hides them."""
    return first if shown(analysis, first["nodes"]) else {**first, "nodes": []}


def _ratios(parts: Sequence[Part], zeros: Zeros, before: Float, now: Float) -> dict[str, float]:
    """Node -> sparse over dense seconds of a layer. before, now: of every part, `(parts,)`.

    Where its operator also computes other parts, what these took is taken off, so that sums hold; that may be more
    than all it takes.
    """
    out: dict[str, float] = {}
    for key, computed in zeros.layers.items():
        own = next((p for p, part in enumerate(parts) if key in part.keys), None)
        if own is None or not before[own]:
            continue
        touched = [p for p, part in enumerate(parts) if p == own or part.keys & computed]
        gained = float(before[touched].sum() - now[touched].sum())
        out[parts[own].label] = 1 - gained / float(before[own])
    return out


def write_kit(
    analysis: Analysis, feeds: Feeds, folder: Path, seed: int, methods: Sequence[str] = (), progress: Progress = silent
) -> None:
    """Write the variants, and the script that measures them wherever onnxruntime is. methods: of zeros in plain ONNX.
    Raises `OptionError`."""
    picker = Picker.of(analysis)
    kept = variants(analysis, seed)
    with blamed(f"--kit {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(measure.__file__, folder / "measure.py")
        np.savez(folder / INPUTS, **feeds)  # type: ignore[arg-type]
        files = []
        for k, some in enumerate(kept):
            progress("latency", k, len(kept))
            files.append({"file": f"variant_{k:02}.onnx", "kept": dict(some)})
            save(named(picker.model(some)), folder / f"variant_{k:02}.onnx")
        for zeros, model in with_zeros(analysis.model, methods, feeds, 1):
            name = f"zeros_{zeros.method.replace(':', '_')}_{100 * zeros.sparsity:.0f}.onnx"
            layers = {key: sorted(computed) for key, computed in zeros.layers.items()}
            told = {"method": zeros.method, "sparsity": zeros.sparsity, "layers": layers}
            files.append({"file": name, "kept": {}, "zeros": told})
            save(named(model), folder / name)
        kit = {"fingerprint": fingerprint(analysis.model), "inputs": INPUTS, "variants": files}
        (folder / "kit.json").write_text(json.dumps(kit, indent=1) + "\n", encoding="utf-8")


def table_of_kit(analysis: Analysis, path: Path) -> Table:
    """The table of what a kit's script has measured; raises `OptionError` for what is none of this model."""
    where = f"--measured {path}"
    with blamed(where, "cannot be read"):
        text = path.read_text(encoding="utf-8")
    try:
        data: Mapping[str, Any] = json.loads(text)
        mark, device, kept = data["fingerprint"], Device(**data["device"]), list(data["variants"])
        runs = [{**run, "nodes": [tuple(node) for node in run["nodes"]]} for run in data["runs"]]
        told = list(data.get("zeros") or [None] * len(kept))
        if not len(runs) == len(kept) == len(told):
            raise ValueError(f"{len(kept)} variants and {len(runs)} runs")
        cuts = [k for k, of in enumerate(told) if of is None]
        zeros = [(k, _zeros_of(of)) for k, of in enumerate(told) if of is not None]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise OptionError(
            f"{where}: expected what the measure.py of a kit has written ({type(e).__name__}: {e}); run it again"
        ) from e
    refuse_another(mark, fingerprint(analysis.model), where)
    table = table_of(analysis, Picker.of(analysis), device, [kept[k] for k in cuts], [runs[k] for k in cuts])
    first = _seen(analysis, runs[0])
    parts = parts_of(analysis, first["nodes"])
    return table.with_sparse([_sparse_variant(analysis, table, parts, of, [first, runs[k]])[0] for k, of in zeros])


def _zeros_of(told: Mapping[str, Any]) -> Zeros:
    """What a kit says of a variant with zeros. Raises `KeyError` or `TypeError`."""
    layers = {str(key): frozenset(map(str, computed)) for key, computed in told["layers"].items()}
    return Zeros(str(told["method"]), float(told["sparsity"]), layers)
