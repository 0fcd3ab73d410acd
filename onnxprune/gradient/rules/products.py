"""Products of matrices."""

from __future__ import annotations

from onnxprune.gradient.backward import Backward
from onnxprune.gradient.registry import Gradients, gradient
from onnxprune.graph.node import Node


@gradient("MatMul")
def matmul(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dA = dY B^T, dB = A^T dY, summed over the axes that were broadcast"""
    assert dy[0]
    x, y = n.inputs
    rows, columns = b.rank(x) == 1, b.rank(y) == 1
    u, v = b.unsqueeze(x, [0]) if rows else x, b.unsqueeze(y, [1]) if columns else y
    rank = max(b.rank(u), b.rank(v))
    g = b.unsqueeze(dy[0], [rank - 2] * rows + [rank - 1] * columns)
    du = dv = None
    if b.needs(0):
        du = b.reshape_like(b.unbroadcast(b.op("MatMul", g, turned(b, v)), u), x)
    if b.needs(1):
        dv = b.reshape_like(_right(b, u, v, g), y)
    return [du, dv]


def turned(b: Backward, x: str) -> str:
    """A tensor with its last two axes swapped."""
    rank = b.rank(x)
    return b.transpose(x, [*range(rank - 2), rank - 1, rank - 2])


def _right(b: Backward, u: str, v: str, g: str) -> str:
    """u^T g in the shape of v; where one matrix multiplies a whole stack, as one product of two matrices."""
    if b.rank(v) > 2 or b.rank(u) == 2:
        return b.unbroadcast(b.op("MatMul", turned(b, u), g), v)
    k, m = b.shape(v)
    if k is None or m is None:
        return b.unbroadcast(b.op("MatMul", turned(b, u), g), v)
    return b.op("Gemm", b.reshape(u, [-1, k]), b.reshape(g, [-1, m]), transA=1)


@gradient("Gemm")
def gemm(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dA = alpha dY B^T, dB = alpha A^T dY, dC = beta dY"""
    assert dy[0]
    x, y, g = n.input(0), n.input(1), dy[0]
    a, c, alpha = int(n.attr("transA", 0)), int(n.attr("transB", 0)), float(n.attr("alpha", 1.0))
    out: Gradients = [None] * len(n.inputs)
    if b.needs(0):
        left, right = (y, g) if a else (g, y)
        out[0] = b.op("Gemm", left, right, transA=c if a else 0, transB=1 if a else 1 - c, alpha=alpha)
    if b.needs(1):
        left, right = (g, x) if c else (x, g)
        out[1] = b.op("Gemm", left, right, transA=1 if c else 1 - a, transB=a if c else 0, alpha=alpha)
    if len(n.inputs) > 2 and b.needs(2):
        out[2] = b.scale(b.unbroadcast(g, n.input(2)), float(n.attr("beta", 1.0)))
    return out
