"""The registries of topologies and what most of them begin and end with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import onnx

from models.builder import Builder

BuildFn = TypeVar("BuildFn", bound=Callable[..., onnx.ModelProto])

TOPOLOGIES: dict[str, Callable[[], onnx.ModelProto]] = {}
UNRUNNABLE: dict[str, Callable[[], onnx.ModelProto]] = {}
UNCHECKED: dict[str, Callable[[], onnx.ModelProto]] = {}
PRUNES: dict[str, bool] = {}


def topology(
    name: str = "", *, prunes: bool = True, into: dict[str, Callable[[], onnx.ModelProto]] = TOPOLOGIES, **fixed: Any
) -> Callable[[BuildFn], BuildFn]:
    """Register a builder under its own name, or under `name` with the keyword arguments `fixed`."""

    def register(build: BuildFn) -> BuildFn:
        key = name or build.__name__
        assert key not in PRUNES, f"topology {key!r} is registered twice"
        into[key] = partial(build, **fixed)
        PRUNES[key] = prunes
        return build

    return register


def image(b: Builder, channels: int = 3, size: int = 8) -> str:
    return b.input("input", ("batch", channels, size, size))


def stem(b: Builder, channels: int = 16, *, hidden: int = 12, size: int = 8) -> str:
    """Two plain convolutions on an image: whatever follows, the `hidden` channels between them are removable."""
    return b.relu(b.conv(b.relu(b.conv(image(b, size=size), hidden)), channels))


def tail(b: Builder, x: str) -> str:
    """A plain convolution with ReLU, then the classifier head."""
    return b.head(b.relu(b.conv(x, 16)))


def tokens(b: Builder, vocab: int = 20, width: int = 16) -> str:
    """Token ids through an embedding to (batch, time, width)."""
    ids = b.input("input_ids", ("batch", "time"), np.int64)
    return b.op("Gather", b.param(b.normal(vocab, width, scale=0.5), "embedding.weight"), ids, axis=0)


def pooled(b: Builder, x: str, classes: int = 10) -> str:
    """Mean over the time axis of (batch, time, width), then a Gemm."""
    return b.linear(b.reduce("Mean", x, 1, keepdims=0), classes)
