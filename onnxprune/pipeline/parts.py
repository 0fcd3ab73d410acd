"""Parts of an experiment that do not depend on each other: where they are made, and what their results depend on, by
which they are kept: options by name, inputs by what they hold, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.calibration.samples import Samples
from onnxprune.evaluation.metrics import Evaluator, Function
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.options import HOW, Option, declared, option, record, shared
from onnxprune.pipeline.options import OPTIONS
from onnxprune.runtime.jobs import Where, where


@dataclass(frozen=True)
class Sharing:
    """Where parts are made."""

    jobs: Where = option(
        Where(), where, panel=HOW, metavar="N|dask:ADDRESS|ray", unit="processes", effect="time only",
        help="How many parts at a time.",
    )  # fmt: skip


def sharing(parts: str, kept: str, when: str = "") -> tuple[Option, ...]:
    """--jobs and --cache of a command, in its words. parts: what is made; kept: what stays; when: without which they
    have no effect."""
    helps = {
        "jobs": f"how many {parts} at a time, in processes of this machine that share its cores (each takes one thread "
        "where --threads does not say more), or on the workers of a Dask or Ray cluster of yours, one each; these must "
        "see all files, and --cache, by the same names. A worker that is lost costs what it was at.",
        "cache": f"keep {kept} here; a run that was stopped goes on, to the same result.",
    }
    start = {name: f"With {when}: {text}" if when else text[0].upper() + text[1:] for name, text in helps.items()}
    return shared((*OPTIONS, *declared(Sharing)), tuple(helps), start)


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


__all__ = ["Sharing", "depends", "digest", "identity", "sharing"]
