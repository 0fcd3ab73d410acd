"""Kernels of ours in the graph of a training session, for nodes that compute the same (gradient/kernels.py)."""

from __future__ import annotations

from collections.abc import Mapping

import onnxruntime as ort
from onnx import NodeProto, helper

from onnxprune.gradient.backward import Kernel
from onnxprune.graph.io import Model
from onnxprune.graph.protos import place
from onnxprune.kernels.library import LibraryMissing, register_steps
from onnxprune.kernels.names import DOMAIN

OPERATOR = "Step"


def with_kernels(model: Model, kernels: Mapping[str, Kernel]) -> bool:
    """Let kernels make the tensors that are noted, in place; whether there is one. What nothing reads then stays."""
    graph, nodes, found = model.proto.graph, [], False
    for node in graph.node:
        kernel = kernels.get(node.output[0]) if len(node.output) == 1 else None
        nodes.append(node if kernel is None else _node(kernel, node))
        found |= kernel is not None
    if found:
        place(graph, nodes)
        model.proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return found


def _node(kernel: Kernel, old: NodeProto) -> NodeProto:
    return helper.make_node(
        OPERATOR, list(kernel.inputs), [old.output[0]], old.name, domain=DOMAIN, kernel=kernel.number,
        params=list(kernel.params),
    )  # fmt: skip


def missing(options: ort.SessionOptions) -> str:
    """Make the kernels known to sessions with these options; why they cannot be, "" where they are."""
    try:
        register_steps(options)
    except LibraryMissing as e:
        return str(e)
    return ""
