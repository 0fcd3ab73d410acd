"""Kernels that are compiled ahead of time: the library in C, C++ and Rust, and in a Python without a compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import onnxprune
from conftest import ROOT, Cli
from onnxprune import kernels
from onnxprune.kernels import ahead, header
from onnxprune.kernels.ahead import EVERY, TARGETS, emitted, layouts_of, link_words
from onnxprune.kernels.loops import MACHINE
from onnxprune.kernels.tables import LAYOUTS

MODELS, EXAMPLES = ROOT / "models", ROOT / "examples"
LEVEL = {"avx512": "v4", "avx2": "v3", "portable": "v2"}[MACHINE.name]
HERE = ahead.host()
pytestmark = pytest.mark.skipif(not HERE.startswith("linux"), reason="not installed here: a Linux to link for")


def sparse(path: Path, **options: Any) -> Path:
    """A sparse model, in a file."""
    onnxprune.save(onnxprune.prune(MODELS / "digits_vit.onnx", measure=False, **options).model, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a sample, what comes out, and a library of the model's operators for this CPU."""
    folder = tmp_path_factory.mktemp("library")
    model = sparse(folder / "model.onnx", sparsity=0.9, format="csr")
    session = kernels.session(model)
    x = np.random.default_rng(0).standard_normal((1, *session.get_inputs()[0].shape[1:])).astype(np.float32)
    x.tofile(folder / "x.bin")
    np.save(folder / "y.npy", session.run(None, {session.get_inputs()[0].name: x})[0])
    words = ["export-library", "--ops-from", str(model), "--level", LEVEL, "-q", "-o", str(folder)]
    subprocess.run([sys.executable, "-m", "onnxprune", *words], check=True, cwd=ROOT)
    return folder


def compiler(name: str) -> str:
    """A compiler of the machine."""
    if shutil.which(name) is None:
        pytest.skip(f"not installed here: {name}")
    return name


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shared library of the installed onnxruntime, under the names that linkers look for."""
    folder = tmp_path_factory.mktemp("onnxruntime")
    (found,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(found)
    return folder


def c(runtime: Path, out: Path) -> None:
    words = [compiler("cc"), "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", str(EXAMPLES / "c" / "run.c")]
    subprocess.run([*words, "-o", str(out), f"-L{runtime}", "-lonnxruntime"], check=True)


def cpp(runtime: Path, out: Path) -> None:
    cmake, build = compiler("cmake"), out.parent / "build"
    library = f"-DONNXRUNTIME={runtime / 'libonnxruntime.so'}"
    subprocess.run([cmake, "-B", str(build), library, str(EXAMPLES / "cpp")], check=True, capture_output=True)
    subprocess.run([cmake, "--build", str(build)], check=True, capture_output=True)
    shutil.move(build / "run", out)


def rust(runtime: Path, out: Path) -> None:
    words = [compiler("rustc"), "--edition", "2021", str(EXAMPLES / "rust" / "run.rs"), "-o", str(out)]
    subprocess.run([*words, "-l", "dylib=onnxruntime", "-L", str(runtime)], check=True)


@pytest.mark.parametrize("build", [c, cpp, rust])
def test_programs_without_python(build: Any, place: Path, runtime: Path, tmp_path: Path) -> None:
    program, out = tmp_path / "run", tmp_path / "y.bin"
    build(runtime, program)

    def run(model: Path) -> subprocess.CompletedProcess[str]:
        words = [program, model, place / TARGETS[HERE].library, place / "x.bin", out]
        environment = {"LD_LIBRARY_PATH": str(runtime)}
        return subprocess.run(list(map(str, words)), check=False, capture_output=True, text=True, env=environment)

    done = run(place / "model.onnx")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.fromfile(out, np.float32), np.load(place / "y.npy").ravel(), rtol=0, atol=1e-5)
    done = run(sparse(tmp_path / "other.onnx", pattern="2:4", format="nm", permute=False))
    assert done.returncode == 1 and "NmMatMul" in done.stderr and "is not in this library" in done.stderr


JAVA = {  # of onnxruntime's interface, what the example uses
    "NodeInfo": "public class NodeInfo { public Object getInfo() { return null; } }",
    "TensorInfo": "public class TensorInfo { public long[] getShape() { return null; } }",
    "OnnxTensor": """public class OnnxTensor implements AutoCloseable {
        public static OnnxTensor createTensor(OrtEnvironment e, java.nio.FloatBuffer b, long[] s) { return null; }
        public java.nio.FloatBuffer getFloatBuffer() { return null; } public void close() {} }""",
    "OrtEnvironment": """public class OrtEnvironment {
        public static OrtEnvironment getEnvironment() { return null; }
        public OrtSession createSession(String m, OrtSession.SessionOptions o) throws Exception { return null; } }""",
    "OrtSession": """public class OrtSession implements AutoCloseable {
        public java.util.Map<String, NodeInfo> getInputInfo() { return null; } public void close() {}
        public Result run(java.util.Map<String, OnnxTensor> x) { return null; }
        public static class Result implements AutoCloseable {
            public Object get(int i) { return null; } public void close() {} }
        public static class SessionOptions implements AutoCloseable {
            public void registerCustomOpLibrary(String p) {} public void close() {} } }""",
}


def test_java_compiles(tmp_path: Path) -> None:
    folder = tmp_path / "ai" / "onnxruntime"
    folder.mkdir(parents=True)
    for name, text in JAVA.items():
        (folder / f"{name}.java").write_text(f"package ai.onnxruntime;\n{text}\n")
    words = [compiler("javac"), "-Xlint:all", "-Werror", "-d", str(tmp_path), *map(str, folder.glob("*.java"))]
    subprocess.run([*words, str(EXAMPLES / "java" / "Run.java")], check=True)


def test_what_the_library_needs_and_shows(place: Path) -> None:
    path = place / TARGETS[HERE].library
    held = ctypes.CDLL(str(path))
    held.onnxprune_ops_stamp.restype = held.onnxprune_ops_level.restype = ctypes.c_char_p
    assert held.onnxprune_ops_stamp() == header.stamp().encode() and held.onnxprune_ops_level() == LEVEL.encode()
    named = {name for name, row in ahead.LEVELS.items() if row.needs.encode() in path.read_bytes()}
    assert named == {LEVEL}, "of --level alone"
    symbols = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout.split("\n")
    shown = {line.split()[-1] for line in symbols if " T " in line}
    assert shown == {"RegisterCustomOps", *(f"onnxprune_ops_{what}" for what in ("stamp", "level", "memory"))}
    assert not [line for line in symbols if " U " in line and ("Py" in line or "NRT" in line)]


def test_a_package_that_carries_it_compiles_nothing(place: Path, tmp_path: Path) -> None:
    code = f"""
import numpy as np
from onnxprune.kernels import ahead, library
ahead.PACKAGED = {str(place)!r}
session = library.session({str(place / "model.onnx")!r})
x = np.fromfile({str(place / "x.bin")!r}, np.float32).reshape(1, *session.get_inputs()[0].shape[1:])
y = session.run(None, {{session.get_inputs()[0].name: x}})[0]
assert np.abs(y - np.load({str(place / "y.npy")!r})).max() < 1e-5
assert library.get_library_path() == {str(place / TARGETS[HERE].library)!r} and library.loaded()
"""
    environment = {"PATH": "/nowhere", "ONNXPRUNE_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr and not list(tmp_path.rglob("*.nbc")), "nothing was compiled"


MAGIC = {
    "linux-x86_64": b"\x7fELF\x02", "linux-aarch64": b"\x7fELF\x02", "android-arm64": b"\x7fELF\x02",
    "windows-x86_64": b"\x64\x86", "macos-x86_64": b"\xcf\xfa\xed\xfe\x07", "macos-arm64": b"\xcf\xfa\xed\xfe\x0c",
    "ios-arm64": b"\xcf\xfa\xed\xfe\x0c",
}  # fmt: skip
TEXT = """; driver
target datalayout = "e"
target triple = "x86_64-unknown-linux-gnu"
declare i8 @llvm.x86.atomic.sub.cc.i64(ptr, i64, i32)
define i64 @driver(ptr %p) {
  %ended = call i8 @llvm.x86.atomic.sub.cc.i64(ptr %p, i64 1, i32 4)
  %out = zext i8 %ended to i64
  ret i64 %out
}
"""


@pytest.mark.parametrize("target", list(TARGETS))
def test_objects_for_every_system(target: str) -> None:
    for level in TARGETS[target].levels:
        made = emitted(TEXT, TARGETS[target].triple, level)
        assert made.startswith(MAGIC[target]) and f"onnxprune_{level}".encode() in made
        words = link_words(target, [Path("x.o")], [level], Path("out"), [("Csr", "Conv")])
        assert f"-DHAS_{level.upper()}" in words and "-DHELD=4" in words


def test_kernels_that_operators_need() -> None:
    assert layouts_of(EVERY) == (1 << LAYOUTS) - 1 and layouts_of([("Csr", "Conv")]) == 1
    assert layouts_of([("Nm", "MatMul")]) != layouts_of([("Bsr", "MatMul")])


BAD = {
    "a system": ("--target amiga", "expected one of linux-x86_64"),
    "a level": ("--target linux-aarch64 --level v3", "linux-aarch64 has neon"),
    "nothing sparse": (f"--ops-from {MODELS / 'digits_vit.onnx'}", "there is no sparse operator in it"),
    "no file": ("--ops-from nowhere.onnx", "nowhere.onnx"),
    "no folder": (f"-o {MODELS / 'digits_vit.onnx'}/x", "cannot be written"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, call: Cli) -> None:
    words, line = BAD[name]
    done = call(f"export-library {words}")
    assert done.code == 2 and line in done.err and len(done.err.strip().splitlines()) == 1
