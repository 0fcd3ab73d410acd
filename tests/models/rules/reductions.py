"""Rows of reductions, normalisations and pooling."""

from __future__ import annotations

from models.rules.row import conv, free, gemm, matmul

# fmt: off

_POSITIVE = "e = Abs(h) p = Add(e, one)"
for _op in "ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceMean ReduceLogSum".split():  # gone counts as zero
    _opset = 13 if _op == "ReduceSum" else 18
    conv(_op, f"{_POSITIVE} k = {_op}<keepdims = 0, axes = [1]>(p)", "8 channels: b1:0 w1:0", tail="y = Neg(k)",
         form="channels, attribute, no keepdims", opset=_opset - 2, also="float one = {1}")
    conv(_op, f"{_POSITIVE} k = {_op}(p, a)", "8 channels: b1:0 w1:0", tail="y = Neg(k)",
         form="channels and columns, input, keepdims", opset=_opset, also="float one = {1}, int64[2] a = {-3,-1}")
    conv(_op, f"{_POSITIVE} k = {_op}(p)", "8 channels: b1:0 w1:0", tail="y = Neg(k)", form="all axes", opset=_opset,
         also="float one = {1}")
    conv(_op, f"{_POSITIVE} k = {_op}(p, a)", form="rows and columns", opset=_opset,
         also="float one = {1}, int64[2] a = {2,3}")
    conv(_op, f"{_POSITIVE} k = {_op}<noop_with_empty_axes = 1>(p)", form="no axes, no-op", opset=_opset,
         also="float one = {1}")
for _op, _signed in (("ReduceMax", "p = Neg(h)"), ("ReduceMin", _POSITIVE), ("ReduceProd", _POSITIVE),
                     ("ReduceLogSumExp", _POSITIVE)):
    _pinned = f"w1:0 pinned: reduced by {_op}, for which zero is not neutral"
    conv(_op, f"{_signed} k = {_op}<keepdims = 0, axes = [1]>(p)", _pinned, tail="y = Neg(k)",
         form="channels, attribute, no keepdims", opset=17, also="float one = {1}")
    conv(_op, f"{_signed} k = {_op}(p, a)", _pinned, tail="y = Neg(k)", form="channels, input, keepdims", opset=18,
         also="float one = {1}, int64[1] a = {-3}")
    conv(_op, f"{_signed} k = {_op}(p, a)", form="rows and columns", opset=18,
         also="float one = {1}, int64[2] a = {2,3}")
for _op, _signed in (("ReduceMax", "p = Relu(h)"), ("ReduceMax", "s = Sigmoid(h) r = Relu(h) p = Mul(r, s)"),
                     ("ReduceMin", "a = Abs(h) p = Neg(a)")):
    conv(_op, f"{_signed} k = {_op}<axes = [1,2]>(p)", "8 channels: b1:0 w1:0", tail="y = Neg(k)", opset=17,
         form=f"channels and rows of one sign, {_signed}")
matmul("ReduceMax", "r = Relu(h) m = ReduceMax<axes = [2]>(r) a = ReduceMean<axes = [2]>(r) t = Concat<axis = 2>(m, a) "
       "g = MatMul(t, w3) k = Mul(r, g)", "8 channels: w1:1 w2:0", form="beside a mean", opset=17,
       also="float[2,1] w3")
free("ReduceSum", "axes at run time", "float[2,3,6,6] x, int64[1] a", "float[8,3,1,1] w1",
     "h = Conv(x, w1) k = ReduceSum(h, a) y = Neg(k)", "w1:0 pinned: the shape of k is not known")
conv("ReduceMean", "i = Cast<to = 6>(h) m = ReduceMean(i, a) y = Cast<to = 1>(m)",
     "w1:0 pinned: a mean of integers, which cannot keep its divisor", form="channels, of integers", tail="",
     also="int64[1] a = {1}")
conv("ReduceMean", "b = Mul(h, twenty) i = Cast<to = 6>(b) m = ReduceMean(i, a) f = Cast<to = 1>(m) k = Conv(h, w2)",
     "w1:0 pinned: a mean of integers, which cannot keep its divisor", form="channels, of integers, beside a layer",
     tail="y = Add(f, k)", also="int64[1] a = {1}, float twenty = {20}")
conv("ReduceMean", "m = ReduceMean(h, a) k = Sub(h, m)", "8 hidden: b1:0 w1:0 w2:1", form="centred over C",
     also="int64[1] a = {1}")
matmul("ReduceMean",
       "m = ReduceMean(h, a) c = Sub(h, m) q = Mul(c, c) v = ReduceMean(q, a) e = Add(v, eps) s = Sqrt(e) "
       "k = Div(c, s)", "8 hidden: w1:1 w2:0", form="decomposed LayerNormalization",
       also="int64[1] a = {-1}, float eps = {0.001}")
matmul("ReduceMean", "q = Mul(h, h) v = ReduceMean(q, a) e = Add(v, eps) s = Sqrt(e) k = Div(h, s)",
       "8 hidden: w1:1 w2:0", form="decomposed RMSNormalization", also="int64[1] a = {-1}, float eps = {0.001}")
for _op in ("ReduceMean", "ReduceMax"):
    matmul(_op, f"k = {_op}<keepdims = 0>(h, a)", form="tokens, no keepdims", also="int64[1] a = {1}",
           tail="y = Gemm(k, w2)")
for _op in "Softmax LogSoftmax Hardmax".split():
    conv(_op, f"k = {_op}(h)", form="last axis, opset 13")
    conv(_op, f"k = {_op}<axis = 1>(h)", f"w1:0 pinned: mixed by {_op}", form="channels, opset 13")
    conv(_op, f"k = {_op}<axis = 3>(h)", form="last axis, opset 11", opset=11)
    conv(_op, f"k = {_op}(h)", f"w1:0 pinned: mixed by {_op}", form="all but the batch, opset 11", opset=11)
    gemm(_op, f"k = {_op}<axis = 0>(h)", form="batch, opset 13")
    gemm(_op, f"k = {_op}<axis = 0>(h)", f"w1:1 pinned: mixed by {_op}", form="batch and all that follows, opset 11",
         opset=11)
for _op, _opset in (("CumSum", 14), ("CumProd", 26)):
    conv(_op, f"k = {_op}(h, a)", form="rows", also="int64 a = {2}", opset=_opset)
    conv(_op, f"k = {_op}(h, a)", "w1:0 pinned: accumulated along", form="channels", also="int64[1] a = {-3}",
         opset=_opset)
free("CumSum", "axis at run time", "float[2,3,6,6] x, int64 a", "float[8,3,1,1] w1, float[4,8,1,1] w2",
     "h = Conv(x, w1) k = CumSum(h, a) y = Conv(k, w2)", "w1:0 pinned: accumulated along")
conv("LRN", "k = LRN<size = 3>(h)", "w1:0 pinned: mixed by LRN")
conv("Trilu", "k = Trilu(h)", form="rows and columns")
gemm("Trilu", "k = Trilu<upper = 0>(h)", "w1:1 pinned: cut along a diagonal", form="channels")
free("ReverseSequence", "time and batch", "float[5,2,3] x", "float[3,8] w1, float[8,4] w2, int64[2] n = {5,3}",
     "h = MatMul(x, w1) k = ReverseSequence(h, n) y = MatMul(k, w2)", "8 channels: w1:1 w2:0")
free("ReverseSequence", "batch and channels", "float[5,3] x", "float[3,8] w1, float[8,4] w2, int64[5] n = {8,3,5,1,2}",
     "h = MatMul(x, w1) k = ReverseSequence<batch_axis = 0, time_axis = 1>(h, n) y = MatMul(k, w2)",
     "w1:1 pinned: reversed in time")
gemm("LpNormalization", "k = LpNormalization<p = 2>(h)", "8 hidden: b1:0 w1:1 w2:0", form="last axis")
conv("LpNormalization", "k = LpNormalization<axis = 1, p = 1>(h)", "8 hidden: b1:0 w1:0 w2:1", form="channels")
conv("LpNormalization", "k = LpNormalization<axis = 2, p = 1>(h)", form="rows")
matmul("LayerNormalization", "k = LayerNormalization(h, g, b)", "8 hidden: b:0 g:0 w1:1 w2:0", form="last axis",
       also="float[8] g, float[8] b")
matmul("LayerNormalization", "k = LayerNormalization<axis = 1>(h, g, b)", "8 hidden: b:1 g:1 w1:1 w2:0",
       form="last two axes", also="float[5,8] g, float[5,8] b")
matmul("LayerNormalization", "n, m, d = LayerNormalization(h, g) o = Mul(n, d) k = Add(o, m)",
       "8 hidden: g:0 w1:1 w2:0", form="statistics as outputs", also="float[8] g")
conv("LayerNormalization", "k = LayerNormalization(h, g)", form="columns", also="float[6] g")
matmul("RMSNormalization", "k = RMSNormalization(h, g)", "8 hidden: g:0 w1:1 w2:0", opset=23, also="float[8] g")
matmul("SimplifiedLayerNormalization", "k = SimplifiedLayerNormalization(h, g)", "8 hidden: g:0 w1:1 w2:0",
       also="float[8] g")
matmul("com.microsoft::SkipLayerNormalization",
       "r = MatMul(x, w3) k = com.microsoft.SkipLayerNormalization(h, r, g, b, s)",
       "8 hidden: b:0 g:0 s:0 w1:1 w2:0 w3:1", form="bias", also="float[3,8] w3, float[8] g, float[8] b, float[8] s")
matmul("com.microsoft::SkipLayerNormalization",
       "r = MatMul(x, w3) n, , , t = com.microsoft.SkipLayerNormalization(h, r, g, b) k = Add(n, t)",
       "8 hidden: b:0 g:0 w1:1 w2:0 w3:1", form="sum as output", also="float[3,8] w3, float[8] g, float[8] b")
matmul("com.microsoft::SkipSimplifiedLayerNormalization",
       "r = MatMul(x, w3) k = com.microsoft.SkipSimplifiedLayerNormalization(h, r, g)", "8 hidden: g:0 w1:1 w2:0 w3:1",
       also="float[3,8] w3, float[8] g")
_BN = "float[8] vs, float[8] bb, float[8] m, float[8] vv"
for _opset in (7, 9, 15):
    conv("BatchNormalization", "k = BatchNormalization(h, vs, bb, m, vv)",
         "8 channels: b1:0 bb:0 m:0 vs:0 vv:0 w1:0 w2:1", form=f"opset {_opset}", opset=_opset, also=_BN)
gemm("BatchNormalization", "k = BatchNormalization(h, vs, bb, m, vv)", "8 channels: b1:0 bb:0 m:0 vs:0 vv:0 w1:1 w2:0",
     form="two axes", also=_BN)
conv("BatchNormalization", "k, rm, rv = BatchNormalization<training_mode = 1>(h, vs, bb, m, vv)",
     "w1:0 pinned: axis of the graph output rm", form="training", also=_BN, outputs="float[] y, float[] rm, float[] rv")
conv("InstanceNormalization", "k = InstanceNormalization(h, g, b)", "8 channels: b1:0 b:0 g:0 w1:0 w2:1",
     also="float[8] g, float[8] b")
conv("InstanceNormalization", "s = Reshape(h, a) n = InstanceNormalization(s, g, b) r = Reshape(n, c) m = Mul(r, p) "
     "k = Add(m, q)", "4 channels: b1:0x2 b:0 g:0 p:0x2 q:0x2 w1:0x2 w2:1x2", form="decomposed GroupNormalization",
     also="int64[3] a = {0,4,-1}, int64[4] c = {2,8,6,6}, float[4] g, float[4] b, float[8,1,1] p, float[8,1,1] q")
conv("MeanVarianceNormalization", "k = MeanVarianceNormalization(h)", form="per channel")
conv("MeanVarianceNormalization", "k = MeanVarianceNormalization<axes = [1,2,3]>(h)", "w1:0 pinned: normalised over",
     form="over channels")
conv("GroupNormalization", "k = GroupNormalization<num_groups = 4>(h, g, b)",
     "4 channels: b1:0x2 b:0 g:0 w1:0x2 w2:1x2", form="scale per group, opset 18", opset=18,
     also="float[4] g, float[4] b")
conv("GroupNormalization", "k = GroupNormalization<num_groups = 4>(h, g, b)",
     "4 channels: b1:0x2 b:0x2 g:0x2 w1:0x2 w2:1x2", form="scale per channel, opset 21", also="float[8] g, float[8] b")
conv("GroupNormalization", "k = GroupNormalization<num_groups = 8>(h, g, b)", "8 channels: b1:0 b:0 g:0 w1:0 w2:1",
     form="a group per channel", also="float[8] g, float[8] b")
conv("GroupNormalization", "k = GroupNormalization<num_groups = 1>(h, g, b)", "8 hidden: b1:0 b:0 g:0 w1:0 w2:1",
     form="one group", also="float[8] g, float[8] b")
for _op, _attrs in (
    ("AveragePool", "<kernel_shape = [3,3], pads = [1,1,1,1]>"), ("MaxPool", "<kernel_shape = [2,2], strides = [2,2]>"),
    ("LpPool", "<kernel_shape = [2,2], p = 2>"), ("GlobalAveragePool", ""), ("GlobalMaxPool", ""),
    ("GlobalLpPool", "<p = 2>"),
):
    conv(_op, f"k = {_op}{_attrs}(h)")
conv("MaxPool", "k, i = MaxPool<kernel_shape = [2,2]>(h)", "w1:0 pinned: MaxPool indices count across channels",
     form="indices", outputs="float[] y, int64[] i")
conv("MaxPool", "k, i = MaxPool<kernel_shape = [2,2]>(h)", form="indices that nobody reads")
for _op in ("ArgMax", "ArgMin"):
    conv(_op, f"i = {_op}<axis = 2>(h) k = Cast<to = 1>(i)", form="rows")
    conv(_op, f"i = {_op}<axis = -1, keepdims = 0>(h) k = Cast<to = 1>(i)", form="columns, no keepdims", w2="4,8,1")
    matmul(_op, f"i = {_op}<axis = 1, keepdims = 0>(h) k = Cast<to = 1>(i)", form="tokens, no keepdims",
           tail="y = Gemm(k, w2)")
    conv(_op, f"i = {_op}<axis = 1>(h) y = Cast<to = 1>(i)", f"w1:0 pinned: {_op} returns indices of this axis",
         form="channels", tail="")
conv("TopK", "k, i = TopK<axis = 2>(h, n)", form="rows", also="int64[1] n = {2}")
conv("TopK", "k, i = TopK<k = 2>(h)", form="attribute", opset=9)
conv("TopK", "k, i = TopK<axis = 1>(h, n)", "w1:0 pinned: TopK returns indices of this axis", form="channels",
     also="int64[1] n = {2}", w2="4,2,1,1")
conv("TopK", "t, i = TopK<axis = 1>(h, n) g = Conv(x, w3) k = Add(g, t)",
     "w1:0 pinned: TopK returns indices of this axis", "w3:0 pinned: TopK returns indices of this axis",
     form="channels, meet another layer", also="int64[1] n = {2}, float[2,3,1,1] w3", w2="4,2,1,1")
