"""Spreading a target over groups by what the outputs suffer: the level database, and the plan that it gives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from onnxprune.allocation.budget import Meter, Point, Settings, Switch, Usage, least_damage, left_by
from onnxprune.allocation.levels import Levels, cache_key, cached, error_levels, joined_levels, level_database
from onnxprune.allocation.recipe import Recipe
from onnxprune.allocation.select import KeptUnits
from onnxprune.calibration.calibration import Calibration
from onnxprune.graph.fingerprint import exact_digest
from onnxprune.importance.criterion import Scores
from onnxprune.importance.data import find_readings
from onnxprune.importance.score import criterion_of, data_scores, losses_of_gates
from onnxprune.importance.units import select
from onnxprune.progress import Progress, Steps, counting
from onnxprune.runtime.jobs import Job, collected, elsewhere
from onnxprune.structure.analysis import Analysis, ChannelGroup

PART = 2  # groups of a job, where they are made on a cluster


def levels_by_error(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    *,
    recipe: Recipe,
    given: Scores | None = None,
    absorbed: bool = False,
    round_to: int,
    max_ratio: float,
    cache: Path | None,
    progress: Progress,
) -> tuple[Levels, bool | None]:
    """What the layers that read each group suffer at each level, as far as scores tell; arguments and result are those
    of `levels_by_outputs`, and nothing is kept in the cache."""
    scores = given
    if scores is None:
        scores = data_scores(
            analysis, groups, calibration, recipe.importance, recipe.prior, progress, absorbed=absorbed
        )  # fmt: skip
    return error_levels(groups, scores, round_to=round_to, max_ratio=max_ratio), None


def levels_by_outputs(
    analysis: Analysis,
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    *,
    recipe: Recipe,
    given: Scores | None = None,
    absorbed: bool = False,
    round_to: int,
    max_ratio: float,
    cache: Path | None,
    progress: Progress,
) -> tuple[Levels, bool | None]:
    """What the outputs suffer at each level of each group, measured on samples that are held out.

    given: scores, in place of those that the recipe names; absorbed: see `score.ordered`; cache: folder. Also says
    whether the levels came from the cache, None where they are not kept at all.
    """
    _, held_out = calibration.split()
    options = {**asdict(recipe), "round_to": round_to, "max_ratio": max_ratio, "seed": calibration.seed}
    options["given"] = None if given is None else {name: s.tolist() for name, s in given.items()}
    options |= {"sizes": [(g.kind, g.size) for g in groups], "batch": calibration.batch, "absorbed": absorbed}
    options |= {"held_out": len(held_out)}
    key = ""
    if cache is not None:
        key = cache_key(exact_digest(analysis.model), calibration.samples.digest, options, [g.name for g in groups])

    def make() -> Levels:
        scores = given
        criterion = criterion_of(recipe.importance)
        if given is None and criterion is not None and criterion.by == "gates":
            scores = losses_of_gates(
                analysis, groups, calibration, recipe.importance, absorbed=absorbed, progress=progress
            )
        many = PART if calibration.at.cluster else max(1, len(groups))
        parts = [groups[k : k + many] for k in range(0, len(groups), many)]
        local, steps = calibration.alone(), counting(progress, "levels")
        made_of = partial(part_of_levels, analysis, local, recipe, scores, absorbed, round_to, max_ratio)
        if not calibration.at.cluster:
            return joined_levels([made_of(part, steps) for part in parts], groups)
        function, finished = elsewhere(worker, made_of, groups), count(1)
        names = [[g.name for g in part] for part in parts]
        jobs = [Job(cache_key("part", key, part), function, (part,)) for part in names]
        made = collected(jobs, calibration.at, cache, lambda n, content: steps(next(finished), len(parts)))
        return joined_levels([Levels.from_json(json.dumps(content)) for content in made], groups)

    levels, was_cached = cached(cache, key, [g.name for g in groups], make)
    return levels, None if cache is None else was_cached


def part_of_levels(
    analysis: Analysis, calibration: Calibration, recipe: Recipe, given: Scores | None, absorbed: bool, round_to: int,
    max_ratio: float, groups: Sequence[ChannelGroup], progress: Steps,
) -> Levels:  # fmt: skip
    """The levels of some groups; arguments are those of `levels_by_outputs`."""
    learn, held_out = calibration.split()
    return level_database(
        analysis, groups, calibration.runs(learn), (calibration.runs(held_out), len(held_out)),
        importance=recipe.importance, given=given, absorbed=absorbed, ridge=recipe.prior, jobs=calibration.jobs,
        round_to=round_to, max_ratio=max_ratio, memory=calibration.memory, threads=calibration.threads,
        seed=calibration.seed, progress=progress,
    )  # fmt: skip


def worker(
    made_of: Callable[[Sequence[ChannelGroup], Steps], Levels], groups: Sequence[ChannelGroup]
) -> Callable[[Sequence[str]], Mapping[str, Any]]:
    """What makes the levels of groups by their names in a worker; made_of: that of the groups themselves."""

    def named(names: Sequence[str]) -> Mapping[str, Any]:
        levels = made_of([g for g in groups if g.name in names], lambda done, total: None)
        return dict(json.loads(levels.to_json()))

    return named


def coarsest(analysis: Analysis, groups: Sequence[ChannelGroup]) -> set[str]:
    """Groups that are read at the smallest resolution alone, or behind it.

    Made-up images say least about these: what tells classes apart never occurs in them.
    """
    shapes = analysis.coupling.shapes.shapes
    area: dict[str, list[float]] = {}
    for name, readings in find_readings(analysis, groups).items():
        read = [shapes.get(r.layer.source, ()) for r in readings]
        area[name] = [math.prod(d or 1 for d in s[2:]) if len(s) > 2 else 1 for s in read]
    areas = {a for those in area.values() for a in those if a > 1}
    if len(areas) < 2:
        return set()
    return {name for name, those in area.items() if those and min(those) <= min(areas)}


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen under a target. keeps: the units that stay; settings: of the switches that are set to anything;
    damage: sum of what the levels say, None where ratios decided."""

    keeps: KeptUnits
    settings: Settings = field(default_factory=dict)
    damage: float | None = None


def reached(
    analysis: Analysis,
    meters: Mapping[str, Meter],
    groups: Sequence[ChannelGroup],
    levels: Levels,
    limits: Mapping[str, float],
    fixed: KeptUnits,
    switches: Sequence[Switch] = (),
) -> str:
    """What is left of the budgets at the deepest levels, in a message; arguments are those of `under_limits`."""
    point = deepest(groups, levels, switches)
    keeps = selected(groups, levels, point)
    ids, whole = analysis.keep_ids({**fixed, **keeps}), analysis.keep_ids({})
    shares = {k: meters[k](ids, left_by(switches, point.settings, k)) / meters[k](whole) for k in limits}
    return " and ".join(f"{share:.0%} of the {k}" for k, share in shares.items())


def under_limits(
    analysis: Analysis,
    meters: Mapping[str, Meter],
    groups: Sequence[ChannelGroup],
    levels: Levels,
    limits: Mapping[str, float],
    fixed: KeptUnits,
    switches: Sequence[Switch] = (),
) -> Choice | None:
    """The choice with the least damage under the limits, by the names of their budgets; None where none holds them.

    fixed: what stays of the other groups; switches: what may become of the weights of layers.
    """
    alive = analysis.keep_ids(fixed)
    usages = {
        k: Usage(meters[k], analysis, groups, alive, [[e.labels for e in s.of(k)] for s in switches]) for k in limits
    }
    tight = dict(limits)

    def holding(point: Point) -> tuple[Choice, dict[str, float]]:
        keeps = selected(groups, levels, point)
        ids = analysis.keep_ids({**fixed, **keeps})
        over = {k: meters[k](ids, left_by(switches, point.settings, k)) / limit for k, limit in limits.items()}
        return Choice(keeps, point.settings, point.damage), over

    for _ in range(8):  # counts of shared or repeated units are approximate
        point = least_damage(groups, levels, usages, tight, switches)
        if point is None:
            break
        choice, over = holding(point)
        if all(o <= 1 + 1e-9 for o in over.values()):
            return choice
        tight = {k: tight[k] / max(over[k], 1.0) * 0.999 for k in limits}
    choice, over = holding(deepest(groups, levels, switches))
    return choice if all(o <= 1 + 1e-9 for o in over.values()) else None


def selected(groups: Sequence[ChannelGroup], levels: Levels, point: Point) -> KeptUnits:
    """The units that stay at a point."""
    return {g.name: select(g, levels.scores[g.name], point.kept[g.name]) for g in groups}


def deepest(groups: Sequence[ChannelGroup], levels: Levels, switches: Sequence[Switch]) -> Point:
    """The last level of everything."""
    damage = [*(levels.damage[g.name][-1] for g in groups), *(s.damage[-1] for s in switches)]
    kept, settings = {g.name: levels.kept[g.name][-1] for g in groups}, {s.name: s.settings[-1] for s in switches}
    return Point(kept, settings, float(sum(damage)))
