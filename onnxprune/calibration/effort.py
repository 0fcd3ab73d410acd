"""How long work on samples takes, before it is done, and how many samples are worth it.

Time is runs of the model, which are measured on one batch, and sums of products and factorisations, which are counted
and divided by the rate of a small matrix product.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.calibration.calibration import ACTIVATIONS, HELD_OUT, Calibration
from onnxprune.graph.shapes import graph_inputs
from onnxprune.layers.layer import linear_layers
from onnxprune.layers.sampling import MOST_EACH, ROWS_EACH, rows_needed, useful
from onnxprune.layers.values import Unsuitable, Values
from onnxprune.runtime.session import session
from onnxprune.structure.analysis import Analysis

EACH = (ROWS_EACH + MOST_EACH) / 2  # rows for every column, in the end
VARIED, FEWEST = 32, 16  # made-up samples at least, and where time is short
PASSES = 6.0  # runs of the model over the samples that scoring, recovery and comparison take, in runs of it whole
START = 2.0  # seconds for what is compiled, or read from a cache, and for painting pictures
QUESTION = 0.03  # seconds for what a layer costs beside its products: sessions, and values that go in and out
BATCH = 0.001  # the same for a batch of a layer
LEVELS = 8  # of a group, at which the outputs are looked at
NOMINAL_RATE = 8e10  # multiply-adds in a second, of two cores; the same for all machines, so that results are
NOMINAL_CACHE, NOMINAL_MEMORY = 1e10, 3e9  # bytes of activations in a second
CACHE = 16e6  # bytes above which a tensor goes through memory
PRODUCT = 512  # rows of the matrices by whose product the machine is timed


@dataclass(frozen=True)
class LayerWork:
    """What a layer's regression takes. groups, width, outputs: of its matrices; positions: of one sample."""

    groups: int
    width: int
    outputs: int
    positions: float

    @property
    def samples(self) -> int:
        """Samples of which it takes its rows."""
        return math.ceil(rows_needed(self.width, self.groups, EACH) / useful(self.positions))

    def products(self, samples: int) -> float:
        """Multiply-adds of statistics, fits and targets."""
        d, o = self.width, self.outputs
        rows = min(rows_needed(d, self.groups, EACH), samples * self.positions)
        return self.groups * (rows * d * (2 * d + 6 * o) + 3 * d**3 + 4 * d * d * o)


def layer_works(analysis: Analysis) -> list[LayerWork]:
    """The layers that are regressions, of known sizes."""
    shapes = analysis.coupling.shapes.shapes
    inputs = [shapes.get(i.name) for i in graph_inputs(analysis.model)]
    batch = next((s[0] for s in inputs if s and s[0]), 1)
    values, out = Values(analysis.model), []
    for layer in linear_layers(analysis.model):
        shape = shapes.get(layer.node.key if layer.trait.convolves else layer.source)
        try:
            weight = values(layer.weight)
        except Unsuitable:
            continue
        if shape is None or weight.ndim < 2 or None in shape:
            continue
        spatial = shape[2:] if layer.trait.convolves else shape[:-1]
        positions = math.prod(d or 1 for d in spatial) / (1 if layer.trait.convolves else batch)
        outer = weight.shape[layer.trait.outputs] if layer.trait.outputs < weight.ndim else 1
        outputs = max(1, outer // layer.group)
        out.append(LayerWork(layer.group, max(1, weight.size // max(1, outer)), outputs, max(positions, 1.0)))
    return out


def samples_needed(analysis: Analysis, most: int) -> int:
    """Samples that the layers take their rows of: few where every one has many positions, at most `most`."""
    works = layer_works(analysis)
    return min(most, max(VARIED, *(w.samples for w in works))) if works else most


def largest_tensor(analysis: Analysis) -> float:
    """Bytes of the largest tensor between the nodes in float32, of one run of the analysed sizes."""
    weights = analysis.model.weights
    shapes = (s for name, s in analysis.coupling.shapes.shapes.items() if name not in weights)
    return 4.0 * max((math.prod(d or 1 for d in s) for s in shapes), default=0)


@dataclass(frozen=True)
class Effort:
    """Seconds of one sample's run; seconds that do not depend on the samples; runs of each sample in all, and of each
    that is held out."""

    run: float
    fixed: float
    passes: float
    looks: float = 0.0

    def seconds(self, samples: int, held_out: int = 0) -> float:
        """What work on so many samples takes."""
        return self.fixed + self.run * (self.passes * samples + self.looks * held_out)

    def affordable(self, seconds: float) -> int:
        """Samples for which the time is enough."""
        return int((seconds - self.fixed) / (self.run * self.passes))

    def affordable_looks(self, seconds: float) -> int:
        """Samples that can be held out for that time."""
        return int(seconds / (self.run * self.looks)) if self.looks else HELD_OUT


def effort(
    analysis: Analysis, samples: int, batch: int, run: float, rate: float, groups: int = 0, *, levels: bool = False
) -> Effort:
    """What the work on so many samples takes, `batch` at a time. run: seconds of one sample; rate: multiply-adds in a
    second; groups: that are chosen from; levels: whether what the outputs suffer is measured at every level of each."""
    works = layer_works(analysis)
    fixed = START + sum(w.products(samples) for w in works) / rate
    fixed += sum(QUESTION + BATCH * min(samples, w.samples) / batch for w in works)
    return Effort(run, fixed, PASSES, groups * LEVELS / 2 if levels else 0.0)


def nominal_run(analysis: Analysis) -> float:
    """Seconds of one sample by what is counted alone, the same on every machine."""
    weights, constant = analysis.model.weights, analysis.coupling.shapes.constant
    sizes = [
        4.0 * math.prod(d or 1 for d in s)
        for name, s in analysis.coupling.shapes.shapes.items()
        if name not in weights and name not in constant
    ]
    macs = analysis.costs().macs(analysis.keep_ids({}))
    return macs / NOMINAL_RATE + sum(sizes) / NOMINAL_CACHE + sum(s for s in sizes if s > CACHE) / NOMINAL_MEMORY


def nominal(analysis: Analysis, samples: int) -> Effort:
    """What work on so many samples takes by what is counted alone."""
    batch = max(1, int(ACTIVATIONS / max(largest_tensor(analysis), 1)))
    return effort(analysis, samples, batch, nominal_run(analysis), NOMINAL_RATE)


def measured(analysis: Analysis, data: Calibration, groups: int, *, levels: bool) -> Effort:
    """The same as this machine is now. Raises ORT_ERRORS."""
    count = data.samples.count
    source = data.runs(range(min(data.batch, count)))
    with session(analysis.model, threads=data.threads) as s:
        run = _least(lambda: s.run(None, source[0]), 2) / max(1, min(data.batch, count))
    return effort(analysis, count, data.batch, run, _rate(), groups, levels=levels)


def made_up_samples(analysis: Analysis, seconds: float, most: int) -> tuple[int, str]:
    """How many made-up samples the layers need, at most `most`, and so many that the work takes about the seconds
    nominally; and a note where that makes them fewer."""
    count = samples_needed(analysis, most)
    takes = nominal(analysis, count)
    enough = min(count, max(FEWEST, takes.affordable(seconds)))
    if takes.seconds(count) <= seconds or enough == count:
        return count, ""
    return enough, f"{enough} made-up samples instead of {count}, to save time (--samples {count} takes them all)"


def _rate() -> float:
    """Multiply-adds in a second, of float32 matrices."""
    a = np.ones((PRODUCT, PRODUCT), np.float32)
    return PRODUCT**3 / max(_least(lambda: a @ a, 3), 1e-9)


def _least(work: Callable[[], object], times: int) -> float:
    """Seconds of the quickest of some runs, after one that does not count."""
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
