"""Images read between their pixels."""

from typing import Any

from models.gradients.row import row

FLOAT32: dict[str, Any] = {"runtime": "float32", "single": False}
PLANE = "double[1,2,3,4] x, double[1,2,3,2] g"
PLACES = {"g": [[[[-0.7, 0.31], [0.11, -0.52], [0.43, 0.83]], [[-0.2, -0.9], [0.93, 0.13], [1.31, -0.23]]]]}
for mode in ("linear", "nearest", "cubic"):
    for padding in ("zeros", "border", "reflection"):
        for aligned in (0, 1):
            how = f'mode = "{mode}", padding_mode = "{padding}", align_corners = {aligned}'
            row(
                "GridSample",
                f"{mode}-{padding}-{aligned}",
                PLANE,
                f"y = GridSample<{how}>(x, g)",
                opset=20,
                feeds=PLACES,
                step=0.01,
                second=mode != "nearest",
                fixed=("g",) if mode == "nearest" else (),
                **FLOAT32,
            )
row("GridSample", "old", PLANE, 'y = GridSample<mode = "bilinear">(x, g)', opset=16, feeds=PLACES, step=0.01, **FLOAT32)
row(
    "GridSample",
    "three-axes",
    "double[1,1,2,3,2] x, double[1,1,2,1,3] g",
    "y = GridSample(x, g)",
    opset=20,
    feeds={"g": [[[[[-0.7, 0.31, 0.2]], [[0.11, -0.52, -0.4]]]]]},
    step=0.01,
    **FLOAT32,
)
ROIS = {"r": [[0.3, 0.4, 2.7, 2.2], [1.1, 0.2, 3.4, 1.9]]}
for mode in ("avg", "max"):
    for where in ("half_pixel", "output_half_pixel"):
        how = f'mode = "{mode}", coordinate_transformation_mode = "{where}", '
        how += "output_height = 2, output_width = 2, sampling_ratio = 2"
        row(
            "RoiAlign",
            f"{mode}-{where}",
            "double[2,1,3,4] x, double[2,4] r",
            f"y = RoiAlign<{how}>(x, r, i)",
            "int64[2] i = {1,0}",
            feeds=ROIS,
            step=0.005,
            fixed=("r",) if mode == "max" else (),
            **FLOAT32,
        )
for mode in ("avg", "max"):
    for where in ("half_pixel", "output_half_pixel"):
        how = f'mode = "{mode}", coordinate_transformation_mode = "{where}", output_height = 2, output_width = 1'
        row(
            "RoiAlign",
            f"adaptive-{mode}-{where}",
            "double[2,1,5,6] x, double[3,4] r",
            f"y = RoiAlign<{how}>(x, r, i)",
            "int64[3] i = {1,0,1}",
            feeds={"r": [[0.3, 0.4, 2.9, 2.2], [1.3, 0.2, 3.4, 4.7], [2.2, 1.3, 1.6, 0.7]]},
            step=0.005,
            fixed=("r",) if mode == "max" else (),
            **FLOAT32,
        )
row(
    "DeformConv",
    "plain",
    "double[1,2,3,4] x, double[2,2,2,2] w, double[1,8,2,3] o, double[2] b",
    "y = DeformConv<kernel_shape = [2,2]>(x, w, o, b)",
    step=0.01,
    single=False,
    runtime="float32",
    opset=19,
    low=0.13,
    high=0.87,
)
row(
    "DeformConv",
    "groups",
    "double[1,4,3,4] x, double[2,2,2,2] w, double[1,16,2,3] o, double[1,8,2,3] m",
    "y = DeformConv<kernel_shape = [2,2], group = 2, offset_group = 2>(x, w, o, , m)",
    second=False,
    step=0.01,
    single=False,
    runtime="float32",
    opset=19,
    low=0.13,
    high=0.87,
)
row(
    "AffineGrid",
    "plane",
    "double[2,2,3] a",
    "y = AffineGrid(a, s)",
    "int64[4] s = {2,1,3,2}",
    single=False,
    runtime="float32",
    opset=20,
)
row(
    "AffineGrid",
    "aligned",
    "double[1,3,4] a",
    "y = AffineGrid<align_corners = 1>(a, s)",
    "int64[5] s = {1,1,2,3,2}",
    single=False,
    runtime="float32",
    opset=20,
)
