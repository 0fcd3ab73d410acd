"""Sparse operators beside dense onnxruntime, through real sessions: interleaved, medians, outputs compared.

    bench_sparse.py layers   MatMul with many, few and one token, one token by type of the stored values, Conv 1x1 and
                             3x3 of ResNet-50, tiny operators
    bench_sparse.py models   whole models: every layer sparse, and what `auto` chose, over dense
    bench_sparse.py int8     MatMul of quantized models in tiles of four inputs, over onnxruntime's int8; --no-amx for
                             both as on a CPU without matrix registers (Linux)

A ratio is dense time over sparse time: above 1 is faster. One-token products rotate over copies of the weight that
exceed the last-level cache. The first lines name the CPU and what it can do.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import platform
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, compose, helper, numpy_helper

import common
import onnxprune
from bert import bert
from onnxprune import formats
from onnxprune.formats import auto
from onnxprune.formats.patterns import BlockPattern
from onnxprune.formats.registry import FORMATS
from onnxprune.formats.rewrite import rewrite
from onnxprune.formats.values import encode, round_values
from onnxprune.graph.shapes import concrete_inputs
from onnxprune.kernels import register
from onnxprune.kernels.names import VALUES
from onnxprune.runtime.feeds import random_feeds
from onnxprune.runtime.session import session as runtime_session
from resnet50 import resnet50

LEVELS = ("2:4", 0.5, 0.7, 0.8, 0.9, 0.95)
MUST: dict[str, dict[Any, float]] = {
    "many": dict(zip(LEVELS, (1.55, 1.5, 2.1, 2.8, 4.7, 7.5), strict=True)),
    "one": dict(zip(LEVELS, (1.75, 2.0, 3.2, 3.6, 3.9, 6.0), strict=True)),
    "few": {0.9: 6.0},
    "conv1": {0.7: 2.0, 0.8: 2.7, 0.9: 4.3},
    "conv3": {0.7: 1.8, 0.8: 2.3, 0.9: 3.5},
    "int8": {0.7: 2.0, 0.9: 4.0},  # from 16 tokens on
}
INT8_TILES = ((1, 4), (4, 4), (16, 4), (32, 16))
INT8_CASES = ((3072, 768, 16), (3072, 768, 32), (3072, 768, 128), (768, 3072, 128), (4096, 4096, 128))
CONV1 = ((64, 256, 56), (256, 64, 56), (128, 512, 28), (512, 128, 28), (256, 1024, 14), (1024, 256, 14), (512, 2048, 7),
         (2048, 512, 7))  # fmt: skip
CONV3 = ((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7))
Array = np.ndarray[Any, np.dtype[Any]]


def mask(w: Array, level: float | str, axis: int = 1) -> Array:
    """The weight with its smallest entries zero: a fraction, or all but N of every M along an axis."""
    w = w.copy()
    if isinstance(level, str):
        n, m = (int(x) for x in level.split(":"))
        blocks = np.moveaxis(w, axis, -1)
        shape = blocks.shape
        blocks = np.ascontiguousarray(blocks).reshape(-1, m)
        np.put_along_axis(blocks, np.argsort(-np.abs(blocks), axis=1)[:, n:], 0, axis=1)
        return np.ascontiguousarray(np.moveaxis(blocks.reshape(shape), -1, axis))
    flat = np.abs(w).ravel()
    w.ravel()[np.argsort(flat)[: round(level * flat.size)]] = 0
    return w


def model(
    nodes: Sequence[Any], inputs: Mapping[str, Sequence[int]], outputs: Sequence[str], arrays: Mapping[str, Array]
) -> onnx.ModelProto:
    """A model of these nodes."""
    graph = helper.make_graph(
        list(nodes), "bench",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in arrays.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("onnxprune", 2)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def stored(
    w: Array, level: float | str, name: str, values: str = "float32"
) -> tuple[str, dict[str, Array], dict[str, Any]]:
    """Prefix of the operator, arrays, attributes."""
    conv = w.ndim == 4
    w, scale = encode(w, values)
    scaled, last = ("", {}) if scale is None else ("Scaled", {f"{name}_s": scale})
    if isinstance(level, str):
        n, m = (int(x) for x in level.split(":"))
        blocks = np.moveaxis(w, 1, -1).reshape(-1, w.shape[1]) if conv else w
        arrays = formats.pack_nm(np.ascontiguousarray(blocks), n, m)
        named = {f"{name}_{k}": a for k, a in zip(("v", "p"), arrays, strict=True)}
        return f"Nm{scaled}", named | last, {"n": n, "m": m}
    rows = formats.pack_csr(w.reshape(len(w), -1))
    return f"Csr{scaled}", {f"{name}_{k}": a for k, a in zip(("v", "i", "p"), rows, strict=True)} | last, {}


def products(
    weights: Sequence[Array], tokens: int, level: float | str | None, values: str = "float32"
) -> onnx.ModelProto:
    """y_i = x W_i^T for every weight `[M, K]`; dense where level is None."""
    nodes, arrays = [], {}
    for i, w in enumerate(weights):
        if level is None:
            arrays[f"w{i}"] = w.T
            nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
            continue
        prefix, more, attributes = stored(w, level, f"w{i}", values)
        arrays |= more | {f"b{i}": np.zeros(len(w), np.float32)}
        attributes |= {"domain": "onnxprune", "shape": w.shape, "alpha": 1.0, "name": f"n{i}"}
        nodes.append(helper.make_node(f"{prefix}MatMul", ["x", *more, f"b{i}"], [f"y{i}"], **attributes))
    return model(nodes, {"x": [tokens, weights[0].shape[1]]}, [f"y{i}" for i in range(len(weights))], arrays)


def convolution(w: Array, size: int, level: float | str | None) -> onnx.ModelProto:
    """One convolution of stride 1 that keeps the size."""
    k = w.shape[2]
    shared: dict[str, Any] = {"pads": [k // 2] * 4, "strides": [1, 1], "dilations": [1, 1], "group": 1}
    bias = np.zeros(len(w), np.float32)
    if level is None:
        node, arrays = helper.make_node("Conv", ["x", "w", "b"], ["y0"], **shared), {"w": w, "b": bias}
    else:
        prefix, more, attributes = stored(w, level, "w")
        arrays = more | {"b": bias}
        node = helper.make_node(
            f"{prefix}Conv", ["x", *more, "b"], ["y0"], domain="onnxprune", shape=w.shape, alpha=1.0, name="n",
            **shared, **attributes,
        )  # fmt: skip
    return model([node], {"x": [1, w.shape[1], size, size]}, ["y0"], arrays)


def session(m: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    """A session with our operators that leaves the cores when it rests."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    register(options)
    return ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bound(s: ort.InferenceSession, x: Array) -> Callable[[], None]:
    """A run without copies from and to numpy."""
    binding = s.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    for o in s.get_outputs():
        binding.bind_output(o.name)
    s.run_with_iobinding(binding)
    options = ort.RunOptions()
    return lambda: s.run_with_iobinding(binding, options)


def medians(runs: Mapping[Any, Callable[[], None]], seconds: float) -> dict[Any, float]:
    """Blocks of each in turn; median seconds of a run."""
    count: dict[Any, int] = {}
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        count[name] = max(2, min(200, int(0.01 / max(time.perf_counter() - start, 1e-7))))
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for name, run in runs.items():
            run()
            for _ in range(count[name]):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: float(np.median(t)) for name, t in times.items()}


def rivals(x: Array, w: Array) -> dict[str, Callable[[], None]]:
    """W X by the sparse libraries that are installed here, for W `[M, K]` as CSR and X `[K, tokens]`, one thread."""
    from scipy import sparse

    csr, dense = sparse.csr_matrix(w), np.ascontiguousarray(x.T)
    out: dict[str, Callable[[], None]] = {"scipy": lambda: csr @ dense}
    with contextlib.suppress(ImportError):
        from sparse_dot_mkl import dot_product_mkl

        out["MKL"] = lambda: dot_product_mkl(csr, dense)
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)
        parts = [torch.from_numpy(a.astype(np.int64)) for a in (csr.indptr, csr.indices)]
        a, b = torch.sparse_csr_tensor(*parts, torch.from_numpy(csr.data), size=w.shape), torch.from_numpy(dense)
        out["torch"] = lambda: a @ b
    return out


def machine() -> list[str]:
    """CPU, GFLOP/s of a dense product, GB/s of reading."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = names[0] if names else name
    from onnxprune.kernels.loops import MACHINE

    lines = [f"CPU: {name}, {os.cpu_count()} cores; kernels: {MACHINE.name}; onnxruntime {ort.__version__}"]
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((1536, 1536), np.float32), rng.standard_normal((512, 1536), np.float32)
    long = rng.standard_normal((8192, 8192), np.float32)
    for threads in (1, 2):
        t = medians({0: bound(session(products([w], 512, None), threads), x)}, 0.5)[0]
        g = medians({0: bound(session(products([long], 1, None), threads), long[:1].copy())}, 0.5)[0]
        lines.append(
            f"dense, {threads} thread(s): {2 * w.size * 512 / t / 1e9:.0f} GFLOP/s in a product of 512 tokens, "
            f"{long.nbytes / g / 1e9:.1f} GB/s in one of a single token"
        )
    return lines


Build = Callable[[Any], tuple[onnx.ModelProto, int]]


def case(
    kind: str,
    title: str,
    build: Build,
    x: Array,
    levels: Sequence[Any],
    threads: int,
    seconds: float,
    divide: int = 1,
) -> dict[str, Any]:
    """Dense and every level in turn; ratios."""
    row: dict[str, Any] = {"kind": kind, "case": title, "threads": threads}
    dense, _ = build(None)
    for level in levels:  # two sessions at a time: caches are shared, and memory is not endless
        sparse, _ = build(level)
        reference = _with_weights(dense, level)
        a, b = session(reference, threads), session(sparse, threads)
        y, z = a.run(None, {"x": x}), b.run(None, {"x": x})
        worst = max(float(np.abs(p - q).max() / np.abs(p).max()) for p, q in zip(y, z, strict=True))
        assert worst < 1e-4, (title, level, worst)
        t = medians({"dense": bound(a, x), "sparse": bound(b, x)}, seconds)
        row[f"{level}"] = t["dense"] / t["sparse"]
        row["dense_us"] = t["dense"] * 1e6 / divide
        del a, b
    return row


def _with_weights(dense: onnx.ModelProto, level: Any) -> onnx.ModelProto:
    """The dense model with masked weights, so that outputs can be compared (dense time does not depend on zeros)."""
    out = onnx.ModelProto()
    out.CopyFrom(dense)
    for t in out.graph.initializer:
        if t.name.startswith("w"):
            a = numpy_helper.to_array(t)
            a = mask(a.T, level).T if a.ndim == 2 else mask(a, level)
            t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(a), t.name))
    return out


def by_values(size: int, level: float | str, threads: int, seconds: float, cache: float) -> dict[str, Any]:
    """One token, weights that exceed the cache even as int8: dense and every type of values in turn; ratios."""
    rng = np.random.default_rng(0)
    density = 0.5 if isinstance(level, str) else 1 - level
    copies = max(2, min(16, int(np.ceil(2e6 * cache / (size * size * density * 1.25)))))
    weights = [mask(rng.standard_normal((size, size), np.float32), level) for _ in range(copies)]
    x = rng.standard_normal((1, size), np.float32)
    runs = {"dense": session(products(weights, 1, None), threads)}
    for values in VALUES:
        runs[values] = session(products(weights, 1, level, values), threads)
        expected = x @ round_values(weights[0], values).T
        worst = float(np.abs(runs[values].run(["y0"], {"x": x})[0] - expected).max() / np.abs(expected).max())
        assert worst < 1e-4, (level, values, worst)
    t = medians({name: bound(s, x) for name, s in runs.items()}, seconds)
    row: dict[str, Any] = {"kind": "values", "case": f"{size}x{size}, 1 token, {level}", "threads": threads}
    row |= {values: t["dense"] / t[values] for values in VALUES}
    return row | {"dense_us": t["dense"] * 1e6 / copies}


def layers(threads: Sequence[int], seconds: float, only: Sequence[str], cache: float) -> list[dict[str, Any]]:
    """All rows of the layer table."""
    rng = np.random.default_rng(0)
    rows = []

    def show(row: dict[str, Any]) -> None:
        rows.append(row)
        ratios = "  ".join(f"{k}: {v:.2f}" for k, v in row.items() if isinstance(v, float) and k != "dense_us")
        print(
            f"{row['kind']:6} {row['case']:28} {row['threads']} thr  dense {row['dense_us']:8.0f} us  {ratios}",
            flush=True,
        )

    def matmul(kind: str, m: int, k: int, tokens: int, levels: Sequence[Any], n: int, copies: int) -> None:
        x = rng.standard_normal((tokens, k), np.float32)
        w = [rng.standard_normal((m, k), np.float32) for _ in range(copies)]
        build = lambda level: (  # noqa: E731
            products(w if level is None else [mask(v, level) for v in w], tokens, level),
            copies,
        )
        show(case(kind, f"{m}x{k}, {tokens} tokens", build, x, levels, n, seconds, copies))

    if "rivals" in only:
        for m, k, tokens in ((3072, 768, 128), (4096, 4096, 1)):
            x, w = rng.standard_normal((tokens, k), np.float32), rng.standard_normal((m, k), np.float32)
            for level in (0.5, 0.7, 0.9):
                sparse = mask(w, level)
                ours = bound(session(products([sparse], tokens, level), 1), x)
                t = medians({"ours": ours} | rivals(x, sparse), seconds)
                others = "  ".join(f"{name}: {t[name] / t['ours']:.1f}" for name in t if name != "ours")
                print(f"rivals {m}x{k}, {tokens} tokens, {level:.0%}: their time over ours  {others}", flush=True)
    for n in threads:
        if "many" in only:
            for m, k, tokens in (
                (3072, 768, 64),
                (3072, 768, 128),
                (768, 3072, 128),
                (3072, 768, 384),
                (4096, 4096, 128),
            ):
                matmul("many", m, k, tokens, LEVELS, n, 1)
        if "few" in only:
            for tokens in (2, 4, 8, 16, 32):
                matmul("few", 3072, 768, tokens, ("2:4", 0.7, 0.9), n, 8)
        if "one" in only:
            for zeros in LEVELS:
                part = 0.56 if isinstance(zeros, str) else max(1.1 * (1 - zeros), 0.05)
                copies = max(2, min(16, int(np.ceil(2 * cache / (64 * part)))))
                matmul("one", 4096, 4096, 1, (zeros,), n, copies)
        if "values" in only:
            for zeros in ("2:4", 0.8):
                show(by_values(4096, zeros, n, 5 * seconds, cache))
        for kind, shapes, k in (("conv1", CONV1, 1), ("conv3", CONV3, 3)):
            if kind in only:
                for c, m, size in shapes:
                    x = rng.standard_normal((1, c, size, size), np.float32)
                    w = rng.standard_normal((m, c, k, k), np.float32)
                    build = lambda level, w=w, size=size: (  # noqa: E731
                        convolution(w if level is None else mask(w, level), size, level),
                        1,
                    )
                    show(case(kind, f"{c}->{m} at {size}x{size}", build, x, ("2:4", 0.5, 0.7, 0.8, 0.9), n, seconds))
        if "tiny" in only:
            w = rng.standard_normal((8, 8), np.float32)
            x = rng.standard_normal((1, 8), np.float32)
            a, b = (bound(session(products([w] * 50, 1, level), n), x) for level in (None, 0.0))
            t = medians({"dense": a, "sparse": b}, seconds)
            print(
                f"tiny   8x8, 1 token: dense {t['dense'] / 50 * 1e6:.2f} us a call, sparse "
                f"{t['sparse'] / 50 * 1e6:.2f} us"
            )
    return rows


def quantized(w: Array, tokens: int) -> onnx.ModelProto:
    """uint8 `[tokens, K]` times int8 `[M, K]` to uint8, with a scale for every output, as a QDQ model."""
    m, k = w.shape
    spread = 0.02 * 0.01 * 5000 * np.sqrt(np.count_nonzero(w) / m + 1)
    scalars = {"xs": np.float32(0.02), "xz": np.uint8(128), "ys": np.float32(spread / 64), "yz": np.uint8(128)}
    arrays = {"w": w.T, "ws": np.full(m, 0.01, np.float32), "wz": np.zeros(m, np.int8), **scalars}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=1),
        helper.make_node("MatMul", ["xf", "wf"], ["yf"], name="n"),
        helper.make_node("QuantizeLinear", ["yf", "ys", "yz"], ["y"]),
    ]
    out = model(nodes, {"x": [tokens, k]}, ["y"], {name: np.asarray(a) for name, a in arrays.items()})
    for value in (*out.graph.input, *out.graph.output):
        value.type.tensor_type.elem_type = TensorProto.UINT8
    return out


def side_by_side(parts: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One model of several that read the same x."""
    out, *others = (
        compose.add_prefix(m, f"{i}_", rename_inputs=False, rename_functions=False) for i, m in enumerate(parts)
    )
    for other in others:
        for field in ("node", "output", "initializer"):
            getattr(out.graph, field).extend(getattr(other.graph, field))
    return out


def int8(threads: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Products in int8 over copies that exceed the second-level cache; ratios over onnxruntime's own, and the share of
    outputs that are a quantum off."""
    rng, rows = np.random.default_rng(0), []
    for n, (m, k, tokens), tile in itertools.product(threads, INT8_CASES, INT8_TILES):
        row: dict[str, Any] = {"kind": "int8", "case": f"{m}x{k}, {tokens} tokens, {tile[0]}x{tile[1]}", "threads": n}
        copies, x = 2 if m == k else 8, rng.integers(0, 256, (tokens, k)).astype(np.uint8)
        for level in MUST["int8"]:
            dense = []
            for _ in range(copies):
                keep = rng.random((m // tile[0], k // tile[1])) >= level
                w = rng.integers(-127, 128, (m, k)) * keep.repeat(tile[0], 0).repeat(tile[1], 1)
                dense.append(quantized(w.astype(np.int8), tokens))
            packing = {"n": FORMATS["bsr"].packing(BlockPattern(*tile))}
            sparse = [onnxprune.to_proto(rewrite(onnxprune.load(d), packing)[0]) for d in dense]
            a, b = (session(side_by_side(parts), n) for parts in (dense, sparse))
            off = [np.abs(y.astype(int) - z) for y, z in zip(a.run(None, {"x": x}), b.run(None, {"x": x}), strict=True)]
            assert max(d.max() for d in off) <= 1, (row["case"], level)
            t = medians({"dense": bound(a, x), "sparse": bound(b, x)}, seconds)
            row |= {f"{level}": t["dense"] / t["sparse"], "dense_us": t["dense"] * 1e6 / copies}
            row["off"] = max(row.get("off", 0.0), float(np.mean([d.mean() for d in off])))
            del a, b
        rows.append(row)
        short = [level for level, ratio in MUST["int8"].items() if row[f"{level}"] < ratio]
        print(
            f"int8 {row['case']:30} {n} thr  dense {row['dense_us']:6.0f} us  0.7: {row['0.7']:.2f}  0.9: "
            f"{row['0.9']:.2f}  a quantum off: {row['off']:.4%}{'  below ' + str(short) if short else ''}",
            flush=True,
        )
    return rows


def forbid_amx() -> None:
    """Let the system refuse matrix registers to this process, as a CPU without them does (Linux on x86-64)."""
    libc, word = ctypes.CDLL(None, use_errno=True), struct.Struct("HBBI")
    program = b"".join(
        word.pack(*line)  # number of the call; arch_prctl; its first argument; ARCH_REQ_XCOMP_PERM; no; yes
        for line in (
            (0x20, 0, 0, 0), (0x15, 0, 3, 158), (0x20, 0, 0, 16), (0x15, 0, 1, 0x1023), (0x06, 0, 0, 0x00050001),
            (0x06, 0, 0, 0x7FFF0000),
        )
    )  # fmt: skip
    held = ctypes.create_string_buffer(program)
    filters = struct.pack("HxxxxxxQ", len(program) // word.size, ctypes.addressof(held))
    no_new_privileges, seccomp, filtering = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(seccomp, filtering, filters):
        raise OSError(ctypes.get_errno(), "--no-amx: the system does not filter calls here")


ASSETS = (
    "mobilenetv1_075_192_imagenet", "mobilenetv2_100_224_imagenet", "squeezenet10_imagenet_fp32", "resnet56_cifar10",
    "kwt1_speechcommands", "yolox_nano", "magika_v3_3",
)  # fmt: skip
BUILT: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": lambda: resnet50(folded_bn=True, batch=1),
    "bert_base": bert,
}


def models(args: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    """Whole models: every layer sparse, and `auto`; time and size over dense."""
    names = args.models.split(",") if args.models else [*ASSETS, *BUILT]
    rows = []
    for name in names:
        source = BUILT[name]() if name in BUILT else common.assets(args.assets) / "models" / f"{name}.onnx"
        for level in args.levels.split(","):
            options: dict[str, Any] = {"pattern": level} if ":" in level else {"sparsity": float(level)}
            base = onnxprune.sparsify(source, **options, format="dense", measure=False, verify=False)
            every = onnxprune.sparsify(
                source, **options, format="nm" if ":" in level else "csr", measure=False, verify=False
            )
            chosen = onnxprune.sparsify(source, **options, format="auto", measure=False, threads=threads)
            feeds = _feeds(base.analysis)
            row: dict[str, Any] = {"model": name, "level": level, "threads": threads}
            size = len(onnxprune.to_proto(base.model).SerializeToString())
            for what, result in (("every", every), ("auto", chosen)):
                # sessions of one file differ by a per cent: three pairs, the middle one counts
                ratios = [auto.measure(base.model, result.model, feeds, threads, args.seconds) for _ in range(3)]
                row[what] = float(np.median(ratios))
                row[f"{what}_bytes"] = len(onnxprune.to_proto(result.model).SerializeToString()) / size
            layers = chosen.report.sparsity.layers if chosen.report.sparsity else ()
            row["layers"] = len(layers)
            row["sparse"] = sum(x.format != "dense" for x in layers)
            rows.append(row)
            print(
                f"{name:30} {level:5} {threads} thr  every layer {row['every']:5.2f} ({row['every_bytes']:4.0%} "
                f"of the bytes)  auto {row['auto']:5.2f} ({row['auto_bytes']:4.0%}), {row['sparse']} of "
                f"{row['layers']} layers",
                flush=True,
            )
    slower = [r for r in rows if r["auto"] < 0.98]
    print(f"{len(rows)} rows, {len(slower)} with auto below 0.98 {[(r['model'], r['level']) for r in slower]}")
    return rows


def _feeds(analysis: onnxprune.Analysis) -> dict[str, Any]:
    for shapes in concrete_inputs(analysis.model, None):
        feeds = random_feeds(analysis.model, analysis.coupling.shapes, shapes)
        with contextlib.suppress(Exception):  # the next guess may fit
            with runtime_session(analysis.model) as s:
                s.run(None, feeds)
            return feeds
    raise ValueError("no inputs found with which it runs")


def main() -> None:
    """Print the tables."""
    p = common.parser(__doc__)
    p.add_argument("what", nargs="?", choices=("layers", "models", "int8"), default="layers")
    p.add_argument("--threads", default="1,2", help="intra-op threads, comma-separated")
    p.add_argument("--only", default="many,few,one,values,conv1,conv3,tiny,rivals", help="kinds of layers")
    p.add_argument("--models", default="", help="names of models, comma-separated")
    p.add_argument("--levels", default=",".join(str(x) for x in LEVELS), help="sparsities of whole models")
    p.add_argument("--seconds", type=float, default=0.4, help="for each pair of sessions")
    p.add_argument("--cache", type=float, default=32, help="MB of last-level cache")
    p.add_argument("--no-amx", action="store_true", help="without matrix registers")
    args = p.parse_args()
    if args.no_amx:
        forbid_amx()
    print("\n".join(machine()), flush=True)
    threads = [int(t) for t in args.threads.split(",")]
    if args.what == "layers":
        rows = layers(threads, args.seconds, args.only.split(","), args.cache)
    elif args.what == "int8":
        rows = int8(threads, args.seconds)
    else:
        rows = [row for n in threads for row in models(args, n)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
