"""Quantizers: so fine that differences see through them."""

from typing import Any

from models.gradients.row import row

FLOAT32: dict[str, Any] = {"runtime": "float32", "single": False}
row(
    "DequantizeLinear",
    "scale",
    "int8[3,2] a, double s",
    "y = DequantizeLinear(a, s)",
    feeds={"a": [[1, -2], [3, 0], [5, -7]]},
    **FLOAT32,
)
row(
    "DequantizeLinear",
    "axis",
    "int8[3,2] a, double[2] s",
    "y = DequantizeLinear(a, s, z)",
    "int8[2] z = {1,2}",
    feeds={"a": [[1, -2], [3, 0], [5, -7]]},
    **FLOAT32,
)
row(
    "DequantizeLinear",
    "blocks",
    "int8[2,6,2] a, double[2,2,2] s",
    "y = DequantizeLinear<axis = 1, block_size = 3>(a, s, z)",
    "int8[2,2,2] z = {1,2,0,1,-1,0,2,3}",
    outputs="double[2,6,2] y",
    feeds={"a": [[[k - j, 2 * j - k] for k in range(6)] for j in (2, 3)]},
    opset=21,
    **FLOAT32,
)
row(
    "QuantizeLinear",
    "blocks",
    "double[4,3] a",
    "h = QuantizeLinear<axis = 0, block_size = 2>(a, s, z) y = DequantizeLinear<axis = 0, block_size = 2>(h, s, z)",
    "float[2,3] s = {0.0001,0.0002,0.0001,0.0001,0.00007,0.0001}, uint16[2,3] z = {9,9,9,32768,9,9}",
    outputs="double[4,3] y",
    opset=21,
    checked=False,
    **FLOAT32,
)
FINE = "float s = {0.0001}, uint16 z = {32768}"
for op in ("QuantizeLinear", "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear"):
    domain = "com.microsoft." if "::" in op else ""
    nodes = f"h = {domain}QuantizeLinear(a, s, z) y = {domain}DequantizeLinear(h, s, z)"
    row(op, "fine", "double[3,4] a", nodes, FINE, opset=21, checked=False, **FLOAT32)
row(
    "QuantizeLinear",
    "clipped",
    "double[3,4] a",
    "h = QuantizeLinear(a, s, z) y = DequantizeLinear(h, s, z)",
    "float s = {0.00001}, uint16 z = {0}",
    step=0.02,
    feeds={"a": [[0.2, 0.3, 0.9, 1.2]] * 3},
    opset=21,
    **FLOAT32,
)
BITS = ",".join(str(17 * k % 256) for k in range(32))
row(
    "com.microsoft::MatMulNBits",
    "four-bits",
    "double[3,32] a",
    "y = com.microsoft.MatMulNBits<K = 32, N = 2, bits = 4, block_size = 32>(a, q, s)",
    f"uint8[2,1,16] q = {{{BITS}}}, float[2] s = {{0.1, 0.2}}",
    checked=False,
    **FLOAT32,
)
