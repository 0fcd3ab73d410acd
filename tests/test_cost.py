"""Multiply-accumulates by hand."""

from __future__ import annotations

from models.rules import build, text
from onnxprune.graph.cost import cost_model
from onnxprune.graph.io import load
from onnxprune.graph.node import walk_all
from onnxprune.structure.groups import analyze


def macs(source: str) -> float:
    analysis = analyze(load(build(source)))
    c = analysis.coupling
    nodes = walk_all(analysis.model.proto.graph, c.shapes.opsets)
    return cost_model(nodes, c.shapes, c.axes, c.grouped).macs(analysis.keep_ids({}))


def test_macs_of_an_lstm_do_not_depend_on_the_output_that_is_read() -> None:
    weights = "float[1,32,3] w1, float[1,32,8] r1"
    expected = 6 * 2 * 32 * (3 + 8)
    for outputs in ("y", ", y", ", , y"):
        assert macs(text("float[6,2,3] x", weights, f"{outputs} = LSTM<hidden_size = 8>(x, w1, r1)")) == expected


def test_macs_of_a_product_with_its_left_side_transposed() -> None:
    nodes = "y = com.microsoft.FusedMatMul<transA = 1>(x, w1)"
    assert macs(text("float[2,3,5] x", "float[3,8] w1", nodes)) == 2 * 5 * 3 * 8
