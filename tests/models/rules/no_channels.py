"""Rows of axes that a layer makes, but that are no channels to the operator."""

from __future__ import annotations

from models.rules.row import Q8, free, put, text

# fmt: off

_GRID = "a spatial axis of a convolution or pooling"
for _op, _call, _also, _opset, _reason in (
    ("Conv", "Conv(h, w2)", "float[4,4,3,3] w2", 21, _GRID),
    ("ConvTranspose", "ConvTranspose(h, w2)", "float[4,4,2,2] w2", 21, _GRID),
    ("DeformConv", "DeformConv(h, w2, o)", "float[4,4,2,2] w2, float[2,8,5,7] o", 19, _GRID),
    ("AveragePool", "AveragePool<kernel_shape = [2,2]>(h)", "", 21, _GRID),
    ("MaxPool", "MaxPool<kernel_shape = [2,2]>(h)", "", 21, _GRID),
    ("LpPool", "LpPool<kernel_shape = [2,2]>(h)", "", 21, _GRID),
    ("GlobalAveragePool", "GlobalAveragePool(h)", "", 21, _GRID),
    ("GlobalMaxPool", "GlobalMaxPool(h)", "", 21, _GRID),
    ("GlobalLpPool", "GlobalLpPool(h)", "", 21, _GRID),
    ("InstanceNormalization", "InstanceNormalization(h, g, b)", "float[4] g, float[4] b", 21,
     "normalised over by InstanceNormalization"),
    ("GroupNormalization", "GroupNormalization<num_groups = 2>(h, g, b)", "float[4] g, float[4] b", 21,
     "normalised over by GroupNormalization"),
    ("MeanVarianceNormalization", "MeanVarianceNormalization(h)", "", 21, "normalised over"),
    ("DepthToSpace", "DepthToSpace<blocksize = 2>(h)", "", 21, "a spatial axis of DepthToSpace or SpaceToDepth"),
    ("SpaceToDepth", "SpaceToDepth<blocksize = 2>(h)", "", 21, "a spatial axis of DepthToSpace or SpaceToDepth"),
    ("Resize", "Resize(h, , s)", "float[4] s = {1,1,2,1}", 21, "resized"),
    ("Upsample", "Upsample(h, s)", "float[4] s = {1,1,2,2}", 9, "resized"),
    ("CenterCropPad", "CenterCropPad<axes = [3]>(h, s)", "int64[1] s = {4}", 21, "cropped or padded"),
    ("GridSample", "GridSample(h, g)", "float[2,4,5,2] g", 21, "sampled on a grid"),
    ("Crop", "Crop<border = [1,1,1,1]>(h)", "", 7, "sampled on a grid"),
    ("MaxRoiPool", "MaxRoiPool<pooled_shape = [2,2]>(h, r)", "float[1,5] r = {0,0,0,3,3}", 21, "regions of interest"),
    ("RoiAlign", "RoiAlign(h, r, i)", "float[1,4] r = {0,0,3,3}, int64[1] i = {0}", 21, "regions of interest"),
    ("com.microsoft::QLinearGlobalAveragePool", "com.microsoft.QLinearGlobalAveragePool(q, s, z, s, z)", "", 21,
     "a spatial axis of a pooling"),
):
    _uses, _type = (f"{Q8} y =", "uint8[] y") if "QLinear" in _op else ("y =", "float[] y")
    put(_op, "columns are made by a layer", text("float[2,4,6,5] x", f"float[5,8] w1{', ' * bool(_also)}{_also}",
        f"h = MatMul(x, w1) {_uses} {_call}", opset=_opset, outputs=_type),
        ("8 channels: w1:1",) if _op in ("GlobalAveragePool", "GlobalLpPool") else (f"w1:1 pinned: {_reason}",), _opset,
        "onnxruntime", "")
_SIGNED = "h = MatMul(x, w1) r = Relu(h)"
for _op, _call in (("GlobalMaxPool", "GlobalMaxPool(r)"), ("MaxPool", "MaxPool<kernel_shape = [1,8]>(r)"),
                   ("MaxPool", "MaxPool<kernel_shape = [6,8], strides = [1,2]>(r)"),
                   ("LpPool", "LpPool<kernel_shape = [2,8]>(h)"),
                   ("AveragePool", "AveragePool<kernel_shape = [6,8]>(h)")):
    free(_op, f"columns are made by a layer and pooled as a whole, {_call}", "float[2,4,6,5] x", "float[5,8] w1",
         f"{_SIGNED} y = {_call}", "8 channels: w1:1")
for _call in ("MaxPool<kernel_shape = [1,8], pads = [0,0,0,1]>(r)", "MaxPool<kernel_shape = [1,8]>(h)",
              "MaxPool<kernel_shape = [1,4], dilations = [1,2]>(r)"):
    free("MaxPool", f"columns are made by a layer, {_call}", "float[2,4,6,5] x", "float[5,8] w1",
         f"{_SIGNED} y = {_call}", f"w1:1 pinned: {_GRID}")
free("LSTM", "time is made by a layer", "float[5,6] x", """float[8,5] w1, int64[3] s = {8,2,3}, float[1,16,3] w,
     float[1,16,4] r""", "g = MatMul(w1, x) h = Reshape(g, s) y = LSTM<hidden_size = 4>(h, w, r)",
     "w1:0 pinned: time and batch of a recurrent layer")
free("Col2Im", "columns are made by a layer", "float[2,16,5] x",
     "float[5,25] w1, int64[2] s = {6,6}, int64[2] b = {2,2}", "h = MatMul(x, w1) y = Col2Im(h, s, b)",
     "w1:1 pinned: a spatial axis of Col2Im")
for _op, _call, _also in (
    ("Conv", "Conv(h, w2)", "float[4,4,3,3] w2"), ("ConvTranspose", "ConvTranspose(h, w2)", "float[4,4,2,2] w2"),
    ("MaxPool", "MaxPool<kernel_shape = [2,2]>(h)", ""), ("GlobalAveragePool", "GlobalAveragePool(h)", ""),
    ("DepthToSpace", "DepthToSpace<blocksize = 2>(h)", ""), ("InstanceNormalization", "InstanceNormalization(h, p, p)",
    "float[4] p"), ("Softmax", "Softmax(h)", ""), ("Resize", "Resize(h, , z)", "float[4] z = {1,1,2,2}"),
):
    free(_op, "the batch is made by a layer", "float[3,64] x", f"float[8,3] w1, int64[4] s = {{8,4,4,4}}, "
         f"int64[1] a = {{0}}{', ' * bool(_also)}{_also}",
         f"g = MatMul(w1, x) h = Reshape(g, s) k = {_call} y = ReduceSum(k, a)", "8 channels: w1:0")

for _op, _call, _also, _reason in (
    ("GridSample", "GridSample(h, p)", "float[8,4,5,2] p", "sampled on a grid"),
    ("DeformConv", "DeformConv(h, w2, p)", "float[4,4,2,2] w2, float[8,8,3,3] p",
    "offsets of a deformable convolution"),
):
    free(_op, "the batch is made by a layer", "float[3,64] x", f"float[8,3] w1, int64[4] s = {{8,4,4,4}}, "
         f"int64[1] a = {{0}}, {_also}", f"g = MatMul(w1, x) h = Reshape(g, s) k = {_call} y = ReduceSum(k, a)",
         f"w1:0 pinned: {_reason}")
