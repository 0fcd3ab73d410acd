"""A model at a newer opset: the same nodes, in the operators of that version."""

from __future__ import annotations

from dataclasses import replace

from onnx import ModelProto, defs, helper, version_converter

from onnxprune.errors import OnnxPruneError, UserError
from onnxprune.graph.io import Model, graphs, load, to_proto
from onnxprune.graph.messages import one_line
from onnxprune.graph.node import opsets

REFUSALS = (version_converter.ConvertError, RuntimeError, ValueError, LookupError, AttributeError, OnnxPruneError)

APART = "onnxprune.apart"


def raised(model: Model, version: int) -> Model:
    """A copy at this opset, or the model where it is there already; weights keep their names.

    Raises `UserError`, with the reason alone, where onnx cannot convert it.
    """
    if opsets(model.proto).get("", 1) >= version:
        return model
    proto = to_proto(model)
    _move(proto, "", APART)
    try:
        converted = load(version_converter.convert_version(proto, version))
    except REFUSALS as error:
        raise UserError(one_line(error, 100)) from error
    _move(converted.proto, APART, "")
    known = {p.key for p in converted.proto.metadata_props}
    converted.proto.metadata_props.extend(p for p in model.proto.metadata_props if p.key not in known)
    return replace(converted, path=model.path, external=model.external)


def _move(proto: ModelProto, domain: str, other: str) -> None:
    """Put operators that onnx does not know, such as onnxruntime's SimplifiedLayerNormalization, from one domain into
    another: onnx converts no model that has some in its own."""
    moved = [n for g in graphs(proto.graph) for n in g.node if n.domain == domain and not defs.has(n.op_type)]
    for node in moved:
        node.domain = other
    for k in reversed(range(len(proto.opset_import))):
        if proto.opset_import[k].domain == domain == APART:
            del proto.opset_import[k]
    if moved and other == APART:
        proto.opset_import.append(helper.make_opsetid(APART, 1))
