"""Lottery tickets: train, prune, rewind, again; beside controls, over several seeds.

    train -> choose what is left -> rewind -> train -> ...

`tickets` reads top to bottom: it makes the trainings that are not in the book yet. pipeline/tickets.py says what each
begins from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from onnxprune import __version__
from onnxprune.cache import digest as digest_of
from onnxprune.cache import replace as replace_file
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.samples import unused
from onnxprune.errors import OptionError, blamed
from onnxprune.evaluation.metrics import Evaluator, scored
from onnxprune.experiments.book import Book, Row, means
from onnxprune.experiments.criteria import CRITERIA
from onnxprune.experiments.rewind import WHAT as GOES_BACK
from onnxprune.experiments.rewind import point
from onnxprune.formats.patterns import NMPattern
from onnxprune.graph.io import Model, load, save
from onnxprune.options import (
    HOW,
    TUNE,
    WHAT,
    Option,
    choice,
    declared,
    integer,
    number,
    option,
    path,
    shared,
    switch,
)
from onnxprune.page import charts
from onnxprune.pipeline.options import OPTIONS, called
from onnxprune.pipeline.parts import Sharing, depends
from onnxprune.pipeline.thin import SCORES, refuse_idle
from onnxprune.pipeline.tickets import (
    CONTROLS,
    DENSE,
    REINIT,
    TICKET,
    Channels,
    Setup,
    Tickets,
    Weights,
    trained_file,
)
from onnxprune.pipeline.train import EPOCHS, judges_of, refuse_time, refuse_unused, samples_of
from onnxprune.progress import Clock, Progress, counting, silent
from onnxprune.runtime.jobs import Job, Where, elsewhere, threads_of
from onnxprune.runtime.jobs import run as run_jobs
from onnxprune.sparsity.amounts import maskable
from onnxprune.sparsity.options import PLAIN_SOLVER, Zeros
from onnxprune.training.options import OWN
from onnxprune.training.weights import trainable

MORE = ("rounds", "seeds", "controls")  # there may be more in the next run
OF_WEIGHTS = {**SCORES, **{name: row.help for name, row in CRITERIA.items()}}
CUT_IMPORTANCE = next(o for o in OPTIONS if o.name == "importance")


def _init(value: Any) -> int | Path | Model:
    """A seed, or a file of weights."""
    if isinstance(value, Model):
        return value
    try:
        return int(integer("a seed", 0)(value))
    except ValueError:
        return Path(path(value))


def _controls(value: Any) -> tuple[str, ...]:
    """Names separated by commas, or none."""
    names = [n.strip() for n in value.split(",")] if isinstance(value, str) else list(value)
    if names == ["none"]:
        return ()
    if not names or any(n not in CONTROLS for n in names) or len(set(names)) < len(names):
        raise ValueError(f"expected none, or some of {', '.join(CONTROLS)} with commas between")
    return tuple(n for n in CONTROLS if n in names)


def _importance(value: Any) -> str:
    """A name of `OF_WEIGHTS`, or of a cut's importance."""
    name = str(value).strip().lower()
    return name if name in OF_WEIGHTS else str(CUT_IMPORTANCE.read(name))


def _rewind(value: Any) -> str:
    point(value)
    return str(value)


@dataclass(frozen=True)
class Lottery:
    """What is pruned and what goes back, round by round."""

    rounds: int = option(
        10, integer("a whole number of rounds, 1 or more", 1), panel=WHAT, metavar="N", unit="rounds",
        help="How often to prune and train again, after the dense network was trained.",
    )  # fmt: skip
    rate: float = option(
        0.2, number("a fraction between 0 and 1, as 0.2", 0, 1, above=True, below=True), panel=WHAT, metavar="R",
        unit="fraction removed", help="The part of what is left that goes in a round.",
    )  # fmt: skip
    structured: bool = option(
        False, switch, panel=WHAT, help="Remove channels, and cut them out, in place of single weights."
    )
    init: Any = option(
        None, _init, panel=TUNE, metavar="FILE|SEED", otherwise="needed, but for --rewind-what schedule",
        help="Initial weights: new ones by a seed (--seeds counts on from it), or those of an ONNX file of this graph.",
    )  # fmt: skip
    rewind: str = option(
        "0", _rewind, panel=TUNE, metavar="STEP|PERCENT",
        help="Where every round goes back to: a step of the first training, or a percentage of its steps; 0 is its "
        "start.",
    )  # fmt: skip
    rewind_what: str = option(
        "weights", choice(GOES_BACK), panel=TUNE, metavar="WHAT",
        help="What goes back. With schedule and without --init the model counts as trained, and is pruned first.",
    )  # fmt: skip
    controls: Any = option(
        tuple(CONTROLS), _controls, panel=HOW, metavar="A,B|none", otherwise=",".join(CONTROLS),
        help="What is trained beside every ticket: " + "; ".join(f"{n}: {t}" for n, t in CONTROLS.items()) + ".",
    )  # fmt: skip
    seeds: int = option(
        1, integer("a whole number of seeds, 1 or more", 1), panel=HOW, metavar="N", unit="seeds",
        help="Repeat everything with so many seeds, of the weights and of the order of the samples.",
    )  # fmt: skip
    importance: str = option(
        PLAIN_SOLVER, _importance, panel=HOW, metavar="NAME",
        help=f"What is left of single weights: {', '.join(OF_WEIGHTS)}; with --structured as of a cut.",
    )  # fmt: skip


LOTTERY = (
    *shared(
        OPTIONS, ("train", "train_labels", "evaluate", "labels", "metric"),
        {
            "train": "Samples to train on, with labels: any source that --calibration takes, read as it is needed. An "
            "eighth, at most 512, is held out.",
            "evaluate": "Score every network on this: samples with labels, or module:function in Python.",
        },
    ),
    *declared(Lottery),
    *shared(
        declared(Sharing), ("jobs",),
        {
            "jobs": "How many trainings at a time, in processes of this machine that share its cores (each takes one "
            "thread where --threads does not say more), or on the workers of a Dask or Ray cluster of yours, one each. "
            "All must see the files and the folder by the same names; a worker that is lost costs what it was at.",
        },
    ),
    *shared(
        OPTIONS,
        (
            "pattern", "sparsity_allocate", "ignore", "round_to", "tune", *OWN, "augment",
            *(f.name for f in fields(Preprocess)), "seed", "threads",
        ),
        {
            "tune": f"How much a training is: so many epochs, or 500steps; {EPOCHS} epochs where nobody says.",
            "pattern": "How zeros lie: N:M is reached in the first round.",
            "sparsity_allocate": "Where the zeros go: by one threshold (global), or layer by layer.",
            "round_to": "With --structured, widths are multiples of this.",
            "learning_rate": "The highest rate, after --warmup.",
        },
    ),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The experiment
# ---------------------------------------------------------------------------------------------------------------------


def lottery(
    source: Any, train: Any, evaluate: Any, output: Path | str, *, progress: Progress = silent, **options: Any
) -> dict[str, Any]:
    """Search lottery tickets of a model, as `onnxprune lottery` does; the report, plain data.

    source: path of an ONNX file, or what `load` takes; train, evaluate, options: as of the command; output: the folder
    that gets tickets and table, and from which a run that was stopped goes on. Raises `UserError`, and `TypeError` for
    an unknown option.
    """
    given = {"train": train, "evaluate": evaluate, **options}
    with called("lottery", LOTTERY, given) as (values, preprocess):
        return tickets(source, Path(output), values, preprocess, progress)


def tickets(
    source: Any, folder: Path, values: Mapping[str, Any], preprocess: Preprocess, progress: Progress
) -> dict[str, Any]:
    """The experiment, in the words of the command line. values: all options of `LOTTERY` by name."""
    values = {**values, "threads": threads_of(values["jobs"], values["threads"])}
    laboratory = Laboratory.of(source, folder, values, preprocess, Clock(progress))
    setup, book = laboratory.setup, laboratory.book
    if began := len(book.rows):
        setup.clock.note(f"going on after {began} trainings, which {book.path} holds")
    whole = [(k, *each) for k in range(values["seeds"]) for each in trainings(values)]
    at: Where = values["jobs"]

    def done(row: Row) -> None:
        book.add(row)
        setup.clock.note(f"{sum(book.of(*each) is not None for each in whole)} of {len(whole)}: {told(row)}")

    for todo in ([each for each in those if book.of(*each) is None] for those in stages(whole, at)):
        if at.serial:
            for each in todo:
                done(laboratory.trained(*each))
            continue
        setup.clock("tune")
        function = elsewhere(worker, source, folder, values, preprocess)
        jobs = [Job(digest_of("training", dict(book.settings), each), function, each) for each in todo]
        run_jobs(jobs, at, folder / "jobs", lambda _, row: done(Row.of(row)), option="-o")
    setup.clock("")
    return report_of(setup, book)


def stages(whole: Sequence[tuple[int, int, str]], at: Where) -> list[list[tuple[int, int, str]]]:
    """Trainings (seed, round, kind) that need what those before made, and nothing of each other; all in one, in their
    order, where one is made after the other. A ticket needs that of the round before, controls the ticket beside."""
    if at.serial:
        return [list(whole)]
    of = [round + (kind in CONTROLS) for _, round, kind in whole]
    return [[x for x, n in zip(whole, of, strict=True) if n == stage] for stage in range(max(of) + 1)]


@dataclass
class Laboratory:
    """What makes the trainings of an experiment, and remembers what those of one seed have in common."""

    setup: Setup
    book: Book
    known: dict[int, Tickets] = field(default_factory=dict)

    @staticmethod
    def of(
        source: Any, folder: Path, values: Mapping[str, Any], preprocess: Preprocess, clock: Clock
    ) -> Laboratory:  # fmt: skip
        """That of a folder, which is made where it is not there."""
        setup = prepared(source, values, preprocess, clock)
        book = Book(folder, settings_of(setup, LOTTERY, MORE))
        book.open()
        return Laboratory(setup, book)

    def trained(self, k: int, round: int, kind: str) -> Row:
        """One training."""
        if k not in self.known:
            make = Channels if self.setup.values["structured"] else Weights
            self.known = {k: make(self.setup, self.book, k)}
        return trained(self.setup, self.book, self.known[k], k, round, kind)


def worker(
    source: Any, folder: Path, values: Mapping[str, Any], preprocess: Preprocess
) -> Callable[..., Mapping[str, Any]]:
    """What makes trainings (seed, round, kind) in a worker."""
    laboratory = Laboratory.of(source, folder, values, preprocess, Clock(silent))
    return lambda *each: asdict(laboratory.trained(*each))


def trainings(values: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Round and kind of every training of a seed, in their order."""
    rounds = range(1, values["rounds"] + 1)
    return [(0, DENSE), *((r, kind) for r in rounds for kind in (TICKET, *values["controls"]))]


def trained(setup: Setup, book: Book, make: Tickets, k: int, round: int, kind: str) -> Row:
    """One training, scored; the networks of rounds are written, and scored as they were."""
    values, file = setup.values, trained_file(book, k, round)
    file.parent.mkdir(parents=True, exist_ok=True)
    trainer, share, notes = make.ready(round, kind)
    setup.clock("tune")
    start = time.perf_counter()
    if kind == DENSE and values["init"] is None:  # it counts as trained
        model, steps = setup.model, 0
        loss, best = trainer.evaluate()["loss"], 0
    else:
        trainer.train(counting(setup.clock.progress, "tune"))
        if trainer.position < trainer.steps:
            raise KeyboardInterrupt
        model, steps = trainer.export(), trainer.steps
        loss, best = trainer.run.least, trainer.run.best
    seconds = time.perf_counter() - start
    if kind in (DENSE, TICKET):
        setup.clock("save")
        save(model, file)
        model = load(file)
    setup.clock("evaluate")
    scores = {score.metric: score.value for score in scored(setup.judges, model)}
    return Row(k, round, kind, share, loss, best, steps, scores, seconds, tuple(notes))


def prepared(source: Any, values: Mapping[str, Any], preprocess: Preprocess, clock: Clock) -> Setup:
    """Model, data and what scores. Raises `OptionError`."""
    refuse(values)
    clock("load")
    model = load(source)
    init = values["init"]
    if isinstance(init, Path):
        values = {**values, "init": load(init)}
    clock("calibration")
    data = samples_of(model, values, preprocess)
    weights = sum(int(model.weights[x.initializer].size) for x in maskable(model, trainable(model)))
    if not values["structured"] and weights * (1 - values["rate"]) ** values["rounds"] < 1:
        raise OptionError(
            f"--rate {values['rate']:g} leaves none of {weights} weights after {values['rounds']} rounds; give fewer "
            "--rounds, or a lower rate"
        )
    judges = judges_of(model, values, preprocess)
    if line := unused(preprocess, data.samples, *(j.samples for j in judges if isinstance(j, Evaluator))):
        raise OptionError(line)
    return Setup(model, data, values, judges, clock)


def refuse(values: Mapping[str, Any]) -> None:
    """Raise `OptionError` for what lacks, or has no effect."""
    refuse_unused(values)
    if values["evaluate"] is None:
        raise OptionError("lottery: what scores the networks is for --evaluate SRC to say, samples with labels")
    if values["init"] is None and values["rewind_what"] == "weights":
        raise OptionError(
            "--rewind-what weights goes back to initial weights, which a trained file does not hold: give --init FILE "
            "with them, or --init SEED for new ones"
        )
    if values["init"] is None and REINIT in values["controls"]:
        raise OptionError("--controls reinit needs --init FILE|SEED; --controls random does without")
    refuse_time(values)
    refuse_idle(values, values["structured"], "--structured")
    name = values["importance"]
    if values["structured"] and name in CRITERIA and name not in SCORES:
        raise OptionError(f"--importance {name} is of single weights; leave --structured out")
    if not values["structured"] and name not in OF_WEIGHTS:
        raise OptionError(
            f"--importance {name} is of units: add --structured, or choose one of {', '.join(OF_WEIGHTS)}"
        )
    if isinstance(Zeros(pattern=values["pattern"]).shape, NMPattern) and values["rounds"] > 1:
        raise OptionError(f"--pattern {values['pattern']} is reached in one round: give --rounds 1")


# ---------------------------------------------------------------------------------------------------------------------
# What is said of it
# ---------------------------------------------------------------------------------------------------------------------


def settings_of(setup: Setup, known: Sequence[Option], free: Collection[str]) -> dict[str, Any]:
    """All that a training depends on. known: options of the command; free: those that it does not depend on."""
    other = {"train", "train_labels", "evaluate", "labels", "init", "threads", "jobs", *free}
    return depends(
        known, setup.values, other, init=setup.values["init"], model=setup.model, train=setup.data,
        evaluate=setup.judges,
    )  # fmt: skip


def told(row: Row) -> str:
    """A training in one line."""
    scores = ", ".join(f"{name} {value:.4g}" for name, value in row.scores.items())
    return f"seed {row.seed}, round {row.round}, {row.kind}: {row.left:.2%} of the weights, {scores}"


def report_of(setup: Setup, book: Book) -> dict[str, Any]:
    """Plain data: settings, all rows, their means; and the plot."""
    kinds = (DENSE, TICKET, *CONTROLS)
    rows = sorted(book.rows, key=lambda r: (r.seed, r.round, kinds.index(r.kind)))
    metric = next(iter(rows[0].scores))
    notes = list(dict.fromkeys(f"seed {r.seed}, round {r.round}: {n}" for r in rows for n in r.notes))
    report = {
        "version": __version__, "folder": str(book.folder), "settings": dict(book.settings), "metric": metric,
        "rows": [asdict(r) for r in rows], "means": [asdict(m) for m in means(rows, metric)], "notes": notes,
        "files": {"table": str(book.path), "curve": str(book.folder / "curve.svg")},
        "seconds": dict(setup.clock.seconds),
    }  # fmt: skip
    with blamed(f"-o {book.folder}", refusals=(OSError,)):
        replace_file(book.folder / "curve.svg", charts.tickets(report).encode())
    return report


__all__ = ["LOTTERY", "Lottery", "lottery", "tickets"]
