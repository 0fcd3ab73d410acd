"""Which tensors are never negative or never positive: what is said, and that the values are so."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from models.rules import build, describe, text
from onnxprune.graph.io import load
from onnxprune.graph.node import walk_all
from onnxprune.graph.shapes import infer
from onnxprune.structure.groups import analyze
from onnxprune.structure.signs import BOTH, NEVER_NEGATIVE, NEVER_POSITIVE, signs_of

# of x, p = |x| and m = -p, all (1, 2, 6, 6)
SAID = {
    0: """
       Identity(x); Tanh(x); Softsign(x); LeakyRelu(x); Add(x, p); Sub(p, p); Mul(x, p); Where(c, x, p); Max(x, m);
       Min(x, p); Pow(x, three); Clip(x, minus, one); Conv(p, w); Concat<axis = 1>(p, m); Mish(x);
       Pad(p, pads, minus); Resize<mode = "cubic">(p, , scales); Cos(p); Log(p); PRelu(x, one);
       DequantizeLinear(q, s, z); Elu(x); ReduceLogSumExp(p); Div(x, p); Shrink<bias = 1.5>(p); ReduceProd(m);
       ScatterND(p, i, minus2)""",
    NEVER_NEGATIVE: """
       Relu(x); Sigmoid(x); Abs(x); Exp(x); Softmax(x); Softplus(x); Sqrt(p); HardSigmoid(x); Mul(x, x); Mul(m, m);
       Div(p, e); Pow(x, two); Pow(p, three); Neg(m); Sub(p, m); Add(p, one); Sum(p, p, one); Mean(p, p); Max(x, p);
       Max(x, one); Min(p, one); Clip(x, one); Clip(p); Clip(p, minus, one); Where(c, p, one);
       Concat<axis = 1>(p, p); Reshape(p, r); Transpose(p); Slice(p, i1, i2); MaxPool<kernel_shape = [2, 2]>(p);
       Tanh(p); AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p); GlobalAveragePool(p); ReduceSum(p);
       ReduceMax(p); ReduceMean(p); ReduceL2(x); ReduceProd(p); MatMul(p, p); MatMul(m, m);
       Einsum<equation = "abcd,abce->abde">(p, p); Gelu(p); LeakyRelu(p); Elu(p); PRelu(p, minus);
       ThresholdedRelu(x); Cast<to = 11>(p); Pad(p, pads); Pad<mode = "reflect">(p, pads);
       Resize<mode = "linear">(p, , scales); Expand(one, r); HardSwish(p); Floor(p); Mul(p, zero);
       DequantizeLinear(q, s, least); ScatterND(p, i, two2); CumSum(p, axis); LpPool<kernel_shape = [2, 2]>(x);
       ScatterND<reduction = "mul">(p, i, two2); DepthToSpace<blocksize = 1>(p); Gather(p, i1); Celu(p); Ceil(p)""",
    NEVER_POSITIVE: """
       LogSoftmax(x); LogSoftmax(m); Neg(p); Neg(e); Mul(p, m); Div(m, e); Sub(m, p); Add(m, minus); Min(x, m);
       Min(x, minus); Max(m, minus); Clip(x, , minus); Clip(m, minus); Where(c, m, minus); ReduceMin(m);
       ReduceSum(m); MaxPool<kernel_shape = [2, 2], pads = [1, 1, 1, 1]>(m); Tanh(m); LeakyRelu(m); Gelu(m);
       MatMul(p, m); Pad(m, pads); PRelu(m, one); Mish(m); Elu(m); Erf(m); DequantizeLinear(q, s, most); Floor(m)""",
    BOTH: "Clip(p, , zero)",
}
CONSTANTS = """
    float one = {1}, float minus = {-1}, float zero = {0}, float two = {2}, float three = {3},
    int64[4] r = {1,2,6,6}, int64[1] i1 = {0}, int64[1] i2 = {1}, int64[8] pads = {0,0,1,1,0,0,1,1},
    float[4] scales = {1,1,2,2}, int64 axis = {1}, uint8 z = {120}, uint8 least = {0}, uint8 most = {255},
    float s = {0.1}, int64[1,4] i = {0,0,0,0}, float[1] two2 = {2}, float[1] minus2 = {-1}"""


def test_signs_are_what_the_values_have() -> None:
    calls = [(sign, " ".join(call.split())) for sign, said in SAID.items() for call in said.split(";")]
    lines = " ".join(f"y{k} = {call}" for k, (_, call) in enumerate(calls))
    nodes = f"""p = Abs(x) m = Neg(p) e = Exp(x) c = Greater(x, zero) q = QuantizeLinear(x, s, z) {lines}"""
    outputs = ", ".join(f"{'double' if '11' in call else 'float'}[] y{k}" for k, (_, call) in enumerate(calls))
    proto = build(text("float[1,2,6,6] x", f"float[2,2,1,1] w, {CONSTANTS}", nodes, opset=22, outputs=outputs))
    model = load(proto)
    shapes = infer(model)
    said = signs_of(walk_all(model.proto.graph, shapes.opsets), shapes)
    assert {call: said[f"y{k}"] for k, (_, call) in enumerate(calls)} == {call: sign for sign, call in calls}
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(0, 2, (1, 2, 6, 6)).astype(np.float32)
    for (sign, call), y in zip(calls, session.run(None, {"x": x}), strict=True):
        assert not sign & NEVER_NEGATIVE or (y >= 0).all(), call
        assert not sign & NEVER_POSITIVE or (y <= 0).all(), call


def test_a_constant_that_a_caller_may_override_has_no_sign() -> None:
    """Nor has what is computed of it; before IR version 4 every initializer is listed as an input, and none may be."""
    nodes = "h = MatMul(x, w0) l = Identity(lo) c = Clip(h, l) m = ReduceMax<axes = [1]>(c) y = MatMul(m, wo)"
    given = "float[2,6] x, float[6,8] w0, float lo, float[1,3] wo"
    for inputs, ir, pinned in ((given, 8, True), ("float[2,6] x", 8, False), (given, 3, False)):
        proto = build(text(inputs, "float[6,8] w0, float lo = {0}, float[1,3] wo", nodes, opset=17))
        proto.ir_version = ir
        found = "w0:1 pinned: reduced by ReduceMax, for which zero is not neutral" if pinned else "8 channels: w0:1"
        analysis = analyze(load(proto))
        assert describe(analysis) == (found,), (ir, inputs)
        assert analysis.coupling.shapes.overridable == ({"w0", "lo", "l", "wo"} if pinned else set())
