"""Columns of zeros left out of plain layers: the same outputs as of the masked model, in smaller work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxprune
from models.nets import noise, of_nodes
from onnxprune.formats.columns import shrink, speedups
from onnxprune.graph.io import Model, load, to_proto
from onnxprune.graph.shapes import concrete_inputs, infer
from onnxprune.layers.layer import sparse_layers
from onnxprune.runtime.feeds import random_feeds
from onnxprune.runtime.session import session
from onnxprune.structure.check import running

MODELS = Path(__file__).parent.parent / "models"
ALWAYS: dict[str, Any] = {"least": 0.0}


def net(*args: Any, **options: Any) -> Model:
    """`of_nodes` with inferred shapes."""
    return load(onnx.shape_inference.infer_shapes(of_nodes(*args, **options)))  # the full check wants shapes of outputs


def conv(w: np.ndarray, shape: list[Any], *, bias: bool = True, opset: int = 17, **attributes: Any) -> Model:
    arrays = {"w": w, **({"b": noise(len(w), seed=9)} if bias else {})}
    return net([helper.make_node("Conv", ["x", *arrays], ["y"], name="c", **attributes)], arrays, shape, opset)


def scattered(shape: tuple[int, ...], group: int = 1, ratio: float = 0.7, seed: int = 1) -> np.ndarray:
    """A weight of which that fraction of the columns is zero, of every group as many but for one."""
    w = noise(*shape, seed=seed).reshape(group, shape[0] // group, -1)
    rng = np.random.default_rng(seed)
    for k, part in enumerate(w):
        part[:, rng.permutation(w.shape[2])[: round(ratio * w.shape[2]) - k % 2]] = 0
    return w.reshape(shape)


def run(model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    with session(model) as s:
        return s.run(None, feeds)


def same(model: Model, done: list[str], *inputs: np.ndarray, **options: Any) -> Model:
    """Shrink it, check the file, and compare the outputs for each input."""
    out, nodes, _ = shrink(model, sparse_layers(model)[0], **{**ALWAYS, **options})
    assert nodes == done
    proto = to_proto(out)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    assert all(n.name for n in proto.graph.node) and len({n.name for n in proto.graph.node}) == len(proto.graph.node)
    for x in inputs:
        for a, b in zip(run(model, {"x": x}), run(out, {"x": x}), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max())
    return out


def ops(model: Model) -> list[str]:
    return [n.op_type for n in model.proto.graph.node]


FLAT = [
    {}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 2, 1, 0], "strides": [2, 1]}, {"strides": [3, 2]},
    {"dilations": [2, 1], "pads": [2, 1, 2, 1]}, {"dilations": [2, 3], "strides": [2, 2], "pads": [3, 0, 1, 2]},
    {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"auto_pad": "VALID"},
    {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
]  # fmt: skip


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("attributes", FLAT, ids=str)
def test_conv_of_scattered_columns(attributes: dict[str, Any], group: int):
    w = scattered((12, 12, 3, 3) if group == 1 else (12, 8, 3, 3), group)
    x = noise(2, w.shape[1] * group, 11, 14)
    out = same(conv(w, list(x.shape), group=group, **attributes), ["c"], x)
    assert ops(out).count("Slice") == np.count_nonzero(w.any((0, 1))) and "w" not in out.weights
    assert {a.shape[2:] for n, a in out.weights.items() if n.startswith("w_kept")} == {(1, 1)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("attributes", [
    {}, {"pads": [2, 0]}, {"strides": [2], "pads": [1, 1]}, {"dilations": [3], "pads": [3, 4]},
    {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER", "strides": [3]},
], ids=str)  # fmt: skip
def test_conv_in_one_dimension(attributes: dict[str, Any], bias: bool):
    x = noise(3, 16, 23)
    same(conv(scattered((8, 16, 5)), list(x.shape), bias=bias, **attributes), ["c"], x)
    same(conv(scattered((8, 4, 5), 4), list(x.shape), bias=bias, group=4, **attributes), ["c"], x)


@pytest.mark.parametrize("attributes", [
    {"pads": [1, 1, 1, 1]}, {"pads": [2, 0, 1, 3], "strides": [2, 3], "dilations": [2, 1]}, {"auto_pad": "SAME_LOWER"},
], ids=str)  # fmt: skip
def test_conv_of_dynamic_batch_and_size(attributes: dict[str, Any]):
    model = conv(scattered((8, 16, 3, 3)), ["N", 16, "H", "W"], **attributes)
    same(model, ["c"], noise(1, 16, 9, 12), noise(3, 16, 20, 7))


def test_automatic_padding_of_an_unknown_size_stays_dense():
    model = conv(scattered((8, 16, 3, 3)), [1, 16, "H", "W"], auto_pad="SAME_UPPER", strides=[2, 2])
    out, done, notes = shrink(model, sparse_layers(model)[0], **ALWAYS)
    assert (done, ops(out)) == ([], ["Conv"]) and "known only at run time" in notes[0]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5,)])
@pytest.mark.parametrize("group", [1, 2])
def test_whole_channels_are_gathered(kernel: tuple[int, ...], group: int):
    w = noise(8, 32, *kernel)
    w[:4, 5:29] = 0
    w[4:, 5 if group == 1 else 1 : 29] = 0
    x = noise(2, 32 * group, *[9] * len(kernel))
    model = conv(w, list(x.shape), group=group, pads=[k // 2 for k in kernel] * 2, strides=[2] * len(kernel))
    out = same(model, ["c"], x)
    assert ops(out) == ["Gather", "Conv"] and out.weights["w_kept"].shape == (8, 8, *kernel)


@pytest.mark.parametrize("rows, pads, kernel, found", [
    ([1], [1, 1, 1, 1], (1, 3), [0, 1, 0, 1]), ([0, 1], [1, 1, 1, 1], (2, 3), [1, 1, 0, 1]),
    ([0, 2], [1, 1, 1, 1], (2, 3), [1, 1, 1, 1]), ([2], [1, 0, 1, 0], (1, 3), [0, 0, 1, 0]),
    ([0], [0, 0, 0, 0], (1, 3), [0, 0, 0, 0]), ([1], [0, 1, 0, 1], (1, 3), [0, 1, 0, 1]),
])  # fmt: skip
@pytest.mark.parametrize("more", [{}, {"strides": [2, 3]}, {"dilations": [2, 1]}], ids=str)
def test_rows_of_the_window_are_cut_off(rows: list[int], pads: list[int], kernel: Any, found: Any, more: Any):
    w = noise(8, 16, 3, 3)
    w[:, :, [k for k in range(3) if k not in rows]] = 0
    x = noise(2, 16, 12, 10)
    out = same(conv(w, list(x.shape), pads=pads, **more), ["c"], x)
    node = out.proto.graph.node[-1]
    attributes = {a.name: list(a.ints) for a in node.attribute}
    assert out.weights["w_kept"].shape[2:] == kernel
    if not more:
        assert attributes["pads"] == found


def test_shares_what_layers_have_in_common():
    x, w = noise(1, 16, 8, 8), scattered((8, 16, 3, 3))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="c", pads=[1] * 4),
        helper.make_node("Conv", ["x", "v"], ["b"], name="d", pads=[1] * 4),
        helper.make_node("Concat", ["a", "b"], ["y"], name="e", axis=1),
    ]
    out = same(net(nodes, {"w": w, "v": 2 * w}, list(x.shape)), ["c", "d"], x)
    assert ops(out).count("Pad") == 1 and ops(out).count("Slice") == 9 and ops(out).count("Conv") == 2


@pytest.mark.parametrize("shape", [(20,), (3, 20), (2, 3, 20)])
def test_matmul(shape: tuple[int, ...]):
    w = noise(20, 7)
    w[np.arange(20) % 3 > 0] = 0
    model = net([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": w}, list(shape))
    out = same(model, ["m"], noise(*shape))
    assert ops(out) == ["Gather", "MatMul"] and out.weights["w_kept"].shape == (7, 7)


@pytest.mark.parametrize("shape", [(20,), (20, 3), (2, 20, 3)])
def test_matmul_from_the_left(shape: tuple[int, ...]):
    w = noise(7, 20)
    w[:, 3:15] = 0
    model = net([helper.make_node("MatMul", ["w", "x"], ["y"], name="m")], {"w": w}, list(shape))
    assert same(model, ["m"], noise(*shape)).weights["w_kept"].shape == (7, 8)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [0, 1])
def test_gemm(a: int, b: int, left: bool):
    w, x = noise(20, 7), noise(5, 20)
    w[::2] = 0
    w = w.T if left else w  # [outputs, inputs] or its transpose
    x = x.T if left else x
    flip = a if left else b
    w, x = (w.T if flip else w), (x.T if (b if left else a) else x)
    attributes: dict[str, Any] = {"transA": a, "transB": b, "alpha": 0.5, "beta": 2.0}
    bias = noise(5) if left else noise(7)
    names = ["w", "x", "b"] if left else ["x", "w", "b"]
    w, x = np.ascontiguousarray(w), np.ascontiguousarray(x)
    node = helper.make_node("Gemm", names, ["y"], name="m", **attributes)
    out = same(net([node], {"w": w, "b": bias}, list(x.shape)), ["m"], x)
    assert ops(out) == ["Gather", "Gemm"] and out.weights["w_kept"].size == 70


def test_stays_dense_with_a_reason():
    def note(model: Model) -> str:
        out, done, notes = shrink(model, sparse_layers(model)[0], **ALWAYS)
        assert not done and len(notes) >= 1 and ops(out) == ops(model)
        return notes[0]

    shape = [1, 16, 8, 8]
    assert "all its weights are zero" in note(conv(np.zeros((4, 16, 3, 3), np.float32), shape))
    assert "no column of zeros" in note(conv(noise(4, 16, 3, 3), shape))
    assert "below 11" in note(conv(scattered((4, 16, 3, 3)), shape, opset=10))
    few = noise(4, 16, 1, 1)
    few[:, 3] = 0
    assert "too few" in note(conv(few, shape))
    w = noise(16, 16)
    w[:9] = 0
    twice = [helper.make_node("MatMul", [x, "w"], [y], name=y) for x, y in (("x", "h"), ("h", "y"))]
    assert "shared" in note(net(twice, {"w": w}, [3, 16]))


def test_only_what_is_estimated_to_pay_and_only_what_is_asked_for():
    w, v = noise(256, 256), noise(256, 256, seed=1)
    w[:200], v[5] = 0, 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="b"),
    ]
    model = net(nodes, {"w": w, "v": v}, [64, 256])
    layers = sparse_layers(model)[0]
    fast = speedups(model, layers)
    assert fast["a"] > 1.5 and fast["b"] < 1
    _, done, notes = shrink(model, layers)
    assert done == ["a"] and "b: stays dense: estimated" in notes[0]
    assert shrink(model, layers[1:], **ALWAYS)[1:] == (["b"], [])


def test_old_files_list_their_constants():
    w = noise(20, 7)
    w[4:] = 0
    model = net([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": w}, [3, 20], opset=8, ir=3)
    layers = sparse_layers(model)[0]
    out, done, _ = shrink(model, layers, **ALWAYS)
    assert done == ["m"]
    assert {i.name for i in out.proto.graph.input} == {"x", *out.weights}
    onnx.checker.check_model(to_proto(out))


@pytest.mark.parametrize("name", sorted(p.name for p in MODELS.glob("*.onnx") if ".pruned" not in p.name))
def test_models_compute_the_same(name: str):
    quick: dict[str, Any] = {"format": "dense", "verify": False, "measure": False}
    masked = onnxprune.prune(MODELS / name, pattern="column", sparsity=0.6, solver="magnitude", **quick).model
    layers = sparse_layers(masked)[0]
    out, done, _ = shrink(masked, layers, **ALWAYS)
    assert done and set(done) <= {layer.name for layer in layers}
    onnx.checker.check_model(to_proto(out), full_check=True)
    feeds = [random_feeds(masked, infer(masked), shapes) for shapes in concrete_inputs(masked)]
    for a, b in zip(first(masked, feeds), first(out, feeds), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max())


def first(model: Model, guesses: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """Outputs for the first inputs with which the model runs."""
    return run(model, running(model, guesses, measured=False)[0])
