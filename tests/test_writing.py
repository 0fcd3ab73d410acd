"""A save is whole or nothing."""

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
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import in_child
from files import bits, same
from models.files import IF, chain_model, external_model, parse
from onnxprune.errors import ModelFileError
from onnxprune.graph import arrays, io, writing

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


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
