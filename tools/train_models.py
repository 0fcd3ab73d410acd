"""Train and export the example models in `models/`, with their held-out data and their cards; the rows
of its README are printed.

    pip install torch==2.13.0 onnx onnxruntime onnxscript scikit-learn numpy
    python tools/train_models.py                      # everything, about seven minutes on one CPU core
    python tools/train_models.py --only digits_mlp

PyTorch is used here only. Every model is trained from its own seeded start for a fixed number of epochs on the
training part of scikit-learn's digits; the last weights are kept, and the held-out part is read only to fill the cards.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from google.protobuf.message import Message
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

REPO = Path(__file__).resolve().parent.parent
SPLIT_SEED = 0  # fixed apart from --seed, so that the shipped held-out files stay held out
HELDOUT = 450
SHARED_DATA = "digits_heldout"
MAX_BYTES = 1_500_000
CLASSES = 10

# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, stride=stride)
        self.conv2 = conv_bn(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of two residual blocks."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = conv_bn(1, widths[0])
        blocks: list[nn.Module] = []
        previous = widths[0]
        for stage, width in enumerate(widths):
            blocks.append(ResidualBlock(previous, width, stride=1 if stage == 0 else 2))
            blocks.append(ResidualBlock(width, width, stride=1))
            previous = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(previous, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(image)))
        return self.head(self.pool(x).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(width, width // 4, 1)
        self.expand = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = conv_bn(inputs, hidden, kernel=1)
        self.depthwise = conv_bn(hidden, hidden, stride=stride, groups=hidden)
        self.excite = SqueezeExcite(hidden)
        self.project = conv_bn(hidden, outputs, kernel=1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        y = self.project(self.excite(y))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Inverted residuals with squeeze-and-excite, in the manner of MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 16)
        settings = [(16, 24, 1), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1)]
        self.blocks = nn.Sequential(*(InvertedResidual(*setting) for setting in settings))
        self.last = conv_bn(48, 160, kernel=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(160, 96)
        self.head = nn.Linear(96, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(F.hardswish(self.stem(image)))
        x = self.pool(F.hardswish(self.last(x))).flatten(1)
        return self.head(F.hardswish(self.hidden(x)))


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(conv_bn(inputs, outputs), nn.ReLU(), conv_bn(outputs, outputs), nn.ReLU())


class UNet(nn.Module):
    """Two levels down, two up."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        small, middle, large = widths
        self.down1 = DoubleConv(1, small)
        self.down2 = DoubleConv(small, middle)
        self.bottom = DoubleConv(middle, large)
        self.pool = nn.MaxPool2d(2)
        self.up2 = nn.ConvTranspose2d(large, middle, 2, stride=2)
        self.merge2 = DoubleConv(2 * middle, middle)
        self.up1 = nn.ConvTranspose2d(middle, small, 2, stride=2)
        self.merge1 = DoubleConv(2 * small, small)
        self.head = nn.Conv2d(small, 1, 1)

    def forward(self, noisy: Tensor) -> Tensor:
        skip1 = self.down1(noisy)
        skip2 = self.down2(self.pool(skip1))
        x = self.bottom(self.pool(skip2))
        x = self.merge2(torch.cat([self.up2(x), skip2], dim=1))
        x = self.merge1(torch.cat([self.up1(x), skip1], dim=1))
        return self.head(x)


class RowGRU(nn.Module):
    """Two GRU layers over the rows of the image, then a hidden linear layer on the last step."""

    def __init__(self, hidden: int = 96) -> None:
        super().__init__()
        self.gru = nn.GRU(16, hidden, num_layers=2, batch_first=True)
        self.hidden = nn.Linear(hidden, 64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        steps, _ = self.gru(rows)
        return self.head(F.relu(self.hidden(steps[:, -1])))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        per_head = width // self.heads
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, per_head).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * per_head**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Pre-norm encoder over 4x4 patches and a class token."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 4, hidden: int = 192) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, hidden) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(image.shape[0], -1, -1), patches], dim=1) + self.position
        return self.head(self.norm(self.layers(x))[:, 0])


class MLP(nn.Sequential):
    def __init__(self, widths: tuple[int, ...] = (64, 256, 192, 96)) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.1)]
        super().__init__(*layers, nn.Linear(widths[-1], CLASSES))


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What a model reads and what it is trained for."""

    input_name: str
    output_name: str
    data: str  # stem of the held-out file
    size: int  # side of the image: 8 as it comes, 16 upscaled
    pack: Callable[[Tensor, Tensor, torch.Generator], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    text: str


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.05)


def mask_loss(logits: Tensor, mask: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, mask.float())


def pack_mask(images: Tensor, _labels: Tensor, generator: torch.Generator) -> Batch:
    """A noisy image and the mask of the clean one; in steps of 1/64, which keeps the stored file small."""
    noisy = images + 0.4 * torch.randn(images.shape, generator=generator)
    return (noisy * 64).round() / 64, (images > 0.5).to(torch.uint8)


IMAGE = Task(
    "image",
    "logits",
    SHARED_DATA,
    16,
    lambda images, labels, _: (images, labels),
    class_loss,
    "`image`, float32 `[batch, 1, 16, 16]`, the digit scaled to 0..1 and upscaled bilinearly from 8x8",
)
ROWS = Task(
    "rows",
    "logits",
    "digits_gru",
    16,
    lambda images, labels, _: (images.squeeze(1), labels),
    class_loss,
    "`rows`, float32 `[batch, 16, 16]`, sixteen steps of one image row each,\n"
    "  the digit scaled to 0..1 and upscaled bilinearly from 8x8",
)
PIXELS = Task(
    "pixels",
    "logits",
    "digits_mlp",
    8,
    lambda images, labels, _: (images.flatten(1), labels),
    class_loss,
    "`pixels`, float32 `[batch, 64]`, the 8x8 digit scaled to 0..1, row by row",
)
MASK = Task(
    "noisy",
    "mask_logits",
    "digits_unet",
    16,
    pack_mask,
    mask_loss,
    "`noisy`, float32 `[batch, 1, 16, 16]`, the digit scaled to 0..1, upscaled bilinearly from 8x8,\n"
    "  with Gaussian noise of standard deviation 0.4",
)


@cache
def split_digits(size: int) -> tuple[Batch, Batch]:
    """(images, labels) of the training part and of the held-out part, stratified by class."""
    digits = load_digits()
    indices = np.arange(len(digits.target))
    parts = train_test_split(indices, test_size=HELDOUT, random_state=SPLIT_SEED, stratify=digits.target)
    images = torch.from_numpy(digits.images.astype(np.float32) / 16).unsqueeze(1)
    if size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, heldout = ((images[part], labels[part]) for part in map(torch.from_numpy, parts))
    return train, heldout


def heldout_data(task: Task) -> dict[str, Any]:
    """The arrays of the held-out file."""
    inputs, labels = task.pack(*split_digits(task.size)[1], torch.Generator().manual_seed(SPLIT_SEED))
    return {task.input_name: np.ascontiguousarray(inputs.numpy()), "labels": labels.numpy()}


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 9 degrees, scaled by up to 10 % and shifted by up to 10 % of its side."""
    angle, scale, dx, dy = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, scale, dx, dy = angle * 0.16, 1 + scale * 0.1, dx * 0.2, dy * 0.2
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


# ---------------------------------------------------------------------------------------------------------------------
# Training and export
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """One file of `models/`."""

    name: str
    build: Callable[[], nn.Module]
    task: Task
    epochs: int
    rate: float
    opset: int
    dynamo: bool
    keep_bn: bool
    text: str


RESNET_TEXT = (
    "Residual CNN: 3x3 stem, three stages of two basic blocks (16, 32, 64 channels), strided 1x1 convolution\n"
    "shortcuts at the start of stages two and three, global average pool, linear layer. "
)
MODELS = (
    Model(
        "digits_resnet_bn",
        ResNet,
        IMAGE,
        epochs=25,
        rate=4e-3,
        opset=17,
        dynamo=False,
        keep_bn=True,
        text=RESNET_TEXT + "BatchNormalization stays as nodes (inference mode).",
    ),
    Model(
        "digits_resnet_folded",
        ResNet,
        IMAGE,
        epochs=25,
        rate=4e-3,
        opset=13,
        dynamo=False,
        keep_bn=False,
        text=RESNET_TEXT + "The weights of `digits_resnet_bn`, BatchNormalization folded into Conv.",
    ),
    Model(
        "digits_mobile_se",
        MobileNet,
        IMAGE,
        epochs=30,
        rate=4e-3,
        opset=18,
        dynamo=True,
        keep_bn=False,
        text="Six inverted residual blocks (expansion 4, 24 to 48 channels): pointwise, depthwise 3x3, "
        "squeeze-and-excite\nwith HardSigmoid, pointwise; HardSwish, residual where shapes agree; "
        "pool, hidden linear layer, linear layer.",
    ),
    Model(
        "digits_unet",
        UNet,
        MASK,
        epochs=25,
        rate=4e-3,
        opset=13,
        dynamo=False,
        keep_bn=False,
        text="U-Net with two levels (16, 32, 64 channels): two 3x3 convolutions per level, max pool down,\n"
        "ConvTranspose 2x2 up, skip connections by Concat, 1x1 convolution to one mask logit per pixel.",
    ),
    Model(
        "digits_gru",
        RowGRU,
        ROWS,
        epochs=60,
        rate=5e-3,
        opset=17,
        dynamo=False,
        keep_bn=False,
        text="Two stacked GRU layers (hidden size 96, ONNX GRU operators with `linear_before_reset=1`) over the rows;\n"
        "the last step goes through a hidden linear layer (64) with ReLU and a linear layer.",
    ),
    Model(
        "digits_vit",
        VisionTransformer,
        IMAGE,
        epochs=80,
        rate=2e-3,
        opset=18,
        dynamo=True,
        keep_bn=False,
        text="Vision transformer: 4x4 patches, class token, four pre-norm layers (width 64, four heads, MLP of 192),\n"
        "one fused q-k-v projection per layer, LayerNormalization operators, GELU; linear layer on the class token.",
    ),
    Model(
        "digits_mlp",
        MLP,
        PIXELS,
        epochs=80,
        rate=3e-3,
        opset=13,
        dynamo=False,
        keep_bn=False,
        text="Multilayer perceptron 64-256-192-96-10 with ReLU,\n"
        "exported as four Gemm nodes (dropout was for training only).",
    ),
)


@cache
def train(build: Callable[[], nn.Module], task: Task, epochs: int, rate: float, seed: int) -> nn.Module:
    """The network after its last epoch; the result is kept, so both ResNet files come from one training."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = split_digits(task.size)[0]
    network = build()
    batch = 64
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            inputs, targets = task.pack(augment(images[chosen], generator), labels[chosen], generator)
            loss = task.loss(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return network.eval()


def export(model: Model, network: nn.Module) -> onnx.ModelProto:
    example = torch.from_numpy(heldout_data(model.task)[model.task.input_name][:2])
    names = (model.task.input_name, model.task.output_name)
    options: dict[str, Any] = {"input_names": names[:1], "output_names": names[1:], "opset_version": model.opset}
    if model.dynamo:
        shapes = ({0: torch.export.Dim("batch")},)
        options |= {"dynamo": True, "dynamic_shapes": shapes, "external_data": False, "verbose": False}
    else:
        mode = torch.onnx.TrainingMode.PRESERVE if model.keep_bn else torch.onnx.TrainingMode.EVAL
        options |= {"dynamo": False, "dynamic_axes": {name: {0: "batch"} for name in names}, "training": mode}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(network, (example,), path, **options)
        return onnx.load(path)


def strip(message: Message) -> None:
    """Drop doc strings and metadata everywhere: the exporters leave stack traces with paths of this machine there."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                strip(child)


def check(model: Model, proto: onnx.ModelProto) -> None:
    """Fail where the file is not what its card will say."""
    onnx.checker.check_model(proto, full_check=True)
    data = proto.SerializeToString()
    if len(data) > MAX_BYTES:
        raise RuntimeError(f"{model.name}: {len(data)} bytes")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise RuntimeError(f"{model.name}: external data")
    found = re.search(rb"/(?:work|home|root|usr|opt|tmp|Users)/|site-packages|\.py\b", data)
    if found or str(REPO).encode() in data:
        raise RuntimeError(f"{model.name}: a path is left in the file")
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.shape.dim[0].dim_param != "batch":
            raise RuntimeError(f"{model.name}: the first axis of {value.name} is not 'batch'")
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    if bool(norms) != model.keep_bn:
        raise RuntimeError(f"{model.name}: {len(norms)} BatchNormalization nodes")
    if any(attribute.name == "training_mode" and attribute.i for node in norms for attribute in node.attribute):
        raise RuntimeError(f"{model.name}: BatchNormalization in training mode")


# ---------------------------------------------------------------------------------------------------------------------
# Cards
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """Measured on the exported file."""

    parameters: int
    size: int
    metric: str
    value: float
    opset: int
    operators: str
    extra: str


def load_scorer() -> ModuleType:
    """`models/score.py`, so that the cards state what a user will see."""
    spec = importlib.util.spec_from_file_location("score", REPO / "models" / "score.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(model: Model, out: Path) -> Facts:
    path = out / f"{model.name}.onnx"
    proto = onnx.load(path)
    floats = [tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    scorer = load_scorer()
    metric, value = scorer.score_named(path, data_dir=out)
    extra = ""
    if metric == "pixel_accuracy":
        data = heldout_data(model.task)
        mask = data["labels"] > 0
        found = scorer.predict(path, {model.task.input_name: data[model.task.input_name]}) > 0
        overlap = (mask & found).sum() / (mask | found).sum()
        plain = (mask == (data[model.task.input_name] > 0.5)).mean()
        extra = f"; intersection over union {overlap:.4f}; for comparison, a plain threshold at 0.5 has {plain:.4f}"
    counts = Counter(node.op_type for node in proto.graph.node)
    operators = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    parameters = sum(int(np.prod(tensor.dims)) for tensor in floats)
    return Facts(parameters, path.stat().st_size, metric, value, proto.opset_import[0].version, operators, extra)


def exporter_name(model: Model) -> str:
    return "dynamo" if model.dynamo else "TorchScript"


def card(model: Model, facts: Facts, seed: int) -> str:
    version = torch.__version__.split("+")[0]
    training = len(split_digits(model.task.size)[0][1])
    return f"""# {model.name}

{model.text}

- Input: {model.task.text}.
- Output: `{model.task.output_name}`. The batch axis is dynamic.
- Parameters: {facts.parameters:,} (float32 values in the initializers); file: {facts.size:,} bytes.
- Held-out result: **{facts.metric} {facts.value:.4f}**{facts.extra}.
  Measured with onnxruntime on this file (`python models/score.py models/{model.name}.onnx`).
- Operators: {facts.operators}.
- Exporter: PyTorch {version}, {exporter_name(model)} exporter, opset {facts.opset}.
  Doc strings and metadata were removed after the export.

## Data

scikit-learn's `load_digits`: the test part of "Optical Recognition of Handwritten Digits"
(E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49), licence CC BY 4.0;
1,797 grey images of 8x8 pixels. {training:,} are for training, {HELDOUT} are held out (`{model.task.data}.npz`),
a random split stratified by class. It does not separate writers, so the result says nothing about new writers.

## Training and reproduction

{model.epochs} epochs, AdamW, one-cycle rate with its peak at {model.rate:g}, batches of 64, small random turns,
scalings and shifts; the last weights are kept, none were chosen by the held-out part. Seed {seed}.

    python tools/train_models.py --only {model.name} --seed {seed}

The same versions on the same kind of machine give the same file; elsewhere the rounding, and with it the last digits,
may differ.

## Licence

The weights: Apache-2.0. The held-out data are derived from the data set named above: CC BY 4.0.
"""


def table(rows: list[tuple[Model, Facts]]) -> str:
    lines = [
        "| Model | Parameters | Bytes | Held-out result | Exporter, opset | Held-out data |",
        "| --- | ---: | ---: | --- | --- | --- |",
    ]
    for model, facts in rows:
        result = f"{facts.metric} {facts.value:.4f}"
        source = f"{exporter_name(model)}, {facts.opset}"
        name = f"[{model.name}]({model.name}.md)"
        data = f"`{model.task.data}.npz`"
        lines.append(f"| {name} | {facts.parameters:,} | {facts.size:,} | {result} | {source} | {data} |")
    return "\n".join(lines)


def main() -> int:
    names = [model.name for model in MODELS]
    parser = argparse.ArgumentParser(description="Train and export the example models, with data and cards.")
    parser.add_argument("--only", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=REPO / "models", help="where the files go (default: models)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and augmentation (default: 0)")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        if args.only not in (None, model.name):
            continue
        start = time.perf_counter()
        np.savez_compressed(args.out / f"{model.task.data}.npz", **heldout_data(model.task))
        if model.task.data == SHARED_DATA:
            train = split_digits(16)[0][0].numpy()
            spread = np.linspace(0, len(train) - 1, 300).round().astype(int)
            np.savez_compressed(args.out / "digits_calibration.npz", image=train[spread].reshape(-1, 1, 16, 16))
        proto = export(model, train(model.build, model.task, model.epochs, model.rate, args.seed))
        strip(proto)
        check(model, proto)
        onnx.save(proto, args.out / f"{model.name}.onnx")
        facts = measure(model, args.out)
        (args.out / f"{model.name}.md").write_text(card(model, facts, args.seed), encoding="utf-8")
        result = f"{facts.parameters} parameters, {facts.metric} {facts.value:.4f}"
        print(f"{model.name}: {result}, {time.perf_counter() - start:.0f} s", flush=True)
    present = [(model, measure(model, args.out)) for model in MODELS if (args.out / f"{model.name}.onnx").is_file()]
    print(f"rows of README.md:\n{table(present)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
