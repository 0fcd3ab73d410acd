"""The kinds of plans that a target may be reached by: units, what becomes of weights, or both."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from onnxprune.allocation.budget import LATENCY, Switch
from onnxprune.allocation.choose import Chooser
from onnxprune.allocation.codebooks import codebooks
from onnxprune.allocation.kinds import flag
from onnxprune.allocation.methods import CLUSTER
from onnxprune.allocation.outcome import Tried
from onnxprune.allocation.spread import Choice
from onnxprune.calibration.calibration import solve_data
from onnxprune.errors import NothingToPrune, Unreachable, UserError
from onnxprune.latency.zeros import METHODS
from onnxprune.pipeline.make import make, plan_of
from onnxprune.pipeline.setup import Pruning, Setup
from onnxprune.pipeline.zeros import choices, spec_of
from onnxprune.progress import Clock, counting, silent
from onnxprune.sparsity.options import PLAIN_SOLVER

UNITS, ZEROS = "units", "zeros"


@dataclass(frozen=True, eq=False)
class Way:
    """One kind of plan. units: whether units go; method: of `latency.zeros.METHODS`, or `CLUSTER`, "" for none;
    switches: what may become of the weights of layers by it; weighed: whether the damage of these is more than each
    does by itself; spared: kinds of units that stay whole."""

    units: bool
    method: str = ""
    switches: Sequence[Switch] = ()
    weighed: bool = False
    spared: frozenset[str] = frozenset()

    @property
    def kind(self) -> tuple[bool, str]:
        """Whether units go, and whether weights become zero or few values."""
        return self.units, ZEROS if self.method in METHODS else self.method

    def applied(self, setup: Setup, choice: Choice) -> Setup:
        """The setup of a model with what was chosen for its weights."""
        if not choice.settings:
            return setup
        if self.method == CLUSTER:
            return replace(setup, clusters={name: int(k) for name, k in choice.settings.items()})
        return replace(setup, spec=spec_of(setup, choice.settings, self.method))

    def weighing(self, factor: float) -> Way:
        """The same, where what becomes of weights hurts so many times as much as it does by itself."""
        heavier = [replace(s, damage=tuple(factor * d for d in s.damage)) for s in self.switches]
        return replace(self, switches=heavier, weighed=True)

    def __str__(self) -> str:
        units = " without ".join([UNITS, *sorted(flag(kind).removeprefix("--") for kind in self.spared)])
        both = " and ".join([units] * self.units + [described(self.method)] * bool(self.method))
        return both + ", by the damage of both together" * self.weighed


def idle(way: Way, choice: Choice) -> str:
    """What a way might have done and a choice does not, "" where it does all."""
    if way.units and all(kept.all() for kept in choice.keeps.values()):
        return UNITS
    return described(way.method) if way.method and not choice.settings else ""


def described(method: str) -> str:
    """A method in a message: `nm zeros, int8 values`."""
    if method == CLUSTER:
        return "codebooks"
    name, _, values = method.partition(":")
    if method in METHODS and METHODS[method].dense:
        return f"{name} zeros in dense weights"
    return f"{name} zeros" + f", {values} values" * bool(values)


def made_of(setup: Setup, way: Way, choice: Choice) -> Pruning:
    """The model of a choice."""
    applied = way.applied(setup, choice)
    return make(applied, plan_of(applied, choice.keeps))


def draft_of(setup: Setup, way: Way, choice: Choice) -> Pruning:
    """What a choice takes of time and memory: cut and masked by magnitude, but neither recovered, tuned nor checked."""
    o = setup.options
    quick = replace(o, check=replace(o.check, verify=False, dry_run=False), training=replace(o.training, tune=None))
    plain = replace(setup, options=quick, data=None, recipe=replace(setup.recipe, recover="none"), clock=Clock(silent))
    plain = way.applied(plain, choice)
    zeros = replace(plain.spec.zeros, solver=PLAIN_SOLVER, permute=False)
    spec = replace(plain.spec, zeros=zeros, recover=False, cache=None)
    return make(replace(plain, spec=spec), plan_of(plain, choice.keeps))


class Ways:
    """The ways that the options leave, with the chooser of the units; idle, left: those that were left, as they have
    nothing to do, or by the last ranking."""

    def __init__(self, setup: Setup, chooser: Chooser) -> None:
        self.setup, self.chooser = setup, chooser
        self.idle: list[Tried] = []
        self.left: list[Tried] = []

    @cached_property
    def all(self) -> list[Way]:
        """Every way that there is."""
        units = bool(self.chooser.whole.groups)
        out = [Way(True)] * units
        for method in self.setup.options.weight_methods:
            switches = self.switches(method)
            if not switches:
                timed, table = LATENCY in self.setup.meters, self.setup.options.speed.latency_table
                place = "on this machine" if table is None else "by the table"
                why = f"no layer is faster with them {place}" if timed else "no layer is smaller with them"
                self.idle.append(Tried(described(method), why=why))
                continue
            out += [Way(False, method, switches), *[Way(True, method, switches)] * units]
        return out

    def switches(self, method: str) -> Sequence[Switch]:
        """What may become of the weights of layers by a method."""
        setup = self.setup
        if method != CLUSTER:
            timed = {} if setup.speed is None else setup.speed.ratios
            return choices(setup, method, {layer: of[method] for layer, of in timed.items() if method in of})
        assert setup.data is not None
        setup.clock("levels")
        analysis, o = setup.analysis, setup.options
        return codebooks(
            analysis.model, solve_data(analysis, analysis.keep_ids({}), setup.data), o.store.cluster_per,
            o.store.cluster_storage, seed=o.check.seed, cache=None if o.data.cache is None else Path(o.data.cache),
            progress=counting(setup.clock.progress, "levels of codebooks"),
        )  # fmt: skip

    def choose(self, way: Way, limits: Mapping[str, float], without: Collection[str] = ()) -> Choice:
        """The choice of a way with the least predicted damage under the limits; without: layers that stay dense.

        Raises `Unreachable`.
        """
        switches = [s for s in way.switches if s.name not in without]
        return self.chooser.choose(limits, switches, units=way.units, spared=way.spared)

    def best(self, limits: Mapping[str, float]) -> tuple[Way, Choice]:
        """The way whose predicted damage is least, with its choice; raises as `ranked`."""
        way, choice = self.ranked(limits)[0]
        return way, choice

    def ranked(self, limits: Mapping[str, float]) -> list[tuple[Way, Choice]]:
        """Of every kind the way whose predicted damage is least under the limits, best first. Raises `Unreachable`
        where none holds them.

        Kinds are not weighed against each other by this: zeros in layers that lose inputs as well cost more than both
        by themselves.
        """
        least: dict[tuple[bool, str], tuple[float, Way, Choice]] = {}
        problems: list[UserError] = []
        self.left = []
        for way in self.all:
            try:
                choice = self.choose(way, limits)
            except (Unreachable, NothingToPrune) as e:
                problems.append(e)
                self.left.append(Tried(str(way), why=str(e)))
                continue
            damage = 0.0 if choice.damage is None else choice.damage  # by ratios: the only way
            if way.method and (nothing := idle(way, choice)):
                self.left.append(Tried(str(way), damage, why=f"no {nothing} are worth what they cost"))
                continue
            known = least.get(way.kind)
            if known is None or damage < known[0]:
                least[way.kind] = damage, way, choice
                worse = known and (known[1], known[0])
            else:
                worse = way, damage
            if worse:
                self.left.append(Tried(str(worse[0]), worse[1], why="another method promises more"))
        if not least:
            raise problems[0] if problems else NothingToPrune("no method has anything to do here; see --methods")
        return [(way, choice) for _, way, choice in sorted(least.values(), key=lambda row: row[0])]
