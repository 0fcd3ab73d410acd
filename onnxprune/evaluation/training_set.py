"""Samples to train on, with the classes that they are of where labels say so: inputs and labels of any batch, decoded
when it is asked for, so that the data may be larger than memory.

A batch holds samples of one shape. `kinds` are the samples of each shape: sequences of one length come together.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.calibration.calibration import ASIDE, fitting_batch
from onnxprune.calibration.labels import token_lengths
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.read import read
from onnxprune.calibration.samples import Samples, stackable
from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import class_offset, refuse_misfit
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import graph_inputs
from onnxprune.runtime.classes import IGNORED, classifier_output, joined
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.stream import Stream
from onnxprune.solvers.threads import cores

MOST_ASIDE = 512  # samples that are held out
FIRST = 64  # samples whose outputs say what the labels count
DECODERS = 4  # threads that decode, at most


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """samples: in the order in which they lie; classes: the output of class scores, "" for a model without; labels: of
    its classes, int64 `(count,)`, of tokens `(count, longest)`, None without; kinds: indices of the samples of each
    shape; most: samples that the model takes at once: all, or 1 where its graph has that baked in; tokens: of every
    sample with so many labels, int64 `(count,)`, None where all have as many."""

    samples: Samples
    classes: str
    labels: Array | None
    kinds: tuple[Array, ...]
    most: int
    tokens: Array | None = None
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(min(DECODERS, cores())), repr=False)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return self.samples.count

    def feeds(self, indices: Sequence[int]) -> Feeds:
        """Inputs of one run of samples of one kind, those that lie in files decoded by several threads."""
        if len(indices) < 2 or not self.samples.names:
            return self.samples.feeds(indices)
        return self.samples.feeds(indices, self.pool.map)

    def labels_of(self, indices: Sequence[int]) -> Array:
        """int64 labels of these samples, of one kind, `(n,)` or `(n, tokens)`; there must be some."""
        assert self.labels is not None
        of = self.labels[list(indices)]
        return of if self.tokens is None else of[:, : self.tokens[indices[0]]]

    def batches(self, size: int) -> list[list[int]]:
        """All samples once, in their order but kind by kind, as indices of at most so many of one kind."""
        size = min(size, self.most)
        return [kind[k : k + size].tolist() for kind in self.kinds for k in range(0, len(kind), size)]

    def take(self, indices: Sequence[int]) -> TrainingSet:
        """The samples at some indices, with their labels."""
        at = {int(i): k for k, i in enumerate(indices)}
        kinds = [np.array([at[i] for i in kind.tolist() if i in at], np.int64) for kind in self.kinds]
        labels, tokens = (None if x is None else x[list(indices)] for x in (self.labels, self.tokens))
        return replace(
            self, samples=self.samples.take(indices), labels=labels, tokens=tokens,
            kinds=tuple(kind for kind in kinds if len(kind)),
        )  # fmt: skip

    def split(self, share: int = ASIDE, most: int = MOST_ASIDE) -> tuple[TrainingSet, TrainingSet]:
        """All but one sample in `share`, at most `most`, evenly spread; and those. Raises `OptionError` for one sample.

        Every class, and every kind, is in both where they lie in no order, or one after the other.
        """
        if self.count < 2:
            raise OptionError(f"{self.samples.holds or 'training'}: two samples or more are needed, one is held out")
        held = min(most, max(1, self.count // share))
        chosen = set(np.unique(((np.arange(held) + 0.5) * self.count / held).astype(int)).tolist())
        return self.take([i for i in range(self.count) if i not in chosen]), self.take(sorted(chosen))


def training_set(
    model: Model,
    source: Any,
    labels: Any = None,
    *,
    preprocess: Preprocess | None = None,
    seed: int = 0,
    any_labels: bool = False,
    option: str = "--train",
    flag: str = "--train-labels",
) -> TrainingSet:
    """What a model can be trained on.

    source: anything that `calibration.read.read` takes; labels: a file or an array, where they do not lie in it;
    any_labels: they need not count the classes of an output; option, flag: what messages call source and labels.
    Raises `OptionError` where samples do not fit the model, or labels the samples or the model.
    """
    samples = read(source, model, preprocess=preprocess, labels=labels, seed=seed, option=option, flag=flag)
    kinds = [np.arange(samples.count)]
    if not samples.stackable and stackable(graph_inputs(model)):
        kinds = _kinds(samples)
        samples = replace(samples, stackable=True)
    largest = max(kinds, key=len)
    most = fitting_batch(samples.take(largest.tolist()), model, option=option)
    few = samples.take(largest[:FIRST].tolist())
    names = [o.name for o in model.proto.graph.output]
    outputs = joined(Stream(model, list(few.batches(most))).compute(names), names)
    found, tokens = samples.labels, None
    if found is not None and found.ndim > 1 and len(kinds) > 1:
        tokens = token_lengths(replace(samples, stackable=False), found.shape[1])
    first = np.zeros(0) if found is None else found[largest[:FIRST]]
    first = first if tokens is None else first[:, : tokens[largest[0]]]
    classes = classifier_output(model, outputs, few.count, first.shape[1] if first.ndim > 1 else 0)
    if classes:
        refuse_misfit(samples)
    if found is not None and not any_labels:
        if not classes:
            raise OptionError(
                f"{option if labels is None else flag}: the model has no output with a row of class scores that labels "
                "could be of; leave them out to train towards the original's outputs, or give --loss"
            )
        found = np.where(found == IGNORED, IGNORED, found + class_offset(found, first, outputs[classes], option))
    return TrainingSet(samples, classes, found, tuple(kinds), 1 if most == 1 else samples.count, tokens)


def unlabelled(samples: Samples, most: int = 0) -> TrainingSet:
    """Samples of one shape to train on by outputs alone; most: 1 where the model takes one at a time."""
    return TrainingSet(samples, "", None, (np.arange(samples.count),), most or samples.count)


def _kinds(samples: Samples) -> list[Array]:
    """Indices of the samples of each shape, which all of them are loaded for."""
    kinds: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for i in range(samples.count):
        kinds.setdefault(tuple(x.shape for x in samples.feeds([i]).values()), []).append(i)
    return [np.array(kind) for _, kind in sorted(kinds.items())]
