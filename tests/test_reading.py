"""Hostile and broken files are refused in one line; sparse tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from files import refused, same
from models.files import (
    IF,
    called,
    chain_model,
    external_model,
    one_tensor,
    parse,
    rich_model,
    sparse_model,
    tensor_edit,
)
from onnxprune.errors import ModelFileError
from onnxprune.graph import io


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
