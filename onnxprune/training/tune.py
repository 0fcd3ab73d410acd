"""Tuning: the weights of a pruned model are trained towards the outputs of the original, and towards the labels of the
samples where there are some.

Least squares came first, so the schedule is gentle. Zeros of weights with two axes or more stay zero. The average of
the weights that is best on samples that no stage has seen is taken, and the model as it was where none is better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.calibration.augment import AUGMENTATIONS, channels_first, usual
from onnxprune.errors import OptionError, UserError
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.graph.io import Model
from onnxprune.graph.step import Step as Stage
from onnxprune.progress import Steps
from onnxprune.runtime.session import Feeds, session
from onnxprune.training.batches import Batches
from onnxprune.training.losses import label_feeds, objective_of, teach
from onnxprune.training.optimizers import Optimizer, follow
from onnxprune.training.outcome import Tuning
from onnxprune.training.schedule import rate
from onnxprune.training.step import Step

LOOKS = 12  # times that the held-out samples are looked at, at most
AVERAGED = 10  # the average of the weights goes back about one in so many steps
HALVINGS = 5  # of the rate, where losses are no numbers, before it is an error
TIMED = 3  # steps by which a time becomes a number of steps
RATE = {"adam": 1e-4, "adamw": 1e-4, "sgd": 1e-2}  # five times as much undoes what least squares did for resnet56
BATCH = 64


@dataclass(frozen=True)
class Settings:
    """How to tune. amount, unit: how much, in "epochs", "steps" or "seconds"; batch: samples of one step; rate: the
    highest, None for the optimizer's own; decay: of the weights; schedule, warmup: as of `schedule.rate`; loss: as
    `losses.parse` gives it, None for what suits the samples; augment: rows of `AUGMENTATIONS`, True for those that are
    usual, None for them without labels; threads: of onnxruntime; memory: bytes for activations."""

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


def tune(
    original: Model,
    model: Model,
    seen: TrainingSet,
    unseen: TrainingSet,
    settings: Settings,
    *,
    narrow: Callable[[Feeds], Feeds] = lambda feeds: feeds,
    progress: Steps = lambda done, total: None,
) -> Stage[Tuning]:
    """The tuned model, or the one that came in where that is better on the held-out samples.

    seen: samples to train on, by their labels too where they have some; unseen: those that choose; narrow: inputs of
    the original as those of the model.
    Raises `UserError` where it cannot be trained.
    """
    augment = augmentation(settings, seen)
    batches = Batches(seen, settings.batch, settings.seed, augment)
    parts = unseen.batches(batches.size)
    with session(original, threads=settings.threads) as s:
        names = [o.name for o in s.get_outputs()]

        def run(feeds: Feeds) -> Feeds:
            return dict(zip(names, s.run(None, feeds), strict=True))

        first, (shown, _) = unseen.feeds(parts[0]), batches(0)
        objective = objective_of(
            original, run(first), len(parts[0]), loss=settings.loss, labels=seen.labels,
            mixed=any(AUGMENTATIONS[a].mixes for a in augment),
        )  # fmt: skip

        def teacher(feeds: Feeds) -> Feeds:
            return teach(objective.terms, run(feeds)) if objective.taught else {}

        alike = [{n: x.shape[1:] for n, x in feeds.items()} for feeds in (first, shown)]
        fixed = len(seen.kinds) == 1 and alike[0] == alike[1]
        step = Step(
            model, objective, narrow(shown), fixed=fixed, memory=settings.memory, threads=settings.threads
        )  # fmt: skip
        quiz = [
            (narrow(x), {**teacher(x), **label_feeds(objective, unseen.labels, part)}, len(part))
            for part in parts for x in [unseen.feeds(part)]
        ]  # fmt: skip

        def draw(k: int) -> tuple[Feeds, Feeds]:
            feeds, labels = batches(k)
            return narrow(feeds), {**teacher(feeds), **labels}

        work = Run(step, settings, draw, quiz)
        steps = work.steps(seen.count / batches.size)
        best = work.train(steps, progress)
    outcome = Tuning(
        steps, batches.size, work.rate, settings.optimizer, unseen.count, len(step.trained), work.curve[0][1],
        dict(work.curve)[best], best, tuple(work.curve), momentum=settings.momentum, weight_decay=settings.decay,
        schedule=settings.schedule, warmup=settings.warmup, loss=objective.description, augment=augment,
    )  # fmt: skip
    return Stage(model if best == 0 else step.written(model, work.chosen), outcome, tuple(work.notes))


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


Quiz = Sequence[tuple[Feeds, Feeds, int]]  # inputs, targets, samples


class Run:
    """The state of one tuning: weights, optimizer, their average, and the best of the averages (`chosen`)."""

    def __init__(self, step: Step, settings: Settings, draw: Callable[[int], tuple[Feeds, Feeds]], quiz: Quiz) -> None:
        self.step, self.settings, self.draw, self.quiz = step, settings, draw, quiz
        self.rate = RATE[settings.optimizer] if settings.rate is None else settings.rate
        self.optimizer = Optimizer(
            settings.optimizer, step.layout.size, momentum=settings.momentum, decay=settings.decay
        )  # fmt: skip
        self.average, self.before, self.chosen = (step.weights.copy() for _ in range(3))
        self.curve: list[tuple[int, float]] = []
        why = step.missing
        self.notes = [f"tuning: a step takes longer, without the kernels of training: {why}"] if why else []
        self.factor, self.halved = 1.0, 0

    def steps(self, per_epoch: float) -> int:
        """How many steps were asked for; a time is turned into steps by the time of a few.

        Raises `OptionError` for a time below one step.
        """
        amount, unit = self.settings.amount, self.settings.unit
        if unit != "seconds":
            return max(1, round(amount * (1 if unit == "steps" else per_epoch)))
        self.step.train(*self.draw(0))
        start = time.perf_counter()
        for k in range(TIMED):
            self.step.train(*self.draw(k + 1))
        each = (time.perf_counter() - start) / TIMED
        looking = time.perf_counter()
        self.look(0)
        self.curve.clear()
        looking = (time.perf_counter() - looking) * (LOOKS + 1)
        steps = int((amount - looking) / each)
        if steps < 1:
            raise OptionError(
                f"--tune: {amount:g} s are less than one step, of {each:.1f} s, and looks at what is held out"
            )
        return steps

    def train(self, steps: int, progress: Steps) -> int:
        """Take so many steps; the step whose average of weights was the best on the held-out samples, 0 for none."""
        every, horizon = math.ceil(steps / LOOKS), max(1.0, steps / AVERAGED)
        best, least = 0, self.look(0)
        for k in range(steps):
            self.take(*self.draw(k), rate(k, steps, self.rate, self.settings.schedule, self.settings.warmup))
            follow(self.average, self.step.weights, max(1 / horizon, 1 / (k + 2)))
            if (k + 1) % every == 0 or k + 1 == steps:
                loss = self.look(k + 1)
                if loss < least:
                    best, least = k + 1, loss
                    self.chosen[...] = self.average
            progress(k + 1, steps)
        if self.halved:
            self.notes.append(
                f"tuning: {self.halved} steps had losses that are no numbers; the rate was halved each time"
            )
        return best

    def take(self, feeds: Feeds, targets: Feeds, height: float) -> None:
        """One step at a rate; where the loss or a gradient is no number, the last one is undone and the rate halved.

        Raises `UserError`, with the weight, where that does not help.
        """
        step = self.step
        loss = step.train(feeds, targets)
        if math.isfinite(loss) and math.isfinite(float(np.dot(step.gradients, step.gradients))):
            self.before[...] = step.weights
            self.optimizer.update(step.weights, step.gradients, step.free, height * self.factor)
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
        self.optimizer.reset()
        self.factor /= 2

    def look(self, at: int) -> float:
        """The mean loss of the average of the weights on the held-out samples; infinite where it is no number."""
        step, now = self.step, self.step.weights.copy()
        step.weights[...] = self.average
        total = sum(count * step.loss(x, t) for x, t, count in self.quiz) / sum(count for *_, count in self.quiz)
        step.weights[...] = now
        self.curve.append((at, total))
        return total if math.isfinite(total) else math.inf
