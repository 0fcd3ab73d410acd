"""Rows of operators with bodies."""

from __future__ import annotations

from models.rules.row import free

# fmt: off

_WEIGHTS = "float[8,3,1,1] w1, float[4,8,1,1] w2, float[4,8,1,1] w3"
free("If", "captures", "float[2,3,6,6] x, bool c", _WEIGHTS, """h = Conv(x, w1)
     y = If<then_branch = t () => (float[2,4,6,6] p) { p = Conv(h, w2) },
            else_branch = e () => (float[2,4,6,6] q) { r = Relu(h) q = Conv(r, w3) }>(c)""",
     "8 channels: w1:0 w2:1 w3:1")
free("If", "captures, the other branch runs", "float[2,3,6,6] x, bool c", _WEIGHTS, """h = Conv(x, w1) d = Not(c)
     y = If<then_branch = t () => (float[2,4,6,6] p) { p = Conv(h, w2) },
            else_branch = e () => (float[2,4,6,6] q) { r = Relu(h) q = Conv(r, w3) }>(d)""",
     "8 channels: w1:0 w2:1 w3:1")
free("If", "passes on", "float[2,3,6,6] x, bool c", _WEIGHTS, """h = Conv(x, w1)
     k = If<then_branch = t () => (float[2,8,6,6] p) { p = Relu(h) },
            else_branch = e () => (float[2,8,6,6] q) { q = Neg(h) }>(c) y = Conv(k, w2)""", "8 channels: w1:0 w2:1")
free("If", "branches of different shapes", "float[2,3,6,6] x, bool c", "float[8,3,1,1] w1, int64[1] a = {1}",
     """h = Conv(x, w1)
     k = If<then_branch = t () => (float[2,8,6,6] p) { p = Relu(h) },
            else_branch = e () => (float[2,1,6,6] q) { q = ReduceSum(h, a) }>(c) y = ReduceSum(k, a)""",
     "w1:0 pinned: branches of If return different shapes")
free("If", "holds both layers", "float[2,3,6,6] x, bool c", _WEIGHTS, """
     y = If<then_branch = t () => (float[2,4,6,6] p) { h = Conv(x, w1) r = Relu(h) p = Conv(r, w2) },
            else_branch = e () => (float[2,4,6,6] q) { i = Conv(x, w1) j = Neg(i) q = Conv(j, w3) }>(c)""",
     "8 channels: w1:0 w2:1 w3:1")
free("Loop", "captures, and holds both layers", "float[2,3,6,6] x, bool c",
     f"{_WEIGHTS}, float[8,4,1,1] w4, int64 n = {{3}}",
     """h = Conv(x, w1) z = Conv(h, w2)
     o = Loop<body = b (int64 i, bool ci, float[2,4,6,6] s) => (bool co, float[2,4,6,6] so) {
         p = Conv(s, w4) a = Add(p, h) r = Relu(a) so = Conv(r, w3) co = Identity(ci) }>(n, c, z)
     y = Neg(o)""", "8 channels: w1:0 w2:1 w3:1 w4:0", "w2:0 pinned: passes through Loop",
     "w3:0 pinned: enters or leaves a body of Loop")
free("Loop", "carries", "float[2,3,6,6] x, bool c", f"{_WEIGHTS}, int64 n = {{3}}", """h = Conv(x, w1)
     o, t = Loop<body = b (int64 i, bool ci, float[2,8,6,6] s) => (bool co, float[2,8,6,6] so, float[2,8,6,6] sc) {
         so = Relu(s) sc = Identity(so) co = Identity(ci) }>(n, c, h)
     y = Conv(o, w2)""", "w1:0 pinned: passes through Loop")
free("Scan", "holds both layers", "float[5,3] x, float[4] s0", "float[3,8] w1, float[8,4] w2", """
     e, y = Scan<num_scan_inputs = 1, body = b (float[4] s, float[3] i) => (float[4] so, float[4] o) {
         h = MatMul(i, w1) r = Relu(h) a = MatMul(r, w2) so = Add(s, a) o = Identity(so) }>(s0, x)""",
     "8 channels: w1:1 w2:0", "w2:1 pinned: enters or leaves a body of Scan")
free("Scan", "scans", "float[5,3] x, float[4] s0", "float[3,8] w1, float[8,4] w2", """h = MatMul(x, w1)
     e, y = Scan<num_scan_inputs = 1, body = b (float[4] s, float[8] i) => (float[4] so, float[4] o) {
         a = MatMul(i, w2) so = Add(s, a) o = Identity(so) }>(s0, h)""", "w1:1 pinned: passes through Scan",
     "w2:1 pinned: enters or leaves a body of Scan")
