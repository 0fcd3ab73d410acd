"""Supermasks: how good networks are whose weights were never trained, but chosen by comparing them with trained ones.

    choose what is kept -> what is kept, what is out -> score

`compared` reads top to bottom. experiments/criteria.py has the criteria, experiments/supermask.py the actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.cache import digest as digest_of
from onnxprune.cache import replace as replace_file
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.samples import Samples, unused
from onnxprune.errors import OptionError, blamed
from onnxprune.evaluation.metrics import METRICS, Evaluator, Function, is_function, scored
from onnxprune.evaluation.training_set import training_set
from onnxprune.experiments.connect import difference, settling
from onnxprune.experiments.criteria import CRITERIA, Pair, region
from onnxprune.experiments.masks import Choice, Masks, choose, left
from onnxprune.experiments.plot import plane, stacked
from onnxprune.experiments.supermask import KEPT, OUT, cosine, network
from onnxprune.graph.io import Model, load, save
from onnxprune.importance.shown import Ground
from onnxprune.options import (
    HOW,
    OUTPUT,
    TUNE,
    WHAT,
    choice,
    declared,
    integer,
    listed,
    number,
    option,
    path,
    record,
    shared,
)
from onnxprune.pipeline.options import OPTIONS, called
from onnxprune.pipeline.parts import depends, sharing
from onnxprune.pipeline.train import judges_of
from onnxprune.progress import Clock, Progress, silent
from onnxprune.recovery.normalisation import normalisations
from onnxprune.runtime.jobs import Job, Where, collected, elsewhere, threads_of
from onnxprune.sparsity.options import EVEN_ALLOCATION, Zeros
from onnxprune.structure.check import check_file
from onnxprune.training.initial import initial
from onnxprune.training.weights import FLOATS, trainable

POINTS = 20_000  # of a picture, over all its panels
EACH = 1_000  # of a panel, at most
COLUMNS = 4  # layers of a picture, those with the most weights
STRANGE = 0.05  # cosine of initial and trained weights, below which one was hardly trained from the other


@dataclass(frozen=True)
class Supermasks:
    """Which masks, on what."""

    criterion: tuple[str, ...] = option(
        tuple(CRITERIA), listed(choice({name: row.help for name, row in CRITERIA.items()})), panel=HOW, metavar="NAME",
        otherwise="all", help="What is kept, repeatable, or with commas between; list explains them.",
    )  # fmt: skip
    sparsity: tuple[float, ...] = option(
        (0.8,), listed(number("a fraction between 0 and 1, as 0.8", 0, 1, above=True, below=True)), panel=WHAT,
        metavar="R", short="-s", unit="fraction that is out",
        help="Fraction of the weights of products that is out, repeatable, or with commas between.",
    )  # fmt: skip
    action: tuple[str, ...] = option(
        ("init", "signed_constant"), listed(choice({name: row.help for name, row in KEPT.items()})), panel=WHAT,
        metavar="NAME", otherwise="init,signed_constant",
        help="What the weights are that are kept, repeatable, or with commas between; list explains them.",
    )  # fmt: skip
    masked: str = option(
        "zero", choice({name: row.help for name, row in OUT.items()}), panel=WHAT, metavar="NAME",
        help="What the others are: zero; frozen at their initial values (init); or either, by the direction in which "
        "training moved them.",
    )  # fmt: skip
    init: int | None = option(
        None, integer("a seed", 0), panel=TUNE, metavar="SEED", otherwise="the weights of INITIAL.onnx",
        help="The initial weights are those that onnxprune train --init SEED began from; INITIAL.onnx is left out.",
    )  # fmt: skip
    picture: Path | None = option(
        None, path, panel=OUTPUT, metavar="SVG", otherwise="no picture",
        help="Draw final against initial weight of the largest layers, with what each criterion keeps of them.",
    )  # fmt: skip


_TAKEN = (
    *shared(
        OPTIONS, ("evaluate", "labels", "metric", "train"),
        {
            "evaluate": "Score every network on this: samples with labels, or module:function in Python.",
            "train": "Samples on which the statistics of every BatchNormalization are estimated anew in every network.",
        },
    ),
    *declared(Supermasks),
    *sharing("networks", "scores", "--evaluate"),
    *shared(
        OPTIONS, ("sparsity_allocate", "ignore", *(f.name for f in fields(Preprocess)), "seed", "threads"),
        {
            "sparsity_allocate": "How many weights of each layer are out; list explains the ways.",
            "seed": "Of what is at random.",
        },
    ),
)  # fmt: skip
OTHERWISE = {"train": "statistics are those of the initial model", "sparsity_allocate": EVEN_ALLOCATION}
SUPERMASK = tuple(replace(o, otherwise=OTHERWISE.get(o.name, o.otherwise)) for o in _TAKEN)
CELL = ("criterion", "sparsity", "action")
FREE = (*CELL, "picture", "init", "evaluate", "labels", "train", "jobs", "cache", "threads")  # or others stand for them


def supermask(
    initial: Any, trained: Any = None, output: Path | str | None = None, *, progress: Progress = silent, **options: Any
) -> dict[str, Any]:
    """Score networks of masks and weights that were never trained, as `onnxprune supermask` does; the report, plain
    data.

    initial, trained: paths of ONNX files of one graph, or what `load` takes; with `init` the trained one alone; output:
    where the network of one criterion, action and sparsity is written. Raises `UserError`, and `TypeError` for an
    unknown option.
    """
    with called("supermask", SUPERMASK, options) as (values, preprocess):
        return compared(initial, trained, None if output is None else Path(output), values, preprocess, progress)


def compared(
    a: Any, b: Any, target: Path | None, values: Mapping[str, Any], preprocess: Preprocess, progress: Progress
) -> dict[str, Any]:
    """The report of the experiment, in the words of the command line. values: all options of `SUPERMASK` by name."""
    refuse(values, b is not None, target)
    at: Where = values["jobs"]
    values = {**values, "threads": threads_of(at, values["threads"])}
    of = Comparison.of(a, b, values, preprocess, Clock(progress))
    clock, before, after, notes = of.clock, of.before, of.after, list(of.notes)
    first, share = values["criterion"][0], values["sparsity"][0]
    alike = cosine(before, after, list(of.masks(first, share)[0]))
    cells = [(n, s, action) for s in values["sparsity"] for n in values["criterion"] for action in values["action"]]
    made = list[dict[str, Any]]()
    if of.judges:
        clock("evaluate")
        function, finished = of.score if at.serial else elsewhere(worker, a, b, values, preprocess), count(1)
        jobs = [Job(key, function, cell) for key, cell in zip(of.keys(cells), cells, strict=True)]
        made = collected(jobs, at, values["cache"], lambda k, _: progress("evaluate", next(finished), len(cells)))
    notes += [note for result in made for note in result["notes"]]
    if alike < STRANGE:
        notes.append(
            f"initial and trained weights have hardly to do with each other (cosine {alike:.3f}): was the training "
            "begun from these?"
        )
    ends = {what: values_of(of.judges, model) for what, model in (("initial", before), ("trained", after))}
    clock("save")
    if target is not None:
        notes += of.masks(first, share)[1]
        out = of.network(*cells[0])
        check_file(before, out)
        save(out, target)
    if values["picture"] is not None:
        masks = {name: of.masks(name, share) for name in values["criterion"]}
        notes += [note for _, said in masks.values() for note in said]
        page = drawn({name: kept for name, (kept, _) in masks.items()}, before, after, values["seed"])
        with blamed(f"--picture {values['picture']}", refusals=(OSError,)):
            replace_file(values["picture"], page.encode())
    clock("")
    return {
        "version": __version__, "models": {"initial": _named(a) if b is not None else f"--init {values['init']}",
                                           "trained": _named(b if b is not None else a)},
        "settings": {o.name: record(values[o.name]) for o in SUPERMASK if o.name not in ("jobs", "cache")},
        "metrics": {name: METRICS[name].unit if name in METRICS else "" for name in ends["trained"]},
        "cosine": alike, "ends": ends, "rows": [result["row"] for result in made], "notes": list(dict.fromkeys(notes)),
        "output": None if target is None else str(target), "seconds": dict(clock.seconds),
    }  # fmt: skip


@dataclass
class Comparison:
    """What makes networks and scores them. settle: is done to each before; known: the masks that were made last."""

    before: Model
    after: Model
    judges: Sequence[Evaluator | Function]
    settle: Callable[[Model], Model]
    notes: list[str]
    given: list[Samples]
    values: Mapping[str, Any]
    clock: Clock
    known: dict[tuple[str, float], tuple[Masks, list[str]]] = field(default_factory=dict)

    @staticmethod
    def of(a: Any, b: Any, values: Mapping[str, Any], preprocess: Preprocess, clock: Clock) -> Comparison:
        """Models, data and what scores. Raises `OptionError`."""
        clock("load")
        before, after = models(a, b, values["init"])
        clock("calibration")
        judges = judges_of(after, values, preprocess)
        settle, notes, given = settled(before, values, preprocess)
        if line := unused(preprocess, *given, *(j.samples for j in judges if isinstance(j, Evaluator))):
            raise OptionError(line)
        return Comparison(before, after, judges, settle, notes, given, values, clock)

    def masks(self, name: str, share: float) -> tuple[Masks, list[str]]:
        """What a criterion keeps at a sparsity, and notes."""
        if (name, share) not in self.known:
            self.clock("score")
            names = [n for n in trainable(self.after) if self.after.weights[n].dtype in FLOATS]
            how = choice_by(name, self.values)
            made, said = choose(self.after, names, share, how, Ground(), start=self.before)
            self.known = {(name, share): (made, [f"{name} at {share:.4%} zeros: {n}" for n in said])}
        return self.known[name, share]

    def network(self, name: str, share: float, action: str) -> Model:
        """The network of a criterion, a sparsity and an action."""
        masks, _ = self.masks(name, share)
        return self.settle(
            network(self.before, self.after, masks, action, self.values["masked"], self.values["seed"])
        )  # fmt: skip

    def score(self, name: str, share: float, action: str) -> dict[str, Any]:
        """Its row, and notes."""
        masks, notes = self.masks(name, share)
        self.clock("evaluate")
        scores = values_of(self.judges, self.network(name, share, action))
        row = {"criterion": name, "sparsity": share, "action": action, "left": left(masks), "scores": scores}
        return {"row": row, "notes": notes}

    def keys(self, cells: Sequence[tuple[str, float, str]]) -> list[str]:
        """Of what the rows of criteria, sparsities and actions depend on."""
        inputs = {"initial": self.before, "trained": self.after, "judges": self.judges, "samples": self.given}
        settings = depends(SUPERMASK, self.values, FREE, **inputs)
        return [digest_of("supermask", settings, cell) for cell in cells]


def worker(
    a: Any, b: Any, values: Mapping[str, Any], preprocess: Preprocess
) -> Callable[[str, float, str], dict[str, Any]]:
    """What scores a criterion, sparsity and action in a worker."""
    return Comparison.of(a, b, values, preprocess, Clock(silent)).score


def refuse(values: Mapping[str, Any], two: bool, target: Path | None) -> None:
    """Raise `OptionError` for what lacks, or has no effect."""
    if two == (values["init"] is not None):
        raise OptionError(
            "--init SEED gives the initial weights: leave INITIAL.onnx out" if two else
            "supermask: name INITIAL.onnx and TRAINED.onnx (of onnxprune lottery: round-00.ticket.onnx and "
            "round-00.onnx), or TRAINED.onnx with the --init SEED of its onnxprune train"
        )  # fmt: skip
    if values["evaluate"] is None and target is None and values["picture"] is None:
        raise OptionError("supermask: what scores the networks is for --evaluate SRC to say, samples with labels")
    for name in ("labels", "metric"):
        if values[name] is not None and (values["evaluate"] is None or is_function(values["evaluate"])):
            raise OptionError(f"--{name} needs --evaluate SRC, samples and no function")
    for o in SUPERMASK:
        if o.name in ("jobs", "cache") and values[o.name] != o.default and values["evaluate"] is None:
            raise OptionError(f"{o.as_typed(values[o.name])} needs --evaluate SRC, which scores networks")
    single = ("criterion", "action", "sparsity") if target is not None else ("sparsity",)
    for name in single if target is not None or values["picture"] is not None else ():
        if len(values[name]) > 1:
            asked = f"-o {target}" if target is not None else f"--picture {values['picture']}"
            raise OptionError(f"{asked} is of one --{name}, and there are {len(values[name])}; name one")
    for name in values["criterion"]:
        choice_by(name, values).check()


def models(a: Any, b: Any, seed: int | None) -> tuple[Model, Model]:
    """Initial and trained model. a, b: as they were named; with a seed a is the trained one."""
    if b is None:
        after = load(a)
        assert seed is not None
        return initial(after, seed).model, after
    before, after = load(a), load(b)
    if why := difference(before, after):
        raise OptionError(f"{_named(b)} is no model of the graph of {_named(a)}, which are A and B here: {why}")
    return before, after


def values_of(judges: Sequence[Evaluator | Function], model: Model) -> dict[str, float]:
    """Metric -> its value."""
    return {s.metric: s.value for s in scored(judges, model)}


def settled(
    before: Model, values: Mapping[str, Any], preprocess: Preprocess
) -> tuple[Callable[[Model], Model], list[str], list[Samples]]:
    """What is done to every network before it is scored, what the user should know of it, and the samples."""
    norms, source = len(normalisations(before)), values["train"]
    if source is None:
        note = (
            f"statistics of {norms} BatchNormalizations are those of the initial model, which masks change; --train "
            "SRC estimates them anew in every network"
        )
        return (lambda model: model), [note] if norms else [], []
    if not norms:
        raise OptionError("--train has no effect: there is no BatchNormalization whose statistics it could give")
    data = training_set(before, source, preprocess=preprocess, seed=values["seed"], any_labels=True)
    note = f"statistics of {norms} BatchNormalizations were estimated anew in every network, on samples of --train"
    return settling(data, threads=values["threads"]), [note], [data.samples]


def choice_by(criterion: str, values: Mapping[str, Any]) -> Choice:
    """How a criterion chooses."""
    zeros = Zeros(sparsity_allocate=values["sparsity_allocate"] or EVEN_ALLOCATION)
    return Choice(criterion, zeros, ignore=values["ignore"], seed=values["seed"])


# ---------------------------------------------------------------------------------------------------------------------
# The picture
# ---------------------------------------------------------------------------------------------------------------------


def drawn(masks: Mapping[str, Masks], before: Model, after: Model, seed: int) -> str:
    """Final against initial weight, SVG: a row for each criterion, a column for each of the largest layers.

    A part of the points is drawn, the same for every criterion; the region is where a criterion would keep a weight.
    """
    first = next(iter(masks.values()))
    layers = sorted(first, key=lambda n: -first[n].size)[:COLUMNS]
    many = min(EACH, POINTS // (len(masks) * len(layers)))
    panels = [
        _panel(name, layer, of[layer], before.weights[layer], after.weights[layer], many, seed)
        for name, of in masks.items() for layer in layers
    ]  # fmt: skip
    return stacked(panels, len(layers))


def _panel(name: str, layer: str, kept: Any, before: Any, after: Any, many: int, seed: int) -> str:
    whole = Pair(before.ravel().astype(np.float64), after.ravel().astype(np.float64))
    kept = kept.ravel()
    shown = np.sort(np.random.default_rng([seed, 7]).permutation(kept.size)[:many])
    points = {
        what: tuple(v[shown[at]].tolist() for v in (whole.initial, whole.final))
        for what, at in (("out", ~kept[shown]), ("kept", kept[shown]))
    }  # fmt: skip
    return plane(
        points, region(name, whole, kept),
        title=f"{name}: {kept.mean():.1%} of {layer}", x_label="initial weight", y_label="final weight",
    )  # fmt: skip


def _named(model: Any) -> str:
    """How a model is called in messages."""
    source = model.path if isinstance(model, Model) else model
    return str(source) if isinstance(source, (str, Path)) else "the model"


__all__ = ["SUPERMASK", "Supermasks", "compared", "supermask"]
