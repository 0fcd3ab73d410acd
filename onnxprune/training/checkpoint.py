"""The state of a training in a folder, so that what was stopped goes on to the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxprune import cache
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, to_proto
from onnxprune.training.step import Step


@dataclass(frozen=True)
class Checkpoint:
    """folder: of --cache; key: of all that the training depends on."""

    folder: Path
    key: str

    @staticmethod
    def of(
        folder: Path, original: Model, step: Step, seen: TrainingSet, unseen: TrainingSet, asked: object
    ) -> Checkpoint:
        """Of one training: the model that teaches, the graphs of a step, the weights that it begins with, the samples,
        and all that was asked."""
        teacher = to_proto(original).SerializeToString(deterministic=True)
        parts = [
            step.digest,
            *(hashlib.sha256(x).hexdigest() for x in (teacher, step.weights.tobytes(), step.free.tobytes())),
        ]
        data = [seen.samples.digest, seen.labels, unseen.samples.digest, unseen.labels]
        return Checkpoint(folder, cache.digest("training", parts, data, asked))

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"training-{self.key[:24]}.npz"

    def read(self) -> dict[str, Array] | None:
        """The state that was kept last; None where there is none. Raises `OptionError` where it cannot be read."""
        with cache.cache_errors(self.folder):
            return cache.read_arrays(self.path, self.key)

    def write(self, state: Mapping[str, Array]) -> None:
        """Keep a state. Raises `OptionError` where the folder cannot be written."""
        with cache.cache_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            cache.write_arrays(self.path, self.key, state)
