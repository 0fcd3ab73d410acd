"""Convolutions."""

from models.gradients.row import row

X, W = "double[2,4,5,6] x", "double[6,4,3,3] w"
for form, x, w, how in [
    ("plain", X, W, ""), ("padded", X, W, "pads = [1,1,1,1]"), ("strided", X, W, "pads = [1,0,1,2], strides = [2,3]"),
    ("dilated", X, W, "dilations = [2,1], pads = [2,1,2,1]"), ("wide-pads", X, "double[3,4,1,2] w", "pads = [1,2,0,1]"),
    ("point", X, "double[3,4,1,1] w", ""), ("point-strided", X, "double[3,4,1,1] w", "strides = [2,2]"),
    ("grouped", X, "double[6,2,3,3] w", "group = 2, pads = [1,1,1,1]"),
    ("grouped-strided", X, "double[6,2,3,3] w", "group = 2, strides = [2,2]"),
    ("depthwise", X, "double[4,1,3,3] w", "group = 4, pads = [1,1,1,1]"),
    ("depthwise-strided", X, "double[4,1,3,3] w", "group = 4, pads = [1,1,1,1], strides = [2,2]"),
    ("multiplier", X, "double[8,1,3,3] w", "group = 4"),
    ("same-upper", X, W, 'auto_pad = "SAME_UPPER", strides = [2,2]'), ("same-lower", X, W, 'auto_pad = "SAME_LOWER"'),
    ("one-axis", "double[2,4,7] x", "double[3,4,3] w", "strides = [2]"),
    ("three-axes", "double[1,2,3,4,3] x", "double[2,2,2,2,2] w", ""),
]:  # fmt: skip
    # onnx's evaluator has no grouped ConvTranspose, which the way back needs
    kind = "float32" if form in ("grouped-strided", "depthwise-strided") else "reference"
    row("Conv", form, f"{x}, {w}", f"y = Conv{f'<{how}>' if how else ''}(x, w)", low=-1, high=1.1, runtime=kind)
row("Conv", "bias", f"{X}, {W}, double[6] b", "y = Conv(x, w, b)")
row("Conv", "dynamic", f"double[N,4,H,K] x, {W}", "y = Conv<pads = [1,1,1,1]>(x, w)", sizes={"N": 2, "H": 5, "K": 4})
row("Conv", "dynamic-strided", f"double[N,4,H,K] x, {W}", "y = Conv<strides = [2,2]>(x, w)",
    sizes={"N": 2, "H": 6, "K": 5})  # fmt: skip
T = "double[4,3,3,3] w"
for form, w, how in [
    ("plain", T, ""), ("strided", T, "strides = [2,2], pads = [1,1,1,1], output_padding = [1,0]"),
    ("grouped", T, "group = 2"), ("dilated", T, "dilations = [2,1]"),
    ("output-shape", T, "strides = [2,2], output_shape = [5,9]"),
    ("same-upper", "double[4,3,2,4] w", 'auto_pad = "SAME_UPPER", strides = [2,2]'),
]:  # fmt: skip
    row("ConvTranspose", form, f"double[2,4,3,4] x, {w}", f"y = ConvTranspose{f'<{how}>' if how else ''}(x, w)",
        runtime="float32" if form in ("grouped", "output-shape") else "reference")  # fmt: skip
row("ConvTranspose", "bias", f"double[2,4,3,4] x, {T}, double[3] b", "y = ConvTranspose(x, w, b)")
