"""What a row is, the frames that most rows stand in, and how the groups of a model are written down."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from onnxprune.graph.io import load
from onnxprune.graph.shapes import infer
from onnxprune.structure.analysis import Analysis

# what is found in the frames below where the operator leaves all units free
CONV = "8 channels: b1:0 w1:0 w2:1"
GEMM = "8 channels: b1:0 w1:1 w2:0"
MATMUL = "8 channels: w1:1 w2:0"
# 8-bit values around an operator that makes `c` of `q`
Q8 = "s = Constant<value = float {0.05}>() z = Constant<value = uint8 {120}>() q = QuantizeLinear(h, s, z)"
D8 = "k = DequantizeLinear(c, s, z)"


@dataclass(frozen=True)
class Row:
    """op: key of RULES; text: the model; expect: lines of `describe`.

    law: what runs masked and pruned model, `onnxruntime`, `reference` (onnx's own evaluator) or `shapes` (nothing: only
    the pruned model's shapes are checked); why: the reason where that is not onnxruntime.
    """

    op: str
    form: str
    text: str
    expect: tuple[str, ...]
    opset: int
    law: str = "onnxruntime"
    why: str = ""


ROWS: list[Row] = []


def text(inputs: str, weights: str, nodes: str, *, opset: int = 21, outputs: str = "float[] y") -> str:
    imports = f'"" : {opset}, "com.microsoft" : 1, "elsewhere" : 1'
    return f"<ir_version: 10, opset_import: [{imports}]> g ({inputs}) => ({outputs}) <{weights}> {{ {nodes} }}"


def build(source: str) -> onnx.ModelProto:
    """A model from its text, with weights and, where they can be inferred, the shapes of its outputs."""
    model = parser.parse_model(source)
    graph = model.graph
    for info in graph.value_info:
        t = info.type.tensor_type
        shape = [d.dim_value for d in t.shape.dim]
        rng = np.random.default_rng(zlib.crc32(info.name.encode()))
        dtype = helper.tensor_dtype_to_np_dtype(t.elem_type)
        w: Any
        if dtype.kind in "iu":
            w = rng.integers(np.iinfo(dtype).min // 2, np.iinfo(dtype).max // 2, shape)
        elif dtype.kind == "b":
            w = rng.random(shape) < 0.5
        else:
            w = rng.uniform(0.5, 1.5, shape) if info.name.startswith("v") else rng.normal(0, 0.5, shape)
        graph.initializer.append(numpy_helper.from_array(np.asarray(w, dtype), info.name))
    del graph.value_info[:]
    shapes = infer(load(model))
    for info in graph.output:
        if info.name in shapes.shapes:
            info.CopyFrom(helper.make_value_info(info.name, shapes.type_proto(info.name)))
    return model


def put(op: str, form: str, source: str, expect: tuple[str, ...], opset: int, law: str, why: str) -> None:
    assert (law == "onnxruntime") == (why == ""), "a row says why onnxruntime does not check it"
    ROWS.append(Row(op, form, source, expect, opset, law, why))


def conv(
    op: str, body: str, *expect: str, form: str = "", also: str = "", opset: int = 21, x: str = "2,3,6,6",
    w1: str = "8,3,1,1", w2: str = "4,8,1,1", tail: str = "y = Conv(k, w2)", outputs: str = "float[] y",
    law: str = "onnxruntime", why: str = "",
) -> None:  # fmt: skip
    """A row between two convolutions: `body` makes `k` out of `h` (2, 8, 6, 6)."""
    weights = ", ".join(filter(None, [f"float[{w1}] w1, float[{w1.split(',')[0]}] b1, float[{w2}] w2", also]))
    nodes = f"h = Conv(x, w1, b1) {body} {tail}"
    source = text(f"float[{x}] x", weights, nodes, opset=opset, outputs=outputs)
    put(op, form, source, expect or (CONV,), opset, law, why)


def gemm(
    op: str, body: str, *expect: str, form: str = "", also: str = "", opset: int = 21, w2: str = "8,4",
    tail: str = "y = Gemm(k, w2)", law: str = "onnxruntime", why: str = "",
) -> None:  # fmt: skip
    """A row between two Gemm: `body` makes `k` out of `h` (5, 8)."""
    weights = ", ".join(filter(None, [f"float[3,8] w1, float[8] b1, float[{w2}] w2", also]))
    source = text("float[5,3] x", weights, f"h = Gemm(x, w1, b1) {body} {tail}", opset=opset)
    put(op, form, source, expect or (GEMM,), opset, law, why)


def matmul(
    op: str, body: str, *expect: str, form: str = "", also: str = "", opset: int = 21, w2: str = "8,4",
    tail: str = "y = MatMul(k, w2)", law: str = "onnxruntime", why: str = "",
) -> None:  # fmt: skip
    """A row between two MatMul: `body` makes `k` out of `h` (2, 5, 8)."""
    weights = ", ".join(filter(None, [f"float[3,8] w1, float[{w2}] w2", also]))
    source = text("float[2,5,3] x", weights, f"h = MatMul(x, w1) {body} {tail}", opset=opset)
    put(op, form, source, expect or (MATMUL,), opset, law, why)


def free(
    op: str, form: str, inputs: str, weights: str, nodes: str, *expect: str, opset: int = 21,
    law: str = "onnxruntime", why: str = "",
) -> None:  # fmt: skip
    """A row that is a model of its own."""
    put(op, form, text(inputs, weights, nodes, opset=opset), expect, opset, law, why)


def describe(analysis: Analysis) -> tuple[str, ...]:
    """One line per group and per pinned weight axis; pins by the output `y` of the frame are left out.

    `8 channels: b1:0 w2:1x4` are eight units, each one index of axis 0 of b1 and four of axis 1 of w2; `w2:1[12]`
    where only 12 indices of that axis belong to the group.
    """
    lines = []
    for g in analysis.groups:
        sites = []
        for s in g.slices:
            mine = int((s.units >= 0).sum())
            site = f"{s.tensor}:{s.axis}" + (f"[{mine}]" if mine < s.units.size else "")
            site += f"x{mine // g.size}" if mine > g.size else ""
            sites.append(site + (f" per {len(s.units)} groups" if s.units.ndim == 2 else ""))
        even = "".join(f", even over {len(b)}" for b in g.blocks)
        lines.append(f"{g.size} {g.kind}: {' '.join(sorted(sites))}{even}")
    for p in analysis.pinned:
        if p.reason != "axis of the graph output y":
            ids = analysis.coupling.axes(p.tensor)[p.axis]
            part = f"[{p.size}]" if ids is not None and p.size < ids.size else ""
            lines.append(f"{p.tensor}:{p.axis}{part} pinned: {p.reason}")
    return tuple(lines)
