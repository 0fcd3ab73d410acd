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

# shape, values_float, indices, indptr -> W; every row is padded to the longest, with zeros behind the matrix:
# onnxruntime does not fold operators such as NonZero, whose output has a shape that depends on values
_CSR = """
    rest = Slice (shape, one, far)
    columns = ReduceProd <keepdims = 1> (rest)
    outputs = Slice (shape, zero, one)
    {sources}
    no_value = Constant <value = float[1] {{0}}> ()
    values_safe = Concat <axis = 0> (values_float, no_value)
    values_all = Gather (values_safe, sources)
    zero_value = Constant <value = float {{0}}> ()
    stored = Where (used, values_all, zero_value)
    zeros = ConstantOfShape <value = float[1] {{0}}> (padded_shape)
    padded = ScatterElements <axis = 1> (zeros, targets, stored)
    decoded = Slice (padded, zero, columns, one)
    decoded_all = Reshape (decoded, shape)
"""

# indices, indptr, columns, outputs -> of every row, padded to the longest: `sources` among the entries, `targets`
# among the columns, which of them are `used`; `padded_shape` of the matrix with room for the others
_SOURCES = """
    row_starts = Slice (indptr, zero, last)
    row_ends = Slice (indptr, one, far)
    counts = Sub (row_ends, row_starts)
    longest = ReduceMax <keepdims = 0> (counts)
    start = Constant <value = int32 {0}> ()
    step = Constant <value = int32 {1}> ()
    places = Range (start, longest, step)
    upright = Constant <value_ints = [-1, 1]> ()
    counts_upright = Reshape (counts, upright)
    used = Less (places, counts_upright)
    starts_upright = Reshape (row_starts, upright)
    sources_all = Add (starts_upright, places)
    sources = Where (used, sources_all, start)
    no_index = Constant <value = int64[1] {0}> ()
    indices_wide = Cast <to = 7> (indices)
    indices_safe = Concat <axis = 0> (indices_wide, no_index)
    indices_all = Gather (indices_safe, sources)
    places_wide = Cast <to = 7> (places)
    behind = Add (places_wide, columns)
    targets = Where (used, indices_all, behind)
    longest_wide = Cast <to = 7> (longest)
    width = Add (columns, longest_wide)
    padded_shape = Concat <axis = 0> (outputs, width)
"""

# shape, group, block, values_float, indices, indptr -> W: a table `[block rows, block columns]` of the number of the
# tile, or of one of zeros behind the others, fetches the tiles
_BSR = """
    block = Constant <value_ints: ints = @block> ()
    tall = Slice (block, zero, one)
    wide = Slice (block, one, two)
    filters = Slice (shape, zero, one)
    length = Slice (shape, one, two)
    size = ReduceProd <keepdims = 1> (shape)
    per_filter = Div (size, filters)
    taps = Div (per_filter, length)
    rows = Div (filters, group)
    tall_less = Sub (tall, one)
    rows_up = Add (rows, tall_less)
    down = Div (rows_up, tall)
    wide_less = Sub (wide, one)
    length_up = Add (length, wide_less)
    across = Div (length_up, wide)
    columns = Mul (taps, across)
    outputs = Mul (group, down)
    {sources}
    dims = Shape (values_float)
    none = Slice (dims, zero, one)
    sources_wide = Cast <to = 7> (sources)
    numbers = Where (used, sources_wide, none)
    zeros = ConstantOfShape <value = int64[1] {{0}}> (padded_shape)
    blank = Add (zeros, none)
    padded = ScatterElements <axis = 1> (blank, targets, numbers)
    table = Slice (padded, zero, columns, one)
    tile_shape = Concat <axis = 0> (one, block)
    no_tile = ConstantOfShape <value = float[1] {{0}}> (tile_shape)
    tiles_safe = Concat <axis = 0> (values_float, no_tile)
    tiles = Gather <axis = 0> (tiles_safe, table)
    any = Constant <value_ints = [-1]> ()
    by_tile = Concat <axis = 0> (any, taps, across, block)
    tiles_of = Reshape (tiles, by_tile)
    in_rows = Transpose <perm = [0, 3, 1, 2, 4]> (tiles_of)
    tall_all = Mul (down, tall)
    wide_all = Mul (across, wide)
    by_row = Concat <axis = 0> (group, tall_all, taps, wide_all)
    rows_padded = Reshape (in_rows, by_row)
    ends = Concat <axis = 0> (rows, length)
    starts = Constant <value_ints = [0, 0]> ()
    cut = Constant <value_ints = [1, 3]> ()
    rows_of = Slice (rows_padded, starts, ends, cut)
    channels_first = Transpose <perm = [0, 1, 3, 2]> (rows_of)
    decoded_all = Reshape (channels_first, shape)
"""

_GROUP = {
    "MatMul": "group = Constant <value_ints = [1]> ()",
    "LeftMatMul": "group = Constant <value_ints = [1]> ()",
    "Conv": """
    group_scalar = Constant <value_int: int = @group> ()
    group_shape = Constant <value_ints = [-1]> ()
    group = Reshape (group_scalar, group_shape)
""",
}

# shape, n, m, values_float, positions -> rows [S, L]
_NM = """
    n = Constant <value_int: int = @n> ()
    m = Constant <value_int: int = @m> ()
    number = Constant <value_int = 1> ()
    length = Slice (shape, one, two)
    size = ReduceProd <keepdims = 1> (shape)
    rows = Div (size, length)
    up = Sub (m, number)
    room = Add (length, up)
    blocks = Div (room, m)
    powers = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
    m_narrow = Cast <to = 6> (m)
    below = Less (powers, m_narrow)
    below_one = Cast <to = 7> (below)
    bits = ReduceSum <keepdims = 1> (below_one)
    stored = Mul (blocks, n)
    used = Mul (stored, bits)
    bytes = Cast <to = 6> (positions)
    split = Constant <value_ints = [0, -1, 1]> ()
    bytes_of = Reshape (bytes, split)
    shifted = Div (bytes_of, powers)
    base = Constant <value = int32 {2}> ()
    bit = Mod (shifted, base)
    any = Constant <value_ints = [-1]> ()
    by_row = Concat <axis = 0> (rows, any)
    stream_padded = Reshape (bit, by_row)
    stream = Slice (stream_padded, zero, used, one)
    stream_float = Cast <to = 1> (stream)
    by_bit = Concat <axis = 0> (any, bits)
    bit_table = Reshape (stream_float, by_bit)
    weights_of_bits = Slice (powers, zero, bits)
    weights_float = Cast <to = 1> (weights_of_bits)
    upright = Constant <value_ints = [-1, 1]> ()
    weights_upright = Reshape (weights_float, upright)
    places_float = MatMul (bit_table, weights_upright)
    places_flat = Cast <to = 7> (places_float)
    n_list = Reshape (n, any)
    m_list = Reshape (m, any)
    by_block = Concat <axis = 0> (rows, blocks, n_list)
    places = Reshape (places_flat, by_block)
    start = Constant <value_int = 0> ()
    blocks_scalar = Squeeze (blocks)
    numbers = Range (start, blocks_scalar, number)
    numbers_upright = Reshape (numbers, upright)
    block_start = Mul (numbers_upright, m)
    columns_of = Add (places, block_start)
    by_stored = Concat <axis = 0> (rows, stored)
    columns = Reshape (columns_of, by_stored)
    values_of = Reshape (values_float, by_stored)
    padded_length = Mul (blocks, m_list)
    padded_shape = Concat <axis = 0> (rows, padded_length)
    zeros = ConstantOfShape <value = float[1] {0}> (padded_shape)
    padded = ScatterElements <axis = 1> (zeros, columns, values_of)
    decoded = Slice (padded, zero, length, one)
"""

_NM_MATRIX = "decoded_all = Identity (decoded)"

_NM_CONV = """
    outputs = Slice (shape, zero, one)
    by_kernel = Concat <axis = 0> (outputs, any, length)
    kernels = Reshape (decoded, by_kernel)
    channels_first = Transpose <perm = [0, 2, 1]> (kernels)
    decoded_all = Reshape (channels_first, shape)
"""

_SCALE = """
    by_output = Constant <value_ints = [0, -1]> ()
    flat = Reshape (decoded_all, by_output)
    scale_shape = Constant <value_ints = [-1, 1]> ()
    scale_upright = Reshape (scale, scale_shape)
    flat_scaled = Mul (flat, scale_upright)
    W_plain = Reshape (flat_scaled, shape)
"""

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


def function(operator: Operator, opset: int) -> FunctionProto | None:
    """The function of an operator for models of this opset; None below MIN_OPSET."""
    if opset < MIN_OPSET:
        return None
    decode = {
        "Csr": _CSR.format(sources=_SOURCES),
        "Nm": _NM + (_NM_CONV if operator.product == "Conv" else _NM_MATRIX),
        "Bsr": _GROUP[operator.product] + _BSR.format(sources=_SOURCES),
    }[operator.storage]
    lines = [
        "shape = Constant <value_ints: ints = @shape> ()",
        "zero = Constant <value_ints = [0]> ()",
        "one = Constant <value_ints = [1]> ()",
        "two = Constant <value_ints = [2]> ()",
        "last = Constant <value_ints = [-1]> ()",
        "far = Constant <value_ints = [9223372036854775807]> ()",
        "values_float = Cast <to = 1> (values)",
        decode,
        _SCALE if operator.scaled else "W_plain = Identity (decoded_all)",
        "alpha = Constant <value_float: float = @alpha> ()",
        "W = Mul (W_plain, alpha)",
        _PRODUCTS[operator.product],
        "before = Add (sum, residual)" if operator.add else "before = Identity (sum)",
    ]
    if operator.activation == "Clip":
        lines += [f"{side} = Constant <value_float: float = @{side}> ()" for side in ("min", "max")]
    lines.append(activation(operator.activation, opset))
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
    call = f"{operator} <{', '.join(operator.attributes)}> ({', '.join(operator.inputs)}) => (Y)"
    made: FunctionProto = onnx.parser.parse_function(f"{head} {call} {{ {' '.join(lines)} }}")
    return made
