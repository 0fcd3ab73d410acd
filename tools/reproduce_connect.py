"""Linear mode connectivity as it was published, beside ours.

    python tools/reproduce_connect.py --folder DIR                    # all, about two hours of two cores
    python tools/reproduce_connect.py --folder DIR --part lenet       # a run that was stopped goes on

lenet     LeNet-300-100 and LeNet-5 on MNIST (20,000 training pictures), Frankle et al. 2020: two trainings that part at
          the start end in basins with a barrier between them, those that part a little later in one. The barrier of
          step 0 against that of the best step, by the step of parting.
resnet20  ResNet-20 on 4,000 pictures of CIFAR-10, with standing normalisations, whose statistics are estimated anew at
          every point; in the paper the barrier is gone from about 3% of the training on.
digits    Networks of models/ that were trained apart on digits, Ainsworth et al. 2022: matching hidden units lowers the
          barrier between them.

Columns: barriers of the cross entropy in nats and of top-1 in points, mean and deviation of the seeds; cross entropy of
the ends; seconds of processor time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

import common
import experiments
import onnxprune
from networks import lenet, lenet_300_100, resnet

STEPS = {"lenet_300_100": "0,10,30,100,300,600", "lenet": "0,10,30,100,300", "resnet": "0,1%,3%,10%,30%"}
LENGTH = {"lenet_300_100": "1200steps", "lenet": "600steps", "resnet": "1000steps"}
# of Adam, higher than is usual: at .0012 the order of the samples matters less, and barriers are a quarter as high
RATE = {"lenet_300_100": 5e-3, "lenet": 5e-3, "resnet": 3e-3}
DIGITS = {"mlp": "digits_mlp", "gru": "digits_gru", "resnet_bn": "digits_heldout"}
TRAINED = 300  # of the 450 samples; the others score


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, or else what is made now and kept there."""
    if not path.exists():
        common.say(path.stem)
        start = time.process_time()
        made = {**make(), "processor": time.process_time() - start}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def spawned(network: Callable[[], Any], data: tuple[Path, Path], args: Any, seeds: int) -> tuple[Any, Any]:
    """Barriers by the step from which two children were trained; a file for each seed."""
    name, (train, test) = network.__name__, data
    model = experiments.saved(args.folder, network)

    def of(k: int) -> dict[str, Any]:
        return onnxprune.connect(
            model, train=train, evaluate=test, spawn=STEPS[name], init=k, seed=k, tune=LENGTH[name],
            learning_rate=RATE[name], threads=args.threads, progress=experiments.told,
        )  # fmt: skip

    reports = [kept(args.folder / "connect" / f"{name}-{k}.json", partial(of, k)) for k in range(seeds)]
    table = common.columns(f"{name}, {reports[0]['runs'][0]['steps']} steps, {seeds} seeds", "step -loss -top-1 ends s")
    steps = [[report["runs"][k] for report in reports] for k in range(len(reports[0]["runs"]))]
    for runs in steps:
        ends = fmean(r["points"][end]["loss"] for r in runs for end in (0, -1))
        losses, errors = ([r["barriers"][metric] for r in runs] for metric in ("loss", "top1"))
        table.add_row(
            str(runs[0]["step"]), spread(losses, ".4f"), spread([100 * e for e in errors], ".2f"), f"{ends:.4f}", ""
        )
    table.add_row("all", "", "", "", f"{sum(r['processor'] for r in reports):.0f}")
    means = [fmean(r["barriers"]["loss"] for r in runs) for runs in steps]
    common.say(f"{name}: barrier of step 0 over that of the best step: {means[0] / max(min(means[1:]), 1e-6):.1f}")
    return table, reports


def spread(values: list[float], form: str) -> str:
    """A mean, and the deviation where there are several."""
    return f"{fmean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def of_lenet(root: Path, args: Any) -> list[tuple[Any, Any]]:
    """Both LeNets."""
    data = experiments.mnist(root, args.folder)
    return [spawned(network, data, args, args.seeds or 3) for network in (lenet_300_100, lenet)]


def of_resnet20(root: Path, args: Any) -> list[tuple[Any, Any]]:
    """ResNet-20."""
    return [spawned(resnet, experiments.cifar(root, args.folder), args, args.seeds or 2)]


def of_digits(root: Path, args: Any) -> list[tuple[Any, Any]]:
    """Networks that were trained apart: the line as it is, and after hidden units were matched."""
    seeds = args.seeds or 3
    table = common.columns(f"digits, trained apart, {seeds} pairs", "-model -loss -aligned -top-1 -aligned ends s")
    reports: dict[str, Any] = {}
    for name, data in DIGITS.items():
        found = [
            kept(args.folder / "connect" / f"digits_{name}-{k}.json", partial(pair, name, k, data, args))
            for k in range(seeds)
        ]
        reports[name] = found
        cells = [
            spread([scale * f[how]["barriers"][metric] for f in found], form)
            for metric, scale, form in (("loss", 1, ".3f"), ("top1", 100, ".1f")) for how in ("plain", "aligned")
        ]  # fmt: skip
        ends = fmean(f["plain"]["points"][end]["loss"] for f in found for end in (0, -1))
        table.add_row(f"digits_{name}", *cells, f"{ends:.3f}", f"{sum(f['processor'] for f in found):.0f}")
    return [(table, reports)]


def pair(name: str, k: int, data: str, args: Any) -> dict[str, Any]:
    """Two networks of one architecture that were trained from two seeds, and the lines between them."""
    model, samples = (
        common.REPO / "models" / f"digits_{name}.onnx",
        dict(np.load(common.REPO / "models" / f"{data}.npz")),
    )
    train, test = ({n: x[part] for n, x in samples.items()} for part in (slice(TRAINED), slice(TRAINED, None)))
    ends = []
    for seed in (2 * k, 2 * k + 1):
        trainer = onnxprune.Trainer(model, train, steps="300steps", init=seed, seed=seed, threads=args.threads)
        trainer.step(300)
        ends.append(trainer.export("weights"))
    statistics = train if name.endswith("bn") else None
    plain, aligned = (
        onnxprune.connect(*ends, evaluate=test, train=statistics, align=x, threads=args.threads) for x in (False, True)
    )
    return {"plain": plain, "aligned": aligned}


PARTS = {"lenet": of_lenet, "resnet20": of_resnet20, "digits": of_digits}


def main() -> None:
    args = experiments.parser(__doc__, list(PARTS)).parse_args()
    root = common.assets(args.assets)
    made = {part: PARTS[part](root, args) for part in args.part or PARTS}
    tables = [table for of in made.values() for table, _ in of]
    common.emit(args, tables, {part: [report for _, report in of] for part, of in made.items()})


if __name__ == "__main__":
    main()
