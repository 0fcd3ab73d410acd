"""Streams: values at the places asked for are those of a full run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

import onnxprune
from models.nets import Array, anything, build, noise, normal, run
from onnxprune import load
from onnxprune.runtime.memory import _resident
from onnxprune.runtime.stream import Runs, Stop, Stream, mapped, samples_in

IF = """c = ReduceMax<keepdims = 0>(x) p = Greater(c, zero)
    k = If(p) <then_branch = t () => (float[n,4,6,6] u) { a0 = Add(r, own) u = Conv(a0, v) },
              else_branch = e () => (float[n,4,6,6] o) { q0 = Relu(h) o = Identity(q0) }>"""
OWN = "<float[1] own = {2}>"
STARTS = {"zero": 0, "two": 2, "four": 4}

STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "chain": ("h = Conv(x, w) r = Relu(h) y = Conv(r, v)", {"v": normal(2, 4, 1, 1)}),
    "residual": ("h = Conv(x, w) r = Relu(h) k = Conv(r, v) s = Add(k, h) y = Relu(s)", {"v": normal(4, 4, 1, 1)}),
    "input read late": (
        "h = Conv(x, w) g = GlobalAveragePool(h) k = Conv(x, w) y = Mul(k, g)", {},
    ),
    "shared weight": ("h = Conv(x, w) m = Neg(x) k = Conv(m, w) y = Sub(h, k)", {}),
    "constants": (
        "h = Conv(x, w) c = Constant<value_float = 2.0>() d = Mul(c, c) k = Mul(h, d) y = Add(k, c)", {},
    ),
    "an if that reads outer tensors": (
        f"h = Conv(x, w) r = Relu(h) {IF} y = Add(k, h)",
        {"v": normal(4, 4, 1, 1), "zero": np.float32(3.0), "own": np.array([2.0])},
    ),
    "an if with constants of its own": (
        f"h = Conv(x, w) r = Relu(h) {IF.replace('t () => (float[n,4,6,6] u)', 't () => (float[n,4,6,6] u) ' + OWN)} "
        "y = Add(k, h)",
        {"v": normal(4, 4, 1, 1), "zero": np.float32(3.0)},
    ),
    "several outputs": ("h = Conv(x, w) a, b = Split<axis = 1>(h) r = Relu(b) y = Concat<axis = 1>(r, a)", {}),
    "a sequence": (
        "h = Conv(x, w) s = SplitToSequence<axis = 1>(h) r = Relu(h) e = SequenceAt(s, one) y = Add(r, e)",
        {"one": np.int64(1)},
    ),
    "integers and shapes": (
        "h = Conv(x, w) s = Shape(h) r = Relu(h) t = Transpose<perm = [0, 2, 3, 1]>(r) y = Reshape(t, s)", {},
    ),
    "a resize to computed sizes": (  # sixteen channels become a block, so that onnxruntime knows the rank, no size
        """h = Conv(x, w) r = Relu(h) d = Conv<strides = [2, 2]>(r, v) e = Relu(d) f = Conv(e, v) g = Add(f, e)
        i = Conv(g, v) j = Conv(r, v) l = Add(j, r) p = Shape(i) a = Slice(p, zero, two, zero) q = Shape(l)
        b = Slice(q, two, four, zero) c = Concat<axis = 0>(a, b) k = Resize<mode = "linear">(i, , , c) m = Add(k, l)
        y = Conv(m, v)""",
        {"w": normal(16, 3, 3, 3), "v": normal(16, 16, 1, 1) / 16, **{n: np.array([i]) for n, i in STARTS.items()}},
    ),
}  # fmt: skip
BATCHES = [{"x": normal(n, 3, 8, 8, seed=n).astype(np.float32)} for n in (2, 1, 2)]


def streamed(name: str) -> ModelProto:
    nodes, weights = STREAMS[name]
    return build(nodes, y=anything(4), **{"w": normal(4, 3, 3, 3), **weights})


def full_run(proto: ModelProto, names: list[str]) -> list[dict[str, Array]]:
    """Every tensor of the main graph, batch by batch."""
    proto = ModelProto.FromString(proto.SerializeToString())
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n != "y")
    order = ["y", *(n for n in names if n != "y")]
    return [dict(zip(order, run(proto, b["x"]), strict=True)) for b in BATCHES]


@pytest.mark.parametrize("limit", [float("inf"), 12_000, 0])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_gives_what_a_full_run_gives(name: str, limit: float) -> None:
    model = load(streamed(name))
    nodes = model.proto.graph.node
    names = [o for n in nodes for o in n.output if n.op_type not in ("SplitToSequence", "SequenceEmpty")]
    expected = full_run(onnxprune.to_proto(model), names)
    stream = Stream(model, BATCHES, limit=limit)
    for at in range(len(nodes) + 1):
        stream.advance(at)
        assert stream.cut <= at and (limit != 0 or stream.cut == 0)
        assert limit < 1e9 or stream.cut == at or name == "a sequence"  # which does not cross a cut
        wanted = [o for n in list(nodes)[at:] for o in n.output if o in names][:3]
        if not wanted:
            continue
        for found, right in zip(stream.compute([*wanted, "y"]), expected, strict=True):
            for n in (*wanted, "y"):
                np.testing.assert_allclose(found[n], right[n], rtol=1e-5, atol=1e-5)
    assert [v["y"].shape[0] for v in stream.compute(["y"])] == [2, 1, 2]
    assert sum(len(v["y"]) for v in stream.compute(["y"])) == 5


def test_a_stream_holds_only_what_is_read_behind_the_cut() -> None:
    stream = Stream(load(streamed("residual")), BATCHES)
    held = []
    for at in range(6):
        stream.advance(at)
        held.append(sorted(stream.values(0)))
    assert held == [["x"], ["h"], ["h", "r"], ["h", "k"], ["s"], ["y"]]


def test_a_stream_sees_weights_that_changed_behind_the_cut_alone() -> None:
    model = load(streamed("chain"))
    stream = Stream(model, BATCHES)
    (first, *_) = stream.compute(["y"])
    stream.advance(2)
    model.weights["v"] = 3 * np.asarray(model.weights["v"])
    model.weights["w"] = 5 * np.asarray(model.weights["w"])
    (second, *_) = stream.compute(["y"])
    np.testing.assert_allclose(second["y"], 3 * first["y"], rtol=1e-5)


@pytest.mark.parametrize("segment", [0, 1e9])
@pytest.mark.parametrize("name", STREAMS)
def test_a_walk_gives_what_a_full_run_gives(name: str, segment: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.runtime.stream.SEGMENT", segment)
    model = load(streamed(name))
    nodes = list(model.proto.graph.node)
    names = [o for n in nodes for o in n.output if n.op_type not in ("SplitToSequence", "SequenceEmpty")]
    expected = full_run(onnxprune.to_proto(model), names)
    made = {o: i for i, n in enumerate(nodes) for o in n.output}
    stops = [Stop(made[n] + 1, (n,), 1 if k % 2 else None) for k, n in enumerate(names)]  # every other of one batch
    found = {(i, k): v[names[k]] for i, k, v in Stream(model, BATCHES).walk(stops, range(len(BATCHES)))}
    assert sorted(found) == [(i, k) for i in range(3) for k in range(len(names)) if i == 0 or k % 2 == 0]
    for (i, k), value in found.items():
        np.testing.assert_allclose(value, expected[i][names[k]], rtol=1e-5, atol=1e-5)


def test_batches_move_on_their_own() -> None:
    model = load(streamed("chain"))
    stream = Stream(model, BATCHES)
    stream.advance(2, 1)
    assert stream.cuts == [2, 0, 0] and stream.advanced(2) == 1 and stream.cut == 0
    model.weights["w"] = 2 * np.asarray(model.weights["w"])  # behind the cut of the first alone
    first, second, _ = (v["y"] for v in stream.compute(["y"]))
    plain = full_run(streamed("chain"), ["y"])
    np.testing.assert_allclose(first, plain[0]["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second, 2 * plain[1]["y"], rtol=1e-4, atol=1e-5)
    assert [len(v["y"]) for v in stream.compute(["y"], [2, 0])] == [2, 2]


def test_runs_are_made_when_they_are_asked_for() -> None:
    made: list[int] = []

    def make(i: int) -> dict[str, Array]:
        made.append(i)
        return {"x": np.full(2, float(i))}

    runs = Runs(4, make, each=2)
    doubled = mapped(runs[1:], lambda feeds: {"x": 2 * feeds["x"]})
    assert not made and len(doubled) == 3 and samples_in(doubled) == 2 and samples_in([]) == 1
    assert [v["x"][0] for v in doubled] == [2.0, 4.0, 6.0] and doubled[-1]["x"][0] == 6.0
    with pytest.raises(IndexError):
        runs[4]


def test_a_moved_cut_keeps_nothing_but_what_it_holds() -> None:
    many = ", ".join(["x"] * 32)
    nodes = f"a = Concat<axis = 1>({many}) r = Exp(a) m = ReduceMax<axes = [1], keepdims = 1>(r) y = Neg(m)"
    stream = Stream(load(build(nodes, "float[1,1,1024,1024]", anything(4))), [{"x": noise(1, 1, 1024, 1024)}])
    before = _resident("VmRSS")
    stream.advance(3)  # 268 MB go through the arena of onnxruntime
    assert stream.cut == 3
    assert _resident("VmRSS") - before < 64e6
