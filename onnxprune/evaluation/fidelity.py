"""How close the outputs of a model are to the original's, on the samples at hand."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnxprune.calibration.calibration import FEW, Calibration
from onnxprune.calibration.samples import spread
from onnxprune.evaluation.damage import damage
from onnxprune.graph.io import Model
from onnxprune.runtime.classes import class_rows, joined
from onnxprune.runtime.stream import Stream, mapped
from onnxprune.structure.analysis import Analysis, Keep

COMPARED, FEWEST = 48e6, 4  # bytes of outputs that are compared at once at most, and samples at least
UNSEEN = 100  # samples beyond those used that outputs are compared on
COSTLY = 0.9  # agreement below which a cut has cost much; above 1 - COSTLY the error of other models


@dataclass(frozen=True)
class Fidelity:
    """How close the outputs are to the original's, on `samples` samples.

    agreement: share of samples with the same largest class, None where the model is no classifier; kl: mean divergence
    of the class probabilities (nats), or, of other models, squared error over variance; seen: the fit knew the samples.
    """

    samples: int
    agreement: float | None
    kl: float
    seen: bool
    synthetic: bool

    @property
    def costly(self) -> bool:
        """Whether much was lost: agreement below COSTLY, or of other models an error above 1 - COSTLY."""
        return self.kl > 1 - COSTLY if self.agreement is None else self.agreement < COSTLY

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON."""
        return asdict(self)


def fidelity(analysis: Analysis, keep: Keep, pruned: Model, calibration: Calibration) -> Fidelity:
    """Compare outputs, on samples that were left over where there are some, else on those that were used."""
    original = analysis.model
    spare = calibration.samples.spare(UNSEEN)
    seen = spare is None or spare.count < FEW
    samples = calibration.samples if spare is None or seen else spare
    most = max(FEWEST, int(COMPARED / max(_bytes_each(analysis), 1)))
    samples = samples.take(spread(samples.count, most)) if samples.count > most else samples
    source = replace(calibration, samples=samples).runs()
    names = [o.name for o in original.proto.graph.output]
    whole = Stream(original, source, threads=calibration.threads).compute(names)
    narrow = (analysis.narrow(outputs, keep) for outputs in whole)
    measure = damage(original, narrow, names, samples.count)
    small = mapped(source, lambda feeds: analysis.narrow(feeds, keep))
    outputs = joined(Stream(pruned, small, threads=calibration.threads).compute(names), names)
    agreement = None
    if measure.classes:
        a, b = (class_rows(o[measure.classes]).argmax(1) for o in (measure.reference, outputs))
        agreement = float((a == b).mean())
    return Fidelity(samples.count, agreement, measure(outputs), seen, calibration.synthetic)


def _bytes_each(analysis: Analysis) -> float:
    """Bytes of the outputs of one sample in float32, as far as their shapes are known."""
    shapes = (analysis.coupling.shapes.shapes.get(o.name) for o in analysis.model.proto.graph.output)
    return 4.0 * sum(math.prod(d or 1 for d in shape[1:]) for shape in shapes if shape)
