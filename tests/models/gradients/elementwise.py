"""Single elements, and broadcasting."""

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
for op in ("Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Tanh", "Sigmoid", "Identity"):
    row(op, "plain", "double[3,4] a", f"y = {op}(a)")
row("Relu", "both-signs", "double[3,4] a", "y = Relu(a)", low=-1, high=1.1)
row("Cast", "there-and-back", "double[3,4] a", "h = Cast<to = 11>(a) y = Cast<to = 1>(h)", outputs="float[] y",
    single=False, runtime="float32")  # fmt: skip
row("Where", "broadcast", "bool[3,1] c, double[3,4] a, double[4] b", "y = Where(c, a, b)",
    feeds={"c": [[True], [False], [True]]})  # fmt: skip
