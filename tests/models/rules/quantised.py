"""Rows of 8-bit values."""

from __future__ import annotations

from models.rules.elementwise import _P
from models.rules.layout import _LAST
from models.rules.row import Q8, conv, free, gemm, matmul

# fmt: off

_PER = "8 channels: b1:0 vs:0 w1:0 w2:1 z:0"
_ZERO = "float[8] vs, int8[8] z = {1,2,3,4,5,6,7,8}"
for _domain in ("", "com.microsoft."):
    _name = _domain.replace(".", "::").replace("com::", "com.") + "{}"
    for _op in ("QuantizeLinear", "DequantizeLinear"):
        _pair = "q = {0}QuantizeLinear{1}(h, {2}) k = {0}DequantizeLinear{1}(q, {2})"
        conv(_name.format(_op), _pair.format(_domain, "", "s, z"), form="per tensor",
             also="float s = {0.05}, uint8 z = {120}")
        conv(_name.format(_op), _pair.format(_domain, "<axis = -3>", "vs, z"), _PER, form="per channel", also=_ZERO)
conv("QuantizeLinear", "q = QuantizeLinear<axis = 1>(h, vs) k = DequantizeLinear<axis = 1>(q, vs)",
     "8 channels: b1:0 vs:0 w1:0 w2:1", form="no zero point", also="float[8] vs")
conv("QuantizeLinear", "q = QuantizeLinear(h, s, z) k = DequantizeLinear(q, s, z)", form="vectors of one",
     also="float[1] s = {0.05}, int8[1] z = {3}")
gemm("QuantizeLinear", "q = QuantizeLinear<axis = 0, block_size = 5>(h, vs) "
     "k = DequantizeLinear<axis = 0, block_size = 5>(q, vs)", "8 channels: b1:0 vs:1 w1:1 w2:0",
     form="blocks along the batch", also="float[1,8] vs")
gemm("DequantizeLinear", "v = DequantizeLinear<axis = 0, block_size = 4>(w3, vs) k = Gemm(h, v)",
     "2 channels: b1:0x4 vs:0 w1:1x4 w3:0x4", "6 channels: vs:1 w2:0 w3:1", form="weight in blocks along its inputs",
     also="int8[8,6] w3, float[2,6] vs", w2="6,4")
gemm("DequantizeLinear", "v = DequantizeLinear<axis = 1, block_size = 2>(w3, vs, z3) k = Gemm<transB = 1>(h, v)",
     "4 channels: b1:0x2 vs:1 w1:1x2 w3:1x2 z3:1", "6 channels: vs:0 w2:0 w3:0 z3:0", form="4 bits in blocks",
     also="int4[6,8] w3, float[6,4] vs, int4[6,4] z3", w2="6,4")
gemm("DequantizeLinear", "v = DequantizeLinear<axis = 0, block_size = 8>(w3, vs) k = Gemm(h, v)",
     "6 channels: vs:1 w2:0 w3:1", "w1:1 pinned: all of it is quantized in one block", form="one block",
     also="uint8[8,6] w3, float[1,6] vs", w2="6,4")
gemm("DequantizeLinear", "v = DequantizeLinear(w3, vs) k = Gemm(h, v)", "8 channels: b1:0 w1:1 w3:0",
     "6 channels: vs:0 w2:0 w3:1", form="weight with a scale per output", also="int8[8,6] w3, float[6] vs", w2="6,4")
gemm("DequantizeLinear", "v = DequantizeLinear<axis = 0>(w3, vs, z3) k = Gemm<transB = 1>(h, v)",
     "8 channels: b1:0 w1:1 w3:1", "6 channels: vs:0 w2:0 w3:0 z3:0", form="weight with a scale per row",
     also="int8[6,8] w3, float[6] vs, int8[6] z3 = {1,2,3,4,5,6}", w2="6,4")
matmul("DynamicQuantizeLinear", "q, s, z = DynamicQuantizeLinear(h) k = DequantizeLinear(q, s, z)", form="noise")
matmul("DynamicQuantizeLinear", "m = Mul(h, p) q, s, z = DynamicQuantizeLinear(m) k = DequantizeLinear(q, s, z)",
       "8 channels: p:0 w1:1 w2:0", form="what goes sets the range", also="float[8] p = {1,9,9,9,1,1,1,1}")
_SCALAR = "float s = {0.05}, uint8 z = {120}"
_PAIR = "q = QuantizeLinear(h, s, z) {} k = DequantizeLinear(c, s, z)"
for _op in ("QLinearAdd", "QLinearMul"):
    conv(f"com.microsoft::{_op}", _PAIR.format(f"r = Relu(h) t = QuantizeLinear(r, s, z) "
         f"c = com.microsoft.{_op}(q, s, z, t, s, z, s, z)"), form="activations", also=_SCALAR)
    conv(f"com.microsoft::{_op}", _PAIR.format(f"c = com.microsoft.{_op}(q, s, z, p, s, z, s, z)"), _P,
         form="constant per channel", also=f"{_SCALAR}, uint8[8,1,1] p = {{10,20,30,40,50,60,70,80}}")
conv("com.microsoft::QLinearSigmoid", _PAIR.format("c = com.microsoft.QLinearSigmoid(q, s, z, s, z)"), also=_SCALAR)
conv("com.microsoft::QLinearLeakyRelu", _PAIR.format("c = com.microsoft.QLinearLeakyRelu<alpha = 0.2>(q, s, z, s, z)"),
     also=_SCALAR)
for _op, _kernel in (("QLinearGlobalAveragePool", ""), ("QLinearAveragePool", "kernel_shape = [2,2], ")):
    conv(f"com.microsoft::{_op}", _PAIR.format(f"c = com.microsoft.{_op}<{_kernel}channels_last = 0>(q, s, z, s, z)"),
         form="channels first", also=_SCALAR)
    conv(f"com.microsoft::{_op}", "q = QuantizeLinear(h, s, z) t = Transpose<perm = [0,2,3,1]>(q) "
         f"c = com.microsoft.{_op}<{_kernel}channels_last = 1>(t, s, z, s, z) k = DequantizeLinear(c, s, z)", _LAST,
         form="channels last", also=_SCALAR, w2="8,4", tail="y = MatMul(k, w2)")
conv("com.microsoft::QLinearConcat", _PAIR.format("g = Conv(x, w3) t = QuantizeLinear(g, s, z) "
     "c = com.microsoft.QLinearConcat<axis = 1>(s, z, q, s, z, t, s, z)"), "8 channels: b1:0 w1:0 w2:1[8]",
     "6 channels: w2:1[6] w3:0", w2="4,14,1,1", also=f"{_SCALAR}, float[6,3,1,1] w3")

_NEXT = ("8 channels: b1:0 w1:1 w3:1", "6 channels: b3:0 v3:0 w2:0 w3:0 z3:0")
_INT8 = "int8[6,8] w3, float[6] v3, int8[6] z3 = {1,2,3,4,5,6}, int32[6] b3, float big = {90.0}"
gemm("com.microsoft::QGemm", f"{Q8} c = com.microsoft.QGemm<transB = 1>(q, s, z, w3, v3, z3, b3, big, z) "
     "k = DequantizeLinear(c, big, z)", *_NEXT, form="eight bits out", also=_INT8, w2="6,4")
gemm("com.microsoft::QGemm", f"{Q8} k = com.microsoft.QGemm<transB = 1>(q, s, z, w3, v3, z3, b3)", *_NEXT,
     form="floats out", also=_INT8, w2="6,4")
gemm("com.microsoft::QGemm", f"{Q8} k = com.microsoft.QGemm(q, s, z, w3, s3, z)", "8 channels: b1:0 w1:1 w3:0",
     "6 channels: w2:0 w3:1", form="per tensor", also="uint8[8,6] w3, float s3 = {0.01}", w2="6,4")
_NEXT = ("8 channels: w1:1 w3:0", "6 channels: b3:0 v3:0 w2:0 w3:1 z3:0")
_INT8 = "int8[8,6] w3, float[6] v3, int8[6] z3 = {1,2,3,4,5,6}, float[6] b3"
matmul("com.microsoft::DynamicQuantizeMatMul", "k = com.microsoft.DynamicQuantizeMatMul(h, w3, v3, z3, b3)", *_NEXT,
       form="per column", also=_INT8, w2="6,4")
matmul("com.microsoft::DynamicQuantizeMatMul", "k = com.microsoft.DynamicQuantizeMatMul(h, w3, s3)",
       "8 channels: w1:1 w3:0", "6 channels: w2:0 w3:1", form="per tensor", also="int8[8,6] w3, float s3 = {0.01}",
       w2="6,4")
matmul("com.microsoft::MatMulIntegerToFloat", f"{Q8} k = com.microsoft.MatMulIntegerToFloat(q, w3, s, v3, z, z3, b3)",
       *_NEXT, form="per column", also=_INT8, w2="6,4")
matmul("com.microsoft::MatMulIntegerToFloat", f"{Q8} k = com.microsoft.MatMulIntegerToFloat(q, w3, s, s, z)",
       "8 channels: w1:1 w3:0", "6 channels: w2:0 w3:1", form="per tensor", also="int8[8,6] w3", w2="6,4")


def nbits(
    form: str, weights: str, inputs: str, *expect: str, bits: int = 4, k: int = 64, size: int = 16, nodes: str = ""
) -> None:
    """A row with MatMulNBits of `k` inputs in blocks and of six outputs between two MatMul."""
    blocks = -(-k // size)
    attributes = f"N = 6, K = {k}, bits = {bits}, block_size = {size}"
    free("com.microsoft::MatMulNBits", form, "float[2,5,3] x",
         f"float[3,{k}] w1, uint8[6,{blocks},{size * bits // 8}] w3, {weights}, float[6,4] w2",
         f"h = MatMul(x, w1) {nodes} k = com.microsoft.MatMulNBits<{attributes}>(h, w3, {inputs}) y = MatMul(k, w2)",
         *expect)


_IN = "4 channels: v3:1 w1:1x16 w3:1"
_OUT = "6 channels: {}v3:0 w2:0 w3:0{}"
nbits("zero points in half bytes, bias", "float[6,4] v3, uint8[6,2] z3, float[6] b3", "v3, z3, , b3", _IN,
      _OUT.format("b3:0 ", " z3:0"))
nbits("no zero points", "float[6,4] v3", "v3", _IN, _OUT.format("", ""))
nbits("floats as zero points", "float[6,4] v3, float[6,4] z3", "v3, z3", "4 channels: v3:1 w1:1x16 w3:1 z3:1",
      _OUT.format("", " z3:0"))
nbits("8 bits", "float[6,4] v3, uint8[6,4] z3", "v3, z3", "4 channels: v3:1 w1:1x16 w3:1 z3:1",
      _OUT.format("", " z3:0"), bits=8)
nbits("2 bits", "float[6,4] v3, uint8[6,1] z3", "v3, z3", _IN, _OUT.format("", " z3:0"), bits=2)
nbits("outputs and blocks in one axis", "float[24] v3, uint8[12] z3", "v3, z3", "4 channels: w1:1x16 w3:1",
      "6 channels: w2:0 w3:0")
nbits("a last block that is not full", "float[6,4] v3, uint8[6,2] z3", "v3, z3", "4 channels: v3:1 w1:1x14 w3:1",
      _OUT.format("", " z3:0"), k=56)
nbits("few blocks", "float[6,3] v3, uint8[6,2] z3", "v3, z3", "5 channels: w1:1x16", _OUT.format("", " z3:0"), k=80,
      size=32)
nbits("few blocks, outputs and blocks in one axis", "float[12] v3, uint8[12] z3", "v3, z3", "8 channels: w1:1x16",
      "6 channels: w2:0 w3:0", k=128, size=64, bits=8)
nbits("a part of a block", "float[6,1] v3", "v3", "4 channels: w1:1x16", _OUT.format("", ""), k=64, size=256)
nbits("one block", "float[6,1] v3, uint8[6,1] z3", "v3, z3", _OUT.format("", " z3:0"),
      "w1:1 pinned: all of it is quantized in one block", k=16)
nbits("zero points that are computed", "float[6,4] v3, uint8[6,2] z4", "v3, z3", _OUT.format("", " z4:0"),
      "w1:1 pinned: zero points that are not constant and do not lie by output and block", nodes="z3 = Identity(z4)")
_GROUPS = f"int32[64] g = {{{', '.join(str(i % 4) for i in range(64))}}}"
nbits("blocks by g_idx", f"float[6,4] v3, {_GROUPS}", "v3, , g", _OUT.format("", ""),
      "w1:1 pinned: inputs that are assigned to blocks by g_idx")
nbits("scales that are too few", "float[6,3] v3", "v3", *(f"{w} pinned: scales that are not as many as outputs times "
      "blocks" for w in ("w1:1", "w3:0")))


def experts(form: str, weights: str, inputs: str, *expect: str, more: str = "", bits: int = 4, out: int = 32,
            nodes: str = "") -> None:
    """A row with a QMoE of four experts, of width 32 and inner width 32 (or, gated, half of `out`)."""
    nodes += f""" h = Gemm(x, w1) r = MatMul(h, wr) k = com.microsoft.QMoE<k = 2, expert_weight_bits = {bits}{more}>
        (h, r, w3, v3, {inputs}) y = MatMul(k, w2)"""
    free("com.microsoft::QMoE", form, "float[5,3] x",
         f"float[3,32] w1, float[32,4] wr, uint8[4,{out},{4 * bits}] w3, uint8[4,32,{4 * bits}] w4, {weights}, "
         "float[32,4] w2", nodes, *expect)


_BIAS = "float[4,32] b3, float[4,32] b4"
_SCALES = "float[4,32] v3, float[4,32] v4"
experts("a scale per output", f"{_SCALES}, {_BIAS}, uint8[4,16] z3, uint8[4,16] z4", "b3, w4, v4, b4, , , , z3, z4",
        "48 channels: b4:1 v4:1 w1:1 w2:0 w3:2 w4:1 wr:0, even over 2",
        "4 experts: b3:0 b4:0 v3:0 v4:0 w3:0 w4:0 wr:1 z3:0 z4:0", "16 channels: b3:1x2 v3:1x2 w3:1x2 w4:2")
experts("no zero points, 8 bits", _SCALES, ", w4, v4",
        "64 channels: v4:1 w1:1 w2:0 w3:2 w4:1 wr:0, even over 2", "4 experts: v3:0 v4:0 w3:0 w4:0 wr:1",
        "32 channels: v3:1 w3:1 w4:2", bits=8)
experts("blocks", "float[4,32,2] v3, float[4,32,2] v4, uint8[4,32,1] z3, uint8[4,32,1] z4", ", w4, v4, , , , , z3, z4",
        "34 channels: v3:2 v4:1 w1:1 w2:0 w3:2 w4:1 wr:0 z4:1, even over 2",
        "4 experts: v3:0 v4:0 w3:0 w4:0 wr:1 z3:0 z4:0", "2 channels: v3:1x16 v4:2 w3:1x16 w4:2x8 z3:1x16",
        more=", block_size = 16")
experts("gate and value interleaved", "float[4,64] v3, float[4,32] v4, float[4,64] b3", "b3, w4, v4",
        "48 channels: v4:1 w1:1 w2:0 w3:2 w4:1 wr:0, even over 2", "4 experts: b3:0 v3:0 v4:0 w3:0 w4:0 wr:1",
        "16 channels: b3:1x4 v3:1x4 w3:1x4 w4:2", out=64,
        more=', activation_type = "swiglu", swiglu_fusion = 1')
experts("zero points that are computed", f"{_SCALES}, uint8[4,16] z3, uint8[4,16] z5",
        ", w4, v4, , , , , z3, z4",
        *(f"{w} pinned: zero points that are not constant" for w in ("w1:1", "wr:1", "w3:0", "w4:0")),
        nodes="z4 = Identity(z5)")

conv("com.microsoft::QLinearWhere", _PAIR.format("r = Relu(h) t = QuantizeLinear(r, s, z) b = Greater(h, zero) "
     "c = com.microsoft.QLinearWhere(b, q, s, z, t, s, z, s, z)"), also=f"{_SCALAR}, float zero = {{0.0}}")
conv("com.microsoft::QLinearSoftmax", _PAIR.format("c = com.microsoft.QLinearSoftmax<axis = 3, opset = 13>"
     "(q, s, z, s, z)"), form="along another axis", also=_SCALAR)
conv("com.microsoft::QLinearSoftmax", _PAIR.format("c = com.microsoft.QLinearSoftmax<axis = 1, opset = 12>"
     "(q, s, z, s, z)"), "w1:0 pinned: mixed by QLinearSoftmax", form="from an axis on", also=_SCALAR)
conv("com.microsoft::NhwcMaxPool", "q = QuantizeLinear(h, s, z) t = Transpose<perm = [0,2,3,1]>(q) "
     "c = com.microsoft.NhwcMaxPool<kernel_shape = [2,2]>(t) k = DequantizeLinear(c, s, z)", _LAST, also=_SCALAR,
     w2="8,4", tail="y = MatMul(k, w2)")

_W = "int8[1,8,24] w3, int8[1,6,24] r3, float[1,48] b3"
_LSTM = "k, f, g = com.microsoft.DynamicQuantizeLSTM<hidden_size = 6>(h, w3, r3, b3, , , , , {}) y = MatMul(k, w2)"
free("com.microsoft::DynamicQuantizeLSTM", "per tensor", "float[5,2,3] x",
     f"float[3,8] w1, {_W}, float[1] s3 = {{0.01}}, int8[1] z3 = {{3}}, float[6,4] w2",
     f"h = MatMul(x, w1) {_LSTM.format('s3, z3, s3, z3')}", "8 channels: w1:1 w3:1",
     "6 channels: b3:1x8 r3:1 r3:2x4 w2:0 w3:2x4")
free("com.microsoft::DynamicQuantizeLSTM", "per output", "float[5,2,3] x",
     f"float[3,8] w1, {_W}, float[1,24] v3, int8[1,24] z3 = {{{', '.join(['0'] * 24)}}}, float[6,4] w2",
     f"h = MatMul(x, w1) {_LSTM.format('v3, z3, v3, z3')}", "8 channels: w1:1 w3:1",
     "6 channels: b3:1x8 r3:1 r3:2x4 v3:1x4 w2:0 w3:2x4 z3:1x4")
free("com.microsoft::DynamicQuantizeLSTM", "both directions", "float[5,2,3] x",
     "float[3,8] w1, int8[2,8,24] w3, int8[2,6,24] r3, float[2] s3 = {0.01, 0.02}, int8[2] z3 = {0, 0}",
     'h = MatMul(x, w1) y = com.microsoft.DynamicQuantizeLSTM<hidden_size = 6, direction = "bidirectional">'
     "(h, w3, r3, , , , , , s3, z3, s3, z3)", "8 channels: w1:1 w3:1")

_QKV = "float[3,8] w1, uint8[8,24] wa, float[24] ba, float[8,4] w2, float s = {0.05}, uint8 z = {120}"
_ATT = """h = MatMul(x, w1) q = QuantizeLinear(h, s, z)
    k = com.microsoft.QAttention<num_heads = 4>(q, wa, ba, s, {}, , z, {}) y = MatMul(k, w2)"""
free("com.microsoft::QAttention", "per tensor", "float[2,5,3] x", f"{_QKV}, float s3 = {{0.01}}, uint8 z3 = {{70}}",
     _ATT.format("s3", "z3"), "8 channels: w1:1 wa:0", "4 heads: ba:0x6 w2:0x2 wa:1x6",
     "2 head_dim: ba:0x12 w2:0x4 wa:1x12")
free("com.microsoft::QAttention", "per column", "float[2,5,3] x",
     f"{_QKV.replace('uint8[8', 'int8[8')}, float[24] va, int8[24] za", _ATT.format("va", "za"),
     "8 channels: w1:1 wa:0", "4 heads: ba:0x6 va:0x6 w2:0x2 wa:1x6 za:0x6",
     "2 head_dim: ba:0x12 va:0x12 w2:0x4 wa:1x12 za:0x12")


def table(form: str, weights: str, inputs: str, *expect: str, bits: int = 4, nodes: str = "") -> None:
    """A row with a table of nine rows, of width 64 in blocks of 16."""
    free("com.microsoft::GatherBlockQuantized", form, "int64[2,5] x", f"{weights}, float[64,4] w2",
         f"{nodes} k = com.microsoft.GatherBlockQuantized<bits = {bits}, block_size = 16>({inputs}) y = MatMul(k, w2)",
         *expect)


table("half bytes", "uint8[9,32] w, float[9,4] v, uint8[9,2] z", "w, x, v, z",
      "4 channels: v:1 w2:0x16 w:1x8")
table("bytes", "uint8[9,64] w, float[9,4] v, uint8[9,4] z", "w, x, v, z",
      "4 channels: v:1 w2:0x16 w:1x16 z:1", bits=8)
table("4 bits", "int4[9,64] w, float[9,4] v", "w, x, v", "4 channels: v:1 w2:0x16 w:1x16")
table("zero points that are computed", "uint8[9,32] w, float[9,4] v, uint8[9,2] z4", "w, x, v, z",
      "w:1 pinned: zero points that are not constant", nodes="z = Identity(z4)")
free("com.microsoft::QEmbedLayerNormalization", "words and positions", "int32[2,5] x",
     """uint8[9,8] w, uint8[5,8] p, uint8[8] g, uint8[8] b, float s = {0.05}, uint8 z = {100}, float[8,4] w2""",
     "k, m = com.microsoft.QEmbedLayerNormalization(x, , w, p, , g, b, , s, s, , s, s, z, z, , z, z) y = MatMul(k, w2)",
     "8 hidden: b:0 g:0 p:1 w2:0 w:1")
conv("com.microsoft::QLinearConv", "q = QuantizeLinear(h, s, z) t = Transpose<perm = [0,2,3,1]>(q) "
     "c = com.microsoft.QLinearConv<channels_last = 1>(t, s, z, w3, v3, z3, s, z, b3) k = DequantizeLinear(c, s, z)",
     "8 channels: b1:0 w1:0 w3:1", "6 channels: b3:0 v3:0 w2:0 w3:0 z3:0", form="channels last", w2="6,4",
     also=f"{_SCALAR}, int8[6,8,1,1] w3, float[6] v3, int8[6] z3 = {{0,0,0,0,0,0}}, int32[6] b3",
     tail="y = MatMul(k, w2)")
conv("com.microsoft::QLinearConv", "q = QuantizeLinear(h, s, z) t = Transpose<perm = [0,2,3,1]>(q) "
     "c = com.microsoft.QLinearConv<channels_last = 1, group = 8>(t, s, z, w3, v3, z3, s, z) "
     "k = DequantizeLinear(c, s, z)", "8 channels: b1:0 w1:0 w2:0 w3:0", form="depthwise, channels last", w2="8,4",
     also=f"{_SCALAR}, int8[8,1,3,3] w3, float v3 = {{0.01}}, int8 z3 = {{0}}", tail="y = MatMul(k, w2)")
