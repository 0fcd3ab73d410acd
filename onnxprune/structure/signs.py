"""Which tensors are never negative, and which never positive: zero is neutral there for a maximum, or for a minimum.

One pass over the nodes, from constants and from operators whose values have a sign (ReLU, Sigmoid, squares) through
those that keep it. A sign is a set of two bits, `NEVER_NEGATIVE` and `NEVER_POSITIVE`; with neither nothing is known.
Constants that a caller may override have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from onnx import numpy_helper

from onnxprune.graph.arrays import FLOAT_TYPES, Array
from onnxprune.graph.node import Node
from onnxprune.graph.shapes import Shapes

NEVER_NEGATIVE, NEVER_POSITIVE = 1, 2
BOTH = NEVER_NEGATIVE | NEVER_POSITIVE
LARGEST = 1 << 22  # values; looking at a larger constant means reading much of a file

POSITIVE = """Abs Acos Acosh Cosh Exp HardSigmoid Hardmax Relu Sigmoid Softmax Softplus Sqrt ReduceL1 ReduceL2
    ReduceSumSquare LpPool GlobalLpPool And Or Xor Not Equal Greater GreaterOrEqual Less LessOrEqual IsNaN IsInf
    EyeLike"""
# the sign of the first input
KEEPING = """Asin Asinh Atan Atanh Ceil Erf Floor Gelu HardSwish Mish Reciprocal Round Sign Sinh Softsign Tanh
    com.microsoft::Gelu Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Slice Split Gather
    GatherND GatherElements DepthToSpace SpaceToDepth MaxPool AveragePool GlobalMaxPool GlobalAveragePool MaxRoiPool
    RoiAlign MaxUnpool ReduceSum ReduceMean ReduceMax ReduceMin CumSum Trilu ReverseSequence CenterCropPad Col2Im
    Upsample TopK Compress Crop"""
ALPHA = {"LeakyRelu": 0.01, "Elu": 1.0, "Celu": 1.0}  # the slope of what is negative, and its default

Signs = Callable[[str], int]
Values = Callable[[str], Array | None]  # of a constant that is not large
Rule = Callable[[Node, Signs, Values], int]  # the sign of the first output


def signs_of(nodes: Iterable[Node], shapes: Shapes) -> dict[str, int]:
    """Tensor -> its sign, for the first output of every node, and for constants that such a node reads."""
    known: dict[str, int] = {}

    def value(name: str) -> Array | None:
        found = shapes.value(name)
        return None if found is None or found.size > LARGEST else np.asarray(found)

    def sign(name: str) -> int:
        if name not in known:
            found = value(name)
            known[name] = 0 if found is None else _sign_of(found)
        return known[name]

    for node in nodes:
        found = RULES.get(node.op, _fused)(node, sign, value)
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


# rules


def _first(n: Node, sign: Signs, _: Values) -> int:
    return sign(n.input(0))


def _never_negative(*_: object) -> int:
    return NEVER_NEGATIVE


def _never_positive(*_: object) -> int:
    return NEVER_POSITIVE


def _negated(n: Node, sign: Signs, _: Values) -> int:
    return _minus(sign(n.input(0)))


def _product(n: Node, sign: Signs, _: Values) -> int:
    if n.op == "Mul" and n.input(0) == n.input(1):
        return NEVER_NEGATIVE
    return _all_times(map(sign, filter(None, n.inputs)))


def _all(n: Node, sign: Signs, _: Values) -> int:
    return _every(map(sign, filter(None, n.inputs)))


def _difference(n: Node, sign: Signs, _: Values) -> int:
    return sign(n.input(0)) & _minus(sign(n.input(1)))


def _extreme(n: Node, sign: Signs, _: Values) -> int:
    """Of Max and Min: one input is enough for one side."""
    one, other = (NEVER_NEGATIVE, NEVER_POSITIVE) if n.op == "Max" else (NEVER_POSITIVE, NEVER_NEGATIVE)
    signs = [sign(i) for i in n.inputs if i]
    return (one if any(s & one for s in signs) else 0) | (_every(signs) & other)


def _chosen(n: Node, sign: Signs, _: Values) -> int:
    """Of Where, and of what scatters values into others."""
    chosen = _every(map(sign, n.inputs[1:] if n.op == "Where" else [n.input(0), n.input(2)]))
    return chosen & NEVER_NEGATIVE if n.attr("reduction", "none") == "mul" else chosen


def _sloped(n: Node, sign: Signs, _: Values) -> int:
    x = sign(n.input(0))
    return x if n.attr("alpha", ALPHA[n.op]) >= 0 else x & NEVER_NEGATIVE


def _thresholded(n: Node, sign: Signs, _: Values) -> int:
    return sign(n.input(0)) | (NEVER_NEGATIVE if n.attr("alpha", 1.0) >= 0 else 0)


def _prelu(n: Node, sign: Signs, _: Values) -> int:
    x = sign(n.input(0))
    return x if x and sign(n.input(1)) & NEVER_NEGATIVE else x & NEVER_NEGATIVE


def _power(n: Node, sign: Signs, value: Values) -> int:
    power = value(n.input(1))
    even = power is not None and power.dtype.kind in "fiu" and bool((power % 2 == 0).all())
    return NEVER_NEGATIVE if even else sign(n.input(0)) & NEVER_NEGATIVE


def _multiplied(n: Node, sign: Signs, _: Values) -> int:
    """Of ReduceProd."""
    return sign(n.input(0)) & NEVER_NEGATIVE


def _clipped(n: Node, sign: Signs, _: Values) -> int:
    """Of Clip: at least its lower bound, unless that is above the upper one."""
    x = sign(n.input(0))
    if n.opset < 11:
        bounds = [_sign_of(np.asarray(n.attr(a, d))) for a, d in (("min", -math.inf), ("max", math.inf))]
    else:
        bounds = [sign(n.input(i)) if n.input(i) else d for i, d in ((1, NEVER_POSITIVE), (2, NEVER_NEGATIVE))]
    low, high = bounds
    return ((x | low) & high & NEVER_NEGATIVE) | ((x | high) & low & NEVER_POSITIVE)


def _cast(n: Node, sign: Signs, _: Values) -> int:
    return sign(n.input(0)) if n.attr("to") in FLOAT_TYPES else 0


def _padded(n: Node, sign: Signs, _: Values) -> int:
    x = sign(n.input(0))
    if n.attr("mode", "constant") != "constant":
        return x
    return x & (sign(n.input(2)) if n.input(2) else _sign_of(np.asarray(n.attr("value", 0.0))))


def _interpolated(n: Node, sign: Signs, _: Values) -> int:
    between = "cubic" not in n.attr("mode", "") and "crop" not in n.attr("coordinate_transformation_mode", "")
    return sign(n.input(0)) if between else 0


def _one_hot(n: Node, sign: Signs, _: Values) -> int:
    return sign(n.input(2))


def _filled(n: Node, _: Signs, __: Values) -> int:
    value = n.attr("value")
    return BOTH if value is None else _sign_of(numpy_helper.to_array(value))


def _dequantized(n: Node, _: Signs, value: Values) -> int:
    """Of DequantizeLinear: never negative where the zero point is the least number of its type."""
    zero = value(n.input(2)) if n.input(2) else None
    if zero is None or zero.dtype.kind not in "iu":
        return 0
    limits = np.iinfo(zero.dtype)
    return NEVER_NEGATIVE * bool((zero == limits.min).all()) | NEVER_POSITIVE * bool((zero == limits.max).all())


def _fused(n: Node, _: Signs, __: Values) -> int:
    """Of other operators: with a fused activation."""
    return NEVER_NEGATIVE if n.attr("activation", "") in ("Relu", "Sigmoid") and "Fused" in n.op else 0


RULES: dict[str, Rule] = {
    **dict.fromkeys(POSITIVE.split(), _never_negative),
    **dict.fromkeys(KEEPING.split(), _first),
    **dict.fromkeys(("Mul", "Div", "MatMul", "Einsum"), _product),
    **dict.fromkeys(("Add", "Sum", "Mean", "Concat"), _all),
    **dict.fromkeys(("Where", "ScatterND", "ScatterElements", "Scatter"), _chosen),
    **dict.fromkeys(("Max", "Min"), _extreme),
    **dict.fromkeys(ALPHA, _sloped),
    **dict.fromkeys(("Resize", "GridSample"), _interpolated),
    "LogSoftmax": _never_positive, "Neg": _negated, "Sub": _difference, "ThresholdedRelu": _thresholded,
    "PRelu": _prelu, "Pow": _power, "ReduceProd": _multiplied, "Clip": _clipped, "Cast": _cast, "Pad": _padded,
    "OneHot": _one_hot, "ConstantOfShape": _filled, "DequantizeLinear": _dequantized,
}  # fmt: skip
