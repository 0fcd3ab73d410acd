"""How units are scored, how much of each group goes, and how the loss is made up for: what was said, and defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxprune.importance.weights import DEFAULT

GIVEN = "given"  # importance of a recipe whose scores come from the caller


@dataclass(frozen=True)
class Recipe:
    """importance: of `importance.score.CRITERIA`, or `GIVEN`; allocate: of `ALLOCATORS`; recover: of `RECOVERIES`.

    ridge: of the fits, None where every layer's is chosen on rows that are withheld, which says nothing where data were
    made up; prior: of the scores, larger for data that say little; both in mean variances.
    """

    importance: str
    allocate: str
    recover: str
    ridge: float | None = 0.0
    prior: float = 0.0


# by what there is to calibrate on; ways to allocate that need a target are for targets alone (tools/bench_accuracy.py)
DEFAULTS = {
    "": Recipe(DEFAULT, "uniform", "bias"),
    "real": Recipe("obs", "kl", "least-squares", ridge=None, prior=0.03),
    "synthetic": Recipe("obs", "error", "least-squares", ridge=0.1, prior=3.0),
}
UNTARGETED = "uniform"  # where the default is for targets, and there is none


def recipe_of(
    importance: str | None, allocate: str | None, recover: str | None, *, data: str, targeted: bool
) -> Recipe:
    """The recipe, with defaults for what the user did not say.

    data: "", "real" or "synthetic"; targeted: a target for the whole model is set, and may choose every ratio.
    """
    default = DEFAULTS[data]
    return replace(
        default, importance=importance or default.importance, recover=recover or default.recover,
        allocate=allocate or (default.allocate if targeted else UNTARGETED),
    )  # fmt: skip


__all__ = ["DEFAULTS", "GIVEN", "Recipe", "recipe_of"]
