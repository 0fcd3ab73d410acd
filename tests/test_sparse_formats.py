"""Sparse weights in a file: bytes, functions, rewriting and the way back; all without the library."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, numpy_helper

from onnxprune import formats
from onnxprune.errors import ModelFileError, OptionError
from onnxprune.formats.densify import densify
from onnxprune.formats.format import Packed, Packing, no_operator
from onnxprune.formats.functions import function
from onnxprune.formats.initializer import sparse_initializers
from onnxprune.formats.operators import OPERATORS, VERSION, least_version
from onnxprune.formats.patterns import BlockPattern, NMPattern, Pattern
from onnxprune.formats.registry import AUTO, CHOICES, FORMATS, candidates, storages
from onnxprune.formats.rewrite import rewrite
from onnxprune.formats.values import decode, encode, round_values
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model, load, save, to_proto
from onnxprune.graph.node import Node
from onnxprune.kernels.names import STORAGES, VALUES
from onnxprune.layers.layer import from_blocks, sparse_layers, to_blocks

CSR = Packing(FORMATS["csr"])


def nm(n: int, m: int) -> Packing:
    return Packing(FORMATS["nm"], NMPattern(n, m))


def bsr(r: int, c: int) -> Packing:
    return Packing(FORMATS["bsr"], BlockPattern(r, c))


PATTERNS: dict[str, list[Pattern | None]] = {  # every format but dense -> patterns by which it is tried
    "csr": [None],
    "nm": [NMPattern(2, 4), NMPattern(3, 5)],
    "bsr": [BlockPattern(1, 4), BlockPattern(4, 1), BlockPattern(4, 4), BlockPattern(3, 2)],
    "columns": [BlockPattern(0, 1)],
    "sparse-initializer": [None],
}
PACKINGS = [Packing(FORMATS[name], p) for name, each in PATTERNS.items() if FORMATS[name].storage for p in each]
FLOATS = st.sampled_from([0.0, 0.0, 0.0, -0.0, 1.5, -2.0, float("nan"), float("inf"), 1e-40])


# bytes


@settings(deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FLOATS))
def test_csr_keeps_every_bit(w: Array) -> None:
    arrays = formats.pack_csr(w)
    formats.check_csr("w", w.shape, *arrays)
    assert formats.unpack_csr(*arrays, w.shape).tobytes() == w.tobytes()


@settings(deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=19), elements=FLOATS), st.data())
def test_nm_keeps_every_bit(blocks: Array, data: st.DataObject) -> None:
    m = data.draw(st.integers(2, 20))
    n = data.draw(st.integers(1, m))
    for k in range(0, blocks.shape[1], m):
        blocks[:, k : k + m][:, n:] = 0
    values, positions = formats.pack_nm(blocks, n, m)
    formats.check_nm("w", blocks.shape, n, m, values, positions)
    assert formats.unpack_nm(values, positions, m, blocks.shape[1]).tobytes() == blocks.tobytes()


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(*[st.integers(1, 3), st.integers(1, 7)] * 2), elements=FLOATS),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_bsr_keeps_every_bit(w: Array, r: int, c: int) -> None:
    group, n, _, segment = w.shape
    rows = w.reshape(group, n, -1)
    arrays = formats.pack_bsr(rows, r, c, segment)
    formats.check_bsr("w", rows.shape, r, c, segment, *arrays)
    assert formats.unpack_bsr(*arrays, rows.shape, segment).tobytes() == w.tobytes()
    assert all(tile.any() or np.signbit(tile).any() for tile in arrays[0])


SANE = hnp.arrays(
    np.float32, (3, 8), elements=st.one_of(st.just(0.0), st.floats(-6e4, 6e4, width=32), st.floats(-1, 1, width=32))
)
HALF_STEP = {"float32": 0.0, "bfloat16": 2**-9, "float16": 2**-12, "int8": 0.0}  # over the weight


@pytest.mark.parametrize("values", VALUES)
@settings(deadline=None)
@given(SANE)
def test_laws_of_rounding(values: str, w: Array) -> None:
    codes, scale = encode(w, values)
    rounded = round_values(w, values)
    assert codes.dtype == VALUES[values] and rounded.dtype == np.float32 and (scale is None) == (values != "int8")
    assert not rounded[w == 0].any()
    assert round_values(rounded, values).tobytes() == rounded.tobytes()
    row = np.abs(w).max(axis=1, keepdims=True)
    bound = np.abs(w) * 2 * HALF_STEP[values] + (values == "int8") * row / 252 + (values != "float32") * 2**-24
    assert (np.abs(rounded - w) <= bound).all()
    if values != "float32":
        assert not np.signbit(rounded[rounded == 0]).any()  # -0.0 would be stored
    arrays = formats.pack_csr(codes)
    formats.check_csr("w", w.shape, *arrays, types=list(VALUES.values()))
    assert decode(formats.unpack_csr(*arrays, w.shape), scale).tobytes() == rounded.tobytes()
    nm = formats.pack_nm(codes, 3, 3)
    formats.check_nm("w", w.shape, 3, 3, *nm, types=list(VALUES.values()))
    assert decode(formats.unpack_nm(*nm, 3, w.shape[1]), scale).tobytes() == rounded.tobytes()


def test_scale_of_int8() -> None:
    codes, scale = encode(np.array([[127, -64, 0.4], [0, 0, 0], [1e-30, 0, 1e-32], [1, 0.5, 3e38]], np.float32), "int8")
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0], [127, 0, 1], [0, 0, 127]]
    assert scale is not None and scale.dtype == np.float32 and (np.isfinite(scale) & (scale > 0)).all()
    assert encode(np.ones((2, 3, 1, 1), np.float32), "int8")[0].shape == (2, 3, 1, 1)


@pytest.mark.parametrize(
    ("values", "weight"), [("float16", 7e4), ("int8", np.inf), ("int8", np.nan), ("bfloat16", 3.4028e38), ("int4", 1)]
)
def test_weights_that_values_cannot_hold(values: str, weight: float) -> None:
    with pytest.raises(OptionError, match="of output 1" if values in VALUES else "must be one of float32, bfloat16"):
        encode(np.array([[0, 1], [2, weight]], np.float32), values)


def test_bytes_of_csr() -> None:
    values, indices, indptr = formats.pack_csr(np.array([[0, 2, 0], [0, 0, 0], [3, 0, -0.0]], np.float32))
    assert values.tobytes() == np.array([2, 3, -0.0], "<f4").tobytes()
    assert indices.tobytes().hex() == "010000000200"
    assert indptr.tobytes().hex() == "00000000010000000100000003000000"
    assert formats.pack_csr(np.zeros((1, 65536), np.float32))[1].dtype == np.uint16
    assert formats.pack_csr(np.zeros((1, 65537), np.float32))[1].dtype == np.int32


@pytest.mark.parametrize(
    ("row", "n", "m", "values", "positions"),
    [
        ([0, 5, 0, 6, 7, 0, 0, 8], 2, 4, [[5, 6], [7, 8]], [1 + (3 << 2) + (0 << 4) + (3 << 6)]),
        ([0, 1, 2, 0, 0, 5, 0, 7], 4, 8, [[1, 2, 5, 7]], [0b01010001, 0b00001111]),  # 1, 2, 5, 7 in three bits
        ([0, 0, 3], 1, 2, [[0], [3]], [0]),  # the last block is short
        ([9], 2, 3, [[9, 0]], [0b0100]),  # position 1 is beyond the end
        ([0, 0, 0, 4], 2, 4, [[0, 4]], [0b1100]),  # filled up with the first free place
    ],
)
def test_bytes_of_nm(row: list[float], n: int, m: int, values: list[list[float]], positions: list[int]) -> None:
    v, p = formats.pack_nm(np.array([row], np.float32), n, m)
    assert v.tolist() == [values]
    assert p.tolist() == [positions]


def test_what_cannot_be_packed() -> None:
    with pytest.raises(OptionError, match=r"block 1 of row 0 holds 3 weights"):
        formats.pack_nm(np.array([[1, 1, 0, 0, 1, -0.0, 1, 0]], np.float32), 2, 4)
    for n, m in ((0, 4), (5, 4), (1, 1), (1, 257)):
        with pytest.raises(OptionError, match="pattern"):
            formats.pack_nm(np.zeros((1, 4), np.float32), n, m)
    with pytest.raises(OptionError, match="float32"):
        formats.pack_csr(np.zeros((1, 4)))


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


def u16(*values: int) -> Array:
    return np.array(values, np.uint16)


def i32(*values: int) -> Array:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("values", "indices", "indptr", "words"),
    [
        (f32(1, 2), u16(0, 2), i32(0, 1, 2), ""),
        (f32(1, 2), u16(0, 0), i32(0, 1, 2), ""),
        (f32(1, 2), u16(0, 2), i32(0, 2), "indptr of int32"),
        (f32(1, 2), u16(0), i32(0, 1, 2), "indices of uint16"),
        (f32(1, 2), i32(0, 1), i32(0, 1, 2), "indices of uint16"),
        (f32(1, 2).astype(np.float64), u16(0, 2), i32(0, 1, 2), "values of float32"),
        (f32(1, 2).astype(np.int8), u16(0, 2), i32(0, 1, 2), "values of float32 or bfloat16 or float16"),
        (f32(1, 2).astype(np.float16), u16(0, 2), i32(0, 1, 2), ""),
        (f32(1, 2), u16(0, 3), i32(0, 1, 2), "indices from 0 to 2"),
        (f32(1, 2), u16(1, 1), i32(0, 2, 2), "rise within a row"),
        (f32(1, 2), u16(2, 1), i32(0, 0, 2), "rise within a row"),
        (f32(1, 2), u16(0, 1), i32(0, 3, 2), "never falls"),
        (f32(1, 2), u16(0, 1), i32(0, -1, 2), "never falls"),
        (f32(1, 2), u16(0, 1), i32(1, 1, 2), "indptr from 0 to 2"),
        (f32(1, 2), u16(0, 1), i32(0, 1, 1), "indptr from 0 to 2"),
        (f32(), u16(), i32(0, 0, 0), ""),
    ],
)
def test_hostile_csr(values: Array, indices: Array, indptr: Array, words: str) -> None:
    refused(lambda: formats.check_csr("node", (2, 3), values, indices, indptr), words)


@pytest.mark.parametrize(
    ("n", "m", "values", "positions", "words"),
    [
        (2, 4, np.ones((1, 2, 2)), [[0b1001_0100]], ""),
        (2, 4, np.ones((1, 2, 2)), [[0b0001_0100]], "rise within a block"),
        (2, 4, np.ones((1, 2, 2)), [[0b1101_0100]], "0 beyond the 7"),
        (2, 4, np.ones((1, 2, 1)), [[0b1101_0100]], "values of float32"),
        (2, 4, np.ones((1, 2, 2)), [[0, 0]], "positions of uint8"),
        (1, 5, np.ones((1, 2, 1)), [[0b000_101]], "positions from 0 to 4"),
        (1, 5, np.ones((1, 2, 1)), [[0b0100_0000]], "then zeros"),
        (3, 2, np.ones((1, 2, 2)), [[0]], "a pattern"),
        (-(1 << 40), 1 << 40, np.ones((1, 2, 2)), [[0]], "a pattern"),
    ],
)
def test_hostile_nm(n: int, m: int, values: Array, positions: list[list[int]], words: str) -> None:
    arrays = values.astype(np.float32), np.array(positions, np.uint8)
    refused(lambda: formats.check_nm("node", (1, 7), n, m, *arrays), words)


@pytest.mark.parametrize(
    ("block", "change", "words"),
    [
        ((2, 2), {}, ""),
        ((0, 2), {}, "a block of 1 to 64"),
        ((2, 65), {}, "a block of 1 to 64"),
        ((2, 1 << 62), {}, "a block of 1 to 64"),
        ((1, 2), {}, "values of float32"),
        ((2, 2), {"values": np.ones((3, 2), np.float32)}, "values of float32"),
        ((2, 2), {"values": np.ones((), np.float32)}, "values of float32"),
        ((2, 2), {"values": np.ones((3, 2, 2), np.int8)}, "values of float32 or bfloat16"),
        ((2, 2), {"values": np.ones((2, 2, 2), np.float32)}, "indices of uint16 [2]"),
        ((2, 2), {"values": np.ones((3, 2, 2), np.float32)}, "0 beyond the edges"),
        ((2, 2), {"indices": u16(0, 1, 2)}, "indices from 0 to 1"),
        ((2, 2), {"indices": u16(0, 0, 1)}, "rise within a row"),
        ((2, 2), {"indices": u16(0, 1)}, "indices of uint16"),
        ((2, 2), {"indices": i32(0, 1, 1)}, "indices of uint16"),
        ((2, 2), {"indptr": i32(0, 4, 3)}, "never falls"),
        ((2, 2), {"indptr": i32(0, 2, 2)}, "indptr from 0 to 3"),
        ((2, 2), {"indptr": i32(0, 2)}, "indptr of int32"),
        ((2, 2), {"indptr": i32(0, 1, 2, 3)}, "indptr of int32"),
    ],
)
def test_hostile_bsr(block: tuple[int, int], change: dict[str, Array], words: str) -> None:
    w = np.array([[[1, 2, 3], [4, 5, 6], [0, 0, 9]]], np.float32)
    arrays: dict[str, Any] = dict(zip(("values", "indices", "indptr"), formats.pack_bsr(w, 2, 2, 3), strict=True))
    refused(lambda: formats.check_bsr("node", w.shape, *block, 3, **(arrays | change)), words)


def refused(run: Callable[[], object], words: str) -> None:
    """words: of the error; empty where none is expected."""
    if not words:
        run()
        return
    with pytest.raises(ModelFileError) as caught:
        run()
    text = str(caught.value)
    assert text.isprintable()
    assert words in text


# models


def model_of(text: str, weights: dict[str, Array], opset: int = 17) -> Model:
    """A model from the text of its graph; weights become initializers."""
    head = f'<ir_version: {8 if opset < 21 else 10}, opset_import: ["" : {opset}]>'
    proto = onnx.parser.parse_model(f"{head} {text}")
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    for i, node in enumerate(proto.graph.node):
        node.name = node.name or f"node{i}"
    return load(proto)


def run(model: Model | ModelProto, seed: int = 0, optimized: Path | None = None, batch: int = 2) -> list[Array]:
    """Outputs on seeded inputs, in an onnxruntime without any library."""
    proto = to_proto(model) if isinstance(model, Model) else model
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else batch for d in value.shape]
        feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    result: list[Array] = session.run(None, feeds)
    return result


def prune(model: Model, form: Packing) -> Model:
    """The model with every layer's weight made to fit the format."""
    rng = np.random.default_rng(1)
    model = model.copy()
    for layer in sparse_layers(model)[0]:
        blocks = np.array(layer.blocks(model.weights[layer.weight]))
        if form.pattern is None:
            blocks[rng.random(blocks.shape) < 0.6] = 0
        elif isinstance(form.pattern, BlockPattern):
            rows = layer.rows(model.weights[layer.weight])
            r, c = form.pattern.rows or rows.shape[1], form.pattern.columns
            shape = len(rows), rows.shape[1], -1, layer.segment
            keep = (rng.random((*rows.shape, 1))[:, : rows.shape[1], : rows.shape[2]] < 0.5).reshape(shape)
            keep = keep[:, np.arange(shape[1]) // r][..., np.arange(shape[3]) // c]
            model.weights[layer.weight] = np.ascontiguousarray(
                layer.unrows(np.where(keep.reshape(rows.shape), rows, 0))
            )
            continue
        elif isinstance(form.pattern, NMPattern):
            n, m = form.pattern.n, form.pattern.m
            for k in range(0, blocks.shape[1], m):
                part = blocks[:, k : k + m]
                part[np.argsort(np.argsort(-np.abs(part), axis=1), axis=1) >= n] = 0
        model.weights[layer.weight] = np.ascontiguousarray(layer.unblocks(blocks))
    return model


def sparse_ops(model: Model) -> list[str]:
    return [node.op_type for node in model.proto.graph.node if node.domain == "onnxprune"]


def check(model: Model, form: Packing = CSR, tolerance: float = 2e-5, values: str = "float32") -> Model:
    """Rewrite all layers, compare outputs, densify, compare weights bit for bit and outputs; the sparse model."""
    model = prune(model, form)
    layers = sparse_layers(model)[0]
    sparse, _ = rewrite(model, {layer.name: form for layer in layers}, values)
    for layer in layers:
        w = model.weights[layer.weight]
        model.weights[layer.weight] = np.ascontiguousarray(layer.restore(round_values(layer.matrix(w), values)))
    expected = run(model)
    for a, b in zip(expected, run(load(to_proto(sparse))), strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
    back = densify(load(to_proto(sparse)))
    onnx.checker.check_model(to_proto(back), full_check=True)
    assert not back.proto.functions
    assert [o.domain for o in back.proto.opset_import] == [o.domain for o in model.proto.opset_import]
    for a, b in zip(expected, run(back), strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
    restored = {layer.name: back.weights[layer.weight] for layer in sparse_layers(back)[0]}
    for layer in layers:
        w = model.weights[layer.weight]
        if layer.name in restored:  # others got a Transpose, or C, and are compared by their output
            assert restored[layer.name].tobytes() == w.tobytes()
        if sum(n.name == layer.name for n in sparse.proto.graph.node if n.domain):
            assert formats.unpack(sparse, layer.name).tobytes() == np.ascontiguousarray(layer.matrix(w)).tobytes()
    return sparse


def scalars() -> dict[str, Array]:
    values = dict(low=-0.5, high=0.75, zero=0, one=1, three=3, six=6, half=0.5, root=2**0.5, inverse=2**-0.5)
    values |= dict(cubic=0.044715, pi=0.7978845608)
    return {name: np.array(value, np.float32) for name, value in values.items()}


def rand(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


TEXTS = {  # activation -> from `?` to `Y`
    "": "Y = Identity (?)",
    "Relu": "Y = Relu (?)",
    "Clip": "Y = Clip (?, low, high)",
    "HardSwish": "a = Add (?, three) b = Clip (a, zero, six) c = Mul (?, b) Y = Div (c, six)",
    "Silu": "a = Sigmoid (?) Y = Mul (?, a)",
    "Gelu": "a = Div (?, root) b = Erf (a) c = Add (b, one) d = Mul (?, c) Y = Mul (d, half)",
    "FastGelu": "a = Pow (?, three) b = Mul (a, cubic) c = Add (?, b) d = Mul (c, pi) e = Tanh (d) f = Add (one, e)"
    " h = Mul (half, ?) Y = Mul (h, f)",
}


SHAPES = {  # product -> text, X, Y, weight, bias of an Add
    "MatMul": ("p = MatMul (X, W)", "2,3,9", "2,3,6", (9, 6), (6,)),
    "LeftMatMul": ("p = MatMul (W, X)", "2,9,3", "2,6,3", (6, 9), (6, 1)),
    "Conv": ("p = Conv (X, W)", "2,5,7,8", "2,6,5,7", (6, 5, 3, 2), (6, 1, 1)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_formats(name: str) -> None:
    """A row of PATTERNS is all that a new format needs here."""
    row = FORMATS[name]
    assert row.name == name and CHOICES[name] == row.help and "\n" not in row.help + row.needs
    assert row.dense == (row.storage is None and row.plain is None) == (name not in PATTERNS)
    assert bool(row.needs) == bool(row.pattern or not row.present)
    for pattern in PATTERNS.get(name, []):
        assert row.serves(pattern) and row.packing(pattern).pattern in (None, pattern)
        assert row in candidates(name, pattern, present=False)
        assert not row.faster or row in candidates(AUTO, pattern, present=False)


def test_kernels_are_of_storages() -> None:
    """A storage may have none: then its functions compute it."""
    names = [storage.name for storage in storages()]
    assert set(STORAGES) <= set(names) and len(set(names)) == len(names)
    assert [OPERATORS[f"{name}Conv"].storage.name for name in names] == names
    assert max(least_version(o, float32=False) for o in OPERATORS.values()) == VERSION


@pytest.mark.parametrize("values", ["float32", "int8"])
@pytest.mark.parametrize("product", SHAPES)
@pytest.mark.parametrize("form", PACKINGS, ids=str)
def test_what_is_packed_is_unpacked(form: Packing, product: str, values: str) -> None:
    """pack, check and unpack; names of arrays and attributes; bytes; all of them by the row alone."""
    text, x, y, shape, _ = SHAPES[product]
    graph = f"g (float[{x}] X) => (float[{y}] p) {{ {text} }}"
    model = prune(model_of(graph, {"W": rand(*shape)}), form)
    (layer,), storage = sparse_layers(model)[0], form.storage
    codes, scale = encode(layer.matrix(model.weights["W"]), values)
    packed = storage.pack(layer, layer.restore(codes), form.pattern)
    arrays = dict(zip(storage.arrays, packed, strict=True))
    assert storage.arrays[0] == "values" and arrays["values"].dtype == codes.dtype
    weight = Packed(layer.shape, arrays, form.pattern, layer.group)
    storage.check("node", weight, [codes.dtype])
    assert np.ascontiguousarray(storage.unpack(weight)).tobytes() == codes.tobytes()
    with pytest.raises(ModelFileError, match=r"^node: "):
        storage.check("node", replace(weight, arrays={**arrays, "values": arrays["values"][:-1]}), [codes.dtype])
    operator = OPERATORS[f"{storage.name}{'' if scale is None else 'Scaled'}{product}"]
    assert operator.inputs == ("X", *storage.arrays, *([] if scale is None else ["scale"]), "bias")
    given = storage.given(form.pattern)
    assert list(given) == list(storage.attributes) and set(given) <= set(operator.attributes)
    assert all(isinstance(given[name], kind) for name, kind in storage.attributes.items())
    node = onnx.helper.make_node(str(operator), list(operator.inputs), ["Y"], domain="onnxprune", **given)
    assert storage.read("node", Node(node, 1)) == form.pattern
    smallest = storage.smallest(layer, layer.restore(codes) != 0, codes.itemsize)
    if smallest is not None:
        size, pattern = smallest
        assert size == sum(array.nbytes for array in storage.pack(layer, layer.restore(codes), pattern))


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.plain is not None])
def test_formats_of_standard_operators(name: str) -> None:
    row = FORMATS[name]
    assert row.plain is not None
    for text, x, y, shape, _ in SHAPES.values():
        graph = f"g (float[{x}] X) => (float[{y}] p) {{ {text} }}"
        for pattern in PATTERNS[name]:
            w = rand(*shape)
            w[np.random.default_rng(1).random(shape) < 0.8] = 0
            model = prune(model_of(graph, {"W": w}), Packing(row, pattern))
            layers = sparse_layers(model)[0]
            out, done, _ = row.plain.write(model, layers, 0.0)
            assert done == [layer.name for layer in layers]
            assert not sparse_ops(out) and not out.proto.functions
            np.testing.assert_allclose(run(out)[0], run(model)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [12, 13, 17, 21])
@pytest.mark.parametrize("product", SHAPES)
@pytest.mark.parametrize("form", PACKINGS, ids=str)
def test_every_operator(product: str, form: Packing, opset: int) -> None:
    text, x, y, shape, bias = SHAPES[product]
    rows = list(itertools.product((False, True), TEXTS))  # side by side in one model
    nodes, weights = "", scalars()
    for k, (add, activation) in enumerate(rows):
        parts = [text, "q = Add (p, bias)", "r = Add (R, q)" if add else "", TEXTS[activation].replace("?", "qr"[add])]
        nodes += re.sub(r"\b([a-hpqrWY]|bias)\b", rf"\g<1>{k}", f"{' '.join(parts)} ")
        weights |= {f"W{k}": rand(*shape), f"bias{k}": rand(*bias)}
    outputs = ", ".join(f"float[{y}] Y{k}" for k in range(len(rows)))
    sparse = check(model_of(f"g (float[{x}] X, float[{y}] R) => ({outputs}) {{ {nodes} }}", weights, opset), form)
    assert sparse_ops(sparse) == [f"{form.storage.name}{product}{'Add' if add else ''}{a}" for add, a in rows]
    assert len(sparse.proto.graph.node) == len(rows) + sum(activation == "" for _, activation in rows)


@pytest.mark.parametrize("values", list(VALUES)[1:])
@pytest.mark.parametrize("product", SHAPES)
@pytest.mark.parametrize("form", PACKINGS, ids=str)
def test_every_type_of_values(product: str, form: Packing, values: str) -> None:
    text, x, y, shape, bias = SHAPES[product]
    nodes = f"{text} q = Add (p, bias) r = Add (R, q) Y = Relu (r)"
    graph = f"g (float[{x}] X, float[{y}] R) => (float[{y}] Y) {{ {nodes} }}"
    for opset in (13, 21):
        model = model_of(graph, {"W": rand(*shape), "bias": rand(*bias)}, opset)
        sparse = check(model, form, values=values)
        scaled = "Scaled" if values == "int8" else ""
        assert sparse_ops(sparse) == [f"{form.storage.name}{scaled}{product}AddRelu"]
        assert sparse.weights["W_values"].dtype == VALUES[values]
        assert [o.version for o in sparse.proto.opset_import if o.domain] == [max(2, form.storage.version)]


def test_bfloat16_before_opset_13() -> None:
    """Cast does not know it there: no functions; float32 and float16 have theirs."""
    text = "g (float[3,6] X) => (float[3,6] Y) { Y = MatMul (X, W) }"
    model = model_of(text, {"W": np.eye(6, dtype=np.float32)}, 12)
    for values in VALUES:
        sparse, notes = rewrite(model, {"node0": CSR}, values)
        assert (not sparse.proto.functions) == (values == "bfloat16")
        assert any("opset 12 is below 13" in note for note in notes) == (values == "bfloat16")
        assert densify(sparse).weights["W"].tobytes() == round_values(model.weights["W"], values).tobytes()


def test_types_of_values_side_by_side(tmp_path: Path) -> None:
    """One file may hold them all: one name, one function."""
    text = (
        "g (float[3,6] X) => (float[3,6] Y) { a = MatMul (X, A) b = MatMul (a, B) c = MatMul (b, C) Y = MatMul (c, D) }"
    )
    model = prune(model_of(text, {name: rand(6, 6) for name in "ABCD"}), CSR)
    sparse = model
    for i, values in enumerate(VALUES):
        sparse, _ = rewrite(sparse, {f"node{i}": CSR}, values)
        w = model.weights["ABCD"[i]]
        model.weights["ABCD"[i]] = np.ascontiguousarray(round_values(w.T, values).T)
    assert [f.name for f in sparse.proto.functions] == ["CsrMatMul", "CsrScaledMatMul"]
    assert sparse_ops(sparse) == ["CsrMatMul"] * 3 + ["CsrScaledMatMul"]
    save(sparse, tmp_path / "m.onnx")
    np.testing.assert_allclose(run(onnx.load(tmp_path / "m.onnx"))[0], run(model)[0], rtol=1e-5, atol=1e-5)
    assert all(densify(load(tmp_path / "m.onnx")).weights[n].tobytes() == model.weights[n].tobytes() for n in "ABCD")


def test_functions_exist_for_all_operators() -> None:
    for operator, opset in itertools.product(OPERATORS.values(), (12, 20)):
        made = function(operator, opset)
        assert made is not None
        assert list(made.attribute) == list(operator.attributes)
    assert function(OPERATORS["CsrConv"], 11) is None


@pytest.mark.parametrize("opset", [12, 21])
@pytest.mark.parametrize("form", [*PACKINGS, nm(3, 7)], ids=str)
@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 6, 9, 8), (4, 6, 3, 3), "strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]"),
        ((2, 6, 9, 8), (4, 3, 3, 3), "group = 2"),
        ((2, 6, 9), (4, 6, 3), "pads = [1, 1], strides = [2]"),
        ((1, 6, 9), (6, 2, 1), "group = 3"),
        ((2, 6, 9, 8), (4, 6, 3, 2), 'auto_pad = "SAME_UPPER", strides = [2, 3]'),
        ((2, 6, 9, 8), (4, 6, 3, 2), 'auto_pad = "SAME_LOWER"'),
        ((2, 6, 9, 8), (4, 6, 3, 2), 'auto_pad = "VALID", dilations = [2, 2]'),
    ],
)
def test_convolutions(x: tuple[int, ...], w: tuple[int, ...], attributes: str, form: Packing, opset: int) -> None:
    dims, free = ",".join(map(str, x)), ",".join("abcd"[: len(x)])
    text = f"g (float[{dims}] X) => (float[{free}] Y) {{ Y = Conv <{attributes}> (X, W, B) }}"
    proto = model_of(text, {"W": rand(*w), "B": rand(w[0])}, opset)
    sparse = check(proto, form)
    assert sparse.proto.graph.node[0].input[-1] == "B"


GEMM = [  # inputs of Gemm with attributes, shapes of X, W and C, what comes out
    ("X, W, C", "", (3, 9), (9, 6), (6,), "MatMul"),
    ("X, W, C", "transB = 1, alpha = 0.5, beta = 2.0", (3, 9), (6, 9), (1, 6), "MatMul"),
    ("X, W, C", "transA = 1, transB = 1", (9, 3), (6, 9), (1,), "MatMul"),
    ("X, W, C", "beta = 0.0", (3, 9), (9, 6), (6,), "MatMul"),
    ("X, W, C", "beta = 0.5", (3, 9), (9, 6), (3, 6), "MatMul + Mul Add"),
    ("X, W, C", "alpha = 3.0", (3, 9), (9, 6), (3, 1), "MatMul + Add"),
    ("X, W", "alpha = -1.0", (3, 9), (9, 6), (), "MatMul"),
    ("W, X, C", "", (9, 3), (6, 9), (6, 1), "LeftMatMul"),
    ("W, X, C", "transA = 1, transB = 1", (3, 9), (9, 6), (1, 1), "LeftMatMul"),
    ("W, X, C", "alpha = 0.25", (9, 3), (6, 9), (3,), "LeftMatMul + Add"),
    ("X, W, R", "", (3, 9), (9, 6), (), "MatMulAdd"),
    ("X, W, R", "beta = 2.0", (3, 9), (9, 6), (), "MatMul + Mul Add"),
]


@pytest.mark.parametrize(("inputs", "attributes", "x", "w", "c", "expected"), GEMM)
@pytest.mark.parametrize("form", [CSR, nm(2, 4), bsr(1, 4)], ids=str)
def test_gemm(
    inputs: str,
    attributes: str,
    x: tuple[int, ...],
    w: tuple[int, ...],
    c: tuple[int, ...],
    expected: str,
    form: Packing,
) -> None:
    n, m = ("6", "3") if inputs.startswith("W") else ("3", "6")
    text = f"g (float[{x[0]},{x[1]}] X, float[3,6] R) => (float[{n},{m}] Y) {{ Y = Gemm <{attributes}> ({inputs}) }}"
    sparse = check(model_of(text.replace(" <>", ""), {"W": rand(*w), "C": rand(*c)}), form)
    product, _, rest = expected.partition(" + ")
    assert sparse_ops(sparse) == [f"{form.storage.name}{product}"]
    others = [n.op_type for n in sparse.proto.graph.node if not n.domain]
    assert others == [*(["Transpose"] if "transA = 1" in attributes else []), *rest.split()]
    if not rest and "alpha" not in attributes and "trans" not in attributes and product != "MatMulAdd":
        assert [n.op_type for n in densify(sparse).proto.graph.node] == ["Gemm"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Y = Relu (q) Z = Neg (q)", "CsrMatMul Relu Neg"),
        ("Z = Neg (X) Y = Relu (q)", "Neg CsrMatMulRelu"),
        ("Y = Relu (q) Z = Identity (q)", "CsrMatMul Relu Identity"),
        ("Y = Add (q, q)", "CsrMatMul Add"),
        ("Y = Add (q, one)", "CsrMatMul"),
        ("Y = Add (q, table)", "CsrMatMul Add"),
        ("Y = Add (q, T)", "CsrMatMulAdd"),
        ("r = Neg (X) Y = Add (q, r) Z = Neg (r)", "Neg CsrMatMulAdd Neg"),
        ("Y = Add (q, S)", "CsrMatMul Add"),  # S is broadcast
        ("r = MatMul (X, W) Y = Add (q, r)", "CsrMatMul CsrMatMulAdd"),
        ("r = Relu (q) Y = Add (r, X)", "CsrMatMulRelu Add"),
        ("r = Add (q, v) s = Add (X, r) Y = Relu (s)", "CsrMatMulAddRelu"),
        ("a = Sigmoid (q) Y = Mul (q, a) Z = Neg (a)", "CsrMatMul Sigmoid Mul Neg"),
        ("a = Mul (q, half) b = Sigmoid (a) Y = Mul (q, b)", "CsrMatMul Mul Sigmoid Mul"),
        ("a = HardSigmoid <alpha = 0.16666667> (q) Y = Mul (a, q)", "CsrMatMulHardSwish"),
        ("Y = Clip (q, , one)", "CsrMatMulClip"),
        ("l = ReduceMin <keepdims = 0> (X) Y = Clip (q, l)", "CsrMatMul ReduceMin Clip"),
    ],
)
def test_what_is_absorbed(text: str, expected: str) -> None:
    weights = {"W": rand(6, 6), "table": rand(3, 6), "v": rand(6), **scalars()}
    outputs = "float[B,3,6] Y" + (", float[B,3,6] Z" if "Z =" in text else "")
    graph = f"g (float[B,3,6] X, float[1,3,6] S, float[B,3,6] T) => ({outputs}) {{ q = MatMul (X, W) {text} }}"
    sparse = check(model_of(graph, weights))
    assert sorted(n.op_type for n in sparse.proto.graph.node) == sorted(expected.split())
    onnx.checker.check_model(to_proto(sparse))


@pytest.mark.parametrize(
    "text",
    [
        "a = Mul (q, half) b = Mul (q, inverse) c = Erf (b) d = Add (c, one) Y = Mul (a, d)",
        "b = Div (q, root) c = Erf (b) d = Add (one, c) a = Mul (d, half) Y = Mul (a, q)",
        "b = Div (q, root) c = Erf (b) d = Add (c, one) a = Mul (q, d) Y = Mul (half, a)",
        "b = Div (q, root) c = Erf (b) d = Mul (c, half) e = Add (d, half) Y = Mul (q, e)",
    ],
)
def test_orders_of_gelu(text: str) -> None:
    graph = f"g (float[3,6] X) => (float[3,6] Y) {{ q = MatMul (X, W) {text} }}"
    sparse = check(model_of(graph, {"W": rand(6, 6), **scalars()}))
    assert [n.op_type for n in sparse.proto.graph.node] == ["CsrMatMulGelu"]


@pytest.mark.parametrize("form", [*PACKINGS, nm(1, 200), bsr(64, 64), bsr(1, 1)], ids=str)
def test_thin_weights(form: Packing) -> None:
    """Nothing left, rows without a weight, and a reduction shorter than a block."""
    text = "g (float[2,3] X) => (float[2,5] Y) { Y = MatMul (X, W) }"
    for w in (np.zeros((3, 5)), np.eye(3, 5), np.eye(3, 5, -2)):
        model = model_of(text, {"W": w.astype(np.float32)})
        sparse, _ = rewrite(model, {"node0": form})
        np.testing.assert_array_equal(run(sparse)[0], run(model)[0])
        assert densify(sparse).weights["W"].tobytes() == model.weights["W"].tobytes()


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("forms", [(CSR, nm(2, 4)), (bsr(2, 4), bsr(3, 3))])
def test_weights_are_unpacked_when_the_model_is_loaded(tmp_path: Path, forms: Any, values: str) -> None:
    text = "g (float[1,16,8,8] X) => (float[1,16,8,8] Y) { a = Conv <pads = [1,1,1,1]> (X, W) Y = Conv (a, V) }"
    model = prune(model_of(text, {"W": rand(16, 16, 3, 3), "V": rand(16, 16, 1, 1)}), nm(2, 4))
    sparse, _ = rewrite(model, dict(zip(("node0", "node1"), forms, strict=True)), values)
    run(sparse, optimized=tmp_path / "o.onnx")
    left = {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}
    assert left <= {"Conv", "ReorderInput", "ReorderOutput"}


def test_shared_weights_are_packed_once() -> None:
    text = "g (float[3,6] X) => (float[3,6] Y) { a = MatMul (X, W) b = MatMul (a, W) Y = Gemm (b, W) }"
    sparse = check(model_of(text, {"W": rand(6, 6)}))
    assert len({tuple(n.input[1:4]) for n in sparse.proto.graph.node}) == 1
    assert set(sparse.weights) == {"W_values", "W_indices", "W_indptr", "zeros_6"}
    assert set(densify(sparse).weights) == {"W"}


def test_weight_in_a_constant_node() -> None:
    text = "g (float[3,2] X) => (float[3,2] Y) { W = Constant <value = float[2,2] {0, 1, 2, 0}> () Y = MatMul (X, W) }"
    sparse = check(model_of(text, {}))
    assert [n.op_type for n in sparse.proto.graph.node] == ["CsrMatMul"]


def test_old_files() -> None:
    """Below opset 12 there are no functions, and below IR 4 initializers are inputs too."""
    text = "g (float[3,6] X, float[6,6] W) => (float[3,6] Y) { a = MatMul (X, W) Y = Clip <min = 0.0, max = 6.0> (a) }"
    model = model_of(text, {"W": rand(6, 6)}, 10)
    model.proto.ir_version = 3
    sparse, notes = rewrite(model, {"node0": CSR})
    assert sparse_ops(sparse) == ["CsrMatMulClip"]
    assert not sparse.proto.functions
    assert "opset 10 is below 12" in notes[0]
    assert [i.name for i in sparse.proto.graph.input] == ["X"]
    np.testing.assert_allclose(run(densify(sparse))[0], run(model)[0], rtol=1e-6)


LAYERS = [
    ("Y = MatMul (X, X)", "no constant weight"),
    ("Y = MatMul (W, W)", "both inputs are constant"),
    ("Y = MatMul (X, H)", "rank 3"),
    ("a = Cast <to = 10> (X) b = MatMul (a, F) Y = Cast <to = 1> (b)", "no sparse operator takes float16"),
    ("w = Cast <to = 1> (F) Y = MatMul (X, w)", "comes through Cast"),
    ("a = MatMul (X, W) Y = Add (a, W)", "read by other nodes"),
    ("a = MatMul (X, W) Y = MatMul (W, a)", "another orientation"),
    ("a = MatMul (X, V) Y = Identity (a)", "an input of the model as well"),
    ("a = Conv <group = 6> (K, D) Y = Identity (X)", "depthwise"),
    ("a = Conv (K, E) Y = Identity (X)", "3 dimensions"),
    ("Y = MatMul (X, W)", ""),
]


@pytest.mark.parametrize(("text", "reason"), LAYERS)
def test_layers_that_stay_dense(text: str, reason: str) -> None:
    weights = {
        "W": rand(6, 6),
        "V": rand(6, 6),
        "H": rand(1, 6, 6),
        "F": rand(6, 6).astype(np.float16),
        "D": rand(6, 1, 3),
        "E": rand(6, 6, 1, 1, 1),
    }
    graph = f"g (float[6,6] X, float[6,6] V, float[1,6,9] K) => (float[6,6] Y) {{ {text} }}"
    layers, dense = sparse_layers(model_of(graph, weights))
    dense += [(layer.name, no_operator(layer)) for layer in layers if no_operator(layer)]
    assert (len(dense) == 0) == (not reason)
    if reason:
        assert all(reason in why for _, why in dense) and dense


def test_blocks_of_a_convolution() -> None:
    w = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    blocks = to_blocks(w)
    assert blocks[1].tolist() == [w[0, c, 0, 1] for c in range(3)]
    assert from_blocks(blocks, w.shape).tobytes() == w.tobytes()


def test_unknown_layers_and_unfit_weights() -> None:
    model = model_of("g (float[3,6] X) => (float[3,6] Y) { Y = MatMul (X, W) }", {"W": rand(6, 6)})
    with pytest.raises(OptionError, match="no layer"):
        rewrite(model, {"nothing": CSR})
    with pytest.raises(OptionError, match="node0: pattern 2:4"):
        rewrite(model, {"node0": nm(2, 4)})
    for form, words in ((bsr(0, 4), "block 0x4"), (bsr(4, 65), "block 4x65")):
        with pytest.raises(OptionError, match=f"node0: .*{words}"):
            rewrite(model, {"node0": form})
    with pytest.raises(OptionError, match="no sparse node"):
        formats.unpack(model, "node0")


@pytest.mark.parametrize("external", [False, True])
def test_files(tmp_path: Path, external: bool) -> None:
    text = "g (float[3,64] X) => (float[3,64] Y) { a = MatMul (X, W) Y = Relu (a) }"
    model = prune(model_of(text, {"W": rand(64, 64)}), nm(2, 4))
    model.external = external
    sparse, _ = rewrite(model, {"node0": nm(2, 4)})
    save(sparse, tmp_path / "m.onnx")
    again = load(tmp_path / "m.onnx")
    assert again.external == external
    assert sparse_ops(again) == ["NmMatMulRelu"]
    assert [f.name for f in again.proto.functions] == ["NmMatMulRelu"]
    save(again, tmp_path / "again.onnx")
    assert external or (tmp_path / "m.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert formats.unpack(tmp_path / "again.onnx", "node0").tobytes() == model.weights["W"].T.tobytes()
    assert densify(load(tmp_path / "again.onnx")).weights["W"].tobytes() == model.weights["W"].tobytes()
    session = ort.InferenceSession(tmp_path / "again.onnx", providers=["CPUExecutionProvider"])
    x = rand(3, 64)
    np.testing.assert_allclose(session.run(None, {"X": x})[0], np.maximum(x @ model.weights["W"], 0), atol=1e-4)


def test_sparse_initializers(tmp_path: Path) -> None:
    text = "g (float[3,32] X) => (float[3,32] Y) { a = MatMul (X, W) b = MatMul (a, V) Y = MatMul (b, U) }"
    w = rand(32, 32)
    w[np.random.default_rng(0).random(w.shape) < 0.9] = 0
    w[0, 0] = -0.0
    model = model_of(text, {"W": w, "V": np.zeros((32, 32), np.float32), "U": rand(32, 32)})
    coo, notes = sparse_initializers(model, sparse_layers(model)[0])
    assert len(notes) == 1 and notes[0].startswith("U: stays dense")
    save(coo, tmp_path / "m.onnx")
    assert len(onnx.load(tmp_path / "m.onnx").graph.sparse_initializer) == 2
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "m.onnx"))[0], run(model)[0])
    again = load(tmp_path / "m.onnx")
    assert again.weights["W"].tobytes() == w.tobytes()


def hostile(change: Callable[[ModelProto], object], values: str = "float32") -> Callable[[], object]:
    text = "g (float[3,6] X) => (float[3,6] Y) { Y = MatMul (X, W) }"
    sparse, _ = rewrite(model_of(text, {"W": np.eye(6, dtype=np.float32)}), {"node0": nm(2, 4)}, values)
    proto = ModelProto.FromString(to_proto(sparse).SerializeToString())
    change(proto)
    return lambda: densify(load(proto))


def attribute(name: str, value: Any) -> Callable[[ModelProto], object]:
    def change(proto: ModelProto) -> None:
        node = proto.graph.node[0]
        kept = [a for a in node.attribute if a.name != name]
        made = [] if value is None else [onnx.helper.make_attribute(name, value)]
        del node.attribute[:]
        node.attribute.extend([*kept, *made])

    return change


def rename_operator(name: str) -> Callable[[ModelProto], object]:
    return lambda proto: setattr(proto.graph.node[0], "op_type", name)


def feed(slot: int, name: str) -> Callable[[ModelProto], object]:
    return lambda proto: proto.graph.node[0].input.__setitem__(slot, name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (attribute("shape", [6, 6]), ""),
        (attribute("shape", None), "an attribute shape"),
        (attribute("shape", [6, -6]), "a shape of 1 to"),
        (attribute("shape", [1 << 62, 1 << 62]), "a shape of 1 to"),
        (attribute("shape", [6, 1 << 29]), "a shape of 1 to"),
        (attribute("shape", [6, 1 << 27]), "unfolds to at most"),
        (attribute("shape", [7, 6]), "bias of float32 [7]"),
        (attribute("shape", [6, 6, 1]), "a shape of a matrix"),
        (attribute("shape", 6), "an attribute shape"),
        (attribute("n", 5), "a pattern"),
        (attribute("n", 0), "a pattern"),
        (attribute("m", 1 << 60), "a pattern"),
        (attribute("m", 8), "values of float32"),
        (attribute("weight", "KK"), "MK or KM"),
        (attribute("alpha", "x"), "an attribute alpha"),
        (rename_operator("NmMatMulSquare"), "an operator of domain onnxprune"),
        (rename_operator("NmMatMulAdd"), "inputs X, values, positions, bias, residual"),
        (rename_operator("CsrMatMul"), "inputs X, values, indices, indptr, bias"),
        (rename_operator("NmConv"), "an attribute strides"),
        (feed(1, "X"), "values that is constant"),
        (feed(3, "W_values"), "bias of float32"),
        (lambda proto: setattr(proto.opset_import[-1], "version", VERSION + 1), f"domain onnxprune {VERSION}"),
        (rename_operator("BsrMatMul"), "inputs X, values, indices, indptr, bias"),
        (rename_operator("NmScaledMatMul"), "inputs X, values, positions, scale, bias"),
    ],
)
def test_hostile_nodes(change: Callable[[ModelProto], object], words: str) -> None:
    refused(hostile(change), words)


def tensor(name: str, array: Any) -> Callable[[ModelProto], object]:
    def change(proto: ModelProto) -> None:
        (found,) = (t for t in proto.graph.initializer if t.name == name)
        found.CopyFrom(numpy_helper.from_array(np.asarray(array), name))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda proto: None, ""),
        (tensor("W_scale", f32(1, 1, 1, 1, 1, 0)), "a scale of finite numbers above 0"),
        (tensor("W_scale", f32(1, 1, 1, 1, -1, 1)), "a scale of finite numbers above 0"),
        (tensor("W_scale", f32(1, 1, np.nan, 1, 1, 1)), "a scale of finite numbers above 0"),
        (tensor("W_scale", f32(1, 1, np.inf, 1, 1, 1)), "a scale of finite numbers above 0"),
        (tensor("W_scale", f32(1)), "scale of float32 [6]"),
        (tensor("W_scale", np.ones(6)), "scale of float32 [6]"),
        (tensor("W_values", np.ones((6, 2, 2), np.float32)), "values of int8 [6, 2, 2]"),
        (tensor("W_values", np.ones((6, 2, 2), np.uint8)), "values of int8 [6, 2, 2]"),
        (tensor("W_values", np.ones((6, 2), np.int8)), "values of int8 [6, 2, 2]"),
        (feed(3, "X"), "scale that is constant"),
        (rename_operator("NmMatMul"), "inputs X, values, positions, bias"),
        (rename_operator("CsrScaledMatMul"), "inputs X, values, indices, indptr, scale, bias"),
    ],
)
def test_hostile_scales(change: Callable[[ModelProto], object], words: str) -> None:
    refused(hostile(change, "int8"), words)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_run(data: st.DataObject) -> None:
    """Any bytes in the arrays: an error of one line, or a weight."""

    def change(proto: ModelProto) -> None:
        tensor = proto.graph.initializer[data.draw(st.integers(0, len(proto.graph.initializer) - 1))]
        raw = bytearray(tensor.raw_data)
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        tensor.raw_data = bytes(raw)

    try:
        hostile(change, data.draw(st.sampled_from(list(VALUES))))()
    except ModelFileError as error:
        assert str(error).isprintable()
