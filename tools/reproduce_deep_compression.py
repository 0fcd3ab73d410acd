"""Deep Compression: pruned with training between, clustered, trained again, zipped; the published figures beside ours.

    python tools/reproduce_deep_compression.py --folder DIR   # some minutes of one core; what was stopped goes on

Han et al. 2016: LeNet-300-100 in a file 40 times smaller, LeNet-5 39 times, at the accuracy that they had. Every
network is trained from scratch, then one command: in each of five steps weights below Q standard deviations of their
layer's go (`--quality Q --steps 5`) and the others are trained, weights become K values (`--cluster K`), and these are
trained. zip (deflate) stands in for Huffman's codes.

Columns: the file over the zipped one; weights over those that are left; top-1 in percent of the test pictures before
and after, mean of the seeds, and the difference in points with its standard error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from onnx import ModelProto

import common
import experiments
import onnxprune
from networks import lenet_5_caffe, lenet_300_100


@dataclass(frozen=True)
class Case:
    """quality: of every step; amount: of training, before, in each step and of the clusters; published: how many times
    smaller the file became."""

    network: Callable[[], ModelProto]
    quality: float
    clusters: int
    amount: str
    published: str


CASES = {
    "LeNet-300-100": Case(lenet_300_100, 0.82, 16, "1500steps", "40"),
    "LeNet-5": Case(lenet_5_caffe, 0.8, 16, "1000steps", "39"),
}


def compressed(name: str, seed: int, data: tuple[Path, Path], args: Any) -> dict[str, Any]:
    """One network, trained and compressed."""
    case, folder = CASES[name], args.folder
    dense = folder / f"{name}-{seed}.dense.onnx"
    if not dense.exists():
        onnxprune.train(
            experiments.saved(folder, case.network), data[0], dense, init=seed, tune=case.amount, seed=seed,
            threads=args.threads, progress=experiments.told,
        )  # fmt: skip
    result = onnxprune.prune(
        dense, quality=case.quality, steps=5, cluster=case.clusters, tune=case.amount, learning_rate=1e-3,
        train=data[0], evaluate=data[1], seed=seed, threads=args.threads, measure=False, progress=experiments.told,
    )  # fmt: skip
    report = result.save(folder / f"{name}-{seed}.small.onnx").to_dict()
    sparse, score, found = report["sparsity"], report["evaluation"], report["codebooks"]
    return {
        "ratio": found["ratio"], "bytes": found["zipped_after"], "bits": found["bits_per_weight"],
        "weights": sparse["weights"], "left": sparse["weights"] - sparse["zeros"], **score,
    }  # fmt: skip


def main() -> None:
    args = experiments.parser(__doc__, list(CASES)).parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    data = experiments.mnist(common.assets(args.assets), args.folder)
    book, seeds = args.folder / "deep_compression.json", args.seeds or 3
    rows: dict[str, dict[str, Any]] = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}
    table = common.columns(
        f"Deep Compression, {seeds} seeds", "-network smaller published weights before after points +-"
    )
    for name in args.part or CASES:
        found = []
        for seed in range(seeds):
            key = f"{name}, {seed}"
            if key not in rows:
                rows[key] = compressed(name, seed, data, args)
                book.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                common.say(f"{key}: {rows[key]}")
            found.append(rows[key])
        lost = [100 * (r["after"] - r["before"]) for r in found]
        table.add_row(
            name, f"{fmean(r['ratio'] for r in found):.1f}", CASES[name].published,
            f"{fmean(r['weights'] / r['left'] for r in found):.1f}",
            *(f"{100 * fmean(r[k] for r in found):.2f}" for k in ("before", "after")), f"{fmean(lost):+.2f}",
            f"{stdev(lost) / len(lost) ** 0.5:.2f}" if len(lost) > 1 else "-",
        )  # fmt: skip
    common.emit(args, [table], rows)


if __name__ == "__main__":
    main()
