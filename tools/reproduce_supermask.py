"""Supermasks as they were published, beside ours.

    python tools/reproduce_supermask.py --folder DIR      # ten minutes of one core; a run that was stopped goes on

criteria  LeNet-300-100 on MNIST (20,000 training pictures), Zhou et al. 2019: networks of masks and weights that were
          never trained have about 86% top-1 at their best, by large_final of the same sign and signed constants.
masked    What the weights become that are out, with large_final: zero; frozen at their initial value; or either, by
          the direction in which training moved them.

The sparsity of every cell is the one of `SPARSITIES` that is best on 2,000 of the training pictures; the test pictures
score. Cells: top-1 in percent, mean and deviation of the seeds, and the sparsity of the first seed.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

import common
import experiments
import onnxprune
from networks import lenet_300_100

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ACTIONS = ("init", "signed_constant", "constant", "reinit", "signed_reinit", "final")
CHOOSING = 2000  # pictures
PARTS: dict[str, list[dict[str, Any]]] = {
    "criteria": [{}],
    "masked": [{"criterion": "large_final", "masked": name} for name in ("zero", "init", "direction")],
}


def trained(folder: Path, data: Path, seed: int, threads: int) -> Path:
    """LeNet-300-100 that was trained from a seed."""
    out = folder / f"lenet_300_100-{seed}.onnx"
    if not out.exists():
        onnxprune.train(
            experiments.saved(folder, lenet_300_100), data, out, init=seed, seed=seed, tune="1500steps",
            learning_rate=1.2e-3, threads=threads, progress=experiments.told,
        )  # fmt: skip
    return out


def scores(args: Any, data: tuple[Path, Path, Path], part: str, seed: int) -> dict[str, Any]:
    """Both tables of a seed, of the pictures that choose and of those that score; kept in a file."""
    path = args.folder / "supermask" / f"{part}-{seed}.json"
    if not path.exists():
        common.say(f"{part}, seed {seed}")
        start = time.process_time()
        model = trained(args.folder, data[0], seed, args.threads)
        found = [
            [
                onnxprune.supermask(
                    model, init=seed, evaluate=source, sparsity=SPARSITIES, action=ACTIONS, seed=seed, metric="top1",
                    threads=args.threads, **asked,
                )
                for source in data[1:]
            ]
            for asked in PARTS[part]
        ]  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"found": found, "processor": time.process_time() - start}))
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def best(choosing: Any, scoring: Any) -> dict[tuple[str, str], tuple[float, float]]:
    """Criterion and action -> top-1 and sparsity."""
    out: dict[tuple[str, str], tuple[float, float, float]] = {}
    for chosen, row in zip(choosing["rows"], scoring["rows"], strict=True):
        key, by = (row["criterion"], row["action"]), chosen["scores"]["top1"]
        if key not in out or by > out[key][2]:
            out[key] = row["scores"]["top1"], row["sparsity"], by
    return {key: (score, share) for key, (score, share, _) in out.items()}


def table(part: str, seeds: list[dict[str, Any]]) -> Any:
    """A row per criterion, or per word of --masked."""
    ends = [s["found"][0][1]["ends"] for s in seeds]
    told = ", ".join(f"{what} {spread([e[what]['top1'] for e in ends])}" for what in ("initial", "trained"))
    spent = sum(s["processor"] for s in seeds)
    made = common.columns(
        f"{part}: LeNet-300-100, MNIST, {len(seeds)} seeds ({told}; {spent:.0f} s)", " ".join(["-of", *ACTIONS])
    )
    for k, asked in enumerate(PARTS[part]):
        of = [best(*s["found"][k]) for s in seeds]
        for criterion in dict.fromkeys(c for c, _ in of[0]):
            cells = [[o[criterion, action] for o in of] for action in ACTIONS]
            made.add_row(
                asked.get("masked", criterion), *(f"{spread([s for s, _ in c])} at {c[0][1]:.0%}" for c in cells)
            )
    return made


def spread(shares: list[float]) -> str:
    """In percent, a mean, and the deviation where there are several."""
    return f"{100 * fmean(shares):.1f}" + (f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else "")


def main() -> None:
    args = experiments.parser(__doc__, list(PARTS)).parse_args()
    train, test = experiments.mnist(common.assets(args.assets), args.folder)
    few = args.folder / "mnist_choosing.npz"
    np.savez(few, **{name: x[:CHOOSING] for name, x in np.load(train).items()})
    made = {
        part: [scores(args, (train, few, test), part, k) for k in range(args.seeds or 3)] for part in args.part or PARTS
    }
    common.emit(args, [table(part, seeds) for part, seeds in made.items()], made)


if __name__ == "__main__":
    main()
