"""Einsum, determinants, transforms."""

from models.gradients.row import row

for form, equation, shapes in [
    ("product", "ij,jk->ik", ("2,3", "3,2")),
    ("three", "ij,jk,k->i", ("2,3", "3,2", "2")),
    ("implicit", "ij,jk", ("2,3", "3,2")),
    ("summed", "ij,jk->k", ("2,3", "3,2")),
    ("ellipsis", "...ij,...jk->...ik", ("2,2,3", "1,3,2")),
    ("transposed", "ij->ji", ("2,3",)),
    ("attention", "bhqd,bhkd->bhqk", ("1,2,3,2", "1,2,2,2")),
    ("outer", "i,j->ij", ("3", "2")),
    ("broadcast", "...i,...i->...", ("1,2,3", "4,1,3")),
    ("diagonal", "ii->i", ("3,3",)),
    ("trace", "iijj,j->i", ("2,2,2,2", "2")),
]:
    names = "abc"[: len(shapes)]
    inputs = ", ".join(f"double[{s}] {k}" for k, s in zip(names, shapes, strict=True))
    row("Einsum", form, inputs, f'y = Einsum<equation = "{equation}">({", ".join(names)})')
row("Det", "one", "double[2,1,1] a", "y = Det(a)")
row("Det", "two", "double[2,2,2] a", "y = Det(a)")
row("Det", "three", "double[3,3] a", "y = Det(a)", outputs="double y")
for form, shape, how, more in [
    ("real", "1,4,2,1", "axis = 1", ""),
    ("complex", "1,3,2", "axis = 1", ""),
    ("onesided", "2,5,1", "axis = 1, onesided = 1", ""),
    ("inverse", "1,4,2", "axis = 1, inverse = 1", ""),
    ("longer", "1,3,1", "axis = 1", ", n"),
]:
    row("DFT", form, f"double[{shape}] a", f"y = DFT<{how}>(a{more})", "int64 n = {5}" if more else "", opset=17)
row("DFT", "axis-input", "double[1,3,2,1] a", "y = DFT(a, , k)", "int64 k = {2}", opset=20)
for opset in (17, 20):
    row(
        "STFT",
        f"window-{opset}",
        "double[1,8,1] a, double[4] w",
        "y = STFT<onesided = 0>(a, s, w, l)",
        "int64 s = {2}, int64 l = {4}",
        opset=opset,
    )
row(
    "STFT",
    "two-sided",
    "double[1,8,1] a",
    "y = STFT<onesided = 0>(a, s, , l)",
    "int64 s = {2}, int64 l = {4}",
    opset=17,
)
for form, shape, how in [
    ("plain", "1,4,6", ""),
    ("strided", "1,4,8", "<strides = [2,1], pads = [0,1,1,0]>"),
    ("dilated", "1,4,3", "<dilations = [2,1]>"),
]:
    row(
        "Col2Im",
        form,
        f"double[{shape}] a",
        f"y = Col2Im{how}(a, i, k)",
        "int64[2] i = {3,4}, int64[2] k = {2,2}",
        opset=18,
    )
