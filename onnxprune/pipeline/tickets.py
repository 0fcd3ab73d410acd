"""Lottery tickets: networks whose weights that are left stand where the first training stood at a point.

`Weights` makes them by masks, `Channels` by cuts. Both read the file of the round before, so that an experiment that
was stopped goes on to the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import Evaluator, Function
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.experiments.book import Book
from onnxprune.experiments.masks import RANDOM, Choice, Masks, choose, left, shuffled
from onnxprune.experiments.rewind import point, rewind
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, load, save
from onnxprune.importance.shown import Ground, by_training
from onnxprune.pipeline.thin import choice_of, fewer_channels, size, without
from onnxprune.pipeline.train import EPOCHS
from onnxprune.progress import Clock, counting
from onnxprune.structure.groups import analyze
from onnxprune.training.options import OWN

if TYPE_CHECKING:
    from onnxprune.training.trainer import Trainer

DENSE, TICKET, REINIT = "dense", "ticket", "reinit"
CONTROLS = {
    REINIT: "the same weights are left, and new ones are trained",
    RANDOM: "as many weights of every layer are left, at random places, from the same start",
}
LOOKS = 40  # at what is held out, of a training: they say how soon it learns
SALT = 1000  # between the seed of initial weights and that of a control's


@dataclass(frozen=True, eq=False)
class Setup:
    """What all trainings of an experiment share. values: options by name; judges: what scores on --evaluate."""

    model: Model
    data: TrainingSet
    values: Mapping[str, Any]
    judges: Sequence[Evaluator | Function]
    clock: Clock

    @property
    def how(self) -> Choice:
        """How single weights are chosen."""
        return choice_of(self.values["importance"], self.values)

    @property
    def by(self) -> Ground:
        """What gradients go by."""
        return by_training(self.data, self.values["threads"], self.values["seed"])

    def trainer(self, model: Model, init: int | Model | None, seed: int) -> Trainer:
        """A training of the whole length."""
        from onnxprune.training.trainer import Trainer  # the rules of all gradients take a while to be read

        v = self.values
        asked = {name: v[name] for name in OWN if v[name] is not None}
        return Trainer(
            model, self.data, steps=v["tune"] or EPOCHS, init=init, augment=v["augment"], seed=seed,
            threads=v["threads"], looks=LOOKS, **asked,
        )  # fmt: skip

    def initial(self, k: int) -> int | Model | None:
        """Initial weights of repetition k."""
        init = self.values["init"]
        return init + k if isinstance(init, int) else init


class Tickets(Protocol):
    """Makes the networks of one seed."""

    def ready(self, round: int, kind: str) -> tuple[Trainer, float, list[str]]:
        """A training that stands where it is to begin, the share of the weights that it has left, and notes."""
        ...


class Weights:
    """Tickets by masks: one training, which goes back, and another one with other initial weights."""

    def __init__(self, setup: Setup, book: Book, k: int) -> None:
        self.setup, self.book, self.k = setup, book, k
        self.known: tuple[int, Masks, list[str]] = 0, {}, []

    @cached_property
    def trainer(self) -> Trainer:
        """The first training."""
        return self.setup.trainer(self.setup.model, self.setup.initial(self.k), self.setup.values["seed"] + self.k)

    @cached_property
    def start(self) -> Mapping[str, Array]:
        """Where every round goes back to."""
        self.trainer.step(at(self.setup, self.trainer))
        return self.trainer.state()

    @cached_property
    def origin(self) -> Model:
        """The network that every round goes back to."""
        rewind(self.trainer, self.start, {})
        return self.trainer.export("weights")

    @cached_property
    def other(self) -> tuple[Trainer, Mapping[str, Array]]:
        """A training with other initial weights, and its start."""
        seed = self.setup.values["seed"] + self.k
        t = self.setup.trainer(self.setup.model, self.k + SALT, seed)
        return t, t.state()

    def masks(self, round: int) -> tuple[Masks, list[str]]:
        """What is left in a round, by the network of the one before."""
        if self.known[0] != round:
            setup, values = self.setup, self.setup.values
            share = 1 - (1 - values["rate"]) ** round
            before = load(trained_file(self.book, self.k, round - 1))
            setup.clock("score")
            found, notes = choose(
                before, list(self.trainer.weights), share, setup.how, setup.by, counting(setup.clock.progress, "score"),
                self.origin,
            )  # fmt: skip
            self.known = round, found, notes
        return self.known[1], self.known[2]

    def ready(self, round: int, kind: str) -> tuple[Trainer, float, list[str]]:
        """See `Tickets`."""
        if kind == DENSE:
            save(self.origin, ticket_file(self.book, self.k, round))
            rewind(self.trainer, self.start, {})
            return self.trainer, 1.0, [*self.trainer.notes]
        masks, notes = self.masks(round)
        if kind == REINIT:
            trainer, start = self.other
            rewind(trainer, start, masks)
            return trainer, left(masks), []
        trained = None
        if self.setup.values["rewind_what"] == "schedule":
            trained = load(trained_file(self.book, self.k, 0 if kind == RANDOM else round - 1))
        if kind == RANDOM:
            rewind(self.trainer, self.start, shuffled(masks, self.setup.values["seed"] + self.k + round), trained)
            return self.trainer, left(masks), []
        rewind(self.trainer, self.start, masks, trained)
        save(self.trainer.export("weights"), ticket_file(self.book, self.k, round))
        return self.trainer, left(masks), notes


class Channels:
    """Tickets by cuts: a smaller network, and a training of it, every round. What the optimizer knew at the point of
    rewinding is not cut, it begins anew."""

    def __init__(self, setup: Setup, book: Book, k: int) -> None:
        self.setup, self.book, self.k = setup, book, k
        self.seed = setup.values["seed"] + k

    def ready(self, round: int, kind: str) -> tuple[Trainer, float, list[str]]:
        """See `Tickets`."""
        file, values = ticket_file(self.book, self.k, round), self.setup.values
        if kind == DENSE:
            first = self.setup.trainer(self.setup.model, self.setup.initial(self.k), self.seed)
            first.step(at(self.setup, first))
            save(first.export("weights"), file)
            return first, 1.0, [*first.notes]
        stays = values["rewind_what"] == "schedule"
        if kind == TICKET:
            self.cut(round, file)
        ticket = load(file)
        share = size(ticket) / size(self.setup.model)
        if kind == REINIT:
            return self.setup.trainer(ticket, self.k + SALT, self.seed), share, []
        if kind == RANDOM:
            ticket = self.at_random(ticket, round)
        elif stays:
            ticket = load(self.trained_cut(round))
        trainer = self.setup.trainer(ticket, None if values["init"] is None else ticket, self.seed)
        trainer.run.position = at(self.setup, trainer)
        trainer.run.forget()
        return trainer, share, []

    def trained_cut(self, round: int) -> Path:
        """The file of the trained network of the round before, cut."""
        return ticket_file(self.book, self.k, round).with_suffix(".trained.onnx")

    def cut(self, round: int, file: Path) -> None:
        """Write the ticket of a round: the one before without the channels that matter least after its training."""
        values = self.setup.values
        self.setup.clock("plan")
        before = load(trained_file(self.book, self.k, round - 1))
        chosen = fewer_channels(before, values["rate"], values["importance"], values, self.seed)
        save(chosen.model, self.trained_cut(round))
        start = load(ticket_file(self.book, self.k, round - 1))
        save(without(start, chosen.plan.keep, self.seed), file)

    def at_random(self, ticket: Model, round: int) -> Model:
        """The first start with as many channels as a ticket, at random places."""
        start = load(ticket_file(self.book, self.k, 0))
        sizes = {g.name: g.size for g in analyze(ticket).groups}
        rng = np.random.default_rng([self.seed, round, 5])
        keep = {}
        for g in analyze(start).groups:
            if sizes.get(g.name, g.size) < g.size:
                keep[g.name] = np.isin(np.arange(g.size), rng.permutation(g.size)[: sizes[g.name]])
        return without(start, keep, self.seed)


def at(setup: Setup, trainer: Trainer) -> int:
    """The step that rounds go back to. Raises `OptionError` for one that lies behind the last."""
    step = point(setup.values["rewind"])(trainer.steps)
    if step >= trainer.steps:
        raise OptionError(f"--rewind {setup.values['rewind']}: a training has {trainer.steps} steps; give fewer")
    return step


def trained_file(book: Book, k: int, round: int) -> Path:
    """The trained network of a round."""
    return book.folder / f"seed-{k}" / f"round-{round:02d}.onnx"


def ticket_file(book: Book, k: int, round: int) -> Path:
    """What it was trained from."""
    return book.folder / f"seed-{k}" / f"round-{round:02d}.ticket.onnx"
