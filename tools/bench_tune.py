"""Tuning without labels after a cut or masks: what the file scores before and after it.

    python tools/bench_tune.py --json tune.json                        # hours; --resume goes on with the file
    python tools/bench_tune.py --only 'mobilenetv2, 30%' --json tune.json --resume

Samples without labels calibrate and tune, others are scored. Of ImageNet's sample pictures those of even index
calibrate and those of odd index, of other classes, are scored, then the other way round, and the answers are pooled; of
CIFAR-10 1,000 of the training part calibrate and the whole test part is scored; of the characters 128 windows calibrate
and 64 others are scored. Augmentation and schedule are the defaults, and rates where a row names none: with so few
pictures mobilenetv2 wants a low one.

Columns: top-1 of the dense model, and without and with --tune in percent (of the decoder the perplexity); the gain with
its paired standard error; steps, and at which of them the model was best (0: as it came); seconds of the whole command
with --tune, of one fold.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

import common
import onnxprune
from bench_accuracy import cifar_calibration
from bench_importance import halves, outputs

Array = np.ndarray[Any, np.dtype[Any]]
Fold = tuple[Array, tuple[Array, Array]]  # samples that calibrate; samples that are scored, and their labels


@dataclass(frozen=True)
class Case:
    """model: name in the assets or in models/; data: of the assets; options: of the cut; tune: amount and batch."""

    model: str
    data: Callable[[Path, str], Iterator[Fold]]
    options: dict[str, Any]
    tune: dict[str, Any]


def pictures(root: Path, name: str) -> Iterator[Fold]:
    """Of ImageNet, both ways."""
    x, y = common.module(root / "score.py").data(str(root), name)
    one, other = halves(x.transpose(0, 3, 1, 2).astype(np.float32) if x.shape[1] != 3 else x.astype(np.float32), y)
    yield one[0], other
    yield other[0], one


def cifar(root: Path, name: str) -> Iterator[Fold]:
    """Of CIFAR-10."""
    real = common.module(root / "score.py")
    x, y = real.data(str(root), name)
    yield cifar_calibration(root, real)[0], (x.astype(np.float32), y)


def characters(root: Path, name: str) -> Iterator[Fold]:
    """Windows of 128 characters of Shakespeare."""
    folder = common.REPO / "models"
    with np.load(folder / "shakespeare_calibration.npz") as few, np.load(folder / "shakespeare_heldout.npz") as held:
        yield few["input_ids"], (held["input_ids"][:64], held["labels"][:64])


SLOW = {"batch_size": 32, "learning_rate": 3e-5}  # what 219 pictures bear
MOBILENET, KINDS = "mobilenetv2_100_224_imagenet", ("channels", "heads", "head_dim", "hidden", "layers")
CASES = {
    "mobilenetv2, 30%": Case(MOBILENET, pictures, {"target_macs": 0.7}, {"tune": "300steps", **SLOW}),
    "mobilenetv2, 2:4": Case(MOBILENET, pictures, {"pattern": "2:4"}, {"tune": "300steps", **SLOW}),
    "mobilenetv2, 50% zeros": Case(MOBILENET, pictures, {"sparsity": 0.5}, {"tune": "200steps", **SLOW}),
    "resnet56, 50%": Case("resnet56_cifar10", cifar, {"target_macs": 0.5}, {"tune": "150steps"}),
    "resnet20, 80% zeros": Case("resnet20_cifar10", cifar, {"sparsity": 0.8}, {"tune": "300steps"}),
    "resnet20, 90% zeros": Case("resnet20_cifar10", cifar, {"sparsity": 0.9}, {"tune": "600steps"}),
    "shakespeare_llama, 50%": Case(
        "shakespeare_llama", characters, {"target_macs": 0.5, **dict.fromkeys(KINDS, "auto")},
        {"tune": "300steps", "batch_size": 16},
    ),
}  # fmt: skip


def scores(path: Path, x: Array, y: Array) -> Array:
    """1 of every sample that is recognised, else 0; of characters the mean loss of a window in nats."""
    z = outputs(path, x).astype(np.float64)
    if y.ndim == 1:
        z = z.reshape(len(z), -1)
        return (z[:, int(z.shape[1] == 1001) :].argmax(1) == y).astype(np.float64)
    z -= z.max(-1, keepdims=True)
    loss = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, y[..., None], -1)[..., 0]
    return np.asarray(loss.mean(-1))


def row(case: Case, fold: Fold, root: Path, threads: int) -> dict[str, Any]:
    """One fold: scores of every sample of the dense model, of the cut one, and of the tuned one."""
    path = common.REPO / "models" / f"{case.model}.onnx"
    path = path if path.exists() else root / "models" / path.name
    samples, scored = fold
    name = onnxprune.load(path).proto.graph.input[0].name
    shared: dict[str, Any] = {
        "calibration": {name: samples}, "samples": len(samples), "threads": threads, "measure": False,
    }  # fmt: skip
    out: dict[str, Any] = {"dense": scores(path, *scored).tolist()}
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        file = Path(folder, "out.onnx")
        for way, options in (("cut", {}), ("tuned", case.tune)):
            report = onnxprune.prune(path, **shared, **case.options, **options).save(file).to_dict()
            out[way] = scores(file, *scored).tolist()
    out |= {"seconds": sum(report["seconds"].values()), "tuning": report["tuning"]}
    return out


def main() -> None:
    p = common.parser(__doc__)
    p.add_argument("--only", default="*", metavar="GLOB", help="rows by name")
    p.add_argument("--folds", type=int, metavar="N", help="the first N (default: all)")
    p.add_argument("--threads", type=int, default=0, metavar="N", help="of onnxruntime (default: all cores)")
    p.add_argument("--resume", action="store_true", help="take over what the file of --json has")
    args = p.parse_args()
    root = common.assets(args.assets)
    rows: dict[str, list[dict[str, Any]]] = {}
    if args.resume and args.json and args.json.exists():
        rows = json.loads(args.json.read_text(encoding="utf-8"))
    table = common.columns("tuning without labels", "-model,_cut dense cut tuned gain steps best seconds")
    for name, case in CASES.items():
        if not fnmatch(name, args.only):
            continue
        done = rows.setdefault(name, [])
        for k, fold in enumerate(case.data(root, case.model)):
            if k < len(done) or (args.folds and k >= args.folds):
                continue
            done.append(row(case, fold, root, args.threads))
            common.say(f"{name}, fold {k}: " + str({w: np.mean(done[k][w]) for w in ("dense", "cut", "tuned")}))
            if args.json:
                args.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")
        if done:
            table.add_row(name, *cells(done))
    common.emit(args, [table], rows)


def cells(done: list[dict[str, Any]]) -> list[str]:
    """The columns behind the name, of all folds."""
    dense, cut, tuned = (np.concatenate([r[way] for r in done]) for way in ("dense", "cut", "tuned"))
    gain, error = tuned - cut, float((tuned - cut).std() / len(cut) ** 0.5)
    tuning = [r["tuning"] or {} for r in done]
    steps = ", ".join(str(t.get("steps")) for t in tuning)
    best = ", ".join(str(t.get("best")) for t in tuning)
    seconds = f"{np.median([r['seconds'] for r in done]):.0f}"
    if set(np.unique(dense)) <= {0.0, 1.0}:
        shown = [f"{100 * float(v.mean()):.1f}" for v in (dense, cut, tuned)]
        return [*shown, f"{100 * gain.mean():+.1f} +- {100 * error:.1f}", steps, best, seconds]
    perplexities = [float(np.exp(v.mean())) for v in (dense, cut, tuned)]
    return [*(f"{v:.3f}" for v in perplexities), f"{perplexities[2] - perplexities[1]:+.3f}", steps, best, seconds]


if __name__ == "__main__":
    main()
