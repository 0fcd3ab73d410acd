"""How stable importances are, as it was published, beside ours.

    python tools/reproduce_agree.py --folder DIR       # some minutes; a run that was stopped goes on

heads     Heads of the SST-2 encoder on two halves of the held-out sentences, at random by seed: labels say what they
          are worth. Michel et al. 2019 (Are Sixteen Heads Really Better than One?): what heads are worth on two data
          sets of one task is correlated (over .7 for MNLI, matched and mismatched).
sources   The same heads on sentences of SST-2, of WikiText-2 and of Shakespeare, without labels.
widths    Neurons of its feed-forward blocks, on the halves.
maps      Channels of ResNet-20 on two halves of 500 pictures of CIFAR-10. Lin et al. 2020 (HRank): mean ranks of
          feature maps hardly depend on the pictures.

Columns: Spearman's correlation of the units' scores, within a group (mean and deviation over the groups), and over all
units together (mean over the seeds, and their deviation); Kendall's over all units.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

import common
import experiments
import onnxprune
from onnxprune.calibration.samples import spread
from words import encoded, labelled, speeches, vocabulary, wikitext

ENCODER = common.REPO / "models" / "sst2_encoder.onnx"
BY_LABELS, BY_NONE = (
    ("taylor", "fisher", "head_loss", "activation", "obs"),
    ("fisher", "head_loss", "activation", "obs"),
)
SENTENCES, PICTURES = 436, 500
Arrays = dict[str, Any]


def halved(arrays: Arrays, folder: Path, name: str, seed: int) -> list[Path]:
    """Two halves at random, as files."""
    order, out = np.random.default_rng(seed).permutation(len(arrays["labels"])), []
    for k in (0, 1):
        out.append(folder / f"{name}-{seed}-{'ab'[k]}.npz")
        half: Arrays = {n: x[np.sort(order[k::2])] for n, x in arrays.items()}
        np.savez(out[-1], **half)
    return out


def reviews(root: Path) -> Arrays:
    """The held-out sentences of SST-2, with labels."""
    sentences, labels = labelled(root / "data" / "sst2_dev.tsv")
    return {**encoded(sentences, vocabulary(root / "data")), "labels": np.array(labels)}


def heads(root: Path, folder: Path, seed: int) -> Arrays:
    files = halved(reviews(root), folder, "sst2", seed)
    return {"source": ENCODER, "calibration": files, "importance": BY_LABELS, "kind": "heads"}


def widths(root: Path, folder: Path, seed: int) -> Arrays:
    return {**heads(root, folder, seed), "importance": ("taylor", "fisher", "activation", "obs"), "kind": "channels"}


def sources(root: Path, folder: Path, seed: int) -> Arrays:
    ids, data = vocabulary(root / "data"), root / "data"
    texts = {
        "sst2": labelled(data / "sst2_dev.tsv")[0], "wikitext2": wikitext(data / "wikitext2_valid.txt"),
        "shakespeare": speeches(data / "tinyshakespeare.txt"),
    }  # fmt: skip
    files = []
    for name, sentences in texts.items():
        chosen = [s for s in sentences if 5 <= len(s) <= 48]
        order = np.random.default_rng(seed).permutation(len(chosen))[:SENTENCES]
        files.append(folder / f"{name}-{seed}.npz")
        inputs: Arrays = encoded([chosen[i] for i in order], ids)
        np.savez(files[-1], **inputs)
    return {"source": ENCODER, "calibration": files, "importance": BY_NONE, "kind": "heads"}


def maps(root: Path, folder: Path, seed: int) -> Arrays:
    data = np.load(experiments.cifar(root, folder)[1])
    some = spread(len(data["x"]), PICTURES)
    files = halved({"x": data["x"][some], "labels": data["labels"][some]}, folder, "cifar", seed)
    asked = ("hrank", "activation", "taylor", "fisher", "obs")
    return {"source": root / "models" / "resnet20_cifar10.onnx", "calibration": files, "importance": asked}


PARTS: dict[str, Callable[[Path, Path, int], Arrays]] = {
    "heads": heads, "sources": sources, "widths": widths, "maps": maps,
}  # fmt: skip


def main() -> None:
    args = experiments.parser(__doc__, list(PARTS)).parse_args()
    root, seeds, book = common.assets(args.assets), args.seeds or 3, args.folder / "agree.json"
    args.folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}
    tables = []
    for part in args.part or PARTS:
        for seed in range(seeds):
            if f"{part}, {seed}" not in rows:
                asked = PARTS[part](root, args.folder, seed)
                report = onnxprune.agree(asked.pop("source"), **asked, seed=seed, threads=args.threads,
                                         progress=experiments.told)  # fmt: skip
                rows[f"{part}, {seed}"] = report
                book.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                common.say(f"{part}, {seed}")
        tables.append(table_of(part, [rows[f"{part}, {seed}"]["comparisons"] for seed in range(seeds)]))
    common.emit(args, tables, rows)


def table_of(part: str, runs: list[Any]) -> Any:
    """A row per comparison of data sets: of all seeds."""
    table = common.columns(
        f"{part}, {len(runs)} seeds", "-importance -data units Spearman over_groups together ± Kendall"
    )
    for of in zip(*runs, strict=True):
        first = of[0]
        if first["importances"][0] != first["importances"][1]:
            continue
        data = " and ".join(name.removesuffix(".npz").rpartition("-")[0] or name for name in first["sets"])
        spearman, kendall = ([row[name] for row in of] for name in ("spearman", "kendall"))
        together = [s["together"] for s in spearman]
        table.add_row(
            first["importances"][0], "two halves" if len(set(data.split(" and "))) < 2 else data, str(first["units"]),
            f"{fmean(s['mean'] for s in spearman):.2f}", f"± {fmean(s['deviation'] for s in spearman):.2f}",
            f"{fmean(together):.2f}", f"{stdev(together):.2f}" if len(of) > 1 else "-",
            f"{fmean(k['together'] for k in kendall):.2f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
