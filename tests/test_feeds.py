"""Inputs that nobody gives: integers that onnxruntime refuses get other values, the same wherever the model runs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxprune
from models.rules import build, text
from onnxprune import OptionError
from onnxprune.graph.io import load
from onnxprune.graph.shapes import infer
from onnxprune.runtime.feeds import Fill, fills_at, first_running, guesses, lengths, likely_feeds
from onnxprune.runtime.inputs import random_candidates
from onnxprune.runtime.session import run

INPUTS = "int64[1,S] ids, float[1,1,P,8] key, float[1,1,P,8] value, int32[1] last, int32 total"
DECODER = """x = Gather(table, ids) q = MatMul(x, w)
    a, k, v = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 1>
    (q, , , key, value, last, total) h = MatMul(a, w1) r = Relu(h) y = MatMul(r, w2)"""


def decoder() -> onnx.ModelProto:
    """Attention over a cache whose lengths are inputs; what its packed queries, keys and values make goes on."""
    return build(text(INPUTS, "float[9,16] table, float[16,32] w, float[16,24] w1, float[24,4] w2", DECODER))


def test_lengths_of_a_cache_are_found_and_used_everywhere() -> None:
    model = load(decoder())
    shapes = infer(model)
    plain = next(guesses(model, shapes, None))
    assert first_running(model, [plain])[0] is None
    found, why = first_running(model, guesses(model, shapes, None))
    assert found is not None and not why and found.fills.keys() == {"last", "total"}
    total, last = found.feeds["total"], found.feeds["last"]
    assert total == last[0] + 1 and total in (24, 31)
    (likely,) = likely_feeds(model, shapes, None)
    assert all(np.array_equal(likely[name], value) for name, value in found.feeds.items())
    assert fills_at(model, shapes, found.sizes) == found.fills
    assert any(
        np.array_equal(feeds["last"], last) and feeds["total"] == total for feeds in random_candidates(model, None, 0)
    )
    result = onnxprune.prune(decoder(), channels=0.25, recover="none", round_to=1, measure=False, threads=1)
    assert result.report.verification is not None and result.plan.keep
    assert run(load(onnxprune.to_proto(result.model)), found.feeds)["y"].shape == (1, 24, 4)


def test_what_holds_sizes_follows_them() -> None:
    model = load(decoder())
    small = {"ids": (1, 3), "key": (1, 1, 5, 8), "value": (1, 1, 5, 8), "last": (1,), "total": ()}
    axes = lengths(model, small)
    assert [sum(small[name][k] for name, k in chosen) for chosen in axes][:3] == [3, 5, 8]
    fill = Fill(axes[2], plus=-1)
    assert fill.values((1,), small).tolist() == [7]
    assert fill.values((), small | {"ids": (1, 4)}).tolist() == 8
    assert Fill(plus=2, counted=True).values((2, 3), {}).tolist() == [[2, 3, 4]] * 2


def test_the_reason_of_onnxruntime_is_given_where_no_values_do() -> None:
    nodes = "h = MatMul(x, w1) r = Relu(h) g = MatMul(r, w2) y = Reshape(g, target)"
    model = build(text("float[5,6] x, int64[3] target", "float[6,8] w1, float[8,4] w2", nodes))
    with pytest.raises(OptionError, match=r"cannot be verified \(.*Reshape.*verify=False"):
        onnxprune.prune(model, channels=0.25, recover="none", measure=False)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(("x", "source"), [("5,2,6", "a"), ("T,B,6", "x"), ("T,B,6", "a")])
def test_sequences_are_whole_so_that_recurrent_weights_are_checked(op: str, x: str, source: str) -> None:
    """Of short ones no step may follow another: a wrong cut of the recurrence would not show."""
    rows = {"RNN": 1, "GRU": 3, "LSTM": 4}[op] * 8
    model = load(build(text(
        f"float[{x}] x, int32[{x[2]}] given",
        f"float[1,{rows},6] w, float[1,{rows},8] r, float[8,4] w2",
        f"a = Relu(x) lens = Identity(given) h, _ = {op}<hidden_size = 8>({source}, w, r, , lens) y = MatMul(h, w2)",
    )))  # fmt: skip
    shapes = infer(model)
    for steps, batch in ((7, 3), (2, 2)) if "T" in x else ((5, 2),):
        guess = next(guesses(model, shapes, {"x": (steps, batch, 6), "given": (batch,)}))
        assert guess.feeds["given"].tolist() == [steps] * batch
        assert first_running(model, [guess])[0] is not None
