"""How good a model is on data, how sure a difference is, and the smallest model that is good enough.

A metric gives a figure per sample. Two models are compared on the same samples, so that their differences are paired.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri

from onnxprune.calibration.calibration import fitting_batch
from onnxprune.calibration.labels import token_lengths
from onnxprune.calibration.samples import Samples
from onnxprune.errors import OptionError
from onnxprune.evaluation.changes import Answers, Changes, changes
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, save
from onnxprune.options import DATA, WHAT, anything, choice, number, option
from onnxprune.runtime.classes import IGNORED, class_rows, classifier_output, joined, joined_alike, probabilities
from onnxprune.runtime.stream import Stream

CONFIDENCE = 0.95
Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Metric:
    """One way to say how good a model is.

    per_sample: (outputs, labels, outputs of the original, name of the class scores) -> `(n,)`, of one without classes
    also by the variances of all outputs of the original; unit: of its figures;
    better: 1 where larger is better, -1 where smaller is; labels, classes, reference: whether it needs labels, an
    output with a row of class scores, and another model to compare with; default: the case in which it is taken where
    none is named (`default_metric`), "" for none.
    """

    help: str
    per_sample: Callable[..., Array]
    unit: str
    better: int
    labels: bool = False
    classes: bool = True
    reference: bool = False
    default: Literal["", "labels", "labels of tokens", "classes", "outputs"] = ""


def _each(hits: Array, samples: int, counted: Array | None = None) -> Array:
    """Mean per sample of a figure per row: of a language model a sample has many rows."""
    counted = np.ones(len(hits)) if counted is None else counted
    hits, counted = (np.asarray(v, np.float64).reshape(samples, -1) for v in (np.where(counted > 0, hits, 0), counted))
    return np.asarray(hits.sum(1) / np.maximum(counted.sum(1), 1))


def _label_scores(y: Array, labels: Array) -> tuple[Array, Array]:
    """Scores of the labels, `(n, 1)`, and which rows have one."""
    flat = labels.ravel()
    return np.take_along_axis(y, np.where(flat == IGNORED, 0, flat)[:, None], 1), flat != IGNORED


def _ranked(y: Array, labels: Array, k: int) -> Array:
    scores = class_rows(y)
    label_scores, counted = _label_scores(scores, labels)
    return _each(((scores >= label_scores).sum(1) <= k) & np.isfinite(label_scores[:, 0]), len(y), counted)


def _loss(outputs: Outputs, labels: Array | None, reference: Outputs, classes: str) -> Array:
    assert labels is not None
    label_scores, counted = _label_scores(probabilities(outputs[classes]), labels)
    return _each(-np.log(np.maximum(label_scores[:, 0], 1e-30)), len(outputs[classes]), counted)


def _top(k: int) -> Callable[[Outputs, Array | None, Outputs, str], Array]:
    def per_sample(outputs: Outputs, labels: Array | None, reference: Outputs, classes: str) -> Array:
        assert labels is not None
        return _ranked(outputs[classes], labels, k)

    return per_sample


def _agreement(outputs: Outputs, labels: Array | None, reference: Outputs, classes: str) -> Array:
    a, b = (class_rows(o[classes]).argmax(1) for o in (outputs, reference))
    return _each(a == b, len(outputs[classes]))


def _mse(
    outputs: Outputs, labels: Array | None, reference: Outputs, classes: str, variances: Mapping[str, float]
) -> Array:  # fmt: skip
    n = max(len(y) for y in reference.values())
    parts = []
    for name, y in reference.items():
        if y.dtype.kind == "f" and len(y) == n:
            a, b = (v.reshape(n, -1).astype(np.float64) for v in (y, outputs[name]))
            parts.append(np.square(a - b).mean(1) / max(variances[name], 1e-12))
    return np.asarray(np.mean(parts, 0)) if parts else np.zeros(n)


METRICS: dict[str, Metric] = {
    "top1": Metric(
        "share of samples whose label has the largest score", _top(1), "share", 1, labels=True, default="labels"
    ),
    "top5": Metric("share of samples whose label is among the five largest scores", _top(5), "share", 1, labels=True),
    "agreement": Metric(
        "share of samples with the same largest score as in the original", _agreement, "share", 1, reference=True,
        default="classes",
    ),
    "loss": Metric(
        "cross entropy of the labels in nats; its exponential is the perplexity", _loss, "nats", -1, labels=True,
        default="labels of tokens",
    ),
    "mse": Metric(
        "squared distance from the original's outputs over their variance", _mse, "variances", -1, classes=False,
        reference=True, default="outputs",
    ),
}  # fmt: skip
DEFAULT_METRICS = {row.default: name for name, row in METRICS.items() if row.default}


@dataclass(frozen=True, eq=False)
class Score:
    """metric: its name; value: mean over samples; each: per sample `(n,)`, None where a function of the user's gives
    one number only; better: 1 where larger is better, else -1; answers: of a classifier, its classes."""

    metric: str
    value: float
    each: Array | None
    better: int = 1
    answers: Answers | None = None

    @property
    def samples(self) -> int | None:
        """How many samples it is the mean of; None where that is not known."""
        return None if self.each is None else len(self.each)

    @property
    def standard_error(self) -> float | None:
        """Standard error of the value; None where one number is all there is."""
        if self.each is None or len(self.each) < 2:
            return None
        return float(self.each.std(ddof=1)) / math.sqrt(len(self.each))


def is_function(source: object) -> bool:
    """True for `module:function`, and for a callable."""
    return callable(source) or (isinstance(source, str) and bool(re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source)))


MINIMIZED = "macs"  # where nobody says
MINIMIZE = {
    "latency": "seconds of a run", "energy": "joules of a run, by a model", "bytes": "of the file", "macs": "of a run",
    "memory": "bytes at the peak of a run, by a model", "params": "trained numbers",
}  # fmt: skip


@dataclass(frozen=True)
class Scoring:
    """What the user says of how good a model must be, and on what that is measured."""

    evaluate: Any = option(
        None, anything, panel=DATA, metavar="SRC", main=True,
        help="Measure before and after on this: any source that --calibration takes, with labels (an array labels, "
        "sub-folders per class, or --labels), or module:function in Python, which gets the path of a model. In Python "
        "also a function: path -> one number, or one per sample.",
    )  # fmt: skip
    labels: Any = option(
        None, anything, panel=DATA, metavar="FILE", needs=("samples to score",),
        help="Labels of --evaluate: .npy, .txt, .csv, .json.",
    )  # fmt: skip
    metric: str | None = option(
        None, choice({name: row.help for name, row in METRICS.items()}), panel=DATA, metavar="NAME",
        needs=("samples to score",),
        otherwise="{labels} with labels, else {classes} or {outputs}".format(**DEFAULT_METRICS),
        help="; ".join(f"{name}: {row.help}" for name, row in METRICS.items()) + ".",
    )  # fmt: skip
    max_drop: float | str | None = option(
        None, number("a fraction above 0, 0.01 or 1% is one point", 0, 1, above=True, below=True), panel=WHAT,
        metavar="D", unit="of the metric", needs=("no plan", "samples or a function to score"), main=True,
        help="The smallest model whose metric on --evaluate falls by at most D; 0.01 or 1% is one point. Searched on a "
        "third of the samples, confirmed on the rest, always on the model as it is written.",
    )  # fmt: skip
    minimize: str | None = option(
        None, choice(MINIMIZE), panel=WHAT, metavar="NAME", otherwise=MINIMIZED, needs=("a bound",),
        effect="exempt: what the search looks for",
        help=f"What --max-drop makes as small as the bound allows: {', '.join(MINIMIZE)}.",
    )  # fmt: skip


def refuse_misfit(samples: Samples) -> None:
    """Raise `OptionError` where samples of a classifier came with labels that do not fit."""
    if samples.misfit:
        raise OptionError(samples.misfit)


def tokens_of(samples: Samples, at: int = 0) -> int:
    """Labels that a sample has for its tokens; 0 where it has one, or none."""
    if samples.labels is None or samples.labels.ndim < 2:
        return 0
    lengths = None if samples.stackable else token_lengths(samples, samples.labels.shape[1])
    return int(samples.labels.shape[1] if lengths is None else lengths[at])


def class_offset(labels: Array, first: Array, output: Array, option: str) -> int:
    """1 where the model has a background class in front that the labels do not count, else 0.

    labels: int64 of all samples; first: of some; output: class scores of these; option: what the samples were given as.
    Raises `OptionError` where labels do not fit the scores.
    """
    scores = class_rows(output)
    classes = scores.shape[1]
    if first.size != len(scores):
        raise OptionError(
            f"{option}: labels: {first.size} of shape {first.shape} for {len(scores)} rows of class scores; give one "
            f"label per sample, or per token"
        )
    counted = labels[labels != IGNORED]
    if not counted.size:
        raise OptionError(f"{option}: labels: all {labels.size} are {IGNORED}, so that no token counts")
    if counted.min() < 0 or counted.max() >= classes:
        raise OptionError(
            f"{option}: labels go from {counted.min()} to {counted.max()}, the model has {classes} classes (0 to "
            f"{classes - 1}); give labels that count from 0"
        )
    if labels.ndim > 1 or classes != 1001 or labels.max() >= 1000:
        return 0
    hits = [_ranked(output, first + o, 1).mean() for o in (0, 1)]
    return int(hits[1] > hits[0])


@dataclass(frozen=True, eq=False)
class Part:
    """Samples whose outputs have one shape: all, unless sequences differ in length. samples: their indices; outputs: by
    name, joined along axis 0."""

    samples: Array
    outputs: Outputs


class Evaluator:
    """Scores models on one source; see `evaluator`."""

    def __init__(self, original: Model, samples: Samples, metric: str, *, threads: int = 0) -> None:
        self.samples, self.metric, self.threads = samples, metric, threads
        row = METRICS[metric]
        if row.labels:
            refuse_misfit(samples)
        self.names = [o.name for o in original.proto.graph.output]
        self.batch = fitting_batch(samples, original, option="--evaluate")
        self.alike: list[list[int]] = []  # batches of which outputs have one shape
        self.reference = self.outputs(original)
        self.variances = {} if row.classes else {name: self._variance(name) for name in self.names}
        first = self.reference[0]
        tokens = tokens_of(samples, int(first.samples[0]))
        self.classes = classifier_output(original, dict(first.outputs), len(first.samples), tokens)
        self.labels = None if samples.labels is None else np.asarray(samples.labels).astype(np.int64)
        if self.classes:
            refuse_misfit(samples)
        if row.labels and self.labels is None:
            raise OptionError(
                f"--metric {metric}: there are no labels; give an array `labels`, sub-folders per class, --labels "
                f"FILE, or --metric {DEFAULT_METRICS['classes']}"
            )
        if row.classes and not self.classes:
            other = DEFAULT_METRICS["outputs"]
            raise OptionError(f"--metric {metric}: the model has no output with a row of class scores; use {other}")
        self.offset = 0
        if row.labels and self.labels is not None:
            some = self._labels(first)
            assert some is not None
            self.offset = class_offset(self.labels, some, first.outputs[self.classes], "--evaluate")

    def outputs(self, model: Model) -> list[Part]:
        """Outputs of a model for all samples."""
        runs = list(self.samples.batches(self.batch))
        size, count = self.batch if self.samples.stackable else 1, self.samples.count
        indices = [np.arange(k, min(k + size, count)) for k in range(0, count, size)]
        batches = Stream(model, runs, threads=self.threads).compute(self.names)
        alike = joined_alike(batches, self.names, self.alike)
        self.alike = [which for which, _ in alike]
        return [Part(np.concatenate([indices[k] for k in which]), outputs) for which, outputs in alike]

    def __call__(self, model: Model) -> Score:
        return self.of(self.outputs(model))

    def of(self, outputs: Sequence[Part]) -> Score:
        """The score of the outputs of a model for all samples."""
        metric, values = METRICS[self.metric], list[Array]()
        for part, before in zip(outputs, self.reference, strict=True):
            labels = self._labels(part)
            labels = None if labels is None else labels + self.offset
            more = () if metric.classes else (self.variances,)
            values.append(metric.per_sample(part.outputs, labels, before.outputs, self.classes, *more))
        each = np.concatenate(values)
        if len(each) == self.samples.count:
            each = each[np.argsort(np.concatenate([part.samples for part in outputs]))]
        return Score(self.metric, float(each.mean()), each, metric.better, self._answers(outputs))

    def _variance(self, name: str) -> float:
        """Of an output of the original over all samples."""
        each = [part.outputs[name].astype(np.float64).ravel() for part in self.reference]
        return float(np.concatenate(each).var()) if each[0].size else 0.0

    def _labels(self, part: Part) -> Array | None:
        """Labels of some samples, of as many tokens as they have."""
        labels = None if self.labels is None else self.labels[part.samples]
        if labels is None or labels.ndim < 2 or self.samples.stackable or not self.classes:
            return labels
        return labels[:, : part.outputs[self.classes].shape[1]]

    def _answers(self, outputs: Sequence[Part]) -> Answers | None:
        if not self.classes:
            return None
        parts = []
        for part in outputs:
            found, labels = class_rows(part.outputs[self.classes]).argmax(1) - self.offset, self._labels(part)
            labelled = labels is not None and labels.size == found.size
            parts.append((part.samples, found, labels if labelled else None))
        return Answers.of(parts, self.samples.count)


class Function:
    """A function of the user's, `module:function` or a callable: the path of a model file -> one number, or one per
    sample."""

    def __init__(self, source: str | Callable[[str], Any]) -> None:
        if not isinstance(source, str):
            self.name, self.function = getattr(source, "__name__", type(source).__name__), source
            return
        self.name = source
        module, _, attribute = source.partition(":")
        sys.path.insert(0, os.getcwd())
        try:
            self.function = getattr(importlib.import_module(module), attribute)
        except Exception as e:  # whatever importing the user's code raises
            raise OptionError(f"--evaluate {source}: cannot be imported ({type(e).__name__}: {e})") from e
        finally:
            sys.path.pop(0)

    def __call__(self, model: Model) -> Score:
        with _written(model) as path:
            try:
                values = np.asarray(self.function(str(path)), np.float64)
            except Exception as e:  # the user's code
                raise OptionError(f"--evaluate {self.name}: the function raised {type(e).__name__}: {e}") from e
        if values.ndim > 1 or not values.size or not np.isfinite(values).all():
            raise OptionError(
                f"--evaluate {self.name}: expected one finite number, or one per sample; got {values!r:.80}"
            )
        return Score(self.name, float(values.mean()), values if values.ndim else None)


def scored(judges: Iterable[Evaluator | Function], model: Model) -> list[Score]:
    """A model's score by each, run once for all that have the same samples."""
    known: dict[int, list[Part]] = {}
    out = []
    for judge in judges:
        if isinstance(judge, Function):
            out.append(judge(model))
            continue
        key = id(judge.samples)
        if key not in known:
            known[key] = judge.outputs(model)
        out.append(judge.of(known[key]))
    return out


@contextmanager
def _written(model: Model) -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        yield path


def default_metric(original: Model, samples: Samples) -> str:
    """top1 with a label per sample, loss with one per token; without, agreement of a classifier, mse of the others."""
    few = samples.take(range(min(2 if samples.stackable else 1, samples.count)))
    names = [o.name for o in original.proto.graph.output]
    outputs = joined(Stream(original, list(few.batches(1))).compute(names), names)
    if not classifier_output(original, outputs, few.count, tokens_of(few)):
        return DEFAULT_METRICS["outputs"]
    refuse_misfit(samples)
    if samples.labels is None:
        return DEFAULT_METRICS["classes"]
    return DEFAULT_METRICS["labels of tokens" if np.ndim(samples.labels) > 1 else "labels"]


def metric_of(original: Model, samples: Samples, asked: str | None, labels: Any) -> str:
    """The metric that is asked for, else the default; raises `OptionError` for labels that it has no use for."""
    name = asked or default_metric(original, samples)
    if labels is not None and not METRICS[name].labels:
        raise OptionError(f"--labels has no effect: --metric {name} compares with another model")
    return name


@dataclass(frozen=True)
class Drop:
    """By how much `after` is worse than `before`, and an upper confidence bound; of `mse` the rise.

    samples: compared, in pairs; None for a function that gives one number, which has no bound; changes: of a
    classifier, the samples that it answers in another way.
    """

    metric: str
    before: float
    after: float
    drop: float
    bound: float | None
    samples: int | None
    changes: Changes | None = None

    def holds(self, limit: float) -> bool:
        """Whether the metric falls by at most so much, with confidence where there is a bound; False for no number."""
        return (self.drop if self.bound is None else self.bound) <= limit

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON, with the confidence of the bound."""
        return {
            "metric": self.metric, "before": self.before, "after": self.after, "drop": self.drop,
            "bound": self.bound, "confidence": CONFIDENCE, "samples": self.samples,
            "changed": None if self.changes is None else self.changes.to_dict(),
        }  # fmt: skip


def drop(before: Score, after: Score, indices: Array | None = None) -> Drop:
    """By how much the metric falls from one score to the other, in pairs, on all samples or those at `indices`.

    The bound is one-sided: for shares of hits that of Bonett and Price (2012), which adds one hit lost and one gained,
    so that a few samples without a loss prove little; else that of the normal distribution.
    """
    if before.each is None or after.each is None:
        lost = (before.value - after.value) * before.better
        return Drop(before.metric, before.value, after.value, lost, None, None)
    if len(before.each) != len(after.each):
        raise OptionError(f"{before.metric}: {len(before.each)} samples of one model, {len(after.each)} of the other")
    chosen = slice(None) if indices is None else indices
    a, b = before.each[chosen], after.each[chosen]
    n = len(a)
    difference = (a - b) * before.better
    lost, z = float(difference.mean()), float(ndtri(CONFIDENCE))
    if set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0}:
        worse, better = ((difference > 0).sum() + 1) / (n + 2), ((difference < 0).sum() + 1) / (n + 2)
        bound = worse - better + z * math.sqrt((worse + better - (worse - better) ** 2) / (n + 2))
    else:
        bound = lost + z * float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    changed = changes(before.answers, after.answers, indices)
    return Drop(before.metric, float(a.mean()), float(b.mean()), lost, float(bound), n, changed)
