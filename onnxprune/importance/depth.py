"""How much residual blocks matter: what they add to the stream, on data or as far as weights tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.calibration.options import MEMORY
from onnxprune.importance.criterion import Scores
from onnxprune.importance.weights import WeightValues
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.stream import Stream
from onnxprune.structure.analysis import Analysis, ChannelGroup
from onnxprune.structure.depth import Block


def group_blocks(analysis: Analysis, group: ChannelGroup) -> list[Block]:
    """The blocks that go together, in order."""
    labels = analysis.components.labels
    return [b for b in analysis.blocks if labels[b.gate[0]] == group.labels[0]]


def closeness(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    source: Sequence[Feeds],
    *,
    memory: float = MEMORY,
    threads: int = 0,
) -> Scores:
    """One minus the cosine between the stream before and after the block, mean over positions.

    After Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect".
    """
    stream = Stream(analysis.model, source, limit=memory, threads=threads)
    out: Scores = {}
    for group in groups:
        blocks = group_blocks(analysis, group)
        last = blocks[-1].node
        sums = last.output(0) if last.op == "Add" else (last.output(3) or last.output(0))
        pair = [blocks[0].source, sums]
        total, count = 0.0, 0
        for batch in stream.compute(pair):
            a, b = (batch[name].astype(np.float64) for name in pair)
            axis = 1 if a.ndim == 4 else -1  # images: channels of every position
            norms = np.sqrt(np.square(a).sum(axis) * np.square(b).sum(axis))
            total += float((1 - (a * b).sum(axis) / np.maximum(norms, 1e-30)).sum())
            count += norms.size
        out[group.name] = np.array([total / max(count, 1)])
    return out


def gains(analysis: Analysis, groups: Sequence[ChannelGroup]) -> Scores:
    """Without data: geometric mean of the gains (Frobenius norm over root of the width) of a block's weights."""
    weights = WeightValues(analysis)
    wide: dict[str, list[str]] = {}
    for p in analysis.coupling.produces:
        wide.setdefault(p.node.key, []).append(p.weight)
    out: Scores = {}
    for group in groups:
        names = [w for b in group_blocks(analysis, group) for n in b.inside for w in wide.get(n.key, ())]
        logs = []
        for name in dict.fromkeys(names):
            w = weights.value(name)
            if w is not None and w.ndim > 1:
                square = float(np.square(np.asarray(w, np.float32), dtype=np.float32).sum(dtype=np.float64))
                logs.append(0.5 * np.log(max(square, 1e-30) / max(w.shape)))
        out[group.name] = np.array([float(np.exp(np.mean(logs))) if logs else 0.0])
    return out
