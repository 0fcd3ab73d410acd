"""Bodies."""

from models.gradients.row import row

BRANCHES = """y = If(c) <then_branch = t () => (double[3] u) { u = Mul(a, b) }, else_branch = e () => (double[3] v)
{ w = Exp(a) v = Mul(w, w) }>"""
for form, value in (("then", True), ("else", False)):
    row("If", form, "bool c, double[3] a, double[3] b", BRANCHES, feeds={"c": value})
row("If", "constant", "double[3] a, double[3] b", BRANCHES, "bool c = {1}")
SCAN = """s, y = Scan<num_scan_inputs = 2, {how}
body = r (double[2] h, double[2] x, double[2] z) => (double[2] g, double[2] o)
{{ p = Mul(h, w) q = Add(p, x) g = Tanh(q) o = Mul(g, z) }}>(i, a, b)"""
for form, how in [
    ("forward", ""), ("reverse", "scan_input_directions = [1,0], scan_output_directions = [1],"),
    ("axes", "scan_input_axes = [1,1], scan_output_axes = [1],"),
]:  # fmt: skip
    x = "double[2,3]" if form == "axes" else "double[3,2]"
    row("Scan", form, f"double[2] i, {x} a, {x} b, double[2] w", SCAN.format(how=how), outputs="double[] s, double[] y",
        checked=False, runtime="onnxruntime")  # fmt: skip
row("Scan", "dynamic", "double[2] i, double[T,2] a, double[T,2] b, double[2] w", SCAN.format(how=""),
    outputs="double[] s, double[] y", sizes={"T": 3}, checked=False, runtime="onnxruntime")  # fmt: skip
LOOP = """s, y = Loop(m, c, i) <body = r (int64 k, bool c1, double[2] h) => (bool c2, double[2] g, double[2] o)
{ f = Cast<to = 11>(k) p = Mul(h, w) q = Add(p, f) g = Tanh(q) o = Mul(g, w) c2 = %s }>"""
for form, ends, steps in [
    ("fixed", "Identity(c1)", "int64 m = {3}, bool c = {1}"),
    ("ends", "Less(k, l)", "int64 m = {9}, bool c = {1}, int64 l = {2}"),
]:
    row(
        "Loop",
        form,
        "double[2] i, double[2] w",
        LOOP % ends,
        steps,
        outputs="double[] s, double[] y",
        checked=False,
        single=False,
        runtime="onnxruntime",
    )
