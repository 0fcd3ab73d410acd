"""The kinds of plans that a target may be reached by: units, zeros of a method, or both; each by predicted damage."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnxprune.allocation.budget import Point, Switch
from onnxprune.allocation.choose import Chooser
from onnxprune.allocation.outcome import Tried
from onnxprune.allocation.spread import Choice
from onnxprune.errors import NothingToPrune, Unreachable, UserError
from onnxprune.pipeline.setup import Setup
from onnxprune.pipeline.zeros import choices


@dataclass(frozen=True, eq=False)
class Way:
    """One kind of plan. units: whether units go; method: of the zeros, "" for none; switches: the layers that may have
    some."""

    units: bool
    method: str = ""
    switches: Sequence[Switch] = ()

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether units go, whether weights become zero."""
        return self.units, bool(self.method)

    def left(self, choice: Choice, budget: str) -> dict[str, float]:
        """Label of what a budget counts -> the part that the zeros of a choice leave of it."""
        return Point({}, dict(choice.zeros), 0.0).left(self.switches, budget)

    def __str__(self) -> str:
        return " and ".join(["units"] * self.units + [f"{self.method} zeros"] * bool(self.method))


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
        speed = self.setup.speed
        for method in () if speed is None else self.setup.options.zero_methods:
            assert speed is not None
            curves = {layer: of[method] for layer, of in speed.ratios.items() if method in of}
            switches = choices(self.setup, method, curves)
            if not switches:
                self.idle.append(Tried(f"{method} zeros", why="no layer is faster with them on this machine"))
                continue
            out += [Way(False, method, switches), *[Way(True, method, switches)] * units]
        return out

    def choose(self, way: Way, limits: Mapping[str, float], without: Collection[str] = ()) -> Choice:
        """The choice of a way with the least predicted damage under the limits; without: layers that stay dense.

        Raises `Unreachable`.
        """
        switches = [s for s in way.switches if s.layer not in without]
        return self.chooser.choose(limits, switches, units=way.units)

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
        least: dict[tuple[bool, bool], tuple[float, Way, Choice]] = {}
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
            if way.method and not choice.zeros:
                self.left.append(Tried(str(way), damage, why="no zeros are worth what they cost"))
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
