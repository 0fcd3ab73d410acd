"""The sparse half of the recipe: prepare, mask, choose formats, rewrite, verify."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import NothingToPrune, OptionError, VerificationError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.runtime import Feeds, session
from onnxprune.sparsity.layers import Layer, find_layers
from onnxprune.sparsity.masks import ALLOCATORS, SOLVERS, Pattern, below, lowest_kept, n_of_m
from onnxprune.sparsity.prepare import prepare
from onnxprune.sparsity.rewrite import Format, rewrite, sparse_initializers

FORMATS = ("auto", "dense", "csr", "nm", "sparse-initializer")
OPERATORS = ("auto", "csr", "nm")  # formats with operators of ours
TOLERANCE = 1e-4  # of the largest output: other order of the same sums
PREPARED = 1e-3  # the same, for steps that round weights


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    sparsity: fraction of the weights of every layer that becomes zero; pattern: N:M instead; quality: threshold in
    standard deviations instead; ratio: glob -> fraction for matching layers; recorded: the sparse part of a plan.
    """

    sparsity: float | None = None
    pattern: str | None = None
    quality: float | None = None
    ratio: Sequence[tuple[str, float]] = ()
    ignore: Sequence[str] = ()
    allocate: str = "uniform"
    solver: str = "magnitude"
    format: str = "auto"
    recorded: Mapping[str, Any] | None = None

    @property
    def asked(self) -> bool:
        """Whether anything is to become sparse."""
        given = (self.sparsity, self.pattern, self.quality, self.recorded)
        return bool(self.ratio) or any(x is not None for x in given)

    def check(self) -> None:
        """Raises `OptionError` for what cannot be meant."""
        for option, value, allowed in (
            ("solver", self.solver, SOLVERS),
            ("sparsity-allocate", self.allocate, ALLOCATORS),
            ("format", self.format, FORMATS),
        ):
            if value not in allowed:
                raise OptionError(f"--{option} {value}: unknown; choose one of {', '.join(allowed)}")
        for what, r in [("--sparsity", self.sparsity), *((f"--ratio sparsity:{g}", r) for g, r in self.ratio)]:
            if r is not None and not 0 <= r < 1:
                raise OptionError(f"{what}: {r:g} is not a fraction in [0, 1); 0.8 makes 80% of the weights zero")
        if self.quality is not None and not 0 < self.quality < 100:
            raise OptionError(f"--quality {self.quality:g}: expected a number of standard deviations above 0, as 0.5")
        if self.quality is not None and (self.sparsity is not None or self.pattern is not None):
            raise OptionError("--quality sets a threshold for each layer; leave out --sparsity and --pattern")
        if self.pattern is not None:
            pattern = Pattern.parse(self.pattern)
            fixed = 1 - pattern.n / pattern.m
            if self.ratio or (self.sparsity is not None and abs(self.sparsity - fixed) > 1e-9):
                raise OptionError(
                    f"--pattern {pattern} makes {fixed:.0%} of the weights zero; leave out --sparsity and --ratio "
                    "sparsity:..., and use --ignore for layers that stay dense"
                )
        elif self.format == "nm" and self.recorded is None:
            raise OptionError("--format nm stores N of every M weights; say which with --pattern 2:4")


@dataclass(frozen=True)
class LayerSparsity:
    """A layer: rows x columns of its weight as a matrix, entries that are zero, format and why it is dense."""

    node: str
    op: str
    weight: str
    rows: int
    columns: int
    zeros: int
    format: str
    reason: str

    @property
    def size(self) -> int:
        """Weights of the layer."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Sparsity:
    """What became of the weights. speedup: dense over sparse time, measured by `auto` on `cpu`; error: of the check."""

    solver: str
    pattern: str
    format: str
    layers: tuple[LayerSparsity, ...]
    untouched: tuple[tuple[str, str], ...]
    speedup: float | None
    cpu: str
    threads: int
    error: float | None

    @property
    def zeros(self) -> int:
        """Zero weights of all layers."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def size(self) -> int:
        """Weights of all layers."""
        return sum(layer.size for layer in self.layers)

    def to_plan(self) -> dict[str, Any]:
        """What replays it: counts and formats."""
        layers = {x.node: {"size": x.size, "zeros": x.zeros, "format": x.format} for x in self.layers}
        return {
            "solver": self.solver, "pattern": self.pattern, "format": self.format, "cpu": self.cpu,
            "threads": self.threads, "layers": layers,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        rows = [{**vars(x), "sparsity": x.zeros / max(x.size, 1)} for x in self.layers]
        untouched = [{"node": node, "reason": reason} for node, reason in self.untouched]
        return {
            "solver": self.solver, "pattern": self.pattern, "format": self.format, "zeros": self.zeros,
            "weights": self.size, "speedup": self.speedup, "cpu": self.cpu, "threads": self.threads,
            "error": self.error, "layers": rows, "untouched": untouched,
        }  # fmt: skip


Progress = Callable[[str], None]


def sparsify(
    model: Model,
    wanted: Wanted,
    guesses: Sequence[Feeds],
    *,
    verify: bool = True,
    threads: int = 0,
    dry_run: bool = False,
    progress: Progress = lambda stage: None,
) -> tuple[Model, Sparsity, list[str]]:
    """The sparse model, what became of its layers, and notes. The model that comes in is not changed.

    guesses: inputs to check and measure with; the first that runs is used.
    Raises `OptionError`, `NothingToPrune`, and `VerificationError` where rewriting changed the outputs.
    """
    recorded = wanted.recorded
    form = str(recorded["format"]) if recorded else wanted.format
    prepared, notes = prepare(model, functions=form in OPERATORS)
    layers, untouched = find_layers(prepared)
    if not layers:
        why = "; ".join(dict.fromkeys(reason for _, reason in untouched)) or "it has no MatMul, Gemm or Conv"
        raise NothingToPrune(f"{model.path or 'the model'}: no layer can be sparse: {why}")
    pattern, masked, chosen = _mask(prepared, layers, wanted)
    feeds = _running(masked, guesses) if verify or form == "auto" else None
    if feeds is None and not dry_run and form == "auto" and not recorded:
        raise OptionError("--format auto measures, and onnxruntime cannot run the model; choose another --format")
    formats: dict[str, Format] = {}
    reasons: dict[str, str] = {}
    speedup, cpu, used = None, "", threads
    sparse_form: Format = (pattern.n, pattern.m) if pattern else "csr"
    every = {layer.node: sparse_form for layer in chosen}
    if recorded:
        formats = {n: (sparse_form if v["format"] == "nm" else "csr") for n, v in recorded["layers"].items()
                   if v["format"] in ("csr", "nm")}  # fmt: skip
        reasons = dict.fromkeys(set(every) - set(formats), "as the plan says")
        cpu, used = str(recorded.get("cpu", "")), int(recorded.get("threads", 0))
    elif form == "auto" and not dry_run:
        from onnxprune.sparsity.auto import choose  # loads numba

        assert feeds is not None
        choice = choose(masked, every, chosen, feeds, threads=threads, progress=progress)
        formats, reasons = dict(choice.formats), dict(choice.reasons)
        speedup, cpu = choice.speedup, choice.cpu
    elif form in ("csr", "nm"):
        formats = dict.fromkeys(every, sparse_form if form == "nm" else "csr")
    elif form == "dense":
        notes.append("zeros alone do not make a dense file faster or smaller; --format auto, csr or nm does")
    out = masked
    if form == "sparse-initializer":
        out, _ = sparse_initializers(masked, chosen)
        larger = "as a sparse initializer it would be larger"
        reasons = {layer.node: larger for layer in chosen if layer.weight not in out.sparse}
    elif formats:
        out, more = rewrite(masked, formats)
        notes += more
        present = {n.name for n in out.proto.graph.node if n.domain == "onnxprune"}
        for name in [n for n in formats if n not in present]:
            del formats[name]
            reasons.setdefault(name, "cannot be expressed as a sparse operator")
    error = None
    if feeds is not None and verify and not dry_run:
        progress("verify")
        _same(model, prepared, feeds, PREPARED, "preparing the model for sparse weights")
        error = _same(masked, out, feeds, TOLERANCE, "rewriting the layers")
    rows = []
    for layer in layers:
        w = layer.matrix(masked.weights[layer.weight])
        chosen_form = formats.get(layer.node, "dense")
        kind = "nm" if isinstance(chosen_form, tuple) else chosen_form
        if form == "sparse-initializer" and layer.weight in out.sparse:
            kind = form
        reason = reasons.get(layer.node, "" if layer.node in every else "not asked for")
        zeros = w.size - int(np.count_nonzero(w))
        rows.append(LayerSparsity(layer.node, layer.op, layer.weight, w.shape[0], w.shape[1], zeros, kind, reason))
    found = Sparsity(
        str(recorded["solver"]) if recorded else wanted.solver, str(pattern or ""), form, tuple(rows), tuple(untouched),
        speedup, cpu, used, error,
    )  # fmt: skip
    if formats:
        _describe(out, found)
    return out, found, notes


def layer_names(layer: Layer, model: Model) -> tuple[str, ...]:
    """What globs are matched against: node, weight, output."""
    outputs = [o for n in model.proto.graph.node if n.name == layer.node for o in n.output]
    return (layer.node, layer.weight, *outputs)


def matching(model: Model, layers: Sequence[Layer], glob: str) -> list[Layer]:
    """Layers that a glob, or a plain name, matches."""
    return [x for x in layers if any(n == glob or fnmatch.fnmatchcase(n, glob) for n in layer_names(x, model))]


def _mask(model: Model, layers: Sequence[Layer], wanted: Wanted) -> tuple[Pattern | None, Model, list[Layer]]:
    """The pattern, the model with its zeros, and the layers that got any."""
    recorded = wanted.recorded
    text = recorded["pattern"] if recorded else wanted.pattern
    pattern = Pattern.parse(str(text)) if text else None
    solver = SOLVERS[str(recorded["solver"]) if recorded else wanted.solver]
    if recorded:
        sizes = {layer.node: int(np.prod(layer.shape)) for layer in layers}
        for node, row in recorded["layers"].items():
            if sizes.get(node) != row["size"]:
                found = f"has {sizes[node]}" if node in sizes else "is not there"
                raise OptionError(
                    f"the plan's sparse layer {node!r} has {row['size']} weights; in the model it {found}"
                )
        nodes = {layer.node for layer in layers if recorded["layers"].get(layer.node, {}).get("zeros")}
        ratios: dict[str, float] = {}
    else:
        ratios = _ratios(model, layers, wanted)
        nodes = {layer.node for layer in layers if ratios.get(layer.node, 0.0) > 0}
    by_weight = {layer.weight: layer for layer in layers if layer.node in nodes}  # a shared weight is masked once
    weights = {name: model.weights[name] for name in by_weight}
    for name, w in weights.items():
        if not np.isfinite(w).all():
            raise OptionError(f"weight {name!r} holds NaN or infinity, which have no order; leave it out with --ignore")
    scores = {name: solver(w) for name, w in weights.items()}
    masks: dict[str, Array] = {}
    if pattern:
        for name, s in scores.items():
            layer = by_weight[name]
            masks[name] = layer.unblocks(n_of_m(np.ascontiguousarray(layer.blocks(s)), pattern))
    else:
        if recorded:
            counts = {name: int(recorded["layers"][layer.node]["zeros"]) for name, layer in by_weight.items()}
        elif wanted.quality is not None:
            counts = below(weights, wanted.quality)
        else:
            wants = {name: ratios[layer.node] for name, layer in by_weight.items()}
            counts = ALLOCATORS[wanted.allocate](scores, wants)
        masks = {name: lowest_kept(scores[name], count) for name, count in counts.items()}
    out = model.copy()
    for name, mask in masks.items():
        # +0.0, not w * 0, which would be -0.0 for negative weights and count as stored
        w = np.where(mask, weights[name], np.float32(0)) if not mask.all() else weights[name]
        w = np.ascontiguousarray(w)
        w.flags.writeable = False
        out.weights[name] = w
    return pattern, out, [layer for layer in layers if layer.weight in masks]


def _ratios(model: Model, layers: Sequence[Layer], wanted: Wanted) -> dict[str, float]:
    """Fraction of zeros per layer; of several globs the last match wins, `ignore` wins over all."""
    base = wanted.sparsity
    if wanted.pattern is not None:
        pattern = Pattern.parse(wanted.pattern)
        base = 1 - pattern.n / pattern.m
    if wanted.quality is not None:
        base = 0.5  # any: the threshold counts
    out = {layer.node: base for layer in layers if base is not None}
    for option, globs in (("--ratio", wanted.ratio), ("--ignore", [(glob, 0.0) for glob in wanted.ignore])):
        for glob, r in globs:
            hit = matching(model, layers, glob)
            if not hit:
                some = ", ".join(layer.node for layer in layers[:3])
                raise OptionError(f"{option} {glob!r} matches no layer that can be sparse; there are {some}, ...")
            out.update({layer.node: r for layer in hit})
    for layer in layers:  # a weight is masked as a whole
        shared = [out.get(other.node, 0.0) for other in layers if other.weight == layer.weight]
        if layer.node in out:
            out[layer.node] = min(shared)
    return out


def _running(model: Model, guesses: Sequence[Feeds]) -> Feeds | None:
    """The first inputs with which the model runs."""
    for feeds in guesses:
        try:
            with session(model) as s:
                s.run(None, feeds)
            return feeds
        except Exception:  # onnxruntime's exceptions share no base class
            continue
    return None


def _same(a: Model, b: Model, feeds: Feeds, tolerance: float, what: str) -> float:
    """Largest difference of outputs over the largest magnitude; raises `VerificationError` above the tolerance."""
    if a is b:
        return 0.0
    with session(a) as s:
        expected = {o.name: np.asarray(v) for o, v in zip(s.get_outputs(), s.run(None, feeds), strict=True)}
    try:
        with session(b) as s:
            found = {o.name: np.asarray(v) for o, v in zip(s.get_outputs(), s.run(None, feeds), strict=True)}
    except Exception as e:
        raise VerificationError(f"{what} broke it: {' '.join(str(e).split())[:300]}; nothing was written") from e
    worst = 0.0
    for name, x in expected.items():
        y = found.get(name)
        if y is None or y.shape != x.shape or y.dtype != x.dtype:
            raise VerificationError(f"{what} changed output {name}; nothing was written")
        if x.dtype.kind == "f" and x.size:
            finite = np.isfinite(x) & np.isfinite(y)
            scale = float(np.abs(x[finite]).max(initial=1e-3))
            worst = max(worst, float(np.abs(x[finite].astype(np.float64) - y[finite]).max(initial=0.0)) / scale)
    if not worst <= tolerance:
        raise VerificationError(
            f"{what} changed the outputs by {worst:.1e} of the largest, allowed {tolerance:.0e}; nothing was written"
        )
    return worst


def _describe(model: Model, found: Sparsity) -> None:
    """What was chosen, and on which CPU, in the file's own metadata."""
    kept = [p for p in model.proto.metadata_props if p.key != "onnxprune.sparsity"]
    del model.proto.metadata_props[:]
    model.proto.metadata_props.extend(kept)
    text = json.dumps(found.to_plan(), separators=(",", ":"))
    model.proto.metadata_props.add(key="onnxprune.sparsity", value=text)


def from_plan(data: Any, where: str) -> dict[str, Any]:
    """The sparse part of a plan, checked; raises `OptionError`."""
    try:
        out: dict[str, Any] = {k: str(data[k]) for k in ("solver", "pattern", "format", "cpu")}
        out["threads"] = int(data["threads"])
        rows = [(str(node), int(r["size"]), int(r["zeros"]), str(r["format"])) for node, r in data["layers"].items()]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise OptionError(f"{where}: its sparse part is not what onnxprune wrote ({type(e).__name__}: {e})") from e
    stored = ("dense", "csr", "nm", "sparse-initializer")
    for node, size, zeros, form in rows:
        if not 0 <= zeros <= size or form not in stored or (form == "nm" and not out["pattern"]):
            raise OptionError(
                f"{where}: layer {node!r} has {zeros} zeros of {size} in format {form!r}, which cannot be"
            )
    if out["solver"] not in SOLVERS or out["format"] not in FORMATS:
        raise OptionError(f"{where}: unknown solver {out['solver']!r} or format {out['format']!r}")
    if out["pattern"]:
        Pattern.parse(out["pattern"])
    out["layers"] = {node: {"size": size, "zeros": zeros, "format": form} for node, size, zeros, form in rows}
    return out


__all__ = ["FORMATS", "LayerSparsity", "Sparsity", "Wanted", "from_plan", "matching", "sparsify"]
