"""Normalisations, softmax, pools."""

from models.gradients.functions import SIGNS
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

row(
    "BatchNormalization",
    "training",
    f"double[3,4,2] x, {STATISTICS}",
    "y, q, r = BatchNormalization<training_mode = 1>(x, s, b, m, v)",
    fixed=("m", "v"),
)
for form, how in [
    ("tiles", "kernel_shape = [2,3], strides = [2,3]"), ("overlapping", "kernel_shape = [3,3], strides = [1,2]"),
    ("padded", "kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]"), 
    ("ceil", "kernel_shape = [2,2], strides = [2,2], ceil_mode = 1"),
    ("dilated", "kernel_shape = [2,2], dilations = [2,3]"), ("same", 'kernel_shape = [2,2], auto_pad = "SAME_UPPER"'),
]:  # fmt: skip
    row(
        "MaxPool",
        form,
        "double[1,2,4,6] a",
        f"y = MaxPool<{how}>(a)",
        runtime="onnxruntime" if form == "same" else "reference",
    )
row(
    "MaxPool",
    "ties",
    "double[1,1,2,2] a",
    "h = Concat<axis = 3>(a, a) y = MaxPool<kernel_shape = [1,4], strides = [1,4]>(h)",
)
row(
    "MaxPool",
    "dynamic",
    "double[N,2,H,4] a",
    "y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)",
    sizes={"N": 1, "H": 4},
)
row(
    "MaxUnpool",
    "plain",
    "double[1,1,2,2] a",
    "y = MaxUnpool<kernel_shape = [2,2], strides = [2,2]>(a, k)",
    "int64[1,1,2,2] k = {5,7,8,15}",
)
row("GlobalMaxPool", "plane", "double[2,3,4,2] a", "y = GlobalMaxPool(a)")
row("GlobalLpPool", "two", "double[2,3,4,2] a", "y = GlobalLpPool(a)", runtime="float32", single=False)
row("GlobalLpPool", "one", "double[2,3,4] a", "y = GlobalLpPool<p = 1>(a)", runtime="float32", single=False)
row("LpPool", "plain", "double[1,2,4,5] a", "y = LpPool<kernel_shape = [2,2], strides = [2,1]>(a)", low=-1, high=1.1)
row(
    "LpPool",
    "ceil",
    "double[1,2,4,5] a",
    "y = LpPool<kernel_shape = [3,2], strides = [2,2], ceil_mode = 1>(a)",
    low=-1,
    high=1.1,
    runtime="float32",
)
row(
    "LpPool",
    "padded",
    "double[1,2,4,5] a",
    "y = LpPool<kernel_shape = [3,2], pads = [1,0,1,1], p = 3>(a)",
    low=-1,
    high=1.1,
)
row("LayerNormalization", "last", "double[3,4] a, double[4] s, double[4] b", "y = LayerNormalization(a, s, b)")
row(
    "LayerNormalization",
    "axes",
    "double[2,3,4] a, double[3,4] s",
    "y = LayerNormalization<axis = 1, epsilon = 0.1>(a, s)",
)
row(
    "LayerNormalization",
    "broadcast",
    "double[2,3,4] a, double[4] s, double[1,4] b",
    "y = LayerNormalization<axis = 1>(a, s, b)",
    single=False,
)
row(
    "LayerNormalization",
    "statistics",
    "double[3,4] a, double[4] s, double[4] b",
    "y, m, r = LayerNormalization(a, s, b)",
    outputs="double[] y, double[] m, double[] r",
    runtime="float32",
    low=-2,
    high=2,
    step=0.02,
    single=False,
)
row("RMSNormalization", "last", "double[3,4] a, double[4] s", "y = RMSNormalization(a, s)", opset=23)
row(
    "RMSNormalization",
    "axes",
    "double[2,3,4] a, double[3,4] s",
    "y = RMSNormalization<axis = 1, epsilon = 0.1>(a, s)",
    opset=23,
)
row(
    "InstanceNormalization",
    "plane",
    "double[2,3,2,4] a, double[3] s, double[3] b",
    "y = InstanceNormalization(a, s, b)",
)
row(
    "InstanceNormalization",
    "line",
    "double[2,3,4] a, double[3] s, double[3] b",
    "y = InstanceNormalization<epsilon = 0.1>(a, s, b)",
)
row(
    "GroupNormalization",
    "channels",
    "double[2,4,3] a, double[4] s, double[4] b",
    "y = GroupNormalization<num_groups = 2>(a, s, b)",
    opset=21,
    low=-3,
    high=3,
    runtime="float32",
    step=0.02,
    single=False,
)
row(
    "GroupNormalization",
    "groups",
    "double[2,4,3,2] a, double[2] s, double[2] b",
    "y = GroupNormalization<num_groups = 2>(a, s, b)",
    opset=18,
)
# onnx's evaluator takes the number of samples for that of channels
row("LRN", "odd", "double[5,5,2,1] a", "y = LRN<size = 3, alpha = 0.3, beta = 0.6, bias = 1.2>(a)")
row("LRN", "even", "double[5,5,1,2] a", "y = LRN<size = 4, alpha = 0.3>(a)", single=False)
row("LpNormalization", "two", "double[3,4] a", "y = LpNormalization(a)")
row(
    "LpNormalization",
    "one",
    "double[3,4] a",
    "y = LpNormalization<p = 1, axis = 0>(a)",
    feeds=SIGNS,
    runtime="float32",
    single=False,
)
row(
    "MeanVarianceNormalization",
    "plane",
    "double[2,3,2,3] a",
    "y = MeanVarianceNormalization<axes = [0,2,3]>(a)",
    runtime="float32",
    single=False,
)
row(
    "MeanVarianceNormalization",
    "axes",
    "double[3,4] a",
    "y = MeanVarianceNormalization<axes = [1]>(a)",
    runtime="float32",
    single=False,
)
