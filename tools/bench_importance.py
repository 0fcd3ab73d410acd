"""Every importance at the same cut in MACs: without recovery, with least squares, and tuned after that.

    python tools/bench_importance.py --json importance.json           # all four models
    python tools/bench_importance.py --only digits_vit --importance l2 --importance fisher --json F --resume

The same fraction goes from every layer (`--allocate uniform --round-to 1`), of channels, and of a transformer heads as
well, until the target is met. Samples calibrate, their labels serve those importances that go by labels, and others are
scored: of CIFAR-10 1,000 of the training part and the whole test part; of ImageNet's sample pictures of even and of odd
index; of the digits those of even and odd index of the held-out part; of the characters the first and second half of
the windows. Tuning is without labels, on the samples that calibrate. Scores: top-1 in percent, of characters the
perplexity.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

import common
import onnxprune
from bench_accuracy import cifar_calibration
from onnxprune.importance.score import CRITERIA

Array = np.ndarray[Any, np.dtype[Any]]
WAYS: dict[str, dict[str, Any]] = {
    "none": {"recover": "none"},
    "least squares": {},
    "tuned": {"tune": True},
}


@dataclass(frozen=True, eq=False)
class Task:
    """calibration, scored: `(inputs, labels)`; target: of the MACs; steps, batch: of tuning."""

    path: Path
    calibration: tuple[Array, Array]
    scored: tuple[Array, Array]
    target: str
    steps: int
    batch: int
    options: dict[str, Any] = field(default_factory=dict)


def halves(x: Array, y: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Samples of even and of odd index."""
    return (x[::2], y[::2]), (x[1::2], y[1::2])


def tasks(root: Path, only: str) -> Iterator[Task]:
    """The models whose name fits."""
    real = common.module(root / "score.py")
    for name, target, steps, batch in (
        ("resnet56_cifar10", "50%", 60, 64), ("mobilenetv2_100_224_imagenet", "80%", 40, 32),
    ):  # fmt: skip
        if fnmatch(name, only):
            x, y = real.data(str(root), name)
            if x.shape[1] != 3:
                x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
            x, y = x.astype(np.float32), y.astype(np.int64)
            calibration, scored = (cifar_calibration(root, real), (x, y)) if "cifar" in name else halves(x, y)
            yield Task(root / "models" / f"{name}.onnx", calibration, scored, target, steps, batch)
    models = common.REPO / "models"
    if fnmatch("digits_vit", only):
        data = np.load(models / "digits_heldout.npz")
        calibration, scored = halves(data["image"], data["labels"])
        yield Task(models / "digits_vit.onnx", calibration, scored, "50%", 200, 64, {"heads": "auto"})
    if fnmatch("shakespeare_llama", only):
        data = np.load(models / "shakespeare_heldout.npz")
        (x, y), half = (data["input_ids"], data["labels"]), len(data["labels"]) // 2
        parts = (x[:half], y[:half]), (x[half:], y[half:])
        yield Task(models / "shakespeare_llama.onnx", *parts, "70%", 100, 8, {"heads": "auto"})


def outputs(path: Path, x: Array, batch: int = 25) -> Array:
    """Class scores of all samples."""
    s = common.session(path)
    name = s.get_inputs()[0].name
    return np.concatenate([np.asarray(s.run(None, {name: x[k : k + batch]})[0]) for k in range(0, len(x), batch)])


def score(path: Path, x: Array, y: Array) -> tuple[float, float]:
    """Top-1 in percent with its standard error, or the perplexity per token, which has none here."""
    z = outputs(path, x).astype(np.float64)
    if y.ndim == 1:
        z = z.reshape(len(z), -1)
        hit = z[:, int(z.shape[1] == 1001) :].argmax(1) == y  # without the class of backgrounds
        return 100 * float(hit.mean()), 100 * float(hit.std() / np.sqrt(len(hit)))
    z -= z.max(-1, keepdims=True)
    loss = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, y[..., None], -1)[..., 0]
    return float(np.exp(loss.mean())), float("nan")


def pruned(task: Task, importance: str, way: str, folder: Path) -> dict[str, Any]:
    """One cell: what the written file scores, and what it has left."""
    options: dict[str, Any] = {"channels": "auto", "target_macs": task.target, "allocate": "uniform", "round_to": 1}
    options |= {**task.options, **WAYS[way]}
    if options.get("tune"):
        options |= {"tune": f"{task.steps}steps", "batch_size": task.batch}
    x, y = task.calibration
    name = onnxprune.load(task.path).proto.graph.input[0].name
    options |= {"calibration": {name: x}, "importance": importance, "measure": False}
    if importance in ("taylor", "snip", "grasp"):
        options |= {"train": {name: x}, "train_labels": y}
        options |= {"loss": "kl"} if options.get("tune") else {}  # tuned as the others are
    result = onnxprune.prune(task.path, **options)
    result.save(folder / "out.onnx")
    value, error = score(folder / "out.onnx", *task.scored)
    return {"score": value, "error": error, "macs": result.report.after.macs / result.report.before.macs}


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--only", default="*", metavar="GLOB", help="models by name")
    p.add_argument("--importance", action="append", metavar="NAME", help="repeatable (default: all)")
    p.add_argument("--way", action="append", choices=list(WAYS), metavar="NAME", help=f"of {', '.join(WAYS)} (default)")
    p.add_argument("--resume", action="store_true", help="take over what the file of --json has")
    args: argparse.Namespace = p.parse_args()
    names = args.importance or ["lp:0.5" if n == "lp:P" else n for n in CRITERIA]
    rows: dict[str, dict[str, Any]] = {}
    if args.resume and args.json and args.json.exists():
        rows = json.loads(args.json.read_text(encoding="utf-8"))
    tables = []
    for task in tasks(common.assets(args.assets), args.only):
        dense, error = score(task.path, *task.scored)
        title = f"{task.path.stem}, {task.target} of the MACs: dense {dense:.4g}, standard error {error:.2f}"
        table = common.columns(title, "-importance " + " ".join(w.replace(" ", "_") for w in WAYS) + " MACs_left")
        for importance in names:
            row = rows.setdefault(f"{task.path.stem}, {importance}", {})
            for way in args.way or WAYS:
                if way in row:
                    continue
                with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
                    try:
                        row[way] = pruned(task, importance, way, Path(folder))
                    except onnxprune.UserError as e:  # heads have no normalisation's scale, and so on
                        row[way] = {"problem": str(e)}
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                common.say(f"{task.path.stem} {importance}, {way}: {row[way].get('problem') or row[way]['score']:.4}")
            macs = [c["macs"] for c in row.values() if "macs" in c]
            cells = [f"{row[w]['score']:.4g}" if "score" in row.get(w, {}) else "-" for w in WAYS]
            table.add_row(importance, *cells, f"{macs[0]:.0%}" if macs else "-")
        tables.append(table)
    common.emit(args, tables, rows)


if __name__ == "__main__":
    main()
