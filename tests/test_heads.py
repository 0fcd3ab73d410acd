"""What goes with a head and with the dimensions inside one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import ModelProto

from kinds import analysis_of, error, kept, parameters, proto, prune, replaced, weights_of
from law import proto_of
from models.builder import Builder
from models.forms import feeds
from models.forms.form import FFN, HEAD, HEADS, WIDTH
from models.nets import run
from onnxprune import Plan, analyze


def test_heads_shrink_the_projections() -> None:
    shapes = [w.shape for w in weights_of(proto_of(prune("encoder_post_norm", heads=0.25))).values()]
    assert shapes.count((WIDTH, 3 * HEAD)) == 6  # q, k and v of two layers
    assert shapes.count((3 * HEAD, WIDTH)) == 2
    assert shapes.count((3 * HEAD,)) == 6
    assert shapes.count((WIDTH, FFN)) == 2


def test_head_dim_shrinks_the_heads() -> None:
    result = prune("encoder_post_norm", head_dim=0.25, round_to=1)
    shapes = [w.shape for w in weights_of(proto_of(result)).values()]
    assert shapes.count((WIDTH, HEADS * 6)) == 6
    assert shapes.count((HEADS * 6, WIDTH)) == 2


def test_rotary_pairs_go_together() -> None:
    result = prune("llama", head_dim=0.5, round_to=1)
    assert error(result) < 1e-5
    pairs = [g for g in result.analysis.of_kind("head_dim") if g.size == HEAD // 2]
    assert [kept(result)[g.name] for g in pairs] == [2]
    tables = [w for name, w in weights_of(proto_of(result)).items() if "rope" in name]
    assert [w.shape[1] for w in tables] == [4, 4]
    for table in tables:
        assert np.array_equal(table[:, :2], table[:, 2:])  # halves that were equal still are


@pytest.mark.parametrize("name", ["ms_mha", "ms_attention", "ms_rotary", "onnx_attention_4d", "onnx_attention_3d"])
def test_the_scale_is_written_down(name: str) -> None:
    def scales(model: ModelProto) -> list[float | None]:
        mine = [n for n in model.graph.node if n.op_type in ("Attention", "MultiHeadAttention")]
        assert len(mine) == 2
        return [next((a.f for a in n.attribute if a.name == "scale"), None) for n in mine]

    assert scales(proto(name)) == [None, None]
    result = prune(name, head_dim=0.5, round_to=1)
    assert scales(proto_of(result)) == pytest.approx([1 / math.sqrt(HEAD)] * 2)
    assert error(result) < 1e-5
    assert scales(proto_of(prune(name, heads=0.5))) == [None, None]


def test_a_smaller_head_without_what_was_zero_says_the_same() -> None:
    """Dimensions of q that are zero go, and the outputs stay what they were: the scale is that of the old size."""
    analysis = analysis_of("onnx_attention_4d")
    group = next(g for g in analysis.of_kind("head_dim") if g.size == HEAD)  # of v
    dead = np.arange(HEAD) % 2 == 0
    arrays = {}
    for s in group.slices:
        w = analysis.model.weights[s.tensor].copy()
        w[(slice(None),) * s.axis + (np.isin(s.units, np.flatnonzero(dead)),)] = 0
        arrays[s.tensor] = w
    model = replaced(proto("onnx_attention_4d"), arrays)
    result = prune(model, plan=Plan({group.name: ~dead}, "none"))
    a, b = (run(m, feeds(model))[0] for m in (model, proto_of(result)))
    assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()
    assert parameters(proto_of(result)) < parameters(model)


def test_attention_whose_second_product_has_no_known_shape_is_attention() -> None:
    b = Builder()
    x, sizes = b.input("input", (1, 6, 16)), b.input("sizes", (4,), np.int64)
    q, k = (b.transpose(b.reshape(b.dense(x, 16), 1, 6, 4, 4), *perm) for perm in ((0, 2, 1, 3), (0, 2, 3, 1)))
    v = b.declare(b.op("Reshape", b.dense(x, 16), sizes), ("a", "b", "c", "d"))
    out = b.declare(b.op("MatMul", b.softmax(b.matmul(q, k)), v), ("a", "b", "c", "d"))
    kinds = {g.kind for g in analyze(b.model(out)).groups}
    assert kinds == {"head_dim"}, "queries and keys have the dimensions of heads, not channels"
