"""The keeper of a mask that is learned: weights as they are behind it, scores, and what is open.

The session reads W m, which lies in the weights of the `step.Step`; what is closed is kept here. After a step, scores
and weights follow the gradients, and the mask the scores, until it is frozen: from there on what is zero stays so, as
the zeros of any other training do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.formats.patterns import NMPattern
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.sparsity.grow import GROWTHS
from onnxprune.training.areas import Area, Units, area_of
from onnxprune.training.masking import LEARNED, NONE, OPEN, SCORES, Learning
from onnxprune.training.optimizers import Optimizer
from onnxprune.training.step import Step

WARM, GROWN, FROZEN = 0.1, 0.6, 0.75  # of the steps: zeros begin, all are there, the mask stays
THRESHOLD = 0.1  # of sigmoid(S), at the end, for soft rules (Sanh et al. 2020)
SALT = 6  # of the seed


class Keeper:
    """One mask.

    raw: weights, of which what is closed counts; scores: `(count,)`, of the area; open: what is not closed, and ever:
    what was once, bool `(n,)` of the flat buffers; share: of the zeros, that are there by the schedule; frozen: whether
    the mask stays.
    """

    def __init__(self, model: Model, step: Step, how: Learning, optimizer: str, momentum: float, seed: int) -> None:
        """model: whose step it is; optimizer: of scores, a row of `OPTIMIZERS`. Raises `OptionError` where nothing can
        be masked."""
        self.how, self.row, self.step = how, how.row, step
        self.area: Area = area_of(model, step.layout, how)
        self.notes = [*self.area.notes] if isinstance(self.area, Units) else []
        self.sizes = self.area.gathered(np.ones_like(step.weights))
        self.alive = self.area.gathered(step.free) > 0
        self.scores = np.zeros(self.area.count, np.float32)
        if self.row.signed:
            _signed(step, self.area, how)
            rng = np.random.default_rng([seed, SALT])
            self.scores = rng.random(self.area.count, np.float32)
        self.optimizer = Optimizer(optimizer, self.area.count, momentum=momentum)
        self.raw = step.weights.copy()
        self.open, self.ever = np.ones_like(step.free), np.zeros_like(step.free)
        self.share, self.frozen = 0.0, False
        self.choose(0.0)

    def update(self, optimizer: Optimizer, height: float, ratio: float) -> None:
        """Scores and weights follow the gradients of the step. optimizer, height: of the weights, and its rate now;
        ratio: of that of the scores to it."""
        step, row = self.step, self.row
        if row.scores == LEARNED:
            slope = self.area.gathered(step.gradients * self.raw)
            if self.how.penalty is not None:
                s = 1 / (1 + np.exp(-self.scores))
                slope += np.float32(self.how.penalty * self.share / self.area.count) * s * (1 - s)
            self.optimizer.update(self.scores, slope, self.alive, height * ratio)
        if row.moves != NONE:
            np.copyto(step.weights, self.raw, where=~self.open)
            keep = step.free & self.open if row.moves == OPEN else step.free
            optimizer.update(step.weights, step.gradients, keep, height)
            self.raw[...] = step.weights
            step.weights[~self.open] = 0

    def choose(self, done: float) -> bool:
        """Close and open by the scores as they are when this part of the steps is done; False where the mask stays."""
        if self.frozen:
            return False
        part = min(max((done - WARM) / (GROWN - WARM), 0.0), 1.0)
        grown = GROWTHS[self.how.growth].share(part, float(self.how.zeros.sparsity or 0.0))
        self.share = grown if self.row.grows else 1.0
        inside, step = self.area.inside, self.step
        self.open[inside] = self._kept()
        self.ever |= ~self.open
        step.weights[...] = np.where(self.open, np.where(inside, self.raw, step.weights), np.float32(0))
        self.frozen = self.row.grows and done >= FROZEN
        if self.frozen:
            step.free &= self.open
        return True

    def _kept(self) -> Array:
        """What stays of the weights inside."""
        scores: Array = self.scores
        if self.row.scores != LEARNED:
            scores = self.area.gathered(SCORES[self.row.scores](self.raw, self.step.gradients)) / self.sizes
        out = ~self.alive if self.row.returns else ~self.alive | (self.area.gathered(self.ever) > 0)
        scores = np.where(out, np.float32(-np.inf), scores)
        if not self.row.soft:
            return self.area.keep(scores, self.share)
        t = THRESHOLD * self.share
        return self.area.above(scores, float(np.log(t / (1 - t))) if t else -np.inf)

    def undo(self) -> None:
        """Weights went back to those before: what is open, and what counts, with them; scores stay."""
        now = self.step.weights
        self.open[...] = ~self.area.inside | (now != 0)
        np.copyto(self.raw, now, where=self.open)

    # what becomes of it

    def said(self) -> list[str]:
        """A line where the mask is not whole yet, where it closed nothing, and where it closed all of a layer."""
        empty = [name for name, row in self.counts().items() if not row["left"]]
        lines = {
            "training was stopped before all zeros were there": self.share < 1,
            "nothing was closed; more --mask-penalty, a higher --mask-rate or more steps would": self.open.all(),
            f"no weight is left of {', '.join(empty[:3])}{', ...' * (len(empty) > 3)}": empty,
        }
        return [f"masks: {line}" for line, holds in lines.items() if holds]

    def counts(self) -> dict[str, dict[str, int]]:
        """By layer, or by group: how many weights, or units, there are, are left, and were closed before."""
        inside = self.area.inside
        left, back = (self.area.parts(x[inside]) for x in (self.open, self.open & self.ever))
        return {
            name: {"size": kept.size, "left": int(kept.sum()), "came_back": int(back[name].sum())}
            for name, kept in left.items()
        }  # fmt: skip

    def units(self) -> dict[str, Array]:
        """Group -> units that are open, bool `(size,)`; {} for a mask of weights."""
        return self.area.parts(self.open[self.area.inside]) if isinstance(self.area, Units) else {}

    def state(self) -> dict[str, Array]:
        """Everything that changes."""
        counts = np.array([self.frozen, self.optimizer.step], np.int64)
        buffers = {
            "raw": self.raw, "scores": self.scores, "open": self.open, "ever": self.ever, "counts": counts,
            "share": np.array(self.share), **{f"optimizer {i}": s for i, s in enumerate(self.optimizer.state)},
        }  # fmt: skip
        return {f"mask {name}": x.copy() for name, x in buffers.items()}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go back, or forth, to a state."""
        for name, buffer in (
            ("raw", self.raw), ("scores", self.scores), ("open", self.open), ("ever", self.ever),
            *((f"optimizer {i}", s) for i, s in enumerate(self.optimizer.state)),
        ):  # fmt: skip
            buffer[...] = state[f"mask {name}"]
        frozen, self.optimizer.step = (int(v) for v in state["mask counts"])
        self.frozen = bool(frozen)
        self.share = float(state["mask share"])


def _signed(step: Step, area: Area, how: Learning) -> None:
    """Weights become constants with their signs: the deviation that they have, over the root of what is left of them
    (Ramanujan et al. 2020, section 3.2 and appendix)."""
    pattern = how.zeros.shape
    gone = pattern.ratio if isinstance(pattern, NMPattern) else dict(how.units).get("heads", how.zeros.sparsity)
    left = 1 - float(gone or 0.0)
    for name in step.trained:
        if step.layout.view(area.inside, name).any():
            w = step.layout.view(step.weights, name)
            w[...] = np.sign(w) * np.sqrt(np.mean(np.square(w)) / max(left, 1e-3))


__all__ = ["FROZEN", "Keeper"]
