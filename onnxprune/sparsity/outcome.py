"""What became of the weights, counted on the model that is written, and its record in a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.formats.operators import is_sparse
from onnxprune.formats.patterns import BlockPattern, parse_pattern
from onnxprune.formats.registry import CHOICES, FORMATS
from onnxprune.formats.weight import read_weight
from onnxprune.graph.io import Model
from onnxprune.kernels.names import VALUES
from onnxprune.layers.layer import Layer, node_names
from onnxprune.options import MAX_STEPS
from onnxprune.solvers.masks import SOLVERS
from onnxprune.sparsity.grow import GROWTH, GROWTHS
from onnxprune.sparsity.present import LayerZeros

if TYPE_CHECKING:
    from onnxprune.sparsity.permute import Permuted
    from onnxprune.sparsity.solve import LayerSolve

PRESENT = "present"  # in the place of a solver: the zeros that the model has, and no others


@dataclass(frozen=True)
class LayerSparsity(LayerZeros):
    """What became of a layer. zeros: entries that the written model has no value for, or a zero; masked: whether they
    were asked for; format: of its weight; reason: why it is dense; asked: how many zeros were asked for (whole tiles
    may be more); pattern: by which it is stored, where that is its own."""

    masked: bool
    format: str
    reason: str
    asked: int = 0
    pattern: str = ""


@dataclass(frozen=True)
class Sparsity:
    """What became of the weights. speedup: dense over sparse time, measured by `auto` on `cpu`; error: of the check;
    values: type of stored values; rounding: relative squared error of storing them so; permuted: groups whose channels
    were reordered; steps: in which the zeros grew, by `schedule`, or by a threshold (`quality`)."""

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
    steps: int = 1
    schedule: str = GROWTH
    quality: float | None = None

    @property
    def zeros(self) -> int:
        """Zero weights of all layers, a shared weight counted once."""
        return sum({x.weight: x.zeros for x in self.layers}.values())

    @property
    def size(self) -> int:
        """Weights of all layers, a shared weight counted once."""
        return sum({x.weight: x.size for x in self.layers}.values())

    def recounted(self, zeros: Mapping[str, int]) -> Sparsity:
        """The same after a later stage that made other values of some weights. zeros: weight -> entries that are 0."""
        return replace(self, layers=tuple(replace(x, zeros=zeros.get(x.weight, x.zeros)) for x in self.layers))

    def to_plan(self) -> dict[str, Any]:
        """What replays it: counts and formats of the layers that were masked, or stored as they were."""
        layers = {x.node: {"size": x.size, "zeros": x.asked, "format": x.format} for x in self.layers if x.masked}
        for x in self.layers:
            if x.masked and x.pattern:
                layers[x.node]["pattern"] = x.pattern
        return {
            "solver": self.solver, "pattern": self.pattern, "format": self.format, "cpu": self.cpu,
            "threads": self.threads, "values": self.values, "permute": bool(self.permuted),
            **self._grown(), "layers": layers,
        }  # fmt: skip

    def _grown(self) -> dict[str, Any]:
        """What says how zeros came in several steps."""
        if self.steps == 1:
            return {}
        return {
            "steps": self.steps,
            **({"schedule": self.schedule} if self.quality is None else {"quality": self.quality}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        rows = [{**vars(x), "sparsity": x.share} for x in self.layers]
        untouched = [{"node": node, "reason": reason} for node, reason in self.untouched]
        return {
            "solver": self.solver, "pattern": self.pattern, "format": self.format, "zeros": self.zeros,
            "weights": self.size, "speedup": self.speedup, "cpu": self.cpu, "threads": self.threads,
            "error": self.error, "layers": rows, "untouched": untouched, "solved": [vars(x) for x in self.solved],
            "values": self.values, "rounding": self.rounding, "permuted": [vars(x) for x in self.permuted],
            "steps": self.steps, "schedule": self.schedule, "quality": self.quality,
        }  # fmt: skip


def weights_left(written: Model, layers: Sequence[Layer]) -> dict[str, int]:
    """Node -> weights that are not zero in the model that is written, whatever operator its layer has become.

    layers: of the model before its layers were rewritten; a layer keeps the name of its node.
    """
    nodes = dict(zip(node_names(written.proto), written.proto.graph.node, strict=True))
    named = {node.name: node for node in written.proto.graph.node}
    made = {o: node for node in written.proto.graph.node for o in node.output}
    out = {}
    for layer in layers:
        node = nodes.get(layer.name) or named.get(layer.name) or made.get(layer.key)
        steps = layer.stored is not None and (layer.inside or layer.stored.steps)
        if node is not None and is_sparse(node):
            stored = read_weight(written, node).arrays["values"]
        elif node is None or steps:
            stored = layer.read(written)
        else:  # a smaller layer has another weight
            stored = written.weights[node.input[layer.slot]]
        out[layer.name] = int(np.count_nonzero(stored))
    return out


def from_plan(data: Any, where: str) -> dict[str, Any]:
    """The sparse part of a plan, checked; raises `OptionError`."""
    try:
        out: dict[str, Any] = {k: str(data[k]) for k in ("solver", "pattern", "format", "cpu")}
        out["threads"], out["steps"] = index(data["threads"]), index(data.get("steps", 1))
        out["schedule"] = str(data.get("schedule", GROWTH))
        out["quality"] = None if data.get("quality") is None else float(data["quality"])
        out["values"], out["permute"] = str(data.get("values", "float32")), bool(data.get("permute", False))
        rows: dict[str, dict[str, Any]] = {
            str(n): {
                "size": index(r["size"]), "zeros": index(r["zeros"]), "format": str(r["format"]),
                "pattern": str(r.get("pattern", "")),
            }
            for n, r in data["layers"].items()
        }  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise OptionError(f"{where}: its sparse part is not what onnxprune wrote ({type(e).__name__}: {e})") from e
    if out["solver"] not in (*SOLVERS, PRESENT) or out["format"] not in CHOICES or out["values"] not in VALUES:
        raise OptionError(
            f"{where}: unknown solver {out['solver']!r}, format {out['format']!r} or values {out['values']!r}"
        )
    pattern = parse_pattern(out["pattern"]) if out["pattern"] else None
    if isinstance(pattern, BlockPattern) and out["solver"] in SOLVERS and not SOLVERS[out["solver"]].tiles:
        raise OptionError(f"{where}: solver {out['solver']} removes weights one by one, not as {out['pattern']}")
    if not 1 <= out["steps"] <= MAX_STEPS:
        raise OptionError(f"{where}: {out['steps']} steps; expected 1 to {MAX_STEPS}")
    if out["schedule"] not in GROWTHS or not (out["quality"] is None or out["quality"] > 0):
        raise OptionError(f"{where}: unknown schedule {out['schedule']!r}, or a quality of {out['quality']}")
    for node, row in rows.items():
        size, zeros, form = row["size"], row["zeros"], row["format"]
        layer_pattern = parse_pattern(row["pattern"]) if row["pattern"] else pattern
        fits = form in FORMATS and (FORMATS[form].storage is None or FORMATS[form].serves(layer_pattern))
        if not 0 <= zeros <= size or not fits:
            raise OptionError(
                f"{where}: layer {node!r} has {zeros} zeros of {size} in format {form!r}, which cannot be"
            )
    out["layers"] = rows
    return out


__all__ = ["PRESENT", "LayerSparsity", "Sparsity", "from_plan", "weights_left"]
