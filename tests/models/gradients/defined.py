"""Operators that ONNX defines by others."""

from typing import Any

from models.gradients.row import row

FLOAT32: dict[str, Any] = {"runtime": "float32", "single": False}
row("CenterCropPad", "both", "double[3,4] a", "y = CenterCropPad(a, s)", "int64[2] s = {5,2}", opset=18)
HEADS = "double[1,2,3,4] q, double[1,2,2,4] k, double[1,2,2,4] v"
row("Attention", "heads", HEADS, "y = Attention(q, k, v)", opset=23, **FLOAT32)
row("Attention", "causal", HEADS, "y = Attention<is_causal = 1, scale = 0.3>(q, k, v)", opset=23, **FLOAT32)
row("Attention", "mask", HEADS + ", double[3,2] m", "y = Attention(q, k, v, m)", opset=23, **FLOAT32)
row(
    "Attention",
    "grouped",
    "double[1,3,8] q, double[1,2,4] k, double[1,2,4] v",
    "y = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v)",
    opset=23,
    **FLOAT32,
)
row(
    "Attention",
    "past",
    HEADS + ", double[1,2,3,4] p, double[1,2,3,4] r",
    "y, pk, pv = Attention(q, k, v, , p, r)",
    opset=23,
    **FLOAT32,
)
for form, how in [("halves", ""), ("interleaved", "<interleaved = 1>")]:
    row(
        "RotaryEmbedding",
        form,
        "double[2,2,3,4] x, double[5,2] c, double[5,2] s",
        f"y = RotaryEmbedding{how}(x, c, s, p)",
        "int64[2,3] p = {0,1,2,1,2,4}",
        opset=23,
        **FLOAT32,
    )
row(
    "RotaryEmbedding",
    "flat",
    "double[2,3,8] x, double[2,3,2] c, double[2,3,2] s",
    "y = RotaryEmbedding<num_heads = 2>(x, c, s)",
    opset=23,
    **FLOAT32,
)
row("SwiGLU", "plain", "double[3,4] a, double[3,4] b", "y = SwiGLU(a, b)", single=False, opset=28)
for op in ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"):
    for form, shape, labels, how in [
        ("mean", "3,4", "int64[3] t = {1,0,3}", ""),
        ("none", "2,3,2", "int64[2,2] t = {1,0,2,2}", '<reduction = "none">'),
        ("sum", "3,4", "int64[3] t = {1,0,3}", '<reduction = "sum", ignore_index = 0>'),
    ]:
        row(op, form, f"double[{shape}] a", f"y = {op}{how}(a, t)", labels, **FLOAT32)
    row(op, "weights", "double[3,4] a, double[4] w", f"y = {op}(a, t, w)", "int64[3] t = {1,0,3}", **FLOAT32)
