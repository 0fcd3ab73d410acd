"""Model-local functions that compute the sparse operators with standard ones, for an onnxruntime without our library.

A body first decodes the weight. All that it reads there are constants, so onnxruntime folds that part when it loads the
model, and then runs at dense speed. Names and meaning: docs/sparse-format.md. Bodies use only what kept its signature
since opset 12, the first whose `Constant` takes lists and so the attributes of the node.
"""

from __future__ import annotations

import onnx.parser
from onnx import FunctionProto

from onnxprune.formats.operators import Operator
from onnxprune.kernels.names import DOMAIN

MIN_OPSET = 12
MIN_BFLOAT16 = 13  # the first whose `Cast` takes bfloat16
MIN_IR = 8  # the first with functions in a model

_SCALE = """
    by_output = Constant <value_ints = [0, -1]> ()
    flat = Reshape (decoded_all, by_output)
    scale_shape = Constant <value_ints = [-1, 1]> ()
    scale_upright = Reshape (scale, scale_shape)
    flat_scaled = Mul (flat, scale_upright)
    W_plain = Reshape (flat_scaled, shape)
"""

_INTEGERS = """
    W_int8 = Cast <to = 3> (decoded_all)
    W_t = Transpose <perm = [1, 0]> (W_int8)
    product = MatMulInteger (X, W_t, x_zero_point)
    sums = Add (product, bias)
    sums_float = Cast <to = 1> (sums)
    alpha = Constant <value_float: float = @alpha> ()
    factor_x = Mul (alpha, x_scale)
    factor_product = Mul (factor_x, scale)
"""
_RESULTS = {  # of sums_float and factor_product
    "": "Y = Mul (sums_float, factor_product)",
    **{
        name: f"""
    factor = Div (factor_product, y_scale)
    quanta = Mul (sums_float, factor)
    rounded = Round (quanta)
    zero_float = Cast <to = 1> (y_zero_point)
    shifted = Add (rounded, zero_float)
    low = Constant <value = float {{{low}}}> ()
    high = Constant <value = float {{{low + 255}}}> ()
    clipped = Clip (shifted, low, high)
    Y = Cast <to = {code}> (clipped)
"""
        for name, low, code in (("Uint8", 0, 2), ("Int8", -128, 3))
    },
}

_PRODUCTS = {
    "MatMul": """
    W_t = Transpose <perm = [1, 0]> (W)
    product = MatMul (X, W_t)
    sum = Add (product, bias)
""",
    "LeftMatMul": """
    product = MatMul (W, X)
    bias_shape = Constant <value_ints = [-1, 1]> ()
    bias_upright = Reshape (bias, bias_shape)
    sum = Add (product, bias_upright)
""",
    "Conv": """
    sum = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations, group: int = @group>
        (X, W, bias)
""",
}


def activation(name: str, opset: int) -> str:
    """The nodes from `before` to `Y`, as text; Clip reads `min` and `max`."""
    if name == "HardSwish" and opset < 14:
        return "gate = HardSigmoid <alpha = 0.16666667, beta = 0.5> (before)\n Y = Mul (before, gate)"
    if name == "Silu":
        return "gate = Sigmoid (before)\n Y = Mul (before, gate)"
    if name == "Clip":
        return "Y = Clip (before, min, max)"
    if name not in ("Gelu", "FastGelu"):
        return f"Y = {name or 'Identity'} (before)"
    if opset >= 20:
        return f'Y = Gelu <approximate = "{"none" if name == "Gelu" else "tanh"}"> (before)'
    if name == "Gelu":
        gate = """
    root = Constant <value = float {1.4142135}> ()
    scaled = Div (before, root)
    gate = Erf (scaled)
"""
    else:
        gate = """
    factor = Constant <value = float {0.044715}> ()
    root = Constant <value = float {0.7978846}> ()
    square = Mul (before, before)
    cube = Mul (square, before)
    cube_scaled = Mul (cube, factor)
    inner = Add (before, cube_scaled)
    scaled = Mul (inner, root)
    gate = Tanh (scaled)
"""
    return f"""
    {gate}
    unit = Constant <value = float {{1}}> ()
    half = Constant <value = float {{0.5}}> ()
    gate_raised = Add (gate, unit)
    doubled = Mul (before, gate_raised)
    Y = Mul (doubled, half)
"""


def _floats(operator: Operator, opset: int) -> list[str]:
    """From `decoded_all` to Y, in float32."""
    lines = [
        _SCALE if operator.scaled else "W_plain = Identity (decoded_all)",
        "alpha = Constant <value_float: float = @alpha> ()",
        "W = Mul (W_plain, alpha)",
        _PRODUCTS[operator.product],
        "before = Add (sum, residual)" if operator.add else "before = Identity (sum)",
    ]
    if operator.activation == "Clip":
        lines += [f"{side} = Constant <value_float: float = @{side}> ()" for side in ("min", "max")]
    return [*lines, activation(operator.activation, opset)]


def function(operator: Operator, opset: int) -> FunctionProto | None:
    """The function of an operator for models of this opset; None below MIN_OPSET.

    The body of its storage finds `values_float`, and of int64 `shape` and, each `[1]`, `zero`, `one`, `two`, `last`
    (-1) and `far` (the end of any axis).
    """
    if opset < MIN_OPSET:
        return None
    lines = [
        "shape = Constant <value_ints: ints = @shape> ()",
        "zero = Constant <value_ints = [0]> ()",
        "one = Constant <value_ints = [1]> ()",
        "two = Constant <value_ints = [2]> ()",
        "last = Constant <value_ints = [-1]> ()",
        "far = Constant <value_ints = [9223372036854775807]> ()",
        "values_float = Cast <to = 1> (values)",
        operator.storage.body(operator.product),
    ]
    lines += [_INTEGERS, _RESULTS[operator.result]] if operator.quantized else _floats(operator, opset)
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
    call = f"{operator} <{', '.join(operator.attributes)}> ({', '.join(operator.inputs)}) => (Y)"
    proto: FunctionProto = onnx.parser.parse_function(f"{head} {call} {{ {' '.join(lines)} }}")
    return proto
