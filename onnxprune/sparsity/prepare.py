"""What is done to a model before its weights are masked; each step computes the same outputs.

free_weights     initializers that are listed as inputs as well become constants
fold_batchnorm   BatchNormalization goes into the convolution before it, as onnxruntime does when it loads a model: a
                 sparse operator stops that fusion, and a mask should see the weights that are computed with
raise_opset      old opsets lack what the functions of the sparse operators are made of
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from onnxprune.errors import UserError
from onnxprune.formats.functions import MIN_OPSET
from onnxprune.graph.edit import Edit
from onnxprune.graph.io import Model
from onnxprune.graph.links import makers, read_counts
from onnxprune.graph.node import opsets, walk
from onnxprune.graph.normalisation import batchnorm_factor
from onnxprune.graph.protos import place
from onnxprune.graph.versions import raised
from onnxprune.layers.layer import Layer, sparse_layers

RAISED = 13  # the opset that older ones are raised to; every onnxruntime since 1.8 runs it


def anything(layer: Layer) -> bool:
    """Every layer."""
    return True


def prepare(
    model: Model, *, functions: bool, fold: bool = True, takes: Callable[[Layer], bool] = anything
) -> tuple[Model, list[str]]:
    """A model ready to be masked, and what was changed; functions: sparse operators will need their functions; fold:
    BatchNormalization, which changes weights; takes: whether a layer is to be masked."""
    notes = []
    model, freed = free_weights(model)
    if freed:
        notes.append(f"{freed} weights were inputs of the model as well; they are constants now")
    if functions and opsets(model.proto).get("", 1) < MIN_OPSET:
        model, note = raise_opset(model)
        notes.append(note)
    model, folded = fold_batchnorm(model, takes) if fold else (model, 0)
    if folded:
        notes.append(f"{folded} BatchNormalization nodes folded into the convolutions before them")
    return model, notes


def free_weights(model: Model) -> tuple[Model, int]:
    """A copy in which no initializer is an input too (a default that a caller may override), and how many were."""
    graph = model.proto.graph
    constants = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    kept = [i for i in graph.input if i.name not in constants]
    count = len(graph.input) - len(kept)
    if not count:
        return model, 0
    out = model.copy()
    del out.proto.graph.input[:]
    out.proto.graph.input.extend(kept)
    out.proto.ir_version = max(out.proto.ir_version, 4)  # before, an initializer must be listed
    return out, count if model.proto.ir_version >= 4 else 0  # before, all initializers were listed


def raise_opset(model: Model) -> tuple[Model, str]:
    """A copy at opset RAISED, or the model as it is where onnx cannot convert it; a note."""
    old = opsets(model.proto).get("", 1)
    try:
        return raised(model, RAISED), f"opset raised from {old} to {RAISED}"
    except UserError as why:
        return (
            model,
            f"opset {old} is below {MIN_OPSET} and cannot be raised ({why}): needs onnxprune's library to run",
        )


def fold_batchnorm(model: Model, takes: Callable[[Layer], bool] = anything) -> tuple[Model, int]:
    """A copy without the BatchNormalization nodes that follow a convolution with a float32 weight of its own, of those
    that `takes` names, and their number.

    y = (conv(x, W) + b - mean) * scale / sqrt(var + epsilon) + shift, exact up to rounding.
    """
    versions = opsets(model.proto)
    edit = Edit(model)
    out = edit.model
    nodes = list(walk(out.proto.graph, versions))
    reads, maker_of = read_counts(out.proto.graph), makers(nodes)
    unread: set[str] = set()
    weights = Counter(layer.weight for layer in sparse_layers(model)[0] if layer.op == "Conv" and takes(layer))
    overridable = {i.name for i in out.proto.graph.input}
    gone: dict[str, str] = {}  # output of a normalisation -> the convolution's former output
    for norm in nodes:
        conv = maker_of.get(norm.input(0)) if norm.op == "BatchNormalization" else None
        if conv is None or conv.op != "Conv":
            continue
        if reads[conv.outputs[0]] != 1 or weights[conv.input(1)] != 1 or reads[conv.input(1)] != 1:
            continue
        if norm.attr("training_mode", 0) or len([o for o in norm.outputs if o]) > 1:
            continue
        w = out.weights.get(conv.input(1))
        if w is None or w.dtype != np.float32:
            continue
        names = [norm.input(i) for i in range(1, 5)] + ([conv.input(2)] if conv.input(2) else [])
        vectors = [out.weights.get(n) for n in names if n not in overridable]
        known = [v for v in vectors if v is not None and v.shape == w.shape[:1] and v.dtype == np.float32]
        if len(known) < len(names):
            continue
        scale, shift, mean, variance, *rest = (v.astype(np.float64) for v in known)
        factor = batchnorm_factor(norm, scale, variance)
        bias = ((rest[0] if rest else 0.0) - mean) * factor + shift
        scaled = (w * factor.reshape(-1, *[1] * (w.ndim - 1))).astype(np.float32)
        if not (np.isfinite(scaled).all() and np.isfinite(bias).all()):
            continue
        scaled.flags.writeable = False
        out.weights[conv.input(1)] = scaled
        named = edit.constant(f"{conv.input(1)}_bias", bias.astype(np.float32))
        conv.proto.input[:] = [*conv.inputs[:2], named]
        gone[norm.outputs[0]] = conv.outputs[0]
        conv.proto.output[0] = norm.outputs[0]
        unread.update(names)
    if gone:
        kept = [n for n in edit.graph.node if not (n.op_type == "BatchNormalization" and n.output[0] in gone)]
        place(edit.graph, kept)
        edit.drop(unread)
    return out, len(gone)
