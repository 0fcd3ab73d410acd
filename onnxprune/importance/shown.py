"""Samples as gradients are asked of them: with labels, and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from onnxprune.calibration.calibration import Batches, Calibration
from onnxprune.calibration.options import MEMORY
from onnxprune.errors import OptionError
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.graph.arrays import Array
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.stream import samples_in


@dataclass(frozen=True)
class Shown:
    """Samples: how many; batches: indices of runs of at most so many, of one shape each; feeds: inputs of a run;
    labels_of: their labels, int64 `(n,)` or `(n, tokens)`, None for none."""

    count: int
    batches: Callable[[int], list[list[int]]]
    feeds: Callable[[Sequence[int]], Feeds]
    labels_of: Callable[[Sequence[int]], Array] | None = None


@dataclass(frozen=True)
class Ground:
    """What gradients go by. own: samples whose outputs are the model's own; labelled: those with labels; memory: bytes
    for activations; threads: of onnxruntime."""

    own: Shown | None = None
    labelled: Shown | None = None
    memory: float = MEMORY
    threads: int = 0
    seed: int = 0

    def by(self, labels: bool | None, asked: str) -> Shown:
        """The samples with labels (True), without (False), or with labels where there are some (None).

        Raises `OptionError` where there are none; asked: the option that asks, as it is typed.
        """
        if labels is not False and self.labelled is not None:
            return self.labelled
        if labels or self.own is None:
            raise OptionError(needs_labels(asked))
        return self.own


def needs_labels(asked: str) -> str:
    """The line for an option that has no labels to go by."""
    return (
        f"{asked} needs labels, as the loss by the model's own outputs has no gradient: give --train SRC with labels, "
        "or choose fisher, which does without"
    )


def ground(data: Calibration | None, train: TrainingSet | None) -> Ground:
    """Calibration samples and those to train on; None for none."""
    labelled = None if train is None else of_training(train)
    if data is None:
        return Ground(None, labelled)
    samples, most = data.samples, data.batch if data.samples.stackable else 1

    def batches(size: int) -> list[list[int]]:
        size = min(size, most)
        return [list(range(k, min(k + size, samples.count))) for k in range(0, samples.count, size)]

    return Ground(Shown(samples.count, batches, samples.feeds), labelled, data.memory, data.threads, data.seed)


def of_training(train: TrainingSet, narrow: Callable[[Feeds], Feeds] = lambda feeds: feeds) -> Shown | None:
    """Samples to train on, None where they have no labels; narrow: their inputs as a model takes them after a cut."""
    if train.labels is None:
        return None
    return Shown(train.count, train.batches, lambda indices: narrow(train.feeds(indices)), train.labels_of)


def by_training(train: TrainingSet, threads: int = 0, seed: int = 0) -> Ground:
    """Samples to train on, with their labels and without."""
    own = Shown(train.count, train.batches, train.feeds)
    return Ground(own, of_training(train), threads=threads, seed=seed)


def of_batches(data: Batches) -> Shown:
    """Samples in the batches in which a model takes them."""
    each, runs = samples_in(data.source), len(data.source)
    last = data.source[runs - 1] if runs and each > 1 else {}
    count = (runs - 1) * each + (len(next(iter(last.values()))) if last else 1)

    @lru_cache(1)
    def batch(k: int) -> Feeds:
        return data.source[k]

    def batches(size: int) -> list[list[int]]:
        ends = [(k, min(k + each, count)) for k in range(0, count, each)]
        return [list(range(k, min(k + size, b))) for a, b in ends for k in range(a, b, size)]

    def feeds(indices: Sequence[int]) -> Feeds:
        whole = batch(indices[0] // each)
        return whole if each == 1 else {n: x[[i % each for i in indices]] for n, x in whole.items()}

    return Shown(count, batches, feeds)


__all__ = ["Ground", "Shown", "by_training", "ground", "needs_labels", "of_batches", "of_training"]
