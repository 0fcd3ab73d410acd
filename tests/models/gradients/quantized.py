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
