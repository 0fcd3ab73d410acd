"""What a training is judged by: the samples that are held out, and what the model's outputs for them are compared with.

Pictures that training changes are asked in several copies, changed alike, the first of them as it is: few samples, each
asked once, cannot tell a gain from none. The copies are drawn from the seed, once for all that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.calibration.augment import AUGMENTATIONS, augmented
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.graph.arrays import Array
from onnxprune.runtime.session import Feeds
from onnxprune.training.batches import COPIES

MOST, PICTURES = 8, 1024  # copies of a sample, and of all samples together
KEPT = 256e6  # bytes of inputs and targets that are kept; others are made anew each time


@dataclass(frozen=True, eq=False)
class Question:
    """inputs: of the model; targets: that its outputs are compared with; samples: how many; labels: of these, None
    without; plain: whether they are as they came."""

    inputs: Feeds
    targets: Feeds
    samples: int
    labels: Array | None
    plain: bool


Answer = Callable[[Feeds, Array | None], tuple[Feeds, Feeds]]


class Quiz:
    """Questions of all samples that are held out, the same each time that it is gone through.

    copies: of every sample; count: of all questions' samples.
    """

    def __init__(
        self, unseen: TrainingSet, size: int, answer: Answer, augment: Sequence[str] = (), seed: int = 0
    ) -> None:
        """size: samples of a question, at most; answer: inputs of the model and targets, of inputs as they came or were
        changed and labels; augment: rows of `AUGMENTATIONS`, of which those that mix are left out."""
        self.unseen, self.answer, self.seed = unseen, answer, seed
        self.names = [name for name in augment if not AUGMENTATIONS[name].mixes]
        self.copies = max(1, min(MOST, PICTURES // unseen.count)) if self.names else 1
        self.count = self.copies * unseen.count
        self.parts = unseen.batches(size)
        self.kept: dict[tuple[int, int], Question] = {}
        self.free = KEPT

    def __iter__(self) -> Iterator[Question]:
        for at in ((copy, k) for copy in range(self.copies) for k in range(len(self.parts))):
            yield self.kept.get(at) or self.make(*at)

    def make(self, copy: int, k: int) -> Question:
        """The question of a copy of a part of the samples, which is kept where there is room."""
        part = self.parts[k]
        feeds, labels = self.unseen.feeds(part), None if self.unseen.labels is None else self.unseen.labels_of(part)
        if copy:
            rng = np.random.default_rng([self.seed, COPIES, copy, k])
            feeds = {name: augmented(x, self.names, rng) for name, x in feeds.items()}
        made = Question(*self.answer(feeds, labels), len(part), labels, not copy)
        size = sum(x.nbytes for of in (made.inputs, made.targets) for x in of.values())
        if size <= self.free:
            self.free -= size
            self.kept[copy, k] = made
        return made
