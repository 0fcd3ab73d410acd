"""Options of the command line that several commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxprune.calibrated import ALLOCATIONS, IMPORTANCES
from onnxprune.calibration.images import PRESETS, Preprocess
from onnxprune.errors import OptionError
from onnxprune.evaluation import METRICS
from onnxprune.plan import RECOVERIES
from onnxprune.solvers.sparse import SOLVERS
from onnxprune.sparsity.cluster import PER, STORAGES
from onnxprune.sparsity.masks import ALLOCATORS as SPARSE_ALLOCATORS
from onnxprune.sparsity.masks import DATA_ALLOCATORS
from onnxprune.sparsity.stage import FORMATS
from onnxprune.sparsity.values import VALUES

Choice = Enum("Choice", {name: name for name in IMPORTANCES}, type=str)  # type: ignore[misc]
Allocation = Enum("Allocation", {name: name for name in ALLOCATIONS}, type=str)  # type: ignore[misc]
Scored = Enum("Scored", {name: name for name in METRICS}, type=str)  # type: ignore[misc]
Preset = Enum("Preset", {name: name for name in PRESETS}, type=str)  # type: ignore[misc]
Layout = Enum("Layout", {name: name for name in ("auto", "NCHW", "NHWC")}, type=str)  # type: ignore[misc]
Order = Enum("Order", {name: name for name in ("auto", "RGB", "BGR")}, type=str)  # type: ignore[misc]
Recovery = Enum("Recovery", {name: name for name in RECOVERIES}, type=str)  # type: ignore[misc]

Format = Enum("Format", {name: name for name in FORMATS}, type=str)  # type: ignore[misc]
Solver = Enum("Solver", {name: name for name in SOLVERS}, type=str)  # type: ignore[misc]
SparseAllocation = Enum("SparseAllocation", {name: name for name in (*SPARSE_ALLOCATORS, *DATA_ALLOCATORS)}, type=str)  # type: ignore[misc]

Values = Enum("Values", {name: name for name in VALUES}, type=str)  # type: ignore[misc]
Per = Enum("Per", {name: name for name in PER}, type=str)  # type: ignore[misc]
Indices = Enum("Indices", {name: name for name in STORAGES}, type=str)  # type: ignore[misc]

FLOAT32 = Values("float32")
AUTO = Format("auto")

WHAT, HOW, CHECK, OUTPUT = "What to remove", "How to choose", "Checks and measurement", "Files and output"
SPARSE, DATA, IMAGES = "Sparse weights", "Calibration and evaluation", "Images"

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.", show_default=False)]
JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", rich_help_panel=OUTPUT, help="Write the report as JSON; - for standard output."
    ),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME:1,3,224,224",
        rich_help_panel=CHECK,
        help="Concrete shape of a dynamic input, for the analysis, MACs and the check. Repeatable.",
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", rich_help_panel=OUTPUT, help="Name every group and everything pinned.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Print nothing but errors.")]


CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="SRC",
        rich_help_panel=DATA,
        help="Unlabelled samples, a few hundred: .npz or .npy (first axis: samples), a folder or zip of .npy or of "
        "images, or the word synthetic.",
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        "--samples",
        metavar="N",
        min=1,
        rich_help_panel=DATA,
        show_default="256 to 1024, by the model's MACs",
        help="At most so many of them, evenly spread.",
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="FILE", rich_help_panel=DATA, help="Labels of --evaluate: .npy, .txt, .csv, .json."
    ),
]
MetricOption = Annotated[
    Scored | None,
    typer.Option(
        "--metric",
        rich_help_panel=DATA,
        show_default="top1 with labels, else agreement or mse",
        help="; ".join(f"{k}: {v.summary}" for k, v in METRICS.items()) + ".",
    ),
]
PresetOption = Annotated[
    Preset | None,
    typer.Option(
        "--preset",
        rich_help_panel=IMAGES,
        show_default="guessed and said",
        help="How pixels become inputs: x = (x * scale - mean) / std of values 0 to 255. imagenet: its mean and "
        "deviation; tf: -1 to 1; unit: 0 to 1; caffe: BGR minus means; raw: 0 to 255.",
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option("--image-size", metavar="N", min=1, rich_help_panel=IMAGES, show_default="input / 0.875",
                 help="The shorter side is resized to N pixels."),
]  # fmt: skip
CropOption = Annotated[
    int | None,
    typer.Option("--crop", metavar="N", min=1, rich_help_panel=IMAGES, show_default="the input's size",
                 help="Pixels of the square that is cut from the middle."),
]  # fmt: skip
MeanOption = Annotated[
    str | None, typer.Option("--mean", metavar="A,B,C", rich_help_panel=IMAGES, help="Per channel, after --scale.")
]
StdOption = Annotated[str | None, typer.Option("--std", metavar="A,B,C", rich_help_panel=IMAGES, help="Per channel.")]
ScaleOption = Annotated[
    float | None, typer.Option("--scale", metavar="S", rich_help_panel=IMAGES, help="Factor of the pixels, as 0.0039.")
]
LayoutOption = Annotated[
    Layout, typer.Option("--layout", rich_help_panel=IMAGES, help="Order of the axes; auto: by the input's shape.")
]
OrderOption = Annotated[Order, typer.Option("--channel-order", rich_help_panel=IMAGES, help="Of colours.")]
MemoryOption = Annotated[
    float,
    typer.Option(
        "--memory", metavar="GB", min=0.01, rich_help_panel=DATA, help="For activations; less means more passes."
    ),
]


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(v) for v in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text}: expected numbers separated by commas, one per channel") from None


def preprocess(
    preset: Any,
    image_size: int | None,
    crop: int | None,
    mean: str | None,
    std: str | None,
    scale: float | None,
    layout: Any,
    channel_order: Any,
) -> Preprocess:
    return Preprocess(
        preset and preset.value, image_size, crop, numbers("--mean", mean), numbers("--std", std), scale,
        layout.value, channel_order.value,
    )  # fmt: skip


def input_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """`NAME:1,3,224,224`, split at the last colon: names may hold colons."""
    out = {}
    for text in texts or ():
        name, colon, dims = text.rpartition(":")
        sizes = dims.split(",")
        if not colon or not name or not all(d.strip().isdecimal() and int(d) > 0 for d in sizes):
            raise OptionError(f"--input-shape {text}: expected NAME:1,3,224,224")
        out[name] = tuple(int(d) for d in sizes)
    return out


def pair(text: str) -> tuple[str, float]:
    """`GLOB=R`, split at the last equals sign: names may hold some."""
    glob, _, value = text.rpartition("=")
    try:
        r = float(value)
    except ValueError:
        r = float("nan")
    if not glob or r != r:
        raise OptionError(f"--ratio {text}: expected GLOB=R, for instance 'layer1*=0.5'")
    return glob, r


def ratio_or_auto(text: str | None, option: str = "--channels") -> Any:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"{option} {text}: expected a fraction in [0, 1) that is removed, or auto") from None
