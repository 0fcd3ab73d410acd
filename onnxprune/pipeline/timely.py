"""`--target-latency`: a model of one kind whose measured time holds the target.

A plan is chosen by predicted times (latency/model.py) and a level database of units and of zeros; what it would take is
then measured on a draft, the model cut and masked but not recovered, beside the original and in turn with it, and the
target that the prediction must hold is corrected until the measured one does. The model that is made in full is
measured again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxprune.allocation.budget import BUDGETS, LATENCY, left_by
from onnxprune.allocation.spread import Choice
from onnxprune.errors import OptionError, Unreachable
from onnxprune.evaluation.measure import SECONDS, latencies
from onnxprune.formats.dense import DENSE
from onnxprune.options import quantity
from onnxprune.pipeline.make import limits_of
from onnxprune.pipeline.setup import Pruning, Setup
from onnxprune.pipeline.ways import Way, Ways, draft_of, made_of
from onnxprune.runtime.benchmark import plural
from onnxprune.runtime.timing import LEAST_ROUNDS, Latency

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


class Timely:
    """Models that hold a time, a way each."""

    def __init__(self, setup: Setup, ways: Ways) -> None:
        self.setup, self.ways, self.timer, self.limits = setup, ways, Timer(setup), limits_of(setup)
        predicted = setup.meters[LATENCY](setup.analysis.keep_ids({}))
        share = self.limits[LATENCY] / predicted
        self.whole = predicted, 1 / share  # seconds of the original, and over the target

    def __call__(self, way: Way) -> tuple[Pruning, float]:
        """The whole model of a way that holds the target, and its time over the original's; raises `Unreachable`."""
        if self.setup.options.speed.elsewhere:
            return self.foretold(way)
        most = self.whole[0]
        for _ in range(AGAIN + 1):
            found = self.settled(way, most)
            made = made_of(self.setup, way, found.choice)
            took = self.timer(made)
            over = self.timer.over(took)
            if over <= 1:
                return made, took.ratio
            most = found.predicted / over
        raise Unreachable(
            f"--target-latency {self.timer.asked}: {way} held it while they were tried, and the finished model takes "
            f"{took.ratio:.1%} of the original's time; ask for a little more, or give --repeat"
        )

    def foretold(self, way: Way) -> tuple[Pruning, float]:
        """The whole model of a way that is predicted to hold the target on another device, and that prediction."""
        choice = self.ways.choose(way, self.limits)
        made = made_of(self.setup, way, choice)
        seconds, whole = self.predicted(way, choice), self.whole[0]
        assert self.setup.speed is not None
        where = self.setup.speed.table.device
        note = (
            f"--target-latency {self.timer.asked}: {1e3 * seconds:.3g} ms, {seconds / whole:.1%} of the original's, "
            f"are predicted for {where.cpu}, {plural(where.threads, 'thread')}; measure the file there"
        )
        return replace(made, notes=(*made.notes, note)), seconds / whole

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
            made = draft_of(self.setup, way, choice)
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
        return self.setup.meters[LATENCY](ids, left_by(way.switches, choice.settings, LATENCY))


def stays_dense(made: Pruning, choice: Choice) -> set[str]:
    """Layers whose zeros were asked for, and that are no faster with them in the whole model."""
    if made.sparsity is None:
        return set()
    return {row.node for row in made.sparsity.layers if row.node in choice.settings and row.format == DENSE.name}
