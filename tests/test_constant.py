"""What is said to be constant is, and what is said to change nothing changes nothing: in the model of every rule, with
zeros in its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import pytest

from models.rules import ROWS, Row, build
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, load
from onnxprune.graph.node import Node
from onnxprune.graph.quantized import numbers
from onnxprune.graph.traits import TRAITS
from onnxprune.recovery.bias import bias_shifts
from onnxprune.runtime.feeds import likely_feeds
from onnxprune.runtime.session import UNRUNNABLE, Feeds, session
from onnxprune.structure.analysis import Analysis, ChannelGroup, Dead
from onnxprune.structure.constant import Known
from onnxprune.structure.dead import dead_units
from onnxprune.structure.groups import analyze
from onnxprune.structure.masked import masked_model
from onnxprune.structure.rules.attention import EXPERTS
from onnxprune.structure.surgery import prune_model

RUN = [row for row in ROWS if row.law == "onnxruntime"]


def nothing(node: Node, name: str, weights: Mapping[str, Array]) -> Array:
    """What a node reads as zero where a weight is, of its shape: of bytes those that stand for it."""
    w = weights[name]
    out = np.zeros_like(w)
    if w.dtype.kind not in "iu" or w.dtype.itemsize > 1:
        return out
    for byte in range(np.iinfo(w.dtype).min, np.iinfo(w.dtype).max + 1):
        full = {**weights, name: np.full_like(w, byte)}
        found = numbers(node, name, full.get)
        if found is not None:
            out[(found == 0).all(-1) if found.ndim > w.ndim else found == 0] = byte
    return out


def put_zeros(analysis: Analysis) -> None:
    """Of every four outputs of a weight nothing makes the second and, but for its bias, the last (of the second layer
    of experts the others); nothing reads the third of its inputs."""
    weights = analysis.model.weights
    zero: dict[str, Array] = {}

    def put(node: Node, name: str, axis: int, start: int, step: int) -> None:
        if name in weights and weights[name].ndim:
            zero[name] = zero[name] if name in zero else nothing(node, name, weights)
            weights[name] = np.array(weights[name])
            np.moveaxis(weights[name], axis, 0)[start::step] = np.moveaxis(zero[name], axis, 0)[start::step]

    for p in analysis.coupling.produces:
        n, trait = p.node, TRAITS.get(p.node.op)
        if n.op in EXPERTS:
            for k, (weight, _, bias, _) in enumerate(EXPERTS[n.op]):
                put(n, n.input(weight), 1, 1 - k % 2, 2)
                put(n, n.input(bias), -1, 1 - k % 2, 4)
            continue
        put(n, p.weight, p.axis, 1, 2)
        if trait is not None and trait.weights and p.weight == n.input(trait.weight):
            put(n, p.weight, trait.axes(n, trait.weight)[0], 2, 4)
        if trait is not None and trait.bias is not None:
            put(n, n.input(trait.bias), -1, 1, 4)


def run(model: Model, feeds: Feeds, *probes: str) -> dict[str, Array]:
    """Outputs, and tensors inside, in float64."""
    model = model.copy()
    model.proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in probes)
    with session(model, optimize=False) as s:
        names = [o.name for o in s.get_outputs()]
        return {n: np.asarray(v).astype(np.float64) for n, v in zip(names, s.run(names, feeds), strict=True)}


def untrue(known: Known, values: Mapping[str, Array]) -> Iterator[str]:
    """Where something else is said of a tensor than what it holds."""
    for name, value in values.items():
        for axis, ids in enumerate(known.c.axes(name)):
            if ids is not None:
                held = np.moveaxis(value, axis, -1)
                said = np.broadcast_to(known.value[ids], held.shape)
                at = ~np.isnan(said) & ~np.isnan(held)  # nothing times what is no number is none
                if not np.allclose(held[at], said[at], rtol=1e-4, atol=1e-4):
                    yield f"{name} along {axis}: {known.value[ids]}"


def can_go(groups: tuple[ChannelGroup, ...], dead: Dead) -> bool:
    """Whether what stays is what a plan may keep."""
    stay = [(g, ~dead[g.name]) for g in groups]
    return all(k.sum() >= g.least and all(np.ptp(b @ k) == 0 for b in g.blocks) for g, k in stay)


@pytest.mark.parametrize("row", RUN, ids=[f"{r.op.removeprefix('com.microsoft::')}-{r.form}" for r in RUN])
def test_rule(row: Row) -> None:
    analysis = analyze(load(build(row.text)))
    put_zeros(analysis)
    c, graph = analysis.coupling, analysis.model.proto.graph
    outputs = [o.name for o in graph.output]
    probes = [o for node in graph.node for o in node.output if c.axes(o) and o not in outputs]
    feeds = likely_feeds(analysis.model, c.shapes, None)[0]
    try:
        values = run(analysis.model, feeds, *probes)
    except UNRUNNABLE:
        assert not any(" channels: " in line for line in row.expect)
        return
    known = Known(analysis, np.ones(c.size, bool))
    assert list(untrue(known, values)) == []

    dead = dead_units(analysis, absorbed=True)
    absorbed = can_go(analysis.groups, dead)
    dead = dead if absorbed else dead_units(analysis)
    keep = analysis.keep_ids({name: ~units for name, units in dead.items()})
    if not keep.all():
        model = prune_model(analysis, keep, bias_shifts(analysis, keep)) if absorbed else masked_model(analysis, keep)
        found = run(model, feeds)
        for name in outputs:
            np.testing.assert_allclose(found[name], values[name], rtol=1e-3, atol=1e-3)
