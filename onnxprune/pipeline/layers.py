"""What became of every layer, and what the level database said of every group."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.allocation.choose import Chooser
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.links import read_at
from onnxprune.layers.layer import node_names
from onnxprune.pipeline.setup import Pruning
from onnxprune.report import Extent, LayerReport, LevelsReport
from onnxprune.sparsity.present import LayerZeros, zeros_of

FUSED = 5  # nodes in a row that may have become one


def layers_of(
    original: Model, pruning: Pruning, calls: tuple[Mapping[str, float], Mapping[str, float]]
) -> tuple[LayerReport, ...]:
    """Every layer of the original, beside what the written model has of it; none after a dry run.

    calls: seconds of every node of both, by name.
    """
    if pruning.model is None:
        return ()
    left: dict[str, LayerZeros] = {x.node: x for x in zeros_of(pruning.model)}
    if pruning.sparsity is not None:  # which knows those that are operators of ours by now
        left |= {x.node: x for x in pruning.sparsity.layers}
    before, after = (with_fused(m, c) for m, c in zip((original, pruning.model), calls, strict=True))
    return tuple(
        LayerReport(
            x.node, x.op, x.weight, _extent(x, before),
            None if x.node not in left else _extent(left[x.node], after),
        )
        for x in zeros_of(original)
    )  # fmt: skip


def with_fused(model: Model, calls: Mapping[str, float]) -> dict[str, float]:
    """The calls, also by the first node of those that onnxruntime made one, which it calls by their output."""
    nodes, out = model.proto.graph.node, dict(calls)
    read = read_at(nodes)
    for name, node in zip(node_names(model.proto), nodes, strict=True) if calls else ():
        tensor = next(iter(node.output), "")
        for _ in range(FUSED):
            if name in out or tensor in calls or len(read[tensor]) != 1:
                break
            tensor = next(iter(nodes[read[tensor][0]].output), "")
        if tensor in calls:
            out.setdefault(name, calls[tensor])
    return out


def _extent(x: LayerZeros, seconds: Mapping[str, float]) -> Extent:
    return Extent(x.rows, x.columns, x.zeros, seconds.get(x.node))


def levels_of(chooser: Chooser, keeps: Mapping[str, Array]) -> tuple[LevelsReport, ...]:
    """The level database of the whole model, where one was made, and what was chosen of it. keeps: group -> which of
    its units stay, for those that lose some."""
    sizes = {g.name: g.size for g in chooser.whole.groups}
    found = {name: levels for levels in chooser.levels.values() for name in levels.kept}
    return tuple(
        LevelsReport(
            name, sizes[name], tuple(levels.kept[name]), tuple(levels.damage[name]),
            int(keeps[name].sum()) if name in keeps else sizes[name],
        )
        for name, levels in found.items()
    )  # fmt: skip


__all__ = ["layers_of", "levels_of"]
