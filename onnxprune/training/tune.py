"""Tuning: the weights of a pruned model are trained towards the outputs of the original, and towards the labels of the
samples where there are some.

Least squares came first, so the schedule is gentle. Zeros of weights with two axes or more stay zero. The average of
the weights that is best on samples that no stage has seen is taken, and the model as it was where none is better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.augment import AUGMENTATIONS, channels_first, usual
from onnxprune.errors import OptionError, UserError
from onnxprune.evaluation.metrics import METRICS
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.step import Step as Stage
from onnxprune.progress import Steps, stoppable
from onnxprune.runtime.session import Feeds, session
from onnxprune.training.batches import Batches
from onnxprune.training.checkpoint import Checkpoint
from onnxprune.training.keeper import Keeper
from onnxprune.training.losses import DISTIL, Objective, label_feeds, objective_of, teach
from onnxprune.training.masking import Learning
from onnxprune.training.optimizers import Optimizer, follow
from onnxprune.training.outcome import SparseLearning, Tuning
from onnxprune.training.quiz import Quiz
from onnxprune.training.regularize import Penalty, Units
from onnxprune.training.schedule import rate
from onnxprune.training.step import Step

LOOKS = 12  # times that the held-out samples are looked at, at most
LOOKING = 2.0  # copies that are looked at for a sample that is trained on, at most: half of the time of the steps
AVERAGED = 10  # the average of the weights goes back about one in so many steps
HALVINGS = 5  # of the rate, where losses are no numbers, before it is an error
TIMED = 3  # steps by which a time becomes a number of steps
RATE = {"adam": 1e-4, "adamw": 1e-4, "sgd": 1e-2}  # five times as much undoes what least squares did for resnet56
UNFITTED = 10  # times as much where nothing made up for what went
SAID = 2.0  # seconds between two lines, least
TRIAL, TRIALS = 4, 4  # steps at a rate that is tried, and rates
SHARE = 10  # trials are at most one step in so many, else there are none
APART = math.sqrt(10)  # a rate over the next lower one
PATIENCE = 3  # one step in so many at a rate that was found must make it better
HARM = 1.0  # of the loss that is held out: what a trial may add to it
BATCH = 64
LISTS = ("curve", "shares", "tried")  # parts of a state that grow
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How to tune. amount, unit: how much, in "epochs", "steps" or "seconds"; batch: samples of one step; rate: the
    highest, None for one that `Run.try_rates` finds; decay: of the weights; schedule, warmup: as of `schedule.rate`;
    loss: as `losses.parse` gives it, None for what suits the samples; augment: rows of `AUGMENTATIONS`, True for those
    that are usual, None for them without labels; threads: of onnxruntime; memory: bytes for activations; looks: at what
    is held out, at most; fitted: whether something made up for what went before; masks: that are learned."""

    amount: float
    unit: str = "steps"
    batch: int = BATCH
    rate: float | None = None
    optimizer: str = "adam"
    momentum: float = 0.9
    decay: float = 0.0
    schedule: str = "cosine"
    warmup: int | None = None
    loss: Any = None
    augment: tuple[str, ...] | bool | None = None
    seed: int = 0
    threads: int = 0
    memory: float = math.inf
    looks: int = LOOKS
    fitted: bool = True
    masks: Learning | None = None


def tune(
    original: Model,
    model: Model,
    seen: TrainingSet,
    unseen: TrainingSet,
    settings: Settings,
    *,
    narrow: Callable[[Feeds], Feeds] = lambda feeds: feeds,
    cache: Path | None = None,
    progress: Steps = lambda done, total: None,
    tell: Tell = lambda line: None,
) -> Stage[Tuning]:
    """The tuned model, or the one that came in where that is better on the held-out samples.

    seen: samples to train on, by their labels too where they have some; unseen: those that choose; narrow: inputs of
    the original as those of the model; cache: a folder that keeps the state;
    tell: gets a line when the rate is found, and at every look.
    Raises `UserError` where it cannot be trained.
    """
    with ExitStack() as stack:
        work = prepared(original, model, seen, unseen, settings, stack, narrow=narrow, cache=cache)
        steps = work.steps(seen.count / work.batch)
        best = work.train(steps, progress, tell)
    outcome = Tuning(
        steps, work.batch, work.rate, settings.optimizer, unseen.count, len(work.step.trained), work.curve[0][1],
        dict(work.curve)[best], best, tuple(work.curve), momentum=settings.momentum, weight_decay=settings.decay,
        schedule=settings.schedule, warmup=settings.warmup, loss=work.objective.description, augment=work.augment,
        range_test=tuple(work.tried), copies=work.quiz.copies,
    )  # fmt: skip
    return Stage(model if best == 0 else work.step.written(model, work.chosen), outcome, tuple(work.notes))


def learn(
    original: Model,
    model: Model,
    seen: TrainingSet,
    unseen: TrainingSet,
    settings: Settings,
    pressure: Pressure,
    *,
    share: float = 1.0,
    cache: Path | None = None,
    progress: Steps = lambda done, total: None,
    tell: Tell = lambda line: None,
) -> Stage[SparseLearning]:
    """The model after a training under a penalty, with its weights as they are at the end: what is held out chooses
    nothing here, since the cut is still to come.

    share: of the steps of the settings that are taken; the others are `left`. Other arguments and errors as of `tune`,
    and `OptionError` where there are no steps for both.
    """
    with ExitStack() as stack:
        work = prepared(original, model, seen, unseen, settings, stack, cache=cache, pressure=pressure)
        penalty = work.penalty
        assert penalty is not None
        steps, left = work.shared(share, seen.count / work.batch)
        if share < 1 and not left:
            raise OptionError(
                f"--regularize {pressure.name}: --tune has no steps for the penalty and for what follows the cut; "
                f"give 2steps or more"
            )
        work.train(steps, progress, tell)
        weights = work.step.weights
        last = work.measured(weights)[0]
    outcome = SparseLearning(
        pressure.name, pressure.strength, steps, work.batch, work.rate, penalty.count, unseen.count,
        work.curve[0][1], last, penalty.small_at_first, penalty.small(weights),
        float(penalty.norms(weights).sum() / max(penalty.before.sum(), 1e-30)), pressure.units.groups, left,
        tuple(work.tried), work.quiz.copies,
    )  # fmt: skip
    return Stage(work.step.written(model, weights), outcome, tuple(work.notes))


@dataclass(frozen=True, eq=False)
class Pressure:
    """What a training is regularized by: a row of `REGULARIZERS`, its strength, and the units that it pulls at."""

    name: str
    strength: float
    units: Units


def prepared(
    original: Model,
    model: Model,
    seen: TrainingSet,
    unseen: TrainingSet,
    settings: Settings,
    stack: ExitStack,
    *,
    narrow: Callable[[Feeds], Feeds] = lambda feeds: feeds,
    cache: Path | None = None,
    distil: float = DISTIL,
    by_batch: bool = False,
    pressure: Pressure | None = None,
) -> Run:
    """A training that may begin, or go on where the cache has it. Arguments as of `tune`; stack: closes the original's
    session; distil: weight of distillation beside labels; by_batch: as of `Step`; pressure: as of `learn`."""
    augment = augmentation(settings, seen)
    batches = Batches(seen, settings.batch, settings.seed, augment)
    s = stack.enter_context(session(original, threads=settings.threads))
    names = [o.name for o in s.get_outputs()]

    def run(feeds: Feeds) -> Feeds:
        return dict(zip(names, s.run(None, feeds), strict=True))

    part = unseen.batches(batches.size)[0]
    first, (shown, _) = unseen.feeds(part), batches(0)
    objective = objective_of(
        original, run(first), len(part), loss=settings.loss, labels=seen.labels,
        mixed=any(AUGMENTATIONS[a].mixes for a in augment), distil=distil, classes=seen.classes,
    )  # fmt: skip

    def teacher(feeds: Feeds) -> Feeds:
        return teach(objective.terms, run(feeds)) if objective.taught else {}

    alike = [{n: x.shape[1:] for n, x in feeds.items()} for feeds in (first, shown)]
    fixed = len(seen.kinds) == 1 and alike[0] == alike[1]
    scores = seen.classes if seen.labels is not None else ""
    step = Step(
        model, objective, narrow(shown), fixed=fixed, by_batch=by_batch, scores=scores, memory=settings.memory,
        threads=settings.threads,
    )  # fmt: skip

    def answer(feeds: Feeds, labels: Array | None) -> tuple[Feeds, Feeds]:
        return narrow(feeds), {**teacher(feeds), **label_feeds(objective, labels)}

    quiz = Quiz(unseen, batches.size, answer, augment, settings.seed)

    def draw(k: int) -> tuple[Feeds, Feeds]:
        feeds, labels = batches(k)
        return narrow(feeds), {**teacher(feeds), **labels}

    penalty = None if pressure is None else Penalty(pressure.name, pressure.strength, pressure.units, step)
    asked: Any = (replace(settings, loss=objective.description), quiz.copies)
    if pressure is not None:
        units = [(p.tensor, p.shape, p.units) for p in pressure.units.parts]
        asked = (*asked, pressure.name, pressure.strength, units)
    checkpoint = None if cache is None else Checkpoint.of(cache, original, step, seen, unseen, asked)
    masks = None
    if settings.masks is not None:
        masks = Keeper(model, step, settings.masks, settings.optimizer, settings.momentum, settings.seed)
    return Run(step, settings, draw, batches, quiz, objective, augment, checkpoint, penalty, masks)


def augmentation(settings: Settings, seen: TrainingSet) -> tuple[str, ...]:
    """What is done to the pictures: as asked, or what is usual where only the original is the teacher; nothing where no
    pictures go in. Raises `OptionError` where that was asked for."""
    feeds = seen.feeds([0])
    pictures = len(feeds) == 1 and channels_first(*feeds.values()) is not None
    asked = settings.augment
    if asked and not pictures:
        names = f" {','.join(asked)}" if isinstance(asked, tuple) else ""
        raise OptionError(f"--augment{names} has no effect: no pictures go in")
    if not pictures:
        return ()
    if asked is True or (asked is None and seen.labels is None):  # unasked, a flipped 2 is no 2
        return usual(*feeds.values())
    return asked or ()


class Run:
    """The state of one training: weights, optimizer, their average, the best of the averages (`chosen`), and what step
    comes next. `state` is all that another run needs to go on in its place, to the same bytes."""

    def __init__(
        self, step: Step, settings: Settings, draw: Callable[[int], tuple[Feeds, Feeds]], batches: Batches, quiz: Quiz,
        objective: Objective, augment: tuple[str, ...], checkpoint: Checkpoint | None = None,
        penalty: Penalty | None = None, masks: Keeper | None = None,
    ) -> None:  # fmt: skip
        """draw: inputs and targets of a step, made of those of `batches`; checkpoint: keeps the state, and may hold
        one; penalty: pulls before every step of the optimizer."""
        self.step, self.settings, self.draw, self.batches, self.quiz = step, settings, draw, batches, quiz
        self.penalty = penalty
        self.objective, self.batch, self.augment = objective, batches.size, augment
        usual = RATE[settings.optimizer] * (1 if settings.fitted else UNFITTED)
        self.rate = usual if settings.rate is None else settings.rate
        self.tried: list[tuple[float, float]] = []  # rates, and the loss on what is held out after a trial
        self.again = False  # whether it began anew, at a lower rate
        self.optimizer = Optimizer(
            settings.optimizer, step.layout.size, momentum=settings.momentum, decay=settings.decay
        )  # fmt: skip
        self.first, self.average, self.before, self.chosen = (step.weights.copy() for _ in range(4))
        self.curve: list[tuple[int, float]] = []
        self.shares: list[float] = []  # of labels that have the largest score, at every look
        why = step.missing
        self.notes = [f"tuning: a step takes longer, without the kernels of training: {why}"] if why else []
        self.factor, self.halved = 1.0, 0
        self.position, self.best, self.planned = 0, 0, 0
        self.last = math.nan  # loss of the last step
        self.checkpoint, self.masks = checkpoint, masks
        kept = None if checkpoint is None else checkpoint.read()
        self.resumed = kept is not None
        if kept is not None:
            self.restore(kept)

    def steps(self, per_epoch: float) -> int:
        """How many steps were asked for; a time is turned into steps by the time of a few.

        Raises `OptionError` for a time below one step.
        """
        if self.resumed:
            return self.planned
        amount, unit = self.settings.amount, self.settings.unit
        if unit != "seconds":
            return max(1, round(amount * (1 if unit == "steps" else per_epoch)))
        self.step.train(*self.draw(0))
        start = time.perf_counter()
        for k in range(TIMED):
            self.step.train(*self.draw(k + 1))
        each = (time.perf_counter() - start) / TIMED
        start = time.perf_counter()
        self.look(0)
        self.curve.clear()
        self.shares.clear()
        look = time.perf_counter() - start
        fewest, most = amount - look * (self.settings.looks + 1), amount - look
        steps = int(max(fewest / each, most / (each + self.looks_per_step * look)))
        if steps < 1:
            raise OptionError(
                f"--tune: {amount:g} s are less than one step, of {each:.1f} s, and looks at what is held out"
            )
        return steps - (TRIAL * TRIALS if self.tries(steps) else 0)

    @property
    def looks_per_step(self) -> float:
        """At what is held out, at most: as many as are asked for of samples as they came, fewer of many copies."""
        return math.inf if self.quiz.copies == 1 else LOOKING * self.batch / self.quiz.count

    def looks(self, steps: int) -> int:
        """At what is held out, after the first, in so many steps."""
        return max(1, int(min(self.settings.looks, self.looks_per_step * steps)))

    def shared(self, share: float, per_epoch: float) -> tuple[int, int]:
        """Steps that are taken, and those that are left for later, of what was asked for. Of a time, this part of it
        says how many both are."""
        whole, unit = self.settings.amount, self.settings.unit
        if unit == "seconds":
            self.settings = replace(self.settings, amount=whole * share)
            steps = self.steps(per_epoch)
            return steps, round(steps * (1 - share) / share)
        whole = max(1, round(whole * (1 if unit == "steps" else per_epoch)))
        return max(1, round(whole * share)), whole - max(1, round(whole * share))

    def tries(self, steps: int) -> bool:
        """Whether rates are to be tried before so many steps."""
        unsaid = self.settings.rate is None and not self.position and not self.tried
        return unsaid and steps >= TRIAL * TRIALS * SHARE

    def try_rates(self, steps: int, tell: Tell = lambda line: None) -> None:
        """A short range test, where nobody said the rate and the steps are many: `rate` becomes the largest of a few at
        which some steps, down to zero by a cosine, add no more than `HARM` times the loss on the held-out samples.

        The rate at which these steps end lowest is too low by far for many (Wu et al. 2018, Understanding Short-Horizon
        Bias in Stochastic Meta-Optimization), and noise chooses it. What they do at high rates is no noise: as Smith
        2017 (Cyclical Learning Rates) the test looks for where the loss begins to grow.
        """
        if not self.tries(steps):
            return
        start, first = self.state(), self.measured(self.step.weights)[0]
        base, bound, tried, up = self.rate, first + HARM * abs(first), list[tuple[float, float]](), True
        try:
            for n in range(TRIALS):
                height = float(f"{base * APART ** (n if up else -n):.0e}")
                for k in range(TRIAL):
                    self.take(*self.draw(k), rate(k, TRIAL + 1, height))
                tried.append((height, self.measured(self.step.weights)[0]))
                self.restore(start)
                fine = tried[-1][1] <= bound
                up = fine if n == 0 else up
                if fine != up:
                    break
        finally:
            self.restore(start)
        low = min(height for height, _ in tried)
        self.tried, self.rate = tried, max((height for height, loss in tried if loss <= bound), default=low)
        told = ", ".join(f"{loss:.4g} at {height:g}" for height, loss in sorted(tried))
        tell(f"learning rate {self.rate:g}: the loss held out, {first:.4g}, is after {TRIAL} steps {told}")

    def train(self, steps: int, progress: Steps, tell: Tell = lambda line: None) -> int:
        """Go on to so many steps; the step whose average of weights was the best on the held-out samples, 0 for none.

        tell: gets a line at a look, at most one in `SAID` seconds; the state is kept after each. Where it is stopped,
        what it has is looked at once more, and a note says so.
        """
        every, self.planned = math.ceil(steps / self.looks(steps)), steps
        start, began = time.monotonic(), self.position
        said = start
        if not self.curve:
            self.first[...] = self.step.weights
            self.look(began)
        try:
            with stoppable():
                self.try_rates(steps, tell)
                while self.position < steps:
                    self.advance(steps)
                    if self.position % every == 0 or self.position == steps:
                        self.look(self.position)
                        now = time.monotonic()
                        left = (now - start) / (self.position - began) * (steps - self.position)
                        if now - said >= SAID:
                            tell(f"{self.told()}, {left:.0f} s left")
                            said = now
                        if self.in_vain(every):
                            self.begin_again(tell)
                            start, began = now, self.position
                        if self.checkpoint is not None:
                            self.checkpoint.write(self.state())
                    progress(self.position, steps)
        except KeyboardInterrupt:
            if self.curve[-1][0] != self.position:
                self.look(self.position)
            kept = "the best so far is kept" if self.penalty is None else "what it learned by then is kept"
            self.notes.append(f"stopped after {self.position} of {steps} steps: {kept}")
        self.notes += self.stumbled()
        return self.best

    def in_vain(self, every: int) -> bool:
        """Whether a third of the steps at a rate that was found, looked at every so many, has made it no better. What
        was better for a while gets worse at a rate that is too high."""
        free = bool(self.tried) and not self.again and self.penalty is None and self.masks is None
        due = self.position - every < self.planned / PATIENCE <= self.position < self.planned
        return free and due and not self.curve[-1][1] < self.curve[0][1]

    def begin_again(self, tell: Tell) -> None:
        """From the first step, at the next lower rate: the few steps of a trial cannot tell all that many do."""
        lower = float(f"{self.rate / APART:.0e}")
        self.again, self.rate = True, max((r for r, _ in self.tried if r < self.rate), default=lower)
        for buffer in (self.step.weights, self.average, self.before, self.chosen):
            buffer[...] = self.first
        self.step.followed = False
        self.optimizer.reset()
        self.position = self.best = self.curve[0][0]
        self.halved, self.factor = 0, 1.0
        del self.curve[1:], self.shares[1:]
        tell(f"no better after a third of the steps: from the first step again, at {self.rate:g}")

    def stumbled(self) -> list[str]:
        """A line where the rate was halved, one where training began anew, and one where products were sparse."""
        why = f"tuning: {self.halved} steps had losses that are no numbers; the rate was halved each time"
        again = f"tuning: a third of the steps at a higher rate made it no better: begun again at {self.rate:g}"
        sparse = f"tuning: {self.step.products} products of a step read only the weights that are not fixed at zero"
        return [why] * bool(self.halved) + [again] * self.again + [sparse] * bool(self.step.products)

    def told(self) -> str:
        """The last look in one line."""
        at, loss = self.curve[-1]
        share = f", {self.shares[-1]:.1%} of the labels" if self.shares else ""
        return f"step {at} of {self.planned}: loss {loss:.4g}{share} on the samples held out"

    def advance(self, steps: int) -> float:
        """The next step of so many; its loss."""
        self.try_rates(steps)
        k, settings = self.position, self.settings
        self.take(*self.draw(k), rate(k, steps, self.rate, settings.schedule, settings.warmup))
        self.position = k + 1
        if self.masks is not None and self.masks.choose(self.position / steps):
            self.begin_with(self.step.weights)
        else:
            follow(self.average, self.step.weights, max(1 / max(1.0, steps / AVERAGED), 1 / (k + 2)))
        return self.last

    @property
    def least(self) -> float:
        """The loss of the best look."""
        losses = [loss for at, loss in self.curve if at == self.best]
        return losses[0] if losses and math.isfinite(losses[0]) else math.inf

    def state(self) -> dict[str, Array]:
        """Everything that changes, as arrays; random numbers depend on the position and the seed of the order, which
        are among it."""
        counts = [
            self.position, self.best, self.planned, self.halved, self.optimizer.step, self.again,
            self.batches.seed,
        ]  # fmt: skip
        return {
            "weights": self.step.weights.copy(), "average": self.average.copy(), "before": self.before.copy(),
            "chosen": self.chosen.copy(), "first": self.first.copy(), "counts": np.array(counts, np.int64),
            "factor": np.array(self.factor),
            "curve": np.array(self.curve, np.float64).reshape(-1, 2), "shares": np.array(self.shares, np.float64),
            "free": self.step.free.copy(), "rate": np.array(self.rate),
            "tried": np.array(self.tried, np.float64).reshape(-1, 2),
            **{f"optimizer {i}": s.copy() for i, s in enumerate(self.optimizer.state)},
            **({} if self.masks is None else self.masks.state()),
        }  # fmt: skip

    def begin(self, weights: Mapping[str, Array]) -> None:
        """Take other weights, by name, as those from which training begins at this step; what was looked at, and what
        the optimizer knows, is forgotten."""
        for name in self.step.layout.places:
            self.step.layout.view(self.step.weights, name)[...] = weights[name]
        self.step.followed = False
        for buffer in (self.first, self.average, self.before, self.chosen):
            buffer[...] = self.step.weights
        self.optimizer.reset()
        self.forget()

    def begin_with(self, weights: Array) -> None:
        """Let averages, and what is best, begin with these weights at this step: as long as masks move, an average has
        fewer zeros than is asked for, and a look at what has more weights says nothing."""
        self.average[...], self.chosen[...], self.best = weights, weights, self.position

    def forget(self) -> None:
        """Let the next look be the first."""
        self.curve, self.shares, self.best = [], [], self.position

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go back, or forth, to a state. Raises `UserError` for one of another model or optimizer."""
        own = self.state()
        if set(own) != set(state) or any(own[n].shape != state[n].shape for n in own if n not in LISTS):
            raise UserError("the state is of another training: of another model, or another optimizer")
        for name, buffer in (
            ("weights", self.step.weights), ("average", self.average), ("before", self.before),
            ("chosen", self.chosen), ("first", self.first), ("free", self.step.free),
            *((f"optimizer {i}", s) for i, s in enumerate(self.optimizer.state)),
        ):  # fmt: skip
            buffer[...] = state[name]
        self.step.followed = False
        *counts, seed = (int(v) for v in state["counts"])
        self.position, self.best, self.planned, self.halved, self.optimizer.step = counts[:5]
        self.again = bool(counts[5])
        self.batches.reorder(seed)
        if self.masks is not None:
            self.masks.restore(state)
        self.factor = float(state["factor"])
        self.curve = [(int(at), float(loss)) for at, loss in state["curve"]]
        self.shares = state["shares"].tolist()
        self.rate, self.tried = float(state["rate"]), [(float(r), float(loss)) for r, loss in state["tried"]]

    def take(self, feeds: Feeds, targets: Feeds, height: float) -> None:
        """One step at a rate; where the loss or a gradient is no number, the last one is undone and the rate halved.

        Raises `UserError`, with the weight, where that does not help.
        """
        step = self.step
        self.last = loss = step.train(feeds, targets)
        if math.isfinite(loss) and math.isfinite(float(np.dot(step.gradients, step.gradients))):
            self.before[...] = step.weights
            if self.penalty is not None:
                self.penalty(step.weights, step.gradients, self.position, self.planned)
            if self.masks is None or self.masks.frozen:
                self.optimizer.update(step.weights, step.gradients, step.free, height * self.factor)
            else:
                self.masks.update(self.optimizer, height * self.factor, self.masks.how.rate / self.rate)
            step.settle()
            return
        self.halved += 1
        if self.halved > HALVINGS:
            where = [n for n in step.layout.places if not np.isfinite(step.layout.view(step.gradients, n)).all()]
            raise UserError(
                f"--tune does not converge: the gradient of {where[0] if where else 'the loss'} is no number; a lower "
                f"--learning-rate than {self.rate:g} may help"
            )
        step.weights[...] = self.before
        if self.masks is not None and not self.masks.frozen:
            self.masks.undo()
        self.optimizer.reset()
        self.factor /= 2

    def look(self, at: int) -> float:
        """The mean loss of the average of the weights on the held-out samples; infinite where it is no number."""
        loss, shares = self.measured(self.average)
        better = self.best not in dict(self.curve) or loss < self.least
        self.curve.append((at, loss))
        self.shares += shares
        if better:
            self.best = at
            self.chosen[...] = self.average
        return loss if math.isfinite(loss) else math.inf

    def measured(self, weights: Array) -> tuple[float, list[float]]:
        """The mean loss of some weights on the held-out samples, in all copies; and, where there are labels, the share
        of those with the largest score, of the samples as they came."""
        step, now = self.step, self.step.weights.copy()
        step.weights[...] = weights
        loss, hits = 0.0, list[Array]()
        for q in self.quiz:
            loss += q.samples * step.loss(q.inputs, q.targets)
            if step.scores and q.plain:
                outputs = {step.scores: step.scored}
                hits.append(METRICS["top1"].per_sample(outputs, q.labels, outputs, step.scores))
        step.weights[...] = now
        return loss / self.quiz.count, [float(np.concatenate(hits).mean())] if hits else []
