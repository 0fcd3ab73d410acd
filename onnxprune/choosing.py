"""Choosing what stays: amounts per kind, ratios per group, or targets for the whole model, become a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from onnxprune.allocation import MAX_RATIO, Keeps, allocated, matches, ratios, search
from onnxprune.allocation.levels import Levels
from onnxprune.calibrated import (
    HEAD_LOSS,
    MEASURED,
    SPREADING,
    Recipe,
    coarsest,
    data_scores,
    keeps_for,
    levels_of,
    losses_of_gates,
    recovered,
    scores_of_weights,
    total_macs,
)
from onnxprune.calibration.data import Calibration
from onnxprune.errors import OptionError
from onnxprune.evaluation import Drop, Evaluator, Function, Score, smallest
from onnxprune.graph.cost import CostModel
from onnxprune.importance import Scores
from onnxprune.progress import Clock, silent
from onnxprune.structure.coupling import KINDS
from onnxprune.structure.groups import Analysis, ChannelGroup
from onnxprune.structure.surgery import prune_model, slice_weights

Target = float | str
Amount = float | Literal["auto"]
Amounts = Mapping[str, Amount]  # kind -> how much of it goes
PRUNABLE = ("channels", *KINDS)


def kind_of(glob: str) -> str:
    """The kind that stands before a glob, as in `heads:GLOB`; "" for none."""
    kind, colon, _ = glob.partition(":")
    kind = kind.replace("-", "_")
    return kind if colon and kind in PRUNABLE else ""


def kinds_of(amounts: Amounts, pairs: Sequence[tuple[str, float]]) -> list[str]:
    """The kinds that options and ratios are about; channels where none is named."""
    named = {*amounts, *(kind_of(glob) for glob, _ in pairs)} - {""}
    return [k for k in PRUNABLE if k in named] or ["channels"]


class Builder:
    """Chooses what stays, for one target or for many; the level database is made once."""

    def __init__(
        self,
        analysis: Analysis,
        costs: CostModel,
        groups: Sequence[ChannelGroup],
        how: Recipe,
        data: Calibration | None,
        clock: Clock,
        *,
        round_to: int,
        max_ratio: float | None,
        steps: int,
        seed: int,
        cache: Path | None,
    ) -> None:
        self.analysis, self.costs, self.groups, self.how, self.data = analysis, costs, groups, how, data
        self.clock, self.round_to, self.max_ratio, self.steps, self.seed = clock, round_to, max_ratio, steps, seed
        self.cache = cache
        self.scores: Scores | None = None
        self.levels: dict[tuple[str, ...], Levels] = {}
        self.notes: list[str] = []

    def choose(
        self,
        amounts: Amounts,
        pairs: Sequence[tuple[str, float]],
        ignore: Sequence[str],
        limits: Mapping[str, float],
    ) -> Keeps:
        """What stays of every group. Raises `OptionError` where the targets cannot be reached."""
        how = self.how
        if how.allocate in SPREADING:
            return self._by_levels(amounts, pairs, ignore, limits)
        return choose_by_ratio(
            self.analysis, self.costs, self.groups, amounts, pairs, ignore, limits, allocate=how.allocate,
            round_to=self.round_to, max_ratio=self.max_ratio, steps=self.steps, scored=self._scored,
        )  # fmt: skip

    def _scored(self, keeps: Keeps) -> Scores:
        """Scores of all units where so much is left; those by data once for all steps, but for those by gates."""
        if self.data is None:
            alive = self.analysis.keep_ids(keeps)
            return scores_of_weights(self.analysis, self.groups, self.how.importance, keep=alive, seed=self.seed)
        if self.how.importance == HEAD_LOSS:
            streams = {g.name for g in self.groups if g.kind == "hidden"}  # these have no gates
            gone = {name: kept for name, kept in keeps.items() if not kept.all() and name not in streams}
            return losses_of_gates(self.analysis, self.groups, self.data, gone, progress=self.clock.progress)
        if self.scores is None or self.how.importance not in MEASURED:
            alive = self.analysis.keep_ids(keeps)
            self.scores = data_scores(self.analysis, self.groups, self.data, self.how, self.clock.progress, keep=alive)
        return {name: s.copy() for name, s in self.scores.items()}

    def _by_levels(
        self,
        amounts: Amounts,
        pairs: Sequence[tuple[str, float]],
        ignore: Sequence[str],
        limits: Mapping[str, float],
    ) -> Keeps:
        assert self.data is not None
        if not limits:
            targets = "--target-macs, --target-params or --target-bytes"
            raise OptionError(f"--allocate {self.how.allocate} spreads a target: give {targets}")
        fixed_kinds = {kind: amount for kind, amount in amounts.items() if amount != "auto"}
        if fixed_kinds and len(fixed_kinds) == len(amounts):
            named = " ".join(option(k) for k in fixed_kinds)
            raise OptionError(
                f"--allocate {self.how.allocate} chooses every ratio; leave out {named}, or use uniform or global"
            )
        held = ratios(self.groups, amounts=fixed_kinds, ratio=pairs, ignore=ignore)
        some_left(self.groups, held)
        free = [g for g in self.groups if g.name not in held and g.kind in amounts]
        cap = MAX_RATIO if self.max_ratio is None else self.max_ratio
        fixed: Keeps = {}
        if any(held.values()):
            mine = [g for g in self.groups if g.name in held]
            scores = data_scores(self.analysis, mine, self.data, self.how, self.clock.progress)
            fixed = allocated("uniform", mine, scores, held, round_to=self.round_to, max_ratio=1.0)
        key = tuple(g.name for g in free)
        if key not in self.levels:
            self.clock("levels")
            self.levels[key], was = levels_of(
                self.analysis, free, self.data, how=self.how, round_to=self.round_to, max_ratio=cap,
                cache=self.cache, progress=self.clock.progress,
            )  # fmt: skip
            if was:
                self.notes.append("level database taken from the cache")
            self.clock("plan")
        levels = self.levels[key]
        keeps = None
        if self.data.synthetic:  # as long as the target can be reached without them
            spared = coarsest(self.analysis, free)
            keeps = keeps_for(self.analysis, self.costs, free, levels.without(spared), limits, fixed)
        if keeps is None:
            keeps = keeps_for(self.analysis, self.costs, free, levels, limits, fixed)
        if keeps is None:
            raise OptionError(
                f"the target cannot be reached with --max-ratio {cap:g} of every group; raise --max-ratio, the "
                f"target, or see what is pinned with `onnxprune inspect`"
            )
        return {**fixed, **keeps}

    def within(
        self,
        limit: float,
        judge: Evaluator | Function,
        amounts: Amounts,
        pairs: Sequence[tuple[str, float]],
        ignore: Sequence[str],
        limits: Mapping[str, float],
    ) -> tuple[Keeps, Drop]:
        """The plan of the smallest model whose metric falls by at most `limit`, and by how much it does."""
        macs = total_macs(self.costs)
        made: dict[int, Keeps] = {}

        def build(left: int) -> Score | None:
            try:
                made[left] = self.choose(amounts, pairs, ignore, {**limits, "macs": macs * left / 100})
            except OptionError:
                return None
            keep = self.analysis.keep_ids(made[left])
            sliced = slice_weights(self.analysis, keep)
            plain = prune_model(self.analysis, keep, sliced=sliced)
            model, _, _ = recovered(
                self.analysis, keep, plain, sliced, self.how.recover, self.data, ridge=self.how.ridge, progress=silent
            )
            return judge(model)

        self.clock("search")
        before = judge(self.analysis.model)
        found = smallest(
            build, before, limit, seed=self.seed,
            progress=lambda done, total: self.clock.progress("search", done, total),
        )  # fmt: skip
        return made[found.left], found.confirmed


def nothing_found(analysis: Analysis, kinds: Sequence[str]) -> str:
    """Why no group of any of the kinds can be pruned, in one line."""
    where = analysis.model.path or "the model"
    there = {g.kind for g in analysis.groups}
    options = " or ".join(option(k) for k in kinds)
    others = ", ".join(f"{len(analysis.of_kind(k))} of kind {k}" for k in sorted(there))
    instead = f"; there are {others}, which {options} leaves alone" if there else ""
    if "hidden" in kinds:
        instead += "; widths of recurrent layers and of streams without a normalisation belong to --channels"
    if list(kinds) == ["layers"]:
        return f"{where}: no residual block y = x + f(x) of equal shapes{instead}"
    if instead and "channels" in kinds:
        return f"{where}: no group of kind {' or '.join(kinds)}{instead}"
    s = analysis.solution
    marked = [s.kinds[k] & (s.reason >= 0) for k in kinds if k in s.kinds]
    held = [s.pins[r] for r in np.unique(s.reason[np.any(marked, axis=0)])] if marked else []
    why = dict.fromkeys(f"{p.op} {p.node} ({p.reason})".replace("graph  ", "") for p in held)
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
    return f"{where}: nothing can be pruned: {stopped}{more}{hint}{instead}"


def option(kind: str) -> str:
    """The option of the command line for a kind."""
    return f"--{kind.replace('_', '-')}"


def parse_target(option: str, text: Target, total: float) -> float:
    """`0.7`, `70%` (of what there is) or `300M`, `1.2G` (absolute) as an absolute number."""
    raw = str(text).strip()
    units = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
    try:
        if raw.endswith("%"):
            value = float(raw[:-1]) / 100 * total
        elif raw[-1:].upper() in units:
            value = float(raw[:-1]) * units[raw[-1:].upper()]
        else:
            value = float(raw)
            value = value * total if value <= 1 else value
    except ValueError:
        raise OptionError(f"{option} {raw}: expected a fraction (0.7, 70%) or a number (300M) that is left") from None
    if not 0 < value <= total:
        raise OptionError(f"{option} {raw}: must be above 0 and at most what the model has now ({total:.4g})")
    return value


def choose_by_ratio(
    analysis: Analysis,
    costs: CostModel,
    groups: Sequence[ChannelGroup],
    amounts: Amounts,
    pairs: Sequence[tuple[str, float]],
    ignore: Sequence[str],
    limits: Mapping[str, float],
    *,
    allocate: str,
    round_to: int,
    max_ratio: float | None,
    steps: int,
    scored: Callable[[Keeps], Scores],
) -> Keeps:
    """Ratios first, then as much more as the targets need, over all steps.

    scored: scores of all units, given what stays so far.
    """
    whole = np.ones(analysis.coupling.size, bool)
    measures = {"macs": costs.macs, "params": costs.parameters, "bytes": costs.bytes}
    automatic = {kind for kind, amount in amounts.items() if amount == "auto"}
    if automatic and not limits:
        named = option(sorted(automatic)[0])
        raise OptionError(f"{named} auto needs a target: --target-macs, --target-params or --target-bytes")
    fixed = {kind: amount for kind, amount in amounts.items() if amount != "auto"}
    wanted = ratios(groups, amounts=fixed, ratio=pairs, ignore=ignore)
    some_left(groups, wanted)
    held = {g.name for g in groups if any(matches(g, glob) for glob, _ in pairs) or any(matches(g, i) for i in ignore)}
    raised = {g.name for g in groups if g.name not in held and g.kind in (automatic or amounts)} if limits else set()
    asked = max(wanted.values(), default=0.0)  # what was asked for is no surprise
    default = max(MAX_RATIO, asked) if limits or allocate == "global" else 1.0
    cap = default if max_ratio is None else max_ratio
    keeps: Keeps = {g.name: np.ones(g.size, bool) for g in groups}
    for step in range(1, steps + 1):
        share = step / steps
        scores = scored(keeps)
        for name, kept in keeps.items():
            scores[name][~kept] = -1.0  # what is gone stays gone

        def at(r: float, share: float = share, scores: Scores = scores) -> Keeps:
            goal = {g.name: wanted.get(g.name, 0.0) * share for g in groups}
            goal |= {name: max(goal[name], r) for name in raised}
            return allocated(allocate, groups, scores, goal, round_to=round_to, max_ratio=cap)

        if not limits:
            keeps = at(0.0)
            continue
        goals = {k: measures[k](whole) - (measures[k](whole) - limit) * share for k, limit in limits.items()}

        def satisfied(plan: Keeps, goals: Mapping[str, float] = goals) -> bool:
            ids = analysis.keep_ids(plan)
            return all(measures[k](ids) <= goal for k, goal in goals.items())

        found = search(at, satisfied, low=0.0, high=cap)
        if found is None:
            ids = analysis.keep_ids(at(cap))
            left = "; ".join(f"{measures[k](ids) / measures[k](whole):.0%} of {k}" for k in goals)
            raise OptionError(
                f"the target cannot be reached: with --max-ratio {cap:g} of every group {left} are left; "
                f"raise --max-ratio, the target, or see what is pinned with `onnxprune inspect`"
            )
        keeps = found[0]
    return keeps


def some_left(groups: Sequence[ChannelGroup], wanted: Mapping[str, float]) -> None:
    """Raises `OptionError` for a ratio that would leave no head or fewer experts than are chosen from."""
    for g in groups:
        r = wanted.get(g.name, 0.0)
        if r > 0 and g.kind in ("heads", "experts") and round(g.size * (1 - r)) < g.least:
            need = f"at least {g.least} must stay" if g.least > 1 else "one must stay"
            raise OptionError(
                f"{option(g.kind)} {r:g} would leave {g.size * (1 - r):.2g} of the {g.size} {g.kind} of {g.name}, and "
                f"{need}; give at most {1 - g.least / g.size:.3g}"
            )
