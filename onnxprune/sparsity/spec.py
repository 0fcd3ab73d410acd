"""What is wanted of the weights: options of several stages, or the sparse part of a plan in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.formats.dense import DENSE
from onnxprune.formats.options import Store
from onnxprune.formats.patterns import NMPattern, Pattern, parse_pattern
from onnxprune.formats.registry import AUTO
from onnxprune.solvers.masks import by_gradients, needs_data
from onnxprune.sparsity.grow import GROWTH, Growing, taken
from onnxprune.sparsity.options import BEST_SOLVER, PLAIN_SOLVER, Zeros
from onnxprune.sparsity.outcome import PRESENT


@dataclass(frozen=True)
class Spec:
    """What is wanted of the weights.

    ratio: glob -> fraction of zeros of the layers that it matches; recorded: the sparse part of a plan, as `from_plan`
    gives it, which then says all of it; recover: whether the weights that stay make up for the others; cache: folder
    for finished layers; steps: in which the zeros grow, as asked; alone: False where a structural cut takes the steps,
    too, so that they need not serve the zeros; tuned: whether weights are trained between steps.
    """

    zeros: Zeros
    store: Store
    ratio: tuple[tuple[str, float], ...] = ()
    ignore: tuple[str, ...] = ()
    recorded: Mapping[str, Any] | None = None
    recover: bool = True
    cache: Path | None = None
    seed: int = 0
    steps: int = 1
    alone: bool = True
    tuned: bool = False

    @property
    def makes_zeros(self) -> bool:
        """Whether weights become zero."""
        if self.recorded is not None:
            return bool(self.recorded["solver"] != PRESENT)
        return self.zeros.asked or bool(self.ratio)

    @property
    def present(self) -> bool:
        """Whether the zeros that the model has are stored."""
        if self.recorded is not None:
            return not self.makes_zeros
        return not self.makes_zeros and self.store.format not in (None, DENSE.name)

    @property
    def asked(self) -> bool:
        """Whether there is anything to do."""
        return self.makes_zeros or self.present

    @property
    def needs_data(self) -> str:
        """The option that asks for calibration data, "" for none."""
        if self.recorded is None:
            return self.zeros.needs_data()
        solver = str(self.recorded["solver"])
        return f"--solver {solver}" if needs_data(solver) else ""

    @property
    def form(self) -> str:
        """The format, of those that --format knows."""
        if self.recorded is not None:
            return str(self.recorded["format"])
        return self.store.format or (AUTO if self.store.cluster is None else DENSE.name)

    @property
    def dense(self) -> bool:
        """Whether zeros lie in a plain file."""
        return self.form == DENSE.name

    @property
    def values(self) -> str:
        """Type of the values that operators store."""
        return self.store.values if self.recorded is None else str(self.recorded.get("values", "float32"))

    @property
    def pattern(self) -> Pattern | None:
        """The pattern by which zeros are made."""
        if self.recorded is None:
            return self.zeros.shape
        text = str(self.recorded["pattern"])
        return parse_pattern(text) if text else None

    @property
    def measured(self) -> bool:
        """Whether sessions are timed to choose formats."""
        return self.form == AUTO and self.recorded is None

    @property
    def permutes(self) -> bool:
        """Whether channels may take another order."""
        allowed = self.zeros.permute if self.recorded is None else bool(self.recorded["permute"])
        return allowed and self.makes_zeros and isinstance(self.pattern, NMPattern)

    @property
    def asked_steps(self) -> int:
        """Steps that are asked for, by the option or the plan."""
        return self.steps if self.recorded is None else int(self.recorded.get("steps", 1))

    @property
    def quality(self) -> float | None:
        """The threshold by which weights go, in standard deviations of their layer; None without."""
        given = self.zeros.quality if self.recorded is None else self.recorded.get("quality")
        return None if given is None else float(given)

    @property
    def schedule(self) -> str:
        """How zeros grow."""
        given = self.zeros.sparsity_schedule if self.recorded is None else self.recorded.get("schedule")
        return str(given or GROWTH)

    def growing(self, data: bool) -> Growing:
        """The steps in which the zeros come, of those that are asked for; data: whether there are samples."""
        many = 1 if not self.makes_zeros or self._same(data) else taken(self.pattern, self.asked_steps)
        return Growing(many, self.schedule, self.quality)

    def _same(self, data: bool) -> bool:
        """Whether many steps choose the same weights as one."""
        solver = self.solver(data)
        again = self.recover or (needs_data(solver) and not by_gradients(solver))
        return not self.tuned and not (data and again)

    def by_gradients(self, data: bool) -> bool:
        """Whether the solver goes by gradients of the whole model; data: whether there are samples."""
        return by_gradients(self.solver(data))

    def solver(self, data: bool) -> str:
        """The solver that is asked for, or the best that there is; data: whether there are samples."""
        if self.present:
            return PRESENT
        given = self.zeros.solver if self.recorded is None else str(self.recorded["solver"])
        return given or (BEST_SOLVER if data else PLAIN_SOLVER)

    def check(self, data: bool) -> None:
        """Raises `OptionError` where steps are for the zeros alone, which cannot grow in them; data: whether there are
        samples."""
        steps, alone = self.asked_steps, self.alone or self.recorded is not None
        grows = None if self.recorded is not None else self.zeros.sparsity_schedule
        idle = {
            "it needs --steps N": steps == 1,
            "with --quality every step takes what lies below the threshold": self.quality is not None,
            f"--pattern {self.pattern} loses as many weights in every step": isinstance(self.pattern, NMPattern),
        }
        if grows is not None and any(idle.values()):
            raise OptionError(f"--sparsity-schedule {grows} has no effect: {next(why for why, x in idle.items() if x)}")
        if not self.makes_zeros or not alone or steps == 1:
            return
        if self.recorded is None and taken(self.pattern, steps) == 1:
            raise OptionError(
                f"--steps {steps} has no effect: --pattern {self.pattern} is reached in one step; leave it out"
            )
        if self._same(data):
            way = f"choose --solver {BEST_SOLVER}, or --tune 10 between" if data else "give --calibration SRC"
            raise OptionError(
                f"--steps {steps}: {self.solver(data)} chooses the same weights in one step as in many; leave it out, "
                f"or {way}"
            )

    def fewer(self, data: bool) -> list[str]:
        """A line where the zeros grow in fewer steps than were asked for; data: whether there are samples."""
        steps, now = self.asked_steps, self.growing(data).steps
        if not self.makes_zeros or self.recorded is not None or now == steps:
            return []
        same = f"{self.solver(data)} chooses the same weights"
        why = same if self._same(data) else f"--pattern {self.pattern} has no more"
        return [f"--steps {steps}: the zeros take {'one step' if now == 1 else f'{now} steps'}: {why}"]
