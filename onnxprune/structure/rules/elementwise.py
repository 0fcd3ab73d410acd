"""Operators that compute each element from the elements at the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.graph.node import Node
from onnxprune.structure.coupling import Coupling
from onnxprune.structure.rules.registry import rule

if TYPE_CHECKING:
    from onnxprune.structure.surgeon import Surgeon

UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu BitCast Affine com.microsoft::Gelu
com.microsoft::QuickGelu""".split()

BROADCAST = """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Clip Div Equal Greater GreaterOrEqual Less LessOrEqual
Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor com.microsoft::BiasGelu com.microsoft::FastGelu""".split()

# inputs beyond the first are scalars or settings
FIRST_ONLY = ["CastLike", "Dropout"]


def broadcast_together(c: Coupling, inputs: list[str], outputs: list[str]) -> None:
    """Align axes from the right; an axis of size one stays."""
    rank = max((len(c.axes(o)) for o in outputs), default=0)
    inputs = list(dict.fromkeys(inputs))
    unknown = [t for t in (*inputs, *outputs) if c.shape(t) is None]
    if unknown:
        for t in (*inputs, *outputs):
            for axis in c.axes(t):
                c.pin(axis, f"rank of {unknown[0]} is unknown")
        return
    for k in range(1, rank + 1):
        out = [c.axes(o)[-k] for o in outputs if len(c.axes(o)) >= k]
        origins = [origin for t in inputs if len(c.reduced.get(t, ())) >= k for origin in c.reduced[t][-k]]
        for axis in out:
            if axis is None:
                continue
            for t in inputs:
                if len(c.axes(t)) >= k and c.axes(t)[-k] is not None:
                    c.tie(c.axes(t)[-k], axis)
            for origin, by in origins:
                c.normalised(axis, origin, by)
        if origins and all(axis is None for axis in out):
            for o in outputs:
                c.reduced.setdefault(o, [[] for _ in c.axes(o)])[-k] = origins


@rule(*UNARY, *BROADCAST)
def broadcast(c: Coupling, n: Node) -> None:
    """inputs are aligned from the right; every axis is tied to the output's"""
    inputs = [i for i in n.inputs if i]
    if n.opset < 7 and n.attr("broadcast", 0) and "axis" in n.attributes:  # the second is aligned at an axis
        x, first = c.axes(inputs[0]), n.attr("axis")
        for k, ids in enumerate(c.axes(inputs.pop())):
            if ids is not None:
                c.tie(ids, x[first + k])
    broadcast_together(c, inputs, [n.output(0)])


def resize_bias(s: Surgeon, n: Node) -> None:
    """The attribute holds a number per channel."""
    x = s.coupling.axes(n.input(0))[1]
    if x is not None and s.shrinks(n.input(0), 1):
        s.set_attr(n, "bias", [b for b, kept in zip(n.attr("bias", []), s.keep(x), strict=False) if kept])


@rule("ImageScaler", resize=resize_bias)
def image_scaler(c: Coupling, n: Node) -> None:
    """every axis of the first input is tied to the outputs'; a bias per channel"""
    broadcast_together(c, [n.input(0)], [n.output(0)])


@rule(*FIRST_ONLY)
def first_input(c: Coupling, n: Node) -> None:
    """every axis of the first input is tied to the outputs'"""
    broadcast_together(c, [n.input(0)], [n.output(0), *(o for o in n.outputs[1:] if c.readers[o])])
