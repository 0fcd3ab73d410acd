"""The samples that a model is calibrated on, and what work on them takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from onnxprune.calibration.data import FEW, HELD_OUT, Calibration, calibrate, default_samples
from onnxprune.calibration.images import Preprocess, looks_like_image
from onnxprune.calibration.layers import find_linear
from onnxprune.calibration.samples import MADE_UP, read
from onnxprune.calibration.stream import Stream
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import graph_inputs
from onnxprune.sparsity.solve import Data as SolveData
from onnxprune.structure.groups import Analysis, Keep

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
    jobs: int,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Calibration:
    """Samples and how they are run. Raises `OptionError` for a source that does not fit the model."""
    synthetic = isinstance(source, str) and source == SYNTHETIC
    read_from = read(
        source, model, preprocess=preprocess, samples=samples or (MADE_UP if synthetic else default_samples(macs)),
        augment=augment, seed=seed, shapes=shapes,
    )  # fmt: skip
    return calibrate(read_from, model, synthetic=synthetic, memory=memory, threads=threads, jobs=jobs, seed=seed)


def describe(data: Calibration) -> str:
    """The data in one line."""
    return f"calibrating on {data.samples.description}"


def scarce(data: Calibration) -> list[str]:
    """A warning where there are fewer samples than the statistics need."""
    n = data.samples.count
    return [f"{n} calibration samples are few: moments need {FEW} or more to say something"] if n < FEW else []


def estimate(analysis: Analysis, data: Calibration, groups: int, *, levels: bool) -> float:
    """Roughly how long the work on the data takes, in seconds, from the time of one batch."""
    source = data.runs(range(min(data.batch, data.samples.count)))
    stream = Stream(analysis.model, source, threads=data.threads)
    names = [o.name for o in analysis.model.proto.graph.output]
    list(stream.compute(names))
    start = time.perf_counter()
    list(stream.compute(names))
    each = (time.perf_counter() - start) / max(1, min(data.batch, data.samples.count))
    layers = len(find_linear(analysis.model))
    work = 6 * each * data.samples.count + 0.25 * layers
    if levels:
        work += 4 * each * data.samples.count + groups * (0.5 + 5 * each * HELD_OUT)
    return work


def solve_data(analysis: Analysis, keep: Keep, data: Calibration) -> SolveData:
    """The samples as the model takes them after the cut, in two parts that allocators tell apart."""
    learn, away = data.held_out()
    parts = [[analysis.narrow(feeds, keep) for feeds in data.runs(which)] for which in (None, learn, away)]
    return SolveData(
        parts[0], data.memory, data.threads, data.samples.digest, learn=parts[1], held_out=parts[2], unseen=len(away)
    )
