"""What is trained towards: terms of a loss, each of an output and of what it is compared with.

A row of `LOSSES` adds the nodes of one term (the formulas are in gradient/losses.py) and says what it compares with:
the labels, or the original's outputs. A function of the user's, or an ONNX model, takes the place of all terms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.errors import OptionError, UserError
from onnxprune.gradient.backward import OPSET, Backward
from onnxprune.gradient.losses import absolute_error, cross_entropy, kullback_leibler, mixed_entropy, squared_error
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import load
from onnxprune.graph.shapes import graph_inputs
from onnxprune.graph.versions import raised
from onnxprune.options import shown
from onnxprune.runtime.classes import classifier_output, probabilities
from onnxprune.runtime.session import Feeds

LEAST = 1e-30  # probability whose logarithm is taken
TEMPERATURE = 4.0  # of classifiers of samples: resnet20 at half of its MACs gains 3.2 points in 100 steps, at 1 2.3
NO_LABELS = (
    "--train: there are no labels; give an array labels, sub-folders per class or --train-labels FILE, or a --loss "
    "that needs none"
)
DISTIL = 0.5  # weight of distillation beside labels
LABELS, OTHERS, SHARE = "labels", "other labels", "share"  # what comes with a batch beside the original's outputs
Function = Callable[[Backward, Sequence[str], str], str]  # model, its outputs, labels ("" without) -> the loss


@dataclass(frozen=True)
class Target:
    """A term of the loss. output: that is compared; loss: a row of `LOSSES`; probabilities: the output holds some, no
    scores; variance: of the original's values; weight: in the sum; temperature: as of `kullback_leibler`; mixed: every
    sample has two labels, of which one counts for a share; counted: only tokens that have a label count."""

    output: str
    loss: str
    probabilities: bool = False
    variance: float = 1.0
    weight: float = 1.0
    temperature: float = 1.0
    mixed: bool = False
    counted: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """What it is compared with, as batches call it."""
        if not LOSSES[self.loss].labels:
            return (self.output, LABELS) if self.counted else (self.output,)
        return (LABELS, OTHERS, SHARE) if self.mixed else (LABELS,)


@dataclass(frozen=True)
class Loss:
    """help: for the user; nodes: adds those of a term, given the tensors of `Target.keys`; labels: it compares with
    labels, else with the original's outputs; classes: the output must hold class scores; target: of the original's
    output."""

    help: str
    nodes: Callable[[Backward, Target, Sequence[str]], str]
    labels: bool = False
    classes: bool = False
    target: Callable[[Array], Array] = lambda y: y.astype(np.float32)


def _kl(b: Backward, t: Target, given: Sequence[str]) -> str:
    return kullback_leibler(b, t.output, *given, probabilities=t.probabilities, temperature=t.temperature)


def _entropy(b: Backward, t: Target, given: Sequence[str]) -> str:
    if t.mixed:
        return mixed_entropy(b, t.output, given[0], given[1], given[2], probabilities=t.probabilities)
    return cross_entropy(b, t.output, given[0], probabilities=t.probabilities)


def _logarithms(y: Array) -> Array:
    """Logarithms of probabilities, float32 in the shape of the scores."""
    return np.log(np.maximum(probabilities(y), LEAST)).astype(np.float32).reshape(y.shape)


LOSSES: dict[str, Loss] = {
    "cross-entropy": Loss("-log of the probability of the label", _entropy, labels=True, classes=True),
    "kl": Loss("divergence of the original's probabilities from the model's", _kl, classes=True, target=_logarithms),
    "squared-error": Loss(
        "(y - t)^2 over the variance of the original's outputs",
        lambda b, t, given: squared_error(b, t.output, given[0], t.variance),
    ),
    "absolute-error": Loss(
        "|y - t| over the deviation of the original's outputs",
        lambda b, t, given: absolute_error(b, t.output, given[0], t.variance),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """terms: of the loss; function: that takes their place, and its name; outputs: that it gets; rank: of the labels, 0
    without."""

    terms: tuple[Target, ...]
    function: Function | None = None
    outputs: tuple[str, ...] = ()
    rank: int = 0
    name: str = ""

    @property
    def description(self) -> str:
        """As --loss has it."""
        if self.function is not None:
            return self.name
        weights: dict[str, float] = {}
        for t in self.terms:
            weights[t.loss] = weights.get(t.loss, 0.0) + t.weight
        return shown_weights(weights)

    @property
    def taught(self) -> bool:
        """Whether it takes the original's outputs."""
        return any(not LOSSES[t.loss].labels for t in self.terms)

    @property
    def keys(self) -> tuple[str, ...]:
        """All that a batch is compared with."""
        if self.function is not None:
            return (LABELS,) if self.rank else ()
        return tuple(dict.fromkeys(key for t in self.terms for key in t.keys))

    def add(
        self, b: Backward, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> tuple[str, dict[str, str]]:  # fmt: skip
        """Add the nodes of the loss to a model: its name, and those of the inputs that its keys became. shapes: that
        these state, by default any batch."""
        first = self.outputs[0] if self.outputs else self.terms[0].output
        names = {key: self._input(b, key, first, (shapes or {}).get(key)) for key in self.keys}
        if self.function is not None:
            return self.function(b, self.outputs, names.get(LABELS, "")), names
        parts = [
            b.scale(LOSSES[t.loss].nodes(b, t, [names[key] for key in t.keys]), t.weight)
            for t in self.terms
        ]  # fmt: skip
        return b.add(parts), names

    def _input(self, b: Backward, key: str, output: str, shape: tuple[int, ...] | None) -> str:
        if key not in (LABELS, OTHERS, SHARE):
            return b.input_like(f"{key}_target", key, shape or [None] * b.rank(key))
        code = b.code(output) if key == SHARE else TensorProto.INT64
        rank = 1 if key == SHARE else self.rank
        return b.input(key.replace(" ", "_"), code, [None] * rank, [s[:rank] for s in b.sizes(output)])


def teach(targets: Sequence[Target], outputs: Feeds) -> Feeds:
    """The original's outputs as targets, by key."""
    return {
        t.output: LOSSES[t.loss].target(outputs[t.output]) for t in targets if not LOSSES[t.loss].labels
    }  # fmt: skip


def label_feeds(objective: Objective, labels: Array | None) -> Feeds:
    """What a batch of samples is compared with by its labels, each of one class alone."""
    if labels is None or LABELS not in objective.keys:
        return {}
    return {LABELS: labels, OTHERS: labels, SHARE: np.ones(len(labels), np.float32)}


# what the user asks for


def parse(value: Any) -> Any:
    """`kl`, or `kl:0.5,cross-entropy:0.5`, or the path of a .onnx; in Python also a callable. Raises `ValueError`."""
    if callable(value):
        return value
    if isinstance(value, os.PathLike) or (isinstance(value, str) and value.lower().endswith(".onnx")):
        return Path(value)
    weights = weighted(value)
    return shown_weights(weights)


def shown_weights(weights: Mapping[str, float]) -> str:
    """Row -> weight as `parse` reads them."""
    return ",".join(f"{name}:{weight:g}" if weight != 1 else name for name, weight in weights.items())


parse.choices = {name: row.help for name, row in LOSSES.items()}  # type: ignore[attr-defined]


def weighted(value: Any) -> dict[str, float]:
    """Row of `LOSSES` -> weight. Raises `ValueError`."""
    expected = (
        f"unknown; choose one of {', '.join(LOSSES)}, several with weights as kl:0.5,cross-entropy:0.5, or a .onnx file"
    )
    if not isinstance(value, str):
        raise ValueError(expected)
    out: dict[str, float] = {}
    for part in value.split(","):
        name, mark, weight = part.strip().lower().partition(":")
        try:
            out[name] = float(weight) if mark else 1.0
        except ValueError:
            raise ValueError(expected) from None
        if name not in LOSSES or not 0 < out[name] < np.inf:
            raise ValueError(expected)
    return out


def objective_of(
    original: Any, outputs: Feeds, samples: int, *, loss: Any = None, labels: Array | None = None, mixed: bool = False,
    distil: float = DISTIL, classes: str = "",
) -> Objective:  # fmt: skip
    """What a model is trained towards.

    outputs: of the original for some samples; loss: as `parse` gives it, by default the classes of a classifier, by
    their labels where there are some and by the original's probabilities, else all floating outputs by their values;
    mixed: samples have two labels each; distil: weight of the original beside labels; classes: the output of class
    scores, where that is known. Raises `UserError` where the model or the samples have not what a loss needs.
    """
    rank = 0 if labels is None else labels.ndim
    if callable(loss) or isinstance(loss, Path):
        if mixed:
            raise OptionError("--augment mixup has no effect on a loss of your own: it knows one label per sample")
        function = loss if callable(loss) else function_of(loss, rank)
        return Objective((), function, tuple(outputs), rank, shown(loss))
    classes = classes or classifier_output(original, outputs, samples)
    asked = weighted(loss) if loss else {}
    for name in asked:
        if LOSSES[name].classes and not classes:
            raise OptionError(f"--loss {name}: the model has no output with a row of class scores")
        if LOSSES[name].labels and labels is None:
            raise OptionError(f"--loss {name}: there are no labels; give --train SRC with some, or --train-labels")
    if not asked and classes:
        asked = {"kl": 1.0} if labels is None else {"cross-entropy": 1 - distil, "kl": distil}
        asked = {name: weight for name, weight in asked.items() if weight}
    tokens = labels is not None and labels.ndim > 1
    if labels is not None and not tokens and not any(LOSSES[name].labels for name in asked):
        labels = None
    floats = [name for name, y in outputs.items() if y.dtype.kind == "f" and y.size]
    if not floats:
        raise UserError("tuning needs an output of a floating type, and the model has none")
    terms: list[Target] = []
    for name, weight in (asked or {"squared-error": 1.0}).items():
        if LOSSES[name].classes:
            y = outputs[classes]
            given = bool((y >= 0).all() and np.allclose(y.reshape(len(y), -1).sum(1), 1, atol=1e-3))
            hot = TEMPERATURE if y.ndim == 2 and not LOSSES[name].labels else 1.0
            by_label = LOSSES[name].labels
            terms.append(
                Target(
                    classes, name, given, weight=weight, temperature=hot, mixed=mixed and by_label,
                    counted=tokens and not by_label,
                )
            )  # fmt: skip
        else:
            for n in floats:
                variance = float(np.var(outputs[n], dtype=np.float64)) or 1.0
                terms.append(Target(n, name, variance=variance, weight=weight / len(floats)))
    return Objective(tuple(terms), rank=0 if labels is None else rank)


def function_of(path: Path, rank: int) -> Function:
    """The loss that an ONNX model computes: inputs named as outputs of the trained model, or one by itself, and
    `labels`; its only output is one number. Raises `OptionError` where it does not fit."""
    from onnxprune.gradient.through import inlined  # which few need, and which takes a while to be read

    what = f"--loss {path}"
    model = raised(load(path), OPSET)
    graph = model.proto.graph
    names = [i.name for i in graph_inputs(model)]
    if len(graph.output) != 1:
        raise OptionError(f"{what}: expected one output, the loss; it has {len(graph.output)}")
    if LABELS in names and not rank:
        raise OptionError(f"{what}: it reads labels, and there are none; give --train SRC with labels")

    def add(b: Backward, outputs: Sequence[str], labels: str) -> str:
        known: Mapping[str, str] = {name: name for name in outputs} | ({LABELS: labels} if labels else {})
        free = [name for name in names if name not in known]
        inside = dict(known)
        if len(free) == 1 and len(outputs) == 1:
            inside[free[0]] = outputs[0]
        elif free:
            raise OptionError(f"{what}: the model has no output {free[0]}; it has {', '.join(outputs)}")
        inside |= {name: b.constant(w) for name, w in model.weights.items()}
        inlined(b, graph.node, inside)
        return inside[graph.output[0].name]

    return add
