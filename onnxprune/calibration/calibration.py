"""The samples that a model is calibrated on, and what work on them takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.calibration.options import MEMORY
from onnxprune.calibration.presets import Preprocess, looks_like_image
from onnxprune.calibration.read import read
from onnxprune.calibration.samples import Samples
from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model
from onnxprune.graph.messages import one_line
from onnxprune.graph.ort import ORT_ERRORS
from onnxprune.graph.shapes import graph_inputs
from onnxprune.runtime.jobs import Where
from onnxprune.runtime.session import Feeds, session
from onnxprune.runtime.stream import Runs, mapped
from onnxprune.solvers.threads import cores
from onnxprune.structure.analysis import Analysis, Keep

SYNTHETIC = "synthetic"


def takes_images(model: Model) -> bool:
    """True where an image goes in, so that samples can be made up."""
    inputs = graph_inputs(model)
    return len(inputs) == 1 and looks_like_image(inputs[0])


def calibration_of(
    source: Any,
    model: Model,
    macs: float,
    *,
    samples: int | None,
    preprocess: Preprocess | None,
    augment: bool,
    memory: float,
    threads: int,
    jobs: Where | None,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    largest: float = 0.0,
) -> Calibration:
    """Samples and how they are run. samples: how many, None for the default by the model's MACs; largest: bytes of the
    largest tensor of a run. Raises `OptionError` for a source that does not fit the model."""
    synthetic = isinstance(source, str) and source == SYNTHETIC
    read_from = read(
        source, model, preprocess=preprocess, samples=samples or default_samples(macs), augment=augment, seed=seed,
        shapes=shapes,
    )  # fmt: skip
    at = Where(cores()) if jobs is None else jobs
    many = cores() if at.cluster else at.processes
    data = calibrate(read_from, model, synthetic=synthetic, memory=memory, threads=threads, jobs=many, seed=seed)
    return replace(data, batch=max(1, min(data.batch, int(ACTIVATIONS / max(largest, 1)))), at=at)


def describe(data: Calibration) -> str:
    """The data in one line, for the report."""
    return f"calibrating on {data.samples.description}"


def scarce(data: Calibration) -> list[str]:
    """A warning where there are fewer samples than the statistics need."""
    n = data.samples.count
    return [f"{n} calibration samples are few: moments need {FEW} or more to say something"] if n < FEW else []


def solve_data(analysis: Analysis, keep: Keep, data: Calibration) -> Batches:
    """The samples as the model takes them after the cut, in two parts that allocators tell apart."""
    learn, held_out = data.split()
    parts = [mapped(data.runs(which), lambda feeds: analysis.narrow(feeds, keep)) for which in (None, learn, held_out)]
    return Batches(
        parts[0],
        data.memory,
        data.threads,
        data.samples.digest,
        learn=parts[1],
        held_out=parts[2],
        unseen=len(held_out),
        synthetic=data.synthetic,
    )


@dataclass(frozen=True)
class Batches:
    """source: inputs batch by batch; memory: bytes for activations; digest: of the samples; learn, held_out: the same
    inputs in two parts, batch by batch; unseen: samples that are held out; synthetic: they were made up."""

    source: Sequence[Feeds]
    memory: float = MEMORY
    threads: int = 0
    digest: str = ""
    learn: Sequence[Feeds] = ()
    held_out: Sequence[Feeds] = ()
    unseen: int = 0
    synthetic: bool = False


BATCH_BYTES = 4 << 20  # of the inputs of one batch
ACTIVATIONS = 16e6  # of its largest tensor, if that is more than one sample
BATCH = 256
EMBEDDED = 1024  # bytes that a token takes inside of a model, at least
HELD_OUT = 80  # samples that damage is measured on, at most a third of all
ASIDE = 8
FEW = 64  # samples below which moments say little


@dataclass(frozen=True, eq=False)
class Calibration:
    """samples: what is used; batch: how many are run at once; synthetic: not real data; memory: bytes for activations;
    threads: of onnxruntime; jobs: solves in parallel, in threads; held_out: samples that damage is measured on, at
    most; aside: samples that no stage uses but the one that asked for them; at: where parts of long work are done."""

    samples: Samples
    batch: int
    synthetic: bool = False
    memory: float = MEMORY
    threads: int = 0
    jobs: int = 1
    seed: int = 0
    held_out: int = HELD_OUT
    aside: Samples | None = None
    at: Where = Where()  # noqa: RUF009  (frozen)

    def alone(self) -> Calibration:
        """The same for work that is done here, whose parts are not done elsewhere."""
        return replace(self, at=Where())

    def set_aside(self) -> Calibration:
        """The same with one sample in ASIDE, evenly spread, set aside. Raises `OptionError` for a single sample."""
        if self.samples.count < 2:
            raise OptionError("--tune needs two samples or more, one of which is held out")
        held = set(range(min(ASIDE, self.samples.count) - 1, self.samples.count, ASIDE))
        rest = [i for i in range(self.samples.count) if i not in held]
        return replace(self, samples=self.samples.take(rest), aside=self.samples.take(sorted(held)))

    def runs(self, indices: Sequence[int] | None = None) -> Runs:
        """Inputs batch by batch, of all samples or of some; each is loaded when it is asked for."""
        chosen = self.samples if indices is None else self.samples.take(indices)
        each = self.batch if chosen.stackable else 1
        return Runs(
            -(-chosen.count // each), lambda i: chosen.feeds(range(i * each, min((i + 1) * each, chosen.count))), each
        )

    def split(self) -> tuple[list[int], list[int]]:
        """Indices that moments may use, and evenly spread ones that they may not; of one sample it is both."""
        n = self.samples.count
        if n < 2:
            return list(range(n)), list(range(n))
        held_out = np.unique(np.linspace(0, n - 1, min(self.held_out, max(1, n // 3))).round().astype(int))
        return [i for i in range(n) if i not in set(held_out.tolist())], held_out.tolist()


def calibrate(
    samples: Samples,
    model: Model,
    *,
    synthetic: bool = False,
    memory: float = MEMORY,
    threads: int = 0,
    jobs: int = 1,
    seed: int = 0,
    option: str = "--calibration",
) -> Calibration:
    """Choose a batch with which the model gives for every sample what it gives for it alone.

    Raises `OptionError` where onnxruntime cannot run the model on the data.
    """
    return Calibration(samples, fitting_batch(samples, model, option=option), synthetic, memory, threads, jobs, seed)


def fitting_batch(samples: Samples, model: Model, *, option: str = "--calibration") -> int:
    """How many samples the model can run at once; 1 where its graph has a batch of one baked in."""
    if not samples.count:
        raise OptionError(f"{option}: there is no sample in it")
    alone = samples.count < 2 or not samples.stackable
    feeds = [samples.feeds(indices) for indices in ([[0]] if alone else [[0], [1], [0, 1]])]
    both: list[Array] = []
    try:
        with session(model) as s:
            one = s.run(None, feeds[0])
            if alone:
                return 1
            other = s.run(None, feeds[1])
            with suppress(*ORT_ERRORS):  # a batch of one may be baked into the graph
                both = s.run(None, feeds[2])
    except ORT_ERRORS as e:
        why = one_line(e, 200)
        raise OptionError(f"{option}: onnxruntime cannot run the model on the first samples: {why}") from e
    if not both:
        return 1
    bytes_each = sum(
        v.size * EMBEDDED if v.dtype.kind in "iu" and v.itemsize > 1 else v.nbytes for v in feeds[0].values()
    )
    batch = int(min(BATCH, max(2, BATCH_BYTES // max(bytes_each, 1)), samples.count))
    alike = all(
        b.shape[:1] == (2,) and a.shape == b[:1].shape and _close(b[:1], a) and _close(b[1:], c)
        for a, b, c in zip(one, both, other, strict=True)
    )
    return batch if alike else 1


def _close(a: Array, b: Array) -> bool:
    if a.dtype.kind != "f":
        return bool((a == b).mean() > 0.9) if a.size else True
    a, b = (v.astype(np.float64) for v in (a, b))  # differences of float16 overflow
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=1e-2, atol=1e-2 * scale + 1e-6, equal_nan=True))


def default_samples(macs: float) -> int:
    """How many samples are used where the user does not say: more of models that run quickly."""
    return int(np.clip(1.3e11 / max(macs, 1.0), 256, 1024))
