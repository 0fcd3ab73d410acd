"""Data and tables that the tools `reproduce_*` share: what the literature claims, beside what came out here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

import common

MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's pixels, from 0 to 1


def parser(doc: str | None, parts: Sequence[str], *, rival: bool = False) -> argparse.ArgumentParser:
    """The options of these tools."""
    p = common.parser(doc, rival=rival)
    p.add_argument("--folder", type=Path, required=True, metavar="DIR", help="keeps what is done; a next run goes on")
    p.add_argument("--part", action="append", choices=parts, help="repeatable (default: all)")
    p.add_argument("--seeds", type=int, metavar="N", help="of each (default: as in the table of the README's claims)")
    p.add_argument("--threads", type=int, default=0, metavar="N", help="of onnxruntime (default: all cores)")
    return p


def saved(folder: Path, network: Callable[[], ModelProto]) -> Path:
    """A network as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{network.__name__}.onnx"
    onnx.save(network(), path)
    return path


def told(stage: str, done: int = 0, total: int = 0, *, note: str = "") -> None:
    """Notes of an experiment."""
    if note:
        common.say(note)


def mnist(root: Path, folder: Path) -> tuple[Path, Path]:
    """Training and test pictures of the sample of MNIST, `(n, 1, 28, 28)`, with labels."""
    data = np.load(root / "data" / "mnist.npz")

    def ready(x: Any) -> Any:
        return ((x[:, None].astype(np.float32) / 255 - MEAN) / DEVIATION).astype(np.float32)

    return _written(folder, "mnist", data, ready)


def cifar(root: Path, folder: Path) -> tuple[Path, Path]:
    """Training and test pictures of the sample of CIFAR-10, `(n, 3, 32, 32)`, with labels."""
    scale = common.module(root / "score.py").CIFAR
    data = np.load(root / "data" / "cifar10_jpeg.npz")

    def ready(x: Any) -> Any:
        scaled = (x.astype(np.float32) / 255 - np.float32(scale["mean"])) / np.float32(scale["std"])
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    return _written(folder, "cifar", data, ready)


def _written(folder: Path, name: str, data: Mapping[str, Any], ready: Callable[[Any], Any]) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    train, test = folder / f"{name}_train.npz", folder / f"{name}_test.npz"
    for path, part in ((train, "train"), (test, "test")):
        np.savez(path, x=ready(data[f"x_{part}"]), labels=data[f"y_{part}"].astype(np.int64))
    return train, test
