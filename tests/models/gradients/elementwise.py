"""Single elements, and broadcasting."""

import numpy as np

from models.gradients.row import row

for op in ("Add", "Sub", "Mul", "Div"):
    row(op, "same", "double[3,4] a, double[3,4] b", f"y = {op}(a, b)")
    row(op, "broadcast", "double[3,1,4] a, double[2,1] b", f"y = {op}(a, b)")
    row(op, "dynamic", "double[N,1,4] a, double[M,4] b", f"y = {op}(a, b)", sizes={"N": 3, "M": 2})
    row(op, "one-or-many", "double[N,4] a, double[M,4] b", f"y = {op}(a, b)", sizes={"N": 1, "M": 5})
row("Add", "itself", "double[3,4] a", "y = Add(a, a)")
row("Mul", "square", "double[3,4] a", "y = Mul(a, a)")
row("Mul", "empty", "double[0,4] a, double[4] b", "y = Mul(a, b)", single=False)
row("Sum", "three", "double[3,4] a, double[4] b, double c", "y = Sum(a, b, c)")
row("Sum", "read-often", "double[3,4] a", "h = Sum(a, a, a) k = Mul(a, h) y = Sum(h, k, a)")
row("Neg", "plain", "double[3,4] a", "y = Neg(a)")
row("Identity", "plain", "double[3,4] a", "y = Identity(a)")
for form, exponent in [
    ("same", "double[3,4] b"), ("broadcast", "double[3,1] b"), ("stretched", "double[2,3,4] b"), ("one", "double b"),
]:  # fmt: skip
    row("Pow", form, f"double[3,4] a, {exponent}", "y = Pow(a, b)")
row("Pow", "square", "double[3,4] a", "y = Pow(a, c)", "double c = {2}", low=-1, high=1.1)
row("Pow", "cube", "double[3,4] a", "y = Pow(a, c)", "int64 c = {3}", low=-1, high=1.1)
row("Pow", "root", "double[3,4] a", "y = Pow(a, c)", "double[1] c = {0.5}")
row("Pow", "itself", "double[3,4] a", "y = Pow(a, c)", "double[1] c = {1.0}")
APART = {"b": [0.71, 1.31, 0.91, 1.13], "c": [[0.77], [1.07], [1.21]]}
for op in ("Max", "Min"):
    row(op, "two", "double[3,4] a, double[4] b", f"y = {op}(a, b)", feeds=APART)
    row(op, "three", "double[3,4] a, double[4] b, double[3,1] c", f"y = {op}(a, b, c)", feeds=APART)
    row(op, "itself", "double[3,4] a", f"y = {op}(a, a)")
    row(op, "one", "double[3,4] a", f"y = {op}(a)")
row("Mean", "three", "double[3,4] a, double[4] b, double c", "y = Mean(a, b, c)")
row(
    "Mod",
    "fmod",
    "double[3,4] a, double[4] b",
    "y = Mod<fmod = 1>(a, b)",
    feeds={"a": np.linspace(-3.1, 2.9, 12).reshape(3, 4)},
    single=False,
)
row("PRelu", "broadcast", "double[2,3,4] a, double[3,1] b", "y = PRelu(a, b)", low=-1, high=1.1)
row("PRelu", "one", "double[3,4] a, double[1] b", "y = PRelu(a, b)", low=-1, high=1.1)
row("Clip", "bounds", "double[3,4] a", "y = Clip(a, l, h)", "double l = {0.5}, double h = {1.2}")
row("Clip", "learnt", "double[3,4] a, double l, double h", "y = Clip(a, l, h)", feeds={"l": 0.53, "h": 1.21})
row("Clip", "above", "double[3,4] a", "y = Clip(a, , h)", "double h = {1.2}")
row("CastLike", "same", "double[3,4] a, double b", "y = CastLike(a, b)", fixed=("b",))
row("Cast", "there-and-back", "double[3,4] a", "h = Cast<to = 11>(a) y = Cast<to = 1>(h)", outputs="float[] y",
    single=False, runtime="float32")  # fmt: skip
row("Where", "broadcast", "bool[3,1] c, double[3,4] a, double[4] b", "y = Where(c, a, b)",
    feeds={"c": [[True], [False], [True]]})  # fmt: skip
