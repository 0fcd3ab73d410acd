"""A model at a newer opset: the same nodes, in the operators of that version."""

from __future__ import annotations

from dataclasses import replace

from onnx import version_converter

from onnxprune.errors import OnnxPruneError, UserError
from onnxprune.graph.io import Model, load, to_proto
from onnxprune.graph.messages import one_line
from onnxprune.graph.node import opsets

REFUSALS = (version_converter.ConvertError, RuntimeError, ValueError, LookupError, AttributeError, OnnxPruneError)


def raised(model: Model, version: int) -> Model:
    """A copy at this opset, or the model where it is there already; weights keep their names.

    Raises `UserError`, with the reason alone, where onnx cannot convert it.
    """
    if opsets(model.proto).get("", 1) >= version:
        return model
    try:
        converted = load(version_converter.convert_version(to_proto(model), version))
    except REFUSALS as error:
        raise UserError(one_line(error, 100)) from error
    known = {p.key for p in converted.proto.metadata_props}
    converted.proto.metadata_props.extend(p for p in model.proto.metadata_props if p.key not in known)
    return replace(converted, path=model.path, external=model.external)
