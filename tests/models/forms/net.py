"""The builder of transformers: what they share, on top of the builder of topologies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from models.builder import MICROSOFT, Array, Builder, Dim, Operand
from models.forms.form import BATCH, FFN, HEAD, HEADS, LABELS, LAYERS, TIME, VOCAB, WIDTH

Module = Callable[[str], str]


class Net(Builder):
    """The builder of topologies with what transformers share.

    Sizes that are known become constants, as tracing leaves them; `raw` keeps all shape arithmetic and the Transpose
    of each linear layer's weight, as an export without constant folding does.
    """

    def __init__(self, opset: int = 17, *, raw: bool = False, **options: Any) -> None:
        super().__init__(opset, **options)
        self.raw = raw

    def const(self, value: npt.ArrayLike) -> str:
        name = super().const(value)
        self.nodes[-1].name = self.nodes[-1].name or name
        return name

    def he(self, *shape: int, fan_in: int = 0) -> Array:
        return self.rng.normal(0.0, 1 / math.sqrt(fan_in or math.prod(shape[1:])), shape)

    def size(self, x: str, axis: int) -> Any:
        size = self.shape(x)[axis]
        return size if isinstance(size, int) and not self.raw else super().size(x, axis)

    def dims(self, *sizes: Dim) -> str:
        if not self.raw:
            return super().dims(*sizes)
        return self.concat(*[self.unsqueeze(self.const(d) if isinstance(d, int) else d, 0) for d in sizes], axis=0)

    def dense(self, x: str, n: int, *, bias: bool = True) -> str:
        if not self.raw:
            return super().dense(x, n, bias=bias)
        weight = self.transpose(self.param(self.he(n, self.channels(x, -1)), "linear.weight"), 1, 0)
        y = self.matmul(x, weight)
        return self.add(self.vec(n), y) if bias else y

    def conv1d(self, x: str, n: int) -> str:
        """GPT-2's linear layer: a Gemm between two Reshapes."""
        y = self.linear(self.reshape(x, -1, self.channels(x, 2)), n, trans_b=0)
        return self.reshape(y, self.size(x, 0), self.size(x, 1), n)

    def gain(self, n: int) -> str:
        return self.param(self.uniform(0.5, 1.5, n), "norm.weight")

    def rmsnorm(self, x: str) -> str:
        mean = self.reduce("Mean", self.op("Pow", x, 2.0), -1)
        inverse = self.op("Reciprocal", self.op("Sqrt", self.add(mean, 1e-6)))
        return self.mul(self.gain(self.channels(x, -1)), self.mul(x, inverse))

    def gelu_tanh(self, x: str) -> str:
        inner = self.mul(self.add(x, self.mul(self.op("Pow", x, 3.0), 0.044715)), math.sqrt(2 / math.pi))
        return self.mul(self.mul(x, 0.5), self.add(self.op("Tanh", inner), 1.0))

    def embed(self, width: int = WIDTH, *, name: str = "input_ids", time: Dim = TIME, batch: Dim = BATCH) -> str:
        ids = self.input(name, (batch, time), np.int64)
        return self.op("Gather", self.param(self.normal(VOCAB, width, scale=1.0), "embedding.weight"), ids, axis=0)

    def positions(self, x: str) -> str:
        """A learned vector per position, added."""
        return self.add(x, self.param(self.normal(1, *map(int, self.shape(x)[1:]), scale=0.5), "position.weight"))

    def scores(self, q: str, k: str, *, scale: str = "div") -> str:
        """q k^T over (batch, heads, time, d), scaled by 1 / sqrt(d) in one of the ways in which models write it."""
        d, kt = self.channels(q, -1), self.transpose(k, 0, 1, 3, 2)
        if scale == "both":  # scaled_dot_product_attention
            return self.matmul(self.mul(q, d**-0.25), self.mul(kt, d**-0.25))
        if scale == "q":
            return self.matmul(self.mul(q, d**-0.5), kt)
        s = self.matmul(q, kt)
        if scale == "div":
            return self.op("Div", s, math.sqrt(d))
        return self.mul(s, d**-0.5) if scale == "mul" else s

    def attend(self, q: str, k: str, v: str, *, mask: Operand = None, scale: str = "div") -> str:
        scores = self.scores(q, k, scale=scale)
        return self.matmul(self.softmax(scores if mask is None else self.add(scores, mask)), v)

    def out(self, mixed: str, width: int, *, bias: bool = True) -> str:
        """(batch, heads, time, d) through the output projection."""
        shape = self.shape(mixed)
        return self.dense(self.unheads(mixed, int(shape[1]) * int(shape[3])), width, bias=bias)

    def mha(self, x: str, *, source: str = "", mask: Operand = None, scale: str = "div", bias: bool = True) -> str:
        """Attention with separate projections, across to `source` if given."""
        inputs = (x, source or x, source or x)
        q, k, v = (self.heads(self.dense(t, HEADS * HEAD, bias=bias), HEADS) for t in inputs)
        return self.out(self.attend(q, k, v, mask=mask, scale=scale), self.channels(x, -1), bias=bias)

    def ms(self, kind: str, *operands: Operand, shape: Sequence[Dim | None], **attributes: Any) -> str:
        """A com.microsoft node, whose output's shape onnx cannot infer."""
        return self.declare(self.op(kind, *operands, domain=MICROSOFT, **attributes), shape)

    def swiglu(self, x: str, hidden: int = FFN) -> str:
        gated = self.mul(self.silu(self.dense(x, hidden, bias=False)), self.dense(x, hidden, bias=False))
        return self.dense(gated, self.channels(x, -1), bias=False)

    def pre_norm(self, x: str, attention: Module, ffn: Module | None = None, norm: Module | None = None) -> str:
        """Two layers x + attention(norm(x)), x + ffn(norm(x)), and a last norm."""
        norm, ffn = norm or self.layernorm, ffn or (lambda y: self.ffn(y, FFN))
        for _ in range(LAYERS):
            x = self.add(x, attention(norm(x)))
            x = self.add(x, ffn(norm(x)))
        return norm(x)

    def post_norm(self, x: str, attention: Module, norm: Module | None = None) -> str:
        """Two layers norm(x + attention(x)), norm(x + ffn(x)) behind a first norm."""
        norm = norm or self.layernorm
        x = norm(x)
        for _ in range(LAYERS):
            x = norm(self.add(x, attention(x)))
            x = norm(self.add(x, self.ffn(x, FFN)))
        return x

    def classify(self, x: str) -> ModelProto:
        """The mean over time through a Gemm."""
        return self.model(self.linear(self.reduce("Mean", x, 1, keepdims=0), LABELS))

    def language_model(self, x: str, *others: str) -> ModelProto:
        return self.model(self.dense(x, VOCAB, bias=False), *others)
