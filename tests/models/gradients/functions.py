"""Functions of one number."""

import numpy as np

from models.gradients.row import row

SIGNS = {"a": np.linspace(0.5, 1.6, 12).reshape(3, 4) * [1, -1, -1, 1]}  # far from 0

for (
    op
) in """Exp Log Sqrt Reciprocal Sin Cos Tan Sinh Cosh Tanh Asinh Atan Erf Sigmoid Softplus Softsign Mish""".split():
    row(op, "plain", "double[3,4] a", f"y = {op}(a)", high=1.4)
for op in ("Asin", "Acos", "Atanh"):
    row(op, "plain", "double[3,4] a", f"y = {op}(a)", low=-0.8, high=0.7)
row("Acosh", "plain", "double[3,4] a", "y = Acosh(a)", low=1.3, high=2.5)
for op in """Abs Relu LeakyRelu Elu Selu HardSigmoid HardSwish ThresholdedRelu Shrink""".split():
    row(op, "both-signs", "double[3,4] a", f"y = {op}(a)", low=-1.71, high=1.93, opset=20)
for op, how in [
    ("LeakyRelu", "alpha = 0.3"), ("Elu", "alpha = 0.7"), ("Selu", "alpha = 1.5, gamma = 0.9"),
    ("HardSigmoid", "alpha = 0.5, beta = 0.3"), ("Gelu", 'approximate = "tanh"'), ("ThresholdedRelu", "alpha = 0.2"),
    ("Shrink", "lambd = 0.3, bias = 0.2"), ("Swish", "alpha = 0.7"),
]:  # fmt: skip
    row(op, "attributes", "double[3,4] a", f"y = {op}<{how}>(a)", low=-1.7, high=1.9, opset=24 if op == "Swish" else 20)
# until opset 28 there is no Celu but in float32
row("Celu", "plain", "double[3,4] a", "y = Celu(a)", feeds=SIGNS, runtime="float32", single=False)
row("Celu", "alpha", "double[3,4] a", "y = Celu<alpha = 0.7>(a)", feeds=SIGNS, runtime="float32", single=False)
row("Gelu", "plain", "double[3,4] a", "y = Gelu(a)", low=-1.71, high=1.93, opset=20)
row("HardSwish", "beyond", "double[3,4] a", "y = HardSwish(a)", low=-4.1, high=4.3)
row("Swish", "plain", "double[3,4] a", "y = Swish(a)", low=-1.7, high=1.9, opset=24)
row("Elu", "large", "double[3,4] a", "y = Elu(a)", low=-1e3, high=1.1e3)
