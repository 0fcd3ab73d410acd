"""Rows of convolutions."""

from __future__ import annotations

from models.rules.row import D8, Q8, conv, free

# fmt: off

_NEXT = ("8 channels: b1:0 w1:0 w3:1", "6 channels: w2:1 w3:0")
_NEXT_B = ("8 channels: b1:0 w1:0 w3:1", "6 channels: b3:0 w2:1 w3:0")
conv("Conv", "k = Conv(h, w3)", *_NEXT, form="no bias", also="float[6,8,3,3] w3", w2="4,6,1,1")
conv("Conv", "k = Conv<pads = [1,1,1,1], strides = [2,2]>(h, w3, b3)", *_NEXT_B, form="bias, stride, padding",
     also="float[6,8,3,3] w3, float[6] b3", w2="4,6,1,1")
conv("Conv", "k = Conv(h, w3)", *_NEXT, form="1-D", x="2,3,6", w1="8,3,1", w2="4,6,1", also="float[6,8,3] w3")
conv("Conv", "k = Conv(h, w3)", *_NEXT, form="3-D", x="2,3,2,2,2", w1="8,3,1,1,1", w2="4,6,1,1,1",
     also="float[6,8,1,2,2] w3")
conv("Conv", "k = Conv<group = 8>(h, w3, b3)", "8 channels: b1:0 b3:0 w1:0 w2:1 w3:0", form="depthwise",
     also="float[8,1,3,3] w3, float[8] b3")
conv("Conv", "k = Conv<group = 8>(h, w3, b3)", "8 channels: b1:0 b3:0x2 w1:0 w2:1x2 w3:0x2",
     form="depthwise, multiplier 2", w2="4,16,1,1", also="float[16,1,3,3] w3, float[16] b3")
conv("Conv", "k = Conv<group = 2>(h, w3, b3)", "8 channels: b1:0 w1:0 w3:1 per 2 groups, even over 2",
     "6 channels: b3:0 w2:1 w3:0, even over 2", form="two groups", w2="4,6,1,1", also="float[6,4,3,3] w3, float[6] b3")
conv("Conv", "g = Conv<group = 2>(h, w3) k = Conv<group = 2>(g, w3)", "4 channels: b1:0x2 w1:0x2 w2:1x2 w3:0x2 w3:1",
     form="grouped, its weight used twice", also="float[8,4,1,1] w3")
conv("Conv", "g = Conv(x, w1) k = Add(h, g)", form="a weight used twice")
conv("Conv", "g = Conv(x, w3, b1) k = Concat<axis = 1>(h, g)", "8 channels: b1:0 w1:0 w2:1x2 w3:0",
     form="a bias used twice", w2="4,16,1,1", also="float[8,3,1,1] w3")
conv("Conv", "t = ReduceSum<keepdims = 0>(w1, a) u = Unsqueeze(t, b) k = Add(h, u)",
     "8 channels: b1:0 u:0 w1:0 w2:1", form="its weight read by ReduceSum, folded",
     also="int64[3] a = {1,2,3}, int64[2] b = {1,2}")
conv("Conv", "v = Identity(w3) k = Conv(h, v)", *_NEXT, form="weight computed of constants", w2="4,6,1,1",
     also="float[6,8,1,1] w3")
conv("Conv", "v = Transpose<perm = [1,0,2,3]>(w3) k = Conv(h, v)", "8 channels: b1:0 w1:0 w3:0",
     "6 channels: w2:1 w3:1", form="weight transposed", w2="4,6,1,1", also="float[8,6,1,1] w3")
free("Conv", "weight as graph input", "float[2,3,6,6] x, float[8,3,1,1] f", "float[4,8,1,1] w2",
     "h = Conv(x, f) y = Conv(h, w2)", "f:0 pinned: axis of the graph input f")
conv("com.microsoft::FusedConv", 'k = com.microsoft.FusedConv<activation = "Relu">(h, w3, b3)', *_NEXT_B,
     form="activation", also="float[6,8,3,3] w3, float[6] b3", w2="4,6,1,1")
conv("com.microsoft::FusedConv", 'g = Conv(x, w4) k = com.microsoft.FusedConv<activation = "Relu">(h, w3, b3, g)',
     "8 channels: b1:0 w1:0 w3:1", "6 channels: b3:0 w2:1 w3:0 w4:0", form="sum",
     also="float[6,8,1,1] w3, float[6] b3, float[6,3,1,1] w4", w2="4,6,1,1")
conv("com.microsoft::FusedConv", 'k = com.microsoft.FusedConv<activation = "Relu", group = 8>(h, w3)',
     "8 channels: b1:0 w1:0 w2:1 w3:0", form="depthwise", also="float[8,1,3,3] w3")
conv("QLinearConv", f"{Q8} c = QLinearConv(q, s, z, w3, v3, z3, s, z, b3) {D8}", "8 channels: b1:0 w1:0 w3:1",
     "6 channels: b3:0 v3:0 w2:1 w3:0 z3:0", form="scale per channel", w2="4,6,1,1",
     also="int8[6,8,1,1] w3, float[6] v3, int8[6] z3 = {0,0,0,0,0,0}, int32[6] b3 = {1,2,3,4,5,6}")
conv("QLinearConv", f"{Q8} c = QLinearConv(q, s, z, w3, s3, z3, s, z) {D8}", *_NEXT, form="scale per tensor",
     w2="4,6,1,1", also="int8[6,8,3,3] w3, float s3 = {0.01}, int8 z3 = {0}")
conv("QLinearConv", f"{Q8} c = QLinearConv<group = 8>(q, s, z, w3, s3, z3, s, z) {D8}",
     "8 channels: b1:0 w1:0 w2:1 w3:0", form="depthwise", also="int8[8,1,3,3] w3, float s3 = {0.01}, int8 z3 = {0}")
conv("QLinearConv", f"{Q8} c = QLinearConv<group = 2>(q, s, z, w3, v3, z3, s, z) {D8}",
     "8 channels: b1:0 w1:0 w3:1 per 2 groups, even over 2", "6 channels: v3:0 w2:1 w3:0 z3:0, even over 2",
     form="two groups", w2="4,6,1,1", also="int8[6,4,1,1] w3, float[6] v3, int8[6] z3 = {0,0,0,0,0,0}")
conv("ConvInteger", f"{Q8} c = ConvInteger(q, w3, z) k = Cast<to = 1>(c)", *_NEXT, form="zero point of the input",
     w2="4,6,1,1", also="uint8[6,8,1,1] w3")
conv("ConvInteger", f"{Q8} c = ConvInteger(q, w3, z, z3) k = Cast<to = 1>(c)", *_NEXT, form="zero point of the weight",
     w2="4,6,1,1", also="uint8[6,8,3,3] w3, uint8 z3 = {100}")
conv("ConvInteger", f"{Q8} c = ConvInteger(q, w3, z, z3) k = Cast<to = 1>(c)", "8 channels: b1:0 w1:0 w3:1",
     "6 channels: w2:1 w3:0 z3:0", form="zero point per channel of the weight", w2="4,6,1,1",
     also="uint8[6,8,1,1] w3, uint8[6] z3 = {1,2,3,4,5,6}", law="reference", why="onnxruntime wants a scalar")
conv("ConvInteger", f"{Q8} c = ConvInteger<group = 8>(q, w3, z) k = Cast<to = 1>(c)", "8 channels: b1:0 w1:0 w2:1 w3:0",
     form="depthwise", also="uint8[8,1,3,3] w3")
conv("ConvTranspose", "k = ConvTranspose<strides = [2,2]>(h, w3, b3)", "8 channels: b1:0 w1:0 w3:0",
     "6 channels: b3:0 w2:1 w3:1", form="plain", w2="4,6,1,1", also="float[8,6,2,2] w3, float[6] b3")
conv("ConvTranspose", "k = ConvTranspose<strides = [2,2], group = 2>(h, w3, b3)",
     "8 channels: b1:0 w1:0 w3:0, even over 2", "3 channels: b3:0x2 w2:1x2 w3:1", form="two groups", w2="4,6,1,1",
     also="float[8,3,2,2] w3, float[6] b3")
conv("ConvTranspose", "k = ConvTranspose<strides = [2,2], group = 8>(h, w3, b3)",
     "8 channels: b1:0 b3:0 w1:0 w2:1 w3:0", form="depthwise", also="float[8,1,2,2] w3, float[8] b3")
conv("ConvTranspose", "k = ConvTranspose<group = 8>(h, w3, b3)", "8 channels: b1:0 b3:0x2 w1:0 w2:1x2 w3:0",
     form="depthwise, multiplier 2", w2="4,16,1,1", also="float[8,2,2,2] w3, float[16] b3")
conv("DeformConv", "k = DeformConv(h, w3, off, b3, mask)", *_NEXT_B, form="offsets and mask", w2="4,6,1,1", opset=19,
     also="float[6,8,2,2] w3, float[2,8,5,5] off, float[6] b3, float[2,4,5,5] mask")
conv("DeformConv", "off = Conv(h, w4) k = DeformConv(h, w3, off)", "8 channels: b1:0 w1:0 w3:1 w4:1",
     "6 channels: w2:1 w3:0", "w4:0 pinned: offsets of a deformable convolution", form="offsets by a convolution",
     w2="4,6,1,1", opset=19, also="float[6,8,2,2] w3, float[8,8,2,2] w4")
conv("DeformConv", "k = DeformConv<group = 2>(h, w3, off)", "w1:0 pinned: grouped deformable convolution",
     form="two groups", w2="4,6,1,1", opset=19, also="float[6,4,2,2] w3, float[2,8,5,5] off")
