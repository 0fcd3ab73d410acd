"""Resize in its modes."""

from models.gradients.row import row

X, TWICE, LESS = "double[1,2,3,4] a", "float[4] s = {1,1,2,2}", "float[4] s = {1,1,0.7,1.6}"
for mode in ("nearest", "linear", "cubic"):
    for where in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
        how = f'mode = "{mode}", coordinate_transformation_mode = "{where}"'
        row("Resize", f"{mode}-{where}", X, f"y = Resize<{how}>(a, , s)", LESS, runtime="float32", single=False)
for how in ("round_prefer_ceil", "floor", "ceil"):
    row("Resize", how, X, f'y = Resize<nearest_mode = "{how}">(a, , s)', LESS, runtime="float32", single=False)
row(
    "Resize",
    "nearest-twice",
    X,
    'y = Resize<nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">(a, , s)',
    TWICE,
)
row("Resize", "nearest-dynamic", "double[N,2,H,4] a", "y = Resize(a, , s)", TWICE, sizes={"N": 1, "H": 3})
row("Resize", "sizes", X, 'y = Resize<mode = "linear">(a, , , z)', "int64[4] z = {1,2,5,3}")
row(
    "Resize",
    "axes",
    X,
    'y = Resize<mode = "linear", axes = [3,2]>(a, , s)',
    "float[2] s = {1.5,2}",
    opset=19,
    runtime="float32",
    single=False,
)
row("Resize", "first-axis", "double[3,2] a", 'y = Resize<mode = "linear">(a, , s)', "float[2] s = {2,1}")
row(
    "Resize",
    "symmetric",
    X,
    'y = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric">(a, , s)',
    LESS,
    opset=19,
    runtime="float32",
    single=False,
)
row(
    "Resize",
    "crop",
    X,
    'y = Resize<mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", '
    "extrapolation_value = 2.0>(a, r, , z)",
    "int64[4] z = {1,2,3,5}, float[8] r = {0,0,0.3,-0.2,1,1,0.8,0.9}",
    runtime="float32",
    single=False,
)
row(
    "Resize",
    "cubic-outside",
    X,
    'y = Resize<mode = "cubic", exclude_outside = 1, cubic_coeff_a = -0.5>(a, , s)',
    LESS,
    runtime="float32",
    single=False,
)
for mode in ("linear", "cubic"):
    row(
        "Resize",
        f"{mode}-antialias",
        "double[1,1,6,7] a",
        f'y = Resize<mode = "{mode}", antialias = 1>(a, , s)',
        "float[4] s = {1,1,0.5,0.6}",
    )
