"""Sums and means."""

from models.gradients.row import row

for op in ("ReduceSum", "ReduceMean"):
    row(op, "all", "double[3,4] a", f"y = {op}<keepdims = 0>(a)")
    row(op, "axes", "double[3,2,4] a", f"y = {op}(a, k)", "int64[2] k = {0,-1}")
    row(op, "dropped", "double[N,2,4] a", f"y = {op}<keepdims = 0>(a, k)", "int64[2] k = {0,2}", sizes={"N": 3})
    row(op, "none", "double[3,4] a", f"y = {op}<noop_with_empty_axes = 1>(a)")
row("ReduceMean", "attribute", "double[3,4] a", "y = ReduceMean<axes = [1]>(a)", opset=17)
row("ReduceMean", "dynamic", "double[2,L] a", "y = ReduceMean(a, k)", "int64[1] k = {1}", sizes={"L": 3})
