"""Train and export the small transformers that pruning is judged on, with their data and cards.

    pip install torch==2.13.0 onnx onnxruntime onnxscript sympy numpy
    python tools/train_transformers.py --data DIR                       # everything, about 70 minutes of one CPU core
    python tools/train_transformers.py --data DIR --only sst2_encoder
    python tools/train_transformers.py --data DIR --only sst2_encoder --export-only    # from the saved weights

DIR holds sst2_train.tsv and sst2_dev.tsv (sentence, tab, label), tinyshakespeare.txt and cifar10_jpeg.npz. Weights and
all exports go to --out (default: a temporary folder) as NAME.FORM.onnx; a model of at most five million bytes is also
written to models/ in its plain form, with card and data. PyTorch is used here only. Every model is trained from a
seeded start for a fixed number of epochs; the last weights are kept, and held-out data are read only to fill the cards.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from torch import Tensor, nn

from train_models import strip
from words import SENTENCE, WORDS, encoded, labelled, vocabulary

REPO = Path(__file__).resolve().parent.parent
MAX_BYTES = 5_000_000
CONTEXT = 128
PLAIN = "Add Sub Mul Div MatMul Gemm Reshape Transpose Shape Constant Unsqueeze Gather Slice Concat Cast".split()
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
Batch = tuple[tuple[Tensor, ...], Tensor]
Arrays = dict[str, Any]  # arrays

# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """GPT-2's linear layer: weight (inputs, outputs), a Gemm between two Reshapes in the export."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], self.bias.shape[0])


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.sdpa, self.separate = True, False

    def forward(self, x: Tensor) -> Tensor:
        if self.sdpa and not torch.jit.is_tracing():
            return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Attention in the manner of BERT (separate projections), GPT-2, timm's ViT (fused ones) or Llama.

    `sdpa` says whether F.scaled_dot_product_attention is used (so in training) or written out; `separate` gives the
    export of a fused projection as three, what onnxruntime's optimizer looks for.
    """

    def __init__(self, width: int, heads: int, manner: str, kv_heads: int = 0) -> None:
        super().__init__()
        self.manner, self.heads, self.kv_heads, self.size = manner, heads, kv_heads or heads, width // heads
        self.sdpa, self.separate = True, False
        if manner in ("gpt2", "vit"):
            linear = Conv1D if manner == "gpt2" else nn.Linear
            self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        else:
            sizes = (width, self.kv_heads * self.size, self.kv_heads * self.size, width)
            self.q, self.k, self.v, self.out = (nn.Linear(width, size, bias=manner == "bert") for size in sizes)
        if manner == "gpt2":
            self.register_buffer("causal", torch.ones(1, 1, CONTEXT, CONTEXT).tril().bool(), persistent=False)
        if manner == "llama":
            angles = torch.outer(torch.arange(CONTEXT), 10_000 ** (-torch.arange(0, self.size, 2) / self.size))
            self.register_buffer("cos", torch.cat([angles, angles], -1).cos(), persistent=False)
            self.register_buffer("sin", torch.cat([angles, angles], -1).sin(), persistent=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = x.shape
        if self.manner == "gpt2":
            q, k, v = self.qkv(x).split(width, dim=2)
        elif self.manner == "vit" and not self.separate:
            q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        elif self.manner == "vit":
            parts = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
            q, k, v = (F.linear(x, weight, bias) for weight, bias in parts)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (y.view(batch, length, -1, self.size).transpose(1, 2) for y in (q, k, v))
        return (self.rotate(q), self.rotate(k), v) if self.manner == "llama" else (q, k, v)

    def rotate(self, x: Tensor) -> Tensor:
        length = x.shape[2]
        left, right = x.chunk(2, dim=-1)
        return x * self.cos[:length] + torch.cat([-right, left], -1) * self.sin[:length]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.project(x)
        if self.kv_heads < self.heads and (not self.sdpa or torch.jit.is_tracing()):
            spread = (batch, self.kv_heads, self.heads // self.kv_heads, length, self.size)
            k, v = (y[:, :, None].expand(spread).reshape(batch, self.heads, length, self.size) for y in (k, v))
        if self.sdpa:
            mask = None if mask is None else mask.expand(-1, -1, length, -1)
            causal, grouped = (
                self.manner in ("gpt2", "llama"),
                self.kv_heads < self.heads and not torch.jit.is_tracing(),
            )
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        else:
            scale = math.sqrt(self.size)
            late = self.manner != "vit" or self.separate
            scores = q @ k.transpose(-2, -1) / scale if late else (q * (1 / scale)) @ k.transpose(-2, -1)
            if self.manner == "gpt2" and self.separate:  # as the exporter wrote it when that optimizer was made
                shape = torch._shape_as_tensor(scores)
                rows, columns = shape[-2:-1].squeeze(0), shape[-1:].squeeze(0)
                seen = self.causal[:, :, columns - rows : columns, :columns]
                scores = torch.where(seen, scores, torch.tensor(-1e4))
            elif self.manner == "gpt2":
                scores = torch.where(self.causal[:, :, :length, :length], scores, torch.finfo(x.dtype).min)
            elif self.manner == "llama":
                scores = scores + torch.full((length, length), -1e9).triu(1)
            elif mask is not None:
                scores = scores + mask
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, manner: str, width: int, heads: int, kv_heads: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        linear = Conv1D if manner == "gpt2" else nn.Linear
        gelu = nn.GELU(approximate="tanh" if manner == "gpt2" else "none")
        hidden, swish = 4 * width, manner == "llama"
        mlp = SwiGLU(width, 336) if swish else nn.Sequential(linear(width, hidden), gelu, linear(hidden, width))
        self.attention, self.mlp, self.post = Attention(width, heads, manner, kv_heads), mlp, manner == "bert"
        self.norm1, self.norm2 = (RMSNorm(width) if manner == "llama" else nn.LayerNorm(width) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.post:
            x = self.norm1(self.drop(self.attention(x, mask)) + x)
            return self.norm2(self.drop(self.mlp(x)) + x)
        x = x + self.drop(self.attention(self.norm1(x), mask))
        return x + self.drop(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """BERT's layers with the mean over the words in front of the classifier."""

    def __init__(self, width: int = 128, dropout: float = 0.3) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.positions = nn.Embedding(SENTENCE, width)
        self.register_buffer("position_ids", torch.arange(SENTENCE)[None], persistent=False)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block("bert", width, 4, dropout=dropout) for _ in range(4))
        self.classifier = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
        x = self.words(input_ids) + self.positions(self.position_ids[:, : input_ids.shape[1]])
        x = self.drop(self.norm(x))
        for layer in self.layers:
            x = layer(x, mask)
        weight = attention_mask[:, :, None].float()
        return self.classifier(self.drop((x * weight).sum(1) / weight.sum(1)))


class Decoder(nn.Module):
    """GPT-2 (learned positions, tied head) or Llama (rotary positions, grouped queries, own head)."""

    def __init__(self, manner: str, layers: int, width: int, heads: int, kv_heads: int = 0) -> None:
        super().__init__()
        self.words = nn.Embedding(65, width)
        self.positions = nn.Embedding(CONTEXT, width) if manner == "gpt2" else None
        self.layers = nn.ModuleList(Block(manner, width, heads, kv_heads) for _ in range(layers))
        self.norm = RMSNorm(width) if manner == "llama" else nn.LayerNorm(width)
        self.head = nn.Linear(width, 65, bias=False)
        if manner == "gpt2":
            self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(input_ids.shape[1], device=x.device)[None])
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class ViT(nn.Module):
    """In training every image shows a random half of its patches, which halves the time."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.layers = nn.ModuleList(Block("vit", width, 4) for _ in range(6))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2) + self.positions
        if self.training:
            kept = torch.rand(x.shape[:2]).argsort(1)[:, :32, None]
            x = x.gather(1, kept.expand(-1, -1, x.shape[2]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def sst2(data: Path) -> tuple[Arrays, Arrays]:
    """Training and held-out arrays; 0 pads and 1 is a word outside the vocabulary of the training part."""
    ids, arrays = vocabulary(data), []
    for part in ("train", "dev"):
        sentences, labels = labelled(data / f"sst2_{part}.tsv")
        arrays.append({**encoded(sentences, ids), "labels": np.array(labels)})
    return arrays[0], arrays[1]


def shakespeare(data: Path) -> tuple[Arrays, Arrays]:
    """Characters in sorted order; the last tenth of the text is held out."""
    text = (data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    ids = {char: index for index, char in enumerate(sorted(set(text)))}
    stream = np.array([ids[char] for char in text])
    cut = len(stream) * 9 // 10
    arrays = []
    for part in (stream[:cut], stream[cut:]):
        starts = np.linspace(0, len(part) - CONTEXT - 1, 128).astype(int)[:, None] + np.arange(CONTEXT)
        arrays.append({"input_ids": part[starts], "labels": part[starts + 1], "stream": part})
    return arrays[0], arrays[1]


def cifar(data: Path) -> tuple[Arrays, Arrays]:
    with np.load(data / "cifar10_jpeg.npz") as file:
        parts = [(file["x_train"], file["y_train"]), (file["x_test"][::2], file["y_test"][::2])]  # sorted by class
    scaled = [((x / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32) for x, _ in parts]
    train, test = ({"image": x, "labels": y} for x, (_, y) in zip(scaled, parts, strict=True))
    return train, test


def sentence_batches(train: Arrays, generator: torch.Generator, size: int = 64) -> Iterator[Batch]:
    """Sentences of like length together; three words in ten are hidden."""
    lengths = train["attention_mask"].sum(1)
    order = torch.randperm(len(lengths), generator=generator).numpy()
    chunks = [part[np.argsort(lengths[part], kind="stable")] for part in np.array_split(order, 8)]
    batches = [part for chunk in chunks for part in np.array_split(chunk, len(chunk) // size)]
    for index in torch.randperm(len(batches), generator=generator).tolist():
        chosen, longest = batches[index], lengths[batches[index]].max()
        ids = torch.from_numpy(train["input_ids"][chosen, :longest])
        ids = torch.where((torch.rand(ids.shape, generator=generator) < 0.3) & (ids > 0), 1, ids)
        mask = torch.from_numpy(train["attention_mask"][chosen, :longest])
        yield (ids, mask), torch.from_numpy(train["labels"][chosen])


def text_batches(train: Arrays, generator: torch.Generator, size: int = 8) -> Iterator[Batch]:
    """Every character once, but for a part of a window at both ends."""
    stream = torch.from_numpy(train["stream"])
    shift = int(torch.randint(CONTEXT, (1,), generator=generator))
    count = (len(stream) - shift - 1) // CONTEXT
    order = torch.randperm(count, generator=generator)[: count // size * size]
    for chosen in order.view(-1, size):
        at = shift + chosen[:, None] * CONTEXT + torch.arange(CONTEXT)
        yield (stream[at],), stream[at + 1]


def image_batches(train: Arrays, generator: torch.Generator, size: int = 50) -> Iterator[Batch]:
    """Crops, flips, brightness and contrast; half of the batches mixed with a rectangle of another image (CutMix)."""
    images, labels = torch.from_numpy(train["image"]), F.one_hot(torch.from_numpy(train["labels"]), 10).float()
    for chosen in torch.randperm(len(images), generator=generator).view(-1, size):
        padded = F.pad(images[chosen], (4, 4, 4, 4), mode="reflect")
        dy, dx = torch.randint(9, (2, size, 1), generator=generator) + torch.arange(32)
        dx = torch.where(torch.rand(size, 1, generator=generator) < 0.5, dx, dx.flip(1))
        x = padded[torch.arange(size)[:, None, None], :, dy[:, :, None], dx[:, None, :]].permute(0, 3, 1, 2)
        gain, offset = torch.rand(2, size, 1, 1, 1, generator=generator) * 0.8 - 0.4
        x, y = x * (1 + gain) + offset, labels[chosen]
        if torch.rand(1, generator=generator) < 0.5:
            share = torch.rand(2, generator=generator)
            height, width = (share * 32).int().tolist()
            top, left = ((1 - share) * 33 * torch.rand(2, generator=generator)).int().clamp(max=31).tolist()
            inside = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
            x[inside] = x.roll(1, 0)[inside]
            part = x[0, 0][inside[2:]].numel() / 1024
            y = (1 - part) * y + part * y.roll(1, 0)
        yield (x,), y


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Data: `longest` is the length of the longest sequence, 0 for images; `calibration` the samples of that file."""

    name: str
    arrays: Callable[[Path], tuple[Arrays, Arrays]]
    batches: Callable[[Arrays, torch.Generator], Iterator[Batch]]
    inputs: tuple[str, ...]
    longest: int
    calibration: int
    shipped: bool
    input_text: str
    data_text: str


SST2 = Task(
    *("sst2", sst2, sentence_batches, ("input_ids", "attention_mask"), SENTENCE, 256, True),
    input_text=f"""`input_ids`, int64 `[batch, sequence]`: numbers of words (0 pads, 1 is unknown), at most {SENTENCE};
  `attention_mask`, int64 `[batch, sequence]`: 1 where there is a word""",
    data_text=f"""Stanford Sentiment Treebank (R. Socher et al., EMNLP 2013), whole sentences of film reviews in
two classes: 6,920 for training, 872 held out. The {WORDS - 2:,} most frequent words of the training part are the
vocabulary. `sst2_heldout.npz` has the held-out sentences as numbers, with `labels` (1 is positive),
`sst2_calibration.npz` 256 training sentences without labels. The data set states no licence; only these numbers are
here, for evaluation.""",
)
TEXT = Task(
    *("shakespeare", shakespeare, text_batches, ("input_ids",), CONTEXT, 128, True),
    input_text=f"`input_ids`, int64 `[batch, sequence]`: characters as numbers in sorted order, at most {CONTEXT}",
    data_text=f"""`tinyshakespeare.txt` (github.com/karpathy/char-rnn): 1,115,394 characters of Shakespeare's plays,
65 different ones, public domain. The first nine tenths are for training, the last tenth is held out.
`shakespeare_heldout.npz` has 128 held-out windows of {CONTEXT} characters and as `labels` the character after each;
`shakespeare_calibration.npz` has 128 windows of the training part. Both are evenly spread.""",
)
CIFAR = Task(
    *("cifar", cifar, image_batches, ("image",), 0, 512, False),
    input_text=f"`image`, float32 `[batch, 3, 32, 32]`: RGB of 0..1, less {MEAN}, over {STD}",
    data_text="""CIFAR-10 (A. Krizhevsky, 2009), of `cifar10_jpeg.npz`: 4,000 images for training, every second of 4,000
test images held out. They are not shipped: cifar_heldout.npz and cifar_calibration.npz are next to the exports.""",
)


@dataclass(frozen=True)
class Model:
    """`optimizer` is the type that onnxruntime's is told; `deviation` that of the first weights, 0 for PyTorch's."""

    name: str
    task: Task
    build: Callable[[], nn.Module]
    optimizer: str
    epochs: int
    rate: float
    beta: float
    decay: float
    smoothing: float
    deviation: float
    batch: str
    text: str


MODELS = (
    Model(
        *("shakespeare_decoder", TEXT, lambda: Decoder("gpt2", 6, 192, 6), "gpt2", 4, 1.5e-3, 0.99, 0.1, 0.0, 0.05),
        batch="8 windows",
        text="""Decoder in the manner of GPT-2 on characters: learned positions, six pre-norm layers (width 192, six
heads, hidden 768, tanh GELU), fused q-k-v as Gemm between Reshapes, head tied to the embedding.""",
    ),
    Model(
        *("sst2_encoder", SST2, Encoder, "bert", 10, 5e-4, 0.98, 0.1, 0.1, 0.02),
        batch="64 sentences of like length, dropout 0.3, three words in ten hidden, labels smoothed by 0.1",
        text="""Encoder in the manner of BERT on words: learned positions, four post-norm layers (width 128, four
heads, hidden 512, GELU), separate projections, mean over the words of the sentence, linear layer.""",
    ),
    Model(
        *("cifar_vit", CIFAR, ViT, "vit", 60, 1e-3, 0.98, 0.05, 0.0, 0.0),
        batch="50 images, crops, flips, brightness, contrast, CutMix, half of the patches of every image",
        text="""Vision transformer: 4x4 patches, six pre-norm layers (width 128, four heads, hidden 512, GELU), fused
q-k-v in the manner of timm, linear layer on the mean of the patches.""",
    ),
    Model(
        *("shakespeare_llama", TEXT, lambda: Decoder("llama", 4, 192, 6, 2), "gpt2", 3, 1.5e-3, 0.99, 0.1, 0.0, 0.05),
        batch="8 windows",
        text="""Decoder in the manner of Llama on characters: four layers (width 192, six heads of queries, two of keys
and values), RMS norms, rotary positions, SwiGLU of 336, no biases, own head.""",
    ),
)


def logits_of(network: nn.Module, arrays: Arrays, inputs: tuple[str, ...]) -> Tensor:
    with torch.no_grad():
        rows = [torch.from_numpy(arrays[name]).split(64) for name in inputs]
        return torch.cat([network(*part) for part in zip(*rows, strict=True)])


def measure(logits: Tensor, heldout: Arrays) -> tuple[float, float]:
    """Cross-entropy in nats, and top1."""
    labels = torch.from_numpy(heldout["labels"])
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten()).item()
    return loss, (logits.argmax(-1) == labels).float().mean().item()


def train(model: Model, arrays: Arrays, heldout: Arrays, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    network = model.build()
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D) and model.deviation:
            nn.init.normal_(module.weight, std=model.deviation)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
    steps = sum(1 for _ in model.task.batches(arrays, torch.Generator().manual_seed(0))) * model.epochs
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": model.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=model.rate, betas=(0.9, model.beta), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.08 * steps), (steps - step) / (0.92 * steps))
    )
    start = time.perf_counter()
    for epoch in range(model.epochs):
        network.train()
        total: list[float] = []
        for inputs, targets in model.task.batches(arrays, generator):
            logits = network(*inputs)
            if targets.ndim == 2 and targets.dtype == torch.int64:
                logits, targets = logits.flatten(0, 1), targets.flatten()
            loss = F.cross_entropy(logits, targets, label_smoothing=model.smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total.append(loss.item())
            if len(total) % 200 == 0:
                print(f"  {len(total)} {np.mean(total[-200:]):.4f} {time.perf_counter() - start:.0f} s", flush=True)
        network.eval()
        value, right = measure(logits_of(network, heldout, model.task.inputs), heldout)
        done = f"{model.name} epoch {epoch + 1} of {model.epochs}: loss {np.mean(total):.4f}"
        print(f"{done}, held out {value:.4f} top1 {right:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    return network


# ---------------------------------------------------------------------------------------------------------------------
# Export
# ---------------------------------------------------------------------------------------------------------------------


# name: opset, what the exporter is told, whether attention is not written out, what onnxruntime's optimizer fuses
FORMS: dict[str, tuple[int, dict[str, Any], bool, str]] = {
    "torchscript": (17, {"dynamo": False}, False, ""),
    "torchscript_nofold": (17, {"dynamo": False, "do_constant_folding": False}, False, ""),
    "sdpa": (17, {"dynamo": False}, True, ""),
    "dynamo": (18, {"dynamo": True, "external_data": False, "verbose": False}, False, ""),
    "dynamo_op23": (23, {"dynamo": True, "external_data": False, "verbose": False}, True, ""),
    "ort": (17, {"dynamo": False}, False, "Attention"),
    "ort_mha": (17, {"dynamo": False}, False, "MultiHeadAttention"),
}


def export(model: Model, network: nn.Module, form: str, example: tuple[Tensor, ...], path: Path) -> None:
    opset, options, sdpa, fused = FORMS[form]
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    for module in network.modules():
        if isinstance(module, Attention | RMSNorm):
            module.sdpa, module.separate = sdpa, bool(fused)
    names, free = list(model.task.inputs), {0: "batch", 1: "sequence"} if model.task.longest else {0: "batch"}
    if options["dynamo"]:
        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=model.task.longest or 2)}
        options = options | {"dynamic_shapes": tuple({axis: dims[axis] for axis in free} for _ in names)}
    else:
        axes = {name: free for name in names} | {"logits": free if model.task is TEXT else {0: "batch"}}
        options = options | {"dynamic_axes": axes}
    torch.onnx.export(
        network, example, path, input_names=names, output_names=["logits"], opset_version=opset, **options
    )
    if fused:
        choice = FusionOptions(model.optimizer)
        choice.use_multi_head_attention = fused == "MultiHeadAttention"
        size = {"num_heads": attentions[0].heads, "hidden_size": attentions[0].heads * attentions[0].size}
        made = optimize_model(str(path), model.optimizer, optimization_options=choice, opt_level=0, **size)
        made.save_model_to_file(str(path))
    proto = onnx.load(path)
    strip(proto)
    onnx.save(proto, path)


def run(path: Path, arrays: Arrays, inputs: tuple[str, ...], size: int = 64) -> Tensor:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    starts = range(0, len(arrays[inputs[0]]), size)
    feeds = ({name: arrays[name][start : start + size] for name in inputs} for start in starts)
    return torch.from_numpy(np.concatenate([session.run(None, feed)[0] for feed in feeds]))


def difference(model: Model, network: nn.Module, heldout: Arrays, path: Path) -> float:
    """The largest difference to torch, for some shapes of the inputs."""
    worst, inputs = 0.0, model.task.inputs
    for batch, length in ((5, model.task.longest), (1, 7), (64, 30)):
        arrays = {name: heldout[name][:batch] for name in inputs}
        if model.task.longest:
            arrays = {name: rows[:, :length] for name, rows in arrays.items()}
        worst = max(worst, (run(path, arrays, inputs) - logits_of(network, arrays, inputs)).abs().max().item())
    return worst


def card(model: Model, path: Path, heldout: Arrays, seed: int) -> str:
    proto, task = onnx.load(path), model.task
    parameters = sum(math.prod(t.dims) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    counts = Counter(node.op_type for node in proto.graph.node)
    length = " and sequence are" if task.longest else " is"
    loss, top1 = measure(run(path, heldout, task.inputs), heldout)
    if task is TEXT:
        result = f"**perplexity {math.exp(loss):.3f}** (cross-entropy {loss:.4f} nats), top1 {top1:.4f}"
        how = f"""Measured with onnxruntime on this file and `{task.name}_heldout.npz`:

      data = numpy.load("{task.name}_heldout.npz")
      x = onnxruntime.InferenceSession("{path.name}").run(None, {{"input_ids": data["input_ids"]}})[0]
      x = x - numpy.log(numpy.exp(x).sum(-1, keepdims=True))
      print(numpy.exp(-numpy.take_along_axis(x, data["labels"][..., None], -1).mean()))
"""
    else:
        result, place = f"**top1 {top1:.4f}** (cross-entropy {loss:.4f} nats)", path.parent.name
        how = "Measured with onnxruntime on this file"
        how += f" (`onnxprune evaluate {place}/{path.name} {place}/{task.name}_heldout.npz`)."
    return f"""# {model.name}

{model.text}

- Input: {task.input_text}.
- Output: `logits`, float32 `{"[batch, sequence, 65]" if task is TEXT else "[batch, classes]"}`. Batch{length} dynamic.
- Parameters: {parameters:,} (float32 values in the initializers); file: {path.stat().st_size:,} bytes.
- Held-out result: {result}.
  {how}
- Operators: {", ".join(f"{name} {count}" for name, count in sorted(counts.items()))}.
- Exporter: PyTorch {torch.__version__.split("+")[0]}, TorchScript exporter, opset {proto.opset_import[0].version}.
  Doc strings and metadata were removed after the export.

## Data

{task.data_text}

## Training and reproduction

{model.epochs} epochs, AdamW, a rate that rises to {model.rate:g} and falls to zero;
batches of {model.batch}.
The last weights are kept, none were chosen by the held-out part. Seed {seed}.

    python tools/train_transformers.py --data DIR --only {model.name} --seed {seed}

The same versions on the same kind of machine give the same file; elsewhere the rounding, and with it the last digits,
may differ.

## Licence

The weights: Apache-2.0. For the data see above.
"""


def write(model: Model, network: nn.Module, data: tuple[Arrays, Arrays], out: Path, seed: int) -> None:
    """All forms to `out`; card, data and what is small enough to models/, where they may be shipped."""
    task, heldout = model.task, {name: rows for name, rows in data[1].items() if name != "stream"}
    example = tuple(torch.from_numpy(heldout[name][:2]) for name in task.inputs)
    for form in FORMS:
        if FORMS[form][3] == "MultiHeadAttention" and task is TEXT:
            continue  # for decoders the optimizer knows Attention only
        path = out / f"{model.name}.{form}.onnx"
        try:
            export(model, network.eval(), form, example, path)
            counts = Counter(f"{node.domain}:{node.op_type}".strip(":") for node in onnx.load(path).graph.node)
            seen = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if name not in PLAIN)
            off = difference(model, network, heldout, path)
            print(f"{path.name}: {path.stat().st_size:,} bytes, off by {off:.1e}; {seen}", flush=True)
        except Exception as error:  # a form that cannot be written must not cost the others
            print(f"{path.name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    plain = out / f"{model.name}.torchscript.onnx"
    if task.shipped and plain.stat().st_size <= MAX_BYTES:
        plain = Path(shutil.copy(plain, REPO / "models" / f"{model.name}.onnx"))
    spread = np.linspace(0, len(data[0]["labels"]) - 1, task.calibration).round().astype(int)
    place = REPO / "models" if task.shipped else out
    np.savez_compressed(place / f"{task.name}_calibration.npz", **{name: data[0][name][spread] for name in task.inputs})
    np.savez_compressed(place / f"{task.name}_heldout.npz", **heldout)
    (plain.parent / f"{model.name}.md").write_text(card(model, plain, heldout, seed), encoding="utf-8")


def main() -> int:
    names = [model.name for model in MODELS]
    parser = argparse.ArgumentParser(description="Train and export the small transformers, with data and cards.")
    parser.add_argument("--data", type=Path, required=True, help="where the data files lie")
    parser.add_argument("--only", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir(), "transformers"), help="weights and exports"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default: 0)")
    parser.add_argument("--export-only", action="store_true", help="export the weights that lie in --out")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        if args.only not in (None, model.name):
            continue
        data, weights = model.task.arrays(args.data), args.out / f"{model.name}.pt"
        if args.export_only:
            network = model.build()
            network.load_state_dict(torch.load(weights))
        else:
            network = train(model, *data, args.seed)
            torch.save(network.state_dict(), weights)
        write(model, network, data, args.out, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
