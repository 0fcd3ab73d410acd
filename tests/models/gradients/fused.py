"""Operators of com.microsoft."""

from typing import Any

from models.gradients.row import row

FLOAT32: dict[str, Any] = {"runtime": "float32", "single": False, "checked": False}
MS = "com.microsoft::"


def fused(op: str, form: str, inputs: str, call: str, weights: str = "", **more: Any) -> None:
    """A row that runs in float32; `call` without the domain."""
    row(MS + op, form, inputs, call.replace(op, f"com.microsoft.{op}"), weights, **(FLOAT32 | more))


IMAGE = "double[1,2,4,4] x, double[3,2,3,3] w, double[3] b"
fused(
    "FusedConv",
    "relu",
    IMAGE,
    'y = FusedConv<activation = "Relu", pads = [1,1,1,1]>(x, w, b)',
    feeds={"b": [-40, 1, 2]},
)
fused(
    "FusedConv",
    "add",
    IMAGE + ", double[1,3,4,4] z",
    'y = FusedConv<activation = "Sigmoid", pads = [1,1,1,1]>(x, w, b, z)',
    low=-0.3,
    high=0.4,
)
fused(
    "FusedConv",
    "leaky",
    IMAGE,
    'y = FusedConv<activation = "LeakyRelu", activation_params = [0.3]>(x, w, b)',
    feeds={"b": [-40, 1, 2]},
)
fused(
    "FusedGemm",
    "tanh",
    "double[3,4] a, double[2,4] b, double[2] c",
    'y = FusedGemm<activation = "Tanh", transB = 1, alpha = 0.5>(a, b, c)',
    low=-0.4,
    high=0.5,
)
fused("FusedMatMul", "turned", "double[2,3,4] a, double[2,2,4] b", "y = FusedMatMul<transB = 1, alpha = 0.5>(a, b)")
fused("Gelu", "plain", "double[3,4] a", "y = Gelu(a)", low=-1, high=1.1)
fused("BiasGelu", "plain", "double[3,4] a, double[4] b", "y = BiasGelu(a, b)", low=-1, high=1.1)
fused("FastGelu", "bias", "double[3,4] a, double[4] b", "y = FastGelu(a, b)", low=-1, high=1.1)
fused("FastGelu", "plain", "double[3,4] a", "y = FastGelu(a)", low=-1, high=1.1)
fused("QuickGelu", "plain", "double[3,4] a", "y = QuickGelu(a)", low=-1, high=1.1)
row(
    "SimplifiedLayerNormalization",
    "plain",
    "double[3,4] a, double[4] s",
    "y = SimplifiedLayerNormalization(a, s)",
    **FLOAT32,
)
NORM = "double[2,3,4] a, double[2,3,4] b, double[4] s"
fused(
    "SkipLayerNormalization",
    "bias",
    NORM + ", double[4] t, double[4] c",
    "y = SkipLayerNormalization<epsilon = 0.01>(a, b, s, t, c)",
    step=0.02,
)
fused(
    "SkipLayerNormalization",
    "sum",
    NORM,
    "y, m, v, z = SkipLayerNormalization<epsilon = 0.1>(a, b, s)",
    outputs="double[] y, double[] z",
)
fused(
    "SkipSimplifiedLayerNormalization",
    "sum",
    NORM,
    "y, m, v, z = SkipSimplifiedLayerNormalization<epsilon = 0.1>(a, b, s)",
    outputs="double[] y, double[] z",
)
fused(
    "EmbedLayerNormalization",
    "segments",
    "double[5,4] a, double[3,4] p, double[2,4] g, double[4] s, double[4] t",
    "y, m = EmbedLayerNormalization<epsilon = 0.1>(i, j, a, p, g, s, t)",
    "int32[2,3] i = {1,0,4,4,2,1}, int32[2,3] j = {0,1,1,0,0,1}",
    step=0.02,
)
fused(
    "Attention",
    "plain",
    "double[2,3,4] x, double[4,12] w, double[12] b",
    "y = Attention<num_heads = 2>(x, w, b)",
    high=0.6,
    low=-0.5,
    step=0.02,
)
fused(
    "Attention",
    "causal",
    "double[2,3,4] x, double[4,12] w, double[12] b",
    "y = Attention<num_heads = 2, unidirectional = 1>(x, w, b, m)",
    "int32[2,3] m = {1,1,0,1,1,1}",
    step=0.02,
)
fused(
    "MultiHeadAttention",
    "plain",
    "double[2,3,4] q, double[2,2,4] k, double[2,2,4] v, double[12] b",
    "y = MultiHeadAttention<num_heads = 2>(q, k, v, b)",
)
fused(
    "MultiHeadAttention",
    "bias",
    "double[2,3,4] q, double[2,2,4] k, double[2,2,4] v, double[2,2,3,2] z",
    "y = MultiHeadAttention<num_heads = 2, scale = 0.3>(q, k, v, , m, z)",
    "int32[2,2] m = {1,1,0,1}",
)
fused(
    "Inverse",
    "stack",
    "double[2,2,2] a",
    "y = Inverse(a)",
    feeds={"a": [[[2, 0.3], [0.4, 1]], [[1, -0.5], [0.5, 1]]]},
    step=0.02,
)
