"""Tuning without labels: the weights of a pruned model are trained towards the outputs of the original.

Least squares came first, so the schedule is gentle. Zeros of weights with two axes or more stay zero. The average of
the weights that is best on samples that no stage has seen is taken, and the model as it was where none is better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxprune.errors import OptionError, UserError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.step import Step as Stage
from onnxprune.progress import Steps
from onnxprune.runtime.classes import classifier_output, probabilities
from onnxprune.runtime.session import Feeds, session
from onnxprune.training.optimizers import Optimizer, follow
from onnxprune.training.outcome import Tuning
from onnxprune.training.pictures import flip_and_crop, spatial_axes
from onnxprune.training.schedule import rate
from onnxprune.training.step import Step, Target

LOOKS = 12  # times that the held-out samples are looked at, at most
AVERAGED = 10  # the average of the weights goes back about one in so many steps
HALVINGS = 5  # of the rate, where losses are no numbers, before it is an error
TEMPERATURE = 4.0  # of classifiers of samples: resnet20 at half of its MACs gains 3.2 points in 100 steps, at 1 2.3
LEAST = 1e-30  # probability
TIMED = 3  # steps by which a time becomes a number of steps
RATE = {"adam": 1e-4, "adamw": 1e-4, "sgd": 1e-2}  # five times as much undoes what least squares did for resnet56
BATCH = 64


@dataclass(frozen=True)
class Settings:
    """How to tune. amount, unit: how much, in "epochs", "steps" or "seconds"; batch: samples of one step; rate: the
    highest, None for the optimizer's own; augment: flips and shifts where pictures go in; threads: of onnxruntime;
    memory: bytes for activations."""

    amount: float
    unit: str = "steps"
    batch: int = BATCH
    rate: float | None = None
    optimizer: str = "adam"
    augment: bool = True
    seed: int = 0
    threads: int = 0
    memory: float = math.inf


class Source(Protocol):
    """Samples: how many, and inputs of the original for some, in one run."""

    @property
    def count(self) -> int:
        """How many samples there are."""

    def feeds(self, indices: Sequence[int]) -> Feeds:
        """Inputs of one run: these samples, joined along axis 0."""


class Teacher:
    """The outputs of the original, as targets."""

    def __init__(self, run: Callable[[Feeds], Feeds], targets: Sequence[Target]) -> None:
        self.run, self.targets = run, targets

    def __call__(self, feeds: Feeds) -> Feeds:
        values = self.run(feeds)
        return {
            t.output: _logarithms(values[t.output]) if t.classes else values[t.output].astype(np.float32)
            for t in self.targets
        }


def _logarithms(y: Array) -> Array:
    """Logarithms of probabilities, float32 in the shape of the scores."""
    return np.log(np.maximum(probabilities(y), LEAST)).astype(np.float32).reshape(y.shape)


def tune(
    original: Model,
    model: Model,
    seen: Source,
    unseen: Source,
    settings: Settings,
    *,
    narrow: Callable[[Feeds], Feeds] = lambda feeds: feeds,
    progress: Steps = lambda done, total: None,
) -> Stage[Tuning]:
    """The tuned model, or the one that came in where that is better on the held-out samples.

    seen: samples to train on; unseen: those that choose; narrow: inputs of the original as those of the model.
    Raises `UserError` where it cannot be trained.
    """
    rng = np.random.default_rng([settings.seed, seen.count])
    batch = min(settings.batch, seen.count)
    parts = [range(k, min(k + batch, unseen.count)) for k in range(0, unseen.count, batch)]
    with session(original, threads=settings.threads) as s:
        names = [o.name for o in s.get_outputs()]

        def run(feeds: Feeds) -> Feeds:
            return dict(zip(names, s.run(None, feeds), strict=True))

        first = unseen.feeds(parts[0])
        teacher = Teacher(run, targets_of(original, run(first), len(parts[0])))
        feed = Batches(seen, batch, rng, augment=settings.augment)
        shown = feed()
        alike = batch > 1 or {n: x.shape for n, x in first.items()} == {n: x.shape for n, x in shown.items()}
        step = Step(
            model, teacher.targets, narrow(shown), fixed=alike, memory=settings.memory, threads=settings.threads
        )
        quiz = [(narrow(x), teacher(x), len(part)) for part in parts for x in [unseen.feeds(part)]]

        def draw() -> tuple[Feeds, Feeds]:
            feeds = feed()
            return narrow(feeds), teacher(feeds)

        work = Run(step, settings, draw, quiz)
        steps = work.steps(seen.count / batch)
        best = work.train(steps, progress)
    outcome = Tuning(
        steps, batch, work.rate, settings.optimizer, unseen.count, len(step.layout.places), work.curve[0][1],
        dict(work.curve)[best], best, tuple(work.curve),
    )  # fmt: skip
    return Stage(model if best == 0 else step.written(model, work.chosen), outcome, tuple(work.notes))


def targets_of(original: Model, outputs: Feeds, samples: int) -> list[Target]:
    """How each output is compared, by what the original gives for some samples: a classifier's by probabilities, else
    all floating ones by their values."""
    classes = classifier_output(original, outputs, samples)
    if classes:
        y = outputs[classes]
        given = bool((y >= 0).all() and np.allclose(y.reshape(len(y), -1).sum(1), 1, atol=1e-3))
        return [Target(classes, True, probabilities=given, temperature=TEMPERATURE if y.ndim == 2 else 1.0)]
    floats = [name for name, y in outputs.items() if y.dtype.kind == "f" and y.size]
    if not floats:
        raise UserError("tuning needs an output of a floating type, and the model has none")
    variances = {name: float(np.var(outputs[name], dtype=np.float64)) for name in floats}
    return [Target(n, classes=False, variance=v or 1.0, weight=1 / len(floats)) for n, v in variances.items()]


class Batches:
    """Batches of the samples that are trained on, in another order each time round, pictures flipped and shifted."""

    def __init__(self, seen: Source, batch: int, rng: np.random.Generator, *, augment: bool) -> None:
        self.seen, self.batch, self.rng, self.augment = seen, batch, rng, augment
        self.left = np.arange(0)

    def __call__(self) -> Feeds:
        if len(self.left) < self.batch:
            self.left = self.rng.permutation(self.seen.count)
        part, self.left = self.left[: self.batch], self.left[self.batch :]
        feeds = self.seen.feeds(part.tolist())
        pictures = [name for name, x in feeds.items() if spatial_axes(x)]
        if not self.augment or len(feeds) != 1 or not pictures:
            return feeds
        return {name: flip_and_crop(feeds[name], self.rng) for name in pictures}


Quiz = Sequence[tuple[Feeds, Feeds, int]]  # inputs, targets, samples


class Run:
    """The state of one tuning: weights, optimizer, their average, and the best of the averages (`chosen`)."""

    def __init__(self, step: Step, settings: Settings, draw: Callable[[], tuple[Feeds, Feeds]], quiz: Quiz) -> None:
        self.step, self.settings, self.draw, self.quiz = step, settings, draw, quiz
        self.rate = RATE[settings.optimizer] if settings.rate is None else settings.rate
        self.optimizer = Optimizer(settings.optimizer, step.layout.size)
        self.average, self.before, self.chosen = (step.weights.copy() for _ in range(3))
        self.curve: list[tuple[int, float]] = []
        self.notes: list[str] = []
        self.factor, self.halved = 1.0, 0

    def steps(self, per_epoch: float) -> int:
        """How many steps were asked for; a time is turned into steps by the time of a few.

        Raises `OptionError` for a time below one step.
        """
        amount, unit = self.settings.amount, self.settings.unit
        if unit != "seconds":
            return max(1, round(amount * (1 if unit == "steps" else per_epoch)))
        self.step.train(*self.draw())
        start = time.perf_counter()
        for _ in range(TIMED):
            self.step.train(*self.draw())
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
            self.take(*self.draw(), rate(k, steps, self.rate))
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
