"""What the stages work on, and what they made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.allocation.budget import Meter, Tables
from onnxprune.allocation.outcome import Tried
from onnxprune.allocation.recipe import Recipe
from onnxprune.calibration.calibration import Calibration
from onnxprune.evaluation.metrics import Evaluator, Function, Score
from onnxprune.evaluation.training_set import TrainingSet
from onnxprune.formats.codebook import Codebooks
from onnxprune.graph.cost import CostModel
from onnxprune.graph.io import Model
from onnxprune.latency.model import LatencyModel
from onnxprune.pipeline.options import Options
from onnxprune.plan import Plan
from onnxprune.progress import Clock
from onnxprune.recovery.cut_model import LayerFit
from onnxprune.runtime.session import Feeds
from onnxprune.sparsity.outcome import Sparsity
from onnxprune.sparsity.spec import Spec
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.cut import Cutting
from onnxprune.training.outcome import SparseLearning, Tuning


@dataclass(frozen=True, eq=False)
class Setup:
    """What the stages work on: what was asked, the analysed model, and what choosing and recovering rest on.

    meters: of the budgets that are limited, made with these tables; recorded: the plan that is replayed; data,
    evaluator, train: None without samples; score: of the original, None where none is needed; recipe: how units are
    scored, what goes of each group, and how the loss is made up for; original: of the model as it came, where
    `analysis` is of the one that a training under a penalty made of it; learning: what became of that, None without;
    clusters: values of every codebook, or weight -> these, None without codebooks.
    """

    options: Options
    analysis: Analysis
    costs: CostModel
    meters: Mapping[str, Meter]
    tables: Tables
    recorded: Plan | None
    spec: Spec
    data: Calibration | None
    evaluator: Evaluator | Function | None
    score: Score | None
    recipe: Recipe
    clock: Clock
    notes: tuple[str, ...]
    train: TrainingSet | None
    original: Analysis
    speed: LatencyModel | None = None
    learning: SparseLearning | None = None
    clusters: int | Mapping[str, int] | None = None

    @property
    def dry(self) -> bool:
        """Whether no model is asked for."""
        return self.options.check.dry_run


@dataclass(frozen=True, eq=False)
class Pruning:
    """What a plan made of the model: the last stage's model, and every stage's outcome; model: None after a dry run."""

    plan: Plan
    keep: Keep
    model: Model | None
    cut: Cutting | None = None
    fits: tuple[LayerFit, ...] = ()
    sparsity: Sparsity | None = None
    codebooks: Codebooks | None = None
    tuning: Tuning | None = None
    notes: tuple[str, ...] = ()
    feeds: tuple[Feeds, ...] = ()  # inputs of the original with which the check ran, or guesses
    recovered: Model | None = None  # before zeros and codebooks
    tried: tuple[Tried, ...] = ()  # by a search over methods


def recorded_samples(data: Calibration, recipe: Recipe) -> dict[str, Any]:
    """The samples as a plan names them."""
    return {
        "digest": data.samples.digest, "description": data.samples.description,
        "samples": data.samples.count + (0 if data.aside is None else data.aside.count),
        "synthetic": data.synthetic, "ridge": recipe.ridge,
    }  # fmt: skip
