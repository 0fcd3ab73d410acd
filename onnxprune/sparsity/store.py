"""How the zeros of a model lie in its file: a format for every layer, and the model that is written.

In goes a model whose layers have their zeros; out come the model as it is stored, the dense model that it must equal,
and what every layer became. The zeros are those that were made, all by one pattern, or those that the model had, where
`present.forms` finds what holds and pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.formats.operators import is_sparse
from onnxprune.formats.patterns import Blocks, parse_pattern
from onnxprune.formats.rewrite import Format, rewrite, sparse_initializers
from onnxprune.formats.values import round_values
from onnxprune.graph.io import Model, weight_bytes
from onnxprune.layers.layer import Layer
from onnxprune.progress import Progress
from onnxprune.runtime.session import Feeds
from onnxprune.sparsity.outcome import STORED, kind_of, stored_by
from onnxprune.sparsity.present import forms as forms_of
from onnxprune.sparsity.spec import Spec

INEXPRESSIBLE = "cannot be expressed as a sparse operator"


@dataclass(frozen=True, eq=False)
class Stored:
    """model: as it is written; plain: the dense model with the same weights, which it must equal; formats: node ->
    format of the layers that operators of ours compute; kinds: node -> name of the format of those that are not dense;
    reasons: node -> why it is dense; speedup, cpu, threads: as `auto` measured; checked: what onnx's shape inference
    reads."""

    model: Model
    plain: Model
    formats: Mapping[str, Format] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    speedup: float | None = None
    cpu: str = ""
    threads: int = 0
    notes: tuple[str, ...] = ()

    @property
    def checked(self) -> Model:
        """What onnx's shape inference can read: it knows no sparse initializers."""
        return self.plain if "sparse-initializer" in self.kinds.values() else self.model


@dataclass(frozen=True, eq=False)
class _Chosen:
    """A format for the layers that get one, why the others stay dense, and what was measured."""

    formats: Mapping[str, Format]
    reasons: Mapping[str, str]
    threads: int
    speedup: float | None = None
    cpu: str = ""


def store(
    model: Model, layers: Sequence[Layer], spec: Spec, feeds: Feeds, *, threads: int, progress: Progress
) -> Stored:
    """The model with its zeros stored. layers: those whose zeros were asked for; feeds: what `auto` measures with.

    Raises `NothingToPrune` where a model has no zeros of its own that are worth it.
    """
    exact, model = model, _positive(model, layers) if spec.present else model
    if spec.form == "sparse-initializer":
        return _initializers(model, layers, spec, threads)
    if _whole_columns(spec):
        return _columns(model, layers, spec, feeds, threads, progress)
    rounded = _rounded(model, layers, spec.values)
    chosen = _choose(rounded, layers, spec, feeds, threads, progress)
    if spec.present and not spec.recorded and not chosen.formats and not spec.measured:
        raise _nothing(model, spec, chosen.reasons)
    return _operators(exact, rounded, layers, spec, chosen)


def rounding(exact: Model, stored: Model, layers: Sequence[Layer]) -> float:
    """Squared error of the weights as they are stored, over their squares."""
    error = total = 0.0
    for name in {layer.weight for layer in layers}:
        a, b = exact.weights[name], stored.weights[name]
        if a is not b:
            error += float(np.square(a - b, dtype=np.float64).sum())
        total += float(np.square(a, dtype=np.float64).sum())
    return error / total if total else 0.0


def _whole_columns(spec: Spec) -> bool:
    """Whether layers lose their empty columns."""
    whole = isinstance(spec.pattern, Blocks) and not spec.pattern.rows
    return whole and spec.form in ("auto", "columns")


def _choose(
    model: Model, layers: Sequence[Layer], spec: Spec, feeds: Feeds, threads: int, progress: Progress
) -> _Chosen:
    """A format of ours for every layer that gets one."""
    if spec.recorded is not None:
        return _as_recorded(layers, spec)
    if spec.form == "dense":
        return _Chosen({}, {}, threads)
    every: dict[str, list[Format]] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        found: list[Format] | str = [stored_by(spec.pattern) if spec.form != "csr" else "csr"]
        if spec.present:
            found = forms_of(layer, model.weights[layer.weight], spec.form, spec.values)
        if isinstance(found, str):
            reasons[layer.name] = found
        else:
            every[layer.name] = found
    if spec.form != "auto":
        return _Chosen({node: found[0] for node, found in every.items()}, reasons, threads)
    from onnxprune.formats.auto import choose, quickest  # loads numba

    mine = [layer for layer in layers if layer.name in every]
    one = quickest(model, every, feeds, values=spec.values, threads=threads, progress=progress)
    choice = choose(model, one, mine, feeds, values=spec.values, threads=threads, progress=progress)
    return _Chosen(dict(choice.formats), reasons | dict(choice.reasons), threads, choice.speedup, choice.cpu)


def _as_recorded(layers: Sequence[Layer], spec: Spec) -> _Chosen:
    """What a plan says."""
    assert spec.recorded is not None
    formats: dict[str, Format] = {}
    for node, row in spec.recorded["layers"].items():
        own = parse_pattern(row["pattern"]) if row.get("pattern") else spec.pattern
        if row["format"] in ("csr", "nm", "bsr"):
            formats[node] = "csr" if row["format"] == "csr" else stored_by(own)
    reasons = dict.fromkeys({x.name for x in layers} - set(formats), "as the plan says")
    used = int(spec.recorded.get("threads", 0))
    return _Chosen(formats, reasons, used, cpu=str(spec.recorded.get("cpu", "")))


def _operators(exact: Model, rounded: Model, layers: Sequence[Layer], spec: Spec, chosen: _Chosen) -> Stored:
    """The model with operators of ours for the layers that have a format."""
    formats, reasons = dict(chosen.formats), dict(chosen.reasons)
    plain = _exact_where(rounded, exact, layers, formats)
    notes: list[str] = []
    out = plain
    if formats:
        out, notes = rewrite(plain, formats, spec.values)
        made = {node.name for node in out.proto.graph.node if is_sparse(node)}
        for name in [n for n in formats if n not in made]:
            del formats[name]
            reasons.setdefault(name, INEXPRESSIBLE)
        if len(formats) < len(chosen.formats):
            plain, out = (_exact_where(m, exact, layers, formats) for m in (plain, out))
    if spec.form == "dense" and not spec.recorded:
        notes.append("zeros alone do not make a dense file faster or smaller; --format auto, csr or nm does")
    kinds = {name: kind_of(form) for name, form in formats.items()}
    if spec.present and not spec.recorded and not spec.measured:
        before, after = (int(m.proto.ByteSize()) + weight_bytes(m) for m in (exact, out))
        if not formats or after >= before:
            larger = f"the file would have {after} bytes instead of {before}, with the operators' functions"
            raise _nothing(exact, spec, reasons if not formats else dict.fromkeys(formats, larger))
    if spec.present and spec.measured and not formats:
        notes.append("no set of sparse layers is faster here: the model stays dense; --format csr makes smaller files")
    return Stored(out, plain, formats, kinds, reasons, chosen.speedup, chosen.cpu, chosen.threads, tuple(notes))


def _exact_where(model: Model, exact: Model, layers: Sequence[Layer], formats: Mapping[str, Format]) -> Model:
    """A copy in which layers that stay dense have their weights as they were before they were rounded."""
    out = model.copy()
    dense = {layer.weight for layer in layers if layer.name not in formats}
    out.weights.update({name: exact.weights[name] for name in dense if name in out.weights})
    return out


def _initializers(model: Model, layers: Sequence[Layer], spec: Spec, threads: int) -> Stored:
    """ONNX's own sparse tensors."""
    out, _ = sparse_initializers(model, layers)
    kinds = {layer.name: spec.form for layer in layers if layer.weight in out.sparse}
    reasons = {layer.name: "as a sparse initializer it would be larger" for layer in layers if layer.name not in kinds}
    if spec.present and not spec.recorded and not kinds:
        raise _nothing(model, spec, reasons)
    note = "onnx's checker takes sparse initializers, its full check (strict shape inference) does not"
    cpu = ""
    if spec.recorded is not None:
        cpu, threads = str(spec.recorded.get("cpu", "")), int(spec.recorded.get("threads", 0))
    return Stored(out, model.copy(), {}, kinds, reasons, cpu=cpu, threads=threads, notes=(note,))


def _columns(
    model: Model, layers: Sequence[Layer], spec: Spec, feeds: Feeds, threads: int, progress: Progress
) -> Stored:
    """Layers without their empty columns, where `auto` finds that faster."""
    from onnxprune.formats.auto import LEVEL, measure
    from onnxprune.formats.columns import shrink
    from onnxprune.runtime.timing import cpu

    mine, least = layers, 0.0 if spec.form == "columns" else 1.0
    if spec.recorded is not None:
        rows = spec.recorded["layers"]
        mine, least = [x for x in layers if rows.get(x.name, {}).get("format") == "columns"], 0.0
    out, done, notes = shrink(model, mine, least=least)
    found = Stored(out, model.copy(), threads=threads, notes=tuple(notes))
    if spec.recorded is not None:
        recorded = spec.recorded
        found = replace(found, cpu=str(recorded["cpu"]), threads=int(recorded.get("threads", 0)), notes=())
    elif spec.form == "auto" and done:
        progress("timing")
        found = replace(found, speedup=measure(model, out, feeds, threads, 1.5), cpu=cpu())
        assert found.speedup is not None
        if found.speedup < LEVEL:
            fast = f"leaving out columns makes the whole session {found.speedup:.2f} times as fast here"
            line = f"{fast}: the model stays dense"
            done, found = [], replace(found, model=found.plain, speedup=1.0, notes=(line,))
    reasons = dict.fromkeys({x.name for x in layers} - set(done), "no faster with fewer columns")
    return replace(found, kinds=dict.fromkeys(done, "columns"), reasons=reasons)


def _positive(model: Model, layers: Sequence[Layer]) -> Model:
    """A copy in which -0.0, which computes what +0.0 computes, is +0.0 in these layers, so that it can be left out."""
    out = model.copy()
    for name in {layer.weight for layer in layers}:
        w = model.weights[name]
        if (np.signbit(w) & (w == 0)).any():
            out.weights[name] = w = np.where(w == 0, np.float32(0), w)
            w.flags.writeable = False
    return out


def _rounded(model: Model, layers: Sequence[Layer], values: str) -> Model:
    """A copy whose layers have weights as they will be stored."""
    out = model.copy()
    for layer in {x.weight: x for x in layers}.values() if values != "float32" else ():
        try:
            w = layer.restore(round_values(layer.matrix(model.weights[layer.weight]), values))
        except OptionError as e:
            raise OptionError(f"--values {values}: {layer.name!r}: {e}; leave it out with --ignore") from e
        out.weights[layer.weight] = w = np.ascontiguousarray(w)
        w.flags.writeable = False
    return out


def _nothing(model: Model, spec: Spec, reasons: Mapping[str, str]) -> NothingToPrune:
    """That no layer has zeros worth it, and the way out."""
    why = "; ".join(dict.fromkeys(reasons.values())) or "no layer is left"
    more = f" ({len(reasons)} layers)" if len(reasons) > 1 else ""
    return NothingToPrune(
        f"{model.path or 'the model'}: --format {spec.form} stores zeros, and no layer has enough of them{more}: "
        f"{why[:200]}; make some with --sparsity 0.8 or --pattern 2:4"
    )


__all__ = ["STORED", "Stored", "rounding", "store"]
