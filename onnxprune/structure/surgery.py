"""The one place where a model is cut: slice the weights, let sizes follow, check every shape.

`prune_model` walks the nodes of a copy once, in order. Before a node, its rule rewrites the sizes that it holds
(`group`, `hidden_size`, a Reshape's target, ...). After it, the shapes of its outputs are inferred again and must be
the number of survivors: a rule that forgot something fails here and not in the user's program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import onnx

from onnxprune.errors import InternalError
from onnxprune.graph.arrays import Array, Taken
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.links import reads
from onnxprune.graph.node import Node
from onnxprune.structure.analysis import Analysis, Keep, weight_axes
from onnxprune.structure.groups import incomplete
from onnxprune.structure.rules import RULES
from onnxprune.structure.surgeon import Surgeon

LARGE = 1 << 26  # bytes of a weight that is not cut in memory


def slice_weights(analysis: Analysis, keep: Keep) -> dict[str, Array]:
    """The weights that shrink without the ids that are False in `keep`, bool `(ids,)`; large ones are cut when they are
    read or written."""
    c = analysis.coupling
    sliced: dict[str, Array] = {}
    for name, w in analysis.model.weights.items():
        kept = [(axis, keep[ids]) for axis, ids in weight_axes(c, name)] if name in c.base else []
        if all(k.all() for _, k in kept):
            continue
        if name in c.grouped:
            out = c.axes(name)[0]
            assert out is not None
            sliced[name] = _slice_grouped(w, keep[out], keep[c.grouped[name]])
            continue
        taken = Taken(w, {axis: np.flatnonzero(k) for axis, k in kept if not k.all()})
        sliced[name] = cast(Array, taken if w.nbytes > LARGE else np.asarray(taken))
    return sliced


def prune_model(
    analysis: Analysis,
    keep: Keep,
    shifts: Mapping[str, Array] | None = None,
    *,
    sliced: Mapping[str, Array] | None = None,
) -> Model:
    """A new model without the ids that are False in `keep`, bool `(ids,)`.

    shifts: node key -> what is added to its bias, `(out channels of the original,)`.
    sliced: what `slice_weights` gave, where several models share it.
    Raises `InternalError` where a shape does not come out as the number of survivors.
    """
    surgeon = Surgeon(analysis, keep, shifts or {}, slice_weights(analysis, keep) if sliced is None else sliced)
    resize_graph(surgeon, surgeon.model.proto.graph)
    if surgeon.closed:
        _drop_unread(surgeon)
    _tidy(surgeon)
    return surgeon.model


def resize_node(s: Surgeon, node: Node) -> None:
    """Rewrite the sizes of one node, and note what has to be put around it."""
    s.freeze(node)
    block = s.closed.get(node.key)
    if block is not None:
        s.bypass(node, block)
        return
    rule = RULES.get(node.op)
    if rule is not None and rule.resize is not None and incomplete(s.coupling, node) is None:
        rule.resize(s, node)
    if node.key in s.shifts:
        s.shift_output(node, s.shifts[node.key])


def resize_graph(s: Surgeon, graph: onnx.GraphProto) -> None:
    """Visit every node, put the inserted nodes in place, and check the shapes."""
    placed: list[onnx.NodeProto] = []
    changed = False
    for proto in graph.node:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        node = Node(proto, s.shapes.opsets.get(domain, 1))
        for body in node.bodies():
            s.shapes.enter(node, body)
            resize_graph(s, body)
        outputs = list(node.outputs)
        resize_node(s, node)
        s.shapes.step(node)
        s.keep_output(node)
        for extra in s.appended:
            s.shapes.step(Node(extra, s.shapes.opsets.get("", 1)))
        for o in outputs:
            _check(s, node, o)
        placed += [*s.inserted, proto, *s.appended]
        changed |= bool(s.inserted or s.appended)
        s.inserted, s.appended = [], []
    if changed:
        copies = [onnx.NodeProto.FromString(p.SerializeToString()) for p in placed]
        del graph.node[:]
        graph.node.extend(copies)


def _check(s: Surgeon, node: Node, name: str) -> None:
    shape = s.shapes.shapes.get(name)
    if not name or shape is None:
        return
    axes = s.coupling.axes(name)
    if not axes:
        return
    for k, ids in enumerate(axes):
        if ids is not None and k < len(shape) and shape[k] is not None and shape[k] != s.count(ids):
            raise InternalError(
                f"node {node.label} ({node.op}): axis {k} of {name} came out as {shape[k]}, {s.count(ids)} survive; "
                f"please report this with the plan file (--save-plan)"
            )


def _slice_grouped(w: Array, out: Keep, inner: Keep) -> Array:
    """(O, I/g, k...) with the inner axis cut differently in every group; `inner` is `(g, I/g)`."""
    g = inner.shape[0]
    blocks = w.reshape(g, -1, *w.shape[1:])
    rows = out.reshape(g, -1)
    return np.concatenate([b[r][:, i] for b, r, i in zip(blocks, rows, inner, strict=True)])


def _drop_unread(s: Surgeon) -> None:
    """Remove the nodes that only removed blocks needed."""
    graph = s.model.proto.graph
    used = {o for p in s.analysis.model.proto.graph.node for o in p.output if s.coupling.readers[o]}
    needed, kept = {o.name for o in graph.output}, []
    for proto in reversed(graph.node):
        if needed.isdisjoint(proto.output) and not used.isdisjoint(proto.output):
            s.readers.subtract(i for i in proto.input if i)
            for name in proto.output:
                s.model.weights.pop(name, None)  # of a Constant node
            continue
        needed |= reads(proto)
        kept.append(proto)
    copies = [onnx.NodeProto.FromString(p.SerializeToString()) for p in reversed(kept)]
    del graph.node[:]
    graph.node.extend(copies)
    gone = [v for v in graph.value_info if v.name not in needed]
    for info in gone:
        graph.value_info.remove(info)


def _tidy(s: Surgeon) -> None:
    """Drop value_info that is stale and constants that nobody reads any more; sizes of listed inputs follow."""
    weights = s.model.weights
    for graph in graphs(s.model.proto.graph):
        stale = [
            v for v in graph.value_info
            if any(s.shrinks(v.name, k) for k in range(len(s.coupling.base.get(v.name, ()))))
            or (v.name in weights and [d.dim_value for d in v.type.tensor_type.shape.dim] != [*weights[v.name].shape])
        ]  # fmt: skip
        for v in stale:
            graph.value_info.remove(v)
        # of a body; those of the model where the user allows it
        for info in (*graph.output, *(i for i in graph.input if i.name not in weights)):
            for k, d in enumerate(info.type.tensor_type.shape.dim):
                if d.HasField("dim_value") and k < len(s.coupling.axes(info.name)) and s.shrinks(info.name, k):
                    d.dim_value = s.new_size(info.name, k)
        for info in graph.input:
            if info.name in weights and info.type.tensor_type.HasField("shape"):
                for d, size in zip(info.type.tensor_type.shape.dim, weights[info.name].shape, strict=False):
                    d.dim_value = size
        for name in [t.name for t in graph.initializer]:
            if s.coupling.readers.get(name, 0) > 0 and s.readers[name] <= 0:
                kept = [t for t in graph.initializer if t.name != name]
                del graph.initializer[:]
                graph.initializer.extend(kept)
                for info in [i for i in graph.input if i.name == name]:  # before IR version 4
                    graph.input.remove(info)
                del weights[name]
