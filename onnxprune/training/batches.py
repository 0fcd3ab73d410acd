"""What a step is trained on: the batch of step k is a function of the seed and k alone, so that training which is put
back to a step goes on as it did. It is decoded and augmented in a thread while the step before is computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np

from onnxprune.calibration.augment import AUGMENTATIONS, HALF, UNIFORM, augmented, channels_first, mixed
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.runtime.session import Feeds
from onnxprune.training.losses import LABELS, OTHERS, SHARE

ORDER, CHANGES, COPIES = 0, 1, 2  # streams of random numbers
Batch = tuple[Feeds, Feeds]  # inputs of the original, and what labels say


class Batches:
    """Batches of a training set, each sample once in an epoch but for those that fill no batch, in another order each
    time round."""

    def __init__(self, seen: TrainingSet, size: int, seed: int, augment: Sequence[str] = ()) -> None:
        self.seen, self.size, self.seed = seen, min(size, seen.most), seed
        self.augment = augment
        self.epoch, self.order = -1, list[list[int]]()
        self.next: tuple[int, Future[Batch]] | None = None

    def reorder(self, seed: int) -> None:
        """Go by another seed from the next batch on."""
        if seed != self.seed:
            self.seed, self.epoch, self.next = seed, -1, None

    @cached_property
    def each(self) -> int:
        """Batches of an epoch."""
        return sum(len(kind) // self._of(len(kind)) for kind in self.seen.kinds)

    def _of(self, count: int) -> int:
        return min(self.size, count)

    def indices(self, k: int) -> list[int]:
        """The samples of step k, counted from 0."""
        epoch, at = divmod(k, self.each)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.seed, ORDER, epoch])
            order = []
            for kind in self.seen.kinds:
                samples, size = rng.permutation(kind), self._of(len(kind))
                order += [samples[i : i + size].tolist() for i in range(0, len(kind) - size + 1, size)]
            if len(self.seen.kinds) > 1:
                order = [order[i] for i in rng.permutation(len(order))]
            self.epoch, self.order = epoch, order
        return self.order[at]

    def __call__(self, k: int) -> Batch:
        """Inputs and labels of step k."""
        ready = self.next[1] if self.next is not None and self.next[0] == k else None
        batch = self.make(self.indices(k), k) if ready is None else ready.result()
        self.next = k + 1, self.pool.submit(self.make, self.indices(k + 1), k + 1)
        return batch

    def make(self, indices: list[int], k: int) -> Batch:
        """Inputs and labels of some samples, as step k changes them."""
        feeds, labels = self.seen.feeds(indices), Feeds()
        if self.seen.labels is not None:
            labels[LABELS] = self.seen.labels_of(indices)
        if len(feeds) != 1 or not self.augment:
            return feeds, labels
        (name, x), rng = *feeds.items(), np.random.default_rng([self.seed, CHANGES, k])
        if channels_first(x) is None:
            return feeds, labels
        x = augmented(x, self.augment, rng)
        if any(AUGMENTATIONS[a].mixes for a in self.augment):
            x, other, share = mixed(x, rng) if LABELS in labels else mixed(x, rng, UNIFORM, HALF)
            if LABELS in labels:
                labels |= {OTHERS: labels[LABELS][other], SHARE: share}
        return {name: x}, labels

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The thread that is ahead."""
        return ThreadPoolExecutor(1)
