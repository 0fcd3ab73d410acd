"""Zeros in a plain file: any weight of a product, however it is stored and wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune.errors import NothingToPrune, OptionError
from onnxprune.formats.options import Store
from onnxprune.graph.io import load, to_proto
from onnxprune.layers.layer import sparse_layers
from onnxprune.sparsity.options import Zeros
from onnxprune.sparsity.spec import Spec
from onnxprune.sparsity.stage import sparsify

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(0)
W = RNG.standard_normal((16, 8)).astype(np.float32)
BYTES = RNG.integers(-127, 128, (16, 8)).astype(np.int8)
STEP = np.array(0.01, np.float32)
STEPS = np.linspace(0.005, 0.02, 8).astype(np.float32)
ZEROS = np.arange(-4, 4).astype(np.int8)
LOOP = """w = Identity (v) n = Constant <value = int64 {2}> () go = Constant <value = bool {1}> ()
          y = Loop (n, go, x) <body = b (int64 i, bool c, float[3,16] h) => (bool d, float[3,16] k)
          { d = Identity (c) k = MatMul (h, w) }>"""
BRANCH = """s = ReduceSum <keepdims = 0> (x) n = Constant <value = float {-1000000.0}> () c = Greater (s, n)
            y = If (c) <then_branch = a () => (float[3,8] p) { p = MatMul (x, w) },
                        else_branch = b () => (float[3,8] q) { q = MatMul (x, w) }>"""


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# kind -> nodes, shapes of x and y, initializers; w, or what it is made of, is the weight, of float or of what is read
KINDS: dict[str, tuple[str, str, str, dict[str, Array]]] = {
    "float16": ("x16 = Cast <to = 10> (x) y16 = MatMul (x16, w) y = Cast <to = 1> (y16)", "3,16", "3,8",
                {"w": W.astype(np.float16)}),
    "bfloat16": ("w32 = Cast <to = 1> (w) y = MatMul (x, w32)", "3,16", "3,8", {"w": W.astype(ml_dtypes.bfloat16)}),
    "cast": ("t = Cast <to = 1> (w) u = Transpose (t) y = Gemm <transB = 1> (x, u)", "3,16", "3,8",
             {"w": W.astype(np.float16)}),
    "per tensor": ("t = DequantizeLinear (w, s) y = MatMul (x, t)", "3,16", "3,8", {"w": BYTES, "s": STEP}),
    "per channel": ("t = DequantizeLinear <axis = 1> (w, s, z) y = MatMul (x, t)", "3,16", "3,8",
                    {"w": BYTES, "s": STEPS, "z": ZEROS}),
    "fake quantized": ("q = QuantizeLinear <axis = 1> (w, s, z) t = DequantizeLinear <axis = 1> (q, s, z) "
                       "y = MatMul (x, t)", "3,16", "3,8", {"w": W, "s": STEPS, "z": ZEROS}),
    "int4 blocked": ("t = DequantizeLinear <axis = 0, block_size = 8> (w, s, z) y = MatMul (x, t)", "3,16", "3,8",
                     {"w": RNG.integers(-8, 8, (16, 8)).astype(ml_dtypes.int4), "s": np.stack([STEPS, STEPS[::-1]]),
                      "z": np.stack([ZEROS, ZEROS[::-1]]).astype(ml_dtypes.int4)}),
    "integer product": ("i = Cast <to = 3> (x) a = Constant <value = int8 {0}> () p = MatMulInteger (i, w, a, z) "
                        "y = Cast <to = 1> (p)", "3,16", "3,8", {"w": BYTES, "z": ZEROS}),
    "Conv 1d": ("y = Conv (x, w)", "2,8,9", "2,6,7", {"w": normal(6, 8, 3)}),
    "Conv 3d": ("y = Conv (x, w)", "1,8,4,4,4", "1,6,3,3,3", {"w": normal(6, 8, 2, 2, 2)}),
    "ConvTranspose": ("y = ConvTranspose (x, w)", "1,8,4,4", "1,6,5,5", {"w": normal(8, 6, 2, 2)}),
    "grouped ConvTranspose": ("y = ConvTranspose <group = 2> (x, w)", "1,8,4,4", "1,6,5,5", {"w": normal(8, 3, 2, 2)}),
    "grouped": ("y = Conv <group = 2> (x, w)", "1,16,4,4", "1,6,3,3", {"w": normal(6, 8, 2, 2)}),
    "depthwise": ("y = Conv <group = 6> (x, w)", "1,6,4,4", "1,6,3,3", {"w": normal(6, 1, 2, 2)}),
    "experts": ("y = MatMul (x, w)", "4,3,16", "4,3,8", {"w": normal(4, 16, 8)}),
    "Einsum": ('y = Einsum <equation = "a...c,cd->ad..."> (x, w)', "2,3,16", "2,8,3", {"w": W}),
    "Einsum, from the left": ('y = Einsum <equation = "dc,bec->bde"> (w, x)', "3,4,16", "3,8,4", {"w": normal(8, 16)}),
    "Einsum of experts": ('y = Einsum <equation = "edc,bec->bed"> (w, x)', "3,4,16", "3,4,8", {"w": normal(4, 8, 16)}),
    "GRU": ("y, h = GRU <hidden_size = 4> (x, w, r)", "3,2,8", "3,1,2,4",
            {"w": normal(1, 12, 8), "r": normal(1, 12, 4)}),
    "branch": (BRANCH, "3,16", "3,8", {"w": W}),
    "loop": (LOOP, "3,16", "3,16", {"v": normal(16, 16)}),
    "shared": ("a = MatMul (x, w) b = Relu (a) y = MatMul (b, w)", "3,16", "3,16", {"w": normal(16, 16)}),
    "shared, turned": ("a = MatMul (x, w) b = Relu (a) y = Gemm <transB = 1> (b, w)", "3,16", "3,16",
                       {"w": normal(16, 16)}),
}  # fmt: skip
NO_PATTERN = {"depthwise": "one input channel", "shared, turned": "another orientation"}  # why N:M cannot be had
NO_COORDINATES = {"int4 blocked": "of int4", "per channel": "zero point", "integer product": "zero point"}


def made(kind: str) -> ModelProto:
    return build(*KINDS[kind])


def build(nodes: str, x: str, y: str, weights: dict[str, Array]) -> ModelProto:
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    proto = onnx.parser.parse_model(f"{head} g (float[{x}] x) => (float[{y}] y) {{ {nodes} }}")
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return proto


def weights_of(source: Any) -> dict[str, tuple[Any, Array]]:
    """Initializer -> a layer, and its weight as the layer reads it."""
    model = load(source)
    return {layer.initializer: (layer, layer.read(model)) for layer in sparse_layers(model)[0]}


def outputs(source: Any) -> list[Array]:
    """Of a model on some input."""
    model = source if isinstance(source, str) else to_proto(source).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (x,) = session.get_inputs()
    results: list[Array] = session.run(None, {x.name: normal(*x.shape, seed=3)})
    return results


@pytest.mark.parametrize("form", ["dense", "sparse-initializer"])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_without_a_kernel(kind: str, form: str, tmp_path: Path) -> None:
    """The smallest weights are zero, the others have the bits they had, and outputs are those of the masked model."""
    before, path = made(kind), str(tmp_path / "out.onnx")
    if form != "dense" and kind in NO_COORDINATES:
        with pytest.raises(NothingToPrune, match=f"{NO_COORDINATES[kind]}.*format='dense' makes zeros"):
            onnxprune.prune(before, sparsity=0.95, format=form, measure=False)
        return
    result = onnxprune.prune(before, sparsity=0.95, format=form, measure=False)
    result.save(path)
    coordinates = {t.values.name for t in onnx.load(path).graph.sparse_initializer}
    old, new = weights_of(before), weights_of(path)
    assert old.keys() == new.keys() and old
    assert form == "dense" or coordinates
    masked, written = load(before), load(path)
    for name, (layer, w) in old.items():
        gone = new[name][1] == 0
        assert gone.sum() >= round(0.95 * gone.size)
        assert np.abs(w[gone]).max() <= np.abs(w[~gone]).min()
        np.testing.assert_array_equal(new[name][1][~gone], w[~gone])
        kept = ~gone
        for step in reversed(layer.stored.steps):
            kept = kept.transpose(np.argsort(step.perm)) if step.perm else kept
        first, last = (np.asarray(m.weights[name])[kept] for m in (masked, written))
        assert first.tobytes() == last.tobytes()
        layer.write(masked, np.where(gone, np.float32(0), w))
    for a, b in zip(outputs(masked), outputs(path), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    found = result.report.sparsity
    assert found is not None and found.zeros == sum(int((w == 0).sum()) for _, w in new.values())
    assert coordinates == {x.weight for x in found.layers if x.format == "sparse-initializer"}


@pytest.mark.parametrize("kind", KINDS)
def test_two_of_four(kind: str) -> None:
    before = made(kind)
    if kind in NO_PATTERN:
        with pytest.raises(NothingToPrune, match=NO_PATTERN[kind]):
            onnxprune.prune(before, pattern="2:4", format="dense", measure=False)
        return
    result = onnxprune.prune(before, pattern="2:4", format="dense", measure=False)
    for layer, w in weights_of(result.model).values():
        axis = layer.axes[0]
        along = np.moveaxis(w, axis, -1).reshape(-1, 4)
        assert (along != 0).sum(1).max() == 2


@pytest.mark.parametrize("solver", [None, "sparsegpt"])
def test_channels_take_their_scales_along(solver: str | None) -> None:
    """2:4 of two quantized layers, whose channels are reordered: zeros are those of the scales that moved too; what is
    solved for lies on the grid, and is what was measured."""
    nodes = """wa = DequantizeLinear <axis = 1> (a, sa, za) h = MatMul (x, wa) r = Relu (h)
               wb = DequantizeLinear <axis = 1> (b, sb, zb) y = MatMul (r, wb)"""
    rng = np.random.default_rng(5)
    weights: dict[str, Array] = {
        "a": rng.integers(-100, 100, (16, 32)).astype(np.int8), "sa": np.linspace(0.001, 0.02, 32).astype(np.float32),
        "za": rng.integers(-9, 9, 32).astype(np.int8), "b": rng.integers(-100, 100, (32, 8)).astype(np.int8),
        "sb": STEPS, "zb": ZEROS,
    }  # fmt: skip
    data: Any = {} if solver is None else {"calibration": {"x": normal(96, 16)}, "solver": solver}
    shapes: Any = {"x": "3,16"}
    result = onnxprune.prune(
        build(nodes, "n,16", "n,8", weights), pattern="2:4", format="dense", measure=False, input_shape=shapes,
        **data,
    )  # fmt: skip
    found = result.report.sparsity
    assert found is not None and len(found.permuted) == 1 and found.zeros == found.size // 2
    for _, w in weights_of(result.model).values():
        assert ((w.T.reshape(-1, 4) != 0).sum(1) <= 2).all()
    assert all(x.error < x.plain and not x.reason for x in found.solved) and len(found.solved) == 2 * bool(data)


LEFT_ALONE: dict[str, tuple[str, dict[str, Array]]] = {
    "is not constant": ("i = Cast <to = 3> (x) r = ReduceMax <keepdims = 0> (i) t = DequantizeLinear (w, s, r) "
                        "y = MatMul (x, t)", {"w": BYTES, "s": STEP}),
    "read by other nodes": ("e = Transpose (w) t = ReduceSum <keepdims = 0> (e) a = MatMul (x, w) y = Add (a, t)",
                            {"w": W}),
    "another scale or zero point": ("t = DequantizeLinear (w, s) u = DequantizeLinear (w, s, o) a = MatMul (x, t) "
                                    "b = MatMul (x, u) y = Add (a, b)",
                                    {"w": BYTES, "s": STEP, "o": np.array(3, np.int8)}),
    "no constant weight": ("v = Transpose (x) t = MatMul (v, x) u = Identity (t) a = MatMul (x, u) n = "
                           "Constant <value_ints = [8]> () z = Constant <value_ints = [0]> () y = Slice (a, z, n, o)",
                           {"o": np.array([1])}),
    "labels in the Einsum": ('y = Einsum <equation = "ac,cde->ad"> (x, w)', {"w": normal(16, 8, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_weights_that_stay_as_they_are(reason: str) -> None:
    """With the true reason, in one line."""
    with pytest.raises(NothingToPrune, match=reason):
        onnxprune.prune(
            build(LEFT_ALONE[reason][0], "3,16", "3,8", LEFT_ALONE[reason][1]), sparsity=0.5, format="dense"
        )


@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_types_without_kernels(asked: dict[str, Any]) -> None:
    """A model in bfloat16, which onnxruntime does not run, is checked on a float32 copy; its own type stays."""
    before = bfloat16("h = Gemm (x, w, c) r = Relu (h) y = Gemm (r, v)")
    result = onnxprune.prune(before, format="dense", measure=False, **asked)
    found, written = result.report.sparsity, to_proto(result.model)
    assert found is not None and found.zeros == found.size // 2 and found.error == 0.0
    assert any("verified on a float32 copy" in note for note in result.report.notes)
    assert {t.data_type for t in written.graph.initializer} == {onnx.TensorProto.BFLOAT16}


def test_what_runs_in_no_type_is_refused_at_once() -> None:
    """Before channels are reordered and zeros are made."""
    before, stages = bfloat16("h = Gemm (x, w, c) r = Foreign (h) y = Gemm (r, v)"), list[str]()
    before.graph.node[1].domain = "other"
    before.opset_import.add(domain="other", version=1)
    with pytest.raises(OptionError, match="onnxruntime cannot run it, so the result cannot be verified"):
        sparsify(load(before), Spec(zeros=Zeros(pattern="2:4"), store=Store(format="dense")), [{"x": normal(3, 16)}],
                 progress=lambda stage, *_, **__: stages.append(stage))  # fmt: skip
    assert stages == []


def bfloat16(nodes: str) -> ModelProto:
    """Two layers in bfloat16, 16 to 8 to 4 channels."""
    weights = {"w": W, "c": normal(8), "v": normal(8, 4, seed=2)}
    proto = build(nodes, "3,16", "3,4", {name: w.astype(ml_dtypes.bfloat16) for name, w in weights.items()})
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    return proto


def test_what_no_operator_takes() -> None:
    """Layers that no sparse operator stands for stay as they are where one was asked for, and the way out is said."""
    with pytest.raises(NothingToPrune, match="float16 weights; format='dense' makes zeros in a plain file"):
        onnxprune.prune(made("float16"), sparsity=0.8)
    mixed = build("a = MatMul (x, w) r = Cast <to = 1> (v) y = MatMul (a, r)", "3,16", "3,16",
                  {"w": W, "v": normal(8, 16).astype(np.float16)})  # fmt: skip
    default = onnxprune.prune(mixed, sparsity=0.8, measure=False).report
    assert any("takes stay as they are: 1; --format dense" in note for note in default.notes)
    found = onnxprune.prune(mixed, sparsity=0.8, format="csr", measure=False).report.sparsity
    assert found is not None and [x.node for x in found.layers] == ["a"]
    assert found.untouched == (("y", "its weight comes through Cast"),)


@pytest.mark.parametrize("kind", ["GRU", "branch", "int4 blocked", "shared"])
def test_plans_and_names(kind: str) -> None:
    """A plan makes the same zeros again, in bodies and of second weights too; any name of a layer leaves it out."""
    result = onnxprune.prune(made(kind), sparsity=0.5, format="dense", measure=False)
    again = onnxprune.prune(made(kind), plan=result.plan, measure=False)
    assert to_proto(result.model).SerializeToString() == to_proto(again.model).SerializeToString()
    found = result.report.sparsity
    assert found is not None and len({x.node for x in found.layers}) == len(found.layers)
    for row in found.layers:
        options: Any = {"ignore": [row.weight], "sparsity": 0.5, "format": "dense", "measure": False}
        other = onnxprune.prune(made(kind), **options).report.sparsity
        assert other is not None and all(x.masked == (x.weight != row.weight) for x in other.layers)
