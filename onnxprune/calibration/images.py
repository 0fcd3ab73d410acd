"""Images as model inputs: resizing, cropping, normalisation, and what they must be where nobody says it.

x = (pixels * scale - mean) / std        pixels 0 to 255, per channel
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.errors import OptionError
from onnxprune.graph.io import Model
from onnxprune.graph.node import Node, opsets, walk_all
from onnxprune.graph.shapes import Array, fixed
from onnxprune.options import IMAGES, choice, integer, number, numbers, option

SIDE = 224  # pixels, where neither model nor user says
CENTRE = 0.875  # of the shorter side that is kept
MIN_SIDE = 8
MAX_PIXELS = 100_000_000
CACHED = 256 << 20  # bytes of pixels that are kept in memory
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
CHOICES = {
    "layout": dict.fromkeys(("auto", "NCHW", "NHWC"), ""), "channel_order": dict.fromkeys(("auto", "RGB", "BGR"), ""),
}  # fmt: skip
USED = ("data or samples to score",)  # what the options of images need


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


@dataclass(frozen=True)
class Format:
    """How one model takes images; `description` and `fitting` (of files to the input's size) are for the report."""

    height: int
    width: int
    channels: int
    layout: str  # NCHW or NHWC; without N for an input without a batch axis
    batch: int  # images of one run, stacked along N
    dtype: np.dtype[Any]
    scale: float
    mean: Array
    std: Array
    order: str
    resize: int
    crop: tuple[int, int]
    description: str
    fitting: str

    @property
    def batched(self) -> bool:
        """Whether the input has a batch axis."""
        return self.layout.startswith("N")

    def normalise(self, pixels: Array) -> Array:
        """uint8 or float `(h, w, channels)` -> one image, with a batch axis of one where the input has one."""
        x: Array = pixels.astype(np.float32)
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


TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT8, TensorProto.DOUBLE)


def image_axes(info: onnx.ValueInfoProto, layout: str = "auto") -> tuple[str, int, int | None, int | None] | None:
    """(layout, channels, height, width) of an input that may hold images, None for any other; sizes may be unknown."""
    dims = _dims(info)
    if info.type.tensor_type.elem_type not in TYPES or len(dims) not in (3, 4):
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


def sizing(info: onnx.ValueInfoProto, how: Preprocess) -> tuple[str, ...]:
    """Fields of `Preprocess` that say the size of images where the input leaves it open; none where it does not."""
    axes = image_axes(info, how.layout)
    if axes is None or None not in axes[2:]:
        return ()
    return ("crop",) if how.crop else ("image_size",)


def looks_like_image(info: onnx.ValueInfoProto) -> bool:
    """True for a batch of images of one, three or four channels."""
    axes = image_axes(info)
    return axes is not None and axes[0].startswith("N")


def _dims(info: onnx.ValueInfoProto) -> list[int | None]:
    t = info.type.tensor_type
    return [d.dim_value if fixed(d) else None for d in t.shape.dim] if t.HasField("shape") else []


def image_format(
    model: Model, info: onnx.ValueInfoProto, how: Preprocess, size: tuple[int, int] | None = None
) -> Format:
    """How the input takes images. size: (height, width) where model and user leave it open.

    Raises `OptionError` where it takes none, or not as the user says.
    """
    _check(how)
    axes = image_axes(info, how.layout)
    if axes is None:
        shown = ", ".join("?" if d is None else str(d) for d in _dims(info))
        raise OptionError(
            f"input {info.name} of shape ({shown}) takes no images of 1, 3 or 4 channels"
            + (f" in layout {how.layout}" if how.layout != "auto" else "")
            + "; give arrays (.npz), or say --layout NCHW or NHWC"
        )
    layout, channels, height, width = axes
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    said = how.crop or how.image_size
    h, w = height or said or (size or (SIDE, SIDE))[0], width or said or (size or (SIDE, SIDE))[1]
    name = how.preset if how.says_values else guess(model, info)
    base = PRESETS[name or "raw"]
    order = base.order if how.channel_order == "auto" else how.channel_order
    turn = -1 if order != base.order else 1  # a preset's figures belong to its colours
    scale = base.scale if how.scale is None else how.scale
    mean = base.mean[::turn] if how.mean is None else how.mean
    std = base.std[::turn] if how.std is None else how.std
    for flag, given in (("--mean", how.mean), ("--std", how.std)):
        if given is not None and len(given) not in (1, channels):
            raise OptionError(f"{flag} {_numbers(given)}: expected 1 or {channels} numbers, one per channel")
    crop = (how.crop, how.crop) if how.crop else (h, w)
    resize = how.image_size or round(max(crop) / CENTRE)
    if resize < max(crop):
        way = f"give {max(crop)} or more, or a smaller --crop"
        raise OptionError(f"--image-size {resize}: smaller than the crop of {max(crop)} pixels; {way}")
    mean, std = (tuple(_spread(v, channels).tolist()) for v in (mean, std))
    most = min(1e19, float(np.finfo(dtype).max)) if dtype.kind == "f" else np.inf  # squares of more overflow float32
    if np.abs((np.array([[0.0], [255.0]]) * scale - mean) / std).max() > most:
        made = _formula(scale, mean, std)
        raise OptionError(f"--scale, --mean and --std: {made} of pixels leaves what squares of {dtype} can hold")
    values = {"u": "pixels 0 to 255", "i": "pixels - 128"}.get(dtype.kind) or _formula(scale, mean, std)
    description = f"{h}x{w} {order if channels > 1 else 'grey'}, {layout}, {values}"
    if (height is None or width is None) and not said and size is None:
        description += ", the size is open in the model (--image-size says it)"
    if not how.says_values and dtype.kind == "f":
        description += f", normalisation guessed: {name} (give --mean/--std/--scale or a --preset to be sure)"
    fitting = f"shorter side to {resize}, crop {crop[0]}x{crop[1]}"
    batch = (_dims(info)[0] or 1) if layout.startswith("N") else 1
    return Format(
        h, w, channels, layout, batch, dtype, scale, np.array(mean, np.float32), np.array(std, np.float32), order,
        resize, crop, description, fitting,
    )  # fmt: skip


def _check(how: Preprocess) -> None:
    """Raise `OptionError` for values that make no sense for any model."""
    if how.preset is not None and how.preset not in PRESETS:
        raise OptionError(f"--preset {how.preset}: unknown; choose one of {', '.join(PRESETS)}")
    for field, choices in CHOICES.items():
        if getattr(how, field) not in choices:
            raise OptionError(
                f"--{field.replace('_', '-')} {getattr(how, field)}: unknown; choose one of {', '.join(choices)}"
            )
    for flag, size in (("--image-size", how.image_size), ("--crop", how.crop)):
        if size is not None and size < 1:
            raise OptionError(f"{flag} {size}: must be 1 or more")
    numbers = (("--mean", how.mean), ("--std", how.std), ("--scale", None if how.scale is None else (how.scale,)))
    for flag, values in numbers:
        if values is not None and not np.isfinite(values).all():
            raise OptionError(f"{flag} {_numbers(values)}: must be finite")
        if values is not None and flag != "--mean" and not all(values):
            raise OptionError(f"{flag} {_numbers(values)}: must not be zero")
        if values is not None and any(v and not 1e-19 < abs(v) < 1e19 for v in values):
            raise OptionError(f"{flag} {_numbers(values)}: must be within 1e-19 and 1e19, its squares leave float32")


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{v:g}" for v in values)


def _formula(scale: float, mean: Sequence[float], std: Sequence[float]) -> str:
    """`(x/255 - 0.485,0.456,0.406) / 0.229,0.224,0.225`, without what does nothing."""
    text = "x" if scale == 1 else f"x/{1 / scale:g}" if abs(scale) < 1 else f"x*{scale:g}"
    if any(mean):
        text += f" - {_numbers(mean)}"
    if any(v != 1 for v in std):
        text = f"({text}) / {_numbers(std)}" if any(mean) else f"{text} / {_numbers(std)}"
    return text if text != "x" else "x of 0 to 255"


def _spread(values: tuple[float, ...], channels: int) -> Array:
    v: Array = np.array(values, np.float32)
    if len(v) == channels or len(v) == 1:
        return v
    return v.mean(keepdims=True) if channels < len(v) else np.append(v, v[-1:])  # grey, or with transparency


@contextmanager
def _strict(category: type[Warning]) -> Iterator[None]:
    """Warnings of one category are errors, others (odd palettes, odd metadata) are nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", category)
        yield


def decode(data: bytes, name: str, form: Format, rng: np.random.Generator | None) -> Array:
    """One image file as uint8 `(h, w, channels)`; rng: for a random crop and flip. Raises `OptionError`."""
    try:
        from PIL import Image
    except ImportError:
        raise OptionError(f"{name}: images need pillow: pip install 'onnxprune[images]'") from None
    try:
        with _strict(Image.DecompressionBombWarning), Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                size = f"{opened.width}x{opened.height}"
                raise OptionError(f"{name}: {size} pixels are more than {MAX_PIXELS}; make the image smaller")
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

INSIDE = ("Sub", "Div", "Mul", "Add", "BatchNormalization", "ImageScaler", "Affine")
THROUGH = (
    "Transpose", "Pad", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Slice", "Concat", "Reshape",
)  # fmt: skip
STEPS = 8  # nodes between the input and the first convolution
PROBES = (16, 48)  # how many made-up images, pixels of a side
WORST = 10.0  # what one filter can add to a misfit
AS_GOOD = 2.0  # factor of deviations within which imagenet is preferred, of grey images unit


def guess(model: Model, info: onnx.ValueInfoProto) -> str:
    """The preset that fits the first convolution best.

    Integers, and models that normalise inside, get pixels. Where BatchNormalization follows the convolution, its
    recorded moments are compared with those of made-up images; else the convolution's outputs should vary by about one
    (models trained without normalisation may have larger ones, and be misjudged).
    """
    if info.type.tensor_type.elem_type in (TensorProto.UINT8, TensorProto.INT8):
        return "raw"
    nodes = list(walk_all(model.proto.graph, opsets(model.proto)))
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    first = _first(model, info.name, readers)
    if first is None:
        return "unit"
    if first.op in INSIDE:
        return "raw"
    w = _weight(model, first.input(1), {o: n for n in nodes for o in n.outputs})
    axes = image_axes(info)
    if w is None or w.ndim != 4 or axes is None or w.shape[1] % axes[1]:
        return "unit"
    w = w.reshape(len(w), -1, axes[1], *w.shape[2:]).sum(1)  # of space to depth: neighbouring pixels are alike
    if not np.abs(w).max():
        return "imagenet"
    norm = next((n for n in readers.get(first.key, []) if n.op == "BatchNormalization"), None)
    bias = model.weights.get(first.input(2)) if len(first.inputs) > 2 else None
    if norm is not None and norm.input(3) in model.weights and norm.input(4) in model.weights:
        mean, var = (np.asarray(model.weights[norm.input(k)], np.float64) for k in (3, 4))
        return _by_moments(w, mean if bias is None else mean - np.asarray(bias, np.float64), var)
    return _by_deviation(w, np.zeros(len(w)) if bias is None else np.asarray(bias, np.float64))


def _first(model: Model, name: str, readers: dict[str, list[Node]]) -> Node | None:
    """The first convolution of an input, or the operator that normalises it inside the model."""
    front = [name]
    for _ in range(STEPS):
        found = [n for at in front for n in readers.get(at, [])]
        for node in found:
            if node.op in INSIDE and (len(node.inputs) == 1 or any(i in model.weights for i in node.inputs)):
                return node
            if node.op.split("::")[-1] in ("Conv", "FusedConv"):
                return node
        front = list(dict.fromkeys(o for n in found if n.op in THROUGH for o in n.outputs))
    return None


def _weight(model: Model, name: str, makers: dict[str, Node]) -> Array | None:
    """A weight as float64, also a quantised one `(q - zero) * scale`."""
    if name in model.weights:
        return np.asarray(model.weights[name], np.float64)
    node = makers.get(name)
    if node is None or node.op != "DequantizeLinear" or not all(i in model.weights for i in node.inputs if i):
        return None
    q, scale, *zero = (np.asarray(model.weights[i], np.float64) for i in node.inputs if i)
    each = (-1, *[1] * (q.ndim - 1)) if scale.size > 1 else ()
    if scale.size not in (1, len(q)):
        return None
    return np.asarray((q - (zero[0].reshape(each) if zero else 0)) * scale.reshape(each))


@functools.cache
def _probes(channels: int) -> Array:
    """Made-up images `(n, channels, h, w)`, 0 to 255."""
    from onnxprune.calibration.synthetic import dead_leaves, pink  # which normalises with this module

    count, side = PROBES
    textures = [pink((side, side), np.random.default_rng([0, k])) for k in range(8)]
    x = np.stack([dead_leaves((side, side), np.random.default_rng([1, k]), textures) for k in range(count)])
    x = x.mean(-1, keepdims=True) if channels == 1 else np.concatenate([x, x[..., :1]], -1)[..., :channels]
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float64)


def _candidates(channels: int) -> list[str]:
    """Presets that make sense for an image: grey ones are not normalised by colour."""
    return [name for name, preset in PRESETS.items() if channels > 1 or len(preset.mean) == 1]


def _moments(w: Array, preset: Preset) -> tuple[Array, Array]:
    """Mean and variance of every filter's output on made-up images, without bias."""
    channels = w.shape[1]
    x = _probes(channels)
    if preset.order == "BGR" and channels >= 3:
        x = x[:, [2, 1, 0, *range(3, channels)]]
    mean, std = (_spread(v, channels).astype(np.float64).reshape(-1, 1, 1) for v in (preset.mean, preset.std))
    x = (x * preset.scale - mean) / std
    kh, kw = (min(k, PROBES[1]) for k in w.shape[2:])
    patches = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), (2, 3))[:, :, ::3, ::3]
    y = np.tensordot(w[:, :, :kh, :kw], patches, ((1, 2, 3), (1, 4, 5))).reshape(len(w), -1)
    return y.mean(1), y.var(1)


def _by_moments(w: Array, mean: Array, var: Array) -> str:
    """The preset whose outputs have the recorded moments `(out,)` of the BatchNormalization that follows."""

    def misfit(name: str) -> float:
        m, v = _moments(w, PRESETS[name])
        alive = (v > 1e-12) & (var > 1e-12)
        each = np.abs(np.log(v[alive] / var[alive])) + (m[alive] - mean[alive]) ** 2 / var[alive]
        return float(np.minimum(each, WORST).mean()) if alive.any() else WORST

    return min(_candidates(w.shape[1]), key=misfit)


def _by_deviation(w: Array, bias: Array) -> str:
    """The preset whose outputs vary most nearly by one."""
    alive = np.abs(w).max((1, 2, 3)) > 1e-6 * np.abs(w).max()
    distance = {}
    for name in _candidates(w.shape[1]):
        deviation = float(np.sqrt(np.median(_moments(w, PRESETS[name])[1][alive])))
        distance[name] = abs(float(np.log(max(deviation, 1e-12))))
    best = min(distance, key=lambda name: distance[name])
    usual = "imagenet" if "imagenet" in distance else "unit"
    if distance[usual] <= distance[best] + float(np.log(AS_GOOD)):
        return usual
    if best not in ("raw", "caffe") or "caffe" not in distance:
        return best
    sums = w.sum((1, 2, 3)) * 118.0  # of pixels about their mean; biases answer it where nothing subtracts it
    total = float(np.square(sums).sum())
    return "caffe" if total and 1 + float((sums * bias).sum()) / total > 0.5 else "raw"


__all__ = [
    "CACHED",
    "PRESETS",
    "Format",
    "Preprocess",
    "decode",
    "guess",
    "image_axes",
    "image_format",
    "looks_like_image",
    "sizing",
]
