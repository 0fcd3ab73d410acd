"""How the zeros of a model lie in its file: a format for every layer, and the model that is written.

In goes a model whose layers have their zeros; out come the model as it is stored, the dense model that it must equal,
and what every layer became. The zeros are those that were made, all by one pattern, or those that the model had, where
`present.packings` finds what holds and pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.formats import auto
from onnxprune.formats.auto import Chosen
from onnxprune.formats.format import Format, Packing
from onnxprune.formats.int8 import is_quantized
from onnxprune.formats.operators import is_sparse
from onnxprune.formats.patterns import parse_pattern
from onnxprune.formats.registry import FORMATS, candidates, untaken
from onnxprune.formats.rewrite import INEXPRESSIBLE, rewrite
from onnxprune.formats.values import round_values
from onnxprune.graph.io import Model, weight_bytes
from onnxprune.layers.layer import Layer
from onnxprune.progress import Progress
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.timing import cpu
from onnxprune.sparsity.present import packings
from onnxprune.sparsity.spec import Spec


@dataclass(frozen=True, eq=False)
class Stored:
    """model: as it is written; plain: the dense model with the same weights, which it must equal; formats: node ->
    format of the layers that are not dense; reasons: node -> why it is; speedup, cpu, threads: as `auto` measured."""

    model: Model
    plain: Model
    formats: Mapping[str, Packing] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    speedup: float | None = None
    cpu: str = ""
    threads: int = 0
    notes: tuple[str, ...] = ()

    @property
    def checked(self) -> Model:
        """What onnx's shape inference can read."""
        unread = any(x.format.plain is not None and not x.format.plain.inferred for x in self.formats.values())
        return self.plain if unread else self.model


def store(
    model: Model, layers: Sequence[Layer], spec: Spec, feeds: Feeds, *, threads: int, progress: Progress
) -> Stored:
    """The model with its zeros stored. layers: those whose zeros were asked for; feeds: what `auto` measures with.

    Raises `NothingToPrune` where a model has no zeros of its own that are worth it.
    """
    exact, model = model, _positive(model, layers) if spec.present else model
    formats = candidates(spec.form, spec.pattern, present=spec.present)
    for row in formats:
        if row.plain is not None:
            return _plain(model, layers, spec, row, feeds, threads, progress)
    rounded = _rounded(model, layers, spec.values)
    chosen = _choose(rounded, layers, spec, formats, feeds, threads, progress)
    if spec.present and not spec.recorded and not chosen.formats and not spec.measured:
        raise _nothing(model, spec, chosen.reasons)
    return _operators(exact, rounded, layers, spec, chosen)


def rounding(exact: Model, stored: Model, layers: Sequence[Layer]) -> float:
    """Squared error of the weights as they are stored, over their squares."""
    error = total = 0.0
    for name, layer in {x.initializer: x for x in layers}.items():
        a = layer.read(exact)
        if exact.weights[name] is not stored.weights[name]:
            error += float(np.square(a - layer.read(stored), dtype=np.float64).sum())
        total += float(np.square(a, dtype=np.float64).sum())
    return error / total if total else 0.0


def _choose(
    model: Model, layers: Sequence[Layer], spec: Spec, formats: Sequence[Format], feeds: Feeds, threads: int,
    progress: Progress,
) -> Chosen:  # fmt: skip
    """A format of ours for every layer that gets one."""
    if spec.recorded is not None:
        return _as_recorded(layers, spec, spec.recorded)
    if all(row.dense for row in formats):
        return Chosen({}, {x.name: untaken(x) for x in layers if untaken(x)}, threads=threads)
    every: dict[str, list[Packing]] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        taken = [row for row in formats if not row.refuses(layer)]
        ways: list[Packing] | str = [row.packing(spec.pattern) for row in taken]
        if spec.present:
            ways = packings(layer, layer.read(model), taken, spec.values)
        if isinstance(ways, str):
            reasons[layer.name] = ways
        else:
            every[layer.name] = ways
    if not spec.measured:
        return Chosen({node: ways[0] for node, ways in every.items()}, reasons, threads=threads)
    able = [layer for layer in layers if layer.name in every]
    one = auto.quickest(model, every, feeds, values=spec.values, threads=threads, progress=progress)
    chosen = auto.choose(model, one, able, feeds, values=spec.values, threads=threads, progress=progress)
    return replace(chosen, reasons=reasons | dict(chosen.reasons), threads=threads)


def _as_recorded(layers: Sequence[Layer], spec: Spec, recorded: Mapping[str, Any]) -> Chosen:
    """What a plan says."""
    formats: dict[str, Packing] = {}
    for node, row in recorded["layers"].items():
        pattern = parse_pattern(row["pattern"]) if row.get("pattern") else spec.pattern
        if FORMATS[row["format"]].storage is not None:
            formats[node] = FORMATS[row["format"]].packing(pattern)
    reasons = dict.fromkeys({x.name for x in layers} - set(formats), "as the plan says")
    return Chosen(formats, reasons, cpu=str(recorded.get("cpu", "")), threads=int(recorded.get("threads", 0)))


def _operators(exact: Model, rounded: Model, layers: Sequence[Layer], spec: Spec, chosen: Chosen) -> Stored:
    """The model with operators of ours for the layers that have a format."""
    formats, reasons = dict(chosen.formats), dict(chosen.reasons)
    plain = _exact_where(rounded, exact, layers, formats)
    notes: list[str] = []
    out = plain
    if formats:
        out, notes = rewrite(plain, formats, spec.values)
        written = {node.name for node in out.proto.graph.node if is_sparse(node)}
        for name in [n for n in formats if n not in written]:
            del formats[name]
            reasons.setdefault(name, INEXPRESSIBLE)
        if len(formats) < len(chosen.formats):
            plain, out = (_exact_where(m, exact, layers, formats) for m in (plain, out))
    if spec.form in FORMATS and FORMATS[spec.form].advice and not spec.recorded:
        able = any(not untaken(layer) for layer in layers)
        notes.append("; ".join([FORMATS[spec.form].advice, *([FORMATS[spec.form].instead] if able else [])]))
    if spec.present and not spec.recorded and not spec.measured:
        before, after = (int(m.proto.ByteSize()) + weight_bytes(m) for m in (exact, out))
        if not formats or after >= before:
            larger = f"the file would have {after} bytes instead of {before}, with the operators' functions"
            raise _nothing(exact, spec, reasons if not formats else dict.fromkeys(formats, larger))
    if spec.present and spec.measured and not formats:
        notes.append("no set of sparse layers is faster here: the model stays dense; --format csr makes smaller files")
    return Stored(out, plain, formats, reasons, chosen.speedup, chosen.cpu, chosen.threads, tuple(notes))


def _exact_where(model: Model, exact: Model, layers: Sequence[Layer], formats: Mapping[str, Packing]) -> Model:
    """A copy in which layers that stay dense have their weights as they were before they were rounded."""
    out = model.copy()
    dense = {layer.initializer for layer in layers if layer.name not in formats}
    out.weights.update({name: exact.weights[name] for name in dense if name in out.weights})
    return out


def _plain(
    model: Model, layers: Sequence[Layer], spec: Spec, row: Format, feeds: Feeds, threads: int, progress: Progress
) -> Stored:
    """The model with layers in standard operators; with `auto` those that seem faster, if the whole session is."""
    plain, recorded = row.plain, spec.recorded
    assert plain is not None
    able = layers
    if recorded is not None:
        able = [x for x in layers if recorded["layers"].get(x.name, {}).get("format") == row.name]
    out, done, notes = plain.write(model, able, 1.0 if spec.measured else 0.0)
    if spec.present and recorded is None and not done:
        raise _nothing(model, spec, dict.fromkeys((x.name for x in layers), plain.reason))
    stored = Stored(out, model.copy(), threads=threads, notes=tuple(notes))
    if recorded is not None:
        stored = replace(stored, cpu=str(recorded.get("cpu", "")), threads=int(recorded.get("threads", 0)), notes=())
    elif spec.measured and done:
        progress("timing")
        speedup = auto.measure(model, out, feeds, threads, 1.5)
        stored = replace(stored, speedup=speedup, cpu=cpu())
        if speedup < auto.LEVEL:
            line = f"{plain.gain} makes the whole session {speedup:.2f} times as fast here: the model stays dense"
            done, stored = [], replace(stored, model=stored.plain, speedup=1.0, notes=(line,))
    reasons = dict.fromkeys({x.name for x in layers} - set(done), plain.reason)
    notes = [*stored.notes, *([plain.note] if plain.note else [])]
    return replace(stored, formats=dict.fromkeys(done, Packing(row)), reasons=reasons, notes=tuple(notes))


def _positive(model: Model, layers: Sequence[Layer]) -> Model:
    """A copy in which -0.0, which computes what +0.0 computes, is +0.0 in these layers, so that it can be left out."""
    out = model.copy()
    for layer in {x.initializer: x for x in layers}.values():
        w = layer.read(model)
        if (np.signbit(w) & (w == 0)).any():
            layer.write(out, np.where(w == 0, np.float32(0), w))
    return out


def _rounded(model: Model, layers: Sequence[Layer], values: str) -> Model:
    """A copy whose layers have weights as they will be stored; those of quantized ones are integers already."""
    out = model.copy()
    once = {x.initializer: x for x in layers if not is_quantized(x)}
    for layer in once.values() if values != "float32" else ():
        try:
            w = layer.restore(round_values(layer.matrix(layer.read(model)), values))
        except OptionError as e:
            raise OptionError(f"--values {values}: {layer.name!r}: {e}; leave it out with --ignore") from e
        layer.write(out, w)
    return out


def _nothing(model: Model, spec: Spec, reasons: Mapping[str, str]) -> NothingToPrune:
    """That no layer has zeros worth it, and the way out."""
    why = "; ".join(dict.fromkeys(reasons.values())) or "no layer is left"
    more = f" ({len(reasons)} layers)" if len(reasons) > 1 else ""
    return NothingToPrune(
        f"{model.path or 'the model'}: --format {spec.form} stores zeros, and no layer has enough of them{more}: "
        f"{why[:200]}; make some with --sparsity 0.8 or --pattern 2:4"
    )


__all__ = ["Stored", "rounding", "store"]
