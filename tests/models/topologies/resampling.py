"""Decoders, down- and upsampling, pooling and sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from models.builder import INT_MAX, Builder
from models.topologies.registry import image, stem, tail, topology

# Decoders, up- and downsampling


@topology()
def unet() -> onnx.ModelProto:
    """ConvTranspose decoder with skip concatenations."""
    b = Builder()
    x1 = b.relu(b.bn(b.conv(image(b, size=16), 12, bias=False)))
    x2 = b.relu(b.bn(b.conv(b.op("MaxPool", x1, kernel_shape=[2, 2], strides=[2, 2]), 16, bias=False)))
    x3 = b.relu(b.bn(b.conv(b.op("MaxPool", x2, kernel_shape=[2, 2], strides=[2, 2]), 24, bias=False)))
    y = b.relu(b.bn(b.conv(b.concat(x2, b.deconv(x3, 16)), 16, bias=False)))
    y = b.relu(b.bn(b.conv(b.concat(b.deconv(y, 12), x1), 12, bias=False)))
    return b.model(b.conv(y, 2, 1))


@topology()
def deconv_grouped() -> onnx.ModelProto:
    """Grouped ConvTranspose, then one that is depthwise (bilinear upsampling)."""
    b = Builder()
    h = b.relu(b.deconv(stem(b, 16), 24, group=4))
    h = b.deconv(h, 24, 4, group=24, pads=[1, 1, 1, 1])
    return b.model(b.conv(h, 3))


@topology()
def deconv_output_padding() -> onnx.ModelProto:
    b = Builder()
    h = b.relu(b.bn(b.deconv(stem(b), 20, 3, pads=[1, 1, 1, 1], output_padding=[1, 1])))
    h = b.relu(b.deconv(h, 12, 3, stride=1, output_shape=[16, 16], auto_pad="SAME_UPPER"))
    return b.model(b.conv(h, 3))


@topology()
def dcgan_generator() -> onnx.ModelProto:
    """A Gemm's features become channels and space: Reshape to (-1, 24, 4, 4)."""
    b = Builder()
    h = b.relu(b.bn(b.linear(b.relu(b.linear(b.input("noise", ("batch", 8)), 20)), 24 * 16)))
    h = b.reshape(h, -1, 24, 4, 4)
    h = b.relu(b.bn(b.deconv(b.declare(h, ("batch", 24, 4, 4)), 16, 4, pads=[1, 1, 1, 1])))
    return b.model(b.op("Tanh", b.deconv(h, 3, 4, pads=[1, 1, 1, 1])))


@topology("depth_to_space_dcr", mode="DCR")
@topology("depth_to_space_crd", mode="CRD")
def depth_to_space(*, mode: str) -> onnx.ModelProto:
    """PixelShuffle upsampler between two convolutions."""
    b = Builder()
    h = b.op("DepthToSpace", b.conv(stem(b), 32), blocksize=2, mode=mode)
    return b.model(b.conv(b.relu(b.conv(b.relu(h), 12)), 3))


@topology()
def pixel_shuffle_reshape() -> onnx.ModelProto:
    """(N, C * r * r, H, W) by Reshape, Transpose, Reshape, and the same back (PixelUnshuffle)."""
    b = Builder()
    h = b.conv(stem(b), 32)
    h = b.transpose(b.reshape(h, b.size(h, 0), 8, 2, 2, 8, 8), 0, 1, 4, 2, 5, 3)
    h = b.relu(b.conv(b.reshape(h, -1, 8, 16, 16), 12))
    h = b.transpose(b.reshape(h, b.size(h, 0), 12, 8, 2, 8, 2), 0, 1, 3, 5, 2, 4)
    return b.model(b.conv(b.reshape(h, -1, 48, 8, 8), 3))


@topology()
def space_to_depth() -> onnx.ModelProto:
    b = Builder()
    h = b.op("SpaceToDepth", stem(b, 12), blocksize=2)
    return b.model(tail(b, h))


@topology()
def focus_slices() -> onnx.ModelProto:
    """YOLOv5's Focus, on hidden channels: four strided slices, Concat."""
    b = Builder()
    h = stem(b, 12)
    starts = [(0, 0), (1, 0), (0, 1), (1, 1)]
    parts = [b.op("Slice", h, list(s), [INT_MAX, INT_MAX], [2, 3], [2, 2]) for s in starts]
    return b.model(tail(b, b.concat(*parts)))


@topology("resize_sizes", form="sizes")
@topology("resize_sizes_computed", form="computed")
@topology("resize_scales", form="scales")
@topology("resize_opset10", form="scales", opset=10)
@topology("resize_axes_opset18", form="axes", opset=18)
@topology("upsample_opset9", form="upsample", opset=9)
@topology("upsample_opset7", form="upsample", opset=7)
def resize(*, form: str, opset: int = 17) -> onnx.ModelProto:
    """FPN top-down path: a coarse map is resized and added to a fine one; `sizes` holds the channels too."""
    b = Builder(opset)
    fine = stem(b)
    coarse = b.relu(b.conv(fine, 24, stride=2))
    lateral, top = b.conv(fine, 16, 1), b.conv(coarse, 16, 1)
    up = [1.0, 1.0, 2.0, 2.0]
    if form == "sizes":
        batch = b.unsqueeze(b.size(top, 0), 0)
        top = b.op("Resize", top, "", "", b.concat(batch, b.const([16, 8, 8]), axis=0), mode="nearest")
    elif form == "computed":
        sizes = b.dims(b.size(top, 0), b.size(top, 1), b.size(lateral, 2), b.size(lateral, 3))
        top = b.op("Resize", top, "", "", sizes, mode="nearest")
    elif form == "axes":
        top = b.op("Resize", top, "", [2.0, 2.0], mode="nearest", axes=[2, 3])
    elif form == "upsample" and opset < 9:
        top = b.op("Upsample", top, scales=up, mode="nearest")
    else:
        roi = [""] if opset > 10 else []
        top = b.op("Upsample" if form == "upsample" else "Resize", top, *roi, up, mode="nearest")
    return b.model(tail(b, b.add(lateral, b.declare(top, ("batch", 16, 8, 8)))), b.conv(coarse, 4))


@topology()
def resize_sizes_baked() -> onnx.ModelProto:
    """Everything constant: `sizes` is [1, 16, 16, 16]."""
    b = Builder()
    h = b.relu(b.conv(b.relu(b.conv(b.input("input", (1, 3, 8, 8)), 12)), 16))
    h = b.op("Resize", h, "", "", b.param(np.array([1, 16, 16, 16])), mode="linear")
    return b.model(b.conv(b.relu(b.conv(h, 12)), 3))


@topology("average_pool", kind="AveragePool")
@topology("average_pool_ceil_include_pad", kind="AveragePool", count_include_pad=1, ceil_mode=1)
@topology("max_pool", kind="MaxPool")
@topology("lp_pool", kind="LpPool", p=2)
def pool(*, kind: str, **attributes: Any) -> onnx.ModelProto:
    b = Builder()
    h = b.op(kind, stem(b), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], **attributes)
    h = b.op("GlobalMaxPool", b.relu(b.conv(h, 24)))
    return b.model(b.linear(b.flatten(h), 10))


@topology()
def max_unpool() -> onnx.ModelProto:
    """SegNet: the indices of a MaxPool place the values again."""
    b = Builder()
    h = stem(b)
    y, indices = b.ops("MaxPool", h, n=2, kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("MaxUnpool", b.relu(b.conv(y, 16)), indices, kernel_shape=[2, 2], strides=[2, 2])
    return b.model(b.conv(b.relu(b.conv(b.declare(y, ("batch", 16, 8, 8)), 12)), 3))


@topology()
def grid_sample() -> onnx.ModelProto:
    """Spatial transformer: a localisation net predicts two offsets per pixel."""
    b = Builder()
    x = stem(b)
    offsets = b.op("Tanh", b.transpose(b.conv(b.relu(b.conv(x, 8)), 2), 0, 2, 3, 1))
    y = b.declare(b.op("GridSample", x, offsets, align_corners=0), ("batch", 16, 8, 8))
    return b.model(tail(b, y))


@topology()
def roi_align() -> onnx.ModelProto:
    """Two-stage detector: boxes are an input, pooled features are flattened into Gemms."""
    b = Builder(16)
    x = b.relu(b.conv(stem(b), 16))
    boxes, index = b.input("boxes", (5, 4)), b.param(np.zeros(5, np.int64))
    y = b.op("RoiAlign", x, boxes, index, output_height=3, output_width=3, sampling_ratio=2)
    flat = b.declare(b.flatten(b.declare(y, (5, 16, 3, 3))), (5, 144))
    h = b.relu(b.linear(flat, 24))
    return b.model(b.linear(h, 6), b.linear(h, 8))


@topology()
def col2im() -> onnx.ModelProto:
    """nn.Fold: the columns are C * k * k."""
    b = Builder(18)
    h = b.conv(stem(b), 32, 2, stride=2, pad=0)
    columns = b.reshape(h, 0, 32, -1)
    y = b.op("Col2Im", columns, [8, 8], [2, 2], strides=[2, 2])
    return b.model(tail(b, b.declare(y, ("batch", 8, 8, 8))))


@topology("deform_conv_opset19", opset=19)
@topology("deform_conv_opset22", opset=22)
def deform_conv(*, opset: int) -> onnx.ModelProto:
    """The offsets' 2 * 9 channels and the mask's 9 are fixed; input and output channels are not."""
    b = Builder(opset)
    x = stem(b)
    offset, mask = b.conv(x, 18), b.sigmoid(b.conv(x, 9))
    weight, bias = b.param(b.he(20, 16, 3, 3)), b.vec(20)
    sizes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    y = b.op("DeformConv", x, weight, offset, bias, mask, **sizes)
    return b.model(tail(b, b.relu(b.declare(y, ("batch", 20, 8, 8)))))
