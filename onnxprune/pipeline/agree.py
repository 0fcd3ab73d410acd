"""How stable an importance is: do its scores order units alike on two data sets, and do two importances?
`onnxprune agree`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.allocation.kinds import PRUNABLE
from onnxprune.allocation.recipe import DEFAULTS
from onnxprune.cache import digest as digest_of
from onnxprune.calibration.calibration import SYNTHETIC, Calibration, calibration_of, default_samples
from onnxprune.calibration.effort import largest_tensor
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.read import read
from onnxprune.calibration.samples import Samples, unused
from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.evaluation.training_set import training_set
from onnxprune.experiments.agree import Agreement, agreement
from onnxprune.graph.io import Model, load
from onnxprune.importance.criterion import Scores
from onnxprune.importance.score import criterion_of, scores_alone
from onnxprune.importance.shown import Ground, ground
from onnxprune.options import DATA, HOW, choice, declared, each, option, record, shared, shown
from onnxprune.pipeline.options import OPTIONS, called
from onnxprune.pipeline.parts import depends, sharing
from onnxprune.progress import Clock, Progress, silent
from onnxprune.runtime.jobs import Job, Where, collected, elsewhere, threads_of
from onnxprune.solvers.threads import cores
from onnxprune.structure.analysis import Analysis, ChannelGroup
from onnxprune.structure.groups import analyze

NAMED = next(o for o in OPTIONS if o.name == "importance")
EITHER = ("fisher",)  # by labels where there are some
FREE = ("importance", "calibration", "labels", "samples", "jobs", "cache", "threads")  # or others stand for them


def _several(value: Any) -> tuple[Any, ...]:
    """A source, or a list of them."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _importance(value: Any) -> str:
    """A criterion by its name."""
    return str(NAMED.parse(str(value)))


def _kind(value: Any) -> str:
    """A kind, as options or groups name it."""
    return str(_kinds(str(value).replace("-", "_")))


_kinds = choice(dict.fromkeys(PRUNABLE, ""))
_kind.choices = _kinds.choices  # type: ignore[attr-defined]
_several.many = True  # type: ignore[attr-defined]
_importance.choices = NAMED.choices  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Comparing:
    """Whose scores are compared, on what."""

    importance: tuple[str, ...] = option(
        (), each(_importance), panel=HOW, metavar="NAME", otherwise="needed",
        help="Score units by this, and compare the scores on the data sets with each other. Repeatable: several are "
        "also compared with each other, on each data set. list explains them.",
    )  # fmt: skip
    kind: tuple[str, ...] = option(
        ("channels",), each(_kind), panel=HOW, metavar="KIND",
        help=f"Units of this kind: {', '.join(PRUNABLE)}. Repeatable.",
    )  # fmt: skip
    calibration: tuple[Any, ...] = option(
        (), _several, panel=DATA, metavar="SRC", otherwise="needed",
        help="A data set: any source, with labels where it has some. Repeatable; a single one is taken apart into two "
        "halves, every other sample.",
    )  # fmt: skip
    labels: tuple[Any, ...] = option(
        (), _several, panel=DATA, metavar="FILE",
        help="Labels of --calibration, where they do not lie in it: as often as it, in the same order.",
    )  # fmt: skip


AGREE = (
    *declared(Comparing),
    *sharing("pairs of importance and data set", "scores"),
    *shared(
        OPTIONS, ("samples", *(f.name for f in fields(Preprocess)), "input_shape", "memory", "seed", "threads"),
        {
            "samples": "At most so many of each data set, evenly spread; of a single one before it is halved.",
            "memory": "For activations, in GB or with a unit; less means more passes.",
            "seed": "Of made-up samples, and of random signs and scores.",
        },
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class DataSet:
    """name: for the report; data: the samples; by: the same for gradients."""

    name: str
    data: Calibration
    by: Ground


def agree(source: Any, *, progress: Progress = silent, **options: Any) -> dict[str, Any]:
    """Rank correlations of units' scores between data sets, and between importances.

    source: path of an ONNX file, or what `load` takes; options: as of `onnxprune agree`, calibration a list of sources.
    The report is plain data, as of --json. Raises `UserError`, and `TypeError` for an unknown option.
    """
    with called("agree", AGREE, options) as (values, preprocess):
        return compared(source, values, preprocess, progress)


def compared(source: Any, values: Mapping[str, Any], preprocess: Preprocess, progress: Progress) -> dict[str, Any]:
    """The report, in the words of the command line. values: all options of `AGREE` by name."""
    importances, where = refuse(values), values["jobs"]
    values = {**values, "threads": threads_of(where, values["threads"])}
    of = Scoring.of(source, importances, values, preprocess, Clock(progress))
    clock, groups, sets = of.clock, of.groups, of.sets
    clock("score")
    parts, finished = [(name, k) for name in importances for k in range(len(sets))], count(1)
    function = of.scored if where.serial else elsewhere(worker, source, importances, values, preprocess)
    jobs = [Job(of.key(*part), function, part) for part in parts]

    def told(_: int, __: Mapping[str, Any]) -> None:
        if not where.serial:  # steps of a part are told here
            progress("score", next(finished), len(parts))

    made = collected(jobs, where, values["cache"], told)
    scores, notes = dict[tuple[str, int], Scores](), list(of.notes)
    for (name, k), result in zip(parts, made, strict=True):
        scores[name, k] = {group: np.array(each, np.float64) for group, each in result["scores"].items()}
        notes += [f"{name}: {group} has no score: {why}" for group, why in result["lacking"].items() if not k]
    rows = [
        _row((a, b), [sets[k].name for k in at], agreement(scores[a, at[0]], scores[b, at[1]], groups))
        for (a, b), at in pairs(importances, len(sets))
    ]
    clock("")
    return {
        "version": __version__, "model": shown(source) if isinstance(source, (str, Path)) else "the model",
        "settings": {o.name: record(values[o.name]) for o in AGREE if o.name not in ("jobs", "cache")},
        "sets": [
            {"name": s.name, "data": s.data.samples.description, "samples": s.data.samples.count,
             "labels": s.by.labelled is not None} for s in sets
        ],
        "comparisons": rows, "notes": notes, "seconds": dict(clock.seconds),
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scoring:
    """What scores the units of a model. groups: of the kinds that are asked for; notes: on the data."""

    analysis: Analysis
    groups: Sequence[ChannelGroup]
    sets: Sequence[DataSet]
    notes: Sequence[str]
    values: Mapping[str, Any]
    clock: Clock

    @staticmethod
    def of(
        source: Any, importances: Sequence[str], values: Mapping[str, Any], preprocess: Preprocess, clock: Clock
    ) -> Scoring:
        """Model and data sets. Raises `OptionError`, and `NothingToPrune` where there are no such units."""
        clock("load")
        model = load(source)
        clock("analyze")
        analysis = analyze(model, dict(values["input_shape"]))
        groups = [g for g in analysis.groups if g.kind in values["kind"]]
        if not groups:
            there = ", ".join(dict.fromkeys(g.kind for g in analysis.groups)) or "none"
            raise NothingToPrune(
                f"--kind {' '.join(values['kind'])}: the model has no such units; kinds of its own: {there}"
            )
        clock("calibration")
        sets, notes = data_sets(model, analysis, importances, values, preprocess)
        return Scoring(analysis, groups, sets, notes, values, clock)

    def scored(self, name: str, k: int) -> dict[str, Any]:
        """Scores by an importance on a data set, and why groups lack some, as plain data."""
        of = self.sets[k]
        scores, lacking = scores_alone(
            self.analysis, self.groups, of.data, of.by, name, DEFAULTS["real"].prior, self.clock.progress
        )
        return {"scores": {group: each.tolist() for group, each in scores.items()}, "lacking": lacking}

    def key(self, name: str, k: int) -> str:
        """Of what these depend on."""
        of = self.sets[k]
        settings = depends(AGREE, self.values, FREE, model=self.analysis.model, data=of.data.samples)
        return digest_of("agree", settings, name, of.data.synthetic, of.by.labelled is not None)


def worker(
    source: Any, importances: Sequence[str], values: Mapping[str, Any], preprocess: Preprocess
) -> Callable[[str, int], Mapping[str, Any]]:
    """What scores by an importance on a data set in a worker."""
    return Scoring.of(source, importances, values, preprocess, Clock(silent)).scored


def pairs(importances: Sequence[str], sets: int) -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """What is compared: each importance that looks at data on any two data sets; any two importances on each data set.

    >>> list(pairs(["l1", "wanda"], 2))
    [(('wanda', 'wanda'), (0, 1)), (('l1', 'wanda'), (0, 0)), (('l1', 'wanda'), (1, 1))]
    """
    for name in importances:
        if looks_at_data(name):
            yield from (((name, name), at) for at in combinations(range(sets), 2))
    for a, b in combinations(importances, 2):
        yield from (((a, b), (k, k)) for k in range(sets))


def looks_at_data(importance: str) -> bool:
    """Whether scores depend on samples."""
    criterion = criterion_of(importance)
    assert criterion is not None
    return criterion.needs_data or criterion.labels


def refuse(values: Mapping[str, Any]) -> list[str]:
    """The importances. Raises `OptionError` for what lacks, or has no effect."""
    names = list(dict.fromkeys(values["importance"]))
    if not values["calibration"]:
        raise OptionError("agree: scores are compared on data: give --calibration SRC, twice for two data sets")
    if not names:
        raise OptionError("agree: whose scores, is for --importance NAME to say; list explains them")
    if len(names) < 2 and not looks_at_data(names[0]):
        raise OptionError(
            f"--importance {names[0]} does not look at data, and is the same on all: name another one beside it"
        )
    if values["labels"] and len(values["labels"]) != len(values["calibration"]):
        raise OptionError(
            f"--labels: {len(values['labels'])} for {len(values['calibration'])} data sets; give one for each "
            "--calibration, in the same order"
        )
    return names


def data_sets(
    model: Model, analysis: Analysis, importances: Sequence[str], values: Mapping[str, Any], preprocess: Preprocess
) -> tuple[list[DataSet], list[str]]:
    """The data sets, and what the user should know. Raises `OptionError` where they do not fit, or lack labels."""
    macs = analysis.costs().macs(analysis.keep_ids({}))
    count = values["samples"] or default_samples(macs)
    sources = values["calibration"]
    shapes = dict(values["input_shape"])
    read_from = [
        read(source, model, preprocess=preprocess, samples=count, labels=labels, seed=values["seed"], shapes=shapes)
        for source, labels in zip(sources, values["labels"] or [None] * len(sources), strict=True)
    ]
    if line := unused(preprocess, *read_from):
        raise OptionError(line)
    named = [(_named(s, k), x) for k, (s, x) in enumerate(zip(sources, read_from, strict=True))]
    named = halves(named[0][1]) if len(named) < 2 else named
    needy = [n for n in importances if (c := criterion_of(n)) is not None and c.labels]
    without = [name for name, x in named if x.labels is None]
    if needy and without:
        raise OptionError(
            f"--importance {needy[0]} needs labels, and {without[0]} has none: an array labels, sub-folders per class "
            "or --labels FILE; fisher does without"
        )
    either = [n for n in importances if n in EITHER]
    labelled = bool(needy or either) and not without
    notes = [
        f"{n} goes by the outputs' own distribution: {without[0]} has no labels"
        for n in either if without and len(without) < len(named)
    ]  # fmt: skip
    solves = Where(max(1, cores() // values["jobs"].processes))
    largest, synthetic = largest_tensor(analysis), [s == SYNTHETIC for s in map(str, sources)]
    out = []
    for k, (name, samples) in enumerate(named):
        data = calibration_of(
            samples, model, macs, samples=samples.count, preprocess=preprocess, augment=False, jobs=solves,
            memory=float(values["memory"]), threads=values["threads"], seed=values["seed"], largest=largest,
        )  # fmt: skip
        train = training_set(model, samples, seed=values["seed"], option="--calibration") if labelled else None
        by = ground(data, train)
        out.append(DataSet(name, replace(data, synthetic=synthetic[min(k, len(synthetic) - 1)]), by))
    return out, notes


def halves(samples: Samples) -> list[tuple[str, Samples]]:
    """Every other sample, and the rest. Raises `OptionError` for a single one."""
    if samples.count < 2:
        raise OptionError("--calibration: one sample has no halves; give more, or another data set")
    parts = (samples.take(range(k, samples.count, 2)) for k in (0, 1))
    return [(f"half {k}", replace(x, description=f"half of {x.description}")) for k, x in enumerate(parts, 1)]


def _row(importances: tuple[str, str], sets: Sequence[str], found: Agreement) -> dict[str, Any]:
    """A comparison as plain data."""
    return {
        "importances": list(importances), "sets": list(sets), "units": found.units,
        **{name: asdict(of) for name, of in found.coefficients.items()},
        "groups": [
            {"name": w.group, "kind": w.kind, "units": w.units, **w.coefficients} for w in found.groups
        ],
    }  # fmt: skip


def _named(source: Any, k: int) -> str:
    return Path(source).name if isinstance(source, (str, Path)) else f"set {k + 1}"


__all__ = ["AGREE", "Comparing", "agree", "compared", "pairs"]
