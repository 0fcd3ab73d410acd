"""Structural pruning and sparse weights for any ONNX model, without a training framework.

import onnxprune

result = onnxprune.prune("model.onnx", channels=0.3)
print(result.report.after.parameters)
result.save("model.pruned.onnx")
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnxruntime as ort

    from onnxprune import formats, ops
    from onnxprune.calibration.images import Preprocess
    from onnxprune.calibration.samples import Samples
    from onnxprune.errors import (
        InternalError,
        ModelFileError,
        NothingToPrune,
        OnnxPruneError,
        OptionError,
        UserError,
        VerificationError,
    )
    from onnxprune.evaluation import Score
    from onnxprune.graph.io import Model, load, save, to_proto
    from onnxprune.pipeline import Result, prune
    from onnxprune.plan import Plan
    from onnxprune.report import Report
    from onnxprune.sparsity.outcome import Sparsity
    from onnxprune.sparsity.rewrite import densify
    from onnxprune.structure.groups import Analysis, ChannelGroup, Pinned

__version__ = "0.6.0"

# where a public name is; a module is loaded when one of its names is first used, so that a command starts at once
PLACES = {
    "calibration.images": ("Preprocess",),
    "calibration.samples": ("Samples",),
    "errors": (
        "InternalError", "ModelFileError", "NothingToPrune", "OnnxPruneError", "OptionError", "UserError",
        "VerificationError",
    ),
    "evaluation": ("Score",),
    "graph.io": ("Model", "load", "save", "to_proto"),
    "pipeline": ("Result", "prune"),
    "plan": ("Plan",),
    "report": ("Report",),
    "sparsity.outcome": ("Sparsity",),
    "sparsity.rewrite": ("densify",),
    "structure.groups": ("Analysis", "ChannelGroup", "Pinned"),
}  # fmt: skip
_HOMES = {name: f"onnxprune.{module}" for module, names in PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"onnxprune.{name}"):
        return importlib.import_module(f"onnxprune.{name}")
    raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def analyze(
    source: object,
    *,
    input_shape: dict[str, tuple[int, ...]] | None = None,
    allow_io_change: bool = False,
    whole_layers: bool = False,
) -> Analysis:
    """Find every group of removable units of a model (path, bytes, `ModelProto`, graphsurgeon `Graph` or `Model`).

    input_shape: input name -> concrete shape, where the declared one is dynamic. allow_io_change: heads in inputs and
    outputs may shrink. whole_layers: attention and the feed-forward block after it are one unit of depth.
    """
    from onnxprune.graph.io import load
    from onnxprune.structure.groups import analyze

    return analyze(load(source), input_shape, allow_io_change=allow_io_change, whole_layers=whole_layers)


def sparsify(source: object, sparsity: float | None = None, **options: Any) -> Result:
    """`prune` for sparse weights alone: `sparsify(model, 0.8)` or `sparsify(model, pattern="2:4")`."""
    from onnxprune.pipeline import prune

    return prune(source, sparsity=sparsity, **options)


def evaluate(
    source: object,
    data: object,
    *,
    metric: str | None = None,
    labels: object = None,
    preprocess: Preprocess | None = None,
    against: object = None,
) -> Score:
    """How good a model is on data (what `prune(calibration=...)` takes, with labels, or "module:function").

    metric: top1, top5, agreement or mse; against: the model that the last two compare with. `Score.value` is the mean.
    """
    from onnxprune.calibration.samples import read
    from onnxprune.evaluation import Evaluator, Function, default_metric, is_function
    from onnxprune.graph.io import load

    model = load(source)
    base = model if against is None else load(against)
    if is_function(data):
        return Function(str(data))(model)
    samples = read(data, base, preprocess=preprocess, labels=labels, option="data")
    return Evaluator(base, samples, metric or default_metric(base, samples))(model)


def get_library_path() -> str:
    """The path for `onnxruntime.SessionOptions.register_custom_ops_library`, where a model has sparse operators.

    The first call on a machine compiles the kernels, which takes a while. Raises `UserError` where they cannot run.
    """
    from onnxprune import ops  # loads numba

    return ops.get_library_path()


def session(
    path: str | os.PathLike[str] | bytes, options: ort.SessionOptions | None = None, **arguments: Any
) -> ort.InferenceSession:
    """`onnxruntime.InferenceSession` with the sparse operators registered; see `onnxprune.ops.session`."""
    from onnxprune import ops

    return ops.session(path, options, **arguments)


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
    "Preprocess",
    "Report",
    "Result",
    "Samples",
    "Score",
    "Sparsity",
    "UserError",
    "VerificationError",
    "analyze",
    "densify",
    "evaluate",
    "formats",
    "get_library_path",
    "load",
    "ops",
    "prune",
    "save",
    "session",
    "sparsify",
    "to_proto",
]
