"""The rule of every operator: between a producer and a consumer, what it frees or pins, and the law.

A row is a tiny model in onnx's text form in which the operator stands between two layers. It states every group that is
found, with the axes of weights that shrink together, and every axis that is pinned, with the reason; then pruned must
equal masked. Weights are declared without values (`float[8,3] w1`) and filled with seeded noise, positive for names
that begin with `v`.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from law import cut
from models.forms import TRANSFORMERS
from onnxprune.allocation.select import select, uniform
from onnxprune.errors import OptionError
from onnxprune.graph.io import Model, load, to_proto
from onnxprune.graph.node import walk_all
from onnxprune.graph.shapes import Shapes, concrete_inputs, infer
from onnxprune.importance.weights import score
from onnxprune.runtime.feeds import random_feeds
from onnxprune.structure.analysis import Analysis, ChannelGroup, Keep
from onnxprune.structure.coupling import _factors, _segments
from onnxprune.structure.groups import analyze
from onnxprune.structure.rules import BARRIERS, RULES
from onnxprune.structure.surgery import prune_model
from onnxprune.structure.verify import check_file, masked_model, tolerance, verify

LATEST = onnx.defs.onnx_opset_version()
SCHEMAS = {s.name: s for s in onnx.defs.get_all_schemas() if s.domain == ""}

# what is found in the frames below where the operator leaves all units free
CONV = "8 channels: b1:0 w1:0 w2:1"
GEMM = "8 channels: b1:0 w1:1 w2:0"
MATMUL = "8 channels: w1:1 w2:0"


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


# fmt: off

# elementwise

for _op in (
    "Abs Acos:s Acosh:e Asin:s Asinh Atan Atanh:s Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "Identity LeakyRelu Log:e Mish Neg Reciprocal:e Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt:e Tan:s Tanh ThresholdedRelu"
).split():  # `s`: of values in (0, 1), `e`: of values above 1
    _op, _, _domain = _op.partition(":")
    _source = {"s": "p = Sigmoid(h)", "e": "a = Abs(h) p = Exp(a)", "": "p = Identity(h)"}[_domain]
    conv(_op, f"{_source} k = {_op}(p)", opset=22)
conv("Swish", "k = Swish<alpha = 1.5>(h)", opset=24)
conv("BitCast", "i = BitCast<to = 6>(h) k = BitCast<to = 1>(i)", opset=26)
conv("com.microsoft::Gelu", "k = com.microsoft.Gelu(h)")
conv("com.microsoft::QuickGelu", "k = com.microsoft.QuickGelu<alpha = 1.7>(h)")
conv("Cast", "i = Cast<to = 6>(h) k = Cast<to = 1>(i)", form="to integers and back")
conv("Cast", "i = Cast<to = 10>(h) k = Cast<to = 1>(i)", form="to float16 and back")
conv("CastLike", "i = CastLike(h, like) k = CastLike(i, h)", also="int32 like = {1}")
conv("Dropout", "k = Dropout(h)", form="one input")
conv("Dropout", "k = Dropout<ratio = 0.3>(h)", form="ratio as attribute", opset=7)
conv("Dropout", "k, mask = Dropout(h, r, t)", "w1:0 pinned: axis of the graph output mask", form="mask as output",
     also="float r = {0.5}, bool t = {0}", outputs="float[] y, bool[] mask")
conv("IsNaN", "n = Sqrt(h) i = IsNaN(n) k = Cast<to = 1>(i)")
conv("IsInf", "r = Relu(h) n = Reciprocal(r) i = IsInf(n) k = Cast<to = 1>(i)")
conv("Not", "r = Relu(h) b = Cast<to = 9>(r) i = Not(b) k = Cast<to = 1>(i)")
conv("BitwiseNot", "m = Mul(h, ten) b = Cast<to = 6>(m) i = BitwiseNot(b) k = Cast<to = 1>(i)", also="float ten = {10}")
conv("ImageScaler", "k = ImageScaler<scale = 2.0, bias = [1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]>(h)", opset=7)
conv("Affine", "k = Affine<alpha = 2.0, beta = 0.5>(h)", opset=7)

# elementwise with several inputs

_P = "8 channels: b1:0 p:0 w1:0 w2:1"
for _op in ("Add", "Mul"):
    conv(_op, f"k = {_op}(h, p)", form="constant scalar", also="float p = {0.7}")
    conv(_op, f"k = {_op}(p, h)", form="constant of one element", also="float[1] p")
    conv(_op, f"k = {_op}(h, p)", _P, form="constant per channel", also="float[8,1,1] p")
    conv(_op, f"k = {_op}(p, h)", "8 channels: b1:0 p:1 w1:0 w2:1", form="constant per channel, full rank",
         also="float[1,8,1,1] p")
    conv(_op, f"k = {_op}(h, p)", _P, form="full constant", also="float[8,6,6] p")
    conv(_op, f"k = {_op}(h, p)", form="constant along the width", also="float[6] p")
    conv(_op, f"i = {_op}(h, p) k = Squeeze(i, a)", "8 channels: b1:0 p:2 w1:0 w2:1", form="constant of higher rank",
         also="float[1,2,8,6,6] p, int64[1] a = {0}")
    gemm(_op, f"k = {_op}(h, p)", "8 channels: b1:0 p:0 w1:1 w2:0", form="constant along the last axis",
         also="float[8] p")
    conv(_op, f"g = Conv(x, w3) k = {_op}(h, g)", "8 channels: b1:0 w1:0 w2:1 w3:0", form="two producers",
         also="float[8,3,1,1] w3")
    conv(_op, f"g = Conv(x, w3) k = {_op}(h, g)", form="with one channel", also="float[1,3,1,1] w3")
    conv(_op, f"g = GlobalAveragePool(h) s = Sigmoid(g) k = {_op}(h, s)", form="with its own average")
for _op in ("Add", "Mul", "Sub", "Div"):
    conv(_op, f"k = {_op}<axis = 1, broadcast = 1>(h, p)", _P, form="aligned at an axis, opset 6", opset=6,
         also="float[8] p", law="shapes", why="onnxruntime starts at opset 7")
for _op in "Sub Div Min Max Mean Sum Pow Mod".split():
    _name = "Mod<fmod = 1>" if _op == "Mod" else _op
    conv(_op, f"a = Abs(h) s = Add(a, vp) t = Add(a, vq) k = {_name}(s, t)", "8 channels: b1:0 vp:0 vq:0 w1:0 w2:1",
         form="activations", also="float[8,1,1] vp, float[8,1,1] vq")
    conv(_op, f"a = Abs(h) k = {_name}(a, vp)", "8 channels: b1:0 vp:0 w1:0 w2:1", form="constant per channel",
         also="float[8,1,1] vp")
for _op in "Max Min Mean Sum".split():
    conv(_op, f"g = Neg(h) i = Relu(h) k = {_op}(h, g, i)", form="three inputs")
conv("PRelu", "k = PRelu(h, p)", _P, form="slope per channel", also="float[8,1,1] p")
conv("PRelu", "k = PRelu(h, p)", form="slope of one element", also="float[1] p")
conv("Clip", "k = Clip(h, lo, hi)", form="inputs", also="float lo = {-0.5}, float hi = {0.5}")
conv("Clip", "k = Clip(h, , hi)", form="no minimum", also="float hi = {0.5}")
conv("Clip", "k = Clip<min = -0.5, max = 0.5>(h)", form="attributes", opset=10)
for _op in "Equal Greater GreaterOrEqual Less LessOrEqual".split():
    conv(_op, f"c = Ceil(h) i = {_op}(c, p) k = Cast<to = 1>(i)", _P, also="float[8,1,1] p = {0,1,0,1,0,1,0,1}")
for _op in "And Or Xor".split():
    conv(_op, f"r = Relu(h) c = Cast<to = 9>(r) s = Greater(h, p) i = {_op}(c, s) k = Cast<to = 1>(i)", _P,
         also="float[8,1,1] p")
for _op in "BitwiseAnd BitwiseOr BitwiseXor".split():
    conv(_op, f"t = Mul(h, ten) c = Cast<to = 6>(t) i = {_op}(c, p) k = Cast<to = 1>(i)", _P,
         also="float ten = {10}, int32[8,1,1] p = {1,2,3,4,5,6,7,8}")
conv("BitShift", 't = Mul(h, ten) a = Abs(t) c = Cast<to = 12>(a) i = BitShift<direction = "LEFT">(c, p) '
     "k = Cast<to = 1>(i)", _P, also="float ten = {10}, uint32[8,1,1] p = {1,2,3,4,5,6,7,8}")
conv("Where", "c = Greater(h, zero) g = Mul(h, p) k = Where(c, h, g)", _P, form="three activations",
     also="float zero = {0}, float[8,1,1] p")
conv("Where", "k = Where(c, h, p)", "8 channels: b1:0 c:0 p:1 w1:0 w2:1", form="constant condition",
     also="bool[8,1,1] c = {1,0,1,0,1,0,0,1}, float[1,8,1,1] p")
conv("Where", "k = Where(c, h, p)", form="mask along the width", also="bool[6] c = {1,0,1,0,1,0}, float p = {-5}")
gemm("com.microsoft::BiasGelu", "k = com.microsoft.BiasGelu(h, p)", "8 channels: b1:0 p:0 w1:1 w2:0", also="float[8] p")
gemm("com.microsoft::FastGelu", "k = com.microsoft.FastGelu(h)", form="one input")
gemm("com.microsoft::FastGelu", "k = com.microsoft.FastGelu(h, p)", "8 channels: b1:0 p:0 w1:1 w2:0", form="bias",
     also="float[8] p")

# convolutions

_NEXT = ("8 channels: b1:0 w1:0 w3:1", "6 channels: w2:1 w3:0")
_NEXT_B = ("8 channels: b1:0 w1:0 w3:1", "6 channels: b3:0 w2:1 w3:0")
conv("Conv", "k = Conv(h, w3)", *_NEXT, form="no bias", also="float[6,8,3,3] w3", w2="4,6,1,1")
conv("Conv", "k = Conv<pads = [1,1,1,1], strides = [2,2]>(h, w3, b3)", *_NEXT_B, form="bias, stride, padding",
     also="float[6,8,3,3] w3, float[6] b3", w2="4,6,1,1")
conv("Conv", "k = Conv(h, w3)", *_NEXT, form="1-D", x="2,3,6", w1="8,3,1", w2="4,6,1", also="float[6,8,3] w3")
conv("Conv", "k = Conv(h, w3)", *_NEXT, form="3-D", x="2,3,2,2,2", w1="8,3,1,1,1", w2="4,6,1,1,1",
     also="float[6,8,1,2,2] w3")
conv("Conv", "k = Conv<group = 8>(h, w3, b3)", "8 channels: b1:0 b3:0 w1:0 w2:1 w3:0", form="depthwise",
     also="float[8,1,3,3] w3, float[8] b3")
conv("Conv", "k = Conv<group = 8>(h, w3, b3)", "8 channels: b1:0 b3:0x2 w1:0 w2:1x2 w3:0x2",
     form="depthwise, multiplier 2", w2="4,16,1,1", also="float[16,1,3,3] w3, float[16] b3")
conv("Conv", "k = Conv<group = 2>(h, w3, b3)", "8 channels: b1:0 w1:0 w3:1 per 2 groups, even over 2",
     "6 channels: b3:0 w2:1 w3:0, even over 2", form="two groups", w2="4,6,1,1", also="float[6,4,3,3] w3, float[6] b3")
conv("Conv", "g = Conv<group = 2>(h, w3) k = Conv<group = 2>(g, w3)", "4 channels: b1:0x2 w1:0x2 w2:1x2 w3:0x2 w3:1",
     form="grouped, its weight used twice", also="float[8,4,1,1] w3")
conv("Conv", "g = Conv(x, w1) k = Add(h, g)", form="a weight used twice")
conv("Conv", "g = Conv(x, w3, b1) k = Concat<axis = 1>(h, g)", "8 channels: b1:0 w1:0 w2:1x2 w3:0",
     form="a bias used twice", w2="4,16,1,1", also="float[8,3,1,1] w3")
conv("Conv", "t = ReduceSum<keepdims = 0>(w1, a) u = Unsqueeze(t, b) k = Add(h, u)",
     form="its weight read by ReduceSum", also="int64[3] a = {1,2,3}, int64[2] b = {1,2}")
conv("Conv", "v = Identity(w3) k = Conv(h, v)", *_NEXT, form="weight computed of constants", w2="4,6,1,1",
     also="float[6,8,1,1] w3")
conv("Conv", "v = Transpose<perm = [1,0,2,3]>(w3) k = Conv(h, v)", "8 channels: b1:0 w1:0 w3:0",
     "6 channels: w2:1 w3:1", form="weight transposed", w2="4,6,1,1", also="float[8,6,1,1] w3")
free("Conv", "weight as graph input", "float[2,3,6,6] x, float[8,3,1,1] f", "float[4,8,1,1] w2",
     "h = Conv(x, f) y = Conv(h, w2)", "f:0 pinned: axis of the graph input f")
conv("com.microsoft::FusedConv", 'k = com.microsoft.FusedConv<activation = "Relu">(h, w3, b3)', *_NEXT_B,
     form="activation", also="float[6,8,3,3] w3, float[6] b3", w2="4,6,1,1")
conv("com.microsoft::FusedConv", 'g = Conv(x, w4) k = com.microsoft.FusedConv<activation = "Relu">(h, w3, b3, g)',
     "8 channels: b1:0 w1:0 w3:1", "6 channels: b3:0 w2:1 w3:0 w4:0", form="sum",
     also="float[6,8,1,1] w3, float[6] b3, float[6,3,1,1] w4", w2="4,6,1,1")
conv("com.microsoft::FusedConv", 'k = com.microsoft.FusedConv<activation = "Relu", group = 8>(h, w3)',
     "8 channels: b1:0 w1:0 w2:1 w3:0", form="depthwise", also="float[8,1,3,3] w3")
_Q = "s = Constant<value = float {0.05}>() z = Constant<value = uint8 {120}>() q = QuantizeLinear(h, s, z)"
_D = "k = DequantizeLinear(c, s, z)"
conv("QLinearConv", f"{_Q} c = QLinearConv(q, s, z, w3, v3, z3, s, z, b3) {_D}", "8 channels: b1:0 w1:0 w3:1",
     "6 channels: b3:0 v3:0 w2:1 w3:0 z3:0", form="scale per channel", w2="4,6,1,1",
     also="int8[6,8,1,1] w3, float[6] v3, int8[6] z3 = {0,0,0,0,0,0}, int32[6] b3 = {1,2,3,4,5,6}")
conv("QLinearConv", f"{_Q} c = QLinearConv(q, s, z, w3, s3, z3, s, z) {_D}", *_NEXT, form="scale per tensor",
     w2="4,6,1,1", also="int8[6,8,3,3] w3, float s3 = {0.01}, int8 z3 = {0}")
conv("QLinearConv", f"{_Q} c = QLinearConv<group = 8>(q, s, z, w3, s3, z3, s, z) {_D}",
     "8 channels: b1:0 w1:0 w2:1 w3:0", form="depthwise", also="int8[8,1,3,3] w3, float s3 = {0.01}, int8 z3 = {0}")
conv("QLinearConv", f"{_Q} c = QLinearConv<group = 2>(q, s, z, w3, v3, z3, s, z) {_D}",
     "8 channels: b1:0 w1:0 w3:1 per 2 groups, even over 2", "6 channels: v3:0 w2:1 w3:0 z3:0, even over 2",
     form="two groups", w2="4,6,1,1", also="int8[6,4,1,1] w3, float[6] v3, int8[6] z3 = {0,0,0,0,0,0}")
conv("ConvInteger", f"{_Q} c = ConvInteger(q, w3, z) k = Cast<to = 1>(c)", *_NEXT, form="zero point of the input",
     w2="4,6,1,1", also="uint8[6,8,1,1] w3")
conv("ConvInteger", f"{_Q} c = ConvInteger(q, w3, z, z3) k = Cast<to = 1>(c)", *_NEXT, form="zero point of the weight",
     w2="4,6,1,1", also="uint8[6,8,3,3] w3, uint8 z3 = {100}")
conv("ConvInteger", f"{_Q} c = ConvInteger(q, w3, z, z3) k = Cast<to = 1>(c)", "8 channels: b1:0 w1:0 w3:1",
     "6 channels: w2:1 w3:0 z3:0", form="zero point per channel of the weight", w2="4,6,1,1",
     also="uint8[6,8,1,1] w3, uint8[6] z3 = {1,2,3,4,5,6}", law="reference", why="onnxruntime wants a scalar")
conv("ConvInteger", f"{_Q} c = ConvInteger<group = 8>(q, w3, z) k = Cast<to = 1>(c)", "8 channels: b1:0 w1:0 w2:1 w3:0",
     form="depthwise", also="uint8[8,1,3,3] w3")
conv("ConvTranspose", "k = ConvTranspose<strides = [2,2]>(h, w3, b3)", "8 channels: b1:0 w1:0 w3:0",
     "6 channels: b3:0 w2:1 w3:1", form="plain", w2="4,6,1,1", also="float[8,6,2,2] w3, float[6] b3")
conv("ConvTranspose", "k = ConvTranspose<strides = [2,2], group = 2>(h, w3, b3)",
     "8 channels: b1:0 w1:0 w3:0, even over 2", "3 channels: b3:0x2 w2:1x2 w3:1", form="two groups", w2="4,6,1,1",
     also="float[8,3,2,2] w3, float[6] b3")
conv("ConvTranspose", "k = ConvTranspose<strides = [2,2], group = 8>(h, w3, b3)",
     "8 channels: b1:0 b3:0 w1:0 w2:1 w3:0", form="depthwise", also="float[8,1,2,2] w3, float[8] b3")
conv("ConvTranspose", "k = ConvTranspose<group = 8>(h, w3, b3)", "8 channels: b1:0 b3:0x2 w1:0 w2:1x2 w3:0",
     form="depthwise, multiplier 2", w2="4,16,1,1", also="float[8,2,2,2] w3, float[16] b3")
conv("DeformConv", "k = DeformConv(h, w3, off, b3, mask)", *_NEXT_B, form="offsets and mask", w2="4,6,1,1", opset=19,
     also="float[6,8,2,2] w3, float[2,8,5,5] off, float[6] b3, float[2,4,5,5] mask")
conv("DeformConv", "off = Conv(h, w4) k = DeformConv(h, w3, off)", "8 channels: b1:0 w1:0 w3:1 w4:1",
     "6 channels: w2:1 w3:0", "w4:0 pinned: offsets of a deformable convolution", form="offsets by a convolution",
     w2="4,6,1,1", opset=19, also="float[6,8,2,2] w3, float[8,8,2,2] w4")
conv("DeformConv", "k = DeformConv<group = 2>(h, w3, off)", "w1:0 pinned: grouped deformable convolution",
     form="two groups", w2="4,6,1,1", opset=19, also="float[6,4,2,2] w3, float[2,8,5,5] off")

# matrix products

_NEXT = ("8 channels: b1:0 w1:1 w3:0", "6 channels: w2:0 w3:1")
_NEXT_B = ("8 channels: b1:0 w1:1 w3:0", "6 channels: b3:0 w2:0 w3:1")
gemm("Gemm", "k = Gemm(h, w3)", *_NEXT, form="no C", also="float[8,6] w3", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, b3)", *_NEXT_B, form="C [N]", also="float[8,6] w3, float[6] b3", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", *_NEXT, form="C scalar", also="float[8,6] w3, float c = {0.3}", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", *_NEXT, form="C [1]", also="float[8,6] w3, float[1] c", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", *_NEXT, form="C [M,1]", also="float[8,6] w3, float[5,1] c", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", "8 channels: b1:0 w1:1 w3:0", "6 channels: c:1 w2:0 w3:1", form="C [1,N]",
     also="float[8,6] w3, float[1,6] c", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", "8 channels: b1:0 w1:1 w3:0", "6 channels: c:1 w2:0 w3:1", form="C [M,N]",
     also="float[8,6] w3, float[5,6] c", w2="6,4")
gemm("Gemm", "c = Gemm(x, w4) k = Gemm(h, w3, c)", "8 channels: b1:0 w1:1 w3:0", "6 channels: w2:0 w3:1 w4:1",
     form="C an activation", also="float[8,6] w3, float[3,6] w4", w2="6,4")
gemm("Gemm", "k = Gemm<alpha = 0.5, beta = 2.0>(h, w3, b3)", *_NEXT_B, form="alpha and beta", w2="6,4",
     also="float[8,6] w3, float[6] b3")
gemm("Gemm", "k = Gemm<transB = 1>(h, w3, b3)", "8 channels: b1:0 w1:1 w3:1", "6 channels: b3:0 w2:0 w3:0",
     form="transB", also="float[6,8] w3, float[6] b3", w2="6,4")
gemm("Gemm", "t = Transpose(h) k = Gemm<transA = 1>(t, w3, b3)", *_NEXT_B, form="transA", w2="6,4",
     also="float[8,6] w3, float[6] b3")
free("Gemm", "weight on the left", "float[3,5] x", "float[8,3] w1, float[8,1] b1, float[4,8] w2",
     "h = Gemm(w1, x, b1) k = Relu(h) y = Gemm(w2, k)", "8 channels: b1:0 w1:0 w2:1")
free("Gemm", "weight on the left, transposed", "float[3,5] x", "float[3,8] w1, float[8,4] w2",
     "h = Gemm<transA = 1>(w1, x) k = Relu(h) y = Gemm<transA = 1>(w2, k)", "8 channels: w1:1 w2:0")
gemm("com.microsoft::FusedGemm", 'k = com.microsoft.FusedGemm<activation = "Relu">(h, w3, b3)', *_NEXT_B,
     form="activation", also="float[8,6] w3, float[6] b3", w2="6,4")
gemm("com.microsoft::FusedGemm", 'k = com.microsoft.FusedGemm<activation = "Relu", transB = 1>(h, w3, b3)',
     "8 channels: b1:0 w1:1 w3:1", "6 channels: b3:0 w2:0 w3:0", form="transB", also="float[6,8] w3, float[6] b3",
     w2="6,4")

_NEXT = ("8 channels: w1:1 w3:0", "6 channels: w2:0 w3:1")
matmul("MatMul", "k = MatMul(h, w3)", *_NEXT, form="weight on the right", also="float[8,6] w3", w2="6,4")
matmul("MatMul", "k = MatMul(h, w3)", "8 channels: w1:1 w3:1", "6 channels: w2:0 w3:2", form="batched weight",
       also="float[2,8,6] w3", w2="6,4")
matmul("MatMul", "k = MatMul(h, w3)", "8 channels: w1:1 w3:0", form="vector on the right", also="float[8] w3",
       tail="y = Neg(k)")
free("MatMul", "weight on the left", "float[2,3,5] x", "float[8,3] w1, float[6,8] w3, float[4,6] w2",
     "h = MatMul(w1, x) k = MatMul(w3, h) y = MatMul(w2, k)", "8 channels: w1:0 w3:1", "6 channels: w2:1 w3:0")
free("MatMul", "vector on the left", "float[3] x", "float[3,8] w1, float[8,6] w3, float[6,4] w2",
     "h = MatMul(x, w1) k = MatMul(h, w3) y = MatMul(k, w2)", "8 channels: w1:1 w3:0", "6 channels: w2:0 w3:1")
ATTENTION = """q0 = MatMul(x, wq) q1 = Reshape(q0, split) q = Transpose<perm = [0,2,1,3]>(q1)
    k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose<perm = [0,2,3,1]>(k1)
    v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm = [0,2,1,3]>(v1)
    s0 = MatMul(q, k) s1 = Mul(s0, scale) s = Softmax(s1) a0 = MatMul(s, v)
    a1 = Transpose<perm = [0,2,1,3]>(a0) a = Reshape(a1, join) y = MatMul(a, wo)"""
ATTENTION_WEIGHTS = """float[3,8] wq, float[3,8] wk, float[3,8] wv, float[8,4] wo, float scale = {0.7},
    int64[4] split = {0,0,4,2}, int64[3] join = {0,0,8}"""
free("MatMul", "attention", "float[2,5,3] x", ATTENTION_WEIGHTS, ATTENTION, "4 heads: wk:1x2 wo:0x2 wq:1x2 wv:1x2",
     "2 head_dim: wk:1x4 wq:1x4", "2 head_dim: wo:0x4 wv:1x4")
free("MatMul", "attention of one head", "float[2,5,3] x", "float[3,8] wq, float[3,8] wk, float[3,6] wv, float[6,4] wo",
     """q = MatMul(x, wq) k0 = MatMul(x, wk) k = Transpose<perm = [0,2,1]>(k0) v = MatMul(x, wv)
     s0 = MatMul(q, k) s = Softmax(s0) a = MatMul(s, v) y = MatMul(a, wo)""", "8 head_dim: wk:1 wq:1",
     "6 head_dim: wo:0 wv:1")
matmul("com.microsoft::FusedMatMul", "k = com.microsoft.FusedMatMul<transB = 1, alpha = 0.5>(h, w3)",
       "8 channels: w1:1 w3:1", "6 channels: w2:0 w3:0", form="transB", also="float[6,8] w3", w2="6,4")
matmul("com.microsoft::FusedMatMul",
       "t = Transpose<perm = [0,2,1]>(h) k = com.microsoft.FusedMatMul<transA = 1>(t, w3)", *_NEXT, form="transA",
       also="float[8,6] w3", w2="6,4")
matmul("com.microsoft::FusedMatMul", "g = com.microsoft.FusedMatMul<transB = 1>(h, h) s = Softmax(g) k = MatMul(s, h)",
       "8 head_dim: w1:1 w2:0", form="two activations")
matmul("com.microsoft::FusedMatMul", "k = com.microsoft.FusedMatMul<transBatchA = 1>(h, w3)",
       "w1:1 pinned: transposed batch axes", form="transBatchA", also="float[5,8,6] w3", w2="6,4")
free("com.microsoft::FusedMatMul", "weight on the left, transposed", "float[3,5] x", "float[3,8] w1, float[8,4] w2",
     "h = com.microsoft.FusedMatMul<transA = 1>(w1, x) k = Relu(h) y = com.microsoft.FusedMatMul<transA = 1>(w2, k)",
     "8 channels: w1:1 w2:0")
matmul("MatMulInteger", f"{_Q} c = MatMulInteger(q, w3, z, z3) k = Cast<to = 1>(c)", *_NEXT, w2="6,4",
       form="scalar zero points", also="uint8[8,6] w3, uint8 z3 = {100}")
matmul("MatMulInteger", f"{_Q} c = MatMulInteger(q, w3, z, z3) k = Cast<to = 1>(c)", "8 channels: w1:1 w3:0",
       "6 channels: w2:0 w3:1 z3:0", w2="6,4", form="zero point per column",
       also="uint8[8,6] w3, uint8[6] z3 = {100,101,102,103,104,105}")
matmul("QLinearMatMul", f"{_Q} c = QLinearMatMul(q, s, z, w3, s3, z3, s, z) {_D}", *_NEXT, w2="6,4",
       form="scale per tensor", also="uint8[8,6] w3, float s3 = {0.01}, uint8 z3 = {128}")
matmul("QLinearMatMul", f"{_Q} c = QLinearMatMul(q, s, z, w3, v3, z3, s, z) {_D}", "8 channels: w1:1 w3:0",
       "6 channels: v3:0 w2:0 w3:1 z3:0", w2="6,4", form="scale per column",
       also="int8[8,6] w3, float[6] v3, int8[6] z3 = {0,0,0,0,0,0}")
matmul("Einsum", 'k = Einsum<equation = "btc,cd->btd">(h, w3)', *_NEXT, form="product", also="float[8,6] w3", w2="6,4")
matmul("Einsum", 'k = Einsum<equation = "btc, cd">(h, w3)', "8 channels: w1:1 w3:0", "6 channels: w2:1 w3:1",
       form="implicit output", also="float[8,6] w3", w2="4,6", tail="y = MatMul(w2, k)")
matmul("Einsum", 'k = Einsum<equation = "btc->bct">(h)', "8 channels: w1:1 w2:1", form="transpose",
       tail="y = MatMul(w2, k)", w2="4,8")
matmul("Einsum", 'k = Einsum<equation = "btc,c->btc">(h, p)', "8 channels: p:0 w1:1 w2:0", form="scale",
       also="float[8] p")
matmul("Einsum", 'k = Einsum<equation = "...c,cd->...d">(h, w3)', "w1:1 pinned: Einsum with an ellipsis",
       form="ellipsis", also="float[8,6] w3", w2="6,4")
matmul("Einsum", 'g = Einsum<equation = "btc,bsc->bts">(h, h) k = MatMul(g, h)', "8 head_dim: w1:1 w2:0",
       form="two activations")
matmul("Einsum", 'g = MatMul(h, w3) k = Einsum<equation = "btt->bt">(g)', "8 channels: w1:1 w3:0",
       "w3:1 pinned: Einsum with a diagonal or of unknown rank", form="diagonal", also="float[8,5] w3", w2="5,4")
free("Einsum", "broadcast along a label", "float[5,3] x", "float[3,8] w1, float[3,1] w2, float[4,8] w3",
     'h = MatMul(x, w1) g = MatMul(x, w2) y = Einsum<equation = "bi,bi,oi->bo">(g, h, w3)', "8 head_dim: w1:1 w3:1")
free("Einsum", "bilinear", "float[5,3] x", "float[3,8] w1, float[3,6] w2, float[4,8,6] w3",
     'h = MatMul(x, w1) g = MatMul(x, w2) y = Einsum<equation = "bi,oij,bj->bo">(h, w3, g)', "8 channels: w1:1 w3:1",
     "6 channels: w2:1 w3:2")
free("Einsum", "attention", "float[2,5,3] x", "float[3,4,2] wq, float[3,4,2] wk, float[3,4,2] wv, float[4,2,4] wo",
     """q = Einsum<equation = "btc,chd->bthd">(x, wq) k = Einsum<equation = "btc,chd->bthd">(x, wk)
     v = Einsum<equation = "btc,chd->bthd">(x, wv) s0 = Einsum<equation = "bthd,bshd->bhts">(q, k) s = Softmax(s0)
     a = Einsum<equation = "bhts,bshd->bthd">(s, v) y = Einsum<equation = "bthd,hdo->bto">(a, wo)""",
     "4 heads: wk:1 wo:0 wq:1 wv:1", "2 head_dim: wk:2 wq:2", "2 head_dim: wo:1 wv:2")

# other shapes

for _form, _shape in (
    ("numbers", "2,8,36"), ("0 and -1", "0,0,-1"), ("0 and the number", "0,8,-1"), ("-1 for C", "0,-1,36"),
    ("-1 for the batch", "-1,8,36"),
):
    conv("Reshape", "k = Reshape(h, s)", form=f"rows and columns merged, {_form}", w2="4,8,1",
         also=f"int64[3] s = {{{_shape}}}")
_FLAT = "y = Gemm(k, w2)"
_FLATTENED = "8 channels: b1:0 w1:0 w2:0x36"
for _form, _shape in (("numbers", "2,288"), ("0 and -1", "0,-1"), ("-1 for the batch", "-1,288")):
    conv("Reshape", "k = Reshape(h, s)", _FLATTENED, form=f"flattened, {_form}", tail=_FLAT, w2="288,4",
         also=f"int64[2] s = {{{_shape}}}")
conv("Reshape", "k = Reshape<allowzero = 1>(h, s)", _FLATTENED, form="flattened, allowzero", tail=_FLAT, w2="288,4",
     also="int64[2] s = {2,288}")
conv("Reshape", "k = Reshape<shape = [2,288]>(h)", "w1:0 pinned: the shape of k is not known",
     form="flattened, shape as attribute", tail="y = MatMul(k, w2)", w2="288,4", opset=4)
conv("Reshape", "t = Shape(h) n = Gather(t, i) m = Unsqueeze(n, j) s = Concat<axis = 0>(m, c) k = Reshape(h, s)",
     _FLATTENED, form="flattened, computed batch", tail=_FLAT, w2="288,4",
     also="int64 i = {0}, int64[1] j = {0}, int64[1] c = {288}")
conv("Reshape", "t = Shape(h) n = Slice(t, i, j) s = Concat<axis = 0>(n, c) k = Reshape(h, s)",
     form="computed channels", w2="4,8,1", also="int64[1] i = {0}, int64[1] j = {2}, int64[1] c = {-1}")
conv("Reshape", "g = Conv(x, w3) u = Reshape(g, s) l = Reshape(h, s) k = Concat<axis = 1>(l, u)",
     "8 channels: b1:0 w1:0 w2:1[8]", "8 channels: w2:1[8] w3:0", form="one shape for two tensors",
     also="float[8,3,1,1] w3, int64[3] s = {2,8,36}", w2="4,16,1")
conv("Reshape", "a = Reshape(h, s) b = Transpose<perm = [0,2,1,3,4]>(a) k = Reshape(b, t)",
     "4 channels: b1:0x2 w1:0x2 w2:1x2", form="channel shuffle",
     also="int64[5] s = {2,2,4,6,6}, int64[4] t = {2,8,6,6}")
conv("Reshape", "k = Reshape(h, s)", "w1:0 pinned: reshaped across the boundaries of the axes",
     form="across the boundaries of axes", w2="4,12,1,1", also="int64[4] s = {2,12,4,6}")
conv("Reshape", "k = Reshape(h, s)", "w1:0 pinned: reshaped: every factor of the axis is pinned",
     form="C into two outputs", also="int64[5] s = {2,2,4,6,6}", tail="y = Neg(k)")
conv("Reshape", "m = Reshape(h, s) n = Relu(m) k = Reshape(n, t)", form="batch and C merged for a while",
     also="int64[3] s = {16,6,6}, int64[4] t = {2,8,6,6}")
conv("Reshape", "a = Reshape(h, s) b = Transpose<perm = [0,2,4,3,5,1]>(a) k = Reshape(b, t)",
     "8 channels: b1:0 w1:0 w2:0", form="window partition", also="int64[6] s = {2,8,2,3,2,3}, int64[3] t = {8,9,8}",
     w2="8,4", tail="y = MatMul(k, w2)")
free("Reshape", "computed at run time", "float[2,3,6,6] x, int64[4] s", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = Reshape(h, s) y = Conv(k, w2)", "w1:0 pinned: the shape of k is not known")
conv("Flatten", "k = Flatten(h)", _FLATTENED, form="axis 1", w2="288,4", tail=_FLAT)
conv("Flatten", "k = Flatten<axis = -3>(h)", _FLATTENED, form="negative axis", w2="288,4", tail=_FLAT)
conv("Flatten", "t = Transpose<perm = [0,2,3,1]>(h) k = Flatten<axis = 3>(t)", "8 channels: b1:0 w1:0 w2:0",
     form="all but C", w2="8,4", tail=_FLAT)
conv("Flatten", "m = Flatten<axis = 2>(h) k = Reshape(m, t)", form="batch and C merged for a while",
     also="int64[4] t = {2,8,6,6}")
_LAST = "8 channels: b1:0 w1:0 w2:0"
conv("Squeeze", "g = GlobalAveragePool(h) k = Squeeze<axes = [2,3]>(g)", _LAST, form="attribute", opset=11, w2="8,4",
     tail=_FLAT)
conv("Squeeze", "g = GlobalAveragePool(h) k = Squeeze(g, a)", _LAST, form="input", w2="8,4", tail=_FLAT,
     also="int64[2] a = {-1,-2}")
conv("Squeeze", "g = GlobalAveragePool(h) k = Squeeze(g)", _LAST, form="all", w2="8,4", tail=_FLAT)
for _opset in (12, 13):
    conv("Squeeze", "g = GlobalAveragePool(h) k = Squeeze(g)", "2 channels: b1:0 w1:0 w2:0",
         form=f"all, down to one channel, opset {_opset}", w1="2,3,1,1", w2="2,4", tail=_FLAT, opset=_opset)
gemm("Unsqueeze", "k = Unsqueeze<axes = [2]>(h)", "8 channels: b1:0 w1:1 w2:1", form="attribute", opset=11, w2="4,8,1",
     tail="y = Conv(k, w2)")
gemm("Unsqueeze", "k = Unsqueeze(h, a)", "8 channels: b1:0 w1:1 w2:1", form="input", also="int64[2] a = {-1,2}",
     w2="4,8,1,1", tail="y = Conv(k, w2)")
conv("Transpose", "k = Transpose<perm = [0,2,3,1]>(h)", _LAST, form="channels last", w2="8,4", tail="y = MatMul(k, w2)")
gemm("Transpose", "k = Transpose(h)", "8 channels: b1:0 w1:1 w2:1", form="no perm", w2="4,8", tail="y = Gemm(w2, k)")
for _mode in ("DCR", "CRD"):
    conv("DepthToSpace", f'k = DepthToSpace<blocksize = 2, mode = "{_mode}">(h)', "2 channels: b1:0x4 w1:0x4 w2:1",
         form=_mode, w2="4,2,1,1")
    conv("DepthToSpace", f'k = DepthToSpace<blocksize = 2, mode = "{_mode}">(h)',
         "w1:0 pinned: blocks of a single channel", form=f"{_mode}, to one channel", w1="4,3,1,1", w2="4,1,1,1")
conv("SpaceToDepth", "k = SpaceToDepth<blocksize = 2>(h)", "8 channels: b1:0 w1:0 w2:1x4", w2="4,32,1,1")

# joined and cut

conv("Concat", "g = Conv(x, w3) k = Concat<axis = 1>(h, g)", "8 channels: b1:0 w1:0 w2:1[8]",
     "6 channels: w2:1[6] w3:0", form="channels", also="float[6,3,1,1] w3", w2="4,14,1,1")
conv("Concat", "g = Conv(x, w3) k = Concat<axis = -3>(g, h, g)", "8 channels: b1:0 w1:0 w2:1[8]",
     "6 channels: w2:1[12]x2 w3:0", form="negative axis, one input twice", also="float[6,3,1,1] w3", w2="4,20,1,1")
conv("Concat", "g = Conv(x, w3) k = Concat<axis = 2>(h, g)", "8 channels: b1:0 w1:0 w2:1 w3:0", form="rows",
     also="float[8,3,1,1] w3")
conv("Concat", "k = Concat<axis = 1>(h, p)", "8 channels: b1:0 w1:0 w2:1[8]", form="with a constant",
     also="float[2,3,6,6] p", w2="4,11,1,1")
conv("Concat", "g = Conv(x, w3) k = Concat<axis = 1>(h, g)", "8 channels: b1:0 w1:0 w2:1[8]",
     form="with a single channel", w2="4,9,1,1", also="float[1,3,1,1] w3")
conv("Concat", "k = Concat<axis = 1>(x, h)", "8 channels: b1:0 w1:0 w2:1[8]", form="with the graph input",
     w2="4,11,1,1")
matmul("Concat", "k = Concat<axis = 1>(p, h)", "8 channels: p:2 w1:1 w2:0", form="class token", also="float[2,1,8] p")
_HALVES = "4 channels: b1:0x2 w1:0x2 w2:1"
for _form, _opset, _call in (
    ("attribute", 11, "Split<axis = 1, split = [4,4]>(h)"), ("input", 13, "Split<axis = -3>(h, s)"),
    ("no sizes, opset 11", 11, "Split<axis = 1>(h)"), ("no sizes, opset 13", 13, "Split<axis = 1>(h)"),
    ("num_outputs", 18, "Split<axis = 1, num_outputs = 2>(h)"),
):
    conv("Split", f"a, b = {_call} k = Mul(a, b)", _HALVES, form=f"equal parts, {_form}", opset=_opset, w2="4,4,1,1",
         also="int64[2] s = {4,4}" if "(h, s)" in _call else "")
    conv("Split", f"a, b = {_call} k = Concat<axis = 1>(b, a)", "4 channels: b1:0[4] w1:0[4] w2:1[4]",
         "4 channels: b1:0[4] w1:0[4] w2:1[4]", form=f"parts that become uneven, {_form}", opset=_opset,
         also="int64[2] s = {4,4}" if "(h, s)" in _call else "")
conv("Split", "a, b, c = Split<axis = 1, num_outputs = 3>(h) k = Concat<axis = 1>(b, a)",
     "3 channels: b1:0[3] w1:0[3] w2:1[3]", "3 channels: b1:0[3] w1:0[3] w2:1[3]", "2 channels: b1:0[2] w1:0[2]",
     w2="4,6,1,1", form="uneven parts, num_outputs")
conv("Split", "a, b = Split<axis = 1>(h, s) k = Concat<axis = 1>(b, a)", "2 channels: b1:0[2] w1:0[2] w2:1[2]",
     "6 channels: b1:0[6] w1:0[6] w2:1[6]", form="uneven parts, input", also="int64[2] s = {2,6}")
conv("Split", "a, b = Split<axis = 1, split = [2,6]>(h) k = Concat<axis = 1>(b, a)",
     "2 channels: b1:0[2] w1:0[2] w2:1[2]", "6 channels: b1:0[6] w1:0[6] w2:1[6]", form="uneven parts, attribute",
     opset=11)
conv("Split", "a, b = Split<axis = 1>(h, s) g = Mul(b, a) k = Relu(g)", "7 channels: b1:0[7] w1:0[7] w2:1",
     "w1:0[1] pinned: split into a part of size one", form="a part of one channel", also="int64[2] s = {1,7}",
     w2="4,7,1,1")
conv("Split", "a, b = Split<axis = 2, num_outputs = 2>(h) k = Add(a, b)", form="rows")
conv("Split", "g = Conv(x, w3) a, b = Split<axis = 1>(h, s) c, d = Split<axis = 1>(g, s) m = Mul(a, b) "
     "k = Concat<axis = 1>(m, c, d)", "4 channels: b1:0x2 w1:0x2 w2:1[4]", "4 channels: w2:1[4] w3:0[4]",
     "4 channels: w2:1[4] w3:0[4]", form="one list of sizes for two tensors", w2="4,12,1,1",
     also="int64[2] s = {4,4}, float[8,3,1,1] w3")
free("Split", "sizes at run time", "float[2,3,6,6] x, int64[2] s", "float[8,3,1,1] w1, float[4,4,1,1] w2",
     "h = Conv(x, w1) k, l = Split<axis = 1>(h, s) y = Conv(k, w2)", "w1:0 pinned: the shape of k is not known")
_ENDS = "int64[1] a = {1}, int64[1] i = {0}, int64[1] n = {4}, int64[1] m = {-4}, int64[1] e = {9223372036854775807}"
conv("Slice", "p = Slice(h, i, n, a) q = Slice(h, n, e, a) k = Mul(p, q)", _HALVES, form="halves, INT_MAX", also=_ENDS,
     w2="4,4,1,1")
conv("Slice", "p = Slice(h, i, m, a) q = Slice(h, m, e, a) k = Mul(p, q)", _HALVES, form="halves, negative", also=_ENDS,
     w2="4,4,1,1")
conv("Slice", "p = Slice<axes = [1], starts = [0], ends = [4]>(h) "
     "q = Slice<axes = [1], starts = [-4], ends = [2147483647]>(h) k = Mul(p, q)", _HALVES, form="halves, attributes",
     opset=9, w2="4,4,1,1")
conv("Slice", "k = Slice(h, b, c, a)", "4 channels: b1:0[4] w1:0[4]", "4 channels: b1:0[4] w1:0[4] w2:1",
     form="the middle", w2="4,4,1,1", also="int64[1] a = {-3}, int64[1] b = {2}, int64[1] c = {6}")
conv("Slice", "k = Slice(h, b, c)", "2 channels: b1:0[2] w1:0[2]", "6 channels: b1:0[6] w1:0[6] w2:1", form="no axes",
     w2="4,6,1,1", also="int64[4] b = {0,2,0,1}, int64[4] c = {2,8,6,3}")
conv("Slice", "k = Slice(h, b, c, a, s)", "4 channels: b1:0x2 w1:0x2 w2:1", form="a stride", w2="4,4,1,1",
     also="int64[1] a = {1}, int64[1] b = {0}, int64[1] c = {8}, int64[1] s = {2}")
conv("Slice", "k = Slice(h, b, c, a, s)", "w1:0 pinned: sliced with a stride", form="a stride over a part",
     w2="4,3,1,1", also="int64[1] a = {1}, int64[1] b = {2}, int64[1] c = {8}, int64[1] s = {2}")
conv("Slice", "k = Slice(h, b, c, a, s)", "w1:0 pinned: sliced with a stride", form="backwards",
     also="int64[1] a = {1}, int64[1] b = {-1}, int64[1] c = {-9223372036854775807}, int64[1] s = {-1}")
conv("Slice", "k = Slice(h, b, c, a, s)", form="rows and columns, with a stride",
     also="int64[2] a = {2,3}, int64[2] b = {0,1}, int64[2] c = {6,-1}, int64[2] s = {2,1}")
conv("Slice", "k = Slice(h, b, c, a)", "7 channels: b1:0[7] w1:0[7]", "w1:0[1] pinned: sliced to a single index",
     form="a single channel", w2="4,1,1,1", also="int64[1] a = {1}, int64[1] b = {3}, int64[1] c = {4}")
conv("Slice", "t = Shape(h) n = Gather(t, a) m = Div(n, d) k = Slice(h, i, m, a)", "4 channels: b1:0[4] w1:0[4] w2:1",
     "4 channels: b1:0[4] w1:0[4]", form="half of the shape", w2="4,4,1,1",
     also="int64[1] a = {1}, int64[1] i = {0}, int64[1] d = {2}")
free("Slice", "end at run time", "float[2,3,6,6] x, int64[1] e", "float[8,3,1,1] w1, float[4,8,1,1] w2, "
     "int64[1] a = {2}, int64[1] i = {0}", "h = Conv(x, w1) k = Slice(h, i, e, a) y = Conv(k, w2)",
     "w1:0 pinned: the shape of k is not known")
conv("Gather", "k = Gather<axis = 1>(h, i)", "8 channels: b1:0 w1:0 w2:1", form="permutation",
     also="int64[8] i = {7,1,2,0,3,4,5,6}")
conv("Gather", "k = Gather<axis = -3>(h, i)", "3 channels: b1:0[3] w1:0[3] w2:1", "5 channels: b1:0[5] w1:0[5]",
     form="selection, negative indices", w2="4,3,1,1", also="int64[3] i = {-1,2,-8}")
conv("Gather", "k = Gather<axis = 1>(h, i)", "5 channels: b1:0[5] w1:0[5]", "3 channels: b1:0[3] w1:0[3] w2:1x1",
     form="a channel twice", also="int64[4] i = {1,1,5,2}", w2="4,4,1,1")
conv("Gather", "g = Gather<axis = 1>(h, i) k = Unsqueeze(g, a)", "7 channels: b1:0[7] w1:0[7]",
     "w1:0[1] pinned: a single index that is picked out", form="scalar", w2="4,1,1,1",
     also="int64 i = {3}, int64[1] a = {1}")
conv("Gather", "g = Gather<axis = 1>(h, i) k = Reshape(g, s)", "4 channels: b1:0[4] w1:0[4]",
     "w1:0[4] pinned: a single index that is picked out", form="table", w2="4,4,1,1",
     also="int64[2,2] i = {3,1,0,2}, int64[4] s = {0,4,6,6}")
conv("Gather", "k = Gather<axis = 2>(h, i)", form="rows", also="int64[3] i = {5,0,2}")
matmul("Gather", "k = Gather<axis = 1>(h, i)", form="class token", also="int64 i = {0}", tail="y = Gemm(k, w2)")
conv("Gather", "g = Gather<axis = 1>(h, i) u = Conv(x, w3) v = Reshape(u, s) k = Add(g, v)",
     "4 channels: b1:0[4] w1:0[4]", "w1:0[4] pinned: a single index that is picked out",
     "w3:0 pinned: reshaped: every factor of the axis is pinned", form="table, meets another layer",
     also="int64[2,2] i = {3,1,0,2}, int64[5] s = {2,2,2,6,6}, float[4,3,1,1] w3, " "int64[4] q = {2,4,6,6}",
     tail="t = Reshape(k, q) y = Conv(t, w2)", w2="4,4,1,1")
free("Gather", "embedding", "int64[2,5] x", "float[10,8] w1, float[8,4] w2", "k = Gather(w1, x) y = MatMul(k, w2)",
     "8 channels: w1:1 w2:0")
free("Gather", "channels chosen at run time", "float[2,3,6,6] x, int64[3] i", "float[8,3,1,1] w1, float[4,3,1,1] w2",
     "h = Conv(x, w1) k = Gather<axis = 1>(h, i) y = Conv(k, w2)", "w1:0 pinned: looked up with computed indices")
free("Gather", "q, k and v of one tensor", "float[2,5,3] x",
     """float[3,24] w1, float[8,4] w2, int64[5] s = {2,5,3,4,2}, int64[3] t = {2,5,8},
     int64 i = {0}, int64 j = {1}, int64 l = {2}""",
     """h0 = MatMul(x, w1) h1 = Reshape(h0, s) h = Transpose<perm = [2,0,3,1,4]>(h1)
     q = Gather(h, i) k0 = Gather(h, j) v = Gather(h, l) k = Transpose<perm = [0,1,3,2]>(k0)
     a0 = MatMul(q, k) a = Softmax(a0) o0 = MatMul(a, v) o1 = Transpose<perm = [0,2,1,3]>(o0) o = Reshape(o1, t)
     y = MatMul(o, w2)""", "4 heads: w1:1x6 w2:0x2", "2 head_dim: w1:1x12 w2:0x4")
_PADDED = "8 channels: b1:0 w1:0 w2:1[8]"
conv("Pad", "k = Pad(h, p)", form="rows and columns", also="int64[8] p = {0,0,1,2,0,0,1,2}")
conv("Pad", "k = Pad(h, p)", _PADDED, form="channels, input", also="int64[8] p = {0,2,0,0,0,2,0,0}", w2="4,12,1,1")
conv("Pad", "k = Pad<pads = [0,2,0,0,0,2,0,0], value = 1.5>(h)", _PADDED, form="channels, attribute", opset=10,
     w2="4,12,1,1")
conv("Pad", "k = Pad(h, p, v, a)", _PADDED, form="channels, axes", opset=18, w2="4,11,1,1",
     also="int64[4] p = {1,0,2,1}, int64[2] a = {-3,2}, float v = {0.5}")
conv("Pad", "g = Conv(x, w3) p = Pad(g, q) k = Add(h, p)", "4 channels: b1:0[4] w1:0[4] w2:1[4]",
     "4 channels: b1:0[4] w1:0[4] w2:1[4] w3:0", form="shortcut of a narrower stage",
     also="float[4,3,1,1] w3, int64[8] q = {0,2,0,0,0,2,0,0}")
conv("Pad", 'k = Pad<mode = "reflect">(h, p)', form="rows reflected", also="int64[8] p = {0,0,1,1,0,0,1,1}")
conv("Pad", 'k = Pad<mode = "reflect">(h, p)', "w1:0 pinned: padded by repetition or cropped",
     form="channels reflected", also="int64[8] p = {0,1,0,0,0,1,0,0}", w2="4,10,1,1")
conv("Pad", "k = Pad(h, p)", "w1:0 pinned: padded by repetition or cropped", form="channels cropped",
     also="int64[8] p = {0,-1,0,0,0,0,0,0}", w2="4,7,1,1")
conv("Pad", 'p = Pad<mode = "reflect">(h, q) g = Conv(x, w3) k = Add(p, g)',
     "w1:0 pinned: padded by repetition or cropped", "w3:0 pinned: padded by repetition or cropped", w2="4,10,1,1",
     form="channels reflected, meet another layer", also="float[10,3,1,1] w3, int64[8] q = {0,1,0,0,0,1,0,0}")
free("Pad", "pads at run time", "float[2,3,6,6] x, int64[8] p", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = Pad(h, p) y = Conv(k, w2)", "w1:0 pinned: the shape of k is not known")

# repeated and resized

conv("Expand", "g = GlobalAveragePool(h) k = Expand(g, s)", form="rows and columns", also="int64[4] s = {2,8,6,6}")
conv("Expand", "k = Expand(h, s)", form="by ones", also="int64[4] s = {1,1,1,6}")
conv("Expand", "k = Expand(h, s)", form="of lower rank", also="int64[3] s = {8,6,6}")
conv("Expand", "u = Unsqueeze(h, a) e = Expand(u, s) k = Reshape(e, t)", "8 channels: b1:0 w1:0 w2:1x2",
     form="every channel twice (grouped queries)",
     also="int64[1] a = {2}, int64[5] s = {2,8,2,6,6}, int64[4] t = {2,16,6,6}", w2="4,16,1,1")
conv("Expand", "g = Conv(x, w3) e = Expand(g, s) k = Add(h, e)", form="one channel repeated",
     also="float[1,3,1,1] w3, int64[4] s = {2,8,6,6}")
free("Expand", "shape at run time", "float[2,3,6,6] x, int64[4] s", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = Expand(h, s) y = Conv(k, w2)", "w1:0 pinned: a shape that is computed at run time")
conv("ConstantOfShape", "c = ConstantOfShape<value = float[1] {2}>(s) k = Mul(h, c)", form="constant shape",
     also="int64[4] s = {2,8,6,6}")
conv("ConstantOfShape", "t = Shape(h) c = ConstantOfShape<value = float[1] {2}>(t) k = Mul(h, c)",
     form="shape of the activation")
free("ConstantOfShape", "shape at run time", "float[2,3,6,6] x, int64[4] s", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) c = ConstantOfShape(s) k = Add(h, c) y = Conv(k, w2)", "w1:0 pinned: the shape of c is not known")
conv("Tile", "k = Tile(h, r)", "8 channels: b1:0 w1:0 w2:1x2", form="channels", also="int64[4] r = {1,2,1,1}",
     w2="4,16,1,1")
conv("Tile", "k = Tile(h, r)", form="rows and columns", also="int64[4] r = {1,1,2,3}")
conv("Tile", "g = Conv(x, w3) t = Tile(g, r) k = Add(h, t)", "w1:0 pinned: a single index that is repeated",
     form="one channel", also="float[1,3,1,1] w3, int64[4] r = {1,8,1,1}")
free("Tile", "repeats at run time", "float[2,3,6,6] x, int64[4] r", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = Tile(h, r) y = Conv(k, w2)", "w1:0 pinned: the shape of k is not known")
_LASTS = "t = Transpose<perm = [0,2,3,1]>(h) r = {} k = Transpose<perm = [0,3,1,2]>(r)"
conv("Resize", "k = Resize(h, , , s)", form="sizes", also="int64[4] s = {2,8,12,12}")
conv("Resize", "k = Resize(h, , s)", form="scales", also="float[4] s = {1,1,2,2}")
conv("Resize", "k = Resize(h, s)", form="scales, opset 10", opset=10, also="float[4] s = {1,1,2,2}")
conv("Resize", "t = Shape(h) p = Slice(t, i, n) s = Concat<axis = 0>(p, q) k = Resize(h, , , s)", form="computed sizes",
     also="int64[1] i = {0}, int64[1] n = {2}, int64[2] q = {9,9}")
conv("Resize", "t = Shape(h) c = Cast<to = 1>(t) s = Div(n, c) k = Resize(h, , s)", form="computed scales",
     also="float[4] n = {2,8,12,12}")
conv("Upsample", "t = Shape(h) c = Cast<to = 1>(t) s = Div(n, c) k = Upsample(h, s)", form="computed scales", opset=9,
     also="float[4] n = {2,8,12,12}")
conv("Resize", "k = Resize<axes = [2,3]>(h, , , s)", form="sizes of two axes", opset=18, also="int64[2] s = {12,9}")
conv("Resize", "k = Resize<axes = [3,1,2]>(h, , , s)", form="sizes of permuted axes", opset=18,
     also="int64[3] s = {12,8,9}")
conv("Resize", _LASTS.format("Resize(t, , , s)"), form="channels last", also="int64[4] s = {2,12,12,8}")
conv("Resize", _LASTS.format("Resize<axes = [1,2]>(t, , , s)"), form="channels last, sizes of two axes", opset=18,
     also="int64[2] s = {12,9}")
conv("Resize", 'k = Resize<mode = "linear">(h, , s)', "w1:0 pinned: resized", form="channels resized",
     also="float[4] s = {1,2,1,1}", w2="4,16,1,1")
conv("Resize", 'k = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(h, roi, , s)', "w1:0 pinned: resized",
     form="cropped", also="float[8] roi = {0,0,0,0,1,1,1,1}, int64[4] s = {2,8,12,12}")
conv("Upsample", "k = Upsample<scales = [1.0,1.0,2.0,2.0]>(h)", form="attribute", opset=7)
conv("Upsample", "k = Upsample(h, s)", form="input", opset=9, also="float[4] s = {1,1,2,2}")
conv("CenterCropPad", "k = CenterCropPad<axes = [2,3]>(h, s)", form="rows and columns", also="int64[2] s = {4,8}")
conv("CenterCropPad", "k = CenterCropPad<axes = [1]>(h, s)", "w1:0 pinned: cropped or padded", form="channels",
     also="int64[1] s = {6}", w2="4,6,1,1")
free("CenterCropPad", "shape at run time", "float[2,3,6,6] x, int64[2] s", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = CenterCropPad<axes = [2,3]>(h, s) y = Conv(k, w2)",
     "w1:0 pinned: the shape of k is not known")
conv("GridSample", "k = GridSample(h, g)", form="constant grid", also="float[2,4,5,2] g")
conv("GridSample", "t = Conv(h, w3) u = Transpose<perm = [0,2,3,1]>(t) k = GridSample(h, u)",
     "8 channels: b1:0 w1:0 w2:1 w3:1", "w3:0 pinned: sampled on a grid", form="computed grid",
     also="float[2,8,1,1] w3")
conv("Crop", "k = Crop<border = [1,1,1,1]>(h)", opset=7)
conv("RoiAlign", "k = RoiAlign<output_height = 2, output_width = 2>(h, r, i)",
     also="float[3,4] r = {0,0,3,3, 1,1,5,5, 0,2,4,5}, int64[3] i = {0,1,1}")
conv("MaxRoiPool", "k = MaxRoiPool<pooled_shape = [2,2]>(h, r)", also="float[2,5] r = {0,0,0,3,3, 1,1,1,5,5}")
free("Col2Im", "", "float[2,3,25] x", "float[32,3,1] w1, float[4,8,1,1] w2, int64[2] s = {6,6}, int64[2] b = {2,2}",
     "h = Conv(x, w1) k = Col2Im(h, s, b) y = Conv(k, w2)", "8 channels: w1:0x4 w2:1")
conv("Shape", "t = Shape(h) k = Reshape(h, t)", form="target of a Reshape")
conv("Shape", "t = Shape<start = 1, end = -2>(h) u = Cast<to = 1>(t) k = Div(h, u)", form="C as a number")
conv("Size", "t = Size(h) u = Cast<to = 1>(t) k = Div(h, u)", form="count as a number")
conv("Constant", "p = Constant<value = float[8,1,1] {1,2,3,4,5,6,7,8}>() k = Mul(h, p)", _P, form="per channel")
conv("Constant", "p = Constant<value_float = 2.0>() k = Mul(h, p)", form="scalar")

# reduced, normalised, pooled

_POSITIVE = "e = Abs(h) p = Add(e, one)"
for _op in "ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceMean".split():  # what is gone counts as zero
    _opset = 13 if _op == "ReduceSum" else 18
    conv(_op, f"{_POSITIVE} k = {_op}<keepdims = 0, axes = [1]>(p)", "8 channels: b1:0 w1:0", tail="y = Neg(k)",
         form="channels, attribute, no keepdims", opset=_opset - 2, also="float one = {1}")
    conv(_op, f"{_POSITIVE} k = {_op}(p, a)", "8 channels: b1:0 w1:0", tail="y = Neg(k)",
         form="channels and columns, input, keepdims", opset=_opset, also="float one = {1}, int64[2] a = {-3,-1}")
    conv(_op, f"{_POSITIVE} k = {_op}(p)", "8 channels: b1:0 w1:0", tail="y = Neg(k)", form="all axes", opset=_opset,
         also="float one = {1}")
    conv(_op, f"{_POSITIVE} k = {_op}(p, a)", form="rows and columns", opset=_opset,
         also="float one = {1}, int64[2] a = {2,3}")
    conv(_op, f"{_POSITIVE} k = {_op}<noop_with_empty_axes = 1>(p)", form="no axes, no-op", opset=_opset,
         also="float one = {1}")
for _op in "ReduceMax ReduceMin ReduceProd ReduceLogSum ReduceLogSumExp".split():
    _pinned = f"w1:0 pinned: reduced by {_op}, for which zero is not neutral"
    conv(_op, f"{_POSITIVE} k = {_op}<keepdims = 0, axes = [1]>(p)", _pinned, tail="y = Neg(k)",
         form="channels, attribute, no keepdims", opset=17, also="float one = {1}")
    conv(_op, f"{_POSITIVE} k = {_op}(p, a)", _pinned, tail="y = Neg(k)", form="channels, input, keepdims", opset=18,
         also="float one = {1}, int64[1] a = {-3}")
    conv(_op, f"{_POSITIVE} k = {_op}(p, a)", form="rows and columns", opset=18,
         also="float one = {1}, int64[2] a = {2,3}")
free("ReduceSum", "axes at run time", "float[2,3,6,6] x, int64[1] a", "float[8,3,1,1] w1",
     "h = Conv(x, w1) k = ReduceSum(h, a) y = Neg(k)", "w1:0 pinned: the shape of k is not known")
conv("ReduceMean", "i = Cast<to = 6>(h) m = ReduceMean(i, a) y = Cast<to = 1>(m)",
     "w1:0 pinned: a mean of integers, which cannot keep its divisor", form="channels, of integers", tail="",
     also="int64[1] a = {1}")
conv("ReduceMean", "m = ReduceMean(h, a) k = Sub(h, m)", "8 hidden: b1:0 w1:0 w2:1", form="centred over C",
     also="int64[1] a = {1}")
matmul("ReduceMean",
       "m = ReduceMean(h, a) c = Sub(h, m) q = Mul(c, c) v = ReduceMean(q, a) e = Add(v, eps) s = Sqrt(e) "
       "k = Div(c, s)", "8 hidden: w1:1 w2:0", form="decomposed LayerNormalization",
       also="int64[1] a = {-1}, float eps = {0.001}")
matmul("ReduceMean", "q = Mul(h, h) v = ReduceMean(q, a) e = Add(v, eps) s = Sqrt(e) k = Div(h, s)",
       "8 hidden: w1:1 w2:0", form="decomposed RMSNormalization", also="int64[1] a = {-1}, float eps = {0.001}")
for _op in ("ReduceMean", "ReduceMax"):
    matmul(_op, f"k = {_op}<keepdims = 0>(h, a)", form="tokens, no keepdims", also="int64[1] a = {1}",
           tail="y = Gemm(k, w2)")
for _op in "Softmax LogSoftmax Hardmax".split():
    conv(_op, f"k = {_op}(h)", form="last axis, opset 13")
    conv(_op, f"k = {_op}<axis = 1>(h)", f"w1:0 pinned: mixed by {_op}", form="channels, opset 13")
    conv(_op, f"k = {_op}<axis = 3>(h)", form="last axis, opset 11", opset=11)
    conv(_op, f"k = {_op}(h)", f"w1:0 pinned: mixed by {_op}", form="all but the batch, opset 11", opset=11)
    gemm(_op, f"k = {_op}<axis = 0>(h)", form="batch, opset 13")
    gemm(_op, f"k = {_op}<axis = 0>(h)", f"w1:1 pinned: mixed by {_op}", form="batch and all that follows, opset 11",
         opset=11)
for _op, _opset in (("CumSum", 14), ("CumProd", 26)):
    conv(_op, f"k = {_op}(h, a)", form="rows", also="int64 a = {2}", opset=_opset)
    conv(_op, f"k = {_op}(h, a)", "w1:0 pinned: accumulated along", form="channels", also="int64[1] a = {-3}",
         opset=_opset)
free("CumSum", "axis at run time", "float[2,3,6,6] x, int64 a", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = CumSum(h, a) y = Conv(k, w2)", "w1:0 pinned: accumulated along")
conv("LRN", "k = LRN<size = 3>(h)", "w1:0 pinned: mixed by LRN")
conv("Trilu", "k = Trilu(h)", form="rows and columns")
gemm("Trilu", "k = Trilu<upper = 0>(h)", "w1:1 pinned: cut along a diagonal", form="channels")
free("ReverseSequence", "time and batch", "float[5,2,3] x", "float[3,8] w1, float[8,4] w2, int64[2] n = {5,3}",
     "h = MatMul(x, w1) k = ReverseSequence(h, n) y = MatMul(k, w2)", "8 channels: w1:1 w2:0")
free("ReverseSequence", "batch and channels", "float[5,3] x", "float[3,8] w1, float[8,4] w2, int64[5] n = {8,3,5,1,2}",
     "h = MatMul(x, w1) k = ReverseSequence<batch_axis = 0, time_axis = 1>(h, n) y = MatMul(k, w2)",
     "w1:1 pinned: reversed in time")
gemm("LpNormalization", "k = LpNormalization<p = 2>(h)", "8 hidden: b1:0 w1:1 w2:0", form="last axis")
conv("LpNormalization", "k = LpNormalization<axis = 1, p = 1>(h)", "8 hidden: b1:0 w1:0 w2:1", form="channels")
conv("LpNormalization", "k = LpNormalization<axis = 2, p = 1>(h)", form="rows")
matmul("LayerNormalization", "k = LayerNormalization(h, g, b)", "8 hidden: b:0 g:0 w1:1 w2:0", form="last axis",
       also="float[8] g, float[8] b")
matmul("LayerNormalization", "k = LayerNormalization<axis = 1>(h, g, b)", "8 hidden: b:1 g:1 w1:1 w2:0",
       form="last two axes", also="float[5,8] g, float[5,8] b")
matmul("LayerNormalization", "n, m, d = LayerNormalization(h, g) o = Mul(n, d) k = Add(o, m)",
       "8 hidden: g:0 w1:1 w2:0", form="statistics as outputs", also="float[8] g")
conv("LayerNormalization", "k = LayerNormalization(h, g)", form="columns", also="float[6] g")
matmul("RMSNormalization", "k = RMSNormalization(h, g)", "8 hidden: g:0 w1:1 w2:0", opset=23, also="float[8] g")
matmul("SimplifiedLayerNormalization", "k = SimplifiedLayerNormalization(h, g)", "8 hidden: g:0 w1:1 w2:0",
       also="float[8] g")
matmul("com.microsoft::SkipLayerNormalization",
       "r = MatMul(x, w3) k = com.microsoft.SkipLayerNormalization(h, r, g, b, s)",
       "8 hidden: b:0 g:0 s:0 w1:1 w2:0 w3:1", form="bias", also="float[3,8] w3, float[8] g, float[8] b, float[8] s")
matmul("com.microsoft::SkipLayerNormalization",
       "r = MatMul(x, w3) n, , , t = com.microsoft.SkipLayerNormalization(h, r, g, b) k = Add(n, t)",
       "8 hidden: b:0 g:0 w1:1 w2:0 w3:1", form="sum as output", also="float[3,8] w3, float[8] g, float[8] b")
matmul("com.microsoft::SkipSimplifiedLayerNormalization",
       "r = MatMul(x, w3) k = com.microsoft.SkipSimplifiedLayerNormalization(h, r, g)", "8 hidden: g:0 w1:1 w2:0 w3:1",
       also="float[3,8] w3, float[8] g")
_BN = "float[8] vs, float[8] bb, float[8] m, float[8] vv"
for _opset in (7, 9, 15):
    conv("BatchNormalization", "k = BatchNormalization(h, vs, bb, m, vv)",
         "8 channels: b1:0 bb:0 m:0 vs:0 vv:0 w1:0 w2:1", form=f"opset {_opset}", opset=_opset, also=_BN)
gemm("BatchNormalization", "k = BatchNormalization(h, vs, bb, m, vv)", "8 channels: b1:0 bb:0 m:0 vs:0 vv:0 w1:1 w2:0",
     form="two axes", also=_BN)
conv("BatchNormalization", "k, rm, rv = BatchNormalization<training_mode = 1>(h, vs, bb, m, vv)",
     "w1:0 pinned: axis of the graph output rm", form="training", also=_BN, outputs="float[] y, float[] rm, float[] rv")
conv("InstanceNormalization", "k = InstanceNormalization(h, g, b)", "8 channels: b1:0 b:0 g:0 w1:0 w2:1",
     also="float[8] g, float[8] b")
conv("InstanceNormalization", "s = Reshape(h, a) n = InstanceNormalization(s, g, b) r = Reshape(n, c) m = Mul(r, p) "
     "k = Add(m, q)", "4 channels: b1:0x2 b:0 g:0 p:0x2 q:0x2 w1:0x2 w2:1x2", form="decomposed GroupNormalization",
     also="int64[3] a = {0,4,-1}, int64[4] c = {2,8,6,6}, float[4] g, float[4] b, float[8,1,1] p, float[8,1,1] q")
conv("MeanVarianceNormalization", "k = MeanVarianceNormalization(h)", form="per channel")
conv("MeanVarianceNormalization", "k = MeanVarianceNormalization<axes = [1,2,3]>(h)", "w1:0 pinned: normalised over",
     form="over channels")
conv("GroupNormalization", "k = GroupNormalization<num_groups = 4>(h, g, b)",
     "4 channels: b1:0x2 b:0 g:0 w1:0x2 w2:1x2", form="scale per group, opset 18", opset=18,
     also="float[4] g, float[4] b")
conv("GroupNormalization", "k = GroupNormalization<num_groups = 4>(h, g, b)",
     "4 channels: b1:0x2 b:0x2 g:0x2 w1:0x2 w2:1x2", form="scale per channel, opset 21", also="float[8] g, float[8] b")
conv("GroupNormalization", "k = GroupNormalization<num_groups = 8>(h, g, b)", "8 channels: b1:0 b:0 g:0 w1:0 w2:1",
     form="a group per channel", also="float[8] g, float[8] b")
conv("GroupNormalization", "k = GroupNormalization<num_groups = 1>(h, g, b)", "8 hidden: b1:0 b:0 g:0 w1:0 w2:1",
     form="one group", also="float[8] g, float[8] b")
for _op, _attrs in (
    ("AveragePool", "<kernel_shape = [3,3], pads = [1,1,1,1]>"), ("MaxPool", "<kernel_shape = [2,2], strides = [2,2]>"),
    ("LpPool", "<kernel_shape = [2,2], p = 2>"), ("GlobalAveragePool", ""), ("GlobalMaxPool", ""),
    ("GlobalLpPool", "<p = 2>"),
):
    conv(_op, f"k = {_op}{_attrs}(h)")
conv("MaxPool", "k, i = MaxPool<kernel_shape = [2,2]>(h)", "w1:0 pinned: MaxPool indices count across channels",
     form="indices", outputs="float[] y, int64[] i")
conv("MaxPool", "k, i = MaxPool<kernel_shape = [2,2]>(h)", form="indices that nobody reads")
for _op in ("ArgMax", "ArgMin"):
    conv(_op, f"i = {_op}<axis = 2>(h) k = Cast<to = 1>(i)", form="rows")
    conv(_op, f"i = {_op}<axis = -1, keepdims = 0>(h) k = Cast<to = 1>(i)", form="columns, no keepdims", w2="4,8,1")
    matmul(_op, f"i = {_op}<axis = 1, keepdims = 0>(h) k = Cast<to = 1>(i)", form="tokens, no keepdims",
           tail="y = Gemm(k, w2)")
    conv(_op, f"i = {_op}<axis = 1>(h) y = Cast<to = 1>(i)", f"w1:0 pinned: {_op} returns indices of this axis",
         form="channels", tail="")
free("GatherElements", "experts that are chosen", "float[5,3] x", "float[3,8] w1, int64[1] n = {2}",
     """h = MatMul(x, w1) v, i = TopK(h, n) p = Softmax(h) y = GatherElements<axis = 1>(p, i)""", "8 experts: w1:1")
conv("TopK", "k, i = TopK<axis = 2>(h, n)", form="rows", also="int64[1] n = {2}")
conv("TopK", "k, i = TopK<k = 2>(h)", form="attribute", opset=9)
conv("TopK", "k, i = TopK<axis = 1>(h, n)", "w1:0 pinned: TopK returns indices of this axis", form="channels",
     also="int64[1] n = {2}", w2="4,2,1,1")
conv("TopK", "t, i = TopK<axis = 1>(h, n) g = Conv(x, w3) k = Add(g, t)",
     "w1:0 pinned: TopK returns indices of this axis", "w3:0 pinned: TopK returns indices of this axis",
     form="channels, meet another layer", also="int64[1] n = {2}, float[2,3,1,1] w3", w2="4,2,1,1")

# axes that a layer makes, but that are no channels to the operator

_GRID = "a spatial axis of a convolution or pooling"
_Q = "s = Constant<value = float {0.05}>() z = Constant<value = uint8 {120}>() q = QuantizeLinear(h, s, z)"
for _op, _call, _also, _opset, _reason in (
    ("Conv", "Conv(h, w2)", "float[4,4,3,3] w2", 21, _GRID),
    ("ConvTranspose", "ConvTranspose(h, w2)", "float[4,4,2,2] w2", 21, _GRID),
    ("DeformConv", "DeformConv(h, w2, o)", "float[4,4,2,2] w2, float[2,8,5,7] o", 19, _GRID),
    ("AveragePool", "AveragePool<kernel_shape = [2,2]>(h)", "", 21, _GRID),
    ("MaxPool", "MaxPool<kernel_shape = [2,2]>(h)", "", 21, _GRID),
    ("LpPool", "LpPool<kernel_shape = [2,2]>(h)", "", 21, _GRID),
    ("GlobalAveragePool", "GlobalAveragePool(h)", "", 21, _GRID),
    ("GlobalMaxPool", "GlobalMaxPool(h)", "", 21, _GRID),
    ("GlobalLpPool", "GlobalLpPool(h)", "", 21, _GRID),
    ("InstanceNormalization", "InstanceNormalization(h, g, b)", "float[4] g, float[4] b", 21,
     "normalised over by InstanceNormalization"),
    ("GroupNormalization", "GroupNormalization<num_groups = 2>(h, g, b)", "float[4] g, float[4] b", 21,
     "normalised over by GroupNormalization"),
    ("MeanVarianceNormalization", "MeanVarianceNormalization(h)", "", 21, "normalised over"),
    ("DepthToSpace", "DepthToSpace<blocksize = 2>(h)", "", 21, "a spatial axis of DepthToSpace or SpaceToDepth"),
    ("SpaceToDepth", "SpaceToDepth<blocksize = 2>(h)", "", 21, "a spatial axis of DepthToSpace or SpaceToDepth"),
    ("Resize", "Resize(h, , s)", "float[4] s = {1,1,2,1}", 21, "resized"),
    ("Upsample", "Upsample(h, s)", "float[4] s = {1,1,2,2}", 9, "resized"),
    ("CenterCropPad", "CenterCropPad<axes = [3]>(h, s)", "int64[1] s = {4}", 21, "cropped or padded"),
    ("GridSample", "GridSample(h, g)", "float[2,4,5,2] g", 21, "sampled on a grid"),
    ("Crop", "Crop<border = [1,1,1,1]>(h)", "", 7, "sampled on a grid"),
    ("MaxRoiPool", "MaxRoiPool<pooled_shape = [2,2]>(h, r)", "float[1,5] r = {0,0,0,3,3}", 21, "regions of interest"),
    ("RoiAlign", "RoiAlign(h, r, i)", "float[1,4] r = {0,0,3,3}, int64[1] i = {0}", 21, "regions of interest"),
    ("com.microsoft::QLinearGlobalAveragePool", "com.microsoft.QLinearGlobalAveragePool(q, s, z, s, z)", "", 21,
     "a spatial axis of a pooling"),
):
    _uses, _type = (f"{_Q} y =", "uint8[] y") if "QLinear" in _op else ("y =", "float[] y")
    put(_op, "columns are made by a layer", text("float[2,4,6,5] x", f"float[5,8] w1{', ' * bool(_also)}{_also}",
        f"h = MatMul(x, w1) {_uses} {_call}", opset=_opset, outputs=_type),
        ("8 channels: w1:1",) if _op == "GlobalAveragePool" else (f"w1:1 pinned: {_reason}",), _opset,
        "onnxruntime", "")
free("LSTM", "time is made by a layer", "float[5,6] x", """float[8,5] w1, int64[3] s = {8,2,3}, float[1,16,3] w,
     float[1,16,4] r""", "g = MatMul(w1, x) h = Reshape(g, s) y = LSTM<hidden_size = 4>(h, w, r)",
     "w1:0 pinned: time and batch of a recurrent layer")
free("Col2Im", "columns are made by a layer", "float[2,16,5] x",
     "float[5,25] w1, int64[2] s = {6,6}, int64[2] b = {2,2}", "h = MatMul(x, w1) y = Col2Im(h, s, b)",
     "w1:1 pinned: a spatial axis of Col2Im")
for _op, _call, _also in (
    ("Conv", "Conv(h, w2)", "float[4,4,3,3] w2"), ("ConvTranspose", "ConvTranspose(h, w2)", "float[4,4,2,2] w2"),
    ("MaxPool", "MaxPool<kernel_shape = [2,2]>(h)", ""), ("GlobalAveragePool", "GlobalAveragePool(h)", ""),
    ("DepthToSpace", "DepthToSpace<blocksize = 2>(h)", ""), ("InstanceNormalization", "InstanceNormalization(h, p, p)",
    "float[4] p"), ("Softmax", "Softmax(h)", ""), ("Resize", "Resize(h, , z)", "float[4] z = {1,1,2,2}"),
):
    free(_op, "the batch is made by a layer", "float[3,64] x", f"float[8,3] w1, int64[4] s = {{8,4,4,4}}, "
         f"int64[1] a = {{0}}{', ' * bool(_also)}{_also}",
         f"g = MatMul(w1, x) h = Reshape(g, s) k = {_call} y = ReduceSum(k, a)", "8 channels: w1:0")

for _op, _call, _also, _reason in (
    ("GridSample", "GridSample(h, p)", "float[8,4,5,2] p", "sampled on a grid"),
    ("DeformConv", "DeformConv(h, w2, p)", "float[4,4,2,2] w2, float[8,8,3,3] p",
    "offsets of a deformable convolution"),
):
    free(_op, "the batch is made by a layer", "float[3,64] x", f"float[8,3] w1, int64[4] s = {{8,4,4,4}}, "
         f"int64[1] a = {{0}}, {_also}", f"g = MatMul(w1, x) h = Reshape(g, s) k = {_call} y = ReduceSum(k, a)",
         f"w1:0 pinned: {_reason}")

# 8-bit values

_PER = "8 channels: b1:0 vs:0 w1:0 w2:1 z:0"
_ZERO = "float[8] vs, int8[8] z = {1,2,3,4,5,6,7,8}"
for _domain in ("", "com.microsoft."):
    _name = _domain.replace(".", "::").replace("com::", "com.") + "{}"
    for _op in ("QuantizeLinear", "DequantizeLinear"):
        _pair = "q = {0}QuantizeLinear{1}(h, {2}) k = {0}DequantizeLinear{1}(q, {2})"
        conv(_name.format(_op), _pair.format(_domain, "", "s, z"), form="per tensor",
             also="float s = {0.05}, uint8 z = {120}")
        conv(_name.format(_op), _pair.format(_domain, "<axis = -3>", "vs, z"), _PER, form="per channel", also=_ZERO)
conv("QuantizeLinear", "q = QuantizeLinear<axis = 1>(h, vs) k = DequantizeLinear<axis = 1>(q, vs)",
     "8 channels: b1:0 vs:0 w1:0 w2:1", form="no zero point", also="float[8] vs")
conv("QuantizeLinear", "q = QuantizeLinear(h, s, z) k = DequantizeLinear(q, s, z)", form="vectors of one",
     also="float[1] s = {0.05}, int8[1] z = {3}")
gemm("QuantizeLinear", "q = QuantizeLinear<axis = 0, block_size = 5>(h, vs) "
     "k = DequantizeLinear<axis = 0, block_size = 5>(q, vs)", "8 channels: b1:0 vs:1 w1:1 w2:0",
     form="blocks along the batch", also="float[1,8] vs")
gemm("DequantizeLinear", "v = DequantizeLinear<axis = 0, block_size = 4>(w3, vs) k = Gemm(h, v)",
     "6 channels: vs:1 w2:0 w3:1", "w1:1 pinned: a blocked quantisation axis", form="weight in blocks along its inputs",
     also="int8[8,6] w3, float[2,6] vs", w2="6,4")
gemm("DequantizeLinear", "v = DequantizeLinear(w3, vs) k = Gemm(h, v)", "8 channels: b1:0 w1:1 w3:0",
     "6 channels: vs:0 w2:0 w3:1", form="weight with a scale per output", also="int8[8,6] w3, float[6] vs", w2="6,4")
gemm("DequantizeLinear", "v = DequantizeLinear<axis = 0>(w3, vs, z3) k = Gemm<transB = 1>(h, v)",
     "8 channels: b1:0 w1:1 w3:1", "6 channels: vs:0 w2:0 w3:0 z3:0", form="weight with a scale per row",
     also="int8[6,8] w3, float[6] vs, int8[6] z3 = {1,2,3,4,5,6}", w2="6,4")
matmul("DynamicQuantizeLinear", "q, s, z = DynamicQuantizeLinear(h) k = DequantizeLinear(q, s, z)", form="noise")
matmul("DynamicQuantizeLinear", "m = Mul(h, p) q, s, z = DynamicQuantizeLinear(m) k = DequantizeLinear(q, s, z)",
       "8 channels: p:0 w1:1 w2:0", form="what goes sets the range", also="float[8] p = {1,9,9,9,1,1,1,1}")
_SCALAR = "float s = {0.05}, uint8 z = {120}"
_PAIR = "q = QuantizeLinear(h, s, z) {} k = DequantizeLinear(c, s, z)"
for _op in ("QLinearAdd", "QLinearMul"):
    conv(f"com.microsoft::{_op}", _PAIR.format(f"r = Relu(h) t = QuantizeLinear(r, s, z) "
         f"c = com.microsoft.{_op}(q, s, z, t, s, z, s, z)"), form="activations", also=_SCALAR)
    conv(f"com.microsoft::{_op}", _PAIR.format(f"c = com.microsoft.{_op}(q, s, z, p, s, z, s, z)"), _P,
         form="constant per channel", also=f"{_SCALAR}, uint8[8,1,1] p = {{10,20,30,40,50,60,70,80}}")
conv("com.microsoft::QLinearSigmoid", _PAIR.format("c = com.microsoft.QLinearSigmoid(q, s, z, s, z)"), also=_SCALAR)
conv("com.microsoft::QLinearLeakyRelu", _PAIR.format("c = com.microsoft.QLinearLeakyRelu<alpha = 0.2>(q, s, z, s, z)"),
     also=_SCALAR)
for _op, _kernel in (("QLinearGlobalAveragePool", ""), ("QLinearAveragePool", "kernel_shape = [2,2], ")):
    conv(f"com.microsoft::{_op}", _PAIR.format(f"c = com.microsoft.{_op}<{_kernel}channels_last = 0>(q, s, z, s, z)"),
         form="channels first", also=_SCALAR)
    conv(f"com.microsoft::{_op}", "q = QuantizeLinear(h, s, z) t = Transpose<perm = [0,2,3,1]>(q) "
         f"c = com.microsoft.{_op}<{_kernel}channels_last = 1>(t, s, z, s, z) k = DequantizeLinear(c, s, z)", _LAST,
         form="channels last", also=_SCALAR, w2="8,4", tail="y = MatMul(k, w2)")
conv("com.microsoft::QLinearConcat", _PAIR.format("g = Conv(x, w3) t = QuantizeLinear(g, s, z) "
     "c = com.microsoft.QLinearConcat<axis = 1>(s, z, q, s, z, t, s, z)"), "8 channels: b1:0 w1:0 w2:1[8]",
     "6 channels: w2:1[6] w3:0", w2="4,14,1,1", also=f"{_SCALAR}, float[6,3,1,1] w3")

# recurrent layers: W (D, g*H, I), R (D, g*H, H), B (D, 2*g*H)

for _op, _g in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    _x = f"x{_g}" if _g > 1 else ""
    _w = f"float[3,6] w1, float[1,{_g * 8},6] w, float[1,{_g * 8},8] r, float[1,{_g * 16}] b, float[8,4] w2"
    _in, _gates = "6 channels: w1:1 w:2", f"r:1{_x} r:2 w2:0 w:1{_x}"
    _out = f"8 channels: b:1x{2 * _g} {_gates}"
    free(_op, "forward", "float[5,2,3] x", f"{_w}, int64[1] a = {{1}}",
         f"h = MatMul(x, w1) o = {_op}<hidden_size = 8>(h, w, r, b) s = Squeeze(o, a) y = MatMul(s, w2)", _in, _out)
    free(_op, "no bias, last state", "float[5,2,3] x", f"{_w}, int64[1] a = {{0}}",
         f"h = MatMul(x, w1) o, l = {_op}<hidden_size = 8>(h, w, r) s = Squeeze(l, a) y = MatMul(s, w2)", _in,
         f"8 channels: {_gates}")
    _c0, _more = (", c0", "float[1,2,8] c0, ") if _op == "LSTM" else ("", "")
    free(_op, "initial states and lengths", "float[5,2,3] x",
         f"{_w}, int64[1] a = {{1}}, int32[2] n = {{5,3}}, {_more}float[1,2,8] h0",
         f"h = MatMul(x, w1) o = {_op}<hidden_size = 8>(h, w, r, b, n, h0{_c0}) s = Squeeze(o, a) y = MatMul(s, w2)",
         _in, f"8 channels: b:1x{2 * _g} {'c0:2 ' if _c0 else ''}h0:2 {_gates}")
    free(_op, "bidirectional", "float[5,2,3] x",
         f"float[3,6] w1, float[2,{_g * 8},6] w, float[2,{_g * 8},8] r, float[2,{_g * 16}] b, float[16,4] w2, "
         "int64[3] a = {0,0,-1}",
         f'h = MatMul(x, w1) o = {_op}<hidden_size = 8, direction = "bidirectional">(h, w, r, b) '
         "t = Transpose<perm = [0,2,1,3]>(o) s = Reshape(t, a) y = MatMul(s, w2)", _in, _out.replace("w2:0", "w2:0x2"))
    _more = _more.replace("1,2,8", "2,1,8")
    free(_op, "layout 1", "float[2,5,3] x", f"{_w}, int64[1] a = {{2}}, {_more}float[2,1,8] h0",
         f"h = MatMul(x, w1) o = {_op}<hidden_size = 8, layout = 1>(h, w, r, b, , h0{_c0}) s = Squeeze(o, a) "
         "y = MatMul(s, w2)", _in, f"8 channels: b:1x{2 * _g} {'c0:2 ' if _c0 else ''}h0:2 {_gates}", law="reference",
         why="onnxruntime has no layout 1")
free("LSTM", "peepholes", "float[5,2,3] x", """float[3,6] w1, float[1,32,6] w, float[1,32,8] r, float[1,64] b,
     float[1,24] p, float[8,4] w2, int64[1] a = {1}""",
     "h = MatMul(x, w1) o = LSTM<hidden_size = 8>(h, w, r, b, , , , p) s = Squeeze(o, a) y = MatMul(s, w2)",
     "6 channels: w1:1 w:2", "8 channels: b:1x8 p:1x3 r:1x4 r:2 w2:0 w:1x4")
free("LSTM", "two layers", "float[5,2,3] x", """float[3,6] w1, float[1,32,6] wa, float[1,32,8] ra, float[1,16,8] wb,
     float[1,16,4] rb, float[4,4] w2, int64[1] a = {1}""",
     "h = MatMul(x, w1) o = LSTM<hidden_size = 8>(h, wa, ra) m = Squeeze(o, a) p = LSTM<hidden_size = 4>(m, wb, rb) "
     "s = Squeeze(p, a) y = MatMul(s, w2)", "6 channels: w1:1 wa:2", "8 channels: ra:1x4 ra:2 wa:1x4 wb:2",
     "4 channels: rb:1x4 rb:2 w2:0 wb:1x4")
free("GRU", "linear before reset", "float[5,2,3] x", """float[3,6] w1, float[1,24,6] w, float[1,24,8] r,
     float[1,48] b, float[8,4] w2, int64[1] a = {1}""",
     "h = MatMul(x, w1) o = GRU<hidden_size = 8, linear_before_reset = 1>(h, w, r, b) s = Squeeze(o, a) "
     "y = MatMul(s, w2)", "6 channels: w1:1 w:2", "8 channels: b:1x6 r:1x3 r:2 w2:0 w:1x3")

# bodies

_WEIGHTS = "float[8,3,1,1] w1, float[4,8,1,1] w2, float[4,8,1,1] w3"
free("If", "captures", "float[2,3,6,6] x, bool c", _WEIGHTS, """h = Conv(x, w1)
     y = If<then_branch = t () => (float[2,4,6,6] p) { p = Conv(h, w2) },
            else_branch = e () => (float[2,4,6,6] q) { r = Relu(h) q = Conv(r, w3) }>(c)""",
     "8 channels: w1:0 w2:1 w3:1")
free("If", "captures, the other branch runs", "float[2,3,6,6] x, bool c", _WEIGHTS, """h = Conv(x, w1) d = Not(c)
     y = If<then_branch = t () => (float[2,4,6,6] p) { p = Conv(h, w2) },
            else_branch = e () => (float[2,4,6,6] q) { r = Relu(h) q = Conv(r, w3) }>(d)""",
     "8 channels: w1:0 w2:1 w3:1")
free("If", "passes on", "float[2,3,6,6] x, bool c", _WEIGHTS, """h = Conv(x, w1)
     k = If<then_branch = t () => (float[2,8,6,6] p) { p = Relu(h) },
            else_branch = e () => (float[2,8,6,6] q) { q = Neg(h) }>(c) y = Conv(k, w2)""", "8 channels: w1:0 w2:1")
free("If", "branches of different shapes", "float[2,3,6,6] x, bool c", "float[8,3,1,1] w1, int64[1] a = {1}",
     """h = Conv(x, w1)
     k = If<then_branch = t () => (float[2,8,6,6] p) { p = Relu(h) },
            else_branch = e () => (float[2,1,6,6] q) { q = ReduceSum(h, a) }>(c) y = ReduceSum(k, a)""",
     "w1:0 pinned: branches of If return different shapes")
free("If", "holds both layers", "float[2,3,6,6] x, bool c", _WEIGHTS, """
     y = If<then_branch = t () => (float[2,4,6,6] p) { h = Conv(x, w1) r = Relu(h) p = Conv(r, w2) },
            else_branch = e () => (float[2,4,6,6] q) { i = Conv(x, w1) j = Neg(i) q = Conv(j, w3) }>(c)""",
     "8 channels: w1:0 w2:1 w3:1")
free("Loop", "captures, and holds both layers", "float[2,3,6,6] x, bool c",
     f"{_WEIGHTS}, float[8,4,1,1] w4, int64 n = {{3}}",
     """h = Conv(x, w1) z = Conv(h, w2)
     o = Loop<body = b (int64 i, bool ci, float[2,4,6,6] s) => (bool co, float[2,4,6,6] so) {
         p = Conv(s, w4) a = Add(p, h) r = Relu(a) so = Conv(r, w3) co = Identity(ci) }>(n, c, z)
     y = Neg(o)""", "8 channels: w1:0 w2:1 w3:1 w4:0", "w2:0 pinned: passes through Loop",
     "w3:0 pinned: enters or leaves a body of Loop")
free("Loop", "carries", "float[2,3,6,6] x, bool c", f"{_WEIGHTS}, int64 n = {{3}}", """h = Conv(x, w1)
     o, t = Loop<body = b (int64 i, bool ci, float[2,8,6,6] s) => (bool co, float[2,8,6,6] so, float[2,8,6,6] sc) {
         so = Relu(s) sc = Identity(so) co = Identity(ci) }>(n, c, h)
     y = Conv(o, w2)""", "w1:0 pinned: passes through Loop")
free("Scan", "holds both layers", "float[5,3] x, float[4] s0", "float[3,8] w1, float[8,4] w2", """
     e, y = Scan<num_scan_inputs = 1, body = b (float[4] s, float[3] i) => (float[4] so, float[4] o) {
         h = MatMul(i, w1) r = Relu(h) a = MatMul(r, w2) so = Add(s, a) o = Identity(so) }>(s0, x)""",
     "8 channels: w1:1 w2:0", "w2:1 pinned: enters or leaves a body of Scan")
free("Scan", "scans", "float[5,3] x, float[4] s0", "float[3,8] w1, float[8,4] w2", """h = MatMul(x, w1)
     e, y = Scan<num_scan_inputs = 1, body = b (float[4] s, float[8] i) => (float[4] so, float[4] o) {
         a = MatMul(i, w2) so = Add(s, a) o = Identity(so) }>(s0, h)""", "w1:1 pinned: passes through Scan",
     "w2:1 pinned: enters or leaves a body of Scan")
# fmt: on


# the rows


def shrink(analysis: Analysis, kinds: Iterable[str], ratio: float = 0.4) -> Keep:
    """What stays when `ratio` of every group of the kinds goes, bool per id."""
    groups = [g for g in analysis.groups if g.kind in kinds]
    scores = score(analysis, groups, importance="random")
    keeps = uniform(groups, scores, dict.fromkeys((g.name for g in groups), ratio), round_to=1, max_ratio=1.0)
    return analysis.keep_ids(keeps)


def reference_error(analysis: Analysis, keep: Keep, pruned: Model) -> float:
    """Largest difference between masked and pruned model over the largest value, both run by onnx's own evaluator."""
    model = analysis.model
    feeds = random_feeds(model, analysis.coupling.shapes, next(concrete_inputs(model)))
    models = (masked_model(analysis, keep), pruned)
    values: list[Any] = [ReferenceEvaluator(to_proto(m)).run(None, feeds) for m in models]
    expected, found = (np.asarray(v[0]) for v in values)
    assert expected.shape == found.shape
    return float(np.abs(expected - found).max() / np.abs(expected).max())


@pytest.mark.parametrize("row", ROWS, ids=[f"{r.op.removeprefix('com.microsoft::')}-{r.form}" for r in ROWS])
def test_rule(row: Row) -> None:
    if row.opset > LATEST:
        pytest.skip(f"this onnx ends at opset {LATEST}")
    channels = any(" channels: " in line for line in row.expect)
    result = cut(build(row.text), check=channels and row.law == "onnxruntime")
    analysis, kinds = result.analysis, {g.kind for g in result.analysis.groups}
    assert describe(analysis) == row.expect
    assert (result.removed > 0) == channels
    if result.verification:
        allowed = 2e-2 if tolerance(analysis) > 1e-2 else 1e-5  # 8 bits: a step is about a hundredth
        assert result.error <= allowed
    if kinds - {"channels"}:
        keep = shrink(analysis, kinds)
        assert not keep.all()
        if row.law == "onnxruntime":
            assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5
        check_file(analysis.model, prune_model(analysis, keep))
    if row.law != "onnxruntime":
        keep = shrink(analysis, ("channels",))
        check_file(analysis.model, result.pruned)
        if row.law == "reference":
            assert reference_error(analysis, keep, prune_model(analysis, keep)) <= 1e-5


def test_lp_normalization_counts_what_goes_as_zero() -> None:
    for row in ROWS:
        if row.op == "LpNormalization" and "hidden" in row.expect[0]:
            analysis = analyze(load(build(row.text)))
            keep = shrink(analysis, ("hidden",))
            assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5


def test_what_a_row_says_is_unique() -> None:
    names = [(r.op, r.form) for r in ROWS]
    assert len(set(names)) == len(names)
    assert len({(r.op, r.text) for r in ROWS}) == len(ROWS)


def test_every_rule_has_a_row_that_holds_its_operator() -> None:
    for row in ROWS:
        assert row.op.replace("::", ".") in row.text, row
    forms = {node.op for f in TRANSFORMERS.values() for node in walk_all(f.build().graph, {})}
    assert {r.op for r in ROWS} | (forms & RULES.keys()) == RULES.keys()


# the tables


def test_every_operator_of_onnx_has_a_rule_or_is_a_barrier() -> None:
    assert SCHEMAS.keys() <= RULES.keys() | BARRIERS.keys()
    assert not RULES.keys() & BARRIERS.keys()


def test_tables_explain_themselves() -> None:
    assert [op for op, r in RULES.items() if not r.summary] == []
    assert [op for op, reason in BARRIERS.items() if not reason] == []


def beside(op: str, inputs: int = 1) -> onnx.ModelProto:
    """A layer that ends in the operator, whose result nobody reads, and an independent pair of layers."""
    name = op.replace("::", ".")
    nodes = f"h = Conv(x, w1) t = {name}({', '.join(['h'] * inputs)}) g = Conv(x, w2) r = Relu(g) y = Conv(r, w3)"
    weights = "float[8,3,1,1] w1, float[8,3,1,1] w2, float[4,8,1,1] w3"
    return build(text("float[2,3,6,6] x", weights, nodes, opset=LATEST))


@pytest.mark.parametrize("op", sorted(BARRIERS))
def test_barrier_pins_what_it_touches_and_nothing_else(op: str) -> None:
    inputs = max(1, SCHEMAS[op].min_input) if op in SCHEMAS else 3
    result = cut(beside(op, inputs), check=False)
    assert describe(result.analysis) == ("8 channels: w2:0 w3:1", f"w1:0 pinned: {BARRIERS[op]}")
    assert result.pruned.weights["w2"].shape == (5, 3, 1, 1)
    assert result.pruned.weights["w1"].shape == (8, 3, 1, 1)


@pytest.mark.parametrize("op", ["elsewhere::Magic", "elsewhere::Relu", "com.microsoft::Inverse"])
def test_unknown_operator_pins_what_it_touches_and_nothing_else(op: str) -> None:
    result = cut(beside(op), check=False)
    assert describe(result.analysis) == ("8 channels: w2:0 w3:1", "w1:0 pinned: no rule for this operator")
    pinned = {p.tensor: p for p in result.analysis.pinned}["w1"]
    assert (pinned.op, pinned.node) == (op, f"{op.rpartition(':')[2]}(t)")


# coupling: views


@pytest.mark.parametrize(
    ("xs", "ys", "runs"),
    [
        ((2, 12, 5), (2, 3, 4, 5), [((0, 1), (0, 1)), ((1, 2), (1, 3)), ((2, 3), (3, 4))]),
        ((2, 8, 6, 6), (2, 288), [((0, 1), (0, 1)), ((1, 4), (1, 2))]),
        ((6, 4), (4, 6), [((0, 2), (0, 2))]),
        ((6, 4), (6, 4), [((0, 1), (0, 1)), ((1, 2), (1, 2))]),
        ((4, 6, 10), (8, 3, 10), [((0, 2), (0, 2)), ((2, 3), (2, 3))]),
        ((8,), (8, 1, 1), [((0, 1), (0, 1)), ((1, 1), (1, 2)), ((1, 1), (2, 3))]),
        ((), (1,), [((0, 0), (0, 1))]),
    ],
)
def test_segments(xs: tuple[int, ...], ys: tuple[int, ...], runs: list[tuple[tuple[int, int], ...]]) -> None:
    found = list(_segments(xs, ys))
    assert [((i.start, i.stop), (j.start, j.stop)) for i, j in found] == runs
    for i, j in found:
        assert np.prod([xs[k] for k in i]) == np.prod([ys[k] for k in j])


@pytest.mark.parametrize(
    ("xs", "ys", "factors"),
    [
        ((6, 4), (2, 12), [2, 3, 4]),
        ((6, 4), (8, 3), None),
        ((12,), (3, 4), [3, 4]),
        ((2, 3, 4), (24,), [2, 3, 4]),
        ((4, 6), (2, 2, 3, 2), [2, 2, 3, 2]),
        ((6, 4), (4, 6), None),
    ],
)
def test_factors(xs: tuple[int, ...], ys: tuple[int, ...], factors: list[int] | None) -> None:
    assert _factors(xs, ys) == factors == _factors(ys, xs)


def found(weights: str, nodes: str, x: str = "float[2,3,6,6] x") -> tuple[str, ...]:
    """What is found in a model; where something is free the law holds."""
    result = cut(build(text(x, weights, nodes)), 0.5)
    assert result.error <= 1e-5
    return describe(result.analysis)


def test_heads_win_over_the_dimensions_inside_a_head() -> None:
    model = build(text("float[2,5,3] x", ATTENTION_WEIGHTS.replace("0,0,4,2", "0,0,2,4"), ATTENTION))
    assert describe(analyze(load(model)))[0] == "2 heads: wk:1x4 wo:0x4 wq:1x4 wv:1x4"


def test_heads_that_are_pinned_leave_the_dimensions_inside_a_head() -> None:
    source = text("float[2,5,3] x", ATTENTION_WEIGHTS, ATTENTION, outputs="float[] y, float[] s")
    analysis = analyze(load(build(source)))
    assert describe(analysis) == ("2 head_dim: wk:1x4 wq:1x4", "2 head_dim: wo:0x4 wv:1x4")
    keep = shrink(analysis, ("head_dim",))
    assert verify(analysis, keep, prune_model(analysis, keep)).error <= 1e-5


def test_without_heads_the_finer_factor_of_a_shuffle_lives() -> None:
    weights = "float[12,3,1,1] w1, float[4,12,1,1] w2, int64[5] s = {2,%s,6,6}, int64[4] t = {2,12,6,6}"
    nodes = "h = Conv(x, w1) a = Reshape(h, s) b = Transpose<perm = [0,2,1,3,4]>(a) k = Reshape(b, t) y = Conv(k, w2)"
    assert found(weights % "2,6", nodes) == ("6 channels: w1:0x2 w2:1x2",)
    assert found(weights % "6,2", nodes) == ("6 channels: w1:0x2 w2:1x2",)
    assert found(weights % "3,4", nodes) == ("4 channels: w1:0x3 w2:1x3",)


@pytest.mark.parametrize(
    ("axis", "expect"),
    [(1, "4 channels: w1:0x2 w2:1x2"), (2, "2 channels: w1:0x4 w2:1x4"), (3, "4 channels: w1:0x2 w2:1x2")],
)
def test_a_factor_that_is_pinned_leaves_the_other_to_live(axis: int, expect: str) -> None:
    nodes = f"""h = Conv(x, w1) a = Reshape(h, s) b = Softmax<axis = {axis}>(a) k = Reshape(b, t) y = Conv(k, w2)"""
    weights = "float[8,3,1,1] w1, float[4,8,1,1] w2, int64[5] s = {2,2,4,6,6}, int64[4] t = {2,8,6,6}"
    assert found(weights, nodes) == (expect,)


def test_where_both_factors_are_pinned_nothing_lives() -> None:
    nodes = """h = Conv(x, w1) a = Reshape(h, s) b = Softmax<axis = 1>(a) c = Softmax<axis = 2>(b) k = Reshape(c, t)
        y = Conv(k, w2)"""
    weights = "float[8,3,1,1] w1, float[4,8,1,1] w2, int64[5] s = {2,2,4,6,6}, int64[4] t = {2,8,6,6}"
    assert found(weights, nodes) == ("w1:0 pinned: reshaped: every factor of the axis is pinned",)


def test_kinds_never_come_from_names() -> None:
    names = {
        "q0": "conv", "wq": "fc1.weight", "wk": "hidden", "wv": "experts", "split": "channels", "x": "relu", "y": "cls",
    }  # fmt: skip
    attention = build(text("float[2,5,3] x", ATTENTION_WEIGHTS, ATTENTION))
    layers = build(text("float[5,3] x", "float[3,8] w1, float[8,4] w2", "h = MatMul(x, w1) y = MatMul(h, w2)"))
    for values in (attention.graph.initializer, attention.graph.input, attention.graph.output):
        for value in values:
            value.name = names.get(value.name, value.name)
    for node in attention.graph.node:
        node.name = f"mlp.channels.{node.output[0]}"
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names.get(o, o) for o in node.output]
    for node in layers.graph.node:
        node.name = f"/encoder/self_attention/heads/head_dim/LayerNorm/{node.output[0]}"
    assert [(g.kind, g.size) for g in analyze(load(attention)).groups] == [
        ("heads", 4), ("head_dim", 2), ("head_dim", 2),
    ]  # fmt: skip
    assert [(g.kind, g.size) for g in analyze(load(layers)).groups] == [("channels", 8)]


# coupling: groups of convolutions


def grouped() -> onnx.ModelProto:
    weights = "float[8,3,1,1] w1, float[6,4,3,3] w2, float[4,6,1,1] w3"
    return build(text("float[2,3,6,6] x", weights, "h = Conv(x, w1) g = Conv<group = 2>(h, w2) y = Conv(g, w3)"))


def test_groups_of_a_convolution_choose_their_own_channels() -> None:
    model = load(grouped())
    analysis = analyze(model)
    first, second = analysis.groups
    keep = analysis.keep_ids(
        {
            first.name: np.array([1, 1, 0, 0, 0, 1, 0, 1], bool),  # of group 0 channels 0, 1, of group 1 channels 5, 7
            second.name: np.array([0, 1, 1, 1, 1, 0], bool),
        }
    )
    pruned = prune_model(analysis, keep)
    old, new = model.weights["w2"], pruned.weights["w2"]
    assert new.shape == (4, 2, 3, 3)
    np.testing.assert_array_equal(new[:2], old[[1, 2]][:, [0, 1]])
    np.testing.assert_array_equal(new[2:], old[[3, 4]][:, [1, 3]])
    np.testing.assert_array_equal(pruned.weights["w1"], model.weights["w1"][[0, 1, 5, 7]])
    np.testing.assert_array_equal(pruned.weights["w3"], model.weights["w3"][:, 1:5])
    assert verify(analysis, keep, pruned).error <= 1e-5


def test_a_group_that_is_pinned_in_part_pins_its_blocks() -> None:
    weights = "float[8,3,1,1] w1, float[6,4,3,3] w2, float[4,6,1,1] w3, int64[1] a = {1}, int64[1] i = {0}"
    nodes = """h = Conv(x, w1) p = Slice(h, i, a, a) m = ReduceMax(p) g = Conv<group = 2>(h, w2) k = Conv(g, w3)
        y = Add(k, m)"""
    assert found(weights, nodes) == (
        "6 channels: w2:0 w3:1, even over 2",
        "w1:0 pinned: a group that must shrink evenly is pinned in part",
    )


# equal survivors


def group(*partitions: list[list[int]]) -> ChannelGroup:
    """A group whose blocks are given as members."""
    size = 1 + max(i for p in partitions for members in p for i in members)
    blocks = tuple(np.stack([np.bincount(m, minlength=size) for m in p]) for p in partitions)
    return ChannelGroup("g", "channels", size, np.arange(size), (), blocks, (), ("g",))


HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]
PARITY = [[0, 2, 4, 6], [1, 3, 5, 7]]
CROSSED = [[0, 1, 6, 7], [2, 3, 4, 5]]
QUARTERS = [[0, 1], [2, 3], [4, 5], [6, 7]]


def best(g: ChannelGroup, scores: np.ndarray[Any, Any], kept: int) -> float:
    """Largest score of `kept` units under the constraints, by trying all."""
    sums = [-np.inf]
    for chosen in itertools.combinations(range(g.size), kept):
        keep = np.isin(np.arange(g.size), chosen)
        if all(len(set((b @ keep).tolist())) == 1 for b in g.blocks):
            sums.append(float(scores[keep].sum()))
    return max(sums)


@pytest.mark.parametrize(
    "partitions", [(HALVES,), (PARITY,), (QUARTERS,), (HALVES, PARITY), (HALVES, QUARTERS), (HALVES, PARITY, CROSSED)]
)
def test_blocks_keep_equal_survivors_and_the_best_of_them(partitions: tuple[list[list[int]], ...]) -> None:
    g = group(*partitions)
    scores = np.random.default_rng(0).random(8)
    for kept in (4, len(partitions[-1])):
        keep = select(g, scores, kept)
        assert keep.sum() == kept
        assert all(len(set((b @ keep).tolist())) == 1 for b in g.blocks)
        assert scores[keep].sum() == pytest.approx(best(g, scores, kept))


def test_a_count_that_the_blocks_forbid_becomes_the_nearest_one() -> None:
    keep = select(group(HALVES, QUARTERS), np.arange(8.0), 6)
    assert keep.sum() in (4, 8)
    keep = select(group(HALVES, PARITY), np.arange(8.0), 5)
    assert keep.sum() in (4, 6)
    assert (keep[:4].sum(), keep[::2].sum()) == (keep[4:].sum(), keep[1::2].sum())


def test_partitions_that_cross_are_solved_in_a_model() -> None:
    weights = """float[8,3,1,1] w1, float[8,4,1,1] w2, float[8,4,1,1] w3, float[4,8,1,1] w4,
        int64[8] i = {0,2,4,6,1,3,5,7}"""
    nodes = """h = Conv(x, w1) g = Conv<group = 2>(h, w2) p = Gather<axis = 1>(h, i) q = Conv<group = 2>(p, w3)
        s = Add(g, q) y = Conv(s, w4)"""
    model = build(text("float[2,3,6,6] x", weights, nodes))
    result = cut(model, 0.5)
    first = result.analysis.groups[0]
    assert [b.tolist() for b in first.blocks] == [
        [[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]],
        [[1, 0, 1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1, 0, 1]],
    ]
    assert result.error <= 1e-5
    assert result.pruned.weights["w1"].shape[0] == 4


# shapes


def shapes(
    weights: str, nodes: str, inputs: str = "float[N,3,6,6] x", given: dict[str, tuple[int, ...]] | None = None
) -> Shapes:
    return infer(load(build(text(inputs, weights, nodes))), given)


CHAIN = """h = Conv(x, w1) t = Shape(h) n = Gather(t, zero) c = Gather(t, one) m = Unsqueeze(n, axis)
    d = Unsqueeze(c, axis) u = Mul(d, size) s = Concat<axis = 0>(m, u) k = Reshape(h, s) y = Gemm(k, w2)"""
CHAIN_WEIGHTS = """float[8,3,1,1] w1, float[288,4] w2, int64 zero = {0}, int64 one = {1}, int64[1] axis = {0},
    int64[1] size = {36}"""


def test_shape_arithmetic_of_an_unsimplified_export_is_evaluated() -> None:
    found = shapes(CHAIN_WEIGHTS, CHAIN, given={"x": (5, 3, 6, 6)})
    assert {t: found.known[t].tolist() for t in "tncus"} == {
        "t": [5, 8, 6, 6], "n": 5, "c": 8, "u": [288], "s": [5, 288],
    }  # fmt: skip
    assert (found.shapes["k"], found.shapes["y"], found.problems) == ((5, 288), (5, 4), [])
    assert "h" not in found.known and "s" not in found.constant and "axis" in found.constant


def test_shape_arithmetic_follows_the_channels_by_itself() -> None:
    result = cut(build(text("float[N,3,6,6] x", CHAIN_WEIGHTS, CHAIN)), 0.5)
    assert describe(result.analysis) == ("8 channels: w1:0 w2:0x36",)
    assert result.error <= 1e-5 and result.removed > 0
    assert [n.op_type for n in result.pruned.proto.graph.node] == [
        n.op_type for n in result.analysis.model.proto.graph.node
    ]


def test_bodies_are_inferred_and_what_differs_between_branches_is_unknown() -> None:
    nodes = """h = Conv(x, w1)
        same = If<then_branch = d () => (float[] p) { p = Relu(h) },
                  else_branch = e () => (float[] q) { q = Neg(h) }>(c)
        mixed = If<then_branch = f () => (float[] r) { r = Relu(h) },
                   else_branch = g () => (float[] s) { s = ReduceSum(h, a) }>(c)
        last, all = Loop<body = b (int64 i, bool ci, float[] v) => (bool co, float[] vo, float[] sum) {
            vo = Relu(v) sum = ReduceSum<keepdims = 0>(v, a) co = Identity(ci) }>(n, c, h)
        y = Neg(same)"""
    inputs = "float[2,3,6,6] x, bool c, int64 n"
    found = shapes("float[8,3,1,1] w1, int64[1] a = {1}", nodes, inputs).shapes
    assert [found[t] for t in ("p", "q", "same", "v", "vo", "last")] == [(2, 8, 6, 6)] * 6
    assert [found[t] for t in ("r", "s", "mixed")] == [(2, 8, 6, 6), (2, 1, 6, 6), (2, None, 6, 6)]
    assert [found[t] for t in ("sum", "all")] == [(2, 6, 6), (None, 2, 6, 6)]
    assert (found["i"], found["ci"]) == ((), ())


def test_an_operator_without_a_schema_is_inferred_by_running_it() -> None:
    found = shapes(
        "float[8,3,1,1] w1, float s = {0.1}, uint8 z = {128}, float[8,6] w",
        """h = Conv(x, w1) q = QuantizeLinear(h, s, z) y = com.microsoft.QLinearConcat<axis = 1>(s, z, q, s, z, q, s, z)
        t = Transpose<perm = [0,2,3,1]>(h) u = com.microsoft.FusedMatMul<alpha = 2.0>(t, w)""",
        "float[2,3,6,6] x",
    )
    assert (found.shapes["y"], found.types["y"]) == ((2, 16, 6, 6), onnx.TensorProto.UINT8)
    assert (found.shapes["u"], found.types["u"]) == ((2, 6, 6, 6), onnx.TensorProto.FLOAT)
    assert found.problems == []


def test_an_operator_that_nobody_can_run_leaves_its_shape_unknown() -> None:
    found = shapes("float[8,3,1,1] w1", "h = Conv(x, w1) k = elsewhere.Magic(h) y = Relu(h)")
    assert "k" not in found.shapes
    assert [p.partition(" (")[0] for p in found.problems] == ["Magic(k): onnxruntime cannot run elsewhere::Magic"]


def test_dynamic_axes_get_sizes_with_which_the_graph_is_consistent() -> None:
    found = shapes("float[8,3,1,1] w1, float[8,32,32] p", "h = Conv(x, w1) y = Add(h, p)", "float[N,3,H,W] x")
    assert (found.shapes["x"], found.shapes["y"], found.problems) == ((1, 3, 32, 32), (1, 8, 32, 32), [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": (2, 3, 6)}, r"--input-shape x:2,3,6 does not fit the model's N,3,6,6"),
        ({"x": (2, 4, 6, 6)}, r"--input-shape x:2,4,6,6 does not fit the model's N,3,6,6"),
        ({"image": (2, 3, 6, 6)}, r"--input-shape image: no such input; the model has x"),
        ({"w1": (8, 3, 1, 1)}, r"--input-shape w1: no such input; the model has x"),
    ],
)
def test_an_input_shape_that_does_not_fit_is_an_error(given: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}$"):
        shapes("float[8,3,1,1] w1", "y = Conv(x, w1)", given=given)
