"""Functions of one number: y' for every operator, in terms of x and y; the gradient is dy * y'."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from onnxprune.gradient import kernels
from onnxprune.gradient.backward import Backward
from onnxprune.gradient.formula import Tensor
from onnxprune.gradient.registry import Gradients, gradient
from onnxprune.graph.node import Node

Slope: TypeAlias = Callable[[Tensor, Tensor, Node], Tensor]  # x, y, node -> y'


def slope(op: str, summary: str) -> Callable[[Slope], Slope]:
    """Register a function by its derivative."""

    def register(f: Slope) -> Slope:
        def rule(b: Backward, n: Node, dy: Gradients) -> Gradients:
            assert dy[0]
            return [(Tensor(b, dy[0]) * f(Tensor(b, n.input(0)), Tensor(b, n.output(0)), n)).name]

        rule.__doc__ = summary
        gradient(op)(rule)
        return f

    return register


slope("Exp", "dy * y")(lambda x, y, n: y)
slope("Log", "dy / x")(lambda x, y, n: 1 / x)
slope("Sqrt", "dy / (2 y)")(lambda x, y, n: 1 / (y * 2))
slope("Reciprocal", "-dy * y^2")(lambda x, y, n: -(y * y))
slope("Abs", "dy * sign(x)")(lambda x, y, n: x.op("Sign"))
slope("Sin", "dy cos(x)")(lambda x, y, n: x.op("Cos"))
slope("Cos", "-dy sin(x)")(lambda x, y, n: -x.op("Sin"))
slope("Tan", "dy (1 + y^2)")(lambda x, y, n: y * y + 1)
slope("Sinh", "dy cosh(x)")(lambda x, y, n: x.op("Cosh"))
slope("Cosh", "dy sinh(x)")(lambda x, y, n: x.op("Sinh"))
slope("Tanh", "dy (1 - y^2)")(lambda x, y, n: 1 - y * y)
slope("Asin", "dy / sqrt(1 - x^2)")(lambda x, y, n: 1 / (1 - x * x).op("Sqrt"))
slope("Acos", "-dy / sqrt(1 - x^2)")(lambda x, y, n: -(1 / (1 - x * x).op("Sqrt")))
slope("Atan", "dy / (1 + x^2)")(lambda x, y, n: 1 / (x * x + 1))
slope("Asinh", "dy / sqrt(x^2 + 1)")(lambda x, y, n: 1 / (x * x + 1).op("Sqrt"))
slope("Acosh", "dy / sqrt(x^2 - 1)")(lambda x, y, n: 1 / (x * x - 1).op("Sqrt"))
slope("Atanh", "dy / (1 - x^2)")(lambda x, y, n: 1 / (1 - x * x))
slope("Erf", "dy * 2 / sqrt(pi) exp(-x^2)")(lambda x, y, n: (-(x * x)).op("Exp") * (2 / math.sqrt(math.pi)))

# activations

slope("Sigmoid", "dy * y (1 - y)")(lambda x, y, n: y * (1 - y))
slope("Softplus", "dy sigmoid(x)")(lambda x, y, n: x.op("Sigmoid"))
slope("Softsign", "dy (1 - |y|)^2")(lambda x, y, n: (1 - y.op("Abs")) ** 2)
slope("Elu", "dy where x > 0, else dy (y + alpha)")(lambda x, y, n: (x > 0).where(1, y + n.attr("alpha", 1.0), y))
slope("Celu", "dy where x > 0, else dy (y / alpha + 1)")(
    lambda x, y, n: (x > 0).where(1, y / n.attr("alpha", 1.0) + 1, y)
)


@slope("Selu", "dy * gamma where x > 0, else dy (y + gamma alpha)")
def selu(x: Tensor, y: Tensor, n: Node) -> Tensor:
    """The defaults are those of the standard, float32."""
    alpha, gamma = n.attr("alpha", 1.67326319217681884765625), n.attr("gamma", 1.05070102214813232421875)
    return (x > 0).where(gamma, y + alpha * gamma, y)


@slope("HardSigmoid", "dy * alpha where 0 < y < 1")
def hard_sigmoid(x: Tensor, y: Tensor, n: Node) -> Tensor:
    """alpha on the slope."""
    return (y > 0).op("And", y < 1).where(n.attr("alpha", 0.2), 0, y)


@slope("HardSwish", "dy (x / 3 + 1 / 2) where |x| < 3, dy above, 0 below")
def hard_swish(x: Tensor, y: Tensor, n: Node) -> Tensor:
    """y = x * clip(x / 6 + 1 / 2, 0, 1)."""
    return (x.op("Abs") < 3).where(x * (1 / 3) + 0.5, (x > 0).cast(x), x)


@slope("Mish", "dy (t + x (1 - t^2) sigmoid(x)), t = tanh(softplus(x))")
def mish(x: Tensor, y: Tensor, n: Node) -> Tensor:
    """y = x t."""
    t = x.op("Softplus").op("Tanh")
    return t + x * (1 - t * t) * x.op("Sigmoid")


@slope("Swish", "dy (s + alpha x s (1 - s)), s = sigmoid(alpha x)")
def swish(x: Tensor, y: Tensor, n: Node) -> Tensor:
    """y = x s."""
    alpha = float(n.attr("alpha", 1.0))
    s = (x * alpha).op("Sigmoid")
    return s + (y * (1 - s)) * alpha


@slope("Gelu", "dy (P + x p), P and p the normal distribution (or as its approximation by tanh has it)")
def gelu(x: Tensor, y: Tensor, n: Node) -> Tensor:
    """y = x P(x)."""
    return tanh_gelu(x) if n.attr("approximate", "none") == "tanh" else erf_gelu(x)


def erf_gelu(x: Tensor) -> Tensor:
    """d (x P(x)) / dx."""
    whole = (x * math.sqrt(0.5)).op("Erf") * 0.5 + 0.5
    return whole + x * ((x * x) * -0.5).op("Exp") * (1 / math.sqrt(2 * math.pi))


def tanh_gelu(x: Tensor) -> Tensor:
    """d (x (1 + t) / 2) / dx, t = tanh(sqrt(2 / pi) (x + 0.044715 x^3))."""
    c, k, square = math.sqrt(2 / math.pi), 0.044715, x * x
    t = (x * (square * k + 1) * c).op("Tanh")
    return (t + 1) * 0.5 + x * (1 - t * t) * (square * (3 * k) + 1) * (c / 2)


# with a step

slope("ThresholdedRelu", "dy where x > alpha")(lambda x, y, n: (x > n.attr("alpha", 1.0)).cast(x))
slope("Shrink", "dy where |x| > lambd")(lambda x, y, n: (x.op("Abs") > n.attr("lambd", 0.5)).cast(x))
slope("LeakyRelu", "dy where x > 0, else dy * alpha")(lambda x, y, n: (x > 0).where(1, n.attr("alpha", 0.01), x))


@gradient("Relu")
def relu(b: Backward, n: Node, dy: Gradients) -> Gradients:
    """dy where y > 0"""
    assert dy[0]
    y = Tensor(b, n.output(0))
    # a product, since onnxruntime's Where takes seven times as long; of y, so that a Relu fuses with what is before it
    out = (Tensor(b, dy[0]) * (y > 0).cast(y)).name
    kernels.clip(b, out, y.name, dy[0], low=0)
    return [out]
