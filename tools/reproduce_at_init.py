"""Pruning at initialization as it was published, beside ours.

    python tools/reproduce_at_init.py --folder DIR     # about an hour of two cores; a run that was stopped goes on

ResNet-20 on 4,000 pictures of CIFAR-10, 1,500 steps of 32 (Tanaka et al. 2020, SynFlow): at 99 and 99.9% sparsity SNIP,
GraSP and magnitudes empty whole layers, and only SynFlow still learns. Beside it what pruning after a training gives:
the dense network trained as long, its smallest weights out by one threshold, and as many steps again.

Columns: top-1 in percent, mean and deviation of the seeds; layers without a weight; seconds of scoring and of training
together; how much of the time of training densely and pruning after that saves.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

import common
import experiments
import onnxprune
from networks import resnet

SPARSITIES = (0.99, 0.999)
METHODS = ("synflow", "snip", "grasp", "magnitude", "random")
STEPS = 1500
AFTER, DENSE = "after training", "dense"


def trained(model: Path, output: Path, data: tuple[Path, Path], seed: int, threads: int, **options: Any) -> Any:
    """One training, scored on the test pictures: the report."""
    return onnxprune.train(
        model, data[0], output, evaluate=data[1], seed=seed, threads=threads, tune=f"{STEPS}steps", batch_size=32,
        augment=True, progress=experiments.told, **options,
    ).report  # fmt: skip


def cell(report: Any, output: Path) -> dict[str, Any]:
    """What a training gave."""
    weights = onnxprune.load(output).weights.values()
    scoring = report["at_init"]["seconds"] if report["at_init"] else 0.0
    return {
        "top1": report["evaluation"][0]["after"], "empty": sum(w.ndim > 1 and not w.any() for w in weights),
        "seconds": scoring + report["seconds"]["tune"],
    }  # fmt: skip


def pruned(dense: Path, output: Path, sparsity: float) -> None:
    """The smallest weights out, by one threshold over all layers."""
    model = onnxprune.load(dense)
    wide = {name: w for name, w in model.weights.items() if w.ndim > 1}
    every = np.sort(np.concatenate([np.abs(w).ravel() for w in wide.values()]))
    bound = every[round(sparsity * every.size) - 1]
    for name, w in wide.items():
        model.weights[name] = np.where(np.abs(w) <= bound, np.float32(0), w)
    onnxprune.save(model, output)


def main() -> None:
    args = experiments.parser(__doc__, [str(s) for s in SPARSITIES]).parse_args()
    root, seeds = common.assets(args.assets), args.seeds or 2
    data, model = experiments.cifar(root, args.folder), experiments.saved(args.folder, resnet)
    book = args.folder / "at_init.json"
    rows: dict[str, dict[str, Any]] = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}

    def run(name: str, seed: int, output: Path, source: Path = model, **options: Any) -> None:
        key = f"{name}, {seed}"
        if key not in rows or not output.exists():
            rows[key] = cell(trained(source, output, data, seed, args.threads, **options), output)
            book.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            common.say(f"{key}: {rows[key]}")

    chosen = [float(p) for p in args.part or map(str, SPARSITIES)]
    for seed in range(seeds):
        dense = args.folder / f"dense-{seed}.onnx"
        run(DENSE, seed, dense, init=seed)
        for sparsity in chosen:
            for name in METHODS:
                out = args.folder / "at_init.onnx"
                run(f"{name}, {sparsity}", seed, out, init=seed, at_init=name, sparsity=sparsity)
            pruned(dense, args.folder / f"pruned-{seed}.onnx", sparsity)
            run(f"{AFTER}, {sparsity}", seed, args.folder / "after.onnx", args.folder / f"pruned-{seed}.onnx",
                learning_rate=1e-3)  # fmt: skip
    table = common.columns(f"ResNet-20, CIFAR-10 (4,000), {seeds} seeds", "sparsity -method -top-1 empty s saved")
    first = fmean(rows[f"{DENSE}, {k}"]["seconds"] for k in range(seeds))
    each: tuple[float | None, ...] = (None, *chosen)
    for s in each:
        names = [DENSE] if s is None else [f"{n}, {s}" for n in (*METHODS, AFTER)]
        whole = 0.0 if s is None else first + fmean(rows[f"{AFTER}, {s}, {k}"]["seconds"] for k in range(seeds))
        for name in names:
            of = [rows[f"{name}, {k}"] for k in range(seeds)]
            values, took = [100 * r["top1"] for r in of], fmean(r["seconds"] for r in of)
            took = whole if AFTER in name else took
            spread = stdev(values) if seeds > 1 else 0.0
            gain = "-" if not whole or AFTER in name else f"{1 - took / whole:.0%}"
            table.add_row(
                "-" if s is None else f"{s:.1%}", name.partition(",")[0], f"{fmean(values):.2f} ± {spread:.2f}",
                f"{fmean(r['empty'] for r in of):.1f}", f"{took:.0f}", gain,
            )  # fmt: skip
    common.emit(args, [table], rows)


if __name__ == "__main__":
    main()
