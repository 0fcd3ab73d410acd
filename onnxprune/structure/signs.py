"""Which tensors are never negative, and which never positive: zero is neutral there for a maximum, or for a minimum.

One pass over the nodes, from constants and from operators whose values have a sign (ReLU, Sigmoid, squares) through
those that keep it. A sign is a set of two bits, `NEVER_NEGATIVE` and `NEVER_POSITIVE`; with neither nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxprune.graph.arrays import Array
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import Shapes

NEVER_NEGATIVE, NEVER_POSITIVE = 1, 2
BOTH = NEVER_NEGATIVE | NEVER_POSITIVE
LARGEST = 1 << 22  # values; looking at a larger constant means reading much of a file
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)

ALWAYS = {
    **dict.fromkeys(
        """Abs Acos Acosh Cosh Exp HardSigmoid Hardmax Relu Sigmoid Softmax Softplus Sqrt ReduceL1 ReduceL2
        ReduceSumSquare LpPool GlobalLpPool And Or Xor Not Equal Greater GreaterOrEqual Less LessOrEqual IsNaN IsInf
        EyeLike""".split(),
        NEVER_NEGATIVE,
    ),
    "LogSoftmax": NEVER_POSITIVE,
}
# the sign of the first input
KEEPING = set(
    """Asin Asinh Atan Atanh Ceil Erf Floor Gelu HardSwish Mish Reciprocal Round Sign Sinh Softsign Tanh
    com.microsoft::Gelu Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Slice Split Gather
    GatherND GatherElements DepthToSpace SpaceToDepth MaxPool AveragePool GlobalMaxPool GlobalAveragePool MaxRoiPool
    RoiAlign MaxUnpool ReduceSum ReduceMean ReduceMax ReduceMin CumSum Trilu ReverseSequence CenterCropPad Col2Im
    Upsample TopK Compress Crop""".split()
)
ALPHA = {"LeakyRelu": 0.01, "Elu": 1.0, "Celu": 1.0}  # the slope of what is negative, and its default
PRODUCTS = {"Mul", "Div", "MatMul", "Einsum"}

Signs = Callable[[str], int]


def signs_of(nodes: Iterable[Node], shapes: Shapes) -> dict[str, int]:
    """Tensor -> its sign, for the first output of every node, and for constants that such a node reads."""
    known: dict[str, int] = {}

    def sign(name: str) -> int:
        if name not in known:
            value = shapes.model.weights.get(name, shapes.known.get(name))
            known[name] = 0 if value is None or value.size > LARGEST else _sign_of(np.asarray(value))
        return known[name]

    for node in nodes:
        found = _sign(node, sign, shapes)
        for o in node.outputs if node.op == "Split" else node.outputs[:1]:
            known[o] = found
    return known


def _sign_of(value: Array) -> int:
    """The sign of a constant; what is no number has none."""
    try:
        return NEVER_NEGATIVE * bool((value >= 0).all()) | NEVER_POSITIVE * bool((value <= 0).all())
    except TypeError:  # strings
        return 0


def _times(a: int, b: int) -> int:
    """The sign of a product or quotient."""
    if not a or not b or BOTH in (a, b):
        return a & b
    return NEVER_NEGATIVE if a == b else NEVER_POSITIVE


def _minus(a: int) -> int:
    """The sign of what has the other one."""
    return (a & NEVER_NEGATIVE) * 2 | (a & NEVER_POSITIVE) // 2


def _all_times(signs: Iterable[int]) -> int:
    """The sign of a product of several; with one unknown the others are not looked at, which may be large constants."""
    found = NEVER_NEGATIVE
    for s in signs:
        found = _times(found, s)
        if not found:
            return 0
    return found


def _every(signs: Iterable[int]) -> int:
    """The sign that all of them have: of sums, and of what is joined."""
    found = BOTH
    for s in signs:
        found &= s
        if not found:
            return 0
    return found


def _sign(n: Node, sign: Signs, shapes: Shapes) -> int:
    """The sign of the first output."""
    op, x = n.op, sign(n.input(0)) if n.input(0) else 0
    names = [i for i in n.inputs if i]
    if op in ALWAYS:
        return ALWAYS[op]
    if op in KEEPING:
        return x
    if op in PRODUCTS:
        same = op == "Mul" and n.input(0) == n.input(1)
        return NEVER_NEGATIVE if same else _all_times(map(sign, names))
    if op in ("Add", "Sum", "Mean", "Concat"):
        return _every(map(sign, names))
    if op in ("Where", "ScatterND", "ScatterElements", "Scatter"):
        chosen = _every(map(sign, [*names[:1], *names[2:]] if op != "Where" else names[1:]))
        return chosen & NEVER_NEGATIVE if n.attr("reduction", "none") in ("mul", b"mul") else chosen
    if op in ("Max", "Min"):
        one, other = (NEVER_NEGATIVE, NEVER_POSITIVE) if op == "Max" else (NEVER_POSITIVE, NEVER_NEGATIVE)
        signs = [sign(i) for i in names]
        return (one if any(s & one for s in signs) else 0) | (_every(signs) & other)
    if op == "Sub":
        return x & _minus(sign(n.input(1)))
    if op == "Neg":
        return _minus(x)
    if op in ALPHA:
        return x if n.attr("alpha", ALPHA[op]) >= 0 else x & NEVER_NEGATIVE
    if op == "ThresholdedRelu":
        return x | (NEVER_NEGATIVE if n.attr("alpha", 1.0) >= 0 else 0)
    if op == "PRelu":
        return x if sign(n.input(1)) & NEVER_NEGATIVE else x & NEVER_NEGATIVE
    if op == "Pow":
        power = shapes.known.get(n.input(1))
        even = power is not None and power.dtype.kind in "fiu" and bool((power % 2 == 0).all())
        return NEVER_NEGATIVE if even else x & NEVER_NEGATIVE
    if op == "ReduceProd":
        return x & NEVER_NEGATIVE
    if op == "Clip":
        return _clipped(n, x, sign)
    if op == "Cast":
        return x if n.attr("to") in FLOATS else 0
    if op == "Pad":
        filling = sign(n.input(2)) if n.input(2) else _sign_of(np.asarray(n.attr("value", 0.0)))
        return x & filling if n.attr("mode", "constant") == "constant" else x
    if op in ("Resize", "GridSample"):
        exact = "cubic" not in n.attr("mode", "") and "crop" not in n.attr("coordinate_transformation_mode", "")
        return x if exact else 0
    if op == "OneHot":
        return sign(n.input(2))
    if op == "ConstantOfShape":
        filled = n.attr("value")
        return BOTH if filled is None else _sign_of(numpy_helper.to_array(filled))
    if op == "DequantizeLinear":
        return _dequantized(n, shapes)
    return NEVER_NEGATIVE if n.attr("activation", "") in ("Relu", "Sigmoid") and "Fused" in op else 0


def _clipped(n: Node, x: int, sign: Signs) -> int:
    """Of Clip: at least its lower bound, unless that is above the upper one."""
    if n.opset < 11:
        bounds = [_sign_of(np.asarray(n.attr(a, d))) for a, d in (("min", -math.inf), ("max", math.inf))]
    else:
        bounds = [sign(n.input(i)) if n.input(i) else d for i, d in ((1, NEVER_POSITIVE), (2, NEVER_NEGATIVE))]
    low, high = bounds
    return ((x | low) & high & NEVER_NEGATIVE) | ((x | high) & low & NEVER_POSITIVE)


def _dequantized(n: Node, shapes: Shapes) -> int:
    """Of DequantizeLinear: never negative where the zero point is the least number of its type."""
    zero = shapes.known.get(n.input(2)) if n.input(2) else None
    if zero is None or zero.dtype.kind not in "iu":
        return 0
    limits = np.iinfo(zero.dtype)
    return NEVER_NEGATIVE * bool((zero == limits.min).all()) | NEVER_POSITIVE * bool((zero == limits.max).all())
