"""Sparse layers of quantized models: exact sums, onnxruntime's own rounding, files, and the way there and back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import formats
from onnxprune.errors import ModelFileError, OptionError
from onnxprune.formats.densify import densify
from onnxprune.formats.format import Packing
from onnxprune.formats.functions import function
from onnxprune.formats.operators import OPERATORS, QUANTIZED_VERSION, is_sparse
from onnxprune.formats.patterns import BlockPattern, NMPattern
from onnxprune.formats.registry import FORMATS, untaken
from onnxprune.formats.rewrite import rewrite
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, load
from onnxprune.kernels import available
from onnxprune.kernels.names import RESULTS
from onnxprune.layers.layer import sparse_layers
from test_sparse_runtime import put, refused, session_of, together

ROOT = Path(__file__).resolve().parent.parent
runs = pytest.mark.skipif(bool(available()), reason=available() or "sparse operators can run")
Tile = tuple[int, int]
TILES: list[tuple[float, Tile]] = [
    (0.3, (1, 4)), (0.1, (1, 4)), (0.2, (16, 4)), (0.6, (32, 8)), (1.0, (4, 4)), (0.0, (2, 8)), (0.4, (3, 12)),
]  # fmt: skip
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8,
         np.dtype(np.int8): TensorProto.INT8}  # fmt: skip
UINT8, INT8 = np.dtype(np.uint8), np.dtype(np.int8)


# weights, models, and what they should compute


def weight(shape: tuple[int, int], share: float, tile: Tile, most: int = 127, seed: int = 0) -> Array:
    """int8 `(M, K)` from -most - 1 to most, of whose tiles a share is left."""
    rng = np.random.default_rng(seed)
    keep = rng.random([-(-n // side) for n, side in zip(shape, tile, strict=True)]) < share
    for axis, side in enumerate(tile):
        keep = keep.repeat(side, axis).take(range(shape[axis]), axis)
    return np.where(keep, rng.integers(-most - 1, most + 1, shape), 0).astype(np.int8)


def integers(dtype: np.dtype[Any], *shape: int, seed: int = 0) -> Array:
    """Every integer of a type, as likely."""
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


def grids(w: Array, x: np.dtype[Any], result: str, seed: int = 1) -> dict[str, Array]:
    """Scales, zero points and bias of a product, such that few outputs saturate."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.005, 0.02, len(w)).astype(np.float32)
    out = {
        "scale": scale, "bias": rng.integers(-9000, 9000, len(w)).astype(np.int32),
        "x_scale": np.array(0.021, np.float32), "x_zero_point": np.array(-3 if x == INT8 else 117, x),
    }  # fmt: skip
    if result:
        spread = 0.021 * 0.012 * 75 * np.sqrt(np.square(w.astype(np.float64)).sum(1).max() + 1)
        out["y_scale"] = np.array(spread / 64, np.float32)
        out["y_zero_point"] = np.array(5 if result == "Int8" else 131, RESULTS[result])
    return out


def model_of(
    w: Array, tile: Tile, x: np.dtype[Any] = UINT8, result: str = "", *, body: bool = False, **edits: Any
) -> ModelProto:
    """One operator named `layer`; edits: other arrays and attributes, None removes an attribute."""
    operator = OPERATORS[f"BsrQuantizedMatMul{result}"]
    arrays = dict(zip(("values", "indices", "indptr"), formats.pack_bsr(w[None], *tile, w.shape[1]), strict=True))
    arrays |= grids(w, x, result)
    arrays |= {name: value for name, value in edits.items() if name in arrays}
    given = {"shape": w.shape, "alpha": 1.0, "block": tile, "weight": "MK", "dense": "MatMul"} | edits
    chosen = {name: given[name] for name in operator.attributes if given[name] is not None}
    node = helper.make_node(str(operator), operator.inputs, ["Y"], "layer", domain="onnxprune", **chosen)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("X", TYPES[x], None)],
        [helper.make_tensor_value_info("Y", TYPES[RESULTS[result]], None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("onnxprune", QUANTIZED_VERSION)]
    bodies = [made for made in [function(operator, 17)] if made and body]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=bodies)


def expected(w: Array, x: Array, result: str, alpha: float = 1.0) -> Array:
    """Sums in int64, then what onnxruntime does: float32 times one factor, ties to even, saturation."""
    g = grids(w, x.dtype, result)
    sums = (x.astype(np.int64) - int(g["x_zero_point"])) @ w.T.astype(np.int64) + g["bias"]
    factor = np.float32(alpha) * g["x_scale"] * g["scale"]
    if not result:
        return sums.astype(np.float32) * factor
    quanta = np.rint(sums.astype(np.float32) * (factor / g["y_scale"])) + int(g["y_zero_point"])
    info = np.iinfo(RESULTS[result])
    return np.clip(quanta, info.min, info.max).astype(RESULTS[result])


# kernels


@runs
@pytest.mark.parametrize(("share", "tile"), TILES)
@pytest.mark.parametrize("x", [UINT8, INT8])
def test_sums_are_exact(x: np.dtype[Any], share: float, tile: Tile) -> None:
    """Of any integers, to the last bit: nothing saturates on the way."""
    rows = [
        (weight(shape, share, tile), result)
        for shape in ((1, 1), (1, 70), (33, 47), (65, 130), (256, 260), (600, 300))
        for result in RESULTS
    ]
    session = session_of(together([model_of(w, tile, x, result) for w, result in rows]), threads=2)
    for leading in [(), (1,), (2, 9), (16,), (131,)]:
        inputs = [integers(x, *leading, w.shape[1]) for w, _ in rows]
        got = session.run(None, {f"{k} X": each for k, each in enumerate(inputs)})
        for y, each, (w, result) in zip(got, inputs, rows, strict=True):
            np.testing.assert_array_equal(y, expected(w, each, result), strict=True)


@runs
@pytest.mark.parametrize("tile", [(1, 4), (16, 4)])
def test_the_largest_sums(tile: Tile) -> None:
    """255 times 127 and -128, all along a row: pairs of such products leave int16."""
    w = np.full((33, 64), 127, np.int8)
    w[::2] = -128
    x = np.full((18, 64), 255, np.uint8)
    np.testing.assert_array_equal(session_of(model_of(w, tile)).run(None, {"X": x})[0], expected(w, x, ""))


@runs
@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("x", [UINT8, INT8])
def test_the_function_computes_the_same(x: np.dtype[Any], result: str) -> None:
    """Weights of 7 bits, as onnxruntime saturates where a CPU has no VNNI."""
    for tile in ((1, 4), (16, 4)):
        w = weight((48, 70), 0.4, tile, most=63)
        model, given = model_of(w, tile, x, result, body=True, alpha=-0.5), integers(x, 2, 9, 70)
        ours, theirs = (session_of(model, ours=ours).run(None, {"X": given})[0] for ours in (True, False))
        np.testing.assert_array_equal(ours, expected(w, given, result, -0.5), strict=True)
        np.testing.assert_array_equal(theirs, ours, strict=True)


@runs
def test_threads_give_the_same_bytes() -> None:
    w, x = weight((600, 300), 0.3, (16, 4)), integers(UINT8, 200, 300)
    one, *others = (session_of(model_of(w, (16, 4), result="Uint8"), n).run(None, {"X": x})[0] for n in (1, 2, 4))
    assert all(np.array_equal(one, other) for other in others)


# bad files


W = weight((4, 8), 0.6, (1, 4), seed=5)
LAST = len(formats.pack_bsr(W[None], 1, 4, 8)[0]) - 1
FOUR = np.ones(4, np.float32)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"x_scale": np.array(0, np.float32)}, "x_scale is not a finite number above 0"),
    ({"x_scale": np.array(np.nan, np.float32)}, "x_scale is not"),
    ({"x_scale": FOUR}, "x_scale has 1 axes"),
    ({"x_zero_point": np.zeros(1, np.uint8)}, "x_zero_point has 1 axes"),
    ({"x_zero_point": np.array(0, np.int32)}, "x_zero_point has the wrong type"),
    ({"y_scale": np.array(np.inf, np.float32)}, "y_scale is not a finite number above 0"),
    ({"y_scale": np.array(-1, np.float32)}, "y_scale is not"),
    ({"y_zero_point": np.array(0, np.int8)}, "y_zero_point"),
    ({"y_zero_point": np.zeros(2, np.uint8)}, "y_zero_point has 1 axes"),
    ({"y_scale": np.array(1e-38, np.float32), "x_scale": np.array(1e38, np.float32)}, r"scale\[0\] and y_scale make"),
    ({"scale": put(FOUR, 2, np.inf)}, r"scale\[2\] is not a finite number above 0"),
    ({"scale": FOUR[:3]}, "scale has length 3"),
    ({"bias": FOUR}, "bias"),
    ({"bias": np.zeros(5, np.int32)}, "bias has length 5"),
    ({"values": np.zeros((LAST + 1, 1, 4), np.float32)}, "values"),
    ({"values": np.zeros((LAST + 1, 1, 3), np.int8)}, "values has length 3"),
    ({"indices": put(formats.pack_bsr(W[None], 1, 4, 8)[1], LAST, 2)}, rf"indices\[{LAST}\] is outside the row"),
    ({"indptr": np.array([0, 9, 0, 0, LAST + 1], np.int32)}, "indptr"),
    ({"block": (1, 3), "values": np.zeros((LAST + 1, 1, 3), np.int8)}, "block holds 3 columns, expected a multiple of"),
    ({"block": (1, 8)}, "values has length 4"),
    ({"shape": (5, 8)}, "indptr has length 5"),
    ({"alpha": None}, "alpha is missing"),
]  # fmt: skip


@runs
@pytest.mark.parametrize(("edits", "words"), BAD)
def test_bad_arrays(edits: dict[str, Any], words: str) -> None:
    model = model_of(W, (1, 4), result="Uint8", **edits)
    refused(model, words)
    with pytest.raises(ModelFileError, match="'layer'"):
        densify(load(model))


@runs
def test_x_that_does_not_fit() -> None:
    for x, other in ((UINT8, INT8), (INT8, UINT8)):
        model = model_of(W, (1, 4), x)
        model.graph.input[0].type.tensor_type.elem_type = TYPES[other]
        with pytest.raises(Exception, match="node layer: X must be of the type of x_zero_point"):
            session_of(model).run(None, {"X": integers(other, 2, 8)})
    with pytest.raises(Exception, match="node layer: X has length 7 in its last axis"):
        session_of(model_of(W, (1, 4))).run(None, {"X": integers(UINT8, 2, 7)})


# quantized models


def qdq(
    w: Array, product: str = "MatMul", x: np.dtype[Any] = UINT8, result: str = "Uint8", *, per: str = "channel",
    turned: bool = False, edits: dict[str, Any] | None = None, **attributes: Any,
) -> Model:  # fmt: skip
    """DequantizeLinear, a product with int8 `(M, K)`, QuantizeLinear; Gemm has a bias. edits: other arrays."""
    g = grids(w, x, result)
    scale = g["scale"] if per == "channel" else g["scale"][0]
    arrays = {
        "w": w if turned else np.ascontiguousarray(w.T), "ws": scale, "wz": np.zeros(scale.shape, np.int8),
        "xs": g["x_scale"], "xz": g["x_zero_point"], "b": g["bias"], "bs": g["x_scale"] * scale,
        **({"ys": g["y_scale"], "yz": g["y_zero_point"]} if result else {}), **(edits or {}),
    }  # fmt: skip
    axis: dict[str, Any] = {"axis": int(not turned)} if per == "channel" else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], **axis),
    ]
    if product == "Gemm":
        axis = {"axis": 0} if per == "channel" else {}
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bs"], ["bf"], **axis))
        attributes = {"transB": int(turned), **attributes}
    inputs = ["xf", "wf", *(["bf"] if product == "Gemm" else [])]
    nodes.append(helper.make_node(product, inputs, ["yf" if result else "y"], "layer", **attributes))
    nodes += [helper.make_node("QuantizeLinear", ["yf", "ys", "yz"], ["y"])] if result else []
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TYPES[x], ["n", w.shape[1]])],
        [helper.make_tensor_value_info("y", TYPES[RESULTS[result]], ["n", len(w)])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items() if name in read],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def run(model: Model, x: Array, ours: bool = True) -> Array:
    """What onnxruntime computes."""
    (y,) = session_of(onnxprune.to_proto(model), ours=ours).run(None, {"x": x})
    return np.asarray(y)


def bsr(tile: Tile) -> Packing:
    return FORMATS["bsr"].packing(BlockPattern(*tile))


FORMS = list(itertools.product(("MatMul", "Gemm"), (UINT8, INT8), RESULTS, ("channel", "tensor"), (False, True)))


@pytest.mark.parametrize(("product", "x", "result", "per", "turned"), [f for f in FORMS if f[0] == "Gemm" or not f[4]])
def test_there_and_back(product: str, x: np.dtype[Any], result: str, per: str, turned: bool) -> None:
    """The quantized model by onnxruntime, with our operator, by its function, and back: the same quanta, or one off
    where onnxruntime rounds floats in another order."""
    w = weight((48, 72), 0.4, (16, 4), most=63)
    model, given = qdq(w, product, x, result, per=per, turned=turned), integers(x, 21, 72)
    sparse, notes = rewrite(model, {"layer": bsr((16, 4))})
    (node,) = sparse.proto.graph.node
    assert node.op_type == f"BsrQuantizedMatMul{result}" and not notes
    assert [o.version for o in sparse.proto.opset_import if o.domain] == [QUANTIZED_VERSION]
    assert {"xs", "xz"} <= set(sparse.weights) and "w" not in sparse.weights
    back = densify(sparse)
    assert sorted(n.op_type for n in back.proto.graph.node) == sorted(n.op_type for n in model.proto.graph.node)
    assert [
        a.tobytes() for a in back.weights.values() if a.dtype == np.int8 and a.shape == model.weights["w"].shape
    ] == [model.weights["w"].tobytes()]
    reference, *others = [run(model, given), run(sparse, given, ours=False), run(back, given)]
    others += [] if available() else [run(sparse, given)]
    for y in others:
        assert y.dtype == reference.dtype
        if result:
            assert np.abs(y.astype(int) - reference).max() <= 1 and (y != reference).mean() < 0.01
        else:
            np.testing.assert_allclose(y, reference, rtol=1e-6, atol=1e-6)


STAY: list[tuple[str, dict[str, Any], str]] = [  # that are known when the layer is looked at, or when it is rewritten
    ("a zero point of the weight", {"edits": {"wz": np.full(8, 3, np.int8)}}, "int8 with a zero point"),
    ("uint8 weights", {"edits": {"w": np.full((16, 8), 9, np.uint8), "wz": np.full(8, 9, np.uint8)}}, "is uint8, not"),
    ("another bias", {"product": "Gemm", "edits": {"bs": np.ones(8, np.float32)}}, "bias is not int32 in steps"),
    ("x by channel", {"edits": {"xs": np.ones(16, np.float32), "xz": np.zeros(16, np.uint8)}}, "no scale and zero"),
    ("x of 16 bits", {"edits": {"xz": np.array(3, np.uint16)}}, "no scale and zero point of uint8 or int8"),
]


@pytest.mark.parametrize(("name", "given", "reason"), STAY, ids=[row[0] for row in STAY])
def test_layers_that_stay_dense(name: str, given: dict[str, Any], reason: str) -> None:
    model = qdq(weight((8, 16), 0.5, (1, 4)), **given)
    (layer,) = sparse_layers(model)[0]
    if why := FORMATS["bsr"].refuses(layer):
        assert reason in why and why in (untaken(layer), why)
        with pytest.raises(OptionError, match="is no layer that can be sparse"):
            rewrite(model, {"layer": bsr((1, 4))})
        return
    sparse, notes = rewrite(model, {"layer": bsr((1, 4))})
    assert not any(is_sparse(n) for n in sparse.proto.graph.node) and reason in notes[0]


def test_tiles_and_formats_that_int8_does_not_have() -> None:
    model = qdq(weight((8, 16), 0.5, (1, 4)))
    (layer,) = sparse_layers(model)[0]
    assert "comes through DequantizeLinear" in FORMATS["csr"].refuses(layer)
    assert "comes through DequantizeLinear" in FORMATS["nm"].refuses(layer)
    assert not FORMATS["bsr"].refuses(layer) and not untaken(layer)
    assert rewrite(model, {"layer": bsr((4, 1))})[1] == [
        "layer: stays dense: in int8, tiles have a multiple of 4 inputs, and not block:4x1"
    ]
    assert NMPattern(2, 4).kind != FORMATS["bsr"].pattern


def test_what_reads_the_same_stays() -> None:
    """A DequantizeLinear that another node reads, and floats that are an output, are there still."""
    w = weight((8, 16), 0.5, (1, 4))
    model = qdq(w, result="Uint8")
    graph = model.proto.graph
    graph.output.append(helper.make_tensor_value_info("yf", TensorProto.FLOAT, ["n", 8]))
    graph.node.append(helper.make_node("Relu", ["xf"], ["z"]))
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 16]))
    sparse, _ = rewrite(model, {"layer": bsr((1, 4))})
    names = [n.op_type for n in sparse.proto.graph.node]
    assert sorted(names) == sorted(["DequantizeLinear", "BsrQuantizedMatMul", "QuantizeLinear", "Relu"])
    x = integers(UINT8, 5, 16)
    models = [onnxprune.to_proto(m) for m in (model, sparse, densify(sparse))]
    first, *others = [session_of(m, ours=False).run(None, {"x": x}) for m in models]
    for found in others:
        for a, b in zip(found, first, strict=True):
            np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=1e-5, atol=1)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of Gemms, quantized by onnxruntime: int8, a scale for every output."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    path = tmp_path_factory.mktemp("int8") / "mlp.onnx"

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"pixels": np.load(ROOT / "models" / "digits_mlp.npz")["pixels"][:64]}]

        def get_next(self) -> dict[str, Array] | None:
            return self.left.pop() if self.left else None

    quantize_static(
        ROOT / "models" / "digits_mlp.onnx", path, Samples(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def test_a_quantized_file(quantized: Path, tmp_path: Path) -> None:
    result = onnxprune.prune(quantized, sparsity=0.7, pattern="block:1x4", format="bsr", measure=False)
    assert result.report.sparsity is not None
    rows = result.report.sparsity.layers
    assert [row.format for row in rows] == ["bsr"] * 4 and all(row.zeros >= 0.69 * row.size for row in rows)
    names = [n.op_type for n in result.model.proto.graph.node]
    assert names == ["QuantizeLinear", *["BsrQuantizedMatMulUint8"] * 4, "DequantizeLinear"]
    result.save(tmp_path / "sparse.onnx")
    dense = onnxprune.prune(quantized, sparsity=0.7, pattern="block:1x4", format="dense", measure=False)
    x = {"pixels": np.load(ROOT / "models" / "digits_mlp.npz")["pixels"][:50]}
    sessions = [session_of(onnxprune.to_proto(m)) for m in (dense.model, result.model)]
    a, b = (s.run(None, x)[0] for s in sessions)
    step = onnx.numpy_helper.to_array(next(t for t in onnx.load(quantized).graph.initializer if "scale" in t.name))
    assert np.abs(a - b).max() <= max(1e-6, 2 * float(np.max(step))), "a quantum or two of the last layer"


@runs
def test_auto_takes_what_is_measured_to_be_faster(quantized: Path) -> None:
    result = onnxprune.prune(quantized, sparsity=0.9, pattern="block:16x4", format="auto", measure=False)
    found = result.report.sparsity
    assert found is not None and found.speedup is not None
    sparse = [row for row in found.layers if row.format == "bsr"]
    assert bool(sparse) == (found.speedup >= 1.02) and all(row.reason for row in found.layers if row not in sparse)


def test_zeros_that_a_quantized_model_has() -> None:
    w = weight((48, 256), 0.2, (16, 4))
    result = onnxprune.prune(onnxprune.to_proto(qdq(w)), format="bsr", measure=False)
    assert [n.op_type for n in result.model.proto.graph.node] == ["BsrQuantizedMatMulUint8"]
    assert result.report.sparsity is not None and result.report.sparsity.layers[0].pattern == "block:16x4"
