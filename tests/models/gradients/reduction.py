"""Sums and means."""

from models.gradients.row import row

for op in ("ReduceSum", "ReduceMean"):
    row(op, "all", "double[3,4] a", f"y = {op}<keepdims = 0>(a)")
    row(op, "axes", "double[3,2,4] a", f"y = {op}(a, k)", "int64[2] k = {0,-1}")
    row(op, "dropped", "double[N,2,4] a", f"y = {op}<keepdims = 0>(a, k)", "int64[2] k = {0,2}", sizes={"N": 3})
    row(op, "none", "double[3,4] a", f"y = {op}<noop_with_empty_axes = 1>(a)")
row("ReduceMean", "attribute", "double[3,4] a", "y = ReduceMean<axes = [1]>(a)", opset=17)
row("ReduceMean", "dynamic", "double[2,L] a", "y = ReduceMean(a, k)", "int64[1] k = {1}", sizes={"L": 3})
for op in """ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare""".split():
    row(op, "all", "double[3,4] a", f"y = {op}<keepdims = 0>(a)", high=1.2)
    row(op, "axes", "double[3,2,2] a", f"y = {op}(a, k)", "int64[2] k = {0,-1}")
    row(op, "dropped", "double[3,L,2] a", f"y = {op}<keepdims = 0>(a, k)", "int64[1] k = {1}", sizes={"L": 4})
    row(op, "attribute", "double[3,2,2] a", f"y = {op}<axes = [1], keepdims = 0>(a)", opset=17)
row("ReduceMax", "ties", "double[3,2] a", "h = Concat<axis = 1>(a, a) y = ReduceMax(h, k)", "int64[1] k = {1}")
row(
    "ReduceProd",
    "zero",
    "double[2,3] a",
    "y = ReduceProd(a, k)",
    "int64[1] k = {1}",
    feeds={"a": [[1, 0, 2], [0, 0, 3]]},
)
row(
    "ReduceL2",
    "zeros",
    "double[2,3] a, double[3] b",
    "h = Mul(a, z) g = ReduceL2(h, k) i = ReduceL2(a, k) y = Add(g, i)",
    "int64[1] k = {1}, double[3] z = {0,0,0}",
    fixed=("b",),
)
for form, how in [
    ("plain", ""),
    ("reverse", "<reverse = 1>"),
    ("exclusive", "<exclusive = 1>"),
    ("both", "<reverse = 1, exclusive = 1>"),
]:
    row("CumSum", form, "double[3,4] a", f"y = CumSum{how}(a, k)", "int64 k = {1}")
    row("CumProd", form, "double[3,4] a", f"y = CumProd{how}(a, k)", "int64 k = {1}", opset=26, single=False)
