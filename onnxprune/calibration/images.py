"""Images as model inputs: resizing, cropping, normalisation, and what they must be where nobody says it.

x = (pixels * scale - mean) / std        pixels 0 to 255, per channel
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxprune.calibration.guess import (
    guess,
)
from onnxprune.calibration.presets import (
    CHANNELS,
    CHOICES,
    PRESETS,
    SIDE,
    Preprocess,
    dims_of,
    image_axes,
    per_channel,
)
from onnxprune.errors import OptionError
from onnxprune.graph.arrays import Array
from onnxprune.graph.io import Model

CENTRE = 0.875  # of the shorter side that is kept
MAX_PIXELS = 100_000_000
CACHED = 256 << 20  # bytes of pixels that are kept in memory


@dataclass(frozen=True)
class ImageFormat:
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


def sizing(info: onnx.ValueInfoProto, preprocess: Preprocess) -> tuple[str, ...]:
    """Fields of `Preprocess` that say the size of images where the input leaves it open; none where it does not."""
    axes = image_axes(info, preprocess.layout)
    if axes is None or None not in axes[2:]:
        return ()
    return ("crop",) if preprocess.crop else ("image_size",)


def image_format(
    model: Model, info: onnx.ValueInfoProto, preprocess: Preprocess, size: tuple[int, int] | None = None
) -> ImageFormat:
    """How the input takes images. size: (height, width) where model and user leave it open.

    Raises `OptionError` where it takes none, or not as the user says.
    """
    _check(preprocess)
    axes = image_axes(info, preprocess.layout)
    if axes is None:
        shown = ", ".join("?" if d is None else str(d) for d in dims_of(info))
        raise OptionError(
            f"input {info.name} of shape ({shown}) takes no images of 1, 3 or 4 channels"
            + (f" in layout {preprocess.layout}" if preprocess.layout != "auto" else "")
            + "; give arrays (.npz), or say --layout NCHW or NHWC"
        )
    layout, channels, height, width = axes
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    stated = preprocess.crop or preprocess.image_size
    h, w = height or stated or (size or (SIDE, SIDE))[0], width or stated or (size or (SIDE, SIDE))[1]
    name = preprocess.preset if preprocess.says_values else guess(model, info)
    base = PRESETS[name or "raw"]
    order = base.order if preprocess.channel_order == "auto" else preprocess.channel_order
    turn = -1 if order != base.order else 1  # a preset's figures belong to its colours
    scale = base.scale if preprocess.scale is None else preprocess.scale
    mean = base.mean[::turn] if preprocess.mean is None else preprocess.mean
    std = base.std[::turn] if preprocess.std is None else preprocess.std
    for flag, given in (("--mean", preprocess.mean), ("--std", preprocess.std)):
        if given is not None and len(given) not in (1, channels):
            raise OptionError(f"{flag} {_numbers(given)}: expected 1 or {channels} numbers, one per channel")
    crop = (preprocess.crop, preprocess.crop) if preprocess.crop else (h, w)
    resize = preprocess.image_size or round(max(crop) / CENTRE)
    if resize < max(crop):
        way = f"give {max(crop)} or more, or a smaller --crop"
        raise OptionError(f"--image-size {resize}: smaller than the crop of {max(crop)} pixels; {way}")
    mean, std = (tuple(per_channel(v, channels).tolist()) for v in (mean, std))
    most = min(1e19, float(np.finfo(dtype).max)) if dtype.kind == "f" else np.inf  # squares of more overflow float32
    if np.abs((np.array([[0.0], [255.0]]) * scale - mean) / std).max() > most:
        formula = _formula(scale, mean, std)
        raise OptionError(f"--scale, --mean and --std: {formula} of pixels leaves what squares of {dtype} can hold")
    values = {"u": "pixels 0 to 255", "i": "pixels - 128"}.get(dtype.kind) or _formula(scale, mean, std)
    description = f"{h}x{w} {order if channels > 1 else 'grey'}, {layout}, {values}"
    if (height is None or width is None) and not stated and size is None:
        description += ", the size is open in the model (--image-size says it)"
    if not preprocess.says_values and dtype.kind == "f":
        description += f", normalisation guessed: {name} (give --mean/--std/--scale or a --preset to be sure)"
    fitting = f"shorter side to {resize}, crop {crop[0]}x{crop[1]}"
    batch = (dims_of(info)[0] or 1) if layout.startswith("N") else 1
    return ImageFormat(
        h, w, channels, layout, batch, dtype, scale, np.array(mean, np.float32), np.array(std, np.float32), order,
        resize, crop, description, fitting,
    )  # fmt: skip


def _check(preprocess: Preprocess) -> None:
    """Raise `OptionError` for values that make no sense for any model."""
    if preprocess.preset is not None and preprocess.preset not in PRESETS:
        raise OptionError(f"--preset {preprocess.preset}: unknown; choose one of {', '.join(PRESETS)}")
    for field, choices in CHOICES.items():
        if getattr(preprocess, field) not in choices:
            raise OptionError(
                f"--{field.replace('_', '-')} {getattr(preprocess, field)}: unknown; choose one of {', '.join(choices)}"
            )
    for flag, size in (("--image-size", preprocess.image_size), ("--crop", preprocess.crop)):
        if size is not None and size < 1:
            raise OptionError(f"{flag} {size}: must be 1 or more")
    scale = None if preprocess.scale is None else (preprocess.scale,)
    numbers = (("--mean", preprocess.mean), ("--std", preprocess.std), ("--scale", scale))
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


class _Strict:
    """Warnings of one category are errors, others (odd palettes, odd metadata) are nothing, while any thread is inside:
    what Python does with warnings holds for all threads, so that the last one out restores it."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, warnings.catch_warnings()

    @contextmanager
    def __call__(self, category: type[Warning]) -> Iterator[None]:
        with self.lock:
            if not self.inside:
                self.before = warnings.catch_warnings()
                self.before.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", category)
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if not self.inside:
                    self.before.__exit__(None, None, None)


_strict = _Strict()


def decode_image(data: bytes, name: str, form: ImageFormat, rng: np.random.Generator | None) -> Array:
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
