"""Small networks that stand in for a trained one: products, convolutions, residual blocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from onnx import ModelProto

from models.nets import build, normal

ODD_INPUT, ODD_TENSOR, BRACKETS = "serving_default_input_2:0", "onnx::Relu_0", "block[0]/conv=1"


def mlp(*widths: int, names: str = "abc", seed: int = 0, **weights: Any) -> ModelProto:
    """MatMul and Relu in turn, two or three of them; `names` are those of the weights, whose seeds follow `seed`.

    weights: arrays in place of the seeded ones.
    """
    shapes = list(pairwise(widths))
    given = {n: normal(*s, seed=seed + i) for i, (n, s) in enumerate(zip(names, shapes, strict=False))} | weights
    outs = "hk"[: len(shapes) - 1]
    text, x = "", "x"
    for n, out, relu in zip(names, outs, "rt", strict=False):
        text += f"{out} = MatMul({x}, {n}) {relu} = Relu({out}) "
        x = relu
    last = names[len(shapes) - 1]
    return build(f"{text} y = MatMul({x}, {last})", f"float[n,{widths[0]}]", f"float[n,{widths[-1]}]", **given)


def three_groups(x: str = "float[n,3,8,8]") -> ModelProto:
    """Two convolutions and a Gemm: groups of 16, 32 and 24 channels."""
    nodes = """h = Conv<pads = [1, 1, 1, 1]>(x, stem, b0) n = BatchNormalization(h, g, o, m, s) r = Relu(n)
               k = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r, body, b1) a = Relu(k) p = GlobalAveragePool(a)
               f = Flatten(p) l = Gemm(f, wide, b2) t = Relu(l) y = Gemm(t, head, b3)"""
    return build(
        nodes, x, "float[n,10]",
        stem=normal(16, 3, 3, 3), b0=normal(16, seed=1), g=normal(16, seed=2), o=normal(16, seed=3),
        m=normal(16, seed=4), s=normal(16, seed=5) ** 2 + 0.1, body=normal(32, 16, 3, 3, seed=6),
        b1=normal(32, seed=7), wide=normal(32, 24, seed=8), b2=normal(24, seed=9), head=normal(24, 10, seed=10),
        b3=normal(10, seed=11),
    )  # fmt: skip


def cnn(dead: tuple[int, ...] = ()) -> ModelProto:
    """Groups of 8, 10 and 12 channels; dead: units of the second one that nothing hears."""
    nodes = """h = Conv(x, w, a) r = Relu(h) k = Conv<pads = [1, 1, 1, 1]>(r, v, b) t = Relu(k) m = Conv(t, u)
               s = Relu(m) g = GlobalAveragePool(s) f = Flatten(g) y = Gemm(f, q, c)"""
    v = normal(12, 10, 3, 3, seed=2)
    v[:, list(dead)] = 0
    return build(
        nodes, y="float[n,4]",
        w=normal(8, 3, 3, 3), a=normal(8, seed=1), v=normal(10, 8, 3, 3, seed=3), b=normal(10, seed=4), u=v,
        q=normal(12, 4, seed=6) / 150, c=normal(4, seed=7),
    )  # fmt: skip


def odd_names(x: str = "float[n,3,8,8]") -> ModelProto:
    """Groups of 16 and 24 channels, with names that need care."""
    nodes = "h = Conv(x, stem, b) r = Relu(h) k = Conv(r, body) t = Relu(k) y = Conv(t, head)"
    proto = build(nodes, x, stem=normal(16, 3, 3, 3), b=normal(16), body=normal(24, 16, 1, 1), head=normal(2, 24, 1, 1))
    for old, new in ("x", ODD_INPUT), ("h", ODD_TENSOR):
        for names in (n for node in proto.graph.node for n in (node.input, node.output)):
            names[:] = [new if name == old else name for name in names]
    proto.graph.input[0].name = ODD_INPUT
    for node, name in zip(proto.graph.node, ["stem conv", "relu", BRACKETS, "act", "head"], strict=True):
        node.name = name
    return proto


def classifier(noise: float = 0.0) -> ModelProto:
    """Pictures of 3 x 6 x 6 to five classes; noise: added to the filters."""
    w = normal(12, 3, 3, 3) + noise * normal(12, 3, 3, 3, seed=9)
    nodes = "h = Conv(x, w) r = Relu(h) g = GlobalAveragePool(r) f = Flatten(g) y = Gemm(f, v)"
    return build(nodes, "float[n,3,6,6]", "float[n,5]", w=w, v=normal(12, 5, seed=1))


def grouped() -> ModelProto:
    """A convolution, a grouped one and a Gemm."""
    nodes = """h = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(h) g = Conv<group=2>(r, v) q = Relu(g)
               p = GlobalAveragePool(q) f = Flatten(p) y = Gemm<transB=1>(f, u, c)"""
    return build(
        nodes, "float[n,8,5,5]", "float[n,6]", w=normal(16, 8, 3, 3), b=normal(16), v=normal(12, 8, 1, 1),
        u=normal(6, 12), c=normal(6),
    )  # fmt: skip


def residual_pictures(*, zeros: bool = False) -> ModelProto:
    """A small network of two residual blocks with a batch normalisation for pictures of 3 x 8 x 8, five classes."""
    nodes = """
        a = Conv<pads=[1,1,1,1]>(x, w0, b0) n = BatchNormalization(a, s, t, m, v) r = Relu(n)
        c = Conv(r, w1, b1) d = Relu(c) e = Conv(d, w2, b2) q = Add(r, e)
        c2 = Conv(q, w5, b5) d2 = Relu(c2) e2 = Conv(d2, w6, b6) f = Add(q, e2)
        g = Conv<strides=[2,2]>(f, w3, b3) h = Relu(g) k = GlobalAveragePool(h) l = Flatten(k) y = Gemm(l, w4, b4)
    """
    wide = 64 if zeros else 16
    shapes = {"w0": (8, 3, 3, 3), "w1": (16, 8, 1, 1), "w2": (8, 16, 1, 1), "w3": (wide, 8, 1, 1), "w4": (wide, 5)}
    shapes |= {"w5": (8, 8, 1, 1), "w6": (8, 8, 1, 1)}
    weights: dict[str, Any] = {k: normal(*s, seed=i) * 0.2 for i, (k, s) in enumerate(shapes.items())}
    if zeros:
        weights = {k: np.where(np.abs(w) > 0.42, w, 0) for k, w in weights.items()}
    biases: dict[str, Any] = {f"b{i}": normal(n, seed=9 + i) * 0.1 for i, n in enumerate((8, 16, 8, wide, 5, 8, 8))}
    norm: dict[str, Any] = {"s": 1 + normal(8) * 0.1, "t": normal(8) * 0.1, "m": normal(8) * 0.1, "v": np.full(8, 1.5)}
    return build(nodes, "float[n,3,8,8]", "float[n,5]", **weights, **biases, **norm)


def residual_vectors() -> ModelProto:
    """Vectors of 6, through a layer of 8 units, a normalisation and two residual blocks, to five classes."""
    nodes = """a = Gemm(x, w0, b0) n = BatchNormalization(a, s, t, m, v) r = Relu(n)
               h = Gemm(r, w1, b1) q = Relu(h) k = Gemm(q, w2, b2) f = Add(r, k)
               i = Gemm(f, w3, b1) j = Relu(i) l = Gemm(j, w4, b3) g = Add(f, l) y = Gemm(g, w5, b4)"""
    shapes = {"w0": (6, 8), "b0": (8,), "w1": (8, 8), "b1": (8,), "w2": (8, 8), "b2": (8,), "m": (8,)}
    shapes |= {"w3": (8, 8), "w4": (8, 8), "b3": (8,), "w5": (8, 5), "b4": (5,)}
    weights: dict[str, Any] = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    norm: dict[str, Any] = {"s": 1 + normal(8) * 0.1, "t": normal(8) * 0.1, "v": np.full(8, 1.5)}
    return build(nodes, "float[n,6]", "float[n,5]", **weights, **norm)
