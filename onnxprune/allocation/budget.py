"""What a target bounds, a row each, and one level per group and per layer with zeros, so that targets hold and the sum
of the damage is least.

minimise sum_g damage_g(l_g)  subject to  measure_k(l) <= limit_k. Costs are products of the survivors of two groups (a
convolution's inputs and outputs), of which zeros leave a part, so that they interact: for a price of the cost, groups
and layers choose their level in turn until none moves (coordinate descent), the price is bisected until the targets
hold, and pairs of them then exchange levels while that lowers the damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from types import MappingProxyType

import numpy as np

from onnxprune.allocation.levels import Levels
from onnxprune.graph.arrays import Array, Float, Ids
from onnxprune.graph.energy import HOROWITZ, EnergyTable
from onnxprune.graph.traits import Product, stepped, uneven
from onnxprune.options import UNITS
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep

SWEEPS = 20
STEPS = (1, 2)  # levels that a group moves in an exchange
PRICES, NEAR = 60, 1e-6  # of the cost that are tried, at most; how near two of them lie when no more are
LATENCY = "latency"  # which is measured, and not counted


@dataclass(frozen=True, eq=False)
class Meter:
    """How much a model uses of something, as a function of what survives.

    amounts: what it is counted from, a product of survivors each; total: what they come to, `(amounts, ...)` to
    `(...)`; eased: the same for the search, where the total does not change with every amount.
    """

    amounts: tuple[Product, ...]
    total: Callable[[Float], Float]
    eased: Callable[[Float], Float] | None = None

    def __call__(self, keep: Keep, left: Mapping[str, float] = MappingProxyType({})) -> float:
        """keep: ids that survive, bool `(ids,)`; left: label of amounts -> the part that zeros leave of them."""
        return float(self.total(np.array([p(keep) * left.get(p.label, 1.0) for p in self.amounts])))


def added(products: tuple[Product, ...], constant: float = 0.0) -> Meter:
    """The sum of the products, and a constant."""
    return Meter(products, lambda amounts: np.asarray(constant + amounts.sum(0)))


@dataclass(frozen=True)
class Tables:
    """What meters look up besides the model: tables that options name, and what was measured. energy: picojoules;
    latency: products that add up to the seconds of a run, of the model as it was analysed first."""

    energy: EnergyTable = HOROWITZ
    latency: tuple[Product, ...] = ()


@dataclass(frozen=True)
class Budget:
    """What a target bounds. unit: what is counted; example: of an absolute target; help: of the option; meter: how much
    a model uses of it; units: of an absolute target, by their names in capitals;
    main: whether the option is on the first screen of help."""

    unit: str
    example: str
    help: str
    meter: Callable[[Analysis, Tables], Meter]
    units: Mapping[str, float] = field(default_factory=lambda: UNITS)
    main: bool = False


def _bytes(analysis: Analysis, tables: Tables) -> Meter:
    costs = analysis.costs()
    return added(costs.bytes_of, costs.overhead)


def _energy(analysis: Analysis, tables: Tables) -> Meter:
    model = analysis.energy(tables.energy)
    return Meter(model.amounts, model.total)


def _memory(analysis: Analysis, tables: Tables) -> Meter:
    model = analysis.peak()
    return Meter(model.amounts, model.total, model.eased)


JOULES = {"J": 1.0, "MJ": 1e-3, "UJ": 1e-6, "NJ": 1e-9}


# A target is its row here, and its field `target_NAME` in `allocation.options.Cut`.
BUDGETS: dict[str, Budget] = {
    "macs": Budget(
        "MACs", "300M", "MACs that are left: 0.7, 70% or 300M.",
        lambda analysis, tables: added(analysis.costs().macs_of), main=True,
    ),
    "params": Budget(
        "parameters", "5M", "Parameters that are left: 0.7, 70% or 5M. Two targets must both hold; a fixed --channels "
        "applies first.",
        lambda analysis, tables: added(analysis.costs().parameters_of),
    ),
    "bytes": Budget("bytes", "5MB", "Size of the file that is left: 0.7, 70% or 5MB.", _bytes, main=True),
    LATENCY: Budget(
        "seconds", "2ms", "Time of a run that is left: 0.7, 70% or 2ms. It is measured here, on the finished model; "
        "--methods says what may be done for it.",
        lambda analysis, tables: added(tables.latency), units={"S": 1.0, "MS": 1e-3, "US": 1e-6}, main=True,
    ),
    "energy": Budget(
        "joules", "2mJ", "Energy of a run that is left, by a model of arithmetic and memory: 0.7, 70%, 2mJ or 300uJ.",
        _energy, units=JOULES,
    ),
    "memory": Budget(
        "bytes", "20MB", "Peak memory of a run that is left, weights and tensors that live together: 0.7, 70% or 20MB.",
        _memory,
    ),
}  # fmt: skip


def meters_of(analysis: Analysis, tables: Tables, names: Iterable[str]) -> dict[str, Meter]:
    """The meters of budgets, by name."""
    return {name: BUDGETS[name].meter(analysis, tables) for name in names}


def target_flags() -> str:
    """The options that bound what is left, in a message."""
    *others, last = (f"--target-{name}" for name in BUDGETS)
    return f"{', '.join(others)} or {last}"


Settings = Mapping[str, float]  # layer or weight -> what was chosen for it


@dataclass(frozen=True)
class Effect:
    """Of products with these labels what is left at every level of a switch, `(levels,)`."""

    labels: frozenset[str]
    left: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Switch:
    """What becomes of the weights of one layer, as one more choice beside the units of the groups.

    name: of the layer, or of its weight; settings: the part that becomes zero, or the values of a codebook, at every
    level, the first of which is 0, nothing; damage: `(levels,)`; effects: budget -> what becomes cheaper, products
    apart that do so by other parts.
    """

    name: str
    settings: tuple[float, ...]
    damage: tuple[float, ...]
    effects: Mapping[str, tuple[Effect, ...]]

    def of(self, budget: str) -> tuple[Effect, ...]:
        """What becomes cheaper; nothing where the budget does not count it."""
        return self.effects.get(budget, ())

    def left(self, settings: Settings, budget: str) -> dict[str, float]:
        """Label of amounts -> the part that is left of them, where this one is set to anything."""
        if self.name not in settings:
            return {}
        level = self.settings.index(settings[self.name])
        return {label: effect.left[level] for effect in self.of(budget) for label in effect.labels}


def left_by(switches: Sequence[Switch], settings: Settings, budget: str) -> dict[str, float]:
    """Label of amounts -> the part that all settings leave of them."""
    out: dict[str, float] = {}
    for s in switches:
        out |= s.left(settings, budget)
    return out


@dataclass(frozen=True)
class Point:
    """What a search chose. kept: group name -> units that stay; settings: of the switches that are set to anything;
    damage: of both together."""

    kept: dict[str, int]
    settings: dict[str, float]
    damage: float


class Usage:
    """What a meter reads, as a function of how many units every group keeps, and of what each switch leaves.

    An array of ids whose survivors are counted is a sum over the groups that they belong to, and where they belong to
    two (heads, dimensions of a head) a product: of what is kept of either. An amount is so a sum of terms. Such a count
    is rounded up to a step, or asked whether it is even, where it is one count or product; in a longer sum its parts
    count as they are, and even.
    A choice is a group, whose point is how much it keeps, or a switch, whose point is what every one of its effects
    leaves; the points of all lie behind one another.
    alive: ids that survive in the groups that are not asked about, bool `(ids,)`; switched: of every switch, labels of
    the amounts of its effects.
    """

    def __init__(
        self,
        meter: Meter,
        analysis: Analysis,
        groups: Sequence[ChannelGroup],
        alive: Keep,
        switched: Sequence[Sequence[frozenset[str]]] = (),
    ) -> None:
        self.total, self.eased = meter.total, meter.eased or meter.total
        owners = analysis.owners(groups)
        effects = [labels for each in switched for labels in each]
        sizes = [*(g.size for g in groups), *(1 for _ in effects)]
        ends = np.cumsum([0, *(1 for _ in groups), *(len(each) for each in switched)])
        self.places = [slice(a, b) for a, b in pairwise(ends.tolist())]  # of every choice in a point
        terms: list[_Term] = []
        starts: list[int] = []  # the first term of every amount
        known: dict[tuple[bytes, int], list[list[_Count]]] = {}  # many products are over the same widths

        def survivors(ids: Ids, divisor: int) -> list[list[_Count]]:
            key = ids.tobytes(), divisor
            if key not in known:
                known[key] = _counts(ids, divisor, analysis, owners, alive)
            return known[key]

        for p in meter.amounts:
            counts = list(map(survivors, p.ids, p.divisors))
            starts.append(len(terms))
            single = all(len(parts) == 1 for parts in counts)
            rounded = [
                s if len(parts) == 1 else 1 for s, parts in zip(p.steps or (1,) * len(counts), counts, strict=True)
            ]
            left = [[(0.0, {len(groups) + j: 1.0})] for j, labels in enumerate(effects) if p.label in labels]
            of = [_Term(p.factor, (*parts, *left), rounded, p.uneven) for parts in product(*counts)]
            terms += of if of and (single or not p.uneven) else [_Term(0.0, (), (), ())]
        self.starts = np.array(starts, np.int64)
        width = max((len(t.counts) for t in terms), default=1) or 1
        shape = len(terms), width, WAYS
        self.base, per_unit = np.ones(shape), np.zeros((*shape, len(sizes)))
        steps, multiples = np.ones((len(terms), width)), np.ones((len(terms), width))
        for i, term in enumerate(terms):
            steps[i, : len(term.steps)] = term.steps
            multiples[i, : len(term.uneven)] = term.uneven
            for j, ways in enumerate(term.counts):
                for way, (base, each) in enumerate(ways):
                    self.base[i, j, way] = base
                    for k, count in each.items():
                        per_unit[i, j, way, k] = count / sizes[k]
        self.touched = [np.flatnonzero(per_unit[..., at].any((1, 2, 3))) for at in self.places]
        self.slopes = [per_unit[rows][..., at] for rows, at in zip(self.touched, self.places, strict=True)]
        factor, asked = np.array([t.factor for t in terms]), np.array([bool(t.uneven) for t in terms], bool)

        def some(rows: Ids) -> _Terms:
            return _Terms(factor[rows], steps[rows], np.flatnonzero(asked[rows]), multiples[rows][asked[rows]])

        self.all, self.some = some(np.arange(len(terms))), [some(rows) for rows in self.touched]
        flat = per_unit.reshape(self.base.size, len(sizes))
        self.moved, self.by = np.nonzero(flat)  # most counts depend on one group, or none
        self.slope = flat[self.moved, self.by]

    def __call__(self, point: Float) -> float:
        """point: units per group, then what the effects of each switch leave, `(groups + effects,)`."""
        return float(self.total(self.amounts(self.terms(point)[1])))

    def at(self, point: Float) -> Position:
        """The usage there, to move from."""
        return Position(self, point)

    def terms(self, point: Float) -> tuple[Float, Float]:
        """Counts `(terms, counts, WAYS)` and terms `(terms,)` at a point."""
        moved = np.bincount(self.moved, self.slope * point[self.by], minlength=self.base.size)
        counts = np.asarray(self.base + moved.reshape(self.base.shape))
        return counts, self.all(counts[..., None])[:, 0]

    def amounts(self, terms: Float) -> Float:
        """`(terms, ...)` to `(amounts, ...)`"""
        return np.asarray(np.add.reduceat(terms, self.starts, axis=0)) if len(self.starts) else terms[:0]


class Position:
    """A usage at a point, from which one choice at a time moves: only the terms that it touches are counted anew."""

    def __init__(self, usage: Usage, point: Float) -> None:
        self.usage, self.point = usage, point.copy()
        self.counts, self.terms = usage.terms(point)

    def along(self, k: int, choices: Float) -> Float:
        """The usage, eased, at each of the points `(choices, places)` of group or switch k: `(choices,)`."""
        _, new = self._moved(k, choices)
        terms = np.repeat(self.terms[:, None], len(choices), 1)
        terms[self.usage.touched[k]] = new
        return self.usage.eased(self.usage.amounts(terms))

    def move(self, k: int, choice: Float) -> None:
        """Take the point `(places,)` of group or switch k."""
        rows = self.usage.touched[k]
        counts, terms = self._moved(k, choice[None])
        self.counts[rows], self.terms[rows] = counts[..., 0], terms[:, 0]
        self.point[self.usage.places[k]] = choice

    def _moved(self, k: int, choices: Float) -> tuple[Float, Float]:
        """Counts `(touched, counts, WAYS, choices)` and terms `(touched, choices)` of what a choice touches."""
        u = self.usage
        away = u.slopes[k] @ (choices - self.point[u.places[k]]).T
        counts = self.counts[u.touched[k]][..., None] + away
        return counts, u.some[k](counts)


WAYS = 2  # groups that the survivors of one array of ids may be a product of
_Count = tuple[float, dict[int, float]]  # ids that stay whatever happens, and those of every group


class _Terms:
    """Some of the terms of a usage. factor `(terms,)`; steps `(terms, counts)`; asked: places of those that are asked
    whether they are uneven, and multiples `(asked, counts)`: of what."""

    def __init__(self, factor: Float, steps: Float, asked: Ids, multiples: Float) -> None:
        self.factor, self.asked, self.multiples = factor[:, None], asked, multiples[..., None]
        self.steps = steps[..., None] if (steps != 1).any() else None

    def __call__(self, ways: Float) -> Float:
        """Their values at such counts, `(terms, counts, WAYS, choices)` -> `(terms, choices)`."""
        counts = ways[:, :, 0] * ways[:, :, 1]
        out = self.factor * (counts if self.steps is None else stepped(counts, self.steps)).prod(1)
        if self.asked.size:
            out[self.asked] *= uneven(counts[self.asked], self.multiples).any(1)
        return np.asarray(out)


@dataclass(frozen=True)
class _Term:
    """A factor times counts, each a product of up to `WAYS`; steps, uneven: as of `Product`."""

    factor: float
    counts: Sequence[Sequence[_Count]]
    steps: Sequence[int]
    uneven: Sequence[int]


def _counts(ids: Array, divisor: int, analysis: Analysis, owners: Ids, alive: Keep) -> list[list[_Count]]:
    """The survivors of an array of ids as a sum of products of counts."""
    owned = owners[analysis.components.labels[ids]]  # by one group, or two
    double = (owned >= 0).all(1)
    single = owned.max(1)
    fixed = int(np.count_nonzero(alive[ids] & (single < 0))) / divisor
    free = single[~double & alive[ids]]  # what a group that is not asked about has taken from a product is gone
    each = {int(k): int(np.count_nonzero(free == k)) / divisor for k in np.unique(free) if k >= 0}
    terms: list[list[_Count]] = [[(fixed, each)]] if fixed or each else []
    for a, b in np.unique(owned[double], axis=0):
        count = int(np.count_nonzero(double & (owned == (a, b)).all(1)))
        terms.append([(0.0, {int(a): count / divisor}), (0.0, {int(b): 1.0})])
    return terms


def least_damage(
    groups: Sequence[ChannelGroup],
    levels: Levels,
    usages: Mapping[str, Usage],
    limits: Mapping[str, float],
    switches: Sequence[Switch] = (),
) -> Point | None:
    """The point of least damage under the limits; None where even the deepest levels do not reach them.

    usages: of the same groups and switches, by budget.
    """
    kept = [np.array(levels.kept[g.name], float)[:, None] for g in groups]
    damage = [np.array(d) for d in (*(levels.damage[g.name] for g in groups), *(s.damage for s in switches))]
    used = {k: u for k, u in usages.items() if k in limits}
    # budget -> the points of every level, `(levels, places)`: units that are kept, or what each effect leaves
    worth = {
        k: [*kept, *(np.array([e.left for e in s.of(k)]).reshape(-1, len(s.damage)).T for s in switches)] for k in used
    }
    count = len(damage)

    def at(k: str, level: Sequence[int]) -> Float:
        return np.concatenate([np.zeros(0), *(values[n] for values, n in zip(worth[k], level, strict=True))])

    def holds(level: Sequence[int]) -> bool:
        return all(u(at(k, level)) <= limits[k] for k, u in used.items())

    def settle(price: float) -> list[int]:
        level = [0] * count
        positions = {k: u.at(at(k, level)) for k, u in used.items()}
        for _ in range(SWEEPS):
            moved = False
            for g in range(count):
                cost = damage[g] + price * sum(p.along(g, worth[k][g]) / limits[k] for k, p in positions.items())
                best = int(np.argmin(cost))
                if best == level[g]:
                    continue
                moved, level[g] = True, best
                for k, p in positions.items():
                    p.move(g, worth[k][g][best])
            if not moved:
                break
        return level

    def chosen(level: Sequence[int]) -> Point:
        units, set_to = level[: len(groups)], level[len(groups) :]
        return Point(
            {g.name: int(kept[k][n, 0]) for k, (g, n) in enumerate(zip(groups, units, strict=True))},
            {s.name: s.settings[n] for s, n in zip(switches, set_to, strict=True) if n},
            sum(float(d[n]) for d, n in zip(damage, level, strict=True)),
        )

    deepest = [len(d) - 1 for d in damage]
    if not holds(deepest):
        return None
    low, high, best = 1e-9, 1e6, deepest
    if holds([0] * count):
        return chosen([0] * count)
    for _ in range(PRICES):
        if high / low < 1 + NEAR:
            break
        price = float(np.sqrt(low * high))
        level = settle(price)
        if holds(level):
            high, best = price, level
        else:
            low = price
    return chosen(_exchange(best, damage, holds))


def _exchange(level: list[int], damage: Sequence[Float], holds: Callable[[Sequence[int]], bool]) -> list[int]:
    """One choice up, perhaps another one down, as long as the damage falls and the limits hold; the best move first."""
    level, count = list(level), len(damage)

    def gain(g: int, step: int) -> float:
        to = level[g] + step
        if not 0 <= to < len(damage[g]) or not np.isfinite(damage[g][to]):
            return -np.inf
        return float(damage[g][level[g]] - damage[g][to])

    while True:
        up = [(gain(a, -s), a, -s) for a in range(count) for s in STEPS]
        down = [(0.0, -1, 0), *((gain(b, s), b, s) for b in range(count) for s in STEPS)]
        moves = [(p + q, a, s, b, t) for p, a, s in up for q, b, t in down if a != b and np.isfinite(p + q)]
        # units that cost nothing come back while there is room
        for _, a, s, b, t in sorted((m for m in moves if m[0] > 1e-9 or (m[0] >= 0 and m[3] < 0)), reverse=True):
            new = list(level)
            new[a] += s
            if b >= 0:
                new[b] += t
            if holds(new):
                break
        else:
            return level
        level = new
