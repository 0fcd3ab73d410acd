"""Rows of matrix products, attention among them."""

from __future__ import annotations

from models.rules.row import D8, Q8, free, gemm, matmul

# fmt: off

_NEXT = ("8 channels: b1:0 w1:1 w3:0", "6 channels: w2:0 w3:1")
_NEXT_B = ("8 channels: b1:0 w1:1 w3:0", "6 channels: b3:0 w2:0 w3:1")
gemm("Gemm", "k = Gemm(h, w3)", *_NEXT, form="no C", also="float[8,6] w3", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, b3)", *_NEXT_B, form="C [N]", also="float[8,6] w3, float[6] b3", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", *_NEXT, form="C scalar", also="float[8,6] w3, float c = {0.3}", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", *_NEXT, form="C [1]", also="float[8,6] w3, float[1] c", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", *_NEXT, form="C [M,1]", also="float[8,6] w3, float[5,1] c", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", "8 channels: b1:0 w1:1 w3:0", "6 channels: c:1 w2:0 w3:1", form="C [1,N]",
     also="float[8,6] w3, float[1,6] c", w2="6,4")
gemm("Gemm", "k = Gemm(h, w3, c)", "8 channels: b1:0 w1:1 w3:0", "6 channels: c:1 w2:0 w3:1", form="C [M,N]",
     also="float[8,6] w3, float[5,6] c", w2="6,4")
gemm("Gemm", "c = Gemm(x, w4) k = Gemm(h, w3, c)", "8 channels: b1:0 w1:1 w3:0", "6 channels: w2:0 w3:1 w4:1",
     form="C an activation", also="float[8,6] w3, float[3,6] w4", w2="6,4")
gemm("Gemm", "k = Gemm<alpha = 0.5, beta = 2.0>(h, w3, b3)", *_NEXT_B, form="alpha and beta", w2="6,4",
     also="float[8,6] w3, float[6] b3")
gemm("Gemm", "k = Gemm<transB = 1>(h, w3, b3)", "8 channels: b1:0 w1:1 w3:1", "6 channels: b3:0 w2:0 w3:0",
     form="transB", also="float[6,8] w3, float[6] b3", w2="6,4")
gemm("Gemm", "t = Transpose(h) k = Gemm<transA = 1>(t, w3, b3)", *_NEXT_B, form="transA", w2="6,4",
     also="float[8,6] w3, float[6] b3")
free("Gemm", "weight on the left", "float[3,5] x", "float[8,3] w1, float[8,1] b1, float[4,8] w2",
     "h = Gemm(w1, x, b1) k = Relu(h) y = Gemm(w2, k)", "8 channels: b1:0 w1:0 w2:1")
free("Gemm", "weight on the left, transposed", "float[3,5] x", "float[3,8] w1, float[8,4] w2",
     "h = Gemm<transA = 1>(w1, x) k = Relu(h) y = Gemm<transA = 1>(w2, k)", "8 channels: w1:1 w2:0")
gemm("com.microsoft::FusedGemm", 'k = com.microsoft.FusedGemm<activation = "Relu">(h, w3, b3)', *_NEXT_B,
     form="activation", also="float[8,6] w3, float[6] b3", w2="6,4")
gemm("com.microsoft::FusedGemm", 'k = com.microsoft.FusedGemm<activation = "Relu", transB = 1>(h, w3, b3)',
     "8 channels: b1:0 w1:1 w3:1", "6 channels: b3:0 w2:0 w3:0", form="transB", also="float[6,8] w3, float[6] b3",
     w2="6,4")

_NEXT = ("8 channels: w1:1 w3:0", "6 channels: w2:0 w3:1")
matmul("MatMul", "k = MatMul(h, w3)", *_NEXT, form="weight on the right", also="float[8,6] w3", w2="6,4")
matmul("MatMul", "k = MatMul(h, w3)", "8 channels: w1:1 w3:1", "6 channels: w2:0 w3:2", form="batched weight",
       also="float[2,8,6] w3", w2="6,4")
matmul("MatMul", "k = MatMul(h, w3)", "8 channels: w1:1 w3:0", form="vector on the right", also="float[8] w3",
       tail="y = Neg(k)")
free("MatMul", "weight on the left", "float[2,3,5] x", "float[8,3] w1, float[6,8] w3, float[4,6] w2",
     "h = MatMul(w1, x) k = MatMul(w3, h) y = MatMul(w2, k)", "8 channels: w1:0 w3:1", "6 channels: w2:1 w3:0")
free("MatMul", "vector on the left", "float[3] x", "float[3,8] w1, float[8,6] w3, float[6,4] w2",
     "h = MatMul(x, w1) k = MatMul(h, w3) y = MatMul(k, w2)", "8 channels: w1:1 w3:0", "6 channels: w2:0 w3:1")
ATTENTION = """q0 = MatMul(x, wq) q1 = Reshape(q0, split) q = Transpose<perm = [0,2,1,3]>(q1)
    k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose<perm = [0,2,3,1]>(k1)
    v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm = [0,2,1,3]>(v1)
    s0 = MatMul(q, k) s1 = Mul(s0, scale) s = Softmax(s1) a0 = MatMul(s, v)
    a1 = Transpose<perm = [0,2,1,3]>(a0) a = Reshape(a1, join) y = MatMul(a, wo)"""
ATTENTION_WEIGHTS = """float[3,8] wq, float[3,8] wk, float[3,8] wv, float[8,4] wo, float scale = {0.7},
    int64[4] split = {0,0,4,2}, int64[3] join = {0,0,8}"""
free("MatMul", "attention", "float[2,5,3] x", ATTENTION_WEIGHTS, ATTENTION, "4 heads: wk:1x2 wo:0x2 wq:1x2 wv:1x2",
     "2 head_dim: wk:1x4 wq:1x4", "2 head_dim: wo:0x4 wv:1x4")
free("MatMul", "attention of one head", "float[2,5,3] x", "float[3,8] wq, float[3,8] wk, float[3,6] wv, float[6,4] wo",
     """q = MatMul(x, wq) k0 = MatMul(x, wk) k = Transpose<perm = [0,2,1]>(k0) v = MatMul(x, wv)
     s0 = MatMul(q, k) s = Softmax(s0) a = MatMul(s, v) y = MatMul(a, wo)""", "8 head_dim: wk:1 wq:1",
     "6 head_dim: wo:0 wv:1")
matmul("com.microsoft::FusedMatMul", "k = com.microsoft.FusedMatMul<transB = 1, alpha = 0.5>(h, w3)",
       "8 channels: w1:1 w3:1", "6 channels: w2:0 w3:0", form="transB", also="float[6,8] w3", w2="6,4")
matmul("com.microsoft::FusedMatMul",
       "t = Transpose<perm = [0,2,1]>(h) k = com.microsoft.FusedMatMul<transA = 1>(t, w3)", *_NEXT, form="transA",
       also="float[8,6] w3", w2="6,4")
matmul("com.microsoft::FusedMatMul", "g = com.microsoft.FusedMatMul<transB = 1>(h, h) s = Softmax(g) k = MatMul(s, h)",
       "8 head_dim: w1:1 w2:0", form="two activations")
matmul("com.microsoft::FusedMatMul", "k = com.microsoft.FusedMatMul<transBatchA = 1>(h, w3)",
       "w1:1 pinned: transposed batch axes", form="transBatchA", also="float[5,8,6] w3", w2="6,4")
free("com.microsoft::FusedMatMul", "weight on the left, transposed", "float[3,5] x", "float[3,8] w1, float[8,4] w2",
     "h = com.microsoft.FusedMatMul<transA = 1>(w1, x) k = Relu(h) y = com.microsoft.FusedMatMul<transA = 1>(w2, k)",
     "8 channels: w1:1 w2:0")
matmul("MatMulInteger", f"{Q8} c = MatMulInteger(q, w3, z, z3) k = Cast<to = 1>(c)", *_NEXT, w2="6,4",
       form="scalar zero points", also="uint8[8,6] w3, uint8 z3 = {100}")
matmul("MatMulInteger", f"{Q8} c = MatMulInteger(q, w3, z, z3) k = Cast<to = 1>(c)", "8 channels: w1:1 w3:0",
       "6 channels: w2:0 w3:1 z3:0", w2="6,4", form="zero point per column",
       also="uint8[8,6] w3, uint8[6] z3 = {100,101,102,103,104,105}")
matmul("QLinearMatMul", f"{Q8} c = QLinearMatMul(q, s, z, w3, s3, z3, s, z) {D8}", *_NEXT, w2="6,4",
       form="scale per tensor", also="uint8[8,6] w3, float s3 = {0.01}, uint8 z3 = {128}")
matmul("QLinearMatMul", f"{Q8} c = QLinearMatMul(q, s, z, w3, v3, z3, s, z) {D8}", "8 channels: w1:1 w3:0",
       "6 channels: v3:0 w2:0 w3:1 z3:0", w2="6,4", form="scale per column",
       also="int8[8,6] w3, float[6] v3, int8[6] z3 = {0,0,0,0,0,0}")
matmul("Einsum", 'k = Einsum<equation = "btc,cd->btd">(h, w3)', *_NEXT, form="product", also="float[8,6] w3", w2="6,4")
matmul("Einsum", 'k = Einsum<equation = "btc, cd">(h, w3)', "8 channels: w1:1 w3:0", "6 channels: w2:1 w3:1",
       form="implicit output", also="float[8,6] w3", w2="4,6", tail="y = MatMul(w2, k)")
matmul("Einsum", 'k = Einsum<equation = "btc->bct">(h)', "8 channels: w1:1 w2:1", form="transpose",
       tail="y = MatMul(w2, k)", w2="4,8")
matmul("Einsum", 'k = Einsum<equation = "btc,c->btc">(h, p)', "8 channels: p:0 w1:1 w2:0", form="scale",
       also="float[8] p")
for _form, _equation in (("ellipsis", "...c,cd->...d"), ("ellipsis, implicit output", "...c,cd"),
                         ("ellipsis in the middle", "b...c,cd->b...d")):
    matmul("Einsum", f'k = Einsum<equation = "{_equation}">(h, w3)', *_NEXT, form=_form, also="float[8,6] w3", w2="6,4")
matmul("Einsum", 'k = Einsum<equation = "...c,...cd->...d">(h, w3)', "8 channels: w1:1 w3:2", "6 channels: w2:0 w3:3",
       form="ellipsis everywhere", also="float[1,5,8,6] w3", w2="6,4")
matmul("Einsum", 'k = Einsum<equation = "b...,...d->b...d">(h, w3)', "8 channels: w1:1 w2:0 w3:1",
       form="channels under an ellipsis", also="float[5,8,1] w3, int64[1] a = {3}",
       tail="s = Squeeze(k, a) y = MatMul(s, w2)")
matmul("Einsum", 'k = Einsum<equation = "a...,...a->...">(h, w3)', "8 channels: w1:1 w2:0 w3:1",
       form="ellipsis that is broadcast", also="float[1,8,2] w3")
matmul("Einsum", 'g = Einsum<equation = "btc,bsc->bts">(h, h) k = MatMul(g, h)', "8 head_dim: w1:1 w2:0",
       form="two activations")
matmul("Einsum", 'g = MatMul(h, w3) k = Einsum<equation = "btt->bt">(g)', "8 channels: w1:1 w3:0",
       "w3:1 pinned: Einsum with a diagonal or of unknown rank", form="diagonal", also="float[8,5] w3", w2="5,4")
free("Einsum", "broadcast along a label", "float[5,3] x", "float[3,8] w1, float[3,1] w2, float[4,8] w3",
     'h = MatMul(x, w1) g = MatMul(x, w2) y = Einsum<equation = "bi,bi,oi->bo">(g, h, w3)', "8 channels: w1:1 w3:1")
free("Einsum", "bilinear", "float[5,3] x", "float[3,8] w1, float[3,6] w2, float[4,8,6] w3",
     'h = MatMul(x, w1) g = MatMul(x, w2) y = Einsum<equation = "bi,oij,bj->bo">(h, w3, g)', "8 channels: w1:1 w3:1",
     "6 channels: w2:1 w3:2")
free("Einsum", "attention", "float[2,5,3] x", "float[3,4,2] wq, float[3,4,2] wk, float[3,4,2] wv, float[4,2,4] wo",
     """q = Einsum<equation = "btc,chd->bthd">(x, wq) k = Einsum<equation = "btc,chd->bthd">(x, wk)
     v = Einsum<equation = "btc,chd->bthd">(x, wv) s0 = Einsum<equation = "bthd,bshd->bhts">(q, k) s = Softmax(s0)
     a = Einsum<equation = "bhts,bshd->bthd">(s, v) y = Einsum<equation = "bthd,hdo->bto">(a, wo)""",
     "4 heads: wk:1 wo:0 wq:1 wv:1", "2 head_dim: wk:2 wq:2", "2 head_dim: wo:1 wv:2")
