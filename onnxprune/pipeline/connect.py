"""How two models of one graph are connected, and from which step of a training on its end does not depend on the order
of the samples: the experiments of `onnxprune connect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from onnxprune import __version__
from onnxprune.cache import digest as digest_of
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.samples import unused
from onnxprune.errors import OptionError
from onnxprune.evaluation.metrics import METRICS, Evaluator, Function, metric_of
from onnxprune.evaluation.training_set import TrainingSet, training_set
from onnxprune.experiments.align import Alignment, align
from onnxprune.experiments.connect import Line, children, difference, line, settling
from onnxprune.experiments.rewind import point
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, load
from onnxprune.options import HOW, WHAT, declared, integer, option, record, shared, switch
from onnxprune.page.charts import line as draw
from onnxprune.pipeline.lottery import LOTTERY, settings_of
from onnxprune.pipeline.options import OPTIONS, called
from onnxprune.pipeline.parts import sharing
from onnxprune.pipeline.tickets import Setup
from onnxprune.pipeline.train import EPOCHS, judges_of, refuse_time, refuse_unused, samples_of
from onnxprune.progress import Clock, Progress, counting, silent
from onnxprune.recovery.normalisation import normalisations
from onnxprune.runtime.jobs import Job, Where, collected, elsewhere, threads_of
from onnxprune.training.options import OWN

if TYPE_CHECKING:
    from onnxprune.training.trainer import Trainer

UNITS = {name: row.unit for name, row in METRICS.items()}


def _spawn(value: Any) -> tuple[str, ...]:
    """Steps, or percentages of the steps, separated by commas."""
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    out = tuple(str(word).strip() for word in words)
    for word in out:
        point(word)
    if not out:
        raise ValueError("expected steps with commas between, as 0,50,200, or percentages of the steps, as 0,2%")
    return out


@dataclass(frozen=True)
class Connecting:
    """Between what a line is drawn, and how."""

    spawn: tuple[str, ...] | None = option(
        None, _spawn, panel=WHAT, metavar="STEP,...", otherwise="the line between A.onnx and B.onnx",
        help="Train MODEL to each of these steps (or percentages of the steps), and from there twice to the end, with "
        "two orders of the samples; the barrier between both.",
    )  # fmt: skip
    align: bool = option(
        False, switch, panel=HOW,
        help="Match the hidden units of the second model to those of the first before the line is drawn: weight "
        "matching through the channel groups (Git Re-Basin). What it computes stays the same.",
    )  # fmt: skip
    points: int = option(
        11, integer("a whole number of points, 3 or more", 3), panel=HOW, metavar="N", unit="points",
        help="Points on the line, evenly spread, with both ends.",
    )  # fmt: skip


OTHERWISE = {
    "train": "none", "tune": f"{EPOCHS} epochs", "loss": "cross-entropy", "init": "the weights of MODEL",
    "learning_rate": "with --init 0.001, of sgd 0.05; else 0.0001, of sgd 0.01",
}  # fmt: skip
_TAKEN = (
    *declared(Connecting),
    *shared(
        OPTIONS, ("train", "train_labels", "evaluate", "labels", "metric"),
        {
            "train": "With --spawn, samples to train on, with labels. Without, samples on which the statistics of "
            "every BatchNormalization are estimated anew at every point.",
            "evaluate": "Score every point on this: samples with labels, or module:function in Python. With --spawn, "
            "where nobody says, the eighth of --train, at most 512, that is held out.",
        },
    ),
    *shared(
        LOTTERY, ("init", "seeds", "tune", *OWN, "augment"),
        {
            "init": "With --spawn: new weights by a seed (--seeds counts on from it), or those of an ONNX file of this "
            "graph.",
            "seeds": "With --spawn: repeat everything with so many seeds, of the weights and of the orders.",
            "tune": "With --spawn: how much a training is, so many epochs, or 500steps. An eighth of the samples, at "
            "most 512, is held out.",
        },
    ),
    *sharing("pairs", "pairs that are done", "--spawn"),
    *shared(
        OPTIONS, (*(f.name for f in fields(Preprocess)), "seed", "threads"),
        {
            "seed": "With --spawn, of the order of the samples, --seeds counts on from it; of the order in which "
            "--align visits groups.",
        },
    ),
)  # fmt: skip
CONNECT = tuple(replace(o, otherwise=OTHERWISE.get(o.name, o.otherwise)) for o in _TAKEN)
SPAWNING = ("init", "seeds", "jobs", "cache", "tune", *OWN, "augment", "train_labels")  # what needs --spawn
DEFAULTS = {o.name: o.default for o in CONNECT}


def connect(a: Any, b: Any = None, *, progress: Progress = silent, **options: Any) -> dict[str, Any]:
    """Scores along the straight line between the weights of two models, or with `spawn` instability analysis of one.

    a, b: paths of ONNX files, or what `load` takes; options: as of `onnxprune connect`. The report is plain data, as of
    --json; `draw` makes the chart of it. Raises `UserError`, and `TypeError` for an unknown option.
    """
    with called("connect", CONNECT, options) as (values, preprocess):
        return connected(a, b, values, preprocess, progress)


def connected(a: Any, b: Any, values: Mapping[str, Any], preprocess: Preprocess, progress: Progress) -> dict[str, Any]:
    """The report of the experiment, in the words of the command line. values: all options of `CONNECT` by name."""
    refuse(values, b is not None)
    clock = Clock(progress)
    clock("load")
    made = _pair(a, b, values, preprocess, clock) if b is not None else _spawned(a, values, preprocess, clock)
    clock("")
    return {
        "version": __version__, "models": [_named(m) for m in (a, b) if m is not None],
        "settings": {o.name: record(values[o.name]) for o in CONNECT if o.name not in ("jobs", "cache")}, **made,
        "seconds": dict(clock.seconds),
    }  # fmt: skip


def refuse(values: Mapping[str, Any], two: bool) -> None:
    """Raise `OptionError` for what lacks, or has no effect."""
    if two and values["spawn"] is not None:
        raise OptionError("--spawn trains both models from one: leave B.onnx out")
    if values["spawn"] is not None:
        if values["train"] is None:
            raise OptionError("--spawn needs --train SRC, samples to train on, with labels")
        refuse_unused(values)
        refuse_time(values)
        return
    if not two:
        raise OptionError(
            "connect: one model has no line; name B.onnx as well, or give --train SRC and --spawn STEP,... to train two"
        )
    known = {o.name: o for o in CONNECT}
    for name in SPAWNING:
        if values[name] != DEFAULTS[name]:
            raise OptionError(f"{known[name].as_typed(values[name])} needs --spawn, which trains")
    if values["evaluate"] is None:
        raise OptionError("connect: what scores the points is for --evaluate SRC to say, samples with labels")
    refuse_unused({**values, "train": values["evaluate"]})


# ---------------------------------------------------------------------------------------------------------------------
# Two models
# ---------------------------------------------------------------------------------------------------------------------


def _pair(a: Any, b: Any, values: Mapping[str, Any], preprocess: Preprocess, clock: Clock) -> dict[str, Any]:
    one, other = load(a), load(b)
    if why := difference(one, other):
        raise OptionError(f"{_named(b)} is no model of the graph of {_named(a)}: {why}")
    clock("calibration")
    judges = judges_of(one, values, preprocess)
    given = [j.samples for j in judges if isinstance(j, Evaluator)]
    data, notes, norms = None, list[str](), len(normalisations(one))
    if values["train"] is not None:
        if not norms:
            raise OptionError("--train has no effect: there is no BatchNormalization whose statistics it could give")
        data = training_set(one, values["train"], preprocess=preprocess, seed=values["seed"], any_labels=True)
        given.append(data.samples)
    elif norms:
        notes.append(
            f"statistics of {norms} BatchNormalizations lie between those of both models, which is not what they are "
            "there: the middle looks worse than it is; --train SRC estimates them anew at every point"
        )
    if line_ := unused(preprocess, *given):
        raise OptionError(line_)
    found, aligned = _line(one, other, values, judges, data, clock)
    notes += _estimated(data, norms)
    return {**_said(found, aligned), "metrics": _metrics(found), "notes": [*notes, *_kept(aligned)]}


def _line(
    a: Model, b: Model, values: Mapping[str, Any], judges: Sequence[Evaluator | Function], data: TrainingSet | None,
    clock: Clock,
) -> tuple[Line, Alignment | None]:  # fmt: skip
    """The line between two models, and how the second was aligned."""
    aligned = None
    if values["align"]:
        clock("align")
        step = align(a, b, seed=values["seed"], progress=counting(clock.progress, "align"))
        aligned, b = step.outcome, step.model
        a = aligned.reference
    clock("line")
    settle = {} if data is None else {"settle": settling(data, threads=values["threads"])}
    return line(a, b, values["points"], judges, progress=counting(clock.progress, "line"), **settle), aligned


def _said(found: Line, aligned: Alignment | None) -> dict[str, Any]:
    """A line as plain data."""
    points = [
        {"share": share, **{name: values[k] for name, values in found.scores.items()}}
        for k, share in enumerate(found.shares)
    ]
    how = None
    if aligned is not None:
        how = {
            "units_moved": dict(aligned.moved), "groups_kept": dict(aligned.kept), "cosine_before": aligned.before,
            "cosine_after": aligned.after, "sweeps": aligned.sweeps, "difference": aligned.difference,
        }  # fmt: skip
    return {"points": points, "barriers": found.barriers, "aligned": how}


def _metrics(found: Line) -> dict[str, str]:
    """Metric -> its unit, "" for a function of the user's."""
    return {name: UNITS.get(name, "") for name in found.scores}


def _kept(aligned: Alignment | None) -> list[str]:
    kept = {} if aligned is None else aligned.kept
    return [f"align: {name} keeps its order: {why}" for name, why in kept.items()]


def _estimated(data: TrainingSet | None, norms: int) -> list[str]:
    made = f"statistics of {norms} BatchNormalizations were estimated anew at every point, on samples of --train"
    return [made] if data is not None and norms else []


# ---------------------------------------------------------------------------------------------------------------------
# Two children of one training
# ---------------------------------------------------------------------------------------------------------------------


def _spawned(a: Any, values: Mapping[str, Any], preprocess: Preprocess, clock: Clock) -> dict[str, Any]:
    at: Where = values["jobs"]
    asked = {**values, "threads": threads_of(at, values["threads"])}
    families = Families.of(a, asked, preprocess, clock)
    setup, parent = families.setup, families.parent(0)
    steps = sorted({_step(word, parent.steps) for word in values["spawn"]})
    of = digest_of("pairs", settings_of(setup, CONNECT, ("spawn", "seeds", "cache")))
    pairs = [(k, step) for k in range(values["seeds"]) for step in steps]
    function = families.pair if at.serial else elsewhere(worker, a, asked, preprocess)
    families.counted = ticking(clock.progress, sum(2 * (parent.steps - step) for _, step in pairs))
    finished = count(1)

    def told(n: int, result: dict[str, Any]) -> None:
        barriers = ", ".join(f"{name} {v:.4g}" for name, v in result["run"]["barriers"].items())
        clock.note(f"{next(finished)} of {len(pairs)}: seed {pairs[n][0]}, step {pairs[n][1]}: barrier {barriers}")

    made = collected([Job(digest_of("pair", of, pair), function, pair) for pair in pairs], at, values["cache"], told)
    runs = [result["run"] for result in made]
    notes = dict.fromkeys(note for result in made for note in result["notes"])
    metrics = {name: UNITS.get(name, "") for name in runs[0]["barriers"]}
    return {"runs": runs, "means": _means(runs, list(metrics)), "metrics": metrics, "notes": list(notes)}


@dataclass
class Families:
    """What trains pairs, and remembers the parent of one seed; counted: gets every step."""

    setup: Setup
    known: dict[int, tuple[Trainer, Mapping[str, Array]]] = field(default_factory=dict)
    counted: Callable[[], None] = lambda: None

    @staticmethod
    def of(a: Any, values: Mapping[str, Any], preprocess: Preprocess, clock: Clock) -> Families:
        """Model, data and what scores. Raises `OptionError`."""
        model, init = load(a), values["init"]
        if isinstance(init, Path):
            values = {**values, "init": load(init)}
        clock("calibration")
        data = samples_of(model, values, preprocess)
        judges = judges_of(model, values, preprocess) or _on_held_out(model, data, values)
        if line_ := unused(preprocess, data.samples, *(j.samples for j in judges if isinstance(j, Evaluator))):
            raise OptionError(line_)
        return Families(Setup(model, data, values, judges, clock))

    def parent(self, k: int) -> Trainer:
        """The training of a seed, from which pairs part; at its start, or at the step where it was left."""
        if k not in self.known:
            self.setup.clock("tune")
            trainer = self.setup.trainer(self.setup.model, self.setup.initial(k), self.setup.values["seed"] + k)
            trainer.run.try_rates(trainer.steps, self.setup.clock.note)  # one rate for all children
            self.known = {k: (trainer, trainer.state())}
        return self.known[k][0]

    def pair(self, k: int, at: int) -> dict[str, Any]:
        """Two children of seed k that part at a step, and the line between them: the run, and notes."""
        setup, trainer = self.setup, self.parent(k)
        values, clock, norms = setup.values, setup.clock, len(normalisations(setup.model))
        clock("tune")
        if trainer.position > at:
            trainer.restore(self.known[k][1])
        while trainer.position < at:
            trainer.step()
        one, other = children(trainer, values["seed"] + k, self.counted)
        found, aligned = _line(one, other, values, setup.judges, trainer.seen if norms else None, clock)
        notes = [*trainer.notes, *trainer.run.notes, *_estimated(trainer.seen, norms), *trainer.run.stumbled()]
        taught = {"seed": k, "step": at, "steps": trainer.steps, "learning_rate": trainer.run.rate}
        return {"run": {**taught, **_said(found, aligned)}, "notes": [*notes, *_kept(aligned)]}


def ticking(progress: Progress, total: int) -> Callable[[], None]:
    """What counts steps of training, of so many."""
    steps = count(1)
    return lambda: progress("tune", next(steps), total)


def worker(a: Any, values: Mapping[str, Any], preprocess: Preprocess) -> Callable[[int, int], dict[str, Any]]:
    """What makes pairs (seed, step) in a worker."""
    return Families.of(a, values, preprocess, Clock(silent)).pair


def _on_held_out(model: Model, data: TrainingSet, values: Mapping[str, Any]) -> list[Evaluator]:
    """What scores on the samples that are held out of training."""
    samples = data.split()[1].samples
    metric = metric_of(model, samples, None, None)
    names = dict.fromkeys([metric, "loss"] if METRICS[metric].labels else [metric])
    return [Evaluator(model, samples, name, threads=values["threads"]) for name in names]


def _step(word: str, steps: int) -> int:
    """The step that a word of --spawn names. Raises `OptionError` for one behind the last."""
    at = point(word)(steps)
    if at >= steps:
        raise OptionError(f"--spawn {word}: a training has {steps} steps; give fewer, or more --tune")
    return at


def _means(runs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Barriers by step, over seeds: mean, and standard deviation where there are several; and the mean of the ends."""
    out = []
    for at in dict.fromkeys(r["step"] for r in runs):
        of = [r for r in runs if r["step"] == at]
        row: dict[str, Any] = {"step": at, "seeds": len(of)}
        for name in metrics:
            barriers = [r["barriers"][name] for r in of]
            row[name] = {
                "barrier": fmean(barriers), "deviation": stdev(barriers) if len(of) > 1 else 0.0,
                "ends": fmean(r["points"][k][name] for r in of for k in (0, -1)),
            }  # fmt: skip
        out.append(row)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# The chart
# ---------------------------------------------------------------------------------------------------------------------


def _named(model: Any) -> str:
    """How a model is called in messages."""
    path = model.path if isinstance(model, Model) else model
    return str(path) if isinstance(path, (str, Path)) else "the model"


__all__ = ["CONNECT", "Connecting", "connect", "connected", "draw"]
