"""What depends on what: views and their factors, kinds of groups, groups of convolutions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from law import cut, shrink
from models.rules import build, describe, text
from models.rules.products import ATTENTION, ATTENTION_WEIGHTS
from onnxprune.graph.io import load
from onnxprune.structure.groups import analyze
from onnxprune.structure.segments import axis_segments, common_factors
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import verify

# coupling: views


@pytest.mark.parametrize(
    ("xs", "ys", "runs"),
    [
        ((2, 12, 5), (2, 3, 4, 5), [((0, 1), (0, 1)), ((1, 2), (1, 3)), ((2, 3), (3, 4))]),
        ((2, 8, 6, 6), (2, 288), [((0, 1), (0, 1)), ((1, 4), (1, 2))]),
        ((6, 4), (4, 6), [((0, 2), (0, 2))]),
        ((6, 4), (6, 4), [((0, 1), (0, 1)), ((1, 2), (1, 2))]),
        ((4, 6, 10), (8, 3, 10), [((0, 2), (0, 2)), ((2, 3), (2, 3))]),
        ((8,), (8, 1, 1), [((0, 1), (0, 1)), ((1, 1), (1, 2)), ((1, 1), (2, 3))]),
        ((), (1,), [((0, 0), (0, 1))]),
    ],
)
def test_segments(xs: tuple[int, ...], ys: tuple[int, ...], runs: list[tuple[tuple[int, int], ...]]) -> None:
    found = list(axis_segments(xs, ys))
    assert [((i.start, i.stop), (j.start, j.stop)) for i, j in found] == runs
    for i, j in found:
        assert np.prod([xs[k] for k in i]) == np.prod([ys[k] for k in j])


@pytest.mark.parametrize(
    ("xs", "ys", "factors"),
    [
        ((6, 4), (2, 12), [2, 3, 4]),
        ((6, 4), (8, 3), None),
        ((12,), (3, 4), [3, 4]),
        ((2, 3, 4), (24,), [2, 3, 4]),
        ((4, 6), (2, 2, 3, 2), [2, 2, 3, 2]),
        ((6, 4), (4, 6), None),
    ],
)
def test_factors(xs: tuple[int, ...], ys: tuple[int, ...], factors: list[int] | None) -> None:
    assert common_factors(xs, ys) == factors == common_factors(ys, xs)


def found(weights: str, nodes: str, x: str = "float[2,3,6,6] x") -> tuple[str, ...]:
    """What is found in a model; where something is free the law holds."""
    result = cut(build(text(x, weights, nodes)), 0.5)
    assert result.error <= 1e-5
    return describe(result.analysis)


def test_heads_win_over_the_dimensions_inside_a_head() -> None:
    model = build(text("float[2,5,3] x", ATTENTION_WEIGHTS.replace("0,0,4,2", "0,0,2,4"), ATTENTION))
    assert describe(analyze(load(model)))[0] == "2 heads: wk:1x4 wo:0x4 wq:1x4 wv:1x4"


def test_heads_that_are_pinned_leave_the_dimensions_inside_a_head() -> None:
    source = text("float[2,5,3] x", ATTENTION_WEIGHTS, ATTENTION, outputs="float[] y, float[] s")
    analysis = analyze(load(build(source)))
    assert describe(analysis) == ("2 head_dim: wk:1x4 wq:1x4", "2 head_dim: wo:0x4 wv:1x4")
    keep = shrink(analysis, ("head_dim",))
    assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5


def test_without_heads_the_finer_factor_of_a_shuffle_lives() -> None:
    weights = "float[12,3,1,1] w1, float[4,12,1,1] w2, int64[5] s = {2,%s,6,6}, int64[4] t = {2,12,6,6}"
    nodes = "h = Conv(x, w1) a = Reshape(h, s) b = Transpose<perm = [0,2,1,3,4]>(a) k = Reshape(b, t) y = Conv(k, w2)"
    assert found(weights % "2,6", nodes) == ("6 channels: w1:0x2 w2:1x2",)
    assert found(weights % "6,2", nodes) == ("6 channels: w1:0x2 w2:1x2",)
    assert found(weights % "3,4", nodes) == ("4 channels: w1:0x3 w2:1x3",)


@pytest.mark.parametrize(
    ("axis", "expect"),
    [(1, "4 channels: w1:0x2 w2:1x2"), (2, "2 channels: w1:0x4 w2:1x4"), (3, "4 channels: w1:0x2 w2:1x2")],
)
def test_a_factor_that_is_pinned_leaves_the_other_to_live(axis: int, expect: str) -> None:
    nodes = f"""h = Conv(x, w1) a = Reshape(h, s) b = Softmax<axis = {axis}>(a) k = Reshape(b, t) y = Conv(k, w2)"""
    weights = "float[8,3,1,1] w1, float[4,8,1,1] w2, int64[5] s = {2,2,4,6,6}, int64[4] t = {2,8,6,6}"
    assert found(weights, nodes) == (expect,)


def test_where_both_factors_are_pinned_nothing_lives() -> None:
    nodes = """h = Conv(x, w1) a = Reshape(h, s) b = Softmax<axis = 1>(a) c = Softmax<axis = 2>(b) k = Reshape(c, t)
        y = Conv(k, w2)"""
    weights = "float[8,3,1,1] w1, float[4,8,1,1] w2, int64[5] s = {2,2,4,6,6}, int64[4] t = {2,8,6,6}"
    assert found(weights, nodes) == ("w1:0 pinned: reshaped: every factor of the axis is pinned",)


def test_kinds_never_come_from_names() -> None:
    names = {
        "q0": "conv", "wq": "fc1.weight", "wk": "hidden", "wv": "experts", "split": "channels", "x": "relu", "y": "cls",
    }  # fmt: skip
    attention = build(text("float[2,5,3] x", ATTENTION_WEIGHTS, ATTENTION))
    layers = build(text("float[5,3] x", "float[3,8] w1, float[8,4] w2", "h = MatMul(x, w1) y = MatMul(h, w2)"))
    for values in (attention.graph.initializer, attention.graph.input, attention.graph.output):
        for value in values:
            value.name = names.get(value.name, value.name)
    for node in attention.graph.node:
        node.name = f"mlp.channels.{node.output[0]}"
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names.get(o, o) for o in node.output]
    for node in layers.graph.node:
        node.name = f"/encoder/self_attention/heads/head_dim/LayerNorm/{node.output[0]}"
    assert [(g.kind, g.size) for g in analyze(load(attention)).groups] == [
        ("heads", 4), ("head_dim", 2), ("head_dim", 2),
    ]  # fmt: skip
    assert [(g.kind, g.size) for g in analyze(load(layers)).groups] == [("channels", 8)]


# coupling: groups of convolutions


def grouped() -> onnx.ModelProto:
    weights = "float[8,3,1,1] w1, float[6,4,3,3] w2, float[4,6,1,1] w3"
    return build(text("float[2,3,6,6] x", weights, "h = Conv(x, w1) g = Conv<group = 2>(h, w2) y = Conv(g, w3)"))


def test_groups_of_a_convolution_choose_their_own_channels() -> None:
    model = load(grouped())
    analysis = analyze(model)
    first, second = analysis.groups
    keep = analysis.keep_ids(
        {
            first.name: np.array([1, 1, 0, 0, 0, 1, 0, 1], bool),  # of group 0 channels 0, 1, of group 1 channels 5, 7
            second.name: np.array([0, 1, 1, 1, 1, 0], bool),
        }
    )
    pruned = prune_model(analysis, keep)
    old, new = model.weights["w2"], pruned.weights["w2"]
    assert new.shape == (4, 2, 3, 3)
    np.testing.assert_array_equal(new[:2], old[[1, 2]][:, [0, 1]])
    np.testing.assert_array_equal(new[2:], old[[3, 4]][:, [1, 3]])
    np.testing.assert_array_equal(pruned.weights["w1"], model.weights["w1"][[0, 1, 5, 7]])
    np.testing.assert_array_equal(pruned.weights["w3"], model.weights["w3"][:, 1:5])
    assert verify(analysis, keep, pruned).error <= 1e-5


def test_a_group_that_is_pinned_in_part_pins_its_blocks() -> None:
    weights = "float[8,3,1,1] w1, float[6,4,3,3] w2, float[4,6,1,1] w3, int64[1] a = {1}, int64[1] i = {0}"
    nodes = """h = Conv(x, w1) p = Slice(h, i, a, a) m = ReduceMax(p) g = Conv<group = 2>(h, w2) k = Conv(g, w3)
        y = Add(k, m)"""
    assert found(weights, nodes) == (
        "6 channels: w2:0 w3:1, even over 2",
        "w1:0 pinned: a group that must shrink evenly is pinned in part",
    )
