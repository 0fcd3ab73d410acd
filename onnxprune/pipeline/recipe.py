"""The recipe, and all options together.

    load -> analyze -> calibrate -> regularize -> plan -> cut (+ law) -> recover -> sparsify -> cluster -> tune -> stamp
         -> measure -> report

`run` reads top to bottom; `make` (pipeline/make.py) is the part from the cut on, whose every stage is one call that
gives back a `Step`. Searches are loops around it: a target chooses the plan (allocation/choose.py), `--steps` chooses
anew on what `make` left, and `--max-drop` (pipeline/search.py) scores what `make` made, which is what gets written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.allocation.select import KeptUnits
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.evaluation.fidelity import Fidelity, fidelity
from onnxprune.evaluation.measure import file_bytes, told
from onnxprune.evaluation.metrics import Drop, drop
from onnxprune.graph.io import Model, load, save, to_proto
from onnxprune.options import in_python
from onnxprune.pipeline.learn import chosen_first, learned
from onnxprune.pipeline.make import chooser_of, limits_of, make, plan_of
from onnxprune.pipeline.options import OPTIONS, Options
from onnxprune.pipeline.prepare import analyzed, prepared
from onnxprune.pipeline.reporting import report_of
from onnxprune.pipeline.search import search
from onnxprune.pipeline.setup import Pruning, Setup
from onnxprune.pipeline.targets import held
from onnxprune.pipeline.ways import Ways
from onnxprune.plan import Plan
from onnxprune.progress import Clock, Progress, silent
from onnxprune.report import Report
from onnxprune.solvers.threads import blas_threads
from onnxprune.structure.analysis import Analysis

if TYPE_CHECKING:
    from typing import Unpack

    from onnxprune.pipeline.keywords import Keywords


@dataclass(frozen=True, eq=False)
class Result:
    """model: the pruned model (a graphsurgeon `Graph` where one came in), None after a dry run; plan: what was kept;
    report: what was gained and what it cost."""

    model: Any
    plan: Plan
    report: Report
    analysis: Analysis
    written: Model | None

    def save(self, path: str | os.PathLike[str]) -> Report:
        """Write the pruned model, atomically; the report then names the file and its size.

        Raises `OptionError` after a dry run, `ModelFileError` where the file cannot be written.
        """
        if self.written is None:
            raise OptionError("a dry run has no model to save")
        save(self.written, path)
        after = replace(self.report.after, bytes=file_bytes(self.written, Path(path)))
        return replace(self.report, output=str(path), after=after)

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def prune(source: Any, *, progress: Progress = silent, **options: Unpack[Keywords]) -> Result:
    """Remove channels, heads, streams, blocks, structurally; then make weights sparse, cluster them, store them.

    source: path, bytes, `ModelProto`, graphsurgeon `Graph` or `Model`; it is not changed. The options are those of the
    command line, docs/options.md has them all: `prune("model.onnx", channels=0.3, calibration="images/")`.
    progress: told of the stages.

    Raises `OptionError`, `ModelFileError`, `NothingToPrune` (the user's side), `VerificationError` (ours), `TypeError`
    for an unknown option.
    """
    try:
        return run(source, Options.of(options), progress=progress)
    except OnnxPruneError as e:
        raise type(e)(in_python(str(e), OPTIONS)) from e


def run(source: Any, options: Options, *, progress: Progress = silent) -> Result:
    """The whole recipe, in the words of the command line; see the module's docstring."""
    with blas_threads(1):
        return _run(source, options, progress)


def _run(source: Any, options: Options, progress: Progress) -> Result:
    clock = Clock(progress)
    clock("load")
    model = load(source)
    clock("analyze")
    analysis, recorded = analyzed(model, options)
    setup = prepared(analysis, recorded, options, clock)
    clock("plan")
    verdict: Drop | None = None
    chooser = None if setup.recorded is not None or not options.structural else chooser_of(setup)
    ways = None if chooser is None else Ways(setup, chooser)
    keeps: KeptUnits | None = None if setup.recorded is None else dict(setup.recorded.keep)
    if setup.options.training.regularize is not None:
        if chooser is not None and chosen_first(setup):
            keeps = chooser.choose(limits_of(setup)).keeps
        setup = learned(setup, keeps or {})
        chooser = chooser if chooser is None or keeps is not None else chooser_of(setup)
        clock("plan")
        ways = None if chooser is None else Ways(setup, chooser)
    if ways is not None and options.searched:
        pruning, verdict = held(setup, ways)
    elif ways is not None and options.scoring.max_drop is not None:
        pruning, verdict = search(setup, ways, float(options.scoring.max_drop))
    else:
        if keeps is None:
            keeps = {} if chooser is None else chooser.choose(limits_of(setup)).keeps
        pruning = make(setup, setup.recorded or plan_of(setup, keeps))
    close, verdict, notes = compared(setup, pruning, verdict)
    pruning = replace(pruning, notes=(*pruning.notes, *notes))
    report = report_of(setup, chooser, pruning, close, verdict)
    clock("")
    report = replace(report, seconds=dict(clock.seconds), expected=clock.expected)
    written = None if setup.dry else pruning.model
    return Result(as_given(source, written), pruning.plan, report, analysis, written)


def compared(setup: Setup, pruning: Pruning, verdict: Drop | None) -> tuple[Fidelity | None, Drop | None, list[str]]:
    """How close the outputs of the model that is written are to the original's on the samples, how it scores, and what
    of that cannot be said."""
    model, data, evaluator, score = pruning.model, setup.data, setup.evaluator, setup.score
    notes: list[str] = []
    if model is None or setup.dry or (data is None and evaluator is None):
        return None, verdict, notes
    setup.clock("compare")
    close = None
    if data is not None:
        compare = partial(fidelity, setup.original, pruning.keep, model, data)
        close = told("outputs not compared with the original's", compare, notes)
    if verdict is None and evaluator is not None and score is not None:
        verdict = told("the result was not scored", lambda: drop(score, evaluator(model)), notes)
    return close, verdict, notes


def as_given(source: Any, model: Model | None) -> Any:
    """The model in the form that came in: a graphsurgeon `Graph` for one, else `Model`."""
    if model is None or not type(source).__module__.startswith("onnx_graphsurgeon"):
        return model
    import onnx_graphsurgeon as gs

    return gs.import_onnx(to_proto(model))
