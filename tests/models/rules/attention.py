"""Rows of products of two operands: which are attention, and which feed-forward layers."""

from __future__ import annotations

from models.rules.products import ATTENTION, ATTENTION_WEIGHTS
from models.rules.row import free

# fmt: off

_HEADS = ("4 heads: wk:1x2 wo:0x2 wq:1x2 wv:1x2", "2 head_dim: wk:1x4 wq:1x4", "2 head_dim: wo:0x4 wv:1x4")
_CHANNELS = ("2 channels: wk:1x4 wq:1x4", "4 channels: wo:0x2 wv:1x2")


def _attention(form: str, between: str, *expect: str, weights: str = "", opset: int = 21) -> None:
    """Four heads of two dimensions; `between` makes the weights `s` of the scaled products `s1` (2, 4, 5, 5)."""
    nodes = ATTENTION.replace("s = Softmax(s1)", between)
    free("MatMul", form, "float[2,5,3] x", f"{ATTENTION_WEIGHTS}{weights}", nodes, *expect or _HEADS, opset=opset)


_attention("a Softmax, and the matrix behind it scaled, dropped and cast",
           "f = Cast<to = 11>(s1) p = Softmax(f) g = Cast<to = 1>(p) d = Dropout(g) s = Mul(d, scale)")
_attention("a Softmax written out", "m = ReduceMax<axes = [3]>(s1) t = Sub(s1, m) e = Exp(t) n = ReduceSum(e, last) "
           "s = Div(e, n)", weights=", int64[1] last = {3}", opset=17)
_attention("a Softmax of what was gathered", "g = GatherElements<axis = 3>(s1, i) s2 = Add(s1, g) s = Softmax(s2)",
           "4 heads: i:1 wk:1x2 wo:0x2 wq:1x2 wv:1x2", *_HEADS[1:],
           weights=f", int64[2,4,5,5] i = {{{','.join(str(k % 5) for k in range(200))}}}")
_attention("talking heads", "t1 = Transpose<perm = [0,2,3,1]>(s1) t2 = MatMul(t1, mix) "
           "t = Transpose<perm = [0,3,1,2]>(t2) s = Softmax(t)", "4 heads: mix:0 wk:1x2 wq:1x2",
           "2 head_dim: wk:1x4 wq:1x4", "4 heads: mix:1 wo:0x2 wv:1x2", "2 head_dim: wo:0x4 wv:1x4",
           weights=", float[4,4] mix")
_attention("nothing between the products", "s = Identity(s1)")
_attention("an activation between the products", "s = Relu(s1)", "4 channels: wk:1x2 wo:0x2 wq:1x2 wv:1x2")
free("MatMul", "learned queries", "float[2,5,3] x", "float[1,4,1,2] q, float[3,8] wk, float[3,8] wv, float[8,4] wo, "
     "int64[4] split = {0,0,4,2}, int64[3] join = {0,0,8}", ATTENTION[ATTENTION.index("k0 = "):]
     .replace("s1 = Mul(s0, scale) s = Softmax(s1)", "s = Softmax(s0)"), "4 heads: q:1 wk:1x2 wo:0x2 wv:1x2",
     "2 head_dim: q:3 wk:1x4", "2 head_dim: wo:0x4 wv:1x4")
free("MatMul", "pooled by attention", "float[2,5,3] x", "float[3,8] w1, float[8,1] w2, float[8,4] w3",
     "h = MatMul(x, w1) l = MatMul(h, w2) p = Softmax<axis = 1>(l) t = Transpose<perm = [0,2,1]>(p) g = MatMul(t, h) "
     "y = MatMul(g, w3)", "8 channels: w1:1 w2:0 w3:0")
free("MatMul", "one product", "float[2,5,3] x", "float[3,8] w1",
     "h = MatMul(x, w1) t = Transpose<perm = [0,2,1]>(h) g = MatMul(h, t) y = Softmax(g)", "8 channels: w1:1")
for _form, _act in (("an activation", "r = Relu(g)"), ("nothing", "r = Identity(g)")):
    free("MatMul", f"experts that are fetched, {_form} between", "float[2,3] x, int64[2] i",
         "float[4,3,8] w1, float[4,8,3] w2, int64[1] a = {1}",
         f"u = Gather(w1, i) d = Gather(w2, i) t = Unsqueeze(x, a) g = MatMul(t, u) {_act} k = MatMul(r, d) "
         "y = Squeeze(k, a)", "8 channels: w1:2 w2:1", "w1:1 pinned: axis of the graph input x")
