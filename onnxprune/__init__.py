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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnxruntime as ort

    from onnxprune import formats
    from onnxprune import kernels as ops
    from onnxprune.calibration.presets import Preprocess
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
    from onnxprune.evaluation.metrics import Score
    from onnxprune.formats.densify import densify
    from onnxprune.gradient.differentiate import gradients, hessian_vector_product
    from onnxprune.graph.io import Model, load, save, to_proto
    from onnxprune.pipeline.agree import agree
    from onnxprune.pipeline.connect import connect
    from onnxprune.pipeline.explore import explore
    from onnxprune.pipeline.lottery import lottery
    from onnxprune.pipeline.proxies import proxies
    from onnxprune.pipeline.recipe import Result, prune
    from onnxprune.pipeline.supermask import supermask
    from onnxprune.pipeline.train import train
    from onnxprune.plan import Plan
    from onnxprune.report import Report
    from onnxprune.sparsity.outcome import Sparsity
    from onnxprune.structure.analysis import Analysis, ChannelGroup, Pinned
    from onnxprune.training.trainer import Trainer

__version__ = "0.6.0"

# where a public name is; a module is loaded when one of its names is first used, so that a command starts at once
PLACES = {
    "calibration.presets": ("Preprocess",),
    "calibration.samples": ("Samples",),
    "errors": (
        "InternalError", "ModelFileError", "NothingToPrune", "OnnxPruneError", "OptionError", "UserError",
        "VerificationError",
    ),
    "evaluation.metrics": ("Score",),
    "formats.densify": ("densify",),
    "gradient.differentiate": ("gradients", "hessian_vector_product"),
    "graph.io": ("Model", "load", "save", "to_proto"),
    "pipeline.agree": ("agree",),
    "pipeline.connect": ("connect",),
    "pipeline.explore": ("explore",),
    "pipeline.lottery": ("lottery",),
    "pipeline.proxies": ("proxies",),
    "pipeline.recipe": ("Result", "prune"),
    "pipeline.supermask": ("supermask",),
    "pipeline.train": ("train",),
    "plan": ("Plan",),
    "report": ("Report",),
    "sparsity.outcome": ("Sparsity",),
    "training.trainer": ("Trainer",),
    "structure.analysis": ("Analysis", "ChannelGroup", "Pinned"),
}  # fmt: skip
_HOMES = {name: f"onnxprune.{module}" for module, names in PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name == "ops":  # the operators, as users know the room
        return importlib.import_module("onnxprune.kernels")
    if not name.startswith("_") and importlib.util.find_spec(f"onnxprune.{name}"):
        return importlib.import_module(f"onnxprune.{name}")
    raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@contextmanager
def _in_python(**arguments: str) -> Iterator[None]:
    """Errors in the words of a caller from Python; arguments: option -> argument, where their names differ."""
    from onnxprune.errors import OnnxPruneError

    try:
        yield
    except OnnxPruneError as e:
        from dataclasses import replace

        from onnxprune.options import in_python
        from onnxprune.pipeline.options import OPTIONS

        options = [replace(o, name=arguments.get(o.name, o.name)) for o in OPTIONS]
        raise type(e)(in_python(str(e), options)) from e


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

    with _in_python():
        return analyze(load(source), input_shape, allow_io_change=allow_io_change, whole_layers=whole_layers)


def sparsify(source: object, sparsity: float | None = None, **options: Any) -> Result:
    """`prune` for sparse weights alone: `sparsify(model, 0.8)` or `sparsify(model, pattern="2:4")`."""
    from onnxprune.pipeline.recipe import prune

    return prune(source, sparsity=sparsity, **options)


def evaluate(
    source: object,
    data: Any,
    *,
    metric: str | None = None,
    labels: object = None,
    preprocess: Preprocess | None = None,
    against: object = None,
) -> Score:
    """How good a model is on data: what `prune(evaluate=...)` takes, samples with labels or a function.

    metric: as `onnxprune evaluate --metric list` has them; against: the model that outputs are compared with.
    `Score.value` is the mean. A function, or "module:function", gets the path of the model and says its own figure,
    without the other arguments. Raises `OptionError`, also for an argument that would have no effect.
    """
    from onnxprune.calibration.presets import Preprocess
    from onnxprune.calibration.read import read
    from onnxprune.calibration.samples import unused
    from onnxprune.errors import OptionError
    from onnxprune.evaluation.metrics import METRICS, Evaluator, Function, Scoring, is_function, metric_of
    from onnxprune.graph.io import load
    from onnxprune.options import declared

    with _in_python(evaluate="data"):
        if is_function(data):
            given = {"metric": metric, "labels": labels, "preprocess": preprocess, "against": against}
            for name in (n for n, value in given.items() if value is not None):
                raise OptionError(f"{name} has no effect: data is a function, which says its own figure")
            return Function(data)(load(source))
        try:
            metric = next(o for o in declared(Scoring) if o.name == "metric").read(metric)
            preprocess = preprocess or Preprocess()
            preprocess = Preprocess(**{o.name: o.read(getattr(preprocess, o.name)) for o in declared(Preprocess)})
        except ValueError as e:
            raise OptionError(str(e)) from None
        model = load(source)
        base = model if against is None else load(against)
        samples = read(data, base, preprocess=preprocess, labels=labels, option="data")
        if line := unused(preprocess, samples):
            raise OptionError(line)
        chosen = metric_of(base, samples, metric, labels)
        if against is not None and not METRICS[chosen].reference:
            raise OptionError(f"against has no effect: --metric {chosen} compares with labels")
        if against is None and METRICS[chosen].reference:
            raise OptionError(f"--metric {chosen} compares with another model: give against=MODEL, or labels")
        return Evaluator(base, samples, chosen)(model)


def get_library_path() -> str:
    """The path for `onnxruntime.SessionOptions.register_custom_ops_library`, where a model has sparse operators.

    The first call on a machine compiles the kernels, which takes a while. Raises `UserError` where they cannot run.
    """
    from onnxprune import kernels  # loads numba

    return kernels.get_library_path()


def session(
    path: str | os.PathLike[str] | bytes, options: ort.SessionOptions | None = None, **arguments: Any
) -> ort.InferenceSession:
    """`onnxruntime.InferenceSession` with the sparse operators registered; see `onnxprune.ops.session`."""
    from onnxprune import kernels

    return kernels.session(path, options, **arguments)


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
    "Trainer",
    "UserError",
    "VerificationError",
    "agree",
    "analyze",
    "connect",
    "densify",
    "evaluate",
    "explore",
    "formats",
    "get_library_path",
    "gradients",
    "hessian_vector_product",
    "load",
    "lottery",
    "ops",
    "proxies",
    "prune",
    "save",
    "session",
    "sparsify",
    "supermask",
    "to_proto",
    "train",
]
