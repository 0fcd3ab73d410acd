"""Normalisations, softmax, pools."""

from models.gradients.row import row

STATISTICS = "double[4] s, double[4] b, double[4] m, double[4] v"
row("BatchNormalization", "stored", f"double[3,4,2] x, {STATISTICS}", "y = BatchNormalization(x, s, b, m, v)")
row(
    "BatchNormalization",
    "matrix",
    f"double[3,4] x, {STATISTICS}",
    "y = BatchNormalization<epsilon = 0.1>(x, s, b, m, v)",
)
for op in ("Softmax", "LogSoftmax"):
    row(op, "last", "double[3,4] a", f"y = {op}(a)")
    row(op, "axis", "double[3,4,2] a", f"y = {op}<axis = 1>(a)")
row("GlobalAveragePool", "plane", "double[2,3,4,5] a", "y = GlobalAveragePool(a)")
row("GlobalAveragePool", "dynamic", "double[2,3,H,K] a", "y = GlobalAveragePool(a)", sizes={"H": 3, "K": 2})
for form, how in [
    ("tiles", "kernel_shape = [2,3], strides = [2,3]"), ("overlapping", "kernel_shape = [3,3], strides = [1,2]"),
    ("padded", "kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]"),
    ("padding-counts", "kernel_shape = [3,3], strides = [2,2], pads = [1,0,1,0], count_include_pad = 1"),
    ("leaves-out", "kernel_shape = [2,2], strides = [3,3]"), ("same", 'kernel_shape = [2,2], auto_pad = "SAME_UPPER"'),
]:  # fmt: skip
    row("AveragePool", form, "double[2,3,4,6] a", f"y = AveragePool<{how}>(a)")
