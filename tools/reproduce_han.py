"""Han's loop: prune by a threshold, train, prune again; the published figures beside ours.

    python tools/reproduce_han.py --folder DIR        # about half an hour of two cores; a run that was stopped goes on

Han et al. 2015, Learning both Weights and Connections: LeNet-300-100 and LeNet-5 keep their accuracy with a twelfth of
their weights. Every network is trained from scratch, then `--quality Q --steps 5 --tune ...`: in each of five steps
weights below Q standard deviations of their layer's go, and the others are trained. Two further architectures of
models/ (a ResNet and a vision transformer on digits) beside them.

Columns: weights over those that are left; top-1 in percent before and after, on pictures that nobody trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import common
import experiments
import onnxprune
from networks import lenet_5_caffe, lenet_300_100


@dataclass(frozen=True)
class Case:
    """model: with weights that were trained, or to be so (`init`); quality: of every step; amount: of training, before
    and in each step; published: how many times fewer weights."""

    name: str
    model: Path
    data: tuple[Path, Path]
    init: bool
    quality: float
    amount: str
    published: str = "-"


def cases(root: Path, folder: Path) -> Iterator[Case]:
    """The networks."""
    data = experiments.mnist(root, folder)
    yield Case("LeNet-300-100", experiments.saved(folder, lenet_300_100), data, True, 0.8, "1500steps", "12")
    yield Case("LeNet-5", experiments.saved(folder, lenet_5_caffe), data, True, 0.8, "1000steps", "12")
    digits = np.load(common.REPO / "models" / "digits_heldout.npz")
    parts = folder / "digits_train.npz", folder / "digits_test.npz"
    for k, path in enumerate(parts):
        np.savez(path, image=digits["image"][k::2], labels=digits["labels"][k::2])
    for name in ("digits_resnet_bn", "digits_vit"):
        yield Case(name, common.REPO / "models" / f"{name}.onnx", parts, False, 0.8, "300steps")


def main() -> None:
    args = experiments.parser(__doc__, ["LeNet-300-100", "LeNet-5", "digits_resnet_bn", "digits_vit"]).parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    book, table = (
        args.folder / "han.json",
        common.columns("Han's loop, five steps", "-network times published top-1 after"),
    )
    rows: dict[str, dict[str, Any]] = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}
    for case in cases(common.assets(args.assets), args.folder):
        if args.part and case.name not in args.part:
            continue
        key = f"{case.name}, {case.quality:g}"
        if key not in rows:
            source = case.model
            if case.init:
                source = args.folder / f"{case.name}.trained.onnx"
                onnxprune.train(
                    case.model, case.data[0], source, init=0, tune=case.amount, threads=args.threads,
                    progress=experiments.told,
                )  # fmt: skip
            result = onnxprune.prune(
                source, quality=case.quality, steps=5, tune=case.amount, train=case.data[0], evaluate=case.data[1],
                learning_rate=1e-3, format="dense", measure=False, threads=args.threads, progress=experiments.told,
            )  # fmt: skip
            result.save(args.folder / f"{case.name}.han.onnx")
            report = result.report.to_dict()
            sparse, score = report["sparsity"], report["evaluation"]
            rows[key] = {"weights": sparse["weights"], "left": sparse["weights"] - sparse["zeros"], **score}
            book.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        r = rows[key]
        table.add_row(
            case.name, f"{r['weights'] / r['left']:.1f}", case.published, f"{100 * r['before']:.2f}",
            f"{100 * r['after']:.2f}",
        )  # fmt: skip
    common.emit(args, [table], rows)


if __name__ == "__main__":
    main()
