"""Functions are inlined, names become unique over all scopes, nodes are sorted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from files import refused, same
from models.files import IF, called, parse
from onnxprune.graph import io, protos


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
