"""Rows of operators that repeat and resize."""

from __future__ import annotations

from models.rules.elementwise import _P
from models.rules.row import conv, free

# fmt: off

conv("Expand", "g = GlobalAveragePool(h) k = Expand(g, s)", form="rows and columns", also="int64[4] s = {2,8,6,6}")
conv("Expand", "k = Expand(h, s)", form="by ones", also="int64[4] s = {1,1,1,6}")
conv("Expand", "k = Expand(h, s)", form="of lower rank", also="int64[3] s = {8,6,6}")
conv("Expand", "u = Unsqueeze(h, a) e = Expand(u, s) k = Reshape(e, t)", "8 channels: b1:0 w1:0 w2:1x2",
     form="every channel twice (grouped queries)",
     also="int64[1] a = {2}, int64[5] s = {2,8,2,6,6}, int64[4] t = {2,16,6,6}", w2="4,16,1,1")
conv("Expand", "g = Conv(x, w3) e = Expand(g, s) k = Add(h, e)", form="one channel repeated",
     also="float[1,3,1,1] w3, int64[4] s = {2,8,6,6}")
free("Expand", "shape at run time", "float[2,3,6,6] x, int64[4] s", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = Expand(h, s) y = Conv(k, w2)", "w1:0 pinned: a shape that is computed at run time")
conv("ConstantOfShape", "c = ConstantOfShape<value = float[1] {2}>(s) k = Mul(h, c)", form="constant shape",
     also="int64[4] s = {2,8,6,6}")
conv("ConstantOfShape", "t = Shape(h) c = ConstantOfShape<value = float[1] {2}>(t) k = Mul(h, c)",
     form="shape of the activation")
free("ConstantOfShape", "shape at run time", "float[2,3,6,6] x, int64[4] s", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) c = ConstantOfShape(s) k = Add(h, c) y = Conv(k, w2)", "w1:0 pinned: the shape of c is not known")
conv("Tile", "k = Tile(h, r)", "8 channels: b1:0 w1:0 w2:1x2", form="channels", also="int64[4] r = {1,2,1,1}",
     w2="4,16,1,1")
conv("Tile", "k = Tile(h, r)", form="rows and columns", also="int64[4] r = {1,1,2,3}")
conv("Tile", "g = Conv(x, w3) t = Tile(g, r) k = Add(h, t)", "w1:0 pinned: a single index that is repeated",
     form="one channel", also="float[1,3,1,1] w3, int64[4] r = {1,8,1,1}")
free("Tile", "repeats at run time", "float[2,3,6,6] x, int64[4] r", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = Tile(h, r) y = Conv(k, w2)", "w1:0 pinned: the shape of k is not known")
_LASTS = "t = Transpose<perm = [0,2,3,1]>(h) r = {} k = Transpose<perm = [0,3,1,2]>(r)"
conv("Resize", "k = Resize(h, , , s)", form="sizes", also="int64[4] s = {2,8,12,12}")
conv("Resize", "k = Resize(h, , s)", form="scales", also="float[4] s = {1,1,2,2}")
conv("Resize", "k = Resize(h, s)", form="scales, opset 10", opset=10, also="float[4] s = {1,1,2,2}")
conv("Resize", "t = Shape(h) p = Slice(t, i, n) s = Concat<axis = 0>(p, q) k = Resize(h, , , s)", form="computed sizes",
     also="int64[1] i = {0}, int64[1] n = {2}, int64[2] q = {9,9}")
conv("Resize", "t = Shape(h) c = Cast<to = 1>(t) s = Div(n, c) k = Resize(h, , s)", form="computed scales",
     also="float[4] n = {2,8,12,12}")
conv("Upsample", "t = Shape(h) c = Cast<to = 1>(t) s = Div(n, c) k = Upsample(h, s)", form="computed scales", opset=9,
     also="float[4] n = {2,8,12,12}")
conv("Resize", "k = Resize<axes = [2,3]>(h, , , s)", form="sizes of two axes", opset=18, also="int64[2] s = {12,9}")
conv("Resize", "k = Resize<axes = [3,1,2]>(h, , , s)", form="sizes of permuted axes", opset=18,
     also="int64[3] s = {12,8,9}")
conv("Resize", _LASTS.format("Resize(t, , , s)"), form="channels last", also="int64[4] s = {2,12,12,8}")
conv("Resize", _LASTS.format("Resize<axes = [1,2]>(t, , , s)"), form="channels last, sizes of two axes", opset=18,
     also="int64[2] s = {12,9}")
conv("Resize", 'k = Resize<mode = "linear">(h, , s)', "w1:0 pinned: resized", form="channels resized",
     also="float[4] s = {1,2,1,1}", w2="4,16,1,1")
conv("Resize", 'k = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(h, roi, , s)', "w1:0 pinned: resized",
     form="cropped", also="float[8] roi = {0,0,0,0,1,1,1,1}, int64[4] s = {2,8,12,12}")
conv("Upsample", "k = Upsample<scales = [1.0,1.0,2.0,2.0]>(h)", form="attribute", opset=7)
conv("Upsample", "k = Upsample(h, s)", form="input", opset=9, also="float[4] s = {1,1,2,2}")
conv("CenterCropPad", "k = CenterCropPad<axes = [2,3]>(h, s)", form="rows and columns", also="int64[2] s = {4,8}")
conv("CenterCropPad", "k = CenterCropPad<axes = [1]>(h, s)", "w1:0 pinned: cropped or padded", form="channels",
     also="int64[1] s = {6}", w2="4,6,1,1")
free("CenterCropPad", "shape at run time", "float[2,3,6,6] x, int64[2] s", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = CenterCropPad<axes = [2,3]>(h, s) y = Conv(k, w2)",
     "w1:0 pinned: the shape of k is not known")
conv("GridSample", "k = GridSample(h, g)", form="constant grid", also="float[2,4,5,2] g")
conv("GridSample", "t = Conv(h, w3) u = Transpose<perm = [0,2,3,1]>(t) k = GridSample(h, u)",
     "8 channels: b1:0 w1:0 w2:1 w3:1", "w3:0 pinned: sampled on a grid", form="computed grid",
     also="float[2,8,1,1] w3")
conv("Crop", "k = Crop<border = [1,1,1,1]>(h)", opset=7)
conv("RoiAlign", "k = RoiAlign<output_height = 2, output_width = 2>(h, r, i)",
     also="float[3,4] r = {0,0,3,3, 1,1,5,5, 0,2,4,5}, int64[3] i = {0,1,1}")
conv("MaxRoiPool", "k = MaxRoiPool<pooled_shape = [2,2]>(h, r)", also="float[2,5] r = {0,0,0,3,3, 1,1,1,5,5}")
free("Col2Im", "", "float[2,3,25] x", "float[32,3,1] w1, float[4,8,1,1] w2, int64[2] s = {6,6}, int64[2] b = {2,2}",
     "h = Conv(x, w1) k = Col2Im(h, s, b) y = Conv(k, w2)", "8 channels: w1:0x4 w2:1")
conv("Shape", "t = Shape(h) k = Reshape(h, t)", form="target of a Reshape")
conv("Shape", "t = Shape<start = 1, end = -2>(h) u = Cast<to = 1>(t) k = Div(h, u)", form="C as a number")
conv("Size", "t = Size(h) u = Cast<to = 1>(t) k = Div(h, u)", form="count as a number")
conv("Constant", "p = Constant<value = float[8,1,1] {1,2,3,4,5,6,7,8}>() k = Mul(h, p)", _P, form="per channel")
conv("Constant", "p = Constant<value_float = 2.0>() k = Mul(h, p)", form="scalar")
