"""Images as model inputs: resizing, cropping, normalisation, and what they must be where nobody says it.

x = (pixels * scale - mean) / std        pixels 0 to 255, per channel
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.errors import OptionError
from onnxprune.graph.io import Model
from onnxprune.graph.node import Node, opsets, walk
from onnxprune.graph.shapes import Array, fixed

SIDE = 224  # pixels, where neither model nor user says
CENTRE = 0.875  # of the shorter side that is kept
MIN_SIDE = 8
MAX_PIXELS = 100_000_000
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Preset:
    """scale, mean, std: see the module's docstring; order: of colours."""

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


@dataclass(frozen=True)
class Preprocess:
    """What the user says; None and "auto" are chosen from the model.

    image_size: pixels of the shorter side after resizing; crop: of the square cut from the middle.
    """

    preset: str | None = None
    image_size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    layout: str = "auto"
    channel_order: str = "auto"

    @property
    def says_values(self) -> bool:
        """Whether anything is said of how pixels become numbers."""
        return any(x is not None for x in (self.preset, self.mean, self.std, self.scale))


@dataclass(frozen=True)
class Format:
    """How one model takes images; `description` is for the report."""

    height: int
    width: int
    channels: int
    layout: str  # NCHW or NHWC; without N for an input without a batch axis
    batched: bool
    dtype: np.dtype[Any]
    scale: float
    mean: Array
    std: Array
    order: str
    resize: int
    crop: tuple[int, int]
    description: str

    def normalise(self, pixels: Array) -> Array:
        """uint8 or float `(h, w, channels)` -> one sample, with a batch axis of one where the input has one."""
        x = pixels.astype(np.float32)
        if self.order == "BGR" and self.channels >= 3:
            x = x[..., [2, 1, 0, *range(3, self.channels)]]
        if self.dtype == np.int8:
            x = x - 128
        elif self.dtype != np.uint8:
            x = (x * self.scale - self.mean) / self.std
        if self.layout.endswith("CHW"):
            x = x.transpose(2, 0, 1)
        if self.dtype.kind in "iu":
            x = np.rint(x)
        out = np.ascontiguousarray(x.astype(self.dtype))
        return out[None] if self.batched else out


def image_axes(info: onnx.ValueInfoProto, layout: str = "auto") -> tuple[str, int, int | None, int | None] | None:
    """(layout, channels, height, width) of an input that may hold an image, None for any other; sizes may be unknown."""
    t = info.type.tensor_type
    dims = [d.dim_value if fixed(d) else None for d in t.shape.dim] if t.HasField("shape") else []
    if t.elem_type not in (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.UINT8,
        TensorProto.INT8,
        TensorProto.DOUBLE,
    ):
        return None
    if len(dims) not in (3, 4) or (len(dims) == 4 and dims[0] not in (None, 1)):
        return None
    prefix = "N" if len(dims) == 4 else ""
    first, middle, last = dims[-3], dims[-2], dims[-1]
    for name, channels, h, w in (("CHW", first, middle, last), ("HWC", last, first, middle)):
        if layout != "auto" and layout.removeprefix("N") != name:
            continue
        if channels in CHANNELS and all(s is None or s >= MIN_SIDE for s in (h, w)):
            return prefix + name, int(channels), h, w
    return None


def looks_like_image(info: onnx.ValueInfoProto) -> bool:
    """True for a batch of images of one, three or four channels."""
    axes = image_axes(info)
    return axes is not None and axes[0].startswith("N")


def image_format(model: Model, info: onnx.ValueInfoProto, how: Preprocess) -> Format:
    """How the input takes images. Raises `OptionError` where it takes none, or not as the user says."""
    if how.preset is not None and how.preset not in PRESETS:
        raise OptionError(f"--preset {how.preset}: unknown; choose one of {', '.join(PRESETS)}")
    axes = image_axes(info, how.layout)
    if axes is None:
        shape = [d.dim_value if fixed(d) else d.dim_param or "?" for d in info.type.tensor_type.shape.dim]
        raise OptionError(
            f"input {info.name} of shape {shape} takes no images of 1, 3 or 4 channels"
            + (f" in layout {how.layout}" if how.layout != "auto" else "")
            + "; give arrays (.npz), or say --layout NCHW or NHWC"
        )
    layout, channels, height, width = axes
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    free = how.crop or how.image_size or SIDE
    h, w = height or free, width or free
    name, guessed = how.preset, ""
    if not how.says_values:
        name = guess_preset(model, info, dtype)
        guessed = ", normalisation guessed (--preset, --mean, --std and --scale say it)"
    base = PRESETS[name] if name else PRESETS["raw"]
    scale = base.scale if how.scale is None else how.scale
    mean = base.mean if how.mean is None else how.mean
    std = base.std if how.std is None else how.std
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels) and values not in (base.mean, base.std):
            raise OptionError(f"{option} {values}: expected 1 or {channels} numbers, one per channel")
    if not all(std):
        raise OptionError(f"--std {std}: must not be zero")
    order = base.order if how.channel_order == "auto" else how.channel_order
    crop = (how.crop, how.crop) if how.crop else (h, w)
    resize = how.image_size or (round(max(h, w) / CENTRE) if not how.crop else round(how.crop / CENTRE))
    if resize < max(crop):
        raise OptionError(f"--image-size {resize}: smaller than the crop of {max(crop)} pixels")
    values = "0 to 255" if dtype.kind in "iu" else name or "as given"
    description = f"{h}x{w} {order if channels > 1 else 'grey'}, {layout}, values {values}{guessed}"
    return Format(
        h, w, channels, layout, layout.startswith("N"), dtype, scale, _spread(mean, channels), _spread(std, channels),
        order, resize, crop, description,
    )  # fmt: skip


def _spread(values: tuple[float, ...], channels: int) -> Array:
    v = np.array(values, np.float32)
    if len(v) == channels or len(v) == 1:
        return v
    return v.mean(keepdims=True) if channels < len(v) else np.append(v, v[-1:])  # grey, or with transparency


def decode(data: bytes, name: str, form: Format, rng: np.random.Generator | None) -> Array:
    """One image file as uint8 `(h, w, channels)`; rng: for a random crop and flip. Raises `OptionError`."""
    try:
        from PIL import Image
    except ImportError:
        raise OptionError("images need pillow: pip install 'onnxprune[images]'") from None
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise OptionError(f"{name}: {opened.width}x{opened.height} pixels are more than {MAX_PIXELS}")
            image = opened.convert(CHANNELS[form.channels])
    except OptionError:
        raise
    except Exception as e:  # whatever a broken file makes pillow raise
        raise OptionError(f"{name}: cannot be read as an image ({type(e).__name__}: {e})") from e
    w, h = image.size
    box: tuple[float, float, float, float] | None = None
    if rng is not None:
        area, aspect = w * h * rng.uniform(0.6, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        cw, ch = min(w, round((area * aspect) ** 0.5)), min(h, round((area / aspect) ** 0.5))
        x, y = rng.integers(0, w - cw + 1), rng.integers(0, h - ch + 1)
        box = (float(x), float(y), float(x + cw), float(y + ch))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            box = (w - box[2], box[1], w - box[0], box[3])
    elif (h, w) != (form.height, form.width):
        unit = min(w, h) / form.resize  # pixels of the file per pixel of the resized image
        cw, ch = min(form.crop[1] * unit, w), min(form.crop[0] * unit, h)
        box = ((w - cw) / 2, (h - ch) / 2, (w + cw) / 2, (h + ch) / 2)
    if box is not None:
        image = image.resize((form.width, form.height), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


# ---------------------------------------------------------------------------------------------------------------------
# Guessing
# ---------------------------------------------------------------------------------------------------------------------

PIXEL_STD = 64.0  # of natural images, 0 to 255
INSIDE = ("Sub", "Div", "Mul", "Add", "BatchNormalization", "ImageScaler", "Affine")
THROUGH = ("Transpose", "Pad", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Slice", "Concat")


def guess_preset(model: Model, info: onnx.ValueInfoProto, dtype: np.dtype[Any]) -> str:
    """The preset that fits the first layer best.

    Integers, and models that normalise inside, get pixels. Where BatchNormalization follows the first convolution, its
    recorded variance tells the scale of the inputs; else that the convolution's outputs should vary by about one (models
    trained without normalisation may have larger ones, and be misjudged).
    """
    if dtype.kind in "iu":
        return "raw"
    nodes = list(walk(model.proto.graph, opsets(model.proto)))
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    at, conv = info.name, None
    for _ in range(8):
        first = next(iter(readers.get(at, [])), None)
        if first is None:
            break
        if first.op in INSIDE:
            return "raw"
        if first.op == "Conv" and first.input(1) in model.weights:
            conv = first
            break
        if first.op not in THROUGH:
            break
        at = first.key
    if conv is None:
        return "unit"
    w = np.asarray(model.weights[conv.input(1)], np.float64)
    flat = w.reshape(len(w), -1)
    # neighbouring pixels are alike: the mean of a patch varies most
    sums = w.reshape(len(w), w.shape[1], -1).sum(2)
    energy = 0.8 * np.square(sums.sum(1)) + 0.2 * np.square(flat).sum(1)
    alive = energy > 1e-12
    if not alive.any():
        return "imagenet"
    norm = next((n for n in readers.get(conv.key, []) if n.op == "BatchNormalization"), None)
    expected = np.ones(len(w))
    if norm is not None and norm.input(4) in model.weights:
        expected = np.sqrt(np.asarray(model.weights[norm.input(4)], np.float64) + 1e-12)
    ratio = expected[alive] / np.sqrt(energy[alive])  # the standard deviation that the inputs should have
    wanted = float(np.exp(np.median(np.log(np.maximum(ratio, 1e-12)))))
    spread = {k: PIXEL_STD * p.scale / float(np.mean(p.std)) for k, p in PRESETS.items()}
    if wanted > 10:  # pixels as they are
        return "raw" if abs(_offset(model, conv, norm)) < 0.5 else "caffe"
    return min(("imagenet", "tf", "unit"), key=lambda k: abs(np.log(wanted / spread[k])))


def _offset(model: Model, conv: Node, norm: Node | None) -> float:
    """Whether the biases answer a mean of the pixels (about -1 for pixels from 0 to 255) or none (0)."""
    w = np.asarray(model.weights[conv.input(1)], np.float64)
    sums = w.reshape(len(w), -1).sum(1) * 118.0
    if norm is not None and norm.input(3) in model.weights:
        bias = -np.asarray(model.weights[norm.input(3)], np.float64)
    elif conv.input(2) in model.weights:
        bias = np.asarray(model.weights[conv.input(2)], np.float64)
    else:
        return 0.0
    total = float(np.square(sums).sum())
    return 1.0 + float((sums * bias).sum()) / total if total else 0.0


__all__ = ["PRESETS", "Format", "Preprocess", "decode", "guess_preset", "image_format", "looks_like_image", "replace"]
