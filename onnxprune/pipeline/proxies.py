"""What zero-cost proxies say of networks, and how well they order them by scores: `onnxprune proxies`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.cache import digest as digest_of
from onnxprune.calibration.presets import Preprocess
from onnxprune.calibration.samples import spread, unused
from onnxprune.errors import OptionError
from onnxprune.evaluation.training_set import TrainingSet, training_set
from onnxprune.experiments.connect import settling
from onnxprune.experiments.proxies import PROXIES, Lacking, Network, whole_batches
from onnxprune.experiments.ranks import COEFFICIENTS, bootstrap
from onnxprune.experiments.scores import FEWEST, scores_of
from onnxprune.graph.io import Model, load
from onnxprune.options import DATA, HOW, choice, declared, each, integer, option, path, record, shared
from onnxprune.pipeline.options import OPTIONS, called
from onnxprune.pipeline.parts import depends, sharing
from onnxprune.progress import Clock, Progress, silent
from onnxprune.recovery.normalisation import normalisations
from onnxprune.runtime.jobs import Job, Where, collected, elsewhere, threads_of
from onnxprune.training.initial import initial

SAMPLES = 128  # two batches, as ZiCo has them
FREE = ("proxy", "scores", "calibration", "samples", "labels", "jobs", "cache", "threads")  # or others stand for them
FILE = "file"


def _init(value: Any) -> int | str:
    """A seed, or the word file."""
    if isinstance(value, str) and value.strip().lower() == FILE:
        return FILE
    return int(integer("a seed, 0 or more, or the word file", 0)(value))


def _scores(value: Any) -> Any:
    """A mapping, numbers, or a path."""
    return value if isinstance(value, (Mapping, Sequence)) and not isinstance(value, str) else path(value)


@dataclass(frozen=True)
class Asking:
    """What is asked of networks, at which weights."""

    proxy: tuple[str, ...] = option(
        (), each(choice({name: row.help for name, row in PROXIES.items()})), panel=HOW, metavar="NAME",
        otherwise="all; without labels those that need none",
        help="Ask this one. Repeatable.",
    )  # fmt: skip
    init: int | str = option(
        0, _init, panel=HOW, metavar="SEED|file",
        help="At which weights: new ones by this seed (Kaiming by fan-in; scales one, shifts zero), with "
        "normalisations by the statistics of the samples, or with the word file those that the files hold.",
    )  # fmt: skip
    scores: Any = option(
        None, _scores, panel=DATA, metavar="TABLE", otherwise="no correlations",
        help="What the networks turned out to be worth, as their accuracy: .csv of rows NAME,SCORE, or .json; a name "
        "is that of the file. For five models or more: Spearman's and Kendall's correlation of each proxy, with 95% "
        "intervals by bootstrap.",
    )  # fmt: skip


PROXY_OPTIONS = (
    *declared(Asking),
    *sharing("networks", "what proxies say of a network"),
    *(
        replace(o, otherwise={"calibration": "none", "samples": str(SAMPLES)}.get(o.name, o.otherwise))
        for o in shared(
            OPTIONS, ("calibration", "samples", "labels", *(f.name for f in fields(Preprocess)), "memory", "seed",
                      "threads"),
            {
                "calibration": "Samples, the same for all networks: any source; labels in it (an array labels, "
                "sub-folders per class) or --labels are for proxies of a loss.",
                "samples": "At most so many of them, evenly spread; in batches of 64 at most, two at least.",
                "memory": "For activations, in GB or with a unit; less means smaller parts of a batch.",
                "labels": "Labels of --calibration: .npy, .txt, .csv, .json.",
                "seed": "Of made-up samples, of random signs and of the bootstrap.",
            },
        )
    ),
)  # fmt: skip


def proxies(models: Sequence[Any], *, progress: Progress = silent, **options: Any) -> dict[str, Any]:
    """What zero-cost proxies say of networks, and with `scores` their rank correlations with these.

    models: paths of ONNX files, or what `load` takes; options: as of `onnxprune proxies`; scores may also be a mapping,
    or a number per model. The report is plain data, as of --json. Raises `UserError`, and `TypeError` for an unknown
    option.
    """
    with called("proxies", PROXY_OPTIONS, options) as (values, preprocess):
        return asked(models, values, preprocess, progress)


def asked(
    sources: Sequence[Any], values: Mapping[str, Any], preprocess: Preprocess, progress: Progress
) -> dict[str, Any]:
    """The report, in the words of the command line. values: all options of `PROXY_OPTIONS` by name."""
    names = [_named(source, k) for k, source in enumerate(sources)]
    chosen = refuse(values, names)
    scores, unknown = (None, []) if values["scores"] is None else scores_of(values["scores"], names)
    at: Where = values["jobs"]
    values = {**values, "threads": threads_of(at, values["threads"])}
    clock, said = Clock(progress), dict[str, list[str]]()  # note -> the models that it is about
    asking, finished = Questions(chosen, values, preprocess, clock, len(names)), count(1)

    def told(_: int, result: Mapping[str, Any]) -> None:
        each = len(result["proxies"])
        progress("score", next(finished) * each, len(names) * each)

    made = collected(asking.jobs(sources), at, values["cache"], told)
    for name, result in zip(names, made, strict=True):
        for note in result["notes"]:
            said.setdefault(note, []).append(name)
    rows, data = [result["proxies"] for result in made], asking.data
    chosen = list(rows[0])
    clock("")
    notes = [f"{_several(of)}: {note}" for note, of in said.items()]
    left_out = [p for p in PROXIES if p not in chosen and not values["proxy"]]
    notes += [f"left out, as there are no labels: {', '.join(left_out)}"] if left_out else []
    notes += [f"--scores has rows of no model here: {_several(unknown)}"] if unknown else []
    found = None if scores is None else correlations(chosen, rows, scores, values["seed"], notes)
    return {
        "version": __version__, "data": None if data is None else data.samples.description,
        "samples": 0 if data is None else data.count, "batch": 0 if data is None else whole_batches(data.count)[1],
        "settings": {o.name: record(values[o.name]) for o in PROXY_OPTIONS if o.name not in ("jobs", "cache")},
        "models": [
            {"model": name, "score": None if scores is None else scores[k], "proxies": rows[k]}
            for k, name in enumerate(names)
        ],
        "correlations": found, "notes": notes, "seconds": dict(clock.seconds),
    }  # fmt: skip


@dataclass
class Questions:
    """What is asked of networks. many: how many there are; place: of the one that is next; data: samples, as the last
    one takes them."""

    chosen: Sequence[str]
    values: Mapping[str, Any]
    preprocess: Preprocess
    clock: Clock
    many: int = 1
    place: int = 0
    data: TrainingSet | None = None

    def ready(self, source: Any) -> Model:
        """A model, for which samples are ready. Raises `OptionError`."""
        self.clock("load")
        model = load(source)
        self.clock("calibration")
        self.data = samples_of(model, self.chosen, self.values, self.preprocess)
        return model

    def jobs(self, sources: Sequence[Any]) -> Iterator[Job]:
        """A job for each model, which is at hand where jobs are done one after the other in this process."""
        at: Where = self.values["jobs"]
        function = self.answers if at.serial else elsewhere(worker, self.chosen, self.values, self.preprocess)
        for self.place, source in enumerate(sources):
            model = self.ready(source)
            settings = depends(PROXY_OPTIONS, self.values, FREE, model=model, data=self.data, proxies=self.chosen)
            self.clock("score")
            yield Job(digest_of("proxies", settings), function, (model if at.serial else source,))

    def answers(self, model: Model) -> dict[str, Any]:
        """What the proxies say of a model, and notes."""
        net, notes = network(model, self.data, self.values)
        row, asked = dict[str, float | None](), with_labels(self.chosen, self.data, self.values)
        for j, proxy in enumerate(asked):
            self.clock.progress("score", self.place * len(asked) + j, self.many * len(asked))
            row[proxy], why = ask(net, proxy)
            notes += [f"{proxy} says nothing: {why}"] if why else []
        return {"proxies": row, "notes": [*notes, *(f"without {name}: {why}" for name, why in net.missed.items())]}


def worker(
    chosen: Sequence[str], values: Mapping[str, Any], preprocess: Preprocess
) -> Callable[[Any], Mapping[str, Any]]:
    """What asks about a model in a worker."""
    asking = Questions(chosen, values, preprocess, Clock(silent))
    return lambda source: asking.answers(asking.ready(source))


def ask(net: Network, proxy: str) -> tuple[float | None, str]:
    """What a proxy says of a network; None, and why, where that is no number."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            found = PROXIES[proxy].function(net)
    except Lacking as e:
        return None, str(e)
    return (float(found), "") if math.isfinite(found) else (None, "float32 overflows")


def refuse(values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The proxies that are asked. Raises `OptionError` for an option that lacks another, or has no effect."""
    chosen = list(dict.fromkeys(values["proxy"])) or list(PROXIES)
    if not names:
        raise OptionError("proxies: name at least one model")
    if values["calibration"] is None:
        needy = [p for p in chosen if PROXIES[p].samples]
        if needy:
            raise OptionError(
                f"proxies: {needy[0]} is asked of samples: give --calibration SRC, or choose with --proxy: "
                + ", ".join(p for p, row in PROXIES.items() if not row.samples)
            )
        for name in ("samples", "labels"):
            if values[name] is not None:
                raise OptionError(f"--{name} needs --calibration SRC")
    elif not any(PROXIES[p].samples for p in chosen):
        raise OptionError(f"--calibration has no effect: no samples are asked for by {', '.join(chosen)}")
    return chosen


def samples_of(
    model: Model, chosen: Sequence[str], values: Mapping[str, Any], preprocess: Preprocess
) -> TrainingSet | None:
    """Whole batches of the samples, as a model takes them; None without. Raises `OptionError` where they do not fit."""
    if values["calibration"] is None:
        if line := unused(preprocess):
            raise OptionError(line)
        return None
    whole = training_set(
        model, values["calibration"], values["labels"], preprocess=preprocess, seed=values["seed"],
        option="--calibration", flag="--labels",
    )  # fmt: skip
    if line := unused(preprocess, whole.samples):
        raise OptionError(line)
    count, _ = whole_batches(min(whole.count, values["samples"] or SAMPLES))
    if not count:
        raise OptionError(f"--calibration: two samples or more are needed, and there is {whole.count}")
    return whole.take(spread(whole.count, count))


def with_labels(chosen: Sequence[str], data: TrainingSet | None, values: Mapping[str, Any]) -> list[str]:
    """The proxies without those that lack labels. Raises `OptionError` where one of these is asked by name."""
    if data is not None and data.labels is not None:
        return list(chosen)
    lacking = [p for p in chosen if PROXIES[p].labels]
    if lacking and values["proxy"]:
        raise OptionError(
            f"--proxy {lacking[0]} needs labels: an array labels, sub-folders per class or --labels FILE; "
            f"{', '.join(p for p, row in PROXIES.items() if row.samples and not row.labels)} do without"
        )
    return [p for p in chosen if p not in lacking]


def network(model: Model, data: TrainingSet | None, values: Mapping[str, Any]) -> tuple[Network, list[str]]:
    """A model as proxies ask it, at the weights of --init, and what the user should know."""
    notes = list[str]()
    fresh = model
    if values["init"] != FILE:
        step = initial(model, values["init"])
        fresh, notes = step.model, [*step.notes]
    settled = fresh
    if data is not None and values["init"] != FILE and normalisations(fresh):
        settled = settling(data, threads=values["threads"])(fresh)
    batch = 1 if data is None else whole_batches(data.count)[1]
    return Network(
        settled, fresh, data, batch, float(values["memory"]), values["threads"], values["seed"]
    ), notes  # fmt: skip


def correlations(
    chosen: Sequence[str], rows: Sequence[Mapping[str, float | None]], scores: Sequence[float], seed: int,
    notes: list[str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Rank correlations of every proxy with the scores, over the models of which it says something."""
    out = []
    for proxy in chosen:
        pairs = [(x, s) for row, s in zip(rows, scores, strict=True) if (x := row[proxy]) is not None]
        a, b = np.array(pairs, np.float64).reshape(-1, 2).T
        means_something = len(pairs) >= FEWEST and np.ptp(a) > 0 and np.ptp(b) > 0
        if not means_something:
            notes.append(f"{proxy}: no correlation: it tells too few models apart")
        of = {n: asdict(bootstrap(f, a, b, seed)) if means_something else None for n, f in COEFFICIENTS.items()}
        out.append({"proxy": proxy, "models": len(pairs), **of})
    return out


def _several(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def _named(source: Any, k: int) -> str:
    """How a model is called."""
    path = source.path if isinstance(source, Model) else source
    return str(path) if isinstance(path, (str, Path)) else f"model {k + 1}"


__all__ = ["PROXY_OPTIONS", "Asking", "asked", "proxies"]
