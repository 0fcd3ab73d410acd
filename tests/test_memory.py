"""Memory is bounded by declared sizes: small files that would ask for gigabytes if anything in them were evaluated.

All rows are analysed, and their units scored, in one process whose memory is limited; the peak of each is looked at.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

MOST = 450e6  # bytes that a row may take beyond what the process has
TIME = 10  # seconds of processor time of one row
N = 1 << 10
LONG = 1 << 40


def model(
    nodes: str, x: str = "float[1, 4]", y: str = "float[a, b]", opset: int = 18, **weights: Any
) -> onnx.ModelProto:
    """nodes: the lines of a graph from x to y; weights: arrays by name."""
    imports = f'["" : {opset}, "com.microsoft" : 1]'
    text = f"<ir_version: 8, opset_import: {imports}> main ({x} x) => ({y} y) {{ {nodes} }}"
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return proto


def vectors(*axes: int, n: int = N, rank: int = 3, dtype: Any = np.float32) -> dict[str, Any]:
    """A vector of n along each of the axes."""
    return {
        name: np.ones([n if k == axis else 1 for k in range(rank)], dtype)
        for name, axis in zip("abc", axes, strict=False)
    }


def doubled(op: str, times: int, end: str = "") -> str:
    """A constant that has doubled so many times, and what reads it."""
    return "".join(f"d{k + 1} = {op} (d{k}, d{k}) " for k in range(times)) + (end or f"y = Add (x, d{times})")


def repeated(count: int) -> str:
    return f"y = Sum ({', '.join(['x'] * count)})"


def sparse() -> onnx.ModelProto:
    proto = model("y = MatMul (x, s)")
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [3])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 1 << 27]))
    return proto


def function() -> onnx.ModelProto:
    """An attribute of 100 kB, in a function that is called 10000 times."""
    node = helper.make_node("Scaler", ["v"], ["w"], domain="ai.onnx.ml", scale=[1.0] * 25000)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    inner = helper.make_function("own", "one", ["v"], ["w"], [node], opsets)
    calls = [helper.make_node("one", [f"v{k}"], [f"v{k + 1}"], domain="own") for k in range(10000)]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("v0", "v10000")]
    graph = helper.make_graph(calls, "main", infos[:1], infos[1:])
    return helper.make_model(graph, functions=[inner], opset_imports=[*opsets, helper.make_opsetid("own", 1)])


def chain() -> onnx.ModelProto:
    """Values of 4096 elements, 3000 of them."""
    nodes = [helper.make_node("Identity", [f"k{i}"], [f"k{i + 1}"]) for i in range(3000)]
    nodes.append(helper.make_node("Add", ["x", "k3000"], ["y"]))
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4096]) for n in "xy"]
    stored = [numpy_helper.from_array(np.ones(4096, np.float32), "k0")]
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(helper.make_graph(nodes, "main", infos[:1], infos[1:], stored), opset_imports=opsets)


I64 = {"dtype": np.int64}
ROWS: dict[str, Callable[[], onnx.ModelProto]] = {
    # broadcasting
    "Sum": lambda: model("s = Sum (a, b, c) r = ReduceMax<keepdims = 0> (s) y = Add (x, r)", **vectors(0, 1, 2)),
    "Add": lambda: model("t = Add (a, b) s = Add (t, c) r = ReduceSum<keepdims = 0> (s) y = Mul (x, r)",
                         **vectors(0, 1, 2)),
    "Where": lambda: model("k = Greater (a, b) s = Where (k, b, c) r = ReduceSum<keepdims = 0> (s) y = Mul (x, r)",
                           **vectors(0, 1, 2)),
    "Max": lambda: model("s = Max (a, b, c) r = ReduceMax<keepdims = 0> (s) y = Mul (x, r)", **vectors(0, 1, 2)),
    "weight": lambda: model("s = Mul (a, b) t = Mul (s, c) f = Reshape (t, k) y = MatMul (x, f)",
                            k=np.array([4, -1]), **vectors(0, 1, 2)),
    "scaled": lambda: model("s = Mul (a, b) t = Mul (s, c) r = ReduceMax<keepdims = 0> (t) v = Mul (w, r) "
                            "h = MatMul (x, v) z = Relu (h) y = MatMul (z, u)", y="float[1, 4]",
                            w=np.ones((4, 8), np.float32), u=np.ones((8, 4), np.float32), **vectors(0, 1, 2)),
    "elementwise, Equal": lambda: model("e = Equal (a, b) f = Cast<to = 1> (e) s = Add (f, c) "
                                        "r = ReduceMax<keepdims = 0> (s) y = Add (x, r)", **vectors(0, 1, 2)),
    "Pow": lambda: model("t = Pow (a, b) s = Pow (t, c) r = ReduceMax<keepdims = 0> (s) y = Add (x, r)",
                         **vectors(0, 1, 2)),
    # products
    "MatMul": lambda: model("t = MatMul (a, b) s = Add (t, c) r = ReduceMax<keepdims = 0> (s) y = Add (x, r)",
                            **vectors(1, 2, 0)),
    "Gemm": lambda: model("t = Gemm (a, b) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                          **vectors(0, 1, rank=2, n=1 << 15)),
    "FusedMatMul": lambda: model("t = com.microsoft.FusedMatMul (a, b) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                                 **vectors(0, 1, rank=2, n=1 << 15)),
    "Einsum": lambda: model('t = Einsum<equation = "i,j,k->"> (a, b, c) y = Add (x, t)',
                            **vectors(0, 0, 0, rank=1, n=1 << 14)),
    "Conv": lambda: model("t = Conv<pads = [65535, 65535]> (k, k) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                          k=np.ones((1, 1, 1 << 16), np.float32)),
    "ConvTranspose": lambda: model("t = ConvTranspose<strides = [1000000000], pads = [500000000, 500000000]> (k, k) "
                                   "r = ReduceMax<keepdims = 0> (t) y = Add (x, r)", k=np.ones((1, 1, 4), np.float32)),
    "AveragePool": lambda: model("t = AveragePool<kernel_shape = [1000000000], strides = [1000000000], "
                                 "pads = [999999999, 999999999]> (k) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                                 k=np.ones((1, 1, 4), np.float32)),
    # sizes that are values
    "ConstantOfShape": lambda: model("t = ConstantOfShape (s) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                                     s=np.array([LONG])),
    "ConstantOfShape, product": lambda: model("t = ConstantOfShape (s) k = Size (t) f = Cast<to = 1> (k) "
                                              "y = Add (x, f)", s=np.array([LONG, LONG, LONG])),
    "Expand": lambda: model("t = Expand (k, s) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                            k=np.ones(1, np.float32), s=np.array([LONG])),
    "Tile": lambda: model("t = Tile (k, s) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                          k=np.ones(4, np.float32), s=np.array([LONG])),
    "Tile by zero": lambda: model("t = Tile (k, s) r = ReduceSum<keepdims = 0> (t) y = Add (x, r)",
                                  k=np.ones((4, 4), np.float32), s=np.array([1 << 28, 0])),
    "Tile beyond 64 bits": lambda: model("t = Tile (k, s) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                                         k=np.ones(4, np.float32), s=np.array([(1 << 62) + 1])),
    "Range": lambda: model("t = Range (p, q, d) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                           p=np.float32(0), q=np.float32(1e10), d=np.float32(1)),
    "Range of integers": lambda: model("t = Range (p, q, d) k = ReduceMax<keepdims = 0> (t) f = Cast<to = 1> (k) "
                                       "y = Add (x, f)", p=np.int64(0), q=np.int64(LONG), d=np.int64(1)),
    "Resize": lambda: model("t = Resize (k, , , s) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                            k=np.ones((1, 1, 2, 2), np.float32), s=np.array([1, 1, 1 << 16, 1 << 16])),
    "Upsample": lambda: model("t = Upsample (k, s) y = Add (x, t)", x="float[1, 1, 1, 1]", y="float[a, b, c, d]",
                              opset=9, k=np.ones((1, 1, 2, 2), np.float32), s=np.array([1, 1, 5e4, 5e4], np.float32)),
    "Pad": lambda: model("t = Pad (k, p) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                         k=np.ones(2, np.float32), p=np.array([LONG, 0])),
    "OneHot": lambda: model("t = OneHot (i, d, v) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                            i=np.arange(4096), d=np.int64(1 << 18), v=np.array([0, 1], np.float32)),
    "EyeLike": lambda: model("t = ConstantOfShape (s) e = EyeLike<dtype = 1> (t) r = ReduceMax<keepdims = 0> (e) "
                             "y = Add (x, r)", s=np.array([1 << 15, 1 << 15])),
    "Reshape": lambda: model("t = ConstantOfShape (s) u = Reshape (t, k) r = ReduceMax<keepdims = 0> (u) "
                             "y = Add (x, r)", s=np.array([1 << 15, 1 << 15]), k=np.array([1 << 14, 1 << 16])),
    "Trilu": lambda: model("s = Add (a, b) t = Trilu (s) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                           **vectors(0, 1, rank=2, n=1 << 15)),
    # selections
    "Gather": lambda: model("t = Gather (k, i) u = Gather<axis = 1> (t, i) v = Gather<axis = 2> (u, i) "
                            "r = ReduceMax<keepdims = 0> (v) y = Add (x, r)",
                            k=np.ones((1, 1, 1), np.float32), i=np.zeros(4000, np.int64)),
    "Gather of indices": lambda: model("i = Gather (k, z) j = Gather (i, i) l = Gather (j, j) m = Cast<to = 1> (l) "
                                       "r = ReduceMax<keepdims = 0> (m) y = Add (x, r)",
                                       k=np.zeros(4, np.int64), z=np.zeros((60, 60), np.int64)),
    "GatherND": lambda: model("t = GatherND (k, i) r = ReduceMax<keepdims = 0> (t) y = Add (x, r)",
                              k=np.ones((1, 4000), np.float32), i=np.zeros((4000, 1000, 1), np.int8).astype(np.int64)),
    "TopK": lambda: model("s = Add (a, b) v, i = TopK (s, k) r = ReduceMax<keepdims = 0> (v) y = Add (x, r)",
                          k=np.array([4]), **vectors(0, 1, rank=2, n=1 << 15)),
    "NonZero": lambda: model("s = Add (a, b) t = NonZero (s) f = Cast<to = 1> (t) r = ReduceMax<keepdims = 0> (f) "
                             "y = Add (x, r)", **vectors(0, 1, rank=2, n=1 << 15)),
    # doubling
    "Concat": lambda: model(doubled("Concat<axis = 0>", 17), d0=np.ones((1, 1), np.float32)),
    "Concat of shapes": lambda: model(doubled("Concat<axis = 0>", 14, "t = ConstantOfShape (d14) "
                                              "r = ReduceMax<keepdims = 0> (t) y = Add (x, r)"), d0=np.array([2])),
    "doubling paths": lambda: model(doubled("Mul", 60), d0=np.ones((1, 1), np.float32)),
    "doubling paths, weight": lambda: model(doubled("Mul", 60, "h = MatMul (x, d60) z = Relu (h) y = MatMul (z, u)"),
                                            y="float[1, 4]",
                                                d0=np.ones((4, 8), np.float32), u=np.ones((8, 4), np.float32)),
    "values that are held": chain,
    # sizes that are declared
    "input": lambda: model("y = Relu (x)", x=f"float[1, {LONG}]"),
    "input, product": lambda: model("y = Relu (x)", x=f"float[{LONG}, {LONG}, {LONG}]", y="float[a, b, c]"),
    "input, sizes": lambda: model("s = Shape (x) n = Size (x) f = Cast<to = 1> (n) y = Add (x, f)",
                                  x=f"float[{LONG}, {LONG}]"),
    "no elements": lambda: model("t = Concat<axis = 0> (k, k) u = ReduceSum<keepdims = 0> (t) y = Add (x, u)",
                                 k=np.ones((0, LONG >> 4), np.float32)),
    "sparse_tensor": sparse,
    "one tensor, read often": lambda: model(repeated(1000), x="float[1, 300000]"),
    "one axis, read often": lambda: model(" ".join(f"v{k} = Reshape (x, s)" for k in range(50)) + " y = Add (v0, v1)",
                                          x="float[160000]", s=np.array([400, 400])),
    "functions": function,
    # rules
    "groups of a convolution": lambda: model(
        "c = Conv<group = 32768> (x, w) z = Relu (c) y = Conv<group = 32768> (z, w)", x="float[1, 65536, 1]",
        y="float[1, 65536, 1]", w=np.ones((65536, 2, 1), np.float32),
    ),
    "GroupNormalization": lambda: model(
        "y = GroupNormalization<num_groups = 1> (x, k, k)", x="float[1, 60000, 2]", y="float[1, 60000, 2]",
        k=np.ones(50000, np.float32),
    ),
}  # fmt: skip


def measure() -> None:
    """In the process that is limited: a line per row with its peak, its seconds, and what it raised."""
    import resource

    import onnxprune
    from onnxprune.errors import OnnxPruneError
    from onnxprune.importance.weights import score
    from onnxprune.structure.groups import analyze

    def status(word: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(word))

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize:") + (3 << 30), hard))
    for name, build in ROWS.items():
        proto = build()
        base, said, start = status("VmRSS:"), "", time.process_time()  # not of what else the machine does
        Path("/proc/self/clear_refs").write_text("5")
        try:
            analysis = analyze(onnxprune.load(proto))
            for importance in ("path", "fpgm"):
                score(analysis, [g for g in analysis.groups if g.kind != "layers"], importance=importance)
            analysis.costs().macs(np.ones(analysis.coupling.size, bool))
        except OnnxPruneError:
            pass  # refused in one line
        except BaseException as e:
            said = f"{type(e).__name__}: {e}".replace("\n", " ")[:200]
        print(f"{name}\t{status('VmHWM:') - base}\t{time.process_time() - start}\t{said}", flush=True)


@pytest.fixture(scope="module")
def measured() -> dict[str, list[str]]:
    if sys.platform != "linux":
        pytest.skip("/proc tells the peak")
    run = subprocess.run([sys.executable, __file__], check=False, capture_output=True, text=True, timeout=120)
    return {line.split("\t")[0]: line.split("\t")[1:] for line in run.stdout.splitlines()}


@pytest.mark.parametrize("name", ROWS)
def test_memory_is_bounded(measured: dict[str, list[str]], name: str) -> None:
    assert name in measured, "the process ended before"
    peak, seconds, said = measured[name]
    assert not said
    assert float(peak) < MOST
    assert float(seconds) < TIME


if __name__ == "__main__":
    measure()
