"""The rule of every operator: what it frees or pins in every row, and the law; the tables of rules and barriers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from law import cut, shrink
from models.forms import TRANSFORMERS
from models.rules import ROWS, Row, build, describe, text
from onnxprune.graph.io import Model, load, to_proto
from onnxprune.graph.node import walk_all
from onnxprune.graph.shapes import concrete_inputs
from onnxprune.runtime.feeds import random_feeds
from onnxprune.structure.analysis import Analysis, Keep
from onnxprune.structure.check import check_file
from onnxprune.structure.groups import analyze
from onnxprune.structure.masked import masked_model
from onnxprune.structure.rules import BARRIERS, RULES
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import tolerance, verify

LATEST = onnx.defs.onnx_opset_version()
SCHEMAS = {s.name: s for s in onnx.defs.get_all_schemas() if s.domain == ""}


def reference_error(analysis: Analysis, keep: Keep, pruned: Model) -> float:
    """Largest difference between masked and pruned model over the largest value, both run by onnx's own evaluator."""
    model = analysis.model
    feeds = random_feeds(model, analysis.coupling.shapes, next(concrete_inputs(model)))
    models = (masked_model(analysis, keep), pruned)
    values: list[Any] = [ReferenceEvaluator(to_proto(m)).run(None, feeds) for m in models]
    expected, found = (np.asarray(v[0]) for v in values)
    assert expected.shape == found.shape
    return float(np.abs(expected - found).max() / np.abs(expected).max())


@pytest.mark.parametrize("row", ROWS, ids=[f"{r.op.removeprefix('com.microsoft::')}-{r.form}" for r in ROWS])
def test_rule(row: Row) -> None:
    if row.opset > LATEST:
        pytest.skip(f"this onnx ends at opset {LATEST}")
    channels = any(" channels: " in line for line in row.expect)
    result = cut(build(row.text), check=channels and row.law == "onnxruntime")
    analysis, kinds = result.analysis, {g.kind for g in result.analysis.groups}
    assert describe(analysis) == row.expect
    assert (result.removed > 0) == channels
    if result.verification:
        allowed = 2e-2 if tolerance(analysis) > 1e-2 else 1e-5  # 8 bits: a step is about a hundredth
        assert result.error <= allowed
    if kinds - {"channels"}:
        keep = shrink(analysis, kinds)
        assert not keep.all()
        if row.law == "onnxruntime":
            assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5
        check_file(analysis.model, prune_model(analysis, keep))
    if row.law != "onnxruntime":
        keep = shrink(analysis, ("channels",))
        check_file(analysis.model, result.pruned)
        if row.law == "reference":
            assert reference_error(analysis, keep, prune_model(analysis, keep)) <= 1e-5


def test_lp_normalization_counts_what_goes_as_zero() -> None:
    for row in ROWS:
        if row.op == "LpNormalization" and "hidden" in row.expect[0]:
            analysis = analyze(load(build(row.text)))
            keep = shrink(analysis, ("hidden",))
            assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5


def test_what_a_row_says_is_unique() -> None:
    names = [(r.op, r.form) for r in ROWS]
    assert len(set(names)) == len(names)
    assert len({(r.op, r.text) for r in ROWS}) == len(ROWS)


def test_every_rule_has_a_row_that_holds_its_operator() -> None:
    for row in ROWS:
        assert row.op.replace("::", ".") in row.text, row
    forms = {node.op for f in TRANSFORMERS.values() for node in walk_all(f.build().graph, {})}
    assert {r.op for r in ROWS} | (forms & RULES.keys()) == RULES.keys()


# the tables


def test_every_operator_of_onnx_has_a_rule_or_is_a_barrier() -> None:
    assert SCHEMAS.keys() <= RULES.keys() | BARRIERS.keys()
    assert not RULES.keys() & BARRIERS.keys()


def test_tables_explain_themselves() -> None:
    assert [op for op, r in RULES.items() if not r.summary] == []
    assert [op for op, reason in BARRIERS.items() if not reason] == []


def beside(op: str, inputs: int = 1) -> onnx.ModelProto:
    """A layer that ends in the operator, whose result nobody reads, and an independent pair of layers."""
    name = op.replace("::", ".")
    nodes = f"h = Conv(x, w1) t = {name}({', '.join(['h'] * inputs)}) g = Conv(x, w2) r = Relu(g) y = Conv(r, w3)"
    weights = "float[8,3,1,1] w1, float[8,3,1,1] w2, float[4,8,1,1] w3"
    return build(text("float[2,3,6,6] x", weights, nodes, opset=LATEST))


@pytest.mark.parametrize("op", sorted(BARRIERS))
def test_barrier_pins_what_it_touches_and_nothing_else(op: str) -> None:
    inputs = max(1, SCHEMAS[op].min_input) if op in SCHEMAS else 3
    result = cut(beside(op, inputs), check=False)
    assert describe(result.analysis) == ("8 channels: w2:0 w3:1", f"w1:0 pinned: {BARRIERS[op]}")
    assert result.pruned.weights["w2"].shape == (5, 3, 1, 1)
    assert result.pruned.weights["w1"].shape == (8, 3, 1, 1)


@pytest.mark.parametrize("op", ["elsewhere::Magic", "elsewhere::Relu", "com.microsoft::Inverse"])
def test_unknown_operator_pins_what_it_touches_and_nothing_else(op: str) -> None:
    result = cut(beside(op), check=False)
    assert describe(result.analysis) == ("8 channels: w2:0 w3:1", "w1:0 pinned: no rule for this operator")
    pinned = {p.tensor: p for p in result.analysis.pinned}["w1"]
    assert (pinned.op, pinned.node) == (op, f"{op.rpartition(':')[2]}(t)")
