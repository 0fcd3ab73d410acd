"""Elements that move."""

from models.gradients.row import row

row("Reshape", "split", "double[3,4] a", "y = Reshape(a, s)", "int64[3] s = {2,-1,2}")
row("Reshape", "dynamic", "double[N,4] a", "y = Reshape(a, s)", "int64[2] s = {2,-1}", sizes={"N": 6})
row("Flatten", "axis", "double[3,2,4] a", "y = Flatten<axis = 2>(a)")
row("Squeeze", "axes", "double[3,1,4] a", "y = Squeeze(a, k)", "int64[1] k = {1}")
row("Unsqueeze", "axes", "double[3,4] a", "y = Unsqueeze(a, k)", "int64[2] k = {0,-1}")
row("Transpose", "plain", "double[3,2,4] a", "h = Mul(a, a) y = Transpose(h)")
row("Transpose", "perm", "double[3,2,4] a", "y = Transpose<perm = [1,2,0]>(a)")
row("Expand", "both", "double[3,1] a", "y = Expand(a, s)", "int64[3] s = {2,1,4}")
row("Concat", "three", "double[3,2] a, double[3,1] b", "y = Concat<axis = -1>(a, b, a)")
row("Concat", "dynamic", "double[N,2] a, double[M,2] b", "y = Concat<axis = 0>(a, b)", sizes={"N": 3, "M": 2})
row("Concat", "empty", "double[3,0] a, double[3,1] b", "y = Concat<axis = 1>(a, b)")
row("Pad", "constant", "double[3,4] a", "y = Pad(a, p)", "int64[4] p = {1,0,2,3}")
row("Pad", "value-axes", "double[3,4] a", "y = Pad(a, p, c, k)", "int64[2] p = {1,2}, double c = {2}, int64[1] k = {1}")
row("Pad", "less", "double[3,4] a", "y = Pad(a, p)", "int64[4] p = {-1,1,0,-2}", runtime="float32", single=False,
    second=False)  # fmt: skip
row("Slice", "steps", "double[7,6] a", "y = Slice(a, s, e, k, t)",
    "int64[2] s = {1,-1}, int64[2] e = {7,-100}, int64[2] k = {0,1}, int64[2] t = {2,-2}")  # fmt: skip
row("Slice", "head", "double[N,6] a", "y = Slice(a, s, e, k)", "int64[1] s = {0}, int64[1] e = {4}, int64[1] k = {1}",
    sizes={"N": 2})  # fmt: skip
row("Slice", "dynamic", "double[2,L,2] a", "y = Slice(a, s, e, k, t)",
    "int64[1] s = {-1}, int64[1] e = {-100}, int64[1] k = {1}, int64[1] t = {-2}", sizes={"L": 6})  # fmt: skip
row("Slice", "twice", "double[5,6] a", "y = Slice(a, s, e)", "int64[2] s = {1,2}, int64[2] e = {4,6}")
for mode in ("reflect", "edge", "wrap"):
    row(
        "Pad",
        mode,
        "double[3,4] a",
        f'y = Pad<mode = "{mode}">(a, p)',
        "int64[4] p = {1,2,2,1}",
        opset=19,
        single=mode != "wrap",
    )
row("Pad", "value", "double[3,4] a, double c", "y = Pad(a, p, c)", "int64[4] p = {1,0,2,3}")
row(
    "Split",
    "sizes",
    "double[3,6] a",
    "x, y, z = Split<axis = 1>(a, s)",
    "int64[3] s = {1,2,3}",
    outputs="double[] x, double[] y, double[] z",
)
row(
    "Split",
    "unread",
    "double[3,6] a",
    "x, y, z = Split<axis = -1, num_outputs = 3>(a)",
    outputs="double[] x, double[] z",
)
row(
    "Split",
    "dynamic",
    "double[N,4] a",
    "x, y = Split<axis = 1, num_outputs = 2>(a)",
    outputs="double[] x, double[] y",
    sizes={"N": 3},
)
row("Tile", "both", "double[3,1,2] a", "y = Tile(a, r)", "int64[3] r = {2,3,1}")
row("Tile", "dynamic", "double[N,2] a", "y = Tile(a, r)", "int64[2] r = {2,3}", sizes={"N": 3})
for mode in ("DCR", "CRD"):
    row("DepthToSpace", mode, "double[1,8,2,3] a", f'y = DepthToSpace<blocksize = 2, mode = "{mode}">(a)')
row("SpaceToDepth", "plain", "double[1,2,4,6] a", "y = SpaceToDepth<blocksize = 2>(a)")
row("Trilu", "upper", "double[2,3,4] a", "y = Trilu(a)")
row("Trilu", "lower", "double[3,4] a", "y = Trilu<upper = 0>(a, k)", "int64 k = {1}")
row("ReverseSequence", "times", "double[4,3,2] a", "y = ReverseSequence(a, s)", "int64[3] s = {4,1,3}")
row(
    "ReverseSequence",
    "axes",
    "double[3,4] a",
    "y = ReverseSequence<batch_axis = 0, time_axis = 1>(a, s)",
    "int64[3] s = {4,1,3}",
)
row("Dropout", "off", "double[3,4] a", "y = Dropout(a)")
row(
    "Dropout",
    "on",
    "double[3,4] a",
    "h, m = Dropout<seed = 1>(a, r, t) y = Mul(h, a)",
    "double r = {0.4}, bool t = {1}",
    single=False,
)
row(
    "Slice",
    "int32-dynamic",
    "double[N,L,2] a",
    "y = Slice(a, s, e, k)",
    "int32[2] s = {0,1}, int32[2] e = {1000000000,3}, int32[2] k = {0,1}",
    sizes={"N": 2, "L": 4},
)
