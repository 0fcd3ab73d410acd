"""Choosing what stays: amounts per kind, ratios per group, or targets for the whole model, become units that stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.allocation.allocators import ALLOCATORS, Allocator, allocated
from onnxprune.allocation.budget import Meter, Switch, Tables, meters_of, target_flags
from onnxprune.allocation.kinds import flag
from onnxprune.allocation.levels import Levels
from onnxprune.allocation.options import Cut
from onnxprune.allocation.recipe import GIVEN, Recipe
from onnxprune.allocation.select import MAX_RATIO, KeptUnits, group_ratios, matches, search, uniform
from onnxprune.allocation.spread import Choice, coarsest, reached, under_limits
from onnxprune.calibration.calibration import Calibration
from onnxprune.calibration.samples import Samples
from onnxprune.errors import NothingToPrune, OptionError, Unreachable
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.graph.io import Model
from onnxprune.graph.shapes import fixed, graph_inputs
from onnxprune.importance.criterion import GONE, Scores
from onnxprune.importance.score import (
    criterion_of,
    data_scores,
    given_scores,
    gradient_scores,
    losses_of_gates,
    scores_of_weights,
)
from onnxprune.importance.shown import ground
from onnxprune.progress import Clock
from onnxprune.structure.analysis import Analysis, ChannelGroup
from onnxprune.structure.groups import analyze

Pairs = Sequence[tuple[str, float]]  # glob -> fraction that is removed


@dataclass(frozen=True, eq=False)
class CutRequest:
    """What is asked of the groups: kind -> amount; glob -> fraction; globs that stay whole; goal: the targets, in the
    user's words."""

    amounts: Mapping[str, Any]
    pairs: Pairs
    ignore: Sequence[str]
    goal: str = ""


@dataclass(frozen=True, eq=False)
class Subject:
    """What units are chosen from: the model, or what a step has left of it, with the samples as it takes them; meters:
    of the budgets that may be limited, made with these tables; train: samples with labels."""

    analysis: Analysis
    meters: Mapping[str, Meter]
    tables: Tables
    groups: Sequence[ChannelGroup]
    data: Calibration | None
    train: TrainingSet | None = None


class Chooser:
    """Chooses what stays, for one target or for many; scores and level database of the whole model are made once.

    cut, recipe: how; request: what of; build: the cut model, recovered, for what stays of every group; absorbed: see
    `score.ordered`; shapes: of dynamic inputs; cache: folder for level databases.
    """

    def __init__(
        self,
        whole: Subject,
        cut: Cut,
        request: CutRequest,
        recipe: Recipe,
        clock: Clock,
        *,
        build: Callable[[KeptUnits], Model],
        absorbed: bool,
        cache: Path | None,
        seed: int,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.whole, self.cut, self.request, self.recipe, self.clock = whole, cut, request, recipe, clock
        self.build, self.absorbed, self.cache, self.seed, self.shapes = build, absorbed, cache, seed, shapes
        self.scores: Scores | None = None
        self.criterion = criterion_of(recipe.importance)  # None where scores are given
        self.by_gradients = self.criterion is not None and self.criterion.by == "gradients"
        self.levels: dict[tuple[str, ...], Levels] = {}
        self.cached: bool | None = None  # whether the level database came from the cache
        self.notes: list[str] = []
        self.lacking: dict[str, str] = {}  # group -> why it was not scored, by gradients

    def choose(
        self,
        limits: Mapping[str, float],
        switches: Sequence[Switch] = (),
        *,
        units: bool = True,
        spared: Collection[str] = (),
    ) -> Choice:
        """What stays of every group under the limits: budget -> what is left at most.

        switches: layers that may become sparse as well, where levels decide; units: whether any may go;
        spared: kinds of those that stay.
        Raises `OptionError` where the targets cannot be reached.
        """
        allocator = ALLOCATORS[self.recipe.allocate]
        if allocator.needs_target and not limits:
            raise OptionError(
                f"--allocate {self.recipe.allocate} spreads a target: give {target_flags()}, or --max-drop"
            )
        if self.by_gradients and self.scores is None:
            self._leave_unscored()
        if allocator.by_levels is not None:
            return self._by_levels(limits, switches, units=units, spared=spared)
        cap = None if self.cut.max_ratio is None else float(self.cut.max_ratio)
        return Choice(
            choose_by_ratio(
                self.whole, self.request, limits, allocator, round_to=self.cut.round_to, max_ratio=cap,
                steps=self.cut.steps, scored=self._scored,
            )
        )  # fmt: skip

    def _scored(self, keeps: KeptUnits) -> Scores:
        """Scores of all units where so much is left; those by data on the model that is left, recovered."""
        w, first = self.whole, all(k.all() for k in keeps.values())
        if first and self.scores is not None:
            return copied(self.scores)
        criterion = self.criterion
        if w.data is not None and criterion is not None and criterion.by == "gates":
            streams = {g.name for g in w.groups if g.kind == "hidden"}  # these have no gates
            gone = {name: kept for name, kept in keeps.items() if not kept.all() and name not in streams}
            scores = losses_of_gates(
                w.analysis, w.groups, w.data, self.recipe.importance, gone=gone, absorbed=self.absorbed,
                progress=self.clock.progress,
            )  # fmt: skip
        elif w.data is None and criterion is not None and not self.by_gradients:
            alive = w.analysis.keep_ids(keeps)
            again = self.seed + sum(int((~k).sum()) for k in keeps.values())  # of `random`, anew after each step
            scores = scores_of_weights(
                w.analysis, w.groups, self.recipe.importance, keep=alive, absorbed=self.absorbed, seed=again
            )
        elif first:
            scores = self._of(w)
        else:
            left = self._left(keeps)
            known = {name: s for name, s in self._of(left).items() if len(s) == keeps[name].sum()}
            scores = {g.name: np.full(g.size, GONE) for g in w.groups}
            for name, kept in keeps.items():
                before = (self.scores or {}).get(name, np.zeros(len(kept)))
                scores[name][kept] = known.get(name, before[kept])  # a group of one unit is no group any more
        if first:  # of the whole model, for every further choice
            self.scores = copied(scores)
        return copied(scores)

    def _of(self, subject: Subject) -> Scores:
        """Scores of the units that are there, by data or by what the caller gives."""
        if self.recipe.importance == GIVEN:
            given = self.cut.scores if self.cut.scores is not None else self.cut.importance
            option = "--scores" if self.cut.scores is not None else "--importance"
            assert given is not None
            known = {g.name for g in self.whole.analysis.groups}
            return given_scores(subject.groups, given, option, known)  # type: ignore[arg-type]
        recipe = self.recipe
        if self.by_gradients:
            scores, self.lacking = gradient_scores(
                subject.analysis, subject.groups, ground(subject.data, subject.train), recipe.importance,
                self.clock.progress, absorbed=self.absorbed,
            )  # fmt: skip
            return scores
        assert subject.data is not None
        return data_scores(
            subject.analysis, subject.groups, subject.data, recipe.importance, recipe.prior, self.clock.progress,
            absorbed=self.absorbed,
        )  # fmt: skip

    def _leave_unscored(self) -> None:
        """Score the whole model, and leave groups alone that no gradient reaches.

        Raises `NothingToPrune` where it reaches none.
        """
        w = self.whole
        scores = self._scored({g.name: np.ones(g.size, bool) for g in w.groups})
        of: dict[str, list[str]] = {}
        for g in w.groups:
            if g.name not in scores:
                of.setdefault(self.lacking[g.name], []).append(g.name)
        if not scores and w.groups:
            raise NothingToPrune(f"--importance {self.recipe.importance}: no gradient reaches a unit: {next(iter(of))}")
        self.notes += [f"without a gradient, and whole: {', '.join(names)}: {why}" for why, names in of.items()]
        self.whole = replace(w, groups=[g for g in w.groups if g.name in scores])

    def _left(self, keeps: KeptUnits) -> Subject:
        """What is left of the model, recovered, with its own groups and costs."""
        w = self.whole
        analysis = w.analysis
        keep = analysis.keep_ids(keeps)
        again = analyze(
            self.build(keeps), dict(self.shapes) or None, allow_io_change=self.cut.allow_io_change,
            whole_layers=self.cut.whole_layers,
        )  # fmt: skip
        names = {g.name for g in w.groups}
        groups = [g for g in again.groups if g.name in names and g.size == keeps[g.name].sum()]

        def narrowed(samples: Samples) -> Samples:
            return replace(samples, load=lambda i: analysis.narrow(samples.load(i), keep))

        data = None if w.data is None else replace(w.data, samples=narrowed(w.data.samples))
        train = None if w.train is None else replace(w.train, samples=narrowed(w.train.samples))
        return Subject(again, meters_of(again, w.tables, w.meters), w.tables, groups, data, train)

    def _by_levels(
        self, limits: Mapping[str, float], switches: Sequence[Switch], *, units: bool, spared: Collection[str]
    ) -> Choice:
        """Step by step: the level database of what is left, and the least damage under that step's limits."""
        w, request, steps = self.whole, self.request, self.cut.steps
        fixed_kinds = {kind: amount for kind, amount in request.amounts.items() if amount != "auto"}
        if fixed_kinds and len(fixed_kinds) == len(request.amounts):
            fixed = " ".join(flag(k) for k in fixed_kinds)
            by_ratio = " or ".join(name for name, row in ALLOCATORS.items() if row.by_ratio is not None)
            raise OptionError(
                f"{request.goal} is spread by what the outputs suffer (--allocate {self.recipe.allocate}), which "
                f"chooses every ratio; leave out {fixed}, or use --allocate {by_ratio}"
            )
        ratios = group_ratios(w.groups, amounts=fixed_kinds, ratio=request.pairs, ignore=request.ignore)
        some_left(w.groups, ratios)
        whole = w.analysis.keep_ids({})
        used = w.meters
        keeps: KeptUnits = {g.name: np.ones(g.size, bool) for g in w.groups}
        for step in range(1, steps + 1):
            subject = w if step == 1 else self._left(keeps)
            goal = {k: used[k](whole) - (used[k](whole) - v) * step / steps for k, v in limits.items()}
            shares = {g.name: max(0.0, 1 - (1 - ratios[g.name] * step / steps) * len(keeps[g.name]) / g.size)
                      for g in subject.groups if g.name in ratios}  # fmt: skip
            choice = self._least(subject, shares, goal, keeps, switches, units=units, spared=spared)
            for name, kept in choice.keeps.items():
                keeps[name][np.flatnonzero(keeps[name])[~kept]] = False
        return replace(choice, keeps=keeps)

    def _least(
        self,
        subject: Subject,
        ratios: Mapping[str, float],
        limits: Mapping[str, float],
        before: KeptUnits,
        switches: Sequence[Switch],
        *,
        units: bool,
        spared: Collection[str],
    ) -> Choice:
        """What stays of the groups that are there: fixed ratios where there are some, else the least damage."""
        free = [g for g in subject.groups if g.name not in ratios and g.kind in self.request.amounts]
        cap = MAX_RATIO if self.cut.max_ratio is None else float(self.cut.max_ratio)
        fixed: KeptUnits = {}
        assert subject.data is not None
        if any(ratios.values()):
            groups = [g for g in subject.groups if g.name in ratios]
            scores = self._of(replace(subject, groups=groups))
            fixed = allocated(uniform, groups, scores, ratios, round_to=self.cut.round_to, max_ratio=1.0)
        levels = self._levels(subject, free, cap)
        if subject is not self.whole:  # at most so much of what the group was
            least = {g.name: len(before[g.name]) * (1 - cap) - 1e-9 for g in free}
            kept = {n: [k for k in ks if k >= least[n]] or ks[:1] for n, ks in levels.kept.items()}
            levels = Levels(kept, {n: d[: len(kept[n])] for n, d in levels.damage.items()}, levels.scores)
        levels = levels.without([g.name for g in free if not units or g.kind in spared])
        choice = None
        if subject.data.synthetic:  # as long as the target can be reached without them
            without = levels.without(coarsest(subject.analysis, free))
            choice = under_limits(subject.analysis, subject.meters, free, without, limits, fixed, switches)
        if choice is None:
            choice = under_limits(subject.analysis, subject.meters, free, levels, limits, fixed, switches)
        if choice is None:
            by = " and ".join([named(self.request)] * units + ["zeros"] * bool(switches)) or "what is faster"
            least_left = reached(subject.analysis, subject.meters, free, levels, limits, fixed, switches)
            raise Unreachable(
                f"{self.request.goal} cannot be reached by {by}: with --max-ratio {cap:g} of every "
                f"group {least_left} are left; raise --max-ratio, the target, or see what is pinned with `onnxprune "
                "inspect`"
            )
        return replace(choice, keeps={**fixed, **choice.keeps})

    def _levels(self, subject: Subject, free: Sequence[ChannelGroup], cap: float) -> Levels:
        key = tuple(g.name for g in free)
        if subject is self.whole and key in self.levels:
            return self.levels[key]
        assert subject.data is not None
        self.clock("levels")
        chosen = self.by_gradients or self.recipe.importance == GIVEN
        given = self._of(replace(subject, groups=free)) if chosen else None
        by_levels = ALLOCATORS[self.recipe.allocate].by_levels
        assert by_levels is not None
        levels, cached = by_levels(
            subject.analysis, free, subject.data, recipe=self.recipe, given=given, absorbed=self.absorbed,
            round_to=self.cut.round_to, max_ratio=cap, cache=self.cache, progress=self.clock.progress,
        )  # fmt: skip
        if cached is not None:
            self.cached = cached if self.cached is None else self.cached and cached
        if cached:
            self.notes.append("level database taken from the cache")
        self.clock("plan")
        if subject is self.whole:
            self.levels[key] = levels
        return levels


def copied(scores: Scores) -> Scores:
    """The same numbers in arrays of their own."""
    return {name: s.copy() for name, s in scores.items()}


def nothing_found(analysis: Analysis, kinds: Sequence[str]) -> str:
    """Why no group of any of the kinds can be pruned, in one line."""
    where = analysis.model.path or "the model"
    there = {g.kind for g in analysis.groups}
    options = " or ".join(flag(k) for k in kinds)
    others = ", ".join(f"{len(analysis.of_kind(k))} of kind {k}" for k in sorted(there))
    instead = f"; there are {others}, which {options} leaves alone" if there else ""
    if "hidden" in kinds:
        instead += "; widths of recurrent layers and of streams without a normalisation belong to --channels"
    if list(kinds) == ["layers"]:
        return f"{where}: no residual block y = x + f(x) of equal shapes{instead}"
    if instead and "channels" in kinds:
        return f"{where}: no group of kind {' or '.join(kinds)}{instead}"
    s = analysis.components
    marked = [s.kinds[k] & (s.reason >= 0) for k in kinds if k in s.kinds]
    pins = [s.pins[r] for r in np.unique(s.reason[np.any(marked, axis=0)])] if marked else []
    why = dict.fromkeys(f"{p.op} {p.node} ({p.reason})".replace("graph  ", "") for p in pins)
    if not why and "channels" not in kinds:
        return f"{where}: nothing of kind {' or '.join(kinds)} was found{instead}"
    if not why:
        why = dict.fromkeys(f"{p.tensor} by {p.op} {p.node} ({p.reason})" for p in analysis.pinned)
    if not why:
        why = dict.fromkeys(f"{p.op} {p.node} ({p.reason})" for p in s.pins if p.op != "graph")
    stopped = "; ".join(list(why)[:4]) or "it has no weights that make channels"
    more = f"; and {len(why) - 4} more" if len(why) > 4 else ""
    io = {"heads", "head_dim"}.issuperset(kinds) and ("graph input" in stopped or "graph output" in stopped)
    hint = "; --allow-io-change lets heads in inputs and outputs shrink" if io else ""
    return f"{where}: nothing can be pruned: {stopped}{more}{_sizes_tried(analysis)}{hint}{instead}"


def _sizes_tried(analysis: Analysis) -> str:
    """What keeps shapes from being known at the sizes that dynamic axes were given, "" where nothing does."""
    inputs = [i for i in graph_inputs(analysis.model) if not all(map(fixed, i.type.tensor_type.shape.dim))]
    if not analysis.notes or not inputs:
        return ""
    shapes = analysis.coupling.shapes.shapes
    tried = " and ".join(f"{i.name}:{','.join(map(str, shapes.get(i.name, '?')))}" for i in inputs)
    return f"; with {tried}: {analysis.notes[0][:160]}; if other sizes fit, give --input-shape"


def choose_by_ratio(
    subject: Subject,
    request: CutRequest,
    limits: Mapping[str, float],
    allocator: Allocator,
    *,
    round_to: int,
    max_ratio: float | None,
    steps: int,
    scored: Callable[[KeptUnits], Scores],
) -> KeptUnits:
    """Ratios first, then as much more as the targets need, over all steps.

    subject: the whole model; limits: what is left at most; scored: scores of all units, given what stays so far.
    """
    analysis, groups = subject.analysis, subject.groups
    amounts, pairs, ignore = request.amounts, request.pairs, request.ignore
    by_ratio = allocator.by_ratio
    assert by_ratio is not None
    whole = np.ones(analysis.coupling.size, bool)
    used = subject.meters
    automatic = {kind for kind, amount in amounts.items() if amount == "auto"}
    if automatic and not limits:
        kind = flag(sorted(automatic)[0])
        raise OptionError(f"{kind} auto needs a target: {target_flags()}")
    fixed = {kind: amount for kind, amount in amounts.items() if amount != "auto"}
    ratios = group_ratios(groups, amounts=fixed, ratio=pairs, ignore=ignore)
    some_left(groups, ratios)
    fixed_groups = {
        g.name for g in groups if any(matches(g, glob) for glob, _ in pairs) or any(matches(g, i) for i in ignore)
    }
    raised = {g.name for g in groups if g.name not in fixed_groups and g.kind in (automatic or amounts)}
    raised = raised if limits else {g.name for g in groups}
    asked = max(ratios.values(), default=0.0)  # what was asked for is no surprise
    default = max(MAX_RATIO, asked) if limits or allocator.capped else 1.0
    cap = default if max_ratio is None else max_ratio
    keeps: KeptUnits = {g.name: np.ones(g.size, bool) for g in groups}
    for step in range(1, steps + 1):
        share = step / steps
        scores = scored(keeps)
        for name, kept in keeps.items():
            scores[name][~kept] = GONE  # what is gone stays gone

        def at(r: float, share: float = share, scores: Scores = scores) -> KeptUnits:
            goal = {g.name: ratios.get(g.name, 0.0) * share for g in groups}
            goal |= {name: max(goal[name], r) for name in raised if limits or goal[name] > 0}
            return allocated(by_ratio, groups, scores, goal, round_to=round_to, max_ratio=cap)

        if not limits:
            keeps = at(0.0)
            if step == steps and all(k.all() for k in keeps.values()) and asked > 0:
                keeps = least_cut(at, ratios) or keeps
            continue
        goals = {k: used[k](whole) - (used[k](whole) - limit) * share for k, limit in limits.items()}

        def satisfied(keeps: KeptUnits, goals: Mapping[str, float] = goals) -> bool:
            ids = analysis.keep_ids(keeps)
            return all(used[k](ids) <= goal for k, goal in goals.items())

        least = search(at, satisfied, low=0.0, high=cap)
        if least is None:
            ids = analysis.keep_ids(at(cap))
            left = "; ".join(f"{used[k](ids) / used[k](whole):.0%} of {k}" for k in goals)
            raise Unreachable(
                f"{request.goal} cannot be reached by {named(request)}: with --max-ratio {cap:g} of every group {left} "
                f"are left; raise --max-ratio, the target, or see what is pinned with `onnxprune inspect`"
            )
        keeps = least[0]
    return keeps


def named(request: CutRequest) -> str:
    """The options that say what may go, in a message: `--channels, --ratio`."""
    return ", ".join([*(flag(kind) for kind in request.amounts), *["--ratio"] * bool(request.pairs)]) or "--channels"


def least_cut(at: Callable[[float], KeptUnits], asked: Mapping[str, float]) -> KeptUnits | None:
    """The smallest cut of the groups that are asked for, where the nearest count of every one of them is all."""
    least = search(at, lambda keeps: any(not k.all() for k in keeps.values()), low=0.0, high=max(0.5, *asked.values()))
    return None if least is None else least[0]


def some_left(groups: Sequence[ChannelGroup], ratios: Mapping[str, float]) -> None:
    """Raises `OptionError` for a ratio that would leave no head or fewer experts than are chosen from."""
    for g in groups:
        r = ratios.get(g.name, 0.0)
        if r > 0 and g.kind in ("heads", "experts") and round(g.size * (1 - r)) < g.least:
            need = f"at least {g.least} must stay" if g.least > 1 else "one must stay"
            raise OptionError(
                f"{flag(g.kind)} {r:g} would leave {g.size * (1 - r):.2g} of the {g.size} {g.kind} of {g.name}, and "
                f"{need}; give at most {1 - g.least / g.size:.3g}"
            )
