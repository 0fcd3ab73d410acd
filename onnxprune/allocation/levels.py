"""The level database: what each group costs at each level, when it alone is cut and its readers make up for it.

Order within a group: group OBS on the original's activations. The damage of a level is measured at the outputs, on
samples that no moment has seen (in-sample figures say next to nothing). With masks: readers get weights that are zero
for what is gone, so that the original graph runs with other numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune import cache
from onnxprune.allocation.select import without_loss
from onnxprune.calibration.options import MEMORY
from onnxprune.evaluation.damage import damage
from onnxprune.graph.arrays import Array, Float, Ids
from onnxprune.graph.edit import Edit
from onnxprune.graph.links import read_by
from onnxprune.graph.traits import TRAITS
from onnxprune.importance.criterion import DEAD, Scores
from onnxprune.importance.data import (
    DATA_CRITERIA,
    RIDGE,
    Reading,
    find_readings,
    gather_moments,
    group_batches,
    measured,
)
from onnxprune.importance.gates import Gated
from onnxprune.importance.score import ordered
from onnxprune.importance.units import rounded, select
from onnxprune.importance.weights import score
from onnxprune.layers.layer import linear_layers
from onnxprune.layers.places import Parameters, parameters
from onnxprune.layers.rows import matrix
from onnxprune.layers.tail import find_tail
from onnxprune.layers.values import Unsuitable, Values
from onnxprune.progress import Steps
from onnxprune.runtime.classes import joined
from onnxprune.runtime.session import Feeds
from onnxprune.runtime.stream import Stream
from onnxprune.solvers.least_squares import damping
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep

REMOVED = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # levels, as fractions of a group
HOPELESS = 3.0  # damage of one group alone beyond which deeper levels are not measured
SAMPLES = 80  # that the damage is measured on


@dataclass(frozen=True, eq=False)
class Levels:
    """Per group: units kept `(levels,)`, from all to few, and damage `(levels,)`, which starts at 0 and never falls."""

    kept: dict[str, list[int]]
    damage: dict[str, list[float]]
    scores: Scores

    def without(self, names: Collection[str]) -> Levels:
        """The same, but that these groups stay whole."""
        kept = {n: k[:1] if n in names else k for n, k in self.kept.items()}
        return Levels(kept, {n: d[: len(kept[n])] for n, d in self.damage.items()}, self.scores)

    def to_json(self) -> str:
        """What the cache keeps of the levels, as JSON text; `from_json` reads it."""
        scores = {k: v.tolist() for k, v in self.scores.items()}
        return json.dumps({"kept": self.kept, "damage": self.damage, "scores": scores})

    @staticmethod
    def from_json(text: str) -> Levels:
        """The levels that `to_json` wrote."""
        data = json.loads(text)
        return Levels(data["kept"], data["damage"], {k: np.array(v) for k, v in data["scores"].items()})


def level_database(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    source: Sequence[Feeds],
    held_out: tuple[Sequence[Feeds], int],
    *,
    importance: str = "obs",
    given: Scores | None = None,
    absorbed: bool = False,
    ridge: float = RIDGE,
    jobs: int = 1,
    round_to: int = 1,
    max_ratio: float = 0.8,
    memory: float = MEMORY,
    threads: int = 0,
    seed: int = 0,
    progress: Steps = lambda done, total: None,
) -> Levels:
    """What the outputs suffer at each level of each group, its readers refitted as far as they lose inputs.

    source: for the moments; held_out: others, on which the damage is measured, and how many; importance: of
    `WEIGHT_CRITERIA` or `DATA_CRITERIA`, by which units go; given: scores in their place; absorbed: see
    `score.ordered`; ridge: in mean variances; jobs: groups that are scored at a time; max_ratio: the most that is
    removed of a group; memory: bytes.
    """
    fresh, samples = held_out
    readings = find_readings(analysis, groups)
    by_name = {g.name: g for g in groups}
    kept: dict[str, list[int]] = {}
    loss: dict[str, list[float]] = {}
    scores: Scores = {}
    layers = {layer.key for layer in linear_layers(analysis.model)}
    passed = layers | analysis.coupling.statistics
    gated = Gated(analysis, groups, only=lambda key: key not in passed)
    edit = gated.edit
    places = find_places(edit, [r for those in readings.values() for r in those], analysis.coupling.shapes.shapes)
    outputs = [o.name for o in analysis.model.proto.graph.output]
    measure = damage(analysis.model, Stream(analysis.model, fresh, threads=threads).compute(outputs), outputs, samples)
    blocks: Scores = {g.name: np.zeros(1) for g in groups if g.kind == "layers"}
    by_data = DATA_CRITERIA.get(importance) if given is None else None
    if given is not None:
        scores = dict(given)
    elif by_data is None:
        scores = score(analysis, [g for g in groups if g.name not in blocks], importance=importance, seed=seed) | blocks
        scores = ordered(analysis, scores, importance, absorbed=absorbed)
    reading_nodes, recurrences = consumers(analysis, groups)
    total, done = 2 * len(groups), 0
    for names in group_batches(readings, memory):
        gathered = [r for name in names for r in readings[name]]
        gather_moments(
            analysis, gathered, source, measures=() if by_data is None else by_data.measures, threads=threads,
            seed=seed, progress=_part(progress, done, len(names), total),
        )  # fmt: skip
        done += len(names)
        if by_data is not None:
            units = [by_name[n] for n in names if n not in blocks]
            found = measured(analysis, units, readings, importance, ridge=ridge, jobs=jobs)
            scores |= ordered(analysis, found | blocks, importance, absorbed=absorbed, seed=seed)
        stream = Stream(edit.model, fresh, limit=memory, threads=threads)
        first = {
            n: min(
                [stream.position(r.layer.key) for r in readings[n]] + [gated.first(n, stream)] * bool(gated.names[n])
            )
            if readings[n] or gated.names[n]
            else 0
            for n in names
        }
        for name in sorted(names, key=lambda n: first[n]):
            group = by_name[name]
            read = reading_nodes[name] & layers
            whole = not all(key in places or key in recurrences for key in read) or not (read or gated.names[name])
            kept[name] = [group.size] if whole else kept_counts(group, scores[name], round_to, max_ratio)
            stream.advance(first[name])
            loss[name] = [0.0]
            for k in kept[name][1:]:
                if loss[name][-1] > HOPELESS:
                    loss[name].append(loss[name][-1] * 2)
                    continue
                alive = select(group, scores[name], k)
                if (scores[name][~alive] <= DEAD).all():
                    loss[name].append(0.0)
                    continue
                fits = [
                    (p, *compensated(those, group, alive, analysis, ridge))
                    for p, those in _used(places, readings[name])
                ]
                before = [_swap(edit, p, m, shift) for p, m, shift in fits]
                before += [
                    _silence(edit, recurrences[k], group, alive, analysis)
                    for k in reading_nodes[name] & set(recurrences)
                ]
                before.append(gated.set({name: alive}))
                suffered = measure(joined(stream.compute(outputs), outputs))
                for old in before:
                    edit.model.weights.update(old)
                loss[name].append(max(suffered, loss[name][-1]))
            done += 1
            progress(done, total)
        for r in gathered:
            r.forget()
    return Levels(kept, loss, scores)


def joined_levels(parts: Iterable[Levels], groups: Sequence[ChannelGroup]) -> Levels:
    """The levels of all groups in their order; of blocks, one stays whatever the target."""
    kept, loss, scores = dict[str, list[int]](), dict[str, list[float]](), Scores()
    for part in parts:
        kept, loss, scores = kept | part.kept, loss | part.damage, {**scores, **part.scores}
    blocks = [g.name for g in groups if g.kind == "layers"]
    if blocks and all(len(kept[name]) > 1 for name in blocks):
        last = max(blocks, key=lambda name: loss[name][-1])
        kept[last], loss[last] = kept[last][:1], loss[last][:1]
    return Levels(kept, loss, scores)


def kept_counts(group: ChannelGroup, scores: Float, round_to: int, max_ratio: float) -> list[int]:
    """Units kept at every level, from all to few; one level is that of the units that change nothing."""
    if group.kind == "layers":
        return [1, 0]
    counts = [rounded(group, r, round_to, max_ratio=max_ratio) for r in REMOVED if r <= max_ratio + 1e-9]
    free = without_loss(group, int((scores <= DEAD).sum()), round_to, max_ratio=max_ratio)
    return sorted({group.size, *counts, *([] if free is None else [free])}, reverse=True)


def error_levels(groups: Sequence[ChannelGroup], scores: Scores, *, round_to: int, max_ratio: float) -> Levels:
    """Levels whose damage is what the scores say of the units that go: of group OBS the error of the readers."""
    kept = {g.name: kept_counts(g, scores[g.name], round_to, max_ratio) for g in groups}
    damage = {}
    for g in groups:
        gone = [~select(g, scores[g.name], k) for k in kept[g.name]]
        damage[g.name] = np.maximum.accumulate([float(scores[g.name][m].max(initial=0.0)) for m in gone]).tolist()
    return Levels(kept, damage, scores)


def consumers(
    analysis: Analysis, groups: Sequence[ChannelGroup]
) -> tuple[dict[str, set[str]], dict[str, tuple[str, Ids]]]:
    """Group name -> nodes that sum over its units; recurrent node -> its recurrence weight and the ids that it sums.

    A recurrent layer reads its own units.
    """
    c, labels, owner = analysis.coupling, analysis.components.labels, analysis.owners(groups)
    nodes: dict[str, set[str]] = {g.name: set() for g in groups}
    recurrences = {}
    for consume in c.consumes:
        axes = c.axes(consume.node.input(consume.input))
        ids = axes[consume.axis] if axes else None
        if ids is None:
            continue
        for k in np.unique(owner[labels[ids]]):
            if k >= 0:
                nodes[groups[k].name].add(consume.node.key)
        trait, name = TRAITS.get(consume.node.op), consume.node.input(consume.input)
        if trait is not None and trait.recurs and consume.input in trait.weights and name in analysis.model.weights:
            recurrences[consume.node.key] = (name, ids)
    return nodes, recurrences


def _silence(
    edit: Edit, recurrence: tuple[str, Ids], group: ChannelGroup, alive: Keep, analysis: Analysis
) -> dict[str, Array]:
    """Let the recurrence read zeros for what is gone; the old array by name."""
    name, ids = recurrence
    old = edit.model.weights[name]
    keep = analysis.keep_ids({group.name: alive})[ids]
    edit.model.weights[name] = np.asarray(old * keep.astype(old.dtype))  # (directions, gates * hidden, hidden)
    return {name: old}


def _part(progress: Steps, start: int, steps: int, total: int) -> Steps:
    """Progress of a phase that is some steps of a longer one."""
    return lambda done, of: progress(start + round(done / max(of, 1) * steps), total)


def find_places(
    edit: Edit, readings: Sequence[Reading], shapes: Mapping[str, Sequence[int | None]]
) -> dict[str, Parameters]:
    """Layer -> where its matrix and bias are, of the layers that can be given others."""
    values, readers = Values(edit.model), read_by(edit.model.proto)
    read = {r.layer.key: r for r in readings}
    out = {}
    for layer in linear_layers(edit.model):
        if layer.key in read:
            r = read[layer.key]
            try:
                tail = find_tail(layer, edit.model, values, readers, r.weight.shape[1] * layer.group, shapes)
                out[layer.key] = parameters(edit, layer, tail, values, readers)
            except Unsuitable:
                continue
    return out


def _used(places: dict[str, Parameters], readings: Sequence[Reading]) -> list[tuple[Parameters, list[Reading]]]:
    """The readings of every layer, all groups of a grouped convolution together."""
    by_layer: dict[str, list[Reading]] = {}
    for r in readings:
        if r.layer.key in places and r.moments.count:
            by_layer.setdefault(r.layer.key, []).append(r)
    return [(places[k], v) for k, v in by_layer.items()]


def compensated(
    readings: Sequence[Reading], group: ChannelGroup, alive: Keep, analysis: Analysis, ridge: float
) -> tuple[dict[int, Float], Float]:
    """Per group of the layer the full matrix with zeros for what is gone, and what the bias gains."""
    matrices: dict[int, Float] = {}
    shifts = []
    unit = analysis.units(group)
    for r in readings:
        units = unit[r.components]
        stays = (units < 0) | alive[units]
        gram = r.moments.gram
        lam = damping(gram, ridge)
        h = gram[np.ix_(stays, stays)] + lam * np.eye(int(stays.sum()))
        right = gram[stays] @ r.weight + lam * r.weight[stays]
        m = np.zeros_like(r.weight)
        m[stays] = np.linalg.solve(h, right)
        matrices[r.group] = m
        shifts.append(r.moments.x_mean @ (r.weight - m))
    return matrices, np.concatenate(shifts)


def _swap(edit: Edit, p: Parameters, matrices: dict[int, Float], shift: Float) -> dict[str, Array]:
    """Put the new numbers in place; the old arrays by name."""
    names = [p.weight.name, *([p.bias.name] if p.bias else [])]
    old = {n: edit.model.weights[n] for n in names}
    full = matrix(p.layer, Values(edit.model))
    shifts = np.zeros((full.shape[0], full.shape[2]))
    for row, (g, m) in enumerate(sorted(matrices.items())):
        full[g] = m
        shifts[g] = shift.reshape(len(matrices), -1)[row]
    p.write(full, shifts.ravel())
    return old


def cache_key(*parts: object) -> str:
    """Key of a database in a cache folder, of all that it depends on."""
    return cache.digest("levels", LEVELS, parts)


LEVELS = [REMOVED, HOPELESS, SAMPLES]  # what a database depends on beside its options


def cached(folder: Path | None, key: str, names: Sequence[str], make: Callable[[], Levels]) -> tuple[Levels, bool]:
    """The database of that key for the groups of these names, made where there is none; and whether there was."""
    if folder is None:
        return make(), False
    path = folder / f"levels-{key[:24]}.json"
    with cache.cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        content = cache.read_json(path, key)
    if content is not None:
        levels = Levels.from_json(json.dumps(content))
        if set(levels.kept) == set(levels.damage) == set(levels.scores) == set(names):
            return levels, True
    levels = make()
    with cache.cache_errors(folder):
        cache.write_json(path, key, json.loads(levels.to_json()))
    return levels, False
