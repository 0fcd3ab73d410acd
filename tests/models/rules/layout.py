"""Rows of operators that move, join and cut axes."""

from __future__ import annotations

from models.rules.row import conv, free, gemm, matmul

# fmt: off

# other shapes

for _form, _shape in (
    ("numbers", "2,8,36"), ("0 and -1", "0,0,-1"), ("0 and the number", "0,8,-1"), ("-1 for C", "0,-1,36"),
    ("-1 for the batch", "-1,8,36"),
):
    conv("Reshape", "k = Reshape(h, s)", form=f"rows and columns merged, {_form}", w2="4,8,1",
         also=f"int64[3] s = {{{_shape}}}")
_FLAT = "y = Gemm(k, w2)"
_FLATTENED = "8 channels: b1:0 w1:0 w2:0x36"
for _form, _shape in (("numbers", "2,288"), ("0 and -1", "0,-1"), ("-1 for the batch", "-1,288")):
    conv("Reshape", "k = Reshape(h, s)", _FLATTENED, form=f"flattened, {_form}", tail=_FLAT, w2="288,4",
         also=f"int64[2] s = {{{_shape}}}")
conv("Reshape", "k = Reshape<allowzero = 1>(h, s)", _FLATTENED, form="flattened, allowzero", tail=_FLAT, w2="288,4",
     also="int64[2] s = {2,288}")
conv("Reshape", "k = Reshape<shape = [2,288]>(h)", "w1:0 pinned: the shape of k is not known",
     form="flattened, shape as attribute", tail="y = MatMul(k, w2)", w2="288,4", opset=4)
conv("Reshape", "t = Shape(h) n = Gather(t, i) m = Unsqueeze(n, j) s = Concat<axis = 0>(m, c) k = Reshape(h, s)",
     _FLATTENED, form="flattened, computed batch", tail=_FLAT, w2="288,4",
     also="int64 i = {0}, int64[1] j = {0}, int64[1] c = {288}")
conv("Reshape", "t = Shape(h) n = Slice(t, i, j) s = Concat<axis = 0>(n, c) k = Reshape(h, s)",
     form="computed channels", w2="4,8,1", also="int64[1] i = {0}, int64[1] j = {2}, int64[1] c = {-1}")
conv("Reshape", "g = Conv(x, w3) u = Reshape(g, s) l = Reshape(h, s) k = Concat<axis = 1>(l, u)",
     "8 channels: b1:0 w1:0 w2:1[8]", "8 channels: w2:1[8] w3:0", form="one shape for two tensors",
     also="float[8,3,1,1] w3, int64[3] s = {2,8,36}", w2="4,16,1")
conv("Reshape", "a = Reshape(h, s) b = Transpose<perm = [0,2,1,3,4]>(a) k = Reshape(b, t)",
     "4 channels: b1:0x2 w1:0x2 w2:1x2", form="channel shuffle",
     also="int64[5] s = {2,2,4,6,6}, int64[4] t = {2,8,6,6}")
conv("Reshape", "k = Reshape(h, s)", "w1:0 pinned: reshaped across the boundaries of the axes",
     form="across the boundaries of axes", w2="4,12,1,1", also="int64[4] s = {2,12,4,6}")
conv("Reshape", "k = Reshape(h, s)", "w1:0 pinned: reshaped: every factor of the axis is pinned",
     form="C into two outputs", also="int64[5] s = {2,2,4,6,6}", tail="y = Neg(k)")
conv("Reshape", "m = Reshape(h, s) n = Relu(m) k = Reshape(n, t)", form="batch and C merged for a while",
     also="int64[3] s = {16,6,6}, int64[4] t = {2,8,6,6}")
conv("Reshape", "a = Reshape(h, s) b = Transpose<perm = [0,2,4,3,5,1]>(a) k = Reshape(b, t)",
     "8 channels: b1:0 w1:0 w2:0", form="window partition", also="int64[6] s = {2,8,2,3,2,3}, int64[3] t = {8,9,8}",
     w2="8,4", tail="y = MatMul(k, w2)")
free("Reshape", "computed at run time", "float[2,3,6,6] x, int64[4] s", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = Reshape(h, s) y = Conv(k, w2)", "w1:0 pinned: the shape of k is not known")
conv("Flatten", "k = Flatten(h)", _FLATTENED, form="axis 1", w2="288,4", tail=_FLAT)
conv("Flatten", "k = Flatten<axis = -3>(h)", _FLATTENED, form="negative axis", w2="288,4", tail=_FLAT)
conv("Flatten", "t = Transpose<perm = [0,2,3,1]>(h) k = Flatten<axis = 3>(t)", "8 channels: b1:0 w1:0 w2:0",
     form="all but C", w2="8,4", tail=_FLAT)
conv("Flatten", "m = Flatten<axis = 2>(h) k = Reshape(m, t)", form="batch and C merged for a while",
     also="int64[4] t = {2,8,6,6}")
_LAST = "8 channels: b1:0 w1:0 w2:0"
conv("Squeeze", "g = GlobalAveragePool(h) k = Squeeze<axes = [2,3]>(g)", _LAST, form="attribute", opset=11, w2="8,4",
     tail=_FLAT)
conv("Squeeze", "g = GlobalAveragePool(h) k = Squeeze(g, a)", _LAST, form="input", w2="8,4", tail=_FLAT,
     also="int64[2] a = {-1,-2}")
conv("Squeeze", "g = GlobalAveragePool(h) k = Squeeze(g)", _LAST, form="all", w2="8,4", tail=_FLAT)
for _opset in (12, 13):
    conv("Squeeze", "g = GlobalAveragePool(h) k = Squeeze(g)", "2 channels: b1:0 w1:0 w2:0",
         form=f"all, down to one channel, opset {_opset}", w1="2,3,1,1", w2="2,4", tail=_FLAT, opset=_opset)
gemm("Unsqueeze", "k = Unsqueeze<axes = [2]>(h)", "8 channels: b1:0 w1:1 w2:1", form="attribute", opset=11, w2="4,8,1",
     tail="y = Conv(k, w2)")
gemm("Unsqueeze", "k = Unsqueeze(h, a)", "8 channels: b1:0 w1:1 w2:1", form="input", also="int64[2] a = {-1,2}",
     w2="4,8,1,1", tail="y = Conv(k, w2)")
conv("Transpose", "k = Transpose<perm = [0,2,3,1]>(h)", _LAST, form="channels last", w2="8,4", tail="y = MatMul(k, w2)")
gemm("Transpose", "k = Transpose(h)", "8 channels: b1:0 w1:1 w2:1", form="no perm", w2="4,8", tail="y = Gemm(w2, k)")
for _mode in ("DCR", "CRD"):
    conv("DepthToSpace", f'k = DepthToSpace<blocksize = 2, mode = "{_mode}">(h)', "2 channels: b1:0x4 w1:0x4 w2:1",
         form=_mode, w2="4,2,1,1")
    conv("DepthToSpace", f'k = DepthToSpace<blocksize = 2, mode = "{_mode}">(h)',
         "w1:0 pinned: blocks of a single channel", form=f"{_mode}, to one channel", w1="4,3,1,1", w2="4,1,1,1")
conv("SpaceToDepth", "k = SpaceToDepth<blocksize = 2>(h)", "8 channels: b1:0 w1:0 w2:1x4", w2="4,32,1,1")

# joined and cut

conv("Concat", "g = Conv(x, w3) k = Concat<axis = 1>(h, g)", "8 channels: b1:0 w1:0 w2:1[8]",
     "6 channels: w2:1[6] w3:0", form="channels", also="float[6,3,1,1] w3", w2="4,14,1,1")
conv("Concat", "g = Conv(x, w3) k = Concat<axis = -3>(g, h, g)", "8 channels: b1:0 w1:0 w2:1[8]",
     "6 channels: w2:1[12]x2 w3:0", form="negative axis, one input twice", also="float[6,3,1,1] w3", w2="4,20,1,1")
conv("Concat", "g = Conv(x, w3) k = Concat<axis = 2>(h, g)", "8 channels: b1:0 w1:0 w2:1 w3:0", form="rows",
     also="float[8,3,1,1] w3")
conv("Concat", "k = Concat<axis = 1>(h, p)", "8 channels: b1:0 w1:0 w2:1[8]", form="with a constant",
     also="float[2,3,6,6] p", w2="4,11,1,1")
conv("Concat", "g = Conv(x, w3) k = Concat<axis = 1>(h, g)", "8 channels: b1:0 w1:0 w2:1[8]",
     form="with a single channel", w2="4,9,1,1", also="float[1,3,1,1] w3")
conv("Concat", "k = Concat<axis = 1>(x, h)", "8 channels: b1:0 w1:0 w2:1[8]", form="with the graph input",
     w2="4,11,1,1")
matmul("Concat", "k = Concat<axis = 1>(p, h)", "8 channels: p:2 w1:1 w2:0", form="class token", also="float[2,1,8] p")
_HALVES = "4 channels: b1:0x2 w1:0x2 w2:1"
for _form, _opset, _call in (
    ("attribute", 11, "Split<axis = 1, split = [4,4]>(h)"), ("input", 13, "Split<axis = -3>(h, s)"),
    ("no sizes, opset 11", 11, "Split<axis = 1>(h)"), ("no sizes, opset 13", 13, "Split<axis = 1>(h)"),
    ("num_outputs", 18, "Split<axis = 1, num_outputs = 2>(h)"),
):
    conv("Split", f"a, b = {_call} k = Mul(a, b)", _HALVES, form=f"equal parts, {_form}", opset=_opset, w2="4,4,1,1",
         also="int64[2] s = {4,4}" if "(h, s)" in _call else "")
    conv("Split", f"a, b = {_call} k = Concat<axis = 1>(b, a)", "4 channels: b1:0[4] w1:0[4] w2:1[4]",
         "4 channels: b1:0[4] w1:0[4] w2:1[4]", form=f"parts that become uneven, {_form}", opset=_opset,
         also="int64[2] s = {4,4}" if "(h, s)" in _call else "")
conv("Split", "a, b, c = Split<axis = 1, num_outputs = 3>(h) k = Concat<axis = 1>(b, a)",
     "3 channels: b1:0[3] w1:0[3] w2:1[3]", "3 channels: b1:0[3] w1:0[3] w2:1[3]", "2 channels: b1:0[2] w1:0[2]",
     w2="4,6,1,1", form="uneven parts, num_outputs")
conv("Split", "a, b = Split<axis = 1>(h, s) k = Concat<axis = 1>(b, a)", "2 channels: b1:0[2] w1:0[2] w2:1[2]",
     "6 channels: b1:0[6] w1:0[6] w2:1[6]", form="uneven parts, input", also="int64[2] s = {2,6}")
conv("Split", "a, b = Split<axis = 1, split = [2,6]>(h) k = Concat<axis = 1>(b, a)",
     "2 channels: b1:0[2] w1:0[2] w2:1[2]", "6 channels: b1:0[6] w1:0[6] w2:1[6]", form="uneven parts, attribute",
     opset=11)
conv("Split", "a, b = Split<axis = 1>(h, s) g = Mul(b, a) k = Relu(g)", "7 channels: b1:0[7] w1:0[7] w2:1",
     "w1:0[1] pinned: split into a part of size one", form="a part of one channel", also="int64[2] s = {1,7}",
     w2="4,7,1,1")
conv("Split", "a, b = Split<axis = 2, num_outputs = 2>(h) k = Add(a, b)", form="rows")
conv("Split", "g = Conv(x, w3) a, b = Split<axis = 1>(h, s) c, d = Split<axis = 1>(g, s) m = Mul(a, b) "
     "k = Concat<axis = 1>(m, c, d)", "4 channels: b1:0x2 w1:0x2 w2:1[4]", "4 channels: w2:1[4] w3:0[4]",
     "4 channels: w2:1[4] w3:0[4]", form="one list of sizes for two tensors", w2="4,12,1,1",
     also="int64[2] s = {4,4}, float[8,3,1,1] w3")
free("Split", "sizes at run time", "float[2,3,6,6] x, int64[2] s", "float[8,3,1,1] w1, float[4,4,1,1] w2",
     "h = Conv(x, w1) k, l = Split<axis = 1>(h, s) y = Conv(k, w2)", "w1:0 pinned: the shape of k is not known")
_ENDS = "int64[1] a = {1}, int64[1] i = {0}, int64[1] n = {4}, int64[1] m = {-4}, int64[1] e = {9223372036854775807}"
conv("Slice", "p = Slice(h, i, n, a) q = Slice(h, n, e, a) k = Mul(p, q)", _HALVES, form="halves, INT_MAX", also=_ENDS,
     w2="4,4,1,1")
conv("Slice", "p = Slice(h, i, m, a) q = Slice(h, m, e, a) k = Mul(p, q)", _HALVES, form="halves, negative", also=_ENDS,
     w2="4,4,1,1")
conv("Slice", "p = Slice<axes = [1], starts = [0], ends = [4]>(h) "
     "q = Slice<axes = [1], starts = [-4], ends = [2147483647]>(h) k = Mul(p, q)", _HALVES, form="halves, attributes",
     opset=9, w2="4,4,1,1")
conv("Slice", "k = Slice(h, b, c, a)", "4 channels: b1:0[4] w1:0[4]", "4 channels: b1:0[4] w1:0[4] w2:1",
     form="the middle", w2="4,4,1,1", also="int64[1] a = {-3}, int64[1] b = {2}, int64[1] c = {6}")
conv("Slice", "k = Slice(h, b, c)", "2 channels: b1:0[2] w1:0[2]", "6 channels: b1:0[6] w1:0[6] w2:1", form="no axes",
     w2="4,6,1,1", also="int64[4] b = {0,2,0,1}, int64[4] c = {2,8,6,3}")
conv("Slice", "k = Slice(h, b, c, a, s)", "4 channels: b1:0x2 w1:0x2 w2:1", form="a stride", w2="4,4,1,1",
     also="int64[1] a = {1}, int64[1] b = {0}, int64[1] c = {8}, int64[1] s = {2}")
conv("Slice", "k = Slice(h, b, c, a, s)", "w1:0 pinned: sliced with a stride", form="a stride over a part",
     w2="4,3,1,1", also="int64[1] a = {1}, int64[1] b = {2}, int64[1] c = {8}, int64[1] s = {2}")
conv("Slice", "k = Slice(h, b, c, a, s)", "w1:0 pinned: sliced with a stride", form="backwards",
     also="int64[1] a = {1}, int64[1] b = {-1}, int64[1] c = {-9223372036854775807}, int64[1] s = {-1}")
conv("Slice", "k = Slice(h, b, c, a, s)", form="rows and columns, with a stride",
     also="int64[2] a = {2,3}, int64[2] b = {0,1}, int64[2] c = {6,-1}, int64[2] s = {2,1}")
conv("Slice", "k = Slice(h, b, c, a)", "7 channels: b1:0[7] w1:0[7]", "w1:0[1] pinned: sliced to a single index",
     form="a single channel", w2="4,1,1,1", also="int64[1] a = {1}, int64[1] b = {3}, int64[1] c = {4}")
conv("Slice", "t = Shape(h) n = Gather(t, a) m = Div(n, d) k = Slice(h, i, m, a)", "4 channels: b1:0[4] w1:0[4] w2:1",
     "4 channels: b1:0[4] w1:0[4]", form="half of the shape", w2="4,4,1,1",
     also="int64[1] a = {1}, int64[1] i = {0}, int64[1] d = {2}")
free("Slice", "end at run time", "float[2,3,6,6] x, int64[1] e", "float[8,3,1,1] w1, float[4,8,1,1] w2, "
     "int64[1] a = {2}, int64[1] i = {0}", "h = Conv(x, w1) k = Slice(h, i, e, a) y = Conv(k, w2)",
     "w1:0 pinned: the shape of k is not known")
conv("Gather", "k = Gather<axis = 1>(h, i)", "8 channels: b1:0 w1:0 w2:1", form="permutation",
     also="int64[8] i = {7,1,2,0,3,4,5,6}")
conv("Gather", "k = Gather<axis = -3>(h, i)", "3 channels: b1:0[3] w1:0[3] w2:1", "5 channels: b1:0[5] w1:0[5]",
     form="selection, negative indices", w2="4,3,1,1", also="int64[3] i = {-1,2,-8}")
conv("Gather", "k = Gather<axis = 1>(h, i)", "5 channels: b1:0[5] w1:0[5]", "3 channels: b1:0[3] w1:0[3] w2:1x1",
     form="a channel twice", also="int64[4] i = {1,1,5,2}", w2="4,4,1,1")
conv("Gather", "g = Gather<axis = 1>(h, i) k = Unsqueeze(g, a)", "7 channels: b1:0[7] w1:0[7]",
     "w1:0[1] pinned: a single index that is picked out", form="scalar", w2="4,1,1,1",
     also="int64 i = {3}, int64[1] a = {1}")
conv("Gather", "g = Gather<axis = 1>(h, i) k = Reshape(g, s)", "4 channels: b1:0[4] w1:0[4]",
     "w1:0[4] pinned: a single index that is picked out", form="table", w2="4,4,1,1",
     also="int64[2,2] i = {3,1,0,2}, int64[4] s = {0,4,6,6}")
conv("Gather", "k = Gather<axis = 2>(h, i)", form="rows", also="int64[3] i = {5,0,2}")
matmul("Gather", "k = Gather<axis = 1>(h, i)", form="class token", also="int64 i = {0}", tail="y = Gemm(k, w2)")
conv("Gather", "g = Gather<axis = 1>(h, i) u = Conv(x, w3) v = Reshape(u, s) k = Add(g, v)",
     "4 channels: b1:0[4] w1:0[4]", "w1:0[4] pinned: a single index that is picked out",
     "w3:0 pinned: reshaped: every factor of the axis is pinned", form="table, meets another layer",
     also="int64[2,2] i = {3,1,0,2}, int64[5] s = {2,2,2,6,6}, float[4,3,1,1] w3, " "int64[4] q = {2,4,6,6}",
     tail="t = Reshape(k, q) y = Conv(t, w2)", w2="4,4,1,1")
free("Gather", "embedding", "int64[2,5] x", "float[10,8] w1, float[8,4] w2", "k = Gather(w1, x) y = MatMul(k, w2)",
     "8 channels: w1:1 w2:0")
free("Gather", "channels chosen at run time", "float[2,3,6,6] x, int64[3] i", "float[8,3,1,1] w1, float[4,3,1,1] w2",
     "h = Conv(x, w1) k = Gather<axis = 1>(h, i) y = Conv(k, w2)", "w1:0 pinned: looked up with computed indices")
free("Gather", "q, k and v of one tensor", "float[2,5,3] x",
     """float[3,24] w1, float[8,4] w2, int64[5] s = {2,5,3,4,2}, int64[3] t = {2,5,8},
     int64 i = {0}, int64 j = {1}, int64 l = {2}""",
     """h0 = MatMul(x, w1) h1 = Reshape(h0, s) h = Transpose<perm = [2,0,3,1,4]>(h1)
     q = Gather(h, i) k0 = Gather(h, j) v = Gather(h, l) k = Transpose<perm = [0,1,3,2]>(k0)
     a0 = MatMul(q, k) a = Softmax(a0) o0 = MatMul(a, v) o1 = Transpose<perm = [0,2,1,3]>(o0) o = Reshape(o1, t)
     y = MatMul(o, w2)""", "4 heads: w1:1x6 w2:0x2", "2 head_dim: w1:1x12 w2:0x4")
_PADDED = "8 channels: b1:0 w1:0 w2:1[8]"
conv("Pad", "k = Pad(h, p)", form="rows and columns", also="int64[8] p = {0,0,1,2,0,0,1,2}")
conv("Pad", "k = Pad(h, p)", _PADDED, form="channels, input", also="int64[8] p = {0,2,0,0,0,2,0,0}", w2="4,12,1,1")
conv("Pad", "k = Pad<pads = [0,2,0,0,0,2,0,0], value = 1.5>(h)", _PADDED, form="channels, attribute", opset=10,
     w2="4,12,1,1")
conv("Pad", "k = Pad(h, p, v, a)", _PADDED, form="channels, axes", opset=18, w2="4,11,1,1",
     also="int64[4] p = {1,0,2,1}, int64[2] a = {-3,2}, float v = {0.5}")
conv("Pad", "g = Conv(x, w3) p = Pad(g, q) k = Add(h, p)", "4 channels: b1:0[4] w1:0[4] w2:1[4]",
     "4 channels: b1:0[4] w1:0[4] w2:1[4] w3:0", form="shortcut of a narrower stage",
     also="float[4,3,1,1] w3, int64[8] q = {0,2,0,0,0,2,0,0}")
conv("Pad", 'k = Pad<mode = "reflect">(h, p)', form="rows reflected", also="int64[8] p = {0,0,1,1,0,0,1,1}")
conv("Pad", 'k = Pad<mode = "reflect">(h, p)', "w1:0 pinned: padded by repetition or cropped",
     form="channels reflected", also="int64[8] p = {0,1,0,0,0,1,0,0}", w2="4,10,1,1")
conv("Pad", "k = Pad(h, p)", "w1:0 pinned: padded by repetition or cropped", form="channels cropped",
     also="int64[8] p = {0,-1,0,0,0,0,0,0}", w2="4,7,1,1")
conv("Pad", 'p = Pad<mode = "reflect">(h, q) g = Conv(x, w3) k = Add(p, g)',
     "w1:0 pinned: padded by repetition or cropped", "w3:0 pinned: padded by repetition or cropped", w2="4,10,1,1",
     form="channels reflected, meet another layer", also="float[10,3,1,1] w3, int64[8] q = {0,1,0,0,0,1,0,0}")
free("Pad", "pads at run time", "float[2,3,6,6] x, int64[8] p", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = Pad(h, p) y = Conv(k, w2)", "w1:0 pinned: the shape of k is not known")
