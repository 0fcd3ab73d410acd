"""`--target-latency`: the model of least damage whose measured time holds the target.

A plan is chosen by predicted times (latency/model.py) and a level database of units and of zeros; what it would take is
then measured on a draft, the model cut and masked but not recovered, beside the original and in turn with it, and the
target that the prediction must hold is corrected until the measured one does. Which ways of making it faster come
together is no matter of prediction alone: the best plan of each kind is made in full, and what its outputs suffer on
the samples decides. The one that is kept is measured again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxprune.allocation.budget import BUDGETS, LATENCY
from onnxprune.allocation.outcome import Tried
from onnxprune.allocation.spread import Choice
from onnxprune.errors import NothingToPrune, OptionError, Unreachable, UserError
from onnxprune.evaluation.fidelity import fidelity
from onnxprune.evaluation.measure import SECONDS, latencies
from onnxprune.evaluation.metrics import CONFIDENCE, Drop, drop
from onnxprune.formats.dense import DENSE
from onnxprune.options import quantity
from onnxprune.pipeline.make import limits_of, make, plan_of
from onnxprune.pipeline.setup import Pruning, Setup
from onnxprune.pipeline.ways import Way, Ways
from onnxprune.pipeline.zeros import with_zeros
from onnxprune.progress import Clock, silent
from onnxprune.runtime.benchmark import plural
from onnxprune.runtime.timing import LEAST_ROUNDS, Latency
from onnxprune.sparsity.options import PLAIN_SOLVER

DRAFTS = 8  # of one way
AIM = 0.985  # of the target, that a draft is to take
SAME = 1e-4  # by which predicted seconds of one choice differ
AGAIN = 2  # times that a model is made anew whose draft held the target, where it does not itself
CLOSE = 0.95  # of the target: what takes less was cut too much, unless no choice lies between
NOISE = 0.05  # half interval of the ratio, over it, beyond which nothing can be told
LONGER = (1, 2, 4)  # times SECONDS that is measured, as long as it is too noisy


@dataclass(frozen=True, eq=False)
class Found:
    """A choice, and what its draft took; predicted: seconds of a run."""

    choice: Choice
    took: Latency
    predicted: float


class Timer:
    """Times models beside the original. target: part of its time, or seconds of a run where `absolute`."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.asked = setup, setup.options.cut.targets[LATENCY]
        self.target, unit = quantity(self.asked, BUDGETS[LATENCY].units)
        self.absolute = unit not in ("", "%") or self.target > 1

    def __call__(self, made: Pruning) -> Latency:
        """What a model takes; raises `OptionError` where the machine is too noisy to tell."""
        assert made.model is not None
        analysis, o = self.setup.analysis, self.setup.options
        pairs = [(feeds, analysis.narrow(feeds, made.keep)) for feeds in made.feeds]
        for longer in LONGER:
            times, notes = latencies(
                self.setup.original.model, made.model, pairs, o.check.threads,
                seconds=SECONDS * longer * o.speed.repeat, least=LEAST_ROUNDS,
            )  # fmt: skip
            if not times:
                raise OptionError(f"--target-latency: {notes[0]}")
            took = times["after"]
            if took.interval is not None and took.interval[1] - took.interval[0] <= 2 * NOISE * took.ratio:
                return took
        shown = "too few runs" if took.interval is None else "{:.0%} to {:.0%}".format(*took.interval)
        raise OptionError(
            f"--target-latency {self.asked}: this machine is too noisy to tell what a run takes ({shown} of the "
            f"original's time, with 90% confidence); stop what else runs on it, or give --repeat {2 * o.speed.repeat}"
        )

    def over(self, took: Latency) -> float:
        """The upper end of what was measured, over the target."""
        assert took.interval is not None
        return took.interval[1] / self.limit(took)

    def limit(self, took: Latency) -> float:
        """The target as a part of the original's time."""
        return self.target * took.ratio / took.median if self.absolute else self.target


class Bracket:
    """The drafts of a way, by predicted seconds: the best that holds the target, and the least that does not.

    whole: predicted seconds of the original, and its time over the target; most: seconds that may be asked for.
    """

    def __init__(self, whole: tuple[float, float], most: float) -> None:
        self.points = [whole]
        self.low, self.high = 0.0, most * (1 + SAME)
        self.good: Found | None = None
        self.nearest: float | None = None  # measured, over the original's time

    def measured(self, found: Found, over: float) -> None:
        """A draft, and its time over the target."""
        self.points.append((found.predicted, over))
        self.nearest = min(found.took.ratio, self.nearest or np.inf)
        if over > 1:
            self.high = min(self.high, found.predicted)
        elif self.good is None or found.predicted > self.good.predicted:
            self.good, self.low = found, max(self.low, found.predicted)

    def unreachable(self, goal: float) -> bool:
        """That no choice is predicted to take so little: whether there is anything above it that was not tried."""
        self.low = max(self.low, goal)
        return self.good is None and self.high > self.low * (1 + SAME)

    def knows(self, predicted: float) -> bool:
        """Whether a draft of these seconds was measured."""
        return any(abs(x - predicted) <= SAME * predicted for x, _ in self.points)

    @property
    def middle(self) -> float:
        """Between what holds and what does not."""
        return (self.low + self.high) / 2

    def next(self) -> float:
        """The seconds to ask for next: where the line through the two drafts nearest to the target meets it, as far as
        that lies between what holds and what does not."""
        (a, over_a), (b, over_b) = sorted(self.points, key=lambda p: abs(p[1] - AIM))[:2]
        goal = b + (AIM - over_b) * (a - b) / (over_a - over_b) if over_a != over_b else self.middle
        return goal if self.low < goal < self.high else self.middle


def on_time(setup: Setup, ways: Ways) -> tuple[Pruning, Drop | None]:
    """The model of least damage that holds the target, as it was measured, and what it lost where that is bounded.

    Raises `OptionError` where it loses more than --max-drop.
    """
    made, limit = Search(setup, ways)(), setup.options.scoring.max_drop
    if limit is None or setup.evaluator is None or setup.score is None or made.model is None:
        return made, None
    lost = drop(setup.score, setup.evaluator(made.model))  # on samples that the search never saw
    if not lost.holds(float(limit)):
        bound = "" if lost.bound is None else f" (at most {lost.bound:.4f} with {CONFIDENCE:.0%} confidence)"
        raise OptionError(
            f"--max-drop {limit:g}: the best model that holds --target-latency {setup.options.cut.targets[LATENCY]} "
            f"loses {lost.drop:.4f} of {lost.metric}{bound}; allow more time, or a larger drop; nothing was written"
        )
    return made, lost


class Search:
    """The search for one target."""

    def __init__(self, setup: Setup, ways: Ways) -> None:
        o = setup.options
        wet = replace(o, check=replace(o.check, dry_run=False))  # measured is what would be written
        self.setup = replace(setup, options=wet)
        self.ways, self.timer, self.limits = ways, Timer(setup), limits_of(setup)
        predicted = setup.meters[LATENCY](setup.analysis.keep_ids({}))
        share = self.limits[LATENCY] / predicted
        self.whole = predicted, 1 / share  # seconds of the original, and over the target

    def __call__(self) -> Pruning:
        """See `on_time`."""
        best: tuple[float, float, int, Pruning] | None = None
        problems: list[UserError] = []
        tried: list[Tried] = []
        for way, choice in self.ways.ranked(self.limits):
            try:
                made, took = self.held(way)
            except (Unreachable, NothingToPrune) as e:
                tried.append(Tried(str(way), choice.damage, why=str(e)))
                problems.append(e)
                continue
            done = way if made.sparsity is not None else replace(way, method="")  # no zeros may have paid
            suffered = self.suffered(made)
            if best is None or (suffered or 0.0, took.ratio) < best[:2]:
                best = suffered or 0.0, took.ratio, len(tried), made
            tried.append(Tried(str(done), choice.damage, suffered, took.ratio))
        if best is None:
            raise problems[0]
        _, _, k, made = best
        tried[k] = replace(tried[k], chosen=True)
        return replace(made, tried=(*tried, *self.ways.left, *self.ways.idle))

    def held(self, way: Way) -> tuple[Pruning, Latency]:
        """The whole model of a way that holds the target, and what it takes; raises `Unreachable`."""
        if self.setup.options.speed.elsewhere:
            return self.foretold(way)
        most = self.whole[0]
        for _ in range(AGAIN + 1):
            found = self.settled(way, most)
            made = make(with_zeros(self.setup, found.choice.zeros, way.method), plan_of(self.setup, found.choice.keeps))
            took = self.timer(made)
            over = self.timer.over(took)
            if over <= 1:
                return made, took
            most = found.predicted / over
        raise Unreachable(
            f"--target-latency {self.timer.asked}: {way} held it while they were tried, and the finished model takes "
            f"{took.ratio:.1%} of the original's time; ask for a little more, or give --repeat"
        )

    def foretold(self, way: Way) -> tuple[Pruning, Latency]:
        """The whole model of a way that is predicted to hold the target on another device."""
        choice = self.ways.choose(way, self.limits)
        made = make(with_zeros(self.setup, choice.zeros, way.method), plan_of(self.setup, choice.keeps))
        seconds, whole = self.predicted(way, choice), self.whole[0]
        assert self.setup.speed is not None
        where = self.setup.speed.table.device
        note = (
            f"--target-latency {self.timer.asked}: {1e3 * seconds:.3g} ms, {seconds / whole:.1%} of the original's, "
            f"are predicted for {where.cpu}, {plural(where.threads, 'thread')}; measure the file there"
        )
        return replace(made, notes=(*made.notes, note)), Latency(seconds, seconds, 0, where.threads, seconds / whole)

    def settled(self, way: Way, most: float) -> Found:
        """The choice of a way whose draft holds the target most narrowly; most: predicted seconds that it may have.

        What is predicted and what is measured grow together, but not in proportion. So the seconds that are asked of
        the prediction come from the drafts: on the line through those nearest to the target, the first through the
        original, which is known to take what it takes.
        """
        goal, bracket = min(self.limits[LATENCY], most), Bracket(self.whole, most)
        without: set[str] = set()
        for _ in range(DRAFTS):
            try:
                choice = self.ways.choose(way, {**self.limits, LATENCY: goal}, without)
            except Unreachable:
                if bracket.nearest is None:
                    raise
                if not bracket.unreachable(goal):
                    break
                goal = bracket.middle
                continue
            predicted = self.predicted(way, choice)
            if bracket.knows(predicted):  # no choice lies between
                if bracket.good is not None or predicted < bracket.low * (1 + SAME):
                    break
                goal = predicted * (1 - SAME)
                continue
            made = self.draft(way, choice)
            dense = stays_dense(made, choice)
            if dense:  # zeros that do not pay are not made
                without |= dense
                continue
            took = self.timer(made)
            bracket.measured(Found(choice, took, predicted), self.timer.over(took))
            if bracket.good is not None and bracket.good.took.ratio >= CLOSE * self.timer.limit(took):
                break
            goal = bracket.next()
        if bracket.good is None:
            least = "none was tried" if bracket.nearest is None else f"{bracket.nearest:.1%} of the original's time"
            raise Unreachable(
                f"--target-latency {self.timer.asked} cannot be reached by {way}: the least that was measured is "
                f"{least}; allow more with --max-ratio, ask for less, or see what is pinned with `onnxprune inspect`"
            )
        return bracket.good

    def predicted(self, way: Way, choice: Choice) -> float:
        """Seconds of a run of a choice, as predicted."""
        ids = self.setup.analysis.keep_ids(choice.keeps)
        return self.setup.meters[LATENCY](ids, way.left(choice, LATENCY))

    def draft(self, way: Way, choice: Choice) -> Pruning:
        """What a choice takes: cut and masked by magnitude, but neither recovered, tuned nor checked."""
        o = self.setup.options
        quick = replace(o, check=replace(o.check, verify=False, dry_run=False), training=replace(o.training, tune=None))
        plain = replace(
            self.setup, options=quick, data=None, recipe=replace(self.setup.recipe, recover="none"),
            clock=Clock(silent),
        )  # fmt: skip
        plain = with_zeros(plain, choice.zeros, way.method)
        spec = replace(plain.spec, zeros=replace(plain.spec.zeros, solver=PLAIN_SOLVER), recover=False, cache=None)
        return make(replace(plain, spec=spec), plan_of(plain, choice.keeps))

    def suffered(self, made: Pruning) -> float | None:
        """What the outputs suffer, on the samples; None without any, where there is but one way."""
        if self.setup.data is None or made.model is None:
            return None
        return fidelity(self.setup.original, made.keep, made.model, self.setup.data).kl


def stays_dense(made: Pruning, choice: Choice) -> set[str]:
    """Layers whose zeros were asked for, and that are no faster with them in the whole model."""
    if made.sparsity is None:
        return set()
    return {row.node for row in made.sparsity.layers if row.node in choice.zeros and row.format == DENSE.name}
