"""Which layers run faster sparse, measured: `--format auto`.

A sparse operator stops fusions and blocked layouts of its neighbours, so a layer that is faster by itself may make the
whole slower. Time per node orders the layers; whole sessions decide, dense and sparse in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune import kernels
from onnxprune.errors import UserError
from onnxprune.formats.format import Packing
from onnxprune.formats.operators import is_sparse
from onnxprune.formats.rewrite import INEXPRESSIBLE, rewrite
from onnxprune.graph.io import Model
from onnxprune.graph.links import readers
from onnxprune.graph.node import opsets, walk
from onnxprune.layers.layer import Layer, node_names
from onnxprune.runtime.profile import node_times
from onnxprune.runtime.session import Feeds, session
from onnxprune.runtime.timing import cpu, timed

LEAST = 0.15  # sparsity below which a layer is not tried
LEVEL = 1.02  # speed-up of the whole session below which it stays dense
ROUNDS = 7, 500  # of a comparison, at least and at most
STEPS = (0.0, 0.8, 1.0, 1.15, 1.4, 1.8, 2.5)  # speed-ups of single layers from which sets are tried
Tell = Callable[[str], None]  # takes a line on what is done now


@dataclass(frozen=True)
class Chosen:
    """formats: node -> format of the layers that are rewritten; reasons: node -> why it stays dense.

    speedup: dense over sparse time of the whole session, None where nothing was measured; cpu, threads: what that was
    measured on; tried: number of sparse layers and speed-up of the sets that were.
    """

    formats: Mapping[str, Packing]
    reasons: Mapping[str, str]
    speedup: float | None = None
    cpu: str = ""
    threads: int = 0
    tried: Sequence[tuple[int, float]] = ()


def choose(
    masked: Model,
    formats: Mapping[str, Packing],
    layers: Sequence[Layer],
    feeds: Feeds,
    *,
    values: str = "float32",
    threads: int = 0,
    seconds: float = 1.5,
    progress: Tell = lambda text: None,
) -> Chosen:
    """Try growing sets of layers in whole sessions; the fastest set, or none where none is faster than dense.

    masked: the dense model with zeros; formats: of each layer that may be rewritten; values: type of stored
    values; seconds: for each set.
    Raises `UserError` where sparse operators cannot run here.
    """
    missing = kernels.available()
    if missing:
        raise UserError(
            f"--format auto measures sparse kernels, which cannot run here: {missing}; or choose --format dense or csr"
        )
    reasons: dict[str, str] = {}
    shapes = {layer.name: layer for layer in layers}
    able: dict[str, Packing] = {}
    for name, packing in formats.items():
        w = shapes[name].read(masked)
        sparsity = 1 - np.count_nonzero(w) / w.size
        if sparsity < LEAST:
            reasons[name] = f"only {sparsity:.0%} of its weights are zero"
        else:
            able[name] = packing
    rewritten, _ = rewrite(masked, able, values)
    present = {n.name for n in rewritten.proto.graph.node if is_sparse(n)}
    for name in [n for n in able if n not in present]:
        reasons[name] = INEXPRESSIBLE
        del able[name]
    if not able:
        return Chosen({}, reasons, 1.0, cpu(), threads)
    progress("timing each layer")
    alone = _layer_speedups(masked, rewritten, list(able), feeds, threads)
    best: tuple[float, dict[str, Packing]] = (1.0, {})
    tried: list[tuple[int, float]] = []
    sizes: set[int] = set()
    for step in STEPS:
        part = {n: f for n, f in able.items() if alone[n] >= step}
        if not part or len(part) in sizes:
            continue
        sizes.add(len(part))
        progress(f"timing {len(part)} of {len(able)} layers sparse")
        speedup = measure(masked, rewrite(masked, part, values)[0], feeds, threads, seconds)
        tried.append((len(part), speedup))
        if speedup > best[0]:
            best = speedup, part
    if best[1]:  # the best of several is partly luck: once more, alone
        progress("confirming")
        again = measure(masked, rewrite(masked, best[1], values)[0], feeds, threads, 2 * seconds)
        best = (again, best[1]) if min(again, best[0]) >= LEVEL else (1.0, {})
    for name in able:
        if name not in best[1]:
            why = f"alone {alone[name]:.2f} times as fast as dense" if best[1] else "no set of sparse layers is faster"
            reasons[name] = f"{why}, with the whole session in view"
    return Chosen(best[1], reasons, best[0], cpu(), threads, tuple(tried))


def quickest(
    masked: Model,
    formats: Mapping[str, Sequence[Packing]],
    feeds: Feeds,
    *,
    values: str = "float32",
    threads: int = 0,
    progress: Tell = lambda text: None,
) -> dict[str, Packing]:
    """The format with which every layer alone is fastest. formats: node -> those that hold, the first where none can
    be measured."""
    best = {name: (0.0, each[0]) for name, each in formats.items()}
    several = {name: each for name, each in formats.items() if len(each) > 1}
    for k in range(max(map(len, several.values()), default=0)):
        progress("timing each format")
        round_ = {name: each[k] for name, each in several.items() if k < len(each)}
        rewritten, _ = rewrite(masked, round_, values)
        present = {n.name for n in rewritten.proto.graph.node if is_sparse(n)}
        names = [name for name in round_ if name in present]
        for name, speedup in _layer_speedups(masked, rewritten, names, feeds, threads).items():
            best[name] = max(best[name], (speedup, round_[name]), key=lambda x: x[0])
    return {name: packing for name, (_, packing) in best.items()}


def measure(dense: Model, sparse: Model, feeds: Feeds, threads: int, seconds: float) -> float:
    """Dense over sparse time, medians of runs in turn. threads: 0 for all cores; seconds: for both models."""
    least, most = ROUNDS
    with session(dense, threads=threads) as a, session(sparse, threads=threads) as b:
        medians = np.median(timed([a, b], [feeds, feeds], seconds, least=least, most=most), axis=0)
    return float(medians[0] / medians[1])


def _layer_speedups(
    masked: Model, rewritten: Model, names: Sequence[str], feeds: Feeds, threads: int
) -> dict[str, float]:
    """Dense over sparse time of every layer, with what the sparse operator absorbs; 1 where onnxruntime hides it."""
    dense, sparse = (node_times(m, feeds, threads) for m in (masked, rewritten))
    nodes = list(walk(masked.proto.graph, opsets(masked.proto)))
    label = dict(zip(node_names(masked.proto), nodes, strict=True))
    ends = {n.name: n.output[0] for n in rewritten.proto.graph.node}
    read_by = readers(nodes)
    out = {}
    for name in names:
        chain = [label[name]]
        while chain[-1].output(0) != ends[name] and len(read_by.get(chain[-1].output(0), ())) == 1:
            chain += read_by[chain[-1].output(0)]
        spent = sum(dense.pop(node.proto.name, 0.0) for node in chain)
        alone = sparse.get(name, 0.0)
        out[name] = spent / alone if spent and alone else 1.0
    return out
