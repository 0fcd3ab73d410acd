"""Kernels of ours in the graph of a training session, for nodes that compute the same (gradient/kernels.py), and for
products with weights that are fixed at zero, which are known when masks are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.gradient.backward import Kernel
from onnxprune.gradient.kernels import step
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.links import made_at, reads
from onnxprune.graph.protos import place
from onnxprune.graph.settling import topological
from onnxprune.kernels.library import LibraryMissing, register_steps
from onnxprune.kernels.names import DOMAIN
from onnxprune.kernels.steps.tables import PRODUCT

SPARSE = 0.9  # share of zeros from which on a product is faster by its entries
PAIR = 2  # of entries, as the kernel takes them
WIDE = 70.0  # entries of a weight over its rows and columns, below which turning rows to and fro costs as much


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


def worth(kept: Array) -> bool:
    """Whether products with a weight of this mask are faster by its entries."""
    return bool(kept.ndim == 2 and kept.size >= WIDE * sum(kept.shape) and kept.any() and kept.mean() <= 1 - SPARSE)


def with_products(model: ModelProto, masks: Mapping[str, Array]) -> int:
    """Let a kernel compute, in place, products whose right factor is a weight that is mostly zero; how many.

    Those of the forward pass, and those with the transposed weight, which are gradients of inputs. masks: graph input
    -> bool in its shape, False for what is zero and stays so.
    """
    graph = model.graph
    maker = {o: n for n in graph.node for o in n.output}
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    lists: dict[tuple[str, bool], list[str]] = {}
    count = 0
    for node in graph.node:
        found = _factor(node, maker, masks)
        if found is None:
            continue
        name, turned = found
        outs = masks[name].shape[0 if turned else 1]
        bias = list(node.input[2:])
        if any(shapes.get(b) != [outs] for b in bias):
            continue
        if found not in lists:
            lists[found] = [
                f"{name}/{'rows' if turned else 'columns'}/{what}" for what in ("begin", "at", "where", "to")
            ]
            for key, value in zip(lists[found], entries(masks[name], turned), strict=True):
                graph.initializer.append(numpy_helper.from_array(value, key))
        node.CopyFrom(step(PRODUCT, [node.input[0], name, *lists[found], *bias], list(node.output), []))
        count += 1
    if count and DOMAIN not in {o.domain for o in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return count


def _factor(node: NodeProto, maker: Mapping[str, NodeProto], masks: Mapping[str, Array]) -> tuple[str, bool] | None:
    """The weight that a product has on the right, and whether its rows are outputs; None for other nodes."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type not in ("MatMul", "Gemm") or node.domain or given.get("transA", 0):
        return None
    if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
        return None
    name, turned = node.input[1], bool(given.get("transB", 0))
    by = maker.get(name)
    if by is not None and by.op_type == "Transpose":
        perm = next((list(a.ints) for a in by.attribute if a.name == "perm"), [1, 0])
        if perm == [1, 0]:
            name, turned = by.input[0], not turned
    return (name, turned) if name in masks and node.input[0] not in masks else None


def entries(kept: Array, turned: bool) -> tuple[Array, Array, Array, Array]:
    """What the kernel knows of a mask (kernels/steps/product.py): begin, columns of X, where in W, place; all int32.

    kept: `(inner, outs)`, or turned `(outs, inner)`.
    """
    where = np.flatnonzero(kept)
    rows, columns = np.divmod(where, kept.shape[1])
    outs, inner = (rows, columns) if turned else (columns, rows)
    order = np.argsort(outs, kind="stable")
    counts = np.bincount(outs, minlength=kept.shape[0 if turned else 1])
    begin = np.concatenate(([0], np.cumsum(counts + counts % PAIR)))
    first = np.cumsum(counts) - counts
    place = np.empty(where.size, np.int64)
    place[order] = begin[outs[order]] + np.arange(where.size) - first[outs[order]]
    at = np.zeros(begin[-1], np.int64)
    at[place] = inner
    return tuple(v.astype(np.int32) for v in (begin, at, where, place))  # type: ignore[return-value]
