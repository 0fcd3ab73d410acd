"""Sparse learning before the cut, as it was published, beside tuning alone with the same number of steps.

    python tools/reproduce_slimming.py --folder DIR     # about an hour of one core; what was stopped goes on

Network slimming (Liu et al. 2017) removes 50 to 70% of the channels for nothing; a group lasso (Wen et al. 2016) and
growing regularisation (Wang et al. 2021) are better than the cut alone. Here the same part of all channels goes from
every group, so that all methods have the same MACs, and all train for the same number of steps in all.

digits     models/digits_resnet_bn, trained on one half of what was held out from its training, tested on the other.
mnist      a plain network of six normalised convolutions, trained from scratch on the sample of MNIST.
resnet20   ResNet-20 for CIFAR-10, as it came, on the sample of CIFAR-10.

Columns: channels and MACs that are gone; top-1 in percent, before, after, and the difference in points; points ahead
of tuning alone, paired by seed, with their standard error; units that came near zero before the cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

import common
import experiments
import onnxprune
from networks import plain

METHODS = ("tuning", "bn", "group", "growing")
MNIST_STEPS = 600  # of the first training
Data = tuple[Path, Path]


@dataclass(frozen=True)
class Case:
    """model: of a seed; data: to train and to test on, of a seed; channels: parts that go; steps: in all; batch: their
    samples; rate: the highest; seeds: where nobody says."""

    model: Callable[[Any, int], Path]
    data: Callable[[Any, int], Data]
    channels: tuple[float, ...]
    steps: int
    batch: int
    rate: float
    seeds: int


def digits(args: Any, seed: int) -> Data:
    """The halves of what was held out from the training of the networks on digits, in turn."""
    data = np.load(common.REPO / "models" / "digits_heldout.npz")
    parts = args.folder / "digits_0.npz", args.folder / "digits_1.npz"
    for k, path in enumerate(parts):
        np.savez(path, image=data["image"][k::2], labels=data["labels"][k::2])
    return parts if seed % 2 == 0 else (parts[1], parts[0])


def trained(args: Any, seed: int) -> Path:
    """The plain network, trained on MNIST."""
    path = Path(args.folder) / f"plain-{seed}.onnx"
    if not path.exists():
        train, _ = mnist(args, seed)
        onnxprune.train(
            experiments.saved(args.folder, plain), train, path, init=seed, tune=f"{MNIST_STEPS}steps", seed=seed,
            threads=args.threads, progress=experiments.told,
        )  # fmt: skip
    return path


def mnist(args: Any, seed: int) -> Data:
    """The sample of MNIST."""
    return experiments.mnist(common.assets(args.assets), args.folder)


def cifar(args: Any, seed: int) -> Data:
    """The sample of CIFAR-10."""
    return experiments.cifar(common.assets(args.assets), args.folder)


CASES = {
    "digits": Case(
        lambda a, s: common.REPO / "models" / "digits_resnet_bn.onnx", digits, (0.5, 0.75), 400, 64, 1e-3, 6
    ),
    "mnist": Case(trained, mnist, (0.5, 0.75), 400, 64, 1e-3, 4),
    "resnet20": Case(
        lambda a, s: common.assets(a.assets) / "models" / "resnet20_cifar10.onnx", cifar, (0.5,), 1000, 64, 1e-3, 2
    ),
}  # fmt: skip


def cut(name: str, channels: float, method: str, seed: int, args: Any) -> dict[str, Any]:
    """One cut, and what it cost."""
    case = CASES[name]
    train, test = case.data(args, seed)
    report = onnxprune.prune(
        case.model(args, seed), channels=channels, tune=f"{case.steps}steps", batch_size=case.batch,
        learning_rate=case.rate, train=train, calibration=train, samples=225, evaluate=test, seed=seed,
        augment=name == "resnet20", threads=args.threads, measure=False, progress=experiments.told,
        regularize=None if method == "tuning" else method,
    ).report.to_dict()  # fmt: skip
    score, learned = report["evaluation"], report["regularization"]
    return {
        "before": score["before"], "after": score["after"],
        "macs": report["after"]["macs"] / report["before"]["macs"],
        "small": None if learned is None else learned["small_after"],
        "norms": None if learned is None else learned["norms"],
    }  # fmt: skip


def main() -> None:
    args = experiments.parser(__doc__, list(CASES)).parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    book = args.folder / "slimming.json"
    rows: dict[str, dict[str, Any]] = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}
    tables = []
    for name in args.part or CASES:
        case = CASES[name]
        seeds = args.seeds or case.seeds
        table = common.columns(
            f"{name}, {case.steps} steps, {seeds} seeds",
            "channels MACs -method before after points ahead +- near_zero",
        )
        for channels in case.channels:
            plain_ones: list[float] = []
            for method in METHODS:
                found = []
                for seed in range(seeds):
                    key = f"{name}, {channels:g}, {method}, {seed}"
                    if key not in rows:
                        rows[key] = cut(name, channels, method, seed, args)
                        book.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                        common.say(f"{key}: {rows[key]}")
                    found.append(rows[key])
                plain_ones = plain_ones or [r["after"] for r in found]
                ahead = [100 * (r["after"] - p) for r, p in zip(found, plain_ones, strict=True)]
                sure = f"{stdev(ahead) / len(ahead) ** 0.5:.2f}" if len(ahead) > 1 else "-"
                before, after = (100 * fmean(r[k] for r in found) for k in ("before", "after"))
                small = "-" if method == "tuning" else f"{100 * fmean(r['small'] for r in found):.0f}%"
                table.add_row(
                    f"{channels:.0%}", f"{1 - found[0]['macs']:.0%}", method, f"{before:.2f}", f"{after:.2f}",
                    f"{after - before:+.2f}", *(("-", "-") if method == "tuning" else (f"{fmean(ahead):+.2f}", sure)),
                    small,
                )  # fmt: skip
        tables.append(table)
    common.emit(args, tables, rows)


if __name__ == "__main__":
    main()
