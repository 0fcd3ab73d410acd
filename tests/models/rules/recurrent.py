"""Rows of recurrent layers: W (D, g*H, I), R (D, g*H, H), B (D, 2*g*H)."""

from __future__ import annotations

from models.rules.row import free

# fmt: off

for _op, _g in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    _x = f"x{_g}" if _g > 1 else ""
    _w = f"float[3,6] w1, float[1,{_g * 8},6] w, float[1,{_g * 8},8] r, float[1,{_g * 16}] b, float[8,4] w2"
    _in, _gates = "6 channels: w1:1 w:2", f"r:1{_x} r:2 w2:0 w:1{_x}"
    _out = f"8 channels: b:1x{2 * _g} {_gates}"
    free(_op, "forward", "float[5,2,3] x", f"{_w}, int64[1] a = {{1}}",
         f"h = MatMul(x, w1) o = {_op}<hidden_size = 8>(h, w, r, b) s = Squeeze(o, a) y = MatMul(s, w2)", _in, _out)
    free(_op, "no bias, last state", "float[5,2,3] x", f"{_w}, int64[1] a = {{0}}",
         f"h = MatMul(x, w1) o, l = {_op}<hidden_size = 8>(h, w, r) s = Squeeze(l, a) y = MatMul(s, w2)", _in,
         f"8 channels: {_gates}")
    _c0, _more = (", c0", "float[1,2,8] c0, ") if _op == "LSTM" else ("", "")
    free(_op, "initial states and lengths", "float[5,2,3] x",
         f"{_w}, int64[1] a = {{1}}, int32[2] n = {{5,3}}, {_more}float[1,2,8] h0",
         f"h = MatMul(x, w1) o = {_op}<hidden_size = 8>(h, w, r, b, n, h0{_c0}) s = Squeeze(o, a) y = MatMul(s, w2)",
         _in, f"8 channels: b:1x{2 * _g} {'c0:2 ' if _c0 else ''}h0:2 {_gates}")
    free(_op, "bidirectional", "float[5,2,3] x",
         f"float[3,6] w1, float[2,{_g * 8},6] w, float[2,{_g * 8},8] r, float[2,{_g * 16}] b, float[16,4] w2, "
         "int64[3] a = {0,0,-1}",
         f'h = MatMul(x, w1) o = {_op}<hidden_size = 8, direction = "bidirectional">(h, w, r, b) '
         "t = Transpose<perm = [0,2,1,3]>(o) s = Reshape(t, a) y = MatMul(s, w2)", _in, _out.replace("w2:0", "w2:0x2"))
    _more = _more.replace("1,2,8", "2,1,8")
    free(_op, "layout 1", "float[2,5,3] x", f"{_w}, int64[1] a = {{2}}, {_more}float[2,1,8] h0",
         f"h = MatMul(x, w1) o = {_op}<hidden_size = 8, layout = 1>(h, w, r, b, , h0{_c0}) s = Squeeze(o, a) "
         "y = MatMul(s, w2)", _in, f"8 channels: b:1x{2 * _g} {'c0:2 ' if _c0 else ''}h0:2 {_gates}", law="reference",
         why="onnxruntime has no layout 1")
free("LSTM", "peepholes", "float[5,2,3] x", """float[3,6] w1, float[1,32,6] w, float[1,32,8] r, float[1,64] b,
     float[1,24] p, float[8,4] w2, int64[1] a = {1}""",
     "h = MatMul(x, w1) o = LSTM<hidden_size = 8>(h, w, r, b, , , , p) s = Squeeze(o, a) y = MatMul(s, w2)",
     "6 channels: w1:1 w:2", "8 channels: b:1x8 p:1x3 r:1x4 r:2 w2:0 w:1x4")
free("LSTM", "two layers", "float[5,2,3] x", """float[3,6] w1, float[1,32,6] wa, float[1,32,8] ra, float[1,16,8] wb,
     float[1,16,4] rb, float[4,4] w2, int64[1] a = {1}""",
     "h = MatMul(x, w1) o = LSTM<hidden_size = 8>(h, wa, ra) m = Squeeze(o, a) p = LSTM<hidden_size = 4>(m, wb, rb) "
     "s = Squeeze(p, a) y = MatMul(s, w2)", "6 channels: w1:1 wa:2", "8 channels: ra:1x4 ra:2 wa:1x4 wb:2",
     "4 channels: rb:1x4 rb:2 w2:0 wb:1x4")
free("GRU", "linear before reset", "float[5,2,3] x", """float[3,6] w1, float[1,24,6] w, float[1,24,8] r,
     float[1,48] b, float[8,4] w2, int64[1] a = {1}""",
     "h = MatMul(x, w1) o = GRU<hidden_size = 8, linear_before_reset = 1>(h, w, r, b) s = Squeeze(o, a) "
     "y = MatMul(s, w2)", "6 channels: w1:1 w:2", "8 channels: b:1x6 r:1x3 r:2 w2:0 w:1x3")
