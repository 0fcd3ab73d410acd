"""Products of matrices."""

from models.gradients.row import row

for form, a, b in [
    ("matrices", "3,4", "4,2"), ("stack-by-matrix", "2,3,4", "4,2"), ("stacks", "2,3,4", "2,4,2"),
    ("broadcast", "2,1,3,4", "3,4,2"), ("row", "4", "4,2"), ("column", "3,4", "4"), ("row-column", "4", "4"),
    ("row-stack", "4", "2,4,3"), ("stack-column", "2,3,4", "4"),
]:  # fmt: skip
    row("MatMul", form, f"double[{a}] a, double[{b}] b", "y = MatMul(a, b)")
row("MatMul", "dynamic", "double[N,L,4] a, double[4,2] b", "y = MatMul(a, b)", sizes={"N": 2, "L": 3})
for u in (0, 1):
    for v in (0, 1):
        row("Gemm", f"{u}{v}", f"double[{'4,3' if u else '3,4'}] a, double[{'2,4' if v else '4,2'}] b, double[2] c",
            f"y = Gemm<transA = {u}, transB = {v}, alpha = 0.5, beta = 2.0>(a, b, c)")  # fmt: skip
row("Gemm", "no-bias", "double[3,4] a, double[4,2] b", "y = Gemm(a, b)")
