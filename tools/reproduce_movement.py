"""Masks that are learned while training as they were published, beside ours.

    python tools/reproduce_movement.py --folder DIR    # about four hours of two cores; a run that was stopped goes on

edge-popup (Ramanujan et al. 2020): LeNet-300-100 on MNIST by weights that were never trained, at three sparsities.

digits, sst2: movement against magnitude with few of the weights left while a network moves to another task
(Sanh et al. 2020). The digits ViT learns the even digits of MNIST, from new weights, and moves to the odd ones; the
SST-2 encoder learns from new weights on which side of most a sentence lies along the first principal component of the
words that sentences have, and moves to its sentiment. All rules have
the same start, steps, batches, and growth of the zeros. Each has the rate of its weights, of `RATES`, at which its own
loss on what is held out of the training samples was lowest with a seed that counts for nothing else; beside it all
have the smallest of these rates, where weights stay near those of the first task, as large networks are tuned.

Columns: top-1 in percent, mean and standard error of the seeds; how many standard errors of the difference movement is
ahead.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

import common
import experiments
import onnxprune
from networks import lenet_300_100

HERE = Path(__file__).resolve().parent.parent / "models"
LEFT = (0.03, 0.05, 0.15)
DENSE = "dense"
RULES = ("movement", "magnitude", "gradual-magnitude")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of weights
TRIED = 1000  # the seed with which rates are chosen
POPUP = (0.3, 0.5, 0.7)
WORDS, SENTENCE = 3400, 48  # of the encoder: vocabulary, words of a sentence
Data = tuple[Path, Path]


@dataclass(frozen=True)
class Move:
    """model: architecture; data: (folder of assets, folder) -> samples of the first task and of the second, for
    training and test each; first, steps, batch: of the trainings; left: parts of the weights; rates: that are tried."""

    model: str
    data: Callable[[Path, Path], tuple[Data, Data]]
    first: int
    steps: int
    batch: int
    left: tuple[float, ...] = LEFT
    rates: tuple[float, ...] = RATES


def digits(root: Path, folder: Path) -> tuple[Data, Data]:
    """Even and odd digits of MNIST, halved and framed to 16 x 16, 0 to 1."""
    data, out, rng = np.load(root / "data" / "mnist.npz"), [], np.random.default_rng(0)
    for parity in (0, 1):
        files = []
        for part in ("train", "test"):
            x, y = data[f"x_{part}"], data[f"y_{part}"].astype(np.int64)
            chosen = rng.permutation(np.flatnonzero(y % 2 == parity))[:5000]  # sorted by class
            small = x[chosen].reshape(len(chosen), 1, 14, 2, 14, 2).mean((3, 5)) / 255
            files.append(folder / f"digits_{parity}_{part}.npz")
            framed = np.pad(small, [(0, 0), (0, 0), (1, 1), (1, 1)])
            np.savez(files[-1], image=framed.astype(np.float32), labels=y[chosen])
        out.append((files[0], files[1]))
    return out[0], out[1]


def sst2(root: Path, folder: Path) -> tuple[Data, Data]:
    """Sentences of SST-2 by the first principal component of their words, and by their sentiment."""
    from collections import Counter

    texts = {}
    for part in ("train", "dev"):
        lines = (root / "data" / f"sst2_{part}.tsv").read_text(encoding="utf-8").splitlines()
        texts[part] = [(line[:-2].split()[:SENTENCE], int(line[-1])) for line in lines]
    counts = Counter(word for words, _ in texts["train"] for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: WORDS - 2]
    ids = {word: index + 2 for index, word in enumerate(ranked)}
    has = {part: np.zeros((len(sentences), WORDS)) for part, sentences in texts.items()}
    for part, sentences in texts.items():
        for k, (words, _) in enumerate(sentences):
            has[part][k, [ids[word] for word in words if word in ids]] = 1
    seldom = -np.log(has["train"].mean(0) + 1 / len(has["train"]))
    scaled = {
        part: x * seldom / np.maximum(np.linalg.norm(x * seldom, axis=1, keepdims=True), 1) for part, x in has.items()
    }
    mean = scaled["train"].mean(0)
    axis = np.linalg.eigh((scaled["train"] - mean).T @ (scaled["train"] - mean))[1][:, -1]
    middle = float(np.median(scaled["train"] @ axis))
    out = []
    for task in ("words", "sentiment"):
        files = []
        for part, sentences in texts.items():
            rows, mask = np.zeros((2, len(sentences), SENTENCE), np.int64)
            for k, (words, _) in enumerate(sentences):
                rows[k, : len(words)], mask[k, : len(words)] = [ids.get(word, 1) for word in words], 1
            labels = scaled[part] @ axis > middle if task == "words" else [label for _, label in sentences]
            files.append(folder / f"{task}_{part}.npz")
            np.savez(files[-1], input_ids=rows, attention_mask=mask, labels=np.array(labels, np.int64))
        out.append((files[0], files[1]))
    return out[0], out[1]


MOVES = {
    "digits": Move("digits_vit.onnx", digits, 600, 600, 32),
    "sst2": Move("sst2_encoder.onnx", sst2, 150, 300, 32, (0.05,), (3e-4,)),
}


class Book:
    """What is done, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __call__(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of a key, made where it is not there."""
        if key not in self.rows:
            self.rows[key] = make()
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
            common.say(f"{key}: {self.rows[key]}")
        return dict(self.rows[key])


def trained(model: Path, output: Path, data: Data, **options: Any) -> dict[str, Any]:
    """One training, scored on the test samples."""
    report = onnxprune.train(model, data[0], output, evaluate=data[1], progress=experiments.told, **options).report
    masks = report["masks"] or {}
    return {
        "top1": report["evaluation"][0]["after"], "held_out": report["held_out"]["after"],
        "left": masks.get("left", 1.0), "came_back": masks.get("came_back", 0), "seconds": report["seconds"]["tune"],
    }  # fmt: skip


def popup(args: Any, root: Path, book: Book, seeds: int) -> Any:
    """LeNet-300-100 whose weights stay as they were drawn."""
    model, data = experiments.saved(args.folder, lenet_300_100), experiments.mnist(root, args.folder)
    table = common.columns(f"edge-popup, LeNet-300-100, MNIST (20,000), {seeds} seeds", "left -top-1 s")
    for sparsity in POPUP:
        rows = []
        for k in range(seeds):
            make = partial(
                trained, model, args.folder / "popup.onnx", data, learn_masks="edge-popup", sparsity=sparsity, init=k,
                seed=k, tune="10", threads=args.threads,
            )  # fmt: skip
            rows.append(book(f"popup {sparsity} {k}", make))
        took = fmean(r["seconds"] for r in rows)
        table.add_row(f"{rows[0]['left']:.0%}", told([r["top1"] for r in rows]), f"{took:.0f}")
    return table


def moved(name: str, args: Any, root: Path, book: Book, seeds: int) -> Any:
    """Rules against each other while a network moves from one task to another."""
    move = MOVES[name]
    first, second = move.data(root, args.folder)

    shared: dict[str, Any] = {"batch_size": move.batch, "threads": args.threads}

    def start(k: int) -> Path:
        path = args.folder / f"{name}-{k}.onnx"
        options = {**shared, "init": k, "seed": k, "tune": f"{move.first}steps"}
        book(f"{name} first {k}", partial(trained, HERE / move.model, path, first, **options))
        return path

    def run(rule: str, left: float, rate: float, k: int) -> dict[str, Any]:
        how = {} if rule == DENSE else {"learn_masks": rule, "sparsity": round(1 - left, 4)}
        options = {**shared, **how, "seed": k, "tune": f"{move.steps}steps", "learning_rate": rate}
        make = partial(trained, start(k), args.folder / f"{name}.onnx", second, **options)
        return book(f"{name} {rule} {left} {rate:g} {k}", make)

    def best(rule: str, left: float) -> float:
        if len(move.rates) == 1:
            return move.rates[0]
        return min(move.rates, key={r: run(rule, left, r, TRIED)["held_out"] for r in move.rates}.__getitem__)

    table = common.columns(f"{name}, {seeds} seeds", "left -rule rate -top-1 came_back ahead")
    for left in (1.0, *move.left):
        rules = (DENSE,) if left == 1.0 else RULES
        own = {rule: best(rule, left) for rule in rules}
        small = dict.fromkeys(rules, move.rates[0])
        for rates in [own] if left == 1.0 or own == small else [own, small]:
            rows = {rule: [run(rule, left, rate, k) for k in range(seeds)] for rule, rate in rates.items()}
            for rule, of in rows.items():
                scores, rivals = ([r["top1"] for r in x] for x in (rows[rules[0]], of))
                sure = "-" if rule == rules[0] or seeds < 2 else f"{errors(scores, rivals):+.1f}"
                back = f"{fmean(r['came_back'] for r in of):.0f}"
                table.add_row(f"{left:.0%}", rule, f"{rates[rule]:g}", told(rivals), back, sure)
    return table


def errors(a: list[float], b: list[float]) -> float:
    """How many standard errors of the mean difference, seed by seed, a is above b."""
    each = [x - y for x, y in zip(a, b, strict=True)]
    return fmean(each) / max(stdev(each) / len(each) ** 0.5, 1e-9)


def told(values: list[float]) -> str:
    """Mean and standard error, in percent."""
    spread = 100 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{100 * fmean(values):.2f} ± {spread:.2f}"


def main() -> None:
    args = experiments.parser(__doc__, ["popup", *MOVES]).parse_args()
    root, seeds = common.assets(args.assets), args.seeds or 5
    args.folder.mkdir(parents=True, exist_ok=True)
    book, tables = Book(args.folder / "movement.json"), []
    for part in args.part or ["popup", *MOVES]:
        tables.append(popup(args, root, book, seeds) if part == "popup" else moved(part, args, root, book, seeds))
    common.emit(args, tables, book.rows)


if __name__ == "__main__":
    main()
