"""The C part and the compiled code: one source of numbers, memory that is never left, sanitizers."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.formats.values import round_values
from onnxprune.graph.arrays import Array
from onnxprune.kernels import activations, available, header, library, tables
from onnxprune.kernels.names import ACTIVATIONS, VALUES
from test_sparse_runtime import (
    PATTERNS,
    PRODUCTS,
    TILES,
    Form,
    arrays_of,
    close,
    dense,
    model_of,
    noise,
    run,
    session_of,
    weight,
)

pytestmark = pytest.mark.skipif(bool(available()), reason=available() or "sparse operators can run")

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "onnxprune" / "kernels" / "_entry.c"
Entry = Callable[[int, int, int, int, int], int]  # what, desc, call, task, scratch


# one source of numbers


def test_header_is_what_tables_say() -> None:
    """After a change of tables.py: `python -m onnxprune.kernels.header`, and build again."""
    assert header.PLACE.read_text(encoding="utf-8") == header.text()


def test_every_fault_has_a_text() -> None:
    assert list(tables.FAULTS) == list(range(tables.FAULT_KINDS))
    assert all(text.count("{}") <= 1 and "%" not in text for text in tables.FAULTS.values())


def test_every_activation_has_a_function() -> None:
    assert tuple(activations.FUNCTIONS) == ACTIVATIONS


def test_numbers_of_a_header_are_in_one_place() -> None:
    """What the header has, the C part does not define again."""
    names = {line.split()[1] for line in header.text().splitlines() if line.startswith("#define")}
    own = {line.split()[1].partition("(")[0] for line in SOURCE.read_text().splitlines() if line.startswith("#define")}
    assert not names & own


def test_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "stamp", lambda: "0123456789abcdef")
    with pytest.raises(library.LibraryMissing, match=r"_entry.* was built from another version .* reinstall"):
        library.get_library_path()


# memory that is never left


@contextmanager
def entry_of(around: Callable[[Entry], Entry]) -> Iterator[None]:
    """The compiled code, with something around it."""
    library.get_library_path()
    native, driver = import_module("onnxprune.kernels._entry"), import_module(library.DRIVER)
    compiled = ctypes.CFUNCTYPE(*[ctypes.c_int64] * 6)
    changed = compiled(around(compiled(driver.entry.address)))
    native.connect(ctypes.cast(changed, ctypes.c_void_p).value)
    try:
        yield
    finally:
        native.connect(driver.entry.address)


def field(table: int, number: int) -> int:
    """A field of desc or call."""
    return ctypes.c_int64.from_address(table + 8 * number).value


def poke(address: int, n: int) -> None:
    """Overwrite n bytes."""
    ctypes.memset(address, 0x11, n)


def packs_too_far(n: int) -> Callable[[Entry], Entry]:
    def around(real: Entry) -> Entry:
        def entry(what: int, desc: int, call: int, task: int, scratch: int) -> int:
            done = real(what, desc, call, task, scratch)
            if what == tables.FILL:
                poke(scratch + call, n)
            return done

        return entry

    return around


def has_less_room(real: Entry) -> Entry:
    """What BOUND claims is too little, so that FILL gives up."""

    def entry(what: int, desc: int, call: int, task: int, scratch: int) -> int:
        done = real(what, desc, call, task, scratch)
        return done // 8 if what == tables.BOUND else done

    return entry


def claims_more(real: Entry) -> Entry:
    def entry(what: int, desc: int, call: int, task: int, scratch: int) -> int:
        return call + 1 if what == tables.FILL else real(what, desc, call, task, scratch)

    return entry


def tasks_write_too_far(real: Entry) -> Entry:
    def entry(what: int, desc: int, call: int, task: int, scratch: int) -> int:
        done = real(what, desc, call, task, scratch)
        if what == tables.RUN:
            poke(scratch + field(call, tables.TASK_BYTES), 1)
        return done

    return entry


def x_is_too_large(real: Entry) -> Entry:
    def entry(what: int, desc: int, call: int, task: int, scratch: int) -> int:
        done = real(what, desc, call, task, scratch)
        if what == tables.PREPARE:
            poke(field(call, tables.SHARED) + field(call, tables.SHARED_BYTES), tables.GUARD)
        return done

    return entry


PACKED, TASK, SHARED = "the packed weight", "a task", "X as the kernels read it"
OVERRUNS: list[tuple[str, Callable[[Entry], Entry], str]] = [
    ("one byte", packs_too_far(1), PACKED),
    ("all of the guard", packs_too_far(tables.GUARD), PACKED),
    ("room", has_less_room, PACKED),
    ("claim", claims_more, PACKED),
    ("task", tasks_write_too_far, TASK),
    ("shared", x_is_too_large, SHARED),
]


@pytest.mark.parametrize(("around", "what"), [row[1:] for row in OVERRUNS], ids=[row[0] for row in OVERRUNS])
@pytest.mark.parametrize("form", [0.5, (2, 4), (0.5, 4, 4)])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_an_overrun_is_an_error(around: Callable[[Entry], Entry], what: str, form: Form, count: int) -> None:
    w, x = weight((130, 300), form), noise(count, 300)
    session = session_of(model_of(w, form))
    with entry_of(around):
        for _ in range(2):
            with pytest.raises(Exception, match=rf"onnxprune: node layer: internal error: {what} left its \d+ bytes"):
                run(session, x)
    close(run(session, x), dense(w, x))


class Layer(NamedTuple):
    """A layer as the C part describes it; valid as long as its session."""

    session: ort.InferenceSession
    desc: Array  # int64 (DESC_FIELDS,)
    sizes: dict[int, int]  # bytes of the arrays, by field


def described(w: Array, form: Form, product: str, values: str, group: int) -> Layer:
    """Make a session, and listen to what the C part asks to be checked."""
    found: list[Array] = []

    def around(real: Entry) -> Entry:
        def entry(what: int, desc: int, call: int, task: int, scratch: int) -> int:
            done = real(what, desc, call, task, scratch)
            found.append(np.array((ctypes.c_int64 * tables.DESC_FIELDS).from_address(desc)))
            return done

        return entry

    attributes: dict[str, Any] = {"group": group} if product == "Conv" else {}
    with entry_of(around):
        session = session_of(model_of(w, form, product, values=values, alpha=-0.5, **attributes))
    arrays = {name.replace("positions", "indices"): a for name, a in arrays_of(w, form, values, group).items()}
    sizes = {getattr(tables, name.upper()): a.nbytes for name, a in arrays.items()} | {tables.BIAS: 4 * len(w)}
    return Layer(session, found[0], sizes)


def layouts_of(d: Array) -> list[int]:
    """The packed forms that a layer may take."""
    few = d[tables.KIND] == tables.RIGHT
    out = [tables.SPMM, *([tables.GATHER, tables.EXPAND] if few else [])]
    if few and d[tables.FORMAT] == tables.NM and d[tables.BLOCK] == 4 and d[tables.N] <= 2:
        out.append(tables.PERMUTE)
    if few and d[tables.FORMAT] == tables.BSR and (d[tables.N] % 4 == 0 or d[tables.BLOCK] % 4 == 0):
        out.append(tables.TILES)
    return out


def space(most: int) -> tuple[Array, int]:
    """Bytes of GUARD_BYTE, and the place among them of a buffer of `most` bytes with as many and more after it."""
    memory = np.full(2 * most + 8192, tables.GUARD_BYTE, np.uint8)
    return memory, 4096 - memory.ctypes.data % tables.LINE


def pack_natively(layer: Layer, layout: int) -> Array:
    """The packed form; asserts that nothing but its bytes was written."""
    driver = import_module(library.DRIVER)
    desc = layer.desc.ctypes.data
    most = driver.entry.ctypes(tables.BOUND, desc, 0, layout, 0)
    memory, at = space(most)
    used = driver.entry.ctypes(tables.FILL, desc, most, layout, memory.ctypes.data + at)
    assert 0 < used <= most
    assert (memory[:at] == tables.GUARD_BYTE).all()
    assert (memory[at + used :] == tables.GUARD_BYTE).all()
    return memory[at : at + used]


@st.composite
def layers(draw: st.DrawFn, largest: int) -> Layer:
    """A weight of any shape, pattern and type of values; rows of CSR have densities of their own, and some -0.0."""
    product, form = draw(st.sampled_from(PRODUCTS)), draw(st.sampled_from([0.5, *PATTERNS, *TILES]))
    sizes = st.integers(1, largest)
    m, k, seed, group = draw(sizes), draw(sizes), draw(st.integers(0, 1000)), 1
    shape: tuple[int, ...] = (m, k)
    if product == "Conv":
        taps, group = draw(st.sampled_from([(1, 1), (3, 1), (2, 3)])), draw(st.integers(1, 3))
        shape = (m * group, 1 + k // 4, *taps)
    w = weight(shape, form, seed)
    if not isinstance(form, tuple):
        rng = np.random.default_rng(seed)
        densities = draw(st.lists(st.sampled_from([0.0, 0.02, 0.2, 0.5, 1.0]), min_size=1, max_size=8))
        w = noise(*shape, seed=seed)
        w[rng.random(shape) >= np.resize(densities, (len(w), *[1] * (w.ndim - 1)))] = 0
        w[rng.random(shape) < draw(st.sampled_from([0.0, 0.3]))] *= np.float32(0)
    values = draw(st.sampled_from(list(VALUES)))
    return described(round_values(w, values), form, product, values, group)


@settings(deadline=None, max_examples=100)
@given(layers(largest=150))
def test_packing_stays_within_its_bytes(layer: Layer) -> None:
    for layout in layouts_of(layer.desc):
        pack_natively(layer, layout)


def plain_pack(machine: str, l1: int) -> ModuleType:
    """pack.py for any machine, not compiled, with stored.py as its `reading`; arrays at addresses are to be given with
    `give_memory`."""
    from numba import config

    from onnxprune.kernels import addresses, pack, stored
    from onnxprune.kernels import loops as kernels

    of = kernels.MACHINES[machine]
    there: dict[str, Any] = {
        "ROWS": of.rows, "PANEL": 4 * of.lanes, "STRIDE": 4 * of.lanes * of.vectors, "L1": l1,
        "SHARING": kernels.CLASSES[of.rows],
    }  # fmt: skip
    with mock.patch.multiple(kernels, **there), mock.patch.object(config, "DISABLE_JIT", 1):
        reading = _plain(stored)
        with mock.patch.dict(sys.modules, {stored.__name__: reading}):
            module = _plain(pack)
    for name in ("aligned", "clear", "copy", "descending"):
        for part in (module, reading):
            setattr(part, name, getattr(addresses, name).py_func)
    reading.float_of = lambda bits: np.uint32(int(bits) & 0xFFFFFFFF).view(np.float32)  # type: ignore[attr-defined]
    module.reading = reading  # type: ignore[attr-defined]
    return module


def _plain(module: ModuleType) -> ModuleType:
    """A copy of a module, made as the settings are now."""
    assert module.__file__ is not None
    spec = util.spec_from_file_location(f"plain_{module.__name__}", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def give_memory(module: ModuleType, regions: dict[int, int]) -> None:
    """Only these addresses, with so many bytes each, may be read and written; anything else is an IndexError."""

    def arrays(dtype: type) -> Callable[[int, int], Array]:
        width = np.dtype(dtype).itemsize

        def at(address: int, n: int) -> Array:
            for start, size in regions.items():
                if start <= address < start + size:
                    count = min(int(n), (start + size - int(address)) // width)
                    data = (ctypes.c_char * (count * width)).from_address(int(address))
                    out: Array = np.frombuffer(memoryview(data), np.dtype(dtype))
                    return out
            return np.empty(0, dtype)  # every access fails

        return at

    types = {
        "f32": np.float32, "i64": np.int64, "i32": np.int32, "u32": np.uint32, "u16": np.uint16, "u8": np.uint8,
    }  # fmt: skip
    for name, dtype in types.items():
        for part in (module, module.reading):
            setattr(part, name, arrays(dtype))


def pack_plainly(module: ModuleType, layer: Layer, layout: int) -> Array:
    """The packed form, every access to memory checked."""
    most = int(module.bound(layer.desc, layout))
    memory, at = space(most)
    base = memory.ctypes.data + at
    regions = {int(layer.desc[place]): size for place, size in layer.sizes.items()} | {base: most}
    give_memory(module, regions)
    used = int(module.fill(layer.desc, layout, base, most))
    assert 0 < used <= most
    assert (memory[at + used :] == tables.GUARD_BYTE).all()
    return memory[at : at + used]


@pytest.mark.parametrize("machine", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("l1", [32 * 1024, 2048])
def test_packing_stays_within_its_bytes_on_every_machine(machine: str, l1: int) -> None:
    """l1: what blocks of K are cut for; small, so that small weights have several."""
    from onnxprune.kernels import loops as kernels

    module = plain_pack(machine, l1)
    same = machine == kernels.MACHINE.name and l1 == kernels.L1

    @settings(deadline=None, max_examples=15, database=None)
    @given(layers(largest=40))
    def law(layer: Layer) -> None:
        for layout in layouts_of(layer.desc):
            packed = pack_plainly(module, layer, layout)
            if same:  # so that the other machines mean something
                assert packed.tobytes() == pack_natively(layer, layout).tobytes()

    law()


def test_checked_memory_finds_an_overrun() -> None:
    from onnxprune.kernels import loops as kernels

    layer = described(weight((20, 30), 0.5), 0.5, "MatMul", "float32", 1)
    module = plain_pack(kernels.MACHINE.name, kernels.L1)
    fill, bound = module.fill, module.bound
    module.fill = lambda d, layout, base, room: fill(d, layout, base, 1 << 40)  # type: ignore[attr-defined]
    module.bound = lambda d, layout: bound(d, layout) // 8  # type: ignore[attr-defined]
    for layout in layouts_of(layer.desc):
        with pytest.raises(IndexError):
            pack_plainly(module, layer, layout)


# sanitizers

PLUGIN = """
import importlib.util, sys

PLACE = {place!r}
spec = importlib.util.spec_from_file_location("onnxprune.kernels._entry", PLACE)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["onnxprune.kernels._entry"] = module  # the package finds it here, instead of its own


def pytest_sessionfinish(session, exitstatus):
    from onnxprune.kernels import library

    assert library.get_library_path() == PLACE
"""
SANITIZED = (  # some tests of all that the C part does; an exception of onnxruntime takes a tenth of a second here
    "test_names_in_errors or test_many_ or test_nothing_comes or test_x_that or (test_batch and Conv) "
    "or (test_bad_ and edits0-) or (test_an_overrun and 40-form1 and (one or task))"
)


def sanitized(folder: Path) -> tuple[Path, str]:
    """The C part built with both sanitizers, and the libraries to load before Python; skips without them.

    libstdc++ is one of them, because the sanitizer looks for `throw`, of which onnxruntime makes use, when it starts.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc").split()[0], "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("there is no C compiler")
    if sys.platform != "linux":
        pytest.skip("a sanitizer is loaded before Python on Linux only")
    place = folder / "_entry.so"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
    shared = ["-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"]
    trial = folder / "trial.c"
    trial.write_text("int trial(void) { return 0; }\n")
    clang = "clang" in subprocess.check_output([compiler, "--version"], text=True)
    if clang:
        flags.append("-shared-libasan")
    tried = subprocess.run([compiler, *flags, *shared, str(trial), "-o", str(folder / "trial.so")], check=False)
    names = f"libclang_rt.asan-{os.uname().machine}.so" if clang else "libasan.so", "libstdc++.so.6"
    runtimes = [subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip() for name in names]
    if tried.returncode or not all(map(os.path.isabs, runtimes)):
        pytest.skip(f"{compiler} has no address and undefined behaviour sanitizers")
    subprocess.run([compiler, *flags, *shared, str(SOURCE), "-o", str(place)], check=True)
    return place, " ".join(runtimes)


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    place, runtime = sanitized(tmp_path)
    (tmp_path / "sanitized_entry.py").write_text(PLUGIN.format(place=str(place)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",  # Python keeps memory to its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [
        sys.executable, "-m", "pytest", "-p", "sanitized_entry", "-p", "no:cacheprovider", "-xs", "-n", "0",
        "-k", SANITIZED,
        str(ROOT / "tests" / "test_sparse_runtime.py"), str(ROOT / "tests" / "test_entry.py"),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    assert " passed" in done.stdout
