"""What a result depends on, as plain data: options by name, inputs by what they hold, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.calibration.samples import Samples
from onnxprune.evaluation.metrics import Evaluator, Function
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.options import Option, record


def depends(
    known: Sequence[Option], values: Mapping[str, Any], free: Collection[str], **inputs: Any
) -> dict[str, Any]:  # fmt: skip
    """All that a result depends on, as JSON has it.

    known: options; free: those of them that it does not depend on, or that inputs stand for; inputs: as `identity`
    takes them.
    """
    settings = {o.name: record(values[o.name]) for o in known if o.name not in free}
    return settings | {"version": __version__} | {name: identity(x) for name, x in inputs.items()}


def identity(x: Any) -> Any:
    """What tells inputs apart: models, samples with their labels, what scores on samples, lists of these."""
    match x:
        case Model():
            return digest(x)
        case Samples() | TrainingSet():
            samples = x.samples if isinstance(x, TrainingSet) else x
            return [samples.digest, None if x.labels is None else _digest_of({"labels": x.labels})]
        case Evaluator():
            return [x.metric, *identity(x.samples)]
        case Function():
            return x.name
        case list() | tuple():
            return [identity(each) for each in x]
    return record(x)


def digest(model: Model) -> str:
    """What tells models apart, 16 hex digits."""
    return _digest_of(model.weights, model.proto.SerializeToString(deterministic=True))


def _digest_of(arrays: Mapping[str, Array], data: bytes = b"") -> str:
    made = hashlib.sha256(data)
    for name in sorted(arrays):
        made.update(f"{name} {arrays[name].dtype} {arrays[name].shape};".encode())
        made.update(np.ascontiguousarray(arrays[name]).tobytes())
    return made.hexdigest()[:16]


__all__ = ["depends", "digest", "identity"]
