"""Dense layers: Gemm, MatMul and Einsum in every form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from models.builder import Builder, Dim
from models.topologies.registry import pooled, topology

# Dense layers: Gemm and MatMul in every form


@topology()
@topology("mlp_gemm_trans_b0", trans_b=0)
@topology("mlp_gemm_alpha_beta", alpha=0.5, beta=2.0)
@topology("mlp_gemm_no_bias", bias=False)
@topology("mlp_float64", dtype=np.float64)
@topology("mlp_float16", dtype=np.float16)
@topology("mlp_opset7", opset=7)
@topology("mlp_opset13", opset=13)
@topology("mlp_opset21", opset=21)
def mlp(*, opset: int = 17, dtype: npt.DTypeLike = np.float32, **linear: Any) -> onnx.ModelProto:
    b = Builder(opset, dtype=dtype)
    h = b.input("input", ("batch", 16))
    for width in (32, 24):
        h = b.relu(b.linear(h, width, **linear))
    return b.model(b.linear(h, 10, **linear))


@topology("mlp_gemm_bias_row", shape=(1, -1))
@topology("mlp_gemm_bias_scalar", shape=())
@topology("mlp_gemm_bias_one", shape=(1,))
@topology("mlp_gemm_bias_full", shape=(2, -1), batch=2)
def mlp_gemm_bias(*, shape: tuple[int, ...], batch: Dim = "batch") -> onnx.ModelProto:
    """Gemm's C in each shape that broadcasts to (batch, N); -1 stands for N."""
    b = Builder()
    h = b.input("input", (batch, 16))
    for width in (32, 24, 10):
        bias = b.param(b.normal(*[width if d == -1 else d for d in shape]) + 0.1, "fc.bias")
        weight = b.param(b.he(width, b.channels(h)), "fc.weight")
        h = b.op("Gemm", h, weight, bias, transB=1, beta=1.5)
        h = h if width == 10 else b.relu(h)
    return b.model(h)


@topology()
def mlp_gemm_trans_a() -> onnx.ModelProto:
    """The features come first: Gemm reads its input transposed."""
    b = Builder()
    h = b.relu(b.linear(b.input("input", (16, "batch")), 32, transA=1))
    return b.model(b.linear(b.relu(b.linear(h, 24)), 10))


@topology()
def gemm_weight_left() -> onnx.ModelProto:
    """Gemm with the weight as A and C of shape (M, 1): the channels are the rows of every activation."""
    b = Builder()
    x = b.input("input", ("batch", 16))
    h = b.relu(b.op("Gemm", b.param(b.he(24, 16)), x, b.vec(24, 1), transB=1))
    h = b.relu(b.op("Gemm", b.param(b.he(20, 24).T), h, b.vec(20, 1), transA=1))
    y = b.op("Gemm", b.param(b.he(10, 20)), h, b.vec(10, 1))
    return b.model(b.transpose(y, 1, 0))


@topology()
@topology("mlp_matmul_add_rank2", shape=("batch", 16))
@topology("mlp_matmul_rank4", shape=("batch", 4, 6, 16))
def mlp_matmul_add(*, shape: tuple[Dim, ...] = ("batch", 6, 16)) -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.dense(b.input("input", shape), 32))
    h = b.op("Tanh", b.dense(h, 24, bias=False))
    return b.model(b.dense(h, 10))


@topology()
def matmul_weight_left() -> onnx.ModelProto:
    """W @ x on (batch, channels, time), bias (channels, 1)."""
    b = Builder()
    h = b.input("input", ("batch", 16, 10))
    for width in (24, 32):
        h = b.relu(b.add(b.matmul(b.param(b.he(width, b.channels(h))), h), b.vec(width, 1)))
    return b.model(b.matmul(b.param(b.he(8, 32)), h))


@topology()
def matmul_vector_right() -> onnx.ModelProto:
    """The last weight is a vector: MatMul promotes it to a column and drops the axis again."""
    b = Builder()
    h = b.relu(b.dense(b.input("input", ("batch", 6, 16)), 24))
    return b.model(b.matmul(h, b.param(b.he(24, fan_in=24))))


@topology()
def matmul_vector_left() -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.matmul(b.param(b.he(24, 16)), b.input("input", (16, 10))))
    return b.model(b.matmul(b.param(b.he(24, fan_in=24)), h))


@topology()
def matmul_vector_input() -> onnx.ModelProto:
    """No batch axis at all: the activations are vectors."""
    b = Builder()
    h = b.relu(b.add(b.matmul(b.input("input", (16,)), b.param(b.he(16, 24, fan_in=16))), b.vec(24)))
    return b.model(b.matmul(h, b.param(b.he(24, 10, fan_in=24))))


@topology()
def matmul_batched_weight() -> onnx.ModelProto:
    """One weight per ensemble member: (members, in, out); a hidden unit is removed from all members or from none."""
    b = Builder()
    x = b.input("input", (4, "batch", 16))
    h = b.relu(b.add(b.matmul(x, b.param(b.he(4, 16, 24, fan_in=16))), b.vec(4, 1, 24)))
    return b.model(b.add(b.matmul(h, b.param(b.he(4, 24, 10, fan_in=24))), b.vec(4, 1, 10)))


@topology()
def mlp_mixer() -> onnx.ModelProto:
    """Token mixing on the transposed tensor, then channel mixing."""
    b = Builder()
    x = b.dense(b.input("input", ("batch", 9, 12)), 16)
    mixed = b.dense(b.gelu(b.dense(b.transpose(b.layernorm(x), 0, 2, 1), 20)), 9)
    x = b.add(x, b.transpose(mixed, 0, 2, 1))
    return b.model(pooled(b, b.layernorm(b.add(x, b.ffn(b.layernorm(x), 32)))))


@topology()
def mlp_input_skip() -> onnx.ModelProto:
    """NeRF: the input is concatenated to a hidden layer."""
    b = Builder()
    x = b.input("input", ("batch", 12))
    h = b.relu(b.linear(b.relu(b.linear(x, 32)), 24))
    return b.model(b.linear(b.relu(b.linear(b.concat(x, h), 24)), 4))


@topology()
def recommender_dot() -> onnx.ModelProto:
    """DLRM: embeddings interact by a dot product among themselves; the lower triangle is picked with Gather."""
    b = Builder()
    dense = b.relu(b.linear(b.relu(b.linear(b.input("dense", ("batch", 13)), 24)), 8))
    ids = b.input("ids", ("batch", 3), np.int64)
    looked_up = b.op("Gather", b.param(b.normal(20, 8, scale=0.5), "embedding.weight"), ids, axis=0)
    t = b.concat(b.unsqueeze(dense, 1), looked_up, axis=1)
    pairs = b.reshape(b.matmul(t, b.transpose(t, 0, 2, 1)), -1, 16)
    lower = b.op("Gather", pairs, [4, 8, 9, 12, 13, 14], axis=1)
    return b.model(b.sigmoid(b.linear(b.relu(b.linear(b.concat(dense, lower), 24)), 1)))


@topology()
def graph_convolution() -> onnx.ModelProto:
    """Adjacency @ features @ weight."""
    b = Builder()
    adjacency = b.param(np.eye(6) * 0.5 + b.uniform(0, 0.2, 6, 6), "adjacency")
    h = b.input("nodes", ("batch", 6, 12))
    for width in (24, 16):
        h = b.relu(b.dense(b.matmul(adjacency, h), width))
    return b.model(pooled(b, h))


# Einsum


@topology()
def einsum_dense() -> onnx.ModelProto:
    """Keras EinsumDense."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    h = b.add(b.op("Einsum", x, b.param(b.he(16, 32, fan_in=16)), equation="abc,cd->abd"), b.vec(32))
    return b.model(b.op("Einsum", b.relu(h), b.param(b.he(10, 32)), equation="btk,nk->btn"))


@topology()
def einsum_attention() -> onnx.ModelProto:
    """Heads and head_dim are labels; the projections are three-dimensional weights."""
    b = Builder()
    x = b.input("input", ("batch", 6, 16))
    q, k, v = (
        b.add(b.op("Einsum", x, b.param(b.he(16, 4, 8, fan_in=16)), equation="bsd,dhk->bshk"), b.vec(4, 8))
        for _ in range(3)
    )
    scores = b.softmax(b.mul(b.op("Einsum", q, k, equation="bshk,bthk->bhst"), 1 / math.sqrt(8)))
    mixed = b.op("Einsum", scores, v, equation="bhst,bthk->bshk")
    y = b.add(b.op("Einsum", mixed, b.param(b.he(4, 8, 16, fan_in=32)), equation="bshk,hkd->bsd"), b.vec(16))
    return b.model(pooled(b, b.ffn(b.add(x, y), 32)))


@topology()
def einsum_bilinear() -> onnx.ModelProto:
    """A bilinear form: two hidden layers meet in a three-dimensional weight."""
    b = Builder()
    left = b.relu(b.linear(b.input("left", ("batch", 12)), 16))
    right = b.relu(b.linear(b.input("right", ("batch", 12)), 20))
    weight = b.param(b.he(10, 16, 20), "bilinear.weight")
    return b.model(b.op("Einsum", left, weight, right, equation="bi,oij,bj->bo"))
