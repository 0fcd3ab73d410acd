"""The cut: the model without the units that go, shown to compute what the masked original computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxprune.graph.arrays import Array
from onnxprune.graph.step import Step
from onnxprune.runtime.memory import too_large
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.check import check_file
from onnxprune.structure.surgery import prune_model, slice_weights
from onnxprune.structure.verify import Verification, shrunk, verify


@dataclass(frozen=True, eq=False)
class Cutting:
    """sliced: weight -> what is left of it, before any recovery; verification: None where it was not asked for or the
    memory that is free does not hold two sessions."""

    sliced: Mapping[str, Array]
    verification: Verification | None


def cut(
    analysis: Analysis,
    keep: Keep,
    *,
    check: bool,
    input_shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    stage: Callable[[str], None],
) -> Step[Cutting]:
    """The model with the ids that are True in `keep`, and the check that pruned equals masked.

    stage: told when the check begins.

    Raises `OptionError` where onnxruntime cannot run the original, `VerificationError` where the law is broken.
    """
    sliced = slice_weights(analysis, keep)
    plain = prune_model(analysis, keep, sliced=sliced)
    if not check:
        return Step(plain, Cutting(sliced, None))
    why = too_large([analysis.model])
    if why:
        defects = check_file(analysis.model, plain, allowed=lambda info: shrunk(analysis, keep, info))
        notes = (f"not verified: {why}; the shapes of all nodes were checked", *defects)
        return Step(plain, Cutting(sliced, None), notes)
    stage("verify")
    checked = verify(analysis, keep, plain, input_shapes=input_shapes, seed=seed)
    return Step(plain, Cutting(sliced, checked))
