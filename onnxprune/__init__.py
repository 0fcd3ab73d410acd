"""Structural pruning of any ONNX model, without a training framework.

import onnxprune

result = onnxprune.prune("model.onnx", channels=0.3)
print(result.report.after.parameters)
result.save("model.pruned.onnx")
"""

from onnxprune.errors import (
    InternalError,
    ModelFileError,
    NothingToPrune,
    OnnxPruneError,
    OptionError,
    UserError,
    VerificationError,
)
from onnxprune.graph.io import Model, load, save, to_proto
from onnxprune.pipeline import Result, prune
from onnxprune.plan import Plan
from onnxprune.report import Report
from onnxprune.structure.groups import Analysis, ChannelGroup, Pinned
from onnxprune.structure.groups import analyze as _analyze

__version__ = "0.1.0"


def analyze(source: object, *, input_shape: dict[str, tuple[int, ...]] | None = None) -> Analysis:
    """Find every group of removable units of a model (path, bytes, `ModelProto`, graphsurgeon `Graph` or `Model`).

    input_shape: input name -> concrete shape, where the declared one is dynamic.
    """
    return _analyze(load(source), input_shape)


__all__ = [
    "Analysis",
    "ChannelGroup",
    "InternalError",
    "Model",
    "ModelFileError",
    "NothingToPrune",
    "OnnxPruneError",
    "OptionError",
    "Pinned",
    "Plan",
    "Report",
    "Result",
    "UserError",
    "VerificationError",
    "analyze",
    "load",
    "prune",
    "save",
    "to_proto",
]
