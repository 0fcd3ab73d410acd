"""Lottery tickets as they were published, beside ours.

    python tools/reproduce_lottery.py --folder DIR                    # all, about an hour and a half of two cores
    python tools/reproduce_lottery.py --folder DIR --part lenet       # a run that was stopped goes on

lenet     LeNet-300-100 on MNIST (20,000 training pictures), Frankle and Carbin 2019: tickets of 51 down to 3.6% of the
          weights reach the accuracy of the dense network and learn sooner; reinitialised they do not. 21 rounds of a
          fifth, down to 1%, beside new weights and random masks.
resnet20  ResNet-20 on 4,000 pictures of CIFAR-10, Frankle et al. 2020: going back to the start fails at high
          sparsities, to a point within .1 to 7% of the training works. Two rounds, down to 32 and 10%, three points.

Columns: weights left; top-1 in percent, mean and deviation of the seeds; steps to the lowest loss on what is held out;
seconds of a training.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import common
import experiments
import onnxprune
from networks import lenet_300_100, resnet

POINTS = ("0", "1%", "5%")  # of the training of resnet20


def lenet(root: Path, args: Any) -> tuple[Any, Any]:
    """The curve of LeNet-300-100."""
    train, test = experiments.mnist(root, args.folder)
    report = onnxprune.lottery(
        experiments.saved(args.folder, lenet_300_100), train, test, args.folder / "lenet", init=0,
        seeds=args.seeds or 3, rounds=21, rate=0.2, tune="1500steps", learning_rate=1.2e-3, threads=args.threads,
        progress=experiments.told,
    )  # fmt: skip
    table = common.columns(
        f"LeNet-300-100, MNIST, {args.seeds or 3} seeds", "left -ticket -reinit -random steps steps_reinit s"
    )
    means = {(m["round"], m["kind"]): m for m in report["means"]}
    for round in sorted({r for r, _ in means}):
        row = [means.get((round, kind)) for kind in ("ticket" if round else "dense", "reinit", "random")]
        first = row[0]
        assert first is not None
        table.add_row(
            f"{first['left']:.1%}", *(shown(m) for m in row), f"{first['best']:.0f}",
            f"{row[1]['best']:.0f}" if row[1] else "-", f"{first['seconds']:.1f}",
        )  # fmt: skip
    return table, report


def resnet20(root: Path, args: Any) -> tuple[Any, Any]:
    """Where ResNet-20 has to go back to."""
    train, test = experiments.cifar(root, args.folder)
    model = experiments.saved(args.folder, resnet)
    title = f"ResNet-20, CIFAR-10 (4,000), {args.steps} steps, {args.seeds or 2} seeds"
    table = common.columns(title, "back_to left -top-1 steps s")
    reports = {}
    for point in POINTS:
        folder = args.folder / f"resnet20-{args.steps}-{point.replace('%', 'p')}"
        reports[point] = report = onnxprune.lottery(
            model, train, test, folder, init=0, seeds=args.seeds or 2, rounds=2,
            rate=1 - math.sqrt(0.1), rewind=point, controls="none", tune=f"{args.steps}steps", batch_size=32,
            augment=True, threads=args.threads, progress=experiments.told,
        )  # fmt: skip
        for m in report["means"]:
            table.add_row(point, f"{m['left']:.1%}", shown(m), f"{m['best']:.0f}", f"{m['seconds']:.0f}")
    return table, reports


def shown(mean: dict[str, Any] | None) -> str:
    """A score in percent, with the deviation of the seeds."""
    return "-" if mean is None else f"{100 * mean['score']:.2f} ± {100 * mean['deviation']:.2f}"


PARTS = {"lenet": lenet, "resnet20": resnet20}


def main() -> None:
    p = experiments.parser(__doc__, list(PARTS))
    p.add_argument("--steps", type=int, default=2000, metavar="N", help="of a training of resnet20 (default 2000)")
    args = p.parse_args()
    root = common.assets(args.assets)
    made = {part: PARTS[part](root, args) for part in args.part or PARTS}
    common.emit(args, [table for table, _ in made.values()], {part: report for part, (_, report) in made.items()})


if __name__ == "__main__":
    main()
