"""Kernels of ours in the graph of a training session, for nodes that compute the same (gradient/kernels.py)."""

from __future__ import annotations

from collections.abc import Iterable

import onnxruntime as ort
from onnx import NodeProto, helper

from onnxprune.gradient.backward import Kernel
from onnxprune.graph.io import Model
from onnxprune.graph.links import made_at, reads
from onnxprune.graph.protos import place
from onnxprune.graph.settling import topological
from onnxprune.kernels.library import LibraryMissing, register_steps
from onnxprune.kernels.names import DOMAIN


def with_kernels(model: Model, kernels: Iterable[Kernel]) -> list[Kernel]:
    """Let kernels make the tensors that are noted, in place; those that do. What nothing reads then stays, under names
    of its own."""
    graph = model.proto.graph
    present = {o for node in graph.node for o in node.output}
    chosen = [k for k in kernels if not present.isdisjoint(k.made)]
    if not chosen:
        return []
    made, first = {name for k in chosen for name in k.made}, {k.made[0]: k.nodes for k in chosen}
    nodes: list[NodeProto] = []
    for node in graph.node:
        for o in node.output:
            nodes += first.get(o, ())
        node.output[:] = [f"{o}/unread" if o in made else o for o in node.output]
        nodes.append(node)
    at = made_at(nodes)
    order = topological([{at[name] for name in reads(node) if name in at} for node in nodes])
    place(graph, [nodes[k] for k in order])
    model.proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return chosen


def missing(options: ort.SessionOptions) -> str:
    """Make the kernels known to sessions with these options; why they cannot be, "" where they are."""
    try:
        register_steps(options)
    except LibraryMissing as e:
        return str(e)
    return ""
