"""Files: what goes in comes out, of every type and from every source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from files import bits, refused, same
from models.files import chain_model, one_tensor, parse, rich_model
from onnxprune.errors import InternalError
from onnxprune.graph import arrays, io

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
DTYPES = [name for name, code in TensorProto.DataType.items() if code in arrays.DTYPES]


@pytest.fixture
def volatile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, in tests that save much."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


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
