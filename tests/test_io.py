"""Files: what goes in comes out, hostile files are refused in one line, a save is whole or nothing."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from conftest import in_child
from onnxprune.errors import InternalError, ModelFileError
from onnxprune.graph import arrays, io, protos, writing

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
DTYPES = [name for name, code in TensorProto.DataType.items() if code in arrays.DTYPES]
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@pytest.fixture
def volatile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, in tests that save much."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def parse(text: str, opset: str = '"" : 18', ir: int = 10) -> ModelProto:
    return onnx.parser.parse_model(f"<ir_version: {ir}, opset_import: [{opset}]> {text}")


def chain_model(size: int = 1024, count: int = 3) -> ModelProto:
    """x + w0 + w1 + ...; each w is float32 (size,), filled with its number."""
    nodes = [helper.make_node("Add", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(count)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name in ("v0", f"v{count}")]
    weights = [numpy_helper.from_array(np.full(size, i, np.float32), f"w{i}") for i in range(count)]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def external_model(folder: Path, size: int = 1024, count: int = 3) -> Path:
    """The same with its weights in `w.bin`."""
    path = folder / "m.onnx"
    onnx.save(chain_model(size, count), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def one_tensor(tensor: TensorProto) -> ModelProto:
    value = helper.make_tensor_value_info("y", tensor.data_type, None)
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [value], [tensor])
    return helper.make_model(graph, ir_version=13, opset_imports=[helper.make_opsetid("", 24)])


def same(a: io.Model, b: io.Model) -> None:
    assert a.proto.SerializeToString(deterministic=True) == b.proto.SerializeToString(deterministic=True)
    assert list(a.weights) == list(b.weights)
    for name, w in a.weights.items():
        assert (w.dtype, w.shape) == (b.weights[name].dtype, b.weights[name].shape)
        assert w.tobytes() == b.weights[name].tobytes()


def refused(source: Any, *words: str) -> str:
    with pytest.raises(ModelFileError) as caught:
        io.load(source)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 2000
    assert ": expected " in text
    assert ", found " in text
    assert "; " in text
    for word in words:
        assert word in text
    return text


def bits(name: str, count: int) -> np.ndarray:
    """Every bit pattern of a type in turn, as (count,) values of that type."""
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, name))
    if name == "BOOL":
        return np.arange(count) % 2 == 0
    width = {2: 0x03, 4: 0x0F, 6: 0x3F}.get(arrays.BITS[getattr(TensorProto, name)], 0xFF)
    raw = np.random.default_rng(0).integers(0, 256, count * dtype.itemsize, np.uint8) & width
    return raw.astype(np.uint8).view(dtype)


# Round trips


@pytest.mark.usefixtures("volatile")
@pytest.mark.parametrize("count", [0, 1, 5, 3001])
@pytest.mark.parametrize("name", DTYPES)
def test_every_type_round_trips_bit_for_bit(name: str, count: int, tmp_path: Path) -> None:
    w = bits(name, count)
    model = io.load(one_tensor(numpy_helper.from_array(w, "w")))
    got = model.weights["w"]
    assert got.dtype == w.dtype
    assert got.tobytes() == w.tobytes()
    assert not got.flags.writeable
    assert model.elem_type("w") == getattr(TensorProto, name)
    for limit, folder in ((io.INLINE_LIMIT, "inline"), (0, "external")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "m.onnx"
        io.save(model, path, inline_limit=limit)
        again = io.load(path)
        same(model, again)
        loaded = onnx.load(path).graph.initializer[0]
        assert numpy_helper.to_array(loaded).tobytes() == w.tobytes()
        assert (
            again.external == (len(os.listdir(path.parent)) == 2) == (limit == 0 and arrays.stored_size(w) > io.SMALL)
        )


@pytest.mark.parametrize("count", [0, 5, 1501])
@pytest.mark.parametrize("name", DTYPES)
def test_typed_data_fields(name: str, count: int) -> None:
    w = bits(name, count)
    if not np.issubdtype(w.dtype, np.complexfloating):
        values: Any = w
    else:
        values = np.nan_to_num(w)
        w = values
    if name in ("UINT2", "INT2", "FLOAT6E2M3", "FLOAT6E3M2", "UINT4", "INT4", "FLOAT4E2M1"):
        raw = numpy_helper.from_array(w).raw_data if "6E" not in name else w.view(np.uint8).tobytes()
        tensor = TensorProto(name="w", dims=[count], data_type=getattr(TensorProto, name), int32_data=list(raw))
    elif w.dtype.itemsize <= 2 and w.dtype.kind not in "iub":
        ints = w.view(np.uint16 if w.dtype.itemsize == 2 else np.uint8)
        tensor = TensorProto(name="w", dims=[count], data_type=getattr(TensorProto, name), int32_data=ints.tolist())
    else:
        tensor = helper.make_tensor("w", getattr(TensorProto, name), [count], values)
    model = io.load(one_tensor(tensor))
    assert model.weights["w"].tobytes() == w.tobytes() or np.array_equal(model.weights["w"], w, equal_nan=True)


def rich_model() -> ModelProto:
    """One of everything that an ONNX file can hold beside nodes and weights."""
    proto = parse("""
        g (float[N, 2] x, float[2] w) => (float[N, 2] y) <float[2] w = {1, 2}, float[N, 2] t>
        { [first] t = Add(x, w)  [second] y = Relu(t) }""")
    proto.producer_name, proto.producer_version, proto.domain = "p", "1.2", "org.example"
    proto.model_version, proto.doc_string = 7, "model doc"
    proto.metadata_props.add(key="k", value="v")
    proto.opset_import.add(domain="com.microsoft", version=1)
    graph = proto.graph
    graph.doc_string = "graph doc"
    graph.metadata_props.add(key="gk", value="gv")
    graph.node[0].doc_string = "node doc"
    graph.node[0].metadata_props.add(key="nk", value="nv")
    graph.node[0].device_configurations.add(configuration_id="c").sharding_spec.add(tensor_name="t")
    graph.input[0].doc_string = "input doc"
    graph.initializer[0].doc_string = "tensor doc"
    graph.initializer[0].metadata_props.add(key="tk", value="tv")
    annotation = graph.quantization_annotation.add(tensor_name="t")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"\xff"]))  # type: ignore[list-item]
    graph.initializer.append(numpy_helper.from_array(np.ones(500, np.float32), "large"))
    proto.configuration.add(name="c", num_devices=2)
    training = proto.training_info.add()
    training.algorithm.initializer.append(numpy_helper.from_array(np.ones(500, np.float32), "lr"))
    proto.MergeFromString(b"\xfa\x3f\x03abc")  # field 1023, unknown to ONNX
    graph.node[1].MergeFromString(b"\xfa\x3f\x03def")
    return proto


@pytest.mark.parametrize("limit", [io.INLINE_LIMIT, 0])
def test_all_we_do_not_touch_survives(limit: int, tmp_path: Path) -> None:
    proto = rich_model()
    path = tmp_path / "m.onnx"
    io.save(io.load(proto), path, inline_limit=limit)
    saved = onnx.load(path)
    for tensor in saved.graph.initializer:
        tensor.ClearField("data_location")  # onnx leaves it behind
    assert saved.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)
    assert io.to_proto(io.load(path)).SerializeToString() == proto.SerializeToString()


def test_large_tensors_leave_the_proto_and_small_ones_stay() -> None:
    model = io.load(rich_model())
    tensors = dict(io.tensors(model.proto))
    assert not tensors["large"].raw_data
    assert list(tensors["large"].dims) == [500]
    assert tensors["w"].float_data == [1, 2]
    assert set(model.weights) == {"w", "large"}
    assert io.weight_bytes(model) == 2008
    assert "large" in tensors
    assert "2008 bytes" in repr(model)


def test_small_tensors_are_counted_packed() -> None:
    assert io.weight_bytes(io.load(one_tensor(numpy_helper.from_array(bits("INT4", 2001), "w")))) == 1001


def test_sources_give_the_same_model_and_are_not_changed(tmp_path: Path) -> None:
    proto = rich_model()
    data = proto.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    model = io.load(path)
    for source in (str(path), data, bytearray(data), memoryview(data), proto, model):
        same(io.load(source), model)
    assert proto.SerializeToString() == data
    copy = model.copy()
    copy.weights["w"] = np.zeros(3, np.float32)
    copy.proto.graph.node[0].name = "changed"
    assert model.proto.graph.node[0].name == "first"
    assert model.weights["w"].shape == (2,)
    assert copy.weights["large"] is model.weights["large"]


def test_graphsurgeon(tmp_path: Path) -> None:
    graph = gs.import_onnx(chain_model())
    graph.nodes.append(gs.Node("F", domain="d", inputs=[graph.outputs[0]], outputs=[gs.Variable("z", np.float32)]))
    graph.outputs = [graph.nodes[-1].outputs[0]]
    domains = [d.domain for d in graph.import_domains]
    model = io.load(graph)
    assert [d.domain for d in graph.import_domains] == domains
    assert list(model.weights) == ["w0", "w1", "w2"]
    graph.nodes[0].inputs[1].values = np.ones((2, 2), bits("INT4", 1).dtype)
    refused(graph, "onnx_graphsurgeon.Graph")


def test_weights_win_over_the_proto(tmp_path: Path) -> None:
    model = io.load(chain_model(1024))
    model.weights["w0"] = np.arange(6, dtype=np.float64).reshape(2, 3)  # large to small, other type
    model.weights["w1"] = np.ones((700, 3), np.float16).T  # not contiguous
    model.weights["new"] = np.arange(2000)
    model.proto.graph.initializer.add(name="new")
    io.save(model, tmp_path / "m.onnx")
    tensors = {t.name: t for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    for name in ("w0", "w1", "new"):
        assert np.array_equal(numpy_helper.to_array(tensors[name]), model.weights[name])
    assert list(dict(io.tensors(model.proto))["w0"].dims) == [1024]  # save works on a copy ...
    io.sync(model)
    assert list(dict(io.tensors(model.proto))["w0"].dims) == [2, 3]  # ... sync on the model
    model.proto.graph.initializer.add(name="forgotten", data_type=1, dims=[3])
    with pytest.raises(InternalError, match="forgotten"):
        io.save(model, tmp_path / "m.onnx")
    model.weights["forgotten"] = np.array(["a"])
    with pytest.raises(InternalError, match="dtype"):
        io.save(model, tmp_path / "m.onnx")


def test_constants(tmp_path: Path) -> None:
    proto = parse("""
        g (float[N] x) => (float y) {
            a = Constant <value_float = 2.5> ()
            b = Constant <value_ints = [1, 2, 3]> ()
            c = Constant <value_int = 4> ()
            d = Constant <value_floats = [1.5, 2.5]> ()
            e = Constant <value = float[2] {1.0, 2.0}> ()
            f = Constant <value_string = "text"> ()
            y = Identity(a)
        }""")
    model = io.load(proto)
    assert {n: w.tolist() for n, w in model.weights.items()} == {
        "e": [1, 2], "a": 2.5, "b": [1, 2, 3], "c": 4, "d": [1.5, 2.5],
    }  # fmt: skip
    assert model.weights["b"].dtype == np.int64
    assert model.weights["a"].dtype == np.float32
    assert io.to_proto(model).SerializeToString() == proto.SerializeToString()
    model.weights["b"] = np.arange(2)
    model.weights["d"] = np.arange(1000, dtype=np.float32)
    io.save(model, tmp_path / "m.onnx", inline_limit=0)
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    again = io.load(tmp_path / "m.onnx")
    assert again.external
    assert again.weights["b"].tolist() == [0, 1]
    assert again.weights["d"].tolist() == list(range(1000))


# Functions, names, order

IF = """
    g (bool c, float[2] x) => (float[2] y) <float[2] w = {5, 5}> {
        y = If (c) <
            then_branch = a () => (float[2] o) <float[2] w = {1, 2}> { t = Add(x, w)  o = Neg(t) },
            else_branch = b () => (float[2] o) <float[2] w = {3, 4}> {
                t = Mul(x, w)
                o = If (c) <then_branch = i () => (float[2] o) { o = Add(t, w) },
                            else_branch = j () => (float[2] o) { t = Sub(x, w)  o = Identity(t) }>
            }>
    }"""


def test_names_become_unique_over_all_scopes(tmp_path: Path) -> None:
    proto = parse(IF)
    proto.graph.node[0].attribute[0].g.quantization_annotation.add(tensor_name="w")
    model = io.load(proto)
    assert model.notes == ("7 values renamed (same name in two scopes)",)
    names = [name for graph in io.graphs(model.proto.graph) for name in protos.defined(graph)]
    assert len(names) == len(set(names)) == 13
    assert {n: w.tolist() for n, w in model.weights.items()} == {"w": [5, 5], "w_1": [1, 2], "w_2": [3, 4]}
    assert model.proto.graph.node[0].attribute[0].g.quantization_annotation[0].tensor_name == "w_1"
    text = onnx.printer.to_text(model.proto.graph)
    assert "o_2 = Add (t_1, w_2)" in text
    assert "t_2 = Sub (x, w_2)" in text
    runtime = ort.InferenceSession(io.to_proto(model).SerializeToString())
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.full(2, 10, np.float32)}
        assert runtime.run(None, feeds)[0].tolist() == ([-11, -12] if condition else [7, 6])
    io.save(model, tmp_path / "m.onnx")
    same(model, io.load(tmp_path / "m.onnx"))


def test_body_input_that_shadows() -> None:
    proto = parse("""
        g (int64 n, bool c, float[2] x) => (float[2] y) {
            y = Loop (n, c, x) <body = b (int64 i, bool c, float[2] x) => (bool k, float[2] z)
                { k = Identity(c)  z = Add(x, x) }>
        }""")
    model = io.load(proto)
    body = list(io.graphs(model.proto.graph))[1]
    assert [v.name for v in body.input] == ["i", "c_1", "x_1"]
    assert list(body.node[1].input) == ["x_1", "x_1"]


@pytest.mark.parametrize(
    ("body", "order"),
    [
        ("{ y = Neg(b)  b = Neg(a)  a = Neg(x) }", "aby"),
        ("{ a = Neg(x)  y = Add(b, c)  c = Neg(a)  b = Neg(x) }", "acby"),
        ("{ y = If(k) <then_branch = p () => (float[2] o) { o = Neg(a) }, else_branch = q () => (float[2] a) {}>"
         " a = Neg(x) }", "ay"),
    ],
)  # fmt: skip
def test_nodes_are_sorted_stably(body: str, order: str) -> None:
    model = io.load(parse(f"g (float[2] x, bool k) => (float[2] y) {body}"))
    assert "".join(node.output[0] for node in model.proto.graph.node) == order
    assert model.notes == ("nodes sorted topologically",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{ y = Add(x, z)  z = Neg(y) }", "without cycles"),
        ("{ y = Add(x, y) }", "without cycles"),
        ("{ y = Add(x, nowhere) }", "'nowhere', which is not"),
        ("{ z = Add(x, x) }", "every output computed"),
        ("{ y = Neg(x)  y = Neg(x) }", "defined once"),
        ("{ x = Neg(x)  y = Neg(x) }", "defined once"),
        ("{ y = If(k) <then_branch = p () => (float[2] o) { o = Neg(i) },"
         " else_branch = q () => (float[2] i) { i = Neg(x) }> }", "'i', which is not"),
    ],
)  # fmt: skip
def test_graphs_that_mean_nothing(text: str, words: str) -> None:
    refused(parse(f"g (float[2] x, bool k) => (float[2] y) {text}"), words)


def test_any_name_gives_one_line() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Add(x, z) }")
    proto.graph.node[0].op_type = proto.graph.node[0].name = "a\n\x1b" * 1000
    refused(proto, r"a\n\x1b")


def test_of_repeated_initializers_the_last_counts() -> None:
    model = io.load(
        parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] w = {3, 4}> { y = Add(x, w) }")
    )
    assert model.weights["w"].tolist() == [3, 4]
    assert "occurs again" in model.notes[0]


CALLS = """
    g (float[N] x) => (float[N] y) <float[1] w = {7}> { t = l.f(x)  u = l.f(t)  v = Mul(u, w)  y = onnxprune.k(v) }
    <domain: "l", opset_import: ["" : 18, "l" : 1, "other" : 2]>
    f (a) => (b) { [n] c = Constant <value_float = 1.0> ()  d = l.h(a)  b = Add(c, d) }
    <domain: "l", opset_import: ["" : 18]> h (a) => (b) { c = Constant <value = float[1] {2.0}> ()  b = Mul(a, c) }
    <domain: "onnxprune", opset_import: ["" : 18]>
    k (a) => (b) { c = Constant <value = float[1] {2.0}> ()  b = Mul(a, c) }
"""


def called() -> ModelProto:
    proto = parse(CALLS, '"" : 18, "l" : 1, "onnxprune" : 1')
    proto.metadata_props.add(key="k", value="v")
    for function in proto.functions[1:]:  # above SMALL bytes
        function.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.full(500, 2, np.float32)))
    return proto


def test_functions_are_inlined_but_for_our_own(tmp_path: Path) -> None:
    proto = called()
    before = proto.SerializeToString()
    model = io.load(proto)
    assert proto.SerializeToString() == before
    assert model.notes == ("2 local functions inlined",)
    assert [node.op_type for node in model.proto.graph.node] == ["Constant", "Constant", "Mul", "Add"] * 2 + [
        "Mul",
        "k",
    ]
    assert [f.domain for f in model.proto.functions] == ["onnxprune"]
    assert np.all(numpy_helper.to_array(model.proto.functions[0].node[0].attribute[0].t) == 2)
    assert (model.proto.ir_version, model.proto.metadata_props[0].key) == (10, "k")
    assert {o.domain: o.version for o in model.proto.opset_import}["other"] == 2
    assert sorted(w.size for w in model.weights.values()) == [1, 1, 1, 500, 500]
    large = [w for w in model.weights.values() if w.size == 500]
    assert large[0] is large[1]
    io.save(model, tmp_path / "m.onnx", inline_limit=0)
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    assert next(tmp_path.glob("*.data")).stat().st_size == 2000  # the shared constant is written once
    same(model, io.load(tmp_path / "m.onnx"))


def test_tensors_handed_to_functions() -> None:
    proto = parse(
        """g (float[N] x) => (float[N] y, float[N] z) { y = l.f(x) z = l.f(x) }
        <domain: "l", opset_import: ["" : 18]> f <t> (a) => (b) { c = Constant <value: tensor = @t> ()  b = Add(a, c) }
        """,
        '"" : 18, "l" : 1',
    )
    large = numpy_helper.from_array(np.full(500, 2, np.float32))
    for node in proto.graph.node:
        node.attribute.add(name="t", type=onnx.AttributeProto.TENSOR).t.CopyFrom(large)
    model = io.load(proto)
    assert [w.size for w in model.weights.values()] == [500, 500]
    assert model.proto.ByteSize() < 1000


def test_functions_of_another_opset_are_converted_or_stay() -> None:
    text = """g (float[1, N] x) => (float[N] y) { y = l.f(x) }
        <domain: "l", opset_import: ["OTHER" : 11]> f (a) => (b) { b = OP (a) }"""
    model = io.load(parse(text.replace("OTHER", "").replace("OP", "Squeeze <axes = [0]>"), '"" : 13, "l" : 1'))
    assert [node.op_type for node in model.proto.graph.node][-1] == "Squeeze"
    assert not model.proto.functions
    model = io.load(parse(text.replace("OTHER", "d").replace("OP", "d.Op"), '"" : 13, "l" : 1, "d" : 12'))
    assert [node.op_type for node in model.proto.graph.node] == ["f"]
    assert model.notes == ("0 local functions inlined", "local function 'f' not inlined: it needs another opset")


HEAD = '<domain: "l", opset_import: ["" : 18, "l" : 1]> '
CALL_CALL = "".join(f"{HEAD} f{i} (a) => (b) {{ t = l.f{i + 1}(a)  b = l.f{i + 1}(t) }}" for i in range(60))


@pytest.mark.parametrize(
    "functions",
    [
        "f (a) => (b) { b = l.f(a) }",
        f"f (a) => (b) {{ b = l.g(a) }} {HEAD} g (a) => (b) {{ b = l.f(a) }}",
        "f () => (b) { b = Constant <value_float = 1.0> () }",
        f"f (a) => (b) {{ b = l.f0(a) }} {CALL_CALL}",
    ],
    ids=["itself", "each other", "too many inputs", "exponential"],
)
def test_functions_that_cannot_be_inlined(functions: str) -> None:
    text = f"g (float[N] x) => (float[N] y) {{ y = l.f(x) }} {HEAD} {functions}"
    refused(parse(text, '"" : 18, "l" : 1'), "local functions")


def test_value_info_left_behind_in_inlined_bodies_goes() -> None:
    proto = parse(
        """g (bool c, float[N] x) => (float[N] y) { y = l.f(c, x) }
        <domain: "l", opset_import: ["" : 18]> f (c, a) => (b) {
            b = If(c) <then_branch = p () => (t) { t = Neg(a) }, else_branch = q () => (t) { t = Abs(a) }> }""",
        '"":18, "l":1',
    )
    proto.functions[0].node[0].attribute[0].g.value_info.add(name="x")
    assert all(not graph.value_info for graph in io.graphs(io.load(proto).proto.graph))


# Sparse


def sparse_model(indices: Any = (0, 3, 5), dims: Any = (2, 3), values: Any = (1, 2, 3)) -> ModelProto:
    proto = parse("g (float[2] x) => (float[2, 3] y) { y = Identity(w) }")
    sparse = proto.graph.sparse_initializer.add(dims=dims)
    sparse.values.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64).reshape(np.shape(indices)), "i"))
    return proto


@pytest.mark.parametrize("indices", [(0, 3, 5), ((0, 0), (1, 0), (1, 2))])
def test_sparse_initializers(indices: Any, tmp_path: Path) -> None:
    proto = sparse_model(indices)
    model = io.load(proto)
    assert model.weights["w"].tolist() == [[1, 0, 0], [2, 0, 3]]
    assert model.notes == ("sparse tensor 'w' densified",)
    assert [t.name for t in model.proto.graph.initializer] == ["w"]
    path = tmp_path / "m.onnx"
    io.save(model.copy(), path)
    assert onnx.load(path) == proto  # untouched: stored as it was
    model.weights["w"] = np.ones((2, 2), np.float32)
    io.save(model, path)
    saved = onnx.load(path).graph
    assert not saved.sparse_initializer
    assert np.array_equal(numpy_helper.to_array(saved.initializer[0]), np.ones((2, 2)))


def test_sparse_constants() -> None:
    proto = parse("g () => (float[2, 3] y) { y = Constant() }")
    attribute = proto.graph.node[0].attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse_model().graph.sparse_initializer[0])
    model = io.load(proto)
    assert model.weights["y"].tolist() == [[1, 0, 0], [2, 0, 3]]
    assert io.to_proto(model) == proto
    model.weights["y"] = np.ones(2, np.float32)
    changed = io.to_proto(model).graph.node[0].attribute
    assert [a.name for a in changed] == ["value"]
    onnx.checker.check_model(io.to_proto(model))


@pytest.mark.parametrize(
    ("indices", "dims"),
    [
        ((0, 3, 6), (2, 3)),
        ((-1, 3, 5), (2, 3)),
        ((3, 0, 5), (2, 3)),
        ((0, 3, 3), (2, 3)),
        ((0, 3), (2, 3)),
        ((0, 1, 2, 3), (2, 3)),
        (((0, 0), (1, 0), (1, 3)), (2, 3)),
        (((0, 0), (1, 0), (0, -1)), (2, 3)),
        (((0, 0, 0), (1, 0, 0), (1, 1, 1)), (2, 3)),
        ((0, 3, 5), (2, -3)),
        ((0, 3, 5), (1 << 40,)),
        ((0, 3, 5), (1 << 40, 1 << 40, 1 << 40)),
        ((0, 3, 5), (1 << 62,) * 1000),
        ((0, 3, 5), ()),
        ((0, 3, 5), (0, 1 << 62)),
    ],
)
def test_malformed_sparse_tensors(indices: Any, dims: Any) -> None:
    refused(sparse_model(indices, dims), "sparse tensor")


# Hostile and broken files


def tensor_edit(**fields: Any) -> TensorProto:
    """A float32 tensor `w` of (2, 2), with some fields set otherwise."""
    tensor = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    for name, value in fields.items():
        tensor.ClearField(name)
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        elif value is not None:
            setattr(tensor, name, value)
    return tensor


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_edit(dims=[-1, -4]),
        tensor_edit(dims=[2, 3]),
        tensor_edit(dims=[1 << 40, 1 << 40]),
        tensor_edit(dims=[(1 << 63) - 1] * 9),
        tensor_edit(dims=[(1 << 63) - 1] * 60),
        tensor_edit(dims=[(1 << 63) - 1] * 100_000),
        tensor_edit(dims=[0, 1 << 62], raw_data=b""),
        tensor_edit(dims=[1] * 70, raw_data=b"abcd"),
        tensor_edit(raw_data=b"123456789012345"),
        tensor_edit(raw_data=b""),
        tensor_edit(raw_data=None),
        tensor_edit(raw_data=None, float_data=[1.0]),
        tensor_edit(raw_data=None, int32_data=[1, 2, 3, 4]),
        tensor_edit(data_type=0),
        tensor_edit(data_type=99),
        tensor_edit(data_type=TensorProto.STRING),
        tensor_edit(data_type=TensorProto.INT4),
        tensor_edit(data_type=TensorProto.COMPLEX64),
        TensorProto(name="w", dims=[3], data_type=TensorProto.INT4, int32_data=[1, 2, 3]),
        TensorProto(name="w", dims=[2], data_type=TensorProto.STRING, string_data=[b"a"]),
        TensorProto(name="w", dims=[1], data_type=1, raw_data=b"1234", segment=TensorProto.Segment(begin=0, end=1)),
        TensorProto(name="w\n\t\x1b" + 500 * "x", dims=[7], data_type=1),
    ],
)
def test_malformed_tensors(tensor: TensorProto) -> None:
    proto = one_tensor(tensor)
    refused(proto, "tensor 'w")
    constant = one_tensor(TensorProto(name="w", dims=[1], data_type=1, raw_data=b"1234"))
    constant.graph.node.add(op_type="Custom", domain="d", output=["z"]).attribute.add(name="t", type=4).t.CopyFrom(
        tensor
    )
    refused(constant, "tensor 'w")


def rewrite(path: Path, tensor: int = 0, **entries: str | None) -> Path:
    """Change entries of `external_data` in a model file; None removes one."""
    proto = onnx.load(path, load_external_data=False)
    found = {e.key: e.value for e in proto.graph.initializer[tensor].external_data} | entries
    del proto.graph.initializer[tensor].external_data[:]
    for key, value in found.items():
        if value is not None:
            proto.graph.initializer[tensor].external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "../w.bin"}, "leads out"),
        ({"location": "sub/../../w.bin"}, "leads out"),
        ({"location": "sub/../w.bin"}, "leads out"),
        ({"location": "..\\w.bin"}, "leads out"),
        ({"location": "C:\\w.bin"}, "leads out"),
        ({"location": "\\\\host\\share"}, "leads out"),
        ({"location": "/etc/passwd"}, "leads out"),
        ({"location": "w\0.bin"}, "leads out"),
        ({"location": "link"}, "leads out"),
        ({"location": "linked/w.bin"}, "leads out"),
        ({"location": "loop"}, "expected external data"),
        ({"location": ""}, "Is a directory"),
        ({"location": None}, "Is a directory"),
        ({"location": "."}, "Is a directory"),
        ({"location": "pipe"}, "Not a regular file"),
        ({"location": "missing"}, "No such file"),
        ({"location": "x" * 5000}, "name too long"),
        ({"location": "short"}, "of 3 bytes"),
        ({"location": "empty"}, "of 0 bytes"),
        ({"offset": "-4096"}, "byte counts"),
        ({"offset": "1e3"}, "byte counts"),
        ({"offset": "٣"}, "byte counts"),
        ({"offset": "9" * 30}, "byte counts"),
        ({"offset": "1" + "0" * 17}, "of 4096 bytes"),
        ({"offset": "8193"}, "of 4096 bytes"),
        ({"length": "4095"}, "length 4095"),
        ({"length": "4097"}, "length 4097"),
        ({"length": "-1"}, "byte counts"),
        ({"length": ""}, "byte counts"),
    ],
)
def test_hostile_external_data(entries: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = external_model(folder)
    (tmp_path / "w.bin").write_bytes(bytes(1 << 16))
    (folder / "link").symlink_to(tmp_path / "w.bin")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "short").write_bytes(b"abc")
    (folder / "empty").write_bytes(b"")
    os.mkfifo(folder / "pipe")
    refused(rewrite(path, **entries), words)


def test_external_data_that_is_fine(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    path = external_model(folder)
    (folder / "w.bin").rename(folder / "sub" / "blob")
    (folder / "w.bin").symlink_to("sub/blob")  # a link that stays inside
    rewrite(path, 0, length=None, checksum="0" * 40, unknown="x")
    rewrite(path, 1, location="sub/blob")
    model = io.load(path)
    assert model.external
    assert isinstance(model.weights["w1"], np.memmap)
    assert [int(w[0]) for w in model.weights.values()] == [0, 1, 2]
    cache = tmp_path / "snapshot"  # as in the cache of Hugging Face: both names are links into another folder
    cache.mkdir()
    for name in ("m.onnx", "w.bin", "sub"):
        (cache / name).symlink_to(folder / name)
    same(io.load(cache / "m.onnx"), model)


def test_empty_external_tensor(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    proto = onnx.load(rewrite(path, location="empty", offset="0", length="0"), load_external_data=False)
    proto.graph.initializer[0].dims.append(0)
    path.write_bytes(proto.SerializeToString())
    assert io.load(path).weights["w0"].shape == (1024, 0)


def test_external_data_without_a_folder(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    refused(path.read_bytes(), "bytes:", "no folder", "load the path")
    refused(onnx.load(path, load_external_data=False), "ModelProto:")


def test_external_attribute_and_sparse_tensors_come_inside(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.node.add(op_type="Custom", domain="d", output=["z"]).attribute.add(name="t", type=4).t.CopyFrom(
        proto.graph.initializer[2]
    )
    sparse = sparse_model(np.arange(1024), [2000], np.ones(1024)).graph.sparse_initializer[0]
    sparse.values.CopyFrom(proto.graph.initializer[1])
    sparse.values.name = "s"
    proto.graph.sparse_initializer.append(sparse)
    path.write_bytes(proto.SerializeToString())
    out = tmp_path / "out.onnx"
    io.save(io.load(path), out)
    (tmp_path / "w.bin").unlink()
    saved = io.load(out)
    assert np.all(numpy_helper.to_array(saved.proto.graph.node[-1].attribute[0].t) == 2)
    assert saved.weights["s"].sum() == 1024


GOOD = chain_model().SerializeToString()
UNNAMED = chain_model()
UNNAMED.graph.node[0].name = "first node"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "found 0 bytes"),
        (b"hello world, this is not a model", "an ONNX model"),
        (b"\x00" * 100, "an ONNX model"),
        (np.random.default_rng(0).bytes(4096), "an ONNX model"),
        (b"\xfa\x3f\x03abc", "without a graph"),
        (ModelProto(ir_version=8, producer_name="p").SerializeToString(), "without a graph"),
        (helper.make_model(onnx.GraphProto(name="empty")).SerializeToString(), "without a graph"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (GOOD[:-1], "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"PK\x03\x04rest", "zip"),
        (b'{"irVersion": "8"}', "JSON"),
        (b"\x28\x00\x00\x00ORTM\x00\x00", "ORT format"),
        (GOOD.replace(b"w1", b"\xff1"), "UTF-8"),
        (UNNAMED.SerializeToString().replace(b"first node", b"first nod\xff"), "UTF-8"),
    ],
)
def test_files_that_are_no_models(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    text = refused(path, words)
    assert text.startswith(f"{path}: ")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path, "a folder")
    refused(tmp_path / "missing.onnx", "No such file")
    refused(tmp_path / "mis\nsing.onnx", "No such file")
    refused(str(tmp_path / "a\0b"), "null byte")
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path / "file" / "m.onnx", "Not a directory")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "a pipe")
    huge = tmp_path / "huge.onnx"
    with open(huge, "wb") as file:
        file.truncate(1 << 31)
    refused(huge, "external data")
    refused(3, "int")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads and writes everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(GOOD)
    path.chmod(0)
    refused(path, "Permission denied")


@pytest.mark.parametrize(("ir", "opset"), [(1, None), (2, None), (0, None), (None, None), (None, 18), (1, 6)])
def test_versions_of_old_files(ir: int | None, opset: int | None) -> None:
    proto = parse("g (float[N] x) => (float[N] y) { y = LeakyRelu <alpha = 0.5> (x) }")
    proto.graph.node[0].attribute[0].ClearField("type")
    proto.ClearField("ir_version")
    proto.ClearField("opset_import")
    if ir is not None:
        proto.ir_version = ir
    if opset is not None:
        proto.opset_import.add(version=opset)
    model = io.load(proto)
    assert model.proto.ir_version == (8 if opset == 18 else 3)
    assert [o.version for o in model.proto.opset_import] == [opset or 1]
    assert model.proto.graph.node[0].attribute[0].type == onnx.AttributeProto.FLOAT
    assert model.notes[0].startswith(f"ir_version {ir or 0} read as")
    onnx.checker.check_model(model.proto)


def test_missing_opset() -> None:
    refused(parse("g (float[N] x) => (float[N] y) { y = Relu(x) }", '"d" : 1'), "opset_import")
    assert io.load(parse("g (float[N] x) => (float[N] y) { y = d.Relu(x) }", '"d" : 1')).notes == ()


def test_graphs_nested_deeper_than_protobuf_reads() -> None:
    graph = chain_model(2).graph
    for _ in range(60):
        outer = onnx.GraphProto(output=graph.output, input=graph.input)
        outer.node.add(op_type="If", input=["v0"], output=["v3"]).attribute.add(name="then_branch", type=5).g.CopyFrom(
            graph
        )
        graph = outer
    refused(helper.make_model(graph), "protobuf")


def test_mutated_files_never_give_a_traceback(tmp_path: Path) -> None:
    """Any damage ends in a model or in a ModelFileError, and a model can be saved."""
    rng = np.random.default_rng(0)
    sources = [p.SerializeToString() for p in (rich_model(), parse(IF), called(), sparse_model())]
    loaded = 0
    for _ in range(400):
        data = bytearray(sources[rng.integers(len(sources))])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            model = io.load(bytes(data))
        except ModelFileError as error:
            assert str(error).isprintable()
        else:
            loaded += 1
            io.to_proto(model)
    assert loaded > 20


# Saving


def test_save_external(tmp_path: Path) -> None:
    model = io.load(external_model(tmp_path, 1500))
    model.weights["w1"] = np.ones((60, 50), np.float32).T
    out = tmp_path / "out.onnx"
    io.save(model, out)
    (data,) = tmp_path.glob("out.onnx.*.data")
    import hashlib

    assert data.name == f"out.onnx.{hashlib.sha256(data.read_bytes()).hexdigest()[:12]}.data"
    proto = onnx.load(out, load_external_data=False)
    places = [{e.key: e.value for e in t.external_data} for t in proto.graph.initializer]
    assert [p["offset"] for p in places] == ["0", "8192", "20480"]
    assert [list(p) for p in places] == [["location", "offset", "length"]] * 3
    onnx.checker.check_model(str(out))
    again = io.load(out)
    assert again.weights["w1"].shape == (50, 60)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    io.save(model, out)
    io.save(again, out)  # over the file that its arrays are mapped from
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_save_inline_or_external(tmp_path: Path) -> None:
    inline = io.load(chain_model())
    io.save(inline, tmp_path / "a.onnx")
    io.save(inline, tmp_path / "b.onnx", inline_limit=12000)
    external = io.load(external_model(tmp_path))
    for name in external.weights:
        external.weights[name] = np.ones(2, np.float32)
    io.save(external, tmp_path / "c.onnx")
    assert not list(tmp_path.glob("[ac].onnx.*"))
    assert len(list(tmp_path.glob("b.onnx.*"))) == 1
    same(io.load(tmp_path / "a.onnx"), io.load(tmp_path / "b.onnx"))


def test_views_of_the_same_memory(tmp_path: Path) -> None:
    """A weight stored once stays stored once; a transposed view of it is another weight."""
    w = np.arange(10000, dtype=np.float32).reshape(100, 100)
    model = io.load(chain_model(2000, 4))
    model.weights.update({"w0": w.T, "w1": w, "w2": w, "w3": w[:50]})
    io.save(model, tmp_path / "m.onnx", inline_limit=0)
    again = io.load(tmp_path / "m.onnx")
    for name, array in model.weights.items():
        assert np.array_equal(again.weights[name], array)
    (data,) = tmp_path.glob("*.data")
    assert data.stat().st_size == 2 * 40960 + 20000


@pytest.mark.parametrize("chunk", [64, 1024, 1 << 24])
def test_pieces(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK", chunk)
    a = np.arange(3000, dtype=np.float32).reshape(2, 3, 500)
    for array in (
        a,
        a.T,
        a[:, ::2],
        a[..., ::-1],
        a[0, 0, :1],
        a[:0],
        np.array(3.0),
        a.astype(bits("INT4", 1).dtype).T,
    ):
        raw = numpy_helper.from_array(np.ascontiguousarray(array)).raw_data
        assert b"".join(arrays.pieces(array)) == raw
        assert all(len(piece) <= chunk for piece in arrays.pieces(array))


def test_save_over_the_input_and_sweep(tmp_path: Path) -> None:
    """Only data files of our own naming that the old model used are deleted."""
    path = external_model(tmp_path)
    stranger = tmp_path / "m.onnx.0123456789ab.data"  # our pattern, but the old model does not use it
    stranger.write_bytes(b"keep")
    for value in (5, 6):
        model = io.load(path)
        model.weights["w0"] = np.full(1024, value, np.float32)
        io.save(model, path)
        assert io.load(path).weights["w0"][0] == value
        assert model.weights["w1"][0] == 1  # still mapped, if from a file without a name
        assert len(list(tmp_path.glob("m.onnx.*.data"))) == 2
        assert (tmp_path / "w.bin").exists()
    model = io.load(io.to_proto(io.load(path)))
    io.save(model, path)
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "w.bin", stranger.name}


def test_the_result_runs(tmp_path: Path) -> None:
    proto = parse(IF)
    proto.graph.node.add(op_type="Constant", output=["big"]).attribute.add(name="value", type=4).t.CopyFrom(
        numpy_helper.from_array(np.ones((2, 1000), np.float32))
    )
    proto.graph.node[0].attribute[0].g.initializer.append(numpy_helper.from_array(np.ones(1000, np.float32), "inner"))
    io.save(io.load(proto), tmp_path / "m.onnx", inline_limit=0)
    assert len(list(tmp_path.iterdir())) == 2
    session = ort.InferenceSession(tmp_path / "m.onnx")
    (y,) = session.run(None, {"c": np.array(True), "x": np.ones(2, np.float32)})
    assert y.tolist() == [-2, -3]


def test_to_proto_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "INLINE_LIMIT", 5000)
    with pytest.raises(ModelFileError, match=r"at most 5000 bytes.*save\(\)"):
        io.to_proto(io.load(chain_model()))


def modes(folder: Path) -> dict[str, int]:
    """Permission bits of each file, by its name without the digits of a data file."""
    return {re.sub("[0-9a-f]{12}", "HASH", p.name): p.stat().st_mode & 0o777 for p in folder.iterdir()}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o444, 0o755])
def test_permissions(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New files get what the umask leaves; a replaced file keeps its bits, and nobody sees more before that."""
    path, fsync = tmp_path / "m.onnx", os.fsync

    def watch(handle: int) -> None:
        assert all(bits == 0o600 for name, bits in modes(tmp_path).items() if name.endswith(".tmp"))
        fsync(handle)

    model = io.load(chain_model())
    io.save(model, path)
    assert modes(tmp_path) == {"m.onnx": 0o640}
    monkeypatch.setattr(os, "fsync", watch)
    path.chmod(mode)
    io.save(model, path)
    assert modes(tmp_path) == {"m.onnx": mode}
    io.save(model, path, inline_limit=0)
    assert modes(tmp_path) == {"m.onnx": mode, "m.onnx.HASH.data": mode}
    next(tmp_path.glob("*.data")).chmod(0o400)
    io.save(model, path, inline_limit=0)
    assert modes(tmp_path) == {"m.onnx": mode, "m.onnx.HASH.data": 0o400}
    monkeypatch.undo()
    io.save(model, tmp_path / "n.onnx", inline_limit=0)
    assert modes(tmp_path)["n.onnx"] == modes(tmp_path)["n.onnx.HASH.data"] == 0o640


def test_a_missing_data_file_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for _ in range(2):
        io.save(io.load(chain_model()), path, inline_limit=0)
        (data,) = tmp_path.glob("*.data")
        data.unlink()
    io.save(io.load(chain_model()), path, inline_limit=0)
    same(io.load(path), io.load(chain_model()))


@pytest.mark.parametrize("place", ["missing/m.onnx", "folder", "file/m.onnx", "pipe", "a\0b", "x" * 300])
def test_places_that_cannot_be_written(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError) as caught:
        io.save(io.load(chain_model()), tmp_path / place, inline_limit=0)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"folder", "file", "pipe"}


# Whole or nothing


@pytest.fixture(params=["external over external", "inline over external", "external over inline", "inline over inline"])
def replacing(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, io.Model, io.Model, int]:
    """A saved model, that model as loaded, another to be saved over it, and the limit to save it with."""
    limits = [0 if word == "external" else io.INLINE_LIMIT for word in request.param.split(" over ")]
    path = tmp_path / "m.onnx"
    old = io.load(chain_model())
    io.save(old, path, inline_limit=limits[1])
    new = old.copy()
    new.weights["w0"] = np.full(1024, 9, np.float32)
    return path, old, new, limits[0]


def before_call(at: int, strike: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Let `strike` happen before the `at`-th of all calls by which a save touches the disk."""
    calls = 0

    def guard(real: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                strike()
            return real(*args, **kwargs)

        return guarded

    for owner, name in (
        (os, "open"),
        (writing, "pieces"),
        (writing, "set_data"),
        (os, "fsync"),
        (os, "chmod"),
        (os, "replace"),
        (Path, "unlink"),
    ):
        patch.setattr(owner, name, guard(getattr(owner, name)))


@needs_fork
def test_killed_at_any_point(replacing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is the old or the new model, whole, after SIGKILL before each call; then a save succeeds."""
    path, old, new, limit = replacing
    states = []
    for at in range(1, 50):

        def save_and_die(at: int = at) -> None:
            before_call(at, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
            io.save(new, path, inline_limit=limit)

        status = in_child(save_and_die)
        current = io.load(path)
        states.append(current.weights["w0"][0] == 9)
        same(current, new if states[-1] else old)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert len(states) > 8
    assert states == sorted(states)  # old until it is new
    assert not states[5]
    assert states[-1]
    assert not list(path.parent.glob(".*"))  # the last save swept what the killed ones left


def test_leftovers_are_swept(tmp_path: Path) -> None:
    """Those of this target, and nothing else."""
    swept = [".m.onnx.01234567.tmp", ".m.onnx.89abcdef.tmp"]
    kept = [".m.onnx.0123456.tmp", ".m.onnx.0123456g.tmp", "m.onnx.01234567.tmp", ".n.onnx.01234567.tmp", "x.m.onnx"]
    for name in (*swept, *kept):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".m.onnx.00000000.tmp").mkdir()
    io.save(io.load(chain_model()), tmp_path / "m.onnx")
    assert {p.name for p in tmp_path.iterdir()} == {*kept, ".m.onnx.00000000.tmp", "m.onnx"}


@needs_fork
@pytest.mark.parametrize("limit", [io.INLINE_LIMIT, 0])
def test_a_running_save_is_not_swept(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two saves to one target at a time: both succeed, and the one that ends last stands."""
    path, model = tmp_path / "m.onnx", io.load(chain_model())
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        replace, status = os.replace, 1

        def wait(*names: Any) -> None:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            replace(*names)

        try:
            os.close(go[1])
            monkeypatch.setattr(os, "replace", wait)
            io.save(model, path, inline_limit=limit)
            status = 0
        finally:
            os._exit(status)
    try:
        os.read(ready[0], 1)
        running = set(tmp_path.glob(".*.tmp"))
        other = model.copy()
        other.weights["w0"] = np.full(1024, 9, np.float32)
        io.save(other, path, inline_limit=limit)
        same(io.load(path), other)
        assert set(tmp_path.glob(".*.tmp")) == running
        assert len(running) == (1 if limit else 2)
    finally:
        os.close(go[1])  # which lets the child go on
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for end in (*ready, go[0]):
            os.close(end)
    assert status == 0
    same(io.load(path), model)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failing_at_any_point(code: int, replacing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in each call leaves the old model, or after the last rename the new one, and no temporary file."""
    path, old, new, limit = replacing
    before = {p: p.read_bytes() for p in path.parent.iterdir()}

    def strike() -> None:
        raise OSError(code, os.strerror(code))

    for at in range(1, 50):
        with monkeypatch.context() as patch:
            before_call(at, strike, patch)
            try:
                io.save(new, path, inline_limit=limit)
            except ModelFileError as error:
                text = str(error)
            else:
                break
        assert os.strerror(code) in text
        assert "\n" not in text
        after = {p: p.read_bytes() for p in path.parent.iterdir()}
        replaced = after[path] != before[path]
        same(io.load(path), new if replaced else old)
        assert replaced or after == before
        assert not any(p.suffix == ".tmp" for p in after)
    assert at > 5
    same(io.load(path), new)


@needs_fork
def test_disk_full(replacing: Any) -> None:
    """A limit on the size of files stands in for a full disk."""
    path, old, new, limit = replacing
    before = {p: p.read_bytes() for p in path.parent.iterdir()}

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with pytest.raises(ModelFileError, match=r"expected room for \d+ bytes, found File too large; free some space"):
            io.save(new, path, inline_limit=limit)

    assert in_child(save) == 0
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before
    same(io.load(path), old)


@needs_proc
@pytest.mark.parametrize("name", ["FLOAT", "FLOAT16"])
def test_external_weights_are_never_copied(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def anonymous() -> int:
        line = next(li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith("RssAnon"))
        return int(line.split()[1]) << 10

    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, name))
    proto = chain_model(1)
    size = 1 << 26
    for i in range(2):
        tensor = proto.graph.initializer[i]
        tensor.CopyFrom(
            TensorProto(name=tensor.name, data_type=getattr(TensorProto, name), data_location=TensorProto.EXTERNAL)
        )
        tensor.dims.append(size // 2 // dtype.itemsize)
        for key, value in ("location", "w.bin"), ("offset", str(i * size // 2)):
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    np.arange(size // 8).tofile(tmp_path / "w.bin")
    io.save(io.load(chain_model()), tmp_path / "warm.onnx", inline_limit=0)
    before, peak, fsync = anonymous(), 0, os.fsync

    def watch(handle: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    model = io.load(tmp_path / "m.onnx")
    io.save(model, tmp_path / "out.onnx")
    assert peak - before < size // 8
    (data,) = tmp_path.glob("out.onnx.*.data")
    assert data.stat().st_size == size


# Real files


def assets() -> list[Any]:
    found = sorted([*ASSETS.glob("traps/*.onnx"), *ASSETS.glob("models/*.onnx")])
    return [pytest.param(p, id=p.name) for p in found] or [
        pytest.param(None, marks=pytest.mark.skip(reason="../shared is absent"))
    ]


@pytest.mark.usefixtures("volatile")
@pytest.mark.parametrize("path", assets())
def test_real_files(path: Path, tmp_path: Path) -> None:
    bad = ("bad_graph_with_dup_value_info", "bad_graph_with_no_import_domains", "ext_weights", "weightless.conv")
    if path.stem in bad:
        refused(path)
        return
    model = io.load(path)
    out = tmp_path / "out.onnx"
    io.save(model, out)
    again = io.load(out)
    same(model, again)
    original, saved = onnx.load(path), onnx.load(out)
    if not model.notes and original != saved:  # typed data of large tensors become raw data; nothing else changes
        for proto in (original, saved):
            for _, tensor in io.tensors(proto):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        assert original == saved
    if path.stem == "silero_vad_if":  # Constant nodes in nested bodies
        io.save(model, out, inline_limit=0)
        assert [w.tobytes() for w in io.load(out).weights.values()] == [w.tobytes() for w in model.weights.values()]
