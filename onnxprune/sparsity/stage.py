"""The sparse half of the recipe: prepare, mask, choose formats, rewrite, verify."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.runtime import Feeds
from onnxprune.progress import Progress, counting, silent
from onnxprune.solvers.sparse import SOLVERS
from onnxprune.sparsity.check import running, same
from onnxprune.sparsity.layers import Layer, find_layers, keys
from onnxprune.sparsity.masks import ALLOCATORS, DATA_ALLOCATORS, Blocks, Pattern, below, parse_pattern
from onnxprune.sparsity.operators import METADATA, is_sparse
from onnxprune.sparsity.prepare import free_weights, prepare
from onnxprune.sparsity.rewrite import Format, rewrite, sparse_initializers
from onnxprune.sparsity.values import VALUES, round_values
from onnxprune.structure.verify import check_file

if TYPE_CHECKING:
    from onnxprune.sparsity.permute import Permuted
    from onnxprune.sparsity.solve import Data, LayerSolve

BEST = "admm"  # the solver where there are data (tools/bench_solvers.py)
BEST_ALLOCATION = "error"
LONG = 10.0  # seconds that are worth a line
FORMATS = ("auto", "dense", "csr", "nm", "bsr", "columns", "sparse-initializer")
OPERATORS = ("auto", "csr", "nm", "bsr")  # formats with operators of ours
TOLERANCE = 1e-3  # of the largest output: other order of the same sums, which normalisations amplify
PREPARED = 1e-3  # the same, for steps that round weights


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    sparsity: fraction of the weights of every layer that becomes zero; pattern: N:M instead; quality: threshold in
    standard deviations instead; ratio: glob -> fraction for matching layers; recorded: the sparse part of a plan.
    solver, allocate: None for the best that there is; recover: whether the weights that stay make up for the others;
    permute: whether N:M may reorder channels; cache: folder for finished layers.
    """

    sparsity: float | None = None
    pattern: str | None = None
    quality: float | None = None
    ratio: Sequence[tuple[str, float]] = ()
    ignore: Sequence[str] = ()
    allocate: str | None = None
    solver: str | None = None
    format: str = "auto"
    recorded: Mapping[str, Any] | None = None
    recover: bool = True
    values: str = "float32"
    permute: bool = True
    cache: Path | None = None
    seed: int = 0

    @property
    def needs_data(self) -> str:
        """The option that asks for calibration data, "" for none."""
        solver = str(self.recorded["solver"]) if self.recorded else self.solver
        if solver not in (None, "magnitude"):
            return f"--solver {solver}"
        return f"--sparsity-allocate {self.allocate}" if self.allocate in DATA_ALLOCATORS else ""

    @property
    def asked(self) -> bool:
        """Whether anything is to become sparse."""
        given = (self.sparsity, self.pattern, self.quality, self.recorded)
        return bool(self.ratio) or any(x is not None for x in given)

    def check(self) -> None:
        """Raises `OptionError` for what cannot be meant."""
        for option, value, allowed in (
            ("solver", self.solver, SOLVERS),
            ("sparsity-allocate", self.allocate, (*ALLOCATORS, *DATA_ALLOCATORS)),
            ("format", self.format, FORMATS),
            ("values", self.values, VALUES),
        ):
            if value is not None and value not in allowed:
                raise OptionError(f"--{option} {value}: unknown; choose one of {', '.join(allowed)}")
        for what, r in [("--sparsity", self.sparsity), *((f"--ratio sparsity:{g}", r) for g, r in self.ratio)]:
            if r is not None and not 0 <= r < 1:
                raise OptionError(f"{what}: {r:g} is not a fraction in [0, 1); 0.8 makes 80% of the weights zero")
        if self.quality is not None and not 0 < self.quality < 100:
            raise OptionError(f"--quality {self.quality:g}: expected a number of standard deviations above 0, as 0.5")
        if self.quality is not None and (self.sparsity is not None or self.pattern is not None or self.ratio):
            raise OptionError(
                "--quality sets a threshold for each layer; leave out --sparsity, --pattern and --ratio sparsity:..., "
                "and use --ignore for layers that stay dense"
            )
        pattern = parse_pattern(self.pattern) if self.pattern is not None else None
        if self.allocate not in (None, "uniform") and (isinstance(pattern, Pattern) or self.quality is not None):
            raise OptionError(
                f"--sparsity-allocate {self.allocate} spreads --sparsity over the layers; leave it out with "
                f"{'--pattern N:M' if pattern is not None else '--quality'}"
            )
        if isinstance(pattern, Pattern):
            if self.ratio or (self.sparsity is not None and abs(self.sparsity - pattern.ratio) > 1e-9):
                raise OptionError(
                    f"--pattern {pattern} makes {pattern.ratio:.0%} of the weights zero; leave out --sparsity and "
                    "--ratio sparsity:..., and use --ignore for layers that stay dense"
                )
        elif pattern is not None and self.sparsity is None and not self.ratio:
            raise OptionError(f"--pattern {pattern} says where zeros lie; say how many with --sparsity 0.7")
        if pattern is not None and self.solver == "obc" and isinstance(pattern, Blocks):
            raise OptionError(f"--solver obc removes weights one by one; with --pattern {pattern} choose admm")
        if self.format == "bsr" and self.recorded is None and not (isinstance(pattern, Blocks) and pattern.rows):
            raise OptionError("--format bsr stores tiles of weights; make some with --pattern block:4x4 --sparsity 0.7")
        columns = pattern is not None and not isinstance(pattern, Pattern) and not pattern.rows
        if self.format == "columns" and not columns and self.recorded is None:
            raise OptionError("--format columns leaves out whole columns of weights; make some with --pattern column")
        if columns and self.values != "float32" and self.format == "auto":
            raise OptionError(f"--values {self.values}: --pattern column runs dense kernels; or choose --format csr")
        if self.values != "float32" and self.format not in OPERATORS:
            raise OptionError(f"--values {self.values} is for sparse operators; choose --format auto, csr or nm")
        if self.format == "nm" and self.recorded is None and not isinstance(pattern, Pattern):
            raise OptionError("--format nm stores N of every M weights; say which with --pattern 2:4")


@dataclass(frozen=True)
class LayerSparsity:
    """A layer: rows x columns of its weight as a matrix, entries that are zero, whether they were asked for, format,
    why it is dense, and how many zeros were asked for (whole tiles may be more)."""

    node: str
    op: str
    weight: str
    rows: int
    columns: int
    zeros: int
    masked: bool
    format: str
    reason: str
    asked: int = 0

    @property
    def size(self) -> int:
        """Weights of the layer."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Sparsity:
    """What became of the weights. speedup: dense over sparse time, measured by `auto` on `cpu`; error: of the check;
    values: type of stored values; rounding: relative squared error of storing them so; permuted: groups whose channels
    were reordered."""

    solver: str
    pattern: str
    format: str
    layers: tuple[LayerSparsity, ...]
    untouched: tuple[tuple[str, str], ...]
    speedup: float | None
    cpu: str
    threads: int
    error: float | None
    solved: tuple[LayerSolve, ...] = ()
    values: str = "float32"
    rounding: float = 0.0
    permuted: tuple[Permuted, ...] = ()

    @property
    def zeros(self) -> int:
        """Zero weights of all layers, a shared weight counted once."""
        return sum({x.weight: x.zeros for x in self.layers}.values())

    @property
    def size(self) -> int:
        """Weights of all layers, a shared weight counted once."""
        return sum({x.weight: x.size for x in self.layers}.values())

    def to_plan(self) -> dict[str, Any]:
        """What replays it: counts and formats of the layers that were masked."""
        layers = {x.node: {"size": x.size, "zeros": x.asked, "format": x.format} for x in self.layers if x.masked}
        return {
            "solver": self.solver, "pattern": self.pattern, "format": self.format, "cpu": self.cpu,
            "threads": self.threads, "values": self.values, "permute": bool(self.permuted), "layers": layers,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        rows = [{**vars(x), "sparsity": x.zeros / max(x.size, 1)} for x in self.layers]
        untouched = [{"node": node, "reason": reason} for node, reason in self.untouched]
        return {
            "solver": self.solver, "pattern": self.pattern, "format": self.format, "zeros": self.zeros,
            "weights": self.size, "speedup": self.speedup, "cpu": self.cpu, "threads": self.threads,
            "error": self.error, "layers": rows, "untouched": untouched, "solved": [vars(x) for x in self.solved],
            "values": self.values, "rounding": self.rounding, "permuted": [vars(x) for x in self.permuted],
        }  # fmt: skip


def sparsify(
    model: Model,
    wanted: Wanted,
    guesses: Sequence[Feeds],
    *,
    verify: bool = True,
    threads: int = 0,
    dry_run: bool = False,
    data: Data | None = None,
    progress: Progress = silent,
) -> tuple[Model, Sparsity, list[str]]:
    """The sparse model, what became of its layers, and notes. The model that comes in is not changed.

    guesses: inputs to check and measure with; the first that runs is used. A dry run measures, so that its plan
    replays what the run would have made, but does not check. data: what solvers work on; None leaves magnitude.
    Raises `OptionError`, `NothingToPrune`, and `VerificationError` where rewriting changed the outputs.
    """
    recorded = wanted.recorded
    form = str(recorded["format"]) if recorded else wanted.format
    prepared, notes = prepare(model, functions=form in OPERATORS)
    layers, untouched = find_layers(prepared)
    if not layers:
        none = "it has no MatMul, Gemm or Conv"
        if any(is_sparse(node) for node in model.proto.graph.node):
            none = "its layers are sparse already; onnxprune densify MODEL first"
        why = "; ".join(dict.fromkeys(reason for _, reason in untouched)) or none
        raise NothingToPrune(f"{model.path or 'the model'}: no layer can be sparse: {why}")
    values = str(recorded.get("values", "float32")) if recorded else wanted.values
    ratios = _wanted_of(prepared, layers, wanted, layer_names(model))
    pattern, unpermuted = _pattern(wanted), prepared
    permuted: list[Permuted] = []
    if isinstance(pattern, Pattern) and (recorded["permute"] if recorded else wanted.permute):
        mine = [layer for layer in layers if ratios.get(layer.node, 0.0) > 0]
        prepared, permuted, more = _permute(prepared, mine, pattern, data, wanted, progress)
        notes += more
    masked, chosen, counts, solved, more = _mask(prepared, layers, ratios, pattern, wanted, data, progress)
    notes += more
    notes += _torn(chosen, pattern)
    check, measured = verify and not dry_run, form == "auto" and not recorded
    feeds = running(masked, guesses, measured=measured) if check or measured else {}
    formats: dict[str, Format] = {}
    reasons: dict[str, str] = {}
    speedup, cpu, used = None, "", threads
    exact, masked = masked, _rounded(masked, chosen, values)
    sparse_form = _stored(pattern)
    every = {layer.node: sparse_form for layer in chosen}
    tiled = isinstance(pattern, Blocks)
    whole_columns = isinstance(pattern, Blocks) and not pattern.rows
    shrunk: list[str] = []
    if recorded:
        formats = {n: (sparse_form if v["format"] in ("nm", "bsr") else "csr") for n, v in recorded["layers"].items()
                   if v["format"] in ("csr", "nm", "bsr")}  # fmt: skip
        reasons = dict.fromkeys(set(every) - set(formats), "as the plan says")
        cpu, used = str(recorded.get("cpu", "")), int(recorded.get("threads", 0))
    elif whole_columns and form in ("auto", "columns"):
        pass
    elif form == "auto":
        from onnxprune.sparsity.auto import choose  # loads numba

        choice = choose(masked, every, chosen, feeds, values=values, threads=threads, progress=progress)
        formats, reasons = dict(choice.formats), dict(choice.reasons)
        speedup, cpu = choice.speedup, choice.cpu
    elif form in ("csr", "nm", "bsr"):
        formats = dict.fromkeys(every, "csr" if form == "csr" else sparse_form)
    elif form == "dense":
        notes.append("zeros alone do not make a dense file faster or smaller; --format auto, csr or nm does")
    dense = {layer.weight for layer in chosen if layer.node not in formats}
    masked.weights.update({name: exact.weights[name] for name in dense})
    out = masked
    if form == "sparse-initializer":
        out, _ = sparse_initializers(masked, chosen)
        notes.append("onnx's checker takes sparse initializers, its full check (strict shape inference) does not")
        larger = "as a sparse initializer it would be larger"
        reasons = {layer.node: larger for layer in chosen if layer.weight not in out.sparse}
    elif whole_columns and form in ("auto", "columns"):
        out, shrunk, speedup, cpu, more = _shrink(masked, chosen, form, recorded, feeds, threads, progress)
        notes += more
        reasons = dict.fromkeys(set(every) - set(shrunk), "no faster with fewer columns")
    elif formats:
        out, more = rewrite(masked, formats, values)
        notes += more
        present = {n.name for n in out.proto.graph.node if n.domain == "onnxprune"}
        for name in [n for n in formats if n not in present]:
            del formats[name]
            reasons.setdefault(name, "cannot be expressed as a sparse operator")
    error = None
    if check:
        progress("verify")
        same(model, unpermuted, feeds, PREPARED, "preparing the model for sparse weights")
        same(unpermuted, prepared, feeds, PREPARED, "permuting channels (--no-permute leaves them)")
        error, more = same(masked, out, feeds, TOLERANCE, "rewriting the layers")
        # onnx's shape inference knows no sparse initializers, of which onnxruntime has just run all
        notes += [*more, *check_file(prepared, masked if form == "sparse-initializer" else out)]
    rows = []
    for layer in layers:
        w = layer.matrix(masked.weights[layer.weight])
        chosen_form = formats.get(layer.node, "dense")
        kind = chosen_form if isinstance(chosen_form, str) else "bsr" if len(chosen_form) == 3 else "nm"
        if form == "sparse-initializer" and layer.weight in out.sparse:
            kind = form
        if layer.node in shrunk:
            kind = "columns"
        reason = reasons.get(layer.node, "" if layer.node in every else "not asked for")
        zeros = w.size - int(np.count_nonzero(w))
        asked = counts.get(layer.weight, 0) if tiled else zeros
        rows.append(
            LayerSparsity(
                layer.node,
                layer.op,
                layer.weight,
                w.shape[0],
                w.shape[1],
                zeros,
                layer.node in every,
                kind,
                reason,
                asked,
            )
        )
    found = Sparsity(
        solver_of(wanted, data), str(pattern or ""), form, tuple(rows), tuple(untouched), speedup, cpu, used, error,
        tuple(solved), values, _rounding(exact, masked, chosen), tuple(permuted),
    )  # fmt: skip
    if form in OPERATORS:
        _describe(out, found)
    return out, found, notes


def _stored(pattern: Pattern | Blocks | None) -> Format:
    """How operators store what a pattern leaves."""
    if isinstance(pattern, Pattern):
        return (pattern.n, pattern.m)
    return ("bsr", pattern.rows, pattern.columns) if pattern is not None and pattern.rows else "csr"


def _shrink(
    model: Model,
    layers: Sequence[Layer],
    form: str,
    recorded: Mapping[str, Any] | None,
    feeds: Feeds,
    threads: int,
    progress: Progress,
) -> tuple[Model, list[str], float | None, str, list[str]]:
    """Layers without their empty columns: the model, the layers, dense over shrunk time where `auto` measured it, on
    which CPU, notes."""
    from onnxprune.sparsity.auto import LEVEL, cpu, measure  # loads numba
    from onnxprune.sparsity.columns import shrink

    if recorded:
        mine = [x for x in layers if recorded["layers"].get(x.node, {}).get("format") == "columns"]
        return (*shrink(model, mine, least=0)[:2], None, str(recorded["cpu"]), [])
    out, done, notes = shrink(model, layers, least=0 if form == "columns" else 1.0)
    if form == "columns" or not done:
        return out, done, None, "", notes
    progress("timing")
    speedup = measure(model, out, feeds, threads, 1.5)
    if speedup < LEVEL:
        line = f"leaving out columns makes the whole session {speedup:.2f} times as fast here: the model stays dense"
        return model, [], 1.0, cpu(), [line]
    return out, done, speedup, cpu(), notes


def _rounded(model: Model, layers: Sequence[Layer], values: str) -> Model:
    """A copy whose layers have weights as they will be stored."""
    out = model.copy()
    for layer in {x.weight: x for x in layers}.values() if values != "float32" else ():
        try:
            w = layer.restore(round_values(layer.matrix(model.weights[layer.weight]), values))
        except OptionError as e:
            raise OptionError(f"--values {values}: {layer.node!r}: {e}; leave it out with --ignore") from e
        out.weights[layer.weight] = w = np.ascontiguousarray(w)
        w.flags.writeable = False
    return out


def _rounding(exact: Model, stored: Model, layers: Sequence[Layer]) -> float:
    """Squared error of the weights as they are stored, over their squares."""
    error = total = 0.0
    for name in {layer.weight for layer in layers}:
        a, b = exact.weights[name], stored.weights[name]
        if a is not b:
            error += float(np.square(a - b, dtype=np.float64).sum())
        total += float(np.square(a, dtype=np.float64).sum())
    return error / total if total else 0.0


Names = dict[str, set[str]]  # weight -> what globs are matched against: node, weight and output of its layers


def layer_names(model: Model) -> Names:
    """Names of the layers by weight, as the user sees them: before anything is prepared."""
    return _names(free_weights(model)[0])


def _names(model: Model) -> Names:
    nodes = dict(zip(keys(model.proto), model.proto.graph.node, strict=True))
    out: Names = {}
    for layer in find_layers(model)[0]:
        node = nodes[layer.node]
        out.setdefault(layer.weight, set()).update((layer.node, layer.weight, node.name, *node.output))
    return out


def matching(names: Names, glob: str) -> set[str]:
    """Weights of the layers that a glob, or a plain name, matches; a weight that layers share is masked as a whole."""
    return {w for w, found in names.items() if any(n == glob or fnmatch.fnmatchcase(n, glob) for n in found)}


def solver_of(wanted: Wanted, data: Data | None) -> str:
    """The solver that is asked for, or the best that there is."""
    given = str(wanted.recorded["solver"]) if wanted.recorded else wanted.solver
    return given or ("magnitude" if data is None else BEST)


def _pattern(wanted: Wanted) -> Pattern | Blocks | None:
    text = wanted.recorded["pattern"] if wanted.recorded else wanted.pattern
    return parse_pattern(str(text)) if text else None


def _wanted_of(model: Model, layers: Sequence[Layer], wanted: Wanted, names: Names) -> dict[str, float]:
    """Node -> fraction of zeros; of a plan, any above 0 for its layers. names: before preparation."""
    if wanted.recorded is None:
        known = {w: names.get(w, set()) | found for w, found in _names(model).items()}
        return _ratios(known, layers, wanted)
    sizes = {layer.node: int(np.prod(layer.shape)) for layer in layers}
    for node, row in wanted.recorded["layers"].items():
        if sizes.get(node) != row["size"]:
            found = f"has {sizes[node]}" if node in sizes else "is not there"
            raise OptionError(f"the plan's sparse layer {node!r} has {row['size']} weights; in the model it {found}")
    return dict.fromkeys(wanted.recorded["layers"], 1.0)


def _permute(
    model: Model, layers: Sequence[Layer], pattern: Pattern, data: Data | None, wanted: Wanted, progress: Progress
) -> tuple[Model, list[Permuted], list[str]]:
    """The model with its channels in an order in which the pattern costs less; what a weight costs is w^2, or with data
    w^2 / [H^-1]_jj, the error that is left when the others make up for it."""
    from onnxprune.sparsity.permute import permute
    from onnxprune.sparsity.survey import saliencies

    known = {}
    if data is not None:
        known = saliencies(model, layers, data, seed=wanted.seed, progress=counting(progress, "survey"))

    def saliency(layer: Layer) -> Array:
        found = known.get(layer.weight)
        return np.square(model.weights[layer.weight]) if found is None else found

    return permute(model, layers, pattern, saliency, seed=wanted.seed, progress=counting(progress, "permute"))


def _torn(layers: Sequence[Layer], pattern: Pattern | Blocks | None) -> list[str]:
    """A line for the layers that a pattern does not divide."""
    if pattern is None:
        return []
    down, across = (1, pattern.m) if isinstance(pattern, Pattern) else (pattern.rows or 1, pattern.columns)
    torn = [x.node for x in layers if x.segment % across or x.shape[0] // x.group % down]
    if not torn:
        return []
    return [f"--pattern {pattern} does not divide {len(torn)} layers, whose last block is smaller: {', '.join(torn)}"]


def _mask(
    model: Model,
    layers: Sequence[Layer],
    ratios: Mapping[str, float],
    pattern: Pattern | Blocks | None,
    wanted: Wanted,
    data: Data | None,
    progress: Progress,
) -> tuple[Model, list[Layer], Mapping[str, int], list[LayerSolve], list[str]]:
    """The model with its zeros, the layers that were asked for, entries that were to go, what became of them, notes."""
    from onnxprune.sparsity.solve import Method, by_magnitude, estimate, solve
    from onnxprune.sparsity.survey import facts

    recorded = wanted.recorded
    nodes = {layer.node for layer in layers if ratios.get(layer.node, 0.0) > 0}
    by_weight = {layer.weight: layer for layer in layers if layer.node in nodes}  # a shared weight is masked once
    weights = {name: model.weights[name] for name in by_weight}
    for name, w in weights.items():
        if not np.isfinite(w).all():
            raise OptionError(f"weight {name!r} holds NaN or infinity, which have no order; leave it out with --ignore")
    chosen = [layer for layer in layers if layer.weight in weights]
    if recorded:
        counts = {name: int(recorded["layers"][layer.node]["zeros"]) for name, layer in by_weight.items()}
    elif wanted.quality is not None:
        counts = below(weights, wanted.quality)
    else:
        wants = {name: ratios[layer.node] for name, layer in by_weight.items()}
        allocate = wanted.allocate or ("uniform" if data is None or isinstance(pattern, Pattern) else BEST_ALLOCATION)
        if allocate in ALLOCATORS:
            counts = ALLOCATORS[allocate]({name: np.abs(w) for name, w in weights.items()}, wants)
        else:
            assert data is not None
            known = facts(
                model, list(by_weight.values()), pattern, data, errors=allocate == "error", seed=wanted.seed,
                progress=counting(progress, "survey"),
            )  # fmt: skip
            counts = DATA_ALLOCATORS[allocate](known, {name: r for name, r in wants.items() if name in known})
            counts |= {name: round(r * weights[name].size) for name, r in wants.items() if name not in known}
    if data is not None:
        method = Method(solver_of(wanted, data), wanted.recover, seed=wanted.seed)
        took = estimate(chosen, method.solver)
        if took > LONG:
            progress("solve", note=f"solving {len(chosen)} layers with {method.solver}; about {took:.0f} s")
        out, solved = solve(
            model, chosen, counts, pattern, data, method, cache=wanted.cache, progress=counting(progress, "solve")
        )
        return out, chosen, counts, solved, [f"{x.node}: masked by magnitude: {x.reason}" for x in solved if x.reason]
    out = model.copy()
    for name, layer in by_weight.items():
        out.weights[name] = by_magnitude(model, layer, pattern, counts[name])
    return out, chosen, counts, [], []


def _ratios(names: Names, layers: Sequence[Layer], wanted: Wanted) -> dict[str, float]:
    """Fraction of zeros per layer; of several globs the last match wins, `ignore` wins over all."""
    base = wanted.sparsity
    pattern = parse_pattern(wanted.pattern) if wanted.pattern is not None else None
    if pattern is not None and pattern.ratio is not None:
        base = pattern.ratio
    if wanted.quality is not None:
        base = 0.5  # any: the threshold counts
    out = {layer.node: base for layer in layers if base is not None}
    for option, globs in (("--ratio", wanted.ratio), ("--ignore", [(glob, 0.0) for glob in wanted.ignore])):
        for glob, r in globs:
            hit = matching(names, glob)
            if not hit:
                some = ", ".join(layer.node for layer in layers[:3])
                raise OptionError(f"{option} {glob!r} matches no layer that can be sparse; there are {some}, ...")
            out.update({layer.node: r for layer in layers if layer.weight in hit})
    return out


def _describe(model: Model, found: Sparsity) -> None:
    """What was chosen, and on which CPU, in the file's own metadata."""
    kept = [p for p in model.proto.metadata_props if p.key != METADATA]
    del model.proto.metadata_props[:]
    model.proto.metadata_props.extend(kept)
    text = json.dumps(found.to_plan(), separators=(",", ":"))
    model.proto.metadata_props.add(key=METADATA, value=text)


def from_plan(data: Any, where: str) -> dict[str, Any]:
    """The sparse part of a plan, checked; raises `OptionError`."""
    try:
        out: dict[str, Any] = {k: str(data[k]) for k in ("solver", "pattern", "format", "cpu")}
        out["threads"] = index(data["threads"])
        out["values"], out["permute"] = str(data.get("values", "float32")), bool(data.get("permute", False))
        rows = [(str(n), index(r["size"]), index(r["zeros"]), str(r["format"])) for n, r in data["layers"].items()]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise OptionError(f"{where}: its sparse part is not what onnxprune wrote ({type(e).__name__}: {e})") from e
    stored = ("dense", "csr", "nm", "bsr", "columns", "sparse-initializer")
    for node, size, zeros, form in rows:
        if not 0 <= zeros <= size or form not in stored or (form in ("nm", "bsr") and not out["pattern"]):
            raise OptionError(
                f"{where}: layer {node!r} has {zeros} zeros of {size} in format {form!r}, which cannot be"
            )
    if out["solver"] not in SOLVERS or out["format"] not in FORMATS or out["values"] not in VALUES:
        raise OptionError(
            f"{where}: unknown solver {out['solver']!r}, format {out['format']!r} or values {out['values']!r}"
        )
    if out["pattern"] and isinstance(parse_pattern(out["pattern"]), Blocks) and out["solver"] == "obc":
        raise OptionError(f"{where}: solver obc removes weights one by one, not as {out['pattern']}")
    out["layers"] = {node: {"size": size, "zeros": zeros, "format": form} for node, size, zeros, form in rows}
    return out


__all__ = ["FORMATS", "LayerSparsity", "Sparsity", "Wanted", "from_plan", "layer_names", "matching", "sparsify"]
