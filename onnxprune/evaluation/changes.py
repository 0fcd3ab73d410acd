"""Which samples a classifier answers in another way than the one that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxprune.graph.arrays import Array
from onnxprune.runtime.classes import IGNORED

SHOWN = 50  # answers that a report names
NONE = -(1 << 31)  # in place of a class


@dataclass(frozen=True, eq=False)
class Answers:
    """The class with the largest score, int32 `(samples, positions)`, one position unless tokens are classified, NONE
    behind shorter samples; labels of the same shape, None without."""

    classes: Array
    labels: Array | None

    @staticmethod
    def of(parts: Sequence[tuple[Array, Array, Array | None]], samples: int) -> Answers:
        """Of samples in parts: the indices of some, and flat classes and labels, those of a sample one after the other.
        Labels count where all have them."""
        shape = samples, max(classes.size // len(at) for at, classes, _ in parts)
        every, of = np.full(shape, NONE, np.int32), np.full(shape, IGNORED, np.int32)
        for at, classes, labels in parts:
            end = classes.size // len(at)
            every[at, :end] = classes.reshape(len(at), end)
            if labels is not None:
                of[at, :end] = labels.reshape(len(at), end)
        return Answers(every, of if all(labels is not None for _, _, labels in parts) else None)


@dataclass(frozen=True)
class Change:
    """An answer that is another. sample: counted from 0, as the samples came; position: of the token, None where a
    sample has one answer; label: None without."""

    sample: int
    position: int | None
    label: int | None
    before: int
    after: int


@dataclass(frozen=True)
class Changes:
    """answers: compared; count: those that are others; lost, gained: of these, right before, and right after, None
    without labels; first: the first `SHOWN` of them."""

    answers: int
    count: int
    lost: int | None
    gained: int | None
    first: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON."""
        return asdict(self) | {"first": [asdict(c) for c in self.first]}


def changes(before: Answers | None, after: Answers | None, indices: Array | None = None) -> Changes | None:
    """The answers of `after` that are others than those of `before`, of all samples or those at `indices`; labels that
    do not count are left out. None where the models are no classifiers."""
    if before is None or after is None or before.classes.shape != after.classes.shape:
        return None
    chosen = np.zeros(len(before.classes), bool)
    chosen[slice(None) if indices is None else indices] = True
    a, b, labels = before.classes, after.classes, before.labels
    counted = np.broadcast_to(chosen[:, None], a.shape)
    counted = counted & (a != NONE)
    counted = counted if labels is None else counted & (labels != IGNORED)
    where = np.argwhere(counted & (a != b))
    at = tuple(where.T)
    lost, gained = (None if labels is None else int((x[at] == labels[at]).sum()) for x in (a, b))
    first = tuple(
        Change(
            int(i), int(j) if a.shape[1] > 1 else None, None if labels is None else int(labels[i, j]), int(a[i, j]),
            int(b[i, j]),
        )
        for i, j in where[:SHOWN]
    )  # fmt: skip
    return Changes(int(counted.sum()), len(where), lost, gained, first)
