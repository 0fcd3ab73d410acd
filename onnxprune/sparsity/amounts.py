"""How many weights of every layer go: which layers --ratio and --ignore name, and what an allocator gives each."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.calibration.calibration import Batches
from onnxprune.errors import OptionError
from onnxprune.formats.patterns import NMPattern
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.layers.layer import Layer, sparse_layers
from onnxprune.progress import Progress, counting
from onnxprune.solvers.masks import SOLVERS
from onnxprune.sparsity.allocate import MAX_SPARSITY, ZERO_ALLOCATORS, Counts, below, by_threshold
from onnxprune.sparsity.options import BEST_ALLOCATION, EVEN_ALLOCATION, PLAIN_SOLVER, Zeros
from onnxprune.sparsity.prepare import free_weights
from onnxprune.sparsity.survey import facts

ZEROS = "sparsity:"  # before a glob: of layers that become sparse, which are no units
ANY = 0.5  # ratio of a layer whose count comes from a threshold or a plan
Names = dict[str, set[str]]  # weight -> what globs are matched against: node, weight and output of its layers


def layer_names(model: Model) -> Names:
    """Names of the layers by weight, as the user sees them: before anything is prepared."""
    return names_of(free_weights(model)[0])


def names_of(model: Model) -> Names:
    """Names of the layers by weight."""
    out: Names = {}
    for layer in sparse_layers(model)[0]:
        node = layer.node
        names = (layer.name, layer.weight, layer.initializer, node.proto.name, *node.outputs)
        out.setdefault(layer.initializer, set()).update(names)
    return out


def maskable(model: Model, names: Collection[str]) -> list[Layer]:
    """Layers whose weights are among these initializers, one per weight."""
    found = {x.initializer: x for x in sparse_layers(model)[0] if x.initializer in names}
    return list(found.values())


def matching(names: Names, glob: str) -> set[str]:
    """Weights of the layers that a glob, or a plain name, matches; a weight that layers share is masked as a whole."""
    return {w for w, those in names.items() if any(n == glob or fnmatch.fnmatchcase(n, glob) for n in those)}


def ratios_of(
    names: Names, layers: Sequence[Layer], zeros: Zeros, ratio: Iterable[tuple[str, float]], ignore: Iterable[str]
) -> dict[str, float]:
    """Node -> fraction of zeros; of several globs the last match wins, `ignore` wins over all.

    ratio: globs as they were typed, with or without `sparsity:`. Raises `OptionError` for one that matches nothing.
    """
    pattern = zeros.shape
    base = None if zeros.sparsity is None else float(zeros.sparsity)
    if pattern is not None and pattern.ratio is not None:
        base = pattern.ratio
    if zeros.quality is not None:
        base = ANY
    out = {layer.name: base for layer in layers if base is not None}
    for option, globs in (("--ratio", ratio), ("--ignore", [(glob, 0.0) for glob in ignore])):
        for glob, r in globs:
            matched = matching(names, glob.removeprefix(ZEROS) if option == "--ratio" else glob)
            if not matched:
                some = ", ".join(layer.name for layer in layers[:3])
                raise OptionError(f"{option} {glob!r} matches no layer that can be sparse; there are {some}, ...")
            out.update({layer.name: r for layer in layers if layer.initializer in matched})
    return out


def recorded_ratios(layers: Sequence[Layer], recorded: Mapping[str, Any]) -> dict[str, float]:
    """Node -> `ANY` for the layers of a plan; raises `OptionError` where one is missing or of another size."""
    sizes = {layer.name: int(np.prod(layer.shape)) for layer in layers}
    for node, row in recorded["layers"].items():
        if sizes.get(node) != row["size"]:
            there = f"has {sizes[node]}" if node in sizes else "is not there"
            raise OptionError(f"the plan's sparse layer {node!r} has {row['size']} weights; in the model it {there}")
    return dict.fromkeys(recorded["layers"], ANY)


def counts_of(
    model: Model,
    layers: Sequence[Layer],
    ratios: Mapping[str, float],
    zeros: Zeros,
    data: Batches | None,
    *,
    seed: int,
    progress: Progress,
    saliency: Mapping[str, Array] | None = None,
) -> Counts:
    """Weight -> entries that go, of layers with a weight each.

    saliency: weight -> scores of its entries, of a solver by gradients; a layer without gets what is asked for.
    """
    weights = {layer.initializer: layer.read(model) for layer in layers}
    if zeros.quality is not None:
        return below(weights, float(zeros.quality))
    asked = {layer.initializer: ratios[layer.name] for layer in layers}
    default = EVEN_ALLOCATION if data is None or isinstance(zeros.shape, NMPattern) else BEST_ALLOCATION
    allocator = ZERO_ALLOCATORS[zeros.sparsity_allocate or default]
    if allocator.scored and saliency is not None:
        known = {name: saliency[name] for name in weights if name in saliency}
        most = 1.0 if SOLVERS[zeros.solver or PLAIN_SOLVER].rounds else MAX_SPARSITY
        counts = by_threshold(known, {name: asked[name] for name in known}, most) if known else {}
        return {name: counts.get(name, round(r * weights[name].size)) for name, r in asked.items()}
    if not allocator.needs_data:
        return allocator.allocate({name: np.abs(w) for name, w in weights.items()}, asked)
    assert data is not None, "options are checked before: this allocator needs data"
    found = facts(
        model, layers, zeros.shape, data, errors=allocator.errors, seed=seed, progress=counting(progress, "survey")
    )
    counts = allocator.allocate(found, {name: r for name, r in asked.items() if name in found})
    return counts | {name: round(r * weights[name].size) for name, r in asked.items() if name not in found}


__all__ = ["Names", "counts_of", "layer_names", "maskable", "matching", "names_of", "ratios_of", "recorded_ratios"]
