"""Other residual blocks, feed-forward layers and attentions, and mixtures of experts."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto

from models.forms.form import BATCH, EXPERTS, FFN, HEAD, HEADS, LAYERS, TIME, WIDE, form
from models.forms.net import Net

# Other residual blocks, feed-forward layers and attentions


@form(hidden=(WIDE,))
def geglu() -> ModelProto:
    """One projection to twice the width, a Split, gelu(gate) * value."""
    b = Net()

    def ffn(x: str) -> str:
        value, gate = b.split(b.dense(x, 2 * FFN), [FFN, FFN], axis=-1)
        return b.dense(b.mul(value, b.gelu(gate)), WIDE)

    return b.classify(b.pre_norm(b.positions(b.embed(WIDE)), lambda y: b.mha(y, scale="mul"), ffn))


@form(blocks=LAYERS, note="x + (attention(norm(x)) + ffn(norm(x))): one sum adds both to the stream, one block.")
def parallel_residual() -> ModelProto:
    """GPT-J: attention and feed-forward layer side by side."""
    b = Net()
    x = b.positions(b.embed())
    for _ in range(LAYERS):
        y = b.layernorm(x)
        x = b.add(b.add(b.mha(y), b.ffn(y, FFN)), x)
    return b.language_model(b.layernorm(x))


@form(hidden=(WIDE,))
def linear_attention() -> ModelProto:
    """phi(q) (phi(k)^T v) / (phi(q) sum phi(k)), phi = elu + 1: no Softmax and no matrix of time by time."""
    b = Net()

    def attention(x: str) -> str:
        q, k, v = (b.heads(b.dense(x, HEADS * HEAD), HEADS) for _ in range(3))
        q, k = (b.add(b.op("Elu", t), 1.0) for t in (q, k))
        mixed = b.matmul(q, b.matmul(b.transpose(k, 0, 1, 3, 2), v))
        total = b.unsqueeze(b.reduce("Sum", k, 2, keepdims=0), -1)
        return b.out(b.op("Div", mixed, b.matmul(q, total)), WIDE)

    return b.classify(b.pre_norm(b.positions(b.embed(WIDE)), attention))


# Mixture of experts

MOE: dict[str, Any] = {"hidden": (WIDE,), "experts": (EXPERTS, EXPERTS)}


def routed(b: Net, x: str, *, one_hot: bool) -> str:
    """Weights (batch * time, experts) of the two chosen experts, renormalised, elsewhere 0."""
    probabilities = b.softmax(b.dense(x, EXPERTS, bias=False))
    values, index = b.ops("TopK", probabilities, [2], n=2, axis=-1)
    values = b.op("Div", values, b.reduce("Sum", values, -1))
    if one_hot:
        chosen = b.op("OneHot", index, EXPERTS, np.array([0.0, 1.0], np.float32), axis=-1)
        return b.reduce("Sum", b.mul(b.unsqueeze(values, -1), chosen), 1, keepdims=0)
    zeros = np.zeros((BATCH * TIME, EXPERTS), np.float32)
    return b.op("ScatterElements", zeros, index, values, axis=-1)


@form(**MOE)
@form("moe_onehot", fixed={"one_hot": True}, **MOE, note="The same, OneHot and ReduceSum in place of ScatterElements.")
def moe_dense(*, one_hot: bool = False) -> ModelProto:
    """Every expert runs, stacked (experts, in, out) in one MatMul; top-2 weights by TopK and ScatterElements."""
    b = Net()

    def stacked(x: str, n: int, m: int) -> str:
        return b.add(b.matmul(x, b.param(b.he(EXPERTS, n, m, fan_in=n), "experts.weight")), b.vec(EXPERTS, 1, m))

    def ffn(x: str) -> str:
        flat = b.reshape(x, -1, WIDE)
        weights = b.unsqueeze(b.transpose(routed(b, flat, one_hot=one_hot), 1, 0), -1)
        y = stacked(b.silu(stacked(b.unsqueeze(flat, 0), WIDE, FFN)), FFN, WIDE)
        return b.reshape(b.reduce("Sum", b.mul(y, weights), 0, keepdims=0), BATCH, TIME, WIDE)

    return b.language_model(b.pre_norm(b.positions(b.embed(WIDE)), b.mha, ffn))


@form(**MOE)
def ms_moe() -> ModelProto:
    """com.microsoft MoE: router logits, stacked weights (experts, out, in) and biases, the two best experts.

    onnxruntime 1.31 has a kernel for float32 on the CPU; older releases have none.
    """
    b = Net()

    def ffn(x: str) -> str:
        flat = b.reshape(x, -1, WIDE)
        weights = [
            t
            for n, m in ((WIDE, FFN), (FFN, WIDE))
            for t in (b.param(b.he(EXPERTS, m, n, fan_in=n), "experts.weight"), b.vec(EXPERTS, m))
        ]
        how = {"k": 2, "activation_type": "silu", "normalize_routing_weights": 1}
        y = b.ms("MoE", flat, b.dense(flat, EXPERTS, bias=False), *weights, shape=(BATCH * TIME, WIDE), **how)
        return b.reshape(y, BATCH, TIME, WIDE)

    return b.language_model(b.pre_norm(b.positions(b.embed(WIDE)), b.mha, ffn))
