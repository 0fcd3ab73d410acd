"""What calibration data add to a pruning: the recipe that goes with them, the choice of levels, recovery, fidelity."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.allocation.budget import Measure, choose
from onnxprune.allocation.levels import Levels, cache_key, cached, error_levels, level_database
from onnxprune.allocation.select import Keeps, select
from onnxprune.calibration.damage import class_rows, damage, joined
from onnxprune.calibration.data import FEW, HELD_OUT, Calibration, calibrate, default_samples
from onnxprune.calibration.images import Preprocess, looks_like_image
from onnxprune.calibration.layers import find_linear
from onnxprune.calibration.samples import MADE_UP, read
from onnxprune.calibration.stream import Stream
from onnxprune.graph.cost import CostModel
from onnxprune.graph.io import Model, to_proto
from onnxprune.graph.shapes import graph_inputs
from onnxprune.importance import CRITERIA, Scores
from onnxprune.importance import score as weight_scores
from onnxprune.importance.data import MEASURES, find_readings, score
from onnxprune.importance.depth import closeness, gains
from onnxprune.importance.gates import gate_losses
from onnxprune.plan import RECOVERIES
from onnxprune.progress import Progress, counting
from onnxprune.recovery import bias_shifts
from onnxprune.recovery.least_squares import LayerFit, least_squares
from onnxprune.recovery.normalisation import batch_statistics
from onnxprune.structure.groups import Analysis, ChannelGroup, Keep
from onnxprune.structure.surgery import prune_model

WITH_DATA = ("least-squares", "mean-std", "batchnorm")
IMPORTANCES: dict[str, str] = {
    **{name: c.summary for name, c in CRITERIA.items()},
    **{name: (f.__doc__ or "").strip() for name, f in MEASURES.items()},
    "head_loss": "change of the outputs when a gate on the unit is closed (Michel et al. 2019), for heads above all",
}
HEAD_LOSS = "head_loss"
MEASURED = (*MEASURES, HEAD_LOSS)  # importances that need data
ALLOCATIONS = {
    "uniform": "the same fraction of every group",
    "global": "one threshold over all units",
    "kl": "what the outputs suffer least from, measured on data (needs a target)",
    "error": "what the layers that read the units suffer least from; quick, and better than kl on made-up data (as kl)",
}
SPREADING = ("kl", "error")  # ways to spread a target that need data
SYNTHETIC = "synthetic"
UNSEEN = 100  # samples beyond those used that outputs are compared on


@dataclass(frozen=True)
class Recipe:
    """How units are scored, how much goes where, how the loss is made up for.

    ridge: of the fits; prior: of the scores, larger for data that say little.
    """

    importance: str
    allocate: str
    recover: str
    ridge: float = 0.0
    prior: float = 0.0


def recipe(
    importance: str | None, allocate: str | None, recover: str | None, *, data: str | None, targeted: bool
) -> Recipe:
    """What the user did not say; data: None, "real" or "synthetic"; targeted: a target for the whole model is set."""
    if data is None:
        return Recipe(importance or "path", allocate or "uniform", recover or "bias")
    spread, ridge, prior = ("kl", 0.03, 0.03) if data == "real" else ("error", 0.1, 0.3)
    chosen = allocate or (spread if targeted else "uniform")
    return Recipe(importance or "obs", chosen, recover or "least-squares", ridge, prior)


def wants_synthetic(model: Model, importance: str | None, allocate: str | None, recover: str | None) -> bool:
    """True where made-up images are the best that can be had: an image goes in, and nothing forbids the work."""
    if recover in ("none", "bias") and importance not in MEASURED and allocate not in SPREADING:
        return False
    inputs = graph_inputs(model)
    return len(inputs) == 1 and looks_like_image(inputs[0])


def needs_data(importance: str | None, allocate: str | None, recover: str | None) -> str:
    """The option that asks for calibration data, "" for none."""
    if importance in MEASURED:
        return f"--importance {importance}"
    return f"--allocate {allocate}" if allocate in SPREADING else f"--recover {recover}" if recover in WITH_DATA else ""


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


def total_macs(costs: CostModel) -> float:
    """MACs of one run of the whole model."""
    size = 1 + max((int(ids.max()) for p in costs.macs_of for ids in p.ids if ids.size), default=0)
    return costs.macs(np.ones(size, bool))


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


def scores_of_weights(
    analysis: Analysis, groups: Sequence[ChannelGroup], importance: str, *, keep: Keep | None = None, seed: int = 0
) -> Scores:
    """Scores without data; of residual blocks the gains of their weights."""
    units = [g for g in groups if g.kind != "layers"]
    scores = weight_scores(analysis, units, importance=importance, keep=keep, seed=seed) if units else {}
    return scores | gains(analysis, [g for g in groups if g.kind == "layers"])


def data_scores(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    data: Calibration,
    how: Recipe,
    progress: Progress,
    *,
    keep: Keep | None = None,
) -> Scores:
    """Scores of the units by a criterion that needs data, or by one that needs weights."""
    count = counting(progress, "score")
    blocks = [g for g in groups if g.kind == "layers"]
    if how.importance == HEAD_LOSS:
        return losses_of_gates(analysis, groups, data, progress=progress)
    scores = closeness(analysis, blocks, data.runs(), memory=data.memory, threads=data.threads) if blocks else {}
    units = [g for g in groups if g.kind != "layers"]
    if how.importance in CRITERIA:
        return scores | weight_scores(analysis, units, importance=how.importance, keep=keep, seed=data.seed)
    return scores | score(
        analysis, units, data.runs(), importance=how.importance, ridge=how.prior, jobs=data.jobs, memory=data.memory,
        threads=data.threads, seed=data.seed, progress=count,
    )  # fmt: skip


def losses_of_gates(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    data: Calibration,
    gone: Mapping[str, Keep] | None = None,
    *,
    progress: Progress,
) -> Scores:
    """Change of the outputs by every unit, on a part of the data; of widths of streams, which have no gate, obs."""
    streams = [g for g in groups if g.kind == "hidden"]
    gated = [g for g in groups if g.kind != "hidden"]
    _, away = data.held_out()
    source = data.runs(away)
    names = [o.name for o in analysis.model.proto.graph.output]
    whole = Stream(analysis.model, source, threads=data.threads)
    measure = damage(analysis.model, whole.compute(names), names, len(away))
    count = counting(progress, "score")
    scores = gate_losses(
        analysis, gated, source, measure, gone=gone, memory=data.memory, threads=data.threads, progress=count
    )
    if streams:
        scores |= score(analysis, streams, data.runs(), importance="obs", memory=data.memory, threads=data.threads)
    return scores


def levels_of(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    *,
    how: Recipe,
    round_to: int,
    max_ratio: float,
    cache: Path | None,
    progress: Progress,
) -> tuple[Levels, bool]:
    """What each group costs at each level, from the cache where it is kept there; and whether it was."""
    if how.allocate == "error":
        scores = data_scores(analysis, groups, calibration, how, progress)
        return error_levels(groups, scores, round_to=round_to, max_ratio=max_ratio), False
    learn, away = calibration.held_out()
    options = {**asdict(how), "round_to": round_to, "max_ratio": max_ratio, "seed": calibration.seed}
    key = ""
    if cache is not None:
        digest = hashlib.sha256(to_proto(analysis.model).SerializeToString(deterministic=True)).hexdigest()
        key = cache_key(digest, calibration.samples.digest, options, [g.name for g in groups])

    def make() -> Levels:
        given = (
            losses_of_gates(analysis, groups, calibration, progress=progress) if how.importance == HEAD_LOSS else None
        )
        return level_database(
            analysis, groups, calibration.runs(learn), calibration.runs(away), len(away),
            importance=how.importance, given=given, ridge=how.prior, jobs=calibration.jobs, round_to=round_to,
            max_ratio=max_ratio,
            memory=calibration.memory, threads=calibration.threads, seed=calibration.seed,
            progress=counting(progress, "levels"),
        )  # fmt: skip

    return cached(cache, key, [g.name for g in groups], make)


def coarsest(analysis: Analysis, groups: Sequence[ChannelGroup]) -> set[str]:
    """Groups that are read at the smallest resolution alone, or behind it.

    Made-up images say least about these: what tells classes apart never occurs in them.
    """
    shapes = analysis.coupling.shapes.shapes
    area: dict[str, list[float]] = {}
    for name, readings in find_readings(analysis, groups).items():
        found = [shapes.get(r.layer.source, ()) for r in readings]
        area[name] = [math.prod(d or 1 for d in s[2:]) if len(s) > 2 else 1 for s in found]
    areas = {a for mine in area.values() for a in mine if a > 1}
    if len(areas) < 2:
        return set()
    return {name for name, mine in area.items() if mine and min(mine) <= min(areas)}


def keeps_for(
    analysis: Analysis,
    costs: CostModel,
    groups: Sequence[ChannelGroup],
    levels: Levels,
    limits: Mapping[str, float],
    fixed: Keeps,
) -> Keeps | None:
    """The plan with the least damage under the limits (macs, params, bytes); None where none holds them.

    fixed: what stays of the other groups.
    """
    products = {"macs": costs.macs_of, "params": costs.parameters_of, "bytes": costs.bytes_of}
    measures = {k: Measure(products[k], analysis, groups, analysis.keep_ids(fixed)) for k in limits}
    exact = {"macs": costs.macs, "params": costs.parameters, "bytes": costs.bytes}
    tight = dict(limits)
    for _ in range(8):  # counts of shared or repeated units are approximate
        kept = choose(groups, levels, measures, tight)
        if kept is None:
            return None
        keeps = {g.name: select(g, levels.scores[g.name], kept[g.name]) for g in groups}
        ids = analysis.keep_ids({**fixed, **keeps})
        over = {k: exact[k](ids) / limit for k, limit in limits.items()}
        if all(o <= 1 + 1e-9 for o in over.values()):
            return keeps
        tight = {k: tight[k] / max(over[k], 1.0) * 0.999 for k in limits}
    return None


def recovered(
    analysis: Analysis,
    keep: Keep,
    plain: Model,
    sliced: Mapping[str, Any],
    method: str,
    calibration: Calibration | None,
    *,
    ridge: float,
    progress: Progress,
) -> tuple[Model, tuple[LayerFit, ...], list[str]]:
    """The pruned model after recovery; what became of each layer; notes."""
    if method == "bias":
        shifts = bias_shifts(analysis, keep)
        if not shifts:
            return plain, (), []
        note = f"bias of {len(shifts)} layers compensated for the mean of what was removed"
        return prune_model(analysis, keep, shifts, sliced=sliced), (), [note]
    if method == "none" or calibration is None:
        return plain, (), []
    source = calibration.runs()
    count = counting(progress, "recover")
    if method == "batchnorm":
        model, n = batch_statistics(
            plain,
            [analysis.narrow(feeds, keep) for feeds in source],
            memory=calibration.memory,
            threads=calibration.threads,
            progress=count,
        )
        return model, (), [f"statistics of {n} BatchNormalization nodes estimated anew"]
    model, fits = least_squares(
        analysis, keep, plain, source, method=method, ridge=ridge, memory=calibration.memory,
        threads=calibration.threads, seed=calibration.seed, progress=count,
    )  # fmt: skip
    notes = [f"{f.node} ({f.op}) was not refitted: {f.reason}" for f in fits if f.reason]
    return model, tuple(fits), notes


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
        """Whether much was lost."""
        return self.kl > 1 - COSTLY if self.agreement is None else self.agreement < COSTLY

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def fidelity(analysis: Analysis, keep: Keep, pruned: Model, calibration: Calibration) -> Fidelity:
    """Compare outputs, on samples that were left over where there are some, else on those that were used."""
    original = analysis.model
    spare = calibration.samples.spare(UNSEEN)
    seen = spare is None or spare.count < FEW
    samples = calibration.samples if spare is None or seen else spare
    indices = range(samples.count)
    source = list(samples.batches(calibration.batch))
    names = [o.name for o in original.proto.graph.output]
    whole = Stream(original, source, threads=calibration.threads).compute(names)
    narrow = (analysis.narrow(outputs, keep) for outputs in whole)
    measure = damage(original, narrow, names, len(indices))
    small = [analysis.narrow(feeds, keep) for feeds in source]
    found = joined(Stream(pruned, small, threads=calibration.threads).compute(names), names)
    agreement = None
    if measure.classes:
        a, b = (class_rows(o[measure.classes]).argmax(1) for o in (measure.reference, found))
        agreement = float((a == b).mean())
    return Fidelity(len(indices), agreement, measure(found), seen, calibration.synthetic)


__all__ = ["IMPORTANCES", "RECOVERIES", "Fidelity", "Recipe", "recipe"]
