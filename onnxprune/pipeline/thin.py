"""What the training of thin networks has in common: how weights are chosen, and a cut that nothing makes up for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.experiments.masks import RANDOM, Choice
from onnxprune.graph.io import Model
from onnxprune.options import declared
from onnxprune.pipeline.options import OPTIONS, Options
from onnxprune.pipeline.recipe import Result, run
from onnxprune.progress import silent
from onnxprune.solvers.masks import SOLVERS, needs_labels
from onnxprune.sparsity.options import PLAIN_SOLVER, Zeros
from onnxprune.structure.analysis import Keep
from onnxprune.structure.cut import cut
from onnxprune.structure.groups import analyze
from onnxprune.training.weights import trainable

UNITS = "l2"  # of units, what magnitude is of weights
SCORES = {
    PLAIN_SOLVER: "|w|; of channels the l2 norm of theirs",
    RANDOM: "at random",
    **{name: row.help for name, row in SOLVERS.items() if row.gradients},
}


def choice_of(importance: str, values: Mapping[str, Any]) -> Choice:
    """How single weights are chosen, by options."""
    zeros = Zeros(**{o.name: values[o.name] for o in declared(Zeros) if o.name in values and o.name != "sparsity"})
    return Choice(importance, zeros, ignore=values["ignore"], seed=values["seed"])


def fewer_channels(model: Model, amount: Any, importance: str, values: Mapping[str, Any], seed: int) -> Result:
    """A model without a part of its channels, as it is then, and the plan.

    amount: as of --channels; importance: as of a cut; values: options ignore, round_to, threads, and train for
    importances by labels. Raises `UserError`.
    """
    name = UNITS if importance == PLAIN_SOLVER else importance
    asked = {
        "channels": amount, "importance": name, "recover": "none", "round_to": values["round_to"],
        "ignore": values["ignore"], "seed": seed, "threads": values["threads"], "measure": False,
    }  # fmt: skip
    if needs_labels(name) or name == "fisher":
        asked |= {"train": values["train"], "train_labels": values["train_labels"]}
    return run(model, Options.of(asked))


def without(model: Model, keep: Mapping[str, Keep], seed: int) -> Model:
    """A model without the units that are False, by group, shown to compute what the masked one does."""
    analysis = analyze(model)
    return cut(analysis, analysis.keep_ids(dict(keep)), check=True, input_shapes={}, seed=seed, stage=silent).model


def refuse_idle(values: Mapping[str, Any], structured: bool, with_channels: str) -> None:
    """Raise `OptionError` for options of single weights beside a cut, and the other way round.

    with_channels: the option that asks for a cut.
    """
    default = {o.name: o.default for o in OPTIONS}
    single = [n for n in ("pattern", "sparsity_allocate") if values[n] != default[n]]
    if structured and single:
        raise OptionError(f"--{single[0].replace('_', '-')} is of single weights; leave it out with {with_channels}")
    if not structured and values["round_to"] != default["round_to"]:
        raise OptionError(f"--round-to needs {with_channels}: single weights have no width")


def size(model: Model) -> int:
    """How many values are trained."""
    return sum(int(model.weights[name].size) for name in trainable(model))
