"""The masked model: the original with the removed units multiplied by zero where they enter each consumer.

Surgery is tested against it (verify.py): the pruned model computes what this one computes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.graph.arrays import Array, set_tensor
from onnxprune.graph.io import Model, graphs
from onnxprune.graph.node import Node
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.claims import Consume, Norm
from onnxprune.structure.depth import Block


def masked_model(analysis: Analysis, keep: Keep) -> Model:
    """The original with every removed id multiplied by zero where it enters a consumer, and left out of the statistics
    of what normalises over it. keep: `(ids,)`, False for what is removed."""
    model = analysis.model.copy()
    consumes: dict[str, list[Consume]] = {}
    for consume in analysis.coupling.consumes:
        axes = analysis.coupling.axes(consume.node.input(consume.input))
        ids = axes[consume.axis] if axes else None
        if ids is not None and not keep[ids].all():
            consumes.setdefault(consume.node.key, []).append(consume)
    norms: dict[str, list[Norm]] = {}
    for norm in analysis.coupling.norms:
        if not keep[norm.ids].all():
            norms.setdefault(norm.node.key, []).append(norm)
    closed = {b.node.key: [b] for b in analysis.blocks if not keep[b.gate].any()}
    for graph in graphs(model.proto.graph):
        placed: list[onnx.NodeProto] = []
        for proto in graph.node:
            node = Node(proto, 1)
            for consume in consumes.get(node.key, []):
                placed += _mask(analysis, keep, model, proto, consume, len(placed))
            for block in closed.get(node.key, ()):
                placed += _close(proto, block)
            after: list[onnx.NodeProto] = []
            for norm in norms.get(node.key, []):
                before, more = _normalise_kept(keep, proto, norm)
                placed, after = placed + before, more + after
            if node.key in analysis.coupling.statistics:
                after += _mean_of_kept(analysis, keep, proto)
            placed += [proto, *after]
        copies = [onnx.NodeProto.FromString(p.SerializeToString()) for p in placed]
        del graph.node[:]
        graph.node.extend(copies)
    return model


def _normalise_kept(keep: Keep, proto: onnx.NodeProto, norm: Norm) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Let the node see what is kept alone; what is removed comes out as anything, it is masked where it is read."""
    kept = np.flatnonzero(keep[norm.ids])
    spread = np.where(keep[norm.ids], np.cumsum(keep[norm.ids]) - 1, 0)
    base = f"{next(o for o in proto.output if o)}:{norm.ids[0]}"

    def constant(value: Array, name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value.astype(np.int64), name))

    before, after = [constant(kept, base + ":kept")], [constant(spread, base + ":spread")]
    for i, axis in norm.inputs.items():
        before.append(helper.make_node("Gather", [proto.input[i], base + ":kept"], [f"{base}:i{i}"], axis=axis))
        proto.input[i] = f"{base}:i{i}"
    for i, axis in norm.outputs.items():
        name, proto.output[i] = proto.output[i], f"{base}:o{i}"
        after.append(helper.make_node("Gather", [proto.output[i], base + ":spread"], [name], axis=axis))
    return before, after


def _mean_of_kept(analysis: Analysis, keep: Keep, proto: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A mean over masked values is one over the survivors after this factor."""
    name, factor = proto.output[0], 1.0
    for ids in analysis.coupling.means.get(name, []):
        factor *= ids.size / max(int(keep[ids].sum()), 1)
    if factor == 1.0:
        return []
    dtype = helper.tensor_dtype_to_np_dtype(analysis.coupling.shapes.types[name])
    value = numpy_helper.from_array(np.array(factor, dtype), name + ":factor")
    proto.output[0] = name + ":of_all"
    return [
        helper.make_node("Constant", [], [name + ":factor"], value=value),
        helper.make_node("Mul", [proto.output[0], name + ":factor"], [name]),
    ]


def _close(proto: onnx.NodeProto, block: Block) -> list[onnx.NodeProto]:
    """Let nothing of the branch (and of the bias that a fused sum adds to it) enter the sum."""
    nodes = []
    for slot in (block.branch, *([4] if len(proto.input) > 4 and proto.input[4] else [])):
        name = f"{block.node.key}:closed{slot}"
        nodes.append(helper.make_node("Sub", [proto.input[slot], proto.input[slot]], [name]))
        proto.input[slot] = name
    return nodes


def _mask(
    analysis: Analysis, keep: Keep, model: Model, proto: onnx.NodeProto, consume: Consume, serial: int
) -> list[onnx.NodeProto]:
    name = consume.node.input(consume.input)
    current = proto.input[consume.input]  # an input masked along two axes: chained
    ids = analysis.coupling.axes(name)[consume.axis]
    assert ids is not None
    rank = len(analysis.coupling.axes(name))
    shape = [1] * rank
    shape[consume.axis] = -1
    elem = analysis.coupling.shapes.types[name]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(elem))
    out = f"{proto.output[0]}:masked{serial}:{consume.input}:{consume.axis}"
    alive = keep[ids].reshape(shape)
    proto.input[consume.input] = out
    zero = model.weights.get(consume.zero) if consume.zero else np.full((), consume.neutral, dtype)
    if current in model.weights and zero is not None and model.proto.ir_version >= 4:  # kernels may want a constant
        model.weights[out] = np.where(alive, model.weights[current], zero).astype(dtype)
        set_tensor(out, model.proto.graph.initializer.add(name=out), model.weights[out])
        return []

    def constant(value: Array, suffix: str) -> onnx.NodeProto:
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), out + suffix)
        return helper.make_node("Constant", [], [out + suffix], value=tensor)

    if dtype in (np.float32, np.float64) and analysis.coupling.shapes.opsets.get("", 1) >= 9:
        # what is removed may be no number (of a constant channel, normalised), which times zero is none either
        choice = helper.make_node("Where", [out + ":m", current, out + ":z"], [out])
        return [constant(alive, ":m"), constant(np.full((), consume.neutral, dtype), ":z"), choice]
    if dtype.kind not in "iu":
        masked = [constant(alive.astype(dtype), ":m"), helper.make_node("Mul", [current, out + ":m"], [out])]
        if consume.neutral:
            masked[1].output[0] = out + ":k"
            floor = np.where(alive, 0, np.finfo(np.float16).min).astype(dtype)
            masked += [constant(floor, ":n"), helper.make_node("Add", [out + ":k", out + ":n"], [out])]
        return masked
    nodes = [constant(alive, ":m"), helper.make_node("Cast", [current], [out + ":i"], to=onnx.TensorProto.INT32)]
    if consume.zero:
        nodes.append(helper.make_node("Cast", [consume.zero], [out + ":z"], to=onnx.TensorProto.INT32))
    else:
        nodes.append(constant(np.array(0, np.int32), ":z"))
    nodes.append(helper.make_node("Where", [out + ":m", out + ":i", out + ":z"], [out + ":w"]))
    nodes.append(helper.make_node("Cast", [out + ":w"], [out], to=elem))
    return nodes
