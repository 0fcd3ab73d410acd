"""How pixels become numbers: presets, and the options of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.graph.arrays import Array
from onnxprune.graph.shapes import fixed
from onnxprune.options import IMAGES, choice, integer, number, numbers, option

SIDE = 224  # pixels, where neither model nor user says
MIN_SIDE = 8
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
CHOICES = {
    "layout": dict.fromkeys(("auto", "NCHW", "NHWC"), ""), "channel_order": dict.fromkeys(("auto", "RGB", "BGR"), ""),
}  # fmt: skip
USED = ("data or samples to score",)  # what the options of images need


@dataclass(frozen=True)
class Preset:
    """x = (pixels * scale - mean) / std, pixels 0 to 255, per channel; order: of colours."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: str = "RGB"


PRESETS = {
    "imagenet": Preset(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tf": Preset(1 / 127.5, (1.0,), (1.0,)),
    "unit": Preset(1 / 255, (0.0,), (1.0,)),
    "caffe": Preset(1.0, (103.939, 116.779, 123.68), (1.0,), "BGR"),
    "raw": Preset(1.0, (0.0,), (1.0,)),
}
NAMED = {
    "imagenet": "its mean and deviation", "tf": "-1 to 1", "unit": "0 to 1", "caffe": "BGR minus means",
    "raw": "0 to 255",
}  # fmt: skip


@dataclass(frozen=True)
class Preprocess:
    """What the user says; None and "auto" are chosen from the model.

    image_size: pixels of the shorter side after resizing; crop: of the square cut from the middle.
    """

    preset: str | None = option(
        None, choice(NAMED), panel=IMAGES, metavar="NAME", otherwise="guessed and said", needs=USED,
        help="How pixels become inputs: x = (x * scale - mean) / std of values 0 to 255. "
        + "; ".join(f"{k}: {v}" for k, v in NAMED.items()) + ".",
    )  # fmt: skip
    image_size: int | None = option(
        None, integer("a whole number of pixels", 1), panel=IMAGES, metavar="N", unit="pixels",
        otherwise="input / 0.875", needs=USED, help="The shorter side is resized to N pixels.",
    )  # fmt: skip
    crop: int | None = option(
        None, integer("a whole number of pixels", 1), panel=IMAGES, metavar="N", unit="pixels",
        otherwise="the input's size", needs=USED, help="Pixels of the square that is cut from the middle.",
    )  # fmt: skip
    mean: tuple[float, ...] | None = option(
        None, numbers("numbers separated by commas, one per channel"), panel=IMAGES, metavar="A,B,C", needs=USED,
        otherwise="of the preset", help="Per channel, after --scale.",
    )  # fmt: skip
    std: tuple[float, ...] | None = option(
        None, numbers("numbers separated by commas, one per channel"), panel=IMAGES, metavar="A,B,C", needs=USED,
        otherwise="of the preset", help="Per channel.",
    )  # fmt: skip
    scale: float | None = option(
        None, number("a number, as 0.0039"), panel=IMAGES, metavar="S", otherwise="of the preset", needs=USED,
        help="Factor of the pixels, as 0.0039.",
    )  # fmt: skip
    layout: str = option(
        "auto", choice(CHOICES["layout"]), panel=IMAGES, metavar="NCHW|NHWC", needs=USED,
        help="Order of the axes; auto: by the input's shape.",
    )  # fmt: skip
    channel_order: str = option(
        "auto", choice(CHOICES["channel_order"]), panel=IMAGES, metavar="RGB|BGR", needs=USED,
        help="Of colours; auto: of the preset.",
    )  # fmt: skip

    @property
    def says_values(self) -> bool:
        """Whether anything is said of how pixels become numbers."""
        return any(x is not None for x in (self.preset, self.mean, self.std, self.scale))


IMAGE_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT8, TensorProto.DOUBLE)


def image_axes(info: onnx.ValueInfoProto, layout: str = "auto") -> tuple[str, int, int | None, int | None] | None:
    """(layout, channels, height, width) of an input that may hold images, None for any other; sizes may be unknown."""
    dims = dims_of(info)
    if info.type.tensor_type.elem_type not in IMAGE_TYPES or len(dims) not in (3, 4):
        return None
    if len(dims) == 4 and dims[0] == 0:
        return None
    prefix = "N" if len(dims) == 4 else ""
    first, middle, last = dims[-3], dims[-2], dims[-1]
    for name, channels, h, w in (("CHW", first, middle, last), ("HWC", last, first, middle)):
        if layout not in ("auto", "N" + name):
            continue
        if channels is None and layout != "auto":
            channels = 3
        if channels in CHANNELS and all(s is None or s >= MIN_SIDE for s in (h, w)):
            return prefix + name, int(channels), h, w
    return None


def looks_like_image(info: onnx.ValueInfoProto) -> bool:
    """True for a batch of images of one, three or four channels."""
    axes = image_axes(info)
    return axes is not None and axes[0].startswith("N")


def dims_of(info: onnx.ValueInfoProto) -> list[int | None]:
    """Declared sizes of an input's axes, None for dynamic ones; [] where the rank is unknown."""
    t = info.type.tensor_type
    return [d.dim_value if fixed(d) else None for d in t.shape.dim] if t.HasField("shape") else []


def per_channel(values: tuple[float, ...], channels: int) -> Array:
    """A preset's figures for so many channels, float32 `(1,)` or `(channels,)`: the mean of colours for grey, the last
    once more for transparency."""
    v: Array = np.array(values, np.float32)
    if len(v) == channels or len(v) == 1:
        return v
    return v.mean(keepdims=True) if channels < len(v) else np.append(v, v[-1:])  # grey, or with transparency
