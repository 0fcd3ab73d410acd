"""Kernels compiled ahead of time, for CPUs that need not be at hand: objects, and the library that they make.

The driver is compiled by numba in a process of its own, for a level of CPU (NUMBA_CPU_NAME), hardly optimized, so that
its LLVM IR says nothing of the machine at hand; that text gets the triple of the target, and is optimized and emitted
for it. A level whose loops use instructions of its own (v3, v4, vnni of x86-64) has a text of its own; all others are
made of the portable one. `_library.c` chooses between levels when it is loaded.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune.errors import InternalError
from onnxprune.kernels.names import PRODUCTS, STORAGES
from onnxprune.kernels.tables import EXPAND, GATHER, LAYOUTS, PERMUTE, QUADS, SPMM, SQUARES, TILES

HERE = Path(__file__).parent
PACKAGED = "lib"  # the folder beside this file in which a wheel carries the library of its system
PORTABLE = "x86-64-v2"  # the CPU of the text that objects for any CPU are made of
SYMBOL = "onnxprune_"  # and the name of a level: what the object has
OPTIMIZED = 3
# the end of a count of references, as code generation for x86 leaves it in the text; condition 4 is "became zero"
COUNTED = "llvm.x86.atomic.sub.cc.i64"
COUNTS = """
define internal i8 @onnxprune.counted(ptr %p, i64 %v, i32 %condition) {
  %old = atomicrmw sub ptr %p, i64 %v seq_cst
  %zero = icmp eq i64 %old, %v
  %out = zext i1 %zero to i8
  ret i8 %out
}
"""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Level:
    """A level of CPU. source: the CPU, with features, whose text it is made of; cpu, features: as LLVM has them; needs:
    for people."""

    source: str
    cpu: str
    features: str
    needs: str


LEVELS = {
    "v2": Level(PORTABLE, "x86-64-v2", "", "x86-64-v2 (SSE 4.2)"),
    "v3": Level("x86-64-v3", "x86-64-v3", "", "x86-64-v3 (AVX2)"),
    "v4": Level("x86-64-v4", "x86-64-v4", "", "x86-64-v4 (AVX-512)"),
    "vnni": Level("x86-64-v4,+avx512vnni", "x86-64-v4", "+avx512vnni", "x86-64-v4 with VNNI"),
    "neon": Level(PORTABLE, "generic", "+neon", "ARMv8 (NEON)"),
}
X86 = ("v2", "v3", "v4", "vnni")


@dataclass(frozen=True)
class Target:
    """A system. triple: as LLVM names it; zig: as the zig compiler does, "" where its maker's own must link; library:
    the file; compiler: the command that links, for people."""

    triple: str
    levels: tuple[str, ...]
    zig: str
    library: str
    compiler: str = "cc"


NDK, XCODE = (
    "$NDK/toolchains/llvm/prebuilt/*/bin/aarch64-linux-android24-clang",
    "xcrun -sdk iphoneos clang -arch arm64",
)
TARGETS = {
    "linux-x86_64": Target("x86_64-unknown-linux-gnu", X86, "x86_64-linux-gnu.2.17", "libonnxprune_ops.so"),
    "linux-aarch64": Target("aarch64-unknown-linux-gnu", ("neon",), "aarch64-linux-gnu.2.17", "libonnxprune_ops.so"),
    "windows-x86_64": Target("x86_64-pc-windows-gnu", X86, "x86_64-windows-gnu", "onnxprune_ops.dll"),
    "macos-x86_64": Target("x86_64-apple-macosx11.0.0", X86, "x86_64-macos.11.0", "libonnxprune_ops.dylib"),
    "macos-arm64": Target("arm64-apple-macosx11.0.0", ("neon",), "aarch64-macos.11.0", "libonnxprune_ops.dylib"),
    "android-arm64": Target("aarch64-unknown-linux-android24", ("neon",), "", "libonnxprune_ops.so", NDK),
    "ios-arm64": Target("arm64-apple-ios15.0.0", ("neon",), "", "libonnxprune_ops.dylib", XCODE),
}


def host() -> str:
    """The target of this machine, "" where there is none."""
    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(sys.platform, sys.platform)
    machine = platform.machine().lower()
    name = f"{system}-{'x86_64' if machine == 'amd64' else machine}"
    return name if name in TARGETS else ""


# what is compiled

Operator = tuple[str, str]  # of STORAGES, of PRODUCTS
EVERY = tuple((storage, product) for storage in STORAGES for product in PRODUCTS)


OF_STORAGE = {"Nm": {PERMUTE}, "Bsr": {TILES, QUADS, SQUARES}}  # layouts of products with few tokens, or of int8


def layouts_of(operators: Iterable[Operator]) -> int:
    """Layouts whose kernels these operators may choose (driver.choose), as bits."""
    kept = {SPMM}
    for storage, product in operators:
        if product == "MatMul":
            kept |= {EXPAND, GATHER} | OF_STORAGE.get(storage, set())
    return sum(1 << layout for layout in kept)


def text_of(cpu: str, kept: int = (1 << LAYOUTS) - 1) -> str:
    """The driver as LLVM IR for a CPU, with features behind a comma, compiled in a process of its own. kept: as of
    `driver.KEPT`."""
    name, _, features = cpu.partition(",")
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        out = Path(folder) / "driver.ll"
        environment = {
            **os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_OPT": "1",
            "NUMBA_LOOP_VECTORIZE": "0", "NUMBA_SLP_VECTORIZE": "0", "NUMBA_DISABLE_JIT": "0",
            "NUMBA_CACHE_DIR": folder, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }  # fmt: skip
        words = [sys.executable, "-m", "onnxprune.kernels.ahead", str(out), str(kept)]
        done = subprocess.run(words, check=False, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise InternalError(f"the kernels were not compiled for {cpu}: {' '.join(done.stderr.split()[-40:])}")
        return out.read_text(encoding="utf-8")


def write_text(out: Path, kept: int) -> None:
    """Compile the driver for the CPU that the environment names, and write its LLVM IR, its name first."""
    from numba import njit, types

    from onnxprune.kernels import driver

    driver.KEPT = kept
    signature = types.int64(*[types.int64] * 5)
    plain = njit(signature, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
    compiled = plain(driver.dispatch.py_func)
    made = compiled.overloads[compiled.signatures[0]]
    out.write_text(f"; {made.fndesc.llvm_func_name}\n{made.library.get_llvm_str()}", encoding="utf-8")


def emitted(text: str, triple: str, name: str) -> bytes:
    """An object file of the driver for a level, which has one function that others see."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    level, symbol, entry = LEVELS[name], SYMBOL + name, re.match(r"; (\S+)\n", text)
    assert entry is not None, "the first line names the driver"
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=level.cpu, features=level.features, opt=OPTIMIZED, reloc="pic", codemodel="default"
    )
    retargeted = as_for(text.replace(entry[1], symbol), triple, str(machine.target_data))
    module = llvm.parse_assembly(retargeted)
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != symbol:
            value.linkage = "internal"
    shown = module.get_function(symbol)
    shown.linkage, shown.visibility = "external", "hidden"
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=OPTIMIZED))
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def as_for(text: str, triple: str, layout: str) -> str:
    """The text for another triple and layout of data."""
    text = re.sub(r"^target triple = .*$", f'target triple = "{triple}"', text, flags=re.M)
    text = re.sub(r"^target datalayout = .*$", f'target datalayout = "{layout}"', text, flags=re.M)
    if f"@{COUNTED}(" not in text:
        return text
    text = re.sub(rf"^declare .*@{re.escape(COUNTED)}\(.*$", "", text, flags=re.M)
    return text.replace(f"@{COUNTED}(", "@onnxprune.counted(") + COUNTS


# the library


@dataclass(frozen=True)
class Made:
    """What was made for a target. library: None where nothing here links for it; objects; command: that links."""

    target: str
    library: Path | None
    objects: tuple[Path, ...]
    command: str


def library(
    name: str, folder: Path, operators: Collection[Operator] = EVERY, levels: Sequence[str] = (), *,
    tell: Tell = lambda line: None, texts: dict[str, str] | None = None,
) -> Made:  # fmt: skip
    """Make the library of a target in a folder; where nothing links for it, its objects, with the command for that.

    operators: that it has; levels: of CPU, all of the target's by default; tell: gets a line before each is compiled;
    texts: that are there already, by CPU, and get more. Raises `InternalError` with what the compiler says.
    """
    target, texts = TARGETS[name], {} if texts is None else texts
    levels, kept, made = levels or target.levels, layouts_of(operators), list[Path]()
    cc = linker(name)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as temporary:
        place = Path(temporary) if cc else folder
        for level in levels:
            tell(f"compiling for {name}, {LEVELS[level].needs}")
            source = LEVELS[level].source
            if source not in texts:
                texts[source] = text_of(source, kept)
            made.append(place / f"{SYMBOL}{level}.{'obj' if 'windows' in target.triple else 'o'}")
            made[-1].write_bytes(emitted(texts[source], target.triple, level))
        words = link_words(name, made, levels, folder / target.library, operators)
        if not cc:
            for part in ("_library.c", "_ops.h", "_tables.h"):
                shutil.copyfile(HERE / part, folder / part)
            local = link_words(name, [Path(m.name) for m in made], levels, Path(target.library), operators, Path())
            return Made(name, None, tuple(made), f"{target.compiler} {shlex.join(local)}")
        done = subprocess.run([*cc, *words], check=False, capture_output=True, text=True)
        if done.returncode:
            raise InternalError(f"{target.library} was not linked for {name}: {done.stderr.strip()[-400:]}")
    return Made(name, folder / target.library, (), "")


def linker(name: str) -> list[str]:
    """The words of a compiler here that links for a target, [] where there is none: zig, which links for other systems
    and against an old Linux, or that of this one."""
    if TARGETS[name].zig and importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[name].zig]
    return ["cc"] if name == host() and shutil.which("cc") else []


def link_words(
    name: str, made: Sequence[Path], levels: Sequence[str], out: Path, operators: Collection[Operator],
    sources: Path = HERE,
) -> list[str]:  # fmt: skip
    """What the compiler is told: the C part, what is held, objects."""
    target, held = TARGETS[name], -1
    if set(operators) != set(EVERY):
        held = sum(1 << (STORAGES.index(s) * len(PRODUCTS) + PRODUCTS.index(p)) for s, p in set(operators))
    needs = ", ".join(LEVELS[level].needs for level in levels)
    words = ["-std=c11", "-O2", "-shared", "-fvisibility=hidden", "-o", str(out), f"-DHELD={held}"]
    words += [*(f"-DHAS_{level.upper()}" for level in levels), f'-DLEVELS="{needs}"']
    words += [str(sources / "_library.c"), *map(str, made)]
    words += [] if "windows" in target.triple else ["-fPIC", "-lm"]
    words += [f"-Wl,-install_name,@rpath/{target.library}"] if "apple" in target.triple else []
    return words + (["-D_GNU_SOURCE", "-pthread", "-s"] if "linux-gnu" in target.triple else [])


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), int(sys.argv[2]))
